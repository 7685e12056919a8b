//! States to save.

use coracle_persist::driver::{Containers, Whole};
use coracle_persist::model::{
    ContainerState, DeviceState, Mount, Process, SandboxState, StateText,
};

/// A sandbox of `containers` containers and `devices` devices, each written by hand of `turn`, so
/// that parts of two saves can be told apart.
pub fn whole(id: &str, containers: usize, devices: usize, turn: u64) -> Whole {
    let mut sandbox = SandboxState {
        persist_version: 2,
        state: StateText::Running,
        sandbox_container: id.to_owned(),
        cgroup_path: turn.to_string(),
        devices: Some((0..devices).map(device).collect()),
        ..SandboxState::default()
    };
    sandbox.hypervisor_state.pid = 4711;
    let containers = (0..containers).map(|n| (format!("c{n}"), container(n, turn))).collect();
    Whole { sandbox, containers, record: None }
}

pub fn container(n: usize, turn: u64) -> ContainerState {
    ContainerState {
        state: StateText::Running,
        cgroup_path: turn.to_string(),
        mounts: Some(vec![Mount {
            source: format!("/var/lib/images/{n}/rootfs"),
            destination: "/".to_owned(),
            options: Some(vec!["rw".to_owned(), "noatime".to_owned()]),
            ..Mount::default()
        }]),
        process: Process { token: format!("p{n}"), pid: 100, ..Process::default() },
        ..ContainerState::default()
    }
}

fn device(n: usize) -> DeviceState {
    DeviceState {
        id: format!("drive-{n:08x}"),
        major: 8,
        minor: i64::try_from(n).unwrap(),
        ref_count: 1,
        attach_count: 1,
        ..DeviceState::default()
    }
}

/// The turn that a state was made in, if all of it is of one.
pub fn turn(whole: &Whole) -> Result<u64, String> {
    let turn = &whole.sandbox.cgroup_path;
    for (name, state) in &whole.containers {
        if state.cgroup_path != *turn {
            return Err(format!("{name} is of {} in a sandbox of {turn}", state.cgroup_path));
        }
    }
    turn.parse().map_err(|error| format!("{turn:?}: {error}"))
}

pub fn none() -> Containers {
    Containers::new()
}
