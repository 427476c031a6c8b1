//! The header of a qcow2 file. Pure.

use crate::{lsmt::MAX_DEVICE_BYTES, units::field};

/// First bytes of the file.
pub(crate) const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Bytes of a version 2 header; a version 3 one says its length.
const V2_BYTES: usize = 72;
/// Fewest bytes of a version 3 header.
const V3_BYTES: usize = 104;
/// Cluster sizes that qemu makes: 512 bytes to 2 MiB.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// With extended entries: 32 parts of at least 512 bytes.
const MIN_EXTENDED_BITS: u32 = 14;
/// Largest L1 table, qemu's own bound.
const MAX_L1_BYTES: u64 = 32 << 20;
/// Longest name of a backing file, qemu's own bound.
const MAX_NAME_BYTES: u64 = 1023;

/// Incompatible features. The file was not closed cleanly: its reference counts may be wrong, which nobody reads here.
const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
const COMPRESSION: u64 = 1 << 3;
const EXTENDED: u64 = 1 << 4;

/// Header extensions: the end of them, and the name of the backing file's format.
const EXTENSIONS_END: u32 = 0;
const BACKING_FORMAT: u32 = 0xe279_2aca;

/// Why a qcow2 file is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// It ends within its header, or a part of the header lies outside its first cluster or the first 16 KiB.
    #[error("it ends before {0} does, or that is too long")]
    Short(&'static str),
    /// Another version.
    #[error("version {0} is not known, only 2 and 3; write it again with qemu-img convert -O qcow2")]
    Version(u32),
    /// Its data are encrypted.
    #[error("it is encrypted (method {0}), and no node has the key; push it decrypted, or decrypt inside the machine")]
    Encrypted(u32),
    /// It was marked as corrupt.
    #[error("it is marked as corrupt; repair it with qemu-img check -r all and push it again")]
    Corrupt,
    /// Its data are in another file.
    #[error("its data are in another file; make it one file with qemu-img convert -O qcow2 and push that")]
    DataFile,
    /// It needs features that are not known.
    #[error(
        "it needs features that are not known (incompatible bits {0:#x}); write it again with qemu-img convert -O qcow2"
    )]
    Features(u64),
    /// The cluster size is none that qemu makes.
    #[error("clusters of 2^{0} bytes are not possible here")]
    ClusterBits(u32),
    /// The compression is not known.
    #[error("compression type {0} is not known, only zlib (0) and zstd (1)")]
    Compression(u8),
    /// The device is too large.
    #[error("a device of {0} bytes is too large")]
    DeviceSize(u64),
    /// The L1 table does not fit.
    #[error(
        "an L1 table of {entries} entries at byte {offset} does not fit the disk or the file of {file_bytes} bytes"
    )]
    L1 {
        /// Where it starts.
        offset: u64,
        /// How many entries it has.
        entries: u32,
        /// Size of the file.
        file_bytes: u64,
    },
    /// The backing file has a format that is not known.
    #[error("its backing file is said to be {0:?}; only raw and qcow2 are known")]
    BackingFormat(String),
}

/// How clusters are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// A deflate stream without a header (what qemu calls zlib).
    Deflate,
    /// A zstd frame.
    Zstd,
}

/// What the file says of its backing file. Its name is not kept: the layer below is the backing file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backing {
    /// It has none.
    None,
    /// Its first bytes tell what it is.
    Unsaid,
    Raw,
    Qcow2,
}

/// What reading needs of a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) version: u32,
    pub(crate) cluster_bits: u32,
    pub(crate) device_bytes: u64,
    pub(crate) l1_offset: u64,
    pub(crate) compression: Compression,
    /// Whether L2 entries have 16 bytes, with a bit for each 32nd of a cluster.
    pub(crate) extended: bool,
    pub(crate) backing: Backing,
}

fn u32_at(head: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(field(head, at))
}

fn u64_at(head: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(field(head, at))
}

