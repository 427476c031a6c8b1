//! Images are written to a fake containerd, over a unix socket.

mod fake;

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use penstock_blob::{Blob, BlobSource, ByteRange, Digest, Located, Purpose, ReadError, ReadFuture};

use super::{Child, Content, Outcome, Piece, Progress, Store, StoreError};
use fake::{Fake, State};

/// Blobs in memory, each read and rejection noted.
#[derive(Debug, Default)]
struct Source {
    blobs: Vec<Bytes>,
    reads: Mutex<Vec<(Digest, ByteRange)>>,
    rejected: Mutex<Vec<Digest>>,
    /// Reads beyond this byte fail.
    fails_from: Mutex<Option<u64>>,
    /// Bytes are changed on their way.
    lies: Mutex<bool>,
}

impl BlobSource for Source {
    fn locate(&self, _blob: &Blob, _range: ByteRange) -> Option<Located> {
        None
    }

    fn read(&self, blob: Blob, range: ByteRange, _: Purpose) -> ReadFuture<'_> {
        self.reads.lock().push((blob.digest, range));
        let found = self.blobs.iter().find(|bytes| Digest::of(bytes) == blob.digest).cloned().unwrap();
        let part = found.slice(usize::try_from(range.start()).unwrap()..usize::try_from(range.end()).unwrap());
        let fails = self.fails_from.lock().is_some_and(|from| range.end() > from);
        let part = if *self.lies.lock() { Bytes::from(vec![0; part.len()]) } else { part };
        Box::pin(async move { if fails { Err(ReadError::Stopping) } else { Ok(part) } })
    }

    fn reject(&self, blob: &Blob, _range: ByteRange) {
        self.rejected.lock().push(blob.digest);
    }
}

fn blob(bytes: &[u8]) -> Blob {
    Blob { digest: Digest::of(bytes), size_bytes: bytes.len() as u64 }
}

/// An image of one large layer, an empty one, a config and a manifest.
fn image() -> (Source, Content) {
    let layer = Bytes::from((0..3_000_000_u32).map(|n| n.to_le_bytes()[0]).collect::<Vec<u8>>());
    let (config, empty, manifest) = (Bytes::from_static(b"{}"), Bytes::new(), Bytes::from_static(b"manifest"));
    let piece = |bytes: &Bytes, own: bool, children| Piece {
        blob: blob(bytes),
        media_type: "application/x".to_owned(),
        bytes: own.then(|| bytes.clone()),
        children,
    };
    let children = vec![Child::Config(Digest::of(&config)), Child::Layer(0, Digest::of(&layer))];
    let pieces = vec![
        piece(&config, false, Vec::new()),
        piece(&layer, false, Vec::new()),
        piece(&empty, false, Vec::new()),
        piece(&manifest, true, children),
    ];
    let content =
        Content { name: "r.example/a:1".to_owned(), source: ("r.example".to_owned(), "a".to_owned()), pieces };
    (Source { blobs: vec![config, layer, empty], ..Source::default() }, content)
}

async fn setup() -> (tempfile::TempDir, Arc<State>, Fake, Store) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("containerd");
    let fake = Fake::start(&socket);
    let store = Store::connect(&socket, "k8s.io").await.unwrap();
    (dir, Arc::clone(&fake.state), fake, store)
}

#[tokio::test]
async fn an_image_is_whole_named_labelled_and_its_lease_given_back() {
    let (_dir, state, _fake, store) = setup().await;
    let (source, content) = image();
    let told = Mutex::new(Vec::new());
    let made = store.materialise(&content, &source, &|progress| told.lock().push(progress)).await.unwrap();
    assert!(made.is_new);
    for piece in &content.pieces {
        let committed = state.committed.lock().get(&piece.blob.digest.to_string()).cloned().unwrap();
        assert_eq!(blob(&committed.0), piece.blob);
    }
    let manifest = content.pieces[3].blob.digest.to_string();
    let labels = state.committed.lock()[&manifest].1.clone();
    assert_eq!(labels["containerd.io/gc.ref.content.l.0"], content.pieces[1].blob.digest.to_string());
    assert_eq!(state.images.lock()["r.example/a:1"], manifest);
    assert!(state.leases.lock().is_empty());
    assert!(state.unleased.lock().is_empty(), "each was written under the lease");
    assert_eq!(told.lock().last(), Some(&Progress { blobs: 4, bytes: 3_000_010 }));
    assert!(told.lock().windows(2).all(|two| two[0].bytes <= two[1].bytes));

    // Once more: nothing is read.
    source.reads.lock().clear();
    let again = store.materialise(&content, &source, &|_| {}).await.unwrap();
    assert!(!again.is_new && again.blobs.iter().all(|written| written.outcome == Outcome::Present));
    assert!(source.reads.lock().is_empty());
}

