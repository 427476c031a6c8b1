//! How far work is that takes long: so many bytes of so many, in several parts at once.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use super::{note, percent, size};

/// How often is said how far it is.
const NOTE_EVERY: Duration = Duration::from_secs(5);

/// Work in parts, each of so many bytes.
#[derive(Debug)]
pub(crate) struct Progress {
    parts: Vec<Part>,
    total_bytes: u64,
}

/// How many bytes of one part are done.
#[derive(Debug, Default)]
pub(crate) struct Part(AtomicU64);

impl Part {
    pub(crate) fn set(&self, bytes: u64) {
        self.0.store(bytes, Ordering::Relaxed);
    }
}

impl Progress {
    /// Of parts with these sizes, in bytes.
    pub(crate) fn of(sizes: impl IntoIterator<Item = u64>) -> Self {
        let sizes: Vec<u64> = sizes.into_iter().collect();
        Self { parts: sizes.iter().map(|_| Part::default()).collect(), total_bytes: sizes.iter().sum() }
    }

    /// The parts, in the order of their sizes.
    pub(crate) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Waits for `work`, which was `done` to the bytes, and says every few seconds how far it is.
    pub(crate) async fn note_until<T>(&self, done: &str, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        let mut ticks = tokio::time::interval(NOTE_EVERY);
        ticks.tick().await;
        loop {
            tokio::select! {
                biased;
                result = &mut work => return result,
                _ = ticks.tick() => note(format_args!("{done} {}", self.text())),
            }
        }
    }

    fn text(&self) -> String {
        let bytes = self.parts.iter().map(|part| part.0.load(Ordering::Relaxed)).sum();
        format!("{} of {} ({})", size(bytes), size(self.total_bytes), percent(bytes, self.total_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_of_all_parts_is_told_together() {
        let progress = Progress::of([1 << 20, 3 << 20]);
        assert_eq!(progress.text(), "0 B of 4.0 MiB (0%)");
        progress.parts()[0].set(1 << 20);
        progress.parts()[1].set(1 << 20);
        assert_eq!(progress.text(), "2.0 MiB of 4.0 MiB (50%)");
    }
}
