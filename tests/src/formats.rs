//! Images in the formats of others, made of an ordinary one and pushed by the formats' own tools.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use crate::{
    containerd::{Place, ctr_remote, soci},
    layer_device::run,
};

/// containerd's namespace in which images are converted: apart from those that are run.
const NAMESPACE: &str = "tools";

/// Why the tools cannot be had here.
#[must_use]
pub fn cannot() -> Option<String> {
    ctr_remote().err().or_else(|| soci().err())
}

fn ctr(place: &Place, arguments: &[&str]) {
    let _ = place.ctr(NAMESPACE, arguments).ok();
}

/// Has a containerd fetch an image, so that the tools find it there.
pub fn fetch(place: &Place, image: &str) {
    ctr(place, &["content", "fetch", "--plain-http", image]);
}

/// Pushes an image that was [fetched](fetch), as `ctr-remote images convert` makes it with these flags: `--estargz`, `--zstdchunked`.
///
/// # Panics
/// When a tool fails; ask [`cannot`] first.
pub fn converted(place: &Place, (image, to): (&str, &str), flags: &[&str]) {
    let mut convert = Command::new(ctr_remote().expect("asked before"));
    convert.arg("-a").arg(place.socket()).args(["-n", NAMESPACE, "images", "convert", "--oci"]);
    run(convert.args(flags).args([image, to]).stdin(Stdio::null()));
    ctr(place, &["images", "push", "--plain-http", to]);
}

/// Gives soci a place for its list of what it made, which cannot be chosen: in a mount namespace of its own, the directory `$0`.
const APART: &str = "mount -t tmpfs soci /var/lib && mkdir /var/lib/soci-snapshotter-grpc && \
                     mount --bind \"$0\" /var/lib/soci-snapshotter-grpc && exec \"$@\"";

/// Pushes a SOCI index (version 1) with spans of this size of an image that was [fetched](fetch). `dir` is empty and exists.
///
/// # Panics
/// When the tool fails; ask [`cannot`] first.
pub fn indexed_by_soci(place: &Place, (image, span_bytes): (&str, u64), dir: &Path) {
    let span_bytes = span_bytes.to_string();
    let create = ["create", "--span-size", &span_bytes, "--min-layer-size", "0"];
    for command in [&create[..], &["push", "--plain-http"]] {
        let mut tool = Command::new("unshare");
        tool.args(["--mount", "sh", "-c", APART]).arg(dir).arg(soci().expect("asked before"));
        tool.arg("-a").arg(place.socket()).args(["-n", NAMESPACE]);
        run(tool.args(command).arg(image).stdin(Stdio::null()));
    }
}
