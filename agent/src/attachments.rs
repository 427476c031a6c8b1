//! The attachments of a node: one table, and what makes, restores and unmakes its entries.
//!
//! What changes something runs in a task of its own, owned by the table: a client that goes away neither stops it halfway nor leaves
//! anything behind. The table's lock is held for moments only, never across an await or a system call.

mod ahead;
mod error;
mod explain;
mod first;
mod live;
mod maps;
mod opened;
mod part;
mod policy;
mod proof;
mod reading;
mod show;
mod state;
mod table;
mod takeover;
mod watch;

use std::{path::PathBuf, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use parking_lot::Mutex;
use penstock_api as api;
use penstock_blob::{Blob, BlobSource, SPANS};
use penstock_cache::{Cache, Followed};
use penstock_device::{DeviceId, Wanted};
use penstock_fetcher::{Fetcher, Platform, Reference};
use penstock_image::{Image, Layer, Maps};
use tokio::{sync::Notify, task::JoinSet};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{field::Empty, info_span};

pub(crate) use error::AttachError;
use live::{Live, Plan};
pub(crate) use maps::collect_daily;
pub(crate) use part::At;
pub(crate) use reading::RecordError;
use state::{Change, Illegal, State};
use table::{Claim, Entry, Request, Table};
pub(crate) use takeover::Ending;

use crate::{
    config::IndexPulled,
    events::{Events, Kind},
    indexes::{Ask, Indexes},
    keeper::Keeper,
    layers::Layers,
    mount::{self, Flag, Unmount},
    recordings::Recordings,
    remains::Remaining,
    shelf::Shelf,
    state::{
        StateDir,
        record::{LayerRecord, New, Owner, Record},
    },
    traces::traced,
};

/// Attachments restored at the same time: enough to hide a slow registry's answers, few enough to leave it and the disk alone.
const RESTORED_AT_ONCE: usize = 8;

/// What attachments are made from.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) fetcher: Arc<Fetcher>,
    pub(crate) cache: Arc<Cache>,
    /// What finds the indexes that images are verified by.
    pub(crate) indexes: Indexes,
    /// What ordinary layers are found and made by.
    pub(crate) layers: Arc<Layers>,
    /// What becomes of images that are pulled without indexes of their layers.
    pub(crate) index_pulled: IndexPulled,
    /// containerd's socket: what it has fetched is there.
    pub(crate) containerd: PathBuf,
    /// The manifests that are kept.
    pub(crate) shelf: Arc<Shelf>,
    /// What makes, keeps and finds recordings of what images read while starting.
    pub(crate) recordings: Arc<Recordings>,
    /// What images and devices read: the cache, which reads the fetcher.
    pub(crate) source: Arc<dyn BlobSource>,
    pub(crate) state: Arc<StateDir>,
    /// The maps of all images: what is open of them is shared.
    pub(crate) maps: Maps,
    pub(crate) device: penstock_device::Config,
    pub(crate) device_metrics: penstock_device::Metrics,
    pub(crate) mount_flags: Vec<Flag>,
    /// What readers get while bytes cannot be fetched, unless asked otherwise.
    pub(crate) policy: api::Policy,
    pub(crate) platform: Platform,
    pub(crate) transport: Wanted,
    pub(crate) events: Events,
    /// Who keeps the connections of FUSE devices while no agent runs.
    pub(crate) keeper: Arc<Keeper>,
    /// What an earlier agent left.
    pub(crate) remaining: Arc<Remaining>,
    /// Cancelled when no more is to be waited for on anybody's behalf.
    pub(crate) stop: CancellationToken,
}

impl Parts {
    /// What `work` answers, unless the agent stops first. Only for what can be dropped at any await.
    async fn unless_stopping<T, E>(&self, work: impl Future<Output = Result<T, E>>) -> Result<T, AttachError>
    where
        AttachError: From<E>,
    {
        tokio::select! {
            outcome = work => Ok(outcome?),
            () = self.stop.cancelled() => Err(AttachError::Stopping),
        }
    }

