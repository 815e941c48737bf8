#!/usr/bin/env bats
# SPDX-License-Identifier: GPL-2.0-or-later
#
# serve --dm-user on the kernel that is here: where it has no dm-user, that is told; where it has, it is tried in earnest.
# What can be proven without such a kernel is in dm-user.py.

# shellcheck source=tests/helpers.bash
source "$BATS_TEST_DIRNAME/helpers.bash"

has_dm_user() {
	[[ -w /dev/mapper/control ]] && command -v dmsetup >/dev/null && dmsetup targets | grep -q '^user '
}

@test "a kernel without dm-user is one clear error, and nothing is left" {
	has_dm_user && skip 'this kernel has dm-user'
	make_image origin.img 1M
	expect_error 'this kernel has no (device mapper|dm-user target)|needs root' serve origin.img --volume=demo --dm-user=rowsnap-test
	[[ -z $(ls -A "$ROWSNAP_RUNDIR") ]]
	# The origin is as it was, and free.
	server_start origin.img --volume=demo
	server_stop demo
}

@test "a name that cannot be a device's is a usage error" {
	make_image origin.img 1M
	for name in '' - .hidden a/b 'a b' control origin "$(printf 'x%.0s' {1..49})"; do
		expect_usage_error '--dm-user' serve origin.img --volume=demo "--dm-user=$name"
	done
}

@test "the origin and a snapshot are block devices" {
	has_dm_user || skip 'this kernel has no dm-user'
	make_image origin.img 64M
	cp origin.img before.img
	server_start origin.img --volume=demo --dm-user=rowsnap-test
	cmp /dev/mapper/rowsnap-test before.img
	rowsnap snapshot demo monday ./monday.store
	dd if=/dev/urandom of=/dev/mapper/rowsnap-test bs=1M count=40 seek=3 oflag=direct status=none
	dd if=/dev/urandom of=/dev/mapper/rowsnap-test bs=512 count=99 seek=7 conv=fsync status=none
	cmp /dev/mapper/rowsnap-test origin.img
	cmp /dev/mapper/rowsnap-test-monday before.img
	run ! dd if=/dev/zero of=/dev/mapper/rowsnap-test-monday bs=4k count=1 oflag=direct status=none
	rowsnap drop demo monday
	wait_until 20 test ! -e /dev/mapper/rowsnap-test-monday
	server_stop demo
	[[ ! -e /dev/mapper/rowsnap-test ]]
}

@test "a file system is made on the device, mounted, worked on and checked; while it is mounted nothing stops" {
	has_dm_user || skip 'this kernel has no dm-user'
	require_command mkfs.ext4
	truncate -s 64M origin.img
	server_start origin.img --volume=demo --dm-user=rowsnap-test
	mkfs.ext4 -q -E nodiscard /dev/mapper/rowsnap-test
	mkdir mnt && mounts+=("$dir/mnt")
	mount /dev/mapper/rowsnap-test mnt
	cp -r "$BATS_TEST_DIRNAME/../core" mnt/
	rowsnap snapshot demo monday ./monday.store --freeze=mnt
	rm -r mnt/core
	expect_error 'open or mounted' stop demo
	umount mnt
	fsck.ext4 -fn /dev/mapper/rowsnap-test
	mount -o ro,noload /dev/mapper/rowsnap-test-monday mnt
	diff -r "$BATS_TEST_DIRNAME/../core" mnt/core
	umount mnt
	server_stop demo
}
