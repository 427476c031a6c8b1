//! One path of a layer, made of types that can only hold what a Linux file system can.
//!
//! Bounds, all of Linux (`limits.h`, `xattr.h`, `kdev_t.h`) unless said otherwise: a path has at most [`MAX_PATH_BYTES`], a name
//! [`MAX_NAME_BYTES`], the extended attributes of one path [`MAX_XATTRS_BYTES`], a file [`MAX_PIECES`] pieces.

use std::fmt;

use penstock_blob::ByteRange;

/// Most bytes of a path and of a symbolic link's target: `PATH_MAX` without its NUL.
pub const MAX_PATH_BYTES: usize = 4095;
/// Most bytes of a name: `NAME_MAX`.
pub const MAX_NAME_BYTES: usize = 255;
/// Most bytes of an extended attribute's value: `XATTR_SIZE_MAX` is 65536, of which EROFS can hold one less.
pub const MAX_VALUE_BYTES: usize = u16::MAX as usize;
/// Most bytes of the names and values of one path's extended attributes together: what `listxattr` and inodes bear.
pub const MAX_XATTRS_BYTES: usize = 128 << 10;
/// Most pieces of a sparse file; a more holey one is refused.
pub const MAX_PIECES: usize = 1 << 16;
/// Largest file in bytes: `loff_t`.
pub const MAX_FILE_BYTES: u64 = i64::MAX as u64;

/// Why something cannot be a path of a layer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryError {
    /// The path climbs out with `..`.
    #[error("the path {path:?} contains \"..\"; the layer is refused")]
    Climbs {
        /// As written, cut to 128 bytes.
        path: String,
    },
    /// The path or target is longer than Linux allows.
    #[error("a path has {bytes} bytes; at most {MAX_PATH_BYTES} are possible")]
    PathLength {
        /// Its length.
        bytes: usize,
    },
    /// A name in the path is longer than Linux allows.
    #[error("a name in {path:?} is longer than {MAX_NAME_BYTES} bytes")]
    NameLength {
        /// The path, cut to 128 bytes.
        path: String,
    },
    /// A path, target or attribute's name holds a NUL.
    #[error("{text:?} contains a NUL byte")]
    Nul {
        /// As written, cut to 128 bytes.
        text: String,
    },
    /// A symbolic link points nowhere.
    #[error("a symbolic link has an empty target")]
    EmptyTarget,
    /// The file is larger than Linux allows.
    #[error("a file claims {size_bytes} bytes; at most {MAX_FILE_BYTES} are possible")]
    Size {
        /// Its size.
        size_bytes: u64,
    },
    /// The pieces of a file overlap, are out of order, or lie beyond its end.
    #[error("piece {nth} of a file lies before the end of the one before, or beyond the end of the file")]
    Pieces {
        /// Which, counted from 0.
        nth: usize,
    },
    /// A file has too many pieces.
    #[error("a sparse file has {pieces} pieces; at most {MAX_PIECES} are supported")]
    TooManyPieces {
        /// How many.
        pieces: usize,
    },
    /// An extended attribute has no name or too long a one.
    #[error("the extended attribute {name:?} has no usable name")]
    XattrName {
        /// Its name, cut to 128 bytes.
        name: String,
    },
    /// The extended attributes of a path are too long.
    #[error(
        "extended attributes of {bytes} bytes; at most {MAX_VALUE_BYTES} for one and {MAX_XATTRS_BYTES} for a path are possible"
    )]
    XattrLength {
        /// Their length.
        bytes: usize,
    },
    /// The device number does not exist.
    #[error("device {major}:{minor} does not exist; a major has 12 bits and a minor 20")]
    Device {
        /// Its major number.
        major: u64,
        /// Its minor number.
        minor: u64,
    },
    /// A fraction of a second that is none.
    #[error("{nanoseconds} nanoseconds are a second or more")]
    Time {
        /// The fraction.
        nanoseconds: u32,
    },
}

/// Bytes as text for an error: cut, and with what is not UTF-8 replaced.
pub(crate) fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(128)]).into_owned()
}

/// A path below the root of a layer: names joined by single slashes, none empty, `.` or `..`. The root itself is the empty path.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct EntryPath(Box<[u8]>);

impl EntryPath {
    /// The root of the layer.
    #[must_use]
    pub fn root() -> Self {
        Self::default()
    }

