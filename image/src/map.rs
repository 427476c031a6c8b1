//! The map of a stack: which layer holds each extent of the device, in pages.
//!
//! A static B+tree: leaves of 255 extents in order, then a level of first sectors over them, up to one root. The root
//! stays in memory (4 KiB per image); a lookup reads one page per level below it: one at 130 000 extents, two at 66
//! million. Format: docs/formats/map.md, section 2.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use penstock_blob::{Blob, ByteRange, Digest};

use crate::{
    draft::Sealed,
    lsmt::{ENTRY_BYTES, Entry},
    pages::{self, HEADER_FIELDS, PAGE_BYTES, PAGE_HEAD, Page, PageKind, Table, TableError, TableWriter, put},
    units::{field, in_memory, u32_at, u64_at},
};

/// Most extents of a map: 16 Mi, a file of 256 MiB. The largest images that upstream plotted have 24 000.
pub(crate) const MAX_EXTENTS: u64 = 1 << 24;
/// Extents in a leaf.
pub(crate) const EXTENTS_PER_PAGE: usize = (PAGE_BYTES - PAGE_HEAD) / ENTRY_BYTES;
/// First sectors in a page of an upper level.
pub(crate) const KEYS_PER_PAGE: u32 = 510;
const _: () = assert!(KEYS_PER_PAGE as usize == (PAGE_BYTES - PAGE_HEAD) / 8);
/// Bytes of a layer's record.
const LAYER_BYTES: usize = 64;
/// Layers in a page.
const LAYERS_PER_PAGE: usize = (PAGE_BYTES - PAGE_HEAD) / LAYER_BYTES;
/// Levels that a header page has room for; [`MAX_EXTENTS`] needs 3.
const MAX_LEVELS: usize = 4;

/// One layer of the map: where its layer file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LayerRecord {
    /// The blob.
    pub(crate) blob: Blob,
    /// The layer file, or the ZFile around it, inside the blob.
    pub(crate) file: ByteRange,
    /// Whether that is a ZFile.
    pub(crate) zfile: bool,
}

impl LayerRecord {
    fn to_bytes(self) -> [u8; LAYER_BYTES] {
        let mut bytes = [0; LAYER_BYTES];
        bytes[..32].copy_from_slice(self.blob.digest.as_bytes());
        bytes[32..40].copy_from_slice(&self.blob.size_bytes.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.file.start().to_le_bytes());
        bytes[48..56].copy_from_slice(&self.file.len().to_le_bytes());
        bytes[56] = u8::from(self.zfile);
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let blob = Blob { digest: Digest::from_bytes(field(bytes, 0)), size_bytes: u64_at(bytes, 32) };
        let file = ByteRange::at(u64_at(bytes, 40), u64_at(bytes, 48)).ok()?;
        (file.end() <= blob.size_bytes).then_some(Self { blob, file, zfile: bytes[56] != 0 })
    }
}

/// One level of the tree: its pages stand together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Level {
    first: u32,
    pages: u32,
}

/// What names the map of this stack of blobs.
pub(crate) fn identity(layers: &[Blob]) -> Digest {
    pages::identity("map", layers.iter().map(|blob| blob.digest))
}

/// Where the map of this stack of blobs is, made or not.
pub(crate) fn path_of(maps_dir: &Path, layers: &[Blob]) -> PathBuf {
    path(maps_dir, &identity(layers))
}

fn path(maps_dir: &Path, identity: &Digest) -> PathBuf {
    pages::path(maps_dir, identity, pages::MAP)
}

/// An opened map.
pub(crate) struct Map {
    table: Table,
    device_bytes: u64,
    extents: u64,
    layers: Vec<LayerRecord>,
    /// Leaves first, root last; none for a device of zeros.
    levels: Vec<Level>,
    root: Box<Page>,
}