    /// While it lives, misses of these blobs bring nothing along: who opens an image knows what he reads next.
    fn known(&self, blobs: impl IntoIterator<Item = Blob>) -> Vec<Followed> {
        blobs.into_iter().filter_map(|blob| self.cache.follow(&blob)).collect()
    }

    async fn open(&self, reference: &Reference, layers: &[LayerRecord]) -> Result<Arc<Image>, AttachError> {
        let _known = self.known(layers.iter().map(LayerRecord::blob));
        let layers = to_open(layers);
        let opening = Box::pin(Image::open_in(layers, Arc::clone(&self.source), &self.maps));
        let failed = |error| AttachError::Open { reference: reference.to_string(), error };
        self.unless_stopping(async { opening.await.map(Arc::new).map_err(failed) }).await
    }
}

/// All attachments of a node.
#[derive(Debug)]
pub(crate) struct Attachments {
    parts: Parts,
    table: Mutex<Table>,
    /// Held while a record that exists is changed or removed.
    recording: tokio::sync::Mutex<()>,
    /// What devices say becomes events; each ends with its device.
    tellers: Mutex<JoinSet<()>>,
    tasks: TaskTracker,
    /// Told whenever an attachment has been made, unmade or has failed.
    settled: Notify,
    /// Images that are being opened before anybody attaches them.
    ahead: ahead::Ahead,
    /// Images whose layers are being indexed.
    first: first::First,
}

