//! Planning one page: a lookup in maps of 10^3 to 10^6 extents, whose bytes are all here.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use penstock_benches::synthetic;
use penstock_blob::ByteRange;

fn map(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut group = criterion.benchmark_group("plan one page, by extents in the map");
    for extents in [1_000, 10_000, 100_000, 1_000_000] {
        let maps = tempfile::tempdir().expect("a directory");
        let held = runtime.block_on(synthetic::scattered(extents, maps.path())).expect("an image");
        let mut random = fastrand::Rng::with_seed(1);
        group.bench_with_input(BenchmarkId::from_parameter(extents), &held, |bencher, held| {
            bencher.iter(|| {
                let range = ByteRange::at(random.u64(..extents) * 8192, 4096).expect("a range");
                held.image.plan(range, &held.source).expect("a plan")
            });
        });
    }
    group.finish();
}

criterion_group!(benches, map);
criterion_main!(benches);
