//! The source that decodes: archives of layers as blobs of their own, over a source of the layers in the registry. What decodes alone is decoded when it is
//! asked for; what decodes only from its beginning, by a [`pass`].

use std::{
    collections::{HashMap, hash_map},
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use parking_lot::{Mutex, RwLock};
use penstock_blob::{Blob, BlobSource, ByteRange, Digest, Giver, Located, Purpose, ReadError, ReadFuture};
use prometheus_client::registry::Registry;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, broadcast},
    task::JoinSet,
    time::Instant,
};

use crate::{
    frame::{self, FrameError},
    index::read::{Index, IndexError, Placed},
};

mod metrics;
mod pass;
mod reads;
mod recent;
mod waiting;

use metrics::Metrics;
use pass::{PASSES, Pass};
use recent::Recent;
use waiting::Waiting;

/// Times that a frame is read anew when it is wrong: more than a node has mirrors of one registry. The deadline may end it sooner.
const TRIES: u32 = 8;
/// Decoded bytes of the frames that one read works on at once: a fill of the cache and the rest of its frames fit.
const BATCH_BYTES: u64 = 16 << 20;
/// Most frames that one read works on at once: those of other formats may be as small as a file.
const BATCH_FRAMES: usize = 4096;
/// Compressed bytes between two frames that are read with them rather than passed by: what a request costs in time.
const MAX_GAP_BYTES: u64 = 64 << 10;
/// Most compressed bytes read at once: what one frame may have.
const MAX_RUN_BYTES: u64 = frame::MAX_PACKED_BYTES;
/// Events kept for a receiver that is slow; older ones are counted as lost.
const EVENTS: usize = 64;

/// How an [`Unpacked`] is set up.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// No further try is begun after this time when bytes are wrong.
    pub deadline: Duration,
    /// Frames decoded at once, at least 1: as many as there are CPUs to spare. Half of them at most, and at least one, for reads ahead.
    pub decodes: usize,
    /// Decoded bytes kept in memory: frames end inside chunks, and who reads on needs the last one again. Two frames for each
    /// reader that is to find it.
    pub recent_bytes: usize,
}

/// Something worth telling an operator, once per change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Event {
    /// Bytes of a layer are not what its index says. Said again only after right ones came.
    #[error(
        "bytes {range} of layer {layer} do not decode to what its index says ({reason}); they were thrown away and are read from elsewhere"
    )]
    WrongBytes {
        /// The compressed layer.
        layer: Digest,
        /// The bytes of it that are wrong.
        range: ByteRange,
        /// What is wrong with them.
        reason: String,
    },
}

/// A source of archives: reads of a registered one are answered by decoding, all else passes through.
#[derive(Debug)]
pub struct Unpacked {
    tools: Tools,
    /// By diff ID. Layers that are compressed differently may have the same archive: the first one is read.
    layers: RwLock<HashMap<Digest, Vec<Arc<Layer>>>>,
    /// Passes that may go on now.
    passes: Arc<Semaphore>,
    /// Passes: they outlive the readers that began them, and end with this.
    tasks: Mutex<JoinSet<()>>,
}

/// What decoding needs, whoever does it.
#[derive(Debug, Clone)]
struct Tools {
    below: Arc<dyn BlobSource>,
    config: Config,
    decodes: Arc<Semaphore>,
    ahead: Arc<Semaphore>,
    recent: Arc<Mutex<Recent>>,
    metrics: Metrics,
    events: broadcast::Sender<Event>,
}

/// A layer that can be read.
#[derive(Debug)]
struct Layer {
    index: Index,
    /// Wrong bytes came, and no right ones since.
    doubted: AtomicBool,
    /// Who waits for pieces of its runs.
    waiting: Mutex<Waiting>,
    /// Told to its pass when somebody has begun to wait, or the layer goes.
    woken: Notify,
}

impl Unpacked {
    /// A source over `below` without any layer yet, which counts under `metrics`'s prefix.
    pub fn new(below: Arc<dyn BlobSource>, config: Config, metrics: &mut Registry) -> Arc<Self> {
        let (events, _) = broadcast::channel(EVENTS);
        let decodes = config.decodes.clamp(1, Semaphore::MAX_PERMITS);
        let tools = Tools {
            below,
            config,
            decodes: Arc::new(Semaphore::new(decodes)),
            ahead: Arc::new(Semaphore::new((decodes / 2).max(1))),
            recent: Arc::new(Mutex::new(Recent::new(config.recent_bytes))),
            metrics: Metrics::new(metrics),
            events,
        };
        let passes = Arc::new(Semaphore::new(PASSES));
        Arc::new(Self { tools, layers: RwLock::default(), passes, tasks: Mutex::default() })
    }

