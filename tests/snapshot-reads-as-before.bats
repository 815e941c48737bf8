#!/usr/bin/env bats
# SPDX-License-Identifier: GPL-2.0-or-later
#
# The main job: an origin is served, snapshots are taken, the origin changes, and the snapshots read as it was.

# shellcheck source=tests/helpers.bash
source "$BATS_TEST_DIRNAME/helpers.bash"

@test "a snapshot reads as before while the origin changes in place" {
	make_image origin.img 16M
	before=$(checksum origin.img)
	server_start origin.img --volume=demo
	rowsnap snapshot demo monday monday.store
	export_io demo origin 'write -P 0xaa 1M 4M' 'flush'
	[[ $(export_checksum demo monday) == "$before" ]]
	after=$(export_checksum demo origin)
	[[ $after != "$before" ]]
	[[ $(checksum origin.img) == "$after" ]]
	server_stop demo
	[[ $(checksum origin.img) == "$after" ]]
}

@test "what is printed at the start: a line for each export, then that it is ready" {
	make_image disk.img 1M
	server_start disk.img
	take disk disk.img monday
	server_stop disk
	server_start disk.img
	diff "$server_out" - <<-END
		origin nbd+unix:///origin?socket=$ROWSNAP_RUNDIR/disk.nbd
		monday nbd+unix:///monday?socket=$ROWSNAP_RUNDIR/disk.nbd
		rowsnap: ready
	END
	server_stop disk
}

@test "a snapshot of nothing but unchanged blocks costs nothing" {
	make_image origin.img 16M
	server_start origin.img --volume=demo
	rowsnap snapshot demo monday monday.store
	[[ $(list_json demo '.snapshots[0] | .blocks') -eq 0 ]]
	[[ $(du -k monday.store | cut -f 1) -le 64 ]]
	server_stop demo
}

@test "a block is copied once, by the first write, and only to the newest snapshot" {
	make_image origin.img 16M
	server_start origin.img --volume=demo
	take demo origin.img one two
	export_io demo origin 'write -P 1 0 1M' 'write -P 2 0 1M' 'write -P 3 512k 1M'
	[[ $(list_json demo '.snapshots[] | select(.name == "one") | .blocks') -eq 0 ]]
	[[ $(list_json demo '.snapshots[] | select(.name == "two") | .blocks') -eq 384 ]]
	expect_snapshots demo one two
	server_stop demo
}

@test "ten snapshots, with random writes between, are each as a copy made at that instant" {
	make_image origin.img 16M
	server_start origin.img --volume=demo
	for n in 1 2 3 4 5 6 7 8 9 10; do
		take demo origin.img "s$n"
		write_some demo origin.img 150 "$n"
	done
	expect_snapshots demo s1 s2 s3 s4 s5 s6 s7 s8 s9 s10
	nbdcopy "$(nbd_uri demo origin)" read-back.img
	cmp read-back.img origin.img
	server_stop demo
}

@test "writes of odd sizes at odd offsets are preserved whole and change nothing else" {
	make_image origin.img 1M
	cp origin.img expected.img
	server_start origin.img --volume=demo
	take demo origin.img s1
	export_io demo origin 'write -P 0x11 333 1000' 'write -P 0x22 4095 2' 'write -P 0x33 1048575 1' \
		'write -P 0x44 65535 65538' 'write -P 0x55 0 1' 'write -z 200001 12345'
	python3 - <<-'END'
		image = bytearray(open("expected.img", "rb").read())
		for byte, offset, length in (0x11, 333, 1000), (0x22, 4095, 2), (0x33, 1048575, 1), (0x44, 65535, 65538), \
		        (0x55, 0, 1), (0, 200001, 12345):
		    image[offset:offset + length] = bytes([byte]) * length
		open("expected.img", "wb").write(image)
	END
	cmp origin.img expected.img
	expect_snapshots demo s1
	server_stop demo
}

@test "origins of any size that is a multiple of 512 keep it, to the last sector" {
	for size in 512 1024 3584 4096 4608 65536 $((1 << 20 | 512)) $((3 * 4096 + 3584)) 1052672; do
		rm -f s1.store
		make_image odd.img "$size"
		server_start odd.img --volume=demo
		[[ $(nbdinfo --size "$(nbd_uri demo origin)") -eq $size ]]
		take demo odd.img s1
		[[ $(nbdinfo --size "$(nbd_uri demo s1)") -eq $size ]]
		export_io demo origin "write -P 0xee $((size - 512)) 512" 'write -P 0xdd 0 100' 'flush'
		expect_snapshots demo s1
		[[ $(stat -c %s odd.img) -eq $size ]]
		server_stop demo
		[[ $(stat -c %s odd.img) -eq $size ]]
		server_start odd.img --volume=demo
		expect_snapshots demo s1
		rowsnap drop demo s1
		server_stop demo
	done
}

