//! Any bytes give an error or an image: never a panic, never a wait without end.

use std::sync::Arc;

use bytes::Bytes;
use penstock_blob::BlobSource;
use penstock_image::{
    Image, read,
    write::Options,
    zfile::{Codec, Format, digest},
};
use proptest::prelude::*;

use crate::common::{crafted, layer, noise, range, source};

/// A small blob of each shape.
fn seeds() -> Vec<Bytes> {
    let data = [noise(9000 / 512 * 512, 1), vec![3; 40 * 512]].concat();
    let format = |codec, crc| Some(Format { codec, crc, block_bytes: 4096 });
    let shapes = [
        (format(Codec::Lz4, true), true),
        (format(Codec::Zstd, true), false),
        (format(Codec::Lz4, false), false),
        (None, false),
    ];
    let write = |(frames, tar)| {
        let options = Options { frames, tar, device_bytes: Some(1 << 20), threads: 1, ..Options::default() };
        layer(options, &[(3, 0, Some(&data)), (1000, 20, None)]).1
    };
    shapes.into_iter().map(write).collect()
}

/// Opens the blob as an image and reads all of it: what comes out does not matter.
fn exercise(bytes: Bytes) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (memory, layers) = source(vec![bytes]);
        let maps = tempfile::tempdir().unwrap();
        if let Ok(image) = Image::open(layers, memory.clone(), maps.path()).await {
            let source: Arc<dyn BlobSource> = memory;
            let end = image.size_bytes().min(2 << 20);
            if end > 0 {
                let _ = read(&image, &source, range(0, end)).await;
            }
        }
    });
}

/// Makes a changed ZFile header believable again, so that what lies behind it is reached.
fn reseal(bytes: &mut [u8]) {
    for at in [0, 1536, bytes.len().saturating_sub(512)] {
        if let Some(header) = bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<512>()) {
            let sum = digest(header);
            header[28..32].copy_from_slice(&sum.to_le_bytes());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn changed_blobs_never_panic(
        which in 0..4_usize,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        near_header in proptest::collection::vec((0..2100_usize, any::<u8>()), 0..3),
        cut in proptest::option::weighted(0.2, any::<prop::sample::Index>()),
        sealed in any::<bool>(),
    ) {
        let mut bytes = seeds()[which].to_vec();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        for (at, value) in near_header {
            bytes[at] = value;
        }
        if sealed {
            reseal(&mut bytes);
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        exercise(bytes.into());
    }

    #[test]
    fn headers_with_any_numbers_never_panic(
        which in 0..3_usize,
        numbers in proptest::collection::vec((0..10_usize, prop_oneof![any::<u64>(), 0..5000_u64, Just(u64::MAX)]), 1..4),
    ) {
        let mut bytes = seeds()[which].to_vec();
        let start = if which == 0 { 1536 } else { 0 };
        for (field, value) in numbers {
            let at = start + 32 + 8 * field;
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        reseal(&mut bytes);
        exercise(bytes.into());
    }

    #[test]
    fn trailers_with_any_numbers_never_panic(
        numbers in proptest::collection::vec((0..3_usize, prop_oneof![any::<u64>(), 0..20_000_u64, Just(u64::MAX)]), 1..4),
    ) {
        let mut bytes = crafted(&[], 1 << 20).to_vec();
        let trailer = bytes.len() - 4096;
        for (field, value) in numbers {
            let at = trailer + 32 + 8 * field;
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        exercise(bytes.into());
    }
}
