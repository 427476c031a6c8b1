//! Recordings in the state directory: `<hex digest of the manifest>.recording`, each a file of docs/formats/recording.md.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use penstock_blob::Digest;
use penstock_image::recording::{MAX_BYTES, Recording};

/// Most recordings kept; beyond it the oldest go. A node starts fewer images, and as many of the largest take 320 MiB.
const MOST: usize = 1024;
/// Ends the name of a recording.
const EXTENSION: &str = "recording";
/// Ends the name of one that is being written.
const UNFINISHED: &str = ".unfinished";

/// Where the recording of the image with this manifest is.
pub(super) fn path(dir: &Path, manifest: &Digest) -> PathBuf {
    dir.join(format!("{}.{EXTENSION}", manifest.to_hex()))
}

/// A recording on this node.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub(super) recording: Recording,
    pub(super) file_bytes: u64,
    pub(super) at: SystemTime,
}

/// The recording of an image; `None` when there is none.
///
/// # Errors
/// Why the file cannot be read, or is no recording.
pub(super) fn read(path: &Path) -> Result<Option<Kept>, String> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{} cannot be read: {error}", path.display())),
    };
    let failed = |error: io::Error| format!("{} cannot be read: {error}", path.display());
    let at = file.metadata().and_then(|about| about.modified()).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    let recording = Recording::parse(&bytes).map_err(|error| format!("{} is not used: {error}", path.display()))?;
    Ok(Some(Kept { recording, file_bytes: bytes.len() as u64, at }))
}

/// Writes a recording in place of the one before, and removes the oldest when there are too many. It has a checksum: it need not be synced.
pub(super) fn write(dir: &Path, recording: &Recording) -> io::Result<()> {
    let mut file = tempfile::Builder::new().suffix(UNFINISHED).tempfile_in(dir)?;
    file.write_all(&recording.encode())?;
    file.persist(path(dir, &recording.manifest()))?;
    let mut all = paths(dir)?;
    if all.len() > MOST {
        all.sort_by_cached_key(|path| fs::metadata(path).and_then(|about| about.modified()).ok());
        let surplus = all.len() - MOST;
        all.into_iter().take(surplus).try_for_each(fs::remove_file)?;
    }
    Ok(())
}

/// Removes the recording of an image; whether there was one.
pub(super) fn remove(dir: &Path, manifest: &Digest) -> io::Result<bool> {
    match fs::remove_file(path(dir, manifest)) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// All recordings that can be read, the newest first.
pub(super) fn list(dir: &Path) -> io::Result<Vec<Kept>> {
    let mut all: Vec<Kept> = paths(dir)?.iter().filter_map(|path| read(path).ok()?).collect();
    all.sort_by_key(|kept| (std::cmp::Reverse(kept.at), kept.recording.manifest()));
    Ok(all)
}

/// Removes what an agent that was killed had not finished.
pub(super) fn sweep(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.as_os_str().as_encoded_bytes().ends_with(UNFINISHED.as_bytes()) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

fn paths(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let is_one = |path: &PathBuf| path.extension().is_some_and(|extension| extension == EXTENSION);
    let paths = fs::read_dir(dir)?.map(|entry| entry.map(|entry| entry.path()));
    paths.filter(|path| path.as_ref().map_or(true, is_one)).collect()
}

#[cfg(test)]
mod tests {
    use penstock_blob::{Blob, ByteRange};
    use penstock_image::recording::Recorder;

    use super::*;

    fn recording(name: &[u8]) -> Recording {
        let mut recorder = Recorder::new(Digest::of(name));
        let blob = Blob { digest: Digest::of(b"blob"), size_bytes: 10_000 };
        recorder.need(&blob, ByteRange::at(0, 5000).unwrap());
        recorder.into_recording()
    }

    #[test]
    fn a_recording_is_kept_found_listed_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (recording(b"one"), recording(b"two"));
        assert!(read(&path(dir.path(), &one.manifest())).unwrap().is_none());
        write(dir.path(), &one).unwrap();
        write(dir.path(), &two).unwrap();
        let kept = read(&path(dir.path(), &one.manifest())).unwrap().unwrap();
        assert_eq!((&kept.recording, kept.file_bytes), (&one, one.encode().len() as u64));
        fs::write(dir.path().join("x.unfinished"), "").unwrap();
        sweep(dir.path()).unwrap();
        assert_eq!(list(dir.path()).unwrap().len(), 2);
        assert!(remove(dir.path(), &one.manifest()).unwrap() && !remove(dir.path(), &one.manifest()).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_damaged_recording_is_named_and_not_listed() {
        let dir = tempfile::tempdir().unwrap();
        let one = recording(b"one");
        write(dir.path(), &one).unwrap();
        let path = path(dir.path(), &one.manifest());
        let mut bytes = fs::read(&path).unwrap();
        bytes[60] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert!(read(&path).unwrap_err().contains("checksum"));
        assert!(list(dir.path()).unwrap().is_empty());
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many() {
        let dir = tempfile::tempdir().unwrap();
        for nth in 0..MOST {
            let path = path(dir.path(), &Digest::of(&nth.to_le_bytes()));
            let file = File::create(path).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(nth as u64 + 1)).unwrap();
        }
        write(dir.path(), &recording(b"new")).unwrap();
        assert_eq!(paths(dir.path()).unwrap().len(), MOST);
        assert!(!path(dir.path(), &Digest::of(&0_usize.to_le_bytes())).exists());
        assert!(path(dir.path(), &Digest::of(b"new")).exists());
    }
}
