//! Recordings of what images read while starting: made, kept, found, replayed; and how an image is read at all.
//!
//! For each device there is a [`Start`]. It stands between device and cache as a source that takes down what is needed first, for the first seconds;
//! when the image has a recording it reads along it, ahead of the program; and it completes images that are read widely. None of it delays an
//! attach or a demanded read: everything is fetched with [`Purpose::Ahead`](penstock_blob::Purpose::Ahead), by tasks that end with the device.
//!
//! | module | does |
//! |---|---|
//! | `recorded` | the source: what is needed first, and who waits |
//! | `start` | one start: its window, its replay, its choice |
//! | `windows`, `course`, `choose` | pure: what to read next, whether the program still follows, how to read at all |
//! | `look`, `artifact` | finding a recording on the node, in the image, beside it; publishing one |
//! | `files` | recordings in the state directory |

mod artifact;
mod choose;
mod course;
mod files;
mod look;
mod metrics;
mod recorded;
mod start;
mod windows;

use std::{path::PathBuf, str::FromStr, sync::Arc, time::Duration};

use penstock_api as api;
use penstock_blob::Digest;
use penstock_cache::Cache;
use penstock_fetcher::{Fetcher, Manifest, PushError, Reference};
use penstock_image::recording::Recording;
use tokio::sync::Semaphore;

use crate::events::{Events, Kind};
use choose::{Link, UNMEASURED};
use files::Kept;
pub(crate) use look::Wanted;
pub(crate) use metrics::Metrics;
pub(crate) use start::{Begin, Hints, Opening, Start};

/// Which registries' recordings are used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accept {
    /// Of the registry that the image itself is from, whichever that is.
    All,
    /// Of these.
    Of(Vec<String>),
    /// Of none: no registry is asked.
    None,
}

impl Accept {
    pub(crate) fn takes(&self, registry: &str) -> bool {
        match self {
            Self::All => true,
            Self::Of(registries) => registries.iter().any(|known| known == registry),
            Self::None => false,
        }
    }
}

impl FromStr for Accept {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words: Vec<String> = text.split(',').map(|word| word.trim().to_lowercase()).collect();
        match &*words {
            [all] if all == "all" => Ok(Self::All),
            [none] if none == "none" => Ok(Self::None),
            words if words.iter().any(String::is_empty) => {
                Err(format!("{text:?} is neither all nor none, nor registries with commas between"))
            }
            _ => Ok(Self::Of(words)),
        }
    }
}

impl std::fmt::Display for Accept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Of(registries) => f.write_str(&registries.join(",")),
            Self::None => f.write_str("none"),
        }
    }
}

/// What an operator decided about recordings.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Where they are kept.
    pub(crate) dir: PathBuf,
    /// How long each start is recorded, from its first read; `None`: only on request.
    pub(crate) duration: Option<Duration>,
    /// Whether images are read along their recordings.
    pub(crate) replay: bool,
    /// Whose recordings are used besides the node's own.
    pub(crate) accept: Accept,
    /// How many images are completed at the same time; 0: none ever.
    pub(crate) fills: usize,
}

/// What makes, keeps and finds recordings.
#[derive(Debug)]
pub(crate) struct Recordings {
    settings: Settings,
    fetcher: Arc<Fetcher>,
    cache: Arc<Cache>,
    events: Events,
    metrics: Metrics,
    /// Images that may be completed now.
    fills: Semaphore,
}

/// Why a recording was not listed, removed or published.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordingsError {
    /// The state directory cannot be read or written.
    #[error("the recordings in the state directory cannot be used: {0}")]
    Files(#[from] std::io::Error),
    /// Nothing was recorded.
    #[error("device {0} has read nothing yet, or is not being recorded; attach the image anew with `penstock record`")]
    Nothing(String),
    /// It was kept, but not pushed.
    #[error(transparent)]
    Push(Box<PushError>),
}

impl Recordings {
    pub(crate) fn new(
        settings: Settings,
        (fetcher, cache): (&Arc<Fetcher>, &Arc<Cache>),
        events: &Events,
        metrics: Metrics,
    ) -> Arc<Self> {
        if let Err(error) = files::sweep(&settings.dir) {
            tracing::warn!(%error, "unfinished recordings cannot be removed");
        }
        let fills = Semaphore::new(settings.fills);
        Arc::new(Self {
            fetcher: Arc::clone(fetcher),
            cache: Arc::clone(cache),
            events: events.clone(),
            metrics,
            fills,
            settings,
        })
    }

