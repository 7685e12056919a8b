//! A new monitor and the agents of every version there was: a VM is not booted anew because the program
//! on the host was replaced, and guest files may be older than that.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use coracle_tests::Place;
use coracle_tests::detached::Detached;
use coracle_tests::place::{ext4, text};

/// Guest files with the agent of another version, for all sandboxes of the place.
fn install(place: &Place, agent: &Path) {
    let unpacked = place.root().join("agent");
    let packed = fs::File::open(agent).unwrap();
    fs::write(&unpacked, zstd::decode_all(packed).unwrap()).unwrap();
    fs::set_permissions(&unpacked, fs::Permissions::from_mode(0o755)).unwrap();
    let guest = place.root().join("guest");
    fs::remove_file(&guest).unwrap();
    let mut build = place.coracle(["guest", "build", "--agent"]);
    build.arg(&unpacked).arg("--output").arg(&guest);
    // The kernel that `make setup` fetched is the installation's.
    let built = build.env_remove("CORACLE_ROOT").output().unwrap();
    assert!(built.status.success(), "{}", text(&built.stderr));
}

#[test]
fn a_vm_whose_agent_is_of_an_older_version_is_run_adopted_and_ended() {
    let agents = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/agents");
    let given = tempfile::tempdir().unwrap();
    let disk = given.path().join("disk.img");
    ext4(&disk, 4);
    let mut versions = 0;
    for agent in fs::read_dir(agents).unwrap() {
        let agent = agent.unwrap().path();
        let place = Place::new();
        install(&place, &agent);
        let script = "trap 'exit 6' TERM; n=0; while :; do echo $n; n=$((n+1)); sleep 0.1; done";
        let old = Detached::start(&place, &["--", "sh", "-c", script]);
        old.run(&["disk", "add", "@", disk.to_str().unwrap(), "/d"]);
        old.run(&["run", "-d", "--in", "@", "--name", "side", "--", "sleep", "1000"]);
        old.kill_runtime();
        assert_eq!(old.sh("echo well > /d/file; cat /d/file"), "well\n", "{agent:?}");
        assert_eq!(old.run(&["exec", "@/side", "--", "hostname"]), format!("{}\n", old.name));
        old.run(&["disk", "rm", "@", "/d"]);
        old.run(&["rm", "-f", "@/side"]);
        old.run(&["pause", "@"]);
        old.kill_monitor();
        old.run(&["resume", "@"]);
        old.run(&["stop", "@"]);
        assert_eq!(old.output(&["wait", "@"]).status.code(), Some(6), "{agent:?}");
        let log = old.run(&["logs", "@"]);
        let numbers: Vec<usize> = log.lines().map(|line| line.parse().unwrap()).collect();
        assert_eq!(numbers, (0..numbers.len()).collect::<Vec<_>>(), "{agent:?}");
        assert!(numbers.len() > 5);
        old.run(&["rm", "@"]);
        place.assert_nothing_left();
        versions += 1;
    }
    assert!(versions > 0, "no version's agent is kept");
}
