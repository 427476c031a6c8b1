//! A hit from the plan to the bytes, all of it in memory: what a device's queue does for a page, without the kernel and the cache's file.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use penstock_benches::synthetic;
use penstock_blob::ByteRange;
use penstock_image::{
    Scratch,
    zfile::{Codec, Format},
};

/// Bytes of the disk.
const DISK: usize = 64 << 20;

fn hit(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let disk = synthetic::program_bytes(DISK).expect("bytes");
    let maps = tempfile::tempdir().expect("a directory");
    let format = Format { codec: Codec::Lz4, crc: true, block_bytes: 4096 };
    let held = runtime.block_on(synthetic::framed(&disk, format, maps.path())).expect("an image");
    let mut group = criterion.benchmark_group("plan a hit");
    for (name, bytes) in [("4 KiB", 4096), ("128 KiB", 128 << 10)] {
        let places = DISK as u64 / bytes;
        let mut random = fastrand::Rng::with_seed(1);
        let mut range = || ByteRange::at(random.u64(..places) * bytes, bytes).expect("a range");
        let mut buf = vec![0; usize::try_from(bytes).expect("it fits")];
        let mut scratch = Scratch::new();
        group.throughput(Throughput::Bytes(bytes));
        group.bench_function(format!("plan {name}"), |bencher| {
            bencher.iter(|| held.image.plan(range(), &held.source).expect("a plan"));
        });
        group.bench_function(format!("plan and decode {name}"), |bencher| {
            bencher.iter(|| {
                let plan = held.image.plan(range(), &held.source).expect("a plan");
                plan.read_into(&mut buf, &mut scratch).expect("bytes");
            });
        });
    }
    group.finish();
}

criterion_group!(benches, hit);
criterion_main!(benches);
