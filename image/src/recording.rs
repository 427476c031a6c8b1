//! Recordings: the ranges of blobs that an image read while starting, in the order in which they were first needed. Pure.
//!
//! A recording is a hint and nothing more: it says what to fetch early, never what bytes are. Whoever has one from elsewhere parses it
//! ([`Recording::parse`]) and compares it with the image ([`Recording::check`]) before a byte is fetched because of it.
//!
//! Laws of [`Recording::merge`], tested: merging with itself or with an empty one changes nothing; the order of merging three does not
//! matter to the result's order as long as theirs stays; what is covered is what either covers, as far as [`MAX_RUNS`] allows.
//!
//! Format: docs/formats/recording.md.

mod format;
mod spans;

use penstock_blob::{Blob, ByteRange, Digest};

pub use format::RecordingError;
use spans::Spans;

/// Unit of a recording, in bytes: a page, the smallest read of a file system, and less than any chunk of a cache.
pub const GRAIN_BYTES: u64 = 4096;
/// Most runs of a recording. A start reads through the kernel in runs of 128 KiB as a rule: this is 2 GiB of them, and 64 MiB of scattered pages.
/// What is needed beyond is not recorded.
pub const MAX_RUNS: usize = 16_384;
/// Most blobs of a recording: as many as an image may have layers.
pub const MAX_BLOBS: usize = 1000;
/// Largest recording read or written, in bytes: header, blobs of 42 bytes, runs of 16 bytes.
pub const MAX_BYTES: usize = 320 << 10;

/// Grains that follow each other in a blob and were needed one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    /// Which blob, in the order of the recording's.
    blob: usize,
    /// First grain.
    first: u64,
    /// How many, at least 1.
    count: u64,
}

/// What an image read while starting. No byte is in it twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recording {
    manifest: Digest,
    /// In the order of first need.
    blobs: Vec<Blob>,
    runs: Vec<Run>,
}

impl Recording {
    /// The digest of the image's manifest.
    #[must_use]
    pub const fn manifest(&self) -> Digest {
        self.manifest
    }

    /// The blobs that were read, in the order of first need.
    #[must_use]
    pub fn blobs(&self) -> &[Blob] {
        &self.blobs
    }

    /// How many ranges there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.runs.len()
    }

    /// Whether nothing was read.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The ranges, in the order of first need. No two share a byte.
    pub fn ranges(&self) -> impl Iterator<Item = (Blob, ByteRange)> {
        self.runs.iter().filter_map(|run| {
            let blob = *self.blobs.get(run.blob)?;
            let start = run.first.checked_mul(GRAIN_BYTES)?;
            let end = run.first.checked_add(run.count)?.saturating_mul(GRAIN_BYTES).min(blob.size_bytes);
            Some((blob, ByteRange::new(start, end).ok()?))
        })
    }

    /// Bytes of all ranges.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.ranges().map(|(_, range)| range.len()).sum()
    }

    /// Refuses a recording of another image, or of blobs that the image does not have.
    ///
    /// # Errors
    /// [`RecordingError::Manifest`], [`RecordingError::Foreign`].
    pub fn check(&self, manifest: Digest, blobs: &[Blob]) -> Result<(), RecordingError> {
        if self.manifest != manifest {
            return Err(RecordingError::Manifest { of: self.manifest, image: manifest });
        }
        match self.blobs.iter().find(|blob| !blobs.contains(blob)) {
            Some(foreign) => Err(RecordingError::Foreign(*foreign)),
            None => Ok(()),
        }
    }

    /// What both recorded: this one in its order, then what only `other` has in its own. A recording of another image adds nothing.
    #[must_use]
    pub fn merge(self, other: &Self) -> Self {
        if self.manifest != other.manifest {
            return self;
        }
        let mut recorder = Recorder::from(self);
        for (blob, range) in other.ranges() {
            recorder.need(&blob, range);
        }
        recorder.into_recording()
    }
}

