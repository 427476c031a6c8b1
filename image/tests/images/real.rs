//! Images made by upstream's tools, read whole: sha256 of the device as two other readers give it
//! (tests/fixtures/overlaybd).

use crate::common::{LZ4, ZSTD16, blob, device_sha256, fixtures, source};
use bytes::Bytes;
use penstock_image::{Image, Kind};

const ONE: &str = "c62ce0d5cdb48657f3ada99ca13384fca86d07ec6c0e0c99e604eff45ff69b3b";
const TWO: &str = "01202a0a30b439155e8ea96a1beba3107ab24a5396ae1b272e887a2a6df32eb3";
const THREE: &str = "0755cadb08dc82c01cd7254bd3f09b9dcd1c60d292a868e4fff2270df21378c4";

async fn assert_device(blobs: Vec<Bytes>, sha256: &str) -> Image {
    let maps = tempfile::tempdir().unwrap();
    let count = blobs.len();
    let (memory, layers) = source(blobs);
    let image = Image::open(layers, memory.clone(), maps.path()).await.unwrap();
    assert_eq!(image.size_bytes(), 1 << 30);
    assert_eq!(image.kind(), Kind::OverlayBd { layers: count });
    memory.resident(true);
    assert_eq!(device_sha256(&image, &*memory), sha256);
    image
}

/// The fixture is stored as its difference from `prefix` (see the README beside it).
fn patched(file: &str, prefix: &[u8]) -> Bytes {
    let file = std::io::BufReader::new(std::fs::File::open(fixtures().join(file)).unwrap());
    let mut decoder = zstd::stream::read::Decoder::with_ref_prefix(file, prefix).unwrap();
    decoder.window_log_max(31).unwrap();
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut decoder, &mut bytes).unwrap();
    bytes.into()
}

fn committed(nth: usize) -> Bytes {
    patched(&format!("native-raw-commit/layer{}.lsmt.zst", nth + 1), &blob(LZ4[nth]))
}

fn sealed(nth: usize) -> Bytes {
    patched(&format!("native-sealed/layer{}.sealed.zst", nth + 1), &committed(nth))
}

#[tokio::test]
async fn one_lz4_layer_is_the_device_that_upstream_reads() {
    let image = assert_device(vec![blob(LZ4[0])], ONE).await;
    assert_eq!(image.how_verified(), "CRC-32C of every ZFile frame read; sha256 of each blob once it is whole");
}

#[tokio::test]
async fn two_lz4_layers_are_the_device_that_upstream_reads() {
    assert_device(LZ4[..2].iter().copied().map(blob).collect(), TWO).await;
}

#[tokio::test]
async fn three_lz4_layers_are_the_device_that_upstream_reads() {
    assert_device(LZ4.map(blob).to_vec(), THREE).await;
}

#[tokio::test]
async fn three_zstd_layers_of_16k_frames_are_the_device_that_upstream_reads() {
    assert_device(ZSTD16.map(blob).to_vec(), THREE).await;
}

#[tokio::test]
async fn layers_of_both_codecs_stack() {
    assert_device(vec![blob(LZ4[0]), blob(ZSTD16[1]), blob(LZ4[2])], THREE).await;
}

#[tokio::test]
async fn committed_layers_without_zfile_are_the_device_that_upstream_reads() {
    let image = assert_device((0..3).map(committed).collect(), THREE).await;
    assert_eq!(image.how_verified(), "sha256 of each blob once it is whole; single reads are not checked");
}

#[tokio::test]
async fn sealed_layers_are_the_device_that_upstream_reads() {
    assert_device((0..3).map(sealed).collect(), THREE).await;
}
