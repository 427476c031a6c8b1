//! What the registry holds: blobs by digest, and repositories that link to them.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::File,
    sync::Arc,
};

use bytes::Bytes;
use parking_lot::RwLock;
use penstock_blob::Digest;
use serde::Deserialize;

use crate::{refusal::Refusal, route::Name};

/// The largest manifest taken, in bytes: what the specification asks registries to support at least.
pub(crate) const MANIFEST_LIMIT_BYTES: u64 = 4 << 20;

/// Where a blob's bytes are.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    Memory(Bytes),
    /// The first `size_bytes` of a file that nobody changes.
    File {
        file: Arc<File>,
        size_bytes: u64,
    },
}

impl Content {
    pub(crate) fn size_bytes(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File { size_bytes, .. } => *size_bytes,
        }
    }
}

/// A manifest as it was pushed.
#[derive(Debug, Clone)]
pub(crate) struct Manifest {
    pub(crate) media_type: String,
    pub(crate) bytes: Bytes,
    /// What the referrers API needs; the rest of a manifest is the client's.
    parts: Parts,
}

/// The parts of a manifest or index that a registry looks at.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Parts {
    pub(crate) media_type: Option<String>,
    pub(crate) artifact_type: Option<String>,
    pub(crate) config: Option<Reference>,
    pub(crate) layers: Vec<Reference>,
    pub(crate) manifests: Vec<Reference>,
    pub(crate) subject: Option<Reference>,
    pub(crate) annotations: BTreeMap<String, String>,
}

/// A descriptor in a manifest.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Reference {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default)]
    pub(crate) annotations: BTreeMap<String, String>,
}

#[derive(Debug, Default)]
struct Repository {
    blobs: HashSet<Digest>,
    manifests: BTreeMap<Digest, Manifest>,
    tags: BTreeMap<String, Digest>,
}

#[derive(Debug)]
struct Stored {
    content: Content,
    /// Given by the owner, not pushed: visible in every repository.
    everywhere: bool,
}

#[derive(Debug, Default)]
struct State {
    blobs: HashMap<Digest, Stored>,
    repositories: BTreeMap<String, Repository>,
}

/// Blobs and repositories.
#[derive(Debug, Default)]
pub(crate) struct Store(RwLock<State>);

impl Store {
    /// Adds a blob that every repository shows.
    pub(crate) fn put_everywhere(&self, digest: Digest, content: Content) {
        self.0.write().blobs.insert(digest, Stored { content, everywhere: true });
    }

    /// Adds a blob to one repository. Bytes already held are kept.
    pub(crate) fn put_blob(&self, repository: &str, digest: Digest, content: Content) {
        let mut state = self.0.write();
        state.blobs.entry(digest).or_insert(Stored { content, everywhere: false });
        state.repository(repository).blobs.insert(digest);
    }

    /// Forgets a blob everywhere; answers whether it was there.
    pub(crate) fn remove_blob(&self, digest: &Digest) -> bool {
        let mut state = self.0.write();
        for repository in state.repositories.values_mut() {
            repository.blobs.remove(digest);
        }
        state.blobs.remove(digest).is_some()
    }

    /// The blob as `repository` shows it.
    pub(crate) fn blob(&self, repository: &str, digest: &Digest) -> Option<Content> {
        let state = self.0.read();
        let stored = state.blobs.get(digest)?;
        let linked = || state.repositories.get(repository).is_some_and(|r| r.blobs.contains(digest));
        (stored.everywhere || linked()).then(|| stored.content.clone())
    }

    /// The blob whatever repository it is in: for signed URLs.
    pub(crate) fn any_blob(&self, digest: &Digest) -> Option<Content> {
        self.0.read().blobs.get(digest).map(|stored| stored.content.clone())
    }

    /// Makes a blob of repository `from` visible in `to`; answers whether it could.
    pub(crate) fn mount(&self, from: &str, to: &str, digest: &Digest) -> bool {
        if self.blob(from, digest).is_none() {
            return false;
        }
        self.0.write().repository(to).blobs.insert(*digest);
        true
    }

