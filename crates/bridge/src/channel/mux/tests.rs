//! Two sessions face to face, without a port between them.

use super::frame::{Few, Frame, StreamId, parse};
use super::inflow::BASE_WINDOW;
use super::outflow::{LINK_WINDOW, Side, cost};
use super::*;
use crate::channel::area::Place;
use crate::channel::record::HEADER;
use futures::task::noop_waker;
use proptest::prelude::*;
use std::pin::Pin;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

struct Pair {
    host: Arc<Mux>,
    guest: Arc<Mux>,
    to_host: mpsc::Receiver<Incoming>,
    to_guest: mpsc::Receiver<Incoming>,
}

const LIMITS: Limits = Limits { streams: 6, window: 64 * 1024, pool: 96 * 1024, queue: 48 * 1024 };

impl Pair {
    fn new() -> Self {
        Self::over(Area::None, Area::None)
    }

    fn over(host: Area, guest: Area) -> Self {
        let (host_sender, to_host) = mpsc::channel(LIMITS.streams);
        let (guest_sender, to_guest) = mpsc::channel(LIMITS.streams);
        Pair {
            host: Mux::new(Side::Host, LIMITS, None, host_sender, host),
            guest: Mux::new(Side::Guest, LIMITS, None, guest_sender, guest),
            to_host,
            to_guest,
        }
    }

    /// Moves one record. False when there was none to move.
    fn carry(from: &Mux, to: &Arc<Mux>) -> bool {
        let waker = noop_waker();
        let Poll::Ready(outgoing) = from.poll_next(&mut Context::from_waker(&waker)) else {
            return false;
        };
        let record = outgoing.record;
        to.receive(&record[HEADER..], record.len()).unwrap();
        true
    }

    /// Moves everything there is.
    fn settle(&self) {
        while Self::carry(&self.host, &self.guest) | Self::carry(&self.guest, &self.host) {}
    }

    /// A stream that the host opened and the guest has accepted.
    fn open(&mut self) -> (ChannelStream, ChannelStream) {
        let host = self.host.open(7).unwrap();
        self.settle();
        let incoming = self.to_guest.try_recv().unwrap();
        assert_eq!(incoming.port, 7);
        incoming.stream.accept();
        self.settle();
        (host, incoming.stream)
    }
}

fn write(stream: &mut ChannelStream, bytes: &[u8]) -> Poll<io::Result<usize>> {
    let waker = noop_waker();
    Pin::new(stream).poll_write(&mut Context::from_waker(&waker), bytes)
}

fn shutdown(stream: &ChannelStream) {
    stream.shut().unwrap();
}

/// Up to `most` bytes; an empty vector is the end of the stream.
fn read(stream: &mut ChannelStream, most: usize) -> Poll<io::Result<Vec<u8>>> {
    let waker = noop_waker();
    let mut bytes = vec![0; most];
    let mut buf = ReadBuf::new(&mut bytes);
    let poll = Pin::new(stream).poll_read(&mut Context::from_waker(&waker), &mut buf);
    poll.map_ok(|()| buf.filled().to_vec())
}

fn kind<T: std::fmt::Debug>(poll: Poll<io::Result<T>>) -> io::ErrorKind {
    match poll {
        Poll::Ready(Err(error)) => error.kind(),
        other => panic!("{other:?} is no error"),
    }
}

fn is_end(poll: Poll<io::Result<Vec<u8>>>) -> bool {
    matches!(poll, Poll::Ready(Ok(bytes)) if bytes.is_empty())
}

#[test]
fn a_direction_ends_while_the_other_goes_on() {
    let mut pair = Pair::new();
    let (mut host, mut guest) = pair.open();
    assert!(write(&mut host, b"all").is_ready());
    shutdown(&host);
    pair.settle();
    assert!(matches!(read(&mut guest, 9), Poll::Ready(Ok(bytes)) if bytes == b"all"));
    assert!(is_end(read(&mut guest, 9)));
    assert!(write(&mut guest, b"still").is_ready());
    pair.settle();
    assert!(matches!(read(&mut host, 9), Poll::Ready(Ok(bytes)) if bytes == b"still"));
    assert!(read(&mut host, 9).is_pending());
}

