//! The admin API's calls, answered by the agent's parts.

mod credentials;
mod endpoints;
mod recordings;
pub(crate) mod refusal;
mod snapshots;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use penstock_api::{self as api, Answer, NodeError, Readiness};
use penstock_cache::{Cache, IndexState, Whole};
use penstock_fetcher::Fetcher;
use penstock_snapshotter::Snapshotter;
use prometheus_client::registry::Registry;

use crate::{
    attachments::Attachments,
    events::{Events, FOLLOWERS},
    memory::Memory,
    metrics::Metrics,
    mounter::LayerMounter,
    pull::Pulls,
};

/// The agent as the admin API sees it.
#[derive(Debug)]
pub(crate) struct AgentNode {
    attachments: Arc<Attachments>,
    /// containerd's snapshots, when it is served.
    snapshotter: Option<Arc<Snapshotter>>,
    /// What knows what becomes of layers.
    mounter: Arc<LayerMounter>,
    fetcher: Arc<Fetcher>,
    cache: Arc<Cache>,
    cache_dir: PathBuf,
    metrics: (Arc<Registry>, Metrics),
    memory: Memory,
    events: Events,
    pulls: Pulls,
    ready: Arc<AtomicBool>,
}

impl AgentNode {
    pub(crate) fn new(
        (attachments, snapshotter, mounter): (Arc<Attachments>, Option<Arc<Snapshotter>>, Arc<LayerMounter>),
        fetcher: Arc<Fetcher>,
        (cache, cache_dir): (Arc<Cache>, PathBuf),
        (registry, metrics, memory): (Arc<Registry>, Metrics, Memory),
        (events, ready, pulls): (Events, Arc<AtomicBool>, Pulls),
    ) -> Self {
        let metrics = (registry, metrics);
        Self { attachments, snapshotter, mounter, fetcher, cache, cache_dir, metrics, memory, events, pulls, ready }
    }
}

impl api::Node for AgentNode {
    fn readiness(&self) -> Readiness {
        if !self.ready.load(Ordering::SeqCst) {
            return Readiness::NotReady("the agent is stopping; ask again when it has started anew".to_owned());
        }
        endpoints::degraded(&self.fetcher.registries()).map_or(Readiness::Ready, Readiness::Degraded)
    }

