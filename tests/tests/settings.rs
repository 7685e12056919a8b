//! Members of Kata's configuration, looked for where they have their effect: in a running VM, in its
//! process, in its guest.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use coracle_tests::Place;
use coracle_tests::detached::Detached;
use coracle_tests::place::text;

/// Whether every descriptor of this file is open past the page cache.
fn is_direct(pid: u32, file: &Path) -> bool {
    const O_DIRECT: u32 = 0o40000;
    let file = fs::canonicalize(file).unwrap();
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().map(|entry| entry.unwrap());
    let mine = fds.filter(|fd| fs::read_link(fd.path()).is_ok_and(|target| target == file));
    let numbers: Vec<_> = mine.map(|fd| fd.file_name()).collect();
    assert!(!numbers.is_empty(), "{} is not open", file.display());
    numbers.iter().all(|number| {
        let path = format!("/proc/{pid}/fdinfo/{}", number.display());
        let told = fs::read_to_string(path).unwrap();
        let flags = told.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
        u32::from_str_radix(flags.trim(), 8).unwrap() & O_DIRECT != 0
    })
}

#[test]
fn settings_have_their_effect_on_the_vm_its_process_and_its_guest_and_outlive_the_monitor() {
    let place = Place::new();
    let config = place.root().join("config.toml");
    fs::write(
        &config,
        "[hypervisor]\nMemorySize = 320\nNumVCPUs = 1\n[sandbox]\nShmSize = 1048576\n",
    )
    .unwrap();
    let disk = |name: &str| {
        let path = place.root().join(name);
        fs::File::create(&path).unwrap().set_len(8 << 20).unwrap();
        path
    };
    let (first, second) = (disk("first.img"), disk("second.img"));
    let name = format!("{}-set", place.mark());
    let mut words = vec!["run", "--detach", "--accel", "tcg", "--name", &name];
    for text in [
        "NumVCPUs=2",
        "CPUFeatures=-avx2",
        "EntropySource=/dev/urandom",
        "EnableIOThreads=true",
        "BlockDeviceCacheSet=true",
        "BlockDeviceCacheDirect=true",
        "SandboxCgroupOnly=true",
        "HypervisorMachineType=q35",
    ] {
        words.extend(["--set", text]);
    }
    let plugged = format!("{}:/dev/first", first.display());
    words.extend(["--disk", &plugged]);
    // A virtiofsd of one's own, which tells that it was called.
    let (daemon, told) = (place.root().join("daemon"), place.root().join("told"));
    let real = ["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"];
    let real = real.into_iter().find(|path| Path::new(path).exists()).unwrap();
    let script = format!("#!/bin/sh\necho $$ >> {}\nexec {real} \"$@\"\n", told.display());
    fs::write(&daemon, script).unwrap();
    fs::set_permissions(&daemon, fs::Permissions::from_mode(0o755)).unwrap();
    let daemon = format!("VirtioFSDaemon={}", daemon.display());
    let extra = r#"VirtioFSExtraArgs=["-o", "log_level=err"]"#;
    words.extend(["--set", &daemon, "--set", "VirtioFSCache=none", "--set", extra]);
    let tree = tempfile::tempdir().unwrap();
    let shared = format!("{}:/shared", tree.path().display());
    words.extend(["--volume", &shared]);
    let output = place.coracle(words).env("CORACLE_CONFIG", &config).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let set = Detached::named(&place, &name);
    let vm = set.vm().unwrap();

    assert_eq!(set.sh("nproc").trim(), "2");
    assert_eq!(set.sh("grep -c '^flags.* avx2' /proc/cpuinfo || true").trim(), "0");
    assert!(set.sh("grep '^flags' /proc/cpuinfo").contains(" avx "), "the rest is there");
    let memory: u64 =
        set.sh("sed -n 's/MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo").trim().parse().unwrap();
    assert!((200 << 10..320 << 10).contains(&memory), "{memory} kB");
    assert!(set.sh("df -k /dev/shm").contains(" 1024 "), "{}", set.sh("df -k /dev/shm"));

    let line = fs::read_to_string(format!("/proc/{vm}/cmdline")).unwrap();
    assert!(line.contains("/dev/urandom"), "{line}");
    // QEMU names its threads only when debugged; one it does not have it would have refused.
    assert!(line.contains(r#""iothread":"vm.io""#), "{line}");
    assert!(is_direct(vm, &first));
    let own = format!("/coracle/{name}");
    assert!(fs::read_to_string(format!("/proc/{vm}/cgroup")).unwrap().contains(&own));

    // What the next monitor plugs in is as the first would have had it.
    set.kill_monitor();
    assert_eq!(set.view()["state"], "running", "whoever only looks waits for the next one");
    set.run(&["disk", "add", "@", second.to_str().unwrap(), "/dev/second"]);
    set.run(&["share", "add", "@", tree.path().to_str().unwrap(), "/later"]);
    let served = fs::read_to_string(&told).unwrap();
    assert_eq!(served.lines().count(), 2, "{served}");
    for pid in served.lines() {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
        assert!(line.contains("cache=none\0-o\0log_level=err"), "{line}");
    }
    assert!(is_direct(vm, &second));
    let seen = set.sh("echo written > /dev/second; sync; head -c 7 /dev/second");
    assert_eq!(seen, "written");
    let state = set.run(&["state", "read", "@", "--format", "json"]);
    let state: serde_json::Value = serde_json::from_str(&state).unwrap();
    let config = state.pointer("/Sandbox/Config").unwrap();
    let vmm = &config["HypervisorConfig"];
    assert_eq!((&vmm["MemorySize"], &vmm["NumVCPUs"]), (&320.into(), &2.into()));
    assert_eq!((&vmm["CPUFeatures"], &vmm["EnableIOThreads"]), (&"-avx2".into(), &true.into()));
    assert_eq!(
        (&config["ShmSize"], &config["SandboxCgroupOnly"]),
        (&1_048_576.into(), &true.into())
    );

    set.run(&["rm", "--force", "@"]);
    let controllers = fs::read_dir("/sys/fs/cgroup").unwrap().map(|entry| entry.unwrap().path());
    let roots = controllers.chain(["/sys/fs/cgroup".into()]);
    let deadline = Instant::now() + Duration::from_secs(10);
    for left in roots.map(|root| root.join("coracle").join(&name)) {
        while left.exists() {
            assert!(Instant::now() < deadline, "{} is left", left.display());
            sleep(Duration::from_millis(20));
        }
    }
    drop(set);
    place.assert_nothing_left();
}

#[test]
fn the_list_of_settings_says_what_files_say_and_what_becomes_of_each() {
    let place = Place::new();
    let config = place.root().join("config.toml");
    fs::write(&config, "[hypervisor]\nMemorySize = 320\n").unwrap();
    let list = |config: &Path| {
        place.coracle(["settings", "--format", "json"]).env("CORACLE_CONFIG", config).output()
    };
    let output = list(&config).unwrap();
    let all: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    let of = |name: &str| all.iter().find(|setting| setting["name"] == name).unwrap();
    assert_eq!(
        (&of("MemorySize")["value"], &of("MemorySize")["fate"]),
        (&320.into(), &"effect".into())
    );
    assert_eq!(of("MemorySize")["from"], config.to_str().unwrap());
    assert_eq!(of("HypervisorMachineType")["fate"], "always q35");
    assert!(of("PCIeRootPort")["fate"].as_str().unwrap().starts_with("refused: "));
    fs::write(&config, "[hypervisor]\nMemorySize = true\n").unwrap();
    let output = list(&config).unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("E-SETTING-VALUE"), "{}", text(&output.stderr));
}

#[test]
fn what_cannot_be_set_is_refused_before_anything_is_made() {
    let place = Place::new();
    let refused = |settings: &[&str], code: &str| {
        let options = settings.iter().flat_map(|text| ["--set", text]);
        let words: Vec<_> = ["run", "--accel", "tcg"].into_iter().chain(options).collect();
        let output = place.output([&words[..], &["--", "true"]].concat());
        assert_eq!(output.status.code(), Some(125), "{}", text(&output.stderr));
        let told = text(&output.stderr).to_string();
        assert!(told.contains(code), "{told}");
        told
    };
    let told = refused(&["PCIeRootPort=3"], "E-SETTING-REFUSED");
    assert!(told.contains("PCIeRootPort cannot be set"), "{told}");
    refused(&["Hugepages=true"], "E-SETTING-UNKNOWN");
    refused(&["NumVCPUs=some"], "E-SETTING-VALUE");
    // QEMU is the judge of these, and the failure is its word.
    let told = refused(&["CPUFeatures=+nosuch"], "E-");
    assert!(told.contains("nosuch"), "{told}");
    let pages = fs::read_to_string("/proc/sys/vm/nr_hugepages").unwrap();
    if pages.trim() == "0" {
        let told = refused(&["HugePages=true"], "E-");
        assert!(told.contains("memory"), "{told}");
    }

    let limits = fs::read_to_string("/proc/self/limits").unwrap();
    let locked = limits.lines().find(|line| line.starts_with("Max locked memory")).unwrap();
    if locked.split_whitespace().nth(3).unwrap().parse().is_ok_and(|bytes: u64| bytes < 1 << 30) {
        let told = refused(&["Mlock=true"], "E-VM-CREATE");
        assert!(told.contains("ulimit -l"), "{told}");
    }

    let share = Detached::start(&place, &["--set", "DisableBlockDeviceUse=true"]);
    let told = share.refused(&["disk", "add", "@", "/dev/null", "/dev/x"]);
    assert!(told.contains("E-SETTING-NO-DISKS"), "{told}");
    drop(share);
    place.assert_nothing_left();
}
