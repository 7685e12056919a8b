//! Joining and leaving a network, with each system call that changes anything failing, or the last one
//! there was: nothing is left, or what is left is found.
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.

mod support;

use std::path::PathBuf;
use std::process::{Command, Output};

use coracle_net::private::Networks;
use support::World;

/// The calls by which anything comes about: files and devices; and the threads that talk to the kernel
/// and the processes that are run, each of which does one thing.
const DIRECT: [&str; 3] = ["/^rename", "ioctl", "write"];
const BY_OTHERS: &str = "/^(clone3?|vfork)$";

fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.ancestors().nth(2).unwrap().join("examples/join");
    assert!(path.exists(), "{} is not built: run all targets of the crate", path.display());
    path
}

/// Runs the program with `fault` on the `n`-th such call; says whether it came to that.
fn run(world: &World, call: &str, fault: &str, n: u32) -> (Output, bool) {
    let (networks, log) = (world.path("networks"), world.path("log"));
    let output = world.run(|| {
        let output = Command::new("strace")
            .args(["-q", "-o"])
            .arg(&log)
            .arg(format!("-etrace={call}"))
            .arg(format!("-einject={call}:{fault}:when={n}"))
            .arg(program())
            .arg(networks)
            .arg("lab,subnet=10.7.0.0/24,subnet=fd07::/64")
            .output();
        Ok(output.expect("strace is installed"))
    });
    let text = std::fs::read_to_string(&log).unwrap();
    let came_to_it = text.contains("INJECTED") || text.contains("killed by SIGKILL");
    (output.unwrap(), came_to_it)
}

/// Has every such call fail in turn, until there is none left to fail; what is left each time is found
/// by the next who looks.
fn at_every_step(calls: &[&str], fault: &str) {
    let world = World::new();
    let networks = Networks::at(world.path("networks"), None);
    let before = world.seen();
    for call in calls {
        let mut n = 1;
        loop {
            let (output, came_to_it) = run(&world, call, fault, n);
            if !came_to_it {
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                break;
            }
            // Of a failure that is what could not be undone, for it was the undoing that failed.
            world.run(|| networks.sweep(|_| false)).unwrap();
            assert_eq!(world.seen(), before, "{call} {n}");
            assert!(networks.all().unwrap().is_empty(), "{call} {n}");
            n += 1;
        }
        assert!(n > 1, "{call} is never called");
    }
}

#[test]
fn a_failure_at_any_step_leaves_nothing_that_is_not_found() {
    at_every_step(&DIRECT, "error=EPERM");
}

#[test]
fn whoever_is_killed_at_any_step_leaves_nothing_that_is_not_found() {
    let calls = [&DIRECT[..], &[BY_OTHERS]].concat();
    at_every_step(&calls, "signal=KILL");
}
