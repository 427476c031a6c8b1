#!/bin/bash
# Prints what is linked into `penstock`, as CycloneDX 1.5: each crate with version, licence, checksum and what it depends on, by Cargo.lock. The
# same commit prints the same.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo}
checksums=$(awk -F '"' '/^\[\[package\]\]/ { name = version = "" } /^name = / { name = $2 } /^version = / { version = $2 }
	/^checksum = / { print name "@" version " " $2 }' Cargo.lock)
"$cargo" metadata --format-version 1 --locked --offline --filter-platform "$(rustc -vV | sed -n 's/^host: //p')" 2>/dev/null |
	jq --arg checksums "$checksums" --sort-keys '
	def purl: "pkg:cargo/\(.name)@\(.version | gsub("\\+"; "%2B"))";
	def licence: if .license then [{ expression: (.license | gsub("/"; " OR ")) }] else [] end;
	($checksums | split("\n") | map(split(" ") | { (.[0]): .[1] }) | add) as $sums
	| (.packages | map({ (.id): . }) | add) as $packages
	# What runs: not what only tests or build scripts use.
	| (.resolve.nodes | map({ (.id): [.deps[] | select(any(.dep_kinds[]; .kind == null)) | .pkg] }) | add) as $needs
	| def closure: . as $known | ([.[] | $needs[.][]] + $known | unique) as $more | if $more == $known then $known else $more | closure end;
	([.packages[] | select(.name == "penstock-agent") | .id] | closure) as $all
	| ($all | map($packages[.])) as $crates
	| ($crates[] | select(.name == "penstock-agent")) as $root
	| {
		bomFormat: "CycloneDX", specVersion: "1.5", version: 1,
		metadata: { component: ({ type: "application", name: "penstock", version: $root.version, "bom-ref": ($root | purl), licenses: ($root | licence) }) },
		components: ($crates | map(select(.name != "penstock-agent") | {
			type: "library", name, version, "bom-ref": purl, purl: purl, licenses: licence
		} + ($sums["\(.name)@\(.version)"] as $sum | if $sum then { hashes: [{ alg: "SHA-256", content: $sum }] } else {} end))
			| sort_by(.purl)),
		dependencies: ($crates | map({ ref: purl, dependsOn: [$needs[.id][] | $packages[.] | purl] | unique }) | sort_by(.ref))
	}'
