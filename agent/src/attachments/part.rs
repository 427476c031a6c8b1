//! Attachments that the snapshotter asks for: some layers of an image, mounted where containers look for them.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use penstock_api::PolicyChange;
use penstock_blob::Digest;
use penstock_device::DeviceId;
use penstock_fetcher::{Manifest, Reference};
use rustix::{io::Errno, mount::UnmountFlags};

use super::{
    AttachError, Attachments, blocking,
    live::Live,
    show,
    state::{Change, State},
    table::{Entry, ImagePart, Request},
};
use crate::{
    indexes::Ask,
    mount::{self, MountError, table},
    state::record::{Owner, Part, Record},
};

/// What there is at a directory, once nobody is making or unmaking it.
#[derive(Debug)]
pub(crate) enum At {
    /// Nothing.
    Nothing,
    /// A device that serves; what it is of.
    Attached(DeviceId, Option<(Digest, Option<Part>)>),
    /// An attachment that could not be made again; what it is of.
    Failed(DeviceId, Option<(Digest, Option<Part>)>),
}

/// What a device has done.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) device: String,
    pub(crate) read_bytes: u64,
    pub(crate) fetched_bytes: u64,
    pub(crate) waited: Duration,
}

impl Attachments {
    /// What there is at `dir`, a path without links. Waits while it is being made or unmade.
    pub(crate) async fn at(&self, dir: &Path) -> At {
        loop {
            let mut settled = std::pin::pin!(self.settled.notified());
            // From here on no change is missed.
            settled.as_mut().enable();
            {
                let table = self.table.lock();
                match table.entries.iter().find(|entry| entry.mount.as_deref() == Some(dir)) {
                    None => return At::Nothing,
                    Some(Entry { id, state, record, .. }) => {
                        let of = record.as_ref().map(|record| (record.manifest, record.part));
                        match state {
                            State::Attached(_) => return At::Attached(id.clone(), of),
                            State::Failed(_) => return At::Failed(id.clone(), of),
                            State::Attaching | State::Detaching(_) => {}
                        }
                    }
                }
            }
            settled.await;
        }
    }

    /// Shows `part` of an image at `dir`, a directory whose path has no links.
    pub(crate) async fn attach_part(
        self: &Arc<Self>,
        (reference, manifest): (Reference, Arc<Manifest>),
        part: Part,
        dir: &Path,
    ) -> Result<DeviceId, AttachError> {
        let place = dir.to_path_buf();
        let dir = blocking("looking at the mount point", move || mount::place(&place)).await??;
        let request = Request {
            reference,
            platform: self.parts.platform.clone(),
            transport: self.parts.transport,
            mount: Some(dir),
            require_verified: self.parts.indexes.require,
            policy: PolicyChange::default(),
            part: Some(ImagePart { manifest, part }),
        };
        self.attach_checked(request).await.map(|made| made.0)
    }

    /// Makes a recorded attachment again that had failed; asks no registry what its image is.
    pub(crate) async fn attach_again(self: &Arc<Self>, id: &DeviceId) -> Result<(), AttachError> {
        let record: Record = {
            let mut table = self.table.lock();
            let entry = table.entries.iter_mut().find(|entry| entry.id == *id);
            let gone = || AttachError::NoDevice { id: id.to_string() };
            let entry = entry.ok_or_else(gone)?;
            let record = entry.record.clone().ok_or_else(gone)?;
            let wrong = |super::Illegal(state)| AttachError::WrongState { id: id.clone(), state };
            entry.state.apply(Change::Retried).map_err(wrong)?;
            record
        };
        let this = Arc::clone(self);
        self.run("attaching", async move { this.restore_one(record, Ask::Recorded).await.map(drop) }).await
    }

    /// Sees to it that what is mounted at the mount point of a device is the device: mounts it again if somebody has unmounted it.
    ///
    /// # Errors
    /// [`MountError::Covered`] when something else is mounted there; what mounting says.
    pub(crate) async fn check_mount(self: &Arc<Self>, id: &DeviceId, dir: &Path) -> Result<(), AttachError> {
        let (live, _) = self.table.lock().attached(id.as_str())?;
        let (this, dir) = (Arc::clone(self), dir.to_path_buf());
        self.run("looking at a mount", async move { live.check_mount(&this.parts, &dir).await }).await
    }

    /// Detaches what the snapshotter does not show any more.
    pub(crate) async fn detach_part(self: &Arc<Self>, id: &DeviceId, force: bool) -> Result<(), AttachError> {
        self.detach_any(id.as_str(), force).await
    }

    /// What the device at `dir` has done; `None` when there is none.
    pub(crate) fn done_at(&self, dir: &Path) -> Option<Done> {
        let table = self.table.lock();
        let entry = table.entries.iter().find(|entry| entry.mount.as_deref() == Some(dir))?;
        let live = entry.state.live()?;
        let stats = live.device.stats();
        Some(Done {
            device: entry.id.to_string(),
            read_bytes: stats.served_bytes,
            fetched_bytes: show::fetched(live, &self.parts.cache),
            waited: stats.waited,
        })
    }

    /// Where attachments of the snapshotter should be that could not be made again.
    pub(crate) fn failed_parts(&self) -> Vec<PathBuf> {
        let table = self.table.lock();
        let failed = |entry: &&Entry| entry.owner == Owner::Snapshotter && matches!(entry.state, State::Failed(_));
        table.entries.iter().filter(failed).filter_map(|entry| entry.mount.clone()).collect()
    }

    /// Unmounts whatever stands at `dir`, which belongs to the snapshotter, without an attachment: what an agent that was killed had mounted
    /// and not recorded yet. `lazily` also when somebody uses it.
    pub(crate) async fn clear_stray(&self, dir: &Path, lazily: bool) -> Result<(), AttachError> {
        let dir = dir.to_path_buf();
        let cleared = blocking("taking a stray mount away", move || clear(&dir, lazily));
        Ok(cleared.await??)
    }
}

/// Most mounts taken away from one directory: there is one, or two where one was mounted over another.
const MOST_STRAYS: usize = 8;

fn clear(dir: &Path, lazily: bool) -> Result<(), MountError> {
    let stuck = |reason: std::io::Error| MountError::Stuck { dir: dir.to_path_buf(), reason };
    let flags = if lazily { UnmountFlags::NOFOLLOW | UnmountFlags::DETACH } else { UnmountFlags::NOFOLLOW };
    for _ in 0..MOST_STRAYS {
        if table::at(&table::read().map_err(stuck)?, dir).is_none() {
            return Ok(());
        }
        match rustix::mount::unmount(dir, flags) {
            Ok(()) => {}
            Err(Errno::BUSY) => {
                return Err(MountError::Busy { dir: dir.to_path_buf(), users: mount::users::users(dir) });
            }
            Err(error) => return Err(stuck(error.into())),
        }
    }
    Ok(())
}

impl Live {
    async fn check_mount(&self, parts: &super::Parts, dir: &Path) -> Result<(), AttachError> {
        let mounted = self.mounted.lock().clone();
        if let Some(mounted) = mounted
            && blocking("looking for a mount", move || mounted.is_there()).await??
        {
            return Ok(());
        }
        *self.mounted.lock() = None;
        self.mount(parts, dir.to_path_buf()).await
    }
}
