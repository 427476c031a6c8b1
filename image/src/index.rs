//! The indexes of a stack, read in pieces and merged into its map, which can be looked up as far as it has grown.

use std::{
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use penstock_blob::{ByteRange, Digest};
use tokio::sync::mpsc;

use crate::{
    filling::{storage, wrong},
    growing::Growing,
    image::{OpenError, layer_error},
    layer::{LayerError, Opened, blocking},
    lsmt::{ENTRY_BYTES, Entry, IndexCheck},
    map::{LayerRecord, MAX_EXTENTS, MapWriter},
    merge::{Merge, Step},
    pages::TableError,
};

/// Bytes of indexes held for all layers while they are merged (more only when 64 KiB frames make single pieces larger).
const ALL_PIECES_BYTES: u64 = 1 << 20;
/// Fewest and most bytes of an index read at once. A multiple of a sector, so of an entry.
const PIECE_BYTES: std::ops::RangeInclusive<u64> = (16 << 10)..=(256 << 10);
/// Most pieces of one index on their way at once.
const MOST_READS: u64 = 4;
/// Extents sent to the writer at once.
const BATCH: usize = 4096;
/// Batches on their way to the thread that writes the map.
const BATCHES: usize = 4;
/// First pieces asked for at once: all but the tallest stacks in one round.
const LAYERS_AT_ONCE: usize = 64;

/// The pieces of an index, in order.
type Pieces = Pin<Box<dyn Stream<Item = Result<(ByteRange, Bytes), LayerError>> + Send>>;

/// One layer's index, read from its start.
struct Index {
    layer: Opened,
    /// The number of the layer's own file in the map; that of its archive is the next one.
    file: u8,
    check: IndexCheck,
    growing: Arc<Growing>,
    at: u64,
    end: u64,
    /// Bytes of a piece, and how many are asked for at once.
    plan: (u64, usize),
    pieces: Pieces,
    /// A piece was rejected already.
    again: bool,
}

impl Index {
    fn new((layer, file): (Opened, u8), growing: &Arc<Growing>, plan: (u64, usize)) -> Self {
        let trailer = layer.trailer;
        let check =
            if layer.archive.is_some() { IndexCheck::with_archive(&trailer) } else { IndexCheck::new(&trailer) };
        let (at, end) = (trailer.index_offset, trailer.index_offset + trailer.index_bytes());
        let pieces = pieces(&layer, (at, end), plan);
        Self { check, file, growing: Arc::clone(growing), at, end, plan, pieces, layer, again: false }
    }

    fn blob(&self) -> Digest {
        self.layer.body.record().blob.digest
    }

    /// The next entries, `None` at the end. A piece that cannot be had is asked for again, one that fails its check once.
    async fn next(&mut self) -> Result<Option<Vec<Entry>>, LayerError> {
        let bytes = loop {
            match self.pieces.next().await {
                None => return Ok(None),
                Some(Ok((range, bytes))) => {
                    self.at = range.end();
                    break bytes;
                }
                Some(Err(LayerError::Fetch(error))) => self.growing.making.rest(error).await,
                Some(Err(error)) if error.is_content() && !self.again => {
                    self.again = true;
                    self.layer.window.reject();
                }
                // By a frame table that is not checked yet the frame may be another one.
                Some(Err(LayerError::Frame(error))) => {
                    self.growing.making.rest(wrong(self.layer.window.blob(), error.to_string())).await;
                }
                Some(Err(error)) => return Err(error),
            }
            self.pieces = pieces(&self.layer, (self.at, self.end), self.plan);
        };
        let mut entries = Vec::with_capacity(bytes.len() / ENTRY_BYTES);
        for entry in bytes.as_chunks().0 {
            let entry = self.check.admit(entry)?;
            entries.extend(entry.map(|entry| Entry { tag: self.file.saturating_add(entry.tag), ..entry }));
        }
        Ok(Some(entries))
    }
}

fn pieces(layer: &Opened, (start, end): (u64, u64), (piece_bytes, at_once): (u64, usize)) -> Pieces {
    let (body, window) = (Arc::clone(&layer.body), Arc::clone(&layer.window));
    let ranges = (0..).map_while(move |nth: u64| {
        let at = start + nth * piece_bytes;
        ByteRange::new(at, end.min(at.saturating_add(piece_bytes))).ok()
    });
    let reads = ranges.map(move |range| {
        let (body, window) = (Arc::clone(&body), Arc::clone(&window));
        async move { Ok((range, body.read(&window, range).await?)) }
    });
    Box::pin(stream::iter(reads).buffered(at_once))
}

/// Makes the map of opened layers (bottom first), and tells `growing` how far it is.
pub(crate) async fn make_map(maps_dir: PathBuf, layers: Vec<Opened>, growing: Arc<Growing>) {
    while let Err(error) = merge_all(&maps_dir, layers.clone(), &growing).await {
        if let OpenError::Maps(failed) = error {
            let Some(bottom) = layers.first() else { break };
            let told = storage(bottom.window.blob().digest, &failed);
            growing.refuse(OpenError::Maps(failed));
            growing.making.rest(told).await;
            continue;
        }
        tracing::warn!(error = chain(&error), "the indexes of an image make no sense");
        let of =
            |layer: &&Opened| matches!(&error, OpenError::Layer { blob, .. } if *blob == layer.window.blob().digest);
        if let Some(layer) = layers.iter().find(of).or(layers.first()) {
            let told = wrong(layer.window.blob(), chain(&error));
            growing.refuse(error);
            growing.making.fail(told);
        }
        break;
    }
    growing.making.end();
}

/// An error and its causes in a line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

async fn merge_all(maps_dir: &Path, layers: Vec<Opened>, growing: &Arc<Growing>) -> Result<(), OpenError> {
    let records: Vec<LayerRecord> = layers.iter().flat_map(Opened::bodies).map(|body| *body.record()).collect();
    let share = ALL_PIECES_BYTES / layers.len().max(1) as u64;
    let piece_bytes = share.clamp(*PIECE_BYTES.start(), *PIECE_BYTES.end()).next_multiple_of(4096);
    let at_once = usize::try_from((share / piece_bytes).clamp(1, MOST_READS)).unwrap_or(1);
    let files = layers.iter().scan(0, |next: &mut u8, layer| {
        let file = *next;
        // At most 255 bodies: see `Stack::open`.
        *next = layer.bodies().fold(file, |next, _| next.saturating_add(1));
        Some(file)
    });
    let files: Vec<u8> = files.collect();
    let indexes = layers.into_iter().zip(files);
    let indexes = indexes.map(|layer| Index::new(layer, growing, (piece_bytes, at_once))).collect();
    let (batches, received) = mpsc::channel(BATCHES);
    let (dir, shown) = (maps_dir.to_owned(), Arc::clone(growing));
    let writing = blocking(maps_dir, move || write_map(&dir, &records, &shown, received));
    let (sent, written) = futures_util::future::join(merge(indexes, batches), writing).await;
    sent?;
    written?;
    Ok(())
}

/// A batch for the map's writer; `None` says that all were sent.
type Batch = Option<Vec<Entry>>;

async fn merge(mut indexes: Vec<Index>, batches: mpsc::Sender<Batch>) -> Result<(), OpenError> {
    let failed = |blob: Digest| move |error| layer_error(blob, error);
    let mut merge = Merge::new(u8::try_from(indexes.len()).unwrap_or(u8::MAX));
    // Collected: a closure held across the await would keep the future from being `Send` for the compiler.
    let firsts: Vec<_> = indexes
        .iter_mut()
        .map(|index| async {
            let blob = index.blob();
            index.next().await.map_err(failed(blob))
        })
        .collect();
    let firsts: Vec<_> = stream::iter(firsts).buffered(LAYERS_AT_ONCE).collect().await;
    for (layer, entries) in firsts.into_iter().enumerate() {
        match entries? {
            Some(entries) => merge.feed(layer, entries),
            None => merge.end(layer),
        }
    }
    let (mut batch, mut count) = (Vec::with_capacity(BATCH), 0_u64);
    loop {
        match merge.step() {
            Step::Need(layer) => {
                let blob = indexes[layer].blob();
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

/// Writes the map from the extents as they come, and shows how far it is. Nothing gets the map's name unless they came to their end.
fn write_map(
    maps_dir: &Path,
    layers: &[LayerRecord],
    growing: &Growing,
    mut batches: mpsc::Receiver<Batch>,
) -> Result<(), TableError> {
    let mut writer = MapWriter::new(maps_dir, layers)?;
    growing.begin(writer.begun()?);
    while let Some(batch) = batches.blocking_recv() {
        let Some(extents) = batch else {
            let (map, sealed) = writer.finish(growing.device_bytes())?;
            growing.complete(map);
            if let Err(error) = sealed.persist() {
                tracing::warn!(%error, "a map is not kept; it will be made again");
            }
            return Ok(());
        };
        extents.into_iter().try_for_each(|extent| writer.push(extent))?;
        growing.grow(writer.show()?);
    }
    Ok(())
}
