//! A stack of OverlayBD layers: their bodies, and the map over them.

use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use penstock_blob::{Blob, ByteRange, Digest, ReadError};

use crate::{
    body::Body,
    growing::Growing,
    image::{OpenError, layer_error},
    index,
    layer::{self, Opened, Site, blocking},
    making::Work,
    map::{self, Cursor, LayerRecord, Map},
    pages::TableError,
    plan::Planner,
    turbo::{self, Member},
    units::SECTOR_BYTES,
    window::Window,
};

/// Layers opened at once: all but the tallest stacks in one go. The source below has its own bound on requests.
const LAYERS_AT_ONCE: usize = 64;

/// An opened stack. Images of the same layers share it.
#[derive(Debug)]
pub(crate) struct Stack {
    members: Vec<Member>,
    /// Of the bodies.
    blobs: Vec<Blob>,
    /// What its map points into: the file of each member, and the archive of each that has one behind that.
    bodies: Vec<Arc<Body>>,
    growing: Arc<Growing>,
    /// Makes the map.
    _work: Option<Work>,
}

impl Stack {
    /// Opens these layers, bottom first, which have at most 255 blobs. `bottom` may hold parts of the first.
    pub(crate) async fn open(
        site: &Site,
        members: Vec<Member>,
        bottom: Option<Window>,
    ) -> Result<Arc<Self>, OpenError> {
        let blobs = turbo::blobs(&members);
        let name = map::identity(&blobs);
        if let Some(stack) = site.maps.stack(&name, &blobs) {
            return Ok(stack);
        }
        let stack = match open_map(site, &blobs).await? {
            Some(map) => {
                let bodies = bodies(site, &map, &members).await?;
                Self { members, blobs, bodies, growing: Arc::new(Growing::whole(name, map)), _work: None }
            }
            None => Self::begin(site, (members, blobs), bottom).await?,
        };
        Ok(site.maps.share_stack(name, stack))
    }

    /// Opens the layers, and has their map made.
    async fn begin(
        site: &Site,
        (members, blobs): (Vec<Member>, Vec<Blob>),
        mut bottom: Option<Window>,
    ) -> Result<Self, OpenError> {
        let windows = members.iter().map(|member| {
            let (blob, _) = member.blobs();
            (*member, bottom.take().unwrap_or_else(|| Window::new(site.source.clone(), blob)))
        });
        let opening: Vec<_> = windows
            .map(|(member, window)| async move {
                let blob = window.blob().digest;
                open_member(site, &member, window).await.map_err(|error| layer_error(blob, error))
            })
            .collect();
        let opened: Vec<Opened> = stream::iter(opening).buffered(LAYERS_AT_ONCE).try_collect().await?;
        let sizes = opened.iter().rev().map(|layer| layer.trailer.device_bytes);
        let device_bytes = sizes.into_iter().find(|&bytes| bytes > 0).ok_or(OpenError::NoDeviceSize)?;
        let is_at_hand = opened.iter().all(Opened::is_at_hand);
        let bodies = opened.iter().flat_map(Opened::bodies).map(Arc::clone).collect();
        let growing = Arc::new(Growing::new(map::identity(&blobs), device_bytes));
        let work = Work::start(index::make_map(site.maps_dir.clone(), opened, Arc::clone(&growing)));
        if is_at_hand {
            growing.made().await?;
        }
        let stack = Self { members, blobs, bodies, growing, _work: Some(work) };
        if stack.is_whole() {
            // Nothing is waited for but the disk: a small image is kept when it is open, and needs no registry from then on.
            let kept = stack.persisted().await;
            kept.map_err(|error| layer_error(stack.growing.named().digest, error.into()))?;
        }
        Ok(stack)
    }

    pub(crate) fn blobs(&self) -> &[Blob] {
        &self.blobs
    }

    pub(crate) fn bodies(&self) -> &[Arc<Body>] {
        &self.bodies
    }

    /// How many layers it has.
    pub(crate) const fn layers(&self) -> usize {
        self.members.len()
    }

    /// How many of its layers point into archives.
    pub(crate) const fn archives(&self) -> usize {
        self.bodies.len() - self.members.len()
    }

    /// The file of a layer.
    pub(crate) fn file(&self, layer: usize) -> Option<&Body> {
        let below = turbo::blobs(self.members.get(..layer)?).len();
        self.bodies.get(below).map(AsRef::as_ref)
    }

    /// The archives that layers point into.
    pub(crate) fn is_archive(&self, blob: &Digest) -> bool {
        self.members.iter().any(|member| member.blobs().1.is_some_and(|archive| archive.digest == *blob))
    }

    pub(crate) fn device_bytes(&self) -> u64 {
        self.growing.device_bytes()
    }

    /// Extents in the map, once it is whole.
    pub(crate) fn extents(&self) -> Option<u64> {
        self.growing.map().map(Map::extents)
    }

    /// Whether it is of these blobs: names are digests, sizes come from manifests.
    pub(crate) fn is_of(&self, blobs: &[Blob]) -> bool {
        self.blobs == blobs
    }

