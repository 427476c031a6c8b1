#!/bin/sh
# Fetches packages of another Debian suite than this machine's and unpacks them into a directory. Installs nothing and leaves apt's
# configuration alone: how the tests get containerd 1.7 and 2.x beside the installed one.
#
#   containerd.sh DESTDIR SUITE [PACKAGE...]       containerd unless packages are named
#
#   SUITE   trixie (1.7), sid (2.x), ...
#
# Leaves what is in the packages below DESTDIR (DESTDIR/usr/bin/containerd, ...); does nothing when DESTDIR exists. It appears whole
# or not at all. Signatures are checked with this machine's Debian keys. Needs apt-get and dpkg-deb; no root.
set -eu
dest=${1:?destination directory}
suite=${2:?suite}
shift 2
[ $# -gt 0 ] || set -- containerd
[ ! -e "$dest" ] || exit 0

# The archive that this machine's apt uses already.
sources=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null || :)
mirror=${DEBIAN_MIRROR:-$(echo "$sources" | grep -oE 'https?://[^ ]+/debian/?( |$)' | head -1 | tr -d ' ')}
keyring=${DEBIAN_KEYRING:-/usr/share/keyrings/debian-archive-keyring.gpg}
[ -n "$mirror" ] || { echo "containerd.sh: apt names no Debian archive; set DEBIAN_MIRROR" >&2; exit 1; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/state/lists/partial" "$work/cache/archives/partial" "$work/root"
echo "deb [signed-by=$keyring] $mirror $suite main" >"$work/sources.list"
# apt COMMAND...: with a state of its own, and without the sandbox user, which only root can become.
apt() {
	command=$1
	shift
	"$command" -q -o Dir::State="$work/state" -o Dir::Cache="$work/cache" -o Dir::Etc::sourcelist="$work/sources.list" \
		-o Dir::Etc::sourceparts=- -o APT::Sandbox::User= -o Acquire::http::Timeout=30 "$@"
}
# logged COMMAND...: quiet unless it fails.
logged() {
	"$@" >"$work/log" 2>&1 || { tail -3 "$work/log" >&2; exit 1; }
}
logged apt apt-get update
cd "$work"
logged apt apt-get download "$@"
cd - >/dev/null
for package in "$work"/*.deb; do dpkg-deb -x "$package" "$work/root"; done
mkdir -p "$(dirname "$dest")"
# Another test may have been quicker: then its result is as good.
mv -T "$work/root" "$dest" 2>/dev/null || [ -e "$dest" ]
