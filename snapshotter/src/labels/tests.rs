//! Labels and mappings, by table.

use super::*;

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn a_layer_is_known_from_what_each_client_passes() {
    let digest = |text: &str| Digest::of(text.as_bytes());
    let (chain, blob, manifest) = (digest("chain"), digest("blob"), digest("manifest"));
    let cri = labels(&[
        (TARGET, &chain.to_string()),
        (REFERENCE[0], "registry.example/a:b"),
        (LAYER[0], &blob.to_string()),
        (MANIFEST, &manifest.to_string()),
        (PREFER, "own,toc"),
        ("containerd.io/snapshot/cri.image-layers", "sha256:cut,short"),
    ]);
    let reference = "registry.example/a:b".into();
    let prefer = Some("own,toc".into());
    let wanted = Layer { reference, manifest: Some(manifest), digest: blob, depth: 3, chain, prefer };
    assert_eq!(layer(&cri, 3), Some(Ok(wanted.clone())));
    let rpull = labels(&[
        (TARGET, &chain.to_string()),
        (REFERENCE[1], "registry.example/a:b"),
        (LAYER[1], &blob.to_string()),
        ("containerd.io/snapshot/remote/stargz.layers", "sha256:cut,short"),
    ]);
    assert_eq!(layer(&rpull, 3), Some(Ok(Layer { manifest: None, prefer: None, ..wanted })));
    assert_eq!(layer(&labels(&[(REFERENCE[0], "a")]), 0), None, "a container's snapshot");
}

#[test]
fn a_label_without_a_value_is_none_and_a_long_one_is_refused() {
    assert_eq!(kept(labels(&[("a", ""), ("b", "1")])).expect("kept"), labels(&[("b", "1")]));
    assert!(kept(labels(&[("a", &"x".repeat(MAX_LABEL_BYTES - 1))])).is_ok());
    assert!(kept(labels(&[("a", &"x".repeat(MAX_LABEL_BYTES))])).is_err());
}

#[test]
fn a_mapping_is_passed_on_as_it_is_and_its_root_known() {
    let map =
        IdMap::of(&labels(&[(UID_MAPPING, "1:5:10,0:1000:1"), (GID_MAPPING, "0:2000:65536")])).expect("a mapping");
    assert!(map.is_some());
    assert_eq!(map.options(), ["uidmap=1:5:10,0:1000:1", "gidmap=0:2000:65536"]);
    assert_eq!(map.root(), (Some(1000), Some(2000)));
    let none = IdMap::of(&Labels::new()).expect("none");
    assert!(!none.is_some() && none.options().is_empty());
    assert_eq!(none.root(), (None, None));
    for wrong in ["0", "0:1", "0:1:0", "0:1:2:3", "x:1:2", "0:1:2,", "4294967295:0:2", "0:1:2 ", "-1:0:1"] {
        assert!(IdMap::of(&labels(&[(UID_MAPPING, wrong)])).is_err(), "{wrong:?}");
    }
    let many = vec!["0:1:1"; MAX_RANGES + 1].join(",");
    assert!(IdMap::of(&labels(&[(GID_MAPPING, &many)])).is_err());
}
