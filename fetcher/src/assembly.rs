//! Putting the body of one GET into the buffers of those who wait for parts of it. Pure: no I/O, no clock.

use bytes::{Bytes, BytesMut};
use penstock_blob::{ByteRange, Purpose};

/// Bytes that somebody waits for, and who. `A` is how to answer.
#[derive(Debug)]
struct Want<A> {
    range: ByteRange,
    filled: BytesMut,
    /// Those who wait, each for a part of the range.
    answers: Vec<(ByteRange, A)>,
    /// Whether one of them asked on demand.
    is_urgent: bool,
}

impl<A> Want<A> {
    /// The first byte that is not here yet.
    fn next(&self) -> u64 {
        self.range.start() + self.filled.len() as u64
    }
}

/// The unanswered wants of one flight. Bytes arrive in ascending order, from [`Assembly::run`]'s start on; a want is
/// answered as soon as its last byte is here, and what came stays when the body breaks, so that another GET goes on from there.
#[derive(Debug)]
pub(crate) struct Assembly<A> {
    wants: Vec<Want<A>>,
    /// The bytes that the body under way still brings.
    coming: Option<ByteRange>,
}

impl<A> Assembly<A> {
    pub(crate) const fn new() -> Self {
        Self { wants: Vec::new(), coming: None }
    }

    /// Somebody wants `range`, before anything was asked for.
    pub(crate) fn add(&mut self, range: ByteRange, purpose: Purpose, answer: A) {
        let is_urgent = purpose == Purpose::Demand;
        self.wants.push(Want { range, filled: BytesMut::new(), answers: vec![(range, answer)], is_urgent });
    }

    /// Whether `range` should have a request of its own, at the same time: what is wanted on demand is asked for first, and what is read ahead of bytes
    /// before it would only wait, whichever of the two came first.
    pub(crate) fn keeps_waiting(&self, range: ByteRange, purpose: Purpose) -> bool {
        let urgent = self.wants.iter().filter(|want| want.is_urgent).map(|want| want.range.start()).min();
        match (purpose, urgent) {
            (Purpose::Ahead, Some(urgent)) => range.end() <= urgent,
            // What is wanted of it already is not asked for twice.
            (Purpose::Demand, None) if self.wants.iter().all(|want| want.range.intersection(range).is_none()) => {
                self.wants.iter().any(|want| want.range.end() <= range.start())
            }
            _ => false,
        }
    }

    /// Somebody wants `range` of what is under way: of the body that is being received, or of what somebody else waits for. Refused when it
    /// is neither.
    pub(crate) fn join(&mut self, range: ByteRange, purpose: Purpose, answer: A) -> Result<(), A> {
        if self.coming.is_some_and(|coming| coming.contains(range)) {
            self.add(range, purpose, answer);
            return Ok(());
        }
        let Some(want) = self.wants.iter_mut().find(|want| want.range.contains(range)) else { return Err(answer) };
        want.answers.push((range, answer));
        want.is_urgent |= purpose == Purpose::Demand;
        Ok(())
    }

    /// The bytes still to be fetched: from the first to the last that anybody lacks. `None` when nobody does.
    pub(crate) fn rest(&self) -> Option<ByteRange> {
        let start = self.wants.iter().map(Want::next).min()?;
        let end = self.wants.iter().map(|want| want.range.end()).max()?;
        ByteRange::new(start, end).ok()
    }

    /// The bytes to ask for next: what is wanted on demand comes first, what lies before it in a request of its own. No want is
    /// torn for that.
    pub(crate) fn run(&self) -> Option<ByteRange> {
        let rest = self.rest()?;
        let Some(urgent) = self.wants.iter().filter(|want| want.is_urgent).map(Want::next).min() else {
            return Some(rest);
        };
        let around = self.wants.iter().filter(|want| want.next() <= urgent && urgent < want.range.end());
        ByteRange::new(around.map(Want::next).min().unwrap_or(urgent), rest.end()).ok()
    }

