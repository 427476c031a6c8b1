//! Recordings as bytes: written, and read from anywhere. Format: docs/formats/recording.md.

use penstock_blob::{Blob, Digest};

use super::{GRAIN_BYTES, MAX_BLOBS, MAX_BYTES, MAX_RUNS, Recorder, Recording, Run};
use crate::units::u32_at;

/// What a recording begins with.
const MAGIC: [u8; 8] = *b"PNSTKREC";
/// The version written and read.
const VERSION: u32 = 1;
/// [`GRAIN_BYTES`], as it is written.
const GRAIN: u32 = 4096;
/// Magic, version, grain, digest of the manifest.
const HEADER_BYTES: usize = 48;
/// CRC-32C at the end.
const CHECK_BYTES: usize = 4;
/// A number takes at most this many bytes: 64 bits, seven in each.
const MAX_NUMBER_BYTES: u32 = 10;

/// Why bytes are no recording, or not one of this image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordingError {
    /// Too large or too small.
    #[error("it has {0} bytes; a recording has 52 to {MAX_BYTES}")]
    Size(usize),
    /// It does not begin as one.
    #[error("it does not begin as a recording")]
    Magic,
    /// Written by another release.
    #[error("it is of version {0}; this release reads version {VERSION}: record anew")]
    Version(u32),
    /// Its checksum is wrong.
    #[error("its checksum is wrong: it is damaged")]
    Checksum,
    /// A count or number makes no sense.
    #[error("its {0} makes no sense")]
    Number(&'static str),
    /// A range is empty, or ends beyond its blob.
    #[error("it names a range beyond the end of blob {0}")]
    Beyond(Digest),
    /// A byte is in it twice.
    #[error("it names bytes of blob {0} twice")]
    Twice(Digest),
    /// Bytes follow its end.
    #[error("{0} bytes follow its end")]
    Rest(usize),
    /// It is of another image.
    #[error("it is of image {of}, not of {image}")]
    Manifest {
        /// The image it names.
        of: Digest,
        /// The image it was taken for.
        image: Digest,
    },
    /// It is about a blob that the image does not have.
    #[error("it names blob {} of {} bytes, which the image does not have", .0.digest, .0.size_bytes)]
    Foreign(Blob),
}

impl Recording {
    /// The recording's bytes: the same for the same recording.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES + self.blobs.len() * 37 + self.runs.len() * 4 + CHECK_BYTES);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&GRAIN.to_le_bytes());
        out.extend_from_slice(self.manifest.as_bytes());
        put(&mut out, self.blobs.len() as u64);
        for blob in &self.blobs {
            out.extend_from_slice(blob.digest.as_bytes());
            put(&mut out, blob.size_bytes);
        }
        put(&mut out, self.runs.len() as u64);
        let mut ends = vec![0; self.blobs.len()];
        let mut at = 0;
        for run in &self.runs {
            let moves = run.blob != at;
            put(&mut out, (run.count << 1) | u64::from(moves));
            if moves {
                at = run.blob;
                put(&mut out, at as u64);
            }
            put(&mut out, zigzag(ends[at], run.first));
            ends[at] = run.first + run.count;
        }
        let check = crc32c::crc32c(&out);
        out.extend_from_slice(&check.to_le_bytes());
        out
    }

    /// Reads a recording. Takes memory in proportion to `bytes`, which are [`MAX_BYTES`] at most; which image it is of is for
    /// [`Recording::check`] to say.
    ///
    /// # Errors
    /// [`RecordingError`], for any bytes that are none.
    pub fn parse(bytes: &[u8]) -> Result<Self, RecordingError> {
        let body =
            bytes.len().checked_sub(CHECK_BYTES).filter(|&body| body >= HEADER_BYTES && bytes.len() <= MAX_BYTES);
        let (body, check) = bytes.split_at(body.ok_or(RecordingError::Size(bytes.len()))?);
        if body[..8] != MAGIC {
            return Err(RecordingError::Magic);
        }
        if u32_at(body, 8) != VERSION {
            return Err(RecordingError::Version(u32_at(body, 8)));
        }
        if u32_at(check, 0) != crc32c::crc32c(body) {
            return Err(RecordingError::Checksum);
        }
        if u32_at(body, 12) != GRAIN {
            return Err(RecordingError::Number("grain"));
        }
        let (header, rest) = body.split_at(HEADER_BYTES);
        let manifest = digest(&header[16..]).ok_or(RecordingError::Number("manifest"))?;
        let mut reader = Reader(rest);
        let blobs = reader.blobs()?;
        let recording = reader.runs(manifest, blobs)?;
        match reader.0.len() {
            0 => Ok(recording),
            rest => Err(RecordingError::Rest(rest)),
        }
    }
}

