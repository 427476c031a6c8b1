//! Table files: 4 KiB pages, each with its own checksum, written once and read one page at a time.
//!
//! A page is read with one `pread` into the caller's buffer and checked every time, so nothing of a table lives on the
//! heap: the page cache holds what is used, and the kernel may take it back. Why not `mmap`:
//! docs/decisions/0004-paged-maps.md. Byte-exact format: docs/formats/map.md.

use std::{
    collections::HashSet,
    fs::{self, File},
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::SystemTime,
};

use penstock_blob::{Digest, Hasher};

use crate::{
    draft::{Draft, Sealed},
    units::{field, u32_at, u64_at},
};

/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;
/// Bytes at the start of a page that are not payload.
pub(crate) const PAGE_HEAD: usize = 16;
/// Version of the format of both kinds of table; part of file names and identities.
pub(crate) const VERSION: u32 = 1;
/// Tables up to this size are checked whole when opened (about 2 ms), larger ones at their first pages.
pub(crate) const CHECKED_WHOLE_BYTES: u64 = 4 << 20;
/// First bytes of a header page's payload.
const MAGIC: &[u8; 8] = b"PNSTKTBL";
/// Pages written at once.
const WRITE_PAGES: usize = 64;
/// How temporary files begin, for [`sweep`].
pub(crate) const TEMPORARY: &str = ".building-";
/// How the names of maps end.
pub(crate) const MAP: &str = "map";
/// How the names of tables of frames end.
pub(crate) const FRAMES: &str = "frames";
/// How the names of layers' file systems end.
pub(crate) const EROFS: &str = "erofs";

/// A page in memory.
pub(crate) type Page = [u8; PAGE_BYTES];

/// What a page holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PageKind {
    /// The file's header.
    Header,
    /// The layers of a map.
    Layers,
    /// Extents of a map.
    Extents,
    /// First sectors of the pages one level below.
    Keys,
    /// Ends of frames.
    Frames,
    /// Metadata of a layer's file system.
    Metadata,
    /// Where the content of a layer's files is.
    Data,
}

impl PageKind {
    const fn number(self) -> u8 {
        match self {
            Self::Header => 1,
            Self::Layers => 2,
            Self::Extents => 3,
            Self::Keys => 4,
            Self::Frames => 5,
            Self::Metadata => 6,
            Self::Data => 7,
        }
    }
}

/// Why a table cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// A page is not what was written. The file has been removed; opening the image again builds a new one.
    #[error("page {page} of {} is damaged ({what}); the file was removed, attach the image again to rebuild it", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The page, counted from 0.
        page: u32,
        /// Which check failed.
        what: &'static str,
    },
    /// The file system failed.
    #[error("cannot read or write the map {}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        #[source]
        error: io::Error,
    },
}

/// Finishes a page: head and checksum.
pub(crate) fn seal(page: &mut Page, kind: PageKind, number: u32, count: u16, identity: &Digest) {
    page[4..8].copy_from_slice(&number.to_le_bytes());
    page[8..10].copy_from_slice(&count.to_le_bytes());
    page[10] = kind.number();
    page[11] = 0;
    page[12..16].copy_from_slice(&identity.as_bytes()[..4]);
    let crc = crc32c::crc32c(&page[4..]);
    page[..4].copy_from_slice(&crc.to_le_bytes());
}

/// Checks a page and answers how many entries it holds.
///
/// # Errors
/// Which check failed.
pub(crate) fn check(page: &Page, kind: PageKind, number: u32, identity: &Digest) -> Result<u16, &'static str> {
    if u32_at(page, 0) != crc32c::crc32c(&page[4..]) {
        return Err("its checksum is wrong");
    }
    if u32_at(page, 4) != number || page[12..16] != identity.as_bytes()[..4] {
        return Err("it belongs elsewhere");
    }
    if page[10] != kind.number() {
        return Err("it is of another kind");
    }
    Ok(u16::from_le_bytes(field(page, 8)))
}

/// What a table is of: the version, the kind and the digests it was made from.
pub(crate) fn identity(kind: &str, digests: impl IntoIterator<Item = Digest>) -> Digest {
    let mut hasher = Hasher::new();
    hasher.update(format!("penstock {kind} {VERSION}\n").as_bytes());
    for digest in digests {
        hasher.update(digest.as_bytes());
    }
    hasher.finish()
}

