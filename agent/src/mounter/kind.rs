//! What a layer is, and what follows from that for a container that is to read it on demand. Pure.

use penstock_fetcher::Descriptor;
use penstock_image::{Annotated, Content, FileSystem, What};
use penstock_snapshotter::Shape;

use crate::state::record::{MAX_LAYERS, Part};

/// What a layer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// An OverlayBD or TurboOCI layer, or a recording beside such layers: part of a merged disk.
    OverlayBd,
    /// A file system of its own.
    Disk(FileSystem),
    /// A tar, compressed or not: what it is, in words. Read on demand by an index of it, if there is one; else unpacked.
    Archive(&'static str),
    /// Something else that is unpacked: what it is, in words.
    Ordinary(String),
}

/// What the manifest alone says about a layer; `None` when its first bytes have to be looked at.
///
/// A compressed media type is believed: what is served under it is unpacked by every other node, and a look would cost a request for each layer of
/// every ordinary image. Of an uncompressed one the content decides: OverlayBD layers and file systems have no media type of their own.
pub(super) fn described(layer: &Descriptor) -> Option<Kind> {
    match penstock_image::annotated(&layer.annotations) {
        Some(Annotated::OverlayBd | Annotated::Turbo | Annotated::Recording) => return Some(Kind::OverlayBd),
        None => {}
    }
    let media_type = layer.media_type.as_str();
    let is = |suffixes: &[&str]| suffixes.iter().any(|suffix| media_type.ends_with(suffix));
    match () {
        () if is(&["+gzip", ".gzip", ".gz"]) => Some(Kind::Archive("an ordinary tar+gzip layer")),
        () if is(&["+zstd", ".zstd"]) => Some(Kind::Archive("an ordinary tar+zstd layer")),
        () if media_type.contains("+encrypted") => Some(Kind::Ordinary("an encrypted layer".to_owned())),
        () => None,
    }
}

/// What a layer is by its first bytes.
pub(super) fn seen(content: Content) -> Kind {
    match content {
        Content::OverlayBd => Kind::OverlayBd,
        Content::Disk(file_system) => Kind::Disk(file_system),
        Content::Qcow2 => {
            Kind::Ordinary("a qcow2 disk, which is for a machine (penstock attach) and no layer".to_owned())
        }
        Content::Other(What::Gzip) => Kind::Archive("an ordinary tar+gzip layer"),
        Content::Other(What::Zstd) => Kind::Archive("an ordinary tar+zstd layer"),
        Content::Other(What::Tar) => Kind::Archive("an ordinary tar layer"),
        Content::Other(what) => Kind::Ordinary(what.to_string()),
    }
}

/// What becomes of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    /// A device shows this; in words.
    Lazy(Shape, String),
    /// It is read on demand by an index of it, if there is one, and else unpacked; what it is, in words.
    Indexed(&'static str),
    /// It is unpacked, as on every other node; why.
    Unpacked(String),
    /// It is a disk, which unpacked would be a layer without files, and it cannot be shown; why.
    Refused(String),
}

/// What becomes of a layer of `kind` over layers of the kinds `below` (the lowest first).
pub(super) fn decide(kind: &Kind, below: &[Kind]) -> Decision {
    let lazy = |shape, how: String| Decision::Lazy(shape, how);
    match kind {
        Kind::Ordinary(what) => Decision::Unpacked(format!("{what}: unpacked in full")),
        Kind::Archive(what) => Decision::Indexed(what),
        _ if below.len() >= MAX_LAYERS => {
            Decision::Refused(format!("a device shows at most {MAX_LAYERS} layers, and the image has more"))
        }
        Kind::Disk(file_system) => lazy(Shape::Single, format!("raw {file_system} layer")),
        Kind::OverlayBd => match below.iter().position(|kind| *kind != Kind::OverlayBd) {
            None if below.is_empty() => lazy(Shape::Merged, "OverlayBD, 1 layer".to_owned()),
            None => lazy(Shape::Merged, format!("OverlayBD, {} layers", below.len() + 1)),
            Some(other) => Decision::Refused(format!(
                "an OverlayBD layer over layer {}, which is none, cannot be merged with it",
                other + 1
            )),
        },
    }
}

