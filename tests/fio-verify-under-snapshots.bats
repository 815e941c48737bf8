#!/usr/bin/env bats
# SPDX-License-Identifier: GPL-2.0-or-later
#
# fio writes and verifies the origin while snapshots come and go; each reads the same for ever after.

# shellcheck source=tests/helpers.bash
source "$BATS_TEST_DIRNAME/helpers.bash"

@test "fio verifies its data while a snapshot is taken every second, and each stays what it was" {
	require_command fio
	truncate --size=64M origin.img
	server_start origin.img --volume=demo
	helper_begin fio --name=verify --ioengine=nbd "--uri=$(nbd_uri demo origin)" --rw=randwrite --bsrange=4k-64k \
		--serialize_overlap=1 --iodepth=16 --size=64M --time_based --runtime=6 --verify=crc32c --verify_fatal=1
	fio_pid=$helper_pid fio_out=$helper_out
	count=0
	declare -A sums
	until process_ended "$fio_pid"; do
		count=$((count + 1))
		rowsnap snapshot demo "s$count" "s$count.store"
		sums[s$count]=$(export_checksum demo "s$count")
		sleep 1 # a second of load, on purpose
		[[ $count -lt 30 ]]
	done
	helper_wait "$fio_pid"
	cat "$fio_out"
	[[ $helper_status -eq 0 ]]
	[[ $count -ge 3 ]]
	for name in "${!sums[@]}"; do
		[[ $(export_checksum demo "$name") == "${sums[$name]}" ]]
	done
	server_stop demo
	server_start origin.img --volume=demo
	for name in "${!sums[@]}"; do
		[[ $(export_checksum demo "$name") == "${sums[$name]}" ]]
	done
	server_stop demo
}

@test "fio's sequential and mixed loads verify, with deep queues" {
	require_command fio
	truncate --size=32M origin.img
	server_start origin.img --volume=demo
	rowsnap snapshot demo s1 s1.store
	for load in 'write 1M 8' 'randrw 4k 64' 'randwrite 16k 32'; do
		read -r rw bs iodepth <<<"$load"
		fio --name=load --ioengine=nbd "--uri=$(nbd_uri demo origin)" --rw="$rw" --bs="$bs" --iodepth="$iodepth" --size=32M \
			--verify=crc32c --verify_fatal=1 --end_fsync=1
	done
	[[ $(export_checksum demo s1) == "$(head -c 32M /dev/zero | sha256sum | cut -d ' ' -f 1)" ]]
	server_stop demo
}
