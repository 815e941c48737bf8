# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# What the .bats files share. Each begins with
#
#	# shellcheck source=tests/helpers.bash
#	source "$BATS_TEST_DIRNAME/helpers.bash"
#
# and gets, for every test: a private folder $dir as the current folder, run and state folders inside it, and an end
# that stops the servers and helpers the test started, and no others, and undoes its mounts and loop devices. As bats has it, every command of a test must succeed; but a
# line with `!`, or with `&&` in it, never fails a test unless it is the last one: write `run ! COMMAND`, or [[ ... ]].
#
# ROWSNAP names the binary under test; ROWSNAP_SLOW is the factor for time limits (tests/run sets both).

bats_require_minimum_version 1.5.0

: "${ROWSNAP:=$BATS_TEST_DIRNAME/../build/rowsnap}"
: "${ROWSNAP_SLOW:=1}"
PATH=$PATH:/usr/sbin:/sbin

setup() {
	# A short path: a socket's path has room for 107 bytes.
	dir=$(mktemp -d "${TMPDIR:-/tmp}/rowsnap.XXXXXX")
	export ROWSNAP_RUNDIR=$dir/run ROWSNAP_STATEDIR=$dir/state
	mkdir -m 700 "$ROWSNAP_RUNDIR" "$ROWSNAP_STATEDIR"
	cd "$dir" || return
	server_pids=()
	server_count=0
	helper_pids=()
	mounts=()
	loops=()
}

# Mounts go first: what they lie on must still be served then.
teardown() {
	local pid mount loop

	for mount in "${mounts[@]}"; do
		fsfreeze --unfreeze "$mount" 2>/dev/null || true
		umount "$mount" 2>/dev/null || fusermount3 -u -z "$mount" 2>/dev/null || umount -l "$mount" 2>/dev/null || true
	done
	for pid in "${helper_pids[@]}"; do
		end_process "$pid"
	done
	for loop in "${loops[@]}"; do
		losetup --detach "$loop" 2>/dev/null || true
	done
	for pid in "${server_pids[@]}"; do
		end_process "$pid"
	done
	if [[ -z ${BATS_TEST_COMPLETED:-} ]]; then
		show_logs
	fi
	cd / && rm -rf "$dir"
}

# For the reader of a failed test.
show_logs() {
	local log

	for log in "$dir"/server-*.out "$dir"/server-*.err "$dir"/helper-*.out; do
		[[ -s $log ]] || continue
		echo "--- ${log##*/}"
		head -c 20000 "$log"
	done
}

# SIGTERM, a while to obey, SIGKILL. Only for children of this shell that were not waited for yet.
end_process() {
	local pid=$1

	kill -TERM "$pid" || true
	wait_until 10 process_ended "$pid" || kill -KILL "$pid" || true
	wait "$pid" || true
} 2>/dev/null

# A zombie has ended too.
process_ended() {
	local stat

	stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 0
	[[ $stat == *') Z '* ]]
}

# wait_until SECONDS COMMAND...: runs the command until it succeeds. The limit is stretched by ROWSNAP_SLOW.
wait_until() {
	local deadline=$((SECONDS + $1 * ROWSNAP_SLOW + 1))

	shift
	until "$@"; do
		if ((SECONDS >= deadline)); then
			echo "waited in vain for: $*"
			return 1
		fi
		sleep 0.05
	done
}

## Requirements: a test that cannot be run here is skipped, with the reason

require_command() {
	command -v "$1" >/dev/null || skip "there is no command $1"
}

require_root() {
	[[ $(id -u) -eq 0 ]] || skip 'needs root'
}

require_loop_devices() {
	local device

	require_root
	device=$(losetup --find 2>/dev/null) || skip 'there are no loop devices here'
	[[ -b $device ]] || skip 'there are no loop devices here'
}

# attach_loop ARGUMENT...: losetup with these, until the end of the test. Sets loop, the device.
attach_loop() {
	loop=$(losetup --find --show "$@")
	loops+=("$loop")
}

## Running rowsnap

rowsnap() {
	"$ROWSNAP" "$@"
}

# With an end, should it go on for ever: what must be refused may be served instead.
rowsnap_once() {
	timeout --foreground $((30 * ROWSNAP_SLOW)) "$ROWSNAP" "$@" >stdout 2>stderr </dev/null
}

