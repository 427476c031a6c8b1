//! The device of one layer, or of several that are merged: metadata from the table, content from the archives, zeros behind the end of each file.

use std::path::{Path, PathBuf};

use penstock_blob::{Blob, ByteRange, Digest};

use super::{
    OciLayer,
    encode::PAYLOAD_BYTES,
    extents::{Cursor, Level, MAX_LEVELS, levels},
    layout::BLOCK_BYTES,
    merged::parts,
};
use crate::{
    pages::{self, HEADER_FIELDS, PAGE_BYTES, PAGE_HEAD, Page, PageKind, Table, TableError, put},
    plan::Planner,
    units::{field, in_memory, u32_at, u64_at},
};

/// What the header of a table says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Facts {
    /// The uncompressed layer.
    pub(super) blob: Blob,
    pub(super) device_bytes: u64,
    /// Bytes of the device that the table holds itself.
    pub(super) metadata_bytes: u64,
    pub(super) extents: u64,
    pub(super) inodes: u64,
    /// Directories that no entry of the layer speaks of.
    pub(super) implied: u64,
}

impl Facts {
    pub(super) fn write(&self, page: &mut Page, levels: &[Level]) {
        put(page, HEADER_FIELDS, self.blob.digest.as_bytes());
        let numbers =
            [self.blob.size_bytes, self.device_bytes, self.metadata_bytes, self.extents, self.inodes, self.implied];
        for (i, number) in numbers.into_iter().enumerate() {
            put(page, HEADER_FIELDS + 32 + 8 * i, &number.to_le_bytes());
        }
        put(page, HEADER_FIELDS + 80, &u32::try_from(levels.len()).unwrap_or(u32::MAX).to_le_bytes());
    }

    /// The facts and levels, if they agree with each other and with the number of pages.
    fn read(page: &Page, pages: u32) -> Option<(Self, Vec<Level>)> {
        let number = |i: usize| u64_at(page, HEADER_FIELDS + 32 + 8 * i);
        let blob = Blob { digest: Digest::from_bytes(field(page, HEADER_FIELDS)), size_bytes: number(0) };
        let facts = Self {
            blob,
            device_bytes: number(1),
            metadata_bytes: number(2),
            extents: number(3),
            inodes: number(4),
            implied: number(5),
        };
        let metadata = u32::try_from(facts.metadata_bytes.div_ceil(PAYLOAD_BYTES as u64)).ok()?;
        let levels = levels(facts.extents, metadata.checked_add(1)?)?;
        let end = levels.last().map_or(Some(metadata + 1), |root| root.first.checked_add(root.pages))?;
        let whole = |bytes: u64| bytes.is_multiple_of(BLOCK_BYTES);
        let sound = whole(facts.device_bytes) && whole(facts.metadata_bytes) && facts.metadata_bytes > 0;
        let counted = in_memory(u32_at(page, HEADER_FIELDS + 80).into()) == levels.len() && levels.len() <= MAX_LEVELS;
        (sound && counted && facts.metadata_bytes <= facts.device_bytes && end == pages).then_some((facts, levels))
    }
}

/// What a layer's table is named by: the uncompressed layer and what its entries were taken from.
pub(super) fn identity(layer: &OciLayer) -> Digest {
    pages::identity("erofs", [layer.blob.digest, layer.contents])
}

/// Where the table of a layer is, made or not.
pub(super) fn path(maps_dir: &Path, layer: &OciLayer) -> PathBuf {
    pages::path(maps_dir, &identity(layer), pages::EROFS)
}

/// An opened table.
#[derive(Debug)]
pub(crate) struct Disk {
    table: Table,
    facts: Facts,
    levels: Vec<Level>,
    /// What holds the content, one after another.
    archives: Vec<Blob>,
}

