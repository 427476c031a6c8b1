//! TurboOCI images made by upstream's tools, read whole: sha256 of the device as two other readers give it (tests/fixtures/overlaybd). The archives
//! are decoded here; how they are decoded on demand is tested in `layers`, and both together in the agent.

use std::{process::Command, sync::Arc};

use bytes::Bytes;
use penstock_blob::{Blob, BlobSource, ByteRange, faults::Memory};
use penstock_image::{Image, Kind, LayerError, Maps, Member, OpenError, lsmt::Entry, read, stack_tables, tar};

use crate::common::{LZ4, blob, crafted, device_sha256, fixtures, noise, range};

/// The small layers of each image, bottom first, and the name of the metadata in them.
const EXT4: [&str; 3] = [
    "e7121c4dbae59a2cf298d596b57f4724597e47cb930c32ee14e0d62d777f7b11",
    "f5711f2d21fcfd3f8064e2b63db0aee387488684bf47f7696d0ac509321668ca",
    "a166d23f8bc47dac0e5d03d3dd9d359cae804dc472d4c276dd2a03e9eedbd484",
];
const EROFS: [&str; 3] = [
    "64ade5ad2107dfed1f3daae3990ae309337ee43b1a71d72ff46eae804edd7109",
    "978444e30a1bde59b7485682f3a1f19ede11d33ef156b6d192a704e828fec161",
    "dea7c7fd119f39ede87b7143404d2b50f59779764fc00b70eb443fe84d9b53d5",
];
/// The ordinary layers that both are about.
const TARGETS: [&str; 3] = [
    "c05e0ebae57abdb1d41f5161508a1e4a54e78d7edeca51ed162fcf84f2eb2f01",
    "6686979d34b1c431710451971426609a75ab3912e7222ca2410521d523d65789",
    "c6193e2eb0a9120e14834f68b5e36f6c9b49d016d2e5f78353bbc18b3b5f9d2b",
];

/// The archive of a layer of the layout.
fn archive(hex: &str) -> Bytes {
    let path = fixtures().join("oci-layout/blobs/sha256").join(hex);
    let output = Command::new("gzip").arg("-dc").stdin(std::fs::File::open(path).unwrap()).output().unwrap();
    assert!(output.status.success());
    output.stdout.into()
}

/// An image of these small layers over their targets: its source and its layers.
fn turbo(small: &[&str]) -> (Arc<Memory>, Vec<Member>) {
    let blobs: Vec<Bytes> =
        small.iter().zip(TARGETS).flat_map(|(small, target)| [archive(small), archive(target)]).collect();
    let files: Vec<ByteRange> = blobs.iter().step_by(2).map(metadata).collect();
    let memory = Memory::new(blobs);
    let member = |(nth, &file): (usize, &ByteRange)| Member::Turbo {
        metadata: memory.blob(2 * nth),
        file,
        archive: memory.blob(2 * nth + 1),
    };
    let members = files.iter().enumerate().map(member).collect();
    (memory, members)
}

/// Where the metadata is in the archive of a small layer: it is the first member.
fn metadata(archive: &Bytes) -> ByteRange {
    match tar::unwrap(&archive[..archive.len().min(16 << 10)], archive.len() as u64, |head| head.starts_with(b"ZFile"))
    {
        Ok(tar::Wrapper::Payload(range)) => range,
        other => panic!("{other:?}"),
    }
}

async fn open(members: Vec<Member>, source: &Arc<Memory>, maps: &std::path::Path) -> Result<Image, OpenError> {
    Image::open_stack(members, source.clone(), &Maps::new(maps)).await
}

#[tokio::test]
async fn three_layers_over_their_archives_are_the_device_that_upstream_reads() {
    for (small, sha256) in [
        (EXT4, "bff310f8eae091937cb57a6818e1496361f87f903ba8c98fa26c4d539a17a7b8"),
        (EROFS, "84d9956ff5b535ca548126b587e2a1ad116c8b21cad2dac5c03e23f11b331c83"),
    ] {
        let maps = tempfile::tempdir().unwrap();
        let (memory, members) = turbo(&small);
        memory.resident(true);
        for again in [false, true] {
            let image = open(members.clone(), &memory, maps.path()).await.unwrap();
            image.completed().await.unwrap();
            assert_eq!((image.size_bytes(), image.kind()), (1 << 30, Kind::TurboOci { layers: 3, archives: 3 }));
            assert_eq!(device_sha256(&image, &*memory), sha256, "with maps in place: {again}");
            let checked: Vec<bool> = image.blobs().iter().map(|blob| image.is_checked(&blob.digest)).collect();
            let archives: Vec<bool> = image.blobs().iter().map(|blob| image.is_archive(&blob.digest)).collect();
            assert_eq!(checked, [true, false, true, false, true, false]);
            assert_eq!(archives, [false, true, false, true, false, true]);
            assert!(image.how_verified().contains("reads of files are not checked"));
        }
        let tables = stack_tables(&members, maps.path());
        assert!(tables.len() == 4 && tables.iter().all(|table| table.exists()), "{tables:?}");
    }
}

