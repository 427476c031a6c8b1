//! Layers in formats of others that can be read lazily, as layer indexes: their tables of contents become entries, their pieces frames.
//!
//! | module | reads | documented in |
//! |---|---|---|
//! | `estargz` | eStargz, with today's footer, the legacy one, and a table of contents outside of the layer | docs/formats/estargz.md |
//! | `zstd_chunked` | zstd:chunked of containers/storage and of stargz-snapshotter | docs/formats/zstd-chunked.md |
//! | [`soci`] | ztocs of SOCI, which lie beside the layer | docs/formats/soci.md |
//! | [`turbo`] | the gzip indexes of TurboOCI, which lie in a layer beside the layer | docs/formats/turbooci.md |
//!
//! # What the archive of such a layer is
//!
//! The tables of the first two say where the content of files lies in the *compressed* layer, and give a digest for every piece of it; of the tar headers in
//! between they say nothing, neither where they are nor how long. So the archive here is the *payload*: the content of the files, one after
//! the other in the order of the table, without headers, padding and holes. Every byte of it has a digest. It is named by
//! [`Digest::derived`] from the layer and its table: nobody knows its sha256, and the diff ID is that of the tar archive, which cannot be had
//! without reading the whole layer.
//!
//! # What is believed
//!
//! The table is what the manifest says it is, by its digest; a layer whose manifest gives none is refused ([`Offer::of`]), as nothing would
//! tie the table to the image. What the table says is then the image's own word. Everything it says is checked for what it can be.

mod estargz;
mod flat;
mod payload;
pub mod soci;
mod stream;
#[cfg(test)]
mod tests;
mod time;
mod toc;
pub mod turbo;
mod zstd_chunked;

use std::{collections::BTreeMap, io, path::Path};

use bytes::Bytes;
use penstock_blob::{Blob, BlobSource, ByteRange, Digest, Purpose, ReadError};

use crate::{entry::EntryError, index::build::Built};

/// Most bytes of a table of contents as it is stored. A million files need about 60 MiB.
const MAX_TOC_PACKED_BYTES: u64 = 64 << 20;
/// Most bytes of it decoded; they are never held together.
const MAX_TOC_BYTES: u64 = 1 << 30;
/// Times that a table is read when it is wrong: more than a node has mirrors of one registry.
const TRIES: u32 = 8;
/// Bytes read at the end of a layer: the footer, and often the table of contents before it.
const TAIL_BYTES: u64 = 64 << 10;

/// A format of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// gzip with a table of contents (stargz-snapshotter).
    Estargz,
    /// Zstandard with a table of contents (containers/storage, stargz-snapshotter).
    ZstdChunked,
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Estargz => "eStargz",
            Self::ZstdChunked => "zstd:chunked",
        })
    }
}

/// Why a layer in a foreign format is not read as one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ForeignError {
    /// The manifest contradicts itself about the format.
    #[error("the manifest's annotation {key} of the layer is malformed")]
    Annotation {
        /// Which one.
        key: String,
    },
    /// The layer does not end as one of this format.
    #[error("the layer does not end with a footer of {format}, though its manifest says so")]
    Footer {
        /// Which format.
        format: Format,
    },
    /// The table of contents is elsewhere.
    #[error(
        "the layer's table of contents is not in it; it is looked for in the image named like this one with -esgztoc"
    )]
    External,
    /// The table of contents is not the one that the manifest names.
    #[error("the layer's table of contents has digest {actual}, and its manifest says {expected}")]
    TocDigest {
        /// By the manifest.
        expected: Digest,
        /// Of what came.
        actual: Digest,
    },
    /// The table of contents lies outside of the layer or is too large.
    #[error("the layer's table of contents is said to have {bytes} bytes from byte {at} on, which cannot be")]
    TocPlace {
        /// Where it would begin.
        at: u64,
        /// How long it would be.
        bytes: u64,
    },
    /// The table of contents cannot be read.
    #[error("the layer's table of contents cannot be read: {reason}")]
    Toc {
        /// Why not.
        reason: String,
    },
    /// An entry is impossible.
    #[error("entry {nth} of the layer's table of contents: {error}")]
    Entry {
        /// Which, counted from 0.
        nth: u64,
        /// What is wrong with it.
        #[source]
        error: EntryError,
    },
    /// An entry makes no sense.
    #[error("entry {nth} of the layer's table of contents makes no sense: {what}")]
    Nonsense {
        /// Which, counted from 0.
        nth: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A TurboOCI layer does not hold what it should.
    #[error("the TurboOCI layer cannot be used: {reason}")]
    Turbo {
        /// What is wrong with it.
        reason: String,
    },
    /// The layer may be well, but cannot be read piece by piece.
    #[error("the layer cannot be read lazily: {reason}")]
    NotLazy {
        /// Why not.
        reason: String,
    },
    /// The layer cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The layer index cannot be written.
    #[error("the layer index cannot be written: {0}")]
    Io(#[from] io::Error),
}

impl ForeignError {
    /// Whether another try may help.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Read(error) => error.is_transient(),
            Self::Io(_) => true,
            _ => false,
        }
    }
}

