//! The chain IDs of an image's layers (OCI image specification, "Layer ChainID"). Pure.

use penstock_blob::Digest;

/// The chain ID of each layer with those below it, the lowest first, from their diff IDs.
pub(super) fn ids(diff_ids: Vec<Digest>) -> Vec<Digest> {
    let next = |below: &mut Option<Digest>, diff: Digest| {
        let chain = below.map_or(diff, |below| Digest::of(format!("{below} {diff}").as_bytes()));
        *below = Some(chain);
        Some(chain)
    };
    diff_ids.into_iter().scan(None, next).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_chain_id_is_made_of_the_one_below_and_the_layer() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        assert_eq!(ids(vec![a, b]), [a, Digest::of(format!("{a} {b}").as_bytes())]);
        assert_eq!(ids(Vec::new()), []);
    }
}
