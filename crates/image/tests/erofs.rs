//! Images written from trees in memory, read back by the kernel and by fsck.erofs.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, File};
use std::io::Cursor;
use std::path::Path;

use common::{Mount, fsck, survey};
use coracle_image::erofs::{
    Builder, DeviceNumber, Kind, Metadata, Name, Node, Timestamp, Tree, Writer,
};

fn create(dir: &Path) -> (std::path::PathBuf, File) {
    let path = dir.join("image.erofs");
    let file = File::create_new(&path).unwrap();
    (path, file)
}

#[test]
fn every_kind_of_file_is_read_back_as_it_was_put_in() {
    let dir = tempfile::tempdir().unwrap();
    let (path, file) = create(dir.path());
    let mut image = Builder::new(file);
    image.file("/bin/tool", 0o4755, &mut Cursor::new(vec![7; 10_000])).unwrap();
    image.file("/empty", 0o600, &mut Cursor::new(vec![])).unwrap();
    image.file("/exact", 0o600, &mut Cursor::new(vec![1; 8192])).unwrap();
    image.symlink("/bin/sh", "tool").unwrap();
    image.symlink("/long", &"x/".repeat(2040)).unwrap();
    image.hard_link("/bin/again", "/bin/tool").unwrap();
    image.char_device("/dev/null", 0o666, 1, 3).unwrap();
    image.directory("/tmp", 0o1777).unwrap();
    let big = DeviceNumber { major: 4095, minor: 1_048_575 };
    for (name, kind) in
        [("/dev/b", Kind::BlockDevice(big)), ("/fifo", Kind::Fifo), ("/sock", Kind::Socket)]
    {
        let metadata = Metadata {
            mode: 0o640,
            uid: 70_000,
            gid: 4_000_000_000,
            mtime: Timestamp { seconds: -5, nanoseconds: 999_999_999 },
            ..Metadata::default()
        };
        image.node(name, Node::new(metadata, kind)).unwrap();
    }
    image.finish().unwrap();

    fsck(&path);
    let mount = Mount::new(&path);
    let seen = survey(mount.path());
    assert_eq!(fs::read(mount.path().join("bin/tool")).unwrap(), vec![7; 10_000]);
    assert_eq!(seen[Path::new("bin/tool")].mode, 0o4755);
    assert_eq!(seen[Path::new("bin/tool")].links, 2);
    assert_eq!(seen[Path::new("bin/tool")].same_as, Some("bin/again".into()));
    assert_eq!(seen[Path::new("bin/sh")].kind, "-> tool");
    assert_eq!(seen[Path::new("long")].kind, format!("-> {}", "x/".repeat(2040)));
    assert_eq!(seen[Path::new("dev/null")].kind, "c 1:3");
    assert_eq!(seen[Path::new("dev/b")].kind, "b 4095:1048575");
    assert_eq!(seen[Path::new("fifo")].owner, (70_000, 4_000_000_000));
    assert_eq!(seen[Path::new("fifo")].mtime, (-5, 999_999_999));
    assert_eq!(seen[Path::new("sock")].kind, "socket");
    assert_eq!(seen[Path::new("tmp")].mode, 0o1777);
    assert_eq!(seen[Path::new("")].mode, 0o755);
}

#[test]
fn a_directory_of_many_blocks_finds_every_name() {
    let dir = tempfile::tempdir().unwrap();
    let (path, file) = create(dir.path());
    let mut image = Builder::new(file);
    // Names before and after `.` in byte order, so that the dots are not always first.
    let names: Vec<String> = (0..5000)
        .map(|i| format!("{}{i}{}", ["!", "-", "a", "z"][i % 4], "n".repeat(i % 200)))
        .collect();
    for name in &names {
        image.file(&format!("/d/{name}"), 0o644, &mut name.as_bytes()).unwrap();
    }
    image.finish().unwrap();
    fsck(&path);
    let mount = Mount::new(&path);
    for name in &names {
        assert_eq!(fs::read_to_string(mount.path().join("d").join(name)).unwrap(), *name);
    }
    assert_eq!(fs::read_dir(mount.path().join("d")).unwrap().count(), names.len());
}

