//! Detached sandboxes and what is plugged into them, by the command line, on real VMs.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use coracle_tests::Place;
use coracle_tests::detached::Detached;
use coracle_tests::place::{ext4, text};
use serde_json::Value;

/// Answers each connection with what it sent, turned to upper case, when that has ended.
fn serve(path: &Path) {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let mut asked = String::new();
                if stream.read_to_string(&mut asked).is_ok() {
                    let _ = stream.write_all(asked.to_uppercase().as_bytes());
                }
            });
        }
    });
}

#[test]
fn everything_comes_and_goes_in_a_sandbox_that_runs() {
    let place = Place::new();
    let given = place.root().join("given");
    fs::create_dir_all(given.join("tree")).unwrap();
    fs::write(given.join("tree/file"), "shared\n").unwrap();
    let path = |name: &str| given.join(name).to_str().unwrap().to_owned();
    ext4(&given.join("disk.img"), 8);
    // Not of this place: its thread goes on until the test's process ends.
    let elsewhere = tempfile::tempdir().unwrap();
    let server = elsewhere.path().join("server.sock");
    serve(&server);
    let volume = format!("{}:/vol:ro", path("tree"));
    let a = Detached::start(&place, &["-v", &volume]);

    // What was there from the start.
    assert_eq!(a.sh("cat /vol/file; echo x > /vol/file || echo refused"), "shared\nrefused\n");

    a.run(&["disk", "add", "@", &path("disk.img"), "/srv/data"]);
    a.sh("echo kept > /srv/data/file");
    a.run(&["share", "add", "@", "--type", "9p", &path("tree"), "/nine"]);
    a.run(&["share", "add", "@", &path("tree/file"), "/one/file"]);
    a.run(&["pmem", "add", "@", path_of_rootfs(&place).as_str(), "/pm"]);
    a.run(&["pipe", "add", "@", server.to_str().unwrap(), "/run/server.sock"]);
    assert_eq!(a.sh("cat /nine/file /one/file"), "shared\nshared\n");
    assert_eq!(a.sh("test -x /pm/bin/busybox && test -S /run/server.sock && echo yes"), "yes\n");

    let listed: Value =
        serde_json::from_str(&a.run(&["share", "ls", "@", "--format", "json"])).unwrap();
    let shares: Vec<&str> =
        listed.as_array().unwrap().iter().map(|s| s["destination"].as_str().unwrap()).collect();
    assert_eq!(shares, ["/vol", "/nine", "/one/file"]);
    assert!(a.run(&["disk", "ls", "@"]).contains("0:0"));
    let view: Value = serde_json::from_str(&a.run(&["inspect", "@"])).unwrap();
    assert_eq!(
        (view["state"].as_str(), view["plugs"].as_array().unwrap().len()),
        (Some("running"), 6)
    );
    assert!(Path::new(&format!("/proc/{}", view["monitor"]["pid"])).exists());

    // Refusals by name, which change nothing.
    let taken = a.refused(&["disk", "add", "@", &path("disk.img"), "/nine"]);
    assert!(taken.contains("/nine is taken by") && taken.contains("help:"), "{taken}");
    assert!(a.refused(&["disk", "rm", "@", "/nowhere"]).contains("no disk /nowhere is plugged in"));
    assert!(a.refused(&["share", "add", "@", "/no/such", "/x"]).contains("No such file"));
    assert!(a.refused(&["share", "add", "@", &path("tree"), "x"]).contains("not an absolute path"));

    // A file that is open keeps its disk; closed, it goes.
    let busy = "cd /srv/data && sleep 3 & sleep 0.3";
    a.sh(busy);
    let refused = a.refused(&["disk", "rm", "@", "/srv/data"]);
    assert!(refused.contains("busy") || refused.contains("EBUSY"), "{refused}");
    std::thread::sleep(Duration::from_secs(4));
    a.run(&["disk", "rm", "@", "/srv/data"]);
    for (kind, key) in [
        ("share", "/nine"),
        ("share", "/one/file"),
        ("share", "/vol"),
        ("pmem", "/pm"),
        ("pipe", "/run/server.sock"),
    ] {
        a.run(&[kind, "rm", "@", key]);
    }
    assert_eq!(
        a.sh("ls /srv/data /nine /one/file /pm /run/server.sock 2>/dev/null | wc -l"),
        "0\n"
    );
    // What was written is on the host, and it can be added again.
    a.run(&["disk", "add", "@", &path("disk.img"), "/srv/again:ro"]);
    assert_eq!(a.sh("cat /srv/again/file"), "kept\n");
    drop(a);
    fs::remove_dir_all(&given).unwrap();
    place.assert_nothing_left();
}

