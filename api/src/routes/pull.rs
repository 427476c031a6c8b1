//! The route that puts an image into containerd's content store.

use axum::{
    extract::State,
    response::{IntoResponse as _, Response},
};

use super::{Result, Shared};
use crate::{Problem, Pull, PullProgress, Pulled, extract::Body, pull};

/// Puts an image whole into containerd's content store, so that exporting, pushing and committing it work. What containerd has is not
/// written again, and what is cached is not fetched again.
///
/// The answer is a stream of server-sent events: `progress` messages (a `PullProgress` each), and as the last one `done` (a `Pulled`) or
/// `failed` (a `Problem`). Closing it ends the pull; the same request goes on from there.
#[utoipa::path(post, path = "/v1/pull", tag = "containerd", request_body = Pull, responses(
    (status = 200, body = String, content_type = "text/event-stream", description = "It goes on, and how it ended"),
    (status = 400, body = Problem, content_type = "application/problem+json", description = "The request is wrong"),
    (status = 404, body = Problem, content_type = "application/problem+json", description = "The registry has no such image"),
    (status = 429, body = Problem, content_type = "application/problem+json", description = "As many pulls as the agent makes are under way"),
    (status = "default", body = Problem, content_type = "application/problem+json", description = "A problem"),
))]
pub(super) async fn pull(State(node): State<Shared>, Body(request): Body<Pull>) -> Result<Response> {
    Ok(pull::answer(node.pull(request).await?).into_response())
}

/// The types of the messages, which no other route names.
#[derive(utoipa::OpenApi)]
#[openapi(components(schemas(PullProgress, Pulled)))]
pub(super) struct Messages;
