//! What entries in odd orders make.

use penstock_blob::{ByteRange, Digest};
use penstock_layers::{LinkTarget, Time, Xattrs};

use super::*;

fn path(text: &str) -> EntryPath {
    EntryPath::new(text.as_bytes()).unwrap()
}

fn entry(at: &str, kind: EntryKind) -> Entry {
    Entry { path: path(at), kind, mode: 0o644, uid: 1, gid: 2, mtime: Time::default(), xattrs: Xattrs::default() }
}

fn file(at: &str) -> Entry {
    entry(at, EntryKind::Regular(Content::whole(ByteRange::new(512, 515).ok()).unwrap()))
}

fn dir(at: &str) -> Entry {
    entry(at, EntryKind::Directory)
}

fn link(at: &str, target: &str) -> Entry {
    entry(at, EntryKind::Symlink(LinkTarget::new(target.as_bytes()).unwrap()))
}

fn hard(at: &str, target: &str) -> Entry {
    entry(at, EntryKind::HardLink(path(target)))
}

fn hidden(at: &str) -> Entry {
    entry(at, EntryKind::Whiteout)
}

fn opaque(at: &str) -> Entry {
    entry(at, EntryKind::Opaque)
}

fn tree(entries: &[Entry]) -> Result<Tree, BuildError> {
    let mut tree = Tree::new(Blob { digest: Digest::of(b"layer"), size_bytes: 4096 });
    entries.iter().try_for_each(|entry| tree.add(entry))?;
    tree.finish()?;
    Ok(tree)
}

