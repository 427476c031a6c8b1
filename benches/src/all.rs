//! Everything that is promised, one bench after the other, with a line for each promise at the end.
//!
//! A bench that fails is named, and the others go on. One that cannot run here is named with the reason. Each works in a directory of its own, which is gone
//! before the next begins.

use std::path::Path;

use penstock_agent::output;
use serde::Serialize;

use crate::{
    attach, cold, crowd, many,
    pack::{Facts, Link, Packed},
    path,
    report::Measured,
    start,
    summary::{self, Line},
    vm, warm, warm_start,
};

/// How it is measured.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Bytes of the images' files.
    pub image_bytes: u64,
    /// The link to the registry.
    pub link: Link,
    /// Misses of `path`.
    pub misses: u64,
    /// Starts, passes and opens of the others.
    pub starts: u64,
    /// Devices at once.
    pub devices: u64,
}

/// What was measured.
#[derive(Debug, Clone, Default, Serialize)]
pub struct All {
    /// The image of `path`, `start` and `crowd`.
    pub image: Option<Facts>,
    /// Reads through image, cache and fetcher.
    pub path: Vec<path::Row>,
    /// Getting at files.
    pub start: Vec<start::Row>,
    /// Many starts at once.
    pub crowd: Vec<crowd::Row>,
    /// Cold starts against their floor.
    pub cold: Vec<cold::Row>,
    /// Warm starts against local mounts.
    pub warm_start: Vec<warm_start::Row>,
    /// Reads of what is cached.
    pub warm: Option<warm::Measured>,
    /// Opening images.
    pub attach: Vec<attach::Row>,
    /// Devices at once.
    pub many: Option<many::Row>,
    /// The same through ublk, in a VM.
    pub vm: Option<vm::Measured>,
    /// What cannot be measured here, and why.
    pub not_measured: Vec<String>,
    /// What failed, and why.
    pub failed: Vec<String>,
    /// What was measured beside what it should be.
    pub summary: Vec<Line>,
}

impl Measured for All {
    const NAME: &'static str = "all";

    fn tables(&self) -> String {
        let mut parts: Vec<String> = self.image.iter().map(ToString::to_string).collect();
        parts.extend([
            of(&self.path),
            of(&self.start),
            of(&self.crowd),
            of(&self.cold),
            of(&self.warm_start),
            of(&self.attach),
        ]);
        parts.extend(self.warm.as_ref().map(Measured::tables));
        parts.extend(self.many.as_ref().map(Measured::tables));
        parts.extend(self.vm.as_ref().map(Measured::tables));
        parts.retain(|part| !part.is_empty());
        parts.push(summary::table(&self.summary).to_string());
        parts.extend(self.not_measured.iter().map(|reason| format!("not measured: {reason}\n")));
        parts.extend(self.failed.iter().map(|reason| format!("FAILED: {reason}\n")));
        parts.join("\n")
    }
}

/// The tables of what has rows.
fn of<R>(rows: &Vec<R>) -> String
where
    Vec<R>: Measured,
{
    if rows.is_empty() { String::new() } else { rows.tables() }
}

/// Runs everything below `dir`. `kernel` is where the VM's kernel is, or is put.
///
/// # Errors
/// When there is no place for temporary files. What a bench says is in [`All::failed`].
pub async fn run(dir: &Path, sizes: Sizes, kernel: &Path) -> anyhow::Result<All> {
    let mut all = All::default();
    let (sized, n) = ((sizes.image_bytes, sizes.link), sizes.starts);
    let mounts = start::obstacle().is_none();
    all.not_measured.extend(start::obstacle().map(|reason| format!("starts and reads through mounts: {reason}")));
    Box::pin(all.on_one_image(dir, sizes, mounts)).await?;
    let place = tempfile::tempdir_in(dir)?;
    let rows = all.part("attach", attach::run(place.path(), sizes.link, n)).await;
    all.attach = rows.unwrap_or_default();
    place.close()?;
    if mounts {
        let place = tempfile::tempdir_in(dir)?;
        all.cold = all.part("cold", cold::run(place.path(), sized, n)).await.unwrap_or_default();
        place.close()?;
        let place = tempfile::tempdir_in(dir)?;
        all.warm_start = all.part("warm-start", warm_start::run(place.path(), sized, n)).await.unwrap_or_default();
        place.close()?;
        let place = tempfile::tempdir_in(dir)?;
        all.warm = all.part("warm", warm::run(place.path(), sized, n)).await;
        place.close()?;
        let place = tempfile::tempdir_in(dir)?;
        all.many = all.part("many", many::run(place.path(), sizes.link, sizes.devices)).await;
        place.close()?;
    }
    if let Some(reason) = vm::obstacle() {
        all.not_measured.push(format!("block devices of ublk in a VM: {reason}"));
    } else {
        let place = tempfile::tempdir_in(dir)?;
        all.vm = all.part("vm", vm::run(place.path(), kernel)).await;
        place.close()?;
    }
    all.summary = all.lines(sizes.link);
    Ok(all)
}

impl All {
    /// What `measuring` says; what it failed with is kept.
    async fn part<T>(&mut self, name: &str, measuring: impl Future<Output = anyhow::Result<T>>) -> Option<T> {
        output::note(format_args!("Measuring: {name} ..."));
        // Boxed: benches are large futures.
        Box::pin(measuring).await.map_err(|error| self.failed.push(format!("{name}: {error:#}"))).ok()
    }

    /// The benches that share an image of this machine's files.
    async fn on_one_image(&mut self, dir: &Path, sizes: Sizes, mounts: bool) -> anyhow::Result<()> {
        let place = tempfile::tempdir_in(dir)?;
        let making = Packed::make(place.path(), sizes.image_bytes, sizes.link);
        let Some(packed) = self.part("making the images", making).await else { return Ok(()) };
        self.image = Some(packed.facts.clone());
        self.path = self.part("path", path::run(&packed, place.path(), sizes.misses)).await.unwrap_or_default();
        if mounts {
            self.start = self.part("start", start::run(&packed, place.path(), sizes.starts)).await.unwrap_or_default();
            self.crowd = self.part("crowd", crowd::run(&packed, place.path(), sizes.starts)).await.unwrap_or_default();
        }
        packed.registry.stop().await;
        Ok(place.close()?)
    }

    fn lines(&self, link: Link) -> Vec<Line> {
        let mut lines = summary::of_cold(&self.cold);
        lines.extend(summary::of_warm_start(&self.warm_start));
        lines.extend(summary::of_start(&self.start));
        lines.extend(summary::of_path(&self.path, link));
        lines.extend(self.warm.iter().flat_map(summary::of_warm));
        lines.extend(summary::of_crowd(&self.crowd));
        lines.extend(summary::of_attach(&self.attach));
        lines.extend(self.many.iter().flat_map(|row| summary::of_many("", row)));
        lines.extend(self.vm.iter().flat_map(summary::of_vm));
        lines
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[tokio::test]
    async fn a_bench_that_fails_is_named_and_the_others_count() {
        let mut all = All::default();
        let failing = async { bail!("no disk") };
        assert_eq!(all.part::<u32>("one", failing).await, None);
        assert_eq!(all.part("other", async { Ok(7) }).await, Some(7));
        let text = all.tables();
        assert!(text.contains("FAILED: one: no disk") && !text.contains("other"), "{text}");
    }
}
