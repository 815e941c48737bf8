# SPDX-License-Identifier: GPL-2.0-or-later
"""
Sweeping a fault over every system call of the program: of the static one, or of one with sanitizers. Not a test by itself (no #! line); the tests are
killed-anywhere.py and failing-calls.py, and each takes the arguments

    [--all] [--jobs=N] [--only=TEXT] [--at=N]

By default a sweep takes a sample of calls, spread evenly. With --all it takes every call, until a run of the program has
fewer than that. --only picks the sweeps with TEXT in their names, --at one call of them, to look into it.
"""
import argparse
import concurrent.futures
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time
import traceback

from history import Trial, Wrong
from sandbox import SANITIZED, SLOW

BUILD = pathlib.Path(os.environ.get("ROWSNAP_BUILD", pathlib.Path(__file__).resolve().parent.parent / "build"))
PROGRAM, FAULT_AT = BUILD / ("rowsnap" if SANITIZED else "rowsnap.static"), BUILD / "tests/fault-at"
os.environ["ASAN_OPTIONS"] = os.environ.get("ASAN_OPTIONS", "") + ":detect_leaks=0"  # that cannot be done to a traced program
CHANGING = ("io_submit,pwrite64,pwritev,fallocate,fdatasync,fsync,ftruncate,rename,unlink,unlinkat,mkdir,"
            "openat,sendmsg,write")  # what others see of the program; killed between two of these is killed at the second


def skip_reason():
    tried = subprocess.run([FAULT_AT, "--nothing", "--", PROGRAM, "--version"], capture_output=True, check=False)
    if tried.returncode != 0:
        return f"no program can be traced here: {tried.stderr.decode().strip()}"
    return None


class Fault:
    """What is to go wrong at call `at`, as arguments of fault-at, and what came of it."""

    def __init__(self, arguments, at, report):
        self.arguments, self.at, self.report = arguments, at, report

    def wrapper(self):
        return [FAULT_AT, *self.arguments, f"--when={self.at}", f"--report={self.report}", "--"]

    def read(self):
        """(calls counted, gone wrong, the first one's name)."""
        counted, fired, name = self.report.read_text().split()
        return int(counted), int(fired), name


PASSED_OVER = "passed over"  # the call was there, and was none that could go wrong like that


class Template:
    """A trial's folder in a state that many trials begin with. They are copies of it."""

    def __init__(self, make):
        self.make, self.folder, self.lock = make, None, threading.Lock()

    def trial(self):
        with self.lock:
            if self.folder is None:
                self.folder = Trial(program=PROGRAM)
                self.make(self.folder)
        made = Trial(program=PROGRAM)
        made.history = self.folder.history.copy()
        for path in self.folder.path.iterdir():
            if path.name == "state":
                self.copy_record(path, made.path)
            elif path.is_file():
                shutil.copyfile(path, made.path / path.name)
        return made

    def copy_record(self, state, path):
        """With the paths in it."""
        for record in state.iterdir():
            if record.is_file():
                text = record.read_text().replace("\\/", "/").replace(str(self.folder.path), str(path))
                (path / "state" / record.name).write_text(text)

    def clear(self):
        if self.folder:
            self.folder.__exit__()


TRIES_MAX = 10


class Sweep:
    """
    run(at) has call `at` go wrong in one trial and judges it. It returns the call's name, PASSED_OVER, or None when there
    were fewer calls; and raises Wrong. run(0) lets nothing go wrong, and returns how many calls there are.
    """

    def __init__(self, name, run, sample):
        self.name, self.run, self.sample = name, run, sample


class Tally:
    def __init__(self):
        self.fired, self.calls, self.wrong, self.last = 0, {}, [], 0


def run_one(sweep, at, tally, lock, tries=1):
    """Whether it fired, or may at a later call. Where it cannot, one of the next calls takes its place: `tries` in all."""
    try:
        name = sweep.run(at)
        while name is PASSED_OVER and tries > 1:
            at, tries = at + 1, tries - 1
            name = sweep.run(at)
    except Wrong as error:
        name, text = None, f"at {at}: {error}"
    except Exception:  # pylint: disable=broad-except
        name, text = None, f"at {at}: {traceback.format_exc()}"
    else:
        text = None
    with lock:
        if text:
            tally.wrong.append(text)
            print(f"# {sweep.name}: {text}".replace("\n", "\n# "), flush=True)
        elif name and name is not PASSED_OVER:
            tally.fired += 1
            tally.calls[name] = tally.calls.get(name, 0) + 1
            tally.last = max(tally.last, at)
    return bool(name or text)


def run_sweep(sweep, options):
    """All of it, or a sample of it: first as many steps as are known to be there, then on until nothing fires."""
    tally, lock = Tally(), threading.Lock()
    if options.at:
        run_one(sweep, options.at, tally, lock)
        return tally
    step = 1
    if not options.all:
        step = max(1, sweep.run(0) // max(2, sweep.sample // SLOW))
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        at, going = 1 + (step > 1) * (step // 2), True
        while going:
            batch = range(at, at + step * options.jobs * 2, step)
            going = all(pool.map(lambda n: run_one(sweep, n, tally, lock, min(step, TRIES_MAX)), batch))
            at += step * options.jobs * 2
            going = going and len(tally.wrong) < 20
    return tally


def run(title, sweeps, templates=(), reason=None):
    """The main function of a test; with a reason it is skipped."""
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="")
    parser.add_argument("--at", type=int)
    options = parser.parse_args()
    reason = reason or skip_reason()
    sweeps = [sweep for sweep in sweeps if options.only in sweep.name]
    print(f"1..0 # skip {reason}" if reason else f"1..{len(sweeps)}", flush=True)
    if reason:
        return
    failed = 0
    try:
        for number, sweep in enumerate(sweeps, 1):
            began = time.monotonic()
            tally = run_sweep(sweep, options)
            good = not tally.wrong and (tally.fired > 0 or options.at)
            failed += not good
            print(f"{'ok' if good else 'not ok'} {number} - {sweep.name}", flush=True)
            print(f"#   {tally.fired} faults, up to call {tally.last}, {time.monotonic() - began:.0f} s: {tally.calls}",
                  flush=True)
    finally:
        for template in templates:
            template.clear()
    sys.exit(1 if failed else 0)
