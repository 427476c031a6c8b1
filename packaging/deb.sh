#!/bin/bash
# Builds a package for Debian and Ubuntu: the program, its systemd unit, a default config, manual pages, completions for bash, zsh and fish,
# and the list of what is linked in (CycloneDX).
#
#   deb.sh DIR [PROGRAM]       DIR for the package; PROGRAM target/release/penstock unless named
#
# DEB_REVISION=1 is Debian's part of the version. The same input makes the same package (SOURCE_DATE_EPOCH; the last commit's time unless set).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:?directory for the package}
program=$(realpath "${2:-$here/../target/release/penstock}")
revision=${DEB_REVISION:-1}
epoch=${SOURCE_DATE_EPOCH:-$(git -C "$here" log -1 --format=%ct 2>/dev/null || echo 0)}
architecture=$(dpkg --print-architecture)
version=$("$program" --version)
version=${version#penstock }-$revision
mkdir -p "$out"
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"
umask 022

install -D -m 755 "$program" "$root/usr/bin/penstock"
strip --strip-debug "$root/usr/bin/penstock"
install -d "$root/usr/lib/systemd/system"
sed 's|/usr/local/bin/penstock|/usr/bin/penstock|' "$here/penstock.service" >"$root/usr/lib/systemd/system/penstock.service"
# As `penstock doctor` wants it: credentials may be written there.
install -D -m 600 "$here/config.toml" "$root/etc/penstock/config.toml"

# Made without the builder's settings, which would be shown as defaults.
tool() { env -i PATH="$PATH" "$program" "$@"; }
install -d "$root/usr/share/man/man1"
tool man --dir "$root/usr/share/man/man1"
install -d "$root"/usr/share/{bash-completion/completions,zsh/vendor-completions,fish/vendor_completions.d}
tool completions bash >"$root/usr/share/bash-completion/completions/penstock"
tool completions zsh >"$root/usr/share/zsh/vendor-completions/_penstock"
tool completions fish >"$root/usr/share/fish/vendor_completions.d/penstock.fish"

documents=$root/usr/share/doc/penstock
install -D -m 644 "$here/debian/copyright" "$documents/copyright"
install -m 644 "$here/../README.md" "$documents/"
"$here/sbom.sh" >"$documents/penstock.cdx.json"
install -m 644 "$here/../CHANGELOG.md" "$documents/changelog"
gzip -9n "$documents/changelog" "$root"/usr/share/man/man1/*.1

# In KiB, each file rounded up and one for all else, as dpkg-gencontrol counts: what the file system allots depends on when it is asked.
installed=$(find "$root" -type f -printf '%s\n' -o -printf '1\n' | awk '{ kib += int(($1 + 1023) / 1024) } END { print kib }')
# The oldest glibc that has everything the program asks of it.
glibc=$(objdump -T "$program" | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -1)
install -d "$root/DEBIAN"
echo /etc/penstock/config.toml >"$root/DEBIAN/conffiles"
for script in postinst prerm postrm; do
	install -m 755 "$here/debian/$script" "$root/DEBIAN/$script"
done
cat >"$root/DEBIAN/control" <<CONTROL
Package: penstock
Version: $version
Architecture: $architecture
Maintainer: The Penstock authors <penstock@localhost>
Installed-Size: $installed
Depends: libc6 (>= ${glibc#GLIBC_}), libgcc-s1, init-system-helpers (>= 1.54~)
Recommends: ca-certificates, kmod
Suggests: containerd
Section: admin
Priority: optional
Description: containers that start before their image has arrived
 A node agent that shows an OCI image as a read-only block device at once and
 fetches what is read, when it is read, from the registry that holds it. A
 snapshotter for containerd, and a command to attach images by hand.
CONTROL
(cd "$root" && find . -path ./DEBIAN -prune -o -type f -printf '%P\0' | sort -z | xargs -0 md5sum >DEBIAN/md5sums)
find "$root" -exec touch --no-dereference --date="@$epoch" {} +
export SOURCE_DATE_EPOCH=$epoch
package=$out/penstock_${version}_$architecture.deb
dpkg-deb --root-owner-group --build "$root" "$package" >/dev/null
echo "$package"
