#!/bin/bash
# Is this tree slower than another commit? Builds the benches of both, runs them in turns (A B A B ...) on this machine, and prints, for every
# median that both have, this tree's time over the base's: the middle of the pairs, and the spread. Exit status 1 when the middle is above
# the limit.
#
#   BASE=<commit> [WHAT=path] [ROUNDS=5] [LIMIT=1.1] [ARGS="--n 200 --size-mib 64"] tests/scripts/bench-ab.sh
#
# WHAT is a command of penstock-bench that both have (warm and start need root). The base is checked out in a temporary worktree, which is removed; what
# it builds stays in target/bench-ab, so that the next run builds less.
set -euo pipefail
cd "$(dirname "$0")/../.."

: "${BASE:?name the commit to compare with, as in: make bench-ab BASE=HEAD~1}"
what=${WHAT:-path} rounds=${ROUNDS:-5} limit=${LIMIT:-1.1}
read -ra more <<<"${ARGS:---size-mib 64}"
cargo=${CARGO:-cargo}
target=${CARGO_TARGET_DIR:-$PWD/target}

base=$(git rev-parse --verify --quiet "$BASE^{commit}") || { echo "bench-ab: $BASE is no commit here" >&2; exit 2; }
work=$(mktemp -d)
cleanup() {
	git worktree remove --force "$work/base" 2>/dev/null || true
	rm -rf "$work"
}
trap cleanup EXIT
git worktree add --quiet --detach "$work/base" "$base"

echo "bench-ab: building this tree and ${base:0:12}" >&2
"$cargo" build --locked --quiet --profile ci -p penstock-benches
(cd "$work/base" && CARGO_TARGET_DIR="$target/bench-ab" "$cargo" build --locked --quiet --profile ci -p penstock-benches)
# Copies: what builds meanwhile in another shell changes neither.
cp "$target/bench-ab/ci/penstock-bench" "$work/a"
cp "$target/ci/penstock-bench" "$work/b"

as=() bs=()
for round in $(seq "$rounds"); do
	for side in a b; do
		echo "bench-ab: round $round of $rounds, $([ $side = a ] && echo base || echo this tree)" >&2
		"$work/$side" "$what" "${more[@]}" --output json --results "$work/results-$side" >"$work/$side$round.json"
	done
	as+=("$work/a$round.json") bs+=("$work/b$round.json")
done
"$work/b" compare --base "${as[@]}" --this "${bs[@]}" --limit "$limit"
