//! The diff IDs of an image's layers, from its config (OCI image specification, "Image Configuration").

use std::sync::Arc;

use penstock_blob::{BlobSource, Digest};
use penstock_fetcher::{Fetcher, Manifest};
use serde::Deserialize;

use super::LayerError;
use crate::lent::Lent;

/// Longest config read, in bytes: as manifests.
pub(crate) const MAX_CONFIG_BYTES: u64 = 4 << 20;

#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<Digest>,
}

/// Reads the config of an image through `source`, proves it by its digest, and answers the diff ID of each layer, the lowest first.
pub(crate) async fn diff_ids(
    fetcher: &Arc<Fetcher>,
    source: &dyn BlobSource,
    manifest: &Manifest,
) -> Result<Vec<Digest>, LayerError> {
    let blob = manifest.config.blob();
    let range = blob.all().filter(|range| range.len() <= MAX_CONFIG_BYTES);
    let range = range.ok_or_else(|| LayerError::Config(format!("has {} bytes", blob.size_bytes)))?;
    let bytes = Lent::new(fetcher, blob, &manifest.reference).read(source, range).await?;
    if Digest::of(&bytes) != blob.digest {
        return Err(LayerError::Config(format!("is not {}: the registry gave other bytes", blob.digest)));
    }
    parse(&bytes, manifest.layers.len()).map_err(LayerError::Config)
}

/// The diff IDs in a config, or what is wrong with it. Pure.
pub(crate) fn parse(config: &[u8], layers: usize) -> Result<Vec<Digest>, String> {
    let Config { rootfs } = serde_json::from_slice(config).map_err(|error| format!("cannot be read: {error}"))?;
    if rootfs.diff_ids.len() != layers {
        return Err(format!("lists {} layers, and the manifest {layers}", rootfs.diff_ids.len()));
    }
    Ok(rootfs.diff_ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_has_as_many_diff_ids_as_the_manifest_has_layers_or_is_refused() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let config = format!(r#"{{"os":"linux","rootfs":{{"type":"layers","diff_ids":["{a}","{b}"]}}}}"#);
        assert_eq!(parse(config.as_bytes(), 2).unwrap(), [a, b]);
        assert!(parse(config.as_bytes(), 3).unwrap_err().contains("lists 2 layers"));
        for bad in ["", "{}", r#"{"rootfs":{}}"#, r#"{"rootfs":{"diff_ids":["sha256:0"]}}"#] {
            assert!(parse(bad.as_bytes(), 1).is_err(), "{bad}");
        }
    }
}
