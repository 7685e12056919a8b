//! One bridge connection, from its first byte to its last.
//!
//! ```text
//!  Greeting --Negotiate (4 in range, session newer)--> Serving --newer link--> superseded
//!     |  ^--refused--'                                    '--shutdown of the VM--> powering off
//!     '--any other request: NotImpl
//! ```
//!
//! A reader hands each request to a task of its own, so that a blocked wait delays
//! nothing; one writer puts the answers on the wire as they come.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::guest::{Link, Shared};
use super::held::HeldAnswers;
use super::reply::{self, Exchange};
use super::service::{ServiceError, Stop};
use super::{ServeError, Served};
use crate::frame::{
    Frame, FrameReader, GUEST_TO_HOST, GUEST_TO_HOST_NEGOTIATED, HOST_TO_GUEST, write_frame,
};
use crate::hresult::Hresult;
use crate::message::incoming::{self, Call, Dialect, Refusal};
use crate::message::{
    ActivityId, CoracleGuest, CoracleHost, Negotiate, Negotiated, PROTOCOL_VERSION, Request,
};

/// Answers waiting for the writer; more make their senders wait.
const QUEUE: usize = 16;

/// Requests that are worked on at once; waits have a count of their own.
const REQUESTS_MAX: usize = 256;

/// Waits that are pending at once.
const WAITS_MAX: usize = 4096;

/// The least a host must take in one frame; hcsshim's takes as much.
const FRAME_MIN: u32 = GUEST_TO_HOST;

pub(super) async fn serve<S>(shared: &Arc<Shared>, stream: S) -> Result<Served, ServeError>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (read, write) = tokio::io::split(stream);
    let (outgoing, queue) = mpsc::channel(QUEUE);
    let reader = FrameReader::new(read, HOST_TO_GUEST);
    // Neither side is ever restarted, so it does no harm that they are not cancel-safe.
    tokio::select! {
        served = receive(shared, reader, outgoing) => served,
        fault = send(write, queue) => Err(fault),
    }
}

/// Writes frames for ever, or until it cannot.
async fn send<W>(mut write: W, mut queue: mpsc::Receiver<Frame>) -> ServeError
where
    W: AsyncWrite + Unpin,
{
    while let Some(frame) = queue.recv().await {
        if let Err(fault) = write_frame(&mut write, &frame, GUEST_TO_HOST_NEGOTIATED).await {
            return fault.into();
        }
    }
    // All senders are gone only when the receiving side has ended, and it decides.
    std::future::pending().await
}

async fn receive<R>(
    shared: &Arc<Shared>,
    mut reader: FrameReader<R>,
    outgoing: mpsc::Sender<Frame>,
) -> Result<Served, ServeError>
where
    R: AsyncRead + Unpin,
{
    let Some(connection) = greet(shared, &mut reader, &outgoing).await? else {
        return Ok(Served::Closed);
    };
    let superseded = connection.exchange.link.superseded.clone();
    loop {
        let frame = tokio::select! {
            frame = reader.next() => frame?,
            () = superseded.cancelled() => return Ok(Served::Superseded),
        };
        let Some(frame) = frame else { return Ok(Served::Closed) };
        match incoming::to_guest(&frame, connection.exchange.dialect()) {
            Err(refusal) => {
                connection.exchange.send(reply::decline(&frame, refusal)).await;
            }
            Ok(call) => {
                if let Some(stop) = power_off(&call) {
                    shared.service.power_off(stop).await;
                    return Ok(Served::PoweringOff);
                }
                connection.accept(shared, frame, call).await;
            }
        }
    }
}

/// A shutdown of the VM itself has no answer: the connection ends.
fn power_off(call: &Call) -> Option<Stop> {
    match call {
        Call::ShutdownGraceful(request) if request.container_id.is_vm() => Some(Stop::Graceful),
        Call::ShutdownForced(request) if request.container_id.is_vm() => Some(Stop::Forced),
        _ => None,
    }
}

