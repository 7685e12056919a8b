//! What a running VM asks of its guest: processes, containers, disks and layers.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use coracle_bridge::client::BridgeError;
use coracle_bridge::message::{ContainerConfig, ProcessParameters, Resource, Verb};
use coracle_uvm::options::{ColdDisk, ColdMount};
use coracle_uvm::{State, UvmError};
use coracle_vmm::ExitReason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Guest, Rig, chain, within};

fn cat() -> ProcessParameters {
    ProcessParameters {
        command_line: "cat".to_owned(),
        create_std_in_pipe: true,
        create_std_out_pipe: true,
        ..ProcessParameters::default()
    }
}

fn config() -> ContainerConfig {
    ContainerConfig::new("/run/gcs/c/c", &serde_json::json!({ "ociVersion": "1.0.2" })).unwrap()
}

/// The seed's TestGcsCreateProcess.
#[tokio::test]
async fn what_goes_into_a_process_comes_out_until_its_input_is_closed() {
    let rig = Rig::new(Guest::default());
    let vm = rig.started().await;
    let process = vm.create_process(&cat()).await.unwrap();
    let mut stdio = process.take_stdio();
    let (mut stdin, mut stdout) = (stdio.stdin.take().unwrap(), stdio.stdout.take().unwrap());
    stdin.write_all(b"\x07hello").await.unwrap();
    stdin.flush().await.unwrap();
    process.close_stdin();
    let mut text = Vec::new();
    within("the end of the output", stdout.read_to_end(&mut text)).await.unwrap();
    assert_eq!(text, b"\x07hello");
    assert_eq!(within("the exit", process.wait()).await.unwrap(), 7);
    process.close().await.unwrap();
    vm.close().await.unwrap();
    rig.assert_clean().await;
}

#[tokio::test]
async fn a_process_of_the_vm_itself_takes_signals_and_sizes() {
    let rig = Rig::new(Guest::default());
    let vm = rig.started().await;
    let process = vm.create_process(&cat()).await.unwrap();
    process.resize(80, 25).await.unwrap();
    assert!(process.signal(Some(15)).await.unwrap());
    assert_eq!(within("the exit", process.wait()).await.unwrap(), 143);
    assert!(!process.kill().await.unwrap(), "nobody is there to get it");
    vm.close().await.unwrap();
}

#[tokio::test]
async fn a_vm_that_dies_ends_every_wait_in_it_at_once() {
    let rig = Rig::new(Guest::default());
    let vm = rig.started().await;
    let process = vm.create_process(&cat()).await.unwrap();
    rig.vmm.end(ExitReason::Signal { signal: 9, stderr: String::new() });
    let error = within("the wait", process.wait()).await.unwrap_err();
    assert!(error.to_string().contains("bridge closed"), "{error}");
    within("the VM's wait", vm.wait()).await;
    assert_eq!(vm.state(), State::Exited);
    let error = vm.create_process(&cat()).await.unwrap_err();
    assert!(matches!(error, UvmError::NotRunning { state: State::Exited, .. }), "{error}");
    vm.close().await.unwrap();
}

#[tokio::test]
async fn close_ends_every_wait_in_the_vm() {
    let rig = Rig::new(Guest::default());
    let vm = rig.started().await;
    let process = vm.create_process(&cat()).await.unwrap();
    vm.close().await.unwrap();
    assert!(within("the wait", process.wait()).await.is_err());
    rig.assert_clean().await;
}

#[tokio::test]
async fn a_container_lives_once_and_its_id_is_free_after_it() {
    let rig = Rig::new(Guest::default());
    let vm = rig.started().await;
    let config = config();
    let container = vm.create_container("c", &config).await.unwrap();
    let error = vm.create_container("c", &config).await.unwrap_err();
    assert_eq!(chain(&error), "failed to create container c: container c already exists");
    container.terminate().await.unwrap();
    within("the container's end", container.wait()).await.unwrap();
    container.close().await.unwrap();
    vm.delete_container_state("c").await.unwrap();
    let again = vm.create_container("c", &config).await.unwrap();
    assert_eq!(again.id().as_str(), "c");
    vm.close().await.unwrap();
}

/// The seed keeps the id of a container it failed to create.
#[tokio::test]
async fn a_container_that_was_refused_may_be_tried_again() {
    let guest = Guest::default();
    let service = guest.service.clone();
    let rig = Rig::new(guest);
    let vm = rig.started().await;
    service.refuses_containers.store(true, Ordering::Relaxed);
    let error = vm.create_container("c", &config()).await.unwrap_err();
    let text = chain(&error);
    assert!(text.starts_with("failed to create container c: guest RPC failure: "), "{text}");
    assert!(text.contains("no containers today"), "{text}");
    service.refuses_containers.store(false, Ordering::Relaxed);
    vm.create_container("c", &config()).await.unwrap();
    vm.close().await.unwrap();
}

#[tokio::test]
async fn forgetting_a_container_twice_is_an_error() {
    let rig = Rig::new(Guest::default());
    let vm = rig.started().await;
    assert!(vm.delete_container_state_supported());
    let error = vm.delete_container_state("never-made").await.unwrap_err();
    let UvmError::Guest { source: BridgeError::Rpc { hresult, .. }, .. } = error else {
        panic!("{error}")
    };
    assert_eq!(hresult.bits(), 0xc037_010e);
    vm.close().await.unwrap();
}

