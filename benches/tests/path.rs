//! The harness on a small image: what its rows promise about the registry.

use penstock_benches::{
    pack::{Link, Packed},
    path,
};

#[tokio::test(flavor = "multi_thread")]
async fn hits_ask_the_registry_for_nothing_and_misses_for_chunks() {
    let dir = tempfile::tempdir().unwrap();
    let link = Link { latency_seconds: 0.0, bandwidth_bytes_per_second: 1 << 30 };
    let packed = Packed::make(dir.path(), 24 << 20, link).await.unwrap();
    let rows = path::run(&packed, dir.path(), 10).await.unwrap();
    let row = |name: &str| rows.iter().find(|row| row.name == name).unwrap();
    for hit in rows.iter().filter(|row| row.name == "hit") {
        assert_eq!((hit.requests, hit.fetched_bytes, hit.latency.n), (0, 0, 1000), "{} bytes", hit.read_bytes);
    }
    let miss = row("miss");
    assert_eq!(miss.latency.n, 10);
    assert!(miss.requests >= 10 && miss.fetched_bytes >= 10 * 4096, "{miss:?}");
    let in_order = row("cold, in order");
    // Opening read the layer's tables, which are part of the same blob.
    assert!(in_order.fetched_bytes <= packed.layer.size_bytes, "a byte was fetched twice: {in_order:?}");
}
