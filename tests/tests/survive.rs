//! The sandbox outlives its runtime: monitors and keepers are killed, on real VMs, and nothing is lost.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use coracle_tests::Place;
use coracle_tests::detached::{Detached, kill};
use coracle_tests::place::text;
use sha2::{Digest, Sha256};

/// Counts as fast as it can print, so that every missing or doubled byte shows.
const COUNT: &str = "awk 'BEGIN { for (n = 0; ; n++) print n }'";

/// A number from a seed, the next one each time.
struct Dice(u64);

impl Dice {
    /// The seed is printed, and taken from `CORACLE_TEST_SEED` to see a run again.
    fn new() -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let given = std::env::var("CORACLE_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or(u64::from(now.subsec_nanos()) ^ now.as_secs());
        println!("CORACLE_TEST_SEED={seed}");
        Self(seed | 1)
    }

    fn roll(&mut self, below: u64) -> u64 {
        // xorshift64
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

fn until(what: &str, limit: Duration, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !is_so() {
        assert!(Instant::now() < deadline, "not in {limit:?}: {what}");
        sleep(Duration::from_millis(20));
    }
}

/// Fails on the first number that is not one more than the one before.
fn counted(log: &str) -> u64 {
    let mut next = 0;
    // The last line may still be on its way.
    for line in log[..log.rfind('\n').map_or(0, |end| end + 1)].lines() {
        assert_eq!(line, next.to_string(), "the count was broken");
        next += 1;
    }
    next
}

#[test]
fn two_hundred_killed_monitors_lose_no_byte_of_output_no_command_and_no_disk() {
    let place = Place::new();
    let mut dice = Dice::new();
    // `scripts/bench kills` asks for more.
    let kills = std::env::var("CORACLE_TEST_KILLS").ok().and_then(|kills| kills.parse().ok());
    let kills = kills.unwrap_or(200);
    let disk = place.root().join("disk.img");
    fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let disk = disk.to_str().unwrap().to_owned();
    let logs = ["--log-size", "64m", "--log-files", "100"];
    let flood = ["--", "sh", "-c", COUNT];
    let sandbox = Detached::start(&place, &[&logs[..], &flood[..]].concat());
    let vm = sandbox.view()["vm"]["pid"].clone();

    // An exec storm and a disk that comes and goes, while monitors die.
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let over = || is_over.load(std::sync::atomic::Ordering::Relaxed);
    let through = std::sync::atomic::AtomicU32::new(0);
    let (mut killed, began) = (0, Instant::now());
    let (echoed, refused) = std::thread::scope(|scope| {
        let storm = scope.spawn(|| {
            let (mut echoed, mut refused) = (0_u32, 0_u32);
            while !over() {
                let word = format!("word{echoed}");
                let output = sandbox.output(&[
                    "exec",
                    "@",
                    "--",
                    "sh",
                    "-c",
                    &format!("echo {word}; exit 7"),
                ]);
                match output.status.code() {
                    Some(7) => {
                        assert_eq!(text(&output.stdout), format!("{word}\n"));
                        echoed += 1;
                        through.store(echoed, std::sync::atomic::Ordering::Relaxed);
                    }
                    // It died before it had answered: nothing runs, and the caller was told.
                    Some(125) => {
                        let said = text(&output.stderr);
                        assert!(said.contains("E-MONITOR") || said.contains("E-EXEC"), "{said}");
                        refused += 1;
                    }
                    code => panic!("{code:?}: {}", text(&output.stderr)),
                }
            }
            (echoed, refused)
        });
        let plugs = scope.spawn(|| {
            while !over() {
                for words in [&["disk", "add", "@", &disk][..], &["disk", "rm", "@", &disk]] {
                    let output = sandbox.output(words);
                    let said = text(&output.stderr);
                    let code = output.status.code();
                    // Whether it was done before the monitor died is seen by the next.
                    let is_known =
                        ["E-MONITOR", "E-PLUG-UNKNOWN", "E-PLUG-AMBIGUOUS", "E-PLUG-BUSY"];
                    let is_told = is_known.iter().any(|known| said.contains(known));
                    assert!(code == Some(0) || is_told, "{words:?} {code:?}: {said}");
                }
            }
        });
        // On a slow machine few commands get through between two deaths: then more die, less often.
        while killed < kills || through.load(std::sync::atomic::Ordering::Relaxed) <= 10 {
            let most = if killed < kills { 300 } else { 3000 };
            sleep(Duration::from_millis(40 + dice.roll(most)));
            if let Some(monitor) = sandbox.monitor() {
                kill(Some(monitor));
                killed += 1;
            }
        }
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        plugs.join().unwrap();
        storm.join().unwrap()
    });
    let seconds = began.elapsed().as_secs_f64();

    assert_eq!(sandbox.sh("echo well"), "well\n");
    assert_eq!(sandbox.view()["vm"]["pid"], vm, "the VM is another");
    // As many uses as are listed, and no more: each can be taken out once.
    let listed = sandbox.run(&["disk", "ls", "@", "--format", "json"]);
    let listed: Vec<serde_json::Value> = serde_json::from_str(&listed).unwrap();
    let seen = sandbox.sh("ls /sys/class/scsi_disk | wc -l").trim().parse::<usize>().unwrap();
    assert_eq!(seen, usize::from(!listed.is_empty()), "{listed:?}");
    let log = text(&sandbox.output(&["logs", "@"]).stdout);
    let numbers = counted(&log);
    assert!(numbers > 1000 && echoed > 10, "{numbers} numbers, {echoed} commands");
    println!(
        "{killed} kills in {seconds:.0} s: {} MB of output, {echoed} commands, {refused} refused",
        log.len() / 1_000_000
    );
    sandbox.run(&["rm", "--force", "@"]);
    assert_eq!(text(&place.output(["gc", "--dry-run"]).stdout), "nothing is left behind\n");
    place.assert_nothing_left();
}

#[test]
fn a_command_feels_nothing_of_the_monitors_that_die_under_its_streams() {
    let place = Place::new();
    let mut dice = Dice::new();
    let sandbox = Detached::start(&place, &[]);
    let bytes: Vec<u8> = (0..4_000_000).map(|_| dice.roll(256).to_le_bytes()[0]).collect();
    let file = place.root().join("input");
    fs::write(&file, &bytes).unwrap();
    let mut exec = place
        .coracle(["exec", "-i", &sandbox.name, "--", "sh", "-c", "tee /dev/stderr; exit 9"])
        .stdin(fs::File::open(&file).unwrap())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = exec.stdout.take().unwrap();
    let (tell, begun) = std::sync::mpsc::channel();
    let reading = std::thread::spawn(move || {
        let mut bytes = vec![0; 1];
        if stdout.read_exact(&mut bytes).is_ok() {
            tell.send(()).unwrap();
        }
        stdout.read_to_end(&mut bytes).unwrap();
        bytes
    });
    let waiting = std::thread::spawn(move || exec.wait_with_output().unwrap());
    // One that dies before it has answered has started nothing, and its caller is told so. What is wrong
    // if nothing comes is told below.
    let _ = begun.recv();
    let mut killed = 0;
    while !waiting.is_finished() && killed < 30 {
        sleep(Duration::from_millis(30 + dice.roll(120)));
        sandbox.kill_monitor();
        killed += 1;
    }
    let output = waiting.join().unwrap();
    assert_eq!(
        output.status.code(),
        Some(9),
        "{}",
        text(&output.stderr[..100.min(output.stderr.len())])
    );
    let stdout = reading.join().unwrap();
    let digest = |bytes: &[u8]| Sha256::digest(bytes);
    assert_eq!(stdout.len(), bytes.len());
    assert_eq!(digest(&stdout), digest(&bytes));
    assert_eq!(digest(&output.stderr), digest(&bytes));
    assert!(killed > 2, "only {killed} monitors died");
}

#[test]
fn without_monitor_and_keeper_everything_goes_on_and_the_next_command_takes_it_up() {
    let place = Place::new();
    let given = place.root().join("given");
    fs::create_dir_all(&given).unwrap();
    fs::write(given.join("file"), "shared\n").unwrap();
    let volume = format!("{}:/vol", given.display());
    let nine = format!("{}:/nine", given.display());
    // Not of this place: it is the test's own.
    let elsewhere = tempfile::tempdir().unwrap();
    let socket = elsewhere.path().join("s.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let pipe = format!("{}:/run/s.sock", socket.display());
    let beat = "trap 'exit 5' TERM; n=0; while :; do n=$((n+1)); cat /vol/file >> /vol/beats && echo $n; sleep 0.1; done";
    let sandbox = Detached::start(
        &place,
        &["-v", &volume, "--share", &nine, "--pipe", &pipe, "--", "sh", "-c", beat],
    );
    let beats = || fs::read_to_string(given.join("beats")).unwrap_or_default().lines().count();
    until("the shares are used", Duration::from_secs(20), || beats() > 2);

    // With the keeper 9P goes on, too.
    for _ in 0..3 {
        sandbox.kill_monitor();
        assert_eq!(sandbox.sh("cat /nine/file"), "shared\n");
    }
    for round in 0..3 {
        sandbox.kill_runtime();
        let before = beats();
        until("the shares work without a runtime", Duration::from_secs(20), || {
            beats() > before + 3
        });
        // Nobody is there, and the list knows it.
        assert_eq!(
            (sandbox.listed()["state"].as_str(), sandbox.monitor()),
            (Some("running"), None)
        );
        assert_eq!(sandbox.sh("cat /vol/file"), "shared\n", "round {round}");
        assert!(sandbox.monitor().is_some());
        until("there is a keeper again", Duration::from_secs(10), || sandbox.keeper().is_some());
    }
    // What ran over the channel was cut off with the keeper, and is said to be.
    assert!(sandbox.run(&["share", "ls", "@"]).contains("broken"));
    // What was there before can be taken out after, and what comes after is as good.
    sandbox.run(&["share", "rm", "@", "/nine"]);
    sandbox.run(&["share", "add", "@", "--type", "9p", given.to_str().unwrap(), "/again"]);
    assert_eq!(sandbox.sh("cat /again/file; ls -d /nine/file 2>&1 | grep -c No"), "shared\n1\n");

    // A stop that its monitor does not live to see through.
    let stop = place.coracle(["stop", "-t", "30", &sandbox.name]).stdout(Stdio::null()).spawn();
    let mut stop = stop.unwrap();
    until("it is being stopped", Duration::from_secs(10), || {
        sandbox.listed()["state"] != "running"
    });
    sandbox.kill_monitor();
    stop.wait().unwrap();
    let code = sandbox.output(&["wait", "@"]).status.code();
    assert_eq!((code, sandbox.listed()["state"].as_str()), (Some(5), Some("exited")));
    let log = text(&sandbox.output(&["logs", "@"]).stdout);
    assert_eq!(log.lines().last().unwrap().parse::<usize>().unwrap(), log.lines().count());
    sandbox.run(&["rm", "@"]);
    place.assert_nothing_left();
}

#[test]
fn an_end_nobody_sees_is_told_by_the_guest_and_one_of_the_vm_by_the_host() {
    let place = Place::new();
    // The command ends while nobody is there.
    let sandbox = Detached::start(&place, &["--", "sh", "-c", "sleep 1; echo last words; exit 7"]);
    sandbox.kill_runtime();
    sleep(Duration::from_millis(1500));
    // It is taken up, and at once found to have ended.
    let recovered = text(&place.output(["recover"]).stdout);
    assert!(recovered.starts_with(&sandbox.name) && !recovered.contains("failed"), "{recovered}");
    assert_eq!(sandbox.output(&["wait", "@"]).status.code(), Some(7));
    assert_eq!(sandbox.run(&["logs", "@"]), "last words\n");
    sandbox.run(&["rm", "@"]);

    // The VM is killed under its monitor; and with it.
    for with_monitor in [false, true] {
        let sandbox = Detached::start(&place, &[]);
        let vm = sandbox.vm();
        if with_monitor {
            sandbox.kill_runtime();
        }
        kill(vm);
        assert_eq!(sandbox.output(&["wait", "@"]).status.code(), Some(255));
        until("the monitor ends", Duration::from_secs(10), || sandbox.monitor().is_none());
        let view = sandbox.listed();
        assert_eq!(view["state"], "exited");
        assert!(view["reason"].as_str().is_some_and(|why| !why.is_empty()), "{view}");
        assert!(sandbox.refused(&["exec", "@", "--", "true"]).contains("E-NOT-RUNNING"));
        sandbox.run(&["rm", "@"]);
    }
    place.assert_nothing_left();
}

#[test]
fn after_a_boot_of_the_host_policies_act_and_the_rest_is_cleaned_up() {
    let place = Place::new();
    let always =
        Detached::start(&place, &["--restart", "always", "--", "sh", "-c", "echo up; sleep 1000"]);
    let never = Detached::start(&place, &["--", "sleep", "1000"]);
    // All processes are gone, and with them what is in /run.
    for sandbox in [&always, &never] {
        sandbox.kill_everything();
    }
    fs::remove_dir_all(place.root().join("run")).unwrap();
    let recovered = place.output(["recover"]);
    assert!(recovered.status.success(), "{}", text(&recovered.stderr));
    until("the policy acts", Duration::from_secs(30), || always.listed()["state"] == "running");
    assert_eq!(always.listed()["restarts"], 1);
    assert_eq!(always.sh("echo $$ > /dev/null; echo again"), "again\n");
    assert_eq!(always.run(&["logs", "@"]), "up\nup\n");
    assert_eq!(never.listed()["state"], "exited");
    assert_eq!(never.output(&["wait", "@"]).status.code(), Some(255));

    // A command that fails is started again, so often as was said, and a stopped one is not.
    always.run(&["stop", "-t", "0", "@"]);
    sleep(Duration::from_millis(500));
    assert_eq!(always.listed()["state"], "exited");
    let fails = Detached::start(
        &place,
        &["--restart", "on-failure:1", "--", "sh", "-c", "echo try; exit 3"],
    );
    until("it has been tried twice", Duration::from_secs(30), || {
        let view = fails.listed();
        view["state"] == "exited" && view["restarts"] == 1
    });
    assert_eq!(fails.run(&["logs", "@"]), "try\ntry\n");
    // Started by hand, it runs again; its log goes on.
    never.run(&["start", "@"]);
    assert_eq!(never.sh("echo here"), "here\n");
    for sandbox in [&always, &never, &fails] {
        sandbox.run(&["rm", "--force", "@"]);
    }
    place.assert_nothing_left();
}

/// A file system of its own, as small as that, on a folder.
struct Small<'a>(&'a std::path::Path);

impl<'a> Small<'a> {
    fn mount(at: &'a std::path::Path, mib: u32) -> Self {
        fs::create_dir_all(at).unwrap();
        let size = format!("size={mib}m");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at).status();
        assert!(mounted.unwrap().success());
        Self(at)
    }

    /// Makes room.
    fn grow(&self, mib: u32) {
        let size = format!("remount,size={mib}m");
        let grown = Command::new("mount").args(["-o", &size]).arg(self.0).status();
        assert!(grown.unwrap().success());
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[test]
fn output_that_the_disk_has_no_room_for_waits_in_memory_and_loses_no_byte() {
    let place = Place::new();
    let logs = place.root().join("logs");
    fs::create_dir(&logs).unwrap();
    let small = Small::mount(&logs, 2);
    let begins = "while [ ! -e /go ]; do sleep 0.1; done; yes 0123456 | head -c 6000000; echo end; \
                  while [ -e /go ]; do sleep 0.1; done; exit 3";
    let options = ["--log-mode", "spill", "--log-size", "100m", "--", "sh", "-c", begins];
    let sandbox = Detached::start(&place, &options);
    assert!(fs::write(logs.join("filler"), vec![0; 8 << 20]).is_err(), "the disk is not full");
    sandbox.sh("touch /go");
    // It does not wait for the disk, which takes nothing.
    let spilled = sandbox.run_dir().join("spilled");
    let is_spilled = || {
        let files = fs::read_dir(spilled.join(&sandbox.name)).into_iter().flatten().flatten();
        files.map(|file| file.metadata().unwrap().len()).sum::<u64>() > 6_000_000
    };
    until("all of it is spilled", Duration::from_secs(30), is_spilled);
    sandbox.kill_runtime();
    sandbox.sh("true");
    assert!(is_spilled(), "the next monitor lost it");
    small.grow(64);
    // It may be cut off by the end that it brings about, which is looked at next.
    sandbox.output(&["exec", "@", "--", "rm", "/go"]);
    assert_eq!(sandbox.output(&["wait", "@"]).status.code(), Some(3));
    let log = sandbox.output(&["logs", "@"]).stdout;
    let expected: Vec<u8> = b"0123456\n".iter().copied().cycle().take(6_000_000).collect();
    assert_eq!(log.len(), expected.len() + 4);
    assert!(log.starts_with(&expected) && log.ends_with(b"end\n"));
    sandbox.run(&["rm", "@"]);
    drop(small);
    place.assert_nothing_left();
}

#[test]
fn a_full_disk_stops_no_command_and_its_end_is_written_down_when_there_is_room() {
    let place = Place::new();
    // The whole of the place on a disk that is soon full, with what it had in it before.
    let guest = fs::read_link(place.root().join("guest")).unwrap();
    let small = Small::mount(place.root(), 4);
    std::os::unix::fs::symlink(guest, place.root().join("guest")).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let disk = elsewhere.path().join("disk.img");
    fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let disk = disk.to_str().unwrap();
    let waits = "trap 'exit 4' TERM; n=0; while :; do echo $n; n=$((n+1)); sleep 0.1; done";
    let sandbox = Detached::start(&place, &["--", "sh", "-c", waits]);
    let filler = place.root().join("filler");
    let full = fs::write(&filler, vec![0; 8 << 20]);
    assert!(full.is_err(), "the disk is not full");
    // What is set aside for the end of a command is used up first.
    let refused = (0..200).find_map(|_| {
        let output = sandbox.output(&["disk", "add", "@", disk]);
        if !output.status.success() {
            return Some(text(&output.stderr));
        }
        let output = sandbox.output(&["disk", "rm", "@", disk]);
        (!output.status.success()).then(|| text(&output.stderr))
    });
    let refused = refused.expect("a full disk refuses nothing");
    assert!(refused.contains("E-STATE-IO") || refused.contains("E-VM-RECORD"), "{refused}");
    // It goes on, and so does whoever takes it over.
    for _ in 0..3 {
        sandbox.kill_runtime();
        assert_eq!(sandbox.sh("echo well"), "well\n");
    }
    let stop = place.coracle(["stop", "-t", "20", &sandbox.name]).stdout(Stdio::null()).spawn();
    sleep(Duration::from_millis(500));
    fs::remove_file(&filler).unwrap();
    assert!(stop.unwrap().wait().unwrap().success());
    assert_eq!(sandbox.output(&["wait", "@"]).status.code(), Some(4));
    let log = text(&sandbox.output(&["logs", "@"]).stdout);
    assert!(counted(&log) > 5);
    sandbox.run(&["rm", "@"]);
    let left: Vec<String> =
        place.left().into_iter().filter(|line| !line.starts_with("mount: tmpfs")).collect();
    assert_eq!(left, Vec::<String>::new());
    drop(sandbox);
    drop(small);
}
