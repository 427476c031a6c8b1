//! Manifests of images that containerd was told are there: kept, so that an agent which starts between the pull of an image and its first container
//! asks no registry what the image is.
//!
//! `<state_dir>/manifests/<hex digest of the manifest>.manifest` holds, sealed, a line with the manifest's media type and then its bytes, as
//! the registry gave them. Their digest is the file's name: a file that holds anything else is not used.

use std::{
    collections::HashSet,
    fs, io,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use penstock_blob::Digest;
use penstock_fetcher::{Manifest, Reference, Served};
use serde::Deserialize;

use crate::state::sealed::{self, UNFINISHED};

/// Most manifests kept: far more than a node has images. One more is not kept, and its image is resolved again after a restart.
const MOST: usize = 4096;
/// Longest file, in bytes: the largest manifest that is read from a registry, and its media type.
const MAX_BYTES: u64 = (4 << 20) + 256;
/// Ends the name of a file.
const ENDING: &str = ".manifest";
/// How long a manifest stays that no snapshot names: a pull that is under way has told containerd of none of its layers yet.
pub(crate) const UNNAMED: Duration = Duration::from_secs(24 * 3600);

/// The manifests that are kept.
#[derive(Debug)]
pub(crate) struct Shelf {
    dir: PathBuf,
}

impl Shelf {
    /// The manifests in `dir`, which exists.
    pub(crate) const fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    fn path(&self, manifest: &Digest) -> PathBuf {
        self.dir.join(format!("{}{ENDING}", manifest.to_hex()))
    }

    /// Whether this one is kept. Blocks.
    pub(crate) fn has(&self, manifest: &Digest) -> bool {
        self.path(manifest).exists()
    }

    /// Keeps a manifest, durably. One that is kept already is touched only, so that it counts as new. Blocks.
    ///
    /// # Errors
    /// What the system says; or that there are too many.
    pub(crate) fn put(&self, served: &Served) -> io::Result<()> {
        let path = self.path(&served.digest);
        match fs::File::open(&path) {
            Ok(file) => return file.set_modified(SystemTime::now()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        if self.all()?.len() >= MOST {
            return Err(io::Error::other(format!("{MOST} manifests are kept in {} already", self.dir.display())));
        }
        sealed::write(&path, &[served.media_type.as_bytes(), b"\n", &served.bytes].concat())
    }

    /// The manifest that is kept, as one of the repository of `reference`; `None` when it is not kept. Blocks.
    ///
    /// # Errors
    /// Why the file cannot be used. It is not used from then on: the next [`put`](Self::put) writes it anew.
    pub(crate) fn find(&self, reference: &Reference, manifest: Digest) -> Result<Option<(Manifest, Served)>, String> {
        let path = self.path(&manifest);
        let Some(content) = sealed::read(&path, MAX_BYTES).inspect_err(|_| self.discard(&manifest))? else {
            return Ok(None);
        };
        let parsed = parse(reference, manifest, &content);
        parsed.map(Some).map_err(|reason| {
            self.discard(&manifest);
            format!("{} {reason}", path.display())
        })
    }

    fn discard(&self, manifest: &Digest) {
        if let Err(error) = fs::remove_file(self.path(manifest)) {
            tracing::warn!(%manifest, %error, "a kept manifest that cannot be used stays");
        }
    }

    /// The digests of those that are kept. Blocks.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn all(&self) -> io::Result<Vec<Digest>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            let hex = name.to_str().and_then(|name| name.strip_suffix(ENDING));
            all.extend(hex.and_then(|hex| format!("sha256:{hex}").parse::<Digest>().ok()));
        }
        Ok(all)
    }

    /// The layers of the images whose manifests are kept. Blocks.
    ///
    /// # Errors
    /// What the system says. A file that cannot be used names none.
    pub(crate) fn layers(&self) -> io::Result<HashSet<Digest>> {
        let mut layers = HashSet::new();
        for manifest in self.all()? {
            if let Ok(Some(content)) = sealed::read(&self.path(&manifest), MAX_BYTES)
                && let Some((_, bytes)) = split(&content)
                && let Ok(named) = serde_json::from_slice::<Named>(bytes)
            {
                layers.extend(named.layers.into_iter().map(|layer| layer.digest));
            }
        }
        Ok(layers)
    }

    /// Removes those that are not `named` and were kept before `before`, and what an earlier agent left half-written then. Answers which. Blocks.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn collect(&self, named: &HashSet<Digest>, before: SystemTime) -> io::Result<Vec<Digest>> {
        let mut gone = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let is_old = entry.metadata().and_then(|metadata| metadata.modified()).is_ok_and(|at| at < before);
            let name = entry.file_name();
            let name = name.to_str().unwrap_or_default();
            let digest = name.strip_suffix(ENDING).and_then(|hex| format!("sha256:{hex}").parse::<Digest>().ok());
            let is_ours = name.ends_with(UNFINISHED) || digest.is_some_and(|digest| !named.contains(&digest));
            if is_old && is_ours {
                fs::remove_file(entry.path())?;
                gone.extend(digest);
            }
        }
        Ok(gone)
    }
}

