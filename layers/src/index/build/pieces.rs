//! The pieces of a frame that may turn out to be too large to be decoded as one: kept back until it is, then written in place of it.

use std::io;

use penstock_blob::Hasher;

use super::BuildError;
use crate::{
    frame::{Proof, Start, TARGET_BYTES},
    index::{
        format::{Record, Shape, Window},
        write::Writer,
    },
    zstandard::MAX_WINDOW_LOG,
};

/// Pieces of one frame of the table. Holds a record for each MiB that may still become one frame: at most 16.
pub(super) struct Pieces {
    hasher: Hasher,
    /// Where the piece begins that has not ended, in the archive.
    at: u64,
    start: Start,
    /// It can end here, in the compressed layer, and does when more comes.
    cut: Option<u64>,
    is_first: bool,
    /// Those that have ended and are not written.
    ended: Vec<Record>,
    is_written: bool,
    /// The largest one asked for by what was decoded, in bytes.
    window_bytes: u64,
}

impl Pieces {
    /// Of the frame that begins here; nothing of it was decoded yet.
    pub(super) fn new(at: u64, start: Start) -> Self {
        Self {
            hasher: Hasher::new(),
            at,
            start,
            cut: None,
            is_first: true,
            ended: Vec::new(),
            is_written: false,
            window_bytes: 0,
        }
    }

    /// Where the piece begins that has not ended.
    pub(super) const fn start(&self) -> Start {
        self.start
    }

    /// Whether the frame is too large, and its pieces stand for it.
    pub(super) const fn is_written(&self) -> bool {
        self.is_written
    }

    /// A block begins here.
    pub(super) fn block(&mut self, at: u64, byte: u64, window_bytes: Option<u64>) {
        self.window_bytes = self.window_bytes.max(window_bytes.unwrap_or_default());
        if at - self.at >= TARGET_BYTES {
            // A block may hold nothing, as the last one of many writers: what follows belongs to the piece after the first such place.
            self.cut.get_or_insert(byte);
        }
    }

    /// The next bytes, which begin at `at` of the archive.
    pub(super) fn output(&mut self, at: u64, bytes: &[u8]) {
        if let Some(byte) = self.cut.take() {
            let record = self.record();
            self.ended.push(record);
            (self.at, self.start, self.is_first) = (at, Start::at(byte), false);
        }
        self.hasher.update(bytes);
    }

    /// Refuses a window that is not held in memory.
    pub(super) fn check_window(&self) -> Result<(), BuildError> {
        let most = 1 << MAX_WINDOW_LOG;
        if self.window_bytes <= most {
            return Ok(());
        }
        let window_bytes = self.window_bytes;
        let reason = format!(
            "it is one Zstandard frame with a window of {window_bytes} bytes, as --long and --ultra make it, and at most {most} are held in memory"
        );
        Err(BuildError::NotLazy { reason })
    }

    /// The frame is too large: writes what has ended.
    pub(super) fn write(&mut self, writer: &mut Writer) -> io::Result<()> {
        self.is_written = true;
        self.ended.drain(..).try_for_each(|record| writer.record(&record))
    }

    /// The frame ends: writes the last piece.
    pub(super) fn finish(mut self, writer: &mut Writer) -> io::Result<()> {
        let last = self.record();
        self.write(writer)?;
        writer.record(&last)
    }

    fn record(&mut self) -> Record {
        let shape = if self.is_first { Shape::Whole(Window::default()) } else { Shape::Continued };
        let proof = Proof::Decoded(std::mem::take(&mut self.hasher).finish());
        Record { at: self.at, start: self.start, shape, proof, is_first: false }
    }
}
