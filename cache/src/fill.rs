//! Getting chunks that are not locatable: fetch from the source below, or check what is on disk. One fill per chunk at a time.

use std::{
    collections::BTreeSet,
    io,
    os::unix::fs::FileExt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use penstock_blob::{ByteRange, Purpose, ReadError};
use tokio::sync::watch;
use tracing::Instrument as _;

use crate::{
    bits::{Bits, SEGMENT_CHUNKS},
    entry::{Entry, State},
    format::HEADER_BYTES,
    room::{Pending, Taken},
    slots::{Hold, Segment, Slots, by_segment, charge, overhead},
    speculate::Speculated,
    store::Store,
};

/// How a fill ended, for everybody who waits for it.
#[derive(Debug, Clone)]
pub(crate) enum Outcome {
    /// The bytes of the fill's range.
    Bytes(Bytes),
    /// No bytes. The next reader starts another fill.
    Failed(ReadError),
    /// No bytes for a read ahead. A reader who came just then looks again: nobody asked for him yet.
    Forgone(ReadError),
    /// What was on disk changed or was wrong, and is dropped: look again.
    Again,
}

/// What a fill does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The chunks are absent: ask the source below.
    Fetch,
    /// The chunks were found on disk at open: compare them with their checksums.
    Check,
}

/// A run of chunks that somebody gets and others wait for.
#[derive(Debug)]
pub(crate) struct Fill {
    pub(crate) first: u32,
    pub(crate) last: u32,
    /// The run's bytes in the blob.
    pub(crate) range: ByteRange,
    /// Whether somebody waits for it; a fill that was begun ahead is hurried along then.
    wanted: watch::Sender<bool>,
    /// A reader found its bytes wrong: they are not stored, and nobody joins it any more. Changed under the entry's lock.
    rejected: AtomicBool,
    outcome: watch::Receiver<Option<Outcome>>,
}

impl Fill {
    /// Marks its bytes as wrong.
    pub(crate) fn reject(&self, _proof: &State) {
        self.rejected.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_rejected(&self, _proof: &State) -> bool {
        self.rejected.load(Ordering::Relaxed)
    }

    /// Somebody joins it; whether he is the first who waits for it.
    pub(crate) fn joined(&self, purpose: Purpose) -> bool {
        purpose == Purpose::Demand && self.wanted.send_if_modified(|wanted| !std::mem::replace(wanted, true))
    }

    pub(crate) fn is_wanted(&self) -> bool {
        *self.wanted.borrow()
    }

    /// Ends when somebody waits for it.
    async fn wanted(&self) {
        // The sender lives as long as `self`.
        let _ = self.wanted.subscribe().wait_for(|&wanted| wanted).await;
    }

    /// Waits for the end.
    pub(crate) async fn outcome(&self) -> Outcome {
        let mut outcome = self.outcome.clone();
        // The sender goes without a word only when the cache is dropped or the fill's task panicked.
        outcome
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|o| o.clone())
            .unwrap_or(Outcome::Failed(ReadError::Stopping))
    }
}

/// The duty to end a fill: however its task ends, the chunks are free for another fill and those who wait are told.
#[derive(Debug)]
pub(crate) struct Lead {
    store: Arc<Store>,
    entry: Arc<Entry>,
    fill: Arc<Fill>,
    tell: watch::Sender<Option<Outcome>>,
    /// Whether nobody waited when it began.
    is_ahead: bool,
    /// Its part of what may be under way ahead.
    _speculated: Option<Speculated>,
}

impl Lead {
    /// A fill of chunks `first..=last`, not yet in the entry's table.
    pub(crate) fn new(
        store: &Arc<Store>,
        entry: &Arc<Entry>,
        (first, last): (u32, u32),
        (range, purpose): (ByteRange, Purpose),
    ) -> Self {
        let (tell, outcome) = watch::channel(None);
        store.fills.send_modify(|n| *n += 1);
        let wanted = watch::Sender::new(purpose == Purpose::Demand);
        let fill = Arc::new(Fill { first, last, range, wanted, rejected: AtomicBool::new(false), outcome });
        let is_ahead = purpose == Purpose::Ahead;
        Self { store: store.clone(), entry: entry.clone(), fill, tell, is_ahead, _speculated: None }
    }

    pub(crate) const fn fill(&self) -> &Arc<Fill> {
        &self.fill
    }

    /// It is one of those that nobody asked for.
    pub(crate) fn with(mut self, speculated: Speculated) -> Self {
        self._speculated = Some(speculated);
        self
    }

