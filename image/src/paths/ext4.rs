//! ext4: where its inodes are, and the extents of its files. Format: Linux, Documentation/filesystems/ext4.

use penstock_blob::ByteRange;

use super::{Content, FileSystem, MAX_EXTENTS, Name, Walk, u16_at};
use crate::units::u32_at;

const SUPERBLOCK: usize = 1024;
const MAGIC: u16 = 0xef53;
/// The features that change where things lie, and are understood: file types in directories, extents, 64-bit group descriptors, flexible groups,
/// and a few that change nothing here (needs recovery, large attributes, the checksum's seed, large directories).
const UNDERSTOOD: u32 = 0x2 | 0x4 | 0x40 | 0x80 | 0x200 | 0x400 | 0x2000 | 0x4000;
/// Descriptors of groups have 64 bytes or what the superblock says.
const WIDE: u32 = 0x80;
/// The root's inode.
const ROOT: u64 = 2;
/// Where the inode has its extents or its blocks, and how many bytes of that.
const TREE_AT: usize = 40;
const TREE_BYTES: usize = 60;
/// That it has extents.
const EXTENTS: u32 = 0x8_0000;
const EXTENTS_MAGIC: u16 = 0xf30a;
/// Levels of a tree of extents: Linux makes no more.
const MAX_LEVELS: usize = 5;

/// An ext4 by its superblock.
#[derive(Debug)]
pub(super) struct Ext4 {
    block_bytes: u64,
    inodes_per_group: u64,
    inodes: u64,
    inode_bytes: u64,
    descriptor_bytes: u64,
    /// Where the descriptors of the groups lie.
    groups_at: u64,
}

/// One inode.
#[derive(Debug)]
pub(super) struct Inode {
    mode: u16,
    size_bytes: u64,
    /// The head of its tree of extents; `None` when it has none.
    tree: Option<Vec<u8>>,
}

impl Ext4 {
    /// `None` when `head`, the first bytes of a device, is not that of one, or of one that is not understood.
    pub(super) fn open(head: &[u8]) -> Option<Self> {
        let block = head.get(SUPERBLOCK..SUPERBLOCK + 512)?;
        let (features, block_log) = (u32_at(block, 96), u32_at(block, 24));
        let (inode_bytes, wide) = (u16_at(block, 88), u16_at(block, 254));
        let is_known = u16_at(block, 56) == MAGIC && features & !UNDERSTOOD == 0 && features & 0x40 != 0;
        if !is_known || block_log > 6 || inode_bytes < 128 || u32_at(block, 40) == 0 {
            return None;
        }
        let block_bytes = 1024_u64 << block_log;
        Some(Self {
            block_bytes,
            inodes_per_group: u64::from(u32_at(block, 40)),
            inodes: u64::from(u32_at(block, 0)),
            inode_bytes: u64::from(inode_bytes),
            descriptor_bytes: if features & WIDE == 0 { 32 } else { u64::from(wide).max(32) },
            groups_at: (u64::from(u32_at(block, 20)) + 1) * block_bytes,
        })
    }
}

impl FileSystem for Ext4 {
    type Inode = Inode;

    fn root(&self) -> u64 {
        ROOT
    }

    fn block_bytes(&self) -> u64 {
        self.block_bytes
    }

    fn inode(&self, walk: &mut Walk<'_>, number: u64) -> Option<Inode> {
        let nth = number.checked_sub(1).filter(|_| number <= self.inodes)?;
        let (group, in_group) = (nth / self.inodes_per_group, nth % self.inodes_per_group);
        let descriptor_at = self.groups_at.checked_add(group.checked_mul(self.descriptor_bytes)?)?;
        let descriptor = walk.bytes(descriptor_at, if self.descriptor_bytes >= 64 { 64 } else { 32 })?;
        let high = descriptor.get(40..44).map_or(0, |bytes| u64::from(u32_at(bytes, 0)));
        let table = (high << 32 | u64::from(u32_at(&descriptor, 8))).checked_mul(self.block_bytes)?;
        let at = table.checked_add(in_group * self.inode_bytes)?;
        let head = walk.bytes(at, 128)?;
        walk.put(ByteRange::at(at, self.inode_bytes).ok().as_slice(), &Content::Metadata);
        let size_bytes = u64::from(u32_at(&head, 108)) << 32 | u64::from(u32_at(&head, 4));
        let has_tree = u32_at(&head, 32) & EXTENTS != 0;
        // Old files have lists of blocks instead, small ones their bytes in the inode.
        let tree = has_tree.then(|| head[TREE_AT..TREE_AT + TREE_BYTES].to_vec());
        Some(Inode { mode: u16_at(&head, 0), size_bytes, tree })
    }

    fn mode(inode: &Inode) -> u16 {
        inode.mode
    }

    fn extents(&self, walk: &mut Walk<'_>, inode: &Inode) -> Vec<ByteRange> {
        let mut extents = Vec::new();
        let Some(tree) = &inode.tree else {
            walk.is_partial |= inode.size_bytes > 0;
            return extents;
        };
        let mut nodes = vec![(tree.clone(), 0)];
        while let Some((node, level)) = nodes.pop() {
            if u16_at(&node, 0) != EXTENTS_MAGIC || level > MAX_LEVELS || extents.len() >= MAX_EXTENTS {
                walk.is_partial = true;
                continue;
            }
            let is_leaf = u16_at(&node, 6) == 0;
            let entries = node[12..].chunks_exact(12).take(usize::from(u16_at(&node, 2)));
            for entry in entries {
                if is_leaf {
                    let blocks = u64::from(u16_at(entry, 4));
                    // More than 2^15 blocks mark an extent without content.
                    let start = u64::from(u16_at(entry, 6)) << 32 | u64::from(u32_at(entry, 8));
                    let piece = ByteRange::at(start.saturating_mul(self.block_bytes), blocks * self.block_bytes);
                    extents.extend(piece.ok().filter(|_| blocks <= 1 << 15));
                } else {
                    let block = u64::from(u16_at(entry, 8)) << 32 | u64::from(u32_at(entry, 4));
                    let bytes = usize::try_from(self.block_bytes).unwrap_or(usize::MAX);
                    nodes.extend(
                        walk.bytes(block.saturating_mul(self.block_bytes), bytes).map(|node| (node, level + 1)),
                    );
                }
            }
        }
        extents
    }

    fn names(block: &[u8]) -> Vec<Name<'_>> {
        let (mut names, mut at) = (Vec::new(), 0);
        while let Some(record) = block.get(at..).filter(|record| record.len() >= 8) {
            let (inode, len) = (u32_at(record, 0), usize::from(u16_at(record, 4)));
            if len < 8 {
                break;
            }
            let name = record.get(8..8 + usize::from(record[6])).filter(|_| inode != 0);
            names.extend(name.map(|name| Name { inode: u64::from(inode), name }));
            at += len;
        }
        names
    }
}
