//! The routes, each beside its description.

use std::{borrow::Cow, cmp::Reverse, panic::AssertUnwindSafe, sync::Arc};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
};
use futures_util::FutureExt as _;
use utoipa::OpenApi as _;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    Attach, BLOBS_LISTED, BODY_BYTES, BlockMap, CacheUsage, Change, DetachQuery, Detached, Device, EVENTS_LISTED,
    Events, EventsQuery, Node, Problem, ProblemKind, Readiness, RegistryHosts, Version, credential, explain,
    extract::{Body, Id, Params},
    follow, inspect, latency, live, memory, page, recording, snapshot,
};

/// OpenMetrics 1.0 text, which Prometheus asks for and understands.
const OPENMETRICS: HeaderValue = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

mod cache;
mod pull;

pub(crate) type Shared = Arc<dyn Node>;
pub(crate) type Result<T, E = Problem> = std::result::Result<T, E>;

#[derive(utoipa::OpenApi)]
#[openapi(info(
    title = "Penstock node API",
    version = "v1",
    description = "What the Penstock agent of one node is asked and answers. Every answer outside 2xx is an RFC 9457 problem.",
    license(name = "Apache-2.0", identifier = "Apache-2.0")
))]
struct Description;

/// All routes over `node`, ready to be served. See the crate's invariants.
pub fn router(node: Arc<dyn Node>) -> Router {
    unsealed(node).layer(from_fn(seal))
}

/// The same routes, of which only those that change nothing are served: for a listener that cannot tell who asks.
pub fn read_only_router(node: Arc<dyn Node>) -> Router {
    unsealed(node).layer(from_fn(refuse_changes)).layer(from_fn(seal))
}

fn unsealed(node: Arc<dyn Node>) -> Router {
    let (router, _) = described().split_for_parts();
    router
        .merge(page::router())
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES))
        .with_state(node)
}

/// The OpenAPI description of [`router`], from the same declarations.
#[must_use]
pub fn openapi() -> utoipa::openapi::OpenApi {
    described().into_openapi()
}

fn described() -> OpenApiRouter<Shared> {
    OpenApiRouter::with_openapi(
        Description::openapi().merge_from(pull::Messages::openapi()).merge_from(live::Messages::openapi()),
    )
    .routes(routes!(healthz))
    .routes(routes!(readyz))
    .routes(routes!(metrics))
    .routes(routes!(devices, attach, detach_all))
    .routes(routes!(device, change, detach))
    .routes(routes!(blocks))
    .routes(routes!(explain::explain))
    .routes(routes!(latency::latency))
    .routes(routes!(memory::memory))
    .routes(routes!(cache))
    .routes(routes!(cache::evict))
    .routes(routes!(cache::clear))
    .routes(routes!(cache::verify))
    .routes(routes!(credential::credentials, credential::hand_over, credential::withdraw))
    .routes(routes!(endpoints))
    .routes(routes!(snapshot::snapshots))
    .routes(routes!(snapshot::repair))
    .routes(routes!(recording::recordings))
    .routes(routes!(recording::remove))
    .routes(routes!(recording::record, recording::end))
    .routes(routes!(pull::pull))
    .routes(routes!(inspect::inspect))
    .routes(routes!(events))
    .routes(routes!(live::live))
    .routes(routes!(version))
}

/// Whether the agent's process answers. It may still be starting or stopping: see `/readyz`.
#[utoipa::path(get, path = "/healthz", tag = "health", responses((status = 200, body = str, description = "It does")))]
async fn healthz() -> &'static str {
    "ok\n"
}

/// Whether the agent takes work.
#[utoipa::path(get, path = "/readyz", tag = "health", responses(
    (status = 200, body = str, description = "It does: `ok`, or `degraded: ` and why it can serve only what is cached"),
    (status = 503, body = Problem, content_type = "application/problem+json", description = "It does not, and why"),
))]
async fn readyz(State(node): State<Shared>) -> Result<Cow<'static, str>> {
    match node.readiness() {
        Readiness::Ready => Ok(Cow::Borrowed("ok\n")),
        Readiness::Degraded(reason) => Ok(Cow::Owned(format!("degraded: {reason}\n"))),
        Readiness::NotReady(reason) => Err(Problem::new(ProblemKind::NotReady, reason)),
    }
}

