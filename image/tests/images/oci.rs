//! Devices of ordinary layers: random trees through archives, byte for byte, and broken tables.

mod reader;
mod trees;

use std::{fs, path::Path, sync::Arc};

use bytes::Bytes;
use penstock_blob::{Blob, BlobSource, Digest, faults::Memory};
use penstock_image::{
    BuildError, Built, Image, Kind, LayerBuilder, Merged, MergedBuilder, OciLayer, Step, layer_table,
};
use penstock_layers::{Entry, TarReader};
use proptest::prelude::*;

use self::{
    reader::read_tree,
    trees::{Format, archive, node, over, sample, tree},
};
use crate::common::range;

/// The layer of an archive, its source, and what was made of it.
fn build(archive: &[u8], maps: &Path) -> Result<(OciLayer, Arc<Memory>, Built), BuildError> {
    let memory = Memory::new(vec![Bytes::copy_from_slice(archive)]);
    let layer = OciLayer { blob: memory.blob(0), contents: memory.blob(0).digest };
    let mut builder = LayerBuilder::new(layer, maps);
    let mut reader = TarReader::new();
    let mut failed = Ok(());
    let taken = reader.push(archive, |entry| {
        if failed.is_ok() {
            failed = builder.add(&entry);
        }
    });
    taken.unwrap();
    reader.finish().unwrap();
    failed?;
    Ok((layer, memory, builder.finish()?))
}

async fn open(layer: OciLayer, maps: &Path) -> Option<Image> {
    Image::open_layer(layer, maps, "in a test".into()).await.unwrap()
}

/// The whole device of an archive.
async fn device(archive: &[u8]) -> (Vec<u8>, Built) {
    let maps = tempfile::tempdir().unwrap();
    let (layer, memory, built) = build(archive, maps.path()).unwrap();
    let image = open(layer, maps.path()).await.unwrap();
    let source: Arc<dyn BlobSource> = memory;
    let bytes = penstock_image::read(&image, &source, range(0, image.size_bytes())).await.unwrap();
    (bytes.to_vec(), built)
}

/// The entries of an archive.
fn entries(archive: &[u8]) -> impl Iterator<Item = Result<Entry, BuildError>> {
    let mut found = Vec::new();
    TarReader::new().push(archive, |entry| found.push(Ok(entry))).unwrap();
    found.into_iter()
}

