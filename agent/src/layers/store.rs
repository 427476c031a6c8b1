//! The indexes of layers that are kept on this node: `<state_dir>/layers/<hex digest of the layer>.<origin>.index`, and those that are believed for one
//! image alone: `<hex digest of the layer>.<origin>-<hex digest of the image's manifest>.index`.
//!
//! An index appears there whole, on disk, under its name. It is opened from there each time; one that is damaged is removed.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use penstock_blob::{Blob, Digest, Hasher};
use penstock_image::OciLayer;
use penstock_layers::{
    Index, IndexError, Layer,
    foreign::turbo::{self, Pair},
};

use super::{artifact::Listed, origin::Own};
use crate::state::sealed::UNFINISHED;

/// Ends the name of a file.
const ENDING: &str = ".index";
/// Bytes read at once to hash an index.
const PIECE_BYTES: usize = 1 << 20;

/// Why an index is not kept, or cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// The index is not usable, or of something else.
    #[error("the layer index is not usable: {reason}")]
    Refused {
        /// Why not.
        reason: String,
    },
    /// The system refused.
    #[error("{doing} failed: {error}")]
    Io {
        /// What was done.
        doing: &'static str,
        /// What it says.
        #[source]
        error: io::Error,
    },
}

/// An index that is kept.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) index: Index,
    /// Of the index itself.
    pub(super) digest: Digest,
    /// Of the index itself.
    pub(super) size_bytes: u64,
    /// The name of its origin.
    pub(super) origin: &'static str,
}

impl Kept {
    /// What a device is made of by it.
    pub(super) fn layer(&self) -> OciLayer {
        OciLayer { blob: self.index.layer().unpacked, contents: self.digest }
    }
}

/// What an index that is kept is of.
#[derive(Debug, Clone, Copy)]
pub(super) enum Of {
    /// This layer.
    Layer(Blob),
    /// The ordinary layer that a TurboOCI layer is about, as that one says; kept under the name of that one.
    Target(Pair),
}

impl From<&Blob> for Of {
    fn from(layer: &Blob) -> Self {
        Self::Layer(*layer)
    }
}

impl Of {
    /// The layer under whose name it is kept.
    const fn name(&self) -> &Digest {
        match self {
            Self::Layer(layer) => &layer.digest,
            Self::Target(pair) => &pair.metadata,
        }
    }

    /// Why an index that says to be of `layer` is not meant.
    fn refuse(&self, layer: &Layer) -> Result<(), StoreError> {
        let of = layer.packed;
        let (is_meant, wanted) = match self {
            Self::Layer(layer) => (of == *layer, layer.digest),
            Self::Target(pair) => {
                let archive = turbo::archive(&pair.target, &pair.metadata);
                (of.digest == pair.target && layer.unpacked.digest == archive, pair.target)
            }
        };
        let reason = || format!("it is of {} ({} bytes), not of {wanted}", of.digest, of.size_bytes);
        if is_meant { Ok(()) } else { Err(StoreError::Refused { reason: reason() }) }
    }
}

/// Whose word an index is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Word {
    /// The name of its origin.
    pub(super) origin: &'static str,
    /// The manifest of the only image for which it is believed.
    pub(super) image: Option<Digest>,
}

impl Word {
    /// An origin that proves what it says, whatever the image.
    pub(super) const fn any(origin: &'static str) -> Self {
        Self { origin, image: None }
    }
}

/// The indexes, and where the tables made of them are.
#[derive(Debug)]
pub(super) struct Store {
    dir: PathBuf,
    maps: PathBuf,
}

fn failed(doing: &'static str) -> impl Fn(io::Error) -> StoreError {
    move |error| StoreError::Io { doing, error }
}

impl Store {
    pub(super) fn new(dir: &Path, maps: &Path) -> Self {
        Self { dir: dir.to_path_buf(), maps: maps.to_path_buf() }
    }

    pub(super) fn maps(&self) -> &Path {
        &self.maps
    }

    fn path(&self, packed: &Digest, word: Word) -> PathBuf {
        let image = word.image.map(|image| format!("-{}", image.to_hex())).unwrap_or_default();
        self.dir.join(format!("{}.{}{image}{ENDING}", packed.to_hex(), word.origin))
    }

