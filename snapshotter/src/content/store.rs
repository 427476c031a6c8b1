//! containerd, asked about content, leases and names of images.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use hyper_util::rt::TokioIo;
use penstock_blob::{Blob, BlobSource, Digest};
use prost_types::FieldMask;
use tokio::net::UnixStream;
use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint},
};

use super::{
    error::StoreError,
    lease,
    plan::{Content, Piece, lacking},
    proto::{
        content::{self, content_client::ContentClient},
        images::{self, images_client::ImagesClient},
        leases::{self, leases_client::LeasesClient},
    },
};

/// How long one question may take. Committing a blob hashes nothing anew, but may wait for a slow disk.
const ASK_DEADLINE: Duration = Duration::from_secs(120);

/// containerd behind a socket, in one of its namespaces.
#[derive(Debug, Clone)]
pub struct Store {
    pub(super) channel: Channel,
    pub(super) socket: PathBuf,
    namespace: MetadataValue<Ascii>,
}

/// What a name of containerd's points to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Digest of the image's manifest, or of its index.
    pub digest: String,
    /// Its media type.
    pub media_type: String,
}

/// How far it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Blobs that containerd has.
    pub blobs: usize,
    /// Bytes that containerd has.
    pub bytes: u64,
}

/// What became of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// containerd had it.
    Present,
    /// It was written; so many bytes were there already from a try before.
    Written {
        /// Bytes that were not read again.
        resumed_bytes: u64,
    },
}

/// A blob, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The blob.
    pub blob: Blob,
    /// Its media type.
    pub media_type: String,
    /// What became of it.
    pub outcome: Outcome,
}

/// What was done for an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Materialised {
    /// Its blobs, in the order in which they were looked at.
    pub blobs: Vec<Written>,
    /// Whether containerd did not know the image by its name before.
    pub is_new: bool,
}

