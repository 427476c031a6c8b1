//! A list on this node: a sparse file of pages, each verified when it is used. A page that is not there and one that is damaged
//! are the same: fetched from the source below, verified, used, and written for the next time.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    ops::RangeInclusive,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use penstock_blob::{BlobSource, ByteRange, Purpose, ReadError};
use tokio::sync::Mutex;

use crate::{
    metrics::Metrics,
    shape::{Hash, Listed, PAGE_BYTES, Page, Shape, hash},
};

/// Bytes of a list fetched at once: 16 pages. With chunks of 64 KiB they are of 128 MiB of the blob, and hold the whole list of a
/// blob up to 112 MiB.
const PIECE_BYTES: u64 = 64 << 10;
/// Pieces of a list fetched at once by one read.
const PIECES_AT_ONCE: usize = 8;
/// Times that pages are fetched which turn out wrong, each from the endpoint that is the most promising then.
const TRIES: u32 = 8;

/// Pieces of a list that were just fetched, by the byte of the list at which they start.
type Fetched = BTreeMap<u64, Bytes>;

/// One list.
#[derive(Debug)]
pub(crate) struct List {
    pub(crate) listed: Listed,
    pub(crate) shape: Shape,
    path: PathBuf,
    /// The hash of the top page, once the header page was verified.
    top: OnceLock<Hash>,
    /// Held by the reader that fetches missing pages.
    fetching: Mutex<()>,
    /// Whether the last verification of chunks failed: a change is told, not each.
    pub(crate) doubted: AtomicBool,
    /// Whether the file could not be written: said once.
    unwritable: AtomicBool,
}

/// What looking for hashes found.
#[derive(Debug)]
enum Found {
    /// The hashes, in the order of their chunks.
    All(Vec<Hash>),
    /// These pages are absent or damaged.
    Missing(BTreeSet<u64>),
}

impl List {
    /// The list kept in `dir`; its file appears when the first page is fetched. `None` when no such list can be.
    pub(crate) fn new(listed: Listed, dir: &Path) -> Option<Self> {
        let shape =
            Shape::new(listed.blob, listed.grid).filter(|shape| shape.list_bytes() == listed.list.size_bytes)?;
        let path = dir.join(format!("{}.list", listed.root.to_hex()));
        Some(Self {
            listed,
            shape,
            path,
            top: OnceLock::new(),
            fetching: Mutex::new(()),
            doubted: AtomicBool::new(false),
            unwritable: AtomicBool::new(false),
        })
    }

    /// The hashes of `chunks`, verified up to the root.
    pub(crate) async fn hashes(
        self: &Arc<Self>,
        chunks: RangeInclusive<u32>,
        below: &dyn BlobSource,
        metrics: &Metrics,
    ) -> Result<Vec<Hash>, ReadError> {
        if let Found::All(hashes) = self.look(&chunks, Fetched::new()).await? {
            return Ok(hashes);
        }
        let _turn = self.fetching.lock().await;
        let mut missing = match self.look(&chunks, Fetched::new()).await? {
            Found::All(hashes) => return Ok(hashes),
            Found::Missing(pages) => pages,
        };
        let mut fetched = Fetched::new();
        for _ in 0..TRIES {
            for (piece, bytes) in self.fetch(&missing, below).await? {
                metrics.list_bytes.inc_by(piece.len());
                fetched.insert(piece.start(), bytes);
            }
            match self.look(&chunks, fetched.clone()).await? {
                Found::All(hashes) => return Ok(hashes),
                Found::Missing(pages) => missing = pages,
            }
            for piece in self.pieces(&missing) {
                if fetched.remove(&piece.start()).is_some() {
                    below.reject(&self.listed.list, piece);
                }
            }
        }
        let Listed { blob, list, root, .. } = self.listed;
        Err(ReadError::WrongBytes {
            blob: list.digest,
            range: self.pieces(&missing).next().or(list.all()).unwrap_or(FIRST_BYTE),
            endpoint: "every endpoint asked".to_owned(),
            reason: format!("these pages of the index of blob {} are not those of its root {root}", blob.digest),
        })
    }

    /// The pieces that hold these pages.
    fn pieces(&self, pages: &BTreeSet<u64>) -> impl Iterator<Item = ByteRange> + use<> {
        let list_bytes = self.listed.list.size_bytes;
        let starts: BTreeSet<u64> = pages.iter().map(|page| piece_of(offset(*page))).collect();
        starts.into_iter().filter_map(move |start| ByteRange::new(start, (start + PIECE_BYTES).min(list_bytes)).ok())
    }

    /// Fetches the pieces that hold these pages. Always on demand: they are small, and readers wait for each other here.
    async fn fetch(&self, pages: &BTreeSet<u64>, below: &dyn BlobSource) -> Result<Vec<(ByteRange, Bytes)>, ReadError> {
        let list = self.listed.list;
        let reads =
            self.pieces(pages).map(|piece| async move { Ok((piece, below.read(list, piece, Purpose::Demand).await?)) });
        stream::iter(reads.collect::<Vec<_>>()).buffered(PIECES_AT_ONCE).try_collect().await
    }

