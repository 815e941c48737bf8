#!/usr/bin/env bats
# SPDX-License-Identifier: GPL-2.0-or-later
#
# The programs people use: nbdinfo, nbdcopy, qemu-img, qemu-io, nbdfuse, fio.

# shellcheck source=tests/helpers.bash
source "$BATS_TEST_DIRNAME/helpers.bash"

# An origin with holes and data, a snapshot of it, and a changed origin.
serve_sparse() {
	truncate --size=32M origin.img
	dd if=/dev/urandom of=origin.img bs=1M seek=4 count=4 conv=notrunc status=none
	server_start origin.img --volume=demo
	take demo origin.img s1
	export_io demo origin 'write -P 0xaa 6M 4M' 'write -z 20M 1M' 'flush'
}

@test "nbdinfo lists the exports, with their sizes and modes" {
	serve_sparse
	nbdinfo --list --json "$(nbd_uri demo '')" >info
	[[ $(jq -r '[.exports[]."export-name"] | sort | join(" ")' info) == *'origin s1'* ]]
	[[ $(nbdinfo --json "$(nbd_uri demo s1)" | jq '.exports[0]."is_read_only"') == true ]]
	[[ $(nbdinfo --json "$(nbd_uri demo origin)" | jq '.exports[0]."is_read_only"') == false ]]
	[[ $(nbdinfo --json "$(nbd_uri demo '')" | jq '.exports[0]."export-size"') -eq $((32 << 20)) ]]
	nbdinfo --can flush "$(nbd_uri demo origin)"
	nbdinfo --can fua "$(nbd_uri demo origin)"
	nbdinfo --can trim "$(nbd_uri demo origin)"
	nbdinfo --can zero "$(nbd_uri demo origin)"
	nbdinfo --can multi-conn "$(nbd_uri demo origin)"
	nbdinfo --can multi-conn "$(nbd_uri demo s1)"
	run ! nbdinfo "$(nbd_uri demo nosuch)"
	server_stop demo
}

@test "the allocation maps agree with what is read" {
	serve_sparse
	for name in origin s1; do
		qemu-img map --output=json -f raw --image-opts \
			"driver=nbd,export=$name,server.type=unix,server.path=$ROWSNAP_RUNDIR/demo.nbd" >map.json ||
			qemu-img map --output=json "json:{\"driver\":\"raw\",\"file\":{\"driver\":\"nbd\",\"export\":\"$name\",\"server\":{\"type\":\"unix\",\"path\":\"$ROWSNAP_RUNDIR/demo.nbd\"}}}" >map.json
		nbdcopy "$(nbd_uri demo $name)" content.img
		python3 - <<-'END'
			import json
			data, end = open("content.img", "rb").read(), 0
			for extent in json.load(open("map.json")):
			    assert extent["start"] == end
			    end += extent["length"]
			    assert not extent["zero"] or not any(data[extent["start"]:end]), extent
			assert end == len(data)
		END
		nbdinfo --map --totals "$(nbd_uri demo $name)" | grep -q hole
	done
	expect_snapshots demo s1
	server_stop demo
}

@test "nbdcopy with several connections, both ways" {
	serve_sparse
	nbdcopy --connections=4 --requests=64 "$(nbd_uri demo s1)" copy.img
	cmp copy.img s1.expected
	make_image new.img 32M
	nbdcopy --connections=4 --flush new.img "$(nbd_uri demo origin)"
	cmp new.img origin.img
	expect_snapshots demo s1
	nbdcopy "$(nbd_uri demo s1)" "$(nbd_uri demo origin)" # restore, from the server to itself
	cmp origin.img s1.expected
	server_stop demo
}

@test "qemu-img converts, compares and writes" {
	serve_sparse
	qemu-img convert -n -f raw -O raw "$(nbd_uri demo s1)" converted.img 2>/dev/null ||
		qemu-img convert -f raw -O raw "$(nbd_uri demo s1)" converted.img
	cmp converted.img s1.expected
	qemu-img compare -f raw -F raw "$(nbd_uri demo s1)" s1.expected
	status=0
	qemu-img compare -f raw -F raw "$(nbd_uri demo s1)" "$(nbd_uri demo origin)" || status=$?
	[[ $status -eq 1 ]]
	qemu-img convert -f raw -O qcow2 "$(nbd_uri demo s1)" s1.qcow2
	qemu-img compare -f qcow2 -F raw s1.qcow2 s1.expected
	make_image new.img 32M
	qemu-img convert -n -f raw -O raw new.img "$(nbd_uri demo origin)"
	cmp new.img origin.img
	expect_snapshots demo s1
	server_stop demo
}

