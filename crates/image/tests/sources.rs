//! Directories and tars, made images and compared through the kernel with what they were.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Mount, Tar, fsck, listing, prepare_program, survey};
use coracle_image::directory::DirectoryError;
use coracle_image::source::SourceError;
use coracle_image::{ImageError, Phase, Progress, Source, SourceKind, Store};
use proptest::prelude::*;
use rustix::fs::{Mode, XattrFlags, lsetxattr};

struct Lab {
    dir: tempfile::TempDir,
    store: Store,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store")).unwrap();
        Self { dir, store }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }

    fn prepare(&self, path: &Path) -> Result<coracle_image::Image, ImageError> {
        self.store.prepare(&Source::detect(path)?, &mut ())
    }
}

/// A directory with one of everything.
fn furnish(root: &Path) {
    fs::create_dir_all(root.join("usr/bin")).unwrap();
    fs::create_dir_all(root.join("empty")).unwrap();
    fs::write(root.join("usr/bin/tool"), vec![9; 70_000]).unwrap();
    fs::hard_link(root.join("usr/bin/tool"), root.join("usr/bin/a-tool")).unwrap();
    fs::set_permissions(root.join("usr/bin/tool"), fs::Permissions::from_mode(0o6755)).unwrap();
    fs::write(root.join("small"), "small").unwrap();
    fs::write(root.join("nothing"), "").unwrap();
    symlink("usr/bin", root.join("bin")).unwrap();
    symlink("/nowhere/at/all", root.join("dangling")).unwrap();
    std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
    let node = |name: &str, kind, device| {
        rustix::fs::mknodat(rustix::fs::CWD, root.join(name), kind, Mode::RUSR, device).unwrap();
    };
    node("fifo", rustix::fs::FileType::Fifo, 0);
    node("null", rustix::fs::FileType::CharacterDevice, rustix::fs::makedev(1, 3));
    node("disk", rustix::fs::FileType::BlockDevice, rustix::fs::makedev(8, 300));
    let capability = [1_u8, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let set = |name: &str, key: &str, value: &[u8]| {
        lsetxattr(root.join(name), key, value, XattrFlags::empty()).unwrap();
    };
    set("usr/bin/tool", "security.capability", &capability);
    set("small", "user.note", b"kept");
    set("empty", "trusted.note", b"");
    std::os::unix::fs::lchown(root.join("small"), Some(1234), Some(2_000_000)).unwrap();
    std::os::unix::fs::lchown(root.join("dangling"), Some(5), Some(6)).unwrap();
    let holes = fs::File::create_new(root.join("holes")).unwrap();
    holes.set_len(10 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&holes, b"in the middle", 5 << 20).unwrap();
}

#[test]
fn a_directory_becomes_an_image_with_every_attribute_the_same() {
    let lab = Lab::new();
    let root = lab.path("root");
    furnish(&root);
    let before = survey(&root);
    let image = lab.prepare(&root).unwrap();
    assert!(!image.cached);
    assert_eq!(image.size % (2 << 20), 0);
    fsck(&image.path);
    let mount = Mount::new(&image.path);
    assert_eq!(survey(mount.path()), before);
    assert_eq!(survey(&root), before, "the source is as it was");
}

#[test]
fn a_symlink_to_a_directory_is_a_source_too() {
    let lab = Lab::new();
    fs::create_dir(lab.path("root")).unwrap();
    fs::write(lab.path("root/f"), "x").unwrap();
    symlink("root", lab.path("link")).unwrap();
    let image = lab.prepare(&lab.path("link")).unwrap();
    assert!(Mount::new(&image.path).path().join("f").exists());
}

#[test]
fn what_is_mounted_below_a_directory_is_left_out() {
    let lab = Lab::new();
    let root = lab.path("root");
    fs::create_dir_all(root.join("mnt")).unwrap();
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "none"]).arg(root.join("mnt")).status();
    assert!(mounted.unwrap().success(), "mount needs root");
    fs::write(root.join("mnt/inside"), "x").unwrap();
    let image = lab.prepare(&root);
    assert!(Command::new("umount").arg(root.join("mnt")).status().unwrap().success());
    let mount = Mount::new(&image.unwrap().path);
    assert_eq!(fs::read_dir(mount.path().join("mnt")).unwrap().count(), 0);
}

/// Changes a file as soon as copying begins.
struct Meddler(PathBuf);

impl Progress for Meddler {
    fn begin(&mut self, phase: Phase, _: Option<u64>) {
        if phase == Phase::Copy {
            fs::write(&self.0, "something of another size").unwrap();
        }
    }
}

