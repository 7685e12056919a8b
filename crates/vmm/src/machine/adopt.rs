//! Finding a VM again whose owner has died.

use std::{io, time::Duration};

use super::{Attached, Console, Machine, PATIENCE, TTY_SOCKET, screen};
use crate::{
    VmIdentity, VmmError,
    effect::Effects,
    process::{Process, host_boot_id, reopen_stderr},
    qmp::{Client, QmpError, command::QueryUuid},
};

/// How long the greeting may take; a socket that accepts without greeting serves another.
const GREETING: Duration = Duration::from_secs(5);

/// Adopts the VM of that identity.
pub(crate) async fn adopt(identity: &VmIdentity, effects: Effects) -> Result<Machine, VmmError> {
    effects.announce("vm.adopt")?;
    let host =
        |operation, source| VmmError::Host { operation, object: identity.pid.to_string(), source };
    let boot_id = host_boot_id().map_err(|error| host("read the boot id for process", error))?;
    if boot_id != identity.boot_id {
        return Err(VmmError::Gone);
    }
    let process = match Process::open(identity.pid) {
        Ok(process) => process,
        Err(error) if is_gone(&error) => return Err(VmmError::Gone),
        Err(error) => return Err(host("open process", error)),
    };
    if process.start_time() != identity.start_time || process.is_dead() {
        return Err(VmmError::Gone);
    }
    let control = match Client::connect(&identity.control_socket, GREETING, PATIENCE).await {
        Ok(client) => client,
        Err(QmpError::Timeout(_)) => return Err(VmmError::Busy),
        Err(_) if process.is_dead() => return Err(VmmError::Gone),
        Err(source) => return Err(VmmError::Control { operation: "connect".into(), source }),
    };
    let answer = control.run(QueryUuid {}).await;
    let uuid =
        answer.map_err(|source| VmmError::Control { operation: "query-uuid".into(), source })?.uuid;
    if uuid != identity.id {
        return Err(VmmError::NotThatVm { id: identity.id, pid: identity.pid });
    }
    // Its complaints are nice to have; without the right to read them the VM is as good.
    let stderr = reopen_stderr(identity.pid)
        .inspect_err(|error| tracing::debug!(%error, "stderr of the VM not readable"))
        .ok();
    let tty = identity.control_socket.with_file_name(TTY_SOCKET);
    let console = identity.console.clone().map(|path| Console::listen(path, tty)).transpose()?;
    let screen = screen::listen(identity.graphics.as_deref())?;
    let attached = Attached { stderr, console, screen };
    Ok(Machine::start(identity.clone(), process, control, attached, effects))
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}
