//! A whole blob, any bytes at all: opened, and read if it opens. Seeds are made once and kept in the corpus by the
//! fuzzer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use penstock_image::zfile::Codec;
use penstock_image_fuzz::{exercise, reseal, seed};

fuzz_target!(|input: (u8, Vec<(u16, u8)>, &[u8])| {
    let (kind, changes, raw) = input;
    let mut bytes = match kind % 5 {
        0 => seed(Some(Codec::Lz4), true),
        1 => seed(Some(Codec::Zstd), true),
        2 => seed(Some(Codec::Lz4), false),
        3 => seed(None, false),
        _ => raw.to_vec(),
    };
    for (at, value) in changes {
        let at = usize::from(at);
        if let Some(byte) = bytes.get_mut(at) {
            *byte = value;
        }
    }
    if kind & 0x80 != 0 {
        reseal(&mut bytes);
    }
    let maps = tempfile::tempdir().expect("a directory");
    exercise(bytes.into(), maps.path());
});
