//! The kernel's and `fsck.erofs`' judgement of devices made of ordinary layers, against GNU tar's.

use std::{
    fs::{self, File},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{FileExt as _, PermissionsExt as _, symlink},
    },
    path::{Path, PathBuf},
    process::Command,
};

use penstock_tests::{
    layer_device::{Tree, assert_same, blob_of, facts, materialise, materialise_packed, mount, overlay, run},
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

fn own(path: &Path, uid: u32, gid: u32) {
    std::os::unix::fs::lchown(path, Some(uid), Some(gid)).expect("root may");
}

/// One of everything that a layer can hold.
fn everything(root: &Path) {
    fs::create_dir_all(root.join("dir/empty")).expect("room");
    fs::create_dir_all(root.join("big")).expect("room");
    for nth in 0..3000 {
        fs::write(root.join(format!("big/{nth:04}-{}", "n".repeat(nth % 200))), nth.to_string()).expect("room");
    }
    for size in [0, 1, 511, 512, 513, 4095, 4096, 4097, 70_001, 1 << 20] {
        fs::write(root.join(format!("size-{size}")), vec![b'x'; size]).expect("room");
    }
    for name in ["-", "+before-dot", ".hidden", "..two", "ünïcödé", "with space", "new\nline"] {
        fs::write(root.join("dir").join(name), name).expect("room");
    }
    fs::write(root.join("dir").join("l".repeat(255)), "long").expect("room");
    symlink("t".repeat(4000), root.join("long-link")).expect("room");
    symlink("s".repeat(4090), root.join("longer-link")).expect("room");
    symlink("dir/empty", root.join("link")).expect("room");
    for nth in 0..5 {
        fs::hard_link(root.join("size-513"), root.join(format!("dir/again-{nth}"))).expect("room");
    }
    let sparse = File::create(root.join("sparse")).expect("room");
    for island in 0..40_u8 {
        sparse.write_all_at(&[island + 1; 4096], u64::from(island) * 65_536).expect("room");
    }
    sparse.set_len((4 << 20) + 7).expect("room");
    File::create(root.join("hole")).expect("room").set_len(2 << 20).expect("room");
    for (name, kind, numbers) in
        [("char", "c", "5 1"), ("block", "b", "259 70000"), ("fifo", "p", ""), ("char2", "c", "4095 1048575")]
    {
        run(Command::new("mknod").arg(root.join(name)).arg(kind).args(numbers.split_whitespace()));
    }
    own(&root.join("size-1"), 70_000, 4_000_000_000);
    own(&root.join("link"), 12, 34);
    own(&root.join("dir"), 1000, 1000);
    fs::set_permissions(root.join("size-512"), fs::Permissions::from_mode(0o6711)).expect("root may");
    fs::set_permissions(root.join("dir/empty"), fs::Permissions::from_mode(0o1777)).expect("root may");
    attributes(root);
    for (path, time) in
        [("size-0", "1969-07-20 20:17:40.5"), ("size-4096", "2100-01-01"), ("dir", "2001-02-03 04:05:06")]
    {
        run(Command::new("touch").args(["-d", time]).arg(root.join(path)));
    }
}

fn attributes(root: &Path) {
    let set = |path: &str, name: &str, value: &[u8]| {
        let set = rustix::fs::lsetxattr(root.join(path), name, value, rustix::fs::XattrFlags::empty());
        set.unwrap_or_else(|error| panic!("{path}, {name}: {error}"));
    };
    set("size-1", "user.own", b"only here");
    set("size-1", "user.binary", b"\x00\xff\n=\x00");
    set("size-4097", "user.large", &[b'v'; 3000]);
    set("dir", "trusted.one", b"1");
    set("link", "security.label", b"on a link");
    for nth in 0..20 {
        set(&format!("big/{nth:04}-{}", "n".repeat(nth)), "security.selinux", b"system_u:object_r:bin_t:s0");
    }
    // cap_net_raw, permitted and effective: revision 2 of `struct vfs_cap_data`.
    let capability = [0x0200_0001_u32, 1 << 13, 0, 0, 0].map(u32::to_le_bytes).concat();
    set("size-70001", "security.capability", &capability);
}

#[test]
fn the_kernel_sees_in_the_device_of_a_layer_what_tar_unpacks() {
    require!(cannot());
    let work = Workdir::new();
    let root = work.dir("root");
    everything(&root);
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

/// Directories of the system that this runs on: real files, by the thousands.
const SYSTEM: [&str; 5] = ["etc", "usr/lib/systemd", "usr/share/zoneinfo", "var/lib/dpkg", "usr/lib/python3"];

#[test]
fn a_system_seen_through_its_device_is_the_system() {
    require!(cannot());
    let work = Workdir::new();
    let tar = work.join("system.tar");
    let there = SYSTEM.into_iter().filter(|dir| Path::new("/").join(dir).is_dir());
    let mut command = Command::new("tar");
    command.args(["--sort=name", "--numeric-owner", "--format=pax", "--sparse", "--xattrs", "--xattrs-include=*"]);
    run(command.arg("-cf").arg(&tar).args(["-C", "/"]).args(there));
    let plain = work.join("plain");
    unpack(&tar, &plain, &[]);
    let device = mounted(&work, &tar, "system");
    // The same layer as registries hold it, by way of its index: the same device to the byte.
    let (packed, lazily) = (work.join("system.tar.gz"), work.join("lazily.erofs"));
    let gzip = run(Command::new("gzip").args(["-1", "-n", "-c"]).arg(&tar));
    fs::write(&packed, gzip).expect("room");
    materialise_packed(&packed, blob_of(&tar).digest, &work.dir("lazily.maps"), &lazily);
    assert_eq!(blob_of(&lazily), blob_of(&work.join("system.erofs")), "through gzip and index");
    let (found, mut expected) = (facts(&device), facts(&plain));
    // Directories that the archive leaves out are the unpacker's affair.
    for path in ["", "usr", "usr/lib", "usr/share", "var", "var/lib"] {
        match found.get(path.as_bytes()) {
            Some(facts) => expected.insert(path.as_bytes().to_vec(), facts.clone()),
            None => expected.remove(path.as_bytes()),
        };
    }
    assert!(found.len() > 500, "{} paths", found.len());
    assert_same(&found, &expected);
}
