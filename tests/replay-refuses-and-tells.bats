#!/usr/bin/env bats
# SPDX-License-Identifier: GPL-2.0-or-later
#
# What replay cannot read or write: it is told where, nothing that looks like an image is left, and nothing else is
# harmed.

# shellcheck source=tests/helpers.bash
source "$BATS_TEST_DIRNAME/helpers.bash"

# A stopped volume with the snapshots a, b and c.
make_chain() {
	make_image origin.img 4M
	server_start origin.img --volume=demo
	for name in a b c; do
		take demo origin.img $name
		write_some demo origin.img 40 "$(printf %d "'$name")"
	done
	server_stop demo
	sha256sum origin.img ./*.store >before.sums
}

expect_nothing_changed() {
	sha256sum --check --quiet before.sums
}

# expect_zeroed FILE EXPECTED BLOCK...: FILE is EXPECTED but for these blocks, which are zeroes.
expect_zeroed() {
	local block

	cp "$2" zeroed.img
	for block in "${@:3}"; do
		dd if=/dev/zero of=zeroed.img bs=4096 seek="$block" count=1 conv=notrunc status=none
	done
	cmp "$1" zeroed.img
}

# expect_skipped ARGUMENT...: replay --skip-lost fails in the end, having told what it zeroed.
expect_skipped() {
	local status=0

	rowsnap_once replay --skip-lost "$@" || status=$?
	describe "$status" replay --skip-lost "$@"
	[[ $status -eq 1 ]]
	grep -q 'zeroed: block' stderr
	[[ $(grep -c '^rowsnap replay: ' stderr) -eq 1 ]]
}

# expect_failure WHY ARGUMENT...: as expect_error, with standard output as it is.
expect_failure() {
	local status=0

	"$ROWSNAP" "${@:2}" 2>stderr || status=$?
	[[ $status -eq 1 && $(wc -l <stderr) -eq 1 ]]
	grep -Eq -- "$1" stderr
}

@test "rot in a slot: the place is named, or the block is zeroed and listed" {
	make_image origin.img 4M
	server_start origin.img --volume=demo
	take demo origin.img a b
	export_io demo origin 'write -P 1 1M 64k' >/dev/null
	server_stop demo
	slot=$(rowsnap inspect b.store --exceptions --json | jq '.stores[0].exceptions[] | select(.block == 260) | .slot')
	offset=$(((1 << 20) + 4096 + slot * 4096 + 77))
	printf '\x00\xff' | dd of=b.store bs=1 seek=$offset conv=notrunc status=none
	expect_error "a: block 260 \(4096 bytes at 1064960\): store .*b\.store: slot $slot: .*checksum" \
		replay --snapshot=a -o out.img origin.img
	[[ ! -e out.img ]]
	expect_failure 'b: block 260 .*; the output is incomplete' replay --snapshot=b -o - origin.img >stdout
	expect_skipped --snapshot=a -o out.img origin.img
	grep -q "zeroed: block 260 (4096 bytes at 1064960): store .*slot $slot" stderr
	grep -q '1 blocks (4096 bytes)' stderr
	expect_zeroed out.img a.expected 260
	: >kept.img
	expect_error 'block 260.*; kept\.img is incomplete' replay --snapshot=a -o kept.img origin.img
}

@test "blocks that were lost when they were to be preserved" {
	require_loop_devices
	make_image disk.img 4M
	attach_loop --direct-io=on disk.img
	dd if="$loop" of=first bs=4k skip=700 count=1 iflag=direct status=none
	truncate -s 2M disk.img
	if dd if="$loop" of=first bs=4k skip=700 count=1 iflag=direct status=none; then
		skip 'a loop device over a short file does not fail here'
	fi
	truncate -s 4M disk.img
	server_start "$loop" --volume=demo
	rowsnap snapshot demo s s.store
	nbdcopy "$(nbd_uri demo s)" s.expected
	truncate -s 2M disk.img
	export_io demo origin 'write -P 1 3M 8k' >/dev/null
	truncate -s 4M disk.img
	server_stop demo
	# what was cut off the image and not written is zeroes now, and belongs to no test
	dd if=/dev/zero of=s.expected bs=1M seek=2 count=2 conv=notrunc status=none
	expect_error 's: block 768 \(4096 bytes at 3145728\): store .*s\.store: lost' replay --snapshot=s -o out.img "$loop"
	[[ ! -e out.img ]]
	expect_skipped --snapshot=s -o out.img "$loop"
	grep -q 'blocks 768 to 769 (8192 bytes at 3145728)' stderr
	cmp out.img s.expected
}

@test "a broken chain: what was not preserved is an error, or zeroed; the rest is right" {
	make_image origin.img 16M
	server_start origin.img --volume=demo
	rowsnap format s.store --size=8M
	take demo origin.img s
	export_io demo origin 'write -P 1 0 2M' 'write -P 2 2M 14M' >/dev/null
	server_stop demo
	expect_error 's: block [0-9]+ .*store .*s\.store: not preserved.*broken' replay --snapshot=s -o out.img origin.img
	[[ ! -e out.img ]]
	expect_skipped --snapshot=s -o out.img origin.img
	python3 - <<-'END'
		out, expected, origin = (open(name, "rb").read() for name in ("out.img", "s.expected", "origin.img"))
		zeroed = 0
		for at in range(0, len(out), 4096):
		    if out[at:at + 4096] != expected[at:at + 4096]:
		        assert out[at:at + 4096] == bytes(4096) and at >= 2 << 20, at
		        zeroed += 1
		assert zeroed > 1000, zeroed
		assert f" {zeroed} blocks ({zeroed * 4096} bytes)" in open("stderr").read()
	END
}

@test "a full disk is one clear line, and the file is gone" {
	require_root
	make_chain
	mkdir small
	mount -t tmpfs -o size=2m none small
	mounts+=("$dir/small")
	expect_error 'small/out\.img: No space left' replay --snapshot=a -o small/out.img origin.img
	[[ ! -e small/out.img ]]
	: >small/kept.img
	expect_error 'kept\.img: No space left.*incomplete' replay --snapshot=a -o small/kept.img origin.img
	expect_failure 'standard output: No space left on device; the output is incomplete' \
		replay --snapshot=a -o - origin.img >/dev/full
	expect_nothing_changed
}

@test "a reader of standard output that goes away is no hang" {
	make_chain
	run -1 bash -c "set -o pipefail; trap '' PIPE; '$ROWSNAP' replay --snapshot=a -o - origin.img | head -c 1 >/dev/null"
	[[ $output == 'rowsnap replay: standard output: Broken pipe; the output is incomplete' ]]
}

@test "origin and stores are never written to, whatever they are called" {
	make_chain
	ln b.store hard.link
	ln -s origin.img soft.link
	for output in origin.img ./origin.img soft.link; do
		expect_error "is the origin itself" replay --snapshot=a -o "$output" origin.img --force
	done
	for output in b.store hard.link; do
		expect_error "is the store of snapshot b" replay --snapshot=a -o "$output" origin.img --force
	done
	expect_failure 'is the origin itself' replay --snapshot=a -o - origin.img 1<>origin.img
	expect_failure 'is the store of snapshot c' replay --snapshot=a -o - origin.img >>c.store
	expect_nothing_changed
}

@test "a file that is there is overwritten only when told to" {
	make_chain
	yes | head -c 5M >out.img
	cp out.img before.img
	expect_error 'out\.img: is there already \(--force' replay --snapshot=a -o out.img origin.img
	cmp out.img before.img
	rowsnap replay --snapshot=a -o out.img origin.img --force
	cmp out.img a.expected
	: >empty.img
	rowsnap replay --snapshot=a -o empty.img origin.img
	cmp empty.img a.expected
	cp out.img locked.img
	flock locked.img sleep 30 3>&- &
	helper_pids+=($!)
	wait_until 5 is_locked locked.img
	expect_error 'locked\.img: is in use' replay --snapshot=b -o locked.img origin.img --force
	cmp locked.img a.expected
}

is_locked() {
	run ! flock --nonblock "$1" true
}

@test "bad arguments and places" {
	make_chain
	mkdir folder
	expect_error 'nosuch: there is no snapshot' replay --snapshot=nosuch -o out.img origin.img
	expect_error 'folder: is neither' replay --snapshot=a -o folder origin.img
	expect_error '/dev/null: is neither' replay --snapshot=a -o /dev/null origin.img
	expect_error 'No such file' replay --snapshot=a -o folder/nosuch/out.img origin.img
	expect_error 'nosuch\.img: No such file' replay --snapshot=a -o out.img nosuch.img
	expect_error 'nosuch\.store: No such file' replay --snapshot=a -o out.img origin.img nosuch.store
	expect_error 'given twice' replay --snapshot=a -o out.img origin.img a.store b.store c.store a.store
	expect_error 'is the origin itself' replay --snapshot=a -o out.img origin.img a.store b.store c.store origin.img
	make_image other.img 4M
	expect_error 'other\.img: no record' replay --snapshot=a -o out.img other.img
	make_image short.img 3M
	expect_error 'short\.img: has 3145728 bytes' replay --snapshot=a -o out.img short.img ./*.store
	expect_usage_error 'no --snapshot' replay -o out.img origin.img
	expect_usage_error 'no --output' replay --snapshot=a origin.img
	expect_usage_error 'no ORIGIN' replay --snapshot=a -o out.img
	expect_usage_error "'often' is not one of" replay --snapshot=a -o out.img origin.img --progress=often
	[[ ! -e out.img ]]
	expect_nothing_changed
}

@test "an origin that was changed is refused, and where that is accepted the chain counts as broken" {
	make_chain
	printf x | dd of=origin.img bs=1 seek=100 conv=notrunc status=none
	expect_error 'origin\.img: was changed without its snapshots' replay --snapshot=a -o out.img origin.img
	expect_error 'a: block .*not preserved' replay --snapshot=a -o out.img origin.img --accept-origin
	[[ ! -e out.img ]]
}

@test "a volume that is being served is refused; two may read at the same time" {
	make_chain
	server_start origin.img --volume=demo
	expect_error 'in use.*locked by process [0-9]+ \(rowsnap' replay --snapshot=a -o out.img origin.img
	server_stop demo
	helper_begin "$ROWSNAP" replay --snapshot=a -o one.img origin.img
	helper_begin "$ROWSNAP" replay --snapshot=a -o two.img origin.img
	helpers_end
	[[ $helpers_good -eq 2 ]]
	cmp one.img a.expected
	cmp two.img a.expected
	run ! rowsnap replay --snapshot=a -o three.img origin.img a.store
	[[ ! -e three.img ]]
}

# It may have been too fast to be caught: then again.
@test "SIGTERM and SIGINT end it cleanly, and the half file is gone" {
	yes | head -c 192M >origin.img
	server_start origin.img --volume=demo
	rowsnap snapshot demo a a.store
	server_stop demo
	for signal in TERM INT; do
		for _ in 1 2 3 4 5 6 7 8; do
			rm -f out.img
			helper_begin setsid --wait env --default-signal=INT "$ROWSNAP" replay --snapshot=a -o out.img origin.img
			until [[ -e out.img ]]; do :; done
			pkill_child "$helper_pid" $signal
			helper_wait
			[[ $helper_status -eq 0 ]] || break
		done
		[[ $helper_status -eq 1 ]]
		[[ $(cat "$helper_out") == 'rowsnap replay: out.img: interrupted' ]]
		[[ ! -e out.img ]]
	done
}

# setsid and env become the program; --wait leaves one process between.
pkill_child() {
	local children

	read -r children _ <"/proc/$1/task/$1/children" || true
	kill -"$2" "${children:-$1}" 2>/dev/null || true
}
