//! How a session begins.
//!
//! The host cannot know what lies in the port: half a record its predecessor left on the way in,
//! or megabytes of an older session on the way out. So it first writes as many zeros as a record
//! can be long, which end any torn record, then HELLO with a fresh random nonce, and ignores every
//! byte until the exact WELCOME for that nonce comes back.
//!
//! ```text
//! host   0000…0000  HELLO(nonce)  ─────────►                guest
//!        (ignores)                ◄─────────  …old bytes…
//!        session!                 ◄─────────  WELCOME(nonce)
//!        READY                    ─────────►                session!
//! ```
//!
//! Both ends derive the session's id from the nonce. The guest dials nobody before READY, and takes
//! a second HELLO without a READY in between as a sign that its words do not arrive. A guest that
//! opens the port anew says WANT, which is no part of any session and so ends the one the host
//! believes in.

use super::record::{Found, HEADER, Intake, MAX_RECORD, SessionId, seal};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const HELLO: u8 = 0x81;
const WELCOME: u8 = 0x82;
const WANT: u8 = 0x83;
/// Of the record layer and the frames inside it.
const VERSION: u8 = 1;

/// The random number a host gives to one attempt at a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nonce([u8; 16]);

impl Nonce {
    /// A nonce that was never used before. Only the host makes them: a guest that has just booted
    /// may have no randomness yet.
    #[must_use]
    pub fn fresh() -> Self {
        Nonce(uuid::Uuid::new_v4().into_bytes())
    }

    /// The id of the session that this nonce begins.
    #[must_use]
    pub fn session(self) -> SessionId {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        SessionId(u64::from_le_bytes([a, b, c, d, e, f, g, h]).max(1))
    }
}

fn greeting(kind: u8, nonce: [u8; 16]) -> Vec<u8> {
    let mut record = vec![0; HEADER];
    record.extend_from_slice(&[kind, VERSION, 0, 0, 0, 0, 0, 0]);
    record.extend_from_slice(&nonce);
    seal(&mut record, SessionId::NONE).expect("a greeting is shorter than the longest record");
    record
}

/// What the host writes first: zeros to end any torn record, then HELLO.
#[must_use]
pub fn hello(nonce: Nonce) -> Vec<u8> {
    let mut bytes = vec![0; MAX_RECORD];
    bytes.extend_from_slice(&greeting(HELLO, nonce.0));
    bytes
}

/// The guest's answer: the exact bytes the host waits for.
#[must_use]
pub fn welcome(nonce: Nonce) -> Vec<u8> {
    greeting(WELCOME, nonce.0)
}

/// What a guest says that has no session and wants one.
#[must_use]
pub fn want() -> Vec<u8> {
    greeting(WANT, [0; 16])
}

/// The nonce, if this record is a HELLO we understand.
#[must_use]
pub fn read_hello(session: SessionId, payload: &[u8]) -> Option<Nonce> {
    if session != SessionId::NONE {
        return None;
    }
    match payload {
        [HELLO, VERSION, _, _, _, _, _, _, nonce @ ..] => nonce.try_into().ok().map(Nonce),
        _ => None,
    }
}

/// The host's part. Returns when the guest has answered; what it sent after its answer is left in
/// `intake`. Has no time-out of its own.
///
/// # Errors
/// Those of the port; `UnexpectedEof` when it closes.
pub async fn greet<P>(port: &mut P, nonce: Nonce, intake: &mut Intake) -> io::Result<()>
where
    P: AsyncRead + AsyncWrite + Unpin,
{
    intake.clear();
    port.write_all(&hello(nonce)).await?;
    port.flush().await?;
    let answer = welcome(nonce);
    loop {
        let n = port.read(intake.space()).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        intake.filled(n);
        if skip_past(intake, &answer) {
            return Ok(());
        }
    }
}

/// Drops everything up to and including `answer`, or everything that cannot be its beginning.
fn skip_past(intake: &mut Intake, answer: &[u8]) -> bool {
    let bytes = intake.pending();
    if let Some(at) = bytes.windows(answer.len()).position(|window| window == answer) {
        intake.skip(at + answer.len());
        return true;
    }
    intake.skip(bytes.len().saturating_sub(answer.len() - 1));
    false
}

/// The guest's part: reads until a HELLO arrives, past whatever else the port holds.
///
/// # Errors
/// Those of the port.
pub async fn await_hello<P>(port: &mut P, intake: &mut Intake) -> io::Result<Nonce>
where
    P: AsyncRead + Unpin,
{
    loop {
        match intake.next() {
            Found::Record { session, payload } => {
                if let Some(nonce) = read_hello(session, payload) {
                    return Ok(nonce);
                }
            }
            Found::Garbage(_) => {}
            Found::Incomplete => {
                // Zero bytes mean that no host is connected; the next read waits for one.
                let n = port.read(intake.space()).await?;
                intake.filled(n);
            }
        }
    }
}
