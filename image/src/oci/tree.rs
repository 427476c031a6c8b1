//! The tree that a layer unpacks to, put together entry by entry in the archive's order.
//!
//! As containerd does it for overlayfs: a later entry replaces an earlier one (two directories become one with the later
//! attributes), missing parents are made, a parent that is a symbolic link is followed inside the layer, never out of it. A whiteout
//! concerns the layers below alone, as the specification of OCI layers has it: beside an entry of the same name it only says that a
//! directory is opaque, whichever came first.
//!
//! An arena: about 150 bytes per path and its name, measured; [`MAX_ENTRIES`] bounds it.

use std::{borrow::Cow, collections::BTreeMap};

use penstock_blob::Blob;
use penstock_layers::{Content, DeviceNumber, Entry, EntryPath, Kind as EntryKind, Piece};

use super::{BuildError, xattrs::Sets};
use crate::units::in_memory;

/// Most names of a layer, and so most inodes: a layer of 2 Mi files takes about 300 MiB while it is laid out.
pub const MAX_ENTRIES: usize = 1 << 21;
/// Most bytes of names and targets of symbolic links together.
const MAX_TEXT_BYTES: usize = 256 << 20;
/// Most pieces of all sparse files together: 24 MiB.
const MAX_SPARSE_PIECES: usize = 1 << 20;
/// Symbolic links followed on the way to one path: `MAXSYMLINKS` of Linux.
const MAX_FOLLOWS: u32 = 40;
/// Names passed behind symbolic links in the whole layer: about a second.
const MAX_WALKED: u64 = 1 << 22;
/// What the AUFS driver kept for itself at the root of a layer begins so.
const AUFS: &[u8] = b".wh..wh.";
/// The root directory.
pub(super) const ROOT: u32 = 0;

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A file without holes: `start` is its first byte in the blob.
    Regular,
    /// A file with holes: `start` is its place among the sparse files.
    Sparse,
    /// A directory: `start` is the inode of its parent.
    Directory,
    /// A symbolic link: `start` is its target's place in the texts.
    Symlink,
    /// A character device: `start` is its number as the kernel encodes it.
    Char,
    /// A block device, likewise.
    Block,
    Fifo,
    /// A name hidden in the layers below.
    Whiteout,
}

/// One inode, and where it was laid out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Inode {
    /// Bytes of its content.
    pub(super) size: u64,
    pub(super) start: u64,
    pub(super) seconds: i64,
    pub(super) nanoseconds: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Its names; none when it was replaced.
    pub(super) links: u32,
    /// Its set of extended attributes.
    pub(super) xattrs: u32,
    /// Where it is, in units of 32 bytes.
    pub(super) slot: u32,
    /// Where its content is, in blocks.
    pub(super) block: u32,
    pub(super) mode: u16,
    pub(super) kind: Kind,
    pub(super) opaque: bool,
    /// Whether no entry speaks of it: a parent that the archive left out.
    pub(super) implied: bool,
}

impl Inode {
    const fn directory(parent: u32, opaque: bool) -> Self {
        Self {
            size: 0,
            start: parent as u64,
            seconds: 0,
            nanoseconds: 0,
            uid: 0,
            gid: 0,
            links: 1,
            xattrs: 0,
            slot: 0,
            block: 0,
            mode: 0o755,
            kind: Kind::Directory,
            opaque,
            implied: true,
        }
    }

    /// The parent of a directory.
    pub(super) fn parent(&self) -> u32 {
        u32::try_from(self.start).unwrap_or(ROOT)
    }
}

/// The tree.
#[derive(Debug)]
pub(super) struct Tree {
    blob: Blob,
    pub(super) inodes: Vec<Inode>,
    /// Inodes by directory and name: a directory's children are neighbours, sorted as EROFS wants them.
    names: BTreeMap<(u32, Box<[u8]>), u32>,
    pub(super) texts: Vec<u8>,
    pub(super) sparse: Vec<Box<[Piece]>>,
    pub(super) sets: Sets,
    text_bytes: usize,
    sparse_pieces: usize,
    walked: u64,
    /// The parent of the last entry: archives go directory by directory.
    last: Option<(Box<[u8]>, u32)>,
}

impl Tree {
    /// A layer of nothing, whose uncompressed archive is `blob`.
    pub(super) fn new(blob: Blob) -> Self {
        Self {
            blob,
            inodes: vec![Inode::directory(ROOT, false)],
            names: BTreeMap::new(),
            texts: Vec::new(),
            sparse: Vec::new(),
            sets: Sets::new(),
            text_bytes: 0,
            sparse_pieces: 0,
            walked: 0,
            last: None,
        }
    }

    pub(super) fn inode(&self, id: u32) -> &Inode {
        &self.inodes[in_memory(id.into())]
    }

