//! Wrong bytes, failing sources, sources that keep nothing.

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicUsize, Ordering},
};

use bytes::Bytes;
use parking_lot::Mutex;
use penstock_blob::{
    Blob, BlobSource, ByteRange, Located, Purpose, ReadError, ReadFuture,
    faults::{Flaky, Memory},
};
use penstock_image::{
    BLOB_DIGEST, DeviceReadError, Held, Image, LayerError, OpenError, Scratch, Step, StepError, read,
};

use crate::common::{LZ4, blob, noise, range, source};

/// Flips a bit of the byte at `at` of every blob, in the first `wrong` answers that hold it, and counts what is
/// rejected.
#[derive(Debug)]
struct WrongAtFirst {
    below: Arc<Memory>,
    at: u64,
    wrong: AtomicU32,
    rejects: AtomicUsize,
}

impl WrongAtFirst {
    fn new(below: Arc<Memory>, at: u64, wrong: u32) -> Arc<Self> {
        Arc::new(Self { below, at, wrong: wrong.into(), rejects: 0.into() })
    }
}

impl BlobSource for WrongAtFirst {
    fn locate(&self, _: &Blob, _: ByteRange) -> Option<Located> {
        None
    }

    fn read(&self, blob: Blob, range: ByteRange, purpose: Purpose) -> ReadFuture<'_> {
        Box::pin(async move {
            let mut bytes = self.below.read(blob, range, purpose).await?.to_vec();
            let spend = |left: u32| left.checked_sub(1);
            if range.start() <= self.at
                && self.at < range.end()
                && self.wrong.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend).is_ok()
            {
                bytes[usize::try_from(self.at - range.start()).unwrap()] ^= 1;
            }
            Ok(Bytes::from(bytes))
        })
    }

    fn reject(&self, blob: &Blob, range: ByteRange) {
        assert!(range.end() <= blob.size_bytes, "{range}");
        let hit = range.start() <= self.at && self.at < range.end();
        self.rejects.fetch_add(hit.into(), Ordering::Relaxed);
    }
}

async fn open(memory: &Arc<Memory>, layers: Vec<penstock_image::Layer>) -> Image {
    let maps = tempfile::tempdir().unwrap();
    Image::open(layers, memory.clone(), maps.path()).await.unwrap()
}

/// A part of the device that is data.
const DATA: (u64, u64) = (4096, 8192);

#[tokio::test]
async fn a_frame_that_fails_its_check_is_rejected_and_fetched_once_more() {
    let (memory, layers) = source(vec![blob(LZ4[0])]);
    let image = open(&memory, layers).await;
    let wanted = range(DATA.0, DATA.1);
    let memory_source: Arc<dyn BlobSource> = memory.clone();
    let good = read(&image, &memory_source, wanted).await.unwrap();
    let (_, frame) = image.plan(wanted, &*memory).unwrap().missing().next().unwrap();
    let middle = frame.start() + frame.len() / 2;
    let once = WrongAtFirst::new(memory.clone(), middle, 1);
    let once_source: Arc<dyn BlobSource> = once.clone();
    assert_eq!(read(&image, &once_source, wanted).await.unwrap(), good);
    assert_eq!(once.rejects.load(Ordering::Relaxed), 1);
    let always: Arc<dyn BlobSource> = WrongAtFirst::new(memory, middle, u32::MAX);
    let error = read(&image, &always, wanted).await.unwrap_err();
    assert!(matches!(error, DeviceReadError::Step(StepError::Check { what, .. }) if what.contains("CRC")), "{error}");
}

/// A source whose copy is wrong in many places, until it is told of each.
#[derive(Debug)]
struct WrongInPlaces {
    below: Arc<Memory>,
    places: Mutex<Vec<u64>>,
}

impl BlobSource for WrongInPlaces {
    fn locate(&self, _: &Blob, _: ByteRange) -> Option<Located> {
        None
    }

