//! Looking up names, and refusing the addresses that a server may not send us to.
//!
//! The check is made on the addresses that a connection is about to be made to, so that neither a name that resolves to an
//! address inside nor one that changes between check and use gets through.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use parking_lot::Mutex;
use reqwest::{
    Url,
    dns::{Name, Resolve, Resolving},
};

use crate::zone::{Allowed, Zone};

/// Most names whose zone is remembered: endpoints, of which there are fewer.
const MAX_SEEN: usize = 1024;

/// How `getaddrinfo` says that a name does not exist, in the words of glibc (`EAI_NONAME`, `EAI_NODATA`) and musl. What it says
/// when a name server does not answer (`EAI_AGAIN`) is not among them: that passes.
const UNKNOWN_TEXTS: [&str; 3] =
    ["Name or service not known", "No address associated with hostname", "Name does not resolve"];

/// Why a name gave no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NameError {
    /// There is no such name.
    #[error("there is no host named {name}; check how it is written")]
    Unknown { name: String },
    /// It could not be looked up.
    #[error("the name {name} could not be looked up: {reason}")]
    Failed { name: String, reason: String },
    /// Every address it has is one that nobody may send us to.
    #[error("{name} is {}, where a redirect may not lead; name it in redirects_allowed if it should", zone.name())]
    Refused { name: String, zone: Zone },
}

/// The names of the fetcher.
pub(crate) struct Names {
    /// Names that are not looked up; no address is no such name.
    known: BTreeMap<String, Vec<IpAddr>>,
    allowed: Allowed,
    /// The proxy's own name: who configured it decided where it is.
    proxy: Option<String>,
    /// Where the endpoints that were connected to are.
    seen: Mutex<HashMap<String, Zone>>,
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Names").finish_non_exhaustive()
    }
}

impl Names {
    pub(crate) fn new(known: BTreeMap<String, Vec<IpAddr>>, allowed: Allowed, proxy: Option<String>) -> Self {
        Self { known, allowed, proxy, seen: Mutex::default() }
    }

    /// Where the server of a URL is: by its address, or by the addresses that its name had when it was connected to. One that
    /// was not, because a proxy did, is taken to be outside.
    pub(crate) fn zone(&self, url: &Url) -> Zone {
        let host = bare(url);
        match host.parse::<IpAddr>() {
            Ok(address) => Zone::of(address),
            Err(_) => self.seen.lock().get(host).copied().unwrap_or(Zone::Public),
        }
    }

    /// Refuses a URL whose host is an address that a server in `from` may not send us to. Names are refused when they are looked
    /// up.
    pub(crate) fn check(&self, from: Zone, url: &Url) -> Result<(), NameError> {
        let host = bare(url);
        match host.parse::<IpAddr>() {
            Ok(address) if !self.may(from, address) => {
                Err(NameError::Refused { name: host.to_owned(), zone: Zone::of(address) })
            }
            _ => Ok(()),
        }
    }

    fn may(&self, from: Zone, address: IpAddr) -> bool {
        from.may_send_to(Zone::of(address)) || self.allowed.address(address)
    }

    async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, NameError> {
        let unknown = || NameError::Unknown { name: name.to_owned() };
        let found = match self.known.get(name) {
            Some(addresses) => addresses.clone(),
            None => match tokio::net::lookup_host((name, 0)).await {
                Ok(found) => found.map(|address| address.ip()).collect(),
                Err(error) => {
                    let reason = error.to_string();
                    if UNKNOWN_TEXTS.iter().any(|text| reason.contains(text)) {
                        return Err(unknown());
                    }
                    return Err(NameError::Failed { name: name.to_owned(), reason });
                }
            },
        };
        if found.is_empty() { Err(unknown()) } else { Ok(found) }
    }

    /// The addresses of an endpoint's name, which are remembered.
    async fn endpoint(&self, name: &str) -> Result<Vec<IpAddr>, NameError> {
        let found = self.addresses(name).await?;
        // The outermost: what is partly outside is not trusted like what is inside.
        let zone = found.iter().map(|address| Zone::of(*address)).max().unwrap_or(Zone::Public);
        let mut seen = self.seen.lock();
        if seen.len() < MAX_SEEN || seen.contains_key(name) {
            seen.insert(name.to_owned(), zone);
        }
        Ok(found)
    }

