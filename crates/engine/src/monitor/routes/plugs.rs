//! The requests on what is plugged in, and on networks.

use axum::Json;
use axum::extract::State;

use super::super::api::{AttachRequest, Attached, LeaveRequest, PlugSpec, Plugged, RemoveRequest};
use super::{Answer, Shared};

pub(super) async fn list_networks(State(monitor): Shared) -> Json<Vec<Attached>> {
    Json(monitor.sandbox.networks().list())
}

pub(super) async fn add_network(
    State(monitor): Shared,
    Json(asked): Json<AttachRequest>,
) -> Answer<Vec<Attached>> {
    let sandbox = monitor.live()?;
    Ok(Json(sandbox.networks().add(sandbox.vm(), asked).await?))
}

pub(super) async fn remove_network(
    State(monitor): Shared,
    Json(asked): Json<LeaveRequest>,
) -> Answer<()> {
    let sandbox = monitor.live()?;
    Ok(Json(sandbox.networks().remove(sandbox.vm(), &asked.network).await?))
}

pub(super) async fn list_plugs(State(monitor): Shared) -> Json<Vec<Plugged>> {
    Json(monitor.sandbox.plugs().list())
}

pub(super) async fn add_plug(
    State(monitor): Shared,
    Json(spec): Json<PlugSpec>,
) -> Answer<Plugged> {
    let admitted = monitor.ledger.look(|record| record.order.sandbox.tuning.admits(&spec));
    admitted.map_err(crate::Error::from)?;
    Ok(Json(monitor.live()?.plugs().add(spec).await?))
}

pub(super) async fn remove_plug(
    State(monitor): Shared,
    Json(asked): Json<RemoveRequest>,
) -> Answer<Plugged> {
    Ok(Json(monitor.live()?.plugs().remove(asked.kind, &asked.key).await?))
}
