//! Answering a request: what it asks, what goes wrong with it, and what it gets.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header, request::Parts};
use hyper::body::Incoming;
use parking_lot::Mutex;
use penstock_blob::{ByteRange, Digest};
use tokio::time::Instant;

use crate::{
    auth::{Gate, whole_seconds},
    body::{Body, Flaw, Stalls},
    config::{Addresses, Redirect},
    fault::{Fault, Faults},
    link::Link,
    push::{Uploads, whole},
    query,
    range::{Wanted, wanted},
    record::Record,
    refusal::Refusal,
    route::{Name, Route},
    store::{Content, Store},
    wire::{Cut, Wire},
};

/// What all connections of a registry share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) addresses: Addresses,
    pub(crate) redirect: Mutex<Option<Redirect>>,
    pub(crate) latency: Mutex<Duration>,
    pub(crate) store: Store,
    pub(crate) uploads: Uploads,
    pub(crate) gate: Gate,
    pub(crate) faults: Faults,
    pub(crate) stalls: Arc<Stalls>,
    pub(crate) record: Record,
    pub(crate) link: Arc<Link>,
    pub(crate) signer: Signer,
}

/// What a request is answered with.
#[derive(Debug)]
pub(crate) struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    content: Content,
    /// The bytes of the content that are the body.
    sent: Option<ByteRange>,
    /// The bytes that a `Range` header asked for.
    asked: Option<ByteRange>,
}

impl Answer {
    /// An answer without a body.
    pub(crate) fn empty(status: StatusCode) -> Self {
        Self::of_bytes(status, Bytes::new())
    }

    pub(crate) fn of_bytes(status: StatusCode, bytes: Bytes) -> Self {
        let sent = ByteRange::new(0, bytes.len() as u64).ok();
        Self { status, headers: HeaderMap::new(), content: Content::Memory(bytes), sent, asked: None }
    }

    pub(crate) fn json(status: StatusCode, value: &serde_json::Value) -> Self {
        Self::of_bytes(status, value.to_string().into()).with(header::CONTENT_TYPE, "application/json")
    }

    /// The same with a header. A value that cannot stand in a header (nothing here makes one) is left out.
    pub(crate) fn with(mut self, name: impl header::IntoHeaderName, value: impl TryInto<HeaderValue>) -> Self {
        if let Ok(value) = value.try_into() {
            self.headers.insert(name, value);
        }
        self
    }

    fn length(&self) -> u64 {
        self.sent.map_or(0, ByteRange::len)
    }

    fn into_response(
        self,
        head_only: bool,
        flaw: Option<Flaw>,
        wire: &Arc<Wire>,
        stalls: &Arc<Stalls>,
    ) -> Response<Body> {
        let length = self.length();
        let body = Body::new(self.content, self.sent.filter(|_| !head_only));
        let body = flaw.into_iter().fold(body, |body, flaw| body.flawed(flaw, wire, stalls));
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response.headers_mut().insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
        if self.status != StatusCode::NO_CONTENT {
            response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
        }
        response
    }
}

/// The header by which clients know a registry.
const API_VERSION: &str = "docker-distribution-api-version";

/// The header that names what is answered.
pub(crate) const CONTENT_DIGEST: &str = "docker-content-digest";

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Self {
        let mut answer = Self::of_bytes(refusal.status, refusal.body().into());
        answer.headers.extend(refusal.headers);
        answer.with(header::CONTENT_TYPE, "application/json")
    }
}

