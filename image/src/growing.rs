//! The map of a stack while it is made, and after: as far as it has grown it can be looked up.

use std::sync::OnceLock;

use parking_lot::{Mutex, RwLock};
use penstock_blob::{Blob, ByteRange, Digest, ReadError};

use crate::{
    image::OpenError,
    making::Making,
    map::{Begun, Cursor, Map},
    pages::TableError,
    units::SECTOR_BYTES,
};

/// A map, or what is there of it. No lock is taken once it is whole.
#[derive(Debug)]
pub(crate) struct Growing {
    name: Digest,
    device_bytes: u64,
    whole: OnceLock<Map>,
    begun: RwLock<Option<Begun>>,
    pub(crate) making: Making,
    /// Why it cannot be made, for whoever opens the image.
    failed: Mutex<Option<OpenError>>,
}

impl Growing {
    /// Nothing of the map of a device yet.
    pub(crate) fn new(name: Digest, device_bytes: u64) -> Self {
        Self {
            name,
            device_bytes,
            whole: OnceLock::new(),
            begun: RwLock::new(None),
            making: Making::new(),
            failed: Mutex::new(None),
        }
    }

    /// A map that was made before.
    pub(crate) fn whole(name: Digest, map: Map) -> Self {
        let device_bytes = map.device_bytes();
        Self { whole: map.into(), making: Making::over(), ..Self::new(name, device_bytes) }
    }

    pub(crate) const fn device_bytes(&self) -> u64 {
        self.device_bytes
    }

    /// The map, once it is whole.
    pub(crate) fn map(&self) -> Option<&Map> {
        self.whole.get()
    }

    /// Whether it cannot be made, or a page of it was found damaged.
    pub(crate) fn is_broken(&self) -> bool {
        self.map().map_or_else(|| self.making.is_over(), Map::is_broken)
    }

    /// What it is asked for by while it is being made: a byte stands for each sector of the device.
    pub(crate) const fn named(&self) -> Blob {
        Blob { digest: self.name, size_bytes: self.device_bytes.div_ceil(SECTOR_BYTES) }
    }

    /// Has `look` go through the extents from the first one that ends behind the start of `sectors` on, if all of them are known; otherwise says so
    /// with `None`.
    pub(crate) fn look<T>(
        &self,
        sectors: ByteRange,
        look: impl FnOnce(Cursor<'_>) -> Result<T, TableError>,
    ) -> Result<Option<T>, TableError> {
        if let Some(map) = self.map() {
            return look(map.from(sectors.start())?).map(Some);
        }
        let begun = self.begun.read();
        match (&*begun, self.map()) {
            (Some(begun), _) if begun.below() >= sectors.end() => look(begun.from(sectors.start())?).map(Some),
            // It became whole between the two looks.
            (_, Some(map)) => look(map.from(sectors.start())?).map(Some),
            _ => Ok(None),
        }
    }

    /// Waits until the extents of these sectors are known.
    pub(crate) async fn wait(&self, sectors: ByteRange) -> Result<(), ReadError> {
        let knows = || {
            let begun = || self.begun.read().as_ref().is_some_and(|begun| begun.below() >= sectors.end());
            self.map().is_some() || begun()
        };
        self.making.wait(sectors.end(), knows).await
    }

    /// Waits until it is whole.
    ///
    /// # Errors
    /// Why it is not.
    pub(crate) async fn made(&self) -> Result<(), OpenError> {
        let made = self.making.wait(u64::MAX, || self.map().is_some()).await;
        made.map_err(|error| {
            let failed = self.failed.lock().take();
            failed.unwrap_or_else(|| crate::image::layer_error(self.name, error.into()))
        })
    }

    /// Waits until it is whole, and has its name.
    pub(crate) async fn persisted(&self) -> Result<(), ReadError> {
        self.making.ended(|| self.map().is_some()).await
    }

    /// The writer has begun.
    pub(crate) fn begin(&self, begun: Begun) {
        *self.begun.write() = Some(begun);
    }

    /// The writer has got further.
    pub(crate) fn grow(&self, more: (Vec<u64>, u64)) {
        if let Some(begun) = &mut *self.begun.write() {
            begun.add(more);
        }
        self.making.advance();
    }

    /// The writer has come to the end.
    pub(crate) fn complete(&self, map: Map) {
        // Only one writer runs, so it is the first.
        let _ = self.whole.set(map);
        *self.begun.write() = None;
        self.making.advance();
    }

    /// It cannot be made, for now at least: what whoever opens the image hears. Told before the failure is.
    pub(crate) fn refuse(&self, error: OpenError) {
        *self.failed.lock() = Some(error);
    }
}
