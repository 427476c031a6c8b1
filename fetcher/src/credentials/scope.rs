//! What credentials are for: a registry, or a path of repositories in one. Pure and total.

use std::{fmt, str::FromStr};

/// Longest text of a scope, in bytes: the longest host name and repository fit twice.
const MAX_SCOPE_BYTES: usize = 1024;

/// `host[:port]`, or `host[:port]/path`: what credentials are for. A path covers the repository of that name and those below it.
/// Docker Hub is `docker.io`, whatever it is called.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CredentialScope {
    host: String,
    path: String,
}

/// Text that names no scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a registry or a path in one; write registry.example.com, registry.example.com:5000 or registry.example.com/team"
)]
pub struct CredentialScopeError {
    /// The text, cut to 128 characters.
    pub text: String,
}

impl CredentialScope {
    /// How much of `host/repository` the scope covers, in bytes of its path; `None` when it covers something else.
    pub(crate) fn covers(&self, host: &str, repository: &str) -> Option<usize> {
        covers(&self.host, &self.path, host, repository)
    }
}

impl FromStr for CredentialScope {
    type Err = CredentialScopeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || CredentialScopeError { text: text.chars().take(128).collect() };
        if text.len() > MAX_SCOPE_BYTES {
            return Err(refused());
        }
        let (host, path) = text.split_once('/').unwrap_or((text, ""));
        let host = host.to_ascii_lowercase();
        let host = if is_docker_hub(&host) { "docker.io".to_owned() } else { host };
        let is_host = !host.is_empty()
            && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:[]".contains(&b))
            && reqwest::Url::parse(&format!("https://{host}/")).is_ok();
        let is_word = |word: &str| {
            !word.is_empty()
                && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b))
                && word.starts_with(|c: char| c.is_ascii_alphanumeric())
        };
        let path = path.trim_end_matches('/');
        if !is_host || !(path.is_empty() || path.split('/').all(is_word)) {
            return Err(refused());
        }
        Ok(Self { host, path: path.to_owned() })
    }
}

impl fmt::Display for CredentialScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host)?;
        if self.path.is_empty() { Ok(()) } else { write!(f, "/{}", self.path) }
    }
}

/// As [`CredentialScope::covers`], for a key of a docker config: keys are written with and without a scheme, a final `/v1/` or
/// `/v2/`, and (podman, Kubernetes) with a path.
pub(super) fn key_covers(key: &str, host: &str, repository: &str) -> Option<usize> {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let key = key.trim_end_matches('/');
    let key = key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).unwrap_or(key);
    let (named, path) = key.split_once('/').unwrap_or((key, ""));
    covers(named, path, host, repository)
}

fn covers(named: &str, path: &str, host: &str, repository: &str) -> Option<usize> {
    let same = named.eq_ignore_ascii_case(host) || (is_docker_hub(named) && is_docker_hub(host));
    let above = path.is_empty()
        || repository == path
        || repository.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'));
    (same && above).then_some(path.len())
}

pub(super) fn is_docker_hub(host: &str) -> bool {
    matches!(host, "docker.io" | "index.docker.io" | "registry-1.docker.io")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn scopes_are_hosts_and_paths_of_repositories() {
        for (text, shown) in [
            ("ghcr.io", "ghcr.io"),
            ("GHCR.io/team/app", "ghcr.io/team/app"),
            ("127.0.0.1:5000", "127.0.0.1:5000"),
            ("[::1]:5000/a", "[::1]:5000/a"),
            ("registry-1.docker.io/library/", "docker.io/library"),
        ] {
            assert_eq!(text.parse::<CredentialScope>().map(|scope| scope.to_string()), Ok(shown.to_owned()), "{text}");
        }
        for bad in [
            "",
            "/",
            "/a",
            "https://ghcr.io",
            "u:p@ghcr.io",
            "ghcr.io//a",
            "ghcr.io/..",
            "ghcr.io/a b",
            "ghcr.io/A",
            "a b",
        ] {
            assert!(bad.parse::<CredentialScope>().is_err(), "{bad:?}");
        }
        assert!("a".repeat(2000).parse::<CredentialScope>().is_err());
    }

    #[test]
    fn a_scope_covers_its_repository_and_those_below() {
        let scope: CredentialScope = "docker.io/library/alpine".parse().unwrap();
        assert_eq!(scope.covers("registry-1.docker.io", "library/alpine"), Some(14));
        assert_eq!(scope.covers("registry-1.docker.io", "library/alpine/x"), Some(14));
        assert_eq!(scope.covers("registry-1.docker.io", "library/alpine2"), None);
        assert_eq!(scope.covers("ghcr.io", "library/alpine"), None);
    }

    proptest! {
        #[test]
        fn what_is_a_scope_reads_back_the_same(text in "\\PC{0,40}|[a-z0-9.:/_-]{0,40}") {
            if let Ok(scope) = text.parse::<CredentialScope>() {
                prop_assert_eq!(scope.to_string().parse(), Ok(scope));
            }
        }
    }
}
