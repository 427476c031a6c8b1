#!/bin/bash
# Boots a VM with a given kernel for one shell command as root, and exits with that command's status.
#
#   run-vm.sh -k KERNELDIR [options] -- 'shell command'
#
#   -k DIR        kernel as get-kernel.sh unpacks it (vmlinuz, modules/)
#   -m MODULE     load this module and those it depends on (repeatable)
#   -b PROGRAM    copy a program and its shared libraries to /bin (repeatable)
#   -f SRC[:DST]  copy a file or directory into the VM (repeatable)
#   -d IMAGE      a disk: its file, written to; /dev/vda in the VM (needs the module virtio_blk)
#   -o DIR        afterwards copy what the command left in /out to DIR, with the kernel's log as console.log
#   -c CPUS -M MEM -t SECONDS   2, 1G and 300 unless given
#   -a ACCEL      tcg (default: runs anywhere), kvm, or icount: TCG with a clock that counts guest instructions (1 ns each), so
#                 that times do not depend on the host's load and sleeping costs nothing; one CPU
#   -v            show the kernel log as well
#
# There is no disk and no root file system: each run makes an initramfs of static busybox, the named modules, programs and files.
# Needs qemu-system-x86_64, busybox (static), cpio, xz (zstd where modules are packed so); no root.
#
# Exit status: the command's; 120 no status came back (panic or time limit), 121 a module did not load, 2 a mistake in the call.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

usage() { sed -n '2,/^set -/p' "$0" | sed '$d; s/^# \{0,1\}//' >&2; exit 2; }
wrong() { echo "run-vm: $*" >&2; exit 2; }

kernel= outdir= disk= cpus=2 memory=1G limit=300 accel=tcg verbose=
modules=() programs=() files=()
while getopts k:m:b:f:o:d:c:M:t:a:v option; do
	case $option in
	k) kernel=$OPTARG ;; m) modules+=("$OPTARG") ;; b) programs+=("$OPTARG") ;;
	f) files+=("$OPTARG") ;; o) outdir=$OPTARG ;; d) disk=$OPTARG ;; c) cpus=$OPTARG ;;
	M) memory=$OPTARG ;; t) limit=$OPTARG ;; a) accel=$OPTARG ;; v) verbose=1 ;;
	*) usage ;;
	esac
done
shift $((OPTIND - 1))
[ -n "$kernel" ] && [ $# -gt 0 ] || usage
[ -e "$kernel/vmlinuz" ] || wrong "no kernel in $kernel; run get-kernel.sh $kernel"
for program in qemu-system-x86_64 busybox cpio; do
	command -v "$program" >/dev/null || wrong "$program is not installed"
done

work=$(mktemp -d "${TMPDIR:-/tmp}/run-vm.XXXXXX")
trap 'rm -rf "$work"' EXIT
root=$work/root
mkdir -p "$root"/{bin,sbin,usr,dev,proc,sys,etc,modules,lib,lib64,out}

cp "$(command -v busybox)" "$root/bin/busybox"
ln -s busybox "$root/bin/sh"
install -m 755 "$here/init" "$root/init"
printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n' >"$root/etc/passwd"
printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/etc/group"
printf '%s\n' "$*" >"$root/cmd"

unpack() {
	case $1 in
	*.xz) xz -dc "$1" ;; *.zst) zstd -dc "$1" ;; *.gz) gzip -dc "$1" ;; *) cat "$1" ;;
	esac
}

