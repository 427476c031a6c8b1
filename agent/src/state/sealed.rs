//! Files that prove themselves: a line with the sha256 of what follows, then that. Written whole or not at all.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    path::Path,
};

use penstock_blob::Digest;

/// Ends the name of a file that is being written.
pub(crate) const UNFINISHED: &str = ".unfinished";

/// Bytes of the line before the content: a digest and the line's end.
const LINE_BYTES: u64 = 72;

/// What was written, of at most `most_bytes`; `None` when there is no such file.
///
/// # Errors
/// Why the file cannot be read or is not what was written.
pub(crate) fn read(path: &Path, most_bytes: u64) -> Result<Option<Vec<u8>>, String> {
    let mut bytes = Vec::new();
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{} cannot be read: {error}", path.display())),
    };
    let damaged = || format!("{} is damaged", path.display());
    let most_bytes = most_bytes + LINE_BYTES;
    file.take(most_bytes + 1).read_to_end(&mut bytes).map_err(|error| format!("{}: {error}", damaged()))?;
    let end = bytes.iter().position(|&byte| byte == b'\n').ok_or_else(damaged)?;
    if bytes.len() as u64 > most_bytes || &bytes[..end] != Digest::of(&bytes[end + 1..]).to_string().as_bytes() {
        return Err(damaged());
    }
    Ok(Some(bytes.split_off(end + 1)))
}

/// Writes it so that it survives a power cut once this returns. Several may write the same at once: the last one's stays.
pub(crate) fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().suffix(UNFINISHED).tempfile_in(dir)?;
    writeln!(file, "{}", Digest::of(content))?;
    file.write_all(content)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_was_written_is_read_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        assert_eq!(read(&path, 10), Ok(None));
        for content in [&b""[..], b"{\n}", b"0123456789"] {
            write(&path, content).unwrap();
            assert_eq!(read(&path, 10), Ok(Some(content.to_vec())));
        }
        let good = fs::read(&path).unwrap();
        assert_eq!(good.len() as u64, LINE_BYTES + 10);
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).unwrap();
            assert!(read(&path, 10).is_err(), "byte {at}");
            fs::write(&path, &good[..at]).unwrap();
            assert!(read(&path, 10).is_err(), "cut to {at}");
        }
        fs::write(&path, &good).unwrap();
        assert!(read(&path, 9).is_err(), "longer than allowed");
    }
}
