//! The document hcsshim v0.8.9 creates a Linux VM from.
//!
//! Fields that are zero, false or empty are left out, empty objects are kept where the original
//! has a pointer to one. The extra JSON of the options is merged in by [`crate::merge`] as for
//! the description of ours.

use serde_json::{Map, Value, json};

use super::{Form, kernel_args};
use crate::options::{Options, OptionsLcow, PreferredRootFsType};
use crate::validate::HostFacts;

/// Only the system and administrators may bind the VM's sockets.
const BIND_DESCRIPTOR: &str = "D:P(A;;FA;;;SY)(A;;FA;;;BA)";

/// The document for a Linux VM, before the extra JSON is merged.
pub fn document(opts: &OptionsLcow, form: Form, host: &HostFacts) -> Value {
    let mut vm = json!({
        "StopOnReset": true,
        "Chipset": chipset(opts, form, host),
        "ComputeTopology": {
            "Memory": memory(opts),
            "Processor": present([
                ("Count", opts.options.capped_processors(host).into()),
                ("Limit", opts.options.processor_limit.into()),
                ("Weight", opts.options.processor_weight.into()),
            ]),
        },
        "Devices": devices(opts, form),
    });
    if opts.use_guest_connection && !opts.options.external_guest_connection {
        vm["GuestConnection"] = json!({ "UseVsock": true, "UseConnectedSuspend": true });
    }
    if let Some(qos) = storage_qos(&opts.options) {
        vm["StorageQoS"] = qos;
    }
    json!({
        "Owner": opts.options.owner,
        "SchemaVersion": { "Major": 2, "Minor": 1 },
        "ShouldTerminateOnLastHandleClosed": true,
        "VirtualMachine": vm,
    })
}

fn memory(opts: &OptionsLcow) -> Value {
    let options = &opts.options;
    present([
        ("SizeInMB", options.aligned_memory().into()),
        ("AllowOvercommit", options.allow_overcommit.into()),
        ("EnableDeferredCommit", options.enable_deferred_commit.into()),
        ("EnableColdDiscardHint", opts.enable_cold_discard_hint.into()),
        ("LowMmioGapInMB", options.low_mmio_gap_in_mb.into()),
        ("HighMmioBaseInMB", options.high_mmio_base_in_mb.into()),
        ("HighMmioGapInMB", options.high_mmio_gap_in_mb.into()),
    ])
}

fn storage_qos(options: &Options) -> Option<Value> {
    let (iops, bandwidth) =
        (options.storage_qos_iops_maximum, options.storage_qos_bandwidth_maximum);
    (iops > 0 || bandwidth > 0)
        .then(|| present([("IopsMaximum", iops.into()), ("BandwidthMaximum", bandwidth.into())]))
}

fn chipset(opts: &OptionsLcow, form: Form, host: &HostFacts) -> Value {
    let args = kernel_args(opts, form, host);
    if !opts.kernel_direct {
        return json!({ "Uefi": { "BootThis": {
            "DevicePath": format!(r"\{}", opts.kernel_file),
            "DeviceType": "VmbFs",
            "VmbFsRootPath": opts.boot_files_path.to_string_lossy(),
            "OptionalData": args,
        }}});
    }
    let mut direct = json!({
        "KernelFilePath": boot_file(opts, &opts.kernel_file),
        "KernelCmdLine": args,
    });
    if opts.preferred_root_fs_type == PreferredRootFsType::InitRd {
        direct["InitRdPath"] = boot_file(opts, &opts.root_fs_file).into();
    }
    json!({ "LinuxKernelDirect": direct })
}

fn devices(opts: &OptionsLcow, form: Form) -> Value {
    let mut devices = json!({
        "HvSocket": { "HvSocketConfig": { "DefaultBindSecurityDescriptor": BIND_DESCRIPTOR } },
        "Plan9": {},
    });
    if opts.scsi_controller_count > 0 {
        devices["Scsi"] = json!({ "0": {} });
    }
    if opts.vpmem_device_count > 0 {
        devices["VirtualPMem"] = json!({
            "MaximumCount": opts.vpmem_device_count,
            "MaximumSizeBytes": opts.vpmem_size_bytes,
        });
        if opts.preferred_root_fs_type == PreferredRootFsType::Vhd {
            devices["VirtualPMem"]["Devices"] = json!({ "0": {
                "HostPath": boot_file(opts, &opts.root_fs_file),
                "ReadOnly": true,
                "ImageFormat": image_format(&opts.root_fs_file, form),
            }});
        }
    }
    if opts.enable_graphics_console {
        for device in ["Keyboard", "EnhancedModeVideo", "VideoMonitor"] {
            devices[device] = json!({});
        }
    }
    if !opts.console_pipe.is_empty() {
        devices["ComPorts"] = json!({ "0": { "NamedPipe": opts.console_pipe } });
    }
    devices
}