/// What of a manifest says which layers it names.
#[derive(Deserialize)]
struct Named {
    #[serde(default)]
    layers: Vec<NamedLayer>,
}

#[derive(Deserialize)]
struct NamedLayer {
    digest: Digest,
}

/// The media type and the manifest in a file's content.
fn split(content: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = content.iter().position(|&byte| byte == b'\n')?;
    Some((&content[..end], &content[end + 1..]))
}

/// The manifest in a file's content, when it is the one that the file is named after.
fn parse(reference: &Reference, manifest: Digest, content: &[u8]) -> Result<(Manifest, Served), String> {
    let (media_type, bytes) = split(content).ok_or("is damaged")?;
    let media_type = std::str::from_utf8(media_type).map_err(|_| "is damaged")?;
    let found = Manifest::parse(reference, bytes, media_type).map_err(|error| error.to_string())?;
    if found.digest != manifest {
        return Err(format!("holds {}", found.digest));
    }
    let bytes = bytes::Bytes::copy_from_slice(bytes);
    let served = Served { digest: manifest, media_type: media_type.to_owned(), bytes, followed: None };
    Ok((found, served))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(name: &str) -> Served {
        let blob = Digest::of(name.as_bytes());
        let media_type = "application/vnd.oci.image.manifest.v1+json".to_owned();
        let text = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"c","digest":"{blob}","size":1}},"layers":[{{"mediaType":"l","digest":"{blob}","size":9}}]}}"#
        );
        Served { digest: Digest::of(text.as_bytes()), media_type, bytes: text.into(), followed: None }
    }

    fn reference() -> Reference {
        "r.example/a:1".parse().unwrap()
    }

    #[test]
    fn what_was_kept_is_found_as_it_was_served_in_any_repository() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(dir.path().to_path_buf());
        let served = manifest("a");
        assert_eq!(shelf.find(&reference(), served.digest), Ok(None));
        shelf.put(&served).unwrap();
        shelf.put(&served).unwrap();
        let (found, as_served) = shelf.find(&reference(), served.digest).unwrap().unwrap();
        assert_eq!((found.layers[0].size_bytes, found.digest, &as_served), (9, served.digest, &served));
        assert_eq!(found.reference, reference().with_digest(served.digest));
        assert_eq!((shelf.all().unwrap(), shelf.has(&served.digest)), (vec![served.digest], true));
        assert_eq!(shelf.layers().unwrap(), HashSet::from([found.layers[0].digest]));
    }

    #[test]
    fn a_damaged_file_and_another_manifest_are_not_used_and_make_room_for_the_right_one() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(dir.path().to_path_buf());
        let (served, other) = (manifest("a"), manifest("b"));
        for spoil in [0, 1] {
            shelf.put(&served).unwrap();
            let path = shelf.path(&served.digest);
            match spoil {
                0 => fs::write(&path, &fs::read(&path).unwrap()[..100]).unwrap(),
                _ => {
                    shelf.put(&other).unwrap();
                    fs::rename(shelf.path(&other.digest), &path).unwrap();
                }
            }
            let reason = shelf.find(&reference(), served.digest).unwrap_err();
            assert!(reason.contains(&path.display().to_string()), "{reason}");
            assert_eq!(shelf.find(&reference(), served.digest), Ok(None));
        }
    }

    #[test]
    fn what_no_snapshot_names_is_collected_once_it_is_old() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(dir.path().to_path_buf());
        let (named, unnamed) = (manifest("named"), manifest("unnamed"));
        shelf.put(&named).unwrap();
        shelf.put(&unnamed).unwrap();
        fs::write(dir.path().join("x.unfinished"), "").unwrap();
        fs::write(dir.path().join("README"), "").unwrap();
        let (past, future) = (SystemTime::UNIX_EPOCH, SystemTime::now() + Duration::from_secs(60));
        assert_eq!(shelf.collect(&HashSet::new(), past).unwrap(), []);
        assert_eq!(shelf.collect(&HashSet::from([named.digest]), future).unwrap(), [unnamed.digest]);
        assert_eq!(shelf.all().unwrap(), [named.digest]);
        assert!(dir.path().join("README").exists() && !dir.path().join("x.unfinished").exists());
    }
}
