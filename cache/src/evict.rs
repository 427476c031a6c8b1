//! Making room: the committer's first step. Who has to go is [`crate::policy`]'s choice; this shows it the extents, and evicts.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
};

use crate::{
    entry::Entry,
    policy::{Extents, ROUNDS, Standing, choose},
    room::Goal,
    slots::Slots,
    store::Store,
};

/// Most bytes evicted at once in the background: its holes are punched in about a tenth of a second, then chunks that wait to become
/// durable have their turn.
const BACKGROUND_BYTES: u64 = 256 << 20;
/// Retained blobs go last as long as they are at most one part in this many of the cap; beyond that they are as others, or one scan through
/// an attached image would push out everything else.
const RETAINED_SHARE: u64 = 2;

/// Blobs of which extents may go.
struct Blobs(Vec<(Arc<Entry>, Arc<Slots>)>);

impl Extents for Blobs {
    /// Position among the blobs, and extent.
    type Id = (usize, u32);

    fn each(&self, see: &mut dyn FnMut(Self::Id, &Standing, u64)) {
        for (at, (_, slots)) in self.0.iter().enumerate() {
            slots.each_extent(&mut |extent, standing, bytes| see((at, extent), standing, bytes));
        }
    }
}

/// Evicts what is wanted, as far as it can be had. True when less can be had than somebody waits for.
pub(crate) fn make_room(store: &Arc<Store>) -> bool {
    let goal = store.room().goal();
    if goal == Goal::default() {
        return false;
    }
    retire_empty(store);
    let want = goal.want.min(goal.must.max(BACKGROUND_BYTES));
    let retained: BTreeSet<_> = store.retained.lock().keys().copied().collect();
    let all = store.stored();
    let is_retained = |entry: &Entry| retained.contains(&entry.blob.digest);
    let charged = |(_, slots): &(_, Arc<Slots>)| slots.charged.load(Ordering::Relaxed);
    let kept: u64 = all.iter().filter(|(entry, _)| is_retained(entry)).map(charged).sum();
    let mut freed = 0;
    if kept > store.config.cap_bytes / RETAINED_SHARE {
        freed += evict(store, &Blobs(all), want);
    } else {
        let (last, first) = all.into_iter().partition(|(entry, _)| is_retained(entry));
        freed += evict(store, &Blobs(first), want);
        freed += evict(store, &Blobs(last), goal.must.saturating_sub(freed));
    }
    if freed > 0 && freed < goal.want {
        store.queue().hurry();
    }
    freed < goal.must
}

/// Evicts extents worth `want` bytes of these blobs; the bytes that will come free.
fn evict(store: &Store, blobs: &Blobs, want: u64) -> u64 {
    let mut freed = 0;
    for _ in 0..ROUNDS {
        if freed >= want {
            break;
        }
        for (at, extent) in choose(blobs, &store.shared.clock, want - freed) {
            if let Some((entry, slots)) = blobs.0.get(at) {
                // An extent that was pinned since it was chosen stays.
                freed += store.evict(entry, slots, extent).unwrap_or(0);
            }
        }
    }
    freed
}

/// Removes blobs of which nothing is left and that nobody retains: their files take space too.
fn retire_empty(store: &Store) {
    for (entry, slots) in store.stored() {
        let empty = slots.present.load(Ordering::Relaxed) == 0 && !slots.any_leaving(0, entry.chunks - 1);
        if empty && store.users(&entry.blob.digest) == 0 {
            // Busy means that it is about to be used: it stays.
            let _ = store.retire(&entry);
        }
    }
}
