//! A layer that came out empty: was it a tar of nothing, or a disk that was read as a tar?
//!
//! EROFS and ext4 begin with 1024 zero bytes, which is how a tar ends. So a layer that is such a disk and is unpacked (because nobody could tell what it
//! is: its registry did not answer, or its labels were missing) leaves an empty directory, and no error. Containers would start without its files.

use penstock_blob::Digest;

use crate::{
    error::SnapshotError,
    labels::{self, TARGET},
    mounter::{MountError, Offer},
    record::{Content, Record},
};

use super::Snapshotter;

/// Bytes of a block of a tar; of a tar of nothing, all are zero.
const BLOCK_BYTES: usize = 512;
/// Most blocks of a tar of nothing: writers end one with two, and fill up to twenty (tar(5)).
const BLOCKS: usize = 20;

impl Snapshotter {
    /// Refuses to commit a layer, of which nothing was unpacked, over `parent`, unless it is known to be a tar: by its chain ID or by what the mounter says of it.
    pub(super) async fn check_hollow(&self, active: &Record, parent: Option<&str>) -> Result<(), SnapshotError> {
        let (Content::Directory { .. }, Some(target)) = (&active.content, active.labels.get(TARGET)) else {
            return Ok(());
        };
        let below = self.table.lock().chain(parent)?;
        let chain_below = below.first().map(|record| chain(record));
        if let Ok(target) = target.parse()
            && is_nothing(target, chain_below)
        {
            return Ok(());
        }
        let offered = match labels::layer(&active.labels, below.len()) {
            Some(Ok(layer)) => self.offer(&layer).await,
            Some(Err(reason)) => Err(MountError::Permanent { reason }),
            None => return Ok(()),
        };
        let (why, is_transient) = match offered {
            Ok(Offer::Eager { .. }) => return Ok(()),
            Ok(Offer::Lazy { how, .. }) => (format!("it is known by now: {how}; another try reads it on demand"), true),
            Ok(Offer::Refused { why, is_transient }) => (why, is_transient),
            Err(error) => (error.to_string(), !matches!(error, MountError::Permanent { .. })),
        };
        let reason = format!(
            "nothing was unpacked of layer {target}: it may be a disk (EROFS, ext4) that was taken for a tar, and whether it is one could \
             not be found out: {why}"
        );
        Err(if is_transient { SnapshotError::unavailable(reason) } else { SnapshotError::precondition(reason) })
    }
}

/// The chain ID of a committed layer.
fn chain(record: &Record) -> Option<Digest> {
    let name = record.name.rsplit('/').next()?;
    record.labels.get(TARGET).map_or(name, String::as_str).parse().ok()
}

/// Whether the layer that makes `target` of what is below is a tar of nothing. `below` is the chain ID there, as far as it is known.
fn is_nothing(target: Digest, below: Option<Option<Digest>>) -> bool {
    let over = |diff: Digest| match below {
        None => Some(diff),
        Some(below) => below.map(|below| Digest::of(format!("{below} {diff}").as_bytes())),
    };
    let zeros = [0; BLOCKS * BLOCK_BYTES];
    (0..=BLOCKS).any(|blocks| over(Digest::of(&zeros[..blocks * BLOCK_BYTES])) == Some(target))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tar_of_nothing_is_known_by_the_chain_id_that_it_makes() {
        // As docker and buildkit write an empty layer; as GNU tar does.
        let docker: Digest = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef".parse().unwrap();
        let gnu: Digest = "sha256:84ff92691f909a05b224e1c56abb4864f01b4f8e3c854e4bb4c7baf1d3f6d652".parse().unwrap();
        let below = Digest::of(b"below");
        for diff in [docker, gnu] {
            assert!(is_nothing(diff, None));
            let over = Digest::of(format!("{below} {diff}").as_bytes());
            assert!(is_nothing(over, Some(Some(below))));
            assert!(!is_nothing(over, None) && !is_nothing(over, Some(None)) && !is_nothing(diff, Some(Some(below))));
        }
        assert!(!is_nothing(Digest::of(b"a disk"), None));
    }
}
