//! Every recorded frame is read and written again to the same bytes, by the side that wrote it.
#![allow(clippy::unwrap_used, reason = "in a test it is the assertion")]

mod golden_data;

use coracle_bridge::frame::{Decoder, Frame, HOST_TO_GUEST, Kind, MessageType};
use coracle_bridge::message::incoming::{Dialect, to_guest};
use coracle_bridge::message::{
    ContainerNotification, Create, DeleteContainerState, Done, DumpStacks, ExecuteProcess,
    GetProperties, Modify, ModifySettings, Negotiate, Notification, PropertiesAnswer, Request,
    ResizeConsole, Resource, Response, Rpc, ShutdownForced, ShutdownGraceful, SignalProcess, Start,
    SystemConfig, WaitForProcess, WindowsSignalOptions,
};
use coracle_bridge::wire::{Body, Json, Side, WireError};
use golden_data::{Fixture, Session, SessionFrame, fixtures, read, sessions};

fn side(name: &str) -> Side {
    if name.starts_with("guest/") { Side::Guest } else { Side::Host }
}

/// Reads a body into the type a program would use, and writes it again.
fn rewrite(name: &str, kind: MessageType, body: &[u8]) -> Result<Vec<u8>, WireError> {
    fn request<B: Rpc>(body: &[u8], side: Side) -> Result<Vec<u8>, WireError> {
        Request::<B>::decode(body)?.encode(side)
    }
    fn response<B: Body>(body: &[u8], side: Side) -> Result<Vec<u8>, WireError> {
        Response::<B>::decode(body)?.encode(side)
    }
    fn answer<R: Rpc>(body: &[u8], side: Side) -> Result<Vec<u8>, WireError> {
        response::<R::Answer>(body, side)
    }
    let side = side(name);
    let windows = name.contains("windows");
    if kind == MessageType::CONTAINER_NOTIFICATION {
        return Notification::<ContainerNotification>::decode(body)?.encode(side);
    }
    if kind.kind() == Kind::Request {
        return match kind {
            MessageType::NEGOTIATE_PROTOCOL => request::<Negotiate>(body, side),
            MessageType::CREATE if name.contains("create-uvm") => {
                request::<Create<SystemConfig>>(body, side)
            }
            // Documents of a Windows container, and one that is only long.
            MessageType::CREATE if windows || name.contains("large") => {
                request::<Create<Json>>(body, side)
            }
            MessageType::CREATE => request::<Create>(body, side),
            MessageType::START => request::<Start>(body, side),
            MessageType::SHUTDOWN_GRACEFUL => request::<ShutdownGraceful>(body, side),
            MessageType::SHUTDOWN_FORCED => request::<ShutdownForced>(body, side),
            MessageType::EXECUTE_PROCESS => request::<ExecuteProcess>(body, side),
            MessageType::WAIT_FOR_PROCESS => request::<WaitForProcess>(body, side),
            MessageType::SIGNAL_PROCESS if windows => {
                request::<SignalProcess<WindowsSignalOptions>>(body, side)
            }
            MessageType::SIGNAL_PROCESS => request::<SignalProcess>(body, side),
            MessageType::RESIZE_CONSOLE => request::<ResizeConsole>(body, side),
            MessageType::GET_PROPERTIES => request::<GetProperties>(body, side),
            MessageType::MODIFY_SETTINGS => request::<Modify>(body, side),
            MessageType::DUMP_STACKS => request::<DumpStacks>(body, side),
            MessageType::DELETE_CONTAINER_STATE => request::<DeleteContainerState>(body, side),
            // Numbers nobody serves still have the common fields.
            _ => request::<Start>(body, side),
        };
    }
    match MessageType((kind.0 & 0x0FFF_FFFF) | (1 << 28)) {
        MessageType::NEGOTIATE_PROTOCOL => answer::<Negotiate>(body, side),
        MessageType::CREATE => answer::<Create>(body, side),
        MessageType::EXECUTE_PROCESS => answer::<ExecuteProcess>(body, side),
        MessageType::WAIT_FOR_PROCESS => answer::<WaitForProcess>(body, side),
        // The host's structs hold the properties of Windows guests as well.
        MessageType::GET_PROPERTIES if side == Side::Host => {
            response::<PropertiesAnswer<Json>>(body, side)
        }
        MessageType::GET_PROPERTIES => answer::<GetProperties>(body, side),
        MessageType::DUMP_STACKS => answer::<DumpStacks>(body, side),
        _ => answer::<Start>(body, side),
    }
}

#[track_caller]
fn assert_same(name: &str, ours: &[u8], theirs: &[u8]) {
    let place = ours.iter().zip(theirs).position(|(a, b)| a != b);
    let place = place.unwrap_or(ours.len().min(theirs.len()));
    let around = |text: &[u8]| {
        let text = &text[place.saturating_sub(60).min(text.len())..];
        String::from_utf8_lossy(&text[..text.len().min(160)]).into_owned()
    };
    let (ours_there, theirs_there) = (around(ours), around(theirs));
    assert!(ours == theirs, "{name} at byte {place}:\n ours {ours_there}\n real {theirs_there}");
}

