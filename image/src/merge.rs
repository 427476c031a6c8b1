//! Merging the indexes of a stack into one map: the top-most layer wins.
//!
//! A pure k-way sweep over the device. It holds one entry per layer plus what it was fed and has not used, so memory
//! grows with the number of layers and not with the number of extents; time is O(extents x log layers). Ranges that
//! read as zeros are dropped from the result: what a map does not cover reads as zeros already.

use std::{cmp::Reverse, collections::BinaryHeap, collections::VecDeque};

use crate::lsmt::{Entry, MAX_EXTENT_SECTORS};

/// What a merge wants or has.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The next entries of this layer are needed: [`Merge::feed`], or [`Merge::end`] if there are none.
    Need(usize),
    /// The next extent of the merged map, with the tag that it was fed with.
    Extent(Entry),
    /// All layers are used up.
    Done,
}

/// A merge in progress. Layers are numbered from 0, the bottom.
#[derive(Debug)]
pub(crate) struct Merge {
    queues: Vec<Queue>,
    /// Layers whose next entry starts beyond the sweep, by start.
    ahead: BinaryHeap<Reverse<(u64, u8)>>,
    /// Layers whose current entry has been reached, by rank: the top-most first.
    under: BinaryHeap<u8>,
    /// Layers whose current entry is not known.
    idle: Vec<u8>,
    /// First sector not swept yet.
    at: u64,
    /// The last extent, held back while the next may still join it.
    last: Option<Entry>,
}

#[derive(Debug, Default)]
struct Queue {
    entries: VecDeque<Entry>,
    current: Option<Entry>,
    ended: bool,
}

impl Merge {
    /// A merge of so many layers (at most 255 are ever given: the tag of an extent has 8 bits).
    pub(crate) fn new(layers: u8) -> Self {
        Self {
            queues: (0..layers).map(|_| Queue::default()).collect(),
            ahead: BinaryHeap::new(),
            under: BinaryHeap::new(),
            idle: (0..layers).collect(),
            at: 0,
            last: None,
        }
    }

    /// Adds the next entries of a layer, sorted and disjoint as [`crate::lsmt::IndexCheck`] lets them through.
    pub(crate) fn feed(&mut self, layer: usize, entries: impl IntoIterator<Item = Entry>) {
        self.queues[layer].entries.extend(entries);
    }

    /// Says that a layer has no more entries.
    pub(crate) fn end(&mut self, layer: usize) {
        self.queues[layer].ended = true;
    }

    /// The next thing to do.
    pub(crate) fn step(&mut self) -> Step {
        loop {
            if let Some(layer) = self.place_idle() {
                return Step::Need(layer);
            }
            let Some(swept) = self.sweep() else { return self.last.take().map_or(Step::Done, Step::Extent) };
            if let Some(extent) = swept.and_then(|piece| self.join(piece)) {
                return Step::Extent(extent);
            }
        }
    }

    /// Gives each idle layer its next entry; the layer that has none at hand, if one is met.
    fn place_idle(&mut self) -> Option<usize> {
        while let Some(&layer) = self.idle.last() {
            let queue = &mut self.queues[usize::from(layer)];
            let Some(entry) = queue.entries.pop_front() else {
                if !queue.ended {
                    return Some(usize::from(layer));
                }
                self.idle.pop();
                continue;
            };
            if entry.end() <= self.at {
                continue;
            }
            queue.current = Some(entry);
            self.idle.pop();
            self.ahead.push(Reverse((entry.start, layer)));
        }
        None
    }

