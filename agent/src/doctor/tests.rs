//! What is judged of which facts, by table; and that looking at this machine, whatever it is, answers.

use std::time::Duration;

use penstock_device::{Transport, Wanted};

use super::{
    agent::{self, Agent, Unit},
    check::{Check, Report, State},
    containerd::{self, Containerd, Kubelet},
    disk::{self, Dir, Room},
    machine::{self, Driver, Machine},
    registry::{self, Registry},
    settings::{self, Settings},
};
use crate::containerd::{Plugin, Understood};

fn state(checks: &[Check], name: &str) -> State {
    checks.iter().find(|check| check.name == name).unwrap_or_else(|| panic!("no check {name}: {checks:?}")).state
}

fn no<T>(reason: &str) -> Result<T, String> {
    Err(reason.to_owned())
}

fn machine() -> Machine {
    Machine {
        kernel: "Linux 6.12.0 x86_64".into(),
        may_mount: true,
        ublk: Ok("can be used".into()),
        fuse: Ok("can be used".into()),
        has_loop_devices: true,
        file_systems: machine::drivers(
            "nodev\toverlay\n\text4\n",
            "kernel/fs/erofs/erofs.ko.xz: x\nkernel/fs/xfs/xfs.ko:\n",
        ),
    }
}

#[test]
fn one_transport_is_enough_unless_the_other_is_asked_for() {
    let judged = |ublk: bool, fuse: bool, wanted| {
        let can = |can: bool| if can { Result::Ok("can".to_owned()) } else { no("cannot") };
        let checks = machine::judge(&Machine { ublk: can(ublk), fuse: can(fuse), ..machine() }, wanted);
        (state(&checks, "ublk"), state(&checks, "FUSE"))
    };
    use State::{Failed, Ok, Warning};
    assert_eq!(judged(true, true, Wanted::Auto), (Ok, Ok));
    assert_eq!(judged(false, true, Wanted::Auto), (Warning, Ok));
    assert_eq!(judged(true, false, Wanted::Auto), (Ok, Warning));
    assert_eq!(judged(false, false, Wanted::Auto), (Failed, Failed));
    assert_eq!(judged(false, true, Wanted::Only(Transport::Ublk)), (Failed, Ok));
}

