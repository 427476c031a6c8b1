//! One start of one image: what it needs is taken down for a while; what it will need is fetched ahead.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use parking_lot::Mutex;
use penstock_api as api;
use penstock_blob::{Blob, BlobSource, ByteRange, Purpose, ReadError};
use penstock_cache::Cache;
use penstock_image::{Image, recording::Recording};
use prometheus_client::metrics::counter::Counter;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{
    Recordings, Wanted,
    choose::{Choice, Facts, choose},
    look::{self, Found},
    recorded::Recorded,
    windows::{self, cut, reads},
};
use crate::{events::Kind, state::record::LayerRecord};

/// Reads ahead at once, for one device: with [`windows::READ_BYTES`] each, the most bytes that one holds; the fetcher's budget is below that.
const READS_AT_ONCE: usize = 8;
/// A blob is completed in steps of this many bytes, so that what is missing of it is looked at late.
const STEP_BYTES: u64 = 64 << 20;
/// How long a start that is not kept is watched, so that an image that is read widely is found out.
const UNRECORDED: Duration = Duration::from_secs(30);
/// Fewer bytes than this say nothing about a link's bandwidth.
const MEASURED_BYTES: u64 = 8 << 20;

/// One start of one image. Dropping it ends what is fetched ahead.
#[derive(Debug)]
pub(crate) struct Start {
    run: Arc<Run>,
    tasks: Mutex<JoinSet<()>>,
}

/// What its tasks share.
#[derive(Debug)]
struct Run {
    recordings: Arc<Recordings>,
    device: String,
    wanted: Wanted,
    recorded: Arc<Recorded>,
    /// Told when it is recorded until asked for, however long that takes.
    held: CancellationToken,
    /// Told when the recording is over.
    over: CancellationToken,
    shown: Mutex<Shown>,
    replayed_bytes: AtomicU64,
    filled_bytes: AtomicU64,
}

/// What is said of it.
#[derive(Debug, Default)]
struct Shown {
    choice: Option<Choice>,
    from: Option<&'static str>,
    recorded_bytes: u64,
    diverged: bool,
}

/// What a start is of.
#[derive(Debug)]
pub(crate) struct Begin {
    pub(crate) device: String,
    pub(crate) wanted: Wanted,
    /// Whether programs were reading from it before: then there is nothing to record, and nothing to be early for.
    pub(crate) goes_on: bool,
}

impl Start {
    /// Stands in front of `below`. A recording is looked for from now on, beside whatever else the attach does.
    pub(crate) fn begin(recordings: &Arc<Recordings>, below: Arc<dyn BlobSource>, begin: Begin) -> Self {
        let Begin { device, wanted, goes_on } = begin;
        let recorded = Recorded::new(below, wanted.manifest);
        let over = CancellationToken::new();
        if goes_on {
            recorded.stop();
            over.cancel();
        }
        let run = Run {
            recordings: Arc::clone(recordings),
            device,
            wanted,
            recorded,
            held: CancellationToken::new(),
            over,
            shown: Mutex::default(),
            replayed_bytes: AtomicU64::new(0),
            filled_bytes: AtomicU64::new(0),
        };
        Self { run: Arc::new(run), tasks: Mutex::default() }
    }

    /// What the device reads.
    pub(crate) fn source(&self) -> Arc<dyn BlobSource> {
        Arc::clone(&self.run.recorded) as _
    }

    /// The device's name.
    pub(super) fn device(&self) -> &str {
        &self.run.device
    }

    /// Looks for the recording of this image from now on, when anything would be done with one.
    pub(crate) fn find(&self) -> Finding {
        let mut finding = JoinSet::new();
        if !self.run.over.is_cancelled() && self.run.recordings.settings.replay {
            let run = Arc::clone(&self.run);
            finding.spawn(async move { run.recordings.find(&run.wanted).await });
        }
        Finding(finding)
    }

    /// The image is open, and its bytes are verified as they are to be: from here on bytes are fetched ahead.
    pub(crate) fn opened(&self, image: &Arc<Image>, finding: Finding) {
        if self.run.over.is_cancelled() {
            return;
        }
        let (run, image) = (Arc::clone(&self.run), Arc::clone(image));
        let mut tasks = self.tasks.lock();
        tasks.spawn(async move { run.ahead(image, finding).await });
        let run = Arc::clone(&self.run);
        tasks.spawn(async move { run.record().await });
    }

