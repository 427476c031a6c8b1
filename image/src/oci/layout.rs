//! Where everything of a layer's file system goes: a function of the tree alone.
//!
//! Inodes first, directory by directory from the root on (breadth first), each with its attributes and, where it fits into the same
//! block, the end of its directory or its link's target; then the shared attributes; then whole blocks of directories. Then, in the
//! order of the archive, the device addresses of the files' content, each file from a new block on.

use std::{collections::VecDeque, iter};

use super::{
    BuildError,
    tree::{Inode, Kind, ROOT, Tree},
};
use crate::units::in_memory;

/// Bytes of a block.
pub(super) const BLOCK_BYTES: u64 = 4096;
/// Bytes of the unit that inodes are numbered in.
pub(super) const SLOT_BYTES: u64 = 32;
/// Where the first inode, the root, is: behind the superblock (1024 + 128 bytes).
const FIRST_INODE: u64 = 1152;
/// Bytes of a directory's entry, without its name.
pub(super) const DIRENT_BYTES: u64 = 12;
/// Most blocks of a device: 16 TiB. The last number means "none".
const MAX_BLOCKS: u64 = u32::MAX as u64 - 1;

/// A time as inodes have it.
pub(super) type Stamp = (i64, u32);

/// How an inode is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    /// In 64 bytes instead of 32.
    pub(super) extended: bool,
    /// Bytes of the inode and its attributes.
    pub(super) body: u64,
    /// Bytes of content behind them.
    pub(super) inline: u64,
    /// Blocks of content elsewhere in the metadata.
    pub(super) blocks: u64,
}

/// Where the parts are, in blocks.
#[derive(Debug)]
pub(super) struct Layout {
    /// All inodes, in the order in which they are stored.
    pub(super) order: Vec<u32>,
    /// The time of inodes that have none of their own, and of the file system.
    pub(super) stamp: Stamp,
    /// The shared attributes.
    pub(super) shared: Vec<u8>,
    pub(super) shared_block: u64,
    /// Where the metadata ends and content begins.
    pub(super) metadata_blocks: u64,
    /// Where the device ends.
    pub(super) device_blocks: u64,
}

impl Layout {
    /// Gives everything that is reachable its place, which is written into the inodes. Content follows the metadata; or, with `content_block`, it begins
    /// there, and what is not reachable any more keeps its place, so that each file is where it was before the tree grew.
    pub(super) fn new(tree: &mut Tree, content_block: Option<u64>) -> Result<Self, BuildError> {
        let order = order(tree);
        let stamp = stamp(tree, &order);
        for &id in &order {
            let set = tree.inode(id).xattrs;
            tree.sets.count(set);
        }
        let shared = tree.sets.share();
        let shared_block = place_inodes(tree, &order, stamp)?;
        let mut block = shared_block + (shared.len() as u64).div_ceil(BLOCK_BYTES);
        for &id in &order {
            let blocks = shape(tree, tree.inode(id), stamp).blocks;
            if blocks > 0 {
                tree.inode_mut(id).block = number(block)?;
                block += blocks;
            }
        }
        let metadata_blocks = u64::from(number(block)?);
        if let Some(from) = content_block {
            block = if block <= from { from } else { return Err(BuildError::Device) };
        }
        let is_placed =
            |inode: &Inode| is_file(inode) && inode.size > 0 && (inode.links > 0 || content_block.is_some());
        for inode in tree.inodes.iter_mut().filter(|inode| is_placed(inode)) {
            inode.block = number(block)?;
            block += inode.size.div_ceil(BLOCK_BYTES);
        }
        let device_blocks = u64::from(number(block)?);
        Ok(Self { order, stamp, shared, shared_block, metadata_blocks, device_blocks })
    }
}

pub(super) const fn is_file(inode: &Inode) -> bool {
    matches!(inode.kind, Kind::Regular | Kind::Sparse)
}

fn number(block: u64) -> Result<u32, BuildError> {
    u32::try_from(block).ok().filter(|_| block <= MAX_BLOCKS).ok_or(BuildError::Device)
}

/// Every inode that has a name, once; directories learn how many names they have.
fn order(tree: &mut Tree) -> Vec<u32> {
    let mut placed = vec![false; tree.inodes.len()];
    let mut order = vec![ROOT];
    let mut waiting = VecDeque::from([ROOT]);
    while let Some(dir) = waiting.pop_front() {
        let mut links = 2;
        let from = order.len();
        for (_, id) in tree.children(dir) {
            let seen = std::mem::replace(&mut placed[in_memory(id.into())], true);
            if !seen {
                order.push(id);
            }
        }
        for &id in &order[from..] {
            if tree.inode(id).kind == Kind::Directory {
                links += 1;
                waiting.push_back(id);
            }
        }
        tree.inode_mut(dir).links = links;
    }
    order
}

