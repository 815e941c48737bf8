#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""
A power cut at any moment, with the origin and its stores on one disk: power-cut.py [--all] [--at=N] [NAME]. Prints TAP.

User-mode Linux runs a volume on a disk that dm-log-writes records: what was written in which order, and what was flushed
when. Out here each state that a power cut may have left is made from that record, served, and compared with what must be
there: what was flushed, every snapshot that was reported as made, whole, and no other data than was ever written.

The states: at each flush and each FUA write the disk as it is with all before it; and just before, where of the writes
since the last one only some have reached the disk, and some in part. --all looks at all of them, and at more subsets;
--at at one.

The disk is cut into slices for the origin and each store; or it is an ext4 file system with all of them as files.
(power-cut.py --record KIND FOLDER is what runs in the guest.)
"""
import argparse
import os
import pathlib
import pickle
import random
import shutil
import struct
import subprocess
import sys
import time

import format_reader
from format_reader import EMPTY
from history import BLOCK, SECTOR, Content, Ended, History, Trial, Wrong, expect
from nbd_client import FUA, TRIM
from sandbox import ROWSNAP, SANITIZED, SLOW, Folder

TESTS = pathlib.Path(__file__).resolve().parent
MIB = 1 << 20
ORIGIN_BYTES = 160 * BLOCK + SECTOR
NAMES = "abcdefg"
SLICE_BYTES = 3 * MIB
DISK_BYTES = {"slices": MIB + len(NAMES) * SLICE_BYTES, "ext4": 48 * MIB}
LOG_BYTES = 256 * MIB
FLUSHED, FORCED, DISCARDED, MARK = 1, 2, 4, 8
LOG_MAGIC = 0x6a736677736872


# ---- in the guest


def run(*command):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    expect(done.returncode == 0, f"{' '.join(map(str, command))}: {done.stderr}")
    return done.stdout


def slice_of(name):
    """(offset, bytes) on the disk."""
    if name == "origin":
        return 0, ORIGIN_BYTES
    return MIB + NAMES.index(name) * SLICE_BYTES, SLICE_BYTES


def make_disk(kind):
    """Where the origin and the stores lie on the disk that is recorded."""
    sectors = DISK_BYTES[kind] // SECTOR
    run("dmsetup", "create", "cut", "--table", f"0 {sectors} log-writes /dev/ubda /dev/ubdb")
    run("dmsetup", "mknodes")
    if kind == "ext4":
        run("mkfs.ext4", "-q", "-F", "-J", "size=4", "/dev/mapper/cut")
        os.makedirs("/run/top")
        run("mount", "/dev/mapper/cut", "/run/top")
        return lambda name: pathlib.Path(f"/run/top/{name}")
    for name in ("origin", *NAMES):
        offset, length = slice_of(name)
        run("dmsetup", "create", name, "--table", f"0 {length // SECTOR} linear /dev/mapper/cut {offset // SECTOR}")
    run("dmsetup", "mknodes")
    return lambda name: pathlib.Path(f"/dev/mapper/{name}")


def live_and_die_and_live(trial):
    """A whole life; then one that ends by SIGKILL, and one that recovers from that."""
    expect(trial.start(), f"not served: {trial.server.error_lines()}")
    expect(trial.live(), "no clean stop")
    expect(trial.start(), f"not served: {trial.server.error_lines()}")
    trial.write(3)
    trial.snapshot("f")
    trial.write(4)
    trial.write(3, FUA)
    trial.server.kill()
    trial.client.close()
    expect(trial.start(), f"not served: {trial.server.error_lines()}")
    trial.write(4)
    trial.flush()
    trial.snapshot("g")
    trial.write(4)
    trial.drop("f")
    trial.write(2)
    expect(trial.stop(), "no clean stop")


def record(kind, folder):
    events = []

    def mark(*what):
        events.append(what)
        run("dmsetup", "message", "cut", "0", "mark", str(len(events)))

    place = make_disk(kind)
    with Trial(ORIGIN_BYTES, place=place) as trial:
        os.sync()
        mark("begin", bytes(trial.history.origin.certain))
        trial.marks.append(mark)
        try:
            live_and_die_and_live(trial)
        except Wrong as error:
            raise Wrong(f"{error}: {trial.failures} {trial.server.error_lines()}") from error
        expect(not trial.failures, f"{trial.failures}")
    if kind == "ext4":
        run("umount", "/run/top")
    else:
        for name in ("origin", *NAMES):
            run("dmsetup", "remove", name)
    run("dmsetup", "remove", "cut")
    with open(f"{folder}/events", "wb") as file:
        pickle.dump(events, file)


# ---- what was recorded


class Entry:
    def __init__(self, offset, length, flags, data, mark):
        self.offset, self.length, self.flags, self.data, self.mark = offset, length, flags, data, mark


def read_log(path):
    """What dm-log-writes wrote, as drivers/md/dm-log-writes.c has it."""
    with open(path, "rb") as file:
        magic, version, count, unit = struct.unpack("<QQQI", file.read(28))
        expect(magic == LOG_MAGIC and version == 1, "that is no log of dm-log-writes")
        at = unit
        for _ in range(count):
            file.seek(at)
            sector, sectors, flags, extra = struct.unpack("<QQQQ", file.read(32))
            text = file.read(extra) if flags & MARK else b""
            at += unit
            length = sectors * unit
            data = b""
            if not flags & (DISCARDED | MARK) and length:
                file.seek(at)
                data = file.read(length)
                at += length
            yield Entry(sector * unit, length, flags, data, int(text) if text.isdigit() else None)


class Oracle:
    """What must be there at a moment: `durable`, from what was asked and answered until then."""

    def __init__(self, events):
        self.events, self.known = events, 0
        self.answered = self.durable = None

    def go_to(self, number):
        while self.known < number:
            what, *facts = self.events[self.known]
            self.known += 1
            getattr(self, "on_" + what.replace(" ", "_"))(*facts)

    def on_begin(self, image):
        self.answered, self.durable = Content(image), History(image)

    def on_write(self, requests):
        for _, offset, data in requests:
            self.answered.begun(offset, data)
            self.durable.origin.begun(offset, data)

    def on_written(self, requests, flags):
        for kind, offset, data in requests:
            if kind != TRIM:
                self.answered.done(offset, data)
            if kind != TRIM and flags & FUA:
                self.durable.origin.done(offset, data)

    def on_flushed(self):
        self.durable.origin = self.answered.copy()

    def on_snapshot(self, name):
        self.durable.maybe[name] = self.answered.copy()

    def on_snapshot_made(self, name):
        self.durable.snapshot_made(name)
        self.on_flushed()

    def on_drop(self, name):
        self.durable.drop_asked(name)

    def on_dropped(self, name):
        self.durable.dropped(name)

    def on_stop(self):
        pass

    def on_stopped(self):
        self.on_flushed()


# ---- what a power cut leaves


def write_sparse(path, image, offset, length):
    hole = bytes(MIB // 16)
    with open(path, "wb") as file:
        file.truncate(length)
        for at in range(0, length, len(hole)):
            piece = image[offset + at:offset + min(at + len(hole), length)]
            if piece != hole:
                file.seek(at)
                file.write(piece)


class After(Trial):
    """The disk as it was left, served."""

    def __init__(self, kind, image, history):
        super().__init__(SECTOR)
        self.origin.unlink()
        self.history = history.copy()
        if kind == "ext4":
            self.extract(image)
        else:
            for name in ("origin", *NAMES):
                offset, length = slice_of(name)
                write_sparse(self.place(name), image, offset, length)
        self.stores = [path for path in sorted(self.path.glob("*.store")) if self.is_in_use(path)]

    def extract(self, image):
        """The files, after the file system's own recovery."""
        disk = self.path / "disk"
        write_sparse(disk, image, 0, len(image))
        mended = self.run("e2fsck", "-f", "-y", disk)
        expect(mended.returncode in (0, 1), f"e2fsck: {mended.stdout.decode()}")
        (self.path / "files").mkdir()
        self.must("debugfs", "-R", f"rdump / {self.path}/files", disk)
        for path in (self.path / "files").iterdir():
            if path.is_file():
                path.rename(self.place(path.name))
        disk.unlink()

    def is_in_use(self, path):
        """Whether it is a store, and not empty. One that was being wiped is none, at the latest when both copies are hurt."""
        data = path.read_bytes()
        copies = [data[at:at + format_reader.SUPERBLOCK_BYTES] for at in format_reader.SUPERBLOCK_OFFSETS]
        found = [superblock for superblock in map(format_reader.judge_copy, copies) if superblock]
        return any(superblock.state != EMPTY for superblock in found)

    def restart(self):
        expect(self.start(*self.stores), f"it is not served: {self.server.error_lines()[-1:]}")

    def look(self, thorough):
        for path in self.stores:
            result = self.run(ROWSNAP, "check", path)
            faults = [line for line in result.stdout.decode().splitlines() if ": fault " in line]
            # A superblock's copy that was being written; the other is good, and the start mends it.
            bad = [line for line in faults if "superblock-copy-damaged" not in line]
            expect(result.returncode in (0, 4) and not bad and (faults or result.returncode == 0),
                   f"check {path.name}: {result.returncode}: {result.stdout.decode()}")
        if thorough:
            self.judge()
        else:
            self.restart()
            self.expect_all()


