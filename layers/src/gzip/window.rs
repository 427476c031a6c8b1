//! Which bytes of a window a frame refers to. The others are dropped: what is left is a fifth of the size.
//!
//! The beginning of the frame is decoded three times over made-up windows. A byte that differs between the first two came from the window,
//! and the first and third say from where. After 32 KiB nothing can refer to the window any more, except by a byte that did before.

use miniz_oxide::inflate::core::{
    BlockBoundaryState, DecompressorOxide, decompress, inflate_flags::TINFL_FLAG_HAS_MORE_INPUT,
    inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF,
};

use crate::frame::WINDOW_BYTES;

/// Most compressed bytes looked at. 32 KiB take at most a few more than that, unless somebody strews empty blocks: then all is kept.
const MAX_INPUT_BYTES: usize = 128 << 10;

/// The beginning of a frame, until it is known what it refers to.
#[derive(Debug)]
pub(crate) struct Probe {
    window: Vec<u8>,
    num_bits: u8,
    bit_buf: u8,
    input: Vec<u8>,
    made: usize,
}

impl Probe {
    /// A frame that begins in this state after these bytes.
    pub(crate) fn new(state: &BlockBoundaryState, window: &[u8]) -> Self {
        Self { window: window.to_vec(), num_bits: state.num_bits, bit_buf: state.bit_buf, input: Vec::new(), made: 0 }
    }

    /// The decoder took these bytes and made so many of them. True: enough is known.
    pub(crate) fn take(&mut self, input: &[u8], made: usize) -> bool {
        let room = (MAX_INPUT_BYTES + 1).saturating_sub(self.input.len());
        self.input.extend_from_slice(&input[..input.len().min(room)]);
        self.made = self.made.saturating_add(made);
        self.made >= WINDOW_BYTES || self.input.len() > MAX_INPUT_BYTES
    }

    /// The window from the first byte on that is referred to, with zeros in place of those that are not.
    pub(crate) fn finish(self) -> Vec<u8> {
        if self.input.len() > MAX_INPUT_BYTES && self.made < WINDOW_BYTES {
            return self.window;
        }
        let low = |at: usize| u8::try_from(at & 0xff).unwrap_or_default();
        let [marked, inverted, high] = [self.over(low), self.over(|at| !low(at)), self.over(|at| low(at >> 8))];
        let mut kept = vec![0; self.window.len()];
        let mut first = kept.len();
        for nth in self.window.len()..marked.len() {
            if marked[nth] != inverted[nth] {
                let at = usize::from(marked[nth]) | usize::from(high[nth]) << 8;
                if let (Some(to), Some(from)) = (kept.get_mut(at), self.window.get(at)) {
                    *to = *from;
                    first = first.min(at);
                }
            }
        }
        kept.split_off(first)
    }

    /// A made-up window and what the frame's beginning decodes to after it.
    fn over(&self, byte: impl Fn(usize) -> u8) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..self.window.len()).map(byte).collect();
        bytes.resize(self.window.len() + self.made.min(WINDOW_BYTES), 0);
        let state = BlockBoundaryState { num_bits: self.num_bits, bit_buf: self.bit_buf, ..Default::default() };
        let mut decoder = DecompressorOxide::from_block_boundary_state(&state);
        let flags = TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF | TINFL_FLAG_HAS_MORE_INPUT;
        decompress(&mut decoder, &self.input, &mut bytes, self.window.len(), flags);
        bytes
    }
}
