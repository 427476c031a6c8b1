//! What the fuzz targets of `penstock-index` share: a blob of three chunks, and its list.

use bytes::Bytes;
use penstock_blob::{ChunkSize, faults::Memory};
use penstock_index::{Listed, compute};

/// A blob, its list's bytes, and what an index says of them.
pub fn sample() -> (Bytes, Bytes, Listed) {
    let blob: Bytes =
        (0..150_000_u32).map(|nth| (nth.wrapping_mul(2_654_435_761) >> 24) as u8).collect::<Vec<_>>().into();
    let memory = Memory::new(vec![blob.clone()]);
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("list");
    let grid = ChunkSize::new(penstock_index::GRID).expect("a chunk size");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let made = runtime.block_on(compute(&*memory, memory.blob(0), grid, &path, |_| {})).expect("a list");
    (blob, std::fs::read(path).expect("it is there").into(), made.listed)
}
