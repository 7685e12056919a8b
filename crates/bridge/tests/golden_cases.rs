//! What we make of each frame that was given to the real bridges, compared with what they made of it.
//!
//! Where ours is meant to differ, the case stands in a table with the reason.
#![allow(clippy::unwrap_used, reason = "in a test it is the assertion")]

mod golden_data;

use coracle_bridge::frame::{
    Decoder, Frame, FrameError, GUEST_TO_HOST, HOST_TO_GUEST, MessageType,
};
use coracle_bridge::hresult::Hresult;
use coracle_bridge::message::incoming::{
    Call, Dialect, Fatal, FromGuest, decode_answer, from_guest, to_guest,
};
use coracle_bridge::message::{
    Executed, Exited, Negotiated, PropertiesAnswer, Response, Stacks, Start,
};
use coracle_bridge::wire::{Body, Json, Side};
use golden_data::{Case, cases};

/// What became of a host's bridge.
#[derive(Debug, PartialEq)]
enum HostVerdict {
    /// The call got its answer; what was understood, as the host would write it.
    Accepted(Json),
    /// The call got an answer that says it failed.
    Failed(Json),
    Dies,
    Waits,
    Closed,
}

/// Cases in which our host is meant to do something else.
const HOST_DIFFERS: &[(&str, &str)] = &[
    ("Properties empty string", "nothing is not a reason to lose the bridge"),
    ("Properties empty string on error result", "nothing is not a reason to lose the bridge"),
    ("Version missing", "no guest-defined capabilities are null here and an empty object there"),
    ("Capabilities null", "no guest-defined capabilities are null here and an empty object there"),
    ("Properties JSON null", "no properties are written as null here and as an empty object there"),
    ("Properties V2 good", "the creation time of a process is a Windows field, not kept"),
];

/// Cases in which our guest is meant to do something else.
const GUEST_DIFFERS: &[(&str, &str)] = &[(
    "size 15 (the payload length wraps to 4294967295 and the guest waits for it)",
    "a size below the header ends the connection at once",
)];

#[test]
fn a_host_judges_each_recorded_frame_as_the_real_one_did() {
    let (mut seen, mut differed) = (0, Vec::new());
    for case in cases("host") {
        let ours = host_verdict(&case);
        let theirs = recorded_host_verdict(&case);
        let alike = match (&ours, &theirs) {
            // Go could not write these again; that they were accepted is all there is.
            (HostVerdict::Accepted(_), HostVerdict::Accepted(Json::Null)) => true,
            _ => ours == theirs,
        };
        match HOST_DIFFERS.iter().any(|(name, _)| *name == case.name) {
            true => differed.push((case.name, alike)),
            false => assert!(alike, "{}: ours {ours:?}, real {theirs:?}", case.name),
        }
        seen += 1;
    }
    assert_eq!(seen, 58);
    assert_eq!(differed.len(), HOST_DIFFERS.len());
    assert!(differed.iter().all(|(_, alike)| !alike), "no difference any more: {differed:?}");
}

fn recorded_host_verdict(case: &Case) -> HostVerdict {
    let decoded = case.decoded.as_ref().map_or(Json::Null, |json| Json::of(json).unwrap());
    match case.verdict.as_str() {
        "accepted, bridge alive" => HostVerdict::Accepted(sorted(decoded)),
        "decoded; call fails with the guest's result; bridge alive" => {
            HostVerdict::Failed(sorted(decoded))
        }
        "bridge dies" => HostVerdict::Dies,
        "bridge closed, no error" => HostVerdict::Closed,
        verdict if verdict.starts_with("still waiting") => HostVerdict::Waits,
        verdict => panic!("{}: {verdict}", case.name),
    }
}

fn host_verdict(case: &Case) -> HostVerdict {
    let mut decoder = Decoder::new(GUEST_TO_HOST);
    decoder.push(&case.input);
    let closed = case.name.starts_with("close ");
    match decoder.next_frame() {
        Err(_) => HostVerdict::Dies,
        Ok(None) if closed && decoder.pending() > 0 => HostVerdict::Dies,
        Ok(None) => HostVerdict::Waits,
        // The answer came before the end, and the end was between two frames.
        Ok(Some(_)) if closed && decoder.pending() == 0 => HostVerdict::Closed,
        Ok(Some(frame)) => judge(frame, case).unwrap_or(HostVerdict::Dies),
    }
}

/// As the client does it with one open call of id 0 and one known container.
fn judge(frame: Frame, case: &Case) -> Result<HostVerdict, Fatal> {
    match from_guest(frame, Dialect::Plain)? {
        FromGuest::Notification(notification) => {
            if notification.container_id.as_str() == "unknown" {
                return Err(Fatal::UnknownContainer("unknown".to_owned()));
            }
            Ok(HostVerdict::Accepted(tree(&notification.encode(Side::Host).unwrap())))
        }
        FromGuest::Response { id: 0, body, .. } => match case.pending_call.as_str() {
            "NegotiateProtocol" => answer::<Negotiated>(MessageType::NEGOTIATE_PROTOCOL, &body),
            "ExecuteProcess" => answer::<Executed>(MessageType::EXECUTE_PROCESS, &body),
            "WaitForProcess" => answer::<Exited>(MessageType::WAIT_FOR_PROCESS, &body),
            "GetPropertiesV2" => answer::<PropertiesAnswer>(MessageType::GET_PROPERTIES, &body),
            "DumpStacks" => answer::<Stacks>(MessageType::DUMP_STACKS, &body),
            _ => answer::<Start>(MessageType::START, &body),
        },
        FromGuest::Response { id, message_type, .. } => {
            Err(Fatal::UnknownCall { id, message_type })
        }
    }
}

