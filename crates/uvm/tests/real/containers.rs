//! Containers in a VM, made and used as a program that embeds the library does.

use coracle_bridge::message::{ContainerConfig, ProcessParameters};
use coracle_uvm::UtilityVm;
use coracle_uvm::container::Container;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Place, root_disk, within};

/// A container that runs a shell command on the layer, with its writes in the VM's memory.
async fn container(vm: &UtilityVm, id: &str, command: &str) -> Container {
    let bundle = format!("/run/gcs/c/{id}");
    let (scratch, rootfs) = (format!("{bundle}/scratch"), format!("{bundle}/rootfs"));
    vm.combine_layers_lcow(&["/run/layer"], Some(&scratch), &rootfs).await.unwrap();
    let spec = json!({
        "ociVersion": "1.0.2",
        "hostname": id,
        "root": { "path": rootfs, "readonly": false },
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": ["/bin/sh", "-c", command],
            "env": ["PATH=/bin:/sbin:/usr/bin:/usr/sbin"],
            "cwd": "/",
        },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc", "options": [] },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"] },
        ],
        "linux": {
            "cgroupsPath": format!("/containers/{id}"),
            "namespaces": [
                { "type": "pid" }, { "type": "mount" }, { "type": "ipc" },
                { "type": "uts" }, { "type": "cgroup" },
            ],
        },
    });
    let config = ContainerConfig::new(bundle, &spec).unwrap();
    let container = vm.create_container(id, &config).await.unwrap();
    container.start().await.unwrap();
    container
}

/// Runs the container's init process: input, output, exit code.
async fn run(container: &Container, input: &[u8]) -> (Vec<u8>, u32) {
    let parameters = ProcessParameters {
        create_std_in_pipe: true,
        create_std_out_pipe: true,
        ..ProcessParameters::default()
    };
    let process = container.create_process(&parameters).await.unwrap();
    let mut stdio = process.take_stdio();
    let (mut stdin, mut stdout) = (stdio.stdin.take().unwrap(), stdio.stdout.take().unwrap());
    stdin.write_all(input).await.unwrap();
    stdin.shutdown().await.unwrap();
    let mut output = Vec::new();
    stdout.read_to_end(&mut output).await.unwrap();
    let code = process.wait().await.unwrap();
    process.close().await.unwrap();
    (output, code)
}

/// The seed's TestLCOWSimplePodScenario, on disks that are there from power-on: two containers in
/// one VM, each with its own line and its own root; one's id is used again.
#[tokio::test]
async fn two_containers_share_a_vm_and_nothing_else() {
    let place = Place::new();
    let started = place.started(|o| o.host.cold_disks = vec![root_disk(o)]).await;
    let vm = &started.vm;
    let first = container(vm, "one", "echo mine > /file; cat; hostname; exit 7").await;
    let (output, code) = within("the first container", run(&first, b"line\n")).await;
    assert_eq!((output.as_slice(), code), (&b"line\none\n"[..], 7));

    let second = container(vm, "two", "cat /file || hostname").await;
    let (output, code) = within("the second container", run(&second, b"")).await;
    assert_eq!((output.as_slice(), code), (&b"two\n"[..], 0));

    for (id, container) in [("one", &first), ("two", &second)] {
        within("the container's end", container.wait()).await.unwrap();
        container.close().await.unwrap();
        vm.delete_container_state(id).await.unwrap();
        vm.remove_combined_layers(&format!("/run/gcs/c/{id}/rootfs")).await.unwrap();
    }
    let again = container(vm, "one", "echo again").await;
    let (output, _) = within("the third container", run(&again, b"")).await;
    assert_eq!(output, b"again\n");

    assert!(!vm.dump_stacks().await.unwrap().is_empty());
    let stats = vm.stats().await.unwrap();
    assert!(stats.processor.total_runtime_ns > 0);
    assert!(stats.memory.working_set_bytes > 16 << 20);
    assert_eq!(stats.memory.vm_memory.assigned_memory, 65536);
    started.close().await;
}