/// A recording being made.
#[derive(Debug)]
pub struct Recorder {
    recording: Recording,
    /// What is covered of each blob, in the recording's order.
    covered: Vec<Spans>,
    /// The blob asked about last: reads follow each other in one blob.
    last: usize,
}

impl Recorder {
    /// A recording of the image with this manifest, without a range.
    #[must_use]
    pub const fn new(manifest: Digest) -> Self {
        let recording = Recording { manifest, blobs: Vec::new(), runs: Vec::new() };
        Self { recording, covered: Vec::new(), last: 0 }
    }

    /// Takes down that `range` is needed; how many bytes of it, in whole grains, were not before. 0 also when there is no room for more.
    pub fn need(&mut self, blob: &Blob, range: ByteRange) -> u64 {
        let Some(at) = self.place(blob) else { return 0 };
        let (first, end) = (range.start() / GRAIN_BYTES, range.end().div_ceil(GRAIN_BYTES));
        self.take(Run { blob: at, first, count: end - first }).saturating_mul(GRAIN_BYTES)
    }

    /// Takes down what is new of a run of a known blob; how many grains that is.
    fn take(&mut self, run: Run) -> u64 {
        let Self { recording: Recording { runs, .. }, covered, .. } = self;
        let Some(spans) = covered.get_mut(run.blob).filter(|_| runs.len() < MAX_RUNS) else { return 0 };
        let mut fresh = 0;
        spans.add(run.first, run.first + run.count, |first, end| {
            let (count, has_room) = (end - first, runs.len() < MAX_RUNS);
            match runs.last_mut() {
                Some(last) if last.blob == run.blob && last.first + last.count == first => last.count += count,
                _ if has_room => runs.push(Run { first, count, ..run }),
                _ => return,
            }
            fresh += count;
        });
        fresh
    }

    /// How much of `range` is taken down, in bytes.
    #[must_use]
    pub fn covers(&self, blob: &Blob, range: ByteRange) -> u64 {
        let at = self.recording.blobs.iter().position(|known| known == blob);
        at.and_then(|at| self.covered.get(at)).map_or(0, |spans| {
            let mut bytes = 0;
            let (first, end) = (range.start() / GRAIN_BYTES, range.end().div_ceil(GRAIN_BYTES));
            spans.within(first, end, |first, end| {
                let part = ByteRange::new(first * GRAIN_BYTES, end.saturating_mul(GRAIN_BYTES)).ok();
                bytes += part.and_then(|part| part.intersection(range)).map_or(0, ByteRange::len);
            });
            bytes
        })
    }

    /// What was taken down so far.
    #[must_use]
    pub const fn recording(&self) -> &Recording {
        &self.recording
    }

    /// What was taken down.
    #[must_use]
    pub fn into_recording(self) -> Recording {
        self.recording
    }

    /// The place of a blob among the recording's, new or not; `None` when there is no room.
    fn place(&mut self, blob: &Blob) -> Option<usize> {
        let blobs = &mut self.recording.blobs;
        if blobs.get(self.last) == Some(blob) {
            return Some(self.last);
        }
        let at = match blobs.iter().position(|known| known == blob) {
            Some(at) => at,
            None if blobs.len() < MAX_BLOBS => {
                blobs.push(*blob);
                self.covered.push(Spans::default());
                blobs.len() - 1
            }
            None => return None,
        };
        self.last = at;
        Some(at)
    }
}

impl From<Recording> for Recorder {
    fn from(recording: Recording) -> Self {
        let mut covered: Vec<Spans> = recording.blobs.iter().map(|_| Spans::default()).collect();
        for run in &recording.runs {
            if let Some(spans) = covered.get_mut(run.blob) {
                spans.add(run.first, run.first.saturating_add(run.count), |_, _| {});
            }
        }
        Self { recording, covered, last: 0 }
    }
}

#[cfg(test)]
mod tests;
