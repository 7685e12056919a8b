//! A monitor is killed at every step of every verb, one after the other: before and after everything it
//! writes down, and before everything it does to its VM, on the host and in the guest. Or what it
//! does there is refused. What then is there is what was there
//! before, or what was asked for.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use coracle_tests::Place;
use coracle_tests::detached::Detached;
use coracle_tests::place::{ext4, text};
use serde_json::Value;

/// More points than any verb has.
const MANY: u64 = 1_000_000;

/// What happens at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// The monitor is killed there.
    Killed,
    /// What it writes there is refused.
    Refused,
}

/// Where the next monitor is told what happens to it.
struct Points(PathBuf);

impl Points {
    fn set(&self, what: Fault, at: u64) {
        let verb = match what {
            Fault::Killed => "die",
            Fault::Refused => "fail",
        };
        fs::write(&self.0, format!("{verb} {at}")).unwrap();
    }

    /// How many were passed since `MANY` was set.
    fn passed(&self) -> u64 {
        let text = fs::read_to_string(&self.0).unwrap();
        let left: u64 = text.trim().trim_start_matches("die ").parse().unwrap();
        self.clear();
        MANY - left
    }

    fn clear(&self) {
        // A monitor that died there has removed it.
        let _ = fs::remove_file(&self.0);
    }
}

/// A verb, what takes it back, and what is to be seen of it.
struct Verb<'a> {
    name: &'a str,
    act: Vec<&'a str>,
    back: Vec<&'a str>,
    /// Whether it is done, as the sandbox is shown.
    shown: Box<dyn Fn(&Value) -> bool + 'a>,
    /// A shell command that prints `yes` in the container if it is done; none if that cannot be seen.
    probe: Option<String>,
}

fn plug<'a>(name: &'a str, act: Vec<&'a str>, back: Vec<&'a str>, at: &'a str) -> Verb<'a> {
    Verb {
        name,
        act,
        back,
        shown: Box::new(move |view| {
            let plugs = view["plugs"].as_array().unwrap();
            plugs.iter().any(|plug| plug["destination"] == at && plug["state"] == "ok")
        }),
        probe: Some(format!("grep -q ' {at} ' /proc/mounts && echo yes || echo no")),
    }
}

fn assert_whole(sandbox: &Detached<'_>, verb: &Verb<'_>, step: &str) -> bool {
    // Whoever asks brings a monitor up.
    let view = sandbox.view();
    let shown = (verb.shown)(&view);
    if view["state"] == "paused" {
        return shown;
    }
    if let Some(probe) = &verb.probe {
        let seen = sandbox.sh(probe);
        assert_eq!(seen.trim() == "yes", shown, "{step}: {view:#}");
    }
    shown
}

/// Kills a monitor at each step of the verb and of what takes it back.
fn every_step(place: &Place, sandbox: &Detached<'_>, points: &Points, verb: &Verb<'_>) -> u64 {
    let mut steps = 0;
    for (act, back, wanted) in [(&verb.act, &verb.back, true), (&verb.back, &verb.act, false)] {
        points.set(Fault::Killed, MANY);
        sandbox.run(act);
        let passed = points.passed();
        assert!(passed > 0, "{}: nothing is written down", verb.name);
        assert_eq!(assert_whole(sandbox, verb, verb.name), wanted, "{} did nothing", verb.name);
        sandbox.run(back);
        let before = kinds(place);
        let killed = (0..passed).map(|at| (Fault::Killed, at));
        let refused = (0..passed).map(|at| (Fault::Refused, at));
        for (fault, at) in killed.chain(refused) {
            let step = format!("{} {act:?} {fault:?} at {at} of {passed}", verb.name);
            points.set(fault, at);
            let told = sandbox.output(act);
            points.clear();
            let is_done = assert_whole(sandbox, verb, &step) == wanted;
            // Who was told that it is done can rely on it.
            assert!(is_done || !told.status.success(), "{step}: told, and not done");
            if is_done && !told.status.success() && fault == Fault::Refused && !wanted {
                // It may be half out, and says that it is to be removed again.
                sandbox.output(act);
                assert!(!assert_whole(sandbox, verb, &step), "{step}: it stays half out");
            }
            if is_done {
                let undone = sandbox.output(back);
                assert!(undone.status.success(), "{step}: {}", text(&undone.stderr));
            }
            let deadline = Instant::now() + Duration::from_secs(5);
            while kinds(place) != before && Instant::now() < deadline {
                sleep(Duration::from_millis(50));
            }
            let after = kinds(place);
            let more: Vec<_> = after.iter().filter(|line| !before.contains(line)).collect();
            let less: Vec<_> = before.iter().filter(|line| !after.contains(line)).collect();
            assert!(more.is_empty() && less.is_empty(), "{step}: more {more:#?}, less {less:#?}");
            steps += 1;
        }
        sandbox.run(act);
    }
    // As it was before.
    if assert_whole(sandbox, verb, verb.name) {
        sandbox.run(&verb.back);
    }
    steps
}

