#!/bin/bash
# Builds the container image of the agent with buildah, from scratch: the program, the libraries that it names, busybox' shell for the chart's
# node.sh, and the certificate authorities of this machine. No base image, no package manager, no network.
#
#   image.sh NAME[:TAG] [PROGRAM]      NAME such as registry.example.com/penstock; PROGRAM target/release/penstock unless named
#
# BUILDAH="buildah --root DIR ..." says with which store. What is linked in is listed in /usr/share/doc/penstock/penstock.cdx.json (CycloneDX).
#
# The agent runs as root: mount(2), ublk and containerd's socket want it. What the chart runs beside it (waiting, showing events) has another user or
# no capability; `nobody` is in /etc/passwd for that.
#
# Then: buildah push NAME:TAG. The program runs on nodes too (the chart copies it there), with glibc 2.34 or newer
# (docs/decisions/0012-packages.md).
set -euo pipefail
name=${1:?name of the image}
program=${2:-$(dirname "$0")/../target/release/penstock}
read -ra buildah <<<"${BUILDAH:-buildah}"
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
strip --strip-debug "$root/usr/local/bin/penstock"
ldd "$program" | grep -o '/[^ ]*' | while read -r library; do
	mkdir -p "$root$(dirname "$library")"
	cp -L "$library" "$root$library"
done
install -m 755 "$busybox" "$root/bin/busybox"
for applet in $("$busybox" --list); do
	[ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
done
cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
printf '%s\n' 'root:x:0:0:root:/:/bin/sh' 'nobody:x:65534:65534:nobody:/:/bin/sh' >"$root/etc/passwd"
mkdir -p "$root/usr/share/doc/penstock"
"$(dirname "$0")/sbom.sh" >"$root/usr/share/doc/penstock/penstock.cdx.json"
version=$("$program" --version)
container=$("${buildah[@]}" from scratch)
"${buildah[@]}" copy --quiet "$container" "$root" / >/dev/null
"${buildah[@]}" config --entrypoint '["/usr/local/bin/penstock"]' --cmd agent --env PATH=/usr/local/bin:/bin \
	--label org.opencontainers.image.title=penstock --label org.opencontainers.image.licenses=Apache-2.0 \
	--label "org.opencontainers.image.version=${version#penstock }" "$container"
"${buildah[@]}" commit --quiet --rm "$container" "$name" >/dev/null
echo "built $name ($(du -sh "$root" | cut -f1)); next: buildah push $name"
