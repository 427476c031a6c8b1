//! The fetcher itself: the table of places, the reads, and what runs for them.

use std::{collections::BTreeMap, fmt, sync::Arc};

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use parking_lot::Mutex;
use penstock_blob::{Blob, BlobSource, ByteRange, Digest, Giver, Located, Purpose, ReadError, ReadFuture};
use prometheus_client::registry::Registry;
use tokio::{
    sync::broadcast,
    task::JoinSet,
    time::{Instant, timeout_at},
};
use tracing::Instrument as _;

use crate::{
    Reference,
    assembly::split,
    auth::Auth,
    budget::Budget,
    config::{Config, ConfigError},
    credentials::Chain,
    dial::Dialer,
    endpoint::{EndpointFetched, status::RegistryStatus},
    event::Event,
    flight::{Flights, Nearness, nobody},
    gave::Gave,
    hedge::Allowance,
    metrics::Metrics,
    namespace::Namespaces,
    place::Places,
};

/// Events kept for a receiver that is busy.
const EVENTS_KEPT: usize = 256;

/// What the flights share.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) config: Config,
    pub(crate) dialer: Arc<Dialer>,
    pub(crate) auth: Auth,
    pub(crate) budget: Budget,
    pub(crate) namespaces: Namespaces,
    pub(crate) places: Places,
    pub(crate) gave: Gave,
    pub(crate) allowance: Allowance,
    pub(crate) events: broadcast::Sender<Event>,
    pub(crate) flights: Flights,
    pub(crate) metrics: Metrics,
}

/// Byte ranges of blobs, from the registries that hold them.
///
/// Must be used inside a tokio runtime with its clock and I/O enabled.
pub struct Fetcher {
    pub(crate) core: Arc<Core>,
    /// The flights in the air; `None` once the fetcher has stopped.
    flying: Mutex<Option<JoinSet<()>>>,
}

/// What was fetched since the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Requests sent to registries, token servers excluded.
    pub requests: u64,
    /// Bytes of blobs received, including those that were fetched only to join two reads.
    pub bytes: u64,
    /// Tries that failed.
    pub failures: u64,
    /// The same by endpoint, sorted by host.
    pub endpoints: Vec<EndpointFetched>,
}

