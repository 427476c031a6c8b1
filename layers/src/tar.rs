//! The entries of a tar archive that is fed in pieces.
//!
//! Reads ustar, V7, GNU and pax archives with GNU long names, sparse files of GNU (its own and the three in pax), base-256
//! numbers, and pax extended attributes, the way containerd unpacks a layer: global pax headers are ignored, of several pax
//! headers before a member the last counts, a link or directory has no body whatever its size field says, what follows two
//! blocks of zeros is not looked at. Differs from it where it would follow a path out of the layer: any `..` is refused.
//!
//! Holds one member at a time: its pax header or long name (at most [`MAX_EXTENDED_BYTES`] each) and its sparse map (at most
//! [`MAX_PIECES`](crate::entry::MAX_PIECES) pieces), never a file's content.
//!
//! Why not the crate `tar`: it pulls from a `Read`, so that a pass over a stream that is being downloaded and decoded would need a
//! thread of its own; it gives the place of a member's data but not those of a sparse file's pieces, and its extended headers are
//! bounded by memory alone.

pub(crate) mod header;
pub(crate) mod pax;
mod sparse;

use crate::{
    entry::{Content, DeviceNumber, Entry, EntryError, EntryPath, Kind, LinkTarget, Time, Xattrs},
    tar::{
        header::{BLOCK_BYTES, Header},
        pax::Records,
        sparse::{GnuMap, Map, PaxMap},
    },
    whiteout::{NameError, Named},
};

/// Most bytes of a pax header or a GNU long name: what Go's reader, and so containerd, allows.
pub const MAX_EXTENDED_BYTES: u64 = 1 << 20;
/// Why an archive cannot be read. `at` is the byte of the archive where the member's header starts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TarError {
    /// A header's checksum is wrong: this is no tar archive, or it is damaged.
    #[error("the tar header at byte {at} has a wrong checksum; the archive is damaged, or is none")]
    Checksum {
        /// Where.
        at: u64,
    },
    /// A number is malformed or out of range.
    #[error("the tar header at byte {at} has a malformed or impossible {field}")]
    Number {
        /// Where.
        at: u64,
        /// Which one.
        field: &'static str,
    },
    /// A member is of a kind that layers do not have.
    #[error("the tar header at byte {at} is of type {:?}, which layers do not have", char::from(*kind))]
    Unsupported {
        /// Where.
        at: u64,
        /// The type flag.
        kind: u8,
    },
    /// A pax header or long name is too long.
    #[error(
        "the tar header at byte {at} is followed by an extended one of {bytes} bytes; at most {MAX_EXTENDED_BYTES} are read"
    )]
    Extended {
        /// Where.
        at: u64,
        /// Its length.
        bytes: u64,
    },
    /// A pax header is not a list of `LENGTH KEY=VALUE` lines.
    #[error("the pax header at byte {at} is malformed")]
    Pax {
        /// Where.
        at: u64,
    },
    /// The map of a sparse file is malformed or disagrees with its sizes.
    #[error("the sparse file at byte {at} has a malformed map")]
    Sparse {
        /// Where.
        at: u64,
    },
    /// A whiteout hides nothing that can be named.
    #[error("the whiteout at byte {at} names no file")]
    Whiteout {
        /// Where.
        at: u64,
    },
    /// The root of the layer is something else than a directory.
    #[error("the member at byte {at} would replace the root of the layer by something that is no directory")]
    Root {
        /// Where.
        at: u64,
    },
    /// What a member says of itself cannot be.
    #[error("the member at byte {at} is impossible")]
    Entry {
        /// Where.
        at: u64,
        /// What is wrong with it.
        #[source]
        error: EntryError,
    },
    /// A single block of zeros stands between headers: the end for some readers, damage for others.
    #[error("the block of zeros at byte {at} is followed by more; the archive is damaged")]
    LoneZeros {
        /// Where.
        at: u64,
    },
    /// The archive ends inside a member.
    #[error("the archive ends at byte {at}, inside a member")]
    Truncated {
        /// Where it ends.
        at: u64,
    },
}

