//! A Zstandard layer (RFC 8878), fed in pieces: its decoded bytes, and where its frames begin. Skippable frames decode to nothing.

use std::io;

use zstd::stream::raw::{Decoder, Operation};

use crate::{
    frame::Start,
    index::build::{BuildError, Cutter},
};

/// Bytes decoded at once.
const OUT_BYTES: usize = 256 << 10;

/// The decoder of a Zstandard layer. Holds 256 KiB and the window of the frame: at most 128 MiB, zstd's own limit.
pub(crate) struct Scan {
    decoder: Decoder<'static>,
    out: Box<[u8]>,
    taken: u64,
    /// Between two frames.
    is_between: bool,
}

impl std::fmt::Debug for Scan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scan").field("taken", &self.taken).finish_non_exhaustive()
    }
}

impl Scan {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { decoder: Decoder::new()?, out: vec![0; OUT_BYTES].into(), taken: 0, is_between: true })
    }

    /// The next bytes of the layer.
    pub(crate) fn push(&mut self, mut input: &[u8], cutter: &mut Cutter) -> Result<(), BuildError> {
        let mut is_full = false;
        while !input.is_empty() || is_full {
            if self.is_between {
                cutter.boundary(Start::at(self.taken))?;
            }
            let at = self.taken;
            let broken = |error: io::Error| BuildError::Broken { at, reason: error.to_string() };
            let status = self.decoder.run_on_buffers(input, &mut self.out).map_err(broken)?;
            input = &input[status.bytes_read..];
            self.taken += status.bytes_read as u64;
            cutter.output(&self.out[..status.bytes_written])?;
            self.is_between = status.remaining == 0;
            is_full = status.bytes_written == self.out.len() && !self.is_between;
        }
        if self.is_between { cutter.end(self.taken) } else { Ok(()) }
    }

    /// Nothing more comes.
    pub(crate) fn finish(&self) -> Result<(), BuildError> {
        let reason = "it ends in the middle of a frame".to_owned();
        self.is_between.then_some(()).ok_or(BuildError::Broken { at: self.taken, reason })
    }
}
