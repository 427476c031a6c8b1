//! qcow2 disks: a file with two levels of tables, and the files below it that fill its gaps.
//!
//! Nothing of a table is kept: a plan asks the source where the bytes of its entries are, reads them if they are here, and names them as missing if
//! they are not, as it does with data. So tables are cached and evicted like data, and an open disk holds its headers. An entry that makes no
//! sense is a step that fails its check, by which its bytes are fetched anew. Format: docs/formats/qcow2.md.

mod entry;
mod header;
mod packed;

use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use penstock_blob::{Blob, BlobSource, ByteRange};

use self::{
    entry::Part,
    header::{Backing, Header},
};
pub use self::{
    header::{Compression, HeaderError},
    packed::PackedCluster,
};
use crate::{
    body::Body,
    image::{OpenError, layer_error},
    layer::LayerError,
    map::LayerRecord,
    pages::TableError,
    plan::{Look, Planner},
    units::{field, in_memory},
    window::{HEAD_BYTES, Window},
};

pub(crate) use self::header::MAGIC;

/// Most files of a chain. Each may cost a read two rounds, its L1 and its L2 entry, and a device gives up after 32.
pub const MAX_CHAIN: usize = 12;
/// Bytes of a table that are looked at, and named as missing, at once; at multiples of it in the file.
const SLICE_BYTES: usize = 4096;
const SLICE: u64 = SLICE_BYTES as u64;

/// An opened disk: its own file, and the ones below it.
#[derive(Debug)]
pub(crate) struct Disk {
    /// The file of the disk first.
    files: Vec<File>,
}

#[derive(Debug)]
enum File {
    Qcow2(Tables),
    Raw(Body),
}

/// A qcow2 file.
#[derive(Debug)]
struct Tables {
    blob: Blob,
    /// All of it.
    file: ByteRange,
    header: Header,
}

/// A run of parts that are one step.
#[derive(Debug, Clone, Copy)]
struct Run {
    part: Part,
    start: u64,
    end: u64,
}

impl Disk {
    /// Opens the disk whose file is the last of these blobs, each the backing file of the next one.
    pub(crate) async fn open(source: &Arc<dyn BlobSource>, blobs: &[Blob]) -> Result<Self, OpenError> {
        if blobs.len() > MAX_CHAIN {
            return Err(OpenError::TooLongChain { files: blobs.len() });
        }
        let reading = blobs.iter().rev().map(|&blob| async move {
            let read = read(source, blob).await;
            read.map(|header| (blob, header)).map_err(|error| layer_error(blob.digest, error))
        });
        let read: Vec<_> = stream::iter(reading.collect::<Vec<_>>()).buffered(MAX_CHAIN).try_collect().await?;
        chain(read).map(|files| Self { files })
    }

    /// Size of the device in bytes, as its file says it.
    pub(crate) fn device_bytes(&self) -> u64 {
        match self.files.first() {
            Some(File::Qcow2(tables)) => tables.header.device_bytes,
            Some(File::Raw(_)) | None => 0,
        }
    }

    /// Bytes of a cluster of its file.
    pub(crate) fn cluster_bytes(&self) -> u64 {
        match self.files.first() {
            Some(File::Qcow2(tables)) => tables.header.cluster_bytes(),
            Some(File::Raw(_)) | None => 0,
        }
    }

    /// How many files are below it.
    pub(crate) fn backing_files(&self) -> usize {
        self.files.len() - 1
    }

    /// Plans a read of device bytes.
    pub(crate) fn plan(&self, range: ByteRange, planner: &mut Planner<'_>) -> Result<(), TableError> {
        self.plan_from(0, range, planner)
    }

    /// Plans with the files from `depth` on.
    fn plan_from(&self, depth: usize, range: ByteRange, planner: &mut Planner<'_>) -> Result<(), TableError> {
        match self.files.get(depth) {
            None => {
                planner.zero(range.len());
                Ok(())
            }
            Some(File::Raw(body)) => body.plan(planner, range.start(), range.len()),
            Some(File::Qcow2(tables)) => Level { disk: self, depth, tables }.plan(range, planner),
        }
    }
}

/// A qcow2 file of a disk, and its place in the chain.
#[derive(Debug, Clone, Copy)]
struct Level<'a> {
    disk: &'a Disk,
    depth: usize,
    tables: &'a Tables,
}

