//! The Linux kernel's command line as hcsshim v0.8.9 writes it.
//!
//! The order of the words is fixed. A direct boot from an initrd has nothing to say first, which
//! leaves the space before the second word at the front of the line.

use super::Form;
use crate::options::{OptionsLcow, PreferredRootFsType};
use crate::validate::HostFacts;

/// The command line for these options.
pub fn kernel_args(opts: &OptionsLcow, form: Form, host: &HostFacts) -> String {
    let console = !opts.console_pipe.is_empty();
    let debugged = console || opts.enable_graphics_console;
    let mut line = root_words(opts);
    line += if console {
        " 8250_core.nr_uarts=1 8250_core.skip_txen_test=1 console=ttyS0,115200"
    } else {
        " 8250_core.nr_uarts=0"
    };
    if opts.enable_graphics_console {
        line += " console=tty";
    }
    if !debugged {
        line += " panic=-1 quiet";
    }
    if !opts.kernel_boot_options.is_empty() {
        line += " ";
        line += &opts.kernel_boot_options;
    }
    if !opts.vpci_enabled {
        line += " pci=off";
    }
    let processors = match form {
        Form::Faithful => opts.options.processor_count,
        Form::Corrected => opts.options.capped_processors(host),
    };
    line + &format!(" nr_cpus={processors} brd.rd_nr=0 pmtmr=0 -- ")
        + &init_args(opts, debugged, form)
}

fn root_words(opts: &OptionsLcow) -> String {
    match (opts.preferred_root_fs_type, opts.kernel_direct) {
        (PreferredRootFsType::InitRd, true) => String::new(),
        (PreferredRootFsType::InitRd, false) => format!("initrd=/{}", opts.root_fs_file),
        (PreferredRootFsType::Vhd, _) => "root=/dev/pmem0 ro rootwait init=/init".to_owned(),
    }
}

/// What the guest's init is told: read entropy from port 1, then run the program with its output
/// on port 109 as asked.
fn init_args(opts: &OptionsLcow, debugged: bool, form: Form) -> String {
    let stdout = if opts.forward_stdout { " -o 109" } else { "" };
    let stderr = if opts.forward_stderr { " -e 109" } else { "" };
    let exec = format!("/bin/vsockexec{stdout}{stderr} {}", opts.exec_command_line);
    match (debugged, form) {
        (false, _) => format!("-e 1 {exec}"),
        (true, Form::Faithful) => format!("sh -c \"-e 1 {exec} & exec sh\""),
        (true, Form::Corrected) => format!("-e 1 sh -c \"{exec} & exec sh\""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: HostFacts = HostFacts { processors: 2, kernel_direct: true, cold_discard: true };

    fn opts() -> OptionsLcow {
        let mut opts = OptionsLcow::with_boot_files("id", "owner", "/nowhere");
        opts.options.processor_count = 2;
        opts
    }

    #[test]
    fn a_direct_boot_from_an_initrd_begins_with_a_space() {
        assert!(kernel_args(&opts(), Form::Faithful, &HOST).starts_with(" 8250_core.nr_uarts=0 "));
    }

    #[test]
    fn a_firmware_boot_names_its_initrd_first() {
        let mut opts = opts();
        opts.kernel_direct = false;
        assert!(kernel_args(&opts, Form::Faithful, &HOST).starts_with("initrd=/initrd.img 8250"));
    }

    #[test]
    fn every_combination_has_each_word_exactly_when_it_should() {
        for bits in 0u32..64 {
            let bit = |n: u32| bits & (1 << n) != 0;
            let mut opts = opts();
            if bit(0) {
                opts.console_pipe = "pipe".to_owned();
            }
            opts.enable_graphics_console = bit(1);
            opts.vpci_enabled = bit(2);
            opts.forward_stdout = bit(3);
            opts.forward_stderr = bit(4);
            if bit(5) {
                opts.preferred_root_fs_type = PreferredRootFsType::Vhd;
            }
            let line = kernel_args(&opts, Form::Corrected, &HOST);
            let has = |text: &str| line.contains(text);
            assert_eq!(has("console=ttyS0,115200"), bit(0), "{line}");
            assert_eq!(has(" console=tty "), bit(1), "{line}");
            assert_eq!(has(" panic=-1 quiet"), !bit(0) && !bit(1), "{line}");
            assert_eq!(has(" pci=off"), !bit(2), "{line}");
            assert_eq!(has("/bin/vsockexec -o 109"), bit(3), "{line}");
            assert_eq!(has(" -e 109"), bit(4), "{line}");
            assert_eq!(has("root=/dev/pmem0 ro rootwait init=/init"), bit(5), "{line}");
            assert!(has(" brd.rd_nr=0 pmtmr=0 -- -e 1 "), "{line}");
        }
    }

    #[test]
    fn corrected_the_entropy_flag_stays_outside_the_debugging_shell() {
        let mut opts = opts();
        opts.console_pipe = "pipe".to_owned();
        let end = |form| {
            let line = kernel_args(&opts, form, &HOST);
            line.split_once(" -- ").unwrap().1.split_once("/bin").unwrap().0.to_owned()
        };
        assert_eq!(end(Form::Faithful), "sh -c \"-e 1 ");
        assert_eq!(end(Form::Corrected), "-e 1 sh -c \"");
    }

    #[test]
    fn corrected_the_processors_are_those_the_vm_has() {
        let mut opts = opts();
        opts.options.processor_count = 64;
        assert!(kernel_args(&opts, Form::Faithful, &HOST).contains(" nr_cpus=64 "));
        assert!(kernel_args(&opts, Form::Corrected, &HOST).contains(" nr_cpus=2 "));
    }
}
