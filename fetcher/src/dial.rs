//! Making the HTTP clients: one for each way of trusting, and beside it those for where its servers send us.

use std::{
    fmt,
    path::Path,
    sync::{Arc, OnceLock},
};

use parking_lot::Mutex;
use reqwest::{Certificate, Client, Identity, NoProxy, Proxy, Url};
use tokio::time::Duration;

use crate::{
    config::{Config, ConfigError},
    failure::Failure,
    hosts::Trust,
    metrics::Metrics,
    names::{Names, Resolver},
    zone::{Allowed, Zone},
};

/// Idle connections kept are closed after this time; load balancers close theirs after 60 s and more.
const POOL_IDLE: Duration = Duration::from_secs(55);
/// A connection that carries requests is asked whether it lives this often, so that a dead one is found out while the deadline
/// still leaves time for another.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Largest CA bundle read, in bytes; the system's whole store has some 220 KiB.
const MAX_CA_BYTES: u64 = 8 << 20;
/// The HTTP/2 window of one stream, in bytes: 1 GB/s over 4 ms, or 40 MB/s over 100 ms.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// The HTTP/2 window of a connection, in bytes.
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Most ways of trusting whose clients are kept for the next endpoint that has the same.
const MAX_KEPT: usize = 64;

/// What all clients have in common.
pub(crate) struct Dialer {
    pub(crate) config: Config,
    /// The extra certificate authorities, PEM, for clients made elsewhere.
    pub(crate) ca_bundle: Option<Vec<u8>>,
    /// Whether the system has certificate authorities.
    pub(crate) has_system_roots: bool,
    pub(crate) names: Arc<Names>,
    pub(crate) metrics: Metrics,
    extra: Vec<Certificate>,
    proxies: Vec<Proxy>,
    made: Mutex<Vec<Arc<Clients>>>,
}

/// The clients of one way of trusting.
pub(crate) struct Clients {
    trust: Trust,
    connect_timeout: Duration,
    /// For the endpoints themselves.
    pub(crate) own: Client,
    /// For where an endpoint in a zone sends us: trusts the same authorities, but shows no client certificate and skips no check.
    beyond: [OnceLock<Result<Client, String>>; 4],
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer").finish_non_exhaustive()
    }
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clients").finish_non_exhaustive()
    }
}

impl Dialer {
    /// Reads the CA bundle and the system's certificates.
    pub(crate) fn new(config: &Config, metrics: Metrics) -> Result<Self, ConfigError> {
        // The first to come decides for the process; whoever came before chose one that works too.
        let _chosen_before = rustls::crypto::ring::default_provider().install_default();
        let ca_bundle = config.ca_bundle.as_deref().map(read_bundle).transpose()?;
        let extra = match (&config.ca_bundle, &ca_bundle) {
            (Some(path), Some(pem)) => certificates(path, pem)?,
            _ => Vec::new(),
        };
        let allowed =
            Allowed::parse(&config.redirects_allowed).map_err(|entry| ConfigError::RedirectsAllowed { entry })?;
        let proxy = config.proxy.as_ref().and_then(|proxy| Url::parse(proxy.expose()).ok());
        let proxy = proxy.and_then(|url| url.host_str().map(str::to_owned));
        let mut dialer = Self {
            config: config.clone(),
            ca_bundle,
            has_system_roots: true,
            names: Arc::new(Names::new(config.known_names.clone(), allowed, proxy)),
            metrics,
            extra,
            proxies: proxies(config)?,
            made: Mutex::default(),
        };
        if let Err(merged) = dialer.client(&Trust::default(), config.connect_timeout, None) {
            // A machine without certificate authorities can still use plain registries, and those of its CA bundle.
            dialer.has_system_roots = false;
            let alone = dialer.client(&Trust::default(), config.connect_timeout, None);
            alone.map_err(|reason| ConfigError::Client { reason })?;
            tracing::warn!(reason = merged, "no system CA certificates: install ca-certificates to use TLS registries");
        }
        Ok(dialer)
    }

    /// The clients of a way of trusting; endpoints with the same share them.
    pub(crate) fn clients(&self, trust: &Trust, dial_timeout: Option<Duration>) -> Result<Arc<Clients>, String> {
        let connect_timeout = dial_timeout.unwrap_or(self.config.connect_timeout);
        let mut made = self.made.lock();
        if let Some(known) = made.iter().find(|c| c.trust == *trust && c.connect_timeout == connect_timeout) {
            return Ok(known.clone());
        }
        let own = self.client(trust, connect_timeout, None)?;
        let clients =
            Arc::new(Clients { trust: trust.clone(), connect_timeout, own, beyond: <[OnceLock<_>; 4]>::default() });
        if made.len() >= MAX_KEPT {
            made.retain(|clients| Arc::strong_count(clients) > 1);
        }
        made.push(clients.clone());
        Ok(clients)
    }

