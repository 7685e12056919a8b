//! The two ends of a stream, without sessions around them.

use std::sync::Arc;

use bytes::BytesMut;
use coracle_bridge::stdio::{
    Frame, Input, InputEnd, OFFSET_MAX, OutputRing, Receiver, SharedRing, StdioError, WhenFull,
    serve_input, serve_output,
};
use proptest::prelude::*;
use tokio::io::BufReader;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use crate::bed::soon;
use crate::fake::pattern_bytes;

fn wire(frames: &[Frame]) -> BytesMut {
    let mut wire = BytesMut::new();
    frames.iter().for_each(|frame| frame.encode(&mut wire));
    wire
}

fn data(offset: u64, bytes: &[u8]) -> Frame {
    Frame::Data { offset, bytes: bytes.into() }
}

/// What a receiver at `from` makes of these frames and the end of the connection.
async fn received(
    from: u64,
    frames: &[Frame],
) -> (Vec<u8>, std::io::Result<usize>, Receiver<BufReader<DuplexStream>>) {
    let (ours, mut theirs) = tokio::io::duplex(1 << 20);
    theirs.write_all(&wire(frames)).await.unwrap();
    theirs.shutdown().await.unwrap();
    let mut receiver = Receiver::new(BufReader::new(ours), from);
    let mut got = Vec::new();
    let end = soon(receiver.read_to_end(&mut got)).await;
    (got, end, receiver)
}

/// Reads frames until the connection ends.
async fn frames(mut connection: DuplexStream) -> Vec<Frame> {
    let mut bytes = Vec::new();
    connection.read_to_end(&mut bytes).await.unwrap();
    let mut bytes = BytesMut::from(bytes.as_slice());
    std::iter::from_fn(|| Frame::decode(&mut bytes).unwrap()).collect()
}

#[tokio::test]
async fn bytes_that_come_again_are_given_once() {
    let frames = [
        data(7, b"abc"),
        data(7, b"abcd"),
        data(8, b"bc"),
        data(10, b"de"),
        Frame::Eof { offset: 12 },
    ];
    let (got, end, receiver) = received(7, &frames).await;
    end.unwrap();
    assert_eq!((got.as_slice(), receiver.offset()), (&b"abcde"[..], 12));
}

#[tokio::test]
async fn a_gap_is_skipped_and_counted() {
    let frames = [
        data(0, b"ab"),
        Frame::Gap { from: 2, to: 100 },
        data(100, b"cd"),
        // One that the receiver has partly seen.
        Frame::Gap { from: 50, to: 103 },
        data(103, b"e"),
        Frame::Eof { offset: 104 },
    ];
    let (got, end, receiver) = received(0, &frames).await;
    end.unwrap();
    assert_eq!((got.as_slice(), receiver.lost()), (&b"abcde"[..], 98 + 1));
}

#[tokio::test]
async fn a_frame_out_of_place_is_an_error_and_stays_one() {
    for frame in [
        data(3, b"too far"),
        Frame::Eof { offset: 1 },
        Frame::Eof { offset: 3 },
        Frame::Gap { from: 3, to: 9 },
        Frame::Gap { from: 2, to: 1 },
        Frame::Ack { offset: 0 },
        Frame::Stop { offset: 0 },
        Frame::Open { session: 1, port: 1 },
    ] {
        let (got, end, mut receiver) = received(0, &[data(0, b"ab"), frame.clone()]).await;
        assert_eq!(got, b"ab");
        let error = end.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidData, "{frame:?}: {error}");
        assert!(receiver.read(&mut [0; 1]).await.is_err());
    }
}