/// What devices show of an image with layers of these kinds, the lowest first, when a container runs it: each disk alone, and the highest stack.
pub(super) fn needed(kinds: &[Kind]) -> Vec<Part> {
    let mut parts = Vec::new();
    for (depth, kind) in kinds.iter().enumerate().rev() {
        match decide(kind, &kinds[..depth]) {
            Decision::Lazy(Shape::Single, _) => parts.push(Part { first: depth, count: 1 }),
            Decision::Lazy(Shape::Merged, _) => {
                parts.push(Part::all(depth + 1));
                break;
            }
            Decision::Indexed(_) | Decision::Unpacked(_) | Decision::Refused(_) => {}
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use penstock_blob::Digest;

    use super::*;

    fn layer(media_type: &str, annotation: Option<(&str, &str)>) -> Descriptor {
        Descriptor {
            media_type: media_type.to_owned(),
            digest: Digest::of(b"x"),
            size_bytes: 1,
            annotations: annotation.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
            platform: None,
            artifact_type: None,
        }
    }

    #[test]
    fn annotations_go_before_media_types_and_an_uncompressed_one_is_looked_into() {
        const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
        let of = |media_type: &str| described(&layer(media_type, None));
        for media_type in
            ["application/vnd.oci.image.layer.v1.tar+gzip", "application/vnd.docker.image.rootfs.diff.tar.gzip"]
        {
            assert!(matches!(of(media_type), Some(Kind::Archive(what)) if what.contains("tar+gzip")), "{media_type}");
        }
        assert!(
            matches!(of("application/vnd.oci.image.layer.v1.tar+zstd"), Some(Kind::Archive(what)) if what.contains("zstd"))
        );
        assert_eq!((of(TAR), of("application/octet-stream")), (None, None));
        let obd = Some((penstock_image::BLOB_DIGEST, "sha256:00"));
        assert_eq!(described(&layer("application/vnd.oci.image.layer.v1.tar+gzip", obd)), Some(Kind::OverlayBd));
        let turbo = Some(("containerd.io/snapshot/overlaybd/turbo-oci/target-digest", "sha256:00"));
        assert_eq!(described(&layer(TAR, turbo)), Some(Kind::OverlayBd), "it is part of a merged disk, too");
    }

    #[test]
    fn a_stack_is_merged_a_disk_stands_alone_a_tar_goes_by_its_index_and_what_is_neither_is_unpacked_with_the_reason() {
        let (obd, erofs, tar) = (Kind::OverlayBd, Kind::Disk(FileSystem::Erofs), seen(Content::Other(What::Tar)));
        let merged = |how: &str| Decision::Lazy(Shape::Merged, how.to_owned());
        assert_eq!(decide(&obd, &[]), merged("OverlayBD, 1 layer"));
        assert_eq!(decide(&obd, &[obd.clone(), obd.clone()]), merged("OverlayBD, 3 layers"));
        let single = Decision::Lazy(Shape::Single, "raw erofs layer".to_owned());
        assert_eq!(decide(&erofs, std::slice::from_ref(&tar)), single);
        let indexed = Decision::Indexed("an ordinary tar layer");
        assert_eq!(decide(&tar, std::slice::from_ref(&obd)), indexed);
        let encrypted = Kind::Ordinary("an encrypted layer".to_owned());
        let unpacked = Decision::Unpacked("an encrypted layer: unpacked in full".to_owned());
        assert_eq!(decide(&encrypted, &vec![tar.clone(); 300]), unpacked, "containerd unpacks as many as it likes");
        for (kind, below) in
            [(&obd, vec![obd.clone(), tar]), (&obd, vec![obd.clone(); 255]), (&erofs, vec![erofs.clone(); 255])]
        {
            assert!(matches!(decide(kind, &below), Decision::Refused(_)), "unpacked it would be empty");
        }
        assert!(matches!(decide(&obd, &[obd.clone(), erofs]), Decision::Refused(why) if why.contains("over layer 2")));
    }

    #[test]
    fn a_container_needs_the_highest_stack_and_the_disks_above_it() {
        let (obd, erofs, tar) = (Kind::OverlayBd, Kind::Disk(FileSystem::Erofs), seen(Content::Other(What::Tar)));
        let part = |first, count| Part { first, count };
        assert_eq!(needed(&[obd.clone(), obd.clone(), obd.clone()]), [part(0, 3)]);
        assert_eq!(
            needed(&[obd.clone(), obd, tar.clone(), erofs.clone(), erofs.clone()]),
            [part(4, 1), part(3, 1), part(0, 2)]
        );
        assert_eq!(needed(&[erofs, tar.clone()]), [part(0, 1)]);
        assert_eq!(needed(&[tar]), []);
    }
}
