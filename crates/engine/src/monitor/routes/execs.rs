//! The requests on further commands.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use schemars::JsonSchema;
use serde::Deserialize;

use super::super::Monitor;
use super::super::api::{Command, Exit, SignalRequest, SizeRequest, Started};
use super::super::execs::{self as table, Exec};
use super::{Answer, Shared};
use crate::error::Error;

/// Which one.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "WhichExec")]
pub(super) struct One {
    /// Its id in this sandbox.
    id: u64,
}

pub(super) async fn start(State(monitor): Shared, Json(command): Json<Command>) -> Answer<Started> {
    Ok(Json(table::start(&monitor, None, &command).await?))
}

fn find(monitor: &Monitor, id: u64) -> Result<Arc<Exec>, Error> {
    monitor.execs.get(id).ok_or(Error::NoExec { id })
}

pub(super) async fn exit(State(monitor): Shared, Path(One { id }): Path<One>) -> Answer<Exit> {
    let exec = find(&monitor, id)?;
    Ok(Json(Exit { exit_code: exec.process.wait().await? }))
}

pub(super) async fn signal(
    State(monitor): Shared,
    Path(One { id }): Path<One>,
    Json(asked): Json<SignalRequest>,
) -> Answer<()> {
    find(&monitor, id)?.process.signal(asked.signal).await?;
    Ok(Json(()))
}

pub(super) async fn size(
    State(monitor): Shared,
    Path(One { id }): Path<One>,
    Json(size): Json<SizeRequest>,
) -> Answer<()> {
    find(&monitor, id)?.process.resize(size.width, size.height).await?;
    Ok(Json(()))
}