    /// Adds a manifest, and points a tag at it. What it names must be in the repository; its subject need not be.
    pub(crate) fn put_manifest(
        &self,
        repository: &str,
        tag: Option<&str>,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<Stamp, Refusal> {
        let parts: Parts = serde_json::from_slice(&bytes).map_err(|error| manifest_invalid(error.to_string()))?;
        if parts.media_type.as_ref().is_some_and(|stated| stated != media_type) {
            return Err(manifest_invalid("mediaType differs from the Content-Type".to_owned()));
        }
        for part in parts.config.iter().chain(&parts.layers) {
            if self.blob(repository, &part.digest).is_none() {
                return Err(unknown_part(&part.digest));
            }
        }
        let digest = Digest::of(&bytes);
        let subject = parts.subject.as_ref().map(|subject| subject.digest);
        let mut state = self.0.write();
        let held = state.repository(repository);
        if let Some(missing) = parts.manifests.iter().find(|m| !held.manifests.contains_key(&m.digest)) {
            return Err(unknown_part(&missing.digest));
        }
        held.manifests.insert(digest, Manifest { media_type: media_type.to_owned(), bytes, parts });
        if let Some(tag) = tag {
            held.tags.insert(tag.to_owned(), digest);
        }
        Ok(Stamp { digest, subject })
    }

    /// The manifest of that name and its digest.
    pub(crate) fn manifest(&self, repository: &str, name: &Name) -> Option<(Digest, Manifest)> {
        let state = self.0.read();
        let held = state.repositories.get(repository)?;
        let digest = match name {
            Name::Tag(tag) => *held.tags.get(tag)?,
            Name::Digest(digest) => *digest,
        };
        held.manifests.get(&digest).map(|manifest| (digest, manifest.clone()))
    }

    /// The tags of a repository in order; `None` when there is no such repository.
    pub(crate) fn tags(&self, repository: &str) -> Option<Vec<String>> {
        let state = self.0.read();
        state.repositories.get(repository).map(|held| held.tags.keys().cloned().collect())
    }

    /// Descriptors of the manifests whose subject is `subject`, of one artifact type where that is given.
    pub(crate) fn referrers(
        &self,
        repository: &str,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Vec<serde_json::Value> {
        let state = self.0.read();
        let manifests = state.repositories.get(repository).into_iter().flat_map(|held| &held.manifests);
        manifests
            .filter(|(_, manifest)| manifest.parts.subject.as_ref().is_some_and(|s| s.digest == *subject))
            .filter(|(_, manifest)| artifact_type.is_none_or(|wanted| manifest.parts.kind() == Some(wanted)))
            .map(|(digest, manifest)| manifest.descriptor(digest))
            .collect()
    }
}

/// What a push of a manifest is answered with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stamp {
    pub(crate) digest: Digest,
    pub(crate) subject: Option<Digest>,
}

impl State {
    fn repository(&mut self, name: &str) -> &mut Repository {
        self.repositories.entry(name.to_owned()).or_default()
    }
}

impl Parts {
    /// The artifact type: the manifest's own, or its config's media type (image specification, "Listing Referrers").
    fn kind(&self) -> Option<&str> {
        let config = || self.config.as_ref().map(|config| config.media_type.as_str());
        self.artifact_type.as_deref().or_else(config)
    }
}

impl Manifest {
    fn descriptor(&self, digest: &Digest) -> serde_json::Value {
        serde_json::json!({
            "mediaType": self.media_type,
            "digest": digest,
            "size": self.bytes.len(),
            "artifactType": self.parts.kind(),
            "annotations": self.parts.annotations,
        })
    }
}

fn manifest_invalid(message: String) -> Refusal {
    Refusal::new(http::StatusCode::BAD_REQUEST, "MANIFEST_INVALID", message)
}

fn unknown_part(digest: &Digest) -> Refusal {
    let message = format!("{digest} is named by the manifest but is not in the repository");
    Refusal::new(http::StatusCode::BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN", message)
}
