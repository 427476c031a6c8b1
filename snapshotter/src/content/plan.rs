//! What an image consists of, in the order in which it is written. Pure.

use std::collections::BTreeMap;

use bytes::Bytes;
use penstock_blob::{Blob, Digest};

/// What containerd's collector follows from one blob to another (docs/garbage-collection.md of containerd).
const REFERS: &str = "containerd.io/gc.ref.content.";
/// Where a blob came from, by which containerd can mount it across repositories when it pushes.
const SOURCE: &str = "containerd.io/distribution.source.";

/// An image, and all that it needs.
#[derive(Debug, Clone)]
pub struct Content {
    /// containerd's name of the image: the reference in full.
    pub name: String,
    /// The registry and the repository that it is from.
    pub source: (String, String),
    /// Its blobs, each after those that it refers to, so that the last is what the image's name points to.
    pub pieces: Vec<Piece>,
}

/// One blob of an image.
#[derive(Debug, Clone)]
pub struct Piece {
    /// Which one.
    pub blob: Blob,
    /// Its media type.
    pub media_type: String,
    /// Its bytes, of a manifest or an index; others are read from the source.
    pub bytes: Option<Bytes>,
    /// What it refers to.
    pub children: Vec<Child>,
}

/// A blob that another refers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Child {
    /// An image's config.
    Config(Digest),
    /// An image's layer, by its place from the bottom.
    Layer(usize, Digest),
    /// An index's manifest, by its place.
    Manifest(usize, Digest),
}

impl Child {
    const fn digest(&self) -> Digest {
        match self {
            Self::Config(digest) | Self::Layer(_, digest) | Self::Manifest(_, digest) => *digest,
        }
    }

    /// The name that containerd's own clients give the reference.
    fn key(&self) -> String {
        match self {
            Self::Config(_) => format!("{REFERS}config"),
            Self::Layer(at, _) => format!("{REFERS}l.{at}"),
            Self::Manifest(at, _) => format!("{REFERS}m.{at}"),
        }
    }
}

impl Content {
    /// The labels that `piece` needs.
    pub(super) fn labels(&self, piece: &Piece) -> BTreeMap<String, String> {
        let (registry, repository) = &self.source;
        let refers = piece.children.iter().map(|child| (child.key(), child.digest().to_string()));
        refers.chain([(format!("{SOURCE}{registry}"), repository.clone())]).collect()
    }
}

/// Those of `wanted` that a blob with the labels `there` lacks. A reference that it has under another name is not made twice, and one
/// that has the name of another gets a name of its own.
pub(super) fn lacking(there: &BTreeMap<String, String>, wanted: BTreeMap<String, String>) -> BTreeMap<String, String> {
    let refers_to = |digest: &str| there.iter().any(|(key, value)| key.starts_with(REFERS) && value == digest);
    let mut lacking = BTreeMap::new();
    for (key, value) in wanted {
        if key.starts_with(REFERS) {
            match there.get(&key) {
                _ if refers_to(&value) => {}
                Some(_) => drop(lacking.insert(format!("{key}.penstock"), value)),
                None => drop(lacking.insert(key, value)),
            }
        } else if there.get(&key).is_none_or(|held| !held.split(',').any(|part| part == value)) {
            // Several repositories stand in one label.
            let joined = there.get(&key).map_or_else(|| value.clone(), |held| format!("{held},{value}"));
            lacking.insert(key, joined);
        }
    }
    lacking
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_manifest_gets_the_labels_that_the_collector_follows() {
        let [config, layer] = [Digest::of(b"config"), Digest::of(b"layer")];
        let piece = Piece {
            blob: Blob { digest: Digest::of(b"m"), size_bytes: 1 },
            media_type: String::new(),
            bytes: None,
            children: vec![Child::Config(config), Child::Layer(0, layer), Child::Manifest(3, layer)],
        };
        let content = Content { name: String::new(), source: ("r.example".into(), "a/b".into()), pieces: Vec::new() };
        let (config, layer) = (config.to_string(), layer.to_string());
        let expected = labels(&[
            ("containerd.io/gc.ref.content.config", &config),
            ("containerd.io/gc.ref.content.l.0", &layer),
            ("containerd.io/gc.ref.content.m.3", &layer),
            ("containerd.io/distribution.source.r.example", "a/b"),
        ]);
        assert_eq!(content.labels(&piece), expected);
    }

    #[test]
    fn only_labels_that_are_lacking_are_added_and_none_is_lost() {
        let key = "containerd.io/gc.ref.content.l.0";
        let source = "containerd.io/distribution.source.r";
        let wanted = labels(&[(key, "sha256:1"), (source, "a")]);
        assert_eq!(lacking(&labels(&[]), wanted.clone()), wanted);
        let there = labels(&[("containerd.io/gc.ref.content.7", "sha256:1"), (source, "b,a")]);
        assert_eq!(lacking(&there, wanted.clone()), labels(&[]));
        let other = labels(&[(key, "sha256:2"), (source, "ab")]);
        let expected = labels(&[("containerd.io/gc.ref.content.l.0.penstock", "sha256:1"), (source, "ab,a")]);
        assert_eq!(lacking(&other, wanted), expected);
    }
}
