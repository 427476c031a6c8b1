//! Images whose tables are still being made: what can be read is right at every stage, and the rest waits, fails and heals by itself.

use std::{
    collections::VecDeque,
    pin::pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::Mutex;
use penstock_blob::{Blob, BlobSource, ByteRange, Located, Purpose, ReadError, ReadFuture, faults::Memory};
use penstock_image::{
    Image, Layer, Maps, OpenError, Scratch, Step, read,
    write::{LayerWriter, Options, Written},
    zfile::{Codec, Format},
};
use proptest::prelude::*;
use tokio::sync::{Notify, oneshot};

use crate::common::{layer, noise, range, source};

/// Extents of the large layer: more than fit in what opening reads of its index and of its jump table.
const EXTENTS: u64 = 24_000;
/// Sectors of each of them: a frame.
const SECTORS: u64 = 8;
/// An extent whose frame is neither among the first of the jump table, nor among those in the blob's tail.
const UNKNOWN: u64 = 4000;

/// Where extent `i` of the large layer starts, in sectors: the gaps differ, so that the index does not compress.
fn start(i: u64) -> u64 {
    i * (SECTORS + 40) + i.wrapping_mul(0x9e37_79b9_7f4a_7c15) % 37
}

const DEVICE_SECTORS: u64 = EXTENTS * (SECTORS + 40) + 64;

/// What the large layer has in a sector.
fn sector(at: u64) -> [u8; 512] {
    let mut bytes = [0; 512];
    let i = at / (SECTORS + 40);
    let within = |i: u64| i < EXTENTS && (start(i)..start(i) + SECTORS).contains(&at);
    if within(i) || i > 0 && within(i - 1) {
        bytes[..8].copy_from_slice(&at.to_le_bytes());
        bytes[8..8 + (at % 90) as usize].fill(at.to_le_bytes()[0] | 1);
    }
    bytes
}

/// The large layer, made once.
fn large(crc: bool) -> Bytes {
    static LARGE: [OnceLock<Bytes>; 2] = [OnceLock::new(), OnceLock::new()];
    let make = || {
        let mut out = std::io::Cursor::new(Vec::new());
        let format = Format { codec: Codec::Lz4, crc, block_bytes: 4096 };
        let options = Options { frames: Some(format), device_bytes: Some(DEVICE_SECTORS * 512), ..Options::default() };
        let mut writer = LayerWriter::new(&mut out, options).unwrap();
        for i in 0..EXTENTS {
            let data: Vec<u8> = (start(i)..start(i) + SECTORS).flat_map(sector).collect();
            writer.data(start(i), &data).unwrap();
        }
        let Written { extents, .. } = writer.finish().unwrap();
        assert_eq!(extents, EXTENTS);
        out.into_inner().into()
    };
    LARGE[usize::from(crc)].get_or_init(make).clone()
}

/// Layers whose manifest says what they are: nothing is read to find out.
fn annotated(mut layers: Vec<Layer>) -> Vec<Layer> {
    for layer in &mut layers {
        layer.annotations.insert(penstock_image::BLOB_DIGEST.into(), layer.blob.digest.to_string());
    }
    layers
}

/// Holds every read back until it is let go, in an order of the test's choosing.
#[derive(Debug)]
struct Gate {
    below: Arc<dyn BlobSource>,
    waiting: Mutex<VecDeque<oneshot::Sender<()>>>,
    arrived: Notify,
}

impl Gate {
    fn new(below: Arc<dyn BlobSource>) -> Arc<Self> {
        Arc::new(Self { below, waiting: Mutex::default(), arrived: Notify::new() })
    }

    /// Waits for a read and lets go the one that `pick` chooses of those that wait.
    async fn let_go(&self, pick: usize) {
        loop {
            {
                let mut waiting = self.waiting.lock();
                let count = waiting.len();
                if count > 0 {
                    // Whoever gave it up does not mind.
                    let _ = waiting.remove(pick % count).unwrap().send(());
                    return;
                }
            }
            self.arrived.notified().await;
        }
    }

    /// What `work` answers, while reads are let go.
    async fn during<T>(&self, pick: usize, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = self.let_go(pick) => {}
            }
        }
    }
}

impl BlobSource for Gate {
    fn locate(&self, blob: &Blob, range: ByteRange) -> Option<Located> {
        self.below.locate(blob, range)
    }

