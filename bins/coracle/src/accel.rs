//! What is said about the accelerator, and how often.

use std::fs;

use coracle_engine::root::Root;
use coracle_vmm::{Accel, accel};

/// Says on stderr, once per boot of the host, that VMs run without KVM here and why.
pub fn tell_of_fallback(root: &Root) {
    let verdicts = root.verdicts();
    // Without the directory nothing is remembered, which costs time and repeats the word.
    let _ = fs::create_dir_all(&verdicts);
    // What keeps `auto` from choosing is told by the launch itself.
    let Ok(choice) = accel::choose(Accel::Auto, Some(&verdicts)) else { return };
    if !choice.is_fallback {
        return;
    }
    let told = verdicts.join("fallback-told");
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    if fs::read_to_string(&told).is_ok_and(|last| last == boot_id) {
        return;
    }
    let _ = fs::write(&told, boot_id);
    eprintln!(
        "coracle: {}: guests run under TCG, which is slower and no promised security boundary \
         (--accel tcg says you know)",
        choice.why
    );
}