impl fmt::Debug for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { table, device_bytes, extents, layers, levels, root: _ } = self;
        let mut map = f.debug_struct("Map");
        map.field("table", table).field("device_bytes", device_bytes).field("extents", extents);
        map.field("layers", layers).field("levels", levels).finish_non_exhaustive()
    }
}

impl Map {
    /// The map of this stack of blobs (bottom first), if there is one and it is sound as far as it is checked now.
    pub(crate) fn open(maps_dir: &Path, layers: &[Blob]) -> Result<Option<Self>, TableError> {
        let identity = identity(layers);
        let Some((table, header)) = Table::open(&path(maps_dir, &identity), identity)? else { return Ok(None) };
        let sound = Self::load(table, &header, layers).and_then(|map| map.check_small().map(|()| map));
        match sound {
            Ok(map) => Ok(Some(map)),
            Err(TableError::Damaged { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn load(table: Table, header: &Page, layers: &[Blob]) -> Result<Self, TableError> {
        let device_bytes = u64_at(header, HEADER_FIELDS);
        let extents = u64_at(header, HEADER_FIELDS + 8);
        let levels = read_levels(header, extents, layers.len(), table.pages());
        let levels = levels.ok_or("its fields disagree").map_err(|what| table.damaged(0, what))?;
        let records = read_layers(&table, layers)?;
        let mut root = Box::new([0; PAGE_BYTES]);
        if let Some(level) = levels.last() {
            let kind = if levels.len() == 1 { PageKind::Extents } else { PageKind::Keys };
            table.read(kind, level.first, &mut root)?;
        }
        Ok(Self { table, device_bytes, extents, layers: records, levels, root })
    }

    fn check_small(&self) -> Result<(), TableError> {
        if self.table.is_small() {
            for (height, level) in self.levels.iter().enumerate() {
                for page in level.first..level.first + level.pages {
                    self.table.read(kind_at(height), page, &mut [0; PAGE_BYTES])?;
                }
            }
        }
        Ok(())
    }

    /// Device size in bytes.
    pub(crate) const fn device_bytes(&self) -> u64 {
        self.device_bytes
    }

    /// Whether a page of it was found damaged.
    pub(crate) fn is_broken(&self) -> bool {
        self.table.is_broken()
    }

    /// Extents in the map.
    pub(crate) const fn extents(&self) -> u64 {
        self.extents
    }

    pub(crate) fn layers(&self) -> &[LayerRecord] {
        &self.layers
    }

    /// The extents from the first one that ends behind `sector` on.
    pub(crate) fn from(&self, sector: u64) -> Result<Cursor<'_>, TableError> {
        let leaves = self.levels.first().copied().unwrap_or(Level { first: 0, pages: 0 });
        let mut cursor = Cursor::new(&self.table, self.layers.len(), leaves, *self.root);
        let Some(root) = self.levels.last() else { return Ok(cursor) };
        let mut number = root.first;
        for height in (1..self.levels.len()).rev() {
            let held = usize::from(u16::from_le_bytes(field(&cursor.page, 8)));
            let below = self.levels[height - 1];
            let slot = slot_of(&cursor.page, held, sector);
            let child =
                (number - self.levels[height].first).checked_mul(KEYS_PER_PAGE).and_then(|c| c.checked_add(slot));
            let child = child.filter(|&child| child < below.pages);
            let child = child.ok_or("it points outside its level").map_err(|what| self.table.damaged(number, what))?;
            number = below.first + child;
            self.table.read(kind_at(height - 1), number, &mut cursor.page)?;
        }
        cursor.leaf = number - leaves.first;
        cursor.enter(number)?;
        cursor.slot = cursor.first_ending_behind(sector);
        Ok(cursor)
    }
}

/// The leaves of a map in the making: everything below a sector that grows.
#[derive(Debug)]
pub(crate) struct Begun {
    table: Table,
    layers: usize,
    first: u32,
    /// The first sector of each leaf that is there: at most 512 KiB for the largest map, given back once it is whole.
    keys: Vec<u64>,
    below: u64,
}

impl Begun {
    /// The first sector of which is not known yet what is there.
    pub(crate) const fn below(&self) -> u64 {
        self.below
    }

    /// The extents from the first one that ends behind `sector` on: those below [`Begun::below`], and perhaps more.
    pub(crate) fn from(&self, sector: u64) -> Result<Cursor<'_>, TableError> {
        let leaves = Level { first: self.first, pages: u32::try_from(self.keys.len()).unwrap_or(0) };
        let mut cursor = Cursor::new(&self.table, self.layers, leaves, [0; PAGE_BYTES]);
        if leaves.pages > 0 {
            let leaf = self.keys.partition_point(|&key| key <= sector).saturating_sub(1);
            cursor.leaf = u32::try_from(leaf).unwrap_or(0);
            let number = leaves.first + cursor.leaf;
            self.table.read(PageKind::Extents, number, &mut cursor.page)?;
            cursor.enter(number)?;
            cursor.slot = cursor.first_ending_behind(sector);
        }
        Ok(cursor)
    }
}

const fn kind_at(height: usize) -> PageKind {
    if height == 0 { PageKind::Extents } else { PageKind::Keys }
}

/// Which key of a page leads to `sector`: the last one that is not beyond it, or the first.
fn slot_of(page: &Page, held: usize, sector: u64) -> u32 {
    let key = |slot: usize| u64_at(page, PAGE_HEAD + 8 * slot);
    let (mut low, mut high) = (0, held.min(in_memory(u64::from(KEYS_PER_PAGE))));
    while low < high {
        let middle = low.midpoint(high);
        if key(middle) <= sector { low = middle + 1 } else { high = middle }
    }
    u32::try_from(low.saturating_sub(1)).unwrap_or(KEYS_PER_PAGE)
}

/// The levels, if the header's numbers agree with each other and with the length of the file.
fn read_levels(header: &Page, extents: u64, layers: usize, pages: u32) -> Option<Vec<Level>> {
    let at = HEADER_FIELDS + 16;
    let levels = in_memory(u64::from(u32_at(header, at + 4)));
    if extents > MAX_EXTENTS || levels > MAX_LEVELS || in_memory(u64::from(u32_at(header, at))) != layers {
        return None;
    }
    let level = |i: usize| Level { first: u32_at(header, at + 8 + 8 * i), pages: u32_at(header, at + 12 + 8 * i) };
    let levels: Vec<Level> = (0..levels).map(level).collect();
    let mut next = 1 + u32::try_from(layers.div_ceil(LAYERS_PER_PAGE)).ok()?;
    let mut wanted = u32::try_from(extents.div_ceil(EXTENTS_PER_PAGE as u64)).ok()?;
    for level in &levels {
        if *level != (Level { first: next, pages: wanted }) {
            return None;
        }
        next = next.checked_add(wanted)?;
        wanted = wanted.div_ceil(KEYS_PER_PAGE);
    }
    let complete = levels.last().map_or(extents == 0, |root| root.pages == 1);
    (complete && next == pages).then_some(levels)
}

fn read_layers(table: &Table, layers: &[Blob]) -> Result<Vec<LayerRecord>, TableError> {
    let mut page = [0; PAGE_BYTES];
    let mut records = Vec::with_capacity(layers.len());
    for (number, wanted) in (1..).zip(layers.chunks(LAYERS_PER_PAGE)) {
        let held = table.read(PageKind::Layers, number, &mut page)?;
        let found = page[PAGE_HEAD..].chunks_exact(LAYER_BYTES).take(usize::from(held));
        let before = records.len();
        records.extend(
            found
                .zip(wanted)
                .filter_map(|(bytes, blob)| LayerRecord::from_bytes(bytes).filter(|record| record.blob == *blob)),
        );
        if records.len() - before != wanted.len() {
            return Err(table.damaged(number, "it lists other layers"));
        }
    }
    Ok(records)
}

/// A leaf's first 8 bytes hold the length above the sector's 50 bits.
const SECTOR_MASK: u64 = (1 << 50) - 1;

/// The first sector of a leaf.
fn key_of(leaf: &Page) -> u64 {
    u64_at(leaf, PAGE_HEAD) & SECTOR_MASK
}

/// A place in a map, moving upwards. Holds one page.
pub(crate) struct Cursor<'a> {
    table: &'a Table,
    layers: usize,
    leaves: Level,
    page: Page,
    leaf: u32,
    held: usize,
    slot: usize,
}

impl<'a> Cursor<'a> {
    const fn new(table: &'a Table, layers: usize, leaves: Level, page: Page) -> Self {
        Self { table, layers, leaves, page, leaf: 0, held: 0, slot: 0 }
    }

