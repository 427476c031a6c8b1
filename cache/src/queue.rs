//! What waits for the committer: segments to record, chunks to give back, blobs to forget, and why it should wake now.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use crate::{bits::Bits, entry::Entry};

/// A group is committed when it holds this much (bytes; measured: 8 MiB groups cost a third of the throughput, 128 MiB gain
/// nothing) ...
const GROUP_BYTES: u64 = 32 << 20;
/// ... or when its first chunk is this old. The two bound what a crash may lose.
const GROUP_AGE: Duration = Duration::from_millis(100);

/// Segments and the blob record of one blob that differ from the index.
#[derive(Debug)]
pub(crate) struct Dirty {
    pub(crate) entry: Arc<Entry>,
    pub(crate) segments: BTreeSet<u32>,
    pub(crate) blob: bool,
}

/// Chunks whose bits are cleared, whose space is still taken, and which may still be read by who pinned them before.
#[derive(Debug)]
pub(crate) struct Leaving {
    pub(crate) entry: Arc<Entry>,
    pub(crate) segment: u32,
    pub(crate) bits: Bits,
    /// Their slot headers are still there.
    pub(crate) sealed: bool,
    /// Their space is expected back soon; not so once a pin or the disk was in the way.
    pub(crate) expected: bool,
}

impl Leaving {
    /// The space they take, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.entry.slots.get().map_or(0, |slots| slots.charge(self.segment, self.bits))
    }
}

/// A blob whose files are gone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gone {
    pub(crate) no: u32,
    pub(crate) segments: u32,
}

/// How the committer should end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Commit what is there, close the index, say that it was an orderly end.
    Drain,
    /// End now, as a kill would.
    Abandon,
}

/// Work taken from the queue. Its size is bounded by what is on disk: one item for each segment or leaving extent.
#[derive(Debug, Default)]
pub(crate) struct Group {
    pub(crate) dirty: BTreeMap<u32, Dirty>,
    pub(crate) leaving: Vec<Leaving>,
    pub(crate) gone: Vec<Gone>,
    pub(crate) flushes: Vec<oneshot::Sender<()>>,
}

impl Group {
    pub(crate) fn is_empty(&self) -> bool {
        self.dirty.is_empty() && self.leaving.is_empty() && self.gone.is_empty()
    }
}

#[derive(Debug, Default)]
struct State {
    group: Group,
    bytes: u64,
    since: Option<Instant>,
    urgent: bool,
    stop: Option<Stop>,
}

/// Between everybody who changes something and the one committer.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
    wake: Condvar,
}

impl Queue {
    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock();
        change(&mut state);
        drop(state);
        self.wake.notify_one();
    }

    /// The record of `segment` must be written; `bytes` of new data belong to it.
    pub(crate) fn dirty(&self, no: u32, entry: &Arc<Entry>, segment: u32, bytes: u64) {
        self.change(|state| {
            state.of(no, entry).segments.insert(segment);
            state.bytes += bytes;
        });
    }

    /// The blob record must be written.
    pub(crate) fn dirty_blob(&self, no: u32, entry: &Arc<Entry>) {
        self.change(|state| state.of(no, entry).blob = true);
    }

    /// These chunks leave, as soon as the index no longer has them and nobody has them pinned.
    pub(crate) fn leave(&self, no: u32, leaving: Leaving) {
        self.change(|state| {
            state.of(no, &leaving.entry).segments.insert(leaving.segment);
            state.group.leaving.push(leaving);
        });
    }

    /// A blob's records must be deleted.
    pub(crate) fn gone(&self, gone: Gone) {
        self.change(|state| {
            state.group.gone.push(gone);
            state.since.get_or_insert_with(Instant::now);
        });
    }

    /// Somebody waits for room, or a pin in the way of a leaving chunk went.
    pub(crate) fn hurry(&self) {
        self.change(|state| state.urgent = true);
    }

    /// Answered when everything queued until now is durable, or cannot be.
    pub(crate) fn flush(&self) -> oneshot::Receiver<()> {
        let (tell, told) = oneshot::channel();
        self.change(|state| {
            state.group.flushes.push(tell);
            state.urgent = true;
        });
        told
    }

    /// Ends the committer. A drain can be cut short by an abandon, not the other way round.
    pub(crate) fn stop(&self, stop: Stop) {
        self.change(|state| {
            if state.stop != Some(Stop::Abandon) {
                state.stop = Some(stop);
            }
        });
    }

    /// Puts back what could not be done. `soon`: a time starts to run for it; otherwise it waits for an event.
    pub(crate) fn put_back(&self, group: Group, soon: bool) {
        let mut state = self.state.lock();
        for (no, dirty) in group.dirty {
            let known = state.of(no, &dirty.entry);
            known.segments.extend(dirty.segments);
            known.blob |= dirty.blob;
        }
        state.group.leaving.extend(group.leaving);
        state.group.gone.extend(group.gone);
        state.group.flushes.extend(group.flushes);
        if soon {
            state.since.get_or_insert_with(Instant::now);
        }
    }

    /// Waits until there is a reason to commit, but not before `pause`. Says whether to stop.
    pub(crate) fn wait(&self, pause: Option<Instant>) -> Option<Stop> {
        let mut state = self.state.lock();
        loop {
            if state.stop.is_some() {
                return state.stop;
            }
            let due = if state.urgent || state.bytes >= GROUP_BYTES {
                Some(pause.unwrap_or_else(Instant::now))
            } else {
                state.since.map(|since| (since + GROUP_AGE).max(pause.unwrap_or(since)))
            };
            match due {
                Some(due) if due <= Instant::now() => return None,
                Some(due) => {
                    self.wake.wait_until(&mut state, due);
                }
                None => self.wake.wait(&mut state),
            }
        }
    }

    /// Takes everything queued.
    pub(crate) fn take(&self) -> Group {
        let mut state = self.state.lock();
        state.bytes = 0;
        state.since = None;
        state.urgent = false;
        std::mem::take(&mut state.group)
    }
}

impl State {
    fn of(&mut self, no: u32, entry: &Arc<Entry>) -> &mut Dirty {
        self.since.get_or_insert_with(Instant::now);
        let fresh = || Dirty { entry: entry.clone(), segments: BTreeSet::new(), blob: false };
        self.group.dirty.entry(no).or_insert_with(fresh)
    }
}
