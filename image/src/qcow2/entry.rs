//! Entries of L1 and L2 tables: where a part of the disk is. Pure.

use penstock_blob::ByteRange;

use super::header::Header;

/// Bits of an entry that are a place in the file, a multiple of 512.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
/// The cluster reads as zeros (version 3, without extended entries).
const ZERO: u64 = 1;
/// Unit of the stored length of a compressed cluster.
const SECTOR: u64 = 512;

/// What a part of the disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// What the backing file has there; zeros without one.
    Below,
    /// Zeros.
    Zero,
    /// The bytes of the file from here on.
    Plain(u64),
    /// A cluster, compressed.
    Packed(ByteRange),
    /// An entry that no writer makes.
    Wrong(&'static str),
}

/// Where the L2 table of an L1 entry is; `None`: nothing below it is in this file.
pub(crate) fn table(header: &Header, entry: u64, file_bytes: u64) -> Result<Option<u64>, &'static str> {
    let at = entry & OFFSET;
    match at.checked_add(header.cluster_bytes()).filter(|&end| end <= file_bytes) {
        _ if at == 0 => Ok(None),
        Some(_) if at.is_multiple_of(header.cluster_bytes()) => Ok(Some(at)),
        Some(_) => Err("an L1 entry points at no cluster"),
        None => Err("an L1 entry points outside the file"),
    }
}

/// What part `nth` (of 32; 0 without extended entries) of the cluster with this entry is. `bits` is the second half of an extended one.
pub(crate) fn part(header: &Header, (entry, bits): (u64, u64), nth: u32, file_bytes: u64) -> Part {
    if entry & COMPRESSED != 0 {
        return packed(header, entry, file_bytes);
    }
    let at = entry & OFFSET;
    let (stored, zero) = if header.extended {
        let (allocated, zeros) = (bits & u64::from(u32::MAX), bits >> 32);
        if allocated & zeros != 0 || at == 0 && allocated != 0 {
            return Part::Wrong("the bits of an extended L2 entry contradict each other");
        }
        (allocated >> nth & 1 != 0, zeros >> nth & 1 != 0)
    } else {
        (at != 0, entry & ZERO != 0)
    };
    match () {
        () if zero && header.version < 3 => Part::Wrong("version 2 has no clusters of zeros"),
        () if zero => Part::Zero,
        () if !stored => Part::Below,
        () if !at.is_multiple_of(header.cluster_bytes()) => Part::Wrong("an L2 entry points at no cluster"),
        () if at >= file_bytes => Part::Wrong("an L2 entry points outside the file"),
        () => Part::Plain(at + u64::from(nth) * header.part_bytes()),
    }
}

/// The stored bytes of a compressed cluster: the writer counts whole sectors, and the last one may end behind the file.
fn packed(header: &Header, entry: u64, file_bytes: u64) -> Part {
    let offset_bits = 62 - (header.cluster_bits - 8);
    let at = entry & ((1 << offset_bits) - 1);
    let sectors = (entry & (COMPRESSED - 1)) >> offset_bits;
    let end = (at - at % SECTOR).saturating_add((sectors + 1) * SECTOR).min(file_bytes);
    ByteRange::new(at, end).map_or(Part::Wrong("a compressed cluster lies outside the file"), Part::Packed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qcow2::header::{Backing, Compression};

    const FILE: u64 = 10 << 20;

    fn header(version: u32, cluster_bits: u32, extended: bool) -> Header {
        Header {
            version,
            cluster_bits,
            device_bytes: 1 << 30,
            l1_offset: 0,
            compression: Compression::Deflate,
            extended,
            backing: Backing::None,
        }
    }

    #[test]
    fn l1_entries_point_at_tables_inside_the_file() {
        let header = header(3, 16, false);
        let table = |entry| table(&header, entry, FILE);
        assert_eq!((table(0), table(1 << 63)), (Ok(None), Ok(None)));
        assert_eq!(table(1 << 63 | 3 << 16), Ok(Some(3 << 16)));
        assert!(table(512).is_err_and(|what| what.contains("no cluster")));
        assert!(table(FILE).is_err_and(|what| what.contains("outside")));
        assert!(table(OFFSET).is_err_and(|what| what.contains("outside")));
    }

    #[test]
    fn entries_say_what_a_cluster_is() {
        let at = |version, entry| part(&header(version, 16, false), (entry, 0), 0, FILE);
        assert_eq!((at(3, 0), at(2, 1 << 63)), (Part::Below, Part::Below));
        assert_eq!((at(3, 1), at(3, 3 << 16 | 1)), (Part::Zero, Part::Zero));
        assert!(matches!(at(2, 1), Part::Wrong(what) if what.contains("version 2")));
        assert_eq!(at(2, 1 << 63 | 5 << 16), Part::Plain(5 << 16));
        assert!(matches!(at(3, 5 << 16 | 512), Part::Wrong(what) if what.contains("no cluster")));
        assert!(matches!(at(3, FILE), Part::Wrong(what) if what.contains("outside")));
    }

    #[test]
    fn compressed_clusters_are_cut_where_the_file_ends() {
        let packed = |bits: u32, at: u64, more: u64| {
            let header = header(3, bits, false);
            part(&header, (COMPRESSED | more << (70 - bits) | at, 0), 0, FILE)
        };
        let range = |start, end| Part::Packed(ByteRange::new(start, end).unwrap());
        assert_eq!(packed(16, 1000, 0), range(1000, 1024));
        assert_eq!(packed(16, 1000, 255), range(1000, 512 + 256 * 512));
        assert_eq!(packed(9, 1024, 1), range(1024, 2048));
        assert_eq!(packed(21, FILE - 100, 8191), range(FILE - 100, FILE));
        assert!(matches!(packed(21, FILE, 0), Part::Wrong(what) if what.contains("outside")));
    }

    #[test]
    fn extended_entries_have_a_bit_for_each_part() {
        let extended = header(3, 16, true);
        let part = |entry, bits, nth| part(&extended, (entry, bits), nth, FILE);
        let bits = 1 << 3 | 1 << (32 + 5);
        assert_eq!(part(7 << 16, bits, 3), Part::Plain((7 << 16) + 3 * 2048));
        assert_eq!((part(7 << 16, bits, 5), part(7 << 16, bits, 4)), (Part::Zero, Part::Below));
        assert_eq!((part(0, 1 << 40, 8), part(0, 1 << 40, 7)), (Part::Zero, Part::Below));
        assert_eq!(part(1, 0, 0), Part::Below, "there is no zero flag in the first half");
        for (entry, bits) in [(0, 1), (7 << 16, 1 << 33 | 1 << 1)] {
            assert!(matches!(part(entry, bits, 9), Part::Wrong(what) if what.contains("contradict")));
        }
    }
}
