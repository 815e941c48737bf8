#!/usr/bin/env bats
# SPDX-License-Identifier: GPL-2.0-or-later
#
# What people get: `make install`, the static program, and documents that agree with the program.

# shellcheck source=tests/helpers.bash
source "$BATS_TEST_DIRNAME/helpers.bash"

commands=(format serve snapshot drop list status stop inspect check repair merge replay diff)

# Says nothing when all is well. The variables of a make that runs us are inherited, so nothing is built anew.
make_here() {
	make -s -C "$BATS_TEST_DIRNAME/.." "$@" 2>&1
}

# Some of this is the same for every build, and needs to be tried once only.
require_plain_build() {
	[[ $ROWSNAP_SLOW -eq 1 ]] || skip 'the same as for the plain build'
}

# The page as text, without overstrikes.
man_text() {
	mandoc -T utf8 "$BATS_TEST_DIRNAME/../man/$1" | col -bx
}

@test "make install puts four files under DESTDIR and PREFIX, and make uninstall removes them" {
	require_plain_build
	make_here install DESTDIR="$dir/root" PREFIX=/usr
	(cd root && find . -type f | sort) >installed
	diff installed - <<-'END'
		./usr/bin/rowsnap
		./usr/share/bash-completion/completions/rowsnap
		./usr/share/man/man5/rowsnap-format.5
		./usr/share/man/man8/rowsnap.8
	END
	root/usr/bin/rowsnap --version
	make_here uninstall DESTDIR="$dir/root" PREFIX=/usr
	[[ -z $(find root -type f) ]]
}

@test "the static program needs no shared library" {
	require_plain_build
	"$ROWSNAP.static" --version
	ldd "$ROWSNAP.static" 2>&1 | grep -Eq 'statically linked|not a dynamic executable'
}

@test "the manual pages have no errors" {
	require_plain_build
	require_command mandoc
	for page in "$BATS_TEST_DIRNAME"/../man/*; do
		mandoc -T lint -W warning "$page"
	done
}

@test "the manual has every command and every option that --help names" {
	require_command mandoc
	require_command col
	man_text rowsnap.8 >manual
	for command in "${commands[@]}"; do
		grep -q "^ *rowsnap $command" manual
		rowsnap "$command" --help >help
		mapfile -t options < <(grep -Eo -e '--[a-z-]+' help | sort -u)
		[[ ${#options[@]} -gt 0 ]]
		for option in "${options[@]}"; do
			[[ $option == --usage ]] || grep -q -e "$option" manual ||
				{ echo "the manual does not have $command $option"; false; }
		done
	done
}

@test "every option in the manual's synopsis is one of the program's" {
	require_command mandoc
	require_command col
	man_text rowsnap.8 | sed -n '/^SYNOPSIS/,/^DESCRIPTION/p' >synopsis
	for command in "${commands[@]}"; do
		rowsnap "$command" --help
	done >help
	mapfile -t options < <(grep -Eo -e '--[a-z-]+' synopsis | sort -u)
	for option in "${options[@]}"; do
		grep -q -e "$option" help || { echo "the manual has $option, which no command has"; false; }
	done
}
