//! Who gave which bytes, for when they turn out to be wrong. Bounded: the oldest are forgotten.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;
use penstock_blob::{ByteRange, Digest};

use crate::place::Place;

/// Most pieces remembered, about 100 bytes each. Bytes are checked when they are first used, mostly within moments; what a place
/// gives in one go is one piece.
const MAX_PIECES: usize = 4096;

/// The last pieces, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Gave {
    pieces: Mutex<VecDeque<Piece>>,
}

#[derive(Debug)]
struct Piece {
    digest: Digest,
    range: ByteRange,
    place: Arc<Place>,
}

impl Gave {
    /// `place` gave the bytes of `range`.
    pub(crate) fn record(&self, digest: Digest, range: ByteRange, place: &Arc<Place>) {
        let mut pieces = self.pieces.lock();
        if let Some(last) = pieces.back_mut()
            && last.digest == digest
            && Arc::ptr_eq(&last.place, place)
            && last.range.end() == range.start()
        {
            last.range = last.range.cover(range);
            return;
        }
        if pieces.len() >= MAX_PIECES {
            pieces.pop_front();
        }
        pieces.push_back(Piece { digest, range, place: place.clone() });
    }

    /// Who gave bytes of `range` last.
    pub(crate) fn last(&self, digest: &Digest, range: ByteRange) -> Option<Arc<Place>> {
        let pieces = self.pieces.lock();
        let mut newest = pieces.iter().rev();
        let found = newest.find(|piece| piece.digest == *digest && piece.range.intersection(range).is_some())?;
        Some(found.place.clone())
    }

    /// Everybody whose bytes are in `range`, each once: for each byte who gave it last. What is said is forgotten.
    pub(crate) fn take(&self, digest: &Digest, range: ByteRange) -> Vec<Arc<Place>> {
        let mut pieces = self.pieces.lock();
        let mut open = vec![range];
        let mut places: Vec<Arc<Place>> = Vec::new();
        let mut said = Vec::new();
        for (at, piece) in pieces.iter().enumerate().rev() {
            if open.is_empty() {
                break;
            }
            if piece.digest != *digest {
                continue;
            }
            let left: Vec<ByteRange> = open.iter().flat_map(|open| without(*open, piece.range)).collect();
            if left == open {
                continue;
            }
            open = left;
            said.push(at);
            if !places.iter().any(|place| Arc::ptr_eq(place, &piece.place)) {
                places.push(piece.place.clone());
            }
        }
        for at in said {
            let Some(piece) = pieces.remove(at) else { continue };
            // Its bytes around the range are still its own.
            for rest in without(piece.range, range) {
                pieces.insert(at, Piece { digest: piece.digest, range: rest, place: piece.place.clone() });
            }
        }
        pieces.truncate(MAX_PIECES);
        places
    }
}

/// The parts of `whole` that are not in `part`.
fn without(whole: ByteRange, part: ByteRange) -> impl Iterator<Item = ByteRange> {
    let before = ByteRange::new(whole.start(), whole.end().min(part.start()));
    let after = ByteRange::new(whole.start().max(part.end()), whole.end());
    [before, after].into_iter().filter_map(Result::ok)
}

#[cfg(test)]
mod tests {
    use tokio::sync::broadcast;

    use super::*;
    use crate::{Config, Reference, dial::Dialer, metrics::Metrics, namespace::Namespaces, place::Places};

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange::new(start, end).unwrap()
    }

    async fn places() -> Vec<Arc<Place>> {
        let metrics = Metrics::new(&mut prometheus_client::registry::Registry::default());
        let dialer = Arc::new(Dialer::new(&Config::default(), metrics).unwrap());
        let namespaces = Namespaces::new(dialer, broadcast::channel(8).0);
        let places = Places::default();
        for from in ["a.io/x", "b.io/x"] {
            let from: Reference = from.parse().unwrap();
            let namespace = namespaces.of(&from);
            namespaces.refresh(&namespace).await;
            places.serve(Digest::of(b"blob"), &namespace, &from);
        }
        places.of(&Digest::of(b"blob"))
    }

    fn hosts(found: &[Arc<Place>]) -> Vec<&str> {
        found.iter().map(|place| place.endpoint.host.as_str()).collect()
    }

    #[tokio::test]
    async fn who_gave_the_bytes_last_is_named_and_nobody_else() {
        let all = places().await;
        let (a, b) = (&all[0], &all[1]);
        let (gave, blob, other) = (Gave::default(), Digest::of(b"blob"), Digest::of(b"other"));
        gave.record(blob, range(0, 100), a);
        gave.record(blob, range(100, 200), a);
        gave.record(other, range(0, 100), b);
        gave.record(blob, range(50, 60), b);
        assert_eq!(hosts(&gave.take(&blob, range(200, 300))), [""; 0]);
        assert_eq!(hosts(&gave.take(&blob, range(52, 58))), ["b.io"], "the later bytes are those in use");
        assert_eq!(hosts(&gave.take(&blob, range(40, 51))), ["b.io", "a.io"], "both gave some");
        assert_eq!(hosts(&gave.take(&blob, range(40, 50))), [""; 0], "said once");
        assert_eq!(hosts(&gave.take(&blob, range(0, 10))), ["a.io"]);
        assert_eq!(hosts(&gave.take(&blob, range(150, 160))), ["a.io"]);
        assert_eq!(hosts(&gave.take(&other, range(0, 1))), ["b.io"]);
    }

    #[tokio::test]
    async fn memory_is_bounded_and_the_newest_stay() {
        let all = places().await;
        let (gave, blob) = (Gave::default(), Digest::of(b"blob"));
        for n in 0..2 * MAX_PIECES as u64 {
            gave.record(blob, range(n * 10, n * 10 + 1), &all[0]);
        }
        assert_eq!(gave.pieces.lock().len(), MAX_PIECES);
        assert!(gave.take(&blob, range(0, 10)).is_empty());
        let last = (2 * MAX_PIECES as u64 - 1) * 10;
        assert_eq!(gave.take(&blob, range(last, last + 1)).len(), 1);
        for n in 0..MAX_PIECES as u64 {
            gave.record(blob, range(n * 10, n * 10 + 10), &all[0]);
        }
        assert_eq!(gave.pieces.lock().len(), MAX_PIECES, "pieces that follow each other are one");
    }
}
