//! What a layer is, and what follows from that for a container that is to read it on demand. Pure.

use penstock_fetcher::Descriptor;
use penstock_image::{Annotated, Content, FileSystem, What};
use penstock_snapshotter::Shape;

/// What a layer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// An OverlayBD layer, or a recording beside such layers: part of a merged disk.
    OverlayBd,
    /// A file system of its own.
    Disk(FileSystem),
    /// Something that is unpacked: what it is, in words.
    Ordinary(String),
}

/// What the manifest alone says about a layer; `None` when its first bytes have to be looked at.
///
/// A compressed media type is believed: what is served under it is unpacked by every other node, and a look would cost a request for each layer of
/// every ordinary image. Of an uncompressed one the content decides: OverlayBD layers and file systems have no media type of their own.
pub(super) fn described(layer: &Descriptor) -> Option<Kind> {
    match penstock_image::annotated(&layer.annotations) {
        Some(Annotated::OverlayBd | Annotated::Recording) => return Some(Kind::OverlayBd),
        Some(Annotated::Turbo) => {
            return Some(Kind::Ordinary("a TurboOCI layer, which cannot be read on demand yet".to_owned()));
        }
        None => {}
    }
    let media_type = layer.media_type.as_str();
    let is = |suffixes: &[&str]| suffixes.iter().any(|suffix| media_type.ends_with(suffix));
    match () {
        () if is(&["+gzip", ".gzip", ".gz"]) => Some(Kind::Ordinary("an ordinary tar+gzip layer".to_owned())),
        () if is(&["+zstd", ".zstd"]) => Some(Kind::Ordinary("an ordinary tar+zstd layer".to_owned())),
        () if media_type.contains("+encrypted") => Some(Kind::Ordinary("an encrypted layer".to_owned())),
        () => None,
    }
}

/// What a layer is by its first bytes.
pub(super) fn seen(content: Content) -> Kind {
    match content {
        Content::OverlayBd => Kind::OverlayBd,
        Content::Disk(file_system) => Kind::Disk(file_system),
        Content::Other(What::Gzip) => Kind::Ordinary("an ordinary tar+gzip layer".to_owned()),
        Content::Other(What::Zstd) => Kind::Ordinary("an ordinary tar+zstd layer".to_owned()),
        Content::Other(What::Tar) => Kind::Ordinary("an ordinary tar layer".to_owned()),
        Content::Other(what) => Kind::Ordinary(what.to_string()),
    }
}

/// How a layer of `kind` is shown, over layers of the kinds `below` (the lowest first): what the device shows, and in words; or why it is unpacked.
pub(super) fn decide(kind: &Kind, below: &[Kind]) -> Result<(Shape, String), String> {
    match kind {
        Kind::Ordinary(what) => Err(format!("{what}: unpacked in full")),
        Kind::Disk(file_system) => Ok((Shape::Single, format!("raw {file_system} layer"))),
        Kind::OverlayBd => match below.iter().position(|kind| *kind != Kind::OverlayBd) {
            None if below.is_empty() => Ok((Shape::Merged, "OverlayBD, 1 layer".to_owned())),
            None => Ok((Shape::Merged, format!("OverlayBD, {} layers", below.len() + 1))),
            Some(other) => Err(format!(
                "an OverlayBD layer over layer {}, which is none, cannot be merged with it: unpacked in full",
                other + 1
            )),
        },
    }
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
            assert!(matches!(of(media_type), Some(Kind::Ordinary(what)) if what.contains("tar+gzip")), "{media_type}");
        }
        assert!(
            matches!(of("application/vnd.oci.image.layer.v1.tar+zstd"), Some(Kind::Ordinary(what)) if what.contains("zstd"))
        );
        assert_eq!((of(TAR), of("application/octet-stream")), (None, None));
        let obd = Some((penstock_image::BLOB_DIGEST, "sha256:00"));
        assert_eq!(described(&layer("application/vnd.oci.image.layer.v1.tar+gzip", obd)), Some(Kind::OverlayBd));
        let turbo = Some(("containerd.io/snapshot/overlaybd/turbo-oci/target-digest", "sha256:00"));
        assert!(matches!(described(&layer(TAR, turbo)), Some(Kind::Ordinary(what)) if what.contains("TurboOCI")));
    }

    #[test]
    fn a_stack_is_merged_a_disk_stands_alone_and_the_rest_is_unpacked_with_the_reason() {
        let (obd, erofs, tar) = (Kind::OverlayBd, Kind::Disk(FileSystem::Erofs), seen(Content::Other(What::Tar)));
        let merged = |how: &str| Ok((Shape::Merged, how.to_owned()));
        assert_eq!(decide(&obd, &[]), merged("OverlayBD, 1 layer"));
        assert_eq!(decide(&obd, &[obd.clone(), obd.clone()]), merged("OverlayBD, 3 layers"));
        assert_eq!(decide(&erofs, std::slice::from_ref(&tar)), Ok((Shape::Single, "raw erofs layer".to_owned())));
        assert_eq!(decide(&tar, std::slice::from_ref(&obd)), Err("an ordinary tar layer: unpacked in full".to_owned()));
        assert!(decide(&obd, &[obd.clone(), tar]).unwrap_err().contains("over layer 2"));
    }
}
