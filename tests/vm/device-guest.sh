# Runs in the VM as root: the ublk transport of the crate `device`, through its example program `serve`.
#
# In the root directory: erofs.img and ext4.img (the disks), sums (sha256 of the files in erofs.img), and for each disk
# NAME.sha256. Nothing is waited for by time alone: each loop waits for an event and gives up after a bound.
set -eu
say() { echo "guest: $*"; }
die() {
	say "FAILED: $*"
	tail -n 40 /tmp/*.log 2>/dev/null || :
	exit 1
}
# until_true COMMAND...: waits for it to succeed, 60 s at most.
until_true() {
	n=0
	until "$@"; do
		n=$((n + 1))
		[ $n -lt 600 ] || die "gave up waiting for: $*"
		sleep 0.1
	done
}
gone() { ! kill -0 "$1" 2>/dev/null; }
# serve NAME IMAGE [OPTION...]: starts a server, sets $pid and $dev.
serve() {
	name=$1 image=$2
	shift 2
	rm -f "/tmp/$name.ready"
	/bin/serve "id=$name" "image=$image" transport=ublk "ready=/tmp/$name.ready" owner=7 "$@" >"/tmp/$name.out" 2>"/tmp/$name.log" &
	pid=$!
	n=0
	until [ -s "/tmp/$name.ready" ]; do
		n=$((n + 1))
		{ [ $n -lt 600 ] && kill -0 $pid 2>/dev/null; } || die "server $name did not come up"
		sleep 0.1
	done
	dev=$(cat "/tmp/$name.ready")
	[ -b "$dev" ] || die "$dev is no block device"
}
block() { dd if="$1" bs=4096 count=1 skip="$2" iflag=direct 2>/dev/null; }
two_wait() { [ "$(awk '{ print $1 }' /sys/block/${1#/dev/}/inflight)" -ge 2 ]; }
nodes_gone() { [ ! -e "$1" ] && [ ! -e "$(echo "$1" | sed s/ublkb/ublkc/)" ]; }

# --- right bytes, right limits; a stuck fetch stalls only its own readers --------------------------------------------------
serve a /erofs.img stick=2097152:4096
a=$pid adev=$dev
[ "$(cat /sys/block/${adev#/dev/}/ro)" = 1 ] || die "not read-only"
[ "$(cat /sys/block/${adev#/dev/}/queue/logical_block_size)" = 512 ] || die "logical block size"
[ "$(cat /sys/block/${adev#/dev/}/queue/physical_block_size)" = 4096 ] || die "physical block size"
[ "$(blockdev --getsize64 $adev)" = "$(stat -c %s /erofs.img)" ] || die "size"
[ "$(cat /sys/block/${adev#/dev/}/queue/discard_max_bytes)" = 0 ] || die "offers discard"
# The thread of the queue gave up CAP_SYS_ADMIN (bit 21): no partition scan inside START_DEV.
for task in /proc/$a/task/*; do
	if [ "$(cat $task/comm)" = q0-a ]; then
		[ $((0x$(sed -n 's/^CapEff:.//p' $task/status) >> 21 & 1)) = 0 ] || die "the queue thread is still privileged"
		checked=1
	fi
done
[ "${checked:-}" = 1 ] || die "no thread of queue 0"
if dd if=/dev/zero of=$adev bs=4096 count=1 2>/dev/null; then die "could be written"; fi

block $adev 512 >/tmp/slow &
slow=$!
i=0
while [ $i -lt 300 ]; do
	block $adev $((i * 2 + 1)) >/tmp/fast
	dd if=/erofs.img bs=4096 count=1 skip=$((i * 2 + 1)) 2>/dev/null | cmp -s - /tmp/fast || die "block $((i * 2 + 1)) is wrong"
	i=$((i + 1))
done
kill -0 $slow 2>/dev/null || die "the stuck read is over"
say "300 readers passed a stuck one"
kill -USR2 $a
wait $slow || die "the stuck read failed"
dd if=/erofs.img bs=4096 count=1 skip=512 2>/dev/null | cmp - /tmp/slow || die "the stuck block is wrong"

[ "$(sha256sum <$adev | cut -d' ' -f1)" = "$(cat /erofs.img.sha256)" ] || die "sha256 of $adev"
say "sha256 of the device is right"
mkdir -p /mnt/a
mount -t erofs -o ro $adev /mnt/a
(cd /mnt/a && sha256sum -c /sums >/tmp/sums.out) || die "a file is wrong"
say "$(wc -l </sums) files are right"

# --- two at once -----------------------------------------------------------------------------------------------------------
serve b /ext4.img queues=2
b=$pid bdev=$dev
[ "$adev" != "$bdev" ] || die "the same device twice"
sha256sum <$adev >/tmp/suma &
one=$!
[ "$(sha256sum <$bdev | cut -d' ' -f1)" = "$(cat /ext4.img.sha256)" ] || die "sha256 of $bdev"
wait $one
[ "$(ls -d /sys/block/${bdev#/dev/}/mq/* | wc -l)" = 2 ] || die "not two queues"
for task in /proc/$b/task/*; do
	queue=$(sed -n 's/^q\([01]\)-b$/\1/p' $task/comm)
	[ -n "$queue" ] || continue
	[ "$(sed -n 's/^Cpus_allowed_list:.//p' $task/status)" = "$(tr -d ' ' </sys/block/${bdev#/dev/}/mq/$queue/cpu_list)" ] ||
		die "the thread of queue $queue is not on the processors of its readers"
	seated="${seated:-}$queue"
done
[ "${#seated}" = 2 ] || die "not a thread for each queue"
for i in 0 1 2 3 4 5 6 7 8 9 10 11; do
	dd if=$bdev bs=4096 skip=$((i * 300)) count=200 iflag=direct 2>/dev/null | sha256sum >/tmp/part$i &
	parts="${parts:-} $!"
done
for p in $parts; do wait $p; done
for i in 0 1 2 3 4 5 6 7 8 9 10 11; do
	dd if=/ext4.img bs=4096 skip=$((i * 300)) count=200 2>/dev/null | sha256sum | cmp -s - /tmp/part$i || die "part $i of $bdev"
done
[ "$(cut -d' ' -f1 /tmp/suma)" = "$(cat /erofs.img.sha256)" ] || die "sha256 of $adev beside $bdev"
mkdir -p /mnt/b
mount -t ext4 -o ro,noload $bdev /mnt/b
(cd /mnt/b && sha256sum -c /sums >/tmp/sums.out) || die "a file of ext4 is wrong"
umount /mnt/b
kill -TERM $b
until_true gone $b
wait $b || die "server b ended with an error"
nodes_gone $bdev || die "$bdev is still there"
say "two devices at once are right, one is gone"

# --- a mounted device is not taken away ------------------------------------------------------------------------------------
kill -TERM $a
until_true grep -q 'in use by a mount on /mnt/a' /tmp/a.out
(cd /mnt/a && sha256sum -c /sums >/tmp/sums.out) || die "a file is wrong after the refused stop"
umount /mnt/a
kill -TERM $a
until_true gone $a
wait $a || die "server a ended with an error"
nodes_gone $adev || die "$adev is still there"
grep -q 'errors: 0, .*dropped: 0, in_flight: 0' /tmp/a.out || die "counters of a: $(cat /tmp/a.out)"
say "a mounted device was kept, an unmounted one is gone"

# --- detach under load, with stuck fetches ---------------------------------------------------------------------------------
serve c /erofs.img stick=65536:4128768
c=$pid cdev=$dev
readers=
for i in 1 2 3 4 5 6 7 8; do
	# Each reads until it gets an error; the first blocks never come.
	(while dd if=$cdev of=/dev/null bs=65536 skip=$i iflag=direct 2>/dev/null; do :; done) &
	readers="$readers $!"
done
(while dd if=$cdev of=/dev/null bs=65536 skip=80 iflag=direct 2>/dev/null; do :; done) &
readers="$readers $!"
exec 9<$cdev # an opener that stays
until_true grep -q '[1-9]' /sys/block/${cdev#/dev/}/inflight
kill -TERM $c
until_true gone $c
wait $c || die "server c ended with an error"
for r in $readers; do until_true gone $r; done
nodes_gone $cdev || die "$cdev is still there"
exec 9<&-
grep -q 'dropped: 0, in_flight: 0' /tmp/c.out || die "counters of c: $(cat /tmp/c.out)"
say "detached under load"

# --- by force while mounted: errors, never zeros ----------------------------------------------------------------------------
serve d /erofs.img
d=$pid ddev=$dev
mkdir -p /mnt/d
mount -t erofs -o ro $ddev /mnt/d
cat /mnt/d/big1 >/dev/null
kill -USR1 $d
until_true grep -q refusing /tmp/d.out
[ "$(blockdev --getsize64 $ddev)" = "$(stat -c %s /erofs.img)" ] || die "the size of a mounted disk changed"
if dd if=$ddev of=/dev/null bs=4096 count=1 skip=900 iflag=direct 2>/dev/null; then die "a refusing device gave bytes"; fi
# What is read from here on is either in the page cache, and right, or an error.
echo 3 >/proc/sys/vm/drop_caches
refused=0
while read -r sum file; do
	if cat "/mnt/d/$file" >/tmp/copy 2>/dev/null; then
		[ "$(sha256sum </tmp/copy | cut -d' ' -f1)" = "$sum" ] || die "a refusing device gave other bytes for $file"
	else
		refused=$((refused + 1))
	fi
done </sums
[ $refused -gt 0 ] || die "nothing was refused"
kill -0 $d || die "server d went while its device was mounted"
umount /mnt/d
until_true gone $d
wait $d || die "server d ended with an error"
until_true nodes_gone $ddev
say "by force: errors, and gone with the last user"

# --- kill -9 under load, with a file system mounted: the next server goes on, three times ------------------------------------
serve e /erofs.img stick=4194304:65536
e=$pid edev=$dev
number=${edev#/dev/ublkb}
mkdir -p /mnt/e
mount -t erofs -o ro $edev /mnt/e
for round in 1 2 3; do
	dd if=$edev of=/tmp/stuck$round bs=65536 count=1 skip=64 iflag=direct 2>/dev/null &
	reader=$!
	until_true grep -q '[1-9]' /sys/block/${edev#/dev/}/inflight
	echo 3 >/proc/sys/vm/drop_caches
	(cd /mnt/e && sha256sum -c /sums >/tmp/walk.out 2>&1) &
	walker=$!
	# Both wait for what is stuck.
	until_true two_wait $edev
	kill -9 $e
	wait $e || :
	until_true sh -c "/bin/serve leftovers owner=7 2>/dev/null | grep -q 'waiting .$number.'"
	kill -0 $reader || die "the reader did not wait"
	[ -b $edev ] || die "$edev is gone"
	serve e /erofs.img resume=$number stick=4194304:65536
	e=$pid
	[ $dev = $edev ] || die "taken over as $dev"
	until_true grep -q '[1-9]' /sys/block/${edev#/dev/}/inflight
	kill -0 $reader && kill -0 $walker || die "the readers did not wait for the next server"
	# Files in what is stuck wait for it; here it comes.
	kill -USR2 $e
	wait $walker || die "a file is wrong after a kill: $(grep -v OK /tmp/walk.out | head -3)"
	wait $reader || die "the reader of round $round failed"
	dd if=/erofs.img bs=65536 count=1 skip=64 2>/dev/null | cmp - /tmp/stuck$round || die "wrong bytes after a kill"
	rm /tmp/walk.out
	# Killed with what is stuck in its way again.
	kill -HUP $e
	until_true gone $e
	wait $e || die "server e did not leave"
	grep -q left /tmp/e.out || die "server e: $(cat /tmp/e.out)"
	serve e /erofs.img resume=$number stick=4194304:65536
	e=$pid
done
/bin/serve leftovers owner=8 2>/dev/null | grep -q 'removed .. waiting ..$' || die "another agent's device was touched"
if /bin/serve id=x image=/ext4.img transport=ublk ready=/tmp/x resume=$number owner=7 2>/tmp/x.err; then die "another image took the device"; fi
grep -q 'and the image has' /tmp/x.err || die "$(cat /tmp/x.err)"
say "three kills and three upgrades under load: every byte is right"

# --- nobody knows the device any more: readers get errors, and it goes with its last user -----------------------------------
dd if=$edev of=/dev/null bs=65536 count=1 skip=64 iflag=direct 2>/dev/null &
reader=$!
until_true grep -q '[1-9]' /sys/block/${edev#/dev/}/inflight
kill -9 $e
wait $e || :
/bin/serve retire owner=7 number=$number >/tmp/retire.out 2>/tmp/retire.log &
retire=$!
until_true grep -q Refusing /tmp/retire.out
if wait $reader; then die "a retired device gave bytes"; fi
[ -b $edev ] || die "a mounted device was removed"
umount /mnt/e
until_true nodes_gone $edev
kill -TERM $retire
wait $retire || die "retire ended with an error"
say "a device without an owner was retired"
say "done"