    /// The path as an archive writes it: leading, doubled and trailing slashes and `.` are dropped, as they are when it is
    /// unpacked below a directory.
    ///
    /// # Errors
    /// [`EntryError::Climbs`] for any `..`; [`EntryError::PathLength`], [`EntryError::NameLength`], [`EntryError::Nul`].
    pub fn new(written: &[u8]) -> Result<Self, EntryError> {
        if written.contains(&0) {
            return Err(EntryError::Nul { text: shown(written) });
        }
        let mut path = Vec::with_capacity(written.len().min(MAX_PATH_BYTES));
        for name in written.split(|&byte| byte == b'/') {
            match name {
                b"" | b"." => continue,
                b".." => return Err(EntryError::Climbs { path: shown(written) }),
                name if name.len() > MAX_NAME_BYTES => return Err(EntryError::NameLength { path: shown(written) }),
                _ => {}
            }
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name);
            if path.len() > MAX_PATH_BYTES {
                return Err(EntryError::PathLength { bytes: written.len() });
            }
        }
        Ok(Self(path.into()))
    }

    /// The bytes of the path, without a leading slash; empty for the root.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether this is the root of the layer.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The names from the root on.
    pub fn names(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|&byte| byte == b'/').filter(|name| !name.is_empty())
    }

    /// The directory that holds it, and its name there; `None` for the root.
    #[must_use]
    pub fn split_last(&self) -> Option<(Self, &[u8])> {
        let name = self.names().next_back()?;
        let parent = &self.0[..self.0.len() - name.len()];
        let parent = parent.strip_suffix(b"/").unwrap_or(parent);
        Some((Self(parent.into()), name))
    }
}

impl fmt::Display for EntryPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for EntryPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

/// Where a symbolic link points: any bytes but NUL, 1 to [`MAX_PATH_BYTES`] of them. Whoever follows it is the one to be careful.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct LinkTarget(Box<[u8]>);

impl LinkTarget {
    /// The target as written.
    ///
    /// # Errors
    /// [`EntryError::EmptyTarget`], [`EntryError::PathLength`], [`EntryError::Nul`].
    pub fn new(written: &[u8]) -> Result<Self, EntryError> {
        match written {
            [] => Err(EntryError::EmptyTarget),
            _ if written.len() > MAX_PATH_BYTES => Err(EntryError::PathLength { bytes: written.len() }),
            _ if written.contains(&0) => Err(EntryError::Nul { text: shown(written) }),
            _ => Ok(Self(written.into())),
        }
    }

    /// The bytes of the target.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for LinkTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

/// A run of a file's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Piece {
    /// Where it starts in the file, in bytes.
    pub at: u64,
    /// Which bytes of the uncompressed layer it is.
    pub range: ByteRange,
}

impl Piece {
    /// One past its last byte in the file. Of a piece of a [`Content`] it lies within the file.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.at.saturating_add(self.range.len())
    }
}

/// What a regular file holds: pieces in order, without overlap, within its size; zeros between them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Content {
    size_bytes: u64,
    pieces: Box<[Piece]>,
}

impl Content {
    /// A file of `size_bytes` with these pieces.
    ///
    /// # Errors
    /// [`EntryError::Size`], [`EntryError::TooManyPieces`], [`EntryError::Pieces`].
    pub fn new(size_bytes: u64, pieces: Vec<Piece>) -> Result<Self, EntryError> {
        if size_bytes > MAX_FILE_BYTES {
            return Err(EntryError::Size { size_bytes });
        }
        if pieces.len() > MAX_PIECES {
            return Err(EntryError::TooManyPieces { pieces: pieces.len() });
        }
        let mut end = 0;
        for (nth, piece) in pieces.iter().enumerate() {
            let until = piece.at.checked_add(piece.range.len()).filter(|&until| until <= size_bytes);
            end = until.filter(|_| piece.at >= end).ok_or(EntryError::Pieces { nth })?;
        }
        Ok(Self { size_bytes, pieces: pieces.into() })
    }

    /// A file whose bytes are these of the layer; an empty one without.
    ///
    /// # Errors
    /// [`EntryError::Size`].
    pub fn whole(range: Option<ByteRange>) -> Result<Self, EntryError> {
        let pieces: Vec<Piece> = range.into_iter().map(|range| Piece { at: 0, range }).collect();
        Self::new(range.map_or(0, ByteRange::len), pieces)
    }

