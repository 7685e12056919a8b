//! `coracle run`, as a person uses it, on real virtual machines.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use coracle_bridge::channel::{AREA_BYTES, AREA_FILE};
use coracle_tests::Place;
use coracle_tests::place::{guest_dir, text};

fn manifest() -> serde_json::Value {
    serde_json::from_slice(&fs::read(guest_dir().join("manifest.json")).unwrap()).unwrap()
}

/// A root file system that is a directory: busybox and two odd files.
fn small_root(dir: &Path) {
    for sub in ["bin", "etc", "tmp", "proc", "dev", "sys"] {
        fs::create_dir_all(dir.join(sub)).unwrap();
    }
    fs::copy("/bin/busybox", dir.join("bin/busybox")).unwrap();
    for applet in ["sh", "cat", "echo", "id", "ls", "stat", "sha256sum", "touch"] {
        std::os::unix::fs::symlink("busybox", dir.join("bin").join(applet)).unwrap();
    }
    fs::write(dir.join("etc/passwd"), "root:x:0:0::/:/bin/sh\nwww:x:33:44::/:/bin/sh\n").unwrap();
    fs::write(dir.join("etc/group"), "root:x:0:\nwww:x:44:\n").unwrap();
    fs::write(dir.join("etc/plain"), "not a program\n").unwrap();
    fs::set_permissions(dir.join("etc/plain"), fs::Permissions::from_mode(0o644)).unwrap();
}

#[test]
fn the_kernel_is_the_guests_and_not_the_hosts() {
    let place = Place::new();
    let out = place.output(["run", "--", "uname", "-r"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let host = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let guest = text(&out.stdout);
    assert_ne!(guest, host);
    assert_eq!(guest.trim(), manifest()["kernel"]["release"].as_str().unwrap());
    place.assert_nothing_left();
}

#[test]
fn the_exit_code_is_the_workloads() {
    let place = Place::new();
    assert_eq!(place.output(["run", "--", "sh", "-c", "exit 7"]).status.code(), Some(7));
    let killed = place.output(["run", "--", "sh", "-c", "kill -9 $$; sleep 9"]);
    // The shell is the container's init, which its own namespace cannot kill.
    assert_ne!(killed.status.code(), Some(125), "{}", text(&killed.stderr));
    let child = place.output(["run", "--", "sh", "-c", "sh -c 'kill -9 $$'; exit $?"]);
    assert_eq!(child.status.code(), Some(137));
    place.assert_nothing_left();
}

#[test]
fn sixty_four_mebibytes_go_through_cat_unchanged() {
    let place = Place::new();
    let mut input = vec![0_u8; 64 << 20];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for chunk in input.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
    }
    let mut child = place
        .coracle(["run", "--accel", "tcg", "-i", "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut output = vec![0; input.len()];
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| stdout.read_exact(&mut output).unwrap());
        stdin.write_all(&input).unwrap();
        reader.join().unwrap();
    });
    assert!(output == input, "the bytes differ");
    let area = find(place.root(), AREA_FILE)
        .expect("the folder for temporary files is on tmpfs, ext4 or XFS");
    let carried = std::fs::read(area).unwrap();
    for half in carried.chunks(AREA_BYTES / 2) {
        assert!(
            half.iter().any(|byte| *byte != 0),
            "nothing went through the memory beside the port"
        );
    }
    drop(stdin);
    assert_eq!(stdout.read(&mut output).unwrap(), 0);
    assert!(child.wait().unwrap().success());
    place.assert_nothing_left();
}

/// A file of this name beneath a folder.
fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    std::fs::read_dir(folder).ok()?.flatten().find_map(|entry| {
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        match entry.file_name() == name {
            true => Some(entry.path()),
            false => is_folder.then(|| find(&entry.path(), name)).flatten(),
        }
    })
}

#[test]
fn stdout_and_stderr_stay_apart_and_without_i_stdin_is_empty() {
    let place = Place::new();
    let out = place.output(["run", "--", "sh", "-c", "cat; echo out; echo err >&2"]);
    assert_eq!((text(&out.stdout), text(&out.stderr)), ("out\n".into(), "err\n".into()));
}

