//! The API's requests, each mapped to what answers it, and the document that describes them.
//!
//! The table below is both: what it does not name is not served, and the types of bodies and answers
//! in the document are those of the functions that take and give them.

mod containers;
mod execs;
mod plugs;
mod sandbox;

use std::sync::Arc;

use aide::axum::ApiRouter;
use aide::axum::routing::{ApiMethodRouter, get_with, post_with};
use aide::generate::GenContext;
use aide::openapi::{Info, OpenApi, Operation, Response as Described};
use aide::operation::OperationOutput;
use aide::transform::TransformOperation;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use tokio::net::UnixListener;

use super::api::Failure;
use super::{Error, Monitor};

/// The most of the library's own words that are passed on, in bytes.
const MOST_SAID: usize = 4096;

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

impl OperationOutput for Refusal {
    type Inner = Failure;

    fn operation_response(context: &mut GenContext, of: &mut Operation) -> Option<Described> {
        Json::<Failure>::operation_response(context, of)
    }

    fn inferred_responses(
        context: &mut GenContext,
        of: &mut Operation,
    ) -> Vec<(Option<u16>, Described)> {
        let failure = Self::operation_response(context, of);
        let failure = failure.map(|it| Described { description: "It failed.".to_owned(), ..it });
        failure.map(|it| (None, it)).into_iter().collect()
    }
}

/// Serves until the sandbox is over and the answers under way are out.
pub(super) async fn serve(monitor: Arc<Monitor>, listener: UnixListener) {
    let over = monitor.over.clone();
    let router = axum::Router::from(table())
        .fallback(async || StatusCode::NOT_FOUND)
        .layer(axum::middleware::map_response(tell))
        .with_state(monitor);
    let serving =
        axum::serve(listener, router).with_graceful_shutdown(async move { over.cancelled().await });
    if let Err(error) = serving.await {
        tracing::error!(%error, "the API ended");
    }
}

/// Tells what the library refuses, a body that is no JSON for example, as all failures are told.
async fn tell(response: Response) -> Response {
    let status = response.status();
    let is_told = response.headers().contains_key(CONTENT_TYPE)
        && response.headers()[CONTENT_TYPE] == "application/json";
    if !status.is_client_error() || is_told {
        return response;
    }
    let said = match axum::body::to_bytes(response.into_body(), MOST_SAID).await {
        Ok(bytes) if !bytes.is_empty() => String::from_utf8_lossy(&bytes).into_owned(),
        Ok(_) | Err(_) => match status {
            StatusCode::NOT_FOUND => "there is no such path".to_owned(),
            _ => status.to_string(),
        },
    };
    let failure = Failure {
        code: "E-REQUEST".to_owned(),
        message: "the request is not one of the API's".to_owned(),
        causes: vec![said],
        help: Some("`coracle api` prints what there is".to_owned()),
        exit_code: None,
    };
    (status, Json(failure)).into_response()
}

/// The OpenAPI document of the API.
pub(super) fn document() -> OpenApi {
    let mut document = OpenApi {
        info: Info {
            title: "coracle, one sandbox".to_owned(),
            version: "1".to_owned(),
            description: Some(
                "What a sandbox's monitor answers on `api.sock` in the sandbox's run directory."
                    .to_owned(),
            ),
            ..Info::default()
        },
        ..OpenApi::default()
    };
    drop(table().finish_api(&mut document));
    document
}

type Routes = ApiMethodRouter<Arc<Monitor>>;

fn table() -> ApiRouter<Arc<Monitor>> {
    sandbox_table().merge(containers_table()).merge(execs_table()).merge(plugs_table())
}

