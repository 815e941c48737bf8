#!/usr/bin/env bats
# SPDX-License-Identifier: GPL-2.0-or-later
#
# extend gives a store more room while it is served: a larger limit, a device that has grown, another store. What waited goes
# on, and every snapshot reads as before, also after a stop, a crash, and by every offline tool.

# shellcheck source=tests/helpers.bash
source "$BATS_TEST_DIRNAME/helpers.bash"

# serve_full: an origin of 8 MiB, its snapshot small, whose store of 4 MiB is full, and a write that waits.
serve_full() {
	make_image origin.img 8M
	server_start origin.img --volume=demo --on-full=wait
	rowsnap format small.store --size=4M
	take demo origin.img small
	helper_begin qemu-io -f raw -c 'write -P 2 0 6M' -c flush "$(nbd_uri demo origin)"
	wait_until 10 status_has demo .stuck
}

expect_written() {
	helper_wait
	[[ $helper_status -eq 0 ]]
	grep -q 'wrote 6291456/6291456' "$helper_out"
}

@test "a store is joined: what waits goes on" {
	serve_full
	rowsnap extend demo small more.store | grep 'small: extended, .* used, in 2 stores'
	expect_written
	expect_snapshots demo small
	[[ $(list_json demo '.snapshots[0] | [.store, .parts[].store] | map(split("/")[-1]) | join(" ")') == 'small.store small.store more.store' ]]
	[[ $(list_json demo '.snapshots[0] | .used_bytes == ([.parts[].used_bytes] | add)') == true ]]
	rowsnap list demo | grep -q 'small.store + .*more.store'
	rowsnap extend demo small third.store --json | jq -e '.parts | length == 3'
	server_stop demo
	server_start origin.img --volume=demo # by the record
	expect_snapshots demo small
	server_kill
	server_start origin.img third.store small.store more.store --volume=demo --on-full=fail
	expect_snapshots demo small
	take demo origin.img newer
	export_io demo origin 'write -P 3 0 8M' flush
	expect_snapshots demo small newer
	server_stop demo
	rowsnap check small.store more.store third.store newer.store
	rowsnap list ./more.store ./third.store ./small.store ./newer.store
	rowsnap replay --snapshot=small -o - origin.img more.store newer.store third.store small.store | cmp - small.expected
	rowsnap diff --from=small --to=newer origin.img more.store newer.store third.store small.store | grep -x '0 6291456'
	rowsnap inspect --areas ./small.store ./more.store ./third.store | grep -q 'area 3 part 1 offset 1048576'
	rowsnap repair --yes small.store more.store third.store newer.store
	rowsnap merge --snapshot=small origin.img more.store newer.store third.store small.store
	cmp origin.img small.expected
	server_start origin.img --volume=demo
	rowsnap drop demo small | grep -x "small: dropped, stores $dir/small.store, $dir/more.store and $dir/third.store are free"
	server_stop demo
	for name in small more third; do
		expect_error 'is not a rowsnap store' inspect $name.store
	done
}

@test "the limit is raised: what waits goes on" {
	serve_full
	expect_error 'has 4194304 bytes already: a store cannot be made smaller' extend demo small --size=3M
	rowsnap extend demo small --size=5M # not enough yet
	wait_until 10 status_has demo .stuck
	rowsnap extend demo small --size=16M --json | jq -e '.size_bytes == 16777216'
	expect_written
	expect_snapshots demo small
	server_kill
	server_start origin.img --volume=demo
	[[ $(list_json demo '.snapshots[0].size_bytes') == 16777216 ]]
	expect_snapshots demo small
	server_stop demo
}

@test "fail: writes fail until there is room; stop makes those that wait fail, whatever was joined" {
	make_image origin.img 8M
	server_start origin.img --volume=demo --on-full=fail
	rowsnap format small.store --size=4M
	take demo origin.img small
	run export_io demo origin 'write -P 2 0 6M'
	[[ $output == *'No space left'* ]]
	rowsnap format second.store --size=2M
	rowsnap extend demo small second.store
	export_io demo origin 'write -P 2 0 1M' flush
	expect_snapshots demo small
	run export_io demo origin 'write -P 2 0 8M'
	[[ $output == *'No space left'* ]]
	server_stop demo
	server_start origin.img --volume=demo --on-full=wait
	helper_begin qemu-io -f raw -c 'write -P 3 0 8M' "$(nbd_uri demo origin)"
	wait_until 10 status_has demo .stuck
	server_stop demo
	helper_wait
	server_start origin.img --volume=demo
	expect_snapshots demo small
	server_stop demo
}

