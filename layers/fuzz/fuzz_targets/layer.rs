//! Layers and layer indexes from whoever likes: any bytes are a layer with an index that reads back as the decoders of other programs
//! would have it, or a refusal; any index is read as one whose frames are what it says, or fails.
#![no_main]

use std::{fs::File, path::Path, sync::{Arc, OnceLock}, time::Duration};

use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};
use penstock_blob::{Blob, BlobSource as _, Digest, Purpose, faults::Memory};
use penstock_layers::{BuildError, Builder, Built, Config, Index, Unpacked};
use prometheus_client::registry::Registry;

/// Bytes of a header and of a page of the frame table; the last four are a CRC-32C of the others.
const PAGE: usize = 4096;
/// A layer by skopeo: a few Zstandard frames, and skippable ones.
const FRAMES: &[u8] = include_bytes!("../../golden/foreign/containers/layer1");
/// Changes of bytes: where, and what to.
type Changes = Vec<(u16, u8)>;

#[derive(Debug, Arbitrary)]
enum Input {
    /// A layer, and how it is cut into pieces.
    Layer(u8, Vec<u8>),
    /// The golden layer, changed, and how it is cut into pieces.
    Changed(u8, Changes),
    /// A layer of one Zstandard frame that is too large to be decoded as one, changed, and how it is cut into pieces.
    Streamed(u8, Changes),
    /// A layer of several Zstandard frames, changed, and how it is cut into pieces.
    Zstd(u8, Changes),
    /// A golden index, changed, and whether its checksums are made right again; and the same for its layer. Which of the two.
    Index(Changes, bool, Changes, bool),
}

/// Layers and their indexes: one of which each frame decodes alone, and one that is streamed.
fn golden() -> &'static [(Vec<u8>, Vec<u8>); 2] {
    static GOLDEN: OnceLock<[(Vec<u8>, Vec<u8>); 2]> = OnceLock::new();
    GOLDEN.get_or_init(|| {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden");
        let read = |name: &str| std::fs::read(dir.join(name)).expect("the golden files are there");
        [(read("v1.tar.gz"), read("v1.layer-index")), (read("v3.tar.zst"), read("v3.layer-index"))]
    })
}

fn changed(bytes: &[u8], changes: &Changes) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for &(at, value) in changes {
        if let Some(byte) = bytes.get_mut(usize::from(at)) {
            *byte = value;
        }
    }
    bytes
}

fn build(path: &Path, packed: &[u8], diff_id: Digest, piece: usize) -> Result<Built, BuildError> {
    let blob = Blob { digest: Digest::of(packed), size_bytes: packed.len() as u64 };
    let mut builder = Builder::create(path, blob, diff_id)?;
    packed.chunks(piece.max(1)).try_for_each(|piece| builder.push(piece))?;
    builder.finish()
}

/// Reads all that an index says of these compressed bytes.
fn read(path: &Path, packed: &[u8]) -> Option<Digest> {
    let index = Index::open(File::open(path).ok()?).ok()?;
    let archive = index.layer().unpacked;
    // What is said is bounded, but not by what there is: a terabyte of zeros is no finding.
    if archive.size_bytes > 64 << 20 {
        return None;
    }
    let entries = index.entries().ok()?;
    assert!(entries.take_while(Result::is_ok).count() as u64 <= index.layer().entries);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(async {
        let below = Arc::new(Named(Memory::new(vec![packed.to_vec().into()])));
        let config = Config { deadline: Duration::ZERO, decodes: 1, recent_bytes: 0 };
        let unpacked = Unpacked::new(below, config, &mut Registry::default());
        let _registered = unpacked.register(index);
        let bytes = unpacked.read(archive, archive.all()?, Purpose::Demand).await.ok()?;
        assert_eq!(bytes.len() as u64, archive.size_bytes);
        Some(Digest::of(&bytes))
    })
}

/// Blobs in memory, of which the first one answers to every name.
#[derive(Debug)]
struct Named(Arc<Memory>);

impl penstock_blob::BlobSource for Named {
    fn locate(&self, _: &Blob, _: penstock_blob::ByteRange) -> Option<penstock_blob::Located> {
        None
    }

    fn read(&self, _: Blob, range: penstock_blob::ByteRange, purpose: Purpose) -> penstock_blob::ReadFuture<'_> {
        self.0.read(self.0.blob(0), range, purpose)
    }

    fn reject(&self, _: &Blob, _: penstock_blob::ByteRange) {}
}

/// A layer that can be decoded has an index, and reads back through it; and one without is not half read.
fn layer(packed: &[u8], piece: u8) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("index");
    let piece = usize::from(piece) * 97 + 1;
    // The diff ID is whatever comes out.
    let Err(BuildError::DiffId { actual, .. }) = build(&path, packed, Digest::of(b"unknown"), piece) else { return };
    let built = build(&path, packed, actual, piece + 1).expect("it was only the diff ID");
    if built.layer.unpacked.size_bytes > 0 && built.layer.unpacked.size_bytes <= 64 << 20 {
        assert_eq!(read(&path, packed), Some(actual));
    }
}

fuzz_target!(|input: Input| {
    let [(golden_layer, _), (streamed_layer, _)] = golden();
    match input {
        Input::Layer(piece, packed) => layer(&packed, piece),
        Input::Changed(piece, changes) => layer(&changed(golden_layer, &changes), piece),
        Input::Streamed(piece, changes) => layer(&changed(streamed_layer, &changes), piece),
        Input::Zstd(piece, changes) => layer(&changed(FRAMES, &changes), piece),
        Input::Index(changes, is_sealed, layer, is_streamed) => {
            let (golden_layer, golden_index) = &golden()[usize::from(is_streamed)];
            let mut index = changed(golden_index, &changes);
            // Header, and the page that begins where the header says that windows end.
            let windows = u64::from_le_bytes(index[112..120].try_into().expect("eight bytes"));
            let table = usize::try_from(windows).ok().and_then(|bytes| bytes.checked_add(PAGE));
            for at in [Some(0), table].into_iter().flatten().filter(|_| is_sealed) {
                if let Some(page) = at.checked_add(PAGE).and_then(|end| index.get_mut(at..end)) {
                    let crc = crc32c::crc32c(&page[..PAGE - 4]);
                    page[PAGE - 4..].copy_from_slice(&crc.to_le_bytes());
                }
            }
            let dir = tempfile::tempdir().expect("a directory");
            let path = dir.path().join("index");
            std::fs::write(&path, &index).expect("there is room");
            read(&path, &changed(golden_layer, &layer));
        }
    }
});