def apply(image, entry, chance=None):
    """With `chance` only in part, perhaps: sectors of it, or nothing."""
    data = bytes(entry.length) if entry.flags & DISCARDED else entry.data
    luck = chance.random() if chance else 0
    if luck < 0.5:
        image[entry.offset:entry.offset + len(data)] = data
    elif luck < 0.75:
        for at in range(0, len(data), SECTOR):
            if chance.random() < 0.5:
                image[entry.offset + at:entry.offset + at + SECTOR] = data[at:at + SECTOR]


class Replay:
    """Goes through the record and looks at what there is to see."""

    def __init__(self, kind, folder, options):
        self.kind, self.options = kind, options
        self.entries = list(read_log(folder / "log"))
        with open(folder / "events", "rb") as file:
            self.events = pickle.load(file)
        self.looks = self.barriers = 0
        self.every = 1
        if not options.all:
            count = sum(1 for entry in self.entries if entry.flags & (FLUSHED | FORCED))
            self.every = max(1, count * 2 // options.sample)

    def is_wanted(self, number):
        if self.options.at is not None:
            return number == self.options.at
        return number % self.every == 0

    def states(self):
        """(number, image, oracle) of every state that is to be looked at."""
        oracle, image, number = Oracle(self.events), bytearray(DISK_BYTES[self.kind]), 0
        pending, told = [], 0
        for at, entry in enumerate(self.entries):
            if entry.flags & MARK:
                oracle.go_to(entry.mark or 0)
                continue
            pending.append(entry)
            if not entry.flags & (FLUSHED | FORCED):
                continue
            self.barriers += 1
            if not any(one.length for one in pending) and told == oracle.known:
                pending = []
                continue
            told = oracle.known
            for subset in range(3 if self.options.all else 1):
                number += 1
                if self.is_wanted(number):
                    partly, chance = bytearray(image), random.Random(at * 10 + subset)
                    for one in pending:
                        apply(partly, one, chance)
                    yield number, partly, oracle
            for one in pending:
                apply(image, one)
            pending = []
            number += 1
            if self.is_wanted(number):
                yield number, image, oracle

    def run(self):
        for number, image, oracle in self.states():
            if oracle.durable is None:
                continue
            self.looks += 1
            try:
                with After(self.kind, image, oracle.durable) as after:
                    after.look(self.looks % 5 == 0)
            except (Wrong, Ended, OSError, RuntimeError, subprocess.SubprocessError) as error:
                raise Wrong(f"--at={number}, after event {oracle.known}, {self.events[oracle.known - 1][0]}: "
                            f"{type(error).__name__} {error}") from error


def make_record(kind, folder):
    """Runs the guest. A reason to skip, or None."""
    for name, size in (("disk", DISK_BYTES[kind]), ("log", LOG_BYTES)):
        with open(folder / name, "wb") as file:
            file.truncate(size)
    environment = [f"{name}={value}" for name, value in os.environ.items() if name.startswith("ROWSNAP")]
    done = subprocess.run([TESTS / "vm/uml-run", "-t", str(200 * SLOW), "-d", folder / "disk", "-d", folder / "log",
                           "-k", "dm-log-writes", "-s", folder, "--", "env", *environment,
                           f"ROWSNAP={ROWSNAP}", "ROWSNAP_SLOW=20", sys.executable, __file__, "--record", kind, folder],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode == 126:
        return done.stdout.strip()
    said = "".join(path.read_text(errors="replace")[-3000:] for path in folder.glob("*.out"))
    expect(done.returncode == 0, f"the guest ended with {done.returncode}: {done.stderr}{said}")
    return None


def skip_reason(kind):
    if SANITIZED:
        return "a sanitized program wants more address space than the guest has"
    for command in ("dmsetup", *(("mkfs.ext4", "e2fsck", "debugfs") if kind == "ext4" else ())):
        if not shutil.which(command):
            return f"there is no command {command}"
    return None


def check(kind, options):
    """A reason to skip, or None, and what was done."""
    began = time.monotonic()
    reason = skip_reason(kind)
    if reason:
        return reason, ""
    with Folder() as scratch:
        folder = pathlib.Path(options.keep or scratch.path)
        if not (folder / "events").exists():
            reason = make_record(kind, folder)
            if reason:
                return reason, ""
        recorded = time.monotonic() - began
        replay = Replay(kind, folder, options)
        replay.run()
    expect(options.at is not None or replay.looks >= 10, f"only {replay.looks} states were looked at")
    return None, (f"{len(replay.entries)} entries with {replay.barriers} barriers recorded in {recorded:.0f} s; "
                  f"{replay.looks} states looked at in {time.monotonic() - began - recorded:.0f} s")


def main():
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    if sys.argv[1:2] == ["--record"]:
        record(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description="A power cut at any moment.")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--sample", type=int, default=40, help="how many states, without --all")
    parser.add_argument("--at", type=int)
    parser.add_argument("--keep", help="a folder for the record; one that is there is used")
    parser.add_argument("kinds", nargs="*", default=["slices", "ext4"])
    options = parser.parse_args()
    print(f"1..{len(options.kinds)}", flush=True)
    failed = 0
    for number, kind in enumerate(options.kinds, 1):
        title = f"{number} - a power cut on a disk that is " + ("cut into slices" if kind == "slices" else "an ext4")
        try:
            reason, told = check(kind, options)
            print(f"ok {title}" + (f" # skip {reason}" if reason else f"\n#   {told}"), flush=True)
        except (Wrong, OSError, RuntimeError) as error:
            failed += 1
            print(f"not ok {title}\n# " + str(error).replace("\n", "\n# "), flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