    pub(super) fn inode_mut(&mut self, id: u32) -> &mut Inode {
        &mut self.inodes[in_memory(id.into())]
    }

    /// The names in a directory and their inodes, sorted by bytes.
    pub(super) fn children(&self, dir: u32) -> impl Iterator<Item = (&[u8], u32)> {
        let all = (dir, Box::default())..(dir.saturating_add(1), Box::default());
        self.names.range::<(u32, Box<[u8]>), _>(all).map(|((_, name), &id)| (&**name, id))
    }

    fn child(&self, dir: u32, name: &[u8]) -> Option<u32> {
        self.names.get(&(dir, name.into())).copied()
    }

    /// Adds the next entry of the archive.
    pub(super) fn add(&mut self, entry: &Entry) -> Result<(), BuildError> {
        if entry.kind == EntryKind::Opaque {
            let dir = self.directory(&entry.path, entry.path.as_bytes())?;
            self.inode_mut(dir).opaque = true;
            return Ok(());
        }
        let Some((parent, name)) = entry.path.split_last() else {
            return match entry.kind {
                EntryKind::Directory => self.describe(ROOT, entry),
                _ => Err(BuildError::NotADirectory { path: entry.path.clone() }),
            };
        };
        let dir = self.parent_of(&entry.path, &parent)?;
        match (self.child(dir, name), &entry.kind) {
            (Some(there), EntryKind::Whiteout) => {
                let there = self.inode_mut(there);
                there.opaque |= there.kind == Kind::Directory;
                Ok(())
            }
            (Some(there), EntryKind::Directory) if self.inode(there).kind == Kind::Directory => {
                self.describe(there, entry)
            }
            (there, _) => {
                let hidden = there.is_some_and(|there| self.inode(there).kind == Kind::Whiteout);
                if let Some(there) = there {
                    self.remove(dir, name, there);
                }
                self.put(entry, dir, name)?;
                if let (true, Some(made)) = (hidden && entry.kind == EntryKind::Directory, self.child(dir, name)) {
                    self.inode_mut(made).opaque = true;
                }
                Ok(())
            }
        }
    }

    /// Removes what the entry of an upper layer replaces of what is here already. Before [`Tree::hide`]: what is hidden below a directory is not looked for
    /// behind the symbolic link that was there.
    pub(super) fn replace(&mut self, entry: &Entry) -> Result<(), BuildError> {
        let Some((parent, name)) = entry.path.split_last() else { return Ok(()) };
        if matches!(entry.kind, EntryKind::Opaque | EntryKind::Whiteout) {
            return Ok(());
        }
        let Some(dir) = self.find(&entry.path, parent.as_bytes())? else { return Ok(()) };
        let there = self
            .child(dir, name)
            .filter(|&there| entry.kind != EntryKind::Directory || self.inode(there).kind != Kind::Directory);
        if let Some(there) = there {
            self.remove(dir, name, there);
        }
        Ok(())
    }

    /// Removes what the entry of an upper layer hides of what is here already. What is not here is hidden anyway.
    pub(super) fn hide(&mut self, entry: &Entry) -> Result<(), BuildError> {
        let found = match (&entry.kind, entry.path.split_last()) {
            (EntryKind::Opaque, _) => self.find(&entry.path, entry.path.as_bytes())?.map(|dir| {
                self.children(dir).map(|(name, id)| (dir, Box::from(name), id)).collect::<Vec<(u32, Box<[u8]>, u32)>>()
            }),
            (EntryKind::Whiteout, Some((parent, name))) => self
                .find(&entry.path, parent.as_bytes())?
                .and_then(|dir| Some(vec![(dir, Box::from(name), self.child(dir, name)?)])),
            _ => None,
        };
        for (dir, name, id) in found.unwrap_or_default() {
            self.remove(dir, &name, id);
        }
        Ok(())
    }

    /// The directory that is at `wanted`, if one is.
    fn find(&mut self, path: &EntryPath, wanted: &[u8]) -> Result<Option<u32>, BuildError> {
        match self.walk(path, wanted, false) {
            Err(BuildError::NotADirectory { .. }) => Ok(None),
            found => found,
        }
    }

    /// Adds an entry of a layer to the layers below it, from which [`Tree::replace`] and [`Tree::hide`] have removed what is not to be seen: whiteouts have done their work, and
    /// leave nothing but the directory that they are in.
    pub(super) fn add_merged(&mut self, entry: &Entry) -> Result<(), BuildError> {
        match (&entry.kind, entry.path.split_last()) {
            (EntryKind::Opaque, _) => self.directory(&entry.path, entry.path.as_bytes()).map(drop),
            (EntryKind::Whiteout, Some((parent, _))) => self.parent_of(&entry.path, &parent).map(drop),
            _ => self.add(entry),
        }
    }

