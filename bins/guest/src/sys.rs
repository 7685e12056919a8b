//! Every system call the safe crates do not wrap, one small function each.
//!
//! This is the only file of the agent with `unsafe` in it. Each function takes and gives safe
//! types, and its comment says why the call is sound; what the calls are for stands where they
//! are used.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::unistd::Pid;
use tokio::io::unix::AsyncFd;

/// A program to start, everything about it prepared so that nothing is left to go wrong between
/// the birth of the child and its `execve`.
#[derive(Debug)]
pub struct Program {
    /// The file to execute, as the child sees it (a path, no search).
    pub file: CString,
    /// `argv`, the name included.
    pub arguments: Vec<CString>,
    /// `envp`.
    pub environment: Vec<CString>,
    /// Where the child stands.
    pub directory: Option<CString>,
    /// The child's descriptors: `(ours, its number)`. All others stay closed to it as far as
    /// they are close-on-exec, which every descriptor of the agent is.
    pub descriptors: Vec<(RawFd, RawFd)>,
    /// A terminal to open as descriptors 0, 1 and 2; as the child is a session leader, it becomes
    /// its controlling terminal.
    pub terminal: Option<CString>,
}

/// Starts `program` in a session of its own, with default signal handlers and nothing blocked.
/// Returns once the child has executed the file, so that its failure to do so is an error here.
pub fn spawn(program: &Program) -> io::Result<Pid> {
    let mut actions = MaybeUninit::<libc::posix_spawn_file_actions_t>::uninit();
    let mut attributes = MaybeUninit::<libc::posix_spawnattr_t>::uninit();
    // SAFETY: both structures are initialised by the first two calls, used only afterwards, and
    // destroyed once; every pointer handed over outlives the call it is handed to, because all of
    // them point into `program` or into locals. The child runs no code of ours.
    unsafe {
        check(libc::posix_spawn_file_actions_init(actions.as_mut_ptr()))?;
        let attributes_made = libc::posix_spawnattr_init(attributes.as_mut_ptr());
        let result = check(attributes_made).and_then(|()| {
            let result = spawn_prepared(program, actions.as_mut_ptr(), attributes.as_mut_ptr());
            libc::posix_spawnattr_destroy(attributes.as_mut_ptr());
            result
        });
        libc::posix_spawn_file_actions_destroy(actions.as_mut_ptr());
        result
    }
}

/// # Safety
/// Both pointers must come from their `init` functions.
unsafe fn spawn_prepared(
    program: &Program,
    actions: *mut libc::posix_spawn_file_actions_t,
    attributes: *mut libc::posix_spawnattr_t,
) -> io::Result<Pid> {
    // First out of the way of all target numbers, then into place: otherwise the second of two
    // swapped descriptors would overwrite the first.
    let first_free = program
        .descriptors
        .iter()
        .flat_map(|&(ours, its)| [ours, its])
        .max()
        .map_or(3, |highest| highest.max(2) + 1);
    // SAFETY: as promised by the caller; the arrays built here end with a null pointer and live
    // until posix_spawn returns.
    unsafe {
        let mut signals = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigfillset(signals.as_mut_ptr());
        check(libc::posix_spawnattr_setsigdefault(attributes, signals.as_ptr()))?;
        libc::sigemptyset(signals.as_mut_ptr());
        check(libc::posix_spawnattr_setsigmask(attributes, signals.as_ptr()))?;
        check(libc::posix_spawnattr_setflags(attributes, SPAWN_FLAGS))?;

        for (parked, &(ours, _)) in (first_free..).zip(&program.descriptors) {
            check(libc::posix_spawn_file_actions_adddup2(actions, ours, parked))?;
        }
        for (parked, &(_, its)) in (first_free..).zip(&program.descriptors) {
            check(libc::posix_spawn_file_actions_adddup2(actions, parked, its))?;
            check(libc::posix_spawn_file_actions_addclose(actions, parked))?;
        }
        if let Some(terminal) = &program.terminal {
            let (path, mode) = (terminal.as_ptr(), libc::O_RDWR);
            check(libc::posix_spawn_file_actions_addopen(actions, 0, path, mode, 0))?;
            check(libc::posix_spawn_file_actions_adddup2(actions, 0, 1))?;
            check(libc::posix_spawn_file_actions_adddup2(actions, 0, 2))?;
        }
        if let Some(directory) = &program.directory {
            check(libc::posix_spawn_file_actions_addchdir_np(actions, directory.as_ptr()))?;
        }

        let arguments = pointers(&program.arguments);
        let environment = pointers(&program.environment);
        let mut pid = 0;
        check(libc::posix_spawn(
            &raw mut pid,
            program.file.as_ptr(),
            actions,
            attributes,
            arguments.as_ptr(),
            environment.as_ptr(),
        ))?;
        Ok(Pid::from_raw(pid))
    }
}

