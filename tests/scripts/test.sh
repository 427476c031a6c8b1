#!/bin/bash
# Everything CI checks, in stages; each is timed, none stops the next ones except a build that fails.
#
#   test.sh [lint | fuzz]      all stages without an argument
#
# Ends with the counts on a line of their own. A test that printed `skipped: NAME: REASON` is counted as skipped, not as passed.
# Logs stay in target/test-logs.
#
# Builds: the check profile once (clippy; rustdoc shares its dependencies), the dev profile once (tests, with debug assertions), the
# ci profile once (the penstock program that the whole-system tests run, optimised and without test features), and the fuzz targets.
set -uo pipefail
cd "$(dirname "$0")/../.."
cargo=${CARGO:-cargo}
seconds=${FUZZ_SECONDS:-20}
target=${CARGO_TARGET_DIR:-$PWD/target}
logs=$target/test-logs
rm -rf "$logs"
mkdir -p "$logs"
export CARGO_INCREMENTAL=0 CARGO_TERM_COLOR=never
# A clean clone shares nothing with builds by hand: what nobody will step through is compiled and linked without line tables.
[ -z "${CI:-}" ] || export CARGO_PROFILE_DEV_DEBUG=false

passed=0 failed=0
failures=() times=() skips=()
# What failing tests said, for the end of the output, where it is looked for.
report=$logs/failures.txt
: >"$report"

# stage NAME COMMAND...: runs it, notes its time; a stage that is one check counts as one.
stage_begin() { stage_name=$1 stage_start=$EPOCHREALTIME; echo "== $1"; }
stage_end() {
	times+=("$(awk -v a="$stage_start" -v b="$EPOCHREALTIME" -v n="$stage_name" 'BEGIN { printf "%8.1f s  %s", b - a, n }')")
}
# check NAME COMMAND...: one check that passes or fails as a whole.
check() {
	local name=$1 log
	shift
	log=$logs/${name//[^a-z0-9]/-}.log
	stage_begin "$name"
	if "$@" >"$log" 2>&1 </dev/null; then
		passed=$((passed + 1))
	else
		failed=$((failed + 1))
		failures+=("$name")
		tail -60 "$log" | cut -c1-400 | tee -a "$report"
	fi
	stage_end
}

# panics LOG: what its failing tests said, shortened: their own lines, and the last ones of each process that they ran.
panics() {
	awk '
		/^failures:$/ { part++; next }
		part != 1 { next }
		/^---- / { lines = 0 }
		/^--- output of / { within = 1; seen = 0 }
		/^--- end of output of / {
			for (i = seen > 8 ? seen - 8 : 0; i < seen; i++) print last[i % 8]
			within = 0
		}
		within && !/^--- output of / { last[seen++ % 8] = $0; next }
		lines++ < 40
	' "$1" | cut -c1-400
}

# tally NAME LOG STATUS: adds up what one test executable printed.
tally() {
	local name=$1 log=$2 status=$3 ok=0 bad=0 line test
	while read -r line; do
		[[ $line =~ ([0-9]+)\ passed\;\ ([0-9]+)\ failed ]] || continue
		ok=$((ok + BASH_REMATCH[1]))
		bad=$((bad + BASH_REMATCH[2]))
	done < <(grep '^test result: ' "$log")
	local said=0
	while read -r line; do
		said=$((said + 1))
		skips+=("$name: ${line#skipped: }")
	done < <(grep -a '^skipped: ' "$log" | sort -u)
	while read -r line; do
		test=${line#test }
		skips+=("$name: ${test%% ... *}: ${test#* ... }")
	done < <(grep -aE '^test .* \.\.\. ignored' "$log")
	passed=$((passed + ok - said))
	if [ "$status" != 0 ] && [ "$bad" = 0 ]; then
		# It ended without counting a failure: a crash, or the time limit.
		bad=1
		failures+=("$name (ended with status $status; 124 is the time limit)")
		tail -60 "$log" | cut -c1-400 | tee -a "$report"
	elif [ "$bad" != 0 ]; then
		while read -r test; do failures+=("$name: $test"); done < <(sed -n 's/^test \(.*\) \.\.\. FAILED$/\1/p' "$log")
		panics "$log" | tee -a "$report"
	fi
	failed=$((failed + bad))
	printf '   %-44s %4d passed %3d failed %3d skipped\n' "$name" $((ok - said)) "$bad" "$said"
}

lint() {
	check fmt "$cargo" fmt --all --check
	check clippy "$cargo" clippy -q --locked --workspace --all-targets -- -D warnings
	check docs env RUSTDOCFLAGS="-D warnings" "$cargo" doc -q --locked --workspace --no-deps
}

# fuzz [COMMAND...]: every target, with COMMAND beside it, which goes first: emulated machines leave a CPU free.
fuzz() {
	local line pid status bad=0 out=$logs/fuzz.txt from=$EPOCHREALTIME
	CARGO=$cargo tests/scripts/fuzz.sh "$seconds" "$logs" >"$out" 2>&1 </dev/null &
	pid=$!
	"$@"
	stage_begin "fuzz ($seconds s each)"
	stage_start=$from
	wait "$pid"
	status=$?
	while read -r line; do
		case $line in
		ok\ *) passed=$((passed + 1)) ;;
		FAILED*) bad=$((bad + 1)) failures+=("fuzz: ${line#FAILED }") ;;
		esac
		echo "   $line"
	done <"$out"
	if [ "$status" != 0 ] && [ "$bad" = 0 ]; then
		bad=1
		failures+=("fuzz (ended with status $status)")
	fi
	failed=$((failed + bad))
	stage_end
}

