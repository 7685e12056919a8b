//! Where settings are written: `[hypervisor]` and `[sandbox]` in TOML.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::SettingsError;

/// Where configuration is looked for; a value, so that it can be tested.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// `$CORACLE_CONFIG`: this file and no other; it must be there.
    pub only: Option<PathBuf>,
    /// The host's own.
    pub system: PathBuf,
    /// `$XDG_CONFIG_HOME`, else `.config` in `$HOME`.
    pub user: Option<PathBuf>,
}

impl Places {
    /// Those of this process.
    pub fn of_this_process() -> Self {
        let path = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        Self {
            only: path("CORACLE_CONFIG"),
            system: "/etc/coracle/config.toml".into(),
            user: path("XDG_CONFIG_HOME").or_else(|| path("HOME").map(|home| home.join(".config"))),
        }
    }

    /// The files to read, the strongest last.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        if let Some(only) = &self.only {
            return vec![only.clone()];
        }
        let user = self.user.iter().map(|dir| dir.join("coracle/config.toml"));
        std::iter::once(self.system.clone()).chain(user).filter(|path| path.exists()).collect()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tables {
    #[serde(default)]
    hypervisor: Map<String, Value>,
    #[serde(default)]
    sandbox: Map<String, Value>,
}

/// The two tables of a file.
pub(super) fn read(path: &Path) -> Result<[Map<String, Value>; 2], SettingsError> {
    let path = path.to_owned();
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(source) => return Err(SettingsError::Read { path, source }),
    };
    let tables: Tables = toml::from_str(&text)
        .map_err(|source| SettingsError::Parse { path, source: Box::new(source) })?;
    Ok([tables.hypervisor, tables.sandbox])
}
