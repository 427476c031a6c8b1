//! A whole blob, any bytes at all: opened, and read if it opens; and file systems, whose files are looked for. Seeds are made once and kept in the
//! corpus by the fuzzer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use penstock_image::zfile::Codec;
use penstock_image_fuzz::{erofs, exercise, ext4, look, qcow2, reseal, seed};

fuzz_target!(|input: (u8, Vec<(u16, u8)>, &[u8])| {
    let (kind, changes, raw) = input;
    let mut bytes = match kind % 9 {
        0 => seed(Some(Codec::Lz4), true),
        1 => seed(Some(Codec::Zstd), true),
        2 => seed(Some(Codec::Lz4), false),
        3 => seed(None, false),
        4 => qcow2(false),
        5 => qcow2(true),
        6 => erofs(),
        7 => ext4(),
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
    if matches!(kind % 9, 6 | 7) {
        return look(&bytes);
    }
    let maps = tempfile::tempdir().expect("a directory");
    exercise(bytes.into(), maps.path());
});
