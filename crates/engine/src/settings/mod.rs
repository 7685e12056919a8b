//! Settings of the VM and the sandbox in the words of seed `persistapi`.
//!
//! Whoever knows Kata's `HypervisorConfig` and `SandboxConfig` sets the same members here, in files
//! and one by one. Each member has its effect, or the one value that is so anyway, or is refused by
//! name with the reason: none is taken and then ignored. `docs/hypervisor-config.md` is the table.
//!
//! ```text
//!   /etc/coracle/config.toml < $XDG_CONFIG_HOME/coracle/config.toml < --set NAME=VALUE
//!                                     │ merge (typed by the seed's own structs)
//!                                     ▼
//!                           apply: member by member ──► SandboxSpec
//! ```

mod files;
mod members;
mod tuning;

use coracle_persist::model::{HypervisorConfig, SandboxConfig};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::spec::SandboxSpec;
pub use files::Places;
pub use members::{fate, names};
pub use tuning::Tuning;

/// A setting cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}", path.display())]
    Read {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is no TOML, or has a table that is not known.
    #[error("the configuration {} is not understood", path.display())]
    Parse {
        /// The file.
        path: std::path::PathBuf,
        /// Why, with the line.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// No member has that name.
    #[error("there is no setting {name:?} (from {origin})")]
    Unknown {
        /// What was asked for.
        name: String,
        /// Where it was said.
        origin: String,
    },
    /// The value is of another type, or out of range.
    #[error("{name} cannot be {value} (from {origin}): {why}")]
    Value {
        /// The member.
        name: String,
        /// The value.
        value: String,
        /// Where it was said.
        origin: String,
        /// What it may be.
        why: String,
    },
    /// The member has no effect in coracle.
    #[error("{name} cannot be set (from {origin}): {why}")]
    Refused {
        /// The member.
        name: String,
        /// Where it was said.
        origin: String,
        /// What there is instead.
        why: &'static str,
    },
    /// `DisableBlockDeviceUse` is set.
    #[error("{object} is a block device, and DisableBlockDeviceUse forbids them")]
    BlockDevice {
        /// What was to be plugged in.
        object: String,
    },
}

impl SettingsError {
    /// The stable code of the failure.
    pub fn code(&self) -> &'static str {
        match self {
            SettingsError::Read { .. } | SettingsError::Parse { .. } => "E-SETTING-FILE",
            SettingsError::Unknown { .. } => "E-SETTING-UNKNOWN",
            SettingsError::Value { .. } => "E-SETTING-VALUE",
            SettingsError::Refused { .. } => "E-SETTING-REFUSED",
            SettingsError::BlockDevice { .. } => "E-SETTING-NO-DISKS",
        }
    }

    /// What the user can do about it.
    pub fn help(&self) -> &'static str {
        match self {
            SettingsError::Read { .. } => "CORACLE_CONFIG names a file that must be there",
            SettingsError::Parse { .. } => {
                "write tables [hypervisor] and [sandbox] with NAME = VALUE, in TOML"
            }
            SettingsError::Unknown { .. } => {
                "names are those of Kata's HypervisorConfig and SandboxConfig, as they are written \
                 there: `coracle settings` lists them"
            }
            SettingsError::Value { .. } | SettingsError::Refused { .. } => {
                "leave it out, or do as said"
            }
            SettingsError::BlockDevice { .. } => "share a directory instead: --volume",
        }
    }
}

/// What was asked for, later over earlier.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    asked: Vec<Asked>,
}

#[derive(Debug, Clone)]
struct Asked {
    name: String,
    value: Value,
    origin: String,
}

impl Settings {
    /// Takes what the configuration files say.
    ///
    /// # Errors
    /// A file is there and cannot be read or understood; a member is unknown or of another type.
    pub fn load(places: &Places) -> Result<Self, SettingsError> {
        let mut settings = Self::default();
        for path in places.files() {
            for (name, value) in files::read(&path)?.into_iter().flatten() {
                settings.ask(&name, value, &path.display().to_string())?;
            }
        }
        Ok(settings)
    }

