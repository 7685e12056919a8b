//! A new container: its init, waiting to be started.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;

use super::executor::InitExecutor;
use super::request::ReplySocket;
use super::{CONSOLE, STATE, bundle, layout};

/// Makes the container whose specification is in its bundle. On failure nothing of it is left but,
/// perhaps, an empty folder's parents.
pub fn create(id: &str, terminal: bool, reply: &ReplySocket) -> Result<()> {
    let bundle = bundle(id);
    fs::create_dir_all(STATE).context("creating the folder of runtime state")?;
    build(id, terminal, &bundle, reply).inspect_err(|_| layout::discard(&bundle))
}

fn build(id: &str, terminal: bool, bundle: &Path, reply: &ReplySocket) -> Result<()> {
    let console = terminal.then(|| Console::listen(bundle)).transpose()?;
    let container = ContainerBuilder::new(id.to_owned(), SyscallType::Linux)
        .with_root_path(STATE)?
        .with_executor(InitExecutor { reply: reply.descriptor() })
        .with_console_socket(console.as_ref().map(|console| console.path.clone()))
        .validate_id()?
        .as_init(bundle)
        .with_systemd(false)
        .as_sibling(true)
        .build()?;
    let pid = container.pid().context("libcontainer made no init process")?;
    if let Some(console) = console {
        reply.terminal(console.master()?.as_fd())?;
    }
    reply.pid(pid.as_raw())?;
    reply.ready()?;
    Ok(())
}

/// Where libcontainer's child sends the terminal it made inside the container.
struct Console {
    listener: UnixListener,
    path: PathBuf,
}

impl Console {
    fn listen(bundle: &Path) -> Result<Self> {
        let path = bundle.join(CONSOLE);
        drop(fs::remove_file(&path));
        let listener = UnixListener::bind(&path).context("listening for the terminal")?;
        Ok(Self { listener, path })
    }

    /// libcontainer connected before it made the child, which has sent by now.
    fn master(self) -> Result<OwnedFd> {
        let (stream, _) = self.listener.accept().context("waiting for the terminal")?;
        drop(fs::remove_file(&self.path));
        receive_descriptor(&stream)
    }
}

fn receive_descriptor(stream: &impl AsRawFd) -> Result<OwnedFd> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};
    let mut text = [0; 64];
    let mut slices = [std::io::IoSliceMut::new(&mut text)];
    let mut control = nix::cmsg_space!([std::os::fd::RawFd; 1]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<UnixAddr>(stream.as_raw_fd(), &mut slices, Some(&mut control), flags)?;
    let mut descriptor = None;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = control {
            descriptor = numbers.into_iter().map(crate::sys::received).next_back().or(descriptor);
        }
    }
    descriptor.context("the container's terminal did not arrive")
}
