//! Layers that the formats' own tools made, and layers that nobody's tool would make.

mod soci;
mod turbo;

use std::{collections::BTreeMap, fs::File, sync::Arc, time::Duration};

use bytes::Bytes;
use penstock_blob::{
    BlobSource as _, ByteRange, Digest, Purpose,
    faults::{Corrupt, Memory},
};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};

use super::*;
use crate::{
    Config, Content, Entry, Index, Kind, TarReader, Unpacked,
    testing::{gzip_member, piped},
};

type Annotations = BTreeMap<String, String>;

/// A layer that a tool made, and what its manifest says of it.
fn kept(image: &str, nth: usize) -> (Vec<u8>, Annotations) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/foreign").join(image);
    let manifest: Value = serde_json::from_slice(&std::fs::read(dir.join("manifest.json")).unwrap()).unwrap();
    let annotations = serde_json::from_value(manifest["layers"][nth]["annotations"].clone()).unwrap();
    (std::fs::read(dir.join(format!("layer{nth}"))).unwrap(), annotations)
}

const IMAGES: [(&str, Format); 3] =
    [("estargz", Format::Estargz), ("zstdchunked", Format::ZstdChunked), ("containers", Format::ZstdChunked)];

/// The tar archive of a layer, decoded by the coding's own program.
fn archive(layer: &[u8], format: Format) -> Vec<u8> {
    let program = if format == Format::Estargz { "gzip" } else { "zstd" };
    piped(program, &["-dc"], layer).unwrap()
}

/// A layer translated, in a directory, over a source of its compressed bytes.
struct Bench {
    dir: tempfile::TempDir,
    memory: Arc<Memory>,
    result: Result<Built, ForeignError>,
}

impl Bench {
    async fn new(blobs: Vec<Vec<u8>>, annotations: &Annotations) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let has_outside = blobs.len() > 1;
        let memory = Memory::new(blobs.into_iter().map(Bytes::from).collect());
        let outside = has_outside.then(|| memory.blob(1));
        let result = match Offer::of(annotations) {
            Ok(offer) => {
                let offer = offer.expect("an offer");
                offer.translate(&*memory, memory.blob(0), outside, &dir.path().join("index")).await
            }
            Err(error) => Err(error),
        };
        Self { dir, memory, result }
    }

    fn index(&self) -> Index {
        Index::open(File::open(self.dir.path().join("index")).unwrap()).unwrap()
    }

    /// The payload as it is read, by ranges of `step`.
    async fn payload(&self, step: u64) -> Result<Vec<u8>, ReadError> {
        let config = Config { deadline: Duration::ZERO, decodes: 2, recent_bytes: 1 << 20 };
        let unpacked = Unpacked::new(self.memory.clone(), config, &mut Registry::default());
        let registered = unpacked.register(self.index());
        let blob = registered.index().layer().unpacked;
        let mut bytes = Vec::new();
        let mut at = 0;
        while at < blob.size_bytes {
            let range = ByteRange::new(at, (at + step).min(blob.size_bytes)).unwrap();
            bytes.extend_from_slice(&unpacked.read(blob, range, Purpose::Demand).await?);
            at = range.end();
        }
        Ok(bytes)
    }
}

/// Paths with what they are and what they hold. Of a time only the second counts, rounded: eStargz keeps no more.
fn facts(entries: impl Iterator<Item = Entry>, archive: &[u8]) -> Vec<(String, String, Vec<u8>)> {
    let own = ["/stargz.index.json", "/.prefetch.landmark", "/.no.prefetch.landmark"];
    let entries = entries.filter(|entry| !own.contains(&entry.path.to_string().as_str()));
    let facts = entries.map(|mut entry| {
        let mut content = Vec::new();
        if let Kind::Regular(regular) = &entry.kind {
            content = vec![0; usize::try_from(regular.size_bytes()).unwrap()];
            for piece in regular.pieces() {
                let [at, start, end] =
                    [piece.at, piece.range.start(), piece.range.end()].map(|n| usize::try_from(n).unwrap());
                content[at..at + end - start].copy_from_slice(&archive[start..end]);
            }
            entry.kind = Kind::Regular(Content::default());
        }
        let rounded = entry.mtime.seconds() + i64::from(entry.mtime.nanoseconds() >= 500_000_000);
        entry.mtime = crate::Time::new(rounded, 0).unwrap();
        if matches!(entry.kind, Kind::Whiteout | Kind::Opaque) {
            (entry.mode, entry.uid, entry.gid, entry.mtime) = (0, 0, 0, crate::Time::default());
        }
        (entry.path.to_string(), format!("{entry:?}"), content)
    });
    facts.collect()
}

