//! Streams of decoded bytes, with bounds.

use std::{
    cell::Cell,
    io::{self, Read},
};

use penstock_blob::{Digest, Hasher};
use zlib_rs::{Inflate, InflateFlush, Status};

use crate::gzip;

/// Bits of deflate's window.
const WINDOW_BITS: u8 = 15;

/// The first member of a gzip file, decoded.
pub(super) struct Gunzip<'a> {
    inflate: Inflate,
    input: &'a [u8],
    is_done: bool,
}

impl<'a> Gunzip<'a> {
    /// `None` when no member begins here.
    pub(super) fn new(packed: &'a [u8]) -> Option<Self> {
        let input = gzip::skip_header(packed).ok().flatten()?;
        Some(Self { inflate: Inflate::new(false, WINDOW_BITS), input, is_done: false })
    }
}

impl Read for Gunzip<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.is_done || buf.is_empty() {
            return Ok(0);
        }
        let (had_in, had_out) = (self.inflate.total_in(), self.inflate.total_out());
        let status = self.inflate.decompress(self.input, buf, InflateFlush::NoFlush);
        let status = status.map_err(|error| io::Error::other(error.as_str()))?;
        let taken = usize::try_from(self.inflate.total_in() - had_in).unwrap_or(usize::MAX);
        let made = usize::try_from(self.inflate.total_out() - had_out).unwrap_or(usize::MAX);
        self.input = self.input.get(taken..).unwrap_or_default();
        self.is_done = status == Status::StreamEnd;
        if made == 0 && !self.is_done {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(made)
    }
}

/// Hashes what is read, and ends with an error when more is read than `left` allows: whoever reads gives more as he gets on.
pub(super) struct Watched<'a, R> {
    from: R,
    hasher: Hasher,
    left: &'a Cell<u64>,
}

impl<'a, R: Read> Watched<'a, R> {
    pub(super) fn new(from: R, left: &'a Cell<u64>) -> Self {
        Self { from, hasher: Hasher::new(), left }
    }

    /// The digest of all that was read.
    pub(super) fn finish(self) -> Digest {
        self.hasher.finish()
    }
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buf)?;
        let left = self.left.get().checked_sub(read as u64);
        self.left.set(left.ok_or_else(|| io::Error::other("one of its entries is too long"))?);
        self.hasher.update(&buf[..read]);
        Ok(read)
    }
}
