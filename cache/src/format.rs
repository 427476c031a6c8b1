//! What stands on disk, byte by byte: `blobs/<no>.meta`, `blobs/<no>.slots`, the index records, the marks `clean` and `commits`.
//! `docs/formats/cache.md` describes the same; a golden test holds both to it. All numbers are little-endian, but for keys.

use penstock_blob::{Blob, ChunkSize, Digest};

use crate::bits::{Bits, SEGMENT_CHUNKS};

#[cfg(test)]
mod tests;

/// Version of the directory layout, in the file `layout`.
pub(crate) const LAYOUT: &str = "penstock-cache 1\n";
/// Bytes of a `.meta` file.
pub(crate) const META_BYTES: usize = 4096;
/// Bytes of one slot header.
pub(crate) const HEADER_BYTES: usize = 8;
/// Bytes of a segment record: version and padding 4, bitmap 32, checksums 1024, trailer 4.
pub(crate) const SEGMENT_BYTES: usize = 1064;
/// Bytes of a blob record.
pub(crate) const BLOB_BYTES: usize = 56;
/// Bytes of the sys record.
pub(crate) const SYS_BYTES: usize = 40;
/// Bytes of a mark: the files `clean` and `commits`.
pub(crate) const MARK_BYTES: usize = 36;
/// Key of the sys record. Keys differ in length: 3 sys, 4 blob, 8 segment.
pub(crate) const SYS_KEY: &[u8; 3] = b"sys";

const META_MAGIC: &[u8; 8] = b"PSTKBLOB";
/// Begins `clean`.
pub(crate) const CLEAN_MAGIC: &[u8; 8] = b"PSTKCLN1";
/// Begins `commits`.
pub(crate) const COMMITS_MAGIC: &[u8; 8] = b"PSTKCMT1";
const SEAL_MAGIC: &[u8; 8] = b"PSTKSLOT";
const VERSION: u8 = 1;
const SHA256: u32 = 1;
const VERIFIED: u8 = 1;

/// Names one index, from its creation to its loss: files and index that carry different ones do not belong together.
pub(crate) type Uuid = [u8; 16];

/// Reads numbers from the front of a slice; every read is checked.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (head, tail) = self.0.split_first_chunk::<N>()?;
        self.0 = tail;
        Some(head)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(|b| u32::from_le_bytes(*b))
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(|b| u64::from_le_bytes(*b))
    }
}

/// Appends the crc32c of `prefix` and `bytes`.
fn seal(prefix: &[u8], bytes: &mut Vec<u8>) {
    let crc = crc32c::crc32c_append(crc32c::crc32c(prefix), bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
}

/// The bytes without their trailing crc32c, when that is right and the length is `len`.
fn unseal<'a>(prefix: &[u8], bytes: &'a [u8], len: usize) -> Option<&'a [u8]> {
    if bytes.len() != len {
        return None;
    }
    let (body, crc) = bytes.split_last_chunk::<4>()?;
    (crc32c::crc32c_append(crc32c::crc32c(prefix), body) == u32::from_le_bytes(*crc)).then_some(body)
}

/// The immutable description of one blob's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) no: u32,
    pub(crate) uuid: Uuid,
    pub(crate) blob: Blob,
    pub(crate) chunk_size: ChunkSize,
}