#[test]
fn every_recorded_frame_is_written_again_to_the_same_bytes() {
    let fixtures = fixtures();
    assert_eq!(fixtures.len(), 303);
    for Fixture { name, message_type, id, size } in fixtures {
        let recorded = read(&format!("{name}.bin"));
        let mut decoder = Decoder::new(HOST_TO_GUEST);
        decoder.push(&recorded);
        let frame = decoder.next_frame().unwrap().unwrap();
        assert_eq!(
            (frame.message_type, frame.id, frame.size()),
            (message_type, id, size),
            "{name}"
        );
        assert_eq!(decoder.pending(), 0, "{name}");
        assert_same(&name, &frame.body, &read(&format!("{name}.json")));
        assert_same(&name, &frame.to_bytes(HOST_TO_GUEST).unwrap(), &recorded);

        let again = rewrite(&name, frame.message_type, &frame.body)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_same(&name, &again, &frame.body);
    }
}

#[test]
fn every_recorded_resource_is_typed_and_written_again_to_the_same_bytes() {
    let mut count = 0;
    for Fixture { name, message_type, .. } in fixtures() {
        if message_type != MessageType::MODIFY_SETTINGS || !name.contains("/modify/") {
            continue;
        }
        let body = read(&format!("{name}.json"));
        let mut request = Request::<Modify>::decode(&body).unwrap();
        let settings = request.body.request.take().unwrap();
        let resource: Resource = settings.resource().unwrap_or_else(|e| panic!("{name}: {e}"));
        let verb = settings.verb().unwrap();
        request.body.request = Some(ModifySettings::new(verb, &resource).unwrap());
        assert_same(&name, &request.encode(side(&name)).unwrap(), &body);
        count += 1;
    }
    assert!(count > 100, "only {count} resources");
}

#[test]
fn every_frame_of_the_recorded_sessions_is_read_and_written_again() {
    for session in sessions() {
        let stream = read(&format!("{}.bin", session.name));
        // The session that ends with a wrong size is cut there by any reader with limits.
        let whole = session.frames.iter().filter(|frame| frame.size_is_right).count();
        let mut decoder = Decoder::new(HOST_TO_GUEST);
        decoder.push(&stream);
        for (number, line) in session.frames.iter().take(whole).enumerate() {
            let name = format!("{} frame {number}", session.name);
            let frame = decoder.next_frame().unwrap().unwrap_or_else(|| panic!("{name}"));
            assert_eq!((frame.message_type, frame.id), (line.message_type, line.id), "{name}");
            assert_same(&name, &frame.body, line.body.as_bytes());
            if written_by_hand(session.name, line.to_guest) {
                assert_understood_alike(&name, &session, &frame);
            } else {
                let again = rewrite_session(session.name, line.to_guest, &frame).unwrap();
                assert_same(&name, &again, &frame.body);
            }
        }
        if whole == session.frames.len() {
            assert_eq!((decoder.next_frame().unwrap(), decoder.pending()), (None, 0));
        } else {
            decoder.next_frame().expect_err("a size of 15");
        }
    }
}

/// The requests to a guest alone, and the answers to a host that had no guest.
fn written_by_hand(session: &str, to_guest: bool) -> bool {
    if to_guest { session.starts_with("session-guest-") } else { session.ends_with("scripted") }
}

/// Whatever we refuse without looking at the state of a guest, the real guest refused for the same
/// reason.
fn assert_understood_alike(name: &str, session: &Session, request: &Frame) {
    let answered = |line: &&SessionFrame| {
        line.message_type == request.message_type.response() && line.id == request.id
    };
    let negotiated = session.frames.iter().find(|line| {
        line.message_type == MessageType::NEGOTIATE_PROTOCOL.response()
            && Response::<Done>::decode(line.body.as_bytes()).unwrap().result.is_ok()
    });
    // The ids of these requests only rise.
    let before = negotiated.is_some_and(|answer| request.id <= answer.id);
    let dialect = if before { Dialect::New } else { Dialect::Plain };
    if request.message_type.kind() == Kind::Response {
        // The answers nobody's structs wrote are read all the same.
        return assert!(rewrite(name, request.message_type, &request.body).is_ok(), "{name}");
    }
    let Err(refusal) = to_guest(request, dialect) else { return };
    let Some(answer) = session.frames.iter().find(answered) else { return };
    let theirs = Response::<Done>::decode(answer.body.as_bytes()).unwrap();
    assert_eq!(refusal.result, theirs.result, "{name}: {refusal} - {}", theirs.error_message);
    assert_eq!(refusal.to_response().activity_id, theirs.activity_id, "{name}");
}

fn rewrite_session(session: &str, to_guest: bool, frame: &Frame) -> Result<Vec<u8>, WireError> {
    let side = if to_guest { "host/" } else { "guest/" };
    // A guest's answer to a request that failed has no body.
    if !to_guest && frame.message_type.kind() == Kind::Response {
        let response = Response::<Done>::decode(&frame.body)?;
        if !response.result.is_ok() {
            return response.encode(Side::Guest);
        }
    }
    rewrite(&format!("{side}{session}"), frame.message_type, &frame.body)
}
