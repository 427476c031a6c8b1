//! An ordinary layer from its archive to its device: any members in any order, or a sound archive with changed bytes; what can be laid
//! out is read back whole.
#![no_main]

use std::sync::Arc;

use arbitrary::Arbitrary;
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use penstock_blob::{BlobSource, ByteRange, Digest, faults::Memory};
use penstock_image::{Image, LayerBuilder, OciLayer};
use penstock_layers::TarReader;

/// Names that meet each other: directories, what lies in them, whiteouts of both.
const NAMES: [&str; 16] = [
    "a",
    "a/b",
    "a/b/c",
    "b",
    "b/a",
    "./",
    "c/d",
    ".wh.a",
    "a/.wh.b",
    "a/.wh..wh..opq",
    ".wh..wh..opq",
    "c",
    "../x",
    ".wh..wh.plnk/1",
    "a/../b",
    "d",
];

#[derive(Debug, Arbitrary)]
struct Member<'a> {
    flag: u8,
    name: u8,
    link: u8,
    size: u16,
    pax: Option<&'a [u8]>,
    sparse: Option<&'a [u8]>,
}

/// A header with a right checksum.
fn header(flag: u8, name: &str, link: &str, size: usize) -> [u8; 512] {
    let mut block = [0; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..108].copy_from_slice(b"0000644\0");
    block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    block[156] = flag;
    block[157..157 + link.len()].copy_from_slice(link.as_bytes());
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|&byte| u64::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn padded(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(bytes);
    out.resize(out.len().next_multiple_of(512), 0);
}

fn archive(members: &[Member<'_>]) -> Vec<u8> {
    const FLAGS: &[u8] = b"0123456S50125xLKg";
    let mut out = Vec::new();
    for member in members {
        let name = |index: u8| NAMES[usize::from(index) % NAMES.len()];
        if let Some(records) = member.pax {
            out.extend_from_slice(&header(b'x', "pax", "", records.len()));
            padded(&mut out, records);
        }
        let flag = FLAGS[usize::from(member.flag) % FLAGS.len()];
        let mut block = header(flag, name(member.name), name(member.link), usize::from(member.size));
        if let Some(map) = member.sparse {
            let len = map.len().min(100);
            block[386..386 + len].copy_from_slice(&map[..len]);
            block[148..156].fill(b' ');
            let sum: u64 = block.iter().map(|&byte| u64::from(byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        out.extend_from_slice(&block);
        padded(&mut out, &vec![flag; usize::from(member.size)]);
    }
    out
}

fuzz_target!(|input: (Vec<Member<'_>>, Vec<(u16, u8)>)| {
    let (members, changes) = input;
    let mut bytes = archive(&members);
    for (at, value) in changes {
        if let Some(byte) = bytes.get_mut(usize::from(at)) {
            *byte = value;
        }
    }
    let memory = Memory::new(vec![Bytes::from(bytes.clone())]);
    let layer = OciLayer { blob: memory.blob(0), contents: Digest::of(b"entries") };
    let maps = tempfile::tempdir().expect("a directory");
    let mut builder = Some(LayerBuilder::new(layer, maps.path()));
    let mut reader = TarReader::new();
    // A piece at a time: what is held between pieces is put to the test too.
    for piece in bytes.chunks(700) {
        let taken = reader.push(piece, |entry| {
            if builder.as_mut().is_some_and(|builder| builder.add(&entry).is_err()) {
                builder = None;
            }
        });
        if taken.is_err() {
            break;
        }
    }
    let Some(Ok(built)) = builder.map(LayerBuilder::finish) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(async {
        let image = Image::open_layer(layer, maps.path(), String::new()).await.expect("a readable table");
        let image = image.expect("a sound table");
        assert!(built.metadata_bytes <= image.size_bytes());
        let source: Arc<dyn BlobSource> = memory;
        let all = ByteRange::new(0, image.size_bytes().min(1 << 20)).expect("a device is not empty");
        let device = penstock_image::read(&image, &source, all).await.expect("bytes of the layer");
        assert_eq!(device[1024..1028], 0xe0f5_e1e2_u32.to_le_bytes());
    });
});
