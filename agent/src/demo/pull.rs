//! The full pull that the demo compares with: download the layer, decode it, write the disk. Nothing is read before the end.

use std::{fs::File, io, os::unix::fs::FileExt as _, path::Path, sync::Arc};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use penstock_blob::{Blob, BlobSource, ByteRange, Located, Pinned, Purpose, ReadError, ReadFuture};
use penstock_image::{Image, Layer};
use tokio::{net::TcpStream, task::JoinSet};

/// Decoded and written at a time: large enough to be quick, small enough for Ctrl-C to be heard.
const STEP_BYTES: u64 = 4 << 20;
/// A piece of zeros of this size stays a hole in the disk.
const HOLE_BYTES: usize = 64 << 10;

/// Why the comparison could not be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum PullError {
    #[error("the comparison's download failed: {0}")]
    Http(String),
    #[error("the comparison's download or disk cannot be written: {0}")]
    Io(#[from] io::Error),
    #[error("the downloaded image cannot be opened: {0}")]
    Open(#[from] penstock_image::OpenError),
    #[error("the downloaded image cannot be decoded: {0}")]
    Decode(#[from] penstock_image::DeviceReadError),
}

/// Downloads `layer` and writes the disk in it to `dir`; answers the disk's file.
pub(super) async fn pull(
    host: &str,
    (repository, tag): (&str, &str),
    layer: Layer,
    dir: &Path,
) -> Result<File, PullError> {
    let blob = layer.blob;
    let mut discarded = io::sink();
    download(host, &format!("/v2/{repository}/manifests/{tag}"), &mut discarded).await?;
    let mut file = File::options().create(true).truncate(true).read(true).write(true).open(dir.join("layer"))?;
    download(host, &format!("/v2/{repository}/blobs/{}", blob.digest), &mut file).await?;
    let source: Arc<dyn BlobSource> = Arc::new(Downloaded { blob, file: Arc::new(Whole(file)) });
    let image = Image::open(vec![layer], Arc::clone(&source), dir).await?;
    let disk = File::options().create(true).truncate(true).read(true).write(true).open(dir.join("disk"))?;
    disk.set_len(image.size_bytes())?;
    let mut at = 0;
    while let Ok(range) = ByteRange::new(at, (at + STEP_BYTES).min(image.size_bytes())) {
        let bytes = penstock_image::read(&image, &source, range).await?;
        let mut piece_at = at;
        for piece in bytes.chunks(HOLE_BYTES) {
            if piece.iter().any(|&byte| byte != 0) {
                disk.write_all_at(piece, piece_at)?;
            }
            piece_at += piece.len() as u64;
        }
        at = range.end();
        // Everything is local: without this nothing else on this thread would run until the end.
        tokio::task::yield_now().await;
    }
    Ok(disk)
}

/// One GET of `path`, its body written to `to`.
async fn download(host: &str, path: &str, to: &mut (impl io::Write + Send)) -> Result<(), PullError> {
    let failed = |error: &dyn std::fmt::Display| PullError::Http(error.to_string());
    let stream = TcpStream::connect(host).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
    let mut connections = JoinSet::new();
    connections.spawn(connection);
    let request = Request::get(path)
        .header(header::HOST, host)
        .header(header::ACCEPT, "application/vnd.oci.image.manifest.v1+json, */*")
        .body(Empty::<Bytes>::new())
        .map_err(|error| failed(&error))?;
    let mut response = sender.send_request(request).await.map_err(|error| failed(&error))?;
    if response.status() != StatusCode::OK {
        return Err(PullError::Http(format!("{path} answers {}", response.status())));
    }
    while let Some(frame) = response.frame().await {
        let frame = frame.map_err(|error| failed(&error))?;
        if let Some(bytes) = frame.data_ref() {
            to.write_all(bytes)?;
        }
    }
    Ok(())
}

/// The downloaded layer as a source: everything is here.
#[derive(Debug)]
struct Downloaded {
    blob: Blob,
    file: Arc<Whole>,
}

/// A file whose bytes stay.
#[derive(Debug)]
struct Whole(File);

impl Pinned for Whole {
    fn file(&self) -> &File {
        &self.0
    }

    fn unpin(&self, _: ByteRange) {}
}

impl BlobSource for Downloaded {
    fn locate(&self, blob: &Blob, range: ByteRange) -> Option<Located> {
        (blob.digest == self.blob.digest && self.blob.check(range).is_ok())
            .then(|| Located::in_file(Arc::clone(&self.file) as _, range, range.start()))
    }

    fn read(&self, blob: Blob, range: ByteRange, _: Purpose) -> ReadFuture<'_> {
        Box::pin(async move {
            blob.check(range)?;
            let storage = |reason: String| ReadError::Storage { blob: blob.digest, reason };
            let located = self.locate(&blob, range).ok_or_else(|| ReadError::NotFound {
                blob: blob.digest,
                reason: "only one layer was downloaded".to_owned(),
            })?;
            let len = usize::try_from(range.len()).map_err(|error| storage(error.to_string()))?;
            let mut bytes = vec![0; len];
            located.read_at(&mut bytes, 0).map_err(|error| storage(error.to_string()))?;
            Ok(bytes.into())
        })
    }

    fn reject(&self, _: &Blob, _: ByteRange) {}
}