    /// What happens from now on.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.tools.events.subscribe()
    }

    /// Decoded bytes that are kept: at most [`Config::recent_bytes`].
    #[must_use]
    pub fn recent_bytes(&self) -> u64 {
        self.tools.recent.lock().bytes() as u64
    }

    /// From now on the archive of this layer, [`crate::Layer::unpacked`], can be read.
    pub fn register(self: &Arc<Self>, index: Index) -> Registered {
        let layer = Arc::new(Layer { index, doubted: false.into(), waiting: Mutex::default(), woken: Notify::new() });
        self.layers.write().entry(layer.blob().digest).or_default().push(layer.clone());
        self.tools.metrics.layers.inc();
        Registered { unpacked: self.clone(), layer }
    }

    fn layer(&self, blob: &Blob) -> Option<Arc<Layer>> {
        self.layers.read().get(&blob.digest)?.first().cloned()
    }

    /// The bytes of `range` of the archive of `layer`, a batch of frames at a time.
    async fn unpack(&self, layer: &Arc<Layer>, range: ByteRange, purpose: Purpose) -> Result<Bytes, ReadError> {
        layer.blob().check(range)?;
        let span = layer.index.span(range);
        let (mut parts, mut next) = (Vec::new(), span.start);
        while next < span.end {
            let batch = layer.batch(next..span.end);
            next = batch.end;
            let decoded = match layer.index.run(batch.start) {
                Some(_) => self.pieces(layer, batch.clone(), purpose).await?,
                None => self.frames(layer, batch.clone(), purpose).await?,
            };
            for (nth, bytes) in batch.zip(decoded) {
                let whole = layer.index.bytes_of(nth);
                let part = whole.and_then(|whole| Some(slice(&bytes, whole, whole.intersection(range)?)));
                parts.extend(part);
            }
        }
        if parts.len() == 1 {
            return Ok(parts.swap_remove(0));
        }
        let mut all = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
        parts.iter().for_each(|part| all.extend_from_slice(part));
        Ok(all.freeze())
    }

    /// The pieces of a run with these numbers, in order, as the pass over the layer comes to them.
    async fn pieces(&self, layer: &Arc<Layer>, span: Range<usize>, purpose: Purpose) -> Result<Vec<Bytes>, ReadError> {
        let digest = layer.blob().digest;
        let waits: Vec<_> = {
            let mut waiting = layer.waiting.lock();
            let find = |nth| match self.tools.recent.lock().find(&digest, nth) {
                Some(bytes) => Ok(bytes),
                None => Err(waiting.add(nth, purpose)),
            };
            let waits: Vec<_> = span.map(find).collect();
            if waits.iter().any(Result::is_err) && !std::mem::replace(&mut waiting.is_running, true) {
                let mut tasks = self.tasks.lock();
                // Ended passes are reaped as new ones come. A panic was logged by its hook, and told to those who waited.
                while tasks.try_join_next().is_some() {}
                tasks.spawn(Pass::new(self.tools.clone(), layer.clone()).run(self.passes.clone()));
            }
            waits
        };
        self.tools.metrics.recent_frames.inc_by(waits.iter().flatten().count() as u64);
        layer.woken.notify_one();
        let mut pieces = Vec::with_capacity(waits.len());
        for wait in waits {
            pieces.push(match wait {
                Ok(bytes) => bytes,
                Err(answer) => answer.await.unwrap_or(Err(ReadError::Stopping))?,
            });
        }
        Ok(pieces)
    }

    /// The decoded frames with these numbers, in order. What is wrong is rejected and read again.
    async fn frames(&self, layer: &Arc<Layer>, span: Range<usize>, purpose: Purpose) -> Result<Vec<Bytes>, ReadError> {
        let digest = layer.blob().digest;
        let mut found: Vec<Option<Bytes>> =
            span.clone().map(|nth| self.tools.recent.lock().find(&digest, nth)).collect();
        self.tools.metrics.recent_frames.inc_by(found.iter().flatten().count() as u64);
        let started = Instant::now();
        let mut last = None;
        for _ in 0..TRIES {
            let Some(missing) = hull(&found) else { return Ok(found.into_iter().flatten().collect()) };
            if last.is_some() && started.elapsed() >= self.tools.config.deadline {
                break;
            }
            let numbers = span.start + missing.start..span.start + missing.end;
            last = self.attempt(layer, numbers, (&mut found[missing], purpose)).await?;
            match &last {
                Some((range, error)) => self.tools.doubt(layer, *range, error),
                None => layer.is_right(),
            }
        }
        match last {
            Some((range, error)) => Err(wrong_bytes(layer, range, &error)),
            None => Ok(found.into_iter().flatten().collect()),
        }
    }

    /// Reads and decodes these frames, except those that are `found` already. Answers what was wrong last, with its compressed bytes.
    async fn attempt(
        &self,
        layer: &Arc<Layer>,
        numbers: Range<usize>,
        (found, purpose): (&mut [Option<Bytes>], Purpose),
    ) -> Result<Option<(ByteRange, FrameError)>, ReadError> {
        let (first, of) = (numbers.start, layer.clone());
        let placed = blocking(move || of.index.frames(numbers)).await?;
        let placed = placed.map_err(|error| storage(layer, &error))?;
        let runs = runs(placed.iter().map(|placed| placed.frame.packed));
        let reads = runs.iter().map(|run| self.tools.below.read(layer.packed(), run.range, purpose));
        let read = futures_util::future::try_join_all(reads).await?;
        let of_run = runs.iter().zip(&read).flat_map(|(run, bytes)| std::iter::repeat_n((run.range, bytes), run.count));
        let work = placed.iter().zip(of_run).enumerate();
        let work = work.filter(|(nth, _)| found.get(*nth).is_some_and(Option::is_none));
        let work = work.map(|(nth, (placed, (whole, bytes)))| {
            let packed = slice(bytes, whole, placed.frame.packed);
            let decoded = self.decode(layer, (first + nth, *placed), packed, purpose);
            async move { (nth, placed.frame.packed, decoded.await) }
        });
        let mut wrong = None;
        for (nth, range, decoded) in futures_util::future::join_all(work).await {
            match decoded? {
                Ok(bytes) => found[nth] = Some(bytes),
                Err(error) => {
                    self.tools.metrics.wrong_frames.inc();
                    self.tools.below.reject(&layer.packed(), range);
                    wrong = Some((range, error));
                }
            }
        }
        Ok(wrong)
    }

    /// Decodes one frame on the blocking pool, when it is its turn.
    async fn decode(
        &self,
        layer: &Arc<Layer>,
        (number, placed): (usize, Placed),
        packed: Bytes,
        purpose: Purpose,
    ) -> Result<Result<Bytes, FrameError>, ReadError> {
        let turn = self.tools.turn(purpose).await;
        let (of, recent, metrics) = (layer.clone(), self.tools.recent.clone(), self.tools.metrics.clone());
        let decoded = blocking(move || {
            let _turn = turn;
            let digest = of.blob().digest;
            if let Some(bytes) = recent.lock().find(&digest, number) {
                metrics.recent_frames.inc();
                return Ok(Ok(bytes));
            }
            let window = of.index.window(&placed)?;
            let decoded = frame::decode(of.index.layer().coding, &placed.frame, &packed, &window).map(Bytes::from);
            if let Ok(bytes) = &decoded {
                metrics.decoded_bytes.inc_by(bytes.len() as u64);
                recent.lock().keep(digest, number, bytes.clone());
            }
            Ok(decoded)
        });
        decoded.await?.map_err(|error| storage(layer, &error))
    }
}

