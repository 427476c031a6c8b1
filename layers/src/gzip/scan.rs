//! A gzip layer from its first byte to its last, fed in pieces: its decoded bytes, and where frames may begin.

use miniz_oxide::inflate::{
    TINFLStatus,
    core::{
        DecompressorOxide, decompress,
        inflate_flags::{
            TINFL_FLAG_HAS_MORE_INPUT, TINFL_FLAG_STOP_ON_BLOCK_BOUNDARY, TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF,
        },
    },
};

use super::{TRAILER_BYTES, header::Header, window::Probe};
use crate::{
    frame::{Start, WINDOW_BYTES},
    index::build::{BuildError, Cutter},
};

/// Bytes decoded at once, after the window.
const OUT_BYTES: usize = 256 << 10;
const FLAGS: u32 =
    TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF | TINFL_FLAG_STOP_ON_BLOCK_BOUNDARY | TINFL_FLAG_HAS_MORE_INPUT;

/// What comes next.
#[derive(Debug)]
enum Step {
    Header(Header),
    Blocks,
    /// So many bytes of a member's trailer are left.
    Trailer(usize),
    /// What follows the last member is no gzip: ignored, as gzip does.
    Garbage,
}

/// The decoder of a gzip layer. Holds 288 KiB, and 160 KiB more while it looks at the beginning of a frame.
pub(crate) struct Scan {
    step: Step,
    decoder: Box<DecompressorOxide>,
    /// The window and what is decoded after it; `len` bytes of it are of this member.
    out: Box<[u8]>,
    len: usize,
    /// Compressed bytes taken.
    taken: u64,
    /// Where the current member begins.
    member: u64,
    /// Whether a member came to its end.
    is_some_whole: bool,
    probe: Option<Probe>,
}

impl std::fmt::Debug for Scan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scan").field("step", &self.step).field("taken", &self.taken).finish_non_exhaustive()
    }
}

impl Scan {
    pub(crate) fn new() -> Self {
        Self {
            step: Step::Header(Header::default()),
            decoder: Box::default(),
            out: vec![0; WINDOW_BYTES + OUT_BYTES].into(),
            len: 0,
            taken: 0,
            member: 0,
            is_some_whole: false,
            probe: None,
        }
    }

    /// The next bytes of the layer.
    pub(crate) fn push(&mut self, mut input: &[u8], cutter: &mut Cutter) -> Result<(), BuildError> {
        while let Some((&first, rest)) = input.split_first() {
            match &mut self.step {
                Step::Garbage => return Ok(()),
                Step::Header(header) => {
                    if header.is_fresh() {
                        self.member = self.taken;
                    }
                    match header.take(first) {
                        Ok(true) => {
                            cutter.boundary(Start::at(self.member))?;
                            *self.decoder = DecompressorOxide::default();
                            self.len = 0;
                            self.step = Step::Blocks;
                        }
                        Ok(false) => {}
                        Err(_) if self.is_some_whole && header.is_magic() => {
                            self.step = Step::Garbage;
                            return Ok(());
                        }
                        Err(reason) => return Err(self.broken(reason)),
                    }
                    self.taken += 1;
                    input = rest;
                }
                Step::Trailer(left) => {
                    *left -= 1;
                    self.taken += 1;
                    if *left == 0 {
                        self.is_some_whole = true;
                        cutter.end(self.taken)?;
                        self.step = Step::Header(Header::default());
                    }
                    input = rest;
                }
                Step::Blocks => input = self.blocks(input, cutter)?,
            }
        }
        Ok(())
    }

    /// Decodes until the input, the room or the block ends; what is left of the input.
    fn blocks<'a>(&mut self, input: &'a [u8], cutter: &mut Cutter) -> Result<&'a [u8], BuildError> {
        if self.len == self.out.len() {
            self.out.copy_within(OUT_BYTES.., 0);
            self.len = WINDOW_BYTES;
        }
        let (status, taken, made) = decompress(&mut self.decoder, input, &mut self.out, self.len, FLAGS);
        let (now, rest) = input.split_at(taken);
        self.taken += taken as u64;
        if self.probe.as_mut().is_some_and(|probe| probe.take(now, made)) {
            self.end_probe(cutter)?;
        }
        cutter.output(&self.out[self.len..self.len + made])?;
        self.len += made;
        match status {
            TINFLStatus::BlockBoundary => self.boundary(cutter)?,
            TINFLStatus::Done => {
                self.end_probe(cutter)?;
                self.step = Step::Trailer(TRAILER_BYTES);
            }
            TINFLStatus::HasMoreOutput | TINFLStatus::NeedsMoreInput if taken + made > 0 => {}
            _ => return Err(self.broken("its deflate stream makes no sense")),
        }
        Ok(rest)
    }

    fn boundary(&mut self, cutter: &mut Cutter) -> Result<(), BuildError> {
        let Some(state) = self.decoder.block_boundary_state() else { return Ok(()) };
        let start = Start { bit: self.taken * 8 - u64::from(state.num_bits), is_inside: true };
        if cutter.boundary(start)? {
            let window = &self.out[self.len.saturating_sub(WINDOW_BYTES)..self.len];
            self.probe = Some(Probe::new(&state, window));
        }
        Ok(())
    }

    fn end_probe(&mut self, cutter: &mut Cutter) -> Result<(), BuildError> {
        match self.probe.take() {
            Some(probe) => Ok(cutter.window(&probe.finish())?),
            None => Ok(()),
        }
    }

    /// Nothing more comes.
    pub(crate) fn finish(&self) -> Result<(), BuildError> {
        match &self.step {
            Step::Garbage => Ok(()),
            Step::Header(header) if self.is_some_whole && header.is_magic() => Ok(()),
            _ => Err(self.broken("it ends in the middle of a gzip member")),
        }
    }

    fn broken(&self, reason: &str) -> BuildError {
        BuildError::Broken { at: self.taken, reason: reason.to_owned() }
    }
}
