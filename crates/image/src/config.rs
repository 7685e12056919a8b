//! What an image says about how to run it.

use serde::{Deserialize, Serialize};

/// The part of an image's configuration that matters to whoever runs a container from it.
/// Everything is empty for sources that have none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// Environment, `NAME=VALUE` each.
    pub env: Vec<String>,
    /// The command that is always run, with its first arguments.
    pub entrypoint: Vec<String>,
    /// What follows the entrypoint unless the caller gives something else.
    pub cmd: Vec<String>,
    /// Directory to start in.
    pub workdir: Option<String>,
    /// `USER`, `USER:GROUP`, by name or number; looked up in the image.
    pub user: Option<String>,
    /// Signal that asks the command to stop, by name or number.
    pub stop_signal: Option<String>,
}

impl ImageConfig {
    /// The command to run: the entrypoint followed by `arguments`, or by the image's own when
    /// there are none.
    #[must_use]
    pub fn command(&self, arguments: &[String]) -> Vec<String> {
        let rest = if arguments.is_empty() { &self.cmd } else { arguments };
        [self.entrypoint.as_slice(), rest].concat()
    }
}

impl From<&oci_spec::image::ImageConfiguration> for ImageConfig {
    fn from(configuration: &oci_spec::image::ImageConfiguration) -> Self {
        let Some(config) = configuration.config() else { return Self::default() };
        let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
        let text = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        Self {
            env: list(config.env()),
            entrypoint: list(config.entrypoint()),
            cmd: list(config.cmd()),
            workdir: text(config.working_dir()),
            user: text(config.user()),
            stop_signal: text(config.stop_signal()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_arguments_replace_the_images_own_but_not_its_entrypoint() {
        let list = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
        let config = ImageConfig {
            entrypoint: list(&["/entry", "-x"]),
            cmd: list(&["default"]),
            ..ImageConfig::default()
        };
        assert_eq!(config.command(&[]), list(&["/entry", "-x", "default"]));
        assert_eq!(config.command(&list(&["a", "b"])), list(&["/entry", "-x", "a", "b"]));
    }
}
