//! What an image offers, and what would become of its layers. Fetched is only what says that, kept is no index. The choice is the one that containerd's
//! pulls go by ([`choose`]); what it has to know is only looked at here.

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use penstock_api::{self as api, Fate, InspectedLayer, InspectedWay, NodeError, WayState};
use penstock_blob::Blob;
use penstock_fetcher::{Descriptor, PlatformError, Reference, ReferenceError};

use super::{
    LayerMounter,
    choice::{self, Choice, Facts, Next, Usable, choose},
    images::{Known, Unknown},
    impossible,
    kind::Kind,
    usable,
};
use crate::{
    config::{IndexPulled, Prefer, Way},
    indexes,
    layers::{Sight, turbo},
    node::refusal::unresolved,
};

/// Inspections at once: each asks a registry for a few small things for each layer.
pub(super) const INSPECTIONS: usize = 4;
/// Layers of one image that are looked at at the same time.
const LAYERS_AT_ONCE: usize = 4;

/// What is the same for all layers of an image.
struct Whole<'a> {
    known: &'a Known,
    kinds: Vec<Kind>,
    /// Whether an index of its chunks verifies it, or why that is not known; of an image that has no use for one, false.
    chunks: Result<bool, String>,
    /// Whether files of it are in layers of another image.
    is_turbo: bool,
}

/// What is known of one layer.
struct Seen<'a> {
    layer: &'a Descriptor,
    kind: &'a Kind,
    prefer: Result<Prefer, String>,
    /// Whether it could be indexed for its next pull.
    may_index: bool,
    sights: Vec<(Way, Result<Sight, String>)>,
    choice: Choice,
}

impl LayerMounter {
    /// What an image offers, and what becomes of each of its layers.
    pub(crate) async fn inspect(&self, request: api::Inspect) -> Result<api::Inspection, NodeError> {
        let busy =
            |_| NodeError::Busy(format!("{INSPECTIONS} images are inspected already; wait until one of them has been"));
        let _room = self.inspecting.try_acquire().map_err(busy)?;
        let invalid = |error: ReferenceError| NodeError::Invalid(error.to_string());
        let reference: Reference = request.reference.parse().map_err(invalid)?;
        let parts = self.attachments.parts();
        let platform = match &request.platform {
            Some(text) => text.parse().map_err(|error: PlatformError| NodeError::Invalid(error.to_string()))?,
            None => parts.platform.clone(),
        };
        let served = Box::pin(parts.fetcher.resolve_served(&reference, &platform)).await;
        let known = Known::served(&reference, served.map_err(|error| unresolved(&error))?).map_err(unreadable)?;
        let kinds = self.images.kinds(&known).await.map_err(unreadable)?;
        let is_turbo = turbo::is_any(known.manifest.layers.iter().map(|layer| &layer.annotations));
        let chunks = if is_turbo { Ok(false) } else { self.chunks(&known, &kinds).await };
        let whole = Whole { known: &known, kinds, chunks, is_turbo };
        let layers = (0..known.manifest.layers.len()).map(|nth| Box::pin(self.inspect_layer(&whole, nth)));
        let layers = stream::iter(layers.collect::<Vec<_>>()).buffered(LAYERS_AT_ONCE);
        let layers: Vec<InspectedLayer> = layers.try_collect().await?;
        Ok(api::Inspection {
            reference: request.reference,
            digest: known.manifest.digest,
            platform: platform.to_string(),
            size_bytes: layers.iter().map(|layer| layer.size_bytes).sum(),
            lazy_layers: layers.iter().filter(|layer| layer.fate == Fate::Lazy).count() as u64,
            layers,
        })
    }

    /// Whether there is an index of the image's chunks, where one is of use.
    async fn chunks(&self, known: &Known, kinds: &[Kind]) -> Result<bool, String> {
        if !kinds.iter().any(is_native) {
            return Ok(false);
        }
        let manifest = &known.manifest;
        let blobs: Vec<Blob> = manifest.layers.iter().map(Descriptor::blob).collect();
        let image = indexes::Image { reference: &manifest.reference, manifest: manifest.digest, blobs: &blobs };
        self.attachments.parts().indexes.is_offered(image).await
    }

