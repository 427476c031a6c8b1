//! The frames decoded last, within a bound of bytes.

use std::{collections::VecDeque, ops::Range};

use bytes::Bytes;
use penstock_blob::Digest;

/// Most frames kept, however small: they are looked through one by one.
const MAX_FRAMES: usize = 64;

/// A frame: the archive's digest and the frame's number.
type Key = (Digest, usize);

/// Frames, the one used last at the end.
#[derive(Debug)]
pub(crate) struct Recent {
    frames: VecDeque<(Key, Bytes)>,
    bytes: usize,
    most: usize,
}

impl Recent {
    pub(crate) fn new(most: usize) -> Self {
        Self { frames: VecDeque::new(), bytes: 0, most }
    }

    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn find(&mut self, archive: &Digest, number: usize) -> Option<Bytes> {
        let at = self.frames.iter().position(|((digest, nth), _)| *nth == number && digest == archive)?;
        let frame = self.frames.remove(at)?;
        let bytes = frame.1.clone();
        self.frames.push_back(frame);
        Some(bytes)
    }

    pub(crate) fn keep(&mut self, archive: Digest, number: usize, bytes: Bytes) {
        self.forget(&archive, &(number..number + 1));
        self.bytes += bytes.len();
        self.frames.push_back(((archive, number), bytes));
        while self.bytes > self.most || self.frames.len() > MAX_FRAMES {
            let Some((_, bytes)) = self.frames.pop_front() else { break };
            self.bytes -= bytes.len();
        }
    }

    pub(crate) fn forget(&mut self, archive: &Digest, numbers: &Range<usize>) {
        self.frames.retain(|((digest, nth), _)| !numbers.contains(nth) || digest != archive);
        self.bytes = self.frames.iter().map(|(_, bytes)| bytes.len()).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(len: usize) -> Bytes {
        vec![1; len].into()
    }

    #[test]
    fn what_was_used_last_stays_and_the_bound_holds() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let mut recent = Recent::new(30);
        recent.keep(a, 1, frame(10));
        recent.keep(a, 2, frame(10));
        recent.keep(b, 1, frame(10));
        assert!(recent.find(&a, 1).is_some());
        recent.keep(b, 2, frame(10));
        assert!(recent.find(&a, 2).is_none(), "used least recently");
        assert!(recent.find(&a, 1).is_some() && recent.find(&b, 1).is_some() && recent.find(&b, 2).is_some());
        recent.keep(b, 3, frame(31));
        assert!(recent.find(&b, 3).is_none() && recent.bytes == 0, "larger than the bound: nothing is kept");
        (0..200).for_each(|nth| recent.keep(a, nth, frame(0)));
        assert_eq!(recent.frames.len(), MAX_FRAMES);
    }

    #[test]
    fn what_is_forgotten_is_gone_and_nothing_else() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let mut recent = Recent::new(100);
        (0..4).for_each(|nth| recent.keep(a, nth, frame(5)));
        recent.keep(b, 1, frame(5));
        recent.forget(&a, &(1..3));
        let kept: Vec<bool> = (0..4).map(|nth| recent.find(&a, nth).is_some()).collect();
        assert_eq!(kept, [true, false, false, true]);
        assert!(recent.find(&b, 1).is_some());
        assert_eq!(recent.bytes, 15);
    }
}
