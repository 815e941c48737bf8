#!/usr/bin/env bats
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Discards and write-zeroes: what they do to the origin, and what the snapshots see of it (nothing).

# shellcheck source=tests/helpers.bash
source "$BATS_TEST_DIRNAME/helpers.bash"

serve_with_snapshot() {
	make_image origin.img 8M
	server_start origin.img --volume=demo "$@"
	take demo origin.img s1
}

@test "zeroes are in the origin, the old data in the snapshot" {
	serve_with_snapshot
	export_io demo origin 'write -z 1M 2M' 'write -z -u 4M 1M' 'write -z 6291957 100001' 'flush'
	export_io demo origin 'read -P 0 1M 2M' 'read -P 0 4M 1M' 'read -P 0 6291957 100001'
	expect_snapshots demo s1
	server_kill
	server_start origin.img --volume=demo
	export_io demo origin 'read -P 0 1M 2M' 'read -P 0 4M 1M' 'read -P 0 6291957 100001'
	expect_snapshots demo s1
	server_stop demo
}

@test "--discard=skip discards nothing that would have to be copied" {
	serve_with_snapshot
	before=$(checksum origin.img)
	export_io demo origin 'discard 0 8M' 'flush'
	[[ $(copied_blocks demo) -eq 0 ]]
	[[ $(checksum origin.img) == "$before" ]]
	expect_snapshots demo s1
	server_stop demo
}

@test "--discard=skip discards what is preserved already" {
	serve_with_snapshot
	export_io demo origin 'write -P 0xaa 2M 2M' 'flush'
	blocks=$(copied_blocks demo)
	used=$(du -k origin.img | cut -f 1)
	export_io demo origin 'discard 0 8M' 'flush'
	[[ $(copied_blocks demo) -eq $blocks ]]
	[[ $(du -k origin.img | cut -f 1) -lt $((used - 1024)) ]]
	expect_snapshots demo s1
	cmp --bytes=$((2 << 20)) origin.img s1.expected
	server_stop demo
}

@test "--discard=copy preserves first, then discards" {
	serve_with_snapshot --discard=copy
	used=$(du -k origin.img | cut -f 1)
	export_io demo origin 'discard 1M 6M' 'flush'
	[[ $(copied_blocks demo) -ge 1536 ]]
	[[ $(du -k origin.img | cut -f 1) -lt $((used - 4096)) ]]
	expect_snapshots demo s1
	server_kill
	server_start origin.img --volume=demo
	expect_snapshots demo s1
	server_stop demo
}

@test "without a snapshot a discard is carried out" {
	make_image origin.img 8M
	server_start origin.img --volume=demo
	export_io demo origin 'discard 1M 6M' 'flush'
	[[ $(du -k origin.img | cut -f 1) -lt 4096 ]]
	[[ $(stat -c %s origin.img) -eq $((8 << 20)) ]]
	server_stop demo
}

@test "discards and zeroes of odd sizes touch nothing beside them" {
	serve_with_snapshot --discard=copy
	export_io demo origin 'discard 333 100000' 'write -z 1000001 3' 'write -z 2M 512' 'discard 3145729 4095'
	nbdcopy "$(nbd_uri demo origin)" now.img
	cmp now.img origin.img
	python3 - <<-'END'
		old, new = (open(name, "rb").read() for name in ("s1.expected", "origin.img"))
		allowed = [(333, 100000), (1000001, 3), (2 << 20, 512), (3145729, 4095)]
		for n in range(len(old)):
		    if old[n] != new[n]:
		        assert any(start <= n < start + length for start, length in allowed), n
		assert new[1000001:1000004] == bytes(3) and new[2 << 20:(2 << 20) + 512] == bytes(512)
	END
	expect_snapshots demo s1
	server_stop demo
}
