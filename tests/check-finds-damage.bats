#!/usr/bin/env bats
# SPDX-License-Identifier: GPL-2.0-or-later
#
# rowsnap check: what it says, and its exit status. Every kind of damage is in tests/unit/test-check.c.

# shellcheck source=tests/helpers.bash
source "$BATS_TEST_DIRNAME/helpers.bash"

area=1048576 # the size of an area, and where the first one is

# Three snapshots: s1 and s2 sealed, s3 the newest. With `kill` the server is killed in the end.
make_chain() {
	make_image disk.img 4M
	server_start disk.img
	take disk disk.img s1
	export_io disk origin 'write -q -P 1 0 1500k'
	take disk disk.img s2
	export_io disk origin 'write -q -P 2 1M 2M' 'write -q -z 3M 64k'
	take disk disk.img s3
	export_io disk origin 'write -q -P 3 0 100k'
	if [[ ${1:-} == kill ]]; then
		server_kill
	else
		server_stop disk
	fi
}

# spoil FILE OFFSET: inverts a byte.
spoil() {
	local byte

	byte=$(od -An -tu1 -j "$2" -N 1 "$1")
	printf '%b' "\\x$(printf '%02x' $((byte ^ 255)))" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

# check_exits STATUS ARGUMENT...: with the report in stdout.
check_exits() {
	local wanted=$1 status=0

	shift
	rowsnap_once check "$@" || status=$?
	describe "$status" check "$@"
	[[ $status -eq $wanted ]]
}

@test "a chain that was stopped cleanly is clean, and is not written to" {
	make_chain
	sha256sum ./*.store >sums
	check_exits 0 s3.store s1.store s2.store
	[[ $(grep -c '; clean$' stdout) -eq 3 ]]
	run ! grep -E 'fault|notice' stdout
	check_exits 0 s1.store s2.store s3.store --json
	jq -e '.clean and .exit == 0 and ([.stores[].name] == ["s1", "s2", "s3"])' stdout
	jq -e '[.stores[] | .blocks_verified * 4096 == .bytes_verified and .bytes_verified > 0 and .findings == []] | all' stdout
	check_exits 0 --quick s1.store s2.store s3.store --json
	jq -e '[.stores[].blocks_verified] == [0, 0, 0]' stdout
	sha256sum --check --quiet sums
}

@test "what a crash leaves is no fault" {
	make_chain kill
	check_exits 0 s1.store s2.store s3.store --json
	jq -e '[.stores[].findings[] | select(.severity != "notice")] == []' stdout
	jq -e '.stores[2].findings | map(.code) | index("store-not-stopped") != null' stdout
	server_start disk.img
	expect_snapshots disk s1 s2 s3
	server_stop disk
	check_exits 0 s1.store s2.store s3.store
}

@test "a store whose neighbours are not given" {
	make_chain
	check_exits 0 s2.store --json
	jq -e '.stores[0].findings | map(.code) == ["newer-store-absent"]' stdout
	check_exits 0 s3.store --json
	jq -e '.stores[0].findings | map(.code) == ["older-store-absent"]' stdout
	jq -e '.stores[0].findings[0] | .severity == "notice" and .repair == null and .meaning != ""' stdout
}

@test "damage is told with its place, its meaning and the snapshots it concerns" {
	make_chain
	spoil s2.store $((area + 4096 * 5 + 77)) # slot 4
	check_exits 4 s1.store s2.store s3.store
	grep -q '^s2.store: fault data-damaged: block .* in slot 4, does not match .*byte 1069056' stdout
	grep -q '^  concerns: snapshots s2, s1$' stdout
	grep -q '^  repair: ' stdout
	check_exits 4 s1.store s2.store s3.store --json
	jq -e '.clean == false and .exit == 4' stdout
	jq -e '.stores[1].findings | length == 1' stdout
	jq -e '.stores[1].findings[0] | .code == "data-damaged" and .severity == "fault" and .store == "s2.store" and .copy == null
		and .area == 0 and .slot == 4 and .offset == 1069056 and .snapshots == ["s1", "s2"] and .repair != null' stdout
	jq -e '.stores[1].findings[0].block | type == "number"' stdout
	check_exits 0 s1.store s2.store s3.store --quick
	spoil s2.store $((area + 32))
	check_exits 4 s1.store s2.store s3.store --quick --json
	jq -e '.stores[1].findings | map([.code, .copy, .area, .offset]) == [["metadata-copy-damaged", 0, 0, 1048576]]' stdout
}

@test "superblocks: one copy, both copies, none at all" {
	make_chain
	spoil s3.store 300
	check_exits 4 s3.store --json
	jq -e '.stores[0].findings | map([.code, .copy, .offset]) | index([["superblock-copy-damaged", 0, 0]]) != null' stdout
	spoil s3.store $((524288 + 300))
	check_exits 4 s3.store --json
	jq -e '.stores[0].findings | map(.code) == ["superblock-lost"]' stdout
	truncate --size=0 s3.store
	truncate --size=2M s3.store
	check_exits 8 s3.store s1.store
	[[ $(<stderr) == 'rowsnap check: s3.store: is not a rowsnap store' ]]
	grep -q '^s1.store: .*; clean$' stdout
	check_exits 8 s3.store --json
	jq -e '.stores[0] | .error != null and .name == null' stdout
}

@test "a store that is shorter than its log" {
	make_chain
	truncate --size=1500K s2.store
	check_exits 4 s2.store --json
	jq -e '.stores[0].findings | map(.code) | index("store-truncated") != null' stdout
}

@test "a broken chain is a fault, with its reason and time" {
	make_image disk.img 4M
	server_start disk.img
	rowsnap format s1.store --size=2500K
	take disk disk.img s1
	export_io disk origin 'write -q -P 1 0 4M'
	server_stop disk
	check_exits 4 s1.store
	grep -Eq '^s1.store: fault snapshot-broken: snapshot s1 is broken \(full\), since 20[0-9-]+T[0-9:.]+Z$' stdout
}

@test "a store of another volume, and one that is there twice" {
	make_chain
	make_image other.img 1M
	server_start other.img
	rowsnap snapshot other x x.store
	server_stop other
	check_exits 4 s3.store x.store --json
	jq -e '[.stores[].findings[].code] | index("chain-contradiction") != null' stdout
	cp s3.store copy.store
	check_exits 4 s3.store copy.store --json
	jq -e '[.stores[].findings[] | select(.code == "chain-contradiction") | .text] | any(test("same store"))' stdout
	ln -s s3.store link
	check_exits 16 s3.store link
	grep -q 'link: is the same file as s3.store' stderr
}

@test "what cannot be opened is one line and 8; a command line without sense is 16" {
	make_chain
	check_exits 8 nosuch
	[[ $(wc -l <stderr) -eq 1 ]]
	grep -q '^rowsnap check: nosuch: No such file' stderr
	check_exits 8 /dev/null
	mkdir folder
	check_exits 8 folder
	server_start disk.img
	check_exits 8 s1.store
	[[ $(wc -l <stderr) -eq 1 ]]
	grep -q '^rowsnap check: s1.store: is in use' stderr
	server_stop disk
	check_exits 16
	check_exits 16 --wibble s1.store
	check_exits 16 --progress=sometimes s1.store
	[[ ! -s stdout ]]
}

@test "progress is shown when it is asked for" {
	make_chain
	check_exits 0 s1.store s2.store s3.store --progress=always
	grep -q 'areas (100 %)' stderr
	check_exits 0 s1.store s2.store s3.store
	[[ ! -s stderr ]]
}

@test "a report that cannot be written is no clean bill" {
	[[ -w /dev/full ]] || skip 'there is no /dev/full'
	make_chain
	status=0
	rowsnap check s1.store s2.store s3.store >/dev/full 2>stderr || status=$?
	[[ $status -eq 8 ]]
	grep -q 'No space left' stderr
}

@test "a store on a block device" {
	require_loop_devices
	make_image disk.img 4M
	truncate --size=8M device.img
	attach_loop device.img
	rowsnap format "$loop"
	server_start disk.img
	rowsnap snapshot disk s1 "$loop"
	export_io disk origin 'write -q -P 1 0 2M'
	server_stop disk
	check_exits 0 "$loop" --json
	jq -e '.stores[0].blocks_verified >= 512' stdout
}
