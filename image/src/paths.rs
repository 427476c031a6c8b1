//! Which files lie in which bytes of a device: for telling an operator what a program waited for.
//!
//! A walk from the root of the file system ([`find`]) over its metadata, as far as the reader has them: it reads what is on this node and asks
//! nobody for more, and what a program has opened is here. Everything is bounded ([`MAX_READ_BYTES`], [`MAX_LOOKED_BYTES`], [`MAX_INODES`], [`MAX_DEPTH`]), and
//! nothing that a file system says is believed further than that: a hostile one costs that much work and gives no paths, or wrong ones, but
//! never a failure. Understood are EROFS (uncompressed, without further devices) and ext4 (extents).

mod erofs;
mod ext4;

use std::collections::HashSet;

use penstock_blob::ByteRange;

use crate::units::{field, in_memory};

/// Most bytes of metadata read for one walk. A large image has a few MiB of inodes and directories; a second's work at most.
pub const MAX_READ_BYTES: u64 = 64 << 20;
/// Most bytes looked at, those counted again that are looked at again: a file system whose maps point to themselves would be walked for ever. Half a million
/// inodes need a third of it.
pub const MAX_LOOKED_BYTES: u64 = 256 << 20;
/// Most inodes looked at: as many as the largest images have.
pub const MAX_INODES: usize = 500_000;
/// Directories below each other: more than any path that Linux takes (4096 bytes) has in practice.
pub const MAX_DEPTH: usize = 64;
/// Where the superblocks of both lie.
const HEAD_BYTES: usize = 2048;
/// Bytes read at once for what is small.
const PAGE_BYTES: u64 = 4096;
/// Bytes of a name: Linux' NAME_MAX.
const MAX_NAME_BYTES: usize = 255;
/// Bytes of a path that are kept, as Linux' PATH_MAX.
const MAX_PATH_BYTES: usize = 4096;
/// Bytes of the paths of all directories: 200,000 of 80.
const MAX_PENDING_BYTES: usize = 16 << 20;
/// Bytes of one directory that are read: a hundred thousand names.
const MAX_DIRECTORY_BYTES: u64 = 8 << 20;
/// Pieces of one file that are looked at.
const MAX_EXTENTS: usize = 65_536;

/// Who reads bytes of a device that are here.
pub trait Local {
    /// Fills `buf` from byte `at` on; false when not all of it is here, or there is no such byte.
    fn read(&mut self, at: u64, buf: &mut [u8]) -> bool;
}

/// What lies in some bytes of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A part of this file.
    File(String),
    /// The names in this directory.
    Directory(String),
    /// What the file system itself needs: inodes, maps.
    Metadata,
}

/// What a walk found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// For each range asked for, in their order, what most of it is; `None` where nothing is known.
    pub contents: Vec<Option<Content>>,
    /// Whether some of the file system was not looked at: it is not on this node, not understood, or there is too much of it.
    pub is_partial: bool,
}

/// Why there are no paths at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// The first bytes of the device are not on this node.
    #[error("the beginning of its file system is not on this node")]
    Absent,
    /// It is not one of those that are understood, or has features that are not.
    #[error("its file system is not one whose files can be told (EROFS without compression, ext4 with extents)")]
    NotUnderstood,
}

/// Finds what lies in `ranges` of a device of `size_bytes`.
///
/// # Errors
/// [`Unknown`] when nothing can be said.
pub fn find(local: &mut dyn Local, size_bytes: u64, ranges: &[ByteRange]) -> Result<Found, Unknown> {
    let mut head = vec![0; HEAD_BYTES];
    if size_bytes < HEAD_BYTES as u64 {
        return Err(Unknown::NotUnderstood);
    }
    let mut walk = Walk::new(local, size_bytes, ranges);
    if !walk.read(0, &mut head) {
        return Err(Unknown::Absent);
    }
    if let Some(file_system) = erofs::Erofs::open(&head) {
        walk.all(&file_system);
    } else if let Some(file_system) = ext4::Ext4::open(&head) {
        walk.all(&file_system);
    } else {
        return Err(Unknown::NotUnderstood);
    }
    Ok(walk.found())
}

/// The kind that is a part of a mode: a directory and a regular file.
const KIND: u16 = 0o170_000;
const DIRECTORY: u16 = 0o040_000;
const REGULAR: u16 = 0o100_000;

