//! Artifacts that refer to an image: finding them, reading their manifests, pushing one (OCI distribution specification 1.1,
//! "Listing Referrers" and "Pushing Manifests with Subject").
//!
//! A registry without the referrers API keeps them in an index under the tag `sha256-<hex digits>`, which whoever pushes reads,
//! changes and writes back. Which of both it is shows in whether the API answers: Debian's docker-registry 2.8 says 404.

use bytes::Bytes;
use parking_lot::Mutex;
use penstock_blob::{Blob, Digest};
use reqwest::Url;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use crate::{
    Descriptor, Document, Fetcher, PushError, Reference, ReferenceError, ResolveError, Upload,
    failure::{Class, Failure},
    manifest::{MAX_MANIFEST_BYTES, OCI_INDEX},
    resolve::{Kind, Verified, Wanted, late},
};

/// How often the index under the tag is written when somebody else wrote it at the same time: each time one of both wins.
const WRITES: u32 = 4;

/// Which referrers are wanted: of which kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Referrers {
    artifact_type: String,
}

impl Wanted {
    /// The kind and the name in the path of the API.
    pub(crate) fn path(&self) -> (&'static str, String) {
        let kind = match self.kind {
            Kind::Manifest => "manifests",
            Kind::Referrers(_) => "referrers",
            Kind::BlobSize => "blobs",
        };
        let tag = || self.reference.tag().unwrap_or_default().to_owned();
        (kind, self.reference.digest().map_or_else(tag, |digest| digest.to_string()))
    }

    /// Whether who refers to something is wanted, and not the thing itself.
    pub(crate) const fn is_of_referrers(&self) -> bool {
        matches!(self.kind, Kind::Referrers(_))
    }

    /// The URL with the query of what is wanted.
    pub(crate) fn asked(&self, mut url: Url) -> Url {
        if let Kind::Referrers(Referrers { artifact_type }) = &self.kind {
            url.query_pairs_mut().append_pair("artifactType", artifact_type);
        }
        url
    }

    /// Whether `verified` is the last word about what is wanted. A listing without an entry of the kind wanted is not while there is
    /// somebody else to ask: a mirror has what was pulled through it, and that need not be what refers to it.
    pub(crate) fn is_settled_by(&self, verified: &Verified) -> bool {
        let Kind::Referrers(Referrers { artifact_type }) = &self.kind else { return true };
        match Document::parse(&verified.bytes, verified.content_type.as_deref()) {
            Ok(Document::Index(entries)) => {
                entries.iter().any(|entry| entry.artifact_type.as_ref() == Some(artifact_type))
            }
            Ok(Document::Image(_)) => false,
            // Whoever asked hears what is wrong with it.
            Err(_) => true,
        }
    }
}

/// An artifact to be pushed beside an image.
#[derive(Debug, Clone)]
pub struct Attached<'a> {
    /// Digest of the image's manifest.
    pub subject: Digest,
    /// The artifact's type.
    pub artifact_type: &'a str,
    /// The artifact's own manifest, whose `subject` and `artifactType` are these.
    pub manifest: Bytes,
    /// Its media type.
    pub media_type: &'a str,
}

impl Fetcher {
    /// The manifests of `artifact_type` that refer to the manifest `subject` of the repository of `reference`, as the registry
    /// lists them; empty when there are none. Only the first page of a listing is read: one kind of artifact of one image. Mirrors that
    /// list none are followed by the registry.
    ///
    /// The listing is not proved by any digest: it is asked of those only who may say what a tag names.
    ///
    /// # Errors
    /// [`ResolveError`]; a registry that knows no referrers is no error.
    pub async fn referrers(
        &self,
        reference: &Reference,
        subject: Digest,
        artifact_type: &str,
    ) -> Result<Vec<Descriptor>, ResolveError> {
        let listing = match self.listing(reference, subject, artifact_type).await? {
            Some(listing) => Some(listing),
            None => {
                let tag = fallback(reference, subject).map_err(|error| {
                    let failure = Failure::new(Class::Refused, &error.to_string());
                    ResolveError::of(failure, reference, reference.host())
                })?;
                self.index(&tag).await?
            }
        };
        let entries = match listing {
            None => return Ok(Vec::new()),
            Some(listing) => match Document::parse(&listing.bytes, listing.content_type.as_deref()) {
                Ok(Document::Index(entries)) => entries,
                Ok(Document::Image(_)) => Vec::new(),
                Err(error) => return Err(ResolveError::Manifest { reference: reference.clone(), error }),
            },
        };
        // Registries may list all kinds (then `OCI-Filters-Applied` is missing), and the tag always does.
        Ok(entries.into_iter().filter(|entry| entry.artifact_type.as_deref() == Some(artifact_type)).collect())
    }

