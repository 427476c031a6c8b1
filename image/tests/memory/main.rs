//! Memory does not grow with the image. In a binary of its own, because it measures its process.
#![cfg(test)]

mod million;
mod qcow2;

use std::{fs::File, os::unix::fs::FileExt as _};

use parking_lot::{Mutex, MutexGuard};
use penstock_blob::{Blob, BlobSource, ByteRange, Located, Purpose, ReadFuture};

/// Held by the test that measures.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock()
}

/// One blob in a file; nothing of it stays in memory.
#[derive(Debug)]
struct OnDisk(File);

impl BlobSource for OnDisk {
    fn locate(&self, _: &Blob, range: ByteRange) -> Option<Located> {
        let mut bytes = vec![0; usize::try_from(range.len()).ok()?];
        self.0.read_exact_at(&mut bytes, range.start()).ok()?;
        Some(Located::in_memory(bytes.into()))
    }

    fn read(&self, _: Blob, range: ByteRange, _: Purpose) -> ReadFuture<'_> {
        Box::pin(async move {
            let mut bytes = vec![0; usize::try_from(range.len()).unwrap()];
            self.0.read_exact_at(&mut bytes, range.start()).unwrap();
            Ok(bytes.into())
        })
    }

    fn reject(&self, _: &Blob, _: ByteRange) {}
}

fn status_kib(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