#[tokio::test]
async fn a_table_that_is_gone_is_made_again_from_the_metadata() {
    let maps = tempfile::tempdir().unwrap();
    let (memory, members) = turbo(&EROFS);
    let source: Arc<dyn BlobSource> = memory.clone();
    let before = open(members.clone(), &memory, maps.path()).await.unwrap();
    before.completed().await.unwrap();
    let expected = read(&before, &source, range(0, 8 << 20)).await.unwrap();
    drop(before);
    std::fs::remove_file(&stack_tables(&members, maps.path())[1]).unwrap();
    let image = open(members, &memory, maps.path()).await.unwrap();
    assert!(read(&image, &source, range(0, 8 << 20)).await.unwrap() == expected);
}

#[tokio::test]
async fn a_turbooci_layer_lies_over_an_overlaybd_layer_and_under_one() {
    let (small, target) = (archive(EXT4[0]), archive(TARGETS[0]));
    let file = metadata(&small);
    let memory = Memory::new(vec![blob(LZ4[0]), small, target, blob(LZ4[2])]);
    let [below, small, target, above] = [0, 1, 2, 3].map(|nth| memory.blob(nth));
    let members =
        [Member::OverlayBd(below), Member::Turbo { metadata: small, file, archive: target }, Member::OverlayBd(above)];
    memory.resident(true);
    let maps = tempfile::tempdir().unwrap();
    let image = open(members.to_vec(), &memory, maps.path()).await.unwrap();
    image.completed().await.unwrap();
    assert_eq!(image.kind(), Kind::TurboOci { layers: 3, archives: 1 });
    // Upstream's traces count layers, and mean the file of each.
    assert_eq!(image.needs(2, range(0, 4096)).unwrap()[0].0, above);
    assert_eq!(image.needs(1, range(0, 4096)).unwrap()[0].0, small);
    // Sector 5192 of the metadata is that of the first file of any size, at sector 4 of its archive.
    let alone = open(members[1..2].to_vec(), &memory, maps.path()).await.unwrap();
    let source: Arc<dyn BlobSource> = memory.clone();
    let first = range(5192 * 512, 5193 * 512);
    let archive = source.read(target, range(4 * 512, 5 * 512), penstock_blob::Purpose::Demand).await.unwrap();
    assert!(read(&alone, &source, first).await.unwrap() == archive);
}

#[tokio::test]
async fn what_lies_beyond_the_archive_reads_as_zeros_and_impossible_entries_are_refused() {
    let entry = |start, sectors, moffset, tag| Entry { start, sectors, moffset, zeroed: false, tag };
    let open_with = async |entries: &[Entry], archive: Vec<u8>| {
        let metadata = crafted(entries, 1 << 20);
        let memory = Memory::new(vec![metadata, archive.into()]);
        let [metadata, archive]: [Blob; 2] = [0, 1].map(|nth| memory.blob(nth));
        let maps = tempfile::tempdir().unwrap();
        let file = metadata.all().unwrap();
        let image = open(vec![Member::Turbo { metadata, file, archive }], &memory, maps.path()).await;
        (image, memory, maps)
    };
    let archive = noise(700, 7);
    let far = [entry(0, 1, 8, 0), entry(8, 3, 0, 1), entry(16, 1, 1 << 40, 1), entry(17, 1, (1 << 55) - 2, 1)];
    let (image, memory, _maps) = open_with(&far, archive.clone()).await;
    let source: Arc<dyn BlobSource> = memory;
    let device = read(&image.unwrap(), &source, range(0, 20 * 512)).await.unwrap();
    let mut expected = vec![0; 20 * 512];
    expected[..512].copy_from_slice(&noise(512, 1));
    expected[4096..4096 + 700].copy_from_slice(&archive);
    assert!(device == expected);
    for wrong in [entry(0, 2, (1 << 55) - 2, 1), entry(0, 1, 8, 2), entry(0, 2, 8, 0)] {
        let (image, ..) = open_with(&[wrong], archive.clone()).await;
        assert!(matches!(image, Err(OpenError::Layer { .. })), "{wrong:?}");
    }
    let nothing = open_with(&far, Vec::new()).await.0;
    assert!(matches!(nothing, Err(OpenError::Layer { error, .. }) if matches!(*error, LayerError::Empty)));
}

#[tokio::test]
async fn a_stack_has_bounds_and_its_metadata_is_where_it_is_said_to_be() {
    let maps = tempfile::tempdir().unwrap();
    let (memory, members) = turbo(&EROFS[2..]);
    assert!(matches!(open(Vec::new(), &memory, maps.path()).await, Err(OpenError::NoLayers)));
    let many = vec![members[0]; 128];
    assert!(matches!(open(many, &memory, maps.path()).await, Err(OpenError::TooManyLayers { layers: 256 })));
    let Member::Turbo { metadata, archive, .. } = members[0] else { panic!("{members:?}") };
    for file in [range(0, 4096), range(513, 4300), range(512, 600), range(0, metadata.size_bytes + 1)] {
        let elsewhere = Member::Turbo { metadata, file, archive };
        assert!(open(vec![elsewhere], &memory, maps.path()).await.is_err(), "{file}");
    }
}
