#!/usr/bin/env bats
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Who writes in order has the blocks ahead of him preserved before he comes to them; nobody else pays for it.

# shellcheck source=tests/helpers.bash
source "$BATS_TEST_DIRNAME/helpers.bash"

# write_blocks ORDER COUNT: one after the other, until one fails; sets written, how many did not.
write_blocks() {
	python3 - "$ROWSNAP_RUNDIR/demo.nbd" "$1" "$2" "$BATS_TEST_DIRNAME" >count <<-'END'
		import sys
		sys.dont_write_bytecode = True
		sys.path.insert(0, sys.argv[4])
		from nbd_client import Client
		client, written = Client(sys.argv[1]).begin("origin"), 0
		for i in range(int(sys.argv[3])):
		    block = i if sys.argv[2] == "ascending" else 4000 - 2 * i
		    if client.do(1, block * 4096, 4096, b"new " * 1024):
		        break
		    written += 1
		print(written)
	END
	read -r written <count
}

copies() {
	rowsnap status demo --json | jq ".copies.$1"
}

@test "writes in order are preserved ahead of them, in few commits and within a window" {
	make_image origin.img 16M
	server_start origin.img --volume=demo
	take demo origin.img s1
	write_blocks ascending 1024
	[[ $written -eq 1024 ]]
	[[ $(copies ahead_blocks) -ge 768 ]]
	[[ $(copies commits) -le 128 ]]
	[[ $(copies blocks) -le 1280 ]]
	expect_snapshots demo s1
	server_stop demo
	[[ $(rowsnap check s1.store >/dev/null; echo $?) -eq 0 ]]
}

@test "writes in no order copy nothing ahead" {
	make_image origin.img 16M
	server_start origin.img --volume=demo
	take demo origin.img s1
	write_blocks descending 512
	[[ $written -eq 512 && $(copies ahead_blocks) -eq 0 && $(copies blocks) -eq 512 ]]
	expect_snapshots demo s1
	server_stop demo
}

@test "copying ahead takes no room from what is written: a store with a limit lasts as long as without" {
	make_image origin.img 16M
	server_start origin.img --volume=demo --on-full=fail
	rowsnap format s1.store --size=8M
	take demo origin.img s1
	write_blocks ascending 4096
	[[ $written -gt 1024 && $written -lt 4096 ]]
	[[ $(copies ahead_blocks) -gt 0 ]]
	[[ $(copies blocks) -eq $written ]]
	expect_snapshots demo s1
	server_stop demo
}