    /// For whom [`Assembly::run`] is asked for.
    pub(crate) fn purpose(&self) -> Purpose {
        if self.wants.iter().any(|want| want.is_urgent) { Purpose::Demand } else { Purpose::Ahead }
    }

    /// A body of these bytes begins; `None`: no body is under way any more.
    pub(crate) const fn expect(&mut self, coming: Option<ByteRange>) {
        self.coming = coming;
    }

    /// Whether somebody still lacks bytes of `range`.
    pub(crate) fn wants(&self, range: ByteRange) -> bool {
        self.wants.iter().any(|want| want.next() < range.end() && range.start() < want.range.end())
    }

    /// Forgets those for whom `keep` is false: they do not wait any more.
    pub(crate) fn retain(&mut self, keep: impl Fn(&A) -> bool) {
        for want in &mut self.wants {
            want.answers.retain(|(_, answer)| keep(answer));
        }
        self.wants.retain(|want| !want.answers.is_empty());
    }

    /// Takes the bytes of the blob from `at` on, and gives back those who have all they want now. Bytes before the first that a
    /// want lacks are of no use to it.
    pub(crate) fn feed(&mut self, at: u64, bytes: &[u8]) -> Vec<(A, Bytes)> {
        let end = at.saturating_add(bytes.len() as u64);
        self.coming = self.coming.and_then(|coming| ByteRange::new(coming.start().max(end), coming.end()).ok());
        for want in &mut self.wants {
            let (from, to) = (want.next(), want.range.end().min(end));
            let Some(piece) = slice(bytes, at, from, to) else { continue };
            if want.filled.is_empty() {
                want.filled.reserve(usize::try_from(want.range.len()).unwrap_or(0));
            }
            want.filled.extend_from_slice(piece);
        }
        let full = self.wants.extract_if(.., |want| want.next() == want.range.end());
        full.flat_map(|want| {
            let (whole, bytes) = (want.range, want.filled.freeze());
            want.answers.into_iter().map(move |(part, answer)| (answer, cut(&bytes, whole, part)))
        })
        .collect()
    }

    /// Everybody who still waits, to be told that nothing more will come.
    pub(crate) fn take_waiting(&mut self) -> impl Iterator<Item = A> + use<A> {
        std::mem::take(&mut self.wants).into_iter().flat_map(|want| want.answers).map(|(_, answer)| answer)
    }
}

