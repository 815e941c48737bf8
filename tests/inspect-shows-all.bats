#!/usr/bin/env bats
# SPDX-License-Identifier: GPL-2.0-or-later
#
# inspect: superblock copies, areas, exceptions, and how long the extents are.

# shellcheck source=tests/helpers.bash
source "$BATS_TEST_DIRNAME/helpers.bash"

# inspect_json FILTER ARGUMENT...: what jq makes of the first store's report.
inspect_json() {
	rowsnap inspect "${@:2}" --json | jq -r ".stores[0] | $1"
}

# A stopped volume with the snapshots s and t. In s: 2048 blocks in a row, 64 zero ones, then 3 single ones.
make_chain() {
	make_image origin.img 16M
	fallocate --punch-hole --offset 10M --length 256K origin.img
	server_start origin.img --volume=demo
	rowsnap snapshot demo s s.store
	export_io demo origin 'write -P 1 1M 8M' 'write -P 1 10M 256k' 'write -P 1 12M 4k' 'write -P 1 13M 4k' \
		'write -P 1 14M 4k' 'flush' >/dev/null
	rowsnap snapshot demo t t.store
	server_stop demo
}

@test "the extents' lengths add up to the blocks" {
	make_chain
	[[ $(inspect_json '.blocks' s.store) -eq $((2048 + 64 + 3)) ]]
	[[ $(inspect_json '[.extent_lengths | .blocks, .longest, .extents] | tostring' s.store) == '[2115,2048,5]' ]]
	[[ $(inspect_json '[.extent_lengths.lengths[] | [.from, .to, .extents]] | tostring' s.store) == \
		'[[1,1,3],[64,127,1],[2048,4095,1]]' ]]
	rowsnap inspect s.store >text
	grep -Eq 'extents +5 of 2115 blocks, the longest has 2048' text
	grep -Eq ' 64 to +127 blocks: 1$' text
	[[ $(inspect_json '[.extent_lengths | .blocks, .longest, .extents] | tostring' t.store) == '[0,0,0]' ]]
	rowsnap format empty.store
	[[ $(inspect_json '[.areas, .blocks, (.superblocks | length)] | tostring' empty.store) == '[0,0,2]' ]]
}

@test "the areas' counts add up to the store's" {
	make_chain
	rowsnap inspect s.store --areas --json | jq -e '.stores[0] | (.area_list | length) == .areas
		and ([.area_list[].data_entries] | add) == .data_entries and .data_entries == 2051
		and ([.area_list[].zero_runs] | add) == .zero_runs and .zero_blocks == 64
		and ([.area_list[].missing_entries] | add) == 0
		and ([.area_list[].offset] | .[0] == 1048576 and .[1] == 2097152)
		and ([.area_list[] | .copies[0].entries >= 1] | all)' >/dev/null
	rowsnap inspect s.store --areas | grep -Eq '^  area 0 offset 1048576 data 254 zero runs 0 lost 0 void 0 fingerprints 0 missing 0 writes [0-9]+ [0-9]+$'
	# a metadata copy that is gone is shown as such, and nothing else changes
	dd if=/dev/zero of=s.store bs=4096 count=1 seek=512 conv=notrunc status=none
	rowsnap inspect s.store --areas | grep -Eq '^  area 1 .* data 254 .* missing 0 writes - [0-9]+$'
	[[ $(inspect_json '.area_list[1].copies[0] | tostring' s.store --areas) == null ]]
	# of both: the entries are missing, and the snapshot is broken
	dd if=/dev/zero of=s.store bs=4096 count=1 seek=767 conv=notrunc status=none
	[[ $(inspect_json '[.missing_entries, .metadata_lost] | tostring' s.store) == '[254,true]' ]]
}

@test "exceptions are listed in the log's order, as lines and as objects" {
	make_chain
	rowsnap inspect s.store --exceptions | grep '^  slot ' >lines
	[[ $(wc -l <lines) -eq $(inspect_json '.log_slots' s.store) ]]
	inspect_json '.exceptions[] | "  slot \(.slot) \(.type) block \(.block) count \(.count)"' s.store --exceptions >objects
	sed 's/ checksum .*//' lines | cmp - objects
	grep -q ' zero block 2560 count 64$' objects
}

@test "both superblock copies are shown, and which is damaged or older" {
	make_chain
	generation=$(inspect_json .generation t.store)
	[[ $(inspect_json '[.superblocks[] | [.offset, .good, .generation]] | tostring' t.store) == \
		"[[0,true,$generation],[524288,true,$generation]]" ]]
	cp t.store older.store
	server_start origin.img --volume=demo
	server_stop demo
	dd if=older.store of=t.store bs=4096 count=1 conv=notrunc status=none
	[[ $(inspect_json '.superblocks[0].generation' t.store) -eq $generation ]]
	[[ $(inspect_json '.superblocks[1].generation' t.store) -gt $generation ]]
	[[ $(inspect_json '.generation == .superblocks[1].generation' t.store) == true ]]
	printf x | dd of=t.store bs=1 seek=300 conv=notrunc status=none
	[[ $(inspect_json '[.superblocks[0] | .good, .generation, .why] | tostring' t.store) == '[false,null,"its checksum does not hold"]' ]]
	rowsnap inspect t.store | grep -Eq '^  superblock at 0 +not good: its checksum'
	[[ $(inspect_json .superblock_copies_good t.store) -eq 1 ]]
}

@test "all of the superblock is in it" {
	make_chain
	[[ $(inspect_json '[.name, .state, .clean, .sequence, .fold_base_slots, .witness_reason, .broken_reason] | tostring' s.store) == \
		'["s","sealed",true,1,0,null,null]' ]]
	[[ $(inspect_json '.clean_log_slots == .log_slots' s.store) == true ]]
	[[ $(inspect_json '[.fingerprint[] | length] | unique | tostring' s.store) == '[16]' ]]
	[[ $(inspect_json '.fingerprint | length' s.store) -eq 16 ]]
	[[ $(inspect_json .successor_uuid s.store) == "$(inspect_json .uuid t.store)" ]]
	server_start origin.img --volume=demo
	server_kill
	[[ $(inspect_json '[.state, .clean, .clean_log_slots] | tostring' t.store) == '["active",false,null]' ]]
}
