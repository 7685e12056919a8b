//! Processes and their streams on the host's end, against a scripted guest.

use std::time::Duration;

use coracle_bridge::client::{GuestConnection, Process, Session};
use coracle_bridge::hresult::Hresult;
use coracle_bridge::message::{
    Done, ExecuteProcess, Executed, Exited, ResizeConsole, SignalProcess, VsockStdioRelay,
    WaitForProcess,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::bed::{ScriptedGuest, command, ok, scripted, soon};

const LIMIT: Duration = Duration::from_secs(60);

/// Starts a process with these streams; the guest connects them all.
async fn start(
    host: &GuestConnection,
    guest: &mut ScriptedGuest,
    dir: &std::path::Path,
    streams: &str,
) -> (Process, VsockStdioRelay, Vec<UnixStream>) {
    let script = async {
        let (frame, request) = guest.expect::<ExecuteProcess>().await;
        let relay = request.body.settings.vsock_stdio_relay_settings.unwrap_or_default();
        let mut connected = Vec::new();
        for port in [relay.std_in, relay.std_out, relay.std_err] {
            if port != 0 {
                // Bound before the request was sent, or this fails.
                let path = dir.join(format!("vsock_{port}"));
                connected.push(UnixStream::connect(path).await.unwrap());
            }
        }
        guest.answer(&frame, &ok(&request, Executed { process_id: 9 })).await;
        (relay, connected)
    };
    let parameters = command("x", streams);
    let (process, (relay, connected)) = tokio::join!(host.create_process(&parameters), script);
    (process.unwrap(), relay, connected)
}

#[tokio::test]
async fn ports_rise_from_the_first_in_the_order_in_out_err() {
    let (host, mut guest, dir) = scripted(Session::Plain, LIMIT).await;
    let first = 0x4000_0001;
    let mut kept = Vec::new();
    for (streams, ports) in [
        ("ioe", (first, first + 1, first + 2)),
        ("", (0, 0, 0)),
        ("oe", (0, first + 3, first + 4)),
        ("i", (first + 5, 0, 0)),
    ] {
        let (process, relay, connected) = start(&host, &mut guest, dir.path(), streams).await;
        assert_eq!((relay.std_in, relay.std_out, relay.std_err), ports);
        let stdio = process.take_stdio();
        assert_eq!(stdio.stdin.is_some(), streams.contains('i'));
        assert_eq!(stdio.stdout.is_some(), streams.contains('o'));
        assert_eq!(stdio.stderr.is_some(), streams.contains('e'));
        assert!(process.take_stdio().stdin.is_none());
        guest.expect::<WaitForProcess>().await;
        kept.push((process, connected));
    }
}

#[tokio::test]
async fn one_connection_is_accepted_per_port_and_then_the_port_is_gone() {
    let (host, mut guest, dir) = scripted(Session::Plain, LIMIT).await;
    let (process, relay, connected) = start(&host, &mut guest, dir.path(), "o").await;
    let mut stdout = process.take_stdio().stdout.unwrap();
    let mut connected = connected.into_iter().next().unwrap();
    connected.write_all(b"x").await.unwrap();
    assert_eq!(soon(stdout.read_u8()).await.unwrap(), b'x');
    let path = dir.path().join(format!("vsock_{}", relay.std_out));
    assert!(UnixStream::connect(&path).await.is_err());
    assert!(!path.exists());
}

#[tokio::test]
async fn a_failed_start_leaves_no_port_behind() {
    let (host, mut guest, dir) = scripted(Session::Plain, LIMIT).await;
    let script = async {
        let (frame, _) = guest.expect::<ExecuteProcess>().await;
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
        guest.refuse(&frame, Hresult::FAIL, "no such file").await;
    };
    let parameters = command("x", "ioe");
    let (process, ()) = tokio::join!(host.create_process(&parameters), script);
    assert_eq!(process.unwrap_err().to_string(), "guest RPC failure: no such file");
    soon(async {
        while std::fs::read_dir(dir.path()).unwrap().count() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn what_is_written_comes_back_and_closing_stdin_is_its_end() {
    let (host, mut guest, dir) = scripted(Session::Plain, LIMIT).await;
    let (process, _, connected) = start(&host, &mut guest, dir.path(), "io").await;
    let [mut guest_in, mut guest_out] = <[UnixStream; 2]>::try_from(connected).unwrap();
    let echo = tokio::spawn(async move {
        tokio::io::copy(&mut guest_in, &mut guest_out).await.unwrap();
        guest_out.shutdown().await.unwrap();
        // The host closes once it has read everything, and not before.
        assert_eq!(guest_out.read(&mut [0; 1]).await.unwrap(), 0);
    });
    let stdio = process.take_stdio();
    let (mut stdin, mut stdout) = (stdio.stdin.unwrap(), stdio.stdout.unwrap());
    let text = vec![b'y'; 300_000];
    let write = async {
        stdin.write_all(&text).await.unwrap();
        process.close_stdin();
        process.close_stdin();
        assert!(stdin.write_all(b"more").await.is_err());
    };
    let mut got = Vec::new();
    let (_, read) = soon(async { tokio::join!(write, stdout.read_to_end(&mut got)) }).await;
    read.unwrap();
    assert_eq!(got, text);
    assert_eq!(stdout.offset(), 300_000);
    assert_eq!(stdout.read(&mut [0; 1]).await.unwrap(), 0);
    soon(echo).await.unwrap();
}

#[tokio::test]
async fn reading_and_writing_wait_for_the_guest_to_connect() {
    let (host, mut guest, dir) = scripted(Session::Plain, LIMIT).await;
    let parameters = command("x", "io");
    // This guest connects only after it has answered.
    let (process, request) = tokio::join!(
        host.create_process(&parameters),
        guest.serve::<ExecuteProcess>(Executed { process_id: 9 })
    );
    let process = process.unwrap();
    let relay = request.body.settings.vsock_stdio_relay_settings.unwrap();
    let stdio = process.take_stdio();
    let (mut stdin, mut stdout) = (stdio.stdin.unwrap(), stdio.stdout.unwrap());
    let read = tokio::spawn(async move {
        let mut got = String::new();
        stdout.read_to_string(&mut got).await.unwrap();
        got
    });
    stdin.write_all(b"early").await.unwrap();
    tokio::task::yield_now().await;
    assert!(!read.is_finished());
    let dial = async |port: u32| {
        UnixStream::connect(dir.path().join(format!("vsock_{port}"))).await.unwrap()
    };
    let mut guest_in = dial(relay.std_in).await;
    let mut guest_out = dial(relay.std_out).await;
    let mut got = [0; 5];
    soon(guest_in.read_exact(&mut got)).await.unwrap();
    assert_eq!(&got, b"early");
    guest_out.write_all(b"late").await.unwrap();
    drop(guest_out);
    assert_eq!(soon(read).await.unwrap(), "late");
}

#[tokio::test]
async fn streams_that_were_taken_outlive_the_handle_of_their_process() {
    let (host, mut guest, dir) = scripted(Session::Plain, LIMIT).await;
    let (process, _, connected) = start(&host, &mut guest, dir.path(), "o").await;
    let mut stdout = process.take_stdio().stdout.unwrap();
    drop(process);
    tokio::task::yield_now().await;
    let mut connected = connected.into_iter().next().unwrap();
    connected.write_all(b"x").await.unwrap();
    assert_eq!(soon(stdout.read_u8()).await.unwrap(), b'x');
}

#[tokio::test]
async fn closing_the_process_unblocks_a_reader_whose_stream_never_connected() {
    let (host, mut guest, dir) = scripted(Session::Plain, LIMIT).await;
    let parameters = command("x", "o");
    let (process, _) = tokio::join!(
        host.create_process(&parameters),
        guest.serve::<ExecuteProcess>(Executed { process_id: 9 })
    );
    let process = process.unwrap();
    let mut stdout = process.take_stdio().stdout.unwrap();
    let read = tokio::spawn(async move { stdout.read(&mut [0; 1]).await });
    tokio::task::yield_now().await;
    process.close().await.unwrap();
    assert!(soon(read).await.unwrap().is_err());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_lost_bridge_is_the_error_of_a_wait_for_a_process_and_of_its_streams() {
    let (host, mut guest, _dir) = scripted(Session::Plain, LIMIT).await;
    let parameters = command("x", "o");
    let (process, _) = tokio::join!(
        host.create_process(&parameters),
        guest.serve::<ExecuteProcess>(Executed { process_id: 9 })
    );
    let process = process.unwrap();
    let mut stdout = process.take_stdio().stdout.unwrap();
    drop(guest);
    let error = soon(process.wait()).await.unwrap_err();
    assert!(error.to_string().contains("bridge closed"));
    assert!(soon(stdout.read(&mut [0; 1])).await.is_err());
}

#[tokio::test]
async fn a_signal_without_a_number_kills_and_a_process_that_is_gone_gets_none() {
    let (host, mut guest, dir) = scripted(Session::Plain, LIMIT).await;
    let (process, ..) = start(&host, &mut guest, dir.path(), "").await;
    let (wait, request) = guest.expect::<WaitForProcess>().await;
    let script = async {
        let kill = guest.serve::<SignalProcess>(Done {}).await;
        assert_eq!((kill.body.process_id, kill.body.options), (9, None));
        let term = guest.serve::<SignalProcess>(Done {}).await;
        assert_eq!(term.body.options.unwrap().signal, 15);
        for code in [Hresult::NOT_FOUND, Hresult::FAIL] {
            let (frame, _) = guest.expect::<SignalProcess>().await;
            guest.refuse(&frame, code, "x").await;
        }
        let resize = guest.serve::<ResizeConsole>(Done {}).await;
        assert_eq!((resize.body.width, resize.body.height), (80, 25));
        guest.answer(&wait, &ok(&request, Exited { exit_code: 143 })).await;
    };
    let calls = async {
        assert!(process.kill().await.unwrap());
        assert!(process.signal(Some(15)).await.unwrap());
        assert!(!process.signal(Some(15)).await.unwrap());
        assert!(process.signal(Some(15)).await.is_err());
        process.resize(80, 25).await.unwrap();
        assert_eq!(process.wait().await.unwrap(), 143);
    };
    tokio::join!(calls, script);
}

#[tokio::test]
async fn a_caller_that_gives_up_on_a_start_still_has_its_exit_fetched() {
    let (host, mut guest, _dir) = scripted(Session::Plain, LIMIT).await;
    let parameters = command("x", "");
    let given_up = {
        let start = host.create_process(&parameters);
        let asked = guest.expect::<ExecuteProcess>();
        tokio::pin!(start);
        tokio::select! {
            asked = asked => asked,
            _ = &mut start => unreachable!("not answered yet"),
        }
    };
    guest.answer(&given_up.0, &ok(&given_up.1, Executed { process_id: 9 })).await;
    let (_, wait) = soon(guest.expect::<WaitForProcess>()).await;
    assert_eq!(wait.body.process_id, 9);
}
