//! Manifests of indexes: any bytes; and sound manifests of which fields are changed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use penstock_blob::{Blob, Digest};
use penstock_index::{Artifact, Subject, beside::MANIFEST_TYPE};
use penstock_index_fuzz::sample;

#[derive(arbitrary::Arbitrary, Debug)]
enum Input {
    Bytes(Vec<u8>),
    Changed { lists: Vec<(u64, u64, u32)>, cut: u16, subject_size: u64 },
}

fn look(bytes: &[u8]) {
    let Ok(artifact) = Artifact::parse(bytes) else { return };
    let blobs: Vec<Blob> = artifact.lists.iter().map(|listed| listed.blob).collect();
    if artifact.lists_of(artifact.subject.manifest.digest, &blobs).is_ok() {
        // What fits its image is written and read back as it is.
        let again = artifact.to_manifest().expect("it was read");
        assert_eq!(Artifact::parse(&again).expect("it was written"), artifact);
    }
}

fuzz_target!(|input: Input| {
    match input {
        Input::Bytes(bytes) => look(&bytes),
        Input::Changed { lists, cut, subject_size } => {
            static SAMPLE: std::sync::OnceLock<penstock_index::Listed> = std::sync::OnceLock::new();
            let listed = *SAMPLE.get_or_init(|| sample().2);
            let lists = lists.iter().map(|&(size, list_size, name)| {
                let blob = Blob { digest: Digest::of(&name.to_le_bytes()), size_bytes: size };
                penstock_index::Listed { blob, list: Blob { size_bytes: list_size, ..listed.list }, ..listed }
            });
            let manifest = Blob { digest: Digest::of(b"manifest"), size_bytes: subject_size };
            let subject = Subject { media_type: MANIFEST_TYPE.to_owned(), manifest };
            let Ok(bytes) = (Artifact { subject, lists: lists.collect() }).to_manifest() else { return };
            look(&bytes);
            look(&bytes[..bytes.len().min(usize::from(cut))]);
        }
    }
});