@test "every block size from 4K to 64K keeps what it must" {
	make_image origin.img $((4 << 20 | 512))
	for size in 4K 8K 16K 32K 64K; do
		rm -f s?.store
		server_start origin.img --volume=demo
		rowsnap format s1.store --block-size=$size
		take demo origin.img s1
		write_some demo origin.img 60 1
		take demo origin.img s2 # a missing file gets the volume's block size
		write_some demo origin.img 60 2
		expect_snapshots demo s1 s2
		server_stop demo
		server_start origin.img --volume=demo
		expect_snapshots demo s1 s2
		rowsnap drop demo s2
		expect_snapshots demo s1
		rowsnap drop demo s1
		server_stop demo
	done
}

@test "a sparse origin of 1 TiB is served at once and costs little memory" {
	truncate --size=1T huge.img
	server_start huge.img --volume=demo
	rowsnap snapshot demo s1 s1.store
	export_io demo origin 'write -P 0xaa 0 1M' 'write -P 0xbb 512G 64k' 'write -P 0xcc 1099511627264 512' 'flush'
	snapshot_io demo s1 'read -P 0 0 1M' 'read -P 0 512G 64k' 'read -P 0 1099511627264 512'
	export_io demo origin 'read -P 0xbb 512G 64k' 'read -P 0xcc 1099511627264 512'
	[[ $(rowsnap status demo --json | jq .memory.map_bytes) -le $((16 << 20)) ]]
	if [[ $ROWSNAP_SLOW -eq 1 ]]; then
		[[ $(awk '/^VmRSS/ { print $2 }' "/proc/$server_pid/status") -le $((160 << 10)) ]]
	fi
	server_stop demo
	server_start huge.img --volume=demo
	snapshot_io demo s1 'read -P 0 0 1M' 'read -P 0 512G 64k' 'read -P 0 1099511627264 512'
	server_stop demo
	[[ $(du -k huge.img | cut -f 1) -le 4096 ]]
	[[ $(du -k s1.store | cut -f 1) -le 8192 ]] # some of it is allocated ahead
}

@test "blocks of zeroes take no room in the store" {
	truncate --size=16M origin.img
	server_start origin.img --volume=demo
	take demo origin.img s1
	export_io demo origin 'write -P 0xaa 0 16M' 'flush'
	[[ $(list_json demo '.snapshots[0].blocks') -eq 4096 ]]
	[[ $(list_json demo '.snapshots[0].used_bytes') -le $((4 << 20)) ]]
	[[ $(du -k s1.store | cut -f 1) -le 8192 ]] # some of it is allocated ahead
	expect_snapshots demo s1
	server_stop demo
	server_start origin.img --volume=demo
	expect_snapshots demo s1
	server_stop demo
}

@test "a file system of real files is sound in the snapshot after the origin was overwritten" {
	require_command mkfs.ext4
	mkdir files
	cp -rL /usr/share/common-licenses /usr/share/perl5 files/ 2>/dev/null || cp -rL /usr/share/common-licenses files/
	truncate --size=96M disk.img
	mkfs.ext4 -q -d files disk.img
	server_start disk.img
	take disk disk.img monday
	export_io disk origin 'write -P 0 0 64M' 'flush'
	expect_snapshots disk monday
	e2fsck -fn read-back.img
	debugfs -R 'cat /common-licenses/GPL-2' read-back.img 2>/dev/null | cmp - /usr/share/common-licenses/GPL-2
	server_stop disk
}

@test "flushes and FUA writes go on while snapshots are read by several clients" {
	make_image origin.img 16M
	server_start origin.img --volume=demo
	take demo origin.img s1
	for n in 1 2 3; do
		helper_begin nbdcopy "$(nbd_uri demo s1)" "copy-$n.img"
	done
	export_io demo origin 'write -f -P 1 0 64k' 'flush' 'write -f -P 2 1M 64k' 'aio_write -P 3 2M 1M' 'aio_write -P 4 5M 1M' \
		'aio_flush' 'flush'
	for pid in "${helper_pids[@]}"; do
		helper_wait "$pid"
		[[ $helper_status -eq 0 ]]
	done
	for n in 1 2 3; do
		cmp "copy-$n.img" s1.expected
	done
	server_stop demo
}