    /// The addresses of a name that a server in `from` sent us to, those that it may not left out.
    async fn beyond(&self, from: Zone, name: &str) -> Result<Vec<IpAddr>, NameError> {
        let mut found = self.addresses(name).await?;
        if self.allowed.host(name) || self.proxy.as_deref() == Some(name) {
            return Ok(found);
        }
        let zone = found.iter().map(|address| Zone::of(*address)).max().unwrap_or(Zone::Forbidden);
        found.retain(|address| self.may(from, *address));
        if found.is_empty() { Err(NameError::Refused { name: name.to_owned(), zone }) } else { Ok(found) }
    }
}

/// The host without the brackets of an IPv6 address.
fn bare(url: &Url) -> &str {
    url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']')
}

/// How a client looks names up.
#[derive(Debug, Clone)]
pub(crate) struct Resolver {
    pub(crate) names: Arc<Names>,
    /// Where the server is that sent us; `None` when we were not sent.
    pub(crate) from: Option<Zone>,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let Self { names, from } = self.clone();
        Box::pin(async move {
            let found = match from {
                None => names.endpoint(name.as_str()).await,
                Some(from) => names.beyond(from, name.as_str()).await,
            };
            let addresses: reqwest::dns::Addrs =
                Box::new(found?.into_iter().map(|address| SocketAddr::new(address, 0)));
            Ok(addresses)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(known: &[(&str, &[&str])], allowed: &[&str]) -> Names {
        let known = known.iter().map(|(name, addresses)| {
            ((*name).to_owned(), addresses.iter().map(|address| address.parse().unwrap()).collect())
        });
        let allowed: Vec<String> = allowed.iter().map(|entry| (*entry).to_owned()).collect();
        Names::new(known.collect(), Allowed::parse(&allowed).unwrap(), Some("proxy.lan".to_owned()))
    }

    #[tokio::test]
    async fn addresses_that_nobody_may_send_us_to_are_left_out() {
        let all = names(
            &[
                ("meta.evil", &["169.254.169.254"]),
                ("mixed.evil", &["10.0.0.1", "1.1.1.1"]),
                ("loop.evil", &["::ffff:127.0.0.1"]),
                ("minio.lan", &["10.0.0.7"]),
                ("proxy.lan", &["10.0.0.8"]),
                ("gone.lan", &[]),
            ],
            &["minio.lan"],
        );
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for from in [Zone::Public, Zone::Private, Zone::Loopback] {
            assert!(matches!(all.beyond(from, "meta.evil").await, Err(NameError::Refused { .. })), "{from:?}");
        }
        assert_eq!(all.beyond(Zone::Public, "mixed.evil").await, Ok(vec![ip("1.1.1.1")]));
        assert_eq!(all.beyond(Zone::Private, "mixed.evil").await.unwrap().len(), 2);
        assert!(matches!(all.beyond(Zone::Private, "loop.evil").await, Err(NameError::Refused { .. })));
        assert_eq!(all.beyond(Zone::Public, "minio.lan").await, Ok(vec![ip("10.0.0.7")]));
        assert_eq!(all.beyond(Zone::Public, "proxy.lan").await, Ok(vec![ip("10.0.0.8")]));
        assert!(matches!(all.beyond(Zone::Public, "gone.lan").await, Err(NameError::Unknown { .. })));
    }

    #[tokio::test]
    async fn an_endpoint_is_where_its_outermost_address_is() {
        let all = names(&[("in.lan", &["10.0.0.1"]), ("both.lan", &["10.0.0.1", "1.1.1.1"])], &[]);
        let url = |host: &str| Url::parse(&format!("https://{host}/v2/")).unwrap();
        assert_eq!(all.zone(&url("in.lan")), Zone::Public, "not connected to yet");
        all.endpoint("in.lan").await.unwrap();
        all.endpoint("both.lan").await.unwrap();
        assert_eq!(all.zone(&url("in.lan")), Zone::Private);
        assert_eq!(all.zone(&url("both.lan")), Zone::Public);
        assert_eq!(all.zone(&url("[::1]:5000")), Zone::Loopback);
        assert!(all.check(Zone::Private, &url("[::ffff:169.254.169.254]")).is_err());
        assert!(all.check(Zone::Private, &url("name.lan")).is_ok());
    }
}