    /// The manifest of an artifact of the repository of `reference`, verified against its descriptor.
    ///
    /// # Errors
    /// [`ResolveError`].
    pub async fn artifact(&self, reference: &Reference, descriptor: &Descriptor) -> Result<Bytes, ResolveError> {
        let reference = reference.with_digest(descriptor.digest);
        let wanted = Wanted { reference, size_bytes: Some(descriptor.size_bytes), kind: Kind::Manifest };
        Ok(self.document(&wanted).await?.bytes)
    }

    /// How many bytes the blob `digest` of the repository of `reference` has, where no manifest says it: of a request for its first byte.
    ///
    /// # Errors
    /// [`ResolveError`].
    pub async fn blob_size(&self, reference: &Reference, digest: Digest) -> Result<u64, ResolveError> {
        let reference = reference.with_digest(digest);
        Ok(self.document(&Wanted { reference, size_bytes: None, kind: Kind::BlobSize }).await?.size_bytes)
    }

    /// Pushes blobs that the registry does not have, then the artifact's manifest by its digest, and has the registry list it
    /// among the referrers of its subject. The same artifact pushed again changes nothing. Returns its descriptor.
    ///
    /// # Errors
    /// [`PushError`].
    pub async fn push_artifact(
        &self,
        to: &Reference,
        uploads: &[Upload],
        artifact: Attached<'_>,
    ) -> Result<Blob, PushError> {
        let blob = Blob { digest: Digest::of(&artifact.manifest), size_bytes: artifact.manifest.len() as u64 };
        let by_digest = to.with_digest(blob.digest);
        self.push(&by_digest, uploads, artifact.manifest.clone(), artifact.media_type).await?;
        let unlisted = |reason: String| PushError::Unlisted { reference: to.clone(), reason };
        let unasked = |error: ResolveError| unlisted(error.to_string());
        if self.listing(to, artifact.subject, artifact.artifact_type).await.map_err(unasked)?.is_some() {
            return Ok(blob);
        }
        let tag = fallback(to, artifact.subject).map_err(|error| unlisted(error.to_string()))?;
        for _ in 0..WRITES {
            let index = self.index(&tag).await.map_err(unasked)?;
            let bytes = index.map(|index| index.bytes);
            let changed = with_entry(bytes.as_deref(), &artifact, &blob);
            match changed.map_err(|reason| PushError::Unlisted { reference: tag.clone(), reason })? {
                None => return Ok(blob),
                Some(index) => self.push(&tag, &[], index.into(), OCI_INDEX).await?,
            };
        }
        let reason = "somebody else writes the same tag all the time".to_owned();
        Err(PushError::Unlisted { reference: tag, reason })
    }

    /// The answer of the referrers API; `None` when the registry does not have it.
    async fn listing(
        &self,
        reference: &Reference,
        subject: Digest,
        artifact_type: &str,
    ) -> Result<Option<Verified>, ResolveError> {
        let kind = Kind::Referrers(Referrers { artifact_type: artifact_type.to_owned() });
        let wanted = Wanted { reference: reference.with_digest(subject), size_bytes: None, kind };
        match self.document(&wanted).await {
            Err(ResolveError::NotFound { .. }) => Ok(None),
            answer => answer.map(Some),
        }
    }

    /// The index under the tag; `None` when there is none.
    async fn index(&self, tag: &Reference) -> Result<Option<Verified>, ResolveError> {
        match self.document(&Wanted { reference: tag.clone(), size_bytes: None, kind: Kind::Manifest }).await {
            Err(ResolveError::NotFound { .. }) => Ok(None),
            answer => answer.map(Some),
        }
    }

