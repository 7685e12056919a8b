//! OCI layouts and archives: the right image, its layers laid over each other, nothing damaged.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Mount, Tar, fsck, listing};
use coracle_image::{Digest, Image, ImageError, Source, SourceKind, Store};
use serde_json::{Value, json};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

/// A layout on disk, and a store beside it.
struct Lab {
    dir: tempfile::TempDir,
    store: Store,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("layout/blobs/sha256")).unwrap();
        fs::write(dir.path().join("layout/oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)
            .unwrap();
        let store = Store::open(dir.path().join("store")).unwrap();
        Self { dir, store }
    }

    fn layout(&self) -> PathBuf {
        self.dir.path().join("layout")
    }

    fn blob_path(&self, digest: &str) -> PathBuf {
        self.layout().join(digest.replace("sha256:", "blobs/sha256/"))
    }

    /// Writes a blob, and gives its descriptor.
    fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes).to_string();
        fs::write(self.blob_path(&digest), bytes).unwrap();
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    fn json(&self, media_type: &str, document: &Value) -> Value {
        self.blob(media_type, document.to_string().as_bytes())
    }

    fn image(&self, layers: &[Value]) -> Value {
        self.image_for("amd64", layers)
    }

    fn image_for(&self, architecture: &str, layers: &[Value]) -> Value {
        let config = json!({
            "architecture": architecture, "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": []},
            "config": {
                "Env": ["PATH=/bin", "A=b c"], "Entrypoint": ["/bin/entry"], "Cmd": ["-x"],
                "WorkingDir": "/work", "User": "1000:100", "StopSignal": "SIGINT",
            },
        });
        let config = self.json("application/vnd.oci.image.config.v1+json", &config);
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers,
        });
        let mut descriptor = self.json(MANIFEST, &manifest);
        descriptor["platform"] = json!({"architecture": architecture, "os": "linux"});
        descriptor
    }

    fn index(&self, manifests: &[Value]) {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        fs::write(self.layout().join("index.json"), index.to_string()).unwrap();
    }

    fn prepare(&self, path: &Path) -> Result<Image, ImageError> {
        self.store.prepare(&Source::detect(path)?, &mut ())
    }

    /// The paths of an image made of these tars.
    fn layered(&self, tars: Vec<Tar>) -> Vec<String> {
        let layers: Vec<_> = tars.into_iter().map(|tar| self.blob(TAR, &tar.end())).collect();
        self.index(&[self.image(&layers)]);
        let image = self.prepare(&self.layout()).unwrap();
        fsck(&image.path);
        listing(Mount::new(&image.path).path())[1..]
            .iter()
            .map(|line| line.split('"').nth(1).unwrap().to_owned())
            .collect()
    }
}

fn named(mut descriptor: Value, name: &str) -> Value {
    descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    descriptor
}

