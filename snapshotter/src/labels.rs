//! What the labels of a request say: which layer is meant, how ids are mapped.

use std::str::FromStr;

use penstock_blob::Digest;

use crate::{error::SnapshotError, mounter::Layer, record::Labels};

#[cfg(test)]
mod tests;

/// The chain ID that is wanted: set by containerd when it unpacks an image.
pub(crate) const TARGET: &str = "containerd.io/snapshot.ref";
/// How ids inside a container's user namespace are mapped: `inside:outside:count`, with commas between.
pub(crate) const UID_MAPPING: &str = "containerd.io/snapshot/uidmapping";
/// As [`UID_MAPPING`], of groups.
pub(crate) const GID_MAPPING: &str = "containerd.io/snapshot/gidmapping";

/// The image as its user wrote it: CRI, nerdctl and containerd's transfer service; `ctr-remote rpull`.
const REFERENCE: [&str; 2] = ["containerd.io/snapshot/cri.image-ref", "containerd.io/snapshot/remote/stargz.reference"];
/// The layer's blob, from the same two.
const LAYER: [&str; 2] = ["containerd.io/snapshot/cri.layer-digest", "containerd.io/snapshot/remote/stargz.digest"];
/// The manifest for this platform; only the first of the two says it.
const MANIFEST: &str = "containerd.io/snapshot/cri.manifest-digest";

/// How a layer is wished to be read: what the agent's `layers.prefer` says, for this one. containerd passes on annotations of a layer that begin like
/// this as labels; so this is the name of the annotation, too.
pub const PREFER: &str = "containerd.io/snapshot/penstock.prefer";

/// Most bytes of one label, key and value together: containerd's bound.
const MAX_LABEL_BYTES: usize = 4096;
/// Most ranges of one mapping: the kernel's bound (user_namespaces(7)).
const MAX_RANGES: usize = 340;

/// Refuses labels that containerd's own store would refuse, and drops those without a value, as it does.
pub(crate) fn kept(mut labels: Labels) -> Result<Labels, SnapshotError> {
    labels.retain(|_, value| !value.is_empty());
    match labels.iter().find(|(key, value)| key.len() + value.len() > MAX_LABEL_BYTES) {
        Some((key, _)) => {
            let key: String = key.chars().take(100).collect();
            Err(SnapshotError::invalid(format!("label {key:?} and its value take more than {MAX_LABEL_BYTES} bytes")))
        }
        None => Ok(labels),
    }
}

/// Which layer is asked for, `depth` layers above the image's first. None when it is not a layer of an image that is being unpacked; else the layer,
/// or why the labels do not say which.
pub(crate) fn layer(labels: &Labels, depth: usize) -> Option<Result<Layer, String>> {
    labels.get(TARGET).map(|target| described(labels, target, depth))
}

fn described(labels: &Labels, target: &str, depth: usize) -> Result<Layer, String> {
    let any = |keys: &[&str]| keys.iter().find_map(|key| labels.get(*key));
    let advice =
        "set disable_snapshot_annotations = false for the pulls of kubelet, and for others see docs/containerd.md";
    let reference = any(&REFERENCE).ok_or_else(|| format!("containerd passed no image reference: {advice}"))?;
    let digest = any(&LAYER).ok_or_else(|| format!("containerd passed no layer digest: {advice}"))?;
    let parsed = |what: &str, text: &str| {
        Digest::from_str(text).map_err(|e| format!("the {what} that containerd passed is not understood: {e}"))
    };
    Ok(Layer {
        reference: reference.clone(),
        manifest: labels.get(MANIFEST).map(|text| parsed("manifest digest", text)).transpose()?,
        digest: parsed("layer digest", digest)?,
        depth,
        chain: parsed("chain ID", target)?,
        prefer: labels.get(PREFER).cloned(),
    })
}

/// How the ids of a container's user namespace are to be mapped.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct IdMap {
    /// As [`UID_MAPPING`], checked.
    uids: Option<String>,
    /// As [`GID_MAPPING`], checked.
    gids: Option<String>,
}

impl IdMap {
    /// Reads the labels.
    pub(crate) fn of(labels: &Labels) -> Result<Self, SnapshotError> {
        let read = |key: &str| labels.get(key).map(|text| checked(key, text)).transpose();
        Ok(Self { uids: read(UID_MAPPING)?, gids: read(GID_MAPPING)? })
    }

    /// Whether anything is mapped.
    pub(crate) const fn is_some(&self) -> bool {
        self.uids.is_some() || self.gids.is_some()
    }

    /// The options by which containerd, which makes the mount, knows of the mapping.
    pub(crate) fn options(&self) -> Vec<String> {
        let option = |name: &str, map: &Option<String>| map.as_ref().map(|map| format!("{name}={map}"));
        [option("uidmap", &self.uids), option("gidmap", &self.gids)].into_iter().flatten().collect()
    }

    /// Which user and group of the host are root inside.
    pub(crate) fn root(&self) -> (Option<u32>, Option<u32>) {
        let root = |map: &Option<String>| {
            let ranges = map.as_deref()?.split(',').filter_map(range);
            ranges.into_iter().find(|(inside, ..)| *inside == 0).map(|(_, outside, _)| outside)
        };
        (root(&self.uids), root(&self.gids))
    }
}

/// One range of a mapping: first id inside, first id outside, how many.
fn range(text: &str) -> Option<(u32, u32, u32)> {
    let mut parts = text.split(':').map(u32::from_str);
    let range = (parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?);
    let fits = range.2 > 0 && range.0.checked_add(range.2 - 1).is_some() && range.1.checked_add(range.2 - 1).is_some();
    (fits && parts.next().is_none()).then_some(range)
}

fn checked(key: &str, text: &str) -> Result<String, SnapshotError> {
    let ranges: Option<Vec<_>> = text.split(',').map(range).collect();
    match ranges {
        Some(ranges) if ranges.len() <= MAX_RANGES => Ok(text.to_owned()),
        _ => Err(SnapshotError::invalid(format!(
            "label {key:?} is not a mapping of ids, inside:outside:count with commas between and at most {MAX_RANGES} of them"
        ))),
    }
}
