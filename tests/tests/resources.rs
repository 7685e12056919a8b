//! What a sandbox that runs uses and may use, by the command line, on a real VM.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use coracle_tests::Place;
use coracle_tests::detached::Detached;
use serde_json::Value;

fn stats(a: &Detached<'_>) -> Value {
    let all: Value = serde_json::from_str(&a.run(&["stats", "@", "--format", "json"])).unwrap();
    all[0].clone()
}

/// Memory of the guest by its own books, in MiB.
fn total(a: &Detached<'_>) -> u64 {
    let kib = a.sh("awk '/MemTotal/ { print $2 }' /proc/meminfo");
    kib.trim().parse::<u64>().unwrap() / 1024
}

/// The guest's books follow a moment later.
fn soon(is_so: impl Fn() -> bool) -> bool {
    (0..50).any(|_| {
        is_so() || {
            std::thread::sleep(Duration::from_millis(100));
            false
        }
    })
}

#[test]
fn a_sandbox_is_given_more_and_less_stands_still_and_tells_what_it_uses() {
    let place = Place::new();
    let room = ["--memory=256m", "--max-memory=512m", "--max-cpus=2"];
    let a = Detached::start(&place, &room);

    // The VM: processors and memory up and down, and no further than there is room.
    assert_eq!(a.sh("nproc"), "1\n");
    let before = total(&a);
    assert!(before > 190, "{before} of 256 MiB are left of room that nobody needs");
    a.run(&["update", "@", "--cpus", "2", "--memory", "384m"]);
    assert_eq!(a.sh("nproc"), "2\n");
    assert!(soon(|| total(&a) > before + 100), "{} MiB", total(&a));
    let view: Value = serde_json::from_str(&a.run(&["inspect", "@"])).unwrap();
    assert_eq!((&view["vcpus"], &view["memory_mib"]), (&2.into(), &384.into()));
    a.run(&["update", "@", "--cpus", "1", "--memory", "256m"]);
    assert_eq!(a.sh("nproc"), "1\n");
    assert!(soon(|| total(&a) < before + 16), "{} MiB", total(&a));
    assert!(a.refused(&["update", "@", "--cpus", "3"]).contains("3 is not within what the VM"));
    assert!(a.refused(&["update", "@", "--memory", "1g"]).contains("1024 is not within"));
    assert!(a.refused(&["update", "@"]).contains("say what shall be other"));
    assert!(a.refused(&["update", "@", "--limit-cpus", "many"]).contains("no number of CPUs"));

    // The container: limits that hold, are told, and go again.
    let limits = ["--limit-memory", "32m", "--limit-cpus", "0.5", "--limit-pids", "20"];
    a.run(&[&["update", "@", "--cpu-shares", "512"][..], &limits].concat());
    let files = "cd /sys/fs/cgroup; cat memory.max cpu.max pids.max cpu.weight";
    assert_eq!(a.sh(files), "33554432\n50000 100000\n20\n20\n");
    let used = stats(&a);
    let container = &used["containers"][0];
    assert_eq!(
        (&container["memory_limit_bytes"], &container["pids_limit"]),
        (&33_554_432.into(), &20.into())
    );
    // More than it may have: what grows is killed, and that was counted.
    let grows = "head -c 40m /dev/zero | tail >/dev/null; echo $?";
    assert_ne!(a.sh(grows).trim(), "0");
    assert!(stats(&a)["containers"][0]["memory_failures"].as_u64().unwrap() > 0);
    a.run(&["update", "@", "--limit-memory", "0", "--limit-cpus", "0", "--limit-pids", "0"]);
    assert_eq!(a.sh(files), "max\nmax 100000\nmax\n20\n");
    assert_eq!(a.sh(grows), "0\n");

    // Work is counted where it is done.
    let before = stats(&a);
    a.sh("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; dd if=/dev/zero of=/f bs=1k count=1");
    let after = stats(&a);
    for place in ["/vm/cpu_ns", "/containers/0/cpu_ns"] {
        let number = |usage: &Value| usage.pointer(place).unwrap().as_u64().unwrap();
        assert!(number(&after) > number(&before), "{place}: {before} {after}");
    }
    assert_eq!(after["vm"]["memory_assigned_bytes"], 256 << 20);
    assert!(after["vm"]["memory_bytes"].as_u64().unwrap() > 64 << 20);
    let table = a.run(&["stats"]);
    assert!(table.starts_with("NAME") && table.contains(&a.name), "{table}");

    // Standing still, it uses nothing and refuses what would wait for its guest.
    a.run(&["pause", "@"]);
    a.run(&["pause", "@"]);
    assert!(a.run(&["ls"]).contains("paused"));
    let began = Instant::now();
    let refused = a.refused(&["exec", "@", "--", "true"]);
    assert!(refused.contains("is paused") && refused.contains("coracle resume"), "{refused}");
    assert!(a.refused(&["update", "@", "--limit-pids", "9"]).contains("is paused"));
    let first = stats(&a);
    std::thread::sleep(Duration::from_millis(300));
    let second = stats(&a);
    assert_eq!(first["containers"], Value::Array(Vec::new()));
    let spent = second["vm"]["cpu_ns"].as_u64().unwrap() - first["vm"]["cpu_ns"].as_u64().unwrap();
    assert!(spent < 150_000_000, "{spent} ns while it stood still for 300 ms");
    assert!(began.elapsed() < Duration::from_secs(20));
    a.run(&["resume", "@"]);
    assert_eq!(a.sh("echo on"), "on\n");

    // A paused sandbox can be stopped, and removed by force.
    a.run(&["pause", "@"]);
    a.run(&["stop", "@", "--timeout", "1"]);
    assert!(a.run(&["ls"]).contains("exited"));
    assert!(a.refused(&["stats", "@"]).contains("is not running"));
    drop(a);
    let b = Detached::start(&place, &[]);
    b.run(&["pause", "@"]);
    b.run(&["rm", "--force", "@"]);
    place.assert_nothing_left();
}
