//! An image that is being served: how it is made, step by step, and unmade in the reverse order.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use penstock_api::PolicyChange;
use penstock_blob::Digest;
use penstock_device::{Choice, Content, Device, DeviceError, DeviceId, Remains, Wanted};
use penstock_fetcher::Reference;
use penstock_image::Image;

use super::{
    AttachError, Parts, blocking,
    opened::{self, Meant, Opened, Served},
    proof, reading,
};
use crate::{
    indexes::{Ask, Proof},
    mount::{self, MountError, Mounted, Unmount, found},
    recordings::Start,
    state::record::{LayerRecord, Owner, Record, Seen},
};

/// How often a device that was just unmounted is tried to be stopped, and how long apart: a second in all.
const BUSY_TRIES: u32 = 20;
/// How often an unmount is tried before who is in its way is named as a user, as long apart: half a second in all.
const UNMOUNT_TRIES: u32 = 10;
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// What is to be served.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) id: DeviceId,
    /// The image, pinned or not: names the repository that has the blobs.
    pub(super) reference: Reference,
    /// Digest of its manifest.
    pub(super) manifest: Digest,
    /// Where its index is looked for.
    pub(super) ask: Ask,
    /// All layers of the image, bottom first.
    pub(super) layers: Vec<LayerRecord>,
    /// Those that the device shows, bottom first.
    pub(super) shown: Vec<LayerRecord>,
    pub(super) transport: Wanted,
    /// Where to mount, links resolved.
    pub(super) mount: Option<PathBuf>,
    /// What was asked about failures.
    pub(super) policy: PolicyChange,
    /// Who asked for it.
    pub(super) owner: Owner,
}

impl Plan {
    /// How what `record` says is served.
    pub(super) fn new(record: &Record, ask: Ask) -> Self {
        Self {
            id: record.id.clone(),
            reference: record.reference.with_digest(record.manifest),
            manifest: record.manifest,
            ask,
            layers: record.layers.clone(),
            shown: record.shown_layers().to_vec(),
            transport: record.transport,
            mount: record.mount.clone(),
            policy: record.policy,
            owner: record.owner,
        }
    }

    fn meant(&self) -> Meant<'_> {
        Meant {
            reference: &self.reference,
            manifest: self.manifest,
            ask: self.ask,
            layers: &self.layers,
            shown: &self.shown,
        }
    }
}

/// An image that is being served.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) device: Device,
    pub(super) image: Arc<Image>,
    pub(super) choice: Choice,
    /// The mount, until it is taken away.
    pub(super) mounted: Mutex<Option<Arc<Mounted>>>,
    /// The index that its reads are verified by.
    pub(super) proof: Proof,
    /// What it reads while starting, and what is read ahead of that.
    pub(super) start: Start,
    /// How long it took to be opened, made and mounted; `None` when it was taken over.
    pub(super) made: Option<Duration>,
    /// Whether it shows archives that decode only from their beginning.
    pub(super) is_streamed: bool,
    owner: Owner,
    /// Lets the blobs go when the device has.
    _served: Served,
}

/// The transport of what remains; else the one that is to be had.
async fn choose(wanted: Wanted, remains: Option<&Remains>) -> Result<Choice, AttachError> {
    match remains {
        Some(remains) => {
            let reason = "it was shown so before this agent took it over".to_owned();
            Ok(Choice { transport: remains.transport(), reason })
        }
        None => Ok(blocking("looking for a transport", move || penstock_device::choose(wanted)).await??),
    }
}

impl Live {
    /// Serves `plan`: blobs, image, device, mount. What was done is undone when a step fails. With `remains` of an earlier agent, its
    /// device and mount are gone on with; when that fails they are left as they are.
    pub(super) async fn make(parts: &Parts, plan: &Plan, remains: Option<Remains>) -> Result<Self, AttachError> {
        let (begun, is_new) = (Instant::now(), remains.is_none());
        let choice = choose(plan.transport, remains.as_ref()).await?;
        let start = reading::begin(parts, plan, remains.is_some());
        let mut opening = start.opening();
        let Opened { image, proof, served } = Opened::open(parts, plan.meant(), Some(&mut opening)).await?;
        let hints = served.hints();
        let is_streamed = !hints.streamed.is_empty();
        start.opened(opening, &image, hints);
        let content = Content { image: Arc::clone(&image), source: start.source() };
        let (id, config, metrics) = (plan.id.clone(), &parts.device, &parts.device_metrics);
        let device = match remains {
            Some(remains) => Device::resume(id, content, remains, config, metrics).await?,
            None => Device::start(id, content, choice.transport, config, metrics).await?,
        };
        let mounted = Mutex::new(None);
        let (owner, made) = (plan.owner, None);
        let mut live = Self { device, image, choice, mounted, proof, start, made, is_streamed, owner, _served: served };
        live.obey(parts, plan.policy);
        live.give_away(parts).await;
        let mounted = match &plan.mount {
            Some(dir) => live.mount(parts, dir.clone()).await,
            None => Ok(()),
        };
        match mounted {
            Ok(()) => {
                live.made = is_new.then(|| begun.elapsed());
                Ok(live)
            }
            Err(error) => {
                live.take_back(parts).await;
                if let Err(left) = live.device.stop_by_force().await {
                    tracing::warn!(device = %plan.id, error = %left, "the device of a failed attach was left behind");
                }
                Err(error)
            }
        }
    }