impl Store {
    /// containerd behind `socket`.
    ///
    /// # Errors
    /// [`StoreError::Away`], [`StoreError::Namespace`].
    pub async fn connect(socket: &Path, namespace: &str) -> Result<Self, StoreError> {
        let refused = || StoreError::Namespace { namespace: namespace.chars().take(128).collect() };
        // containerd's rule (identifiers): words of letters and digits, joined by one of . _ -, of at most 76 bytes.
        let is_word = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if namespace.len() > 76 || !namespace.split(['.', '_', '-']).all(is_word) {
            return Err(refused());
        }
        let metadata = namespace.parse().map_err(|_| refused())?;
        let path = socket.to_path_buf();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://localhost");
        let channel = endpoint.connect_with_connector(connector).await.map_err(|error| StoreError::Away {
            socket: socket.to_path_buf(),
            reason: std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string),
        })?;
        Ok(Self { channel, socket: socket.to_path_buf(), namespace: metadata })
    }

    /// What containerd knows under `name`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn image(&self, name: &str) -> Result<Option<Target>, StoreError> {
        let request = self.request(images::GetImageRequest { name: name.to_owned() });
        match ImagesClient::new(self.channel.clone()).get(request).await {
            Ok(answer) => Ok(answer
                .into_inner()
                .image
                .and_then(|image| image.target)
                .map(|target| Target { digest: target.digest, media_type: target.media_type })),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(self.error(&status, "say what the image's name points to")),
        }
    }

    /// Writes what containerd lacks of `content`, read from `source`, and names the image if it has no name yet. Dropped, it can be done
    /// again and goes on.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn materialise(
        &self,
        content: &Content,
        source: &dyn BlobSource,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Materialised, StoreError> {
        let Some(top) = content.pieces.last() else {
            return Ok(Materialised { blobs: Vec::new(), is_new: false });
        };
        let lease = self.lease(top.blob.digest).await?;
        let (mut blobs, mut done) = (Vec::with_capacity(content.pieces.len()), Progress::default());
        for piece in &content.pieces {
            let before = done.bytes;
            let labels = content.labels(piece);
            let outcome = match self.keep(piece, labels.clone(), &lease).await? {
                true => Outcome::Present,
                false => {
                    let tell = |bytes| progress(Progress { bytes: before + bytes, ..done });
                    self.write(piece, (source, labels), &lease, &tell).await?
                }
            };
            done = Progress { blobs: done.blobs + 1, bytes: before + piece.blob.size_bytes };
            progress(done);
            blobs.push(Written { blob: piece.blob, media_type: piece.media_type.clone(), outcome });
        }
        let is_new = self.name(&content.name, top).await?;
        let given_back = self.request(leases::DeleteRequest { id: lease, sync: false });
        LeasesClient::new(self.channel.clone())
            .delete(given_back)
            .await
            .map_err(|status| self.error(&status, "give the lease back"))?;
        Ok(Materialised { blobs, is_new })
    }

    /// A request in the namespace, with a deadline.
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = self.undated(message);
        request.set_timeout(ASK_DEADLINE);
        request
    }

    /// A request in the namespace that may take as long as it goes on.
    pub(super) fn undated<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("containerd-namespace", self.namespace.clone());
        request
    }

    pub(super) fn error(&self, status: &Status, what: &'static str) -> StoreError {
        StoreError::of(status, what, &self.socket)
    }

    /// The lease for the image, which a try before may have made.
    async fn lease(&self, manifest: Digest) -> Result<String, StoreError> {
        let id = lease::id(manifest);
        let request = leases::CreateRequest { id: id.clone(), labels: lease::labels(SystemTime::now()) };
        match LeasesClient::new(self.channel.clone()).create(self.request(request)).await {
            Err(status) if status.code() != Code::AlreadyExists => Err(self.error(&status, "make a lease")),
            _ => Ok(id),
        }
    }

    /// Whether containerd has the blob. If so, it stays until the lease is given back, and has all its labels.
    async fn keep(&self, piece: &Piece, labels: BTreeMap<String, String>, lease: &str) -> Result<bool, StoreError> {
        let digest = piece.blob.digest.to_string();
        let mut client = ContentClient::new(self.channel.clone());
        let resource = leases::Resource { id: digest.clone(), r#type: "content".to_owned() };
        let held = leases::AddResourceRequest { id: lease.to_owned(), resource: Some(resource) };
        // First held, then looked for: what is there now is there until the end.
        match LeasesClient::new(self.channel.clone()).add_resource(self.request(held)).await {
            Err(status) if status.code() != Code::NotFound => return Err(self.error(&status, "hold a blob")),
            _ => {}
        }
        let asked = self.request(content::InfoRequest { digest: digest.clone() });
        let info = match client.info(asked).await {
            Err(status) if status.code() == Code::NotFound => return Ok(false),
            answer => answer.map_err(|status| self.error(&status, "say whether it has a blob"))?.into_inner().info,
        };
        let lacking = lacking(&info.unwrap_or_default().labels, labels);
        if !lacking.is_empty() {
            let paths = lacking.keys().map(|key| format!("labels.{key}")).collect();
            let info = content::Info { digest, labels: lacking, ..content::Info::default() };
            let update = content::UpdateRequest { info: Some(info), update_mask: Some(FieldMask { paths }) };
            let updated = client.update(self.request(update)).await;
            updated.map_err(|status| self.error(&status, "label a blob"))?;
        }
        Ok(true)
    }

    /// Gives the image its name, unless it has it. Whether it had none.
    async fn name(&self, name: &str, top: &Piece) -> Result<bool, StoreError> {
        let target = images::Descriptor {
            media_type: top.media_type.clone(),
            digest: top.blob.digest.to_string(),
            size: i64::try_from(top.blob.size_bytes).unwrap_or(i64::MAX),
            annotations: BTreeMap::new(),
        };
        let image = images::Image { name: name.to_owned(), target: Some(target), ..images::Image::default() };
        let request = self.request(images::CreateImageRequest { image: Some(image) });
        match ImagesClient::new(self.channel.clone()).create(request).await {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::AlreadyExists => Ok(false),
            Err(status) => Err(self.error(&status, "name the image")),
        }
    }
}