/// Serves one request of one connection.
pub(crate) async fn serve(shared: &Arc<Shared>, wire: &Arc<Wire>, request: Request<Incoming>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let route = Route::of(head.uri.path());
    let entry = shared.record.begin(&head.method, head.uri.path(), &route);
    let redirects = shared.redirect.lock().is_some();
    let fault = shared.faults.take(&head.method, &route, redirects);
    let latency = *shared.latency.lock();
    let late = if let Some(Fault::Delay(by)) = fault { latency.saturating_add(by) } else { latency };
    if !late.is_zero() {
        tokio::time::sleep(late).await;
    }
    let mut answer = match fault.as_ref().and_then(|fault| instead(shared, fault, &head, &route)) {
        Some(refusal) => refusal.into(),
        None => {
            let ignore_range = fault == Some(Fault::IgnoreRange);
            dispatch(shared, &head, &route, Asked { body, ignore_range }).await.unwrap_or_else(Answer::from)
        }
    };
    if fault == Some(Fault::WrongContentRange) {
        misstate(&mut answer.headers);
    }
    entry.answered(answer.status.as_u16(), answer.asked);
    wire.begin(entry);
    let flaw = fault.and_then(|fault| flaw(&fault, answer.length()));
    answer.into_response(head.method == Method::HEAD, flaw, wire, &shared.stalls)
}

