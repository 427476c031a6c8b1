#!/bin/bash
# Builds every fuzz target of the product and runs each for some seconds, twice as many at once as there are CPUs: what is asked for is a
# minute of searching each, and the machine has other work to do.
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
host=$("$cargo" -vV | sed -n 's/^host: //p')
target_dir=${CARGO_TARGET_DIR:-$PWD/target}/fuzz

# What cargo-fuzz passes, without the sanitizer. With --target they do not reach build scripts and macros.
flags="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
flags+=" -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table"
flags+=" -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=16 -Cdebug-assertions=on -Coverflow-checks=on"

targets=()
failed=0
for manifest in */fuzz/Cargo.toml; do
	[ -e "$manifest" ] || { echo "FAILED: no crate has fuzz targets"; exit 1; }
	crate=${manifest%%/*}
	locked=()
	[ ! -e "$crate/fuzz/Cargo.lock" ] || locked=(--locked)
	if ! CARGO_TARGET_DIR=$target_dir RUSTFLAGS=$flags CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_OPT_LEVEL=2 \
		"$cargo" build -q --release "${locked[@]}" --manifest-path "$manifest" --bins --target "$host" >"$logs/fuzz-$crate-build.log" 2>&1; then
		tail -40 "$logs/fuzz-$crate-build.log"
		echo "FAILED $crate: its fuzz targets do not build"
		failed=1
		continue
	fi
	for name in $("$cargo" metadata -q --format-version 1 --no-deps --offline --manifest-path "$manifest" |
		jq -r '.packages[].targets[] | select(.kind[] == "bin") | .name'); do
		targets+=("$crate/$name")
	done
done

# One target: new inputs go to a corpus that git ignores; what the crate ships as seeds is read, never written.
run() {
	local crate=${1%/*} name=${1#*/} log corpus
	log=$logs/fuzz-$crate-$name.log
	corpus=$crate/fuzz/corpus/$name
	mkdir -p "$corpus" "$crate/fuzz/artifacts/$name"
	local dirs=("$corpus")
	[ ! -d "$crate/fuzz/seeds/$name" ] || dirs+=("$crate/fuzz/seeds/$name")
	if "$target_dir/$host/release/$name" "-max_total_time=$seconds" -timeout=20 -rss_limit_mb=2048 -print_final_stats=1 \
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
for target in ${targets[@]+"${targets[@]}"}; do
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
