//! What the fuzz targets of `penstock-image` share.

use std::{io::Cursor, path::Path, sync::Arc};

use bytes::Bytes;
use penstock_blob::{BlobSource, ByteRange, faults::Memory};
use penstock_image::{
    Image, Layer,
    write::{LayerWriter, Options},
    zfile::{Codec, Format, digest},
};

/// Opens the blob as an image and reads the start of its device. What comes out does not matter.
pub fn exercise(bytes: Bytes, maps: &Path) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(async {
        let memory = Memory::new(vec![bytes]);
        let layer = Layer { blob: memory.blob(0), media_type: String::new(), annotations: Default::default() };
        let Ok(image) = Image::open(vec![layer], memory.clone(), maps).await else { return };
        let source: Arc<dyn BlobSource> = memory;
        if let Ok(range) = ByteRange::new(0, image.size_bytes().min(1 << 20)) {
            let _ = penstock_image::read(&image, &source, range).await;
        }
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

/// Makes ZFile headers at the usual places believable again, so that what lies behind them is reached.
pub fn reseal(bytes: &mut [u8]) {
    for at in [0, 1536, bytes.len().saturating_sub(512)] {
        if let Some(header) = bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<512>()) {
            let sum = digest(header);
            header[28..32].copy_from_slice(&sum.to_le_bytes());
        }
    }
}