    async fn inspect_layer(&self, whole: &Whole<'_>, nth: usize) -> Result<InspectedLayer, NodeError> {
        let manifest = &*whole.known.manifest;
        let (layer, kind) = manifest.layers.get(nth).zip(whole.kinds.get(nth)).ok_or_else(|| gone(nth))?;
        let parts = self.attachments.parts();
        let prefer = choice::allowed(parts.layers.prefer(), (manifest, layer), None);
        let mut sights = Vec::new();
        if matches!(kind, Kind::Archive(_)) {
            for way in Way::ALL {
                let sight = parts.layers.sight(manifest, nth, way).await;
                sights.push((way, sight.map_err(|error| error.to_string())));
            }
        }
        let facts = Facts {
            kind,
            below: &whole.kinds[..nth],
            of: manifest.layers.len(),
            prefer: &prefer,
            index_pulled: parts.index_pulled != IndexPulled::No,
        };
        let known: Vec<_> = sights.iter().map(|(way, sight)| (*way, known(sight))).collect();
        let choice = match choose(&facts, &known) {
            Next::Made(Choice::Lazy { way: None, .. }) if parts.indexes.require && whole.chunks != Ok(true) => {
                Choice::Refused(unverified(whole))
            }
            Next::Made(choice) => choice,
            Next::Look(_) => return Err(gone(nth)),
        };
        let may_index = facts.index_pulled && prefer.as_ref().is_ok_and(|prefer| prefer.ways().contains(&Way::Own));
        Ok(described(&Seen { layer, kind, prefer, may_index, sights, choice }, whole))
    }
}

/// A layer of which nothing is known, although it was just looked at.
fn gone(nth: usize) -> NodeError {
    NodeError::Internal(format!("layer {} could not be looked at", nth + 1))
}

fn unreadable(Unknown { reason, is_transient }: Unknown) -> NodeError {
    if is_transient { NodeError::Unavailable(reason) } else { NodeError::Unsupported(reason) }
}

const fn is_native(kind: &Kind) -> bool {
    matches!(kind, Kind::OverlayBd | Kind::Disk(_))
}

/// What a sight is to the choice.
fn known(sight: &Result<Sight, String>) -> choice::Known {
    match sight {
        Ok(Sight::Kept(ready)) => usable(ready, true),
        Ok(Sight::Offered { by, .. }) => {
            choice::Known::Usable(Usable { by, is_kept: false, is_streamed: false, implied: 0 })
        }
        Ok(Sight::Absent) => choice::Known::Absent,
        Ok(Sight::Refused(why)) => choice::Known::Refused(why.clone()),
        Err(why) => impossible(why),
    }
}

/// Why a disk is refused where every read must be verified.
fn unverified(whole: &Whole<'_>) -> String {
    if whole.is_turbo {
        return format!("verify.require is set, and {}", turbo::UNVERIFIABLE);
    }
    format!("verify.require is set, and no index verifies it; run `penstock index {}`", whole.known.reference())
}

fn described(seen: &Seen<'_>, whole: &Whole<'_>) -> InspectedLayer {
    let Seen { layer, kind, choice, .. } = seen;
    let (fate, why, verified_by, open_bytes) = match choice {
        Choice::Lazy { way: Some(way), how, .. } => {
            let sight = seen.sights.iter().find(|(of, _)| of == way).map(|(_, sight)| sight);
            let is_streamed = matches!(sight, Some(Ok(Sight::Kept(ready))) if ready.is_streamed());
            let fate = if is_streamed { Fate::Streamed } else { Fate::Lazy };
            (fate, how, sight.map(verified).unwrap_or_default(), sight.and_then(open_bytes))
        }
        Choice::Lazy { way: None, how, .. } => (Fate::Lazy, how, native(kind, whole), None),
        Choice::Unpacked { why, .. } => {
            let by = "its digest and that of its archive, by containerd".to_owned();
            (Fate::Unpacked, why, by, Some(layer.size_bytes))
        }
        Choice::Refused(why) => (Fate::Refused, why, "nothing: it is not read".to_owned(), None),
    };
    InspectedLayer {
        digest: layer.digest,
        media_type: layer.media_type.clone(),
        size_bytes: layer.size_bytes,
        fate,
        why: why.clone(),
        verified_by,
        open_bytes,
        ways: ways(seen),
    }
}

/// What verifies reads of a layer that is read by an index.
fn verified(sight: &Result<Sight, String>) -> String {
    match sight {
        Ok(Sight::Kept(ready)) => ready.image.how_verified().to_owned(),
        Ok(Sight::Offered { how_verified, .. }) => how_verified.clone(),
        Ok(Sight::Absent | Sight::Refused(_)) | Err(_) => String::new(),
    }
}

