//! Archives made by hand and by GNU tar.

use std::{fs, os::unix::fs::FileExt as _, path::Path, process::Command};

use penstock_blob::ByteRange;
use proptest::prelude::*;

use super::*;
use crate::entry::Piece;

/// A header with a right checksum.
pub(super) fn header(name: &str, flag: u8, size: u64) -> [u8; 512] {
    let mut block = [0; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..107].copy_from_slice(b"0000644");
    block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    block[156] = flag;
    block[257..265].copy_from_slice(b"ustar\x0000");
    sum(block)
}

fn sum(mut block: [u8; 512]) -> [u8; 512] {
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|&byte| u64::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn pax(records: &[u8]) -> Vec<u8> {
    [&header("pax", b'x', records.len() as u64)[..], &padded(records)].concat()
}

/// `LENGTH KEY=VALUE`, where the length counts its own digits.
pub(super) fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let digits = (1..).find(|&digits| (rest + digits).to_string().len() == digits).unwrap();
    [format!("{} {key}=", rest + digits).as_bytes(), value, b"\n"].concat()
}

fn records(pairs: &[(&str, &str)]) -> Vec<u8> {
    pairs.iter().flat_map(|(key, value)| record(key, value.as_bytes())).collect()
}

fn read(archive: &[u8]) -> Result<Vec<Entry>, TarError> {
    let mut entries = Vec::new();
    let mut reader = TarReader::new();
    reader.push(archive, |entry| entries.push(entry))?;
    assert_eq!(reader.finish()?, entries.len() as u64);
    Ok(entries)
}

fn only(archive: &[u8]) -> Entry {
    let mut entries = read(archive).unwrap();
    assert_eq!(entries.len(), 1, "{entries:?}");
    entries.remove(0)
}

fn ranges(entry: &Entry) -> Vec<(u64, u64, u64)> {
    let Kind::Regular(content) = &entry.kind else { panic!("{entry:?} is no file") };
    content.pieces().iter().map(|piece| (piece.at, piece.range.start(), piece.range.end())).collect()
}

#[test]
fn an_archive_may_end_in_many_ways() {
    let file = [&header("a", b'0', 3)[..], b"abc"].concat();
    for end in [0, 509, 509 + 512, 509 + 1024, 509 + 10_240] {
        let archive = [&file[..], &vec![0; end]].concat();
        assert_eq!(ranges(&only(&archive)), [(0, 512, 515)], "{end} zeros");
    }
    let behind = [&file[..], &[0; 509 + 1024], b"anything at all"].concat();
    assert_eq!(only(&behind).path.to_string(), "/a");
    assert_eq!(read(b""), Ok(vec![]));
    assert_eq!(read(&[0; 1024]), Ok(vec![]));
    assert_eq!(read(&file[..514]), Err(TarError::Truncated { at: 514 }));
    assert_eq!(read(&file[..100]), Err(TarError::Truncated { at: 100 }));
    assert_eq!(read(&pax(b"9 path=b\n")), Err(TarError::Truncated { at: 1024 }), "a member must follow");
    let lone = [&file[..], &[0; 509 + 512], &header("b", b'0', 0)].concat();
    assert_eq!(read(&lone), Err(TarError::LoneZeros { at: 1024 }));
}

#[test]
fn extended_headers_say_what_the_header_cannot() {
    let name = "n".repeat(200);
    let said = [("path", &*name), ("mtime", "1234567890.5"), ("uid", "3000000"), ("size", "3")];
    let archive = [pax(&records(&said)), header("cut", b'0', 0).to_vec(), b"abc".to_vec()].concat();
    let records_bytes = archive.len() as u64 - 3;
    let entry = only(&archive);
    assert_eq!(entry.path.as_bytes(), name.as_bytes());
    assert_eq!((entry.mtime.seconds(), entry.mtime.nanoseconds(), entry.uid), (1_234_567_890, 500_000_000, 3_000_000));
    assert_eq!(ranges(&entry), [(0, records_bytes, records_bytes + 3)], "the size is that of the pax header");
    let long = [
        &header("././@LongLink", b'L', 201)[..],
        &padded(&[name.as_bytes(), b"\0"].concat()),
        &header("././@LongLink", b'K', 6),
        &padded(b"../to\0"),
        &header("cut", b'2', 0),
    ]
    .concat();
    let entry = only(&long);
    assert_eq!(entry.path.as_bytes(), name.as_bytes());
    assert_eq!(entry.kind, Kind::Symlink(LinkTarget::new(b"../to").unwrap()));
    let global = [&header("g", b'g', 9)[..], &padded(b"9 path=b\n"), &header("a", b'0', 0)].concat();
    assert_eq!(only(&global).path.to_string(), "/a", "as containerd, which ignores global headers");
    let mut prefixed = header("name", b'0', 0);
    prefixed[345..351].copy_from_slice(b"prefix");
    assert_eq!(only(&sum(prefixed)).path.to_string(), "/prefix/name");
    prefixed[257..265].copy_from_slice(b"ustar  \0");
    assert_eq!(only(&sum(prefixed)).path.to_string(), "/prefix/name", "as Go before 1.8 wrote it");
    prefixed[345..357].copy_from_slice(b"00000000017\0");
    assert_eq!(only(&sum(prefixed)).path.to_string(), "/name", "GNU keeps times there");
}