/// Answers requests until a negotiation succeeds; `None` when the stream ends first.
async fn greet<R>(
    shared: &Arc<Shared>,
    reader: &mut FrameReader<R>,
    outgoing: &mpsc::Sender<Frame>,
) -> Result<Option<Greeted>, ServeError>
where
    R: AsyncRead + Unpin,
{
    while let Some(frame) = reader.next().await? {
        let mut link = None;
        let answer = match incoming::to_guest(&frame, Dialect::New) {
            Ok(Call::Negotiate(Request { activity_id, body, .. })) => {
                match negotiate(shared, &body, outgoing) {
                    Ok((negotiated, Some(admitted))) => {
                        link = Some(admitted);
                        reply::finish(&frame, &activity_id, Ok(negotiated))
                    }
                    Ok((negotiated, None)) => {
                        let text = "the guest has seen a newer session";
                        let fault = ServiceError::new(Hresult::INVALID_STATE, text);
                        reply::refuse(&frame, &activity_id, &fault, negotiated)
                    }
                    Err(fault) => reply::finish::<Negotiated>(&frame, &activity_id, Err(fault)),
                }
            }
            // Nothing else is read before the negotiation.
            Ok(_) => continue,
            Err(refusal) => reply::decline(&frame, refusal),
        };
        // Nobody hears it when the writer is gone; the caller then ends too.
        let _ = outgoing.send(answer).await;
        if let Some((link, limit)) = link {
            return Ok(Some(Greeted::new(shared, link, limit)));
        }
    }
    Ok(None)
}

/// The answer to a negotiation, with the link and its frame limit when it was admitted.
type Admission = (Negotiated, Option<(Link, u32)>);

fn negotiate(
    shared: &Shared,
    request: &Negotiate,
    outgoing: &mpsc::Sender<Frame>,
) -> Result<Admission, ServiceError> {
    if !request.accepts_our_version() {
        return Err(Hresult::UNSUPPORTED_PROTOCOL.into());
    }
    let offer = request.coracle.filter(|offer| offer.version >= CoracleHost::VERSION);
    let limit = match offer {
        Some(offer) => offer.max_frame.clamp(FRAME_MIN, GUEST_TO_HOST_NEGOTIATED),
        None => GUEST_TO_HOST,
    };
    let admitted = shared.admit(offer.map(|offer| offer.session), outgoing.clone());
    let session = match &admitted {
        Ok(link) => link.session,
        Err(current) => *current,
    };
    let negotiated = Negotiated {
        version: PROTOCOL_VERSION,
        capabilities: shared.service.capabilities(),
        coracle: offer.map(|_| CoracleGuest {
            version: CoracleHost::VERSION,
            session,
            boot_id: shared.options.boot_id.clone(),
            max_frame: limit,
        }),
    };
    Ok((negotiated, admitted.ok().map(|link| (link, limit))))
}

/// A connection after its negotiation.
struct Greeted {
    exchange: Arc<Exchange>,
    requests: Arc<Semaphore>,
    waits: Arc<Semaphore>,
    /// Cancelled when the connection is over, which ends its waits.
    ended: CancellationToken,
}

impl Greeted {
    fn new(shared: &Arc<Shared>, link: Link, limit: u32) -> Self {
        let exchange =
            Exchange { shared: Arc::clone(shared), link, limit, held: HeldAnswers::default() };
        Self {
            exchange: Arc::new(exchange),
            requests: Arc::new(Semaphore::new(REQUESTS_MAX)),
            waits: Arc::new(Semaphore::new(WAITS_MAX)),
            ended: CancellationToken::new(),
        }
    }

    /// Starts the work on a request.
    async fn accept(&self, shared: &Shared, frame: Frame, call: Call) {
        let waits = matches!(call, Call::Wait(_));
        let permits = if waits { &self.waits } else { &self.requests };
        let Ok(permit) = Arc::clone(permits).try_acquire_owned() else {
            let busy = Refusal {
                result: Hresult::FAIL,
                message: "too many requests are in progress".to_owned(),
                activity_id: ActivityId::default(),
            };
            self.exchange.send(reply::decline(&frame, busy)).await;
            return;
        };
        let exchange = Arc::clone(&self.exchange);
        let ended = self.ended.clone();
        shared.tasks.spawn(async move {
            match call {
                Call::Wait(request) => exchange.wait(&frame, request, &ended).await,
                call => exchange.work(&frame, call).await,
            }
            drop(permit);
        });
    }
}

impl Drop for Greeted {
    fn drop(&mut self) {
        self.ended.cancel();
        self.exchange.shared.release(self.exchange.link.facts.number);
    }
}
