//! `penstock demo`, as a person sees it first.

use penstock_tests::{
    agent::Place,
    require,
    skip::{fuse, loop_devices, root},
    workdir::Workdir,
};

#[test]
fn the_demo_fetches_less_than_a_full_pull_and_leaves_nothing() {
    require!(root(), fuse(), loop_devices());
    let work = Workdir::new();
    let dir = work.dir("demo");
    let arguments = ["demo", "--exit", "--size", "64MiB", "--output", "json", "--dir", dir.to_str().expect("UTF-8")];
    let report = Place::new(work.path()).run(&arguments).json();
    let number =
        |side: &str, name: &str| report[side][name].as_u64().unwrap_or_else(|| panic!("{side}.{name} in {report}"));
    assert!(number("full_pull", "bytes") > 0);
    assert!(number("lazy", "bytes") < number("full_pull", "bytes") / 2, "{report}");
    assert!(number("again", "bytes") < 4096, "no more than the manifest is asked for again: {report}");
    assert!(work.mounts().is_empty() && work.loops().is_empty(), "{:?} {:?}", work.mounts(), work.loops());
    assert_eq!(std::fs::read_dir(&dir).map(Iterator::count).unwrap_or(0), 0, "the demo's files are gone");
}
