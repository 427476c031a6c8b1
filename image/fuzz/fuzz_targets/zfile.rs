//! A ZFile header and everything behind it: the input replaces the header's numbers and the start of the jump table of
//! a sound blob, and is sealed again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use penstock_image::zfile::Codec;
use penstock_image_fuzz::{exercise, reseal, seed};

fuzz_target!(|input: (bool, bool, &[u8], &[u8])| {
    let (zstd, crc, header, table) = input;
    let mut bytes = seed(Some(if zstd { Codec::Zstd } else { Codec::Lz4 }), crc);
    let number = |at: usize| u64::from_le_bytes(bytes[1536 + at..1536 + at + 8].try_into().expect("8 bytes"));
    let table_at = 1536 + usize::try_from(number(40)).expect("it is small");
    let count = table.len().min(bytes.len() - table_at);
    bytes[table_at..table_at + count].copy_from_slice(&table[..count]);
    let count = header.len().min(60);
    bytes[1536 + 32..1536 + 32 + count].copy_from_slice(&header[..count]);
    reseal(&mut bytes);
    let maps = tempfile::tempdir().expect("a directory");
    exercise(bytes.into(), maps.path());
});
