//! One at a time for each key, any number of keys at once.

use std::{collections::HashMap, hash::Hash, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

/// Turns by key. Holds an entry for each key that somebody has or waits for, which callers bound.
#[derive(Debug)]
pub(crate) struct Turns<K> {
    keys: Mutex<HashMap<K, Arc<tokio::sync::Mutex<()>>>>,
}

/// A turn; over when dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    _guard: OwnedMutexGuard<()>,
}

impl<K> Default for Turns<K> {
    fn default() -> Self {
        Self { keys: Mutex::default() }
    }
}

impl<K: Eq + Hash> Turns<K> {
    /// Waits until nobody else has `key`. Who waits longest is next.
    pub(crate) async fn take(&self, key: K) -> Turn {
        let lock = {
            let mut keys = self.keys.lock();
            // Ours is the only count of one that nobody has or waits for.
            keys.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(keys.entry(key).or_default())
        };
        Turn { _guard: lock.lock_owned().await }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_key_has_one_turn_at_a_time_and_is_forgotten_after_the_last() {
        let turns = Turns::default();
        let first = turns.take("a").await;
        assert!(turns.take("a").now_or_never().is_none());
        let other = turns.take("b").now_or_never();
        assert!(other.is_some(), "another key does not wait");
        let next = turns.take("a");
        drop(first);
        let second = next.await;
        drop((other, second));
        let _third = turns.take("c").await;
        assert_eq!(turns.keys.lock().len(), 1);
    }
}