    /// Records until [`finish`](Self::finish); false when its start is over.
    pub(super) fn hold(&self) -> bool {
        self.run.held.cancel();
        !self.run.over.is_cancelled()
    }

    /// Ends the recording; what it is.
    pub(super) fn finish(&self) -> Recording {
        self.run.over.cancel();
        self.run.recorded.stop()
    }

    /// The device goes: what was recorded so far is kept, if it is recorded at all, and nothing more is fetched ahead.
    pub(crate) async fn end(&self) {
        let mut tasks = std::mem::take(&mut *self.tasks.lock());
        tasks.shutdown().await;
        if !self.run.over.is_cancelled() && !self.run.held.is_cancelled() {
            self.run.keep().await;
        }
    }

    /// How the image is read.
    pub(crate) fn reading(&self) -> api::Reading {
        let run = &self.run;
        let (needs, shown) = (run.recorded.needs(), run.shown.lock());
        let (mode, why) = match &shown.choice {
            Some(choice) => (choice.mode, choice.why.to_string()),
            None => (api::ReadingMode::Lazy, "it is read on; its start is over".to_owned()),
        };
        api::Reading {
            mode,
            why,
            recording_from: shown.from.map(str::to_owned),
            recording_bytes: shown.recorded_bytes,
            recording_used_bytes: if shown.from.is_some() { needs.recorded_bytes } else { 0 },
            diverged: shown.diverged,
            replayed_bytes: run.replayed_bytes.load(Ordering::Relaxed),
            filled_bytes: run.filled_bytes.load(Ordering::Relaxed),
        }
    }
}

/// A recording that is being looked for. Dropping it ends that.
#[derive(Debug)]
pub(crate) struct Finding(JoinSet<Found>);

impl Run {
    /// Records until the time is up, then keeps what was needed; or until asked for.
    async fn record(&self) {
        self.recorded.first_needed().await;
        let watched = self.recordings.settings.duration.unwrap_or(UNRECORDED);
        tokio::select! {
            () = self.over.cancelled() => return,
            () = self.held.cancelled() => return self.over.cancelled().await,
            () = tokio::time::sleep(watched) => {}
        }
        self.keep().await;
        self.over.cancel();
    }

    async fn keep(&self) {
        let recording = self.recorded.stop();
        if self.shown.lock().from.is_some() {
            self.recordings.metrics.used_bytes.inc_by(self.recorded.needs().recorded_bytes);
        }
        if self.recordings.settings.duration.is_some() && !recording.is_empty() {
            self.recordings.keep(recording, &self.device).await;
        }
    }

    /// Reads along the recording, if there is one, and completes the image if it is read widely.
    async fn ahead(&self, image: Arc<Image>, Finding(mut finding): Finding) {
        let found = match finding.join_next().await {
            Some(Ok(found)) => found,
            // Nothing was looked for, or the agent ends.
            Some(Err(_)) | None => Found::None,
        };
        let recording = self.usable(found, &image).await;
        let mut replayed = recording.is_none();
        loop {
            let choice = choose(&self.facts(&image, recording.is_some()));
            let mode = self.tell(choice);
            if let Some(recording) = recording.as_ref().filter(|_| !std::mem::replace(&mut replayed, true)) {
                self.replay(recording, &image).await;
                continue;
            }
            if mode == api::ReadingMode::Full {
                return self.fill(&image).await;
            }
            tokio::select! {
                () = self.recorded.more_needed() => {}
                () = self.over.cancelled() => return,
            }
        }
    }