/// An operation's id and what it does.
fn is(
    id: &'static str,
    what: &'static str,
) -> impl Fn(TransformOperation<'_>) -> TransformOperation<'_> {
    move |operation| operation.id(id).summary(what)
}

fn sandbox_table() -> ApiRouter<Arc<Monitor>> {
    let whole: Routes = get_with(sandbox::show, is("showSandbox", "Shows the sandbox."))
        .delete_with(
            sandbox::remove,
            is("removeSandbox", "Removes it, and answers when nothing of it is left but this."),
        );
    ApiRouter::new()
        .api_route("/v1/sandbox", whole)
        .api_route(
            "/v1/exit",
            get_with(sandbox::exit, is("waitForExit", "Answers when its command has ended.")),
        )
        .api_route(
            "/v1/signal",
            post_with(sandbox::signal, is("signal", "Sends its command a signal.")),
        )
        .api_route(
            "/v1/size",
            post_with(sandbox::size, is("resize", "Sets the size of its command's terminal.")),
        )
        .api_route(
            "/v1/stop",
            post_with(
                sandbox::stop,
                is("stop", "Ends its command, and answers when the VM is down."),
            ),
        )
        .api_route("/v1/stats", get_with(sandbox::stats, is("stats", "Says what it uses.")))
        .api_route(
            "/v1/diagnostics",
            get_with(
                sandbox::diagnostics,
                is("diagnostics", "Shows what is to be seen of its inside."),
            ),
        )
        .api_route(
            "/v1/drift",
            get_with(
                sandbox::drift,
                is("drift", "Says where what is written down and what there is differ."),
            ),
        )
        .api_route(
            "/v1/update",
            post_with(sandbox::update, is("update", "Gives it more or less of something.")),
        )
        .api_route("/v1/pause", post_with(sandbox::pause, is("pause", "Stops its processors.")))
        .api_route("/v1/resume", post_with(sandbox::resume, is("resume", "Lets it go on.")))
}

fn containers_table() -> ApiRouter<Arc<Monitor>> {
    let all: Routes =
        get_with(containers::list, is("listContainers", "Lists its further containers."))
            .post_with(containers::start, is("startContainer", "Starts a further container."));
    let one: Routes = get_with(containers::show, is("showContainer", "Shows a container."))
        .delete_with(containers::remove, is("removeContainer", "Removes a container, by force."));
    ApiRouter::new()
        .api_route("/v1/containers", all)
        .api_route("/v1/containers/{name}", one)
        .api_route(
            "/v1/containers/{name}/started",
            get_with(
                containers::started,
                is("showStarted", "Answers once more what the start of a container answered."),
            ),
        )
        .api_route(
            "/v1/containers/{name}/exit",
            get_with(
                containers::exit,
                is("waitForContainerExit", "Answers when its command has ended."),
            ),
        )
        .api_route(
            "/v1/containers/{name}/signal",
            post_with(containers::signal, is("signalContainer", "Sends its command a signal.")),
        )
        .api_route(
            "/v1/containers/{name}/size",
            post_with(
                containers::size,
                is("resizeContainer", "Sets the size of its command's terminal."),
            ),
        )
        .api_route(
            "/v1/containers/{name}/execs",
            post_with(containers::exec, is("startExecIn", "Starts another command in it.")),
        )
}

fn execs_table() -> ApiRouter<Arc<Monitor>> {
    ApiRouter::new()
        .api_route(
            "/v1/execs",
            post_with(execs::start, is("startExec", "Starts a further command.")),
        )
        .api_route(
            "/v1/execs/{id}/exit",
            get_with(execs::exit, is("waitForExecExit", "Answers when it has ended.")),
        )
        .api_route(
            "/v1/execs/{id}/signal",
            post_with(execs::signal, is("signalExec", "Sends it a signal.")),
        )
        .api_route(
            "/v1/execs/{id}/size",
            post_with(execs::size, is("resizeExec", "Sets its terminal's size.")),
        )
}

fn plugs_table() -> ApiRouter<Arc<Monitor>> {
    let networks: Routes =
        get_with(plugs::list_networks, is("listNetworks", "Lists the networks it is on."))
            .post_with(plugs::add_network, is("attachNetwork", "Puts it on a network."));
    let plugs: Routes = get_with(plugs::list_plugs, is("listPlugs", "Lists what is plugged in."))
        .post_with(plugs::add_plug, is("addPlug", "Plugs something in."));
    ApiRouter::new()
        .api_route("/v1/networks", networks)
        .api_route(
            "/v1/networks/remove",
            post_with(plugs::remove_network, is("detachNetwork", "Takes it off a network.")),
        )
        .api_route("/v1/plugs", plugs)
        .api_route(
            "/v1/plugs/remove",
            post_with(plugs::remove_plug, is("removePlug", "Takes something out.")),
        )
}
