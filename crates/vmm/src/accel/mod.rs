//! Which accelerator runs guest code: KVM only where a trial has proved it fast.
//!
//! That `/dev/kvm` opens proves nothing. Some hosts offer a KVM that emulates a guest instruction
//! by instruction, a thousand times slower than QEMU's translator; its version, its extensions
//! and even a guest of one `hlt` look perfect. Only work tells, so a virtual CPU is made to do
//! some (see `trial.rs`). The verdict holds for one boot of the host and is remembered in a file.

mod trial;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use serde::{Deserialize, Serialize};

use crate::{Accel, VmmError, process::host_boot_id};

/// What runs guest code, once decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// The CPU itself.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

impl Engine {
    /// The name users know it by.
    pub fn name(self) -> &'static str {
        match self {
            Engine::Kvm => "kvm",
            Engine::Tcg => "tcg",
        }
    }
}

/// A decision and why it was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// What runs guest code.
    pub engine: Engine,
    /// Why, for a person to read.
    pub why: String,
    /// KVM was wanted if possible and is not; worth telling once.
    pub is_fallback: bool,
}

/// What KVM is good for on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kvm")]
pub enum Kvm {
    /// A virtual CPU did its work at hardware speed.
    Fast {
        /// CPU time the trial took, in microseconds.
        micros: u64,
    },
    /// There is no `/dev/kvm`.
    Missing,
    /// We may not open it.
    Forbidden,
    /// It opens, but a virtual CPU is emulated.
    Slow {
        /// How much of its work it did in the time it had, in percent.
        percent: u32,
    },
    /// It opens, but something in the trial failed.
    Broken {
        /// What.
        why: String,
    },
}

impl Kvm {
    /// Whether guest code should run on it.
    pub fn is_usable(&self) -> bool {
        matches!(self, Kvm::Fast { .. })
    }

    /// What was found, as a clause.
    pub fn why(&self) -> String {
        match self {
            Kvm::Fast { micros } => format!("KVM runs guest code at hardware speed ({micros} us)"),
            Kvm::Missing => "there is no /dev/kvm".into(),
            Kvm::Forbidden => "/dev/kvm may not be opened by this user".into(),
            Kvm::Slow { percent } => format!(
                "/dev/kvm opens but emulates guest code: a trial got {percent} % done in {} ms",
                trial::LIMIT.as_millis()
            ),
            Kvm::Broken { why } => format!("/dev/kvm opens but does not work: {why}"),
        }
    }

    /// What a person can do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Kvm::Fast { .. } => "nothing need be done",
            Kvm::Missing => {
                "enable virtualization in the firmware and load kvm_intel or kvm_amd, or use \
                 --accel tcg"
            }
            Kvm::Forbidden => "add the user to the group kvm, or use --accel tcg",
            Kvm::Slow { .. } | Kvm::Broken { .. } => {
                "use --accel tcg: this host lends no hardware virtualization"
            }
        }
    }
}

/// Decides what runs guest code. `verdicts` is a directory where the trial's outcome is
/// remembered until the host boots again; without one each process tries anew (1 to 40 ms).
///
/// # Errors
/// [`VmmError::NoKvm`] when KVM was asked for and is not usable.
pub fn choose(accel: Accel, verdicts: Option<&Path>) -> Result<Choice, VmmError> {
    if accel == Accel::Tcg {
        let why = "TCG was asked for".into();
        return Ok(Choice { engine: Engine::Tcg, why, is_fallback: false });
    }
    decide(accel, &examine(verdicts))
}

fn decide(accel: Accel, kvm: &Kvm) -> Result<Choice, VmmError> {
    let why = kvm.why();
    if kvm.is_usable() {
        return Ok(Choice { engine: Engine::Kvm, why, is_fallback: false });
    }
    if accel == Accel::Kvm {
        return Err(VmmError::NoKvm { why, remedy: kvm.remedy().into() });
    }
    Ok(Choice { engine: Engine::Tcg, why, is_fallback: true })
}

