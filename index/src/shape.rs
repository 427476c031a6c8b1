//! Where in a list which hash is, and the header page. Pure. Byte-exact format: docs/formats/index.md.

use std::{fmt, str::FromStr};

use penstock_blob::{Blob, ByteRange, ChunkSize};

/// Bytes of a page.
pub(crate) const PAGE_BYTES: usize = 4096;
/// Bytes of a hash.
pub(crate) const HASH_BYTES: usize = 32;
/// Hashes in a page: 128, so that three levels serve 128 GiB in chunks of 64 KiB.
const PER_PAGE: u64 = (PAGE_BYTES / HASH_BYTES) as u64;
/// The chunk size of lists made here: the smallest that a cache can have, so that verifying never widens a fill. A list is then
/// 0.05 % of its blob.
pub const GRID: u64 = 64 << 10;
/// Largest blob that can have a list, 16 TiB: far beyond any layer, and 2^28 chunks keep every number below in 64 bits.
pub const MAX_BLOB_BYTES: u64 = 16 << 40;
/// First bytes of a list.
const MAGIC: &[u8; 8] = b"PNSTKIDX";
/// Version of the format.
const VERSION: u32 = 1;
/// The algorithm of all hashes: BLAKE3 with 256 bits of output.
const BLAKE3: u32 = 1;
/// Where the hash of the top page stands in the header page.
const TOP_AT: usize = 64;

/// A page in memory.
pub(crate) type Page = [u8; PAGE_BYTES];
/// BLAKE3 of a chunk or of a page.
pub(crate) type Hash = [u8; HASH_BYTES];

/// BLAKE3 of `bytes`.
pub(crate) fn hash(bytes: &[u8]) -> Hash {
    *blake3::hash(bytes).as_bytes()
}

/// What a list is believed by: the BLAKE3 hash of its header page. Written `blake3:` and 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Root([u8; HASH_BYTES]);

/// A text is not a root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a root is written blake3:<64 lower-case hex digits>")]
pub struct RootError;

impl Root {
    /// The 64 hex digits: fit for a file name.
    #[must_use]
    pub fn to_hex(&self) -> String {
        hex::encode(self.0)
    }
}

impl FromStr for Root {
    type Err = RootError;

    fn from_str(text: &str) -> Result<Self, RootError> {
        let digits = text.strip_prefix("blake3:").filter(|digits| !digits.bytes().any(|b| b.is_ascii_uppercase()));
        let mut bytes = [0; HASH_BYTES];
        hex::decode_to_slice(digits.ok_or(RootError)?, &mut bytes).map_err(|_| RootError)?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blake3:{}", self.to_hex())
    }
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for Root {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Root {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A blob and the list of its chunks' hashes, as an index names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed {
    /// The blob whose chunks are listed.
    pub blob: Blob,
    /// The size of its chunks.
    pub grid: ChunkSize,
    /// The list, itself a blob of the registry.
    pub list: Blob,
    /// What the list is believed by.
    pub root: Root,
}

impl Listed {
    /// How large the list of this blob and grid is, in bytes; `None` when the blob cannot have one, because it is empty or
    /// larger than [`MAX_BLOB_BYTES`].
    pub(crate) fn list_bytes(blob: Blob, grid: ChunkSize) -> Option<u64> {
        Shape::new(blob, grid).map(|shape| shape.list_bytes())
    }
}

/// The pages of one level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Level {
    /// Number of its first page in the file.
    first: u64,
    /// How many.
    pages: u64,
}

/// A place of a hash: the page, and which hash of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) page: u64,
    slot: usize,
}

impl Place {
    /// The hash at this place of its page.
    pub(crate) fn of(self, page: &Page) -> Hash {
        let mut hash = [0; HASH_BYTES];
        hash.copy_from_slice(&page[self.slot * HASH_BYTES..][..HASH_BYTES]);
        hash
    }

