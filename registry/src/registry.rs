//! The handle: starting, filling, steering and stopping a registry.

use std::{convert::Infallible, fs::File, io, net::Ipv4Addr, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use penstock_blob::{Blob, Digest};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

use crate::{
    Artifact, ArtifactError, Auth, Config, Counts, LayoutError, Request, Rule,
    answer::{Shared, Signer, serve},
    artifact::check_names,
    auth::Gate,
    config::{Addresses, Redirect},
    fault::Faults,
    layout,
    link::Link,
    push::Uploads,
    record::Record,
    store::{Content, Store},
    wire::{Io, Wire},
};

/// How many connections are served at once; beyond it new ones are reset. Every one costs a few tens of KiB.
const CONNECTION_LIMIT: usize = 4096;

/// The wait after a failed accept when no connection of ours could end and give its descriptor back: the event is in another
/// part of the process, so there is nothing to wait for.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The largest request head taken, and what is buffered for writing, in bytes: bearer tokens are long.
const BUFFER_BYTES: usize = 64 << 10;

/// Whether connections are let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    Open,
    /// Connections are cut, new ones are reset.
    Shut,
    /// Connections are cut, and nobody listens any more.
    Gone,
}

/// A running registry.
#[derive(Debug)]
pub struct Registry {
    shared: Arc<Shared>,
    door: watch::Sender<Door>,
    /// The accepting tasks, which own the connections' tasks.
    tasks: JoinSet<()>,
}

impl Registry {
    /// Starts a registry on 127.0.0.1. It serves on the runtime of the caller.
    ///
    /// # Errors
    /// What binding the port says, with a redirect to another port also that one's.
    pub async fn start(config: Config) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, config.port)).await?;
        let other_port = config.redirect.is_some_and(|redirect| redirect.other_port);
        let other = if other_port { Some(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?) } else { None };
        let registry = listener.local_addr()?;
        let storage = other.as_ref().map_or(Ok(registry), TcpListener::local_addr)?;
        let shared = Arc::new(Shared {
            addresses: Addresses { registry, storage },
            redirect: Mutex::new(config.redirect),
            latency: Mutex::new(config.latency),
            store: Store::default(),
            uploads: Uploads::new(config.spool_dir, config.max_upload_bytes),
            gate: Gate::new(config.auth),
            faults: Faults::default(),
            stalls: Arc::default(),
            record: Record::default(),
            link: Arc::new(Link::new(config.bandwidth_bytes_per_second)),
            signer: Signer::new(),
        });
        let door = watch::Sender::new(Door::Open);
        let mut tasks = JoinSet::new();
        for listener in std::iter::once(listener).chain(other) {
            tasks.spawn(accept(listener, Arc::clone(&shared), door.subscribe()));
        }
        Ok(Self { shared, door, tasks })
    }

    /// Ends all tasks and waits for them. Answers under way are cut off.
    pub async fn stop(mut self) {
        self.door.send_replace(Door::Gone);
        while self.tasks.join_next().await.is_some() {}
    }

    /// `127.0.0.1:PORT`: what stands before the repository in a reference.
    #[must_use]
    pub fn host(&self) -> String {
        self.shared.host()
    }

    /// Adds a blob in memory that every repository shows.
    #[must_use]
    pub fn put_blob(&self, bytes: impl Into<Bytes>) -> Blob {
        let bytes = bytes.into();
        let blob = Blob { digest: Digest::of(&bytes), size_bytes: bytes.len() as u64 };
        self.shared.store.put_everywhere(blob.digest, Content::Memory(bytes));
        blob
    }

    /// Adds a file as a blob that every repository shows. It is read once for its digest, then as it is asked for, through the
    /// descriptor opened here: it may be unlinked, but must not be changed.
    ///
    /// # Errors
    /// What opening or reading the file says.
    pub async fn put_file(&self, path: &Path) -> io::Result<Blob> {
        let path = path.to_owned();
        let measured = tokio::task::spawn_blocking(move || {
            let mut file = File::open(path)?;
            let blob = layout::measure(&mut file)?;
            Ok((blob, file))
        });
        let (blob, file) = measured.await.unwrap_or_else(|error| Err(io::Error::other(error)))?;
        let content = Content::File { file: Arc::new(file), size_bytes: blob.size_bytes };
        self.shared.store.put_everywhere(blob.digest, content);
        Ok(blob)
    }

    /// Forgets a blob: it is unknown in every repository from now on. Answers whether it was known.
    pub fn remove_blob(&self, digest: &Digest) -> bool {
        self.shared.store.remove_blob(digest)
    }

    /// Writes an OCI image manifest and points `tag` at it; answers the manifest's digest and size.
    ///
    /// # Errors
    /// [`ArtifactError`] for a bad name, and for layers that were not put before.
    pub fn put_image(&self, repository: &str, tag: &str, image: Artifact) -> Result<Blob, ArtifactError> {
        image.put(&self.shared.store, repository, tag)
    }

    /// Puts a manifest or an index as it is, under a tag or its digest alone; answers its digest and size.
    ///
    /// # Errors
    /// [`ArtifactError`] for a bad name, for bytes that are no manifest, and when it names what the repository lacks.
    pub fn put_manifest(
        &self,
        repository: &str,
        tag: Option<&str>,
        media_type: &str,
        bytes: impl Into<Bytes>,
    ) -> Result<Blob, ArtifactError> {
        check_names(repository, tag)?;
        let bytes = bytes.into();
        let size_bytes = bytes.len() as u64;
        let stamp = self.shared.store.put_manifest(repository, tag, media_type, bytes)?;
        Ok(Blob { digest: stamp.digest, size_bytes })
    }

    /// Loads the OCI image layout in `dir` into `repository`, every blob checked against its descriptor; answers the tags, from
    /// the `org.opencontainers.image.ref.name` annotations. Blobs stay in their files.
    ///
    /// # Errors
    /// [`LayoutError`] for files that cannot be read, are not what they should be, or are damaged.
    pub async fn load_layout(&self, dir: &Path, repository: &str) -> Result<Vec<String>, LayoutError> {
        let (shared, dir, repository) = (Arc::clone(&self.shared), dir.to_owned(), repository.to_owned());
        let index = dir.join("index.json");
        let loaded = tokio::task::spawn_blocking(move || layout::load(&shared.store, &dir, &repository));
        loaded.await.unwrap_or_else(|error| Err(LayoutError::Read { path: index, source: io::Error::other(error) }))
    }

    /// Adds a fault; rules are tried oldest first, and a request meets at most one. A bare [`crate::Fault`] is for the next blob
    /// download.
    pub fn fail(&self, rule: impl Into<Rule>) {
        self.shared.faults.push(rule.into());
    }

    /// Withdraws all faults. What is stalled stays so until [`Registry::release`].
    pub fn clear_faults(&self) {
        self.shared.faults.clear();
    }

    /// How many rules are still in force.
    #[must_use]
    pub fn pending_faults(&self) -> usize {
        self.shared.faults.pending()
    }

    /// Lets all stalled answers go on.
    pub fn release(&self) {
        self.shared.stalls.release();
    }

    /// How many answers are stalled.
    #[must_use]
    pub fn stalled(&self) -> usize {
        self.shared.stalls.waiting()
    }

    /// Returns once at least `count` answers are stalled.
    pub async fn until_stalled(&self, count: usize) {
        self.shared.stalls.until_waiting(count).await;
    }

    /// Takes the registry down, or up again: down, its connections are cut and new ones are reset; its content stays.
    pub fn set_down(&self, down: bool) {
        self.door.send_replace(if down { Door::Shut } else { Door::Open });
    }

    /// Changes the wait before every answer.
    pub fn set_latency(&self, latency: Duration) {
        *self.shared.latency.lock() = latency;
    }

    /// Changes what all connections together may send, in bytes per second; `None` is no limit.
    pub fn set_bandwidth(&self, bytes_per_second: Option<u64>) {
        self.shared.link.set(bytes_per_second);
    }

    /// Changes whether downloads are redirected, and for how long. The URLs name another port only if they did from the start.
    pub fn set_redirect(&self, redirect: Option<Redirect>) {
        *self.shared.redirect.lock() = redirect;
    }

    /// Changes who may do what. Tokens given out stay good until they expire or are revoked.
    pub fn set_auth(&self, auth: Auth) {
        self.shared.gate.set(auth);
    }

    /// Whether repositories answer 403 without a challenge where they would answer 401, as some registries do when a token has
    /// ended. `/v2/` still answers 401 with the challenge.
    pub fn set_forbids(&self, forbids: bool) {
        self.shared.gate.forbid(forbids);
    }

    /// Tokens given out that are neither forgotten nor pushed out by others.
    #[must_use]
    pub fn tokens(&self) -> Vec<String> {
        self.shared.gate.tokens()
    }

    /// Forgets all tokens given out.
    pub fn revoke_tokens(&self) {
        self.shared.gate.revoke();
    }

    /// The requests since the start or the last reset, oldest first; only the newest [`crate::LOG_LIMIT`] are kept.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.shared.record.requests()
    }

    /// Sums since the start or the last reset.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.shared.record.counts()
    }

    /// Forgets the requests and begins the sums anew. What answers under way still send is not counted.
    pub fn reset_counts(&self) {
        self.shared.record.reset();
    }
}

