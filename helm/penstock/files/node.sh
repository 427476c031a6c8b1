#!/bin/sh
# What the chart's pods do on their node, whose root is mounted at $HOST. Run by busybox' sh in the image of the agent.
#
#   node.sh install   the program, modules, in `service` mode the systemd service, and containerd's set-up; done again it changes nothing
#   node.sh follow    in `service` mode, as long as the pod lives: the agent's events as the pod's log, and secrets that change
#   node.sh remove    takes all of it back, unless containers still stand on it
#   node.sh wait      until as many pods are ready as there are, by two headless services ($ALL, $READY)
#
# Everything on the node is run in the node's own root (chroot), so that nothing but this script and the program come from the image.
set -eu
umask 077
HOST=${HOST:-/host}
INPUT=${INPUT:-/etc/penstock-chart}
SECRETS=${SECRETS:-/etc/penstock-secrets}
# Until it is gone, containerd has not been restarted since its config was changed.
PENDING=$HOST/var/lib/penstock/containerd-restart-is-due

say() { echo "node: $*"; }
fail() {
	say "$*" >&2
	exit 1
}
# By the node's own env: busybox' chroot would run a program of busybox by that name, such as its modprobe, which cannot read every node's modules.
on_host() { chroot "$HOST" /usr/bin/env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"; }
penstock() { on_host "$BIN_DIR/penstock" "$@"; }

# put SOURCE TARGET MODE: replaces TARGET whole, by a rename, if it differs; answers whether it did.
put() {
	if cmp -s "$1" "$2"; then
		return 1
	fi
	# One command: the shell does not stop at errors in a function whose answer is asked for.
	mkdir -p "$(dirname "$2")" && cp -L "$1" "$2.new" && chmod "$3" "$2.new" && mv "$2.new" "$2" || fail "cannot write $2"
	say "wrote ${2#"$HOST"}"
}

# The secrets that the agent reads, as they are now. It reads them again by itself.
put_secrets() {
	find -L "$SECRETS" -type f ! -path '*/..*' 2>/dev/null | while read -r file; do
		put "$file" "$HOST/etc/penstock/secrets/${file#"$SECRETS"/}" 600 || true
	done
}

# The first of containerd's units that runs.
containerd_unit() {
	for unit in $CONTAINERD_UNITS; do
		if on_host systemctl --quiet is-active "$unit"; then
			echo "$unit"
			return
		fi
	done
	fail "none of these units runs on this node: $CONTAINERD_UNITS; set containerd.units, or containerd.restart=false"
}

# configure FLAGS: has containerd use the agent, or forget it, and restarts it when its files changed.
configure() {
	set -- --config "$CONTAINERD_CONFIG" "$@"
	[ -z "$CONTAINERD_DROP_IN" ] || set -- --drop-in "$CONTAINERD_DROP_IN" "$@"
	mkdir -p "$HOST/var/lib/penstock"
	was_due=false
	[ ! -e "$PENDING" ] || was_due=true
	: >"$PENDING"
	if ! answer=$(penstock containerd configure --output json "$@"); then
		$was_due || rm "$PENDING"
		return 1
	fi
	case $answer in
	*'"written": true'* | *'"written":true'*) say "containerd's config has changed: $answer" ;;
	*) $was_due || { rm "$PENDING" && say "containerd's config is as it should be" && return; } ;;
	esac
	if [ "$RESTART" != true ]; then
		rm "$PENDING"
		say "containerd must be restarted (containerd.restart is false)"
		return
	fi
	unit=$(containerd_unit)
	say "restarting $unit; running containers go on"
	on_host systemctl restart "$unit"
	rm "$PENDING"
}

