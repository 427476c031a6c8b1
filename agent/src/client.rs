//! Asking an agent over its unix socket, or over TCP.
//!
//! One connection for each request: a command asks once or twice. Every failure says in one line what to do next.

mod credentials;
mod follow;
mod pull;
mod recordings;
mod remote;
mod snapshots;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use penstock_api::{
    Attach, CacheFreed, CacheUsage, CacheVerified, Change, Detached, Device, Events, EvictCache, Explanation, Inspect,
    Inspection, Latency, Memory, Problem, RegistryHosts, Version,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::UnixStream, task::JoinSet};

pub use follow::{Following, Message};
pub(crate) use remote::Remote;
use remote::Stream;
pub use remote::{RemoteError, Told};

/// How long a question may take. The agent answers from memory, so that a longer wait means that it is stuck.
const ASK_DEADLINE: Duration = Duration::from_secs(30);

/// How long a change may take: attaching and mounting read from registries, each read within the agent's own deadline.
const CHANGE_DEADLINE: Duration = Duration::from_secs(15 * 60);

/// How long reading the whole cache again may take: terabytes from a slow disk.
const VERIFY_DEADLINE: Duration = Duration::from_secs(48 * 3600);

/// The most bytes of an answer: many times the longest list that the API gives.
const ANSWER_BYTES: usize = 64 << 20;

/// An agent to ask.
#[derive(Debug, Clone)]
pub struct Client {
    /// Its socket; of an agent on TCP its URL, for people.
    socket: PathBuf,
    remote: Option<Arc<Remote>>,
}

/// Why there is no answer, or what the agent answered instead.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no socket.
    #[error(
        "no agent at {}: there is no such socket; start one with `penstock agent`, or name its socket with --socket or PENSTOCK_SOCKET",
        socket.display()
    )]
    NoSocket {
        /// Where it was looked for.
        socket: PathBuf,
    },
    /// There is something, but nobody listens.
    #[error("no agent at {}: nobody listens there, so it has died or is no socket; start it with `penstock agent`", socket.display())]
    Dead {
        /// Where it was looked for.
        socket: PathBuf,
    },
    /// The socket belongs to somebody else.
    #[error("permission denied for {}: run this as the user of the agent, which is root unless set up otherwise", socket.display())]
    Denied {
        /// The agent's socket.
        socket: PathBuf,
    },
    /// The connection could not be made for another reason.
    #[error("cannot connect to {}: {reason}; name the agent's socket with --socket or PENSTOCK_SOCKET", socket.display())]
    Connect {
        /// Where it was looked for.
        socket: PathBuf,
        /// The system's reason.
        reason: io::Error,
    },
    /// An agent on TCP cannot be reached, or is not the one that it should be.
    #[error(
        "cannot reach the agent at {at}: {reason}; check the address, that the agent has `listen` set, and its certificate (--ca)"
    )]
    Remote {
        /// Its URL.
        at: String,
        /// The reason of the system, or of TLS.
        reason: io::Error,
    },
    /// The connection ended before the answer was whole.
    #[error("the agent at {} ended the connection before it had answered ({reason}); look into its log", socket.display())]
    Broken {
        /// The agent's socket.
        socket: PathBuf,
        /// What was seen.
        reason: String,
    },
    /// The agent took too long.
    #[error("the agent at {} did not answer within {} s; it may still be at it: look at `penstock list` and its log", socket.display(), after.as_secs())]
    Deadline {
        /// The agent's socket.
        socket: PathBuf,
        /// How long was waited.
        after: Duration,
    },
    /// What answered is not an agent of this API.
    #[error("what answers at {} is not an agent that this command understands ({reason}); use the command of the agent's release", socket.display())]
    Foreign {
        /// The socket.
        socket: PathBuf,
        /// What was wrong with the answer.
        reason: String,
    },
    /// The agent answered that it did not do it.
    #[error("{}", .0.detail)]
    Problem(Problem),
}

impl ClientError {
    /// Whether no agent could be asked, so that nothing was done.
    #[must_use]
    pub const fn is_unreachable(&self) -> bool {
        matches!(
            self,
            Self::NoSocket { .. }
                | Self::Dead { .. }
                | Self::Denied { .. }
                | Self::Connect { .. }
                | Self::Remote { .. }
        )
    }
}

/// A status and a body that is still coming.
#[derive(Debug)]
struct Open {
    status: StatusCode,
    body: Incoming,
    /// Drives the connection; ends with this value at the latest.
    _driver: JoinSet<hyper::Result<()>>,
}

/// A status and a whole body.
struct Reply {
    status: StatusCode,
    body: Bytes,
}

impl Client {
    /// The agent behind `socket`, which is not touched before something is asked.
    #[must_use]
    pub const fn new(socket: PathBuf) -> Self {
        Self { socket, remote: None }
    }

