//! Who we are to a registry: docker's `config.json`, read anew each time, so that new credentials are picked up without a
//! restart.

use std::{collections::BTreeMap, io::Read as _, path::PathBuf, time::Duration};

use base64::Engine as _;

use crate::{failure::Failure, secret::Secret};

mod helper;
#[cfg(test)]
mod tests;

/// Largest docker config read, in bytes. One with a thousand registries has some 200 KiB.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// What docker calls its own registry in its config.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// What to show a registry or its token server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// Nothing.
    Anonymous,
    /// A user name and a password.
    Basic {
        /// The user name.
        user: String,
        /// The password.
        password: Secret,
    },
    /// An OAuth2 refresh token, which the token server exchanges (docker calls it identity token).
    Identity(Secret),
    /// A token for the registry itself.
    Token(Secret),
}

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
    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// [`DockerConfigError::Malformed`].
    pub fn parse(bytes: &[u8]) -> Result<Self, DockerConfigError> {
        serde_json::from_slice(bytes).map_err(|e| DockerConfigError::Malformed { line: e.line(), column: e.column() })
    }

    /// The credentials that the file itself holds for a repository: of the longest key that is the registry's host or a
    /// path above the repository in it.
    ///
    /// # Errors
    /// [`DockerConfigError::Auth`].
    pub fn stored(&self, host: &str, repository: &str) -> Result<Credential, DockerConfigError> {
        let fits = self.auths.iter().filter_map(|(key, entry)| Some((covers(key, host, repository)?, key, entry)));
        match fits.max_by_key(|(length, ..)| *length) {
            Some((_, key, entry)) => entry.credential().ok_or_else(|| DockerConfigError::Auth { key: key.clone() }),
            None => Ok(Credential::Anonymous),
        }
    }

    /// The credential helper to ask for a host, and the name it knows the host by.
    fn helper(&self, host: &str) -> Option<(&str, String)> {
        let server = if is_docker_hub(host) { DOCKER_HUB_KEY } else { host };
        let named = self.cred_helpers.iter().find(|(key, _)| covers(key, host, "").is_some());
        let name = named.map(|(_, name)| name).or(self.creds_store.as_ref()).filter(|name| !name.is_empty())?;
        Some((name, server.to_owned()))
    }
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
            let text = String::from_utf8(bytes).ok()?;
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

/// How much of `host/repository` a key of the config names, in bytes; `None` when it names something else. Keys are written
/// with and without a scheme, a final `/v1/` or `/v2/`, and (podman, Kubernetes) with a path.
fn covers(key: &str, host: &str, repository: &str) -> Option<usize> {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let key = key.trim_end_matches('/');
    let key = key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).unwrap_or(key);
    let (named, path) = key.split_once('/').unwrap_or((key, ""));
    let same = named.eq_ignore_ascii_case(host) || (is_docker_hub(named) && is_docker_hub(host));
    let above = path.is_empty()
        || repository == path
        || repository.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'));
    (same && above).then_some(path.len())
}

fn is_docker_hub(host: &str) -> bool {
    matches!(host, "docker.io" | "index.docker.io" | "registry-1.docker.io")
}

/// Where credentials come from.
#[derive(Debug)]
pub(crate) struct Credentials {
    /// The docker config; `None` is anonymous everywhere.
    pub(crate) config: Option<PathBuf>,
    /// The directory of the `docker-credential-*` programs; `None` searches the process's `PATH`.
    pub(crate) helpers: Option<PathBuf>,
    /// How long a helper may take.
    pub(crate) patience: Duration,
}

impl Credentials {
    /// The credentials for a repository on a host. A missing config file means anonymous; one that cannot be used is a
    /// failure, because going on without the credentials that somebody set up would only fail less clearly later.
    pub(crate) async fn find(&self, host: &str, repository: &str) -> Result<Credential, Failure> {
        let Some(config) = self.read().await? else { return Ok(Credential::Anonymous) };
        if let Some((name, server)) = config.helper(host)
            && let Some(found) = helper::ask(self, name, &server).await?
        {
            return Ok(found);
        }
        config.stored(host, repository).map_err(|e| self.refused(&e.to_string()))
    }

    async fn read(&self) -> Result<Option<DockerConfig>, Failure> {
        let Some(path) = self.config.clone() else { return Ok(None) };
        let read = tokio::task::spawn_blocking(move || {
            let mut bytes = Vec::new();
            std::fs::File::open(path)?.take(MAX_CONFIG_BYTES + 1).read_to_end(&mut bytes).map(|_| bytes)
        });
        match read.await.map_err(std::io::Error::other).and_then(|result| result) {
            Ok(bytes) if bytes.len() as u64 > MAX_CONFIG_BYTES => Err(self.refused("it is larger than 1 MiB")),
            Ok(bytes) => DockerConfig::parse(&bytes).map(Some).map_err(|e| self.refused(&e.to_string())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.refused(&error.to_string())),
        }
    }

    fn refused(&self, reason: &str) -> Failure {
        let path = self.config.as_deref().unwrap_or_else(|| std::path::Path::new("-"));
        Failure::denied(format!("docker config {} cannot be used: {reason}", path.display()))
    }
}
