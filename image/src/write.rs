//! The canonical writer: device bytes to an OverlayBD layer blob that upstream's reader takes.
//!
//! [`disk`] turns a raw disk into a layer, leaving out holes and zeros; [`LayerWriter`] takes extents one by one, for
//! upper layers. Both stream: they hold the index (at most 16 MB) and a few MiB of data. The output is written once
//! from start to end, then the headers that hold totals are filled in, then it is read once for its digest.

mod delta;
mod disk;
mod frames;
mod tar;

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, Read, Seek, SeekFrom, Write},
    str::FromStr,
};

use penstock_blob::{Blob, Digest, Hasher};

use self::frames::FrameWriter;
pub use self::{
    delta::delta,
    disk::{Disk, disk},
};
use crate::{
    lsmt::{
        ENTRY_BYTES, Entry, FIRST_DATA_SECTOR, FLAG_DATA, FLAG_HEADER, FLAG_SEALED, HEADER_BYTES, MAGIC,
        MAX_DEVICE_BYTES,
    },
    recognise::{BLOB_DIGEST, BLOB_SIZE, VERSION},
    units::SECTOR_BYTES,
    zfile::{BLOCK_BYTES, Codec, Format},
};

/// Media type of a layer descriptor, as upstream's convertor writes it for OCI images.
pub const MEDIA_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
/// Artifact type of a manifest of such layers.
pub const ARTIFACT_TYPE: &str = "application/vnd.containerd.overlaybd.native.v1+json";
/// Longest extent written, in sectors: upstream merges neighbours while their sum stays below 16383.
const MAX_SECTORS: u64 = 16_382;
/// Entries to which an index is padded: 4 KiB.
const INDEX_STEP: usize = 256;
/// Most entries of an index, padding included, that upstream's reader takes.
const MAX_ENTRIES: usize = 1_000_000;
/// Longest comment, in bytes.
const COMMENT_BYTES: usize = 256;

/// A layer's UUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Uuid([u8; 16]);

impl Uuid {
    /// The parent of a bottom layer.
    pub const NULL: Self = Self([0; 16]);

    /// The UUID that upstream's convertor gives the layer with this chain ID: its first 16 bytes.
    #[must_use]
    pub fn of_chain(chain: &Digest) -> Self {
        Self(crate::units::field(chain.as_bytes(), 0))
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            let dash = if matches!(i, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{dash}{byte:02X}")?;
        }
        Ok(())
    }
}

/// Why a text is not a UUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a UUID has 32 hex digits, with dashes after 8, 12, 16 and 20")]
pub struct UuidError;

impl FromStr for Uuid {
    type Err = UuidError;

    fn from_str(text: &str) -> Result<Self, UuidError> {
        let number = u128::from_str_radix(&text.replace('-', ""), 16).map_err(|_| UuidError)?;
        let uuid = Self(number.to_be_bytes());
        if uuid.to_string().eq_ignore_ascii_case(text) { Ok(uuid) } else { Err(UuidError) }
    }
}

/// How a layer is written.
#[derive(Debug, Clone)]
pub struct Options {
    /// How frames are stored; `None` writes a bare layer file. Upstream cannot read incompressible frames of 64 KiB:
    /// use at most 32 KiB for it.
    pub frames: Option<Format>,
    /// Whether a tar archive goes around it, as registries expect.
    pub tar: bool,
    /// Device size in bytes. `None`: the size of the disk for [`disk`], inherited from below for [`LayerWriter`].
    pub device_bytes: Option<u64>,
    /// The layer's UUID.
    pub uuid: Uuid,
    /// UUID of the layer below.
    pub parent: Uuid,
    /// Free text kept in the layer file, at most 256 bytes.
    pub comment: String,
    /// Threads that compress, at least 1.
    pub threads: usize,
}

impl Default for Options {
    /// What upstream's convertor writes: lz4 frames of 4 KiB with checks, in a tar archive.
    fn default() -> Self {
        Self {
            frames: Some(Format { codec: Codec::Lz4, crc: true, block_bytes: 4096 }),
            tar: true,
            device_bytes: None,
            uuid: Uuid::NULL,
            parent: Uuid::NULL,
            comment: String::new(),
            threads: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        }
    }
}

