//! The header of a gzip member (RFC 1952, section 2.3), a byte at a time.

/// Bits of the flags: which optional fields follow.
const FHCRC: u8 = 1 << 1;
const FEXTRA: u8 = 1 << 2;
const FNAME: u8 = 1 << 3;
const FCOMMENT: u8 = 1 << 4;
/// The two bytes that every member begins with.
pub(crate) const MAGIC: [u8; 2] = [0x1f, 0x8b];
/// The only compression method: deflate.
const DEFLATE: u8 = 8;
/// Bytes of the fixed part.
const FIXED_BYTES: u8 = 10;

/// How far a header was read. Nothing in it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The fixed part, so many bytes of it.
    Fixed(u8),
    /// The length of the extra field: its first byte, when that was read.
    ExtraLength(Option<u8>),
    /// So many bytes of the extra field are left.
    Extra(u16),
    Name,
    Comment,
    /// So many bytes of the header's CRC are left.
    Crc(u8),
    Done,
}

/// A header that is being read.
#[derive(Debug)]
pub(crate) struct Header {
    step: Step,
    flags: u8,
}

impl Default for Header {
    fn default() -> Self {
        Self { step: Step::Fixed(0), flags: 0 }
    }
}

impl Header {
    /// Whether nothing was read yet.
    pub(crate) fn is_fresh(&self) -> bool {
        self.step == Step::Fixed(0)
    }

    /// Whether only what every member begins with was read: what follows may be something else.
    pub(crate) const fn is_magic(&self) -> bool {
        matches!(self.step, Step::Fixed(0..=2))
    }

    /// The next byte. True: it was the last one of the header.
    pub(crate) fn take(&mut self, byte: u8) -> Result<bool, &'static str> {
        self.step = match self.step {
            Step::Fixed(nth) => self.fixed(nth, byte)?,
            Step::ExtraLength(None) => Step::ExtraLength(Some(byte)),
            Step::ExtraLength(Some(low)) => match u16::from_le_bytes([low, byte]) {
                0 => self.after(FEXTRA),
                left => Step::Extra(left),
            },
            Step::Extra(1) => self.after(FEXTRA),
            Step::Extra(left) => Step::Extra(left.saturating_sub(1)),
            Step::Name if byte == 0 => self.after(FNAME),
            Step::Comment if byte == 0 => self.after(FCOMMENT),
            Step::Crc(2..) => Step::Crc(1),
            Step::Crc(_) => Step::Done,
            same @ (Step::Name | Step::Comment | Step::Done) => same,
        };
        Ok(self.step == Step::Done)
    }

    fn fixed(&mut self, nth: u8, byte: u8) -> Result<Step, &'static str> {
        match nth {
            0 | 1 if byte != MAGIC[usize::from(nth)] => return Err("no gzip member begins here"),
            2 if byte != DEFLATE => return Err("a gzip member is not deflate"),
            3 => self.flags = byte,
            _ => {}
        }
        Ok(if nth + 1 < FIXED_BYTES { Step::Fixed(nth + 1) } else { self.after(0) })
    }

    /// The first optional field that comes after `field`.
    fn after(&self, field: u8) -> Step {
        let order =
            [(FEXTRA, Step::ExtraLength(None)), (FNAME, Step::Name), (FCOMMENT, Step::Comment), (FHCRC, Step::Crc(2))];
        let done = order.iter().position(|(bit, _)| *bit == field).map_or(0, |nth| nth + 1);
        order.iter().skip(done).find(|(bit, _)| self.flags & bit != 0).map_or(Step::Done, |(_, step)| *step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many bytes the header takes, or why it is none.
    fn length(bytes: &[u8]) -> Result<Option<usize>, &'static str> {
        let mut header = Header::default();
        for (nth, byte) in bytes.iter().enumerate() {
            if header.take(*byte)? {
                return Ok(Some(nth + 1));
            }
        }
        Ok(None)
    }

    #[test]
    fn every_combination_of_optional_fields_is_skipped_to_its_last_byte() {
        for flags in 0..=0x1f_u8 {
            let mut header = vec![0x1f, 0x8b, 8, flags, 1, 2, 3, 4, 0, 3];
            for (bit, field) in
                [(FEXTRA, &b"\x03\0abc"[..]), (FNAME, b"n\0"), (FCOMMENT, b"long comment\0"), (FHCRC, b"cc")]
            {
                if flags & bit != 0 {
                    header.extend_from_slice(field);
                }
            }
            let whole = header.len();
            header.extend_from_slice(&[0; 4]);
            assert_eq!(length(&header), Ok(Some(whole)), "flags {flags:#x}");
            assert_eq!(length(&header[..whole - 1]), Ok(None), "flags {flags:#x}");
        }
        assert_eq!(length(b"\x1f\x8b\x08\x04\0\0\0\0\0\0\0\0"), Ok(Some(12)), "an empty extra field");
    }

    #[test]
    fn what_is_no_gzip_is_refused_at_its_first_wrong_byte() {
        assert!(length(b"\x1f\x8c").is_err());
        assert!(length(b"\0").is_err());
        assert!(length(b"\x1f\x8b\x07").is_err());
    }
}
