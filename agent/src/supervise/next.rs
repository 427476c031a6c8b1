//! What to do when the agent has ended. Pure.

use std::time::Duration;

use super::Ended;

/// How soon an agent that had served is started again: readers wait.
const SOON: Duration = Duration::from_millis(100);
/// The longest pause before an agent that does not come up is tried again.
const LONGEST: Duration = Duration::from_secs(30);

/// What the supervisor was asked last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// Nothing: what the agent did it did by itself.
    Nothing,
    /// To end, and the agent with it.
    Stop,
    /// To start the agent anew, from its program as it is then.
    Restart,
}

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// End: the agent did as it was told.
    Done,
    /// End: the agent was told to end and failed.
    Unclean,
    /// End: the agent was never ready, and said why by its exit. Most likely its settings are wrong: trying again would hide that.
    NeverReady,
    /// Start it again after this pause.
    Again(Duration),
}

/// How fast an agent that keeps ending is started again.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Runs in a row that were never ready.
    failures: u32,
    /// Whether any run was.
    ever_ready: bool,
}

impl Pace {
    pub(super) fn next(&mut self, ended: &Ended) -> Next {
        self.ever_ready |= ended.was_ready;
        self.failures = if ended.was_ready { 0 } else { self.failures.saturating_add(1) };
        match ended.asked {
            Asked::Stop if ended.status.success() => Next::Done,
            Asked::Stop => Next::Unclean,
            Asked::Restart => Next::Again(Duration::ZERO),
            Asked::Nothing if !self.ever_ready && ended.status.code().is_some() => Next::NeverReady,
            Asked::Nothing => Next::Again(SOON.saturating_mul(2_u32.saturating_pow(self.failures)).min(LONGEST)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt as _, process::ExitStatus};

    use super::*;

    fn ended(wait_status: i32, was_ready: bool, asked: Asked) -> Ended {
        Ended { status: ExitStatus::from_raw(wait_status), was_ready, asked }
    }

    const KILLED: i32 = 9;
    const FAILED: i32 = 1 << 8;

    #[test]
    fn an_agent_that_served_comes_back_at_once_and_one_that_does_not_ever_more_slowly() {
        let mut pace = Pace::default();
        let soon = Next::Again(SOON);
        for _ in 0..100 {
            assert_eq!(pace.next(&ended(KILLED, true, Asked::Nothing)), soon);
        }
        let mut pauses: Vec<Next> = (0..12).map(|_| pace.next(&ended(FAILED, false, Asked::Nothing))).collect();
        assert_eq!(pauses.pop(), Some(Next::Again(LONGEST)));
        assert_eq!(pauses[..2], [Next::Again(SOON * 2), Next::Again(SOON * 4)]);
        assert_eq!(pace.next(&ended(FAILED, true, Asked::Nothing)), soon);
    }

    #[test]
    fn an_agent_that_never_served_and_says_why_is_not_tried_again() {
        assert_eq!(Pace::default().next(&ended(FAILED, false, Asked::Nothing)), Next::NeverReady);
        assert!(matches!(Pace::default().next(&ended(KILLED, false, Asked::Nothing)), Next::Again(_)));
    }

    #[test]
    fn what_was_asked_is_done() {
        assert_eq!(Pace::default().next(&ended(0, true, Asked::Stop)), Next::Done);
        assert_eq!(Pace::default().next(&ended(FAILED, true, Asked::Stop)), Next::Unclean);
        assert_eq!(Pace::default().next(&ended(0, true, Asked::Restart)), Next::Again(Duration::ZERO));
        assert_eq!(Pace::default().next(&ended(KILLED, false, Asked::Restart)), Next::Again(Duration::ZERO));
    }
}