@test "what cannot be joined is refused, with a reason, and nothing is lost" {
	make_image origin.img 1M
	server_start origin.img --volume=demo
	take demo origin.img older newest
	LC_ALL=C expect_error 'is a path that is not UTF-8' extend demo small $'no\xfftext.store'
	LC_ALL=C expect_error 'is a path that is not UTF-8' snapshot demo another $'no\xfftext.store'
	[[ ! -e $'no\xfftext.store' ]]
	expect_error 'older: is not the newest snapshot, which is newest' extend demo older more.store
	[[ ! -e more.store ]]
	expect_error 'nobody: no such snapshot' extend demo nobody --size=1G
	expect_error 'has no limit' extend demo newest --size=1G
	expect_usage_error 'either STORE or --size' extend demo newest
	expect_usage_error 'either STORE or --size' extend demo newest more.store --size=1G
	expect_error 'in use' extend demo newest older.store
	expect_error 'in use' extend demo newest newest.store
	expect_error 'in use' extend demo newest origin.img
	expect_error 'is not a rowsnap store' extend demo newest newest.expected
	rowsnap format --block-size=8K blocks.store
	expect_error 'has blocks of 8192 bytes, the volume has 4096' extend demo newest blocks.store
	expect_error 'No such file' extend demo newest nowhere/more.store
	rowsnap extend demo newest more.store
	expect_error 'in use' extend demo newest more.store
	for ((i = 2; i <= 15; i++)); do
		rowsnap extend demo newest part$i.store
	done
	expect_error 'lies in 16 stores already' extend demo newest part16.store
	[[ ! -e part16.store ]]
	server_stop demo
	cp more.store copy.store
	expect_error 'is a part of the store of snapshot newest' format more.store
	server_start origin2.img --volume=other || make_image origin2.img 1M
	server_start origin2.img --volume=other
	expect_error 'is not empty: it holds a part of snapshot newest' snapshot other x more.store
	take other origin2.img x
	expect_error 'is not empty: it holds a part of snapshot newest' extend other x more.store
	server_stop other
	server_start origin.img --volume=demo
	expect_snapshots demo older newest
	server_stop demo
	# each part is needed, once, and no other's
	parts=(part{2..15}.store)
	expect_refused 'newest.store: lies in 16 stores and needs part 1, last seen at .*/more.store' origin.img older.store newest.store "${parts[@]}" --volume=demo
	expect_refused 'newest.store: lies in 16 stores and needs part 1, .*, which is given twice' origin.img older.store newest.store more.store copy.store "${parts[@]}" --volume=demo
	expect_refused 'more.store: is the same file' origin.img older.store newest.store more.store more.store "${parts[@]}" --volume=demo
	expect_refused 'more.store: is part 1 of the store of snapshot newest, .*, which was not given' origin2.img x.store more.store --volume=other
	mv more.store away.store
	rm copy.store
	expect_refused 'needs part 1, last seen at .*/more.store' origin.img --volume=demo
	expect_error 'needs part 1, last seen at .*/more.store' replay --snapshot=older -o x.img origin.img older.store newest.store "${parts[@]}"
	expect_error 'newest.store: lies in 16 stores and needs part 1' list ./newest.store ./older.store
	expect_error 'needs part 1' inspect ./newest.store
	expect_error 'needs part 1.*--force when it is gone' drop ./newest.store
	run -8 rowsnap check newest.store older.store
	[[ $output == *'unreadable part-absent: lies in 16 stores and needs part 1'* ]]
	server_start origin.img older.store newest.store away.store "${parts[@]}" --volume=demo
	expect_snapshots demo older newest
	server_stop demo
}