# Modules in load order. Debian's packages carry no modules.dep: each module names what it depends on.
declare -A seen=()
: >"$root/modules/order"
add_module() {
	local name=${1//-/_} path dependency
	[ -z "${seen[$name]:-}" ] || return 0
	seen[$name]=1
	# - and _ are the same in module names
	local pattern="/${name//_/[-_]}\.ko"
	path=$(find -H "$kernel/modules/kernel" -name '*.ko*' | grep -E "$pattern(\.[a-z]+)?$" | head -1 || true)
	if [ -z "$path" ]; then
		grep -qsE "$pattern$" "$kernel/modules/modules.builtin" && return 0
		wrong "no module $1 in $kernel"
	fi
	unpack "$path" >"$root/modules/$name.ko"
	for dependency in $(tr '\0' '\n' <"$root/modules/$name.ko" | sed -n 's/^depends=//p' | tr ',' ' '); do
		add_module "$dependency"
	done
	echo "$name.ko" >>"$root/modules/order"
}

# A program in /bin, its libraries at the paths it names. ldd fails on a static program: nothing to copy then.
add_program() {
	local path library
	path=$(command -v "$1") || wrong "no program $1"
	cp -L "$path" "$root/bin/$(basename "$1")"
	for library in $(ldd "$path" 2>/dev/null | grep -o '/[^ )]*' || true); do
		[ -e "$root$library" ] && continue
		mkdir -p "$root$(dirname "$library")"
		cp -L "$library" "$root$library"
	done
}

add_file() {
	local source=${1%%:*} target=${1#*:}
	mkdir -p "$root$(dirname "/$target")"
	cp -rL "$source" "$root/$target"
}

for module in ${modules[@]+"${modules[@]}"}; do add_module "$module"; done
for program in ${programs[@]+"${programs[@]}"}; do add_program "$program"; done
for file in ${files[@]+"${files[@]}"}; do add_file "$file"; done
(cd "$root" && find . -print0 | cpio --null -o -H newc --quiet) >"$work/initrd"
rm -rf "$root"

append="console=ttyS0 panic=-1 mitigations=off cryptomgr.notests random.trust_cpu=on"
[ -n "$verbose" ] || append+=" loglevel=5"
# Without cx16: QEMU 7.2's emulation of cmpxchg16b corrupts the flags, and the kernel's allocator, which uses it, panics in most
# boots (17 of 18 on a loaded machine; 0 of 12 without). One thread for all CPUs: while one patches the kernel's text (static keys), another
# that is emulated at the same time may run into the breakpoint that stands there meanwhile, which is an oops (1 boot of some 60).
case $accel in
tcg) args=(-accel tcg,thread=single -cpu max,-cx16) ;;
icount) args=(-accel tcg,thread=single -cpu max,-cx16,-erms,-fsrm -icount shift=0,sleep=off) cpus=1 ;;
kvm) args=(-accel kvm -cpu host) ;;
*) wrong "accelerator $accel?" ;;
esac
args+=(-smp "$cpus" -m "$memory"
	-machine pc -nodefaults -no-user-config -display none -no-reboot
	-kernel "$kernel/vmlinuz" -initrd "$work/initrd" -append "$append"
	-chardev "file,id=con,path=$work/console" -serial chardev:con
	-device virtio-serial-pci
	-chardev "file,id=out,path=$work/out.fifo" -device virtserialport,chardev=out,name=out
	-chardev "file,id=res,path=$work/res" -device virtserialport,chardev=res,name=res
	-object rng-random,filename=/dev/urandom,id=rng -device virtio-rng-pci,rng=rng)
[ -z "$disk" ] || args+=(-drive "file=$disk,format=raw,if=virtio,cache=writeback")
# The command's output comes through a FIFO: QEMU takes the end of a stdio chardev's input for a hang-up, and the guest then
# blocks.
mkfifo "$work/out.fifo"
cat "$work/out.fifo" &
timeout --foreground "$limit" qemu-system-x86_64 "${args[@]}" </dev/null && ended= || ended=$?
wait

mkdir "$work/out"
tar -C "$work/out" -xf "$work/res" 2>/dev/null || true
if [ -n "$outdir" ]; then
	mkdir -p "$outdir"
	cp -r "$work/out/." "$outdir/"
	rm -f "$outdir/.status"
	cp "$work/console" "$outdir/console.log"
fi
[ -z "$verbose" ] || tr -d '\r' <"$work/console" >&2
if [ ! -s "$work/out/.status" ]; then
	echo "run-vm: no exit status${ended:+ (qemu ended with $ended; 124 is the time limit of $limit s)}; end of the kernel log:" >&2
	tr -d '\r' <"$work/console" | tail -40 >&2
	exit 120
fi
exit "$(cat "$work/out/.status")"
