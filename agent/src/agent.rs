//! An agent in this process: its parts, started in one order and stopped in the reverse.
//!
//! state directory and lock -> metrics -> fetcher -> verifying source -> cache -> attachments restored -> snapshots and image service for
//! containerd -> socket -> ready.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use penstock_api::Policy;
use penstock_blob::Digest;
use penstock_cache::Cache;
use penstock_fetcher::Fetcher;
use penstock_index::Verified;
use prometheus_client::registry::Registry;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    attachments::{self, Attachments, Ending, Parts},
    config::{Config, OnStop},
    events::{self, Events, Kind},
    images::{self, Images, ImagesError},
    indexes::{self, Indexes},
    keeper::{Keeper, pass::Notice},
    metrics::Metrics,
    mounter::LayerMounter,
    node::AgentNode,
    pull::Pulls,
    remains::Remaining,
    serve::{self, Servers},
    snapshots::{Snapshots, SnapshotsError},
    socket::SocketError,
    state::{StateDir, StateError, record::Record},
};

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
        Self::start_until(config, Keeper::nobody(), &CancellationToken::new()).await
    }

    /// As [`start`](Self::start), with `keeper` to keep what outlives the agent; once `stop` is cancelled no more attachments are
    /// restored, so that it answers soon.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_until(config: Config, keeper: Keeper, stop: &CancellationToken) -> Result<Self, StartError> {
        let (events, keeper) = (Events::new(), Arc::new(keeper));
        let (state, remaining) = open_state(&config, &keeper, &events).await?;

        let mut registry = Registry::with_prefix("penstock");
        let metrics = Metrics::new(&mut registry);
        events.register(&mut registry);
        let api_metrics = serve::Metrics::new(registry.sub_registry_with_prefix("api"));
        let (fetcher, indexes, cache) = open_sources(&config, (&state, &events), &mut registry).await?;
        let device_metrics = penstock_device::Metrics::new(registry.sub_registry_with_prefix("device"));
        let mut tasks = watch((&cache, &indexes), &fetcher, &events).await;

        let sources = (Arc::clone(&fetcher), indexes, Arc::clone(&cache));
        let left = (Arc::clone(&keeper), Arc::new(remaining));
        let parts = parts(&config, sources, (&state, &events), left, (device_metrics, stop.child_token()));
        let attachments = Attachments::new(parts);
        restore(&config, &attachments, readable_records(&state, &events)?, &mut tasks).await;

        let mounter = || mounter(&config, (&attachments, &fetcher), &events);
        let mut snapshots = match Snapshots::start(&config, mounter, &mut registry).await {
            Ok(snapshots) => snapshots,
            Err(error) => {
                give_up(None, &attachments, (&cache, &fetcher)).await;
                return Err(error.into());
            }
        };

        let images = start_images(&config, (&fetcher, &attachments), &events, &mut registry).await;
        let pulls = Pulls::new(&config, Arc::clone(&fetcher), Arc::clone(&cache) as _, events.clone());
        let ready = Arc::new(AtomicBool::new(true));
        let node = Arc::new(AgentNode::new(
            (Arc::clone(&attachments), snapshots.as_ref().map(|snapshots| Arc::clone(snapshots.snapshotter()))),
            Arc::clone(&fetcher),
            (Arc::clone(&cache), config.cache_dir()),
            (Arc::new(registry), metrics),
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
        note_start(&config, &events);
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
        };
        let outcome = tokio::time::timeout(deadline, Box::pin(drained)).await;
        if let Err(error) = self.state.release() {
            tracing::warn!(%error, "the lock goes with the process instead");
        }
        outcome.map_err(|_| DrainError::Deadline { deadline, doing: doing.into_inner() })
    }
}

/// How long the start waits for attachments to be made again when containerd is to be served: a registry that does not answer must not keep it
/// from starting containers. What is still under way then goes on, and who needs it waits for it.
const RESTORE_GRACE: Duration = Duration::from_secs(10);