fn compressed(program: &str, bytes: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .arg("-cq")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let bytes = bytes.to_vec();
    let writer = std::thread::spawn(move || input.write_all(&bytes).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output.stdout
}

#[test]
fn an_image_of_all_compressions_is_laid_together_and_says_how_to_run_it() {
    let lab = Lab::new();
    let tar = |name: &str| Tar::default().file(name, name.as_bytes()).end();
    let layers = [
        lab.blob(TAR, &tar("plain")),
        lab.blob(&format!("{TAR}+gzip"), &compressed("gzip", &tar("gzip"))),
        lab.blob(&format!("{TAR}+zstd"), &compressed("zstd", &tar("zstd"))),
        lab.blob(
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            &compressed("gzip", &tar("docker")),
        ),
    ];
    let manifest = lab.image(&layers);
    lab.index(std::slice::from_ref(&manifest));
    let source = Source::detect(&lab.layout()).unwrap();
    assert_eq!(source.kind(), SourceKind::OciLayout);
    let image = lab.store.prepare(&source, &mut ()).unwrap();
    assert_eq!(image.digest.to_string(), manifest["digest"]);
    let mount = Mount::new(&image.path);
    for name in ["plain", "gzip", "zstd", "docker"] {
        assert_eq!(fs::read_to_string(mount.path().join(name)).unwrap(), name);
    }
    let config = image.config;
    assert_eq!(config.env, ["PATH=/bin", "A=b c"]);
    assert_eq!(config.entrypoint, ["/bin/entry"]);
    assert_eq!(config.cmd, ["-x"]);
    assert_eq!(config.workdir.as_deref(), Some("/work"));
    assert_eq!(config.user.as_deref(), Some("1000:100"));
    assert_eq!(config.stop_signal.as_deref(), Some("SIGINT"));
}

#[test]
fn whiteouts_hide_lower_layers_and_nothing_of_them_stays_in_the_image() {
    let base = || {
        Tar::default()
            .dir("etc")
            .file("etc/secret", &b"password".repeat(2000))
            .file("etc/kept", b"kept")
            .dir("var/cache")
            .file("var/cache/old", b"old")
    };
    let lab = Lab::new();
    let paths = lab.layered(vec![
        base(),
        Tar::default().file("etc/.wh.secret", b"").dir("var/cache").file("var/cache/new", b"new"),
        // The marker stands behind what its own layer has.
        Tar::default().file("var/cache/newest", b"x").file("var/cache/.wh..wh..opq", b""),
    ]);
    assert_eq!(paths, ["etc", "etc/kept", "var", "var/cache", "var/cache/newest"]);
    let image = lab.prepare(&lab.layout()).unwrap();
    let bytes = fs::read(&image.path).unwrap();
    assert!(!bytes.windows(8).any(|window| window == b"password"), "the secret is still there");
}

#[test]
fn higher_layers_change_kinds_and_go_through_lower_symlinks() {
    let lab = Lab::new();
    let paths = lab.layered(vec![
        Tar::default().dir("usr/lib").symlink("lib", "usr/lib").file("f", b"").dir("d"),
        Tar::default().file("lib/new.so", b"x").dir("f").file("f/in", b"").symlink("d", "f"),
        Tar::default().file("d/through", b"").entry(b'1', "hard", "usr/lib/new.so", b""),
    ]);
    let expected =
        ["d", "f", "f/in", "f/through", "hard", "lib", "usr", "usr/lib", "usr/lib/new.so"];
    assert_eq!(paths, expected);
}

#[test]
fn a_layer_with_a_wrong_digest_is_named_and_leaves_nothing() {
    let lab = Lab::new();
    let good = lab.blob(TAR, &Tar::default().file("good", b"good").end());
    let bad = lab.blob(TAR, &Tar::default().file("bad", b"bad").end());
    lab.index(&[lab.image(&[good, bad.clone()])]);
    let path = lab.blob_path(bad["digest"].as_str().unwrap());
    let mut bytes = fs::read(&path).unwrap();
    // In the data, where no tar reader would notice; then in a header.
    for at in [512, 0] {
        bytes[at] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let error = lab.prepare(&lab.layout()).unwrap_err();
        assert_eq!(error.code(), "E-IMAGE-DIGEST", "{error:?}");
        let text = error.to_string();
        assert!(text.contains("layer 2 of 2"), "{text}");
        assert!(text.contains(&bad["digest"].as_str().unwrap()[7..]), "{text}");
        for folder in ["store/images", "store/building"] {
            assert_eq!(fs::read_dir(lab.dir.path().join(folder)).unwrap().count(), 0);
        }
    }
}

#[test]
fn a_truncated_layer_is_named() {
    let lab = Lab::new();
    let layer = lab.blob(TAR, &compressed("gzip", &Tar::default().file("f", b"x").end()));
    lab.index(&[lab.image(std::slice::from_ref(&layer))]);
    let path = lab.blob_path(layer["digest"].as_str().unwrap());
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let error = lab.prepare(&lab.layout()).unwrap_err();
    assert_eq!(error.code(), "E-IMAGE-SIZE", "{error:?}");
    assert!(error.to_string().contains("layer 1 of 1 (blobs/sha256/"), "{error}");
    fs::remove_file(&path).unwrap();
    assert_eq!(lab.prepare(&lab.layout()).unwrap_err().code(), "E-IMAGE-BLOB");
}

#[test]
fn damaged_documents_are_named() {
    let lab = Lab::new();
    let manifest = lab.image(&[]);
    lab.index(std::slice::from_ref(&manifest));
    let path = lab.blob_path(manifest["digest"].as_str().unwrap());
    let text = fs::read(&path).unwrap();
    fs::write(&path, text.to_ascii_uppercase()).unwrap();
    assert_eq!(lab.prepare(&lab.layout()).unwrap_err().code(), "E-IMAGE-DIGEST");
    fs::write(&path, b"{}").unwrap();
    assert_eq!(lab.prepare(&lab.layout()).unwrap_err().code(), "E-IMAGE-SIZE");
    fs::write(lab.layout().join("index.json"), b"{").unwrap();
    let error = lab.prepare(&lab.layout()).unwrap_err();
    assert_eq!(error.code(), "E-IMAGE-DOCUMENT");
    assert!(error.to_string().contains("index.json"), "{error}");
    let evil = json!({"mediaType": MANIFEST, "digest": "sha256:../../../etc/passwd", "size": 1});
    lab.index(&[evil]);
    let code = lab.prepare(&lab.layout()).unwrap_err().code();
    assert!(["E-IMAGE-ALGORITHM", "E-IMAGE-DOCUMENT"].contains(&code), "{code}");
}

#[test]
fn images_are_found_by_name_and_by_platform() {
    let lab = Lab::new();
    let layer = |name: &str| lab.blob(TAR, &Tar::default().file(name, b"").end());
    let one = lab.image(&[layer("one")]);
    let two = lab.image(&[layer("two")]);
    let arm = lab.image_for("arm64", &[layer("arm")]);
    let has = |reference: &str, file: &str| {
        let source = Source::detect(&lab.layout()).unwrap().with_reference(reference);
        let image = lab.store.prepare(&source, &mut ()).unwrap();
        assert!(Mount::new(&image.path).path().join(file).exists(), "{reference}");
    };
    lab.index(&[named(one.clone(), "1"), named(two.clone(), "2")]);
    has("1", "one");
    has("2", "two");
    let source = Source::detect(&lab.layout().with_file_name("layout:2")).unwrap();
    assert_eq!((source.path(), source.reference()), (lab.layout().as_path(), Some("2")));
    has(two["digest"].as_str().unwrap(), "two");
    assert_eq!(lab.prepare(&lab.layout()).unwrap_err().code(), "E-IMAGE-AMBIGUOUS");
    let source = Source::detect(&lab.layout()).unwrap().with_reference("3");
    let error = lab.store.prepare(&source, &mut ()).unwrap_err();
    assert_eq!(error.code(), "E-IMAGE-REFERENCE");
    assert!(error.to_string().contains("only 1, 2"), "{error}");

    // An index in the index, with images for several platforms.
    let nested = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [arm, two]});
    lab.index(&[named(lab.json(INDEX, &nested), "many"), named(one, "1")]);
    has("many", "two");

    lab.index(std::slice::from_ref(&arm));
    let error = lab.prepare(&lab.layout()).unwrap_err();
    assert_eq!(error.code(), "E-IMAGE-PLATFORM");
    assert!(error.to_string().contains("linux/arm64"), "{error}");
    // Only the configuration says what it is for.
    let mut silent = arm;
    silent.as_object_mut().unwrap().remove("platform");
    lab.index(&[silent]);
    assert_eq!(lab.prepare(&lab.layout()).unwrap_err().code(), "E-IMAGE-PLATFORM");
}

