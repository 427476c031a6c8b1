//! Empty deflate blocks that bring a decoder to a place between two bits of a byte.
//!
//! A stored block is aligned to bytes, so the stream that follows cannot simply be shifted: its bits must come at their own places. An
//! empty block with fixed codes has 10 bits; as many of them as needed end at any even bit. One with codes of its own, made below, has
//! 91 bits, and makes it any odd one.

/// Bits in the order of deflate: the lowest of each byte first (RFC 1951, section 3.1.1).
#[derive(Debug, Default)]
struct Bits {
    bytes: Vec<u8>,
    len: u64,
}

impl Bits {
    /// Adds the lowest `count` bits of `value`, the lowest first.
    fn put(&mut self, value: u8, count: u32) {
        for nth in 0..count {
            if self.len.is_multiple_of(8) {
                self.bytes.push(0);
            }
            if let Some(last) = self.bytes.last_mut() {
                *last |= (value >> nth & 1) << (self.len % 8);
            }
            self.len += 1;
        }
    }

    /// An empty block with fixed codes (section 3.2.6): not the last one, type 1, end of block.
    fn fixed(&mut self) {
        self.put(0b010, 3);
        self.put(0, 7);
    }

    /// An empty block with codes of its own (section 3.2.7), of an odd number of bits. Its two literal codes are those of 0 and of the
    /// end of the block, of one bit each, so that the code is complete; its one distance code is not used.
    fn dynamic(&mut self) {
        // Not the last one, type 2; 257 literal codes, 1 distance code, 18 lengths of codes.
        self.put(0b100, 3);
        self.put(0, 5);
        self.put(0, 5);
        self.put(18 - 4, 4);
        // Of the lengths of codes two have a code: 18 (third in their order) and 1 (eighteenth), one bit each.
        (0..18).for_each(|nth| self.put(u8::from(nth == 2 || nth == 17), 3));
        // Literal 0: length 1. Literals 1 to 255: 138 and 117 times no code. Literal 256 and distance 0: length 1.
        self.put(0, 1);
        [138 - 11, 117 - 11].iter().for_each(|&zeros| {
            self.put(1, 1);
            self.put(zeros, 7);
        });
        self.put(0, 2);
        // The end of the block.
        self.put(1, 1);
    }
}

/// Bytes that decode to nothing and end with `first` from its bit `bit` (0 to 7) on: what follows `first` comes next. Empty for bit 0,
/// where `first` itself comes next.
pub(crate) fn lead(bit: u64, first: u8) -> Vec<u8> {
    let mut bits = Bits::default();
    if bit == 0 {
        return bits.bytes;
    }
    if !bit.is_multiple_of(2) {
        bits.dynamic();
    }
    while bits.len % 8 != bit {
        bits.fixed();
    }
    if let Some(last) = bits.bytes.last_mut() {
        *last |= first & u8::MAX.wrapping_shl(u32::try_from(bit).unwrap_or(0));
    }
    bits.bytes
}

#[cfg(test)]
mod tests {
    use zlib_rs::{Inflate, InflateFlush, Status};

    use super::*;

    #[test]
    fn a_lead_brings_a_decoder_to_every_bit_and_decodes_to_nothing() {
        for bit in 1..8 {
            // From that bit on: an empty last block with fixed codes, of 10 bits.
            let mut bits = Bits { bytes: vec![0], len: bit };
            bits.put(0b011, 3);
            bits.put(0, 7);
            let mut stream = lead(bit, bits.bytes[0] | 0xff >> (8 - bit));
            stream.extend_from_slice(&bits.bytes[1..]);
            let mut inflate = Inflate::new(false, 15);
            let mut bytes = [0; 8];
            let status = inflate.decompress(&stream, &mut bytes, InflateFlush::NoFlush);
            assert!(matches!(status, Ok(Status::StreamEnd)), "bit {bit}: {status:?}");
            assert_eq!((inflate.total_in(), inflate.total_out()), (stream.len() as u64, 0), "bit {bit}");
        }
        assert!(lead(0, 0xff).is_empty());
    }
}
