//! Who may ask what on the TCP listener: decided from the config, before anything listens.

use std::path::PathBuf;

use crate::config::Config;

/// What the TCP listener offers, and to whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Policy {
    /// Loopback without authentication: whoever is on this node may read.
    Reading {
        /// Over TLS all the same.
        tls: Option<Pair>,
    },
    /// Everything, to who proves to be known by a token or by a certificate.
    Known {
        /// File of tokens.
        token_file: Option<PathBuf>,
        /// What the agent shows, and the authorities of its clients' certificates.
        tls: Option<Pair>,
        /// Certificate authorities of clients.
        client_ca: Option<PathBuf>,
    },
}

/// A certificate and its key, both PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

/// Why the config's listener is not offered: the key to change, and the reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {reason}")]
pub struct Unsafe {
    /// The key.
    pub key: &'static str,
    /// Why, and what to do.
    pub reason: String,
}

fn refuse<T>(key: &'static str, reason: impl Into<String>) -> Result<T, Unsafe> {
    Err(Unsafe { key, reason: reason.into() })
}

/// What the config's TCP listener offers; `None` when it has none.
///
/// # Errors
/// [`Unsafe`] when it would let in whom nobody knows, or send a token where others can read it.
pub(crate) fn policy(config: &Config) -> Result<Option<Policy>, Unsafe> {
    let Some(address) = config.listen else { return Ok(None) };
    let tls = match (config.api_tls_cert.clone(), config.api_tls_key.clone()) {
        (Some(cert), Some(key)) => Some(Pair { cert, key }),
        (None, None) => None,
        (Some(_), None) => return refuse("api.tls_key", "api.tls_cert is set without its key; set api.tls_key too"),
        (None, Some(_)) => {
            return refuse("api.tls_cert", "api.tls_key is set without its certificate; set api.tls_cert too");
        }
    };
    let (token_file, client_ca) = (config.api_token_file.clone(), config.api_client_ca.clone());
    if client_ca.is_some() && tls.is_none() {
        let reason = "clients can only show certificates over TLS; set api.tls_cert and api.tls_key too";
        return refuse("api.client_ca", reason);
    }
    if token_file.is_none() && client_ca.is_none() {
        if address.ip().is_loopback() {
            return Ok(Some(Policy::Reading { tls }));
        }
        let reason = format!(
            "{address} can be reached from other machines, and nobody would be asked who they are; set api.token_file or api.client_ca, or listen on 127.0.0.1 or [::1]"
        );
        return refuse("listen", reason);
    }
    if token_file.is_some() && tls.is_none() && !address.ip().is_loopback() && !config.api_plain_token {
        let reason = format!(
            "tokens would cross the network readable on their way to {address}; set api.tls_cert and api.tls_key, or api.plain_token = true where something else encrypts"
        );
        return refuse("listen", reason);
    }
    Ok(Some(Policy::Known { token_file, tls, client_ca }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(listen: &str, set: impl FnOnce(&mut Config)) -> Config {
        let mut config = Config { listen: Some(listen.parse().unwrap()), ..Config::default() };
        set(&mut config);
        config
    }

    fn with_tls(config: &mut Config) {
        (config.api_tls_cert, config.api_tls_key) = (Some("/c".into()), Some("/k".into()));
    }

    #[test]
    fn nothing_listens_unless_told() {
        assert_eq!(policy(&Config::default()), Ok(None));
    }

    #[test]
    fn without_authentication_loopback_may_be_read_and_nothing_else_is_served() {
        for loopback in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1"] {
            assert_eq!(policy(&config(loopback, |_| ())), Ok(Some(Policy::Reading { tls: None })), "{loopback}");
        }
        for open in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "[fe80::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert_eq!(policy(&config(open, |_| ())).unwrap_err().key, "listen", "{open}");
            assert_eq!(policy(&config(open, with_tls)).unwrap_err().key, "listen", "{open} with TLS alone");
        }
    }

    #[test]
    fn a_token_needs_tls_beyond_loopback_unless_told_otherwise() {
        let token = |config: &mut Config| config.api_token_file = Some("/t".into());
        assert!(matches!(policy(&config("127.0.0.1:1", token)), Ok(Some(Policy::Known { tls: None, .. }))));
        let refused = policy(&config("0.0.0.0:1", token)).unwrap_err();
        assert!(refused.reason.contains("api.plain_token"), "{refused}");
        let both = |config: &mut Config| {
            token(config);
            with_tls(config);
        };
        assert!(matches!(policy(&config("0.0.0.0:1", both)), Ok(Some(Policy::Known { tls: Some(_), .. }))));
        let plain = |config: &mut Config| {
            token(config);
            config.api_plain_token = true;
        };
        assert!(policy(&config("0.0.0.0:1", plain)).is_ok());
    }

    #[test]
    fn half_of_a_pair_is_refused_by_the_half_that_is_missing() {
        let missing = |set: fn(&mut Config)| policy(&config("127.0.0.1:1", set)).unwrap_err().key;
        assert_eq!(missing(|config| config.api_tls_cert = Some("/c".into())), "api.tls_key");
        assert_eq!(missing(|config| config.api_tls_key = Some("/k".into())), "api.tls_cert");
        assert_eq!(missing(|config| config.api_client_ca = Some("/a".into())), "api.client_ca");
    }
}