/// What it takes to have a table of contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableCost {
    /// Bytes of it as it is stored.
    pub table_bytes: u64,
    /// Bytes that are fetched for it: the table, and the end of the layer where that says where the table is.
    pub fetched_bytes: u64,
}

impl TableCost {
    /// Of the table at `range`, once the `tail` of the layer has said so.
    fn new((at, table_bytes): (u64, u64), tail: Option<ByteRange>) -> Result<Self, ForeignError> {
        let wrong = || ForeignError::TocPlace { at, bytes: table_bytes };
        let range = ByteRange::at(at, table_bytes).map_err(|_| wrong())?;
        let fetched_bytes = match tail {
            Some(tail) if tail.contains(range) => tail.len(),
            Some(tail) => table_bytes.checked_add(tail.len()).ok_or_else(wrong)?,
            None => table_bytes,
        };
        Ok(Self { table_bytes, fetched_bytes })
    }
}

/// What a manifest says of the table of contents in a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer(Dialect);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Dialect {
    Estargz { toc: Digest },
    ZstdChunked(zstd_chunked::Offer),
}

impl Offer {
    /// What the annotations of a layer in its manifest offer; nothing for other layers. Without a digest of the table nothing is offered.
    ///
    /// # Errors
    /// [`ForeignError::Annotation`].
    pub fn of(annotations: &BTreeMap<String, String>) -> Result<Option<Self>, ForeignError> {
        if let Some(offer) = zstd_chunked::Offer::of(annotations)? {
            return Ok(Some(Self(Dialect::ZstdChunked(offer))));
        }
        let toc = digest(annotations, estargz::TOC_DIGEST)?;
        Ok(toc.map(|toc| Self(Dialect::Estargz { toc })))
    }

    /// The format of the layer.
    #[must_use]
    pub const fn format(&self) -> Format {
        match self.0 {
            Dialect::Estargz { .. } => Format::Estargz,
            Dialect::ZstdChunked(_) => Format::ZstdChunked,
        }
    }

    /// The name of the archive of `layer` by this table. Who meets an index of the layer under another one has one of another table.
    #[must_use]
    pub fn archive(&self, layer: &Digest) -> Digest {
        let toc = match &self.0 {
            Dialect::Estargz { toc } => toc,
            Dialect::ZstdChunked(offer) => offer.stored(),
        };
        archive(self.format(), layer, toc)
    }