fn answer<A: Body>(request: MessageType, body: &[u8]) -> Result<HostVerdict, Fatal> {
    let response: Response<A> = decode_answer(request, body)?;
    let decoded = tree(&response.encode(Side::Host).unwrap());
    Ok(match response.result.is_ok() {
        true => HostVerdict::Accepted(decoded),
        false => HostVerdict::Failed(decoded),
    })
}

fn tree(body: &[u8]) -> Json {
    sorted(Json::parse(body).unwrap())
}

/// The recorded trees lost their order.
fn sorted(tree: Json) -> Json {
    match tree {
        Json::Object(mut fields) => {
            fields.sort_by(|(a, _), (b, _)| a.cmp(b));
            Json::Object(fields.into_iter().map(|(name, value)| (name, sorted(value))).collect())
        }
        Json::Array(items) => Json::Array(items.into_iter().map(sorted).collect()),
        other => other,
    }
}

#[test]
fn a_guest_judges_each_recorded_frame_as_the_real_one_did() {
    let (mut seen, mut differed) = (0, 0);
    for case in cases("guest") {
        seen += 1;
        let mut decoder = Decoder::new(HOST_TO_GUEST);
        decoder.push(&case.input);
        let frame = match decoder.next_frame() {
            Ok(Some(frame)) => frame,
            Ok(None) => {
                assert!(case.verdict.starts_with("bridge loop ended"), "{}", case.name);
                continue;
            }
            Err(error) => {
                assert!(matches!(error, FrameError::TooSmall { size: 15, .. }), "{error}");
                assert!(GUEST_DIFFERS.iter().any(|(name, _)| *name == case.name), "{}", case.name);
                differed += 1;
                continue;
            }
        };
        if case.verdict.starts_with("bridge loop ended") {
            // The header says there is no body: for us that is a frame like any other.
            continue;
        }
        assert_answered_alike(&case, &frame);
    }
    assert_eq!((seen, differed), (62, GUEST_DIFFERS.len()));
}

/// A refusal has the recorded code and activity; what we hand to the guest's service was answered by
/// the real guest's state, with success or with a code that says so.
fn assert_answered_alike(case: &Case, frame: &Frame) {
    let dialect = match case.context.as_str() {
        "before negotiation" => Dialect::New,
        _ => Dialect::Plain,
    };
    let of_the_service = [Hresult::OK, Hresult::NO_SUCH_SYSTEM, Hresult::NOT_FOUND, Hresult::FAIL];
    match to_guest(frame, dialect) {
        Err(refusal) => {
            assert_eq!(refusal.result, case.result, "{}: {refusal}", case.name);
            assert_eq!(refusal.to_response().activity_id.map(|id| id.0), case.activity);
        }
        Ok(call) => {
            assert!(of_the_service.contains(&case.result), "{}: {call:?}", case.name);
        }
    }
}

#[test]
fn a_frame_without_a_body_is_answered_as_one_with_a_wrong_body() {
    let frame = Frame { message_type: MessageType::CREATE, id: 1, body: Vec::new() };
    assert_eq!(to_guest(&frame, Dialect::Plain).unwrap_err().result, Hresult::INVALID_JSON);
    let stacks = Frame { message_type: MessageType::DUMP_STACKS, ..frame };
    assert!(matches!(to_guest(&stacks, Dialect::Plain), Ok(Call::DumpStacks(_))));
}

#[test]
fn our_extension_is_unknown_until_it_is_negotiated() {
    let body = b"{}".to_vec();
    let request = Frame { message_type: MessageType::LIST_STATE, id: 1, body };
    assert_eq!(to_guest(&request, Dialect::New).unwrap_err().result, Hresult::NOT_IMPLEMENTED);
    assert_eq!(to_guest(&request, Dialect::Plain).unwrap_err().result, Hresult::NOT_IMPLEMENTED);
    assert!(matches!(to_guest(&request, Dialect::Coracle), Ok(Call::ListState(_))));

    let message_type = MessageType::LIST_STATE.response();
    let response = Frame { message_type, ..request };
    assert!(matches!(from_guest(response.clone(), Dialect::Plain), Err(Fatal::UnknownMessage(_))));
    assert!(from_guest(response, Dialect::Coracle).is_ok());
}

#[test]
fn a_create_without_a_document_is_refused_and_one_with_an_old_schema_too() {
    for config in ["null", "", r#"{\"SchemaVersion\":{\"Major\":2}}"#] {
        let body = format!(r#"{{"ContainerId":"c","ContainerConfig":"{config}"}}"#).into_bytes();
        let frame = Frame { message_type: MessageType::CREATE, id: 1, body };
        let refusal = to_guest(&frame, Dialect::Plain).unwrap_err();
        assert_eq!(refusal.result, Hresult::INVALID_JSON, "{config}: {refusal}");
        assert_eq!(refusal.activity_id.0, "");
    }
}
