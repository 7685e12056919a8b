//! One port of the VM: connect, agree on a session, carry it, begin again.
//!
//! ```text
//!   connecting ──────► greeting ──WELCOME──► carrying
//!     │  ▲   ▲            │                     │
//!     │  │   └─ time-out ─┘                     │
//!     │  └───────────── closed, garbage ◄───────┘
//!     └─ refused for too long: the VM is gone
//! ```
//!
//! A HELLO that gets no answer may have met a guest that is still booting, or a port whose way out
//! is dead until the guest rebinds its driver, which it does when it has seen some more HELLOs. The
//! first tries are quick, later ones patient, since a guest under load may only be slow.

use super::super::area::HostArea;
use super::super::folder;
use super::super::handshake::{Nonce, greet};
use super::super::link::Link;
use super::super::mux::outflow::Side;
use super::super::mux::{Area, Incoming, Limits, Mux};
use super::super::record::Intake;
use super::way::Reached;
use super::{Keeper, KeeperError};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

/// Between two attempts to connect.
const RETRY: Duration = Duration::from_millis(5);
/// Between two dials over AF_VSOCK: the daemon has work with each.
const REDIAL: Duration = Duration::from_millis(20);
/// Quick tries before the time-out of the handshake doubles.
const QUICK_TRIES: u32 = 4;
/// How often it doubles.
const MOST_DOUBLINGS: u32 = 3;

/// The session of a lane, while there is one.
pub(super) type Session = watch::Receiver<Option<Arc<Mux>>>;

pub(super) struct Lane {
    socket: PathBuf,
    /// Through which the guest is dialled; none: it is behind the socket.
    vsock: Option<PathBuf>,
    guest_boots: bool,
    /// The file of the area, if there is one.
    area: Option<PathBuf>,
    /// The sessions of another lane, with which ours ends.
    other: Option<Session>,
    limits: Limits,
    start: Duration,
    gone: Duration,
    handshake: Duration,
    publish: watch::Sender<Option<Arc<Mux>>>,
}

impl Lane {
    pub(super) fn new(config: &Keeper, socket: PathBuf, limits: Limits) -> Self {
        Lane {
            socket,
            vsock: config.vsock.clone(),
            guest_boots: config.guest_boots,
            area: None,
            other: None,
            limits,
            start: config.start,
            gone: config.gone,
            handshake: config.handshake,
            publish: watch::Sender::new(None),
        }
    }

    /// The same with an area at a path, where a VM may have it or not.
    pub(super) fn with_area(self, path: PathBuf) -> Self {
        Lane { area: Some(path), ..self }
    }

    /// The same with sessions that end as soon as another lane begins a new one. Who uses both looks at ours alone, and
    /// does nothing for what broke in the other as long as ours stands.
    pub(super) fn ending_with(self, other: Session) -> Self {
        Lane { other: Some(other), ..self }
    }

    /// The area for one session.
    fn area(&self) -> Area {
        let Some(path) = &self.area else { return Area::None };
        match HostArea::open(path) {
            Ok(area) => Area::Host(Arc::new(area)),
            Err(error) => {
                debug!(%error, path = %path.display(), "everything goes through the port");
                Area::None
            }
        }
    }

    /// Where the lane's session can be seen.
    pub(super) fn sessions(&self) -> Session {
        self.publish.subscribe()
    }

    /// Serves the port until QEMU is gone.
    pub(super) async fn run(self, incoming: mpsc::Sender<Incoming>) -> Result<(), KeeperError> {
        let mut intake = Intake::new();
        let mut failures = 0;
        let mut seen = false;
        while let Some(mut reached) = self.connect(seen).await? {
            seen = true;
            let nonce = Nonce::fresh();
            let limit = patience(self.handshake, failures);
            let (port, over) = reached.split();
            let session = async {
                match timeout(limit, greet(port, nonce, &mut intake)).await {
                    Ok(Ok(())) => {
                        failures = 0;
                        self.carry(port, &mut intake, nonce, &incoming).await;
                    }
                    Ok(Err(_)) | Err(_) => failures += 1,
                }
            };
            tokio::select! {
                () = session => {}
                () = over => debug!(socket = %self.socket.display(), "QEMU is gone"),
            }
            if failures > 0 {
                // QEMU that closes at once must not make us spin.
                sleep(RETRY).await;
            }
        }
        Ok(())
    }

