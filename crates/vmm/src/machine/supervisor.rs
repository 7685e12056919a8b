//! The task that sees one VM through: it reads its events and complaints, makes a lost
//! connection again, ends the monitor once the guest has ended, and says why at the end.
//!
//! It ends with the process, or is aborted when the handle of a VM that lives on is dropped.

use std::{
    convert::Infallible,
    future::pending,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{
    net::unix::pipe::Receiver,
    sync::broadcast::{self, error::RecvError},
    time::{sleep, timeout},
};

use super::{
    Attached, Debris, PATIENCE, Shared, console,
    exit::{self, Cause},
    screen,
};
use crate::{
    DeviceId, VmEvent,
    process::{Ending, Tail},
    qmp::{
        Client, Event,
        command::{QueryStatus, Quit},
    },
};

/// How long the monitor may take to quit once told to, and its last events to arrive.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How long to wait after the first attempt to connect again. The usual reason for a lost connection
/// is a VM that ends, and whoever waits for that should not wait for us.
const RECONNECT: Duration = Duration::from_millis(2);

/// Each pause is twice as long as the last, up to this.
const RECONNECT_MOST: Duration = Duration::from_millis(100);

/// `heard` are the events of the connection that there is. They are heard from before the VM is
/// handed out: whoever has it may cause some before this task first runs.
pub(super) async fn supervise(
    shared: Arc<Shared>,
    attached: Attached,
    heard: Option<broadcast::Receiver<Event>>,
) {
    let Attached { mut stderr, mut console, screen } = attached;
    let mut complaints = Tail::default();
    let (cause, ending) = tokio::select! {
        story = watch(&shared, heard) => story,
        never = listen(&mut stderr, &mut complaints) => match never {},
        never = console::serve(&shared, &mut console) => match never {},
        never = screen::serve(&shared, screen) => match never {},
    };
    if let Some(pipe) = &stderr {
        complaints.read_rest(pipe);
    }
    if let Some(console) = console {
        console.finish(&mut shared.console());
    }
    let killed = shared.killed.load(Ordering::Acquire);
    let reason = exit::reason(cause, killed, ending, shared.console_text(), complaints.text());
    tracing::debug!(pid = shared.process.pid(), %reason, "VM ended");
    let identity = &shared.identity;
    let mut sockets = identity.sockets.clone();
    sockets.extend(std::mem::take(&mut *shared.sockets()).into_values());
    Debris { process: None, sockets, cgroup: identity.cgroup.clone() }.clear();
    shared.control.send_replace(None);
    shared.exit.send_replace(Some(reason.clone()));
    // Nobody may be listening.
    let _ = shared.events.send(VmEvent::Exited(reason));
}

/// Waits for the end of guest or process, whichever comes first, and then for the other.
async fn watch(
    shared: &Shared,
    heard: Option<broadcast::Receiver<Event>>,
) -> (Option<Cause>, Ending) {
    let mut ended = std::pin::pin!(shared.process.ended());
    let mut guest = std::pin::pin!(follow(shared, heard));
    let cause = tokio::select! {
        ending = &mut ended => {
            // Its last events may still be on their way.
            return (timeout(LAST_WORDS, guest).await.ok().flatten(), ending);
        }
        cause = &mut guest => cause,
    };
    let ending = timeout(LAST_WORDS, async { tokio::join!(&mut ended, end(shared)).0 }).await;
    match ending {
        Ok(ending) => (cause, ending),
        Err(_) => {
            tracing::warn!(pid = shared.process.pid(), "VM does not quit; killing it");
            if let Err(error) = shared.process.kill() {
                tracing::warn!(%error, "VM not killed");
            }
            (cause, ended.await)
        }
    }
}

/// Reads the console's end while the monitor still has it, then ends the monitor.
async fn end(shared: &Shared) {
    let Some(client) = shared.control.borrow().clone() else { return };
    shared.drain_console(&client).await;
    if let Err(error) = client.run(Quit {}).await {
        tracing::debug!(%error, "quit");
    }
}

/// Follows the VM's events, through as many connections as it takes, until one tells of the
/// guest's end; none when the process is gone without such an event.
async fn follow(shared: &Shared, mut heard: Option<broadcast::Receiver<Event>>) -> Option<Cause> {
    let mut pause = RECONNECT;
    loop {
        let client = shared.control.borrow().clone();
        if let Some(client) = client
            && let Some(events) = heard.take()
            && let Some(cause) = follow_connection(shared, client, events).await
        {
            return Some(cause);
        }
        shared.control.send_replace(None);
        if shared.process.is_dead() {
            return None;
        }
        match Client::connect(&shared.identity.control_socket, PATIENCE, PATIENCE).await {
            Ok(client) => {
                pause = RECONNECT;
                heard = Some(client.events());
                shared.control.send_replace(Some(client));
            }
            Err(error) => {
                tracing::debug!(%error, "control socket not connected again yet");
                sleep(pause).await;
                pause = (pause * 2).min(RECONNECT_MOST);
            }
        }
    }
}

/// Follows one connection until it closes or the guest ends.
async fn follow_connection(
    shared: &Shared,
    client: Client,
    mut events: broadcast::Receiver<Event>,
) -> Option<Cause> {
    // What happened while nobody listened.
    let state = client.run(QueryStatus {}).await.ok();
    drop(client);
    if let Some(cause) = state.and_then(|state| Cause::of_state(&state.status)) {
        return Some(cause);
    }
    loop {
        match events.recv().await {
            Ok(event) => {
                if let Some(event) = told(&event) {
                    // Nobody may be listening.
                    let _ = shared.events.send(event);
                }
                if let Some(cause) = Cause::of(&event) {
                    return Some(cause);
                }
            }
            Err(RecvError::Lagged(missed)) => tracing::warn!(missed, "events of the VM missed"),
            Err(RecvError::Closed) => return None,
        }
    }
}

/// An event in our own words; none when it says nothing to us.
fn told(event: &Event) -> Option<VmEvent> {
    let device = || event.text("device").and_then(|id| DeviceId::new(id).ok());
    match event.name.as_str() {
        "RESUME" => Some(VmEvent::Resumed),
        "STOP" => Some(VmEvent::Paused),
        "GUEST_PANICKED" => Some(VmEvent::Panicked),
        "DEVICE_DELETED" => device().map(VmEvent::Unplugged),
        "DEVICE_UNPLUG_GUEST_ERROR" => device().map(VmEvent::UnplugRefused),
        "SHUTDOWN" => Some(VmEvent::ShutDown {
            by_guest: event.data.get("guest").and_then(serde_json::Value::as_bool) == Some(true),
            reason: event.text("reason").unwrap_or_default().to_owned(),
        }),
        _ => None,
    }
}

/// Reads what the process complains about, for ever.
async fn listen(stderr: &mut Option<Receiver>, complaints: &mut Tail) -> Infallible {
    if let Some(pipe) = stderr {
        let mut chunk = [0; 4096];
        loop {
            match pipe.readable().await.and_then(|()| pipe.try_read(&mut chunk)) {
                Ok(0) => break,
                Ok(count) => complaints.push(&chunk[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
        }
    }
    pending().await
}
