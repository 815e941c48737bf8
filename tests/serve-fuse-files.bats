#!/usr/bin/env bats
# SPDX-License-Identifier: GPL-2.0-or-later
#
# serve --fuse: the origin and its snapshots as files.

# shellcheck source=tests/helpers.bash
source "$BATS_TEST_DIRNAME/helpers.bash"

require_fuse() {
	[[ -w /dev/fuse ]] || skip 'there is no /dev/fuse that may be opened'
	[[ $(id -u) -eq 0 ]] || require_command fusermount3
}

serve_files() {
	mkdir files
	mounts+=("$dir/files")
	server_start origin.img --volume=demo --fuse=files "$@"
}

@test "origin and snapshots are files: a snapshot reads as before, while the origin is written in place" {
	require_fuse
	make_image origin.img 4M
	cp origin.img before.img
	serve_files
	cmp files/origin before.img
	"$ROWSNAP" snapshot demo monday ./monday.store
	dd if=/dev/urandom of=files/origin bs=4k count=300 seek=7 conv=notrunc,fsync status=none
	dd if=/dev/urandom of=files/origin bs=1 count=3000 seek=777 conv=notrunc status=none
	cmp files/snapshots/monday before.img
	run ! cmp -s files/origin before.img
	cmp files/origin origin.img
	cp files/snapshots/monday copy.img
	cmp copy.img before.img
	[[ $(stat -c %s files/snapshots/monday) -eq $((4 << 20)) ]]
	run ! dd if=/dev/zero of=files/snapshots/monday bs=4k count=1 conv=notrunc status=none
	"$ROWSNAP" snapshot demo tuesday ./tuesday.store
	[[ $(ls files/snapshots) == $'monday\ntuesday' ]]
	"$ROWSNAP" drop demo monday
	[[ $(ls files/snapshots) == tuesday ]]
	server_stop demo
	[[ -z $(ls -A files) ]]
}

@test "NBD and files at once: what one writes the other reads, and both find the snapshot" {
	require_fuse
	require_command qemu-io
	make_image origin.img 1M
	serve_files --nbd
	"$ROWSNAP" snapshot demo monday ./monday.store
	export_io demo origin 'write -P 0xaa 64k 64k'
	[[ $(dd if=files/origin bs=64k skip=1 count=1 status=none | tr -d '\252' | wc -c) -eq 0 ]]
	[[ $(export_checksum demo monday) == "$(checksum files/snapshots/monday)" ]]
	server_stop demo
}

@test "--run finds the folder in ROWSNAP_FUSE" {
	require_fuse
	make_image origin.img 1M
	mkdir files
	# shellcheck disable=SC2016 # the served shell expands it
	"$ROWSNAP" serve origin.img --volume=demo --fuse=files --run='cmp "$ROWSNAP_FUSE/origin" origin.img && [ -z "$ROWSNAP_NBD" ]'
}

@test "a store in the server's own folder is refused, and nothing waits for ever" {
	require_fuse
	make_image origin.img 1M
	serve_files
	expect_error 'own export' snapshot demo monday files/origin
	"$ROWSNAP" snapshot demo monday ./monday.store
	server_stop demo
}

@test "a folder that cannot be used is told" {
	require_fuse
	make_image origin.img 1M
	expect_error 'no such folder' serve origin.img --volume=demo --fuse=nowhere
	expect_error 'is not a folder' serve origin.img --volume=demo --fuse=origin.img
	mkdir full && touch full/file
	expect_error 'is not empty' serve origin.img --volume=demo --fuse=full
}

@test "SIGKILL leaves a dead mount, and the next start uses the folder again" {
	require_fuse
	make_image origin.img 1M
	cp origin.img before.img
	serve_files
	"$ROWSNAP" snapshot demo monday ./monday.store
	dd if=/dev/zero of=files/origin bs=4k count=9 conv=notrunc,fsync status=none
	server_kill
	run ! ls files
	server_start origin.img --volume=demo --fuse=files
	cmp files/snapshots/monday before.img
	server_stop demo
}
