//! Indexes that somebody pushed beside the image. Who may be believed is the operator's choice: an index that lies can show other bytes than the layer's.

use std::{
    collections::VecDeque,
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream};
use parking_lot::Mutex;
use penstock_blob::{Blob, BlobSource, ByteRange, Digest, Hasher, Purpose};
use penstock_fetcher::{Descriptor, Fetcher, Manifest, Platform, ResolveError};
use tokio::time::timeout;

use super::{
    artifact::{self, ARTIFACT_TYPE, Listed},
    origin::{Finding, Looking, Offered, Origin, OriginError, Wanted},
    signed::Signer,
};
use crate::{config::Way, lent::Lent, recordings::Accept, turns::Turns};

/// Most artifacts of one image that are looked at: one is usual, two where it was made anew.
const CANDIDATES: usize = 4;
/// Images remembered at once, each with its list of indexes.
const KNOWN: usize = 64;
/// How long is remembered that an image has none: the layers of one pull ask one after the other.
const NONE_FOR: Duration = Duration::from_secs(30);
/// Largest index fetched, in bytes: that of a layer of several TiB.
const MAX_INDEX_BYTES: u64 = 4 << 30;
/// Bytes of one read of an index, and reads under way at once.
const PIECE_BYTES: u64 = 4 << 20;
const PIECES_AT_ONCE: usize = 4;

/// Whom to believe.
#[derive(Debug, Clone)]
pub(crate) struct Trust {
    /// The registries whose indexes are looked at.
    pub(crate) accept: Accept,
    /// Who must have signed them; `None`: nobody, the registry is trusted.
    pub(crate) signer: Option<Signer>,
    /// Longest time that looking for one may take.
    pub(crate) deadline: Duration,
}

/// What is known of one image.
#[derive(Debug, Clone)]
struct Known {
    image: Digest,
    at: Instant,
    listed: Arc<[Listed]>,
}

/// The indexes beside images, in their repositories.
#[derive(Debug)]
pub(crate) struct Pushed {
    fetcher: Arc<Fetcher>,
    trust: Trust,
    platform: Platform,
    known: Mutex<VecDeque<Known>>,
    turns: Turns<Digest>,
}

fn failed(error: impl std::fmt::Display) -> OriginError {
    OriginError { reason: error.to_string() }
}

impl Pushed {
    pub(crate) fn new(fetcher: Arc<Fetcher>, trust: Trust, platform: Platform) -> Self {
        Self { fetcher, trust, platform, known: Mutex::default(), turns: Turns::default() }
    }

    /// The indexes of an image: its registry is asked once for all layers.
    async fn listed(&self, manifest: &Manifest) -> Result<Arc<[Listed]>, OriginError> {
        let _turn = self.turns.take(manifest.digest).await;
        if let Some(listed) = self.remembered(manifest.digest) {
            return Ok(listed);
        }
        let host = manifest.reference.host();
        let late = |_| failed(format!("{host} gave no answer within {:?}", self.trust.deadline));
        let found = timeout(self.trust.deadline, Box::pin(self.search(manifest))).await.map_err(late)?;
        let listed: Arc<[Listed]> = found?.into();
        let mut known = self.known.lock();
        known.retain(|other| other.image != manifest.digest);
        if known.len() == KNOWN {
            known.pop_front();
        }
        known.push_back(Known { image: manifest.digest, at: Instant::now(), listed: Arc::clone(&listed) });
        Ok(listed)
    }

    fn remembered(&self, image: Digest) -> Option<Arc<[Listed]>> {
        let known = self.known.lock();
        let found = known.iter().find(|known| known.image == image)?;
        (!found.listed.is_empty() || found.at.elapsed() < NONE_FOR).then(|| Arc::clone(&found.listed))
    }

    /// The first artifact that is of this image and is trusted.
    async fn search(&self, manifest: &Manifest) -> Result<Vec<Listed>, OriginError> {
        let (reference, image) = (&manifest.reference, manifest.digest);
        let descriptors = self.fetcher.referrers(reference, image, ARTIFACT_TYPE).await.map_err(failed)?;
        let mut refused = None;
        for descriptor in descriptors.iter().take(CANDIDATES) {
            match self.candidate(manifest, descriptor).await? {
                Ok(listed) => return Ok(listed),
                Err(reason) => refused = Some(format!("artifact {}: {reason}", descriptor.digest)),
            }
        }
        refused.map_or_else(|| Ok(Vec::new()), |reason| Err(failed(reason)))
    }

    async fn candidate(
        &self,
        manifest: &Manifest,
        descriptor: &Descriptor,
    ) -> Result<Result<Vec<Listed>, String>, OriginError> {
        let bytes = match self.fetcher.artifact(&manifest.reference, descriptor).await {
            Ok(bytes) => bytes,
            // Listed, but removed since: an entry of a tag stays when what it names goes.
            Err(error @ ResolveError::NotFound { .. }) => return Ok(Err(error.to_string())),
            Err(error) => return Err(failed(error)),
        };
        let listed = match artifact::listed(&bytes, manifest.digest) {
            Ok(listed) => listed,
            Err(reason) => return Ok(Err(reason)),
        };
        let Some(signer) = &self.trust.signer else { return Ok(Ok(listed)) };
        let by = signer.check((&self.fetcher, &self.platform), &manifest.reference, descriptor.digest).await;
        Ok(by.map(|()| listed))
    }

