//! The ZFile around a layer file: frames compressed in parallel, written in order.

use std::io::{self, Read as _, Seek, SeekFrom, Write};

use tempfile::SpooledTempFile;

use crate::{
    crc,
    units::in_memory,
    zfile::{
        Codec, FLAG_DATA, FLAG_DIGEST, FLAG_HEADER, FLAG_OVERWRITTEN, FLAG_SEALED, Format, HEADER_BYTES, MAGIC, digest,
    },
};

/// Decoded bytes compressed together by all threads: a multiple of every block size.
const BATCH_BYTES: usize = 4 << 20;
/// Bytes of the jump table kept in memory (1 GiB of 4 KiB frames); a longer one waits in a temporary file.
const TABLE_BYTES: usize = 1 << 20;
/// zstd's level, upstream's only one.
const ZSTD_LEVEL: i32 = 3;

/// Writes a ZFile from its content in pieces.
pub(super) struct FrameWriter<F> {
    out: F,
    format: Format,
    threads: usize,
    /// Where the ZFile starts in the output.
    base: u64,
    batch: Vec<u8>,
    table: SpooledTempFile,
    table_crc: u32,
    frames: u64,
    stored_bytes: u64,
    original_bytes: u64,
}

impl<F: Write + Seek> FrameWriter<F> {
    pub(super) fn new(mut out: F, format: Format, threads: usize) -> io::Result<Self> {
        let base = out.stream_position()?;
        out.write_all(&[0; 512])?;
        Ok(Self {
            out,
            format,
            threads,
            base,
            batch: Vec::with_capacity(BATCH_BYTES),
            table: SpooledTempFile::new(TABLE_BYTES),
            table_crc: 0,
            frames: 0,
            stored_bytes: 0,
            original_bytes: 0,
        })
    }

    pub(super) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(bytes.len().min(BATCH_BYTES - self.batch.len()));
            self.batch.extend_from_slice(now);
            bytes = rest;
            if self.batch.len() == BATCH_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Compresses what is at hand: whole frames, and at the very end a shorter one.
    fn flush(&mut self) -> io::Result<()> {
        let block = in_memory(u64::from(self.format.block_bytes));
        let share = self.batch.len().div_ceil(block).div_ceil(self.threads).max(1) * block;
        let format = self.format;
        let done: Vec<io::Result<Frames>> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                self.batch.chunks(share).map(|part| scope.spawn(move || compress(part, format))).collect();
            let panicked = |_| Err(io::Error::other("a compressing thread panicked"));
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect()
        });
        for part in done {
            let Frames { stored, lengths } = part?;
            self.out.write_all(&stored)?;
            self.stored_bytes += stored.len() as u64;
            self.frames += lengths.len() as u64 / 4;
            self.table_crc = crc::raw(self.table_crc, &lengths);
            self.table.write_all(&lengths)?;
        }
        self.original_bytes += self.batch.len() as u64;
        self.batch.clear();
        Ok(())
    }

    /// Writes the jump table and the trailer, and fills in the header. Leaves the output behind the last byte.
    pub(super) fn finish(mut self) -> io::Result<F> {
        self.flush()?;
        self.table.seek(SeekFrom::Start(0))?;
        let copied = io::copy(&mut (&mut self.table).take(self.frames * 4), &mut self.out)?;
        if copied != self.frames * 4 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let trailer = self.header(FLAG_DATA | FLAG_SEALED | FLAG_DIGEST);
        self.out.write_all(&trailer)?;
        let end = self.out.stream_position()?;
        let header = self.header(FLAG_HEADER | FLAG_DATA | FLAG_OVERWRITTEN | FLAG_DIGEST);
        self.out.seek(SeekFrom::Start(self.base))?;
        self.out.write_all(&header)?;
        self.out.seek(SeekFrom::Start(end))?;
        Ok(self.out)
    }

    fn header(&self, flags: u64) -> [u8; 512] {
        let mut block = [0; 512];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC);
        put(24, &96_u32.to_le_bytes());
        put(32, &flags.to_le_bytes());
        put(40, &(HEADER_BYTES + self.stored_bytes).to_le_bytes());
        put(48, &self.frames.to_le_bytes());
        put(56, &self.original_bytes.to_le_bytes());
        put(64, &self.table_crc.to_le_bytes());
        put(72, &self.format.block_bytes.to_le_bytes());
        put(76, &[self.format.codec.number()]);
        put(88, &[u8::from(self.format.crc)]);
        let sum = digest(&block);
        block[28..32].copy_from_slice(&sum.to_le_bytes());
        block
    }
}

/// Stored frames, and their lengths as the jump table has them.
struct Frames {
    stored: Vec<u8>,
    lengths: Vec<u8>,
}

fn compress(part: &[u8], format: Format) -> io::Result<Frames> {
    let block = in_memory(u64::from(format.block_bytes));
    let mut zstd = zstd::bulk::Compressor::new(ZSTD_LEVEL)?;
    let room = lz4_flex::block::get_maximum_output_size(block).max(zstd::zstd_safe::compress_bound(block));
    let mut frame = vec![0; room];
    let mut done = Frames { stored: Vec::with_capacity(part.len() / 2), lengths: Vec::new() };
    for data in part.chunks(block) {
        let len = match format.codec {
            Codec::Lz4 => lz4_flex::block::compress_into(data, &mut frame).map_err(io::Error::other)?,
            Codec::Zstd => zstd.compress_to_buffer(data, &mut frame[..])?,
        };
        let before = done.stored.len();
        done.stored.extend_from_slice(&frame[..len]);
        if format.crc {
            done.stored.extend_from_slice(&crc::raw(crc::BLOCK_SEED, &frame[..len]).to_le_bytes());
        }
        let stored = u32::try_from(done.stored.len() - before).map_err(io::Error::other)?;
        done.lengths.extend_from_slice(&stored.to_le_bytes());
    }
    Ok(done)
}
