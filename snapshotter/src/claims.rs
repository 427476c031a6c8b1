//! Who works on which name: calls about one snapshot go one after the other, calls about different ones at the same time.

use std::{collections::HashMap, fmt, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

type Lock = Arc<RwLock<()>>;

/// The names that somebody works on or waits for.
#[derive(Debug, Default)]
pub(crate) struct Names(Mutex<HashMap<String, Lock>>);

/// How a name is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Need {
    /// It must not change meanwhile; others may need the same.
    Steady,
    /// Nobody else may need it meanwhile.
    Alone,
}

enum Guard {
    Steady(#[expect(dead_code, reason = "held, not used")] OwnedRwLockReadGuard<()>),
    Alone(#[expect(dead_code, reason = "held, not used")] OwnedRwLockWriteGuard<()>),
}

/// One name, waited for or held, until this is dropped.
struct Hold {
    names: Arc<Names>,
    name: String,
    /// None while it waits.
    guard: Option<Guard>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut names = self.names.0.lock();
        self.guard = None;
        // The map's own is the last one: nobody holds it or waits for it, and nobody can begin to under this lock.
        if names.get(&self.name).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            names.remove(&self.name);
        }
    }
}

/// Names that are held until this is dropped.
pub(crate) struct Claim(Vec<Hold>);

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Claim")
    }
}

impl Names {
    /// Waits until every one of `wanted` is free as needed, and holds them. All are taken in the order of their names, so that two calls never wait for each
    /// other; who holds a claim asks for no further one whose name may come before.
    pub(crate) async fn claim(self: &Arc<Self>, mut wanted: Vec<(String, Need)>) -> Claim {
        // Of a name that is wanted twice the stronger need comes first and is kept.
        wanted.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
        wanted.dedup_by(|later, earlier| later.0 == earlier.0);
        let mut claim = Claim(Vec::with_capacity(wanted.len()));
        for (name, need) in wanted {
            let mut hold = Hold { names: Arc::clone(self), name, guard: None };
            let lock = Arc::clone(self.0.lock().entry(hold.name.clone()).or_default());
            hold.guard = Some(match need {
                Need::Steady => Guard::Steady(lock.read_owned().await),
                Need::Alone => Guard::Alone(lock.write_owned().await),
            });
            claim.0.push(hold);
        }
        claim
    }

    /// How many names are held or waited for.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.0.lock().len()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, future::join_all};

    use super::*;

    fn names(list: &[(&str, Need)]) -> Vec<(String, Need)> {
        list.iter().map(|(name, need)| ((*name).to_owned(), *need)).collect()
    }

    #[tokio::test]
    async fn a_name_is_held_by_one_alone_or_by_many_that_need_it_steady() {
        let all = Arc::new(Names::default());
        let first = all.claim(names(&[("a", Need::Steady)])).await;
        let second = all.claim(names(&[("a", Need::Steady), ("b", Need::Alone)])).await;
        assert!(all.claim(names(&[("a", Need::Alone)])).now_or_never().is_none());
        drop((first, second));
        let alone = all.claim(names(&[("a", Need::Steady), ("a", Need::Alone)])).await;
        assert!(all.claim(names(&[("a", Need::Steady)])).now_or_never().is_none(), "the stronger need counts");
        drop(alone);
        assert_eq!(all.len(), 0, "names are forgotten once nobody needs them, also those whose wait was given up");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn claims_in_any_order_end() {
        let all = Arc::new(Names::default());
        let mut tasks = tokio::task::JoinSet::new();
        for i in 0..200_usize {
            let all = Arc::clone(&all);
            tasks.spawn(async move {
                let mut list = names(&[("a", Need::Alone), ("b", Need::Steady), ("c", Need::Alone)]);
                list.rotate_left(i % 3);
                let claim = all.claim(list).await;
                tokio::task::yield_now().await;
                drop(claim);
            });
        }
        tasks.join_all().await;
        assert_eq!(all.len(), 0);
        assert!(join_all([all.claim(vec![])]).now_or_never().is_some(), "nothing is needed: nothing is waited for");
    }
}
