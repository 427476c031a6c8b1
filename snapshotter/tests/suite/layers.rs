//! Layers of images as tests describe them, prepared in each way that a node can show them; and the mounter that shows them.

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use penstock_blob::Digest;
use penstock_snapshotter::{Answer, Declined, Figures, Layer, MountError, Mounter, Offer, Shape, Stack};
use rustix::{
    fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx},
    mount::{UnmountFlags, unmount},
};
use tokio::sync::{Semaphore, watch};

use crate::mounting;

/// Permits of an open gate.
pub(crate) const OPEN: u32 = 1000;

/// What a layer does to what is below it.
pub(crate) type Apply = fn(&Path);

/// A mounter that shows prepared directories, read-only, instead of devices.
#[derive(Debug)]
pub(crate) struct Binds {
    dir: PathBuf,
    lazy: Mutex<HashMap<Digest, (Shape, PathBuf)>>,
    /// What to fail with, instead of an offer.
    pub(crate) trouble: Mutex<Option<MountError>>,
    /// What to refuse to unmount with.
    pub(crate) busy: Mutex<Option<MountError>>,
    /// An offer and a mount take a permit for as long as they take.
    pub(crate) gate: Semaphore,
    pub(crate) offers: AtomicUsize,
    pub(crate) mounts: AtomicUsize,
    /// Mounts that were asked for, made or not.
    pub(crate) begun: watch::Sender<usize>,
    pub(crate) asked: Mutex<Vec<Layer>>,
    /// What was told of layers that are not lazy: which, why, and whether it was refused.
    pub(crate) declined: Mutex<Vec<(Option<Digest>, String, bool)>>,
    /// The layers that containerd has unpacked, and in which namespace.
    pub(crate) unpacked: Mutex<Vec<(Digest, usize, String)>>,
    /// What to refuse a layer with that is none of those prepared; whether another try may help.
    pub(crate) refuses: Mutex<Option<(String, bool)>>,
}

impl Binds {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            lazy: Mutex::default(),
            trouble: Mutex::default(),
            busy: Mutex::default(),
            gate: Semaphore::new(1000),
            offers: AtomicUsize::new(0),
            mounts: AtomicUsize::new(0),
            begun: watch::Sender::new(0),
            asked: Mutex::default(),
            declined: Mutex::default(),
            unpacked: Mutex::default(),
            refuses: Mutex::default(),
        }
    }

    /// Prepares `layers` so that each can be shown in `shape`, and answers their digests.
    pub(crate) fn prepare(&self, shape: Shape, layers: &[Apply]) -> Vec<Digest> {
        let mut below: Vec<PathBuf> = Vec::new();
        let mut digests = Vec::new();
        for apply in layers {
            let number = self.lazy.lock().len();
            let (digest, dir) = (Digest::of(format!("layer {number}").as_bytes()), self.dir.join(number.to_string()));
            fs::create_dir_all(&dir).expect("a directory");
            match shape {
                Shape::Merged => {
                    if let Some(before) = below.last() {
                        let copied = Command::new("cp").arg("-aT").arg(before).arg(&dir).status().expect("cp runs");
                        assert!(copied.success());
                    }
                    apply(&dir);
                }
                Shape::Single => self.apply_over(&below, &dir, *apply),
            }
            below.push(dir.clone());
            self.lazy.lock().insert(digest, (shape, dir));
            digests.push(digest);
        }
        digests
    }

    /// Applies to what is below through overlayfs, so that `dir` gets the difference, whiteouts and all.
    fn apply_over(&self, below: &[PathBuf], dir: &Path, apply: Apply) {
        let aside = |name: &str| {
            let path = self.dir.join(name);
            fs::create_dir_all(&path).expect("a directory");
            path
        };
        let (empty, work, target) = (aside("empty"), aside("work"), aside("target"));
        let lowers: Vec<String> =
            below.iter().rev().chain([&empty]).map(|path| path.to_string_lossy().into_owned()).collect();
        let mount = crate::api::types::Mount {
            r#type: "overlay".into(),
            source: "overlay".into(),
            target: String::new(),
            options: vec![
                "index=off".into(),
                format!("workdir={}", work.display()),
                format!("upperdir={}", dir.display()),
                format!("lowerdir={}", lowers.join(":")),
            ],
        };
        if let Some(top) = below.last() {
            let meta = fs::metadata(top).expect("a layer");
            std::os::unix::fs::chown(dir, Some(meta.uid()), Some(meta.gid())).expect("chown");
            fs::set_permissions(dir, meta.permissions()).expect("a mode");
        }
        let mounted = mounting::mount(&[mount], &target);
        apply(mounted.root());
        drop(mounted);
        fs::remove_dir_all(work).expect("overlayfs is done with it");
    }

    fn shown(&self, digest: Digest) -> Result<(Shape, PathBuf), MountError> {
        let unknown = || MountError::Permanent { reason: format!("no layer {digest}") };
        self.lazy.lock().get(&digest).cloned().ok_or_else(unknown)
    }
}

