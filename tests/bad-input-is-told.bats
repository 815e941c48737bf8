#!/usr/bin/env bats
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Bad input: exit status 1, one line that says what is wrong, and nothing lost. What serve refuses is tested in
# serve-refuses-what-does-not-fit.bats, options in cli-usage.bats, sockets in control-socket-stands-abuse.bats.

# shellcheck source=tests/helpers.bash
source "$BATS_TEST_DIRNAME/helpers.bash"

serve_demo() {
	make_image origin.img 1M
	server_start origin.img --volume=demo
	take demo origin.img s1
}

# After all that was refused: the origin is untouched, the snapshot there, no other in the list.
expect_nothing_lost() {
	[[ $(list_json demo '[.snapshots[].name] | join(" ")') == s1 ]]
	cmp origin.img s1.expected
	expect_snapshots demo s1
	export_io demo origin 'write -P 1 0 64k'
	expect_snapshots demo s1
	server_stop demo
}

@test "a store that is a folder, a device without blocks, or a terminal" {
	serve_demo
	mkdir folder
	for command in "format" "snapshot demo s2"; do
		# shellcheck disable=SC2086 # several words
		{
			expect_error 'folder.*(directory|neither)' $command folder
			expect_error '/dev/null.*neither' $command /dev/null
			expect_error '/dev/tty|/dev/ptmx' $command /dev/ptmx
			expect_error 'nosuch.*No such file' $command nosuch/x.store
			expect_error 'origin\.img.*(Not a directory|is no folder)' $command origin.img/x.store
		}
	done
	mkfifo fifo
	expect_error 'fifo.*neither' format fifo
	expect_error 'fifo' snapshot demo s2 fifo
	expect_error 'fifo' inspect fifo
	expect_error 'fifo' list ./fifo
	expect_error 'fifo' drop ./fifo
	expect_error 'demo\.sock' format "$ROWSNAP_RUNDIR/demo.sock"
	expect_nothing_lost
}

