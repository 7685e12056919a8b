//! What stands between a VM that was taken over and its host, on a real one.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use coracle_tests::Place;
use coracle_tests::detached::{Detached, kill};

/// A line of a process's status.
fn status(pid: u32, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
    line.unwrap().trim().to_owned()
}

/// The control groups of this name there are.
fn groups(name: &str) -> Vec<PathBuf> {
    let roots = ["/sys/fs/cgroup/cpu/coracle", "/sys/fs/cgroup/coracle"].map(Path::new);
    let all = roots.into_iter().flat_map(|root| fs::read_dir(root).into_iter().flatten().flatten());
    let named = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with(name);
    all.map(|entry| entry.path()).filter(named).collect()
}

/// The processes in a control group.
fn members(group: &Path) -> Vec<u32> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap();
    text.lines().map(|line| line.parse().unwrap()).collect()
}

#[test]
fn a_vm_has_a_user_and_a_group_of_its_own_no_rights_and_few_system_calls() {
    let place = Place::new();
    let tree = tempfile::tempdir().unwrap();
    let shared = |at: &str, mode: &str| format!("{}:{at}{mode}", tree.path().display());
    let (plain, view, nine) = (shared("/v", ""), shared("/r", ":ro"), shared("/n", ""));
    let one = Detached::start(&place, &["-v", &plain, "-v", &view, "--share", &nine]);
    let other = Detached::start(&place, &[]);
    let (vm, neighbour) = (one.vm().unwrap(), other.vm().unwrap());
    for pid in [vm, neighbour] {
        assert_eq!(status(pid, "CapEff"), "0000000000000000");
        assert_eq!(status(pid, "CapBnd"), "0000000000000000");
        assert_eq!((status(pid, "NoNewPrivs"), status(pid, "Seccomp")), ("1".into(), "2".into()));
        assert!(!status(pid, "Uid").starts_with("0\t"), "it runs as root");
        // What QEMU may not do, it is killed for.
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
        for what in
            ["obsolete=deny", "elevateprivileges=deny", "spawn=deny", "resourcecontrol=deny"]
        {
            assert!(line.contains(what), "{what}: {line}");
        }
    }
    assert_ne!(status(vm, "Uid"), status(neighbour, "Uid"));

    // The VM and whoever serves its shares, with all they start; not the runtime.
    let group = groups(&one.name);
    assert_eq!(group.len(), 1, "{group:?}");
    let inside = members(&group[0]);
    let command = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        String::from_utf8_lossy(&line).replace('\0', " ")
    };
    let lines: Vec<String> = inside.iter().map(command).collect();
    let count = |what: &str| lines.iter().filter(|line| line.contains(what)).count();
    // A virtiofsd is two processes, one of which waits for the other.
    assert_eq!((count("qemu-system"), count(" plan9 ")), (1, 1), "{lines:#?}");
    assert_eq!((count("virtiofsd"), lines.len()), (4, 6), "{lines:#?}");
    let servers = inside.iter().filter(|pid| command(pid).contains("virtiofsd"));
    let confined = servers.filter(|pid| status(**pid, "Seccomp") == "2").count();
    assert_eq!(confined, 2, "each that serves is confined");
    assert!(!inside.contains(&one.monitor().unwrap()) && !inside.contains(&one.keeper().unwrap()));

    // So does what the next monitor starts.
    one.kill_monitor();
    one.run(&["share", "add", "@", tree.path().to_str().unwrap(), "/later"]);
    assert_eq!(members(&group[0]).len(), 8);
    kill(one.vm());
    one.output(&["wait", "@"]);
    one.run(&["rm", "-f", "@"]);
    other.run(&["rm", "-f", "@"]);
    assert_eq!(groups(&one.name), [] as [PathBuf; 0]);
    place.assert_nothing_left();
}

#[test]
fn a_group_that_nobody_is_in_any_more_is_found_and_removed() {
    let place = Place::new();
    let brief = Detached::start(&place, &[]);
    let group = groups(&brief.name).remove(0);
    brief.run(&["rm", "-f", "@"]);
    fs::create_dir(&group).unwrap();
    let found = place.output(["gc", "--format", "json"]);
    let found = String::from_utf8(found.stdout).unwrap();
    assert!(found.contains("cgroup") && found.contains(&brief.name), "{found}");
    assert!(place.output(["gc", "--force"]).status.success());
    assert!(!group.exists());
    place.assert_nothing_left();
}
