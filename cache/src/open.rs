//! From a directory to a running store: lock, blobs, index, presence, committer.

use std::{
    collections::BTreeSet,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use penstock_blob::BlobSource;
use rustix::fs::{SeekFrom, seek};
use tokio::{
    runtime::Handle,
    sync::{Notify, broadcast, mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    bits::SEGMENT_CHUNKS,
    commit::{Committer, abandon},
    config::{Config, Seams},
    disk::Disk,
    entry::Entry,
    error::OpenError,
    format::{HEADER_BYTES, Meta, SYS_KEY, SysRecord},
    health::Storing,
    index::{Snapshot, Write},
    keeper::{Fault, Keeper},
    layout::{DirLock, Found, Layout, Scan, bounded_count},
    metrics::Metrics,
    pages::{self, Pages},
    policy::{Clock, Ghosts},
    queue::{Gone, Queue},
    recover::{Presence, Records, Trust, Witness, presence, trust},
    room::Room,
    slots::{Shared, Slots, extents_in, overhead},
    speculate::{self, Touch},
    store::{Store, Table},
    usage::{Event, IndexState, Whole},
    verify::Verifier,
};

/// Events kept for a receiver that is slow to take them; older ones are lost to it (they are in the log).
const EVENTS: usize = 64;
/// Groups committed at open to get below a lowered cap. One is enough unless a disk error interferes.
const SHRINK_GROUPS: u32 = 4;

/// A store at work.
pub(crate) struct Opened {
    pub(crate) store: Arc<Store>,
    pub(crate) committer: thread::JoinHandle<()>,
    /// Sees every event from the start on.
    pub(crate) events: broadcast::Receiver<Event>,
}

/// What opening needs beside the configuration.
pub(crate) struct Parts {
    pub(crate) upstream: Arc<dyn BlobSource>,
    pub(crate) metrics: Metrics,
    pub(crate) seams: Seams,
    pub(crate) handle: Handle,
}

/// How often a directory is asked for before whoever has it is taken for another cache, and how long apart: half a second in all.
const LOCK_TRIES: u32 = 10;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// Takes a directory. A program that this process started keeps a copy of every lock until it runs, also of a cache that was closed
/// meanwhile, and nothing tells when: so this asks again a few times.
pub(crate) async fn take(
    handle: &Handle,
    config: &Config,
    disk: &Arc<dyn Disk>,
) -> Result<(Layout, DirLock), OpenError> {
    let mut pauses = tokio::time::interval(LOCK_PAUSE);
    let mut tries = 1..=LOCK_TRIES;
    loop {
        pauses.tick().await;
        let layout = Layout::new(&config.dir, disk.clone());
        let prepared = handle.spawn_blocking(move || layout.prepare().map(|lock| (layout, lock))).await;
        // An error: the runtime is stopping.
        match prepared.map_err(|_| OpenError::NoRuntime)? {
            Err(OpenError::InUse { .. }) if tries.next().is_some() => {}
            outcome => return outcome,
        }
    }
}

/// Opens a directory that was taken. Does file operations throughout, and waits for the index within its watchdog.
pub(crate) fn open(config: Config, parts: Parts, (layout, lock): (Layout, DirLock)) -> Result<Opened, OpenError> {
    let lock = Arc::new(lock);
    let dir = config.dir.clone();
    let failed = |step| {
        let path = dir.clone();
        move |source| OpenError::Io { step, path, source }
    };
    let scan = layout.scan().map_err(failed("read the blobs of"))?;
    let clean = layout.take_clean().map_err(failed("read the marker of the last close of"))?;
    let witness = Witness { clean, reached: layout.reached(), blobs: !scan.found.is_empty() };
    let mut index = open_index(&layout, &lock, (&parts.seams, &config), &witness);
    layout.sync_names().map_err(failed("sync"))?;
    if index.keeper.is_some() {
        layout.note_reached(&index.sys.mark());
    }
    let seen = [scan.highest, index.records.blobs.keys().next_back().copied()].into_iter().flatten().max();
    index.sys.next_no = index.sys.next_no.max(seen.map_or(0, |no| no.saturating_add(1)));

    let backoff = parts.seams.backoff;
    let (touches, touched) = mpsc::channel(speculate::TOUCHES);
    let (store, events) = new_store(config, parts, (layout, lock), (&index.sys, touches));
    let stale = load(&store, scan, &mut index);
    report(&store, &index, stale.adopted);
    store.measure();
    store.look_at_room();
    let mut committer = Committer::new(store.clone(), index.keeper.take(), index.sys, backoff);
    settle(&store, &mut committer, &stale.metas);
    let committer = thread::Builder::new()
        .name("penstock-commit".into())
        .spawn(move || committer.run())
        .map_err(failed("start a thread for"))?;
    store.tasks.lock().spawn_on(crate::verify::run(store.clone()), &store.handle);
    store.tasks.lock().spawn_on(crate::health::run(store.clone()), &store.handle);
    if !store.config.keep_pages {
        store.tasks.lock().spawn_on(pages::run(store.clone()), &store.handle);
    }
    store.tasks.lock().spawn_on(speculate::run(store.clone(), touched), &store.handle);
    if let Some(interval) = store.config.scrub_interval {
        store.tasks.lock().spawn_on(crate::scrub::run(store.clone(), interval), &store.handle);
    }
    Ok(Opened { store, committer, events })
}

fn new_store(
    config: Config,
    parts: Parts,
    (layout, lock): (Layout, Arc<DirLock>),
    (sys, touches): (&SysRecord, mpsc::Sender<Touch>),
) -> (Arc<Store>, broadcast::Receiver<Event>) {
    let queue = Arc::new(Queue::default());
    let metrics = parts.metrics;
    let pages = Pages::new(config.keep_pages);
    metrics.cap_bytes.set(config.cap_bytes);
    let room = Room::new(config.cap_bytes, config.watermarks, queue.clone(), metrics.used_bytes.clone());
    let extents = extents_in(config.cap_bytes);
    let shared = Shared {
        room: Arc::new(room),
        queue,
        block: layout.block(),
        clock: Arc::new(Clock::new(extents)),
        ghosts: Arc::new(Ghosts::new(extents)),
    };
    let (sender, events) = broadcast::channel(EVENTS);
    let store = Store {
        shared,
        config,
        layout,
        upstream: parts.upstream,
        disk: parts.seams.disk,
        handle: parts.handle,
        table: ArcSwap::default(),
        table_changes: Mutex::new(()),
        metrics,
        uuid: sys.uuid,
        next_no: AtomicU32::new(sys.next_no),
        retained: Mutex::default(),
        verifier: Verifier::default(),
        index: Mutex::new(IndexState::Good),
        events: sender,
        tasks: Mutex::new(JoinSet::new()),
        fills: watch::Sender::new(0),
        ahead_bytes: AtomicU64::new(0),
        touches,
        pages,
        left: Notify::new(),
        closing: AtomicBool::new(false),
        stop: CancellationToken::new(),
        _lock: lock,
        storing: Storing::default(),
        index_bytes: AtomicU64::new(0),
        beside_bytes: AtomicU64::new(0),
    };
    (Arc::new(store), events)
}

/// An index as opened, or what stands in for it.
struct Index {
    keeper: Option<Keeper>,
    sys: SysRecord,
    records: Records,
    trust: Trust,
    /// Why there is no keeper.
    abandoned: Option<String>,
}

/// Opens the index; sets a bad one aside and opens an empty one; goes without when that fails too.
fn open_index(layout: &Layout, lock: &Arc<DirLock>, open: (&Seams, &Config), witness: &Witness) -> Index {
    let (seams, config) = open;
    let open = || Keeper::open(seams.index.clone(), config.watchdog, lock.clone());
    let (fault, mut why) = match open() {
        Ok((keeper, snapshot)) => {
            let trust = trust(snapshot.sys.as_ref(), snapshot.damaged, witness);
            match (trust, is_empty(&snapshot)) {
                // Remains of something else must not mix with what is rebuilt.
                (Trust::Not(why), false) => {
                    keeper.close();
                    (None, why)
                }
                (trust, _) => match started(keeper, snapshot, trust, witness) {
                    Ok(index) => return index,
                    Err(fault) => (Some(fault), String::new()),
                },
            }
        }
        Err(fault) => (Some(fault), String::new()),
    };
    if let Some(fault) = &fault {
        why.clone_from(&fault.error.0);
    }
    let aside = layout.set_index_aside();
    let again = match (fault.is_some_and(|f| f.lost), aside) {
        (true, _) => Err(why.clone()),
        (_, Err(e)) => Err(format!("{why}; and it could not be renamed: {e}")),
        _ => open()
            .and_then(|(keeper, snapshot)| started(keeper, snapshot, Trust::Not(why.clone()), witness))
            .map_err(|again| format!("{why}; and a new one: {}", again.error)),
    };
    again.unwrap_or_else(|reason| Index {
        keeper: None,
        sys: new_sys(),
        records: Records::default(),
        trust: Trust::Not(why),
        abandoned: Some(reason),
    })
}

fn is_empty(snapshot: &Snapshot) -> bool {
    snapshot.sys.is_none() && snapshot.damaged == 0 && snapshot.blobs.is_empty() && snapshot.segments.is_empty()
}

fn new_sys() -> SysRecord {
    SysRecord { uuid: fastrand::u128(..).to_le_bytes(), commits: 0, next_no: 0, starts: 0 }
}

/// Writes the record of this start at once: until sled has flushed something, its own recovery is not safe
/// (`docs/decisions/0002-sled.md`).
fn started(keeper: Keeper, mut snapshot: Snapshot, trust: Trust, witness: &Witness) -> Result<Index, Fault> {
    let mut sys = snapshot.sys.take().unwrap_or_else(new_sys);
    sys.starts = sys.starts.wrapping_add(1);
    // Beyond commits that were lost, so that their loss is told once.
    let reached = witness.reached.filter(|mark| mark.uuid == sys.uuid).map_or(0, |mark| mark.commits);
    sys.commits = sys.commits.max(reached).saturating_add(1);
    if let Err(fault) = keeper.commit(vec![Write { key: SYS_KEY.to_vec(), value: Some(sys.encode()) }]) {
        if !fault.lost {
            keeper.close();
        }
        return Err(fault);
    }
    Ok(Index { keeper: Some(keeper), sys, records: Records::of(snapshot), trust, abandoned: None })
}

/// What loading found out of date.
#[derive(Default)]
struct Stale {
    /// Descriptions that carry another index's UUID.
    metas: Vec<Meta>,
    /// Chunks that no index knew.
    adopted: u64,
}

/// Fills the table from what was found on disk.
fn load(store: &Arc<Store>, scan: Scan, index: &mut Index) -> Stale {
    let mut stale = Stale::default();
    let mut table = Table::new();
    for (number, reason) in scan.dropped {
        store.tell(Event::BlobDropped { number, reason });
    }
    let found: BTreeSet<u32> = scan.found.iter().map(|f| f.meta.no).collect();
    for found in scan.found {
        let meta = found.meta;
        if table.contains_key(&meta.blob) {
            let deleted = store.layout.delete(meta.no);
            let text = deleted.map_or_else(|e| format!(" (and its files cannot be deleted: {e})"), |()| String::new());
            store.tell(Event::BlobDropped { number: meta.no, reason: format!("the blob is there twice{text}") });
            continue;
        }
        match load_blob(store, found, index) {
            Ok((entry, adopted)) => {
                stale.adopted += adopted;
                if meta.uuid != index.sys.uuid {
                    stale.metas.push(Meta { uuid: index.sys.uuid, ..meta });
                }
                table.insert(meta.blob, entry);
            }
            Err(e) => {
                let reason = store.layout.delete(meta.no).map_or_else(|e| e.to_string(), |()| e.to_string());
                store.tell(Event::BlobDropped { number: meta.no, reason });
            }
        }
    }
    store.table.store(Arc::new(table));
    let vanished = index.records.blobs.iter().filter(|(no, _)| !found.contains(no));
    for (no, record) in vanished {
        let segments = bounded_count(record.chunk_size, &record.blob).map_or(0, |n| n.div_ceil(SEGMENT_CHUNKS));
        store.queue().gone(Gone { no: *no, segments });
    }
    stale
}

/// Makes the entry of one blob; says how many of its chunks no index knew.
fn load_blob(store: &Arc<Store>, found: Found, index: &mut Index) -> io::Result<(Arc<Entry>, u64)> {
    let Found { meta, files, headers_lost } = found;
    let chunks = bounded_count(meta.chunk_size, &meta.blob).ok_or(io::ErrorKind::InvalidData)?;
    let believed = !matches!(index.trust, Trust::Not(_)) && meta.uuid == index.sys.uuid;
    let complete = index.trust == Trust::Fully && believed && index.records.blobs.contains_key(&meta.no);
    let mut headers = Vec::new();
    if !complete && !headers_lost {
        (&files.headers).read_to_end(&mut headers)?;
    }
    let presence = presence(&meta, chunks, believed.then_some(&mut index.records), &headers);
    let entry = Arc::new(Entry::new(meta.blob, meta.chunk_size, chunks));
    let slots = Arc::new(Slots::new(meta.blob, meta.chunk_size, files, &store.shared));
    let data_bytes = take_over(store, &slots, &presence);
    let charged = overhead(chunks, store.shared.block) + data_bytes;
    slots.charged.store(charged, Ordering::Relaxed);
    store.room().occupy(charged);
    if headers_lost {
        write_headers(&*store.disk, &slots, &presence)?;
    }
    if slots.data.metadata()?.blocks() * 512 > data_bytes {
        sweep(&*store.disk, &slots)?;
    }
    if !presence.is_recorded {
        store.queue().dirty_blob(slots.no, &entry);
    }
    store.metrics.blobs.inc();
    entry.slots.get_or_init(|| slots);
    let mut state = entry.lock();
    if presence.verified && presence.adopted == 0 && entry.is_whole() {
        state.whole = Whole::Verified;
    }
    store.maybe_verify(&entry, &mut state);
    drop(state);
    Ok((entry, presence.adopted))
}

/// Sets the bits of what is there: present, not checked. Says how many bytes of disk that is.
fn take_over(store: &Arc<Store>, slots: &Arc<Slots>, presence: &Presence) -> u64 {
    let mut bytes = 0;
    for (number, record) in &presence.segments {
        let recorded = presence.recorded.get(number).copied().unwrap_or_default();
        if record.bits.is_empty() {
            continue;
        }
        let Some(segment) = slots.segment_or_new(*number) else { continue };
        for (place, crc) in segment.crcs.iter().zip(record.crcs.iter()) {
            place.store(*crc, Ordering::Relaxed);
        }
        let durable = recorded.and(record.bits);
        segment.present.add(record.bits);
        segment.durable.add(durable);
        slots.place_found(*number, record.bits);
        slots.present.fetch_add(record.bits.count(), Ordering::Relaxed);
        slots.durable.fetch_add(durable.count(), Ordering::Relaxed);
        store.metrics.present_chunks.inc_by(u64::from(record.bits.count()));
        store.metrics.durable_chunks.inc_by(u64::from(durable.count()));
        bytes += slots.charge(*number, record.bits);
    }
    bytes
}

/// Writes all slot headers anew from what the index knows.
fn write_headers(disk: &dyn Disk, slots: &Slots, presence: &Presence) -> io::Result<()> {
    for (number, record) in &presence.segments {
        for slot in record.bits.iter() {
            let chunk = number * SEGMENT_CHUNKS + slot;
            let crc = record.crcs.get(slot as usize).copied().unwrap_or_default();
            disk.write_at(&slots.headers, &slots.sealer.header(chunk, crc), u64::from(chunk) * HEADER_BYTES as u64)?;
        }
    }
    Ok(())
}

/// Punches everything that is no present chunk: what a crash left between an index commit and a hole, or between a write and a commit.
fn sweep(disk: &dyn Disk, slots: &Slots) -> io::Result<()> {
    let size = u64::from(slots.chunk_size.bytes());
    let mut at = 0;
    while let Ok(start) = seek(&slots.data, SeekFrom::Data(at)) {
        let end = seek(&slots.data, SeekFrom::Hole(start))?;
        for chunk in start / size..end.div_ceil(size) {
            let number = u32::try_from(chunk).map_err(io::Error::other)?;
            if !slots.is_present(number) {
                disk.punch(&slots.data, chunk * size, size)?;
            }
        }
        at = end.max(start + 1);
    }
    Ok(())
}

/// Says once what became of the index.
fn report(store: &Store, index: &Index, adopted: u64) {
    store.metrics.index_in_use.set(u64::from(index.keeper.is_some()));
    let reason = match &index.trust {
        Trust::Not(reason) | Trust::Partly(Some(reason)) => Some(reason.clone()),
        _ => None,
    };
    if let Some(reason) = reason {
        *store.index.lock() = IndexState::Rebuilt { reason: reason.clone() };
        store.tell(Event::IndexRebuilt { reason, chunks: adopted });
    } else if adopted > 0 {
        tracing::info!(
            "{adopted} cached chunks that the index had not recorded before the last end were found by their slot headers"
        );
    }
    if let Some(reason) = &index.abandoned {
        abandon(store, reason);
    }
    let usual = store.config.chunk_size;
    let other = store.stored().iter().filter(|(entry, _)| entry.chunk_size != usual).count();
    if other > 0 {
        let bytes = usual.bytes();
        tracing::info!(
            "{other} cached blobs have chunks of another size than the {bytes} bytes that new ones get; they keep it"
        );
    }
}

/// Commits what loading found, gets below a lowered cap, and stamps the files of a rebuilt index.
fn settle(store: &Store, committer: &mut Committer, metas: &[Meta]) {
    let mut committed = metas.is_empty() || committer.group();
    for _ in 0..SHRINK_GROUPS {
        if store.room().used() <= store.room().limit() {
            break;
        }
        committed &= committer.group();
    }
    if !committed || !committer.has_index() {
        return;
    }
    for meta in metas {
        // A description with the old UUID costs another rebuild at the next start, nothing else.
        if let Err(e) = store.layout.describe(meta) {
            tracing::warn!("the description of cached blob number {} could not be renewed: {e}", meta.no);
        }
    }
}