impl Header {
    /// Reads the header from the first bytes of a file: 16 KiB of it, or all.
    pub(crate) fn parse(head: &[u8], file_bytes: u64) -> Result<Self, HeaderError> {
        if head.len() < V2_BYTES {
            return Err(HeaderError::Short("the header"));
        }
        let (version, cluster_bits, crypt) = (u32_at(head, 4), u32_at(head, 20), u32_at(head, 32));
        let (features, header_bytes, compression) = match version {
            2 => (0, V2_BYTES, 0),
            3 => version_3(head)?,
            other => return Err(HeaderError::Version(other)),
        };
        if crypt != 0 {
            return Err(HeaderError::Encrypted(crypt));
        }
        check_features(features)?;
        let extended = features & EXTENDED != 0;
        if !CLUSTER_BITS.contains(&cluster_bits) || extended && cluster_bits < MIN_EXTENDED_BITS {
            return Err(HeaderError::ClusterBits(cluster_bits));
        }
        // The field means something only when the feature says so, and only then may it be anything but zlib.
        let compression = match (features & COMPRESSION != 0, compression) {
            (false, 0) => Compression::Deflate,
            (true, 1) => Compression::Zstd,
            (_, other) => return Err(HeaderError::Compression(other)),
        };
        let device_bytes = u64_at(head, 24);
        if device_bytes > MAX_DEVICE_BYTES {
            return Err(HeaderError::DeviceSize(device_bytes));
        }
        let backing = backing(head, header_bytes, 1 << cluster_bits)?;
        let l1_offset = u64_at(head, 40);
        let header = Self { version, cluster_bits, device_bytes, l1_offset, compression, extended, backing };
        header.check_l1(u32_at(head, 36), file_bytes)?;
        Ok(header)
    }

    fn check_l1(&self, entries: u32, file_bytes: u64) -> Result<(), HeaderError> {
        let l1 = HeaderError::L1 { offset: self.l1_offset, entries, file_bytes };
        let needed = self.device_bytes.div_ceil(self.table_span()) * 8;
        let end = self.l1_offset.checked_add(needed).filter(|&end| end <= file_bytes);
        let fits = end.is_some() && needed <= u64::from(entries) * 8 && needed <= MAX_L1_BYTES;
        if fits && self.l1_offset.is_multiple_of(self.cluster_bytes()) { Ok(()) } else { Err(l1) }
    }

    pub(crate) const fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes of an L2 entry.
    pub(crate) const fn entry_bytes(&self) -> u64 {
        if self.extended { 16 } else { 8 }
    }

    /// Bytes of the device that one L2 table describes: at most 2^39.
    pub(crate) const fn table_span(&self) -> u64 {
        self.cluster_bytes() * (self.cluster_bytes() / self.entry_bytes())
    }

    /// Bytes that are alike for one entry or bit of one.
    pub(crate) const fn part_bytes(&self) -> u64 {
        if self.extended { self.cluster_bytes() / 32 } else { self.cluster_bytes() }
    }
}

/// Incompatible features, the length of the header, and the compression.
fn version_3(head: &[u8]) -> Result<(u64, usize, u8), HeaderError> {
    if head.len() < V3_BYTES {
        return Err(HeaderError::Short("the header"));
    }
    let said = usize::try_from(u32_at(head, 100)).unwrap_or(usize::MAX);
    if said < V3_BYTES || said > head.len() || !said.is_multiple_of(8) {
        return Err(HeaderError::Short("the header"));
    }
    let compression = if said > V3_BYTES { head[V3_BYTES] } else { 0 };
    Ok((u64_at(head, 72), said, compression))
}

fn check_features(features: u64) -> Result<(), HeaderError> {
    let unknown = features & !(DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED);
    match () {
        () if unknown != 0 => Err(HeaderError::Features(unknown)),
        () if features & CORRUPT != 0 => Err(HeaderError::Corrupt),
        () if features & DATA_FILE != 0 => Err(HeaderError::DataFile),
        () => Ok(()),
    }
}