/// The common part of a header page's payload: magic, version, pages, identity.
pub(crate) const HEADER_FIELDS: usize = PAGE_HEAD + 48;

fn common_header(page: &mut Page, pages: u32, identity: &Digest) {
    page[PAGE_HEAD..PAGE_HEAD + 8].copy_from_slice(MAGIC);
    page[PAGE_HEAD + 8..PAGE_HEAD + 12].copy_from_slice(&VERSION.to_le_bytes());
    page[PAGE_HEAD + 12..PAGE_HEAD + 16].copy_from_slice(&pages.to_le_bytes());
    page[PAGE_HEAD + 16..PAGE_HEAD + 48].copy_from_slice(identity.as_bytes());
}

/// Finishes a header page of a table of `pages` pages.
pub(crate) fn seal_header(page: &mut Page, pages: u32, identity: &Digest) {
    common_header(page, pages, identity);
    seal(page, PageKind::Header, 0, 0, identity);
}

/// Checks the common part of a header page of a file of `file_bytes`.
///
/// # Errors
/// Which check failed.
pub(crate) fn check_header(page: &Page, identity: &Digest, file_bytes: u64) -> Result<u32, &'static str> {
    check(page, PageKind::Header, 0, identity)?;
    if &page[PAGE_HEAD..PAGE_HEAD + 8] != MAGIC || u32_at(page, PAGE_HEAD + 8) != VERSION {
        return Err("it has another version");
    }
    if page[PAGE_HEAD + 16..PAGE_HEAD + 48] != identity.as_bytes()[..] {
        return Err("it belongs elsewhere");
    }
    let pages = u32_at(page, PAGE_HEAD + 12);
    if u64::from(pages) * PAGE_BYTES as u64 != file_bytes {
        return Err("the file has the wrong length");
    }
    Ok(pages)
}

/// A table file that can be read.
#[derive(Debug)]
pub(crate) struct Table {
    file: File,
    path: PathBuf,
    identity: Digest,
    pages: u32,
    /// A page of it was found damaged: nobody is to begin with it any more.
    broken: AtomicBool,
}

impl Table {
    /// A table whose file this process writes, or has written.
    pub(crate) const fn made(file: File, path: PathBuf, identity: Digest, pages: u32) -> Self {
        Self { file, path, identity, pages, broken: AtomicBool::new(false) }
    }

    /// Whether a page of it was found damaged.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    pub(crate) const fn identity(&self) -> &Digest {
        &self.identity
    }

    /// Opens a table if it is there and its header is right, and gives its header page. A damaged one is removed.
    pub(crate) fn open(path: &Path, identity: Digest) -> Result<Option<(Self, Page)>, TableError> {
        let failed = |error| TableError::Io { path: path.to_owned(), error };
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let file_bytes = file.metadata().map_err(failed)?.len();
        let mut table = Self::made(file, path.to_owned(), identity, 1);
        let mut page = [0; PAGE_BYTES];
        let read = table
            .read(PageKind::Header, 0, &mut page)
            .and_then(|_| check_header(&page, &identity, file_bytes).map_err(|what| table.damaged(0, what)));
        match read {
            Ok(pages) => table.pages = pages,
            Err(TableError::Damaged { .. }) => return Ok(None),
            Err(error) => return Err(error),
        }
        if let Err(error) = table.file.set_modified(SystemTime::now()) {
            tracing::debug!(%error, path = %path.display(), "a map that is used cannot be marked so; it may be collected early");
        }
        Ok(Some((table, page)))
    }

    pub(crate) const fn pages(&self) -> u32 {
        self.pages
    }

    /// Whether the file is small enough to be checked whole when opened.
    pub(crate) fn is_small(&self) -> bool {
        u64::from(self.pages) * PAGE_BYTES as u64 <= CHECKED_WHOLE_BYTES
    }

    /// Reads one page and checks it: how many entries it holds.
    pub(crate) fn read(&self, kind: PageKind, number: u32, page: &mut Page) -> Result<u16, TableError> {
        match self.file.read_exact_at(page, u64::from(number) * PAGE_BYTES as u64) {
            Ok(()) => check(page, kind, number, &self.identity).map_err(|what| self.damaged(number, what)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(self.damaged(number, "the file ends before it"))
            }
            Err(error) => Err(TableError::Io { path: self.path.clone(), error }),
        }
    }

    /// The error for a damaged page, after removing the file so that the next open builds a new one. An open handle
    /// stays good for the pages that are.
    pub(crate) fn damaged(&self, page: u32, what: &'static str) -> TableError {
        self.broken.store(true, Ordering::Relaxed);
        // One that is still being made has no name yet.
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %self.path.display(), "a damaged map could not be removed");
        }
        tracing::warn!(path = %self.path.display(), page, what, "a map page is damaged; the map was removed");
        TableError::Damaged { path: self.path.clone(), page, what }
    }
}