#[test]
fn extended_attributes_of_every_size_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (path, file) = create(dir.path());
    let mut writer = Writer::new(file);
    let mut tree = Tree::new(Metadata::with_mode(0o755));
    for (i, len) in [0_usize, 1, 3, 4, 100, 3900, 4000, 5000, 65_535].into_iter().enumerate() {
        let mut metadata = Metadata::with_mode(0o644);
        metadata.xattrs.insert(b"user.test".as_slice().into(), vec![b'v'; len].into());
        metadata.xattrs.insert(b"trusted.t".as_slice().into(), b"x".as_slice().into());
        metadata.xattrs.insert(
            b"security.capability".as_slice().into(),
            [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].as_slice().into(),
        );
        let mut content = writer.file();
        content.write(&vec![b'c'; 900 + i]).unwrap();
        let content = content.finish().unwrap();
        let name = |prefix: &str| Name::new(format!("{prefix}{i}").as_bytes()).unwrap();
        let node = Node::new(metadata.clone(), Kind::File(content));
        tree.add(Tree::ROOT, name("file"), node).unwrap();
        let node = Node::new(metadata.clone(), Kind::empty_directory());
        tree.add(Tree::ROOT, name("dir"), node).unwrap();
        metadata.xattrs.remove(b"user.test".as_slice());
        metadata.xattrs.insert(b"trusted.long".as_slice().into(), vec![b'w'; len].into());
        let node = Node::new(metadata, Kind::Symlink(b"target".as_slice().into()));
        tree.add(Tree::ROOT, name("link"), node).unwrap();
    }
    writer.finish(&tree).unwrap();
    fsck(&path);
    let mount = Mount::new(&path);
    let seen = survey(mount.path());
    for (i, len) in [0_usize, 1, 3, 4, 100, 3900, 4000, 5000, 65_535].into_iter().enumerate() {
        for (prefix, attribute) in
            [("file", "user.test"), ("dir", "user.test"), ("link", "trusted.long")]
        {
            let one = &seen[Path::new(&format!("{prefix}{i}"))];
            assert_eq!(one.xattrs[attribute].0.len(), len, "{prefix}{i}");
            assert_eq!(one.xattrs["trusted.t"].0, b"x");
            assert_eq!(one.xattrs["security.capability"].0.len(), 20);
        }
        assert_eq!(seen[Path::new(&format!("link{i}"))].kind, "-> target");
        let content = fs::read(mount.path().join(format!("file{i}"))).unwrap();
        assert_eq!(content, vec![b'c'; 900 + i]);
    }
}

#[test]
fn sizes_around_every_boundary_are_kept_with_and_without_attributes() {
    let dir = tempfile::tempdir().unwrap();
    let (path, file) = create(dir.path());
    let mut writer = Writer::new(file);
    let mut tree = Tree::new(Metadata::with_mode(0o755));
    let sizes = [0_usize, 1, 2047, 2048, 2049, 4031, 4032, 4033, 4095, 4096, 4097, 6144, 6145];
    let each = || sizes.iter().flat_map(|size| [0, 100, 1984, 3900].map(|xattr| (*size, xattr)));
    let bytes = |size: usize| (0..=250_u8).cycle().take(size).collect::<Vec<u8>>();
    for (size, xattr) in each() {
        let mut metadata = Metadata::with_mode(0o644);
        if xattr > 0 {
            metadata.xattrs.insert(b"trusted.x".as_slice().into(), vec![b'v'; xattr].into());
        }
        let mut content = writer.file();
        content.write(&bytes(size)).unwrap();
        let node = Node::new(metadata.clone(), Kind::File(content.finish().unwrap()));
        let name = |kind| Name::new(format!("{kind}-{size}-{xattr}").as_bytes()).unwrap();
        tree.add(Tree::ROOT, name("file"), node).unwrap();
        if (1..=4095).contains(&size) {
            let node = Node::new(metadata, Kind::Symlink(vec![b't'; size].into()));
            tree.add(Tree::ROOT, name("link"), node).unwrap();
        }
    }
    writer.finish(&tree).unwrap();
    fsck(&path);
    let mount = Mount::new(&path);
    let seen = survey(mount.path());
    for (size, xattr) in each() {
        let name = format!("file-{size}-{xattr}");
        assert_eq!(fs::read(mount.path().join(&name)).unwrap(), bytes(size), "{name}");
        let found = seen[Path::new(&name)].xattrs.get("trusted.x").map_or(0, |x| x.0.len());
        assert_eq!(found, xattr, "{name}");
        if let Some(link) = seen.get(Path::new(&format!("link-{size}-{xattr}"))) {
            assert_eq!(link.kind.len(), "-> ".len() + size, "link of {name}");
        }
    }
}

