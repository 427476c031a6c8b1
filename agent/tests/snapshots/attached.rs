//! A whole ordinary image attached by an operator: one device, whose tree is the one that unpacking its layers makes.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use clap::Parser as _;
use penstock_agent::{
    Accept, Agent, Config,
    cli::{Cli, Command as Typed},
    convert,
};
use penstock_api as api;
use penstock_blob::Digest;

use super::{
    Bench, Image, cannot_mount, kinds,
    ordinary::{packed, run},
    pushed::make,
};

/// A tar header (POSIX 1003.1, ustar) of a hard link to a file of a layer below: no `tar` writes one, image builders do.
fn link_below(path: &str, target: &str) -> Vec<u8> {
    let mut header = vec![0; 512];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, path);
    ["0000644\0", "0000000\0", "0000000\0"].iter().enumerate().for_each(|(nth, field)| put(100 + 8 * nth, field));
    ["00000000000\0", "00000000000\0"].iter().enumerate().for_each(|(nth, field)| put(124 + 12 * nth, field));
    put(148, "        1");
    put(157, target);
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

/// Three archives. The second hides names of the first, replaces a file and empties a directory; the third says nothing of the directories that its file
/// lies in, and has a hard link to a file of the first.
fn archives(bench: &Bench) -> Vec<Vec<u8>> {
    let [lower, upper] = <[PathBuf; 2]>::try_from(bench.trees()).unwrap();
    fs::set_permissions(lower.join("etc/kept.d"), fs::Permissions::from_mode(0o2750)).unwrap();
    std::os::unix::fs::chown(lower.join("etc/kept.d"), Some(12), Some(70_000)).unwrap();
    for (path, text) in [("etc/emptied.d/old", "old"), ("etc/emptied.d/deep/old", "old"), ("srv/dir/file", "x")] {
        fs::create_dir_all(lower.join(path).parent().unwrap()).unwrap();
        fs::write(lower.join(path), text).unwrap();
    }
    std::os::unix::fs::symlink("etc/kept.d", lower.join("link")).unwrap();
    fs::create_dir_all(upper.join("etc/emptied.d")).unwrap();
    for (path, text) in [("etc/emptied.d/.wh..wh..opq", ""), ("etc/emptied.d/new", "new"), ("srv", "a file now")] {
        fs::write(upper.join(path), text).unwrap();
    }
    let tar = |dir: &Path, what: &[&str]| {
        run(Command::new("tar").arg("-C").arg(dir).args(["--numeric-owner", "-cf", "-"]).args(what))
    };
    let third = bench.dir.path().join("third");
    fs::create_dir_all(third.join("etc/kept.d")).unwrap();
    fs::write(third.join("etc/kept.d/more"), "more").unwrap();
    let mut implied = tar(&third, &["etc/kept.d/more"]);
    // Its end, two blocks of zeros and padding, comes after the link.
    let end = implied.iter().rposition(|byte| *byte != 0).unwrap().next_multiple_of(512);
    implied.splice(end..end, link_below("etc/again", "etc/kept.d/b"));
    vec![tar(&lower, &["."]), tar(&upper, &["."]), implied]
}

/// Unpacks a layer over those below, by the rules of the OCI image specification: what it hides goes first.
fn unpack(archive: &[u8], root: &Path) {
    let file = root.with_extension("layer");
    fs::write(&file, archive).unwrap();
    let names = String::from_utf8(run(Command::new("tar").arg("-tf").arg(&file))).unwrap();
    for name in names.lines() {
        let path = root.join(name);
        let dir = path.parent().unwrap().to_path_buf();
        let last = path.file_name().unwrap_or_default().to_str().unwrap();
        let gone: Vec<PathBuf> = match last.strip_prefix(".wh.") {
            Some(".wh..opq") => fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect(),
            Some(hidden) => vec![dir.join(hidden)],
            // A directory that is none any more.
            None if !name.ends_with('/') && path.symlink_metadata().is_ok_and(|there| there.is_dir()) => vec![path],
            None => Vec::new(),
        };
        gone.iter().for_each(|path| drop(run(Command::new("rm").arg("-r").arg(path))));
    }
    let how = ["--same-owner", "--numeric-owner", "-p", "--exclude=.wh.*", "-xf"];
    run(Command::new("tar").arg("-C").arg(root).args(how).arg(&file));
}

/// What is told of each path: all but the times of directories, which the kernel sets while others unpack into them.
pub(super) fn tree(root: &Path) -> BTreeMap<PathBuf, String> {
    let (mut found, mut dirs) = (BTreeMap::new(), vec![root.to_path_buf()]);
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let metadata = path.symlink_metadata().unwrap();
            let what = match metadata.file_type() {
                kind if kind.is_dir() => {
                    dirs.push(path.clone());
                    "directory".to_owned()
                }
                kind if kind.is_symlink() => format!("-> {}", fs::read_link(&path).unwrap().display()),
                kind if kind.is_file() => {
                    format!("{} x{} {}", Digest::of(&fs::read(&path).unwrap()), metadata.nlink(), metadata.mtime())
                }
                kind => format!("{kind:?} {}", metadata.rdev()),
            };
            let facts = format!("{:o} {}:{} {what}", metadata.mode(), metadata.uid(), metadata.gid());
            found.insert(path.strip_prefix(root).unwrap().to_path_buf(), facts);
        }
    }
    found
}

