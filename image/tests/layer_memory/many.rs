//! A million files, as entries: the archive is not what is measured.

use std::time::Instant;

use penstock_blob::{Blob, BlobSource, ByteRange, Digest, Located, Purpose, ReadFuture};
use penstock_image::{Image, LayerBuilder, OciLayer};
use penstock_layers::{Content, Entry, EntryPath, Kind, Time, Xattrs};

/// Bytes that a path may cost while its layer is laid out, its name of some 20 bytes included: documented as 150 and the name.
const BYTES_PER_PATH: u64 = 200;
/// What an open device may hold, in KiB, whatever its size.
const OPEN_KIB: u64 = 1024;
/// Files in a directory.
const FILES_PER_DIRECTORY: u64 = 1000;

/// A layer that has no bytes here.
#[derive(Debug)]
struct Elsewhere;

impl BlobSource for Elsewhere {
    fn locate(&self, _: &Blob, range: ByteRange) -> Option<Located> {
        Some(Located::in_memory(vec![1; usize::try_from(range.len()).ok()?].into()))
    }

    fn read(&self, _: Blob, range: ByteRange, _: Purpose) -> ReadFuture<'_> {
        Box::pin(async move { Ok(vec![1; usize::try_from(range.len()).unwrap()].into()) })
    }

    fn reject(&self, _: &Blob, _: ByteRange) {}
}

fn status_kib(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn entry(path: String, kind: Kind) -> Entry {
    let path = EntryPath::new(path.as_bytes()).unwrap();
    // Times differ, as they do in images: inodes are stored in 64 bytes.
    let mtime = Time::new(i64::try_from(path.as_bytes().len()).unwrap(), 7).unwrap();
    Entry { path, kind, mode: 0o644, uid: 0, gid: 0, mtime, xattrs: Xattrs::default() }
}

/// Lays out a layer of so many files; prints what it took.
fn lay_out(files: u64) {
    let maps = tempfile::tempdir().unwrap();
    let blob = Blob { digest: Digest::of(b"a layer of many files"), size_bytes: files * 2048 };
    let layer = OciLayer { blob, contents: blob.digest };
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let (before, began) = (status_kib("VmHWM"), Instant::now());
    let mut builder = LayerBuilder::new(layer, maps.path());
    for nth in 0..files {
        if nth % FILES_PER_DIRECTORY == 0 {
            builder.add(&entry(format!("dir-{}", nth / FILES_PER_DIRECTORY), Kind::Directory)).unwrap();
        }
        let content = Content::whole(ByteRange::at(2048 * nth + 512, 1000).ok()).unwrap();
        let path = format!("dir-{}/some-file-of-the-layer-{nth}.txt", nth / FILES_PER_DIRECTORY);
        builder.add(&entry(path, Kind::Regular(content))).unwrap();
    }
    let built = builder.finish().unwrap();
    let (peak, took) = (status_kib("VmHWM").saturating_sub(before), began.elapsed());
    println!("{files} files: {took:?}, {peak} KiB at the peak, {built:?}");
    assert_eq!(built.inodes, files + files.div_ceil(FILES_PER_DIRECTORY) + 1);
    assert!(peak * 1024 < built.inodes * BYTES_PER_PATH, "{peak} KiB at the peak for {} paths", built.inodes);

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let resident = status_kib("VmRSS");
    let image = runtime.block_on(Image::open_layer(layer, maps.path(), String::new())).unwrap().unwrap();
    let mut planned = 0;
    for nth in 0..1000 {
        let at = nth * 7919 * 4096 % (image.size_bytes() - 131_072);
        let plan = image.plan(ByteRange::at(at, 131_072).unwrap(), &Elsewhere).unwrap();
        planned += plan.len();
    }
    let held = status_kib("VmRSS").saturating_sub(resident);
    assert_eq!(planned, 131_072_000);
    assert!(held < OPEN_KIB, "an open device that is read holds {held} KiB");
}

#[test]
fn each_of_a_million_paths_costs_some_200_bytes_while_it_is_laid_out_and_nothing_later() {
    lay_out(1_000_000);
}