impl Tools {
    /// Waits for leave to decode, which goes with the answer.
    async fn turn(&self, purpose: Purpose) -> (Option<OwnedSemaphorePermit>, Option<OwnedSemaphorePermit>) {
        // Never closed.
        let ahead = match purpose {
            Purpose::Ahead => self.ahead.clone().acquire_owned().await.ok(),
            Purpose::Demand => None,
        };
        (ahead, self.decodes.clone().acquire_owned().await.ok())
    }

    fn doubt(&self, layer: &Layer, range: ByteRange, error: &FrameError) {
        if !layer.doubted.swap(true, Ordering::Relaxed) {
            let (layer, reason) = (layer.packed().digest, error.to_string());
            // Nobody may be listening.
            let _ = self.events.send(Event::WrongBytes { layer, range, reason });
        }
    }
}

impl Layer {
    const fn blob(&self) -> Blob {
        self.index.layer().unpacked
    }

    const fn packed(&self) -> Blob {
        self.index.layer().packed
    }

    fn is_right(&self) {
        self.doubted.store(false, Ordering::Relaxed);
    }

    /// The first frames of `span`, at most [`BATCH_FRAMES`], that together have at most [`BATCH_BYTES`], and at least one. All of them are of one run,
    /// or none is of any.
    fn batch(&self, span: Range<usize>) -> Range<usize> {
        let mut bytes = 0;
        let run = self.index.run(span.start);
        let fits = |nth: &usize| {
            bytes += self.index.bytes_of(*nth).map_or(0, ByteRange::len);
            bytes <= BATCH_BYTES && self.index.run(*nth) == run
        };
        let count = span.clone().take(BATCH_FRAMES).take_while(fits).count().max(1);
        span.start..span.end.min(span.start + count)
    }
}

