//! What eats bytes from the other end of a VM's channel.
//!
//! The bridge's tests call these functions with a fixed set of inputs made from recorded frames.

use bytes::BytesMut;
use coracle_bridge::channel::record::{Found, Intake, MAX_PAYLOAD};
use coracle_bridge::frame::{Decoder, Frame, GUEST_TO_HOST, HOST_TO_GUEST, MessageType};
use coracle_bridge::message::incoming::{Dialect, FromGuest, decode_answer, from_guest, to_guest};
use coracle_bridge::message::{
    Created, Done, Executed, Exited, Negotiated, PropertiesAnswer, Response, Stacks, State,
};
use coracle_bridge::stdio;
use coracle_bridge::wire::{Body, Json, Side};

/// A stream of frames: cut anywhere it gives the same frames, and they are the stream.
pub fn frame_stream(bytes: &[u8]) {
    let Some((cut, stream)) = bytes.split_first() else { return };
    let (whole, whole_rest) = frames(&[stream]);
    let (first, second) = stream.split_at(usize::from(*cut).min(stream.len()));
    let (split, split_rest) = frames(&[first, second]);
    assert_eq!((&whole, whole_rest), (&split, split_rest));

    let again: Vec<u8> = whole
        .iter()
        .flat_map(|frame| frame.to_bytes(GUEST_TO_HOST).expect("it was within the limit"))
        .collect();
    assert!(stream.starts_with(&again));
}

fn frames(pieces: &[&[u8]]) -> (Vec<Frame>, bool) {
    let mut decoder = Decoder::new(GUEST_TO_HOST);
    let mut frames = Vec::new();
    for piece in pieces {
        decoder.push(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return (frames, false),
            }
        }
    }
    (frames, true)
}

/// The body of a guest's answer, read as the answer to any request, and of a notification.
pub fn response_body(bytes: &[u8]) {
    answer::<Done>(MessageType::START, bytes);
    answer::<Created>(MessageType::CREATE, bytes);
    answer::<Executed>(MessageType::EXECUTE_PROCESS, bytes);
    answer::<Exited>(MessageType::WAIT_FOR_PROCESS, bytes);
    answer::<Negotiated>(MessageType::NEGOTIATE_PROTOCOL, bytes);
    answer::<PropertiesAnswer>(MessageType::GET_PROPERTIES, bytes);
    answer::<Stacks>(MessageType::DUMP_STACKS, bytes);
    answer::<State>(MessageType::LIST_STATE, bytes);

    let message_type = MessageType::CONTAINER_NOTIFICATION;
    let frame = Frame { message_type, id: 0, body: bytes.to_vec() };
    if let Ok(FromGuest::Notification(notification)) = from_guest(frame, Dialect::Plain) {
        let body = notification.encode(Side::Guest).expect("it was read from JSON");
        Json::parse(&body).expect("what was written is JSON");
    }
}

/// What was read and is written can be read again, to the same value, whichever side wrote it.
fn answer<A: Body + PartialEq>(request: MessageType, bytes: &[u8]) {
    let Ok(response) = decode_answer::<A>(request, bytes) else { return };
    for side in [Side::Guest, Side::Host] {
        let written = response.encode(side).expect("it was read from JSON");
        let again = Response::<A>::decode(&written).expect("what was written can be read");
        assert_eq!(again.encode(side).expect("it was read from JSON"), written);
    }
}

/// A request as a guest gets it: the first byte chooses which.
pub fn request_body(bytes: &[u8]) {
    const TYPES: [MessageType; 18] = [
        MessageType::NEGOTIATE_PROTOCOL,
        MessageType::CREATE,
        MessageType::START,
        MessageType::SHUTDOWN_GRACEFUL,
        MessageType::SHUTDOWN_FORCED,
        MessageType::EXECUTE_PROCESS,
        MessageType::WAIT_FOR_PROCESS,
        MessageType::SIGNAL_PROCESS,
        MessageType::RESIZE_CONSOLE,
        MessageType::GET_PROPERTIES,
        MessageType::MODIFY_SETTINGS,
        MessageType::DUMP_STACKS,
        MessageType::DELETE_CONTAINER_STATE,
        MessageType::LIFECYCLE_NOTIFICATION,
        MessageType::LIST_STATE,
        MessageType::ACK_EXIT,
        MessageType::ATTACH_STDIO,
        MessageType::CHUNK,
    ];
    let Some((choice, body)) = bytes.split_first() else { return };
    let message_type = TYPES[usize::from(*choice) % TYPES.len()];
    let frame = Frame { message_type, id: 1, body: body.to_vec() };
    for dialect in [Dialect::New, Dialect::Plain, Dialect::Coracle] {
        if let Err(refusal) = to_guest(&frame, dialect) {
            assert!(!refusal.result.is_ok());
            let answer = refusal.to_response().to_frame(message_type, 1).expect("it is text");
            assert!(answer.size() <= u64::from(HOST_TO_GUEST) * 8);
        }
    }
}

/// Frames of a stdio connection: what is read is written to the same bytes.
pub fn stdio_frame(bytes: &[u8]) {
    let mut rest = BytesMut::from(bytes);
    while let Ok(Some(frame)) = stdio::Frame::decode(&mut rest) {
        let used = bytes.len() - rest.len();
        let mut again = BytesMut::new();
        frame.encode(&mut again);
        assert!(bytes[..used].ends_with(&again), "{frame:?}");
    }
}

/// Records of the channel: every byte is in a record, skipped, or waiting for more.
pub fn channel_record(bytes: &[u8]) {
    let mut intake = Intake::new();
    let mut rest = bytes;
    let mut used = 0;
    while !rest.is_empty() {
        let space = intake.space();
        let now = space.len().min(rest.len());
        space[..now].copy_from_slice(&rest[..now]);
        intake.filled(now);
        rest = &rest[now..];
        loop {
            let before = intake.pending().len();
            match intake.next() {
                Found::Incomplete => break,
                Found::Garbage(skipped) => assert!(skipped > 0),
                Found::Record { payload, .. } => assert!(payload.len() <= MAX_PAYLOAD),
            }
            used += before - intake.pending().len();
        }
    }
    assert_eq!(used + intake.pending().len(), bytes.len());
}