    fn metrics(&self) -> Answer<'_, String> {
        let (registry, metrics) = &self.metrics;
        metrics.set(|state| self.attachments.count(state));
        metrics.set_memory(&self.memory.report());
        let mut text = String::new();
        let encoded = prometheus_client::encoding::text::encode(&mut text, registry);
        Box::pin(std::future::ready(
            encoded
                .map(|()| text)
                .map_err(|error| NodeError::Internal(format!("the metrics cannot be written: {error}"))),
        ))
    }

    fn devices(&self) -> Answer<'_, Vec<api::Device>> {
        Box::pin(std::future::ready(Ok(self.attachments.devices())))
    }

    fn device<'a>(&'a self, id: &'a str) -> Answer<'a, api::Device> {
        Box::pin(std::future::ready(self.attachments.device(id).map_err(NodeError::from)))
    }

    fn blocks<'a>(&'a self, id: &'a str) -> Answer<'a, api::BlockMap> {
        Box::pin(std::future::ready(self.attachments.blocks(id).map_err(NodeError::from)))
    }

    fn explain<'a>(&'a self, id: &'a str) -> Answer<'a, api::Explanation> {
        let users = self.snapshotter.as_ref().map_or_else(Vec::new, |snapshotter| snapshots::users(snapshotter, id));
        Box::pin(async move { Ok(self.attachments.explain(id, users).await?) })
    }

    fn latency(&self) -> Answer<'_, Vec<api::Latency>> {
        Box::pin(std::future::ready(Ok(self.attachments.latency())))
    }

    fn memory(&self) -> Answer<'_, api::Memory> {
        Box::pin(std::future::ready(Ok(self.memory.report())))
    }

    fn attach(&self, request: api::Attach) -> Answer<'_, api::Device> {
        Box::pin(async move { Ok(self.attachments.attach(request).await?) })
    }

    fn change<'a>(&'a self, id: &'a str, change: api::Change) -> Answer<'a, api::Device> {
        Box::pin(async move { Ok(self.attachments.change_policy(id, change).await?) })
    }

    fn detach<'a>(&'a self, id: &'a str, force: bool) -> Answer<'a, ()> {
        Box::pin(async move { Ok(self.attachments.detach(id, force).await?) })
    }

    fn detach_all(&self, force: bool) -> Answer<'_, api::Detached> {
        Box::pin(async move {
            let mut answer = api::Detached::default();
            for (id, outcome) in self.attachments.detach_all(force).await {
                match outcome {
                    Ok(()) => answer.detached.push(id.to_string()),
                    Err(error) => answer
                        .failed
                        .push(api::NotDetached { id: id.to_string(), problem: NodeError::from(error).into() }),
                }
            }
            Ok(answer)
        })
    }

    fn cache(&self) -> Answer<'_, api::CacheUsage> {
        Box::pin(std::future::ready(Ok(self.cache_usage())))
    }

    fn evict(&self, what: api::EvictCache) -> Answer<'_, api::CacheFreed> {
        Box::pin(async move {
            let digests = match (what.reference, what.digest) {
                (Some(reference), None) => self.attachments.blobs_of(&reference, what.platform.as_deref()).await?,
                (None, Some(digest)) => vec![digest],
                _ => return Err(NodeError::Invalid("name either a reference or a digest".to_owned())),
            };
            Ok(freed(self.cache.clear(Some(&digests), false).await))
        })
    }

    fn clear_cache(&self, force: bool) -> Answer<'_, api::CacheFreed> {
        Box::pin(async move { Ok(freed(self.cache.clear(None, force).await)) })
    }

    fn verify_cache(&self, repair: bool) -> Answer<'_, api::CacheVerified> {
        Box::pin(async move {
            let found = self.cache.verify(repair).await;
            Ok(api::CacheVerified {
                blobs: found.blobs,
                chunks: found.chunks,
                bytes: found.bytes,
                corrupt_chunks: found.corrupt_chunks,
                mismatched_blobs: found.mismatched_blobs,
                repaired_ranges: found.repaired_ranges,
                not_repaired_ranges: found.not_repaired_ranges,
            })
        })
    }

    fn endpoints(&self) -> Answer<'_, Vec<api::RegistryHosts>> {
        let all = self.fetcher.registries().into_iter().map(endpoints::registry).collect();
        Box::pin(std::future::ready(Ok(all)))
    }

    fn credentials(&self) -> Answer<'_, api::Credentials> {
        Box::pin(async move { Ok(credentials::report(self.fetcher.credentials().await)) })
    }

    fn hand_over(&self, request: api::HandOver) -> Answer<'_, ()> {
        Box::pin(credentials::hand_over(&self.fetcher, request))
    }

    fn withdraw<'a>(&'a self, scope: &'a str) -> Answer<'a, ()> {
        Box::pin(credentials::withdraw(&self.fetcher, scope))
    }

    fn snapshots(&self) -> Answer<'_, Vec<api::Snapshot>> {
        let served = snapshots::served(self.snapshotter.as_ref());
        Box::pin(std::future::ready(served.map(|snapshotter| snapshots::list(snapshotter))))
    }

    fn repair_snapshots(&self) -> Answer<'_, api::SnapshotsRepaired> {
        Box::pin(async move { snapshots::repair(snapshots::served(self.snapshotter.as_ref())?).await })
    }

    fn recordings(&self) -> Answer<'_, Vec<api::Recording>> {
        Box::pin(recordings::list(&self.attachments))
    }

    fn remove_recording<'a>(&'a self, manifest: &'a str) -> Answer<'a, ()> {
        Box::pin(recordings::remove(&self.attachments, manifest))
    }

    fn record<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        Box::pin(std::future::ready(self.attachments.record(id).map_err(NodeError::from)))
    }

    fn end_recording<'a>(&'a self, id: &'a str, request: api::EndRecording) -> Answer<'a, api::Recording> {
        Box::pin(async move { Ok(self.attachments.end_recording(id, request).await?) })
    }

    fn events(&self, since: u64, limit: usize) -> Answer<'_, api::Events> {
        Box::pin(std::future::ready(Ok(self.events.since(since, limit))))
    }

    fn follow(&self, since: u64) -> Result<api::EventStream, NodeError> {
        match self.events.follow(since) {
            Some(events) => Ok(Box::pin(events)),
            None => Err(NodeError::Busy(format!("{FOLLOWERS} others follow the events already; end one of them"))),
        }
    }

    fn pull(&self, request: api::Pull) -> Answer<'_, api::PullStream> {
        Box::pin(self.pulls.pull(request))
    }

    fn inspect(&self, request: api::Inspect) -> Answer<'_, api::Inspection> {
        Box::pin(self.mounter.inspect(request))
    }

    fn version(&self) -> api::Version {
        let kernel = rustix::system::uname();
        let part = |part: &std::ffi::CStr| part.to_string_lossy().into_owned();
        api::Version {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: format!("{} {} {}", part(kernel.sysname()), part(kernel.release()), part(kernel.machine())),
            pid: std::process::id(),
            started_at: self.events.started_at(),
        }
    }
}

