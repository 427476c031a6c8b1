//! A raw disk as a layer: what is zero is left out.

use std::{
    fs::File,
    io::{self, Read, Seek, Write},
    os::unix::fs::FileExt as _,
};

use penstock_blob::ByteRange;
use rustix::{fs::SeekFrom, io::Errno};

use super::{LayerWriter, Options, WriteError, Written};
use crate::units::{SECTOR_BYTES, in_memory};

/// Unit in which zeros are left out: the block size of most file systems, and of upstream's frames.
pub(super) const GRAIN_BYTES: usize = 4096;
/// Bytes read at once.
pub(super) const READ_BYTES: u64 = 1 << 20;

/// A disk whose holes can be found.
pub trait Disk {
    /// Its length in bytes.
    ///
    /// # Errors
    /// The system's.
    fn size_bytes(&self) -> io::Result<u64>;

    /// The next run of bytes from `from` on that may hold anything but zeros; `None` when the rest is a hole.
    ///
    /// # Errors
    /// The system's.
    fn data_from(&self, from: u64) -> io::Result<Option<ByteRange>>;

    /// Fills `buf` from `offset` on.
    ///
    /// # Errors
    /// The system's; `UnexpectedEof` beyond the end.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
}

impl Disk for File {
    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn data_from(&self, from: u64) -> io::Result<Option<ByteRange>> {
        let size = self.size_bytes()?;
        let start = match rustix::fs::seek(self, SeekFrom::Data(from)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(None),
            // A file system that cannot tell: all of it may be data.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(ByteRange::new(from, size).ok()),
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(self, SeekFrom::Hole(start))?;
        Ok(ByteRange::new(start, end).ok())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buf, offset)
    }
}

impl Disk for [u8] {
    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn data_from(&self, from: u64) -> io::Result<Option<ByteRange>> {
        Ok(ByteRange::new(from, self.len() as u64).ok())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let start = in_memory(offset);
        let bytes = start.checked_add(buf.len()).and_then(|end| self.get(start..end));
        buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// Writes a raw disk as one layer, without its holes and zeros. A disk that ends inside a sector is filled up with
/// zeros.
///
/// # Errors
/// [`WriteError`].
pub fn disk<D: Disk + ?Sized>(
    disk: &D,
    out: impl Read + Write + Seek,
    mut options: Options,
) -> Result<Written, WriteError> {
    let size = disk.size_bytes()?;
    let device_bytes = size.checked_next_multiple_of(SECTOR_BYTES).ok_or(WriteError::Size(size))?;
    options.device_bytes = Some(options.device_bytes.unwrap_or(device_bytes));
    let mut writer = LayerWriter::new(out, options)?;
    let mut buf = vec![0; in_memory(READ_BYTES)];
    let mut at = 0;
    while at < size {
        let Some(data) = disk.data_from(at)? else { break };
        // Whole grains, so that no grain is seen twice.
        at = at.max(data.start() - data.start() % GRAIN_BYTES as u64);
        let end = data.end().next_multiple_of(GRAIN_BYTES as u64).min(size);
        while at < end {
            let len = in_memory((end - at).min(READ_BYTES));
            disk.read_at(&mut buf[..len], at)?;
            let padded = len.next_multiple_of(in_memory(SECTOR_BYTES));
            buf[len..padded].fill(0);
            copy(&mut writer, at / SECTOR_BYTES, &buf[..padded])?;
            at += len as u64;
        }
    }
    writer.finish()
}

/// Adds the grains that are not zero, neighbours together.
fn copy(writer: &mut LayerWriter<impl Read + Write + Seek>, start: u64, bytes: &[u8]) -> Result<(), WriteError> {
    let same = |a: &[u8], b: &[u8]| is_zero(a) == is_zero(b);
    let grains: Vec<&[u8]> = bytes.chunks(GRAIN_BYTES).collect();
    let mut at = 0;
    for run in grains.chunk_by(|a, b| same(a, b)) {
        let len = run.iter().map(|grain| grain.len()).sum::<usize>();
        if !is_zero(run[0]) {
            writer.data(start + at as u64 / SECTOR_BYTES, &bytes[at..at + len])?;
        }
        at += len;
    }
    Ok(())
}

pub(super) fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|&b| b == 0)
}
