#!/usr/bin/env bats
# SPDX-License-Identifier: GPL-2.0-or-later
#
# serve --run, and what a service manager is told.

# shellcheck source=tests/helpers.bash
source "$BATS_TEST_DIRNAME/helpers.bash"

# run_served COMMAND ARGUMENT...: `serve origin.img --run=COMMAND`. Sets status.
run_served() {
	status=0
	rowsnap_once serve origin.img --volume=demo "--run=$1" "${@:2}" || status=$?
	describe "$status" "serve --run=$1"
}

@test "the command finds the volume and its sockets in its environment" {
	make_image origin.img 1M
	# shellcheck disable=SC2016 # the served shell expands it
	run_served 'echo "$ROWSNAP_VOLUME $ROWSNAP_CONTROL $ROWSNAP_NBD" >environment
		'"$ROWSNAP"' list "$ROWSNAP_VOLUME" && '"$ROWSNAP"' list "$ROWSNAP_CONTROL" &&
		nbdinfo --size "nbd+unix:///origin?socket=$ROWSNAP_NBD" >size'
	[[ $status -eq 0 ]]
	[[ $(<environment) == "demo $ROWSNAP_RUNDIR/demo.sock $ROWSNAP_RUNDIR/demo.nbd" ]]
	[[ $(<size) -eq $((1 << 20)) ]]
	[[ -z $(ls -A "$ROWSNAP_RUNDIR") ]]
}

@test "the exit status is the command's" {
	make_image origin.img 1M
	for expected in 0 1 3 42 255; do
		run_served "exit $expected"
		[[ $status -eq $expected ]]
	done
	run_served 'no-such-command-anywhere'
	[[ $status -eq 127 ]]
	run_served 'kill -KILL $$'
	[[ $status -eq 137 ]]
}

@test "a snapshot and a write from within, and a clean stop after it" {
	make_image origin.img 1M
	cp origin.img monday.expected
	# shellcheck disable=SC2016 # the served shell expands it
	run_served "$ROWSNAP"' snapshot demo monday monday.store &&
		qemu-io -f raw -c "write -P 1 0 512k" "nbd+unix:///origin?socket=$ROWSNAP_NBD"'
	[[ $status -eq 0 ]]
	[[ $(rowsnap inspect monday.store --json | jq '[.. | .clean? // empty][0]') == true ]]
	# shellcheck disable=SC2016
	run_served 'nbdcopy "nbd+unix:///monday?socket=$ROWSNAP_NBD" read-back.img' monday.store
	[[ $status -eq 0 ]]
	cmp read-back.img monday.expected
}

@test "when serving fails the command is not run, and the exit status is 1" {
	make_image origin.img 1000
	run_served 'touch was-run'
	[[ $status -eq 1 ]]
	[[ ! -e was-run ]]
}

@test "stop from within ends the server, and the command with it" {
	make_image origin.img 1M
	server_begin origin.img --volume=demo --run='echo started; exec sleep 600'
	wait_until 10 grep -q started "$server_out"
	kill -TERM "$server_pid"
	server_wait
	echo "status $server_status"
	[[ $server_status -ne 1 ]]
	run_served "$ROWSNAP stop demo"
	[[ $status -eq 0 ]]
}

@test "when the server is killed, the command is told" {
	make_image origin.img 1M
	# shellcheck disable=SC2016 # the served shell expands it
	server_begin origin.img --volume=demo --run='echo $$ >pid.new; mv pid.new pid; exec sleep 600'
	wait_until 10 test -e pid
	server_kill
	wait_until 10 process_ended "$(<pid)"
}

@test "a service manager is told when all is ready, and not before" {
	make_image origin.img 1M
	for socket in "$dir/notify" '@rowsnap-test-'$$; do
		rm -f notified
		helper_begin python3 -c '
import socket, sys
path = sys.argv[1]
listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
listener.bind("\0" + path[1:] if path[0] == "@" else path)
open("listening", "w").close()
open("notified", "wb").write(listener.recv(1000))' "$socket"
		wait_until 10 test -e listening
		rm listening
		NOTIFY_SOCKET=$socket server_start origin.img --volume=demo
		wait_until 10 test -s notified
		grep -q '^READY=1' notified
		server_stop demo
	done
	NOTIFY_SOCKET=/nonexistent/socket server_start origin.img --volume=demo
	server_stop demo
}
