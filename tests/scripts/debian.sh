#!/bin/sh
# Makes a clean Debian of this machine's release in a directory: the packages that each has, with containerd and runc, kmod, certificates and python3. Packages are
# installed into it, and guides followed in it.
#
#   debian.sh DESTDIR
#
# Does nothing when DESTDIR exists. It appears whole or not at all. Needs root, mmdebstrap, and the archive that this machine's apt uses.
set -eu
dest=${1:?destination directory}
[ ! -e "$dest" ] || exit 0
. /etc/os-release
[ "$ID" = debian ] || { echo "debian.sh: this is $ID, not Debian" >&2; exit 1; }
sources=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null || :)
mirror=${DEBIAN_MIRROR:-$(echo "$sources" | grep -oE 'https?://[^ ]+/debian/?( |$)' | head -1 | tr -d ' ')}
[ -n "$mirror" ] || { echo "debian.sh: apt names no Debian archive; set DEBIAN_MIRROR" >&2; exit 1; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$(dirname "$dest")"
root=$dest.$$
# Without what nobody reads here, and without waiting for the disk.
mmdebstrap --quiet --variant=minbase --include=containerd,runc,ca-certificates,kmod,python3 --aptopt='Acquire::Languages "none"' --aptopt='Acquire::http::Timeout "30"' \
	--dpkgopt=force-unsafe-io --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/doc/*' --skip=cleanup/apt \
	"$VERSION_CODENAME" "$root" "deb $mirror $VERSION_CODENAME main" >"$work/log" 2>&1 ||
	{ tail -3 "$work/log" >&2; rm -rf "$root"; exit 1; }
# What was told to dpkg for the sake of speed does not hold for what is installed later.
rm -f "$root/etc/dpkg/dpkg.cfg.d/99mmdebstrap"
mv -T "$root" "$dest" 2>/dev/null || rm -rf "$root"