install_service() {
	changed=false
	! put "$INPUT/penstock.service" "$HOST/etc/systemd/system/penstock.service" 644 || changed=true
	put_secrets
	if $changed; then
		on_host systemctl daemon-reload
	fi
	on_host systemctl --quiet enable penstock.service
	if $changed || $new || ! on_host systemctl --quiet is-active penstock.service; then
		say "starting penstock.service anew; its devices stay, their readers wait meanwhile"
		# Type=notify: answers once the agent is ready.
		on_host systemctl restart penstock.service
	fi
}

install() {
	for module in $MODULES; do
		on_host modprobe -q "$module" || say "this node has no module $module"
	done
	new=false
	(umask 022 && mkdir -p "$HOST$BIN_DIR")
	! put "${PROGRAM:-/usr/local/bin/penstock}" "$HOST$BIN_DIR/penstock" 755 || new=true
	! put "$INPUT/config.toml" "$HOST/etc/penstock/config.toml" 600 || new=true
	# Refused here, with the line, before a running agent is stopped for it.
	penstock agent --print-config >/dev/null
	[ "$MODE" != service ] || install_service
	[ "$CONFIGURE" = true ] || return 0
	set -- --version "$CONTAINERD_RELEASE"
	[ -z "$RUNTIME_CLASS" ] || set -- "$@" --runtime-class "$RUNTIME_CLASS"
	[ "$FORCE" != true ] || set -- "$@" --force
	configure "$@"
}

follow() {
	events=
	trap '[ -z "$events" ] || kill "$events" 2>/dev/null; exit 0' TERM INT
	while :; do
		# Ends with the agent, or when there is none; the next one is looked for a while later.
		"${PROGRAM:-/usr/local/bin/penstock}" events --follow --socket "${SOCKET:-/run/penstock/penstock.sock}" --output json &
		events=$!
		while kill -0 "$events" 2>/dev/null; do
			put_secrets
			sleep "${EVERY:-10}" &
			# Takes notice of every child that has ended, so that the one above is not seen for ever.
			wait $! || true
		done
	done
}

# Whether a container has its files through the agent, or may have because the agent does not say.
is_in_use() {
	on_host systemctl --quiet is-active penstock.service || return 1
	snapshots=$(penstock snapshots --output json) || return 0
	echo "$snapshots" | grep -Eq '"kind": ?"active"'
}

remove() {
	[ -x "$HOST$BIN_DIR/penstock" ] || { say "nothing is installed" && return; }
	[ "$CONFIGURE" != true ] || configure --undo
	if [ "$MODE" = service ]; then
		if is_in_use; then
			on_host systemctl --quiet disable penstock.service
			say "containers stand on Penstock: its service goes on until this node reboots, and is not started again"
			return
		fi
		penstock detach --all --force || say "devices stay until the node reboots"
		on_host systemctl --quiet disable --now penstock.service || say "the service does not run"
		rm -f "$HOST/etc/systemd/system/penstock.service"
		on_host systemctl daemon-reload
	fi
	rm -rf "$HOST/etc/penstock" "$HOST$BIN_DIR/penstock"
	if [ "$REMOVE_STATE" = true ]; then
		! grep -q " /var/lib/penstock/" "$HOST/proc/1/mounts" || fail "images are still mounted below /var/lib/penstock: it stays"
		rm -rf "$HOST$CACHE_DIR" "$HOST/var/lib/penstock"
	fi
	say "removed"
}

addresses() { nslookup "$1" 2>/dev/null | sed -n '/^Name:/,$s/^Address[^:]*: *//p' | sort -u | wc -l; }

wait_for_all() {
	same=0
	while [ "$same" -lt 5 ]; do
		all=$(addresses "$ALL")
		if [ "$all" -gt 0 ] && [ "$(addresses "$READY")" = "$all" ]; then
			same=$((same + 1))
		else
			same=0
		fi
		sleep 2
	done
	say "done on $all nodes"
}

case ${1:-} in
install) install ;;
follow) follow ;;
remove) remove ;;
wait) wait_for_all ;;
*)
	say "unknown: ${1:-}" >&2
	exit 2
	;;
esac
