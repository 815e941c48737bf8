#!/usr/bin/env bats
# SPDX-License-Identifier: GPL-2.0-or-later
#
# snapshot --freeze: the file system is quiet in the snapshot, and nothing leaves it frozen.

# shellcheck source=tests/helpers.bash
source "$BATS_TEST_DIRNAME/helpers.bash"

# A file system of its own on a loop device, mounted at mnt. It is frozen and thawed; it need not be the origin's.
mount_loop() {
	require_loop_devices
	truncate --size=32M fs.img
	mkfs.ext4 -q fs.img
	attach_loop fs.img
	mkdir mnt
	mount "$loop" mnt
	mounts+=("$dir/mnt")
}

can_write() {
	timeout 2 sh -c 'echo text >mnt/file && sync mnt/file'
}

@test "a frozen file system is thawed again, and the snapshot taken" {
	mount_loop
	make_image origin.img 1M
	server_start origin.img --volume=demo
	rowsnap snapshot demo s1 s1.store --freeze=mnt
	can_write
	rowsnap snapshot demo s2 s2.store --freeze "$dir/mnt"
	can_write
	[[ $(list_json demo '[.snapshots[].name] | join(" ")') == 's1 s2' ]]
	server_stop demo
}

@test "when the snapshot fails it is thawed, too" {
	mount_loop
	make_image origin.img 1M
	server_start origin.img --volume=demo
	rowsnap snapshot demo s1 s1.store
	expect_error 's1' snapshot demo s1 s2.store --freeze=mnt
	can_write
	[[ ! -e s2.store ]]
	server_stop demo
}

@test "what cannot be frozen is told" {
	require_root
	make_image origin.img 1M
	server_start origin.img --volume=demo
	mkdir folder
	expect_error 'nosuch.*No such file' snapshot demo s1 s1.store --freeze=nosuch
	expect_error 'origin\.img.*not a folder|origin\.img.*not a mount' snapshot demo s1 s1.store --freeze=origin.img
	expect_error 'folder' snapshot demo s1 s1.store --freeze=folder # its file system holds the store
	[[ ! -e s1.store ]]
	[[ $(list_json demo '.snapshots | length') -eq 0 ]]
	server_stop demo
}

@test "a folder that is not a mount point is refused" {
	mount_loop
	mkdir mnt/folder
	make_image origin.img 1M
	server_start origin.img --volume=demo
	expect_error 'mount point' snapshot demo s1 s1.store --freeze=mnt/folder
	can_write
	server_stop demo
}

@test "a file system that holds a store or the origin is refused" {
	mount_loop
	make_image origin.img 1M
	server_start origin.img --volume=demo
	expect_error 'store' snapshot demo s1 mnt/s1.store --freeze=mnt
	[[ ! -e mnt/s1.store ]]
	rowsnap snapshot demo s1 mnt/s1.store
	expect_error 'store' snapshot demo s2 s2.store --freeze=mnt
	server_stop demo
	make_image mnt/other.img 1M
	server_start mnt/other.img
	expect_error 'origin' snapshot other s2 s2.store --freeze=mnt
	server_stop other
	can_write
}

# fake_server: stands in for one that never answers when asked for the snapshot; makes the file "asked" then.
fake_server() {
	rm -f asked
	helper_begin python3 -c '
import socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
first, _ = listener.accept()
first.recv(1000)
first.sendall(b"{\"result\":{\"snapshots\":[],\"block_bytes\":4096}}\n")
second, _ = listener.accept()
second.recv(1000)
open("asked", "w").close()
second.recv(1000)' "$ROWSNAP_RUNDIR/slow.sock"
	wait_until 5 test -S "$ROWSNAP_RUNDIR/slow.sock"
}

# Whoever writes to a frozen file system sleeps, and cannot be killed.
is_asleep() {
	[[ $(<"/proc/$1/stat") == *') D '* ]]
}

@test "killed while it is frozen, the file system is thawed" {
	mount_loop
	for signal in KILL TERM HUP; do # (bash starts its helpers with SIGINT ignored)
		fake_server
		helper_begin "$ROWSNAP" snapshot slow s1 s1.store --freeze=mnt
		snapshot_pid=$helper_pid
		wait_until 5 test -e asked
		helper_begin dd if=/dev/zero of=mnt/file bs=4k count=1 conv=fsync
		wait_until 5 is_asleep "$helper_pid"
		kill -"$signal" "$snapshot_pid"
		helper_wait "$helper_pid"
		[[ $helper_status -eq 0 ]]
		can_write
		rm -f "$ROWSNAP_RUNDIR/slow.sock" s1.store
	done
}

@test "when the server dies while it is frozen, it is thawed" {
	mount_loop
	fake_server
	server_pid=$helper_pid
	helper_begin "$ROWSNAP" snapshot slow s1 s1.store --freeze=mnt
	wait_until 5 test -e asked
	kill -KILL "$server_pid"
	helper_wait
	[[ $helper_status -eq 1 ]]
	can_write
}
