//! The kernel's and `fsck.erofs`' judgement of devices made of ordinary layers, against GNU tar's.

use std::{
    fs,
    io::{BufWriter, Write as _},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{PermissionsExt as _, symlink},
    },
    path::{Path, PathBuf},
    process::Command,
};

use penstock_tests::{
    everything,
    layer_device::{
        Tree, assert_same, blob_of, facts, materialise, materialise_merged, materialise_packed, mount, overlay, run,
    },
    layer_stack::Layer,
    require, skip,
    workdir::Workdir,
};

fn cannot() -> Option<String> {
    let programs = ["tar", "gzip", "fsck.erofs", "mknod"];
    skip::root()
        .or_else(|| programs.into_iter().find_map(skip::program))
        .or_else(skip::loop_devices)
        .or_else(|| ["overlay", "erofs"].into_iter().find_map(skip::filesystem))
}

/// An archive of `tree`, as a layer has it.
fn archive(tree: &Path, format: &[&str], out: &Path) {
    let mut tar = Command::new("tar");
    tar.args(["--sort=name", "--numeric-owner"]).args(format);
    run(tar.arg("-cf").arg(out).arg("-C").arg(tree).arg("."));
}

fn unpack(archive: &Path, dir: &Path, more: &[&str]) {
    fs::create_dir_all(dir).expect("a directory");
    let mut tar = Command::new("tar");
    tar.args(["--same-owner", "--numeric-owner", "-p", "--xattrs", "--xattrs-include=*"]).args(more);
    run(tar.arg("-xf").arg(archive).arg("-C").arg(dir));
}

/// The device of an archive, accepted by fsck, mounted.
fn mounted(work: &Workdir, archive: &Path, name: &str) -> PathBuf {
    let device = work.join(&format!("{name}.erofs"));
    materialise(archive, &work.dir(&format!("{name}.maps")), &device);
    run(Command::new("fsck.erofs").args(["-d1", "--extract"]).arg(&device));
    let dir = work.join(&format!("{name}.mnt"));
    mount(&device, &dir);
    dir
}

#[test]
fn the_kernel_sees_in_the_device_of_a_layer_what_tar_unpacks() {
    require!(cannot());
    let work = Workdir::new();
    let root = work.dir("root");
    everything::write(&root);
    for (name, format) in [
        ("gnu", &["--format=gnu"][..]),
        ("gnu-sparse", &["--format=gnu", "--sparse"]),
        ("pax", &["--format=pax", "--sparse", "--xattrs", "--xattrs-include=*"]),
    ] {
        let tar = work.join(&format!("{name}.tar"));
        archive(&root, format, &tar);
        let plain = work.join(&format!("{name}.plain"));
        unpack(&tar, &plain, &[]);
        let device = mounted(&work, &tar, name);
        assert_same(&facts(&device), &facts(&plain));
        work.unmount();
        // The same layer as registries hold it, by way of its index: the same device to the byte.
        let (packed, lazily) = (work.join("packed"), work.join("lazily.erofs"));
        fs::write(&packed, run(Command::new("gzip").args(["-1", "-n", "-c"]).arg(&tar))).expect("room");
        materialise_packed(&packed, blob_of(&tar).digest, &work.dir("lazily.maps"), &lazily);
        assert_eq!(blob_of(&lazily), blob_of(&work.join(&format!("{name}.erofs"))), "through gzip and index");
    }
}

/// A layer on top of others: a tree, the paths that it hides, and the directories that it makes opaque.
struct Change {
    tree: PathBuf,
    hidden: &'static [&'static str],
    opaque: &'static [&'static str],
}

/// Three layers of which the upper ones change, hide and bury what is below.
fn changes(work: &Workdir) -> Vec<Change> {
    let write = |dir: &Path, paths: &[&str]| {
        for path in paths {
            let path = dir.join(path);
            fs::create_dir_all(path.parent().expect("below the tree")).expect("room");
            fs::write(&path, format!("{} in {}", path.display(), dir.display())).expect("room");
        }
    };
    let dirs = ["bottom", "middle", "top"].map(|name| work.dir(name));
    write(
        &dirs[0],
        &["kept", "gone", "changed", "dir/kept", "dir/gone", "buried/a/b", "was-dir/x", "was-file", "twice"],
    );
    symlink("kept", dirs[0].join("link")).expect("room");
    write(&dirs[1], &["changed", "dir/new", "buried/c", "was-file/now/dir", "was-dir"]);
    write(&dirs[2], &["twice", "dir/new", "link"]);
    let [bottom, middle, top] = dirs;
    vec![
        Change { tree: bottom, hidden: &[], opaque: &[] },
        Change { tree: middle, hidden: &["gone", "dir/gone", "twice", "never-was"], opaque: &["buried"] },
        Change { tree: top, hidden: &["dir/kept"], opaque: &[] },
    ]
}

