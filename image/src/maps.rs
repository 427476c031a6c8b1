//! The maps directory, and what of it is open: images that are open at the same time share tables, also those in the making.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
};

use parking_lot::Mutex;
use penstock_blob::{Blob, Digest};

use crate::{frames::Frames, layer::blocking, pages::TableError, stack::Stack};

/// A directory of maps and frame tables. Clones share what is open: an agent has one for all its images, so that a layer's table is made once, and takes one file
/// handle, however many images have the layer.
#[derive(Debug, Clone)]
pub struct Maps {
    dir: PathBuf,
    open: Arc<Mutex<Open>>,
}

/// What is open, by identity. Holds nothing open itself.
#[derive(Debug, Default)]
struct Open {
    frames: HashMap<Digest, Weak<Frames>>,
    stacks: HashMap<Digest, Weak<Stack>>,
}

/// The entry that is still held by somebody; `None` also when `is_broken`.
fn living<T>(open: &HashMap<Digest, Weak<T>>, name: &Digest, is_broken: impl Fn(&T) -> bool) -> Option<Arc<T>> {
    open.get(name).and_then(Weak::upgrade).filter(|found| !is_broken(found))
}

/// Adds an entry unless a living one is there, and answers the one that is there then.
fn shared<T>(open: &mut HashMap<Digest, Weak<T>>, name: Digest, new: Arc<T>, is_broken: impl Fn(&T) -> bool) -> Arc<T> {
    if let Some(found) = living(open, &name, is_broken) {
        return found;
    }
    open.retain(|_, held| held.strong_count() > 0);
    open.insert(name, Arc::downgrade(&new));
    new
}

impl Maps {
    /// The maps in `dir`, which is made when the first image is opened.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), open: Arc::default() }
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The frame table of a layer: the one that is open, or in the making, or the file of an earlier open.
    pub(crate) async fn frames(&self, blob: Blob) -> Result<Option<Arc<Frames>>, TableError> {
        let name = crate::frames::identity(&blob.digest);
        let open = living(&self.open.lock().frames, &name, Frames::is_broken);
        if let Some(frames) = open.filter(|frames| frames.shape().blob == blob) {
            return Ok(Some(frames));
        }
        let dir = self.dir.clone();
        let opened = blocking(&self.dir, move || Frames::open(&dir, &blob)).await?;
        Ok(opened.map(|frames| self.share(frames)))
    }

    /// Shares a frame table; answers the one to be used: another one of the same layer may have come before.
    pub(crate) fn share(&self, frames: Frames) -> Arc<Frames> {
        let (name, blob) = (crate::frames::identity(&frames.shape().blob.digest), frames.shape().blob);
        let other = |found: &Frames| found.is_broken() || found.shape().blob != blob;
        shared(&mut self.open.lock().frames, name, Arc::new(frames), other)
    }

    /// The stack of these blobs that is open.
    pub(crate) fn stack(&self, name: &Digest, blobs: &[Blob]) -> Option<Arc<Stack>> {
        living(&self.open.lock().stacks, name, |stack| stack.is_broken() || !stack.is_of(blobs))
    }

    /// Shares a stack; answers the one to be used.
    pub(crate) fn share_stack(&self, name: Digest, stack: Stack) -> Arc<Stack> {
        let stack = Arc::new(stack);
        let new = Arc::clone(&stack);
        shared(&mut self.open.lock().stacks, name, stack, |found| found.is_broken() || !found.is_same(&new))
    }
}
