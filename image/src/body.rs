//! One layer file, or one raw disk, inside its blob: the bytes that extents point at.

use std::sync::Arc;

use bytes::Bytes;
use penstock_blob::{ByteRange, Located, Purpose};

use crate::{
    frames::Frames,
    layer::LayerError,
    map::LayerRecord,
    pages::TableError,
    plan::Planner,
    scratch::{FrameRun, Scratch},
    units::in_memory,
    window::Window,
};

/// The bytes of a layer file, decoded if it is a ZFile.
#[derive(Debug)]
pub(crate) struct Body {
    record: LayerRecord,
    frames: Option<Arc<Frames>>,
}

impl Body {
    /// A file that is stored as it is.
    pub(crate) const fn plain(record: LayerRecord) -> Self {
        Self { record, frames: None }
    }

    /// A file in frames.
    pub(crate) fn framed(frames: Arc<Frames>) -> Self {
        let shape = frames.shape();
        Self { record: LayerRecord { blob: shape.blob, file: shape.file, zfile: true }, frames: Some(frames) }
    }

    pub(crate) const fn record(&self) -> &LayerRecord {
        &self.record
    }

    /// Whether every stored frame carries a check.
    pub(crate) fn is_checked(&self) -> bool {
        self.frames.as_ref().is_some_and(|frames| frames.shape().format.crc)
    }

    /// Length in bytes, decoded.
    pub(crate) fn len(&self) -> u64 {
        self.frames.as_ref().map_or(self.record.file.len(), |frames| frames.shape().original_bytes)
    }

    /// Adds steps for `len` bytes from `offset` on; what lies behind the end reads as zeros.
    pub(crate) fn plan(&self, planner: &mut Planner<'_>, offset: u64, len: u64) -> Result<(), TableError> {
        let inside = self.len().saturating_sub(offset).min(len);
        if let Ok(range) = ByteRange::at(offset, inside) {
            match &self.frames {
                None => planner.plain(self.record.blob, self.in_blob(range)),
                Some(frames) => planner.frames(frames, range)?,
            }
        }
        planner.zero(len - inside);
        Ok(())
    }

    /// Where bytes of an unframed file are in the blob.
    fn in_blob(&self, range: ByteRange) -> ByteRange {
        let start = self.record.file.start();
        // Both lie inside the blob, so the sums are below its size.
        ByteRange::new(start + range.start(), start + range.end()).unwrap_or(range)
    }

    /// The frame table, unless the file is stored as it is.
    pub(crate) const fn frames(&self) -> Option<&Arc<Frames>> {
        self.frames.as_ref()
    }

    /// Whether bytes of the file can be read from what is held of the blob.
    pub(crate) fn is_held(&self, window: &Window, range: ByteRange) -> bool {
        let stored = match &self.frames {
            None => Some(self.in_blob(range)),
            Some(frames) => {
                let (first, count) = frames.shape().frames_of(range);
                let there = frames.lacking(first, count).is_none();
                there.then(|| frames.place(first, count)).flatten()
            }
        };
        stored.is_some_and(|stored| window.held(stored).is_some())
    }

    /// Reads bytes of the file, which must lie inside it: for the small parts needed to open it.
    pub(crate) async fn read(&self, window: &Window, range: ByteRange) -> Result<Bytes, LayerError> {
        let Some(frames) = &self.frames else { return window.bytes(self.in_blob(range), Purpose::Demand).await };
        let shape = frames.shape();
        let (first, count) = shape.frames_of(range);
        if let Some(pages) = frames.lacking(first, count) {
            frames.wait(pages).await?;
        }
        let mut ends = Vec::new();
        let start = frames.stored(first, count, &mut ends)?;
        let at = ends.last().and_then(|&end| ByteRange::at(start, u64::from(end)).ok()).ok_or(LayerError::Empty)?;
        let skip = range.start() - first * u64::from(shape.format.block_bytes);
        let run = FrameRun {
            blob: shape.blob,
            range: at,
            located: Located::in_memory(window.bytes(at, Purpose::Demand).await?),
            format: shape.format,
            skip_bytes: u32::try_from(skip).unwrap_or(u32::MAX),
            last_bytes: shape.frame_bytes(first + count as u64 - 1),
            ends: 0..ends.len(),
            before: 0,
        };
        let mut buf = vec![0; in_memory(range.len())];
        run.read_into(&ends, &mut buf, &mut Scratch::new()).map_err(LayerError::Frame)?;
        Ok(buf.into())
    }
}