    /// Gives a name that is free to what the entry describes.
    fn put(&mut self, entry: &Entry, dir: u32, name: &[u8]) -> Result<(), BuildError> {
        if let EntryKind::HardLink(target) = &entry.kind {
            let id = self.link_target(entry, target)?;
            self.inode_mut(id).links += 1;
            return self.name(dir, name, id);
        }
        let id = u32::try_from(self.inodes.len()).unwrap_or(u32::MAX);
        let mut inode = Inode { implied: false, ..Inode::directory(dir, false) };
        self.fill(&mut inode, entry)?;
        self.name(dir, name, id)?;
        self.inodes.push(inode);
        self.describe(id, entry)
    }

    /// Sets what the inode is.
    fn fill(&mut self, inode: &mut Inode, entry: &Entry) -> Result<(), BuildError> {
        match &entry.kind {
            EntryKind::Regular(content) => return self.content(inode, content, &entry.path),
            EntryKind::Symlink(target) => {
                inode.kind = Kind::Symlink;
                (inode.start, inode.size) = (self.texts.len() as u64, target.as_bytes().len() as u64);
                self.grow(target.as_bytes().len())?;
                self.texts.extend_from_slice(target.as_bytes());
            }
            EntryKind::CharDevice(number) => (inode.kind, inode.start) = (Kind::Char, encode(*number)),
            EntryKind::BlockDevice(number) => (inode.kind, inode.start) = (Kind::Block, encode(*number)),
            EntryKind::Fifo => inode.kind = Kind::Fifo,
            EntryKind::Whiteout => (inode.kind, inode.start) = (Kind::Whiteout, 0),
            EntryKind::Directory | EntryKind::HardLink(_) | EntryKind::Opaque => {}
        }
        Ok(())
    }

    fn content(&mut self, inode: &mut Inode, content: &Content, path: &EntryPath) -> Result<(), BuildError> {
        let pieces = content.pieces();
        if let Some(beyond) = pieces.iter().find(|piece| piece.range.end() > self.blob.size_bytes) {
            let (end, layer_bytes) = (beyond.range.end(), self.blob.size_bytes);
            return Err(BuildError::Beyond { path: path.clone(), end, layer_bytes });
        }
        inode.size = content.size_bytes();
        (inode.kind, inode.start) = match pieces {
            [] if inode.size == 0 => (Kind::Regular, 0),
            [whole] if whole.range.len() == inode.size => (Kind::Regular, whole.range.start()),
            _ => {
                self.sparse_pieces += pieces.len();
                if self.sparse_pieces > MAX_SPARSE_PIECES {
                    return Err(BuildError::TooMany { what: "pieces of sparse files", most: MAX_SPARSE_PIECES });
                }
                self.sparse.push(pieces.into());
                (Kind::Sparse, self.sparse.len() as u64 - 1)
            }
        };
        Ok(())
    }

    /// Gives an inode the attributes of an entry.
    fn describe(&mut self, id: u32, entry: &Entry) -> Result<(), BuildError> {
        let xattrs = self.sets.intern(&entry.xattrs)?;
        let inode = self.inode_mut(id);
        inode.mode = if inode.kind == Kind::Whiteout { 0 } else { entry.mode & 0o7777 };
        (inode.uid, inode.gid, inode.xattrs) = (entry.uid, entry.gid, xattrs);
        (inode.seconds, inode.nanoseconds) = (entry.mtime.seconds(), entry.mtime.nanoseconds());
        inode.implied = false;
        Ok(())
    }

    /// The inode that a hard link names once more.
    fn link_target(&mut self, entry: &Entry, target: &EntryPath) -> Result<u32, BuildError> {
        let missing = || BuildError::LinkTarget { path: entry.path.clone(), target: target.clone() };
        let (parent, name) = target.split_last().ok_or_else(missing)?;
        let dir = self.walk(&entry.path, parent.as_bytes(), false)?.ok_or_else(missing)?;
        let id = self.child(dir, name).ok_or_else(missing)?;
        let linkable = !matches!(self.inode(id).kind, Kind::Directory | Kind::Whiteout);
        if linkable { Ok(id) } else { Err(missing()) }
    }

    /// The directory that holds `path`, made if it is missing.
    fn parent_of(&mut self, path: &EntryPath, parent: &EntryPath) -> Result<u32, BuildError> {
        if let Some((last, dir)) = &self.last
            && **last == *parent.as_bytes()
        {
            return Ok(*dir);
        }
        let dir = self.directory(path, parent.as_bytes())?;
        self.last = Some((parent.as_bytes().into(), dir));
        Ok(dir)
    }

    fn directory(&mut self, path: &EntryPath, wanted: &[u8]) -> Result<u32, BuildError> {
        let dir = self.walk(path, wanted, true)?;
        dir.ok_or_else(|| BuildError::NotADirectory { path: path.clone() })
    }

