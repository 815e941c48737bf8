#!/usr/bin/env bats
# SPDX-License-Identifier: GPL-2.0-or-later
#
# tests/run itself: whatever goes wrong in a test program must be counted. Uses no rowsnap.

# A tests folder of its own, with the runner and whatever a test puts next to it, and a build for it.
setup() {
	dir=$(mktemp -d "${TMPDIR:-/tmp}/rowsnap.XXXXXX")
	mkdir "$dir/tests" "$dir/build"
	cp "$BATS_TEST_DIRNAME/run" "$dir/tests/"
	cp /bin/true "$dir/build/rowsnap"
	cd "$dir" || return
}

teardown() {
	cd / && rm -rf "$dir"
}

# program NAME: a test program in Python, read from stdin.
program() {
	{
		echo '#!/usr/bin/env python3'
		echo 'import subprocess, sys, os, signal, time'
		cat
	} >"tests/$1.py"
}

# expect_totals STATUS TOTALS [ARGUMENT...]
expect_totals() {
	local status=0

	tests/run "${@:3}" build >output 2>&1 || status=$?
	cat output
	[[ $status -eq $1 ]]
	[[ $(tail -n 1 output) == "$2" ]]
}

@test "what passed is counted, and the totals are the last line" {
	program one <<<'print("ok 1 - first\nok 2 - second\n1..2")'
	program two <<<'print("1..1\nok 1 - third")'
	expect_totals 0 '3 passed, 0 failed'
}

@test "a failed test fails the run and its output is shown" {
	program one <<<'print("ok 1 - first\nnot ok 2 - second\n# telling detail\n1..2"); sys.exit(1)'
	expect_totals 1 '1 passed, 1 failed'
	grep -q 'telling detail' output
	grep -q 'failed: build: one.py: second' output
}

@test "a skipped test is neither passed nor failed, and its reason is told" {
	program one <<<'print("ok 1 - first\nok 2 - second # SKIP no such device\n1..2")'
	program two <<<'print("1..0 # SKIP nothing to see")'
	expect_totals 0 '1 passed, 0 failed'
	grep -q 'skipped: build: one.py: second: no such device' output
	grep -q 'skipped: build: two.py: all of it: nothing to see' output
}

@test "a program that prints no plan has failed" {
	program one <<<'print("ok 1 - first")'
	expect_totals 1 '1 passed, 1 failed'
}

@test "a program that does not reach its plan has failed" {
	program one <<<'print("1..3\nok 1 - first\nok 2 - second")'
	expect_totals 1 '2 passed, 1 failed'
}

@test "a program that reports a test twice has failed" {
	program one <<<'print("1..2\nok 1 - first\nok 1 - first")'
	expect_totals 1 '2 passed, 1 failed'
}

@test "a program that crashes after its plan has failed" {
	program one <<<'print("ok 1 - first\n1..1", flush=True); os.kill(os.getpid(), signal.SIGSEGV)'
	expect_totals 1 '1 passed, 1 failed'
	grep -q 'killed by SIGSEGV' output
}

@test "a program that exits with an error has failed" {
	program one <<<'print("ok 1 - first\n1..1"); sys.exit(3)'
	expect_totals 1 '1 passed, 1 failed'
}

@test "a program that outlives its time limit has failed, and is ended with its children" {
	program one <<-'END'
		child = subprocess.Popen(["sleep", "4711"])
		print("1..1\nok 1 - first", child.pid, flush=True)
		open("child", "w").write(str(child.pid))
		time.sleep(4711)
	END
	expect_totals 1 '1 passed, 1 failed' --time-limit=1
	grep -q 'outlived its time limit' output
	[[ ! -e /proc/$(<child)/cmdline || -z $(tr -d '\0' <"/proc/$(<child)/cmdline") ]]
}

@test "a sanitizer's report fails the run, whoever wrote it" {
	program one <<-'END'
		folder = os.environ["ASAN_OPTIONS"].split("log_path=")[1].split("/report")[0]
		open(folder + "/report.1234", "w").write("heap-use-after-free\n")
		print("1..1\nok 1 - first")
	END
	expect_totals 1 '1 passed, 1 failed'
	grep -q 'heap-use-after-free' output
}

@test "a test program that was not built has failed" {
	program one <<<'print("1..1\nok 1 - first")'
	mkdir tests/unit
	touch tests/unit/test-lost.c
	expect_totals 1 '1 passed, 1 failed'
	grep -q 'test-lost' output
}

@test "a run of no tests has failed" {
	expect_totals 1 '0 passed, 0 failed'
	program one <<<'print("1..1\nok 1 - first")'
	expect_totals 1 '0 passed, 0 failed' --only='other*'
	expect_totals 0 '1 passed, 0 failed' --only='other* one*'
}

@test "a python file without a #! line is a module, not a test" {
	program one <<<'print("1..1\nok 1 - first")'
	echo 'print("no test")' >tests/module.py
	expect_totals 0 '1 passed, 0 failed'
}
