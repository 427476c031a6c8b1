//! Attachments as the admin API shows them.

use std::{sync::Arc, time::Duration};

use penstock_api as api;
use penstock_blob::{Blob, Digest};
use penstock_cache::{Cache, Part};
use penstock_device::{Transport, Wanted};
use penstock_fetcher::Reference;

use super::{AttachError, Attachments, Parts, State, explain, live::Live, policy, proof};
use crate::state::record::{LayerRecord, Owner, Record};

impl Attachments {
    /// All attachments whose reference is resolved, in the order of attaching.
    pub(crate) fn devices(&self) -> Vec<api::Device> {
        let table = self.table.lock();
        let shown = table.entries.iter().filter_map(|entry| Some((entry.record.as_ref()?, &entry.state)));
        shown.map(|(record, state)| device(record, state, &self.parts)).collect()
    }

    /// One attachment.
    pub(crate) fn device(&self, id: &str) -> Result<api::Device, AttachError> {
        let table = self.table.lock();
        let found = table.entries.iter().find(|entry| entry.id.as_str() == id);
        found
            .and_then(|entry| Some(device(entry.record.as_ref()?, &entry.state, &self.parts)))
            .ok_or_else(|| no_device(id))
    }

    /// What of a device's blobs is here.
    pub(crate) fn blocks(&self, id: &str) -> Result<api::BlockMap, AttachError> {
        let shown: Vec<Blob> = {
            let table = self.table.lock();
            let found = table.entries.iter().find(|entry| entry.id.as_str() == id);
            let found = found.and_then(|entry| Some((entry, entry.record.as_ref()?)));
            let (entry, record) = found.ok_or_else(|| no_device(id))?;
            blobs(record.shown_layers(), entry.state.live().map(Arc::as_ref))
        };
        let all: u64 = shown.iter().map(|blob| blob.size_bytes).sum();
        let blobs = shown.iter().map(|blob| blocks(&self.parts.cache, blob, all)).collect();
        Ok(api::BlockMap { id: id.to_owned(), blobs })
    }

    /// The blobs of an image: as an attachment of it says, else as its registry does.
    pub(crate) async fn blobs_of(&self, reference: &str, platform: Option<&str>) -> Result<Vec<Digest>, AttachError> {
        let reference: Reference = reference.parse()?;
        let platform = platform.map(str::parse).transpose()?.unwrap_or_else(|| self.parts.platform.clone());
        let known = {
            let table = self.table.lock();
            let records = table.entries.iter().filter_map(|entry| entry.record.as_ref());
            let mut same = records.filter(|record| record.reference == reference && record.platform == platform);
            same.next().map(|record| record.layers.iter().map(|layer| layer.digest).collect())
        };
        if let Some(known) = known {
            return Ok(known);
        }
        let resolving = self.parts.fetcher.resolve(&reference, &platform);
        let manifest = self.parts.unless_stopping(resolving).await?;
        Ok(manifest.layers.into_iter().map(|layer| layer.digest).collect())
    }
}

fn no_device(id: &str) -> AttachError {
    AttachError::NoDevice { id: id.chars().take(64).collect() }
}

/// One blob of `all` bytes of blobs, in its share of the cells that a map may have.
fn blocks(cache: &Cache, blob: &Blob, all: u64) -> api::BlobBlocks {
    let share = u128::from(blob.size_bytes) * api::BLOCK_CELLS as u128 / u128::from(all.max(1));
    let outline = cache.outline(blob, u32::try_from(share).unwrap_or(u32::MAX).max(1));
    let cell = |part: &Part| api::Cell::new(part.present, part.chunks, part.is_filling, part.is_read).to_char();
    api::BlobBlocks {
        digest: blob.digest,
        size_bytes: blob.size_bytes,
        cell_bytes: outline.part_bytes,
        cells: outline.parts.iter().map(cell).collect(),
    }
}

