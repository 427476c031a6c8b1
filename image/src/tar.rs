//! The tar wrapper: one member holds the layer, found by what it contains and not by its name.
//!
//! Pure: looks only at the head of the blob. Sizes are read as ustar octal, GNU base-256, or the `size` record of a pax
//! header, which is what `overlaybd-commit -t` writes (its ustar size field is 0).

use penstock_blob::ByteRange;

use crate::units::in_memory;

/// Bytes of a tar block.
pub const BLOCK_BYTES: usize = 512;
/// Members looked at before the archive counts as an ordinary one. A wrapped layer is the first member (the second at
/// most, behind its pax header); 16 leaves room and bounds the walk.
const MAX_MEMBERS: usize = 16;

/// What the head of a blob says about a wrapper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrapper {
    /// Not a tar archive.
    None,
    /// A tar archive, and these bytes of it are the layer.
    Payload(ByteRange),
    /// A tar archive that holds something else.
    Ordinary,
}

/// Why a tar archive cannot be walked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TarError {
    /// A size field is neither octal nor base-256.
    #[error("the tar header at byte {at} has a malformed size field")]
    Size {
        /// Where the header starts.
        at: u64,
    },
    /// A pax header is not a list of `LENGTH KEY=VALUE` lines, or does not fit into the head.
    #[error("the pax header at byte {at} is malformed or too long")]
    Pax {
        /// Where the header starts.
        at: u64,
    },
    /// A member ends beyond the blob.
    #[error("the tar member at byte {at} claims {size_bytes} bytes, more than the blob has")]
    Beyond {
        /// Where the member's header starts.
        at: u64,
        /// Its size by its header.
        size_bytes: u64,
    },
}

/// Finds the member whose content `wanted` recognises by its first bytes. `head` is the start of a blob of
/// `blob_bytes`.
///
/// # Errors
/// [`TarError`] when the head is a tar archive (its first checksum is right) but cannot be walked.
pub fn unwrap(head: &[u8], blob_bytes: u64, wanted: impl Fn(&[u8]) -> bool) -> Result<Wrapper, TarError> {
    let mut pax_size = None;
    let mut at = 0_u64;
    for nth in 0..MAX_MEMBERS {
        let Some(block) = head.get(in_memory(at)..).and_then(|rest| rest.get(..BLOCK_BYTES)) else {
            return Ok(if nth == 0 { Wrapper::None } else { Wrapper::Ordinary });
        };
        if !is_header(block) {
            return Ok(if nth == 0 { Wrapper::None } else { Wrapper::Ordinary });
        }
        let own_size = number(&block[124..136]).ok_or(TarError::Size { at })?;
        let body = at + BLOCK_BYTES as u64;
        let mut size = own_size;
        match block[156] {
            b'x' => pax_size = pax_size_record(head, body, own_size).ok_or(TarError::Pax { at })?.or(pax_size),
            b'g' | b'L' | b'K' => {}
            b'0' | b'7' | 0 => {
                size = pax_size.take().unwrap_or(own_size);
                let end = body.checked_add(size).filter(|&end| end <= blob_bytes);
                let end = end.ok_or(TarError::Beyond { at, size_bytes: size })?;
                let content = head.get(in_memory(body)..).unwrap_or_default();
                let content = &content[..content.len().min(in_memory(size))];
                if let (true, Ok(range)) = (wanted(content), ByteRange::new(body, end)) {
                    return Ok(Wrapper::Payload(range));
                }
            }
            // Links, directories and devices have no body, whatever their size field says.
            _ => (pax_size, size) = (None, 0),
        }
        let padded = size.checked_next_multiple_of(BLOCK_BYTES as u64);
        at = padded.and_then(|p| body.checked_add(p)).ok_or(TarError::Beyond { at, size_bytes: size })?;
    }
    Ok(Wrapper::Ordinary)
}

/// Whether the blob begins as a tar archive.
#[must_use]
pub fn is_tar(head: &[u8]) -> bool {
    head.get(..BLOCK_BYTES).is_some_and(is_header)
}

/// `ustar` at 257 (POSIX follows it with NUL "00", GNU with two spaces) and a right checksum.
fn is_header(block: &[u8]) -> bool {
    let sum: u64 = block.iter().map(|&b| u64::from(b)).sum();
    let stored: u64 = block[148..156].iter().map(|&b| u64::from(b)).sum();
    &block[257..262] == b"ustar" && number(&block[148..156]) == Some(sum - stored + 8 * u64::from(b' '))
}

/// An octal number with spaces or NULs around it, or (high bit of the first byte set) a big-endian base-256 number.
fn number(field_bytes: &[u8]) -> Option<u64> {
    if field_bytes[0] & 0x80 != 0 {
        let (high, low) = field_bytes.split_last_chunk::<8>()?;
        let (first, zeros) = high.split_first()?;
        return (*first == 0x80 && zeros.iter().all(|&b| b == 0)).then(|| u64::from_be_bytes(*low));
    }
    let text = std::str::from_utf8(field_bytes).ok()?.trim_matches([' ', '\0']);
    if text.is_empty() {
        return Some(0);
    }
    if text.starts_with('+') {
        return None;
    }
    u64::from_str_radix(text, 8).ok()
}

