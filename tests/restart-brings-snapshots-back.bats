#!/usr/bin/env bats
# SPDX-License-Identifier: GPL-2.0-or-later
#
# After a stop, after SIGTERM and SIGKILL at any moment: every snapshot bit for bit, every answered write.

# shellcheck source=tests/helpers.bash
source "$BATS_TEST_DIRNAME/helpers.bash"

# The origin, three snapshots with writes between and after them: old, middle and new.
make_chain() {
	make_image origin.img 8M
	server_start origin.img --volume=demo
	take demo origin.img old
	write_some demo origin.img 100 1
	take demo origin.img middle
	write_some demo origin.img 100 2
	take demo origin.img new
	write_some demo origin.img 100 3
}

@test "after a stop, the stores may be named in any order" {
	make_chain
	server_stop demo
	for order in 'old middle new' 'new middle old' 'middle new old' 'new old middle'; do
		read -ra names <<<"$order"
		server_start origin.img --volume=demo "${names[@]/%/.store}"
		[[ $(list_json demo '[.snapshots[].name] | join(" ")') == 'old middle new' ]]
		expect_snapshots demo old middle new
		server_stop demo
	done
}

@test "after a stop, serve ORIGIN alone finds the stores and says so" {
	make_chain
	server_stop demo
	server_start origin.img --volume=demo
	grep -q 'old.store' "$server_err"
	grep -q 'new.store' "$server_err"
	expect_snapshots demo old middle new
	server_stop demo
}

