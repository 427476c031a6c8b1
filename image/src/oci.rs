//! One layer of an ordinary image as a device of its own: an EROFS whose metadata are made here, and whose files' content is the
//! uncompressed layer's own bytes, mapped where EROFS wants them.
//!
//! A [`LayerBuilder`] takes the entries of a layer in the archive's order and writes one table file into the maps directory: the
//! metadata, and the extents of the content. From then on [`Image::open_layer`](crate::Image::open_layer) needs nothing else. The same
//! entries give the same bytes on every machine: nothing of it depends on time, place, or the order of a hash table.
//!
//! What a mount of the device shows is what containerd's overlayfs snapshotter has of the layer in its directory: whiteouts are
//! character devices 0/0, opaque directories carry `trusted.overlay.opaque`. Format: docs/formats/erofs-layer.md.

mod disk;
mod encode;
mod extents;
mod layout;
mod merged;
mod tree;
mod xattrs;

use std::path::{Path, PathBuf};

use penstock_blob::{Blob, ByteRange, Digest};
use penstock_layers::{Entry, EntryPath};

pub(crate) use disk::Disk;
pub use merged::{GROWING_CONTENT, Merged, MergedBuilder};
pub use tree::MAX_ENTRIES;

use self::{
    disk::Facts,
    extents::{Extent, ExtentsWriter},
    layout::{BLOCK_BYTES, Layout, is_file},
    tree::{Inode, Kind, ROOT, Tree},
};
use crate::{
    pages::{PAGE_BYTES, TableError, TableWriter},
    units::in_memory,
};

/// A layer, by what its device is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OciLayer {
    /// The uncompressed layer: its diff ID and its size.
    pub blob: Blob,
    /// What the entries are taken from: the diff ID itself when they were read from the verified layer, the digest of the index
    /// otherwise. Two that contradict each other never share a table.
    pub contents: Digest,
}

/// Why no device can be made of a layer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// An entry lies below something that is no directory.
    #[error(
        "{path} lies below something that is no directory, or would replace the root; the layer cannot be unpacked either"
    )]
    NotADirectory {
        /// The entry.
        path: EntryPath,
    },
    /// Symbolic links on the way to an entry lead to each other.
    #[error("too many symbolic links on the way to {path}")]
    Loop {
        /// The entry.
        path: EntryPath,
    },
    /// A hard link names nothing that came before it in this layer.
    #[error("{path} is a hard link to {target}, which is no file of this layer before it")]
    LinkTarget {
        /// The entry.
        path: EntryPath,
        /// What it names.
        target: EntryPath,
    },
    /// A file has bytes that the layer has not.
    #[error("{path} ends at byte {end} of a layer that has {layer_bytes}; what the entries were taken from is wrong")]
    Beyond {
        /// The entry.
        path: EntryPath,
        /// Where it ends.
        end: u64,
        /// Size of the layer.
        layer_bytes: u64,
    },
    /// The layer has more of something than is supported.
    #[error("the layer has more {what} than the {most} that are supported; unpack it instead")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The bound.
        most: usize,
    },
    /// The device would be larger than EROFS addresses.
    #[error("the files of the layer need a device of more than 16 TiB; unpack it instead")]
    Device,
    /// The maps directory failed.
    #[error(transparent)]
    Maps(#[from] TableError),
}

/// What was made of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Built {
    /// Inodes of the file system.
    pub inodes: u64,
    /// Bytes of metadata, which the table holds.
    pub metadata_bytes: u64,
    /// Bytes of the table file.
    pub table_bytes: u64,
    /// Directories that no entry speaks of: made with mode 755, owner 0:0 and time 0.
    pub implied: u64,
    /// Extended attributes left out because Linux has no such namespace.
    pub dropped_xattrs: u64,
}