/// All metrics, in the OpenMetrics text format.
#[utoipa::path(get, path = "/metrics", tag = "health", responses(
    (status = 200, body = str, content_type = "application/openmetrics-text", description = "The metrics"),
    (status = "default", body = Problem, content_type = "application/problem+json", description = "A problem"),
))]
async fn metrics(State(node): State<Shared>) -> Result<Response> {
    let text = node.metrics().await?;
    Ok(([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response())
}

/// All devices, in the order in which they were attached.
#[utoipa::path(get, path = "/v1/devices", tag = "devices", responses(
    (status = 200, body = Vec<Device>, description = "The devices"),
    (status = "default", body = Problem, content_type = "application/problem+json", description = "A problem"),
))]
async fn devices(State(node): State<Shared>) -> Result<Json<Vec<Device>>> {
    Ok(Json(node.devices().await?))
}

/// One device.
#[utoipa::path(get, path = "/v1/devices/{id}", tag = "devices",
    params(("id" = String, Path, description = "The device")),
    responses(
        (status = 200, body = Device, description = "The device"),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "There is no such device"),
        (status = "default", body = Problem, content_type = "application/problem+json", description = "A problem"),
    ))]
async fn device(State(node): State<Shared>, Id(id): Id) -> Result<Json<Device>> {
    Ok(Json(node.device(&id).await?))
}

/// Changes what is set of a device. It takes effect at once, also for readers that wait now, and outlives the agent.
#[utoipa::path(patch, path = "/v1/devices/{id}", tag = "devices", request_body = Change,
    params(("id" = String, Path, description = "The device")),
    responses(
        (status = 200, body = Device, description = "The device as it is now"),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "A value is out of its bounds"),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "There is no such device"),
        (status = "default", body = Problem, content_type = "application/problem+json", description = "A problem"),
    ))]
async fn change(State(node): State<Shared>, Id(id): Id, Body(change): Body<Change>) -> Result<Json<Device>> {
    Ok(Json(node.change(&id, change).await?))
}

/// Attaches an image, and answers once it can be read.
#[utoipa::path(post, path = "/v1/devices", tag = "devices", request_body = Attach, responses(
    (status = 201, body = Device, description = "The device", headers(("Location" = String, description = "Its path"))),
    (status = 400, body = Problem, content_type = "application/problem+json", description = "The request is wrong"),
    (status = 404, body = Problem, content_type = "application/problem+json", description = "The registry has no such image"),
    (status = 409, body = Problem, content_type = "application/problem+json", description = "The mount point is taken"),
    (status = 422, body = Problem, content_type = "application/problem+json", description = "The image cannot be attached lazily"),
    (status = 502, body = Problem, content_type = "application/problem+json", description = "The registry refused or did not answer"),
    (status = "default", body = Problem, content_type = "application/problem+json", description = "A problem"),
))]
async fn attach(State(node): State<Shared>, Body(request): Body<Attach>) -> Result<Response> {
    let device = node.attach(request).await?;
    let mut response = (StatusCode::CREATED, Json(&device)).into_response();
    // An ID that does not fit in a header leaves the header out: the body names the device too.
    if let Ok(location) = HeaderValue::try_from(format!("/v1/devices/{}", device.id)) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// Detaches one device.
#[utoipa::path(delete, path = "/v1/devices/{id}", tag = "devices",
    params(("id" = String, Path, description = "The device"), DetachQuery),
    responses(
        (status = 204, description = "It is gone"),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "There is no such device"),
        (status = 409, body = Problem, content_type = "application/problem+json", description = "It is in use"),
        (status = "default", body = Problem, content_type = "application/problem+json", description = "A problem"),
    ))]
async fn detach(State(node): State<Shared>, Id(id): Id, Params(query): Params<DetachQuery>) -> Result<StatusCode> {
    node.detach(&id, query.force).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Detaches all devices. One that cannot go does not keep the others, and is listed with its problem.
#[utoipa::path(delete, path = "/v1/devices", tag = "devices", params(DetachQuery), responses(
    (status = 200, body = Detached, description = "What became of each"),
    (status = "default", body = Problem, content_type = "application/problem+json", description = "A problem"),
))]
async fn detach_all(State(node): State<Shared>, Params(query): Params<DetachQuery>) -> Result<Json<Detached>> {
    Ok(Json(node.detach_all(query.force).await?))
}

/// What of a device's blobs is here, coarsely: a map of at most 4096 cells.
#[utoipa::path(get, path = "/v1/devices/{id}/blocks", tag = "devices",
    params(("id" = String, Path, description = "The device")),
    responses(
        (status = 200, body = BlockMap, description = "The map"),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "There is no such device"),
        (status = "default", body = Problem, content_type = "application/problem+json", description = "A problem"),
    ))]
