#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""
SIGKILL at any system call, of the server in all it does, of its start after a crash, and of the offline tools: what is
served afterwards is right, block by block, and every write that was answered is there. (Arguments: see faults.py.)
"""
import concurrent.futures
import shutil

import faults
from faults import CHANGING, Fault, Sweep, Template
from history import BLOCK, Ended, Trial, expect
from nbd_client import WRITE
from sandbox import ROWSNAP, SANITIZED, VOLUME

KILL = ["--kill", f"--calls={CHANGING}"]
KILL_ALL = ["--kill"]
AREAS_OFFSET, AREA_BYTES = 1 << 20, (30 + 2) * 4096


def killed(fault, how):
    """The name of the call that it was killed at, or None. With at=0: how many calls there are."""
    counted, fired, name = fault.read()
    if fault.at == 0:
        return counted
    expect(fired == (how != "through"), f"it {how}, and {fired} calls were to kill it")
    return name if fired else None


def serve_through(trial, fault, work):
    """Serves under the fault and works; then judges."""
    trial.wrapper = fault.wrapper()
    how = "ended"
    try:
        if trial.start() and work(trial):
            how = "through"
    except Ended:
        pass
    expect(trial.has_ended(), "it neither ends nor goes on")
    name = killed(fault, how)
    expect(name or not trial.failures, f"it failed: {trial.failures} {trial.server.error_lines()}")
    trial.failures.clear()
    trial.judge()
    expect(not trial.failures, f"after the restart: {trial.failures}")
    return name


def life(at):
    with Trial(program=faults.PROGRAM, seed=at) as trial:
        return serve_through(trial, Fault(KILL, at, trial.path / "report"), Trial.live)


def life_any_call(at):
    with Trial(program=faults.PROGRAM, seed=at) as trial:
        return serve_through(trial, Fault(KILL_ALL, at, trial.path / "report"), Trial.live)


def crash_in_the_middle(trial):
    """Snapshots, and a fold that has just begun; the log goes past its durable mark."""
    expect(trial.start(), f"not served: {trial.server.error_lines()}")
    for name in ("a", "b", "c"):
        trial.snapshot(name)
        trial.write(4)
    trial.do([(WRITE, 0, trial.chance.randbytes(3 * 4096))])  # where the fingerprint is
    trial.history.drop_asked("b")
    trial.command("drop", VOLUME, "b", "--background")
    trial.write(2)
    trial.server.kill()
    trial.client.close()
    trial.client = None


def work_a_little(trial):
    trial.write(2)
    trial.flush()
    return trial.stop()


def snapshot_with_little_room(trial, name, areas):
    """In small areas, as Trial.snapshot(); there is room for that many."""
    trial.history.snapshot_asked(name)
    trial.format(name, room(areas))
    if trial.command("snapshot", VOLUME, name, trial.store(name)) == 0:
        trial.history.snapshot_made(name)


def room(areas):
    return AREAS_OFFSET + areas * AREA_BYTES


def extend_under_writes(trial, name, *ways):
    """More is written than there is room for, unless all these extends are done meanwhile."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        extended = pool.submit(lambda: [trial.command("extend", VOLUME, name, way) for way in ways])
        try:
            trial.do([(WRITE, block * BLOCK, trial.chance.randbytes(BLOCK)) for block in range(160)])
        finally:
            extended.result()


def live_and_extend(trial):
    """Stores get full, are given parts and room in these, are followed by others, folded and wiped."""
    trial.format("part", room(1))
    trial.format("second")
    snapshot_with_little_room(trial, "a", 2)
    trial.write(2, bytes_max=8192)
    extend_under_writes(trial, "a", trial.store("part"), f"--size={room(8)}")
    snapshot_with_little_room(trial, "b", 1)
    extend_under_writes(trial, "b", trial.store("second"))
    trial.snapshot("c")
    trial.write(3)
    trial.drop("b")
    trial.flush()
    trial.expect_all()
    trial.drop("a")
    trial.write(2)
    trial.expect_all()
    return trial.stop()


class WithSpare(Trial):
    """Writes wait for room. After a kill, a command finds some, in case that it was killed before it was extended."""

    def restart(self):
        command = f'[ $ROWSNAP_EVENT != full ] || {ROWSNAP} extend "$ROWSNAP_CONTROL" $ROWSNAP_SNAPSHOT {self.store("spare")}'
        self.options.append(f"--on-warn={command}")
        super().restart()