# expect_error WHY ARGUMENT...: `rowsnap ARGUMENT...` must exit with 1, print nothing on stdout, and on stderr one
# line of the form `rowsnap COMMAND: what: why`. WHY is a regular expression that the line must match.
expect_error() {
	local why=$1 status=0

	shift
	rowsnap_once "$@" || status=$?
	describe "$status" "$@"
	[[ $status -eq 1 ]]
	[[ ! -s stdout ]]
	[[ $(wc -l <stderr) -eq 1 ]]
	grep -Eq "^rowsnap $1: .+: .+" stderr
	grep -Eq -- "$why" stderr
}

# expect_usage_error WHY ARGUMENT...: as above, for a command line that makes no sense: exit status 64, and the
# complaint may be followed by a pointer to --help, which argp breaks into two lines where it is long.
expect_usage_error() {
	local why=$1 status=0

	shift
	rowsnap_once "$@" || status=$?
	describe "$status" "$@"
	[[ $status -eq 64 ]]
	[[ ! -s stdout ]]
	[[ $(wc -l <stderr) -le 3 ]]
	head -n 1 stderr | grep -Eq '^rowsnap( [a-z]+)?: .+'
	grep -Eq -- "$why" stderr
}

# Only seen when the test fails; or, with ROWSNAP_MESSAGES, collected in that file: what is said to bad input.
describe() {
	if [[ -n ${ROWSNAP_MESSAGES:-} ]]; then
		printf '%s\t%s\t%s\t%s\n' "$BATS_TEST_DESCRIPTION" "$1" "${*:2}" \
			"$(grep -E '^rowsnap( [a-z]+)?: ' stderr | tail -n 1)" >>"$ROWSNAP_MESSAGES"
	fi
	echo "rowsnap ${*:2}: exit status $1"
	head -c 5000 stdout
	head -c 5000 stderr
}

## Servers

# server_begin ARGUMENT...: `rowsnap serve ARGUMENT...` in the background. Sets server_pid, server_out, server_err.
server_begin() {
	server_count=$((server_count + 1))
	server_out=$dir/server-$server_count.out
	server_err=$dir/server-$server_count.err
	"$ROWSNAP" serve "$@" >"$server_out" 2>"$server_err" </dev/null 3>&- &
	server_pid=$!
	server_pids+=("$server_pid")
}

# server_start ARGUMENT...: the same, and returns once it says that it is ready. Fails when it ends instead.
server_start() {
	server_begin "$@"
	wait_until 20 server_is_ready_or_ended
	if ! grep -qx 'rowsnap: ready' "$server_out"; then
		echo "rowsnap serve $* did not get ready"
		return 1
	fi
}

server_is_ready_or_ended() {
	grep -qx 'rowsnap: ready' "$server_out" || process_ended "$server_pid"
}

# server_wait: waits until the server ends by itself, and sets server_status.
server_wait() {
	wait_until 30 process_ended "$server_pid"
	server_status=0
	wait "$server_pid" || server_status=$?
	forget_server "$server_pid"
}

# server_stop VOLUME: a clean stop, which must succeed on both sides.
server_stop() {
	rowsnap stop "$1"
	server_wait
	[[ $server_status -eq 0 ]]
}

# The power cut, as far as a process can have one, for the server started last.
server_kill() {
	kill -KILL "$server_pid"
	wait "$server_pid" 2>/dev/null || true
	forget_server "$server_pid"
}

# Its number may be another process's from now on.
forget_server() {
	local pid remaining=()

	for pid in "${server_pids[@]}"; do
		[[ $pid == "$1" ]] || remaining+=("$pid")
	done
	server_pids=("${remaining[@]}")
}

# expect_refused WHY ARGUMENT...: `rowsnap serve ARGUMENT...` must not serve: as expect_error, but notices may come first.
expect_refused() {
	local why=$1 status=0

	shift
	rowsnap_once serve "$@" || status=$?
	describe "$status" serve "$@"
	[[ $status -eq 1 ]]
	[[ ! -s stdout ]]
	tail -n 1 stderr | grep -Eq '^rowsnap serve: .+: .+'
	tail -n 1 stderr | grep -Eq -- "$why"
	[[ $(grep -c '^rowsnap serve: ' stderr) -eq 1 ]]
}

## Other programs

