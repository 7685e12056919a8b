//! Nothing is changed on the host that nobody would find again. What strace sees of a sandbox's life,
//! from its first call to its last, is in a folder that is the sandbox's by name, carries a mark that
//! says whose it is, or was named in what was written down before.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use coracle_tests::Place;
use coracle_tests::detached::Detached;
use coracle_tests::place::ext4;
use coracle_tests::trace::{Call, Traced, calls};

/// Programs that are waited for, and change nothing but what they are told to.
const HELPERS: [&str; 2] = ["nft", "mke2fs"];

/// What was seen, up to where we are.
struct Ledger<'a> {
    root: &'a str,
    sandbox: &'a str,
    /// All that was written to states and to the records of networks.
    written: String,
    /// The sandbox's state is there.
    is_begun: bool,
    folders: HashMap<u32, String>,
    /// Processes in a mount namespace of their own, and all they started.
    apart: HashSet<u32>,
    parents: HashMap<u32, u32>,
    seen: BTreeMap<&'static str, u32>,
    faults: BTreeSet<String>,
}

impl Ledger<'_> {
    fn count(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    fn fault(&mut self, call: &Call, what: &str) {
        let short: String = call.arguments.chars().take(300).collect();
        self.faults.insert(format!("{what}: {} {short}", call.name));
    }

    fn follow(&mut self, call: &Call) {
        if let Some((descriptor, path)) = call.opened() {
            self.folders.insert(descriptor, path.to_owned());
        }
        if let Some(child) = call.child() {
            self.parents.insert(child, call.pid);
        }
        match call.name.as_str() {
            "write" | "pwrite64" => self.note(call),
            "execve" => self.program(call),
            "unshare" if call.arguments.contains("CLONE_NEWNS") => {
                self.apart.insert(call.pid);
            }
            "mount" | "umount2" => self.mount(call),
            "bind" => self.socket(call),
            "ioctl" if call.arguments.contains("TUNSETIFF") => self.tap(call),
            "sendto" | "sendmsg" => self.links(call),
            _ => {}
        }
        if let Some(path) = call.made() {
            self.path(call, &path);
        }
    }

    /// What is written to a state or to the record of a network.
    fn note(&mut self, call: &Call) {
        let into = call.arguments.split(['<', '>']).nth(1).unwrap_or_default();
        let is_state = into.starts_with(&format!("{}/sbs/", self.root));
        let is_network = into.starts_with(&format!("{}/run/.networks/", self.root));
        if is_state || is_network {
            self.written.push_str(&call.arguments);
        }
        // The rules for nft go through a pipe.
        if let Some((_, rest)) = call.arguments.split_once("\\\"table\\\":{")
            && let Some((_, name)) = rest.split_once("\\\"name\\\":\\\"")
        {
            self.count("table of rules");
            let name = name.split('\\').next().unwrap_or_default();
            // One for each network and each card, named after them.
            let of = name.strip_prefix("coracle_").unwrap_or(name);
            if of.is_empty() || !self.written.contains(of) {
                self.fault(call, "rules of a table nobody wrote down");
            }
        }
    }

    fn path(&mut self, call: &Call, path: &str) {
        let Some(below) = path.strip_prefix(self.root) else {
            let is_cgroup = path.starts_with("/sys/fs/cgroup/") && path.contains(self.sandbox);
            let is_device = path == "/dev/null";
            // What it was before is written down first.
            let is_forwarding = path.starts_with("/proc/sys/net/ipv")
                && self.seen.contains_key("record of forwarding");
            match () {
                () if is_cgroup => self.count("control group"),
                () if is_device || is_forwarding || self.is_apart(call.pid) => {}
                () => self.fault(call, "outside of all folders of ours"),
            }
            return;
        };
        if below.starts_with("/run/.networks/forwarding-") {
            self.count("record of forwarding");
        }
        let is_state = below.ends_with("/state.log") && below.contains(self.sandbox);
        self.is_begun |= is_state;
        let parts: Vec<&str> = below.split('/').skip(1).collect();
        let is_ours = |part: &&str| **part == *self.sandbox;
        match parts.as_slice() {
            // What all sandboxes share, and the run directory, which is made whole and holds a lock.
            ["monitor.log" | "monitor.log.1" | "events.jsonl" | "sbs" | "run" | "logs"] => {}
            ["run", ".networks", ..] => self.count("file of a network"),
            ["run", name] if name.trim_start_matches('.').starts_with(self.sandbox) => {}
            ["run", name, "owner.lock"] if name.contains(self.sandbox) => {}
            ["sbs", ..] if parts.iter().any(&is_ours) => self.count("file of a state"),
            [_, ..] if parts.iter().any(is_ours) => {
                self.count("file of the sandbox");
                if !self.is_begun {
                    self.fault(call, "before anything is written down");
                }
            }
            _ => self.fault(call, "in nobody's folder"),
        }
    }

    fn program(&mut self, call: &Call) {
        let texts = call.texts();
        let name = Path::new(texts[0]).file_name().unwrap().to_str().unwrap();
        let mark = format!("CORACLE_PART={}/run/{}/", self.root, self.sandbox);
        let network = format!("{}/run/.networks/", self.root);
        let is_marked = texts.iter().any(|text| text.starts_with(&mark));
        let serves = texts.iter().find_map(|text| text.strip_prefix(network.as_str()));
        if HELPERS.contains(&name) {
            return self.count("helper");
        }
        if is_marked {
            self.count("marked process");
            if !self.is_begun {
                self.fault(call, "a process before anything is written down");
            }
        } else if let Some(serves) = serves {
            self.count("server of a network");
            if !self.written.contains(&format!("\\\"name\\\": \\\"{serves}\\\"")) {
                self.fault(call, "a server of a network nobody wrote down");
            }
        } else if texts.contains(&"monitor") {
            self.count("monitor");
        } else {
            self.fault(call, "a process without a mark");
        }
    }

    fn mount(&mut self, call: &Call) {
        if !self.is_apart(call.pid) {
            self.fault(call, "a mount that others see");
        }
    }

    fn is_apart(&self, pid: u32) -> bool {
        let mut next = Some(pid);
        while let Some(pid) = next {
            if self.apart.contains(&pid) {
                return true;
            }
            next = self.parents.get(&pid).copied();
        }
        false
    }

    fn socket(&mut self, call: &Call) {
        let Some(path) = call.socket() else { return };
        let by_descriptor =
            path.strip_prefix("/proc/self/fd/").and_then(|rest| rest.split_once('/'));
        let folder = by_descriptor
            .and_then(|(descriptor, _)| self.folders.get(&descriptor.parse().ok()?).cloned());
        let folder = folder.unwrap_or_else(|| path.to_owned());
        self.count("socket");
        if !folder.starts_with(&format!("{}/run/{}", self.root, self.sandbox)) {
            self.fault(call, &format!("a socket in {folder}"));
        }
    }

    /// As many taps are written down as there are.
    fn tap(&mut self, call: &Call) {
        self.count("tap");
        let names: HashSet<&str> = self
            .written
            .split("\\\"tap\\\": \\\"")
            .skip(1)
            .collect::<Vec<_>>()
            .into_iter()
            .filter_map(|rest| rest.split('\\').next())
            .collect();
        if self.seen["tap"] as usize > names.len() {
            self.fault(call, "a tap nobody wrote down");
        }
    }

    fn links(&mut self, call: &Call) {
        // Kinds of links are among the texts of a request.
        for name in call.links().into_iter().filter(|name| name != "bridge" && name != "veth") {
            self.count("link");
            if !self.written.contains(&name) {
                self.fault(call, &format!("a link {name} nobody wrote down"));
            }
        }
    }
}

