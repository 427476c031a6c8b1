//! Which parts of a device's blobs are here: a map that stays small however large the blobs are.

use penstock_blob::Digest;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The most cells of one map, all blobs together, but never fewer than one for each blob: 4 KiB of JSON.
pub const BLOCK_CELLS: usize = 4_096;

/// How much of a cell is here is told in this many steps.
pub const CELL_LEVELS: u8 = 8;

/// What is known of one run of a blob's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cell {
    /// The share of it that is on this node, from 0 to [`CELL_LEVELS`]: 0 is nothing, [`CELL_LEVELS`] is everything, and what lies between is
    /// neither.
    pub level: u8,
    /// Whether some of it is being fetched or checked.
    pub is_filling: bool,
    /// Whether some of it was read since it came here, or since the agent started.
    pub is_read: bool,
}

impl Cell {
    /// A cell of which `present` of `all` chunks are here.
    #[must_use]
    pub fn new(present: u32, all: u32, is_filling: bool, is_read: bool) -> Self {
        let step = u64::from(present) * u64::from(CELL_LEVELS) / u64::from(all.max(1));
        let level = match u8::try_from(step).unwrap_or(CELL_LEVELS) {
            0 if present > 0 => 1,
            step => step.min(CELL_LEVELS),
        };
        Self { level, is_filling, is_read }
    }

    /// It as one character of [`BlobBlocks::cells`].
    #[must_use]
    pub fn to_char(self) -> char {
        let code = self.level.min(CELL_LEVELS) << 2 | u8::from(self.is_filling) << 1 | u8::from(self.is_read);
        char::from_digit(code.into(), 36).unwrap_or('?').to_ascii_uppercase()
    }
}

/// The blobs of one device in cells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BlockMap {
    /// The device.
    #[schema(example = "d1")]
    pub id: String,
    /// Its blobs, in the order of its layers.
    pub blobs: Vec<BlobBlocks>,
}

/// One blob in cells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BlobBlocks {
    /// The blob.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// How many of its bytes one cell stands for; the last one may stand for fewer.
    pub cell_bytes: u64,
    /// A character for each cell, `0` to `9` and `A` to `Z` for 0 to 35: four times the share that is here in eighths, plus 2 when some of it is being
    /// fetched, plus 1 when some of it was read.
    #[schema(example = "000XXX2")]
    pub cells: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_nothing_is_level_0_and_only_everything_is_the_highest() {
        for all in 1..40 {
            for present in 0..=all {
                let level = Cell::new(present, all, false, false).level;
                assert_eq!(level == 0, present == 0, "{present} of {all}");
                assert_eq!(level == CELL_LEVELS, present == all, "{present} of {all}");
            }
        }
    }

    #[test]
    fn every_cell_has_a_character_of_its_own() {
        let mut seen = std::collections::BTreeSet::new();
        for level in 0..=CELL_LEVELS {
            for (is_filling, is_read) in [(false, false), (false, true), (true, false), (true, true)] {
                let character = Cell { level, is_filling, is_read }.to_char();
                assert!(character.is_ascii_alphanumeric() && seen.insert(character), "{character}");
            }
        }
        assert_eq!(Cell::default().to_char(), '0');
        assert_eq!(Cell { level: CELL_LEVELS, is_filling: false, is_read: true }.to_char(), 'X');
    }
}
