#!/usr/bin/env bats
# SPDX-License-Identifier: GPL-2.0-or-later
#
# merge puts the origin back to a snapshot, bit for bit; that one and the older ones stay what they are, the newer ones go.

# shellcheck source=tests/helpers.bash
source "$BATS_TEST_DIRNAME/helpers.bash"

# make_chain SIZE BLOCK: an origin and the snapshots a to d with zero runs and the partial last block, stopped, in folder chain/.
make_chain() {
	local name

	rm -rf chain ./*.store "$ROWSNAP_STATEDIR"
	mkdir chain
	make_image origin.img "$1"
	fallocate --punch-hole --offset 1M --length 3M origin.img
	server_start origin.img --volume=demo
	for name in a b c d; do
		rowsnap format $name.store --block-size="$2"
		take demo origin.img $name
		write_some demo origin.img 40 "$(printf %d "'$name")"
		export_io demo origin "write -z $(($(printf %d "'$name") - 95))M 1500k" 'write -P 7 1100k 90k' \
			"write -P 9 $(($1 - 1024)) 1024" 'flush' >/dev/null
	done
	server_stop demo
	mv origin.img ./*.store "$ROWSNAP_STATEDIR" chain
}

# put_chain: it is there again, as it was.
put_chain() {
	rm -rf origin.img ./*.store "$ROWSNAP_STATEDIR"
	cp -a --sparse=always chain/. .
}

# expect_merged NAME OLDER... -- NEWER...: the origin and the snapshots are right, offline and served, and it all goes on.
expect_merged() {
	local name=$1 kept=("$1")

	shift
	cmp origin.img "$name.expected"
	for name; do
		[[ $name != -- ]] || break
		kept+=("$name")
	done
	shift "${#kept[@]}"
	for name; do
		expect_error 'is not a rowsnap store' inspect ./"$name.store"
	done
	for name in "${kept[@]}"; do
		rowsnap replay --snapshot="$name" --output=- origin.img "${kept[@]/%/.store}" | cmp - "$name.expected"
	done
	server_start origin.img --volume=demo
	[[ $(rowsnap list demo --json | jq -r '.snapshots[].name' | sort | tr '\n' ' ') == \
		"$(printf '%s\n' "${kept[@]}" | sort | tr '\n' ' ')" ]]
	write_some demo origin.img 20 7
	for name in "${kept[@]}"; do
		nbdcopy "$(nbd_uri demo "$name")" - | cmp - "$name.expected"
	done
	rowsnap format again.store --block-size="$block"
	take demo origin.img again
	export_io demo origin 'write -P 3 0 2M' >/dev/null
	for name in "${kept[0]}" again; do
		nbdcopy "$(nbd_uri demo "$name")" - | cmp - "$name.expected"
	done
	server_stop demo
	rm again.store
}

@test "to each snapshot of four" {
	block=4K
	make_chain $((8 << 20 | 512)) $block
	for case in 'd c b a --' 'c b a -- d' 'b a -- c d' 'a -- b c d'; do
		put_chain
		# shellcheck disable=SC2086
		set -- $case
		gone=${case#*--}
		rowsnap merge --snapshot="$1" --json origin.img c.store a.store d.store b.store >merge.json
		[[ $(jq -r '.gone | join(" ")' merge.json) == "${gone# }" ]]
		expect_merged "$@"
	done
}

@test "with larger blocks, and the stores of the record" {
	for block in 16K 64K; do
		make_chain $((8 << 20 | 512)) $block
		put_chain
		rowsnap merge --snapshot=b origin.img
		expect_merged b a -- c d
	done
}

@test "the oldest stores may be absent, and fit again later" {
	block=4K
	make_chain $((8 << 20)) $block
	put_chain
	mv a.store cupboard
	rowsnap merge --snapshot=b origin.img d.store c.store b.store
	server_start origin.img --volume=demo
	write_some demo origin.img 30 7
	server_stop demo
	mv cupboard a.store
	rowsnap replay --snapshot=a --output=- origin.img a.store b.store | cmp - a.expected
	rowsnap replay --snapshot=b --output=- origin.img a.store b.store | cmp - b.expected
}

@test "after a server that was killed, and one that was never stopped" {
	block=4K
	make_image origin.img 8M
	server_start origin.img --volume=demo
	for name in a b; do
		take demo origin.img $name
		write_some demo origin.img 60 "$(printf %d "'$name")"
	done
	server_kill
	rowsnap merge --snapshot=a origin.img b.store a.store
	expect_merged a -- b
}

@test "a dry run writes nothing and tells what a merge then writes" {
	make_chain $((8 << 20 | 512)) 4K
	put_chain
	sha256sum origin.img ./*.store state/* >before.sums
	rowsnap merge --snapshot=b --dry-run --json origin.img ./*.store >dry.json
	rowsnap merge --snapshot=b --dry-run origin.img ./*.store | grep -Ex 'b: [0-9]+ bytes .* would be written to the origin|[cd]: would go'
	sha256sum --check --quiet before.sums
	rowsnap merge --snapshot=b --json origin.img ./*.store >wet.json
	[[ $(jq .bytes dry.json) -gt 0 && $(jq .bytes dry.json) -eq $(jq .bytes wet.json) ]]
	[[ $(jq -c '[.dry_run, .resumed, .gone]' dry.json) == '[true,false,["c","d"]]' ]]
	[[ $(jq -c '[.dry_run, .resumed, .gone]' wet.json) == '[false,false,["c","d"]]' ]]
	cmp origin.img b.expected
}

@test "on a block device, with progress, and blocks that the device has in another size of sectors" {
	require_loop_devices
	block=4K
	make_chain $((8 << 20)) $block
	put_chain
	attach_loop --direct-io=on --sector-size 4096 origin.img || attach_loop --sector-size 4096 origin.img
	rowsnap merge --snapshot=b --progress=always "$loop" ./*.store 2>progress
	tr '\r' '\n' <progress | grep -E '^b: written: .* \(100 %\)'
	cmp "$loop" b.expected
}