impl Level<'_> {
    fn plan(self, range: ByteRange, planner: &mut Planner<'_>) -> Result<(), TableError> {
        let header = &self.tables.header;
        let end = range.end().min(header.device_bytes);
        let mut at = range.start();
        while at < end {
            let until = end.min((at / header.table_span() + 1) * header.table_span());
            self.plan_table((at, until), planner)?;
            at = until;
        }
        planner.zero(range.end() - at);
        Ok(())
    }

    /// Plans bytes that one L2 table describes.
    fn plan_table(self, (at, until): (u64, u64), planner: &mut Planner<'_>) -> Result<(), TableError> {
        let Tables { blob, header, .. } = self.tables;
        let l1_at = header.l1_offset + at / header.table_span() * 8;
        let mut entry = [0; 8];
        let table = match planner.look(blob, l1_at, &mut entry) {
            Look::Here => entry::table(header, u64::from_be_bytes(entry), blob.size_bytes),
            Look::Missing => {
                planner.unknown(until - at, *blob, self.tables.slice(l1_at));
                return Ok(());
            }
            Look::Unreadable => Err(UNREADABLE),
        };
        match table {
            Ok(Some(table)) => self.plan_entries((at, until), table, planner),
            Ok(None) => self.flush(Run { part: Part::Below, start: at, end: until }, planner),
            Err(what) => {
                planner.wrong(until - at, *blob, self.tables.range(l1_at, 8), what);
                Ok(())
            }
        }
    }

    /// Plans bytes by the entries of their L2 table, a slice of it at a time.
    fn plan_entries(
        self,
        (mut at, until): (u64, u64),
        table: u64,
        planner: &mut Planner<'_>,
    ) -> Result<(), TableError> {
        let Tables { blob, header, .. } = self.tables;
        let (size, cluster) = (header.entry_bytes(), header.cluster_bytes());
        let mut buf = [0; SLICE_BYTES];
        while at < until {
            let first = table + at % header.table_span() / cluster * size;
            let here = (first / SLICE + 1) * SLICE - first;
            let wanted = ((until - 1) / cluster - at / cluster + 1) * size;
            let len = here.min(wanted);
            let end = until.min((at / cluster + len / size) * cluster);
            let entries = &mut buf[..in_memory(len)];
            match planner.look(blob, first, entries) {
                Look::Here => self.plan_parts((at, end), (first, entries), planner)?,
                Look::Missing => planner.unknown(end - at, *blob, self.tables.slice(first)),
                Look::Unreadable => planner.wrong(end - at, *blob, self.tables.range(first, len), UNREADABLE),
            }
            at = end;
        }
        Ok(())
    }

    /// Plans bytes whose entries are here; the first of those is that of the first byte, and stands at `first` in the file.
    fn plan_parts(
        self,
        (start, end): (u64, u64),
        (first, entries): (u64, &[u8]),
        planner: &mut Planner<'_>,
    ) -> Result<(), TableError> {
        let Tables { blob, header, .. } = self.tables;
        let (cluster, part_bytes) = (header.cluster_bytes(), header.part_bytes());
        let mut run: Option<Run> = None;
        let mut at = start;
        while at < end {
            let nth = (at / cluster - start / cluster) * header.entry_bytes();
            let entry = words(entries, nth, header.extended);
            let sub = u32::try_from(at % cluster / part_bytes).unwrap_or(0);
            let part = match entry::part(header, entry, sub, blob.size_bytes) {
                Part::Plain(place) => Part::Plain(place + at % part_bytes),
                part => part,
            };
            // A compressed cluster has no parts.
            let unit = if matches!(part, Part::Packed(_)) { cluster } else { part_bytes };
            let until = end.min((at / unit + 1) * unit);
            match run.as_mut().filter(|run| run.goes_on(part)) {
                Some(run) => run.end = until,
                None => {
                    let before = run.replace(Run { part, start: at, end: until });
                    before.map_or(Ok(()), |before| self.flush(before, planner))?;
                }
            }
            if let Part::Wrong(what) = part {
                run = None;
                planner.wrong(until - at, *blob, self.tables.range(first + nth, header.entry_bytes()), what);
            }
            at = until;
        }
        run.map_or(Ok(()), |run| self.flush(run, planner))
    }

    /// Adds the steps of a run.
    fn flush(self, run: Run, planner: &mut Planner<'_>) -> Result<(), TableError> {
        let Tables { blob, header, .. } = self.tables;
        let len = run.end - run.start;
        match run.part {
            Part::Below => {
                if let Ok(range) = ByteRange::at(run.start, len) {
                    self.disk.plan_from(self.depth + 1, range, planner)?;
                }
            }
            Part::Plain(at) => {
                // The last cluster of a file may be cut: what is not there reads as zeros, as in qemu.
                let inside = blob.size_bytes.saturating_sub(at).min(len);
                if let Ok(range) = ByteRange::at(at, inside) {
                    planner.plain(*blob, range);
                }
                planner.zero(len - inside);
            }
            Part::Packed(range) => {
                let small = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
                planner.packed(len, (*blob, range), |located| PackedCluster {
                    blob: *blob,
                    range,
                    located,
                    compression: header.compression,
                    cluster_bytes: small(header.cluster_bytes()),
                    skip_bytes: small(run.start % header.cluster_bytes()),
                });
            }
            Part::Zero | Part::Wrong(_) => planner.zero(len),
        }
        Ok(())
    }
}

