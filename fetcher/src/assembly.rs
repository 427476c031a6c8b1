//! Putting the body of one GET into the buffers of those who wait for parts of it. Pure: no I/O, no clock.

use bytes::{Bytes, BytesMut};
use penstock_blob::ByteRange;

/// Somebody who waits for a range. `A` is how to answer.
#[derive(Debug)]
struct Want<A> {
    range: ByteRange,
    filled: BytesMut,
    answer: A,
}

impl<A> Want<A> {
    /// The first byte that is not here yet.
    fn next(&self) -> u64 {
        self.range.start() + self.filled.len() as u64
    }
}

/// The unanswered wants of one flight. Bytes arrive in ascending order, from [`Assembly::rest`]'s start on; a want is
/// answered as soon as its last byte is here, and what came stays when the body breaks, so that another GET goes on from there.
#[derive(Debug)]
pub(crate) struct Assembly<A> {
    wants: Vec<Want<A>>,
}

impl<A> Assembly<A> {
    pub(crate) fn new(wants: impl IntoIterator<Item = (ByteRange, A)>) -> Self {
        let want = |(range, answer)| Want { range, filled: BytesMut::new(), answer };
        Self { wants: wants.into_iter().map(want).collect() }
    }

    /// The bytes still to be fetched: from the first to the last that anybody lacks. `None` when nobody does.
    pub(crate) fn rest(&self) -> Option<ByteRange> {
        let start = self.wants.iter().map(Want::next).min()?;
        let end = self.wants.iter().map(|want| want.range.end()).max()?;
        ByteRange::new(start, end).ok()
    }

    /// Whether somebody still lacks bytes of `range`.
    pub(crate) fn wants(&self, range: ByteRange) -> bool {
        self.wants.iter().any(|want| want.next() < range.end() && range.start() < want.range.end())
    }

    /// Forgets the wants for which `keep` is false: nobody waits for them any more.
    pub(crate) fn retain(&mut self, keep: impl Fn(&A) -> bool) {
        self.wants.retain(|want| keep(&want.answer));
    }

    /// Takes the bytes of the blob from `at` on, and gives back the wants that are full now. `at` must not lie beyond
    /// [`Assembly::rest`]'s start.
    pub(crate) fn feed(&mut self, at: u64, bytes: &[u8]) -> Vec<(A, Bytes)> {
        let end = at.saturating_add(bytes.len() as u64);
        for want in &mut self.wants {
            let (from, to) = (want.next(), want.range.end().min(end));
            let Some(piece) = slice(bytes, at, from, to) else { continue };
            if want.filled.is_empty() {
                want.filled.reserve(usize::try_from(want.range.len()).unwrap_or(0));
            }
            want.filled.extend_from_slice(piece);
        }
        let full = self.wants.extract_if(.., |want| want.next() == want.range.end());
        full.map(|want| (want.answer, want.filled.freeze())).collect()
    }

    /// Everybody who still waits, to be told that nothing more will come.
    pub(crate) fn into_waiting(self) -> impl Iterator<Item = A> {
        self.wants.into_iter().map(|want| want.answer)
    }
}

/// The part `from..to` of bytes that start at `at`, when there is one.
fn slice(bytes: &[u8], at: u64, from: u64, to: u64) -> Option<&[u8]> {
    let index = |byte: u64| usize::try_from(byte.checked_sub(at)?).ok();
    if from < to { bytes.get(index(from)?..index(to)?) } else { None }
}

/// The range of a joint request, when two ranges are near enough and not too much together.
pub(crate) fn join(a: ByteRange, b: ByteRange, gap_bytes: u64, max_bytes: u64) -> Option<ByteRange> {
    let (first, second) = if a.start() <= b.start() { (a, b) } else { (b, a) };
    let near = second.start().saturating_sub(first.end()) <= gap_bytes;
    let both = a.cover(b);
    (near && both.len() <= max_bytes).then_some(both)
}

