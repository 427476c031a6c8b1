//! The directories on disk: `snapshots/<number>/{fs,work,snapshot.json}` below the root. `docs/formats/snapshots.md` describes them.
//!
//! Everything here blocks.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown},
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, CWD, FlockOperation, StatxAttributes, StatxFlags, flock, statx, syncfs};

use crate::record::{MAX_RECORD_BYTES, RecordError, Written};

const RECORD: &str = "snapshot.json";
const RECORD_TEMP: &str = "snapshot.json.new";

/// The lock of a root, held as long as this lives.
#[derive(Debug)]
pub(crate) struct RootLock(File);

impl Drop for RootLock {
    fn drop(&mut self) {
        // Not left to the close: a child that another thread is starting at this moment holds a copy of the file until it execs.
        // A failure leaves it to the close all the same.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

/// Who owns a directory and what it permits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// One snapshot's directory as found.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) number: u64,
    /// The record beside it; none when there is no such file.
    pub(crate) record: Option<Result<Written, RecordError>>,
    /// Whether it has a directory `fs`.
    pub(crate) has_files: bool,
}

/// Where everything is.
#[derive(Debug, Clone)]
pub(crate) struct Dirs {
    root: PathBuf,
}

impl Dirs {
    /// Makes the root and the directory of snapshots, for root's eyes only, where they do not exist.
    pub(crate) fn create(root: &Path) -> io::Result<Self> {
        let dirs = Self { root: root.to_owned() };
        for dir in [dirs.root.clone(), dirs.snapshots()] {
            DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        sync(&dirs.root)?;
        Ok(dirs)
    }

    /// Takes the root for this process. None: another has it.
    pub(crate) fn lock(&self) -> io::Result<Option<RootLock>> {
        let path = self.root.join("lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(RootLock(file))),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// The database.
    pub(crate) fn metadata(&self) -> PathBuf {
        self.root.join("metadata")
    }

    /// Renames the database out of the way, over one that was before: `metadata.broken` is for who wants to look.
    pub(crate) fn set_metadata_aside(&self) -> io::Result<()> {
        let broken = self.root.join("metadata.broken");
        match fs::remove_dir_all(&broken) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        fs::rename(self.metadata(), broken)?;
        sync(&self.root)
    }

    fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    fn dir(&self, number: u64) -> PathBuf {
        self.snapshots().join(number.to_string())
    }

    /// Where a snapshot's files are, or its device is mounted.
    pub(crate) fn files(&self, number: u64) -> PathBuf {
        self.dir(number).join("fs")
    }

    /// overlayfs's scratch directory.
    pub(crate) fn work(&self, number: u64) -> PathBuf {
        self.dir(number).join("work")
    }

    /// Makes the directories of a new snapshot. What stands there of one that was begun and never recorded is used. What is in its directory is durable
    /// with the record that is written there next, its name from here on.
    pub(crate) fn make(&self, number: u64, owner: Owner, work: bool) -> io::Result<()> {
        let mut private = DirBuilder::new();
        private.recursive(true).mode(0o700).create(self.dir(number))?;
        let files = self.files(number);
        private.create(&files)?;
        lchown(&files, Some(owner.uid), Some(owner.gid))?;
        fs::set_permissions(&files, Permissions::from_mode(owner.mode))?;
        if work {
            private.create(self.work(number))?;
        }
        sync(&self.snapshots())
    }

    /// Makes what a committed layer's device is mounted on again, where it is missing.
    pub(crate) fn make_target(&self, number: u64) -> io::Result<PathBuf> {
        let files = self.files(number);
        DirBuilder::new().recursive(true).mode(0o755).create(&files)?;
        Ok(files)
    }

    /// Who owns the root of a snapshot's files.
    pub(crate) fn owner(&self, number: u64) -> io::Result<Owner> {
        let meta = fs::symlink_metadata(self.files(number))?;
        Ok(Owner { mode: meta.mode() & 0o7777, uid: meta.uid(), gid: meta.gid() })
    }

    /// Waits until everything that was written to the root's file system is durable.
    pub(crate) fn sync_all(&self) -> io::Result<()> {
        Ok(syncfs(File::open(&self.root)?)?)
    }

    /// Writes the record beside a snapshot's directories, durably, in place of the one before.
    pub(crate) fn write_record(&self, number: u64, bytes: &[u8]) -> io::Result<()> {
        let dir = self.dir(number);
        let temp = dir.join(RECORD_TEMP);
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temp)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(temp, dir.join(RECORD))?;
        sync(&dir)
    }

    /// Every directory of a snapshot, whatever its state.
    pub(crate) fn scan(&self) -> io::Result<Vec<Found>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(self.snapshots())? {
            let entry = entry?;
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.parse().ok().filter(|n: &u64| n.to_string() == name));
            let Some(number) = number else {
                tracing::warn!(path = %entry.path().display(), "not a snapshot's directory: left alone");
                continue;
            };
            let record = read_bounded(&entry.path().join(RECORD))?.map(|bytes| Written::decode(&bytes));
            all.push(Found { number, record, has_files: self.files(number).is_dir() });
        }
        Ok(all)
    }

    /// The record beside a snapshot's directories.
    pub(crate) fn read_record(&self, number: u64) -> io::Result<Option<Result<Written, RecordError>>> {
        Ok(read_bounded(&self.dir(number).join(RECORD))?.map(|bytes| Written::decode(&bytes)))
    }

    /// Whether a snapshot still has its directory.
    pub(crate) fn exists(&self, number: u64) -> bool {
        self.files(number).is_dir()
    }

    /// Deletes a snapshot's directory, of which no record may speak any more. Its record goes first: what a crash leaves is never taken for a snapshot.
    /// Refused while something is mounted on it, whose files would be deleted instead.
    pub(crate) fn remove(&self, number: u64) -> io::Result<()> {
        let files = self.files(number);
        if is_mounted(&files)? {
            let text = format!("{} is still mounted", files.display());
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
        }
        for path in [self.dir(number).join(RECORD), self.dir(number).join(RECORD_TEMP)] {
            absent(fs::remove_file(path))?;
        }
        absent(fs::remove_dir_all(self.dir(number)))
    }

    /// Every number in use as a directory, whatever it holds.
    pub(crate) fn numbers(&self) -> io::Result<Vec<u64>> {
        let names = fs::read_dir(self.snapshots())?.map(|entry| entry.map(|entry| entry.file_name()));
        let names: io::Result<Vec<_>> = names.collect();
        Ok(names?.iter().filter_map(|name| name.to_str()?.parse().ok()).collect())
    }
}

/// Nothing to delete is success.
fn absent(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

/// Whether something is mounted at `path` itself.
fn is_mounted(path: &Path) -> io::Result<bool> {
    let stat = match statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, StatxFlags::BASIC_STATS) {
        Ok(stat) => stat,
        Err(rustix::io::Errno::NOENT) => return Ok(false),
        Err(e) => return Err(e.into()),
    };
    if !stat.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "the kernel does not say what is mounted: Linux 5.8 does",
        ));
    }
    Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// A file's bytes, at most one more than the longest record; none when there is no such file.
fn read_bounded(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut bytes = Vec::new();
    file.take(MAX_RECORD_BYTES + 1).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}