/// Why a layer was not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The disk or the output failed.
    #[error("the layer could not be written")]
    Io(#[from] io::Error),
    /// Extents must come in ascending order and not overlap.
    #[error("an extent starts at sector {start}, before the one before it ends ({previous_end})")]
    Order {
        /// First sector of the extent.
        start: u64,
        /// Where the last one ended.
        previous_end: u64,
    },
    /// Lengths are whole sectors, and the device ends below 2^59 bytes.
    #[error("{0} bytes are not a whole number of 512-byte sectors of a device")]
    Size(u64),
    /// The disk is too fragmented for one layer.
    #[error("the layer needs {entries} index entries; readers take {MAX_ENTRIES}")]
    TooManyExtents {
        /// How many, padding included.
        entries: usize,
    },
    /// An option has no meaning.
    #[error("{0}")]
    Options(&'static str),
}

/// A finished layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Its blob.
    pub blob: Blob,
    /// The annotations that make its descriptor an OverlayBD layer.
    pub annotations: BTreeMap<String, String>,
    /// Extents in its index.
    pub extents: u64,
    /// Bytes of device data in it.
    pub data_bytes: u64,
    /// Device size it states; 0 when inherited.
    pub device_bytes: u64,
}

/// What the layer file's bytes go through.
enum Body<F> {
    Bare(F),
    Framed(FrameWriter<F>),
}

impl<F: Write + Seek> Body<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Bare(out) => out.write_all(bytes),
            Self::Framed(frames) => frames.write(bytes),
        }
    }
}

/// Writes one layer from its extents, in ascending order.
pub struct LayerWriter<F> {
    body: Body<F>,
    options: Options,
    device_bytes: u64,
    /// Where the blob starts in the output.
    base: u64,
    index: Vec<Entry>,
    /// Next sector of the layer file.
    moffset: u64,
    end: u64,
}

impl<F> fmt::Debug for LayerWriter<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LayerWriter").field("extents", &self.index.len()).field("moffset", &self.moffset).finish()
    }
}

impl<F: Read + Write + Seek> LayerWriter<F> {
    /// Starts a layer at the output's position.
    ///
    /// # Errors
    /// [`WriteError::Options`], [`WriteError::Size`] for the device size, [`WriteError::Io`].
    pub fn new(mut out: F, options: Options) -> Result<Self, WriteError> {
        let device_bytes = options.device_bytes.unwrap_or(0);
        if !device_bytes.is_multiple_of(SECTOR_BYTES) || device_bytes > MAX_DEVICE_BYTES {
            return Err(WriteError::Size(device_bytes));
        }
        if options.comment.len() > COMMENT_BYTES {
            return Err(WriteError::Options("a comment has at most 256 bytes"));
        }
        if options.tar && options.frames.is_none() {
            return Err(WriteError::Options("a bare layer file is not wrapped in tar: upstream never does"));
        }
        if options.frames.is_some_and(|f| !f.block_bytes.is_power_of_two() || !BLOCK_BYTES.contains(&f.block_bytes)) {
            return Err(WriteError::Options("frames have 4, 8, 16, 32 or 64 KiB"));
        }
        let base = out.stream_position()?;
        if options.tar {
            out.write_all(&[0; tar::HEAD_BYTES])?;
        }
        let body = match options.frames {
            Some(format) => Body::Framed(FrameWriter::new(out, format, options.threads.max(1))?),
            None => Body::Bare(out),
        };
        let mut writer =
            Self { body, device_bytes, base, index: Vec::new(), moffset: FIRST_DATA_SECTOR, end: 0, options };
        let header = writer.header(FLAG_HEADER | FLAG_DATA | FLAG_SEALED, 0, 0);
        writer.body.write(&header)?;
        Ok(writer)
    }

    /// Adds data: whole sectors from sector `start` of the device on.
    ///
    /// # Errors
    /// [`WriteError::Order`], [`WriteError::Size`], [`WriteError::TooManyExtents`], [`WriteError::Io`].
    pub fn data(&mut self, start: u64, bytes: &[u8]) -> Result<(), WriteError> {
        let len = bytes.len() as u64;
        if !len.is_multiple_of(SECTOR_BYTES) {
            return Err(WriteError::Size(len));
        }
        self.extend(start, len / SECTOR_BYTES, false)?;
        Ok(self.body.write(bytes)?)
    }

    /// Hides what lower layers have in `sectors` sectors from `start` on: they read as zeros.
    ///
    /// # Errors
    /// As [`LayerWriter::data`].
    pub fn zeroed(&mut self, start: u64, sectors: u64) -> Result<(), WriteError> {
        self.extend(start, sectors, true)
    }