async fn blocks(State(node): State<Shared>, Id(id): Id) -> Result<Json<BlockMap>> {
    Ok(Json(node.blocks(&id).await?))
}

/// What is kept on this node.
#[utoipa::path(get, path = "/v1/cache", tag = "cache", responses(
    (status = 200, body = CacheUsage, description = "The cache"),
    (status = "default", body = Problem, content_type = "application/problem+json", description = "A problem"),
))]
async fn cache(State(node): State<Shared>) -> Result<Json<CacheUsage>> {
    let mut usage = node.cache().await?;
    usage.blobs.sort_unstable_by_key(|blob| (Reverse(blob.present_bytes), blob.digest));
    usage.blobs.truncate(BLOBS_LISTED);
    Ok(Json(usage))
}

/// Whom this node asks for the content of registries, in which order, and how they fare. Registries appear once they are served
/// from or were asked.
#[utoipa::path(get, path = "/v1/endpoints", tag = "endpoints", responses(
    (status = 200, body = Vec<RegistryHosts>, description = "The registries and their endpoints"),
    (status = "default", body = Problem, content_type = "application/problem+json", description = "A problem"),
))]
async fn endpoints(State(node): State<Shared>) -> Result<Json<Vec<RegistryHosts>>> {
    Ok(Json(node.endpoints().await?))
}

/// What has happened on this node lately, oldest first. With `Accept: text/event-stream`, also what happens from then on, as
/// server-sent events: `Last-Event-ID` goes on where a stream broke off, and counts for more than `since`.
#[utoipa::path(get, path = "/v1/events", tag = "events",
    params(EventsQuery, ("Last-Event-ID" = Option<String>, Header, description = "The last ID seen of a stream")),
    responses(
        (status = 200, description = "The events", content((Events = "application/json"), (String = "text/event-stream"))),
        (status = 429, body = Problem, content_type = "application/problem+json", description = "As many follow already as the agent allows"),
        (status = "default", body = Problem, content_type = "application/problem+json", description = "A problem"),
    ))]
async fn events(
    State(node): State<Shared>,
    headers: HeaderMap,
    Params(query): Params<EventsQuery>,
) -> Result<Response> {
    if !follow::is_wanted(&headers) {
        return Ok(Json(node.events(query.since, EVENTS_LISTED).await?).into_response());
    }
    let started_at = node.version().started_at;
    let (since, is_restarted) = follow::resume(follow::place(&headers)?, query.since, started_at);
    Ok(follow::answer(node.follow(since)?, is_restarted).into_response())
}

/// Which agent answers.
#[utoipa::path(get, path = "/v1/version", tag = "health", responses((status = 200, body = Version, description = "The agent")))]
async fn version(State(node): State<Shared>) -> Json<Version> {
    Json(node.version())
}

async fn unknown_path() -> Problem {
    Problem::new(ProblemKind::UnknownPath, "there is nothing at this path; docs/api.md lists the paths there are")
}

async fn wrong_method(request: Request) -> Problem {
    let detail = format!("this path does not take {}; the Allow header lists what it takes", request.method());
    Problem::new(ProblemKind::MethodNotAllowed, detail)
}

/// Lets through only what HTTP defines as safe (RFC 9110, section 9.2.1).
async fn refuse_changes(request: Request, next: Next) -> Response {
    if request.method().is_safe() {
        return next.run(request).await;
    }
    let detail = format!(
        "{} changes something; this listener only answers reads: use the agent's unix socket",
        request.method()
    );
    Problem::new(ProblemKind::ReadOnly, detail).into_response()
}

/// Puts the request's path into a problem's `instance`, and turns a panic in a route into a problem.
async fn seal(request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let answer = AssertUnwindSafe(next.run(request)).catch_unwind().await;
    let mut response = answer.unwrap_or_else(|_| {
        tracing::error!(path, "a route panicked; the panic message is above");
        Problem::new(ProblemKind::Internal, "the agent failed inside; its log has the reason").into_response()
    });
    let Some(mut problem) = response.extensions_mut().remove::<Problem>() else { return response };
    problem.instance = Some(path);
    let mut sealed = problem.into_response();
    for (name, value) in response.headers() {
        if name != header::CONTENT_TYPE && name != header::CONTENT_LENGTH {
            sealed.headers_mut().insert(name, value.clone());
        }
    }
    sealed
}