    /// The agent on TCP that `told` names. `token` is shown when no file with one was named.
    ///
    /// # Errors
    /// [`RemoteError`] when what was told cannot be used.
    pub fn on_tcp(told: &Told, token: Option<String>) -> Result<Self, RemoteError> {
        let remote = Arc::new(Remote::new(told, token)?);
        Ok(Self { socket: told.url.clone().into(), remote: Some(remote) })
    }

    /// The agent's socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// All devices.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn devices(&self) -> Result<Vec<Device>, ClientError> {
        self.ask("/v1/devices").await
    }

    /// One device.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn device(&self, id: &str) -> Result<Device, ClientError> {
        self.ask(&device_path(id)).await
    }

    /// Why a device's start took as long as it did.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn explain(&self, id: &str) -> Result<Explanation, ClientError> {
        self.ask(&format!("{}/explain", device_path(id))).await
    }

    /// What an image offers, and what becomes of its layers.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn inspect(&self, request: &Inspect) -> Result<Inspection, ClientError> {
        let body = self.serialized(request)?;
        let reply = self.send(Method::POST, "/v1/inspect", body, CHANGE_DEADLINE).await?;
        self.parsed(&reply)
    }

    /// How long reads of all devices took, by where their bytes came from.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn latency(&self) -> Result<Vec<Latency>, ClientError> {
        self.ask("/v1/latency").await
    }

    /// What of its budget of memory the agent uses, by part.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn memory(&self) -> Result<Memory, ClientError> {
        self.ask("/v1/memory").await
    }

    /// Attaches an image.
    ///
    /// # Errors
    /// [`ClientError`]; after [`ClientError::Broken`] and [`ClientError::Deadline`] it may have been attached all the same.
    pub async fn attach(&self, request: &Attach) -> Result<Device, ClientError> {
        let body = self.serialized(request)?;
        let reply = self.send(Method::POST, "/v1/devices", body, CHANGE_DEADLINE).await?;
        self.parsed(&reply)
    }

    /// Changes what is set of a device.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn change(&self, id: &str, change: &Change) -> Result<Device, ClientError> {
        let body = self.serialized(change)?;
        let reply = self.send(Method::PATCH, &device_path(id), body, ASK_DEADLINE).await?;
        self.parsed(&reply)
    }

    /// Detaches one device.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn detach(&self, id: &str, force: bool) -> Result<(), ClientError> {
        let path = format!("{}?force={force}", device_path(id));
        self.send(Method::DELETE, &path, Bytes::new(), CHANGE_DEADLINE).await.map(drop)
    }

    /// Detaches all devices.
    ///
    /// # Errors
    /// [`ClientError`] when none could be tried; what became of each is in the answer.
    pub async fn detach_all(&self, force: bool) -> Result<Detached, ClientError> {
        let path = format!("/v1/devices?force={force}");
        self.parsed(&self.send(Method::DELETE, &path, Bytes::new(), CHANGE_DEADLINE).await?)
    }

    /// What is kept on the node.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn cache(&self) -> Result<CacheUsage, ClientError> {
        self.ask("/v1/cache").await
    }

    /// Removes an image's blobs, or one blob, from the cache.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn evict_cache(&self, what: &EvictCache) -> Result<CacheFreed, ClientError> {
        let body = self.serialized(what)?;
        self.parsed(&self.send(Method::POST, "/v1/cache/evict", body, CHANGE_DEADLINE).await?)
    }

    /// Removes everything from the cache.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn clear_cache(&self, force: bool) -> Result<CacheFreed, ClientError> {
        let path = format!("/v1/cache/clear?force={force}");
        self.parsed(&self.send(Method::POST, &path, Bytes::new(), CHANGE_DEADLINE).await?)
    }

    /// Reads the whole cache again.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn verify_cache(&self, repair: bool) -> Result<CacheVerified, ClientError> {
        let path = format!("/v1/cache/verify?repair={repair}");
        self.parsed(&self.send(Method::POST, &path, Bytes::new(), VERIFY_DEADLINE).await?)
    }

    /// Whom registries' content is asked for.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn endpoints(&self) -> Result<Vec<RegistryHosts>, ClientError> {
        self.ask("/v1/endpoints").await
    }

    /// What happened after the event `since`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn events(&self, since: u64) -> Result<Events, ClientError> {
        self.ask(&format!("/v1/events?since={since}")).await
    }

    /// What happened after the event `since`, and what happens from now on.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn follow(&self, since: u64) -> Result<Following, ClientError> {
        let late = |_| ClientError::Deadline { socket: self.socket.clone(), after: ASK_DEADLINE };
        let path = format!("/v1/events?since={since}");
        let opening = Box::pin(self.open(Method::GET, &path, "text/event-stream", Bytes::new()));
        let answer = tokio::time::timeout(ASK_DEADLINE, opening).await.map_err(late)??;
        if answer.status.is_success() {
            return Ok(Following::new(self.clone(), answer));
        }
        let reply = tokio::time::timeout(ASK_DEADLINE, self.whole(answer)).await.map_err(late)??;
        Err(ClientError::Problem(self.parsed(&reply)?))
    }

    /// Which agent answers.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn version(&self) -> Result<Version, ClientError> {
        self.ask("/v1/version").await
    }

    /// That the agent takes work, and why it can serve only what is cached, if so.
    ///
    /// # Errors
    /// [`ClientError`]; a [`ClientError::Problem`] says why it does not.
    pub async fn ready(&self) -> Result<Option<String>, ClientError> {
        let reply = self.send(Method::GET, "/readyz", Bytes::new(), ASK_DEADLINE).await?;
        let text = String::from_utf8_lossy(&reply.body);
        Ok(text.trim_end().strip_prefix("degraded: ").map(str::to_owned))
    }

    async fn ask<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.parsed(&self.send(Method::GET, path, Bytes::new(), ASK_DEADLINE).await?)
    }

    /// One request, one whole answer within `deadline`; an answer outside 2xx is an error.
    async fn send(&self, method: Method, path: &str, body: Bytes, deadline: Duration) -> Result<Reply, ClientError> {
        let late = |_| ClientError::Deadline { socket: self.socket.clone(), after: deadline };
        let exchange = Box::pin(self.exchange(method, path, body));
        let reply = tokio::time::timeout(deadline, exchange).await.map_err(late)??;
        if reply.status.is_success() {
            return Ok(reply);
        }
        let problem: Problem = self.parsed(&reply)?;
        Err(ClientError::Problem(problem))
    }

    async fn exchange(&self, method: Method, path: &str, body: Bytes) -> Result<Reply, ClientError> {
        let answer = self.open(method, path, "application/json", body).await?;
        self.whole(answer).await
    }

    /// Sends a request, and waits for the head of the answer.
    async fn open(&self, method: Method, path: &str, accept: &str, body: Bytes) -> Result<Open, ClientError> {
        let stream = self.connect().await?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| self.broken(error))?;
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        let remote = self.remote.as_deref();
        let host = remote.map_or_else(|| "localhost".to_owned(), Remote::authority);
        let builder = match remote.and_then(Remote::token) {
            Some(token) => Request::builder().header(header::AUTHORIZATION, token),
            None => Request::builder(),
        };
        let request = builder
            .method(method)
            .uri(path)
            .header(header::HOST, host)
            .header(header::ACCEPT, accept)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| self.broken(error))?;
        let (head, body) = sender.send_request(request).await.map_err(|error| self.broken(error))?.into_parts();
        Ok(Open { status: head.status, body, _driver: driver })
    }

    async fn connect(&self) -> Result<Box<dyn Stream>, ClientError> {
        match &self.remote {
            Some(remote) => remote.connect(&self.socket).await,
            None => {
                let stream = UnixStream::connect(&self.socket).await.map_err(|reason| self.not_connected(reason))?;
                Ok(Box::new(stream))
            }
        }
    }

    async fn whole(&self, answer: Open) -> Result<Reply, ClientError> {
        let Open { status, body, _driver } = answer;
        let body = Limited::new(body, ANSWER_BYTES).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() {
                return self.foreign(format!("its answer is longer than {ANSWER_BYTES} bytes"));
            }
            self.broken(error)
        })?;
        Ok(Reply { status, body: body.to_bytes() })
    }

    fn serialized<T: Serialize>(&self, value: &T) -> Result<Bytes, ClientError> {
        serde_json::to_vec(value).map(Bytes::from).map_err(|error| self.broken(error))
    }

    fn parsed<T: DeserializeOwned>(&self, reply: &Reply) -> Result<T, ClientError> {
        let status = reply.status;
        serde_json::from_slice(&reply.body).map_err(|error| self.foreign(format!("status {status}, {error}")))
    }

    fn not_connected(&self, reason: io::Error) -> ClientError {
        let socket = self.socket.clone();
        match reason.kind() {
            io::ErrorKind::NotFound => ClientError::NoSocket { socket },
            io::ErrorKind::ConnectionRefused => ClientError::Dead { socket },
            io::ErrorKind::PermissionDenied => ClientError::Denied { socket },
            _ => ClientError::Connect { socket, reason },
        }
    }

    fn broken(&self, reason: impl std::fmt::Display) -> ClientError {
        ClientError::Broken { socket: self.socket.clone(), reason: reason.to_string() }
    }

    fn foreign(&self, reason: String) -> ClientError {
        ClientError::Foreign { socket: self.socket.clone(), reason }
    }
}

/// The path of a device.
fn device_path(id: &str) -> String {
    format!("/v1/devices/{}", escaped(id))
}

/// A text as part of a path or a query. Bytes that mean something in a URI are escaped (RFC 3986, section 2.1), so that any text
/// stands for itself.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => escaped.push(char::from(byte)),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests;