    /// Whether the other one is of the same blobs.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.is_of(&other.blobs)
    }

    /// Whether a table of it is damaged or cannot be made.
    pub(crate) fn is_broken(&self) -> bool {
        self.growing.is_broken() || self.tables().any(|frames| frames.is_broken())
    }

    /// Whether nothing of it is being made.
    pub(crate) fn is_whole(&self) -> bool {
        self.growing.map().is_some() && self.tables().all(|frames| frames.is_whole())
    }

    fn tables(&self) -> impl Iterator<Item = &Arc<crate::frames::Frames>> {
        self.bodies.iter().filter_map(|body| body.frames())
    }

    /// Whether a blob is a table of this stack, as it is asked for while it is being made.
    pub(crate) fn is_table(&self, blob: &Blob) -> bool {
        *blob == self.growing.named() || self.tables().any(|frames| *blob == frames.named())
    }

    /// Waits for a part of a table.
    pub(crate) async fn wait(&self, table: &Blob, part: ByteRange) -> Result<(), ReadError> {
        if *table == self.growing.named() {
            return self.growing.wait(part).await;
        }
        let frames = self.tables().find(|frames| *table == frames.named());
        match frames {
            Some(frames) => frames.wait(part).await,
            None => Ok(()),
        }
    }

    /// Waits until everything is made and kept.
    pub(crate) async fn persisted(&self) -> Result<(), ReadError> {
        for frames in self.tables() {
            frames.persisted().await?;
        }
        self.growing.persisted().await
    }

    /// Plans a read of device bytes.
    pub(crate) fn plan(&self, range: ByteRange, planner: &mut Planner<'_>) -> Result<(), TableError> {
        let sectors = ByteRange::new(range.start() / SECTOR_BYTES, range.end().div_ceil(SECTOR_BYTES)).unwrap_or(range);
        let planned = self.growing.look(sectors, |extents| self.plan_extents(extents, range, planner))?;
        if planned.is_none() {
            planner.unknown(range.len(), self.growing.named(), sectors);
        }
        Ok(())
    }

    fn plan_extents(
        &self,
        mut extents: Cursor<'_>,
        range: ByteRange,
        planner: &mut Planner<'_>,
    ) -> Result<(), TableError> {
        let mut at = range.start();
        while at < range.end() {
            let Some(extent) = extents.next()? else { break };
            let (start, end) = (extent.start * SECTOR_BYTES, extent.end() * SECTOR_BYTES);
            let (from, until) = (start.max(at), end.min(range.end()));
            if start >= range.end() {
                break;
            }
            if from >= until {
                continue;
            }
            planner.zero(from - at);
            let offset = (extent.moffset * SECTOR_BYTES).saturating_add(from - start);
            self.bodies[usize::from(extent.tag)].plan(planner, offset, until - from)?;
            at = until;
        }
        planner.zero(range.end() - at);
        Ok(())
    }
}

async fn open_map(site: &Site, blobs: &[Blob]) -> Result<Option<Map>, TableError> {
    let (maps_dir, blobs) = (site.maps_dir.clone(), blobs.to_vec());
    let open = move || {
        let made = std::fs::create_dir_all(&maps_dir);
        made.map_err(|error| TableError::Io { path: maps_dir.clone(), error })?;
        Map::open(&maps_dir, &blobs)
    };
    blocking(&site.maps_dir, open).await
}

/// The bodies that a map describes; a frame table that is gone or damaged is built anew from its layer.
async fn bodies(site: &Site, map: &Map, members: &[Member]) -> Result<Vec<Arc<Body>>, OpenError> {
    let files = members.iter().flat_map(|member| {
        let archive = member.blobs().1.map(|_| None);
        std::iter::once(member.file()).chain(archive)
    });
    let bodies: Vec<_> = map
        .layers()
        .iter()
        .zip(files)
        .map(|(&record, file)| async move {
            body(site, record, file).await.map_err(|error| layer_error(record.blob.digest, error))
        })
        .collect();
    stream::iter(bodies).buffered(LAYERS_AT_ONCE).try_collect().await
}

/// Opens a layer, and with it the archive that it points into.
async fn open_member(site: &Site, member: &Member, window: Window) -> Result<Opened, layer::LayerError> {
    let opened = layer::open(site, window, member.file()).await?;
    let Some(blob) = member.blobs().1 else { return Ok(opened) };
    let file = blob.all().ok_or(layer::LayerError::Empty)?;
    let archive = Body::plain(LayerRecord { blob, file, zfile: false });
    Ok(Opened { archive: Some(Arc::new(archive)), ..opened })
}

async fn body(site: &Site, record: LayerRecord, file: Option<ByteRange>) -> Result<Arc<Body>, layer::LayerError> {
    if !record.zfile {
        return Ok(Arc::new(Body::plain(record)));
    }
    if let Some(frames) = site.maps.frames(record.blob).await? {
        return Ok(Arc::new(Body::framed(frames)));
    }
    let window = Window::new(site.source.clone(), record.blob);
    Ok(layer::open(site, window, file).await?.body)
}
