//! What a user can get wrong: each case is told by name, ends with 125 and leaves nothing.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Output;

use coracle_tests::Place;
use coracle_tests::place::{guest_dir, text};

/// Fails unless `out` is our own failure and its text names every one of `words`.
fn assert_refused(out: &Output, words: &[&str]) {
    let said = text(&out.stderr);
    assert_eq!(out.status.code(), Some(125), "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
    assert!(out.stdout.is_empty(), "{}", text(&out.stdout));
}

/// A place whose guest folder is a copy by links, to be spoilt.
fn with_own_guest(place: &Place) -> std::path::PathBuf {
    let guest = place.root().join("guest");
    fs::remove_file(&guest).unwrap();
    fs::create_dir(&guest).unwrap();
    for entry in fs::read_dir(guest_dir()).unwrap().flatten() {
        symlink(entry.path(), guest.join(entry.file_name())).unwrap();
    }
    guest
}

fn replace(path: &Path, content: &[u8]) {
    fs::remove_file(path).unwrap();
    fs::write(path, content).unwrap();
}

#[test]
fn a_missing_kernel_is_named() {
    let place = Place::new();
    let guest = with_own_guest(&place);
    fs::remove_file(guest.join("vmlinux")).unwrap();
    fs::remove_file(guest.join("kernel")).unwrap();
    let out = place.output(["run", "--", "true"]);
    assert_refused(&out, &["kernel", "not found", "coracle guest build"]);
    let out = place.output(["run", "--kernel", "/nonexistent/vmlinux", "--", "true"]);
    assert_refused(&out, &["/nonexistent/vmlinux"]);
    place.assert_nothing_left();
}

#[test]
fn a_broken_kernel_is_told_with_its_path() {
    let place = Place::new();
    let broken = place.root().join("broken");
    fs::write(&broken, vec![7; 100_000]).unwrap();
    let out = place.output(["run", "--kernel", broken.to_str().unwrap(), "--", "true"]);
    assert_refused(&out, &["broken"]);
    place.assert_nothing_left();
}

#[test]
fn a_missing_initrd_is_named() {
    let place = Place::new();
    let guest = with_own_guest(&place);
    fs::remove_file(guest.join("initrd.img")).unwrap();
    assert_refused(&place.output(["run", "--", "true"]), &["initrd.img", "not found"]);
    place.assert_nothing_left();
}

#[test]
fn a_guest_that_panics_shows_its_last_words() {
    let place = Place::new();
    let guest = with_own_guest(&place);
    replace(&guest.join("initrd.img"), &[0; 4096]);
    let out = place.output(["run", "--", "true"]);
    assert_refused(&out, &["panic"]);
    place.assert_nothing_left();
}

#[test]
fn a_missing_root_file_system_is_named() {
    let place = Place::new();
    let out = place.output(["run", "/nonexistent/root", "--", "true"]);
    assert_refused(&out, &["/nonexistent/root"]);
    place.assert_nothing_left();
}

#[test]
fn a_root_that_is_no_archive_is_refused() {
    let place = Place::new();
    let file = place.root().join("root.tar");
    fs::write(&file, "this is no archive").unwrap();
    assert_refused(&place.output(["run", file.to_str().unwrap(), "--", "true"]), &["root.tar"]);
    place.assert_nothing_left();
}

#[test]
fn too_little_memory_is_refused_with_the_least() {
    let place = Place::new();
    let out = place.output(["run", "--memory", "16m", "--", "true"]);
    assert_refused(&out, &["16 MiB", "the least is", "--memory"]);
    place.assert_nothing_left();
}

#[test]
fn a_size_that_is_none_is_refused() {
    let place = Place::new();
    assert_refused(&place.output(["run", "--memory", "much", "--", "true"]), &["much"]);
}

#[test]
fn kvm_demanded_where_it_is_not_usable_is_refused_with_the_reason() {
    let place = Place::new();
    let doctor = place.output(["doctor", "--format", "json"]);
    let out = place.output(["run", "--accel", "kvm", "--", "echo", "x"]);
    // On a host whose KVM is good the command simply works.
    let kvm_good = text(&doctor.stdout).contains("\"kvm\"") && out.status.success();
    if kvm_good {
        assert_eq!(text(&out.stdout), "x\n");
    } else {
        assert_refused(&out, &["KVM", "--accel"]);
    }
    place.assert_nothing_left();
}

#[test]
fn without_qemu_the_package_is_named() {
    let place = Place::new();
    let out = place.coracle(["run", "--", "true"]).env("PATH", "/nonexistent").output().unwrap();
    assert_refused(&out, &["qemu-system-x86"]);
    place.assert_nothing_left();
}

#[test]
fn no_command_at_all_is_refused() {
    let place = Place::new();
    assert_refused(&place.output(["run"]), &["command"]);
    place.assert_nothing_left();
}

#[test]
fn an_unknown_option_and_a_bad_name_are_refused() {
    let place = Place::new();
    assert_refused(&place.output(["run", "--bogus"]), &["--bogus"]);
    assert_refused(&place.output(["run", "--name", "../x", "--", "true"]), &["../x"]);
    assert_refused(&place.output(["run", "--detach-keys", "meta-x", "--", "true"]), &["meta-x"]);
    place.assert_nothing_left();
}

#[test]
fn errors_are_data_when_asked_for() {
    let place = Place::new();
    let out = place.output(["run", "--format", "json", "/nonexistent/root", "--", "true"]);
    assert_eq!(out.status.code(), Some(125));
    let value: serde_json::Value = serde_json::from_slice(&out.stderr).unwrap();
    assert!(value["error"]["message"].as_str().unwrap().contains("/nonexistent/root"));
    assert!(value["error"]["code"].as_str().unwrap().starts_with("E-"));
}
