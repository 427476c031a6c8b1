//! What the layers of a converted image are made of, and which of them an earlier conversion has made already. Pure.

use std::{collections::BTreeSet, fmt};

use penstock_blob::Digest;
use penstock_fetcher::{Manifest, Reference};

use super::{Compression, Form, document};

/// The annotation of a converted layer that says what it was made of, and how: by it another conversion knows that it need not make it again.
pub(super) const MADE_OF: &str = "vnd.penstock.convert.made-of";
/// Counts how often what is written of the same layers has changed.
const WRITER: u32 = 1;

/// What a new layer is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    /// One layer, by its place from the bottom and its diff ID.
    Layer(usize, Digest),
    /// All layers together, by their chain ID.
    Layers(Digest),
    /// One layer over those below it, by the chain ID of all of them.
    Stacked {
        /// Its place from the bottom.
        nth: usize,
        /// The chain ID of it and those below.
        chain: Digest,
        /// That of those below.
        parent: Option<Digest>,
    },
    /// The disk that the image is, by the image's manifest.
    Disk(Digest),
}

impl Of {
    /// What it is named by: nothing else changes what is written.
    pub(super) const fn digest(&self) -> &Digest {
        match self {
            Self::Layer(_, digest) | Self::Layers(digest) | Self::Disk(digest) => digest,
            Self::Stacked { chain, .. } => chain,
        }
    }
}

/// A layer to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) of: Of,
    pub(super) form: Form,
    pub(super) compression: Compression,
}

impl fmt::Display for Target {
    /// As [`MADE_OF`] has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.of {
            Of::Layer(..) => "layer",
            Of::Layers(_) => "chain",
            Of::Stacked { .. } => "stacked",
            Of::Disk(_) => "disk",
        };
        write!(f, "{what} {} {}", self.of.digest(), self.form.name())?;
        if matches!(self.form, Form::Overlaybd | Form::OverlaybdLayers) {
            write!(f, " {}", self.compression.name())?;
        }
        write!(f, " {WRITER}")
    }
}

/// The layers to be written of an image of these layers, or of a disk (`None`).
pub(super) fn targets(
    manifest: Digest,
    diff_ids: Option<&[Digest]>,
    (form, compression): (Form, Compression),
) -> Vec<Target> {
    let target = |of| Target { of, form, compression };
    match diff_ids {
        None => vec![target(Of::Disk(manifest))],
        Some(ids) if form == Form::Erofs => {
            ids.iter().enumerate().map(|(nth, id)| target(Of::Layer(nth, *id))).collect()
        }
        Some(ids) if form == Form::OverlaybdLayers => {
            let chains: Vec<Digest> = (1..=ids.len()).filter_map(|count| document::chain(&ids[..count])).collect();
            let parents = std::iter::once(None).chain(chains.iter().copied().map(Some));
            let stacked = |(nth, (chain, parent))| target(Of::Stacked { nth, chain, parent });
            chains.iter().copied().zip(parents).enumerate().map(stacked).collect()
        }
        Some(ids) => document::chain(ids).map(|chain| target(Of::Layers(chain))).into_iter().collect(),
    }
}

/// The layer that is `target`, of an image that was converted before.
pub(super) fn made(target: &Target, before: &[Manifest]) -> Option<(document::Listed, Reference)> {
    let wanted = target.to_string();
    before.iter().find_map(|manifest| {
        let layer = manifest.layers.iter().find(|layer| layer.annotations.get(MADE_OF) == Some(&wanted))?;
        let (media_type, annotations) = (layer.media_type.clone(), layer.annotations.clone());
        Some((document::Listed { blob: layer.blob(), media_type, annotations }, manifest.reference.clone()))
    })
}

/// The layers of the image, of `count`, whose bytes are needed to write these.
pub(super) fn needed<'a>(targets: impl IntoIterator<Item = &'a Target>, count: usize) -> Vec<usize> {
    let mut needed = BTreeSet::new();
    for target in targets {
        match target.of {
            Of::Layer(nth, _) => needed.extend([nth]),
            Of::Stacked { nth, .. } => needed.extend(0..=nth),
            Of::Layers(_) | Of::Disk(_) => needed.extend(0..count),
        }
    }
    needed.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LZ4: Compression = Compression::Lz4;

    #[test]
    fn a_form_decides_what_each_new_layer_is_made_of_and_so_what_it_needs() {
        let (image, ids) = (Digest::of(b"image"), [Digest::of(b"a"), Digest::of(b"b")]);
        let of = |form, ids: Option<&[Digest]>| -> Vec<Of> {
            targets(image, ids, (form, LZ4)).iter().map(|target| target.of).collect()
        };
        assert_eq!(of(Form::Erofs, Some(&ids)), [Of::Layer(0, ids[0]), Of::Layer(1, ids[1])]);
        let chain = document::chain(&ids).unwrap();
        assert_eq!(of(Form::Raw, Some(&ids)), [Of::Layers(chain)]);
        assert_eq!(of(Form::Overlaybd, None), [Of::Disk(image)]);
        assert_eq!(of(Form::Raw, Some(&[])), []);
        let parents = [(0, ids[0], None), (1, chain, Some(ids[0]))];
        let stacked = parents.map(|(nth, chain, parent)| Of::Stacked { nth, chain, parent });
        assert_eq!(of(Form::OverlaybdLayers, Some(&ids)), stacked);
        assert_eq!(needed(&targets(image, Some(&ids), (Form::OverlaybdLayers, LZ4))[1..], 2), [0, 1]);
        let each = targets(image, Some(&ids), (Form::Erofs, LZ4));
        assert_eq!((needed(&each[1..], 2), needed(&[], 2)), (vec![1], vec![]));
        assert_eq!(needed(&targets(image, Some(&ids), (Form::Raw, LZ4)), 2), [0, 1]);
    }

    #[test]
    fn a_layer_is_made_already_only_of_the_same_in_the_same_way() {
        let digest = Digest::of(b"a");
        let target = |of, form, compression| Target { of, form, compression };
        let layer = target(Of::Layer(3, digest), Form::Erofs, LZ4);
        assert_eq!(layer.to_string(), format!("layer {digest} erofs 1"));
        let text = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": document::MANIFEST,
            "config": {"mediaType": "c", "digest": digest, "size": 1},
            "layers": [
                {"mediaType": "l", "digest": Digest::of(b"none"), "size": 1},
                {"mediaType": "l", "digest": Digest::of(b"made"), "size": 7, "annotations": {MADE_OF: layer.to_string()}},
            ],
        });
        let reference: Reference = "r.example/before:1".parse().unwrap();
        let before = [Manifest::parse(&reference, text.to_string().as_bytes(), document::MANIFEST).unwrap()];
        let (found, from) = made(&layer, &before).unwrap();
        assert_eq!((found.blob.digest, found.blob.size_bytes, from.repository()), (Digest::of(b"made"), 7, "before"));
        assert!(made(&target(Of::Layer(0, digest), Form::Erofs, LZ4), &before).is_some(), "wherever it lies");
        for other in [
            target(Of::Layers(digest), Form::Erofs, LZ4),
            target(Of::Layer(3, digest), Form::Raw, LZ4),
            target(Of::Layer(3, Digest::of(b"b")), Form::Erofs, LZ4),
        ] {
            assert!(made(&other, &before).is_none(), "{other}");
        }
        let disk = |compression| target(Of::Disk(digest), Form::Overlaybd, compression).to_string();
        assert_ne!(disk(LZ4), disk(Compression::Zstd));
    }
}
