//! The store: images found again, made once, never half there, and kept while in use.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Tar, fsck, prepare_program};
use coracle_image::{Image, ImageError, Phase, Progress, Source, Store};

struct Lab {
    dir: tempfile::TempDir,
    store: Store,
    root: PathBuf,
}

impl Lab {
    /// A store, and a directory with some files.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store")).unwrap();
        let root = dir.path().join("root");
        fs::create_dir(&root).unwrap();
        for i in 0..50 {
            fs::write(root.join(format!("f{i}")), vec![b'x'; i * 1000]).unwrap();
        }
        Self { dir, store, root }
    }

    fn prepare(&self) -> Image {
        self.try_prepare(&mut ()).unwrap()
    }

    fn try_prepare(&self, progress: &mut dyn Progress) -> Result<Image, ImageError> {
        self.store.prepare(&Source::detect(&self.root)?, progress)
    }

    fn count(&self, folder: &str) -> usize {
        fs::read_dir(self.dir.path().join("store").join(folder)).unwrap().count()
    }
}

fn inode(path: &Path) -> u64 {
    fs::metadata(path).unwrap().ino()
}

#[test]
fn an_unchanged_directory_is_not_read_again() {
    let lab = Lab::new();
    let first = lab.prepare();
    let second = lab.prepare();
    assert!(!first.cached && second.cached);
    assert_eq!(first.path, second.path);
    assert_eq!(inode(&first.path), inode(&second.path));
    assert_eq!(first.file().metadata().unwrap().ino(), inode(&second.path));
}

#[test]
fn any_change_to_a_directory_makes_a_new_image_and_the_old_one_goes() {
    let lab = Lab::new();
    let mut last = lab.prepare().digest;
    let file = lab.root.join("f3");
    let modified = fs::metadata(&file).unwrap().modified().unwrap();
    let same_size_and_mtime = || {
        fs::write(&file, vec![b'y'; 3000]).unwrap();
        fs::File::options().write(true).open(&file).unwrap().set_modified(modified).unwrap();
    };
    let mode = || {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(&file, mode).unwrap();
    };
    let name = || fs::rename(&file, lab.root.join("g3")).unwrap();
    let new = || fs::create_dir(lab.root.join("new")).unwrap();
    let gone = || fs::remove_file(lab.root.join("f4")).unwrap();
    let changes: [&dyn Fn(); 5] = [&same_size_and_mtime, &mode, &name, &new, &gone];
    for (number, change) in changes.into_iter().enumerate() {
        change();
        let image = lab.prepare();
        assert!(!image.cached, "change {number}");
        assert_ne!(image.digest, last, "change {number}");
        last = image.digest;
        assert_eq!(lab.count("images"), 1, "change {number}");
    }
}

#[test]
fn an_image_in_use_is_not_removed() {
    let lab = Lab::new();
    let used = lab.prepare();
    let key = used.key.unwrap();
    let error = lab.store.remove(key).unwrap_err();
    assert_eq!(error.code(), "E-IMAGE-IN-USE");
    // Passed on, as to a VM, the descriptor goes on protecting it.
    let passed_on = used.file().try_clone().unwrap();
    drop(used);
    assert_eq!(lab.store.remove(key).unwrap_err().code(), "E-IMAGE-IN-USE");
    fs::write(lab.root.join("f1"), "changed").unwrap();
    lab.prepare();
    assert_eq!(lab.count("images"), 2, "the old one is in use");
    drop(passed_on);
    lab.store.remove(key).unwrap();
    lab.store.remove(key).unwrap();
    assert_eq!(lab.count("images"), 1);
}

#[test]
fn a_copy_of_a_tar_has_the_same_image_and_an_unchanged_one_is_not_read() {
    let lab = Lab::new();
    let tar = lab.dir.path().join("tar");
    let copy = lab.dir.path().join("copy");
    fs::write(&tar, Tar::default().file("f", &[1; 5000]).end()).unwrap();
    fs::copy(&tar, &copy).unwrap();
    // Younger files are not remembered: they may change within one tick of the clock.
    std::thread::sleep(Duration::from_millis(100));
    let prepare = |path: &Path, progress: &mut dyn Progress| {
        lab.store.prepare(&Source::detect(path).unwrap(), progress).unwrap()
    };
    let first = prepare(&tar, &mut ());
    assert_eq!(prepare(&copy, &mut ()).path, first.path);
    let mut phases = Phases::default();
    assert!(prepare(&tar, &mut phases).cached);
    assert_eq!(phases.0, [], "it was read again");
    fs::write(&tar, Tar::default().file("g", &[1; 5000]).end()).unwrap();
    assert_ne!(prepare(&tar, &mut ()).path, first.path);
}

/// Collects phases.
#[derive(Default)]
struct Phases(Vec<Phase>);

impl Progress for Phases {
    fn begin(&mut self, phase: Phase, _: Option<u64>) {
        self.0.push(phase);
    }
}

/// Stops the work in a phase.
struct StopIn(Phase, bool);

impl Progress for StopIn {
    fn begin(&mut self, phase: Phase, _: Option<u64>) {
        self.1 = phase == self.0;
    }

