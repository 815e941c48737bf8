#!/usr/bin/env bats
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Several commands at once, commands that are given up, and a stop in the middle of them: one after another, or refused.

# shellcheck source=tests/helpers.bash
source "$BATS_TEST_DIRNAME/helpers.bash"

@test "snapshots asked for at the same time are all taken" {
	make_image origin.img 4M
	server_start origin.img --volume=demo
	for n in 1 2 3 4 5 6; do
		helper_begin "$ROWSNAP" snapshot demo "s$n" "s$n.store"
	done
	helpers_end
	[[ $helpers_good -eq 6 ]]
	[[ $(list_json demo '.snapshots | length') -eq 6 ]]
	cp origin.img all.expected
	write_some demo origin.img 50 1
	for n in 1 2 3 4 5 6; do
		nbdcopy "$(nbd_uri demo "s$n")" read-back.img
		cmp read-back.img all.expected
	done
	server_stop demo
}

@test "the same name or the same store asked for twice at the same time is taken once" {
	make_image origin.img 4M
	server_start origin.img --volume=demo
	for n in 1 2 3 4; do
		helper_begin "$ROWSNAP" snapshot demo same "s$n.store"
	done
	helpers_end
	[[ $helpers_good -eq 1 ]]
	[[ $(list_json demo '[.snapshots[].name] | join(" ")') == same ]]
	[[ $(find . -maxdepth 1 -name '*.store' | wc -l) -eq 1 ]]
	server_stop demo
}

@test "drops asked for at the same time are all carried out" {
	make_image origin.img 4M
	server_start origin.img --volume=demo
	for name in a b c d e f; do
		take demo origin.img $name
		write_some demo origin.img 30 1
	done
	for name in e b a f c; do
		helper_begin "$ROWSNAP" drop demo $name
	done
	helpers_end
	[[ $helpers_good -eq 5 ]]
	[[ $(list_json demo '[.snapshots[].name] | join(" ")') == d ]]
	expect_snapshots demo d
	server_stop demo
}

@test "a snapshot that is dropped twice at the same time is dropped once" {
	make_image origin.img 4M
	server_start origin.img --volume=demo
	take demo origin.img a b c
	for n in 1 2 3; do
		helper_begin "$ROWSNAP" drop demo b
	done
	helpers_end
	[[ $helpers_good -eq 1 ]]
	expect_snapshots demo a c
	server_stop demo
}

@test "a drop whose command was killed goes on" {
	make_image origin.img 64M
	server_start origin.img --volume=demo
	take demo origin.img a b
	export_io demo origin 'write -P 1 0 64M'
	take demo origin.img c
	helper_begin "$ROWSNAP" drop demo b
	wait_until 10 status_has demo '.snapshots | length == 2 or any(.fold_total_blocks > 0)'
	kill -KILL "$helper_pid"
	wait_until 20 status_has demo '.snapshots | length == 2'
	expect_snapshots demo a c
	server_stop demo
}

@test "a stop in the middle of commands ends the server, and the next start has one valid chain" {
	make_image origin.img 16M
	server_start origin.img --volume=demo
	take demo origin.img a
	for round in 1 2 3 4; do
		rm -f [b-e].store
		write_some demo origin.img 50 "$round"
		for name in b c d e; do
			helper_begin "$ROWSNAP" snapshot demo $name $name.store
		done
		helper_begin "$ROWSNAP" drop demo b
		sleep "0.0$round"
		rowsnap stop demo
		server_wait
		[[ $server_status -eq 0 ]]
		helpers_end
		server_start origin.img --volume=demo
		expect_snapshots demo a
		while read -r name; do
			rowsnap drop demo "$name"
		done < <(list_json demo '.snapshots[1:][].name')
		expect_snapshots demo a
	done
	server_stop demo
}

@test "no more than 256 snapshots, and the 257th is told" {
	[[ $ROWSNAP_SLOW -eq 1 ]] || skip 'too slow here; the same as for the plain build'
	make_image origin.img 1M
	server_start origin.img --volume=demo
	cp origin.img first.expected
	for n in {1..256}; do
		rowsnap snapshot demo "s$n" "s$n.store" >/dev/null
	done
	[[ $(list_json demo '.snapshots | length') -eq 256 ]]
	expect_error '256' snapshot demo more more.store
	[[ ! -e more.store ]]
	export_io demo origin 'write -P 1 0 1M'
	[[ $(export_checksum demo s1) == "$(checksum first.expected)" ]]
	server_kill
	server_start origin.img --volume=demo
	[[ $(list_json demo '.snapshots | length') -eq 256 ]]
	[[ $(export_checksum demo s1) == "$(checksum first.expected)" ]]
	server_stop demo
}

@test "a store file that may not grow further is a full store" {
	make_image origin.img 16M
	# In KiB: the origin may be written, a store with the whole origin in it would be too large.
	helper_begin bash -c "ulimit -f 17408; exec '$ROWSNAP' serve origin.img --volume=demo"
	wait_until 20 grep -q ready "$helper_out"
	take demo origin.img a
	export_io demo origin 'write -P 1 0 16M'
	[[ $(list_json demo '.snapshots[0].state') == broken ]]
	snapshot_io demo a 'read 0 1M'
	take demo origin.img b
	export_io demo origin 'write -P 2 0 8M'
	expect_snapshots demo b
	rowsnap stop demo
}
