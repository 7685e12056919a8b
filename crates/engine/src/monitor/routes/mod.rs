//! The API's requests, each mapped to what answers it.

mod containers;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use tokio::net::UnixListener;

use super::api::{
    AttachRequest, Attached, Command, Diagnostics, Exit, Failure, LeaveRequest, PlugSpec, Plugged,
    RemoveRequest, SandboxView, SignalRequest, SizeRequest, Started, StopRequest, Update, Usage,
};
use super::execs::{self, Exec};
use super::{Error, Monitor};

type Shared = State<Arc<Monitor>>;
type Answer<T> = Result<Json<T>, Refusal>;

/// An error on its way to the client.
struct Refusal(Error);

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = match &self.0 {
            Error::NotPlugged { .. }
            | Error::NoExec { .. }
            | Error::NotOnNetwork { .. }
            | Error::ContainerUnknown { .. } => StatusCode::NOT_FOUND,
            Error::DestinationTaken { .. }
            | Error::PlugBusy { .. }
            | Error::NetworkTaken { .. }
            | Error::ContainerExists { .. }
            | Error::ContainerExited { .. }
            | Error::ContainerBusy { .. }
            | Error::NotRunning { .. }
            | Error::Paused { .. } => StatusCode::CONFLICT,
            error if error.exit_code().is_some() => StatusCode::UNPROCESSABLE_ENTITY,
            Error::BadPlug { .. } | Error::AmbiguousPlug { .. } | Error::NoCommand => {
                StatusCode::BAD_REQUEST
            }
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, Json(Failure::of(&self.0))).into_response()
    }
}

/// Serves until the sandbox is over and the answers under way are out.
pub(super) async fn serve(monitor: Arc<Monitor>, listener: UnixListener) {
    let over = monitor.over.clone();
    let router = Router::new()
        .route("/v1/sandbox", get(show).delete(remove))
        .route("/v1/exit", get(exit))
        .route("/v1/signal", post(signal))
        .route("/v1/stop", post(stop))
        .route("/v1/stats", get(stats))
        .route("/v1/diagnostics", get(diagnostics))
        .route("/v1/update", post(update))
        .route("/v1/pause", post(pause))
        .route("/v1/resume", post(resume))
        .route("/v1/size", post(size))
        .route("/v1/containers", get(containers::list).post(containers::start))
        .route("/v1/containers/{name}", get(containers::show).delete(containers::remove))
        .route("/v1/containers/{name}/exit", get(containers::exit))
        .route("/v1/containers/{name}/signal", post(containers::signal))
        .route("/v1/containers/{name}/size", post(containers::size))
        .route("/v1/containers/{name}/execs", post(containers::exec))
        .route("/v1/execs", post(start_exec))
        .route("/v1/execs/{id}/exit", get(exec_exit))
        .route("/v1/execs/{id}/signal", post(exec_signal))
        .route("/v1/execs/{id}/size", post(exec_size))
        .route("/v1/networks", get(list_networks).post(add_network))
        .route("/v1/networks/remove", post(remove_network))
        .route("/v1/plugs", get(list_plugs).post(add_plug))
        .route("/v1/plugs/remove", post(remove_plug))
        .with_state(monitor);
    let serving =
        axum::serve(listener, router).with_graceful_shutdown(async move { over.cancelled().await });
    if let Err(error) = serving.await {
        tracing::error!(%error, "the API ended");
    }
}

async fn show(State(monitor): Shared) -> Json<SandboxView> {
    Json(monitor.view())
}

async fn exit(State(monitor): Shared) -> Json<Exit> {
    Json(Exit { exit_code: exit_of(&monitor).await })
}

async fn exit_of(monitor: &Monitor) -> u32 {
    let mut exit = monitor.exit.subscribe();
    let code = exit.wait_for(Option::is_some).await;
    // We hold the sender.
    code.ok().and_then(|code| *code).unwrap_or(255)
}

