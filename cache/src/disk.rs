//! The file operations that a crash may cut off or a disk may refuse: everything the cache writes goes through here.

use std::{
    fmt,
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::Path,
};

use rustix::fs::{FallocateFlags, fallocate, statvfs};

/// What the cache does to its files and directories. The kernel in the agent; in tests also a disk that fails, waits, dies or remembers.
pub(crate) trait Disk: fmt::Debug + Send + Sync {
    /// Writes all of `bytes` at `offset`.
    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(bytes, offset)
    }

    /// Returns when everything written to `file` before, and its length, is on the device.
    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    /// Gives the space of `len` bytes at `offset` back to the file system; they read as zeroes afterwards.
    fn punch(&self, file: &File, offset: u64, len: u64) -> io::Result<()> {
        Ok(fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len)?)
    }

    /// Cuts or extends `file`; what is new reads as zeroes.
    fn set_len(&self, file: &File, len: u64) -> io::Result<()> {
        file.set_len(len)
    }

    /// Makes an empty file, or empties the one that is there.
    fn create(&self, path: &Path) -> io::Result<File> {
        File::options().create(true).truncate(true).read(true).write(true).open(path)
    }

    /// Makes a directory, and those above it, when it is missing.
    fn make_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    /// Gives a file or directory another name; a file that has it already is replaced.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    /// Returns when the names in a directory are on the device.
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    /// The room on the file system of `dir`. Two system calls at most, no I/O.
    fn space(&self, dir: &Path) -> io::Result<Space> {
        let fs = statvfs(dir)?;
        let bytes = |blocks: u64| blocks.saturating_mul(fs.f_frsize);
        Ok(Space { free_bytes: bytes(fs.f_bavail), total_bytes: bytes(fs.f_blocks) })
    }
}

/// The room on a file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Space {
    /// What a user other than root may still take.
    pub(crate) free_bytes: u64,
    pub(crate) total_bytes: u64,
}

/// The real thing.
#[derive(Debug)]
pub(crate) struct Kernel;

impl Disk for Kernel {}
