//! The bytes of an EROFS: superblock, inodes, directories (Linux' `fs/erofs/erofs_fs.h`; docs/formats/erofs-layer.md).

use penstock_blob::Digest;

use super::{
    layout::{BLOCK_BYTES, DIRENT_BYTES, Layout, Shape, blocks, shape},
    tree::{Inode, Kind, Tree},
};
use crate::{
    crc,
    pages::{PAGE_BYTES, PAGE_HEAD, Page, PageKind, TableError, TableWriter},
    units::in_memory,
};

/// Metadata in a page of the table.
pub(super) const PAYLOAD_BYTES: usize = PAGE_BYTES - PAGE_HEAD;
/// Where the superblock is.
const SUPERBLOCK: usize = 1024;
/// EROFS' magic number.
const MAGIC: u32 = 0xe0f5_e1e2;
/// The superblock has a checksum; inodes have times of modification.
const FEATURES: u32 = 1 | 2;
/// Content in blocks of its own.
const FLAT_PLAIN: u16 = 0;
/// Its end behind the inode.
const FLAT_INLINE: u16 = 2;

/// Metadata on its way into pages.
struct Stream<'a> {
    writer: &'a mut TableWriter,
    page: Page,
    held: usize,
    at: u64,
    /// The first block, until it is complete and its checksum known.
    first: Vec<u8>,
}

impl Stream<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), TableError> {
        self.at += bytes.len() as u64;
        let block = in_memory(BLOCK_BYTES);
        if self.first.len() == block {
            return self.append(bytes);
        }
        let (before, behind) = bytes.split_at(bytes.len().min(block - self.first.len()));
        self.first.extend_from_slice(before);
        if self.first.len() < block {
            return Ok(());
        }
        let mut first = std::mem::take(&mut self.first);
        let checksum = crc::raw(!0, &first[SUPERBLOCK..]);
        first[SUPERBLOCK + 4..SUPERBLOCK + 8].copy_from_slice(&checksum.to_le_bytes());
        self.append(&first)?;
        self.first = first;
        self.append(behind)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), TableError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let (now, behind) = rest.split_at(rest.len().min(PAYLOAD_BYTES - self.held));
            self.page[PAGE_HEAD + self.held..][..now.len()].copy_from_slice(now);
            self.held += now.len();
            rest = behind;
            if self.held == PAYLOAD_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), TableError> {
        if self.held > 0 {
            let held = u16::try_from(self.held).unwrap_or(u16::MAX);
            self.writer.push(PageKind::Metadata, &mut self.page, held)?;
            (self.page, self.held) = ([0; PAGE_BYTES], 0);
        }
        Ok(())
    }

    fn zeros_to(&mut self, end: u64) -> Result<(), TableError> {
        const ZEROS: [u8; 4096] = [0; 4096];
        while self.at < end {
            let now = in_memory(end - self.at).min(ZEROS.len());
            self.put(&ZEROS[..now])?;
        }
        Ok(())
    }
}

/// Writes the metadata of a tree that has been laid out: everything of the device below its files' content.
pub(super) fn metadata(
    tree: &Tree,
    layout: &Layout,
    identity: &Digest,
    writer: &mut TableWriter,
) -> Result<(), TableError> {
    let mut stream = Stream { writer, page: [0; PAGE_BYTES], held: 0, at: 0, first: Vec::new() };
    stream.zeros_to(SUPERBLOCK as u64)?;
    stream.put(&superblock(tree, layout, identity))?;
    for (nth, &id) in (1_u32..).zip(&layout.order) {
        let inode = tree.inode(id);
        let shape = shape(tree, inode, layout.stamp);
        stream.zeros_to(u64::from(inode.slot) * super::layout::SLOT_BYTES)?;
        let mut bytes = encode(inode, &shape, nth);
        tree.sets.write(inode.xattrs, &mut bytes);
        if shape.inline > 0 {
            match inode.kind {
                Kind::Symlink => bytes.extend_from_slice(tree.target(inode)),
                _ => directory(tree, id, |block, whole| {
                    if !whole {
                        bytes.extend_from_slice(block);
                    }
                    Ok(())
                })?,
            }
        }
        stream.put(&bytes)?;
    }
    stream.zeros_to(layout.shared_block * BLOCK_BYTES)?;
    stream.put(&layout.shared)?;
    for &id in &layout.order {
        let inode = tree.inode(id);
        let shape = shape(tree, inode, layout.stamp);
        if shape.blocks == 0 {
            continue;
        }
        stream.zeros_to(u64::from(inode.block) * BLOCK_BYTES)?;
        match inode.kind {
            Kind::Symlink => stream.put(tree.target(inode))?,
            _ => {
                directory(tree, id, |block, whole| if whole || shape.inline == 0 { stream.put(block) } else { Ok(()) })?
            }
        }
    }
    stream.zeros_to(layout.metadata_blocks * BLOCK_BYTES)?;
    stream.flush()
}

