//! A set of grains, as spans that do not touch.

use std::collections::BTreeMap;

/// Spans by their start; each maps to its end. None is empty, no two touch.
#[derive(Debug, Default)]
pub(super) struct Spans(BTreeMap<u64, u64>);

impl Spans {
    /// Adds `start..end`; `fresh` is told each part that was not in the set, in ascending order. An empty span adds nothing.
    pub(super) fn add(&mut self, start: u64, end: u64, mut fresh: impl FnMut(u64, u64)) {
        if start >= end {
            return;
        }
        let (mut from, mut until, mut next) = (start, end, start);
        // The one before may reach into or touch the new one; those behind begin within it, or where it ends.
        if let Some((&first, &last)) = self.0.range(..start).next_back()
            && last >= start
        {
            (from, next) = (first, last);
            until = until.max(last);
        }
        while let Some((&first, &last)) = self.0.range(start..=end).next() {
            if next < first.min(end) {
                fresh(next, first.min(end));
            }
            next = next.max(last);
            until = until.max(last);
            self.0.remove(&first);
        }
        if next < end {
            fresh(next, end);
        }
        self.0.insert(from, until);
    }

    /// Tells `part` each part of `start..end` that is in the set, in ascending order.
    pub(super) fn within(&self, start: u64, end: u64, mut part: impl FnMut(u64, u64)) {
        let before = self.0.range(..start).next_back();
        for (&first, &last) in before.into_iter().chain(self.0.range(start..end.max(start))) {
            let (first, last) = (first.max(start), last.min(end));
            if first < last {
                part(first, last);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_set_of_spans_is_a_set_of_numbers(adds in prop::collection::vec((0_u64..40, 0_u64..12), 0..30), (at, len) in (0_u64..50, 0_u64..20)) {
            let (mut spans, mut model) = (Spans::default(), BTreeSet::new());
            for (start, len) in adds {
                let mut told = Vec::new();
                spans.add(start, start + len, |first, end| {
                    assert!(first < end);
                    told.extend(first..end);
                });
                let expected: Vec<u64> = (start..start + len).filter(|n| model.insert(*n)).collect();
                prop_assert_eq!(told, expected);
            }
            let mut last = None;
            for (&start, &end) in &spans.0 {
                prop_assert!(start < end && last.is_none_or(|last| last < start), "no two touch");
                last = Some(end);
            }
            let mut found = Vec::new();
            spans.within(at, at + len, |first, end| found.extend(first..end));
            let expected: Vec<u64> = (at..at + len).filter(|n| model.contains(n)).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
