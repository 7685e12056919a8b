//! Experimental features, by name: a state lists those it needs.

use std::collections::BTreeMap;
use thiserror::Error;

/// A feature that may still change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feature {
    /// Its name: a small letter, then small letters, digits and `_`.
    pub name: String,
    /// What it is.
    pub description: String,
    /// When it is expected to be one like any other.
    pub release: String,
}

/// The feature of the API in this crate. It no longer gates anything, in Kata since 1.11.
pub const NEW_STORE: &str = "newstore";

/// Why a feature was not registered.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FeatureError {
    /// Its name is none.
    #[error("{0:?} is no name of a feature: it must match ^[a-z][a-z0-9_]*$")]
    Name(String),
    /// It does not say what it is, or when it is to be ready.
    #[error("feature {name} has no {missing}")]
    Incomplete {
        /// The feature.
        name: String,
        /// What is missing.
        missing: &'static str,
    },
    /// There is one of that name.
    #[error("feature {0} is registered already")]
    Duplicate(String),
}

/// The features there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Features {
    known: BTreeMap<String, Feature>,
}

impl Features {
    /// No features.
    pub fn none() -> Self {
        Self::default()
    }

    /// The features of this crate.
    ///
    /// # Errors
    /// As [`register`](Features::register).
    pub fn standard() -> Result<Self, FeatureError> {
        let mut features = Self::none();
        features.register(Feature {
            name: NEW_STORE.to_owned(),
            description: "sandbox states in one store with one API".to_owned(),
            release: "2.0".to_owned(),
        })?;
        Ok(features)
    }

    /// Adds a feature.
    ///
    /// # Errors
    /// When its name is none or is taken, or it does not say what it is.
    pub fn register(&mut self, feature: Feature) -> Result<(), FeatureError> {
        let name = &feature.name;
        let mut chars = name.chars();
        let begins = chars.next().is_some_and(|first| first.is_ascii_lowercase());
        let mut rest = chars.map(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        if !begins || !rest.all(|fits| fits) {
            return Err(FeatureError::Name(name.clone()));
        }
        for (text, missing) in
            [(&feature.description, "description"), (&feature.release, "release")]
        {
            if text.is_empty() {
                return Err(FeatureError::Incomplete { name: name.clone(), missing });
            }
        }
        if self.known.contains_key(name) {
            return Err(FeatureError::Duplicate(name.clone()));
        }
        self.known.insert(name.clone(), feature);
        Ok(())
    }

    /// A feature by its name. A state may name one that there is none of; Kata's loader crashes then.
    pub fn get(&self, name: &str) -> Option<&Feature> {
        self.known.get(name)
    }

    /// All of them, sorted by name.
    pub fn all(&self) -> impl Iterator<Item = &Feature> {
        self.known.values()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn feature(name: &str) -> Feature {
        let (description, release) = ("what it is".to_owned(), "1.0".to_owned());
        Feature { name: name.to_owned(), description, release }
    }

    #[test]
    fn the_new_store_is_a_feature() {
        assert_eq!(Features::standard().unwrap().get("newstore").unwrap().release, "2.0");
        assert_eq!(Features::standard().unwrap().get("other"), None);
    }

    #[test]
    fn a_name_is_small_letters_digits_and_underscores() {
        let mut features = Features::none();
        for name in ["", "1a", "_a", "A", "aB", "a-b", "a b", "é"] {
            assert_eq!(
                features.register(feature(name)),
                Err(FeatureError::Name(name.to_owned())),
                "{name:?}"
            );
        }
        for name in ["a", "a1_b", "newstore"] {
            features.register(feature(name)).unwrap();
        }
        assert_eq!(features.all().count(), 3);
    }

    #[test]
    fn a_feature_says_what_it_is_and_is_there_once() {
        let mut features = Features::standard().unwrap();
        let twice = features.register(feature("newstore"));
        assert_eq!(twice, Err(FeatureError::Duplicate("newstore".to_owned())));
        let mute = Feature { release: String::new(), ..feature("x") };
        assert!(matches!(
            features.register(mute),
            Err(FeatureError::Incomplete { missing: "release", .. })
        ));
        let vague = Feature { description: String::new(), ..feature("x") };
        assert!(matches!(
            features.register(vague),
            Err(FeatureError::Incomplete { missing: "description", .. })
        ));
    }
}
