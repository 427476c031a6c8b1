//! Plans: what must be done to answer one request, without doing it.

use std::ops::Range;

use bytes::Bytes;
use penstock_blob::{Blob, BlobSource, ByteRange, Located};

use crate::{
    frames::{Frames, Shape},
    pages::TableError,
    qcow2::PackedCluster,
    scratch::{FrameRun, Scratch, StepError},
    units::in_memory,
};

/// Why a request cannot be planned.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The range does not lie on the device.
    #[error("bytes {range} lie outside the device of {device_bytes} bytes")]
    OutOfBounds {
        /// What was asked for.
        range: ByteRange,
        /// The device's size.
        device_bytes: u64,
    },
    /// The map cannot be read.
    #[error(transparent)]
    Map(#[from] TableError),
}

/// One piece of the answer.
#[derive(Debug)]
pub enum Step {
    /// Zeros.
    Zero,
    /// Bytes that the image itself keeps: metadata of a file system that was made here, checked as they were read.
    Own(Bytes),
    /// Bytes of a blob as they are.
    Plain {
        /// The blob.
        blob: Blob,
        /// Its bytes.
        range: ByteRange,
        /// Where they are now: exactly `range`.
        located: Located,
    },
    /// Frames to be decoded.
    Frame(FrameRun),
    /// A compressed cluster of a qcow2 disk.
    Cluster(PackedCluster),
    /// Bytes that a table leads to which makes no sense there. Executing it fails as a check does: what is wrong is fetched anew.
    Wrong {
        /// The blob.
        blob: Blob,
        /// Where the table is wrong.
        range: ByteRange,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Bytes that must be fetched; then the request is planned again. They may be a part of a table that is still being made: see [`crate::Image::over`].
    Missing {
        /// The blob, or the table as it is asked for.
        blob: Blob,
        /// Its bytes.
        range: ByteRange,
    },
}

impl Step {
    /// Takes `next` in, if both are zeros or both are missing and touch.
    fn joins(&mut self, next: &Self) -> bool {
        match (self, next) {
            (Self::Zero, Self::Zero) => true,
            (Self::Missing { blob, range }, Self::Missing { blob: other, range: next })
                if blob == other && range.start() <= next.start() && next.start() <= range.end() =>
            {
                *range = range.cover(*next);
                true
            }
            _ => false,
        }
    }
}

/// A step and the bytes of the request's buffer that it answers.
#[derive(Debug)]
pub struct PlacedStep {
    /// Which bytes, counted from the start of the request.
    pub at: ByteRange,
    /// What they are.
    pub step: Step,
}

/// The answer to a request in steps: in order, without gaps, each byte in exactly one. While it lives, what it located
/// stays in place. One that is used again ([`crate::Image::plan_into`]) allocates nothing once it has grown to the size of its requests.
#[derive(Debug, Default)]
pub struct Plan {
    /// The steps.
    pub steps: Vec<PlacedStep>,
    /// Where the frames of all steps end.
    ends: Vec<u32>,
}

impl Plan {
    /// Forgets every step: what was located is let go.
    pub fn clear(&mut self) {
        self.steps.clear();
        self.ends.clear();
    }

    /// Bytes that its room takes, used or not.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        (self.steps.capacity() * size_of::<PlacedStep>() + self.ends.capacity() * size_of::<u32>()) as u64
    }

