//! An agent on TCP, or a collector of traces: where it is, how it is known, and what it is shown.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use http::{HeaderValue, Uri};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        self, ClientConfig, RootCertStore,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    },
};

use super::ClientError;
use crate::serve::{FileError, read_secret, tls_certificates};

/// What a command is told about an agent on TCP.
#[derive(Debug, Clone, Default)]
pub struct Told {
    /// `https://host:port`, or `http://` where something else encrypts.
    pub url: String,
    /// File whose first line is the token; else the token in the environment.
    pub token_file: Option<PathBuf>,
    /// PEM file of the authorities that the agent's certificate may be of; the system's when not said.
    pub ca: Option<PathBuf>,
    /// PEM file of the certificate to show.
    pub cert: Option<PathBuf>,
    /// PEM file of its key.
    pub key: Option<PathBuf>,
}

/// Why an agent on TCP cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// It is no such URL.
    #[error("{url:?} is not the URL of an agent: {reason}; write https://host:port")]
    Url {
        /// As typed.
        url: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The token has characters that no token has.
    #[error("the token is none: it has spaces or control characters")]
    Token,
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// There are no authorities to check the agent by.
    #[error(
        "this system has no certificate authorities ({0}); name a file with that of the other side (--ca, or traces.ca)"
    )]
    NoAuthorities(String),
    /// The certificate and its key cannot be used.
    #[error("the client certificate cannot be used: {0}; name both with --cert and --key")]
    Certificate(String),
}

/// An agent on TCP, or a collector of traces.
pub(crate) struct Remote {
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    token: Option<HeaderValue>,
}

impl fmt::Debug for Remote {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Remote({}:{})", self.host, self.port)
    }
}

/// Both directions of a connection, whatever it is.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl Remote {
    /// From what was told, and the token of the environment. Reads the files; asks nobody.
    pub(crate) fn new(told: &Told, token: Option<String>) -> Result<Self, RemoteError> {
        let wrong = |reason| RemoteError::Url { url: told.url.clone(), reason };
        let uri: Uri = told.url.parse().map_err(|_| wrong("it cannot be read"))?;
        let is_tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(wrong("it begins with neither https:// nor http://")),
        };
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'));
        let authority = authority.ok_or_else(|| wrong("it names no host, or a user"))?;
        if uri.path() != "/" || uri.query().is_some() {
            return Err(wrong("it has a path"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = authority.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let tls = if is_tls {
            let name = ServerName::try_from(host.clone()).map_err(|_| wrong("its host is no name"))?;
            Some((Arc::new(config(told)?).into(), name))
        } else {
            None
        };
        let token = match &told.token_file {
            Some(path) => Some(first_line(path)?),
            None => token,
        };
        let token = token.map(|token| bearer(&token)).transpose()?;
        Ok(Self { host, port, tls, token })
    }

    /// What the agent is shown in each request.
    pub(crate) const fn token(&self) -> Option<&HeaderValue> {
        self.token.as_ref()
    }

    /// What the `Host` header says.
    pub(crate) fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    pub(super) async fn connect(&self, at: &Path) -> Result<Box<dyn Stream>, ClientError> {
        self.dial().await.map_err(|reason| ClientError::Remote { at: at.display().to_string(), reason })
    }

    /// A connection to it, encrypted where that was told.
    pub(crate) async fn dial(&self) -> io::Result<Box<dyn Stream>> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        match &self.tls {
            None => Ok(Box::new(stream)),
            Some((connector, name)) => Ok(Box::new(Box::pin(connector.connect(name.clone(), stream)).await?)),
        }
    }
}

fn first_line(path: &Path) -> Result<String, RemoteError> {
    let bytes = read_secret(path)?;
    let text = String::from_utf8(bytes).map_err(|_| RemoteError::Token)?;
    Ok(text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().to_owned())
}

fn bearer(token: &str) -> Result<HeaderValue, RemoteError> {
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(RemoteError::Token);
    }
    let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| RemoteError::Token)?;
    value.set_sensitive(true);
    Ok(value)
}

fn config(told: &Told) -> Result<ClientConfig, RemoteError> {
    let failed = |error: rustls::Error| RemoteError::Certificate(error.to_string());
    let mut roots = RootCertStore::empty();
    match &told.ca {
        Some(path) => {
            for authority in tls_certificates(path)? {
                roots.add(authority).map_err(failed)?;
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            let (added, _) = roots.add_parsable_certificates(found.certs);
            if added == 0 {
                let reason = found.errors.first().map_or_else(|| "none is installed".to_owned(), ToString::to_string);
                return Err(RemoteError::NoAuthorities(reason));
            }
        }
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().map_err(failed)?.with_root_certificates(roots);
    match (&told.cert, &told.key) {
        (None, None) => Ok(builder.with_no_client_auth()),
        (Some(cert), Some(key)) => {
            let chain: Vec<CertificateDer<'static>> = tls_certificates(cert)?;
            let key = PrivateKeyDer::from_pem_slice(&read_secret(key)?);
            let key = key.map_err(|_| RemoteError::Certificate("its key is not PEM".to_owned()))?;
            builder.with_client_auth_cert(chain, key).map_err(failed)
        }
        _ => Err(RemoteError::Certificate("one half of it is missing".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(url: &str) -> Result<Remote, RemoteError> {
        Remote::new(&Told { url: url.to_owned(), ..Told::default() }, None)
    }

    #[test]
    fn a_url_names_a_host_and_nothing_else() {
        for (url, authority) in
            [("http://node:9180", "node:9180"), ("http://node", "node:80"), ("http://[::1]:9180/", "[::1]:9180")]
        {
            assert_eq!(told(url).unwrap().authority(), authority, "{url}");
        }
        for url in ["", "node:9180", "ftp://node", "http://", "http://user@node", "http://node/v1", "http://node?x=1"] {
            assert!(matches!(told(url), Err(RemoteError::Url { .. })), "{url}");
        }
    }

    #[test]
    fn a_token_is_never_shown() {
        let remote = |token: &str| {
            let told = Told { url: "http://node:1".to_owned(), ..Told::default() };
            Remote::new(&told, Some(token.to_owned()))
        };
        let good = remote("hunter2").unwrap();
        assert!(!format!("{good:?} {:?}", good.token()).contains("hunter2"));
        for bad in ["", "two words", "line\nbreak"] {
            assert!(matches!(remote(bad), Err(RemoteError::Token)), "{bad:?}");
        }
    }
}
