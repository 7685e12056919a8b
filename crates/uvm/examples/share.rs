//! A VM that outlives this program, with a directory shared by 9P in which a process of the guest
//! counts.
//!
//! ```text
//! share RUN_DIR DIRECTORY KEEPER PLAN9
//! ```
//!
//! The last two are programs: the keeper of the channel and the server of the share, each a process of
//! its own (see the examples of these names).

use std::fs::File;
use std::sync::Arc;

use coracle_uvm::UtilityVm;
use coracle_uvm::container::ProcessParameters;
use coracle_uvm::options::{ColdDisk, ColdMount, KeeperPlacement, OptionsLcow, ShareServers};

const COUNT: &str =
    "n=0; while :; do n=$((n+1)); echo $n > /run/mounts/9/count; usleep 20000; done";

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [run_dir, directory, keeper, plan9] = arguments.as_slice() else {
        return Err("usage: share RUN_DIR DIRECTORY KEEPER PLAN9".into());
    };
    let mut options = OptionsLcow::new_default("", "example");
    options.options.memory_size_in_mb = 256;
    options.options.processor_count = 1;
    options.host.run_dir = Some(run_dir.into());
    options.host.die_with_owner = false;
    options.host.keeper = KeeperPlacement::Process(vec![keeper.clone()]);
    options.host.share_servers = ShareServers::Process(vec![plan9.clone()]);
    let root = File::open(options.boot_files_path.join("rootfs.erofs"))?;
    options.host.cold_disks = vec![ColdDisk {
        serial: "root".to_owned(),
        file: Arc::new(root.into()),
        read_only: true,
        mount: Some(ColdMount { path: "/run/layer".into(), filesystem: "erofs".into() }),
    }];
    let vm = UtilityVm::create_lcow(options).await?;
    vm.start().await?;
    let share = vm.add_plan9(directory, "/run/mounts/9", false, false, &[]).await?;
    let counting = ProcessParameters {
        command_args: ["/run/layer/bin/busybox", "sh", "-c", COUNT].map(str::to_owned).to_vec(),
        environment: [("PATH".to_owned(), "/run/layer/bin:/run/layer/usr/bin".to_owned())].into(),
        ..ProcessParameters::default()
    };
    let process = vm.create_process(&counting).await?;
    println!("pid {}", vm.vm_identity().pid);
    process.wait().await?;
    share.release().await?;
    vm.close().await?;
    Ok(())
}
