//! HTTP, thinly: one request and the head of its answer, bounded in time, with every failure named.

use std::{fmt, path::Path};

use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH},
};
use reqwest::{Certificate, Client, Method, NoProxy, Proxy, Request, Response, Url};
use tokio::time::{Duration, timeout};

use crate::{
    answer,
    config::{Config, ConfigError, is_loopback},
    failure::{Class, Failure},
    metrics::{Metrics, Purpose},
};

/// Idle connections kept are closed after this time; load balancers close theirs after 60 s and more.
const POOL_IDLE: Duration = Duration::from_secs(55);
/// A connection that carries requests is asked whether it lives this often, so that a dead one is found out while the deadline
/// still leaves time for another.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Largest CA bundle read, in bytes; the system's whole store has some 220 KiB.
const MAX_CA_BYTES: u64 = 8 << 20;
/// The most that is read of a body that nobody wants, in bytes, to keep its connection.
const MAX_DISCARDED_BYTES: usize = 16 << 10;
/// How long a body that nobody wants may take before its connection is dropped instead.
const DISCARD_TIME: Duration = Duration::from_millis(200);
/// The HTTP/2 window of one stream, in bytes: 1 GB/s over 4 ms, or 40 MB/s over 100 ms.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// The HTTP/2 window of a connection, in bytes.
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// The HTTP client and the rules for using it.
pub(crate) struct Web {
    client: Client,
    config: Config,
    /// The extra certificate authorities, PEM, for clients made later.
    pub(crate) ca_bundle: Option<Vec<u8>>,
    /// Whether the system has certificate authorities.
    pub(crate) has_system_roots: bool,
    pub(crate) metrics: Metrics,
}

impl fmt::Debug for Web {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Web").finish_non_exhaustive()
    }
}

impl Web {
    pub(crate) fn new(config: &Config, metrics: Metrics) -> Result<Self, ConfigError> {
        // The first to come decides for the process; whoever came before chose one that works too.
        let _chosen_before = rustls::crypto::ring::default_provider().install_default();
        let ca_bundle = config.ca_bundle.as_deref().map(read_bundle).transpose()?;
        let extra = match (&config.ca_bundle, &ca_bundle) {
            (Some(path), Some(pem)) => certificates(path, pem)?,
            _ => Vec::new(),
        };
        let proxies = proxies(config)?;
        let build = |roots: fn(reqwest::ClientBuilder, Vec<Certificate>) -> reqwest::ClientBuilder| {
            let builder = Client::builder()
                .user_agent(config.user_agent)
                .redirect(reqwest::redirect::Policy::none())
                .retry(reqwest::retry::never())
                .referer(false)
                .no_proxy()
                .connect_timeout(config.connect_timeout)
                .pool_idle_timeout(POOL_IDLE)
                .pool_max_idle_per_host(config.max_requests)
                .tcp_nodelay(true)
                .tcp_keepalive(KEEP_ALIVE)
                .http2_keep_alive_interval(KEEP_ALIVE)
                .http2_keep_alive_timeout(KEEP_ALIVE)
                .http2_initial_stream_window_size(STREAM_WINDOW_BYTES)
                .http2_initial_connection_window_size(CONNECTION_WINDOW_BYTES);
            let builder = proxies.iter().cloned().fold(builder, reqwest::ClientBuilder::proxy);
            roots(builder, extra.clone()).build()
        };
        let (client, has_system_roots) = match build(reqwest::ClientBuilder::tls_certs_merge) {
            Ok(client) => (client, true),
            // A machine without certificate authorities can still use plain registries, and those of its CA bundle.
            Err(merged) => match build(reqwest::ClientBuilder::tls_certs_only) {
                Ok(client) => {
                    let reason = describe(merged);
                    tracing::warn!(reason, "no system CA certificates: install ca-certificates to use TLS registries");
                    (client, false)
                }
                Err(alone) => return Err(ConfigError::Client { reason: describe(alone) }),
            },
        };
        Ok(Self { client, config: config.clone(), ca_bundle, has_system_roots, metrics })
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
        if let Some(authorization) = authorization {
            request.headers_mut().insert(AUTHORIZATION, authorization);
        }
        self.send(purpose, request).await
    }

    /// A POST of a form to `url`.
    pub(crate) async fn post(&self, purpose: Purpose, url: Url, body: String) -> Result<Response, Failure> {
        let mut request = Request::new(Method::POST, url);
        let form = HeaderValue::from_static("application/x-www-form-urlencoded");
        request.headers_mut().insert(http::header::CONTENT_TYPE, form);
        *request.body_mut() = Some(body.into());
        self.send(purpose, request).await
    }

    async fn send(&self, purpose: Purpose, mut request: Request) -> Result<Response, Failure> {
        // A range is a range of the bytes as stored: a body compressed on the way would be other bytes.
        request.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        self.metrics.sent(purpose);
        let patience = self.config.connect_timeout.saturating_add(self.config.idle_timeout);
        match timeout(patience, self.client.execute(request)).await {
            Ok(answer) => answer.map_err(Failure::transport),
            Err(_elapsed) => Err(Failure::timeout(format!("gave no answer within {patience:?}"))),
        }
    }

