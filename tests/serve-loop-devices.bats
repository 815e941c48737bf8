#!/usr/bin/env bats
# SPDX-License-Identifier: GPL-2.0-or-later
#
# serve --loop: the origin and its snapshots as loop devices.

# shellcheck source=tests/helpers.bash
source "$BATS_TEST_DIRNAME/helpers.bash"

# serve_devices ARGUMENT...: origin.img as volume demo. Sets device, the origin's.
serve_devices() {
	require_loop_devices
	[[ -w /dev/fuse ]] || skip 'there is no /dev/fuse that may be opened'
	server_start origin.img --volume=demo --loop "$@"
	device=$(device_of origin)
}

# device_of NAME: as `list` says; empty when it has none.
device_of() {
	rowsnap list demo --json |
		jq -r --arg name "$1" '(if $name == "origin" then .origin else .snapshots[] | select(.name == $name) end).device // ""'
}

# A mount that the test's end undoes. mount_here DEVICE FOLDER OPTION...
mount_here() {
	mkdir -p "$2"
	mounts+=("$dir/$2")
	mount "${@:3}" "$1" "$2"
}

# A folder for --fuse. make_folder FOLDER
make_folder() {
	mkdir "$1"
	mounts+=("$dir/$1")
}

# Whether `list` says so.
has_device() {
	[[ -n $(device_of "$1") ]]
}

has_no_device() {
	[[ -z $(device_of "$1") ]]
}

# Whether a loop device has a file of this test's server behind it.
devices_left() {
	losetup --list --noheadings --output NAME,BACK-FILE | grep -F "$dir" || true
}

make_file_system() {
	truncate -s 32M origin.img
	mkfs.ext4 -q origin.img
}

@test "origin and snapshots are loop devices: of direct I/O, the right size, read-only where they should be" {
	make_image origin.img 4M
	cp origin.img before.img
	serve_devices
	grep -qx "origin $device" "$server_out"
	run ! grep -q nbd "$server_out"
	[[ $(blockdev --getsize64 "$device") -eq $((4 << 20)) ]]
	[[ $(blockdev --getro "$device") -eq 0 ]]
	[[ $(losetup --list --noheadings --output DIO "$device" | tr -d ' ') == 1 ]]
	run rowsnap snapshot demo monday ./monday.store
	[[ $output == *"device /dev/loop"* ]]
	monday=$(device_of monday)
	[[ $(blockdev --getro "$monday") -eq 1 ]]
	[[ $(rowsnap status demo --json | jq -r '.snapshots[0].device') == "$monday" ]]
	dd if=/dev/urandom of="$device" bs=4k count=300 seek=7 oflag=direct status=none
	dd if=/dev/urandom of="$device" bs=1M count=1 seek=2 conv=fsync status=none
	cmp "$monday" before.img
	run ! cmp -s "$device" before.img
	run ! dd if=/dev/zero of="$monday" bs=4k count=1 oflag=direct status=none
	rowsnap drop demo monday
	wait_until 5 not_attached "$monday"
	server_stop demo
	[[ -z $(devices_left) ]]
	[[ ! -e $ROWSNAP_RUNDIR/demo.fuse ]]
	run ! cmp -s origin.img before.img
}

