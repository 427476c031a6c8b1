#!/bin/sh
# Fetches a Debian cloud kernel (image and modules) and unpacks it. Installs nothing and leaves apt's configuration alone.
#
#   get-kernel.sh DESTDIR [SUITE] [VERSION-PREFIX]
#
#   SUITE           bookworm-backports (default, 6.12), trixie (6.12), trixie-backports (6.16 and later), ...
#   VERSION-PREFIX  such as 6.12 or 6.18.15; default: the newest of the suite
#
# Leaves DESTDIR/vmlinuz, DESTDIR/config and DESTDIR/modules (links into what was unpacked); does nothing when DESTDIR/vmlinuz
# exists. DESTDIR appears whole or not at all. Needs apt-get and dpkg-deb; no root. Debian 12's own kernel (6.1) is of no use here:
# it is built without ublk.
set -eu
dest=${1:?destination directory}
suite=${2:-bookworm-backports}
prefix=${3:-}
[ ! -e "$dest/vmlinuz" ] || exit 0

# The archive that this machine's apt uses already.
sources=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null || :)
mirror=${DEBIAN_MIRROR:-$(echo "$sources" | grep -oE 'https?://[^ ]+/debian/?( |$)' | head -1 | tr -d ' ')}
keyring=${DEBIAN_KEYRING:-/usr/share/keyrings/debian-archive-keyring.gpg}
[ -n "$mirror" ] || { echo "get-kernel: apt names no Debian archive; set DEBIAN_MIRROR" >&2; exit 1; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/state/lists/partial" "$work/cache/archives/partial"
echo "deb [signed-by=$keyring] $mirror $suite main" >"$work/sources.list"
# apt COMMAND...: with a state of its own, and without the sandbox user, which only root can become.
apt() {
	command=$1
	shift
	"$command" -q -o Dir::State="$work/state" -o Dir::Cache="$work/cache" -o Dir::Etc::sourcelist="$work/sources.list" \
		-o Dir::Etc::sourceparts=- -o APT::Sandbox::User= "$@"
}
# logged COMMAND...: quiet unless it fails.
logged() {
	"$@" >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
}
available() { apt apt-cache policy "$1" | grep -q 'Candidate: [0-9]'; }

logged apt apt-get update

# Newest first; the search also finds names that only other packages mention.
image=
for package in $(apt apt-cache search --names-only '^linux-image-[0-9].*-cloud-amd64(-unsigned)?$' | cut -d' ' -f1 |
	grep "^linux-image-$prefix" | sort -rV); do
	if available "$package"; then image=$package; break; fi
done
[ -n "$image" ] || { echo "get-kernel: no cloud kernel '$prefix' in $suite" >&2; exit 1; }
version=${image#linux-image-}
version=${version%-unsigned}

# Newer Debian kernels come in several packages.
packages=$image
for package in "linux-binary-$version" "linux-modules-$version" "linux-base-$version"; do
	if available "$package"; then packages="$packages $package"; fi
done
cd "$work"
# shellcheck disable=SC2086 # a list of names
logged apt apt-get download $packages
cd - >/dev/null
for package in "$work"/*.deb; do dpkg-deb -x "$package" "$work/kernel"; done

cd "$work/kernel"
modules=$(find . -type d -path '*lib/modules/*' -name '*-amd64' | head -1)
vmlinuz=$(find . -type f -name 'vmlinuz*' | head -1)
config=$(find . -type f \( -name 'config-*' -o -path '*/modules/*/config' \) | head -1)
[ -n "$modules" ] && [ -n "$vmlinuz" ] || { echo "get-kernel: no image or modules in: $packages" >&2; exit 1; }
ln -s "$modules" modules
ln -s "$vmlinuz" vmlinuz
[ -z "$config" ] || ln -s "$config" config
cd - >/dev/null
mkdir -p "$(dirname "$dest")"
[ ! -d "$dest" ] || rmdir "$dest" 2>/dev/null || { echo "get-kernel: $dest holds something that is no kernel" >&2; exit 1; }
mv "$work/kernel" "$dest"
echo "$version ($suite): $(du -sh "$dest" | cut -f1) in $dest"
