//! The commands of every day on one detached sandbox, on a real VM.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use coracle_tests::Place;
use coracle_tests::detached::Detached;
use coracle_tests::place::text;
use coracle_tests::until;
use serde_json::Value;

#[test]
fn a_sandbox_is_created_started_looked_at_copied_to_checked_dumped_and_told_of() {
    let place = Place::new();
    let work = "trap 'echo bye; exit 6' TERM; echo begin; while :; do sleep 0.1; done";
    let created = place.output([
        "create",
        "--accel",
        "tcg",
        "--name",
        &format!("{}-day", place.mark()),
        "-e",
        "TOKEN=secret",
        "--health-cmd",
        "test ! -e /tmp/sick",
        "--health-interval",
        "1",
        "--health-retries",
        "2",
        "--",
        "sh",
        "-c",
        work,
    ]);
    assert!(created.status.success(), "{}", text(&created.stderr));
    let day = Detached::named(&place, text(&created.stdout).trim());
    assert_eq!((day.listed()["state"].as_str(), day.monitor()), (Some("created"), None));
    assert!(day.refused(&["exec", "@", "--", "true"]).contains("E-NOT-RUNNING"));
    day.run(&["start", "@"]);
    assert!(day.refused(&["start", "@"]).contains("E-SANDBOX-RUNS"));
    assert_eq!(day.run(&["inspect", "-f", "state", "@"]), "running\n");
    assert!(day.refused(&["inspect", "-f", "no.such", "@"]).contains("no.such"));

    // How well it is outlives the monitor that found it out.
    until("it is healthy", || day.listed()["health"] == "healthy");
    day.sh("touch /tmp/sick");
    until("it is unhealthy", || day.listed()["health"] == "unhealthy");
    day.kill_monitor();
    assert!(day.run(&["ls"]).contains("running (unhealthy)"));
    day.sh("rm /tmp/sick");
    until("it is healthy again", || day.listed()["health"] == "healthy");

    // Files go in and come out as they are.
    let here = tempfile::tempdir().unwrap();
    let tree = here.path().join("tree");
    fs::create_dir_all(tree.join("deep")).unwrap();
    let bytes: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    fs::write(tree.join("deep/file"), &bytes).unwrap();
    let there = |path: &str| format!("{}:{path}", day.name);
    day.run(&["cp", tree.to_str().unwrap(), &there("/srv/a b")]);
    let back = here.path().join("back");
    day.run(&["cp", &there("/srv/a b/tree/deep"), back.to_str().unwrap()]);
    assert_eq!(fs::read(back.join("deep/file")).unwrap(), bytes);
    assert!(day.refused(&["cp", &there("/no/such"), "."]).contains("`tar` in the container ended"));
    assert!(day.refused(&["cp", "a", "b"]).contains("SANDBOX:PATH"));

    // The shell asks for names.
    let begun = &day.name[..day.name.len() - 1];
    let mut asked = place.coracle(["--", "coracle", "exec", begun]);
    asked.env("CORACLE_COMPLETE", "bash").env("_CLAP_COMPLETE_INDEX", "2").env("_CLAP_IFS", "\n");
    assert_eq!(text(&asked.output().unwrap().stdout).trim(), day.name);

    // Usage, once; a code; an archive without secrets.
    assert!(day.run(&["top", "-n", "1"]).contains(&day.name));
    assert!(day.run(&["explain", "e-scsi-full"]).contains("help: "));
    let dump = here.path().join("dump.tar");
    day.run(&["dump", "@", "--output", dump.to_str().unwrap()]);
    let listed = Command::new("tar").arg("xf").arg(&dump).arg("-C").arg(here.path()).status();
    assert!(listed.unwrap().success());
    let dumped = here.path().join(format!("{}-dump", day.name));
    let read = |name: &str| fs::read_to_string(dumped.join(name)).unwrap();
    assert!(read("record.json").contains("TOKEN=...") && !read("record.json").contains("secret"));
    assert!(read("vm.txt").contains("running") && read("errors.txt").is_empty());

    // Whoever is attached sees the end, whatever becomes of the monitor.
    let attached = place
        .coracle(["attach", "--logs", &day.name])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let follows = place.coracle(["logs", "-f", &day.name]).stdout(Stdio::piped()).spawn().unwrap();
    sleep(Duration::from_millis(300));
    day.kill_monitor();
    day.run(&["stop", "@"]);
    let attached = attached.wait_with_output().unwrap();
    assert_eq!((attached.status.code(), text(&attached.stdout)), (Some(6), "begin\nbye\n".into()));
    assert_eq!(text(&follows.wait_with_output().unwrap().stdout), "begin\nbye\n");

    day.run(&["rm", "@"]);
    let events = text(&place.output(["events", "--format", "json", &day.name]).stdout);
    let events: Vec<Value> = events.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let mut told: Vec<&str> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    told.retain(|event| *event != "adopted");
    assert_eq!(
        told,
        ["created", "creating", "running", "stopping", "exited", "removing", "removed"]
    );
    assert!(events.len() > told.len(), "nobody took it over");
    let exited = events.iter().find(|event| event["event"] == "exited").unwrap();
    assert_eq!(exited["exit_code"], 6);
    place.assert_nothing_left();
}
