//! Exits: kept until acknowledged, told once in each session, lost never.

use coracle_bridge::client::{BridgeError, Session, StdioResume};
use coracle_bridge::message::ContainerId;

use tokio::io::AsyncReadExt;

use crate::bed::{Bed, beside, command, config, soon};

/// The processes the guest lists, with their exit codes.
async fn listed(host: &coracle_bridge::client::GuestConnection) -> Vec<(u32, Option<u32>)> {
    let state = soon(host.list_state()).await.unwrap();
    state.processes.iter().map(|process| (process.process_id, process.exit_code)).collect()
}

#[tokio::test]
async fn an_exit_stays_until_it_is_acknowledged_however_often_it_was_fetched() {
    let bed = Bed::new();
    let vm = ContainerId::vm();
    let mut host = bed.connect(Session::Next).await;
    let process = host.create_process(&command("exit 3", "")).await.unwrap();
    let pid = process.pid();
    assert_eq!(soon(process.wait()).await.unwrap(), 3);
    for _ in 0..3 {
        host = bed.connect(Session::Next).await;
        assert_eq!(listed(&host).await, [(pid, Some(3))]);
        let process = host.resume_process(&vm, pid, StdioResume::default()).await.unwrap();
        assert_eq!(soon(process.wait()).await.unwrap(), 3);
        assert_eq!(process.exit_code().unwrap(), 3);
    }
    let process = host.resume_process(&vm, pid, StdioResume::default()).await.unwrap();
    soon(process.wait()).await.unwrap();
    process.acknowledge_exit().await.unwrap();
    // Again is no error.
    process.acknowledge_exit().await.unwrap();
    assert_eq!(listed(&host).await, []);
    let gone = host.resume_process(&vm, pid, StdioResume::default()).await;
    assert!(gone.is_err());
}

#[tokio::test]
async fn an_acknowledgement_of_a_running_process_means_nothing() {
    let bed = Bed::new();
    let host = bed.connect(Session::Next).await;
    let process = host.create_process(&command("sleep", "")).await.unwrap();
    process.acknowledge_exit().await.unwrap();
    bed.fake.end(process.pid(), 9);
    assert_eq!(soon(process.wait()).await.unwrap(), 9);
    assert_eq!(listed(&host).await, [(process.pid(), Some(9))]);
    process.close().await.unwrap();
    assert_eq!(listed(&host).await, []);
}

#[tokio::test]
async fn output_outlives_the_acknowledgement_of_the_exit_unless_it_is_discarded() {
    let bed = Bed::new();
    let vm = ContainerId::vm();
    let host = bed.connect(Session::Next).await;
    let process = host.create_process(&command("count 3000", "o")).await.unwrap();
    drop(process.take_stdio());
    assert_eq!(soon(process.wait()).await.unwrap(), 0);
    process.acknowledge_exit().await.unwrap();
    let stdio = || StdioResume { stdout: Some(0), ..StdioResume::default() };
    let resumed = host.resume_process(&vm, process.pid(), stdio()).await.unwrap();
    let mut stdout = resumed.take_stdio().stdout.unwrap();
    soon(stdout.read_exact(&mut [0; 1000])).await.unwrap();
    process.close().await.unwrap();
    // A connection carries it, so it arrives; and then it goes.
    let mut rest = Vec::new();
    soon(stdout.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest.len(), 2000);
    soon(async { while !listed(&host).await.is_empty() {} }).await;
    // A reader that is dropped half-way takes the rest with it once all is closed.
    let process = host.create_process(&command("count 3000", "o")).await.unwrap();
    let mut stdout = process.take_stdio().stdout.unwrap();
    soon(process.wait()).await.unwrap();
    soon(stdout.read_exact(&mut [0; 1000])).await.unwrap();
    drop(stdout);
    process.close().await.unwrap();
    soon(async { while !listed(&host).await.is_empty() {} }).await;
    assert!(host.resume_process(&vm, process.pid(), stdio()).await.is_err());
}

