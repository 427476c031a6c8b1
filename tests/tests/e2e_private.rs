//! A private image: the kubelet's credentials come with the pull, through the agent, and nobody else has them. containerd, which has used
//! them, forgets them; the layers are read long after.

use std::{fs, os::unix::fs::PermissionsExt as _, process::Command};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use penstock_tests::{
    containerd::Release,
    docker_registry::{DockerRegistry, PASSWORD, USER},
    node::{Node, cannot},
    require,
    runnable::{Kind, Runnable},
    workspace::text,
};

/// Files of the node that hold the password, as it is or as it is shown to a registry.
fn holding(node: &Node) -> Vec<String> {
    let mut find = Command::new("find");
    // Not into what is mounted, such as the images themselves: only what is written on this node.
    find.arg(node.work.path()).arg(node.work.join("run")).args(["-xdev", "-type", "f", "-exec", "grep", "-lF"]);
    let shown = STANDARD.encode(format!("{USER}:{PASSWORD}"));
    let found = find.args(["-e", PASSWORD, "-e", &shown, "{}", "+"]).output().expect("find starts");
    String::from_utf8_lossy(&found.stdout).lines().map(str::to_owned).collect()
}

/// For what the agent has credentials now.
fn scopes(node: &Node) -> Vec<String> {
    let known = node.get("/v1/credentials");
    let handed_over = known["handed_over"].as_array().expect("a list");
    handed_over.iter().map(|one| text(&one["scope"]).to_owned()).collect()
}

/// How many reads of blobs the registry has answered with bytes.
fn given(registry: &DockerRegistry) -> usize {
    let asked = registry.settled();
    asked.iter().filter(|request| request.status == 206 && request.path.contains("/blobs/")).count()
}

#[test]
fn a_private_image_is_read_with_the_credentials_of_its_pull_and_nobody_else_has_them() {
    require!(cannot(Release::Installed));
    let node = Node::start(Release::Installed, &[]);
    let image = Runnable::new(1, 8);
    let (_, layers) = node.push("team/app", &image, Kind::OverlayBd);
    let private = node.registry.with_password();
    let reference = private.repository("team/app").reference("1");
    let pull = |password: &str| node.cri().pull(&reference, Some((USER, password)));

    let refused = pull("a wrong one").expect_err("the registry refuses it");
    assert!(refused.message().contains("401"), "{refused}");
    assert_eq!(scopes(&node), Vec::<String>::new(), "nothing is kept of a pull that failed");
    let said = node.penstock(&["attach", &reference]).error_line();
    assert!(said.contains("refused access to") && said.contains("; run "), "{said}");

    pull(PASSWORD).expect("it is pulled");
    assert_eq!(node.stored(&layers), Vec::<String>::new(), "no layer is in containerd's store");
    assert_eq!(scopes(&node), [format!("{}/team/app", private.host())]);
    let pod = node.cri().run_pod("private");
    let container = node.cri().start(&pod, "private", &reference, &[]).expect("it starts");
    let read = |path: &str| {
        let inside = format!("/{path}");
        let said = node.cri().exec(&container, &["sha256sum", &inside]).ok();
        assert_eq!(said, format!("{}  {inside}\n", image.truth()[path].sha256));
    };
    // Another pod's wrong secret takes nothing away from this one.
    let _refused = pull("a wrong one").expect_err("the registry refuses it");
    let before = given(&private);
    read("data/base/000.bin");
    let between = given(&private);
    assert!(between > before, "the registry gave what was not cached");
    node.kill_agent();
    assert_eq!(scopes(&node), [format!("{}/team/app", private.host())], "they outlive the agent");
    node.is_right(&container, &image);
    assert!(given(&private) > between, "the next agent has asked for the rest");

    let kept = node.work.join("run/credentials.kept");
    assert_eq!(holding(&node), [kept.to_str().expect("UTF-8")], "in memory, and nowhere else");
    assert_eq!(fs::metadata(&kept).expect("the file").permissions().mode() & 0o7777, 0o600);
    let log = node.supervisor().log().join("\n");
    assert!(!log.contains(PASSWORD), "{log}");

    node.cri().remove(&container);
    node.cri().remove_pod(&pod);
    node.until_containerd_has_its_snapshotter();
    node.cri().remove_image(&reference);
    assert_eq!(node.devices().len(), 0);
    assert_eq!(holding(&node), Vec::<String>::new(), "they went with the image");
    node.stop();
}

#[test]
fn credentials_of_a_pull_are_gone_after_a_reboot_and_what_was_read_is_not() {
    require!(cannot(Release::Installed));
    let mut node = Node::start(Release::Installed, &[]);
    let image = Runnable::new(2, 1);
    let (_, _) = node.push("team/app", &image, Kind::OverlayBd);
    let private = node.registry.with_password();
    let reference = private.repository("team/app").reference("1");
    node.cri().pull(&reference, Some((USER, PASSWORD))).expect("it is pulled");
    let pod = node.cri().run_pod("first");
    let container = node.cri().start(&pod, "first", &reference, &[]).expect("it starts");
    node.is_right(&container, &image);
    node.reboot();
    assert_eq!(scopes(&node), Vec::<String>::new());
    let pod = node.cri().run_pod("second");
    let container = node.cri().start(&pod, "second", &reference, &[]).expect("it starts from what is cached");
    node.is_right(&container, &image);
    node.cri().remove(&container);
    node.cri().remove_pod(&pod);
    node.cri().remove_image(&reference);
    node.stop();
}
