#!/bin/bash
# Builds the container image of the agent with buildah, from scratch: the program, the libraries that it names, busybox' shell for the chart's
# node.sh, and the certificate authorities of this machine. No base image, no package manager, no network.
#
#   image.sh NAME[:TAG] [PROGRAM]      NAME such as registry.example.com/penstock; PROGRAM target/release/penstock unless named
#
# Then: buildah push NAME:TAG. The program runs on nodes too (the chart copies it there), whose glibc must be as new as this machine's: build on the
# oldest release that your nodes have.
set -euo pipefail
name=${1:?name of the image}
program=${2:-$(dirname "$0")/../target/release/penstock}
busybox=$(command -v busybox) || { echo "image.sh: busybox is not installed (Debian: busybox-static)" >&2; exit 1; }
if ldd "$busybox" >/dev/null 2>&1; then
	echo "image.sh: $busybox is not static (Debian: busybox-static)" >&2
	exit 1
fi
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root"/{bin,usr/local/bin,etc/ssl/certs,dev,proc,sys,run,tmp,var/lib,host}
chmod 755 "$root"
install -m 755 "$program" "$root/usr/local/bin/penstock"
ldd "$program" | grep -o '/[^ ]*' | while read -r library; do
	mkdir -p "$root$(dirname "$library")"
	cp -L "$library" "$root$library"
done
install -m 755 "$busybox" "$root/bin/busybox"
for applet in $("$busybox" --list); do
	[ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
done
cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
echo 'root:x:0:0:root:/:/bin/sh' >"$root/etc/passwd"
version=$("$program" version --output json 2>/dev/null | sed -n 's/.*"command": *"\([^"]*\)".*/\1/p' || true)
container=$(buildah from scratch)
buildah copy --quiet "$container" "$root" / >/dev/null
buildah config --entrypoint '["/usr/local/bin/penstock"]' --cmd agent --env PATH=/usr/local/bin:/bin \
	--label org.opencontainers.image.title=penstock --label org.opencontainers.image.licenses=Apache-2.0 \
	--label "org.opencontainers.image.version=$version" "$container"
buildah commit --quiet --rm "$container" "$name" >/dev/null
echo "built $name ($(du -sh "$root" | cut -f1)); next: buildah push $name"
