#!/usr/bin/env bats
# SPDX-License-Identifier: GPL-2.0-or-later
#
# A store that takes no more: --on-full=break, fail and wait. Old data may become unreadable, never wrong.

# shellcheck source=tests/helpers.bash
source "$BATS_TEST_DIRNAME/helpers.bash"

# serve_small ARGUMENT...: an origin of 16 MiB with the snapshot small, whose store has room for some 6 MiB.
serve_small() {
	make_image origin.img 16M
	server_start origin.img --volume=demo "$@"
	rowsnap format small.store --size=8M
	take demo origin.img small
}

# expect_same_or_error VOLUME NAME: each block of the snapshot reads as it was, or fails; sets good and bad, counts.
expect_same_or_error() {
	python3 - "$ROWSNAP_RUNDIR/$1.nbd" "$2" "$BATS_TEST_DIRNAME" >counts <<-'END'
		import sys
		sys.dont_write_bytecode = True
		sys.path.insert(0, sys.argv[3])
		from nbd_client import Client
		client, good, bad = Client(sys.argv[1]).begin(sys.argv[2]), 0, 0
		expected = open(sys.argv[2] + ".expected", "rb").read()
		for offset in range(0, len(expected), 4096):
		    data = client.read(offset, 4096)
		    error = data if isinstance(data, int) else 0
		    assert error in (0, 5), error
		    assert error or data == expected[offset:offset + 4096], f"wrong bytes at {offset}"
		    good, bad = good + (error == 0), bad + (error != 0)
		print(good, bad)
	END
	read -r good bad <counts
	echo "$2: $good blocks read as before, $bad fail"
}

@test "break: writes go on, what was preserved stays readable, the rest is an error" {
	serve_small --on-full=break
	export_io demo origin 'write -P 1 0 4M' 'flush'
	expect_snapshots demo small
	export_io demo origin 'write -P 2 4M 12M' 'flush'
	grep -q 'BROKEN' "$server_err"
	[[ $(list_json demo '.snapshots[0].state') == broken ]]
	[[ $(list_json demo '.snapshots[0].broken_reason') == *room* || $(list_json demo '.snapshots[0].broken_reason') == *full* ]]
	list_json demo '.snapshots[0].broken_since' | grep -Eq '^20[0-9-]+T[0-9:.]+Z$'
	rowsnap list demo | grep -q 'broken.*since'
	rowsnap status demo | head -n 1 | grep -q BROKEN
	snapshot_io demo small 'read 0 4M' >/dev/null
	expect_same_or_error demo small
	[[ $good -ge 1024 && $bad -ge 1024 ]]
	nbdcopy "$(nbd_uri demo origin)" read-back.img
	cmp read-back.img origin.img
	server_stop demo
}

@test "break: the state survives a stop and SIGKILL, and nothing unprotected is ever shown" {
	serve_small
	export_io demo origin 'write -P 1 0 12M'
	server_kill
	server_start origin.img --volume=demo
	[[ $(list_json demo '.snapshots[0].state') == broken ]]
	expect_same_or_error demo small
	export_io demo origin 'write -P 2 0 16M'
	expect_same_or_error demo small
	server_stop demo
	[[ $(rowsnap list ./small.store --json | jq -r '.snapshots[0].state') == broken ]]
	server_start origin.img --volume=demo
	[[ $(list_json demo '.snapshots[0].state') == broken ]]
	expect_same_or_error demo small
	[[ $good -ge 1024 ]]
	server_stop demo
}

@test "break: SIGKILL at many moments around the mark" {
	make_image origin.img 16M
	for round in 1 2 3 4 5 6; do
		rm -f small.store
		server_start origin.img --volume=demo
		rowsnap format small.store --size=8M
		take demo origin.img small
		cp --sparse=always origin.img model.img
		writer_begin demo model.img 0 "$round"
		sleep "0.$((round * 3 % 4))$((round * 7 % 10))"
		server_kill
		helper_wait "$writer_pid"
		server_start origin.img --volume=demo
		writer check origin.img model.img
		expect_same_or_error demo small
		rowsnap drop demo small
		server_stop demo
	done
}

