//! Reads an EROFS from its bytes, by the format's own documentation and without a line of the writer's.

use std::collections::BTreeMap;

/// One path of a file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) nid: u64,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: (i64, u32),
    pub(crate) links: u32,
    /// Content of a file or a link; a device's number.
    pub(crate) bytes: Vec<u8>,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

struct Disk<'a> {
    bytes: &'a [u8],
    meta: usize,
    xattr: usize,
    stamp: (i64, u32),
}

/// A little-endian number of 1 to 8 bytes.
fn le(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes[at..at + len].iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

fn at(bytes: &[u8], place: usize, len: usize) -> usize {
    usize::try_from(le(bytes, place, len)).unwrap()
}

fn low(number: u64) -> u32 {
    u32::try_from(number).unwrap()
}

/// All paths, the root being empty. Checks what a kernel relies on: order of names, kinds, places, the checksum.
pub(crate) fn read_tree(bytes: &[u8]) -> BTreeMap<Vec<u8>, Found> {
    let sb = &bytes[1024..1152];
    assert_eq!(le(sb, 0, 4), 0xe0f5_e1e2);
    let mut block = bytes[1024..4096].to_vec();
    block[4..8].fill(0);
    assert_eq!(le(sb, 4, 4), u64::from(!crc32c::crc32c(&block)), "the superblock's checksum");
    assert_eq!((sb[12], le(sb, 36, 4) * 4096), (12, bytes.len() as u64));
    assert_eq!((sb[48 + 6] >> 4, sb[48 + 8] >> 6), (8, 2), "a UUID of version 8");
    let stamp = (le(sb, 24, 8).cast_signed(), low(le(sb, 32, 4)));
    let disk = Disk { bytes, meta: at(sb, 40, 4) * 4096, xattr: at(sb, 44, 4) * 4096, stamp };
    let root = le(sb, 14, 2);
    let mut tree = BTreeMap::new();
    let mut waiting = vec![(Vec::new(), root, root)];
    while let Some((path, nid, parent)) = waiting.pop() {
        let found = disk.inode(nid);
        if found.mode & 0o170_000 == 0o040_000 {
            for (name, child, kind) in names(&found.bytes) {
                match &name[..] {
                    b"." => assert_eq!(child, nid),
                    b".." => assert_eq!(child, parent),
                    _ => {
                        assert_eq!(kind, kind_of(disk.inode(child).mode), "{path:?} {name:?}");
                        let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
                        waiting.push(([&path[..], slash, &name].concat(), child, nid));
                    }
                }
            }
        }
        tree.insert(path, found);
    }
    let inodes: std::collections::BTreeSet<u64> = tree.values().map(|found| found.nid).collect();
    assert_eq!(le(sb, 16, 8), inodes.len() as u64, "the superblock counts the inodes");
    tree
}

fn kind_of(mode: u32) -> u8 {
    match mode & 0o170_000 {
        0o100_000 => 1,
        0o040_000 => 2,
        0o020_000 => 3,
        0o060_000 => 4,
        0o010_000 => 5,
        0o120_000 => 7,
        other => panic!("{other:o}"),
    }
}

/// The names of a directory, which must be sorted over all its blocks.
fn names(bytes: &[u8]) -> Vec<(Vec<u8>, u64, u8)> {
    let mut all: Vec<(Vec<u8>, u64, u8)> = Vec::new();
    for block in bytes.chunks(4096) {
        let count = at(block, 8, 2) / 12;
        for nth in 0..count {
            let start = at(block, 12 * nth + 8, 2);
            let end = if nth + 1 < count { at(block, 12 * (nth + 1) + 8, 2) } else { block.len() };
            let name = block[start..end].split(|&byte| byte == 0).next().unwrap();
            all.push((name.to_vec(), le(block, 12 * nth, 8), block[12 * nth + 10]));
        }
    }
    assert!(all.windows(2).all(|pair| pair[0].0 < pair[1].0), "names are sorted");
    assert!(all.iter().any(|name| name.0 == b".") && all.iter().any(|name| name.0 == b".."));
    all
}

impl Disk<'_> {
    fn inode(&self, nid: u64) -> Found {
        let place = self.meta + usize::try_from(nid).unwrap() * 32;
        let inode = &self.bytes[place..];
        let (format, extended) = (le(inode, 0, 2), inode[0] & 1 == 1);
        let size = if extended { at(inode, 8, 8) } else { at(inode, 8, 4) };
        let base = if extended { 64 } else { 32 };
        assert!(place % 4096 + base <= 4096, "no inode lies across blocks");
        let xattr_bytes = match at(inode, 2, 2) {
            0 => 0,
            units => 12 + 4 * (units - 1),
        };
        let mode = low(le(inode, 4, 2));
        let raw = &inode[16..20];
        let bytes = match mode & 0o170_000 {
            0o020_000 | 0o060_000 => raw.to_vec(),
            0o010_000 => Vec::new(),
            _ => {
                let start = at(raw, 0, 4) * 4096;
                let inline = if format >> 1 == 2 { size % 4096 } else { 0 };
                let tail = place + base + xattr_bytes;
                assert!(inline == 0 || tail % 4096 + inline <= 4096, "an inline end lies across blocks");
                let body = if size > inline { &self.bytes[start..start + size - inline] } else { &[] };
                if format >> 1 == 0 && size % 4096 != 0 {
                    let end = start + size;
                    let rest = &self.bytes[end..end.next_multiple_of(4096)];
                    assert!(rest.iter().all(|&byte| byte == 0), "what lies behind the end of a file is zero");
                }
                [body, &self.bytes[tail..tail + inline]].concat()
            }
        };
        let (uid, gid, mtime, links) = if extended {
            let mtime = (le(inode, 32, 8).cast_signed(), low(le(inode, 40, 4)));
            (low(le(inode, 24, 4)), low(le(inode, 28, 4)), mtime, low(le(inode, 44, 4)))
        } else {
            (low(le(inode, 24, 2)), low(le(inode, 26, 2)), self.stamp, low(le(inode, 6, 2)))
        };
        let xattrs = self.xattrs(&inode[base..base + xattr_bytes]);
        Found { nid, mode, uid, gid, mtime, links, bytes, xattrs }
    }

    fn xattrs(&self, body: &[u8]) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut found = BTreeMap::new();
        if body.is_empty() {
            return found;
        }
        let shared = usize::from(body[4]);
        for nth in 0..shared {
            let id = at(body, 12 + 4 * nth, 4);
            let (name, value, _) = pair(&self.bytes[self.xattr + 4 * id..]);
            assert_eq!(found.insert(name, value), None);
        }
        let mut rest = &body[12 + 4 * shared..];
        while !rest.is_empty() {
            let (name, value, len) = pair(rest);
            assert_eq!(found.insert(name, value), None);
            rest = &rest[len..];
        }
        found
    }
}

/// A name, its value, and the bytes that they take.
fn pair(bytes: &[u8]) -> (Vec<u8>, Vec<u8>, usize) {
    let (name, value) = (usize::from(bytes[0]), at(bytes, 2, 2));
    let prefix: &[u8] = match bytes[1] {
        1 => b"user.",
        2 => b"system.posix_acl_access",
        3 => b"system.posix_acl_default",
        4 => b"trusted.",
        6 => b"security.",
        other => panic!("prefix {other}"),
    };
    let end = 4 + name + value;
    ([prefix, &bytes[4..4 + name]].concat(), bytes[4 + name..end].to_vec(), end.next_multiple_of(4))
}