not_attached() {
	[[ ! -e /sys/block/${1#/dev/}/loop/backing_file ]]
}

@test "a file system: mkfs, mount, work, snapshot, compare, drop, unmount, stop" {
	truncate -s 64M origin.img
	serve_devices
	mkfs.ext4 -q "$device"
	mount_here "$device" mnt
	cp -r /usr/share/common-licenses mnt/first
	rowsnap snapshot demo monday ./monday.store --freeze=mnt
	cp -r mnt/first "$dir/first"
	cp -r /usr/share/common-licenses mnt/second
	rm -r mnt/first
	sync -f mnt
	mount_here "$(device_of monday)" past -o ro,noload
	diff -r past/first first
	[[ ! -e past/second && ! -e mnt/first ]]
	expect_error 'is mounted on .*/past' drop demo monday
	diff -r past/first first
	umount past
	rowsnap drop demo monday
	umount mnt
	server_stop demo
	e2fsck -fn origin.img
}

@test "started again with snapshots: each has its device; exports by NBD and files beside them" {
	make_image origin.img 2M
	serve_devices --nbd
	take demo origin.img one two
	server_stop demo
	make_folder files
	serve_devices --nbd --fuse=files
	grep -qx "one $(device_of one)" "$server_out"
	grep -qx "two $(device_of two)" "$server_out"
	dd if=/dev/urandom of="$device" bs=4k count=8 oflag=direct status=none
	for name in one two; do
		cmp "$(device_of $name)" $name.expected
		cmp files/snapshots/$name $name.expected
	done
	expect_snapshots demo one two
	server_stop demo
	[[ -z $(devices_left) ]]
}

@test "stop waits while a file system is mounted, says who holds the device, and serves on" {
	make_file_system
	serve_devices
	mount_here "$device" mnt
	helper_begin "$ROWSNAP" stop demo
	wait_until 10 grep -q "$device is mounted on $dir/mnt" "$helper_out"
	head -c 300000 /dev/urandom >mnt/file
	sync -f mnt
	expect_error 'the server is stopping' snapshot demo late ./late.store
	[[ $(device_of origin) == "$device" ]]
	umount mnt
	helper_wait
	[[ $helper_status -eq 0 ]]
	server_wait
	[[ $server_status -eq 0 ]]
	grep -q "waiting to stop: $device is mounted on $dir/mnt" "$server_err"
	[[ -z $(devices_left) ]]
	e2fsck -fn origin.img
}

@test "a reader that has the device open is named, and waited for" {
	make_image origin.img 1M
	serve_devices
	# shellcheck disable=SC2217 # it only has it open
	sleep 60 <"$device" 3>&- &
	reader=$!
	helper_begin "$ROWSNAP" stop demo
	wait_until 10 grep -q "$device is open in process $reader (sleep)" "$helper_out"
	kill "$reader"
	helper_wait
	[[ $helper_status -eq 0 ]]
	server_wait
	[[ $server_status -eq 0 ]]
}

@test "stop --force, and a second signal, do not wait: what is mounted gets errors, and nothing is left" {
	make_file_system
	serve_devices
	mount_here "$device" mnt
	echo kept >mnt/file
	sync -f mnt
	rowsnap stop demo --force
	server_wait
	[[ $server_status -eq 0 ]]
	run ! dd if="$device" of=/dev/null iflag=direct count=1 status=none
	umount mnt
	wait_until 5 not_attached "$device"
	serve_devices
	mount_here "$device" mnt
	[[ $(cat mnt/file) == kept ]]
	kill -TERM "$server_pid"
	wait_until 10 grep -q "waiting to stop: $device is mounted" "$server_err"
	kill -TERM "$server_pid"
	server_wait
	[[ $server_status -eq 0 ]]
	umount mnt
	wait_until 5 not_attached "$device"
}

@test "after SIGKILL nothing stays attached, and the next server goes on" {
	make_image origin.img 2M
	serve_devices
	take demo origin.img monday
	server_kill
	wait_until 5 not_attached "$device"
	[[ -z $(devices_left) ]]
	serve_devices
	dd if=/dev/urandom of="$device" bs=4k count=8 oflag=direct status=none
	cmp "$(device_of monday)" monday.expected
	server_stop demo
}

@test "after SIGKILL with a file system mounted: errors, no hang; the next server names it and serves anew" {
	make_file_system
	serve_devices
	mount_here "$device" mnt
	echo kept >mnt/file
	sync -f mnt
	old=$device
	server_kill
	wait_until 10 no_keeper
	run timeout 20 dd if="$old" of=/dev/null iflag=direct count=1 status=none
	[[ $status -ne 0 && $status -ne 124 ]]
	serve_devices
	[[ $device != "$old" ]]
	grep -q "$old, of a server that is dead now, is mounted on $dir/mnt" "$server_err"
	umount mnt
	wait_until 5 not_attached "$old"
	mount_here "$device" mnt
	[[ $(cat mnt/file) == kept ]]
	umount mnt
	server_stop demo
}

no_keeper() {
	! pgrep -P 1 -x rowsnap-loop >/dev/null
}

@test "the keeper killed as well: what it left is cleaned up by the next server" {
	make_image origin.img 1M
	serve_devices
	exec 7<"$device"
	pkill -KILL -P "$server_pid" -f -x '.*' || true
	server_kill
	exec 7<&-
	wait_until 5 not_attached "$device"
	serve_devices
	server_stop demo
	[[ -z $(devices_left) ]]
}

find_keeper() {
	keeper=$(pgrep -P "$server_pid" -x rowsnap-loop)
}

@test "the keeper killed while we serve: what is mounted stays and is waited for, what is not is shown no more" {
	make_file_system
	serve_devices
	take demo origin.img monday tuesday
	mount_here "$device" mnt
	mount_here "$(device_of monday)" past -o ro,noload
	tuesday=$(device_of tuesday)
	find_keeper
	kill -KILL "$keeper"
	wait_until 5 not_attached "$tuesday"
	wait_until 5 has_no_device tuesday
	[[ $(device_of origin) == "$device" ]]
	expect_error 'its device /dev/loop[0-9]+ is still open somewhere' drop demo monday
	umount past
	wait_until 5 has_no_device monday
	rowsnap drop demo monday
	helper_begin "$ROWSNAP" stop demo
	wait_until 10 grep -q "$device is open somewhere" "$helper_out"
	echo more >mnt/file
	sync -f mnt
	umount mnt
	helper_wait
	[[ $helper_status -eq 0 ]]
	server_wait
	[[ $server_status -eq 0 && -z $(devices_left) ]]
	e2fsck -fn origin.img
}

@test "the keeper killed while a drop asks it: the drop is answered" {
	make_image origin.img 1M
	serve_devices
	take demo origin.img monday
	find_keeper
	kill -STOP "$keeper"
	helper_begin "$ROWSNAP" drop demo monday
	sleep 0.3
	kill -KILL "$keeper"
	helper_wait
	[[ $helper_status -eq 0 ]]
	server_stop demo
}

@test "the keeper stopped: a stop wakes it up" {
	make_image origin.img 1M
	serve_devices
	find_keeper
	kill -STOP "$keeper"
	server_stop demo
	[[ -z $(devices_left) ]]
}

@test "two file systems mounted at the stop: one line each, not one after the other for ever" {
	make_file_system
	serve_devices
	take demo origin.img monday
	mount_here "$device" mnt
	mount_here "$(device_of monday)" past -o ro,noload
	kill -TERM "$server_pid"
	wait_until 10 grep -q "waiting to stop: $device is mounted" "$server_err"
	sleep 1
	umount mnt
	wait_until 10 grep -q "waiting to stop: .* is mounted on $dir/past" "$server_err"
	[[ $(grep -c 'waiting to stop' "$server_err") -eq 2 ]]
	umount past
	server_wait
	[[ $server_status -eq 0 ]]
}

@test "--on-full=wait, and writes wait in the system's cache: a stop says so, stop --force ends it" {
	make_image origin.img 16M
	serve_devices --on-full=wait
	rowsnap format monday.store --size=4M
	rowsnap snapshot demo monday monday.store
	helper_begin dd if=/dev/zero of="$device" bs=1M count=12 conv=notrunc,fsync
	writer=$helper_pid
	wait_until 10 status_has demo .stuck
	helper_begin "$ROWSNAP" stop demo
	wait_until 10 grep -q 'writes wait for room in a store' "$helper_out"
	rowsnap stop demo --force
	server_wait
	helper_wait "$writer"
	[[ $helper_status -ne 0 ]]
	wait_until 10 not_attached "$device"
}

serve_with_closed_descriptors() {
	"$ROWSNAP" serve origin.img --volume=demo --loop 3>&- <&- >&- 2>&- &
	server_pid=$!
	server_pids+=("$server_pid")
}

@test "standard input and output closed: served all the same" {
	make_image origin.img 1M
	require_loop_devices
	serve_with_closed_descriptors
	wait_until 20 has_device origin
	cmp "$(device_of origin)" origin.img
	take demo origin.img monday
	cmp "$(device_of monday)" monday.expected
	server_stop demo
}

@test "losetup -d by hand does not take the device away" {
	make_image origin.img 1M
	serve_devices
	losetup --detach "$device"
	cmp "$device" origin.img
	server_stop demo
	[[ -z $(devices_left) ]]
}

@test "the private folder unmounted by hand: I/O errors, one line in the log, and stop still ends it" {
	make_image origin.img 1M
	serve_devices
	umount -l "$ROWSNAP_RUNDIR/demo.fuse"
	cmp "$device" origin.img
	take demo origin.img monday
	grep -q 'loop devices: monday: ' "$server_err"
	[[ -z $(device_of monday) ]]
	server_stop demo
	[[ -z $(devices_left) ]]
}

@test "a dropped snapshot's device that somebody reads: errors for him, and the store is free" {
	make_image origin.img 4M
	serve_devices
	take demo origin.img monday
	monday=$(device_of monday)
	exec 7<"$monday"
	rowsnap drop demo monday
	run ! rowsnap inspect monday.store
	rm monday.store
	run ! dd bs=4k count=1 iflag=direct status=none of=/dev/null <&7
	grep -q "$monday is open in process $$.*: it is detached when that ends" "$server_err"
	exec 7<&-
	wait_until 5 not_attached "$monday"
	server_stop demo
}

# is_smaller FILE COUNT: in blocks that it takes up.
is_smaller() {
	[[ $(stat -c %b "$1") -lt $2 ]]
}

@test "--discard: skip offers none; copy frees the origin's space and the snapshot keeps what was there" {
	make_file_system
	serve_devices
	[[ $(cat "/sys/block/${device#/dev/}/queue/discard_max_bytes") -eq 0 ]]
	run ! blkdiscard --force "$device"
	server_stop demo
	serve_devices --discard=copy
	[[ $(cat "/sys/block/${device#/dev/}/queue/discard_max_hw_bytes") -gt 0 ]]
	[[ $(cat "/sys/block/${device#/dev/}/queue/discard_max_bytes") -gt 0 ]] ||
		skip "somebody has switched discards off for $device"
	mount_here "$device" mnt -o discard
	head -c 8M /dev/urandom >mnt/file
	sync -f mnt
	sum=$(checksum mnt/file)
	take demo origin.img monday
	most=$(($(stat -c %b origin.img) - 8000))
	rm mnt/file
	sync -f mnt
	fstrim mnt
	wait_until 10 is_smaller origin.img "$most"
	mount_here "$(device_of monday)" past -o ro,noload
	[[ $(checksum past/file) == "$sum" ]]
	umount past mnt
	server_stop demo
}

@test "a store on a file system that lives on the volume itself is refused" {
	make_file_system
	serve_devices
	mount_here "$device" mnt
	expect_error "lies on this server's own export, $device" snapshot demo monday mnt/monday.store
	[[ ! -e mnt/monday.store ]]
	truncate -s 16M mnt/inner.img
	mkfs.ext4 -q mnt/inner.img
	attach_loop mnt/inner.img
	mount_here "$loop" inner
	expect_error "lies on this server's own export" snapshot demo monday inner/monday.store
	umount inner
	losetup --detach "$loop"
	umount mnt
	server_stop demo
}

@test "a store that is one of the served files, by another mount of them, is refused" {
	make_image origin.img 1M
	make_folder files
	mkdir elsewhere
	serve_devices --fuse=files
	mounts=("$dir/elsewhere" "${mounts[@]}")
	mount --bind files elsewhere
	expect_error "lies on this server's own export, $dir/files" snapshot demo monday elsewhere/origin
	umount elsewhere
	server_stop demo
}

@test "--run finds the device in ROWSNAP_DEVICE, and ends with its file system unmounted" {
	require_loop_devices
	make_image origin.img 1M
	# shellcheck disable=SC2016 # the served shell expands it
	run -0 "$ROWSNAP" serve origin.img --volume=demo --loop --run='cmp "$ROWSNAP_DEVICE" origin.img && echo same'
	[[ $output == *same* ]]
	[[ -z $(devices_left) ]]
}

@test "not root: one clear error" {
	require_root
	make_image origin.img 1M
	chmod 777 "$dir" && chmod 666 origin.img
	cp "$ROWSNAP" rowsnap
	run -1 setpriv --reuid=65534 --regid=65534 --clear-groups env ROWSNAP_RUNDIR="$dir/r2" ROWSNAP_STATEDIR="$dir/s2" \
		./rowsnap serve origin.img --volume=demo --loop
	echo "$output"
	[[ $output == 'rowsnap serve: --loop: only root may make loop devices'* ]]
}

@test "no free loop device, and no loop driver: one clear error, nothing left" {
	require_loop_devices
	require_command unshare
	make_image origin.img 1M
	serve_devices
	take demo origin.img monday
	server_stop demo
	# A /dev without the driver's node.
	run -1 unshare --mount sh -c 'mount --bind /dev/null /dev/loop-control && exec "$@"' sh \
		"$ROWSNAP" serve origin.img --volume=demo --loop
	[[ $output == *'rowsnap serve: --loop: origin: no loop device is free: '* ]]
	[[ $output != *monday:* && $output != *'rowsnap: ready'* ]]
	[[ ! -e $ROWSNAP_RUNDIR/demo.fuse && ! -e $ROWSNAP_RUNDIR/demo.sock ]]
	# It ended in order.
	rowsnap inspect monday.store | grep -Eq "clean +true"
}

@test "no /dev/fuse: one clear error, and the private folder is gone" {
	require_loop_devices
	require_command unshare
	make_image origin.img 1M
	run -1 unshare --mount sh -c 'mount --bind /dev/null /dev/fuse && exec "$@"' sh \
		"$ROWSNAP" serve origin.img --volume=demo --loop
	[[ $output == *"rowsnap serve: $ROWSNAP_RUNDIR/demo.fuse: "* ]]
	[[ ! -e $ROWSNAP_RUNDIR/demo.fuse ]]
}

@test "a server that hangs does not hang another one: its devices' files are not looked at" {
	make_image origin.img 1M
	make_image other.img 1M
	serve_devices
	kill -STOP "$server_pid"
	timeout $((10 * ROWSNAP_SLOW)) "$ROWSNAP" serve other.img --volume=other --run='echo ran' >out 2>err || true
	kill -CONT "$server_pid"
	grep -qx ran out
	server_stop demo
}
