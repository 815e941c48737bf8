#!/usr/bin/env bats
# SPDX-License-Identifier: GPL-2.0-or-later
#
# rowsnap repair: what is served afterwards, and how it asks. Every kind of damage, and repairs that are cut short at every
# write, are in tests/unit/test-check.c.

# shellcheck source=tests/helpers.bash
source "$BATS_TEST_DIRNAME/helpers.bash"

area=1048576 # the size of an area, and where the first one is

# Two snapshots. s1 has blocks 0 to 511, the first ones in slots of the same number; s2 is the newest.
make_chain() {
	make_image disk.img 4M
	server_start disk.img
	take disk disk.img s1
	export_io disk origin 'write -q -P 1 0 2M'
	take disk disk.img s2
	export_io disk origin 'write -q -P 2 1M 256k'
	server_stop disk
}

# rubbish FILE OFFSET BYTES
rubbish() {
	head -c "$3" /dev/urandom | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

# exits STATUS ARGUMENT...
exits() {
	local wanted=$1 status=0

	shift
	rowsnap_once "$@" || status=$?
	describe "$status" "$@"
	[[ $status -eq $wanted ]]
}

@test "with nothing wrong there is nothing to do" {
	make_chain
	sha256sum ./*.store >sums
	exits 0 repair s1.store s2.store --yes
	exits 0 repair s2.store --yes --json
	jq -e '.mended == false and .clean and .exit == 0' stdout
	sha256sum --check --quiet sums
}

@test "one copy of everything: all comes back, and all snapshots read as before" {
	make_chain
	rubbish s1.store 0 4096
	rubbish s1.store $area 4096                   # copy 0 of area 0
	rubbish s1.store $((3 * area - 4096)) 4096    # copy 1 of area 1
	exits 4 check s1.store s2.store
	exits 1 repair s1.store s2.store --yes
	exits 0 check s1.store s2.store --json
	jq -e '[.stores[].findings[]] == []' stdout
	server_start disk.img
	expect_snapshots disk s1 s2
	server_stop disk
}

@test "damaged data costs just its block" {
	make_chain
	rubbish s1.store $((area + 4096 + 4096 * 11 + 9)) 40 # slot 11 has block 11
	exits 4 check s1.store s2.store
	exits 1 repair s1.store s2.store --yes
	grep -q 'block 11, in slot 11' stdout
	exits 0 check s1.store s2.store --json
	jq -e '.stores[0].findings | map([.code, .block]) == [["blocks-lost", 11]]' stdout
	server_start disk.img
	run ! snapshot_io disk s1 'read 44k 4k'
	[[ $output == *'Input/output error'* ]]
	snapshot_io disk s1 'read 0 44k' 'read 48k 4048k'
	expect_snapshots disk s2
	server_stop disk
}

@test "a lost entry breaks the snapshot, and no wrong byte is given out" {
	make_chain
	rubbish s1.store $((area + 32 + 16 * 11)) 16
	rubbish s1.store $((2 * area - 4096 + 32 + 16 * 11)) 16
	exits 5 repair s1.store s2.store --yes
	exits 4 check s1.store s2.store --json
	jq -e '.stores[0].findings | map(.code) | sort == ["slots-void", "snapshot-broken"]' stdout
	exits 4 repair s1.store s2.store --yes
	server_start disk.img
	snapshot_io disk s1 'read 0 44k' 'read 48k 2000k'
	run ! snapshot_io disk s1 'read 44k 4k' # the lost one
	run ! snapshot_io disk s1 'read 3M 4k'  # never preserved: nobody knows
	expect_snapshots disk s2
	server_stop disk
}

@test "a store that was cut short is served as far as it goes" {
	make_chain
	truncate --size=$((2 * area)) s1.store
	expect_refused 'shorter' disk.img s1.store s2.store
	exits 5 repair s1.store s2.store --yes
	server_start disk.img
	snapshot_io disk s1 'read 0 1000k'
	run ! snapshot_io disk s1 'read 1100k 4k'
	expect_snapshots disk s2
	server_stop disk
}

@test "--dry-run writes nothing, and says what would be done" {
	make_chain
	rubbish s1.store 0 4096
	sha256sum ./*.store >sums
	exits 4 repair s1.store --dry-run
	grep -q 'to be written: the superblock' stdout
	exits 4 repair s1.store --dry-run --json
	jq -e '.dry_run and .mended == false and (.before.stores[0].findings | length > 0)' stdout
	sha256sum --check --quiet sums
}

@test "without a terminal it must be told --yes" {
	make_chain
	rubbish s1.store 0 4096
	sha256sum ./*.store >sums
	exits 16 repair s1.store
	[[ $(wc -l <stderr) -eq 1 ]]
	grep -q '^rowsnap repair: s1.store: .*--yes' stderr
	sha256sum --check --quiet sums
}

# on_terminal ANSWER ARGUMENT...: rowsnap on a terminal of its own, where ANSWER is typed. Prints what it says.
on_terminal() {
	python3 - "$ROWSNAP" "$@" <<-'END'
		import os, pty, sys
		program, answer, arguments = sys.argv[1], sys.argv[2], sys.argv[3:]
		pid, terminal = pty.fork()
		if pid == 0:
		    os.execv(program, [program] + arguments)
		said = b""
		while True:
		    try:
		        more = os.read(terminal, 4096)
		    except OSError:
		        break
		    if not more:
		        break
		    said += more
		    if said.endswith(b"[y/N] "):
		        os.write(terminal, answer.encode() + b"\n")
		sys.stdout.buffer.write(said)
		sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
	END
}

@test "on a terminal it asks, and takes only a yes for one" {
	make_chain
	rubbish s1.store 0 4096
	sha256sum ./*.store >sums
	for answer in n '' maybe; do
		status=0
		on_terminal "$answer" repair s1.store >said || status=$?
		[[ $status -eq 4 ]]
		grep -q 'nothing was written' said
		sha256sum --check --quiet sums
	done
	status=0
	on_terminal y repair s1.store >said || status=$?
	[[ $status -eq 1 ]]
	exits 0 check s1.store s2.store
}

@test "a store that is in use, one that is not there, and one that may only be read" {
	make_chain
	server_start disk.img
	exits 8 repair s1.store --yes
	grep -q 'is in use' stderr
	server_stop disk
	exits 8 repair nosuch --yes
	[[ $(wc -l <stderr) -eq 1 ]]
	exits 16 repair
	exits 16 repair s1.store s1.store --yes
	rubbish s1.store 0 4096
	exits 12 repair --dry-run s1.store nosuch
	grep -q '^rowsnap repair: nosuch: ' stderr
}

@test "the other stores are only read" {
	make_chain
	rubbish s1.store 0 4096
	rubbish s2.store 0 4096
	sha256sum s2.store >sums
	exits 1 repair s1.store s2.store --yes
	sha256sum --check --quiet sums
	exits 1 repair s2.store s1.store --yes
	exits 0 check s1.store s2.store
}

@test "killed in the middle, it can be run again" {
	make_chain
	for ((slot = 1; slot < 254; slot += 7)); do
		rubbish s1.store $((area + 4096 + slot * 4096)) 8
		rubbish s1.store $((2 * area + 4096 + slot * 4096)) 8
	done
	rubbish s1.store 0 4096
	cp s1.store damaged.store
	for delay in 0.005 0.01 0.02 0.04; do
		cp damaged.store s1.store
		timeout --signal=KILL "$delay" "$ROWSNAP" repair s1.store --yes >out 2>&1 || true
		wait_until 10 flock --nonblock s1.store true # it may still be dying
		status=0
		rowsnap repair s1.store --yes >out || status=$?
		[[ $status -eq 0 || $status -eq 1 ]]
		exits 0 check s1.store s2.store --json
		jq -e '.stores[0].findings | map([.code, .count]) == [["blocks-lost", 74]]' stdout
	done
}
