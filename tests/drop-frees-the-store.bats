#!/usr/bin/env bats
# SPDX-License-Identifier: GPL-2.0-or-later
#
# drop: the oldest at once, any other by a fold; the store is free when the command returns; the others read as before.

# shellcheck source=tests/helpers.bash
source "$BATS_TEST_DIRNAME/helpers.bash"

# A served origin of 8 MiB with the snapshots a, b, c and d.
serve_chain() {
	make_image origin.img 8M
	server_start origin.img --volume=demo
	for name in a b c d; do
		take demo origin.img $name
		write_some demo origin.img 60 "$(printf %d "'$name")"
	done
}

# expect_free STORE: its file holds no snapshot, nobody has it open, and it can be formatted without --force.
expect_free() {
	run ! rowsnap inspect "$1"
	rowsnap format "$1"
	rm "$1"
}

# Restarted, the snapshots are what they were.
expect_after_restart() {
	server_stop demo
	server_start origin.img --volume=demo
	expect_snapshots demo "$@"
	server_stop demo
}

@test "the oldest goes at once, its store is free, the others read as before" {
	serve_chain
	rowsnap drop demo a >out
	grep -q 'a.store' out
	expect_free a.store
	[[ $(list_json demo '[.snapshots[].name] | join(" ")') == 'b c d' ]]
	expect_snapshots demo b c d
	rowsnap drop demo b
	expect_free b.store
	expect_snapshots demo c d
	expect_after_restart c d
}

@test "the oldest goes without data I/O, however much it holds" {
	make_image origin.img 64M
	server_start origin.img --volume=demo
	take demo origin.img a
	export_io demo origin 'write -P 1 0 64M' 'flush'
	take demo origin.img b
	before=$(rowsnap status demo --json | jq '.store_io.data_bytes')
	written=$(awk '/^write_bytes/ { print $2 }' "/proc/$server_pid/io")
	rowsnap drop demo a
	[[ $(rowsnap status demo --json | jq '.store_io.data_bytes') -eq $before ]]
	[[ $(awk '/^write_bytes/ { print $2 }' "/proc/$server_pid/io") -le $((written + (1 << 20))) ]]
	expect_snapshots demo b
	server_stop demo
}

@test "one between two others goes by a fold" {
	serve_chain
	rowsnap drop demo b
	expect_free b.store
	expect_snapshots demo a c d
	write_some demo origin.img 60 9
	expect_snapshots demo a c d
	rowsnap drop demo c
	expect_snapshots demo a d
	expect_after_restart a d
}

@test "the newest goes by a fold, and the one before it takes the copies again" {
	serve_chain
	rowsnap drop demo d
	expect_free d.store
	[[ $(list_json demo '.snapshots[-1] | "\(.name) \(.state)"') == 'c active' ]]
	expect_snapshots demo a b c
	write_some demo origin.img 60 9
	expect_snapshots demo a b c
	server_kill
	server_start origin.img --volume=demo
	expect_snapshots demo a b c
	take demo origin.img e
	write_some demo origin.img 60 10
	expect_snapshots demo a b c e
	expect_after_restart a b c e
}

@test "the only one goes, writes go on unprotected, and a new one can be taken into the same store" {
	make_image origin.img 8M
	server_start origin.img --volume=demo
	take demo origin.img a
	write_some demo origin.img 60 1
	rowsnap drop demo a
	rowsnap format a.store
	write_some demo origin.img 60 2
	[[ $(list_json demo '.snapshots | length') -eq 0 ]]
	rowsnap snapshot demo again a.store
	cp origin.img again.expected
	write_some demo origin.img 60 3
	expect_snapshots demo again
	expect_after_restart again
	server_start origin.img --volume=demo
	rowsnap drop demo again
	server_stop demo
	server_start origin.img --volume=demo
	[[ $(list_json demo '.snapshots | length') -eq 0 ]]
	server_stop demo
}

@test "all of them go under load, in any order, and the rest read as before" {
	serve_chain
	take demo origin.img e f
	cp --sparse=always origin.img model.img
	writer_begin demo model.img 0 77
	names='a b c d e f'
	for name in c f a e b d; do
		rowsnap drop demo $name
		names=" $names "
		names=${names/ $name / }
		# shellcheck disable=SC2086 # it is a list
		expect_snapshots demo $names
	done
	writer_end
	writer check origin.img model.img
	server_stop demo
	cmp origin.img model.img
}

@test "clients of a dropped snapshot get errors, then a close, and the others notice nothing" {
	serve_chain
	helper_begin python3 "$BATS_TEST_DIRNAME/writer.py" read "$ROWSNAP_RUNDIR/demo.nbd" a
	gone_pid=$helper_pid gone_out=$helper_out
	helper_begin python3 "$BATS_TEST_DIRNAME/writer.py" read "$ROWSNAP_RUNDIR/demo.nbd" b
	stays_pid=$helper_pid stays_out=$helper_out
	wait_until 10 grep -q reads "$gone_out"
	wait_until 10 grep -q reads "$stays_out"
	timeout $((10 * ROWSNAP_SLOW)) "$ROWSNAP" drop demo a
	helper_wait "$gone_pid"
	[[ $(head -n 1 "$gone_out") == reads ]]
	[[ $(tail -n 1 "$gone_out") == closed ]]
	[[ $(sed 1d "$gone_out" | head -n 1) =~ ^(error|closed) ]]
	run ! nbdinfo --size "$(nbd_uri demo a)"
	run ! process_ended "$stays_pid"
	[[ $(<"$stays_out") == reads ]]
	timeout $((20 * ROWSNAP_SLOW)) "$ROWSNAP" drop demo b 2>/dev/null || true # by now the oldest as well
	helper_wait "$stays_pid"
	expect_snapshots demo c d
	server_stop demo
}

@test "a client reading a snapshot that is folded away is let go, too" {
	serve_chain
	helper_begin python3 "$BATS_TEST_DIRNAME/writer.py" read "$ROWSNAP_RUNDIR/demo.nbd" c
	wait_until 10 grep -q reads "$helper_out"
	timeout $((20 * ROWSNAP_SLOW)) "$ROWSNAP" drop demo c
	helper_wait
	[[ $(tail -n 1 "$helper_out") == closed ]]
	expect_snapshots demo a b d
	server_stop demo
}

@test "what cannot be dropped is told" {
	serve_chain
	expect_error 'nosuch.*no such snapshot' drop demo nosuch
	expect_error 'origin' drop demo origin
	expect_error 'a/b' drop demo a/b
	expect_snapshots demo a b c d
	server_stop demo
}

@test "drop --json names the store" {
	serve_chain
	[[ $(rowsnap drop demo a --json | jq -r .store) == "$dir/a.store" ]]
	[[ $(rowsnap drop --json demo c | jq -r .name) == c ]]
	server_stop demo
}

@test "with an older store away, the oldest here is not dropped without --forget-older" {
	serve_chain
	server_stop demo
	mkdir away
	mv a.store away/
	server_start origin.img --volume=demo b.store c.store d.store
	expect_error 'older' drop demo b
	expect_snapshots demo b c d
	rowsnap drop demo c # into b, which is here
	expect_snapshots demo b d
	server_stop demo
	server_start origin.img --volume=demo away/a.store b.store d.store
	expect_snapshots demo a b d
	server_stop demo
	server_start origin.img --volume=demo b.store d.store
	rowsnap drop demo b --forget-older
	expect_snapshots demo d
	server_stop demo
	server_start origin.img --volume=demo d.store
	run ! grep -q 'older snapshot' "$server_err"
	expect_snapshots demo d
	server_stop demo
}
