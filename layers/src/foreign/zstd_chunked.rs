//! zstd:chunked: a layer in which every piece of a file is a Zstandard frame of its own, and which ends with a table of contents and a footer in
//! skippable frames. Two dialects: that of containers/storage, and that of stargz-snapshotter. Format: docs/formats/zstd-chunked.md.

use std::{collections::BTreeMap, io::Read as _, path::Path};

use penstock_blob::{Blob, BlobSource, Digest};

use super::{
    Fetched, ForeignError, Format, MAX_TOC_BYTES, TableCost, Tail, digest, estargz, fetch_tail, fetch_toc,
    payload::Payload, toc,
};

use crate::index::build::Built;

/// How the annotations of both dialects begin, the later name first.
const PREFIXES: [&str; 2] = ["io.github.containers.zstd-chunked.", "io.containers.zstd-chunked."];
/// sha256 of the table as it is stored.
const CHECKSUM: &str = "manifest-checksum";
/// Where it is: `OFFSET:STORED:DECODED:TYPE`.
const POSITION: &str = "manifest-position";
/// The only type of table.
const JSON: u64 = 1;
/// How a skippable frame begins that holds a footer.
const SKIPPABLE: [u8; 4] = [0x50, 0x2a, 0x4d, 0x18];
/// Bytes of the header of a skippable frame.
const SKIPPABLE_HEADER_BYTES: usize = 8;
/// Bytes of footers: of stargz-snapshotter and older tools, and with the place of a tar-split.
const FOOTERS: [usize; 2] = [40, 64];
/// How a footer ends, one of them in each dialect.
const MAGICS: [&[u8; 8]; 2] = [b"GnUlInUx", b"GNUlInUx"];
/// Largest window of the table's compression, as a power of two.
const WINDOW_LOG: u32 = 25;

/// Where a table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    at: u64,
    stored_bytes: u64,
    decoded_bytes: u64,
}

impl Place {
    fn of([at, stored_bytes, decoded_bytes, kind]: [u64; 4]) -> Option<Self> {
        (kind == JSON).then_some(Self { at, stored_bytes, decoded_bytes })
    }

    /// As an annotation has it.
    fn annotated(text: &str) -> Option<Self> {
        let numbers: Option<Vec<u64>> = text.split(':').map(|number| number.parse().ok()).collect();
        Self::of(numbers?.try_into().ok()?)
    }

    /// As the footer at the end of a layer has it.
    fn at_the_end(tail: &[u8]) -> Option<Self> {
        let footer = |bytes: usize| {
            let frame = tail.get(tail.len().checked_sub(SKIPPABLE_HEADER_BYTES + bytes)?..)?;
            let length = u32::try_from(bytes).ok()?.to_le_bytes();
            let is_right = frame.starts_with(&SKIPPABLE)
                && frame[4..SKIPPABLE_HEADER_BYTES] == length
                && MAGICS.iter().any(|magic| frame.ends_with(&magic[..]));
            is_right.then(|| &frame[SKIPPABLE_HEADER_BYTES..])
        };
        let footer = FOOTERS.into_iter().find_map(footer)?;
        let numbers: Vec<u64> = footer.as_chunks().0.iter().take(4).map(|bytes| u64::from_le_bytes(*bytes)).collect();
        Self::of(numbers.try_into().ok()?)
    }
}

/// What a manifest says of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Offer {
    /// sha256 of it as it is stored.
    stored: Digest,
    /// sha256 of the JSON, which only stargz-snapshotter says.
    json: Option<Digest>,
    /// Where it is; otherwise a footer says so.
    place: Option<Place>,
}

impl Offer {
    pub(super) fn of(annotations: &BTreeMap<String, String>) -> Result<Option<Self>, ForeignError> {
        for prefix in PREFIXES {
            let Some(stored) = digest(annotations, &format!("{prefix}{CHECKSUM}"))? else { continue };
            let key = format!("{prefix}{POSITION}");
            let parse =
                |text: &String| Place::annotated(text).ok_or_else(|| ForeignError::Annotation { key: key.clone() });
            let place = annotations.get(&key).map(parse).transpose()?;
            return Ok(Some(Self { stored, json: digest(annotations, estargz::TOC_DIGEST)?, place }));
        }
        Ok(None)
    }

    /// sha256 of the table as it is stored.
    pub(super) const fn stored(&self) -> &Digest {
        &self.stored
    }

    /// Where the table is, and the end of the layer if that had to be read to know it.
    async fn find(&self, source: &dyn BlobSource, layer: Blob) -> Result<(Place, Option<Tail>), ForeignError> {
        if let Some(place) = self.place {
            return Ok((place, None));
        }
        let tail = fetch_tail(source, layer, Format::ZstdChunked).await?;
        let place = Place::at_the_end(&tail.1).ok_or(ForeignError::Footer { format: Format::ZstdChunked })?;
        Ok((place, Some(tail)))
    }

    /// What the table costs.
    pub(super) async fn cost(&self, source: &dyn BlobSource, layer: Blob) -> Result<TableCost, ForeignError> {
        let (place, tail) = self.find(source, layer).await?;
        TableCost::new((place.at, place.stored_bytes), tail.map(|(range, _)| range))
    }

    /// Reads the table.
    pub(super) async fn fetch(&self, source: &dyn BlobSource, layer: Blob) -> Result<Fetched, ForeignError> {
        let (place, tail) = self.find(source, layer).await?;
        let tail = tail.as_ref().map(|(range, tail)| (*range, tail));
        if place.decoded_bytes > MAX_TOC_BYTES {
            return Err(ForeignError::TocPlace { at: place.at, bytes: place.decoded_bytes });
        }
        let (range, packed) = fetch_toc(source, layer, (place.at, place.stored_bytes), tail).await?;
        Ok(Fetched { packed, pieces_end: place.at, blob: layer, range })
    }

    /// Writes the table as a layer index.
    pub(super) fn write(&self, layer: Blob, toc: &Fetched, path: &Path) -> Result<Built, ForeignError> {
        let actual = Digest::of(&toc.packed);
        if actual != self.stored {
            return Err(ForeignError::TocDigest { expected: self.stored, actual });
        }
        let mut decoder = zstd::stream::read::Decoder::with_buffer(&*toc.packed)?.single_frame();
        decoder.window_log_max(WINDOW_LOG)?;
        let mut payload = Payload::create(path, layer, toc.pieces_end)?;
        let actual = toc::read(decoder.take(MAX_TOC_BYTES), |entry| payload.add(&entry))?;
        match self.json {
            Some(expected) if expected != actual => Err(ForeignError::TocDigest { expected, actual }),
            _ => payload.finish(Format::ZstdChunked, self.stored),
        }
    }
}