/// Writes a table: pages in order behind a header that is written last. Dropped unfinished, it leaves nothing.
#[derive(Debug)]
pub(crate) struct TableWriter {
    draft: Draft,
    pages: u32,
    buffer: Vec<u8>,
}

impl TableWriter {
    /// A table that will appear at `path` once finished.
    pub(crate) fn new(path: &Path, identity: Digest) -> Result<Self, TableError> {
        let buffer = Vec::with_capacity(WRITE_PAGES * PAGE_BYTES);
        Ok(Self { draft: Draft::new(path, identity)?, pages: 1, buffer })
    }

    /// The number that the next page gets.
    pub(crate) const fn next(&self) -> u32 {
        self.pages
    }

    /// The pages that were flushed, for reading.
    pub(crate) fn table(&self) -> Result<Table, TableError> {
        self.draft.table(self.pages)
    }

    /// Seals a page with `count` entries and appends it.
    pub(crate) fn push(&mut self, kind: PageKind, page: &mut Page, count: u16) -> Result<(), TableError> {
        seal(page, kind, self.pages, count, self.draft.identity());
        self.buffer.extend_from_slice(page);
        self.pages += 1;
        if self.buffer.len() == WRITE_PAGES * PAGE_BYTES { self.flush() } else { Ok(()) }
    }

    /// Writes what was pushed: it can be read from here on.
    pub(crate) fn flush(&mut self) -> Result<(), TableError> {
        let held = u32::try_from(self.buffer.len() / PAGE_BYTES).unwrap_or(0);
        self.draft.write(self.pages - held, &self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    /// The first 8 bytes of the payload of a page that was pushed: its first key.
    pub(crate) fn first_key(&mut self, number: u32) -> Result<u64, TableError> {
        self.flush()?;
        let mut key = [0; 8];
        self.draft.read(number, PAGE_HEAD, &mut key)?;
        Ok(u64_at(&key, 0))
    }

    /// Completes the header page, whose bytes from [`HEADER_FIELDS`] on are the caller's.
    pub(crate) fn seal(mut self, header: &mut Page) -> Result<Sealed, TableError> {
        self.flush()?;
        self.draft.seal(self.pages, header)
    }
}

/// Removes what a killed process left half-written in `dir`. Called once, before the first image is opened there;
/// answers how many files went.
///
/// # Errors
/// What listing or removing says.
pub fn sweep(dir: &Path) -> io::Result<usize> {
    let mut removed = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(TEMPORARY.as_bytes()) {
            fs::remove_file(entry.path())?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// Removes the tables in `dir` that were last opened before `before`, and of which `kept` is not; answers how many bytes of disk that freed.
/// One that is open stays readable for who has it open. What is not a table is left alone.
///
/// # Errors
/// What listing, looking at or removing files says; what was removed until then stays removed.
pub fn collect(dir: &Path, kept: &HashSet<PathBuf>, before: SystemTime) -> io::Result<u64> {
    let mut freed = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        let is_table =
            path.extension().is_some_and(|extension| [MAP, FRAMES, EROFS].iter().any(|kind| extension == *kind));
        let metadata = entry.metadata()?;
        if is_table && metadata.is_file() && metadata.modified()? < before && !kept.contains(&path) {
            fs::remove_file(&path)?;
            freed += metadata.blocks() * 512;
        }
    }
    Ok(freed)
}

/// Where the table of this kind with this name is.
pub(crate) fn path(dir: &Path, name: &Digest, kind: &str) -> PathBuf {
    dir.join(format!("{}.v{VERSION}.{kind}", name.to_hex()))
}

/// Writes `bytes` at `at` of a page being made.
pub(crate) fn put(page: &mut Page, at: usize, bytes: &[u8]) {
    page[at..at + bytes.len()].copy_from_slice(bytes);
}
