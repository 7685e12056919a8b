//! The rules of the guest's end, against a scripted host.

use std::sync::Arc;
use std::time::Duration;

use coracle_bridge::client::{BridgeError, GuestConnection, Session};
use coracle_bridge::frame::{FrameError, GUEST_TO_HOST, HOST_TO_GUEST, MessageType};
use coracle_bridge::hresult::Hresult;
use coracle_bridge::message::{
    ContainerId, CoracleHost, Create, DeleteContainerState, Done, DumpStacks, ExecuteProcess,
    ExecuteSettings, GetProperties, ListState, MappedVirtualDisk, Modify, Negotiate, Negotiated,
    ProcessParameters, Resource, Response, ShutdownForced, SignalOptions, SignalProcess, Start,
    Verb, VsockStdioRelay, WAIT_FOREVER, WaitForProcess,
};
use coracle_bridge::server::{ServeError, Served, Stop, Target};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::bed::{Bed, ScriptedHost, beside, command, config, soon};
use crate::fake::Seen;

fn vm() -> String {
    ContainerId::vm().0
}

fn offer(session: u64) -> Negotiate {
    Negotiate::new(Some(CoracleHost { version: 1, session, max_frame: 1 << 20 }))
}

/// A plain host, negotiated.
async fn plain(bed: &Bed) -> ScriptedHost {
    let mut host = ScriptedHost::new(bed.dial().0);
    let response = host.call("", Negotiate::new(None)).await;
    assert!(response.result.is_ok());
    assert_eq!(response.body.coracle, None);
    host
}

fn execute(parameters: ProcessParameters, ports: VsockStdioRelay) -> ExecuteProcess {
    ExecuteProcess {
        settings: ExecuteSettings {
            process_parameters: parameters.into(),
            stdio_relay_settings: None,
            vsock_stdio_relay_settings: Some(ports),
        },
    }
}

async fn run(host: &mut ScriptedHost, id: &str, parameters: ProcessParameters) -> u32 {
    let response = host.call(id, execute(parameters, VsockStdioRelay::default())).await;
    assert!(response.result.is_ok(), "{}", response.error_message);
    response.body.process_id
}

fn forever(process_id: u32) -> WaitForProcess {
    WaitForProcess { process_id, timeout_in_ms: WAIT_FOREVER }
}

fn signal(process_id: u32, signal: i32) -> SignalProcess {
    SignalProcess { process_id, options: Some(SignalOptions { signal }) }
}

#[tokio::test]
async fn nothing_is_served_before_a_negotiation_whose_range_holds_4() {
    let bed = Bed::new();
    let mut host = ScriptedHost::new(bed.dial().0);
    let early = host.call("c", Start {}).await;
    assert_eq!(early.result, Hresult::NOT_IMPLEMENTED);
    for (minimum_version, maximum_version) in [(3, 3), (5, 9), (5, 4)] {
        let request = Negotiate { minimum_version, maximum_version, coracle: None };
        let refused = host.call("", request).await;
        assert_eq!(refused.result, Hresult::UNSUPPORTED_PROTOCOL);
    }
    let request = Negotiate { minimum_version: 0, maximum_version: 9, coracle: None };
    let agreed = host.call("", request).await;
    assert!(agreed.result.is_ok());
    assert_eq!(agreed.body.version, 4);
    assert!(agreed.body.capabilities.guest_defined_capabilities.unwrap().dump_stacks_supported);
    assert!(host.call("c", Start {}).await.result.is_ok());
    let again = host.call("", Negotiate::new(None)).await;
    assert_eq!(again.result, Hresult::NOT_IMPLEMENTED);
}

#[tokio::test]
async fn an_unknown_message_is_answered_under_its_own_number() {
    let bed = Bed::new();
    let mut host = plain(&bed).await;
    for unknown in [0x1010_FF01, 0x1010_0202, 0x1F00_0101, 0x3010_0101] {
        let id = host.ask_raw(MessageType(unknown), b"{\"ActivityId\":\"mine\"}").await;
        let frame = host.next().await.unwrap();
        assert_eq!(frame.message_type, MessageType(unknown).response());
        assert_eq!(frame.id, id);
        let response: Response<Done> = Response::decode(&frame.body).unwrap();
        assert_eq!(response.result, Hresult::NOT_IMPLEMENTED);
        assert_eq!(response.activity_id.unwrap().0, "mine");
    }
}

