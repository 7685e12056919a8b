//! How much code a start makes QEMU translate, beside the bare VM: what its time consists of, counted.
//!
//! A busy machine changes the time of a start by a half, and this by half a percent. See
//! `docs/decisions/seen-for-the-first-time.md`.

use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};

use crate::bare;
use crate::table::{Budget, Row};

/// How QEMU's log begins a block.
const BLOCK: &[u8] = b"IN:";

/// What QEMU is called, by us and by coracle.
const QEMU: &str = "qemu-system-x86_64";

/// One run without a network and one with, both over one boot of the bare VM.
///
/// # Errors
/// A VM does not boot, or QEMU writes no log.
pub fn measure(coracle: &Path, guest: &Path, memory_mib: u64) -> Result<Vec<Row>> {
    let place = Place::new()?;
    let initrd = place.dir.path().join("bare.img");
    fs::write(&initrd, bare::initrd())?;
    let words = bare::boot_words();
    let mut bare = bare::qemu(&guest.join("vmlinux"), &initrd, &words, memory_mib);
    bare.args(["-d", "in_asm", "-D"]).arg(&place.log);
    bare::until_ready(bare)?;
    let base = place.count()?;
    let row = |what: &str, blocks: f64| Row {
        what: what.to_owned(),
        value: blocks / base,
        unit: "x",
        budget: Budget::None,
        detail: format!("{blocks:.0} blocks of code against {base:.0} bare"),
    };
    let root = place.dir.path().join("root");
    // The image of the built-in root is made by the first run, and is none of QEMU's business.
    let alone = place.run(coracle, guest, &root, &["--net", "none"], memory_mib)?;
    let networked = place.run(coracle, guest, &root, &[], memory_mib)?;
    Ok(vec![
        row("code seen for the first time in a run", alone),
        row("the same with a network", networked),
    ])
}

/// Where a QEMU that logs stands in for the real one.
struct Place {
    dir: tempfile::TempDir,
    log: PathBuf,
}

impl Place {
    fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755))?;
        // QEMU writes the log, under a user of its own; what is executed is not where that user may write.
        let logs = dir.path().join("logs");
        fs::create_dir(&logs)?;
        fs::set_permissions(&logs, Permissions::from_mode(0o777))?;
        let log = logs.join("log");
        let real = which(QEMU)?;
        let stand_in = dir.path().join(QEMU);
        // It is asked for its version as well, which is nothing to log.
        let script = format!(
            "#!/bin/sh\ncase \" $* \" in *' -append '*) set -- \"$@\" -d in_asm -D {} ;; esac\nexec {} \"$@\"\n",
            log.display(),
            real.display()
        );
        fs::write(&stand_in, script)?;
        fs::set_permissions(&stand_in, Permissions::from_mode(0o755))?;
        Ok(Self { dir, log })
    }

    /// The blocks of one `coracle run`.
    fn run(
        &self,
        coracle: &Path,
        guest: &Path,
        root: &Path,
        more: &[&str],
        memory_mib: u64,
    ) -> Result<f64> {
        let path = std::env::var("PATH").unwrap_or_default();
        let out = crate::boot::command(coracle, guest, root, memory_mib)?
            .args(more)
            .args(["--", "echo", "x"])
            .env("PATH", format!("{}:{path}", self.dir.path().display()))
            .stdin(Stdio::null())
            .output()
            .context("cannot start coracle")?;
        let said = String::from_utf8_lossy(&out.stderr);
        ensure!(out.status.success(), "coracle run failed: {said}");
        self.count()
    }

    /// The blocks in the log, which goes: the next one may be another user's.
    fn count(&self) -> Result<f64> {
        let log = File::open(&self.log).context("QEMU wrote no log")?;
        let mut log = BufReader::with_capacity(1 << 20, log);
        let (mut blocks, mut line) = (0.0, Vec::new());
        while log.read_until(b'\n', &mut line)? > 0 {
            if line.starts_with(BLOCK) {
                blocks += 1.0;
            }
            line.clear();
        }
        fs::remove_file(&self.log)?;
        ensure!(blocks > 0.0, "there is no block in QEMU's log");
        Ok(blocks)
    }
}

fn which(program: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut found = std::env::split_paths(&path).map(|folder| folder.join(program));
    found.find(|file| file.is_file()).with_context(|| format!("{program} is not in PATH"))
}
