//! Options that only a real machine honours.

use std::time::Duration;

use coracle_uvm::UtilityVm;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::support::{Place, cgroup_folders, chain, within};

/// Processor limit and weight, storage limits, device holes, discard hints, a serial console and
/// a screen, all at once; the seed's pod tests take one each.
#[tokio::test]
async fn every_limit_and_console_at_once() {
    let place = Place::new();
    let console = place.path().join("console.sock");
    let started = place
        .started(|o| {
            o.options.processor_limit = 90_000;
            o.options.processor_weight = 200;
            o.options.storage_qos_iops_maximum = 5000;
            o.options.storage_qos_bandwidth_maximum = 100_000_000;
            o.options.low_mmio_gap_in_mb = 1024;
            o.options.high_mmio_gap_in_mb = 4096;
            o.enable_cold_discard_hint = true;
            o.enable_graphics_console = true;
            o.console_pipe = console.to_str().unwrap().to_owned();
            o.kernel_boot_options = "loglevel=7".to_owned();
        })
        .await;
    let group = started.vm.vm_identity().cgroup.clone().unwrap();
    assert!(!cgroup_folders(&group).is_empty(), "{} is nowhere", group.display());

    let mut screen = UnixStream::connect(place.run_dir().join("graphics.sock")).await.unwrap();
    let mut greeting = [0; 4];
    within("the greeting of VNC", screen.read_exact(&mut greeting)).await.unwrap();
    assert_eq!(&greeting, b"RFB ");

    let mut serial = UnixStream::connect(&console).await.unwrap();
    serial.write_all(b"\n").await.unwrap();
    started.close().await;
    assert!(!console.exists(), "the console's socket is left");
}

#[tokio::test]
async fn a_kernel_that_is_none_is_refused_by_name() {
    let place = Place::new();
    let mut opts = place.options();
    let boot = place.path().join("boot");
    std::fs::create_dir(&boot).unwrap();
    std::fs::copy(opts.boot_files_path.join("initrd.img"), boot.join("initrd.img")).unwrap();
    std::fs::write(boot.join("kernel"), "no kernel").unwrap();
    (opts.boot_files_path, opts.kernel_file) = (boot, "kernel".to_owned());
    let error = UtilityVm::create_lcow(opts).await.unwrap_err();
    assert!(chain(&error).contains("boot/kernel"), "{}", chain(&error));
    assert!(!place.run_dir().exists());
}

#[tokio::test]
async fn a_created_vm_takes_no_processor_time_and_closes() {
    let place = Place::new();
    let vm = UtilityVm::create_lcow(place.options()).await.unwrap();
    let before = vm.stats().await.unwrap().processor.total_runtime_ns;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let after = vm.stats().await.unwrap().processor.total_runtime_ns;
    assert!(after - before < 200_000_000, "a VM that stands still used {} ns", after - before);
    within("the close", vm.close()).await.unwrap();
    assert!(!place.run_dir().exists());
}