/// What is being collected.
#[derive(Debug)]
enum Stage {
    Header,
    /// A block of zeros was the last header.
    Zeros,
    Pax {
        bytes: usize,
    },
    LongName {
        bytes: usize,
    },
    LongLink {
        bytes: usize,
    },
    Gnu(Box<Member>, GnuMap),
    PaxMap(Box<Member>, PaxMap),
    End,
}

/// What extended headers say of the next member.
#[derive(Debug, Default)]
struct Pending {
    records: Records,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

/// A member whose headers were read.
#[derive(Debug)]
struct Member {
    at: u64,
    flag: u8,
    name: Vec<u8>,
    link: Vec<u8>,
    /// Bytes stored behind the headers.
    stored: u64,
    mode: u16,
    uid: u32,
    gid: u32,
    mtime: Time,
    device: (u64, u64),
    xattrs: Xattrs,
    /// Size of a sparse file, holes included.
    real_size: Option<u64>,
}

/// Reads an archive that is fed in pieces of any size.
#[derive(Debug)]
pub struct TarReader {
    /// Bytes that were taken.
    at: u64,
    /// Where the header that is being followed up starts.
    header_at: u64,
    /// Bytes of content to pass by.
    skip: u64,
    /// How many of them, the last ones, are only padding.
    padding: u64,
    stage: Stage,
    collected: Vec<u8>,
    pending: Pending,
    members: u64,
}

impl Default for TarReader {
    fn default() -> Self {
        Self::new()
    }
}

impl TarReader {
    /// At the start of an archive.
    #[must_use]
    pub fn new() -> Self {
        Self {
            at: 0,
            header_at: 0,
            skip: 0,
            padding: 0,
            stage: Stage::Header,
            collected: Vec::new(),
            pending: Pending::default(),
            members: 0,
        }
    }

    /// How many bytes of the archive were taken.
    #[must_use]
    pub const fn position(&self) -> u64 {
        self.at
    }

