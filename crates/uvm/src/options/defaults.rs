//! The options a caller starts from.
//!
//! As in the seed, the file names are looked up once, in the default folder: a caller who then
//! changes the folder keeps the names.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::{
    DEFAULT_EXEC_COMMAND_LINE, DEFAULT_VPMEM_COUNT, DEFAULT_VPMEM_SIZE_BYTES, HostOptions,
    INITRD_FILE, KERNEL_FILE, Options, OptionsLcow, OptionsWcow, PreferredRootFsType,
    UNCOMPRESSED_KERNEL_FILE, VHD_FILE,
};

impl Options {
    /// What both kinds of VM start from.
    fn new_default(id: &str, owner: &str, external_guest_connection: bool) -> Self {
        Self {
            id: id.to_owned(),
            owner: if owner.is_empty() { program_name() } else { owner.to_owned() },
            addition_hcs_document_json: String::new(),
            memory_size_in_mb: 1024,
            low_mmio_gap_in_mb: 0,
            high_mmio_base_in_mb: 0,
            high_mmio_gap_in_mb: 0,
            allow_overcommit: true,
            enable_deferred_commit: false,
            processor_count: default_processors(crate::validate::HostFacts::detect().processors),
            processor_limit: 0,
            processor_weight: 0,
            storage_qos_iops_maximum: 0,
            storage_qos_bandwidth_maximum: 0,
            external_guest_connection,
        }
    }
}

impl OptionsLcow {
    /// The options of a Linux VM that boots, in `<root>/guest`.
    ///
    /// An empty `id` becomes a random UUID at create; an empty `owner` the program's file name
    /// now.
    #[doc(alias = "NewDefaultOptionsLCOW")]
    pub fn new_default(id: &str, owner: &str) -> Self {
        Self::with_boot_files(id, owner, default_root().join("guest"))
    }

    /// The same with the boot files in `folder`, probed for what it holds.
    pub fn with_boot_files(id: &str, owner: &str, folder: impl Into<PathBuf>) -> Self {
        let boot_files_path = folder.into();
        let has = |name: &str| boot_files_path.join(name).exists();
        let kernel_file =
            if has(UNCOMPRESSED_KERNEL_FILE) { UNCOMPRESSED_KERNEL_FILE } else { KERNEL_FILE };
        let (root_fs_file, preferred_root_fs_type) = if has(VHD_FILE) {
            (VHD_FILE, PreferredRootFsType::Vhd)
        } else {
            (INITRD_FILE, PreferredRootFsType::InitRd)
        };
        Self {
            options: Options::new_default(id, owner, true),
            kernel_file: kernel_file.to_owned(),
            kernel_direct: true,
            root_fs_file: root_fs_file.to_owned(),
            kernel_boot_options: String::new(),
            enable_graphics_console: false,
            console_pipe: String::new(),
            scsi_controller_count: 1,
            use_guest_connection: true,
            exec_command_line: DEFAULT_EXEC_COMMAND_LINE.to_owned(),
            forward_stdout: false,
            forward_stderr: true,
            output_handler: None,
            vpmem_device_count: DEFAULT_VPMEM_COUNT,
            vpmem_size_bytes: DEFAULT_VPMEM_SIZE_BYTES,
            preferred_root_fs_type,
            enable_cold_discard_hint: false,
            vpci_enabled: false,
            host: HostOptions::default(),
            boot_files_path,
        }
    }
}

impl OptionsWcow {
    /// The options of a Windows VM; the caller must still set `layer_folders`.
    #[doc(alias = "NewDefaultOptionsWCOW")]
    pub fn new_default(id: &str, owner: &str) -> Self {
        Self { options: Options::new_default(id, owner, false), layer_folders: Vec::new() }
    }
}

/// Two processors, one where the host has only one.
fn default_processors(host: u32) -> u32 {
    host.clamp(1, 2)
}

fn program_name() -> String {
    let first = std::env::args_os().next().unwrap_or_default();
    Path::new(&first).file_name().unwrap_or(OsStr::new("coracle")).to_string_lossy().into_owned()
}

/// The folder that holds what coracle keeps: `$CORACLE_ROOT`, else `/var/lib/coracle` for root
/// and `$XDG_DATA_HOME/coracle` for everybody else.
pub fn default_root() -> PathBuf {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(root) = variable("CORACLE_ROOT") {
        return root.into();
    }
    if rustix::process::geteuid().is_root() {
        return "/var/lib/coracle".into();
    }
    let data = variable("XDG_DATA_HOME").map(PathBuf::from);
    let home = || PathBuf::from(variable("HOME").unwrap_or_default()).join(".local/share");
    data.unwrap_or_else(home).join("coracle")
}

/// The folder for the sockets of the VM `id`: `/run/coracle/<id>` for root, in
/// `$XDG_RUNTIME_DIR` (or the temporary folder) for everybody else.
pub fn default_run_dir(id: &str) -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return Path::new("/run/coracle").join(id);
    }
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|value| !value.is_empty());
    runtime.map_or_else(std::env::temp_dir, PathBuf::from).join("coracle").join(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn golden(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    /// The golden file was made on a host with Windows paths and at least two processors.
    fn as_on_windows(mut options: OptionsLcow) -> OptionsLcow {
        options.boot_files_path = r"C:\Program Files\Linux Containers".into();
        options.options.processor_count = 2;
        options
    }

    #[test]
    fn the_defaults_of_a_linux_vm_are_the_seeds() {
        let empty = tempfile::tempdir().unwrap();
        let options = as_on_windows(OptionsLcow::with_boot_files("id", "o", empty.path()));
        let expected =
            golden(include_str!("../../../../tests/golden/hcs/v0.8.9/opts_default_lcow.json"));
        assert_eq!(serde_json::to_value(&options).unwrap(), expected);
    }

    #[test]
    fn the_defaults_of_a_windows_vm_are_the_seeds() {
        let mut options = OptionsWcow::new_default("id", "o");
        options.options.processor_count = 2;
        let mut expected =
            golden(include_str!("../../../../tests/golden/hcs/v0.8.9/opts_default_wcow.json"));
        expected["LayerFolders"] = json!([]); // Go prints a nil slice as null.
        assert_eq!(serde_json::to_value(&options).unwrap(), expected);
    }

    #[test]
    fn options_survive_a_round_trip_through_json() {
        let options = OptionsLcow::new_default("id", "o");
        let text = serde_json::to_string(&options).unwrap();
        let back: OptionsLcow = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&back).unwrap(), text);
    }

    #[test]
    fn the_boot_folder_decides_the_file_names() {
        let folder = tempfile::tempdir().unwrap();
        for name in [UNCOMPRESSED_KERNEL_FILE, VHD_FILE] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let options = OptionsLcow::with_boot_files("", "", folder.path());
        assert_eq!(options.kernel_file, "vmlinux");
        assert_eq!(options.root_fs_file, "rootfs.vhd");
        assert_eq!(options.preferred_root_fs_type, PreferredRootFsType::Vhd);
    }

    #[test]
    fn without_an_owner_the_program_owns_the_vm() {
        let owner = OptionsLcow::new_default("", "").options.owner;
        assert!(owner.starts_with("coracle_uvm"), "{owner}");
    }

    #[test]
    fn a_host_with_one_processor_gives_one() {
        assert_eq!([0, 1, 2, 64].map(default_processors), [1, 1, 2, 2]);
    }

    #[test]
    fn an_unknown_root_type_is_refused() {
        assert!(serde_json::from_value::<PreferredRootFsType>(json!(2)).is_err());
    }
}
