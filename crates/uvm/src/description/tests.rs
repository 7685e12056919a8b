//! Options all the way to a configuration, extra JSON included.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use coracle_vmm::accel::Engine;
use coracle_vmm::{Boot, Lock, MiB, Throttle, VmConfig};
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::options::{ColdDisk, OptionsLcow, PreferredRootFsType};
use crate::validate::HostFacts;

const HOST: HostFacts = HostFacts { processors: 4, kernel_direct: true, cold_discard: true };

fn opts() -> OptionsLcow {
    OptionsLcow::with_boot_files("id", "owner", "/boot-files")
}

fn place() -> Place<'static> {
    let processor = command_line::Processor { engine: Engine::Tcg, tsc_khz: None };
    Place { run_dir: Path::new("/run/vm"), host: HOST, processor, now: UNIX_EPOCH }
}

fn built(opts: &OptionsLcow) -> Result<VmConfig, DescriptionError> {
    let place = place();
    let description = build(opts, place)?;
    lower(
        &description,
        &Surroundings {
            id: Uuid::nil(),
            name: "vm",
            run_dir: place.run_dir,
            control_socket: "/run/vm/control.sock".into(),
            streams_socket: "/run/vm/streams.sock".into(),
            area: None,
            cold_disks: &opts.host.cold_disks,
            user: None,
            die_with_owner: true,
            cgroup: None,
            disk_cache: opts.host.disk_cache,
        },
    )
}

fn config(change: impl FnOnce(&mut OptionsLcow)) -> VmConfig {
    let mut opts = opts();
    change(&mut opts);
    built(&opts).unwrap()
}

fn extra(json: &str) -> Result<VmConfig, DescriptionError> {
    let mut opts = opts();
    opts.options.addition_hcs_document_json = json.to_owned();
    built(&opts)
}

#[test]
fn the_default_vm_boots_an_initrd_directly_and_waits_for_its_start() {
    let config = config(|o| o.options.processor_count = 2);
    assert!(config.paused && config.die_with_owner);
    assert_eq!((config.memory.size, config.vcpus), (MiB(1024), 2));
    let Boot::Kernel { kernel, initrd, cmdline } = config.boot else { panic!("firmware") };
    assert_eq!(kernel, Path::new("/boot-files/kernel"));
    assert_eq!(initrd.as_deref(), Some(Path::new("/boot-files/initrd.img")));
    assert!(cmdline.contains("coracle.entropy=1"), "{cmdline}");
    let names: Vec<_> = config.serial_ports.iter().map(|port| port.name.as_str()).collect();
    assert_eq!(names, ["coracle.control", "coracle.streams"]);
    assert!(config.cgroup.is_none() && config.throttle.is_none());
    assert!(config.disks.is_empty() && config.pmem.is_empty());
}

#[test]
fn firmware_boots_the_same_files() {
    let config = config(|o| o.kernel_direct = false);
    assert!(matches!(config.boot, Boot::Firmware { initrd: Some(_), .. }));
}

#[test]
fn each_memory_backing_is_what_it_says() {
    let memory = |overcommit, deferred| {
        config(|o| {
            o.options.allow_overcommit = overcommit;
            o.options.enable_deferred_commit = deferred;
        })
        .memory
    };
    let pageable = memory(true, false);
    assert_eq!((pageable.prealloc, pageable.reserve, pageable.lock), (false, true, Lock::No));
    let deferred = memory(true, true);
    assert_eq!((deferred.prealloc, deferred.reserve, deferred.lock), (false, false, Lock::No));
    let physical = memory(false, false);
    assert_eq!((physical.prealloc, physical.reserve, physical.lock), (true, true, Lock::IfAllowed));
    let locked = config(|o| o.host.lock_memory = true).memory;
    assert_eq!(locked.lock, Lock::Required);
}

#[test]
fn odd_memory_is_rounded_up_and_zero_is_the_default() {
    assert_eq!(config(|o| o.options.memory_size_in_mb = 1025).memory.size, MiB(1026));
    assert_eq!(config(|o| o.options.memory_size_in_mb = 0).memory.size, MiB(1024));
}

#[test]
fn device_holes_and_discard_hints_are_passed_on() {
    let config = config(|o| {
        o.options.low_mmio_gap_in_mb = 512;
        o.options.high_mmio_gap_in_mb = 4096;
        o.enable_cold_discard_hint = true;
    });
    assert_eq!(config.memory.low_mmio_gap, Some(MiB(512)));
    assert_eq!(config.memory.high_mmio_gap, Some(MiB(4096)));
    assert!(config.free_page_reporting);
}

#[test]
fn processor_limits_become_a_control_group() {
    let group = config(|o| {
        o.options.processor_count = 2;
        o.options.processor_limit = 90_000;
        o.options.processor_weight = 500;
    })
    .cgroup
    .unwrap();
    assert_eq!((group.cpu_millis, group.cpu_weight), (Some(1800), Some(500)));
    assert_eq!(group.path, Path::new("coracle/vm"));
    assert!(config(|o| o.options.processor_limit = 100_000).cgroup.is_none());
}

