//! Docker's `config.json`: the credentials it holds, and the helpers it names.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use base64::Engine as _;
use tokio::time::Instant;

use super::{
    Credential, Found, MAX_OFFERED, Provider, Wanted,
    file::{self, Audience},
    helper,
    scope::{is_docker_hub, key_covers},
    unusable,
};
use crate::{failure::Failure, secret::Secret};

/// What docker calls its own registry in its config.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
/// How long a helper that failed is not run again for the same registry: readers come in crowds.
const FAILED_FOR: Duration = Duration::from_secs(5);
/// Most helper failures remembered.
const MAX_FAILURES: usize = 256;

/// Docker's `config.json`, as far as credentials go.
#[derive(Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
struct Entry {
    username: Option<String>,
    password: Option<Secret>,
    /// base64 of `user:password`.
    auth: Option<Secret>,
    identitytoken: Option<Secret>,
    registrytoken: Option<Secret>,
}

/// A docker config that cannot be used. Its text never repeats the file's content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DockerConfigError {
    /// Not JSON of the expected shape.
    #[error("it is not a docker config (line {line}, column {column})")]
    Malformed {
        /// Line of the first fault, from 1.
        line: usize,
        /// Column of the first fault.
        column: usize,
    },
    /// The `auth` of a registry is not base64 of `user:password`.
    #[error("auths[{key:?}].auth is not base64 of user:password; log in again with `docker login {key}`")]
    Auth {
        /// The registry as the config names it.
        key: String,
    },
}

impl DockerConfig {
    /// Reads the text of a `config.json`, or of a Kubernetes secret's `.dockerconfigjson`.
    ///
    /// # Errors
    /// [`DockerConfigError::Malformed`].
    pub fn parse(bytes: &[u8]) -> Result<Self, DockerConfigError> {
        serde_json::from_slice(bytes).map_err(|e| malformed(&e))
    }

    /// Reads the text of a `.dockercfg`: registries alone, as docker wrote before version 1.7 and Kubernetes still knows.
    ///
    /// # Errors
    /// [`DockerConfigError::Malformed`].
    pub fn parse_old(bytes: &[u8]) -> Result<Self, DockerConfigError> {
        let auths = serde_json::from_slice(bytes).map_err(|e| malformed(&e))?;
        Ok(Self { auths, ..Self::default() })
    }

    /// The credentials that the file itself holds for a repository: of the longest key that is the registry's host or a
    /// path above the repository in it.
    ///
    /// # Errors
    /// [`DockerConfigError::Auth`].
    pub fn stored(&self, host: &str, repository: &str) -> Result<Credential, DockerConfigError> {
        let fits = self.auths.iter().filter_map(|(key, entry)| Some((key_covers(key, host, repository)?, key, entry)));
        match fits.max_by_key(|(length, ..)| *length) {
            Some((_, key, entry)) => entry.credential().ok_or_else(|| DockerConfigError::Auth { key: key.clone() }),
            None => Ok(Credential::Anonymous),
        }
    }

    /// The credential helper to ask for a host, and the name it knows the host by.
    pub(super) fn helper(&self, host: &str) -> Option<(&str, String)> {
        let server = if is_docker_hub(host) { DOCKER_HUB_KEY } else { host };
        let named = self.cred_helpers.iter().find(|(key, _)| key_covers(key, host, "").is_some());
        let name = named.map(|(_, name)| name).or(self.creds_store.as_ref()).filter(|name| !name.is_empty())?;
        Some((name, server.to_owned()))
    }
}

fn malformed(error: &serde_json::Error) -> DockerConfigError {
    DockerConfigError::Malformed { line: error.line(), column: error.column() }
}

