//! What a hit costs a queue's thread: nothing from the heap.

use std::io::Cursor;

use super::*;

/// A port that takes answers without a word.
#[derive(Clone)]
struct Mute;

impl Port for Mute {
    type Key = u64;

    fn fill(&self, _: u64, _: &[u8]) -> std::io::Result<()> {
        Ok(())
    }

    fn fail(&self, key: u64, errno: Errno) {
        panic!("request {key} was answered with {errno}");
    }
}

/// A file that holds a blob, as a cache's data file does.
#[derive(Debug)]
struct Kept(Arc<Whole>);

#[derive(Debug)]
struct Whole(File);

impl Pinned for Whole {
    fn file(&self) -> &File {
        &self.0
    }
    fn unpin(&self, _: ByteRange) {}
}

impl Kept {
    fn new(bytes: &[u8]) -> Arc<Self> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Arc::new(Self(Arc::new(Whole(file))))
    }
}

impl BlobSource for Kept {
    fn locate(&self, _: &Blob, range: ByteRange) -> Option<Located> {
        Some(Located::in_file(self.0.clone(), range, range.start()))
    }
    fn read(&self, _: Blob, range: ByteRange, _: Purpose) -> ReadFuture<'_> {
        panic!("{range} is asked for, and everything is here");
    }
    fn reject(&self, _: &Blob, range: ByteRange) {
        panic!("{range} is rejected");
    }
}

/// What queues over an image of one layer need, all of it here. Its maps are gone with the directory.
async fn here(layer: Bytes, media_type: &str) -> (Setup, tempfile::TempDir) {
    let memory = Memory::new(vec![layer.clone()]);
    let maps = tempfile::tempdir().unwrap();
    let described = Layer { blob: memory.blob(0), media_type: media_type.to_owned(), annotations: Default::default() };
    let image = Image::open(vec![described], memory, maps.path()).await.unwrap();
    image.completed().await.unwrap();
    let counters = Metrics::new(&mut Registry::default()).device(&"t".parse().unwrap(), Transport::Fuse);
    let offload = Offload::start(&"t".parse().unwrap(), &Handle::current(), 1);
    let setup = Setup {
        id: "t".parse().unwrap(),
        image: Some(Arc::new(image)),
        source: Counted::new(Kept::new(&layer), counters.clone()),
        counters: counters.clone(),
        misses: offload.sender(),
        bound: 1,
        max_piece_bytes: MAX_PIECE_BYTES,
        max_io_bytes: 16 << 10,
        desks: Desks::default(),
    };
    (setup, maps)
}

/// A layer of the disk in frames.
fn framed(codec: penstock_image::zfile::Codec) -> Bytes {
    let mut layer = Cursor::new(Vec::new());
    let frames = Some(penstock_image::zfile::Format { codec, crc: true, block_bytes: 4096 });
    let options = write::Options { frames, ..write::Options::default() };
    write::disk(&disk()[..], &mut layer, options).unwrap();
    layer.into_inner().into()
}

/// How often 100 reads of `len` bytes of an image of one layer asked the heap for memory, after one that made room.
async fn allocations(layer: Bytes, media_type: &str, len: u64) -> u64 {
    let (setup, _maps) = here(layer, media_type).await;
    let counters = setup.counters.clone();
    let mut queue = Queue::new(setup, Inbox::new().unwrap());
    let mut read = |key: u64| {
        let start = key % 3 * 4096;
        queue.read(Request::new(Mute, key, counters.clone()), ByteRange::at(start, len).unwrap());
    };
    (0..3).for_each(&mut read);
    let asked = allocation_counter::measure(|| (3..103).for_each(&mut read));
    assert_eq!((counters.stats().hits, counters.stats().misses), (103, 0));
    asked.count_total
}

#[tokio::test]
async fn a_hit_allocates_nothing() {
    for len in [4096, 16 << 10] {
        assert_eq!(allocations(disk(), "", len).await, 0, "a raw disk, {len} bytes");
        for codec in [penstock_image::zfile::Codec::Lz4, penstock_image::zfile::Codec::Zstd] {
            let asked = allocations(framed(codec), write::MEDIA_TYPE, len).await;
            assert_eq!(asked, 0, "{codec:?}, {len} bytes");
        }
    }
}

#[tokio::test]
async fn a_thousand_devices_that_were_read_take_the_memory_of_one_desk() {
    let (setup, _maps) = here(framed(penstock_image::zfile::Codec::Lz4), write::MEDIA_TYPE).await;
    let (counters, desks, inbox) = (setup.counters.clone(), setup.desks.clone(), Inbox::new().unwrap());
    let mut queues: Vec<_> = (0..1000).map(|_| Queue::new(setup.clone(), inbox.clone())).collect();
    let asked = allocation_counter::measure(|| {
        for (key, queue) in (0..).zip(&mut queues) {
            queue.read(Request::new(Mute, key, counters.clone()), ByteRange::at(512, 15 << 10).unwrap());
        }
    });
    assert_eq!(counters.stats().hits, 1000);
    assert!(asked.bytes_max < 1 << 20, "{asked:?}");
    assert!(desks.used_bytes() < 1 << 20 && desks.used_bytes() >= 16 << 10, "{}", desks.used_bytes());
}