/// Takes the entries of a layer and writes its table. Works on the caller's thread and blocks on files when it finishes.
///
/// Holds about 150 bytes per path and its name, and everything bounded: [`MAX_ENTRIES`] paths.
#[derive(Debug)]
pub struct LayerBuilder {
    layer: OciLayer,
    maps_dir: PathBuf,
    tree: Tree,
    /// Where content begins, if not behind the metadata.
    content_block: Option<u64>,
}

/// Where [`LayerBuilder::finish`] keeps what it makes of a layer.
#[must_use]
pub fn layer_table(layer: &OciLayer, maps_dir: &Path) -> PathBuf {
    disk::path(maps_dir, layer)
}

impl LayerBuilder {
    /// Begins with an empty layer.
    #[must_use]
    pub fn new(layer: OciLayer, maps_dir: &Path) -> Self {
        Self { layer, maps_dir: maps_dir.to_owned(), tree: Tree::new(layer.blob), content_block: None }
    }

    /// Adds the next entry, in the archive's order.
    ///
    /// # Errors
    /// [`BuildError`]; the builder is of no use any more.
    pub fn add(&mut self, entry: &Entry) -> Result<(), BuildError> {
        self.tree.add(entry)
    }

    /// Lays the file system out and makes its table appear in the maps directory, all of it on disk.
    ///
    /// # Errors
    /// [`BuildError`].
    pub fn finish(mut self) -> Result<Built, BuildError> {
        let failed = |error| TableError::Io { path: self.maps_dir.clone(), error };
        std::fs::create_dir_all(&self.maps_dir).map_err(failed)?;
        self.tree.finish()?;
        let layout = Layout::new(&mut self.tree, self.content_block)?;
        let identity = disk::identity(&self.layer);
        let mut writer = TableWriter::new(&disk::path(&self.maps_dir, &self.layer), identity)?;
        encode::metadata(&self.tree, &layout, &identity, &mut writer)?;
        let mut extents = ExtentsWriter::new(&mut writer);
        for inode in self.tree.inodes.iter().filter(|inode| inode.links > 0 && is_file(inode)) {
            self.extents_of(inode, &mut extents)?;
        }
        let (extents, levels) = extents.finish()?;
        let inodes = self.tree.inodes.iter();
        let implied = layout.order.iter().filter(|&&id| id != ROOT && self.tree.inode(id).implied).count();
        debug_assert_eq!(
            inodes.filter(|inode| inode.links > 0).count(),
            layout.order.len(),
            "each live inode is placed"
        );
        let facts = Facts {
            blob: self.layer.blob,
            device_bytes: layout.device_blocks * BLOCK_BYTES,
            metadata_bytes: layout.metadata_blocks * BLOCK_BYTES,
            extents,
            inodes: layout.order.len() as u64,
            implied: implied as u64,
        };
        let mut header = [0; PAGE_BYTES];
        facts.write(&mut header, &levels);
        let table_bytes = u64::from(writer.next()) * PAGE_BYTES as u64;
        writer.seal(&mut header)?.persist()?;
        let dropped_xattrs = self.tree.sets.dropped;
        if dropped_xattrs > 0 {
            tracing::warn!(layer = %self.layer.blob.digest, dropped_xattrs, "extended attributes of unknown namespaces, or that no layer may set, were left out");
        }
        let Facts { inodes, metadata_bytes, implied, .. } = facts;
        Ok(Built { inodes, metadata_bytes, table_bytes, implied, dropped_xattrs })
    }

    /// Adds the extents of a file, in the order of its bytes.
    fn extents_of(&self, inode: &Inode, extents: &mut ExtentsWriter<'_>) -> Result<(), TableError> {
        let device = u64::from(inode.block) * BLOCK_BYTES;
        if inode.kind == Kind::Sparse {
            let pieces = &self.tree.sparse[in_memory(inode.start)];
            return pieces
                .iter()
                .try_for_each(|piece| extents.push(Extent { device: device + piece.at, range: piece.range }));
        }
        match ByteRange::at(inode.start, inode.size) {
            Ok(range) => extents.push(Extent { device, range }),
            Err(_) => Ok(()),
        }
    }
}