    /// Bytes of the request.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.steps.last().map_or(0, |last| last.at.end())
    }

    /// Whether there is nothing to answer. Never true for a plan of [`crate::Image::plan`]: a range is not empty.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Whether everything is here: the plan can be executed.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.missing().next().is_none()
    }

    /// What must be fetched, in the order of the steps. Ranges may overlap when extents share a frame.
    pub fn missing(&self) -> impl Iterator<Item = (Blob, ByteRange)> {
        self.steps.iter().filter_map(|placed| match placed.step {
            Step::Missing { blob, range } => Some((blob, range)),
            Step::Zero | Step::Own(_) | Step::Plain { .. } => None,
            Step::Frame(_) | Step::Cluster(_) | Step::Wrong { .. } => None,
        })
    }

    /// Executes every step into `buf`, which has the length of the request. On an error the buffer's content means
    /// nothing.
    ///
    /// # Errors
    /// [`StepError`]: see its cases for what to do next.
    pub fn read_into(&self, buf: &mut [u8], scratch: &mut Scratch) -> Result<(), StepError> {
        if buf.len() as u64 != self.len() {
            return Err(StepError::Buffer { buffer_bytes: buf.len(), planned_bytes: self.len() });
        }
        let mut rest = buf;
        for PlacedStep { at, step } in &self.steps {
            let (out, behind) = rest.split_at_mut(in_memory(at.len()).min(rest.len()));
            rest = behind;
            self.step_into(step, out, scratch)?;
        }
        Ok(())
    }

    /// Executes one of its steps into `out`, which has the length of what the step answers.
    ///
    /// # Errors
    /// As [`Plan::read_into`].
    pub fn step_into(&self, step: &Step, out: &mut [u8], scratch: &mut Scratch) -> Result<(), StepError> {
        match step {
            Step::Zero => out.fill(0),
            Step::Own(bytes) => out.copy_from_slice(bytes),
            Step::Plain { blob, range, located } => {
                scratch.read(located, out).map_err(|error| StepError::Io { blob: *blob, range: *range, error })?
            }
            Step::Frame(run) => run.read_into(&self.ends, out, scratch)?,
            Step::Cluster(cluster) => cluster.read_into(out, scratch)?,
            Step::Wrong { blob, range, what } => {
                return Err(StepError::Check { blob: *blob, range: *range, what });
            }
            Step::Missing { blob, range } => return Err(StepError::Missing { blob: *blob, range: *range }),
        }
        Ok(())
    }
}

/// A plan being made. Steps are added in the order of the request.
#[derive(Debug)]
pub(crate) struct Planner<'a> {
    source: &'a dyn BlobSource,
    plan: &'a mut Plan,
    at: u64,
}

/// What a look at bytes of a blob gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// They are here, and were read.
    Here,
    /// They are not here.
    Missing,
    /// They are here, and cannot be read.
    Unreadable,
}

/// Frames to be placed: ends are counted from `start`, the place of the first frame of the request.
struct Wanted<'a> {
    shape: &'a Shape,
    /// Number of the first one in the file.
    first: u64,
    start: u64,
    /// Where the one before the first ends.
    before: u32,
    /// Which of the plan's ends are theirs.
    ends: Range<usize>,
    /// Decoded bytes that are wanted, counted from the start of the first frame.
    skip: u64,
    until: u64,
}

impl<'a> Planner<'a> {
    /// Makes `plan` anew.
    pub(crate) fn new(source: &'a dyn BlobSource, plan: &'a mut Plan) -> Self {
        plan.clear();
        Self { source, plan, at: 0 }
    }

    /// Adds a step of `len` bytes; nothing when there are none.
    fn push(&mut self, len: u64, step: Step) {
        let Ok(at) = ByteRange::at(self.at, len) else { return };
        self.at = at.end();
        if let Some(last) = self.plan.steps.last_mut()
            && last.step.joins(&step)
        {
            last.at = last.at.cover(at);
        } else {
            self.plan.steps.push(PlacedStep { at, step });
        }
    }

    /// Adds zeros.
    pub(crate) fn zero(&mut self, len: u64) {
        self.push(len, Step::Zero);
    }

    /// Adds bytes of which is not known yet where they are: what must be asked for first.
    pub(crate) fn unknown(&mut self, len: u64, table: Blob, part: ByteRange) {
        self.push(len, Step::Missing { blob: table, range: part });
    }

