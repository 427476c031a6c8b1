//! EROFS: where its inodes are, and the bytes of those that are not compressed. Format: Linux, fs/erofs/erofs_fs.h; what we write ourselves:
//! docs/formats/erofs-layer.md.

use penstock_blob::ByteRange;

use super::{Content, FileSystem, MAX_EXTENTS, Name, Walk, u16_at};
use crate::units::{u32_at, u64_at};

const SUPERBLOCK: usize = 1024;
const MAGIC: u32 = 0xe0f5_e1e2;
/// Bytes of a slot of inodes: an inode's number is that of its slot.
const SLOT_BYTES: u64 = 32;
/// Bytes of a name's record in a directory.
const RECORD_BYTES: usize = 12;
/// In the format of chunks: the bits that say how many blocks one has, and whether there is a record of 8 bytes for each, or one of 4.
const CHUNK_BITS: u32 = 0x1f;
const CHUNK_RECORDS: u32 = 0x20;
/// What the superblock may ask of a reader and is understood: any compression, chunks, further devices, attributes kept apart.
const UNDERSTOOD: u32 = 0x7f;

/// An EROFS by its superblock.
#[derive(Debug)]
pub(super) struct Erofs {
    block_bits: u32,
    root: u64,
    /// Where slot 0 of the inodes lies.
    inodes_at: u64,
}

/// One inode.
#[derive(Debug)]
pub(super) struct Inode {
    mode: u16,
    size_bytes: u64,
    layout: u16,
    /// Its first block, or how its chunks are.
    place: u32,
    /// Where what is behind its head and its attributes lies.
    behind: u64,
}

impl Erofs {
    /// `None` when `head`, the first bytes of a device, is not that of one.
    pub(super) fn open(head: &[u8]) -> Option<Self> {
        let block = head.get(SUPERBLOCK..SUPERBLOCK + 128)?;
        let block_bits = u32::from(block[12]);
        if u32_at(block, 0) != MAGIC || u32_at(block, 80) & !UNDERSTOOD != 0 || !(9..=16).contains(&block_bits) {
            return None;
        }
        let inodes_at = u64::from(u32_at(block, 40)) << block_bits;
        Some(Self { block_bits, root: u64::from(u16_at(block, 14)), inodes_at })
    }

    /// The pieces of a file that is stored in chunks.
    fn chunks(&self, walk: &mut Walk<'_>, inode: &Inode) -> Vec<ByteRange> {
        let chunk_bits = self.block_bits + (inode.place & CHUNK_BITS);
        let record_bytes = if inode.place & CHUNK_RECORDS == 0 { 4 } else { 8 };
        let chunks = inode.size_bytes.div_ceil(1_u64.checked_shl(chunk_bits).unwrap_or(u64::MAX).max(1));
        let count = usize::try_from(chunks).unwrap_or(usize::MAX).min(MAX_EXTENTS);
        walk.is_partial |= count as u64 != chunks;
        let Some(at) = inode.behind.checked_next_multiple_of(record_bytes as u64) else { return Vec::new() };
        let Some(table) = walk.bytes(at, count * record_bytes) else { return Vec::new() };
        let extent = |(nth, record): (usize, &[u8])| {
            let block = u32_at(record, record_bytes - 4);
            let start = u64::from(block) << self.block_bits;
            let left = inode.size_bytes - ((nth as u64) << chunk_bits);
            let is_elsewhere = record_bytes == 8 && u16_at(record, 2) != 0;
            // A hole, or on another device.
            if block == u32::MAX || is_elsewhere { None } else { ByteRange::at(start, left.min(1 << chunk_bits)).ok() }
        };
        table.chunks_exact(record_bytes).enumerate().filter_map(extent).collect()
    }
}

impl FileSystem for Erofs {
    type Inode = Inode;

    fn root(&self) -> u64 {
        self.root
    }

    fn block_bytes(&self) -> u64 {
        1 << self.block_bits
    }

    fn inode(&self, walk: &mut Walk<'_>, number: u64) -> Option<Inode> {
        let at = number.checked_mul(SLOT_BYTES)?.checked_add(self.inodes_at)?;
        let head = walk.bytes(at, 32)?;
        let (format, attributes) = (u16_at(&head, 0), u64::from(u16_at(&head, 2)));
        // Bit 0 tells the two kinds of heads apart, of 32 and of 64 bytes; bits 1 to 3 how the bytes are stored.
        let is_long = format & 1 == 1;
        let (head_bytes, size_bytes) = if is_long { (64, u64_at(&head, 8)) } else { (32, u64::from(u32_at(&head, 8))) };
        let attribute_bytes = if attributes == 0 { 0 } else { 12 + 4 * (attributes - 1) };
        let behind = at.checked_add(head_bytes + attribute_bytes)?;
        walk.put(ByteRange::at(at, head_bytes + attribute_bytes).ok().as_slice(), &Content::Metadata);
        Some(Inode { mode: u16_at(&head, 4), size_bytes, layout: format >> 1 & 7, place: u32_at(&head, 16), behind })
    }

    fn mode(inode: &Inode) -> u16 {
        inode.mode
    }

    fn extents(&self, walk: &mut Walk<'_>, inode: &Inode) -> Vec<ByteRange> {
        let block_bytes = 1_u64 << self.block_bits;
        let start = u64::from(inode.place) << self.block_bits;
        match inode.layout {
            0 => ByteRange::at(start, inode.size_bytes).into_iter().collect(),
            // All but the end lies in blocks; the end behind the inode.
            2 => {
                let tail = inode.size_bytes % block_bytes;
                let pieces = [ByteRange::at(start, inode.size_bytes - tail), ByteRange::at(inode.behind, tail)];
                pieces.into_iter().flatten().collect()
            }
            4 => self.chunks(walk, inode),
            // Compressed: where its bytes lie is not looked for.
            _ => {
                walk.is_partial = true;
                Vec::new()
            }
        }
    }

    fn names(block: &[u8]) -> Vec<Name<'_>> {
        let Some(first) = block.get(..RECORD_BYTES).map(|record| usize::from(u16_at(record, 8))) else {
            return Vec::new();
        };
        let records: Vec<&[u8]> = block.get(..first).unwrap_or_default().chunks_exact(RECORD_BYTES).collect();
        let name = |nth: usize| {
            let record = records.get(nth)?;
            let start = usize::from(u16_at(record, 8));
            let end = records.get(nth + 1).map_or(block.len(), |next| usize::from(u16_at(next, 8)));
            // The last name of a block ends with zeros, if it does not fill it.
            let name = block.get(start..end)?.split(|byte| *byte == 0).next()?;
            Some(Name { inode: u64_at(record, 0), name })
        };
        (0..records.len()).filter_map(name).collect()
    }
}
