//! The file that remembers what was found for one image.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use penstock_blob::Digest;

/// Longest file read, in bytes: the largest manifest, and the line before it.
const MAX_BYTES: u64 = (4 << 20) + 80;
/// Ends the name of a file that is being written.
const UNFINISHED: &str = ".unfinished";

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
    let mut bytes = Vec::new();
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{} cannot be read: {error}", path.display())),
    };
    let damaged = || format!("{} is damaged", path.display());
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|error| format!("{}: {error}", damaged()))?;
    let end = bytes.iter().position(|&byte| byte == b'\n').ok_or_else(damaged)?;
    let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
    if bytes.len() as u64 > MAX_BYTES || line != Digest::of(rest).to_string().as_bytes() {
        return Err(damaged());
    }
    Ok(Some(if rest.is_empty() { Remembered::None } else { Remembered::Index(rest.to_vec()) }))
}

/// Writes it so that it survives a power cut once this returns. Several may write for one image at once: the last one's stays.
pub(super) fn write(path: &Path, remembered: &Remembered) -> io::Result<()> {
    let rest = match remembered {
        Remembered::None => &[],
        Remembered::Index(manifest) => manifest.as_slice(),
    };
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().suffix(UNFINISHED).tempfile_in(dir)?;
    writeln!(file, "{}", Digest::of(rest))?;
    file.write_all(rest)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(dir)?.sync_all()
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
    fn what_was_written_is_read_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(dir.path(), &Digest::of(b"image"));
        assert_eq!(read(&path), Ok(None));
        for remembered in [Remembered::None, Remembered::Index(b"{\n}".to_vec())] {
            write(&path, &remembered).unwrap();
            assert_eq!(read(&path), Ok(Some(remembered)));
        }
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).unwrap();
            assert!(read(&path).is_err(), "byte {at}");
            fs::write(&path, &good[..at]).unwrap();
            assert!(read(&path).is_err(), "cut to {at}");
        }
        fs::write(&path, vec![b'x'; usize::try_from(MAX_BYTES).unwrap() + 1]).unwrap();
        assert!(read(&path).is_err());
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