async fn signal(State(monitor): Shared, Json(asked): Json<SignalRequest>) -> Answer<()> {
    monitor.live()?;
    monitor.init.signal(asked.signal).await?;
    Ok(Json(()))
}

async fn size(State(monitor): Shared, Json(size): Json<SizeRequest>) -> Answer<()> {
    monitor.live()?;
    monitor.init.resize(size.width, size.height).await?;
    Ok(Json(()))
}

async fn stats(State(monitor): Shared) -> Answer<Usage> {
    let ask_guest = !monitor.is_paused();
    Ok(Json(monitor.alive()?.usage(ask_guest).await?))
}

async fn diagnostics(State(monitor): Shared) -> Answer<Diagnostics> {
    Ok(Json(monitor.alive()?.diagnostics(!monitor.is_paused()).await))
}

async fn update(State(monitor): Shared, Json(asked): Json<Update>) -> Answer<SandboxView> {
    monitor.update(&asked).await?;
    Ok(Json(monitor.view()))
}

async fn pause(State(monitor): Shared) -> Answer<SandboxView> {
    monitor.set_paused(true).await?;
    Ok(Json(monitor.view()))
}

async fn resume(State(monitor): Shared) -> Answer<SandboxView> {
    monitor.set_paused(false).await?;
    Ok(Json(monitor.view()))
}

async fn stop(State(monitor): Shared, Json(asked): Json<StopRequest>) -> Answer<Exit> {
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

async fn remove(State(monitor): Shared) -> Json<()> {
    monitor.remove.cancel();
    monitor.over.cancelled().await;
    Json(())
}

async fn start_exec(State(monitor): Shared, Json(command): Json<Command>) -> Answer<Started> {
    Ok(Json(execs::start(&monitor, None, &command).await?))
}

fn find(monitor: &Monitor, id: u64) -> Result<Arc<Exec>, Error> {
    monitor.execs.get(id).ok_or(Error::NoExec { id })
}

async fn exec_exit(State(monitor): Shared, Path(id): Path<u64>) -> Answer<Exit> {
    let exec = find(&monitor, id)?;
    Ok(Json(Exit { exit_code: exec.process.wait().await? }))
}

async fn exec_signal(
    State(monitor): Shared,
    Path(id): Path<u64>,
    Json(asked): Json<SignalRequest>,
) -> Answer<()> {
    find(&monitor, id)?.process.signal(asked.signal).await?;
    Ok(Json(()))
}

async fn exec_size(
    State(monitor): Shared,
    Path(id): Path<u64>,
    Json(size): Json<SizeRequest>,
) -> Answer<()> {
    find(&monitor, id)?.process.resize(size.width, size.height).await?;
    Ok(Json(()))
}

async fn list_networks(State(monitor): Shared) -> Json<Vec<Attached>> {
    Json(monitor.sandbox.networks().list())
}

async fn add_network(
    State(monitor): Shared,
    Json(asked): Json<AttachRequest>,
) -> Answer<Vec<Attached>> {
    let sandbox = monitor.live()?;
    Ok(Json(sandbox.networks().add(sandbox.vm(), asked).await?))
}

async fn remove_network(State(monitor): Shared, Json(asked): Json<LeaveRequest>) -> Answer<()> {
    let sandbox = monitor.live()?;
    Ok(Json(sandbox.networks().remove(sandbox.vm(), &asked.network).await?))
}

async fn list_plugs(State(monitor): Shared) -> Json<Vec<Plugged>> {
    Json(monitor.sandbox.plugs().list())
}

async fn add_plug(State(monitor): Shared, Json(spec): Json<PlugSpec>) -> Answer<Plugged> {
    let admitted = monitor.ledger.look(|record| record.order.sandbox.tuning.admits(&spec));
    admitted.map_err(crate::Error::from)?;
    Ok(Json(monitor.live()?.plugs().add(spec).await?))
}

async fn remove_plug(State(monitor): Shared, Json(asked): Json<RemoveRequest>) -> Answer<Plugged> {
    Ok(Json(monitor.live()?.plugs().remove(asked.kind, &asked.key).await?))
}