#[tokio::test]
async fn what_the_tools_of_each_format_make_holds_what_its_tar_archive_does() {
    for (image, format) in IMAGES {
        for nth in 0..2 {
            let (layer, annotations) = kept(image, nth);
            let tar = archive(&layer, format);
            let mut expected = Vec::new();
            let mut reader = TarReader::new();
            reader.push(&tar, |entry| expected.push(entry)).unwrap();
            let bench = Bench::new(vec![layer], &annotations).await;
            let translated = bench.result.as_ref().unwrap();
            let index = bench.index();
            assert_eq!((index.layer(), index.layer().is_translated), (&translated.layer, true));
            let offer = Offer::of(&annotations).unwrap().unwrap();
            assert_eq!(index.layer().unpacked.digest, offer.archive(&index.layer().packed.digest));
            assert!(index.layer().unpacked.digest.is_derived());
            let expected_first = if (image, nth) == ("estargz", 0) { 358_272 + 12 } else { 0 };
            assert_eq!(index.layer().first_bytes, expected_first, "what the record says that was read");
            let payload = bench.payload(100_000).await.unwrap();
            assert!(payload == bench.payload(1_000_000).await.unwrap());
            let found = facts(index.entries().unwrap().map(Result::unwrap), &payload);
            let expected = facts(expected.into_iter(), &tar);
            assert_eq!(found.len(), expected.len(), "{image} {nth}");
            for (found, expected) in found.iter().zip(&expected) {
                assert_eq!((&found.0, &found.1), (&expected.0, &expected.1), "{image} {nth}");
                assert!(found.2 == expected.2, "{image} {nth}: {} has other bytes", found.0);
            }
        }
    }
}

#[tokio::test]
async fn only_the_table_and_a_footer_are_read_to_translate_a_layer() {
    for (image, _) in IMAGES {
        let (layer, annotations) = kept(image, 0);
        let len = layer.len() as u64;
        let bench = Bench::new(vec![layer], &annotations).await;
        bench.result.unwrap();
        assert!(bench.memory.bytes_read() <= TAIL_BYTES.min(len) && bench.memory.reads() == 1, "{image}");
    }
}

#[tokio::test]
async fn any_byte_of_a_layer_that_is_read_is_verified() {
    for (image, _) in IMAGES {
        let (layer, annotations) = kept(image, 0);
        let right = Bench::new(vec![layer.clone()], &annotations).await.payload(1 << 20).await.unwrap();
        let mut refused = 0;
        for at in (0..layer.len()).step_by(9_001) {
            let mut wrong = layer.clone();
            wrong[at] ^= 0x10;
            let bench = Bench::new(vec![wrong], &annotations).await;
            let read = match &bench.result {
                Ok(_) => bench.payload(1 << 20).await.ok(),
                Err(_) => None,
            };
            refused += u32::from(read.is_none());
            assert!(read.is_none_or(|read| read == right), "{image}: byte {at} is wrong and was not noticed");
        }
        assert!(refused > 10, "{image}: {refused}");
    }
}

#[tokio::test]
async fn a_table_that_a_mirror_got_wrong_is_read_again_from_elsewhere() {
    let (layer, annotations) = kept("containers", 0);
    let memory = Memory::new(vec![layer.into()]);
    let corrupt = Corrupt::new(memory.clone());
    let dir = tempfile::tempdir().unwrap();
    let offer = Offer::of(&annotations).unwrap().unwrap();
    let path = dir.path().join("index");
    let wrong = offer.translate(&*corrupt, memory.blob(0), None, &path).await;
    assert!(matches!(wrong, Err(ForeignError::TocDigest { .. })), "{wrong:?}");
    assert_eq!(memory.reads(), u64::from(TRIES));
    corrupt.set(false);
    offer.translate(&*corrupt, memory.blob(0), None, &path).await.unwrap();
}

/// An empty gzip member with an extra field.
fn footer(extra: &[u8]) -> Vec<u8> {
    let len = u8::try_from(extra.len()).unwrap();
    [&[0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255, len, 0][..], extra, &[1, 0, 0, 0xff, 0xff], &[0; 8]].concat()
}

