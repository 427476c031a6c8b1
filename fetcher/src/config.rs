//! What the fetcher is told once, at construction.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, time::Duration};

use crate::{CredentialSources, Secret};

/// Settings of a [`crate::Fetcher`]. Everything has a bound and a default fit for a node; the agent fills in what it read
/// from its own configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// How long a read or a resolve may take with all its retries before it ends in an error. Default 30 s: long enough for a
    /// registry to be restarted, short enough for a process to be told.
    pub deadline: Duration,
    /// How long a connection may take to be made. Default 5 s.
    pub connect_timeout: Duration,
    /// How long nothing may come while an answer or a part of it is waited for; then the try has failed. Default 10 s.
    pub idle_timeout: Duration,
    /// Most requests in flight; a reader beyond waits its turn. Default 32: enough to hide 30 ms of latency at 1 GB/s in
    /// requests of 1 MiB, few enough for registries that limit by connection.
    pub max_requests: usize,
    /// Most bytes in flight: asked for and not yet handed out. Default 64 MiB. This bounds the fetcher's memory.
    pub max_bytes: u64,
    /// Most bytes asked for in one request; a longer read is split, neighbours are joined up to it. Default 4 MiB: at 100 MB/s
    /// the latency of a request is then below a tenth of its time. At most `max_bytes`.
    pub max_request_bytes: u64,
    /// Reads of one blob that wait at the same time are joined to one request when at most this many bytes lie between them.
    /// Default 0, ranges that touch: the cache above asks for what it lacks, so what lies between is mostly there already.
    pub join_gap_bytes: u64,
    /// Wait before the second try, doubled for each further one and drawn evenly from zero to that. Default 100 ms.
    pub backoff_first: Duration,
    /// The longest such wait. Default 5 s.
    pub backoff_max: Duration,
    /// A PEM file of certificate authorities trusted besides the system's.
    pub ca_bundle: Option<PathBuf>,
    /// Hosts, or host:port, spoken to without TLS. Loopback addresses are, unless listed in `tls`.
    pub plain_http: Vec<String>,
    /// Hosts, or host:port, spoken to with TLS although they are on loopback.
    pub tls: Vec<String>,
    /// Directories laid out as containerd's `certs.d` (its `config_path`): for each registry whom to ask, in which order, and how.
    /// The first that has something about a registry counts. Default none.
    pub hosts_dirs: Vec<PathBuf>,
    /// How long what was read there is used before it is read again. Default 5 s: an edit holds soon, and a busy node reads a few
    /// small files each time.
    pub hosts_recheck: Duration,
    /// Hosts and networks (`minio.lan`, `10.0.0.0/8`) that a redirect or a token server's address may lead to although they are
    /// further in than the registry that named them: private, loopback or link-local.
    pub redirects_allowed: Vec<String>,
    /// Addresses of names that are not looked up, as in `/etc/hosts`; without an address, there is no such name.
    pub known_names: BTreeMap<String, Vec<IpAddr>>,
    /// A proxy for all requests but those to loopback, as `http://[user:password@]host:port`. The environment is not read.
    pub proxy: Option<Secret>,
    /// Hosts asked without the proxy, separated by commas, as in `NO_PROXY`.
    pub no_proxy: Option<String>,
    /// Where credentials come from, besides those that are handed over. The default is nowhere: anonymous.
    pub credentials: CredentialSources,
    /// What we call ourselves to registries.
    pub user_agent: &'static str,
}

/// Why a fetcher cannot be made from a [`Config`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A number that would make the fetcher stand still.
    #[error("{setting} is {value}, but must be {rule}")]
    Bound {
        /// The field of [`Config`].
        setting: &'static str,
        /// Its value.
        value: u64,
        /// What it must be.
        rule: &'static str,
    },
    /// The CA bundle cannot be used.
    #[error("CA bundle {path}: {reason}; it must be a PEM file with at least one certificate")]
    CaBundle {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The proxy is not a URL.
    #[error("the proxy is not usable: {reason}; write http://host:port")]
    Proxy {
        /// What is wrong with it, without the address, which can hold a password.
        reason: String,
    },
    /// What redirects may lead to cannot be read.
    #[error("redirects_allowed: {entry:?} is neither a host name nor an address or network such as 10.0.0.0/8")]
    RedirectsAllowed {
        /// The entry.
        entry: String,
    },
    /// The HTTP client could not be made.
    #[error("the HTTP client cannot be made: {reason}")]
    Client {
        /// What it says.
        reason: String,
    },
}

