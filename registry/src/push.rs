//! Pushing: uploads whole, in pieces or mounted from another repository, and manifests.

use std::{collections::HashMap, fs::File, io, path::PathBuf, sync::Arc};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode, header, request::Parts};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use parking_lot::Mutex;
use penstock_blob::{Digest, Hasher};
use tokio::io::AsyncWriteExt;

use crate::{
    answer::{Answer, CONTENT_DIGEST, Shared},
    query,
    refusal::Refusal,
    route::Name,
    store::{Content, MANIFEST_LIMIT_BYTES},
};

/// How many uploads may be under way; beyond it a new one gets 429. A client pushes a handful at a time.
const UPLOAD_LIMIT: usize = 64;

/// The uploads under way, by their id. One that a request works on is out of the table meanwhile.
#[derive(Debug)]
pub(crate) struct Uploads {
    open: Mutex<HashMap<String, Upload>>,
    spool_dir: Option<PathBuf>,
    limit_bytes: u64,
}

/// A blob that is arriving.
#[derive(Debug)]
struct Upload {
    repository: String,
    file: tokio::fs::File,
    hasher: Hasher,
    size_bytes: u64,
}

/// An upload taken from the table; it goes back when dropped, so that a client that hung up can go on.
#[derive(Debug)]
struct Borrowed<'a> {
    uploads: &'a Uploads,
    id: &'a str,
    upload: Option<Upload>,
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        if let Some(upload) = self.upload.take() {
            self.uploads.open.lock().insert(self.id.to_owned(), upload);
        }
    }
}

impl Uploads {
    pub(crate) fn new(spool_dir: Option<PathBuf>, limit_bytes: u64) -> Self {
        Self { open: Mutex::default(), spool_dir, limit_bytes }
    }

    async fn begin(&self, repository: &str) -> Result<Upload, Refusal> {
        let dir = self.spool_dir.clone();
        let file = unblock(move || dir.map_or_else(tempfile::tempfile, tempfile::tempfile_in)).await?;
        let file = tokio::fs::File::from_std(file);
        Ok(Upload { repository: repository.to_owned(), file, hasher: Hasher::new(), size_bytes: 0 })
    }

    fn add(&self, upload: Upload) -> Result<String, Refusal> {
        let mut open = self.open.lock();
        if open.len() >= UPLOAD_LIMIT {
            let message = format!("{UPLOAD_LIMIT} uploads are under way");
            return Err(Refusal::new(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", message));
        }
        let id = format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..));
        open.insert(id.clone(), upload);
        Ok(id)
    }

    fn borrow<'a>(&'a self, repository: &str, id: &'a str) -> Result<Borrowed<'a>, Refusal> {
        let mut open = self.open.lock();
        if open.get(id).is_none_or(|upload| upload.repository != repository) {
            return Err(Refusal::upload_unknown());
        }
        Ok(Borrowed { uploads: self, id, upload: open.remove(id) })
    }
}

impl Upload {
    /// Adds what the request's body holds.
    async fn take(&mut self, mut body: Incoming, limit_bytes: u64) -> Result<(), Refusal> {
        while let Some(bytes) = next_piece(&mut body).await? {
            if self.size_bytes + bytes.len() as u64 > limit_bytes {
                return Err(Refusal::too_large(limit_bytes));
            }
            self.file.write_all(&bytes).await.map_err(|error| Refusal::internal(&error))?;
            self.hasher.update(&bytes);
            self.size_bytes += bytes.len() as u64;
        }
        Ok(())
    }

    /// The finished blob, when it has the digest that the client says.
    async fn finish(mut self, stated: Digest) -> Result<Content, Refusal> {
        let found = self.hasher.finish();
        if found != stated {
            return Err(Refusal::digest_invalid(format!("the content has digest {found}, not {stated}")));
        }
        self.file.flush().await.map_err(|error| Refusal::internal(&error))?;
        let file: File = self.file.into_std().await;
        Ok(Content::File { file: Arc::new(file), size_bytes: self.size_bytes })
    }
}

impl Shared {
    /// POST to `blobs/uploads/`: a mount, a whole blob, or the beginning of an upload.
    pub(crate) async fn begin_upload(&self, repository: &str, head: &Parts, body: Incoming) -> Result<Answer, Refusal> {
        if head.method != Method::POST {
            return Err(Refusal::unsupported("uploads begin with POST"));
        }
        let query = head.uri.query().unwrap_or_default();
        if let (Some(digest), Some(from)) = (query::value(query, "mount"), query::value(query, "from")) {
            let digest = parse(&digest)?;
            // A mount that cannot be made is an ordinary upload; pulling from the other repository needs its own right.
            let may_pull = self.gate.check(&self.host(), Some(&from), &Method::GET, &head.headers).is_ok();
            if may_pull && self.store.mount(&from, repository, &digest) {
                return Ok(created(repository, &digest));
            }
        }
        let mut upload = self.uploads.begin(repository).await?;
        if let Some(digest) = query::value(query, "digest") {
            let digest = parse(&digest)?;
            upload.take(body, self.uploads.limit_bytes).await?;
            self.store.put_blob(repository, digest, upload.finish(digest).await?);
            return Ok(created(repository, &digest));
        }
        let id = self.uploads.add(upload)?;
        Ok(progress(StatusCode::ACCEPTED, (repository, &id), 0))
    }

