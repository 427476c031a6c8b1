//! Trees, the archives that hold them, and what a device must show of them.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::reader::Found;

/// How an archive says what a plain header cannot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Gnu,
    Pax,
}

/// What a path is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum What {
    File(Vec<u8>),
    /// A file in islands: place and bytes, and its size.
    Sparse(Vec<(u64, Vec<u8>)>, u64),
    Directory,
    Symlink(Vec<u8>),
    /// Another name of the first file before it, if there is one.
    Again,
    Char(u32, u32),
    Fifo,
}

/// One path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) what: What,
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: (i64, u32),
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Nodes by path.
pub(crate) type Tree = BTreeMap<Vec<u8>, Node>;

/// A file of so many bytes.
pub(crate) fn node(bytes: u32) -> Node {
    let what = What::File((0..bytes).map(|at| at.to_le_bytes()[0] | 1).collect());
    Node { what, mode: 0o644, uid: 0, gid: 0, mtime: (1_700_000_000, 0), xattrs: BTreeMap::new() }
}

/// Something that is no file.
pub(crate) fn with(what: What) -> Node {
    Node { what, ..node(0) }
}

/// A tree with one of everything, always the same.
pub(crate) fn sample() -> Tree {
    let mut tree = Tree::from([
        (b"dir".to_vec(), with(What::Directory)),
        (b"dir/a".to_vec(), node(5000)),
        (b"dir/b".to_vec(), with(What::Again)),
        (b"dir/char".to_vec(), with(What::Char(5, 1))),
        (b"dir/link".to_vec(), with(What::Symlink(b"../target".to_vec()))),
        ("dir/\u{1f600}".into(), node(1)),
        (b"fifo".to_vec(), with(What::Fifo)),
        (b"sparse".to_vec(), with(What::Sparse(vec![(7, vec![1; 9]), (8192, vec![2; 700])], 20_000))),
    ]);
    let pair = |name: &[u8], value: &[u8]| BTreeMap::from([(name.to_vec(), value.to_vec())]);
    tree.insert(b"labelled".to_vec(), Node { xattrs: pair(b"security.label", b"one"), ..node(2) });
    tree.insert(b"labelled too".to_vec(), Node { xattrs: pair(b"security.label", b"one"), uid: 1 << 20, ..node(3) });
    tree.insert(b"other".to_vec(), Node { xattrs: pair(b"user.x", b""), mtime: (-1, 5), mode: 0o4755, ..node(0) });
    tree
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let bytes = || any::<u8>().prop_filter("neither NUL nor slash", |byte| *byte != 0 && *byte != b'/');
    prop_oneof![
        6 => prop::collection::vec(prop::sample::select(b"ab.-+".to_vec()), 1..4),
        2 => prop::collection::vec(bytes(), 1..40),
        1 => prop::collection::vec(bytes(), 200..=255),
    ]
    .prop_filter("a name of its own", |name| ![&b"."[..], b".."].contains(&&name[..]) && !name.starts_with(b".wh."))
}

fn what() -> impl Strategy<Value = What> {
    let bytes = |most| prop::collection::vec(1_u8.., 0..most);
    let islands = prop::collection::vec((0_u64..5000, prop::collection::vec(1_u8.., 1..900)), 0..5);
    prop_oneof![
        5 => bytes(300).prop_map(What::File),
        2 => bytes(10_000).prop_map(What::File),
        2 => (islands, 0_u64..9000).prop_map(|(islands, rest)| {
            let mut end = 0;
            let place = |(gap, bytes): (u64, Vec<u8>)| {
                let at = end + gap;
                end = at + bytes.len() as u64;
                (at, bytes)
            };
            let islands: Vec<_> = islands.into_iter().map(place).collect();
            What::Sparse(islands, end + rest)
        }),
        4 => Just(What::Directory),
        2 => prop::collection::vec(1_u8.., 1..300).prop_map(What::Symlink),
        1 => prop::collection::vec(1_u8.., 4000..4096).prop_map(What::Symlink),
        2 => Just(What::Again),
        1 => (0_u32..4096, 0_u32..1 << 20).prop_map(|(major, minor)| What::Char(major, minor)),
        1 => Just(What::Fifo),
    ]
}

