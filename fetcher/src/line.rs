//! Who waits for a part of a budget, and who is next: fair between blobs, first come first served within one. Pure.
//!
//! *Start-time fair queueing* (Goyal, Vin, Cheng 1996): each blob that waits has a mark, which moves on by what it is given; the least mark
//! is next. So a device with a thousand reads waiting and one with a single read get the same, however long the first has waited, and a blob
//! that comes again and again one read at a time gets no more than its part either. Who was away begins where the others are.

use std::collections::{HashMap, VecDeque};

use penstock_blob::Digest;

/// Those who wait. `W` is one of them.
#[derive(Debug)]
pub(crate) struct Line<W> {
    /// The mark of who was next last.
    clock: u64,
    /// Marks of those who wait, and of those who are gone and have had more than [`Self::clock`].
    marks: HashMap<Option<Digest>, u64>,
    /// In the order in which they came; none is empty.
    waiting: Vec<(Option<Digest>, VecDeque<W>)>,
}

/// The place of one who waits. Good until the line changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct At {
    queue: usize,
    nth: usize,
}

impl<W> Line<W> {
    pub(crate) fn new() -> Self {
        Self { clock: 0, marks: HashMap::new(), waiting: Vec::new() }
    }

    /// Somebody waits for a blob, or for what is of none.
    pub(crate) fn push(&mut self, blob: Option<Digest>, waiter: W) {
        match self.waiting.iter_mut().find(|(other, _)| *other == blob) {
            Some((_, queue)) => queue.push_back(waiter),
            None => {
                let mark = self.marks.entry(blob).or_default();
                *mark = self.clock.max(*mark);
                self.waiting.push((blob, VecDeque::from([waiter])));
            }
        }
    }

    /// Forgets those for whom `keep` is false.
    pub(crate) fn retain(&mut self, keep: impl Fn(&W) -> bool) {
        self.waiting.retain_mut(|(_, queue)| {
            queue.retain(&keep);
            !queue.is_empty()
        });
    }

    pub(crate) fn any(&self, is: impl Fn(&W) -> bool) -> bool {
        self.waiting.iter().any(|(_, queue)| queue.iter().any(&is))
    }

    /// Everybody, who is next first.
    pub(crate) fn in_order(&self) -> impl Iterator<Item = (At, &W)> {
        let mut order: Vec<(u64, usize)> = Vec::with_capacity(self.waiting.len());
        let mark = |(blob, _): &(Option<Digest>, _)| self.marks.get(blob).copied().unwrap_or(self.clock);
        order.extend(self.waiting.iter().map(mark).zip(0..));
        order.sort_unstable();
        order.into_iter().flat_map(move |(_, queue)| {
            let waiters = self.waiting.get(queue).map(|(_, waiters)| waiters.iter());
            waiters.into_iter().flatten().enumerate().map(move |(nth, waiter)| (At { queue, nth }, waiter))
        })
    }

    /// Takes somebody out, who is given so much.
    pub(crate) fn take(&mut self, at: At, amount: u64) -> Option<W> {
        let (blob, queue) = self.waiting.get_mut(at.queue)?;
        let (blob, waiter) = (*blob, queue.remove(at.nth)?);
        if queue.is_empty() {
            self.waiting.remove(at.queue);
        }
        let mark = self.marks.entry(blob).or_insert(self.clock);
        let clock = self.clock.max(*mark);
        *mark = mark.saturating_add(amount);
        self.clock = clock;
        self.marks.retain(|other, mark| *mark > clock || self.waiting.iter().any(|(blob, _)| blob == other));
        Some(waiter)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn blob(name: u8) -> Option<Digest> {
        Some(Digest::of(&[name]))
    }

    /// Takes who is next, who wants so much.
    fn next(line: &mut Line<(u8, u64)>) -> Option<(u8, u64)> {
        let (at, &(_, amount)) = line.in_order().next()?;
        line.take(at, amount)
    }

    #[test]
    fn one_of_many_reads_does_not_wait_for_the_others_of_another_blob() {
        let mut line = Line::new();
        (0..1000).for_each(|_| line.push(blob(1), (1, 10)));
        assert!((0..5).all(|_| next(&mut line) == Some((1, 10))));
        line.push(blob(2), (2, 10));
        let waits = (0..).take_while(|_| next(&mut line).unwrap().0 != 2).count();
        assert!(waits <= 1, "{waits} went before");
    }

    #[test]
    fn who_comes_again_and_again_gets_no_more_than_who_waits() {
        let mut line = Line::new();
        (0..1000).for_each(|_| line.push(blob(1), (1, 10)));
        line.push(blob(2), (2, 10));
        let mut got = [0; 3];
        for _ in 0..100 {
            let (name, _) = next(&mut line).unwrap();
            got[usize::from(name)] += 1;
            if name == 2 {
                line.push(blob(2), (2, 10));
            }
        }
        assert_eq!(got, [0, 50, 50]);
    }

    #[test]
    fn what_is_fair_is_counted_in_what_is_given_and_not_in_turns() {
        let mut line = Line::new();
        (0..200).for_each(|_| line.push(blob(1), (1, 1)));
        (0..200).for_each(|_| line.push(blob(2), (2, 9)));
        let mut got = [0_u64; 3];
        for _ in 0..100 {
            let (name, amount) = next(&mut line).unwrap();
            got[usize::from(name)] += amount;
        }
        assert!(got[1].abs_diff(got[2]) <= 9, "{got:?}");
    }

    #[test]
    fn those_of_one_blob_go_in_the_order_in_which_they_came() {
        let mut line = Line::new();
        (0..10).for_each(|n| line.push(None, (n, 1)));
        line.retain(|(n, _)| n % 2 == 0);
        assert!(line.any(|(n, _)| *n == 8) && !line.any(|(n, _)| *n == 7));
        assert_eq!(std::iter::from_fn(|| next(&mut line)).map(|(n, _)| n).collect::<Vec<_>>(), [0, 2, 4, 6, 8]);
    }

    proptest! {
        #[test]
        fn nobody_is_lost_and_no_blob_gets_ahead_of_another_that_waits(
            steps in prop::collection::vec((0_u8..5, 1_u64..20, any::<bool>()), 1..200),
        ) {
            let (mut line, mut pushed, mut taken) = (Line::new(), 0, 0);
            // What was given while all of these have waited.
            let mut got: BTreeMap<u8, u64> = BTreeMap::new();
            for (name, amount, is_push) in steps {
                if is_push {
                    line.push(blob(name), (name, amount));
                    pushed += 1;
                } else if let Some((name, amount)) = next(&mut line) {
                    taken += 1;
                    *got.entry(name).or_default() += amount;
                }
                let waits: Vec<u8> = (0..5).filter(|n| line.any(|(name, _)| name == n)).collect();
                got.retain(|name, _| waits.contains(name));
                if got.len() < waits.len() {
                    // Somebody new: counted from here.
                    got = waits.iter().map(|name| (*name, 0)).collect();
                }
                let (least, most) = (got.values().min().copied(), got.values().max().copied());
                prop_assert!(most.unwrap_or(0) - least.unwrap_or(0) <= 2 * 20, "{:?}", got);
                prop_assert!(line.marks.len() <= 5);
            }
            while next(&mut line).is_some() {
                taken += 1;
            }
            prop_assert_eq!(pushed, taken);
            prop_assert!(line.waiting.is_empty());
        }
    }
}
