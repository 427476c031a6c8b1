//! Errors as RFC 9457 problem details: one table from what went wrong to what is answered.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::NodeError;

/// The media type of problem details (RFC 9457, section 6.1).
pub const PROBLEM_JSON: &str = "application/problem+json";

/// What every problem type begins with. The rest is the kind's name; `docs/api.md` lists them.
const TYPE_PREFIX: &str = "urn:penstock:problem:";

/// What went wrong, as RFC 9457 problem details.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// Which kind of problem it is: `urn:penstock:problem:` and a name that does not change.
    #[serde(rename = "type")]
    #[schema(example = "urn:penstock:problem:not-found")]
    pub type_uri: String,
    /// The kind in words, the same for every occurrence.
    #[schema(example = "No such device")]
    pub title: String,
    /// The HTTP status.
    #[schema(example = 404)]
    pub status: u16,
    /// This occurrence in words, with what to do next.
    #[schema(example = "there is no device d9; `penstock list` shows those there are")]
    pub detail: String,
    /// The path of the request, without its query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "/v1/devices/d9")]
    pub instance: Option<String>,
    /// Whether the same request may succeed later without anybody changing anything.
    #[serde(default)]
    pub transient: bool,
}

/// Every kind of problem that this API answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProblemKind {
    /// No such device.
    NotFound,
    /// The registry has no such image.
    ImageNotFound,
    /// The present state does not allow it.
    Conflict,
    /// A value in the request is wrong.
    Invalid,
    /// The registry refused the agent.
    RegistryDenied,
    /// The registry gave no usable answer.
    RegistryUnavailable,
    /// The registry sent other bytes than the digest names.
    RegistryWrongBytes,
    /// The image cannot be attached lazily.
    UnsupportedImage,
    /// The node lacks what is needed.
    Incapable,
    /// No room on the node.
    NoRoom,
    /// The request took too long.
    Deadline,
    /// The agent takes no work now.
    NotReady,
    /// A failure inside the agent.
    Internal,
    /// The request body is not JSON.
    MalformedJson,
    /// The request body is not declared as JSON.
    UnsupportedMediaType,
    /// The request body is larger than is read.
    BodyTooLarge,
    /// No such path.
    UnknownPath,
    /// The path does not take this method.
    MethodNotAllowed,
    /// The listener answers reads only.
    ReadOnly,
    /// Nobody that the agent knows asks.
    Unauthenticated,
    /// More is asked, or more often, than the agent answers.
    TooManyRequests,
    /// The request's target is longer than is read.
    UriTooLong,
    /// The request is meant for another host.
    Misdirected,
}

impl ProblemKind {
    /// All kinds, in the order of the documentation.
    pub const ALL: [Self; 23] = [
        Self::NotFound,
        Self::ImageNotFound,
        Self::Conflict,
        Self::Invalid,
        Self::RegistryDenied,
        Self::RegistryUnavailable,
        Self::RegistryWrongBytes,
        Self::UnsupportedImage,
        Self::Incapable,
        Self::NoRoom,
        Self::Deadline,
        Self::NotReady,
        Self::Internal,
        Self::MalformedJson,
        Self::UnsupportedMediaType,
        Self::BodyTooLarge,
        Self::UnknownPath,
        Self::MethodNotAllowed,
        Self::ReadOnly,
        Self::Unauthenticated,
        Self::TooManyRequests,
        Self::UriTooLong,
        Self::Misdirected,
    ];

