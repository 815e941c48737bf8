#!/usr/bin/env bats
# SPDX-License-Identifier: GPL-2.0-or-later
#
# A merge that is cut short, wherever, is either not begun, or refused to be served until it is finished, or done; and the same
# command finishes it.

# shellcheck source=tests/helpers.bash
source "$BATS_TEST_DIRNAME/helpers.bash"

# make_chain: a small origin with the snapshots a, b and c, stopped, and put by in folder chain/.
make_chain() {
	local name at=0

	mkdir chain
	make_image origin.img $((1 << 20 | 512))
	server_start origin.img --volume=demo
	for name in a b c; do
		take demo origin.img $name
		export_io demo origin "write -P 5 ${at}k 300k" "write -z $((at + 400))k 64k" 'write -P 6 1048064 1024' flush >/dev/null
		at=$((at + 200))
	done
	server_stop demo
	cp origin.img now.expected
	mv origin.img ./*.store "$ROWSNAP_STATEDIR" chain
}

put_chain() {
	rm -rf origin.img ./*.store "$ROWSNAP_STATEDIR"
	cp -a --sparse=always chain/. .
}

# merge_with INJECTION: a merge to b, with strace's injection. Sets merge_status. Leaks cannot be looked for under strace.
merge_with() {
	merge_status=0
	ASAN_OPTIONS=${ASAN_OPTIONS:+$ASAN_OPTIONS:}detect_leaks=0 strace -qqq -f -o trace -e trace="${1%%:*}" -e inject="$1" "$ROWSNAP" merge --snapshot=b origin.img \
		a.store b.store c.store >merge.out 2>merge.err || merge_status=$?
}

# What serves it sees, or is told. Sets served: refused, before or after.
serve_once() {
	local status=0 name

	served=before
	rowsnap serve origin.img --volume=demo --run="
		nbdcopy 'nbd+unix:///origin?socket=$ROWSNAP_RUNDIR/demo.nbd' origin.served
		nbdcopy 'nbd+unix:///a?socket=$ROWSNAP_RUNDIR/demo.nbd' a.served
		nbdcopy 'nbd+unix:///b?socket=$ROWSNAP_RUNDIR/demo.nbd' b.served
		$ROWSNAP list demo --json >list.json" >serve.out 2>serve.err || status=$?
	if [[ $status -ne 0 ]]; then
		served=refused
		tail -n 1 serve.err | grep -E "^rowsnap serve: .*origin.img: is being put back to snapshot b, and that is unfinished: finish it with 'rowsnap merge --snapshot=b"
		return
	fi
	jq -e '.snapshots | any(.name == "c")' list.json >/dev/null || served=after
	cmp a.served a.expected
	cmp b.served b.expected
	if [[ $served == before ]]; then cmp origin.served now.expected; else cmp origin.served b.expected; fi
}

# The same command again, and all is as it should be. The stores that were named may be wiped by now.
finish_merge() {
	rowsnap merge --snapshot=b origin.img a.store b.store c.store
	cmp origin.img b.expected
	expect_error 'is not a rowsnap store' inspect ./c.store
	rowsnap replay --snapshot=a --output=- origin.img a.store b.store | cmp - a.expected
	rowsnap replay --snapshot=b --output=- origin.img a.store b.store | cmp - b.expected
}

@test "killed before any of its disk requests" {
	local n step=1 seen=' ' killed=0

	require_command strace
	make_chain
	# Nothing is written before the 12th; each step is cheap, but a sanitized program is not.
	((ROWSNAP_SLOW == 1)) || step=4
	for ((n = 12; ; n += step)); do
		put_chain
		merge_with "io_submit:signal=KILL:when=$n"
		((merge_status != 0)) || break
		[[ $merge_status -eq 137 ]]
		killed=$((killed + 1))
		serve_once
		seen+="$served "
		finish_merge
	done
	echo "killed $killed times:$seen"
	[[ $seen == *' before '* && $seen == *' refused '* && $seen == *' after '* ]]
}

@test "killed before it forgets the merge in its record" {
	require_command strace
	make_chain
	for n in 1 2; do
		put_chain
		merge_with "rename:signal=KILL:when=$n"
		[[ $merge_status -eq 137 ]]
		serve_once
		[[ $served != refused ]]
		finish_merge
	done
}

@test "when its requests fail it says so in one line, and can be run again" {
	local n errors=(EIO ENOSPC) failed=0

	require_command strace
	make_chain
	for ((n = 3; n < 48; n += 4)); do
		put_chain
		merge_with "io_submit:error=${errors[n / 4 % 2]}:when=$n"
		# One that fails may be made up for: a superblock has two copies, and what cannot be read is tried once more.
		if ((merge_status == 0)); then
			cmp origin.img b.expected
			continue
		fi
		[[ $merge_status -eq 1 && ! -s merge.out ]]
		cat merge.err
		[[ $(wc -l <merge.err) -eq 1 ]]
		grep -E '^rowsnap merge: .+: .+' merge.err
		failed=$((failed + 1))
		serve_once
		finish_merge
	done
	((failed >= 3))
}

@test "interrupted it stops at a safe point, and tells how to go on" {
	local n seen=' '

	require_command strace
	make_chain
	for ((n = 8; ; n += 4)); do
		put_chain
		merge_with "io_submit:signal=TERM:when=$n"
		((merge_status != 0)) || break
		[[ $merge_status -eq 1 && $(wc -l <merge.err) -eq 1 ]]
		cat merge.err
		grep -Eq 'interrupted: nothing was changed|interrupted: it is half put back to snapshot b' merge.err
		serve_once
		[[ $served == refused ]] || grep -q 'nothing was changed' merge.err
		seen+="$served "
		finish_merge
	done
	[[ $seen != ' ' ]]
}

# half_merge: a merge to b, killed in the middle.
half_merge() {
	local n

	for ((n = 20; n < 60; n++)); do
		put_chain
		merge_with "io_submit:signal=KILL:when=$n"
		serve_once
		[[ $served != refused ]] || return 0
	done
	return 1
}

@test "a half-merged origin is not served, nor read, whatever stores are given" {
	require_command strace
	make_chain
	half_merge
	expect_refused 'unfinished: finish it with' --volume=demo origin.img
	expect_refused 'unfinished: finish it with' --volume=demo origin.img --accept-origin
	expect_refused 'unfinished: finish it with' --volume=demo origin.img b.store c.store --accept-origin
	expect_refused "store, .*, was not given" --volume=demo origin.img c.store --accept-origin
	expect_refused 'needs the next newer' --volume=demo origin.img a.store --accept-origin
	expect_refused 'needs the next newer' --volume=demo origin.img b.store a.store --accept-origin
	expect_error 'unfinished: finish it with' replay --snapshot=a --output=a.img origin.img a.store b.store c.store
	expect_error 'unfinished: finish it with' diff origin.img a.store b.store c.store
	expect_error 'is needed by a merge' drop ./b.store
	[[ $(rowsnap list ./a.store ./b.store ./c.store --json | jq -c '[.snapshots[].state]') == '["sealed","merging","merging"]' ]]
	rowsnap inspect ./c.store --json | jq -e '.stores[0].merge_target_uuid != null or .merge_target_uuid != null'
	mkdir away
	mv ./*.store away
	expect_refused 'is being put back to snapshot b, and that is unfinished' --volume=demo origin.img
	expect_refused 'is being put back to snapshot b, and that is unfinished' --volume=demo origin.img --accept-origin
	mv away/*.store .
	finish_merge
	[[ $(rowsnap list ./a.store ./b.store --json | jq -c '[.snapshots[].state]') == '["sealed","active"]' ]]
}

@test "another merge than the one that has begun is refused, and its dry run tells what is left" {
	require_command strace
	make_chain
	half_merge
	expect_error 'is being put back to snapshot b, and that is unfinished: finish that one first' merge --snapshot=a origin.img a.store b.store c.store
	expect_error 'is being put back to snapshot b, and that is unfinished: finish that one first' merge --snapshot=c origin.img
	[[ $(rowsnap merge --snapshot=b --dry-run --json origin.img a.store b.store c.store | jq -c '[.resumed, .gone]') == '[true,["c"]]' ]]
	expect_refused 'unfinished' --volume=demo origin.img
	finish_merge
}

@test "a half-merged origin that was written to meanwhile is noticed" {
	require_command strace
	make_chain
	half_merge
	printf changed | dd of=origin.img bs=1 seek=1024 conv=notrunc status=none
	expect_error 'was changed while it was half put back' merge --snapshot=b origin.img a.store b.store c.store
	rowsnap merge --snapshot=b --accept-origin origin.img a.store b.store c.store
	expect_error 'the chain is broken' replay --snapshot=b --output=b.img origin.img a.store b.store
	[[ $(rowsnap list ./b.store --json | jq -r '.snapshots[0].state') == broken ]]
}
