//! The node as it changes, for who looks: server-sent events over one stream.
//!
//! Everything is asked of the [`Node`](crate::Node) each [`PERIOD`], for as long as the client reads, and only what changed is sent. Nobody
//! looking costs nothing. The stream takes a follower's place among those of events, and brings the events too.

use std::{collections::HashMap, convert::Infallible, path::PathBuf, time::Duration};

use axum::{
    extract::State,
    response::{
        IntoResponse as _, Response,
        sse::{Event as Message, KeepAlive, Sse},
    },
};
use futures_util::{StreamExt as _, future::Either, stream};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, Interval, MissedTickBehavior};
use utoipa::{IntoParams, ToSchema};

use crate::{
    BlockMap, CacheUsage, Device, DeviceState, EventStream, Latency, NodeError, Owner, Problem, Readiness,
    RegistryHosts, Stats, Timestamp, Transport,
    extract::Params,
    follow::{self, KEEP_ALIVE},
    routes::{Result, Shared},
};

/// How often the node is looked at for each client.
pub const PERIOD: Duration = Duration::from_secs(1);

/// The most devices in one message: a thousand of them come in five.
const ROWS: usize = 200;

/// The name of the message with a [`Pulse`].
pub const PULSE: &str = "pulse";
/// The name of the message with [`Rows`].
pub const DEVICES: &str = "devices";
/// The name of the message with a [`BlockMap`](crate::BlockMap).
pub const MAP: &str = "map";
/// The name of the message with a [`Problem`]: what was asked for could not be told this time.
pub const TROUBLE: &str = "trouble";

/// What is to be shown.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LiveQuery {
    /// The device whose block map is wanted.
    #[serde(default)]
    pub device: Option<String>,
    /// Only events with a larger sequence; 0 for all that are kept.
    #[serde(default)]
    #[param(default = 0)]
    pub since: u64,
}

/// The whole node at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Pulse {
    /// When.
    pub time: Timestamp,
    /// Why the agent takes no work; absent while it does.
    pub not_ready: Option<String>,
    /// Why the agent can serve only what is cached; absent while it can get other bytes.
    pub degraded: Option<String>,
    /// Devices by state.
    pub devices: DeviceCounts,
    /// What all devices have served together.
    pub reads: Stats,
    /// How long reads of all devices took since the agent started, by where their bytes came from.
    pub latency: Vec<Latency>,
    /// The cache.
    pub cache: CacheFigures,
    /// Whom registries' content is asked for.
    pub registries: Vec<RegistryHosts>,
}

/// Devices by state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct DeviceCounts {
    /// Being made.
    pub attaching: usize,
    /// Serving reads.
    pub attached: usize,
    /// Being removed.
    pub detaching: usize,
    /// Not serving.
    pub failed: usize,
}

/// The cache in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CacheFigures {
    /// Bytes that blobs take on disk.
    pub used_bytes: u64,
    /// Bytes that they may take now.
    pub limit_bytes: u64,
    /// Chunks on disk.
    pub chunks_present: u64,
    /// Chunks evicted since the agent started.
    pub evicted: u64,
    /// Fills that were served without being stored.
    pub bypasses: u64,
    /// Blobs.
    pub blobs: u64,
}

/// Devices that are new or changed since the last message, and those that are gone.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Rows {
    /// New or changed, 200 at most.
    pub rows: Vec<Row>,
    /// Gone.
    pub gone: Vec<String>,
}

/// A device in short. `/v1/devices/{id}` has the rest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Row {
    /// Its name on this node.
    pub id: String,
    /// Where it is in its life.
    pub state: DeviceState,
    /// Why it is in that state, when there is something to say.
    pub state_reason: Option<String>,
    /// The image.
    pub reference: String,
    /// Who asked for it.
    pub owner: Owner,
    /// How it reaches the kernel.
    pub transport: Transport,
    /// Size of the device in bytes.
    pub size_bytes: u64,
    /// Size of its blobs in bytes.
    pub blob_bytes: u64,
    /// Those of them that are on this node.
    pub present_bytes: u64,
    /// Where it is mounted.
    #[schema(value_type = Option<String>)]
    pub mount_point: Option<PathBuf>,
    /// What it has served.
    pub stats: Stats,
}