impl Meta {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(META_BYTES);
        out.extend_from_slice(META_MAGIC);
        out.extend_from_slice(&u32::from(VERSION).to_le_bytes());
        out.extend_from_slice(&self.no.to_le_bytes());
        out.extend_from_slice(&self.uuid);
        out.extend_from_slice(&SHA256.to_le_bytes());
        out.extend_from_slice(self.blob.digest.as_bytes());
        out.extend_from_slice(&self.blob.size_bytes.to_le_bytes());
        out.extend_from_slice(&self.chunk_size.bytes().to_le_bytes());
        out.resize(META_BYTES - 4, 0);
        seal(&[], &mut out);
        out
    }

    /// `None` for anything but a whole, current meta file.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut r = Reader(unseal(&[], bytes, META_BYTES)?);
        if r.array()? != META_MAGIC || r.u32()? != u32::from(VERSION) {
            return None;
        }
        let (no, uuid) = (r.u32()?, *r.array()?);
        if r.u32()? != SHA256 {
            return None;
        }
        let digest = Digest::from_bytes(*r.array()?);
        let size_bytes = r.u64()?;
        let chunk_size = ChunkSize::new(u64::from(r.u32()?)).ok()?;
        Some(Self { no, uuid, blob: Blob { digest, size_bytes }, chunk_size })
    }
}

/// Binds the headers of one blob's slots to it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sealer(u32);

impl Sealer {
    pub(crate) fn new(blob: &Blob, chunk_size: ChunkSize) -> Self {
        let mut crc = crc32c::crc32c(SEAL_MAGIC);
        crc = crc32c::crc32c_append(crc, blob.digest.as_bytes());
        crc = crc32c::crc32c_append(crc, &blob.size_bytes.to_le_bytes());
        Self(crc32c::crc32c_append(crc, &chunk_size.bytes().to_le_bytes()))
    }

    fn seal(self, chunk: u32, crc: u32) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c_append(self.0, &chunk.to_le_bytes()), &crc.to_le_bytes())
    }

    /// The header of chunk `chunk`, whose data has this crc32c.
    pub(crate) fn header(self, chunk: u32, crc: u32) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[..4].copy_from_slice(&crc.to_le_bytes());
        header[4..].copy_from_slice(&self.seal(chunk, crc).to_le_bytes());
        header
    }

    /// The data's crc32c, when `header` is a valid header of chunk `chunk`. Eight zeroes are an empty slot.
    pub(crate) fn open(self, chunk: u32, header: [u8; HEADER_BYTES]) -> Option<u32> {
        let mut r = Reader(&header);
        let (crc, found) = (r.u32()?, r.u32()?);
        (header != [0; HEADER_BYTES] && self.seal(chunk, crc) == found).then_some(crc)
    }
}

/// Which chunks of a segment are stored, and the crc32c of each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SegmentRecord {
    pub(crate) bits: Bits,
    pub(crate) crcs: Box<[u32; SEGMENT_CHUNKS as usize]>,
}

impl Default for SegmentRecord {
    fn default() -> Self {
        Self { bits: Bits::default(), crcs: Box::new([0; SEGMENT_CHUNKS as usize]) }
    }
}

/// The key of a segment record: blob number and segment, big-endian, so that a blob's records lie together.
pub(crate) fn segment_key(no: u32, segment: u32) -> [u8; 8] {
    ((u64::from(no) << 32) | u64::from(segment)).to_be_bytes()
}

/// The key of a blob record; it sorts right before the blob's segments.
pub(crate) const fn blob_key(no: u32) -> [u8; 4] {
    no.to_be_bytes()
}

impl SegmentRecord {
    /// Adds chunk `slot` (0..256) with its checksum.
    pub(crate) fn put(&mut self, slot: u32, crc: u32) {
        self.bits.set(slot);
        self.crcs[(slot % SEGMENT_CHUNKS) as usize] = crc;
    }

    /// The trailer covers the key too: a record that turns up under another key is refused.
    pub(crate) fn encode(&self, key: [u8; 8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(SEGMENT_BYTES);
        out.extend_from_slice(&[VERSION, 0, 0, 0]);
        out.extend_from_slice(&self.bits.to_bytes());
        for (slot, crc) in (0..).zip(self.crcs.iter()) {
            let crc = if self.bits.has(slot) { *crc } else { 0 };
            out.extend_from_slice(&crc.to_le_bytes());
        }
        seal(&key, &mut out);
        out
    }

    pub(crate) fn decode(key: [u8; 8], bytes: &[u8]) -> Option<Self> {
        let mut r = Reader(unseal(&key, bytes, SEGMENT_BYTES)?);
        if r.array::<4>()?[0] != VERSION {
            return None;
        }
        let mut record = Self { bits: Bits::from_bytes(r.array()?), ..Self::default() };
        for crc in record.crcs.iter_mut() {
            *crc = r.u32()?;
        }
        Some(record)
    }
}

/// What the index knows of a blob as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlobRecord {
    pub(crate) blob: Blob,
    pub(crate) chunk_size: ChunkSize,
    /// Every chunk was stored and the sha256 of them together was the digest.
    pub(crate) verified: bool,
}

