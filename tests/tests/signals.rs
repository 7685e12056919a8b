//! Signals, terminals and sudden deaths: what is told, and that nothing is left.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use coracle_tests::Place;
use coracle_tests::place::text;
use rustix::process::{Pid, Signal, kill_process};

fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    // The child may have ended by itself; its end is what the test looks at.
    let _ = kill_process(pid, signal);
}

/// Starts `coracle run -- sh -c SCRIPT` and returns when the script said `ready`.
fn start_ready(place: &Place, script: &str) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = place
        .coracle(["run", "--", "sh", "-c", script])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    (child, out)
}

#[test]
fn ctrl_c_at_every_stage_ends_it_and_leaves_nothing() {
    let place = Place::new();
    // From before the VM exists to well after its command runs.
    for delay in [0, 20, 60, 150, 400, 800, 1200, 1600, 2200, 3500] {
        let mut child = place
            .coracle(["run", "--", "sleep", "60"])
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        sleep(Duration::from_millis(delay));
        let asked = Instant::now();
        signal(&child, Signal::INT);
        // An init without a handler ignores the signal; the third one ends the sandbox.
        while child.try_wait().unwrap().is_none() {
            assert!(asked.elapsed() < Duration::from_secs(30), "still there, {delay} ms");
            sleep(Duration::from_millis(200));
            signal(&child, Signal::INT);
        }
        let status = child.wait().unwrap();
        let code = status.code().unwrap_or(128 + 2);
        assert!(matches!(code, 130 | 137), "after {delay} ms: {status}");
        place.assert_nothing_left();
    }
}

#[test]
fn signals_reach_the_command_and_its_answer_comes_back() {
    let place = Place::new();
    let script = "trap 'echo term; exit 3' TERM; trap 'echo usr' USR1; echo ready; \
                  while :; do sleep 0.05; done";
    let (mut child, mut out) = start_ready(&place, script);
    signal(&child, Signal::USR1);
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "usr\n");
    signal(&child, Signal::TERM);
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "term\n");
    assert_eq!(child.wait().unwrap().code(), Some(3));
    place.assert_nothing_left();
}

#[test]
fn a_killed_qemu_is_told_and_leaves_nothing() {
    let place = Place::new();
    let (mut child, _out) = start_ready(&place, "echo ready; sleep 60");
    let found = place.qemus();
    assert_eq!(found.len(), 1);
    let qemu = Pid::from_raw(i32::try_from(found[0]).unwrap()).unwrap();
    kill_process(qemu, Signal::KILL).unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(125), "{said}");
    assert!(said.contains("signal 9") || said.contains("SIGKILL"), "{said}");
    place.assert_nothing_left();
}

#[test]
fn when_the_runtime_is_killed_the_vm_dies_and_the_next_command_sweeps() {
    let place = Place::new();
    let (mut child, _out) = start_ready(&place, "echo ready; sleep 60");
    assert_eq!(place.qemus().len(), 1);
    signal(&child, Signal::KILL);
    child.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while !place.qemus().is_empty() {
        assert!(Instant::now() < deadline, "QEMU outlives its owner");
        sleep(Duration::from_millis(20));
    }
    let next = place.output(["run", "--", "true"]);
    assert!(next.status.success(), "{}", text(&next.stderr));
    place.assert_nothing_left();
}

/// A terminal of the test's own, with a command on it.
struct Terminal {
    master: fs::File,
    child: Child,
}

impl Terminal {
    fn start(place: &Place, args: &[&str]) -> (Terminal, fs::File) {
        let master =
            rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY)
                .unwrap();
        rustix::pty::grantpt(&master).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let name = rustix::pty::ptsname(&master, Vec::new()).unwrap();
        let slave =
            fs::File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
        set_size(&slave, 100, 30);
        let mut line: Command = place.coracle(args);
        let mut command = Command::new("setsid");
        command.arg("--ctty").arg(line.get_program()).args(line.get_args());
        for (name, value) in line.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        line.stdin(Stdio::null());
        let on = || Stdio::from(slave.try_clone().unwrap());
        let child = command.stdin(on()).stdout(on()).stderr(on()).spawn().unwrap();
        (Terminal { master: fs::File::from(master), child }, slave)
    }

    fn type_in(&mut self, keys: &[u8]) {
        std::io::Write::write_all(&mut self.master, keys).unwrap();
    }

    /// Reads until `text` was seen.
    fn expect(&mut self, wanted: &str) -> String {
        let mut seen = Vec::new();
        let mut buffer = [0; 4096];
        while !text(&seen).contains(wanted) {
            let n = self.master.read(&mut buffer).unwrap();
            seen.extend_from_slice(&buffer[..n]);
        }
        text(&seen)
    }
}

fn set_size(terminal: &fs::File, columns: u16, rows: u16) {
    let size =
        rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(terminal, size).unwrap();
}

#[test]
fn a_terminal_has_the_size_of_ours_follows_it_and_is_restored() {
    let place = Place::new();
    let (mut terminal, slave) = Terminal::start(&place, &["run", "-it", "--", "sh"]);
    let before = rustix::termios::tcgetattr(&slave).unwrap();
    terminal.expect("# ");
    terminal.type_in(b"stty size; tty\n");
    let seen = terminal.expect("/dev/pts/");
    assert!(seen.contains("30 100"), "{seen}");
    set_size(&slave, 90, 20);
    signal(&terminal.child, Signal::WINCH);
    sleep(Duration::from_millis(500));
    terminal.type_in(b"stty size\n");
    terminal.expect("20 90");
    terminal.type_in(b"exit 4\n");
    assert_eq!(terminal.child.wait().unwrap().code(), Some(4));
    let after = rustix::termios::tcgetattr(&slave).unwrap();
    assert_eq!(after.local_modes, before.local_modes);
    assert_eq!(after.input_modes, before.input_modes);
    place.assert_nothing_left();
}

#[test]
fn the_detach_keys_give_the_terminal_back_while_the_command_goes_on() {
    let place = Place::new();
    let (mut terminal, slave) =
        Terminal::start(&place, &["run", "-it", "--", "sh", "-c", "echo up; sleep 4"]);
    terminal.expect("up");
    terminal.type_in(b"\x10\x11");
    assert_eq!(terminal.child.wait().unwrap().code(), Some(0));
    assert!(
        rustix::termios::tcgetattr(&slave)
            .unwrap()
            .local_modes
            .contains(rustix::termios::LocalModes::ICANON)
    );
    assert_eq!(place.qemus().len(), 1, "the command ended with the terminal");
    let deadline = Instant::now() + Duration::from_secs(20);
    while !place.qemus().is_empty() {
        assert!(Instant::now() < deadline, "the sandbox outlives its command");
        sleep(Duration::from_millis(100));
    }
    place.assert_nothing_left();
}