fn random_node() -> impl Strategy<Value = Node> {
    let key = prop::sample::select(vec!["user.a", "user.b", "trusted.t", "security.s", "system.posix_acl_access"]);
    let value = prop_oneof![Just(b"same".to_vec()), prop::collection::vec(any::<u8>(), 0..5000)];
    let xattrs = prop::collection::btree_map(key.prop_map(|key| key.as_bytes().to_vec()), value, 0..3);
    let owner = || prop_oneof![Just(0), any::<u32>()];
    let time = prop_oneof![3 => Just((0_i64, 0_u32)), 1 => (-1_000_000_i64..1 << 34, 0_u32..1_000_000_000)];
    (what(), 0_u32..0o10_000, owner(), owner(), time, xattrs).prop_map(|(what, mode, uid, gid, mtime, xattrs)| Node {
        what,
        mode,
        uid,
        gid,
        mtime,
        xattrs,
    })
}

/// Random trees: each path lies in a directory of the tree.
pub(crate) fn tree() -> impl Strategy<Value = Tree> {
    prop::collection::vec((any::<prop::sample::Index>(), name(), random_node()), 0..120).prop_map(|nodes| {
        let mut tree = Tree::new();
        let mut dirs = vec![Vec::new()];
        for (dir, name, node) in nodes {
            let dir: &Vec<u8> = dir.get(&dirs);
            let slash: &[u8] = if dir.is_empty() { b"" } else { b"/" };
            let path = [&dir[..], slash, &name].concat();
            if tree.contains_key(&path) || path.len() > 4095 {
                continue;
            }
            if node.what == What::Directory {
                dirs.push(path.clone());
            }
            tree.insert(path, node);
        }
        tree
    })
}

/// The first regular file of a tree: what `Again` names.
fn first(tree: &Tree) -> Option<&Vec<u8>> {
    tree.iter().find(|(_, node)| matches!(node.what, What::File(_) | What::Sparse(..))).map(|(path, _)| path)
}

/// Whether a path is another name of the first file.
fn again<'a>(tree: &'a Tree, path: &[u8]) -> Option<&'a Vec<u8>> {
    first(tree).filter(|first| tree[path].what == What::Again && first.as_slice() < path)
}

/// Paths in an order in which directories come before what is in them and the first file before its other names: sorted.
pub(crate) fn archive(tree: &Tree, format: Format) -> Vec<u8> {
    let mut out = Vec::new();
    for (path, node) in tree {
        let link = match &node.what {
            What::Again => again(tree, path).cloned().unwrap_or_default(),
            What::Symlink(target) => target.clone(),
            _ => Vec::new(),
        };
        if node.what == What::Again && link.is_empty() {
            continue;
        }
        member(&mut out, path, node, (&link, format));
    }
    out.resize(out.len() + 1024, 0);
    out
}

fn member(out: &mut Vec<u8>, path: &[u8], node: &Node, (link, format): (&[u8], Format)) {
    let mut records: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let (flag, mut data) = match &node.what {
        What::File(bytes) => (b'0', bytes.clone()),
        What::Sparse(islands, size) => {
            records.push((b"GNU.sparse.size".to_vec(), size.to_string().into()));
            let map: Vec<String> = islands.iter().map(|(at, bytes)| format!("{at},{}", bytes.len())).collect();
            records.push((b"GNU.sparse.numblocks".to_vec(), map.len().to_string().into()));
            records.push((b"GNU.sparse.map".to_vec(), map.join(",").into()));
            (b'0', islands.iter().flat_map(|(_, bytes)| bytes.clone()).collect())
        }
        What::Directory => (b'5', Vec::new()),
        What::Symlink(_) => (b'2', Vec::new()),
        What::Again => (b'1', Vec::new()),
        What::Char(..) => (b'3', Vec::new()),
        What::Fifo => (b'6', Vec::new()),
    };
    let size = data.len();
    if format == Format::Pax {
        records.push((b"path".to_vec(), path.to_vec()));
        if !link.is_empty() {
            records.push((b"linkpath".to_vec(), link.to_vec()));
        }
        records.extend([("uid", node.uid), ("gid", node.gid)].map(|(k, v)| (k.into(), v.to_string().into())));
        records.push((b"mtime".to_vec(), time(node.mtime)));
        let xattrs = node.xattrs.iter();
        records.extend(xattrs.map(|(name, value)| ([&b"SCHILY.xattr."[..], name].concat(), value.clone())));
    } else {
        for (flag, text) in [(b'L', path), (b'K', link)] {
            if text.len() > 100 {
                block(out, (flag, text.len()), b"././@LongLink", (b"", node));
                padded(out, text);
            }
        }
    }
    if !records.is_empty() {
        let body: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        block(out, (b'x', body.len()), b"pax", (b"", node));
        padded(out, &body);
    }
    block(out, (flag, size), &path[..path.len().min(100)], (&link[..link.len().min(100)], node));
    // Tar's padding is no part of a file: it must not show.
    let padding = data.len().next_multiple_of(512);
    data.resize(padding, 0xee);
    out.extend(data);
}

