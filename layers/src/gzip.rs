//! gzip with checkpoints (RFC 1951, RFC 1952): a decoder that is fed and says where a frame may begin, and one that decodes a frame.
//!
//! A checkpoint is a place between two deflate blocks: a bit position, and as much of the 32 KiB before it as what follows refers to.
//! [`scan`] finds them with `miniz_oxide`, whose decoder stops between blocks; [`decode`] starts at one with `zlib-rs`, which is faster
//! but has no safe way to start between two bits. It is led there by empty blocks made for that ([`lead`]).

use zlib_rs::{Inflate, InflateFlush, Status};

use crate::frame::{FrameError, Start};

mod header;
mod lead;
pub(crate) mod scan;
mod window;

use header::Header;

/// Bytes after the deflate stream of a member: CRC-32 and size (RFC 1952, section 2.3.1).
const TRAILER_BYTES: usize = 8;
/// Bits of deflate's window, as zlib wants them.
const WINDOW_BITS: u8 = 15;

/// Decodes what `packed` holds from `start` on, whose byte is the first of `packed`. More than `len` bytes end as `len + 1`. Checksums of
/// members are not looked at: the frame has a digest.
pub(crate) fn decode(start: Start, packed: &[u8], window: &[u8], len: usize) -> Result<Vec<u8>, FrameError> {
    // One byte more than wanted, so that a frame that holds more is found out.
    let mut bytes = vec![0; len + 1];
    let mut done = 0;
    let mut rest = packed;
    let mut inflate = Inflate::new(false, WINDOW_BITS);
    if start.is_inside {
        rest = resume(&mut inflate, start, packed, window)?;
        (rest, done) = member(&mut inflate, rest, &mut bytes, done)?;
    }
    while done <= len && !rest.is_empty() {
        let Some(after) = skip_header(rest)? else { break };
        inflate.reset(false);
        (rest, done) = member(&mut inflate, after, &mut bytes, done)?;
    }
    bytes.truncate(done);
    Ok(bytes)
}

/// Makes `inflate` stand at `start`; what follows its byte.
fn resume<'a>(inflate: &mut Inflate, start: Start, packed: &'a [u8], window: &[u8]) -> Result<&'a [u8], FrameError> {
    if !window.is_empty() {
        inflate.set_dictionary(window).map_err(broken)?;
    }
    let Some((first, rest)) = packed.split_first() else { return Ok(packed) };
    let lead = lead::lead(start.bit % 8, *first);
    if lead.is_empty() {
        return Ok(packed);
    }
    inflate.decompress(&lead, &mut [], InflateFlush::NoFlush).map_err(broken)?;
    // A lead is shorter than any block that needs room for output.
    (inflate.total_in() == lead.len() as u64)
        .then_some(rest)
        .ok_or_else(|| FrameError::Broken("a block without an end".into()))
}

/// Decodes to the end of the member, of the input or of `bytes`; the input after the member and how many bytes are done.
fn member<'a>(
    inflate: &mut Inflate,
    mut input: &'a [u8],
    bytes: &mut [u8],
    mut done: usize,
) -> Result<(&'a [u8], usize), FrameError> {
    loop {
        let (had_in, had_out) = (inflate.total_in(), inflate.total_out());
        let room = bytes.get_mut(done..).unwrap_or_default();
        let status = inflate.decompress(input, room, InflateFlush::NoFlush).map_err(broken)?;
        let (taken, made) = (inflate.total_in() - had_in, inflate.total_out() - had_out);
        input = usize::try_from(taken).ok().and_then(|taken| input.get(taken..)).unwrap_or_default();
        done = done.saturating_add(usize::try_from(made).unwrap_or(usize::MAX)).min(bytes.len());
        match status {
            Status::StreamEnd => return Ok((input.get(TRAILER_BYTES..).unwrap_or_default(), done)),
            Status::Ok if taken + made > 0 && done < bytes.len() => {}
            Status::Ok | Status::BufError => return Ok((&[], done)),
        }
    }
}

/// What follows the header of a member; `None` when no member begins here: the frame ends within the header, or before what is no gzip.
pub(crate) fn skip_header(input: &[u8]) -> Result<Option<&[u8]>, FrameError> {
    let mut header = Header::default();
    for (nth, byte) in input.iter().enumerate() {
        match header.take(*byte) {
            Ok(true) => return Ok(input.get(nth + 1..)),
            Ok(false) => {}
            Err(reason) => return Err(FrameError::Broken(reason.into())),
        }
    }
    Ok(None)
}

fn broken(error: zlib_rs::InflateError) -> FrameError {
    FrameError::Broken(error.as_str().to_owned())
}