#[tokio::test]
async fn the_legacy_footer_and_a_table_outside_of_the_layer_are_found() {
    let (layer, annotations) = kept("estargz", 0);
    let right = Bench::new(vec![layer.clone()], &annotations).await;
    let expected = right.payload(1 << 20).await.unwrap();
    let (body, today) = layer.split_at(layer.len() - 51);
    let place = &today[16..38];
    let legacy = Bench::new(vec![[body, &footer(place)].concat()], &annotations).await;
    assert!(legacy.result.is_ok() && legacy.payload(1 << 20).await.unwrap() == expected);
    let at = usize::from_str_radix(std::str::from_utf8(&place[..16]).unwrap(), 16).unwrap();
    let (files, table) = body.split_at(at);
    let external = [files, &footer(b"SG\x11\x00STARGZEXTERNALTOC")].concat();
    let alone = Bench::new(vec![external.clone()], &annotations).await;
    assert!(matches!(alone.result, Err(ForeignError::External)), "{:?}", alone.result);
    let with = Bench::new(vec![external.clone(), table.to_vec()], &annotations).await;
    assert!(with.result.is_ok() && with.payload(1 << 20).await.unwrap() == expected);
    let (other, _) = kept("estargz", 1);
    let of_another = Bench::new(vec![external, other], &annotations).await;
    assert!(of_another.result.is_err());
}

#[tokio::test]
async fn todays_annotations_of_containers_storage_are_understood_and_its_footer_stands_in_for_a_place() {
    let (layer, old) = kept("containers", 0);
    let right = Bench::new(vec![layer.clone()], &old).await;
    let expected = right.payload(1 << 20).await.unwrap();
    let renamed: Annotations =
        old.iter().map(|(key, value)| (key.replace("io.", "io.github."), value.clone())).collect();
    let footless =
        renamed.iter().filter(|(key, _)| !key.ends_with(POSITION)).map(|(k, v)| (k.clone(), v.clone())).collect();
    let todays = {
        // The numbers of the place, those of a tar-split, and the other magic.
        let (body, footer) = layer.split_at(layer.len() - 48);
        let numbers = &footer[8..40];
        [body, &[0x50, 0x2a, 0x4d, 0x18, 64, 0, 0, 0], numbers, &[0; 24], b"GNUlInUx"].concat()
    };
    for (layer, annotations) in [(&layer, &renamed), (&layer, &footless), (&todays, &footless), (&todays, &renamed)] {
        let bench = Bench::new(vec![layer.clone()], annotations).await;
        assert!(bench.result.is_ok(), "{:?}", bench.result);
        assert!(bench.payload(1 << 20).await.unwrap() == expected);
    }
    let mut without = layer;
    without.truncate(without.len() - 1);
    let refused = Bench::new(vec![without], &footless).await;
    assert!(matches!(refused.result, Err(ForeignError::Footer { .. })), "{:?}", refused.result);
}

const POSITION: &str = "manifest-position";

/// An eStargz layer of these gzip members and this table, and its annotations.
fn made(members: &[u8], table: &[u8]) -> (Vec<u8>, Annotations) {
    let mut tar = crate::testing::archive(&[table.to_vec()]);
    let mut header: Vec<u8> = tar[..512].to_vec();
    header[..100].fill(0);
    header[..17].copy_from_slice(b"stargz.index.json");
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    tar[..512].copy_from_slice(&header);
    let place = format!("SG\x16\0{:016x}STARGZ", members.len());
    let layer = [members, &gzip_member(&tar, 6), &footer(place.as_bytes())].concat();
    let toc = Digest::of(table).to_string();
    (layer, Annotations::from([("containerd.io/snapshot/stargz/toc.digest".to_owned(), toc)]))
}

async fn translated(members: &[u8], entries: &Value) -> Bench {
    let (layer, annotations) = made(members, json!({ "version": 1, "entries": entries }).to_string().as_bytes());
    Bench::new(vec![layer], &annotations).await
}

fn sha(bytes: &[u8]) -> String {
    Digest::of(bytes).to_string()
}

