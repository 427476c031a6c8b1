//! Two small file systems, made by hand: what is found in them, and what damage does.

use proptest::prelude::*;

use super::*;

const BLOCK: usize = 4096;

/// A device in memory, of which some pages are not here.
struct Memory {
    bytes: Vec<u8>,
    absent: Vec<usize>,
    reads: u64,
}

impl Local for Memory {
    fn read(&mut self, at: u64, buf: &mut [u8]) -> bool {
        let (start, end) = (in_memory(at), in_memory(at) + buf.len());
        self.reads += buf.len() as u64;
        let is_here = !self.absent.iter().any(|page| (start / BLOCK..end.div_ceil(BLOCK)).contains(page));
        match self.bytes.get(start..end).filter(|_| is_here) {
            Some(bytes) => buf.copy_from_slice(bytes),
            None => return false,
        }
        true
    }
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// A block of an EROFS directory.
fn erofs_names(names: &[(u64, &str)]) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    let mut at = 12 * names.len();
    for (nth, (inode, name)) in names.iter().enumerate() {
        put(&mut block, 12 * nth, &inode.to_le_bytes());
        put(&mut block, 12 * nth + 8, &u16::try_from(at).unwrap().to_le_bytes());
        put(&mut block, at, name.as_bytes());
        at += name.len();
    }
    block
}

/// Inodes from block 1 on: `/` (slot 0), `/a` (2), `/lib/` (4), `/lib/b.so` (6), `/packed` (16).
fn erofs() -> Vec<u8> {
    let mut disk = vec![0; 10 * BLOCK];
    put(&mut disk, 1024, &0xe0f5_e1e2_u32.to_le_bytes());
    disk[1024 + 12] = 12;
    put(&mut disk, 1024 + 40, &1_u32.to_le_bytes());
    let mut inode = |slot: usize, (layout, mode): (u16, u16), size: u32, place: u32| {
        let at = BLOCK + 32 * slot;
        put(&mut disk, at, &(layout << 1).to_le_bytes());
        put(&mut disk, at + 4, &mode.to_le_bytes());
        put(&mut disk, at + 8, &size.to_le_bytes());
        put(&mut disk, at + 16, &place.to_le_bytes());
    };
    inode(0, (0, 0o040_755), 4096, 2);
    inode(2, (2, 0o100_644), 5000, 4);
    inode(4, (0, 0o040_755), 4096, 3);
    inode(6, (4, 0o100_644), 8192, 0x20);
    inode(16, (1, 0o100_644), 8192, 5);
    // The chunks of b.so: block 7, block 6.
    for (nth, block) in [7_u32, 6].into_iter().enumerate() {
        put(&mut disk, BLOCK + 32 * 7 + 8 * nth + 4, &block.to_le_bytes());
    }
    put(&mut disk, 2 * BLOCK, &erofs_names(&[(0, "."), (0, ".."), (2, "a"), (4, "lib"), (16, "packed")]));
    put(&mut disk, 3 * BLOCK, &erofs_names(&[(4, "."), (0, ".."), (6, "b.so"), (0, "up")]));
    disk
}

/// A block of an ext4 directory.
fn ext4_names(names: &[(u32, &str)]) -> Vec<u8> {
    let (mut block, mut at) = (vec![0; BLOCK], 0);
    for (nth, (inode, name)) in names.iter().enumerate() {
        let len = if nth + 1 == names.len() { BLOCK - at } else { (8 + name.len()).next_multiple_of(4) };
        put(&mut block, at, &inode.to_le_bytes());
        put(&mut block, at + 4, &u16::try_from(len).unwrap().to_le_bytes());
        block[at + 6] = u8::try_from(name.len()).unwrap();
        put(&mut block, at + 8, name.as_bytes());
        at += len;
    }
    block
}

