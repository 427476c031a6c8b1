//! containerd's `hosts.toml`: which hosts are asked for one registry's content, in which order, and how. Pure and total.
//!
//! The format is that of containerd's `core/remotes/docker/config/hosts.go` and `docs/hosts.md`, so that files written for it
//! hold here unchanged. Keys that are not known are passed over as containerd does, and named in [`HostsFile::ignored`].

mod fields;
mod lookup;
#[cfg(test)]
mod tests;

use std::{path::PathBuf, time::Duration};

use http::{HeaderName, HeaderValue};
use reqwest::Url;
use toml::de::DeTable;

pub(crate) use lookup::{Loaded, Spec, Trust, itself, load};

use fields::Fields;

/// Largest file read, in bytes. Real ones have some hundreds.
pub(crate) const MAX_FILE_BYTES: u64 = 256 << 10;
/// Most hosts of one registry. Each is asked in turn while a reader waits, so that more would not help anybody.
pub(crate) const MAX_HOSTS: usize = 32;

/// One `hosts.toml`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostsFile {
    /// Whom to ask, in this order: `[host]` tables as they stand in the file, then the server.
    pub(crate) hosts: Vec<HostEntry>,
    /// Keys that mean nothing here.
    pub(crate) ignored: Vec<String>,
}

/// What is wrong with a `hosts.toml`, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct HostsFault {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong there, and what to write instead.
    pub reason: String,
}

/// One host of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostEntry {
    /// Its URL; `None` is the registry itself.
    pub(crate) base: Option<Base>,
    pub(crate) capabilities: Capabilities,
    /// Files of certificate authorities, as written.
    pub(crate) ca: Vec<PathBuf>,
    /// Files of client certificates and their keys, as written; without a key, the certificate's file holds it.
    pub(crate) client: Vec<(PathBuf, Option<PathBuf>)>,
    pub(crate) skip_verify: Option<bool>,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) dial_timeout: Option<Duration>,
}

/// What a host may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Capabilities {
    /// Content by digest.
    pub(crate) pull: bool,
    /// What a tag names.
    pub(crate) resolve: bool,
    /// Taking content.
    pub(crate) push: bool,
}

impl Capabilities {
    pub(crate) const ALL: Self = Self { pull: true, resolve: true, push: true };

    /// Those of these that `other` has not.
    pub(crate) fn without(self, other: Self) -> Self {
        Self { pull: self.pull && !other.pull, resolve: self.resolve && !other.resolve, push: self.push && !other.push }
    }

    /// Whether there is one.
    pub(crate) fn any(self) -> bool {
        self.pull || self.resolve || self.push
    }

    /// As written in the file.
    pub(crate) fn names(self) -> Vec<&'static str> {
        let named = [(self.pull, "pull"), (self.resolve, "resolve"), (self.push, "push")];
        named.into_iter().filter(|(has, _)| *has).map(|(_, name)| name).collect()
    }
}

/// The base URL of an endpoint's API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Base {
    pub(crate) scheme: Scheme,
    /// Host, with the port if it is not the scheme's own.
    pub(crate) authority: String,
    /// From the root, without a slash at its end: `/v2`, `/v2/proxy`, or empty.
    pub(crate) path: String,
}

/// How an endpoint is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Scheme {
    /// TLS.
    Https,
    /// Plain HTTP.
    Http,
    /// TLS, and plain HTTP once the server turns out not to speak TLS: `http://` with TLS settings on a port that is not 80.
    HttpsElseHttp,
}

impl HostsFile {
    /// Reads the text of a `hosts.toml`. No file that it names is looked at.
    ///
    /// # Errors
    /// [`HostsFault`] for the first thing that is wrong.
    pub fn parse(text: &str) -> Result<Self, HostsFault> {
        let fault = |at: usize, reason: String| HostsFault { line: line_at(text, at), reason };
        let root = DeTable::parse(text).map_err(|error| {
            fault(error.span().map_or(0, |span| span.start), error.message().trim().replace('\n', "; "))
        })?;
        let mut ignored = Vec::new();
        let mut server = Fields::default();
        let mut tables = Vec::new();
        for (name, value) in root.get_ref() {
            let at = name.span().start;
            match name.get_ref().as_ref() {
                "host" => {
                    let all = value.get_ref().as_table();
                    let all = all.ok_or_else(|| fault(at, "host must hold tables: write [host.\"URL\"]".to_owned()))?;
                    tables.extend(all.iter().map(|(url, table)| (url.span().start, url.get_ref().to_string(), table)));
                }
                key => server.take(key, value, true, &mut ignored).map_err(|reason| fault(at, reason))?,
            }
        }
        tables.sort_by_key(|(at, ..)| *at);
        if tables.len() >= MAX_HOSTS {
            return Err(fault(0, format!("{} hosts are too many; at most {} are asked", tables.len(), MAX_HOSTS - 1)));
        }
        let mut hosts = Vec::with_capacity(tables.len() + 1);
        for (at, url, table) in tables {
            let table = table.get_ref().as_table();
            let table = table.ok_or_else(|| fault(at, format!("host {url:?} must be a table")))?;
            let mut fields = Fields::of(url);
            for (name, value) in table {
                let taken = fields.take(name.get_ref(), value, false, &mut ignored);
                taken.map_err(|reason| fault(name.span().start, reason))?;
            }
            hosts.push(fields.entry().map_err(|reason| fault(at, reason))?);
        }
        let at = server.server_at;
        hosts.push(server.entry().map_err(|reason| fault(at, reason))?);
        Ok(Self { hosts, ignored })
    }

    /// Keys of the file that mean nothing here: those of later releases, or misspelt ones.
    #[must_use]
    pub fn ignored(&self) -> &[String] {
        &self.ignored
    }
}

impl Base {
    /// The URL of a host, as a file writes it.
    pub(crate) fn parse(text: &str, override_path: bool) -> Result<Self, String> {
        let refused = |why: &str| Err(format!("{text:?} is not a host: {why}; write https://host[:port][/path]"));
        let whole = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
        let Ok(url) = Url::parse(&whole) else { return refused("it is not a URL") };
        let scheme = match url.scheme() {
            "https" => Scheme::Https,
            "http" => Scheme::Http,
            _ => return refused("it is neither http nor https"),
        };
        if !url.username().is_empty() || url.password().is_some() {
            // Not repeated: it holds a password.
            return Err("a host's URL holds a user or a password; set up credentials for the host instead".to_owned());
        }
        if url.query().is_some() || url.fragment().is_some() {
            return refused("it has a query or a fragment");
        }
        let mut path = url.path().trim_end_matches('/').to_owned();
        if !override_path && !path.ends_with("/v2") {
            path.push_str("/v2");
        }
        Ok(Self { scheme, authority: crate::web::authority(&url), path })
    }

    /// The port, written or the scheme's own.
    pub(crate) fn port(&self) -> u16 {
        let own = if self.scheme == Scheme::Http { 80 } else { 443 };
        let after = self.authority.rsplit_once(':').filter(|(_, port)| !port.ends_with(']'));
        after.and_then(|(_, port)| port.parse().ok()).unwrap_or(own)
    }

    /// As a person writes it.
    pub(crate) fn shown(&self) -> String {
        let scheme = if self.scheme == Scheme::Https { "https" } else { "http" };
        format!("{scheme}://{}{}", self.authority, self.path)
    }
}

fn line_at(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|&byte| byte == b'\n').count()
}