    fn read(&self, blob: Blob, range: ByteRange, purpose: Purpose) -> ReadFuture<'_> {
        Box::pin(async move {
            let (sender, gone) = oneshot::channel();
            self.waiting.lock().push_back(sender);
            self.arrived.notify_one();
            gone.await.map_err(|_| ReadError::Stopping)?;
            self.below.read(blob, range, purpose).await
        })
    }

    fn reject(&self, blob: &Blob, range: ByteRange) {
        self.below.reject(blob, range);
    }
}

/// Device bytes by a function of the sector.
fn model(at: ByteRange, upper: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let mut bytes: Vec<u8> = (at.start() / 512..at.end() / 512).flat_map(sector).collect();
    for (start, data) in upper {
        for (i, sector) in (*start..).zip(data.chunks(512)) {
            if (at.start() / 512..at.end() / 512).contains(&i) {
                let place = usize::try_from(i * 512 - at.start()).unwrap();
                bytes[place..place + 512].copy_from_slice(sector);
            }
        }
    }
    bytes
}

fn sectors(start: u64, count: u64) -> ByteRange {
    let start = start.min(DEVICE_SECTORS - 1);
    range(start * 512, (start + count).min(DEVICE_SECTORS) * 512)
}

/// Compares what of a range can be read at this moment with the model; whether all of it can. What is missing are parts of tables: all bytes are located.
fn assert_stage(image: &Image, memory: &Memory, at: ByteRange, upper: &[(u64, Vec<u8>)]) -> bool {
    let blobs = image.blobs();
    let plan = image.plan(at, memory).unwrap();
    let expected = model(at, upper);
    let mut end = 0;
    for placed in &plan.steps {
        assert_eq!(placed.at.start(), end, "steps follow each other");
        end = placed.at.end();
        let place = usize::try_from(placed.at.start()).unwrap()..usize::try_from(placed.at.end()).unwrap();
        let mut found = vec![0xaa; place.len()];
        match &placed.step {
            Step::Zero | Step::Plain { .. } | Step::Own(_) | Step::Frame(_) => {
                plan.step_into(&placed.step, &mut found, &mut Scratch::new()).unwrap();
            }
            Step::Cluster(_) | Step::Wrong { .. } => panic!("this is no qcow2 disk"),
            Step::Missing { blob, range } => {
                assert!(!blobs.contains(blob) && range.end() <= blob.size_bytes, "only a table is missing");
                continue;
            }
        }
        assert!(found == expected[place], "bytes {} of {at}", placed.at);
    }
    assert_eq!(end, at.len());
    plan.is_local()
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(8) })]

    #[test]
    fn what_can_be_read_is_right_at_every_stage(
        uppers in proptest::collection::vec((0..DEVICE_SECTORS - 600, 1..600_u64, any::<u64>()), 0..3),
        reads in proptest::collection::vec((0..DEVICE_SECTORS, 1..300_u64, any::<usize>()), 1..8),
    ) {
        let upper: Vec<(u64, Vec<u8>)> =
            uppers.into_iter().map(|(start, count, seed)| (start, noise(usize::try_from(count * 512).unwrap(), seed))).collect();
        let mut blobs = vec![large(true)];
        let with = |(start, data): &(u64, Vec<u8>)| layer(Options::default(), &[(*start, 0, Some(data))]).1;
        blobs.extend(upper.iter().map(with));
        block_on(async {
            let (memory, layers) = source(blobs);
            memory.resident(true);
            let gate = Gate::new(memory.clone());
            let maps = tempfile::tempdir().unwrap();
            let image = gate.during(0, Image::open(layers, gate.clone(), maps.path())).await.unwrap();
            assert_eq!(image.size_bytes(), DEVICE_SECTORS * 512);
            let ranges: Vec<ByteRange> = reads.iter().map(|&(start, count, _)| sectors(start, count)).collect();
            // The reader's own source is not held back: only the tables are.
            let reader: Arc<dyn BlobSource> = memory.clone();
            for (&at, &(_, _, pick)) in ranges.iter().zip(&reads) {
                for &at in &ranges {
                    assert_stage(&image, &memory, at, &upper);
                }
                let found = gate.during(pick, read(&image, &reader, at)).await.unwrap();
                assert!(found == model(at, &upper));
                assert!(assert_stage(&image, &memory, at, &upper), "it was read, so it is known");
            }
            gate.during(1, image.completed()).await.unwrap();
            assert!(image.extents().is_some());
            assert!(ranges.iter().all(|&at| assert_stage(&image, &memory, at, &upper)));
        });
    }
}