#[test]
fn storage_limits_become_one_throttle() {
    let throttle = config(|o| o.options.storage_qos_iops_maximum = 10).throttle;
    assert_eq!(throttle, Some(Throttle { iops: 10, bytes_per_second: 0 }));
}

#[test]
fn consoles_become_unix_sockets() {
    let config = config(|o| {
        o.console_pipe = "/run/vm/console.sock".to_owned();
        o.enable_graphics_console = true;
    });
    assert_eq!(config.console.as_deref(), Some(Path::new("/run/vm/console.sock")));
    assert_eq!(config.graphics.as_deref(), Some(Path::new("/run/vm/graphics.sock")));
}

#[test]
fn a_root_image_is_pmem_device_zero_without_the_footer_of_a_vhd() {
    let folder = tempfile::tempdir().unwrap();
    let mut file = std::fs::File::create(folder.path().join("rootfs.vhd")).unwrap();
    file.write_all(&[0; 8192 + 512]).unwrap();
    let mut opts = OptionsLcow::with_boot_files("id", "owner", folder.path());
    assert_eq!(opts.preferred_root_fs_type, PreferredRootFsType::Vhd);
    let config = built(&opts).unwrap();
    assert_eq!(config.pmem.len(), 1);
    assert_eq!((config.pmem[0].size, config.pmem[0].read_only), (8192, true));

    opts.vpmem_size_bytes = 4096;
    assert!(matches!(built(&opts), Err(DescriptionError::PmemSize { size: 8704, .. })));
}

#[test]
fn cold_disks_hang_on_the_bus_in_order() {
    let disk = |serial: &str| ColdDisk {
        serial: serial.to_owned(),
        file: Arc::new(std::fs::File::open("/dev/null").unwrap().into()),
        read_only: true,
        mount: None,
    };
    let config = config(|o| o.host.cold_disks = vec![disk("root"), disk("data")]);
    let places: Vec<_> = config
        .disks
        .iter()
        .map(|disk| (disk.id.as_str(), disk.serial.as_str(), disk.place))
        .collect();
    let virtio = coracle_vmm::DiskPlace::Virtio;
    assert_eq!(places, [("cold-0", "root", virtio), ("cold-1", "data", virtio)]);
}

#[test]
fn extra_json_wins_over_the_options() {
    let config = extra(
        r#"{"VirtualMachine":{"ComputeTopology":{"Memory":{"SizeInMB":2048},
            "Processor":{"Count":null}},"Devices":{"Scsi":{"1":{}}}},
            "Coracle":{"Accelerator":"tcg","MonitorArguments":["-d","int"]}}"#,
    )
    .unwrap();
    assert_eq!((config.memory.size, config.vcpus), (MiB(2048), 1));
    assert_eq!(config.scsi_controllers, 2);
    assert_eq!(config.accel, coracle_vmm::Accel::Tcg);
    assert_eq!(config.extra_arguments, ["-d", "int"]);
}

#[test]
fn extra_json_that_nobody_understands_is_refused_by_name() {
    let error = extra(r#"{"VirtualMachine":{"Devices":{"Battery":{}}}}"#).unwrap_err();
    let DescriptionError::Shape(source) = error else { panic!("{error}") };
    assert!(source.to_string().contains("`Battery`"), "{source}");
}

#[test]
fn extra_json_that_contradicts_itself_is_refused() {
    let cases = [
        r#"{"VirtualMachine":{"StopOnReset":false}}"#,
        r#"{"VirtualMachine":{"Chipset":{"Uefi":{"KernelFilePath":"/k"}}}}"#,
        r#"{"VirtualMachine":{"Devices":{"Scsi":{"3":{}}}}}"#,
        r#"{"VirtualMachine":{"Devices":{"ComPorts":{"1":{"NamedPipe":"/p"}}}}}"#,
        r#"{"VirtualMachine":{"ComputeTopology":{"Memory":
            {"AllowOvercommit":false,"EnableDeferredCommit":true}}}}"#,
        r#"{"VirtualMachine":{"Devices":{"VirtualPMem":{"Devices":{"0":{"HostPath":"/no"}}}}}}"#,
    ];
    for case in cases {
        assert!(extra(case).is_err(), "{case}");
    }
}

#[test]
fn a_description_survives_a_round_trip_through_json() {
    let mut opts = opts();
    opts.console_pipe = "/c".to_owned();
    opts.enable_graphics_console = true;
    opts.preferred_root_fs_type = PreferredRootFsType::Vhd;
    opts.options.storage_qos_iops_maximum = 1;
    let place = place();
    let description = describe(&opts, place);
    let text = serde_json::to_string(&description).unwrap();
    assert_eq!(serde_json::from_str::<VmDescription>(&text).unwrap(), description);
}

proptest! {
    #[test]
    fn a_processor_limit_is_that_share_of_all_processors(count in 1u32..=4, limit in 1u32..100_000) {
        let config = config(|o| {
            o.options.processor_count = count;
            o.options.processor_limit = limit;
        });
        let millis = config.cgroup.unwrap().cpu_millis.unwrap();
        prop_assert!(millis >= 1);
        prop_assert!(u64::from(millis) <= u64::from(count) * 1000);
        prop_assert!((u64::from(count) * u64::from(limit)).abs_diff(u64::from(millis) * 100) <= 100);
    }
}