#[tokio::test]
async fn an_end_of_the_connection_is_never_taken_for_the_end_of_the_stream() {
    let (got, end, _) = received(0, &[data(0, b"ab")]).await;
    assert_eq!(got, b"ab");
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_reader_says_what_it_consumed_and_that_it_saw_the_end() {
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let (read_half, mut write_half) = tokio::io::split(theirs);
    let frames_in: Vec<_> = (0..8).map(|n| data(n * 60_000, &[b'x'; 60_000])).collect();
    write_half.write_all(&wire(&frames_in)).await.unwrap();
    let mut receiver = Receiver::new(BufReader::new(ours), 0);
    let mut buffer = vec![0; 10_000];
    for _ in 0..48 {
        soon(receiver.read_exact(&mut buffer)).await.unwrap();
    }
    write_half.write_all(&wire(&[Frame::Eof { offset: 480_000 }])).await.unwrap();
    assert_eq!(soon(receiver.read(&mut buffer)).await.unwrap(), 0);
    assert_eq!(soon(receiver.read(&mut buffer)).await.unwrap(), 0);
    let back = frames(read_half.unsplit(write_half)).await;
    let [Frame::Ack { offset }, .., Frame::Stop { offset: 480_000 }] = back.as_slice() else {
        panic!("{back:?}")
    };
    // Not before 384 KiB were consumed, as there was always more to read.
    assert!((393_216..480_000).contains(offset), "{offset}");
}

#[tokio::test]
async fn a_reader_that_waits_has_acknowledged_all_it_was_given() {
    let (ours, mut theirs) = tokio::io::duplex(1 << 20);
    let mut receiver = Receiver::new(BufReader::new(ours), 0);
    theirs.write_all(&wire(&[data(0, b"abc")])).await.unwrap();
    soon(receiver.read_exact(&mut [0; 3])).await.unwrap();
    let waits = tokio::spawn(async move { receiver.read(&mut [0; 1]).await });
    let mut bytes = [0; 16];
    soon(theirs.read_exact(&mut bytes)).await.unwrap();
    let ack = Frame::decode(&mut BytesMut::from(bytes.as_slice())).unwrap();
    assert_eq!(ack, Some(Frame::Ack { offset: 3 }));
    waits.abort();
}

#[tokio::test]
async fn what_came_of_a_frame_is_given_before_the_rest_and_counts_if_the_rest_never_comes() {
    let (ours, mut theirs) = tokio::io::duplex(1 << 20);
    let whole = wire(&[data(5, b"abcdef")]);
    let mut receiver = Receiver::new(BufReader::new(ours), 6);
    theirs.write_all(&whole[..whole.len() - 2]).await.unwrap();
    let mut buffer = [0; 100];
    let count = soon(receiver.read(&mut buffer)).await.unwrap();
    assert_eq!(&buffer[..count], b"bcd", "the first byte was known");
    drop(theirs);
    let fault = soon(receiver.read(&mut buffer)).await.unwrap_err();
    assert_eq!(fault.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(receiver.offset(), 9, "here a successor goes on");
}

#[tokio::test]
async fn a_sender_ends_when_its_reader_has_seen_the_end() {
    let ring = SharedRing::with_capacity(100, WhenFull::Block);
    let (ours, theirs) = tokio::io::duplex(64);
    let write = async {
        ring.write_all(&pattern_bytes(0, 5000)).await.unwrap();
        ring.finish();
    };
    let mut receiver = Receiver::new(BufReader::new(theirs), 0);
    let mut got = Vec::new();
    let (served, (), read) = soon(async {
        tokio::join!(serve_output(&ring, ours, 0), write, receiver.read_to_end(&mut got))
    })
    .await;
    served.unwrap();
    read.unwrap();
    assert!(got == pattern_bytes(0, 5000));
    assert!(ring.inspect(OutputRing::is_stopped));
}

#[tokio::test]
async fn room_in_a_ring_wakes_every_writer_that_waits_for_it() {
    let ring = SharedRing::with_capacity(4, WhenFull::Block);
    let writers: Vec<_> = (0..3)
        .map(|_| {
            let ring = ring.clone();
            tokio::spawn(async move { ring.write_all(b"abcdef").await })
        })
        .collect();
    soon(async {
        for end in (4..=18).step_by(2) {
            while ring.inspect(OutputRing::end) < end {
                tokio::task::yield_now().await;
            }
            ring.acknowledge(end).unwrap();
        }
    })
    .await;
    for writer in writers {
        soon(writer).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn an_acknowledgement_of_what_was_never_sent_ends_the_connection_only() {
    for frame in [
        Frame::Ack { offset: 4 },
        Frame::Ack { offset: OFFSET_MAX },
        Frame::Stop { offset: 4 },
        data(0, b"x"),
    ] {
        let ring = SharedRing::with_capacity(100, WhenFull::Block);
        ring.write_all(b"abc").await.unwrap();
        let (ours, mut theirs) = tokio::io::duplex(1000);
        theirs.write_all(&wire(&[frame])).await.unwrap();
        let fault = soon(serve_output(&ring, ours, 0)).await.unwrap_err();
        assert!(matches!(fault, StdioError::Offset(_) | StdioError::Unexpected { .. }), "{fault}");
        assert_eq!(ring.inspect(|ring| (ring.base(), ring.end())), (0, 3));
        assert!(!ring.inspect(OutputRing::is_stopped));
    }
}

#[tokio::test]
async fn a_newer_connection_takes_a_ring_over() {
    let ring = SharedRing::with_capacity(100, WhenFull::Block);
    ring.write_all(b"abc").await.unwrap();
    let (older, _kept) = tokio::io::duplex(1000);
    let served = {
        let ring = ring.clone();
        tokio::spawn(async move { serve_output(&ring, older, 0).await })
    };
    tokio::task::yield_now().await;
    assert!(ring.is_served());
    let (newer, theirs) = tokio::io::duplex(1000);
    let newer = {
        let ring = ring.clone();
        tokio::spawn(async move { serve_output(&ring, newer, 1).await })
    };
    let ended = soon(served).await.unwrap();
    assert!(matches!(ended, Err(StdioError::Superseded)));
    let mut receiver = Receiver::new(BufReader::new(theirs), 1);
    let mut got = [0; 2];
    soon(receiver.read_exact(&mut got)).await.unwrap();
    assert_eq!(&got, b"bc");
    ring.finish();
    assert_eq!(soon(receiver.read(&mut got)).await.unwrap(), 0);
    soon(newer).await.unwrap().unwrap();
    assert!(!ring.is_served());
}

#[tokio::test]
async fn a_process_that_closes_its_input_breaks_the_writers_pipe() {
    let (sink, process) = tokio::io::duplex(10);
    let input = Input::new(Box::new(sink));
    let ring = SharedRing::with_capacity(1000, WhenFull::Block);
    let (ours, theirs) = tokio::io::duplex(1000);
    drop(process);
    let write = async { while ring.write_all(b"0123456789").await.is_ok() {} };
    let (served, fed, ()) = soon(async {
        tokio::join!(
            serve_output(&ring, ours, 0),
            serve_input(&input, BufReader::new(theirs)),
            write
        )
    })
    .await;
    served.unwrap();
    assert_eq!(fed.unwrap(), InputEnd::Refused);
    assert!(input.is_closed());
}

#[tokio::test]
async fn a_reader_that_said_stop_and_closed_is_understood_whatever_is_still_being_written() {
    for _ in 0..20 {
        let ring = SharedRing::with_capacity(1000, WhenFull::Block);
        ring.write_all(&[7; 1000]).await.unwrap();
        let (ours, mut theirs) = tokio::io::duplex(100);
        let serve = serve_output(&ring, ours, 0);
        let read = async {
            theirs.read_exact(&mut [0; 50]).await.unwrap();
            theirs.write_all(&wire(&[Frame::Stop { offset: 10 }])).await.unwrap();
            drop(theirs);
        };
        let (served, ()) = soon(async { tokio::join!(serve, read) }).await;
        served.unwrap();
        assert!(ring.write_all(b"x").await.is_err(), "nobody wants it");
    }
}

#[tokio::test]
async fn an_input_that_was_superseded_gives_no_more_bytes() {
    let (sink, mut process) = tokio::io::duplex(4);
    let input = Arc::new(Input::new(Box::new(sink)));
    let (older, mut older_host) = tokio::io::duplex(1000);
    let fed = {
        let input = Arc::clone(&input);
        tokio::spawn(async move { serve_input(&input, BufReader::new(older)).await })
    };
    // The process takes four bytes and the connection waits with the rest.
    older_host.write_all(&wire(&[data(0, b"abcdefgh")])).await.unwrap();
    soon(async {
        while input.taken() < 4 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let (newer, mut newer_host) = tokio::io::duplex(1000);
    let newer = {
        let input = Arc::clone(&input);
        tokio::spawn(async move { serve_input(&input, BufReader::new(newer)).await })
    };
    tokio::task::yield_now().await;
    newer_host.write_all(&wire(&[data(4, b"EFGH"), Frame::Eof { offset: 8 }])).await.unwrap();
    let mut got = Vec::new();
    soon(process.read_to_end(&mut got)).await.unwrap();
    assert_eq!(got, b"abcdEFGH");
    assert_eq!(soon(newer).await.unwrap().unwrap(), InputEnd::Eof);
    // Superseded, or refused when the newer one was done first.
    assert!(!matches!(soon(fed).await.unwrap(), Ok(InputEnd::Eof)));
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// A connection that passes so many bytes toward the reader and so many back, and
/// then breaks at both ends.
async fn break_after(sender: DuplexStream, reader: DuplexStream, forth: usize, back: usize) {
    let (mut sender_read, mut sender_write) = tokio::io::split(sender);
    let (mut reader_read, mut reader_write) = tokio::io::split(reader);
    let forth = async {
        let mut limited = (&mut sender_read).take(forth as u64);
        let _ = tokio::io::copy(&mut limited, &mut reader_write).await;
    };
    let back = async {
        let mut limited = (&mut reader_read).take(back as u64);
        let _ = tokio::io::copy(&mut limited, &mut sender_write).await;
    };
    tokio::select! {
        () = forth => {}
        () = back => {}
    }
}

proptest! {
    #[test]
    fn whatever_a_sender_says_its_reader_ends_without_a_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        from in 0..=OFFSET_MAX,
    ) {
        runtime().block_on(async {
            let (ours, mut theirs) = tokio::io::duplex(1000);
            theirs.write_all(&bytes).await.unwrap();
            drop(theirs);
            let mut receiver = Receiver::new(BufReader::new(ours), from);
            let mut got = Vec::new();
            let end = soon(receiver.read_to_end(&mut got)).await;
            prop_assert!(end.is_err() || receiver.offset() >= from);
            Ok(())
        })?;
    }

    #[test]
    fn whatever_a_reader_says_its_sender_ends_without_a_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        kind in 0u8..8,
    ) {
        runtime().block_on(async {
            let ring = SharedRing::with_capacity(100, WhenFull::Block);
            ring.write_all(b"abc").await.unwrap();
            let (ours, mut theirs) = tokio::io::duplex(1000);
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = kind;
            }
            theirs.write_all(&bytes).await.unwrap();
            drop(theirs);
            let _ = soon(serve_output(&ring, ours, 0)).await;
            prop_assert_eq!(ring.inspect(OutputRing::end), 3);
            Ok(())
        })?;
    }

    #[test]
    fn a_stream_cut_anywhere_and_resumed_arrives_once_and_in_order(
        cuts in prop::collection::vec((0usize..3000, 0usize..200), 0..20),
        capacity in 1usize..2000,
        total in 0u64..20_000,
    ) {
        runtime().block_on(async {
            // A ring this small waits for each acknowledgement: some 100 s, which pass at once.
            const LONG: std::time::Duration = std::time::Duration::from_secs(1000);
            tokio::time::pause();
            let ring = SharedRing::with_capacity(capacity, WhenFull::Block);
            let writer = {
                let ring = ring.clone();
                tokio::spawn(async move {
                    ring.write_all(&pattern_bytes(0, total)).await.unwrap();
                    ring.finish();
                })
            };
            let mut got = Vec::new();
            // Then a last connection that holds.
            let lives = cuts.into_iter().chain([(usize::MAX >> 1, usize::MAX >> 1)]);
            let mut ended = false;
            for (forth, back) in lives {
                if ended {
                    break;
                }
                let (sender, sender_far) = tokio::io::duplex(512);
                let (reader_far, reader) = tokio::io::duplex(512);
                let mut receiver = Receiver::new(BufReader::new(reader), got.len() as u64);
                let read = async {
                    let mut buffer = [0; 300];
                    loop {
                        match receiver.read(&mut buffer).await {
                            Ok(0) => return true,
                            Ok(count) => got.extend_from_slice(&buffer[..count]),
                            Err(_) => return false,
                        }
                    }
                };
                // What the reader has may be more than what the sender heard of.
                let from = ring.inspect(OutputRing::base);
                (_, (), ended) = tokio::time::timeout(LONG, async {
                    tokio::join!(
                        serve_output(&ring, sender, from),
                        break_after(sender_far, reader_far, forth, back),
                        read
                    )
                })
                .await
                .expect("comes to an end");
            }
            prop_assert!(ended);
            prop_assert!(got == pattern_bytes(0, total));
            soon(writer).await.unwrap();
            Ok(())
        })?;
    }
}
