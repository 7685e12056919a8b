//! The fuzz targets' functions on a fixed set of inputs: every recorded frame, whole, cut short and
//! with single bytes changed.
#![allow(clippy::unwrap_used, reason = "in a test it is the assertion")]

#[path = "../../../fuzz/src/bridge.rs"]
mod fuzz;
mod golden_data;

use golden_data::{cases, fixtures, read};

/// Recorded frames, the long one left out: it is long and nothing else.
fn recorded() -> Vec<Vec<u8>> {
    let fixtures = fixtures().into_iter().filter(|fixture| fixture.size < 10_000);
    let mut inputs: Vec<_> =
        fixtures.map(|fixture| read(&format!("{}.bin", fixture.name))).collect();
    let cases = cases("host").into_iter().chain(cases("guest"));
    inputs.extend(cases.map(|case| case.input).filter(|input| input.len() < 10_000));
    inputs
}

/// The input itself, a cut one, and three with one byte changed; always the same for one seed.
fn variants(input: &[u8], mut seed: u64) -> Vec<Vec<u8>> {
    let mut next = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(seed >> 33).unwrap() % below.max(1)
    };
    let mut variants = vec![input.to_vec(), input[..next(input.len())].to_vec()];
    for _ in 0..3 {
        let mut changed = input.to_vec();
        let (place, bit) = (next(input.len()), next(8));
        if let Some(byte) = changed.get_mut(place) {
            *byte ^= 1 << bit;
        }
        variants.push(changed);
    }
    variants
}

#[test]
fn the_fuzz_targets_hold_for_every_recorded_frame_and_its_damaged_kin() {
    let inputs = recorded();
    assert!(inputs.len() > 400, "only {} inputs", inputs.len());
    for (number, input) in inputs.iter().enumerate() {
        let seed = u64::try_from(number).unwrap();
        for (choice, frame) in variants(input, seed).into_iter().enumerate() {
            let body = frame.get(16..).unwrap_or_default();
            fuzz::response_body(body);
            let kind = u8::try_from((number + choice) % 18).unwrap();
            fuzz::request_body(&[&[kind], body].concat());
            fuzz::frame_stream(&[&[kind], frame.as_slice(), frame.as_slice()].concat());
            fuzz::stdio_frame(&frame);
            fuzz::channel_record(&frame);
        }
    }
}

#[test]
fn the_fuzz_targets_hold_for_damaged_stdio_frames_and_records() {
    use coracle_bridge::channel::record::{HEADER, SessionId, seal};
    use coracle_bridge::stdio::Frame;

    let mut stdio = bytes::BytesMut::new();
    Frame::Open { session: 3, port: 7 }.encode(&mut stdio);
    Frame::Data { offset: 0, bytes: bytes::BytesMut::from(&b"some bytes"[..]) }.encode(&mut stdio);
    Frame::Gap { from: 10, to: 20 }.encode(&mut stdio);
    Frame::Ack { offset: 5 }.encode(&mut stdio);
    Frame::Eof { offset: 20 }.encode(&mut stdio);

    let mut record = vec![0; HEADER];
    record.extend_from_slice(&stdio);
    seal(&mut record, SessionId(9)).unwrap();
    let records = [record.as_slice(), b"noise", record.as_slice()].concat();

    for seed in 0..200 {
        for frames in variants(&stdio, seed) {
            fuzz::stdio_frame(&frames);
        }
        for stream in variants(&records, seed) {
            fuzz::channel_record(&stream);
        }
    }
}