/// The whole device of a stack of archives.
async fn merged(archives: &[Vec<u8>]) -> Result<Vec<u8>, BuildError> {
    let maps = tempfile::tempdir().unwrap();
    let memory = Memory::new(archives.iter().map(|archive| Bytes::copy_from_slice(archive)).collect());
    let layers: Vec<OciLayer> =
        (0..archives.len()).map(|nth| memory.blob(nth)).map(|blob| OciLayer { blob, contents: blob.digest }).collect();
    let merged = Merged::new(&layers);
    let mut builder = MergedBuilder::new(&merged, maps.path());
    for archive in archives {
        builder.layer(|| Ok::<_, BuildError>(entries(archive)))?;
    }
    builder.finish()?;
    let image = Image::open_merged(&merged, maps.path(), "in a test".into()).await.unwrap().unwrap();
    assert!(matches!(image.kind(), Kind::Layers { layers, .. } if layers == archives.len()));
    let source: Arc<dyn BlobSource> = memory;
    Ok(penstock_image::read(&image, &source, range(0, image.size_bytes())).await.unwrap().to_vec())
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

#[test]
fn the_same_layer_is_the_same_device_everywhere() {
    let archive = archive(&sample(), Format::Pax);
    let maps = tempfile::tempdir().unwrap();
    let (layer, ..) = build(&archive, maps.path()).unwrap();
    let table = fs::read(layer_table(&layer, maps.path())).unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/layer.erofs");
    if fs::read(&golden).ok().as_deref() != Some(&table) {
        let copy = Path::new(env!("CARGO_TARGET_TMPDIR")).join("layer.erofs");
        fs::write(&copy, &table).unwrap();
        panic!("{} differs from {}", copy.display(), golden.display());
    }
    // The golden file as a whole, so that replacing it is noticed; and the device, which is what a node shows.
    let (device, _) = run(device(&archive));
    assert_eq!(Digest::of(&device).to_hex(), "a06071b8c685bfcfa836da2c50cea0f6c6b18ea0db8d373b22a8f60036b79ae2");
}

#[test]
fn an_empty_layer_is_an_empty_root() {
    for archive in [&[][..], &[0; 1024]] {
        let (device, built) = run(device(archive));
        assert_eq!((built.inodes, built.implied, device.len()), (1, 0, 4096));
        let root = read_tree(&device);
        assert_eq!(root.len(), 1);
        assert_eq!((root[&b""[..]].mode, root[&b""[..]].links), (0o040_755, 2));
    }
}

#[test]
fn a_plan_reads_metadata_from_the_table_and_content_from_the_layer() {
    let files: Vec<_> = (0..1000_u32).map(|nth| (format!("f{nth:04}").into_bytes(), node(nth % 900))).collect();
    let archive = archive(&files.into_iter().collect(), Format::Gnu);
    let maps = tempfile::tempdir().unwrap();
    let (layer, memory, built) = build(&archive, maps.path()).unwrap();
    let image = run(open(layer, maps.path())).unwrap();
    assert_eq!(image.kind(), Kind::Layer { inodes: 1001, implied: 0 });
    assert_eq!((image.blobs(), image.how_verified()), (&[layer.blob][..], "in a test"));
    let nothing = Memory::new(vec![]);
    let plan = image.plan(range(0, image.size_bytes()), &*nothing).unwrap();
    let own: u64 = plan.steps.iter().filter(|step| matches!(step.step, Step::Own(_))).map(|step| step.at.len()).sum();
    assert_eq!(own, built.metadata_bytes);
    assert_eq!(plan.len(), image.size_bytes());
    let missing: u64 = plan.missing().map(|(_, range)| range.len()).sum();
    assert_eq!(missing, (0..1000).map(|nth| nth % 900).sum::<u64>(), "only content, without padding");
    assert!(plan.missing().all(|(blob, _)| blob == layer.blob));
    // Every way to cut the device gives the same bytes.
    let source: Arc<dyn BlobSource> = memory;
    let whole = run(penstock_image::read(&image, &source, range(0, image.size_bytes()))).unwrap();
    for step in [512, 4096 + 512, 100_000] {
        let pieces = (0..image.size_bytes()).step_by(step).map(|at| {
            run(penstock_image::read(&image, &source, range(at, (at + step as u64).min(image.size_bytes())))).unwrap()
        });
        assert!(pieces.flatten().eq(whole.iter().copied()), "in pieces of {step}");
    }
}

#[test]
fn a_damaged_table_is_removed_and_never_shown() {
    let archive = archive(&sample(), Format::Pax);
    let maps = tempfile::tempdir().unwrap();
    let (layer, ..) = build(&archive, maps.path()).unwrap();
    let path = layer_table(&layer, maps.path());
    let sound = fs::read(&path).unwrap();
    assert!(run(open(layer, maps.path())).is_some());
    for at in (0..sound.len()).step_by(401) {
        let mut damaged = sound.clone();
        damaged[at] ^= 1;
        fs::write(&path, &damaged).unwrap();
        assert!(run(open(layer, maps.path())).is_none(), "byte {at}");
        assert!(!path.exists(), "byte {at}");
    }
    fs::write(&path, &sound[..sound.len() - 4096]).unwrap();
    assert!(run(open(layer, maps.path())).is_none());
    let other = OciLayer { blob: Blob { size_bytes: layer.blob.size_bytes + 1, ..layer.blob }, ..layer };
    fs::write(&path, &sound).unwrap();
    assert!(run(open(other, maps.path())).is_none(), "a layer of another size");
    let elsewhere = OciLayer { contents: Digest::of(b"another index"), ..layer };
    assert_ne!(layer_table(&elsewhere, maps.path()), path, "entries of another origin have a table of their own");
}

#[test]
fn a_table_in_use_is_kept_and_others_go() {
    let maps = tempfile::tempdir().unwrap();
    let (layer, ..) = build(&[0; 1024], maps.path()).unwrap();
    let path = layer_table(&layer, maps.path());
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(60);
    let freed = penstock_image::collect(maps.path(), &[path.clone()].into(), later).unwrap();
    assert!(freed == 0 && path.exists());
    let freed = penstock_image::collect(maps.path(), &[].into(), later).unwrap();
    assert!(freed > 0 && !path.exists());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn what_goes_into_an_archive_comes_out_of_the_device(tree in tree(), gnu in any::<bool>()) {
        let format = if gnu { Format::Gnu } else { Format::Pax };
        let (device, built) = run(device(&archive(&tree, format)));
        let found = read_tree(&device);
        prop_assert_eq!(built.inodes, found.values().map(|node| node.nid).collect::<std::collections::HashSet<_>>().len() as u64);
        trees::assert_same(&found, &tree, format);
    }

    #[test]
    fn layers_that_are_merged_show_what_a_stack_of_them_shows(
        lower in tree(), upper in tree(), hidden in any::<prop::sample::Index>(), opaque in any::<prop::sample::Index>(),
    ) {
        let (lower, upper) = (trees::without_names(lower), trees::without_names(upper));
        let (whiteouts, expected) = over(&lower, &upper, (&hidden, &opaque));
        let archives = [archive(&lower, Format::Pax), archive(&whiteouts, Format::Pax)];
        let found = read_tree(&run(merged(&archives)).unwrap());
        trees::assert_same(&found, &expected, Format::Pax);
    }
}

#[test]
fn links_of_lower_layers_are_followed_and_an_unhidden_directory_stays() {
    let link = |target: &[u8]| trees::with(trees::What::Symlink(target.to_vec()));
    let directory = || trees::with(trees::What::Directory);
    let lower = trees::Tree::from([
        (b"lib".to_vec(), link(b"usr/lib")),
        (b"usr".to_vec(), directory()),
        (b"usr/lib".to_vec(), directory()),
        (b"usr/lib/old".to_vec(), node(10)),
        (b"usr/lib/kept".to_vec(), node(11)),
    ]);
    let upper = trees::Tree::from([(b"lib/.wh.old".to_vec(), node(0)), (b"lib/new".to_vec(), node(12))]);
    let found = read_tree(&run(merged(&[archive(&lower, Format::Gnu), archive(&upper, Format::Gnu)])).unwrap());
    let paths: Vec<&[u8]> = found.keys().map(Vec::as_slice).collect();
    assert_eq!(paths, [&b""[..], b"lib", b"usr", b"usr/lib", b"usr/lib/kept", b"usr/lib/new"]);
    assert_eq!((found[&b"usr/lib/kept"[..]].bytes.len(), found[&b"usr/lib/new"[..]].bytes.len()), (11, 12));
    let again = run(merged(&[archive(&lower, Format::Gnu), archive(&upper, Format::Gnu)])).unwrap();
    let once = run(merged(&[archive(&lower, Format::Gnu), archive(&upper, Format::Gnu)])).unwrap();
    assert!(again == once, "the same layers are the same device");
}

#[test]
fn what_is_hidden_below_a_new_directory_is_not_looked_for_behind_the_link_that_was_there() {
    let link = |target: &[u8]| trees::with(trees::What::Symlink(target.to_vec()));
    let directory = || trees::with(trees::What::Directory);
    let lower = trees::Tree::from([
        (b"loop".to_vec(), link(b"loop")),
        (b"to".to_vec(), link(b"usr")),
        (b"usr".to_vec(), directory()),
        (b"usr/kept".to_vec(), node(11)),
    ]);
    let upper = trees::Tree::from([
        (b"loop".to_vec(), directory()),
        (b"loop/.wh.gone".to_vec(), node(0)),
        (b"to".to_vec(), directory()),
        (b"to/.wh.kept".to_vec(), node(0)),
    ]);
    let found = read_tree(&run(merged(&[archive(&lower, Format::Gnu), archive(&upper, Format::Gnu)])).unwrap());
    let paths: Vec<&[u8]> = found.keys().map(Vec::as_slice).collect();
    assert_eq!(paths, [&b""[..], b"loop", b"to", b"usr", b"usr/kept"]);
}