    /// Reads the table of contents of `layer` from `source`, which has its compressed bytes, and writes it as a layer index to `path`, which is
    /// replaced. `outside` is the blob of the table when it is not in the layer. Reads the table and a footer, nothing else; holds the table as
    /// it is stored, at most 64 MiB.
    ///
    /// # Errors
    /// [`ForeignError`]; the file is of no use then.
    pub async fn translate(
        &self,
        source: &dyn BlobSource,
        layer: Blob,
        outside: Option<Blob>,
        path: &Path,
    ) -> Result<Built, ForeignError> {
        let mut tries = 1;
        loop {
            let toc = match &self.0 {
                Dialect::Estargz { .. } => estargz::fetch(source, layer, outside).await?,
                Dialect::ZstdChunked(offer) => offer.fetch(source, layer).await?,
            };
            let (this, path, blob, range) = (self.clone(), path.to_owned(), toc.blob, toc.range);
            let work = tokio::task::spawn_blocking(move || this.write(layer, &toc, &path));
            // An error: the runtime is stopping.
            match work.await.map_err(|_| ForeignError::Read(ReadError::Stopping))? {
                Err(ForeignError::TocDigest { .. } | ForeignError::Toc { .. }) if tries < TRIES => {
                    source.reject(&blob, range);
                    tries += 1;
                }
                result => return result,
            }
        }
    }

    /// What it takes to have the table of contents of `layer`, without reading it: at most the last 64 KiB of the layer are read from `source`.
    /// `outside` as for [`translate`](Self::translate).
    ///
    /// # Errors
    /// [`ForeignError`].
    pub async fn cost(
        &self,
        source: &dyn BlobSource,
        layer: Blob,
        outside: Option<Blob>,
    ) -> Result<TableCost, ForeignError> {
        match &self.0 {
            Dialect::Estargz { .. } => estargz::cost(source, layer, outside).await,
            Dialect::ZstdChunked(offer) => offer.cost(source, layer).await,
        }
    }

    /// Writes a table of contents as a layer index.
    fn write(&self, layer: Blob, toc: &Fetched, path: &Path) -> Result<Built, ForeignError> {
        match &self.0 {
            Dialect::Estargz { toc: expected } => estargz::write(layer, toc, *expected, path),
            Dialect::ZstdChunked(offer) => offer.write(layer, toc, path),
        }
    }
}

/// The name of the archive of a layer whose table of contents has the digest `toc`.
fn archive(format: Format, layer: &Digest, toc: &Digest) -> Digest {
    Digest::derived(&format!("payload of {format}"), &[*layer, *toc])
}

/// A table of contents as it is stored, and where the pieces of files end in the layer at the latest.
#[derive(Debug)]
struct Fetched {
    packed: Bytes,
    pieces_end: u64,
    /// Of which blob it was read, and from where.
    blob: Blob,
    range: ByteRange,
}

/// Reads the table of contents that lies at `range`, of which `tail`, the last bytes of the layer, may have all.
async fn fetch_toc(
    source: &dyn BlobSource,
    blob: Blob,
    (at, bytes): (u64, u64),
    tail: Option<(ByteRange, &Bytes)>,
) -> Result<(ByteRange, Bytes), ForeignError> {
    let wrong = || ForeignError::TocPlace { at, bytes };
    let range = ByteRange::at(at, bytes).map_err(|_| wrong())?;
    if range.end() > blob.size_bytes || range.len() > MAX_TOC_PACKED_BYTES {
        return Err(wrong());
    }
    if let Some((whole, tail)) = tail.filter(|(whole, _)| whole.contains(range)) {
        let index = |byte: u64| usize::try_from(byte - whole.start()).unwrap_or(usize::MAX).min(tail.len());
        return Ok((range, tail.slice(index(range.start())..index(range.end()))));
    }
    Ok((range, source.read(blob, range, Purpose::Demand).await?))
}

/// The last bytes of a layer, and which they are.
type Tail = (ByteRange, Bytes);

/// Reads the last bytes of a layer.
async fn fetch_tail(source: &dyn BlobSource, layer: Blob, format: Format) -> Result<Tail, ForeignError> {
    let start = layer.size_bytes.saturating_sub(TAIL_BYTES);
    let range = ByteRange::new(start, layer.size_bytes).map_err(|_| ForeignError::Footer { format })?;
    Ok((range, source.read(layer, range, Purpose::Demand).await?))
}

/// A digest among annotations.
fn digest(annotations: &BTreeMap<String, String>, key: &str) -> Result<Option<Digest>, ForeignError> {
    let parse = |text: &String| text.parse().map_err(|_| ForeignError::Annotation { key: key.to_owned() });
    annotations.get(key).map(parse).transpose()
}
