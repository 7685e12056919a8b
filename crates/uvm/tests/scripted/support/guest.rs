//! The script of a guest: what it dials at boot, and how it answers.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use coracle_bridge::channel::GuestChannel;
use coracle_bridge::port;
use coracle_bridge::server::{self, Connection, Dial, GuestOptions};
use coracle_vmm::ExitReason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::service::Service;

/// A guest, from power-on to its end.
#[derive(Clone)]
pub struct Guest {
    /// Dials for entropy.
    pub entropy: bool,
    /// What it logs; None: it never dials the log port.
    pub log: Option<&'static str>,
    /// What it does on the bridge.
    pub bridge: Bridge,
    /// Ends by itself after this step.
    pub dies_after: Option<(&'static str, ExitReason)>,
    pub service: Arc<Service>,
    /// The bytes of entropy it was given.
    pub fed: Arc<Mutex<Vec<u8>>>,
}

/// What a guest does on the bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bridge {
    /// It serves.
    Serves,
    /// It never dials.
    Silent,
    /// It dials and says nothing.
    Mute,
    /// It dials and sends what is no frame.
    Garbage,
}

impl Default for Guest {
    fn default() -> Self {
        Self {
            entropy: true,
            log: Some(""),
            bridge: Bridge::Serves,
            dies_after: None,
            service: Arc::default(),
            fed: Arc::default(),
        }
    }
}

/// Runs the script; returns why the guest powered off, or never.
pub async fn run(guest: Guest, channel: GuestChannel) -> ExitReason {
    let dies = |step: &str| {
        let due = guest.dies_after.clone().filter(|(after, _)| *after == step);
        due.map(|(_, reason)| reason)
    };
    if let Some(reason) = dies("power-on") {
        return reason;
    }
    if guest.entropy {
        let mut stream = channel.dial(port::ENTROPY).await.unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.unwrap();
        *guest.fed.lock().unwrap() = bytes;
    }
    if let Some(reason) = dies("entropy") {
        return reason;
    }
    let mut log = None;
    if let Some(text) = guest.log {
        // Nobody listens when nothing is forwarded.
        if let Ok(mut stream) = channel.dial(port::LOG).await {
            stream.write_all(text.as_bytes()).await.unwrap();
            log = Some(stream);
        }
    }
    if let Some(reason) = dies("log") {
        return reason;
    }
    serve(&guest, &channel).await;
    drop(log);
    ExitReason::Shutdown
}

async fn serve(guest: &Guest, channel: &GuestChannel) {
    if guest.bridge == Bridge::Silent {
        return std::future::pending().await;
    }
    let Ok(mut stream) = channel.dial(port::BRIDGE).await else {
        return std::future::pending().await;
    };
    match guest.bridge {
        Bridge::Serves => {}
        Bridge::Silent | Bridge::Mute => std::future::pending().await,
        Bridge::Garbage => {
            stream.write_all(&[0xff; 64]).await.unwrap();
            return std::future::pending().await;
        }
    }
    let dial = Arc::new(Ports(channel.clone()));
    let server = server::Guest::new(guest.service.clone(), dial, GuestOptions::new("boot"));
    tokio::select! {
        _ = server.serve(stream) => {
            // As the agent does: the bridge is dialled again and again.
            std::future::pending().await
        }
        () = guest.service.powered_off() => {}
    }
}

struct Ports(GuestChannel);

#[async_trait]
impl Dial for Ports {
    async fn dial(&self, port: u32) -> std::io::Result<Box<dyn Connection>> {
        Ok(Box::new(self.0.dial(port).await?))
    }
}