#[tokio::test]
async fn a_body_that_cannot_be_read_is_answered_and_stacks_are_dumped_all_the_same() {
    let bed = Bed::new();
    bed.fake.set_stacks("here".to_owned());
    let mut host = plain(&bed).await;
    for body in ["", "{", "{}{}", "[]", "{\"ContainerId\":7}"] {
        let id = host.ask_raw(MessageType::START, body.as_bytes()).await;
        let response: Response<Done> = host.answer(id).await;
        assert_eq!(response.result, Hresult::INVALID_JSON, "{body}");
        let id = host.ask_raw(MessageType::DUMP_STACKS, body.as_bytes()).await;
        let stacks = host.answer::<coracle_bridge::message::Stacks>(id).await;
        assert_eq!(stacks.body.guest_stacks, "here");
    }
}

#[tokio::test]
async fn frames_outside_their_limits_end_the_connection_and_nothing_else() {
    let bed = Bed::new();
    let mut host = plain(&bed).await;
    assert!(host.call("c", Create::new(config("sleep"))).await.result.is_ok());
    for (size, ends) in
        [(15u32, "less than its header"), (HOST_TO_GUEST + 1, "more than the limit")]
    {
        let (mut stream, served) = bed.dial();
        let mut header = Vec::new();
        header.extend(MessageType::START.0.to_le_bytes());
        header.extend(size.to_le_bytes());
        header.extend(0u64.to_le_bytes());
        stream.write_all(&header).await.unwrap();
        let ServeError::Frame(fault) = soon(served).await.unwrap().unwrap_err();
        assert!(fault.to_string().contains(ends), "{fault}");
    }
    let (mut stream, served) = bed.dial();
    stream.write_all(&[1, 2, 10, 16, 99, 0, 0, 0]).await.unwrap();
    drop(stream);
    let ended = soon(served).await.unwrap().unwrap_err();
    assert!(matches!(ended, ServeError::Frame(FrameError::Truncated { had: 8 })), "{ended:?}");
    let again = host.call("c", Create::new(config("sleep"))).await;
    assert_eq!(again.result, Hresult::ALREADY_EXISTS);
}

#[tokio::test]
async fn a_blocked_wait_does_not_delay_a_signal() {
    let bed = Bed::new();
    let mut host = plain(&bed).await;
    let pid = run(&mut host, &vm(), command("sleep", "")).await;
    let wait = host.ask(&vm(), forever(pid)).await;
    let sent = host.call(&vm(), signal(pid, 15)).await;
    assert!(sent.result.is_ok());
    let exited = host.answer::<coracle_bridge::message::Exited>(wait).await;
    assert_eq!(exited.body.exit_code, 143);
    let target = Target { container: None, pid };
    assert_eq!(bed.fake.seen(), [Seen::Signal(target, 15)]);
}

#[tokio::test]
async fn signals_and_sizes_reach_processes_of_the_vm_itself() {
    let bed = Bed::new();
    let host = bed.connect(Session::Plain).await;
    let process = host.create_process(&command("sleep", "")).await.unwrap();
    process.resize(120, 40).await.unwrap();
    assert!(process.kill().await.unwrap());
    assert_eq!(soon(process.wait()).await.unwrap(), 137);
    assert!(!process.kill().await.unwrap());
    let target = Target { container: None, pid: process.pid() };
    assert_eq!(bed.fake.seen(), [Seen::Resize(target.clone(), 120, 40), Seen::Signal(target, 9)]);
}

