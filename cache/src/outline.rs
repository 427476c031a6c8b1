//! A blob in parts, and how much of each is here: for somebody who looks at it, however large it is.

use std::sync::Arc;

use penstock_blob::Blob;

use crate::{
    bits::Bits,
    entry::Entry,
    slots::{Slots, by_segment},
    store::Store,
};

/// A run of a blob's chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Part {
    /// Chunks it has.
    pub chunks: u32,
    /// Those of them that are on disk.
    pub present: u32,
    /// Whether some are being fetched or checked.
    pub is_filling: bool,
    /// Whether some that are on disk were read since they came, or since the cache was opened.
    pub is_read: bool,
}

/// A blob as a row of parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outline {
    /// Bytes of the blob in each part; the last one may have fewer.
    pub part_bytes: u64,
    /// The parts, in order.
    pub parts: Vec<Part>,
}

impl Store {
    /// `blob` in at most `most` parts (one at least). What is not known of it is not here.
    pub(crate) fn outline(&self, blob: &Blob, most: u32) -> Outline {
        let entry = self.table.load().get(blob).cloned();
        let chunk_size = entry.as_ref().map_or(self.config.chunk_size, |entry| entry.chunk_size);
        let chunks = entry.as_ref().map_or_else(|| chunk_size.count(blob).unwrap_or(u32::MAX), |entry| entry.chunks);
        let each = chunks.div_ceil(most.max(1)).max(1);
        let firsts = (0..chunks).step_by(each as usize);
        let mut parts: Vec<Part> =
            firsts.map(|first| Part { chunks: each.min(chunks - first), ..Part::default() }).collect();
        if let Some(entry) = &entry {
            count(entry, each, &mut parts);
        }
        Outline { part_bytes: u64::from(each) * u64::from(chunk_size.bytes()), parts }
    }
}

fn count(entry: &Arc<Entry>, each: u32, parts: &mut [Part]) {
    for chunk in entry.lock().fills.keys() {
        if let Some(part) = parts.get_mut((chunk / each) as usize) {
            part.is_filling = true;
        }
    }
    let Some(slots) = entry.slots.get() else { return };
    for (first, part) in (0..).step_by(each as usize).zip(parts) {
        look(slots, (first, first + (part.chunks - 1)), part);
    }
}

fn look(slots: &Slots, (first, last): (u32, u32), part: &mut Part) {
    for (number, a, b) in by_segment(first, last) {
        let Some(segment) = slots.segment(number) else { continue };
        let here = segment.present.load().and(Bits::span(a, b));
        part.present += here.count();
        // What was found here at the start is checked when it is read first.
        part.is_read |= !here.and(segment.checked.load()).without(segment.ahead.load()).is_empty();
    }
}