    /// Size of the file in bytes, holes included.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The pieces that are not holes, in order.
    #[must_use]
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }
}

/// The extended attributes of a path: full names (`user.x`, `security.capability`) and values, sorted by name, each name once.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Xattrs(Box<[Xattr]>);

/// A name and its value.
type Xattr = (Box<[u8]>, Box<[u8]>);

impl Xattrs {
    /// These attributes; of a name that comes twice the last value counts.
    ///
    /// # Errors
    /// [`EntryError::XattrName`], [`EntryError::XattrLength`], [`EntryError::Nul`].
    pub fn new(mut written: Vec<(Vec<u8>, Vec<u8>)>) -> Result<Self, EntryError> {
        let mut bytes = 0_usize;
        for (name, value) in &written {
            if name.is_empty() || name.len() > MAX_NAME_BYTES {
                return Err(EntryError::XattrName { name: shown(name) });
            }
            if name.contains(&0) {
                return Err(EntryError::Nul { text: shown(name) });
            }
            bytes = bytes.saturating_add(name.len() + value.len());
            if value.len() > MAX_VALUE_BYTES || bytes > MAX_XATTRS_BYTES {
                return Err(EntryError::XattrLength { bytes });
            }
        }
        // Stable, and reversed before: the last of a name comes first and is kept.
        written.reverse();
        written.sort_by(|(a, _), (b, _)| a.cmp(b));
        written.dedup_by(|(next, _), (kept, _)| next == kept);
        Ok(Self(written.into_iter().map(|(name, value)| (name.into(), value.into())).collect()))
    }

    /// Names and values, sorted by name.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&[u8], &[u8])> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The number of a device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceNumber {
    major: u32,
    minor: u32,
}

impl DeviceNumber {
    /// A device by its numbers.
    ///
    /// # Errors
    /// [`EntryError::Device`].
    pub fn new(major: u64, minor: u64) -> Result<Self, EntryError> {
        let wrong = EntryError::Device { major, minor };
        match (u32::try_from(major), u32::try_from(minor)) {
            (Ok(major), Ok(minor)) if major < 1 << 12 && minor < 1 << 20 => Ok(Self { major, minor }),
            _ => Err(wrong),
        }
    }

    /// The major number, below 2^12.
    #[must_use]
    pub const fn major(self) -> u32 {
        self.major
    }

    /// The minor number, below 2^20.
    #[must_use]
    pub const fn minor(self) -> u32 {
        self.minor
    }
}

/// A time: seconds since 1970, which may be negative, and a fraction that counts forwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time {
    seconds: i64,
    nanoseconds: u32,
}

impl Time {
    /// A time in seconds and nanoseconds.
    ///
    /// # Errors
    /// [`EntryError::Time`] for a second of nanoseconds or more.
    pub const fn new(seconds: i64, nanoseconds: u32) -> Result<Self, EntryError> {
        if nanoseconds >= 1_000_000_000 {
            return Err(EntryError::Time { nanoseconds });
        }
        Ok(Self { seconds, nanoseconds })
    }

    /// Whole seconds since 1970, rounded down.
    #[must_use]
    pub const fn seconds(self) -> i64 {
        self.seconds
    }

    /// The rest in nanoseconds, below a second.
    #[must_use]
    pub const fn nanoseconds(self) -> u32 {
        self.nanoseconds
    }
}

/// What a path of a layer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A file.
    Regular(Content),
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink(LinkTarget),
    /// Another name of a path that came before it in the layer. Its attributes are those of that path.
    HardLink(EntryPath),
    /// A character device.
    CharDevice(DeviceNumber),
    /// A block device.
    BlockDevice(DeviceNumber),
    /// A named pipe.
    Fifo,
    /// The path is hidden in the layers below (OCI's `.wh.NAME`).
    Whiteout,
    /// The path is a directory of which nothing in the layers below shows (OCI's `.wh..wh..opq` in it). Says nothing about its
    /// attributes.
    Opaque,
}

/// One path of a layer, in the order of its archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Which path.
    pub path: EntryPath,
    /// What it is.
    pub kind: Kind,
    /// Permissions, set-user-ID, set-group-ID and sticky: the low 12 bits of `st_mode`; others are ignored.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification.
    pub mtime: Time,
    /// Extended attributes.
    pub xattrs: Xattrs,
}

#[cfg(test)]
mod tests;
