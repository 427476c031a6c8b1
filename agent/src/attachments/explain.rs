//! What is known of an attachment, for its explanation.

use penstock_api as api;

use std::sync::Arc;

use penstock_blob::ByteRange;
use penstock_image::paths;

use super::{AttachError, Attachments, blocking, show::blobs};
use crate::explain::{Facts, explain, under::Here};

impl Attachments {
    /// Explains one attachment that has a device; `snapshots` are containerd's of which it is a part.
    pub(crate) async fn explain(&self, id: &str, snapshots: Vec<String>) -> Result<api::Explanation, AttachError> {
        let (live, record) = self.table.lock().attached(id)?;
        let waits = live.device.waits();
        let ranges: Vec<ByteRange> = waits.ranges.iter().map(|wait| wait.range).collect();
        let (image, source) = (Arc::clone(&live.image), Arc::clone(&self.parts.source));
        // A walk over metadata that are here: it asks no registry.
        let files = blocking("looking for files", move || {
            let size_bytes = image.size_bytes();
            paths::find(&mut Here::new(image, source), size_bytes, &ranges)
        });
        let files = files.await?;
        Ok(explain(Facts {
            id: record.id.to_string(),
            reference: record.reference.to_string(),
            made: live.made,
            requests: live.device.stats().requests,
            waits,
            files,
            needed_bytes: live.start.needed_bytes(),
            recording_from: live.start.reading().recording_from,
            image_bytes: blobs(record.shown_layers(), None).iter().map(|blob| blob.size_bytes).sum(),
            link: self.parts.fetcher.link(record.reference.registry()),
            snapshots,
        }))
    }

    /// How long reads of all devices took.
    pub(crate) fn latency(&self) -> Vec<api::Latency> {
        latency(&self.parts.device_metrics.latencies())
    }
}

/// Latencies as the admin API shows them.
pub(super) fn latency(latencies: &penstock_device::Latencies) -> Vec<api::Latency> {
    let us = |time: std::time::Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let shown = |of: penstock_device::Latency| api::Latency {
        tier: match of.tier {
            penstock_device::Tier::Memory => api::Tier::Memory,
            penstock_device::Tier::Disk => api::Tier::Disk,
            penstock_device::Tier::Mirror => api::Tier::Mirror,
            penstock_device::Tier::Origin => api::Tier::Origin,
            penstock_device::Tier::Other => api::Tier::Other,
        },
        reads: of.reads,
        took_us: us(of.took),
        p50_us: us(of.p50),
        p99_us: us(of.p99),
        p999_us: us(of.p999),
    };
    latencies.by_tier().into_iter().map(shown).collect()
}
