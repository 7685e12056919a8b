//! The baseline: QEMU with the same kernel, memory and processor, and nothing else.
//!
//! Its init is the smallest program there is: it writes one byte to the console and
//! sleeps. No modules are loaded, no device is there but the serial port that carries
//! the byte, no hot-plug room is made. What coracle needs beyond this is its cost.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use coracle_guest_image::cpio;
use coracle_vmm::accel::Engine;
use coracle_vmm::qemu::{KernelFacts, host_tsc_khz, kernel_arguments};

/// The byte the bare init writes.
const READY: u8 = 0x06;

/// The words of the kernel command line of baselines of streams and devices.
pub const KERNEL_WORDS: &str = "console=ttyS0 quiet panic=-1 reboot=t cryptomgr.notests \
     no_timer_check noreplace-smp random.trust_cpu=on 8250.nr_uarts=1";

/// Those of a baseline of boots: the very ones coracle gives its guests, so that it is no slower for lack of a
/// word that coracle found useful.
pub fn boot_words() -> String {
    kernel_arguments(&KernelFacts {
        engine: Engine::Tcg,
        graphics: false,
        verbose: false,
        host_devices: false,
        tsc_khz: host_tsc_khz(),
    })
}

/// Boots a bare VM and returns how long its init took to say a byte.
///
/// # Errors
/// QEMU cannot be started, or the VM ended or was silent for 30 s.
pub fn boot(vmlinux: &Path, initrd: &Path, memory_mib: u64) -> Result<Duration> {
    until_ready(qemu(vmlinux, initrd, &boot_words(), memory_mib))
}

/// Starts a bare VM, waits for its byte and ends it: how long that byte took.
///
/// # Errors
/// QEMU cannot be started, or the VM ended or was silent for 30 s.
pub fn until_ready(mut qemu: Command) -> Result<Duration> {
    let started = Instant::now();
    let mut child = qemu
        .args(["-serial", "stdio"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .context("cannot start qemu-system-x86_64")?;
    let outcome = wait_for_byte(&mut child).map(|()| started.elapsed());
    stop(child)?;
    outcome
}

/// QEMU as lean as it gets, without devices. With room for a second processor, like ours: without it some
/// notifications of devices are lost (docs/decisions/room-for-a-second-processor.md).
pub fn qemu(vmlinux: &Path, initrd: &Path, words: &str, memory_mib: u64) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .args(["-machine", "q35,smm=off,hpet=off,usb=off,sata=off,vmport=off,smbus=off"])
        .args(["-accel", "tcg", "-cpu", "max,-erms", "-smp", "1,maxcpus=2"])
        .args(["-bios", "qboot.rom"])
        .arg("-m")
        .arg(format!("{memory_mib}M"))
        .arg("-kernel")
        .arg(vmlinux)
        .arg("-initrd")
        .arg(initrd)
        .arg("-append")
        .arg(words);
    command
}

/// Ends a VM this program started.
///
/// # Errors
/// It cannot be waited for.
pub fn stop(mut child: Child) -> Result<()> {
    // It may have ended by itself.
    let _ = child.kill();
    child.wait().context("cannot wait for QEMU")?;
    Ok(())
}

fn wait_for_byte(child: &mut Child) -> Result<()> {
    let mut out = child.stdout.take().context("QEMU has no output")?;
    let mut byte = [0];
    loop {
        if out.read(&mut byte).context("cannot read the serial port")? == 0 {
            bail!("the bare VM ended before its init said a byte");
        }
        if byte[0] == READY {
            return Ok(());
        }
    }
}

/// The initrd of the bare VM: one program of 150 bytes.
pub fn initrd() -> Vec<u8> {
    let mut archive = cpio::Archive::default();
    archive.add("init", 0o755, cpio::Kind::File(&smallest_init()));
    archive.finish()
}

/// An ELF file with one segment whose code is `write(1, &READY, 1)` and then
/// `pause()` for ever.
fn smallest_init() -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    #[rustfmt::skip]
    let mut code = vec![
        0xb8, 1, 0, 0, 0,                   // mov eax, 1 (write)
        0x89, 0xc7,                         // mov edi, eax (stdout)
        0x89, 0xc2,                         // mov edx, eax (one byte)
        0x48, 0x8d, 0x35, 11, 0, 0, 0,      // lea rsi, [rip + 11], the byte after the code
        0x0f, 0x05,                         // syscall
        0xb8, 34, 0, 0, 0,                  // again: mov eax, 34 (pause)
        0x0f, 0x05,                         // syscall
        0xeb, 0xf7,                         // jmp again
    ];
    code.push(READY);
    let size = HEADERS + code.len() as u64;
    let mut elf = Vec::new();
    elf.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    for half in [2_u16, 62] {
        elf.extend(half.to_le_bytes()); // executable, x86-64
    }
    elf.extend(1_u32.to_le_bytes());
    for word in [BASE + HEADERS, 64, 0] {
        elf.extend(word.to_le_bytes()); // entry, program headers, no sections
    }
    elf.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, 1, 64, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    for word in [1_u32, 5] {
        elf.extend(word.to_le_bytes()); // load, readable and executable
    }
    for word in [0, BASE, BASE, size, size, 0x1000] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(code);
    elf
}
