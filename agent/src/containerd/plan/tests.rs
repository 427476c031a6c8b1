//! For each release: what is written, what is in the way, and that it can be taken back.

use super::*;

const MAIN: &str = "/etc/containerd/config.toml";
/// As Debian's packages of 1.6 to 2.1 have it.
const DEBIAN: &str = "version = 2\n\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\"]\n    [plugins.\"io.containerd.grpc.v1.cri\".cni]\n      bin_dir = \"/usr/lib/cni\"\n";
const IMPORT: &str = "imports = [\"/etc/containerd/conf.d/penstock.toml\"]\n";

fn wanted(major: u32, minor: u32) -> Wanted {
    Wanted {
        release: Release::new(major, minor),
        paths: Paths::beside(Path::new(MAIN)),
        proxy: Proxy {
            address: "/run/penstock/snapshotter.sock".into(),
            root: "/var/lib/containerd/io.containerd.snapshotter.v1.penstock".into(),
        },
        class: None,
        platform: "linux/amd64".into(),
        force: false,
    }
}

fn seen(main: &str) -> Seen {
    Seen { main: Some(main.to_owned()), ..Seen::default() }
}

/// The files after `plan`.
fn done(plan: &Plan, mut seen: Seen, paths: &Paths) -> Seen {
    for change in &plan.changes {
        let place = match &change.path {
            path if *path == paths.main => &mut seen.main,
            path if *path == paths.drop_in => &mut seen.drop_in,
            path if *path == paths.backup() => &mut seen.backup,
            path => {
                assert_eq!(*path, paths.edited());
                continue;
            }
        };
        assert_eq!(*place, change.before, "{}", change.path.display());
        place.clone_from(&change.after);
    }
    seen
}

fn drop_in_of(wanted: &Wanted, main: &str) -> String {
    let plan = configure(wanted, &seen(main)).unwrap();
    done(&plan, seen(main), &wanted.paths).drop_in.unwrap()
}

#[test]
fn each_release_gets_the_keys_that_it_understands() {
    let (v2, v3) = ("version = 2\n", "version = 3\n");
    for (major, minor, main, golden) in [
        (1, 6, v2, include_str!("golden/1.6.toml")),
        (1, 7, v2, include_str!("golden/1.7.toml")),
        (2, 0, v3, include_str!("golden/2.0-v3.toml")),
        (2, 1, v3, include_str!("golden/2.1-v3.toml")),
        // containerd 2 passes over the new keys where the main config has the old ones, and the other way round.
        (2, 1, v2, include_str!("golden/2.1-v2.toml")),
    ] {
        assert_eq!(drop_in_of(&wanted(major, minor), main), golden, "{major}.{minor} {main}");
    }
    let class = |major, minor, main: &str| {
        let runtime = "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\noptions = { SystemdCgroup = true }\n";
        let runtime = if main == v3 { runtime.replace("grpc.v1.cri", "cri.v1.runtime") } else { runtime.to_owned() };
        drop_in_of(&Wanted { class: Some("lazy".into()), ..wanted(major, minor) }, &format!("{main}{runtime}"))
    };
    assert_eq!(class(1, 7, v2), include_str!("golden/1.7-class.toml"));
    assert_eq!(class(2, 1, v3), include_str!("golden/2.1-v3-class.toml"));
    assert_eq!(class(2, 1, v2), include_str!("golden/2.1-v2-class.toml"));
}

#[test]
fn the_main_config_gets_one_line_once_and_undo_takes_it_back() {
    for (major, minor) in [(1, 6), (1, 7), (2, 0), (2, 1)] {
        for main in [DEBIAN, "version = 2", "", "imports = [\"/x/*.toml\"] # mine\nversion = 2\n"] {
            let wanted = wanted(major, minor);
            let plan = configure(&wanted, &seen(main)).unwrap();
            let after = done(&plan, seen(main), &wanted.paths);
            assert_eq!(after.backup.as_deref(), Some(main));
            assert_ne!(after.main.as_deref(), Some(main));
            // Our file is there before the line that names it.
            assert_eq!(plan.changes.last().unwrap().path, wanted.paths.main);
            assert_eq!(configure(&wanted, &after).unwrap().changes, [], "again");
            let undone = undo(&wanted.paths, &after).unwrap();
            assert_eq!(undone.changes[0].path, wanted.paths.main);
            let before = done(&undone, after, &wanted.paths);
            assert_eq!((before.main.as_deref(), before.drop_in, before.backup), (Some(main), None, None));
            assert_eq!(undo(&wanted.paths, &seen(main)).unwrap(), Plan::default(), "undone already");
        }
    }
    let plan = configure(&wanted(1, 6), &seen(DEBIAN)).unwrap();
    assert_eq!(plan.changes[2].after.as_deref(), Some(&*DEBIAN.replace("= 2\n", &format!("= 2\n{IMPORT}"))));
}

