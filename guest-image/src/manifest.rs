//! What is in the guest folder and what it was made of.
//!
//! The manifest is the folder's receipt: the digests of all inputs say whether
//! the files are still up to date, the digests of all outputs whether they are
//! still whole. It holds no times and no paths of the machine it was made on,
//! since the same inputs must give the same bytes everywhere.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The manifest's format. A number we do not know is refused, never guessed at.
pub const SCHEMA: u32 = 1;

/// Everything the guest folder has to say about itself; `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`SCHEMA`] of the version that wrote it.
    pub schema: u32,
    /// The number of the recipe: it changes when the same inputs give other outputs.
    pub recipe: u32,
    /// The version of coracle that made the files.
    pub coracle: String,
    /// The kernel.
    pub kernel: KernelRecord,
    /// The modules.
    pub modules: ModuleRecord,
    /// The files it was made of, in a fixed order, named by role: `kernel`, `agent`, `busybox`,
    /// `configuration` (the kernel's, where there is one), `module/kernel/fs/...`.
    pub inputs: Vec<FileRecord>,
    /// The files of the folder, named as they are, without the manifest itself.
    pub outputs: Vec<FileRecord>,
}

/// The kernel of a [`Manifest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelRecord {
    /// `uname -r` in the guest.
    pub release: String,
    /// How the distribution compressed it.
    pub compression: String,
}

/// The modules of a [`Manifest`], by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleRecord {
    /// Loaded by the agent before anything else, in this order, with all they need.
    pub boot: Vec<String>,
    /// Shipped, and loaded by the agent when something asks for them.
    pub on_demand: Vec<String>,
    /// Wanted on demand, but not made for this kernel.
    pub absent: Vec<String>,
    /// With the distribution's signatures: the kernel needs them, or nothing is known about it.
    /// Not said before there was a choice: then they were kept.
    #[serde(default = "kept")]
    pub signed: bool,
}

fn kept() -> bool {
    true
}

/// One file of a [`Manifest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Its name or role.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its SHA-256 in hexadecimal digits.
    pub sha256: String,
}

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is not JSON of the right form.
    #[error("manifest.json is malformed")]
    Malformed(#[source] serde_json::Error),
    /// Another version of coracle wrote it.
    #[error("manifest.json has schema {found}; this coracle knows {SCHEMA}")]
    UnknownSchema {
        /// The schema it says it has.
        found: u32,
    },
}

impl FileRecord {
    /// The record of a file with these bytes.
    pub(crate) fn of(name: impl Into<String>, bytes: &[u8]) -> Self {
        Self { name: name.into(), size: bytes.len() as u64, sha256: hex(&Sha256::digest(bytes)) }
    }

    /// The record of a file with what `content` gives.
    pub(crate) fn read(
        name: impl Into<String>,
        content: &mut impl std::io::Read,
    ) -> std::io::Result<Self> {
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 256 << 10];
        let mut size = 0;
        loop {
            let length = content.read(&mut buffer)?;
            if length == 0 {
                break;
            }
            hasher.update(&buffer[..length]);
            size += length as u64;
        }
        Ok(Self { name: name.into(), size, sha256: hex(&hasher.finalize()) })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Manifest {
    /// Reads a manifest.
    ///
    /// # Errors
    /// [`ManifestError::UnknownSchema`] for one of another schema, even when it would not parse
    /// as ours; [`ManifestError::Malformed`] for all else.
    pub fn parse(json: &[u8]) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        struct Head {
            schema: u32,
        }
        let head: Head = serde_json::from_slice(json).map_err(ManifestError::Malformed)?;
        if head.schema != SCHEMA {
            return Err(ManifestError::UnknownSchema { found: head.schema });
        }
        serde_json::from_slice(json).map_err(ManifestError::Malformed)
    }

    /// The manifest as text, which ends with a line feed.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Only strings and numbers: serialising them cannot fail.
        let mut json = serde_json::to_string_pretty(self).unwrap_or_default();
        json.push('\n');
        json
    }

    /// Whether these inputs, handled by this recipe, are what the manifest's files were made of.
    pub(crate) fn made_of(&self, recipe: u32, inputs: &[FileRecord]) -> bool {
        self.recipe == recipe && self.coracle == env!("CARGO_PKG_VERSION") && self.inputs == inputs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            schema: SCHEMA,
            recipe: 3,
            coracle: env!("CARGO_PKG_VERSION").into(),
            kernel: KernelRecord { release: "6.1.0".into(), compression: "xz".into() },
            modules: ModuleRecord {
                boot: vec!["a".into()],
                on_demand: vec![],
                absent: vec![],
                signed: false,
            },
            inputs: vec![FileRecord::of("agent", b"abc")],
            outputs: vec![],
        }
    }

    #[test]
    fn a_manifest_survives_being_written_and_read() {
        assert_eq!(Manifest::parse(manifest().to_json().as_bytes()).unwrap(), manifest());
    }

    #[test]
    fn a_record_holds_the_sha256_of_its_bytes() {
        // FIPS 180-2, example B.1.
        assert_eq!(
            FileRecord::of("agent", b"abc").sha256,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn a_manifest_of_another_schema_is_refused_whatever_else_it_says() {
        let error = Manifest::parse(br#"{"schema":2,"kernel":7}"#).unwrap_err();
        assert!(matches!(error, ManifestError::UnknownSchema { found: 2 }), "{error}");
    }

    #[test]
    fn another_input_or_recipe_makes_the_files_stale() {
        let manifest = manifest();
        assert!(manifest.made_of(3, &manifest.inputs));
        assert!(!manifest.made_of(4, &manifest.inputs));
        assert!(!manifest.made_of(3, &[FileRecord::of("agent", b"abd")]));
    }
}
