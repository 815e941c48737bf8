#!/usr/bin/env bats
# SPDX-License-Identifier: GPL-2.0-or-later
#
# What a review found, a test each. What the simulator found it tests itself.

# shellcheck source=tests/helpers.bash
source "$BATS_TEST_DIRNAME/helpers.bash"

@test "a large write at an odd offset, in 64 KiB blocks, needs no more memory than there is" {
	require_command qemu-io
	make_image image.img 40M
	cp image.img before.img
	"$ROWSNAP" format --block-size=64K one.store
	server_start image.img --volume=demo
	"$ROWSNAP" snapshot demo one ./one.store
	export_io demo origin 'write -P 0x55 100 20000000'
	[[ $(export_checksum demo one) == "$(checksum before.img)" ]]
	[[ $(tail -c +101 image.img | head -c 20000000 | tr -d U | wc -c) -eq 0 ]]
	cmp -n 100 image.img before.img
	cmp -i 20000100 image.img before.img
	server_stop demo
}

@test "a snapshot that is dropped at once, its predecessor's log just sealed, is folded in order" {
	require_command qemu-io
	make_image image.img 8M
	server_start image.img --volume=demo
	for round in 1 2 3 4 5; do
		cp image.img "before$round.img"
		"$ROWSNAP" snapshot demo "keep$round" "./keep$round.store"
		export_io demo origin "write -P $round 0 3M"
		"$ROWSNAP" snapshot demo gone "./gone$round.store"
		"$ROWSNAP" drop demo gone
		export_io demo origin "write -P 1$round 1M 3M"
	done
	for round in 1 2 3 4 5; do
		[[ $(export_checksum demo "keep$round") == "$(checksum "before$round.img")" ]]
	done
	server_stop demo
	server_start image.img --volume=demo
	for round in 1 2 3 4 5; do
		[[ $(export_checksum demo "keep$round") == "$(checksum "before$round.img")" ]]
	done
	server_stop demo
}

@test "two stores that hold snapshots of one name are refused, not an assertion" {
	make_image image.img 1M
	server_start image.img --volume=demo
	"$ROWSNAP" snapshot demo monday ./first.store
	"$ROWSNAP" snapshot demo tuesday ./second.store
	server_stop demo
	rm -r "$ROWSNAP_STATEDIR" && mkdir -m 700 "$ROWSNAP_STATEDIR"
	server_start image.img ./second.store --volume=demo
	"$ROWSNAP" snapshot demo monday ./third.store
	server_stop demo
	expect_error 'same name' serve image.img ./first.store ./second.store ./third.store
}

@test "an image that was served bare before its snapshots were named is not served bare again" {
	make_image image.img 1M
	server_start image.img --volume=demo
	"$ROWSNAP" snapshot demo monday ./monday.store
	server_stop demo
	cp -r "$ROWSNAP_STATEDIR" state.kept
	for round in 1 2 3 4 5 6; do
		rm -r "$ROWSNAP_STATEDIR" && mkdir -m 700 "$ROWSNAP_STATEDIR"
		server_start image.img --volume=demo
		server_stop demo
		server_start image.img ./monday.store --volume=demo
		server_stop demo
		server_start image.img --volume=demo
		[[ $("$ROWSNAP" list demo --json | jq '.snapshots | length') -eq 1 ]]
		server_stop demo
	done
}

@test "a broken mark that only the record could carry counts also when the image has moved" {
	make_image image.img 1M
	server_start image.img --volume=demo
	"$ROWSNAP" snapshot demo monday ./monday.store
	server_stop demo
	record=$(echo "$ROWSNAP_STATEDIR"/*.json)
	jq '.stores[0].broken_reason = 2 | .stores[0].broken_ns = 5' "$record" >new && cp new "$record"
	mv image.img moved.img
	server_start moved.img ./monday.store --volume=demo
	[[ $("$ROWSNAP" list demo --json | jq -r '.snapshots[0].state') == broken ]]
	server_stop demo
}

@test "a damaged record is no reason to serve an image bare" {
	make_image image.img 1M
	server_start image.img --volume=demo
	"$ROWSNAP" snapshot demo monday ./monday.store
	server_stop demo
	record=$(echo "$ROWSNAP_STATEDIR"/*.json)
	echo '{' >"$record"
	status=0
	"$ROWSNAP" serve image.img --volume=demo --run=true 2>errors || status=$?
	[[ $status -eq 1 ]]
	grep -q 'damaged record' errors
	server_start image.img ./monday.store --volume=demo
	server_stop demo
}

@test "a store file that was cut short is named" {
	require_command qemu-io
	make_image image.img 8M
	server_start image.img --volume=demo
	"$ROWSNAP" snapshot demo monday ./monday.store
	export_io demo origin 'write -P 7 0 6M'
	server_stop demo
	truncate -s 3M monday.store
	expect_error 'shorter than its log' serve image.img --volume=demo
}

@test "writes do not have the origin's times looked at: every barrier would write new ones" {
	require_command strace
	make_image origin.img 8M
	server_start origin.img --volume=demo
	rowsnap snapshot demo s1 s1.store
	helper_begin strace -qqq -f -p "$server_pid" -o trace -e trace=fstat,newfstatat,statx,io_submit
	sleep $((1 * ROWSNAP_SLOW))
	for n in 1 2 3; do
		export_io demo origin "write -P $n ${n}M 64k" flush "write -P $n ${n}M 64k" flush >/dev/null
	done
	kill "$helper_pid"
	helper_wait
	grep -q 'io_submit(' trace
	run ! grep -E '^[0-9]+ +((new)?fstat(at)?\([0-9]|statx\([0-9]+, "", [^,]+, [^,]*STATX_([ACM]TIME|BASIC|ALL))' trace
	server_stop demo
}