@test "a store of 0 bytes, of zeroes, of random bytes, or that is a file system" {
	serve_demo
	: >empty.file
	truncate --size=2M zeroes.file
	make_image random.file 2M
	truncate --size=8M fs.file
	mkfs.ext4 -q fs.file
	sha256sum ./*.file >sums
	for file in empty zeroes random fs; do
		expect_error "$file\.file.*not a rowsnap store.*format" snapshot demo s2 $file.file
		expect_error "$file\.file.*not a rowsnap store" inspect $file.file
		expect_error "$file\.file.*not a rowsnap store" list ./$file.file
	done
	expect_error 'fs\.file.*ext4.*--force' format fs.file
	sha256sum --check --quiet sums
	rowsnap format empty.file
	rowsnap format zeroes.file
	rowsnap format --force fs.file
	run ! blkid -p fs.file # of the file system nothing is left to be found
	expect_nothing_lost
}

@test "a store that is too small" {
	serve_demo
	expect_error 'x\.store.*too small.*at least' format x.store --size=4K
	expect_error 'x\.store.*too small' format x.store --size=1M
	expect_error 'x\.store.*too small' format x.store --size=8M --block-size=64K
	[[ ! -e x.store ]]
	if [[ $(id -u) -eq 0 ]] && losetup --find >/dev/null; then
		truncate --size=1M device.img
		attach_loop device.img
		expect_error 'too small' format "$loop"
		truncate --size=8M larger.img
		attach_loop larger.img
		expect_error 'less than --size' format "$loop" --size=1G
	fi
	expect_nothing_lost
}

@test "the origin as a store, by any name" {
	serve_demo
	ln origin.img hardlink
	ln -s origin.img symlink
	for name in origin.img hardlink symlink; do
		expect_error "in use|the origin" format "$name"
		expect_error "in use|the origin" format "$name" --force
		expect_error "in use|the origin" snapshot demo s2 "$name"
		expect_error "in use|not a rowsnap" drop "./$name"
	done
	expect_nothing_lost
}

@test "a store that is in use already, by any name" {
	serve_demo
	ln s1.store hardlink
	ln -s s1.store symlink
	for name in s1.store hardlink symlink; do
		expect_error 'in use' format "$name" --force
		expect_error 'in use' snapshot demo s2 "$name"
		expect_error 'in use' drop "./$name"
		expect_error 'in use' inspect "$name"
		expect_error 'in use' list "./$name"
	done
	expect_nothing_lost
}

@test "a store that holds a snapshot of a volume that is not served" {
	serve_demo
	make_image other.img 1M
	server_start other.img
	rowsnap snapshot other x x.store
	server_stop other
	sha256sum x.store >sums
	expect_error 'x\.store.*snapshot x.*--force' format x.store
	expect_error 'x\.store.*holds snapshot x' snapshot demo s2 x.store
	sha256sum --check --quiet sums
	rowsnap format --force x.store
	rowsnap snapshot demo s2 x.store
	rowsnap drop demo s2
	expect_nothing_lost
}

@test "a snapshot's name that is not allowed, or taken" {
	serve_demo
	for name in '' a/b / .. . .hidden -dash origin 'a b' "$(printf 'x%.0s' {1..64})" $'new\nline' $'\xc3\xa4' $'\e[31m' '*' "'"; do
		expect_error 'name' snapshot demo -- "$name" x.store
	done
	expect_error 's1.*already' snapshot demo s1 x.store
	[[ ! -e x.store ]]
	longest=$(printf 'x%.0s' {1..63})
	rowsnap snapshot demo "$longest" x.store
	rowsnap drop demo "$longest"
	expect_nothing_lost
}

@test "a volume that is not there" {
	expect_error 'nosuch.*no server' list nosuch
	expect_error 'nosuch.*no server' snapshot nosuch s1 s1.store
	expect_error 'nosuch.*no server' drop nosuch s1
	expect_error 'nosuch.*no server' stop ./nosuch
	expect_error 'name' status ''
	expect_error 'name' status .hidden
	expect_error '.' status /
	[[ ! -e s1.store ]]
}

@test "a folder where nothing can be written" {
	[[ $(id -u) -ne 0 ]] || skip 'root may write anywhere'
	serve_demo
	mkdir -m 500 locked
	expect_error 'locked.*Permission' format locked/x.store
	expect_error 'locked.*Permission' snapshot demo s2 locked/x.store
	expect_nothing_lost
}

@test "stores to list that do not belong together" {
	serve_demo
	server_stop demo
	make_image other.img 1M
	server_start other.img
	rowsnap snapshot other x x.store
	server_stop other
	expect_error 'x\.store.*another volume' list ./s1.store ./x.store
	expect_error 'nosuch.*No such file' list ./s1.store ./nosuch
	expect_error 'nosuch.*No such file' inspect nosuch
}

@test "random bytes in any part of the superblocks: told, or harmless" {
	make_image origin.img 1M
	server_start origin.img --volume=demo
	take demo origin.img s1
	export_io demo origin 'write -P 1 0 512k'
	server_stop demo
	cp s1.store whole.store
	cp origin.img whole.img
	for ((offset = 0; offset < 400; offset += 16)); do
		cp whole.store s1.store
		for copy in 0 524288; do
			head -c 16 /dev/urandom | dd of=s1.store bs=1 seek=$((copy + offset)) conv=notrunc status=none
		done
		for command in 'inspect s1.store' 'list ./s1.store' 'drop ./s1.store' 'serve origin.img --volume=demo s1.store'; do
			read -ra words <<<"$command"
			status=0
			rowsnap_once "${words[@]}" || status=$?
			describe "$status" "${words[@]}"
			[[ $status -eq 1 ]]
			[[ $(wc -l <stderr) -eq 1 ]]
			grep -q 's1\.store' stderr
		done
		cmp origin.img whole.img
	done
	cp whole.store s1.store
	server_start origin.img --volume=demo
	expect_snapshots demo s1
	server_stop demo
}

@test "output that cannot be written is an error" {
	[[ -w /dev/full ]] || skip 'there is no /dev/full'
	serve_demo
	for command in 'list demo' 'status demo' 'list demo --json' 'format x.store' 'snapshot demo s2 s2.store'; do
		read -ra words <<<"$command"
		status=0
		rowsnap "${words[@]}" >/dev/full 2>stderr || status=$?
		echo "rowsnap $command: $status, $(<stderr)"
		[[ $status -eq 1 ]]
		grep -q 'No space left' stderr
	done
	rowsnap drop demo s2
	expect_nothing_lost
}