@test "a part whose store was dropped, or that was not joined in the end, is free at the next start" {
	serve_full
	rowsnap extend demo small more.store
	expect_written
	cp more.store copy.store
	take demo origin.img newer
	server_stop demo
	cp small.store before.store
	cp -a state state.before
	cp newer.store newer.before
	server_start origin.img --volume=demo
	rowsnap drop demo small
	server_stop demo
	# as if the server had been killed between the wipes
	cp copy.store more.store
	rm -r state && cp -a state.before state
	server_start origin.img --volume=demo
	grep -q "more.store: snapshot small, to whose store it was joined, was dropped: it is wiped now" "$server_err"
	server_stop demo
	expect_error 'is not a rowsnap store' inspect more.store
	cp copy.store more.store
	server_start origin.img more.store newer.store --volume=demo
	server_stop demo
	expect_error 'is not a rowsnap store' inspect more.store
	cp copy.store more.store
	expect_error 'is a part of the store of snapshot small: name that first' drop ./more.store
	rowsnap drop --force ./more.store
}

@test "a part whose store has another name today is left as it is" {
	serve_full
	rowsnap extend demo small more.store
	expect_written
	server_stop demo
	mv small.store moved.store
	truncate -s 4M small.store
	# its only snapshot
	cp -a state state.before
	server_start origin.img --volume=demo
	grep -q "more.store is left as it is: it is part 1 of the store of snapshot small" "$server_err"
	server_stop demo
	rm -r state && mv state.before state
	server_start origin.img moved.store more.store --volume=demo
	expect_snapshots demo small
	take demo origin.img newer
	server_stop demo
	mv moved.store other.store
	truncate -s 4M moved.store
	# the oldest
	server_start origin.img --volume=demo
	grep -q "more.store is left as it is" "$server_err"
	server_stop demo
	server_start origin.img more.store newer.store other.store --volume=demo
	expect_snapshots demo small newer
	server_stop demo
}

# flip FILE OFFSET: a byte of it.
flip() {
	python3 -c 'import sys
with open(sys.argv[1], "r+b") as file:
    file.seek(int(sys.argv[2]))
    byte = file.read(1)[0]
    file.seek(int(sys.argv[2]))
    file.write(bytes([byte ^ 1]))' "$1" "$2"
}

@test "damage in a part is found where it is, and mended as in any store" {
	serve_full
	rowsnap extend demo small more.store
	expect_written
	server_stop demo
	cp more.store good.store
	# one copy of its superblock: mended by itself
	flip more.store 200
	run -4 rowsnap check small.store more.store
	[[ $output == *'more.store: fault superblock-copy-damaged'*'at byte 0)'* ]]
	run -1 rowsnap repair --yes more.store small.store
	rowsnap check small.store more.store
	# both: nothing is served
	flip more.store 200
	flip more.store 524488
	expect_refused 'more.store: is damaged: neither copy' origin.img --volume=demo
	run rowsnap check small.store more.store
	[[ $output == *'superblock-lost'* && $output == *'part-absent'* ]]
	# an entry, in one metadata copy and in both; and data: one block is lost
	cp good.store more.store
	flip more.store $((1048576 + 32 + 16 * 5))
	run -4 rowsnap check small.store more.store
	[[ $output == *'small.store: fault metadata-copy-damaged'*"at byte 1048576 of part 1)"* ]]
	run -1 rowsnap repair --yes small.store more.store
	rowsnap check small.store more.store
	flip more.store $((1048576 + 4096 + 4096 * 7))
	run -4 rowsnap check small.store more.store
	[[ $output == *'fault data-damaged'*"at byte $((1048576 + 4096 + 4096 * 7)) of part 1)"* ]]
	run rowsnap repair --yes small.store more.store
	run -0 rowsnap check small.store more.store
	[[ $output == *'1 blocks are lost'* ]]
	# shorter than what it should have
	truncate -s 2M more.store
	expect_refused 'small.store: is shorter than its log' origin.img --volume=demo
	run -4 rowsnap check small.store more.store
	[[ $output == *'fault store-truncated'* ]]
	run rowsnap repair --yes small.store more.store
	server_start origin.img --volume=demo
	[[ $(list_json demo '.snapshots[0].state') == broken ]]
	server_stop demo
	# another store's part, or one that says something else
	cp good.store more.store
	rowsnap drop --force ./small.store ./more.store
}