    /// Mounts the device's file system on `dir`, or takes over the mount of it that is there.
    pub(super) async fn mount(&self, parts: &Parts, dir: PathBuf) -> Result<(), AttachError> {
        let (source, there) = (self.device.path().to_path_buf(), dir.clone());
        let adopted = blocking("looking for a mount", move || mount::adopt(&source, &there)).await??;
        if let Some(mounted) = adopted {
            *self.mounted.lock() = Some(Arc::new(mounted));
            return Ok(());
        }
        let head = opened::head(parts, &self.image).await?;
        let file_system = found::find(&head).map_err(MountError::NoFileSystem)?;
        let flags = match self.owner {
            Owner::Operator => parts.mount_flags.clone(),
            // A container's set-user-id programs and device nodes are its runtime's business, as in an unpacked layer.
            Owner::Snapshotter => Vec::new(),
        };
        let source = self.device.path().to_path_buf();
        let mounted =
            blocking("mounting", move || mount::mount(&source, file_system, &mount::place_again(&dir)?, &flags))
                .await??;
        *self.mounted.lock() = Some(Arc::new(mounted));
        Ok(())
    }

    /// Takes the mount and the device away. When somebody uses them and `how` forbids that, everything is as before.
    pub(super) async fn unmake(&self, parts: &Parts, how: Unmount) -> Result<(), AttachError> {
        let mounted = self.mounted.lock().clone();
        if let Some(mounted) = &mounted {
            unmount_once_idle(mounted, how).await?;
            *self.mounted.lock() = None;
        }
        let stopped = match how {
            Unmount::IfIdle if mounted.is_some() => self.stop_once_idle().await,
            Unmount::IfIdle => self.device.stop().await,
            Unmount::Lazily => {
                self.take_back(parts).await;
                self.device.stop_by_force().await.map(drop)
            }
        };
        match stopped {
            Err(error @ DeviceError::Busy { .. }) => {
                if let Some(mounted) = mounted {
                    // Somebody came between the unmount and the stop.
                    self.mount(parts, mounted.dir().to_path_buf()).await?;
                }
                Err(error.into())
            }
            outcome => {
                self.take_back(parts).await;
                self.start.end().await;
                Ok(outcome?)
            }
        }
    }

    /// Stops the device after its unmount. Others (udev, a loop device that clears itself) let go of it a moment after that, and
    /// nothing tells when: so this asks again a few times before it takes them for users.
    async fn stop_once_idle(&self) -> Result<(), DeviceError> {
        let mut pauses = tokio::time::interval(BUSY_PAUSE);
        for _ in 0..BUSY_TRIES {
            pauses.tick().await;
            match self.device.stop().await {
                Err(DeviceError::Busy { .. }) => {}
                outcome => return outcome,
            }
        }
        self.device.stop().await
    }

    /// What it is, for its record.
    pub(super) fn seen(&self, parts: &Parts) -> Seen {
        Seen {
            image: self.image.kind().to_string(),
            verified_by: proof::of_device(&self.image, &self.proof, &parts.indexes.verified),
            size_bytes: self.image.size_bytes(),
            file_system: self.mounted.lock().as_ref().map(|mounted| mounted.file_system().to_string()),
        }
    }
}

/// Unmounts. A program that was just started by one of those that read here, this process too, keeps what they had open until it runs, and
/// nothing tells when: so this asks again a few times before it takes it for a user.
async fn unmount_once_idle(mounted: &Arc<Mounted>, how: Unmount) -> Result<(), AttachError> {
    let mut pauses = tokio::time::interval(BUSY_PAUSE);
    let mut tries = 1..=UNMOUNT_TRIES;
    loop {
        pauses.tick().await;
        let going = Arc::clone(mounted);
        match blocking("unmounting", move || going.unmount(how)).await? {
            Err(MountError::Busy { .. }) if tries.next().is_some() => {}
            outcome => return Ok(outcome?),
        }
    }
}
