//! HTTP, thinly: one request and the head of its answer, bounded in time, with every failure named.
//!
//! A [`Web`] belongs to one endpoint. What is only for that endpoint, its headers, its client certificate, its leave to skip
//! verification, goes to URLs of its own origin and nowhere else, whoever asks for them: that is decided here and not by callers.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH},
};
use reqwest::{Client, Method, Request, Response, Url};
use tokio::time::{Duration, timeout};

use crate::{
    answer,
    config::is_loopback,
    dial::{Clients, Dialer},
    failure::{Class, Failure, is_not_tls},
    hosts::{Scheme, Spec},
    metrics::{Metrics, Purpose},
};

/// The most that is read of a body that nobody wants, in bytes, to keep its connection.
const MAX_DISCARDED_BYTES: usize = 16 << 10;
/// How long a body that nobody wants may take before its connection is dropped instead.
const DISCARD_TIME: Duration = Duration::from_millis(200);

/// One endpoint's HTTP, and the rules for going beyond it.
pub(crate) struct Web {
    dialer: Arc<Dialer>,
    clients: Arc<Clients>,
    spec: Spec,
    headers: HeaderMap,
    /// Whether the endpoint turned out not to speak TLS.
    is_plain: AtomicBool,
    pub(crate) metrics: Metrics,
}

impl fmt::Debug for Web {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Web").field("base", &self.spec.base).finish_non_exhaustive()
    }
}

impl Web {
    /// The HTTP of an endpoint.
    ///
    /// # Errors
    /// Why its certificates cannot be used.
    pub(crate) fn new(dialer: &Arc<Dialer>, spec: Spec) -> Result<Self, String> {
        let clients = dialer.clients(&spec.trust, spec.dial_timeout)?;
        let mut headers = HeaderMap::new();
        for (name, value) in &spec.headers {
            headers.append(name.clone(), value.clone());
        }
        let is_plain = AtomicBool::new(spec.base.scheme == Scheme::Http);
        Ok(Self { dialer: dialer.clone(), clients, spec, headers, is_plain, metrics: dialer.metrics.clone() })
    }

    /// How the endpoint is spoken to.
    pub(crate) const fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The endpoint's URL of `path`, which begins with a slash.
    pub(crate) fn url(&self, path: &str) -> Option<Url> {
        let scheme = if self.is_plain.load(Ordering::Relaxed) { "http" } else { "https" };
        let base = &self.spec.base;
        Url::parse(&format!("{scheme}://{}{}{path}", base.authority, base.path)).ok()
    }

    /// A GET of `url`. `authorization` must be meant for the host of `url`.
    pub(crate) async fn get(
        &self,
        purpose: Purpose,
        url: Url,
        headers: HeaderMap,
        authorization: Option<HeaderValue>,
    ) -> Result<Response, Failure> {
        let mut request = Request::new(Method::GET, url);
        *request.headers_mut() = headers;
        self.send(purpose, request, authorization).await
    }

    /// A POST of a form to `url`.
    pub(crate) async fn post(&self, purpose: Purpose, url: Url, body: String) -> Result<Response, Failure> {
        let mut request = Request::new(Method::POST, url);
        let form = HeaderValue::from_static("application/x-www-form-urlencoded");
        request.headers_mut().insert(http::header::CONTENT_TYPE, form);
        *request.body_mut() = Some(body.into());
        self.send(purpose, request, None).await
    }

    async fn send(
        &self,
        purpose: Purpose,
        mut request: Request,
        authorization: Option<HeaderValue>,
    ) -> Result<Response, Failure> {
        let own = self.is_own(request.url());
        let client = self.client(request.url())?.clone();
        let headers = request.headers_mut();
        if own {
            for (name, value) in &self.headers {
                headers.append(name.clone(), value.clone());
            }
        }
        if let Some(authorization) = authorization {
            headers.insert(AUTHORIZATION, authorization);
        }
        // A range is a range of the bytes as stored: a body compressed on the way would be other bytes.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        self.metrics.sent(purpose);
        let again = request.try_clone().filter(|_| own && self.may_turn_plain());
        match (self.execute(&client, request).await, again) {
            (Err(Trouble::NotTls), Some(mut again)) => {
                self.is_plain.store(true, Ordering::Relaxed);
                let _same_host = again.url_mut().set_scheme("http");
                self.metrics.sent(purpose);
                self.execute(&client, again).await.map_err(Trouble::failure)
            }
            (answer, _) => answer.map_err(Trouble::failure),
        }
    }