#[tokio::test]
async fn each_thing_that_is_not_there_has_its_code() {
    let bed = Bed::new();
    let mut host = plain(&bed).await;
    assert!(host.call("c", Create::new(config("sleep"))).await.result.is_ok());
    let pid = run(&mut host, "c", command("", "")).await;
    let gone = Hresult::NO_SUCH_SYSTEM;
    assert_eq!(host.call("x", ShutdownForced {}).await.result, gone);
    assert_eq!(host.call("x", DeleteContainerState {}).await.result, gone);
    assert_eq!(host.call("x", GetProperties::default()).await.result, gone);
    assert_eq!(host.call(&vm(), GetProperties::default()).await.result, gone);
    assert_eq!(host.call("x", forever(pid)).await.result, gone);
    assert_eq!(host.call("x", signal(pid, 1)).await.result, gone);
    assert_eq!(
        host.call("x", execute(command("sleep", ""), VsockStdioRelay::default())).await.result,
        gone
    );
    assert_eq!(host.call("c", forever(9999)).await.result, Hresult::NOT_FOUND);
    // A process of a container is not one of the VM's.
    assert_eq!(host.call(&vm(), signal(pid, 1)).await.result, Hresult::NOT_FOUND);
    assert_eq!(host.call("c", signal(pid, 65)).await.result, Hresult::INVALID_ARGUMENT);
    assert_eq!(host.call("c", signal(pid, -1)).await.result, Hresult::INVALID_ARGUMENT);
    let again = host.call("c", Create::new(config("sleep"))).await;
    assert_eq!(again.result, Hresult::ALREADY_EXISTS);
    assert_eq!(again.error_message, "HRESULT: 0xc037010f");
    assert_eq!(again.error_records[0].result, Hresult::ALREADY_EXISTS);
    let limited = WaitForProcess { process_id: pid, timeout_in_ms: 1 };
    assert_eq!(host.call("c", limited).await.result, Hresult::TIMEOUT);
    let no_id = host.call(&vm(), Create::new(config("sleep"))).await;
    assert_eq!(no_id.result, Hresult::INVALID_ARGUMENT);
    // Start says yes to any id.
    assert!(host.call("x", Start {}).await.result.is_ok());
}

#[tokio::test]
async fn a_failed_create_leaves_the_id_free() {
    let bed = Bed::new();
    let host = bed.connect(Session::Plain).await;
    for _ in 0..2 {
        let error = host.create_container("bad", &config("sleep")).await.unwrap_err();
        assert_eq!(error.to_string(), "guest RPC failure: the image is broken");
    }
}

#[tokio::test]
async fn a_plain_host_hears_of_a_containers_exit_once_its_inits_exit_was_fetched() {
    let bed = Bed::new();
    let mut host = plain(&bed).await;
    assert!(host.call("c", Create::new(config("exit 7"))).await.result.is_ok());
    let pid = run(&mut host, "c", command("", "")).await;
    // Nothing is told before somebody has the exit code: the next frame is an answer.
    assert!(host.call("c", Start {}).await.result.is_ok());
    let exited = host.call("c", forever(pid)).await;
    assert_eq!(exited.body.exit_code, 7);
    let told = host.next().await.unwrap();
    assert_eq!(told.message_type, MessageType::CONTAINER_NOTIFICATION);
    assert_eq!(told.id, 0);
    let golden = "{\"ContainerId\":\"c\",\"ActivityId\":\"\",\"Type\":\"UnexpectedExit\",\
                  \"Operation\":\"None\",\"Result\":0}";
    assert_eq!(String::from_utf8(told.body).unwrap(), golden);
    // A late waiter of an init still gets the code, and nothing is told twice.
    assert_eq!(host.call("c", forever(pid)).await.body.exit_code, 7);
    assert_eq!(host.call("c", signal(pid, 9)).await.result, Hresult::NOT_FOUND);
    assert_eq!(host.call("c", ShutdownForced {}).await.result, Hresult::ALREADY_STOPPED);
    assert!(host.call("c", DeleteContainerState {}).await.result.is_ok());
    assert_eq!(host.call("c", forever(pid)).await.result, Hresult::NO_SUCH_SYSTEM);
    assert!(host.call("c", Create::new(config("sleep"))).await.result.is_ok());
}

#[tokio::test]
async fn the_notification_tells_how_a_container_was_stopped() {
    let bed = Bed::new();
    let host = bed.connect(Session::Plain).await;
    for (id, graceful, kind, code) in
        [("a", true, "GracefulExit", 143), ("b", false, "ForcedExit", 137)]
    {
        let container = host.create_container(id, &config("sleep")).await.unwrap();
        let init = container.create_process(&command("", "")).await.unwrap();
        if graceful { container.shutdown().await } else { container.terminate().await }.unwrap();
        soon(container.wait()).await.unwrap();
        assert_eq!(container.exit_type().unwrap().0, kind);
        assert_eq!(soon(init.wait()).await.unwrap(), code);
    }
    // A container whose init was never started has an exit, too.
    let container = host.create_container("c", &config("sleep")).await.unwrap();
    container.terminate().await.unwrap();
    soon(container.wait()).await.unwrap();
}