impl BlobRecord {
    pub(crate) fn encode(&self, no: u32) -> Vec<u8> {
        let mut out = Vec::with_capacity(BLOB_BYTES);
        out.extend_from_slice(&[VERSION, u8::from(self.verified) * VERIFIED, 0, 0]);
        out.extend_from_slice(self.blob.digest.as_bytes());
        out.extend_from_slice(&self.blob.size_bytes.to_le_bytes());
        out.extend_from_slice(&self.chunk_size.bytes().to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        seal(&blob_key(no), &mut out);
        out
    }

    pub(crate) fn decode(no: u32, bytes: &[u8]) -> Option<Self> {
        let mut r = Reader(unseal(&blob_key(no), bytes, BLOB_BYTES)?);
        let [version, flags, _, _] = *r.array::<4>()?;
        if version != VERSION {
            return None;
        }
        let digest = Digest::from_bytes(*r.array()?);
        let size_bytes = r.u64()?;
        let chunk_size = ChunkSize::new(u64::from(r.u32()?)).ok()?;
        Some(Self { blob: Blob { digest, size_bytes }, chunk_size, verified: flags & VERIFIED != 0 })
    }
}

/// What the index knows of itself; written with every commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SysRecord {
    pub(crate) uuid: Uuid,
    /// Commits since the index was created. The last one of an orderly close stands in the `clean` marker too.
    pub(crate) commits: u64,
    /// The next blob number never used before.
    pub(crate) next_no: u32,
    /// Starts since the index was created.
    pub(crate) starts: u32,
}

impl SysRecord {
    /// How far the index has come.
    pub(crate) const fn mark(&self) -> Mark {
        Mark { uuid: self.uuid, commits: self.commits }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SYS_BYTES);
        out.extend_from_slice(&[VERSION, 0, 0, 0]);
        out.extend_from_slice(&self.uuid);
        out.extend_from_slice(&self.commits.to_le_bytes());
        out.extend_from_slice(&self.next_no.to_le_bytes());
        out.extend_from_slice(&self.starts.to_le_bytes());
        seal(SYS_KEY, &mut out);
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut r = Reader(unseal(SYS_KEY, bytes, SYS_BYTES)?);
        if r.array::<4>()?[0] != VERSION {
            return None;
        }
        Some(Self { uuid: *r.array()?, commits: r.u64()?, next_no: r.u32()?, starts: r.u32()? })
    }
}

/// How far an index had come, noted outside it. In `clean` (left by an orderly close, taken away at open): the index that matches it
/// lacks nothing. In `commits` (after each commit): an index that is behind it has lost commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) uuid: Uuid,
    pub(crate) commits: u64,
}

impl Mark {
    pub(crate) fn encode(&self, magic: &[u8; 8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(MARK_BYTES);
        out.extend_from_slice(magic);
        out.extend_from_slice(&self.uuid);
        out.extend_from_slice(&self.commits.to_le_bytes());
        seal(&[], &mut out);
        out
    }

    pub(crate) fn decode(magic: &[u8; 8], bytes: &[u8]) -> Option<Self> {
        let mut r = Reader(unseal(&[], bytes, MARK_BYTES)?);
        (r.array()? == magic).then_some(())?;
        Some(Self { uuid: *r.array()?, commits: r.u64()? })
    }
}
