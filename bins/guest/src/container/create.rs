//! A new container: its bundle, and its init waiting to be started.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::syscall::syscall::SyscallType;

use super::executor::InitExecutor;
use super::request::ReplySocket;
use super::{STATE, bundle, identity, spec};

/// Puts the specification as the host sent it where [`create`] finds it. The agent's part: written and
/// read by the same code as libcontainer reads it, since an emulated processor is slow with all that it
/// has not seen.
pub fn lay_out(id: &str, spec: &Spec) -> Result<()> {
    let bundle = bundle(id);
    fs::create_dir_all(&bundle).with_context(|| format!("creating {}", bundle.display()))?;
    save(spec, &bundle).inspect_err(|_| discard(&bundle))
}

/// Makes the container. On failure nothing of it is left but, perhaps, an empty folder's parents.
pub fn create(id: &str, reply: &ReplySocket) -> Result<()> {
    let bundle = bundle(id);
    let create = || {
        fs::create_dir_all(STATE).context("creating the folder of runtime state")?;
        let config = config_of(&bundle);
        let spec = Spec::load(&config).with_context(|| format!("reading {}", config.display()))?;
        build(id, spec, &bundle, reply)
    };
    create().inspect_err(|_| discard(&bundle))
}

fn config_of(bundle: &Path) -> PathBuf {
    bundle.join("config.json")
}

fn save(spec: &Spec, bundle: &Path) -> Result<()> {
    let config = config_of(bundle);
    spec.save(&config).with_context(|| format!("writing {}", config.display()))
}

/// Removes what [`lay_out`] and [`create`] put into the bundle; what the host mounted there stays.
pub fn discard(bundle: &Path) {
    // Either may not be there, and a bundle that holds the root is not empty.
    drop(fs::remove_file(config_of(bundle)));
    drop(fs::remove_file(bundle.join("console.sock")));
    drop(fs::remove_dir(bundle));
}

fn build(id: &str, mut spec: Spec, bundle: &Path, reply: &ReplySocket) -> Result<()> {
    spec::settle(&mut spec, id);
    settle_user(&mut spec, bundle)?;
    let terminal = spec.process().as_ref().and_then(|process| process.terminal()).unwrap_or(false);
    save(&spec, bundle)?;

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

fn settle_user(spec: &mut Spec, bundle: &Path) -> Result<()> {
    let root = spec.root().as_ref().map(|root| bundle.join(root.path()));
    let root = root.context("the specification has no root")?;
    let named =
        spec.annotations().as_ref().and_then(|all| all.get(identity::USER_ANNOTATION)).cloned();
    let Some(process) = spec.process_mut() else { return Ok(()) };
    identity::settle_beneath(process, named.as_deref(), &root)?;
    let user = process.user();
    let (uid, gid) = (user.uid(), user.gid());
    if spec.linux().as_ref().is_none_or(|linux| linux.uid_mappings().is_none()) {
        own_stdio(uid, gid);
    }
    Ok(())
}

/// Pipes belong to who made them; the workload may want to open `/dev/stdout` anew.
pub fn own_stdio(uid: u32, gid: u32) {
    for stream in [std::io::stdin().as_fd(), std::io::stdout().as_fd(), std::io::stderr().as_fd()] {
        // Fails for what cannot be owned, such as a read-only device: then it stays as it is.
        let _ = nix::unistd::fchown(stream, Some(uid.into()), Some(gid.into()));
    }
}

/// Where libcontainer's child sends the terminal it made inside the container.
struct Console {
    listener: UnixListener,
    path: PathBuf,
}

impl Console {
    fn listen(bundle: &Path) -> Result<Self> {
        let path = bundle.join("console.sock");
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