/// The value of the `size` record among the pax records at `body`: the outer `None` is a malformed header.
fn pax_size_record(head: &[u8], body: u64, len: u64) -> Option<Option<u64>> {
    let mut rest = head.get(in_memory(body)..)?.get(..in_memory(len))?;
    let mut found = None;
    while rest.first().is_some_and(|&b| b != 0) {
        let space = rest.iter().position(|&b| b == b' ')?;
        let length: usize = std::str::from_utf8(&rest[..space]).ok()?.parse().ok()?;
        let record = rest.get(space + 1..length)?.strip_suffix(b"\n")?;
        if let Some(value) = record.strip_prefix(b"size=") {
            found = Some(std::str::from_utf8(value).ok()?.parse().ok()?);
        }
        rest = &rest[length..];
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: u8, size: &[u8; 12], magic: &[u8; 8]) -> Vec<u8> {
        let mut block = vec![0; 512];
        block[..4].copy_from_slice(b"name");
        block[124..136].copy_from_slice(size);
        block[148..156].fill(b' ');
        block[156] = kind;
        block[257..265].copy_from_slice(magic);
        let sum: u64 = block.iter().map(|&b| u64::from(b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }

    const POSIX: &[u8; 8] = b"ustar\x0000";
    const GNU: &[u8; 8] = b"ustar  \0";

    fn find(head: &[u8], blob_bytes: u64) -> Result<Wrapper, TarError> {
        unwrap(head, blob_bytes, |content| content.starts_with(b"LAYER"))
    }

    fn payload(start: u64, end: u64) -> Result<Wrapper, TarError> {
        Ok(Wrapper::Payload(ByteRange::new(start, end).unwrap()))
    }

    #[test]
    fn each_way_to_write_a_size_is_read() {
        let octal = [header(b'0', b"00000000005\0", POSIX), b"LAYER".to_vec()].concat();
        assert_eq!(find(&octal, 1024), payload(512, 517));
        let mut size = [0; 12];
        size[0] = 0x80;
        size[11] = 5;
        let gnu = [header(0, &size, GNU), b"LAYER".to_vec()].concat();
        assert_eq!(find(&gnu, 1024), payload(512, 517));
        let mut records = b"12 path=abc\n9 size=5\n".to_vec();
        records[..].copy_from_slice(b"12 path=abc\n9 size=5\n");
        records.resize(512, 0);
        let pax =
            [header(b'x', b"         25 ", POSIX), records, header(b'0', b"          0 ", POSIX), b"LAYER".to_vec()]
                .concat();
        assert_eq!(find(&pax, 4096), payload(1536, 1541));
    }

    #[test]
    fn a_member_is_found_by_content_behind_others() {
        let mut other = [header(b'0', b"00000000003\0", POSIX), b"abc".to_vec()].concat();
        other.resize(1024, 0);
        let dir = header(b'5', b"00000000777\0", POSIX);
        let tar = [other, dir, header(b'0', b"00000000005\0", POSIX), b"LAYER".to_vec()].concat();
        assert_eq!(find(&tar, 4096), payload(2048, 2053));
        assert_eq!(unwrap(&tar, 4096, |_| false), Ok(Wrapper::Ordinary));
    }

    #[test]
    fn hostile_headers_give_typed_errors() {
        let bad_size = header(b'0', b"0000000009\0\0", POSIX);
        assert_eq!(find(&bad_size, 1024), Err(TarError::Size { at: 0 }));
        let too_long = header(b'0', b"77777777777\0", POSIX);
        assert_eq!(find(&too_long, 1024), Err(TarError::Beyond { at: 0, size_bytes: 0o77_777_777_777 }));
        let negative = header(b'0', &[0xff; 12], GNU);
        assert_eq!(find(&negative, 1024), Err(TarError::Size { at: 0 }));
        for records in [&b"9 size=x\n"[..], b"99 size=5\n", b"0 size=5\n", b"size=5\n", b"8 size=5\n"] {
            let size = format!("{:011o}\0", records.len());
            let mut tar = header(b'x', size.as_bytes().try_into().unwrap(), POSIX);
            tar.extend_from_slice(records);
            tar.resize(1024, 0);
            assert_eq!(find(&tar, 4096), Err(TarError::Pax { at: 0 }), "{}", String::from_utf8_lossy(records));
        }
        let mut not_tar = header(b'0', b"00000000005\0", POSIX);
        not_tar[0] ^= 1;
        assert_eq!(find(&not_tar, 1024), Ok(Wrapper::None), "a wrong checksum is not a tar header");
        assert_eq!(find(&not_tar[..100], 100), Ok(Wrapper::None));
        let mut binary_sum = header(b'0', b"00000000005\0", POSIX);
        binary_sum[148] = 0x80;
        assert_eq!(find(&binary_sum, 1024), Ok(Wrapper::None));
    }
}
