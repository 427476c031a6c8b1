#!/bin/bash
# The ublk transport of the crate `device` on a real kernel, without the rest: makes an EROFS and an ext4 disk, boots a VM,
# runs device-guest.sh there with the example program `serve`.
#
#   device.sh KERNELDIR [SERVE]
#
# KERNELDIR is filled by get-kernel.sh. SERVE is the example, built when it is not given. Needs qemu-system-x86, busybox-static,
# cpio, xz-utils, erofs-utils, e2fsprogs; no root.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
kernel=${1:?the directory that get-kernel.sh filled}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ $# -ge 2 ]; then
	serve=$2
else
	target=${CARGO_TARGET_DIR:-$here/../../target}
	(cd "$here/../.." && cargo build --quiet -p penstock-device --example serve)
	serve=$target/debug/examples/serve
fi
strip -o "$work/serve" "$serve"

mkdir -p "$work/tree/sub"
for i in 1 2 3 4 5 6; do head -c 1500000 /dev/urandom >"$work/tree/big$i"; done
for i in $(seq 100); do head -c $((i * 150)) /dev/urandom >"$work/tree/sub/small$i"; done
(cd "$work/tree" && find . -type f -print0 | sort -z | xargs -0 sha256sum) >"$work/sums"
mkfs.erofs --quiet "$work/erofs.img" "$work/tree"
mke2fs -q -t ext4 -d "$work/tree" "$work/ext4.img" 16M
for disk in erofs ext4; do sha256sum <"$work/$disk.img" | cut -d' ' -f1 >"$work/$disk.img.sha256"; done

files=()
for file in erofs.img erofs.img.sha256 ext4.img ext4.img.sha256 sums; do files+=(-f "$work/$file:/$file"); done
"$here/run-vm.sh" -k "$kernel" -t "${LIMIT_SECONDS:-300}" -m ublk_drv -m erofs -m ext4 -b "$work/serve" "${files[@]}" \
	-f "$here/device-guest.sh:/device-guest.sh" -- 'sh /device-guest.sh'
