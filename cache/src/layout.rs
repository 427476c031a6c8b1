//! The cache directory: names, the lock, the files of a blob. `docs/formats/cache.md` describes it.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use penstock_blob::ChunkSize;
use rustix::fs::{FlockOperation, flock, statvfs};

use crate::{
    disk::Disk,
    error::OpenError,
    format::{CLEAN_MAGIC, COMMITS_MAGIC, HEADER_BYTES, LAYOUT, Mark, Meta},
    slots::Files,
};

/// Where everything is.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    dir: PathBuf,
    disk: Arc<dyn Disk>,
}

/// The lock of a directory, held as long as this lives.
#[derive(Debug)]
pub(crate) struct DirLock(File);

impl Drop for DirLock {
    fn drop(&mut self) {
        // Not left to the close: a child that another thread is starting at this moment holds a copy of the file until it execs.
        // A failure leaves it to the close all the same.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

/// One blob's files as found at open.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) meta: Meta,
    pub(crate) files: Files,
    /// The header file was missing or had another length: headers are written anew from the index.
    pub(crate) headers_lost: bool,
}

/// What stands in `blobs/`.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    pub(crate) found: Vec<Found>,
    /// Blobs whose files did not belong together; they have been deleted.
    pub(crate) dropped: Vec<(u32, String)>,
    /// Highest blob number seen, used or not.
    pub(crate) highest: Option<u32>,
}

impl Layout {
    pub(crate) fn new(dir: &Path, disk: Arc<dyn Disk>) -> Self {
        Self { dir: dir.to_owned(), disk }
    }

    fn blobs(&self) -> PathBuf {
        self.dir.join("blobs")
    }

    fn file(&self, no: u32, kind: &str) -> PathBuf {
        self.dir.join("blobs").join(format!("{no}.{kind}"))
    }

    /// Where the index is.
    pub(crate) fn index(&self) -> PathBuf {
        self.dir.join("index")
    }

    fn clean(&self) -> PathBuf {
        self.dir.join("clean")
    }

