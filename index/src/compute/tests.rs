//! Lists are what the format says, whatever the size of the blob; wrong bytes give none.

use std::sync::atomic::Ordering;

use penstock_blob::faults::{Corrupt, Memory};

use super::*;
use crate::{
    Root,
    testing::{grid, noise},
};

/// A list made the slow way: all hashes in memory, level by level.
fn by_hand(blob: Blob, bytes: &Bytes) -> (Vec<u8>, Root) {
    let mut hashes: Vec<Hash> = bytes.chunks(64 << 10).map(hash).collect();
    let mut levels = Vec::new();
    loop {
        let pages: Vec<Vec<u8>> = hashes
            .chunks(128)
            .map(|hashes| {
                let mut page = hashes.concat();
                page.resize(PAGE_BYTES, 0);
                page
            })
            .collect();
        hashes = pages.iter().map(|page| hash(page)).collect();
        levels.push(pages.concat());
        if hashes.len() == 1 {
            break;
        }
    }
    let mut header = vec![0; PAGE_BYTES];
    header[..8].copy_from_slice(b"PNSTKIDX");
    header[8] = 1;
    header[12] = 1;
    header[16..24].copy_from_slice(&blob.size_bytes.to_le_bytes());
    header[24..28].copy_from_slice(&(64_u32 << 10).to_le_bytes());
    header[32..64].copy_from_slice(blob.digest.as_bytes());
    header[64..96].copy_from_slice(&hashes[0]);
    let root = format!("blake3:{}", hex::encode(hash(&header))).parse().unwrap();
    levels.push(header);
    levels.reverse();
    (levels.concat(), root)
}

#[tokio::test]
async fn lists_are_what_the_format_says() {
    let dir = tempfile::tempdir().unwrap();
    for len in [1, 65_535, 65_536, 65_537, 128 * 65_536, 128 * 65_536 + 1, 300 * 65_536 + 77] {
        let bytes = noise(len as u64, len);
        let memory = Memory::new(vec![bytes.clone()]);
        let blob = memory.blob(0);
        let seen = std::sync::atomic::AtomicU64::new(0);
        let path = dir.path().join("list");
        let made = compute(&*memory, blob, grid(), &path, |done| seen.store(done, Ordering::Relaxed)).await.unwrap();
        let (list, root) = by_hand(blob, &bytes);
        assert_eq!(std::fs::read(&path).unwrap(), list, "{len} bytes");
        assert_eq!((made.listed.root, made.listed.list.digest), (root, Digest::of(&list)));
        assert_eq!(made.listed.list.size_bytes, list.len() as u64);
        assert_eq!(seen.into_inner(), len as u64);
    }
}

#[tokio::test]
async fn the_golden_list_is_the_one_made_today() {
    let dir = tempfile::tempdir().unwrap();
    let memory = Memory::new(vec![noise(7, 200_000)]);
    let made = compute(&*memory, memory.blob(0), grid(), &dir.path().join("list"), |_| {}).await.unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/list-v1.bin");
    assert_eq!(std::fs::read(made.path).unwrap(), std::fs::read(golden).unwrap());
}

#[tokio::test]
async fn wrong_bytes_and_impossible_blobs_give_no_list() {
    let dir = tempfile::tempdir().unwrap();
    let memory = Memory::new(vec![noise(1, 100_000)]);
    let corrupt = Corrupt::new(memory.clone());
    let made = compute(&*corrupt, memory.blob(0), grid(), &dir.path().join("list"), |_| {}).await;
    assert!(matches!(made, Err(ComputeError::Digest { expected, .. }) if expected == memory.blob(0).digest));
    let empty = Blob { size_bytes: 0, ..memory.blob(0) };
    let made = compute(&*memory, empty, grid(), &dir.path().join("list"), |_| {}).await;
    assert!(matches!(made, Err(ComputeError::Size(blob)) if blob == empty));
    let nowhere = dir.path().join("no/list");
    let made = compute(&*memory, memory.blob(0), grid(), &nowhere, |_| {}).await;
    assert!(matches!(made, Err(ComputeError::Io { path, .. }) if path == nowhere));
}
