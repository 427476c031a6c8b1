//! The table of attachments: what may be added, what may go. Pure: no system call, no await.

use std::{path::PathBuf, sync::Arc};

use penstock_api::PolicyChange;
use penstock_device::{DeviceId, Wanted};
use penstock_fetcher::{Manifest, Platform, Reference};

use super::{
    AttachError,
    live::Live,
    state::{Change, Illegal, State},
};
use crate::{
    indexes::Ask,
    state::record::{Owner, Part, Record},
};

/// Most attachments of a node. Each has a thread or two and a dozen descriptors; containerd starts at most 250 pods of a few images.
pub(super) const MOST: usize = 1024;

/// All attachments of a node.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// In the order of attaching.
    pub(super) entries: Vec<Entry>,
    /// Whether no more is taken.
    pub(super) is_stopping: bool,
}

/// One attachment.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) id: DeviceId,
    pub(super) reference: Reference,
    pub(super) mount: Option<PathBuf>,
    pub(super) owner: Owner,
    pub(super) state: State,
    /// What is recorded, or will be; `None` until the reference is resolved.
    pub(super) record: Option<Record>,
}

/// An attach request whose parts are checked.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) reference: Reference,
    pub(super) platform: Platform,
    pub(super) transport: Wanted,
    pub(super) mount: Option<PathBuf>,
    /// Whether it is refused without an index.
    pub(super) require_verified: bool,
    pub(super) policy: PolicyChange,
    /// What the snapshotter asks for; `None` for an image that is to be resolved and shown whole.
    pub(super) part: Option<ImagePart>,
}

/// Layers of an image whose manifest is known.
#[derive(Debug, Clone)]
pub(super) struct ImagePart {
    pub(super) manifest: Arc<Manifest>,
    pub(super) part: Part,
}

impl Request {
    /// Where the index of the image is looked for.
    pub(super) const fn ask(&self) -> Ask {
        let require = self.require_verified;
        if self.part.is_some() { Ask::Pulled { require } } else { Ask::Registry { require } }
    }

    const fn owner(&self) -> Owner {
        if self.part.is_some() { Owner::Snapshotter } else { Owner::Operator }
    }

    /// Whether `entry` is what is asked for, made before.
    fn is_of(&self, entry: &Entry) -> bool {
        let same = entry.reference == self.reference && entry.mount == self.mount && entry.owner == self.owner();
        let part = self.part.as_ref().map(|asked| (asked.manifest.digest, asked.part));
        same && part.is_none_or(|(manifest, part)| {
            entry.record.as_ref().is_some_and(|record| record.manifest == manifest && record.part == Some(part))
        })
    }
}

/// What a claim found.
#[derive(Debug)]
pub(super) enum Claim {
    /// A place in the table for a new attachment.
    New(DeviceId),
    /// The same attachment, which had failed: it is tried again from its record.
    Retry(Box<Record>),
}

impl Table {
    /// A place for a new attachment, or the failed one that is to be tried again.
    pub(super) fn claim(&mut self, request: &Request) -> Result<Claim, AttachError> {
        if self.is_stopping {
            return Err(AttachError::Stopping);
        }
        let same = |entry: &&mut Entry| request.is_of(entry);
        let failed = |entry: &&mut Entry| matches!(entry.state, State::Failed(_));
        if let Some(entry) = self.entries.iter_mut().filter(same).find(failed)
            && let Some(record) = entry.record.clone()
        {
            entry
                .state
                .apply(Change::Retried)
                .map_err(|Illegal(state)| AttachError::WrongState { id: record.id.clone(), state })?;
            return Ok(Claim::Retry(Box::new(record)));
        }
        if let Some(dir) = &request.mount
            && let Some(entry) = self.entries.iter().find(|entry| entry.mount.as_ref() == Some(dir))
        {
            return Err(AttachError::MountTaken { dir: dir.display().to_string(), id: entry.id.clone() });
        }
        if self.entries.len() >= MOST {
            return Err(AttachError::TooMany { most: MOST });
        }
        let id = self.new_id(&request.reference);
        self.entries.push(Entry {
            id: id.clone(),
            reference: request.reference.clone(),
            mount: request.mount.clone(),
            owner: request.owner(),
            state: State::Attaching,
            record: None,
        });
        Ok(Claim::New(id))
    }

    /// The device of an attachment that serves, and its record.
    pub(super) fn attached(&self, id: &str) -> Result<(Arc<Live>, Record), AttachError> {
        if self.is_stopping {
            return Err(AttachError::Stopping);
        }
        let entry = self.entries.iter().find(|entry| entry.id.as_str() == id);
        let entry = entry.ok_or_else(|| AttachError::NoDevice { id: id.chars().take(64).collect() })?;
        match (&entry.state, &entry.record) {
            (State::Attached(live), Some(record)) => Ok((Arc::clone(live), record.clone())),
            (state, _) => Err(AttachError::WrongState { id: entry.id.clone(), state: state.name() }),
        }
    }

