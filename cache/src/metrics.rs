//! The cache's own counters, registered once at construction.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};

/// A gauge of bytes or chunks.
pub(crate) type Level = Gauge<u64, AtomicU64>;

/// Everything counted. Names are relative to the prefix of the registry that was given.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) hits: Counter,
    pub(crate) fills: Counter,
    pub(crate) fill_failures: Counter,
    pub(crate) filled_bytes: Counter,
    pub(crate) bypasses: Counter,
    pub(crate) write_failures: Counter,
    pub(crate) corrupt_chunks: Counter,
    pub(crate) evicted_chunks: Counter,
    pub(crate) ahead_bytes: Counter,
    pub(crate) ahead_used_bytes: Counter,
    pub(crate) ahead_wasted_bytes: Counter,
    pub(crate) commits: Counter,
    pub(crate) commit_failures: Counter,
    pub(crate) verified_blobs: Counter,
    pub(crate) mismatched_blobs: Counter,
    pub(crate) cap_bytes: Level,
    pub(crate) limit_bytes: Level,
    pub(crate) used_bytes: Level,
    pub(crate) pending_bytes: Level,
    pub(crate) present_chunks: Level,
    pub(crate) durable_chunks: Level,
    pub(crate) blobs: Level,
    pub(crate) index_in_use: Level,
}

impl Metrics {
    /// Registers every metric under the prefix of `registry`.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let counters = [
            ("hits", "Reads answered from disk without waiting", &metrics.hits),
            ("fills", "Fills that got bytes from the source below", &metrics.fills),
            ("fill_failures", "Fills that got an error from the source below", &metrics.fill_failures),
            ("filled_bytes", "Bytes fetched from the source below", &metrics.filled_bytes),
            ("bypasses", "Fills or reads served but not stored", &metrics.bypasses),
            ("write_failures", "Writes to data files that failed", &metrics.write_failures),
            ("corrupt_chunks", "Chunks dropped because a check failed or the disk did", &metrics.corrupt_chunks),
            ("evicted_chunks", "Chunks evicted to make room", &metrics.evicted_chunks),
            ("ahead_bytes", "Bytes fetched before anybody asked for them", &metrics.ahead_bytes),
            ("ahead_used_bytes", "Bytes of those that were read later", &metrics.ahead_used_bytes),
            ("ahead_wasted_bytes", "Bytes of those that were dropped and never read", &metrics.ahead_wasted_bytes),
            ("commits", "Groups of chunks made durable", &metrics.commits),
            ("commit_failures", "Groups whose sync or index commit failed", &metrics.commit_failures),
            ("verified_blobs", "Whole blobs whose digest was verified", &metrics.verified_blobs),
            ("mismatched_blobs", "Whole blobs that were not what their digest says", &metrics.mismatched_blobs),
        ];
        for (name, help, counter) in counters {
            registry.register(name, help, counter.clone());
        }
        let levels = [
            ("cap_bytes", "Most bytes on disk", &metrics.cap_bytes),
            ("limit_bytes", "Most bytes on disk for blobs now", &metrics.limit_bytes),
            ("used_bytes", "Bytes on disk and reserved", &metrics.used_bytes),
            ("pending_bytes", "Bytes fetched that wait to be written", &metrics.pending_bytes),
            ("present_chunks", "Chunks on disk", &metrics.present_chunks),
            ("durable_chunks", "Chunks on disk that a crash cannot lose", &metrics.durable_chunks),
            ("blobs", "Blobs with at least one file", &metrics.blobs),
            ("index_in_use", "1 while the index is in use, 0 when it was set aside", &metrics.index_in_use),
        ];
        for (name, help, level) in levels {
            registry.register(name, help, level.clone());
        }
        metrics
    }
}
