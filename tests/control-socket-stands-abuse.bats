#!/usr/bin/env bats
# SPDX-License-Identifier: GPL-2.0-or-later
#
# The control socket: garbage is answered or dropped and harms nobody, and only the owner gets in.

# shellcheck source=tests/helpers.bash
source "$BATS_TEST_DIRNAME/helpers.bash"

serve_demo() {
	make_image origin.img 1M
	server_start origin.img --volume=demo
	take demo origin.img s1
}

# say [SECONDS]: sends stdin to the control socket and prints what it answers until it closes.
say() {
	timeout "${1:-5}" socat -t 2 - "UNIX-CONNECT:$ROWSNAP_RUNDIR/demo.sock" 2>/dev/null || true
}

expect_served() {
	rowsnap list demo >/dev/null
	expect_snapshots demo s1
	server_stop demo
}

@test "requests by hand are answered, one JSON object a line" {
	serve_demo
	printf '%s\n' '{"command":"list"}' '{"command":"status"}' | say >answers
	[[ $(wc -l <answers) -eq 2 ]]
	[[ $(head -n 1 answers | jq -r .result.volume) == demo ]]
	expect_served
}

@test "garbage gets an error, and the client is dropped" {
	serve_demo
	for text in 'hello' '{"command":' '[]' '42' '"list"' 'null' '{} {}' '{"command":"list"' $'\x01\x02\xff' '{"a":{"a":{"a":'; do
		printf '%s\n' "$text" | say >answer
		[[ $(wc -l <answer) -le 1 ]]
		[[ ! -s answer ]] || jq -e .error answer >/dev/null
	done
	expect_served
}

@test "objects that make no sense get an error" {
	serve_demo
	for text in '{}' '{"command":7}' '{"command":"frobnicate"}' '{"command":"snapshot"}' '{"command":"drop"}' \
		'{"command":"drop","name":["s1"]}' '{"command":"drop","name":"../s1"}' '{"command":"snapshot","name":"x"}' \
		'{"command":"snapshot","name":"x","store":"relative"}' '{"command":"snapshot","name":{},"store":[]}' \
		'{"command":"snapshot","name":"origin","store":"/nonexistent/x"}'; do
		printf '%s\n' "$text" | say >answer
		echo "$text: $(<answer)"
		jq -e .error.why answer >/dev/null
	done
	expect_served
}

@test "half a line, and silence, are no harm" {
	serve_demo
	helper_begin socat -u EXEC:'sleep 60' "UNIX-CONNECT:$ROWSNAP_RUNDIR/demo.sock"
	printf '{"command":"li' | say 2 >answer
	[[ ! -s answer ]] || jq -e .error answer
	expect_served
}

@test "10 MB without an end of line are cut off" {
	serve_demo
	before=$(awk '/^VmRSS/ { print $2 }' "/proc/$server_pid/status")
	head -c 10000000 /dev/zero | tr '\0' 'a' | say 10 >answer
	[[ $(wc -l <answer) -le 1 ]]
	(printf '{"command":"' && head -c 10000000 /dev/zero | tr '\0' 'b' && echo '"}') | say 10 >answer
	[[ $(wc -l <answer) -le 1 ]]
	after=$(awk '/^VmRSS/ { print $2 }' "/proc/$server_pid/status")
	[[ $ROWSNAP_SLOW -ne 1 || $after -le $((before + 4096)) ]]
	expect_served
}

@test "more connections than are let in at once do not keep the owner out for long" {
	serve_demo
	for _ in {1..80}; do
		helper_begin socat -u "UNIX-CONNECT:$ROWSNAP_RUNDIR/demo.sock" -
	done
	for pid in "${helper_pids[@]}"; do
		kill "$pid" 2>/dev/null || true
	done
	wait_until 10 rowsnap list demo
	expect_served
}

@test "a client that goes away while its snapshot is taken harms nobody" {
	serve_demo
	for n in 1 2 3 4 5; do
		rowsnap format "x$n.store"
		printf '{"command":"snapshot","name":"x%s","store":"%s"}\n' "$n" "$dir/x$n.store" |
			timeout 2 socat -u - "UNIX-CONNECT:$ROWSNAP_RUNDIR/demo.sock"
		wait_until 5 list_json demo ".snapshots[] | select(.name == \"x$n\")"
	done
	expect_served
}