/// What the header says of a backing file. The extensions lie between the header and the file's name, in the first cluster.
fn backing(head: &[u8], header_bytes: usize, cluster_bytes: u64) -> Result<Backing, HeaderError> {
    let (name_at, name_bytes) = (u64_at(head, 8), u64::from(u32_at(head, 16)));
    if name_at == 0 {
        return Ok(Backing::None);
    }
    let name_end = name_at.checked_add(name_bytes).filter(|&end| end <= cluster_bytes && name_bytes <= MAX_NAME_BYTES);
    if name_end.is_none() {
        return Err(HeaderError::Short("the name of the backing file"));
    }
    let too_long = || HeaderError::Short("a header extension");
    let end = usize::try_from(name_at).map_err(|_| too_long())?;
    let mut at = header_bytes;
    while at + 8 <= end {
        if at + 8 > head.len() {
            return Err(too_long());
        }
        let (kind, len) = (u32_at(head, at), usize::try_from(u32_at(head, at + 4)).map_err(|_| too_long())?);
        if kind == EXTENSIONS_END {
            break;
        }
        let data_end = (at + 8).checked_add(len).filter(|&end| end <= head.len()).ok_or_else(too_long)?;
        if kind == BACKING_FORMAT {
            return match &head[at + 8..data_end] {
                b"raw" => Ok(Backing::Raw),
                b"qcow2" => Ok(Backing::Qcow2),
                other => Err(HeaderError::BackingFormat(String::from_utf8_lossy(other).chars().take(32).collect())),
            };
        }
        at = data_end.next_multiple_of(8);
    }
    Ok(Backing::Unsaid)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A version 3 header of a disk of 1 MiB in clusters of 512 bytes.
    fn header() -> Vec<u8> {
        let mut head = vec![0; 1024];
        head[..4].copy_from_slice(&MAGIC);
        for (at, value) in [(4, 3_u32), (20, 9), (36, 32), (100, 112)] {
            head[at..at + 4].copy_from_slice(&value.to_be_bytes());
        }
        for (at, value) in [(24, 1_u64 << 20), (40, 1024)] {
            head[at..at + 8].copy_from_slice(&value.to_be_bytes());
        }
        head
    }

    fn parse(change: impl FnOnce(&mut Vec<u8>)) -> Result<Header, HeaderError> {
        let mut head = header();
        change(&mut head);
        Header::parse(&head, 4096)
    }

    fn put(head: &mut [u8], at: usize, bytes: &[u8]) {
        head[at..at + bytes.len()].copy_from_slice(bytes);
    }

    #[test]
    fn what_cannot_be_read_is_refused_by_name() {
        let number = |at: usize, value: u32| parse(|head| put(head, at, &value.to_be_bytes())).unwrap_err();
        assert_eq!(parse(|_| ()).unwrap().table_span(), 512 * 64);
        assert_eq!(parse(|head| head.truncate(71)).unwrap_err(), HeaderError::Short("the header"));
        assert_eq!(parse(|head| head.truncate(103)).unwrap_err(), HeaderError::Short("the header"));
        assert_eq!(number(100, 96), HeaderError::Short("the header"));
        assert_eq!(number(100, u32::MAX - 7), HeaderError::Short("the header"));
        assert_eq!(number(4, 1), HeaderError::Version(1));
        assert_eq!(number(32, 1), HeaderError::Encrypted(1));
        assert_eq!((number(20, 8), number(20, 22)), (HeaderError::ClusterBits(8), HeaderError::ClusterBits(22)));
        assert_eq!(number(76, 2), HeaderError::Corrupt);
        assert_eq!(number(76, 4), HeaderError::DataFile);
        assert_eq!(number(76, 0x46), HeaderError::Features(0x40), "what is not known goes first");
        assert_eq!(number(76, 16), HeaderError::ClusterBits(9), "32 parts of at least a sector");
        assert_eq!(number(76, 8), HeaderError::Compression(0), "a feature that says that there is another");
        assert_eq!(number(24, 1 << 31), HeaderError::DeviceSize(1 << 63 | 1 << 20));
        assert!(parse(|head| put(head, 76, &1_u32.to_be_bytes())).is_ok(), "not closed cleanly, but readable");
    }

    #[test]
    fn an_l1_table_covers_the_disk_and_lies_in_the_file() {
        for (at, value) in [(36, 31_u32), (44, 1025), (44, 4096 - 31 * 8), (40, u32::MAX)] {
            let error = parse(|head| put(head, at, &value.to_be_bytes())).unwrap_err();
            assert!(matches!(error, HeaderError::L1 { .. }), "{at}: {error}");
        }
        // 2^40 bytes in clusters of 512 need 256 MiB of it.
        let error = parse(|head| {
            put(head, 24, &(1_u64 << 40).to_be_bytes());
            put(head, 36, &u32::MAX.to_be_bytes());
        });
        assert!(matches!(error, Err(HeaderError::L1 { .. })));
    }

    #[test]
    fn the_format_of_a_backing_file_is_taken_from_its_extension() {
        let with = |format: &[u8], name_at: u64, name_bytes: u32| {
            parse(|head| {
                put(head, 8, &name_at.to_be_bytes());
                put(head, 16, &name_bytes.to_be_bytes());
                put(head, 112, &0x1234_u32.to_be_bytes());
                put(head, 116, &3_u32.to_be_bytes());
                put(head, 128, &BACKING_FORMAT.to_be_bytes());
                put(head, 132, &u32::try_from(format.len()).unwrap().to_be_bytes());
                put(head, 136, format);
            })
            .map(|header| header.backing)
        };
        assert_eq!(parse(|_| ()).unwrap().backing, Backing::None);
        assert_eq!(with(b"raw", 300, 10), Ok(Backing::Raw));
        assert_eq!(with(b"qcow2", 300, 10), Ok(Backing::Qcow2));
        assert_eq!(with(b"vmdk", 300, 10), Err(HeaderError::BackingFormat("vmdk".into())));
        assert_eq!(with(b"raw", 112, 10), Ok(Backing::Unsaid), "no room for extensions");
        for (at, len) in [(510, 3), (300, 2000), (u64::MAX, 1)] {
            assert!(matches!(with(b"raw", at, len), Err(HeaderError::Short(_))), "{at}+{len}");
        }
    }
}