    /// The next extent.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, TableError> {
        let leaves = self.leaves;
        if leaves.pages == 0 {
            return Ok(None);
        }
        while self.slot == self.held {
            self.leaf += 1;
            if self.leaf >= leaves.pages {
                return Ok(None);
            }
            let number = leaves.first + self.leaf;
            self.table.read(PageKind::Extents, number, &mut self.page)?;
            self.enter(number)?;
        }
        let entry = self.entry(self.slot);
        self.slot += 1;
        if usize::from(entry.tag) >= self.layers || entry.sectors == 0 {
            return Err(self.table.damaged(leaves.first + self.leaf, "an extent names no layer"));
        }
        Ok(Some(entry))
    }

    /// Begins with the leaf that is in `page`.
    fn enter(&mut self, number: u32) -> Result<(), TableError> {
        self.slot = 0;
        self.held = usize::from(u16::from_le_bytes(field(&self.page, 8)));
        if self.held == 0 || self.held > EXTENTS_PER_PAGE {
            return Err(self.table.damaged(number, "it holds another number of extents"));
        }
        Ok(())
    }

    fn entry(&self, slot: usize) -> Entry {
        Entry::from_bytes(&field(&self.page, PAGE_HEAD + ENTRY_BYTES * slot))
    }

    fn first_ending_behind(&self, sector: u64) -> usize {
        let (mut low, mut high) = (0, self.held);
        while low < high {
            let middle = low.midpoint(high);
            if self.entry(middle).end() <= sector { low = middle + 1 } else { high = middle }
        }
        low
    }
}

