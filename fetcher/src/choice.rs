//! In which order endpoints are asked. Pure.
//!
//! The order of `hosts.toml` holds: it is the operator's, who knows what crosses a paid link and what does not. Latency does not
//! reorder endpoints that work; it only moves one back that is far slower than another, as long as that is known.

use std::time::Duration;

use crate::breaker::Admission;

/// So many times slower than the fastest other one is far slower.
const FAR: u32 = 4;
/// And by at least so much: below it nobody notices.
const NOTICED: Duration = Duration::from_millis(200);

/// One who could be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) admission: Admission,
    /// It lacks the blob, refuses it, or gave wrong bytes of it, lately.
    pub(crate) avoided: bool,
    /// It has requests in flight and nothing comes.
    pub(crate) stalling: bool,
    /// Average time to an answer, while known.
    pub(crate) average: Option<Duration>,
}

/// The indexes of the candidates in the order in which they are asked. Nobody is left out: who is last is asked when all others
/// have failed.
pub(crate) fn order(candidates: &[Candidate]) -> Vec<usize> {
    let usable = |c: &Candidate| !c.avoided && !c.stalling && c.admission == Admission::Open;
    let rank = |at: usize, c: &Candidate| {
        let others = candidates.iter().enumerate().filter(|(other, c)| *other != at && usable(c));
        let fastest = others.filter_map(|(_, c)| c.average).min();
        let slow = match (c.average, fastest) {
            (Some(own), Some(other)) => own > other.saturating_mul(FAR) && own > other.saturating_add(NOTICED),
            _ => false,
        };
        match () {
            () if c.avoided => 3,
            () if c.admission == Admission::Shut => 2,
            () if slow || c.stalling => 1,
            () => 0,
        }
    };
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    order.sort_by_cached_key(|&at| rank(at, &candidates[at]));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Candidate = Candidate { admission: Admission::Open, avoided: false, stalling: false, average: None };

    fn taking(ms: u64) -> Candidate {
        Candidate { average: Some(Duration::from_millis(ms)), ..GOOD }
    }

    #[test]
    fn the_order_of_the_file_holds_among_those_that_work() {
        let shut = Candidate { admission: Admission::Shut, ..GOOD };
        let probe = Candidate { admission: Admission::Probe, ..GOOD };
        let avoided = Candidate { avoided: true, ..GOOD };
        let stalling = Candidate { stalling: true, ..GOOD };
        for (candidates, expected) in [
            (&[][..], vec![]),
            (&[GOOD, GOOD, GOOD], vec![0, 1, 2]),
            (&[taking(300), taking(100), GOOD], vec![0, 1, 2]),
            (&[taking(900), taking(100), GOOD], vec![1, 2, 0]),
            (&[taking(90), taking(10)], vec![0, 1]),
            (&[taking(900), GOOD], vec![0, 1]),
            (&[taking(900), Candidate { admission: Admission::Shut, ..taking(1) }], vec![0, 1]),
            (&[shut, GOOD], vec![1, 0]),
            (&[probe, GOOD], vec![0, 1]),
            (&[avoided, shut, stalling, GOOD], vec![3, 2, 1, 0]),
            (&[shut, shut], vec![0, 1]),
            (&[Candidate { admission: Admission::Shut, ..avoided }, shut], vec![1, 0]),
        ] {
            assert_eq!(order(candidates), expected, "{candidates:?}");
        }
    }
}