/// hcsshim compares an extension that has a dot with one that has none, so it never says `Vhdx`.
fn image_format(file: &str, form: Form) -> &'static str {
    let vhdx = file.to_ascii_lowercase().ends_with(".vhdx");
    if form == Form::Corrected && vhdx { "Vhdx" } else { "Vhd1" }
}

/// The path as Windows writes it, wherever this runs.
fn boot_file(opts: &OptionsLcow, name: &str) -> String {
    format!(r"{}\{name}", opts.boot_files_path.display())
}

/// An object of the fields that are not zero, false or empty.
fn present<const N: usize>(fields: [(&str, Value); N]) -> Value {
    let is_zero =
        |value: &Value| value == &Value::Bool(false) || value.as_u64().is_some_and(|n| n == 0);
    let fields = fields.into_iter().filter(|(_, value)| !is_zero(value));
    Value::Object(fields.map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merge::merge;

    const HOST: HostFacts = HostFacts { processors: 2, kernel_direct: true, cold_discard: true };

    macro_rules! golden {
        ($name:literal) => {
            serde_json::from_str::<Value>(include_str!(concat!(
                "../../../../tests/golden/hcs/v0.8.9/",
                $name,
                ".json"
            )))
            .unwrap()
        };
    }

    /// The options every recording starts from.
    fn opts() -> OptionsLcow {
        let mut opts = OptionsLcow::with_boot_files("uvm-id", "owner", r"C:\g\boot");
        opts.options.processor_count = 2;
        opts
    }

    fn written(change: impl FnOnce(&mut OptionsLcow)) -> Value {
        let mut opts = opts();
        change(&mut opts);
        let text = opts.options.addition_hcs_document_json.clone();
        merge(document(&opts, Form::Faithful, &HOST), &text).unwrap()
    }

    fn vhd(opts: &mut OptionsLcow) {
        opts.root_fs_file = "rootfs.vhd".to_owned();
        opts.preferred_root_fs_type = PreferredRootFsType::Vhd;
    }

    #[test]
    fn a_direct_boot_from_an_initrd_is_the_originals() {
        let document = written(|o| o.kernel_file = "vmlinux".to_owned());
        assert_eq!(document, golden!("lcow_create_direct_initrd"));
    }

    #[test]
    fn a_direct_boot_from_an_image_is_the_originals() {
        let document = written(|o| {
            o.kernel_file = "vmlinux".to_owned();
            vhd(o);
        });
        assert_eq!(document, golden!("lcow_create_direct_vhd"));
    }

    #[test]
    fn firmware_boots_are_the_originals() {
        let uefi = |o: &mut OptionsLcow| o.kernel_direct = false;
        assert_eq!(written(uefi), golden!("lcow_create_uefi_initrd"));
        let document = written(|o| {
            uefi(o);
            vhd(o);
        });
        assert_eq!(document, golden!("lcow_create_uefi_vhd"));
    }

    #[test]
    fn a_vm_without_device_slots_is_the_originals() {
        let document = written(|o| (o.scsi_controller_count, o.vpmem_device_count) = (0, 0));
        assert_eq!(document, golden!("lcow_create_noscsi_nopmem"));
    }

    #[test]
    fn a_console_pipe_is_the_originals() {
        let document = written(|o| o.console_pipe = r"\\.\pipe\vmpipe".to_owned());
        assert_eq!(document, golden!("lcow_create_console"));
    }

    #[test]
    fn an_internal_guest_connection_is_the_originals() {
        let document = written(|o| o.options.external_guest_connection = false);
        assert_eq!(document, golden!("lcow_create_internal_gcs"));
    }

    #[test]
    fn all_options_at_once_are_the_originals() {
        let document = written(|o| {
            let options = &mut o.options;
            options.memory_size_in_mb = 1025;
            options.allow_overcommit = false;
            options.low_mmio_gap_in_mb = 64;
            options.high_mmio_base_in_mb = 2048;
            options.high_mmio_gap_in_mb = 4096;
            options.processor_limit = 5000;
            options.processor_weight = 100;
            options.storage_qos_iops_maximum = 10;
            options.storage_qos_bandwidth_maximum = 1000;
            o.enable_graphics_console = true;
            o.forward_stdout = true;
            o.kernel_boot_options = "foo=bar".to_owned();
            o.vpci_enabled = true;
        });
        assert_eq!(document, golden!("lcow_create_all"));
    }

    #[test]
    fn extra_json_is_merged_as_the_original_merges_it() {
        let document = written(|o| {
            o.options.addition_hcs_document_json =
                r#"{"VirtualMachine":{"StopOnReset":false,"Devices":{"Battery":{}}}}"#.to_owned();
        });
        assert_eq!(document, golden!("lcow_create_additional_json"));
    }

    #[test]
    fn corrected_a_vhdx_is_called_one() {
        assert_eq!(image_format("rootfs.vhdx", Form::Faithful), "Vhd1");
        assert_eq!(image_format("rootfs.vhdx", Form::Corrected), "Vhdx");
        assert_eq!(image_format("rootfs.vhd", Form::Corrected), "Vhd1");
    }
}