    /// Adds an extent to the index: joined with the last one where that is possible, cut where it is too long.
    fn extend(&mut self, mut start: u64, mut sectors: u64, zeroed: bool) -> Result<(), WriteError> {
        if start < self.end {
            return Err(WriteError::Order { start, previous_end: self.end });
        }
        let end = start.checked_add(sectors).filter(|&end| end <= MAX_DEVICE_BYTES / SECTOR_BYTES);
        self.end = end.ok_or(WriteError::Size(sectors.saturating_mul(SECTOR_BYTES)))?;
        while sectors > 0 {
            let stored = |entry: &Entry| if entry.zeroed { 0 } else { u64::from(entry.sectors) };
            let room = self.index.last().map_or(0, |last| {
                let moffset_follows = zeroed || last.moffset + stored(last) == self.moffset;
                let follows = last.end() == start && last.zeroed == zeroed && moffset_follows;
                if follows { MAX_SECTORS - u64::from(last.sectors) } else { 0 }
            });
            let now = if room > 0 { sectors.min(room) } else { sectors.min(MAX_SECTORS) };
            let added = u32::try_from(now).map_err(|_| WriteError::Size(now))?;
            match self.index.last_mut() {
                Some(last) if room > 0 => last.sectors += added,
                _ => self.index.push(Entry { start, sectors: added, moffset: self.moffset, zeroed, tag: 0 }),
            }
            if !zeroed {
                self.moffset += now;
            }
            (start, sectors) = (start + now, sectors - now);
        }
        let entries = self.index.len().next_multiple_of(INDEX_STEP);
        if entries > MAX_ENTRIES { Err(WriteError::TooManyExtents { entries }) } else { Ok(()) }
    }

    /// Finishes the layer. The output is left behind its last byte.
    ///
    /// # Errors
    /// [`WriteError::Io`].
    pub fn finish(mut self) -> Result<Written, WriteError> {
        let entries = self.index.len().next_multiple_of(INDEX_STEP);
        for some in self.index.chunks(INDEX_STEP) {
            let mut bytes = Vec::with_capacity(INDEX_STEP * ENTRY_BYTES);
            some.iter().for_each(|entry| bytes.extend_from_slice(&entry.to_bytes()));
            while bytes.len() < INDEX_STEP * ENTRY_BYTES {
                bytes.extend_from_slice(&Entry::PADDING.to_bytes());
            }
            self.body.write(&bytes)?;
        }
        let trailer = self.header(FLAG_DATA | FLAG_SEALED, self.moffset * SECTOR_BYTES, entries as u64);
        self.body.write(&trailer)?;
        let mut out = match self.body {
            Body::Bare(out) => out,
            Body::Framed(frames) => frames.finish()?,
        };
        let mut end = out.stream_position()?;
        if self.options.tar {
            end = tar::close(&mut out, self.base, end)?;
        }
        out.flush()?;
        let blob = hash(&mut out, self.base, end)?;
        let annotations = [
            (BLOB_DIGEST, blob.digest.to_string()),
            (BLOB_SIZE, blob.size_bytes.to_string()),
            (VERSION, "0.1.0".to_owned()),
        ];
        Ok(Written {
            blob,
            annotations: annotations.map(|(key, value)| (key.to_owned(), value)).into(),
            extents: self.index.len() as u64,
            data_bytes: (self.moffset - FIRST_DATA_SECTOR) * SECTOR_BYTES,
            device_bytes: self.device_bytes,
        })
    }

    /// A header or trailer of the layer file.
    fn header(&self, flags: u32, index_offset: u64, entries: u64) -> Vec<u8> {
        let mut block = Vec::with_capacity(4096);
        block.extend_from_slice(&MAGIC);
        block.extend_from_slice(&390_u32.to_le_bytes());
        block.extend_from_slice(&flags.to_le_bytes());
        for number in [index_offset, entries, self.device_bytes] {
            block.extend_from_slice(&number.to_le_bytes());
        }
        for uuid in [self.options.uuid, self.options.parent] {
            block.extend_from_slice(uuid.to_string().as_bytes());
            block.push(0);
        }
        block.extend_from_slice(&[0, 0, 1, 1]);
        block.extend_from_slice(self.options.comment.as_bytes());
        block.resize(usize::try_from(HEADER_BYTES).unwrap_or_default(), 0);
        block
    }
}

/// The digest of the output from `base` to `end`; leaves it at `end`.
fn hash(out: &mut (impl Read + Seek), base: u64, end: u64) -> io::Result<Blob> {
    out.seek(SeekFrom::Start(base))?;
    let mut hasher = Hasher::new();
    let mut buf = vec![0; 256 << 10];
    let mut rest = end - base;
    while rest > 0 {
        let some = buf.len().min(usize::try_from(rest).unwrap_or(buf.len()));
        out.read_exact(&mut buf[..some])?;
        hasher.update(&buf[..some]);
        rest -= some as u64;
    }
    Ok(Blob { digest: hasher.finish(), size_bytes: end - base })
}

#[cfg(test)]
mod tests;
