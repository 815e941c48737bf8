#!/usr/bin/env bats
# SPDX-License-Identifier: GPL-2.0-or-later
#
# The command line: help, version, and what is said to a command line that makes no sense. Nothing is served here.

# shellcheck source=tests/helpers.bash
source "$BATS_TEST_DIRNAME/helpers.bash"

commands=(format serve snapshot drop list status stop inspect merge replay diff)
# These exit as fsck does, with 16.
fsck_commands=(check repair)

@test "--help names every command and exits with 0" {
	rowsnap --help >stdout 2>stderr
	[[ ! -s stderr ]]
	head -n 1 stdout | grep -q '^Usage: rowsnap '
	for command in "${commands[@]}" "${fsck_commands[@]}"; do
		grep -Eq "(^| )$command( |$)" stdout
	done
}

@test "--version prints one line with the name and a number" {
	rowsnap --version >stdout 2>stderr
	[[ ! -s stderr ]]
	[[ $(wc -l <stdout) -eq 1 ]]
	grep -Eq '^rowsnap [0-9]+\.[0-9]+' stdout
}

@test "COMMAND --help shows how to use that command" {
	for command in "${commands[@]}" "${fsck_commands[@]}"; do
		rowsnap "$command" --help >stdout 2>stderr
		[[ ! -s stderr ]]
		head -n 1 stdout | grep -q "^Usage: rowsnap $command "
	done
}

@test "COMMAND --help names the options that the command has" {
	local -A options=(
		[format]='--size --block-size --force --dry-run'
		[serve]='--volume --nbd --on-full --discard --accept-origin --write-back --run'
		[snapshot]='--freeze --json'
		[drop]='--background --forget-older --force --json --progress'
		[list]='--json'
		[status]='--watch --json'
		[inspect]='--areas --exceptions --json'
		[replay]='--snapshot --output --force --skip-lost --accept-origin --progress'
		[merge]='--snapshot --dry-run --accept-origin --json --progress'
		[diff]='--from --to --exact --json --null --accept-origin'
		[check]='--quick --json --progress'
		[repair]='--dry-run --yes --json --progress'
	)

	for command in "${!options[@]}"; do
		rowsnap "$command" --help >stdout
		for option in ${options[$command]}; do
			grep -q -e "$option" stdout || { echo "$command --help does not name $option"; false; }
		done
	done
}

@test "no command at all is a usage error" {
	expect_usage_error .
}

@test "an unknown command is a usage error that names it" {
	expect_usage_error frobnicate frobnicate
	expect_usage_error frobnicate frobnicate --help
}

@test "an unknown option is a usage error that names it" {
	expect_usage_error 'wibble' --wibble
	for command in "${commands[@]}"; do
		expect_usage_error 'wibble' "$command" --wibble
	done
}

@test "missing arguments are a usage error" {
	for command in "${commands[@]}"; do
		expect_usage_error . "$command"
	done
	expect_usage_error . snapshot volume
	expect_usage_error . snapshot volume name
}

@test "too many arguments are a usage error" {
	expect_usage_error . format one two
	expect_usage_error . snapshot volume name store more
	expect_usage_error . drop volume name more
	expect_usage_error . status volume more
	expect_usage_error . stop volume more
	[[ ! -e one && ! -e two ]]
}

@test "a number that is none is a usage error, and nothing is made" {
	for size in '' x 12Q -1 1.5M 99999999999999999999 0x10 '1 M' $'\xff\xfe' 17179869184G; do
		expect_usage_error . format store "--size=$size"
		expect_usage_error . format store "--block-size=$size"
	done
	for size in 0 1 1000 2K 5000 128K; do
		expect_usage_error . format store "--block-size=$size"
	done
	[[ ! -e store ]]
}

@test "a policy that does not exist is a usage error that names those that do" {
	make_image origin 64K
	expect_usage_error 'break' serve origin --on-full=explode
	expect_usage_error 'skip' serve origin --discard=explode
	expect_usage_error . serve origin --on-full=
}

@test "a volume name that is not allowed is refused before anything is served" {
	make_image origin 64K
	for name in '' .hidden -dash origin a/b 'a b' "$(printf 'x%.0s' {1..64})" $'new\nline' $'\xc3\xa4'; do
		status=0
		rowsnap_once serve origin "--volume=$name" || status=$?
		describe "$status" serve origin "--volume=$name"
		[[ $status -eq 64 ]]
		[[ ! -s stdout ]]
		head -n 1 stderr | grep -q '^rowsnap serve: --volume: '
	done
	[[ -z $(ls -A "$ROWSNAP_RUNDIR") ]]
}

@test "options may stand before, between and after arguments" {
	rowsnap format --dry-run --size=8M store >before
	rowsnap format --size=8M store --dry-run >between
	rowsnap format store --size=8M --dry-run >after
	cmp before between
	cmp before after
	[[ ! -e store ]]
}

@test "after -- an argument is no option" {
	rowsnap format --size=8M -- --odd-name
	[[ -e ./--odd-name ]]
}

@test "a command to a volume that is not served says so" {
	for command in list status stop; do
		expect_error 'nosuch' "$command" nosuch
	done
	expect_error 'nosuch' snapshot nosuch monday store
	expect_error 'nosuch' drop nosuch monday
	[[ ! -e store ]]
}

@test "a path where a control socket should be says what is wrong with it" {
	expect_error './nosuch.sock' status ./nosuch.sock
	touch file
	expect_error './file' status ./file
	mkdir folder
	expect_error './folder' status ./folder
}

@test "control characters in an argument do not reach the terminal" {
	status=0
	rowsnap_once status $'./\e[31mred\nline' || status=$?
	describe "$status" status
	[[ $status -eq 1 ]]
	[[ $(wc -l <stderr) -eq 1 ]]
	[[ $(<stderr) != *$'\e'* ]]
}

@test "without a run folder a user who is not root is told what to set" {
	require_root
	require_command setpriv
	cp "$ROWSNAP" rowsnap
	chmod 755 . rowsnap
	status=0
	env -u ROWSNAP_RUNDIR -u XDG_RUNTIME_DIR setpriv --reuid=65534 --regid=65534 --clear-groups \
		./rowsnap list nosuch >stdout 2>stderr </dev/null || status=$?
	describe "$status" list nosuch
	[[ $status -eq 1 ]]
	[[ $(wc -l <stderr) -eq 1 ]]
	grep -q 'XDG_RUNTIME_DIR' stderr
}