    /// The table: name in the type URI, title, status, and whether another try may help.
    const fn row(self) -> (&'static str, &'static str, StatusCode, bool) {
        use StatusCode as S;
        match self {
            Self::NotFound => ("not-found", "No such device", S::NOT_FOUND, false),
            Self::ImageNotFound => ("image-not-found", "No such image", S::NOT_FOUND, false),
            Self::Conflict => ("conflict", "Not possible in the present state", S::CONFLICT, false),
            Self::Invalid => ("invalid-request", "Invalid request", S::BAD_REQUEST, false),
            Self::RegistryDenied => ("registry-denied", "The registry refused access", S::BAD_GATEWAY, false),
            Self::RegistryUnavailable => ("registry-unavailable", "The registry does not answer", S::BAD_GATEWAY, true),
            Self::RegistryWrongBytes => ("registry-wrong-bytes", "The registry sent wrong bytes", S::BAD_GATEWAY, true),
            Self::UnsupportedImage => {
                ("unsupported-image", "The image cannot be attached lazily", S::UNPROCESSABLE_ENTITY, false)
            }
            Self::Incapable => ("incapable", "This node cannot do that", S::NOT_IMPLEMENTED, false),
            Self::NoRoom => ("no-room", "No room on this node", S::INSUFFICIENT_STORAGE, true),
            Self::Deadline => ("deadline", "It took too long", S::GATEWAY_TIMEOUT, true),
            Self::NotReady => ("not-ready", "The agent is not ready", S::SERVICE_UNAVAILABLE, true),
            Self::Internal => ("internal", "The agent failed", S::INTERNAL_SERVER_ERROR, false),
            Self::MalformedJson => ("malformed-json", "The body is not JSON", S::BAD_REQUEST, false),
            Self::UnsupportedMediaType => {
                ("unsupported-media-type", "The body is not declared as JSON", S::UNSUPPORTED_MEDIA_TYPE, false)
            }
            Self::BodyTooLarge => ("body-too-large", "The body is too large", S::PAYLOAD_TOO_LARGE, false),
            Self::UnknownPath => ("unknown-path", "No such path", S::NOT_FOUND, false),
            Self::MethodNotAllowed => {
                ("method-not-allowed", "The path does not take this method", S::METHOD_NOT_ALLOWED, false)
            }
            Self::ReadOnly => ("read-only", "This listener only answers reads", S::FORBIDDEN, false),
            Self::Unauthenticated => ("unauthenticated", "Not authenticated", S::UNAUTHORIZED, false),
            Self::TooManyRequests => ("too-many-requests", "Too many requests", S::TOO_MANY_REQUESTS, true),
            Self::UriTooLong => ("uri-too-long", "The request's target is too long", S::URI_TOO_LONG, false),
            Self::Misdirected => ("misdirected", "Meant for another host", S::MISDIRECTED_REQUEST, false),
        }
    }

    /// The problem type as a URI.
    #[must_use]
    pub fn type_uri(self) -> String {
        format!("{TYPE_PREFIX}{}", self.row().0)
    }

    /// The title, the same for every occurrence.
    #[must_use]
    pub const fn title(self) -> &'static str {
        self.row().1
    }

    /// The HTTP status.
    #[must_use]
    pub const fn status(self) -> u16 {
        self.row().2.as_u16()
    }
}

impl Problem {
    /// A problem of this kind, with `detail` for this occurrence.
    #[must_use]
    pub fn new(kind: ProblemKind, detail: impl Into<String>) -> Self {
        let (_, title, status, transient) = kind.row();
        Self {
            type_uri: kind.type_uri(),
            title: title.to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
            instance: None,
            transient,
        }
    }

    /// The kind, unless a newer agent sent one that is not known here.
    #[must_use]
    pub fn kind(&self) -> Option<ProblemKind> {
        let name = self.type_uri.strip_prefix(TYPE_PREFIX)?;
        ProblemKind::ALL.into_iter().find(|kind| kind.row().0 == name)
    }
}

impl From<NodeError> for Problem {
    fn from(error: NodeError) -> Self {
        let (kind, detail) = match error {
            NodeError::NotFound(detail) => (ProblemKind::NotFound, detail),
            NodeError::ImageNotFound(detail) => (ProblemKind::ImageNotFound, detail),
            NodeError::Conflict(detail) => (ProblemKind::Conflict, detail),
            NodeError::Invalid(detail) => (ProblemKind::Invalid, detail),
            NodeError::Denied(detail) => (ProblemKind::RegistryDenied, detail),
            NodeError::Unavailable(detail) => (ProblemKind::RegistryUnavailable, detail),
            NodeError::WrongBytes(detail) => (ProblemKind::RegistryWrongBytes, detail),
            NodeError::Unsupported(detail) => (ProblemKind::UnsupportedImage, detail),
            NodeError::Incapable(detail) => (ProblemKind::Incapable, detail),
            NodeError::NoRoom(detail) => (ProblemKind::NoRoom, detail),
            NodeError::Deadline(detail) => (ProblemKind::Deadline, detail),
            NodeError::Busy(detail) => (ProblemKind::TooManyRequests, detail),
            NodeError::Stopping(detail) => (ProblemKind::NotReady, detail),
            NodeError::Internal(detail) => (ProblemKind::Internal, detail),
        };
        Self::new(kind, detail)
    }
}

impl IntoResponse for Problem {
    /// The status and the JSON, with the problem also in the response's extensions so that the router can add `instance`.
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (status, body).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        response.extensions_mut().insert(self);
        response
    }
}