    /// Looks for hashes in the file, and in front of it in what was just fetched, which is written once it was of use.
    async fn look(self: &Arc<Self>, chunks: &RangeInclusive<u32>, fetched: Fetched) -> Result<Found, ReadError> {
        let (this, chunks) = (self.clone(), chunks.clone());
        let looked = tokio::task::spawn_blocking(move || {
            let pages = Pages { list: &this, file: File::open(&this.path).ok(), fetched: &fetched };
            let found = pages.find(chunks);
            if matches!(found, Found::All(_)) && !fetched.is_empty() {
                this.keep(&fetched);
            }
            found
        });
        // An error: the runtime is stopping.
        looked.await.map_err(|_| ReadError::Stopping)
    }

    /// Writes what was fetched. Not synced: a page that a power cut takes is fetched again. A failure is no reader's.
    fn keep(&self, fetched: &Fetched) {
        let write = || {
            let file = File::options().create(true).truncate(false).write(true).open(&self.path)?;
            file.set_len(self.listed.list.size_bytes)?;
            fetched.iter().try_for_each(|(start, bytes)| file.write_all_at(bytes, *start))
        };
        match write() {
            Ok(()) => self.unwritable.store(false, Ordering::Relaxed),
            Err::<(), io::Error>(error) if !self.unwritable.swap(true, Ordering::Relaxed) => {
                tracing::warn!(%error, path = %self.path.display(), "pages of an index cannot be kept; they are fetched each time");
            }
            Err(_) => {}
        }
    }

    /// Removes the file. One that is not there is removed already.
    pub(crate) fn remove(&self) {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, path = %self.path.display(), "a list that is not needed any more could not be removed");
            }
            _ => {}
        }
    }
}

/// Names a place in an error about a list that has none.
const FIRST_BYTE: ByteRange = match ByteRange::new(0, 1) {
    Ok(range) => range,
    Err(_) => unreachable!(),
};

/// Where a page starts in its list. Pages of a list are fewer than 2^23.
const fn offset(page: u64) -> u64 {
    page * PAGE_BYTES as u64
}

/// Where the piece that holds byte `at` of a list starts.
const fn piece_of(at: u64) -> u64 {
    at / PIECE_BYTES * PIECE_BYTES
}

/// Where pages are looked for.
struct Pages<'a> {
    list: &'a List,
    file: Option<File>,
    fetched: &'a Fetched,
}

impl Pages<'_> {
    fn find(&self, chunks: RangeInclusive<u32>) -> Found {
        let shape = &self.list.shape;
        let Some(top) = self.top() else {
            // Without the header nothing below it can be believed: all that leads to the chunks is fetched with it.
            let paths = chunks.flat_map(|chunk| shape.path(chunk));
            return Found::Missing(paths.map(|place| place.page).chain([0]).collect());
        };
        let (mut hashes, mut missing) = (Vec::new(), BTreeSet::new());
        // The path to the chunk before: neighbours share all but the last hash of it.
        let mut path: Vec<(u64, Option<Page>)> = Vec::new();
        for chunk in chunks {
            let mut wanted = Some(top);
            for (depth, place) in shape.path(chunk).enumerate() {
                if path.get(depth).is_none_or(|(page, _)| *page != place.page) {
                    path.truncate(depth);
                    path.push((place.page, wanted.and_then(|hash| self.page(place.page, &hash))));
                    if path[depth].1.is_none() {
                        missing.insert(place.page);
                    }
                }
                wanted = path[depth].1.as_ref().map(|page| place.of(page));
            }
            hashes.extend(wanted);
        }
        if missing.is_empty() { Found::All(hashes) } else { Found::Missing(missing) }
    }

    fn top(&self) -> Option<Hash> {
        let list = self.list;
        if let Some(top) = list.top.get() {
            return Some(*top);
        }
        let read = |page| list.shape.top(&page, &list.listed.root);
        let top = self.fetched_page(0).and_then(read).or_else(|| self.file_page(0).and_then(read))?;
        Some(*list.top.get_or_init(|| top))
    }

    /// The page of that number and hash.
    fn page(&self, number: u64, wanted: &Hash) -> Option<Page> {
        let right = |page: &Page| hash(page) == *wanted;
        self.fetched_page(number).filter(right).or_else(|| self.file_page(number).filter(right))
    }

    fn fetched_page(&self, number: u64) -> Option<Page> {
        let (at, start) = (offset(number), piece_of(offset(number)));
        let bytes = self.fetched.get(&start)?;
        bytes.get(usize::try_from(at - start).ok()?..)?.first_chunk().copied()
    }

    fn file_page(&self, number: u64) -> Option<Page> {
        let mut page = [0; PAGE_BYTES];
        self.file.as_ref()?.read_exact_at(&mut page, offset(number)).ok()?;
        Some(page)
    }
}
