#!/bin/bash
# Makes the layers of other formats that the tests read, by the tools that are their reference, and keeps of each image its manifest and its
# layers.
#
#   make.sh DIRECTORY      (as root, on Debian: containerd, stargz-snapshotter, skopeo, buildah, docker-registry, python3; soci where there is one)
#
# The tree is small but has one of everything: long and unicode names, hard and symbolic links, devices, pipes, extended attributes, holes,
# whiteouts, an opaque directory, a file of several chunks.
set -euo pipefail
out=$(mkdir -p "${1:?directory}" && cd "$1" && pwd)
work=$(mktemp -d)
pids=()
trap 'kill "${pids[@]}" 2>/dev/null; wait; rm -rf "$work"' EXIT
here=$(cd "$(dirname "$0")" && pwd)
python3 "$here/make.py" "$work/image"
cat >"$work/containerd.toml" <<TOML
version = 2
root = "$work/root"
state = "$work/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "$work/c.sock"
TOML
containerd -c "$work/containerd.toml" >"$work/containerd.log" 2>&1 &
pids+=($!)
mkfifo "$work/never"
until ctr -a "$work/c.sock" version >/dev/null 2>&1; do read -rt 0.1 <>"$work/never" || true; done
ctr() { command ctr-remote -a "$work/c.sock" "$@" >/dev/null; }
tar -C "$work/image" -cf "$work/image.tar" .
ctr images import --no-unpack --base-name fixture "$work/image.tar"
# Of an exported image (a tar of an OCI layout): manifest.json and each layer as layerN.
keep() {
	local from=$work/export-$1 to=$out/$1
	rm -rf "$to"
	mkdir -p "$from" "$to"
	tar -C "$from" -xf "$2"
	python3 "$here/make.py" --keep "$from" "$to"
}
export_of() { ctr images export "$work/$1.tar" "fixture:$1" && keep "$1" "$work/$1.tar"; }
# What a start read: it goes to the front, before a landmark.
manifest=$(command ctr-remote -a "$work/c.sock" images list name==fixture:1 | awk 'NR == 2 { print $3 }')
printf '{"path":"%s","manifestDigest":"%s","layerIndex":0}\n' usr/text "$manifest" etc/file-05 "$manifest" >"$work/record"
ctr images convert --oci --estargz --estargz-chunk-size 65536 --estargz-record-in "$work/record" fixture:1 fixture:estargz
export_of estargz
ctr images convert --oci --zstdchunked --estargz-chunk-size 65536 fixture:1 fixture:zstdchunked
export_of zstdchunked
# Ztocs, where there is the tool: Debian has soci-snapshotter from trixie on. They are kept in the order of the layers.
if command -v soci >/dev/null; then
	for image in soci:1 soci-plain:plain; do
		to=$out/${image%:*} tag=${image#*:}
		[ "$tag" = 1 ] || { python3 "$here/make.py" "$work/$tag" --plain; sed -i "s/\"1\"/\"$tag\"/" "$work/$tag/index.json"; }
		[ "$tag" = 1 ] || { tar -C "$work/$tag" -cf "$work/$tag.tar" .; ctr images import --no-unpack --base-name fixture "$work/$tag.tar"; }
		export_of "$tag"
		rm -rf "$to" && mv "$out/$tag" "$to"
		store=/var/lib/soci-snapshotter-grpc
		[ ! -e "$store" ] || { echo "$store is there already; move it away" >&2; exit 1; }
		soci -a "$work/c.sock" create --span-size 65536 --min-layer-size 0 "fixture:$tag" >/dev/null
		python3 "$here/make.py" --ztocs "$store/content/blobs/sha256" "$to"
		rm -rf "$store"
	done
	# What the archives are is known from the other ones.
	rm "$out"/soci-plain/layer?
fi
# The other dialect. skopeo leaves a layer alone that is compressed already.
python3 "$here/make.py" "$work/archives" --plain
skopeo --insecure-policy copy --quiet --dest-compress-format zstd:chunked "oci:$work/archives:1" "oci:$work/containers:1"
tar -C "$work/containers" -cf "$work/containers.tar" .
keep containers "$work/containers.tar"
