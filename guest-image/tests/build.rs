//! The whole build on inputs made for the test, but for busybox, which is the host's own.

// A test may stop at the first thing that goes wrong.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use coracle_guest_image::{
    BOOT_MODULES, BuildError, Built, FolderError, GuestFiles, GuestRecipe, KernelError,
    ModuleError, build,
};

const RELEASE: &str = "6.1.0-7-test";

/// A directory with all inputs.
struct Workshop {
    directory: tempfile::TempDir,
}

impl Workshop {
    fn new() -> Self {
        let workshop = Self { directory: tempfile::tempdir().unwrap() };
        std::fs::write(workshop.path("vmlinuz"), bzimage(&static_elf(18))).unwrap();
        std::fs::write(workshop.path("agent"), static_elf(0)).unwrap();
        let modules = workshop.path("lib/modules").join(RELEASE);
        std::fs::create_dir_all(modules.join("kernel")).unwrap();
        let mut dep = String::new();
        for module in BOOT_MODULES.iter().chain(&["ext4", "jbd2"]) {
            let needs = if *module == "ext4" { " kernel/jbd2.ko" } else { "" };
            dep += &format!("kernel/{module}.ko:{needs}\n");
            let content = [b"\x7fELF", module.as_bytes()].concat();
            std::fs::write(modules.join(format!("kernel/{module}.ko")), content).unwrap();
        }
        std::fs::write(modules.join("modules.dep"), dep).unwrap();
        std::fs::write(modules.join("modules.builtin"), "kernel/drivers/qemu_fw_cfg.ko\n").unwrap();
        workshop
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn recipe(&self) -> GuestRecipe {
        let busybox = PathBuf::from("/bin/busybox");
        assert!(busybox.exists(), "these tests need busybox-static (see `make setup`)");
        GuestRecipe {
            kernel: self.path("vmlinuz"),
            modules: self.directory.path().to_owned(),
            agent: self.path("agent"),
            busybox,
            output: self.path("guest"),
            force: false,
        }
    }

    fn build(&self) -> Result<Built, BuildError> {
        build(&self.recipe(), |_| {})
    }

    /// Names in the workshop that begin with a dot.
    fn leftovers(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.directory.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with('.') && name != ".guest.lock").collect()
    }
}

/// The least of a static x86-64 ELF file; `note` 18 is the mark of a PVH entry.
fn static_elf(note: u8) -> Vec<u8> {
    let mut elf = vec![0_u8; 0x100];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    elf[0x12] = 62;
    elf[0x20] = 0x40;
    elf[0x36] = 56;
    elf[0x38] = 1;
    elf[0x40] = 4;
    elf[0x48] = 0x80;
    elf[0x60] = 20;
    elf[0x80] = 4;
    elf[0x84] = 4;
    elf[0x88] = note;
    elf[0x8c..0x90].copy_from_slice(b"Xen\0");
    elf
}

fn bzimage(vmlinux: &[u8]) -> Vec<u8> {
    let mut payload = zstd::encode_all(vmlinux, 1).unwrap();
    payload.extend(u32::try_from(vmlinux.len()).unwrap().to_le_bytes());
    let mut image = vec![0_u8; 1024];
    image[0x1f1] = 1;
    image[0x1fe..0x206].copy_from_slice(b"\x55\xaa\0\0HdrS");
    image[0x206..0x208].copy_from_slice(&[0x0f, 0x02]);
    image[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
    image[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
    image[0x300..0x30d].copy_from_slice(b"6.1.0-7-test ");
    image.extend(payload);
    image
}

fn bytes_of(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            (
                path.file_name().unwrap().to_string_lossy().into_owned(),
                std::fs::read(&path).unwrap(),
            )
        })
        .collect();
    files.sort();
    files
}