@test "break: an older snapshot is broken for the same blocks, a new one works and protects" {
	make_image origin.img 16M
	server_start origin.img --volume=demo
	take demo origin.img older
	export_io demo origin 'write -P 7 8M 1M'
	rowsnap format small.store --size=8M
	take demo origin.img small
	export_io demo origin 'write -P 1 0 16M'
	expect_same_or_error demo older
	[[ $good -ge 256 && $bad -ge 1024 ]]
	snapshot_io demo older 'read 8M 1M' # its own store has it
	take demo origin.img newer
	export_io demo origin 'write -P 2 0 16M'
	expect_snapshots demo newer
	expect_same_or_error demo small
	rowsnap status demo | head -n 1 | grep -q good
	server_kill
	server_start origin.img --volume=demo
	expect_snapshots demo newer
	expect_same_or_error demo small
	expect_same_or_error demo older
	rowsnap drop demo older
	rowsnap drop demo small
	expect_snapshots demo newer
	server_stop demo
}

@test "fail: the write fails with no space, the snapshot stays whole" {
	serve_small --on-full=fail
	export_io demo origin 'write -P 1 0 4M' 'flush'
	run export_io demo origin 'write -P 2 4M 12M'
	[[ $output == *'No space left'* ]]
	expect_snapshots demo small
	[[ $(list_json demo '.snapshots[0].state') == active ]]
	export_io demo origin 'write -P 3 0 4M' # preserved already
	cp origin.img now.img
	take demo origin.img newer
	export_io demo origin 'write -P 4 8M 8M' 'flush'
	expect_snapshots demo small newer
	server_kill
	server_start origin.img --volume=demo --on-full=fail
	expect_snapshots demo small newer
	server_stop demo
}

@test "wait: writes wait, reads go on, the stop makes the writes fail and ends" {
	serve_small --on-full=wait
	export_io demo origin 'write -P 1 0 4M' 'flush'
	helper_begin qemu-io -f raw -c 'write -P 2 4M 12M' "$(nbd_uri demo origin)"
	wait_until 10 status_has demo .stuck
	rowsnap status demo | head -n 1 | grep -q 'wait'
	expect_snapshots demo small
	export_io demo origin 'read 0 4M' 'write -P 3 1M 1M' # preserved already
	run ! process_ended "$helper_pid"
	server_stop demo
	helper_wait
	server_start origin.img --volume=demo --on-full=wait
	expect_snapshots demo small
	server_stop demo
}

@test "wait: SIGTERM ends it, too" {
	serve_small --on-full=wait
	helper_begin qemu-io -f raw -c 'write -P 2 0 16M' "$(nbd_uri demo origin)"
	wait_until 10 status_has demo .stuck
	kill -TERM "$server_pid"
	server_wait
	[[ $server_status -eq 0 ]]
	helper_wait
	server_start origin.img --volume=demo
	expect_snapshots demo small
	server_stop demo
}

@test "wait: a new snapshot with room takes what waits" {
	serve_small --on-full=wait
	helper_begin qemu-io -f raw -c 'write -P 2 0 16M' "$(nbd_uri demo origin)"
	wait_until 10 status_has demo .stuck
	timeout $((20 * ROWSNAP_SLOW)) "$ROWSNAP" snapshot demo newer newer.store
	helper_wait
	[[ $helper_status -eq 0 ]]
	grep -q 'wrote 16777216/16777216' "$helper_out"
	expect_snapshots demo small
	server_stop demo
}

@test "a file system without room for the store is a full store" {
	require_root
	mkdir small
	mount -t tmpfs -o size=4M tmpfs small || skip 'no tmpfs can be mounted here'
	mounts+=("$dir/small")
	make_image origin.img 16M
	server_start origin.img --volume=demo
	rowsnap snapshot demo small small/small.store
	cp origin.img small.expected
	export_io demo origin 'write -P 1 0 16M' 'flush'
	[[ $(list_json demo '.snapshots[0].state') == broken ]]
	expect_same_or_error demo small
	[[ $good -gt 0 && $bad -gt 0 ]]
	rowsnap drop demo small
	rm small/small.store
	head -c 4M /dev/zero >small/ballast || true
	expect_error 'small/more.store.*No space left' snapshot demo more small/more.store
	[[ ! -e small/more.store ]]
	server_stop demo
}
