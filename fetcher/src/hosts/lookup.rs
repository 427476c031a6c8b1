//! Finding and reading the files of one registry under `certs.d`.

use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::Duration,
};

use http::{HeaderName, HeaderValue};

use super::{Base, Capabilities, HostEntry, HostsFault, HostsFile, MAX_FILE_BYTES, Scheme};
use crate::{config::Config, secret::Secret};

/// The file in a registry's directory.
const FILE_NAME: &str = "hosts.toml";
/// Most files looked at in a directory of docker's layout.
const MAX_DIRECTORY: usize = 256;
/// Largest certificate file read, in bytes; the system's whole store has some 220 KiB.
const MAX_PEM_BYTES: u64 = 1 << 20;

/// How one endpoint is spoken to, everything read. Two endpoints with the same are one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spec {
    pub(crate) base: Base,
    pub(crate) trust: Trust,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) dial_timeout: Option<Duration>,
}

/// Whom TLS trusts, and who we are to it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Trust {
    /// Certificate authorities besides the usual ones, PEM.
    pub(crate) ca: Vec<Vec<u8>>,
    /// Our certificate and its key, PEM.
    pub(crate) client: Option<Secret>,
    /// Whether any certificate will do.
    pub(crate) skip_verify: bool,
}

/// Whom to ask for a registry's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Loaded {
    /// In this order.
    pub(crate) hosts: Vec<(Spec, Capabilities)>,
    /// The directory that said so; `None` when none did.
    pub(crate) dir: Option<PathBuf>,
    /// What a person should know about it.
    pub(crate) notices: Vec<String>,
}

/// Why the files of a registry cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HostsError {
    /// The file says something that it cannot mean.
    #[error("{}, {fault}", path.display())]
    Fault { path: PathBuf, fault: HostsFault },
    /// A file cannot be read.
    #[error("{}: {reason}; make it readable for the agent, or take it out", path.display())]
    Read { path: PathBuf, reason: String },
    /// A certificate or key cannot be used.
    #[error("{}: {reason}", path.display())]
    Pem { path: PathBuf, reason: &'static str },
}

/// The directories that can hold a registry's files, the first that exists counts: `HOST_PORT_`, `HOST:PORT`, `_default`.
pub(super) fn directories(root: &Path, registry: &str) -> Vec<PathBuf> {
    let mut names = Vec::new();
    if let Some((host, port)) = registry.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')) {
        names.push(format!("{host}_{port}_"));
    }
    names.extend([registry.to_owned(), "_default".to_owned()]);
    names.into_iter().map(|name| root.join(name)).collect()
}

/// Reads what the directories say about a registry, the registry itself included. Blocks on files.
///
/// # Errors
/// [`HostsError`] for the first file that cannot be used.
pub(crate) fn load(roots: &[PathBuf], registry: &str, host: &str, config: &Config) -> Result<Loaded, HostsError> {
    let all = roots.iter().flat_map(|root| directories(root, registry));
    let mut found = None;
    for dir in all {
        match fs::metadata(&dir) {
            Ok(_) => {
                found = Some(dir);
                break;
            }
            Err(error) if is_missing(&error) => {}
            Err(error) => return Err(HostsError::Read { path: dir, reason: error.to_string() }),
        }
    }
    let Some(dir) = found else {
        return Ok(Loaded { hosts: vec![itself(host, config)], dir: None, notices: Vec::new() });
    };
    let path = dir.join(FILE_NAME);
    let text = match read(&path, MAX_FILE_BYTES) {
        Ok(bytes) => String::from_utf8(bytes)
            .map_err(|_| HostsError::Read { path: path.clone(), reason: "it is not UTF-8".to_owned() })?,
        Err(error) if is_missing(&error) => String::new(),
        Err(error) => return Err(HostsError::Read { path, reason: error.to_string() }),
    };
    let (entries, ignored) = if text.is_empty() {
        (vec![docker_layout(&dir)?], Vec::new())
    } else {
        let file = HostsFile::parse(&text).map_err(|fault| HostsError::Fault { path: path.clone(), fault })?;
        (file.hosts, file.ignored)
    };
    let mut notices: Vec<String> =
        ignored.iter().map(|key| format!("{}: there is no key {key}; it has no effect", path.display())).collect();
    let mut hosts = Vec::with_capacity(entries.len());
    for entry in entries {
        if entry.client.len() > 1 {
            notices.push(format!("{}: only the first client certificate of a host is shown", path.display()));
        }
        let spec = spec(&dir, &entry, host, config)?;
        let left = not_asked_before(&hosts, &spec.base, entry.capabilities);
        if left.any() {
            hosts.push((spec, left));
        }
    }
    Ok(Loaded { hosts, dir: Some(dir), notices })
}

