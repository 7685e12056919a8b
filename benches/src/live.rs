//! One utility VM with a container root mounted, for benches that need a guest at work.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use coracle_engine::oci::{ContainerSpec, specification};
use coracle_uvm::UtilityVm;
use coracle_uvm::container::{Container, ContainerConfig, Process, ProcessParameters};
use coracle_uvm::options::{ColdDisk, ColdMount, KeeperPlacement, OptionsLcow};
use serde_json::{Value, json};

const ROOT: &str = "/run/layers/root";

/// A running VM and the folder of its sockets.
pub struct Live {
    /// The VM.
    pub vm: UtilityVm,
    _dir: tempfile::TempDir,
}

impl Live {
    /// Boots it, with the keeper as a process of its own as a sandbox has it.
    ///
    /// # Errors
    /// It does not boot.
    pub async fn boot(coracle: &Path, guest: &Path) -> Result<Live> {
        Self::boot_with(coracle, guest, true).await
    }

    /// The same; `dies` says whether it dies with this process.
    ///
    /// # Errors
    /// It does not boot.
    pub async fn boot_with(coracle: &Path, guest: &Path, dies: bool) -> Result<Live> {
        let dir = tempfile::tempdir()?;
        let mut options = OptionsLcow::with_boot_files("", "bench", guest);
        options.options.memory_size_in_mb = 512;
        options.options.processor_count = 1;
        options.host.run_dir = Some(dir.path().join("vm"));
        options.host.share_memory = true;
        options.host.die_with_owner = dies;
        options.host.accelerator = coracle_uvm::Accel::Tcg;
        options.host.keeper = keeper(coracle)?;
        options.host.cold_disks = vec![ColdDisk {
            serial: "root".to_owned(),
            file: Arc::new(File::open(guest.join("rootfs.erofs"))?.into()),
            read_only: true,
            mount: Some(ColdMount { path: ROOT.to_owned(), filesystem: "erofs".to_owned() }),
        }];
        let vm = UtilityVm::create_lcow(options).await?;
        vm.start().await?;
        Ok(Live { vm, _dir: dir })
    }

    /// A container running `script` in a shell, and its init process. The agent's own status
    /// file is in it as `/tmp/agent`.
    ///
    /// # Errors
    /// It does not start.
    pub async fn container(
        &self,
        id: &str,
        script: &str,
        stdin: bool,
    ) -> Result<(Container, Process)> {
        let bundle = format!("/run/gcs/c/{id}");
        let rootfs = format!("{bundle}/rootfs");
        self.vm.combine_layers_lcow(&[ROOT], Some(&format!("{bundle}/scratch")), &rootfs).await?;
        let spec = specification(&ContainerSpec {
            id: id.to_owned(),
            args: ["sh", "-c", script].map(str::to_owned).to_vec(),
            env: vec![],
            cwd: "/".to_owned(),
            user: String::new(),
            terminal: false,
            hostname: id.to_owned(),
            rootfs: PathBuf::from(rootfs),
            read_only: false,
            network: id.to_owned(),
            shm_bytes: None,
            mounts: vec![],
        })?;
        let mut spec: Value = serde_json::to_value(spec)?;
        let status = json!({
            "destination": "/tmp/agent", "type": "bind", "source": "/proc/1/status",
            "options": ["bind", "ro"]
        });
        spec["mounts"].as_array_mut().context("a specification has mounts")?.push(status);
        let container = self.vm.create_container(id, &ContainerConfig::new(bundle, &spec)?).await?;
        let process = container.create_process(&piped(stdin)).await?;
        Ok((container, process))
    }
}

/// The keeper as a process of its own.
///
/// # Errors
/// The command's path is no text.
pub fn keeper(coracle: &Path) -> Result<KeeperPlacement> {
    let program = coracle.to_str().context("the command's path is no text")?;
    Ok(KeeperPlacement::Process(vec![program.to_owned(), "keeper".to_owned()]))
}

/// One more process in a container.
///
/// # Errors
/// It does not start.
pub async fn exec(container: &Container, args: &[&str]) -> Result<Process> {
    let process = json!({
        "args": args, "cwd": "/", "user": {"uid": 0, "gid": 0},
        "env": [format!("PATH={}", coracle_engine::oci::DEFAULT_PATH)]
    });
    let parameters =
        ProcessParameters { oci_process: Some(serde_json::from_value(process)?), ..piped(false) };
    Ok(container.create_process(&parameters).await?)
}

/// A shell command in the VM itself, its output to be read.
pub fn in_vm(script: &str) -> ProcessParameters {
    let busybox = format!("{ROOT}/bin/busybox");
    ProcessParameters {
        command_args: [&busybox, "sh", "-c", script].map(str::to_owned).to_vec(),
        environment: [("PATH".to_owned(), format!("{ROOT}/bin:{ROOT}/usr/bin"))].into(),
        create_std_out_pipe: true,
        ..ProcessParameters::default()
    }
}

fn piped(stdin: bool) -> ProcessParameters {
    ProcessParameters {
        create_std_in_pipe: stdin,
        create_std_out_pipe: true,
        create_std_err_pipe: true,
        ..ProcessParameters::default()
    }
}