#[test]
fn a_config_that_is_missing_is_made_and_taken_away_again() {
    for ((major, minor), version) in [((1, 7), 2), ((2, 2), 3)] {
        let wanted = wanted(major, minor);
        let after = done(&configure(&wanted, &Seen::default()).unwrap(), Seen::default(), &wanted.paths);
        let main = after.main.clone().unwrap();
        assert!(main.starts_with("# Made by") && main.ends_with(&format!("version = {version}\n{IMPORT}")), "{main}");
        let gone = done(&undo(&wanted.paths, &after).unwrap(), after.clone(), &wanted.paths);
        assert_eq!((gone.main, gone.drop_in), (None, None));
        let edited = Seen { main: Some(format!("{main}[debug]\nlevel = \"debug\"\n")), ..after };
        let kept = done(&undo(&wanted.paths, &edited).unwrap(), edited, &wanted.paths).main.unwrap();
        assert!(!kept.contains("imports") && kept.ends_with("[debug]\nlevel = \"debug\"\n"), "{kept}");
    }
}

#[test]
fn no_line_is_needed_where_our_file_is_imported_already() {
    for (major, minor, main, is_imported) in [
        (1, 7, "version = 2\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n", true),
        (1, 7, "version = 2\nimports = [\"conf.d/pen?tock.toml\"]\n", true),
        (1, 7, "version = 2\nimports = [\"/etc/containerd/*.toml\"]\n", false),
        (2, 2, "version = 3\n", true),
        (2, 2, "version = 3\nimports = []\n", false),
        (2, 1, "version = 3\n", false),
    ] {
        let plan = configure(&wanted(major, minor), &seen(main)).unwrap();
        let changed: Vec<_> = plan.changes.iter().map(|change| change.path.display().to_string()).collect();
        assert_eq!(!changed.contains(&MAIN.to_owned()), is_imported, "{major}.{minor} {main}: {changed:?}");
    }
}

#[test]
fn an_edit_since_is_kept_by_undo() {
    let wanted = wanted(1, 7);
    let mut after = done(&configure(&wanted, &seen(DEBIAN)).unwrap(), seen(DEBIAN), &wanted.paths);
    after.main = after.main.map(|text| text.replace("version = 2\n", "version = 2 # mine\noom_score = -1\n"));
    after.drop_in = after.drop_in.map(|text| text + "[debug]\n");
    let refused = configure(&wanted, &after).unwrap_err();
    assert!(matches!(&refused, Refusal::Taken { reason, .. } if reason.contains("edited")), "{refused}");
    let plan = undo(&wanted.paths, &after).unwrap();
    assert!(plan.changes.iter().any(|change| change.path == wanted.paths.edited() && change.is_copy));
    let main = done(&plan, after, &wanted.paths).main.unwrap();
    assert_eq!(main, DEBIAN.replace("version = 2\n", "version = 2 # mine\noom_score = -1\n"));
    assert_eq!(plan.notes.len(), 2, "{:?}", plan.notes);
}

#[test]
fn what_somebody_has_chosen_is_in_the_way_and_what_containerd_writes_is_not() {
    let cri = |line: &str| format!("version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\n{line}\n");
    let generated = "snapshotter = \"overlayfs\"\ndisable_snapshot_annotations = true\ndiscard_unpacked_layers = true";
    let plan = configure(&wanted(1, 7), &seen(&cri(generated))).unwrap();
    assert_eq!(plan.notes.len(), 3, "{:?}", plan.notes);
    for main in
        [cri("snapshotter = \"stargz\""), "version = 2\n[proxy_plugins.penstock]\naddress = \"/x\"\n".to_owned()]
    {
        let refused = configure(&wanted(1, 7), &seen(&main)).unwrap_err();
        assert!(matches!(refused, Refusal::Conflict { .. }), "{refused}");
        let forced = configure(&Wanted { force: true, ..wanted(1, 7) }, &seen(&main)).unwrap();
        assert_eq!((forced.changes.len(), forced.notes.len()), (3, 1), "{:?}", forced.notes);
    }
    let chosen = cri("snapshotter = \"stargz\"");
    configure(&Wanted { class: Some("lazy".into()), ..wanted(1, 7) }, &seen(&chosen)).unwrap();
    let imported = Imported {
        path: "/etc/containerd/conf.d/z.toml".into(),
        text: cri("snapshotter = \"overlayfs\""),
        is_later: true,
    };
    let later = Seen { imported: vec![imported.clone()], ..seen("version = 2\nimports = [\"conf.d/*.toml\"]\n") };
    let refused = configure(&Wanted { force: true, ..wanted(1, 7) }, &later).unwrap_err();
    assert!(matches!(&refused, Refusal::Later { path, .. } if *path == imported.path), "{refused}");
    let earlier = Seen { imported: vec![Imported { is_later: false, ..imported }], ..later };
    configure(&wanted(1, 7), &earlier).unwrap();
}

