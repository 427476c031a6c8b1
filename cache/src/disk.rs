//! The file operations that may fail in ways worth testing: writing, syncing, punching holes.

use std::{fmt, fs::File, io, os::unix::fs::FileExt};

use rustix::fs::{FallocateFlags, fallocate};

/// What the cache does to its data and slot files. The kernel in the agent; in tests also a disk that fails on purpose.
pub(crate) trait Disk: fmt::Debug + Send + Sync {
    /// Writes all of `bytes` at `offset`.
    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Returns when everything written to `file` before is on the device.
    fn sync(&self, file: &File) -> io::Result<()>;

    /// Gives the space of `len` bytes at `offset` back to the file system; they read as zeroes afterwards.
    fn punch(&self, file: &File, offset: u64, len: u64) -> io::Result<()>;
}

/// The real thing.
#[derive(Debug)]
pub(crate) struct Kernel;

impl Disk for Kernel {
    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(bytes, offset)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    fn punch(&self, file: &File, offset: u64, len: u64) -> io::Result<()> {
        Ok(fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len)?)
    }
}
