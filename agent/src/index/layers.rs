//! `penstock index` of an ordinary image: each layer is read once, in order, its digest and that of its archive are verified, and its layer index is made.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use penstock_blob::{Blob, Digest};
use penstock_fetcher::{Fetcher, Manifest, Reference};
use serde::Serialize;

use super::{Args, IndexError};
use crate::{
    layers::{
        artifact::{self, Listed},
        config::diff_ids,
        make,
        push::push,
    },
    output::{self, Progress, Table, size},
};

/// What is said of a layer whose index is good for reading it in order only.
const STREAMED: &str =
    "it is a Zstandard frame of more than 16 MiB: streamed from its beginning, prefetched in parallel";

/// What was made.
#[derive(Debug, Serialize)]
pub(super) struct Answer {
    reference: Reference,
    /// The image's manifest.
    manifest: Digest,
    /// The manifest of the artifact.
    index: Digest,
    pushed: bool,
    layers: Vec<AnswerLayer>,
}

#[derive(Debug, Serialize)]
struct AnswerLayer {
    digest: Digest,
    size_bytes: u64,
    diff_id: Digest,
    /// Size of its index; none for a layer that is not lazy.
    index_bytes: Option<u64>,
    /// Why it is not lazy: it has no index, or one by which it is streamed.
    reason: Option<String>,
}

/// One layer, and what became of it.
struct Made {
    layer: Blob,
    diff_id: Digest,
    index: Result<(Blob, PathBuf), String>,
    /// Whether it decodes only from its beginning.
    is_streamed: bool,
}

/// Makes the layer indexes of an image, and pushes them unless told otherwise.
pub(super) async fn make(args: &Args, fetcher: &Arc<Fetcher>, manifest: &Manifest) -> Result<Answer, IndexError> {
    let diff_ids = diff_ids(fetcher, &**fetcher, manifest).await?;
    let mut layers: Vec<(Blob, Digest)> = Vec::with_capacity(diff_ids.len());
    for layer in manifest.layers.iter().map(penstock_fetcher::Descriptor::blob).zip(diff_ids) {
        if !layers.contains(&layer) {
            layers.push(layer);
        }
    }
    let scratch = tempfile::tempdir()?;
    let dir = args.save.as_deref().unwrap_or(scratch.path());
    let made = indexes(fetcher, &layers, dir, usize::from(args.jobs)).await?;
    let listed: Vec<(Listed, PathBuf)> = made.iter().filter_map(Made::listed).collect();
    if listed.is_empty() {
        let reason = made.iter().find_map(|made| made.index.as_ref().err()).cloned().unwrap_or_default();
        return Err(IndexError::NotLazy { reason });
    }
    let subject = (manifest.media_type.as_str(), Blob { digest: manifest.digest, size_bytes: manifest.size_bytes });
    let only: Vec<Listed> = listed.iter().map(|(listed, _)| *listed).collect();
    let bytes = artifact::manifest(&only, subject).map_err(IndexError::Image)?;
    if let Some(dir) = &args.save {
        tokio::fs::write(dir.join("manifest.json"), &bytes).await?;
    }
    if !args.dry_run {
        let what = format!("pushing the layer indexes of {}", manifest.reference);
        output::with_progress(&what, Box::pin(push(fetcher, manifest, listed))).await?;
    }
    Ok(Answer {
        reference: manifest.reference.clone(),
        manifest: manifest.digest,
        index: Digest::of(&bytes),
        pushed: !args.dry_run,
        layers: made.into_iter().map(Made::answer).collect(),
    })
}

/// The indexes of all layers, `jobs` at a time, as files of `dir`.
async fn indexes(
    fetcher: &Arc<Fetcher>,
    layers: &[(Blob, Digest)],
    dir: &Path,
    jobs: usize,
) -> Result<Vec<Made>, IndexError> {
    let progress = Progress::of(layers.iter().map(|(layer, _)| layer.size_bytes));
    let making = layers.iter().zip(progress.parts()).map(|(&(layer, diff_id), done)| async move {
        let path = dir.join(format!("{}.layer-index", layer.digest.to_hex()));
        let mut is_streamed = false;
        let index = match make::index(&**fetcher, (layer, diff_id), &path, |bytes| done.set(bytes)).await {
            Ok(built) => {
                is_streamed = built.layer.is_streamed;
                Ok((built.index, path))
            }
            Err(error) if error.is_not_lazy() => Err(error.to_string()),
            Err(error) => return Err(IndexError::Image(error.to_string())),
        };
        Ok(Made { layer, diff_id, index, is_streamed })
    });
    let making = stream::iter(making.collect::<Vec<_>>()).buffered(jobs).try_collect();
    progress.note_until("verified and indexed", making).await
}

impl Made {
    fn listed(&self) -> Option<(Listed, PathBuf)> {
        let (index, path) = self.index.as_ref().ok()?;
        Some((Listed { layer: self.layer, diff_id: self.diff_id, index: *index }, path.clone()))
    }

    fn answer(self) -> AnswerLayer {
        let (index_bytes, reason) = match self.index {
            Ok((index, _)) => (Some(index.size_bytes), self.is_streamed.then(|| STREAMED.to_owned())),
            Err(reason) => (None, Some(reason)),
        };
        let Blob { digest, size_bytes } = self.layer;
        AnswerLayer { digest, size_bytes, diff_id: self.diff_id, index_bytes, reason }
    }
}

pub(super) fn table(answer: &Answer) -> String {
    let mut facts = Table::facts();
    facts.fact("image", &answer.reference);
    facts.fact("layer indexes", answer.index);
    facts.fact("pushed", if answer.pushed { "yes" } else { "no (--dry-run)" });
    let mut layers = Table::new(&["LAYER", ">SIZE", ">INDEX", ">SHARE", "NOT LAZY BECAUSE"]);
    for layer in &answer.layers {
        let index = layer.index_bytes.map(size).unwrap_or_default();
        let share = layer.index_bytes.map(|bytes| output::percent(bytes, layer.size_bytes)).unwrap_or_default();
        let reason = layer.reason.clone().unwrap_or_default();
        layers.row([layer.digest.to_string(), size(layer.size_bytes), index, share, reason]);
    }
    format!("{facts}\n{layers}")
}
