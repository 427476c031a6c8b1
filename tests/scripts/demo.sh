#!/bin/bash
# Runs `penstock demo` as root where that is possible without asking for anything that cannot be given; without root otherwise (it then
# says itself what it could not show).
#
#   demo.sh PENSTOCK [ARGUMENTS]
set -euo pipefail
penstock=${1:?the penstock program}
shift
if [ "$(id -u)" = 0 ]; then
	exec "$penstock" demo "$@"
fi
if command -v sudo >/dev/null; then
	if sudo -n true 2>/dev/null; then
		exec sudo -n "$penstock" demo "$@"
	fi
	if [ -t 0 ] && [ -t 1 ]; then
		echo "demo: mounting needs root; Ctrl-C and 'target/ci/penstock demo' runs without" >&2
		exec sudo "$penstock" demo "$@"
	fi
fi
exec "$penstock" demo "$@"
