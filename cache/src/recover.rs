//! What is present at open: decided from the index, the slot headers and the marker of an orderly close. Pure.

use std::collections::BTreeMap;

use crate::{
    bits::{Bits, SEGMENT_CHUNKS},
    format::{BlobRecord, HEADER_BYTES, Mark, Meta, Sealer, SegmentRecord, SysRecord},
    index::Snapshot,
};

#[cfg(test)]
mod tests;

/// How far the index is believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Trust {
    /// The last close was orderly, and this is the very index it left: it knows everything.
    Fully,
    /// The last end was a crash, or the index is not all that it was (the reason is for operators): what it says holds, what it
    /// lacks may be in the slot headers.
    Partly(Option<String>),
    /// There was no index, or not this one: only the slot headers speak. The reason is for operators.
    Not(String),
}

/// The records of the index, by blob.
#[derive(Debug, Default)]
pub(crate) struct Records {
    pub(crate) blobs: BTreeMap<u32, BlobRecord>,
    pub(crate) segments: BTreeMap<u32, BTreeMap<u32, SegmentRecord>>,
}

impl Records {
    /// Sorts the records of a snapshot.
    pub(crate) fn of(snapshot: Snapshot) -> Self {
        let mut records = Self { blobs: snapshot.blobs.into_iter().collect(), ..Self::default() };
        for (no, segment, record) in snapshot.segments {
            records.segments.entry(no).or_default().insert(segment, record);
        }
        records
    }
}

/// What stands beside an index and bears witness to it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Witness {
    /// The mark of an orderly close, if the last end was one.
    pub(crate) clean: Option<Mark>,
    /// The mark of the last commit that was noted.
    pub(crate) reached: Option<Mark>,
    /// Whether the directory holds any blobs.
    pub(crate) blobs: bool,
}

/// Decides how far to believe an index that opened, `damaged` of whose records did not decode.
pub(crate) fn trust(sys: Option<&SysRecord>, damaged: u64, witness: &Witness) -> Trust {
    let Some(sys) = sys else {
        let empty = || Trust::Not("it was empty, though there are cached blobs".into());
        return if witness.blobs { empty() } else { Trust::Fully };
    };
    if damaged > 0 {
        return Trust::Partly(Some(format!("{damaged} of its records were damaged")));
    }
    if let Some(reached) = witness.reached.filter(|m| m.uuid == sys.uuid && m.commits > sys.commits) {
        let (had, has) = (reached.commits, sys.commits);
        return Trust::Partly(Some(format!("it had come to commit {had} but holds commit {has}")));
    }
    match witness.clean {
        None => Trust::Partly(None),
        Some(clean) if clean.uuid == sys.uuid && clean.commits == sys.commits => Trust::Fully,
        Some(clean) if clean.uuid == sys.uuid => Trust::Partly(Some(format!(
            "it was closed after commit {} but holds commit {}",
            clean.commits, sys.commits
        ))),
        Some(_) => Trust::Partly(Some("it is not the index that was closed last".into())),
    }
}

/// What one blob holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Presence {
    pub(crate) segments: BTreeMap<u32, SegmentRecord>,
    /// Those of them that the index has, by segment.
    pub(crate) recorded: BTreeMap<u32, Bits>,
    /// The index has a record of the blob.
    pub(crate) is_recorded: bool,
    /// Its chunks that the index does not have, known by their headers.
    pub(crate) adopted: u64,
    /// The index says that the blob was verified as a whole.
    pub(crate) verified: bool,
}

/// Merges what the index and the slot headers say of one blob. Where both speak of a chunk and differ, the index wins: what it
/// says was synced. A wrong guess costs a failed checksum and a fetch, never a wrong byte.
///
/// `records` is `None` when the index is not believed for this blob; `headers` is empty when they need not be read.
pub(crate) fn presence(meta: &Meta, chunks: u32, records: Option<&mut Records>, headers: &[u8]) -> Presence {
    let mut presence = Presence::default();
    let known = records.and_then(|records| {
        let record = records.blobs.get(&meta.no).filter(|r| r.blob == meta.blob && r.chunk_size == meta.chunk_size)?;
        Some((*record, records.segments.remove(&meta.no).unwrap_or_default()))
    });
    if let Some((record, segments)) = known {
        presence.verified = record.verified;
        presence.is_recorded = true;
        presence.segments = segments;
        presence.segments.retain(|segment, _| *segment < chunks.div_ceil(SEGMENT_CHUNKS));
        cut(&mut presence, chunks);
        presence.recorded = presence.segments.iter().map(|(segment, record)| (*segment, record.bits)).collect();
    }
    let sealer = Sealer::new(&meta.blob, meta.chunk_size);
    for (chunk, header) in (0..chunks).zip(headers.as_chunks::<HEADER_BYTES>().0) {
        let Some(crc) = sealer.open(chunk, *header) else { continue };
        let record = presence.segments.entry(chunk / SEGMENT_CHUNKS).or_default();
        if !record.bits.has(chunk % SEGMENT_CHUNKS) {
            record.put(chunk % SEGMENT_CHUNKS, crc);
            presence.adopted += 1;
        }
    }
    presence
}

/// Forgets chunks beyond the end of the blob, which a sound index never has.
fn cut(presence: &mut Presence, chunks: u32) {
    let tail = chunks % SEGMENT_CHUNKS;
    if let Some(record) = presence.segments.get_mut(&(chunks / SEGMENT_CHUNKS)).filter(|_| tail > 0) {
        record.bits = record.bits.and(Bits::span(0, tail - 1));
    }
}
