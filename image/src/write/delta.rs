//! What one disk has and another has not, as an upper layer over that one.

use std::io::{Read, Seek, Write};

use penstock_blob::ByteRange;

use super::{
    Disk, LayerWriter, Options, WriteError, Written,
    disk::{GRAIN_BYTES, READ_BYTES, is_zero},
};
use crate::units::{SECTOR_BYTES, in_memory};

/// Writes the difference between `lower` and `upper` within `ranges`, which are in order, begin at multiples of 4 KiB and do not overlap: the layer over
/// `lower` is `upper` there, and as `lower` elsewhere. The device has the size of `upper`, which is a whole number of sectors.
///
/// # Errors
/// [`WriteError`].
pub fn delta<D: Disk + ?Sized>(
    (lower, upper): (&D, &D),
    ranges: &[ByteRange],
    out: impl Read + Write + Seek,
    mut options: Options,
) -> Result<Written, WriteError> {
    options.device_bytes = Some(upper.size_bytes()?);
    let mut writer = LayerWriter::new(out, options)?;
    let (mut below, mut above) = (Vec::new(), Vec::new());
    for range in ranges {
        let mut at = range.start();
        while at < range.end() {
            let end = (at + READ_BYTES).min(range.end());
            read(lower, (at, end), &mut below)?;
            read(upper, (at, end), &mut above)?;
            differences(&mut writer, at, (&below, &above))?;
            at = end;
        }
    }
    writer.finish()
}

/// Reads these bytes; those behind the end are zeros.
fn read<D: Disk + ?Sized>(disk: &D, (at, end): (u64, u64), buf: &mut Vec<u8>) -> Result<(), WriteError> {
    buf.clear();
    buf.resize(in_memory(end - at), 0);
    match in_memory(disk.size_bytes()?.saturating_sub(at)).min(buf.len()) {
        0 => Ok(()),
        there => Ok(disk.read_at(&mut buf[..there], at)?),
    }
}

/// Adds the grains that differ, neighbours of a kind together.
fn differences(
    writer: &mut LayerWriter<impl Read + Write + Seek>,
    at: u64,
    (below, above): (&[u8], &[u8]),
) -> Result<(), WriteError> {
    /// What becomes of a grain.
    #[derive(PartialEq)]
    enum Becomes {
        Same,
        Zeros,
        Data,
    }
    let becomes = |(below, above): &(&[u8], &[u8])| match () {
        () if below == above => Becomes::Same,
        () if is_zero(above) => Becomes::Zeros,
        () => Becomes::Data,
    };
    let grains: Vec<(&[u8], &[u8])> = below.chunks(GRAIN_BYTES).zip(above.chunks(GRAIN_BYTES)).collect();
    let mut from = 0;
    for run in grains.chunk_by(|a, b| becomes(a) == becomes(b)) {
        let len = run.iter().map(|grain| grain.1.len()).sum::<usize>();
        let start = (at + from as u64) / SECTOR_BYTES;
        match becomes(&run[0]) {
            Becomes::Same => {}
            Becomes::Zeros => writer.zeroed(start, len as u64 / SECTOR_BYTES)?,
            Becomes::Data => writer.data(start, &above[from..from + len])?,
        }
        from += len;
    }
    Ok(())
}
