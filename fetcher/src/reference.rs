//! Image references: the text a person types, and what it means.
//!
//! The grammar is that of the distribution project's `reference` package, which docker and containerd share, and of the OCI
//! distribution specification for names and tags: `[registry/]repository[:tag][@digest]`.

use std::{fmt, net::Ipv6Addr, str::FromStr};

use penstock_blob::{Digest, DigestError};

#[cfg(test)]
mod tests;

/// The registry meant when none is written.
const DOCKER_HUB: &str = "docker.io";
/// The host that serves [`DOCKER_HUB`]'s registry API.
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";
/// Longest repository name, in bytes (distribution's `RepositoryNameTotalLengthMax`).
const MAX_REPOSITORY_BYTES: usize = 255;
/// Longest tag, in bytes (OCI distribution specification, "Pulling manifests").
const MAX_TAG_BYTES: usize = 128;
/// Longest registry name: a DNS name has at most 253 bytes, a port at most 6 more.
const MAX_REGISTRY_BYTES: usize = 259;
/// Longest text looked at at all: all parts at their longest, and their separators.
const MAX_TEXT_BYTES: usize = 1024;
/// How much of a refused part is repeated in an error, in characters.
const SHOWN_CHARS: usize = 64;

/// Names a manifest in a registry: by tag, by digest, or by both (then the digest decides).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not a reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing was written.
    #[error("a reference is empty; write something like alpine:3.20 or registry.example.com/team/app:1.0")]
    Empty,
    /// The text is longer than any reference can be.
    #[error("a reference of {bytes} bytes is too long; at most {MAX_TEXT_BYTES} are looked at")]
    TooLong {
        /// Bytes written.
        bytes: usize,
    },
    /// The part before the first slash is not a host, or host:port.
    #[error("{part:?} is not a registry; write a host name or address, with :port if needed")]
    Registry {
        /// The refused part, cut to 64 characters.
        part: String,
    },
    /// The repository is not lower-case words joined by `.`, `_`, `__`, `-` and `/`.
    #[error("{part:?} is not a repository; use lower-case letters and digits, joined by one of . _ __ - and by /")]
    Repository {
        /// The refused part, cut to 64 characters.
        part: String,
    },
    /// The repository is 64 hex digits, which tools read as a digest or an image ID.
    #[error("{part:?} looks like a digest without sha256:; write repository@sha256:... to name an image by digest")]
    BareDigest {
        /// The refused part.
        part: String,
    },
    /// The tag is not a word of at most 128 letters, digits, `_`, `.` and `-`.
    #[error("{part:?} is not a tag; use at most 128 letters, digits, _ . and -, not starting with . or -")]
    Tag {
        /// The refused part, cut to 64 characters.
        part: String,
    },
    /// What stands after `@` is not a digest.
    #[error("after @ must stand a digest: {0}")]
    Digest(#[from] DigestError),
}

impl Reference {
    /// The registry as written, `docker.io` when none was: lower case, with the port if one was written.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository in its registry, `library/` added for the official images of docker.io.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `latest` when neither tag nor digest was written.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest of the manifest meant, when pinned.
    #[must_use]
    pub const fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// The host (and port) that serves the registry's API: `registry-1.docker.io` for docker.io, else [`Self::registry`].
    #[must_use]
    pub fn host(&self) -> &str {
        if self.registry == DOCKER_HUB { DOCKER_HUB_HOST } else { &self.registry }
    }

    /// The same repository and tag, pinned to `digest`.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { digest: Some(digest), ..self.clone() }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if text.len() > MAX_TEXT_BYTES {
            return Err(ReferenceError::TooLong { bytes: text.len() });
        }
        let (named, digest) = match text.split_once('@') {
            Some((named, digest)) => (named, Some(digest.parse()?)),
            None => (text, None),
        };
        let (name, tag) = split_tag(named);
        let (registry, path) = split_registry(name)?;
        let repository = repository(&registry, path)?;
        let tag = match tag {
            Some(tag) if is_tag(tag) => Some(tag.to_owned()),
            Some(tag) => return Err(ReferenceError::Tag { part: shown(tag) }),
            None if digest.is_none() => Some("latest".to_owned()),
            None => None,
        };
        Ok(Self { registry, repository, tag, digest })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for Reference {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Reference {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

fn shown(part: &str) -> String {
    part.chars().take(SHOWN_CHARS).collect()
}

/// A colon starts a tag when no slash follows it; else it starts a port.
fn split_tag(named: &str) -> (&str, Option<&str>) {
    match named.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (named, None),
    }
}

/// The first component is a registry when it can be nothing else: it has a dot or a colon, or is `localhost`. (Docker also
/// takes one with an upper-case letter; here that is refused as a repository, because it is a slip and never a host.)
fn split_registry(name: &str) -> Result<(String, &str), ReferenceError> {
    let is_registry = |first: &str| first.contains(['.', ':']) || first.eq_ignore_ascii_case("localhost");
    match name.split_once('/') {
        Some((first, path)) if is_registry(first) => {
            let registry = first.to_ascii_lowercase();
            if !is_host_and_port(&registry) {
                return Err(ReferenceError::Registry { part: shown(first) });
            }
            // Docker's own old name for its registry.
            let registry = if registry == "index.docker.io" { DOCKER_HUB.to_owned() } else { registry };
            Ok((registry, path))
        }
        _ => Ok((DOCKER_HUB.to_owned(), name)),
    }
}

fn repository(registry: &str, path: &str) -> Result<String, ReferenceError> {
    let is_hex = |s: &str| s.len() == 64 && s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if registry == DOCKER_HUB && is_hex(path) {
        return Err(ReferenceError::BareDigest { part: path.to_owned() });
    }
    let official = registry == DOCKER_HUB && !path.contains('/');
    let repository = if official { format!("library/{path}") } else { path.to_owned() };
    if repository.len() > MAX_REPOSITORY_BYTES || !path.split('/').all(is_path_component) {
        return Err(ReferenceError::Repository { part: shown(path) });
    }
    Ok(repository)
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_path_component(component: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let mut at = 0;
    loop {
        let word = bytes[at..].iter().take_while(|&&b| is_word(b)).count();
        if word == 0 {
            return false;
        }
        at += word;
        if at == bytes.len() {
            return true;
        }
        let separator = bytes[at..].iter().take_while(|&&b| !is_word(b)).count();
        match &bytes[at..at + separator] {
            b"." | b"_" | b"__" => {}
            dashes if dashes.iter().all(|&b| b == b'-') => {}
            _ => return false,
        }
        at += separator;
    }
}

/// `[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}`
fn is_tag(tag: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= MAX_TAG_BYTES
        && tag.bytes().next().is_some_and(is_word)
        && tag.bytes().all(|b| is_word(b) || b == b'.' || b == b'-')
}

fn is_host_and_port(registry: &str) -> bool {
    if registry.len() > MAX_REGISTRY_BYTES {
        return false;
    }
    if let Some(rest) = registry.strip_prefix('[') {
        return rest.split_once(']').is_some_and(|(address, port)| {
            address.parse::<Ipv6Addr>().is_ok() && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
        });
    }
    match registry.split_once(':') {
        Some((host, port)) => is_host(host) && is_port(port),
        None => is_host(registry),
    }
}

fn is_host(host: &str) -> bool {
    host.split('.').all(|label| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    })
}

fn is_port(port: &str) -> bool {
    port.len() <= 5 && port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
}
