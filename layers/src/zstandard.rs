//! A Zstandard layer (RFC 8878), fed in pieces: its decoded bytes, and where its frames and their blocks begin. Skippable frames decode to nothing.

use std::io;

use zstd::stream::raw::{Decoder, Operation};

use crate::{
    frame::Start,
    index::build::{BuildError, Cutter},
};

pub(crate) mod blocks;
pub(crate) mod pieces;

use blocks::{Mark, Walk};

/// Largest window of a layer that is decoded in order, as a power of two: what RFC 8878 (section 3.1.1.1.2) has every decoder support. It is held in memory.
pub(crate) const MAX_WINDOW_LOG: u32 = 23;
/// Largest block, compressed or not (RFC 8878, section 3.1.1.2.4).
pub(crate) const MAX_BLOCK_BYTES: u64 = 128 << 10;
/// Bytes decoded at once: more than a block.
const OUT_BYTES: usize = 256 << 10;

/// The decoder of a Zstandard layer. Holds 256 KiB and the window of the frame: at most 128 MiB, zstd's own limit.
pub(crate) struct Scan {
    decoder: Decoder<'static>,
    out: Box<[u8]>,
    walk: Walk,
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
        Ok(Self {
            decoder: Decoder::new()?,
            out: vec![0; OUT_BYTES].into(),
            walk: Walk::new(),
            taken: 0,
            is_between: true,
        })
    }

    /// The next bytes of the layer.
    pub(crate) fn push(&mut self, mut input: &[u8], cutter: &mut Cutter) -> Result<(), BuildError> {
        while !input.is_empty() {
            if self.is_between {
                cutter.boundary(Start::at(self.taken))?;
            }
            let at = self.taken;
            let broken = |reason: &str| BuildError::Broken { at, reason: reason.to_owned() };
            let (len, mark) = self.walk.take(input).map_err(broken)?;
            let (now, rest) = input.split_at(len);
            let is_done = self.decode(now, cutter)?;
            self.taken += len as u64;
            input = rest;
            self.is_between = mark == Some(Mark::Frame);
            if self.is_between && !is_done {
                return Err(broken("a frame that has an end and goes on"));
            }
            if let Some(Mark::Block(window_bytes)) = mark {
                cutter.block(self.taken, window_bytes)?;
            }
        }
        if self.is_between { cutter.end(self.taken) } else { Ok(()) }
    }

    /// Decodes bytes that lie in one frame; whether that has ended.
    fn decode(&mut self, mut input: &[u8], cutter: &mut Cutter) -> Result<bool, BuildError> {
        let mut at = self.taken;
        loop {
            let broken = |error: io::Error| BuildError::Broken { at, reason: error.to_string() };
            let status = self.decoder.run_on_buffers(input, &mut self.out).map_err(broken)?;
            input = &input[status.bytes_read..];
            at += status.bytes_read as u64;
            cutter.output(&self.out[..status.bytes_written])?;
            if status.remaining == 0 || (input.is_empty() && status.bytes_written < self.out.len()) {
                return Ok(status.remaining == 0);
            }
        }
    }

    /// Nothing more comes.
    pub(crate) fn finish(&self) -> Result<(), BuildError> {
        let reason = "it ends in the middle of a frame".to_owned();
        self.is_between.then_some(()).ok_or(BuildError::Broken { at: self.taken, reason })
    }
}