/// What the layers make together, unpacked by the rules of OCI: whiteouts first, then the rest, with GNU tar.
fn unpack_all(changes: &[Change], archives: &[PathBuf], root: &Path) {
    fs::create_dir_all(root).expect("room");
    for (change, archive) in changes.iter().zip(archives) {
        for path in change.hidden {
            let path = root.join(path);
            if path.is_dir() {
                fs::remove_dir_all(&path).expect("root may");
            } else if fs::symlink_metadata(&path).is_ok() {
                fs::remove_file(&path).expect("root may");
            }
        }
        for path in change.opaque {
            for entry in fs::read_dir(root.join(path)).expect("a directory") {
                let path = entry.expect("an entry").path();
                if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.expect("root may");
            }
        }
        // GNU tar does not replace a directory that holds something.
        for (path, facts) in facts(&change.tree) {
            let path = root.join(Path::new(std::ffi::OsStr::from_bytes(&path)));
            if facts.kind != 'd' && path.is_dir() && !path.is_symlink() {
                fs::remove_dir_all(path).expect("root may");
            }
        }
        unpack(archive, root, &["--exclude=.wh.*"]);
    }
}

#[test]
fn layers_over_each_other_show_what_unpacking_them_in_order_gives() {
    require!(cannot());
    let work = Workdir::new();
    let changes = changes(&work);
    let (mut archives, mut layers) = (Vec::new(), Vec::new());
    for (nth, change) in changes.iter().enumerate() {
        for path in change.hidden {
            let path = change.tree.join(path);
            let name = format!(".wh.{}", path.file_name().expect("a name").to_str().expect("UTF-8"));
            fs::write(path.with_file_name(name), "").expect("room");
        }
        for path in change.opaque {
            fs::write(change.tree.join(path).join(".wh..wh..opq"), "").expect("room");
        }
        let tar = work.join(&format!("{nth}.tar"));
        archive(&change.tree, &["--format=pax", "--mtime=2020-02-02 12:00:00.25"], &tar);
        layers.push(mounted(&work, &tar, &nth.to_string()));
        archives.push(tar);
    }
    let (plain, merged) = (work.join("plain"), work.join("merged"));
    unpack_all(&changes, &archives, &plain);
    overlay(&layers, &merged);
    let tree = facts(&merged);
    assert!(
        tree.contains_key(&b"buried/c"[..]) && !tree.contains_key(&b"buried/a"[..]) && !tree.contains_key(&b"gone"[..])
    );
    // overlayfs counts the names of a directory in its own way.
    let uncounted = |mut tree: Tree| {
        tree.values_mut().filter(|facts| facts.kind == 'd').for_each(|facts| facts.links = 0);
        tree
    };
    assert_same(&uncounted(tree), &uncounted(facts(&plain)));
}

/// Random stacks that are tried: a second or two.
const STACKS: u64 = 24;
const MOST_LAYERS: usize = 4;