@test "another user cannot connect, and cannot even see the socket" {
	require_root
	require_command setpriv
	serve_demo
	[[ $(stat -c %a "$ROWSNAP_RUNDIR/demo.sock") == 600 ]]
	[[ $(stat -c %a "$ROWSNAP_RUNDIR/demo.nbd") == 600 ]]
	chmod 755 "$dir" "$ROWSNAP_RUNDIR"
	chmod 666 "$ROWSNAP_RUNDIR/demo.sock" # even so: who connects is looked at
	printf '%s\n' '{"command":"stop"}' |
		setpriv --reuid=65534 --regid=65534 --clear-groups timeout 3 socat - "UNIX-CONNECT:$ROWSNAP_RUNDIR/demo.sock" >answer || true
	[[ ! -s answer ]] || jq -e .error answer
	expect_served
}

@test "folders, sockets, stores and records are the owner's only" {
	rm -r "$ROWSNAP_RUNDIR" "$ROWSNAP_STATEDIR"
	umask 000
	serve_demo
	[[ $(stat -c %a "$ROWSNAP_RUNDIR") == 700 ]]
	[[ $(stat -c %a "$ROWSNAP_STATEDIR") == 700 ]]
	[[ $(stat -c %a "$ROWSNAP_RUNDIR/demo.sock") == 600 ]]
	[[ $(stat -c %a "$ROWSNAP_RUNDIR/demo.nbd") == 600 ]]
	[[ $(stat -c %a s1.store) == 600 ]]
	for record in "$ROWSNAP_STATEDIR"/*.json; do
		[[ $(stat -c %a "$record") == 600 ]]
	done
	expect_served
}

@test "a stale socket is replaced, a live one refused, and what is no socket left alone" {
	make_image origin.img 1M
	make_image other.img 1M
	python3 -c 'import socket, sys; [socket.socket(socket.AF_UNIX).bind(path) for path in sys.argv[1:]]' \
		"$ROWSNAP_RUNDIR/demo.sock" "$ROWSNAP_RUNDIR/demo.nbd"
	server_start origin.img --volume=demo
	expect_refused 'demo.*already' other.img --volume=demo
	expect_refused 'demo\.nbd.*already' other.img "--nbd=$ROWSNAP_RUNDIR/demo.nbd"
	rowsnap list demo
	nbdinfo --size "$(nbd_uri demo origin)"
	server_stop demo
	echo precious >"$ROWSNAP_RUNDIR/demo.nbd"
	expect_refused 'demo\.nbd.*no socket' origin.img --volume=demo
	[[ $(<"$ROWSNAP_RUNDIR/demo.nbd") == precious ]]
	[[ ! -e $ROWSNAP_RUNDIR/demo.sock ]]
}

@test "a socket path that is too long is refused, with what to do" {
	make_image origin.img 1M
	long=$dir/$(printf 'x%.0s' {1..110})
	expect_refused 'too long' origin.img --volume=demo "--nbd=$long"
	mkdir "$long"
	ROWSNAP_RUNDIR=$long expect_refused 'too long.*ROWSNAP_RUNDIR' origin.img --volume=demo
	ROWSNAP_RUNDIR=$long expect_error '.' list demo
}

@test "a volume is found by the path of its control socket" {
	serve_demo
	rowsnap list ./run/demo.sock | grep -q s1
	rowsnap status "$ROWSNAP_RUNDIR/demo.sock" --json | jq -e .requests
	rowsnap stop "$ROWSNAP_RUNDIR/demo.sock"
	server_wait
	[[ $server_status -eq 0 ]]
}

@test "several who ask for the stop are all answered" {
	serve_demo
	for _ in 1 2 3 4; do
		helper_begin "$ROWSNAP" stop demo
	done
	server_wait
	[[ $server_status -eq 0 ]]
	good=0
	for pid in "${helper_pids[@]}"; do
		helper_wait "$pid"
		[[ $helper_status -ne 0 ]] || good=$((good + 1))
	done
	[[ $good -ge 1 ]] # one may have come too late
}

@test "stop returns when origin and stores are free" {
	serve_demo
	for _ in 1 2 3 4 5 6; do
		rowsnap stop demo
		rowsnap inspect s1.store >/dev/null
		server_wait
		server_start origin.img --volume=demo
	done
	server_stop demo
}

has_lines() {
	[[ $(wc -l <"$2") -ge $1 ]]
}

@test "status --watch --json prints an object a line" {
	serve_demo
	helper_begin "$ROWSNAP" status demo --watch --json
	wait_until 10 has_lines 2 "$helper_out"
	kill "$helper_pid"
	helper_wait
	head -n 2 "$helper_out" | jq -e .requests.reads
	helper_begin "$ROWSNAP" status demo --watch
	server_stop demo
	helper_wait
	[[ $helper_status -eq 1 ]]
}
