//! Processes of the VM and of containers: signals, terminals, exits, and nothing left of them.

use std::time::{Duration, Instant};

use coracle_uvm::container::ProcessParameters;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{
    BUSYBOX, Machine, WAIT, all_output, exec, exec_shell, finish, shell_in, spec,
};

fn in_vm(line: &str) -> ProcessParameters {
    ProcessParameters {
        command_args: [BUSYBOX, "sh", "-c", line].map(str::to_owned).into(),
        environment: [("PATH".to_owned(), "/run/layer/bin:/run/layer/usr/bin".to_owned())].into(),
        ..all_output()
    }
}

/// The defect of hcsshim's guest: it looks the container up, and the VM is none.
#[tokio::test]
async fn processes_of_the_vm_take_signals_and_sizes() {
    let machine = Machine::boot().await;
    let process = machine.vm.create_process(&in_vm("sleep 1000")).await.unwrap();
    assert!(process.signal(Some(15)).await.unwrap());
    assert_eq!(process.wait().await.unwrap(), 128 + 15);
    assert!(!process.signal(Some(15)).await.unwrap());

    let parameters = ProcessParameters {
        emulate_console: true,
        create_std_in_pipe: true,
        create_std_err_pipe: false,
        console_size: Some((33, 99)),
        ..in_vm("stty size; read line; stty size; exit 5")
    };
    let process = machine.vm.create_process(&parameters).await.unwrap();
    let mut stdio = process.take_stdio();
    let (mut stdin, mut stdout) = (stdio.stdin.take().unwrap(), stdio.stdout.take().unwrap());
    let mut text = Vec::new();
    while !String::from_utf8_lossy(&text).contains("33 99") {
        assert_ne!(stdout.read_buf(&mut text).await.unwrap(), 0);
    }
    process.resize(77, 22).await.unwrap();
    stdin.write_all(b"\n").await.unwrap();
    stdout.read_to_end(&mut text).await.unwrap();
    let text = String::from_utf8_lossy(&text);
    assert!(text.contains("22 77"), "{text:?}");
    assert_eq!(process.wait().await.unwrap(), 5);
    machine.close().await;
}

#[tokio::test]
async fn a_terminal_of_a_container_has_a_name_a_size_and_control() {
    let machine = Machine::boot().await;
    let mut on_terminal = spec("tty; stty size; read line; echo got $line; exit 4");
    on_terminal["process"]["terminal"] = json!(true);
    on_terminal["process"]["consoleSize"] = json!({ "height": 11, "width": 44 });
    let container = machine.create("c", on_terminal).await.unwrap();
    container.start().await.unwrap();
    let parameters = ProcessParameters {
        create_std_in_pipe: true,
        create_std_out_pipe: true,
        ..ProcessParameters::default()
    };
    let init = container.create_process(&parameters).await.unwrap();
    let outcome = finish(init, b"words\n").await;
    assert_eq!(outcome.code, 4, "{outcome:?}");
    for expected in ["/dev/", "11 44", "got words"] {
        assert!(outcome.stdout.contains(expected), "{outcome:?}");
    }

    let (container, _init) = machine.sleeper("d", spec(WAIT)).await;
    let process = json!({
        "args": ["sh", "-c", "tty; exec sleep 1000"], "cwd": "/", "terminal": true,
        "user": { "uid": 0, "gid": 0 },
    });
    let parameters =
        ProcessParameters { create_std_in_pipe: true, create_std_err_pipe: false, ..exec(process) };
    let process = container.create_process(&parameters).await.unwrap();
    let mut stdio = process.take_stdio();
    let (mut stdin, mut stdout) = (stdio.stdin.take().unwrap(), stdio.stdout.take().unwrap());
    let mut text = Vec::new();
    while !String::from_utf8_lossy(&text).contains("/dev/pts/") {
        assert_ne!(stdout.read_buf(&mut text).await.unwrap(), 0);
    }
    // Ctrl-C reaches the foreground only when the terminal controls the session.
    stdin.write_all(b"\x03").await.unwrap();
    assert_eq!(process.wait().await.unwrap(), 128 + 2);
    machine.close().await;
}

