//! A qcow2 disk with 64 MiB of tables.

use std::{fs::File, io::Write as _, sync::Arc};

use penstock_blob::{Blob, ByteRange, Digest};
use penstock_image::{Image, Layer, Scratch};

use crate::{OnDisk, alone, status_kib};

/// Clusters of 4 KiB: a table of 512 entries for each 2 MiB of the device.
const CLUSTER: u64 = 4096;
const TABLES: u64 = 16 << 10;
/// Bound on what opening and reading all over it add. The tables are 64 MiB, the first level 128 KiB.
const HELD_KIB: u64 = 1 << 10;

fn write_blob(file: &mut impl std::io::Write) {
    let mut header = vec![0; 4096];
    header[..4].copy_from_slice(b"QFI\xfb");
    for (at, value) in [(4, 2_u32), (20, 12), (36, u32::try_from(TABLES).unwrap())] {
        header[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }
    for (at, value) in [(24, TABLES * 512 * CLUSTER), (40, CLUSTER)] {
        header[at..at + 8].copy_from_slice(&value.to_be_bytes());
    }
    file.write_all(&header).unwrap();
    let first = CLUSTER + TABLES * 8;
    (0..TABLES).for_each(|nth| file.write_all(&(first + nth * CLUSTER).to_be_bytes()).unwrap());
    // Every entry leads to the header: neighbours are not neighbours in the file.
    let table: Vec<u8> = (0..512_u64).flat_map(|_| (1_u64 << 63 | CLUSTER).to_be_bytes()).collect();
    (0..TABLES).for_each(|_| file.write_all(&table).unwrap());
}

#[test]
fn the_tables_of_a_qcow2_disk_cost_no_memory() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("blob");
    let mut file = std::io::BufWriter::new(File::create(&path).unwrap());
    write_blob(&mut file);
    file.flush().unwrap();
    let size_bytes = std::fs::metadata(&path).unwrap().len();
    let blob = Blob { digest: Digest::of(b"the name does not matter here"), size_bytes };
    let source = Arc::new(OnDisk(File::open(&path).unwrap()));
    let layers = vec![Layer { blob, media_type: String::new(), annotations: Default::default() }];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut scratch = Scratch::new();
    let mut buf = vec![1; 128 << 10];
    let before = status_kib("VmRSS");
    let image = runtime.block_on(Image::open(layers, source.clone(), &dir.path().join("maps"))).unwrap();
    assert_eq!(image.size_bytes(), 32 << 30);
    for i in 0..4000_u64 {
        let at = i * 7919 % TABLES * 512 * CLUSTER + i % 400 * 4096;
        let plan = image.plan(ByteRange::at(at, buf.len() as u64).unwrap(), &*source).unwrap();
        plan.read_into(&mut buf, &mut scratch).unwrap();
    }
    let held = status_kib("VmRSS").saturating_sub(before);
    assert!(held < HELD_KIB, "opening and reading added {held} KiB");
}
