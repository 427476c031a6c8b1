//! Pages of table files: the input changes bytes of sound ones, whose checksums are made right again, so that the
//! fields themselves are put to the test.
#![no_main]

use std::{fs, sync::OnceLock};

use libfuzzer_sys::fuzz_target;
use penstock_image::{pages::PAGE_BYTES, zfile::Codec};
use penstock_image_fuzz::{exercise, seed};

/// A blob, and the names and bytes of its tables.
type Made = (Vec<u8>, Vec<(std::ffi::OsString, Vec<u8>)>);

fn made() -> &'static Made {
    static MADE: OnceLock<Made> = OnceLock::new();
    MADE.get_or_init(|| {
        let bytes = seed(Some(Codec::Lz4), true);
        let maps = tempfile::tempdir().expect("a directory");
        exercise(bytes.clone().into(), maps.path());
        let mut tables: Vec<_> = fs::read_dir(maps.path())
            .expect("it is there")
            .map(|entry| entry.expect("it can be listed"))
            .map(|entry| (entry.file_name(), fs::read(entry.path()).expect("it can be read")))
            .collect();
        tables.sort();
        assert_eq!(tables.len(), 2, "a map and a frame table");
        (bytes, tables)
    })
}

fuzz_target!(|input: (bool, Vec<(u16, u8)>)| {
    let (sealed, changes) = input;
    let (bytes, tables) = made();
    let maps = tempfile::tempdir().expect("a directory");
    for (which, (name, table)) in tables.iter().enumerate() {
        let mut table = table.clone();
        for &(at, value) in &changes {
            // The high bit says which table.
            let (other, at) = (usize::from(at >> 15), usize::from(at & 0x7fff));
            if let Some(byte) = table.get_mut(at).filter(|_| other == which) {
                *byte = value;
            }
        }
        if sealed {
            for page in table.as_chunks_mut::<PAGE_BYTES>().0 {
                let crc = crc32c::crc32c(&page[4..]);
                page[..4].copy_from_slice(&crc.to_le_bytes());
            }
        }
        fs::write(maps.path().join(name), table).expect("there is room");
    }
    exercise(bytes.clone().into(), maps.path());
});