    /// The recording in what was found, when it is one of this image.
    async fn usable(&self, found: Found, image: &Arc<Image>) -> Option<Recording> {
        let (recording, from) = match found {
            Found::None => return None,
            Found::Recording(recording, from) => (recording, from),
            Found::Trace(trace) => {
                let (manifest, image) = (self.wanted.manifest, Arc::clone(image));
                let made = tokio::task::spawn_blocking(move || look::from_trace(manifest, &trace, &image)).await;
                match made {
                    Ok(Ok(recording)) => (recording, "trace"),
                    Ok(Err(error)) => {
                        self.recordings.refuse(&self.wanted.reference, &error.to_string());
                        return None;
                    }
                    Err(_stopping) => return None,
                }
            }
        };
        if let Err(error) = self.check(&recording, image) {
            self.recordings.refuse(&self.wanted.reference, &error.to_string());
            return None;
        }
        let shown = |(blob, _): &(Blob, ByteRange)| image.blobs().contains(blob);
        let bytes = recording.ranges().filter(shown).map(|(_, range)| range.len()).sum();
        if bytes == 0 {
            return None;
        }
        {
            let mut shown = self.shown.lock();
            (shown.from, shown.recorded_bytes) = (Some(from), bytes);
        }
        self.recordings.metrics.replay(from);
        self.recorded.expect(recording.clone());
        Some(recording)
    }

    /// Compares a recording with the image. Where layers are decoded, a device knows the blobs of its own layers only: what the recording has of others is
    /// passed over, since reads ahead are of shown blobs alone.
    fn check(&self, recording: &Recording, image: &Image) -> Result<(), penstock_image::recording::RecordingError> {
        let layers: Vec<Blob> = self.wanted.layers.iter().map(LayerRecord::blob).collect();
        let as_stored = image.blobs().iter().all(|blob| layers.contains(blob));
        recording.check(self.wanted.manifest, if as_stored { &layers } else { recording.blobs() })
    }

    fn facts(&self, image: &Image, is_recorded: bool) -> Facts {
        let (needs, cache) = (self.recorded.needs(), &self.recordings.cache);
        let present = |blob: &Blob| cache.blob(&blob.digest).map_or(0, |usage| usage.present_bytes);
        let image_bytes: u64 = image.blobs().iter().map(|blob| blob.size_bytes).sum();
        let present_bytes: u64 = image.blobs().iter().map(present).sum();
        Facts {
            image_bytes,
            absent_bytes: image_bytes.saturating_sub(present_bytes),
            recorded_bytes: is_recorded.then(|| self.shown.lock().recorded_bytes),
            needed_bytes: needs.bytes,
            waited: needs.waited,
            link: self.recordings.link(&self.wanted.reference),
            room_bytes: cache.room_bytes(),
            may_fill: self.recordings.settings.fills > 0,
        }
    }

    /// Takes a choice over, and tells of it when it changes how the image is read.
    fn tell(&self, choice: Choice) -> api::ReadingMode {
        let mode = choice.mode;
        let before = self.shown.lock().choice.replace(choice.clone());
        if before.as_ref().map(|before| before.mode) != Some(mode) && mode != api::ReadingMode::Lazy {
            let text = format!("{} is read by {}: {}", self.device, mode.name(), choice.why);
            self.recordings.events.record(Kind::RecordingChosen, &text, &[("device", &self.device)]);
        }
        mode
    }

    /// Reads what is missing of a recording, in windows of its order, until the program leaves it.
    async fn replay(&self, recording: &Recording, image: &Image) {
        let begun = Instant::now();
        let cache = &self.recordings.cache;
        let ranges = recording.ranges().filter(|(blob, _)| image.blobs().contains(blob));
        // What is missing is looked at window by window, as the reads come to it.
        let missing = windows::windows(ranges).into_iter().flat_map(|window| {
            let absent = |(blob, range): (Blob, ByteRange)| {
                cache.absent(&blob, range).into_iter().map(move |range| (blob, range))
            };
            reads(window.into_iter().flat_map(absent))
        });
        let reading = self.read(Box::new(missing), &self.replayed_bytes, &self.recordings.metrics.replayed_bytes);
        tokio::select! {
            outcome = reading => match outcome {
                Ok(bytes) => self.recordings.measure(bytes, begun.elapsed()),
                Err(error) => tracing::debug!(device = %self.device, %error, "a replay ends early"),
            },
            () = self.recorded.left() => {
                self.shown.lock().diverged = true;
                self.recordings.metrics.diverged.inc();
                let text = format!("{} does something else than its recording says; the rest of that is not fetched", self.device);
                self.recordings.events.record(Kind::RecordingDiverged, &text, &[("device", &self.device)]);
                return;
            }
        }
        let text = format!(
            "{} MiB were fetched for {} ahead of its needs",
            self.replayed_bytes.load(Ordering::Relaxed).div_ceil(1 << 20),
            self.device
        );
        self.recordings.events.record(Kind::RecordingReplayed, &text, &[("device", &self.device)]);
    }