    /// What is wanted, within the deadline.
    pub(crate) async fn document(&self, wanted: &Wanted) -> Result<Verified, ResolveError> {
        let (config, reference) = (&self.core.config, &wanted.reference);
        let (namespace, last) = (self.core.namespaces.of(reference), Mutex::new(None));
        let asking = self.core.manifest(wanted, &namespace, &last);
        match timeout_at(Instant::now() + config.deadline, asking).await {
            Ok(answer) => answer,
            Err(_elapsed) => Err(late(reference, config.deadline, last.into_inner())),
        }
    }
}

/// The tag that lists the referrers of `subject` where the API is missing (distribution specification, "Referrers Tag Schema").
fn fallback(reference: &Reference, subject: Digest) -> Result<Reference, ReferenceError> {
    format!("{}/{}:sha256-{}", reference.registry(), reference.repository(), subject.to_hex()).parse()
}

/// The index with an entry for the artifact; `None` when it has it already. All else stays as it is, also what we do not know.
fn with_entry(index: Option<&[u8]>, artifact: &Attached<'_>, blob: &Blob) -> Result<Option<Vec<u8>>, String> {
    let mut index: Value = match index {
        Some(bytes) => serde_json::from_slice(bytes).map_err(|error| error.to_string())?,
        None => json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}),
    };
    let entries = index.get_mut("manifests").and_then(Value::as_array_mut);
    let entries = entries.ok_or("the tag names something that is no index; remove that tag")?;
    let digest = Value::from(blob.digest.to_string());
    if entries.iter().any(|entry| entry.get("digest") == Some(&digest)) {
        return Ok(None);
    }
    entries.push(json!({
        "mediaType": artifact.media_type,
        "digest": digest,
        "size": blob.size_bytes,
        "artifactType": artifact.artifact_type,
    }));
    let bytes = serde_json::to_vec(&index).map_err(|error| error.to_string())?;
    if bytes.len() > MAX_MANIFEST_BYTES {
        return Err("the tag lists so many referrers that no more fit; remove old ones".to_owned());
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn artifact() -> (Attached<'static>, Blob) {
        let manifest = Bytes::from_static(b"{}");
        let blob = Blob { digest: Digest::of(&manifest), size_bytes: 2 };
        let subject = Digest::of(b"subject");
        (Attached { subject, artifact_type: "application/x", manifest, media_type: "application/m" }, blob)
    }

    #[test]
    fn an_entry_is_added_once_and_the_others_stay_as_they_are() {
        let (artifact, blob) = artifact();
        let other = json!({"mediaType": "a", "digest": "sha512:11", "size": 1, "odd": {"kept": [1]}});
        let index = json!({"schemaVersion": 2, "manifests": [other], "annotations": {"k": "v"}}).to_string();
        let changed = with_entry(Some(index.as_bytes()), &artifact, &blob).unwrap().unwrap();
        let read: Value = serde_json::from_slice(&changed).unwrap();
        assert_eq!((&read["manifests"][0], &read["annotations"]["k"]), (&other, &json!("v")));
        assert_eq!(read["manifests"][1]["artifactType"], "application/x");
        assert_eq!(with_entry(Some(&changed), &artifact, &blob), Ok(None));
        let new = with_entry(None, &artifact, &blob).unwrap().unwrap();
        assert_eq!(with_entry(Some(&new), &artifact, &blob), Ok(None));
    }

    #[test]
    fn a_tag_that_is_no_index_is_left_alone() {
        let (artifact, blob) = artifact();
        for bad in ["", "[]", "{}", r#"{"manifests": {}}"#, r#"{"layers": []}"#] {
            assert!(with_entry(Some(bad.as_bytes()), &artifact, &blob).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_tag_is_the_one_of_the_specification() {
        let reference: Reference =
            "r.io:5000/team/app@sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
                .parse()
                .unwrap();
        let tag = fallback(&reference, reference.digest().unwrap()).unwrap();
        let expected = "r.io:5000/team/app:sha256-44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
        assert_eq!(tag.to_string(), expected);
    }
}
