//! Which spans a start reads, as whoever made a SOCI index says: a blob of JSON beside the ztoc. Format: docs/formats/soci.md.

use serde::Deserialize;

use super::{ForeignError, broken};

/// Most bytes of such a blob: ranges by the ten thousand.
pub const MAX_PREFETCH_BYTES: u64 = 1 << 20;
/// The version that is read.
const VERSION: &str = "1.0";

/// Spans by their numbers. Without any nothing is said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prefetch {
    /// First and last, in order and apart from each other.
    ranges: Vec<(u32, u32)>,
}

#[derive(Deserialize)]
struct Artifact {
    version: String,
    prefetch_spans: Vec<Spans>,
}

/// Both are meant.
#[derive(Deserialize)]
struct Spans {
    start_span: u32,
    end_span: u32,
}

impl Prefetch {
    /// Reads the blob. Priorities are not looked at: spans are read in the order of the archive.
    ///
    /// # Errors
    /// [`ForeignError::Toc`] for what is none of version 1.0.
    pub fn parse(json: &[u8]) -> Result<Self, ForeignError> {
        let Artifact { version, prefetch_spans } =
            serde_json::from_slice(json).map_err(|error| broken(&format!("what it says of prefetching: {error}")))?;
        if version != VERSION {
            return Err(broken("what it says of prefetching is of another version than 1.0"));
        }
        let mut given: Vec<(u32, u32)> =
            prefetch_spans.iter().map(|spans| (spans.start_span, spans.end_span)).collect();
        given.sort_unstable();
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for (first, last) in given {
            if last < first {
                return Err(broken("it has a range of spans to prefetch that ends before it begins"));
            }
            match ranges.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
                _ => ranges.push((first, last)),
            }
        }
        Ok(Self { ranges })
    }

    /// Whether a start reads the span with this number.
    pub(super) fn has(&self, nth: usize) -> bool {
        let behind = self.ranges.partition_point(|range| range.0 as usize <= nth);
        behind.checked_sub(1).and_then(|at| self.ranges.get(at)).is_some_and(|range| nth <= range.1 as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_may_overlap_and_come_in_any_order_and_what_is_none_is_refused() {
        let json = br#"{"version":"1.0","prefetch_spans":[{"start_span":7,"end_span":9,"priority":1},{"start_span":2,"end_span":2},{"start_span":8,"end_span":12}]}"#;
        let prefetch = Prefetch::parse(json).unwrap();
        let has: Vec<usize> = (0..20).filter(|&nth| prefetch.has(nth)).collect();
        assert_eq!(has, [2, 7, 8, 9, 10, 11, 12]);
        assert!(!Prefetch::default().has(0));
        for bad in [
            &b"{}"[..],
            br#"{"version":"2.0","prefetch_spans":[]}"#,
            br#"{"version":"1.0","prefetch_spans":[{"start_span":3,"end_span":2}]}"#,
            br#"{"version":"1.0","prefetch_spans":[{"start_span":-1,"end_span":2}]}"#,
        ] {
            assert!(Prefetch::parse(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }
}