def extended_life(at):
    with WithSpare(program=faults.PROGRAM, seed=at, options=["--on-full=wait"]) as trial:
        return serve_through(trial, Fault(KILL, at, trial.path / "report"), live_and_extend)


CRASHED = Template(crash_in_the_middle)


def recovery(at):
    with CRASHED.trial() as trial:
        return serve_through(trial, Fault(KILL, at, trial.path / "report"), work_a_little)


def stopped_chain(trial):
    expect(trial.start(), f"not served: {trial.server.error_lines()}")
    for name in ("a", "b", "c"):
        trial.write(2)
        trial.snapshot(name)
        trial.write(4)
    expect(trial.stop(), "no clean stop")


STOPPED = Template(stopped_chain)


def offline(trial, fault, *arguments, good=(0,)):
    """One command under the fault; the name of the call it was killed at."""
    result = trial.run(*fault.wrapper(), faults.PROGRAM, *arguments)
    name = killed(fault, "through" if result.returncode in good else "ended")
    expect(name or result.returncode in good, f"{arguments}: {result.returncode}: {result.stderr}")
    expect(not name or fault.at == 0 or result.returncode == 137, f"{arguments}: {result.returncode}: {result.stderr}")
    return name


def format_a_store(at):
    """A store that was killed in its making is formatted again, and takes a snapshot."""
    with STOPPED.trial() as trial:
        old = trial.store("old")
        shutil.copyfile(trial.store("a"), old)
        path = old if at % 2 else trial.store("new")
        name = offline(trial, Fault(KILL, at, trial.path / "report"), "format", "--force", "--size=4M", path)
        trial.must(ROWSNAP, "format", "--force", path)
        expect(trial.start(), f"not served: {trial.server.error_lines()}")
        trial.history.snapshot_asked("n")
        trial.command("snapshot", VOLUME, "n", path)
        trial.history.snapshot_made("n")
        trial.write(4)
        trial.judge()
        return name


def drop_the_oldest(at):
    """`drop STORE NEXT`: it is there or not, and the command can be given again."""
    with STOPPED.trial() as trial:
        trial.history.drop_asked("a")
        name = offline(trial, Fault(KILL, at, trial.path / "report"), "drop", trial.store("a"), trial.store("b"))
        again = trial.run(ROWSNAP, "drop", trial.store("a"), trial.store("b"))
        expect(again.returncode == 0 or not trial.is_a_store(trial.store("a")), f"drop again: {again.stderr}")
        trial.judge()
        return name


def repair_a_store(at):
    """A damaged superblock copy: whole in the end, whenever the first repair was killed."""
    with STOPPED.trial() as trial:
        with open(trial.store("b"), "r+b") as file:
            file.seek(524288 * (at % 2))
            file.write(bytes(64))
        name = offline(trial, Fault(KILL, at, trial.path / "report"), "repair", "--yes", trial.store("b"), good=(0, 1))
        again = trial.run(ROWSNAP, "repair", "--yes", trial.store("b"))
        expect(again.returncode in (0, 1), f"repair again: {again.returncode}: {again.stdout}")
        expect(trial.run(ROWSNAP, "check", trial.store("b")).returncode == 0, "check still finds something")
        trial.judge()
        return name


def merge_to_a_snapshot(at):
    """Not begun, or finished by the same command."""
    with STOPPED.trial() as trial:
        stores = [trial.store(name) for name in "abc"]
        arguments = ["merge", "--snapshot=b", trial.origin, *stores]
        name = offline(trial, Fault(KILL, at, trial.path / "report"), *arguments)
        again = trial.run(ROWSNAP, *arguments)
        expect(again.returncode == 0 or not trial.is_a_store(stores[2]), f"merge again: {again.stderr}")
        trial.history.origin = trial.history.there["b"].copy()
        trial.history.there.pop("c")
        trial.judge()
        return name


SWEEPS = [
    Sweep("the server, through a whole life", life, 24),
    Sweep("the server, through a whole life, at any system call", life_any_call, 8),
    Sweep("the server, with stores that get full and are extended", extended_life, 16),
    Sweep("the start after a crash", recovery, 12),
    Sweep("format", format_a_store, 4),
    Sweep("drop of the oldest, offline", drop_the_oldest, 4),
    Sweep("repair", repair_a_store, 4),
    Sweep("merge", merge_to_a_snapshot, 6),
]

if __name__ == "__main__":
    faults.run(__doc__, SWEEPS, (CRASHED, STOPPED), "killed, it reports nothing" if SANITIZED else None)