impl Fetcher {
    /// A fetcher that counts under `metrics`'s prefix. It does no I/O but to read the CA bundle, the system's
    /// certificates and what was kept of credentials; `hosts.toml` files are read when a registry is first asked.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn new(config: Config, metrics: &mut Registry) -> Result<Arc<Self>, ConfigError> {
        config.check()?;
        let metrics = Metrics::new(metrics);
        let dialer = Arc::new(Dialer::new(&config, metrics.clone())?);
        let (events, _) = broadcast::channel(EVENTS_KEPT);
        let core = Core {
            namespaces: Namespaces::new(dialer.clone(), events.clone()),
            dialer,
            gave: Gave::default(),
            allowance: Allowance::new(config.max_request_bytes),
            auth: Auth::new(Chain::new(&config.credentials), events.clone(), metrics.clone()),
            events,
            budget: Budget::new(&config, &metrics),
            places: Places::default(),
            flights: Flights::default(),
            config,
            metrics,
        };
        Ok(Arc::new(Self { core: Arc::new(core), flying: Mutex::new(Some(JoinSet::new())) }))
    }

    /// From now on `blob` is asked for in the repository of `from`, too. Each call is undone by one [`Self::forget`]: images that
    /// share a layer each say so. Control plane: does no I/O.
    pub fn serve(&self, blob: Blob, from: &Reference) {
        self.core.places.serve(blob.digest, &self.core.namespaces.of(from), from);
    }

    /// Undoes one [`Self::serve`]. Reads under way finish.
    pub fn forget(&self, digest: &Digest, from: &Reference) {
        self.core.places.forget(digest, from);
    }

    /// What was fetched since the start.
    #[must_use]
    pub fn fetched(&self) -> Fetched {
        let endpoints = self.core.namespaces.fetched();
        let sum = |what: fn(&EndpointFetched) -> u64| endpoints.iter().map(what).sum();
        Fetched { requests: sum(|e| e.requests), bytes: sum(|e| e.bytes), failures: sum(|e| e.failures), endpoints }
    }

    /// Bytes asked for and not handed out: at most [`Config::max_bytes`].
    #[must_use]
    pub fn in_flight_bytes(&self) -> u64 {
        u64::try_from(self.core.metrics.in_flight_bytes.get()).unwrap_or(0)
    }

    /// What the fetcher has to say from now on. A receiver that falls behind by more than 256 events loses the oldest.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.core.events.subscribe()
    }

    /// The registries that were asked or are served from, and for each its endpoints in the order in which they are asked.
    #[must_use]
    pub fn registries(&self) -> Vec<RegistryStatus> {
        self.core.namespaces.status()
    }

    /// Stops: reads under way and later ones end in [`ReadError::Stopping`]. Returns once nothing runs any more.
    pub async fn stop(&self) {
        let flying = self.flying.lock().take();
        if let Some(mut flying) = flying {
            flying.shutdown().await;
        }
    }

    /// One read of at most `max_request_bytes`, alone or with its neighbours.
    async fn piece(
        &self,
        blob: Blob,
        (range, purpose): (ByteRange, Purpose),
        deadline: Instant,
    ) -> Result<Bytes, ReadError> {
        let config = &self.core.config;
        let near = Nearness { gap_bytes: config.join_gap_bytes, max_bytes: config.max_request_bytes };
        let (mut seat, new) = self.core.flights.board(blob, (range, purpose), near);
        match new {
            Some(flight) => {
                let mut flying = self.flying.lock();
                let Some(flying) = flying.as_mut() else {
                    self.core.flights.close(&flight).for_each(drop);
                    return Err(ReadError::Stopping);
                };
                // Those that have ended are let go.
                while let Some(ended) = flying.try_join_next() {
                    if let Err(error) = ended {
                        tracing::error!(%error, "a fetch ended in a panic");
                    }
                }
                flying.spawn(self.core.clone().fly(flight).in_current_span());
            }
            None => {
                self.core.metrics.joined.inc();
            }
        }
        match timeout_at(deadline, seat.answer()).await {
            Ok(Some(answer)) => {
                answer.map_err(|grounded| grounded.failure.into_read_error(&blob, range, &grounded.endpoint))
            }
            Ok(None) => Err(ReadError::Stopping),
            Err(_elapsed) => {
                let last = seat.last().unwrap_or_else(|| "waiting for its turn or for the first answer".to_owned());
                self.core.late(&blob, &last);
                Err(ReadError::Deadline { blob: blob.digest, range, after: config.deadline, last })
            }
        }
    }

    async fn pieces(
        &self,
        blob: Blob,
        (range, purpose): (ByteRange, Purpose),
        deadline: Instant,
    ) -> Result<Bytes, ReadError> {
        let config = &self.core.config;
        let pieces = split(range, config.max_request_bytes).map(|piece| self.piece(blob, (piece, purpose), deadline));
        let whole = stream::iter(pieces).buffered(config.max_requests);
        let append = |mut whole: BytesMut, piece: Bytes| async move {
            whole.extend_from_slice(&piece);
            Ok(whole)
        };
        whole.try_fold(BytesMut::new(), append).await.map(BytesMut::freeze)
    }
}

impl BlobSource for Fetcher {
    fn locate(&self, _blob: &Blob, _range: ByteRange) -> Option<Located> {
        None
    }

    fn read(&self, blob: Blob, range: ByteRange, purpose: Purpose) -> ReadFuture<'_> {
        Box::pin(async move {
            blob.check(range)?;
            if !self.core.places.knows(&blob.digest) {
                let grounded = nobody();
                return Err(grounded.failure.into_read_error(&blob, range, &grounded.endpoint));
            }
            let deadline = Instant::now() + self.core.config.deadline;
            if range.len() <= self.core.config.max_request_bytes {
                return self.piece(blob, (range, purpose), deadline).await;
            }
            self.pieces(blob, (range, purpose), deadline).await
        })
    }

    fn reject(&self, blob: &Blob, range: ByteRange) {
        self.core.metrics.rejects.inc();
        self.core.flights.seal(&blob.digest);
        self.core.rejected(blob, range);
    }

    fn giver(&self, blob: &Blob, range: ByteRange) -> Option<Giver> {
        let place = self.core.gave.last(&blob.digest, range)?;
        Some(if place.is_mirror() { Giver::Mirror } else { Giver::Origin })
    }
}

impl fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoints: BTreeMap<_, _> =
            self.core.namespaces.fetched().into_iter().map(|e| (e.host, e.requests)).collect();
        f.debug_struct("Fetcher").field("requests", &endpoints).finish_non_exhaustive()
    }
}
