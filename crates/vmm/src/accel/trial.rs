//! A trial of KVM: one virtual CPU in 64-bit mode, a million turns of a loop.
//!
//! The loop comes in slices, each ended by an `out`, so that a virtual CPU which crawls is left
//! after a slice or two without any signal or timer. CPU time is counted, not the clock's, or a
//! busy host would be taken for a slow one. Should a slice never end, the thread is given up.

use std::{io, sync::mpsc, thread, time::Duration};

use kvm_bindings::kvm_segment;
use kvm_ioctls::{Kvm as Device, VcpuExit, VcpuFd};
use rustix::time::{ClockId, clock_gettime};

use super::Kvm;
use crate::sys;

/// CPU time the whole trial may take; hardware needs about one millisecond.
pub(super) const LIMIT: Duration = Duration::from_millis(25);

/// After this the trial's thread is given up.
const GIVE_UP: Duration = Duration::from_secs(2);

const SLICES: u32 = 100;
/// Turns of the loop in a slice.
const TURNS: u32 = 10_000;

const PORT: u16 = 0xf4;
const TOKEN: u8 = 0x5a;
/// Where the parts of the guest lie: three levels of page tables, then code.
const TABLES: [usize; 3] = [0x1000, 0x2000, 0x3000];
const CODE: usize = 0x4000;
const MEMORY: usize = 0x8000;
const PAGE: usize = 0x1000;

pub(super) fn run() -> Kvm {
    let (sender, receiver) = mpsc::channel();
    let body = move || {
        // Nobody may be waiting any more.
        let _ = sender.send(work().unwrap_or_else(|error| Kvm::Broken { why: error.to_string() }));
    };
    if let Err(error) = thread::Builder::new().name("kvm-trial".into()).spawn(body) {
        return Kvm::Broken { why: format!("no thread for a trial: {error}") };
    }
    let verdict = receiver.recv_timeout(GIVE_UP);
    verdict.unwrap_or_else(|_| Kvm::Broken { why: "a virtual CPU never came back".into() })
}

fn work() -> io::Result<Kvm> {
    let device = Device::new()?;
    if device.get_api_version() != 12 {
        return Ok(Kvm::Broken { why: format!("API version {}", device.get_api_version()) });
    }
    let vm = device.create_vm()?;
    let mut room = vec![0; MEMORY + PAGE];
    let start = room.as_ptr().align_offset(PAGE);
    let memory = room.get_mut(start..start + MEMORY).ok_or(io::ErrorKind::OutOfMemory)?;
    write_guest(memory);
    sys::with_guest_memory(&vm, memory, || {
        let mut vcpu = vm.create_vcpu(0)?;
        enter_long_mode(&vcpu)?;
        loop_in_slices(&mut vcpu)
    })
}

fn loop_in_slices(vcpu: &mut VcpuFd) -> io::Result<Kvm> {
    let start = cpu_time();
    for slice in 1..=SLICES {
        match vcpu.run()? {
            VcpuExit::IoOut(PORT, [TOKEN]) => {}
            other => return Ok(Kvm::Broken { why: format!("unexpected exit {other:?}") }),
        }
        if cpu_time().saturating_sub(start) > LIMIT {
            return Ok(Kvm::Slow { percent: slice * 100 / SLICES });
        }
    }
    let micros = cpu_time().saturating_sub(start).as_micros();
    Ok(Kvm::Fast { micros: u64::try_from(micros).unwrap_or(u64::MAX) })
}

/// CPU time of this thread, its guest's included.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or_default(),
        u32::try_from(time.tv_nsec).unwrap_or_default(),
    )
}

/// Page tables that map the first 2 MiB onto themselves, and the code.
fn write_guest(memory: &mut [u8]) {
    /// Present and writable; in the last level also a large page.
    const LINK: u64 = 0x03;
    const LARGE_PAGE: u64 = 0x83;
    let mut put = |at: usize, bytes: &[u8]| memory[at..at + bytes.len()].copy_from_slice(bytes);
    put(TABLES[0], &(TABLES[1] as u64 | LINK).to_le_bytes());
    put(TABLES[1], &(TABLES[2] as u64 | LINK).to_le_bytes());
    put(TABLES[2], &LARGE_PAGE.to_le_bytes());
    let [a, b, c, d] = TURNS.to_le_bytes();
    let code = [
        0xb9, a, b, c, d, // again: mov ecx, TURNS
        0xff, 0xc9, // turn: dec ecx
        0x75, 0xfc, // jnz turn
        0xb0, TOKEN, // mov al, TOKEN
        0xe6, 0xf4, // out PORT, al
        0xeb, 0xf1, // jmp again
    ];
    put(CODE, &code);
}

fn enter_long_mode(vcpu: &VcpuFd) -> io::Result<()> {
    let mut special = vcpu.get_sregs()?;
    special.cr3 = TABLES[0] as u64;
    special.cr4 = 1 << 5; // physical address extension
    special.cr0 = 1 << 31 | 1 << 4 | 1; // paging, extension type, protected mode
    special.efer = 1 << 10 | 1 << 8; // long mode active, enabled
    let flat = kvm_segment { limit: u32::MAX, present: 1, s: 1, g: 1, ..Default::default() };
    special.cs = kvm_segment { selector: 8, type_: 11, l: 1, ..flat };
    let data = kvm_segment { selector: 16, type_: 3, db: 1, ..flat };
    (special.ds, special.es, special.ss) = (data, data, data);
    vcpu.set_sregs(&special)?;
    let mut registers = vcpu.get_regs()?;
    registers.rip = CODE as u64;
    registers.rflags = 2;
    Ok(vcpu.set_regs(&registers)?)
}
