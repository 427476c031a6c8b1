//! Which extents to evict: CLOCK with a second chance. Pure: it sees extents through [`Candidate`] and touches nothing else.
//!
//! An extent enters without credit; the first hit after a fill earns it one round of the hand. So what was read once by a
//! scan goes before what is read again.

use std::collections::BTreeSet;

/// One extent as the hand meets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// Nothing to evict before this extent.
    Skip(u32),
    /// Pinned: never a victim.
    Pinned,
    /// Was hit since the hand came by last; the look took that credit away.
    Hot(u64),
    /// Was not hit. So many bytes would come free.
    Cold(u64),
}

/// A blob whose extents may be evicted.
pub(crate) trait Candidate {
    /// Its number, by which the hand keeps its place when blobs come and go.
    fn number(&self) -> u32;
    /// How many extents it has.
    fn extents(&self) -> u32;
    /// What stands at `extent`; takes its credit away.
    fn look(&self, extent: u32) -> Look;
}

/// Where the hand stands: the next extent to look at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Hand {
    number: u32,
    extent: u32,
}

/// An extent chosen: position in the slice of blobs, and extent.
pub(crate) type Victim = (usize, u32);

/// Rounds of the hand: one that takes credit, one for what was not hit since, one for whatever is not pinned.
const ROUNDS: u32 = 3;

/// Chooses extents worth at least `want` bytes, or all that can be had. `blobs` ascend by number.
pub(crate) fn choose<C: Candidate>(blobs: &[C], hand: &mut Hand, want: u64) -> Vec<Victim> {
    let mut chosen = BTreeSet::new();
    let mut freed = 0;
    for round in 0..ROUNDS {
        let start = blobs.partition_point(|b| b.number() < hand.number);
        // The blob under the hand is met twice: from the hand on first, and up to the hand at the end.
        for step in 0..=blobs.len() {
            let Some((at, blob)) = (start + step).checked_rem(blobs.len()).and_then(|i| Some((i, blobs.get(i)?)))
            else {
                return Vec::new();
            };
            let under = blob.number() == hand.number;
            let from = if step == 0 && under { hand.extent } else { 0 };
            let end = if step == blobs.len() && under { hand.extent.min(blob.extents()) } else { blob.extents() };
            if step == blobs.len() && !under {
                break;
            }
            let mut extent = from;
            while extent < end {
                let (next, bytes) = match blob.look(extent) {
                    Look::Skip(next) => (next.max(extent + 1), 0),
                    Look::Pinned => (extent + 1, 0),
                    Look::Hot(bytes) => (extent + 1, if round + 1 == ROUNDS { bytes } else { 0 }),
                    Look::Cold(bytes) => (extent + 1, bytes),
                };
                if bytes > 0 && chosen.insert((at, extent)) {
                    freed += bytes;
                }
                extent = next;
                if freed >= want {
                    *hand = Hand { number: blob.number(), extent };
                    return chosen.into_iter().collect();
                }
            }
        }
    }
    chosen.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    struct Fake {
        number: u32,
        /// 'c' cold, 'h' hot, 'p' pinned, '.' nothing.
        extents: RefCell<Vec<char>>,
    }

    impl Candidate for Fake {
        fn number(&self) -> u32 {
            self.number
        }
        fn extents(&self) -> u32 {
            u32::try_from(self.extents.borrow().len()).unwrap()
        }
        fn look(&self, extent: u32) -> Look {
            let cell = &mut self.extents.borrow_mut()[extent as usize];
            match *cell {
                '.' => Look::Skip(extent + 1),
                'p' => Look::Pinned,
                'c' => Look::Cold(1),
                _ => {
                    *cell = 'c';
                    Look::Hot(1)
                }
            }
        }
    }

    fn fakes(extents: &[&str]) -> Vec<Fake> {
        (10..).zip(extents).map(|(number, e)| Fake { number, extents: RefCell::new(e.chars().collect()) }).collect()
    }

    #[test]
    fn cold_extents_go_before_hot_ones_and_pinned_ones_never() {
        for (blobs, want, victims) in [
            (vec!["hch", "pc."], 1, vec![(0, 1)]),
            (vec!["hch", "pc."], 2, vec![(0, 1), (1, 1)]),
            (vec!["hch", "pc."], 3, vec![(0, 0), (0, 1), (1, 1)]),
            (vec!["hch", "pc."], 99, vec![(0, 0), (0, 1), (0, 2), (1, 1)]),
            (vec!["ppp", "..."], 1, vec![]),
            (vec![], 1, vec![]),
        ] {
            assert_eq!(choose(&fakes(&blobs), &mut Hand::default(), want), victims, "{blobs:?} want {want}");
        }
    }

    #[test]
    fn the_hand_goes_on_where_it_stopped_and_around() {
        let blobs = fakes(&["ccc", "cc"]);
        let mut hand = Hand::default();
        for victim in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (0, 0)] {
            assert_eq!(choose(&blobs, &mut hand, 1), [victim]);
        }
    }

    #[test]
    fn a_hit_earns_one_round() {
        let blobs = fakes(&["hcc"]);
        let mut hand = Hand::default();
        assert_eq!(choose(&blobs, &mut hand, 1), [(0, 1)]);
        assert_eq!(choose(&blobs, &mut hand, 1), [(0, 2)]);
        assert_eq!(choose(&blobs, &mut hand, 1), [(0, 0)]);
    }
}
