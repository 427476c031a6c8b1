//! Merged maps: look-ups against a list, and damage.

use super::*;

fn record(name: &[u8], zfile: bool) -> LayerRecord {
    let blob = Blob { digest: Digest::of(name), size_bytes: 5000 };
    LayerRecord { blob, file: ByteRange::new(512, 4608).unwrap(), zfile }
}

fn build(dir: &Path, layers: &[LayerRecord], extents: impl Iterator<Item = Entry>) -> Map {
    let mut writer = MapWriter::new(dir, layers).unwrap();
    for extent in extents {
        writer.push(extent).unwrap();
    }
    let (map, sealed) = writer.finish(1 << 40).unwrap();
    sealed.persist().unwrap();
    let blobs: Vec<Blob> = layers.iter().map(|layer| layer.blob).collect();
    let opened = Map::open(dir, &blobs).unwrap().unwrap();
    assert_eq!(
        (map.extents(), map.levels.len()),
        (opened.extents(), opened.levels.len()),
        "whole before it had its name"
    );
    opened
}

/// Extent `i` covers 2 of every 5 sectors.
fn extent(i: u64) -> Entry {
    Entry { start: 5 * i + 1, sectors: 2, moffset: 8 + i, zeroed: false, tag: u8::from(i.is_multiple_of(2)) }
}

#[test]
fn lookups_are_right_at_every_height_of_the_tree() {
    let layers = [record(b"a", false), record(b"b", true)];
    // No extent, one leaf, a full leaf, two leaves, a full root, three levels.
    for (count, levels) in [(0, 0), (1, 1), (255, 1), (256, 2), (255 * 510, 2), (255 * 510 + 1, 3)] {
        let dir = tempfile::tempdir().unwrap();
        let map = build(dir.path(), &layers, (0..count).map(extent));
        assert_eq!((map.extents(), map.levels.len(), map.device_bytes()), (count, levels, 1 << 40));
        assert_eq!(map.layers(), layers);
        let probes =
            [0, 1, 254, 255, 256, count / 2, 255 * 254, count.saturating_sub(2), count.saturating_sub(1), count];
        for i in probes {
            let expected = |i: u64| (i < count).then(|| extent(i));
            let found = |sector| map.from(sector).unwrap().next().unwrap();
            assert_eq!(found(5 * i), expected(i), "before extent {i} of {count}");
            assert_eq!(found(5 * i + 1), expected(i), "its first sector");
            assert_eq!(found(5 * i + 2), expected(i), "its last sector");
            assert_eq!(found(5 * i + 3), expected(i + 1), "behind it");
        }
        let mut cursor = map.from(0).unwrap();
        let walked = std::iter::from_fn(|| cursor.next().unwrap()).zip(0..);
        assert_eq!(walked.inspect(|(found, i)| assert_eq!(*found, extent(*i))).count() as u64, count);
    }
}

#[test]
fn a_map_in_the_making_is_right_below_where_it_has_grown_to() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = MapWriter::new(dir.path(), &[record(b"a", false), record(b"b", true)]).unwrap();
    let mut begun = writer.begun().unwrap();
    assert!(begun.from(0).unwrap().next().unwrap().is_none(), "nothing is there");
    let mut written = 0;
    for step in [1, 253, 1, 1, 300, 5000, 130_000] {
        (written..written + step).map(extent).try_for_each(|extent| writer.push(extent)).unwrap();
        written += step;
        begun.add(writer.show().unwrap());
        let below = begun.below();
        assert!(below <= extent(written - 1).end() && below > 5 * written.saturating_sub(256), "{below} of {written}");
        for sector in [0, 1, 2, 3, below / 2, below.saturating_sub(6), below.saturating_sub(1)] {
            let found = begun.from(sector).unwrap().next().unwrap().filter(|found| found.start < below);
            let model = |i: u64| Some(extent(i)).filter(|extent| i < written && extent.start < below);
            let i = if sector % 5 == 0 || sector % 5 < 3 { sector / 5 } else { sector / 5 + 1 };
            assert_eq!(found, model(i), "sector {sector} of {below}, {written} written");
        }
    }
    let (map, _sealed) = writer.finish(1 << 40).unwrap();
    assert_eq!(map.extents(), written);
    assert_eq!(map.from(5 * 777).unwrap().next().unwrap(), Some(extent(777)));
}

#[test]
fn layers_beyond_one_page_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let layers: Vec<LayerRecord> = (0..255_u8).map(|i| record(&[i], i.is_multiple_of(3))).collect();
    let map = build(dir.path(), &layers, (0..1000).map(extent));
    assert_eq!(map.layers(), layers);
    assert_eq!(map.levels[0].first, 1 + 5, "63 layers fit in a page");
}

#[test]
fn a_map_of_another_stack_is_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    let layers = [record(b"a", false), record(b"b", true)];
    build(dir.path(), &layers, (0..10).map(extent));
    let blobs = |layers: &[LayerRecord]| layers.iter().map(|layer| layer.blob).collect::<Vec<_>>();
    let other = [layers[1], layers[0]];
    assert!(Map::open(dir.path(), &blobs(&other)).unwrap().is_none());
    std::fs::rename(path(dir.path(), &identity(&blobs(&layers))), path(dir.path(), &identity(&blobs(&other)))).unwrap();
    assert!(Map::open(dir.path(), &blobs(&other)).unwrap().is_none(), "the name is not believed");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "and the file is gone");
    // The same digest with another size is another blob.
    build(dir.path(), &layers, (0..10).map(extent));
    let mut resized = blobs(&layers);
    resized[0].size_bytes += 1;
    assert!(Map::open(dir.path(), &resized).unwrap().is_none());
}

#[test]
fn an_unfinished_map_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = MapWriter::new(dir.path(), &[record(b"a", false)]).unwrap();
    (0..100_000).map(extent).try_for_each(|extent| writer.push(extent)).unwrap();
    drop(writer);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