    /// The next piece of a body; `None` at its end.
    pub(crate) async fn chunk(&self, response: &mut Response) -> Result<Option<Bytes>, Failure> {
        let patience = self.config.idle_timeout;
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
    /// config lists the host; never with a password in the address.
    pub(crate) fn may_follow(&self, from: &Url, to: &Url) -> Result<(), Failure> {
        let host = authority(to);
        let refuse = |reason: &str| Err(Failure::new(Class::Refused, &format!("sent us to {host}: {reason}")));
        if !to.username().is_empty() || to.password().is_some() {
            return refuse("an address with a password in it is not followed");
        }
        match to.scheme() {
            "https" => Ok(()),
            "http" if self.config.is_plain_by_name(&host) => Ok(()),
            "http" if is_loopback(&host) && is_loopback(&authority(from)) && from.scheme() == "http" => Ok(()),
            "http" => refuse("plain HTTP is not allowed there; list the host under plain_http if it should be"),
            other => refuse(&format!("{other} is not HTTP")),
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

fn describe(error: reqwest::Error) -> String {
    Failure::transport(error).reason
}

fn read_bundle(path: &Path) -> Result<Vec<u8>, ConfigError> {
    use std::io::Read as _;
    let refused = |reason: String| ConfigError::CaBundle { path: path.to_owned(), reason };
    let mut pem = Vec::new();
    let file = std::fs::File::open(path).map_err(|e| refused(e.to_string()))?;
    file.take(MAX_CA_BYTES + 1).read_to_end(&mut pem).map_err(|e| refused(e.to_string()))?;
    if pem.len() as u64 > MAX_CA_BYTES {
        return Err(refused(format!("larger than {MAX_CA_BYTES} bytes")));
    }
    Ok(pem)
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<Certificate>, ConfigError> {
    let refused = |reason: String| ConfigError::CaBundle { path: path.to_owned(), reason };
    let found = Certificate::from_pem_bundle(pem).map_err(|e| refused(e.to_string()))?;
    if found.is_empty() {
        return Err(refused("no certificate in it".to_owned()));
    }
    // A store of its own tells a bad certificate from a system without any.
    let probe = Client::builder().no_proxy().tls_certs_only(found.clone()).build();
    probe.map_err(|e| refused(describe(e)))?;
    Ok(found)
}

fn proxies(config: &Config) -> Result<Vec<Proxy>, ConfigError> {
    let Some(proxy) = &config.proxy else { return Ok(Vec::new()) };
    let refused = || ConfigError::Proxy { reason: "not a URL of a proxy".to_owned() };
    let url =
        Url::parse(proxy.expose()).ok().filter(|url| matches!(url.scheme(), "http" | "https")).ok_or_else(refused)?;
    let never = format!("localhost,127.0.0.0/8,::1,{}", config.no_proxy.as_deref().unwrap_or_default());
    Ok(vec![Proxy::all(url).map_err(|_| refused())?.no_proxy(NoProxy::from_string(&never))])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Secret;

    fn web(config: &Config) -> Result<Web, ConfigError> {
        Web::new(config, Metrics::new(&mut prometheus_client::registry::Registry::default()))
    }

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn nobody_is_led_from_tls_to_plain_http_or_to_loopback() {
        let config = Config { plain_http: vec!["cdn.lan".to_owned(), "127.0.0.9:80".to_owned()], ..Config::default() };
        let web = web(&config).unwrap();
        for (from, to, allowed) in [
            ("https://r.io/v2/", "https://cdn.io/x", true),
            ("https://r.io/v2/", "https://127.0.0.1/x", true),
            ("https://r.io/v2/", "http://cdn.io/x", false),
            ("https://r.io/v2/", "http://127.0.0.1/x", false),
            ("https://127.0.0.1/v2/", "http://127.0.0.1/x", false),
            ("http://registry.lan/v2/", "http://127.0.0.1:5000/x", false),
            ("http://127.0.0.1:5000/v2/", "http://127.0.0.1:5001/x", true),
            ("http://127.0.0.1:5000/v2/", "http://169.254.169.254/x", false),
            ("https://r.io/v2/", "http://cdn.lan/x", true),
            ("https://r.io/v2/", "http://127.0.0.9/x", false),
            ("https://r.io/v2/", "https://u:p@cdn.io/x", false),
            ("https://r.io/v2/", "ftp://cdn.io/x", false),
            ("https://r.io/v2/", "file:///etc/passwd", false),
        ] {
            assert_eq!(web.may_follow(&url(from), &url(to)).is_ok(), allowed, "{from} -> {to}");
        }
    }

    #[test]
    fn bad_bundles_and_proxies_are_refused_with_their_reason() {
        let dir = tempfile::tempdir().unwrap();
        let bad = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for content in ["", "no certificate", bad] {
            let path = dir.path().join("ca.pem");
            std::fs::write(&path, content).unwrap();
            let refused = web(&Config { ca_bundle: Some(path), ..Config::default() });
            assert!(matches!(refused, Err(ConfigError::CaBundle { .. })), "{content:?}");
        }
        let missing = web(&Config { ca_bundle: Some(dir.path().join("missing")), ..Config::default() });
        assert!(matches!(missing, Err(ConfigError::CaBundle { .. })));
        for proxy in ["", "not a url", "socks9://x", "http://"] {
            let error = web(&Config { proxy: Some(Secret::new(proxy.to_owned())), ..Config::default() }).unwrap_err();
            assert!(matches!(error, ConfigError::Proxy { .. }), "{proxy:?}: {error}");
        }
        assert!(
            web(&Config { proxy: Some(Secret::new("http://u:p@proxy.lan:3128".to_owned())), ..Config::default() })
                .is_ok()
        );
    }
}
