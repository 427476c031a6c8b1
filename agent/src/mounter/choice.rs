//! Which way a layer is read: the one decision, for what containerd is offered and for what `penstock inspect` says. Pure: what it has to know it asks
//! for, and whoever calls it finds out, by fetching or by looking only.

use std::collections::BTreeMap;

use penstock_fetcher::{Descriptor, Manifest};
use penstock_snapshotter::{PREFER, Shape};

use super::kind::{self, Decision, Kind};
use crate::{
    config::{Prefer, Way},
    state::record::MAX_LAYERS,
};

/// What is said besides of a layer that decodes only from its beginning.
const STREAMED: &str = "; not lazy: streamed from its beginning, prefetched in parallel";

/// What is known of one way to read an archive on demand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Known {
    /// Nobody has an index of that kind.
    Absent,
    /// There is one, and it is not used: others may be.
    Refused(String),
    /// The layer cannot be read on demand in any way; why.
    Impossible(String),
    /// It can be read so.
    Usable(Usable),
}

/// A way that a layer can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Usable {
    /// What verifies it, in words.
    pub(super) by: &'static str,
    /// Whether its index is on this node.
    pub(super) is_kept: bool,
    /// Whether it decodes only from its beginning; false also when that is not known before the index is fetched.
    pub(super) is_streamed: bool,
    /// Directories that no entry of the layer speaks of; 0 also when that is not known before the index is fetched.
    pub(super) implied: u64,
}

/// What a layer is, and what is allowed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts<'a> {
    pub(super) kind: &'a Kind,
    /// What the layers below are, the lowest first.
    pub(super) below: &'a [Kind],
    /// Layers of the image.
    pub(super) of: usize,
    /// The ways that are allowed, the best first; or why that is not known.
    pub(super) prefer: &'a Result<Prefer, String>,
    /// Whether images that are pulled without indexes are indexed.
    pub(super) index_pulled: bool,
}

/// How the choice goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next {
    /// It depends on whether the layer can be read in this way, of which nothing is known yet.
    Look(Way),
    /// It is made.
    Made(Choice),
}

/// What becomes of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Choice {
    /// A device shows it.
    Lazy {
        /// What the device shows.
        shape: Shape,
        /// The way, of an archive.
        way: Option<Way>,
        /// In words.
        how: String,
    },
    /// containerd unpacks it.
    Unpacked {
        /// Why.
        why: String,
        /// Whether it is indexed for its next pull.
        is_indexed: bool,
    },
    /// It must not be unpacked, and cannot be shown; why.
    Refused(String),
}

/// What becomes of a layer, by what is `known` so far. It never asks twice for the same way.
pub(super) fn choose(facts: &Facts<'_>, known: &[(Way, Known)]) -> Next {
    match kind::decide(facts.kind, facts.below) {
        Decision::Lazy(shape, how) => Next::Made(Choice::Lazy { shape, way: None, how }),
        Decision::Indexed(what) => archive(what, facts, known),
        Decision::Unpacked(why) => Next::Made(Choice::Unpacked { why, is_indexed: false }),
        Decision::Refused(why) => Next::Made(Choice::Refused(why)),
    }
}

fn archive(what: &str, facts: &Facts<'_>, known: &[(Way, Known)]) -> Next {
    let unpacked = |why: &str, is_indexed| {
        Next::Made(Choice::Unpacked { why: format!("{what}, {why}: unpacked in full"), is_indexed })
    };
    let ways = match facts.prefer {
        Ok(prefer) => prefer.ways(),
        Err(why) => return unpacked(why, false),
    };
    if facts.of > MAX_LAYERS {
        return unpacked(&format!("of an image of more than {MAX_LAYERS} layers"), false);
    }
    let known = |way: Way| known.iter().find(|(of, _)| *of == way).map(|(_, known)| known);
    // What is on this node costs nothing more, and needs nobody.
    let kept = ways.iter().find(|way| matches!(known(**way), Some(Known::Usable(usable)) if usable.is_kept));
    for way in kept.into_iter().chain(ways) {
        match known(*way) {
            None => return Next::Look(*way),
            Some(Known::Absent | Known::Refused(_)) => {}
            Some(Known::Impossible(why)) => {
                return unpacked(&format!("which cannot be read by an index: {why}"), false);
            }
            // Under the lowest layer is nothing that they could hide.
            Some(Known::Usable(Usable { implied, .. })) if *implied > 0 && !facts.below.is_empty() => {
                let hidden = "their owners and modes in the layers below would be hidden";
                return unpacked(&format!("which leaves out {implied} directories: {hidden}"), false);
            }
            Some(Known::Usable(Usable { by, is_streamed, .. })) => {
                let streamed = if *is_streamed { STREAMED } else { "" };
                let how = format!("{what}, by {by}{streamed}");
                return Next::Made(Choice::Lazy { shape: Shape::Single, way: Some(*way), how });
            }
        }
    }
    match ways {
        [] => unpacked("for which layers.prefer, or its label, leaves no way", false),
        _ => unpacked("of which there is no index", facts.index_pulled && ways.contains(&Way::Own)),
    }
}

