//! LSMT headers and indexes, right and hostile.

use super::*;

fn trailer_block(flags: u32, index_offset: u64, entries: u64, device_bytes: u64) -> Vec<u8> {
    let mut block = vec![0; 4096];
    block[..24].copy_from_slice(&MAGIC);
    block[28..32].copy_from_slice(&flags.to_le_bytes());
    block[32..40].copy_from_slice(&index_offset.to_le_bytes());
    block[40..48].copy_from_slice(&entries.to_le_bytes());
    block[48..56].copy_from_slice(&device_bytes.to_le_bytes());
    block
}

#[test]
fn the_worked_example_reads_as_documented() {
    let bytes = [0, 0, 0, 0, 0, 0, 0, 0x84, 8, 0, 0, 0, 0, 0, 0, 0];
    let entry = Entry { start: 0, sectors: 8448, moffset: 8, zeroed: false, tag: 0 };
    assert_eq!((Entry::from_bytes(&bytes), entry.to_bytes()), (entry, bytes));
    let bytes = [0, 0, 4, 0, 0, 0, 0x20, 1, 8, 0x22, 0, 0, 0, 0, 0, 0];
    let entry = Entry { start: 262_144, sectors: 72, moffset: 8712, zeroed: false, tag: 0 };
    assert_eq!((Entry::from_bytes(&bytes), entry.to_bytes()), (entry, bytes));
    let padding = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(Entry::PADDING.to_bytes(), padding);
}

#[test]
fn extremes_round_trip() {
    let most =
        Entry { start: (1 << 50) - 2, sectors: MAX_EXTENT_SECTORS, moffset: (1 << 55) - 1, zeroed: true, tag: 255 };
    assert_eq!(Entry::from_bytes(&most.to_bytes()), most);
    assert_eq!(Entry::from_bytes(&[0xff; 16]).to_bytes(), [0xff; 16]);
}

#[test]
fn trailers_are_checked_against_the_file() {
    let file_bytes = 4096 * 4;
    let good = trailer_block(6, 8192, 256, 1 << 30);
    let trailer = Trailer { device_bytes: 1 << 30, index_offset: 8192, entries: 256 };
    assert_eq!(parse_trailer(&good, file_bytes), Ok(trailer));
    assert_eq!(parse_trailer(&good, 4096), Err(LsmtError::Short(4096)));
    assert_eq!(parse_trailer(&[0; 4096], file_bytes), Err(LsmtError::NoTrailer));
    assert_eq!(parse_trailer(&trailer_block(7, 8192, 256, 0), file_bytes), Err(LsmtError::Unsealed(7)));
    assert_eq!(parse_trailer(&trailer_block(2, 8192, 256, 0), file_bytes), Err(LsmtError::Unsealed(2)));
    for (offset, entries) in [(8192, 257), (u64::MAX, 1), (0, 1), (u64::MAX - 15, 1), (16_384, 0)] {
        let error = parse_trailer(&trailer_block(6, offset, entries, 0), file_bytes).unwrap_err();
        assert_eq!(error, LsmtError::Index { offset, entries, file_bytes });
    }
    let many = u64::MAX / 16 + 2;
    assert_eq!(
        parse_trailer(&trailer_block(6, 8192, many, 0), 1 << 60),
        Err(LsmtError::TooManyEntries { entries: many })
    );
    for size in [513, MAX_DEVICE_BYTES + 512] {
        assert_eq!(parse_trailer(&trailer_block(6, 8192, 1, size), file_bytes), Err(LsmtError::DeviceSize(size)));
    }
    assert_eq!(check_header(&trailer_block(7, 0, 0, 0)), Ok(()));
    assert_eq!(check_header(&trailer_block(6, 0, 0, 0)), Err(LsmtError::Header));
    assert_eq!(check_header(&MAGIC), Err(LsmtError::Header));
}

#[test]
fn entries_of_metadata_over_an_archive_point_anywhere_in_it_and_nowhere_else() {
    let trailer = Trailer { device_bytes: 0, index_offset: 100 * 512, entries: 9 };
    let at = |start, sectors, moffset, tag| Entry { start, sectors, moffset, zeroed: false, tag }.to_bytes();
    let mut check = IndexCheck::with_archive(&trailer);
    assert_eq!(check.admit(&at(0, 5, 95, 0)).unwrap().unwrap().tag, 0);
    for (start, sectors, moffset) in [(10, 5, 0), (20, 16_383, 1 << 40), (20_000, 1, (1 << 55) - 2)] {
        assert_eq!(check.admit(&at(start, sectors, moffset, 1)).unwrap().unwrap().moffset, moffset);
    }
    let fails = |bytes| check.clone().admit(&bytes).unwrap_err();
    assert_eq!(fails(at(30_000, 6, 95, 0)), LsmtError::Data { nth: 4, moffset: 95, sectors: 6, data_end: 100 });
    for (moffset, tag) in [((1 << 55) - 2, 1), (8, 2), (8, 255)] {
        assert_eq!(fails(at(30_000, 2, moffset, tag)), LsmtError::Outside { nth: 4, tag, moffset, sectors: 2 });
    }
}

#[test]
fn entries_are_sorted_disjoint_and_inside_the_data() {
    let trailer = Trailer { device_bytes: 0, index_offset: 100 * 512 + 511, entries: 9 };
    let at = |start, sectors, moffset, zeroed| Entry { start, sectors, moffset, zeroed, tag: 9 }.to_bytes();
    let mut check = IndexCheck::new(&trailer);
    assert_eq!(check.admit(&at(10, 5, 95, false)).unwrap().unwrap().tag, 0, "tags are ignored");
    assert_eq!(check.admit(&Entry::PADDING.to_bytes()), Ok(None), "padding may stand anywhere");
    assert!(check.admit(&at(15, 5, 8, false)).unwrap().is_some(), "stored order is free");
    assert!(check.admit(&at(20, 16_383, 100, true)).unwrap().is_some(), "zeros need no room");
    let fails = |bytes| check.clone().admit(&bytes).unwrap_err();
    assert_eq!(fails(at(16_402, 1, 8, false)), LsmtError::Order { nth: 4, start: 16_402, previous_end: 16_403 });
    assert_eq!(fails(at(20_000, 0, 8, false)), LsmtError::EmptyEntry { nth: 4 });
    for (sectors, moffset, zeroed) in
        [(6, 95, false), (1, 7, false), (1, 7, true), (1, 101, true), (1, (1 << 55) - 1, false)]
    {
        let expected = LsmtError::Data { nth: 4, moffset, sectors, data_end: 100 };
        assert_eq!(fails(at(20_000, sectors, moffset, zeroed)), expected);
    }
}
