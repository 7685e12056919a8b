//! The kernel command line of a VM on QEMU. It is ours: hcsshim's would switch PCI off, where all
//! of QEMU's devices are, and fix the number of processors for ever.

use std::time::SystemTime;

use coracle_bridge::boot::{BootParameters, LogLevel, RootDevice, RootSource};

use crate::options::{OptionsLcow, PreferredRootFsType};

/// Words that make a guest quick and quiet: a panic ends the VM (the monitor stops at a reset),
/// the crypto self-tests and the patching for one processor cost a third of a second under
/// translation, and the processor's random numbers are as good as the host's.
const QUICK: &str = "panic=-1 cryptomgr.notests no_timer_check noreplace-smp random.trust_cpu=on";

/// The command line for these options. `now` is what the guest's clock is set to.
pub fn command_line(opts: &OptionsLcow, now: SystemTime) -> String {
    let console = !opts.console_pipe.is_empty();
    let mut words = vec![QUICK.to_owned()];
    if opts.enable_graphics_console {
        words.push("console=tty0".to_owned());
    }
    // The last console is the one /dev/console means. Without a person to read it the serial
    // port still carries the last words of a kernel that panics.
    words.push("console=ttyS0,115200".to_owned());
    if !console && !opts.enable_graphics_console {
        words.push("quiet".to_owned());
    }
    words.push(boot_parameters(opts, now).to_cmdline());
    words.push(opts.kernel_boot_options.clone());
    words.retain(|word| !word.is_empty());
    words.join(" ")
}

fn boot_parameters(opts: &OptionsLcow, now: SystemTime) -> BootParameters {
    let command = BootParameters {
        exec_command_line: Some(opts.exec_command_line.clone()),
        ..BootParameters::default()
    };
    let exec_command_line =
        command.exec_command_line.clone().filter(|_| !command.names_the_agent());
    let root = (opts.preferred_root_fs_type == PreferredRootFsType::Vhd).then(|| RootDevice {
        source: RootSource::Pmem(0),
        filesystem: opts.host.root_filesystem.clone(),
        read_only: true,
    });
    BootParameters {
        exec_command_line,
        forward_stdout: opts.forward_stdout,
        forward_stderr: opts.forward_stderr,
        entropy: true,
        debug_console: !opts.console_pipe.is_empty() || opts.enable_graphics_console,
        root,
        log_level: log_level(&opts.exec_command_line),
        clock: Some(now),
        hostname: opts.host.hostname.clone(),
    }
}

/// The level after hcsshim's `-loglevel`, whose names are logrus's.
fn log_level(command: &str) -> LogLevel {
    let mut words = command.split_whitespace();
    let level = words.find(|word| *word == "-loglevel").and_then(|_| words.next());
    level.and_then(|level| level.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    fn opts() -> OptionsLcow {
        OptionsLcow::with_boot_files("id", "owner", "/boot-files")
    }

    fn parsed(opts: &OptionsLcow) -> BootParameters {
        BootParameters::parse(&command_line(opts, UNIX_EPOCH)).unwrap()
    }

    #[test]
    fn devices_and_processors_are_never_switched_off() {
        let line = command_line(&opts(), UNIX_EPOCH);
        assert!(!line.contains("pci=off") && !line.contains("nr_cpus"), "{line}");
        assert!(line.contains("panic=-1") && line.contains(" quiet "), "{line}");
    }

    #[test]
    fn the_default_command_is_the_agent_itself() {
        let parameters = parsed(&opts());
        assert_eq!(parameters.exec_command_line, None);
        assert!(parameters.entropy && parameters.forward_stderr && !parameters.forward_stdout);
        assert_eq!(parameters.root, None);
    }

    #[test]
    fn another_command_reaches_the_agent_whole() {
        let mut opts = opts();
        opts.exec_command_line = "/bin/sh -c \"echo 'a b'\"".to_owned();
        assert_eq!(parsed(&opts).exec_command_line.as_ref(), Some(&opts.exec_command_line));
    }

    #[test]
    fn the_log_level_is_taken_from_the_seeds_flag() {
        let mut opts = opts();
        opts.exec_command_line = "/bin/gcs -v4 -log-format json -loglevel debug".to_owned();
        assert_eq!(parsed(&opts).log_level, LogLevel::Debug);
        opts.exec_command_line = "/bin/gcs -loglevel".to_owned();
        assert_eq!(parsed(&opts).log_level, LogLevel::Info);
    }

    #[test]
    fn an_image_root_is_the_first_pmem_device_read_only() {
        let mut opts = opts();
        opts.preferred_root_fs_type = PreferredRootFsType::Vhd;
        let root = parsed(&opts).root.unwrap();
        assert_eq!(root.source, RootSource::Pmem(0));
        assert!(root.read_only);
    }

    #[test]
    fn a_console_is_heard_and_seen() {
        let mut opts = opts();
        opts.console_pipe = "/tmp/console.sock".to_owned();
        opts.enable_graphics_console = true;
        let line = command_line(&opts, UNIX_EPOCH);
        assert!(line.contains("console=tty0 console=ttyS0,115200"), "{line}");
        assert!(!line.contains("quiet"), "{line}");
        assert!(parsed(&opts).debug_console);
    }

    #[test]
    fn words_of_the_caller_come_last_and_so_win() {
        let mut opts = opts();
        opts.kernel_boot_options = "panic=5 loglevel=7".to_owned();
        assert!(command_line(&opts, UNIX_EPOCH).ends_with(" panic=5 loglevel=7"));
    }
}