pub(crate) fn is_mounted(path: &Path) -> bool {
    let stat = statx(CWD, path, AtFlags::empty(), StatxFlags::BASIC_STATS).expect("it exists");
    stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
}

impl Mounter for Binds {
    fn offer<'a>(&'a self, layer: &'a Layer) -> Answer<'a, Offer, MountError> {
        Box::pin(async move {
            self.offers.fetch_add(1, Ordering::Relaxed);
            self.asked.lock().push(layer.clone());
            let _permit = self.gate.acquire().await.expect("it stays open");
            if let Some(error) = self.trouble.lock().clone() {
                return Err(error);
            }
            if let Some((why, is_transient)) = self.refuses.lock().clone() {
                return Ok(Offer::Refused { why, is_transient });
            }
            let Ok((shape, _)) = self.shown(layer.digest) else {
                return Ok(Offer::Eager { why: "the layer is an ordinary tar".into() });
            };
            let manifest = layer.manifest.unwrap_or_else(|| Digest::of(b"manifest"));
            let stack =
                Stack { reference: layer.reference.clone(), manifest, layers: vec![layer.digest], first: layer.depth };
            Ok(Offer::Lazy { shape, stack, how: "a prepared directory".into() })
        })
    }

    fn declined(&self, declined: Declined<'_>) {
        let layer = declined.layer.map(|layer| layer.digest);
        self.declined.lock().push((layer, declined.why.to_owned(), declined.is_refused));
    }

    fn unpacked(&self, layer: &Layer, namespace: &str) {
        self.unpacked.lock().push((layer.digest, layer.depth, namespace.to_owned()));
    }

    fn mount<'a>(&'a self, stack: &'a Stack, target: &'a Path) -> Answer<'a, String, MountError> {
        Box::pin(async move {
            self.begun.send_modify(|begun| *begun += 1);
            let _permit = self.gate.acquire().await.expect("it stays open");
            let (_, source) = self.shown(*stack.layers.last().expect("a layer"))?;
            if !is_mounted(target) {
                self.mounts.fetch_add(1, Ordering::Relaxed);
                mounting::bind(&source, target, true).map_err(|reason| MountError::Transient { reason })?;
            }
            Ok(format!("device-{}", stack.first))
        })
    }

    fn unmount<'a>(&'a self, target: &'a Path) -> Answer<'a, (), MountError> {
        Box::pin(async move {
            if let Some(error) = self.busy.lock().clone() {
                return Err(error);
            }
            // As in `mounting`.
            match unmount(target, UnmountFlags::DETACH) {
                // Nothing is mounted there, or there is nothing.
                Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
                Err(error) => Err(MountError::Busy { reason: io::Error::from(error).to_string() }),
            }
        })
    }

    fn figures(&self, target: &Path) -> Option<Figures> {
        let shown = target.is_dir() && is_mounted(target);
        shown.then(|| Figures {
            device: "device".into(),
            read_bytes: 2,
            fetched_bytes: 1,
            waited: Duration::from_millis(3),
        })
    }
}