@test "qemu-io cannot write to a snapshot" {
	serve_sparse
	run ! export_io demo s1 'write -P 1 0 4k'
	expect_snapshots demo s1
	server_stop demo
}

@test "nbdfuse mounts origin and snapshot as files" {
	require_command nbdfuse
	[[ -w /dev/fuse ]] || skip 'there is no /dev/fuse to use'
	serve_sparse
	mkdir mnt
	touch mnt.img
	mounts+=("$dir/mnt")
	helper_begin nbdfuse --readonly mnt/s1.img "$(nbd_uri demo s1)"
	wait_until 10 test -s mnt/s1.img
	cmp mnt/s1.img s1.expected
	fusermount3 -u mnt
	helper_wait
	helper_begin nbdfuse mnt/origin.img "$(nbd_uri demo origin)"
	wait_until 10 test -s mnt/origin.img
	printf 'written through FUSE' | dd of=mnt/origin.img bs=1 seek=12345678 conv=notrunc,fsync status=none
	fusermount3 -u mnt
	helper_wait
	[[ $(dd if=origin.img bs=1 skip=12345678 count=20 status=none) == 'written through FUSE' ]]
	expect_snapshots demo s1
	server_stop demo
}

@test "many clients at once, coming and going" {
	serve_sparse
	for _ in {1..24}; do
		helper_begin nbdcopy "$(nbd_uri demo s1)" null:
	done
	for pid in "${helper_pids[@]}"; do
		helper_wait "$pid"
		[[ $helper_status -eq 0 ]]
	done
	wait_until 10 status_has demo '.nbd.connections == 0'
	server_stop demo
}

@test "random bytes at the NBD socket harm nobody" {
	serve_sparse
	for _ in 1 2 3 4 5; do
		head -c 100000 /dev/urandom | timeout 5 socat -u - "UNIX-CONNECT:$ROWSNAP_RUNDIR/demo.nbd" 2>/dev/null || true
	done
	expect_snapshots demo s1
	server_stop demo
}

@test "a client that connects and says nothing does not keep the server from stopping" {
	serve_sparse
	helper_begin socat -u "UNIX-CONNECT:$ROWSNAP_RUNDIR/demo.nbd" -
	wait_until 5 status_has demo '.nbd.connections == 1'
	server_stop demo
}

@test "--nbd names the socket" {
	make_image disk.img 1M
	server_start disk.img "--nbd=$dir/other.nbd"
	[[ $(nbdinfo --size "nbd+unix:///origin?socket=$dir/other.nbd") -eq $((1 << 20)) ]]
	[[ $(stat -c %a other.nbd) == 600 ]]
	server_stop disk
	[[ ! -e other.nbd ]]
	server_start disk.img --nbd
	[[ -S $ROWSNAP_RUNDIR/disk.nbd ]]
	server_stop disk
}

@test "who asks for a barrier at the same time shares it: pipelined flushes and FUA writes" {
	make_image origin.img 4M
	server_start origin.img --volume=demo
	take demo origin.img s1
	python3 - "$ROWSNAP_RUNDIR/demo.nbd" "$BATS_TEST_DIRNAME" <<-'END'
		import sys
		sys.dont_write_bytecode = True
		sys.path.insert(0, sys.argv[2])
		from nbd_client import Client
		client = Client(sys.argv[1]).begin("origin")
		for block in range(64):
		    client.do(1, (block + 64) * 4096, 4096, b"1" * 4096) # not where the fingerprint is
		for command, flags in ((3, 0), (1, 1)):
		    cookies, parts, send = set(), [], client.send
		    client.send = parts.append # all of them in one piece
		    for block in range(64):
		        data = b"2" * 4096 if command == 1 else b""
		        cookies.add(client.ask(command, (block + 64) * 4096 if data else 0, len(data), data, flags))
		    client.send = send
		    client.send(b"".join(parts))
		    while cookies:
		        cookie, error = client.simple_head()
		        assert error == 0
		        cookies.remove(cookie)
	END
	[[ $(rowsnap status demo --json | jq .requests.flushes) -eq 64 ]]
	# A disk that has FUA, or no cache, takes those writes one by one.
	if ! grep -Eq '^(1|write through)' /sys/dev/block/"$(stat -c %Hd:%Ld origin.img)"{,/..}/queue/{fua,write_cache} 2>/dev/null; then
		barriers=$(rowsnap status demo --json | jq .requests.barriers)
		echo "$barriers barriers"
		[[ $barriers -le 32 ]]
	fi
	expect_snapshots demo s1
	server_stop demo
}