/// A range cut into pieces of at most `max_bytes`, all but the last of that size.
pub(crate) fn split(range: ByteRange, max_bytes: u64) -> impl Iterator<Item = ByteRange> {
    let step = max_bytes.max(1);
    let count = range.len().div_ceil(step);
    (0..count).filter_map(move |index| {
        let start = range.start() + index * step;
        ByteRange::new(start, start.saturating_add(step).min(range.end())).ok()
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange::new(start, end).unwrap()
    }

    fn ranges() -> impl Strategy<Value = ByteRange> {
        (0u64..200, 1u64..60).prop_map(|(start, len)| range(start, start + len))
    }

    fn byte(at: u64) -> u8 {
        u8::try_from(at % 251).unwrap()
    }

    proptest! {
        #[test]
        fn every_want_gets_its_bytes_however_the_body_is_cut_and_broken(
            wants in prop::collection::vec(ranges(), 1..8), pieces in prop::collection::vec(1u64..40, 1..40), breaks in prop::collection::vec(0usize..6, 0..6),
        ) {
            let mut assembly = Assembly::new(wants.iter().copied().zip(0..));
            let mut answers = vec![None; wants.len()];
            let mut pieces = pieces.iter().cycle();
            // Each entry of `breaks` is a body that ends after so many pieces; the last body is whole.
            for length in breaks.into_iter().chain([usize::MAX]) {
                let Some(rest) = assembly.rest() else { break };
                let mut at = rest.start();
                for _ in 0..length {
                    if at >= rest.end() {
                        break;
                    }
                    let end = (at + pieces.next().unwrap()).min(rest.end());
                    let bytes: Vec<u8> = (at..end).map(byte).collect();
                    for (index, answer) in assembly.feed(at, &bytes) {
                        let index: usize = index;
                        prop_assert!(answers[index].replace(answer).is_none(), "answered twice");
                    }
                    at = end;
                }
            }
            prop_assert_eq!(assembly.rest(), None);
            for (want, answer) in wants.iter().zip(answers) {
                let truth: Vec<u8> = (want.start()..want.end()).map(byte).collect();
                prop_assert_eq!(answer.unwrap(), truth);
            }
        }

        #[test]
        fn joined_ranges_are_near_and_bounded(a in ranges(), b in ranges(), gap in 0u64..50, max in 1u64..150) {
            let holes = (a.cover(b).start()..a.cover(b).end())
                .filter(|at| ![a, b].iter().any(|r| r.start() <= *at && *at < r.end())).count() as u64;
            let expected = (holes <= gap && a.cover(b).len() <= max).then_some(a.cover(b));
            prop_assert_eq!(join(a, b, gap, max), expected);
            prop_assert_eq!(join(b, a, gap, max), expected);
        }

        #[test]
        fn pieces_cover_a_range_once(whole in ranges(), max in 1u64..70) {
            let mut at = whole.start();
            for piece in split(whole, max) {
                prop_assert_eq!(piece.start(), at);
                prop_assert!(piece.len() <= max);
                at = piece.end();
            }
            prop_assert_eq!(at, whole.end());
        }
    }

    #[test]
    fn wants_that_nobody_waits_for_are_not_fetched() {
        let mut assembly = Assembly::new([(range(0, 10), 'a'), (range(20, 30), 'b'), (range(40, 50), 'c')]);
        assembly.retain(|answer| *answer == 'b');
        assert_eq!(assembly.rest(), Some(range(20, 30)));
        assert!(assembly.feed(20, &[0; 5]).is_empty());
        assert_eq!(assembly.rest(), Some(range(25, 30)));
        assert_eq!(assembly.into_waiting().collect::<String>(), "b");
    }

    #[test]
    fn the_ends_of_the_number_space_are_no_trouble() {
        let last = range(u64::MAX - 10, u64::MAX);
        assert_eq!(split(last, 4).count(), 3);
        assert_eq!(join(last, range(0, 1), u64::MAX, 100), None);
    }
}
