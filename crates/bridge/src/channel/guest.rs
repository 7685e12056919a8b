//! The guest's end of the channel.
//!
//! One task per port owns the device and goes round for as long as the [`GuestChannel`] lives:
//!
//! ```text
//!           ┌───────────── port lost ◄──────────────┐
//!           ▼                                       │
//!   opening ──► waiting ──HELLO──► answered ──READY──► standing
//!               ▲  ▲                │  ▲               │  │
//!               │  └─── no host ◄───┘  └───── HELLO ◄──┘  │
//!               └──────────── no host, garbage ◄──────────┘
//! ```
//!
//! A hang-up is no reliable news of a host's death and its absence no news of life; what counts is
//! the next HELLO. In *answered* nobody may dial yet. When three HELLOs in a row got no READY, our
//! words do not arrive; and after 64 sessions too many of the port's descriptors may be lost: in both
//! cases the driver is rebound before the answer. Where each host has a connection of its own, nothing
//! wears out, and the next host's connection ends the one before: it may be the only news of its death.

use super::device::{PortDevice, SharedArea};
use super::handshake::{Nonce, await_hello, want, welcome};
use super::link::{End, Link};
use super::mux::outflow::Side;
use super::mux::{Area, ChannelStream, Incoming, Limits, Mux};
use super::port_io::PortIo;
use super::record::Intake;
use crate::port;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, warn};

/// Sessions after which the driver is rebound; QEMU's port is dead after 128.
const SESSIONS_PER_BIND: u32 = 64;
/// HELLOs without READY after which the driver is rebound.
const UNHEARD: u32 = 3;
/// How long [`GuestChannel::dial`] waits for a host and its answer.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two attempts to open a port that is not there.
const REOPEN: Duration = Duration::from_millis(20);

/// The channel as the guest sees it: dial the host, or be dialled. Cheap to clone; the ports are
/// closed and every stream fails when the last clone is gone.
#[derive(Clone, Debug)]
pub struct GuestChannel {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// None: bridges go over the same port as everything else.
    control: Option<Lane>,
    streams: Lane,
    area: Option<SharedArea>,
    /// Accepters take turns.
    incoming: Mutex<mpsc::Receiver<Incoming>>,
    /// That of the streams' port.
    runtime: Handle,
}

