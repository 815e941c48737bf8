#!/usr/bin/env bats
# SPDX-License-Identifier: GPL-2.0-or-later
#
# What merge cannot put back whole, or what is in use, it refuses in one line before anything is changed.

# shellcheck source=tests/helpers.bash
source "$BATS_TEST_DIRNAME/helpers.bash"

# make_chain: an origin and the snapshots a, b and c, stopped.
make_chain() {
	local name at=0

	make_image origin.img 4M
	server_start origin.img --volume=demo
	for name in a b c; do
		take demo origin.img $name
		export_io demo origin "write -P 5 ${at}k 600k" "write -z $((at + 700))k 64k" flush >/dev/null
		at=$((at + 300))
	done
	server_stop demo
}

# expect_unchanged WHY ARGUMENT...: merge refuses so, and origin and stores stay as they are.
expect_unchanged() {
	sha256sum origin.img ./*.store >before.sums
	expect_error "$1" merge "${@:2}"
	sha256sum --check --quiet before.sums
}

@test "command lines that make no sense" {
	make_chain
	expect_usage_error 'no --snapshot=NAME given' merge origin.img
	expect_usage_error 'no ORIGIN given' merge --snapshot=a
	expect_usage_error 'is not one of auto, always, never' merge --snapshot=a --progress=often origin.img
	expect_unchanged 'there is no snapshot of this name' --snapshot=nosuch origin.img
	expect_unchanged 'origin: is not a snapshot' --snapshot=origin origin.img
	expect_unchanged 'store is not among those given: last seen at' --snapshot=a origin.img b.store c.store
}

@test "stores that are missing, too many or not of the volume" {
	make_chain
	rowsnap format empty.store
	expect_unchanged 'needs the next newer snapshot.s store: c' --snapshot=a origin.img a.store b.store
	expect_unchanged 'needs the next newer snapshot.s store: b' --snapshot=a origin.img a.store c.store
	expect_unchanged 'empty store' --snapshot=a origin.img a.store b.store c.store empty.store
	expect_unchanged 'given twice' --snapshot=a origin.img a.store b.store c.store ./a.store
	expect_unchanged 'is the origin itself' --snapshot=a origin.img a.store b.store c.store origin.img
	truncate -s 2M wiped.store
	expect_unchanged 'has no snapshots in the stores given' --snapshot=a origin.img wiped.store
	rm wiped.store
	truncate -s 5M origin.img
	expect_unchanged 'but the snapshots were taken of' --snapshot=a origin.img a.store b.store c.store
	expect_error 'no record in .* names' merge --snapshot=a a.expected
}

@test "an origin that is served, or mounted" {
	require_loop_devices
	make_chain
	server_start origin.img --volume=demo
	expect_error 'is in use' merge --snapshot=a origin.img a.store b.store c.store
	server_stop demo
	rm -rf ./*.store state/*
	mkfs.ext4 -q origin.img
	server_start origin.img --volume=demo
	take demo origin.img a
	server_stop demo
	attach_loop origin.img
	mkdir mounted
	mount "$loop" mounted
	mounts+=("$dir/mounted")
	expect_error 'is in use: .*mounted' merge --snapshot=a "$loop" a.store
	umount mounted
	expect_error 'was changed without its snapshots' merge --snapshot=a "$loop" a.store
}

@test "a rotten block, before anything is written; an older snapshot's is none of its business" {
	make_chain
	cp c.store c.good
	cp a.store a.good
	# The first area's slots begin at 1 MiB + 4 KiB; what is in c's first ones b has too.
	printf rot | dd of=c.store bs=1 seek=$(((1 << 20) + 4096 * 81 + 100)) conv=notrunc status=none
	expect_unchanged 'b: cannot be read whole, so nothing was changed: block .*c.store: slot 80: does not match its checksum' \
		--snapshot=b origin.img a.store b.store c.store
	expect_unchanged 'cannot be read whole' --snapshot=b --dry-run origin.img a.store b.store c.store
	mv c.good c.store
	printf rot | dd of=a.store bs=1 seek=$(((1 << 20) + 8192 + 100)) conv=notrunc status=none
	rowsnap merge --snapshot=b origin.img a.store b.store c.store
	cmp origin.img b.expected
}

@test "a chain that is broken at the snapshot, or behind it" {
	make_image origin.img 8M
	server_start origin.img --volume=demo
	take demo origin.img a
	rowsnap format b.store --size=2M
	take demo origin.img b
	export_io demo origin 'write -P 1 0 4M' flush >/dev/null
	[[ $(rowsnap list demo --json | jq -r '.snapshots[1].state') == broken ]]
	server_stop demo
	expect_unchanged 'a: the chain is broken at it or behind it' --snapshot=a origin.img a.store b.store
	expect_unchanged 'b: the chain is broken at it or behind it' --snapshot=b origin.img a.store b.store
}

@test "a record that cannot be written" {
	make_chain
	rm -rf state
	ln -s /proc/self/nosuch state
	expect_unchanged '.+: .+' --snapshot=a origin.img a.store b.store c.store
}