/// The ways that are allowed for a layer: those that the node takes, as far as the layer's label, its annotation or the image's wishes. An error: the wish
/// is not understood.
pub(super) fn allowed(
    node: &Prefer,
    (manifest, layer): (&Manifest, &Descriptor),
    label: Option<&str>,
) -> Result<Prefer, String> {
    let of = |annotations: &BTreeMap<String, String>| annotations.get(PREFER).cloned();
    let wish = label.map(str::to_owned).or_else(|| of(&layer.annotations)).or_else(|| of(&manifest.annotations));
    let Some(wish) = wish else { return Ok(node.clone()) };
    match wish.parse() {
        Ok(wish) => Ok(node.narrowed(&wish)),
        Err(error) => Err(format!("whose label {PREFER} is not understood ({error})")),
    }
}

#[cfg(test)]
mod tests {
    use penstock_blob::Digest;

    use super::*;

    /// What is preferred, what is known, and what follows.
    type Case<'a> = (&'a str, &'a [(Way, Known)], Next);

    const TAR: Kind = Kind::Archive("a tar");

    fn usable(by: &'static str, is_kept: bool, implied: u64) -> Known {
        Known::Usable(Usable { by, is_kept, is_streamed: false, implied })
    }

    fn lazy(way: Way, by: &str) -> Next {
        Next::Made(Choice::Lazy { shape: Shape::Single, way: Some(way), how: format!("a tar, by {by}") })
    }

    fn unpacked(why: &str, is_indexed: bool) -> Next {
        Next::Made(Choice::Unpacked { why: format!("a tar, {why}: unpacked in full"), is_indexed })
    }

    /// What is chosen when nothing more is asked for.
    fn made(next: Next) -> Choice {
        match next {
            Next::Made(choice) => choice,
            Next::Look(way) => panic!("it asks for {}", way.name()),
        }
    }

    /// What becomes of a tar over one other layer.
    fn chosen(prefer: &str, index_pulled: bool, known: &[(Way, Known)]) -> Next {
        let prefer = prefer.parse();
        choose(&Facts { kind: &TAR, below: &[TAR], of: 2, prefer: &prefer, index_pulled }, known)
    }

    #[test]
    fn the_first_way_that_can_be_used_is_taken_and_no_later_one_asked_for() {
        use Way::{Own, Pushed, Soci, Toc};
        let (absent, refused) = (Known::Absent, Known::Refused("it lies".to_owned()));
        let cases: [Case<'_>; 11] = [
            ("own,toc,soci,pushed", &[], Next::Look(Own)),
            ("own,toc,soci,pushed", &[(Own, absent.clone())], Next::Look(Toc)),
            ("own,toc,soci,pushed", &[(Own, absent.clone()), (Toc, refused.clone())], Next::Look(Soci)),
            ("own,toc", &[(Own, absent.clone()), (Toc, usable("its table", false, 0))], lazy(Toc, "its table")),
            ("pushed,own", &[], Next::Look(Pushed)),
            ("pushed,own", &[(Own, usable("its own", true, 0))], lazy(Own, "its own")),
            ("pushed,own", &[(Own, usable("its own", false, 0))], Next::Look(Pushed)),
            (
                "pushed",
                &[(Own, usable("its own", true, 0)), (Pushed, absent.clone())],
                unpacked("of which there is no index", false),
            ),
            ("soci,pushed", &[(Soci, refused), (Pushed, absent)], unpacked("of which there is no index", false)),
            ("none", &[], unpacked("for which layers.prefer, or its label, leaves no way", false)),
            (
                "toc,own",
                &[(Toc, Known::Impossible("a link".to_owned())), (Own, usable("its own", false, 0))],
                unpacked("which cannot be read by an index: a link", false),
            ),
        ];
        for (prefer, known, expected) in cases {
            assert_eq!(chosen(prefer, false, known), expected, "{prefer} {known:?}");
        }
    }