impl From<&Device> for Row {
    fn from(device: &Device) -> Self {
        Self {
            id: device.id.clone(),
            state: device.state,
            state_reason: device.state_reason.clone(),
            reference: device.reference.clone(),
            owner: device.owner,
            transport: device.transport,
            size_bytes: device.size_bytes,
            blob_bytes: device.blobs.iter().map(|blob| blob.size_bytes).sum(),
            present_bytes: device.blobs.iter().map(|blob| blob.present_bytes).sum(),
            mount_point: device.mount_point.clone(),
            stats: device.stats,
        }
    }
}

impl DeviceCounts {
    fn of(devices: &[Device]) -> Self {
        let mut counts = Self::default();
        for device in devices {
            *match device.state {
                DeviceState::Attaching => &mut counts.attaching,
                DeviceState::Attached => &mut counts.attached,
                DeviceState::Detaching => &mut counts.detaching,
                DeviceState::Failed => &mut counts.failed,
            } += 1;
        }
        counts
    }
}

impl From<&CacheUsage> for CacheFigures {
    fn from(usage: &CacheUsage) -> Self {
        Self {
            used_bytes: usage.used_bytes,
            limit_bytes: usage.limit_bytes,
            chunks_present: usage.chunks_present,
            evicted: usage.evicted,
            bypasses: usage.bypasses,
            blobs: usage.blobs_total,
        }
    }
}

/// Counters of all devices together.
fn total(devices: &[Device]) -> Stats {
    devices.iter().map(|device| device.stats).fold(Stats::default(), |sum, stats| Stats {
        requests: sum.requests + stats.requests,
        bytes_served: sum.bytes_served + stats.bytes_served,
        hits: sum.hits + stats.hits,
        misses: sum.misses + stats.misses,
        errors: sum.errors + stats.errors,
        in_flight: sum.in_flight + stats.in_flight,
        bytes_fetched: sum.bytes_fetched + stats.bytes_fetched,
        waited_ms: sum.waited_ms + stats.waited_ms,
        stalled_ms: sum.stalled_ms + stats.stalled_ms,
    })
}

/// What changed from `shown` to `devices`, which is what is shown from now on.
pub(crate) fn changes(shown: &mut HashMap<String, Row>, devices: &[Device]) -> Vec<Rows> {
    let rows: Vec<Row> = devices.iter().map(Row::from).collect();
    let gone: Vec<String> = {
        let here: std::collections::HashSet<&str> = rows.iter().map(|row| row.id.as_str()).collect();
        shown.keys().filter(|id| !here.contains(id.as_str())).cloned().collect()
    };
    gone.iter().for_each(|id| {
        shown.remove(id);
    });
    let changed: Vec<Row> = rows.into_iter().filter(|row| shown.get(&row.id) != Some(row)).collect();
    shown.extend(changed.iter().map(|row| (row.id.clone(), row.clone())));
    let mut messages: Vec<Rows> =
        changed.chunks(ROWS).map(|rows| Rows { rows: rows.to_vec(), gone: Vec::new() }).collect();
    if !gone.is_empty() {
        messages.push(Rows { rows: Vec::new(), gone });
    }
    messages
}

/// One client, and what it has been shown.
struct Watcher {
    node: Shared,
    events: EventStream,
    device: Option<String>,
    shown: HashMap<String, Row>,
    map: Option<BlockMap>,
    /// None before the first look, which waits for nothing.
    ticks: Option<Interval>,
}

