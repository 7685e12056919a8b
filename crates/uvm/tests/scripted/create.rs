//! Create: what is refused, and that a refusal leaves nothing behind.

use std::time::Duration;

use coracle_uvm::options::{KeeperPlacement, OptionsLcow, OptionsWcow, PreferredRootFsType};
use coracle_uvm::{State, UtilityVm, UvmError};

use crate::support::{Guest, Rig, chain, files};

/// The seed's TestCreateBadBootFilesPath.
#[tokio::test]
async fn a_missing_kernel_is_refused_with_its_path_and_nothing_is_made() {
    let rig = Rig::new(Guest::default());
    let nowhere = rig.run_dir().join("nowhere");
    let error = rig.create_with(|o| o.boot_files_path = nowhere.clone()).await.unwrap_err();
    assert_eq!(error.to_string(), format!("kernel: '{}/kernel' not found", nowhere.display()));
    assert!(!rig.run_dir().exists());
    assert!(rig.vmm.log().is_empty());
}

/// The seed's TestCreateWCOWBadLayerFolders.
#[tokio::test]
async fn the_default_options_of_a_windows_vm_do_not_create_one() {
    let error = UtilityVm::create_wcow(OptionsWcow::new_default("", "test")).await.unwrap_err();
    assert_eq!(error.to_string(), "at least 2 LayerFolders must be supplied");
}

#[tokio::test]
async fn a_windows_vm_needs_a_windows_host() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("base/UtilityVM")).unwrap();
    let mut opts = OptionsWcow::new_default("", "test");
    opts.layer_folders = vec![folder.path().join("base"), folder.path().join("scratch")];
    let error = UtilityVm::create_wcow(opts).await.unwrap_err();
    assert!(matches!(error, UvmError::WindowsHostNeeded), "{error}");
    assert_eq!(files(folder.path()), ["base"], "no scratch was made");
}

#[tokio::test]
async fn options_no_vm_can_have_never_reach_the_monitor() {
    let cases: [fn(&mut OptionsLcow); 5] = [
        |o| o.scsi_controller_count = 5,
        |o| o.vpmem_device_count = 129,
        |o| {
            (o.vpmem_device_count, o.preferred_root_fs_type) = (0, PreferredRootFsType::Vhd);
        },
        |o| (o.options.allow_overcommit, o.options.enable_deferred_commit) = (false, true),
        |o| o.options.addition_hcs_document_json = "{".to_owned(),
    ];
    for change in cases {
        let rig = Rig::new(Guest::default());
        assert!(rig.create_with(change).await.is_err());
        assert!(rig.vmm.log().is_empty());
        rig.assert_clean().await;
    }
}

/// The seed's TestMemBackingTypeLCOW, as far as it goes without a machine.
#[tokio::test]
async fn every_memory_backing_that_can_be_is_created() {
    for (overcommit, deferred) in [(true, false), (true, true), (false, false)] {
        let rig = Rig::new(Guest::default());
        let vm = rig
            .create_with(|o| {
                o.options.memory_size_in_mb = 512;
                o.options.allow_overcommit = overcommit;
                o.options.enable_deferred_commit = deferred;
            })
            .await
            .unwrap();
        assert_eq!(rig.vmm.launched().memory_mib, 512);
        vm.close().await.unwrap();
        rig.assert_clean().await;
    }
}

#[tokio::test]
async fn a_monitor_that_fails_leaves_nothing_behind() {
    let rig = Rig::new(Guest::default());
    rig.vmm.fail("launch");
    let error = rig.create_with(|o| o.options.id = "vm-1".to_owned()).await.unwrap_err();
    assert_eq!(chain(&error), "create the VM vm-1: injected failure at effect launch");
    rig.assert_clean().await;
}

#[tokio::test]
async fn a_monitor_that_takes_too_long_is_given_up() {
    let rig = Rig::new(Guest::default());
    rig.vmm.fail("launch in time");
    let soon = Duration::from_millis(50);
    let error = rig.create_with(|o| o.host.create_timeout = soon).await.unwrap_err();
    assert!(matches!(error, UvmError::CreateTimeout { .. }), "{error}");
    rig.assert_clean().await;
}