/// What is on the host, without what differs from time to time.
fn kinds(place: &Place) -> Vec<String> {
    let mut kinds: Vec<String> = place.seen().iter().map(|line| nameless(line)).collect();
    kinds.sort();
    kinds
}

/// A line of what is on the host without the numbers that differ from time to time.
fn nameless(line: &str) -> String {
    // Addresses of taps are made up anew, in hexadecimal.
    let is_network = line.starts_with("network:");
    let is_number = |c: char| c.is_ascii_digit() || (is_network && c.is_ascii_hexdigit());
    line.chars().filter(|c| !is_number(*c)).collect::<String>().replace(" --adopt", "")
}

#[test]
fn every_verb_is_done_or_undone_at_whatever_step_its_monitor_dies() {
    let place = Place::networked();
    let given = tempfile::tempdir().unwrap();
    let path = |name: &str| given.path().join(name).to_str().unwrap().to_owned();
    ext4(&given.path().join("disk.img"), 4);
    ext4(&given.path().join("pmem.img"), 4);
    fs::create_dir(given.path().join("tree")).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(given.path().join("s.sock")).unwrap();
    let (disk, pmem, tree, socket) =
        (path("disk.img"), path("pmem.img"), path("tree"), path("s.sock"));
    let points = Points(given.path().join("points"));
    let sandbox = Detached::mortal(&place, &["--net", "none", "--max-cpus", "2"], &points.0);
    let add_nine = vec!["share", "add", "@", "--type", "9p", &tree, "/nine"];
    let mut verbs = vec![
        plug("disk", vec!["disk", "add", "@", &disk, "/d"], vec!["disk", "rm", "@", "/d"], "/d"),
        plug("share", vec!["share", "add", "@", &tree, "/v"], vec!["share", "rm", "@", "/v"], "/v"),
        plug("9p", add_nine, vec!["share", "rm", "@", "/nine"], "/nine"),
        plug("pipe", vec!["pipe", "add", "@", &socket, "/p"], vec!["pipe", "rm", "@", "/p"], "/p"),
        plug("pmem", vec!["pmem", "add", "@", &pmem, "/m"], vec!["pmem", "rm", "@", "/m"], "/m"),
    ];
    verbs.push(Verb {
        name: "network",
        act: vec!["net", "add", "@", "lab"],
        back: vec!["net", "rm", "@", "lab"],
        shown: Box::new(|view| !view["networks"].as_array().unwrap().is_empty()),
        probe: Some("grep -q eth /proc/net/dev && echo yes || echo no".to_owned()),
    });
    verbs.push(Verb {
        name: "container",
        act: vec!["run", "-d", "--in", "@", "--name", "side", "--", "sleep", "1000"],
        back: vec!["rm", "-f", "@/side"],
        shown: Box::new(|view| !view["containers"].is_null()),
        // One whose removal was refused half-way has ended, and is there to be removed again.
        probe: None,
    });
    verbs.push(Verb {
        name: "update",
        act: vec!["update", "--cpus", "2", "@"],
        back: vec!["update", "--cpus", "1", "@"],
        shown: Box::new(|view| view["vcpus"] == 2),
        probe: None,
    });
    verbs.push(Verb {
        name: "pause",
        act: vec!["pause", "@"],
        back: vec!["resume", "@"],
        shown: Box::new(|view| view["state"] == "paused"),
        probe: None,
    });
    // One that has been adopted listens for what the agent says for as long as it lives.
    sandbox.kill_monitor();
    sandbox.sh("true");
    let mut total = 0;
    for verb in &verbs {
        let steps = every_step(&place, &sandbox, &points, verb);
        println!("{}: {steps} steps", verb.name);
        total += steps;
    }
    println!("{total} steps in all");
    assert_eq!(
        sandbox.sh("echo well; ls /sys/block | grep -v pmem"),
        "well\nvda\n",
        "a disk is left"
    );
    let state = place.output(["state", "verify"]);
    assert!(state.status.success(), "{}{}", text(&state.stdout), text(&state.stderr));
    sandbox.run(&["rm", "--force", "@"]);
    place.assert_nothing_left();
}