/// The time that most inodes have, if more than half have one (Boyer and Moore's vote); they are stored without it.
fn stamp(tree: &Tree, order: &[u32]) -> Stamp {
    let (mut stamp, mut votes) = ((0, 0), 0_u32);
    for &id in order {
        let inode = tree.inode(id);
        let own = (inode.seconds, inode.nanoseconds);
        match votes {
            0 => (stamp, votes) = (own, 1),
            _ if own == stamp => votes += 1,
            _ => votes -= 1,
        }
    }
    stamp
}

/// Gives each inode its slot; answers the first block behind all of them.
fn place_inodes(tree: &mut Tree, order: &[u32], stamp: Stamp) -> Result<u64, BuildError> {
    let mut at = FIRST_INODE;
    for &id in order {
        if tree.inode(id).kind == Kind::Directory {
            tree.inode_mut(id).size = directory_bytes(tree, id);
        }
        let shape = shape(tree, tree.inode(id), stamp);
        let bytes = shape.body + shape.inline;
        // Nothing that fits into a block lies across two.
        if at % BLOCK_BYTES + bytes.min(BLOCK_BYTES) > BLOCK_BYTES {
            at = at.next_multiple_of(BLOCK_BYTES);
        }
        tree.inode_mut(id).slot = u32::try_from(at / SLOT_BYTES).map_err(|_| BuildError::Device)?;
        at = (at + bytes).next_multiple_of(SLOT_BYTES);
    }
    Ok(at.div_ceil(BLOCK_BYTES))
}

/// How an inode is stored; of a directory once its size is known.
pub(super) fn shape(tree: &Tree, inode: &Inode, stamp: Stamp) -> Shape {
    let small = |number: u32| number <= u32::from(u16::MAX);
    let compact = (inode.seconds, inode.nanoseconds) == stamp
        && [inode.uid, inode.gid, inode.links].into_iter().all(small)
        && u32::try_from(inode.size).is_ok();
    let body = if compact { 32 } else { 64 } + tree.sets.stored_bytes(inode.xattrs);
    let (tail, all) = match inode.kind {
        Kind::Directory => (inode.size % BLOCK_BYTES, inode.size.div_ceil(BLOCK_BYTES)),
        Kind::Symlink => (inode.size, 1),
        _ => (0, 0),
    };
    let inline = if body + tail <= BLOCK_BYTES { tail } else { 0 };
    let blocks = if inline > 0 { all - 1 } else { all };
    Shape { extended: !compact, body, inline, blocks }
}

/// The names in a directory as EROFS stores them: sorted by bytes, `.` and `..` among them.
pub(super) fn listing(tree: &Tree, dir: u32) -> impl Iterator<Item = (&[u8], u32)> {
    let dots = [(&b"."[..], dir), (&b".."[..], tree.inode(dir).parent())];
    let (mut dots, mut children) = (dots.into_iter().peekable(), tree.children(dir).peekable());
    iter::from_fn(move || match (dots.peek(), children.peek()) {
        (Some(dot), Some(child)) if child.0 < dot.0 => children.next(),
        (Some(_), _) => dots.next(),
        (None, _) => children.next(),
    })
}

/// Passes on the names of a directory block by block, and how many bytes each block has in use.
pub(super) fn blocks<'a, E>(
    tree: &'a Tree,
    dir: u32,
    mut each: impl FnMut(&[(&'a [u8], u32)], u64) -> Result<(), E>,
) -> Result<(), E> {
    let (mut held, mut used) = (Vec::new(), 0);
    for (name, id) in listing(tree, dir) {
        let bytes = DIRENT_BYTES + name.len() as u64;
        if used + bytes > BLOCK_BYTES {
            each(&held, used)?;
            (held, used) = (Vec::new(), 0);
        }
        held.push((name, id));
        used += bytes;
    }
    each(&held, used)
}

fn directory_bytes(tree: &Tree, dir: u32) -> u64 {
    let (mut whole, mut last) = (0, 0);
    let counted: Result<(), std::convert::Infallible> = blocks(tree, dir, |_, used| {
        (whole, last) = (whole + 1, used);
        Ok(())
    });
    let Ok(()) = counted;
    (whole - 1) * BLOCK_BYTES + last
}
