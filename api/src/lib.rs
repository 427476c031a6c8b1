//! HTTP for operators: what a node's agent is asked, and how it answers.
//!
//! # Contract
//!
//! One request is one call on [`Node`] and one answer. The crate holds no state: the agent implements [`Node`] over its own
//! table of attachments, serves [`router`] to who may command it and [`read_only_router`] to others, and bounds how often and how long is asked.
//! The same types are what the `penstock` command sends and reads.
//!
//! # Layout
//!
//! - `node`: the calls that the routes need, and [`NodeError`].
//! - `device`, `cache`, `credential`, `event`, `memory`, `version`: what is sent and answered.
//! - `problem`: errors as RFC 9457 problem details, and the one table from error to status.
//! - `extract`: reading a request, each failure a problem.
//! - `follow`: events as they happen. `live`, `blocks`: the whole node as it changes, and maps of what is here. `pull`: what is said of a pull.
//!   `inspect`: what an image offers.
//! - `page`: the web page that shows all that.
//! - `routes`: the routes and their OpenAPI description, declared together so that they cannot drift.
//!
//! # Invariants
//!
//! - Every answer outside 2xx is `application/problem+json`, whoever made it: a route, an unknown path, a wrong method, a body
//!   that is malformed or too large, or a panic in a route. Only what is no HTTP request, or has too large a head, is answered by the
//!   HTTP library, without a body.
//! - Requests are strict: an unknown field or query parameter is refused by its name. Answers may gain fields; a client ignores
//!   those it does not know.
//! - A request body is at most [`BODY_BYTES`], an event list at most [`EVENTS_LISTED`], a list of cached blobs at most
//!   [`BLOBS_LISTED`].
//! - `openapi.json` beside this crate is [`openapi`], checked by a test.
//!
//! # Concurrency
//!
//! Routes run concurrently on whatever runtime serves the router; no lock is held here. A client that goes away drops the future of
//! its call: see [`Node`].

mod blocks;
mod cache;
mod credential;
mod device;
mod endpoint;
mod event;
mod explain;
mod extract;
mod follow;
mod inspect;
mod latency;
mod live;
mod memory;
mod node;
mod page;
mod problem;
mod pull;
mod recording;
mod routes;
mod snapshot;
#[cfg(test)]
mod tests;
mod version;

pub use blocks::{BLOCK_CELLS, BlobBlocks, BlockMap, CELL_LEVELS, Cell};
pub use cache::{
    BlobUsage, CacheFreed, CacheUsage, CacheVerified, ClearQuery, EvictCache, FreedBlob, Index, IndexState, KeptBlob,
    Verification, VerifyQuery,
};
pub use credential::{
    CredentialProvider, CredentialRefusal, CredentialUse, Credentials, HandOver, HandedOver, SecretText, WithdrawQuery,
};
pub use device::{
    Attach, Change, DEADLINE_MS, Detached, Device, DeviceState, Layers, NotDetached, OnFailure, Owner, Policy,
    PolicyChange, Presence, Stats, Transport, WAIT_LIMIT_MS, Wanted,
};
pub use endpoint::{Breaker, Endpoint, RegistryHosts, Role};
pub use event::{Event, Events, EventsQuery, Severity};
pub use explain::{Burst, Explanation, Link, RANGES_EXPLAINED, WaitedRange, Waits};
pub use extract::DetachQuery;
pub use follow::{END, KEEP_ALIVE, LOST, Lost, RESTARTED};
pub use inspect::{Fate, Inspect, InspectedLayer, InspectedWay, Inspection, WayState};
pub use jiff::Timestamp;
pub use latency::{Latency, Tier};
pub use live::{CacheFigures, DEVICES, DeviceCounts, LiveQuery, MAP, PERIOD, PULSE, Pulse, Row, Rows, TROUBLE};
pub use memory::{Memory, MemoryPart, MemoryUser};
pub use node::{Answer, EventStream, Node, NodeError, Readiness};
pub use page::is_asset;
pub use problem::{PROBLEM_JSON, Problem, ProblemKind};
pub use pull::{
    PULL_DONE, PULL_FAILED, PULL_PROGRESS, Pull, PullMessage, PullProgress, PullStream, Pulled, PulledBlob,
};
pub use recording::{EndRecording, Reading, ReadingMode, Recording};
pub use routes::{openapi, read_only_router, router};
pub use snapshot::{LostSnapshot, SNAPSHOTS_LISTED, Snapshot, SnapshotDevice, SnapshotKind, SnapshotsRepaired};
pub use version::Version;

/// The most bytes read of a request body. An attach request with the longest reference and path that any registry and Linux allow
/// stays far below; what is longer is refused with 413.
pub const BODY_BYTES: usize = 64 << 10;

/// How long a request body may take to come: who sends it byte by byte holds nothing up.
pub const BODY_DEADLINE: std::time::Duration = std::time::Duration::from_secs(10);

/// The most events in one answer; a client that is further behind asks again from the last sequence it saw.
pub const EVENTS_LISTED: usize = 1_000;

/// The most cached blobs in one answer, the most present first: about 1 MiB of JSON. `blobs_total` always counts them all.
pub const BLOBS_LISTED: usize = 4_096;
