//! What was said lately, so that it is not said again for each layer of an image and each try of a pull.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// Sayings remembered at once; beyond, the oldest may be said again.
const MOST: usize = 256;
/// How long one is not said again.
const QUIET: Duration = Duration::from_secs(3600);

/// What was said lately, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Told {
    sayings: Mutex<VecDeque<(Instant, String, String)>>,
}

impl Told {
    /// Whether `why` was not said of `image` lately; from now on it was.
    pub(super) fn is_news(&self, image: &str, why: &str) -> bool {
        self.is_news_at(Instant::now(), image, why)
    }

    fn is_news_at(&self, now: Instant, image: &str, why: &str) -> bool {
        let mut sayings = self.sayings.lock();
        while sayings.front().is_some_and(|(at, ..)| now.saturating_duration_since(*at) >= QUIET) {
            sayings.pop_front();
        }
        if sayings.iter().any(|(_, of, said)| of == image && said == why) {
            return false;
        }
        if sayings.len() == MOST {
            sayings.pop_front();
        }
        sayings.push_back((now, image.to_owned(), why.to_owned()));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_said_once_for_an_image_until_it_is_long_ago() {
        let (told, now) = (Told::default(), Instant::now());
        for (image, why) in [("a", "tar"), ("b", "tar"), ("a", "registry"), ("", "tar")] {
            assert!(told.is_news_at(now, image, why) && !told.is_news_at(now, image, why), "{image} {why}");
        }
        assert!(!told.is_news_at(now + QUIET - Duration::from_secs(1), "a", "tar"));
        assert!(told.is_news_at(now + QUIET, "a", "tar"));
        for nth in 0..2 * MOST {
            assert!(told.is_news_at(now + QUIET, "c", &nth.to_string()));
        }
        assert_eq!(told.sayings.lock().len(), MOST);
    }
}
