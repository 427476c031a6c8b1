//! Bytes that are already here, and stay while somebody looks at them.

use std::{fmt, fs::File, io, os::unix::fs::FileExt, sync::Arc};

use bytes::Bytes;

use crate::ByteRange;

/// Somebody who keeps a range of a file in place until told that the reader is done: the cache's side of a pin.
pub trait Pinned: fmt::Debug + Send + Sync {
    /// The file that holds the bytes.
    fn file(&self) -> &File;

    /// Called once for each [`Located`] made, when it is dropped. `range` is what was given to [`Located::in_file`].
    fn unpin(&self, range: ByteRange);
}

/// Where bytes already are. While it lives they stay there, whole and unchanged.
pub struct Located(Place);

enum Place {
    File { pinned: Arc<dyn Pinned>, range: ByteRange, offset: u64 },
    Memory(Bytes),
}

impl Located {
    /// Bytes `range` of a blob, at `offset` of the pinned file. The caller has taken the pin; the drop gives it back.
    #[must_use]
    pub fn in_file(pinned: Arc<dyn Pinned>, range: ByteRange, offset: u64) -> Self {
        Self(Place::File { pinned, range, offset })
    }

    /// Bytes in memory, such as a fetch that could not be stored.
    #[must_use]
    pub const fn in_memory(bytes: Bytes) -> Self {
        Self(Place::Memory(bytes))
    }

    /// How many bytes were located.
    #[must_use]
    pub fn len(&self) -> u64 {
        match &self.0 {
            Place::File { range, .. } => range.len(),
            Place::Memory(bytes) => bytes.len() as u64,
        }
    }

    /// Whether no byte was located (possible only for empty memory).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The file and the offset in it, when the bytes are in one: for a transport that can splice or read on its own ring.
    #[must_use]
    pub fn as_file(&self) -> Option<(&File, u64)> {
        match &self.0 {
            Place::File { pinned, offset, .. } => Some((pinned.file(), *offset)),
            Place::Memory(_) => None,
        }
    }

    /// The bytes, when they are in memory.
    #[must_use]
    pub const fn as_memory(&self) -> Option<&Bytes> {
        match &self.0 {
            Place::File { .. } => None,
            Place::Memory(bytes) => Some(bytes),
        }
    }

    /// Fills `buf` with the bytes from `skip` on (counted from the first located byte).
    ///
    /// # Errors
    /// `InvalidInput` when `skip + buf.len()` lies beyond what was located; otherwise what the file's read says, with
    /// `UnexpectedEof` for a file that was cut short behind our back.
    pub fn read_at(&self, buf: &mut [u8], skip: u64) -> io::Result<()> {
        let end = skip.checked_add(buf.len() as u64).filter(|&end| end <= self.len());
        if end.is_none() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "read beyond the located bytes"));
        }
        match &self.0 {
            Place::File { pinned, offset, .. } => pinned.file().read_exact_at(buf, offset + skip),
            Place::Memory(bytes) => {
                let start = usize::try_from(skip).map_err(io::Error::other)?;
                buf.copy_from_slice(&bytes[start..start + buf.len()]);
                Ok(())
            }
        }
    }
}

impl Drop for Located {
    fn drop(&mut self) {
        if let Place::File { pinned, range, .. } = &self.0 {
            pinned.unpin(*range);
        }
    }
}

impl fmt::Debug for Located {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Place::File { range, offset, .. } => write!(f, "Located({range} at file offset {offset})"),
            Place::Memory(bytes) => write!(f, "Located({} bytes in memory)", bytes.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[derive(Debug)]
    struct Count {
        file: File,
        unpinned: AtomicU32,
    }

    impl Pinned for Count {
        fn file(&self) -> &File {
            &self.file
        }
        fn unpin(&self, _: ByteRange) {
            self.unpinned.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn reads_stay_inside_and_the_pin_is_given_back_once() {
        let path = std::env::temp_dir().join(format!("penstock-located-{}", std::process::id()));
        let mut file = File::options().create(true).truncate(true).read(true).write(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file.write_all(b"0123456789").unwrap();
        let pinned = Arc::new(Count { file, unpinned: AtomicU32::new(0) });
        let located = Located::in_file(pinned.clone(), ByteRange::new(102, 106).unwrap(), 2);
        let mut buf = [0; 2];
        located.read_at(&mut buf, 2).unwrap();
        assert_eq!(&buf, b"45");
        assert_eq!(located.read_at(&mut buf, 3).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(located.read_at(&mut buf, u64::MAX).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(pinned.unpinned.load(Ordering::Relaxed), 0);
        drop(located);
        assert_eq!(pinned.unpinned.load(Ordering::Relaxed), 1);

        let memory = Located::in_memory(Bytes::from_static(b"abc"));
        memory.read_at(&mut buf, 1).unwrap();
        assert_eq!(&buf, b"bc");
        assert_eq!(memory.read_at(&mut buf, 2).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
