//! The control socket's client against a monitor that misbehaves.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    thread::{self, JoinHandle},
    time::Duration,
};

use coracle_vmm::qmp::{
    Client, MAX_LINE, QmpError,
    command::{Cont, DeviceDel, QueryStatus, Stop},
};

const GREETING: &str = r#"{"QMP":{"version":{},"capabilities":[]}}"#;
const PATIENCE: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(200);

/// A monitor that greets, takes the negotiation, and then follows a script.
fn monitor(
    script: impl FnOnce(&mut BufReader<UnixStream>, &mut UnixStream) + Send + 'static,
) -> (tempfile::TempDir, PathBuf, JoinHandle<()>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qmp.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let thread = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap());
        writeln!(stream, "{GREETING}").unwrap();
        let id = request(&mut lines);
        writeln!(stream, r#"{{"return":{{}},"id":{id}}}"#).unwrap();
        script(&mut lines, &mut stream);
    });
    (dir, path, thread)
}

/// Reads a request and gives its id.
fn request(lines: &mut BufReader<UnixStream>) -> u64 {
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    value["id"].as_u64().unwrap()
}

#[tokio::test]
async fn answers_are_told_apart_by_their_ids() {
    let (_dir, path, thread) = monitor(|lines, stream| {
        let (first, second) = (request(lines), request(lines));
        let refusal = r#"{"class":"GenericError","desc":"no"}"#;
        writeln!(stream, r#"{{"error":{refusal},"id":{second}}}"#).unwrap();
        writeln!(stream, r#"{{"event":"STOP","timestamp":{{}}}}"#).unwrap();
        writeln!(stream, r#"{{"return":{{"status":"paused"}},"id":{first}}}"#).unwrap();
    });
    let client = Client::connect(&path, PATIENCE, PATIENCE).await.unwrap();
    let mut events = client.events();
    let (status, cont) = tokio::join!(client.run(QueryStatus {}), client.run(Cont {}));
    assert_eq!(status.unwrap().status, "paused");
    let refused = cont.unwrap_err();
    assert!(matches!(&refused, QmpError::Refused { desc, .. } if desc == "no"), "{refused:?}");
    assert_eq!(events.recv().await.unwrap().name, "STOP");
    thread.join().unwrap();
}

#[tokio::test]
async fn an_answer_that_comes_too_late_is_not_taken_for_another() {
    let (_dir, path, thread) = monitor(|lines, stream| {
        let (late, next) = (request(lines), request(lines));
        writeln!(stream, r#"{{"return":{{"status":"running"}},"id":{late}}}"#).unwrap();
        writeln!(stream, r#"{{"return":{{"status":"paused"}},"id":{next}}}"#).unwrap();
    });
    let client = Client::connect(&path, SHORT, SHORT).await.unwrap();
    let error = client.run(QueryStatus {}).await.unwrap_err();
    assert!(matches!(error, QmpError::Timeout(SHORT)), "{error:?}");
    assert_eq!(client.run(QueryStatus {}).await.unwrap().status, "paused");
    thread.join().unwrap();
}

#[tokio::test]
async fn an_endless_line_ends_the_connection() {
    let (_dir, path, thread) = monitor(|lines, stream| {
        request(lines);
        let junk = vec![b' '; 1 << 16];
        let mut sent = 0;
        while stream.write_all(&junk).is_ok() {
            sent += junk.len();
        }
        assert!(sent < 4 * MAX_LINE, "the client read {sent} bytes");
    });
    let client = Client::connect(&path, PATIENCE, PATIENCE).await.unwrap();
    let error = client.run(Stop {}).await.unwrap_err();
    assert!(matches!(error, QmpError::Closed), "{error:?}");
    thread.join().unwrap();
}

#[tokio::test]
async fn garbage_ends_the_connection_and_every_wait_on_it() {
    let (_dir, path, thread) = monitor(|lines, stream| {
        request(lines);
        request(lines);
        writeln!(stream, "\u{7}garbage").unwrap();
        let mut rest = String::new();
        assert_eq!(lines.read_line(&mut rest).unwrap(), 0, "the client hangs up");
    });
    let client = Client::connect(&path, PATIENCE, PATIENCE).await.unwrap();
    let del = DeviceDel { id: "x".into() };
    let (one, two) = tokio::join!(client.run(QueryStatus {}), client.run(del));
    assert!(matches!(one, Err(QmpError::Closed)) && matches!(two, Err(QmpError::Closed)));
    let after = client.run(Cont {}).await;
    assert!(matches!(after, Err(QmpError::Closed)), "{after:?}");
    thread.join().unwrap();
}

#[tokio::test]
async fn an_answer_of_the_wrong_shape_is_an_error_of_its_own() {
    let (_dir, path, thread) = monitor(|lines, stream| {
        let id = request(lines);
        writeln!(stream, r#"{{"return":[1,2],"id":{id}}}"#).unwrap();
    });
    let client = Client::connect(&path, PATIENCE, PATIENCE).await.unwrap();
    let error = client.run(QueryStatus {}).await.unwrap_err();
    assert!(matches!(&error, QmpError::Protocol(_)), "{error:?}");
    thread.join().unwrap();
}

#[tokio::test]
async fn a_socket_that_never_greets_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qmp.sock");
    let _listener = UnixListener::bind(&path).unwrap();
    let error = Client::connect(&path, SHORT, SHORT).await.unwrap_err();
    assert!(matches!(error, QmpError::Timeout(SHORT)), "{error:?}");
    let error = Client::connect(&dir.path().join("none"), SHORT, SHORT).await.unwrap_err();
    assert!(matches!(error, QmpError::Connect(_)), "{error:?}");
}

#[tokio::test]
async fn dropping_the_client_hangs_up() {
    let (_dir, path, thread) = monitor(|lines, _| {
        let mut rest = String::new();
        assert_eq!(lines.read_line(&mut rest).unwrap(), 0);
    });
    let client = Client::connect(&path, PATIENCE, PATIENCE).await.unwrap();
    let again = client.clone();
    drop(client);
    let events = again.events();
    drop(again);
    tokio::task::spawn_blocking(|| thread.join().unwrap()).await.unwrap();
    drop(events);
}