    async fn execute(&self, client: &Client, request: Request) -> Result<Response, Trouble> {
        let dial = self.spec.dial_timeout.unwrap_or(self.dialer.config.connect_timeout);
        let patience = dial.saturating_add(self.dialer.config.idle_timeout);
        match timeout(patience, client.execute(request)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) if is_not_tls(&error) => Err(Trouble::NotTls),
            Ok(Err(error)) => Err(Trouble::Failure(Failure::transport(error))),
            Err(_elapsed) => Err(Trouble::Failure(Failure::timeout(format!("gave no answer within {patience:?}")))),
        }
    }

    /// Whether the endpoint may be spoken to without TLS once it turns out not to know it.
    fn may_turn_plain(&self) -> bool {
        self.spec.base.scheme == Scheme::HttpsElseHttp && !self.is_plain.load(Ordering::Relaxed)
    }

    /// Whether a URL is of the endpoint's own origin.
    fn is_own(&self, url: &Url) -> bool {
        let scheme = if self.is_plain.load(Ordering::Relaxed) { "http" } else { "https" };
        url.scheme() == scheme && authority(url).eq_ignore_ascii_case(&self.own_authority(url))
    }

    /// The endpoint's host as [`authority`] writes it: without a port that is the scheme's own.
    fn own_authority(&self, url: &Url) -> String {
        let own = format!("{}://{}/", url.scheme(), self.spec.base.authority);
        Url::parse(&own).map_or_else(|_| self.spec.base.authority.clone(), |own| authority(&own))
    }

    fn client(&self, url: &Url) -> Result<&Client, Failure> {
        if self.is_own(url) {
            return Ok(&self.clients.own);
        }
        let from = self.url("/").map_or(crate::zone::Zone::Public, |own| self.dialer.names.zone(&own));
        let refused = |reason: &str| Failure::new(Class::Refused, reason);
        self.dialer.names.check(from, url).map_err(|error| refused(&error.to_string()))?;
        self.dialer.beyond(&self.clients, from).map_err(|reason| refused(&reason))
    }

    /// The next piece of a body; `None` at its end.
    pub(crate) async fn chunk(&self, response: &mut Response) -> Result<Option<Bytes>, Failure> {
        let patience = self.dialer.config.idle_timeout;
        match timeout(patience, response.chunk()).await {
            Ok(piece) => piece.map_err(Failure::transport),
            Err(_elapsed) => Err(Failure::timeout(format!("sent nothing more for {patience:?}"))),
        }
    }

    /// The whole body, at most `max` bytes; `Ok(None)` when it is larger, in which case the rest is not read.
    pub(crate) async fn body(&self, mut response: Response, max: usize) -> Result<Option<Bytes>, Failure> {
        let said = answer::text(response.headers(), CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
        if said.is_some_and(|length| length > max as u64) {
            return Ok(None);
        }
        let mut body = BytesMut::new();
        while let Some(piece) = self.chunk(&mut response).await? {
            if body.len() + piece.len() > max {
                return Ok(None);
            }
            body.extend_from_slice(&piece);
        }
        Ok(Some(body.freeze()))
    }

    /// Reads a small body that nobody wants, so that its connection can be used again; drops the connection of a large one.
    pub(crate) async fn discard(&self, response: Response) {
        let _end = timeout(DISCARD_TIME, self.body(response, MAX_DISCARDED_BYTES)).await;
    }

    /// Takes the end of a body whose bytes are all here: a connection is only used again after it.
    pub(crate) async fn finish(&self, mut response: Response) {
        let _end = timeout(DISCARD_TIME, response.chunk()).await;
    }

    /// Whether a server at `from` may send us to `to`: never from TLS to plain HTTP, nor from elsewhere to loopback, unless the
    /// config lists the host; never with a password in the address; never to an address further in than the endpoint is itself
    /// ([`crate::zone`]), which for a name is found out when it is looked up.
    pub(crate) fn may_follow(&self, from: &Url, to: &Url) -> Result<(), Failure> {
        let host = authority(to);
        let refuse = |reason: &str| Err(Failure::new(Class::Refused, &format!("sent us to {host}: {reason}")));
        if !to.username().is_empty() || to.password().is_some() {
            return refuse("an address with a password in it is not followed");
        }
        let config = &self.dialer.config;
        match to.scheme() {
            "https" => {}
            "http" if config.is_plain_by_name(&host) || (from.scheme() == "http" && self.is_own(to)) => {}
            "http" if is_loopback(&host) && is_loopback(&authority(from)) && from.scheme() == "http" => {}
            "http" => return refuse("plain HTTP is not allowed there; list the host under plain_http if it should be"),
            other => return refuse(&format!("{other} is not HTTP")),
        }
        self.client(to).map(|_| ()).or_else(|failure| refuse(&failure.reason))
    }
}