#[test]
fn environment_directory_user_and_host_name_reach_the_command() {
    let place = Place::new();
    let root = place.root().join("r");
    small_root(&root);
    let out = place
        .coracle(["run", "-e", "A=x y", "-e", "FROM_HERE", "-w", "/etc", "-u", "www"])
        .args(["--hostname", "boat"])
        .arg(&root)
        .args(["--", "sh", "-c"])
        .arg("echo $A $FROM_HERE; pwd; id -u; id -g; cat /proc/sys/kernel/hostname; ls /etc/passwd")
        .env("FROM_HERE", "here")
        .output()
        .unwrap();
    assert_eq!(
        text(&out.stdout),
        "x y here\n/etc\n33\n44\nboat\n/etc/passwd\n",
        "{}",
        text(&out.stderr)
    );
}

#[test]
fn writes_stay_in_the_container_and_the_source_is_untouched() {
    let place = Place::new();
    let root = place.root().join("r");
    small_root(&root);
    let script = "echo changed > /etc/plain; touch /new; cat /etc/plain; ls /new";
    let out = place.coracle(["run"]).arg(&root).args(["--", "sh", "-c", script]).output().unwrap();
    assert_eq!(text(&out.stdout), "changed\n/new\n", "{}", text(&out.stderr));
    assert_eq!(fs::read_to_string(root.join("etc/plain")).unwrap(), "not a program\n");
    assert!(!root.join("new").exists());
}

#[test]
fn a_read_only_root_refuses_writes_and_a_scratch_disk_takes_them() {
    let place = Place::new();
    let out = place.output(["run", "--read-only", "--", "touch", "/new"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("Read-only"), "{}", text(&out.stderr));
    // More than the VM's memory, so it must be on the disk.
    let fill = "dd if=/dev/zero of=/big bs=1M count=300 2>/dev/null && stat -c %s /big";
    let out =
        place.output(["run", "--memory", "256m", "--scratch", "512m", "--", "sh", "-c", fill]);
    assert_eq!(text(&out.stdout), "314572800\n", "{}", text(&out.stderr));
    place.assert_nothing_left();
}

#[test]
fn a_command_that_is_not_there_is_127_and_one_that_cannot_run_is_126() {
    let place = Place::new();
    let root = place.root().join("r");
    small_root(&root);
    let run = |command: &str| place.coracle(["run"]).arg(&root).args(["--", command]).output();
    let out = run("no-such-program").unwrap();
    assert_eq!(out.status.code(), Some(127), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains("no-such-program"), "{}", text(&out.stderr));
    let out = run("/etc/plain").unwrap();
    assert_eq!(out.status.code(), Some(126), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains("/etc/plain"), "{}", text(&out.stderr));
    place.assert_nothing_left();
}

#[test]
fn a_container_cannot_open_the_disks_of_its_vm() {
    let place = Place::new();
    let script = "for n in 0 16 32; do mknod /tmp/d$n b 8 $n && ! cat /tmp/d$n > /dev/null; \
                  done 2>&1; mknod /tmp/kmsg c 1 11 && ! cat /tmp/kmsg 2>&1";
    let out = place.output(["run", "--", "sh", "-c", script]);
    assert!(out.status.success(), "{}", text(&out.stdout));
    let said = text(&out.stdout);
    assert_eq!(said.matches("Operation not permitted").count(), 4, "{said}");
}

#[test]
fn two_sandboxes_run_side_by_side() {
    let place = Place::new();
    let start = |n: u32| {
        let script = format!("sleep 1; echo {n}");
        place.coracle(["run", "--", "sh", "-c", &script]).stdout(Stdio::piped()).spawn().unwrap()
    };
    let running: Vec<_> = (0..3).map(|n| (n, start(n))).collect();
    for (n, child) in running {
        let out = child.wait_with_output().unwrap();
        assert_eq!(text(&out.stdout), format!("{n}\n"));
    }
    place.assert_nothing_left();
}

#[test]
fn the_timeline_tells_every_phase_in_order() {
    let place = Place::new();
    let out = place.output(["run", "--timeline", "--format", "json", "--", "echo", "x"]);
    let said = text(&out.stderr);
    let line = said.lines().find(|l| l.contains("\"timeline\"")).expect("a timeline");
    let value: serde_json::Value = serde_json::from_str(line).unwrap();
    let phases = value["timeline"].as_array().unwrap();
    let names: Vec<_> = phases.iter().map(|p| p["phase"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        ["spawn", "firmware+kernel", "agent", "rootfs", "container", "first byte", "exit"]
    );
    let at: Vec<f64> = phases.iter().map(|p| p["at_ms"].as_f64().unwrap()).collect();
    assert!(at.windows(2).all(|w| w[0] <= w[1]), "{at:?}");
    assert!(at[0] > 0.0);
}
