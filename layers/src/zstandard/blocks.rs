//! Where the blocks of Zstandard frames lie (RFC 8878, section 3.1): told from their headers alone, so that it does not depend on how a decoder takes
//! its input.

use super::MAX_BLOCK_BYTES;

const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
const CHECKSUM_BYTES: u64 = 4;
/// Type of a block that is one byte, repeated.
const RLE: u32 = 1;
/// The type that no block has.
const RESERVED: u32 = 3;

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    /// A block; the first one of a frame comes with the frame's window, in bytes.
    Block(Option<u64>),
    /// A frame, a skippable one, or nothing.
    Frame,
}

/// What is passed over is followed by this.
#[derive(Debug, Clone, Copy)]
enum Then {
    Block,
    Checksum,
    Frame,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// The header of a frame is gathered.
    Frame,
    /// The header of a block is gathered.
    Block,
    /// So many bytes more belong to what is passed over.
    Pass { left: u64, then: Then },
}

/// Goes along a layer that is fed in pieces. Holds the bytes of one header.
#[derive(Debug)]
pub(crate) struct Walk {
    state: State,
    head: Vec<u8>,
    has_checksum: bool,
}

impl Walk {
    pub(crate) const fn new() -> Self {
        Self { state: State::Frame, head: Vec::new(), has_checksum: false }
    }

    /// Takes bytes up to the next mark, or all of them: how many, and the mark that follows them.
    ///
    /// # Errors
    /// Why they are no Zstandard frames.
    pub(crate) fn take(&mut self, input: &[u8]) -> Result<(usize, Option<Mark>), &'static str> {
        let mut taken = 0;
        loop {
            if let State::Pass { left, then } = self.state {
                let here = left.min((input.len() - taken) as u64);
                taken += usize::try_from(here).unwrap_or(usize::MAX);
                if here < left {
                    self.state = State::Pass { left: left - here, then };
                    return Ok((taken, None));
                }
                match then {
                    Then::Block => {
                        self.state = State::Block;
                        return Ok((taken, Some(Mark::Block(None))));
                    }
                    Then::Checksum if self.has_checksum => {
                        self.state = State::Pass { left: CHECKSUM_BYTES, then: Then::Frame };
                    }
                    Then::Checksum | Then::Frame => {
                        self.state = State::Frame;
                        return Ok((taken, Some(Mark::Frame)));
                    }
                }
                continue;
            }
            let Some(byte) = input.get(taken) else { return Ok((taken, None)) };
            self.head.push(*byte);
            taken += 1;
            if matches!(self.state, State::Block) {
                self.block()?;
            } else if let Some(window_bytes) = self.frame()? {
                return Ok((taken, Some(Mark::Block(Some(window_bytes)))));
            }
        }
    }

    /// The header of a block, when it is whole.
    fn block(&mut self) -> Result<(), &'static str> {
        let [low, middle, high] = self.head[..] else { return Ok(()) };
        let header = u32::from_le_bytes([low, middle, high, 0]);
        let (is_last, kind, size) = (header & 1 == 1, header >> 1 & 3, u64::from(header >> 3));
        if kind == RESERVED || size > MAX_BLOCK_BYTES {
            return Err("a block that cannot be");
        }
        self.head.clear();
        let then = if is_last { Then::Checksum } else { Then::Block };
        self.state = State::Pass { left: if kind == RLE { 1 } else { size }, then };
        Ok(())
    }

    /// The header of a frame, when it is whole: its window, unless it is a skippable one.
    fn frame(&mut self) -> Result<Option<u64>, &'static str> {
        let head = &self.head[..];
        if let [0x50..=0x5f, 0x2a, 0x4d, 0x18, size @ ..] = head {
            if let [a, b, c, d] = *size {
                self.state = State::Pass { left: u32::from_le_bytes([a, b, c, d]).into(), then: Then::Frame };
                self.head.clear();
            }
            return Ok(None);
        }
        let magic = head.len().min(MAGIC.len());
        let is_skippable = matches!(head, [0x50..=0x5f] | [0x50..=0x5f, 0x2a] | [0x50..=0x5f, 0x2a, 0x4d]);
        if head[..magic] != MAGIC[..magic] && !is_skippable {
            return Err("neither a frame nor a skippable one");
        }
        let Some(&descriptor) = head.get(MAGIC.len()) else { return Ok(None) };
        let is_single = descriptor & 0x20 != 0;
        let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
        let size_bytes = [usize::from(is_single), 2, 4, 8][usize::from(descriptor >> 6)];
        let window_at = MAGIC.len() + 1;
        let size_at = window_at + usize::from(!is_single) + dictionary;
        let Some(size) = head.get(size_at..size_at + size_bytes) else { return Ok(None) };
        let window_bytes = if is_single {
            let mut number = [0; 8];
            number[..size_bytes].copy_from_slice(size);
            // A size in two bytes is less by 256, so that none can be said in two ways.
            u64::from_le_bytes(number).saturating_add(if size_bytes == 2 { 256 } else { 0 })
        } else {
            let (exponent, mantissa) = (head[window_at] >> 3, u64::from(head[window_at] & 7));
            let base = 1_u64 << (10 + exponent);
            base + base / 8 * mantissa
        };
        self.has_checksum = descriptor & 4 != 0;
        self.state = State::Block;
        self.head.clear();
        Ok(Some(window_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_where_the_headers_say_however_the_bytes_come() {
        let unpacked = crate::testing::noise(1, 300_000);
        let mut packed = b"\x51\x2a\x4d\x18\x03\0\0\0abc".to_vec();
        packed.extend(zstd::bulk::compress(&unpacked, 3).unwrap());
        let marks = |piece: usize| {
            let (mut walk, mut marks, mut at) = (Walk::new(), Vec::new(), 0);
            for mut piece in packed.chunks(piece) {
                while !piece.is_empty() {
                    let (taken, mark) = walk.take(piece).unwrap();
                    piece = &piece[taken..];
                    at += taken;
                    marks.extend(mark.map(|mark| (at, mark)));
                }
            }
            marks
        };
        let whole = marks(packed.len());
        // Noise is stored as it is: blocks of 128 KiB, each behind three bytes.
        let first = whole[1].0;
        let block = |nth: usize| first + nth * ((128 << 10) + 3);
        assert_eq!(whole[0], (11, Mark::Frame));
        assert!(matches!(whole[1].1, Mark::Block(Some(window)) if window >= 300_000), "{whole:?}");
        assert_eq!(whole[2..4], [(block(1), Mark::Block(None)), (block(2), Mark::Block(None))]);
        assert_eq!(whole[4..], [(packed.len(), Mark::Frame)]);
        assert_eq!((marks(1), marks(777)), (whole.clone(), whole));
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        for wrong in [&b"\x28\xb5\x2f\xfe"[..], b"\x50\x2a\x4e", b"\x28\xb5\x2f\xfd\0\0\x07\0\0"] {
            let (mut walk, mut rest) = (Walk::new(), wrong);
            let refused = loop {
                match walk.take(rest) {
                    Ok((_, None)) => break false,
                    Ok((taken, Some(_))) => rest = &rest[taken..],
                    Err(_) => break true,
                }
            };
            assert!(refused, "{wrong:?}");
        }
    }
}
