//! Reading a request: each way to get one wrong is a problem that names what is wrong.

use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Path, Query, Request},
    http::{HeaderMap, StatusCode, header, request::Parts},
    response::IntoResponse as _,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use utoipa::IntoParams;

use crate::{BODY_BYTES, BODY_DEADLINE, Problem, ProblemKind};

/// How a device is to be detached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DetachQuery {
    /// Detach even when it is in use; its readers get I/O errors.
    #[serde(default)]
    #[param(default = false)]
    pub force: bool,
}

/// A request body of JSON.
pub(crate) struct Body<T>(pub(crate) T);

/// The query of a request.
pub(crate) struct Params<T>(pub(crate) T);

/// The device named in the path.
pub(crate) struct Id(pub(crate) String);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        if !is_json(request.headers()) {
            let detail = "send the body with `Content-Type: application/json`";
            return Err(Problem::new(ProblemKind::UnsupportedMediaType, detail));
        }
        let reading = Box::pin(Bytes::from_request(request, state));
        let read = tokio::time::timeout(BODY_DEADLINE, reading).await.map_err(|_| {
            let detail = format!("the body did not come within {} s", BODY_DEADLINE.as_secs());
            Problem::new(ProblemKind::Invalid, detail)
        })?;
        let bytes = read.map_err(|rejection| {
            if rejection.into_response().status() == StatusCode::PAYLOAD_TOO_LARGE {
                let detail = format!("a request body may have at most {BODY_BYTES} bytes");
                Problem::new(ProblemKind::BodyTooLarge, detail)
            } else {
                Problem::new(ProblemKind::Invalid, "the body ended before it was whole")
            }
        })?;
        parse(&bytes).map(Self)
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Query::from_request_parts(parts, state).await {
            Ok(Query(value)) => Ok(Self(value)),
            Err(rejection) => Err(Problem::new(ProblemKind::Invalid, rejection.body_text())),
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(id)) => Ok(Self(id)),
            Err(rejection) => Err(Problem::new(ProblemKind::Invalid, rejection.body_text())),
        }
    }
}

/// Whether the body is declared as JSON. A browser cannot send that to another site without asking it first, so that a web page
/// cannot attach anything through an agent on TCP.
fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = value.and_then(|value| value.split(';').next()).map(str::trim);
    essence.is_some_and(|essence| essence.eq_ignore_ascii_case("application/json"))
}

/// Parses a body, telling text that is no JSON from JSON that is no such request.
fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(bytes).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => {
            Problem::new(ProblemKind::Invalid, format!("the body is not such a request: {error}"))
        }
        _ => Problem::new(ProblemKind::MalformedJson, format!("the body is not JSON: {error}")),
    })
}