#[test]
fn a_stream_dropped_before_its_shutdown_is_an_error_to_the_peer() {
    let mut pair = Pair::new();
    let (host, mut guest) = pair.open();
    drop(host);
    pair.settle();
    assert_eq!(kind(read(&mut guest, 1)), io::ErrorKind::ConnectionReset);
    assert_eq!(kind(write(&mut guest, b"x")), io::ErrorKind::ConnectionReset);
}

#[test]
fn a_reset_is_an_error_even_to_one_that_has_shut_down() {
    let mut pair = Pair::new();
    let (host, mut guest) = pair.open();
    shutdown(&guest);
    pair.settle();
    drop(host);
    pair.settle();
    assert_eq!(kind(read(&mut guest, 1)), io::ErrorKind::ConnectionReset);
}

#[test]
fn what_was_sent_before_shutdown_and_drop_arrives() {
    let mut pair = Pair::new();
    let (mut host, mut guest) = pair.open();
    assert!(write(&mut host, b"last words").is_ready());
    shutdown(&host);
    drop(host);
    pair.settle();
    assert!(matches!(read(&mut guest, 99), Poll::Ready(Ok(bytes)) if bytes == b"last words"));
    assert!(is_end(read(&mut guest, 99)));
}

#[test]
fn a_writer_learns_that_its_reader_is_gone() {
    let mut pair = Pair::new();
    let (host, mut guest) = pair.open();
    while write(&mut guest, &[0; 999]).is_ready() {}
    shutdown(&host);
    drop(host);
    pair.settle();
    assert_eq!(kind(write(&mut guest, b"x")), io::ErrorKind::BrokenPipe);
}

#[test]
fn a_stream_dropped_unaccepted_is_refused() {
    let mut pair = Pair::new();
    let host = pair.host.open(7).unwrap();
    pair.settle();
    drop(pair.to_guest.try_recv().unwrap());
    pair.settle();
    let refused = futures::FutureExt::now_or_never(host.accepted()).unwrap();
    assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
}

#[test]
fn an_abort_before_the_peer_heard_of_the_stream_says_nothing() {
    let mut pair = Pair::new();
    let mut host = pair.host.open(7).unwrap();
    assert!(write(&mut host, b"never mind").is_ready());
    drop(host);
    pair.settle();
    assert!(pair.to_guest.try_recv().is_err());
}

#[test]
fn one_stream_too_many_is_an_error_and_no_other_suffers() {
    let mut pair = Pair::new();
    let mut streams: Vec<_> = (0..LIMITS.streams).map(|_| pair.open()).collect();
    assert_eq!(pair.host.open(1).unwrap_err().kind(), io::ErrorKind::QuotaExceeded);
    let (mut host, mut guest) = streams.pop().unwrap();
    assert!(write(&mut host, b"fine").is_ready());
    pair.settle();
    assert!(matches!(read(&mut guest, 9), Poll::Ready(Ok(bytes)) if bytes == b"fine"));
}