impl Watcher {
    fn new(node: Shared, events: EventStream, device: Option<String>) -> Self {
        Self { node, events, device, shown: HashMap::new(), map: None, ticks: None }
    }

    /// What there is to send next; `None` when the agent stops.
    async fn next(&mut self) -> Option<Vec<Message>> {
        let Some(ticks) = &mut self.ticks else {
            let mut ticks = tokio::time::interval_at(Instant::now() + PERIOD, PERIOD);
            // A client that reads slowly is looked for less often.
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            self.ticks = Some(ticks);
            return Some(self.look().await);
        };
        let woken = {
            let tick = std::pin::pin!(ticks.tick());
            match futures_util::future::select(tick, self.events.next()).await {
                Either::Left(_) => None,
                Either::Right((batch, _)) => Some(batch),
            }
        };
        match woken {
            Some(batch) => Some(follow::messages(&batch?)),
            None => Some(self.look().await),
        }
    }

    async fn look(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        if let Err(error) = self.see(&mut messages).await {
            messages.push(message(TROUBLE, &Problem::from(error)));
        }
        messages
    }

    async fn see(&mut self, messages: &mut Vec<Message>) -> std::result::Result<(), NodeError> {
        let devices = self.node.devices().await?;
        let (not_ready, degraded) = match self.node.readiness() {
            Readiness::Ready => (None, None),
            Readiness::Degraded(reason) => (None, Some(reason)),
            Readiness::NotReady(reason) => (Some(reason), None),
        };
        let pulse = Pulse {
            time: Timestamp::now(),
            not_ready,
            degraded,
            devices: DeviceCounts::of(&devices),
            reads: total(&devices),
            latency: self.node.latency().await?,
            cache: CacheFigures::from(&self.node.cache().await?),
            registries: self.node.endpoints().await?,
        };
        messages.push(message(PULSE, &pulse));
        messages.extend(changes(&mut self.shown, &devices).iter().map(|rows| message(DEVICES, rows)));
        if let Some(id) = &self.device {
            let map = self.node.blocks(id).await?;
            if self.map.as_ref() != Some(&map) {
                messages.push(message(MAP, &map));
                self.map = Some(map);
            }
        }
        Ok(())
    }
}

fn message(name: &str, data: &impl Serialize) -> Message {
    // These types always become JSON, on one line.
    Message::default().event(name).data(serde_json::to_string(data).unwrap_or_default())
}

/// The messages of `GET /v1/live`, for the description of the API.
#[derive(utoipa::OpenApi)]
#[openapi(components(schemas(Pulse, Rows, Row, DeviceCounts, CacheFigures)))]
pub(crate) struct Messages;

/// The node as it changes, as server-sent events: `pulse` each second (a `Pulse`), `devices` (`Rows`: all at first, then what changed), `map`
/// (a `BlockMap` of the device asked for, when it changed), `trouble` (a `Problem`), and the unnamed messages and those named `lost` and `end` of `/v1/events`.
#[utoipa::path(get, path = "/v1/live", tag = "events", params(LiveQuery), responses(
    (status = 200, description = "The node", content((String = "text/event-stream"))),
    (status = 429, body = Problem, content_type = "application/problem+json", description = "As many follow already as the agent allows"),
    (status = "default", body = Problem, content_type = "application/problem+json", description = "A problem"),
))]
pub(crate) async fn live(State(node): State<Shared>, Params(query): Params<LiveQuery>) -> Result<Response> {
    let events = node.follow(query.since)?;
    let watcher = Watcher::new(node, events, query.device);
    let messages = stream::unfold(watcher, |mut watcher| async {
        let messages = watcher.next().await?;
        Some((stream::iter(messages), watcher))
    });
    let all = messages.flatten().chain(stream::iter([follow::last()])).map(Ok::<_, Infallible>);
    Ok(Sse::new(all).keep_alive(KeepAlive::new().interval(KEEP_ALIVE).text("still here")).into_response())
}