#[test]
fn a_sandbox_that_is_being_made_or_ended_is_gone_or_whole_at_whatever_step_its_monitor_dies() {
    let place = Place::networked();
    let given = tempfile::tempdir().unwrap();
    let points = Points(given.path().join("points"));
    let name = format!("{}-steps", place.mark());
    let run = || {
        let words =
            ["run", "-d", "--accel", "tcg", "--name", &name, "--net", "lab", "--", "sleep", "1000"];
        place.coracle(words).env("CORACLE_TEST_POINTS", &points.0).output().unwrap()
    };
    let exists = || !text(&place.output(["ls", "-q"]).stdout).is_empty();
    let recovered = |step: &str| {
        let recovered = place.output(["recover"]);
        assert!(recovered.status.success(), "{step}: {}", text(&recovered.stdout));
    };

    points.set(Fault::Killed, MANY);
    assert!(run().status.success());
    let making = points.passed();
    points.set(Fault::Killed, MANY);
    assert!(place.output(["stop", "-t", "0", &name]).status.success());
    let stopping = points.passed();
    assert!(place.output(["rm", &name]).status.success());
    place.assert_nothing_left();

    let killed = (0..making).map(|at| (Fault::Killed, at));
    let refused = (0..making).map(|at| (Fault::Refused, at));
    for (fault, at) in killed.chain(refused) {
        let step = format!("run {fault:?} at {at} of {making}");
        points.set(fault, at);
        let told = run();
        points.clear();
        if fault == Fault::Killed {
            recovered(&step);
        }
        // At the last step it runs already, and only its caller does not know.
        if exists() {
            let word = place.output(["exec", &name, "--", "echo", "well"]);
            assert_eq!(text(&word.stdout), "well\n", "{step}: {}", text(&word.stderr));
            assert!(place.output(["rm", "-f", &name]).status.success(), "{step}");
        } else {
            assert_eq!(told.status.code(), Some(125), "{step}");
        }
        assert_eq!(place.left(), Vec::<String>::new(), "{step}");
    }
    for at in 0..stopping {
        let step = format!("stop killed at {at} of {stopping}");
        assert!(run().status.success(), "{step}");
        points.set(Fault::Killed, at);
        place.output(["stop", "-t", "0", &name]);
        points.clear();
        recovered(&step);
        if !text(&place.output(["ls"]).stdout).contains("exited") {
            // It had not begun.
            assert!(place.output(["stop", "-t", "0", &name]).status.success(), "{step}");
        }
        let code = place.output(["wait", &name]).status.code();
        assert_eq!(code, Some(137), "{step}");
        assert!(place.output(["rm", &name]).status.success(), "{step}");
        assert_eq!(place.left(), Vec::<String>::new(), "{step}");
    }
    println!("{making} steps of making, {stopping} of ending");
}