fn disk(serial: &str, path: Option<&str>) -> ColdDisk {
    let mount =
        path.map(|path| ColdMount { path: path.to_owned(), filesystem: "erofs".to_owned() });
    let file = Arc::new(std::fs::File::open("/dev/null").unwrap().into());
    ColdDisk { serial: serial.to_owned(), file, read_only: true, mount }
}

#[tokio::test]
async fn cold_disks_are_mounted_in_their_order_before_the_vm_runs() {
    let guest = Guest::default();
    let service = guest.service.clone();
    let rig = Rig::new(guest);
    let disks =
        vec![disk("root", Some("/run/mounts/m1")), disk("bare", None), disk("data", Some("/d"))];
    let vm = rig.create_with(|o| o.host.cold_disks = disks).await.unwrap();
    assert_eq!(rig.vmm.launched().serials, ["root", "bare", "data"]);
    vm.start().await.unwrap();
    {
        let changes = service.changes.lock().unwrap();
        let mounted: Vec<_> = changes
            .iter()
            .map(|change| {
                assert_eq!(change.verb, Verb::Add);
                let Resource::MappedVirtualDisk(disk) = &change.resource else {
                    panic!("{change:?}")
                };
                let ours = disk.coracle.as_ref().unwrap();
                assert!(disk.read_only);
                (disk.mount_path.as_str(), ours.serial.as_str(), ours.filesystem.as_str())
            })
            .collect();
        assert_eq!(mounted, [("/run/mounts/m1", "root", "erofs"), ("/d", "data", "erofs")]);
    }
    vm.close().await.unwrap();
}

#[tokio::test]
async fn a_cold_disk_that_cannot_be_mounted_fails_the_start() {
    let guest = Guest::default();
    guest.service.refuses_changes.store(true, Ordering::Relaxed);
    let rig = Rig::new(guest);
    let disks = vec![disk("root", Some("/r"))];
    let vm = rig.create_with(|o| o.host.cold_disks = disks).await.unwrap();
    let error = vm.start().await.unwrap_err();
    let text = chain(&error);
    assert!(text.starts_with("mount the disk root: guest modify: guest RPC failure: "), "{text}");
    assert_eq!(vm.state(), State::Exited);
    vm.close().await.unwrap();
    rig.assert_clean().await;
}

#[tokio::test]
async fn layers_are_combined_and_removed_in_the_guest_alone() {
    let guest = Guest::default();
    let service = guest.service.clone();
    let rig = Rig::new(guest);
    let vm = rig.started().await;
    vm.combine_layers_lcow(&["/run/l2", "/run/l1"], Some("/run/s"), "/run/gcs/c/c/rootfs")
        .await
        .unwrap();
    vm.combine_layers_lcow(&["/run/l1"], None, "/run/gcs/c/d/rootfs").await.unwrap();
    vm.remove_combined_layers("/run/gcs/c/c/rootfs").await.unwrap();
    {
        let changes = service.changes.lock().unwrap();
        let seen: Vec<_> = changes
            .iter()
            .map(|change| {
                let Resource::CombinedLayers(layers) = &change.resource else {
                    panic!("{change:?}")
                };
                let paths: Vec<_> = layers.layers.iter().map(|l| l.path.as_str()).collect();
                (
                    change.verb,
                    layers.container_root_path.as_str(),
                    layers.scratch_path.as_str(),
                    paths,
                )
            })
            .collect();
        let expected = [
            (Verb::Add, "/run/gcs/c/c/rootfs", "/run/s", vec!["/run/l2", "/run/l1"]),
            (Verb::Add, "/run/gcs/c/d/rootfs", "", vec!["/run/l1"]),
            (Verb::Remove, "/run/gcs/c/c/rootfs", "", vec![]),
        ];
        assert_eq!(seen, expected);
    }
    assert!(!rig.vmm.log().contains(&"plug"));
    vm.close().await.unwrap();
    let error = vm.remove_combined_layers("/x").await.unwrap_err();
    assert!(matches!(error, UvmError::NotRunning { .. }), "{error}");
}

#[tokio::test]
async fn layers_the_guest_refuses_name_their_root() {
    let guest = Guest::default();
    guest.service.refuses_changes.store(true, Ordering::Relaxed);
    let rig = Rig::new(guest);
    let vm = rig.started().await;
    let error = vm.combine_layers_lcow(&["/l"], None, "/root").await.unwrap_err();
    assert!(
        chain(&error).starts_with("combine layers at /root: guest modify: "),
        "{}",
        chain(&error)
    );
    vm.close().await.unwrap();
}

/// What belongs to Windows guests answers on a Linux guest as the seed's does.
#[tokio::test]
async fn what_only_windows_guests_have_is_not_supported() {
    let rig = Rig::new(Guest::default());
    let vm = rig.started().await;
    let options = coracle_uvm::windows::vsmb::ShareOptions::layer();
    assert!(matches!(vm.add_vsmb("/", &options).await, Err(UvmError::NotSupported)));
    assert!(matches!(vm.remove_vsmb("/").await, Err(UvmError::NotSupported)));
    assert!(matches!(vm.combine_layers_wcow(&[], "/").await, Err(UvmError::NotSupported)));
    assert!(matches!(vm.get_vsmb_uvm_path("/").await, Err(UvmError::NotAttached)));
    assert!(matches!(vm.get_vsmb_uvm_path("/no/such").await, Err(UvmError::Source { .. })));
    let nothing = vm.get_vsmb_uvm_path("").await.unwrap_err();
    assert_eq!(nothing.to_string(), "no hostPath passed to GetVSMBUvmPath");
    vm.close().await.unwrap();
}
