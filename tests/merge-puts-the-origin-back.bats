#!/usr/bin/env bats
# SPDX-License-Identifier: GPL-2.0-or-later
#
# merge puts the origin back to a snapshot, bit for bit; that one and the older ones stay what they are, the newer ones go.

# shellcheck source=tests/helpers.bash
source "$BATS_TEST_DIRNAME/helpers.bash"

# make_chain SIZE BLOCK: an origin and the snapshots a to d with zero runs and the partial last block, stopped, in folder chain/.
make_chain() {
	local name

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
	write_some demo origin.img 30 7
	for name in "${kept[@]}"; do
		nbdcopy "$(nbd_uri demo "$name")" - | cmp - "$name.expected"
	done
	rowsnap format again.store --block-size="$block"
	take demo origin.img again
	write_some demo origin.img 30 8
	for name in "${kept[@]}" again; do
		nbdcopy "$(nbd_uri demo "$name")" - | cmp - "$name.expected"
	done
	server_stop demo
	rm again.store
}

@test "to each snapshot of four, in any block size" {
	for block in ${BLOCKS:-4K 16K 64K}; do
		make_chain $((8 << 20 | 512)) $block
		for case in 'd c b a --' 'c b a -- d' 'b a -- c d' 'a -- b c d'; do
			put_chain
			# shellcheck disable=SC2086
			set -- $case
			rowsnap merge --snapshot="$1" --json origin.img c.store a.store d.store b.store >merge.json
			[[ $(jq -r '.gone | join(" ")' merge.json) == "$(sed 's/.*-- *//' <<<"$case")" ]]
			expect_merged "$@"
		done
		rm -rf chain
	done
}