#[test]
fn the_end_of_the_session_is_an_error_to_every_stream() {
    let mut pair = Pair::new();
    let (mut host, _guest) = pair.open();
    pair.host.end();
    assert_eq!(kind(read(&mut host, 1)), io::ErrorKind::ConnectionReset);
    assert_eq!(kind(write(&mut host, b"x")), io::ErrorKind::ConnectionReset);
    assert_eq!(pair.host.open(1).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

fn receive(mux: &Arc<Mux>, frames: &[Frame<'_>]) -> Result<(), MuxError> {
    let mut payload = Vec::new();
    for frame in frames {
        frame.put(&mut payload);
    }
    mux.receive(&payload, HEADER + payload.len())
}

#[test]
fn a_guest_that_breaks_the_rules_loses_its_session() {
    let id = StreamId(2);
    let too_much = vec![0; BASE_WINDOW as usize + 1];
    let cases: [(&[Frame<'_>], &str); 6] = [
        (&[Frame::Open(id, 1), Frame::Open(id, 1)], "opened stream 2"),
        (&[Frame::Open(StreamId(1), 1)], "opened stream 1"),
        (&[Frame::Open(id, 1), Frame::Data(id, &too_much)], "overran"),
        (&[Frame::Open(id, 1), Frame::Eof(id), Frame::Data(id, b"x")], "overran"),
        (&[Frame::Open(id, 1), Frame::Window(id, u32::MAX)], "more window"),
        (&[Frame::Ack(1)], "acknowledged"),
    ];
    for (frames, said) in cases {
        let mut pair = Pair::new();
        let error = receive(&pair.host, frames).unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
        drop(pair.to_host.try_recv());
    }
}

#[test]
fn a_guest_that_never_reads_its_refusals_loses_its_session() {
    let mut pair = Pair::new();
    let flood = (1..10_000).try_for_each(|n| {
        let result = receive(&pair.host, &[Frame::Open(StreamId(2 * n), 1)]);
        drop(pair.to_host.try_recv());
        result
    });
    assert!(matches!(flood, Err(MuxError::Flood(_))));
}

#[test]
fn frames_of_streams_nobody_knows_are_ignored() {
    let pair = Pair::new();
    let id = StreamId(2);
    let late = [
        Frame::Window(id, 5),
        Frame::Accept(id),
        Frame::Eof(id),
        Frame::Stop(id),
        Frame::Reset(id),
        Frame::Data(id, b"late"),
    ];
    receive(&pair.host, &late).unwrap();
}

mod area;

use area::Memory;

/// One thing that happens to one of the streams.
#[derive(Clone, Debug)]
enum Act {
    Write { stream: usize, host: bool, len: usize },
    Read { stream: usize, host: bool, len: usize },
    Shut { stream: usize, host: bool },
    CarryToGuest,
    CarryToHost,
}

fn act() -> impl Strategy<Value = Act> {
    let which = (0..4usize, any::<bool>());
    prop_oneof![
        4 => (which.clone(), 1..100_000usize)
            .prop_map(|((stream, host), len)| Act::Write { stream, host, len }),
        4 => (which.clone(), 1..100_000usize)
            .prop_map(|((stream, host), len)| Act::Read { stream, host, len }),
        1 => which.prop_map(|(stream, host)| Act::Shut { stream, host }),
        6 => Just(Act::CarryToGuest),
        6 => Just(Act::CarryToHost),
    ]
}

/// What one direction of a stream must have carried, by a counter of bytes.
#[derive(Default)]
struct Model {
    written: usize,
    read: usize,
    shut: bool,
    ended: bool,
}

impl Model {
    fn bytes(from: usize, len: usize) -> Vec<u8> {
        (from..from + len).map(|n| u8::try_from(n % 251).unwrap()).collect()
    }

    fn write(&mut self, stream: &mut ChannelStream, len: usize) {
        match write(stream, &Self::bytes(self.written, len)) {
            Poll::Ready(Ok(n)) => self.written += n,
            Poll::Ready(Err(error)) => {
                assert!(self.shut && error.kind() == io::ErrorKind::BrokenPipe);
            }
            Poll::Pending => {}
        }
    }

    /// Whether something could be read.
    fn read(&mut self, stream: &mut ChannelStream, len: usize) -> bool {
        let Poll::Ready(result) = read(stream, len) else { return false };
        let bytes = result.unwrap();
        assert_eq!(bytes, Self::bytes(self.read, bytes.len()));
        self.read += bytes.len();
        if bytes.is_empty() {
            assert!(self.shut && self.read == self.written);
            self.ended = true;
        }
        !bytes.is_empty()
    }
}

fn waiting(mux: &Mux) -> usize {
    mux.lock().streams.values().map(|stream| stream.inflow.len()).sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_stream_carries_its_bytes_in_order_and_to_the_end(
        acts in proptest::collection::vec(act(), 1..300),
        with_area: bool,
    ) {
        let memory = Memory::new();
        let mut pair = if with_area { memory.pair() } else { Pair::new() };
        let mut streams: Vec<_> = (0..4).map(|_| pair.open()).collect();
        let mut models: Vec<[Model; 2]> = (0..4).map(|_| Default::default()).collect();
        let bound = LIMITS.streams * BASE_WINDOW as usize + LIMITS.pool as usize;
        let mut under_way = 0;
        for act in acts {
            match act {
                Act::Write { stream, host, len } => {
                    let (ours, theirs) = &mut streams[stream];
                    let end = if host { ours } else { theirs };
                    models[stream][usize::from(host)].write(end, len);
                }
                Act::Read { stream, host, len } => {
                    let (ours, theirs) = &mut streams[stream];
                    let end = if host { ours } else { theirs };
                    models[stream][usize::from(!host)].read(end, len);
                }
                Act::Shut { stream, host } => {
                    let (ours, theirs) = &streams[stream];
                    shutdown(if host { ours } else { theirs });
                    models[stream][usize::from(host)].shut = true;
                }
                Act::CarryToGuest => { Pair::carry(&pair.host, &pair.guest); }
                Act::CarryToHost => { Pair::carry(&pair.guest, &pair.host); }
            }
            prop_assert!(waiting(&pair.host) <= bound);
            prop_assert!(waiting(&pair.guest) <= bound);
            under_way = under_way.max(pair.guest.lock().out.unacknowledged());
        }
        prop_assert!(under_way <= LINK_WINDOW);

        // Whatever happened, everything arrives as long as both sides read.
        let mut moved = true;
        while moved {
            pair.settle();
            moved = false;
            for ((host, guest), [up, down]) in streams.iter_mut().zip(&mut models) {
                moved |= up.read(host, 1 << 20) | down.read(guest, 1 << 20);
            }
        }
        for [up, down] in &models {
            for model in [up, down] {
                prop_assert_eq!(model.read, model.written);
                prop_assert_eq!(model.ended, model.shut);
            }
        }
        drop(streams);
        pair.settle();
        let state = pair.host.lock();
        prop_assert_eq!(state.streams.len(), 0);
        prop_assert_eq!(state.pool.left(), LIMITS.pool);
        drop(state);
        pair.guest.end();
        prop_assert!(!with_area || memory.at_home() == Memory::ALL);
    }

    #[test]
    fn frames_are_read_as_they_were_written(stream: u32, value: u32, ack: u64, data: Vec<u8>) {
        let id = StreamId(stream);
        let frames = [
            Frame::Open(id, value), Frame::Accept(id), Frame::Window(id, value), Frame::Eof(id),
            Frame::Stop(id), Frame::Reset(id), Frame::Ack(ack), Frame::Ready(false),
            Frame::Ready(true), Frame::Grant(value),
            Frame::Placed(id, Place { slot: 7, from: value & 0xff_ffff, len: stream & 0xff_ffff }),
            Frame::Few(id, Few::first_of(&data)),
            Frame::Data(id, &data),
        ];
        let mut payload = Vec::new();
        for frame in frames {
            frame.put(&mut payload);
        }
        let mut rest = payload.as_slice();
        for frame in frames {
            let (read, after) = parse(rest).unwrap();
            prop_assert_eq!(read, frame);
            rest = after;
        }
        prop_assert!(rest.is_empty());
    }

    #[test]
    fn no_bytes_from_a_guest_make_the_host_panic(payloads: Vec<Vec<u8>>) {
        let pair = Pair::new();
        for payload in payloads {
            // Most are refused; that is all they may do.
            drop(pair.host.receive(&payload, HEADER + payload.len()));
        }
    }

    #[test]
    fn a_record_costs_more_than_its_bytes(len in 0usize..100_000) {
        prop_assert!(cost(len) >= len as u64);
    }
}