    /// All recordings on this node, the newest first.
    pub(crate) async fn list(&self) -> Result<Vec<api::Recording>, RecordingsError> {
        let dir = self.settings.dir.clone();
        let kept = blocking(move || files::list(&dir)).await?;
        Ok(kept.iter().map(shown).collect())
    }

    /// Removes the recording of an image; whether there was one.
    pub(crate) async fn remove(&self, manifest: Digest) -> Result<bool, RecordingsError> {
        let dir = self.settings.dir.clone();
        Ok(blocking(move || files::remove(&dir, &manifest)).await?)
    }

    /// Has a start recorded until it is finished; false when it is over.
    pub(crate) fn hold(start: &Start) -> bool {
        start.hold()
    }

    /// Ends the recording of a start and keeps it, whatever was kept before.
    pub(crate) async fn finish(&self, start: &Start) -> Result<api::Recording, RecordingsError> {
        let recording = start.finish();
        if recording.is_empty() {
            return Err(RecordingsError::Nothing(start.device().to_owned()));
        }
        let (dir, written) = (self.settings.dir.clone(), recording.clone());
        let kept = blocking(move || {
            files::write(&dir, &written)?;
            files::read(&files::path(&dir, &written.manifest())).map_err(std::io::Error::other)
        });
        let kept = kept.await?.ok_or_else(|| RecordingsError::Nothing(start.device().to_owned()))?;
        self.tell_kept(&recording, start.device());
        Ok(shown(&kept))
    }

    /// Pushes the recording that a start has left on this node beside its image.
    pub(crate) async fn push(&self, image: &Manifest) -> Result<(), RecordingsError> {
        let path = files::path(&self.settings.dir, &image.digest);
        let kept = blocking(move || files::read(&path).map_err(std::io::Error::other)).await?;
        let kept = kept.ok_or_else(|| RecordingsError::Nothing(image.reference.to_string()))?;
        self.publish(image, &kept.recording).await.map_err(|error| RecordingsError::Push(Box::new(error)))
    }

    /// Keeps what a start needed, together with what starts before it did.
    async fn keep(&self, recording: Recording, device: &str) {
        let (dir, path) = (self.settings.dir.clone(), files::path(&self.settings.dir, &recording.manifest()));
        let kept = blocking(move || {
            // What cannot be read is of no more use than nothing: it is replaced.
            let before = files::read(&path).ok().flatten().map(|kept| kept.recording);
            let merged = start::together(before, recording);
            files::write(&dir, &merged).map(|()| merged)
        });
        match kept.await {
            Ok(recording) => self.tell_kept(&recording, device),
            Err(error) => tracing::warn!(%device, %error, "what an image read while starting cannot be kept"),
        }
    }

    async fn write(&self, recording: &Recording) {
        let (dir, recording) = (self.settings.dir.clone(), recording.clone());
        if let Err(error) = blocking(move || files::write(&dir, &recording)).await {
            tracing::warn!(%error, "a recording from a registry cannot be kept; it is asked for again");
        }
    }

    fn tell_kept(&self, recording: &Recording, device: &str) {
        self.metrics.kept.inc();
        let text = format!(
            "what {device} read while starting is kept: {} MiB in {} ranges",
            recording.bytes().div_ceil(1 << 20),
            recording.len()
        );
        self.events.record(Kind::RecordingKept, &text, &[("device", device)]);
    }

    /// The way to a registry, as far as it was measured: the best of its endpoints, since who is slow is passed over.
    fn link(&self, reference: &Reference) -> Link {
        let registries = self.fetcher.registries();
        let endpoints = registries.iter().filter(|status| status.registry == reference.registry());
        let endpoints: Vec<_> = endpoints.flat_map(|status| &status.endpoints).collect();
        let latency = endpoints.iter().filter_map(|endpoint| endpoint.delay).min();
        let rate = endpoints.iter().filter_map(|endpoint| endpoint.bytes_per_second).max();
        Link {
            latency: latency.unwrap_or(UNMEASURED.latency),
            bytes_per_second: rate.unwrap_or(UNMEASURED.bytes_per_second),
        }
    }
}

fn shown(kept: &Kept) -> api::Recording {
    api::Recording {
        manifest: kept.recording.manifest(),
        ranges: kept.recording.len() as u64,
        bytes: kept.recording.bytes(),
        file_bytes: kept.file_bytes,
        recorded_at: api::Timestamp::try_from(kept.at).unwrap_or(api::Timestamp::UNIX_EPOCH),
        pushed: false,
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> std::io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(std::io::Error::other(error)))
}
