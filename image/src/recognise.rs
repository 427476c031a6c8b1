//! What a blob is, from annotations, media types and first bytes. Pure.

use std::{collections::BTreeMap, fmt};

use crate::{lsmt, qcow2, tar, units::u32_at, zfile};

/// Annotation that makes a layer an OverlayBD one: the digest of the layer's blob.
pub const BLOB_DIGEST: &str = "containerd.io/snapshot/overlaybd/blob-digest";
/// Annotation beside it: the size of the layer's blob in bytes.
pub const BLOB_SIZE: &str = "containerd.io/snapshot/overlaybd/blob-size";
/// Annotation with the version of the layer format.
pub const VERSION: &str = "containerd.io/snapshot/overlaybd/version";
/// Annotation with the file system inside.
pub const FS_TYPE: &str = "containerd.io/snapshot/overlaybd/blob-fs-type";
/// Annotation of a layer that holds a recording of reads and no part of the disk.
const ACCELERATION: &str = "containerd.io/snapshot/overlaybd/acceleration-layer";
/// Annotations of TurboOCI layers, the current name and the older one.
const TURBO: [&str; 2] = [
    "containerd.io/snapshot/overlaybd/turbo-oci/target-digest",
    "containerd.io/snapshot/overlaybd/fastoci/target-digest",
];

/// Whether the annotations say that the layer is an OverlayBD one.
pub(crate) fn is_overlaybd(annotations: &BTreeMap<String, String>) -> bool {
    annotations.contains_key(BLOB_DIGEST)
}

/// Whether the layer holds a recording of reads and is no part of the disk.
pub(crate) fn is_acceleration(annotations: &BTreeMap<String, String>) -> bool {
    annotations.get(ACCELERATION).is_some_and(|v| v == "yes")
}

/// Whether the layer is a TurboOCI one: file-system metadata over the original archive.
pub(crate) fn is_turbo(annotations: &BTreeMap<String, String>) -> bool {
    let version = annotations.get(VERSION).map_or("", String::as_str);
    TURBO.iter().any(|key| annotations.contains_key(*key)) || version.contains("turbo") || version.contains("fastoci")
}

/// The digest of the ordinary layer that a TurboOCI layer is about, as its annotations have it.
#[must_use]
pub fn turbo_target(annotations: &BTreeMap<String, String>) -> Option<&str> {
    TURBO.iter().find_map(|key| annotations.get(*key)).map(String::as_str)
}

/// What the annotations of a layer say that it is, without a look at its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Annotated {
    /// An OverlayBD layer.
    OverlayBd,
    /// A recording of reads, beside the layers of a disk.
    Recording,
    /// A TurboOCI layer.
    Turbo,
}

/// What the annotations of a layer say that it is; `None` when they say nothing.
#[must_use]
pub fn annotated(annotations: &BTreeMap<String, String>) -> Option<Annotated> {
    match () {
        () if is_acceleration(annotations) => Some(Annotated::Recording),
        () if is_turbo(annotations) => Some(Annotated::Turbo),
        () if is_overlaybd(annotations) => Some(Annotated::OverlayBd),
        () => None,
    }
}

/// A file system that a raw disk can begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileSystem {
    /// EROFS: u32 0xE0F5E1E2 at byte 1024.
    Erofs,
    /// ext2, ext3 or ext4: u16 0xEF53 at byte 1080.
    Ext,
    /// squashfs: "hsqs" at byte 0.
    Squashfs,
    /// XFS: "XFSB" at byte 0.
    Xfs,
}

impl FileSystem {
    /// The file system whose magic number the first bytes of a disk hold (2048 bytes suffice).
    #[must_use]
    pub fn recognise(head: &[u8]) -> Option<Self> {
        if head.starts_with(b"hsqs") {
            return Some(Self::Squashfs);
        }
        if head.starts_with(b"XFSB") {
            return Some(Self::Xfs);
        }
        if head.len() >= 1028 && u32_at(head, 1024) == 0xe0f5_e1e2 {
            return Some(Self::Erofs);
        }
        // Two bytes alone are weak evidence: the superblock's log block size (at 24) is 0 to 6 in every ext file
        // system.
        let ext = head.get(1080..1082) == Some(&[0x53, 0xef]) && u32_at(head, 1048) <= 6;
        ext.then_some(Self::Ext)
    }
}

impl fmt::Display for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Erofs => "erofs",
            Self::Ext => "ext4",
            Self::Squashfs => "squashfs",
            Self::Xfs => "xfs",
        })
    }
}

/// What the first bytes of a blob are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// An OverlayBD layer: LSMT or ZFile, bare or as a member of a tar archive.
    OverlayBd,
    /// A file-system image.
    Disk(FileSystem),
    /// A qcow2 file.
    Qcow2,
    /// Something that no device can be made of.
    Other(What),
}

impl Content {
    /// Whether it is an archive, compressed or not: in a registry, an ordinary layer.
    #[must_use]
    pub const fn is_archive(self) -> bool {
        matches!(self, Self::Other(What::Gzip | What::Zstd | What::Tar))
    }
}