#[tokio::test]
async fn opening_a_large_layer_takes_two_rounds_of_a_constant_size() {
    let (memory, layers) = source(vec![large(true)]);
    let gate = Gate::new(memory.clone());
    let maps = tempfile::tempdir().unwrap();
    let mut opening = pin!(Image::open(annotated(layers), gate.clone(), maps.path()));
    let mut rounds = Vec::new();
    let image = loop {
        tokio::select! {
            biased;
            opened = &mut opening => break opened.unwrap(),
            () = gate.arrived.notified() => {}
        }
        // All that is asked for at once; what opening asks for next depends on it.
        let round: Vec<_> = gate.waiting.lock().drain(..).collect();
        rounds.push(round.len());
        round.into_iter().for_each(|read| read.send(()).unwrap());
    };
    let asked: Vec<usize> = rounds.into_iter().filter(|&reads| reads > 0).collect();
    assert_eq!(asked, [3, 1], "head, tail and what lies before it, then what lies around the start of the jump table");
    assert!(memory.bytes_read() <= (16 << 10) + 2 * (64 << 10) + 4096 + (256 << 10), "{}", memory.bytes_read());
    memory.resident(true);
    assert!(image.extents().is_none() && !assert_stage(&image, &memory, sectors(0, 8), &[]));
}

/// Answers reads of a part of a blob with a bit flipped, so many times.
#[derive(Debug)]
struct Flipped {
    below: Arc<Memory>,
    at: u64,
    times: Mutex<u32>,
}

impl BlobSource for Flipped {
    fn locate(&self, _: &Blob, _: ByteRange) -> Option<Located> {
        None
    }

    fn read(&self, blob: Blob, range: ByteRange, purpose: Purpose) -> ReadFuture<'_> {
        Box::pin(async move {
            let bytes = self.below.read(blob, range, purpose).await?;
            let mut times = self.times.lock();
            if *times == 0 || !(range.start()..range.end()).contains(&self.at) {
                return Ok(bytes);
            }
            *times -= 1;
            let mut bytes = bytes.to_vec();
            bytes[usize::try_from(self.at - range.start()).unwrap()] ^= 1;
            Ok(bytes.into())
        })
    }

    fn reject(&self, _: &Blob, _: ByteRange) {}
}

/// A byte in the middle of the large layer's jump table, which opening does not read.
fn middle_of_the_jump_table(blob: &[u8]) -> u64 {
    let field = |at: usize| u64::from_le_bytes(blob[1536 + at..1544 + at].try_into().unwrap());
    1536 + field(40) + 4 * 2000
}

#[tokio::test]
async fn a_wrong_jump_table_is_fetched_again_once_and_then_nobody_reads_by_it() {
    let bytes = large(true);
    let at = middle_of_the_jump_table(&bytes);
    let (memory, layers) = source(vec![bytes]);
    for (times, heals) in [(1, true), (u32::MAX, false)] {
        let wrong = Arc::new(Flipped { below: memory.clone(), at, times: times.into() });
        let maps = tempfile::tempdir().unwrap();
        let image = Image::open(layers.clone(), wrong, maps.path()).await.unwrap();
        let completed = image.completed().await;
        assert_eq!(completed.is_ok(), heals, "{completed:?}");
        let reader: Arc<dyn BlobSource> = memory.clone();
        for at in [sectors(0, 16), sectors(start(UNKNOWN), 8), sectors(DEVICE_SECTORS - 200, 200)] {
            match read(&image, &reader, at).await {
                Ok(found) => assert!(heals && found == model(at, &[])),
                Err(error) => assert!(!heals && error.to_string().contains("wrong bytes"), "{error}"),
            }
        }
        let kept = std::fs::read_dir(maps.path()).unwrap().map(|entry| entry.unwrap().path());
        let tables = kept.filter(|path| path.extension().is_some_and(|e| e == "frames")).count();
        assert_eq!(tables, usize::from(heals), "a table that was not checked is not kept");
    }
}

/// Fails reads of a part of a blob while switched on.
#[derive(Debug)]
struct Lacking {
    below: Arc<Memory>,
    at: u64,
    on: AtomicBool,
}

impl BlobSource for Lacking {
    fn locate(&self, _: &Blob, _: ByteRange) -> Option<Located> {
        None
    }

    fn read(&self, blob: Blob, range: ByteRange, purpose: Purpose) -> ReadFuture<'_> {
        Box::pin(async move {
            if self.on.load(Ordering::Relaxed) && (range.start()..range.end()).contains(&self.at) {
                let (endpoint, reason) = ("lacking".into(), "injected".into());
                return Err(ReadError::Unavailable { blob: blob.digest, endpoint, reason });
            }
            self.below.read(blob, range, purpose).await
        })
    }

    fn reject(&self, _: &Blob, _: ByteRange) {}
}