impl Attachments {
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        Arc::new(Self {
            parts,
            table: Mutex::default(),
            recording: tokio::sync::Mutex::default(),
            tellers: Mutex::default(),
            tasks: TaskTracker::new(),
            settled: Notify::new(),
            ahead: ahead::Ahead::default(),
            first: first::First::default(),
        })
    }

    /// What they are made from.
    pub(crate) const fn parts(&self) -> &Parts {
        &self.parts
    }

    /// Attaches an image; answers once it can be read and is recorded.
    pub(crate) async fn attach(self: &Arc<Self>, request: api::Attach) -> Result<api::Device, AttachError> {
        let request = self.check(request).await?;
        self.attach_checked(request).await.map(|made| made.1)
    }

    async fn attach_checked(self: &Arc<Self>, request: Request) -> Result<(DeviceId, api::Device), AttachError> {
        let claim = self.table.lock().claim(&request)?;
        let ask = request.ask();
        let this = Arc::clone(self);
        let span = info_span!(target: SPANS, "attach", reference = %request.reference, error = Empty);
        let attaching = traced(span, async move {
            match claim {
                Claim::New(id) => Ok((id.clone(), this.build(id, request).await?)),
                Claim::Retry(record) => Ok((record.id.clone(), this.restore_one(*record, ask).await?)),
            }
        });
        self.run("attaching", attaching).await
    }

    /// Detaches a device on request of an operator. What the snapshotter shows to containers goes by force only.
    pub(crate) async fn detach(self: &Arc<Self>, id: &str, force: bool) -> Result<(), AttachError> {
        if !force {
            self.table.lock().may_detach(id)?;
        }
        self.detach_any(id, force).await
    }

    async fn detach_any(self: &Arc<Self>, id: &str, force: bool) -> Result<(), AttachError> {
        let this = Arc::clone(self);
        let (id, live) = self.table.lock().begin_detach(id)?;
        let span = info_span!(target: SPANS, "detach", device = %id, force, error = Empty);
        self.run("detaching", traced(span, async move { this.unbuild(&id, live, force).await })).await
    }

    /// Detaches all devices, the newest first.
    pub(crate) async fn detach_all(self: &Arc<Self>, force: bool) -> Vec<(DeviceId, Result<(), AttachError>)> {
        let ids: Vec<DeviceId> = self.table.lock().entries.iter().rev().map(|entry| entry.id.clone()).collect();
        let mut outcomes = Vec::with_capacity(ids.len());
        for id in ids {
            let outcome = self.detach(id.as_str(), force).await;
            outcomes.push((id, outcome));
        }
        outcomes
    }

    /// Makes the recorded attachments again. Those that cannot be stay listed as failed. What no record claims of an earlier agent is let go.
    ///
    /// With a `grace` it answers after that long at the latest, while the rest is still being made.
    pub(crate) async fn restore(self: &Arc<Self>, records: Vec<Record>, grace: Option<Duration>) {
        let entry = |record: &Record| Entry {
            id: record.id.clone(),
            reference: record.reference.clone(),
            mount: record.mount.clone(),
            owner: record.owner,
            state: State::Attaching,
            record: Some(record.clone()),
        };
        self.table.lock().entries.extend(records.iter().map(entry));
        let this = Arc::clone(self);
        let restoring = self.tasks.spawn(Box::pin(async move { this.restore_all(records).await }));
        let restored = match grace {
            Some(grace) => tokio::time::timeout(grace, restoring).await,
            None => Ok(restoring.await),
        };
        match restored {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "restoring attachments ended abnormally"),
            Err(_elapsed) => tracing::warn!(?grace, "attachments are still being made again; the agent goes on"),
        }
        self.collect_maps().await;
    }

    async fn restore_all(&self, records: Vec<Record>) {
        let shelf = Arc::clone(&self.parts.shelf);
        let pulled = blocking("listing manifests", move || shelf.all()).await;
        let pulled = pulled.map_err(|error| error.to_string()).and_then(|all| all.map_err(|error| error.to_string()));
        let pulled = pulled.unwrap_or_else(|error| {
            tracing::warn!(
                error,
                "kept manifests cannot be listed; the indexes of images that no device shows are looked for again"
            );
            Vec::new()
        });
        let indexes = self.parts.indexes.restore(&records, &pulled).await;
        stream::iter(records)
            .for_each_concurrent(RESTORED_AT_ONCE, |record| async move {
                // What went wrong is in the attachment's state, and an event.
                let _told = self.restore_one(record, Ask::Recorded).await;
            })
            .await;
        drop(indexes);
        self.clear_unclaimed().await;
    }

    /// Takes no more work, lets what is under way end, and leaves all devices or takes them away, the newest first. Their records stay.
    pub(crate) async fn drain(&self, ending: Ending) {
        self.table.lock().is_stopping = true;
        self.parts.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        let live: Vec<(DeviceId, Arc<Live>)> = {
            let mut table = self.table.lock();
            let entries = table.entries.drain(..).rev();
            entries.filter_map(|entry| Some((entry.id, Arc::clone(entry.state.live()?)))).collect()
        };
        for (id, live) in live {
            if ending == Ending::ForGood || !self.leave(&id, &live).await {
                self.put_down(&id, &live).await;
            }
        }
    }

    /// Takes one device away at the end of the agent, by force if it must be.
    async fn put_down(&self, id: &DeviceId, live: &Live) {
        let outcome = match live.unmake(&self.parts, Unmount::IfIdle).await {
            Err(error) => {
                self.event(
                    Kind::DeviceForced,
                    id,
                    &format!("{error}; it is stopped all the same, because the agent ends"),
                );
                live.unmake(&self.parts, Unmount::Lazily).await
            }
            done => done,
        };
        if let Err(error) = outcome {
            self.event(Kind::DeviceLeftBehind, id, &format!("the device was left behind: {error}"));
        }
    }

    /// How many attachments there are, by state.
    pub(crate) fn count(&self, state: api::DeviceState) -> usize {
        self.table.lock().entries.iter().filter(|entry| entry.state.name() == state).count()
    }

    async fn check(&self, request: api::Attach) -> Result<Request, AttachError> {
        let reference: Reference = request.reference.parse()?;
        let platform = match &request.platform {
            Some(text) => text.parse()?,
            None => self.parts.platform.clone(),
        };
        let transport = match request.transport {
            api::Wanted::Auto => self.parts.transport,
            api::Wanted::Ublk => Wanted::Only(penstock_device::Transport::Ublk),
            api::Wanted::Fuse => Wanted::Only(penstock_device::Transport::Fuse),
        };
        let mount = match request.mount {
            // A failed attachment of ours to this place is tried again, or named; a mount of somebody else's is refused.
            Some(dir) => Some(blocking("looking at the mount point", move || mount::place(&dir)).await??),
            None => None,
        };
        let require_verified = request.require_verified || self.parts.indexes.require;
        request.policy.check().map_err(AttachError::Policy)?;
        Ok(Request { reference, platform, transport, mount, require_verified, policy: request.policy, part: None })
    }

    /// A new attachment, from its reference on. On failure nothing of it stays but an event.
    async fn build(&self, id: DeviceId, request: Request) -> Result<api::Device, AttachError> {
        let reference = request.reference.to_string();
        match self.try_build(&id, request).await {
            Ok(device) => {
                self.event(Kind::DeviceAttached, &id, &format!("{reference} is attached as {id}"));
                Ok(device)
            }
            Err(error) => {
                self.drop_entry(&id);
                self.event(Kind::DeviceAttachFailed, &id, &format!("{reference} was not attached: {error}"));
                Err(error)
            }
        }
    }

    async fn try_build(&self, id: &DeviceId, request: Request) -> Result<api::Device, AttachError> {
        let ask = request.ask();
        let (manifest, part) = match request.part {
            Some(part) => {
                let opened = async {
                    self.ahead.join(part.manifest.digest).await;
                    Ok::<_, AttachError>(())
                };
                self.parts.unless_stopping(opened).await?;
                (part.manifest, Some(part.part))
            }
            None => {
                let resolving = self.parts.fetcher.resolve(&request.reference, &request.platform);
                (Arc::new(self.parts.unless_stopping(resolving).await?), None)
            }
        };
        let new = New {
            id: id.clone(),
            reference: request.reference,
            manifest: manifest.digest,
            platform: request.platform,
            transport: request.transport,
            layers: manifest.layers.iter().map(LayerRecord::from).collect(),
            part,
            owner: if part.is_some() { Owner::Snapshotter } else { Owner::Operator },
            policy: request.policy,
        };
        let mut record = Record::new(new, request.mount);
        let plan = Plan::new(&record, ask);
        let live = Live::make(&self.parts, &plan, None).await?;
        record.seen = live.seen(&self.parts);
        record.number = live.device.number();
        if let Err(error) = self.save(record.clone()).await {
            self.put_down(id, &live).await;
            return Err(error);
        }
        Ok(self.serve(record, live))
    }

    /// Makes a recorded attachment again. On failure it stays, as failed.
    async fn restore_one(&self, mut record: Record, ask: Ask) -> Result<api::Device, AttachError> {
        let reference = record.reference.to_string();
        let id = record.id.clone();
        let span = info_span!(target: SPANS, "restore", device = %id, reference, error = Empty);
        match traced(span, self.revive(&record, ask)).await {
            Ok(live) => {
                if record.number != live.device.number() {
                    record.number = live.device.number();
                    self.save_number(&record).await;
                }
                let device = self.serve(record, live);
                self.event(Kind::DeviceRestored, &id, &format!("{reference} is attached again as {id}"));
                Ok(device)
            }
            Err(error) => {
                self.change(&id, Change::Broke(error.to_string()));
                let text = format!("{reference} was not attached again: {error}");
                self.event(Kind::DeviceRestoreFailed, &id, &text);
                Err(error)
            }
        }
    }

    /// Puts what was made into its entry, and shows it.
    fn serve(&self, record: Record, live: Live) -> api::Device {
        let live = Arc::new(live);
        let told = policy::tell(record.id.to_string(), live.device.notices(), self.parts.events.clone());
        self.tellers.lock().spawn(told);
        let device = show::device(&record, &State::Attached(Arc::clone(&live)), &self.parts);
        let id = record.id.clone();
        if let Some(entry) = self.table.lock().entries.iter_mut().find(|entry| entry.id == id) {
            entry.record = Some(record);
        }
        self.change(&id, Change::Built(live));
        device
    }

    /// Puts a changed record into its entry, and shows it.
    fn update(&self, record: Record) -> api::Device {
        let mut table = self.table.lock();
        let entry = table.entries.iter_mut().find(|entry| entry.id == record.id);
        let shown = match entry {
            Some(entry) => {
                entry.record = Some(record.clone());
                show::device(&record, &entry.state, &self.parts)
            }
            // Detached meanwhile: shown as it was asked for.
            None => show::device(&record, &State::Detaching(None), &self.parts),
        };
        drop(table);
        shown
    }

    async fn unbuild(&self, id: &DeviceId, live: Option<Arc<Live>>, force: bool) -> Result<(), AttachError> {
        if let Some(live) = &live {
            let how = if force { Unmount::Lazily } else { Unmount::IfIdle };
            if let Err(error) = live.unmake(&self.parts, how).await {
                self.change(id, Change::DetachRefused);
                self.event(Kind::DeviceDetachRefused, id, &error.to_string());
                return Err(error);
            }
        }
        let _alone = self.recording.lock().await;
        self.forget_index(id, live.as_deref()).await;
        let (state, recorded) = (Arc::clone(&self.parts.state), id.clone());
        if let Err(error) = blocking("removing a record", move || state.remove(&recorded)).await? {
            self.change(id, Change::Broke(format!("it is detached, but its record is still there: {error}")));
            return Err(error.into());
        }
        self.drop_entry(id);
        self.event(Kind::DeviceDetached, id, &format!("{id} is detached"));
        Ok(())
    }

    /// Forgets the index of an image that no other attachment is of.
    async fn forget_index(&self, id: &DeviceId, live: Option<&Live>) {
        let manifest = {
            let table = self.table.lock();
            let manifests = |own: bool| {
                let entries = table.entries.iter().filter(move |entry| (entry.id == *id) == own);
                entries.filter_map(|entry| entry.record.as_ref().map(|record| record.manifest))
            };
            manifests(true).next().filter(|manifest| !manifests(false).any(|other| other == *manifest))
        };
        let Some(manifest) = manifest else { return };
        let shelf = Arc::clone(&self.parts.shelf);
        // Another layer of it may still be shown: then no registry is to be asked.
        let is_kept = blocking("looking for a manifest", move || shelf.has(&manifest)).await.unwrap_or(false);
        if !is_kept {
            if let Some(live) = live {
                live.proof.discard();
            }
            self.parts.indexes.forget(manifest).await;
        }
    }

    /// Records the number that a device has now. The device is served also when that fails, but will not outlive this agent.
    async fn save_number(&self, record: &Record) {
        if let Err(error) = self.save(record.clone()).await {
            let text = format!("{} ends with this agent: {error}", record.id);
            self.event(Kind::DeviceUnkept, &record.id, &text);
        }
    }

    async fn save(&self, record: Record) -> Result<(), AttachError> {
        let state = Arc::clone(&self.parts.state);
        Ok(blocking("recording an attachment", move || state.save(&record)).await??)
    }

    fn drop_entry(&self, id: &DeviceId) {
        self.table.lock().entries.retain(|entry| entry.id != *id);
        self.settled.notify_waiters();
    }

    fn change(&self, id: &DeviceId, change: Change) {
        let mut table = self.table.lock();
        let Some(entry) = table.entries.iter_mut().find(|entry| entry.id == *id) else { return };
        if let Err(Illegal(state)) = entry.state.apply(change) {
            tracing::error!(device = %id, ?state, "an attachment was asked for a change that its state forbids");
        }
        drop(table);
        self.settled.notify_waiters();
    }

    fn event(&self, kind: Kind, id: &DeviceId, text: &str) {
        self.parts.events.record(kind, text, &[("device", id.as_str())]);
    }

    /// Runs `work` to its end whatever becomes of the caller.
    async fn run<T, F>(&self, doing: &'static str, work: F) -> Result<T, AttachError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, AttachError>> + Send + 'static,
    {
        match self.tasks.spawn(Box::pin(work)).await {
            Ok(outcome) => outcome,
            Err(error) => Err(AttachError::Crashed { doing, reason: error.to_string() }),
        }
    }
}

/// The layers of a record, as an image is opened from them.
fn to_open(layers: &[LayerRecord]) -> Vec<Layer> {
    let layer = |layer: &LayerRecord| Layer {
        blob: layer.blob(),
        media_type: layer.media_type.clone(),
        annotations: layer.annotations.clone(),
    };
    layers.iter().map(layer).collect()
}

/// Runs what waits for the kernel or the disk where that is allowed.
async fn blocking<T: Send + 'static>(
    doing: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, AttachError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| AttachError::Crashed { doing, reason: error.to_string() })
}