#[tokio::test]
async fn a_plain_hosts_process_is_forgotten_with_the_first_answer_to_a_waiter() {
    let bed = Bed::new();
    let mut host = plain(&bed).await;
    let pid = run(&mut host, &vm(), command("exit 3", "")).await;
    assert_eq!(host.call(&vm(), forever(pid)).await.body.exit_code, 3);
    assert_eq!(host.call(&vm(), forever(pid)).await.result, Hresult::NOT_FOUND);
}

#[tokio::test]
async fn a_plain_host_gets_bare_streams() {
    let bed = Bed::new();
    let host = bed.connect(Session::Plain).await;
    assert_eq!(host.session(), None);
    let process = host.create_process(&command("cat", "ioe")).await.unwrap();
    let stdio = process.take_stdio();
    let (mut stdin, mut stdout) = (stdio.stdin.unwrap(), stdio.stdout.unwrap());
    let text = crate::fake::pattern_bytes(0, 200_000);
    let write = async {
        stdin.write_all(&text).await.unwrap();
        stdin.shutdown().await.unwrap();
    };
    let mut got = Vec::new();
    let read = stdout.read_to_end(&mut got);
    let (_, read) = soon(async { tokio::join!(write, read) }).await;
    read.unwrap();
    assert!(got == text);
    assert_eq!(soon(process.wait()).await.unwrap(), 0);
    assert_eq!(bed.bound_ports(), 0);
}

#[tokio::test]
async fn a_plain_host_that_closes_a_stream_breaks_the_pipe_of_its_process() {
    let bed = Bed::new();
    let host = bed.connect(Session::Plain).await;
    let process = host.create_process(&command("count 9000000", "o")).await.unwrap();
    let mut stdout = process.take_stdio().stdout.unwrap();
    stdout.read_u8().await.unwrap();
    stdout.stop().await.unwrap();
    assert_eq!(soon(process.wait()).await.unwrap(), 141);
}

