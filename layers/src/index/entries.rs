//! The entries of a layer as bytes, one after the other: written while a layer goes by, read as a stream. Format:
//! docs/formats/layer-index.md.

use std::io::{self, Read, Write};

use penstock_blob::ByteRange;

use crate::entry::{
    Content, DeviceNumber, Entry, EntryError, EntryPath, Kind, LinkTarget, MAX_PATH_BYTES, MAX_PIECES,
    MAX_XATTRS_BYTES, Piece, Time, Xattrs,
};

/// Tags of kinds.
const REGULAR: u64 = 0;
const DIRECTORY: u64 = 1;
const SYMLINK: u64 = 2;
const HARD_LINK: u64 = 3;
const CHAR_DEVICE: u64 = 4;
const BLOCK_DEVICE: u64 = 5;
const FIFO: u64 = 6;
const WHITEOUT: u64 = 7;
const OPAQUE: u64 = 8;
/// Longest number: 64 bits in sevens.
const MAX_VARINT_BYTES: u32 = 10;

/// Why a stream of entries cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EntriesError {
    /// The stream is damaged or ends too early.
    #[error("the entries of the layer index cannot be read: {0}")]
    Io(#[from] io::Error),
    /// An entry that no layer can have.
    #[error("entry {nth} of the layer index: {error}")]
    Entry {
        /// Which, counted from 0.
        nth: u64,
        /// What is wrong with it.
        #[source]
        error: EntryError,
    },
    /// A number in an entry makes no sense.
    #[error("entry {nth} of the layer index: its {what} makes no sense")]
    Nonsense {
        /// Which, counted from 0.
        nth: u64,
        /// Which number.
        what: &'static str,
    },
}

/// What of the entry before is not said again.
#[derive(Debug, Default)]
struct Before {
    path: Vec<u8>,
    seconds: i64,
    /// One past the last byte of the archive that a file held.
    end: u64,
}

/// Writes entries.
#[derive(Debug)]
pub(crate) struct Encoder<W> {
    to: W,
    before: Before,
}

impl<W: Write> Encoder<W> {
    pub(crate) fn new(to: W) -> Self {
        Self { to, before: Before::default() }
    }

    pub(crate) fn put(&mut self, entry: &Entry) -> io::Result<()> {
        let path = entry.path.as_bytes();
        let shared = path.iter().zip(&self.before.path).take_while(|(a, b)| a == b).count();
        let tag = match &entry.kind {
            Kind::Regular(_) => REGULAR,
            Kind::Directory => DIRECTORY,
            Kind::Symlink(_) => SYMLINK,
            Kind::HardLink(_) => HARD_LINK,
            Kind::CharDevice(_) => CHAR_DEVICE,
            Kind::BlockDevice(_) => BLOCK_DEVICE,
            Kind::Fifo => FIFO,
            Kind::Whiteout => WHITEOUT,
            Kind::Opaque => OPAQUE,
        };
        self.number(tag)?;
        self.number(shared as u64)?;
        self.bytes(&path[shared..])?;
        self.number(entry.mode.into())?;
        self.number(entry.uid.into())?;
        self.number(entry.gid.into())?;
        self.number(zigzag(entry.mtime.seconds().wrapping_sub(self.before.seconds)))?;
        self.number(entry.mtime.nanoseconds().into())?;
        self.number(entry.xattrs.iter().len() as u64)?;
        for (name, value) in entry.xattrs.iter() {
            self.bytes(name)?;
            self.bytes(value)?;
        }
        match &entry.kind {
            Kind::Regular(content) => self.content(content)?,
            Kind::Symlink(target) => self.bytes(target.as_bytes())?,
            Kind::HardLink(to) => self.bytes(to.as_bytes())?,
            Kind::CharDevice(number) | Kind::BlockDevice(number) => {
                self.number(number.major().into())?;
                self.number(number.minor().into())?;
            }
            Kind::Directory | Kind::Fifo | Kind::Whiteout | Kind::Opaque => {}
        }
        self.before.seconds = entry.mtime.seconds();
        self.before.path.truncate(shared);
        self.before.path.extend_from_slice(&path[shared..]);
        Ok(())
    }

