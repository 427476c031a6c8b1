//! The index of a layer file: a trailer with the input's numbers over the input's entries.
#![no_main]

use libfuzzer_sys::fuzz_target;
use penstock_image::lsmt::{ENTRY_BYTES, Entry, IndexCheck, parse_trailer};
use penstock_image_fuzz::{exercise, seed};

fuzz_target!(|input: (Option<[u64; 3]>, &[u8])| {
    let (numbers, entries) = input;
    let mut bytes = seed(None, false);
    let trailer = bytes.split_off(bytes.len() - 4096);
    let index = bytes.len() - 256 * ENTRY_BYTES;
    bytes.truncate(index);
    bytes.extend_from_slice(entries);
    let count = entries.len() / ENTRY_BYTES;
    let [offset, count, device] = numbers.unwrap_or([index as u64, count as u64, 1 << 20]);
    bytes.extend_from_slice(&trailer);
    let at = bytes.len() - 4096 + 32;
    for (i, number) in [offset, count, device].into_iter().enumerate() {
        bytes[at + 8 * i..at + 8 * i + 8].copy_from_slice(&number.to_le_bytes());
    }
    if let Ok(trailer) = parse_trailer(&bytes[bytes.len() - 4096..], bytes.len() as u64) {
        for mut check in [IndexCheck::new(&trailer), IndexCheck::with_archive(&trailer)] {
            let mut end = 0;
            for entry in entries.as_chunks().0 {
                let Ok(admitted) = check.admit(entry) else { break };
                let Some(admitted) = admitted else { continue };
                assert!(admitted.start >= end && admitted.sectors > 0 && admitted.tag < 2);
                assert_eq!(Entry::from_bytes(&admitted.to_bytes()), admitted);
                end = admitted.end();
            }
        }
    }
    let maps = tempfile::tempdir().expect("a directory");
    exercise(bytes.into(), maps.path());
});
