//! Extra JSON over a document.
//!
//! Objects are merged key by key, and the extra side wins. One rule is odd and kept because it is
//! the seed's: `null` over an object keeps the object, over anything else it becomes null.

use serde_json::Value;

/// The extra JSON cannot be merged.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// The text is no JSON.
    #[error("failed to merge additional JSON '{text}'")]
    Syntax {
        /// The text as given.
        text: String,
        /// Where it stops being JSON.
        #[source]
        source: serde_json::Error,
    },
    /// The text is JSON, but not an object.
    #[error("failed to merge additional JSON '{text}': it is no object")]
    NotAnObject {
        /// The text as given.
        text: String,
    },
}

/// Merges `extra` into `document`. Empty text changes nothing.
///
/// # Errors
/// Text that is not one JSON object.
pub fn merge(mut document: Value, extra: &str) -> Result<Value, MergeError> {
    if extra.is_empty() {
        return Ok(document);
    }
    let parsed = serde_json::from_str(extra);
    let value: Value =
        parsed.map_err(|source| MergeError::Syntax { text: extra.to_owned(), source })?;
    if !value.is_object() {
        return Err(MergeError::NotAnObject { text: extra.to_owned() });
    }
    overlay(&mut document, value);
    Ok(document)
}

/// Depth is bounded: both sides come out of a parser that limits it.
fn overlay(under: &mut Value, over: Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (key, value) in over {
                match under.get_mut(&key) {
                    Some(slot) => overlay(slot, value),
                    None => drop(under.insert(key, value)),
                }
            }
        }
        (Value::Object(_), Value::Null) => {}
        (under, over) => *under = over,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn merged(under: Value, over: &Value) -> Value {
        merge(under, &over.to_string()).unwrap()
    }

    #[test]
    fn empty_text_changes_nothing() {
        assert_eq!(merge(json!({"a": 1}), "").unwrap(), json!({"a": 1}));
    }

    #[test]
    fn objects_merge_and_everything_else_is_replaced_whole() {
        let under = json!({"keep": 1, "deep": {"a": 1, "b": [1, 2]}, "kind": {"x": 1}});
        let over = json!({"deep": {"b": [3], "c": null}, "kind": 7, "new": {}});
        let expected = json!({
            "keep": 1, "deep": {"a": 1, "b": [3], "c": null}, "kind": 7, "new": {}
        });
        assert_eq!(merged(under, &over), expected);
    }

    #[test]
    fn null_keeps_an_object_and_clears_a_value() {
        let under = json!({"object": {"a": 1}, "number": 1, "list": [1]});
        let over = json!({"object": null, "number": null, "list": null});
        assert_eq!(merged(under, &over), json!({"object": {"a": 1}, "number": null, "list": null}));
    }

    #[test]
    fn what_is_no_object_is_refused_with_its_text() {
        for text in ["{", "[]", "7", "null", "{} {}"] {
            let error = merge(json!({}), text).unwrap_err().to_string();
            let start = format!("failed to merge additional JSON '{text}'");
            assert!(error.starts_with(&start), "{error}");
        }
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[a-z]{0,3}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                object(inner),
            ]
        })
    }

    fn object(value: impl Strategy<Value = Value>) -> impl Strategy<Value = Value> {
        prop::collection::hash_map("[a-c]", value, 0..3)
            .prop_map(|fields| Value::Object(fields.into_iter().collect()))
    }

    /// The rule said once more, for every path of the outcome.
    fn follows_the_rule(under: Option<&Value>, over: Option<&Value>, out: &Value) -> bool {
        match (under, over) {
            (Some(Value::Object(u)), Some(Value::Object(o))) => {
                let Value::Object(out) = out else { return false };
                let keys: std::collections::BTreeSet<_> = u.keys().chain(o.keys()).collect();
                keys.len() == out.len()
                    && keys.iter().all(|key| {
                        out.get(*key).is_some_and(|v| follows_the_rule(u.get(*key), o.get(*key), v))
                    })
            }
            (Some(under @ Value::Object(_)), Some(Value::Null)) | (Some(under), None) => {
                out == under
            }
            (_, Some(over)) => out == over,
            (None, None) => false,
        }
    }

    proptest! {
        #[test]
        fn every_merge_follows_the_rule(under in object(any_json()), over in object(any_json())) {
            let out = merged(under.clone(), &over);
            prop_assert!(follows_the_rule(Some(&under), Some(&over), &out), "{out}");
        }

        #[test]
        fn merging_the_same_again_changes_nothing(under in object(any_json()), over in object(any_json())) {
            let once = merged(under, &over);
            prop_assert_eq!(merged(once.clone(), &over), once);
        }

        #[test]
        fn any_text_merges_or_fails_without_a_panic(text in ".{0,60}") {
            let _ = merge(json!({"a": {"b": 1}}), &text);
        }
    }
}
