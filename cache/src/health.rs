//! Whether chunks can be stored now, and the look around every few seconds that finds out: room on the file system, disk errors, files
//! that were deleted or replaced behind our back. What is cached is served in any case.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::MissedTickBehavior;

use crate::{
    room::{Free, Pressure},
    store::Store,
    usage::Event,
};

/// How often the room on the file system is looked at: a full disk is told and relieved within this time. A system call.
const LOOK: Duration = Duration::from_secs(5);
/// Looks in a minute, the tick of the eviction policy. Then files are looked at too: a few system calls for each blob.
const LOOKS_A_MINUTE: u32 = 12;
/// Free space left to others when nobody says how much: this many bytes ...
const RESERVE_BYTES: u64 = 1 << 30;
/// ... or one part in this many of the file system, whichever is less.
const RESERVE_SHARE: u64 = 20;
/// How deep [`disk_bytes`] looks into directories: sled's has two levels.
const DEPTH: u32 = 4;

/// Whether writes are tried. After one failed, none is until the next look, and then one: a full or broken disk is not hammered, and heals by
/// itself.
#[derive(Debug, Default)]
pub(crate) struct Storing(Mutex<State>);

/// | state | next |
/// |---|---|
/// | open | closed: a write failed |
/// | closed | ajar: a look |
/// | ajar | trying: somebody got leave to write |
/// | trying | open: it was written; closed: it failed; ajar: another look, who got leave did not come to write |
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    Closed,
    Ajar,
    Trying,
}

/// What a write changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    Same,
    Failed,
    Healed,
}

impl Storing {
    /// Whether the caller may write.
    pub(crate) fn is_allowed(&self) -> bool {
        let mut state = self.0.lock();
        if *state == State::Ajar {
            *state = State::Trying;
            return true;
        }
        *state == State::Open
    }

    /// A write went well, or not.
    pub(crate) fn wrote(&self, well: bool) -> Turn {
        let mut state = self.0.lock();
        let (next, turn) = match (*state, well) {
            (State::Open, false) => (State::Closed, Turn::Failed),
            (_, false) => (State::Closed, Turn::Same),
            (State::Trying, true) => (State::Open, Turn::Healed),
            // It was under way when another failed.
            (same, true) => (same, Turn::Same),
        };
        *state = next;
        turn
    }

    /// Time went by.
    pub(crate) fn look(&self) {
        let mut state = self.0.lock();
        if *state != State::Open {
            *state = State::Ajar;
        }
    }
}

impl Store {
    /// Counts a failed write or sync; operators hear when the trouble begins and ends, not each time.
    pub(crate) fn note_write<T>(&self, written: &io::Result<T>) {
        if written.is_err() {
            self.metrics.write_failures.inc();
        }
        match (self.storing.wrote(written.is_ok()), written) {
            (Turn::Failed, Err(e)) => self.tell(Event::Bypass { reason: e.to_string() }),
            (Turn::Healed, _) => self.tell(Event::Healed { what: "chunks can be stored again" }),
            _ => {}
        }
    }

    /// Looks at the room on the file system; operators hear when the reserve is broken into, and when it is whole again.
    pub(crate) fn look_at_room(&self) {
        let Ok(space) = self.disk.space(&self.config.dir) else { return };
        let usual = (space.total_bytes / RESERVE_SHARE).min(RESERVE_BYTES);
        let free = Free { bytes: space.free_bytes, reserve: self.config.reserve_bytes.unwrap_or(usual) };
        let beside = self.index_bytes.load(Ordering::Relaxed) + self.beside_bytes.load(Ordering::Relaxed);
        match self.room().set_limit(beside, free) {
            Pressure::Same => {}
            Pressure::Began => self.tell(Event::Pressure { free_bytes: free.bytes, reserve_bytes: free.reserve }),
            Pressure::Ended => self.tell(Event::Healed { what: "the file system has its reserve of free space again" }),
        }
        self.metrics.limit_bytes.set(self.room().limit());
    }

    /// Measures what lies beside the chunks and is within the cap too.
    pub(crate) fn measure(&self) {
        self.index_bytes.store(disk_bytes(&self.layout.index(), DEPTH), Ordering::Relaxed);
        let beside = self.config.beside.iter().map(|dir| disk_bytes(dir, DEPTH)).sum();
        self.beside_bytes.store(beside, Ordering::Relaxed);
    }

    /// Looks whether the files of each blob are still those that are open, and as long as the blob. One that is not is dropped whole, files
    /// and all: what was deleted or replaced would not be found at the next start, what was cut reads as zeroes once it grew again.
    pub(crate) fn look_at_files(&self) {
        for (entry, slots) in self.stored() {
            let same = self.layout.is_same(slots.no, &slots.data, slots.blob.size_bytes);
            if entry.lock().retired || same.unwrap_or(true) {
                continue;
            }
            let digest = slots.blob.digest;
            tracing::warn!(
                "a file of cached blob {digest} was deleted, replaced or cut behind our back; its chunks are dropped"
            );
            self.discard_corrupt(&entry, 0, entry.chunks - 1);
            if let Err(error) = self.retire(&entry) {
                // Somebody still reads the old file, or it is wanted at this moment: another look comes.
                tracing::debug!("{error}");
            }
        }
    }
}

/// Looks around every few seconds until the cache stops.
pub(crate) async fn run(store: Arc<Store>) {
    let mut looks = tokio::time::interval_at(tokio::time::Instant::now() + LOOK, LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looked = 0_u32;
    loop {
        tokio::select! {
            () = store.stop.cancelled() => return,
            _ = looks.tick() => {}
        }
        looked = looked.wrapping_add(1);
        let (store, minute) = (store.clone(), looked.is_multiple_of(LOOKS_A_MINUTE));
        let look = tokio::task::spawn_blocking(move || look(&store, minute));
        if look.await.is_err() {
            tracing::error!("a look at the cache's files panicked; it is tried again");
        }
    }
}

/// One look; once a minute a thorough one.
pub(crate) fn look(store: &Store, minute: bool) {
    store.storing.look();
    if minute {
        store.room().run();
        store.shared.clock.advance();
        store.measure();
        store.look_at_files();
    }
    store.look_at_room();
    if store.room().goal().want > 0 {
        store.queue().hurry();
    }
}

/// Bytes of disk that the files under `dir` take, as `du` counts them; what cannot be looked at (or goes meanwhile) counts nothing.
pub(crate) fn disk_bytes(dir: &Path, depth: u32) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let mut bytes = 0;
    for entry in entries.flatten() {
        // Does not follow links.
        let Ok(metadata) = entry.metadata() else { continue };
        bytes += metadata.blocks() * 512;
        if metadata.is_dir() && depth > 1 {
            bytes += disk_bytes(&entry.path(), depth - 1);
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_failed_write_one_is_tried_at_each_look_until_one_goes_well() {
        let storing = Storing::default();
        assert!(storing.is_allowed());
        assert_eq!(storing.wrote(false), Turn::Failed);
        assert!(!storing.is_allowed());
        assert_eq!(storing.wrote(true), Turn::Same, "one that was under way says nothing");
        storing.look();
        assert!(storing.is_allowed() && !storing.is_allowed());
        assert_eq!(storing.wrote(false), Turn::Same);
        storing.look();
        assert!(storing.is_allowed());
        storing.look();
        assert!(storing.is_allowed(), "who got leave did not come to write");
        assert_eq!(storing.wrote(true), Turn::Healed);
        assert!(storing.is_allowed() && storing.is_allowed());
    }
}