#[test]
fn the_same_inputs_give_the_same_bytes_wherever_they_are_built() {
    let (one, other) = (Workshop::new(), Workshop::new());
    one.build().unwrap();
    other.build().unwrap();
    let files = bytes_of(&one.path("guest"));
    let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        ["initrd.img", "kernel", "manifest.json", "root.img", "rootfs.erofs", "vmlinux"]
    );
    assert!(files == bytes_of(&other.path("guest")));
}

#[test]
fn a_second_build_finds_nothing_to_do_until_an_input_changes() {
    let workshop = Workshop::new();
    assert!(matches!(workshop.build().unwrap(), Built::Made(_)));
    assert!(matches!(workshop.build().unwrap(), Built::UpToDate(_)));
    let mut agent = static_elf(0);
    agent.push(1);
    std::fs::write(workshop.path("agent"), agent).unwrap();
    assert!(matches!(workshop.build().unwrap(), Built::Made(_)));
    assert!(workshop.leftovers().is_empty());
}

#[test]
fn force_makes_the_files_anew() {
    let workshop = Workshop::new();
    workshop.build().unwrap();
    let recipe = GuestRecipe { force: true, ..workshop.recipe() };
    assert!(matches!(build(&recipe, |_| {}).unwrap(), Built::Made(_)));
}

#[test]
fn a_damaged_file_is_seen_and_made_anew() {
    let workshop = Workshop::new();
    workshop.build().unwrap();
    let vmlinux = workshop.path("guest/vmlinux");
    let whole = std::fs::read(&vmlinux).unwrap();

    std::fs::write(&vmlinux, vec![0; whole.len()]).unwrap();
    assert!(matches!(workshop.build().unwrap(), Built::Made(_)));
    assert!(std::fs::read(&vmlinux).unwrap() == whole);

    std::fs::write(&vmlinux, "").unwrap();
    let error = GuestFiles::open(workshop.path("guest")).unwrap_err();
    assert!(matches!(error, FolderError::Damaged { .. }), "{error}");
    std::fs::remove_file(&vmlinux).unwrap();
    let error = GuestFiles::open(workshop.path("guest")).unwrap_err();
    assert!(error.to_string().contains("is missing"), "{error}");
}

#[test]
fn a_failed_build_leaves_the_files_that_were_there() {
    let workshop = Workshop::new();
    workshop.build().unwrap();
    let before = bytes_of(&workshop.path("guest"));
    std::fs::write(workshop.path("vmlinuz"), bzimage(&static_elf(17))).unwrap();
    let error = workshop.build().unwrap_err();
    assert!(
        matches!(&error, BuildError::Kernel { source: KernelError::NoPvhEntry, .. }),
        "{error}"
    );
    assert!(bytes_of(&workshop.path("guest")) == before);
    assert!(workshop.leftovers().is_empty());
}

#[test]
fn a_folder_of_somebody_else_is_never_replaced() {
    let workshop = Workshop::new();
    std::fs::create_dir(workshop.path("guest")).unwrap();
    std::fs::write(workshop.path("guest/thesis.tex"), "years of work").unwrap();
    std::fs::write(workshop.path("guest/manifest.json"), "{}").unwrap();
    let error = workshop.build().unwrap_err();
    assert!(
        matches!(&error, BuildError::Folder(FolderError::Foreign { name, .. }) if name == "thesis.tex"),
        "{error}"
    );
    assert_eq!(std::fs::read(workshop.path("guest/thesis.tex")).unwrap(), b"years of work");
}

#[test]
fn a_link_to_the_folder_stays_and_what_it_leads_to_is_replaced() {
    let workshop = Workshop::new();
    std::fs::create_dir(workshop.path("elsewhere")).unwrap();
    std::os::unix::fs::symlink("elsewhere", workshop.path("guest")).unwrap();
    workshop.build().unwrap();
    assert!(workshop.path("guest").is_symlink());
    assert!(GuestFiles::open(workshop.path("elsewhere")).unwrap().are_whole().unwrap());
}