/// As [`tree`], off the runtime, which serves the misses.
pub(super) async fn seen(root: &Path) -> BTreeMap<PathBuf, String> {
    let root = root.to_path_buf();
    tokio::task::spawn_blocking(move || tree(&root)).await.unwrap()
}

pub(super) fn request(image: &Image, mount: &Path) -> api::Attach {
    api::Attach {
        reference: image.reference.clone(),
        mount: Some(mount.to_path_buf()),
        transport: api::Wanted::Auto,
        platform: None,
        require_verified: false,
        policy: api::PolicyChange::default(),
    }
}

pub(super) fn mount_point(bench: &Bench) -> PathBuf {
    let dir = bench.dir.path().join("mounted");
    fs::create_dir_all(&dir).unwrap();
    dir
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_ordinary_image_is_one_device_with_the_tree_that_unpacking_makes_also_after_a_restart_without_registry()
{
    require_mounts!();
    let bench = Bench::new().await;
    let (archives, unpacked) = (archives(&bench), bench.dir.path().join("unpacked"));
    fs::create_dir(&unpacked).unwrap();
    archives.iter().for_each(|archive| unpack(archive, &unpacked));
    let image = bench.put_archives("plain", archives.iter().map(|archive| packed(archive)).collect());
    make(&image, &[]).await;
    let config = || Config { layers_accept: Accept::All, ..bench.config() };
    let agent = Agent::start(config()).await.unwrap();
    let dir = mount_point(&bench);
    let device = agent.node().attach(request(&image, &dir)).await.unwrap();
    assert!(device.image.starts_with("ordinary image, 3 layers"), "{device:?}");
    assert!(device.verified_by.contains("sha256 of every frame"), "{}", device.verified_by);
    let expected = tree(&unpacked);
    assert!(expected[Path::new("etc/kept.d")].starts_with("42750 12:70000"), "{expected:?}");
    assert!(expected.contains_key(Path::new("etc/again")) && !expected.contains_key(Path::new("etc/gone")));
    assert_eq!(seen(&dir).await, expected);
    assert_eq!(agent.node().devices().await.unwrap().len(), 1);
    agent.stop().await.unwrap();

    bench.registry.set_down(true);
    let agent = Agent::start(config()).await.unwrap();
    assert_eq!(seen(&dir).await, expected, "{:?}", kinds(&agent).await);
    let [device] = &agent.node().devices().await.unwrap()[..] else { panic!("one device") };
    agent.node().detach(&device.id, false).await.unwrap();
    assert_eq!((bench.records(), fs::read_dir(&dir).unwrap().count()), (0, 0));
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_in_a_foreign_format_is_one_device_too_and_one_without_indexes_says_what_to_do() {
    require_mounts!();
    let bench = Bench::new().await;
    let agent = Agent::start(bench.config()).await.unwrap();
    let dir = mount_point(&bench);
    let image = bench.put_kept("estargz");
    let device = agent.node().attach(request(&image, &dir)).await.unwrap();
    assert!(!seen(&dir).await.is_empty() && device.layers.count == image.layers.len(), "{device:?}");
    agent.node().detach(&device.id, false).await.unwrap();
    let plain = bench.put_ordinary("plain", &bench.trees());
    let refused = agent.node().attach(request(&plain, &dir)).await.unwrap_err().to_string();
    assert!(refused.contains("layer 1 of 2") && refused.contains("penstock index"), "{refused}");
    agent.stop().await.unwrap();
}

/// Runs `penstock convert`; what it wrote, to be attached.
pub(super) async fn converted(image: &Image, form: &str) -> Image {
    let to = format!("{}-{form}", image.reference);
    let typed = ["penstock", "convert", &image.reference, &to, "--to", form];
    let Typed::Convert(args) = Cli::try_parse_from(typed).unwrap().command else { panic!("another command") };
    tokio::task::spawn_blocking(move || convert::run(&args)).await.unwrap().unwrap();
    Image { reference: to, ..image.clone() }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_an_ordinary_image_is_converted_to_has_the_tree_that_unpacking_makes() {
    require_mounts!();
    let bench = Bench::new().await;
    let (archives, unpacked) = (archives(&bench), bench.dir.path().join("unpacked"));
    fs::create_dir(&unpacked).unwrap();
    archives.iter().for_each(|archive| unpack(archive, &unpacked));
    let image = bench.put_archives("plain", archives.iter().map(|archive| packed(archive)).collect());
    let (expected, dir) = (tree(&unpacked), mount_point(&bench));
    let agent = Agent::start(bench.config()).await.unwrap();
    for (form, what) in
        [("overlaybd", "overlaybd, 1 layer"), ("overlaybd-layers", "overlaybd, 3 layers"), ("raw", "raw erofs disk")]
    {
        let made = converted(&image, form).await;
        let device = agent.node().attach(request(&made, &dir)).await.unwrap();
        assert_eq!(device.image, what);
        assert_eq!(seen(&dir).await, expected, "{form}");
        agent.node().detach(&device.id, false).await.unwrap();
    }
    agent.stop().await.unwrap();
}
