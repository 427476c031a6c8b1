//! The `Range` header: which bytes of a blob a request wants (RFC 9110, section 14).

use penstock_blob::ByteRange;

/// What a `Range` header asks of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// All of it: no header, another unit, or several ranges (which a server may answer with everything).
    Whole,
    /// These bytes, cut at the blob's end.
    Part(ByteRange),
    /// Bytes that the blob does not have, or a range that makes no sense: 416.
    Unsatisfiable,
}

/// Reads the header's value for a blob of `size_bytes`.
pub(crate) fn wanted(header: Option<&str>, size_bytes: u64) -> Wanted {
    let Some(spec) = header.and_then(|h| h.trim().strip_prefix("bytes=")) else {
        return Wanted::Whole;
    };
    if spec.contains(',') {
        return Wanted::Whole;
    }
    let part = spec.trim().split_once('-').and_then(|(first, last)| part(first, last, size_bytes));
    part.map_or(Wanted::Unsatisfiable, Wanted::Part)
}

/// `first-last` (inclusive), `first-`, or `-count`.
fn part(first: &str, last: &str, size_bytes: u64) -> Option<ByteRange> {
    if first.is_empty() {
        let count = number(last)?;
        return ByteRange::new(size_bytes.saturating_sub(count), size_bytes).ok();
    }
    let start = number(first)?;
    let end = if last.is_empty() { size_bytes } else { number(last)?.saturating_add(1) };
    if end <= start {
        return None;
    }
    ByteRange::new(start, end.min(size_bytes)).ok()
}

/// Decimal digits only: `parse` alone would take a sign.
fn number(digits: &str) -> Option<u64> {
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_ranges_are_cut_at_the_end() {
        let part = |start, end| Wanted::Part(ByteRange::new(start, end).unwrap());
        for (header, expected) in [
            ("bytes=0-0", part(0, 1)),
            ("bytes=10-19", part(10, 20)),
            ("bytes=90-1000", part(90, 100)),
            ("bytes=90-", part(90, 100)),
            ("bytes=-10", part(90, 100)),
            ("bytes=-1000", part(0, 100)),
            ("bytes=0-18446744073709551615", part(0, 100)),
        ] {
            assert_eq!(wanted(Some(header), 100), expected, "{header}");
        }
    }

    #[test]
    fn what_cannot_be_answered_is_refused() {
        for header in
            ["bytes=100-", "bytes=100-200", "bytes=5-4", "bytes=-0", "bytes=", "bytes=-", "bytes=a-b", "bytes=+1-2"]
        {
            assert_eq!(wanted(Some(header), 100), Wanted::Unsatisfiable, "{header}");
        }
        assert_eq!(wanted(Some("bytes=0-0"), 0), Wanted::Unsatisfiable);
    }

    #[test]
    fn other_units_and_several_ranges_get_everything() {
        for header in [None, Some("lines=0-1"), Some("bytes=0-1,4-5")] {
            assert_eq!(wanted(header, 100), Wanted::Whole);
        }
    }
}
