//! Where the content of files is: device bytes to bytes of the uncompressed layer, in pages of a table.
//!
//! A static tree like that of a stack's map (`map`), of extents that begin and end at any byte: the pieces of sparse files do.

use penstock_blob::ByteRange;

use crate::{
    pages::{PAGE_BYTES, PAGE_HEAD, Page, PageKind, Table, TableError, TableWriter, put},
    units::{field, in_memory, u64_at},
};

/// Bytes of an extent.
const EXTENT_BYTES: usize = 24;
/// Extents in a leaf.
pub(super) const EXTENTS_PER_PAGE: usize = (PAGE_BYTES - PAGE_HEAD) / EXTENT_BYTES;
/// Keys in a page of an upper level.
const KEYS_PER_PAGE: u32 = 510;
/// Levels that a header has room for: four reach 170 x 510^3 extents.
pub(super) const MAX_LEVELS: usize = 4;

/// One run of device bytes that is one run of the layer's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// Its first byte on the device.
    pub(super) device: u64,
    /// Its bytes in the uncompressed layer.
    pub(super) range: ByteRange,
}

/// One level of the tree: its pages stand together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Level {
    pub(super) first: u32,
    pub(super) pages: u32,
}

/// Writes extents, in order.
pub(super) struct ExtentsWriter<'a> {
    writer: &'a mut TableWriter,
    first: u32,
    page: Page,
    held: u16,
    count: u64,
}

impl<'a> ExtentsWriter<'a> {
    pub(super) const fn new(writer: &'a mut TableWriter) -> Self {
        let first = writer.next();
        Self { writer, first, page: [0; PAGE_BYTES], held: 0, count: 0 }
    }

    pub(super) fn push(&mut self, extent: Extent) -> Result<(), TableError> {
        let at = PAGE_HEAD + EXTENT_BYTES * usize::from(self.held);
        put(&mut self.page, at, &extent.device.to_le_bytes());
        put(&mut self.page, at + 8, &extent.range.start().to_le_bytes());
        put(&mut self.page, at + 16, &extent.range.len().to_le_bytes());
        self.held += 1;
        self.count += 1;
        if usize::from(self.held) == EXTENTS_PER_PAGE { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), TableError> {
        self.writer.push(PageKind::Data, &mut self.page, self.held)?;
        (self.page, self.held) = ([0; PAGE_BYTES], 0);
        Ok(())
    }

    /// Writes the upper levels; answers how many extents there are, and all levels.
    pub(super) fn finish(mut self) -> Result<(u64, Vec<Level>), TableError> {
        if self.held > 0 {
            self.flush()?;
        }
        let mut levels = Vec::new();
        let mut level = Level { first: self.first, pages: self.writer.next() - self.first };
        while level.pages > 0 {
            levels.push(level);
            if level.pages == 1 {
                break;
            }
            level = self.level_above(level)?;
        }
        Ok((self.count, levels))
    }

    fn level_above(&mut self, below: Level) -> Result<Level, TableError> {
        let first = self.writer.next();
        let (mut page, mut held) = ([0; PAGE_BYTES], 0_u16);
        for number in below.first..below.first + below.pages {
            let key = self.writer.first_key(number)?;
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

/// The levels over `extents`, of which the first page is `first`, as they must be; `None` when there are too many.
pub(super) fn levels(extents: u64, first: u32) -> Option<Vec<Level>> {
    let mut level = Level { first, pages: u32::try_from(extents.div_ceil(EXTENTS_PER_PAGE as u64)).ok()? };
    let mut levels = Vec::new();
    while level.pages > 0 {
        levels.push(level);
        if level.pages == 1 {
            break;
        }
        level = Level { first: level.first.checked_add(level.pages)?, pages: level.pages.div_ceil(KEYS_PER_PAGE) };
    }
    (levels.len() <= MAX_LEVELS).then_some(levels)
}

/// A place among the extents, moving upwards. Holds one page.
pub(super) struct Cursor<'a> {
    table: &'a Table,
    leaves: Level,
    page: Page,
    leaf: u32,
    held: usize,
    slot: usize,
}

impl<'a> Cursor<'a> {
    /// The extents from the first one that ends behind device byte `at` on; `None` when there are none at all. The root is read here.
    pub(super) fn new(table: &'a Table, levels: &[Level], at: u64) -> Result<Option<Self>, TableError> {
        let (Some(&leaves), Some(root)) = (levels.first(), levels.last()) else { return Ok(None) };
        let mut cursor = Self { table, leaves, page: [0; PAGE_BYTES], leaf: 0, held: 0, slot: 0 };
        let mut number = root.first;
        for height in (1..levels.len()).rev() {
            let held = usize::from(table.read(PageKind::Keys, number, &mut cursor.page)?);
            let slot = slot_of(&cursor.page, held, at);
            let child = (number - levels[height].first).checked_mul(KEYS_PER_PAGE).and_then(|c| c.checked_add(slot));
            let below = levels[height - 1];
            let child = child.filter(|&child| child < below.pages);
            number = below.first + child.ok_or("it points outside its level").map_err(|e| table.damaged(number, e))?;
        }
        cursor.leaf = number - leaves.first;
        cursor.enter()?;
        cursor.slot = cursor.first_ending_behind(at);
        Ok(Some(cursor))
    }

    /// The next extent.
    pub(super) fn next(&mut self) -> Result<Option<Extent>, TableError> {
        while self.slot == self.held {
            self.leaf += 1;
            if self.leaf >= self.leaves.pages {
                return Ok(None);
            }
            self.enter()?;
        }
        self.slot += 1;
        let extent = self.extent(self.slot - 1);
        let wrong = |_| self.table.damaged(self.leaves.first + self.leaf, "an extent is impossible");
        extent.map(Some).map_err(wrong)
    }

    /// Reads the leaf and begins with it.
    fn enter(&mut self) -> Result<(), TableError> {
        let number = self.leaves.first + self.leaf;
        self.held = usize::from(self.table.read(PageKind::Data, number, &mut self.page)?);
        self.slot = 0;
        if self.held == 0 || self.held > EXTENTS_PER_PAGE {
            return Err(self.table.damaged(number, "it holds another number of extents"));
        }
        Ok(())
    }

    fn extent(&self, slot: usize) -> Result<Extent, penstock_blob::RangeError> {
        let bytes: [u8; EXTENT_BYTES] = field(&self.page, PAGE_HEAD + EXTENT_BYTES * slot);
        Ok(Extent { device: u64_at(&bytes, 0), range: ByteRange::at(u64_at(&bytes, 8), u64_at(&bytes, 16))? })
    }

    fn first_ending_behind(&self, at: u64) -> usize {
        let ends = |slot| self.extent(slot).map_or(0, |extent| extent.device.saturating_add(extent.range.len()));
        let (mut low, mut high) = (0, self.held);
        while low < high {
            let middle = low.midpoint(high);
            if ends(middle) <= at { low = middle + 1 } else { high = middle }
        }
        low
    }
}

/// Which key of a page leads to `at`: the last one that is not beyond it, or the first.
fn slot_of(page: &Page, held: usize, at: u64) -> u32 {
    let (mut low, mut high) = (0, held.min(in_memory(KEYS_PER_PAGE.into())));
    while low < high {
        let middle = low.midpoint(high);
        if u64_at(page, PAGE_HEAD + 8 * middle) <= at { low = middle + 1 } else { high = middle }
    }
    u32::try_from(low.saturating_sub(1)).unwrap_or(KEYS_PER_PAGE)
}