#[tokio::test]
async fn exits_while_nobody_is_connected_are_all_there_for_the_next_session() {
    let bed = Bed::new();
    let host = bed.connect(Session::Next).await;
    let container = host.create_container("c", &config("sleep")).await.unwrap();
    let init = container.create_process(&command("", "")).await.unwrap();
    let other = container.create_process(&beside("sleep", "")).await.unwrap();
    let (init_pid, other_pid) = (init.pid(), other.pid());
    drop((init, other, container, host));
    assert!(bed.fake.end(other_pid, 4));
    assert!(bed.fake.end(init_pid, 5));

    let host = bed.connect(Session::Next).await;
    let container = host.resume_container("c").await.unwrap();
    soon(container.wait()).await.unwrap();
    assert_eq!(container.exit_type().unwrap().0, "UnexpectedExit");
    for (pid, code) in [(init_pid, 5), (other_pid, 4)] {
        let id = ContainerId::from("c");
        let process = host.resume_process(&id, pid, StdioResume::default()).await.unwrap();
        assert_eq!(soon(process.wait()).await.unwrap(), code);
        process.close().await.unwrap();
    }
    container.close().await.unwrap();
    let state = host.list_state().await.unwrap();
    assert_eq!(state.processes, []);
    assert_eq!(state.containers.len(), 1);
    assert_eq!(state.containers[0].exit_type, "");
    host.delete_container_state(&"c".into()).await.unwrap();
    assert_eq!(host.list_state().await.unwrap(), Default::default());
}

#[tokio::test]
async fn a_resumed_container_tells_of_an_exit_that_comes_later() {
    let bed = Bed::new();
    let host = bed.connect(Session::Next).await;
    let container = host.create_container("c", &config("sleep")).await.unwrap();
    let init = container.create_process(&command("", "")).await.unwrap();
    let pid = init.pid();
    drop((init, container, host));
    let host = bed.connect(Session::Next).await;
    let container = host.resume_container("c").await.unwrap();
    assert_eq!(container.exit_type(), None);
    let twice = host.resume_container("c").await.unwrap_err();
    assert!(matches!(twice, BridgeError::ContainerExists(_)));
    // Nobody waits for the init in this session: the container's exit is told all the same.
    assert!(bed.fake.end(pid, 0));
    soon(container.wait()).await.unwrap();
    let unknown = host.resume_container("x").await.unwrap_err();
    assert!(matches!(unknown, BridgeError::NoSuchContainer(_)));
    // Its id is not taken by the attempt.
    host.create_container("x", &config("sleep")).await.unwrap();
}

#[tokio::test]
async fn an_exit_nobody_resumed_does_not_end_the_bridge() {
    let bed = Bed::new();
    let host = bed.connect(Session::Next).await;
    let container = host.create_container("c", &config("sleep")).await.unwrap();
    let init = container.create_process(&command("", "")).await.unwrap();
    let pid = init.pid();
    drop((init, container, host));
    let host = bed.connect(Session::Next).await;
    host.list_state().await.unwrap();
    assert!(bed.fake.end(pid, 0));
    soon(async {
        while host.list_state().await.unwrap().containers[0].exit_type.is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let container = host.resume_container("c").await.unwrap();
    soon(container.wait()).await.unwrap();
}

#[tokio::test]
async fn a_pid_the_kernel_uses_again_does_not_hide_an_exit() {
    let bed = Bed::new();
    let host = bed.connect(Session::Next).await;
    bed.fake.next_pid_is(500);
    let first = host.create_process(&command("exit 1", "")).await.unwrap();
    assert_eq!(soon(first.wait()).await.unwrap(), 1);
    bed.fake.next_pid_is(500);
    let second = host.create_process(&command("sleep", "")).await.unwrap();
    assert_eq!(first.pid(), 500);
    assert_ne!(second.pid(), 500);
    assert!(second.signal(Some(2)).await.unwrap());
    assert_eq!(soon(second.wait()).await.unwrap(), 130);
    assert_eq!(listed(&host).await, [(500, Some(1)), (second.pid(), Some(130))]);
}

#[tokio::test]
async fn a_container_of_the_same_id_is_not_taken_for_its_predecessor() {
    let bed = Bed::new();
    let host = bed.connect(Session::Next).await;
    let first = host.create_container("c", &config("sleep")).await.unwrap();
    // Deleting kills; the end of the first one's init comes at its leisure.
    host.delete_container_state(&"c".into()).await.unwrap();
    drop(first);
    let host = bed.connect(Session::Next).await;
    let second = host.create_container("c", &config("sleep")).await.unwrap();
    let init = second.create_process(&command("", "")).await.unwrap();
    tokio::task::yield_now().await;
    assert_eq!(second.exit_type(), None);
    assert!(init.kill().await.unwrap());
    soon(second.wait()).await.unwrap();
}