/// What an image is that is not a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum What {
    /// A TurboOCI image.
    TurboOci,
    /// A gzip stream: in a registry, an ordinary tar+gzip layer.
    Gzip,
    /// A zstd stream: in a registry, an ordinary tar+zstd layer.
    Zstd,
    /// An ordinary tar archive.
    Tar,
    /// A disk with a partition table.
    Partitioned,
    /// Several layers of which one is a file-system image.
    DiskAmongLayers,
    /// Nothing known.
    Unknown,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TurboOci => "a TurboOCI layer (metadata over the original archive), which cannot be opened without that archive",
            Self::Gzip => "an ordinary tar+gzip layer, of which this node has no index; make one with penstock index, or convert the image",
            Self::Zstd => "an ordinary tar+zstd layer, of which this node has no index; make one with penstock index, or convert the image",
            Self::Tar => "an ordinary tar layer, of which this node has no index; make one with penstock index, or convert the image",
            Self::Partitioned => {
                "a disk with a partition table; push the file system of one partition as the blob, or the disk as qcow2"
            }
            Self::DiskAmongLayers => {
                "a file-system image among several layers; a raw disk must be the only layer, or below a qcow2 disk that it is the backing file of"
            }
            Self::Unknown => "neither an OverlayBD layer nor a qcow2 disk nor an EROFS, ext4, squashfs or XFS file system",
        })
    }
}

/// Whether `content` begins as a layer, without a tar wrapper.
pub(crate) fn is_bare_layer(content: &[u8]) -> bool {
    content.starts_with(&zfile::MAGIC) || content.starts_with(&lsmt::MAGIC)
}

/// What a blob of `blob_bytes` is by its `head` (4 KiB suffice for everything but an unusual tar wrapper).
#[must_use]
pub fn content(head: &[u8], blob_bytes: u64) -> Content {
    if is_bare_layer(head) {
        return Content::OverlayBd;
    }
    if head.starts_with(&qcow2::MAGIC) {
        return Content::Qcow2;
    }
    if tar::is_tar(head) {
        return match tar::unwrap(head, blob_bytes, is_bare_layer) {
            Ok(tar::Wrapper::Payload(_)) => Content::OverlayBd,
            Ok(_) | Err(_) => Content::Other(What::Tar),
        };
    }
    if let Some(file_system) = FileSystem::recognise(head) {
        return Content::Disk(file_system);
    }
    Content::Other(match head {
        [0x1f, 0x8b, ..] => What::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => What::Zstd,
        _ if head.get(510..512) == Some(&[0x55, 0xaa]) || head.get(512..520) == Some(b"EFI PART") => What::Partitioned,
        _ => What::Unknown,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_are_known_by_their_magic_and_place() {
        let with = |at: usize, magic: &[u8]| {
            let mut head = vec![0_u8; 2048];
            head[at..at + magic.len()].copy_from_slice(magic);
            content(&head, 1 << 20)
        };
        assert_eq!(with(0, b"hsqs"), Content::Disk(FileSystem::Squashfs));
        assert_eq!(with(0, b"XFSB"), Content::Disk(FileSystem::Xfs));
        assert_eq!(with(1024, &0xe0f5_e1e2_u32.to_le_bytes()), Content::Disk(FileSystem::Erofs));
        assert_eq!(with(1080, &0xef53_u16.to_le_bytes()), Content::Disk(FileSystem::Ext));
        assert_eq!(with(0, &[0x1f, 0x8b, 8]), Content::Other(What::Gzip));
        assert_eq!(with(0, &0xfd2f_b528_u32.to_le_bytes()), Content::Other(What::Zstd));
        assert_eq!(with(510, &[0x55, 0xaa]), Content::Other(What::Partitioned));
        assert_eq!(with(0, b"QFI\xfb"), Content::Qcow2);
        assert_eq!(with(4, b"hsqs"), Content::Other(What::Unknown));
        assert_eq!(content(b"", 0), Content::Other(What::Unknown));
        assert_eq!(content(&zfile::MAGIC, 24), Content::OverlayBd);
    }

    #[test]
    fn annotations_tell_the_kinds_of_layers_apart() {
        let map = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
        assert!(is_overlaybd(&map(BLOB_DIGEST, "sha256:..")) && !is_overlaybd(&map(VERSION, "0.1.0")));
        for turbo in
            [map(TURBO[0], ""), map(TURBO[1], ""), map(VERSION, "0.1.0-turbo.ociv1"), map(VERSION, "0.1.0-fastoci")]
        {
            assert!(is_turbo(&turbo), "{turbo:?}");
        }
        assert!(!is_turbo(&map(VERSION, "0.1.0")));
        let both = BTreeMap::from([TURBO[1], TURBO[0]].map(|key| (key.to_owned(), key.to_owned())));
        assert_eq!(turbo_target(&both), Some(TURBO[0]), "the current name goes first");
        assert_eq!((turbo_target(&map(TURBO[1], "x")), turbo_target(&map(VERSION, "x"))), (Some("x"), None));
        assert!(is_acceleration(&map(ACCELERATION, "yes")) && !is_acceleration(&map(ACCELERATION, "no")));
        for (annotations, kind) in [
            (map(BLOB_DIGEST, "sha256:.."), Some(Annotated::OverlayBd)),
            (map(TURBO[0], ""), Some(Annotated::Turbo)),
            (map(ACCELERATION, "yes"), Some(Annotated::Recording)),
            (map(FS_TYPE, "ext4"), None),
        ] {
            assert_eq!(annotated(&annotations), kind, "{annotations:?}");
        }
    }
}
