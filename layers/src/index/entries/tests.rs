//! Any entries come back out of an index as they went in.

use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::{collection::vec, prop_assert, prop_assert_eq, proptest};

use super::*;

const ARCHIVE_BYTES: u64 = 1 << 50;

fn content() -> impl Strategy<Value = Content> {
    vec((0..1_u64 << 40, 0..1_u64 << 45, 1..1_u64 << 30), 0..6).prop_map(|runs| {
        let mut at = 0;
        let pieces = runs.into_iter().map(|(skip, start, len)| {
            let piece = Piece { at: at + skip, range: ByteRange::new(start, start + len).unwrap() };
            at = piece.end();
            piece
        });
        let pieces: Vec<Piece> = pieces.collect();
        Content::new(at + 3, pieces).unwrap()
    })
}

fn path() -> impl Strategy<Value = EntryPath> {
    "[a-cé]{1,4}(/[a-c]{1,3}){0,5}".prop_map(|path| EntryPath::new(path.as_bytes()).unwrap())
}

fn kind() -> impl Strategy<Value = Kind> {
    let device =
        || (0..1_u64 << 12, 0..1_u64 << 20).prop_map(|(major, minor)| DeviceNumber::new(major, minor).unwrap());
    prop_oneof![
        content().prop_map(Kind::Regular),
        Just(Kind::Directory),
        vec(1..=255_u8, 1..300).prop_map(|target| Kind::Symlink(LinkTarget::new(&target).unwrap())),
        path().prop_map(Kind::HardLink),
        device().prop_map(Kind::CharDevice),
        device().prop_map(Kind::BlockDevice),
        Just(Kind::Fifo),
        Just(Kind::Whiteout),
        Just(Kind::Opaque),
    ]
}

fn entry() -> impl Strategy<Value = Entry> {
    let xattrs = vec(("[a-z.]{1,20}", vec(any::<u8>(), 0..100)), 0..3).prop_map(|all| {
        Xattrs::new(all.into_iter().map(|(name, value)| (name.into_bytes(), value)).collect()).unwrap()
    });
    let time = (any::<i64>(), 0..1_000_000_000_u32).prop_map(|(seconds, nanos)| Time::new(seconds, nanos).unwrap());
    (path(), kind(), any::<u16>(), any::<u32>(), any::<u32>(), time, xattrs)
        .prop_map(|(path, kind, mode, uid, gid, mtime, xattrs)| Entry { path, kind, mode, uid, gid, mtime, xattrs })
}

fn encoded(entries: &[Entry]) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new());
    entries.iter().for_each(|entry| encoder.put(entry).unwrap());
    encoder.into_inner()
}

fn decoded(bytes: &[u8], count: u64) -> Result<Vec<Entry>, EntriesError> {
    let mut decoder = Decoder::new(bytes, count, ARCHIVE_BYTES);
    let mut entries = Vec::new();
    while let Some(entry) = decoder.entry()? {
        entries.push(entry);
    }
    Ok(entries)
}

proptest! {
    #[test]
    fn entries_come_back_as_they_were(entries in vec(entry(), 0..20)) {
        let bytes = encoded(&entries);
        let count = entries.len() as u64;
        prop_assert_eq!(decoded(&bytes, count).unwrap(), entries);
        prop_assert!(decoded(&bytes, count + 1).is_err(), "fewer than said");
        prop_assert!(count == 0 || decoded(&bytes, count - 1).is_err(), "more than said");
    }

    #[test]
    fn any_bytes_are_entries_or_an_error(entries in vec(entry(), 1..4), at in any::<usize>(), with in any::<u8>(), cut in any::<usize>()) {
        let mut bytes = encoded(&entries);
        let len = bytes.len();
        bytes[at % len] = with;
        bytes.truncate(len - cut % 3);
        if let Ok(read) = decoded(&bytes, entries.len() as u64) {
            prop_assert_eq!(read.len(), entries.len());
        }
    }
}

#[test]
fn a_number_has_64_bits() {
    for (bytes, number) in [(&[0xff; 9][..], None), (&[0x80, 0x01], Some(128))] {
        let mut whole = bytes.to_vec();
        whole.push(1);
        let read = Decoder::new(&whole[..], 1, 0).number();
        assert_eq!(read.ok(), number.or(Some(u64::MAX)));
    }
    for bytes in [&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2][..], &[0x80; 11]] {
        assert!(Decoder::new(bytes, 1, 0).number().is_err());
    }
    for number in [0, 1, -1, 63, -64, i64::MAX, i64::MIN] {
        assert_eq!(unzigzag(zigzag(number)), number);
    }
}

#[test]
fn a_file_beyond_the_archive_is_refused() {
    let content = Content::whole(Some(ByteRange::new(100, 200).unwrap())).unwrap();
    let path = EntryPath::new(b"a").unwrap();
    let (mtime, xattrs) = (Time::default(), Xattrs::default());
    let bytes = encoded(&[Entry { path, kind: Kind::Regular(content), mode: 0, uid: 0, gid: 0, mtime, xattrs }]);
    assert!(Decoder::new(&bytes[..], 1, 200).entry().is_ok());
    assert!(Decoder::new(&bytes[..], 1, 199).entry().is_err());
}