    fn read(&self, blob: Blob, range: ByteRange, purpose: Purpose) -> ReadFuture<'_> {
        Box::pin(async move {
            let mut bytes = self.below.read(blob, range, purpose).await?.to_vec();
            for at in self.places.lock().iter().filter(|&&at| range.start() <= at && at < range.end()) {
                bytes[usize::try_from(at - range.start()).unwrap()] ^= 1;
            }
            Ok(Bytes::from(bytes))
        })
    }

    fn reject(&self, _: &Blob, range: ByteRange) {
        self.places.lock().retain(|&at| at < range.start() || range.end() <= at);
    }
}

#[tokio::test]
async fn every_wrong_place_of_a_request_is_fetched_again() {
    let (memory, layers) = source(vec![blob(LZ4[0])]);
    let image = open(&memory, layers).await;
    let wanted = range(2 << 20, 3 << 20);
    let memory_source: Arc<dyn BlobSource> = memory.clone();
    let good = read(&image, &memory_source, wanted).await.unwrap();
    let missing: Vec<ByteRange> = image.plan(wanted, &*memory).unwrap().missing().map(|(_, range)| range).collect();
    let spread = |range: &ByteRange| (range.start()..range.end()).step_by(40_000).collect::<Vec<_>>();
    let places: Vec<u64> = missing.iter().flat_map(spread).collect();
    assert!((2..30).contains(&places.len()), "{} places", places.len());
    let wrong = Arc::new(WrongInPlaces { below: memory, places: Mutex::new(places) });
    let wrong_source: Arc<dyn BlobSource> = wrong.clone();
    assert_eq!(read(&image, &wrong_source, wanted).await.unwrap(), good);
    assert!(wrong.places.lock().is_empty());
}

