//! What entries refuse, and how they tidy what they take.

use super::*;

fn path(written: &[u8]) -> Result<Vec<u8>, EntryError> {
    EntryPath::new(written).map(|path| path.as_bytes().to_vec())
}

#[test]
fn paths_are_normalised_and_stay_below_the_root() {
    for (written, normal) in [
        (&b"a/b"[..], &b"a/b"[..]),
        (b"./a//b/./c/", b"a/b/c"),
        (b"/etc/passwd", b"etc/passwd"),
        (b"./", b""),
        (b"/", b""),
        (b"", b""),
        (b"...", b"..."),
        (b"a/..b", b"a/..b"),
        (b"\xff\xfe/\n", b"\xff\xfe/\n"),
    ] {
        assert_eq!(path(written).as_deref(), Ok(normal), "{}", shown(written));
    }
    for climbing in [&b".."[..], b"../etc", b"/../etc", b"a/../b", b"a/..", b"./.././x"] {
        assert!(matches!(path(climbing), Err(EntryError::Climbs { .. })), "{}", shown(climbing));
    }
    assert!(matches!(path(b"a\0b"), Err(EntryError::Nul { .. })));
    assert!(path(&[b'n'; 255]).is_ok());
    assert!(matches!(path(&[b'n'; 256]), Err(EntryError::NameLength { .. })));
    let long = b"ab/".repeat(1365);
    assert_eq!(path(&long).map(|path| path.len()), Ok(4094), "a trailing slash does not count");
    assert_eq!(path(&b"ab/".repeat(1366)), Err(EntryError::PathLength { bytes: 4098 }));
}

#[test]
fn a_path_splits_into_parent_and_name() {
    let split = |written: &[u8]| {
        let path = EntryPath::new(written).unwrap();
        path.split_last().map(|(parent, name)| (parent.to_string(), shown(name)))
    };
    assert_eq!(split(b"a/b/c"), Some(("/a/b".into(), "c".into())));
    assert_eq!(split(b"a"), Some(("/".into(), "a".into())));
    assert_eq!(split(b""), None);
    assert_eq!(EntryPath::new(b"x/y").unwrap().names().collect::<Vec<_>>(), [b"x", b"y"]);
}

#[test]
fn the_pieces_of_a_file_are_in_order_and_inside_it() {
    let piece = |at, start, end| Piece { at, range: ByteRange::new(start, end).unwrap() };
    assert!(Content::new(10, vec![piece(0, 512, 514), piece(2, 514, 522)]).is_ok());
    assert!(Content::new(10, vec![]).is_ok(), "all hole");
    assert_eq!(Content::new(9, vec![piece(0, 512, 522)]), Err(EntryError::Pieces { nth: 0 }));
    assert_eq!(Content::new(10, vec![piece(2, 0, 3), piece(4, 3, 4)]), Err(EntryError::Pieces { nth: 1 }));
    assert_eq!(Content::new(u64::MAX, vec![]), Err(EntryError::Size { size_bytes: u64::MAX }));
    let beyond = Piece { at: u64::MAX, range: ByteRange::new(0, 2).unwrap() };
    assert_eq!(Content::new(10, vec![beyond]), Err(EntryError::Pieces { nth: 0 }));
    assert_eq!(Content::whole(None), Ok(Content::default()));
    let many = (0..=MAX_PIECES as u64).map(|at| piece(at, at, at + 1)).collect();
    assert_eq!(Content::new(1 << 20, many), Err(EntryError::TooManyPieces { pieces: MAX_PIECES + 1 }));
}

#[test]
fn attributes_are_sorted_and_the_last_of_a_name_counts() {
    let made = |pairs: &[(&[u8], &[u8])]| Xattrs::new(pairs.iter().map(|(n, v)| (n.to_vec(), v.to_vec())).collect());
    let xattrs = made(&[(b"user.b", b"1"), (b"user.a", b"2"), (b"user.b", b"3")]).unwrap();
    assert_eq!(xattrs.iter().collect::<Vec<_>>(), [(&b"user.a"[..], &b"2"[..]), (b"user.b", b"3")]);
    assert!(matches!(made(&[(b"", b"1")]), Err(EntryError::XattrName { .. })));
    assert!(matches!(made(&[(&[b'x'; 256], b"1")]), Err(EntryError::XattrName { .. })));
    assert!(matches!(made(&[(b"user.\0", b"1")]), Err(EntryError::Nul { .. })));
    assert!(made(&[(b"user.x", &[0; MAX_VALUE_BYTES])]).is_ok());
    assert!(matches!(made(&[(b"user.x", &[0; MAX_VALUE_BYTES + 1])]), Err(EntryError::XattrLength { .. })));
    let half = [0; MAX_VALUE_BYTES];
    assert!(matches!(made(&[(b"a", &half), (b"b", &half), (b"c", &half)]), Err(EntryError::XattrLength { .. })));
}

#[test]
fn numbers_beyond_an_inode_are_refused() {
    assert!(DeviceNumber::new(4095, (1 << 20) - 1).is_ok());
    assert!(DeviceNumber::new(4096, 0).is_err() && DeviceNumber::new(0, 1 << 20).is_err());
    assert!(DeviceNumber::new(u64::MAX, 0).is_err());
    assert!(Time::new(-1, 999_999_999).is_ok() && Time::new(0, 1_000_000_000).is_err());
    assert!(
        LinkTarget::new(b"").is_err() && LinkTarget::new(b"a\0").is_err() && LinkTarget::new(&[b'a'; 4096]).is_err()
    );
    assert!(LinkTarget::new(b"../../anywhere").is_ok());
}