    fn content(&mut self, content: &Content) -> io::Result<()> {
        self.number(content.size_bytes())?;
        self.number(content.pieces().len() as u64)?;
        let mut at = 0;
        for piece in content.pieces() {
            self.number(piece.at.wrapping_sub(at))?;
            self.number(zigzag(piece.range.start().wrapping_sub(self.before.end).cast_signed()))?;
            self.number(piece.range.len())?;
            at = piece.end();
            self.before.end = piece.range.end();
        }
        Ok(())
    }

    fn number(&mut self, mut number: u64) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(MAX_VARINT_BYTES as usize);
        while number >= 0x80 {
            bytes.push(u8::try_from(number & 0x7f).unwrap_or_default() | 0x80);
            number >>= 7;
        }
        bytes.push(u8::try_from(number).unwrap_or_default());
        self.to.write_all(&bytes)
    }

    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.number(bytes.len() as u64)?;
        self.to.write_all(bytes)
    }

    pub(crate) fn into_inner(self) -> W {
        self.to
    }
}

/// Small for numbers near 0 of both signs.
const fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)).cast_unsigned()
}

const fn unzigzag(number: u64) -> i64 {
    (number >> 1).cast_signed() ^ -((number & 1).cast_signed())
}

/// Reads entries, one at a time: holds one of them, at most about 200 KiB and its pieces.
#[derive(Debug)]
pub(crate) struct Decoder<R> {
    from: R,
    /// How many entries are left, and how many were read.
    left: u64,
    nth: u64,
    /// Size of the archive: no file has bytes beyond it.
    archive_bytes: u64,
    before: Before,
}

impl<R: Read> Decoder<R> {
    pub(crate) fn new(from: R, entries: u64, archive_bytes: u64) -> Self {
        Self { from, left: entries, nth: 0, archive_bytes, before: Before::default() }
    }

    /// The next entry; `None` after the last one.
    pub(crate) fn entry(&mut self) -> Result<Option<Entry>, EntriesError> {
        if self.left == 0 {
            return match self.from.read(&mut [0])? {
                0 => Ok(None),
                _ => Err(self.nonsense("number of entries")),
            };
        }
        let entry = self.one()?;
        self.left -= 1;
        self.nth += 1;
        Ok(Some(entry))
    }

    fn one(&mut self) -> Result<Entry, EntriesError> {
        let tag = self.number()?;
        let path = self.path()?;
        let mode = self.small("mode")?;
        let (uid, gid) = (self.small("owner")?, self.small("group")?);
        let seconds = self.before.seconds.wrapping_add(unzigzag(self.number()?));
        let nanoseconds = self.small("time")?;
        let mtime = Time::new(seconds, nanoseconds).map_err(|error| self.wrong(error))?;
        let xattrs = self.xattrs()?;
        let kind = self.kind(tag)?;
        self.before.seconds = seconds;
        Ok(Entry { path, kind, mode, uid, gid, mtime, xattrs })
    }

    fn path(&mut self) -> Result<EntryPath, EntriesError> {
        let shared = usize::try_from(self.number()?).unwrap_or(usize::MAX);
        if shared > self.before.path.len() {
            return Err(self.nonsense("path"));
        }
        let rest = self.bytes(MAX_PATH_BYTES, "path")?;
        self.before.path.truncate(shared);
        self.before.path.extend_from_slice(&rest);
        let path = EntryPath::new(&self.before.path).map_err(|error| self.wrong(error))?;
        // As it is written by us: each path has one spelling.
        if path.as_bytes() != self.before.path { Err(self.nonsense("path")) } else { Ok(path) }
    }

