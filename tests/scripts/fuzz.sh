#!/bin/bash
# Builds every fuzz target of the product and runs each for some seconds, twice as many at once as there are CPUs, and only on what time
# other work of the machine leaves.
#
#   fuzz.sh SECONDS LOGDIR
#
# Prints one line per target: `ok CRATE/TARGET ...` or `FAILED CRATE/TARGET ...`. Exit status 1 when one failed or did not build.
#
# cargo-fuzz is not needed: coverage for libFuzzer is a code generation option of the stable compiler, the driver is the
# crate libfuzzer-sys. Without a sanitizer (nightly only) a target finds panics, overflows, time-outs and memory beyond a limit, which
# is what the targets assert.
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=${1:?seconds}
logs=${2:?directory for logs}
cargo=${CARGO:-cargo}
mkdir -p "$logs"
# Targets write files and sync them: in memory that is many times as many inputs.
scratch=${TMPDIR:-/tmp}
[ ! -w /dev/shm ] || scratch=/dev/shm
host=$("$cargo" -vV | sed -n 's/^host: //p')
target_dir=${CARGO_TARGET_DIR:-$PWD/target}/fuzz

# What cargo-fuzz passes, without the sanitizer. With --target they do not reach build scripts and macros.
flags="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
flags+=" -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table"
flags+=" -Cllvm-args=-sanitizer-coverage-trace-compares"

renice -n 10 $$ >/dev/null
if ! CARGO_TARGET_DIR=$target_dir RUSTFLAGS=$flags "$cargo" build -q --release --locked --manifest-path fuzz/Cargo.toml --workspace --bins \
	--target "$host" >"$logs/fuzz-build.log" 2>&1; then
	tail -40 "$logs/fuzz-build.log"
	echo "FAILED: the fuzz targets do not build"
	exit 1
fi
# CRATE/TARGET; the crate is the folder above `fuzz`.
mapfile -t targets < <("$cargo" metadata -q --format-version 1 --no-deps --offline --manifest-path fuzz/Cargo.toml |
	jq -r '.packages[] | (.manifest_path | split("/")[-3]) as $crate | .targets[] | select(.kind[] == "bin") | "\($crate)/\(.name)"')
[ ${#targets[@]} -gt 0 ] || { echo "FAILED: there are no fuzz targets"; exit 1; }
# They lie in one directory: of two with one name, only one would ever run.
twice=$(printf '%s\n' "${targets[@]##*/}" | sort | uniq -d)
[ -z "$twice" ] || { echo "FAILED: several fuzz targets are called ${twice//$'\n'/ }"; exit 1; }
failed=0

# One target: new inputs go to a corpus that git ignores; what the crate ships as seeds is read, never written.
run() {
	local crate=${1%/*} name=${1#*/} log corpus
	log=$logs/fuzz-$crate-$name.log
	corpus=$crate/fuzz/corpus/$name
	mkdir -p "$corpus" "$crate/fuzz/artifacts/$name"
	local dirs=("$corpus")
	[ ! -d "$crate/fuzz/seeds/$name" ] || dirs+=("$crate/fuzz/seeds/$name")
	if TMPDIR=$scratch "$target_dir/$host/release/$name" "-max_total_time=$seconds" -timeout=20 -rss_limit_mb=2048 -print_final_stats=1 \
		"-artifact_prefix=$crate/fuzz/artifacts/$name/" "${dirs[@]}" >"$log" 2>&1 </dev/null; then
		echo "ok $1: $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") inputs in $seconds s"
	else
		tail -40 "$log"
		echo "FAILED $1: see $log; the input is in $crate/fuzz/artifacts/$name"
		return 1
	fi
}
running=0
most=$((2 * $(nproc)))
for target in "${targets[@]}"; do
	if [ "$running" -ge "$most" ]; then
		wait -n || failed=1
		running=$((running - 1))
	fi
	run "$target" &
	running=$((running + 1))
done
while [ "$running" -gt 0 ]; do
	wait -n || failed=1
	running=$((running - 1))
done
exit "$failed"
