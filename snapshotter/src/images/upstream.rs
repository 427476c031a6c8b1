//! containerd's end: one connection, made when it is needed, and made anew when it is lost.

use std::{
    error::Error as _,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::http2::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::{body::Body, tasks::Tasks};

/// How long containerd may take to take a connection. It is on this node: one that is alive does at once.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// Most bytes of an answer's head or trailers: the reason of a failed pull stands there.
pub(super) const HEADER_BYTES: u32 = 1 << 20;

/// containerd, behind its socket.
#[derive(Debug)]
pub(super) struct Upstream {
    socket: PathBuf,
    tasks: Tasks,
    sender: tokio::sync::Mutex<Option<SendRequest<Body>>>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoAnswer {
    /// containerd is not there.
    #[error("containerd does not answer at {} ({reason}); start containerd, or set images.containerd to its socket, then try again", socket.display())]
    Away {
        /// Its socket.
        socket: PathBuf,
        /// The system's reason.
        reason: io::Error,
    },
    /// It went away during the call.
    #[error("{}", lost(socket))]
    Lost {
        /// Its socket.
        socket: PathBuf,
    },
    /// It ended the call without a status.
    #[error("containerd ended the call: {0}")]
    Reset(hyper::Error),
}

/// What is said when the connection was lost during a call.
pub(super) fn lost(socket: &Path) -> String {
    format!(
        "the connection to containerd at {} was lost during the call; see whether containerd runs, then try again",
        socket.display()
    )
}

impl Upstream {
    pub(super) fn new(socket: PathBuf, tasks: Tasks) -> Self {
        Self { socket, tasks, sender: tokio::sync::Mutex::default() }
    }

    /// Sends one call and waits for the head of its answer. A call that was not sent because the connection had just been lost is sent
    /// on a new one.
    pub(super) async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, NoAnswer> {
        let mut error = match self.sender().await?.try_send_request(request).await {
            Ok(response) => return Ok(response),
            Err(error) => error,
        };
        let Some(request) = error.take_message() else { return Err(self.no_answer(error.into_error())) };
        self.sender.lock().await.take();
        self.sender().await?.send_request(request).await.map_err(|error| self.no_answer(error))
    }

    fn no_answer(&self, error: hyper::Error) -> NoAnswer {
        if is_lost(&error) { NoAnswer::Lost { socket: self.socket.clone() } } else { NoAnswer::Reset(error) }
    }

    async fn sender(&self) -> Result<SendRequest<Body>, NoAnswer> {
        let mut kept = self.sender.lock().await;
        if let Some(sender) = kept.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let away = |reason| NoAnswer::Away { socket: self.socket.clone(), reason };
        let connecting = UnixStream::connect(&self.socket);
        let late = |_| away(io::Error::new(io::ErrorKind::TimedOut, "it takes no connections"));
        let stream = tokio::time::timeout(CONNECT_DEADLINE, connecting).await.map_err(late)?.map_err(away)?;
        let mut builder = http2::Builder::new(self.tasks.clone());
        let handshake = builder.max_header_list_size(HEADER_BYTES).handshake(TokioIo::new(stream));
        let (sender, connection) = handshake.await.map_err(|error| self.no_answer(error))?;
        self.tasks.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to containerd ended early");
            }
        });
        Ok(kept.insert(sender).clone())
    }
}

/// Whether a call failed because its connection did, and not because the other side ended just this call.
pub(super) fn is_lost(error: &hyper::Error) -> bool {
    let mut source = error.source();
    while let Some(inner) = source {
        if let Some(h2) = inner.downcast_ref::<h2::Error>() {
            return !h2.is_reset();
        }
        source = inner.source();
    }
    true
}