    #[test]
    fn what_has_no_index_is_indexed_for_its_next_pull_where_that_is_wanted_and_could_be_used() {
        let none: Vec<_> = Way::ALL.into_iter().map(|way| (way, Known::Absent)).collect();
        for (prefer, index_pulled, is_indexed) in
            [("own,toc", true, true), ("own,toc", false, false), ("toc,pushed", true, false)]
        {
            let expected = unpacked("of which there is no index", is_indexed);
            assert_eq!(chosen(prefer, index_pulled, &none), expected, "{prefer} {index_pulled}");
        }
    }

    #[test]
    fn directories_that_are_left_out_matter_only_over_other_layers() {
        let prefer = Ok(Prefer::default());
        let known = [(Way::Own, usable("its own", true, 3))];
        let facts = |below| Facts { kind: &TAR, below, of: 2, prefer: &prefer, index_pulled: true };
        assert_eq!(choose(&facts(&[]), &known), lazy(Way::Own, "its own"));
        let over = made(choose(&facts(&[TAR]), &known));
        assert!(
            matches!(&over, Choice::Unpacked { why, is_indexed: false } if why.contains("leaves out 3")),
            "{over:?}"
        );
    }

    #[test]
    fn of_a_streamed_layer_it_is_said_that_it_is_not_lazy() {
        let known = Known::Usable(Usable { by: "its own", is_kept: true, is_streamed: true, implied: 0 });
        let Choice::Lazy { how, .. } = made(chosen("own", false, &[(Way::Own, known)])) else { panic!("not shown") };
        assert_eq!(how, "a tar, by its own; not lazy: streamed from its beginning, prefetched in parallel");
    }

    #[test]
    fn what_is_no_archive_is_as_its_kind_says_whatever_is_preferred() {
        let prefer = Ok("none".parse().unwrap());
        let facts = |kind| Facts { kind, below: &[], of: 1, prefer: &prefer, index_pulled: true };
        let native = made(choose(&facts(&Kind::OverlayBd), &[]));
        assert!(matches!(native, Choice::Lazy { shape: Shape::Merged, way: None, .. }), "{native:?}");
        let encrypted = Kind::Ordinary("an encrypted layer".to_owned());
        assert!(matches!(made(choose(&facts(&encrypted), &[])), Choice::Unpacked { is_indexed: false, .. }));
        let over = Facts { below: &[TAR], of: 2, ..facts(&Kind::OverlayBd) };
        assert!(matches!(made(choose(&over, &[])), Choice::Refused(_)));
    }

    #[test]
    fn an_image_of_too_many_layers_is_unpacked_before_anything_is_asked_for() {
        let (prefer, below) = (Ok(Prefer::default()), vec![TAR; 3]);
        let facts = Facts { kind: &TAR, below: &below, of: MAX_LAYERS + 1, prefer: &prefer, index_pulled: true };
        assert!(
            matches!(made(choose(&facts, &[])), Choice::Unpacked { why, .. } if why.contains("more than 255 layers"))
        );
    }

    #[test]
    fn a_label_goes_before_the_layers_annotation_and_that_before_the_images_and_none_allows_more_than_the_node() {
        let annotated =
            |wish: Option<&str>| wish.map(|wish| (PREFER.to_owned(), wish.to_owned())).into_iter().collect();
        let descriptor = |wish| Descriptor {
            media_type: "application/x".to_owned(),
            digest: Digest::of(b"x"),
            size_bytes: 1,
            annotations: annotated(wish),
            platform: None,
            artifact_type: None,
        };
        let manifest = |wish| Manifest {
            reference: "r.example/a:1".parse().unwrap(),
            digest: Digest::of(b"manifest"),
            size_bytes: 8,
            media_type: "application/m".to_owned(),
            artifact_type: None,
            config: descriptor(None),
            layers: Vec::new(),
            annotations: annotated(wish),
        };
        let node: Prefer = "own,toc,pushed".parse().unwrap();
        for (image, layer, label, expected) in [
            (None, None, None, "own,toc,pushed"),
            (Some("toc"), None, None, "toc"),
            (Some("toc"), Some("pushed,own"), None, "pushed,own"),
            (Some("toc"), Some("pushed"), Some("none"), "none"),
            (None, None, Some("soci,own"), "own"),
        ] {
            let allowed = allowed(&node, (&manifest(image), &descriptor(layer)), label).unwrap();
            assert_eq!(allowed.to_string(), expected, "{image:?} {layer:?} {label:?}");
        }
        let prefer = allowed(&node, (&manifest(None), &descriptor(Some("fast"))), None);
        let facts = Facts { kind: &TAR, below: &[], of: 1, prefer: &prefer, index_pulled: true };
        let unpacked = made(choose(&facts, &[]));
        assert!(matches!(&unpacked, Choice::Unpacked { why, .. } if why.contains("\"fast\"")), "{unpacked:?}");
    }
}