    /// The client for where a server in `from` sent us.
    pub(crate) fn beyond<'a>(&self, clients: &'a Clients, from: Zone) -> Result<&'a Client, String> {
        let slot = match from {
            Zone::Loopback => 0,
            Zone::Private => 1,
            Zone::Public => 2,
            Zone::Forbidden => 3,
        };
        let made = clients.beyond[slot].get_or_init(|| {
            let trust = Trust { ca: clients.trust.ca.clone(), ..Trust::default() };
            self.client(&trust, clients.connect_timeout, Some(from))
        });
        made.as_ref().map_err(Clone::clone)
    }

    fn client(&self, trust: &Trust, connect_timeout: Duration, from: Option<Zone>) -> Result<Client, String> {
        let mut roots = self.extra.clone();
        for pem in &trust.ca {
            let found = Certificate::from_pem_bundle(pem).map_err(describe)?;
            if found.is_empty() {
                return Err("a file of certificate authorities holds no certificate".to_owned());
            }
            roots.extend(found);
        }
        let mut builder = Client::builder()
            .user_agent(self.config.user_agent)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .no_proxy()
            .connect_timeout(connect_timeout)
            .pool_idle_timeout(POOL_IDLE)
            .pool_max_idle_per_host(self.config.max_requests)
            .tcp_nodelay(true)
            .tcp_keepalive(KEEP_ALIVE)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .http2_keep_alive_timeout(KEEP_ALIVE)
            .http2_initial_stream_window_size(STREAM_WINDOW_BYTES)
            .http2_initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .dns_resolver(Arc::new(Resolver { names: self.names.clone(), from }));
        builder = self.proxies.iter().cloned().fold(builder, reqwest::ClientBuilder::proxy);
        if let Some(pem) = &trust.client {
            let identity = Identity::from_pem(pem.expose().as_bytes());
            builder =
                builder.identity(identity.map_err(|_| "the client certificate and its key cannot be used".to_owned())?);
        }
        if trust.skip_verify {
            builder = builder.tls_danger_accept_invalid_certs(true);
        }
        builder = if self.has_system_roots { builder.tls_certs_merge(roots) } else { builder.tls_certs_only(roots) };
        builder.build().map_err(describe)
    }
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

    fn dialer(config: &Config) -> Result<Dialer, ConfigError> {
        Dialer::new(config, Metrics::new(&mut prometheus_client::registry::Registry::default()))
    }

    #[test]
    fn bad_bundles_proxies_and_networks_are_refused_with_their_reason() {
        let dir = tempfile::tempdir().unwrap();
        let bad = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for content in ["", "no certificate", bad] {
            let path = dir.path().join("ca.pem");
            std::fs::write(&path, content).unwrap();
            let refused = dialer(&Config { ca_bundle: Some(path), ..Config::default() });
            assert!(matches!(refused, Err(ConfigError::CaBundle { .. })), "{content:?}");
        }
        let missing = dialer(&Config { ca_bundle: Some(dir.path().join("missing")), ..Config::default() });
        assert!(matches!(missing, Err(ConfigError::CaBundle { .. })));
        for proxy in ["", "not a url", "socks9://x", "http://"] {
            let error =
                dialer(&Config { proxy: Some(Secret::new(proxy.to_owned())), ..Config::default() }).unwrap_err();
            assert!(matches!(error, ConfigError::Proxy { .. }), "{proxy:?}: {error}");
        }
        let proxy = Some(Secret::new("http://u:p@proxy.lan:3128".to_owned()));
        assert!(dialer(&Config { proxy, ..Config::default() }).is_ok());
        let refused = dialer(&Config { redirects_allowed: vec!["10.0.0.0/99".to_owned()], ..Config::default() });
        assert!(matches!(refused, Err(ConfigError::RedirectsAllowed { .. })));
    }

    #[test]
    fn endpoints_that_trust_alike_share_their_clients() {
        let dialer = dialer(&Config::default()).unwrap();
        let open = Trust { skip_verify: true, ..Trust::default() };
        let first = dialer.clients(&Trust::default(), None).unwrap();
        assert!(Arc::ptr_eq(&first, &dialer.clients(&Trust::default(), None).unwrap()));
        assert!(!Arc::ptr_eq(&first, &dialer.clients(&open, None).unwrap()));
        assert!(!Arc::ptr_eq(&first, &dialer.clients(&Trust::default(), Some(Duration::from_secs(1))).unwrap()));
        let junk = Trust { ca: vec![b"-----BEGIN CERTIFICATE-----".to_vec()], ..Trust::default() };
        assert!(dialer.clients(&junk, None).is_err());
    }
}