    /// Starts fills on one task that the cache owns: what they ask of the source below they ask in one go, in order, so that
    /// neighbours are fetched together, and each ends as soon as its own bytes are here.
    pub(crate) fn start(leads: Vec<(Self, Kind)>) {
        let Some(store) = leads.first().map(|(lead, _)| lead.store.clone()) else { return };
        let mut tasks = store.tasks.lock();
        // Ended tasks are reaped as new ones come. A panic was logged by its hook, and its `Lead` told those who wait.
        while tasks.try_join_next().is_some() {}
        let runs = leads.into_iter().map(|(lead, kind)| async move {
            match kind {
                Kind::Fetch => lead.fetch().await,
                Kind::Check => lead.check().await,
            }
        });
        let runs = futures_util::future::join_all(runs);
        tasks.spawn_on(async { drop(runs.await) }.in_current_span(), &store.handle);
    }

    /// Frees the chunks, then tells: who is told and looks again must not meet this fill.
    fn end(&self, outcome: Outcome) {
        self.free();
        self.tell.send_replace(Some(outcome));
    }

    fn free(&self) {
        let mut state = self.entry.lock();
        for chunk in self.fill.first..=self.fill.last {
            if state.fills.get(&chunk).is_some_and(|fill| Arc::ptr_eq(fill, &self.fill)) {
                state.fills.remove(&chunk);
            }
        }
    }

    /// The bytes from the source below. Begun ahead, they are asked for once more when somebody waits for them: the sources below
    /// join the two, and hurry.
    async fn ask(&self) -> Result<Bytes, Outcome> {
        let (upstream, blob, range) = (&self.store.upstream, self.entry.blob, self.fill.range);
        if self.fill.is_wanted() {
            return upstream.read(blob, range, Purpose::Demand).await.map_err(Outcome::Failed);
        }
        let mut ahead = upstream.read(blob, range, Purpose::Ahead);
        tokio::select! {
            biased;
            got = &mut ahead => return got.map_err(Outcome::Forgone),
            () = self.fill.wanted() => {}
        }
        let mut demand = upstream.read(blob, range, Purpose::Demand);
        tokio::select! {
            biased;
            // First: it may be here meanwhile, and is not asked for again then.
            got = &mut ahead => match got {
                Ok(bytes) => Ok(bytes),
                Err(_) => demand.await.map_err(Outcome::Failed),
            },
            got = &mut demand => got.map_err(Outcome::Failed),
        }
    }

    async fn fetch(self) {
        let (store, blob, range) = (&self.store, self.entry.blob, self.fill.range);
        let got = tokio::select! {
            biased;
            () = store.stop.cancelled() => Err(Outcome::Failed(ReadError::Stopping)),
            got = self.ask() => got,
        };
        let exact = got.and_then(|bytes| match bytes.len() as u64 == range.len() {
            true => Ok(bytes),
            false => Err(Outcome::Failed(ReadError::WrongBytes {
                blob: blob.digest,
                range,
                endpoint: "the source below the cache".into(),
                reason: format!("{} bytes for {}", bytes.len(), range.len()),
            })),
        });
        match exact {
            Ok(bytes) => {
                store.metrics.fills.inc();
                store.metrics.filled_bytes.inc_by(range.len());
                if self.is_ahead {
                    store.metrics.ahead_bytes.inc_by(range.len());
                }
                self.entry.fetched_bytes.fetch_add(range.len(), Ordering::Relaxed);
                if !self.hand_out(bytes).await {
                    store.metrics.bypasses.inc();
                }
            }
            Err(outcome) => {
                store.metrics.fill_failures.inc();
                self.end(outcome);
            }
        }
    }

    /// Hands fetched bytes to who waits for them, and stores them. Who reads ahead has them once they are stored: so he brings no more than the disk
    /// takes. False when they were not stored.
    async fn hand_out(&self, bytes: Bytes) -> bool {
        let told = Some(Outcome::Bytes(bytes.clone()));
        // Old contents leave when the committer comes to it: that is waited for by nobody.
        let is_held_up = self.is_held_up();
        let waited_for = async {
            if !is_held_up {
                self.fill.wanted().await;
            }
        };
        let mut keeping = std::pin::pin!(self.keep(bytes));
        tokio::select! {
            biased;
            () = waited_for => {
                self.tell.send_replace(told);
                keeping.await
            }
            kept = &mut keeping => {
                self.tell.send_replace(told);
                kept
            }
        }
    }

