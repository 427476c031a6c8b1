//! eStargz: a layer in which the content of every file begins a gzip member of its own, and whose last file is a table of contents.
//! Format: docs/formats/estargz.md.

use std::{io::Read, path::Path};

use penstock_blob::{Blob, BlobSource, Digest};

use super::{
    Fetched, ForeignError, Format, MAX_TOC_BYTES, TableCost, fetch_tail, fetch_toc, payload::Payload, stream::Gunzip,
    toc,
};
use crate::{
    index::build::Built,
    tar::header::{BLOCK_BYTES, Header},
};

/// The annotation of a layer with the sha256 of its table's JSON.
pub(super) const TOC_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";
/// The name of the table in its tar archive.
const TOC_NAME: &[u8] = b"stargz.index.json";
/// Bytes of a footer: an empty gzip member with an extra field.
const FOOTER_BYTES: usize = 51;
/// Of one whose extra field has no subfields.
const LEGACY_FOOTER_BYTES: usize = 47;
/// Of one without a table in the layer.
const EXTERNAL_FOOTER_BYTES: usize = 46;
/// Where the extra field begins in a gzip header that has nothing else.
const EXTRA_AT: usize = 12;

/// What a footer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Footer {
    /// The table begins at this byte, and ends where the footer begins: so many bytes before the end of the layer.
    Toc { at: u64, footer_bytes: u64 },
    /// The table is not in the layer.
    External,
}

impl Footer {
    /// The footer at the end of a layer.
    fn of(tail: &[u8]) -> Option<Self> {
        let extra = |bytes: usize| {
            let footer = tail.get(tail.len().checked_sub(bytes)?..)?;
            let len = bytes - EXTRA_AT - 13;
            let is_right =
                footer.starts_with(&[0x1f, 0x8b, 8, 4]) && footer[10..EXTRA_AT] == [u8::try_from(len).ok()?, 0];
            is_right.then(|| &footer[EXTRA_AT..EXTRA_AT + len])
        };
        // A subfield: two letters that name it, its length in two bytes.
        let today = extra(FOOTER_BYTES).and_then(|extra| extra.strip_prefix(b"SG\x16\x00"));
        if let Some(at) = today.and_then(place) {
            return Some(Self::Toc { at, footer_bytes: FOOTER_BYTES as u64 });
        }
        if extra(EXTERNAL_FOOTER_BYTES) == Some(b"SG\x11\x00STARGZEXTERNALTOC") {
            return Some(Self::External);
        }
        let at = extra(LEGACY_FOOTER_BYTES).and_then(place)?;
        Some(Self::Toc { at, footer_bytes: LEGACY_FOOTER_BYTES as u64 })
    }
}

/// Sixteen hexadecimal digits and a word.
fn place(text: &[u8]) -> Option<u64> {
    let digits = text.strip_suffix(b"STARGZ").filter(|digits| digits.len() == 16)?;
    let digit = |value: u64, byte: &u8| Some(value << 4 | u64::from(char::from(*byte).to_digit(16)?));
    digits.iter().try_fold(0, digit)
}

/// What the table of contents of a layer costs, by the layer's footer. `outside` is the blob of it if it is not in the layer.
pub(super) async fn cost(
    source: &dyn BlobSource,
    layer: Blob,
    outside: Option<Blob>,
) -> Result<TableCost, ForeignError> {
    let (range, tail) = fetch_tail(source, layer, Format::Estargz).await?;
    match Footer::of(&tail).ok_or(ForeignError::Footer { format: Format::Estargz })? {
        Footer::Toc { at, footer_bytes } => {
            TableCost::new((at, (layer.size_bytes - footer_bytes).saturating_sub(at)), Some(range))
        }
        Footer::External => {
            let table_bytes = outside.ok_or(ForeignError::External)?.size_bytes;
            Ok(TableCost { table_bytes, fetched_bytes: table_bytes.saturating_add(range.len()) })
        }
    }
}

