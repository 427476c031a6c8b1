//! A ZFile header and everything behind it: the input replaces the header's numbers and a part of the jump table of
//! a sound blob, and is sealed again. Of a large one the part is one that is added up in the background.
#![no_main]

use libfuzzer_sys::fuzz_target;
use penstock_image::zfile::Codec;
use penstock_image_fuzz::{exercise, large, reseal, seed};

fuzz_target!(|input: (bool, bool, Option<u16>, &[u8], &[u8])| {
    let (zstd, crc, part, header, table) = input;
    let mut bytes = match part {
        Some(_) => large().to_vec(),
        None => seed(Some(if zstd { Codec::Zstd } else { Codec::Lz4 }), crc),
    };
    let number = |at: usize| u64::from_le_bytes(bytes[1536 + at..1536 + at + 8].try_into().expect("8 bytes"));
    let skipped = part.map_or(0, |part| 4 * usize::from(part % 18_000));
    let table_at = 1536 + usize::try_from(number(40)).expect("it is small") + skipped;
    let count = table.len().min(bytes.len() - table_at);
    bytes[table_at..table_at + count].copy_from_slice(&table[..count]);
    let count = header.len().min(60);
    bytes[1536 + 32..1536 + 32 + count].copy_from_slice(&header[..count]);
    reseal(&mut bytes);
    let maps = tempfile::tempdir().expect("a directory");
    exercise(bytes.into(), maps.path());
});
