//! The places where the compiler cannot check us: code between fork and exec, memory shared with
//! a virtual CPU, descriptors known by number, and the CPU's time stamp counter.
#![allow(unsafe_code)]

use std::{
    io,
    os::{
        fd::{FromRawFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    process::Command,
};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use tokio::io::unix::AsyncFd;

/// Runs `steps` in the child after fork, and the program only if they succeed.
///
/// `steps` must do nothing but system calls: no allocation, no lock, since another thread of the
/// parent may have held the allocator's lock at the moment of the fork.
pub(crate) fn before_exec(
    command: &mut Command,
    steps: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) {
    // SAFETY: the caller promises that `steps` makes system calls only; its two callers,
    // `process::launcher` and `process::enter_before_exec`, use rustix calls on values prepared
    // before the fork.
    unsafe { command.pre_exec(steps) };
}

/// Gives a VM `memory` as its RAM from guest address 0 for as long as `run` takes.
pub(crate) fn with_guest_memory<T>(
    vm: &VmFd,
    memory: &mut [u8],
    run: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    let region = |size| kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: size,
        userspace_addr: memory.as_ptr() as u64,
    };
    // SAFETY: the range is exactly `memory`, borrowed mutably, so nothing else in this process
    // reads or writes it meanwhile; the region is removed again below before the borrow ends.
    unsafe { vm.set_user_memory_region(region(memory.len() as u64)) }?;
    let result = run();
    // SAFETY: size 0 deletes the region; the guest cannot touch `memory` any more.
    unsafe { vm.set_user_memory_region(region(0)) }?;
    result
}

/// The CPU's time stamp counter.
pub(crate) fn time_stamp() -> u64 {
    // SAFETY: every x86-64 CPU has the instruction, and Linux lets programs use it.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// A descriptor to be waited for in the runtime.
pub(crate) fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` names the same open descriptor for as long as it lives, and the
    // `AsyncFd` owns it.
    Ok(unsafe { AsyncFd::register(descriptor) }?)
}

/// A descriptor which the fake monitor was started with and told the number of.
pub(crate) fn inherited(number: RawFd) -> OwnedFd {
    // SAFETY: the launcher left the descriptor open for us under this number, the command line
    // names it for one purpose, and it is taken over once, for that.
    unsafe { OwnedFd::from_raw_fd(number) }
}