/// A session of its own, default signal handlers, nothing blocked. The three have different types
/// in the libc crate, the widest of which all their values fit in a `short`.
const SPAWN_FLAGS: libc::c_short = {
    let flags = libc::POSIX_SPAWN_SETSIGDEF
        | libc::POSIX_SPAWN_SETSIGMASK
        | libc::POSIX_SPAWN_SETSID as libc::c_int;
    assert!(flags <= libc::c_short::MAX as libc::c_int);
    #[allow(clippy::cast_possible_truncation)]
    let flags = flags as libc::c_short;
    flags
};

fn pointers(strings: &[CString]) -> Vec<*mut libc::c_char> {
    let each = strings.iter().map(|string| string.as_ptr().cast_mut());
    each.chain([std::ptr::null_mut()]).collect()
}

/// Gives the calling thread a niceness. What it starts from now on, threads and processes, has
/// the usual one if this is better.
pub fn prefer_this_thread(niceness: libc::c_int) -> io::Result<()> {
    let usual = libc::sched_param { sched_priority: 0 };
    // SAFETY: the structure outlives the call, which only reads it; 0 is the calling thread.
    cvt(unsafe {
        libc::sched_setscheduler(0, libc::SCHED_OTHER | libc::SCHED_RESET_ON_FORK, &raw const usual)
    })?;
    // SAFETY: takes numbers; as Linux has it, 0 is the calling thread and not its process.
    cvt(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, niceness) })?;
    Ok(())
}

/// posix_spawn and friends return the error instead of setting errno.
fn check(code: libc::c_int) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) }
}

/// Turns -1 into errno.
fn cvt(result: libc::c_int) -> io::Result<libc::c_int> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Which side of [`clone_sibling`] the caller is on.
#[derive(Debug)]
pub enum Cloned {
    /// The caller; the new process has this id in the caller's pid namespace.
    Parent(Pid),
    /// The new process.
    Child,
}

/// Proof that this process has one thread. Whoever holds it must not start another.
#[derive(Debug)]
pub struct SingleThread(());

impl SingleThread {
    /// Looks; needs the `/proc` this process was born under.
    pub fn ensure() -> io::Result<Self> {
        let threads = std::fs::read_dir("/proc/self/task")?.count();
        if threads == 1 {
            return Ok(Self(()));
        }
        Err(io::Error::other(format!("this process has {threads} threads")))
    }
}

/// `fork`, but the new process is a child of the caller's parent, which is the one to reap it.
pub fn clone_sibling(_alone: &SingleThread) -> io::Result<Cloned> {
    // SAFETY: the process has one thread, so the child, which gets a copy of the whole address
    // space, finds no lock in a state it cannot leave.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone,
            libc::c_long::from(libc::CLONE_PARENT | libc::SIGCHLD),
            0 as libc::c_long,
            0 as libc::c_long,
            0 as libc::c_long,
            0 as libc::c_long,
        )
    };
    match i32::try_from(pid) {
        Ok(0) => Ok(Cloned::Child),
        Ok(pid) if pid > 0 => Ok(Cloned::Parent(Pid::from_raw(pid))),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A descriptor that stands for `pid` as long as it is held.
pub fn pidfd_open(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: the call takes integers only; what it returns is a descriptor nobody else owns.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0);
        let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0);
        fd.map(|fd| OwnedFd::from_raw_fd(fd)).ok_or_else(io::Error::last_os_error)
    }
}

/// Takes ownership of a descriptor this process was started with.
///
/// Must be called once per number, early in `main`; the result closes on exec.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_SETFD fails when the number is not open; when it is, it was put there by our
    // parent for us alone, and no other part of the program has a name for it.
    unsafe {
        cvt(libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC))?;
        Ok(OwnedFd::from_raw_fd(number))
    }
}

/// Credits `seed` to the kernel's entropy pool, eight bits a byte, and makes it reseed at once.
pub fn add_entropy(random: BorrowedFd<'_>, seed: &[u8]) -> io::Result<()> {
    const ADD_ENTROPY: libc::c_ulong = 0x4008_5203;
    const RESEED: libc::c_ulong = 0x5207;
    let int =
        |n: usize| i32::try_from(n).map_err(|_| io::Error::other("more seed than one call takes"));
    let mut pool = Vec::with_capacity(8 + seed.len());
    pool.extend_from_slice(&int(seed.len() * 8)?.to_ne_bytes());
    pool.extend_from_slice(&int(seed.len())?.to_ne_bytes());
    pool.extend_from_slice(seed);
    // SAFETY: `pool` is the kernel's `struct rand_pool_info`: two ints (bits, bytes), then as many
    // bytes as the second one says. The second call takes no argument.
    unsafe {
        cvt(libc::ioctl(random.as_raw_fd(), ADD_ENTROPY, pool.as_ptr()))?;
        cvt(libc::ioctl(random.as_raw_fd(), RESEED, 0))?;
    }
    Ok(())
}

