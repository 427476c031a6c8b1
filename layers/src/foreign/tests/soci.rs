//! Ztocs that SOCI's own tool made, and such that it would not make.

use std::{path::PathBuf, sync::Arc};

use bytes::Bytes;
use penstock_blob::faults::Memory;

use super::{Bench, facts, piped};
use crate::{TarReader, foreign::soci};

fn golden(path: &str) -> Vec<u8> {
    std::fs::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden/foreign").join(path)).unwrap()
}

/// A layer, its archive and its ztoc, made by tools.
fn kept(image: &str, nth: usize) -> [Vec<u8>; 3] {
    let packed = golden(&format!("soci/layer{nth}"));
    let archive = piped("gzip", &["-dc"], &packed).unwrap();
    let layer = if image == "soci" { packed } else { archive.clone() };
    [layer, archive, golden(&format!("{image}/ztoc{nth}"))]
}

/// A layer translated by its ztoc.
async fn translated(layer: Vec<u8>, ztoc: Vec<u8>) -> Bench {
    prefetched(layer, ztoc, soci::Prefetch::default()).await
}

async fn prefetched(layer: Vec<u8>, ztoc: Vec<u8>, prefetch: soci::Prefetch) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let memory: Arc<Memory> = Memory::new(vec![Bytes::from(layer), Bytes::from(ztoc)]);
    let [layer, ztoc] = [0, 1].map(|nth| memory.blob(nth));
    let result = soci::translate(&*memory, (ztoc, prefetch), layer, &dir.path().join("index")).await;
    Bench { dir, memory, result }
}

#[tokio::test]
async fn layers_with_ztocs_read_back_as_their_archives_up_to_the_last_file() {
    for image in ["soci", "soci-plain"] {
        for nth in 0..2 {
            let [layer, archive, ztoc] = kept(image, nth);
            let mut expected = Vec::new();
            TarReader::new().push(&archive, |entry| expected.push(entry)).unwrap();
            let bench = translated(layer, ztoc).await;
            assert!(bench.result.is_ok(), "{image} {nth}: {:?}", bench.result);
            for step in [30_000, 1 << 20] {
                let read = bench.payload(step).await.unwrap();
                assert!(archive.starts_with(&read), "{image} {nth}");
                assert!(archive[read.len()..].iter().all(|&byte| byte == 0), "{image} {nth}");
            }
            let index = bench.index();
            assert!(index.layer().unpacked.digest.is_derived());
            let found = facts(index.entries().unwrap().map(Result::unwrap), &archive);
            assert_eq!(found, facts(expected.into_iter(), &archive), "{image} {nth}");
        }
    }
}

#[tokio::test]
async fn spans_that_are_to_be_prefetched_are_what_a_start_reads() {
    let [layer, _, ztoc] = kept("soci", 0);
    let first = async |spans: &str| {
        let json = format!(r#"{{"version":"1.0","prefetch_spans":[{spans}]}}"#);
        let prefetch = soci::Prefetch::parse(json.as_bytes()).unwrap();
        let bench = prefetched(layer.clone(), ztoc.clone(), prefetch).await;
        bench.payload(1 << 20).await.unwrap();
        bench.index().first().to_vec()
    };
    let all = first(r#"{"start_span":0,"end_span":1000}"#).await;
    assert!(all.len() > 4 && all.windows(2).all(|two| two[0].end() == two[1].start()), "{all:?}");
    let some = r#"{"start_span":3,"end_span":3},{"start_span":0,"end_span":1},{"start_span":900,"end_span":1000}"#;
    assert_eq!(first(some).await, [all[0], all[1], all[3]]);
    assert!(first("").await.is_empty());
}

#[tokio::test]
async fn any_byte_of_a_span_is_verified() {
    let [layer, _, ztoc] = kept("soci", 0);
    for at in (12..layer.len()).step_by(9_001) {
        let mut wrong = layer.clone();
        wrong[at] ^= 0x10;
        let bench = translated(wrong, ztoc.clone()).await;
        assert!(bench.payload(1 << 20).await.is_err(), "byte {at} is wrong and was not noticed");
    }
}

#[tokio::test]
async fn a_ztoc_that_is_damaged_is_refused_or_gives_an_index_whose_reads_are_right_or_fail() {
    for image in ["soci", "soci-plain"] {
        let [layer, archive, ztoc] = kept(image, 1);
        let mut refused = 0;
        for at in (0..ztoc.len()).step_by(if image == "soci" { 37 } else { 1 }) {
            let mut wrong = ztoc.clone();
            wrong[at] ^= 0x41;
            let bench = translated(layer.clone(), wrong).await;
            match &bench.result {
                Err(_) => refused += 1,
                Ok(_) => {
                    assert!(bench.index().entries().unwrap().all(|entry| entry.is_ok()), "{image}: byte {at}");
                    if let Ok(read) = bench.payload(1 << 20).await {
                        assert!(archive.starts_with(&read), "{image}: byte {at}");
                    }
                }
            }
        }
        assert!(refused > 5, "{image}: {refused}");
    }
}

#[tokio::test]
async fn ztocs_of_other_layers_other_versions_and_sparse_files_are_refused() {
    let [layer, _, ztoc] = kept("soci", 0);
    let changed = |from: &[u8], to: &[u8]| {
        let at = ztoc.windows(from.len()).position(|window| window == from).unwrap();
        let mut changed = ztoc.clone();
        changed[at..at + to.len()].copy_from_slice(to);
        changed
    };
    let bad = [
        changed(b"0.9", b"1.0"),
        changed(b"SCHILY.xattr.user.note", b"GNU.sparse.major......"),
        changed(b"usr/bin/tool", b"../../tool.."),
        changed(b"hardlink", b"hardlunk"),
        changed(b"sha256:", b"sha512:"),
        changed(b"2017-07-14T02:40:00Z", b"2017-07-14T02:40:0xZ"),
        ztoc[..ztoc.len() / 2].to_vec(),
        Vec::new(),
        vec![0; 100],
        vec![0xff; 100],
    ];
    for (nth, bad) in bad.into_iter().enumerate() {
        assert!(translated(layer.clone(), bad).await.result.is_err(), "{nth}");
    }
    let [other, ..] = kept("soci", 1);
    assert!(translated(other, ztoc).await.result.is_err());
}

#[tokio::test]
async fn a_buffer_that_points_to_itself_costs_no_more_than_its_size() {
    // A vector of 100,000 offsets, all of the same table with a vector of 100,000 offsets of its own.
    let mut bytes = vec![0; 1 << 20];
    let mut put = |at: usize, word: u32| bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
    put(0, 64);
    // The table at 64, its fields at 16: all of them at 4, where an offset leads to the vector at 100.
    put(64, 48);
    put(16, 32 | 8 << 16);
    (0..7).for_each(|nth| put(20 + 4 * nth, 4 | 4 << 16));
    put(68, 32);
    put(100, 100_000);
    (0..100_000_usize).for_each(|nth| put(104 + 4 * nth, 0_u32.wrapping_sub(u32::try_from(40 + 4 * nth).unwrap())));
    let buffer = crate::foreign::flat::Buffer::new(&bytes);
    let tables = buffer.root().unwrap().tables(1).unwrap();
    let looks = tables.map_while(|table| table?.tables(1)).flatten().take_while(Option::is_some).count();
    assert!(looks < 1 << 20, "{looks}");
}
