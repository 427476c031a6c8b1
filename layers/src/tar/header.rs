//! One header block of 512 bytes: POSIX.1-1988 (ustar), and what GNU and star keep in the same places.

/// Bytes of a block.
pub(crate) const BLOCK_BYTES: usize = 512;

/// A header block whose checksum is right.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header<'a>(&'a [u8]);

/// The text of a field, up to its first NUL.
pub(crate) fn text(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// An octal number with spaces or NULs around it, or (high bit of the first byte set) a big-endian base-256 number in two's
/// complement. An empty field is 0.
pub(crate) fn number(field: &[u8]) -> Option<i64> {
    let (&first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        // The sign is the bit below the mark; what does not fit in 64 bits is refused.
        let negative = first & 0x40 != 0;
        let start = if negative { i128::from(first) - 256 } else { i128::from(first & 0x7f) };
        let value = rest.iter().try_fold(start, |value, &byte| value.checked_mul(256)?.checked_add(byte.into()))?;
        return i64::try_from(value).ok();
    }
    let blank = |byte: &u8| *byte == b' ' || *byte == 0;
    let start = field.iter().position(|byte| !blank(byte)).unwrap_or(field.len());
    let digits = text(&field[start..]);
    let end = digits.iter().rposition(|byte| !blank(byte)).map_or(0, |last| last + 1);
    digits[..end].iter().try_fold(0_i64, |value, byte| match byte {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(byte - b'0')),
        _ => None,
    })
}

impl<'a> Header<'a> {
    /// A block of [`BLOCK_BYTES`], if its checksum is right; old writers summed signed bytes.
    pub(crate) fn parse(block: &'a [u8]) -> Option<Self> {
        let block = block.get(..BLOCK_BYTES)?;
        let stored = number(&block[148..156])?;
        let counted = block[..148].iter().chain(&[b' '; 8]).chain(&block[156..]);
        let (mut unsigned, mut signed) = (0_i64, 0_i64);
        for &byte in counted {
            unsigned += i64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        (stored == unsigned || stored == signed).then_some(Self(block))
    }

    pub(crate) const fn flag(&self) -> u8 {
        self.0[156]
    }

    pub(crate) fn bytes(&self, at: std::ops::Range<usize>) -> &'a [u8] {
        &self.0[at]
    }

    fn is_gnu(&self) -> bool {
        &self.0[257..265] == b"ustar  \0"
    }

    fn is_ustar(&self) -> bool {
        &self.0[257..263] == b"ustar\0"
    }

    /// The name, behind the prefix that ustar keeps apart.
    pub(crate) fn name(&self) -> Vec<u8> {
        let name = text(&self.0[..100]);
        let prefix = match () {
            // star has times behind a shorter prefix.
            () if self.is_ustar() && &self.0[508..512] == b"tar\0" => text(&self.0[345..476]),
            () if self.is_ustar() => text(&self.0[345..500]),
            () if self.is_gnu() && self.is_of_old_go() => text(&self.0[345..500]),
            () => b"",
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    /// Go before 1.8 (docker of 2016) wrote a prefix under GNU's magic, where GNU keeps two times; what is no number there is
    /// taken for a prefix, as Go has done since.
    fn is_of_old_go(&self) -> bool {
        let times = [&self.0[345..357], &self.0[357..369]];
        let is_time = |field: &[u8]| field[0] == 0 || number(field).is_some();
        !times.into_iter().all(is_time) && text(&self.0[345..500]).is_ascii()
    }

    pub(crate) fn link(&self) -> &'a [u8] {
        text(&self.0[157..257])
    }

    pub(crate) fn size(&self) -> Option<u64> {
        u64::try_from(number(&self.0[124..136])?).ok()
    }

    /// Permissions: the low 12 bits; what writers put above them is ignored.
    pub(crate) fn mode(&self) -> Option<u16> {
        u16::try_from(number(&self.0[100..108])? & 0o7777).ok()
    }

    pub(crate) fn uid(&self) -> Option<i64> {
        number(&self.0[108..116])
    }

    pub(crate) fn gid(&self) -> Option<i64> {
        number(&self.0[116..124])
    }

    pub(crate) fn mtime(&self) -> Option<i64> {
        number(&self.0[136..148])
    }

    /// Major and minor of a device node; zeros for others, and in V7 archives, which had no place for them.
    pub(crate) fn device(&self) -> Option<(u64, u64)> {
        if !matches!(self.flag(), b'3' | b'4') || !(self.is_ustar() || self.is_gnu()) {
            return Some((0, 0));
        }
        let number = |field| u64::try_from(number(field)?).ok();
        Some((number(&self.0[329..337])?, number(&self.0[337..345])?))
    }
}
