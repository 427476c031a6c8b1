//! containerd's snapshots: the snapshotter on its socket, over the attachments of this agent.

use std::{
    fs::DirBuilder,
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use penstock_snapshotter::{Mounter, OpenError, Snapshotter, Source};
use prometheus_client::registry::Registry;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    config::Config,
    mounter::LayerMounter,
    socket::{self, SocketError, SocketFile},
};

/// How long calls of containerd that are under way may take to end once the agent stops; what they change ends in any case.
const CLOSING: Duration = Duration::from_secs(5);

/// How often is looked for images that no snapshot is of any more.
const LOOK: Duration = Duration::from_secs(24 * 3600);

/// Why containerd cannot be served. Each text is one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotsError {
    /// The directory of the snapshots cannot be made.
    #[error("cannot use {} for snapshots: {reason}; name another directory with --snapshotter-root", path.display())]
    Root {
        /// The directory.
        path: PathBuf,
        /// The system's reason.
        reason: io::Error,
    },
    /// The snapshots cannot be opened.
    #[error("containerd cannot be served: {0}")]
    Open(#[from] OpenError),
    /// The socket cannot be had.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The thread that opened them ended abnormally.
    #[error("the agent failed while opening the snapshots: {0}")]
    Crashed(String),
}

/// containerd's snapshots, being served.
#[derive(Debug)]
pub(crate) struct Snapshots {
    snapshotter: Arc<Snapshotter>,
    socket: SocketFile,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Snapshots {
    /// Opens the snapshots of the config and answers containerd on its socket; `None` when that is not asked for. Asks no registry.
    ///
    /// # Errors
    /// [`SnapshotsError`]; then nothing is served.
    pub(crate) async fn start(
        config: &Config,
        mounter: &Arc<LayerMounter>,
        registry: &mut Registry,
    ) -> Result<Option<Self>, SnapshotsError> {
        if !config.snapshotter_enable {
            return Ok(None);
        }
        let (root, mounter) = (config.snapshotter_root.clone(), Arc::clone(mounter));
        let mut metrics = std::mem::take(registry);
        let shows = Arc::clone(&mounter);
        let opening = tokio::task::spawn_blocking(move || {
            let opened = open(&root, shows, metrics.sub_registry_with_prefix("snapshotter"));
            (opened, metrics)
        });
        let (opened, metrics) = opening.await.map_err(|error| SnapshotsError::Crashed(error.to_string()))?;
        *registry = metrics;
        let snapshotter = opened?;
        let (listener, socket) = socket::listen(&config.snapshotter_socket, "snapshotter.socket", None)?;
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        tasks.spawn(look_after(mounter, Arc::clone(&snapshotter), stop.clone()));
        let (served, stopped) = (Arc::clone(&snapshotter), stop.clone());
        tasks.spawn(async move {
            if let Err(error) = served.serve(listener, stopped.cancelled_owned()).await {
                tracing::error!(%error, "containerd is served no more; restart the agent");
            }
        });
        Ok(Some(Self { snapshotter, socket, stop, tasks }))
    }

    /// What there is of them.
    pub(crate) const fn snapshotter(&self) -> &Arc<Snapshotter> {
        &self.snapshotter
    }

    /// Where containerd finds them.
    pub(crate) fn socket(&self) -> &Path {
        self.socket.path()
    }

    /// Takes no more calls, lets those under way end, and closes the metadata.
    pub(crate) async fn stop(&mut self) {
        self.stop.cancel();
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(CLOSING, ended).await.is_err() {
            tracing::warn!("calls of containerd are still under way, and are cut off");
            self.tasks.shutdown().await;
        }
    }
}

/// Lets go what belongs to no snapshot: attachments at the start, what is remembered of images then and once a day.
async fn look_after(mounter: Arc<LayerMounter>, snapshotter: Arc<Snapshotter>, stop: CancellationToken) {
    mounter.forget_missing().await;
    let mut looks = tokio::time::interval(LOOK);
    while stop.run_until_cancelled(looks.tick()).await.is_some() {
        let shown = snapshotter.snapshots().into_iter();
        let named = shown.filter_map(|shown| match shown.source {
            Source::Lazy { manifest, .. } => Some(manifest),
            Source::Directory { .. } => None,
        });
        mounter.forget_images(named.collect()).await;
    }
}

/// Opens the snapshots below `root`, by its path without links: attachments are known by theirs. Blocks.
fn open(root: &Path, mounter: Arc<dyn Mounter>, registry: &mut Registry) -> Result<Arc<Snapshotter>, SnapshotsError> {
    let failed = |reason| SnapshotsError::Root { path: root.to_path_buf(), reason };
    DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(failed)?;
    let root = root.canonicalize().map_err(failed)?;
    Ok(Snapshotter::open(penstock_snapshotter::Config { root }, mounter, registry)?)
}
