#!/bin/bash
# Measures block devices of ublk in a VM whose clock counts instructions: warm reads against the kernel's loop device on the same file, and
# 200 devices at once. The load of this machine does not matter; the times are those of a processor of 10^9 instructions a second, and say
# nothing by themselves: compare them with each other. The file has half of the bytes after which the cache drops the pages below, so that most passes
# find them where they shall be.
#
#   bench.sh KERNELDIR PENSTOCK-BENCH [RESULTS]
#
# KERNELDIR is filled by get-kernel.sh; RESULTS gets the JSON. Needs what run-vm.sh needs, and erofs-utils, e2fsprogs, util-linux.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
kernel=${1:?the directory that get-kernel.sh filled}
bench=${2:?the program penstock-bench}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# A real file system, as on a node: what tmpfs does with direct reads is another matter.
mke2fs -q -t ext4 "$work/disk" 2G
strip -o "$work/penstock-bench" "$bench"
programs=()
for program in mkfs.erofs mount umount fincore; do programs+=(-b "$(PATH=$PATH:/sbin:/usr/sbin command -v $program)"); done
"$here/run-vm.sh" -k "$kernel" -a icount -t "${LIMIT_SECONDS:-1500}" -M 3G -d "$work/disk" -o "$work/out" \
	-m ublk_drv -m erofs -m loop -m ext4 -m virtio_blk -b "$work/penstock-bench" "${programs[@]}" -- '
		ulimit -n 65536
		mkdir -p /state && mount -t ext4 /dev/vda /state && export TMPDIR=/state
		common="--latency-ms 0 --bandwidth-mb 10000 --results /out --dir /state"
		penstock-bench warm --n 7 --size-mib 4 $common && penstock-bench many --n 200 $common'
if [ $# -ge 3 ]; then
	mkdir -p "$3"
	for file in "$work"/out/*.json; do cp "$file" "$3/vm-$(basename "$file")"; done
fi
