//! A monitor is started for a sandbox that has none: by its keeper, or by the next command.

use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::record::SandboxRecord;
use crate::root::Root;

/// Starts a monitor that adopts the sandbox, and leaves it alone.
///
/// # Errors
/// There is no program to run.
pub fn wake(root: &Root, record: &SandboxRecord) -> io::Result<()> {
    let program = match &record.order.sandbox.helper {
        Some(program) if program.exists() => program.clone(),
        // It was installed elsewhere since.
        Some(_) | None => std::env::current_exe()?,
    };
    let mut child = spawn(&program, root, &record.name)?;
    // Whoever started it may live long, and it may end at once.
    std::thread::spawn(move || child.wait());
    Ok(())
}

/// Starts a monitor that adopts a sandbox; it makes a session of its own.
///
/// # Errors
/// The program cannot be run, or the log not be opened.
pub fn spawn(program: &Path, root: &Root, name: &str) -> io::Result<Child> {
    let mut command = Command::new(program);
    if let Some(dir) = root.given() {
        command.arg("--root").arg(dir);
    }
    command.args(["monitor", name, "--adopt"]).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(root.monitor_log()?);
    // It is no part of the VM: it must not go with it.
    command.env_remove(coracle_uvm::process::PART);
    command.spawn()
}