#[test]
fn a_file_larger_than_4_gib_is_a_hole_with_an_end() {
    let dir = tempfile::tempdir().unwrap();
    let (path, file) = create(dir.path());
    let mut writer = Writer::new(file);
    let mut tree = Tree::new(Metadata::with_mode(0o755));
    let mut content = writer.file();
    content.write(b"start").unwrap();
    content.skip((5 << 30) + 100).unwrap();
    content.write(b"end").unwrap();
    let content = content.finish().unwrap();
    let size = content.size();
    let node = Node::new(Metadata::with_mode(0o644), Kind::File(content));
    tree.add(Tree::ROOT, Name::new(b"big").unwrap(), node).unwrap();
    writer.finish(&tree).unwrap();

    let mount = Mount::new(&path);
    let file = File::open(mount.path().join("big")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), size);
    let mut end = [0; 7];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut end, size - 7).unwrap();
    assert_eq!(&end, b"\0\0\0\0end");
    let blocks = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&path).unwrap());
    assert!(blocks < 1000, "the hole takes space on the host: {blocks} blocks");
}

#[test]
fn discarded_content_leaves_no_byte_in_the_image() {
    let dir = tempfile::tempdir().unwrap();
    let (path, file) = create(dir.path());
    let mut writer = Writer::new(file);
    let mut tree = Tree::new(Metadata::with_mode(0o755));
    let mut write = |bytes: &[u8]| {
        let mut content = writer.file();
        content.write(bytes).unwrap();
        content.finish().unwrap()
    };
    let secret = write(&b"secret! ".repeat(3000));
    let kept = write(&b"kept it ".repeat(3000));
    writer.discard(&secret).unwrap();
    let node = Node::new(Metadata::with_mode(0o644), Kind::File(kept));
    tree.add(Tree::ROOT, Name::new(b"kept").unwrap(), node).unwrap();
    writer.finish(&tree).unwrap();
    let bytes = fs::read(&path).unwrap();
    assert!(!bytes.windows(7).any(|window| window == b"secret!"));
    fsck(&path);
    let mount = Mount::new(&path);
    assert_eq!(fs::read(mount.path().join("kept")).unwrap(), b"kept it ".repeat(3000));
}

#[test]
fn a_tree_that_is_changed_keeps_only_what_has_a_name() {
    let mut tree = Tree::new(Metadata::default());
    let name = |name: &str| Name::new(name.as_bytes()).unwrap();
    let file = Node::new(Metadata::default(), Kind::File(coracle_image::erofs::Content::empty()));
    let dir = tree
        .add(Tree::ROOT, name("d"), Node::new(Metadata::default(), Kind::empty_directory()))
        .unwrap();
    let id = tree.add(dir, name("f"), file).unwrap();
    tree.link(Tree::ROOT, name("g"), id).unwrap();
    assert!(tree.unlink(Tree::ROOT, &name("d")).is_empty(), "g still names the file");
    assert_eq!(tree.unlink(Tree::ROOT, &name("g")).len(), 1);
    assert_eq!(tree.children(Tree::ROOT).count(), 0);
    assert!(tree.unlink(Tree::ROOT, &name("g")).is_empty());
}