    /// Stores fetched bytes. False when they were not stored.
    async fn keep(&self, bytes: Bytes) -> bool {
        let (store, entry) = (&self.store, &self.entry);
        let limit = store.config.pending_bytes;
        let Some(pending) = Pending::take(&store.metrics.pending_bytes, bytes.len() as u64, limit) else {
            return false;
        };
        let block = store.shared.block;
        let mut charged = charge(&entry.blob, entry.chunk_size, self.fill.first, self.fill.last, block);
        if entry.slots.get().is_none() {
            charged += overhead(entry.chunks, block);
        }
        let space = match self.fill.is_wanted() {
            true => Space::take(store, charged).await,
            false => Space::spare(store, charged),
        };
        let Some(space) = space.filter(|_| store.storing.is_allowed()) else { return false };
        if !self.until_left().await {
            return false;
        }
        let (store, entry, fill) = (store.clone(), entry.clone(), self.fill.clone());
        let written = tokio::task::spawn_blocking(move || {
            let written = write(&store, &entry, &fill, &bytes, space);
            drop(pending);
            store.note_write(&written);
            written.unwrap_or(false)
        });
        // An error: the runtime is stopping.
        written.await.unwrap_or(false)
    }

    /// Whether old contents of these chunks are still to go.
    fn is_held_up(&self) -> bool {
        self.entry.slots.get().is_some_and(|slots| slots.any_leaving(self.fill.first, self.fill.last))
    }

    /// Waits until the old contents of these chunks, if any, are gone. False when the cache stops first.
    async fn until_left(&self) -> bool {
        loop {
            let left = self.store.left.notified();
            if !self.is_held_up() {
                return true;
            }
            tokio::select! {
                () = left => {}
                () = self.store.stop.cancelled() => return false,
            }
        }
    }

    /// Compares chunks on disk with their checksums; drops those that differ.
    async fn check(self) {
        let (store, entry, fill) = (self.store.clone(), self.entry.clone(), self.fill.clone());
        let checked = tokio::task::spawn_blocking(move || {
            let slots = entry.slots.get()?;
            Some(check_run(&store, (&entry, slots), (fill.first, fill.last), Trusted::Checked))
        });
        let outcome = match checked.await {
            Ok(Some(Found::Right(bytes))) => Outcome::Bytes(bytes),
            // An error: the runtime is stopping. Looking again says so.
            _ => Outcome::Again,
        };
        self.end(outcome);
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        self.free();
        self.store.fills.send_modify(|n| *n -= 1);
    }
}

/// Room that is given back unless it was used.
#[derive(Debug)]
pub(crate) struct Space {
    store: Arc<Store>,
    bytes: u64,
}

impl Space {
    /// Takes room, waiting for eviction if need be. `None`: there is none to be had, or the cache stops.
    async fn take(store: &Arc<Store>, bytes: u64) -> Option<Self> {
        let granted = match store.room().take(bytes) {
            Taken::Now => true,
            Taken::Never => false,
            Taken::Later(told) => tokio::select! {
                granted = told => granted.unwrap_or(false),
                () = store.stop.cancelled() => false,
            },
        };
        granted.then(|| Self { store: store.clone(), bytes })
    }

    /// Takes room that nobody has to leave.
    fn spare(store: &Arc<Store>, bytes: u64) -> Option<Self> {
        store.room().take_spare(bytes).then(|| Self { store: store.clone(), bytes })
    }

    /// `bytes` of it are used for good and belong to `slots` now; the rest goes back.
    pub(crate) fn spend(&mut self, slots: &Slots, bytes: u64) {
        let used = bytes.min(self.bytes);
        slots.charged.fetch_add(used, Ordering::Relaxed);
        self.bytes -= used;
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.store.room().give(self.bytes);
        }
    }
}

/// Writes a run of chunks and their slot headers, and makes them locatable. False when they were rejected meanwhile.
fn write(store: &Arc<Store>, entry: &Arc<Entry>, fill: &Fill, bytes: &Bytes, mut space: Space) -> io::Result<bool> {
    let slots = store.slots(entry, &mut space)?;
    let crcs: Vec<u32> = bytes.chunks(entry.chunk_size.bytes() as usize).map(crc32c::crc32c).collect();
    write_run(store, &slots, fill, bytes, &crcs)?;
    let mut state = entry.lock();
    if fill.is_rejected(&state) {
        drop(state);
        // The chunks are still this fill's alone.
        unwrite(store, &slots, fill);
        return Ok(false);
    }
    let is_wanted = fill.is_wanted();
    space.spend(&slots, charge(&entry.blob, entry.chunk_size, fill.first, fill.last, store.shared.block));
    for (number, first, last) in by_segment(fill.first, fill.last) {
        let Some(segment) = slots.segment_or_new(number) else { continue };
        let base = number * SEGMENT_CHUNKS;
        let change = store.change(entry, &slots, &mut state);
        for slot in first..=last {
            let crc = crcs.get((base + slot - fill.first) as usize).copied().unwrap_or_default();
            change.stored((number, segment), slot, crc);
            if !is_wanted {
                change.stored_ahead(number, segment, slot);
            }
        }
        let bytes = u64::from(last - first + 1) * u64::from(entry.chunk_size.bytes());
        store.queue().dirty(slots.no, entry, number, bytes);
    }
    store.maybe_verify(entry, &mut state);
    Ok(true)
}

