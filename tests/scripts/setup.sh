#!/bin/bash
# Installs what the build (and the tests) lack on Debian or Ubuntu, after saying what. Only missing packages; as root or through sudo;
# where neither is possible it says what to install and stops. On other systems it lists what is needed and goes on.
#
#   setup.sh build [test] [package]
set -euo pipefail
cd "$(dirname "$0")/../.."

# A C and C++ compiler for zstd, ring and libFuzzer; libclang for bindgen (ublk's header).
build=(gcc g++ libc6-dev make libclang-dev ca-certificates)
# File systems to make and mount, a real registry, a container runtime, a machine to boot, jq to read what cargo prints, a browser for the page.
test=(
	e2fsprogs erofs-utils squashfs-tools xfsprogs fuse3 mount kmod
	docker-registry nginx openssl
	containerd runc
	qemu-system-x86 qemu-utils busybox-static cpio xz-utils zstd
	jq procps strace
	chromium-headless-shell
	mmdebstrap man-db
	umoci skopeo pigz
)
# What packages and images are made with.
package=(dpkg-dev binutils jq buildah busybox-static)
wanted=("${build[@]}")
for group in "$@"; do
	[ "$group" != test ] || wanted+=("${test[@]}" "${package[@]}")
	[ "$group" != package ] || wanted+=("${package[@]}")
done

say() { echo "setup: $*" >&2; }

# The pinned compiler's own version file, read without a parser.
channel=$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
no_toolchain() {
	say "Rust $channel is needed (rust-toolchain.toml) and $1."
	say "Install rustup (rust-lang.org says how, or the package 'rustup' of a newer Debian or Ubuntu), then run this again."
	exit 1
}

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
	say "not Debian or Ubuntu: not checking for packages; needed are the equivalents of: ${wanted[*]}"
	command -v cargo >/dev/null || no_toolchain "there is no cargo"
	exit 0
fi

look() {
	local package status
	missing=()
	for package in "${wanted[@]}"; do
		status=$(dpkg-query -W -f='${db:Status-Abbrev}' "$package" 2>/dev/null || true)
		[[ $status == ?i* ]] || missing+=("$package")
	done
}

as_root=()
if [ "$(id -u)" != 0 ]; then
	if ! command -v sudo >/dev/null; then
		as_root=(false)
	elif [ -t 0 ]; then
		as_root=(sudo)
	else
		as_root=(sudo -n)
	fi
fi
install() {
	say "installing with apt: $*"
	if [ "${as_root[*]}" = false ] || ! "${as_root[@]}" true 2>/dev/null; then
		say "that needs root; run: apt-get install --no-install-recommends $*"
		exit 1
	fi
	local log
	log=$(mktemp)
	# An update first: a machine that was never updated knows no package, a stale one knows only files that are gone.
	if ! { "${as_root[@]}" apt-get -q update && "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
		apt-get -q -y install --no-install-recommends "$@"; } >"$log" 2>&1 </dev/null; then
		tail -20 "$log" >&2
		say "apt failed (above); its whole output is in $log"
		exit 1
	fi
	rm -f "$log"
}
look
if [ ${#missing[@]} != 0 ]; then
	install "${missing[@]}"
	# apt removes what does not go with a new package, such as a qemu-utils from somewhere else.
	look
	[ ${#missing[@]} = 0 ] || install "${missing[@]}"
fi

if ! command -v cargo >/dev/null; then
	# Debian 13 and Ubuntu 24.04 have rustup, Debian 12 has not.
	[ -n "$(apt-cache search --names-only '^rustup$' 2>/dev/null)" ] || no_toolchain "there is no cargo"
	install rustup
fi
if command -v rustup >/dev/null; then
	# rustup installs the toolchain of rust-toolchain.toml: older versions when it is shown, newer ones when asked.
	rustup show active-toolchain >/dev/null 2>&1 || rustup toolchain install >&2 || no_toolchain "rustup could not install it"
	cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1 ||
		rustup component add rustfmt clippy >&2 || no_toolchain "rustup could not add rustfmt and clippy"
fi
found=$(rustc --version 2>/dev/null | cut -d' ' -f2)
[ "$(printf '%s\n' "$channel" "${found:-0}" | sort -V | head -1)" = "$channel" ] || no_toolchain "rustc here is ${found:-missing}"