    async fn carry(
        &self,
        port: &mut UnixStream,
        intake: &mut Intake,
        nonce: Nonce,
        incoming: &mpsc::Sender<Incoming>,
    ) {
        let mux = Mux::new(Side::Host, self.limits, None, incoming.clone(), self.area());
        let standing = Standing { lane: self, mux: &mux };
        mux.announce();
        self.publish.send_replace(Some(Arc::clone(&mux)));
        let link = Link::new(port, intake, standing.mux, nonce.session(), Side::Host);
        let socket = self.socket.display();
        tokio::select! {
            end = link.run() => debug!(%end, %socket, "a session ended"),
            () = begun_anew(self.other.clone()) => debug!(%socket, "a session ends with that of the other port"),
        }
    }

    /// A connection to the guest, or nothing when there was one before and QEMU is gone.
    async fn connect(&self, seen: bool) -> Result<Option<Reached>, KeeperError> {
        let limit = if seen { self.gone } else { self.start };
        let deadline = Instant::now() + limit;
        let mut knocked = seen;
        loop {
            let error = match folder::connect_path(&self.socket).await {
                Ok(port) => match self.reach(port, knocked).await {
                    Ok(reached) => return Ok(Some(reached)),
                    Err(error) => {
                        knocked = true;
                        debug!(%error, "a dial over AF_VSOCK came to nothing");
                        sleep(REDIAL).await;
                        continue;
                    }
                },
                Err(error) => error,
            };
            let absent = match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => true,
                // The backlog is full.
                io::ErrorKind::WouldBlock => false,
                _ => {
                    return Err(KeeperError::Connect {
                        socket: self.socket.clone(),
                        source: error,
                    });
                }
            };
            if absent && Instant::now() >= deadline {
                if seen {
                    return Ok(None);
                }
                return Err(KeeperError::NeverCame { socket: self.socket.clone(), after: limit });
            }
            sleep(RETRY).await;
        }
    }

    /// To the guest, QEMU being there.
    async fn reach(&self, mut port: UnixStream, knocked: bool) -> io::Result<Reached> {
        match &self.vsock {
            None => Ok(Reached::through(port)),
            Some(socket) => {
                if self.guest_boots && !knocked {
                    Reached::knock(&mut port).await;
                }
                Reached::dial(socket, port).await
            }
        }
    }
}

/// How long to wait for an answer after so many failures in a row.
fn patience(first: Duration, failures: u32) -> Duration {
    first * 2u32.pow(failures.saturating_sub(QUICK_TRIES).min(MOST_DOUBLINGS))
}

/// Until a lane has begun another session than the first it has from now on. That one has merely ended is no reason:
/// when QEMU ends, both ports close, and what the guest said last on ours is still to be read.
async fn begun_anew(lane: Option<Session>) {
    let Some(mut lane) = lane else { return std::future::pending().await };
    let first = lane.wait_for(Option::is_some).await.ok().and_then(|first| first.clone());
    let is_another = |now: &Option<Arc<Mux>>| {
        first.as_ref().zip(now.as_ref()).is_some_and(|(first, now)| !Arc::ptr_eq(first, now))
    };
    if lane.wait_for(is_another).await.is_err() {
        // The lane is gone; the end of ours is its own.
        std::future::pending().await
    }
}

/// Ends the session however its task ends.
struct Standing<'a> {
    lane: &'a Lane,
    mux: &'a Arc<Mux>,
}

impl Drop for Standing<'_> {
    fn drop(&mut self) {
        self.lane.publish.send_replace(None);
        self.mux.end();
    }
}