/// Sets a terminal's size in characters; the foreground process group gets SIGWINCH.
pub fn set_window_size(terminal: BorrowedFd<'_>, width: u16, height: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel reads one `winsize` from the pointer.
    unsafe { cvt(libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size))? };
    Ok(())
}

/// Makes `terminal` the controlling terminal of the calling session leader.
pub fn take_terminal(terminal: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes an integer.
    unsafe { cvt(libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0))? };
    Ok(())
}

/// Sets a network interface's "up" flag.
pub fn interface_up(socket: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    let mut request = interface(name)?;
    // SAFETY: the kernel writes the union's flags before they are read.
    unsafe {
        cvt(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request))?;
        request.ifr_ifru.ifru_flags |= INTERFACE_UP;
        cvt(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request))?;
    }
    Ok(())
}

/// How large the packets of a network interface may be, in bytes.
pub fn interface_mtu(socket: BorrowedFd<'_>, name: &CStr) -> io::Result<u32> {
    let mut request = interface(name)?;
    // SAFETY: the kernel writes the union's MTU before it is read.
    let mtu = unsafe {
        cvt(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU, &raw mut request))?;
        request.ifr_ifru.ifru_mtu
    };
    Ok(u32::try_from(mtu).unwrap_or(0))
}

/// A request that names an interface, with nothing else in it.
fn interface(name: &CStr) -> io::Result<libc::ifreq> {
    let bytes = name.to_bytes();
    if bytes.len() >= libc::IFNAMSIZ {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: `ifreq` is plain data, for which zero is valid; the name fits with its final zero.
    unsafe {
        let mut request: libc::ifreq = MaybeUninit::zeroed().assume_init();
        let target = request.ifr_name.as_mut_ptr().cast::<u8>();
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len());
        Ok(request)
    }
}

/// IFF_UP, as wide as the flags of `ifreq` are.
const INTERFACE_UP: libc::c_short = 1;

/// Opens `path` beneath `root`: symbolic links, `..` and absolute names cannot leave it
/// (`openat2`, RESOLVE_IN_ROOT).
pub fn open_beneath(root: BorrowedFd<'_>, path: &CStr, flags: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: `open_how` is plain data, for which zero is valid; the kernel reads as many bytes
    // as it is told; the descriptor it returns belongs to nobody else.
    unsafe {
        let mut how: libc::open_how = MaybeUninit::zeroed().assume_init();
        how.flags = u64::from((flags | libc::O_CLOEXEC).cast_unsigned());
        how.resolve = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS;
        let fd = libc::syscall(
            libc::SYS_openat2,
            root.as_raw_fd(),
            path.as_ptr(),
            &raw const how,
            size_of::<libc::open_how>(),
        );
        let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0);
        fd.map(|fd| OwnedFd::from_raw_fd(fd)).ok_or_else(io::Error::last_os_error)
    }
}

/// A copy of the mount at `path`, with all below it, attached nowhere (`open_tree`).
pub fn clone_mount(path: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: the path is a C string; the descriptor the kernel returns belongs to nobody else.
    unsafe {
        let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | AT_RECURSIVE;
        let fd = libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags);
        let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0);
        fd.map(|fd| OwnedFd::from_raw_fd(fd)).ok_or_else(io::Error::last_os_error)
    }
}

/// With all mounts below.
const AT_RECURSIVE: libc::c_uint = 0x8000;

/// Puts a mount that is attached nowhere at `path` (`move_mount`).
pub fn place_mount(tree: BorrowedFd<'_>, path: &CStr) -> io::Result<()> {
    // SAFETY: takes integers and two C strings, which it only reads.
    let done = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Borrows a descriptor known by number only, as libcontainer hands numbers on.
///
/// A number that is not open is no danger: every call on it fails.
pub fn borrowed(number: RawFd) -> BorrowedFd<'static> {
    // SAFETY: not -1 is all the type asks for in practice; callers use it for one call, within
    // which nobody closes it, as the process has one thread.
    unsafe { BorrowedFd::borrow_raw(number) }
}

/// Takes ownership of a descriptor that has just arrived in a control message or by an accept.
pub fn received(number: RawFd) -> OwnedFd {
    // SAFETY: `recvmsg` or `accept4` has made this number for us, and what it gave is read once.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Sends a signal by number; the real-time ones have no names.
pub fn kill(pid: Pid, signal: i32) -> io::Result<()> {
    // SAFETY: takes integers.
    unsafe { cvt(libc::kill(pid.as_raw(), signal)) }.map(drop)
}

/// Lets the runtime tell when `descriptor` is ready. It must not block.
pub fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` stands for one open file for as long as it lives, and the `AsyncFd`
    // owns it.
    Ok(unsafe { AsyncFd::register(descriptor) }?)
}