fn padded(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(bytes);
    out.resize(out.len().next_multiple_of(512), 0);
}

fn time((seconds, nanoseconds): (i64, u32)) -> Vec<u8> {
    match (seconds, nanoseconds) {
        (0.., _) | (_, 0) => format!("{seconds}.{nanoseconds:09}").into(),
        _ => format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds).into(),
    }
}

/// `LENGTH KEY=VALUE`, where the length counts its own digits.
fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let digits = (1..).find(|&digits| (rest + digits).to_string().len() == digits).unwrap();
    [format!("{} ", rest + digits).as_bytes(), key, b"=", value, b"\n"].concat()
}

fn block(out: &mut Vec<u8>, (flag, size): (u8, usize), name: &[u8], (link, node): (&[u8], &Node)) {
    let mut block = [0; 512];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    // Base-256, as GNU writes what is too large for octal.
    let binary = |value: i64, len: usize| {
        let mut bytes = vec![if value < 0 { 0xff } else { 0 }; len - 8];
        bytes.extend_from_slice(&value.to_be_bytes());
        bytes[0] |= 0x80;
        bytes
    };
    put(0, name);
    put(100, format!("{:07o}", node.mode).as_bytes());
    // Eight bytes of base-256 hold seven of the number.
    put(108, &[&[0x80, 0, 0, 0], &node.uid.to_be_bytes()[..]].concat());
    put(116, &[&[0x80, 0, 0, 0], &node.gid.to_be_bytes()[..]].concat());
    put(124, &binary(i64::try_from(size).unwrap(), 12));
    put(136, &binary(node.mtime.0, 12));
    put(156, &[flag]);
    put(157, link);
    put(257, b"ustar  \0");
    if let What::Char(major, minor) = node.what {
        put(329, format!("{major:07o}").as_bytes());
        put(337, format!("{minor:07o}").as_bytes());
    }
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|&byte| u64::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    out.extend_from_slice(&block);
}

/// Compares what the device shows with the tree.
pub(crate) fn assert_same(found: &BTreeMap<Vec<u8>, Found>, tree: &Tree, format: Format) {
    let shown: BTreeSet<&Vec<u8>> = found.keys().filter(|path| !path.is_empty()).collect();
    let held = |path: &&Vec<u8>| tree[*path].what != What::Again || again(tree, path).is_some();
    assert_eq!(shown, tree.keys().filter(held).collect());
    let names = 1 + tree.keys().filter(|path| again(tree, path).is_some()).count();
    for (path, node) in tree.iter().filter(|(path, _)| held(path)) {
        let found = &found[path];
        // Attributes of another name are those of the file.
        let node = again(tree, path).map_or(node, |first| &tree[first]);
        let (kind, bytes) = match &node.what {
            What::File(bytes) => (0o100_000, bytes.clone()),
            What::Sparse(islands, size) => {
                let mut bytes = vec![0; usize::try_from(*size).unwrap()];
                for (at, island) in islands {
                    let at = usize::try_from(*at).unwrap();
                    bytes[at..at + island.len()].copy_from_slice(island);
                }
                (0o100_000, bytes)
            }
            What::Directory => (0o040_000, found.bytes.clone()),
            What::Symlink(target) => (0o120_000, target.clone()),
            What::Char(major, minor) => {
                let number = (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12);
                (0o020_000, number.to_le_bytes().to_vec())
            }
            What::Fifo | What::Again => (0o010_000, Vec::new()),
        };
        assert_eq!(found.mode, kind | node.mode, "{path:?}");
        assert!(found.bytes == bytes, "{path:?} holds other bytes");
        assert_eq!((found.uid, found.gid), (node.uid, node.gid), "{path:?}");
        let pax = format == Format::Pax;
        assert_eq!(found.mtime, (node.mtime.0, if pax { node.mtime.1 } else { 0 }), "{path:?}");
        // What only root may say of a file, no layer says.
        let mut told = if pax { node.xattrs.clone() } else { BTreeMap::new() };
        told.retain(|name, _| !name.starts_with(b"trusted."));
        assert_eq!(found.xattrs, told, "{path:?}");
        let links = match node.what {
            What::Directory => 2 + subdirectories(tree, path),
            _ if first(tree) == Some(path) || again(tree, path).is_some() => names,
            _ => 1,
        };
        assert_eq!(usize::try_from(found.links).unwrap(), links, "{path:?}");
    }
}

