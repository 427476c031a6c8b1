//! Everything that the demo sets up, and takes away again however it ends.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use penstock_api as api;
use penstock_blob::BlobSource;
use penstock_fetcher::Reference;
use penstock_image::Image;
use penstock_registry::Registry;
use tempfile::TempDir;
use tokio_util::task::TaskTracker;

use super::{
    Args, DemoError,
    build::{BuiltImage, REPOSITORY, Site, TAG},
    pull,
    report::WorkFacts,
    work::{self, Door, Timing, Work},
};
use crate::{
    Agent, Config,
    mount::{self, Unmount},
};

/// What is set up.
pub(super) struct Stage {
    dir: TempDir,
    transport: api::Wanted,
    registry: Option<Registry>,
    agent: Option<Agent>,
    threads: TaskTracker,
    stop: Arc<AtomicBool>,
    mounted: Option<PathBuf>,
    not_shown: Vec<String>,
}

/// An attached image: what is read of it, and through what.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) work: Work,
    pub(super) door: Door,
    device: Option<String>,
}

impl Opened {
    pub(super) fn facts(&self, image: &BuiltImage, bytes: u64, compared: bool) -> WorkFacts {
        WorkFacts {
            what: match self.work {
                Work::Files(_) => format!("what {} reads to {}", image.program.name, image.program.doing),
                Work::Pieces(_) => "pieces spread evenly over the disk".to_owned(),
            },
            pieces: self.work.len(),
            bytes,
            through: match self.door {
                Door::Mount(_) => "mount",
                Door::Disk(_) => "device",
                Door::Library(..) => "library",
            },
            compared,
        }
    }
}

impl Stage {
    /// A stage with nothing on it.
    pub(super) fn new(args: &Args) -> Result<Self, DemoError> {
        let mut builder = tempfile::Builder::new();
        builder.prefix("penstock-demo-");
        let dir = match &args.dir {
            Some(dir) => builder.tempdir_in(dir),
            None => builder.tempdir(),
        }?;
        Ok(Self {
            dir,
            transport: args.transport.into(),
            registry: None,
            agent: None,
            threads: TaskTracker::new(),
            stop: Arc::default(),
            mounted: None,
            not_shown: Vec::new(),
        })
    }

    /// Starts the registry and puts an image in it.
    pub(super) async fn build(&mut self, target_bytes: u64) -> Result<BuiltImage, DemoError> {
        let registry = self.registry.insert(Registry::start(penstock_registry::Config::default()).await?);
        let site = Site { dir: self.dir.path(), registry, threads: &self.threads, stop: &self.stop };
        Ok(site.build(target_bytes).await?)
    }

    /// Starts an agent with an empty cache.
    pub(super) async fn start_agent(&mut self) -> Result<(), DemoError> {
        let config = Config { transport: Config::default().transport, ..Config::in_dir(self.dir.path()) };
        self.agent = Some(Agent::start(config).await?);
        Ok(())
    }

    pub(super) fn registry(&self) -> Result<&Registry, DemoError> {
        self.registry.as_ref().ok_or_else(|| not_there("registry").into())
    }

    pub(super) fn agent(&self) -> Result<&Agent, DemoError> {
        self.agent.as_ref().ok_or_else(|| not_there("agent").into())
    }

    /// Where the image is mounted, if it is.
    pub(super) fn mounted(&self) -> Option<&Path> {
        self.mounted.as_deref()
    }

    /// What could not be shown, and why.
    pub(super) fn not_shown(&self) -> Vec<String> {
        self.not_shown.clone()
    }

    /// Gets at the image by the best way that this machine and user allow, and reads.
    pub(super) async fn attach_and_read(&mut self, image: &BuiltImage) -> Result<(Opened, Timing), DemoError> {
        let since = Instant::now();
        let opened = self.open(image).await?;
        let timing = opened.work.read(&opened.door, since).await?;
        Ok((opened, timing))
    }