/// Makes what is recorded again, and collects from now on what nothing needs.
async fn restore(config: &Config, attachments: &Arc<Attachments>, records: Vec<Record>, tasks: &mut JoinSet<()>) {
    let grace = config.snapshotter_enable.then_some(RESTORE_GRACE);
    attachments.restore(records, grace).await;
    tasks.spawn(attachments::collect_daily(Arc::clone(attachments)));
}

/// What shows layers to containerd.
fn mounter(
    config: &Config,
    (attachments, fetcher): (&Arc<Attachments>, &Arc<Fetcher>),
    events: &Events,
) -> Arc<LayerMounter> {
    let registry = (Arc::clone(fetcher), config.platform.clone());
    Arc::new(LayerMounter::new(Arc::clone(attachments), registry, config.fetch_deadline, events.clone()))
}

/// How often the state directory is asked for before whoever has it is taken for another agent, and how long apart: half a second in all.
const LOCK_TRIES: u32 = 10;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// Takes the state directory. A program that an agent started keeps its locks until it runs, also when that agent has ended meanwhile, and
/// nothing tells when: so this asks again a few times.
async fn lock_state(config: &Config) -> Result<StateDir, StartError> {
    let mut pauses = tokio::time::interval(LOCK_PAUSE);
    let mut tries = 1..=LOCK_TRIES;
    loop {
        pauses.tick().await;
        let root = config.state_dir.clone();
        let opened = tokio::task::spawn_blocking(move || StateDir::open(&root)).await;
        match opened.map_err(|error| StartError::Crashed(error.to_string()))? {
            Err(StateError::InUse { .. }) if tries.next().is_some() => {}
            outcome => return Ok(outcome?),
        }
    }
}

/// Takes the state directory, looks for what an earlier agent left in the kernel, and clears what nobody can go on with.
async fn open_state(
    config: &Config,
    keeper: &Arc<Keeper>,
    events: &Events,
) -> Result<(Arc<StateDir>, Remaining), StartError> {
    let state = lock_state(config).await?;
    let keeper = Arc::clone(keeper);
    let looked = tokio::task::spawn_blocking(move || {
        let (remaining, done) = Remaining::find(&state, owner(&state), keeper);
        (state, remaining, done)
    });
    let (state, remaining, done) = looked.await.map_err(|error| StartError::Crashed(error.to_string()))?;
    for text in done {
        events.record(Kind::StateLeftover, &text, &[]);
    }
    Ok((Arc::new(state), remaining))
}

/// The sources, the lowest first; each reads the one before. The one between is steered by what finds indexes.
type Sources = (Arc<Fetcher>, Indexes, Arc<Cache>);

/// The image service, when containerd is served.
async fn start_images(
    config: &Config,
    (fetcher, attachments): (&Arc<Fetcher>, &Arc<Attachments>),
    events: &Events,
    registry: &mut Registry,
) -> Result<Option<Images>, StartError> {
    let parts = images::Parts { config, fetcher, attachments, events };
    Ok(Images::start(parts, registry.sub_registry_with_prefix("images")).await?)
}

/// What devices read: the cache, which reads the fetcher.
async fn open_sources(
    config: &Config,
    (state, events): (&StateDir, &Events),
    registry: &mut Registry,
) -> Result<Sources, StartError> {
    let fetcher = Fetcher::new(fetcher_config(config), registry.sub_registry_with_prefix("fetcher"))?;
    let index_config = penstock_index::Config { dir: state.indexes(), deadline: config.fetch_deadline };
    let index_metrics = registry.sub_registry_with_prefix("index");
    let verified = Verified::new(Arc::clone(&fetcher) as _, index_config, index_metrics);
    let metrics = registry.sub_registry_with_prefix("cache");
    let cache = Cache::open(cache_config(config), Arc::clone(&verified) as _, metrics).await?;
    let indexes = Indexes {
        fetcher: Arc::clone(&fetcher),
        cache: Arc::clone(&cache),
        verified,
        dir: state.indexes(),
        require: config.verify_require,
        deadline: config.verify_deadline,
        events: events.clone(),
    };
    Ok((fetcher, indexes, cache))
}