#[tokio::test]
async fn a_layer_that_makes_no_sense_is_rejected_and_fetched_once_more() {
    let (memory, mut layers) = source(vec![blob(LZ4[0])]);
    let digest = layers[0].blob.digest.to_string();
    layers[0].annotations.insert(BLOB_DIGEST.into(), digest);
    // The tar header, the ZFile header, the first frame (the layer file's header), and from the end: its trailer, the
    // jump table.
    for at in [500, 1536 + 41, 2048 + 9, 3_750_691 - 60, 3_750_691 + 400] {
        let maps = tempfile::tempdir().unwrap();
        let once = WrongAtFirst::new(memory.clone(), at, 1);
        Image::open(layers.clone(), once.clone(), maps.path()).await.unwrap();
        assert_eq!(once.rejects.load(Ordering::Relaxed), 1, "byte {at}");
        let always = WrongAtFirst::new(memory.clone(), at, u32::MAX);
        let maps = tempfile::tempdir().unwrap();
        let error = Image::open(layers.clone(), always, maps.path()).await.unwrap_err();
        assert!(matches!(error, OpenError::Layer { .. } | OpenError::NotADisk { .. }), "byte {at}: {error}");
        assert!(!error.is_transient());
        let left: Vec<_> = std::fs::read_dir(maps.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        let kept = left.iter().filter(|path| path.extension().is_some()).count();
        assert!(kept <= 1, "at most the finished frame table stays: {left:?}");
    }
}

#[tokio::test]
async fn a_source_that_fails_fails_the_open_and_a_later_one_succeeds() {
    let (memory, layers) = source(LZ4.map(blob).to_vec());
    let maps = tempfile::tempdir().unwrap();
    let flaky = Flaky::new(memory, u32::MAX);
    let error = Image::open(layers.clone(), flaky.clone(), maps.path()).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    flaky.set(0);
    let image = Image::open(layers, flaky.clone(), maps.path()).await.unwrap();
    flaky.set(1);
    let source: Arc<dyn BlobSource> = flaky;
    let error = read(&image, &source, range(DATA.0, DATA.1)).await.unwrap_err();
    assert!(matches!(error, DeviceReadError::Fetch(ReadError::Unavailable { .. })), "{error}");
    read(&image, &source, range(DATA.0, DATA.1)).await.unwrap();
}

#[tokio::test]
async fn held_bytes_answer_though_the_source_keeps_nothing() {
    let (memory, layers) = source(LZ4.map(blob).to_vec());
    let image = open(&memory, layers).await;
    let wanted = range(0, 1 << 20);
    let source: Arc<dyn BlobSource> = memory.clone();
    let plan = image.plan(wanted, &*source).unwrap();
    assert!(!plan.is_local());
    let error = plan.read_into(&mut vec![0; 1 << 20], &mut Scratch::new()).unwrap_err();
    assert!(matches!(error, StepError::Missing { .. }), "{error}");
    let before = memory.reads();
    let held = Held::fetch(source.clone(), plan.missing()).await.unwrap();
    assert!(memory.reads() - before <= plan.missing().count() as u64);
    let plan = image.plan(wanted, &held).unwrap();
    assert!(plan.is_local());
    let mut buf = vec![0; 1 << 20];
    plan.read_into(&mut buf, &mut Scratch::new()).unwrap();
    assert_eq!(read(&image, &source, wanted).await.unwrap(), buf);
    assert!(matches!(plan.read_into(&mut buf[1..], &mut Scratch::new()), Err(StepError::Buffer { .. })));
}

#[tokio::test]
async fn held_bytes_keep_the_promises_of_a_source() {
    let bytes: Bytes = noise(300_000, 2).into();
    let memory = Memory::new(vec![bytes.clone()]);
    let blob = memory.blob(0);
    let held = Held::fetch(memory.clone(), [(blob, range(0, 1000)), (blob, range(900, 70_000))]).await.unwrap();
    assert_eq!(memory.reads(), 1, "ranges that touch are read as one");
    penstock_blob::conformance::check(Arc::new(held), &[(blob, bytes)]).await;
}

#[tokio::test]
async fn what_is_here_is_used_and_only_the_rest_is_missing() {
    let (memory, layers) = source(vec![blob(LZ4[0])]);
    let image = open(&memory, layers).await;
    let source: Arc<dyn BlobSource> = memory.clone();
    let wanted = range(0, 64 << 10);
    let all: Vec<_> = image.plan(wanted, &*source).unwrap().missing().collect();
    let [(blob, run)] = all[..] else { panic!("one run of frames expected, not {all:?}") };
    let middle = range(run.start() + run.len() / 3, run.start() + 2 * run.len() / 3);
    let held = Held::fetch(source, [(blob, middle)]).await.unwrap();
    let plan = image.plan(wanted, &held).unwrap();
    let framed: u64 = plan.steps.iter().filter(|s| matches!(s.step, Step::Frame(_))).map(|s| s.at.len()).sum();
    assert!(framed > 0 && framed.is_multiple_of(4096), "{framed} bytes from what is held");
    let missing: Vec<ByteRange> = plan.missing().map(|(_, range)| range).collect();
    assert_eq!(missing.len(), 2, "before and behind it: {missing:?}");
    assert!(missing.iter().all(|m| m.intersection(middle).is_none_or(|both| both.len() < 5000)));
}

#[tokio::test]
async fn errors_of_layers_name_the_layer() {
    let mut bytes = blob(LZ4[0]).to_vec();
    // In the jump table.
    let index = 3_755_000;
    bytes[index] ^= 1;
    let (memory, layers) = source(vec![bytes.into()]);
    let maps = tempfile::tempdir().unwrap();
    match Image::open(layers.clone(), memory, maps.path()).await.unwrap_err() {
        OpenError::Layer { blob, error } => {
            assert_eq!(blob, layers[0].blob.digest);
            let expected = matches!(
                *error,
                LayerError::JumpTableCrc { .. } | LayerError::FrameLength { .. } | LayerError::FramesEnd { .. }
            );
            assert!(expected, "{error}");
        }
        error => panic!("{error}"),
    }
}