impl AgentNode {
    fn cache_usage(&self) -> api::CacheUsage {
        let usage = self.cache.usage();
        api::CacheUsage {
            dir: self.cache_dir.clone(),
            cap_bytes: usage.cap_bytes,
            limit_bytes: usage.limit_bytes,
            used_bytes: usage.used_bytes,
            index_bytes: usage.index_bytes,
            maps_bytes: usage.beside_bytes,
            chunks_present: usage.present_chunks,
            chunks_durable: usage.durable_chunks,
            hits: usage.hits,
            fills: usage.fills,
            bypasses: usage.bypasses,
            evicted: usage.evicted_chunks,
            corrupt_dropped: usage.corrupt_chunks,
            index: api::Index {
                state: match &usage.index {
                    IndexState::Good => api::IndexState::Open,
                    IndexState::Rebuilt { .. } => api::IndexState::Rebuilt,
                    IndexState::Abandoned { .. } => api::IndexState::Lost,
                },
                detail: usage.index.to_string(),
            },
            blobs_total: usage.blobs,
            blobs: self.cache.blobs().iter().map(blob_usage).collect(),
        }
    }
}

fn freed(cleared: penstock_cache::Cleared) -> api::CacheFreed {
    let kept = |(digest, why): (_, penstock_cache::RemoveError)| api::KeptBlob { digest, reason: why.to_string() };
    api::CacheFreed {
        freed_bytes: cleared.freed.iter().map(|(_, bytes)| bytes).sum(),
        freed: cleared.freed.iter().map(|&(digest, freed_bytes)| api::FreedBlob { digest, freed_bytes }).collect(),
        kept: cleared.kept.into_iter().map(kept).collect(),
    }
}

fn blob_usage(blob: &penstock_cache::BlobUsage) -> api::BlobUsage {
    let usage = api::BlobUsage {
        digest: blob.digest,
        size_bytes: blob.size_bytes,
        chunk_size_bytes: blob.chunk_size.bytes(),
        chunks: blob.chunks.into(),
        chunks_present: blob.present_chunks.into(),
        chunks_durable: blob.durable_chunks.into(),
        present_bytes: blob.present_bytes,
        present_share: 0.0,
        fetched_bytes: blob.fetched_bytes,
        verification: match blob.whole {
            Whole::Partial => api::Verification::Partial,
            Whole::Mismatch => api::Verification::Mismatch,
            Whole::Verifying => api::Verification::Running,
            Whole::Verified => api::Verification::Whole,
        },
    };
    usage.with_share()
}
