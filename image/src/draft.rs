//! Tables in the making, as files: pages are written in any order, and those that are there can be read.

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use penstock_blob::Digest;
use tempfile::NamedTempFile;

use crate::pages::{self, PAGE_BYTES, Page, TEMPORARY, Table, TableError};

/// A table under a temporary name. Dropped, it leaves nothing.
#[derive(Debug)]
pub(crate) struct Draft {
    file: NamedTempFile,
    path: PathBuf,
    identity: Digest,
}

impl Draft {
    /// A table that will appear at `path` once sealed and persisted.
    pub(crate) fn new(path: &Path, identity: Digest) -> Result<Self, TableError> {
        let failed = |error| TableError::Io { path: path.to_owned(), error };
        let dir = path.parent().unwrap_or(Path::new("."));
        let file = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(dir).map_err(failed)?;
        Ok(Self { file, path: path.to_owned(), identity })
    }

    /// The same file for reading: what was written of it by then, of `pages` pages in the end. It stays good once the table has its name.
    pub(crate) fn table(&self, pages: u32) -> Result<Table, TableError> {
        let file = self.file.as_file().try_clone().map_err(|error| self.failed(error))?;
        Ok(Table::made(file, self.path.clone(), self.identity, pages))
    }

    /// The name that it will have.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) const fn identity(&self) -> &Digest {
        &self.identity
    }

    /// Writes sealed pages from page `first` on.
    pub(crate) fn write(&self, first: u32, pages: &[u8]) -> Result<(), TableError> {
        let at = u64::from(first) * PAGE_BYTES as u64;
        self.file.as_file().write_all_at(pages, at).map_err(|error| self.failed(error))
    }

    /// Reads bytes of a page that was written.
    pub(crate) fn read(&self, number: u32, skip: usize, bytes: &mut [u8]) -> Result<(), TableError> {
        let at = u64::from(number) * PAGE_BYTES as u64 + skip as u64;
        self.file.as_file().read_exact_at(bytes, at).map_err(|error| self.failed(error))
    }

    /// Completes the header page, whose bytes from [`pages::HEADER_FIELDS`] on are the caller's: from here on the file is a whole table.
    pub(crate) fn seal(self, pages: u32, header: &mut Page) -> Result<Sealed, TableError> {
        pages::seal_header(header, pages, &self.identity);
        self.write(0, header)?;
        Ok(Sealed(self))
    }

    fn failed(&self, error: std::io::Error) -> TableError {
        TableError::Io { path: self.path.clone(), error }
    }
}

/// A whole table that does not have its name yet.
#[derive(Debug)]
pub(crate) struct Sealed(Draft);

impl Sealed {
    /// Makes the table appear under its name, all of it on disk. Whatever had that name before is replaced by the same content.
    pub(crate) fn persist(self) -> Result<(), TableError> {
        let Draft { file, path, .. } = self.0;
        let persist = || {
            file.as_file().sync_all()?;
            file.persist(&path)?;
            File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
        };
        persist().map_err(|error| TableError::Io { path: path.clone(), error })
    }
}