/// What is not read yet.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn number(&mut self, what: &'static str) -> Result<u64, RecordingError> {
        let mut number = 0_u64;
        for nth in 0..MAX_NUMBER_BYTES {
            let (&byte, rest) = self.0.split_first().ok_or(RecordingError::Number(what))?;
            self.0 = rest;
            let low = u64::from(byte & 0x7f);
            let shifted = low << (7 * nth);
            // The tenth byte has room for one bit.
            if shifted >> (7 * nth) != low {
                return Err(RecordingError::Number(what));
            }
            number |= shifted;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(RecordingError::Number(what))
    }

    fn count(&mut self, what: &'static str, most: usize) -> Result<usize, RecordingError> {
        let count = usize::try_from(self.number(what)?).ok().filter(|&count| count <= most);
        count.ok_or(RecordingError::Number(what))
    }

    fn blobs(&mut self) -> Result<Vec<Blob>, RecordingError> {
        let count = self.count("number of blobs", MAX_BLOBS)?;
        let mut blobs: Vec<Blob> = Vec::new();
        for _ in 0..count {
            let (head, rest) = self.0.split_at_checked(32).ok_or(RecordingError::Number("number of blobs"))?;
            self.0 = rest;
            let digest = digest(head).ok_or(RecordingError::Number("number of blobs"))?;
            let blob = Blob { digest, size_bytes: self.number("size of a blob")? };
            if blobs.iter().any(|known| known.digest == digest) {
                return Err(RecordingError::Twice(digest));
            }
            blobs.push(blob);
        }
        Ok(blobs)
    }

    fn runs(&mut self, manifest: Digest, blobs: Vec<Blob>) -> Result<Recording, RecordingError> {
        let count = self.count("number of ranges", MAX_RUNS)?;
        let mut ends = vec![0_u64; blobs.len()];
        let mut recorder = Recorder::from(Recording { manifest, blobs, runs: Vec::new() });
        let mut at = 0;
        for _ in 0..count {
            let head = self.number("length of a range")?;
            if head & 1 == 1 {
                at = self.count("blob of a range", MAX_BLOBS)?;
            }
            let moved = self.number("place of a range")?;
            let blob = *recorder.recording.blobs.get(at).ok_or(RecordingError::Number("blob of a range"))?;
            let beyond = RecordingError::Beyond(blob.digest);
            let first = unzigzag(ends[at], moved).ok_or(beyond.clone())?;
            let run = Run { blob: at, first, count: head >> 1 };
            let end = first
                .checked_add(run.count)
                .filter(|&end| run.count > 0 && end <= blob.size_bytes.div_ceil(GRAIN_BYTES));
            ends[at] = end.ok_or(beyond)?;
            if recorder.take(run) < run.count {
                return Err(RecordingError::Twice(blob.digest));
            }
        }
        Ok(recorder.into_recording())
    }
}

fn digest(bytes: &[u8]) -> Option<Digest> {
    Some(Digest::from_bytes(*bytes.first_chunk::<32>()?))
}

/// Adds a number: seven bits a byte, the lowest first, the high bit of a byte says that more follow.
fn put(out: &mut Vec<u8>, mut number: u64) {
    loop {
        let low = (number & 0x7f) as u8;
        number >>= 7;
        if number == 0 {
            out.push(low);
            return;
        }
        out.push(low | 0x80);
    }
}

/// The way from `from` to `to`: twice as far forward, twice as far and one less backward.
const fn zigzag(from: u64, to: u64) -> u64 {
    if to >= from { (to - from) << 1 } else { ((from - to) << 1) - 1 }
}

fn unzigzag(from: u64, moved: u64) -> Option<u64> {
    if moved & 1 == 0 { from.checked_add(moved >> 1) } else { from.checked_sub((moved >> 1).checked_add(1)?) }
}