/// One port and the task that owns it.
#[derive(Debug)]
struct Lane {
    session: watch::Receiver<Option<Arc<Mux>>>,
    task: JoinHandle<()>,
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl GuestChannel {
    /// Starts serving two ports: one for the bridge, one for everything else. Must be called within
    /// a tokio runtime. The ports may appear later.
    #[must_use]
    pub fn open(control: Box<dyn PortDevice>, streams: Box<dyn PortDevice>) -> Self {
        Self::open_on(control, streams, &Handle::current())
    }

    /// [`GuestChannel::open`] with another runtime for everything but bridges: one whose threads may
    /// be kept busy by a flood without a signal having to wait.
    #[must_use]
    pub fn open_on(
        control: Box<dyn PortDevice>,
        streams: Box<dyn PortDevice>,
        runtime: &Handle,
    ) -> Self {
        let (sender, incoming) = mpsc::channel(Limits::STREAMS.streams);
        let control = Lane::start(control, Limits::CONTROL, sender.clone(), &Handle::current());
        Self::over(Some(control), streams, runtime, sender, incoming)
    }

    /// [`GuestChannel::open_on`] with one port for all, bridges too.
    #[must_use]
    pub fn open_one_on(port: Box<dyn PortDevice>, runtime: &Handle) -> Self {
        let (sender, incoming) = mpsc::channel(Limits::STREAMS.streams);
        Self::over(None, port, runtime, sender, incoming)
    }

    fn over(
        control: Option<Lane>,
        streams: Box<dyn PortDevice>,
        runtime: &Handle,
        sender: mpsc::Sender<Incoming>,
        incoming: mpsc::Receiver<Incoming>,
    ) -> Self {
        let area = streams.area();
        let streams = Lane::start(streams, Limits::STREAMS, sender, runtime);
        let (incoming, runtime) = (Mutex::new(incoming), runtime.clone());
        GuestChannel { inner: Arc::new(Inner { control, streams, area, incoming, runtime }) }
    }

    /// Where streams are best read and written.
    #[must_use]
    pub fn runtime(&self) -> &Handle {
        &self.inner.runtime
    }

    /// The memory in common with the host, to read into what is to be sent.
    #[must_use]
    pub fn area(&self) -> Option<&SharedArea> {
        self.inner.area.as_ref()
    }

    /// Dials a port of the host; waits up to 10 s for a keeper to be there and to answer.
    ///
    /// # Errors
    /// `ConnectionRefused` when nobody listens there, `TimedOut`, `QuotaExceeded` with too many
    /// streams.
    pub async fn dial(&self, port: u32) -> io::Result<ChannelStream> {
        self.dial_within(port, DIAL_TIMEOUT).await
    }

    /// [`GuestChannel::dial`] with another time-out.
    ///
    /// # Errors
    /// As there.
    pub async fn dial_within(&self, port: u32, limit: Duration) -> io::Result<ChannelStream> {
        let deadline = Instant::now() + limit;
        match timeout_at(deadline, self.lane(port).dial(port)).await {
            Ok(result) => result,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// The next stream the host opens, and the port it dialled.
    ///
    /// # Errors
    /// `BrokenPipe` when the channel is shut.
    pub async fn accept(&self) -> io::Result<(u32, ChannelStream)> {
        let mut incoming = self.inner.incoming.lock().await;
        loop {
            let Some(Incoming { port, stream }) = incoming.recv().await else {
                return Err(io::ErrorKind::BrokenPipe.into());
            };
            if stream.is_broken() {
                continue;
            }
            stream.accept();
            return Ok((port, stream));
        }
    }

    fn lane(&self, port: u32) -> &Lane {
        match &self.inner.control {
            Some(control) if port == port::BRIDGE => control,
            Some(_) | None => &self.inner.streams,
        }
    }
}

impl Lane {
    fn start(
        device: Box<dyn PortDevice>,
        limits: Limits,
        incoming: mpsc::Sender<Incoming>,
        runtime: &Handle,
    ) -> Self {
        let (publish, session) = watch::channel(None);
        let area = device.area().map_or(Area::None, |area| Area::Guest(area.0));
        let driver = Driver { publish, incoming, limits, area, sessions: 0, unheard: 0 };
        Lane { session, task: runtime.spawn(driver.run(device)) }
    }

    async fn dial(&self, port: u32) -> io::Result<ChannelStream> {
        let mut sessions = self.session.clone();
        loop {
            let mux = sessions
                .wait_for(Option::is_some)
                .await
                .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?
                .clone();
            let Some(mux) = mux else { continue };
            match mux.open(port) {
                Ok(stream) => {
                    stream.accepted().await?;
                    return Ok(stream);
                }
                // The session ended this very moment.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    sessions.changed().await.map_err(|_| io::ErrorKind::BrokenPipe)?;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// What the task of a port knows.
struct Driver {
    publish: watch::Sender<Option<Arc<Mux>>>,
    incoming: mpsc::Sender<Incoming>,
    limits: Limits,
    area: Area,
    /// Since the driver was bound.
    sessions: u32,
    /// HELLOs since the last READY.
    unheard: u32,
}

impl Driver {
    async fn run(mut self, mut device: Box<dyn PortDevice>) {
        let mut intake = Intake::new();
        let mut greeted = None;
        loop {
            let mut port = open(device.as_mut()).await;
            intake.clear();
            let wears_out = device.wears_out();
            let end = tokio::select! {
                end = self.serve(&mut port, &mut intake, greeted.take(), wears_out) => end,
                () = device.superseded() => Lost::Superseded,
            };
            drop(port);
            match end {
                Lost::Tired(nonce) => {
                    device = rebind(device).await;
                    (self.sessions, self.unheard) = (0, 0);
                    greeted = Some(nonce);
                }
                Lost::Superseded => {}
                Lost::Port(error) => {
                    warn!(%error, "a port of the channel is lost");
                    sleep(REOPEN).await;
                }
            }
        }
    }

    /// Serves one session after the other on an open port.
    async fn serve(
        &mut self,
        port: &mut PortIo,
        intake: &mut Intake,
        mut greeted: Option<Nonce>,
        wears_out: bool,
    ) -> Lost {
        if greeted.is_none() {
            port.offer(&want());
        }
        loop {
            let nonce = match greeted.take() {
                Some(nonce) => nonce,
                None => match await_hello(port, intake).await {
                    Ok(nonce) => nonce,
                    Err(error) => return Lost::Port(error),
                },
            };
            self.sessions += 1;
            self.unheard += 1;
            if wears_out && (self.sessions > SESSIONS_PER_BIND || self.unheard > UNHEARD) {
                return Lost::Tired(nonce);
            }
            match self.stand(port, intake, nonce).await {
                End::Hello(next) => greeted = Some(next),
                End::Closed => {}
                End::Port(error) => return Lost::Port(error),
                end @ (End::Garbage | End::Peer(_)) => {
                    debug!(%end, "a session of the channel broke");
                    port.offer(&want());
                }
            }
        }
    }

    /// One session, from the answer to its end.
    async fn stand(&mut self, port: &mut PortIo, intake: &mut Intake, nonce: Nonce) -> End {
        let first = Some(welcome(nonce));
        let mux =
            Mux::new(Side::Guest, self.limits, first, self.incoming.clone(), self.area.clone());
        let standing = Standing { mux: &mux, publish: &self.publish };
        let unheard = &mut self.unheard;
        let publish = &self.publish;
        Link::new(port, intake, standing.mux, nonce.session(), Side::Guest)
            .on_confirmed(|| {
                *unheard = 0;
                publish.send_replace(Some(Arc::clone(&mux)));
            })
            .run()
            .await
    }
}

/// Ends the session however its task ends.
struct Standing<'a> {
    mux: &'a Arc<Mux>,
    publish: &'a watch::Sender<Option<Arc<Mux>>>,
}

impl Drop for Standing<'_> {
    fn drop(&mut self) {
        self.publish.send_replace(None);
        self.mux.end();
    }
}

/// Why a port must be opened anew.
enum Lost {
    /// It needs a rebind before this host can be answered.
    Tired(Nonce),
    /// Another host is there.
    Superseded,
    Port(io::Error),
}

async fn open(device: &mut dyn PortDevice) -> PortIo {
    let mut told = false;
    loop {
        match device.open().and_then(PortIo::new) {
            Ok(port) => return port,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound && !std::mem::replace(&mut told, true) {
                    warn!(%error, "a port of the channel cannot be opened");
                }
                tokio::select! {
                    () = device.superseded() => {}
                    () = sleep(REOPEN) => {}
                }
            }
        }
    }
}

async fn rebind(mut device: Box<dyn PortDevice>) -> Box<dyn PortDevice> {
    let done = spawn_blocking(move || {
        if let Err(error) = device.rebind() {
            warn!(%error, "the driver of a port cannot be rebound");
        }
        device
    });
    match done.await {
        Ok(device) => device,
        // Only a panic in `rebind` or the end of the runtime leads here.
        Err(_) => std::future::pending().await,
    }
}
