#!/usr/bin/env bats
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Stores and origins that do not belong together: the cause is named, nothing is served, nothing is changed.

# shellcheck source=tests/helpers.bash
source "$BATS_TEST_DIRNAME/helpers.bash"

# A stopped volume with the snapshots old, middle and new.
make_chain() {
	make_image origin.img 4M
	server_start origin.img --volume=demo
	for name in old middle new; do
		take demo origin.img $name
		write_some demo origin.img 40 ${#name}
	done
	server_stop demo
}

# Notes what all files hold; expect_nothing_changed compares.
remember() {
	sha256sum origin.img ./*.store >before.sums
}

expect_nothing_changed() {
	sha256sum --check --quiet before.sums
	[[ -z $(ls -A "$ROWSNAP_RUNDIR") ]]
}

@test "a missing newer store is named" {
	make_chain
	remember
	expect_refused 'old\.store.*middle' --volume=demo origin.img old.store
	expect_refused 'middle\.store.*new' --volume=demo origin.img old.store middle.store
	expect_refused 'old\.store.*middle' --volume=demo origin.img old.store new.store
	expect_nothing_changed
	rm -r "$ROWSNAP_STATEDIR" # without the record only the UUID is known
	uuid=$(rowsnap inspect new.store --json | grep -o '"uuid":"[^"]*"' | head -n 1 | cut -d '"' -f 4)
	expect_refused "$uuid" --volume=demo origin.img old.store middle.store
	expect_nothing_changed
}

@test "when the newest store is not where it was, serve ORIGIN alone names it" {
	make_chain
	mv new.store moved.store
	remember
	expect_refused 'new' --volume=demo origin.img
	expect_nothing_changed
	server_start --volume=demo origin.img old.store middle.store moved.store
	expect_snapshots demo old middle new
	server_stop demo
}

@test "when no store is where it was, nothing is served without a word" {
	make_chain
	mkdir away
	mv ./*.store away/
	expect_refused 'new\.store.*not there' --volume=demo origin.img
	mv away/*.store .
	server_start --volume=demo origin.img
	expect_snapshots demo old middle new
	server_stop demo
}

@test "a store given twice is refused, by whatever name" {
	make_chain
	ln -s old.store symlink
	ln old.store hardlink
	cp new.store copy
	remember
	expect_refused 'twice|same' --volume=demo origin.img old.store middle.store new.store old.store
	expect_refused 'twice|same' --volume=demo origin.img old.store middle.store new.store ./new.store
	expect_refused 'twice|same' --volume=demo origin.img symlink old.store middle.store new.store
	expect_refused 'twice|same' --volume=demo origin.img old.store hardlink middle.store new.store
	expect_refused 'copy' --volume=demo origin.img old.store middle.store new.store copy
	expect_nothing_changed
}

@test "the origin given as a store is refused" {
	make_chain
	ln origin.img hardlink
	remember
	expect_refused 'origin' --volume=demo origin.img old.store middle.store new.store origin.img
	expect_refused 'origin' --volume=demo origin.img hardlink
	expect_nothing_changed
}

@test "a store of another volume is named" {
	make_chain
	make_image other.img 4M
	server_start other.img
	rowsnap snapshot other alien alien.store
	server_stop other
	remember
	expect_refused 'another volume' --volume=demo origin.img old.store middle.store new.store alien.store
	expect_refused 'alien\.store.*another volume' --volume=demo origin.img alien.store
	expect_nothing_changed
}

@test "an empty store, and what is no store, are named" {
	make_chain
	rowsnap format empty.store
	make_image random.store 4M
	truncate --size=4M zeroes.store
	: >nothing.store
	mkdir folder
	remember
	expect_refused 'empty\.store.*empty' --volume=demo origin.img old.store middle.store new.store empty.store
	for store in random.store zeroes.store nothing.store; do
		expect_refused "$store.*not a rowsnap store" --volume=demo origin.img old.store middle.store new.store $store
	done
	expect_refused 'folder' --volume=demo origin.img folder
	expect_refused 'nosuch.*No such file' --volume=demo origin.img nosuch.store
	expect_refused '/dev/null' --volume=demo origin.img /dev/null
	expect_nothing_changed
}

@test "one damaged copy of the superblock is a warning, and is mended; two are an error" {
	make_chain
	offsets=(0 $((512 << 10)))
	cp new.store good.store
	for offset in "${offsets[@]}"; do
		cp good.store new.store
		dd if=/dev/urandom of=new.store bs=1 seek=$((offset + 100)) count=100 conv=notrunc status=none
		server_start origin.img --volume=demo
		grep -q 'new.store.*damaged' "$server_err"
		expect_snapshots demo old middle new
		server_stop demo
		server_start origin.img --volume=demo
		run ! grep -q 'damaged' "$server_err"
		server_stop demo
		cp new.store good.store
	done
	cp new.store whole.store
	for source in /dev/urandom /dev/zero; do
		cp whole.store new.store
		for offset in "${offsets[@]}"; do
			dd if=$source of=new.store bs=1 seek="$offset" count=4096 conv=notrunc status=none
		done
		remember
		expect_refused 'new\.store' --volume=demo origin.img
		expect_refused 'new\.store' --volume=demo origin.img old.store middle.store new.store
		expect_nothing_changed
	done
}

@test "a store cut short is served with what it holds, or refused, but never with wrong bytes" {
	make_chain
	truncate --size=1M middle.store
	server_begin origin.img --volume=demo
	wait_until 20 server_is_ready_or_ended
	if grep -qx 'rowsnap: ready' "$server_out"; then
		expect_snapshots demo new
		if nbdcopy "$(nbd_uri demo middle)" read-back.img; then
			cmp read-back.img middle.expected
		fi
		server_stop demo
	fi
}

@test "random damage in a store gives errors in its snapshot, never wrong bytes" {
	make_chain
	cp middle.store whole.store
	for offset in 1052672 1060000 1200000 1500000 2090000; do
		cp whole.store middle.store
		dd if=/dev/urandom of=middle.store bs=1 seek=$offset count=64 conv=notrunc status=none
		server_start origin.img --volume=demo
		expect_snapshots demo new
		python3 - "$ROWSNAP_RUNDIR/demo.nbd" "$BATS_TEST_DIRNAME" <<-'END'
			import sys
			sys.dont_write_bytecode = True
			sys.path.insert(0, sys.argv[2])
			from nbd_client import Client
			for name in "middle", "old":
			    client, bad = Client(sys.argv[1]).begin(name), 0
			    expected = open(name + ".expected", "rb").read()
			    for offset in range(0, len(expected), 4096):
			        data = client.read(offset, 4096)
			        error = data if isinstance(data, int) else 0
			        bad += error != 0
			        assert error in (0, 5), error
			        assert error or data == expected[offset:offset + 4096], f"{name}: wrong bytes at {offset}"
			    print(name, bad, "blocks cannot be read")
		END
		server_stop demo
	done
}

@test "a store with another block size is refused, offline and by snapshot" {
	make_chain
	server_start origin.img --volume=demo
	rowsnap format big.store --block-size=64K
	expect_error 'block' snapshot demo more big.store
	expect_snapshots demo old middle new
	server_stop demo
}

@test "an origin that shrank or grew is refused, with both sizes" {
	make_chain
	truncate --size=3M origin.img
	remember
	expect_refused '3145728.*4194304' --volume=demo origin.img
	expect_refused '3145728.*4194304' --volume=demo origin.img --accept-origin
	expect_nothing_changed
	truncate --size=5M origin.img
	remember
	expect_refused '5242880.*4194304' --volume=demo origin.img
	expect_nothing_changed
}

@test "an origin changed behind our back is refused, and --accept-origin marks the chain broken" {
	require_command mkfs.ext4
	truncate --size=16M origin.img
	mkfs.ext4 -q origin.img
	server_start origin.img --volume=demo
	export_io demo origin 'write -P 0x55 8M 1M'
	take demo origin.img monday
	export_io demo origin 'write -P 0xaa 8M 1M' 'flush'
	server_stop demo
	tune2fs -L renamed origin.img
	remember
	expect_refused 'origin\.img.*changed.*--accept-origin' --volume=demo origin.img
	expect_nothing_changed
	server_start origin.img --volume=demo --accept-origin
	[[ $(list_json demo '.snapshots[0].state') == broken ]]
	[[ $(list_json demo '.snapshots[0].broken_reason') == *origin* ]]
	snapshot_io demo monday 'read -P 0x55 8M 1M' # preserved before: still there
	run ! snapshot_io demo monday 'read 0 4k'    # never preserved: an error
	export_io demo origin 'read 0 4k' 'write -P 1 12M 1M'
	take demo origin.img tuesday
	export_io demo origin 'write -P 2 2M 1M'
	expect_snapshots demo tuesday
	server_stop demo
	server_start origin.img --volume=demo
	[[ $(list_json demo '.snapshots[0].state') == broken ]]
	expect_snapshots demo tuesday
	server_stop demo
}

@test "writes through us to the fingerprinted area are no change behind our back" {
	require_command mkfs.ext4
	truncate --size=16M origin.img
	mkfs.ext4 -q origin.img
	server_start origin.img --volume=demo
	take demo origin.img monday
	for n in 1 2 3; do
		export_io demo origin "write -P $n 0 64k" "write -P $n 1024 512" "write -P $n 1500 3"
		server_kill
		server_start origin.img --volume=demo
	done
	expect_snapshots demo monday
	server_stop demo
	server_start origin.img --volume=demo
	expect_snapshots demo monday
	server_stop demo
}

@test "an origin that cannot be served is refused" {
	: >empty.img
	make_image odd.img 1000
	make_image read-only.img 4096
	mkdir folder.img
	make_image good.img 4096
	expect_refused 'empty\.img.*empty' empty.img
	expect_refused 'odd\.img.*512' odd.img
	expect_refused 'folder\.img' folder.img
	expect_refused 'nosuch\.img.*No such file' nosuch.img
	expect_refused 'zero' /dev/zero
	if [[ $(id -u) -ne 0 ]]; then
		chmod 400 read-only.img
		expect_refused 'read-only\.img' read-only.img
	fi
	if truncate --size=17T huge.img; then
		expect_refused 'huge\.img.*16 TiB' huge.img
	fi
	truncate --size=4096 other.img
	server_start good.img
	expect_refused 'good\.img.*in use.*rowsnap' good.img --volume=another
	expect_refused 'good.*served already' other.img --volume=good
	server_stop good
}

@test "an origin that is mounted is refused" {
	require_loop_devices
	truncate --size=16M origin.img
	mkfs.ext4 -q origin.img
	mkdir mnt
	attach_loop origin.img
	mount "$loop" mnt
	mounts+=("$dir/mnt")
	expect_refused 'mounted|in use' "$loop" --volume=demo
	expect_refused 'loop|in use' origin.img --volume=demo
}

@test "a read-only block device is refused" {
	require_loop_devices
	make_image origin.img 1M
	attach_loop --read-only origin.img
	expect_refused 'read-only|Permission|permitted' "$loop" --volume=demo
}

@test "block devices serve as origin and store" {
	require_loop_devices
	make_image origin.img 4M
	truncate --size=16M store.img
	attach_loop store.img
	store=$loop
	attach_loop origin.img
	server_start "$loop" --volume=demo
	expect_error 'not a rowsnap store' snapshot demo monday "$store"
	rowsnap format "$store"
	rowsnap snapshot demo monday "$store"
	cp origin.img monday.expected
	export_io demo origin 'write -P 0xaa 1M 2M' 'write -P 0xbb 333 1000' 'discard 3M 512k' 'flush'
	expect_snapshots demo monday
	[[ $(list_json demo '.snapshots[0].size_bytes') -eq $((16 << 20)) ]]
	server_kill
	server_start "$loop" --volume=demo
	expect_snapshots demo monday
	rowsnap drop demo monday
	rowsnap format "$store"
	server_stop demo
}
