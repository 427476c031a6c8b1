//! Images made up for the criterion benches.

use std::{io::Cursor, path::Path, sync::Arc};

use anyhow::Context as _;
use bytes::Bytes;
use penstock_blob::{Blob, BlobSource, faults::Memory};
use penstock_image::{
    Image, Layer,
    lsmt::{ENTRY_BYTES, Entry, HEADER_BYTES, MAGIC},
    write::{self, Options},
    zfile::Format,
};

/// Bytes of a sector.
const SECTOR: u64 = 512;
/// Sectors of each extent of [`scattered`], and of the hole behind it.
const EXTENT_SECTORS: u32 = 8;

/// An image, and the source that holds all its bytes in memory.
#[derive(Debug)]
pub struct Held {
    /// The image.
    pub image: Image,
    /// Where its bytes are.
    pub source: Arc<dyn BlobSource>,
    /// Its one layer.
    pub layer: Blob,
}

impl Held {
    async fn open(layer: Vec<u8>, maps_dir: &Path) -> anyhow::Result<Self> {
        let memory = Memory::new(vec![Bytes::from(layer)]);
        memory.resident(true);
        let layer = memory.blob(0);
        let source: Arc<dyn BlobSource> = memory;
        let described = Layer { blob: layer, media_type: write::MEDIA_TYPE.into(), annotations: Default::default() };
        let image = Image::open(vec![described], Arc::clone(&source), maps_dir).await?;
        image.completed().await?;
        Ok(Self { image, source, layer })
    }
}

/// An image with `extents` extents of 4 KiB, each followed by a hole of 4 KiB, none of which can be joined. All of them are the same 4 KiB of the
/// layer: the map is what counts.
///
/// # Errors
/// What opening the image says.
pub async fn scattered(extents: u64, maps_dir: &Path) -> anyhow::Result<Held> {
    let data_end = 2 * HEADER_BYTES;
    let stride = u64::from(2 * EXTENT_SECTORS);
    let mut layer = vec![0; usize::try_from(data_end)?];
    let entry = |nth| Entry {
        start: nth * stride,
        sectors: EXTENT_SECTORS,
        moffset: HEADER_BYTES / SECTOR,
        zeroed: false,
        tag: 0,
    };
    (0..extents).for_each(|nth| layer.extend(entry(nth).to_bytes()));
    // The trailer stands at the next sector: an entry of zero sectors would be refused, padding is all ones.
    let entries = extents.next_multiple_of(SECTOR / ENTRY_BYTES as u64);
    let padding = Entry { start: (1 << 50) - 1, sectors: 0, moffset: 0, zeroed: false, tag: 0 };
    (extents..entries).for_each(|_| layer.extend(padding.to_bytes()));
    let device_bytes = extents * stride * SECTOR;
    layer[..usize::try_from(HEADER_BYTES)?].copy_from_slice(&head(7, [0, 0, device_bytes]));
    layer.extend(head(6, [data_end, entries, device_bytes]));
    Held::open(layer, maps_dir).await
}

/// A header or trailer of a layer file (docs/formats/overlaybd.md, section 3): flags, then index offset, entries and device size.
fn head(flags: u32, numbers: [u64; 3]) -> Vec<u8> {
    let mut block = MAGIC.to_vec();
    block.extend(390_u32.to_le_bytes());
    block.extend(flags.to_le_bytes());
    numbers.iter().for_each(|number| block.extend(number.to_le_bytes()));
    block.resize(4096, 0);
    block
}

/// An image of `disk` with frames of this format.
///
/// # Errors
/// What writing or opening the image says.
pub async fn framed(disk: &[u8], format: Format, maps_dir: &Path) -> anyhow::Result<Held> {
    let mut layer = Cursor::new(Vec::new());
    write::disk(disk, &mut layer, Options { frames: Some(format), ..Options::default() })?;
    Held::open(layer.into_inner(), maps_dir).await
}

/// `count` bytes that compress about as programs do: this very program's, over and over.
///
/// # Errors
/// When it cannot be read.
pub fn program_bytes(count: usize) -> anyhow::Result<Vec<u8>> {
    let program = std::fs::read("/proc/self/exe").context("this program cannot read itself")?;
    Ok(program.iter().copied().cycle().take(count).collect())
}

#[cfg(test)]
mod tests {
    use penstock_blob::ByteRange;

    use super::*;

    #[tokio::test]
    async fn a_scattered_image_has_the_extents_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let held = scattered(1000, dir.path()).await.unwrap();
        assert_eq!((held.image.extents(), held.image.size_bytes()), (Some(1000), 1000 * 8192));
        let plan = held.image.plan(ByteRange::at(999 * 8192, 8192).unwrap(), &held.source).unwrap();
        assert_eq!((plan.steps.len(), plan.is_local()), (2, true), "data, then a hole");
    }
}
