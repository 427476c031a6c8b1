//! Reading the cache's files, and telling what came from memory from what a disk was waited for.
//!
//! A read that must not wait (`RWF_NOWAIT`) comes first: what the page cache has it brings, at the price of the one call that is needed anyway.

use std::io::{self, IoSliceMut};

use penstock_blob::Located;
use rustix::io::{Errno, ReadWriteFlags, preadv2};

/// How one thread reads.
#[derive(Debug, Default)]
pub(crate) struct Files {
    /// Whether a disk was waited for since [`Files::begin`], as far as can be told.
    waited: bool,
    /// Whether the file system cannot tell: then every read of a file counts as one that waited.
    blind: bool,
}

impl Files {
    /// Something new is read.
    pub(crate) const fn begin(&mut self) {
        self.waited = false;
    }

    /// Whether a disk was waited for since.
    pub(crate) const fn have_waited(&self) -> bool {
        self.waited
    }

    /// Fills `buf` with located bytes from `skip` on.
    pub(crate) fn read(&mut self, located: &Located, buf: &mut [u8], skip: u64) -> io::Result<()> {
        let resident = self.resident(located, buf, skip);
        if resident == buf.len() {
            return Ok(());
        }
        self.waited |= located.as_file().is_some();
        located.read_at(&mut buf[resident..], skip.saturating_add(resident as u64))
    }

    /// Fills the beginning of `buf` with what is there without waiting; how many bytes. What goes wrong is for a plain read to tell.
    fn resident(&mut self, located: &Located, buf: &mut [u8], skip: u64) -> usize {
        let is_inside = skip.checked_add(buf.len() as u64).is_some_and(|end| end <= located.len());
        let Some((file, offset)) = located.as_file().filter(|_| is_inside && !self.blind) else { return 0 };
        match preadv2(file, &mut [IoSliceMut::new(buf)], offset + skip, ReadWriteFlags::NOWAIT) {
            Ok(bytes) => bytes,
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                self.blind = true;
                0
            }
            Err(_) => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write as _, sync::Arc};

    use penstock_blob::{ByteRange, Pinned};

    use super::*;

    #[derive(Debug)]
    struct Kept(File);

    impl Pinned for Kept {
        fn file(&self) -> &File {
            &self.0
        }

        fn unpin(&self, _: ByteRange) {}
    }

    fn located(bytes: &[u8]) -> Located {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Located::in_file(Arc::new(Kept(file)), ByteRange::new(0, bytes.len() as u64).unwrap(), 0)
    }

    #[test]
    fn bytes_are_the_same_whether_or_not_the_file_system_can_tell() {
        let (bytes, mut files) = ((0..10_000_u32).map(|n| n.to_le_bytes()[0]).collect::<Vec<u8>>(), Files::default());
        let file = located(&bytes);
        for blind in [false, true] {
            files.blind |= blind;
            let mut buf = vec![0; 5000];
            files.begin();
            files.read(&file, &mut buf, 3000).unwrap();
            assert_eq!(buf, bytes[3000..8000]);
            // What was just written is in the page cache; who cannot tell says that it waited.
            assert_eq!(files.have_waited(), files.blind);
        }
    }

    #[test]
    fn memory_is_never_waited_for_and_what_lies_outside_is_refused() {
        let mut files = Files::default();
        let memory = Located::in_memory(bytes::Bytes::from_static(b"abcdef"));
        let mut buf = [0; 3];
        files.read(&memory, &mut buf, 2).unwrap();
        assert_eq!((&buf, files.have_waited()), (b"cde", false));
        for located in [memory, located(b"abcdef")] {
            assert_eq!(files.read(&located, &mut buf, 4).unwrap_err().kind(), io::ErrorKind::InvalidInput);
            assert_eq!(files.read(&located, &mut buf, u64::MAX).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn a_file_that_was_cut_short_is_an_error() {
        let file = located(b"abcdef");
        file.as_file().unwrap().0.set_len(4).unwrap();
        let error = Files::default().read(&file, &mut [0; 6], 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
