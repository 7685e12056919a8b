//! The rules of a call on the host's end, against a scripted guest.

use std::time::Duration;

use coracle_bridge::channel::ChannelDir;
use coracle_bridge::client::{BridgeError, ConnectOptions, Container, GuestConnection, Session};
use coracle_bridge::frame::{Frame, MessageType};
use coracle_bridge::hresult::Hresult;
use coracle_bridge::message::{
    Capabilities, ContainerConfig, ContainerId, ContainerNotification, Create, Created,
    DeleteContainerState, Done, DumpStacks, GetProperties, Negotiate, Negotiated, Notification,
    NotificationType, Properties, PropertiesAnswer, PropertiesQuery, Response, ShutdownForced,
    ShutdownGraceful, Stacks, Start, SystemConfig, TraceContext,
};
use coracle_bridge::wire::{JsonString, Side};
use tokio::io::AsyncWriteExt;

use crate::bed::{PATIENCE, ScriptedGuest, ok, scripted, soon};

const LIMIT: Duration = Duration::from_secs(60);

fn stacks(text: &str) -> Stacks {
    Stacks { guest_stacks: text.to_owned() }
}

fn exit_of(id: &str) -> Frame {
    let notification = Notification {
        container_id: ContainerId::from(id),
        body: ContainerNotification::exit(NotificationType::FORCED_EXIT),
        ..Notification::default()
    };
    let body = notification.encode(Side::Guest).unwrap();
    Frame { message_type: MessageType::CONTAINER_NOTIFICATION, id: 0, body }
}

/// Makes a container; the guest agrees.
async fn create(
    host: &GuestConnection,
    guest: &mut ScriptedGuest,
    id: &str,
) -> Result<Container, BridgeError> {
    let config = ContainerConfig::default();
    let created = guest.serve::<Create>(Created::default());
    tokio::join!(host.create_container(id, &config), created).0
}

/// The cause behind an error that says that the bridge is closed.
fn cause(error: &BridgeError) -> String {
    assert!(error.is_closed(), "{error}");
    assert_eq!(error.to_string(), "bridge closed");
    let mut text = String::new();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text = format!("{text}{error}; ");
        source = error.source();
    }
    text
}

#[tokio::test]
async fn a_call_comes_back_with_what_the_guest_answered() {
    let (host, mut guest, _dir) = scripted(Session::Plain, LIMIT).await;
    let text = "a \"quoted\"\ttext <&> with ünïcode\n";
    let (answer, request) =
        tokio::join!(host.dump_stacks(), guest.serve::<DumpStacks>(stacks(text)));
    assert_eq!(answer.unwrap(), text);
    assert!(request.container_id.is_vm());
    assert_eq!(request.activity_id.0, "00000000-0000-0000-0000-000000000000");
    assert_eq!(request.trace, None);
}

