//! The words our guests' kernels are started with.
//!
//! Each leaves out work that has no purpose in a short-lived VM or prevents a fault of it. Under
//! TCG the guest reads the host's own time stamp counter; told its frequency, the kernel need
//! not measure it against a timer, which goes wrong on a loaded host. Told a wrong one, its clock
//! runs wrong: so the word is there only when the frequency is known.

use std::{
    sync::OnceLock,
    thread::sleep,
    time::{Duration, Instant},
};

use crate::{accel::Engine, sys};

/// What the words depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelFacts {
    /// What runs guest code.
    pub engine: Engine,
    /// There is a screen ([`crate::VmConfig::graphics`]).
    pub graphics: bool,
    /// The kernel reports all it does, not only what goes wrong.
    pub verbose: bool,
    /// Devices of the host may be plugged in, some of which reach no further than 4 GiB.
    pub host_devices: bool,
    /// Frequency of the host's time stamp counter in kHz, if known ([`host_tsc_khz`]).
    pub tsc_khz: Option<u64>,
}

/// The kernel's part of a command line, without a trailing blank.
pub fn kernel_arguments(facts: &KernelFacts) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut word = |text: &str| words.push(text.to_owned());
    word("8250.nr_uarts=1");
    // The last console named becomes /dev/console.
    if facts.graphics {
        word("console=tty0");
    }
    word("console=ttyS0,115200");
    word("panic=-1 reboot=t");
    if !facts.verbose {
        word("quiet");
    }
    word("cryptomgr.notests no_timer_check noreplace-smp random.trust_cpu=on");
    // The kernel waits for every processor to have been elsewhere once whenever a network namespace,
    // a device or a mount comes or goes: some 10 ms each, unless told to ask them.
    word("rcupdate.rcu_expedited=1");
    // Every disk is on target 0; asking the other 255 takes longer than mounting it. The agent
    // asks for target 0.
    word("scsi_mod.scan=manual");
    word(&format!("initcall_blacklist={}", omitted(facts.engine).join(",")));
    // A guest with room for more memory sets 64 MiB aside to copy through, for devices that cannot
    // reach all of it. Those that QEMU makes can.
    if !facts.host_devices {
        word("swiotlb=noforce");
    }
    // Distributions build in more security modules, which are asked at every open, read and write and
    // for which no policy is ever loaded: SELinux, AppArmor, TOMOYO. `selinux=0` does nothing where the
    // kernel was built without that word, as Debian's is.
    word("lsm=landlock,lockdown,yama,integrity");
    match facts.engine {
        Engine::Kvm => {}
        Engine::Tcg => {
            // An emulated processor has not the faults of a real one, but pays for their cures.
            word("mitigations=off init_on_alloc=0");
            // Else every page of a pipe is charged to its writer's group, and taken off again.
            word("cgroup.memory=nokmem");
            if let Some(khz) = facts.tsc_khz {
                word(&format!("tsc_early_khz={khz}"));
            }
        }
    }
    words.join(" ")
}

/// Parts of a kernel that are not started.
fn omitted(engine: Engine) -> &'static [&'static str] {
    match engine {
        // A hot-plug driver for bridges, which only complains that ACPI's was there first.
        Engine::Kvm => &["shpcd_init"],
        // And what takes an emulated processor long: numbers for the names in the formats of trace events
        // (50 ms), and keys to check the signatures of modules with, of which ours have none (20 ms).
        Engine::Tcg => &["shpcd_init", "trace_eval_init", "load_system_certificate_list"],
    }
}

/// The frequency of the host's time stamp counter in kHz: measured once against the kernel's
/// clock, in about 5 ms. None where the counter does not run at a constant rate.
pub fn host_tsc_khz() -> Option<u64> {
    static MEASURED: OnceLock<Option<u64>> = OnceLock::new();
    *MEASURED.get_or_init(|| {
        let cpus = std::fs::read_to_string("/proc/cpuinfo").ok()?;
        if !is_constant(&cpus) {
            return None;
        }
        let (start, since) = stamp();
        sleep(Duration::from_millis(5));
        let (end, until) = stamp();
        let elapsed = until.duration_since(since).as_nanos();
        let khz = u128::from(end.wrapping_sub(start)) * 1_000_000 / elapsed.max(1);
        u64::try_from(khz).ok().filter(|khz| (100_000..10_000_000).contains(khz))
    })
}

/// The counter and the clock at the same moment: of several pairs the one read in the fewest
/// cycles, which nothing interrupted.
fn stamp() -> (u64, Instant) {
    let pair = || {
        let before = sys::time_stamp();
        let now = Instant::now();
        let width = sys::time_stamp().wrapping_sub(before);
        (width, before.wrapping_add(width / 2), now)
    };
    let first = pair();
    let best =
        (0..15).map(|_| pair()).fold(first, |best, next| if next.0 < best.0 { next } else { best });
    (best.1, best.2)
}

fn is_constant(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"));
    flags.is_some_and(|flags| flags.split(' ').any(|flag| flag == "constant_tsc"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: KernelFacts = KernelFacts {
        engine: Engine::Tcg,
        graphics: false,
        verbose: false,
        host_devices: false,
        tsc_khz: Some(2_100_000),
    };

    #[test]
    fn the_plain_guest_gets_the_lean_words() {
        assert_eq!(
            kernel_arguments(&FACTS),
            "8250.nr_uarts=1 console=ttyS0,115200 panic=-1 reboot=t quiet cryptomgr.notests \
             no_timer_check noreplace-smp random.trust_cpu=on rcupdate.rcu_expedited=1 \
             scsi_mod.scan=manual \
             initcall_blacklist=shpcd_init,trace_eval_init,load_system_certificate_list \
             swiotlb=noforce lsm=landlock,lockdown,yama,integrity mitigations=off init_on_alloc=0 \
             cgroup.memory=nokmem tsc_early_khz=2100000"
        );
    }

    #[test]
    fn only_an_emulated_processor_is_told_its_frequency_and_spared_the_mitigations() {
        let kvm = KernelFacts { engine: Engine::Kvm, ..FACTS };
        assert!(!kernel_arguments(&kvm).contains("tsc_early_khz"));
        assert!(!kernel_arguments(&kvm).contains("mitigations"), "a real processor needs them");
        assert!(kernel_arguments(&kvm).contains("initcall_blacklist=shpcd_init "));
        assert!(!kernel_arguments(&KernelFacts { tsc_khz: None, ..FACTS }).contains("tsc"));
    }

    #[test]
    fn room_to_copy_through_is_for_devices_of_the_host() {
        let words = kernel_arguments(&KernelFacts { host_devices: true, ..FACTS });
        assert!(!words.contains("swiotlb"), "{words}");
    }

    #[test]
    fn with_a_screen_the_serial_port_stays_the_console() {
        let words = kernel_arguments(&KernelFacts { graphics: true, ..FACTS });
        assert!(words.starts_with("8250.nr_uarts=1 console=tty0 console=ttyS0,115200 "), "{words}");
    }

    #[test]
    fn a_counter_that_changes_its_rate_is_not_told() {
        assert!(is_constant("processor : 0\nflags\t\t: fpu tsc constant_tsc sse\n"));
        assert!(!is_constant("flags : fpu tsc nonstop_tsc\n"));
        assert!(!is_constant(""));
    }
}
