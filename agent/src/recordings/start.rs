//! One start of one image: what it needs is taken down for a while; what it will need is fetched ahead.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use parking_lot::Mutex;
use penstock_api as api;
use penstock_blob::{Blob, BlobSource, ByteRange, Purpose, ReadError};
use penstock_cache::Cache;
use penstock_image::{Image, recording::Recording};
use prometheus_client::metrics::counter::Counter;
use tokio::{sync::oneshot, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{
    Recordings, Wanted,
    choose::{Choice, Facts, Why, choose},
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
/// How often it is looked at how much was read of an image whose start is over.
const LATER: Duration = Duration::from_secs(60);

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
    /// What the cache had fetched of the image's blobs when the image was opened.
    fetched_before: AtomicU64,
    /// Its archives that decode only from their beginning, once it is opened.
    streamed: OnceLock<Vec<Blob>>,
}

/// What whoever opened an image knows of how it is to be read.
#[derive(Debug, Default)]
pub(crate) struct Hints {
    /// What stands in for a recording: what whoever made the image says that a start reads.
    pub(crate) landmark: Option<(Blob, Vec<ByteRange>)>,
    /// Archives that decode only from their beginning: they are completed at once.
    pub(crate) streamed: Vec<Blob>,
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
            fetched_before: AtomicU64::new(0),
            streamed: OnceLock::new(),
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

    /// The image is being opened: its recording is looked for from now on.
    pub(crate) fn opening(&self) -> Opening {
        let ((readable, when_readable), (opened, when_opened)) = (oneshot::channel(), oneshot::channel());
        if !self.run.over.is_cancelled() {
            let run = Arc::clone(&self.run);
            self.tasks.lock().spawn(async move { run.ahead(when_readable, when_opened).await });
        }
        Opening { readable: Some(readable), opened }
    }

    /// The image is open, and its bytes are verified as they are to be: from here on bytes are fetched ahead.
    pub(crate) fn opened(&self, opening: Opening, image: &Arc<Image>, hints: Hints) {
        let Hints { landmark, streamed } = hints;
        if !streamed.is_empty() {
            // An image is opened once.
            let _first = self.run.streamed.set(streamed);
            let (run, image) = (Arc::clone(&self.run), Arc::clone(image));
            self.tasks.lock().spawn(async move { run.stream(&image).await });
        }
        self.run.fetched_before.store(self.run.fetched_bytes(image), Ordering::Relaxed);
        if self.run.over.is_cancelled() {
            let (run, image) = (Arc::clone(&self.run), Arc::clone(image));
            self.tasks.lock().spawn(async move { run.go_on(&image).await });
            return;
        }
        // An error: the agent ends.
        let _ended = opening.opened.send(Shows { image: Arc::clone(image), landmark });
        let run = Arc::clone(&self.run);
        self.tasks.lock().spawn(async move { run.record().await });
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

    /// Distinct bytes that it needed while it was watched.
    pub(crate) fn needed_bytes(&self) -> u64 {
        self.run.recorded.needs().bytes
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

/// An image that is being opened. Dropping it without [`Start::opened`] ends what is fetched ahead.
#[derive(Debug)]
pub(crate) struct Opening {
    readable: Option<oneshot::Sender<Vec<Blob>>>,
    opened: oneshot::Sender<Shows>,
}

impl Opening {
    /// These blobs are read as the registry has them, and verified as they are to be: from here on a recording of them is read along, so that also
    /// opening finds what it reads on its way.
    pub(crate) fn readable(&mut self, blobs: Vec<Blob>) {
        if let Some(readable) = self.readable.take() {
            // An error: its start is over.
            let _over = readable.send(blobs);
        }
    }
}

/// What a device shows, once that is open.
#[derive(Debug)]
struct Shows {
    image: Arc<Image>,
    landmark: Option<(Blob, Vec<ByteRange>)>,
}

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
        self.recorded.forget();
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
    async fn ahead(&self, readable: oneshot::Receiver<Vec<Blob>>, opened: oneshot::Receiver<Shows>) {
        let mut found = match self.recordings.settings.replay {
            true => self.recordings.find(&self.wanted).await,
            false => Found::None,
        };
        let mut early = None;
        if matches!(found, Found::Recording(..))
            && let Ok(blobs) = readable.await
            && let Found::Recording(recording, from) = std::mem::replace(&mut found, Found::None)
        {
            early = self.take(recording, from, &blobs).map(|recording| (recording, blobs));
        }
        let replaying = async {
            if let Some((recording, blobs)) = &early {
                self.replay(recording, blobs).await;
            }
        };
        let opening = async {
            let shows = opened.await.ok()?;
            if early.is_some() {
                self.tell(choose(&self.facts(&shows.image, true)));
            }
            Some(shows)
        };
        let ((), Some(Shows { image, landmark })) = tokio::join!(replaying, opening) else { return };
        let found = match (found, landmark) {
            (Found::None, Some(landmark)) => look::from_landmark(self.wanted.manifest, landmark),
            (found, _) => found,
        };
        let late = self.usable(found, &image).await;
        if let Some(recording) = &late {
            self.tell(choose(&self.facts(&image, true)));
            self.replay(recording, image.blobs()).await;
        }
        self.watch(&image, early.is_some() || late.is_some()).await;
    }

    /// The start of the image is over, and was another agent's: it is completed if it is read widely from now on.
    async fn go_on(&self, image: &Image) {
        self.much_more_read().await;
        self.watch(image, false).await;
    }

    /// Completes the archives that decode only from their beginning, if that may be done: in order, so that one pass goes over each of them, and with
    /// several ranges in flight. Who waits for bytes goes before it.
    async fn stream(&self, image: &Image) {
        let streamed = self.streamed();
        while self.absent_bytes(streamed) > 0 {
            let choice = choose(&self.facts(image, false));
            if matches!(choice.why, Why::Streamed(_)) {
                self.tell(choice);
                if self.fill(streamed).await {
                    return;
                }
            }
            self.much_more_read().await;
        }
    }

    fn streamed(&self) -> &[Blob] {
        self.streamed.get().map_or(&[], Vec::as_slice)
    }

    /// Looks again and again how the image is best read; completes it when that is all of it, however late.
    async fn watch(&self, image: &Image, is_recorded: bool) {
        loop {
            let Choice { mode, why } = self.tell(choose(&self.facts(image, is_recorded)));
            // What is streamed has a task of its own.
            let is_wide = mode == api::ReadingMode::Full && !matches!(why, Why::Streamed(_));
            if is_wide && self.fill(image.blobs()).await {
                return;
            }
            self.much_more_read().await;
        }
    }

    /// Waits until it may have been read much more widely. Once the start is over, what was fetched before it was asked for is needed without a word: that
    /// is looked at now and then.
    async fn much_more_read(&self) {
        let later = async {
            self.over.cancelled().await;
            tokio::time::sleep(LATER).await;
        };
        tokio::select! {
            () = self.recorded.more_needed() => {}
            () = later => {}
        }
    }

    /// What the cache has fetched of the image's blobs, for whomever.
    fn fetched_bytes(&self, image: &Image) -> u64 {
        let fetched = |blob: &Blob| self.recordings.cache.usage_of(blob).map_or(0, |usage| usage.fetched_bytes);
        image.blobs().iter().map(fetched).sum()
    }

    /// The recording in what was found, when it is one of this image.
    async fn usable(&self, found: Found, image: &Arc<Image>) -> Option<Recording> {
        match found {
            Found::None => None,
            Found::Recording(recording, from) => self.take(recording, from, image.blobs()),
            Found::Trace(trace) => {
                let (manifest, shown) = (self.wanted.manifest, Arc::clone(image));
                let made = tokio::task::spawn_blocking(move || look::from_trace(manifest, &trace, &shown)).await;
                match made {
                    Ok(Ok(recording)) => self.take(recording, "trace", image.blobs()),
                    Ok(Err(error)) => {
                        self.recordings.refuse(&self.wanted.reference, &error.to_string());
                        None
                    }
                    Err(_stopping) => None,
                }
            }
        }
    }

    /// Takes a recording over, from where it was found, when it is one of this image and has something of these blobs, which are what is shown.
    fn take(&self, recording: Recording, from: &'static str, blobs: &[Blob]) -> Option<Recording> {
        if let Err(error) = self.check(&recording, blobs) {
            self.recordings.refuse(&self.wanted.reference, &error.to_string());
            return None;
        }
        let shown = |(blob, _): &(Blob, ByteRange)| blobs.contains(blob);
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

    /// Compares a recording with what is shown. Where layers are decoded, a device knows the blobs of its own layers only: what the recording has of
    /// others is passed over, since reads ahead are of shown blobs alone.
    fn check(&self, recording: &Recording, shown: &[Blob]) -> Result<(), penstock_image::recording::RecordingError> {
        let layers: Vec<Blob> = self.wanted.layers.iter().map(LayerRecord::blob).collect();
        let as_stored = shown.iter().all(|blob| layers.contains(blob));
        recording.check(self.wanted.manifest, if as_stored { &layers } else { recording.blobs() })
    }

    fn facts(&self, image: &Image, is_recorded: bool) -> Facts {
        let needs = self.recorded.needs();
        let (mut needed_bytes, mut waited) = (needs.bytes, needs.waited);
        if self.over.is_cancelled() {
            // Nobody takes down any more what is needed, or waited for: what was fetched since the image was opened stands for it.
            let fetched = self.fetched_bytes(image).saturating_sub(self.fetched_before.load(Ordering::Relaxed));
            (needed_bytes, waited) = (needed_bytes.max(fetched), Duration::ZERO);
        }
        Facts {
            image_bytes: image.blobs().iter().map(|blob| blob.size_bytes).sum(),
            absent_bytes: self.absent_bytes(image.blobs()),
            streamed_bytes: self.absent_bytes(self.streamed()),
            recorded_bytes: is_recorded.then(|| self.shown.lock().recorded_bytes),
            needed_bytes,
            waited,
            link: self.recordings.link(&self.wanted.reference),
            room_bytes: self.recordings.cache.room_bytes(),
            may_fill: self.recordings.settings.fills > 0,
        }
    }

    /// What of blobs is not on this node.
    fn absent_bytes(&self, blobs: &[Blob]) -> u64 {
        let present = |blob: &Blob| self.recordings.cache.usage_of(blob).map_or(0, |usage| usage.present_bytes);
        blobs.iter().map(|blob| blob.size_bytes.saturating_sub(present(blob))).sum()
    }

    /// Takes a choice over, and tells of it when it changes how the image is read.
    fn tell(&self, choice: Choice) -> Choice {
        let mode = choice.mode;
        let before = self.shown.lock().choice.replace(choice.clone());
        if before.as_ref().map(|before| before.mode) != Some(mode) && mode != api::ReadingMode::Lazy {
            let text = format!("{} is read by {}: {}", self.device, mode.name(), choice.why);
            self.recordings.events.record(Kind::RecordingChosen, &text, &[("device", &self.device)]);
        }
        choice
    }

    /// Reads what is missing of a recording, in windows of its order, until the program leaves it.
    async fn replay(&self, recording: &Recording, blobs: &[Blob]) {
        let cache = &self.recordings.cache;
        let _followed: Vec<_> = blobs.iter().filter_map(|blob| cache.follow(blob)).collect();
        let ranges = recording.ranges().filter(|(blob, _)| blobs.contains(blob));
        // What is missing is looked at window by window, as the reads come to it.
        let missing = windows::windows(ranges).into_iter().flat_map(|window| {
            let absent = |(blob, range): (Blob, ByteRange)| {
                cache.absent(&blob, range).into_iter().map(move |range| (blob, range))
            };
            reads(window.into_iter().flat_map(absent))
        });
        let reading = self.read(Box::new(missing), &self.replayed_bytes, &self.recordings.metrics.replayed_bytes);
        tokio::select! {
            outcome = reading => if let Err(error) = outcome {
                tracing::debug!(device = %self.device, %error, "a replay ends early");
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

    /// Completes blobs of the image, as long as there is room that nothing must be evicted for. False when bytes were not to be had: another time they may be.
    async fn fill(&self, blobs: &[Blob]) -> bool {
        // An error: the agent ends.
        let Ok(_turn) = self.recordings.fills.acquire().await else { return true };
        let (mut bytes, mut before, mut left) = (0, u64::MAX, self.absent_bytes(blobs));
        // What could not be kept when it came, because the disk was slower, is asked for again, as long as that brings something.
        while (1..before).contains(&left) {
            before = left;
            match self.read(self.missing(blobs), &self.filled_bytes, &self.recordings.metrics.filled_bytes).await {
                Ok(read) => bytes += read,
                Err(error) => {
                    tracing::debug!(device = %self.device, %error, "an image is not completed");
                    return false;
                }
            }
            left = self.absent_bytes(blobs);
        }
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let text = match left {
            0 => format!("{} is completed: {} MiB were fetched", self.device, mib(bytes)),
            _ => format!("{} lacks {} MiB that found no room; {} MiB were fetched", self.device, mib(left), mib(bytes)),
        };
        self.recordings.events.record(Kind::RecordingFilled, &text, &[("device", &self.device)]);
        true
    }

    /// What is missing of blobs, looked at as the reads come to it, while there is room.
    fn missing<'a>(&'a self, blobs: &'a [Blob]) -> Box<dyn Iterator<Item = (Blob, ByteRange)> + Send + 'a> {
        let cache = &self.recordings.cache;
        let missing = blobs.iter().flat_map(|blob| steps(*blob)).flat_map(|(blob, step)| {
            cache.absent(&blob, step).into_iter().flat_map(cut).map(move |range| (blob, range))
        });
        let fits = |range: &ByteRange| cache.room_bytes() >= range.len() * READS_AT_ONCE as u64;
        Box::new(missing.take_while(move |(_, range)| fits(range)))
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

/// What is kept of a start and those before it: both, unless they are of programs with little in common; then the newer one.
pub(super) fn together(before: Option<Recording>, now: Recording) -> Recording {
    let Some(before) = before else { return now };
    let recorder = penstock_image::recording::Recorder::from(now.clone());
    let common: u64 = before.ranges().map(|(blob, range)| recorder.covers(&blob, range)).sum();
    let smaller = before.bytes().min(now.bytes());
    if common.saturating_mul(2) >= smaller { before.merge(&now) } else { now }
}