#[test]
fn a_file_system_may_be_built_in_or_a_module_and_overlay_must_be_one_of_these() {
    let drivers = machine().file_systems;
    let of = |name| drivers.iter().find(|(known, _)| *known == name).map(|(_, driver)| *driver);
    assert_eq!(
        ["overlay", "ext4", "erofs", "xfs"].map(of),
        [Driver::Here, Driver::Here, Driver::Module, Driver::Module].map(Some)
    );
    let checks = machine::judge(&machine(), Wanted::Auto);
    assert_eq!([state(&checks, "erofs"), state(&checks, "squashfs")], [State::Ok, State::Warning]);
    let bare =
        Machine { file_systems: machine::drivers("", ""), may_mount: false, has_loop_devices: false, ..machine() };
    let checks = machine::judge(&bare, Wanted::Auto);
    assert_eq!(
        ["overlay", "ext4", "rights", "loop devices"].map(|name| state(&checks, name)),
        [State::Failed, State::Warning, State::Warning, State::Warning]
    );
    assert_eq!(machine::capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n"), 0x1ff_ffff_ffff);
    assert_eq!(machine::capabilities("CapEff:\tx\n"), 0);
}

#[test]
fn a_directory_needs_holes_and_room_above_the_reserve() {
    const GIB: u64 = 1 << 30;
    let judged = |free, used, holes: Option<Result<(), String>>, cap| {
        let room = Ok(Room { kind: "ext4", free_bytes: free, total_bytes: 100 * GIB, used_bytes: used });
        let dir = Dir { name: "cache directory", path: "/c".into(), exists: true, room, has_holes: holes, cap };
        disk::judge(&[dir]).remove(0).state
    };
    let cap = Some((10 * GIB, None));
    for (free, used, holes, cap, expected) in [
        (50 * GIB, 0, Some(Ok(())), cap, State::Ok),
        (10 * GIB, 0, Some(Ok(())), cap, State::Warning),
        (5 * GIB, 7 * GIB, Some(Ok(())), cap, State::Ok),
        (GIB / 2, 9 * GIB, Some(Ok(())), cap, State::Failed),
        (GIB / 2, 10 * GIB, Some(Ok(())), Some((10 * GIB, Some(0))), State::Ok),
        (50 * GIB, 0, Some(no("not supported")), cap, State::Failed),
        (50 * GIB, 0, None, cap, State::Skipped),
        (1, 0, Some(Ok(())), None, State::Ok),
        (0, 0, Some(Ok(())), None, State::Failed),
    ] {
        assert_eq!(judged(free, used, holes, cap), expected, "{free} free, {used} used, {cap:?}");
    }
    let gone = Dir { name: "d", path: "/d".into(), exists: false, room: no("no"), has_holes: None, cap: None };
    assert_eq!(disk::judge(&[gone])[0].state, State::Failed);
}

#[test]
fn a_config_that_the_agent_refuses_and_secrets_that_others_read_fail() {
    let bad = Settings {
        fault: Some("line 3".into()),
        notices: vec!["x".into()],
        secrets: vec![
            ("api.token_file", "/t".into(), Some("mode 0644".into())),
            ("fetch.docker_config", "/d".into(), Some("mode 0644".into())),
            ("credentials.file", "/c".into(), None),
        ],
    };
    let checks = settings::judge(&bad);
    let states =
        ["config", "api.token_file", "fetch.docker_config", "credentials.file"].map(|name| state(&checks, name));
    assert_eq!(states, [State::Failed, State::Failed, State::Warning, State::Ok]);
    let warned = Settings { notices: vec!["x".into()], ..Settings::default() };
    assert_eq!(settings::judge(&warned)[0].state, State::Warning);
    assert_eq!(settings::judge(&Settings::default())[0].state, State::Ok);
}

fn agent() -> Agent {
    Agent {
        release: Ok("0.1.0".into()),
        silent: None,
        ready: Some(Ok(None)),
        unit: Some(Unit { state: "active".into(), kind: "notify".into(), store_max: 1024 }),
        is_supervised: false,
        serves_containerd: true,
        sockets: vec![("snapshotter socket", "/s".into(), Ok(()))],
    }
}

#[test]
fn an_agent_is_good_when_it_answers_takes_work_and_somebody_keeps_its_devices() {
    let names = ["agent", "readiness", "keeper", "snapshotter socket"];
    let judged = |agent: &Agent| names.map(|name| state(&agent::judge(agent, "0.1.0"), name));
    use State::{Failed, Ok, Skipped, Warning};
    assert_eq!(judged(&agent()), [Ok; 4]);
    assert_eq!(judged(&Agent { release: Result::Ok("0.2.0".into()), ..agent() })[0], Warning);
    assert_eq!(judged(&Agent { ready: Some(Result::Err("stopping".into())), ..agent() })[1], Failed);
    let degraded = Some(Result::Ok(Some("nobody answers for r".to_owned())));
    assert_eq!(judged(&Agent { ready: degraded, ..agent() })[1], Warning);
    let gone = Agent {
        release: no("no socket"),
        ready: None,
        unit: None,
        sockets: vec![("snapshotter socket", "/s".into(), no("none"))],
        ..agent()
    };
    assert_eq!(judged(&gone), [Failed, Skipped, Skipped, Failed]);
    let starting = Agent { silent: Some(7), ..gone.clone() };
    assert_eq!(judged(&starting), [Warning, Skipped, Skipped, Failed]);
    assert!(agent::judge(&starting, "0.1.0")[0].seen.contains("process 7 is starting"));
    assert_eq!(judged(&Agent { serves_containerd: false, ..gone })[3], Skipped);
    assert_eq!(judged(&Agent { unit: Some(Unit::default()), ..agent() })[2], Warning);
    assert_eq!(judged(&Agent { unit: None, ..agent() })[2], Warning);
    assert_eq!(judged(&Agent { unit: None, is_supervised: true, ..agent() })[2], Ok);
    let shown = "Type=notify\nActiveState=active\nFileDescriptorStoreMax=1024\nLoadState=loaded\n";
    assert_eq!(agent::unit(shown), agent().unit);
    assert_eq!(agent::unit(&shown.replace("=loaded", "=not-found")), None);
}

fn containerd() -> Containerd {
    Containerd {
        socket: "/run/containerd/containerd.sock".into(),
        release: Ok("1.7.24".into()),
        plugins: Ok(vec![Plugin { id: "penstock".into(), failure: None }]),
        config: Ok(Understood {
            exists: true,
            socket: "/run/containerd/containerd.sock".into(),
            names_us: true,
            default: "penstock".into(),
            has_labels: true,
            stale: None,
            config_path: Some("/a:/b".into()),
        }),
        unreadable: Vec::new(),
        hosts_dirs: "/a:/b".into(),
        is_wanted: true,
    }
}

#[test]
fn containerd_is_good_when_it_knows_us_and_passes_labels() {
    let names = ["containerd", "containerd plugin", "layer labels", "hosts.toml"];
    let judged = |seen: &Containerd| names.map(|name| state(&containerd::judge(seen), name));
    use State::{Failed, Ok, Skipped, Warning};
    let config = |change: fn(&mut Understood)| {
        let mut seen = containerd();
        change(seen.config.as_mut().unwrap());
        seen
    };
    assert_eq!(judged(&containerd()), [Ok; 4]);
    assert_eq!(judged(&config(|config| config.has_labels = false))[2], Failed);
    assert_eq!(judged(&config(|config| config.config_path = Some("/c".into())))[3], Warning);
    assert_eq!(judged(&Containerd { unreadable: vec!["/a: denied".into()], ..containerd() })[3], Failed);
    let stale = config(|config| config.stale = Some("a = 1".into()));
    assert_eq!(state(&containerd::judge(&stale), "containerd config"), Failed);
    let unknown = |names_us, is_wanted| {
        let mut seen = Containerd { plugins: Result::Ok(Vec::new()), is_wanted, ..containerd() };
        let config = seen.config.as_mut().unwrap();
        (config.names_us, config.has_labels) = (names_us, false);
        judged(&seen)
    };
    assert_eq!(unknown(true, true), [Ok, Failed, Failed, Ok]);
    assert_eq!(unknown(false, true), [Ok, Failed, Failed, Ok]);
    assert_eq!(unknown(false, false), [Ok, Skipped, Skipped, Ok]);
    let down = Containerd { release: no("refused"), plugins: no("refused"), ..containerd() };
    assert_eq!(judged(&down), [Failed, Skipped, Ok, Ok]);
    let mut absent = down;
    absent.config.as_mut().unwrap().exists = false;
    assert_eq!(containerd::judge(&absent), [containerd::judge(&absent)[0].clone()]);
    assert_eq!(containerd::judge(&absent)[0].state, Skipped);
    let broken = Plugin { id: "penstock".into(), failure: Some(crate::containerd::Status { message: "why".into() }) };
    assert_eq!(judged(&Containerd { plugins: Result::Ok(vec![broken]), ..containerd() })[1], Failed);
    assert_eq!(
        state(&containerd::judge(&Containerd { config: no("line 2"), ..containerd() }), "containerd config"),
        Failed
    );
}

#[test]
fn the_kubelets_endpoint_is_found_in_its_arguments_and_its_config() {
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let endpoint = |text: &str, config: &str| containerd::image_endpoint(&words(text), config);
    assert_eq!(endpoint("kubelet --image-service-endpoint=unix:///a --v=2", ""), Some("unix:///a".into()));
    assert_eq!(
        endpoint("kubelet --image-service-endpoint unix:///a", "imageServiceEndpoint: unix:///b"),
        Some("unix:///a".into())
    );
    assert_eq!(endpoint("kubelet", "a: b\nimageServiceEndpoint: \"unix:///b\"\n"), Some("unix:///b".into()));
    assert_eq!(endpoint("kubelet --image-service-endpoint-x=1", "imageServiceEndpoint: \"\""), None);
    let judged = |kubelet: Option<&Kubelet>| {
        containerd::judge_kubelet(kubelet, Some("/run/penstock/images.sock".as_ref())).state
    };
    let asks = |endpoint: Option<&str>| judged(Some(&Kubelet { image_endpoint: endpoint.map(str::to_owned) }));
    assert_eq!((judged(None), asks(None)), (State::Skipped, State::Warning));
    assert_eq!(containerd::judge_kubelet(Some(&Kubelet { image_endpoint: None }), None).state, State::Skipped);
    assert_eq!(asks(Some("unix:///run/containerd/containerd.sock")), State::Warning);
    assert_eq!(
        (asks(Some("unix:///run/penstock/images.sock")), asks(Some("/run/penstock/images.sock"))),
        (State::Ok, State::Ok)
    );
}

#[test]
fn a_registry_is_asked_on_its_port() {
    for (host, address) in
        [("a.example", "a.example:443"), ("a:5000", "a:5000"), ("[::1]", "[::1]:443"), ("[::1]:5", "[::1]:5")]
    {
        assert_eq!(registry::address(host), address);
    }
    let judged = |connected| registry::judge(Some(&Registry { address: "a:443".into(), connected })).state;
    assert_eq!(judged(Ok(Duration::ZERO)), State::Ok);
    assert_eq!((judged(no("refused")), registry::judge(None).state), (State::Failed, State::Skipped));
}

#[test]
fn the_table_says_what_to_do_and_counts() {
    let checks = vec![
        Check::ok("kernel", "Linux"),
        Check::warning("a", "b", "c"),
        Check::failed("ublk", "not\nhere", "modprobe ublk_drv"),
        Check::skipped("registry", "none"),
    ];
    let report = Report::new(checks);
    assert!(!report.is_good());
    assert_eq!(
        report.table(),
        "ok       kernel    Linux\nwarning  a         b\n                   -> c\nfailed   ublk      not\\nhere\n                   \
         -> modprobe ublk_drv\nskipped  registry  none\n\n1 ok, 1 warnings, 1 failed, 1 skipped\n"
    );
}

#[test]
fn looking_at_this_machine_answers_and_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let config = crate::Config::in_dir(dir.path());
    let seen = disk::look(&config);
    assert!(seen.iter().all(|dir| !dir.exists && dir.room.is_ok() && dir.has_holes == Some(Ok(()))), "{seen:?}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    assert!(machine::look().kernel.starts_with("Linux "));
}