impl Begun {
    /// Adds leaves, as [`MapWriter::show`] gives them.
    pub(crate) fn add(&mut self, (keys, below): (Vec<u64>, u64)) {
        self.keys.extend(keys);
        self.below = below;
    }
}

/// Writes a map from its extents, in order.
pub(crate) struct MapWriter {
    writer: TableWriter,
    blobs: Vec<Blob>,
    page: Page,
    held: u16,
    extents: u64,
    /// First sectors of the leaves since they were last taken.
    keys: Vec<u64>,
    /// Where the last extent ends.
    end: u64,
}

impl MapWriter {
    pub(crate) fn new(maps_dir: &Path, layers: &[LayerRecord]) -> Result<Self, TableError> {
        let blobs: Vec<Blob> = layers.iter().map(|layer| layer.blob).collect();
        let identity = identity(&blobs);
        let mut writer = TableWriter::new(&path(maps_dir, &identity), identity)?;
        for some in layers.chunks(LAYERS_PER_PAGE) {
            let mut page = [0; PAGE_BYTES];
            let mut held = 0;
            for layer in some {
                put(&mut page, PAGE_HEAD + LAYER_BYTES * usize::from(held), &layer.to_bytes());
                held += 1;
            }
            writer.push(PageKind::Layers, &mut page, held)?;
        }
        Ok(Self { writer, blobs, page: [0; PAGE_BYTES], held: 0, extents: 0, keys: Vec::new(), end: 0 })
    }