    /// Makes the directory when it is missing, takes the lock, refuses another layout.
    pub(crate) fn prepare(&self) -> Result<DirLock, OpenError> {
        self.disk.make_dir(&self.dir).map_err(|e| self.unusable("make", &self.dir, e))?;
        let path = self.dir.join("lock");
        let opened = File::options().create(true).truncate(false).read(true).write(true).open(&path);
        let lock = opened.map_err(|e| self.unusable("open", &path, e))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let pid = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
                return Err(OpenError::InUse { pid, dir: self.dir.clone() });
            }
            Err(e) => return Err(OpenError::Io { step: "lock", path, source: e.into() }),
        }
        let lock = DirLock(lock);
        let fresh = self.check_layout()?;
        // In place and of fixed length: on a full disk the line of the last owner is overwritten without a new block.
        let signed = lock.0.write_all_at(format!("{:<20}\n", std::process::id()).as_bytes(), 0);
        self.disk.make_dir(&self.blobs()).map_err(|e| self.unusable("make", &self.blobs(), e))?;
        if fresh {
            signed.map_err(|e| self.unusable("write", &path, e))?;
            // Syncs the directory too, and with it the name of `blobs`.
            self.replace(&self.dir.join("layout"), LAYOUT.as_bytes())
                .map_err(|e| self.unusable("write", &self.dir.join("layout"), e))?;
            self.sync_own_name();
        }
        let beyond = 1 << 20;
        self.disk
            .punch(&lock.0, beyond, 4096)
            .map_err(|source| OpenError::NoHoles { dir: self.dir.clone(), source })?;
        Ok(lock)
    }

    /// Makes a new directory's own name durable. Not fatal: the directory above may not be readable, and then belongs to who made it.
    fn sync_own_name(&self) {
        let above = self.dir.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if let Err(e) = self.disk.sync_dir(above) {
            tracing::warn!(
                "{} cannot be synced; a power cut now may lose the new cache directory: {e}",
                above.display()
            );
        }
    }

    /// Whether the directory is new; refuses what another version wrote.
    fn check_layout(&self) -> Result<bool, OpenError> {
        let path = self.dir.join("layout");
        match fs::read(&path) {
            Ok(text) if text == LAYOUT.as_bytes() => Ok(false),
            Ok(text) if !is_layout(&text) => {
                // Bit rot, not a version: everything else in the directory says itself what it is.
                tracing::warn!("{} is damaged and written anew", path.display());
                Ok(true)
            }
            Ok(text) => Err(OpenError::Layout {
                dir: self.dir.clone(),
                found: String::from_utf8_lossy(&text).trim().chars().take(64).collect(),
                known: LAYOUT.trim_ascii_end(),
            }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(source) => Err(OpenError::Io { step: "read", path, source }),
        }
    }

    /// Which error a failure to write the directory is.
    fn unusable(&self, step: &'static str, path: &Path, source: io::Error) -> OpenError {
        let dir = self.dir.clone();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => OpenError::Full { dir },
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::NotADirectory => {
                OpenError::Unwritable { dir, source }
            }
            _ => OpenError::Io { step, path: path.to_owned(), source },
        }
    }

    /// Allocation unit of the file system in bytes.
    pub(crate) fn block(&self) -> u64 {
        statvfs(&self.dir).map_or(4096, |fs| fs.f_frsize.clamp(4096, 64 << 10))
    }

    /// Writes a small file whole or not at all, durably.
    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let temporary = path.with_extension("tmp");
        let file = self.disk.create(&temporary)?;
        self.disk.write_at(&file, bytes, 0)?;
        self.disk.sync(&file)?;
        self.disk.rename(&temporary, path)?;
        path.parent().map_or(Ok(()), |dir| self.disk.sync_dir(dir))
    }

    /// Makes the files of a new blob. They count from the moment that the description is durable.
    pub(crate) fn create(&self, meta: &Meta, chunks: u32) -> io::Result<Files> {
        let made = self.create_files(meta, chunks);
        if made.is_err() {
            // What was made before the failure must not keep space; what is not there need not go.
            let _ = self.delete(meta.no);
        }
        made
    }

    fn create_files(&self, meta: &Meta, chunks: u32) -> io::Result<Files> {
        let make = |kind: &str, len: u64| {
            let file = self.disk.create(&self.file(meta.no, kind))?;
            self.disk.set_len(&file, len)?;
            Ok::<_, io::Error>(file)
        };
        let data = make("data", meta.blob.size_bytes)?;
        let headers = make("slots", u64::from(chunks) * HEADER_BYTES as u64)?;
        self.describe(meta)?;
        Ok(Files { no: meta.no, data, headers })
    }

    /// Writes a blob's description, durably.
    pub(crate) fn describe(&self, meta: &Meta) -> io::Result<()> {
        self.replace(&self.file(meta.no, "meta"), &meta.encode())
    }

    /// Whether the data file of a blob is still the one that is open, and as long as the blob.
    pub(crate) fn is_same(&self, no: u32, open: &File, len: u64) -> io::Result<bool> {
        let open = open.metadata()?;
        match fs::metadata(self.file(no, "data")) {
            Ok(named) => Ok((named.dev(), named.ino(), named.len()) == (open.dev(), open.ino(), len)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Deletes a blob's files, the description first: what is left after a crash is deleted at the next open.
    pub(crate) fn delete(&self, no: u32) -> io::Result<()> {
        for kind in ["meta", "data", "slots"] {
            match self.disk.remove(&self.file(no, kind)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        self.disk.sync_dir(&self.blobs())
    }

    /// Finds the blobs, and deletes what is not one.
    pub(crate) fn scan(&self) -> io::Result<Scan> {
        let mut scan = Scan::default();
        let mut numbers = std::collections::BTreeSet::new();
        for file in fs::read_dir(self.blobs())? {
            let file = file?;
            let name = file.file_name();
            let number = name.to_str().and_then(|n| n.rsplit_once('.')).filter(|(_, kind)| *kind != "tmp");
            match number.and_then(|(no, _)| no.parse::<u32>().ok()) {
                Some(no) => {
                    numbers.insert(no);
                }
                None if file.file_type()?.is_file() => self.disk.remove(&file.path())?,
                None => {}
            }
        }
        scan.highest = numbers.last().copied();
        for no in numbers {
            match self.find(no) {
                Ok(found) => scan.found.push(found),
                Err(reason) => {
                    self.delete(no)?;
                    scan.dropped.push((no, reason));
                }
            }
        }
        Ok(scan)
    }

    /// Opens the files of a blob, or says why they are not those of one.
    fn find(&self, no: u32) -> Result<Found, String> {
        let text = |what: &str, e: io::Error| format!("its {what} file: {e}");
        let bytes = fs::read(self.file(no, "meta")).map_err(|e| text("meta", e))?;
        let meta = Meta::decode(&bytes).filter(|m| m.no == no).ok_or("its meta file is damaged")?;
        let chunks = chunk_count(&meta).ok_or("its meta file describes a blob beyond all bounds")?;
        let open = |kind: &str| File::options().read(true).write(true).open(self.file(no, kind));
        let data = open("data").map_err(|e| text("data", e))?;
        if data.metadata().map_err(|e| text("data", e))?.len() != meta.blob.size_bytes {
            // Cut short behind our back: what is missing fails its checksum when it is read.
            self.disk.set_len(&data, meta.blob.size_bytes).map_err(|e| text("data", e))?;
        }
        let want = u64::from(chunks) * HEADER_BYTES as u64;
        let (headers, headers_lost) = match open("slots") {
            Ok(file) => {
                let lost = file.metadata().map_err(|e| text("slots", e))?.len() != want;
                (file, lost)
            }
            Err(_) => (self.disk.create(&self.file(no, "slots")).map_err(|e| text("slots", e))?, true),
        };
        if headers_lost {
            self.disk.set_len(&headers, want).map_err(|e| text("slots", e))?;
        }
        Ok(Found { meta, files: Files { no, data, headers }, headers_lost })
    }

    /// Takes the marker of an orderly close away and says what it was.
    pub(crate) fn take_clean(&self) -> io::Result<Option<Mark>> {
        let path = self.clean();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        self.disk.remove(&path)?;
        self.disk.sync_dir(&self.dir)?;
        Ok(Mark::decode(CLEAN_MAGIC, &bytes))
    }

    /// Leaves the marker of an orderly close.
    pub(crate) fn leave_clean(&self, mark: &Mark) -> io::Result<()> {
        self.replace(&self.clean(), &mark.encode(CLEAN_MAGIC))
    }

    /// How far the index had come when that was noted last; `None` when that cannot be read.
    pub(crate) fn reached(&self) -> Option<Mark> {
        Mark::decode(COMMITS_MAGIC, &fs::read(self.dir.join("commits")).ok()?)
    }

    /// Notes a commit. In place and not synced: a kill does not lose it, and what a power cut leaves is an older mark, which says less.
    pub(crate) fn note_reached(&self, mark: &Mark) {
        let opened = File::options().create(true).truncate(false).write(true).open(self.dir.join("commits"));
        let noted = opened.and_then(|file| self.disk.write_at(&file, &mark.encode(COMMITS_MAGIC), 0));
        if let Err(e) = noted {
            tracing::debug!(
                "how far the index has come cannot be noted; an index that is lost in part may go unnoticed: {e}"
            );
        }
    }

    /// Makes the names in the directory durable, the index's above all: sled syncs what is in its own directory only.
    pub(crate) fn sync_names(&self) -> io::Result<()> {
        self.disk.sync_dir(&self.dir)
    }

    /// Moves the index out of the way, to be looked at by a person; one bad index is kept, the last.
    pub(crate) fn set_index_aside(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with("index.bad-") {
                fs::remove_dir_all(entry.path())?;
            }
        }
        let stamp = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        match self.disk.rename(&self.index(), &self.dir.join(format!("index.bad-{stamp}"))) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        self.disk.sync_dir(&self.dir)
    }
}

/// Whether a `layout` file was written by some version.
fn is_layout(text: &[u8]) -> bool {
    let name = LAYOUT.trim_end().trim_end_matches(|c: char| c.is_ascii_digit());
    let number = std::str::from_utf8(text).ok().and_then(|text| text.strip_suffix('\n')?.strip_prefix(name));
    number.is_some_and(|number| number.parse::<u32>().is_ok())
}

/// Most chunks of one blob (2 TiB at 128 KiB): what a hostile manifest may make the cache allocate stays below 1 MiB.
pub(crate) const MAX_CHUNKS: u32 = 1 << 24;

/// How many chunks a blob has; `None` for an empty one, or one beyond [`MAX_CHUNKS`].
pub(crate) fn bounded_count(chunk_size: ChunkSize, blob: &penstock_blob::Blob) -> Option<u32> {
    chunk_size.count(blob).filter(|n| (1..=MAX_CHUNKS).contains(n))
}

fn chunk_count(meta: &Meta) -> Option<u32> {
    bounded_count(meta.chunk_size, &meta.blob)
}
