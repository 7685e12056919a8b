//! The kernel command line of a VM on QEMU. It is ours: hcsshim's would switch PCI off, where all
//! of QEMU's devices are, and fix the number of processors for ever.

use std::time::SystemTime;

use coracle_bridge::boot::{BootParameters, LogLevel, RootDevice, RootSource, Transport};
use coracle_vmm::accel::Engine;
use coracle_vmm::qemu::{KernelFacts, kernel_arguments};

use crate::options::{ChannelBacking, OptionsLcow, PreferredRootFsType};

/// What the machine says about the kernel's part of the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Processor {
    /// What runs guest code.
    pub engine: Engine,
    /// The frequency of the host's time stamp counter in kHz, if known.
    pub tsc_khz: Option<u64>,
}

/// The command line for these options: the monitor's words for the kernel, ours for the agent,
/// the caller's last so that they win. `now` is what the guest's clock is set to.
pub fn command_line(opts: &OptionsLcow, processor: Processor, now: SystemTime) -> String {
    let console = !opts.console_pipe.is_empty();
    let kernel = kernel_arguments(&KernelFacts {
        engine: processor.engine,
        graphics: opts.enable_graphics_console,
        verbose: console || opts.enable_graphics_console,
        // VFIO takes a physically backed VM.
        host_devices: opts.vpci_enabled && !opts.options.allow_overcommit,
        tsc_khz: processor.tsc_khz,
    });
    let agent = boot_parameters(opts, now).to_cmdline();
    let words = [kernel.as_str(), agent.as_str(), opts.kernel_boot_options.as_str()];
    words.into_iter().filter(|words| !words.is_empty()).collect::<Vec<_>>().join(" ")
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
        transport: match opts.host.channel {
            ChannelBacking::VirtioSerial => Transport::VirtioSerial,
            ChannelBacking::Vsock { .. } => Transport::Vsock,
        },
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

    const TCG: Processor = Processor { engine: Engine::Tcg, tsc_khz: None };

    fn opts() -> OptionsLcow {
        OptionsLcow::with_boot_files("id", "owner", "/boot-files")
    }

    fn parsed(opts: &OptionsLcow) -> BootParameters {
        BootParameters::parse(&command_line(opts, TCG, UNIX_EPOCH)).unwrap()
    }

    #[test]
    fn devices_and_processors_are_never_switched_off() {
        let line = command_line(&opts(), TCG, UNIX_EPOCH);
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
        let line = command_line(&opts, TCG, UNIX_EPOCH);
        assert!(line.contains("console=tty0 console=ttyS0"), "{line}");
        assert!(!line.contains("quiet"), "{line}");
        assert!(parsed(&opts).debug_console);
    }

    #[test]
    fn words_of_the_caller_come_last_and_so_win() {
        let mut opts = opts();
        opts.kernel_boot_options = "panic=5 loglevel=7".to_owned();
        assert!(command_line(&opts, TCG, UNIX_EPOCH).ends_with(" panic=5 loglevel=7"));
    }
}
