#!/usr/bin/env bats
# SPDX-License-Identifier: GPL-2.0-or-later
#
# diff between any two points of a chain is what a comparison of the two images finds.

# shellcheck source=tests/helpers.bash
source "$BATS_TEST_DIRNAME/helpers.bash"

# serve_chain SIZE BLOCK: a served origin with the snapshots a, b and c.
serve_chain() {
	local name

	make_image origin.img "$1"
	server_start origin.img --volume=demo
	for name in a b c; do
		rowsnap format $name.store --block-size="$2"
		take demo origin.img $name
		write_some demo origin.img 12 "$(printf %d "'$name")"
		# the same content once more is preserved, but no difference
		dd if=$name.expected of=same bs=64k skip=50 count=3 status=none
		export_io demo origin 'write -s same 3276800 192k' 'write -z 2M 130k' 'flush' >/dev/null
	done
}

# expect_right_diffs BLOCK POINT...: of each pair of points, in both directions. --exact gives the blocks that differ
# in the images, no other; without it there may be more, but none is left out. POINT.expected is its image, and
# origin.img origin's.
expect_right_diffs() {
	python3 - "$ROWSNAP" "$@" <<-'END'
		import json, subprocess, sys
		program, block, points = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
		images = {name: open("origin.img" if name == "origin" else name + ".expected", "rb").read() for name in points}

		def diff(first, second, *options):
		    words = [program, "diff", "origin.img", "--from=" + first, "--to=" + second, "--json", *options]
		    found = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout)
		    assert (found["from"], found["to"]) == (first, second)
		    blocks, last, size = set(), -1, len(images[first])
		    for one in found["ranges"]:
		        begin, end = one["offset"], one["offset"] + one["length"]
		        assert begin > last and begin % block == 0 and end > begin, one  # sorted, and none that touch
		        assert end % block == 0 and end <= size or end == size, one
		        blocks.update(range(begin // block, -(-end // block)))
		        last = end
		    assert found["bytes"] == sum(one["length"] for one in found["ranges"])
		    return blocks

		more = 0
		for at, first in enumerate(points):
		    for second in points[at:]:
		        a, b = images[first], images[second]
		        pieces = [slice(n * block, (n + 1) * block) for n in range(-(-len(a) // block))]
		        differing = {n for n, piece in enumerate(pieces) if a[piece] != b[piece]}
		        may = diff(first, second)
		        assert diff(first, second, "--exact") == differing, (first, second)
		        assert may >= differing and (may == set()) == (first == second), (first, second)
		        assert may == diff(second, first)
		        assert first != points[0] or diff(second, first, "--exact") == differing
		        more += len(may) - len(differing)
		assert more > 0
	END
}

@test "each pair of points, in any block size" {
	for block in 4096 16384 65536; do
		serve_chain $((4 << 20 | 1536)) $block
		server_stop demo
		sha256sum origin.img ./*.store >before.sums
		expect_right_diffs $block a b c origin
		sha256sum --check --quiet before.sums
		rm ./*.store "$ROWSNAP_STATEDIR"/*
	done
}

@test "after a server was killed" {
	serve_chain 4M 4K
	export_io demo origin 'write -P 3 1M 200k' >/dev/null
	server_kill
	expect_right_diffs 4096 a b c origin
}

@test "the ways to print it" {
	serve_chain 4M 4K
	server_stop demo
	rowsnap diff origin.img >text
	grep -Eqx '[0-9]+ [0-9]+' text
	run ! grep -Evqx '[0-9]+ [0-9]+' text
	rowsnap diff origin.img --null --from=a --to=origin | tr '\0' '\n' | cmp - text
	rowsnap diff origin.img c.store b.store a.store --json | jq -r '.ranges[] | "\(.offset) \(.length)"' | cmp - text
	[[ $(rowsnap diff origin.img --json --from=b --to=b) == '{"from":"b","to":"b","ranges":[],"bytes":0}' ]]
	[[ -z $(rowsnap diff origin.img --from=origin) ]]
	# what it lists is all that a copy of the older one needs to become the newer one
	rowsnap diff origin.img --from=b --to=c >ranges
	cp b.expected copy.img
	while read -r offset length; do
		dd if=c.expected of=copy.img bs=64k iflag=skip_bytes,count_bytes oflag=seek_bytes conv=notrunc \
			skip="$offset" seek="$offset" count="$length" status=none
	done <ranges
	cmp copy.img c.expected
}

@test "a chain in the middle of a fold" {
	make_image origin.img 24M
	for _ in 1 2 3 4 5; do
		rm -f ./*.store "$ROWSNAP_STATEDIR"/*
		server_start origin.img --volume=demo
		take demo origin.img a
		export_io demo origin 'write -P 3 100k 50k' >/dev/null
		take demo origin.img b
		export_io demo origin 'write -P 3 1M 20M' >/dev/null
		take demo origin.img c
		export_io demo origin 'write -P 3 4M 1M' 'write -P 4 22M 80k' >/dev/null
		rowsnap drop demo b --background
		server_kill
		[[ $(rowsnap inspect a.store --json | jq .stores[0].fold_source_uuid) == null ]] || break
	done
	expect_error 'b: is being dropped' diff origin.img --from=b
	expect_right_diffs 4096 a c origin
}

@test "where the answer is not known there is none" {
	make_image origin.img 16M
	server_start origin.img --volume=demo
	take demo origin.img a
	write_some demo origin.img 5 1
	rowsnap format b.store --size=4M
	take demo origin.img b
	write_some demo origin.img 200 2
	wait_until 10 grep -q BROKEN "$server_err"
	server_stop demo
	expect_error 'b: is broken \(.*\): .*would be wrong' diff origin.img
	expect_error 'b: is broken' diff origin.img --from=b
	expect_error 'b: is broken' diff origin.img --from=origin --to=a --json
	rowsnap diff origin.img --from=a --to=b >ranges
	[[ -s ranges ]]
}

@test "rot is only in the way of --exact, and told" {
	make_image origin.img 4M
	server_start origin.img --volume=demo
	take demo origin.img a
	export_io demo origin 'write -P 1 1M 64k' >/dev/null
	server_stop demo
	printf '\x00\xff' | dd of=a.store bs=1 seek=$(((1 << 20) + 4096 + 5 * 4096)) conv=notrunc status=none
	[[ $(rowsnap diff origin.img) == '1048576 65536' ]]
	expect_error 'a: block 26[0-9] .*slot 5.*checksum' diff origin.img --exact
}

@test "bad arguments" {
	serve_chain 4M 4K
	expect_error 'in use' diff origin.img
	server_stop demo
	expect_error 'nosuch: there is no snapshot' diff origin.img --from=nosuch
	expect_error 'nosuch: there is no snapshot' diff origin.img --to=nosuch
	expect_error 'nosuch\.img: No such file' diff nosuch.img
	expect_error 'needs the next newer' diff origin.img a.store b.store
	expect_usage_error 'no ORIGIN' diff
	expect_usage_error 'do not go together' diff origin.img --json --null
	run -1 bash -c "'$ROWSNAP' diff origin.img >/dev/full"
	[[ $output == *'standard output'* ]]
	printf x | dd of=origin.img bs=1 seek=100 conv=notrunc status=none
	expect_error 'was changed' diff origin.img
	expect_error 'c: is broken' diff origin.img --accept-origin
	rowsnap diff origin.img --accept-origin --from=a --to=c >ranges
}
