//! An archive that is not compressed: frames are cut where it suits.

use crate::{
    frame::{Start, TARGET_BYTES},
    index::build::{BuildError, Cutter},
};

/// The layer as far as it came.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    taken: u64,
}

impl Scan {
    /// The next bytes of the layer.
    pub(crate) fn push(&mut self, mut input: &[u8], cutter: &mut Cutter) -> Result<(), BuildError> {
        while !input.is_empty() {
            if self.taken.is_multiple_of(TARGET_BYTES) {
                cutter.boundary(Start::at(self.taken))?;
            }
            let until = TARGET_BYTES - self.taken % TARGET_BYTES;
            let (now, rest) = input.split_at(usize::try_from(until).unwrap_or(usize::MAX).min(input.len()));
            cutter.output(now)?;
            self.taken += now.len() as u64;
            input = rest;
        }
        cutter.end(self.taken)
    }
}
