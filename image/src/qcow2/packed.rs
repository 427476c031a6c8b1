//! Turning a compressed cluster into device bytes.

use penstock_blob::{Blob, ByteRange, Located};
use zlib_rs::{Inflate, InflateFlush};
use zstd::{
    stream::raw::{Decoder, Operation as _},
    zstd_safe::{DParameter, InBuffer, OutBuffer},
};

use super::header::Compression;
use crate::{
    Scratch, StepError,
    scratch::{DECODED_BYTES, READ_BYTES},
    units::in_memory,
};

/// Bits of deflate's largest window: writers use 12 or more.
const WINDOW_BITS: u8 = 15;

/// One compressed cluster of a qcow2 file.
#[derive(Debug)]
pub struct PackedCluster {
    /// The blob.
    pub blob: Blob,
    /// Where the cluster is stored in it, and up to a sector more.
    pub range: ByteRange,
    /// Where those bytes are now.
    pub located: Located,
    /// How it is compressed.
    pub compression: Compression,
    /// Decoded size: a power of two, 512 bytes to 2 MiB.
    pub cluster_bytes: u32,
    /// Decoded bytes that are not wanted before the first one that is.
    pub skip_bytes: u32,
}

impl PackedCluster {
    /// Decodes as much of the cluster as is wanted, and puts the wanted end of that into `buf`. Allocates for large clusters, at most three times
    /// their size, until it is done.
    ///
    /// # Errors
    /// [`StepError::Check`] when it does not decode, [`StepError::Io`] when the stored bytes cannot be read.
    pub fn read_into(&self, buf: &mut [u8], scratch: &mut Scratch) -> Result<(), StepError> {
        let Self { blob, range, .. } = *self;
        let (mut stored, mut decoded) = (Vec::new(), Vec::new());
        let (kept_stored, kept_decoded) = scratch.buffers();
        let packed = match self.located.as_memory() {
            Some(bytes) => bytes.as_ref(),
            None => {
                let buffer = sized(in_memory(range.len()), (kept_stored, READ_BYTES), &mut stored);
                self.located.read_at(buffer, 0).map_err(|error| StepError::Io { blob, range, error })?;
                buffer
            }
        };
        let skip = in_memory(u64::from(self.skip_bytes));
        let wrong = |what| StepError::Check { blob, range, what };
        if skip == 0 {
            return self.decode(packed, buf).map_err(wrong);
        }
        let buffer = sized(skip + buf.len(), (kept_decoded, DECODED_BYTES), &mut decoded);
        self.decode(packed, buffer).map_err(wrong)?;
        buf.copy_from_slice(&buffer[skip..]);
        Ok(())
    }

    /// Decodes the beginning of the cluster: all of `out`. What follows it in `packed` is not looked at.
    fn decode(&self, packed: &[u8], out: &mut [u8]) -> Result<(), &'static str> {
        let decoded = match self.compression {
            Compression::Deflate => {
                let mut inflate = Inflate::new(false, WINDOW_BITS);
                inflate
                    .decompress(packed, out, InflateFlush::NoFlush)
                    .map_err(|_| "the cluster is not a deflate stream")?;
                in_memory(inflate.total_out())
            }
            Compression::Zstd => self.unzstd(packed, out).map_err(|_| "the cluster is not a zstd frame of its size")?,
        };
        if decoded == out.len() { Ok(()) } else { Err("the cluster decodes to fewer bytes than it should") }
    }

    fn unzstd(&self, packed: &[u8], out: &mut [u8]) -> std::io::Result<usize> {
        let mut decoder = Decoder::new()?;
        // A window larger than a cluster has no use: what asks for one would only take memory.
        decoder.set_parameter(DParameter::WindowLogMax(self.cluster_bytes.ilog2().max(10) + 1))?;
        let mut input = InBuffer::around(packed);
        let mut output = OutBuffer::around(out);
        while output.pos() < output.capacity() {
            let (had_in, had_out) = (input.pos(), output.pos());
            let remaining = decoder.run(&mut input, &mut output)?;
            if remaining == 0 || (input.pos(), output.pos()) == (had_in, had_out) {
                break;
            }
        }
        Ok(output.pos())
    }
}

/// A buffer of this length: the one that is kept if it is at most `most` long, else a large one that is not.
fn sized<'a>(len: usize, (kept, most): (&'a mut Vec<u8>, usize), large: &'a mut Vec<u8>) -> &'a mut [u8] {
    let buffer = if len <= most { kept } else { large };
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
    &mut buffer[..len]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(compression: Compression, packed: &[u8], skip_bytes: u32) -> PackedCluster {
        let blob = Blob { digest: penstock_blob::Digest::of(packed), size_bytes: packed.len() as u64 };
        let located = Located::in_memory(packed.to_vec().into());
        let range = blob.all().unwrap();
        PackedCluster { blob, range, located, compression, cluster_bytes: 4096, skip_bytes }
    }

    /// Deflate without compressing: one stored block.
    fn stored(bytes: &[u8]) -> Vec<u8> {
        let len = u16::try_from(bytes.len()).unwrap();
        [&[1][..], &len.to_le_bytes(), &(!len).to_le_bytes(), bytes].concat()
    }

    #[test]
    fn any_part_of_a_cluster_is_decoded_and_what_follows_it_is_not_looked_at() {
        let bytes: Vec<u8> = (0..4096_u32).map(|i| ((i * i) >> 5).to_le_bytes()[0]).collect();
        let zstd = zstd::bulk::compress(&bytes, 3).unwrap();
        for (compression, packed) in [(Compression::Deflate, stored(&bytes)), (Compression::Zstd, zstd)] {
            let packed = [packed, vec![0xee; 100]].concat();
            for (skip, len) in [(0, 4096), (0, 512), (512, 512), (4095, 1), (1, 4095)] {
                let mut buf = vec![0; len];
                let cluster = cluster(compression, &packed, u32::try_from(skip).unwrap());
                cluster.read_into(&mut buf, &mut Scratch::new()).unwrap();
                assert!(buf == bytes[skip..skip + len], "{compression:?} {skip}+{len}");
            }
        }
    }

    #[test]
    fn a_cluster_that_is_too_short_or_broken_fails_its_check() {
        let large = zstd::bulk::Compressor::new(3)
            .and_then(|mut compressor| {
                compressor.set_parameter(zstd::zstd_safe::CParameter::WindowLog(20))?;
                compressor.set_parameter(zstd::zstd_safe::CParameter::ContentSizeFlag(false))?;
                compressor.compress(&vec![7; 1 << 20])
            })
            .unwrap();
        for (compression, packed) in [
            (Compression::Deflate, stored(&[1; 4000])),
            (Compression::Deflate, vec![0xff; 50]),
            (Compression::Zstd, zstd::bulk::compress(&[1; 4000], 3).unwrap()),
            (Compression::Zstd, vec![0xff; 50]),
            (Compression::Zstd, large),
        ] {
            let read = cluster(compression, &packed, 0).read_into(&mut [0; 4096], &mut Scratch::new());
            assert!(matches!(read, Err(StepError::Check { .. })), "{compression:?}: {read:?}");
        }
    }
}
