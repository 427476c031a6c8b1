//! The chain IDs of an image's layers, from its config (OCI image specification, "Layer ChainID"). Pure.

use penstock_blob::Digest;
use serde::Deserialize;

#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<Digest>,
}

/// The chain ID of each layer with those below it, the lowest first; or what is wrong with the config.
pub(super) fn ids(config: &[u8], layers: usize) -> Result<Vec<Digest>, String> {
    let Config { rootfs } = serde_json::from_slice(config).map_err(|error| format!("cannot be read: {error}"))?;
    if rootfs.diff_ids.len() != layers {
        return Err(format!("lists {} layers, and the manifest {layers}", rootfs.diff_ids.len()));
    }
    let next = |below: &mut Option<Digest>, diff: Digest| {
        let chain = below.map_or(diff, |below| Digest::of(format!("{below} {diff}").as_bytes()));
        *below = Some(chain);
        Some(chain)
    };
    Ok(rootfs.diff_ids.into_iter().scan(None, next).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_chain_id_is_made_of_the_one_below_and_the_layer() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let config = format!(r#"{{"os":"linux","rootfs":{{"type":"layers","diff_ids":["{a}","{b}"]}}}}"#);
        assert_eq!(ids(config.as_bytes(), 2).unwrap(), [a, Digest::of(format!("{a} {b}").as_bytes())]);
        assert!(ids(config.as_bytes(), 3).unwrap_err().contains("lists 2 layers"));
        for bad in ["", "{}", r#"{"rootfs":{}}"#, r#"{"rootfs":{"diff_ids":["sha256:0"]}}"#] {
            assert!(ids(bad.as_bytes(), 1).is_err(), "{bad}");
        }
    }
}