#[tokio::test]
async fn a_part_that_cannot_be_had_fails_who_needs_it_and_is_asked_for_again() {
    let bytes = large(true);
    let at = middle_of_the_jump_table(&bytes);
    let (memory, layers) = source(vec![bytes]);
    let lacking = Arc::new(Lacking { below: memory.clone(), at, on: true.into() });
    let maps = tempfile::tempdir().unwrap();
    let image = Image::open(layers, lacking.clone(), maps.path()).await.unwrap();
    let reader: Arc<dyn BlobSource> = memory.clone();
    let middle = sectors(start(UNKNOWN), 8);
    for _ in 0..2 {
        let error = read(&image, &reader, middle).await.map(|bytes| bytes.len()).unwrap_err();
        assert!(error.to_string().contains("injected"), "{error}");
        for at in [sectors(0, 8), sectors(start(EXTENTS - 1), 8)] {
            assert!(read(&image, &reader, at).await.unwrap() == model(at, &[]), "others are not held up");
        }
    }
    lacking.on.store(false, Ordering::Relaxed);
    assert!(read(&image, &reader, middle).await.unwrap() == model(middle, &[]));
    image.completed().await.unwrap();
}

#[tokio::test]
async fn frames_without_a_check_are_read_by_a_jump_table_that_was_checked_whole() {
    let bytes = large(false);
    let at = middle_of_the_jump_table(&bytes);
    let (memory, layers) = source(vec![bytes]);
    let maps = tempfile::tempdir().unwrap();
    let wrong = Arc::new(Flipped { below: memory.clone(), at, times: u32::MAX.into() });
    let error = Image::open(layers.clone(), wrong, maps.path()).await.unwrap_err();
    assert!(matches!(error, OpenError::Layer { .. }), "{error}");
    let image = Image::open(layers, memory.clone(), maps.path()).await.unwrap();
    let reader: Arc<dyn BlobSource> = memory;
    let middle = sectors(start(UNKNOWN), 8);
    assert!(read(&image, &reader, middle).await.unwrap() == model(middle, &[]));
}

#[tokio::test]
async fn images_that_are_open_share_tables_in_the_making() {
    let (_, upper) = layer(Options::default(), &[(7, 1, Some(&noise(512, 1)))]);
    let (memory, layers) = source(vec![large(true), upper]);
    let layers = annotated(layers);
    let dir = tempfile::tempdir().unwrap();
    let maps = Maps::new(dir.path());
    let open = |layers: &[Layer]| Image::open_in(layers.to_vec(), memory.clone(), &maps);
    let first = open(&layers[..1]).await.unwrap();
    let again = open(&layers[..1]).await.unwrap();
    let both = open(&layers).await.unwrap();
    for image in [&first, &again, &both] {
        image.completed().await.unwrap();
    }
    let table_bytes = EXTENTS * 4;
    let index_bytes = EXTENTS * 16;
    // Two maps were made of the index, each from what is at most the index as it is; the jump table was read once.
    let bound = 2 * (index_bytes + (192 << 10)) + table_bytes;
    assert!(memory.bytes_read() <= bound, "{} of {bound}", memory.bytes_read());
    let before = memory.bytes_read();
    let third = open(&layers).await.unwrap();
    assert_eq!((memory.bytes_read(), third.extents()), (before, both.extents()));
    drop((first, again, both, third));
    let opened = open(&layers).await.unwrap();
    assert_eq!(memory.bytes_read(), before, "and from the files once nobody has it open");
    assert!(opened.extents().is_some());
}

#[tokio::test]
async fn what_was_begun_and_given_up_is_made_by_the_next_open() {
    let (memory, layers) = source(vec![large(true)]);
    let layers = annotated(layers);
    let maps = tempfile::tempdir().unwrap();
    let gate = Gate::new(memory.clone());
    let begun = gate.during(0, Image::open(layers.clone(), gate.clone(), maps.path())).await.unwrap();
    drop(begun);
    let image = Image::open(layers.clone(), memory.clone(), maps.path()).await.unwrap();
    image.completed().await.unwrap();
    let before = memory.reads();
    Image::open(layers, memory.clone(), maps.path()).await.unwrap();
    assert_eq!(memory.reads(), before);
}
