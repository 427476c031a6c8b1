//! Decoding a run of pieces of a Zstandard layer in order: each alone is verified, none alone can be decoded.

use std::io;

use bytes::Bytes;
use penstock_blob::Digest;
use zstd::stream::raw::{DParameter, Decoder, Operation as _};

use super::MAX_WINDOW_LOG;
use crate::frame::{FrameError, compare};

/// A decoder that stands inside a run. Holds the window of its frame, at most 8 MiB, and one piece.
pub(crate) struct Pieces {
    decoder: Decoder<'static>,
    /// The piece, and one byte more, so that one that holds more is found out.
    bytes: Vec<u8>,
    done: usize,
}

impl std::fmt::Debug for Pieces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pieces").field("done", &self.done).finish_non_exhaustive()
    }
}

impl Pieces {
    /// At the beginning of a run.
    pub(crate) fn new() -> io::Result<Self> {
        let mut decoder = Decoder::new()?;
        decoder.set_parameter(DParameter::WindowLogMax(MAX_WINDOW_LOG))?;
        Ok(Self { decoder, bytes: Vec::new(), done: 0 })
    }

    /// The next piece has so many bytes.
    pub(crate) fn begin(&mut self, wanted: usize) {
        self.bytes = vec![0; wanted + 1];
        self.done = 0;
    }

    /// The next compressed bytes of the piece.
    pub(crate) fn feed(&mut self, mut packed: &[u8]) -> Result<(), FrameError> {
        let broken = |error: io::Error| FrameError::Broken(error.to_string());
        while !packed.is_empty() {
            let room = &mut self.bytes[self.done..];
            let status = self.decoder.run_on_buffers(packed, room).map_err(broken)?;
            packed = &packed[status.bytes_read..];
            self.done += status.bytes_written;
            if self.done == self.bytes.len() {
                return Err(FrameError::Length { wanted: self.wanted(), is_longer: true });
            }
            if status.bytes_read == 0 && status.bytes_written == 0 {
                return Err(FrameError::Broken("the decoder makes nothing of it".to_owned()));
            }
        }
        Ok(())
    }

    /// The piece, once all its compressed bytes were fed.
    pub(crate) fn finish(&mut self, expected: Digest) -> Result<Bytes, FrameError> {
        let wanted = self.wanted();
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.truncate(self.done);
        if bytes.len() as u64 != wanted {
            return Err(FrameError::Length { wanted, is_longer: false });
        }
        compare(expected, &bytes)?;
        Ok(bytes.into())
    }

    const fn wanted(&self) -> u64 {
        self.bytes.len().saturating_sub(1) as u64
    }
}