#[tokio::test]
async fn answers_may_come_in_any_order() {
    let (host, mut guest, _dir) = scripted(Session::Plain, LIMIT).await;
    let script = async {
        let mut asked = Vec::new();
        for _ in 0..3 {
            let (frame, request) = guest.expect::<GetProperties>().await;
            asked.push((frame, request));
        }
        for (frame, request) in asked.iter().rev() {
            let list = coracle_bridge::message::ProcessEntry {
                process_id: request.container_id.as_str().parse().unwrap(),
            };
            let properties = Properties { process_list: vec![list], metrics: None };
            let body = PropertiesAnswer { properties: properties.into() };
            guest.answer(frame, &ok(request, body)).await;
        }
    };
    let query = PropertiesQuery::default();
    let ask = async |id: &str| host.properties(&id.into(), &query).await.unwrap();
    let (one, two, three, ()) = tokio::join!(ask("1"), ask("2"), ask("3"), script);
    let pids = [one, two, three].map(|found| found.process_list[0].process_id);
    assert_eq!(pids, [1, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_does_not_answer_in_time_loses_the_bridge() {
    let (host, _guest, _dir) = scripted(Session::Plain, LIMIT).await;
    let started = tokio::time::Instant::now();
    let error = host.dump_stacks().await.unwrap_err();
    assert_eq!(started.elapsed(), LIMIT);
    assert!(cause(&error).contains("message timeout"));
    assert!(cause(&host.closed().await).contains("message timeout"));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_may_be_given_up_leaves_the_bridge_alive() {
    let (host, mut guest, _dir) = scripted(Session::Plain, LIMIT).await;
    let id = ContainerId::from("c");
    let query = PropertiesQuery::default();
    let asked = tokio::time::timeout(Duration::from_millis(10), host.properties(&id, &query));
    assert!(asked.await.is_err());
    let (late, request) = guest.expect::<GetProperties>().await;
    // Long after the limit of the call, nobody has died of it.
    tokio::time::sleep(10 * LIMIT).await;
    let (answer, _) = tokio::join!(host.dump_stacks(), guest.serve::<DumpStacks>(stacks("1")));
    assert_eq!(answer.unwrap(), "1");
    // And the answer that comes at last is of no interest.
    guest
        .answer(&late, &ok(&request, PropertiesAnswer { properties: Properties::default().into() }))
        .await;
    let (answer, _) = tokio::join!(host.dump_stacks(), guest.serve::<DumpStacks>(stacks("2")));
    assert_eq!(answer.unwrap(), "2");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_may_not_be_given_up_is_seen_through_when_its_caller_is_gone() {
    let (host, mut guest, _dir) = scripted(Session::Plain, LIMIT).await;
    let config = ContainerConfig::default();
    let create = host.create_container("c", &config);
    assert!(tokio::time::timeout(Duration::from_millis(10), create).await.is_err());
    let _asked = guest.expect::<Create>().await;
    let error = host.closed().await;
    assert!(cause(&error).contains("no answer to the Create request"));
}

#[tokio::test]
async fn a_create_whose_caller_is_gone_still_frees_its_id_when_it_fails() {
    let (host, mut guest, _dir) = scripted(Session::Plain, LIMIT).await;
    let config = ContainerConfig::default();
    {
        let create = host.create_container("c", &config);
        let asked = guest.expect::<Create>();
        tokio::pin!(create);
        let (frame, _) = tokio::select! {
            asked = asked => asked,
            _ = &mut create => unreachable!("not answered yet"),
        };
        let again = host.create_container("c", &config).await;
        assert!(matches!(again, Err(BridgeError::ContainerExists(_))));
        guest.refuse(&frame, Hresult::FAIL, "no").await;
    }
    // The answer was sent before this call's, so it has been dealt with.
    let (_, _) = tokio::join!(host.dump_stacks(), guest.serve::<DumpStacks>(stacks("")));
    let created = create(&host, &mut guest, "c").await;
    assert_eq!(created.unwrap().id().as_str(), "c");
}

#[tokio::test]
async fn after_a_fault_every_later_call_gets_its_cause() {
    let (host, mut guest, _dir) = scripted(Session::Plain, LIMIT).await;
    let answer_to_nobody = Response { body: Done {}, ..Response::default() };
    guest.send(&answer_to_nobody.to_frame(MessageType::START, 77).unwrap()).await;
    let first = soon(host.closed()).await;
    assert!(cause(&first).contains("call 77"));
    let later = host.dump_stacks().await.unwrap_err();
    assert_eq!(cause(&later), cause(&first));
    let create = host.create_container("c", &ContainerConfig::default()).await.unwrap_err();
    assert_eq!(cause(&create), cause(&first));
}

#[tokio::test]
async fn a_guest_that_closes_between_two_messages_ends_the_bridge_without_a_fault() {
    let (host, mut guest, _dir) = scripted(Session::Plain, LIMIT).await;
    let script = async {
        guest.expect::<DumpStacks>().await;
        drop(guest);
    };
    let (answer, ()) = tokio::join!(host.dump_stacks(), script);
    assert!(matches!(answer, Err(BridgeError::Closed)));
    assert!(matches!(host.dump_stacks().await, Err(BridgeError::Closed)));
}

#[tokio::test]
async fn closing_the_bridge_fails_what_is_pending_and_what_comes_later() {
    let (host, mut guest, _dir) = scripted(Session::Plain, LIMIT).await;
    let script = async {
        guest.expect::<DumpStacks>().await;
        host.close();
    };
    let (answer, ()) = tokio::join!(host.dump_stacks(), script);
    assert!(matches!(answer, Err(BridgeError::Closed)));
    assert!(matches!(host.dump_stacks().await, Err(BridgeError::Closed)));
    assert_eq!(guest.next().await, None);
}

#[tokio::test]
async fn the_connection_is_closed_with_its_last_handle() {
    let (host, mut guest, _dir) = scripted(Session::Plain, LIMIT).await;
    let other = host.clone();
    drop(host);
    let (answer, _) = tokio::join!(other.dump_stacks(), guest.serve::<DumpStacks>(stacks("")));
    answer.unwrap();
    drop(other);
    assert_eq!(soon(guest.next()).await, None);
}

/// Sends bytes to a host that waits for an answer, and tells why the bridge ended.
async fn killed_by(bytes: &[u8]) -> String {
    let (host, mut guest, _dir) = scripted(Session::Plain, LIMIT).await;
    let script = async {
        guest.expect::<DumpStacks>().await;
        // The host may hang up before it has taken everything.
        let _ = guest.writer.write_all(bytes).await;
        let _ = guest.writer.shutdown().await;
        while let Ok(Some(_)) = guest.reader.next().await {}
    };
    let (answer, ()) = soon(async { tokio::join!(host.dump_stacks(), script) }).await;
    cause(&answer.unwrap_err())
}

fn frame(message_type: u32, size: u32, id: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(message_type.to_le_bytes());
    bytes.extend(size.to_le_bytes());
    bytes.extend(id.to_le_bytes());
    bytes.extend(body);
    bytes
}

#[tokio::test]
async fn what_a_host_cannot_understand_ends_the_bridge() {
    const STACKS: u32 = 0x2010_0C01;
    // The negotiation had the id 0, so the call that waits has 1.
    for (bytes, says) in [
        (frame(STACKS, 15, 1, b""), "less than its header"),
        (frame(STACKS, 0x1_0001, 1, b""), "more than the limit"),
        (frame(STACKS, u32::MAX, 1, &vec![b'{'; 1 << 20]), "more than the limit"),
        (frame(STACKS, 18, 1, b"{"), "inside a frame"),
        (frame(STACKS, 17, 1, b"{"), "cannot be read"),
        (frame(STACKS, 16, 1, b""), "cannot be read"),
        (frame(STACKS, 26, 1, b"{\"Resul\"}}"), "cannot be read"),
        (frame(STACKS, 40, 1, b"{\"Result\": 3224830222.0}"), "cannot be read"),
        (frame(STACKS, 33, 1, b"{\"ActivityId\":7}\n"), "cannot be read"),
        (frame(STACKS, 34, 1, b"{\"ActivityId\":\"\"}\n"), "no GUID"),
        (frame(STACKS, 18, 2, b"{}"), "call 2"),
        (frame(0x1010_0C01, 18, 1, b"{}"), "not for a host"),
        (frame(0x2FF0_0C01, 18, 1, b"{}"), "not for a host"),
        (frame(0x3010_0201, 18, 0, b"{}"), "not for a host"),
        (frame(0x3010_0101, 18, 0, b"{}"), "container \"\""),
        (frame(0x3010_0101, 17, 0, b"["), "notification"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), "limit"),
        (vec![0; 64], "less than its header"),
    ] {
        let cause = killed_by(&bytes).await;
        assert!(cause.contains(says), "{says}: {cause}");
    }
}

#[tokio::test]
async fn a_frame_of_exactly_64_kib_is_taken_whatever_number_it_answers_under() {
    let (host, mut guest, _dir) = scripted(Session::Plain, LIMIT).await;
    let script = async {
        let (asked, _) = guest.expect::<DumpStacks>().await;
        let mut body = b"{\"GuestStacks\":\"".to_vec();
        body.resize(0x1_0000 - 16 - 2, b'x');
        body.extend(b"\"}");
        // The id says what it answers; the number does not matter.
        let message_type = MessageType::START.response();
        guest.send(&Frame { message_type, id: asked.id, body }).await;
    };
    let (answer, ()) = tokio::join!(host.dump_stacks(), script);
    assert_eq!(answer.unwrap().len(), 0x1_0000 - 16 - 18);
}

#[tokio::test]
async fn a_request_too_large_for_a_guest_is_refused_here_and_harms_nothing() {
    let (host, mut guest, _dir) = scripted(Session::Plain, LIMIT).await;
    let spec = serde_json::json!({ "hostname": "x".repeat(5 << 20) });
    let config = ContainerConfig::new("/run/gcs/c/c", &spec).unwrap();
    let error = host.create_container("c", &config).await.unwrap_err();
    assert!(matches!(error, BridgeError::TooLarge(_)), "{error}");
    let created = create(&host, &mut guest, "c").await;
    created.unwrap();
}

#[tokio::test]
async fn the_guests_error_is_told_with_code_text_and_records() {
    let (host, mut guest, _dir) = scripted(Session::Plain, LIMIT).await;
    let id = ContainerId::from("c");
    let script = async {
        let (frame, _) = guest.expect::<DeleteContainerState>().await;
        guest.refuse(&frame, Hresult::FAIL, "it is broken").await;
        let (frame, _) = guest.expect::<DeleteContainerState>().await;
        let bare =
            Response { result: Hresult::NO_SUCH_SYSTEM, body: Done {}, ..Response::default() };
        guest.answer(&frame, &bare).await;
    };
    let calls = async {
        let first = host.delete_container_state(&id).await.unwrap_err();
        (first, host.delete_container_state(&id).await.unwrap_err())
    };
    let ((first, second), ()) = tokio::join!(calls, script);
    assert_eq!(first.to_string(), "guest RPC failure: it is broken");
    assert_eq!(first.hresult(), Some(Hresult::FAIL));
    let BridgeError::Rpc { records, .. } = first else { panic!("{first}") };
    assert_eq!(records[0].message, "it is broken");
    assert_eq!(second.to_string(), "guest RPC failure: no such container (0xc037010e)");
}

#[tokio::test]
async fn the_negotiation_of_a_plain_host_is_hcsshims_to_the_byte() {
    let (host, guest) = tokio::io::duplex(1 << 16);
    let mut guest = ScriptedGuest::new(guest);
    let options = ConnectOptions {
        session: Session::Plain,
        trace: Some(TraceContext { trace_id: "ab".repeat(16), ..TraceContext::default() }),
        ..ConnectOptions::new(ChannelDir::new("/nonexistent"))
    };
    let script = async {
        let (frame, request) = guest.expect::<Negotiate>().await;
        let golden = "{\"ContainerId\":\"\",\"ActivityId\":\"00000000-0000-0000-0000-000000000000\",\
                      \"MinimumVersion\":4,\"MaximumVersion\":4}\n";
        assert_eq!(String::from_utf8(frame.body.clone()).unwrap(), golden);
        assert_eq!(frame.id, 0);
        let body = Negotiated { version: 4, capabilities: Capabilities::linux(), coracle: None };
        guest.answer(&frame, &ok(&request, body)).await;
        guest.serve::<DumpStacks>(stacks("")).await
    };
    let calls = async {
        let host = GuestConnection::connect(host, options).await.unwrap();
        assert_eq!((host.protocol(), host.os().as_str()), (4, "linux"));
        assert!(host.capabilities().delete_container_state_supported);
        assert_eq!((host.session(), host.boot_id()), (None, None));
        host.dump_stacks().await.unwrap();
    };
    let ((), request) = tokio::join!(calls, script);
    assert_eq!(request.trace.unwrap().trace_id, "ab".repeat(16));
}

#[tokio::test]
async fn a_version_nobody_offered_is_refused() {
    let (host, guest) = tokio::io::duplex(1 << 16);
    let mut guest = ScriptedGuest::new(guest);
    let options = ConnectOptions::new(ChannelDir::new("/nonexistent"));
    let body = Negotiated { version: 5, ..Negotiated::default() };
    let (connection, _) =
        tokio::join!(GuestConnection::connect(host, options), guest.serve::<Negotiate>(body));
    let error = connection.unwrap_err();
    assert_eq!(error.to_string(), "unexpected version 5 returned");
    assert_eq!(soon(guest.next()).await, None);
}

#[tokio::test]
async fn a_windows_guest_hears_of_the_vm_as_of_a_container() {
    let (host, guest) = tokio::io::duplex(1 << 16);
    let mut guest = ScriptedGuest::new(guest);
    let options = ConnectOptions::new(ChannelDir::new("/nonexistent"));
    let script = async {
        let capabilities = Capabilities {
            send_host_create_message: true,
            send_host_start_message: true,
            ..Capabilities::default()
        };
        let body = Negotiated { version: 4, capabilities, coracle: None };
        guest.serve::<Negotiate>(body).await;
        let create = guest.serve::<Create<SystemConfig>>(Created::default()).await;
        assert!(create.container_id.is_vm());
        let JsonString(config) = create.body.container_config;
        assert_eq!(config.unwrap().system_type, "Container");
        assert!(guest.serve::<Start>(Done {}).await.container_id.is_vm());
    };
    let (connection, ()) = tokio::join!(GuestConnection::connect(host, options), script);
    assert_eq!(connection.unwrap().os(), "windows");
}

#[tokio::test]
async fn a_live_id_is_refused_here_and_free_again_after_the_exit() {
    let (host, mut guest, _dir) = scripted(Session::Plain, LIMIT).await;
    let config = ContainerConfig::default();
    let container = create(&host, &mut guest, "foo").await;
    let container = container.unwrap();
    let again = host.create_container("foo", &config).await.unwrap_err();
    assert_eq!(again.to_string(), "container foo already exists");
    guest.send(&exit_of("foo")).await;
    soon(container.wait()).await.unwrap();
    assert_eq!(container.exit_type(), Some(NotificationType::FORCED_EXIT));
    let again = create(&host, &mut guest, "foo").await;
    assert_eq!(again.unwrap().exit_type(), None);
}

#[tokio::test]
async fn terminate_is_followed_by_the_notification_that_ends_the_wait() {
    let (host, mut guest, _dir) = scripted(Session::Plain, LIMIT).await;
    let container = create(&host, &mut guest, "foo").await;
    let container = container.unwrap();
    let script = async {
        guest.serve::<ShutdownForced>(Done {}).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        guest.send(&exit_of("foo")).await;
    };
    let calls = async {
        container.terminate().await.unwrap();
        let (one, two) = tokio::join!(container.wait(), container.wait());
        one.and(two)
    };
    let (waited, ()) = soon(async { tokio::join!(calls, script) }).await;
    waited.unwrap();
}

#[tokio::test]
async fn a_lost_bridge_ends_the_wait_for_a_plain_guests_container_without_an_error() {
    let (host, mut guest, _dir) = scripted(Session::Plain, LIMIT).await;
    let container = create(&host, &mut guest, "foo").await;
    drop(guest);
    soon(container.unwrap().wait()).await.unwrap();
}

#[tokio::test]
async fn a_lost_bridge_says_nothing_about_the_container_of_a_guest_with_sessions() {
    let (host, mut guest, _dir) = scripted(Session::Next, LIMIT).await;
    let container = create(&host, &mut guest, "foo").await;
    drop(guest);
    let error = soon(container.unwrap().wait()).await.unwrap_err();
    assert_eq!(error.to_string(), "bridge closed");
}

#[tokio::test]
async fn a_host_that_is_done_ends_its_waits_for_containers_without_an_error() {
    for session in [Session::Plain, Session::Next] {
        let (host, mut guest, _dir) = scripted(session, LIMIT).await;
        let container = create(&host, &mut guest, "foo").await.unwrap();
        let wait = async {
            tokio::task::yield_now().await;
            host.close();
        };
        let (waited, ()) = soon(async { tokio::join!(container.wait(), wait) }).await;
        waited.unwrap();
        soon(container.wait()).await.unwrap();
    }
}

#[tokio::test]
async fn a_container_that_is_gone_has_been_shut_down() {
    let (host, mut guest, _dir) = scripted(Session::Plain, LIMIT).await;
    let container = create(&host, &mut guest, "foo").await;
    let container = container.unwrap();
    for (hresult, gone) in
        [(Hresult::NO_SUCH_SYSTEM, true), (Hresult::ALREADY_STOPPED, true), (Hresult::FAIL, false)]
    {
        let script = async {
            let (frame, _) = guest.expect::<ShutdownGraceful>().await;
            guest.refuse(&frame, hresult, "x").await;
        };
        let (stopped, ()) = tokio::join!(container.shutdown(), script);
        assert_eq!(stopped.is_ok(), gone, "{hresult}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_without_an_answer_is_given_up_after_30_s_and_the_bridge_lives() {
    let (host, mut guest, _dir) = scripted(Session::Plain, LIMIT).await;
    let container = create(&host, &mut guest, "foo").await;
    let started = tokio::time::Instant::now();
    let error = container.unwrap().shutdown().await.unwrap_err();
    assert_eq!(started.elapsed(), Duration::from_secs(30));
    assert!(matches!(error, BridgeError::DeadlineExceeded { operation: "shutdown", .. }));
    assert!(error.to_string().contains("deadline exceeded"), "{error}");
    guest.expect::<ShutdownGraceful>().await;
    let (answer, _) = tokio::join!(host.dump_stacks(), guest.serve::<DumpStacks>(stacks("1")));
    answer.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_wait_for_a_process_has_no_limit() {
    let (host, mut guest, _dir) = scripted(Session::Plain, LIMIT).await;
    let script = async {
        guest
            .serve::<coracle_bridge::message::ExecuteProcess>(coracle_bridge::message::Executed {
                process_id: 7,
            })
            .await;
        let (frame, wait) = guest.expect::<coracle_bridge::message::WaitForProcess>().await;
        assert_eq!((wait.body.process_id, wait.body.timeout_in_ms), (7, u32::MAX));
        tokio::time::sleep(100 * LIMIT).await;
        let exited = coracle_bridge::message::Exited { exit_code: 3 };
        guest.answer(&frame, &ok(&wait, exited)).await;
    };
    let calls = async {
        let process = host.create_process(&crate::bed::command("x", "")).await.unwrap();
        assert_eq!(process.exit_code().unwrap_err().to_string(), "process 7 has not exited");
        let (one, two) = tokio::join!(process.wait(), process.wait());
        assert_eq!((one.unwrap(), two.unwrap()), (3, 3));
        assert_eq!(process.exit_code().unwrap(), 3);
    };
    tokio::join!(calls, script);
}

#[tokio::test]
async fn a_guest_that_sends_frames_without_end_cannot_make_the_host_hang() {
    let (host, mut guest, _dir) = scripted(Session::Plain, LIMIT).await;
    let flood = async {
        let exit = exit_of("nobody").to_bytes(u32::MAX).unwrap();
        while guest.writer.write_all(&exit).await.is_ok() {}
    };
    let (answer, ()) =
        tokio::time::timeout(PATIENCE, async { tokio::join!(host.dump_stacks(), flood) })
            .await
            .unwrap();
    assert!(cause(&answer.unwrap_err()).contains("nobody"));
}

#[tokio::test]
async fn a_guest_that_stops_reading_does_not_keep_the_host_from_hearing_it() {
    let (host, mut guest, _dir) = scripted(Session::Plain, LIMIT).await;
    // More than the connection holds, so that the driver cannot write it all.
    let spec = serde_json::json!({ "hostname": "x".repeat(3 << 20) });
    let config = ContainerConfig::new("/run/gcs/c/c", &spec).unwrap();
    let (first, second) = (host.clone(), host.clone());
    let config_too = config.clone();
    let creates = [
        tokio::spawn(async move { first.create_container("a", &config).await.map(drop) }),
        tokio::spawn(async move { second.create_container("b", &config_too).await.map(drop) }),
    ];
    tokio::task::yield_now().await;
    guest.send(&exit_of("a-stranger")).await;
    assert!(cause(&soon(host.closed()).await).contains("a-stranger"));
    for create in creates {
        assert!(soon(create).await.unwrap().unwrap_err().is_closed());
    }
}