fn superblock(tree: &Tree, layout: &Layout, identity: &Digest) -> [u8; 128] {
    let mut block = [0; 128];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    let blocks = |count: u64| u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes();
    put(0, &MAGIC.to_le_bytes());
    put(8, &FEATURES.to_le_bytes());
    // The binary logarithm of a block.
    put(12, &[12]);
    let root = tree.inode(super::tree::ROOT).slot;
    put(14, &u16::try_from(root).unwrap_or(u16::MAX).to_le_bytes());
    put(16, &(layout.order.len() as u64).to_le_bytes());
    put(24, &layout.stamp.0.to_le_bytes());
    put(32, &layout.stamp.1.to_le_bytes());
    put(36, &blocks(layout.device_blocks));
    put(44, &blocks(layout.shared_block));
    let mut uuid: [u8; 16] = crate::units::field(identity.as_bytes(), 0);
    // Version 8 of RFC 9562: of the maker's own making.
    uuid[6] = (uuid[6] & 0x0f) | 0x80;
    uuid[8] = (uuid[8] & 0x3f) | 0x80;
    put(48, &uuid);
    block
}

/// An inode without its attributes. `nth` is what 32-bit programs see as its number.
fn encode(inode: &Inode, shape: &Shape, nth: u32) -> Vec<u8> {
    let layout = if shape.inline > 0 { FLAT_INLINE } else { FLAT_PLAIN };
    let format = (layout << 1) | u16::from(shape.extended);
    let attributes = shape.body - if shape.extended { 64 } else { 32 };
    let units = attributes.checked_sub(super::xattrs::BODY_HEADER).map_or(0, |bytes| bytes / 4 + 1);
    let (kind, place) = match inode.kind {
        Kind::Regular | Kind::Sparse => (0o100_000, inode.block),
        Kind::Directory => (0o040_000, inode.block),
        Kind::Symlink => (0o120_000, inode.block),
        Kind::Char | Kind::Whiteout => (0o020_000, u32::try_from(inode.start).unwrap_or(0)),
        Kind::Block => (0o060_000, u32::try_from(inode.start).unwrap_or(0)),
        Kind::Fifo => (0o010_000, 0),
    };
    let low = |number: u32| u16::try_from(number).unwrap_or(u16::MAX).to_le_bytes();
    let mut bytes = Vec::with_capacity(in_memory(shape.body + shape.inline));
    bytes.extend_from_slice(&format.to_le_bytes());
    bytes.extend_from_slice(&u16::try_from(units).unwrap_or(u16::MAX).to_le_bytes());
    bytes.extend_from_slice(&(kind | inode.mode).to_le_bytes());
    if shape.extended {
        bytes.extend_from_slice(&[0; 2]);
        bytes.extend_from_slice(&inode.size.to_le_bytes());
    } else {
        bytes.extend_from_slice(&low(inode.links));
        bytes.extend_from_slice(&u32::try_from(inode.size).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
    }
    bytes.extend_from_slice(&place.to_le_bytes());
    bytes.extend_from_slice(&nth.to_le_bytes());
    if shape.extended {
        bytes.extend_from_slice(&inode.uid.to_le_bytes());
        bytes.extend_from_slice(&inode.gid.to_le_bytes());
        bytes.extend_from_slice(&inode.seconds.to_le_bytes());
        bytes.extend_from_slice(&inode.nanoseconds.to_le_bytes());
        bytes.extend_from_slice(&inode.links.to_le_bytes());
        bytes.extend_from_slice(&[0; 16]);
    } else {
        bytes.extend_from_slice(&low(inode.uid));
        bytes.extend_from_slice(&low(inode.gid));
        bytes.extend_from_slice(&[0; 4]);
    }
    bytes
}

/// Passes on the blocks of a directory: whole ones, and what is in use of the last.
fn directory(
    tree: &Tree,
    dir: u32,
    mut each: impl FnMut(&[u8], bool) -> Result<(), TableError>,
) -> Result<(), TableError> {
    let last = (tree.inode(dir).size.div_ceil(BLOCK_BYTES)).saturating_sub(1);
    let mut nth = 0;
    blocks(tree, dir, |names, used| {
        let mut block = dirents(tree, names, used);
        let whole = nth < last || used == BLOCK_BYTES;
        nth += 1;
        if whole {
            block.resize(in_memory(BLOCK_BYTES), 0);
        }
        each(&block, whole)
    })
}

/// One block of a directory: entries, then their names.
fn dirents(tree: &Tree, names: &[(&[u8], u32)], used: u64) -> Vec<u8> {
    let mut block = Vec::with_capacity(in_memory(used));
    let mut name_at = DIRENT_BYTES * names.len() as u64;
    for (name, id) in names {
        let inode = tree.inode(*id);
        block.extend_from_slice(&u64::from(inode.slot).to_le_bytes());
        block.extend_from_slice(&u16::try_from(name_at).unwrap_or(u16::MAX).to_le_bytes());
        block.extend_from_slice(&[kind_of(inode.kind), 0]);
        name_at += name.len() as u64;
    }
    names.iter().for_each(|(name, _)| block.extend_from_slice(name));
    block
}

/// The kind of a file as directories name it.
const fn kind_of(kind: Kind) -> u8 {
    match kind {
        Kind::Regular | Kind::Sparse => 1,
        Kind::Directory => 2,
        Kind::Char | Kind::Whiteout => 3,
        Kind::Block => 4,
        Kind::Fifo => 5,
        Kind::Symlink => 7,
    }
}