@test "a device that has grown is measured again, under load" {
	require_loop_devices
	require_command fio
	make_image origin.img 16M
	truncate -s 4M device.file
	attach_loop device.file
	rowsnap format "$loop"
	server_start origin.img --volume=demo --on-full=wait
	rowsnap snapshot demo small "$loop"
	cp origin.img small.expected
	helper_begin fio --name=load --ioengine=nbd --uri="$(nbd_uri demo origin)" --rw=randwrite --bsrange=4k-64k --iodepth=8 \
		--size=16M --verify=crc32c --verify_fatal=1 --do_verify=1
	wait_until 20 status_has demo .stuck
	expect_error 'the device has 4194304 bytes, less than --size' extend demo small --size=8M
	truncate -s 8M device.file
	losetup --set-capacity "$loop"
	rowsnap extend demo small --size=8M --json | jq -e '.size_bytes == 8388608'
	wait_until 20 status_has demo .stuck
	rowsnap extend demo small more.store
	helper_wait
	[[ $helper_status -eq 0 ]]
	expect_snapshots demo small
	server_stop demo
	rowsnap check "$loop" more.store
	rowsnap replay --snapshot=small -o - origin.img more.store "$loop" | cmp - small.expected
}

# small_file_system: one of 8 MiB, in small/.
small_file_system() {
	require_loop_devices
	mkdir small
	truncate -s 8M small.image
	mkfs.ext4 -q -m 0 small.image
	attach_loop small.image
	mount "$loop" small || skip 'no ext4 can be mounted here'
	mounts+=("$dir/small")
}

@test "a full file system: what waits goes on when room comes back, and in another store" {
	small_file_system
	head -c 3M /dev/zero >small/ballast
	make_image origin.img 16M
	server_start origin.img --volume=demo --on-full=wait --warn-at=50,90
	rowsnap snapshot demo small small/small.store
	cp origin.img small.expected
	helper_begin qemu-io -f raw -c 'write -P 2 0 4M' -c flush "$(nbd_uri demo origin)"
	wait_until 10 status_has demo .stuck
	wait_until 10 status_has demo '.snapshots[0] | .full_percent > 50 and .warned_percent == 50 or .warned_percent == 90'
	rm small/ballast
	helper_wait
	[[ $helper_status -eq 0 ]]
	helper_begin qemu-io -f raw -c 'write -P 2 4M 12M' -c flush "$(nbd_uri demo origin)"
	wait_until 10 status_has demo .stuck
	grep -q 'small.store: .* % full (threshold 50 %)' "$server_err"
	rowsnap extend demo small more.store
	helper_wait
	[[ $helper_status -eq 0 ]]
	expect_snapshots demo small
	server_kill
	server_start origin.img --volume=demo
	expect_snapshots demo small
	server_stop demo
	rowsnap check small/small.store more.store
}

@test "a write that finds no room leaves the rest of its area, and the log goes on in the next store" {
	require_root
	require_command strace
	mkdir small
	mount -t tmpfs -o size=3M tmpfs small || skip 'no tmpfs can be mounted here'
	mounts+=("$dir/small")
	make_image origin.img 8M
	server_start origin.img --volume=demo --on-full=wait
	# Nothing is reserved, as on a file system that cannot: the writes themselves find out.
	helper_begin strace -qqq -f -p "$server_pid" -o trace -e trace=fallocate -e inject=fallocate:error=EOPNOTSUPP
	sleep $((1 * ROWSNAP_SLOW))
	rowsnap snapshot demo small small/small.store
	cp origin.img small.expected
	for ((i = 0; i < 40; i++)); do
		export_io demo origin "write -P 3 $((i * 12))k 12k" >/dev/null
	done
	helper_begin qemu-io -f raw -c 'write -P 2 1M 5M' -c flush "$(nbd_uri demo origin)"
	wait_until 10 status_has demo .stuck
	rowsnap extend demo small more.store
	helper_wait
	[[ $helper_status -eq 0 ]]
	expect_snapshots demo small
	server_kill
	rowsnap inspect small/small.store more.store --json | jq -e '.stores[0].parts[0] | .first_area >= 1 and .skipped_slots > 0'
	rowsnap check small/small.store more.store
	server_start origin.img --volume=demo
	expect_snapshots demo small
	export_io demo origin 'write -P 4 6M 2M' flush
	expect_snapshots demo small
	server_stop demo
	rowsnap check small/small.store more.store
	python3 - "$BATS_TEST_DIRNAME" <<-'END'
		import sys
		sys.dont_write_bytecode = True
		sys.path.insert(0, sys.argv[1])
		from format_reader import Chain, open_stores
		chain = Chain(open_stores(["more.store", "small/small.store"]))
		assert b"".join(chain.image("small", "origin.img")) == open("small.expected", "rb").read()
	END
}