/// The refusal that a fault puts in place of an answer.
fn instead(shared: &Shared, fault: &Fault, head: &Parts, route: &Route) -> Option<Refusal> {
    match fault {
        Fault::Status(status) => {
            let status = StatusCode::from_u16(*status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            Some(Refusal::new(status, "UNKNOWN", "a fault, as asked for"))
        }
        Fault::TooMany { retry_after } => {
            let refusal = Refusal::new(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", "too many requests");
            Some(match retry_after {
                Some(after) => refusal.with(header::RETRY_AFTER, whole_seconds(*after).into()),
                None => refusal,
            })
        }
        Fault::Unauthorized => Some(shared.gate.refuse(&shared.host(), route.repository(), &head.method)),
        Fault::ExpiredRedirect => Some(expired()),
        Fault::ResetMidBody { .. }
        | Fault::ShortBody
        | Fault::WrongContentRange
        | Fault::IgnoreRange
        | Fault::Stall
        | Fault::Delay(_)
        | Fault::WrongBytes => None,
    }
}

/// What a fault does to a body of `length` bytes.
fn flaw(fault: &Fault, length: u64) -> Option<Flaw> {
    match fault {
        Fault::ResetMidBody { after_bytes } => Some(Flaw::Cut { after_bytes: *after_bytes, how: Cut::Reset }),
        Fault::ShortBody => Some(Flaw::Cut { after_bytes: length / 2, how: Cut::Close }),
        Fault::WrongBytes => Some(Flaw::Flip { at: length / 2 }),
        Fault::Stall => Some(Flaw::Stall),
        _ => None,
    }
}

/// Moves a `Content-Range` by one byte.
fn misstate(headers: &mut HeaderMap) {
    let stated = headers.get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let moved = stated.and_then(|text| {
        let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let next = |number: &str| number.parse::<u64>().ok()?.checked_add(1);
        HeaderValue::try_from(format!("bytes {}-{}/{size}", next(first)?, next(last)?)).ok()
    });
    if let Some(moved) = moved {
        headers.insert(header::CONTENT_RANGE, moved);
    }
}

/// The largest form taken, in bytes: refresh tokens of clouds have some 4 KiB.
const FORM_BYTES: u64 = 64 << 10;

/// What a request brings besides its head.
struct Asked {
    body: Incoming,
    ignore_range: bool,
}

async fn dispatch(shared: &Arc<Shared>, head: &Parts, route: &Route, asked: Asked) -> Result<Answer, Refusal> {
    let query = head.uri.query().unwrap_or_default();
    match route {
        Route::Token if head.method == Method::GET => {
            return shared.gate.token(query, &head.headers).map(|token| Answer::json(StatusCode::OK, &token));
        }
        Route::Token if head.method == Method::POST => {
            let form = whole(asked.body, FORM_BYTES).await?;
            let form = std::str::from_utf8(&form).map_err(|_| Refusal::unsupported("a form is text"))?;
            return shared.gate.grant(form).map(|token| Answer::json(StatusCode::OK, &token));
        }
        Route::Token => return Err(Refusal::unsupported("tokens are had by GET and POST")),
        Route::Storage { digest } => return shared.storage(digest, head, asked.ignore_range),
        Route::Other => return Err(Refusal::new(StatusCode::NOT_FOUND, "UNSUPPORTED", "no such page")),
        _ => shared.gate.check(&shared.host(), route.repository(), &head.method, &head.headers)?,
    }
    let reads = matches!(head.method, Method::GET | Method::HEAD);
    match route {
        Route::Malformed { part, .. } => Err(part.refusal()),
        Route::Uploads { repository } => shared.begin_upload(repository, head, asked.body).await,
        Route::Upload { repository, id } => shared.continue_upload((repository, id), head, asked.body).await,
        Route::Manifest { repository, name } if head.method == Method::PUT => {
            shared.push_manifest(repository, name, head, asked.body).await
        }
        _ if !reads => Err(Refusal::unsupported("the operation is unsupported")),
        Route::Manifest { repository, name } => shared.manifest(repository, name),
        Route::Blob { repository, digest } => shared.blob(repository, digest, head, asked.ignore_range),
        Route::Tags { repository } => shared.tags(repository, query),
        Route::Referrers { repository, digest } => Ok(shared.referrers(repository, digest, query)),
        Route::Ping | Route::Token | Route::Storage { .. } | Route::Other => {
            Ok(Answer::json(StatusCode::OK, &serde_json::json!({})))
        }
    }
}

impl Shared {
    /// `127.0.0.1:PORT`.
    pub(crate) fn host(&self) -> String {
        self.addresses.registry.to_string()
    }

    fn manifest(&self, repository: &str, name: &Name) -> Result<Answer, Refusal> {
        let (digest, manifest) = self.store.manifest(repository, name).ok_or_else(Refusal::manifest_unknown)?;
        Ok(Answer::of_bytes(StatusCode::OK, manifest.bytes)
            .with(header::CONTENT_TYPE, manifest.media_type)
            .with(CONTENT_DIGEST, digest.to_string())
            .with(header::ETAG, format!("\"{digest}\"")))
    }

    fn blob(&self, repository: &str, digest: &Digest, head: &Parts, ignore_range: bool) -> Result<Answer, Refusal> {
        let content = self.store.blob(repository, digest).ok_or_else(Refusal::blob_unknown)?;
        let redirect = *self.redirect.lock();
        match redirect {
            Some(redirect) if head.method == Method::GET => {
                let path = self.signer.sign(digest, redirect.ttl);
                let url = format!("http://{}{path}", self.addresses.storage);
                Ok(Answer::empty(StatusCode::TEMPORARY_REDIRECT).with(header::LOCATION, url))
            }
            _ => part_of(content, digest, head, ignore_range),
        }
    }

    /// A signed URL. It carries its own proof: an `Authorization` header beside it is refused, as object stores do.
    fn storage(&self, digest: &Digest, head: &Parts, ignore_range: bool) -> Result<Answer, Refusal> {
        if head.headers.contains_key(header::AUTHORIZATION) {
            let message = "only one way to authenticate is allowed: the URL is signed";
            return Err(Refusal::new(StatusCode::BAD_REQUEST, "DENIED", message));
        }
        // The signature is for GET.
        if head.method != Method::GET || !self.signer.accepts(digest, head.uri.query().unwrap_or_default()) {
            return Err(expired());
        }
        let content = self.store.any_blob(digest).ok_or_else(Refusal::blob_unknown)?;
        part_of(content, digest, head, ignore_range)
    }

    fn tags(&self, repository: &str, query: &str) -> Result<Answer, Refusal> {
        let all = self.store.tags(repository).ok_or_else(Refusal::name_unknown)?;
        let last = query::value(query, "last").unwrap_or_default();
        let count = query::value(query, "n").and_then(|n| n.parse().ok()).unwrap_or(usize::MAX);
        let rest: Vec<_> = all.into_iter().filter(|tag| *tag > last).collect();
        let page = &rest[..count.min(rest.len())];
        let answer = Answer::json(StatusCode::OK, &serde_json::json!({ "name": repository, "tags": page }));
        Ok(match page.last().filter(|_| page.len() < rest.len()) {
            Some(tag) => {
                answer.with(header::LINK, format!("</v2/{repository}/tags/list?n={count}&last={tag}>; rel=\"next\""))
            }
            None => answer,
        })
    }

    fn referrers(&self, repository: &str, digest: &Digest, query: &str) -> Answer {
        let artifact_type = query::value(query, "artifactType");
        let index = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": self.store.referrers(repository, digest, artifact_type.as_deref()),
        });
        let answer = Answer::json(StatusCode::OK, &index).with(header::CONTENT_TYPE, INDEX);
        if artifact_type.is_some() { answer.with("oci-filters-applied", "artifactType") } else { answer }
    }
}