#[tokio::test]
async fn what_containerd_has_is_not_read_and_gets_the_labels_that_it_lacks() {
    let (_dir, state, _fake, store) = setup().await;
    let (source, content) = image();
    let manifest = content.pieces[3].blob.digest.to_string();
    let own = ("containerd.io/gc.ref.content.config".to_owned(), content.pieces[0].blob.digest.to_string());
    let labels = [own.clone(), ("someone/else".to_owned(), "x".to_owned())].into();
    state.committed.lock().insert(manifest.clone(), (b"manifest".to_vec(), labels));
    state.images.lock().insert("r.example/a:1".to_owned(), manifest.clone());
    assert_eq!(store.image("r.example/a:1").await.unwrap().unwrap().digest, manifest);
    assert_eq!(store.image("r.example/b:1").await.unwrap(), None);
    let made = store.materialise(&content, &source, &|_| {}).await.unwrap();
    assert!(!made.is_new);
    let labels = state.committed.lock()[&manifest].1.clone();
    assert_eq!((labels["someone/else"].as_str(), &labels[&own.0]), ("x", &own.1));
    assert_eq!(labels["containerd.io/gc.ref.content.l.0"], content.pieces[1].blob.digest.to_string());
}

#[tokio::test]
async fn a_write_that_broke_off_goes_on_where_it_ended() {
    let (dir, state, _fake, store) = setup().await;
    let (source, content) = image();
    *source.fails_from.lock() = Some(2 << 20);
    let error = store.materialise(&content, &source, &|_| {}).await.unwrap_err();
    assert!(matches!(error, StoreError::Read(ReadError::Stopping)), "{error}");
    assert_eq!(state.leases.lock().len(), 1, "it holds what was written");
    *source.fails_from.lock() = None;
    source.reads.lock().clear();
    drop(store);
    let other = Store::connect(&dir.path().join("containerd"), "k8s.io").await.unwrap();
    let made = other.materialise(&content, &source, &|_| {}).await.unwrap();
    assert_eq!(made.blobs[1].outcome, Outcome::Written { resumed_bytes: 2 << 20 });
    assert_eq!(*source.reads.lock(), [(content.pieces[1].blob.digest, ByteRange::new(2 << 20, 3_000_000).unwrap())]);
    assert!(state.leases.lock().is_empty());
}

#[tokio::test]
async fn bytes_that_are_not_those_of_the_digest_are_dropped_and_said_to_the_source() {
    let (_dir, state, _fake, store) = setup().await;
    let (source, content) = image();
    *source.lies.lock() = true;
    let error = store.materialise(&content, &source, &|_| {}).await.unwrap_err();
    let config = content.pieces[0].blob.digest;
    assert!(matches!(error, StoreError::WrongBytes { blob } if blob == config), "{error}");
    assert_eq!(*source.rejected.lock(), [config]);
    assert!(state.writes.lock().is_empty() && state.committed.lock().is_empty());
    *source.lies.lock() = false;
    store.materialise(&content, &source, &|_| {}).await.unwrap();
}

#[tokio::test]
async fn what_containerd_has_is_read_from_it_and_what_it_has_no_more_is_said_to_be_gone() {
    let (_dir, state, _fake, store) = setup().await;
    let (source, content) = image();
    store.materialise(&content, &source, &|_| {}).await.unwrap();
    let (layer, bytes) = (content.pieces[1].blob, source.blobs[1].clone());
    let short = Blob { size_bytes: layer.size_bytes - 1, ..layer };
    assert!(store.has(&layer).await.unwrap() && !store.has(&short).await.unwrap());
    let stored = store.clone().stored();
    let read = |blob, start, end| stored.read(blob, ByteRange::new(start, end).unwrap(), Purpose::Ahead);
    assert!(read(layer, 0, layer.size_bytes).await.unwrap() == bytes);
    assert_eq!(read(layer, 1_999_999, 2_000_001).await.unwrap(), bytes.slice(1_999_999..2_000_001));
    let cut = Blob { size_bytes: layer.size_bytes + 5, ..layer };
    assert!(matches!(read(cut, 2_999_999, cut.size_bytes).await, Err(ReadError::Storage { .. })), "it is not so long");
    state.committed.lock().remove(&layer.digest.to_string());
    assert!(!store.has(&layer).await.unwrap());
    assert!(matches!(read(layer, 0, 1).await, Err(ReadError::NotFound { .. })));
}

#[tokio::test]
async fn a_blob_that_somebody_else_writes_is_said_to_be_busy() {
    let (_dir, state, _fake, store) = setup().await;
    let (source, content) = image();
    *state.locked.lock() = true;
    let error = store.materialise(&content, &source, &|_| {}).await.unwrap_err();
    assert!(matches!(error, StoreError::Busy { .. }) && error.is_transient(), "{error}");
}

#[tokio::test]
async fn a_containerd_that_is_away_and_a_namespace_that_is_none_are_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("containerd");
    let error = Store::connect(&socket, "k8s.io").await.unwrap_err();
    assert!(matches!(&error, StoreError::Away { .. }) && error.to_string().contains("No such file"), "{error}");
    for bad in ["", "a b", "-a", "a..b", "a/b", "\n", &"a".repeat(77)] {
        assert!(matches!(Store::connect(&socket, bad).await, Err(StoreError::Namespace { .. })), "{bad:?}");
    }
}