impl Default for Config {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(10),
            max_requests: 32,
            max_bytes: 64 << 20,
            max_request_bytes: 4 << 20,
            join_gap_bytes: 0,
            backoff_first: Duration::from_millis(100),
            backoff_max: Duration::from_secs(5),
            ca_bundle: None,
            plain_http: Vec::new(),
            tls: Vec::new(),
            hosts_dirs: Vec::new(),
            hosts_recheck: Duration::from_secs(5),
            redirects_allowed: Vec::new(),
            known_names: BTreeMap::new(),
            proxy: None,
            no_proxy: None,
            credentials: CredentialSources::default(),
            user_agent: concat!("penstock/", env!("CARGO_PKG_VERSION")),
        }
    }
}

impl Config {
    /// Refuses numbers that would make the fetcher stand still.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let bound = |ok: bool, setting, value, rule| {
            if ok { Ok(()) } else { Err(ConfigError::Bound { setting, value, rule }) }
        };
        let requests = self.max_requests as u64;
        bound((1..=4096).contains(&requests), "max_requests", requests, "from 1 to 4096")?;
        bound((1..=1 << 31).contains(&self.max_bytes), "max_bytes", self.max_bytes, "from 1 to 2 GiB")?;
        let request = self.max_request_bytes;
        bound((1..=self.max_bytes).contains(&request), "max_request_bytes", request, "from 1 to max_bytes")?;
        for (setting, value) in [
            ("deadline", self.deadline),
            ("connect_timeout", self.connect_timeout),
            ("idle_timeout", self.idle_timeout),
            ("credentials.program_timeout", self.credentials.program_timeout),
        ] {
            bound(!value.is_zero(), setting, 0, "longer than nothing")?;
            bound(value <= Duration::from_secs(3600), setting, value.as_secs(), "at most an hour, in seconds")?;
        }
        Ok(())
    }

    /// Whether a host (with its port, if it has one) is spoken to without TLS because the config names it.
    pub(crate) fn is_plain_by_name(&self, host: &str) -> bool {
        named(&self.plain_http, host)
    }

    /// Whether a host (with its port, if it has one) is spoken to without TLS.
    pub(crate) fn is_plain(&self, host: &str) -> bool {
        self.is_plain_by_name(host) || (is_loopback(host) && !named(&self.tls, host))
    }
}

/// Whether a list holds the host, with this port or without one.
fn named(list: &[String], host: &str) -> bool {
    let bare = without_port(host);
    list.iter().any(|name| name.eq_ignore_ascii_case(host) || name.eq_ignore_ascii_case(bare))
}

fn without_port(host: &str) -> &str {
    if host.starts_with('[') {
        return host.find(']').map_or(host, |end| &host[..=end]);
    }
    host.split(':').next().unwrap_or(host)
}

/// `localhost`, 127.0.0.0/8 and `[::1]`, with or without a port.
pub(crate) fn is_loopback(host: &str) -> bool {
    let bare = without_port(host);
    let address = bare.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    bare.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_and_named_hosts_are_plain() {
        let config = Config {
            plain_http: vec!["registry.lan".to_owned(), "other.lan:5000".to_owned()],
            tls: vec!["127.0.0.1:8443".to_owned()],
            ..Config::default()
        };
        for host in [
            "localhost",
            "localhost:5000",
            "127.0.0.1",
            "127.8.9.1:80",
            "[::1]:5000",
            "[::1]",
            "registry.lan",
            "Registry.lan:80",
            "other.lan:5000",
        ] {
            assert!(config.is_plain(host), "{host}");
        }
        for host in [
            "127.0.0.1:8443",
            "other.lan",
            "other.lan:80",
            "localhost.evil.com",
            "10.0.0.1:5000",
            "[::2]:80",
            "registry.lan.evil.com",
        ] {
            assert!(!config.is_plain(host), "{host}");
        }
    }

    #[test]
    fn settings_that_would_stand_still_are_refused() {
        assert_eq!(Config::default().check(), Ok(()));
        let refused = |change: fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            config.check().unwrap_err()
        };
        refused(|c| c.max_requests = 0);
        refused(|c| c.max_bytes = 0);
        refused(|c| c.max_bytes = 1 << 40);
        refused(|c| c.max_request_bytes = 0);
        refused(|c| c.max_request_bytes = c.max_bytes + 1);
        refused(|c| c.deadline = Duration::ZERO);
        refused(|c| c.idle_timeout = Duration::from_secs(1 << 40));
    }
}
