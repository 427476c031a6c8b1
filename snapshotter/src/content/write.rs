//! One blob is written: what containerd has of it is not read again, and it is committed against its digest.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use penstock_blob::{Blob, BlobSource, ByteRange, Purpose, ReadError};
use tokio::sync::mpsc;
use tonic::{Code, Status, Streaming, metadata::MetadataValue};

use super::{
    error::StoreError,
    plan::Piece,
    proto::content::{
        AbortRequest, WriteAction, WriteContentRequest, WriteContentResponse, content_client::ContentClient,
    },
    store::{Outcome, Store},
};

/// Bytes of one message. containerd takes up to 16 MiB.
const MESSAGE_BYTES: u64 = 1 << 20;
/// Messages read ahead of the one that is written: hides a registry's latency, and is all that is held in memory.
const READ_AHEAD: usize = 8;

/// A write that containerd holds open.
struct Writing<'a> {
    store: &'a Store,
    blob: Blob,
    requests: mpsc::Sender<WriteContentRequest>,
    answers: Streaming<WriteContentResponse>,
}

impl Store {
    /// Writes one blob, and tells after each message how much of it containerd has.
    pub(super) async fn write(
        &self,
        piece: &Piece,
        (source, labels): (&dyn BlobSource, BTreeMap<String, String>),
        lease: &str,
        tell: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Outcome, StoreError> {
        let Some((mut writing, there)) = self.begin(piece.blob, lease).await? else { return Ok(Outcome::Present) };
        tell(there);
        let mut at = there;
        let mut bytes = std::pin::pin!(bytes(piece, source, there));
        while let Some(read) = bytes.next().await {
            let data = read?;
            at += data.len() as u64;
            writing.data(at - data.len() as u64, data).await?;
            tell(at);
        }
        match writing.commit(labels).await {
            Err(StoreError::WrongBytes { blob }) => {
                self.abort(&reference(&piece.blob)).await;
                if let Some(all) = piece.blob.all() {
                    source.reject(&piece.blob, all);
                }
                Err(StoreError::WrongBytes { blob })
            }
            Err(error) => Err(error),
            Ok(()) => Ok(Outcome::Written { resumed_bytes: there }),
        }
    }

    /// Opens the write. Answers how much of it there is; `None` when all is there, and committed.
    async fn begin(&self, blob: Blob, lease: &str) -> Result<Option<(Writing<'_>, u64)>, StoreError> {
        let (requests, mut receiver) = mpsc::channel(1);
        let mut request = self.undated(stream::poll_fn(move |cx| receiver.poll_recv(cx)));
        // It is made of hex digits.
        if let Ok(lease) = MetadataValue::try_from(lease) {
            request.metadata_mut().insert("containerd-lease", lease);
        }
        let first = WriteContentRequest { action: WriteAction::Stat.into(), r#ref: reference(&blob), ..sized(&blob) };
        // There is room for one.
        let _ = requests.try_send(first);
        let answers = match ContentClient::new(self.channel.clone()).write(request).await {
            Err(status) => return self.not_begun(&status, &blob),
            Ok(answers) => answers.into_inner(),
        };
        let mut writing = Writing { store: self, blob, requests, answers };
        match writing.answers.message().await {
            Err(status) => self.not_begun(&status, &blob),
            Ok(None) => Err(writing.cut_off()),
            Ok(Some(state)) => {
                let there = u64::try_from(state.offset).unwrap_or(0);
                // More than there can be is begun anew: a write at 0 drops it.
                Ok(Some((writing, if there > blob.size_bytes { 0 } else { there })))
            }
        }
    }

    fn not_begun<T>(&self, status: &Status, blob: &Blob) -> Result<Option<T>, StoreError> {
        match status.code() {
            Code::AlreadyExists => Ok(None),
            // What containerd says when another stream holds the same write.
            Code::Unavailable if status.message().contains("locked") => Err(StoreError::Busy { blob: blob.digest }),
            _ => Err(self.error(status, "take a blob")),
        }
    }

    /// Drops what there is of a write.
    async fn abort(&self, reference: &str) {
        let request = self.request(AbortRequest { r#ref: reference.to_owned() });
        if let Err(error) = ContentClient::new(self.channel.clone()).abort(request).await {
            // The lease ends of itself.
            tracing::debug!(%error, "a write that cannot be finished stays in the content store for a while");
        }
    }
}

impl Writing<'_> {
    async fn data(&mut self, offset: u64, data: Bytes) -> Result<(), StoreError> {
        let end = offset + data.len() as u64;
        let action = WriteAction::Write.into();
        let answer = self
            .ask(WriteContentRequest { action, offset: signed(offset), data: data.into(), ..sized(&self.blob) })
            .await;
        match answer.map_err(|status| self.store.error(&status, "take a blob's bytes"))? {
            Some(answer) if answer.offset == signed(end) => Ok(()),
            _ => Err(self.cut_off()),
        }
    }

    async fn commit(&mut self, labels: BTreeMap<String, String>) -> Result<(), StoreError> {
        let (action, offset) = (WriteAction::Commit.into(), signed(self.blob.size_bytes));
        match self.ask(WriteContentRequest { action, offset, labels, ..sized(&self.blob) }).await {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(self.cut_off()),
            // Somebody else was faster.
            Err(status) if status.code() == Code::AlreadyExists => Ok(()),
            Err(status) if status.code() == Code::FailedPrecondition => {
                Err(StoreError::WrongBytes { blob: self.blob.digest })
            }
            Err(status) => Err(self.store.error(&status, "commit a blob")),
        }
    }

    async fn ask(&mut self, request: WriteContentRequest) -> Result<Option<WriteContentResponse>, Status> {
        // When nobody takes it any more, the answer says why.
        let _ = self.requests.send(request).await;
        self.answers.message().await
    }

    fn cut_off(&self) -> StoreError {
        let reason = "it ended the write early".to_owned();
        StoreError::Away { socket: self.store.socket.clone(), reason }
    }
}

/// The bytes of a blob from `there` on, in messages.
fn bytes<'a>(
    piece: &'a Piece,
    source: &'a dyn BlobSource,
    there: u64,
) -> impl Stream<Item = Result<Bytes, ReadError>> + 'a {
    let (blob, end) = (piece.blob, piece.blob.size_bytes);
    let starts = (0..).map(move |n| there + n * MESSAGE_BYTES).take_while(move |start| *start < end);
    let ranges = starts.filter_map(move |start| ByteRange::new(start, end.min(start + MESSAGE_BYTES)).ok());
    stream::iter(ranges)
        .map(move |range| async move {
            match &piece.bytes {
                Some(bytes) => {
                    let at = |offset| usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                    Ok(bytes.slice(at(range.start())..at(range.end())))
                }
                None => source.read(blob, range, Purpose::Demand).await,
            }
        })
        .buffered(READ_AHEAD)
}

/// The name of a write: the same for each try, and not that of containerd's own pulls, whose writes are theirs.
fn reference(blob: &Blob) -> String {
    format!("penstock-{}", blob.digest)
}

fn sized(blob: &Blob) -> WriteContentRequest {
    let (total, expected) = (signed(blob.size_bytes), blob.digest.to_string());
    WriteContentRequest { total, expected, ..WriteContentRequest::default() }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
