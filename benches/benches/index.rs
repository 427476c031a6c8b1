//! What verifying costs a fill: the same bytes in memory, read as they are and through an index.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use penstock_benches::synthetic;
use penstock_blob::{BlobSource, ByteRange, ChunkSize, Purpose, faults::Memory};
use penstock_index::{Config, GRID, Outcome, Verified, compute};
use prometheus_client::registry::Registry;

/// Bytes of the blob: two levels of pages.
const BLOB: usize = 64 << 20;

fn fill(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let dir = tempfile::tempdir().expect("a directory");
    let bytes: Bytes = synthetic::program_bytes(BLOB).expect("bytes").into();
    let plain = Memory::new(vec![bytes.clone()]);
    let (blob, path) = (plain.blob(0), dir.path().join("made"));
    let grid = ChunkSize::new(GRID).expect("a chunk size");
    let made = runtime.block_on(compute(&*plain, blob, grid, &path, |_| {})).expect("a list");
    let list = std::fs::read(path).expect("the list").into();
    let below: Arc<dyn BlobSource> = Memory::new(vec![bytes, list]);
    let config = Config { dir: dir.path().to_owned(), deadline: Duration::from_secs(30) };
    let verified = Verified::new(Arc::clone(&below), config, &mut Registry::default());
    let used = verified.expect(&[blob]).settle(Outcome::Index(vec![made.listed])).expect("the only index");
    let sides: [(&str, &dyn BlobSource); 2] = [("as it is", &*below), ("verified", &*verified)];
    let mut group = criterion.benchmark_group("fill from memory");
    for len in [64_u64 << 10, 256 << 10, 4 << 20] {
        group.throughput(Throughput::Bytes(len));
        for (name, source) in sides {
            let mut random = fastrand::Rng::with_seed(1);
            let mut range = || ByteRange::at(random.u64(..BLOB as u64 / len) * len, len).expect("a range");
            group.bench_function(BenchmarkId::new(name, format!("{} KiB", len >> 10)), |bencher| {
                bencher.iter(|| runtime.block_on(source.read(blob, range(), Purpose::Demand)).expect("bytes"));
            });
        }
    }
    group.finish();
    drop(used);
}

criterion_group!(benches, fill);
criterion_main!(benches);