    /// PATCH, PUT, GET or DELETE of an upload under way (`of`: its repository and id).
    pub(crate) async fn continue_upload(
        &self,
        of: (&str, &str),
        head: &Parts,
        body: Incoming,
    ) -> Result<Answer, Refusal> {
        let (repository, id) = of;
        let mut borrowed = self.uploads.borrow(repository, id)?;
        let upload = borrowed.upload.as_mut().ok_or_else(Refusal::upload_unknown)?;
        match head.method {
            Method::GET => Ok(progress(StatusCode::NO_CONTENT, of, upload.size_bytes)),
            Method::DELETE => {
                borrowed.upload = None;
                Ok(Answer::empty(StatusCode::NO_CONTENT))
            }
            Method::PATCH => {
                in_order(&head.headers, upload.size_bytes)?;
                upload.take(body, self.uploads.limit_bytes).await?;
                Ok(progress(StatusCode::ACCEPTED, of, upload.size_bytes))
            }
            Method::PUT => {
                let query = head.uri.query().unwrap_or_default();
                let stated = query::value(query, "digest")
                    .ok_or_else(|| Refusal::digest_invalid("the last request of an upload states ?digest="))?;
                let stated = parse(&stated)?;
                in_order(&head.headers, upload.size_bytes)?;
                upload.take(body, self.uploads.limit_bytes).await?;
                let upload = borrowed.upload.take().ok_or_else(Refusal::upload_unknown)?;
                self.store.put_blob(repository, stated, upload.finish(stated).await?);
                Ok(created(repository, &stated))
            }
            _ => Err(Refusal::unsupported("the operation is unsupported")),
        }
    }

    /// PUT of a manifest.
    pub(crate) async fn push_manifest(
        &self,
        repository: &str,
        name: &Name,
        head: &Parts,
        body: Incoming,
    ) -> Result<Answer, Refusal> {
        let bytes = whole(body, MANIFEST_LIMIT_BYTES).await?;
        let media_type = head.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let media_type = media_type.unwrap_or("application/vnd.oci.image.manifest.v1+json");
        let tag = match name {
            Name::Tag(tag) => Some(tag.as_str()),
            Name::Digest(stated) if *stated != Digest::of(&bytes) => {
                return Err(Refusal::digest_invalid("the manifest does not have the digest in the path"));
            }
            Name::Digest(_) => None,
        };
        let stamp = self.store.put_manifest(repository, tag, media_type, bytes)?;
        let answer = Answer::empty(StatusCode::CREATED)
            .with(header::LOCATION, format!("/v2/{repository}/manifests/{}", stamp.digest))
            .with(CONTENT_DIGEST, stamp.digest.to_string());
        Ok(match stamp.subject {
            Some(subject) => answer.with("oci-subject", subject.to_string()),
            None => answer,
        })
    }
}

/// Refuses a piece that states a `Content-Range` (`first-last`) and does not follow what is there.
fn in_order(headers: &HeaderMap, size_bytes: u64) -> Result<(), Refusal> {
    let Some(stated) = headers.get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok()) else {
        return Ok(());
    };
    let first = stated.trim_start_matches("bytes ").split('-').next().and_then(|first| first.parse().ok());
    if first == Some(size_bytes) {
        return Ok(());
    }
    let message = format!("the upload holds {size_bytes} bytes; the next piece begins there, not at {stated}");
    Err(Refusal::new(StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID", message))
}

fn parse(digest: &str) -> Result<Digest, Refusal> {
    digest.parse().map_err(|error: penstock_blob::DigestError| Refusal::digest_invalid(error.to_string()))
}

fn created(repository: &str, digest: &Digest) -> Answer {
    Answer::empty(StatusCode::CREATED)
        .with(header::LOCATION, format!("/v2/{repository}/blobs/{digest}"))
        .with(CONTENT_DIGEST, digest.to_string())
}

/// Where to send the next piece, and what is there.
fn progress(status: StatusCode, of: (&str, &str), size_bytes: u64) -> Answer {
    let (repository, id) = of;
    Answer::empty(status)
        .with(header::LOCATION, format!("/v2/{repository}/blobs/uploads/{id}"))
        .with(header::RANGE, format!("0-{}", size_bytes.saturating_sub(1)))
        .with("docker-upload-uuid", id)
}

/// The next bytes of a request's body.
async fn next_piece(body: &mut Incoming) -> Result<Option<Bytes>, Refusal> {
    loop {
        match body.frame().await {
            None => return Ok(None),
            Some(Ok(frame)) => {
                if let Ok(bytes) = frame.into_data() {
                    return Ok(Some(bytes));
                }
            }
            Some(Err(error)) => {
                let message = format!("the request's body broke off: {error}");
                return Err(Refusal::new(StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID", message));
            }
        }
    }
}

pub(crate) async fn whole(mut body: Incoming, limit_bytes: u64) -> Result<Bytes, Refusal> {
    let mut all = BytesMut::new();
    while let Some(bytes) = next_piece(&mut body).await? {
        if (all.len() + bytes.len()) as u64 > limit_bytes {
            return Err(Refusal::too_large(limit_bytes));
        }
        all.extend_from_slice(&bytes);
    }
    Ok(all.freeze())
}

/// Runs file work off the runtime's threads.
async fn unblock<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, Refusal> {
    let done = tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)));
    done.map_err(|error| Refusal::internal(&error))
}