    async fn open(&mut self, image: &BuiltImage) -> Result<Opened, DemoError> {
        self.not_shown.clear();
        let dir = self.dir.path().join("mnt");
        std::fs::create_dir_all(&dir)?;
        match self.attach(image, Some(dir.clone())).await {
            Ok(device) => {
                self.mounted = Some(dir.clone());
                let work = Work::Files(image.program.files.clone());
                return Ok(Opened { work, door: Door::Mount(dir), device: Some(device.id) });
            }
            Err(error) => self.not_shown.push(format!("the file system mounted: {error}")),
        }
        let work = Work::Pieces(work::pieces(image.facts.disk_bytes));
        match self.attach(image, None).await {
            Ok(api::Device { id, device_path: Some(path), .. }) => {
                return Ok(Opened { work, door: Door::Disk(path), device: Some(id) });
            }
            Ok(_) => self.not_shown.push("a device (it has no path)".to_owned()),
            // What keeps the device away kept the mount away, too.
            Err(error) => self.not_shown = vec![format!("a device, and the file system mounted from it: {error}")],
        }
        let agent = self.agent()?;
        let reference: Reference =
            image.facts.reference.parse().map_err(|error| io::Error::other(format!("{error}")))?;
        agent.fetcher().serve(image.layer.blob, &reference);
        let source: Arc<dyn BlobSource> = Arc::clone(agent.cache()) as _;
        let maps = self.dir.path().join("state/maps");
        let opened = Image::open(vec![image.layer.clone()], Arc::clone(&source), &maps).await?;
        Ok(Opened { work, door: Door::Library(Arc::new(opened), source), device: None })
    }

    async fn attach(&self, image: &BuiltImage, mount: Option<PathBuf>) -> Result<api::Device, DemoError> {
        let request = api::Attach {
            reference: image.facts.reference.clone(),
            mount,
            transport: self.transport,
            platform: None,
            require_verified: false,
            policy: api::PolicyChange::default(),
        };
        Ok(self.agent()?.node().attach(request).await?)
    }

    /// Undoes [`attach_and_read`](Self::attach_and_read); the cache keeps what it has.
    pub(super) async fn detach(&mut self, opened: &Opened) -> Result<(), DemoError> {
        self.mounted = None;
        match &opened.device {
            Some(id) => Ok(self.agent()?.node().detach(id, false).await?),
            None => Ok(()),
        }
    }

    /// Pulls the whole image, and reads the same through the same kind of door.
    pub(super) async fn pull_and_read(&self, image: &BuiltImage, like: &Opened) -> Result<Timing, DemoError> {
        let dir = self.dir.path().join("pulled");
        std::fs::create_dir_all(&dir)?;
        let since = Instant::now();
        let host = self.registry()?.host();
        let disk = pull::pull(&host, (REPOSITORY, TAG), image.layer.clone(), &dir).await?;
        drop(disk);
        let path = dir.join("disk");
        let timing = match &like.door {
            Door::Mount(_) => {
                let place = dir.join("mnt");
                std::fs::create_dir_all(&place)?;
                let on = place.canonicalize()?;
                let mounted =
                    tokio::task::spawn_blocking(move || mount::mount(&path, penstock_image::FileSystem::Ext, &on, &[]));
                let mounted = mounted.await.map_err(io::Error::other)?.map_err(io::Error::other)?;
                let timing = like.work.read(&Door::Mount(place), since).await;
                mounted.unmount(Unmount::IfIdle).map_err(io::Error::other)?;
                timing?
            }
            Door::Disk(_) | Door::Library(..) => like.work.read(&Door::Disk(path), since).await?,
        };
        std::fs::remove_dir_all(&dir)?;
        Ok(timing)
    }

    /// Takes everything away.
    pub(super) async fn clear(mut self) -> Result<(), String> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.close();
        self.threads.wait().await;
        let mut left = Vec::new();
        if let Some(agent) = self.agent.take()
            && let Err(error) = agent.stop_for_good().await
        {
            left.push(error.to_string());
        }
        if let Some(registry) = self.registry.take() {
            registry.stop().await;
        }
        let pulled = self.dir.path().join("pulled/mnt");
        if let Ok(table) = mount::table::read()
            && mount::table::at(&table, &pulled).is_some()
            && let Err(error) = rustix::mount::unmount(&pulled, rustix::mount::UnmountFlags::DETACH)
        {
            left.push(format!("{} is still mounted: {error}", pulled.display()));
        }
        if left.is_empty() {
            self.dir.close().map_err(|error| error.to_string())
        } else {
            // What is mounted must not be emptied.
            left.push(format!("{} was kept", self.dir.keep().display()));
            Err(left.join("; "))
        }
    }
}

fn not_there(what: &str) -> io::Error {
    io::Error::other(format!("the demo's {what} is not there"))
}
