//! Options that only a real machine honours.

use std::time::Duration;

use coracle_uvm::UtilityVm;
use coracle_uvm::options::OutputHandler;
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

/// `ExecCommandLine`, `ForwardStdout` and the output handler: a VM whose init runs a command of
/// ours instead of the agent, and ends with it.
#[tokio::test]
async fn a_vm_runs_another_command_and_hands_its_output_over() {
    let place = Place::new();
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let mut opts = place.options();
    let boot = place.path().join("boot");
    std::fs::create_dir(&boot).unwrap();
    std::os::unix::fs::symlink(opts.boot_files_path.join("vmlinux"), boot.join("vmlinux")).unwrap();
    // The kernel unpacks archives one after the other.
    let mut initrd = std::fs::read(opts.boot_files_path.join("initrd.img")).unwrap();
    let busybox = std::fs::read("/bin/busybox").unwrap();
    initrd.extend(archive(&[("extra", 0o040_755, b""), ("extra/busybox", 0o100_755, &busybox)]));
    std::fs::write(boot.join("initrd.img"), initrd).unwrap();
    opts.boot_files_path = boot;
    opts.exec_command_line = "/extra/busybox echo 'a  line'".to_owned();
    opts.use_guest_connection = false;
    opts.forward_stdout = true;
    opts.output_handler = Some(OutputHandler::new(move |mut stream| {
        let tell = tell.clone();
        async move {
            let mut text = String::new();
            // The end of a VM's connection may be a reset.
            let _ = stream.read_to_string(&mut text).await;
            let _ = tell.send(text);
        }
    }));
    let vm = UtilityVm::create_lcow(opts).await.unwrap();
    vm.start().await.unwrap();
    within("the VM's own end", vm.wait()).await;
    let text = told.recv().await.unwrap();
    assert!(text.contains(r#""a  line""#), "{text}");
    vm.exit_error().unwrap();
    vm.close().await.unwrap();
    assert!(!place.run_dir().exists());
}

/// A cpio archive as the kernel reads it ("newc").
fn archive(entries: &[(&str, u32, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let align = |bytes: &mut Vec<u8>| bytes.resize(bytes.len().next_multiple_of(4), 0);
    let trailer = [("TRAILER!!!", 0, &b""[..])];
    for (inode, (name, mode, content)) in entries.iter().chain(&trailer).enumerate() {
        let (size, named) = (content.len(), name.len() + 1);
        let fields = [inode + 1, *mode as usize, 0, 0, 1, 0, size, 0, 0, 0, 0, named, 0];
        bytes.extend(b"070701");
        bytes.extend(fields.iter().flat_map(|field| format!("{field:08x}").into_bytes()));
        bytes.extend(name.bytes().chain([0]));
        align(&mut bytes);
        bytes.extend(*content);
        align(&mut bytes);
    }
    bytes
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
