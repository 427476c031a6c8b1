//! The JSON of a table of contents, read as a stream: the same in eStargz and in both dialects of zstd:chunked.

use std::{
    cell::Cell,
    collections::BTreeMap,
    fmt,
    io::{BufReader, Read},
};

use penstock_blob::Digest;
use serde::{
    Deserialize,
    de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use super::{ForeignError, stream::Watched};

/// The only version there is.
const VERSION: u64 = 1;
/// Most bytes of one entry, or of all that stands beside the entries: twice what the longest path and all attributes take.
const MAX_ENTRY_BYTES: u64 = 1 << 20;
/// Bytes read at once.
const BUFFER_BYTES: usize = 64 << 10;

/// One entry.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TocEntry {
    /// The path as the tar archive has it.
    pub(super) name: String,
    /// `dir`, `reg`, `symlink`, `hardlink`, `char`, `block`, `fifo`; `chunk` for all but the first piece of a file.
    #[serde(rename = "type")]
    pub(super) kind: String,
    /// Bytes of a file.
    #[serde(default)]
    pub(super) size: u64,
    /// RFC 3339.
    pub(super) modtime: Option<String>,
    #[serde(default)]
    pub(super) link_name: String,
    #[serde(default)]
    pub(super) mode: i64,
    #[serde(default)]
    pub(super) uid: u32,
    #[serde(default)]
    pub(super) gid: u32,
    #[serde(default)]
    pub(super) dev_major: u64,
    #[serde(default)]
    pub(super) dev_minor: u64,
    /// Values in base64.
    pub(super) xattrs: Option<BTreeMap<String, String>>,
    /// sha256 of the whole file.
    pub(super) digest: Option<String>,
    /// Where the gzip member or Zstandard frame with the piece begins in the compressed layer.
    #[serde(default)]
    pub(super) offset: u64,
    /// How many bytes come before the piece in it.
    #[serde(default)]
    pub(super) inner_offset: u64,
    /// Where the piece begins in its file.
    #[serde(default)]
    pub(super) chunk_offset: u64,
    /// Bytes of the piece; 0: up to the end of the file.
    #[serde(default)]
    pub(super) chunk_size: u64,
    /// sha256 of the piece.
    pub(super) chunk_digest: Option<String>,
    /// `zeros` for a piece that is not stored.
    #[serde(default)]
    pub(super) chunk_type: String,
}

/// Reads a table of contents and passes on its entries, in order. Answers the digest of the JSON. Holds one entry.
pub(super) fn read(
    json: impl Read,
    mut found: impl FnMut(TocEntry) -> Result<(), ForeignError>,
) -> Result<Digest, ForeignError> {
    let left = Cell::new(MAX_ENTRY_BYTES);
    let mut watched = Watched::new(json, &left);
    let mut refused = None;
    let mut take = |entry| {
        left.set(MAX_ENTRY_BYTES);
        found(entry).map_err(|error| refused = Some(error))
    };
    let mut from = serde_json::Deserializer::from_reader(BufReader::with_capacity(BUFFER_BYTES, &mut watched));
    let read = Toc(&mut take).deserialize(&mut from);
    let read = read.and_then(|()| from.end());
    drop(from);
    match (refused, read) {
        (Some(error), _) => Err(error),
        (None, Err(error)) => Err(ForeignError::Toc { reason: error.to_string() }),
        (None, Ok(())) => Ok(watched.finish()),
    }
}

/// What takes entries. An error: no more are wanted.
type Take<'a> = &'a mut dyn FnMut(TocEntry) -> Result<(), ()>;

/// The outermost object.
struct Toc<'a>(Take<'a>);

impl<'de> DeserializeSeed<'de> for Toc<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Toc<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table of contents")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let (mut version, mut is_read) = (None, false);
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "version" => version = Some(map.next_value::<u64>()?),
                "entries" if is_read => return Err(A::Error::custom("it has entries twice")),
                "entries" => {
                    map.next_value_seed(Entries(&mut *self.0))?;
                    is_read = true;
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        match version {
            Some(VERSION) if is_read => Ok(()),
            Some(VERSION) => Err(A::Error::custom("it has no entries")),
            _ => Err(A::Error::custom("it is not of version 1")),
        }
    }
}

/// The list of entries; there is none in the table of an empty layer.
struct Entries<'a>(Take<'a>);

impl<'de> DeserializeSeed<'de> for Entries<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Entries<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of entries")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while let Some(entry) = seq.next_element::<TocEntry>()? {
            (self.0)(entry).map_err(|()| A::Error::custom("an entry was refused"))?;
        }
        Ok(())
    }
}
