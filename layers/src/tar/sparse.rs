//! Maps of sparse files: GNU's own in the header and blocks behind it, and the three that GNU keeps in pax archives (0.0 and 0.1 in
//! the pax header, 1.0 before the data). GNU tar manual, "Storing Sparse Files".

use penstock_blob::ByteRange;

use crate::{
    entry::{MAX_PIECES, Piece},
    tar::header::{Header, number},
};

/// Most numbers of a map: two per piece.
pub(crate) const MAX_NUMBERS: usize = 2 * MAX_PIECES;
/// Bytes of a place and length in GNU's own format.
const PAIR_BYTES: usize = 24;

/// What a pax header says of a sparse file.
#[derive(Debug, Default)]
pub(crate) struct Sparse {
    pub(crate) name: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) major: Option<u64>,
    pub(crate) minor: Option<u64>,
    pub(crate) in_header: bool,
    pub(crate) numbers: Vec<u64>,
}

/// Where the map of a sparse file in a pax archive is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    InHeader,
    InData,
}

impl Sparse {
    /// Where the map is; `None` when the member is not sparse.
    pub(crate) fn kind(&self) -> Option<Kind> {
        match (self.major, self.minor) {
            (Some(1), Some(0)) => Some(Kind::InData),
            _ if self.in_header || !self.numbers.is_empty() => Some(Kind::InHeader),
            _ => None,
        }
    }

    /// The map of the header; `None` when it ends with half a pair.
    pub(crate) fn map(self) -> Option<Map> {
        Map::of_numbers(&self.numbers)
    }
}

/// Places and lengths of what is stored of a file, in order.
#[derive(Debug, Default)]
pub(crate) struct Map(Vec<(u64, u64)>);

impl Map {
    fn of_numbers(numbers: &[u64]) -> Option<Self> {
        let (pairs, rest) = numbers.as_chunks::<2>();
        rest.is_empty().then(|| Self(pairs.iter().map(|&[at, len]| (at, len)).collect()))
    }

    fn push(&mut self, at: u64, len: u64) -> Option<()> {
        (self.0.len() < MAX_PIECES).then(|| self.0.push((at, len)))
    }

    /// The pieces of data of which `stored` bytes start at byte `start` of the archive; `None` unless they are exactly those.
    pub(crate) fn pieces(self, start: u64, stored: u64) -> Option<Vec<Piece>> {
        let end = start.checked_add(stored)?;
        let mut next = start;
        let mut pieces = Vec::with_capacity(self.0.len());
        for (at, len) in self.0 {
            let from = next;
            next = from.checked_add(len).filter(|&next| next <= end)?;
            // Of no length: how GNU tar writes down that a file ends with a hole.
            if let Ok(range) = ByteRange::new(from, next) {
                pieces.push(Piece { at, range });
            }
        }
        (next == end).then_some(pieces)
    }
}

/// GNU's own map, of which the header holds four pairs and each block behind it 21.
#[derive(Debug, Default)]
pub(crate) struct GnuMap(Map);

impl GnuMap {
    /// What the header holds, the file's size, and whether a block follows.
    pub(crate) fn of_header(header: &Header<'_>) -> Option<(Self, u64, bool)> {
        let mut map = Self::default();
        map.pairs(header.bytes(386..482))?;
        let size = u64::try_from(number(header.bytes(483..495))?).ok()?;
        Some((map, size, header.bytes(482..483) != [0]))
    }

    /// Takes a block: whether another one follows.
    pub(crate) fn block(&mut self, block: &[u8]) -> Option<bool> {
        self.pairs(block.get(..504)?)?;
        Some(*block.get(504)? != 0)
    }

    fn pairs(&mut self, pairs: &[u8]) -> Option<()> {
        for pair in pairs.chunks_exact(PAIR_BYTES) {
            // The first empty pair ends a block's list.
            if pair[0] == 0 || pair[12] == 0 {
                break;
            }
            let at = u64::try_from(number(&pair[..12])?).ok()?;
            self.0.push(at, u64::try_from(number(&pair[12..])?).ok()?)?;
        }
        Some(())
    }
}

impl From<GnuMap> for Map {
    fn from(map: GnuMap) -> Self {
        map.0
    }
}

/// The map of format 1.0: decimal numbers, each behind it a newline: how many pairs, then these; filled up to a block.
#[derive(Debug, Default)]
pub(crate) struct PaxMap {
    map: Map,
    pairs: Option<u64>,
    /// A place whose length has not come.
    at: Option<u64>,
    number: Option<u64>,
}

impl PaxMap {
    /// Takes a block: whether the map is complete. The rest of the last block is passed by.
    pub(crate) fn block(&mut self, block: &[u8]) -> Option<bool> {
        for byte in block {
            match byte {
                b'0'..=b'9' => {
                    let value = self.number.unwrap_or_default().checked_mul(10)?.checked_add(u64::from(byte - b'0'))?;
                    self.number = Some(value);
                }
                b'\n' => self.line()?,
                _ => return None,
            }
            if self.is_complete() {
                return Some(true);
            }
        }
        Some(false)
    }

    fn line(&mut self) -> Option<()> {
        let number = self.number.take()?;
        match (self.pairs, self.at.take()) {
            (None, _) => self.pairs = Some(number).filter(|&pairs| pairs <= MAX_PIECES as u64).map(Some)?,
            (Some(_), None) => self.at = Some(number),
            (Some(_), Some(at)) => self.map.push(at, number)?,
        }
        Some(())
    }

    fn is_complete(&self) -> bool {
        self.pairs == Some(self.map.0.len() as u64) && self.at.is_none() && self.number.is_none()
    }
}

impl From<PaxMap> for Map {
    fn from(map: PaxMap) -> Self {
        map.map
    }
}
