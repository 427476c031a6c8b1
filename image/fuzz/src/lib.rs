//! What the fuzz targets of `penstock-image` share.

use std::{
    io::Cursor,
    path::Path,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use penstock_blob::{BlobSource, ByteRange, faults::Memory};
use penstock_image::{
    Image, Layer,
    write::{LayerWriter, Options},
    zfile::{Codec, Format, digest},
};

/// Opens the blob as an image, reads the start and the middle of its device while its tables are made, and waits for those. What comes out does not
/// matter.
pub fn exercise(bytes: Bytes, maps: &Path) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(async {
        let memory = Memory::new(vec![bytes]);
        let layer = Layer { blob: memory.blob(0), media_type: String::new(), annotations: Default::default() };
        let Ok(image) = Image::open(vec![layer], memory.clone(), maps).await else { return };
        let source: Arc<dyn BlobSource> = memory;
        let middle = image.size_bytes() / 2;
        for range in [ByteRange::new(0, image.size_bytes().min(1 << 20)), ByteRange::new(middle, middle + 1)] {
            let Ok(range) = range else { continue };
            let _ = penstock_image::read(&image, &source, range).await;
        }
        let _ = image.completed().await;
    });
}

/// A small layer of this form: data, a hole, and zeros.
pub fn seed(codec: Option<Codec>, crc: bool) -> Vec<u8> {
    let frames = codec.map(|codec| Format { codec, crc, block_bytes: 4096 });
    let options =
        Options { frames, tar: frames.is_some(), device_bytes: Some(1 << 20), threads: 1, ..Options::default() };
    let mut out = Cursor::new(Vec::new());
    let mut writer = LayerWriter::new(&mut out, options).expect("the options are right");
    let data: Vec<u8> = (0..16_384_u32).map(|i| (i * i >> 7).to_le_bytes()[0]).collect();
    writer.data(3, &data).and_then(|()| writer.zeroed(1000, 20)).expect("the extents are in order");
    writer.finish().expect("memory can be written");
    out.into_inner()
}

/// A layer whose jump table is longer than what opening reads of it: the rest is added up in the background. Made once.
pub fn large() -> &'static [u8] {
    static LARGE: OnceLock<Vec<u8>> = OnceLock::new();
    LARGE.get_or_init(|| {
        let device_bytes = 20_000 * 4096;
        let options = Options { device_bytes: Some(device_bytes), threads: 1, ..Options::default() };
        let mut out = Cursor::new(Vec::new());
        let mut writer = LayerWriter::new(&mut out, options).expect("the options are right");
        let data = vec![7; 4096 * 100];
        let write = |nth: u64| writer.data(nth * 800, &data);
        (0..200).try_for_each(write).expect("the extents are in order");
        writer.finish().expect("memory can be written");
        out.into_inner()
    })
}

/// Makes ZFile headers at the usual places believable again, so that what lies behind them is reached.
pub fn reseal(bytes: &mut [u8]) {
    for at in [0, 1536, bytes.len().saturating_sub(512)] {
        if let Some(header) = bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<512>()) {
            let sum = digest(header);
            header[28..32].copy_from_slice(&sum.to_le_bytes());
        }
    }
}
