//! Which files were waited for, and under which directory most of that was. The pure part, and the reading of a device's bytes that are here.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use penstock_blob::{BlobSource, ByteRange};
use penstock_image::{Image, Scratch, paths};

/// A device's bytes, as far as they are on this node: nothing is fetched for them.
pub(crate) struct Here {
    pub(crate) image: Arc<Image>,
    pub(crate) source: Arc<dyn BlobSource>,
    scratch: Scratch,
}

impl Here {
    pub(crate) fn new(image: Arc<Image>, source: Arc<dyn BlobSource>) -> Self {
        Self { image, source, scratch: Scratch::new() }
    }
}

impl paths::Local for Here {
    fn read(&mut self, at: u64, buf: &mut [u8]) -> bool {
        let Ok(range) = ByteRange::at(at, buf.len() as u64) else { return false };
        let Ok(plan) = self.image.plan(range, &self.source) else { return false };
        plan.is_local() && plan.read_into(buf, &mut self.scratch).is_ok()
    }
}

/// The deepest directory under which more than half of the time was waited that is known of files; `None` where less than half of all is, or
/// where they have nothing but the root in common.
pub(crate) fn directory(waits: &[(Duration, Option<&str>)]) -> Option<String> {
    let all: Duration = waits.iter().map(|(waited, _)| *waited).sum();
    let known: Duration = waits.iter().filter(|(_, path)| path.is_some()).map(|(waited, _)| *waited).sum();
    if known * 2 < all || known.is_zero() {
        return None;
    }
    let mut sums: BTreeMap<&str, Duration> = BTreeMap::new();
    for (waited, path) in waits {
        let path = path.unwrap_or_default();
        for (at, _) in path.match_indices('/').filter(|(at, _)| *at > 0) {
            *sums.entry(&path[..at]).or_default() += *waited;
        }
    }
    let most = sums.into_iter().filter(|(_, waited)| *waited * 2 > known);
    most.max_by_key(|(path, _)| path.len()).map(|(path, _)| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn under(waits: &[(u64, Option<&str>)]) -> Option<String> {
        directory(&waits.iter().map(|(ms, path)| (Duration::from_millis(*ms), *path)).collect::<Vec<_>>())
    }

    #[test]
    fn the_deepest_directory_with_most_of_the_waits_is_named() {
        let python = [(30, Some("/usr/lib/python3/json.py")), (30, Some("/usr/lib/python3/ssl.py"))];
        assert_eq!(under(&python).as_deref(), Some("/usr/lib/python3"));
        assert_eq!(
            under(&[&python[..], &[(50, Some("/usr/bin/python3"))]].concat()).as_deref(),
            Some("/usr/lib/python3")
        );
        assert_eq!(under(&[&python[..], &[(60, Some("/usr/bin/python3"))]].concat()).as_deref(), Some("/usr"));
        assert_eq!(under(&[&python[..], &[(60, Some("/bin/sh"))]].concat()), None, "only the root is common to most");
        assert_eq!(under(&[(10, Some("/init"))]), None);
    }

    #[test]
    fn little_that_is_known_names_nothing() {
        assert_eq!(under(&[(10, Some("/usr/lib/a")), (11, None)]), None);
        assert_eq!(under(&[(10, Some("/usr/lib/a")), (10, None)]).as_deref(), Some("/usr/lib"));
        assert_eq!(under(&[]), None);
        assert_eq!(under(&[(0, Some("/usr/lib/a"))]), None);
    }
}
