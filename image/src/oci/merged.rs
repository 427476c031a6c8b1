//! Several ordinary layers as one tree: what a container of the whole image sees, as one device.
//!
//! For who wants one device for an image: an operator that attaches it, and conversions. Containers are shown each layer by itself, so that images share
//! them. While it is laid out, the archives of the layers, one after another, count as one virtual blob; reads go to the archives themselves. What each
//! layer hides of those below it goes before what it adds.

use std::path::{Path, PathBuf};

use penstock_blob::{Blob, ByteRange, Digest};
use penstock_layers::{Content, Entry, Kind as EntryKind, Piece};

use super::{BuildError, Built, LayerBuilder, OciLayer, layer_table, layout::BLOCK_BYTES};

/// Where the content of files begins on the device of a merge that [grows](Merged::growing), in bytes: far behind the metadata of as many files as a
/// device may have. What lies between takes no room in a layer file.
pub const GROWING_CONTENT: u64 = 16 << 30;

/// Layers merged into one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merged {
    layer: OciLayer,
    archives: Vec<Blob>,
    grows: bool,
}

impl Merged {
    /// The merge of these layers, bottom first.
    #[must_use]
    pub fn new(layers: &[OciLayer]) -> Self {
        Self::named("merged layers", layers, false)
    }

    /// The same, on a device that is like that of the layers without the uppermost: the content of each file is at the same place, from
    /// [`GROWING_CONTENT`] on in the order of the archives. Only the metadata differ, and what comes behind.
    #[must_use]
    pub fn growing(layers: &[OciLayer]) -> Self {
        Self::named("growing layers", layers, true)
    }

    fn named(domain: &str, layers: &[OciLayer], grows: bool) -> Self {
        let archives: Vec<Blob> = layers.iter().map(|layer| layer.blob).collect();
        let names: Vec<Digest> = archives.iter().map(|archive| archive.digest).collect();
        let contents: Vec<Digest> = layers.iter().map(|layer| layer.contents).collect();
        let size_bytes = archives.iter().fold(0, |sum: u64, archive| sum.saturating_add(archive.size_bytes));
        let blob = Blob { digest: Digest::derived(domain, &names), size_bytes };
        Self { layer: OciLayer { blob, contents: Digest::derived(domain, &contents) }, archives, grows }
    }

    /// Where its table is kept, made or not.
    #[must_use]
    pub fn table(&self, maps_dir: &Path) -> PathBuf {
        layer_table(&self.layer, maps_dir)
    }

    pub(crate) const fn layer(&self) -> &OciLayer {
        &self.layer
    }

    /// The archives that its device reads, bottom first.
    pub(crate) fn archives(&self) -> &[Blob] {
        &self.archives
    }
}

/// Those of `archives`, one after another, that hold these bytes of them together, and which of theirs.
pub(super) fn parts(archives: &[Blob], range: ByteRange) -> impl Iterator<Item = (Blob, ByteRange)> {
    let mut start = 0_u64;
    archives.iter().filter_map(move |archive| {
        let base = start;
        start = start.saturating_add(archive.size_bytes);
        let (from, until) = (range.start().max(base), range.end().min(start));
        ByteRange::new(from.saturating_sub(base), until.saturating_sub(base)).ok().map(|part| (*archive, part))
    })
}

/// Takes the entries of layers and writes the table of their merge. As [`LayerBuilder`], of which it keeps the bounds for all layers together.
#[derive(Debug)]
pub struct MergedBuilder {
    builder: LayerBuilder,
    archives: std::vec::IntoIter<Blob>,
    base: u64,
}

impl MergedBuilder {
    /// Begins with nothing.
    #[must_use]
    pub fn new(merged: &Merged, maps_dir: &Path) -> Self {
        let mut builder = LayerBuilder::new(merged.layer, maps_dir);
        builder.content_block = merged.grows.then_some(GROWING_CONTENT / BLOCK_BYTES);
        Self { builder, archives: merged.archives.clone().into_iter(), base: 0 }
    }

    /// Adds the next layer, the bottom first. Its entries are gone through three times, in the archive's order: for what they replace in the layers below, for
    /// what they hide there, which has no effect on the layer itself, and then for the rest.
    ///
    /// # Errors
    /// [`BuildError`], or what reading the entries says; the builder is of no use then.
    pub fn layer<E, I>(&mut self, entries: impl Fn() -> Result<I, E>) -> Result<(), E>
    where
        E: From<BuildError>,
        I: Iterator<Item = Result<Entry, E>>,
    {
        for entry in entries()? {
            self.builder.tree.replace(&entry?)?;
        }
        for entry in entries()? {
            self.builder.tree.hide(&entry?)?;
        }
        for entry in entries()? {
            let entry = self.moved(entry?)?;
            self.builder.tree.add_merged(&entry)?;
        }
        let archive = self.archives.next().map_or(0, |archive| archive.size_bytes);
        self.base = self.base.saturating_add(archive);
        Ok(())
    }

    /// Lays it out. All layers must have been added.
    ///
    /// # Errors
    /// [`BuildError`].
    pub fn finish(self) -> Result<Built, BuildError> {
        self.builder.finish()
    }

    /// The entry with its content where it is in the virtual blob.
    fn moved(&self, entry: Entry) -> Result<Entry, BuildError> {
        let EntryKind::Regular(content) = &entry.kind else { return Ok(entry) };
        let beyond = |end: u64| BuildError::Beyond {
            path: entry.path.clone(),
            end,
            layer_bytes: self.builder.layer.blob.size_bytes,
        };
        let shift = |piece: &Piece| {
            let start = piece.range.start().saturating_add(self.base);
            let range = ByteRange::at(start, piece.range.len()).map_err(|_| beyond(u64::MAX))?;
            Ok(Piece { at: piece.at, range })
        };
        let pieces = content.pieces().iter().map(shift).collect::<Result<Vec<Piece>, BuildError>>()?;
        let content = Content::new(content.size_bytes(), pieces).map_err(|_| beyond(content.size_bytes()))?;
        Ok(Entry { kind: EntryKind::Regular(content), ..entry })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_the_virtual_blob_are_those_of_the_archives_in_their_order() {
        let archive = |name: &[u8], size_bytes| Blob { digest: Digest::of(name), size_bytes };
        let (a, none, b) = (archive(b"a", 10), archive(b"none", 0), archive(b"b", 7));
        let found = |start, end| parts(&[a, none, b], ByteRange::new(start, end).unwrap()).collect::<Vec<_>>();
        let part = |blob: Blob, start, end| (blob, ByteRange::new(start, end).unwrap());
        assert_eq!(found(2, 10), [part(a, 2, 10)]);
        assert_eq!(found(10, 12), [part(b, 0, 2)]);
        assert_eq!(found(9, 17), [part(a, 9, 10), part(b, 0, 7)]);
        assert_eq!(found(17, 20), []);
    }

    #[test]
    fn what_two_indexes_say_of_the_same_archives_is_not_one_table() {
        let blob = Blob { digest: Digest::of(b"archive"), size_bytes: 1 };
        let of = |index: &[u8]| Merged::new(&[OciLayer { blob, contents: Digest::of(index) }; 2]);
        let dir = Path::new("maps");
        assert_ne!(of(b"one").table(dir), of(b"other").table(dir));
        assert_eq!(of(b"one"), of(b"one"));
        let growing = Merged::growing(&[OciLayer { blob, contents: Digest::of(b"one") }; 2]);
        assert_ne!(of(b"one").table(dir), growing.table(dir));
    }
}