    pub(crate) fn put(self, page: &mut Page, hash: &Hash) {
        page[self.slot * HASH_BYTES..][..HASH_BYTES].copy_from_slice(hash);
    }
}

/// The arithmetic of one list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) blob: Blob,
    pub(crate) grid: ChunkSize,
    pub(crate) chunks: u32,
    /// The top level, one page, first; the hashes of chunks last.
    levels: Vec<Level>,
}

impl Shape {
    /// `None` when the blob is empty or too large.
    pub(crate) fn new(blob: Blob, grid: ChunkSize) -> Option<Self> {
        let chunks = grid.count(&blob).filter(|&n| n > 0 && blob.size_bytes <= MAX_BLOB_BYTES)?;
        let mut counts = vec![u64::from(chunks).div_ceil(PER_PAGE)];
        while let Some(&below) = counts.last().filter(|&&pages| pages > 1) {
            counts.push(below.div_ceil(PER_PAGE));
        }
        let mut first = 1;
        let levels = counts.into_iter().rev().map(|pages| {
            let level = Level { first, pages };
            first += pages;
            level
        });
        Some(Self { blob, grid, chunks, levels: levels.collect() })
    }

    /// Pages of the list, the header included.
    pub(crate) fn pages(&self) -> u64 {
        self.levels.last().map_or(1, |last| last.first + last.pages)
    }

    /// Size of the list in bytes.
    pub(crate) fn list_bytes(&self) -> u64 {
        self.pages() * PAGE_BYTES as u64
    }

    pub(crate) fn depth(&self) -> usize {
        self.levels.len()
    }

    /// Where the hashes lead from the top page to `chunk`, which must be one of the blob's: in the last place stands the
    /// chunk's hash, in each other the hash of the next place's page.
    pub(crate) fn path(&self, chunk: u32) -> impl Iterator<Item = Place> + '_ {
        let depth = self.levels.len();
        self.levels.iter().enumerate().map(move |(nth, level)| {
            let below = u32::try_from(depth - 1 - nth).unwrap_or(u32::MAX);
            let index = u64::from(chunk) / PER_PAGE.pow(below);
            Place { page: level.first + index / PER_PAGE, slot: usize::try_from(index % PER_PAGE).unwrap_or(0) }
        })
    }

    /// The place of the `index`th hash of level `nth` (0 is the top).
    pub(crate) fn place(&self, nth: usize, index: u64) -> Option<Place> {
        let level = self.levels.get(nth)?;
        let slot = usize::try_from(index % PER_PAGE).ok()?;
        Some(Place { page: level.first + index / PER_PAGE, slot })
    }

    /// The whole chunks that hold `range`, as a range of the blob.
    pub(crate) fn widen(&self, range: ByteRange) -> ByteRange {
        let size = u64::from(self.grid.bytes());
        let start = range.start() / size * size;
        let end = range.end().div_ceil(size).saturating_mul(size).min(self.blob.size_bytes);
        ByteRange::new(start, end).unwrap_or(range)
    }

    /// The header page of the list whose top page has this hash.
    pub(crate) fn header(&self, top: &Hash) -> Page {
        let mut page = [0; PAGE_BYTES];
        page[..8].copy_from_slice(MAGIC);
        page[8..12].copy_from_slice(&VERSION.to_le_bytes());
        page[12..16].copy_from_slice(&BLAKE3.to_le_bytes());
        page[16..24].copy_from_slice(&self.blob.size_bytes.to_le_bytes());
        page[24..28].copy_from_slice(&self.grid.bytes().to_le_bytes());
        page[32..TOP_AT].copy_from_slice(self.blob.digest.as_bytes());
        page[TOP_AT..TOP_AT + HASH_BYTES].copy_from_slice(top);
        page
    }

    /// The root of the list whose top page has this hash.
    pub(crate) fn root(&self, top: &Hash) -> Root {
        Root(hash(&self.header(top)))
    }

    /// The hash of the top page, when `page` is the header page that `root` names and is about this blob and grid.
    pub(crate) fn top(&self, page: &Page, root: &Root) -> Option<Hash> {
        let mut top = [0; HASH_BYTES];
        top.copy_from_slice(&page[TOP_AT..TOP_AT + HASH_BYTES]);
        (hash(page) == root.0 && *page == self.header(&top)).then_some(top)
    }
}

