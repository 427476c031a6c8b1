//! Maps of images that nobody attached for long are collected: the next attach makes them again.

use std::{
    collections::HashSet,
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use penstock_blob::Digest;

use super::{Attachments, blocking, to_open};
use crate::state::record::LayerRecord;

/// How long a map stays after it was last opened: an image that is started once a month is still attached without reading its indexes again.
const UNUSED: Duration = Duration::from_secs(30 * 24 * 3600);
/// How often is looked for those that are older.
const LOOK: Duration = Duration::from_secs(24 * 3600);

/// The manifest of an image, and those of its layers that an attachment shows.
type Shown = (Digest, Vec<LayerRecord>);

impl Attachments {
    /// Removes the maps that were not opened for long, but none of an attachment, failed ones included: it must be made again without a registry.
    pub(super) async fn collect_maps(&self) {
        let Some(before) = SystemTime::now().checked_sub(UNUSED) else { return };
        let dir = self.parts.state.maps();
        let (mut kept, shown): (HashSet<PathBuf>, Vec<Shown>) = {
            let table = self.table.lock();
            let records = || table.entries.iter().filter_map(|entry| entry.record.as_ref());
            let tables = records().flat_map(|record| penstock_image::tables(&to_open(record.shown_layers()), &dir));
            let shown = records().map(|record| (record.manifest, record.shown_layers().to_vec()));
            (tables.collect(), shown.collect())
        };
        let layers = Arc::clone(&self.parts.layers);
        let collecting = blocking("collecting maps", move || {
            let of_images =
                || shown.iter().flat_map(|(image, layers)| layers.iter().map(|layer| (layer.blob(), *image)));
            kept.extend(layers.tables(&of_images().collect::<Vec<_>>()));
            kept.extend(shown.iter().flat_map(|(_, shown)| layers.turbo_tables(shown)));
            kept.extend(shown.iter().filter_map(|(image, shown)| layers.merged_table(*image, shown)));
            let named = of_images().map(|(blob, _)| blob.digest).collect();
            Ok::<_, io::Error>(layers.collect(&named, before)? + penstock_image::collect(&dir, &kept, before)?)
        });
        match collecting.await {
            Ok(Ok(0)) => {}
            Ok(Ok(freed_bytes)) => tracing::info!(freed_bytes, "maps that were not used for long are collected"),
            Ok(Err(error)) => tracing::warn!(%error, "old maps cannot be collected"),
            Err(error) => tracing::error!(%error, "collecting maps ended abnormally"),
        }
    }
}

/// Collects once a day, for as long as it is polled.
pub(crate) async fn collect_daily(attachments: Arc<Attachments>) {
    let mut looks = tokio::time::interval_at(tokio::time::Instant::now() + LOOK, LOOK);
    loop {
        looks.tick().await;
        attachments.collect_maps().await;
    }
}
