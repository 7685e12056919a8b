//! The channel over the guest's AF_VSOCK instead of virtio-serial, on real VMs and the real daemon.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::process::Stdio;

use coracle_tests::detached::{Detached, kill};
use coracle_tests::host::processes_of;
use coracle_tests::place::text;
use coracle_tests::{Place, until};

/// Counts as long as it lives, slowly enough to be read.
const BEAT: &str = "n=0; while :; do n=$((n+1)); echo $n >/count; sleep 0.05; done";

/// The daemon of the only sandbox there is.
fn daemon(place: &Place) -> Option<u32> {
    let all = processes_of(place);
    all.into_iter().find(|(_, line)| line.contains("guest-cid=")).map(|(pid, _)| pid)
}

#[test]
fn a_channel_over_af_vsock_carries_all_and_outlives_monitor_keeper_and_daemon() {
    let place = Place::new();
    let given = tempfile::tempdir().unwrap();
    fs::write(given.path().join("file"), "shared\n").unwrap();
    let nine = format!("{}:/nine", given.path().display());
    let sandbox = Detached::start(
        &place,
        &["--set", "UseVSock=true", "--share", &nine, "--", "sh", "-c", BEAT],
    );
    let count = || sandbox.sh("cat /count").trim().parse::<u64>().unwrap();

    // Streams with half-close, exit codes, and what goes over the channel besides.
    let bytes: Vec<u8> =
        (0..8 << 20).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut cat = place
        .coracle(["exec", "-i", &sandbox.name, "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = cat.stdin.take().unwrap();
    let given_bytes = bytes.clone();
    let writing = std::thread::spawn(move || stdin.write_all(&given_bytes).unwrap());
    let back = cat.wait_with_output().unwrap();
    writing.join().unwrap();
    assert!(back.stdout == bytes, "{} bytes of {} came back", back.stdout.len(), bytes.len());
    assert_eq!(sandbox.output(&["exec", "@", "--", "sh", "-c", "exit 7"]).status.code(), Some(7));
    assert_eq!(sandbox.sh("cat /nine/file"), "shared\n");
    // The daemon has no more rights than the VM.
    let status = fs::read_to_string(format!("/proc/{}/status", daemon(&place).unwrap())).unwrap();
    assert!(status.contains("\nCapEff:\t0000000000000000\n"), "{status}");
    assert!(status.contains("\nNoNewPrivs:\t1\n") && !status.contains("\nUid:\t0\t"), "{status}");
    let saved =
        fs::read_to_string(place.root().join("sbs").join(&sandbox.name).join("persist.json"));
    assert!(saved.unwrap().contains(r#""UseVSock":true"#));

    let mut before = count();
    let mut goes_on = |what: &str| {
        // A command that meets the very end of the channel is told so.
        until(what, || sandbox.output(&["exec", "@", "--", "true"]).status.success());
        let now = count();
        assert!(now > before, "{what}: it stood still at {before}");
        before = now;
    };
    sandbox.kill_monitor();
    goes_on("a command after the monitor's death");
    kill(sandbox.keeper());
    goes_on("a command after the keeper's death");
    sandbox.kill_runtime();
    goes_on("a command after the death of both");
    for _ in 0..3 {
        let old = daemon(&place);
        assert!(old.is_some());
        kill(old);
        until("another daemon", || daemon(&place).is_some_and(|new| Some(new) != old));
        goes_on("a command after the daemon's death");
    }
    // What ran over the channel is cut off, and can be had again.
    assert!(sandbox.run(&["share", "ls", "@"]).contains("broken"));
    sandbox.run(&["share", "rm", "@", "/nine"]);
    sandbox.run(&["share", "add", "@", "--type", "9p", given.path().to_str().unwrap(), "/nine"]);
    assert_eq!(sandbox.sh("cat /nine/file"), "shared\n");
    assert_eq!(place.output(["fsck"]).status.code(), Some(0));

    // A daemon does not notice that its VM is gone: whoever clears up ends it.
    let vm = sandbox.vm();
    sandbox.kill_runtime();
    kill(vm);
    assert!(daemon(&place).is_some());
    assert!(place.output(["recover"]).status.success());
    assert_eq!(daemon(&place), None);
    sandbox.run(&["start", "@"]);
    assert_eq!(sandbox.sh("echo again"), "again\n");
    sandbox.run(&["rm", "--force", "@"]);
    place.assert_nothing_left();
}

#[test]
fn without_the_daemon_the_channel_is_refused_and_nothing_is_left() {
    let place = Place::new();
    let run = |daemon: &str| {
        place
            .coracle(["run", "--accel", "tcg", "--set", "UseVSock=true", "--", "true"])
            .env("CORACLE_VHOST_DEVICE_VSOCK", daemon)
            .output()
            .unwrap()
    };
    for (daemon, why) in [
        ("/nonexistent/daemon", "run /nonexistent/daemon"),
        ("/bin/false", "ended before it was ready"),
    ] {
        let refused = run(daemon);
        let said = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(125), "{said}");
        assert!(said.contains("E-VSOCK") && said.contains(why), "{said}");
        place.assert_nothing_left();
    }
}
