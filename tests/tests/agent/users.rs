//! Names of users are the container's.

use coracle_uvm::container::{Hresult, ProcessParameters};
use serde_json::json;

use crate::support::{Machine, WAIT, all_output, chain, exec, finish, shell_in, spec};

#[tokio::test]
async fn a_named_user_is_the_containers_own() {
    let machine = Machine::boot().await;
    let (container, _init) = machine.sleeper("c", spec(WAIT)).await;
    let accounts = "echo 'worker:x:4711:4712::/work:/bin/sh' >> /etc/passwd; \
                    echo 'tape:x:44:worker' >> /etc/group";
    assert_eq!(shell_in(&container, accounts).await.code, 0);

    let process = json!({
        "args": ["sh", "-c", "id -u; id -g; id -G; echo $HOME"], "cwd": "/",
        "user": { "uid": 0, "gid": 0 },
    });
    let parameters = ProcessParameters { user: "worker".to_owned(), ..exec(process.clone()) };
    let process_started = container.create_process(&parameters).await.unwrap();
    let outcome = finish(process_started, b"").await;
    assert_eq!(outcome.stdout, "4711\n4712\n4712 44\n/work\n", "{outcome:?}");

    let parameters = ProcessParameters { user: "nobody-here".to_owned(), ..exec(process) };
    let error = container.create_process(&parameters).await.unwrap_err();
    assert_eq!(error.hresult(), Some(Hresult::INVALID_ARGUMENT), "{error}");
    assert!(chain(&error).contains("nobody-here"), "{error}");
    machine.close().await;
}

#[tokio::test]
async fn an_init_runs_as_the_user_its_annotation_names() {
    let machine = Machine::boot().await;
    let mut named = spec("id -u; id -g; touch /made 2>/dev/null || echo refused");
    named["annotations"] = json!({ "coracle.user": "nobody" });
    let container = machine.create("c", named).await.unwrap();
    container.start().await.unwrap();
    let init = container.create_process(&all_output()).await.unwrap();
    let outcome = finish(init, b"").await;
    assert_eq!(outcome.stdout, "65534\n65534\nrefused\n", "{outcome:?}");
    machine.close().await;
}
