//! Many durations, summed up.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Three digits: a duration is known to 0.1 %.
const DIGITS: u8 = 3;
/// The longest duration told apart from longer ones: 10 minutes, in nanoseconds.
const LONGEST: u64 = 600_000_000_000;

/// Durations as they are measured.
#[derive(Debug)]
pub struct Durations(Histogram<u64>);

/// What is told about many durations, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Sample {
    /// How many.
    pub n: u64,
    /// The shortest.
    pub min_seconds: f64,
    /// Half of them were no longer.
    pub median_seconds: f64,
    /// 99 % of them were no longer; below 100 samples this is the longest.
    pub p99_seconds: f64,
    /// 99.9 % of them were no longer; below 1000 samples this is the longest.
    pub p999_seconds: f64,
    /// The longest.
    pub max_seconds: f64,
}

impl Durations {
    /// None yet.
    ///
    /// # Errors
    /// None in practice: the bounds are constants that the histogram takes.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self(Histogram::new_with_bounds(1, LONGEST, DIGITS)?))
    }

    /// Adds one.
    pub fn add(&mut self, duration: Duration) {
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(LONGEST);
        self.0.saturating_record(nanoseconds.max(1));
    }

    /// Adds all of `other`.
    ///
    /// # Errors
    /// None in practice: both have the same bounds.
    pub fn join(&mut self, other: &Self) -> anyhow::Result<()> {
        Ok(self.0.add(&other.0)?)
    }

    /// The sum of what was added.
    #[must_use]
    pub fn sample(&self) -> Sample {
        let seconds = |nanoseconds: u64| Duration::from_nanos(nanoseconds).as_secs_f64();
        let at = |quantile| seconds(self.0.value_at_quantile(quantile));
        Sample {
            n: self.0.len(),
            min_seconds: seconds(self.0.min()),
            median_seconds: at(0.5),
            p99_seconds: at(0.99),
            p999_seconds: at(0.999),
            max_seconds: seconds(self.0.max()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_known_to_a_tenth_of_a_percent() {
        let mut durations = Durations::new().unwrap();
        let mut more = Durations::new().unwrap();
        (1..=500).for_each(|ms| durations.add(Duration::from_millis(ms)));
        (501..=1000).for_each(|ms| more.add(Duration::from_millis(ms)));
        durations.join(&more).unwrap();
        let sample = durations.sample();
        assert_eq!(sample.n, 1000);
        for (found, expected) in [
            (sample.min_seconds, 0.001),
            (sample.median_seconds, 0.5),
            (sample.p99_seconds, 0.99),
            (sample.p999_seconds, 0.999),
            (sample.max_seconds, 1.0),
        ] {
            assert!((found - expected).abs() <= expected * 0.001, "{found} is not {expected}");
        }
    }
}
