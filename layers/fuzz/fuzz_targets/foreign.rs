//! Tables of contents from whoever likes: of eStargz and zstd:chunked, the ends of such layers, ztocs, and gzip indexes of TurboOCI. Any of them is refused, or becomes an index that
//! opens, whose entries are entries and whose reads give what is said or fail.
#![no_main]

use std::{collections::BTreeMap, fs::File, path::Path, sync::OnceLock, time::Duration};

use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};
use penstock_blob::{BlobSource as _, Digest, Purpose, faults::Memory};
use penstock_layers::{
    Built, Config, Index, Unpacked,
    foreign::{
        ForeignError, Offer, soci,
        turbo::{self, Pair},
    },
};
use prometheus_client::registry::Registry;

#[derive(Debug, Arbitrary)]
enum Input {
    /// The end of a layer that says to be eStargz.
    End(Vec<u8>),
    /// The end of one that says to be zstd:chunked, without a place.
    ChunkedEnd(Vec<u8>),
    /// The pieces of files, and a table.
    Table(Vec<u8>, Vec<u8>),
    /// The same, with a table of entries that have the right form.
    Entries(Vec<u8>, Vec<Entry>),
    /// A ztoc, and what is said of prefetching.
    Ztoc(Vec<u8>, Vec<u8>),
    /// The golden ztocs, changed: where, and what to.
    Changed(bool, Vec<(u16, u8)>),
    /// A `gzip.meta`.
    GzipIndex(Vec<u8>),
    /// One with a right header: its checkpoints (how far it is to the next in the archive, where in the layer, bits), the bytes of the archive, windows.
    Points(Vec<(u32, u16, u8)>, u32, Vec<u8>),
}

#[derive(Debug, Arbitrary)]
struct Entry {
    name: String,
    kind: u8,
    size: u32,
    offset: u16,
    inner: u16,
    chunk: (u32, u32),
    zeros: bool,
    content: Vec<u8>,
}

impl Entry {
    fn json(&self) -> String {
        let kinds = ["reg", "reg", "chunk", "chunk", "dir", "symlink", "hardlink", "char", "fifo"];
        let (kind, (at, bytes)) = (kinds[usize::from(self.kind) % kinds.len()], self.chunk);
        let name: String = self.name.chars().filter(|c| c.is_alphanumeric() || "./-".contains(*c)).collect();
        let (size, offset, inner, digest) = (self.size, self.offset, self.inner, Digest::of(&self.content));
        let zeros = if self.zeros { "zeros" } else { "" };
        format!(
            r#"{{"name":"{name}","type":"{kind}","size":{size},"offset":{offset},"innerOffset":{inner},"chunkOffset":{at},"chunkSize":{bytes},"chunkDigest":"{digest}","linkName":"{name}","chunkType":"{zeros}"}}"#
        )
    }
}

/// Layers and ztocs by SOCI's own tool.
fn golden() -> &'static [[Vec<u8>; 2]; 2] {
    static GOLDEN: OnceLock<[[Vec<u8>; 2]; 2]> = OnceLock::new();
    GOLDEN.get_or_init(|| {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden/foreign");
        let read = |name: &str| std::fs::read(dir.join(name)).expect("the golden files are there");
        [[read("soci/layer1"), read("soci/ztoc1")], [vec![0; 10240], read("soci-plain/ztoc1")]]
    })
}

/// A Zstandard frame that holds bytes as they are: one raw block.
fn frame(bytes: &[u8]) -> Vec<u8> {
    let len = u32::try_from(bytes.len().min(100_000)).expect("small");
    let block = (len << 3 | 1).to_le_bytes();
    [&[0x28, 0xb5, 0x2f, 0xfd, 0xa0][..], &len.to_le_bytes(), &block[..3], &bytes[..len as usize]].concat()
}

/// Translates a layer by what its manifest says, and reads all of it.
fn toc(layer: Vec<u8>, annotations: &[(&str, String)]) {
    let annotations: BTreeMap<String, String> =
        annotations.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    let Ok(Some(offer)) = Offer::of(&annotations) else { return };
    run(vec![layer], async |memory, path| offer.translate(&**memory, memory.blob(0), None, path).await);
}

fn run(
    blobs: Vec<Vec<u8>>,
    translate: impl AsyncFnOnce(&std::sync::Arc<Memory>, &Path) -> Result<Built, ForeignError>,
) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("index");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let memory = Memory::new(blobs.into_iter().map(Into::into).collect());
        if translate(&memory, &path).await.is_err() {
            return;
        }
        let index = Index::open(File::open(&path).expect("it was written")).expect("what is written can be opened");
        let archive = index.layer().unpacked;
        let entries = index.entries().expect("entries");
        assert_eq!(entries.map(|entry| entry.expect("an entry")).count() as u64, index.layer().entries);
        // What is said is bounded, but not by what there is: a terabyte of zeros is no finding.
        let Some(all) = archive.all().filter(|all| all.len() <= 64 << 20) else { return };
        let config = Config { deadline: Duration::ZERO, decodes: 1, recent_bytes: 0 };
        let unpacked = Unpacked::new(memory, config, &mut Registry::default());
        let _registered = unpacked.register(index);
        if let Ok(bytes) = unpacked.read(archive, all, Purpose::Demand).await {
            assert_eq!(bytes.len() as u64, archive.size_bytes);
        }
    });
}

