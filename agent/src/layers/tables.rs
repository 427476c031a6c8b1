//! Layers that bring a table of contents of their own: eStargz and zstd:chunked. The table becomes the layer's index.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use penstock_blob::{Blob, BlobSource};
use penstock_fetcher::{Fetcher, Platform, Reference};
use penstock_layers::{
    Layer,
    foreign::{ForeignError, Offer, TableCost},
};

use super::origin::{Finding, Looking, Offered, Origin, OriginError, Wanted};
use crate::{config::Way, lent::Lent};

/// What is put behind an image's tag to name the image that has the tables of its layers (stargz-snapshotter, "external TOC").
const OUTSIDE_SUFFIX: &str = "-esgztoc";
/// The annotation of a table there: the digest of the layer that it is of.
const OUTSIDE_OF: &str = "containerd.io/snapshot/stargz/layer.digest";

/// Tables of contents that an image's manifest names by their digests.
#[derive(Debug)]
pub(crate) struct Tables {
    pub(crate) fetcher: Arc<Fetcher>,
    /// Reads compressed layers: below what decodes them.
    pub(crate) source: Arc<dyn BlobSource>,
    pub(crate) platform: Platform,
}

impl Origin for Tables {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn way(&self) -> Way {
        Way::Toc
    }

    fn what(&self) -> &'static str {
        "its own table of contents, whose digest the image's manifest has"
    }

    fn find<'a>(&'a self, wanted: Wanted<'a>, to: &'a Path) -> Finding<'a> {
        Box::pin(async move {
            let Some(offer) = Offer::of(&wanted.layer.annotations).map_err(refused)? else { return Ok(false) };
            let layer = wanted.layer.blob();
            let _lent = Lent::new(&self.fetcher, layer, &wanted.manifest.reference);
            let translated = match offer.translate(&*self.source, layer, None, to).await {
                Err(ForeignError::External) => {
                    let (table, from) = self.outside(wanted).await?;
                    let _lent = Lent::new(&self.fetcher, table, &from);
                    offer.translate(&*self.source, layer, Some(table), to).await
                }
                other => other,
            };
            let translated = translated.map_err(refused)?;
            tracing::debug!(layer = %layer.digest, ?translated, "a table of contents became a layer index");
            Ok(true)
        })
    }

    fn look<'a>(&'a self, wanted: Wanted<'a>) -> Looking<'a> {
        Box::pin(async move {
            let Some(offer) = Offer::of(&wanted.layer.annotations).map_err(refused)? else { return Ok(None) };
            let layer = wanted.layer.blob();
            let _lent = Lent::new(&self.fetcher, layer, &wanted.manifest.reference);
            let cost = match offer.cost(&*self.source, layer, None).await {
                Err(ForeignError::External) => {
                    let (table, _) = self.outside(wanted).await?;
                    offer.cost(&*self.source, layer, Some(table)).await
                }
                other => other,
            };
            let TableCost { table_bytes, fetched_bytes } = cost.map_err(refused)?;
            Ok(Some(Offered { what: offer.format().to_string(), index_bytes: table_bytes, fetched_bytes }))
        })
    }
}

fn refused(error: ForeignError) -> OriginError {
    OriginError { reason: error.to_string() }
}

impl Tables {
    /// As [`Origin::name`].
    const NAME: &'static str = "toc";

    /// The table of a layer that is not in it, and the image that has it.
    async fn outside(&self, wanted: Wanted<'_>) -> Result<(Blob, Reference), OriginError> {
        let layer = wanted.layer.blob();
        let image = &wanted.manifest.reference;
        let reason = |reason: String| OriginError { reason };
        let tag = image.tag().ok_or_else(|| reason(format!("{}; {image} has no tag", ForeignError::External)))?;
        let name = format!("{}/{}:{tag}{OUTSIDE_SUFFIX}", image.registry(), image.repository());
        let tables: Reference = name.parse().map_err(|error| reason(format!("{name}: {error}")))?;
        let found = self.fetcher.resolve(&tables, &self.platform).await.map_err(|error| reason(error.to_string()))?;
        let is_of = |of: &String| *of == layer.digest.to_string();
        let table = found.layers.iter().find(|table| table.annotations.get(OUTSIDE_OF).is_some_and(is_of));
        let table = table.ok_or_else(|| reason(format!("{name} has no table of contents of {}", layer.digest)))?.blob();
        Ok((table, found.reference))
    }
}

/// Whether what is kept of a layer under the name of an origin is of the layer with these annotations: an index that was made of a table in a layer is
/// only as good as the manifest that named the table.
pub(super) fn is_meant(origin: &str, index: &Layer, annotations: &BTreeMap<String, String>) -> bool {
    let named = || Offer::of(annotations).ok().flatten().map(|offer| offer.archive(&index.packed.digest));
    origin != Tables::NAME || named() == Some(index.unpacked.digest)
}
