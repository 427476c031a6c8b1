//! How the bytes of an attached image are verified, in words.

use penstock_blob::Digest;
use penstock_image::{Image, Kind};
use penstock_index::Verified;

use crate::indexes::Proof;

/// What every lazy read of one blob passes, the strongest first.
pub(super) fn of_blob(image: &Image, blob: &Digest, verified: &Verified) -> String {
    let listed = verified.listed(blob).map(|listed| format!("index (BLAKE3 / {} KiB)", listed.grid.bytes() >> 10));
    let checked = image.is_checked(blob).then(|| "zfile crc32c".to_owned());
    let is_framed = matches!(image.kind(), Kind::Layer { .. } | Kind::Layers { .. });
    let framed = is_framed.then(|| "layer index (sha256 per frame)".to_owned());
    let unchecked = image.is_archive(blob).then(|| "nothing: TurboOCI has no digests of files".to_owned());
    let whole = (!image.is_archive(blob)).then(|| "digest once whole".to_owned());
    [listed, checked, framed, unchecked, whole].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// What every lazy read of the image passes.
pub(super) fn of_device(image: &Image, proof: &Proof, verified: &Verified) -> String {
    let listed = image.blobs().iter().filter(|blob| verified.listed(&blob.digest).is_some()).count();
    let rest = image.how_verified();
    match (listed, proof.note()) {
        (0, None) => rest.to_owned(),
        (0, Some(note)) => format!("{rest}; by no index: {note}"),
        (n, _) if n == image.blobs().len() => {
            "BLAKE3 of every chunk, by the image's index, before it is kept or served".to_owned()
        }
        (n, _) => format!("BLAKE3 of every chunk of {n} of {} layers, by an index; {rest}", image.blobs().len()),
    }
}
