//! The one retry policy. Everything else fails at once and says whether another try may help.

use std::time::Duration;

use crate::{
    config::Config,
    failure::{Class, Failure, Remedy},
};

/// How many rounds an answer gets that is wrong rather than missing: a broken proxy may do it once, a server that cannot serve
/// ranges does it always.
const DOUBTFUL_ROUNDS: u32 = 3;

/// What to do after a round that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Wait so long, then try again.
    Wait(Duration),
    /// Stop.
    GiveUp,
}

/// The failed rounds of one request, and what follows from them: exponential waits with full jitter, `Retry-After` honoured,
/// doubtful answers tried a few times. The deadline is the caller's: it simply stops waiting.
#[derive(Debug)]
pub(crate) struct Retry {
    first: Duration,
    max: Duration,
    rounds: u32,
    doubtful: u32,
    /// Whether a host that does not exist is as doubtful as a wrong answer.
    names_are_final: bool,
    random: fastrand::Rng,
}

impl Retry {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            first: config.backoff_first,
            max: config.backoff_max,
            rounds: 0,
            doubtful: 0,
            names_are_final: false,
            random: fastrand::Rng::new(),
        }
    }

    /// For somebody who has just typed the name: a host that does not exist is most likely a slip, and he should hear of it in
    /// moments. A read of an attached image goes on asking instead: its host did exist, and will again.
    pub(crate) fn typed(config: &Config) -> Self {
        Self { names_are_final: true, ..Self::new(config) }
    }

    /// Some bytes came: what follows is a new trouble.
    pub(crate) const fn progressed(&mut self) {
        self.rounds = 0;
        self.doubtful = 0;
    }

    pub(crate) fn after(&mut self, failure: &Failure) -> Next {
        match failure.remedy() {
            Remedy::Patience if self.names_are_final && failure.class == Class::Unresolved => self.doubtful += 1,
            Remedy::None => return Next::GiveUp,
            Remedy::Doubt => self.doubtful += 1,
            Remedy::Patience => {}
        }
        if self.doubtful >= DOUBTFUL_ROUNDS {
            return Next::GiveUp;
        }
        let ceiling = self.first.saturating_mul(2u32.saturating_pow(self.rounds)).min(self.max);
        self.rounds = self.rounds.saturating_add(1);
        let jitter = ceiling.mul_f64(self.random.f64());
        Next::Wait(failure.retry_after.unwrap_or_default().saturating_add(jitter))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Class;

    fn retry(seed: u64) -> Retry {
        let config = Config {
            backoff_first: Duration::from_millis(100),
            backoff_max: Duration::from_secs(1),
            ..Config::default()
        };
        Retry { random: fastrand::Rng::with_seed(seed), ..Retry::new(&config) }
    }

    fn waits(retry: &mut Retry, failure: &Failure, rounds: usize) -> Vec<Next> {
        (0..rounds).map(|_| retry.after(failure)).collect()
    }

    #[test]
    fn waits_grow_to_a_ceiling_and_are_spread() {
        let failure = Failure::new(Class::Server, "x");
        let mut longest = [Duration::ZERO; 8];
        for seed in 0..500 {
            for (at, next) in waits(&mut retry(seed), &failure, 8).into_iter().enumerate() {
                let Next::Wait(wait) = next else { panic!("gave up") };
                let ceiling = Duration::from_millis(100 << at).min(Duration::from_secs(1));
                assert!(wait <= ceiling, "round {at}: {wait:?}");
                longest[at] = longest[at].max(wait);
            }
        }
        assert!(longest[0] > Duration::from_millis(90) && longest[7] > Duration::from_millis(900), "{longest:?}");
    }

    #[test]
    fn a_server_that_names_a_time_is_never_asked_sooner() {
        let failure = Failure { retry_after: Some(Duration::from_secs(7)), ..Failure::new(Class::Throttled, "x") };
        for seed in 0..50 {
            let Next::Wait(wait) = retry(seed).after(&failure) else { panic!("gave up") };
            assert!(wait >= Duration::from_secs(7) && wait <= Duration::from_millis(7100), "{wait:?}");
        }
    }

    #[test]
    fn doubtful_answers_get_a_few_rounds_and_final_ones_none() {
        let mut doubt = retry(1);
        let answers = waits(&mut doubt, &Failure::wrong("x"), 3);
        assert!(matches!(answers[..], [Next::Wait(_), Next::Wait(_), Next::GiveUp]));
        assert_eq!(retry(1).after(&Failure::new(Class::Missing, "x")), Next::GiveUp);
        assert_eq!(retry(1).after(&Failure::denied("x".to_owned())), Next::GiveUp);
    }

    #[test]
    fn a_host_that_does_not_exist_is_final_for_who_typed_it_only() {
        let failure = Failure::new(Class::Unresolved, "x");
        let mut typed = Retry { names_are_final: true, ..retry(1) };
        assert!(matches!(waits(&mut typed, &failure, 3)[..], [Next::Wait(_), Next::Wait(_), Next::GiveUp]));
        assert!(!waits(&mut retry(1), &failure, 20).contains(&Next::GiveUp));
    }

    #[test]
    fn progress_starts_the_count_anew() {
        let mut retry = retry(1);
        waits(&mut retry, &Failure::wrong("x"), 2);
        retry.progressed();
        assert!(matches!(retry.after(&Failure::wrong("x")), Next::Wait(wait) if wait <= Duration::from_millis(100)));
    }

    #[test]
    fn any_number_of_rounds_is_bounded() {
        let mut retry = retry(1);
        retry.rounds = u32::MAX - 1;
        assert!(
            matches!(retry.after(&Failure::new(Class::Connect, "x")), Next::Wait(wait) if wait <= Duration::from_secs(1))
        );
    }
}
