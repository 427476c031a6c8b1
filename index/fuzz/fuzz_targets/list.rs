//! Lists from a registry that lies, and local files that are damaged: what is read is the truth or an error.
#![no_main]

use std::{fs, sync::OnceLock, time::Duration};

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use penstock_blob::{Blob, BlobSource, ByteRange, Located, Purpose, ReadError, ReadFuture};
use penstock_index::{Config, Listed, Outcome, Verified};
use penstock_index_fuzz::sample;
use prometheus_client::registry::Registry;

/// The blob as it is, and the list as the fuzzer wants it.
#[derive(Debug)]
struct Hostile {
    blob: Bytes,
    list: Vec<u8>,
    listed: Listed,
}

impl BlobSource for Hostile {
    fn locate(&self, _: &Blob, _: ByteRange) -> Option<Located> {
        None
    }

    fn read(&self, blob: Blob, range: ByteRange, _: Purpose) -> ReadFuture<'_> {
        Box::pin(async move {
            let (start, end) = (range.start() as usize, range.end() as usize);
            let bytes = if blob == self.listed.blob { &self.blob[..] } else { &self.list[..] };
            let missing = || ReadError::NotFound { blob: blob.digest, reason: "cut".to_owned() };
            // Short answers too, which no source may give.
            bytes.get(start..end.min(bytes.len())).map(Bytes::copy_from_slice).ok_or_else(missing)
        })
    }

    fn reject(&self, _: &Blob, _: ByteRange) {}
}

type Input = (Vec<(u16, u8)>, Vec<(u16, u8)>, u16, (u32, u16));

fn changed(bytes: &[u8], changes: &[(u16, u8)]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for &(at, value) in changes {
        if let Some(byte) = bytes.get_mut(usize::from(at)) {
            *byte = value;
        }
    }
    bytes
}

fuzz_target!(|input: Input| {
    static SAMPLE: OnceLock<(Bytes, Bytes, Listed)> = OnceLock::new();
    let (blob, list, listed) = SAMPLE.get_or_init(sample);
    let (remote, local, cut, (start, len)) = input;
    let mut served = changed(list, &remote);
    served.truncate(list.len().saturating_sub(usize::from(cut)));
    let dir = tempfile::tempdir().expect("a directory");
    fs::write(dir.path().join(format!("{}.list", listed.root.to_hex())), changed(list, &local)).expect("there is room");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let hostile = Hostile { blob: blob.clone(), list: served, listed: *listed };
        let config = Config { dir: dir.path().to_owned(), deadline: Duration::from_secs(5) };
        let verified = Verified::new(std::sync::Arc::new(hostile), config, &mut Registry::default());
        let expected = verified.expect(&[listed.blob]);
        let _used = expected.settle(Outcome::Index(vec![*listed])).expect("the only one");
        let start = u64::from(start) % listed.blob.size_bytes;
        let end = (start + 1 + u64::from(len)).min(listed.blob.size_bytes);
        let range = ByteRange::new(start, end).expect("not empty");
        if let Ok(bytes) = verified.read(listed.blob, range, Purpose::Demand).await {
            assert_eq!(bytes, blob.slice(start as usize..end as usize));
        }
    });
});