    /// Refuses what an operator may not detach without force.
    pub(super) fn may_detach(&self, id: &str) -> Result<(), AttachError> {
        match self.entries.iter().find(|entry| entry.id.as_str() == id) {
            Some(Entry { id, owner: Owner::Snapshotter, mount, .. }) => Err(AttachError::Snapshot {
                id: id.clone(),
                dir: mount.as_ref().map_or_else(String::new, |dir| dir.display().to_string()),
            }),
            _ => Ok(()),
        }
    }

    /// Marks an attachment as going; answers its name in full and its device, if it has one.
    pub(super) fn begin_detach(&mut self, id: &str) -> Result<(DeviceId, Option<Arc<Live>>), AttachError> {
        if self.is_stopping {
            return Err(AttachError::Stopping);
        }
        let entry = self.entries.iter_mut().find(|entry| entry.id.as_str() == id);
        let entry = entry.ok_or_else(|| AttachError::NoDevice { id: id.chars().take(64).collect() })?;
        let id = entry.id.clone();
        match entry.state.apply(Change::DetachBegun) {
            Ok(()) => Ok((id, entry.state.live().cloned())),
            Err(Illegal(state)) => Err(AttachError::WrongState { id, state }),
        }
    }

    /// A name that says what it is of and that no other device has had, as far as chance goes: `redis-3f9a2c`.
    fn new_id(&self, reference: &Reference) -> DeviceId {
        loop {
            let name = name_part(reference.repository());
            let id = format!("{name}-{:06x}", fastrand::u32(..1 << 24)).parse::<DeviceId>();
            // The parse cannot fail, by the make of `name_part`.
            if let Ok(id) = id
                && !self.entries.iter().any(|entry| entry.id == id)
            {
                return id;
            }
        }
    }
}

/// The last word of a repository's name, made fit for a device's.
fn name_part(repository: &str) -> String {
    let last = repository.rsplit('/').next().unwrap_or_default();
    let kept: String =
        last.chars().map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' }).take(20).collect();
    let kept = kept.trim_matches('-');
    if kept.is_empty() { "image".to_owned() } else { kept.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(reference: &str, mount: Option<&str>) -> Request {
        Request {
            reference: reference.parse().unwrap(),
            platform: Platform::host(),
            transport: Wanted::Auto,
            mount: mount.map(PathBuf::from),
            require_verified: false,
            policy: PolicyChange::default(),
            part: None,
        }
    }

    #[test]
    fn a_mount_point_has_one_attachment_and_an_image_may_have_many() {
        let mut table = Table::default();
        let Ok(Claim::New(first)) = table.claim(&request("r.io/a", Some("/m"))) else { panic!("a first one") };
        let taken = table.claim(&request("r.io/b", Some("/m"))).unwrap_err();
        assert!(matches!(taken, AttachError::MountTaken { id, .. } if id == first));
        assert!(matches!(table.claim(&request("r.io/a", None)), Ok(Claim::New(_))));
        assert!(matches!(table.claim(&request("r.io/a", None)), Ok(Claim::New(_))));
        assert_eq!(table.entries.len(), 3);
    }

    #[test]
    fn what_is_not_attached_cannot_be_detached_and_a_stopping_table_takes_nothing() {
        let mut table = Table::default();
        let Ok(Claim::New(id)) = table.claim(&request("r.io/a", None)) else { panic!("a first one") };
        assert!(matches!(table.begin_detach("x"), Err(AttachError::NoDevice { .. })));
        assert!(matches!(table.begin_detach(id.as_str()), Err(AttachError::WrongState { .. })), "being attached");
        table.is_stopping = true;
        assert!(matches!(table.begin_detach(id.as_str()), Err(AttachError::Stopping)));
        assert!(matches!(table.claim(&request("r.io/b", None)), Err(AttachError::Stopping)));
    }

    #[test]
    fn what_containers_read_is_detached_by_force_only() {
        let mut table = Table::default();
        let Ok(Claim::New(own)) = table.claim(&request("r.io/a", None)) else { panic!("a first one") };
        let Ok(Claim::New(theirs)) = table.claim(&request("r.io/a", Some("/s/1/fs"))) else { panic!("another") };
        table.entries[1].owner = Owner::Snapshotter;
        assert!(table.may_detach(own.as_str()).is_ok() && table.may_detach("none").is_ok(), "refused elsewhere");
        let refused = table.may_detach(theirs.as_str()).unwrap_err();
        assert!(refused.to_string().contains("/s/1/fs") && refused.to_string().contains("--force"), "{refused}");
    }

    #[test]
    fn the_table_is_bounded() {
        let mut table = Table::default();
        for _ in 0..MOST {
            table.claim(&request("r.io/a", None)).unwrap();
        }
        assert!(matches!(table.claim(&request("r.io/a", None)), Err(AttachError::TooMany { most: MOST })));
    }

    #[test]
    fn names_of_devices_say_what_they_are_of() {
        for (repository, name) in [
            ("library/redis", "redis"),
            ("team/my_app.v2", "my-app-v2"),
            ("x", "x"),
            ("team/___", "image"),
            ("a/very-long-name-of-a-repository-that-goes-on", "very-long-name-of-a"),
        ] {
            assert_eq!(name_part(repository), name);
            assert!(format!("{name}-123456").parse::<DeviceId>().is_ok());
        }
    }
}