#[test]
fn whatever_a_sandbox_changes_on_the_host_can_be_found_again() {
    let place = Place::networked();
    let given = tempfile::tempdir().unwrap();
    let path = |name: &str| given.path().join(name).to_str().unwrap().to_owned();
    ext4(&given.path().join("disk.img"), 4);
    ext4(&given.path().join("pmem.img"), 4);
    fs::create_dir(given.path().join("tree")).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(given.path().join("s.sock")).unwrap();
    let (disk, pmem, tree, socket) =
        (path("disk.img"), path("pmem.img"), path("tree"), path("s.sock"));
    let log = given.path().join("strace");
    let name = format!("{}-traced", place.mark());
    let run = [
        "run",
        "-d",
        "--accel",
        "tcg",
        "--name",
        &name,
        "--net",
        "lab",
        "-p",
        "8080:80",
        "--scratch",
        "16m",
        "--set",
        "SandboxCgroupOnly=true",
    ];
    let traced = Traced::start(&place.coracle(run), &log);
    let sandbox = Detached::named(&place, &name);
    let deadline = Instant::now() + Duration::from_secs(60);
    while !sandbox.output(&["exec", "@", "--", "true"]).status.success() {
        assert!(Instant::now() < deadline, "it does not start");
    }
    sandbox.run(&["disk", "add", "@", &disk, "/d"]);
    sandbox.run(&["pmem", "add", "@", &pmem, "/m"]);
    sandbox.run(&["share", "add", "@", &tree, "/v"]);
    sandbox.run(&["share", "add", "@", "--type", "9p", &tree, "/nine"]);
    sandbox.run(&["pipe", "add", "@", &socket, "/p"]);
    sandbox.run(&["net", "add", "@", "other"]);
    sandbox.run(&["run", "-d", "--in", "@", "--name", "side", "--", "sleep", "1000"]);
    sandbox.kill_monitor();
    sandbox.run(&["net", "rm", "@", "other"]);
    sandbox.run(&["share", "rm", "@", "/v"]);
    sandbox.run(&["stop", "-t", "0", "@"]);
    sandbox.run(&["rm", "@"]);
    traced.finish();

    let root = place.root().to_str().unwrap();
    let mut ledger = Ledger {
        root,
        sandbox: &name,
        written: String::new(),
        is_begun: false,
        folders: HashMap::new(),
        apart: HashSet::new(),
        parents: HashMap::new(),
        seen: BTreeMap::new(),
        faults: BTreeSet::new(),
    };
    // The command that was asked for is not a part of the sandbox, and ends with its answer.
    let all = calls(&fs::read_to_string(&log).unwrap());
    let begins = all.iter().position(|call| call.texts().contains(&"monitor")).unwrap();
    for call in &all[begins..] {
        ledger.follow(call);
    }
    println!("{:#?}", ledger.seen);
    assert!(ledger.faults.is_empty(), "{:#?}", ledger.faults);
    // What is not seen is not judged. A private network has no links but taps.
    for what in [
        "control group",
        "file of a network",
        "file of a state",
        "file of the sandbox",
        "helper",
        "marked process",
        "monitor",
        "record of forwarding",
        "server of a network",
        "socket",
        "table of rules",
        "tap",
    ] {
        assert!(ledger.seen.contains_key(what), "no {what} was seen: the trace is read wrongly");
    }
    place.assert_nothing_left();
}
