//! Extended attributes: each pair of name and value kept once, each set of pairs kept once, and how EROFS stores them.
//!
//! A pair that several inodes have is stored once, in the shared area; others behind their inode.

use std::collections::HashMap;

use penstock_layers::Xattrs;

use super::BuildError;
use crate::units::in_memory;

/// Most bytes of distinct pairs of a layer.
const MAX_BYTES: usize = 64 << 20;
/// Most distinct sets of a layer, each of at most [`MAX_SET_PAIRS`] pairs.
const MAX_SETS: usize = 1 << 20;
/// Most references of sets to pairs together: 16 MiB.
const MAX_REFERENCES: usize = 4 << 20;
/// Shared pairs of one inode: their number is one byte.
const MAX_SHARED: usize = 255;
/// Bytes of the header before an inode's attributes.
pub(super) const BODY_HEADER: u64 = 12;
/// The set of nothing.
pub(super) const NONE: u32 = 0;
/// What makes a directory opaque to overlayfs.
const OPAQUE: (&[u8], &[u8]) = (b"trusted.overlay.opaque", b"y");

/// Names begin with one of these, which is stored as a number (`erofs_fs.h`).
const PREFIXES: [(u8, &[u8]); 3] = [(1, b"user."), (4, b"trusted."), (6, b"security.")];
/// Of what begins so, overlayfs and others obey some: where a directory is to be looked for, where a file's bytes are. No layer may say that.
const TRUSTED: &[u8] = b"trusted.";
/// Names that are a number alone.
const WHOLE: [(u8, &[u8]); 2] = [(2, b"system.posix_acl_access"), (3, b"system.posix_acl_default")];

/// A whole name and a value.
type NameValue = (Box<[u8]>, Box<[u8]>);

/// One name and value.
#[derive(Debug)]
pub(super) struct Pair {
    prefix: u8,
    /// The name behind the prefix.
    name: Box<[u8]>,
    value: Box<[u8]>,
    /// How many inodes have it.
    used: u32,
    /// Where it is in the shared area, in units of 4 bytes.
    shared: Option<u32>,
}

impl Pair {
    fn stored_bytes(&self) -> u64 {
        (4 + self.name.len() + self.value.len()).next_multiple_of(4) as u64
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.push(u8::try_from(self.name.len()).unwrap_or(u8::MAX));
        out.push(self.prefix);
        out.extend_from_slice(&u16::try_from(self.value.len()).unwrap_or(u16::MAX).to_le_bytes());
        out.extend_from_slice(&self.name);
        out.extend_from_slice(&self.value);
        out.resize(out.len().next_multiple_of(4), 0);
    }
}

/// Prefix number and the rest of a name; `None` for namespaces that Linux file systems do not store for others.
fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    if let Some(&(number, _)) = WHOLE.iter().find(|(_, whole)| *whole == name) {
        return Some((number, b""));
    }
    let parts = PREFIXES.iter().find_map(|(number, prefix)| Some((*number, name.strip_prefix(*prefix)?)));
    parts.filter(|(_, rest)| !rest.is_empty())
}

/// All sets of a layer. Numbers follow from the order of entries alone.
#[derive(Debug)]
pub(super) struct Sets {
    pairs: Vec<Pair>,
    by_pair: HashMap<NameValue, u32>,
    sets: Vec<Box<[u32]>>,
    by_set: HashMap<Box<[u32]>, u32>,
    bytes: usize,
    references: usize,
    /// Pairs of entries that were left out: their namespace is none of Linux', or `trusted.`.
    pub(super) dropped: u64,
}

impl Sets {
    pub(super) fn new() -> Self {
        let (sets, by_set) = (vec![Box::default()], HashMap::from([(Box::default(), NONE)]));
        Self { pairs: Vec::new(), by_pair: HashMap::new(), sets, by_set, bytes: 0, references: 0, dropped: 0 }
    }

    /// The number of the set of these attributes.
    pub(super) fn intern(&mut self, xattrs: &Xattrs) -> Result<u32, BuildError> {
        if xattrs.is_empty() {
            return Ok(NONE);
        }
        let mut set = Vec::with_capacity(xattrs.iter().len());
        for (name, value) in xattrs.iter() {
            match split(name).filter(|_| !name.starts_with(TRUSTED)) {
                Some(_) => set.push(self.pair(name, value)?),
                // What containerd does with them, and with those to which the file system answers ENOTSUP.
                None => self.dropped += 1,
            }
        }
        self.set(set)
    }