    /// Takes one `NAME=VALUE`; the value is JSON, or else a string.
    ///
    /// # Errors
    /// No such member, or a value of another type.
    pub fn set(&mut self, text: &str) -> Result<(), SettingsError> {
        let (name, value) = text.split_once('=').unwrap_or((text, "true"));
        let string = || Value::String(value.to_owned());
        let typed = serde_json::from_str(value).unwrap_or_else(|_| string());
        self.ask(name, typed, "--set").or_else(|error| {
            // A string may look like a number.
            self.ask(name, string(), "--set").map_err(|_| error)
        })
    }

    /// What was asked of a member, and where.
    pub fn asked(&self, name: &str) -> Option<(&Value, &str)> {
        let asked = self.asked.iter().find(|asked| asked.name == name)?;
        Some((&asked.value, &asked.origin))
    }

    fn ask(&mut self, name: &str, value: Value, origin: &str) -> Result<(), SettingsError> {
        let (name, origin) = (name.to_owned(), origin.to_owned());
        let one = Map::from_iter([(name.clone(), value.clone())]);
        let typed = if members::is_of_the_vm(&name) {
            typed::<HypervisorConfig>(one).map(|_| ())
        } else if members::is_of_the_sandbox(&name) {
            typed::<SandboxConfig>(one).map(|_| ())
        } else {
            return Err(SettingsError::Unknown { name, origin });
        };
        match typed {
            Ok(()) => {
                self.asked.retain(|asked| asked.name != name);
                self.asked.push(Asked { name, value, origin });
                Ok(())
            }
            Err(error) => {
                let (value, why) = (value.to_string(), error.to_string());
                Err(SettingsError::Value { name, value, origin, why })
            }
        }
    }

    /// Changes what a sandbox is to be. A member that is set to its zero value says nothing.
    ///
    /// # Errors
    /// A member that is refused, or a value it cannot have.
    pub fn apply(&self, spec: &mut SandboxSpec) -> Result<(), SettingsError> {
        let hypervisor: HypervisorConfig = self.merged(members::is_of_the_vm);
        let sandbox: SandboxConfig = self.merged(members::is_of_the_sandbox);
        let idle = (fields(&HypervisorConfig::default()), fields(&SandboxConfig::default()));
        for asked in &self.asked {
            let says_nothing =
                |idle: &Map<String, Value>| idle.get(&asked.name) == Some(&asked.value);
            if says_nothing(&idle.0) || says_nothing(&idle.1) {
                continue;
            }
            members::apply(&asked.name, &hypervisor, &sandbox, spec)
                .map_err(|refusal| refusal.told(asked))?;
        }
        Ok(())
    }

    /// The members of one struct; each was seen to fit it.
    fn merged<T: DeserializeOwned + Default>(&self, belongs: fn(&str) -> bool) -> T {
        let mine = self.asked.iter().filter(|asked| belongs(&asked.name));
        typed(mine.map(|asked| (asked.name.clone(), asked.value.clone())).collect())
            .unwrap_or_default()
    }
}

impl members::Refusal {
    fn told(self, asked: &Asked) -> SettingsError {
        let (name, origin) = (asked.name.clone(), asked.origin.clone());
        match self {
            members::Refusal::Member(why) => SettingsError::Refused { name, origin, why },
            members::Refusal::Value(why) => {
                SettingsError::Value { name, value: asked.value.to_string(), origin, why }
            }
        }
    }
}

fn typed<T: DeserializeOwned>(members: Map<String, Value>) -> Result<T, serde_json::Error> {
    serde_json::from_value(Value::Object(members))
}

fn fields(value: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(value) {
        Ok(Value::Object(map)) => map,
        Ok(_) | Err(_) => Map::new(),
    }
}

#[cfg(test)]
mod tests;
