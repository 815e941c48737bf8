#!/usr/bin/env bats
# SPDX-License-Identifier: GPL-2.0-or-later
#
# What bash offers after a TAB. The completion functions are called as bash would call them.

# shellcheck source=tests/helpers.bash
source "$BATS_TEST_DIRNAME/helpers.bash"

# complete_words WORD...: the completions of the last word, in one line. --x=y is given as bash gives it: --x = y.
complete_words() {
	# shellcheck source=cmd/rowsnap.bash-completion
	source "$BATS_TEST_DIRNAME/../cmd/rowsnap.bash-completion"
	compopt() { :; } # works only while bash itself completes
	COMP_WORDS=(rowsnap "$@")
	COMP_CWORD=$#
	COMPREPLY=()
	_rowsnap
	echo "${COMPREPLY[*]}"
}

# The socket of a server that is long dead will do: its name is all that is looked at.
make_socket() {
	python3 -c 'import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])' "$1"
}

@test "commands are completed" {
	[[ $(complete_words s) == 'serve snapshot status stop' ]]
	[[ $(complete_words insp) == 'inspect' ]]
}

@test "every command that --help names is completed" {
	for command in format serve snapshot drop list status stop inspect check repair merge replay diff; do
		[[ " $(complete_words '') " == *" $command "* ]]
	done
}

@test "every option that is offered is one that the command's --help names" {
	for command in format serve snapshot drop list status stop inspect check repair merge replay diff; do
		rowsnap "$command" --help >help
		for option in $(complete_words "$command" -); do
			grep -q -e "${option%=}" help || { echo "$command --help does not name $option"; false; }
		done
	done
}

@test "every long option that a command's --help names is offered" {
	for command in format serve snapshot drop list status stop inspect check repair merge replay diff; do
		rowsnap "$command" --help >help
		offered=" $(complete_words "$command" -) "
		mapfile -t options < <(grep -Eo -e '--[a-z-]+' help | sort -u)
		for option in "${options[@]}"; do
			case $option in --usage | --version | --help) continue ;; esac
			[[ $offered == *" $option "* || $offered == *" $option= "* ]] ||
				{ echo "$command $option is not offered"; false; }
		done
	done
}

@test "an option's values are completed" {
	[[ $(complete_words serve --on-full =) == 'break fail wait' ]]
	[[ $(complete_words serve --on-full = f) == 'fail' ]]
	[[ $(complete_words serve --discard = s) == 'skip' ]]
	[[ $(complete_words drop --progress = a) == 'auto always' ]]
	[[ $(complete_words check --progress = n) == 'never' ]]
}

@test "volumes are completed from the sockets in the run folder" {
	make_socket "$ROWSNAP_RUNDIR/alpha.sock"
	make_socket "$ROWSNAP_RUNDIR/beta.sock"
	make_socket "$ROWSNAP_RUNDIR/alpha.nbd"
	[[ $(complete_words stop '') == 'alpha beta' ]]
	[[ $(complete_words status --json b) == 'beta' ]]
	[[ $(complete_words snapshot a) == 'alpha' ]]
}

@test "files are completed where a store or an origin is due" {
	touch one.img one.store
	[[ $(complete_words serve one.i) == 'one.img' ]]
	[[ $(complete_words serve --volume = x one.img one.s) == 'one.store' ]]
	[[ $(complete_words snapshot volume name one.s) == 'one.store' ]]
	[[ -z $(complete_words snapshot volume one.s) ]]
}

@test "the snapshots of a running volume are completed" {
	make_image origin.img 1M
	server_start origin.img --volume=demo
	rowsnap snapshot demo monday monday.store
	rowsnap snapshot demo tuesday tuesday.store
	PATH=${ROWSNAP%/*}:$PATH
	[[ $(complete_words drop demo mo) == *monday* ]]
	[[ $(complete_words drop demo tue) == *tuesday* ]]
	server_stop demo
}