    /// The index of a layer that is listed beside the image.
    async fn index(&self, wanted: Wanted<'_>) -> Result<Option<Blob>, OriginError> {
        let listed = self.listed(wanted.manifest).await?;
        let Some(listed) = listed.iter().find(|listed| listed.layer == wanted.layer.blob()) else { return Ok(None) };
        if listed.diff_id != wanted.diff_id {
            let (said, known) = (listed.diff_id, wanted.diff_id);
            return Err(failed(format!("it is of an archive {said}, and the image's config says {known}")));
        }
        let index = listed.index;
        if index.size_bytes > MAX_INDEX_BYTES {
            return Err(failed(format!("it has {} bytes; at most {MAX_INDEX_BYTES} are fetched", index.size_bytes)));
        }
        Ok(Some(index))
    }

    async fn fetch(&self, wanted: Wanted<'_>, to: &Path) -> Result<bool, OriginError> {
        let reference = &wanted.manifest.reference;
        if !self.trust.accept.takes(reference.registry()) {
            return Ok(false);
        }
        let Some(index) = self.index(wanted).await? else { return Ok(false) };
        let _lent = Lent::new(&self.fetcher, index, reference);
        download(&*self.fetcher, index, to.to_path_buf()).await?;
        let of = to.to_path_buf();
        let diff_id = blocking(move || archive_of(&of)).await??;
        if diff_id != wanted.diff_id {
            return Err(failed(format!(
                "it is of an archive {diff_id}, and the image's config says {}",
                wanted.diff_id
            )));
        }
        Ok(true)
    }
}

impl Origin for Pushed {
    fn name(&self) -> &'static str {
        // What was believed for another reason is not believed for this one.
        if self.trust.signer.is_some() { "signed" } else { "pushed" }
    }

    fn way(&self) -> Way {
        Way::Pushed
    }

    fn what(&self) -> &'static str {
        if self.trust.signer.is_some() {
            "a layer index from its registry, signed by layers.key"
        } else {
            "a layer index from its registry, which layers.accept trusts"
        }
    }

    fn is_of_one_image(&self) -> bool {
        self.trust.signer.is_none()
    }

    /// What is believed for one image alone has an archive of its own name.
    fn is_of_diff_id(&self) -> bool {
        self.trust.signer.is_some()
    }

    fn find<'a>(&'a self, wanted: Wanted<'a>, to: &'a Path) -> Finding<'a> {
        Box::pin(self.fetch(wanted, to))
    }

    /// Also where the registry is not trusted: then that is the error.
    fn look<'a>(&'a self, wanted: Wanted<'a>) -> Looking<'a> {
        Box::pin(async move {
            let Some(Blob { size_bytes, .. }) = self.index(wanted).await? else { return Ok(None) };
            let registry = wanted.manifest.reference.registry();
            if !self.trust.accept.takes(registry) {
                return Err(failed(format!("there is one, but layers.accept does not name {registry}")));
            }
            Ok(Some(Offered { what: "layer index".to_owned(), index_bytes: size_bytes, fetched_bytes: size_bytes }))
        })
    }
}

/// The archive that the index in a file says it is of.
fn archive_of(path: &Path) -> Result<Digest, OriginError> {
    let index = penstock_layers::Index::open(File::open(path).map_err(failed)?).map_err(failed)?;
    let layer = index.layer();
    if layer.is_translated {
        return Err(failed("it is one that a node makes for itself of another format: its frames may have no digests"));
    }
    Ok(layer.unpacked.digest)
}

/// Writes a blob to a file, and compares its digest.
async fn download(source: &dyn BlobSource, blob: Blob, to: PathBuf) -> Result<(), OriginError> {
    let opening = blocking(move || File::options().write(true).truncate(true).open(to)).await?;
    let (mut file, mut hasher) = (opening.map_err(failed)?, Hasher::new());
    let pieces = (0..blob.size_bytes.div_ceil(PIECE_BYTES)).filter_map(|nth| {
        let start = nth * PIECE_BYTES;
        ByteRange::new(start, (start + PIECE_BYTES).min(blob.size_bytes)).ok()
    });
    let reads = pieces.map(|piece| source.read(blob, piece, Purpose::Demand)).collect::<Vec<_>>();
    let mut pieces = stream::iter(reads).buffered(PIECES_AT_ONCE);
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(failed)?;
        let written = blocking(move || {
            hasher.update(&piece);
            file.write_all(&piece).map(|()| (file, hasher))
        });
        (file, hasher) = written.await?.map_err(failed)?;
    }
    let actual = hasher.finish();
    if actual != blob.digest {
        return Err(failed(format!("the registry's bytes for it have digest {actual}, not {}", blob.digest)));
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, OriginError> {
    tokio::task::spawn_blocking(work).await.map_err(failed)
}