#[test]
fn layers_that_cannot_be_unpacked_are_refused_by_kind() {
    let lab = Lab::new();
    let layer = lab.blob(&format!("{TAR}+encrypted"), b"secret");
    lab.index(&[lab.image(&[layer])]);
    assert_eq!(lab.prepare(&lab.layout()).unwrap_err().code(), "E-IMAGE-MEDIA-TYPE");
}

#[test]
fn an_archive_of_a_layout_gives_the_same_image_compressed_or_not() {
    let lab = Lab::new();
    let layer = lab.blob(TAR, &Tar::default().file("f", &[7; 20_000]).end());
    lab.index(&[lab.image(&[layer])]);
    let image = lab.prepare(&lab.layout()).unwrap();
    for (name, arguments) in [("plain", "-cf"), ("gzip", "-czf")] {
        let other = Lab::new();
        let archive = other.dir.path().join(name);
        let status = Command::new("tar")
            .arg(arguments)
            .args([&archive, Path::new("-C"), &lab.layout(), Path::new(".")])
            .status();
        assert!(status.unwrap().success());
        let source = Source::detect(&archive).unwrap();
        assert_eq!(source.kind(), SourceKind::Archive, "{name}");
        let same = other.store.prepare(&source, &mut ()).unwrap();
        assert_eq!((same.digest, &same.config), (image.digest, &image.config));
        assert!(fs::read(&same.path).unwrap() == fs::read(&image.path).unwrap(), "{name} differs");
        let again = other.store.prepare(&source, &mut ()).unwrap();
        assert!(again.cached);
    }
    let cut = lab.dir.path().join("cut");
    let status = Command::new("tar")
        .arg("-cf")
        .args([&cut, Path::new("-C"), &lab.layout()])
        .args(["blobs", "index.json", "oci-layout"])
        .status();
    assert!(status.unwrap().success());
    let bytes = fs::read(&cut).unwrap();
    fs::write(&cut, &bytes[..20_000]).unwrap();
    assert_eq!(lab.prepare(&cut).unwrap_err().code(), "E-IMAGE-TRUNCATED");
}

