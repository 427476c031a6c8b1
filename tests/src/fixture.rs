//! The real OverlayBD images in `tests/fixtures/overlaybd`, and the truth about them. Its README says how they were made.

use std::{
    fs::{self, File},
    io::Read as _,
    path::PathBuf,
};

use serde_json::Value;

use crate::{
    push::Layer,
    tree::{Entry, Tree},
    workspace,
};

/// sha256 of the whole device of the three layers, whatever their encoding.
pub const DEVICE_SHA256: &str = "0755cadb08dc82c01cd7254bd3f09b9dcd1c60d292a868e4fff2270df21378c4";

/// Size of that device in bytes.
pub const DEVICE_BYTES: u64 = 1 << 30;

/// The fixture directory.
#[must_use]
pub fn dir() -> PathBuf {
    workspace::root().join("tests/fixtures/overlaybd")
}

/// The OCI layout with the images `obd-lz4` and `obd-zstd16`.
#[must_use]
pub fn layout() -> PathBuf {
    dir().join("oci-layout")
}

fn read(path: PathBuf) -> Vec<u8> {
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The layout's manifest named `name`, and its bytes' digest.
///
/// # Panics
/// When the layout has none of that name.
#[must_use]
pub fn manifest(name: &str) -> (Value, String) {
    let index: Value = serde_json::from_slice(&read(layout().join("index.json"))).expect("index.json");
    let named = |entry: &&Value| entry["annotations"]["org.opencontainers.image.ref.name"] == name;
    let entry = index["manifests"].as_array().expect("manifests").iter().find(named).expect("a manifest of that name");
    let digest = workspace::text(&entry["digest"]).to_owned();
    (serde_json::from_slice(&blob(&digest)).expect("a manifest"), digest)
}

/// The bytes of a blob of the layout.
#[must_use]
pub fn blob(digest: &str) -> Vec<u8> {
    read(layout().join("blobs/sha256").join(digest.trim_start_matches("sha256:")))
}

/// The layers of the layout's image `name` as they would be pushed.
///
/// # Panics
/// When the layout has none of that name.
#[must_use]
pub fn layers(name: &str) -> Vec<Layer> {
    let (manifest, _) = manifest(name);
    let layers = manifest["layers"].as_array().expect("layers").iter();
    layers.map(|layer| Layer::overlaybd(blob(workspace::text(&layer["digest"])))).collect()
}

/// A `zstd --patch-from` file with its prefix put back.
fn patched(path: &str, prefix: &[u8]) -> Vec<u8> {
    let file = std::io::BufReader::new(File::open(dir().join(path)).expect("a patch of the fixtures"));
    let mut decoder = zstd::stream::read::Decoder::with_ref_prefix(file, prefix).expect("a zstd file");
    let mut bytes = Vec::new();
    decoder.read_to_end(&mut bytes).expect("a patch of that prefix");
    bytes
}

/// The three layers as plain LSMT, without ZFile and tar, bottom first.
#[must_use]
pub fn plain_layers() -> Vec<Vec<u8>> {
    let compressed = layers("obd-lz4");
    let plain =
        |(i, layer): (usize, &Layer)| patched(&format!("native-raw-commit/layer{}.lsmt.zst", i + 1), &layer.bytes);
    compressed.iter().enumerate().map(plain).collect()
}

/// The three layers as `overlaybd-commit --seal` makes them, bottom first.
#[must_use]
pub fn sealed_layers() -> Vec<Vec<u8>> {
    let plain = plain_layers();
    let sealed = |(i, prefix): (usize, &Vec<u8>)| patched(&format!("native-sealed/layer{}.sealed.zst", i + 1), prefix);
    plain.iter().enumerate().map(sealed).collect()
}

/// The merged tree of the three layers, as written down when they were made.
///
/// # Panics
/// When the files are not as their README says.
#[must_use]
pub fn tree() -> Tree {
    let sums = String::from_utf8(read(dir().join("expected-sha256-files.txt"))).expect("UTF-8");
    let sum = |path: &str| {
        let line = sums.lines().find(|line| line.split_once("  ").is_some_and(|(_, name)| name == path));
        line.map(|line| line[..64].to_owned()).unwrap_or_default()
    };
    let listing = String::from_utf8(read(dir().join("expected-listing.tsv"))).expect("UTF-8");
    let tree: Tree = listing
        .lines()
        .map(|line| {
            let [path, kind, mode, owner, size, target] = line.split('\t').collect::<Vec<_>>()[..] else {
                panic!("not six columns: {line}")
            };
            let kind = kind.chars().next().expect("a kind");
            let size_bytes = if matches!(kind, 'f' | 'l') { size.parse().expect("a size") } else { 0 };
            let mode = u32::from_str_radix(mode, 8).expect("an octal mode");
            let (owner, target) = (owner.to_owned(), target.to_owned());
            (path.to_owned(), Entry { kind, mode, owner, size_bytes, target, sha256: sum(path) })
        })
        .collect();
    assert_eq!((tree.len(), sums.lines().count()), (450, 381), "the expected files are whole");
    tree
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::sha256;

    #[test]
    fn patched_layers_are_the_ones_that_were_made() {
        let readme = String::from_utf8(read(dir().join("README.md"))).unwrap();
        let made = plain_layers().into_iter().chain(sealed_layers());
        for bytes in made {
            let sum = sha256(bytes.as_slice()).unwrap();
            assert!(readme.contains(&format!("{} bytes, sha256:{sum}", bytes.len())), "{sum}");
        }
    }

    #[test]
    fn every_regular_file_of_the_listing_has_its_digest() {
        assert!(tree().values().all(|entry| (entry.kind == 'f') == (entry.sha256.len() == 64)));
    }
}