/// Paths with a letter for what they are; capitals are opaque directories, `*` marks what no entry spoke of.
fn shown(entries: &[Entry]) -> Vec<String> {
    let tree = tree(entries).unwrap();
    let mut found = Vec::new();
    let mut waiting = vec![(String::new(), ROOT)];
    while let Some((at, dir)) = waiting.pop() {
        for (name, id) in tree.children(dir) {
            let name = format!("{at}/{}", String::from_utf8_lossy(name));
            let inode = tree.inode(id);
            let kind = match inode.kind {
                Kind::Directory if inode.opaque => 'D',
                Kind::Directory => 'd',
                Kind::Regular | Kind::Sparse => 'f',
                Kind::Symlink => 'l',
                Kind::Whiteout => 'w',
                Kind::Char | Kind::Block | Kind::Fifo => 'n',
            };
            found.push(format!("{kind}{}{name}", if inode.implied { "*" } else { "" }));
            if inode.kind == Kind::Directory {
                waiting.push((name, id));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn later_entries_replace_earlier_ones() {
    assert_eq!(shown(&[file("a"), dir("a"), file("a/b")]), ["d/a", "f/a/b"]);
    assert_eq!(shown(&[dir("a"), file("a/b"), file("a/c/d"), file("a")]), ["f/a"]);
    assert_eq!(shown(&[dir("a"), file("a/b"), dir("a")]), ["d/a", "f/a/b"], "two directories become one");
    assert_eq!(shown(&[dir("a"), link("b", "a"), dir("b"), file("b/c")]), ["d/a", "d/b", "f/b/c"]);
    let tree = tree(&[dir("a"), Entry { mode: 0o700, uid: 7, ..dir("a") }]).unwrap();
    let merged = tree.inode(tree.child(ROOT, b"a").unwrap());
    assert_eq!((merged.mode, merged.uid), (0o700, 7), "the later attributes count");
}

#[test]
fn parents_that_are_left_out_are_made() {
    assert_eq!(shown(&[file("a/b/c")]), ["d*/a", "d*/a/b", "f/a/b/c"]);
    assert_eq!(shown(&[file("a/b/c"), dir("a")]), ["d*/a/b", "d/a", "f/a/b/c"]);
    assert_eq!(shown(&[Entry { mode: 0o700, ..dir("") }]), [""; 0]);
}

#[test]
fn parents_that_are_links_are_followed_inside_the_layer() {
    assert_eq!(
        shown(&[dir("usr/lib"), link("lib", "usr/lib"), file("lib/a")]),
        ["d*/usr", "d/usr/lib", "f/usr/lib/a", "l/lib"]
    );
    assert_eq!(shown(&[link("out", "../../../etc"), file("out/passwd")]), ["d*/etc", "f/etc/passwd", "l/out"]);
    assert_eq!(shown(&[link("out", "/etc"), file("out/passwd")]), ["d*/etc", "f/etc/passwd", "l/out"]);
    assert_eq!(
        shown(&[dir("a/b"), link("a/l", "b/../../c"), file("a/l/x")]),
        ["d*/a", "d*/c", "d/a/b", "f/c/x", "l/a/l"]
    );
    assert!(matches!(tree(&[link("a", "b"), link("b", "a"), file("a/x")]), Err(BuildError::Loop { .. })));
    assert!(matches!(tree(&[link("a", "a"), file("a/x")]), Err(BuildError::Loop { .. })));
    assert!(matches!(tree(&[file("a"), file("a/x")]), Err(BuildError::NotADirectory { .. })));
    assert!(matches!(tree(&[file("")]), Err(BuildError::NotADirectory { .. })));
}

#[test]
fn links_that_lead_on_and_on_end() {
    // Forty links of which each target passes the one before it many times.
    let mut entries = vec![dir("d")];
    entries.extend((0..100).map(|nth| link(&format!("l{nth}"), &"d/../".repeat(800))));
    entries.extend((0..200_000).map(|nth| file(&format!("l{}/f", nth % 100))));
    assert!(matches!(tree(&entries), Err(BuildError::Loop { .. })), "bounded for the whole layer");
}

#[test]
fn hard_links_name_what_came_before_them() {
    let links = |entries: &[Entry], name: &[u8]| {
        let tree = tree(entries).unwrap();
        tree.inode(tree.child(ROOT, name).unwrap()).links
    };
    assert_eq!(links(&[file("a"), hard("b", "a"), hard("c", "b")], b"a"), 3);
    assert_eq!(links(&[file("a"), hard("b", "a"), file("a")], b"b"), 1, "the old file lives on under its other name");
    assert_eq!(links(&[dir("d"), file("d/a"), hard("b", "d/a"), file("d")], b"b"), 1);
    assert_eq!(links(&[dir("d"), link("l", "d"), file("d/a"), hard("b", "l/a")], b"b"), 2, "through a link on the way");
    assert_eq!(links(&[link("l", "nowhere"), hard("b", "l")], b"b"), 2, "a link itself may have two names");
    for wrong in [
        vec![hard("b", "a")],
        vec![hard("b", "a"), file("a")],
        vec![dir("a"), hard("b", "a")],
        vec![file("a"), hard("a", "a")],
        vec![hidden("a"), hard("b", "a")],
        vec![file("a"), hard("b", "")],
        vec![hard("b", "not/there")],
    ] {
        assert!(matches!(tree(&wrong), Err(BuildError::LinkTarget { .. })), "{wrong:?}");
    }
}

#[test]
fn whiteouts_concern_the_layers_below_alone() {
    assert_eq!(shown(&[hidden("a/b")]), ["d*/a", "w/a/b"]);
    assert_eq!(shown(&[hidden("a"), file("a")]), ["f/a"]);
    assert_eq!(shown(&[file("a"), hidden("a")]), ["f/a"]);
    assert_eq!(shown(&[hidden("a"), dir("a"), file("a/b")]), ["D/a", "f/a/b"]);
    assert_eq!(shown(&[dir("a"), file("a/b"), hidden("a")]), ["D/a", "f/a/b"]);
    assert_eq!(shown(&[hidden("a"), file("a/b")]), ["D*/a", "f/a/b"]);
    assert_eq!(shown(&[opaque("a"), file("a/b"), dir("a")]), ["D/a", "f/a/b"]);
    assert_eq!(shown(&[dir("a"), file("a/b"), opaque("a")]), ["D/a", "f/a/b"]);
    assert_eq!(shown(&[opaque("a"), file("a")]), ["f/a"]);
    let tree = tree(&[Entry { mode: 0o777, ..hidden("a") }, opaque("")]).unwrap();
    assert_eq!(tree.inode(tree.child(ROOT, b"a").unwrap()).mode, 0, "as containerd makes them");
    assert_ne!(tree.inode(ROOT).xattrs, 0, "the root is opaque");
}

#[test]
fn what_aufs_kept_for_itself_is_left_out() {
    let entries = [file(".wh..wh.plnk/1"), hard("a", ".wh..wh.plnk/1"), file(".wh..wh.aufs"), dir(".wh..wh.orph")];
    assert_eq!(shown(&entries), ["f/a"]);
    let tree = tree(&entries).unwrap();
    assert_eq!(tree.inode(tree.child(ROOT, b"a").unwrap()).links, 1);
}

#[test]
fn content_beyond_the_layer_is_refused() {
    let content = |start, end| Content::whole(ByteRange::new(start, end).ok()).unwrap();
    assert!(tree(&[entry("a", EntryKind::Regular(content(0, 4096)))]).is_ok());
    let beyond = tree(&[entry("a", EntryKind::Regular(content(4095, 4097)))]);
    assert!(matches!(beyond, Err(BuildError::Beyond { end: 4097, layer_bytes: 4096, .. })));
}

#[test]
fn device_numbers_are_encoded_as_the_kernel_does() {
    let number = |major, minor| encode(DeviceNumber::new(major, minor).unwrap());
    // new_encode_dev: the low byte of the minor, 12 bits of the major, the rest of the minor.
    assert_eq!(number(5, 1), 0x501);
    assert_eq!(number(259, 70_000), 0x1111_0370);
    assert_eq!(number(4095, (1 << 20) - 1), 0xffff_ffff);
}