    /// Completes the image, as long as there is room that nothing must be evicted for.
    async fn fill(&self, image: &Image) {
        // An error: the agent ends.
        let Ok(_turn) = self.recordings.fills.acquire().await else { return };
        let begun = Instant::now();
        let cache = &self.recordings.cache;
        let missing = image.blobs().iter().flat_map(|blob| steps(*blob)).flat_map(|(blob, step)| {
            cache.absent(&blob, step).into_iter().flat_map(cut).map(move |range| (blob, range))
        });
        let fits = |range: &ByteRange| cache.room_bytes() >= range.len() * READS_AT_ONCE as u64;
        let missing = missing.take_while(|(_, range)| fits(range));
        match self.read(Box::new(missing), &self.filled_bytes, &self.recordings.metrics.filled_bytes).await {
            Ok(bytes) => {
                self.recordings.measure(bytes, begun.elapsed());
                let text = format!("{} is completed: {} MiB were fetched", self.device, bytes.div_ceil(1 << 20));
                self.recordings.events.record(Kind::RecordingFilled, &text, &[("device", &self.device)]);
            }
            Err(error) => tracing::debug!(device = %self.device, %error, "an image is not completed"),
        }
    }

    /// Reads ranges ahead, some at once, in their order; how many bytes. The first that fails ends it: who needs those bytes asks again, patiently.
    async fn read(
        &self,
        mut ranges: Box<dyn Iterator<Item = (Blob, ByteRange)> + Send + '_>,
        counted: &AtomicU64,
        metric: &Counter,
    ) -> Result<u64, ReadError> {
        let (mut under_way, mut bytes) = (FuturesUnordered::new(), 0);
        loop {
            while under_way.len() < READS_AT_ONCE
                && let Some((blob, range)) = ranges.next()
            {
                under_way.push(read_ahead(Arc::clone(&self.recordings.cache), blob, range));
            }
            let Some(read) = under_way.next().await else { return Ok(bytes) };
            let read_bytes = read?;
            bytes += read_bytes;
            counted.fetch_add(read_bytes, Ordering::Relaxed);
            metric.inc_by(read_bytes);
        }
    }
}

async fn read_ahead(cache: Arc<Cache>, blob: Blob, range: ByteRange) -> Result<u64, ReadError> {
    cache.read(blob, range, Purpose::Ahead).await.map(|_bytes| range.len())
}

/// A blob in parts of [`STEP_BYTES`].
fn steps(blob: Blob) -> impl Iterator<Item = (Blob, ByteRange)> {
    (0..blob.size_bytes.div_ceil(STEP_BYTES)).filter_map(move |nth| {
        let start = nth * STEP_BYTES;
        Some((blob, ByteRange::new(start, start.saturating_add(STEP_BYTES).min(blob.size_bytes)).ok()?))
    })
}

impl Recordings {
    /// Takes over what a long run of reads ahead says about the link: at least that much.
    fn measure(&self, bytes: u64, took: Duration) {
        let nanos = took.as_nanos().max(1);
        let rate = u64::try_from(u128::from(bytes) * 1_000_000_000 / nanos).unwrap_or(u64::MAX);
        if bytes >= MEASURED_BYTES && rate > 0 {
            *self.measured.lock() = Some(rate);
        }
    }
}

/// What is kept of a start and those before it: both, unless they are of programs with little in common; then the newer one.
pub(super) fn together(before: Option<Recording>, now: Recording) -> Recording {
    let Some(before) = before else { return now };
    let recorder = penstock_image::recording::Recorder::from(now.clone());
    let common: u64 = before.ranges().map(|(blob, range)| recorder.covers(&blob, range)).sum();
    let smaller = before.bytes().min(now.bytes());
    if common.saturating_mul(2) >= smaller { before.merge(&now) } else { now }
}
