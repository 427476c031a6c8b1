//! Loading an OCI image layout (image specification, "OCI Image Layout"): a directory with `index.json` and `blobs/sha256/`.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use penstock_blob::{Blob, Digest, Hasher};

use crate::{
    artifact::{ArtifactError, check_names},
    store::{Content, MANIFEST_LIMIT_BYTES, Parts, Reference, Store},
};

/// The annotation of `index.json` that holds a manifest's tag.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// How deep indexes may be nested: an index of images, in the layout's own index, and two to spare.
const DEPTH_LIMIT: u32 = 4;

/// Why a layout could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// A file of the layout cannot be read.
    #[error("{path:?} cannot be read: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file is not the JSON that it should be.
    #[error("{path:?} is not an index or a manifest: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A blob does not have the digest or the size that its descriptor states.
    #[error("{path:?} holds {found:?}, its descriptor says {stated:?}: the layout is damaged")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the descriptor states.
        stated: Blob,
        /// What the file is.
        found: Blob,
    },
    /// Names or manifests that the registry does not take.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
}

/// Loads the layout in `dir` into `repository`; answers the tags. Blocks on files.
pub(crate) fn load(store: &Store, dir: &Path, repository: &str) -> Result<Vec<String>, LayoutError> {
    check_names(repository, None)?;
    let layout = Layout { store, dir, repository };
    let path = dir.join("index.json");
    let (index, _) = layout.parts(&path)?;
    let mut tags = Vec::new();
    for manifest in &index.manifests {
        let tag = manifest.annotations.get(REF_NAME).map(String::as_str);
        check_names(repository, tag)?;
        layout.manifest(manifest, tag, DEPTH_LIMIT)?;
        tags.extend(tag.map(str::to_owned));
    }
    Ok(tags)
}

/// The digest and the size of a file, read in pieces.
pub(crate) fn measure(file: &mut File) -> io::Result<Blob> {
    let mut hasher = Hasher::new();
    let mut piece = vec![0; 256 << 10];
    let mut size_bytes = 0;
    loop {
        let count = file.read(&mut piece)?;
        if count == 0 {
            return Ok(Blob { digest: hasher.finish(), size_bytes });
        }
        hasher.update(&piece[..count]);
        size_bytes += count as u64;
    }
}

struct Layout<'a> {
    store: &'a Store,
    dir: &'a Path,
    repository: &'a str,
}

impl Layout<'_> {
    fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.to_hex())
    }

    /// Puts a manifest or an index, what it names first.
    fn manifest(&self, descriptor: &Reference, tag: Option<&str>, depth: u32) -> Result<(), LayoutError> {
        let path = self.path(&descriptor.digest);
        let (parts, bytes) = self.parts(&path)?;
        let found = Blob { digest: Digest::of(&bytes), size_bytes: bytes.len() as u64 };
        check(&path, descriptor, found)?;
        if depth == 0 {
            return Err(LayoutError::Malformed { path, reason: format!("indexes nested over {DEPTH_LIMIT} deep") });
        }
        for child in &parts.manifests {
            self.manifest(child, None, depth - 1)?;
        }
        for blob in parts.config.iter().chain(&parts.layers) {
            self.blob(blob)?;
        }
        let media_type = parts.media_type.as_deref().unwrap_or(&descriptor.media_type);
        self.store.put_manifest(self.repository, tag, media_type, bytes).map_err(ArtifactError::from)?;
        Ok(())
    }

    fn blob(&self, descriptor: &Reference) -> Result<(), LayoutError> {
        let path = self.path(&descriptor.digest);
        let failed = |source| LayoutError::Read { path: path.clone(), source };
        let mut file = File::open(&path).map_err(failed)?;
        let found = measure(&mut file).map_err(failed)?;
        check(&path, descriptor, found)?;
        let content = Content::File { file: Arc::new(file), size_bytes: found.size_bytes };
        self.store.put_blob(self.repository, found.digest, content);
        Ok(())
    }

    /// A manifest or index in a file, and its bytes.
    fn parts(&self, path: &Path) -> Result<(Parts, Bytes), LayoutError> {
        let failed = |source| LayoutError::Read { path: path.to_owned(), source };
        let mut bytes = Vec::new();
        File::open(path).and_then(|file| file.take(MANIFEST_LIMIT_BYTES).read_to_end(&mut bytes)).map_err(failed)?;
        let parts = serde_json::from_slice(&bytes)
            .map_err(|error| LayoutError::Malformed { path: path.to_owned(), reason: error.to_string() })?;
        Ok((parts, bytes.into()))
    }
}

fn check(path: &Path, descriptor: &Reference, found: Blob) -> Result<(), LayoutError> {
    let stated = Blob { digest: descriptor.digest, size_bytes: descriptor.size };
    if found == stated { Ok(()) } else { Err(LayoutError::Damaged { path: path.to_owned(), stated, found }) }
}
