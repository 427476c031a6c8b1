//! Shapes of mounts, by table.

use std::path::Path;

use super::*;
use crate::record::tests::lazy;

fn directory(number: u64) -> Arc<Record> {
    Arc::new(Record { number, content: Content::Directory { why: None }, ..lazy() })
}

fn device(number: u64, of: Shape) -> Arc<Record> {
    let Content::Lazy { stack, how, .. } = lazy().content else { panic!("it is lazy") };
    Arc::new(Record { number, content: Content::Lazy { shape: of, stack, how }, ..lazy() })
}

#[test]
fn lowers_end_with_the_first_device_that_shows_everything_below_it() {
    let (single, merged) = (Shape::Single, Shape::Merged);
    let chain = [directory(9), device(8, single), directory(7), device(6, merged), directory(5), device(4, merged)];
    let numbers = |chain: &[Arc<Record>]| lowers(chain).iter().map(|record| record.number).collect::<Vec<_>>();
    assert_eq!(numbers(&chain), [9, 8, 7, 6]);
    assert_eq!(numbers(&chain[..3]), [9, 8, 7]);
    assert_eq!(numbers(&chain[3..]), [6]);
    assert!(numbers(&[]).is_empty());
}

fn plan(kind: Kind, lowers: usize, root: &str) -> Plan {
    let path = |number: usize, name: &str| Path::new(root).join(number.to_string()).join(name);
    Plan {
        kind,
        upper: path(9999, "fs"),
        work: path(9999, "work"),
        lowers: (1..=lowers).rev().map(|number| path(number, "fs")).collect(),
        options: vec!["uidmap=0:1:2".into()],
        index_off: true,
    }
}

#[test]
fn each_kind_has_its_mount() {
    let mount = |kind, lowers| {
        let mount = plan(kind, lowers, "/s").mount().expect("it fits");
        format!("{} {} {}", mount.r#type, mount.source, mount.options.join(","))
    };
    assert_eq!(mount(Kind::Active, 0), "bind /s/9999/fs uidmap=0:1:2,rw,rbind");
    assert_eq!(mount(Kind::View, 0), "bind /s/9999/fs uidmap=0:1:2,ro,rbind");
    assert_eq!(mount(Kind::View, 1), "bind /s/1/fs uidmap=0:1:2,ro,rbind");
    assert_eq!(mount(Kind::View, 2), "overlay overlay uidmap=0:1:2,index=off,lowerdir=/s/2/fs:/s/1/fs");
    assert_eq!(
        mount(Kind::Active, 1),
        "overlay overlay uidmap=0:1:2,index=off,workdir=/s/9999/work,upperdir=/s/9999/fs,lowerdir=/s/1/fs"
    );
}

#[test]
fn what_does_not_fit_in_a_page_is_refused_with_the_reason_and_128_layers_fit() {
    let root = "/var/lib/containerd/io.containerd.snapshotter.v1.penstock/snapshots";
    assert!(plan(Kind::Active, 128, root).mount().is_ok());
    assert!(plan(Kind::Active, 400, root).mount().is_ok());
    let error = plan(Kind::Active, 501, "/s").mount().expect_err("overlayfs refuses it");
    assert!(matches!(error, SnapshotError::Precondition { .. }));
    assert!(error.to_string().contains("501 layers"), "{error}");
    assert!(plan(Kind::Active, 499, &format!("/{}", "x".repeat(2000))).mount().is_err(), "more than a page");
}