#[test]
fn what_cannot_be_is_refused() {
    let is = |release: (u32, u32), main: &str| configure(&wanted(release.0, release.1), &seen(main)).unwrap_err();
    assert!(matches!(is((1, 7), "version = 3\n"), Refusal::NewConfig { version: 3, .. }));
    assert!(matches!(is((1, 6), "[plugins.cri]\n"), Refusal::OldPlugins { .. }));
    assert!(matches!(is((1, 6), "version = 2\nx\n"), Refusal::Syntax { line: 2, .. }));
    let class = Wanted { class: Some("lazy".into()), ..wanted(1, 6) };
    assert!(matches!(configure(&class, &seen(DEBIAN)), Err(Refusal::NoRuntimeSnapshotters { .. })));
    let foreign = Seen { drop_in: Some("# mine\n".into()), ..seen(DEBIAN) };
    assert!(matches!(configure(&wanted(1, 6), &foreign), Err(Refusal::Taken { .. })));
    let plan = undo(&wanted(1, 6).paths, &foreign).unwrap();
    assert_eq!((plan.changes.len(), plan.notes.len()), (0, 1));
}

#[test]
fn a_section_that_would_be_replaced_is_repeated_with_ours_in_it() {
    let main = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"p:1\"\n\
        [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"/usr/lib/cni\"\n\
        [plugins.\"io.containerd.grpc.v1.cri\".containerd]\nno_pivot = true\ndiscard_unpacked_layers = true\n";
    for (minor, class) in [(6, None), (7, None), (7, Some("lazy".to_owned()))] {
        let wanted = Wanted { class: class.clone(), ..wanted(1, minor) };
        let ours = Settings::parse(&drop_in_of(&wanted, main)).unwrap();
        let at = |keys: &[&str]| ours.at(&[&["plugins", CRI], keys].concat()).map(ToString::to_string);
        assert_eq!(at(&["sandbox_image"]).as_deref(), Some("\"p:1\""));
        assert_eq!(at(&["cni", "bin_dir"]).as_deref(), Some("\"/usr/lib/cni\""));
        assert_eq!(at(&["containerd", "no_pivot"]).as_deref(), Some("true"));
        assert_eq!(at(&["containerd", "discard_unpacked_layers"]).as_deref(), Some("false"));
        let snapshotter = if class.is_some() {
            &["containerd", "runtimes", "lazy", "snapshotter"][..]
        } else {
            &["containerd", "snapshotter"]
        };
        assert_eq!(at(snapshotter).as_deref(), Some("\"penstock\""));
    }
    // containerd 2 merges: nothing is repeated, so that nothing can become stale.
    assert!(!drop_in_of(&wanted(2, 1), main).contains("sandbox_image"));
    let later = Imported { path: "/z.toml".into(), text: main.to_owned(), is_later: true };
    let seen = Seen { imported: vec![later], ..seen("version = 2\n") };
    assert!(matches!(configure(&wanted(1, 7), &seen), Err(Refusal::Later { .. })));
}

#[test]
fn what_was_unpacked_before_still_is() {
    let main = "version = 3\n[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\nplatform = \"linux/arm64\"\nsnapshotter = \"erofs\"\n";
    let text = drop_in_of(&wanted(2, 1), main);
    assert_eq!(text.matches("unpack_config]]").count(), 2, "{text}");
    assert!(text.contains("snapshotter = \"erofs\"") && !text.contains("overlayfs"), "{text}");
}

#[test]
fn a_person_is_told_what_the_files_do_not_say() {
    let main = "version = 2\nroot = \"/data\"\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/a:/b\"\nmirrors.x = {}\n";
    let notes = |major, minor, dirs: &[&str]| {
        let dirs: Vec<PathBuf> = dirs.iter().map(PathBuf::from).collect();
        advice(&wanted(major, minor), &seen(main), &dirs)
    };
    let all = notes(1, 6, &["/etc/containerd/certs.d"]);
    assert!(all[0].contains("hosts_dirs = [\"/a\", \"/b\"]") && all[1].contains("registry.mirrors"), "{all:?}");
    assert!(all[2].contains("/data/io.containerd.snapshotter.v1.penstock"), "{all:?}");
    assert_eq!(notes(1, 7, &["/a", "/b"]).len(), 1);
}

#[test]
fn a_named_file_is_written_only_where_the_config_imports_it_and_that_is_never_changed() {
    let dir = Path::new("/var/lib/rancher/k3s/agent/etc/containerd");
    let ours = dir.join("config-v3.toml.d/penstock.toml");
    let wanted = Wanted { paths: Paths::named(&dir.join("config.toml"), &ours), ..wanted(2, 1) };
    let main = "version = 3\nimports = [\"/var/lib/rancher/k3s/agent/etc/containerd/config-v3.toml.d/*.toml\"]\n";
    let plan = configure(&wanted, &seen(main)).unwrap();
    assert_eq!(plan.changes.iter().map(|change| &change.path).collect::<Vec<_>>(), [&ours]);
    let after = done(&plan, seen(main), &wanted.paths);
    let undone = undo(&wanted.paths, &after).unwrap();
    assert_eq!(undone.changes.iter().map(|change| &change.path).collect::<Vec<_>>(), [&ours]);
    for not_imported in [seen("version = 3\n"), Seen::default()] {
        assert!(matches!(configure(&wanted, &not_imported), Err(Refusal::NotImported { .. })));
    }
}