impl Tables {
    /// Bytes of a table: they lie inside the file, which was checked when the table was found.
    fn range(&self, at: u64, len: u64) -> ByteRange {
        ByteRange::at(at, len).unwrap_or(self.file)
    }

    /// The slice of the file with the table's entry at `at`.
    fn slice(&self, at: u64) -> ByteRange {
        let start = at / SLICE * SLICE;
        ByteRange::new(start, (start + SLICE).min(self.file.end())).unwrap_or(self.file)
    }
}

/// The entry at `at`: its first half, and its second one when it has two.
fn words(entries: &[u8], at: u64, extended: bool) -> (u64, u64) {
    let word = |at: usize| entries.get(at..at + 8).map_or(0, |word| u64::from_be_bytes(field(word, 0)));
    let at = in_memory(at);
    (word(at), if extended { word(at + 8) } else { 0 })
}

const UNREADABLE: &str = "the local copy of a table cannot be read";

impl Run {
    /// Whether `next`, which follows it on the device, follows it in the file too.
    fn goes_on(&self, next: Part) -> bool {
        match (self.part, next) {
            (Part::Below, Part::Below) | (Part::Zero, Part::Zero) => true,
            (Part::Plain(at), Part::Plain(next)) => at + (self.end - self.start) == next,
            _ => false,
        }
    }
}

/// The header of a file; `None` when it is no qcow2 file. One that makes no sense is fetched anew once.
async fn read(source: &Arc<dyn BlobSource>, blob: Blob) -> Result<Option<Header>, LayerError> {
    let window = Window::new(Arc::clone(source), blob);
    let Ok(head) = ByteRange::new(0, blob.size_bytes.min(HEAD_BYTES)) else { return Err(LayerError::Empty) };
    let mut retried = false;
    loop {
        window.load_more(head).await?;
        let head = window.head().unwrap_or_default();
        if !head.starts_with(&MAGIC) {
            return Ok(None);
        }
        match Header::parse(&head, blob.size_bytes) {
            Err(error) if !retried => {
                tracing::warn!(blob = %blob.digest, %error, "a qcow2 header makes no sense; fetching it again");
                window.reject();
                retried = true;
            }
            parsed => return Ok(Some(parsed?)),
        }
    }
}

/// The files of a chain, the disk's own first, if each is what the one above says that it is.
fn chain(read: Vec<(Blob, Option<Header>)>) -> Result<Vec<File>, OpenError> {
    let refuse = |blob: Blob, error| Err(layer_error(blob.digest, error));
    let mut above = Backing::Qcow2;
    let mut files = Vec::with_capacity(read.len());
    for (blob, header) in read {
        let header = match (above, header) {
            (Backing::None, _) => return refuse(blob, LayerError::NotBacked),
            (Backing::Qcow2, None) => return refuse(blob, LayerError::BackingFormat),
            (Backing::Raw, _) => None,
            (Backing::Qcow2 | Backing::Unsaid, header) => header,
        };
        let Some(file) = blob.all() else { return refuse(blob, LayerError::Empty) };
        above = header.as_ref().map_or(Backing::None, |header| header.backing);
        files.push(match header {
            Some(header) => File::Qcow2(Tables { blob, file, header }),
            None => File::Raw(Body::plain(LayerRecord { blob, file, zfile: false })),
        });
    }
    match files.last() {
        Some(File::Qcow2(Tables { blob, .. })) if above != Backing::None => refuse(*blob, LayerError::NoBacking),
        _ => Ok(files),
    }
}
