//! A tree with one of everything that a layer can hold.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt as _, PermissionsExt as _, symlink},
    path::Path,
    process::Command,
};

use crate::layer_device::run;

/// Writes one of everything that a layer can hold below `root`: sizes around blocks, names, links, devices, holes, owners, modes, times, attributes.
///
/// # Panics
/// When something cannot be made: only root may.
pub fn write(root: &Path) {
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
    for (path, uid, gid) in [("size-1", 70_000, 4_000_000_000), ("link", 12, 34), ("dir", 1000, 1000)] {
        std::os::unix::fs::lchown(root.join(path), Some(uid), Some(gid)).expect("root may");
    }
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
    set("dir", "user.one", b"1");
    set("link", "security.label", b"on a link");
    for nth in 0..20 {
        set(&format!("big/{nth:04}-{}", "n".repeat(nth)), "security.selinux", b"system_u:object_r:bin_t:s0");
    }
    // cap_net_raw, permitted and effective: revision 2 of `struct vfs_cap_data`.
    let capability = [0x0200_0001_u32, 1 << 13, 0, 0, 0].map(u32::to_le_bytes).concat();
    set("size-70001", "security.capability", &capability);
}
