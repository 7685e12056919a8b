use std::collections::BTreeSet;
use std::path::Path;

use super::*;
use crate::plug::{Kind, PlugSpec, ShareType};
use crate::spec::{Accel, RootFs};

fn spec() -> SandboxSpec {
    SandboxSpec {
        name: None,
        memory_mib: 1024,
        vcpus: 1,
        max_vcpus: None,
        max_memory_mib: None,
        accel: Accel::Auto,
        kernel: None,
        rootfs: RootFs::BuiltIn,
        scratch_mib: None,
        read_only: false,
        plugs: Vec::new(),
        hotplug: false,
        physical_memory: false,
        networks: Vec::new(),
        tuning: Tuning::default(),
        helper: None,
    }
}

fn asked(settings: &[&str]) -> Result<SandboxSpec, SettingsError> {
    let mut all = Settings::default();
    settings.iter().try_for_each(|text| all.set(text))?;
    let mut spec = spec();
    all.apply(&mut spec)?;
    Ok(spec)
}

#[test]
fn every_member_of_both_structs_has_a_fate_and_no_other_name_has() {
    let hypervisor = fields(&HypervisorConfig::default());
    // What is left out when it is empty is there all the same.
    let full =
        SandboxConfig { kata_agent_config: Some(Default::default()), ..SandboxConfig::default() };
    let members: BTreeSet<String> =
        hypervisor.into_iter().chain(fields(&full)).map(|(name, _)| name).collect();
    let known: BTreeSet<String> = names().map(str::to_owned).collect();
    assert_eq!(known, members);
    assert_eq!(names().count(), known.len(), "no name twice");
}

#[test]
fn the_document_lists_every_member_with_its_fate() {
    let document = include_str!("../../../../docs/hypervisor-config.md");
    for name in names() {
        let row = document.lines().find(|line| line.starts_with(&format!("| `{name}` |")));
        let row = row.unwrap_or_else(|| panic!("{name} is not in the document"));
        let fate = fate(name).unwrap();
        assert!(row.contains(&fate), "{name}: the document does not say {fate:?}: {row}");
    }
}

#[test]
fn every_member_with_an_effect_changes_what_the_sandbox_is_to_be() {
    let values = [
        "NumVCPUs=3",
        "DefaultMaxVCPUs=4",
        "MemorySize=512",
        "KernelPath=/k",
        "CPUFeatures=+pku,-vmx",
        "EntropySource=/dev/random",
        "SharedFS=virtio-9p",
        "VirtioFSDaemon=/usr/libexec/virtiofsd",
        "VirtioFSCache=always",
        "VirtioFSExtraArgs=[\"-d\"]",
        "DisableBlockDeviceUse=true",
        "EnableIOThreads=true",
        "MemPrealloc=true",
        "HugePages=true",
        "Mlock=true",
        "UseVSock=true",
        "ShmSize=1048576",
        "SandboxCgroupOnly=true",
    ];
    let share = PlugSpec::parse(Kind::Share, "/a:/b").unwrap();
    let plain = SandboxSpec { plugs: vec![share.clone()], ..spec() };
    for text in values {
        let mut changed = plain.clone();
        let mut settings = Settings::default();
        settings.set(text).unwrap();
        settings.apply(&mut changed).unwrap();
        assert_ne!(format!("{changed:?}"), format!("{plain:?}"), "{text} does nothing");
    }
    let cached = asked(&["BlockDeviceCacheSet=true", "BlockDeviceCacheDirect=true"]).unwrap();
    assert!(cached.tuning.disk_cache.direct && !cached.tuning.disk_cache.no_flush);
    let cached = asked(&["BlockDeviceCacheNoflush=true", "BlockDeviceCacheSet=true"]).unwrap();
    assert!(cached.tuning.disk_cache.no_flush && !cached.tuning.disk_cache.direct);
    let tried: BTreeSet<_> = values.iter().filter_map(|text| text.split('=').next()).collect();
    let untried = names().filter(|name| fate(name).unwrap() == "effect" && !tried.contains(name));
    assert!(untried.into_iter().all(|name| name.starts_with("BlockDeviceCache")));
}

#[test]
fn a_member_without_an_effect_is_refused_by_name_with_the_reason() {
    let error = asked(&["PCIeRootPort=2"]).unwrap_err();
    assert_eq!(error.code(), "E-SETTING-REFUSED");
    assert!(error.to_string().starts_with("PCIeRootPort cannot be set (from --set): "));
    for name in names().filter(|name| fate(name).unwrap().starts_with("refused")) {
        let value = ["2", "true", "\"x\"", "[\"x\"]", "{}", "{\"Path\":\"x\"}"];
        let tried = value.iter().map(|value| asked(&[&format!("{name}={value}")]));
        let told = tried.filter_map(Result::err).map(|error| error.to_string());
        assert!(told.into_iter().all(|text| text.contains(name)), "{name}");
    }
}