/// Writes the data, then the slot headers, of a run; undone when either fails.
fn write_run(store: &Store, slots: &Slots, fill: &Fill, bytes: &Bytes, crcs: &[u32]) -> io::Result<()> {
    let headers: Vec<u8> = (fill.first..).zip(crcs).flat_map(|(chunk, crc)| slots.sealer.header(chunk, *crc)).collect();
    let at = u64::from(fill.first) * HEADER_BYTES as u64;
    let (disk, start) = (&store.disk, fill.range.start());
    let written = disk.write_at(&slots.data, bytes, start).and_then(|()| disk.write_at(&slots.headers, &headers, at));
    if written.is_err() {
        unwrite(store, slots, fill);
    }
    written
}

/// Leaves neither space nor a valid header behind. If that fails too, the checksum stands guard.
fn unwrite(store: &Store, slots: &Slots, fill: &Fill) {
    let chunks = (fill.last - fill.first + 1) as usize;
    let at = u64::from(fill.first) * HEADER_BYTES as u64;
    let whole = fill.range.len().next_multiple_of(u64::from(slots.chunk_size.bytes()));
    let _ = store.disk.write_at(&slots.headers, &vec![0; chunks * HEADER_BYTES], at);
    let _ = store.disk.punch(&slots.data, fill.range.start(), whole);
}

/// Which chunks need not be compared with their checksums again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trusted {
    /// Those that were checked in this process's lifetime.
    Checked,
    Nothing,
}

/// How chunks on disk were found.
#[derive(Debug)]
pub(crate) enum Found {
    /// All are right.
    Right(Bytes),
    /// So many were wrong, and are dropped: by this look, or by another that came first.
    Wrong(u32),
    /// Some are not there any more.
    Gone,
}

/// Reads chunks `first..=last` from disk and compares those that are not trusted with their checksums.
pub(crate) fn check_run(
    store: &Store,
    (entry, slots): (&Arc<Entry>, &Arc<Slots>),
    (first, last): (u32, u32),
    trusted: Trusted,
) -> Found {
    let range = |chunk| entry.chunk_size.range(&entry.blob, chunk);
    let Some(range) = range(first).zip(range(last)).map(|(start, end)| start.cover(end)) else { return Found::Gone };
    let Some(hold) = Hold::take(slots, range) else { return Found::Gone };
    let mut bytes = vec![0; usize::try_from(range.len()).unwrap_or(0)];
    if let Err(e) = slots.data.read_exact_at(&mut bytes, range.start()) {
        tracing::warn!("cached chunks of blob {} cannot be read and are dropped: {e}", entry.blob.digest);
        store.discard_corrupt(entry, first, last);
        return Found::Wrong(last - first + 1);
    }
    store.pages.passed(slots, range);
    let mut bad = Vec::new();
    let mut adopted = BTreeSet::new();
    let state = entry.lock();
    for (chunk, data) in (first..).zip(bytes.chunks(entry.chunk_size.bytes() as usize)) {
        let (number, slot) = (chunk / SEGMENT_CHUNKS, chunk % SEGMENT_CHUNKS);
        let known = |s: &&Segment| trusted == Trusted::Nothing || !s.checked.has(slot);
        let Some(segment) = slots.segment(number).filter(known) else { continue };
        if crc32c::crc32c(data) != segment.crc(slot) {
            bad.push(chunk);
        } else if segment.present.has(slot) {
            segment.checked.add(Bits::span(slot, slot));
            if !segment.durable.has(slot) {
                adopted.insert(number);
            }
        }
    }
    drop(state);
    // Known by their headers only until now: from here on the index may speak of them.
    adopted.into_iter().for_each(|number| store.queue().dirty(slots.no, entry, number, 0));
    drop(hold);
    let dropped: u32 = bad.iter().map(|&chunk| store.discard_corrupt(entry, chunk, chunk)).sum();
    if dropped > 0 {
        tracing::warn!("{dropped} cached chunk(s) of blob {} failed their checksum and are dropped", entry.blob.digest);
    }
    if bad.is_empty() { Found::Right(bytes.into()) } else { Found::Wrong(u32::try_from(bad.len()).unwrap_or(u32::MAX)) }
}