#[test]
fn what_an_interrupted_build_left_behind_is_cleared_away() {
    let workshop = Workshop::new();
    std::fs::create_dir(workshop.path(".guest.new")).unwrap();
    std::fs::write(workshop.path(".guest.new/vmlinux"), "half").unwrap();
    workshop.build().unwrap();
    assert!(workshop.leftovers().is_empty());
}

#[test]
fn builds_at_the_same_time_make_the_files_once() {
    let workshop = Workshop::new();
    let made = std::thread::scope(|scope| {
        let builds: Vec<_> = (0..4).map(|_| scope.spawn(|| workshop.build().unwrap())).collect();
        let builds = builds.into_iter().map(|build| build.join().unwrap());
        builds.filter(|built| matches!(built, Built::Made(_))).count()
    });
    assert_eq!(made, 1);
    assert!(GuestFiles::open(workshop.path("guest")).unwrap().are_whole().unwrap());
}

#[test]
fn modules_of_another_release_are_refused() {
    let workshop = Workshop::new();
    let modules = workshop.path("lib/modules");
    std::fs::rename(modules.join(RELEASE), modules.join("5.10.0")).unwrap();
    for named in [workshop.directory.path().to_owned(), modules.clone(), modules.join("5.10.0")] {
        let recipe = GuestRecipe { modules: named, ..workshop.recipe() };
        let error = build(&recipe, |_| {}).unwrap_err();
        assert!(
            matches!(&error, BuildError::Modules { source: ModuleError::WrongRelease { release }, .. }
                if release == RELEASE),
            "{error}"
        );
    }
}

#[test]
fn modules_are_found_by_any_of_their_three_directories() {
    let workshop = Workshop::new();
    let modules = workshop.path("lib/modules");
    for named in [workshop.directory.path().to_owned(), modules.clone(), modules.join(RELEASE)] {
        let recipe = GuestRecipe { modules: named, force: true, ..workshop.recipe() };
        build(&recipe, |_| {}).unwrap();
    }
}

#[test]
fn a_missing_module_is_named() {
    let workshop = Workshop::new();
    let dep = workshop.path("lib/modules").join(RELEASE).join("modules.dep");
    let text = std::fs::read_to_string(&dep).unwrap().replace("kernel/erofs.ko:\n", "");
    std::fs::write(dep, text).unwrap();
    let error = workshop.build().unwrap_err();
    assert!(
        matches!(&error, BuildError::Modules { source: ModuleError::Missing { name }, .. }
            if name == "erofs"),
        "{error}"
    );
}

#[test]
fn an_agent_that_is_not_static_is_refused() {
    let workshop = Workshop::new();
    std::fs::write(workshop.path("agent"), "#!/bin/sh\n").unwrap();
    let error = workshop.build().unwrap_err();
    assert!(error.to_string().contains("is not an x86-64 executable"), "{error}");
    let mut dynamic = static_elf(0);
    dynamic[0x40] = 3;
    std::fs::write(workshop.path("agent"), dynamic).unwrap();
    let error = workshop.build().unwrap_err();
    assert!(error.to_string().contains("is not statically linked"), "{error}");
}

#[test]
fn the_manifest_says_what_is_in_the_guest_and_not_where_it_was_built() {
    let workshop = Workshop::new();
    let built = workshop.build().unwrap();
    let manifest = built.files().manifest();
    assert_eq!(manifest.kernel.release, RELEASE);
    assert_eq!(manifest.modules.boot, BOOT_MODULES);
    assert_eq!(manifest.modules.on_demand, ["jbd2", "ext4"]);
    assert!(manifest.modules.absent.contains(&"xfs".to_owned()));
    assert!(!manifest.modules.absent.contains(&"qemu_fw_cfg".to_owned()), "it is built in");
    let text = manifest.to_json();
    assert!(!text.contains(workshop.directory.path().to_str().unwrap()), "{text}");
    let size = std::fs::metadata(built.files().root_image()).unwrap().len();
    assert_eq!(size % (2 << 20), 0, "persistent memory comes in 2 MiB pages");
}