/// Reads the table of contents of a layer. `outside` is the blob of it if it is not in the layer.
pub(super) async fn fetch(
    source: &dyn BlobSource,
    layer: Blob,
    outside: Option<Blob>,
) -> Result<Fetched, ForeignError> {
    let (range, tail) = fetch_tail(source, layer, Format::Estargz).await?;
    match Footer::of(&tail).ok_or(ForeignError::Footer { format: Format::Estargz })? {
        Footer::Toc { at, footer_bytes } => {
            let bytes = (layer.size_bytes - footer_bytes).saturating_sub(at);
            let (range, packed) = fetch_toc(source, layer, (at, bytes), Some((range, &tail))).await?;
            Ok(Fetched { packed, pieces_end: at, blob: layer, range })
        }
        Footer::External => {
            let outside = outside.ok_or(ForeignError::External)?;
            let (range, packed) = fetch_toc(source, outside, (0, outside.size_bytes), None).await?;
            let pieces_end = layer.size_bytes - EXTERNAL_FOOTER_BYTES as u64;
            Ok(Fetched { packed, pieces_end, blob: outside, range })
        }
    }
}

/// Writes the table as a layer index, once it is known to be the `expected` one.
pub(super) fn write(layer: Blob, toc: &Fetched, expected: Digest, path: &Path) -> Result<Built, ForeignError> {
    let broken = |reason: &str| ForeignError::Toc { reason: reason.to_owned() };
    let mut tar = Gunzip::new(&toc.packed).ok_or_else(|| broken("it is not gzip"))?;
    let mut block = [0; BLOCK_BYTES];
    tar.read_exact(&mut block).map_err(|error| broken(&error.to_string()))?;
    let header = Header::parse(&block).filter(|header| header.name() == TOC_NAME);
    let size = header.and_then(|header| header.size()).ok_or_else(|| broken("it is in no tar archive of its own"))?;
    if size > MAX_TOC_BYTES {
        return Err(broken("it is too large"));
    }
    let mut payload = Payload::create(path, layer, toc.pieces_end)?;
    let actual = toc::read(tar.take(size), |entry| payload.add(&entry))?;
    if actual != expected {
        return Err(ForeignError::TocDigest { expected, actual });
    }
    payload.finish(Format::Estargz, actual)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An empty gzip member with an extra field.
    fn footer(extra: &[u8]) -> Vec<u8> {
        let len = u8::try_from(extra.len()).unwrap();
        [&[0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255, len, 0][..], extra, &[1, 0, 0, 0xff, 0xff], &[0; 8]].concat()
    }

    #[test]
    fn every_footer_is_told_from_every_other_end_of_a_layer() {
        let today = footer(b"SG\x16\x0000000000000003f7STARGZ");
        let legacy = footer(b"00000000000003f7STARGZ");
        let external = footer(b"SG\x11\x00STARGZEXTERNALTOC");
        assert_eq!([today.len(), legacy.len(), external.len()], [51, 47, 46]);
        let of = |footer: &[u8]| Footer::of(&[&[7; 60], footer].concat());
        assert_eq!(of(&today), Some(Footer::Toc { at: 0x3f7, footer_bytes: 51 }));
        assert_eq!(of(&legacy), Some(Footer::Toc { at: 0x3f7, footer_bytes: 47 }));
        assert_eq!(of(&external), Some(Footer::External));
        for bad in [
            &footer(b"SG\x16\x0000000000000003g7STARGZ")[..],
            &footer(b"SG\x15\x0000000000000003f7STARGZ"),
            &footer(b"SG\x16\x0000000000000003f7STARGY"),
            &footer(b"SG\x11\x00STARGZEXTERNALTOD"),
            &footer(b""),
            &today[..50],
            &today[1..],
            b"",
        ] {
            assert_eq!(of(bad), None);
            assert_eq!(Footer::of(bad), None);
        }
    }
}
