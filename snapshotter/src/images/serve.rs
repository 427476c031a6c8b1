//! The socket's end: connections, taken one by one, as many as there is room for.

use std::{
    fmt,
    path::PathBuf,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hyper::{server::conn::http2, service::service_fn};
use hyper_util::rt::TokioIo;
use prometheus_client::registry::Registry;
use tokio::{
    net::{UnixListener, UnixStream, unix::UCred},
    sync::broadcast,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{
    call::Calls,
    keyring::Keyring,
    metrics::Metrics,
    tasks::{Owner, Tasks},
    upstream::{HEADER_BYTES, Upstream},
};

/// Most connections at once. The kubelet has one, a person's crictl another; one beyond is closed, and its client tries again.
const CONNECTIONS: usize = 64;
/// Most calls at once on one connection: far above what the kubelet pulls in parallel. More wait in the client.
const CALLS: u32 = 256;
/// How long nothing is accepted after the system could not: until a connection ends, at the longest.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// How long calls that are under way may take to end once the proxy stops. A pull may take longer: the kubelet tries it again.
const CLOSING: Duration = Duration::from_secs(2);
/// Events kept for a receiver that is busy.
const EVENTS_KEPT: usize = 64;

/// What the proxy has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// containerd is not there; said again after it was.
    Away {
        /// What to do.
        reason: String,
    },
    /// It answers again.
    Back,
    /// A request was forwarded without being understood, so that its credentials are not used for reads.
    Unread {
        /// The method.
        method: &'static str,
        /// Why not.
        reason: String,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Away { reason } => write!(f, "the image service cannot be reached: {reason}"),
            Self::Back => f.write_str("containerd's image service answers again"),
            Self::Unread { method, reason } => write!(
                f,
                "a {method} was forwarded without being read, because {reason}: credentials that it brought are not used to read layers; hand them over with `penstock credentials set`"
            ),
        }
    }
}

/// What all connections share.
#[derive(Debug)]
pub(super) struct Shared<K> {
    pub(super) containerd: PathBuf,
    pub(super) keyring: K,
    pub(super) metrics: Metrics,
    /// Those that outlive a call and its connection.
    pub(super) tasks: Tasks,
    events: broadcast::Sender<Event>,
    away: AtomicBool,
}

impl<K> Shared<K> {
    pub(super) fn say(&self, event: Event) {
        // Nobody has to listen.
        let _nobody = self.events.send(event);
    }

    pub(super) fn is_away(&self, reason: &str) {
        if !self.away.swap(true, Ordering::Relaxed) {
            self.say(Event::Away { reason: reason.to_owned() });
        }
    }

    pub(super) fn is_back(&self) {
        if self.away.load(Ordering::Relaxed) && self.away.swap(false, Ordering::Relaxed) {
            self.say(Event::Back);
        }
    }
}

/// The proxy between the kubelet and containerd's image service. See [`super`] (the module) for its contract.
#[derive(Debug)]
pub struct ImageProxy<K> {
    shared: Arc<Shared<K>>,
    owner: Owner,
}

impl<K: Keyring> ImageProxy<K> {
    /// A proxy to the socket `containerd`, which is not touched before something is asked. Counts under `registry`'s prefix.
    pub fn new(containerd: PathBuf, keyring: K, registry: &mut Registry) -> Self {
        let ((tasks, owner), (events, _)) = (Tasks::owned(), broadcast::channel(EVENTS_KEPT));
        let metrics = Metrics::new(registry);
        let shared = Shared { containerd, keyring, metrics, tasks, events, away: AtomicBool::new(false) };
        Self { shared: Arc::new(shared), owner }
    }

    /// What the proxy has to say from now on. A receiver that falls behind loses the oldest.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.shared.events.subscribe()
    }

    /// Takes connections of those whom `admits` lets in until `stop`, lets calls that are under way end for a moment, then ends them, and returns when what they handed
    /// over is settled. Dropping the future ends everything at once.
    ///
    /// The kernel has looked at the socket's mode; `admits` holds also when somebody has changed that since.
    pub async fn serve(self, listener: UnixListener, admits: impl Fn(&UCred) -> bool + Send, stop: CancellationToken) {
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                Some(_) = connections.join_next() => continue,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) if !stream.peer_cred().is_ok_and(|peer| admits(&peer)) => {
                    self.shared.metrics.strangers.inc();
                    tracing::warn!(
                        "a user who may not use the image proxy was turned away; who else can write to its socket?"
                    );
                }
                Ok((stream, _)) if connections.len() < CONNECTIONS => {
                    connections.spawn(connection(Arc::clone(&self.shared), stream, stop.clone()));
                }
                Ok(_) => tracing::warn!("{CONNECTIONS} connections to the image proxy are open; one more was closed"),
                // A client that has gone already; or no more file descriptors, which the end of a connection gives back.
                Err(error) => {
                    tracing::debug!(%error, "a connection to the image proxy was not accepted");
                    let _paused = tokio::time::timeout(ACCEPT_PAUSE, connections.join_next()).await;
                }
            }
        }
        drop(listener);
        let ended = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(CLOSING, ended).await.is_err() {
            connections.shutdown().await;
        }
        self.owner.ended().await;
    }
}

/// Serves one connection to its end.
async fn connection<K: Keyring>(shared: Arc<Shared<K>>, stream: UnixStream, stop: CancellationToken) {
    let (tasks, _owner) = Tasks::owned();
    shared.metrics.connections.inc();
    let _counted = Counted(Arc::clone(&shared));
    let upstream = Upstream::new(shared.containerd.clone(), tasks.clone());
    let calls = Arc::new(Calls { shared, upstream });
    let service = service_fn(move |request| {
        let calls = Arc::clone(&calls);
        async move { calls.answer(request).await }
    });
    let connection = http2::Builder::new(tasks)
        .max_concurrent_streams(CALLS)
        .max_header_list_size(HEADER_BYTES)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let outcome = tokio::select! {
        outcome = &mut connection => outcome,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "a connection to the image proxy ended early");
    }
}

/// A connection that is counted as open until this is dropped.
struct Counted<K>(Arc<Shared<K>>);

impl<K> Drop for Counted<K> {
    fn drop(&mut self) {
        self.0.metrics.connections.dec();
    }
}
