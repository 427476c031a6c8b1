//! Turning stored frames into device bytes.

use std::{io, ops::Range};

use penstock_blob::{Blob, ByteRange, Located};

use crate::{
    resident::Files,
    units::in_memory,
    zfile::{BLOCK_BYTES, Decoder, Format, MAX_STORED_BYTES},
};

/// Most stored bytes read at once: a chunk of the default size. A longer run of frames is read in pieces.
pub(crate) const READ_BYTES: usize = 256 << 10;
/// Largest decoded unit whose buffer is kept.
pub(crate) const DECODED_BYTES: usize = 64 << 10;

/// Why a step of a plan gave no bytes.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// A frame fails its check or does not decode. The caller tells the source with `reject` and fetches once more.
    #[error("blob {}, bytes {range}: {what}", blob.digest)]
    Check {
        /// The blob.
        blob: Blob,
        /// The stored frame.
        range: ByteRange,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The file that held the bytes could not be read. The caller treats it as a failed check: `reject`, and fetch once
    /// more.
    #[error("blob {}, bytes {range}: the local copy cannot be read", blob.digest)]
    Io {
        /// The blob.
        blob: Blob,
        /// The bytes wanted.
        range: ByteRange,
        /// The system's reason.
        #[source]
        error: io::Error,
    },
    /// Bytes are still missing: the plan was executed before they were fetched.
    #[error("blob {}, bytes {range} are not here yet; fetch them and plan again", blob.digest)]
    Missing {
        /// The blob.
        blob: Blob,
        /// The bytes wanted.
        range: ByteRange,
    },
    /// The buffer does not have the length of the planned range.
    #[error("the buffer has {buffer_bytes} bytes, the plan {planned_bytes}")]
    Buffer {
        /// The buffer's length.
        buffer_bytes: usize,
        /// The plan's.
        planned_bytes: u64,
    },
}

impl StepError {
    /// The bytes to reject before fetching them again, if that may help.
    #[must_use]
    pub const fn rejected(&self) -> Option<(Blob, ByteRange)> {
        match self {
            Self::Check { blob, range, .. } | Self::Io { blob, range, .. } => Some((*blob, *range)),
            Self::Missing { .. } | Self::Buffer { .. } => None,
        }
    }
}

/// Buffers and contexts for executing plans, kept between them: after the first frames nothing is allocated. Holds at
/// most 448 KiB and a zstd context (about 160 KiB). One per thread that executes plans.
#[derive(Debug, Default)]
pub struct Scratch {
    stored: Vec<u8>,
    frame: Vec<u8>,
    decoder: Decoder,
    files: Files,
}

impl Scratch {
    /// Empty buffers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A buffer for stored bytes, which is not to grow beyond [`READ_BYTES`], and one for decoded bytes, not beyond [`DECODED_BYTES`].
    pub(crate) const fn buffers(&mut self) -> (&mut Vec<u8>, &mut Vec<u8>) {
        (&mut self.stored, &mut self.frame)
    }

    /// Bytes that it has grown to.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        (self.stored.capacity() + self.frame.capacity()) as u64 + self.decoder.bytes()
    }

    /// A new request begins, for [`has_waited`](Self::has_waited).
    pub const fn begin(&mut self) {
        self.files.begin();
    }

    /// Whether a disk was waited for since the request began. Also `true` where the file system of the cache cannot tell.
    #[must_use]
    pub const fn has_waited(&self) -> bool {
        self.files.have_waited()
    }

    /// Fills `buf` with located bytes.
    pub(crate) fn read(&mut self, located: &Located, buf: &mut [u8]) -> io::Result<()> {
        self.files.read(located, buf, 0)
    }
}

/// Neighbouring frames of one blob, stored in one run.
#[derive(Debug)]
pub struct FrameRun {
    /// The blob.
    pub blob: Blob,
    /// Where the frames are stored in it.
    pub range: ByteRange,
    /// Where those bytes are now.
    pub located: Located,
    /// How they are stored.
    pub format: Format,
    /// Which of the frame ends of its plan are its own.
    pub ends: Range<usize>,
    /// What those ends are counted from: this many bytes before the start of `range`.
    pub before: u32,
    /// Decoded bytes of the first frame that are not wanted.
    pub skip_bytes: u32,
    /// Decoded size of the last frame.
    pub last_bytes: u32,
}

