#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""
The simulator bites: for each deliberate fault in tests/mutations/ it is built once more with that, and must find it
within what it runs in make check; without any it must find nothing, which is the test `sim`. Speaks TAP.

    tests/mutations-are-caught.py [NAME...]
"""
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
MUTATIONS = ROOT / "tests" / "mutations"
TIME_LIMIT_SECONDS = 300


def build(name):
    """The mutated simulator's path."""
    folder = pathlib.Path(os.environ.get("ROWSNAP_BUILD", "build"))
    program = (folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder) / "mutants" / name
    subprocess.run(["make", "-s", f"BUILD={program.parent.parent}", str(program)], cwd=ROOT, check=True,
                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return program


def hunt(name):
    """Whether the simulator finds it, and what it says."""
    hint = re.search(r"Found by (seed|schedule) (\d+)\.", (MUTATIONS / name).read_text())
    first = [f"--{hint[1]}s={hint[2]}-{hint[2]}"] if hint else []
    try:
        program = build(name)
        done = subprocess.run([program, "--hunt", *first], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              errors="replace", timeout=TIME_LIMIT_SECONDS)
    except subprocess.CalledProcessError as error:
        return False, error.stdout
    except subprocess.TimeoutExpired:
        return False, f"nothing found in {TIME_LIMIT_SECONDS} s"
    return done.returncode == 1 and "\nfound: " in "\n" + done.stdout, done.stdout


def main():
    names = sys.argv[1:] or sorted(path.name for path in MUTATIONS.iterdir())
    if os.environ.get("ROWSNAP_SLOW", "1") != "1":
        print("1..0 # skip the plain build's simulator is what is tried")
        return
    for number, name in enumerate(names, 1):
        caught, output = hunt(name)
        lines = output.strip().splitlines() or ["(it said nothing)"]
        print(f"{'ok' if caught else 'not ok'} {number} - {name} is {'caught' if caught else 'NOT caught'}")
        for line in lines[-4:]:
            print(f"# {line}", flush=True)
    print(f"1..{len(names)}")


if __name__ == "__main__":
    main()