#[test]
fn numbers_are_octal_or_binary_and_never_overflow() {
    use super::header::number;
    for (field, value) in [
        (&b"0000644\0"[..], Some(0o644)),
        (b"    644 ", Some(0o644)),
        (b"\0\0\0\0", Some(0)),
        (b"        ", Some(0)),
        (b"644\0junk", Some(0o644)),
        (b"0000648\0", None),
        (b"-1\0", None),
        (b"\x80\0\0\0\0\0\x01\0", Some(256)),
        (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
        (b"\x80\x00\x00\x00\x80\x00\x00\x00\x00\x00\x00\x00", None),
        (b"\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
        (b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
        (b"777777777777777777777777", None),
    ] {
        assert_eq!(number(field), value, "{field:?}");
    }
    let mut huge = header("a", b'0', 0);
    huge[124..136].copy_from_slice(b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff");
    assert_eq!(read(&sum(huge)), Err(TarError::Truncated { at: 512 }));
    let mut negative = header("a", b'0', 0);
    negative[108..116].fill(0xff);
    assert_eq!(read(&sum(negative)), Err(TarError::Number { at: 0, field: "owner" }));
    let mut before = header("a", b'0', 0);
    before[136..148].fill(0xff);
    assert_eq!(only(&sum(before)).mtime.seconds(), -1);
}

#[test]
fn whiteouts_hide_names_and_nothing_else() {
    let kind = |name| only(&header(name, b'0', 0));
    assert_eq!((kind("a/.wh.b").kind, kind("a/.wh.b").path.to_string()), (Kind::Whiteout, "/a/b".into()));
    assert_eq!((kind("a/.wh..wh..opq").kind, kind("a/.wh..wh..opq").path.to_string()), (Kind::Opaque, "/a".into()));
    assert_eq!((kind(".wh..wh..opq").kind, kind(".wh..wh..opq").path.is_root()), (Kind::Opaque, true));
    assert_eq!(kind("a/.wh..wh.b").path.to_string(), "/a/.wh.b");
    assert_eq!(kind(".wh..wh.plnk/1.2").path.to_string(), "/.wh..wh.plnk/1.2");
    for hostile in [".wh.", "a/.wh.", ".wh..", "a/.wh...", "./a/.wh.../"] {
        assert_eq!(read(&header(hostile, b'0', 0)), Err(TarError::Whiteout { at: 0 }), "{hostile}");
    }
}

#[test]
fn what_no_layer_has_is_refused() {
    let broken = |at: usize| {
        let mut block = header("a", b'0', 0);
        block[at] ^= 1;
        block
    };
    assert_eq!(read(&broken(0)), Err(TarError::Checksum { at: 0 }));
    assert_eq!(read(&[0x1f; 512]), Err(TarError::Checksum { at: 0 }));
    assert_eq!(read(&header("a", b'V', 0)), Err(TarError::Unsupported { at: 0, kind: b'V' }));
    assert_eq!(read(&header("a", b'x', 2 << 20)), Err(TarError::Extended { at: 0, bytes: 2 << 20 }));
    assert_eq!(read(&header("./", b'0', 0)).map(|e| e[0].kind.clone()), Ok(Kind::Directory), "V7's directories");
    assert_eq!(read(&header(".", b'0', 0)), Err(TarError::Root { at: 0 }));
    for (name, link) in [("../a", "b"), ("a/../../b", "b"), ("a", "../b")] {
        let mut block = header(name, b'1', 0);
        block[157..157 + link.len()].copy_from_slice(link.as_bytes());
        let error = read(&sum(block));
        assert!(matches!(error, Err(TarError::Entry { error: EntryError::Climbs { .. }, .. })), "{name}: {error:?}");
    }
}

#[test]
fn sparse_maps_that_disagree_with_the_data_are_refused() {
    let sparse = |said: &[(&str, &str)], stored: u64| {
        let archive = [pax(&records(said)), header("s", b'0', stored).to_vec(), vec![b'x'; 512]].concat();
        read(&archive).map(|entries| ranges(&entries[0]))
    };
    let (size, count) = (("GNU.sparse.size", "100"), ("GNU.sparse.numblocks", "1"));
    let (at, len) = (("GNU.sparse.offset", "10"), ("GNU.sparse.numbytes", "5"));
    assert_eq!(sparse(&[size, count, at, len], 5), Ok(vec![(10, 1536, 1541)]));
    assert_eq!(sparse(&[size, count, at, len], 6), Err(TarError::Sparse { at: 1024 }), "more is stored");
    assert_eq!(sparse(&[size, count, at, len], 4), Err(TarError::Sparse { at: 1024 }), "less is stored");
    assert_eq!(sparse(&[size, count, at], 5), Err(TarError::Sparse { at: 1024 }), "half a pair");
    assert_eq!(sparse(&[size, count, len, at], 5), Err(TarError::Pax { at: 0 }), "out of order");
    assert_eq!(sparse(&[count, at, len], 5), Err(TarError::Sparse { at: 1024 }), "no size");
    let map = |map| ("GNU.sparse.map", map);
    let three = vec![(10, 1536, 1538), (20, 1538, 1540), (99, 1540, 1541)];
    assert_eq!(sparse(&[size, map("10,2,20,2,99,1")], 5), Ok(three));
    let beyond = sparse(&[size, map("10,2,20,2,99,2")], 6);
    assert!(matches!(beyond, Err(TarError::Entry { error: EntryError::Pieces { nth: 2 }, .. })), "{beyond:?}");
    let overlap = sparse(&[size, map("10,2,11,2")], 4);
    assert!(matches!(overlap, Err(TarError::Entry { error: EntryError::Pieces { nth: 1 }, .. })), "{overlap:?}");
    assert_eq!(sparse(&[size, map("10,2,20")], 2), Err(TarError::Sparse { at: 1024 }));
    assert_eq!(sparse(&[size, map("10,-2")], 2), Err(TarError::Pax { at: 0 }));
}

/// The bytes of each file of an archive, put together from its entries.
fn contents(archive: &[u8], entries: &[Entry]) -> Vec<(String, Vec<u8>)> {
    let content = |entry: &Entry| {
        let Kind::Regular(content) = &entry.kind else { return None };
        let mut bytes = vec![0; usize::try_from(content.size_bytes()).unwrap()];
        for Piece { at, range } in content.pieces() {
            let place = |at: u64| usize::try_from(at).unwrap();
            bytes[place(*at)..place(at + range.len())]
                .copy_from_slice(&archive[place(range.start())..place(range.end())]);
        }
        Some((entry.path.to_string(), bytes))
    };
    entries.iter().filter_map(content).collect()
}

fn tree(dir: &Path) {
    fs::create_dir_all(dir.join("d/ünïcödé")).unwrap();
    fs::write(dir.join("d/ünïcödé/\u{1f600}"), b"smile").unwrap();
    fs::write(dir.join("d/empty"), b"").unwrap();
    fs::write(dir.join("d").join("long".repeat(60)), vec![7; 5000]).unwrap();
    fs::hard_link(dir.join("d/ünïcödé/\u{1f600}"), dir.join("link")).unwrap();
    std::os::unix::fs::symlink("t".repeat(300), dir.join("symlink")).unwrap();
    let sparse = fs::File::create(dir.join("sparse")).unwrap();
    // Forty islands: more than GNU's header and one block behind it hold.
    for island in 0..40_u8 {
        sparse.write_all_at(&[island + 1; 4096], u64::from(island) * 65_536).unwrap();
    }
    sparse.set_len(4 << 20).unwrap();
    fs::File::create(dir.join("hole")).unwrap().set_len(1 << 20).unwrap();
}

#[test]
fn every_format_of_gnu_tar_gives_the_same_tree() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    tree(&root);
    let formats = [
        ("gnu", None),
        ("gnu", Some("0.0")),
        ("pax", None),
        ("pax", Some("0.0")),
        ("pax", Some("0.1")),
        ("pax", Some("1.0")),
    ];
    for (format, sparse) in formats {
        let mut command = Command::new("tar");
        command.args(["--sort=name", "--format", format, "-c", "-C"]).arg(&root);
        if let Some(version) = sparse {
            command.args(["--sparse", &format!("--sparse-version={version}")]);
        }
        let out = command.arg(".").output().unwrap();
        assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
        let entries = read(&out.stdout).unwrap();
        let stored = |name: &str| entries.iter().find(|entry| entry.path.to_string() == name).map(ranges);
        assert_eq!(stored("/hole").map(|pieces| pieces.is_empty()), Some(sparse.is_some()), "{format} {sparse:?}");
        for (path, bytes) in contents(&out.stdout, &entries) {
            assert!(fs::read(root.join(&path[1..])).unwrap() == bytes, "{format} {sparse:?}: {path}");
        }
        let kinds: Vec<_> = entries.iter().map(|entry| (entry.path.to_string(), &entry.kind)).collect();
        assert_eq!(kinds.len(), 10, "{kinds:?}");
        let target = LinkTarget::new("t".repeat(300).as_bytes()).unwrap();
        assert!(kinds.contains(&("/symlink".into(), &Kind::Symlink(target))), "{format}");
        let first = EntryPath::new("d/ünïcödé/\u{1f600}".as_bytes()).unwrap();
        assert!(kinds.contains(&("/link".into(), &Kind::HardLink(first))), "{format}");
        assert!(kinds.contains(&("/".into(), &Kind::Directory)), "{format}");
    }
}

/// An archive with a bit of everything.
fn sample() -> Vec<u8> {
    let map = padded(b"2\n0\n3\n100\n2\n");
    [
        header("d/", b'5', 0).to_vec(),
        pax(&record("SCHILY.xattr.user.key", b"v\x001")),
        header("d/f", b'0', 5).to_vec(),
        padded(b"hello"),
        pax(&records(&[("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "200")])),
        header("d/s", b'0', 512 + 5).to_vec(),
        map,
        padded(b"world"),
        header("././@LongLink", b'L', 150).to_vec(),
        padded(&[b'l'; 150]),
        header("l", b'6', 0).to_vec(),
        vec![0; 1024],
    ]
    .concat()
}

#[test]
fn the_sample_is_what_it_should_be() {
    let entries = read(&sample()).unwrap();
    assert_eq!(entries.len(), 4);
    assert_eq!(entries[1].xattrs.iter().collect::<Vec<_>>(), [(&b"user.key"[..], &b"v\x001"[..])]);
    let files = contents(&sample(), &entries);
    assert_eq!(files[0].1, b"hello");
    assert_eq!((&files[1].1[..5], &files[1].1[95..105]), (&b"wor\0\0"[..], &b"\0\0\0\0\0ld\0\0\0"[..]));
    assert_eq!(entries[3].kind, Kind::Fifo);
}

proptest! {
    #[test]
    fn the_sizes_of_pieces_do_not_matter(cuts in prop::collection::vec(1_usize..1500, 1..40)) {
        let archive = sample();
        let whole = read(&archive);
        let (mut entries, mut reader, mut rest) = (Vec::new(), TarReader::new(), &archive[..]);
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, behind) = rest.split_at((*cut).min(rest.len()));
            reader.push(piece, |entry| entries.push(entry)).unwrap();
            rest = behind;
        }
        reader.finish().unwrap();
        prop_assert_eq!(Ok(entries), whole);
        prop_assert_eq!(reader.position(), archive.len() as u64);
    }

    #[test]
    fn any_bytes_give_entries_inside_the_archive_or_an_error(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        resealed in any::<bool>(),
    ) {
        let mut archive = sample();
        for (at, byte) in changes {
            let at = at.index(archive.len());
            archive[at] = byte;
        }
        if resealed {
            for block in archive.as_chunks_mut::<512>().0 {
                if &block[257..262] == b"ustar" {
                    *block = sum(*block);
                }
            }
        }
        if let Ok(entries) = read(&archive) {
            for entry in entries {
                if let Kind::Regular(content) = entry.kind {
                    let all = ByteRange::new(0, archive.len() as u64).unwrap();
                    prop_assert!(content.pieces().iter().all(|piece| all.contains(piece.range)));
                }
            }
        }
    }
}