impl Disk {
    /// The table of this layer, if there is one and it is sound as far as it is checked now. The layer's bytes are those of `archives`, one after
    /// another.
    pub(crate) fn open(maps_dir: &Path, layer: &OciLayer, archives: Vec<Blob>) -> Result<Option<Self>, TableError> {
        let Some((table, page)) = Table::open(&path(maps_dir, layer), identity(layer))? else { return Ok(None) };
        let facts = Facts::read(&page, table.pages()).filter(|(facts, _)| facts.blob == layer.blob);
        let Some((facts, levels)) = facts else {
            table.damaged(0, "its fields disagree");
            return Ok(None);
        };
        let disk = Self { table, facts, levels, archives };
        match disk.check_small() {
            Ok(()) => Ok(Some(disk)),
            Err(TableError::Damaged { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn check_small(&self) -> Result<(), TableError> {
        if !self.table.is_small() {
            return Ok(());
        }
        let metadata = 1..=u32::try_from(self.facts.metadata_bytes.div_ceil(PAYLOAD_BYTES as u64)).unwrap_or(0);
        let mut parts = vec![(PageKind::Metadata, metadata)];
        for (height, level) in self.levels.iter().enumerate() {
            let kind = if height == 0 { PageKind::Data } else { PageKind::Keys };
            parts.push((kind, level.first..=level.first + level.pages - 1));
        }
        for (kind, numbers) in parts {
            for number in numbers {
                self.table.read(kind, number, &mut [0; PAGE_BYTES])?;
            }
        }
        Ok(())
    }

    pub(crate) const fn device_bytes(&self) -> u64 {
        self.facts.device_bytes
    }

    /// What holds the content, one after another.
    pub(crate) fn archives(&self) -> &[Blob] {
        &self.archives
    }

    pub(crate) const fn extents(&self) -> u64 {
        self.facts.extents
    }

    pub(crate) const fn inodes(&self) -> u64 {
        self.facts.inodes
    }

    pub(crate) const fn implied(&self) -> u64 {
        self.facts.implied
    }

    /// Adds the steps of `range`, which lies on the device.
    pub(crate) fn plan(&self, range: ByteRange, planner: &mut Planner<'_>) -> Result<(), TableError> {
        let own = range.end().min(self.facts.metadata_bytes);
        let mut at = range.start();
        if let Ok(own) = ByteRange::new(at, own) {
            planner.own(self.metadata(own)?);
            at = own.end();
        }
        if at == range.end() {
            return Ok(());
        }
        let mut extents = Cursor::new(&self.table, &self.levels, at)?;
        while let Some(cursor) = &mut extents {
            let Some(extent) = cursor.next()? else { break };
            let from = extent.device.max(at);
            let until = extent.device.saturating_add(extent.range.len()).min(range.end());
            if from >= range.end() {
                break;
            }
            let start = extent.range.start() + (from - extent.device);
            let Ok(wanted) = ByteRange::new(start, start.saturating_add(until.saturating_sub(from))) else { continue };
            planner.zero(from - at);
            for (archive, part) in parts(&self.archives, wanted) {
                planner.plain(archive, part);
            }
            at = until;
        }
        planner.zero(range.end() - at);
        Ok(())
    }

    /// Bytes of the device that are in the table.
    fn metadata(&self, range: ByteRange) -> Result<bytes::Bytes, TableError> {
        let mut bytes = Vec::with_capacity(in_memory(range.len()));
        let mut page = [0; PAGE_BYTES];
        let mut at = range.start();
        while at < range.end() {
            let (nth, skip) = (at / PAYLOAD_BYTES as u64, in_memory(at % PAYLOAD_BYTES as u64));
            let number = u32::try_from(nth + 1).unwrap_or(u32::MAX);
            let held = usize::from(self.table.read(PageKind::Metadata, number, &mut page)?);
            let until = held.min(skip + in_memory(range.end() - at));
            let part = page[PAGE_HEAD..].get(skip..until).filter(|part| !part.is_empty());
            let part = part.ok_or("it holds too little").map_err(|what| self.table.damaged(number, what))?;
            bytes.extend_from_slice(part);
            at += part.len() as u64;
        }
        Ok(bytes.into())
    }
}