/// What attachments are made from.
fn parts(
    config: &Config,
    (fetcher, indexes, cache): Sources,
    (state, events): (&Arc<StateDir>, &Events),
    (keeper, remaining): (Arc<Keeper>, Arc<Remaining>),
    (device_metrics, stop): (penstock_device::Metrics, CancellationToken),
) -> Parts {
    Parts {
        fetcher,
        source: Arc::clone(&cache) as _,
        cache,
        indexes,
        state: Arc::clone(state),
        device: device_config(state),
        device_metrics,
        mount_flags: config.mount_flags.clone(),
        policy: policy(config),
        platform: config.platform.clone(),
        transport: config.transport,
        events: events.clone(),
        keeper,
        remaining,
        stop,
    }
}

/// What the sources have to say goes into the events.
async fn watch(parts: (&Cache, &Indexes), fetcher: &Fetcher, events: &Events) -> JoinSet<()> {
    let (cache, indexes) = parts;
    events::credentials::check(fetcher, events).await;
    let mut tasks = JoinSet::new();
    tasks.spawn(events::fetcher::pass_on(fetcher.events(), events.clone()));
    tasks.spawn(events::cache::pass_on(cache.events(), events.clone()));
    tasks.spawn(indexes::pass_on(indexes.verified.events(), events.clone()));
    tasks
}

/// What is recorded; files that are no records are named and left alone.
fn readable_records(state: &StateDir, events: &Events) -> Result<Vec<Record>, StateError> {
    let (records, unreadable) = state.records()?;
    for file in unreadable {
        let (path, error) = (file.path.display(), file.error);
        let text = format!("{path} {error}; it is left where it is, and its image is not attached");
        events.record(Kind::StateUnreadableRecord, &text, &[]);
    }
    Ok(records)
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

/// A number for this state directory, by which the kernel's ublk devices are told from those of agents beside us.
fn owner(state: &StateDir) -> u32 {
    let digest = Digest::of(state.root().as_os_str().as_encoded_bytes());
    let [a, b, c, d, ..] = *digest.as_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// How the fetcher is set up by this config.
pub(crate) fn fetcher_config(config: &Config) -> penstock_fetcher::Config {
    penstock_fetcher::Config {
        deadline: config.fetch_deadline,
        max_requests: usize::try_from(config.fetch_requests_in_flight).unwrap_or(usize::MAX),
        max_bytes: config.fetch_bytes_in_flight,
        ca_bundle: config.ca_bundle.clone(),
        plain_http: config.plain_http.clone(),
        hosts_dirs: config.hosts_dirs.clone(),
        redirects_allowed: config.redirects_allowed.clone(),
        tls: config.tls.clone(),
        proxy: config.proxy.clone().map(penstock_fetcher::Secret::new),
        no_proxy: config.no_proxy.clone(),
        credentials: config.credentials.sources(config.docker_config.clone(), &config.socket),
        ..penstock_fetcher::Config::default()
    }
}

fn note_start(config: &Config, events: &Events) {
    let text = format!("penstock {} is ready on {}", env!("CARGO_PKG_VERSION"), config.socket.display());
    events.record(Kind::AgentReady, &text, &[]);
}

/// What readers of a device get while bytes cannot be fetched, unless asked otherwise.
fn policy(config: &Config) -> Policy {
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    Policy {
        deadline_ms: ms(config.device_deadline.unwrap_or(config.fetch_deadline)),
        on_failure: config.on_failure,
        wait_limit_ms: ms(config.wait_limit),
    }
}

fn cache_config(config: &Config) -> penstock_cache::Config {
    penstock_cache::Config {
        watermarks: config.cache_watermarks,
        reserve_bytes: config.cache_reserve_bytes,
        scrub_interval: Some(config.cache_scrub_interval).filter(|interval| !interval.is_zero()),
        beside: vec![config.state_dir.join("maps")],
        chunk_size: config.chunk_size,
        ..penstock_cache::Config::new(config.cache_dir(), config.cache_cap_bytes)
    }
}

fn device_config(state: &StateDir) -> penstock_device::Config {
    penstock_device::Config { fuse_dir: state.fuse(), owner: owner(state), ..penstock_device::Config::default() }
}