#[tokio::test]
async fn a_keeper_that_fails_ends_the_vm_it_was_for() {
    for command in ["/bin/false", "/no/such/program"] {
        let rig = Rig::new(Guest::default());
        let keeper = KeeperPlacement::Process(vec![command.to_owned()]);
        let error = rig.create_with(|o| o.host.keeper = keeper).await.unwrap_err();
        assert!(matches!(error, UvmError::Keeper { .. }), "{error}");
        assert_eq!(rig.vmm.log(), ["launch", "kill"]);
        rig.assert_clean().await;
    }
}

#[tokio::test]
async fn a_port_somebody_listens_on_is_an_error_that_names_it() {
    let rig = Rig::new(Guest::default());
    std::fs::create_dir(rig.run_dir()).unwrap();
    let socket = rig.run_dir().join("vsock_109");
    let taken = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let error = rig.create_with(|_| {}).await.unwrap_err();
    assert!(error.to_string().ends_with("vsock_109"), "{error}");
    assert!(rig.vmm.log().is_empty());
    assert_eq!(files(&rig.run_dir()), ["vsock_109"], "our own sockets are gone, the other stays");
    drop(taken);
}

#[tokio::test]
async fn two_vms_never_share_a_folder_and_the_first_goes_on() {
    let rig = Rig::new(Guest::default());
    let first = rig.started().await;
    let before = files(&rig.run_dir());
    // The first VM's boot sockets are gone, its machine's are there.
    assert!(rig.create_with(|_| {}).await.is_err());
    assert_eq!(files(&rig.run_dir()), before);
    assert_eq!(first.dump_stacks().await.unwrap(), "a stack");
    first.close().await.unwrap();
}

#[tokio::test]
async fn the_sockets_of_the_boot_are_bound_before_it() {
    let rig = Rig::new(Guest::default());
    let vm = rig.create().await;
    let names = files(&rig.run_dir());
    for port in ["vsock_1", "vsock_109", "vsock_1073741824"] {
        assert!(names.contains(&port.to_owned()), "{port} is not in {names:?}");
    }
    vm.close().await.unwrap();
    rig.assert_clean().await;
}

#[tokio::test]
async fn only_the_sockets_that_are_needed_are_bound() {
    let rig = Rig::new(Guest::default());
    let quiet = rig.create_with(|o| {
        (o.forward_stderr, o.use_guest_connection) = (false, false);
    });
    let vm = quiet.await.unwrap();
    let names = files(&rig.run_dir());
    assert!(names.contains(&"vsock_1".to_owned()));
    assert!(!names.contains(&"vsock_109".to_owned()), "{names:?}");
    assert!(!names.contains(&"vsock_1073741824".to_owned()), "{names:?}");
    vm.close().await.unwrap();
}

#[tokio::test]
async fn a_vm_has_the_identity_its_options_gave_or_one_of_its_own() {
    let rig = Rig::new(Guest::default());
    let vm = rig.create().await;
    assert!(uuid::Uuid::parse_str(vm.id()).is_ok(), "{}", vm.id());
    assert_eq!((vm.owner(), vm.os(), vm.is_oci()), ("test", "linux", false));
    assert_eq!(vm.state(), State::Created);
    assert_eq!([vm.container_counter(), vm.container_counter()], [1, 2]);
    assert_eq!(vm.uvm_mount_counter(), 1);
    vm.close().await.unwrap();

    let named = rig.create_with(|o| o.options.id = "pod-7@vm".to_owned()).await.unwrap();
    assert_eq!(named.id(), "pod-7@vm");
    named.close().await.unwrap();
}

#[tokio::test]
async fn a_vm_gets_no_more_processors_than_the_host_has() {
    let rig = Rig::new(Guest::default());
    let vm = rig.create_with(|o| o.options.processor_count = 4096).await.unwrap();
    let host = u32::try_from(std::thread::available_parallelism().unwrap().get()).unwrap();
    assert_eq!(vm.processor_count(), host);
    assert_eq!(rig.vmm.launched().vcpus, host);
    vm.close().await.unwrap();
}
