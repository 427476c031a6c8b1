//! The few calls that the routes need.

use std::pin::Pin;

use futures_util::Stream;

use crate::{
    Attach, BlockMap, CacheFreed, CacheUsage, CacheVerified, Change, Credentials, Detached, Device, EndRecording,
    Events, EvictCache, Explanation, HandOver, Inspect, Inspection, Latency, Memory, Pull, PullStream, Recording,
    RegistryHosts, Snapshot, SnapshotsRepaired, Version,
};

/// What a call on a [`Node`] answers, later.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, NodeError>> + Send + 'a>>;

/// Events as they happen, in lists that are not empty or say how many were lost. Ends when the agent stops.
pub type EventStream = Pin<Box<dyn Stream<Item = Events> + Send>>;

/// A node that can be asked: the agent, or a fake in tests.
///
/// Any number of calls may be under way at once. A client that goes away drops the future of its call, at any await: an
/// implementation that changes something finishes or undoes it in a task of its own.
pub trait Node: Send + Sync + 'static {
    /// Whether the node takes work. Never waits.
    fn readiness(&self) -> Readiness;

    /// All metrics in the OpenMetrics text format, `# EOF` included.
    fn metrics(&self) -> Answer<'_, String>;

    /// All devices, in the order in which they were attached.
    fn devices(&self) -> Answer<'_, Vec<Device>>;

    /// The device `id`, else [`NodeError::NotFound`].
    fn device<'a>(&'a self, id: &'a str) -> Answer<'a, Device>;

    /// What of its blobs is here, in at most [`BLOCK_CELLS`](crate::BLOCK_CELLS) cells, else [`NodeError::NotFound`]. Never waits.
    fn blocks<'a>(&'a self, id: &'a str) -> Answer<'a, BlockMap>;

    /// Explains the device `id`, else [`NodeError::NotFound`].
    fn explain<'a>(&'a self, id: &'a str) -> Answer<'a, Explanation>;

    /// How long reads of all devices took, by tier. Never waits.
    fn latency(&self) -> Answer<'_, Vec<Latency>>;

    /// What of its budget of memory the node uses, by part. Never waits.
    fn memory(&self) -> Answer<'_, Memory>;

    /// Attaches an image; answers once it can be read.
    fn attach(&self, request: Attach) -> Answer<'_, Device>;

    /// Changes what is set of the device `id`; answers once that holds, and is on disk.
    fn change<'a>(&'a self, id: &'a str, change: Change) -> Answer<'a, Device>;

    /// Detaches the device `id`. When it is in use the answer is [`NodeError::Conflict`], unless `force` is set: then it goes
    /// all the same, and its readers get I/O errors.
    fn detach<'a>(&'a self, id: &'a str, force: bool) -> Answer<'a, ()>;

    /// Detaches every device; one that stays does not keep the others.
    fn detach_all(&self, force: bool) -> Answer<'_, Detached>;

    /// What the cache holds, every blob included.
    fn cache(&self) -> Answer<'_, CacheUsage>;

    /// Removes an image's blobs, or one blob, from the cache; what attached images use stays.
    fn evict(&self, what: EvictCache) -> Answer<'_, CacheFreed>;

    /// Removes everything from the cache but what attached images use, or with `force` that too.
    fn clear_cache(&self, force: bool) -> Answer<'_, CacheFreed>;

    /// Reads the whole cache again and drops what is damaged; with `repair` fetches it again. Ends when the caller goes away.
    fn verify_cache(&self, repair: bool) -> Answer<'_, CacheVerified>;

    /// Whom the content of each registry is asked for, sorted by registry. Never waits.
    fn endpoints(&self) -> Answer<'_, Vec<RegistryHosts>>;

    /// Which credentials there are, without any secret.
    fn credentials(&self) -> Answer<'_, Credentials>;

    /// Takes credentials for a registry or a path in one; what is none is [`NodeError::Invalid`].
    fn hand_over(&self, request: HandOver) -> Answer<'_, ()>;

    /// Forgets those handed over for exactly this scope, else [`NodeError::NotFound`].
    fn withdraw<'a>(&'a self, scope: &'a str) -> Answer<'a, ()>;

    /// containerd's snapshots, sorted by name; [`NodeError::Conflict`] when containerd is not served. Never waits.
    fn snapshots(&self) -> Answer<'_, Vec<Snapshot>>;

    /// Mends the metadata of containerd's snapshots, and says what is lost.
    fn repair_snapshots(&self) -> Answer<'_, SnapshotsRepaired>;

    /// The recordings on this node, the newest first.
    fn recordings(&self) -> Answer<'_, Vec<Recording>>;

    /// Removes the recording of the image with this manifest, else [`NodeError::NotFound`].
    fn remove_recording<'a>(&'a self, manifest: &'a str) -> Answer<'a, ()>;

    /// Records what the device `id` reads until [`end_recording`](Self::end_recording); [`NodeError::Conflict`] when its start is over.
    fn record<'a>(&'a self, id: &'a str) -> Answer<'a, ()>;

    /// Ends the recording of the device `id`, keeps it, and pushes it if asked.
    fn end_recording<'a>(&'a self, id: &'a str, request: EndRecording) -> Answer<'a, Recording>;

    /// The kept events with a sequence beyond `since`, oldest first, the first `limit` of them.
    fn events(&self, since: u64, limit: usize) -> Answer<'_, Events>;

    /// The kept events with a sequence beyond `since`, and then those that happen, for as long as the stream is kept and the agent
    /// runs. [`NodeError::Busy`] when as many follow already as the agent allows. Never waits.
    fn follow(&self, since: u64) -> Result<EventStream, NodeError>;

    /// Puts an image into containerd's content store. Answers once it is known what is to be written; [`NodeError::Busy`] when as many
    /// are under way as the agent allows.
    fn pull(&self, request: Pull) -> Answer<'_, PullStream>;

    /// What an image offers, and what becomes of its layers. [`NodeError::Busy`] when as many are under way as the agent allows.
    fn inspect(&self, request: Inspect) -> Answer<'_, Inspection>;

    /// Which agent this is. Never waits.
    fn version(&self) -> Version;
}