# Every test executable of the workspace: PACKAGE, KIND, NAME, directory, path.
executables() {
	jq -r 'select(.reason == "compiler-artifact" and .profile.test and .executable != null)
		| [(.manifest_path | split("/")[-2]), .target.kind[0], .target.name, (.manifest_path | rtrimstr("/Cargo.toml")), .executable] | @tsv' "$logs/build.json"
}

build() {
	stage_begin "build tests"
	if ! "$cargo" build -q --locked --workspace --tests --bins --examples --message-format=json-render-diagnostics >"$logs/build.json" 2>"$logs/build.log" </dev/null; then
		tail -60 "$logs/build.log"
		failed=$((failed + 1))
		failures+=("the tests do not build")
		stage_end
		return 1
	fi
	stage_end
	check "build penstock" "$cargo" build -q --locked --profile ci -p penstock-agent --bin penstock
}

# tests parts|whole|vm LIMIT: runs the executables of all crates but `tests`, of that one, or those of it that boot a machine, one after the
# other; each uses all CPUs itself.
tests() {
	local which=$1 limit=$2 package kind name dir path log status of
	while IFS=$'\t' read -r package kind name dir path; do
		of=parts
		[ "$package" != tests ] || of=whole
		[ "$package/$name" != tests/vm ] || of=vm
		[ "$of" = "$which" ] || continue
		[ "$kind" = test ] && name="$package::$name" || name="$package ($kind)"
		log=$logs/${name//[^a-z0-9]/-}.log
		stage_begin "$name"
		(cd "$dir" && exec timeout -k 10 "$limit" "$path" --show-output) >"$log" 2>&1 </dev/null
		status=$?
		stage_end
		tally "$name" "$log" "$status"
	done < <(executables)
}

doctests() {
	stage_begin "doc tests"
	local log=$logs/doctests.log
	"$cargo" test -q --locked --workspace --doc --no-fail-fast >"$log" 2>&1 </dev/null
	tally "doc tests" "$log" $?
	stage_end
}

case ${1:-all} in
lint) lint ;;
fuzz) fuzz ;;
all)
	lint
	if build; then
		tests parts 900
		doctests
		tests whole 1200
		fuzz tests vm 1200
	else
		fuzz
	fi
	;;
*) echo "test.sh: $1?" >&2; exit 2 ;;
esac

echo
echo "time of each stage:"
printf '  %s\n' "${times[@]}"
awk -v s="$SECONDS" 'BEGIN { printf "  %8.1f s  in all\n", s }'
if [ ${#skips[@]} != 0 ]; then
	echo
	echo "skipped, and why:"
	printf '  %s\n' "${skips[@]}"
fi
if [ ${#failures[@]} != 0 ]; then
	echo
	cat "$report"
	echo
	echo "failed (logs in $logs):"
	printf '  %s\n' "${failures[@]}"
fi
echo
echo "$passed passed, $failed failed, ${#skips[@]} skipped"
[ "$failed" = 0 ]