/// What verifies reads of a disk.
fn native(kind: &Kind, whole: &Whole<'_>) -> String {
    let own = match kind {
        _ if whole.is_turbo => return "what its files hold, nothing: TurboOCI has no digests of files".to_owned(),
        Kind::OverlayBd => "checksums of its frames, where it is compressed; its digest once it is whole",
        _ => "its digest once it is whole",
    };
    match &whole.chunks {
        Ok(true) => "BLAKE3 of every chunk, by the image's index, before it is kept or served".to_owned(),
        Ok(false) => own.to_owned(),
        Err(why) => format!("{own}; by no index: {why}"),
    }
}

/// Bytes that are fetched before a layer can be read by what there is.
fn open_bytes(sight: &Result<Sight, String>) -> Option<u64> {
    match sight {
        Ok(Sight::Kept(_)) => Some(0),
        Ok(Sight::Offered { offered, .. }) => Some(offered.fetched_bytes),
        Ok(Sight::Absent | Sight::Refused(_)) | Err(_) => None,
    }
}

/// All ways to read a layer: those that are preferred first, then those that are off, then what is left when there is none.
fn ways(seen: &Seen<'_>) -> Vec<InspectedWay> {
    let plain = |way: &str, state, detail: &str, open_bytes| InspectedWay {
        way: way.to_owned(),
        state,
        detail: detail.to_owned(),
        index_bytes: None,
        open_bytes,
    };
    let (is_unpacked, is_indexed) = match &seen.choice {
        Choice::Unpacked { is_indexed, .. } => (true, *is_indexed),
        Choice::Lazy { .. } | Choice::Refused(_) => (false, false),
    };
    let taken = |is: bool, other| if is { WayState::Used } else { other };
    if is_native(seen.kind) {
        let state = taken(matches!(seen.choice, Choice::Lazy { .. }), WayState::Refused);
        return vec![plain("native", state, "a disk, in the layer's own format", None)];
    }
    let size = Some(seen.layer.size_bytes);
    let unpack = plain("unpack", taken(is_unpacked, WayState::Spare), "fetched whole before a container starts", size);
    if seen.sights.is_empty() {
        return vec![unpack];
    }
    let preferred = seen.prefer.as_ref().map(Prefer::ways).unwrap_or_default();
    let rank = |way: Way| preferred.iter().position(|other| *other == way).unwrap_or(preferred.len());
    let mut sights: Vec<_> = seen.sights.iter().collect();
    sights.sort_by_key(|(way, _)| rank(*way));
    let mut ways: Vec<InspectedWay> = sights.into_iter().map(|(way, sight)| one(seen, (*way, sight))).collect();
    let first = "indexed once it is unpacked: its next pull here is lazy";
    let off = "layers.index_pulled or layers.prefer leaves it out";
    let first = match (is_indexed, seen.may_index) {
        (true, _) => plain("first_pull", WayState::Used, first, size),
        (false, true) if is_unpacked => plain("first_pull", WayState::Absent, "", None),
        (false, true) => plain("first_pull", WayState::Spare, first, size),
        (false, false) => plain("first_pull", WayState::Off, off, None),
    };
    ways.extend([first, unpack]);
    ways
}

/// One way to read a layer by an index.
fn one(seen: &Seen<'_>, (way, sight): (Way, &Result<Sight, String>)) -> InspectedWay {
    let is_used = matches!(&seen.choice, Choice::Lazy { way: Some(used), .. } if *used == way);
    let is_off = !seen.prefer.as_ref().is_ok_and(|prefer| prefer.ways().contains(&way));
    let (can, detail, index_bytes) = match sight {
        Ok(Sight::Kept(ready)) => (WayState::Spare, format!("{}, kept here", ready.origin), Some(ready.index_bytes)),
        Ok(Sight::Offered { offered, .. }) => (WayState::Spare, offered.what.clone(), Some(offered.index_bytes)),
        Ok(Sight::Absent) => (WayState::Absent, String::new(), None),
        Ok(Sight::Refused(why)) | Err(why) => (WayState::Refused, why.clone(), None),
    };
    let state = match can {
        _ if is_used => WayState::Used,
        WayState::Spare if is_off => WayState::Off,
        can => can,
    };
    InspectedWay { way: way.name().to_owned(), state, detail, index_bytes, open_bytes: open_bytes(sight) }
}