fn table(pieces: &[u8], table: &[u8]) {
    let stored = frame(table);
    let layer = [pieces, &stored].concat();
    let place = format!("{}:{}:{}:1", pieces.len(), stored.len(), table.len());
    let sum = Digest::of(&stored).to_string();
    toc(
        layer,
        &[
            ("io.containers.zstd-chunked.manifest-checksum", sum),
            ("io.containers.zstd-chunked.manifest-position", place),
        ],
    );
}

fn ztoc(layer: &[u8], ztoc: Vec<u8>, said: Vec<u8>) {
    run(vec![layer.to_vec(), ztoc], async |memory, path| {
        let prefetch = soci::Prefetch::parse(&said).unwrap_or_default();
        soci::translate(&**memory, (memory.blob(1), prefetch), memory.blob(0), path).await
    });
}

fn gzip_index(layer: &[u8], index: Vec<u8>) {
    run(vec![layer.to_vec(), index], async |memory, path| {
        let (target, index) = (memory.blob(0), memory.blob(1));
        let all = index.all().ok_or(ForeignError::External)?;
        let pair = Pair { metadata: index.digest, target: target.digest };
        turbo::translate(&**memory, (index, all), pair, path).await
    });
}

/// A `gzip.meta` whose windows and table are as they are.
fn points(layer_bytes: usize, points: &[(u32, u16, u8)], archive_bytes: u32, windows: &[u8]) -> Vec<u8> {
    let table_at = 333 + windows.len();
    let own_bytes = table_at + 29 * points.len();
    let mut index = b"ddgzidx\0\x01\0\0\x06\0".to_vec();
    [1 << 20, 1 << 15, 29].iter().for_each(|number: &i32| index.extend_from_slice(&number.to_le_bytes()));
    let number = |number: usize| (number as u64).to_le_bytes();
    for value in [points.len(), layer_bytes, own_bytes, archive_bytes as usize] {
        index.extend_from_slice(&number(value));
    }
    index.resize(313, 0);
    [table_at, own_bytes - table_at].iter().for_each(|&value| index.extend_from_slice(&number(value)));
    let check = !crc32c::crc32c_append(u32::MAX, &index);
    index.extend_from_slice(&check.to_le_bytes());
    index.extend_from_slice(windows);
    let mut at = 0;
    for (step, byte, bits) in points {
        [at, u64::from(*byte), 333].iter().for_each(|number| index.extend_from_slice(&number.to_le_bytes()));
        index.push(*bits);
        index.extend_from_slice(&(windows.len() as u32).to_le_bytes());
        at += u64::from(*step);
    }
    index
}

fuzz_target!(|input: Input| {
    let any = || Digest::of(b"any").to_string();
    match input {
        Input::End(layer) if !layer.is_empty() => toc(layer, &[("containerd.io/snapshot/stargz/toc.digest", any())]),
        Input::ChunkedEnd(layer) if !layer.is_empty() => {
            toc(layer, &[("io.containers.zstd-chunked.manifest-checksum", any())]);
        }
        Input::End(_) | Input::ChunkedEnd(_) => {}
        Input::Table(pieces, json) => table(&pieces, &json),
        Input::Entries(pieces, entries) => {
            let entries: Vec<String> = entries.iter().map(Entry::json).collect();
            table(&frame(&pieces), format!(r#"{{"version":1,"entries":[{}]}}"#, entries.join(",")).as_bytes());
        }
        Input::Ztoc(bytes, said) if !bytes.is_empty() => ztoc(&golden()[0][0], bytes, said),
        Input::Ztoc(..) => {}
        Input::Changed(is_plain, changes) => {
            let [layer, golden] = &golden()[usize::from(is_plain)];
            let mut changed = golden.clone();
            for (at, value) in changes {
                if let Some(byte) = changed.get_mut(usize::from(at)) {
                    *byte = value;
                }
            }
            ztoc(layer, changed, Vec::new());
        }
        Input::GzipIndex(index) if !index.is_empty() => gzip_index(&golden()[0][0], index),
        Input::GzipIndex(_) => {}
        Input::Points(steps, archive_bytes, windows) => {
            let layer = &golden()[0][0];
            gzip_index(layer, points(layer.len(), &steps, archive_bytes, &windows));
        }
    }
});
