//! A VM with busybox containers in it.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use coracle_uvm::container::{Container, ContainerConfig, Process, ProcessParameters};
use coracle_uvm::options::{ColdDisk, ColdMount, OptionsLcow};
use coracle_uvm::{UtilityVm, UvmError};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// Where the built-in container root is mounted in the VM.
pub const LAYER: &str = "/run/layer";

/// The path of busybox in the VM itself.
pub const BUSYBOX: &str = "/run/layer/bin/busybox";

/// Longer than anything takes, however busy the machine.
const LIMIT: Duration = Duration::from_secs(120);

/// A running VM; [`Machine::close`] ends it.
pub struct Machine {
    pub vm: UtilityVm,
    _folder: TempDir,
}

/// How a process ended, and what it wrote.
#[derive(Debug, PartialEq)]
pub struct Outcome {
    pub code: u32,
    pub stdout: String,
    pub stderr: String,
}

impl Machine {
    pub async fn boot() -> Self {
        Self::boot_with(|_| {}).await
    }

    pub async fn boot_with(change: impl FnOnce(&mut OptionsLcow)) -> Self {
        let folder = tempfile::Builder::new().prefix("coracle-agent").tempdir().unwrap();
        let mut options = OptionsLcow::new_default("", "coracle-agent-test");
        let root = options.boot_files_path.join("rootfs.erofs");
        let file = File::open(&root).unwrap_or_else(|error| {
            panic!("{}: {error}; run `make setup` first", root.display());
        });
        options.options.memory_size_in_mb = 256;
        options.options.processor_count = 1;
        options.host.run_dir = Some(folder.path().join("run"));
        let mount = ColdMount { path: LAYER.to_owned(), filesystem: "erofs".to_owned() };
        options.host.cold_disks = vec![ColdDisk {
            serial: "layer".to_owned(),
            file: Arc::new(file.into()),
            read_only: true,
            mount: Some(mount),
        }];
        change(&mut options);
        let vm = UtilityVm::create_lcow(options).await.unwrap();
        if let Err(error) = vm.start().await {
            panic!("{error}\n{}", vm.console_tail().await);
        }
        Self { vm, _folder: folder }
    }

    pub async fn close(self) {
        self.vm.close().await.unwrap();
    }

    /// Combines the layer with a scratch to a root for `id`.
    pub async fn root(&self, id: &str) -> String {
        let root = format!("/run/gcs/c/{id}/rootfs");
        let scratch = format!("/run/scratch/{id}");
        self.vm.combine_layers_lcow(&[LAYER], Some(&scratch), &root).await.unwrap();
        root
    }

    /// Makes a container from `spec`, whose root is made here.
    pub async fn create(&self, id: &str, mut spec: Value) -> Result<Container, UvmError> {
        spec["root"] = json!({ "path": self.root(id).await });
        let config = ContainerConfig::new(format!("/run/gcs/c/{id}"), &spec).unwrap();
        self.vm.create_container(id, &config).await
    }

    /// Makes and starts a container whose init only waits.
    pub async fn sleeper(&self, id: &str, spec: Value) -> (Container, Process) {
        let container = self.create(id, spec).await.unwrap();
        container.start().await.unwrap();
        let init = container.create_process(&ProcessParameters::default()).await.unwrap();
        (container, init)
    }

    /// Runs a shell line in the VM itself.
    pub async fn shell(&self, line: &str) -> Outcome {
        let parameters = ProcessParameters {
            command_args: [BUSYBOX, "sh", "-c", line].map(str::to_owned).into(),
            environment: [("PATH".to_owned(), "/run/layer/bin:/run/layer/usr/bin".to_owned())]
                .into(),
            ..all_output()
        };
        finish(self.vm.create_process(&parameters).await.unwrap(), b"").await
    }
}

/// Asks for both outputs.
pub fn all_output() -> ProcessParameters {
    ProcessParameters {
        create_std_out_pipe: true,
        create_std_err_pipe: true,
        ..ProcessParameters::default()
    }
}

/// The parameters of one more process in a container.
pub fn exec(process: Value) -> ProcessParameters {
    let document = serde_json::to_vec(&process).unwrap();
    let oci_process = Some(coracle_bridge::wire::Json::parse(&document).unwrap());
    ProcessParameters { oci_process, ..all_output() }
}

/// A shell line as one more process, as root.
pub fn exec_shell(line: &str) -> ProcessParameters {
    exec(json!({ "args": ["sh", "-c", line], "cwd": "/", "user": { "uid": 0, "gid": 0 } }))
}

/// Runs a shell line in a container.
pub async fn shell_in(container: &Container, line: &str) -> Outcome {
    finish(container.create_process(&exec_shell(line)).await.unwrap(), b"").await
}

/// Gives a process its input and takes all it has to say.
pub async fn finish(process: Process, input: &[u8]) -> Outcome {
    let whole = async {
        let mut stdio = process.take_stdio();
        if let Some(mut stdin) = stdio.stdin.take() {
            stdin.write_all(input).await.unwrap();
            stdin.shutdown().await.unwrap();
        }
        let (mut stdout, mut stderr) = (String::new(), String::new());
        if let Some(mut stream) = stdio.stdout.take() {
            stream.read_to_string(&mut stdout).await.unwrap();
        }
        if let Some(mut stream) = stdio.stderr.take() {
            stream.read_to_string(&mut stderr).await.unwrap();
        }
        let code = process.wait().await.unwrap();
        process.close().await.unwrap();
        Outcome { code, stdout, stderr }
    };
    timeout(LIMIT, whole).await.expect("the process did not come to an end")
}

/// An error and its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

/// A container that runs `command`, confined as people expect.
pub fn spec(command: &str) -> Value {
    let capabilities = ["CAP_CHOWN", "CAP_KILL", "CAP_MKNOD", "CAP_SETUID", "CAP_SETGID"];
    json!({
        "ociVersion": "1.0.2",
        "hostname": "inside",
        "process": {
            "args": ["/bin/sh", "-c", command],
            "env": ["PATH=/bin:/sbin:/usr/bin:/usr/sbin"],
            "cwd": "/",
            "user": { "uid": 0, "gid": 0 },
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
            },
        },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["newinstance", "ptmxmode=0666", "mode=0620"] },
        ],
        "linux": {
            "namespaces": [
                { "type": "pid" }, { "type": "mount" }, { "type": "ipc" },
                { "type": "uts" }, { "type": "cgroup" },
            ],
            "resources": { "devices": [
                { "allow": false, "access": "rwm" },
                { "allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm" },
                { "allow": true, "type": "c", "major": 5, "minor": 2, "access": "rwm" },
                { "allow": true, "type": "c", "major": 136, "access": "rwm" },
            ] },
        },
    })
}

/// What only waits.
pub const WAIT: &str = "exec sleep 100000";