    fn cancelled(&self) -> bool {
        self.1
    }
}

#[test]
fn cancelled_work_leaves_nothing() {
    for phase in [Phase::Scan, Phase::Copy] {
        let lab = Lab::new();
        let error = lab.try_prepare(&mut StopIn(phase, false)).unwrap_err();
        assert_eq!(error.code(), "E-IMAGE-CANCELLED");
        assert_eq!((lab.count("images"), lab.count("building")), (0, 0), "{phase:?}");
    }
}

#[test]
fn two_processes_make_one_image_between_them() {
    let lab = Lab::new();
    fs::write(lab.root.join("large"), vec![3; 30 << 20]).unwrap();
    let program = prepare_program();
    let spawn = || {
        Command::new(&program)
            .args([&lab.dir.path().join("store"), &lab.root])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let children: Vec<_> = (0..4).map(|_| spawn()).collect();
    let outputs: Vec<_> =
        children.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    let mut made = 0;
    for output in &outputs {
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}");
        assert_eq!(output.stdout, outputs[0].stdout);
        made += usize::from(text.contains("cached: false"));
    }
    assert_eq!(made, 1);
    assert_eq!((lab.count("images"), lab.count("building")), (1, 0));
    fsck(&lab.prepare().path);
}

#[test]
fn what_a_killed_process_left_is_cleaned_up_and_never_taken_for_an_image() {
    let lab = Lab::new();
    let key = lab.prepare().key.unwrap();
    let store = lab.dir.path().join("store");
    lab.store.remove(key).unwrap();
    for name in [key.hex(), "0".repeat(64)] {
        let left = store.join("building").join(name);
        fs::create_dir(&left).unwrap();
        fs::write(left.join("rootfs.erofs"), "half").unwrap();
    }
    let image = lab.prepare();
    assert!(!image.cached);
    fsck(&image.path);
    assert_eq!((lab.count("images"), lab.count("building")), (1, 0));
}

#[test]
fn a_killed_process_is_followed_by_one_that_succeeds() {
    let lab = Lab::new();
    let large = fs::File::create_new(lab.root.join("large")).unwrap();
    std::io::copy(&mut std::io::Read::take(std::io::repeat(7), 200 << 20), &mut { large }).unwrap();
    let building = lab.dir.path().join("store/building");
    let mut child = Command::new(prepare_program())
        .args([&lab.dir.path().join("store"), &lab.root])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // Until it has begun to write, or is done: both are fine for what follows.
    while fs::read_dir(&building).unwrap().count() == 0 && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    fsck(&lab.prepare().path);
    assert_eq!((lab.count("images"), lab.count("building")), (1, 0));
}

#[test]
fn a_damaged_image_is_made_anew() {
    let lab = Lab::new();
    let image = lab.prepare();
    let (path, size) = (image.path.clone(), image.size);
    drop(image);
    fs::File::options().write(true).open(&path).unwrap().set_len(size / 2).unwrap();
    let again = lab.prepare();
    assert!(!again.cached);
    assert_eq!(fs::metadata(&path).unwrap().len(), size);
    drop(again);
    fs::write(path.with_file_name("image.json"), "{").unwrap();
    assert!(!lab.prepare().cached);
    assert!(lab.prepare().cached);
}

#[test]
fn a_full_disk_is_an_error_and_leaves_nothing() {
    let lab = Lab::new();
    let disk = tempfile::tempdir().unwrap();
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", "size=512k", "none"]).arg(disk.path());
    assert!(mount.status().unwrap().success(), "mount needs root");
    let source = Source::detect(&lab.root).unwrap();
    let outcome = Store::open(disk.path().join("store"))
        .and_then(|store| store.prepare(&source, &mut ()).map(|image| image.size));
    let left = fs::read_dir(disk.path().join("store/building")).unwrap().count();
    let umount = Command::new("umount").arg("--lazy").arg(disk.path()).status();
    assert!(umount.unwrap().success());
    let error = outcome.unwrap_err();
    assert_eq!((error.code(), left), ("E-IMAGE-WRITE", 0), "{error:?}");
}

#[test]
fn the_store_is_for_its_owner_alone() {
    let lab = Lab::new();
    let image = lab.prepare();
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!(mode(&image.path), 0o600);
    assert_eq!(mode(&lab.dir.path().join("store/images")), 0o700);
}

#[test]
fn thousands_of_files_are_all_there_and_found_again_at_once() {
    let lab = Lab::new();
    for i in 0..4000_usize {
        let folder = lab.root.join(format!("d{}/e{}", i % 13, i % 170));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(format!("file-{i}")), vec![b'd'; i * 37 % 9000]).unwrap();
    }
    let started = std::time::Instant::now();
    let image = lab.prepare();
    let made = started.elapsed();
    let started = std::time::Instant::now();
    assert!(lab.prepare().cached);
    println!("{} bytes made in {made:?}, found again in {:?}", image.size, started.elapsed());
    let mount = common::Mount::new(&image.path);
    assert!(common::survey(mount.path()) == common::survey(&lab.root), "the trees differ");
}
