//! Decoding ZFile frames that are in memory: 1 MiB of a program's bytes, and one frame of it.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use penstock_benches::synthetic;
use penstock_blob::ByteRange;
use penstock_image::{
    Scratch,
    zfile::{Codec, Format},
};

/// Bytes of the disk.
const DISK: usize = 1 << 20;

fn frames(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let disk = synthetic::program_bytes(DISK).expect("bytes");
    let formats = [
        ("lz4, 4 KiB", Codec::Lz4, 4 << 10, true),
        ("lz4, 4 KiB, no CRC", Codec::Lz4, 4 << 10, false),
        ("lz4, 64 KiB", Codec::Lz4, 64 << 10, true),
        ("zstd, 4 KiB", Codec::Zstd, 4 << 10, true),
        ("zstd, 64 KiB", Codec::Zstd, 64 << 10, true),
    ];
    for (group_name, whole) in [("decode 1 MiB", true), ("decode one frame", false)] {
        let mut group = criterion.benchmark_group(group_name);
        for (name, codec, block_bytes, crc) in formats {
            let maps = tempfile::tempdir().expect("a directory");
            let format = Format { codec, crc, block_bytes };
            let held = runtime.block_on(synthetic::framed(&disk, format, maps.path())).expect("an image");
            let bytes = if whole { DISK as u64 } else { u64::from(block_bytes) };
            let range = ByteRange::new(0, bytes).expect("a range");
            let plan = held.image.plan(range, &held.source).expect("a plan");
            let mut buf = vec![0; usize::try_from(bytes).expect("it fits")];
            let mut scratch = Scratch::new();
            group.throughput(Throughput::Bytes(bytes));
            group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
                bencher.iter(|| plan.read_into(&mut buf, &mut scratch).expect("bytes"));
            });
        }
        group.finish();
    }
}

criterion_group!(benches, frames);
criterion_main!(benches);
