//! From what the user asks of a sandbox to what its VM is to be.

use std::path::Path;
use std::sync::Arc;

use coracle_uvm::User;
use coracle_uvm::options::{ColdDisk, HostOptions, KeeperPlacement, OptionsLcow, ShareServers};

use crate::ledger::Ledger;
use crate::points;
use crate::root::Root;
use crate::spec::SandboxSpec;

/// The VM of a sandbox; `dir` is its run directory.
pub(crate) fn options(
    root: &Root,
    name: &str,
    spec: &SandboxSpec,
    dir: &Path,
    disks: Vec<ColdDisk>,
) -> OptionsLcow {
    let mut options = OptionsLcow::with_boot_files(name, "coracle", root.guest());
    if let Some(kernel) = &spec.kernel {
        // An absolute path replaces the folder it is joined to.
        options.kernel_file = std::path::absolute(kernel)
            .unwrap_or_else(|_| kernel.clone())
            .to_string_lossy()
            .into_owned();
    }
    options.options.memory_size_in_mb = u32::try_from(spec.memory_mib).unwrap_or(u32::MAX);
    options.options.processor_count = spec.vcpus;
    options.host.max_processors = spec.max_vcpus.unwrap_or(0);
    options.host.max_memory_mib = spec.max_memory_mib.unwrap_or(0);
    // Its own disks are there from power-on; if nothing is plugged in later, a controller that the
    // guest need not ask about is time.
    options.scsi_controller_count = u32::from(spec.needs_scsi());
    options.host.share_memory = spec.needs_shared_memory();
    options.vpci_enabled = spec.needs_vpci();
    options.options.allow_overcommit = !spec.needs_physical_memory();
    if let Some(program) = &spec.helper {
        let program = program.to_string_lossy().into_owned();
        options.host.share_servers = ShareServers::Process(vec![program, "plan9".to_owned()]);
    }
    if !spec.needs_pmem() {
        options.vpmem_device_count = 0;
    }
    options.host.run_dir = Some(dir.join("vm"));
    options.host.accelerator = spec.accel;
    options.host.verdicts = Some(root.verdicts());
    options.host.user = vm_user();
    options.host.cold_disks = disks;
    spec.tuning.tune(root.cgroup(name), &mut options.host);
    options
}

/// Makes the VM outlive this process: everything of it is a process of its own, and written down.
pub(crate) fn outlive_us(
    host: &mut HostOptions,
    root: &Root,
    name: &str,
    spec: &SandboxSpec,
    ledger: &Ledger,
) {
    host.die_with_owner = false;
    host.effects = points::effects();
    spec.tuning.tune(root.cgroup(name), host);
    host.recorder = Some(Arc::new(ledger.clone()));
    let Some(program) = &spec.helper else { return };
    let program = program.to_string_lossy().into_owned();
    host.share_servers = ShareServers::Process(vec![program.clone(), "plan9".to_owned()]);
    let mut keeper = vec![program.clone()];
    if let Some(dir) = root.given() {
        keeper.extend(["--root".to_owned(), dir.to_string_lossy().into_owned()]);
    }
    keeper.extend(["keeper".to_owned(), "--sandbox".to_owned(), name.to_owned()]);
    keeper.extend(["--program".to_owned(), program]);
    host.keeper = KeeperPlacement::Process(keeper);
}

/// A user of the VM's own, if we may choose one: what breaks out of it meets nobody's files.
/// The numbers lie far above those that systems and subordinate ranges use.
fn vm_user() -> Option<User> {
    const FIRST: u32 = 1_900_000_000;
    const COUNT: u128 = 10_000_000;
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let number = u32::try_from(uuid::Uuid::new_v4().as_u128() % COUNT).unwrap_or_default();
    Some(User { uid: FIRST + number, gid: FIRST + number })
}
