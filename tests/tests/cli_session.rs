//! What a person types: the README's session, and every command with its two ways to print.

use std::{fs, process::Command};

use penstock_registry::Config;
use penstock_tests::{
    agent::{self, Agent, Place},
    fixture,
    loopback::Loopback,
    require,
    skip::{filesystem, fuse, loop_devices, root},
    workdir::Workdir,
    workspace::{self, text},
};

fn cannot() -> Option<String> {
    root().or_else(fuse).or_else(loop_devices).or_else(|| filesystem("ext4"))
}

struct Bench {
    agent: Agent,
    registry: Loopback,
    place: Place,
    work: Workdir,
}

fn bench() -> Bench {
    let work = Workdir::new();
    let registry = Loopback::start(Config::default());
    registry.layout(&fixture::layout(), "fixtures/overlaybd");
    let place = Place::new(work.path());
    Bench { agent: place.start(), registry, place, work }
}

impl Bench {
    fn reference(&self) -> String {
        format!("{}/fixtures/overlaybd:obd-zstd16", self.registry.host())
    }
}

/// Commands of the README's session: the lines after a prompt in the block that attaches an image.
fn session() -> Vec<String> {
    let readme = fs::read_to_string(workspace::root().join("README.md")).expect("README.md");
    let mut blocks = readme.split("```console\n").skip(1).filter_map(|rest| rest.split("```").next());
    let block =
        blocks.find(|block| block.contains("penstock attach")).expect("README.md has a session with `penstock attach`");
    let commands = block.lines().filter_map(|line| line.strip_prefix("# ").or_else(|| line.strip_prefix("$ ")));
    commands.map(|command| command.trim_start_matches("sudo ").to_owned()).collect()
}

/// The word after `flag` in a command.
fn word_after<'a>(command: &'a str, flag: &str) -> Option<&'a str> {
    command.split_whitespace().skip_while(|word| *word != flag).nth(1)
}

#[test]
fn the_session_of_the_readme_works() {
    require!(cannot());
    let bench = bench();
    let commands = session();
    let attach = commands.iter().find(|command| command.starts_with("penstock attach")).expect("an attach");
    let reference = word_after(attach, "attach").expect("a reference");
    let mount = word_after(attach, "--mount").expect("the session mounts the image");
    let dir = bench.work.dir("mnt");
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", agent::binary().parent().expect("a directory").display());
    let (mut ran, mut attached) = (0, 0);
    for command in commands.iter().filter(|command| !command.starts_with("penstock agent")) {
        let here = command.replace(reference, &bench.reference()).replace(mount, dir.to_str().expect("UTF-8"));
        let out = Command::new("sh")
            .args(["-c", &here])
            .env_clear()
            .env("PATH", &path)
            .env("PENSTOCK_SOCKET", bench.place.socket())
            .output()
            .expect("a shell");
        let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success(), "`{command}` of the README, here `{here}`: {said}");
        ran += 1;
        attached = attached.max(bench.agent.get("/v1/devices").as_array().map_or(0, Vec::len));
    }
    assert!(ran >= 3 && attached == 1, "{ran} commands ran, {attached} devices at once");
    assert_eq!(bench.agent.get("/v1/devices").as_array().map(Vec::len), Some(0), "the session cleans up");
}

#[test]
fn every_command_prints_a_table_and_json() {
    require!(cannot());
    let bench = bench();
    let mount = bench.work.dir("mnt");
    let reference = bench.reference();
    let said =
        bench.agent.run(&["attach", &reference, "--transport", "fuse", "--mount", mount.to_str().expect("UTF-8")]).ok();
    assert!(said.contains(mount.to_str().expect("UTF-8")), "{said}");
    assert!(fs::read(mount.join("etc/os-release")).is_ok_and(|bytes| !bytes.is_empty()));

    let json = bench.agent.run(&["list", "--output", "json"]).json();
    let id = text(&json[0]["id"]).to_owned();
    let table = bench.agent.run(&["list"]).ok();
    for word in ["REFERENCE", &reference, &id, "fuse"] {
        assert!(table.contains(word), "{word} is not in {table}");
    }
    let stats = bench.agent.run(&["stats", &id, "--output", "json"]).json();
    let (served, fetched) = (stats["stats"]["bytes_served"].as_u64(), stats["stats"]["bytes_fetched"].as_u64());
    assert!(served > Some(0) && fetched > Some(0), "{stats}");
    assert!(bench.agent.run(&["stats"]).ok().contains(&id));
    let cache = bench.agent.run(&["cache", "--output", "json"]).json();
    assert!(cache["chunks_present"].as_u64() > Some(0), "{cache}");
    assert!(bench.agent.run(&["cache"]).ok().contains("chunks"));
    assert!(
        bench.agent.run(&["events", "--output", "json"]).json()["events"]
            .as_array()
            .is_some_and(|list| !list.is_empty())
    );
    let version = bench.agent.run(&["version", "--output", "json"]).json();
    assert_eq!(version["command"], version["agent"]["version"]);
    for shell in ["bash", "zsh", "fish"] {
        assert!(bench.agent.run(&["completions", shell]).ok().contains("penstock"));
    }
    let _ = bench.agent.run(&["detach", "--all"]).ok();
    assert_eq!(bench.agent.run(&["list", "--output", "json"]).json().as_array().map(Vec::len), Some(0));
    assert!(fs::read_dir(&mount).expect("the mount point").next().is_none(), "nothing is mounted");
}

#[test]
fn the_metrics_speak_of_what_was_done() {
    require!(cannot());
    let bench = bench();
    let device = bench.agent.attach(&bench.reference(), &["--transport", "fuse"]);
    let file = fs::File::open(text(&device["device_path"])).expect("the device");
    assert_eq!(penstock_tests::tree::sha256(file).expect("every byte"), fixture::DEVICE_SHA256);
    let metrics = bench.agent.http(&penstock_tests::http::Request::get("/metrics")).expect("an answer");
    assert_eq!(metrics.status, 200);
    let text = metrics.text();
    assert!(text.ends_with("# EOF\n"), "it is OpenMetrics");
    for part in ["fetcher", "cache", "device"] {
        let moved =
            text.lines().filter(|line| line.starts_with("penstock_") && line.contains(part) && line.contains("_total"));
        let moved = moved.filter(|line| line.rsplit(' ').next().is_some_and(|value| value != "0"));
        assert!(moved.count() > 0, "no counter of {part} moved:\n{text}");
    }
    assert!(!text.contains("sha256:"), "digests are no labels");
}
