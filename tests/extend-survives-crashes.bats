#!/usr/bin/env bats
# SPDX-License-Identifier: GPL-2.0-or-later
#
# The server is killed in the middle of an extend, before any of its disk requests and of those of the write that waited
# for it: the store is joined then, or it is not, and the snapshot reads as before.

# shellcheck source=tests/helpers.bash
source "$BATS_TEST_DIRNAME/helpers.bash"

# make_full: a stopped volume whose store is full, put by in folder full/.
make_full() {
	mkdir full
	make_image origin.img 4M
	server_start origin.img --volume=demo --on-full=fail
	rowsnap format small.store --size=3M
	rowsnap format part.store
	take demo origin.img small
	run export_io demo origin 'write -P 2 0 2M' # more than there is room for
	server_stop demo
	mv origin.img ./*.store "$ROWSNAP_STATEDIR" full
}

put_full() {
	rm -rf origin.img ./*.store "$ROWSNAP_STATEDIR"
	cp -a --sparse=always full/. .
}

# extend_with INJECTION: while a write waits for room. Sets extended, its exit status.
extend_with() {
	server_start origin.img --volume=demo --on-full=wait
	helper_begin qemu-io -f raw -c 'write -P 2 0 3M' -c flush "$(nbd_uri demo origin)"
	wait_until 10 status_has demo .stuck
	helper_begin strace -qqq -f -p "$server_pid" -o trace -e trace="${1%%:*}" -e inject="$1"
	wait_until 10 grep -q 'TracerPid:[[:space:]]*[1-9]' "/proc/$server_pid/status"
	extended=0
	timeout $((20 * ROWSNAP_SLOW)) "$ROWSNAP" extend demo small part.store >extend.out 2>extend.err || extended=$?
}

# serve_again: the server was killed. The part is named unless it is empty, as an empty store belongs to nobody.
serve_again() {
	part_state=$(rowsnap inspect part.store --json | jq -r '.stores[0].state')
	if [[ $part_state == empty ]]; then
		server_start origin.img small.store --volume=demo --on-full=fail
	else
		server_start origin.img part.store small.store --volume=demo --on-full=fail
	fi
	expect_snapshots demo small
	parts=$(list_json demo '.snapshots[0].parts | length')
}

@test "killed before any disk request" {
	local n step=1 seen=' '

	require_command strace
	make_full
	# ROWSNAP_EVERY_REQUEST=1 sweeps them all.
	((ROWSNAP_SLOW == 1)) && step=2 || step=6
	[[ -z ${ROWSNAP_EVERY_REQUEST:-} ]] || step=1
	for ((n = 1; n < 60; n += step)); do
		put_full
		extend_with "io_submit:signal=KILL:when=$n"
		if ((extended == 0)); then
			# it may still come to the n-th, with the write; when that ends the sweep is over
			helper_wait "${helper_pids[-2]}"
			[[ $helper_status -ne 0 ]] || break
		fi
		wait_until 20 process_ended "$server_pid"
		wait "$server_pid" 2>/dev/null || true
		forget_server "$server_pid"
		serve_again
		((extended != 0 || parts == 2))
		seen+="$parts/$part_state "
		if ((parts == 1)); then
			[[ $part_state == empty ]] || grep -q 'part.store: it was not joined' "$server_err"
			rowsnap extend demo small part.store
		fi
		export_io demo origin 'write -P 7 0 4M' flush
		expect_snapshots demo small
		server_stop demo
		rowsnap check small.store part.store
	done
	echo "parts after each kill:$seen"
	[[ $seen == *' 1/'* && $seen == *' 2/joined '* ]]
}

@test "when its requests fail, all at once or one, it says so, and is done or not" {
	local n

	require_command strace
	make_full
	for n in 3 4 6 8 '3+'; do
		put_full
		extend_with "io_submit:error=EIO:when=$n"
		kill -TERM "$helper_pid" # strace: the disk is well again
		helper_wait
		if ((extended != 0)); then
			[[ $(wc -l <extend.err) -eq 1 ]]
			grep -E '^rowsnap extend: .+: .+' extend.err
		fi
		rowsnap stop demo
		server_wait
		serve_again
		((extended != 0 || parts == 2))
		server_stop demo
	done
}
