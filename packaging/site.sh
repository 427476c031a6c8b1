#!/bin/bash
# Builds the documents as a site with mdbook. What they link to outside docs/ comes along: the chart's README as a page, all else as plain text
# below repository/. Fails when a link of the site leads nowhere.
#
#   site.sh DIR            DIR is replaced
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:?directory for the site}")
source=$(mktemp -d)
trap 'rm -rf "$source"' EXIT
cp -r docs/. "$source"

# links FILE: where its links lead, without those to other sites and to headings of the same page.
links() { { grep -oE '\]\([^)[:space:]]+\)' "$1" || true; } | sed -E 's/^\]\(//; s/\)$//; s/#.*//' | grep -vE '^$|^[a-z]+:' | sort -u || true; }

# bring PAGE DIR: has PAGE of the site, which lies in DIR of the repository, lead to copies of what it links to outside docs/.
bring() {
	local page=$1 dir=$2 link target copy
	while read -r link; do
		target=$(realpath --relative-to=. "$dir/$link")
		case $target in
		docs/*) copy=${target#docs/} ;;
		# mdbook makes index.html of a README and leaves links to it as they are.
		*.md) copy=repository/${target/%README.md/index.md} ;;
		*) copy=repository/$target.txt ;;
		esac
		if [ ! -e "$source/$copy" ]; then
			install -D -m 644 "$target" "$source/$copy"
			[[ $copy != *.md ]] || bring "$source/$copy" "$(dirname "$target")"
		fi
		copy=$(realpath --relative-to="$(dirname "$page")" "$source/$copy")
		sed -i "s|](${link//./\\.}\([#)]\)|](${copy}\1|g" "$page"
	done < <(links "$page" | grep -v '^SUMMARY' || true)
}
while read -r page; do
	bring "$page" "docs/$(dirname "$(realpath --relative-to="$source" "$page")")"
done < <(find "$source" -name '*.md' -not -path "$source/repository/*" -not -name SUMMARY.md | sort)

# Pages that are not of docs/ have their places in the summary, too.
{
	printf '\n# The repository\n\n'
	(cd "$source" && find repository -name '*.md' | sort) | while read -r page; do
		printf -- '- [%s](%s)\n' "$(sed -n 's/^# //p;T;q' "$source/$page" | tr -d '`')" "$page"
	done
} >>"$source/SUMMARY.md"

rm -rf "$out"
mdbook build "$source" --dest-dir "$out"

# What a reader clicks: files of the site, and headings of its pages.
dead=0
while IFS=: read -r page link; do
	file=${link%%#*} anchor=
	[[ $link != *'#'* ]] || anchor=${link#*#}
	target=$(dirname "$page")/$file
	[ -n "$file" ] || target=$page
	[ ! -d "$target" ] || target=$target/index.html
	if [ ! -e "$target" ] || { [ -n "$anchor" ] && [[ $target = *.html ]] && ! grep -qF "id=\"$anchor\"" "$target"; }; then
		echo "site.sh: ${page#"$out/"} leads nowhere: $link" >&2
		dead=$((dead + 1))
	fi
done < <(grep -roE '(href|src)="[^"]+"' --include='*.html' "$out" | sed -E 's/:(href|src)="/:/; s/"$//' | grep -vE ':([a-z]+:|//)' | grep -vE '/(print|toc|404)\.html:' | sort -u)
[ "$dead" = 0 ] || { echo "site.sh: $dead links lead nowhere" >&2; exit 1; }
echo "the site is in $out: open $out/index.html"