/// Accepts connections until the door is gone; then, or when the future is dropped, its connections end with it.
async fn accept(listener: TcpListener, shared: Arc<Shared>, mut door: watch::Receiver<Door>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // An error means that the registry was dropped, which ends this task too.
            _ = door.wait_for(|door| *door == Door::Gone) => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: the next accept would fail alike until some connection ends.
                tracing::warn!(%error, "a connection could not be accepted; waiting for another to end");
                if connections.join_next().await.is_none() {
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                continue;
            }
        };
        if *door.borrow() != Door::Open || connections.len() >= CONNECTION_LIMIT {
            // The close that follows sends RST; where the option fails the peer sees an end instead.
            let _ = stream.set_zero_linger();
            continue;
        }
        connections.spawn(connection(stream, Arc::clone(&shared), door.clone()));
    }
    drop(listener);
    connections.shutdown().await;
}

/// Serves one connection until the peer, a fault or the door ends it.
async fn connection(stream: TcpStream, shared: Arc<Shared>, mut door: watch::Receiver<Door>) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY was refused");
    }
    let wire = Arc::new(Wire::default());
    let io = TokioIo::new(Io::new(stream, Arc::clone(&wire), Arc::clone(&shared.link)));
    let service = service_fn(|request| {
        let (shared, wire) = (&shared, &wire);
        async move { Ok::<_, Infallible>(serve(shared, wire, request).await) }
    });
    let served = http1::Builder::new().max_buf_size(BUFFER_BYTES).serve_connection(io, service);
    tokio::select! {
        // An error is the peer hanging up or a fault that cut the connection: neither is news.
        end = served => if let Err(error) = end { tracing::trace!(%error, "a connection ended") },
        _ = door.wait_for(|door| *door != Door::Open) => {}
    }
}