/// What there is to say of an attachment.
pub(super) fn device(record: &Record, state: &State, parts: &Parts) -> api::Device {
    let (live, cache) = (state.live(), &parts.cache);
    let mounted = live.and_then(|live| live.mounted.lock().clone());
    let blobs = presence(record.shown_layers(), live.map(Arc::as_ref), parts);
    api::Device {
        id: record.id.to_string(),
        state: state.name(),
        state_reason: match state {
            State::Failed(reason) => Some(reason.clone()),
            State::Attaching | State::Attached(_) | State::Detaching(_) => None,
        },
        reference: record.reference.to_string(),
        digest: record.manifest,
        platform: record.platform.to_string(),
        image: record.seen.image.clone(),
        owner: match record.owner {
            Owner::Operator => api::Owner::Operator,
            Owner::Snapshotter => api::Owner::Snapshotter,
        },
        layers: api::Layers { first: record.shown().first, count: record.shown().count, of: record.layers.len() },
        size_bytes: record.seen.size_bytes,
        transport: transport(live.map(|live| live.choice.transport), record.transport),
        transport_reason: live.map_or_else(|| "it has no device now".to_owned(), |live| live.choice.reason.clone()),
        device_path: live.map(|live| live.device.path().to_path_buf()),
        mount_point: mounted.as_ref().map(|mounted| mounted.dir().to_path_buf()),
        file_system: record.seen.file_system.clone(),
        verified_by: record.seen.verified_by.clone(),
        policy: policy::effective(
            policy::defaults(parts.policy, live.is_some_and(|live| live.is_streamed)),
            record.policy,
        ),
        outlives_agent: live.is_some_and(|live| live.outlives_agent(parts)),
        attached_at: record.attached_at,
        reading: live.map(|live| live.start.reading()),
        stats: live.map_or_else(api::Stats::default, |live| stats(&live.device.stats(), fetched(live, cache))),
        latency: live.map_or_else(Vec::new, |live| explain::latency(&live.device.latencies())),
        blobs,
    }
}

/// The transport in use; for an attachment without a device the one that it would have, as far as was asked.
const fn transport(used: Option<Transport>, wanted: Wanted) -> api::Transport {
    match (used, wanted) {
        (Some(Transport::Ublk), _) | (None, Wanted::Only(Transport::Ublk) | Wanted::Auto) => api::Transport::Ublk,
        (Some(Transport::Fuse), _) | (None, Wanted::Only(Transport::Fuse)) => api::Transport::Fuse,
    }
}

fn stats(stats: &penstock_device::Stats, bytes_fetched: u64) -> api::Stats {
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    api::Stats {
        requests: stats.requests,
        bytes_served: stats.served_bytes,
        hits: stats.hits,
        misses: stats.misses,
        errors: stats.errors,
        in_flight: stats.in_flight,
        bytes_fetched,
        waited_ms: ms(stats.waited),
        stalled_ms: ms(stats.stalled),
    }
}

/// The distinct blobs as which the cache keeps what is shown, in the order of the layers: of ordinary and TurboOCI layers their archives, once they are open.
pub(super) fn blobs(layers: &[LayerRecord], live: Option<&Live>) -> Vec<Blob> {
    use penstock_image::Kind;
    let is_decoded = |kind| matches!(kind, Kind::Layer { .. } | Kind::Layers { .. } | Kind::TurboOci { .. });
    let decoded = live.filter(|live| is_decoded(live.image.kind()));
    let all =
        decoded.map_or_else(|| layers.iter().map(LayerRecord::blob).collect(), |live| live.image.blobs().to_vec());
    let mut distinct: Vec<Blob> = Vec::with_capacity(all.len());
    for blob in all {
        if !distinct.iter().any(|known| known.digest == blob.digest) {
            distinct.push(blob);
        }
    }
    distinct
}

fn presence(layers: &[LayerRecord], live: Option<&Live>, parts: &Parts) -> Vec<api::Presence> {
    let present = |blob: &Blob| parts.cache.usage_of(blob).map_or(0, |usage| usage.present_bytes);
    let verified = |blob: &Blob| {
        live.map_or_else(String::new, |live| proof::of_blob(&live.image, &blob.digest, &parts.indexes.verified))
    };
    let presence = |blob: &Blob| api::Presence::new(blob.digest, blob.size_bytes, present(blob), verified(blob));
    blobs(layers, live).iter().map(presence).collect()
}

/// Bytes fetched for what a device shows; decoded ones, of an ordinary layer.
pub(super) fn fetched(live: &Live, cache: &Cache) -> u64 {
    live.image.blobs().iter().filter_map(|blob| Some(cache.usage_of(blob)?.fetched_bytes)).sum()
}