/// What `base` can still be asked for behind `hosts`. A file often names the registry as a host, to give it a certificate; asking the
/// same place again would tell nothing new, and it must not be raced against itself.
fn not_asked_before(hosts: &[(Spec, Capabilities)], base: &Base, asked: Capabilities) -> Capabilities {
    let before =
        hosts.iter().filter(|(spec, _)| (&spec.base.authority, &spec.base.path) == (&base.authority, &base.path));
    before.fold(asked, |left, (_, earlier)| left.without(*earlier))
}

/// The registry, with nothing said about it.
pub(crate) fn itself(host: &str, config: &Config) -> (Spec, Capabilities) {
    let scheme = if config.is_plain(host) && !host.ends_with(":443") { Scheme::Http } else { Scheme::Https };
    let base = Base { scheme, authority: host.to_owned(), path: "/v2".to_owned() };
    let spec = Spec { base, trust: Trust::default(), headers: Vec::new(), dial_timeout: None };
    (spec, Capabilities::ALL)
}

fn spec(dir: &Path, entry: &HostEntry, host: &str, config: &Config) -> Result<Spec, HostsError> {
    let mut base = entry.base.clone().unwrap_or_else(|| itself(host, config).0.base);
    let says_tls = !entry.ca.is_empty() || !entry.client.is_empty() || entry.skip_verify.is_some();
    if base.scheme == Scheme::Http && says_tls && base.port() != 80 {
        base.scheme = Scheme::HttpsElseHttp;
    }
    let mut ca = Vec::with_capacity(entry.ca.len());
    for path in &entry.ca {
        ca.push(pem(&dir.join(path), "CERTIFICATE")?);
    }
    let client = match entry.client.first() {
        None => None,
        Some((certificate, key)) => {
            let mut both = pem(&dir.join(certificate), "CERTIFICATE")?;
            let holds_key = dir.join(key.as_ref().unwrap_or(certificate));
            let key = pem(&holds_key, "PRIVATE KEY")?;
            if holds_key != dir.join(certificate) {
                both.push(b'\n');
                both.extend(key);
            }
            let text = String::from_utf8(both)
                .map_err(|_| HostsError::Pem { path: dir.join(certificate), reason: "it is not PEM text" })?;
            Some(Secret::new(text))
        }
    };
    Ok(Spec {
        base,
        trust: Trust { ca, client, skip_verify: entry.skip_verify.unwrap_or(false) },
        headers: entry.headers.clone(),
        dial_timeout: entry.dial_timeout,
    })
}

/// Docker's layout: `*.crt` are certificate authorities, `NAME.cert` and `NAME.key` a client certificate and its key.
fn docker_layout(dir: &Path) -> Result<HostEntry, HostsError> {
    let unreadable = |error: io::Error| HostsError::Read { path: dir.to_owned(), reason: error.to_string() };
    let mut names = Vec::new();
    for file in fs::read_dir(dir).map_err(unreadable)?.take(MAX_DIRECTORY) {
        let path = file.map_err(unreadable)?.path();
        if path.extension().is_some_and(|end| end == "crt" || end == "cert") && path.is_file() {
            names.push(path);
        }
    }
    names.sort();
    let (ca, client): (Vec<_>, Vec<_>) =
        names.into_iter().partition(|path| path.extension().is_some_and(|end| end == "crt"));
    let client = client.into_iter().map(|certificate| {
        let key = certificate.with_extension("key");
        (certificate, Some(key))
    });
    Ok(HostEntry {
        base: None,
        capabilities: Capabilities::ALL,
        ca,
        client: client.collect(),
        skip_verify: None,
        headers: Vec::new(),
        dial_timeout: None,
    })
}

fn pem(path: &Path, must_hold: &str) -> Result<Vec<u8>, HostsError> {
    let bytes =
        read(path, MAX_PEM_BYTES).map_err(|e| HostsError::Read { path: path.to_owned(), reason: e.to_string() })?;
    let holds = bytes.windows(must_hold.len()).any(|window| window == must_hold.as_bytes());
    let reason = match must_hold {
        "CERTIFICATE" => "it must be a PEM file with a certificate",
        _ => "it must be a PEM file with a private key",
    };
    if holds { Ok(bytes) } else { Err(HostsError::Pem { path: path.to_owned(), reason }) }
}

fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::other(format!("larger than {most} bytes")));
    }
    Ok(bytes)
}

/// Whether there is no such file; a file where a directory should be is none either.
fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}
