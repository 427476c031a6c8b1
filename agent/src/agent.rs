//! An agent in this process: its parts, started in one order and stopped in the reverse.
//!
//! state directory and lock -> metrics -> fetcher -> verifying source -> cache -> attachments restored -> snapshots and image service for
//! containerd -> socket -> ready.

mod directory;
mod parts;
mod sources;

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use penstock_cache::Cache;
use penstock_fetcher::Fetcher;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    attachments::{Attachments, Ending},
    config::{Config, OnStop},
    events::{Events, Kind},
    images::{Images, ImagesError},
    keeper::{Keeper, pass::Notice},
    memory,
    mounter::LayerMounter,
    node::AgentNode,
    pull::Pulls,
    serve::{self, Servers},
    snapshots::{Snapshots, SnapshotsError},
    socket::SocketError,
    state::{StateDir, StateError},
    traces::{Exporter, Outbox},
};

pub(crate) use sources::fetcher_config;

/// Why an agent did not start. Each text is one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The fetcher's settings cannot be used.
    #[error(transparent)]
    Fetcher(#[from] penstock_fetcher::ConfigError),
    /// The cache cannot be opened.
    #[error(transparent)]
    Cache(#[from] penstock_cache::OpenError),
    /// The admin API cannot be offered.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// containerd cannot be served.
    #[error(transparent)]
    Snapshots(#[from] SnapshotsError),
    /// The image service cannot be offered.
    #[error(transparent)]
    Images(#[from] ImagesError),
    /// The key of whoever signs indexes of layers cannot be used.
    #[error("layers.key {} cannot be used: {reason}; name the public key that cosign generate-key-pair wrote", path.display())]
    LayersKey {
        /// The file.
        path: std::path::PathBuf,
        /// Why not.
        reason: std::io::Error,
    },
    /// A thread that looked at the system ended abnormally.
    #[error("the agent failed while starting: {0}")]
    Crashed(String),
}

/// Why an agent did not stop cleanly.
#[derive(Debug, thiserror::Error)]
pub enum DrainError {
    /// It took too long.
    #[error(
        "draining took longer than drain_deadline ({deadline:?}): {doing}; what is left in the kernel is cleaned up at the next start"
    )]
    Deadline {
        /// The deadline.
        deadline: Duration,
        /// What was under way.
        doing: &'static str,
    },
}

/// A running agent. Call [`Agent::stop`] to end it: dropping it ends its devices without unmounting what is mounted from them.
#[derive(Debug)]
pub struct Agent {
    node: Arc<AgentNode>,
    attachments: Arc<Attachments>,
    cache: Arc<Cache>,
    fetcher: Arc<Fetcher>,
    events: Events,
    ready: Arc<AtomicBool>,
    servers: Servers,
    /// containerd's snapshots, when it is served.
    snapshots: Option<Snapshots>,
    /// The image service, when containerd is served.
    images: Option<Images>,
    /// Tasks that live as long as the agent.
    tasks: JoinSet<()>,
    /// Sends spans, when there is a collector for them.
    exporter: Option<Exporter>,
    on_stop: OnStop,
    drain_deadline: Duration,
    /// Given up at the end.
    state: Arc<StateDir>,
    keeper: Arc<Keeper>,
}

impl Agent {
    /// Starts an agent; answers once it is ready.
    ///
    /// # Errors
    /// [`StartError`]; whatever was started is stopped again then.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        Self::start_until(config, (Keeper::nobody(), None), &CancellationToken::new()).await
    }

    /// As [`start`](Self::start), with `keeper` to keep what outlives the agent, and the spans of `outbox` to be sent; once `stop` is cancelled no more
    /// attachments are restored, so that it answers soon.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_until(
        config: Config,
        (keeper, outbox): (Keeper, Option<Outbox>),
        stop: &CancellationToken,
    ) -> Result<Self, StartError> {
        let (events, keeper) = (Events::new(), Arc::new(keeper));
        let (state, remaining) = directory::open(&config, &keeper, &events).await?;

        let (mut registry, metrics, exporter) = parts::seen(&config, outbox, &events);
        let api_metrics = serve::Metrics::new(registry.sub_registry_with_prefix("api"));
        let sources = sources::open(&config, (&state, &events), &mut registry).await?;
        let (fetcher, cache) = (Arc::clone(&sources.0), Arc::clone(&sources.2));
        let device_metrics = penstock_device::Metrics::new(registry.sub_registry_with_prefix("device"));
        let mut tasks = sources::watch(&sources, &events).await;
        tasks.spawn(memory::give_back());

        let left = (Arc::clone(&keeper), Arc::new(remaining));
        let recordings = parts::recordings(&config, (&fetcher, &cache), (&state, &events), &mut registry);
        let own = (device_metrics, recordings, stop.child_token());
        let attachments = Attachments::new(parts::parts(&config, sources, (&state, &events), left, own)?);
        parts::restore(&config, &attachments, directory::records(&state, &events)?, &mut tasks).await;

        let mounter = Arc::new(LayerMounter::new(Arc::clone(&attachments), config.fetch_deadline));
        let mut snapshots = match Snapshots::start(&config, &mounter, &mut registry).await {
            Ok(snapshots) => snapshots,
            Err(error) => {
                give_up(None, &attachments, (&cache, &fetcher)).await;
                return Err(error.into());
            }
        };

        let images = parts::start_images(&config, (&fetcher, &attachments), &events, &mut registry).await;
        let pulls = Pulls::new(&config, attachments.parts());
        let ready = Arc::new(AtomicBool::new(true));
        let node = Arc::new(AgentNode::new(
            (Arc::clone(&attachments), snapshots.as_ref().map(|served| Arc::clone(served.snapshotter())), mounter),
            Arc::clone(&fetcher),
            (Arc::clone(&cache), config.cache_dir()),
            (Arc::new(registry), metrics, parts::memory(&config, attachments.parts())),
            (events.clone(), Arc::clone(&ready), pulls),
        ));
        let serve = || serve::start(&config, Arc::clone(&node), &api_metrics, &events);
        let (images, servers) = match images.and_then(|images| Ok((images, serve()?))) {
            Ok(doors) => doors,
            Err(error) => {
                give_up(snapshots.as_mut(), &attachments, (&cache, &fetcher)).await;
                return Err(error);
            }
        };
        note_start(&config, servers.listening(), &events);
        Ok(Self {
            node,
            attachments,
            cache,
            fetcher,
            events,
            ready,
            servers,
            snapshots,
            images,
            tasks,
            exporter,
            on_stop: config.on_stop,
            drain_deadline: config.drain_deadline,
            state,
            keeper,
        })
    }

    /// The calls that the admin API answers, without the socket between.
    #[must_use]
    pub fn node(&self) -> Arc<dyn penstock_api::Node> {
        Arc::clone(&self.node) as _
    }

    /// The cache, for those who count what is fetched and kept.
    #[must_use]
    pub const fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    /// The fetcher, for those who count what is asked of registries.
    #[must_use]
    pub const fn fetcher(&self) -> &Arc<Fetcher> {
        &self.fetcher
    }

    /// The unix socket of the admin API.
    #[must_use]
    pub fn socket(&self) -> &Path {
        self.servers.socket()
    }

    /// The unix socket on which containerd finds its snapshots, if it is served.
    #[must_use]
    pub fn snapshots(&self) -> Option<&Path> {
        self.snapshots.as_ref().map(Snapshots::socket)
    }

    /// The unix socket of the image service, if containerd is served.
    #[must_use]
    pub fn images(&self) -> Option<&Path> {
        self.images.as_ref().map(Images::socket)
    }

    /// The TCP address of the admin API, if it has one.
    #[must_use]
    pub const fn listening(&self) -> Option<SocketAddr> {
        self.servers.listening()
    }

    /// Waits until whoever keeps descriptors for this agent is gone. Then nobody will start another one: stop this one.
    pub async fn keeper_lost(&self) {
        self.keeper.lost().await;
    }

    /// Tells whoever looks after this process that it serves, and from then on, if that is asked for, that it lives.
    pub(crate) fn say_ready(&mut self) {
        self.keeper.say(&Notice::Ready);
        if let Some(every) = self.keeper.watchdog() {
            self.tasks.spawn(say_alive(Arc::clone(&self.keeper), every));
        }
    }

    /// Stops everything in the reverse order of the start: takes no more work, lets what is under way end, leaves the devices that
    /// outlive the agent to its successor (unless the config says otherwise), unmounts and stops the others, and closes the cache.
    /// Records stay, so that the next start attaches all of them again.
    ///
    /// # Errors
    /// [`DrainError::Deadline`] when that takes longer than the config allows. What is left is cleaned up at the next start.
    pub async fn stop(self) -> Result<(), DrainError> {
        let ending = match self.on_stop {
            OnStop::Leave => Ending::HandOver,
            OnStop::Detach => Ending::ForGood,
        };
        self.end(ending).await
    }

    /// As [`stop`](Self::stop), but no device is left: nobody is to come after this agent.
    ///
    /// # Errors
    /// As [`stop`](Self::stop).
    pub async fn stop_for_good(self) -> Result<(), DrainError> {
        self.end(Ending::ForGood).await
    }

    async fn end(mut self, ending: Ending) -> Result<(), DrainError> {
        self.keeper.say(&Notice::Stopping);
        self.ready.store(false, Ordering::SeqCst);
        self.events.record(Kind::AgentDraining, "the agent is stopping", &[]);
        let deadline = self.drain_deadline;
        let doing = parking_lot::Mutex::new("waiting for requests and devices");
        let drained = async {
            if let Some(images) = &mut self.images {
                images.stop().await;
            }
            if let Some(snapshots) = &mut self.snapshots {
                snapshots.stop().await;
            }
            self.attachments.drain(ending).await;
            self.events.end();
            *doing.lock() = "closing connections";
            self.servers.stop().await;
            self.tasks.shutdown().await;
            *doing.lock() = "closing the cache";
            self.cache.close().await;
            self.fetcher.stop().await;
            if let Some(exporter) = &mut self.exporter {
                *doing.lock() = "sending the last spans";
                exporter.stop().await;
            }
        };
        let outcome = tokio::time::timeout(deadline, Box::pin(drained)).await;
        if let Err(error) = self.state.release() {
            tracing::warn!(%error, "the lock goes with the process instead");
        }
        outcome.map_err(|_| DrainError::Deadline { deadline, doing: doing.into_inner() })
    }
}

/// Undoes a start that failed at its last step.
async fn give_up(snapshots: Option<&mut Snapshots>, attachments: &Attachments, (cache, fetcher): (&Cache, &Fetcher)) {
    if let Some(snapshots) = snapshots {
        snapshots.stop().await;
    }
    attachments.drain(Ending::HandOver).await;
    cache.close().await;
    fetcher.stop().await;
}

/// Tells the service manager again and again that this process lives: that its runtime still runs tasks.
async fn say_alive(keeper: Arc<Keeper>, every: Duration) {
    let mut ticks = tokio::time::interval(every);
    loop {
        ticks.tick().await;
        keeper.say(&Notice::Alive);
    }
}

fn note_start(config: &Config, listening: Option<SocketAddr>, events: &Events) {
    let text = format!("penstock {} is ready on {}", env!("CARGO_PKG_VERSION"), config.socket.display());
    match listening.map(|address| address.to_string()) {
        Some(address) => events.record(Kind::AgentReady, &format!("{text} and {address}"), &[("address", &address)]),
        None => events.record(Kind::AgentReady, &text, &[]),
    }
}