#[tokio::test]
async fn several_files_in_one_member_are_read_each_by_its_own_digest_and_landmarks_are_hidden() {
    let member = gzip_member(b"onexxtwothreeyy", 6);
    let second = gzip_member(b"four and more", 6);
    let next = member.len();
    let entries = json!([
        { "name": "a", "type": "reg", "size": 3, "chunkDigest": sha(b"one"), "offset": 0 },
        { "name": "b", "type": "reg", "size": 3, "digest": sha(b"two"), "offset": 0, "innerOffset": 5 },
        { "name": ".prefetch.landmark", "type": "reg", "size": 1, "offset": 0, "innerOffset": 7, "chunkDigest": sha(b"x") },
        { "name": "c", "type": "reg", "size": 9, "offset": 0, "innerOffset": 8, "chunkSize": 5, "chunkDigest": sha(b"three") },
        { "name": "c", "type": "chunk", "chunkOffset": 5, "offset": next, "chunkDigest": sha(b"four") },
        { "name": "holes", "type": "reg", "size": 7, "chunkSize": 7, "chunkType": "zeros" },
    ]);
    let bench = translated(&[member, second].concat(), &entries).await;
    assert_eq!(bench.index().layer().first_bytes, 6);
    assert_eq!(bench.payload(4).await.unwrap(), b"onetwothreefour");
    let entries: Vec<Entry> = bench.index().entries().unwrap().map(Result::unwrap).collect();
    let contents: Vec<_> = entries
        .iter()
        .map(|entry| match &entry.kind {
            Kind::Regular(content) => (entry.path.to_string(), content.size_bytes(), content.pieces().len()),
            _ => (entry.path.to_string(), 0, 0),
        })
        .collect();
    let expected = [("/a", 3, 1), ("/b", 3, 1), ("/c", 9, 1), ("/holes", 7, 0)];
    assert_eq!(contents, expected.map(|(path, size, pieces)| (path.to_owned(), size, pieces)));
}

/// The entry of a file of seven bytes, changed.
fn reg(more: Value) -> Value {
    let mut entry = json!({ "name": "a", "type": "reg", "size": 7, "offset": 0, "chunkDigest": sha(b"content") });
    entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    entry
}

/// Tables that no tool writes, for a layer of so many bytes.
fn lies(beyond: usize) -> Vec<Value> {
    vec![
        json!([reg(json!({ "name": "../a" }))]),
        json!([reg(json!({ "name": "a\u{0}b" }))]),
        json!([reg(json!({ "name": "" }))]),
        json!([reg(json!({ "name": ".wh." }))]),
        json!([reg(json!({ "name": "x".repeat(300) }))]),
        json!([reg(json!({ "type": "socket" }))]),
        json!([reg(json!({ "type": "chunk" }))]),
        json!([reg(json!({ "type": "symlink" }))]),
        json!([reg(json!({ "type": "hardlink", "linkName": "../../etc/passwd" }))]),
        json!([reg(json!({ "type": "char", "devMajor": 5000 }))]),
        json!([reg(json!({ "offset": beyond }))]),
        json!([reg(json!({ "offset": u64::MAX }))]),
        json!([reg(json!({ "size": u64::MAX }))]),
        json!([reg(json!({ "size": (16 << 20) + 1 }))]),
        json!([reg(json!({ "innerOffset": 16 << 20 }))]),
        json!([reg(json!({ "innerOffset": u64::MAX }))]),
        json!([reg(json!({ "chunkSize": 8 }))]),
        json!([reg(json!({ "chunkSize": 3 }))]),
        json!([reg(json!({ "chunkOffset": 1 }))]),
        json!([reg(json!({ "chunkDigest": "md5:00" }))]),
        json!([reg(json!({ "chunkDigest": "" }))]),
        json!([reg(json!({ "modtime": "yesterday" }))]),
        json!([reg(json!({ "xattrs": { "user.x": "~" } }))]),
        json!([reg(json!({ "xattrs": { "": "" } }))]),
        json!([reg(json!({ "uid": -1 }))]),
        json!([reg(json!({ "uid": 1_u64 << 32 }))]),
        json!([reg(json!({ "size": -1 }))]),
        json!([reg(json!({ "offset": 1 })), reg(json!({ "name": "b" }))]),
        json!([reg(json!({ "chunkSize": 3 })), reg(json!({ "name": "b", "type": "chunk", "chunkOffset": 3 }))]),
        json!([{ "type": "reg" }]),
        json!([{ "name": "a" }]),
        json!({}),
        json!(7),
    ]
}