    /// The set and what makes a directory opaque.
    pub(super) fn with_opaque(&mut self, set: u32) -> Result<u32, BuildError> {
        let opaque = split(OPAQUE.0);
        let mut pairs = self.sets[in_memory(set.into())].to_vec();
        pairs.retain(|&pair| {
            let pair = &self.pairs[in_memory(pair.into())];
            opaque != Some((pair.prefix, &pair.name))
        });
        pairs.push(self.pair(OPAQUE.0, OPAQUE.1)?);
        self.set(pairs)
    }

    fn pair(&mut self, name: &[u8], value: &[u8]) -> Result<u32, BuildError> {
        let key = (Box::from(name), Box::from(value));
        if let Some(&pair) = self.by_pair.get(&key) {
            return Ok(pair);
        }
        self.bytes += name.len() + value.len();
        if self.bytes > MAX_BYTES {
            return Err(BuildError::TooMany { what: "bytes of extended attributes", most: MAX_BYTES });
        }
        let number = u32::try_from(self.pairs.len()).unwrap_or(u32::MAX);
        let (prefix, rest) = split(name).unwrap_or_default();
        self.pairs.push(Pair { prefix, name: rest.into(), value: value.into(), used: 0, shared: None });
        self.by_pair.insert(key, number);
        Ok(number)
    }

    fn set(&mut self, pairs: Vec<u32>) -> Result<u32, BuildError> {
        if let Some(&set) = self.by_set.get(&*pairs) {
            return Ok(set);
        }
        self.references += pairs.len();
        if self.sets.len() >= MAX_SETS || self.references > MAX_REFERENCES {
            return Err(BuildError::TooMany { what: "different sets of extended attributes", most: MAX_SETS });
        }
        let number = u32::try_from(self.sets.len()).unwrap_or(u32::MAX);
        self.sets.push(pairs.clone().into());
        self.by_set.insert(pairs.into(), number);
        Ok(number)
    }

    /// Counts an inode that has the set.
    pub(super) fn count(&mut self, set: u32) {
        for &pair in &self.sets[in_memory(set.into())] {
            self.pairs[in_memory(pair.into())].used += 1;
        }
    }

    /// Once all inodes are counted: the shared area, of the pairs that more than one has.
    pub(super) fn share(&mut self) -> Vec<u8> {
        let mut area = Vec::new();
        for pair in self.pairs.iter_mut().filter(|pair| pair.used > 1) {
            pair.shared = u32::try_from(area.len() / 4).ok();
            pair.write(&mut area);
        }
        area
    }

    /// The shared pairs of a set by their places, and the others.
    fn parts(&self, set: u32) -> (Vec<u32>, Vec<&Pair>) {
        let (mut shared, mut own) = (Vec::new(), Vec::new());
        for &pair in &self.sets[in_memory(set.into())] {
            let pair = &self.pairs[in_memory(pair.into())];
            match pair.shared {
                Some(place) if shared.len() < MAX_SHARED => shared.push(place),
                _ => own.push(pair),
            }
        }
        (shared, own)
    }

    /// Bytes of a set behind an inode.
    pub(super) fn stored_bytes(&self, set: u32) -> u64 {
        if set == NONE || self.sets[in_memory(set.into())].is_empty() {
            return 0;
        }
        let (shared, own) = self.parts(set);
        BODY_HEADER + 4 * shared.len() as u64 + own.iter().map(|pair| pair.stored_bytes()).sum::<u64>()
    }

    /// Writes a set behind its inode.
    pub(super) fn write(&self, set: u32, out: &mut Vec<u8>) {
        if self.stored_bytes(set) == 0 {
            return;
        }
        let (shared, own) = self.parts(set);
        out.extend_from_slice(&[0; 4]);
        out.push(u8::try_from(shared.len()).unwrap_or(u8::MAX));
        out.extend_from_slice(&[0; 7]);
        shared.iter().for_each(|place| out.extend_from_slice(&place.to_le_bytes()));
        own.iter().for_each(|pair| pair.write(out));
    }
}
