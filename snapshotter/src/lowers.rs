//! Which directories a snapshot is mounted from, and how: decided from records alone.

use std::{path::PathBuf, sync::Arc};

use crate::{
    error::SnapshotError,
    mounter::Shape,
    proto::types::Mount,
    record::{Content, Kind, Record},
};

#[cfg(test)]
mod tests;

/// Most lower directories that overlayfs takes (the kernel's `OVL_MAX_STACK`).
const MAX_LOWERS: usize = 500;
/// Most bytes of mount options: one page, with its final zero (mount(2)).
const MAX_OPTION_BYTES: usize = 4095;

/// Of `chain`, a parent and all above it from the top down, those whose directory is a lower: all to the first that shows everything below it too.
pub(crate) fn lowers(chain: &[Arc<Record>]) -> &[Arc<Record>] {
    let merged = |record: &Arc<Record>| matches!(record.content, Content::Lazy { shape: Shape::Merged, .. });
    match chain.iter().position(merged) {
        Some(at) => &chain[..=at],
        None => chain,
    }
}

/// What one snapshot is mounted from.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) kind: Kind,
    /// Its own directory.
    pub(crate) upper: PathBuf,
    /// overlayfs's scratch directory.
    pub(crate) work: PathBuf,
    /// Lower directories, the top one first.
    pub(crate) lowers: Vec<PathBuf>,
    /// Options that go before all others.
    pub(crate) options: Vec<String>,
    /// Whether overlayfs knows `index=off`. Where it is not given, a lower that two mounts use is refused on some hosts.
    pub(crate) index_off: bool,
}

impl Plan {
    /// The mount that containerd is to make: what its overlayfs snapshotter answers for the same directories.
    pub(crate) fn mount(self) -> Result<Mount, SnapshotError> {
        let view = self.kind == Kind::View;
        let text = |path: &PathBuf| path.to_string_lossy().into_owned();
        match self.lowers.as_slice() {
            [] => Ok(bind(text(&self.upper), self.options, if view { "ro" } else { "rw" })),
            [only] if view => Ok(bind(text(only), self.options, "ro")),
            _ => self.overlay(),
        }
    }

    fn overlay(self) -> Result<Mount, SnapshotError> {
        self.fits()?;
        let mut options = self.options;
        if self.index_off {
            options.push("index=off".into());
        }
        if self.kind == Kind::Active {
            options.push(format!("workdir={}", self.work.display()));
            options.push(format!("upperdir={}", self.upper.display()));
        }
        let lowers: Vec<String> = self.lowers.iter().map(|path| path.to_string_lossy().into_owned()).collect();
        options.push(format!("lowerdir={}", lowers.join(":")));
        Ok(Mount { r#type: "overlay".into(), source: "overlay".into(), target: String::new(), options })
    }

    /// Whether the kernel will take it. containerd writes directories relative to the one that all are in when the options would not fit in
    /// a page, so what counts is that shorter form: `12/fs`.
    fn fits(&self) -> Result<(), SnapshotError> {
        let short = |path: &PathBuf| path.iter().rev().take(2).map(|part| part.len() + 1).sum::<usize>();
        let fixed = self.options.iter().map(|option| option.len() + 1).sum::<usize>()
            + format!("index=off,workdir={},upperdir={},lowerdir=", self.work.display(), self.upper.display()).len();
        let bytes = fixed + self.lowers.iter().map(short).sum::<usize>();
        if self.lowers.len() <= MAX_LOWERS && bytes <= MAX_OPTION_BYTES {
            return Ok(());
        }
        Err(SnapshotError::precondition(format!(
            "{} layers cannot be mounted over each other: overlayfs takes {MAX_LOWERS}, and their directories in {MAX_OPTION_BYTES} \
             bytes of options; squash the image to fewer layers",
            self.lowers.len()
        )))
    }
}

fn bind(source: String, mut options: Vec<String>, access: &str) -> Mount {
    options.extend([access.to_owned(), "rbind".to_owned()]);
    Mount { r#type: "bind".into(), source, target: String::new(), options }
}
