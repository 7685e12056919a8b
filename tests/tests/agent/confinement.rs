//! A process that enters a container is no freer than the one that is in it.

use coracle_uvm::container::Hresult;
use serde_json::json;

use crate::support::{Machine, WAIT, chain, exec, finish, shell_in, spec};

/// mkdir fails with EOPNOTSUPP, which nothing else would give.
fn filter() -> serde_json::Value {
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            { "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95 },
        ],
    })
}

#[tokio::test]
async fn a_further_process_has_the_system_call_filter_of_the_init() {
    let machine = Machine::boot().await;
    let mut filtered = spec(WAIT);
    filtered["linux"]["seccomp"] = filter();
    let (container, _init) = machine.sleeper("c", filtered).await;

    let status = shell_in(&container, "grep Seccomp: /proc/1/status /proc/self/status").await;
    assert_eq!(status.stdout.matches("Seccomp:\t2").count(), 2, "{status:?}");
    let refused = shell_in(&container, "mkdir /made").await;
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("not supported"), "{refused:?}");

    // The agent runs before everyone else; what it starts does not. Field 19 of stat: niceness.
    let niceness = shell_in(&container, "cut -d' ' -f19 /proc/1/stat /proc/self/stat").await;
    assert_eq!(niceness.stdout, "0\n0\n", "{niceness:?}");

    // Without privileges, and forbidden to gain any, it is the same filter by another way.
    let process = json!({
        "args": ["sh", "-c", "grep -E 'Seccomp:|NoNewPrivs' /proc/self/status; mkdir /made"],
        "cwd": "/", "user": { "uid": 4711, "gid": 4711 }, "noNewPrivileges": true,
    });
    let process = container.create_process(&exec(process)).await.unwrap();
    let outcome = finish(process, b"").await;
    assert!(outcome.stdout.contains("NoNewPrivs:\t1"), "{outcome:?}");
    assert!(outcome.stdout.contains("Seccomp:\t2"), "{outcome:?}");
    assert!(outcome.stderr.contains("not supported"), "{outcome:?}");
    machine.close().await;
}

#[tokio::test]
async fn a_further_process_joins_the_containers_user_namespace() {
    let machine = Machine::boot().await;
    let mut mapped = spec(WAIT);
    let mapping = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
    mapped["linux"]["uidMappings"] = mapping.clone();
    mapped["linux"]["gidMappings"] = mapping;
    let namespaces = mapped["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.push(json!({ "type": "user" }));
    let (container, _init) = machine.sleeper("c", mapped).await;

    let outcome = shell_in(&container, "cat /proc/self/uid_map").await;
    let fields: Vec<&str> = outcome.stdout.split_whitespace().collect();
    assert_eq!(fields, ["0", "100000", "65536"], "{outcome:?}");
    let outcome = shell_in(
        &container,
        "test $(readlink /proc/1/ns/user) = $(readlink /proc/self/ns/user) && echo same",
    )
    .await;
    assert_eq!(outcome.stdout, "same\n", "{outcome:?}");
    machine.close().await;
}

#[tokio::test]
async fn a_container_that_makes_the_disks_node_cannot_open_it_without_any_security_module() {
    let machine = Machine::boot().await;
    let (container, _init) = machine.sleeper("c", spec(WAIT)).await;
    // Security modules without a policy are asked all the same, so there are none.
    let modules = "mkdir /run/lsm && mount -t securityfs none /run/lsm && cat /run/lsm/lsm && umount /run/lsm";
    let modules = machine.shell(modules).await;
    let mut present: Vec<&str> = modules.stdout.trim().split(',').collect();
    present.sort_unstable();
    assert_eq!(present, ["capability", "landlock", "lockdown", "yama"], "{modules:?}");

    // The disk the container's own root comes from.
    let numbers = machine.shell("cat /sys/block/vda/dev").await.stdout;
    let numbers = numbers.trim().replace(':', " ");
    let line = format!(
        "mknod /disk b {numbers} && echo made; head -c 1 /disk; \
         mknod /kernel c 1 11 && head -c 1 /kernel"
    );
    let outcome = shell_in(&container, &line).await;
    assert_eq!(outcome.stdout, "made\n", "{outcome:?}");
    assert_eq!(outcome.stderr.matches("Operation not permitted").count(), 2, "{outcome:?}");
    // The node itself is not at fault: the VM opens the same device.
    let outside = machine.shell("head -c 4 /dev/vda | wc -c").await;
    assert_eq!(outside.stdout.trim(), "4", "{outside:?}");
    machine.close().await;
}

#[tokio::test]
async fn a_further_process_has_the_inits_capabilities_unless_it_brings_its_own() {
    let machine = Machine::boot().await;
    let (container, _init) = machine.sleeper("c", spec(WAIT)).await;
    let line = "grep CapEff /proc/1/status; grep CapEff /proc/self/status; \
                grep CapBnd /proc/self/status";
    let outcome = shell_in(&container, line).await;
    // CHOWN 0, KILL 5, SETGID 6, SETUID 7, MKNOD 27.
    let granted = "00000000080000e1";
    assert_eq!(outcome.stdout.matches(granted).count(), 3, "{outcome:?}");

    let none = json!({
        "args": ["grep", "-E", "CapEff|CapBnd", "/proc/self/status"],
        "cwd": "/", "user": { "uid": 0, "gid": 0 }, "capabilities": {},
    });
    let process = container.create_process(&exec(none)).await.unwrap();
    let outcome = finish(process, b"").await;
    assert_eq!(outcome.stdout.matches("0000000000000000").count(), 2, "{outcome:?}");
    machine.close().await;
}

#[tokio::test]
async fn programs_that_are_missing_or_not_executable_have_codes_of_their_own() {
    let machine = Machine::boot().await;
    let (container, _init) = machine.sleeper("c", spec(WAIT)).await;
    for (program, code) in
        [("nosuch", Hresult::FILE_NOT_FOUND), ("/etc/passwd", Hresult::ACCESS_DENIED)]
    {
        let process = json!({ "args": [program], "cwd": "/", "user": { "uid": 0, "gid": 0 } });
        let error = container.create_process(&exec(process)).await.unwrap_err();
        assert_eq!(error.hresult(), Some(code), "{error}");
        assert!(chain(&error).contains(program), "{error}");

        let mut init = spec("");
        init["process"]["args"] = json!([program]);
        let error = machine.create("bad", init).await.unwrap_err();
        assert_eq!(error.guest_result(), Some(code), "{error}");
        machine.vm.remove_combined_layers("/run/gcs/c/bad/rootfs").await.unwrap();
    }
    // Nothing of what failed is in the way.
    machine.sleeper("bad", spec(WAIT)).await;
    machine.close().await;
}

#[tokio::test]
async fn an_error_inside_the_container_names_its_cause() {
    let machine = Machine::boot().await;
    let mut bad = spec(WAIT);
    let mount = json!({
        "destination": "/data", "type": "bind", "source": "/no/such/source", "options": ["bind"],
    });
    bad["mounts"].as_array_mut().unwrap().push(mount);
    let error = chain(&machine.create("c", bad).await.unwrap_err());
    assert!(error.contains("/no/such/source"), "{error}");
    assert!(error.contains("No such file or directory"), "{error}");
    machine.close().await;
}
