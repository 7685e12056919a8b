//! Reads the recorded data in `tests/golden/gcs` of the workspace.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::path::Path;

use coracle_bridge::frame::MessageType;
use coracle_bridge::hresult::Hresult;
use serde_json::Value;

/// The content of a file.
pub fn read(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/gcs");
    std::fs::read(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The lines of a file of JSON objects.
pub fn lines(name: &str) -> Vec<Value> {
    let text = String::from_utf8(read(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn text(line: &Value, field: &str) -> String {
    line[field].as_str().unwrap_or_default().to_owned()
}

fn message_type(line: &Value) -> MessageType {
    let hex = text(line, "type");
    MessageType(u32::from_str_radix(hex.strip_prefix("0x").unwrap(), 16).unwrap())
}

/// A line of `fixtures.jsonl`.
pub struct Fixture {
    pub name: String,
    pub message_type: MessageType,
    pub id: u64,
    pub size: u64,
}

/// All recorded pairs.
pub fn fixtures() -> Vec<Fixture> {
    let line = |line: &Value| Fixture {
        name: text(line, "name"),
        message_type: message_type(line),
        id: line["id"].as_u64().unwrap(),
        size: line["size"].as_u64().unwrap(),
    };
    lines("fixtures.jsonl").iter().map(line).collect()
}

/// A recorded conversation.
pub struct Session {
    pub name: &'static str,
    pub frames: Vec<SessionFrame>,
}

/// One frame of it.
pub struct SessionFrame {
    pub to_guest: bool,
    pub message_type: MessageType,
    pub id: u64,
    pub body: String,
    pub size_is_right: bool,
}

/// All recorded conversations.
pub fn sessions() -> Vec<Session> {
    const NAMES: [&str; 7] = [
        "session-guest-v0.9.0-crash-create",
        "session-guest-v0.9.0-crash-exec",
        "session-guest-v0.9.0-graceful",
        "session-guest-v0.9.0-probe",
        "session-guest-v0.9.0-size15",
        "session-host-v0.8.9-guest-v0.9.0",
        "session-host-v0.8.9-windows-guest-scripted",
    ];
    let frame = |stream: &[u8], line: &Value| {
        let offset = usize::try_from(line["offset"].as_u64().unwrap()).unwrap();
        let stated = u32::from_le_bytes(stream[offset + 4..offset + 8].try_into().unwrap());
        SessionFrame {
            to_guest: line["dir"] == "host->guest",
            message_type: message_type(line),
            id: line["id"].as_u64().unwrap(),
            body: text(line, "body"),
            size_is_right: u64::from(stated) == line["length"].as_u64().unwrap(),
        }
    };
    NAMES
        .iter()
        .map(|name| {
            let stream = read(&format!("{name}.bin"));
            let lines = lines(&format!("{name}.jsonl"));
            Session { name, frames: lines.iter().map(|line| frame(&stream, line)).collect() }
        })
        .collect()
}

/// A line of `cases.jsonl`: a frame, and what a real bridge made of it.
pub struct Case {
    pub name: String,
    pub input: Vec<u8>,
    pub verdict: String,
    /// Host: the call that waits for an answer.
    pub pending_call: String,
    /// Host: what was understood, written again.
    pub decoded: Option<Value>,
    /// Guest: before or after the negotiation.
    pub context: String,
    /// Guest: the code of the answer.
    pub result: Hresult,
    /// Guest: the activity of the answer.
    pub activity: Option<String>,
}

/// The cases of one side.
pub fn cases(side: &str) -> Vec<Case> {
    let all = lines("cases.jsonl");
    all.iter().filter(|line| line["side"] == side).map(case).collect()
}

fn case(line: &Value) -> Case {
    let name = text(line, "name");
    let input = match text(line, "input_hex").strip_suffix("...") {
        Some(start) => whole(&name, &unhex(start), line["input_len"].as_u64().unwrap()),
        None => unhex(&text(line, "input_hex")),
    };
    let result = text(line, "result_hex");
    let bits = u32::from_str_radix(result.strip_prefix("0x").unwrap_or("0"), 16).unwrap();
    Case {
        input,
        verdict: text(line, "verdict"),
        pending_call: text(line, "pending_call"),
        decoded: line.get("decoded").cloned(),
        context: text(line, "context"),
        result: Hresult::from_bits(bits),
        activity: line["answer"]["ActivityId"].as_str().map(str::to_owned),
        name,
    }
}

/// Long frames are recorded by their beginning; the rest is known.
fn whole(name: &str, start: &[u8], length: u64) -> Vec<u8> {
    let length = usize::try_from(length).unwrap();
    let header = &start[..16];
    let body = match name {
        "deep nesting 10001" => {
            let (open, close) = ("[".repeat(10_000), "]".repeat(10_000));
            format!(r#"{{"Result":0,"Foo":{open}{close}}}"#)
        }
        "size 65536 exact (the limit)" => {
            format!(r#"{{"Result":0{}}}"#, " ".repeat(length - 16 - 12))
        }
        "body of 200 kB is accepted" => {
            let begin =
                r#"{"ContainerId":"c1","ActivityId":"01020304-0506-0708-090a-0b0c0d0e0f10","#;
            let filler = "x".repeat(length - 16 - begin.len() - r#""Pad":""}"#.len());
            format!(r#"{begin}"Pad":"{filler}"}}"#)
        }
        _ => panic!("{name} is long and not known"),
    };
    let frame = [header, body.as_bytes()].concat();
    assert_eq!(frame.len(), length, "{name}");
    assert_eq!(&frame[..start.len()], start, "{name}");
    frame
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        text.chars().map(|digit| digit.to_digit(16).unwrap().try_into().unwrap()).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}
