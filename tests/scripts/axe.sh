#!/bin/sh
# Puts axe.min.js, the accessibility rules of axe-core (MPL-2.0, used as it is and in no product), into DIR, from npm. Nothing outside DIR is changed.
#
#   axe.sh DIR
set -eu
dir=${1:?directory}
version=4.14.1
sha512=1477dafa598d8d065f273d6af302aa203c02e83131707b7fa648cd41bd3d6b734f8c22a0dab86ee6a6f64b8afbe804b214d36db85a2826965edfb3a0b9d546b5
[ ! -e "$dir/axe.min.js" ] || exit 0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm pack --silent "axe-core@$version" >/dev/null
echo "$sha512  axe-core-$version.tgz" | sha512sum --check --quiet
tar xzf "axe-core-$version.tgz" package/axe.min.js
mkdir -p "$dir"
mv package/axe.min.js "$dir/"