/// The seed's RunContainer_ForksThenExits_ShowsAsExited.
#[tokio::test]
async fn an_exit_is_told_though_a_child_holds_the_streams() {
    let machine = Machine::boot().await;
    let mut shared = spec("echo out; sleep 1000 & exit 9");
    // In the VM's pid namespace the child outlives the init.
    let namespaces = shared["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "pid");
    let container = machine.create("c", shared).await.unwrap();
    container.start().await.unwrap();
    let init = container.create_process(&all_output()).await.unwrap();
    let outcome = finish(init, b"").await;
    assert_eq!((outcome.code, outcome.stdout.as_str()), (9, "out\n"));

    let (second, _init) = machine.sleeper("d", spec(WAIT)).await;
    let outcome = shell_in(&second, "echo out; sleep 1000 & exit 3").await;
    assert_eq!((outcome.code, outcome.stdout.as_str()), (3, "out\n"));

    // Deleting takes the child along.
    machine.vm.delete_container_state("c").await.unwrap();
    let left = machine.shell("ls -d /sys/fs/cgroup/containers/c").await;
    assert_ne!(left.code, 0, "{left:?}");
    machine.close().await;
}

#[tokio::test]
async fn orphans_are_reaped() {
    let machine = Machine::boot().await;
    let line = "for n in 1 2 3 4 5 6 7 8; do (sleep 0.1 &); done; sleep 2; \
                grep -l '^State:.Z' /proc/[0-9]*/status | wc -l";
    let outcome = machine.shell(line).await;
    assert_eq!(outcome.stdout.trim(), "0", "{outcome:?}");
    machine.close().await;
}

#[tokio::test]
async fn two_hundred_processes_leave_nothing() {
    let machine = Machine::boot().await;
    let (container, _init) = machine.sleeper("c", spec(WAIT)).await;
    let look = "ls /proc/1/fd | wc -l; ls /run/gcs/runtime/c; \
                ls /sys/fs/cgroup/containers/c | grep -c ' ' ; \
                cat /sys/fs/cgroup/containers/c/cgroup.procs | wc -l";
    // One first, so that what is made once is there.
    assert_eq!(shell_in(&container, "true").await.code, 0);
    let before = machine.shell(look).await.stdout;
    for round in 0..20_u32 {
        let running = (round * 10..round * 10 + 10).map(|code| {
            let container = &container;
            async move {
                let line = exec_shell(&format!("echo {code}; exit {code}"));
                let process = container.create_process(&line).await.unwrap();
                let outcome = finish(process, b"").await;
                assert_eq!((outcome.code, outcome.stdout), (code, format!("{code}\n")));
            }
        });
        futures::future::join_all(running).await;
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut after = machine.shell(look).await.stdout;
    while after != before && Instant::now() < deadline {
        after = machine.shell(look).await.stdout;
    }
    assert_eq!(after, before);
    machine.close().await;
}

#[tokio::test]
async fn a_container_ends_as_its_init_decides_or_is_killed() {
    let machine = Machine::boot().await;
    // A shell that is PID 1 ignores what it has no trap for.
    let (container, init) = machine.sleeper("c", spec("while :; do sleep 1; done")).await;
    container.shutdown().await.unwrap();
    container.terminate().await.unwrap();
    assert_eq!(init.wait().await.unwrap(), 128 + 9);
    machine.vm.delete_container_state("c").await.unwrap();

    let line = "trap 'exit 9' TERM; echo ready; while :; do sleep 0.1; done";
    let container = machine.create("d", spec(line)).await.unwrap();
    container.start().await.unwrap();
    let init = container.create_process(&all_output()).await.unwrap();
    let mut stdout = init.take_stdio().stdout.take().unwrap();
    let mut ready = [0; 6];
    stdout.read_exact(&mut ready).await.unwrap();
    container.shutdown().await.unwrap();
    assert_eq!(init.wait().await.unwrap(), 9);
    machine.close().await;
}