#[test]
fn a_disk_is_a_block_device_to_the_container_that_may_use_it_and_no_other() {
    let place = Place::new();
    let given = place.root().join("given");
    fs::create_dir(&given).unwrap();
    let path = |name: &str| given.join(name).to_str().unwrap().to_owned();
    for (name, content) in [("first", "one"), ("second", "two"), ("third", "three")] {
        let mut bytes = vec![0; 1 << 20];
        bytes[..content.len()].copy_from_slice(content.as_bytes());
        fs::write(given.join(name), bytes).unwrap();
    }
    // There before the command starts: it is the first thing that is read.
    let first = format!("{}:/dev/first", path("first"));
    let look = "head -c 3 /dev/first; sleep 1000";
    let a = Detached::start(&place, &["--disk", &first, "--", "sh", "-c", look]);
    for _ in 0..100 {
        if a.run(&["logs", "@"]) == "one" {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(a.run(&["logs", "@"]), "one");

    a.run(&["disk", "add", "@", &path("second"), "/dev/disk/second"]);
    a.run(&["disk", "add", "@", &path("third"), "/dev/third:ro"]);
    assert_eq!(a.sh("test -b /dev/disk/second && head -c 3 /dev/disk/second"), "two");
    a.sh("printf new | dd of=/dev/disk/second conv=notrunc,fsync 2>/dev/null");
    assert_eq!(&fs::read(given.join("second")).unwrap()[..3], b"new");
    assert_eq!(a.sh("head -c 5 /dev/third; echo x > /dev/third || echo refused"), "threerefused\n");
    // Taken out, it cannot be had by its numbers either; what was not shown never could.
    let numbers = a.sh("stat -c '%t %T' /dev/disk/second | tr -d '\\n'");
    a.run(&["disk", "rm", "@", "/dev/disk/second"]);
    assert_eq!(a.sh("ls /dev/disk"), "");
    let by_hand =
        format!("set -- {numbers}; mknod /tmp/d b 0x$1 0x$2 && head -c 3 /tmp/d || echo no");
    assert!(a.sh(&format!("({by_hand}) 2>/dev/null")).contains("no"));
    // The others are still there, with what they may.
    assert_eq!(a.sh("head -c 3 /dev/first; head -c 5 /dev/third"), "onethree");
    let taken = a.refused(&["disk", "add", "@", &path("second"), "/dev/third"]);
    assert!(taken.contains("/dev/third is taken by"), "{taken}");
    a.run(&["disk", "rm", "@", "/dev/third"]);
    a.run(&["disk", "rm", "@", "/dev/first"]);
    assert_eq!(a.run(&["disk", "ls", "@", "--format", "json"]).trim(), "[]");
    drop(a);
    fs::remove_dir_all(&given).unwrap();
    place.assert_nothing_left();
}

/// A server of one disk, killed when dropped.
struct DiskServer(std::process::Child);

impl DiskServer {
    fn start(image: &Path, socket: &Path) -> Self {
        let child = Command::new("qemu-storage-daemon")
            .arg("--blockdev")
            .arg(format!("driver=file,node-name=disk,filename={}", image.display()))
            .arg("--export")
            .arg(format!(
                "type=vhost-user-blk,id=e,node-name=disk,writable=on,addr.type=unix,addr.path={}",
                socket.display()
            ))
            .spawn()
            .expect("qemu-storage-daemon is installed");
        for _ in 0..400 {
            if socket.exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Self(child)
    }
}

impl Drop for DiskServer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn pci_devices_and_served_disks_come_and_go() {
    let place = Place::new();
    let given = place.root().join("given");
    fs::create_dir(&given).unwrap();
    ext4(&given.join("disk.img"), 8);
    let socket = given.join("disk.sock");
    let served = DiskServer::start(&given.join("disk.img"), &socket);
    let disk = format!("vhost-user-blk:{}", socket.display());
    let a = Detached::start(&place, &["--device", "emulated:edu"]);

    a.run(&["device", "add", "@", &disk, "/srv/data"]);
    a.sh("echo kept > /srv/data/file");
    let listed: Value =
        serde_json::from_str(&a.run(&["device", "ls", "@", "--format", "json"])).unwrap();
    assert_eq!(
        (&listed[0]["source"], &listed[1]["destination"]),
        (&"emulated:edu".into(), &"/srv/data".into())
    );
    // The container sees the device where the list says it is.
    let slot = listed[0]["slot"].as_str().unwrap();
    assert_eq!(a.sh(&format!("cat /sys/bus/pci/devices/{slot}/device")), "0x11e8\n");
    a.run(&["device", "rm", "@", "emulated:edu"]);
    assert_eq!(a.sh(&format!("test -e /sys/bus/pci/devices/{slot} || echo gone")), "gone\n");
    a.run(&["device", "rm", "@", "/srv/data"]);
    a.run(&["device", "add", "@", &disk, "/srv/data:ro"]);
    assert_eq!(
        a.sh("cat /srv/data/file; echo x > /srv/data/file || echo refused"),
        "kept\nrefused\n"
    );

    let refused = a.refused(&["device", "add", "@", "0000:00:00.0"]);
    assert!(
        refused.contains("physically backed") && refused.contains("--physical-memory"),
        "{refused}"
    );
    assert!(a.refused(&["device", "add", "@", "eth0"]).contains("\"eth0\" names no device"));
    assert!(a.refused(&["device", "add", "@", "emulated:edu", "/x"]).contains("has a destination"));
    assert!(a.refused(&["device", "rm", "@", "emulated:edu"]).contains("no device emulated:edu"));
    drop(a);
    drop(served);
    fs::remove_dir_all(&given).unwrap();
    place.assert_nothing_left();
}

fn path_of_rootfs(place: &Place) -> String {
    place.root().join("guest/rootfs.erofs").to_str().unwrap().to_owned()
}

#[test]
fn a_detached_sandbox_lives_is_asked_and_ends() {
    let place = Place::new();
    let command = "echo out; echo err >&2; trap 'exit 3' TERM; while :; do sleep 0.1; done";
    let a = Detached::start(&place, &["--", "sh", "-c", command]);
    assert!(a.run(&["ls"]).contains("running"));
    assert_eq!(a.run(&["ls", "-q"]).trim(), a.name);

    // Further commands: code, streams, input, environment, directory, a name that is but a beginning.
    let output = a.output(&["exec", "@", "--", "sh", "-c", "echo to out; echo to err >&2; exit 9"]);
    assert_eq!(output.status.code(), Some(9));
    assert_eq!(
        (text(&output.stdout), text(&output.stderr)),
        ("to out\n".into(), "to err\n".into())
    );
    let short = &a.name[..a.name.len() - 1];
    let environment =
        place.output(["exec", "-e", "A=b", "-w", "/tmp", short, "--", "sh", "-c", "echo $A $PWD"]);
    assert_eq!(text(&environment.stdout), "b /tmp\n");
    let mut cat = place
        .coracle(["exec", "-i", &a.name, "--", "cat"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let megabyte = vec![b'x'; 1 << 20];
    let mut input = cat.stdin.take().unwrap();
    let sent = megabyte.clone();
    let writing = std::thread::spawn(move || input.write_all(&sent).unwrap());
    let echoed = cat.wait_with_output().unwrap();
    writing.join().unwrap();
    assert!(echoed.stdout == megabyte, "{} bytes came back", echoed.stdout.len());
    assert_eq!(a.output(&["exec", "@", "--", "no-such-program"]).status.code(), Some(127));

    // What it wrote; its name is taken; it is not removed while it runs.
    let logs = a.output(&["logs", "@"]);
    assert_eq!((text(&logs.stdout), text(&logs.stderr)), ("out\n".into(), "err\n".into()));
    let second = place.output(["run", "--detach", "--name", &a.name]);
    assert_eq!(second.status.code(), Some(125));
    assert!(text(&second.stderr).contains("E-SANDBOX-EXISTS"), "{}", text(&second.stderr));
    assert!(a.refused(&["rm", "@"]).contains("help: stop it first"));
    assert!(
        a.refused(&["exec", "nobody", "--", "true"]).contains("there is no sandbox named nobody")
    );

    a.run(&["stop", "@"]);
    assert!(a.run(&["ls"]).contains("exited 3"));
    assert_eq!(a.output(&["wait", "@"]).status.code(), Some(3));
    assert!(a.refused(&["exec", "@", "--", "true"]).contains("is not running"));
    assert!(place.qemus().is_empty(), "a stopped sandbox has no VM");
    a.run(&["rm", "@"]);
    assert_eq!(a.run(&["ls", "-q"]), "");
    place.assert_nothing_left();
}

#[test]
fn a_command_that_cannot_run_detached_leaves_nothing() {
    let place = Place::new();
    let missing = place.output(["run", "--detach", "--accel", "tcg", "--", "no-such-program"]);
    assert_eq!(missing.status.code(), Some(127), "{}", text(&missing.stderr));
    let volume = place.output(["run", "--detach", "--accel", "tcg", "-v", "/no/such:/x"]);
    assert_eq!(volume.status.code(), Some(125));
    assert!(text(&volume.stderr).contains("/no/such"), "{}", text(&volume.stderr));
    let both = place.output(["create", "--in", "some", "--", "true"]);
    assert_eq!(both.status.code(), Some(125));
    place.assert_nothing_left();
}
