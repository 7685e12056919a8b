//! Several containers in one sandbox, and the input of detached commands, on real VMs.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read, Write};
use std::process::{Output, Stdio};
use std::thread::sleep;
use std::time::Duration;

use coracle_tests::Place;
use coracle_tests::detached::Detached;
use coracle_tests::place::text;
use coracle_tests::until;
use serde_json::Value;

/// Runs a command with this input to its end.
fn fed(place: &Place, words: &[&str], input: &[u8]) -> Output {
    let mut child = place
        .coracle(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let bytes = input.to_vec();
    let feeding = std::thread::spawn(move || drop(stdin.write_all(&bytes)));
    let output = child.wait_with_output().unwrap();
    feeding.join().unwrap();
    output
}

fn container(pod: &Detached<'_>, name: &str) -> Option<Value> {
    let containers = pod.listed()["containers"].as_array().cloned().unwrap_or_default();
    containers.into_iter().find(|container| container["name"] == name)
}

/// What the VM holds of containers, as the sandbox's own sees it.
fn disks(pod: &Detached<'_>) -> String {
    pod.sh("ls /sys/block; grep -c overlay /proc/mounts")
}

#[test]
fn containers_share_a_sandbox_and_nothing_else_and_outlive_its_monitors() {
    let place = Place::new();
    let pod = Detached::start(&place, &[]);
    let in_pod = |words: &[&str]| pod.output(&[&["run", "--in", "@"], words].concat());
    let before = disks(&pod);

    // Its own root, processes and exit code; the sandbox's network and host name.
    let said = in_pod(&["--", "sh", "-c", "touch /here; echo $$; hostname; exit 7"]);
    assert_eq!((said.status.code(), text(&said.stdout)), (Some(7), format!("1\n{}\n", pod.name)));
    assert!(pod.output(&["exec", "@", "--", "test", "-e", "/here"]).status.code() == Some(1));
    let read_only = in_pod(&["--read-only", "--", "touch", "/here"]);
    assert_eq!(read_only.status.code(), Some(1), "{}", text(&read_only.stderr));
    assert_eq!(in_pod(&["--", "no-such-command"]).status.code(), Some(127));
    assert_eq!(disks(&pod), before, "something of a container is left in the VM");
    assert_eq!(pod.listed()["containers"], Value::Null);

    // An image of one's own, with what it says of how to run it.
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("bin")).unwrap();
    let busybox = root.path().join("bin/busybox");
    fs::copy("/bin/busybox", &busybox).unwrap();
    let image = root.path().to_str().unwrap();
    let listed = in_pod(&[image, "/bin/busybox", "ls", "/"]);
    assert!(text(&listed.stdout).contains("bin\n"), "{}", text(&listed.stderr));
    assert!(!text(&listed.stdout).contains("usr\n"));

    // What is said wrong is refused by name, and leaves nothing.
    let refused = |words: &[&str]| pod.refused(&[&["run", "--in", "@"], words].concat());
    assert!(refused(&["--memory", "1g", "--", "true"]).contains("--memory is for a whole sandbox"));
    assert!(refused(&["--name", "a/b", "--", "true"]).contains("E-NAME"));
    assert!(refused(&["/no/such/image", "true"]).contains("/no/such/image"));
    let own_name = pod.name.clone();
    assert!(refused(&["--name", &own_name, "--", "true"]).contains("E-CONTAINER-EXISTS"));
    assert!(pod.refused(&["exec", "@/none", "--", "true"]).contains("E-CONTAINER-UNKNOWN"));
    assert_eq!(pod.listed()["containers"], Value::Null);

    // Streams go through whole while the monitor dies.
    let bytes: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let words = ["run", "-i", "--in", &pod.name, "--", "cat"];
    let copied = std::thread::scope(|scope| {
        let copying = scope.spawn(|| fed(&place, &words, &bytes));
        // One that is being started is refused.
        until("it runs", || {
            let containers = pod.listed()["containers"].as_array().cloned().unwrap_or_default();
            containers.iter().any(|container| container["state"] == "running")
        });
        pod.kill_monitor();
        copying.join().unwrap()
    });
    assert!(copied.status.success(), "{}", text(&copied.stderr));
    assert!(copied.stdout == bytes, "{} of {} bytes", copied.stdout.len(), bytes.len());

    // Also when the command has ended and its caller has not read everything yet.
    let script = "head -c 600000 /dev/zero; exit 3";
    let mut slow = place
        .coracle(["run", "--in", &pod.name, "--", "sh", "-c", script])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    until("it has ended", || {
        let containers = pod.listed()["containers"].as_array().cloned().unwrap_or_default();
        containers.iter().any(|container| container["exit_code"] == 3)
    });
    pod.kill_monitor();
    let mut read = Vec::new();
    slow.stdout.take().unwrap().read_to_end(&mut read).unwrap();
    assert_eq!((read.len(), slow.wait().unwrap().code()), (600_000, Some(3)));

    // A detached one is written to by whoever is attached, one after the other, across monitors.
    let script = "while read l; do echo got $l; done; echo over; exit 4";
    pod.run(&["run", "-di", "--in", "@", "--name", "db", "--", "sh", "-c", script]);
    assert!(refused(&["-d", "--name", "db", "--", "true"]).contains("E-CONTAINER-EXISTS"));
    assert!(pod.run(&["ls", "@"]).contains(&format!("{}/db", pod.name)));
    let address = format!("{}/db", pod.name);
    let mut first = place
        .coracle(["attach", "-i", &address])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    first.stdin.as_mut().unwrap().write_all(b"one\n").unwrap();
    until("the first line is there", || pod.run(&["logs", "@/db"]) == "got one\n");
    assert!(pod.refused(&["attach", "-i", "@/db"]).contains("E-INPUT-TAKEN"));
    pod.kill_monitor();
    first.stdin.as_mut().unwrap().write_all(b"two\n").unwrap();
    until("the second line is there", || pod.run(&["logs", "@/db"]) == "got one\ngot two\n");
    // One that is killed leaves the input open.
    first.kill().unwrap();
    first.wait().unwrap();
    assert_eq!(pod.run(&["exec", "@/db", "--", "sh", "-c", "echo beside"]), "beside\n");
    fs::write(root.path().join("file"), "copied").unwrap();
    let file = root.path().join("file");
    pod.run(&["cp", file.to_str().unwrap(), &format!("{address}:/srv")]);
    assert_eq!(pod.run(&["exec", "@/db", "--", "cat", "/srv/file"]), "copied");
    let last = fed(&place, &["attach", "-i", "--logs", &address], b"three\n");
    assert_eq!(text(&last.stdout), "got one\ngot two\ngot three\nover\n");
    assert_eq!(last.status.code(), Some(4), "{}", text(&last.stderr));
    assert_eq!(pod.output(&["wait", "@/db"]).status.code(), Some(4));
    assert!(pod.refused(&["kill", "@/db"]).contains("E-CONTAINER-EXITED"));
    assert_eq!(pod.run(&["inspect", "-f", "state", "@/db"]), "exited\n");

    // One ends while nobody is there: its code is found.
    let alone = "trap 'exit 9' TERM; echo up; while :; do sleep 0.1; done";
    pod.run(&["run", "-d", "--in", "@", "--name", "alone", "--", "sh", "-c", alone]);
    until("it is up", || pod.run(&["logs", "@/alone"]) == "up\n");
    pod.run(&["exec", "@/alone", "--", "sh", "-c", "(sleep 2; kill -TERM 1) >/dev/null 2>&1 &"]);
    pod.kill_runtime();
    sleep(Duration::from_secs(3));
    assert_eq!(pod.output(&["wait", "@/alone"]).status.code(), Some(9));
    let state = place.output(["state", "verify"]);
    assert!(state.status.success(), "{}", text(&state.stdout));
    let kata = pod.run_dir().join("../../sbs").join(&pod.name);
    for name in [pod.name.as_str(), "db", "alone"] {
        assert!(kata.join(name).join("persist.json").exists(), "Kata's reader sees no {name}");
    }

    // They are neighbours on one host.
    let serve = "echo hello > /index.html; exec httpd -f -p 80 -h /";
    pod.run(&["run", "-d", "--in", "@", "--name", "www", "--", "sh", "-c", serve]);
    let fetch = ["exec", "@", "--", "wget", "-qO-", "http://127.0.0.1/index.html"];
    until("it serves", || pod.output(&fetch).stdout == b"hello\n");
    pod.run(&["rm", "-f", "@/www"]);

    // They go one by one, by force if need be, and by themselves.
    pod.run(&["rm", "@/db", "@/alone"]);
    pod.run(&["run", "-d", "--in", "@", "--name", "long", "--", "sleep", "1000"]);
    assert!(pod.refused(&["rm", "@/long"]).contains("runs"));
    pod.run(&["rm", "-f", "@/lo"]);
    pod.run(&["run", "-d", "--rm", "--in", "@", "--name", "brief", "--", "true"]);
    until("it has removed itself", || container(&pod, "brief").is_none());
    assert_eq!(disks(&pod), before, "something of a container is left in the VM");

    // The sandbox's end is theirs; who can end well does.
    let well = "trap 'exit 5' TERM; while :; do sleep 0.1; done";
    pod.run(&["run", "-d", "--in", "@", "--name", "well", "--", "sh", "-c", well]);
    pod.run(&[
        "run",
        "-d",
        "--in",
        "@",
        "--name",
        "deaf",
        "--",
        "sh",
        "-c",
        "trap '' TERM; sleep 99",
    ]);
    sleep(Duration::from_millis(500));
    pod.run(&["stop", "-t", "3", "@"]);
    assert_eq!(pod.output(&["wait", "@/well"]).status.code(), Some(5));
    assert_eq!(pod.output(&["wait", "@/deaf"]).status.code(), Some(137));
    assert_eq!(container(&pod, "deaf").unwrap()["reason"], "its sandbox ended");
    pod.run(&["start", "@"]);
    assert_eq!(pod.listed()["containers"], Value::Null);
    pod.run(&["rm", "-f", "@"]);
    place.assert_nothing_left();
}

#[test]
fn a_detached_command_with_a_terminal_is_attached_to_and_left() {
    let place = Place::new();
    let script = "tty; while read l; do echo got $l; done";
    let shell = Detached::start(&place, &["-i", "-t", "--", "sh", "-c", script]);
    until("it is up", || shell.run(&["logs", "@"]).contains("/dev/pts/0"));
    let attached = fed(&place, &["attach", "-i", &shell.name], b"hello\n\x04");
    // The terminal echoes; its end-of-file ends the command.
    assert!(text(&attached.stdout).contains("got hello"), "{}", text(&attached.stdout));
    assert_eq!(attached.status.code(), Some(0), "{}", text(&attached.stderr));
    // One without input says so.
    shell.run(&["rm", "@"]);
    let mute = Detached::start(&place, &[]);
    assert!(mute.refused(&["attach", "-i", "@"]).contains("E-INPUT-NONE"));
    mute.run(&["rm", "-f", "@"]);
    place.assert_nothing_left();
}