/// Finds out what KVM is good for, or remembers it.
pub fn examine(verdicts: Option<&Path>) -> Kvm {
    match fs::File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Kvm::Forbidden,
        Err(_) => return Kvm::Missing,
    }
    // The quick answers above may change at any time; only a trial's outcome is worth a file.
    let memory = verdicts.and_then(Memory::open);
    if let Some(kvm) = memory.as_ref().and_then(Memory::recall) {
        return kvm;
    }
    static TRIED: OnceLock<Kvm> = OnceLock::new();
    let kvm = TRIED.get_or_init(trial::run).clone();
    if let Some(memory) = memory {
        memory.note(&kvm);
    }
    kvm
}

/// Where the verdict is kept for one boot of the host.
struct Memory {
    file: PathBuf,
    boot_id: String,
}

#[derive(Serialize, Deserialize)]
struct Noted {
    boot_id: String,
    verdict: Kvm,
}

impl Memory {
    fn open(directory: &Path) -> Option<Self> {
        Some(Self { file: directory.join("kvm.json"), boot_id: host_boot_id().ok()? })
    }

    fn recall(&self) -> Option<Kvm> {
        let noted: Noted = serde_json::from_slice(&fs::read(&self.file).ok()?).ok()?;
        (noted.boot_id == self.boot_id).then_some(noted.verdict)
    }

    /// Forgetting only costs another trial, so failures are merely logged.
    fn note(&self, verdict: &Kvm) {
        let noted = Noted { boot_id: self.boot_id.clone(), verdict: verdict.clone() };
        let draft = self.file.with_extension(format!("{}.new", std::process::id()));
        let written = serde_json::to_vec(&noted)
            .map_err(io::Error::from)
            .and_then(|text| fs::write(&draft, text))
            .and_then(|()| fs::rename(&draft, &self.file));
        if let Err(error) = written {
            tracing::debug!(file = %self.file.display(), %error, "KVM verdict not remembered");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fast_kvm_is_taken_and_a_slow_one_is_not() {
        let fast = Kvm::Fast { micros: 500 };
        assert_eq!(decide(Accel::Auto, &fast).unwrap().engine, Engine::Kvm);
        let slow = Kvm::Slow { percent: 2 };
        let choice = decide(Accel::Auto, &slow).unwrap();
        assert!(choice.engine == Engine::Tcg && choice.is_fallback);
    }

    #[test]
    fn kvm_that_was_asked_for_and_is_not_there_is_an_error_with_a_remedy() {
        let error = decide(Accel::Kvm, &Kvm::Forbidden).unwrap_err();
        assert_eq!(
            error.to_string(),
            "KVM was asked for but cannot be used: /dev/kvm may not be opened by this user; add \
             the user to the group kvm, or use --accel tcg"
        );
    }

    #[test]
    fn tcg_needs_no_trial() {
        let choice = choose(Accel::Tcg, None).unwrap();
        assert!(choice.engine == Engine::Tcg && !choice.is_fallback);
    }

    #[test]
    fn a_verdict_is_remembered_for_this_boot_only() {
        let dir = tempfile::tempdir().unwrap();
        let memory = Memory::open(dir.path()).unwrap();
        assert_eq!(memory.recall(), None);
        memory.note(&Kvm::Slow { percent: 3 });
        assert_eq!(memory.recall(), Some(Kvm::Slow { percent: 3 }));
        let later = Memory { boot_id: "another".into(), ..memory };
        assert_eq!(later.recall(), None);
        fs::write(dir.path().join("kvm.json"), "{").unwrap();
        assert_eq!(Memory::open(dir.path()).unwrap().recall(), None);
    }

    #[test]
    fn this_host_gets_a_verdict_that_agrees_with_its_second_examination() {
        let dir = tempfile::tempdir().unwrap();
        let first = examine(Some(dir.path()));
        assert_eq!(examine(Some(dir.path())), first);
    }
}
