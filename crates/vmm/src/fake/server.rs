//! The fake's one loop: a client of the control socket at a time, the guest, and what it prints.

use std::io;

use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    net::UnixListener,
    process::{Child, ChildStderr, ChildStdout},
};

use super::{
    command_line::Setup,
    connection::Connection,
    guest,
    model::{Action, Model, RunState},
};
use crate::sys;

/// The guest program and its output.
#[derive(Debug, Default)]
struct Guest {
    child: Option<Child>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
}

pub(super) async fn serve(mut setup: Setup) -> io::Result<()> {
    let listener = std::os::unix::net::UnixListener::from(sys::inherited(setup.control));
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let mut client: Option<Connection> = None;
    let mut running = Guest::default();
    if !setup.paused {
        setup.model.state = RunState::Running;
        begin(&mut setup, &mut running)?;
    }
    loop {
        tokio::select! {
            accepted = listener.accept(), if client.is_none() => {
                let mut connection = Connection::new(accepted?.0);
                let greeting = json!({"QMP": {"version": {"qemu": {"major": 7}}, "capabilities": []}});
                if connection.send(&greeting).await.is_ok() {
                    client = Some(connection);
                }
            }
            line = next(&mut client) => {
                let (Ok(line), Some(connection)) = (line, &mut client) else {
                    client = None;
                    continue;
                };
                let (answer, action) = execute(&mut setup.model, &line, connection);
                if action == Action::Die {
                    // The injected death; nothing runs after it.
                    let me = rustix::process::getpid();
                    rustix::process::kill_process(me, rustix::process::Signal::KILL)?;
                }
                if setup.model.state == RunState::Running {
                    begin(&mut setup, &mut running)?;
                }
                send(&mut client, &answer).await;
                tell(&mut client, &mut setup.model).await;
                setup.hang_up = match setup.hang_up {
                    1 => {
                        client = None;
                        0
                    }
                    left => left.saturating_sub(1),
                };
                if action == Action::Quit {
                    return Ok(());
                }
            }
            news = running.news() => match news {
                News::Printed(text) => setup.model.print(&text),
                News::Ended { well } => {
                    setup.model.guest_ended(well);
                    tell(&mut client, &mut setup.model).await;
                }
            }
        }
    }
}

/// Starts the guest, once.
fn begin(setup: &mut Setup, running: &mut Guest) -> io::Result<()> {
    let Some(program) = setup.guest.take() else { return Ok(()) };
    let mut child = guest::start(&program, &setup.ports)?;
    (running.stdout, running.stderr) = (child.stdout.take(), child.stderr.take());
    running.child = Some(child);
    Ok(())
}

fn execute(model: &mut Model, line: &[u8], client: &mut Connection) -> (Value, Action) {
    let request: Value = match serde_json::from_slice(line) {
        Ok(request) => request,
        Err(error) => {
            let error = json!({"class": "GenericError", "desc": error.to_string()});
            return (json!({"error": error}), Action::None);
        }
    };
    let name = request["execute"].as_str().unwrap_or_default();
    // The fake only notes that there was one, and closes it.
    let fd = matches!(name, "add-fd" | "getfd") && client.take_descriptor().is_some();
    let (result, action) = model.execute(name, &request["arguments"], fd);
    let answer = match result {
        Ok(value) => json!({"return": value, "id": request["id"]}),
        Err(refusal) => json!({
            "error": {"class": refusal.class, "desc": refusal.desc}, "id": request["id"],
        }),
    };
    (answer, action)
}

async fn next(client: &mut Option<Connection>) -> io::Result<Vec<u8>> {
    match client {
        Some(client) => client.next().await,
        None => std::future::pending().await,
    }
}

/// Sends a line; a client that cannot be reached is gone.
async fn send(client: &mut Option<Connection>, line: &Value) {
    if let Some(connection) = client
        && connection.send(line).await.is_err()
    {
        *client = None;
    }
}

/// Sends what happened; events nobody hears are lost, as with QEMU.
async fn tell(client: &mut Option<Connection>, model: &mut Model) {
    for (name, data) in model.take_events() {
        let mut event = json!({"event": name, "timestamp": {"seconds": 0, "microseconds": 0}});
        if !data.is_null() {
            event["data"] = data;
        }
        send(client, &event).await;
    }
}

/// What the guest does that the monitor notices.
enum News {
    Printed(Vec<u8>),
    Ended { well: bool },
}

impl Guest {
    /// The next news, what was printed before the end coming first; may be cancelled.
    async fn news(&mut self) -> News {
        let Some(child) = &mut self.child else { return std::future::pending().await };
        let status = tokio::select! {
            biased;
            text = read(&mut self.stdout) => return News::Printed(text),
            text = read(&mut self.stderr) => return News::Printed(text),
            status = child.wait() => status,
        };
        self.child = None;
        News::Ended { well: status.is_ok_and(|status| status.success()) }
    }
}

/// A piece of a stream; waits for ever at its end.
async fn read(stream: &mut Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    if let Some(open) = stream {
        let mut chunk = [0; 4096];
        match open.read(&mut chunk).await {
            Ok(0) | Err(_) => *stream = None,
            Ok(count) => return chunk[..count].to_vec(),
        }
    }
    std::future::pending().await
}