/// Frames whose compressed bytes are read at once.
#[derive(Debug, PartialEq, Eq)]
struct Run {
    range: ByteRange,
    /// How many frames, from the one after the last run's on.
    count: usize,
}

/// Compressed bytes of frames, in the order of the frames, put together as far as they lie together.
fn runs(packed: impl Iterator<Item = ByteRange>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for range in packed {
        if let Some(last) = runs.last_mut() {
            let cover = last.range.cover(range);
            let is_near = range.start() >= last.range.start() && range.start() <= last.range.end() + MAX_GAP_BYTES;
            if is_near && cover.len() <= MAX_RUN_BYTES {
                (last.range, last.count) = (cover, last.count + 1);
                continue;
            }
        }
        runs.push(Run { range, count: 1 });
    }
    runs
}

/// From the first to the last that is missing.
fn hull(found: &[Option<Bytes>]) -> Option<Range<usize>> {
    let first = found.iter().position(Option::is_none)?;
    let last = found.iter().rposition(Option::is_none)?;
    Some(first..last + 1)
}

/// The bytes `part` of `bytes`, which are the bytes `whole`.
fn slice(bytes: &Bytes, whole: ByteRange, part: ByteRange) -> Bytes {
    let index = |byte: u64| usize::try_from(byte - whole.start()).unwrap_or(usize::MAX).min(bytes.len());
    bytes.slice(index(part.start())..index(part.end()))
}

fn wrong_bytes(layer: &Layer, range: ByteRange, error: &FrameError) -> ReadError {
    ReadError::WrongBytes {
        blob: layer.packed().digest,
        range,
        endpoint: "every endpoint asked".to_owned(),
        reason: format!("a frame of the layer is wrong: {error}"),
    }
}

fn storage(layer: &Layer, error: &IndexError) -> ReadError {
    ReadError::Storage { blob: layer.blob().digest, reason: error.to_string() }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ReadError> {
    // An error: the runtime is stopping.
    tokio::task::spawn_blocking(work).await.map_err(|_| ReadError::Stopping)
}

impl BlobSource for Unpacked {
    /// Decoded bytes are not kept here: of an archive nothing is located.
    fn locate(&self, blob: &Blob, range: ByteRange) -> Option<Located> {
        if self.layer(blob).is_some() { None } else { self.tools.below.locate(blob, range) }
    }

    fn read(&self, blob: Blob, range: ByteRange, purpose: Purpose) -> ReadFuture<'_> {
        Box::pin(async move {
            blob.check(range)?;
            match self.layer(&blob) {
                Some(layer) => self.unpack(&layer, range, purpose).await,
                None => self.tools.below.read(blob, range, purpose).await,
            }
        })
    }

    /// What was decoded is forgotten. The source below is not told: the bytes had the digest that the index says.
    fn reject(&self, blob: &Blob, range: ByteRange) {
        match self.layer(blob) {
            Some(layer) => self.tools.recent.lock().forget(&blob.digest, &layer.index.span(range)),
            None => self.tools.below.reject(blob, range),
        }
    }

    fn widen(&self, blob: &Blob, range: ByteRange) -> ByteRange {
        match self.layer(blob) {
            Some(layer) if blob.check(range).is_ok() && layer.blob().check(range).is_ok() => layer.index.widen(range),
            Some(_) => range,
            None => self.tools.below.widen(blob, range),
        }
    }

    /// Where the frames of an archive lie is in a file; who gave anything of its layer gave those, too.
    fn giver(&self, blob: &Blob, range: ByteRange) -> Option<Giver> {
        match self.layer(blob) {
            Some(layer) => self.tools.below.giver(&layer.packed(), layer.packed().all()?),
            None => self.tools.below.giver(blob, range),
        }
    }
}

/// A layer that can be read until this is dropped.
#[derive(Debug)]
#[must_use = "the layer cannot be read any more once it is dropped"]
pub struct Registered {
    unpacked: Arc<Unpacked>,
    layer: Arc<Layer>,
}

impl Registered {
    /// The layer's index.
    #[must_use]
    pub fn index(&self) -> &Index {
        &self.layer.index
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let digest = self.layer.blob().digest;
        let mut layers = self.unpacked.layers.write();
        if let hash_map::Entry::Occupied(mut same) = layers.entry(digest) {
            same.get_mut().retain(|layer| !Arc::ptr_eq(layer, &self.layer));
            if same.get().is_empty() {
                same.remove();
            }
        }
        drop(layers);
        self.layer.waiting.lock().is_gone = true;
        self.layer.woken.notify_one();
        self.unpacked.tools.metrics.layers.dec();
    }
}

#[cfg(test)]
mod tests;