impl Entry {
    /// `None` when `auth` cannot be read.
    fn credential(&self) -> Option<Credential> {
        let said = |secret: &Option<Secret>| secret.clone().filter(|secret| !secret.is_empty());
        if let Some(token) = said(&self.identitytoken) {
            return Some(Credential::Identity(token));
        }
        if let Some(token) = said(&self.registrytoken) {
            return Some(Credential::Token(token));
        }
        if let Some(auth) = said(&self.auth) {
            let bytes = base64::engine::general_purpose::STANDARD.decode(auth.expose().trim()).ok()?;
            let text = zeroize::Zeroizing::new(String::from_utf8(bytes).ok()?);
            // Docker pads some with NUL.
            let (user, password) = text.trim_end_matches('\0').split_once(':')?;
            return Some(Credential::Basic { user: user.to_owned(), password: Secret::new(password.to_owned()) });
        }
        Some(match (&self.username, said(&self.password)) {
            (Some(user), Some(password)) => Credential::Basic { user: user.clone(), password },
            _ => Credential::Anonymous,
        })
    }
}

/// A docker config as a provider: its helper for the host, then what the file holds.
#[derive(Debug)]
pub(crate) struct Docker {
    pub(super) config: PathBuf,
    /// The directory of the helpers; `None` searches the process's `PATH`.
    pub(super) helpers: Option<PathBuf>,
    pub(super) timeout: Duration,
    /// Helpers that failed lately, by their name and the server's. Held while one runs, so that a crowd runs it once.
    pub(super) failed: tokio::sync::Mutex<BTreeMap<(String, String), (Failure, Instant)>>,
}

impl Docker {
    pub(crate) fn new(config: PathBuf, helpers: Option<PathBuf>, timeout: Duration) -> Self {
        Self { config, helpers, timeout, failed: tokio::sync::Mutex::default() }
    }

    /// A missing file has nothing; one that cannot be used is a failure, because going on without the credentials that somebody
    /// set up would only fail less clearly later.
    pub(crate) async fn find(&self, wanted: Wanted<'_>) -> Result<Vec<Found>, Failure> {
        let Some(config) = self.read().await? else { return Ok(Vec::new()) };
        let mut offered = Vec::new();
        if let Some((name, server)) = config.helper(wanted.host) {
            offered.extend(self.ask_helper(name, server).await?);
        }
        if offered.is_empty() {
            offered.push(config.stored(wanted.host, wanted.repository).map_err(|e| self.refused(&e.to_string()))?);
        }
        Ok(found(Provider::DockerConfig, offered))
    }

    async fn ask_helper(&self, name: &str, server: String) -> Result<Option<Credential>, Failure> {
        let key = (name.to_owned(), server);
        let mut failed = self.failed.lock().await;
        if let Some((failure, until)) = failed.get(&key)
            && Instant::now() < *until
        {
            return Err(failure.clone());
        }
        failed.remove(&key);
        let asked = helper::ask(self, &key.0, &key.1).await;
        if let Err(failure) = &asked {
            if failed.len() >= MAX_FAILURES {
                failed.clear();
            }
            failed.insert(key, (failure.clone(), Instant::now() + FAILED_FOR));
        }
        asked
    }

    async fn read(&self) -> Result<Option<DockerConfig>, Failure> {
        let read = read(self.config.clone(), Audience::Anyone).await;
        let parsed = read
            .and_then(|bytes| bytes.map(|bytes| DockerConfig::parse(&bytes).map_err(|e| e.to_string())).transpose());
        parsed.map_err(|reason| self.refused(&reason))
    }

    /// Why the file cannot be used now.
    pub(crate) async fn problem(&self) -> Option<String> {
        self.read().await.err().map(|failure| failure.reason)
    }

    fn refused(&self, reason: &str) -> Failure {
        unusable(format_args!("docker config {}", self.config.display()), reason)
    }
}

/// What a provider offers, without the empty-handed.
pub(super) fn found(provider: Provider, offered: Vec<Credential>) -> Vec<Found> {
    let real = offered.into_iter().filter(|credential| *credential != Credential::Anonymous);
    real.map(|credential| Found { provider, credential }).take(MAX_OFFERED).collect()
}

/// Reads a file off the runtime's own threads.
pub(super) async fn read(path: PathBuf, audience: Audience) -> Result<Option<zeroize::Zeroizing<Vec<u8>>>, String> {
    let read = tokio::task::spawn_blocking(move || file::read(Path::new(&path), audience));
    read.await.unwrap_or_else(|error| Err(error.to_string()))
}