/// The head of a tree of extents, with one entry: a leaf's (first block, how many) or a node's (block, level).
fn tree(depth: u16, block: u32, blocks: u16) -> Vec<u8> {
    let mut node = vec![0; 60];
    put(&mut node, 0, &0xf30a_u16.to_le_bytes());
    put(&mut node, 2, &1_u16.to_le_bytes());
    put(&mut node, 6, &depth.to_le_bytes());
    if depth == 0 {
        put(&mut node, 16, &blocks.to_le_bytes());
        put(&mut node, 20, &block.to_le_bytes());
    } else {
        put(&mut node, 16, &block.to_le_bytes());
    }
    node
}

/// Inodes in block 2: `/` (2), `/bin/` (11), `/bin/sh` (12), whose extents are in block 5.
fn ext4() -> Vec<u8> {
    let mut disk = vec![0; 10 * BLOCK];
    put(&mut disk, 1024, &16_u32.to_le_bytes());
    put(&mut disk, 1024 + 24, &2_u32.to_le_bytes());
    put(&mut disk, 1024 + 40, &16_u32.to_le_bytes());
    put(&mut disk, 1024 + 56, &0xef53_u16.to_le_bytes());
    put(&mut disk, 1024 + 88, &256_u16.to_le_bytes());
    put(&mut disk, 1024 + 96, &0x42_u32.to_le_bytes());
    put(&mut disk, BLOCK + 8, &2_u32.to_le_bytes());
    let mut inode = |number: usize, mode: u16, size: u32, tree: &[u8]| {
        let at = 2 * BLOCK + 256 * (number - 1);
        put(&mut disk, at, &mode.to_le_bytes());
        put(&mut disk, at + 4, &size.to_le_bytes());
        put(&mut disk, at + 32, &0x8_0000_u32.to_le_bytes());
        put(&mut disk, at + 40, tree);
    };
    inode(2, 0o040_755, 4096, &tree(0, 3, 1));
    inode(11, 0o040_755, 4096, &tree(0, 4, 1));
    inode(12, 0o100_755, 8192, &tree(1, 5, 0));
    put(&mut disk, 3 * BLOCK, &ext4_names(&[(2, "."), (2, ".."), (11, "bin")]));
    put(&mut disk, 4 * BLOCK, &ext4_names(&[(11, "."), (2, ".."), (12, "sh"), (2, "root")]));
    put(&mut disk, 5 * BLOCK, &tree(0, 6, 2));
    disk
}

fn blocks(blocks: &[(usize, usize)]) -> Vec<ByteRange> {
    blocks.iter().map(|(from, to)| ByteRange::new((from * BLOCK) as u64, (to * BLOCK) as u64).unwrap()).collect()
}

fn look(bytes: Vec<u8>, absent: &[usize], ranges: &[ByteRange]) -> Result<Found, Unknown> {
    let size_bytes = bytes.len() as u64;
    find(&mut Memory { bytes, absent: absent.to_vec(), reads: 0 }, size_bytes, ranges)
}

fn file(path: &str) -> Option<Content> {
    Some(Content::File(path.to_owned()))
}

fn directory(path: &str) -> Option<Content> {
    Some(Content::Directory(path.to_owned()))
}

#[test]
fn files_of_an_erofs_are_told_by_their_bytes() {
    let ranges = blocks(&[(7, 8), (4, 5), (2, 3), (6, 8), (3, 4), (1, 2), (9, 10), (5, 6)]);
    let found = look(erofs(), &[], &ranges).unwrap();
    let expected = [
        file("/lib/b.so"),
        file("/a"),
        directory("/"),
        file("/lib/b.so"),
        directory("/lib/"),
        // The end of /a is here, behind its inode: more than nothing.
        file("/a"),
        None,
        None,
    ];
    assert_eq!(found.contents, expected);
    assert!(found.is_partial, "/packed is compressed");
}

#[test]
fn files_of_an_ext4_are_told_by_their_bytes() {
    let found = look(ext4(), &[], &blocks(&[(6, 7), (7, 9), (2, 3), (4, 5), (9, 10)])).unwrap();
    let expected = [file("/bin/sh"), file("/bin/sh"), Some(Content::Metadata), directory("/bin/"), None];
    assert_eq!((found.contents, found.is_partial), (expected.to_vec(), false));
}

