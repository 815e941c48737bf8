#!/usr/bin/env bats
# SPDX-License-Identifier: GPL-2.0-or-later
#
# The fold behind a drop: long ones show where they are, survive SIGKILL, and are refused where there is no room.

# shellcheck source=tests/helpers.bash
source "$BATS_TEST_DIRNAME/helpers.bash"

SIZE=$((192 << 20))

# A served origin with the snapshots a, b and c: b has nearly all of the disk, a and c little.
serve_big_chain() {
	make_image origin.img $SIZE
	server_start origin.img --volume=demo
	take demo origin.img a
	export_io demo origin 'write -P 1 0 1M' 'write -P 2 333 1000'
	take demo origin.img b
	export_io demo origin "write -P 3 0 64M" "write -P 4 64M 64M" "write -P 5 128M 48M"
	take demo origin.img c
	export_io demo origin 'write -P 6 4M 1M'
}

is_folding() {
	list_json demo '.snapshots[] | select(.fold_total_blocks > 0)' >/dev/null
}

is_dropped() {
	[[ $(list_json demo "[.snapshots[].name] | index(\"$1\") | tostring") == null ]]
}

@test "a fold shows its progress in list and status, and --background returns at once" {
	serve_big_chain
	rowsnap drop demo b --background >out
	grep -q 'b' out
	seen=
	until is_dropped b; do
		if list=$(rowsnap list demo) && [[ $list == *'blocks folded'* ]]; then
			seen+=l
			[[ $(rowsnap status demo) != *'blocks folded'* ]] || seen+=s
			[[ $list == *folding* ]] && seen+=f
		fi
	done
	echo "seen: $seen"
	[[ $seen == *l* && $seen == *f* ]]
	expect_snapshots demo a c
	run ! rowsnap inspect b.store
	server_stop demo
}

@test "a fold with its waiting command shows progress when asked to" {
	serve_big_chain
	rowsnap drop demo b --progress=always 2>err
	tr '\r' '\n' <err | grep -q 'of [0-9]* blocks folded'
	rowsnap drop demo c --progress=never 2>err
	[[ ! -s err ]]
	expect_snapshots demo a
	server_stop demo
}

@test "the volume is read and written during a fold" {
	serve_big_chain
	cp --sparse=always origin.img model.img
	writer_begin demo model.img 0 4
	helper_begin "$ROWSNAP" drop demo b
	drop_pid=$helper_pid
	until process_ended "$drop_pid"; do
		snapshot_io demo a 'read 100M 8M' >/dev/null
		snapshot_io demo c 'read 100M 8M' >/dev/null
	done
	helper_wait "$drop_pid"
	[[ $helper_status -eq 0 ]]
	writer_end
	expect_snapshots demo a c
	writer check origin.img model.img
	server_stop demo
}

@test "SIGKILL during a fold: the next start finishes it, and nothing is lost" {
	serve_big_chain
	helper_begin "$ROWSNAP" drop demo b
	wait_until 20 is_folding
	server_kill
	helper_wait
	[[ $helper_status -eq 1 ]]
	server_start origin.img --volume=demo
	expect_snapshots demo a c
	server_kill
	server_start origin.img --volume=demo
	expect_snapshots demo a c
	wait_until 60 is_dropped b
	expect_snapshots demo a c
	server_stop demo
	run ! rowsnap inspect b.store
	server_start origin.img --volume=demo
	expect_snapshots demo a c
	server_stop demo
}

@test "SIGKILL while the newest is folded, with writes going on" {
	serve_big_chain
	rowsnap drop demo c
	for round in 1 2 3; do
		cp --sparse=always origin.img model.img
		writer_begin demo model.img 0 $round
		if ! is_dropped b; then
			helper_begin "$ROWSNAP" drop demo b
			drop_pid=$helper_pid
			sleep "0.$((round * 2))"
		fi
		server_kill
		helper_wait "$drop_pid"
		helper_wait "$writer_pid"
		server_start origin.img --volume=demo
		writer check origin.img model.img
		expect_snapshots demo a
	done
	wait_until 60 is_dropped b
	expect_snapshots demo a
	server_stop demo
}

@test "a stop during a fold leaves it for the next start" {
	serve_big_chain
	rowsnap drop demo b --background
	server_stop demo
	server_start origin.img --volume=demo
	expect_snapshots demo a c
	wait_until 60 is_dropped b
	expect_snapshots demo a c
	server_stop demo
}

@test "a fold for which the older store has no room is refused, and all stays" {
	make_image origin.img 32M
	server_start origin.img --volume=demo
	rowsnap format a.store --size=8M
	take demo origin.img a b
	export_io demo origin 'write -P 1 0 24M' 'flush'
	expect_error 'room|space' drop demo b
	expect_snapshots demo a b
	take demo origin.img c
	export_io demo origin 'write -P 2 0 24M' 'flush'
	expect_error 'room|space' drop demo b
	expect_snapshots demo a b c
	rowsnap drop demo a
	expect_snapshots demo b c
	rowsnap drop demo c
	expect_snapshots demo b
	server_stop demo
	server_start origin.img --volume=demo
	expect_snapshots demo b
	server_stop demo
}

@test "other commands are answered during a fold, and snapshots can be taken after it" {
	serve_big_chain
	rowsnap drop demo b --background
	rowsnap list demo >/dev/null
	rowsnap status demo >/dev/null
	take demo origin.img d # waits for the fold, or goes with it
	export_io demo origin 'write -P 9 100M 8M'
	wait_until 60 is_dropped b
	expect_snapshots demo a c d
	server_stop demo
}