    const fn first_leaf(&self) -> u32 {
        // At most 255 layers: 5 pages.
        let pages = self.blobs.len().div_ceil(LAYERS_PER_PAGE);
        1 + if pages > 255 { 255 } else { pages.to_le_bytes()[0] as u32 }
    }

    /// Nothing of the map yet: what [`MapWriter::show`] adds to.
    pub(crate) fn begun(&mut self) -> Result<Begun, TableError> {
        self.writer.flush()?;
        let (first, layers) = (self.first_leaf(), self.blobs.len());
        Ok(Begun { table: self.writer.table()?, layers, first, keys: Vec::new(), below: 0 })
    }

    /// What was written since the last call: the first sectors of new leaves, which can be read from here on, and the sector below which no more comes.
    pub(crate) fn show(&mut self) -> Result<(Vec<u64>, u64), TableError> {
        self.writer.flush()?;
        let below = if self.held == 0 { self.end } else { key_of(&self.page) };
        Ok((std::mem::take(&mut self.keys), below))
    }

    /// Adds the next extent; its tag is the layer.
    pub(crate) fn push(&mut self, extent: Entry) -> Result<(), TableError> {
        put(&mut self.page, PAGE_HEAD + ENTRY_BYTES * usize::from(self.held), &extent.to_bytes());
        self.held += 1;
        self.extents += 1;
        self.end = extent.end();
        if usize::from(self.held) == EXTENTS_PER_PAGE { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), TableError> {
        self.keys.push(key_of(&self.page));
        self.writer.push(PageKind::Extents, &mut self.page, self.held)?;
        (self.page, self.held) = ([0; PAGE_BYTES], 0);
        Ok(())
    }

    /// Writes the upper levels: the whole map, and the file that is to get its name.
    pub(crate) fn finish(mut self, device_bytes: u64) -> Result<(Map, Sealed), TableError> {
        let leaves = self.first_leaf();
        if self.held > 0 {
            self.flush()?;
        }
        let mut levels = Vec::new();
        let mut level = Level { first: leaves, pages: self.writer.next() - leaves };
        while level.pages > 0 {
            levels.push(level);
            if level.pages == 1 {
                break;
            }
            level = self.level_above(level)?;
        }
        let mut header = [0; PAGE_BYTES];
        put(&mut header, HEADER_FIELDS, &device_bytes.to_le_bytes());
        put(&mut header, HEADER_FIELDS + 8, &self.extents.to_le_bytes());
        put(&mut header, HEADER_FIELDS + 16, &u32::try_from(self.blobs.len()).unwrap_or(u32::MAX).to_le_bytes());
        put(&mut header, HEADER_FIELDS + 20, &u32::try_from(levels.len()).unwrap_or(u32::MAX).to_le_bytes());
        for (i, level) in levels.iter().enumerate() {
            put(&mut header, HEADER_FIELDS + 24 + 8 * i, &level.first.to_le_bytes());
            put(&mut header, HEADER_FIELDS + 28 + 8 * i, &level.pages.to_le_bytes());
        }
        let table = self.writer.table()?;
        let sealed = self.writer.seal(&mut header)?;
        Ok((Map::load(table, &header, &self.blobs)?, sealed))
    }

    /// Writes the first sectors of a level's pages as the level above it.
    fn level_above(&mut self, below: Level) -> Result<Level, TableError> {
        let first = self.writer.next();
        let mut page = [0; PAGE_BYTES];
        let mut held = 0_u16;
        for number in below.first..below.first + below.pages {
            let key = self.writer.first_key(number)? & SECTOR_MASK;
            put(&mut page, PAGE_HEAD + 8 * usize::from(held), &key.to_le_bytes());
            held += 1;
            if u32::from(held) == KEYS_PER_PAGE || number + 1 == below.first + below.pages {
                self.writer.push(PageKind::Keys, &mut page, held)?;
                (page, held) = ([0; PAGE_BYTES], 0);
            }
        }
        Ok(Level { first, pages: self.writer.next() - first })
    }
}

#[cfg(test)]
mod tests;