#[test]
fn what_is_not_here_is_left_out_and_said() {
    let found = look(erofs(), &[3], &blocks(&[(4, 5), (7, 8)])).unwrap();
    assert_eq!((found.contents, found.is_partial), (vec![file("/a"), None], true));
    let found = look(ext4(), &[5], &blocks(&[(6, 7), (4, 5)])).unwrap();
    assert_eq!((found.contents, found.is_partial), (vec![None, directory("/bin/")], true));
    assert_eq!(look(ext4(), &[0], &[]), Err(Unknown::Absent));
}

#[test]
fn another_file_system_or_one_with_unknown_features_is_not_understood() {
    assert_eq!(look(vec![0; 4 * BLOCK], &[], &[]), Err(Unknown::NotUnderstood));
    assert_eq!(look(vec![0; 100], &[], &[]), Err(Unknown::NotUnderstood), "too short for any");
    let mut disk = ext4();
    put(&mut disk, 1024 + 96, &0x1_0042_u32.to_le_bytes());
    assert_eq!(look(disk, &[], &[]), Err(Unknown::NotUnderstood));
    let mut disk = erofs();
    put(&mut disk, 1024 + 80, &0x80_u32.to_le_bytes());
    assert_eq!(look(disk, &[], &[]), Err(Unknown::NotUnderstood));
}

#[test]
fn a_walk_reads_no_more_than_its_bound() {
    // A directory of 4 GiB whose blocks are all the same.
    let mut disk = erofs();
    put(&mut disk, BLOCK + 8, &u32::MAX.to_le_bytes());
    struct Endless(Memory);
    impl Local for Endless {
        fn read(&mut self, at: u64, buf: &mut [u8]) -> bool {
            self.0.read(at % (8 * BLOCK as u64), buf)
        }
    }
    let mut endless = Endless(Memory { bytes: disk, absent: Vec::new(), reads: 0 });
    let found = find(&mut endless, u64::MAX, &[]).unwrap();
    assert!(found.is_partial && endless.0.reads <= MAX_READ_BYTES, "{}", endless.0.reads);
}

#[test]
fn a_map_that_points_to_itself_is_looked_at_no_longer_than_the_bound() {
    // A node of 340 entries, each of which is the node again: 340^5 of them in a tree of five levels.
    let mut disk = ext4();
    let mut node = tree(1, 5, 0);
    put(&mut node, 2, &340_u16.to_le_bytes());
    let entry = node[12..24].to_vec();
    put(&mut disk, 5 * BLOCK, &node);
    (0..340).for_each(|nth| put(&mut disk, 5 * BLOCK + 12 + 12 * nth, &entry));
    let found = look(disk, &[], &blocks(&[(6, 7), (4, 5)])).unwrap();
    assert_eq!((found.contents, found.is_partial), (vec![None, directory("/bin/")], true));
}

#[test]
fn what_is_longer_than_a_name_can_be_is_none() {
    let mut disk = erofs();
    let long = "n".repeat(256);
    let names = erofs_names(&[(2, &long[1..]), (4, &long)]);
    put(&mut disk, 2 * BLOCK, &names);
    let found = look(disk, &[], &blocks(&[(4, 5), (7, 8)])).unwrap();
    assert_eq!(found.contents, [file(&format!("/{}", &long[1..])), None]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn damage_gives_other_paths_or_none_but_never_a_failure(
        is_ext4 in any::<bool>(),
        damage in proptest::collection::vec((1024..6 * BLOCK, any::<u8>()), 1..40),
    ) {
        let mut disk = if is_ext4 { ext4() } else { erofs() };
        for (at, byte) in damage {
            disk[at] = byte;
        }
        let ranges = blocks(&[(0, 1), (1, 3), (4, 8), (6, 10)]);
        if let Ok(found) = look(disk, &[8], &ranges) {
            prop_assert_eq!(found.contents.len(), ranges.len());
        }
    }
}