#[test]
fn a_file_that_changes_while_it_is_read_is_named() {
    let lab = Lab::new();
    let root = lab.path("root");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("victim"), "before").unwrap();
    let source = Source::detect(&root).unwrap();
    let outcome = lab.store.prepare(&source, &mut Meddler(root.join("victim")));
    let Err(ImageError::Directory(DirectoryError::Changed { path })) = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(path, root.join("victim"));
    assert_eq!(fs::read_dir(lab.path("store/building")).unwrap().count(), 0);
}

#[test]
fn no_root_is_needed_and_an_unreadable_file_is_named() {
    // The whole lab belongs to nobody, who runs the program.
    let lab = Lab::new();
    let program = lab.path("prepare");
    fs::copy(prepare_program(), &program).unwrap();
    fs::set_permissions(lab.dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let root = lab.path("root");
    furnish(&root);
    let run = || {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        command.arg(&program).arg(lab.path("own-store")).arg(&root).output().unwrap()
    };
    let output = run();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    let image = String::from_utf8(output.stdout).unwrap();
    let mount = Mount::new(Path::new(image.trim_end()));
    let (mut seen, mut source) = (survey(mount.path()), survey(&root));
    // Only root sees trusted attributes.
    seen.values_mut().chain(source.values_mut()).for_each(|seen| {
        seen.xattrs.retain(|name, _| !name.starts_with("trusted."));
    });
    assert_eq!(seen, source);

    fs::set_permissions(root.join("nothing"), fs::Permissions::from_mode(0o000)).unwrap();
    let output = run();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(text.contains("E-IMAGE-DIRECTORY") && text.contains("root/nothing"), "{text}");
}

#[test]
fn the_same_tree_gives_the_same_bytes_wherever_it_is() {
    let lab = Lab::new();
    let make = |name: &str| {
        let root = lab.path(name);
        furnish(&root);
        let mut touch = Command::new("find");
        touch.arg(&root).args(["-exec", "touch", "-h", "-d", "@1", "{}", "+"]);
        assert!(touch.status().unwrap().success());
        fs::read(&lab.prepare(&root).unwrap().path).unwrap()
    };
    assert!(make("one") == make("two"), "the images differ");
    let tar = Tar::default().dir("d").file("d/f", &[1; 9000]).symlink("s", "d/f").end();
    let one = lab.prepare(&lab.write("one.tar", &tar)).unwrap();
    let other = Lab::new();
    let two = other.prepare(&other.write("two.tar", &tar)).unwrap();
    assert_eq!(one.digest, two.digest);
    assert!(fs::read(&one.path).unwrap() == fs::read(&two.path).unwrap(), "the images differ");
}

#[test]
fn a_tar_is_recognised_by_its_bytes_and_gives_the_same_tree_however_it_is_written() {
    let lab = Lab::new();
    let root = lab.path("root");
    furnish(&root);
    // A tar has no place for a socket.
    fs::remove_file(root.join("socket")).unwrap();
    let mut expected = survey(&root);
    for (format, arguments) in [
        ("gnu", vec!["--format=gnu", "--sparse"]),
        ("pax", vec!["--format=pax", "--xattrs", "--xattrs-include=*"]),
        ("pax-sparse-0.0", vec!["--format=pax", "--sparse", "--sparse-version=0.0"]),
        ("pax-sparse-0.1", vec!["--format=pax", "--sparse", "--sparse-version=0.1"]),
        ("pax-sparse-1.0", vec!["--format=pax", "--sparse", "--sparse-version=1.0"]),
        ("gzip", vec!["--gzip"]),
        ("zstd", vec!["--zstd"]),
    ] {
        let tar = lab.path(format);
        let output = Command::new("tar")
            .args(&arguments)
            .arg("-cf")
            .args([&tar, Path::new("-C"), &root, Path::new(".")])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let source = Source::detect(&tar).unwrap();
        assert_eq!(source.kind(), SourceKind::Tar, "{format}");
        let image = lab.store.prepare(&source, &mut ()).unwrap();
        fsck(&image.path);
        let mount = Mount::new(&image.path);
        let mut seen = survey(mount.path());
        let keeps_xattrs = format == "pax";
        let keeps_nanoseconds = format.starts_with("pax");
        for (path, expected) in &mut expected {
            let seen = seen.get_mut(path).unwrap();
            let mut wanted = expected.clone();
            if !keeps_xattrs {
                wanted.xattrs.clear();
            }
            if !keeps_nanoseconds {
                wanted.mtime.1 = 0;
                seen.mtime.1 = 0;
            }
            assert_eq!(*seen, wanted, "{format}: {path:?}");
        }
        assert_eq!(seen.len(), expected.len());
    }
}

#[test]
fn a_hostile_tar_is_refused_or_stays_within_the_image() {
    let lab = Lab::new();
    let outside = lab.write("outside", b"untouched");
    let deep = outside.to_str().unwrap();
    let before = listing(lab.dir.path());
    let evil: Vec<(&str, Tar, &str)> = vec![
        ("up", Tar::default().file("../../outside", b"evil"), "E-IMAGE-PATH"),
        ("link", Tar::default().entry(b'1', "l", deep, b""), "E-IMAGE-LINK-TARGET"),
        ("loop", Tar::default().symlink("a", "a").file("a/b", b""), "E-IMAGE-SYMLINK-LOOP"),
        ("root", Tar::default().symlink("/", "/etc"), "E-IMAGE-ROOT"),
        ("type", Tar::default().file("f", b"").file("f/x", b""), "E-IMAGE-NOT-A-DIRECTORY"),
        ("kind", Tar::default().entry(b'Z', "odd", "", b""), "E-IMAGE-TAR-KIND"),
    ];
    for (name, tar, code) in evil {
        let path = lab.write("evil", &tar.end());
        let error = lab.prepare(&path).unwrap_err();
        assert_eq!(error.code(), code, "{name}: {error:?}");
        assert!(!error.help().is_empty());
        fs::remove_file(&path).unwrap();
        assert_eq!(listing(lab.dir.path()), before, "{name}: something is left");
    }
    let tar = Tar::default().symlink("d", "/").file("d/../etc/x", b"").end();
    assert_eq!(lab.prepare(&lab.write("evil", &tar)).unwrap_err().code(), "E-IMAGE-PATH");
    let tar = Tar::default().symlink("d", lab.dir.path().to_str().unwrap());
    let tar = tar.file("d/outside", b"evil").file("/abs/file", b"confined").end();
    let image = lab.prepare(&lab.write("tame", &tar)).unwrap();
    assert_eq!(fs::read(&outside).unwrap(), b"untouched");
    let mount = Mount::new(&image.path);
    assert_eq!(fs::read(mount.path().join("abs/file")).unwrap(), b"confined");
    let inside = mount.path().join(outside.strip_prefix("/").unwrap());
    assert_eq!(fs::read(inside).unwrap(), b"evil");
}

#[test]
fn a_sparse_file_of_absurd_size_is_refused_without_any_of_it_being_written() {
    let lab = Lab::new();
    for size in [u64::MAX, u64::MAX / 2, 17 << 40] {
        let records = format!("26 GNU.sparse.map=0,4,8,0\nXX GNU.sparse.size={size}\n");
        let records = records.replace("XX", &(records.len() - 26).to_string());
        let tar = Tar::default().entry(b'x', "pax", "", records.as_bytes()).file("f", b"data");
        let error = lab.prepare(&lab.write("tar", &tar.end())).unwrap_err();
        assert_eq!(error.code(), "E-IMAGE-TOO-LARGE", "{size}: {error:?}");
    }
}

#[test]
fn a_tar_cut_short_is_told_from_a_whole_one() {
    let lab = Lab::new();
    let tar = Tar::default().file("f", &(0..=255).cycle().take(90_000).collect::<Vec<u8>>()).end();
    let plain = lab.write("plain", &tar[..50_000]);
    let whole = lab.write("whole", &tar);
    for (name, program) in [("gz", "gzip"), ("zst", "zstd")] {
        let output = Command::new(program).args(["-c", "-q"]).arg(&whole).output().unwrap();
        let cut = lab.write(name, &output.stdout[..output.stdout.len() - 9]);
        let error = lab.prepare(&cut).unwrap_err();
        assert_eq!(error.code(), "E-IMAGE-TRUNCATED", "{name}: {error:?}");
    }
    let error = lab.prepare(&plain).unwrap_err();
    assert_eq!(error.code(), "E-IMAGE-TRUNCATED", "{error:?}");
    assert!(error.to_string().contains("plain"), "{error}");
    let source = std::error::Error::source(&error).unwrap();
    assert!(source.to_string().contains("within \"f\""), "{source}");
}

#[test]
fn what_is_no_root_file_system_is_said_to_be_none() {
    let lab = Lab::new();
    let missing = Source::detect(&lab.path("missing"));
    assert!(matches!(missing, Err(SourceError::Missing { .. })), "{missing:?}");
    for (name, bytes) in [
        ("empty", b"".to_vec()),
        ("text", b"hello".repeat(1000)),
        ("short", b"hello".to_vec()),
        ("xz", b"\xfd7zXZ\0\0\0\0\0".to_vec()),
        ("zeros", vec![0; 100]),
    ] {
        let outcome = Source::detect(&lab.write(name, &bytes));
        assert!(matches!(outcome, Err(SourceError::Unknown { .. })), "{name}: {outcome:?}");
    }
    assert!(matches!(Source::detect(Path::new("/dev/null")), Err(SourceError::Unknown { .. })));
}

#[test]
fn an_erofs_image_is_used_as_it_is() {
    let lab = Lab::new();
    let tar = lab.write("tar", &Tar::default().file("f", b"x").end());
    let made = lab.prepare(&tar).unwrap();
    let copy = lab.path("copy");
    fs::copy(&made.path, &copy).unwrap();
    let image = lab.prepare(&copy).unwrap();
    assert_eq!((image.path, image.cached, image.key), (copy, true, None));
    let broken = lab.store.prepare(&Source::prepared(&tar), &mut ());
    assert_eq!(broken.unwrap_err().code(), "E-IMAGE-KIND");
    let missing = lab.store.prepare(&Source::prepared("/nowhere"), &mut ());
    assert_eq!(missing.unwrap_err().code(), "E-IMAGE-MISSING");
}

/// What to do in a random tree: a path of few names and what to put there.
#[derive(Debug, Clone)]
enum Action {
    Dir,
    File(usize),
    Sparse(u32),
    Symlink(String),
    Link(usize),
    Fifo,
    Attribute(usize),
    Mode(u32),
}

fn any_action() -> impl Strategy<Value = Action> {
    prop_oneof![
        3 => Just(Action::Dir),
        4 => prop_oneof![0_usize..5000, 60_000_usize..300_000].prop_map(Action::File),
        1 => (0_u32..400_000).prop_map(Action::Sparse),
        1 => "[a-z/]{1,300}".prop_map(Action::Symlink),
        1 => (0_usize..8).prop_map(Action::Link),
        1 => Just(Action::Fifo),
        2 => (0_usize..3000).prop_map(Action::Attribute),
        1 => (0_u32..0o10000).prop_map(Action::Mode),
    ]
}

fn any_name() -> impl Strategy<Value = String> {
    prop_oneof![4 => "[a-c!~]", 1 => "[a-z]{1,255}", 1 => "[\u{e0}-\u{ff}]{1,20}"]
}

/// Does as much of it as the file system allows.
fn act(root: &Path, actions: &[(Vec<String>, Action)]) {
    let paths: Vec<PathBuf> =
        actions.iter().map(|(names, _)| root.join(names.iter().collect::<PathBuf>())).collect();
    for (path, (_, action)) in std::iter::zip(&paths, actions) {
        let _ = fs::create_dir_all(path.parent().unwrap());
        let _: Result<(), std::io::Error> = match action {
            Action::Dir => fs::create_dir(path),
            // Only a new file: writing to a pipe would wait for its reader.
            Action::File(len) => fs::File::create_new(path).and_then(|file| {
                std::os::unix::fs::FileExt::write_all_at(&file, &vec![b'f'; *len], 0)
            }),
            Action::Sparse(at) => fs::File::create_new(path).and_then(|file| {
                std::os::unix::fs::FileExt::write_all_at(&file, b"data", u64::from(*at))
            }),
            Action::Symlink(target) => symlink(target, path),
            // A tar keeps hard links between regular files only.
            Action::Link(other) if !paths[other % paths.len()].is_file() => Ok(()),
            Action::Link(other) => fs::hard_link(&paths[other % paths.len()], path),
            Action::Fifo => rustix::fs::mkfifoat(rustix::fs::CWD, path, Mode::RUSR)
                .map_err(std::io::Error::from),
            Action::Attribute(len) => {
                lsetxattr(path, "user.random", &vec![b'v'; *len], XattrFlags::empty())
                    .map_err(std::io::Error::from)
            }
            Action::Mode(mode) => {
                let is_link = path.is_symlink();
                if is_link {
                    Ok(())
                } else {
                    fs::set_permissions(path, fs::Permissions::from_mode(*mode))
                }
            }
        };
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_directory_and_its_tar_are_read_back_the_same(
        actions in prop::collection::vec(
            (prop::collection::vec(any_name(), 1..4), any_action()), 0..40),
    ) {
        let lab = Lab::new();
        let root = lab.path("root");
        fs::create_dir(&root).unwrap();
        act(&root, &actions);
        let expected = survey(&root);
        let image = lab.prepare(&root).unwrap();
        fsck(&image.path);
        prop_assert_eq!(&survey(Mount::new(&image.path).path()), &expected, "from the directory");

        let output = Command::new("tar")
            .args(["--format=pax", "--xattrs", "--sparse", "-cf"])
            .args([&lab.path("tar"), Path::new("-C"), &root, Path::new(".")])
            .output()
            .unwrap();
        prop_assert!(output.status.success());
        let image = lab.prepare(&lab.path("tar")).unwrap();
        prop_assert_eq!(&survey(Mount::new(&image.path).path()), &expected, "from the tar");
    }
}