impl FrameRun {
    /// Where frame `nth` is stored, counted from the start of the run.
    fn stored(&self, ends: &[u32], nth: usize) -> Range<usize> {
        let end = |i: usize| in_memory(u64::from(ends[i] - self.before));
        nth.checked_sub(1).map_or(0, end)..end(nth)
    }

    /// Decodes the run into `buf`, which is as long as what is wanted of it. `ends` are those of the plan.
    ///
    /// # Errors
    /// [`StepError::Check`] for the first frame that is wrong, [`StepError::Io`] when the stored bytes cannot be read.
    pub(crate) fn read_into(&self, ends: &[u32], buf: &mut [u8], scratch: &mut Scratch) -> Result<(), StepError> {
        let ends = &ends[self.ends.clone()];
        let mut rest = buf;
        let mut next = 0;
        while next < ends.len() && !rest.is_empty() {
            let from = self.stored(ends, next).start;
            let mut behind = next + 1;
            while behind < ends.len() && self.stored(ends, behind).end - from <= READ_BYTES {
                behind += 1;
            }
            let bytes = from..self.stored(ends, behind - 1).end;
            let Scratch { stored, frame, decoder, files } = &mut *scratch;
            let piece = self.stored_bytes(bytes.clone(), (stored, files))?;
            for nth in next..behind {
                let at = self.stored(ends, nth);
                let stored = &piece[at.start - bytes.start..at.end - bytes.start];
                rest = self.frame_into((nth, at), stored, rest, (&mut *frame, &mut *decoder))?;
            }
            next = behind;
        }
        Ok(())
    }

    /// The stored bytes of some frames: where they are in memory, or read into `buffer`.
    fn stored_bytes<'a>(
        &'a self,
        bytes: Range<usize>,
        (buffer, files): (&'a mut Vec<u8>, &mut Files),
    ) -> Result<&'a [u8], StepError> {
        let failed = |error| StepError::Io { blob: self.blob, range: self.range, error };
        if let Some(memory) = self.located.as_memory() {
            let slice = memory.get(bytes);
            return slice.ok_or_else(|| failed(io::Error::new(io::ErrorKind::UnexpectedEof, "too few bytes located")));
        }
        if buffer.len() < bytes.len() {
            buffer.resize(bytes.len().max(READ_BYTES.min(in_memory(self.range.len()))), 0);
        }
        let buffer = &mut buffer[..bytes.len()];
        files.read(&self.located, buffer, bytes.start as u64).map_err(failed)?;
        Ok(buffer)
    }

    /// Decodes frame `nth`, stored at `at` of the run, into the start of `buf` and gives back the rest of it.
    fn frame_into<'a>(
        &self,
        (nth, at): (usize, Range<usize>),
        stored: &[u8],
        buf: &'a mut [u8],
        (frame, decoder): (&mut Vec<u8>, &mut Decoder),
    ) -> Result<&'a mut [u8], StepError> {
        let last = nth + 1 == self.ends.len();
        let whole = in_memory(u64::from(if last { self.last_bytes } else { self.format.block_bytes }));
        let skip = if nth == 0 { in_memory(u64::from(self.skip_bytes)) } else { 0 };
        let wanted = whole.saturating_sub(skip).min(buf.len());
        let (out, rest) = buf.split_at_mut(wanted);
        let decoded = if wanted == whole {
            decoder.decode(self.format, stored, out)
        } else {
            if frame.len() < whole {
                frame.resize(in_memory(u64::from(self.format.block_bytes)).max(whole), 0);
            }
            decoder
                .decode(self.format, stored, &mut frame[..whole])
                .map(|()| out.copy_from_slice(&frame[skip..][..wanted]))
        };
        decoded.map_err(|what| StepError::Check { blob: self.blob, range: self.range_of(&at), what })?;
        Ok(rest)
    }

    /// Where a frame that is stored at `at` of the run is in the blob.
    fn range_of(&self, at: &Range<usize>) -> ByteRange {
        let start = self.range.start() + at.start as u64;
        ByteRange::at(start, at.len() as u64).unwrap_or(self.range)
    }
}

// A piece holds at least one frame, however long: the buffers stay within what `Scratch` documents.
const _: () = assert!(MAX_STORED_BYTES as usize <= READ_BYTES && *BLOCK_BYTES.end() as usize <= DECODED_BYTES);
