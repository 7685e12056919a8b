//! What is written down and what there is are compared, and brought in order, on a real VM.
#![allow(clippy::unwrap_used)]

use std::fs;

use coracle_tests::Place;
use coracle_tests::detached::{Detached, kill};
use coracle_tests::host::processes_of;
use coracle_tests::place::text;

#[test]
fn what_is_not_as_it_is_written_down_is_told_and_mended() {
    let place = Place::new();
    let tree = tempfile::tempdir().unwrap();
    let volume = format!("{}:/v", tree.path().display());
    let health = ["--health-cmd", "sleep 0.2", "--health-interval", "1"];
    let sandbox = Detached::start(&place, &[&health[..], &["-v", &volume]].concat());
    sandbox.run(&["run", "-d", "--in", "@", "--name", "side", "--", "sleep", "1000"]);
    let fsck = |words: &[&str]| {
        let output = place.output([&["fsck"], words].concat());
        (output.status.code().unwrap(), text(&output.stdout))
    };
    // All is well, also while commands come and go.
    sandbox.sh("sleep 1000 >/dev/null 2>&1 &");
    for _ in 0..5 {
        assert_eq!(
            sandbox.run(&["inspect", "--drift", "@"]),
            "what is written down is what there is\n"
        );
    }
    assert_eq!(fsck(&[]), (0, "all is well: 1 sandboxes\n".to_owned()));

    // A server that died, a runtime that died, a file of nobody's, a folder of nobody's.
    for (pid, line) in processes_of(&place) {
        if line.contains("virtiofsd") {
            kill(Some(pid));
        }
    }
    let drift = sandbox.output(&["inspect", "--drift", "@"]);
    assert_eq!(drift.status.code(), Some(1));
    assert!(text(&drift.stdout).contains("server of a share"), "{}", text(&drift.stdout));
    sandbox.kill_runtime();
    let state = place.root().join("sbs").join(&sandbox.name);
    fs::write(state.join(".persist.json.new"), "half").unwrap();
    fs::create_dir(place.root().join("run/gone")).unwrap();
    let (code, told) = fsck(&[]);
    assert_eq!(code, 2, "{told}");
    for what in ["state: .persist.json.new", "drift: monitor: there is none", "leftover: directory"]
    {
        assert!(told.contains(what), "{what}: {told}");
    }
    assert_eq!(sandbox.monitor(), None, "looking started a monitor");

    // What cannot be mended is told again.
    let (code, told) = fsck(&["--repair", "--format", "json"]);
    assert_eq!(code, 1, "{told}");
    let outcomes: Vec<serde_json::Value> =
        told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let outcome = |what: &str| {
        let of = |f: &&serde_json::Value| f["what"].as_str().unwrap().contains(what);
        outcomes.iter().find(of).unwrap()["outcome"].as_str().unwrap()
    };
    assert_eq!((outcome(".persist.json.new"), outcome("monitor")), ("repaired", "repaired"));
    assert_eq!((outcome("directory"), outcome("share /")), ("repaired", "failed"));
    assert_eq!(sandbox.run(&["exec", "@/side", "--", "echo", "well"]), "well\n");
    sandbox.run(&["stop", "-t", "0", "@"]);
    assert_eq!(fsck(&[]), (0, "all is well: 1 sandboxes\n".to_owned()));
    sandbox.run(&["start", "@"]);
    assert_eq!(fsck(&[&sandbox.name]), (0, "all is well: 1 sandboxes\n".to_owned()));

    let verified = place.output(["state", "verify", &sandbox.name]);
    assert_eq!(text(&verified.stdout), format!("{}: intact\n", sandbox.name));
    assert_eq!(place.output(["state", "verify", "no-such"]).status.code(), Some(125));
    sandbox.run(&["rm", "-f", "@"]);
    place.assert_nothing_left();
}
