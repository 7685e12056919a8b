//! The requests on a sandbox and its own command.

use std::time::Duration;

use axum::Json;
use axum::extract::State;

use super::super::Monitor;
use super::super::api::{
    Diagnostics, Exit, SandboxView, SignalRequest, SizeRequest, StopRequest, Update, Usage,
};
use super::{Answer, Shared};
use crate::drift::Drift;
use crate::error::Error;

pub(super) async fn show(State(monitor): Shared) -> Json<SandboxView> {
    Json(monitor.view())
}

pub(super) async fn exit(State(monitor): Shared) -> Json<Exit> {
    Json(Exit { exit_code: exit_of(&monitor).await })
}

async fn exit_of(monitor: &Monitor) -> u32 {
    let mut exit = monitor.exit.subscribe();
    let code = exit.wait_for(Option::is_some).await;
    // We hold the sender.
    code.ok().and_then(|code| *code).unwrap_or(255)
}

pub(super) async fn signal(State(monitor): Shared, Json(asked): Json<SignalRequest>) -> Answer<()> {
    monitor.live()?;
    monitor.init.signal(asked.signal).await?;
    Ok(Json(()))
}

pub(super) async fn size(State(monitor): Shared, Json(size): Json<SizeRequest>) -> Answer<()> {
    monitor.live()?;
    monitor.init.resize(size.width, size.height).await?;
    Ok(Json(()))
}

pub(super) async fn stats(State(monitor): Shared) -> Answer<Usage> {
    let ask_guest = !monitor.is_paused();
    let sandbox = monitor.alive()?;
    let further = monitor.containers.all();
    let further: Vec<_> = further.iter().map(|it| it.container()).collect();
    Ok(Json(sandbox.usage(ask_guest, &further).await?))
}

pub(super) async fn diagnostics(State(monitor): Shared) -> Answer<Diagnostics> {
    Ok(Json(monitor.alive()?.diagnostics(!monitor.is_paused()).await))
}

pub(super) async fn drift(State(monitor): Shared) -> Answer<Vec<Drift>> {
    monitor.alive()?;
    Ok(Json(monitor.drift().await?))
}

pub(super) async fn update(
    State(monitor): Shared,
    Json(asked): Json<Update>,
) -> Answer<SandboxView> {
    monitor.update(&asked).await?;
    Ok(Json(monitor.view()))
}

pub(super) async fn pause(State(monitor): Shared) -> Answer<SandboxView> {
    monitor.set_paused(true).await?;
    Ok(Json(monitor.view()))
}

pub(super) async fn resume(State(monitor): Shared) -> Answer<SandboxView> {
    monitor.set_paused(false).await?;
    Ok(Json(monitor.view()))
}

pub(super) async fn stop(State(monitor): Shared, Json(asked): Json<StopRequest>) -> Answer<Exit> {
    let stage = *monitor.stage.borrow();
    if stage.is_up() {
        if monitor.is_paused() {
            monitor.set_paused(false).await?;
        }
        match monitor.ask_to_stop(Duration::from_secs(asked.timeout)).await {
            // It has ended by itself meanwhile.
            Ok(()) | Err(Error::NotRunning { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Json(Exit { exit_code: exit_of(&monitor).await }))
}

pub(super) async fn remove(State(monitor): Shared) -> Json<()> {
    monitor.remove.cancel();
    monitor.over.cancelled().await;
    Json(())
}
