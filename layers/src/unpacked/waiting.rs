//! Who waits for which pieces of a layer that is decoded in order, and where its decoder goes next.

use std::collections::BTreeMap;

use bytes::Bytes;
use penstock_blob::{Purpose, ReadError};
use tokio::sync::oneshot;

/// What a reader is told.
pub(super) type Answer = Result<Bytes, ReadError>;

#[derive(Debug)]
pub(super) struct Waiter {
    purpose: Purpose,
    tell: oneshot::Sender<Answer>,
}

/// Readers by the number of the piece. As many as there are reads: each waits for what it asked for at once.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    pub(super) readers: BTreeMap<usize, Vec<Waiter>>,
    /// Whether a pass goes on.
    pub(super) is_running: bool,
    /// The layer cannot be asked for any more.
    pub(super) is_gone: bool,
}

/// What the decoder does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Next {
    /// It goes to this piece, the lowest that is waited for there.
    pub(super) piece: usize,
    /// The highest that is waited for.
    pub(super) last: usize,
    /// Whether anybody waits for something, and nobody has it read ahead only.
    pub(super) purpose: Purpose,
}

impl Waiting {
    pub(super) fn add(&mut self, piece: usize, purpose: Purpose) -> oneshot::Receiver<Answer> {
        let (tell, answer) = oneshot::channel();
        self.readers.entry(piece).or_default().push(Waiter { purpose, tell });
        answer
    }

    /// Where a decoder goes that stands at piece `at`; `None` when nobody waits. Forward as long as somebody waits there for whom it is demanded: no reader of
    /// pieces behind can hold him up, and none waits for more than two passes. What is only read ahead holds up nobody.
    pub(super) fn next(&mut self, at: usize) -> Option<Next> {
        self.readers.retain(|_, waiters| {
            waiters.retain(|waiter| !waiter.tell.is_closed());
            !waiters.is_empty()
        });
        let is_demanded = |(_, waiters): (&usize, &Vec<Waiter>)| waiters.iter().any(|w| w.purpose == Purpose::Demand);
        let (mut ahead, mut behind) = (self.readers.range(at..), self.readers.range(..at));
        let (first_ahead, first_behind) = (ahead.clone().next(), behind.clone().next());
        let (is_forward, is_back) = (ahead.any(is_demanded), behind.any(is_demanded));
        let is_back_first = is_back && !is_forward;
        let lowest = if is_back_first { first_behind } else { first_ahead.or(first_behind) };
        let purpose = if is_forward || is_back { Purpose::Demand } else { Purpose::Ahead };
        let last = *self.readers.last_key_value()?.0;
        lowest.map(|(&piece, _)| Next { piece, last, purpose })
    }

    /// This piece is here.
    pub(super) fn answer(&mut self, piece: usize, bytes: &Bytes) {
        for waiter in self.readers.remove(&piece).unwrap_or_default() {
            // An error: he waits no more.
            let _gone = waiter.tell.send(Ok(bytes.clone()));
        }
    }

    /// These pieces cannot be had.
    pub(super) fn fail(&mut self, pieces: std::ops::Range<usize>, error: &ReadError) {
        let mut rest = self.readers.split_off(&pieces.start);
        let mut after = rest.split_off(&pieces.end);
        self.readers.append(&mut after);
        for waiter in rest.into_values().flatten() {
            let _gone = waiter.tell.send(Err(error.clone()));
        }
    }

    /// Nobody serves them: they are told so by the end of their channels.
    pub(super) fn abandon(&mut self) {
        (self.is_running, self.readers) = (false, BTreeMap::new());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demand_goes_before_ahead_forward_before_back_and_who_left_is_forgotten() {
        use Purpose::{Ahead, Demand};
        let next = |readers: &[(usize, Purpose)], at| {
            let mut waiting = Waiting::default();
            let _held: Vec<_> = readers.iter().map(|&(piece, purpose)| waiting.add(piece, purpose)).collect();
            waiting.next(at).map(|next| (next.piece, next.last, next.purpose))
        };
        assert_eq!(next(&[], 5), None);
        assert_eq!(next(&[(7, Ahead), (9, Ahead)], 5), Some((7, 9, Ahead)));
        assert_eq!(next(&[(2, Ahead), (9, Ahead)], 5), Some((9, 9, Ahead)), "what is ahead first");
        assert_eq!(next(&[(2, Demand), (9, Ahead)], 5), Some((2, 9, Demand)), "but nobody waits for that");
        assert_eq!(next(&[(2, Demand), (7, Ahead), (9, Demand)], 5), Some((7, 9, Demand)), "in order");
        assert_eq!(next(&[(2, Ahead), (3, Demand)], 5), Some((2, 3, Demand)));
        let mut waiting = Waiting::default();
        drop(waiting.add(3, Demand));
        assert_eq!(waiting.next(0), None);
    }

    #[test]
    fn those_who_cannot_be_served_are_told_and_the_others_wait_on() {
        let mut waiting = Waiting::default();
        let mut answers: Vec<_> = (0..4).map(|piece| waiting.add(piece, Purpose::Demand)).collect();
        waiting.fail(1..3, &ReadError::Stopping);
        waiting.answer(3, &Bytes::from_static(b"three"));
        assert!(answers[0].try_recv().is_err() && waiting.next(0).is_some());
        for nth in [1, 2] {
            assert_eq!(answers[nth].try_recv(), Ok(Err(ReadError::Stopping)));
        }
        assert_eq!(answers[3].try_recv(), Ok(Ok(Bytes::from_static(b"three"))));
    }
}
