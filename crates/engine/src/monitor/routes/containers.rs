//! The requests on further containers.

use axum::Json;
use axum::extract::{Path, State};
use schemars::JsonSchema;
use serde::Deserialize;

use super::super::api::{
    Command, ContainerOrder, ContainerView, Exit, SignalRequest, SizeRequest, Started,
    StartedContainer,
};
use super::super::{containers as table, execs};
use super::{Answer, Shared};
use crate::further::FurtherRecord;

/// Which one.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "WhichContainer")]
pub(super) struct One {
    /// Its name.
    name: String,
}

pub(super) async fn list(State(monitor): Shared) -> Json<Vec<ContainerView>> {
    let all = |record: &crate::record::SandboxRecord| {
        record.containers.values().map(FurtherRecord::view).collect()
    };
    Json(monitor.ledger.look(all))
}

pub(super) async fn start(
    State(monitor): Shared,
    Json(order): Json<ContainerOrder>,
) -> Answer<StartedContainer> {
    Ok(Json(table::start(&monitor, order).await?))
}

pub(super) async fn show(
    State(monitor): Shared,
    Path(One { name }): Path<One>,
) -> Answer<ContainerView> {
    Ok(Json(monitor.container_view(&name)?))
}

pub(super) async fn started(
    State(monitor): Shared,
    Path(One { name }): Path<One>,
) -> Answer<StartedContainer> {
    Ok(Json(monitor.started(&name)?))
}

pub(super) async fn remove(State(monitor): Shared, Path(One { name }): Path<One>) -> Answer<()> {
    monitor.remove_container(&name).await?;
    Ok(Json(()))
}

pub(super) async fn exit(State(monitor): Shared, Path(One { name }): Path<One>) -> Answer<Exit> {
    Ok(Json(Exit { exit_code: monitor.container_exit(&name).await? }))
}

pub(super) async fn signal(
    State(monitor): Shared,
    Path(One { name }): Path<One>,
    Json(asked): Json<SignalRequest>,
) -> Answer<()> {
    monitor.live()?;
    monitor.running_container(&name)?.signal(asked.signal).await?;
    Ok(Json(()))
}

pub(super) async fn size(
    State(monitor): Shared,
    Path(One { name }): Path<One>,
    Json(size): Json<SizeRequest>,
) -> Answer<()> {
    monitor.live()?;
    monitor.running_container(&name)?.resize(size.width, size.height).await?;
    Ok(Json(()))
}

pub(super) async fn exec(
    State(monitor): Shared,
    Path(One { name }): Path<One>,
    Json(command): Json<Command>,
) -> Answer<Started> {
    Ok(Json(execs::start(&monitor, Some(&name), &command).await?))
}