#[test]
fn what_is_always_so_may_be_said_and_nothing_else() {
    for name in names() {
        let Some(value) = fate(name).unwrap().strip_prefix("always ").map(str::to_owned) else {
            continue;
        };
        asked(&[&format!("{name}={value}")]).unwrap();
    }
    let error = asked(&["HypervisorMachineType=pc"]).unwrap_err();
    let told = "HypervisorMachineType cannot be \"pc\" (from --set): it is always q35";
    assert_eq!(error.to_string(), told);
}

#[test]
fn bad_names_and_values_are_named() {
    let code = |text: &str| asked(&[text]).unwrap_err().code();
    assert_eq!(code("HugePagess=true"), "E-SETTING-UNKNOWN");
    assert_eq!(code("NumVCPUs=many"), "E-SETTING-VALUE");
    assert_eq!(code("NumVCPUs=256"), "E-SETTING-VALUE");
    assert_eq!(code("NumVCPUs=-1"), "E-SETTING-VALUE");
    assert_eq!(code("CPUFeatures=pku"), "E-SETTING-VALUE");
    assert_eq!(code("VirtioFSCache=never"), "E-SETTING-VALUE");
    assert_eq!(code("VirtioFSDaemon=virtiofsd"), "E-SETTING-VALUE");
    assert_eq!(code("CPUFeatures=+a b"), "E-SETTING-VALUE");
    assert_eq!(code("SharedFS=nfs"), "E-SETTING-VALUE");
    assert_eq!(code("BlockDeviceCacheDirect=true"), "E-SETTING-VALUE");
}

#[test]
fn a_zero_value_says_nothing() {
    let same = asked(&["NumVCPUs=0", "PCIeRootPort=0", "HypervisorMachineType="]).unwrap();
    assert_eq!(format!("{same:?}"), format!("{:?}", spec()));
}

#[test]
fn no_disk_gets_past_the_setting_that_forbids_them() {
    let spec = asked(&["DisableBlockDeviceUse=true"]).unwrap();
    let disk = PlugSpec::parse(Kind::Disk, "/d.img:/d").unwrap();
    let error = spec.tuning.admits(&disk).unwrap_err();
    assert_eq!(error.code(), "E-SETTING-NO-DISKS");
    let share = PlugSpec::parse(Kind::Share, "/a:/b").unwrap();
    assert_eq!(share.share_type, ShareType::default());
    spec.tuning.admits(&share).unwrap();
}

#[test]
fn the_user_wins_over_the_host_and_one_file_over_both() {
    let dir = tempfile::tempdir().unwrap();
    let write = |path: &Path, text: &str| {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    let (system, user) = (dir.path().join("etc/config.toml"), dir.path().join("home"));
    let mut places = Places { only: None, system: system.clone(), user: Some(user.clone()) };
    let seen = |places: &Places| {
        let mut spec = spec();
        Settings::load(places).unwrap().apply(&mut spec).unwrap();
        (spec.memory_mib, spec.vcpus, spec.tuning.shm_bytes)
    };
    assert_eq!(seen(&places), (1024, 1, None), "no file is no fault");
    write(&system, "[hypervisor]\nMemorySize = 512\nNumVCPUs = 2\n[sandbox]\nShmSize = 4096\n");
    assert_eq!(seen(&places), (512, 2, Some(4096)));
    write(&user.join("coracle/config.toml"), "[hypervisor]\nMemorySize = 768\n");
    assert_eq!(seen(&places), (768, 2, Some(4096)));
    let only = dir.path().join("only.toml");
    write(&only, "[hypervisor]\nMemorySize = 300\n");
    places.only = Some(only.clone());
    assert_eq!(seen(&places), (300, 1, None));

    write(&only, "[hypervisor]\nMemorySize = ");
    assert_eq!(Settings::load(&places).unwrap_err().code(), "E-SETTING-FILE");
    write(&only, "[hypervizor]\n");
    assert_eq!(Settings::load(&places).unwrap_err().code(), "E-SETTING-FILE");
    write(&only, "[hypervisor]\nHugePagess = true\n");
    let told = Settings::load(&places).unwrap_err().to_string();
    assert!(told.contains("HugePagess") && told.contains("only.toml"), "{told}");
    std::fs::remove_file(&only).unwrap();
    assert_eq!(Settings::load(&places).unwrap_err().code(), "E-SETTING-FILE");
}