@test "thresholds are told once each, and the command that is run can extend" {
	make_image origin.img 8M
	rowsnap format small.store --size=4M
	# shellcheck disable=SC2016
	server_start origin.img --volume=demo --on-full=wait --warn-at=50,75 \
		--on-warn='echo "$ROWSNAP_EVENT $ROWSNAP_THRESHOLD $ROWSNAP_PERCENT $ROWSNAP_USED_BYTES $ROWSNAP_SIZE_BYTES $ROWSNAP_SNAPSHOT $ROWSNAP_VOLUME ${ROWSNAP_STORE##*/} ${ROWSNAP_CONTROL##*/}" >>warned
			[ "$ROWSNAP_EVENT" != full ] || '"$ROWSNAP"' extend "$ROWSNAP_CONTROL" "$ROWSNAP_SNAPSHOT" more.store
			[ "$ROWSNAP_EVENT" != threshold ] || exit 3'
	take demo origin.img small
	export_io demo origin 'write -P 1 0 700k' flush
	wait_until 10 grep -q threshold warned
	[[ $(cat warned) == 'threshold 50 50 2097152 4194304 small demo small.store demo.sock' ]]
	wait_until 10 grep -q 'on-warn: the command failed with status 3' "$server_err"
	status_has demo '.snapshots[0] | .full_percent == 50 and .warned_percent == 50'
	export_io demo origin 'write -P 2 0 8M' flush
	wait_until 10 grep -q 'full 0 ' warned
	expect_snapshots demo small
	[[ $(grep -c 'threshold 50' warned) -eq 1 && $(grep -c 'threshold 75' warned) -le 1 ]]
	rowsnap extend demo small third.store
	server_stop demo
	expect_usage_error 'warn-at' serve origin.img --warn-at=80,70
	expect_usage_error 'warn-at' serve origin.img --warn-at=0
	expect_usage_error 'warn-at' serve origin.img --warn-at=101
	expect_usage_error 'warn-at' serve origin.img --warn-at=
	expect_usage_error 'warn-at' serve origin.img --warn-at=80,
}

@test "a threshold is told again when there was room meanwhile; broken is told; the command ends with the server" {
	make_image origin.img 8M
	rowsnap format small.store --size=4M
	# shellcheck disable=SC2016
	server_start origin.img --volume=demo --warn-at=50 --on-warn='echo "$ROWSNAP_EVENT $ROWSNAP_PERCENT" >>warned; [ $ROWSNAP_EVENT != broken ] || { echo $$ >pid; exec sleep 1000; }'
	take demo origin.img small
	export_io demo origin 'write -P 1 0 700k' flush
	wait_until 10 grep -q threshold warned
	rowsnap extend demo small --size=6M
	export_io demo origin 'write -P 1 1M 1M' flush
	wait_until 10 test "$(wc -l <warned)" = 2 || [[ $(wc -l <warned) -eq 2 ]]
	export_io demo origin 'write -P 1 0 8M' flush
	wait_until 10 test -s pid
	grep -q '^broken' warned
	rowsnap list demo | grep -q 'full, since 20.*only the blocks preserved by then can be read'
	rowsnap status demo | grep -q 'broken, .* full since 20.*only the blocks preserved by then can be read'
	expect_error 'small: is broken \(full\)' extend demo small more.store
	server_stop demo
	wait_until 10 process_ended "$(cat pid)"
	run rowsnap check small.store
	[[ $output == *'snapshot small is broken (full), since 20'*'what was preserved can be read'* ]]
	rowsnap inspect small.store | grep -q 'broken_since *20'
}