/// Whether a node takes work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// It does.
    Ready,
    /// It does, and serves what is cached, but cannot get other bytes, for this reason.
    Degraded(String),
    /// It does not, for this reason.
    NotReady(String),
}

/// Why a node did not do what it was asked. The text says what to do next; it never holds a credential.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// There is no such device on the node.
    #[error("{0}")]
    NotFound(String),
    /// The registry has no such image, tag or platform.
    #[error("{0}")]
    ImageNotFound(String),
    /// It cannot be done in the present state: the device is in use, the mount point is taken.
    #[error("{0}")]
    Conflict(String),
    /// The request is wrong: a reference that is none, a mount point that is no directory.
    #[error("{0}")]
    Invalid(String),
    /// The registry refused the agent's credentials, or asks for some.
    #[error("{0}")]
    Denied(String),
    /// The registry gave no usable answer; another try may help.
    #[error("{0}")]
    Unavailable(String),
    /// The registry's bytes are not those of their digest, or not what they claim to be.
    #[error("{0}")]
    WrongBytes(String),
    /// The image is not of a kind that can be attached lazily; the text says what it is.
    #[error("{0}")]
    Unsupported(String),
    /// The node lacks what the device needs: no ublk, no FUSE, no file system driver, no privilege.
    #[error("{0}")]
    Incapable(String),
    /// The node's disk or a limit of the agent leaves no room.
    #[error("{0}")]
    NoRoom(String),
    /// The request took longer than the agent lets one take.
    #[error("{0}")]
    Deadline(String),
    /// As many do the same as the agent allows.
    #[error("{0}")]
    Busy(String),
    /// The agent is starting or stopping and takes no work.
    #[error("{0}")]
    Stopping(String),
    /// A failure that the caller can do nothing about.
    #[error("{0}")]
    Internal(String),
}