/// The media type of an OCI index.
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// The part of a blob that a request asks for.
fn part_of(content: Content, digest: &Digest, head: &Parts, ignore_range: bool) -> Result<Answer, Refusal> {
    let size_bytes = content.size_bytes();
    let field = head.headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    // RFC 9110, 14.2: a range is about GET only.
    let asked = match wanted(field.filter(|_| head.method == Method::GET), size_bytes) {
        Wanted::Whole => None,
        Wanted::Part(range) => Some(range),
        Wanted::Unsatisfiable => {
            let refusal = Refusal::new(StatusCode::RANGE_NOT_SATISFIABLE, "RANGE_INVALID", "range not satisfiable");
            return Err(match HeaderValue::try_from(format!("bytes */{size_bytes}")) {
                Ok(value) => refusal.with(header::CONTENT_RANGE, value),
                Err(_) => refusal,
            });
        }
    };
    let part = asked.filter(|_| !ignore_range);
    let answer = Answer {
        status: if part.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK },
        headers: HeaderMap::new(),
        content,
        sent: part.or_else(|| ByteRange::new(0, size_bytes).ok()),
        asked,
    };
    let answer = answer
        .with(header::CONTENT_TYPE, "application/octet-stream")
        .with(header::ACCEPT_RANGES, "bytes")
        .with(header::ETAG, format!("\"{digest}\""))
        .with(CONTENT_DIGEST, digest.to_string());
    Ok(match part {
        Some(range) => {
            answer.with(header::CONTENT_RANGE, format!("bytes {}-{}/{size_bytes}", range.start(), range.end() - 1))
        }
        None => answer,
    })
}

fn expired() -> Refusal {
    Refusal::new(StatusCode::FORBIDDEN, "DENIED", "the signed URL has expired")
}

/// Signs URLs for blobs, and knows them again until they expire. The clock is tokio's, counted from the registry's start.
#[derive(Debug)]
pub(crate) struct Signer {
    secret: u64,
    epoch: Instant,
}

impl Signer {
    pub(crate) fn new() -> Self {
        Self { secret: fastrand::u64(..), epoch: Instant::now() }
    }

    fn sign(&self, digest: &Digest, ttl: Duration) -> String {
        let expires = self.epoch.elapsed().saturating_add(ttl).as_millis();
        format!("/storage/{digest}?expires_ms={expires}&signature={}", self.signature(digest, expires))
    }

    fn accepts(&self, digest: &Digest, query: &str) -> bool {
        let expires = query::value(query, "expires_ms").and_then(|text| text.parse::<u128>().ok());
        expires.is_some_and(|expires| {
            expires > self.epoch.elapsed().as_millis()
                && query::value(query, "signature") == Some(self.signature(digest, expires))
        })
    }

    fn signature(&self, digest: &Digest, expires: u128) -> String {
        Digest::of(format!("{}/{digest}/{expires}", self.secret).as_bytes()).to_hex()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_signed_url_is_for_one_blob_until_it_expires() {
        let signer = Signer::new();
        let digest = Digest::of(b"x");
        let path = signer.sign(&digest, Duration::from_secs(10));
        let query = path.split_once('?').unwrap().1;
        assert!(signer.accepts(&digest, query));
        assert!(!signer.accepts(&Digest::of(b"y"), query));
        assert!(!signer.accepts(&digest, &query.replace("expires_ms=", "expires_ms=9")));
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(!signer.accepts(&digest, query));
    }

    #[test]
    fn a_misstated_range_is_one_further() {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_RANGE, HeaderValue::from_static("bytes 5-9/100"));
        misstate(&mut headers);
        assert_eq!(headers[header::CONTENT_RANGE], "bytes 6-10/100");
    }
}