    fn xattrs(&mut self) -> Result<Xattrs, EntriesError> {
        let count = self.number()?;
        // Each has a name.
        if count > MAX_XATTRS_BYTES as u64 {
            return Err(self.nonsense("number of extended attributes"));
        }
        let (mut all, mut left) = (Vec::new(), MAX_XATTRS_BYTES);
        for _ in 0..count {
            let name = self.bytes(left, "extended attribute")?;
            let value = self.bytes(left.saturating_sub(name.len()), "extended attribute")?;
            left = left.saturating_sub(name.len().max(1) + value.len());
            all.push((name, value));
        }
        Xattrs::new(all).map_err(|error| self.wrong(error))
    }

    fn kind(&mut self, tag: u64) -> Result<Kind, EntriesError> {
        Ok(match tag {
            REGULAR => Kind::Regular(self.content()?),
            DIRECTORY => Kind::Directory,
            SYMLINK => {
                let target = self.bytes(MAX_PATH_BYTES, "target")?;
                Kind::Symlink(LinkTarget::new(&target).map_err(|error| self.wrong(error))?)
            }
            HARD_LINK => {
                let to = self.bytes(MAX_PATH_BYTES, "target")?;
                Kind::HardLink(EntryPath::new(&to).map_err(|error| self.wrong(error))?)
            }
            CHAR_DEVICE => Kind::CharDevice(self.device()?),
            BLOCK_DEVICE => Kind::BlockDevice(self.device()?),
            FIFO => Kind::Fifo,
            WHITEOUT => Kind::Whiteout,
            OPAQUE => Kind::Opaque,
            _ => return Err(self.nonsense("kind")),
        })
    }

    fn device(&mut self) -> Result<DeviceNumber, EntriesError> {
        let (major, minor) = (self.number()?, self.number()?);
        DeviceNumber::new(major, minor).map_err(|error| self.wrong(error))
    }

    fn content(&mut self) -> Result<Content, EntriesError> {
        let (size_bytes, count) = (self.number()?, self.number()?);
        if count > MAX_PIECES as u64 {
            return Err(self.nonsense("number of pieces"));
        }
        let (mut pieces, mut file_at) = (Vec::new(), 0_u64);
        for _ in 0..count {
            let (skip, from, len) = (self.number()?, self.number()?, self.number()?);
            let at = file_at.checked_add(skip);
            let start = self.before.end.wrapping_add_signed(unzigzag(from));
            let end = start.checked_add(len).filter(|&end| end <= self.archive_bytes);
            let range = end.and_then(|end| ByteRange::new(start, end).ok());
            let (Some(at), Some(range)) = (at, range) else { return Err(self.nonsense("place in the layer")) };
            let piece = Piece { at, range };
            file_at = piece.end();
            self.before.end = range.end();
            pieces.push(piece);
        }
        Content::new(size_bytes, pieces).map_err(|error| self.wrong(error))
    }

    fn number(&mut self) -> Result<u64, EntriesError> {
        let mut number = 0_u64;
        for nth in 0..MAX_VARINT_BYTES {
            let mut byte = [0];
            self.from.read_exact(&mut byte)?;
            let bits = u64::from(byte[0] & 0x7f);
            let placed = bits << (7 * nth);
            if placed >> (7 * nth) != bits {
                break;
            }
            number |= placed;
            if byte[0] & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(self.nonsense("numbers"))
    }

    fn small<T: TryFrom<u64>>(&mut self, what: &'static str) -> Result<T, EntriesError> {
        T::try_from(self.number()?).map_err(|_| self.nonsense(what))
    }

    fn bytes(&mut self, most: usize, what: &'static str) -> Result<Vec<u8>, EntriesError> {
        let len = usize::try_from(self.number()?).unwrap_or(usize::MAX);
        if len > most {
            return Err(self.nonsense(what));
        }
        let mut bytes = vec![0; len];
        self.from.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    const fn wrong(&self, error: EntryError) -> EntriesError {
        EntriesError::Entry { nth: self.nth, error }
    }

    const fn nonsense(&self, what: &'static str) -> EntriesError {
        EntriesError::Nonsense { nth: self.nth, what }
    }
}

#[cfg(test)]
mod tests;
