//! OverlayBD's prefetch traces: what upstream's recorder saw an image read, kept in the acceleration layer on top of its layers. Pure.
//!
//! A trace names bytes of the *decoded* file of a layer; [`Image::needs`](crate::Image::needs) says which bytes of blobs those are.
//! Format: docs/formats/overlaybd.md.

use penstock_blob::ByteRange;

use crate::{
    crc, tar,
    units::{in_memory, u32_at, u64_at},
};

/// What a trace begins with.
const MAGIC: u32 = 0xc2ef_1820;
/// Bytes of the header.
const HEADER_BYTES: usize = 24;
/// Bytes of a record, in the format and below.
const RECORD_BYTES: usize = 24;
/// The operation of a record that is a read.
const READ: u8 = b'R';
/// Largest acceleration layer read, in bytes: 174,000 reads, ten times what a recording holds.
pub const MAX_TRACE_BYTES: u64 = 4 << 20;

/// Longest read, in bytes: none that a kernel asks for is longer. Longer ones are passed over, so that decoding what a trace means stays cheap.
const MAX_READ_BYTES: u64 = 16 << 20;

/// One read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Which layer, 0 is the bottom.
    pub layer: usize,
    /// Bytes of its file, decoded.
    pub range: ByteRange,
}

/// Why an acceleration layer is not understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// It is no tar archive with a trace in it.
    #[error("the acceleration layer holds no trace of reads (a list of paths is not understood)")]
    NoTrace,
    /// The trace ends before its last record.
    #[error("the trace has {actual} bytes of records; its header says {expected}")]
    Length {
        /// By the header.
        expected: u64,
        /// What there is.
        actual: usize,
    },
    /// The checksum over the records is wrong.
    #[error("the checksum of the trace is wrong")]
    Checksum,
}

/// The reads in an acceleration layer, all of whose bytes are `blob`. Records that are no reads, of no byte or of far too many are passed over.
///
/// # Errors
/// [`TraceError`].
pub fn parse(blob: &[u8]) -> Result<Vec<Access>, TraceError> {
    let wrapper = tar::unwrap(blob, blob.len() as u64, |content| content.starts_with(&MAGIC.to_le_bytes()));
    let Ok(tar::Wrapper::Payload(range)) = wrapper else { return Err(TraceError::NoTrace) };
    let trace = blob.get(in_memory(range.start())..in_memory(range.end())).ok_or(TraceError::NoTrace)?;
    let (header, records) = trace.split_at_checked(HEADER_BYTES).ok_or(TraceError::NoTrace)?;
    let expected = u64_at(header, 8);
    let length = TraceError::Length { expected, actual: records.len() };
    let records = records.get(..in_memory(expected)).filter(|records| records.len().is_multiple_of(RECORD_BYTES));
    let records = records.ok_or(length)?;
    if crc::raw(0, records) != u32_at(header, 16) {
        return Err(TraceError::Checksum);
    }
    Ok(records.as_chunks::<RECORD_BYTES>().0.iter().filter_map(access).collect())
}

fn access(record: &[u8; RECORD_BYTES]) -> Option<Access> {
    let range = ByteRange::at(u64_at(record, 16), u64_at(record, 8)).ok()?;
    // An offset below 0 reads as one far beyond any file.
    (record[0] == READ && range.len() <= MAX_READ_BYTES)
        .then_some(Access { layer: usize::try_from(u32_at(record, 4)).ok()?, range })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A trace of `records` as upstream writes one: in a plain tar, its size in the header.
    fn layer(records: &[(u8, u32, u64, u64)], change: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
        let mut body = Vec::new();
        for &(op, layer, count, offset) in records {
            body.extend_from_slice(&[op, 0, 0, 0]);
            body.extend_from_slice(&layer.to_le_bytes());
            body.extend_from_slice(&count.to_le_bytes());
            body.extend_from_slice(&offset.to_le_bytes());
        }
        let mut trace = u64::from(MAGIC).to_le_bytes().to_vec();
        trace.extend_from_slice(&(body.len() as u64).to_le_bytes());
        trace.extend_from_slice(&u64::from(crc::raw(0, &body)).to_le_bytes());
        trace.extend_from_slice(&body);
        change(&mut trace);
        tarred(&trace)
    }

    fn tarred(content: &[u8]) -> Vec<u8> {
        let mut header = [0_u8; 512];
        header[..5].copy_from_slice(b"trace");
        header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        header[156] = b'0';
        header[257..265].copy_from_slice(b"ustar\x0000");
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        let mut tar = header.to_vec();
        tar.extend_from_slice(content);
        tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
        tar
    }

    #[test]
    fn reads_come_in_their_order_and_other_records_are_passed_over() {
        let bytes = layer(
            &[(b'R', 2, 4096, 512), (b'W', 0, 1, 1), (b'R', 0, 0, 7), (b'R', 0, 1 << 40, 7), (b'R', 0, 10, 0)],
            |_| {},
        );
        let range = |start, end| ByteRange::new(start, end).unwrap();
        let expected = [Access { layer: 2, range: range(512, 4608) }, Access { layer: 0, range: range(0, 10) }];
        assert_eq!(parse(&bytes).unwrap(), expected);
    }

    #[test]
    fn what_is_damaged_or_no_trace_is_refused_by_name() {
        let records = [(b'R', 0, 4096, 0), (b'R', 1, 1, 1)];
        let cut = layer(&records, |trace| trace.truncate(60));
        assert!(matches!(parse(&cut), Err(TraceError::Length { expected: 48, actual: 36 })));
        let uneven = layer(&records, |trace| trace[8] = 47);
        assert!(matches!(parse(&uneven), Err(TraceError::Length { expected: 47, .. })));
        let changed = layer(&records, |trace| trace[40] ^= 1);
        assert_eq!(parse(&changed), Err(TraceError::Checksum));
        assert_eq!(parse(&tarred(b"/usr/bin/python3\n")), Err(TraceError::NoTrace), "a list of paths");
        assert_eq!(parse(&tarred(&MAGIC.to_le_bytes())), Err(TraceError::NoTrace));
        assert_eq!(parse(b""), Err(TraceError::NoTrace));
    }
}