#[cfg(test)]
mod tests {
    use penstock_blob::Digest;

    use super::*;

    fn shape(size_bytes: u64, grid: u64) -> Option<Shape> {
        Shape::new(Blob { digest: Digest::of(b"x"), size_bytes }, ChunkSize::new(grid).unwrap())
    }

    #[test]
    fn lists_have_the_size_of_their_hashes_and_no_level_too_many() {
        for (size_bytes, depth, pages) in [
            (1, 1, 2),
            (128 * GRID, 1, 2),
            (128 * GRID + 1, 2, 4),
            (128 * 128 * GRID, 2, 130),
            (128 * 128 * GRID + 1, 3, 1 + 1 + 2 + 129),
            (100 << 30, 3, 1 + 1 + 100 + 12_800),
            (MAX_BLOB_BYTES, 4, 1 + 1 + 128 + (1 << 14) + (1 << 21)),
        ] {
            let shape = shape(size_bytes, GRID).unwrap();
            assert_eq!((shape.depth(), shape.pages()), (depth, pages), "{size_bytes}");
        }
        assert_eq!(shape(0, GRID), None);
        assert_eq!(shape(MAX_BLOB_BYTES + 1, 4 << 20), None);
    }

    #[test]
    fn every_hash_has_a_place_of_its_own() {
        let shape = shape(300 * GRID, GRID).unwrap();
        let mut leaves: Vec<(u64, usize)> = Vec::new();
        for chunk in 0..300 {
            let path: Vec<Place> = shape.path(chunk).collect();
            assert_eq!(path[0].page, 1, "the top page follows the header");
            assert_eq!(path[1].page, 2 + u64::from(chunk) / 128);
            assert_eq!(Some(path[0]), shape.place(0, u64::from(chunk) / 128));
            assert_eq!(Some(path[1]), shape.place(1, u64::from(chunk)));
            leaves.push((path[1].page, path[1].slot));
        }
        leaves.dedup();
        assert_eq!(leaves.len(), 300);
    }

    #[test]
    fn a_range_is_widened_to_whole_chunks_within_the_blob() {
        let shape = shape(GRID * 3 + 5, GRID).unwrap();
        for (start, end, from, until) in [
            (0, 1, 0, GRID),
            (GRID - 1, GRID + 1, 0, 2 * GRID),
            (GRID, 2 * GRID, GRID, 2 * GRID),
            (3 * GRID + 1, 3 * GRID + 2, 3 * GRID, 3 * GRID + 5),
        ] {
            let wide = shape.widen(ByteRange::new(start, end).unwrap());
            assert_eq!((wide.start(), wide.end()), (from, until));
        }
    }

    #[test]
    fn a_header_is_of_one_blob_one_grid_and_one_top() {
        let one = shape(5 * GRID, GRID).unwrap();
        let top = hash(b"top");
        let (page, root) = (one.header(&top), one.root(&top));
        assert_eq!(one.top(&page, &root), Some(top));
        assert_eq!(shape(5 * GRID - 1, GRID).unwrap().top(&page, &root), None, "another size");
        assert_eq!(shape(5 * GRID, 2 * GRID).unwrap().top(&page, &root), None, "another grid");
        for at in 0..PAGE_BYTES {
            let mut flipped = page;
            flipped[at] ^= 1;
            assert_eq!(one.top(&flipped, &root), None, "byte {at}");
        }
        assert_eq!(root.to_string().parse(), Ok(root));
        for bad in ["", "blake3:", "sha256:00", &root.to_string().to_uppercase(), &format!("{root}0")] {
            assert_eq!(bad.parse::<Root>(), Err(RootError), "{bad}");
        }
    }
}