#[tokio::test]
async fn a_stream_that_was_asked_for_and_does_not_exist_ends_at_once() {
    let bed = Bed::new();
    for session in [Session::Plain, Session::Next] {
        let host = bed.connect(session).await;
        let process = host.create_process(&command("tty", "ioe")).await.unwrap();
        let mut stderr = process.take_stdio().stderr.unwrap();
        assert_eq!(soon(stderr.read(&mut [0; 1])).await.unwrap(), 0);
        process.close_stdin();
        assert_eq!(soon(process.wait()).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn a_port_nobody_listens_on_fails_the_start_and_nothing_is_started() {
    let bed = Bed::new();
    let mut host = plain(&bed).await;
    let ports = VsockStdioRelay { std_out: 0x4000_0009, ..VsockStdioRelay::default() };
    let failed = host.call(&vm(), execute(command("exit 0", "o"), ports)).await;
    assert_eq!(failed.result, Hresult::FAIL);
    assert!(failed.error_message.contains("stdout to port 1073741833"));
    assert_eq!(host.call(&vm(), forever(101)).await.result, Hresult::NOT_FOUND);
}

#[tokio::test]
async fn a_command_that_cannot_be_started_is_the_starts_error() {
    let bed = Bed::new();
    for session in [Session::Plain, Session::Next] {
        let host = bed.connect(session).await;
        let error = host.create_process(&command("nonsense", "ioe")).await.unwrap_err();
        assert!(error.to_string().contains("no such program"), "{error}");
    }
}

#[tokio::test]
async fn an_init_is_started_once_and_nothing_is_started_in_a_stopped_container() {
    let bed = Bed::new();
    let host = bed.connect(Session::Next).await;
    let container = host.create_container("c", &config("sleep")).await.unwrap();
    let _init = container.create_process(&command("", "")).await.unwrap();
    let again = container.create_process(&command("", "")).await.unwrap_err();
    assert_eq!(again.hresult(), Some(Hresult::INVALID_STATE));
    let one_more = container.create_process(&beside("exit 4", "")).await.unwrap();
    assert_eq!(soon(one_more.wait()).await.unwrap(), 4);
    container.terminate().await.unwrap();
    soon(container.wait()).await.unwrap();
    let late = container.create_process(&beside("exit 4", "")).await.unwrap_err();
    assert_eq!(late.hresult(), Some(Hresult::ALREADY_STOPPED));
}

#[tokio::test]
async fn changes_reach_the_service_with_what_they_change() {
    let bed = Bed::new();
    let host = bed.connect(Session::Plain).await;
    let disk = Resource::MappedVirtualDisk(MappedVirtualDisk::default());
    host.modify(&ContainerId::vm(), Verb::Add, &disk).await.unwrap();
    let error = host.modify(&"x".into(), Verb::Remove, &disk).await.unwrap_err();
    assert_eq!(error.hresult(), Some(Hresult::NO_SUCH_SYSTEM));
    let container = host.create_container("c", &config("sleep")).await.unwrap();
    container.modify(Verb::Remove, &disk).await.unwrap();
    let seen: Vec<_> =
        bed.fake.seen().into_iter().filter(|seen| matches!(seen, Seen::Modify(_))).collect();
    let expected = ["Add MappedVirtualDisk", "c: Remove MappedVirtualDisk"];
    assert_eq!(seen, expected.map(|text| Seen::Modify(text.to_owned())));
    let mut host = plain(&bed).await;
    let empty = host.call(&vm(), Modify::default()).await;
    assert_eq!(empty.result, Hresult::INVALID_JSON);
}

#[tokio::test]
async fn the_vms_own_shutdown_has_no_answer_and_ends_the_connection() {
    let bed = Bed::new();
    let (stream, served) = bed.dial();
    let host = GuestConnection::connect(stream, bed.options(Session::Next)).await.unwrap();
    soon(host.shutdown()).await.unwrap();
    assert_eq!(soon(served).await.unwrap().unwrap(), Served::PoweringOff);
    assert_eq!(bed.fake.seen(), [Seen::PowerOff(Stop::Graceful)]);
    assert!(matches!(host.closed().await, BridgeError::Closed));
    let host = bed.connect(Session::Plain).await;
    soon(host.power_off()).await.unwrap();
    assert_eq!(bed.fake.seen().last(), Some(&Seen::PowerOff(Stop::Forced)));
}

#[tokio::test]
async fn what_a_lost_connection_asked_for_is_done_all_the_same() {
    let bed = Bed::new();
    let mut host = plain(&bed).await;
    host.ask("slow", Create::new(config("sleep"))).await;
    while !bed.fake.seen().contains(&Seen::Create("slow".to_owned())) {
        tokio::task::yield_now().await;
    }
    drop(host);
    let mut host = plain(&bed).await;
    // It is not there yet, but its id is taken.
    assert_eq!(host.call("slow", ShutdownForced {}).await.result, Hresult::NO_SUCH_SYSTEM);
    let again = host.call("slow", Create::new(config("sleep"))).await;
    assert_eq!(again.result, Hresult::ALREADY_EXISTS);
    bed.fake.go.notify_one();
    soon(async {
        while !host.call("slow", GetProperties::default()).await.result.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_higher_session_drops_the_older_and_a_lower_one_is_refused() {
    let bed = Bed::new();
    let (stream, served) = bed.dial();
    let mut first = ScriptedHost::new(stream);
    let agreed = first.call("", offer(5)).await;
    let guest = agreed.body.coracle.unwrap();
    assert_eq!((guest.version, guest.session, guest.boot_id.as_str()), (1, 5, "boot-1"));
    assert_eq!(guest.max_frame, 1 << 20);
    for stale in [1, 5] {
        let mut second = ScriptedHost::new(bed.dial().0);
        let refused = second.call("", offer(stale)).await;
        assert_eq!(refused.result, Hresult::INVALID_STATE);
        assert_eq!(refused.body.coracle.unwrap().session, 5);
    }
    assert!(first.call("c", Start {}).await.result.is_ok());
    let mut third = ScriptedHost::new(bed.dial().0);
    assert!(third.call("", offer(6)).await.result.is_ok());
    assert_eq!(soon(served).await.unwrap().unwrap(), Served::Superseded);
    assert_eq!(first.next().await, None);
    assert!(third.call(&vm(), ListState {}).await.result.is_ok());
}

#[tokio::test]
async fn a_host_takes_the_next_session_or_the_one_it_was_told_to() {
    let bed = Bed::new();
    assert_eq!(bed.connect(Session::Next).await.session(), Some(1));
    assert_eq!(bed.connect(Session::Number(9)).await.session(), Some(9));
    let stale = bed.try_connect(Session::Number(9)).await.unwrap_err();
    assert!(matches!(stale, BridgeError::StaleSession { offered: 9, current: 9 }), "{stale}");
    let next = bed.connect(Session::Next).await;
    assert_eq!((next.session(), next.boot_id()), (Some(10), Some("boot-1")));
    // A plain host is not held up by numbers it does not know.
    let plain = bed.connect(Session::Plain).await;
    assert!(soon(next.closed()).await.is_closed());
    let error = plain.list_state().await.unwrap_err();
    assert!(matches!(error, BridgeError::NoSessions(_)), "{error}");
}

#[tokio::test]
async fn a_long_answer_is_fetched_in_pieces_and_cut_for_a_plain_host() {
    let bed = Bed::new();
    let text: String = (0..700_000).map(|n| ['a', '"', '<', 'ü', '\n'][n % 5]).collect();
    bed.fake.set_stacks(text.clone());
    let host = bed.connect(Session::Next).await;
    assert!(host.dump_stacks().await.unwrap() == text);
    let plain = bed.connect(Session::Plain).await;
    let cut = plain.dump_stacks().await.unwrap();
    assert!(cut.len() > 1000 && text.starts_with(&cut));
    // The largest frame a host takes is the guest's limit for this host alone.
    let mut small = ScriptedHost::new(bed.dial().0);
    let request = Negotiate::new(Some(CoracleHost { version: 1, session: 50, max_frame: 1 }));
    let agreed: Response<Negotiated> = small.call("", request).await;
    assert_eq!(agreed.body.coracle.unwrap().max_frame, GUEST_TO_HOST);
    small.ask(&vm(), DumpStacks {}).await;
    assert!(small.next().await.unwrap().size() <= u64::from(GUEST_TO_HOST));
}

#[tokio::test]
async fn waits_without_number_do_not_keep_other_requests_from_being_served() {
    let bed = Bed::new();
    let mut host = plain(&bed).await;
    let pid = run(&mut host, &vm(), command("sleep", "")).await;
    let mut refused = 0;
    for _ in 0..4096 + 3 {
        host.ask(&vm(), forever(pid)).await;
    }
    let last = host.ask("c", Start {}).await;
    loop {
        let frame = host.next().await.unwrap();
        let response: Response<Done> = Response::decode(&frame.body).unwrap();
        if frame.id == last {
            assert!(response.result.is_ok());
            break;
        }
        assert_eq!(response.result, Hresult::FAIL);
        refused += 1;
    }
    assert_eq!(refused, 3);
}

#[tokio::test]
async fn every_connection_negotiates_anew() {
    let bed = Bed::new();
    let mut first = plain(&bed).await;
    assert!(first.call("c", Start {}).await.result.is_ok());
    let mut second = ScriptedHost::new(bed.dial().0);
    assert_eq!(second.call("c", Start {}).await.result, Hresult::NOT_IMPLEMENTED);
    // A connection that has not negotiated takes nothing from the one that has.
    assert!(first.call("c", Start {}).await.result.is_ok());
    drop(second);
    assert!(first.call("c", Start {}).await.result.is_ok());
}

#[tokio::test]
async fn closing_the_guest_ends_all_its_tasks() {
    let bed = Bed::new();
    let host = bed.connect(Session::Next).await;
    let container = host.create_container("c", &config("sleep")).await.unwrap();
    let init = container.create_process(&command("", "ioe")).await.unwrap();
    let waiter = Arc::new(init);
    let wait = tokio::spawn({
        let waiter = Arc::clone(&waiter);
        async move { waiter.wait().await }
    });
    tokio::time::timeout(Duration::from_secs(10), bed.guest.close()).await.unwrap();
    assert!(soon(wait).await.unwrap().is_err());
    assert!(soon(host.closed()).await.is_closed());
}
