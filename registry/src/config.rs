//! What a registry is started with.

use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

/// How a [`crate::Registry`] behaves. The default is an open registry on a port chosen by the kernel, as fast as loopback.
#[derive(Debug, Clone)]
pub struct Config {
    /// The port on 127.0.0.1; 0 lets the kernel choose.
    pub port: u16,
    /// How long every request waits before it is looked at: a round trip and the registry's own time to first byte.
    pub latency: Duration,
    /// Bytes per second that all connections together send, heads included; `None` is as fast as loopback. 0 is taken as 1.
    pub bandwidth_bytes_per_second: Option<u64>,
    /// Who may pull and push.
    pub auth: Auth,
    /// Whether blob downloads are redirected to signed URLs, as cloud registries do.
    pub redirect: Option<Redirect>,
    /// The largest blob that may be pushed, in bytes (413 beyond): pushed blobs are spooled to an unnamed file.
    pub max_upload_bytes: u64,
    /// Where pushed blobs are spooled; `None` is the system's directory for temporary files.
    pub spool_dir: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            port: 0,
            latency: Duration::ZERO,
            bandwidth_bytes_per_second: None,
            auth: Auth::None,
            redirect: None,
            // 8 GiB: above any layer in use, below what fills a disk unnoticed.
            max_upload_bytes: 8 << 30,
            spool_dir: None,
        }
    }
}

/// Who may use the registry.
#[derive(Debug, Clone, Default)]
pub enum Auth {
    /// Everybody may pull and push.
    #[default]
    None,
    /// HTTP Basic on every request.
    Basic(Credentials),
    /// Bearer tokens from `/token` on this server, each for the scopes it was asked for.
    Token {
        /// Who gets tokens; `None` gives everybody tokens for pulling only, as public repositories do.
        credentials: Option<Credentials>,
        /// How long a token is accepted.
        ttl: Duration,
    },
}

/// A name and a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user's name.
    pub username: String,
    /// The user's password.
    pub password: String,
}

impl Credentials {
    /// The credentials of `username`.
    #[must_use]
    pub fn new(username: &str, password: &str) -> Self {
        Self { username: username.to_owned(), password: password.to_owned() }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// Blob downloads answer 307 with a signed URL of this server, which alone gives the bytes until it expires. A request to
/// that URL that carries an `Authorization` header is refused with 400, as object stores do.
#[derive(Debug, Clone, Copy)]
pub struct Redirect {
    /// How long a signed URL is accepted; afterwards it answers 403.
    pub ttl: Duration,
    /// Whether the URL names another port (another origin), or the same one.
    pub other_port: bool,
}

/// The addresses a registry listens on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Addresses {
    pub(crate) registry: SocketAddr,
    pub(crate) storage: SocketAddr,
}