    /// The index of `of`, from the first of these of which one is kept. Touches it, so that it counts as used.
    pub(super) fn find(&self, of: impl Into<Of>, words: &[Word]) -> Result<Option<Kept>, StoreError> {
        let of = of.into();
        for word in words {
            let path = self.path(of.name(), *word);
            let file = match File::open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed("opening a layer index")(error)),
            };
            // Best effort: an index that looks unused is collected, and found again.
            let _touched = file.set_modified(SystemTime::now());
            match open(file, of, *word) {
                Ok(kept) => return Ok(Some(kept)),
                Err(StoreError::Refused { reason }) => {
                    tracing::warn!(path = %path.display(), reason, "a layer index that is kept cannot be used; it is removed");
                    fs::remove_file(&path).map_err(failed("removing a layer index"))?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// The index of `packed` that this node made itself, and its file.
    pub(super) fn own(&self, packed: &Blob) -> Result<Option<(Listed, PathBuf)>, StoreError> {
        let Some(kept) = self.find(packed, &[Word::any(Own::NAME)])? else { return Ok(None) };
        let path = self.path(&packed.digest, Word::any(Own::NAME));
        let (digest, size_bytes) = (kept.digest, kept.size_bytes);
        let (diff_id, index) = (kept.index.layer().unpacked.digest, Blob { digest, size_bytes });
        Ok(Some((Listed { layer: *packed, diff_id, index }, path)))
    }

    /// An empty file to write an index to; it goes when the answer is dropped.
    pub(super) fn scratch(&self) -> Result<tempfile::TempPath, StoreError> {
        let made = tempfile::Builder::new().suffix(UNFINISHED).tempfile_in(&self.dir);
        made.map(tempfile::NamedTempFile::into_temp_path).map_err(failed("making room for a layer index"))
    }

    /// Keeps the index in `scratch`, when it is one of `of`, durably.
    pub(super) fn keep(&self, scratch: tempfile::TempPath, of: impl Into<Of>, word: Word) -> Result<Kept, StoreError> {
        let of = of.into();
        let writing = failed("keeping a layer index");
        let file = File::open(&scratch).map_err(&writing)?;
        file.sync_all().map_err(&writing)?;
        let kept = open(file, of, word)?;
        scratch.persist(self.path(of.name(), word)).map_err(|error| writing(error.error))?;
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(&writing)?;
        Ok(kept)
    }

    /// Removes the indexes of layers that are not `named` and were not used since `before`, and what was never finished then. The bytes freed.
    pub(super) fn collect(&self, named: &HashSet<Digest>, before: SystemTime) -> io::Result<u64> {
        let mut freed = 0;
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            let name = entry.file_name();
            let name = name.to_str().unwrap_or_default();
            let hex = name.strip_suffix(ENDING).and_then(|name| name.split_once('.')).map(|(hex, _)| hex);
            let layer = hex.and_then(|hex| format!("sha256:{hex}").parse::<Digest>().ok());
            let is_ours = name.ends_with(UNFINISHED) || layer.is_some_and(|layer| !named.contains(&layer));
            if is_ours && metadata.modified()? < before {
                fs::remove_file(entry.path())?;
                freed += metadata.len();
            }
        }
        Ok(freed)
    }
}

/// The kind of the names of archives that are not known by their diff IDs.
const BELIEVED: &str = "believed";

/// The index in a file, when it is one of `of`.
///
/// What an index says that is believed for one image may be a lie, and another layer may be said to have the same archive. So the archive has a name of its own, made
/// from what the index is: what is decoded by it is kept apart from what is decoded by any other.
fn open(mut file: File, of: Of, word: Word) -> Result<Kept, StoreError> {
    let reading = failed("reading a layer index");
    let (mut hasher, mut piece, mut size_bytes) = (Hasher::new(), vec![0; PIECE_BYTES], 0);
    loop {
        match file.read(&mut piece).map_err(&reading)? {
            0 => break,
            read => {
                hasher.update(&piece[..read]);
                size_bytes += read as u64;
            }
        }
    }
    let index = match Index::open(file) {
        Ok(index) => index,
        Err(IndexError::Io(error)) => return Err(reading(error)),
        Err(error) => return Err(StoreError::Refused { reason: error.to_string() }),
    };
    of.refuse(index.layer())?;
    let (digest, archive) = (hasher.finish(), index.layer().unpacked.digest);
    let is_apart = word.image.is_some() && !archive.is_derived();
    let index = if is_apart { index.renamed(Digest::derived(BELIEVED, &[archive, digest])) } else { index };
    Ok(Kept { index, digest, size_bytes, origin: word.origin })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use penstock_layers::Builder;

    use super::*;

    /// An index of an empty archive, written to `to`; the layer it is of.
    fn write(to: &Path) -> Blob {
        let archive = vec![0; 1024];
        let packed = Blob { digest: Digest::of(&archive), size_bytes: 1024 };
        let mut builder = Builder::create(to, packed, packed.digest).unwrap();
        builder.push(&archive).unwrap();
        builder.finish().unwrap();
        packed
    }

    #[test]
    fn an_index_is_found_by_its_layer_in_the_order_of_origins_and_a_damaged_one_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path(), dir.path());
        let mut packed = None;
        for origin in ["own", "pushed"] {
            let scratch = store.scratch().unwrap();
            let of = write(&scratch);
            assert_eq!(store.keep(scratch, &of, Word::any(origin)).unwrap().index.layer().packed, of);
            packed = Some(of);
        }
        let packed = packed.unwrap();
        let found = |origins: &[&'static str]| {
            let words: Vec<Word> = origins.iter().map(|origin| Word::any(origin)).collect();
            store.find(&packed, &words).unwrap().map(|kept| kept.origin)
        };
        assert_eq!(found(&["pushed", "own"]), Some("pushed"));
        assert_eq!(found(&["other"]), None);
        let path = store.path(&packed.digest, Word::any("pushed"));
        fs::write(&path, &fs::read(&path).unwrap()[..4096]).unwrap();
        assert_eq!((found(&["pushed", "own"]), path.exists()), (Some("own"), false));
    }

    #[test]
    fn what_is_believed_for_one_image_is_not_found_for_another_and_has_an_archive_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path(), dir.path());
        let word = |name: &[u8]| Word { origin: "pushed", image: Some(Digest::of(name)) };
        let scratch = store.scratch().unwrap();
        let packed = write(&scratch);
        let kept = store.keep(scratch, &packed, word(b"one")).unwrap();
        let archive = kept.index.layer().unpacked.digest;
        assert!(archive.is_derived());
        let found =
            |name: &[u8]| store.find(&packed, &[word(name)]).unwrap().map(|kept| kept.index.layer().unpacked.digest);
        assert_eq!((found(b"one"), found(b"another")), (Some(archive), None));
        assert!(store.find(&packed, &[Word::any("pushed")]).unwrap().is_none());
    }

    #[test]
    fn an_index_of_another_layer_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path(), dir.path());
        let scratch = store.scratch().unwrap();
        write(&scratch);
        let other = Blob { digest: Digest::of(b"other"), size_bytes: 5 };
        assert!(matches!(store.keep(scratch, &other, Word::any("own")), Err(StoreError::Refused { .. })));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_nobody_names_is_collected_once_it_is_old() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path(), dir.path());
        let scratch = store.scratch().unwrap();
        let packed = write(&scratch);
        store.keep(scratch, &packed, Word::any("own")).unwrap();
        fs::write(dir.path().join("README"), "").unwrap();
        let later = SystemTime::now() + Duration::from_secs(60);
        let none = HashSet::new();
        assert_eq!(store.collect(&none, SystemTime::UNIX_EPOCH).unwrap(), 0, "young");
        assert_eq!(store.collect(&HashSet::from([packed.digest]), later).unwrap(), 0, "named");
        assert!(store.collect(&none, later).unwrap() > 4096);
        assert!(store.find(&packed, &[Word::any("own")]).unwrap().is_none() && dir.path().join("README").exists());
    }
}
