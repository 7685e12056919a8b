use proptest::prelude::*;

use super::*;

fn frames() -> impl Strategy<Value = Frame> {
    (any::<u32>(), any::<u64>(), proptest::collection::vec(any::<u8>(), 0..300))
        .prop_map(|(bits, id, body)| Frame { message_type: MessageType(bits), id, body })
}

fn decode_all(stream: &[u8], cuts: &[usize], limit: u32) -> Result<Vec<Frame>, FrameError> {
    let mut decoder = Decoder::new(limit);
    let mut frames = Vec::new();
    let mut rest = stream;
    for cut in cuts.iter().copied().chain([usize::MAX]) {
        let (now, later) = rest.split_at(cut.min(rest.len()));
        decoder.push(now);
        rest = later;
        while let Some(frame) = decoder.next_frame()? {
            frames.push(frame);
        }
    }
    Ok(frames)
}

proptest! {
    #[test]
    fn frames_come_back_however_the_bytes_are_cut(
        sent in proptest::collection::vec(frames(), 0..8),
        cuts in proptest::collection::vec(0_usize..200, 0..20),
    ) {
        let stream: Vec<u8> =
            sent.iter().flat_map(|frame| frame.to_bytes(HOST_TO_GUEST).unwrap()).collect();
        prop_assert_eq!(decode_all(&stream, &cuts, HOST_TO_GUEST).unwrap(), sent);
    }

    #[test]
    fn any_bytes_are_frames_or_an_error(stream in proptest::collection::vec(any::<u8>(), 0..400)) {
        if let Ok(frames) = decode_all(&stream, &[], GUEST_TO_HOST) {
            let size: u64 = frames.iter().map(Frame::size).sum();
            prop_assert!(size <= stream.len() as u64);
        }
    }

    #[test]
    fn a_type_is_the_sum_of_its_parts(bits in any::<u32>()) {
        let whole = MessageType(bits);
        let again =
            MessageType::new(whole.kind(), whole.category(), whole.number(), whole.version());
        prop_assert_eq!(again, whole);
    }
}

#[test]
fn a_size_below_the_header_and_one_above_the_limit_are_refused() {
    let mut header = [0; HEADER as usize];
    for (size, fits) in [
        (0_u32, false),
        (15, false),
        (16, true),
        (65_536, true),
        (65_537, false),
        (u32::MAX, false),
    ] {
        header[4..8].copy_from_slice(&size.to_le_bytes());
        let verdict = Header::parse(&header, GUEST_TO_HOST);
        assert_eq!(verdict.is_ok(), fits, "size {size}: {verdict:?}");
    }
}

#[test]
fn a_frame_its_reader_would_refuse_is_not_written() {
    let body = vec![b' '; GUEST_TO_HOST as usize - 15];
    let frame = Frame { message_type: MessageType::START, id: 1, body };
    assert!(matches!(
        frame.to_bytes(GUEST_TO_HOST),
        Err(FrameError::TooLarge { size: 65_537, .. })
    ));
}

#[test]
fn the_response_of_a_request_differs_in_the_kind_only() {
    let request = MessageType::EXECUTE_PROCESS;
    assert_eq!(request.response(), MessageType(0x2010_0501));
    assert_eq!((request.kind(), request.response().kind()), (Kind::Request, Kind::Response));
    assert_eq!(MessageType::LIST_STATE.category(), Category::Coracle);
    assert_eq!(request.to_string(), "ExecuteProcess request");
    assert_eq!(MessageType(0x2010_FF01).to_string(), "0x2010ff01");
}

#[tokio::test]
async fn the_end_of_the_stream_is_clean_only_between_two_frames() {
    let frame = Frame { message_type: MessageType::START, id: 7, body: b"{}".to_vec() };
    let bytes = frame.to_bytes(HOST_TO_GUEST).unwrap();

    let mut reader = FrameReader::new(&bytes[..], HOST_TO_GUEST);
    assert_eq!(reader.next().await.unwrap(), Some(frame));
    assert_eq!(reader.next().await.unwrap(), None);

    let mut reader = FrameReader::new(&bytes[..17], HOST_TO_GUEST);
    assert!(matches!(reader.next().await, Err(FrameError::Truncated { had: 17 })));
}