/// How one kind of file system lays out what a walk looks at.
trait FileSystem {
    /// What is known of a file, a directory or whatever else has a number.
    type Inode;

    /// The root's number.
    fn root(&self) -> u64;
    /// Bytes of a block of a directory: names lie in one block whole.
    fn block_bytes(&self) -> u64;
    /// The inode of this number; `None` when there is none, or it is not here.
    fn inode(&self, walk: &mut Walk<'_>, number: u64) -> Option<Self::Inode>;
    /// The kind and the permissions, as `stat` gives them.
    fn mode(inode: &Self::Inode) -> u16;
    /// The pieces of the device in which an inode's bytes lie, in order.
    fn extents(&self, walk: &mut Walk<'_>, inode: &Self::Inode) -> Vec<ByteRange>;
    /// The names in one block of a directory.
    fn names(block: &[u8]) -> Vec<Name<'_>>;
}

/// A directory that is to be looked at.
#[derive(Debug)]
struct Pending {
    /// Its number, as the file system names it.
    inode: u64,
    /// With a slash at the end.
    path: String,
    depth: usize,
}

/// A name in a directory.
#[derive(Debug)]
struct Name<'a> {
    /// Of whom.
    inode: u64,
    name: &'a [u8],
}

/// The little-endian u16 at `at`.
fn u16_at(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(field(block, at))
}

/// One walk, and what it may still do.
struct Walk<'a> {
    local: &'a mut dyn Local,
    size_bytes: u64,
    left_bytes: u64,
    left_looked_bytes: u64,
    /// Where the page that was read last begins, and its bytes.
    page: (Option<u64>, Vec<u8>),
    /// The ranges, sorted, each with its place among those asked for.
    ranges: Vec<(ByteRange, usize)>,
    /// For each range asked for: how many bytes, of what.
    best: Vec<Option<(u64, Content)>>,
    seen: HashSet<u64>,
    pending: Vec<Pending>,
    /// Of the paths of all directories so far.
    pending_bytes: usize,
    /// Of the longest range.
    longest: u64,
    is_partial: bool,
}

impl<'a> Walk<'a> {
    fn new(local: &'a mut dyn Local, size_bytes: u64, ranges: &[ByteRange]) -> Self {
        let mut sorted: Vec<(ByteRange, usize)> = ranges.iter().copied().zip(0..).collect();
        sorted.sort_unstable();
        Self {
            local,
            size_bytes,
            left_bytes: MAX_READ_BYTES,
            left_looked_bytes: MAX_LOOKED_BYTES,
            page: (None, Vec::new()),
            best: vec![None; sorted.len()],
            ranges: sorted,
            seen: HashSet::new(),
            pending: Vec::new(),
            pending_bytes: 0,
            longest: ranges.iter().map(|range| range.len()).max().unwrap_or(0),
            is_partial: false,
        }
    }

    fn found(self) -> Found {
        let contents = self.best.into_iter().map(|best| best.map(|(_, content)| content)).collect();
        Found { contents, is_partial: self.is_partial || !self.pending.is_empty() }
    }

    /// Looks at everything, from the root on.
    fn all<F: FileSystem>(&mut self, file_system: &F) {
        self.later(file_system.root(), "/".to_owned(), 0);
        while let Some(directory) = self.pending.pop() {
            let Some(inode) = file_system.inode(self, directory.inode) else { continue };
            let extents = file_system.extents(self, &inode);
            self.put(&extents, &Content::Directory(directory.path.clone()));
            for block in self.blocks(&extents, file_system.block_bytes()) {
                for name in F::names(&block) {
                    self.name(file_system, &name, &directory);
                }
            }
        }
    }

    /// One name in a directory.
    fn name<F: FileSystem>(&mut self, file_system: &F, name: &Name<'_>, parent: &Pending) {
        let Some(path) = Self::join(&parent.path, name.name).filter(|_| self.is_new(name.inode)) else { return };
        let Some(inode) = file_system.inode(self, name.inode) else { return };
        match F::mode(&inode) & KIND {
            DIRECTORY => self.later(name.inode, path + "/", parent.depth + 1),
            REGULAR => {
                let extents = file_system.extents(self, &inode);
                self.put(&extents, &Content::File(path));
            }
            _ => {}
        }
    }