#[test]
fn random_stacks_show_what_unpacking_them_gives_layer_by_layer_and_merged() {
    require!(cannot());
    for seed in 0..STACKS {
        let (work, mut random) = (Workdir::new(), fastrand::Rng::with_seed(seed));
        let (plain, mut archives, mut layers) = (work.dir("plain"), Vec::new(), Vec::new());
        for nth in 0..random.usize(1..=MOST_LAYERS) {
            let layer = Layer::random(&mut random).without_idle_whiteouts(&plain);
            layer.unpack(&plain);
            let (tar, device) = (work.join(&format!("{nth}.tar")), work.join(&format!("{nth}.erofs")));
            fs::write(&tar, layer.archive()).expect("room");
            archives.push(layer.archive());
            materialise(&tar, &work.dir(&format!("{nth}.maps")), &device);
            layers.push(work.join(&format!("{nth}.mnt")));
            mount(&device, &layers[nth]);
        }
        // Directories count their names in the way of their file system.
        let uncounted = |mut tree: Tree| {
            tree.values_mut().filter(|facts| facts.kind == 'd').for_each(|facts| facts.links = 0);
            tree
        };
        // Nor does overlayfs say of files of lower layers how many names are left, nor give them numbers of their own.
        let one_by_one = |mut tree: Tree| {
            tree.values_mut().for_each(|facts| (facts.links, facts.same_as) = (0, Vec::new()));
            tree
        };
        let expected = facts(&plain);
        println!("seed {seed}");
        let device = work.join("merged.erofs");
        materialise_merged(&archives, &work.dir("merged.maps"), &device);
        let (merged, stacked) = (work.join("merged"), work.join("stacked"));
        mount(&device, &merged);
        assert_same(&uncounted(facts(&merged)), &uncounted(expected.clone()));
        // One directory is no overlay.
        if layers.len() > 1 {
            overlay(&layers, &stacked);
            assert_same(&one_by_one(facts(&stacked)), &one_by_one(expected));
        }
        work.unmount();
    }
}

/// Files of a layer that is as large as they come.
const MANY: u64 = 1_000_000;
/// Files in one of its directories.
const IN_ONE: u64 = 1000;
/// One in so many of them has a content: its own number.
const WRITTEN: u64 = 997;
/// Bytes of a tar block.
const BLOCK: usize = 512;

fn path_of(nth: u64) -> String {
    format!("directory-{}/file-{nth}", nth / IN_ONE)
}

fn content_of(nth: u64) -> String {
    if nth.is_multiple_of(WRITTEN) { nth.to_string() } else { String::new() }
}

/// An archive of files in the ustar format (POSIX.1-2017, pax, "ustar Interchange Format"), whose directories are left out.
fn write_many(out: &Path) -> std::io::Result<()> {
    let mut template = [0; BLOCK];
    template[100..108].copy_from_slice(b"0000640\0");
    for number in [108, 116] {
        template[number..number + 8].copy_from_slice(b"0000000\0");
    }
    template[136..148].copy_from_slice(b"15000000000\0");
    template[156] = b'0';
    template[257..265].copy_from_slice(b"ustar\x0000");
    let mut out = BufWriter::new(fs::File::create(out)?);
    for nth in 0..MANY {
        let (path, content) = (path_of(nth), content_of(nth));
        let mut header = template;
        header[..path.len()].copy_from_slice(path.as_bytes());
        header[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
        // Of a checksum that is still blank.
        let sum: u32 = header.iter().copied().map(u32::from).sum::<u32>() + 8 * u32::from(b' ');
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        out.write_all(&header)?;
        if !content.is_empty() {
            out.write_all(content.as_bytes())?;
            out.write_all(&[0; BLOCK][content.len()..])?;
        }
    }
    out.write_all(&[0; 2 * BLOCK])?;
    out.flush()
}

#[test]
fn a_layer_of_a_million_files_is_accepted_by_fsck_and_shown_by_the_kernel() {
    require!(cannot());
    let work = Workdir::new();
    let (tar, device, dir) = (work.join("many.tar"), work.join("many.erofs"), work.join("many"));
    write_many(&tar).expect("room for the archive");
    let built = materialise(&tar, &work.dir("many.maps"), &device);
    assert_eq!(built.inodes, MANY + MANY / IN_ONE + 1, "files, directories, the root");
    run(Command::new("fsck.erofs").arg("-d1").arg(&device));
    mount(&device, &dir);
    let mut files = 0;
    for directory in fs::read_dir(&dir).expect("the root") {
        files += fs::read_dir(directory.expect("a directory").path()).expect("its files").count() as u64;
    }
    assert_eq!(files, MANY);
    for nth in (0..MANY).step_by(77 * 997).chain([1, MANY - 1]) {
        let path = dir.join(path_of(nth));
        assert_eq!(fs::read_to_string(&path).expect("a file"), content_of(nth), "{}", path.display());
        assert_eq!(fs::metadata(&path).expect("a file").permissions().mode(), 0o100_640);
    }
    work.unmount();
}
