//! Blobs that containerd has, read from its content store: what it has fetched is not fetched again.

use bytes::{Bytes, BytesMut};
use penstock_blob::{Blob, BlobSource, ByteRange, Located, Purpose, ReadError, ReadFuture};
use tonic::{Code, Status};

use super::{
    error::StoreError,
    proto::content::{InfoRequest, ReadContentRequest, content_client::ContentClient},
    store::Store,
};

/// containerd's content store as a source of blobs. containerd has compared each with its digest when it took it; its collector may remove any at any time:
/// then reads of it fail.
#[derive(Debug, Clone)]
pub struct Stored(Store);

impl Store {
    /// Whether containerd has all of the blob.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn has(&self, blob: &Blob) -> Result<bool, StoreError> {
        let asked = self.request(InfoRequest { digest: blob.digest.to_string() });
        match ContentClient::new(self.channel.clone()).info(asked).await {
            Ok(answer) => {
                let size = answer.into_inner().info.map(|info| info.size);
                Ok(size.and_then(|size| u64::try_from(size).ok()) == Some(blob.size_bytes))
            }
            Err(status) if status.code() == Code::NotFound => Ok(false),
            Err(status) => Err(self.error(&status, "say whether it has a blob")),
        }
    }

    /// What containerd has, to be read.
    #[must_use]
    pub const fn stored(self) -> Stored {
        Stored(self)
    }
}

impl Stored {
    async fn bytes(&self, blob: Blob, range: ByteRange) -> Result<Bytes, ReadError> {
        blob.check(range)?;
        let failed = |status: &Status| match status.code() {
            Code::NotFound => {
                ReadError::NotFound { blob: blob.digest, reason: "containerd does not have it any more".to_owned() }
            }
            _ => ReadError::Storage { blob: blob.digest, reason: self.0.error(status, "give a blob").to_string() },
        };
        let wrong = |reason: &str| ReadError::Storage { blob: blob.digest, reason: reason.to_owned() };
        let too_large = |_| wrong("containerd's numbers are too small for the blob");
        let offset = i64::try_from(range.start()).map_err(too_large)?;
        let size = i64::try_from(range.len()).map_err(too_large)?;
        let asked = self.0.request(ReadContentRequest { digest: blob.digest.to_string(), offset, size });
        let answers = ContentClient::new(self.0.channel.clone()).read(asked).await;
        let mut answers = answers.map_err(|status| failed(&status))?.into_inner();
        let mut bytes = BytesMut::new();
        while let Some(answer) = answers.message().await.map_err(|status| failed(&status))? {
            bytes.extend_from_slice(&answer.data);
            if bytes.len() as u64 > range.len() {
                break;
            }
        }
        if bytes.len() as u64 == range.len() {
            Ok(bytes.freeze())
        } else {
            Err(wrong("containerd gave another number of bytes than it was asked for"))
        }
    }
}

impl BlobSource for Stored {
    fn locate(&self, _blob: &Blob, _range: ByteRange) -> Option<Located> {
        None
    }

    fn read(&self, blob: Blob, range: ByteRange, _purpose: Purpose) -> ReadFuture<'_> {
        Box::pin(self.bytes(blob, range))
    }

    /// There is nobody else to ask, and what is wrong on containerd's disk stays wrong.
    fn reject(&self, _blob: &Blob, _range: ByteRange) {}
}