/// The bytes `part` of `bytes`, which are the bytes `whole`.
fn cut(bytes: &Bytes, whole: ByteRange, part: ByteRange) -> Bytes {
    let index = |byte: u64| usize::try_from(byte - whole.start()).unwrap_or(usize::MAX).min(bytes.len());
    bytes.slice(index(part.start())..index(part.end()))
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

    fn assembly<A>(wants: impl IntoIterator<Item = (ByteRange, A)>) -> Assembly<A> {
        let mut assembly = Assembly::new();
        wants.into_iter().for_each(|(range, answer)| assembly.add(range, Purpose::Demand, answer));
        assembly
    }

    fn bytes(range: ByteRange) -> Vec<u8> {
        (range.start()..range.end()).map(byte).collect()
    }

    fn byte(at: u64) -> u8 {
        u8::try_from(at % 251).unwrap()
    }

    proptest! {
        #[test]
        fn every_want_gets_its_bytes_however_the_body_is_cut_and_broken(
            wants in prop::collection::vec(ranges(), 1..8), pieces in prop::collection::vec(1u64..40, 1..40), breaks in prop::collection::vec(0usize..6, 0..6),
        ) {
            let mut assembly = assembly(wants.iter().zip(0..).map(|(want, index)| (*want, index)));
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
        let mut assembly = assembly([(range(0, 10), 'a'), (range(20, 30), 'b'), (range(40, 50), 'c')]);
        assembly.retain(|answer| *answer == 'b');
        assert_eq!(assembly.rest(), Some(range(20, 30)));
        assert!(assembly.feed(20, &[0; 5]).is_empty());
        assert_eq!(assembly.rest(), Some(range(25, 30)));
        assert_eq!(assembly.take_waiting().collect::<String>(), "b");
    }

    #[test]
    fn what_is_wanted_on_demand_is_asked_for_first_and_the_rest_after_it() {
        let mut assembly = Assembly::new();
        assembly.add(range(0, 10), Purpose::Ahead, 'a');
        assembly.add(range(10, 20), Purpose::Ahead, 'b');
        assert_eq!((assembly.run(), assembly.purpose()), (Some(range(0, 20)), Purpose::Ahead));
        assembly.join(range(12, 15), Purpose::Demand, 'c').unwrap();
        let run = assembly.run().unwrap();
        assert_eq!((run, assembly.purpose()), (range(10, 20), Purpose::Demand));
        assembly.expect(Some(run));
        let answered = assembly.feed(10, &bytes(run));
        assert_eq!(answered, [('b', bytes(run).into()), ('c', bytes(range(12, 15)).into())]);
        assert_eq!((assembly.run(), assembly.purpose()), (Some(range(0, 10)), Purpose::Ahead));
    }

    #[test]
    fn what_is_read_ahead_does_not_wait_for_demand_behind_it_whichever_came_first() {
        let alone = |first: (ByteRange, Purpose), second: (ByteRange, Purpose)| {
            let mut assembly = Assembly::new();
            assembly.add(first.0, first.1, ());
            assembly.keeps_waiting(second.0, second.1)
        };
        let (before, behind) = (range(0, 10), range(10, 20));
        assert!(alone((behind, Purpose::Demand), (before, Purpose::Ahead)));
        assert!(alone((before, Purpose::Ahead), (behind, Purpose::Demand)));
        // Here nothing would wait: one request brings both, what is wanted first.
        assert!(!alone((before, Purpose::Demand), (behind, Purpose::Ahead)));
        assert!(!alone((behind, Purpose::Ahead), (before, Purpose::Demand)));
        assert!(!alone((before, Purpose::Demand), (behind, Purpose::Demand)));
        assert!(!alone((before, Purpose::Ahead), (behind, Purpose::Ahead)));
        assert!(!alone((range(5, 15), Purpose::Ahead), (behind, Purpose::Demand)), "a part of it is on its way");
    }

    #[test]
    fn who_joins_under_way_gets_what_still_comes_and_is_refused_what_has_passed() {
        let mut assembly = assembly([(range(0, 10), 'a'), (range(30, 40), 'b')]);
        assert_eq!(assembly.join(range(12, 20), Purpose::Ahead, 'x'), Err('x'), "nothing is under way");
        assembly.expect(assembly.run());
        assert_eq!(assembly.feed(0, &bytes(range(0, 15))), [('a', bytes(range(0, 10)).into())]);
        assert_eq!(assembly.join(range(12, 20), Purpose::Demand, 'x'), Err('x'), "12 has passed");
        assert_eq!(assembly.join(range(35, 41), Purpose::Demand, 'x'), Err('x'), "40 does not come");
        assembly.join(range(15, 20), Purpose::Demand, 'c').unwrap();
        let mut answered = assembly.feed(15, &bytes(range(15, 32)));
        assert_eq!(answered, [('c', bytes(range(15, 20)).into())]);
        assembly.join(range(31, 33), Purpose::Demand, 'd').expect("in hand for another");
        answered = assembly.feed(32, &bytes(range(32, 40)));
        assert_eq!(answered, [('b', bytes(range(30, 40)).into()), ('d', bytes(range(31, 33)).into())]);
        assert_eq!(assembly.join(range(0, 5), Purpose::Demand, 'x'), Err('x'), "nothing comes any more");
    }

    #[test]
    fn the_ends_of_the_number_space_are_no_trouble() {
        let last = range(u64::MAX - 10, u64::MAX);
        assert_eq!(split(last, 4).count(), 3);
        assert_eq!(join(last, range(0, 1), u64::MAX, 100), None);
    }
}