    /// The directory at `wanted`, through symbolic links inside the layer; what is missing is made, or nothing is answered. `path` is
    /// the entry that wants it.
    fn walk(&mut self, path: &EntryPath, wanted: &[u8], make: bool) -> Result<Option<u32>, BuildError> {
        let (mut at, mut follows) = (ROOT, 0);
        let mut names = Cow::Borrowed(wanted);
        let mut next = 0;
        while next < names.len() {
            let rest = &names[next..];
            let end = rest.iter().position(|&byte| byte == b'/').unwrap_or(rest.len());
            let name = &rest[..end];
            let behind = (next + end + 1).min(names.len());
            next = behind;
            self.walked += u64::from(follows > 0);
            match name {
                b"" | b"." => continue,
                b".." => {
                    at = self.inode(at).parent();
                    continue;
                }
                _ => {}
            }
            let Some(there) = self.child(at, name) else {
                if !make {
                    return Ok(None);
                }
                at = self.imply(at, name, false)?;
                continue;
            };
            let inode = *self.inode(there);
            match inode.kind {
                Kind::Directory => at = there,
                Kind::Symlink => {
                    follows += 1;
                    if follows > MAX_FOLLOWS || self.walked > MAX_WALKED {
                        return Err(BuildError::Loop { path: path.clone() });
                    }
                    let target = self.target(&inode);
                    at = if target.starts_with(b"/") { ROOT } else { at };
                    names = Cow::Owned([target, b"/", &names[behind..]].concat());
                    next = 0;
                }
                Kind::Whiteout if make => {
                    self.remove(at, name, there);
                    at = self.imply(at, name, true)?;
                }
                _ => return Err(BuildError::NotADirectory { path: path.clone() }),
            }
        }
        Ok(Some(at))
    }

    /// The target of a symbolic link.
    pub(super) fn target(&self, link: &Inode) -> &[u8] {
        &self.texts[in_memory(link.start)..][..in_memory(link.size)]
    }

    /// Makes a directory that the archive left out.
    fn imply(&mut self, dir: u32, name: &[u8], opaque: bool) -> Result<u32, BuildError> {
        let id = u32::try_from(self.inodes.len()).unwrap_or(u32::MAX);
        self.name(dir, name, id)?;
        self.inodes.push(Inode::directory(dir, opaque));
        Ok(id)
    }

    fn name(&mut self, dir: u32, name: &[u8], id: u32) -> Result<(), BuildError> {
        // Replaced ones are counted too: a layer that replaces without end stays bounded.
        if self.names.len() >= MAX_ENTRIES || self.inodes.len() >= 2 * MAX_ENTRIES {
            return Err(BuildError::TooMany { what: "paths", most: MAX_ENTRIES });
        }
        if name.len() > penstock_layers::entry::MAX_NAME_BYTES {
            return Err(BuildError::TooMany { what: "bytes in a name", most: penstock_layers::entry::MAX_NAME_BYTES });
        }
        self.grow(name.len())?;
        self.names.insert((dir, name.into()), id);
        Ok(())
    }

    fn grow(&mut self, bytes: usize) -> Result<(), BuildError> {
        self.text_bytes = self.text_bytes.saturating_add(bytes);
        let over = self.text_bytes > MAX_TEXT_BYTES;
        if over { Err(BuildError::TooMany { what: "bytes of names", most: MAX_TEXT_BYTES }) } else { Ok(()) }
    }

    /// Removes a name, and everything below it.
    fn remove(&mut self, dir: u32, name: &[u8], id: u32) {
        self.last = None;
        let mut doomed = vec![((dir, Box::from(name)), id)];
        while let Some((key, id)) = doomed.pop() {
            self.names.remove(&key);
            let inode = self.inode_mut(id);
            inode.links -= 1;
            if inode.kind == Kind::Directory {
                let below: Vec<_> = self.children(id).map(|(name, child)| ((id, Box::from(name)), child)).collect();
                doomed.extend(below);
            }
        }
    }

    /// Ends the archive: removes what the AUFS driver kept for itself, and writes down which directories are opaque.
    pub(super) fn finish(&mut self) -> Result<(), BuildError> {
        let theirs = self.children(ROOT).filter(|(name, _)| name.starts_with(AUFS));
        let theirs: Vec<_> = theirs.map(|(name, id)| (name.to_vec(), id)).collect();
        for (name, id) in theirs {
            self.remove(ROOT, &name, id);
        }
        for inode in &mut self.inodes {
            if inode.links > 0 && inode.opaque {
                inode.xattrs = self.sets.with_opaque(inode.xattrs)?;
            }
        }
        Ok(())
    }
}

/// A device's number as the kernel keeps it (`new_encode_dev`).
fn encode(number: DeviceNumber) -> u64 {
    let (major, minor) = (u64::from(number.major()), u64::from(number.minor()));
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

#[cfg(test)]
mod tests;
