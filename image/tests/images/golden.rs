//! Table files and written layers, byte for byte.
//!
//! When a format changes on purpose, raise its version and replace the golden files by what the failing test leaves in
//! `CARGO_TARGET_TMPDIR`.

use std::{io::Cursor, path::Path, sync::Arc};

use bytes::Bytes;
use penstock_blob::{Blob, BlobSource};
use penstock_image::{
    Image,
    lsmt::{self, Entry},
    write::{LayerWriter, Options, Uuid},
};

use crate::common::{LZ4, blob, complete, range, source};

fn assert_golden(name: &str, found: &[u8]) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::fs::read(&golden).ok().as_deref() != Some(found) {
        let copy = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::write(&copy, found).unwrap();
        panic!("{} differs from {}", copy.display(), golden.display());
    }
}

#[tokio::test]
async fn table_files_are_as_documented() {
    let (memory, layers) = source(LZ4.map(blob).to_vec());
    let maps = tempfile::tempdir().unwrap();
    complete(layers, memory, maps.path()).await;
    let frames = std::fs::read(maps.path().join(format!("{}.v1.frames", LZ4[2]))).unwrap();
    assert_golden("layer3.frames", &frames);
    let mut entries = std::fs::read_dir(maps.path()).unwrap().map(|entry| entry.unwrap().path());
    let map = entries.find(|path| path.extension().is_some_and(|e| e == "map")).unwrap();
    // The name is the sha256 of "penstock map 1\n" and the three raw digests.
    assert!(
        map.ends_with("10328d4a53b14151203091dff4bced6aab1e025ddcaf920a5c36b7bd3129b617.v1.map"),
        "{}",
        map.display()
    );
    assert_golden("stack.map", &std::fs::read(map).unwrap());
}

/// The layer file inside a blob, through our reader: an image's device is the merged disk, so this goes one step lower,
/// by the frames.
fn layer_file(blob: &Bytes) -> Vec<u8> {
    let file = &blob[1536..];
    let field = |at: usize| usize::try_from(u64::from_le_bytes(file[at..at + 8].try_into().unwrap())).unwrap();
    let (index_offset, frames, original) = (field(40), field(48), field(56));
    let mut at = 512;
    let mut out = Vec::new();
    for entry in file[index_offset..index_offset + 4 * frames].chunks(4) {
        let len = usize::try_from(u32::from_le_bytes(entry.try_into().unwrap())).unwrap();
        let size = 4096.min(original - out.len());
        out.extend(lz4_flex::block::decompress(&file[at..at + len - 4], size).unwrap());
        at += len;
    }
    out
}

#[test]
fn a_layer_file_is_written_as_upstream_commits_it() {
    for hex in LZ4 {
        let upstream = layer_file(&blob(hex));
        let text = |at: usize| std::str::from_utf8(&upstream[at..at + 36]).unwrap().parse::<Uuid>().unwrap();
        let trailer = lsmt::parse_trailer(&upstream[upstream.len() - 4096..], upstream.len() as u64).unwrap();
        let device_bytes = (trailer.device_bytes > 0).then_some(trailer.device_bytes);
        let options =
            Options { frames: None, tar: false, device_bytes, uuid: text(56), parent: text(93), ..Options::default() };
        let mut out = Cursor::new(Vec::new());
        let mut writer = LayerWriter::new(&mut out, options).unwrap();
        let index = usize::try_from(trailer.index_offset).unwrap();
        let mut check = lsmt::IndexCheck::new(&trailer);
        for entry in upstream[index..upstream.len() - 4096].as_chunks().0 {
            let Some(Entry { start, sectors, moffset, zeroed, .. }) = check.admit(entry).unwrap() else { continue };
            let at = usize::try_from(moffset * 512).unwrap();
            let len = usize::try_from(sectors * 512).unwrap();
            if zeroed {
                writer.zeroed(start, sectors.into()).unwrap();
            } else {
                writer.data(start, &upstream[at..at + len]).unwrap();
            }
        }
        let written = writer.finish().unwrap();
        assert_eq!(written.blob.size_bytes, upstream.len() as u64);
        assert!(out.into_inner() == upstream, "{hex}");
    }
}

#[tokio::test]
async fn a_device_written_again_is_the_same_device() {
    let (memory, layers) = source(LZ4.map(blob).to_vec());
    let maps = tempfile::tempdir().unwrap();
    let image = Image::open(layers, memory.clone(), maps.path()).await.unwrap();
    let source: Arc<dyn BlobSource> = memory;
    let disk = penstock_image::read(&image, &source, range(0, 64 << 20)).await.unwrap();
    let (written, bytes) = crate::common::layer_of_disk(&disk, Options::default());
    let (memory, layers) = crate::common::source(vec![bytes]);
    assert_eq!(memory.blob(0), Blob { ..written.blob });
    let image = Image::open(layers, memory.clone(), maps.path()).await.unwrap();
    let source: Arc<dyn BlobSource> = memory;
    assert!(penstock_image::read(&image, &source, range(0, 64 << 20)).await.unwrap() == disk);
}