/// Why a request got no answer.
enum Trouble {
    /// The server does not speak TLS.
    NotTls,
    Failure(Failure),
}

impl Trouble {
    fn failure(self) -> Failure {
        match self {
            Self::NotTls => Failure::new(Class::Connect, "does not speak TLS; write http:// if it should not"),
            Self::Failure(failure) => failure,
        }
    }
}

/// The host of a URL, with the port if it is not the scheme's own.
pub(crate) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// Whether a status sends us elsewhere for the same content.
pub(crate) const fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Config, hosts};

    fn web(base: &str, config: &Config) -> Web {
        let metrics = Metrics::new(&mut prometheus_client::registry::Registry::default());
        let dialer = Arc::new(Dialer::new(config, metrics).unwrap());
        let spec = Spec {
            base: hosts::Base::parse(base, false).unwrap(),
            trust: hosts::Trust::default(),
            headers: Vec::new(),
            dial_timeout: None,
        };
        Web::new(&dialer, spec).unwrap()
    }

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn nobody_is_led_from_tls_to_plain_http_or_further_in() {
        let config = Config {
            plain_http: vec!["cdn.lan".to_owned(), "127.0.0.9:80".to_owned()],
            redirects_allowed: vec!["10.1.0.0/16".to_owned()],
            ..Config::default()
        };
        for (base, to, allowed) in [
            ("https://r.io", "https://cdn.io/x", true),
            ("https://r.io", "https://r.io/x", true),
            ("https://r.io", "http://r.io/x", false),
            ("https://r.io", "https://127.0.0.1/x", false),
            ("https://r.io", "https://10.0.0.1/x", false),
            ("https://r.io", "https://10.1.0.1/x", true),
            ("https://r.io", "https://169.254.169.254/latest/meta-data", false),
            ("https://r.io", "https://[::ffff:169.254.169.254]/", false),
            ("https://r.io", "https://[fd00:ec2::254]/", false),
            ("https://10.0.0.5", "https://10.0.0.1/x", true),
            ("https://10.0.0.5", "https://127.0.0.1/x", false),
            ("https://10.0.0.5", "https://169.254.169.254/x", false),
            ("https://r.io", "http://cdn.io/x", false),
            ("https://r.io", "http://127.0.0.1/x", false),
            ("https://127.0.0.1", "http://127.0.0.1/x", false),
            ("http://registry.lan", "http://127.0.0.1:5000/x", false),
            ("http://registry.lan", "http://registry.lan/store/x", true),
            ("http://registry.lan", "http://other.lan/x", false),
            ("http://127.0.0.1:5000", "http://127.0.0.1:5001/x", true),
            ("http://127.0.0.1:5000", "http://169.254.169.254/x", false),
            ("http://127.0.0.1:5000", "https://169.254.169.254/x", false),
            ("https://r.io", "http://cdn.lan/x", true),
            ("https://r.io", "http://127.0.0.9/x", false),
            ("https://r.io", "https://u:p@cdn.io/x", false),
            ("https://r.io", "ftp://cdn.io/x", false),
            ("https://r.io", "file:///etc/passwd", false),
        ] {
            let web = web(base, &config);
            let from = web.url("/").unwrap();
            assert_eq!(web.may_follow(&from, &url(to)).is_ok(), allowed, "{base} -> {to}");
        }
    }

    #[test]
    fn only_the_same_origin_is_the_endpoint_itself() {
        let config = Config::default();
        for (base, other, own) in [
            ("https://r.io", "https://r.io/x", true),
            ("https://r.io:443", "https://r.io/x", true),
            ("https://r.io", "https://r.io:444/x", false),
            ("https://r.io", "http://r.io/x", false),
            ("https://r.io", "https://r.io.evil.com/x", false),
            ("http://r.lan:5000", "http://r.lan:5000/x", true),
            ("http://r.lan:5000", "https://r.lan:5000/x", false),
            ("http://[::1]:5000", "http://[::1]:5000/x", true),
        ] {
            assert_eq!(web(base, &config).is_own(&url(other)), own, "{base} and {other}");
        }
    }
}