@test "without the record the stores need only be named" {
	make_chain
	server_stop demo
	rm -r "$ROWSNAP_STATEDIR"
	server_start origin.img --volume=demo ./*.store
	expect_snapshots demo old middle new
	server_stop demo
}

@test "a clean stop and start changes no snapshot and copies nothing" {
	make_chain
	for _ in 1 2 3; do
		server_stop demo
		server_start origin.img --volume=demo
		[[ $(copied_blocks demo) -eq 0 ]]
	done
	blocks=$(list_json demo '.snapshots[2].blocks')
	export_io demo origin 'write -P 9 4M 4M' >io.out
	expect_snapshots demo old middle new
	[[ $(list_json demo '.snapshots[2].blocks') -ge $blocks ]]
	server_stop demo
}

@test "SIGTERM under load ends the server with 0, and what was answered is there" {
	make_chain
	for round in 1 2 3; do
		cp --sparse=always origin.img model.img
		writer_begin demo model.img 0 "$round"
		wait_until 10 wrote_more demo 300
		kill -TERM "$server_pid"
		server_wait
		[[ $server_status -eq 0 ]]
		helper_wait "$writer_pid"
		[[ $(rowsnap list ./new.store --json | jq -r '.snapshots[0].state') == active ]]
		[[ $(rowsnap inspect new.store --json | jq -r '.. | .clean? // empty' | head -n 1) == true ]]
		server_start origin.img --volume=demo
		expect_snapshots demo old middle new
		writer check origin.img model.img
	done
	server_stop demo
}

@test "SIGTERM under fio's load, snapshots as before" {
	make_chain
	helper_begin fio --name=load --ioengine=nbd "--uri=$(nbd_uri demo origin)" --rw=randwrite --bs=4k --iodepth=32 \
		--size=8M --time_based --runtime=60 --continue_on_error=none
	wait_until 20 wrote_more demo 2000
	kill -TERM "$server_pid"
	server_wait
	[[ $server_status -eq 0 ]]
	kill -KILL "$helper_pid" || true # fio may have noticed by itself
	server_start origin.img --volume=demo
	expect_snapshots demo old middle new
	server_stop demo
}

@test "SIGKILL at many moments under load loses no snapshot and no answered write" {
	make_image origin.img 8M
	server_start origin.img --volume=demo
	names=()
	for round in 1 2 3 4 5 6 7 8 9 10 11 12; do
		take demo origin.img "s$round"
		names+=("s$round")
		cp --sparse=always origin.img model.img
		writer_begin demo model.img 0 "$round"
		sleep "0.$((round * 3 % 5))$((round * 7 % 10))"
		server_kill
		helper_wait "$writer_pid"
		server_start origin.img --volume=demo
		writer check origin.img model.img
		expect_snapshots demo "${names[@]}"
		if [[ ${#names[@]} -gt 4 ]]; then
			rowsnap drop demo "${names[0]}"
			names=("${names[@]:1}")
		fi
	done
	server_stop demo
	server_start origin.img --volume=demo
	expect_snapshots demo "${names[@]}"
	server_stop demo
}

@test "SIGKILL while a snapshot is being taken leaves one valid chain" {
	make_image origin.img 8M
	server_start origin.img --volume=demo
	take demo origin.img base
	for round in 1 2 3 4 5 6 7 8 9 10; do
		rm -f ./new.store
		cp --sparse=always origin.img model.img
		writer_begin demo model.img 0 "$round"
		wait_until 10 wrote_more demo 50
		helper_begin "$ROWSNAP" snapshot demo new new.store
		snapshot_pid=$helper_pid
		sleep "0.0$((round * 3 % 10))"
		server_kill
		helper_wait "$snapshot_pid"
		returned=$helper_status
		helper_wait "$writer_pid"
		server_start origin.img --volume=demo
		expect_snapshots demo base
		writer check origin.img model.img
		chain=$(list_json demo '[.snapshots[].name] | join(" ")')
		[[ $chain == base || $chain == 'base new' ]]
		[[ $returned -ne 0 || $chain == 'base new' ]]
		if [[ $chain == 'base new' ]]; then
			nbdcopy "$(nbd_uri demo new)" new.img
			export_io demo origin "write -P $round 0 8M" >io.out
			nbdcopy "$(nbd_uri demo new)" read-back.img
			cmp new.img read-back.img
			expect_snapshots demo base
			rowsnap drop demo new
		fi
	done
	server_stop demo
}

@test "SIGKILL while a snapshot is being dropped: it is there, whole, or it is gone" {
	make_image origin.img 4M
	server_start origin.img --volume=demo
	take demo origin.img keep
	rowsnap drop demo keep
	rm keep.store
	for round in {1..12}; do
		take demo origin.img oldest
		write_some demo origin.img 20 "$round"
		take demo origin.img newest
		write_some demo origin.img 20 "$round"
		helper_begin "$ROWSNAP" drop demo oldest
		sleep "0.0$((round % 4))$((round * 3 % 10))"
		server_kill
		helper_wait
		server_start origin.img --volume=demo
		chain=$(list_json demo '[.snapshots[].name] | join(" ")')
		echo "round $round: $chain"
		[[ $chain == newest || $chain == 'oldest newest' ]]
		[[ $helper_status -ne 0 || $chain == newest ]]
		# shellcheck disable=SC2086 # it is a list
		expect_snapshots demo $chain
		[[ $chain == newest ]] || rowsnap drop demo oldest
		run ! rowsnap inspect oldest.store
		rowsnap drop demo newest
		rm oldest.store newest.store
	done
	server_stop demo
}

@test "snapshots taken under load read the same at once, later, and after SIGKILL" {
	make_image origin.img 8M
	server_start origin.img --volume=demo
	cp --sparse=always origin.img model.img
	writer_begin demo model.img 0 5
	for name in a b c d e f; do
		rowsnap snapshot demo $name $name.store
		nbdcopy "$(nbd_uri demo $name)" $name.expected
	done
	expect_snapshots demo a b c d e f
	server_kill
	helper_wait "$writer_pid"
	server_start origin.img --volume=demo
	expect_snapshots demo a b c d e f
	writer check origin.img model.img
	server_stop demo
}

@test "an older store may be left away, and is intact when it comes back" {
	make_chain
	server_stop demo
	mkdir cupboard
	cp old.store cupboard/
	rm old.store
	server_start origin.img --volume=demo middle.store new.store
	grep -q 'old' "$server_err"
	[[ $(list_json demo '[.snapshots[] | select(.state != "absent") | .name] | join(" ")') == 'middle new' ]]
	expect_snapshots demo middle new
	write_some demo origin.img 100 4
	take demo origin.img newer
	write_some demo origin.img 100 5
	server_stop demo
	server_start origin.img --volume=demo cupboard/old.store middle.store new.store newer.store
	expect_snapshots demo old middle new newer
	server_stop demo
}

@test "copies of the stores at other paths will do" {
	make_chain
	server_stop demo
	mkdir elsewhere
	cp --sparse=always ./*.store elsewhere/
	rm ./*.store
	server_start origin.img --volume=demo elsewhere/*.store
	expect_snapshots demo old middle new
	write_some demo origin.img 100 4
	server_stop demo
	server_start origin.img --volume=demo
	expect_snapshots demo old middle new
	server_stop demo
}

@test "the origin may be moved together with its stores" {
	make_chain
	server_stop demo
	mkdir elsewhere
	mv origin.img ./*.store elsewhere/
	server_start elsewhere/origin.img --volume=other elsewhere/*.store
	expect_snapshots other old middle new
	server_stop other
}

@test "after SIGKILL the sockets that were left are taken over" {
	make_chain
	server_kill
	[[ -S $ROWSNAP_RUNDIR/demo.sock && -S $ROWSNAP_RUNDIR/demo.nbd ]]
	server_start origin.img --volume=demo
	expect_snapshots demo old middle new
	server_stop demo
	[[ -z $(ls -A "$ROWSNAP_RUNDIR") ]]
}
