//! What an earlier run of this agent left in the kernel, and what of it is gone on with: FUSE connections that the keeper gave back, and
//! block devices that the driver kept.
//!
//! Only used while the state directory's lock is held: then no other agent serves any of it.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use parking_lot::Mutex;
use penstock_device::{DeviceId, Remains};

use crate::{
    Keeper,
    mount::leftovers,
    state::{StateDir, record::Record},
};

/// What is left and not taken over yet.
#[derive(Debug)]
pub(crate) struct Remaining {
    keeper: Arc<Keeper>,
    fuse_dir: PathBuf,
    /// Numbers N of `/dev/ublkbN` whose readers wait for a successor.
    numbers: Mutex<BTreeSet<u32>>,
}

impl Remaining {
    /// Looks for what is left, and takes away what nobody can go on with. Answers also what was done, a sentence each. Blocks.
    pub(crate) fn find(state: &StateDir, owner: u32, keeper: Arc<Keeper>) -> (Self, Vec<String>) {
        let kept: Vec<PathBuf> = keeper.given().iter().map(|id| state.fuse().join(id.as_str())).collect();
        let mut done = leftovers::clear(&state.fuse(), &kept);
        let mut numbers = BTreeSet::new();
        match penstock_device::remove_leftovers(owner) {
            Ok(left) => {
                let text = |n| format!("/dev/ublkb{n} of an agent that was killed was removed");
                done.extend(left.removed.into_iter().map(text));
                numbers.extend(left.waiting);
            }
            Err(error) => done.push(format!("ublk devices of a killed agent cannot be looked for: {error}")),
        }
        (Self { keeper, fuse_dir: state.fuse(), numbers: Mutex::new(numbers) }, done)
    }

    /// What is left of a recorded device.
    pub(crate) fn take(&self, record: &Record) -> Option<Remains> {
        if let Some(connection) = self.keeper.take_up(&record.id) {
            return Some(Remains::Fuse { connection });
        }
        let number = record.number.filter(|number| self.numbers.lock().remove(number))?;
        Some(Remains::Ublk { number })
    }

    /// Block devices that no record claimed.
    pub(crate) fn unclaimed(&self) -> Vec<u32> {
        std::mem::take(&mut *self.numbers.lock()).into_iter().collect()
    }

    /// Lets go the connections that no record claimed, with what is mounted from them. Says what it did. Blocks.
    pub(crate) fn clear_unclaimed(&self) -> Vec<String> {
        self.keeper.given().iter().flat_map(|id| self.give_up(id)).collect()
    }

    /// Lets one connection go, and takes away what is mounted from it. Says what it did. Blocks.
    pub(crate) fn give_up(&self, id: &DeviceId) -> Vec<String> {
        self.keeper.let_go(id);
        leftovers::clear(&self.dir(id), &[])
    }

    fn dir(&self, id: &DeviceId) -> PathBuf {
        self.fuse_dir.join(id.as_str())
    }
}