    /// Moves the sweep on: the outer `None` when nothing is left, the inner one when there is nothing to show for the
    /// move.
    fn sweep(&mut self) -> Option<Option<Entry>> {
        let Some(&top) = self.under.peek() else {
            let Reverse((start, layer)) = self.ahead.pop()?;
            self.at = self.at.max(start);
            self.under.push(layer);
            return Some(None);
        };
        let Some(entry) = self.queues[usize::from(top)].current.filter(|entry| entry.end() > self.at) else {
            self.under.pop();
            self.idle.push(top);
            return Some(None);
        };
        let mut until = entry.end();
        if let Some(&Reverse((start, layer))) = self.ahead.peek()
            && start < until
        {
            self.ahead.pop();
            self.under.push(layer);
            if layer < top || start <= self.at {
                return Some(None);
            }
            until = start;
        }
        let from = self.at.max(entry.start);
        self.at = until;
        // A piece of an entry is no longer than the entry.
        let sectors = u32::try_from(until - from).unwrap_or(entry.sectors);
        let moffset = entry.moffset + (from - entry.start);
        Some((!entry.zeroed).then_some(Entry { start: from, sectors, moffset, zeroed: false, tag: entry.tag }))
    }

    /// Joins a piece to the last extent if it continues it, else gives the last one out.
    fn join(&mut self, piece: Entry) -> Option<Entry> {
        if let Some(last) = &mut self.last {
            let sectors = last.sectors + piece.sectors;
            let continues = last.end() == piece.start && last.moffset + u64::from(last.sectors) == piece.moffset;
            if continues && last.tag == piece.tag && sectors <= MAX_EXTENT_SECTORS {
                last.sectors = sectors;
                return None;
            }
        }
        self.last.replace(piece)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A layer as (gap, length, zeroed, tag) tuples.
    fn layer() -> impl Strategy<Value = Vec<Entry>> {
        proptest::collection::vec((0..6_u64, 1..9_u32, any::<bool>(), 0..2_u8), 0..12).prop_map(|parts| {
            let (mut start, mut moffset) = (0, 8);
            let place = |(gap, sectors, zeroed, tag): (u64, u32, bool, u8)| {
                let entry = Entry { start: start + gap, sectors, moffset, zeroed, tag };
                start = entry.end();
                moffset += u64::from(sectors) + gap % 2;
                entry
            };
            parts.into_iter().map(place).collect()
        })
    }

    fn merge(layers: &[Vec<Entry>], piece: usize) -> Vec<Entry> {
        let mut merge = Merge::new(u8::try_from(layers.len()).unwrap());
        let mut rest: Vec<_> = layers.iter().map(|l| l.chunks(piece)).collect();
        let mut merged = Vec::new();
        loop {
            match merge.step() {
                Step::Need(layer) => match rest[layer].next() {
                    Some(entries) => merge.feed(layer, entries.iter().copied()),
                    None => merge.end(layer),
                },
                Step::Extent(extent) => merged.push(extent),
                Step::Done => return merged,
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1500) })]
        #[test]
        fn the_top_most_layer_wins_at_every_sector(layers in proptest::collection::vec(layer(), 1..7), piece in 1..5_usize) {
            let mut layers = layers;
            let mut model = [None; 200];
            for (nth, entries) in (0_u8..).zip(&mut layers) {
                for entry in entries {
                    entry.tag += 2 * nth;
                    for i in 0..u64::from(entry.sectors) {
                        let place = (!entry.zeroed).then_some((entry.tag, entry.moffset + i));
                        model[usize::try_from(entry.start + i).unwrap()] = place;
                    }
                }
            }
            let mut got = [None; 200];
            let mut end = 0;
            for extent in merge(&layers, piece) {
                prop_assert!(extent.start >= end && extent.sectors > 0 && !extent.zeroed, "{extent:?}");
                end = extent.end();
                for i in 0..u64::from(extent.sectors) {
                    got[usize::try_from(extent.start + i).unwrap()] = Some((extent.tag, extent.moffset + i));
                }
            }
            prop_assert_eq!(&got[..], &model[..]);
        }
    }

    #[test]
    fn neighbours_join_up_to_the_longest_extent() {
        let entry = |start, sectors, moffset| Entry { start, sectors, moffset, zeroed: false, tag: 0 };
        let layer =
            vec![entry(0, 16_000, 8), entry(16_000, 383, 16_008), entry(16_383, 1, 16_391), entry(16_384, 1, 8)];
        let merged = merge(&[layer], 2);
        assert_eq!(merged, [entry(0, 16_383, 8), entry(16_383, 1, 16_391), entry(16_384, 1, 8)]);
        assert_eq!(merge(&[vec![], vec![]], 1), []);
    }
}