#[test]
fn what_docker_save_wrote_before_it_knew_oci_is_read_too() {
    let lab = Lab::new();
    let (one, two) =
        (Tar::default().file("one", b"1").end(), Tar::default().file("two", b"2").end());
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(&one), Digest::of(&two)]},
    });
    let hex = |n: char| n.to_string().repeat(64);
    let (first, second) = (hex('1'), hex('2'));
    let manifest = json!([{
        "Config": format!("{}.json", hex('c')), "RepoTags": ["test:latest"],
        "Layers": [format!("{first}/layer.tar"), format!("{second}/layer.tar")],
    }]);
    let save = |two: &[u8]| {
        // The names are longer than Tar can write here, so the tar program does it.
        let folder = tempfile::tempdir_in(lab.dir.path()).unwrap();
        for (name, bytes) in [
            (format!("{first}/layer.tar"), one.as_slice()),
            (format!("{second}/layer.tar"), two),
            (format!("{}.json", hex('c')), config.to_string().as_bytes()),
            ("manifest.json".to_owned(), manifest.to_string().as_bytes()),
        ] {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        let archive = lab.dir.path().join("saved");
        let status = Command::new("sh")
            .args(["-c", "cd \"$0\" && tar -cf \"$1\" *"])
            .args([folder.path(), &archive])
            .status();
        assert!(status.unwrap().success());
        archive
    };
    let archive = save(&two);
    assert_eq!(Source::detect(&archive).unwrap().kind(), SourceKind::Archive);
    let image = lab.prepare(&archive).unwrap();
    assert_eq!(image.config.cmd, ["/bin/sh"]);
    let mount = Mount::new(&image.path);
    assert!(mount.path().join("one").exists() && mount.path().join("two").exists());
    let source = Source::detect(&archive).unwrap().with_reference("other");
    assert_eq!(lab.store.prepare(&source, &mut ()).unwrap_err().code(), "E-IMAGE-REFERENCE");
    lab.store.remove(image.key.unwrap()).unwrap_err();
    let key = image.key.unwrap();
    drop(image);
    lab.store.remove(key).unwrap();
    let error = lab.prepare(&save(&Tar::default().file("evil", b"2").end())).unwrap_err();
    assert_eq!(error.code(), "E-IMAGE-DIGEST", "{error:?}");
    assert!(error.to_string().contains("layer 2 of 2"), "{error}");
}

#[test]
fn a_hostile_layer_is_refused_with_its_layer_named() {
    let lab = Lab::new();
    let layer = lab.blob(TAR, &Tar::default().file("../../../etc/cron.d/evil", b"x").end());
    lab.index(&[lab.image(&[layer])]);
    let error = lab.prepare(&lab.layout()).unwrap_err();
    assert_eq!(error.code(), "E-IMAGE-PATH");
    assert!(error.to_string().contains("layer 1 of 1"), "{error}");
}