    /// Takes the next bytes of the archive and passes on each entry whose headers are complete, in order. After an error the
    /// reader must not be used any more.
    ///
    /// # Errors
    /// [`TarError`].
    pub fn push(&mut self, bytes: &[u8], mut found: impl FnMut(Entry)) -> Result<(), TarError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.skip > 0 {
                let passed = usize::try_from(self.skip).unwrap_or(usize::MAX).min(rest.len());
                (self.skip, self.at) = (self.skip - passed as u64, self.at + passed as u64);
                rest = &rest[passed..];
                continue;
            }
            let Some(wanted) = self.wanted() else {
                self.at += rest.len() as u64;
                return Ok(());
            };
            let taken = (wanted - self.collected.len()).min(rest.len());
            self.collected.extend_from_slice(&rest[..taken]);
            self.at += taken as u64;
            rest = &rest[taken..];
            if self.collected.len() == wanted {
                let block = std::mem::take(&mut self.collected);
                if let Some(entry) = self.step(&block)? {
                    self.members += 1;
                    found(entry);
                }
                if block.capacity() <= BLOCK_BYTES {
                    self.collected = block;
                    self.collected.clear();
                }
            }
        }
        Ok(())
    }

    /// That the archive ends here; answers how many entries it had.
    ///
    /// # Errors
    /// [`TarError::Truncated`] when it ends inside a member.
    pub fn finish(&self) -> Result<u64, TarError> {
        let between = matches!(self.stage, Stage::Header | Stage::Zeros | Stage::End);
        // The padding of the last member may be missing, as may the blocks of zeros.
        if between && self.collected.is_empty() && self.skip <= self.padding && !self.pending.is_any() {
            return Ok(self.members);
        }
        Err(TarError::Truncated { at: self.at })
    }

    /// How many bytes the stage needs before its step; none at the end.
    fn wanted(&self) -> Option<usize> {
        match &self.stage {
            Stage::End => None,
            Stage::Pax { bytes } | Stage::LongName { bytes } | Stage::LongLink { bytes } => {
                Some(bytes.next_multiple_of(BLOCK_BYTES))
            }
            Stage::Header | Stage::Zeros | Stage::Gnu(..) | Stage::PaxMap(..) => Some(BLOCK_BYTES),
        }
    }

    fn step(&mut self, block: &[u8]) -> Result<Option<Entry>, TarError> {
        match std::mem::replace(&mut self.stage, Stage::Header) {
            Stage::Header => return self.header(block),
            Stage::Zeros if block.iter().all(|&byte| byte == 0) => self.stage = Stage::End,
            Stage::Zeros => return Err(TarError::LoneZeros { at: self.header_at }),
            Stage::Pax { bytes } => {
                let records = Records::parse(&block[..bytes]);
                self.pending.records = records.ok_or(TarError::Pax { at: self.header_at })?;
            }
            Stage::LongName { bytes } => self.pending.name = Some(header::text(&block[..bytes]).to_vec()),
            Stage::LongLink { bytes } => self.pending.link = Some(header::text(&block[..bytes]).to_vec()),
            Stage::Gnu(member, mut map) => {
                let more = map.block(block).ok_or(TarError::Sparse { at: member.at })?;
                if more {
                    self.stage = Stage::Gnu(member, map);
                    return Ok(None);
                }
                return self.content(*member, Some(map.into()));
            }
            Stage::PaxMap(mut member, mut map) => {
                let wrong = TarError::Sparse { at: member.at };
                let complete = map.block(block).ok_or(wrong.clone())?;
                member.stored = member.stored.checked_sub(BLOCK_BYTES as u64).ok_or(wrong)?;
                if !complete {
                    self.stage = Stage::PaxMap(member, map);
                    return Ok(None);
                }
                return self.content(*member, Some(map.into()));
            }
            Stage::End => self.stage = Stage::End,
        }
        Ok(None)
    }

    /// A header block: of an extended header, of a member, or the end.
    fn header(&mut self, block: &[u8]) -> Result<Option<Entry>, TarError> {
        let at = self.at - BLOCK_BYTES as u64;
        self.header_at = at;
        if block.iter().all(|&byte| byte == 0) {
            self.stage = Stage::Zeros;
            return Ok(None);
        }
        let header = Header::parse(block).ok_or(TarError::Checksum { at })?;
        let size = header.size().ok_or(TarError::Number { at, field: "size" })?;
        match header.flag() {
            // Global headers: containerd ignores them, so their bytes are passed by.
            b'g' => self.pass(size, at)?,
            b'x' | b'L' | b'K' => {
                if size > MAX_EXTENDED_BYTES {
                    return Err(TarError::Extended { at, bytes: size });
                }
                let bytes = usize::try_from(size).map_err(|_| TarError::Extended { at, bytes: size })?;
                self.stage = match header.flag() {
                    b'x' => Stage::Pax { bytes },
                    b'L' => Stage::LongName { bytes },
                    _ => Stage::LongLink { bytes },
                };
                if bytes == 0 {
                    return self.step(&[]);
                }
            }
            _ => return self.member(&header, size, at),
        }
        Ok(None)
    }

    /// The header of a member: all that was said of it before comes together here.
    fn member(&mut self, header: &Header<'_>, size: u64, at: u64) -> Result<Option<Entry>, TarError> {
        let Pending { records, name, link } = std::mem::take(&mut self.pending);
        let number = |field| TarError::Number { at, field };
        let wrong = |error| TarError::Entry { at, error };
        let owner = |pax: Option<u64>, own: Option<i64>| {
            pax.map_or_else(|| own.and_then(|own| u32::try_from(own).ok()), |pax| u32::try_from(pax).ok())
        };
        let mtime = match records.mtime {
            Some(mtime) => Some(mtime),
            None => header.mtime().and_then(|seconds| Time::new(seconds, 0).ok()),
        };
        let name = records.sparse.name.clone().or(name).or(records.path);
        let member = Member {
            at,
            flag: header.flag(),
            name: name.unwrap_or_else(|| header.name()),
            link: link.or(records.link).unwrap_or_else(|| header.link().to_vec()),
            stored: records.size.unwrap_or(size),
            mode: header.mode().ok_or(number("mode"))?,
            uid: owner(records.uid, header.uid()).ok_or(number("owner"))?,
            gid: owner(records.gid, header.gid()).ok_or(number("group"))?,
            mtime: mtime.ok_or(number("modification time"))?,
            device: header.device().ok_or(number("device number"))?,
            xattrs: Xattrs::new(records.xattrs).map_err(wrong)?,
            real_size: records.sparse.size,
        };
        match (member.flag, records.sparse.kind()) {
            (b'S', _) => {
                let (map, real_size, more) = GnuMap::of_header(header).ok_or(TarError::Sparse { at })?;
                let member = Member { real_size: Some(real_size), ..member };
                if more {
                    self.stage = Stage::Gnu(Box::new(member), map);
                    return Ok(None);
                }
                self.content(member, Some(map.into()))
            }
            (b'0' | b'7' | 0, Some(sparse::Kind::InData)) => {
                self.stage = Stage::PaxMap(Box::new(member), PaxMap::default());
                Ok(None)
            }
            (b'0' | b'7' | 0, Some(sparse::Kind::InHeader)) => {
                let map = records.sparse.map().ok_or(TarError::Sparse { at })?;
                self.content(member, Some(map))
            }
            _ => self.content(member, None),
        }
    }

    /// The member as an entry; its content, which starts here, is passed by.
    fn content(&mut self, member: Member, map: Option<Map>) -> Result<Option<Entry>, TarError> {
        let at = member.at;
        let wrong = |error| TarError::Entry { at, error };
        let whiteout = named(&member, at)?;
        let path = match &whiteout {
            Named::Itself(path) | Named::Whiteout(path) | Named::Opaque(path) => path.clone(),
        };
        let directory = member.flag == b'5' || (is_regular(member.flag) && member.name.ends_with(b"/"));
        let device = || DeviceNumber::new(member.device.0, member.device.1).map_err(wrong);
        let stored = if is_regular(member.flag) || member.flag == b'S' { member.stored } else { 0 };
        let kind = match (&whiteout, member.flag) {
            (Named::Whiteout(_), _) => Kind::Whiteout,
            (Named::Opaque(_), _) => Kind::Opaque,
            _ if directory => Kind::Directory,
            (_, b'0' | b'7' | 0 | b'S') => self.regular(&member, map)?,
            (_, b'1') => Kind::HardLink(EntryPath::new(&member.link).map_err(wrong)?),
            (_, b'2') => Kind::Symlink(LinkTarget::new(&member.link).map_err(wrong)?),
            (_, b'3') => Kind::CharDevice(device()?),
            (_, b'4') => Kind::BlockDevice(device()?),
            (_, b'6') => Kind::Fifo,
            (_, kind) => return Err(TarError::Unsupported { at, kind }),
        };
        if path.is_root() && !matches!(kind, Kind::Directory | Kind::Opaque) {
            return Err(TarError::Root { at });
        }
        self.pass(stored, at)?;
        let Member { mode, uid, gid, mtime, xattrs, .. } = member;
        Ok(Some(Entry { path, kind, mode, uid, gid, mtime, xattrs }))
    }

    /// The content of a file that starts here.
    fn regular(&self, member: &Member, map: Option<Map>) -> Result<Kind, TarError> {
        let at = member.at;
        let content = match map {
            None => Content::whole(penstock_blob::ByteRange::at(self.at, member.stored).ok()),
            Some(map) => {
                let pieces = map.pieces(self.at, member.stored).ok_or(TarError::Sparse { at })?;
                Content::new(member.real_size.ok_or(TarError::Sparse { at })?, pieces)
            }
        };
        Ok(Kind::Regular(content.map_err(|error| TarError::Entry { at, error })?))
    }

    /// Has `bytes` and the padding behind them passed by.
    fn pass(&mut self, bytes: u64, at: u64) -> Result<(), TarError> {
        let padded = bytes.checked_next_multiple_of(BLOCK_BYTES as u64);
        let inside = padded.filter(|padded| padded.checked_add(self.at).is_some());
        self.skip = inside.ok_or(TarError::Number { at, field: "size" })?;
        self.padding = self.skip - bytes;
        Ok(())
    }
}

impl Pending {
    /// Whether a member must follow.
    const fn is_any(&self) -> bool {
        self.name.is_some() || self.link.is_some() || self.records.any
    }
}

/// What a member's name says.
fn named(member: &Member, at: u64) -> Result<Named, TarError> {
    Named::of(&member.name).map_err(|error| match error {
        NameError::Nothing => TarError::Whiteout { at },
        NameError::Path(error) => TarError::Entry { at, error },
    })
}

const fn is_regular(flag: u8) -> bool {
    matches!(flag, b'0' | b'7' | 0)
}

#[cfg(test)]
mod tests;