    /// Reads bytes of a blob that planning itself needs, all of `buf` from `at` on, if they are here.
    pub(crate) fn look(&self, blob: &Blob, at: u64, buf: &mut [u8]) -> Look {
        let range = ByteRange::at(at, buf.len() as u64);
        match range.ok().and_then(|range| self.source.locate(blob, range)) {
            None => Look::Missing,
            Some(located) if located.read_at(buf, 0).is_ok() => Look::Here,
            Some(_) => Look::Unreadable,
        }
    }

    /// Adds bytes that a table leads to which is wrong.
    pub(crate) fn wrong(&mut self, len: u64, blob: Blob, range: ByteRange, what: &'static str) {
        self.push(len, Step::Wrong { blob, range, what });
    }

    /// Adds bytes of a compressed cluster: what `cluster` makes of where its bytes are.
    pub(crate) fn packed(
        &mut self,
        len: u64,
        (blob, range): (Blob, ByteRange),
        cluster: impl FnOnce(Located) -> PackedCluster,
    ) {
        let step = match self.source.locate(&blob, range) {
            Some(located) => Step::Cluster(cluster(located)),
            None => Step::Missing { blob, range },
        };
        self.push(len, step);
    }

    /// Adds bytes of the image's own.
    pub(crate) fn own(&mut self, bytes: Bytes) {
        self.push(bytes.len() as u64, Step::Own(bytes));
    }

    /// Adds bytes of a blob as they are.
    pub(crate) fn plain(&mut self, blob: Blob, range: ByteRange) {
        let step = match self.source.locate(&blob, range) {
            Some(located) => Step::Plain { blob, range, located },
            None => Step::Missing { blob, range },
        };
        self.push(range.len(), step);
    }

    /// Adds bytes `range` of the decoded file.
    pub(crate) fn frames(&mut self, frames: &Frames, range: ByteRange) -> Result<(), TableError> {
        let (first, count) = frames.shape().frames_of(range);
        if let Some(pages) = frames.lacking(first, count) {
            self.unknown(range.len(), frames.named(), pages);
            return Ok(());
        }
        let from = self.plan.ends.len();
        let start = frames.stored(first, count, &mut self.plan.ends)?;
        let skip = range.start() - first * u64::from(frames.shape().format.block_bytes);
        let (until, ends) = (skip + range.len(), from..self.plan.ends.len());
        self.run(Wanted { shape: frames.shape(), first, start, before: 0, ends, skip, until });
        Ok(())
    }

    /// Adds a run of frames as one step if the source has all of it, else in halves down to single frames: at most two
    /// questions per frame, and everything that is here is used.
    fn run(&mut self, wanted: Wanted<'_>) {
        let Wanted { shape, first, start, before, ends, skip, until } = wanted;
        let Some(&last_end) = self.plan.ends[ends.clone()].last() else { return };
        let Ok(range) = ByteRange::new(start + u64::from(before), start + u64::from(last_end)) else { return };
        let len = until - skip;
        if let Some(located) = self.source.locate(&shape.blob, range) {
            let run = FrameRun {
                blob: shape.blob,
                range,
                located,
                format: shape.format,
                before,
                skip_bytes: u32::try_from(skip).unwrap_or(u32::MAX),
                last_bytes: shape.frame_bytes(first + ends.len() as u64 - 1),
                ends,
            };
            return self.push(len, Step::Frame(run));
        }
        if ends.len() == 1 {
            return self.push(len, Step::Missing { blob: shape.blob, range });
        }
        let half = ends.start + ends.len() / 2;
        let low = (half - ends.start) as u64;
        let middle = u64::from(shape.format.block_bytes) * low;
        let before_high = self.plan.ends[half - 1];
        self.run(Wanted { shape, first, start, before, ends: ends.start..half, skip, until: middle });
        let (ends, until) = (half..ends.end, until - middle);
        self.run(Wanted { shape, first: first + low, start, before: before_high, ends, skip: 0, until });
    }
}
