//! `coracle guest info` and `coracle doctor`, as people and scripts call them.

use std::path::Path;

use coracle_tests::Place;
use coracle_tests::place::text;
use serde_json::Value;

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_else(|error| panic!("{error}: {}", text(bytes)))
}

#[test]
fn guest_info_names_files_that_are_there() {
    let place = Place::new();
    let output = place.output(["guest", "info", "--format", "json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let info = json(&output.stdout);
    for file in ["vmlinux", "kernel", "initrd", "rootfs", "root_image"] {
        let path = info["files"][file].as_str().unwrap_or_default();
        assert!(Path::new(path).is_file(), "{file}: {path}");
    }
    let release = info["manifest"]["kernel"]["release"].as_str().unwrap_or_default();
    let table = text(&place.output(["guest", "info"]).stdout);
    assert!(!release.is_empty() && table.contains(release), "{table}");
}

#[test]
fn guest_info_without_guest_files_says_how_to_make_them() {
    let place = Place::new();
    let nowhere = place.root().join("nowhere");
    let output = place.output([Path::new("guest"), Path::new("info"), Path::new("-o"), &nowhere]);
    assert_eq!(output.status.code(), Some(125));
    assert!(output.stdout.is_empty());
    let talk = text(&output.stderr);
    assert!(talk.contains("there are no guest files in") && talk.contains("help:"), "{talk}");
}

#[test]
fn a_guest_cannot_be_built_from_a_broken_kernel_and_nothing_is_left() {
    let place = Place::new();
    let kernel = place.root().join("vmlinuz");
    std::fs::write(&kernel, "not a kernel").expect("a file");
    let output = place
        .coracle(["guest", "build", "--modules", "/", "--agent", "/bin/busybox", "-o"])
        .arg(place.root().join("new"))
        .arg("--kernel")
        .arg(&kernel)
        .output()
        .expect("the command under test starts");
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("not an x86 bzImage"), "{}", text(&output.stderr));
    assert!(!place.root().join("new").exists());
}

#[test]
fn the_doctor_exits_with_its_verdict_and_has_a_remedy_for_every_fault() {
    let place = Place::new();
    let output = place.output(["doctor", "--format", "json"]);
    let findings = json(&output.stdout);
    let code = match findings["verdict"].as_str() {
        Some("ok") => 0,
        Some("warn") => 1,
        Some("fail") => 2,
        Some("unknown") => 125,
        other => panic!("{other:?}"),
    };
    assert_eq!(output.status.code(), Some(code));
    let checks = findings["checks"].as_array().expect("a list of checks");
    for check in checks {
        let is_faulty = ["warn", "fail"].contains(&check["state"].as_str().unwrap_or_default());
        assert!(!is_faulty || check["fix"].is_string(), "{check}");
    }
    for name in ["qemu", "kvm", "guest", "disk", "cgroups", "tun", "vsock"] {
        assert!(checks.iter().any(|check| check["name"] == name), "{name}");
    }
}

#[test]
fn the_doctor_sees_that_guest_files_are_missing() {
    let place = Place::new();
    std::fs::remove_file(place.root().join("guest")).expect("the link to the guest files");
    let output = place.output(["doctor"]);
    assert_eq!(output.status.code(), Some(2));
    let table = text(&output.stdout);
    assert!(table.contains("FAIL    guest") && table.contains("fix: make setup"), "{table}");
}