#[tokio::test]
async fn a_table_that_lies_is_refused_and_names_what_is_wrong_with_it() {
    let member = gzip_member(b"content", 6);
    assert!(translated(&member, &json!([reg(json!({}))])).await.result.is_ok());
    for entries in lies(member.len()) {
        let bench = translated(&member, &entries).await;
        assert!(bench.result.is_err(), "{entries}");
        assert!(!bench.result.unwrap_err().is_transient());
    }
}

#[tokio::test]
async fn what_is_no_table_of_version_1_is_refused_and_an_empty_one_is_of_an_empty_layer() {
    let member = gzip_member(b"content", 6);
    for table in [
        &b""[..],
        b"{}",
        b"[]",
        b"{\"version\":1}",
        b"{\"version\":2,\"entries\":[]}",
        b"{\"version\":1,\"entries\":[],\"entries\":[]}",
        b"{\"version\":1,\"entries\":[]} x",
        b"\xff",
    ] {
        let (layer, annotations) = made(&member, table);
        assert!(Bench::new(vec![layer], &annotations).await.result.is_err(), "{table:?}");
    }
    let empty = translated(&member, &Value::Null).await;
    assert_eq!(empty.result.unwrap().layer.entries, 0);
}

#[tokio::test]
async fn sizes_that_lie_make_reads_fail_within_bounds() {
    // 64 MiB of zeros in a member, of which a piece is said to have 7 bytes, or more than there are.
    let member = gzip_member(&vec![0; 64 << 20], 6);
    let file = |size: u64, digest: &[u8]| json!([{ "name": "a", "type": "reg", "size": size, "offset": 0, "chunkDigest": sha(digest) }]);
    let bench = translated(&member, &file(7, &[0; 7])).await;
    assert_eq!(bench.payload(7).await.unwrap(), [0; 7], "no more than that is decoded");
    for (member, size) in [(&member, 8), (&gzip_member(b"short", 6), 700)] {
        let bench = translated(member, &file(size, &[0; 7])).await;
        assert!(bench.result.is_ok());
        assert!(matches!(bench.payload(700).await, Err(ReadError::WrongBytes { .. })));
    }
}

#[tokio::test]
async fn a_table_of_one_endless_entry_is_not_held_in_memory() {
    let table = [&b"{\"version\":1,\"entries\":[{\"name\":\""[..], &vec![b'x'; 80 << 20], b"\"}]}"].concat();
    let (layer, annotations) = made(&gzip_member(b"content", 6), &table);
    assert!(layer.len() < 1 << 20);
    let bench = Bench::new(vec![layer], &annotations).await;
    let Err(ForeignError::Toc { reason }) = bench.result else { panic!("{:?}", bench.result) };
    assert!(reason.contains("too long"), "{reason}");
}

#[test]
fn annotations_without_a_digest_offer_nothing_and_malformed_ones_are_named() {
    let of = |pairs: &[(&str, &str)]| {
        Offer::of(&pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
    };
    let (sha, chunked) = (sha(b"x"), "io.containers.zstd-chunked.manifest-checksum");
    let place = "io.containers.zstd-chunked.manifest-position";
    assert_eq!(of(&[]).unwrap(), None);
    assert_eq!(of(&[("io.containers.estargz.uncompressed-size", "5"), (place, "1:2:3:1")]).unwrap(), None);
    let stargz = of(&[(estargz::TOC_DIGEST, &sha)]).unwrap().unwrap();
    assert_eq!((stargz.format(), stargz.format().to_string().as_str()), (Format::Estargz, "eStargz"));
    let chunked_offer = of(&[(estargz::TOC_DIGEST, &sha), (chunked, &sha), (place, "1:2:3:1")]).unwrap().unwrap();
    assert_eq!(chunked_offer.format(), Format::ZstdChunked);
    for bad in [&[(estargz::TOC_DIGEST, "x")][..], &[(chunked, "sha256:")], &[(chunked, &sha), (place, "1:2:3")]] {
        assert!(matches!(of(bad), Err(ForeignError::Annotation { .. })), "{bad:?}");
    }
    for bad in ["", "1:2:3:2", "1:2:3:1:1", "-1:2:3:1", "a:2:3:1"] {
        assert!(of(&[(chunked, &sha), (place, bad)]).is_err(), "{bad}");
    }
}