# helper_begin COMMAND...: in the background, with its output in $helper_out. Sets helper_pid. Ended after the test.
helper_begin() {
	helper_out=$dir/helper-${#helper_pids[@]}.out
	"$@" >"$helper_out" 2>&1 </dev/null 3>&- &
	helper_pid=$!
	helper_pids+=("$helper_pid")
}

# helper_wait [PID]: until it ends by itself. Sets helper_status.
helper_wait() {
	local pid=${1:-$helper_pid}

	wait_until 60 process_ended "$pid"
	helper_status=0
	wait "$pid" || helper_status=$?
}

# helpers_end: waits for all of them. Sets helpers_good, how many ended with 0.
helpers_end() {
	local pid

	helpers_good=0
	for pid in "${helper_pids[@]}"; do
		helper_wait "$pid"
		[[ $helper_status -ne 0 ]] || helpers_good=$((helpers_good + 1))
	done
	helper_pids=()
}

# writer write|check|read ...: see writer.py.
writer() {
	python3 "$BATS_TEST_DIRNAME/writer.py" "$@"
}

# writer_begin VOLUME MODEL [COUNT [SEED]]: writes to the origin in the background, and has begun to.
writer_begin() {
	local before

	before=$(count_writes "$1")
	helper_begin python3 "$BATS_TEST_DIRNAME/writer.py" write "$ROWSNAP_RUNDIR/$1.nbd" origin "${@:2}"
	writer_pid=$helper_pid
	wait_until 20 wrote_more "$1" "$before"
}

count_writes() {
	rowsnap status "$1" --json | jq -er .requests.writes
}

wrote_more() {
	[[ $(count_writes "$1") -gt $2 ]]
}

writer_end() {
	kill -TERM "$writer_pid" 2>/dev/null || true
	helper_wait "$writer_pid"
	[[ $helper_status -eq 0 ]]
}

# write_some VOLUME FILE COUNT SEED: so many random requests; the image FILE must hold then what they made of it.
write_some() {
	cp --sparse=always "$2" write-some.model
	writer write "$ROWSNAP_RUNDIR/$1.nbd" origin write-some.model "$3" "$4" >write-some.out || { cat write-some.out; return 1; }
	cmp "$2" write-some.model
}

## Data

# make_image FILE SIZE: random content. SIZE is in bytes, or with K, M, G.
make_image() {
	head -c "$2" /dev/urandom >"$1"
}

checksum() {
	sha256sum <"$1" | cut -d ' ' -f 1
}

# nbd_uri VOLUME EXPORT
nbd_uri() {
	echo "nbd+unix:///$2?socket=$ROWSNAP_RUNDIR/$1.nbd"
}

# export_checksum VOLUME EXPORT: of all it holds, read by nbdcopy.
export_checksum() {
	(set -o pipefail && nbdcopy "$(nbd_uri "$1" "$2")" - | sha256sum | cut -d ' ' -f 1)
}

# export_io VOLUME EXPORT COMMAND...: qemu-io's commands, such as 'write -P 0xaa 64k 4k', in this order.
export_io() {
	local uri commands=()

	uri=$(nbd_uri "$1" "$2")
	shift 2
	for command; do
		commands+=(-c "$command")
	done
	qemu-io -f raw "${commands[@]}" "$uri"
}

# snapshot_io: the same for what is read-only.
snapshot_io() {
	local uri commands=()

	uri=$(nbd_uri "$1" "$2")
	shift 2
	for command; do
		commands+=(-c "$command")
	done
	qemu-io -r -f raw "${commands[@]}" "$uri"
}

# take VOLUME ORIGIN NAME...: snapshots, in NAME.store, each with a copy of the image at that instant in NAME.expected.
# Nobody may be writing.
take() {
	local volume=$1 origin=$2 name

	shift 2
	for name; do
		rowsnap snapshot "$volume" "$name" "$name.store"
		cp --sparse=always "$origin" "$name.expected"
	done
}

# expect_snapshots VOLUME NAME...: each reads as NAME.expected, bit for bit.
expect_snapshots() {
	local volume=$1 name

	shift
	for name; do
		nbdcopy "$(nbd_uri "$volume" "$name")" read-back.img
		cmp read-back.img "$name.expected" || { echo "snapshot $name is not what it was"; return 1; }
	done
}

# copied_blocks VOLUME: how many blocks have been preserved since the server started.
copied_blocks() {
	rowsnap status "$1" --json | jq -er .copies.blocks
}

# status_has VOLUME FILTER: whether jq finds it true in `status --json`.
status_has() {
	rowsnap status "$1" --json | jq -e "$2" >/dev/null
}

# list_json VOLUME FILTER: what jq makes of `list --json`.
list_json() {
	rowsnap list "$1" --json | jq -er "$2"
}