    /// Fills `buf` with bytes of the device, as long as there are some and they may be read. Inodes are small and lie together: the page that
    /// was read last is kept.
    fn read(&mut self, at: u64, buf: &mut [u8]) -> bool {
        let len = buf.len() as u64;
        let end = at.checked_add(len).filter(|end| *end <= self.size_bytes);
        let (Some(end), Some(left)) = (end, self.left_looked_bytes.checked_sub(len)) else {
            self.is_partial = true;
            return false;
        };
        self.left_looked_bytes = left;
        let page = at / PAGE_BYTES * PAGE_BYTES;
        if end > page + PAGE_BYTES {
            return self.fetch(at, buf);
        }
        if self.page.0 != Some(page) {
            let mut bytes = vec![0; in_memory(PAGE_BYTES.min(self.size_bytes - page))];
            self.page.0 = self.fetch(page, &mut bytes).then_some(page);
            self.page.1 = bytes;
        }
        let is_here = self.page.0 == Some(page);
        if is_here {
            let start = in_memory(at - page);
            buf.copy_from_slice(&self.page.1[start..start + buf.len()]);
        }
        is_here
    }

    fn fetch(&mut self, at: u64, buf: &mut [u8]) -> bool {
        let left = self.left_bytes.checked_sub(buf.len() as u64);
        self.left_bytes = left.unwrap_or(0);
        let is_here = left.is_some() && self.local.read(at, buf);
        self.is_partial |= !is_here;
        is_here
    }

    /// A few bytes of the device.
    fn bytes(&mut self, at: u64, len: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.read(at, &mut bytes).then_some(bytes)
    }

    /// The bytes in these pieces, as far as they are here, block by block.
    fn blocks(&mut self, extents: &[ByteRange], block_bytes: u64) -> Vec<Vec<u8>> {
        let (mut left, mut blocks) = (MAX_DIRECTORY_BYTES, Vec::new());
        for extent in extents {
            let mut at = extent.start();
            while at < extent.end() && left > 0 {
                let len = (extent.end() - at).min(block_bytes);
                blocks.extend(self.bytes(at, in_memory(len)));
                left = left.saturating_sub(len);
                at += len;
            }
            self.is_partial |= at < extent.end();
        }
        blocks
    }

    /// These pieces of the device are such content.
    fn put(&mut self, extents: &[ByteRange], content: &Content) {
        for extent in extents {
            let behind = self.ranges.partition_point(|(range, _)| range.start() < extent.end());
            let reaches = |range: &ByteRange| range.start().saturating_add(self.longest) > extent.start();
            for (range, nth) in self.ranges[..behind].iter().rev().take_while(|(range, _)| reaches(range)) {
                let Some(common) = range.intersection(*extent) else { continue };
                // Metadata are told only where nothing else is.
                let weight = if *content == Content::Metadata { 0 } else { common.len() };
                let best = &mut self.best[*nth];
                if best.as_ref().is_none_or(|(before, _)| *before < weight) {
                    *best = Some((weight, content.clone()));
                }
            }
        }
    }

    /// Whether an inode is to be looked at: it was not yet, and not too many were.
    fn is_new(&mut self, inode: u64) -> bool {
        if self.seen.len() >= MAX_INODES {
            self.is_partial = true;
            return false;
        }
        self.seen.insert(inode)
    }

    /// Remembers a directory for later.
    fn later(&mut self, inode: u64, path: String, depth: usize) {
        self.pending_bytes += path.len();
        if depth > MAX_DEPTH || path.len() > MAX_PATH_BYTES || self.pending_bytes > MAX_PENDING_BYTES {
            self.is_partial = true;
        } else {
            self.pending.push(Pending { inode, path, depth });
        }
    }

    /// The path of a name in a directory; `None` for those that lead back, and for what is no name.
    fn join(parent: &str, name: &[u8]) -> Option<String> {
        let is_name = (1..=MAX_NAME_BYTES).contains(&name.len())
            && name != b"."
            && name != b".."
            && !name.contains(&b'/')
            && !name.contains(&0);
        is_name.then(|| format!("{parent}{}", String::from_utf8_lossy(name)))
    }
}

#[cfg(test)]
mod tests;
