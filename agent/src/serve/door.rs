//! What each request passes before a route sees it: its size, its peer's rate, and who it comes from.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    response::{IntoResponse as _, Response},
};
use http::{HeaderValue, Request, header};
use hyper::body::Incoming;
use penstock_api::{Problem, ProblemKind};
use tokio::sync::Semaphore;
use tower::ServiceExt as _;

use super::{
    count::{Counts, Reason},
    peers::{PeerId, Peers},
    tls::Tls,
    token::{self, Tokens},
};
use crate::events::{Events, Kind};

/// The most bytes of a path and its query. The longest that means something is far shorter.
const URI_BYTES: usize = 8 << 10;

/// Whom a listener lets do what.
#[derive(Debug)]
pub(super) enum Access {
    /// The kernel has looked at who may open the socket: who came in may do everything.
    Owner {
        /// Those of this group, too.
        group: Option<u32>,
    },
    /// Whoever is on this node may read.
    Reading,
    /// Who shows a token, or came with a certificate.
    Known {
        /// Tokens that are taken.
        tokens: Option<Arc<Tokens>>,
    },
}

/// One listener's rules, and what stands behind it.
#[derive(Debug)]
pub(super) struct Door {
    pub(super) access: Access,
    pub(super) tls: Option<Tls>,
    pub(super) peers: Arc<Peers>,
    /// Connections that there is still room for.
    pub(super) room: Arc<Semaphore>,
    pub(super) router: Router,
    pub(super) counts: Counts,
    pub(super) events: Events,
}

/// The other end of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caller {
    pub(super) id: PeerId,
    /// Whether it came with a certificate of an authority that is taken.
    pub(super) has_certificate: bool,
}

/// A refusal: why, for the count, and what is answered.
type Refusal = (Reason, Response);

impl Door {
    /// Answers one request.
    pub(super) async fn answer(&self, caller: Caller, request: Request<Incoming>) -> Response {
        let path = request.uri().path().to_owned();
        let response = match self.examine(caller, &request).await {
            // A router never fails: its error has no values.
            Ok(()) => match self.router.clone().oneshot(request.map(Body::new)).await {
                Ok(response) => response,
                Err(never) => match never {},
            },
            Err((reason, response)) => {
                self.counts.refuse(reason);
                named(response, path)
            }
        };
        self.counts.answer(response.status());
        response
    }

    async fn examine(&self, caller: Caller, request: &Request<Incoming>) -> Result<(), Refusal> {
        let length = request.uri().path_and_query().map_or(0, |text| text.as_str().len());
        if length > URI_BYTES {
            let detail = format!("path and query may have at most {URI_BYTES} bytes, and have {length}");
            return Err((Reason::Uri, Problem::new(ProblemKind::UriTooLong, detail).into_response()));
        }
        if let Err(wait) = self.peers.request(caller.id, Instant::now()) {
            let detail = "this client asks more often than the agent answers; ask again later";
            return Err((Reason::Rate, later(detail, wait)));
        }
        match &self.access {
            Access::Owner { .. } => Ok(()),
            Access::Reading if is_for_loopback(request) => Ok(()),
            Access::Reading => {
                let detail =
                    "the Host header must name localhost or a loopback address: this listener asks nobody who they are";
                Err((Reason::Host, Problem::new(ProblemKind::Misdirected, detail).into_response()))
            }
            // The page's files are the same for everybody; what they show they ask for, with the token that they were given.
            Access::Known { .. } if request.method().is_safe() && penstock_api::is_asset(request.uri().path()) => {
                Ok(())
            }
            Access::Known { tokens } => self.authenticate(caller, tokens.as_ref(), request).await,
        }
    }

    /// Says no more than that it was not enough: not whether a token came, was long enough, or was one once.
    async fn authenticate(
        &self,
        caller: Caller,
        tokens: Option<&Arc<Tokens>>,
        request: &Request<Incoming>,
    ) -> Result<(), Refusal> {
        if caller.has_certificate {
            return Ok(());
        }
        if let Some(wait) = self.peers.shut_out(caller.id, Instant::now()) {
            let detail = "too many requests from this address could not be authenticated; ask again later";
            return Err((Reason::ShutOut, later(detail, wait)));
        }
        let sent = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        if let (Some(tokens), Some(sent)) = (tokens, sent.and_then(token::bearer)) {
            let (tokens, sent) = (Arc::clone(tokens), sent.to_owned());
            // It may read the file again.
            let known = tokio::task::spawn_blocking(move || tokens.admit(&sent)).await;
            if known.unwrap_or(false) {
                return Ok(());
            }
        }
        self.failed(caller.id, "no token that is known");
        let detail =
            "this listener wants a token that it knows, as `Authorization: Bearer ...`, or a client certificate";
        let mut response = Problem::new(ProblemKind::Unauthenticated, detail).into_response();
        let headers = response.headers_mut();
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"penstock\""));
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        Err((Reason::Unauthenticated, response))
    }

    /// Counts that `id` showed something that is worth nothing, and says so once in a while.
    pub(super) fn failed(&self, id: PeerId, what: &str) {
        let Some(untold) = self.peers.fail(id, Instant::now()) else { return };
        let more = match untold {
            0 => String::new(),
            more => format!(" (and {more} more times since the last event)"),
        };
        let peer = id.to_string();
        let text = format!("{peer} was refused on the TCP listener: {what}{more}");
        self.events.record(Kind::ApiRefused, &text, &[("peer", &peer)]);
    }
}

fn later(detail: &str, wait: Duration) -> Response {
    let mut response = Problem::new(ProblemKind::TooManyRequests, detail).into_response();
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    response
}

/// The same problem, with the path that was asked for.
fn named(mut response: Response, path: String) -> Response {
    let Some(mut problem) = response.extensions_mut().remove::<Problem>() else { return response };
    problem.instance = Some(path);
    let mut answer = problem.into_response();
    for (name, value) in response.headers() {
        if name != header::CONTENT_TYPE && name != header::CONTENT_LENGTH {
            answer.headers_mut().insert(name, value.clone());
        }
    }
    answer
}

/// Whether the client meant this node itself. A web page that has made its own name point here (DNS rebinding) did not.
fn is_for_loopback(request: &Request<Incoming>) -> bool {
    let host = match request.uri().host() {
        Some(host) => Some(host.to_owned()),
        None => request.headers().get(header::HOST).map(|value| value.to_str().unwrap_or("?").to_owned()),
    };
    host.is_none_or(|host| names_loopback(&host))
}

fn names_loopback(host: &str) -> bool {
    let bare = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    let is_name = bare.eq_ignore_ascii_case("localhost") || bare.to_ascii_lowercase().ends_with(".localhost");
    is_name || bare.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_node_is_meant_by_a_loopback_name() {
        for host in ["localhost", "LOCALHOST:9180", "127.0.0.1", "127.0.0.1:80", "[::1]", "[::1]:80", "a.localhost"] {
            assert!(names_loopback(host), "{host}");
        }
        for host in
            ["", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "10.0.0.1", "[fe80::1]", "?"]
        {
            assert!(!names_loopback(host), "{host}");
        }
    }

    #[test]
    fn a_wait_is_rounded_up_to_whole_seconds() {
        for (wait, text) in [(1, "1"), (999, "1"), (1000, "1"), (1001, "2")] {
            let response = later("later", Duration::from_millis(wait));
            assert_eq!(response.headers()[header::RETRY_AFTER], text);
            assert_eq!(response.status(), 429);
        }
    }
}
