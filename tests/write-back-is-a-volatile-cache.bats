#!/usr/bin/env bats
# SPDX-License-Identifier: GPL-2.0-or-later
#
# --write-back: writes are answered from memory. What a flush, a snapshot, a stop and a late error mean then.
# That every read sees what was written is conformance.py's, which has this as a transport of its own.

# shellcheck source=tests/helpers.bash
source "$BATS_TEST_DIRNAME/helpers.bash"

# client STATEMENTS: Python, with `client` begun on the export origin, and WRITE, FLUSH, FUA.
client() {
	python3 - "$ROWSNAP_RUNDIR/demo.nbd" "$BATS_TEST_DIRNAME" "$1" <<-'END'
		import sys
		sys.dont_write_bytecode = True
		sys.path.insert(0, sys.argv[2])
		from nbd_client import Client
		client = Client(sys.argv[1]).begin("origin")
		WRITE, FLUSH, FUA = 1, 3, 1
		def write(block, byte, flags=0):
		    return client.do(WRITE, block * 4096, 4096, bytes([byte]) * 4096, flags)
		import textwrap
		exec(textwrap.dedent(sys.argv[3].strip("\n")))
	END
}

buffer() {
	rowsnap status demo --json | jq ".write_back.$1"
}

@test "after a flush, and with FUA, what was written outlives SIGKILL; nobody ever sees older data" {
	make_image origin.img 8M
	server_start origin.img --volume=demo --write-back=2M
	take demo origin.img s1
	client '
		for block in range(64):
		    assert write(block * 3, 1) == 0
		    assert client.read(block * 3 * 4096, 4096) == b"\1" * 4096
		    assert client.read(block * 3 * 4096 + 512, 1024) == b"\1" * 1024
		assert client.do(FLUSH) == 0
		assert write(1000, 2, FUA) == 0'
	[[ $(buffer writes) -ge 64 && $(buffer size_bytes) -eq $((2 << 20)) ]]
	server_kill
	for block in $(seq 0 3 189); do
		cmp -n 4096 -i $((block * 4096)):0 origin.img <(tr '\0' '\1' </dev/zero)
	done
	cmp -n 4096 -i $((1000 * 4096)):0 origin.img <(tr '\0' '\2' </dev/zero)
	server_start origin.img --volume=demo
	expect_snapshots demo s1
	[[ $(rowsnap status demo --json | jq .write_back) == null ]]
	server_stop demo
}

@test "a snapshot has every write that was answered before it was asked for, and a clean stop loses none" {
	make_image origin.img 8M
	server_start origin.img --volume=demo --write-back=4M
	take demo origin.img s1
	for round in 1 2 3; do
		client "
			for block in range(200):
			    assert write(block * 7 % 2048, $round) == 0"
		rowsnap snapshot demo "t$round" "t$round.store"
		nbdcopy "$(nbd_uri demo "t$round")" "t$round.img"
		cmp -n 4096 "t$round.img" <(tr '\0' "\\$round" </dev/zero)
		cmp -n 4096 -i $((199 * 7 * 4096)):0 "t$round.img" <(tr '\0' "\\$round" </dev/zero)
	done
	client 'assert [write(block, 9) for block in range(100)] == [0] * 100'
	server_stop demo
	cmp -n 409600 origin.img <(tr '\0' '\11' </dev/zero)
	server_start origin.img --volume=demo
	expect_snapshots demo s1
	server_stop demo
}

@test "a buffered write that fails later is logged and told by the next flush, once; no snapshot is taken meanwhile" {
	make_image origin.img 16M
	server_start origin.img --volume=demo --write-back=1M --on-full=fail
	rowsnap format small.store --size=3M
	take demo origin.img small
	client '
		for block in range(3000):
		    assert write(block, 5) == 0'
	wait_until 10 written_back
	[[ $(buffer late_errors) -ge 1 ]]
	grep -q 'a buffered write of .* failed' "$server_err"
	expect_error 'a buffered write has failed' snapshot demo late late.store
	client 'assert client.do(FLUSH) == 28 and client.do(FLUSH) == 0' # ENOSPC
	expect_snapshots demo small
	rowsnap snapshot demo late late.store
	server_stop demo
}

written_back() {
	[[ $(buffer dirty_bytes) -eq 0 ]]
}

@test "a stop before the late error was told exits with 1 and says why" {
	make_image origin.img 16M
	server_start origin.img --volume=demo --write-back=1M --on-full=fail
	rowsnap format small.store --size=3M
	take demo origin.img small
	client '
		for block in range(3000):
		    assert write(block, 5) == 0'
	kill -TERM "$server_pid"
	server_wait
	[[ $server_status -eq 1 ]]
	grep -q 'writes that were buffered failed' "$server_err"
	server_start origin.img --volume=demo
	expect_snapshots demo small
	server_stop demo
}

@test "a size out of bounds is refused" {
	make_image origin.img 1M
	expect_usage_error 'a size' serve origin.img --write-back=1K
	expect_usage_error 'a size' serve origin.img --write-back=65G
	expect_usage_error 'a size' serve origin.img --write-back=much
}
