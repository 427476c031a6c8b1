//! The file that remembers what was found for one image.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
};

use penstock_blob::Digest;

use crate::state::sealed::{self, UNFINISHED};

/// Longest manifest of an index that is read, in bytes: as large as a registry gives one.
const MAX_BYTES: u64 = 4 << 20;

/// What was found for an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Remembered {
    /// It has none.
    None,
    /// The manifest of its index.
    Index(Vec<u8>),
}

/// Where what was found for the image with this manifest is remembered.
pub(super) fn path(dir: &Path, manifest: &Digest) -> PathBuf {
    dir.join(format!("{}.index", manifest.to_hex()))
}

/// What is remembered; `None` when nothing is.
///
/// # Errors
/// Why the file cannot be read or is not what was written.
pub(super) fn read(path: &Path) -> Result<Option<Remembered>, String> {
    let content = sealed::read(path, MAX_BYTES)?;
    Ok(content.map(|bytes| if bytes.is_empty() { Remembered::None } else { Remembered::Index(bytes) }))
}

/// Writes it so that it survives a power cut once this returns. Several may write for one image at once: the last one's stays.
pub(super) fn write(path: &Path, remembered: &Remembered) -> io::Result<()> {
    match remembered {
        Remembered::None => sealed::write(path, &[]),
        Remembered::Index(manifest) => sealed::write(path, manifest),
    }
}

/// Removes all files of indexes but `kept`.
pub(super) fn sweep(dir: &Path, kept: &HashSet<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().map(std::ffi::OsStr::as_encoded_bytes).unwrap_or_default();
        let ours = [".index", ".list", UNFINISHED].iter().any(|end| name.ends_with(end.as_bytes()));
        if ours && !kept.contains(&path) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_there_is_an_index_and_that_there_is_none_are_both_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(dir.path(), &Digest::of(b"image"));
        assert_eq!(read(&path), Ok(None));
        for remembered in [Remembered::None, Remembered::Index(b"{\n}".to_vec())] {
            write(&path, &remembered).unwrap();
            assert_eq!(read(&path), Ok(Some(remembered)));
        }
    }

    #[test]
    fn files_that_no_image_needs_are_swept() {
        let dir = tempfile::tempdir().unwrap();
        let [kept, index, list, half, other] =
            ["a.list", "b.index", "c.list", "d.index.unfinished", "e"].map(|name| dir.path().join(name));
        [&kept, &index, &list, &half, &other].into_iter().for_each(|path| fs::write(path, "").unwrap());
        sweep(dir.path(), &HashSet::from([kept.clone()])).unwrap();
        assert_eq!([kept, index, list, half, other].map(|path| path.exists()), [true, false, false, false, true]);
    }
}
