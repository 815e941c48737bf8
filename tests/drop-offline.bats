#!/usr/bin/env bats
# SPDX-License-Identifier: GPL-2.0-or-later
#
# drop STORE [NEXT]: without a server.

# shellcheck source=tests/helpers.bash
source "$BATS_TEST_DIRNAME/helpers.bash"

# A stopped volume with the snapshots a, b and c.
make_chain() {
	make_image origin.img 4M
	server_start origin.img --volume=demo
	for name in a b c; do
		take demo origin.img $name
		write_some demo origin.img 40 "$(printf %d "'$name")"
	done
	server_stop demo
}

remember() {
	sha256sum origin.img ./*.store >before.sums
}

@test "the oldest is dropped, and its successor told" {
	make_chain
	rowsnap drop ./a.store ./b.store
	run ! rowsnap inspect a.store
	server_start origin.img --volume=demo b.store c.store
	run ! grep -q 'older snapshot' "$server_err"
	expect_snapshots demo b c
	server_stop demo
}

@test "without NEXT the successor finds out later that the oldest is away" {
	make_chain
	rowsnap drop ./a.store
	server_start origin.img --volume=demo b.store c.store
	expect_snapshots demo b c
	server_stop demo
}

@test "serve ORIGIN alone goes on after an offline drop" {
	make_chain
	rowsnap drop ./a.store ./b.store
	rm a.store
	server_start origin.img --volume=demo
	expect_snapshots demo b c
	server_stop demo
	make_image other.img 1M
	server_start other.img
	take other other.img x y
	server_stop other
	rowsnap drop ./x.store ./y.store # the file stays, with nothing in it
	server_start other.img
	expect_snapshots other y
	server_stop other
}

@test "what is not the oldest by its links is refused, unless forced" {
	make_chain
	remember
	expect_error 'not the oldest' drop ./b.store
	expect_error 'not the oldest' drop ./b.store ./c.store
	expect_error 'newest' drop ./c.store
	expect_error 'c\.store.*not the next' drop ./a.store ./c.store
	sha256sum --check --quiet before.sums
	rm a.store
	rowsnap drop ./b.store ./c.store --force
	server_start origin.img --volume=demo c.store
	expect_snapshots demo c
	server_stop demo
}

@test "a store that is served is refused, and what is no store" {
	make_chain
	server_start origin.img --volume=demo
	expect_error 'in use.*rowsnap' drop ./a.store
	expect_snapshots demo a b c
	server_stop demo
	make_image random.store 1M
	: >nothing.store
	mkdir folder
	rowsnap format empty.store
	remember
	expect_error 'not a rowsnap store' drop ./random.store
	expect_error 'not a rowsnap store' drop ./nothing.store
	expect_error 'folder.*neither|folder.*directory' drop ./folder
	expect_error 'No such file' drop ./nosuch.store
	expect_error 'empty' drop ./empty.store
	expect_error 'twice' drop ./a.store ./a.store
	sha256sum --check --quiet before.sums
}
