#!/usr/bin/env bats
# SPDX-License-Identifier: GPL-2.0-or-later
#
# replay writes what a server would have shown of the snapshot, also where the last server was killed, and changes
# nothing.

# shellcheck source=tests/helpers.bash
source "$BATS_TEST_DIRNAME/helpers.bash"

# serve_chain SIZE BLOCK: a served origin with zeroes in it, and the snapshots a, b and c, with zero runs in each.
serve_chain() {
	local name

	make_image origin.img "$1"
	fallocate --punch-hole --offset 1M --length 1M origin.img
	server_start origin.img --volume=demo
	for name in a b c; do
		rowsnap format $name.store --block-size="$2"
		take demo origin.img $name
		write_some demo origin.img 40 "$(printf %d "'$name")"
		export_io demo origin "write -z $(($(printf %d "'$name") - 93))M 300k" 'write -P 7 1100k 90k' 'flush' >/dev/null
	done
}

# expect_replays NAME...: each is NAME.expected, in a file and on standard output, and origin and stores stay as they
# are.
expect_replays() {
	local name

	sha256sum origin.img ./*.store >before.sums
	for name; do
		rm -f out.img
		rowsnap replay --snapshot="$name" -o out.img origin.img ./*.store
		cmp out.img "$name.expected"
		rowsnap replay --snapshot="$name" --output=- origin.img ./*.store | cmp - "$name.expected"
	done
	sha256sum --check --quiet before.sums
}

@test "every snapshot is as nbdcopy reads it from a server, in any block size" {
	for block in 4K 16K 64K; do
		serve_chain $((8 << 20 | 512)) $block
		for name in a b c; do
			nbdcopy "$(nbd_uri demo $name)" $name.served
		done
		server_stop demo
		expect_replays a b c
		for name in a b c; do
			rowsnap replay --snapshot=$name --output=$name.replayed origin.img c.store a.store b.store
			cmp $name.replayed $name.served
		done
		rm ./*.store ./*.replayed "$ROWSNAP_STATEDIR"/*
	done
}

@test "without stores it is those of the last time" {
	serve_chain 8M 4K
	server_stop demo
	rowsnap replay --snapshot=b -o out.img origin.img
	cmp out.img b.expected
	mv b.store elsewhere.store
	rm out.img
	expect_error 'needs.*b' replay --snapshot=a -o out.img origin.img
	[[ ! -e out.img ]]
	rowsnap replay --snapshot=a -o out.img origin.img c.store elsewhere.store a.store
	cmp out.img a.expected
	rowsnap replay --snapshot=c -o out2.img origin.img c.store
	cmp out2.img c.expected
	expect_error "b: .*elsewhere\.store|b: .*b\.store" replay --snapshot=b -o out3.img origin.img c.store
}

@test "a server that was killed: the log is read back in memory, and the next server finds all as it was" {
	serve_chain 8M 4K
	export_io demo origin 'write -P 1 0 6M' >/dev/null
	server_kill
	expect_replays a b c
	server_start origin.img --volume=demo
	expect_snapshots demo a b c
	writer_begin demo origin.img 0 9
	server_kill
	helper_wait "$writer_pid"
	expect_replays a b c
	server_start origin.img --volume=demo
	expect_snapshots demo a b c
	server_stop demo
}

# kill_in_fold middle|newest: a chain whose server was killed while it dropped b. It may have been too fast: then again.
kill_in_fold() {
	for _ in 1 2 3 4 5; do
		rm -f ./*.store "$ROWSNAP_STATEDIR"/*
		kill_dropping "$1"
		if rowsnap inspect a.store --json | jq -e '.stores[0].fold_source_uuid != null' >/dev/null; then
			return
		fi
	done
	return 1
}

kill_dropping() {
	make_image origin.img 64M
	server_start origin.img --volume=demo
	take demo origin.img a
	export_io demo origin 'write -P 1 0 1M' >/dev/null
	take demo origin.img b
	export_io demo origin "write -P 3 0 32M" "write -P 5 32M 30M" >/dev/null
	if [[ $1 == middle ]]; then
		take demo origin.img c
		export_io demo origin 'write -P 6 4M 1M' >/dev/null
	fi
	rowsnap drop demo b --background
	[[ $1 == middle ]] || export_io demo origin 'write -P 9 62M 1M' 'flush' >/dev/null
	server_kill
}

store_is_free() {
	! rowsnap list "./$1" 2>&1 | grep -q 'in use'
}

@test "a server that was killed in the middle of a fold" {
	kill_in_fold middle
	expect_replays a c
	expect_error 'b: is being dropped' replay --snapshot=b -o out2.img origin.img
	server_start origin.img --volume=demo
	expect_snapshots demo a c
	wait_until 60 store_is_free b.store
	server_stop demo
	rm b.store
	expect_replays a c
}

@test "a server that was killed while it dropped the newest" {
	kill_in_fold newest
	expect_replays a
	expect_error 'b: is being dropped' replay --snapshot=b -o out2.img origin.img
	server_start origin.img --volume=demo
	expect_snapshots demo a
	wait_until 60 store_is_free b.store
	server_stop demo
	rm b.store
	expect_replays a
}

@test "what is zero takes no room in a file" {
	truncate -s 64M origin.img
	dd if=/dev/urandom of=origin.img bs=1M count=2 seek=8 conv=notrunc status=none
	dd if=/dev/zero of=origin.img bs=1M count=2 seek=20 conv=notrunc status=none
	server_start origin.img --volume=demo
	take demo origin.img s
	export_io demo origin 'write -P 1 30M 8M' 'write -P 2 9M 100k' >/dev/null
	server_stop demo
	rowsnap replay --snapshot=s -o out.img origin.img
	cmp out.img s.expected
	[[ $(stat -c '%s %a' out.img) == "$((64 << 20)) 600" ]]
	[[ $(($(stat -c '%b * %B' out.img))) -le $((3 << 20)) ]]
}

unmount_later() {
	mounts+=("$1")
}

@test "to a device: also what is zero is written there" {
	require_loop_devices
	serve_chain 8M 4K
	server_stop demo
	yes | head -c 9M >device.img
	attach_loop device.img
	rowsnap replay --snapshot=a -o "$loop" origin.img --progress=always 2>progress
	cmp -n $((8 << 20)) "$loop" a.expected
	tail -c 1M device.img | cmp - <(yes | tail -c +$(((8 << 20) + 1)) | head -c 1M)
	tr '\r' '\n' <progress | grep -q 'a: 8.0 MiB of 8.0 MiB (100 %)'
	attach_loop --sizelimit $((8 << 20 | 512)) --read-only device.img
	expect_error 'read-only|Read-only|not permitted' replay --snapshot=a -o "$loop" origin.img
	make_image small.img 7M
	attach_loop small.img
	expect_error "$loop: the device has 7340032 bytes, the image 8388608" replay --snapshot=a -o "$loop" origin.img
	mkfs.ext4 -q -L precious "$loop"
	expect_error "$loop: holds .*precious.*--force" replay --snapshot=a -o "$loop" origin.img
	mkdir mnt
	mount "$loop" mnt
	unmount_later "$dir/mnt"
	expect_error "$loop: is in use: mounted" replay --snapshot=a -o "$loop" origin.img --force
}

@test "the origin may be mounted read-only, but not to be written" {
	require_loop_devices
	truncate -s 32M disk.img
	mkfs.ext4 -q disk.img
	attach_loop disk.img
	server_start "$loop" --volume=demo
	rowsnap snapshot demo s s.store
	nbdcopy "$(nbd_uri demo s)" s.expected
	export_io demo origin 'write -P 1 20M 1M' >/dev/null
	server_stop demo
	mkdir mnt
	mount -o ro "$loop" mnt
	unmount_later "$dir/mnt"
	rowsnap replay --snapshot=s -o out.img "$loop"
	cmp out.img s.expected
	mount -o remount,rw mnt
	expect_error "$loop: is in use: mounted on $dir/mnt" replay --snapshot=s -o out2.img "$loop"
	[[ ! -e out2.img ]]
}

@test "metadata copies that are damaged in different places make up for each other" {
	make_image origin.img 4M
	server_start origin.img --volume=demo
	take demo origin.img s
	export_io demo origin 'write -P 1 1M 2M' 'flush' >/dev/null
	server_stop demo
	# of area 0: entries 30 to 61 of copy 0, and 62 to 93 of copy 1, so that one read needs both
	dd if=/dev/zero of=s.store bs=512 count=1 seek=$(((1 << 20) / 512 + 1)) conv=notrunc status=none
	dd if=/dev/zero of=s.store bs=512 count=1 seek=$(((1 << 20) / 512 + 255 * 8 + 2)) conv=notrunc status=none
	expect_replays s
	server_start origin.img --volume=demo
	expect_snapshots demo s
	server_stop demo
}
