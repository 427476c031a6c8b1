//! The indexes of a stack, read in pieces and merged into its map.

use std::path::Path;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use penstock_blob::{ByteRange, Digest};
use tokio::sync::mpsc;

use crate::{
    image::{LAYERS_AT_ONCE, OpenError, layer_error},
    layer::{BATCHES, Batch, LayerError, Opened, Site, blocking},
    lsmt::{ENTRY_BYTES, Entry, IndexCheck},
    map::{LayerRecord, MAX_EXTENTS, MapWriter},
    merge::{Merge, Step},
    pages::TableError,
};

/// Bytes of indexes held for all layers while they are merged (more only when 64 KiB frames make single pieces larger).
const ALL_PIECES_BYTES: u64 = 4 << 20;
/// Fewest and most bytes of an index read at once. A multiple of a sector, so of an entry.
const PIECE_BYTES: std::ops::RangeInclusive<u64> = (16 << 10)..=(256 << 10);
/// Extents sent to the writer at once.
const BATCH: usize = 4096;

/// One layer's index, read from its start.
#[derive(Debug)]
struct Index<'a> {
    layer: &'a mut Opened,
    check: IndexCheck,
    at: u64,
    end: u64,
    piece_bytes: u64,
}

impl<'a> Index<'a> {
    fn new(layer: &'a mut Opened, piece_bytes: u64) -> Self {
        let trailer = layer.trailer;
        let end = trailer.index_offset + trailer.index_bytes();
        Self { check: IndexCheck::new(&trailer), at: trailer.index_offset, end, piece_bytes, layer }
    }

    /// The next entries, `None` at the end. A piece that fails its check is fetched anew once.
    async fn next(&mut self) -> Result<Option<Vec<Entry>>, LayerError> {
        let Ok(range) = ByteRange::new(self.at, self.end.min(self.at + self.piece_bytes)) else { return Ok(None) };
        let bytes = match self.layer.body.read(&self.layer.window, range).await {
            Err(error) if error.is_content() => {
                self.layer.window.reject();
                self.layer.body.read(&self.layer.window, range).await?
            }
            result => result?,
        };
        self.at = range.end();
        let mut entries = Vec::with_capacity(bytes.len() / ENTRY_BYTES);
        for entry in bytes.as_chunks().0 {
            entries.extend(self.check.admit(entry)?);
        }
        Ok(Some(entries))
    }
}

/// Merges the indexes of opened layers (bottom first) into a map file.
pub(crate) async fn build_map(site: &Site, layers: &mut [Opened], device_bytes: u64) -> Result<(), OpenError> {
    let records: Vec<LayerRecord> = layers.iter().map(|layer| *layer.body.record()).collect();
    let piece_bytes = ALL_PIECES_BYTES / layers.len().max(1) as u64;
    let piece_bytes = piece_bytes.clamp(*PIECE_BYTES.start(), *PIECE_BYTES.end()).next_multiple_of(4096);
    let indexes = layers.iter_mut().map(|layer| Index::new(layer, piece_bytes)).collect();
    let (batches, received) = mpsc::channel(BATCHES);
    let maps_dir = site.maps_dir.clone();
    let writing = blocking(&site.maps_dir, move || write_map(&maps_dir, &records, device_bytes, received));
    let (sent, written) = futures_util::future::join(merge(indexes, batches), writing).await;
    sent?;
    written?;
    Ok(())
}

async fn merge(mut indexes: Vec<Index<'_>>, batches: mpsc::Sender<Batch<Entry>>) -> Result<(), OpenError> {
    let failed = |blob: Digest| move |error| layer_error(blob, error);
    let mut merge = Merge::new(u8::try_from(indexes.len()).unwrap_or(u8::MAX));
    // Collected: a closure held across the await would keep the future from being `Send` for the compiler.
    let firsts: Vec<_> = indexes
        .iter_mut()
        .map(|index| async {
            let blob = index.layer.body.record().blob.digest;
            index.next().await.map_err(failed(blob))
        })
        .collect();
    let firsts: Vec<_> = stream::iter(firsts).buffered(LAYERS_AT_ONCE).try_collect().await?;
    for (layer, entries) in firsts.into_iter().enumerate() {
        match entries {
            Some(entries) => merge.feed(layer, entries),
            None => merge.end(layer),
        }
    }
    let (mut batch, mut count) = (Vec::with_capacity(BATCH), 0_u64);
    loop {
        match merge.step() {
            Step::Need(layer) => {
                let blob = indexes[layer].layer.body.record().blob.digest;
                match indexes[layer].next().await.map_err(failed(blob))? {
                    Some(entries) => merge.feed(layer, entries),
                    None => merge.end(layer),
                }
            }
            Step::Extent(extent) => {
                batch.push(extent);
                count += 1;
                if count > MAX_EXTENTS {
                    return Err(OpenError::TooManyExtents);
                }
            }
            Step::Done => break,
        }
        if batch.len() == BATCH && batches.send(Some(std::mem::take(&mut batch))).await.is_err() {
            // The writer is gone: its own error says why.
            return Ok(());
        }
    }
    // As above.
    let _ = batches.send(Some(batch)).await;
    let _ = batches.send(None).await;
    Ok(())
}

/// Writes the map from the extents as they come. Nothing appears unless they came to their end.
fn write_map(
    maps_dir: &Path,
    layers: &[LayerRecord],
    device_bytes: u64,
    mut batches: mpsc::Receiver<Batch<Entry>>,
) -> Result<(), TableError> {
    let mut writer = MapWriter::new(maps_dir, layers)?;
    while let Some(batch) = batches.blocking_recv() {
        let Some(extents) = batch else { return writer.finish(device_bytes) };
        extents.into_iter().try_for_each(|extent| writer.push(extent))?;
    }
    Ok(())
}