fn subdirectories(tree: &Tree, dir: &[u8]) -> usize {
    let below = |path: &Vec<u8>| path.strip_prefix(dir).and_then(|rest| rest.strip_prefix(b"/")).map(<[u8]>::to_vec);
    let inside = tree.iter().filter(|(_, node)| node.what == What::Directory).filter_map(|(path, _)| below(path));
    inside.filter(|rest| !rest.contains(&b'/')).count()
}

/// The tree without second names of files.
pub(crate) fn without_names(mut tree: Tree) -> Tree {
    tree.retain(|_, node| node.what != What::Again);
    tree
}

/// An upper layer that hides one path of `lower` and all that is in one directory of it, and adds `upper`; and what both show together.
pub(crate) fn over(
    lower: &Tree,
    upper: &Tree,
    (hidden, opaque): (&prop::sample::Index, &prop::sample::Index),
) -> (Tree, Tree) {
    let is_below = |path: &[u8], dir: &[u8]| path.strip_prefix(dir).is_some_and(|rest| rest.starts_with(b"/"));
    let (mut archive, mut shown) = (upper.clone(), lower.clone());
    let beside = |path: &[u8], name: &[u8]| {
        let slash = path.iter().rposition(|&byte| byte == b'/').map_or(0, |at| at + 1);
        ([&path[..slash], name].concat(), path[slash..].to_vec())
    };
    // No layer has markers below what it says is no directory.
    let holds = |path: &[u8]| {
        upper.iter().all(|(above, node)| node.what == What::Directory || (above != path && !is_below(path, above)))
    };
    let mut hid = Vec::new();
    if !lower.is_empty() {
        let path = hidden.get(&lower.keys().collect::<Vec<_>>()).to_vec();
        let (marker, name) = beside(&path, b".wh.");
        let dir = path.len().saturating_sub(name.len() + 1);
        // What cannot be named so cannot be hidden so.
        if name.len() < 252 && path.len() < 4092 && (dir == 0 || holds(&path[..dir])) {
            archive.insert([marker, name].concat(), node(0));
            shown.retain(|other, _| *other != path && !is_below(other, &path));
            hid = path;
        }
    }
    let dirs: Vec<_> = lower.iter().filter(|(_, node)| node.what == What::Directory).map(|(path, _)| path).collect();
    if !dirs.is_empty() {
        let dir = opaque.get(&dirs);
        if shown.contains_key(*dir) && dir.len() < 4080 && holds(dir) && !is_below(&hid, dir) {
            archive.insert([&dir[..], b"/.wh..wh..opq"].concat(), node(0));
            shown.retain(|other, _| !is_below(other, dir));
        }
    }
    for (path, node) in upper {
        let merges = node.what == What::Directory && shown.get(path).is_some_and(|below| below.what == What::Directory);
        if !merges {
            shown.retain(|other, _| !is_below(other, path));
        }
        shown.insert(path.clone(), node.clone());
    }
    (archive, shown)
}
