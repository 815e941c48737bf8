#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""
A disk that goes, for a while or for good, under the origin or a store: disk-goes.py [TEXT]. Prints TAP; TEXT picks checks.

The disks: nbdkit's, whose error and delay filters do what a sick disk does, seen as a file by nbdfuse, or as a loop device
over that; loop devices over files that are truncated; files that are truncated. In user-mode Linux device-mapper's error
target and a SCSI disk that is unplugged. (disk-goes.py --guest FOLDER is what runs there.)

What is promised: the server stays, origin first; no wrong byte; what is said is said once, and the rest counted; and when
the disk is back, what was not lost meanwhile is served again.
"""
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time

import faults
from faults import FAULT_AT, PROGRAM
from format_reader import FIRST_AREA_OFFSET
from history import BLOCK, EIO, SECTOR, Ended, Trial, Wrong, expect
from linux import attach_loop, detach_loop, is_mounted
from nbd_client import FLUSH, WRITE, Client
from sandbox import ROWSNAP, SANITIZED, SLOW, VOLUME, Folder

LINES_MAX = 40  # of the log, whatever goes wrong how often
ORIGIN_BYTES = 160 * BLOCK
STORE_BYTES = 4 << 20
TESTS = pathlib.Path(__file__).resolve().parent


def wait_for(holds, text, seconds=20):
    deadline = time.monotonic() + seconds * SLOW
    while not holds():
        expect(time.monotonic() < deadline, f"in vain: {text}")
        time.sleep(0.01)


class Remote:
    """A file served by nbdkit with filters, and seen as a file again by nbdfuse."""

    def __init__(self, folder, name, size):
        self.base = folder.path / f"{name}-remote"
        (self.base / "mount").mkdir(parents=True)
        self.image, self.socket, self.bad = self.base / "image", self.base / "socket", self.base / "bad"
        self.path = self.base / "mount/disk"
        with open(self.image, "wb") as file:
            file.truncate(size)
        self.server = self.mount = None

    def start(self, *arguments, filters=("error",)):
        self.socket.unlink(missing_ok=True)
        self.server = subprocess.Popen(
            ["nbdkit", "-f", "-U", self.socket, *(f"--filter={name}" for name in filters), "file", self.image,
             *(arguments or ("error=EIO", "error-rate=100%")),
             *((f"error-file={self.bad}",) if "error" in filters else ())],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(self.is_listening, "nbdkit starts")
        self.mount = subprocess.Popen(["nbdfuse", self.path, f"nbd+unix:///?socket={self.socket}"],
                                      stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(self.path.exists, "nbdfuse mounts")
        return self

    def is_listening(self):
        expect(self.server.poll() is None, "nbdkit does not start")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            return connection.connect_ex(str(self.socket)) == 0

    def set_failing(self, failing):
        if failing:
            self.bad.touch()
        else:
            self.bad.unlink(missing_ok=True)

    def die(self):
        """The disk is gone for good, though its file is seen still."""
        self.server.kill()
        self.server.wait()

    def stop(self):
        if is_mounted(self.path.parent):
            subprocess.run(["fusermount3", "-u", "-z", self.path.parent], stdin=subprocess.DEVNULL, check=False)
        for process in (self.mount, self.server):
            if process:
                process.kill()
                process.wait()


class Bench:
    """A trial with one disk, the origin's ("origin") or the first snapshot's ("a"), of a kind that goes."""

    def __init__(self, which, kind, options=(), remote=(), filters=("error",)):
        self.which, self.kind = which, kind
        self.size = ORIGIN_BYTES if which == "origin" else STORE_BYTES
        self.folder = Folder()
        self.remote = self.loop = None
        if kind in ("remote", "remote loop"):
            self.remote = Remote(self.folder, which, self.size).start(*remote, filters=filters)
            self.file = self.remote.path
        else:
            self.file = self.folder.path / which
            with open(self.file, "wb") as file:
                file.truncate(self.size)
        self.disk = self.file
        if kind.endswith("loop"):
            self.disk = self.loop = pathlib.Path(attach_loop(self.file))
        self.trial = Trial(ORIGIN_BYTES, place=self.place, options=options)

    def place(self, name):
        return self.disk if name == self.which else self.folder.path / f"{name}.store"

    def renew_loop(self):
        """
        As after the disk was plugged in again. By its path the next start knows which stores belong to it, so it has to be
        the same one: if another test has taken the number meanwhile, it is waited for.
        """
        detach_loop(self.loop)
        wait_for(self.is_attached, f"{self.loop} is free again")

    def is_attached(self):
        return subprocess.run(["losetup", "--direct-io=on", self.loop, self.file], stdin=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL, check=False).returncode == 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.trial.__exit__()
        if self.loop:
            detach_loop(self.loop)
        if self.remote:
            self.remote.stop()
        self.folder.__exit__()

    def begin(self):
        """With a snapshot, and some of it preserved."""
        trial = self.trial
        expect(trial.start(), f"not served: {trial.server.error_lines()}")
        trial.write(3)
        trial.snapshot("a")
        trial.write(3)
        trial.flush()
        trial.expect_all()
        expect(not trial.failures, f"{trial.failures}")
        return trial


def lines(trial, words):
    return [line for line in trial.server.error_lines() if words in line]


def expect_quiet(trial):
    said = trial.server.error_lines()
    expect(len(said) <= LINES_MAX, f"{len(said)} lines in the log: {said[:3]} ... {said[-3:]}")


def read_much(trial, name="origin", times=200):
    """Reads again and again, block by block. How many failed."""
    client = Client(trial.socket(), timeout=60 * SLOW).begin(name)
    found = [client.read(number % 160 * BLOCK, BLOCK) for number in range(times)]
    client.close()
    return sum(isinstance(data, int) for data in found)


def expect_clean_stop(trial):
    expect(trial.stop(), f"no clean stop: {trial.server.error_lines()[-2:]}")


def state_of(trial, name="a"):
    return next(snapshot["state"] for snapshot in trial.listing() if snapshot["name"] == name)


# ---- the origin


def origin_fails_for_a_while(kind):
    with Bench("origin", kind) as bench:
        trial = bench.begin()
        bench.remote.set_failing(True)
        expect(read_much(trial) == 200, "the disk is dead, and something can be read")
        for _ in range(20):
            trial.write(4)
        expect(len(trial.failures) == 80, f"of 80 writes {len(trial.failures)} failed")
        bench.remote.set_failing(False)
        expect(read_much(trial) == 0, "the disk is back, and not all can be read")
        expect_quiet(trial)
        expect(lines(trial, "answers again, after"), "the log does not tell that it is back")
        trial.failures.clear()
        trial.write(4)
        trial.flush()
        expect(not trial.failures, f"it is back, and fails: {trial.failures}")
        trial.expect_all(errors_allowed=True)
        expect_clean_stop(trial)
        expect(lines(trial, "more of the failures told before"), "the log does not tell how many failures it left out")
        lost = trial.judge(errors_allowed=True)
        expect(lost, "what could not be read was not lost to the snapshot")


def origin_fails_a_flush():
    """A failed flush is not retried as if it could succeed: until the next start all fail, and the stop is not clean."""
    with Trial(program=PROGRAM) as trial:
        trial.wrapper = [FAULT_AT, f"--error={EIO}", "--when=1", "--calls=fdatasync", "--path=origin.img",
                         "--without-aio", "--"]
        expect(trial.start(), f"not served: {trial.server.error_lines()}")
        for _ in range(10):
            trial.write(4)
            trial.flush()
        expect(len(trial.failures) == 10, f"after a flush that failed others succeed: {trial.failures}")
        expect(len(lines(trial, "flushes fail from now on")) == 1, "the log does not tell so once")
        stop_of_a_dead(trial)
        expect(lines(trial, "the origin could not be flushed"), "it does not say why")
        trial.judge()


def stop_of_a_dead(trial):
    trial.failures.clear()
    try:
        expect(not trial.stop(), "a clean stop")
    except Ended:
        pass
    expect(trial.has_ended() and trial.server.process.returncode == 1, "it does not end with 1")
    expect(trial.server.error_lines()[-1].startswith("rowsnap serve: "), f"it says {trial.server.error_lines()[-1:]}")
    trial.failures.clear()


def origin_dies(kind):
    """For good, and comes back for the next start."""
    with Bench("origin", kind) as bench:
        trial = bench.begin()
        bench.remote.die()
        for _ in range(10):
            trial.write(4)
        trial.flush()
        expect(len(trial.failures) == 41, f"of 41 requests {len(trial.failures)} failed")
        expect(read_much(trial) == 200, "the disk is dead, and something can be read")
        expect(trial.run(ROWSNAP, "status", VOLUME).returncode == 0, "it gives no status")
        stop_of_a_dead(trial)
        expect_quiet(trial)
        bench.remote.stop()
        expect(not trial.start(), "a dead disk is served")
        expect(trial.server.error_lines()[-1].startswith("rowsnap serve: "), f"it says {trial.server.error_lines()}")
        bench.remote.start()
        if bench.loop:
            bench.renew_loop()
        trial.failures.clear()
        trial.judge(errors_allowed=True)


def origin_is_cut_short(kind):
    """A loop device or a file, truncated beneath: what lies behind fails, what lies before goes on; nobody makes it longer."""
    with Bench("origin", kind) as bench:
        trial = bench.begin()
        half = ORIGIN_BYTES // 2
        image = bench.file.read_bytes() if kind == "file" else None
        os.truncate(bench.file, half)
        client = Client(trial.socket(), timeout=60 * SLOW).begin("origin")
        for offset in range(0, ORIGIN_BYTES, BLOCK):
            data = client.read(offset, BLOCK)
            if offset < half:
                expect(isinstance(data, bytes), f"block {offset // BLOCK}: error {data}")
                trial.history.origin.expect_same(data, "before the end", offset)
            else:
                expect(data == EIO, f"behind the end, block {offset // BLOCK}: {str(data)[:20]}")
        expect(client.read(half - BLOCK, 2 * BLOCK) == EIO, "a read over the end succeeds")
        trial.do([(WRITE, 0, trial.chance.randbytes(BLOCK)), (WRITE, half - BLOCK, trial.chance.randbytes(BLOCK))])
        expect(not trial.failures, f"before the end: {trial.failures}")
        expect(client.do(FLUSH) == 0, "a flush fails")
        # (What a loop device lies on, the loop device makes longer.)
        for offset in (half, half + 512, ORIGIN_BYTES - BLOCK) if kind == "file" else ():
            expect(client.do(WRITE, offset, data=trial.chance.randbytes(BLOCK)) != 0, f"a write at {offset} succeeds")
        client.close()
        expect(os.path.getsize(bench.file) == half, f"the file has {os.path.getsize(bench.file)} bytes and not {half}")
        trial.stop()
        if kind == "file":
            expect(trial.server.process.returncode == 0, f"no clean stop: {trial.server.error_lines()}")
            expect(not trial.start(), "an origin of another size is served")
            expect(f"{half}" in trial.server.error_lines()[-1], f"it says {trial.server.error_lines()}")
            with open(bench.file, "r+b") as file:
                file.seek(half)
                file.write(image[half:])
            trial.judge(errors_allowed=True)


# ---- a store


def expect_broken(trial):
    expect(state_of(trial) == "broken", f"the snapshot is {state_of(trial)}")
    expect(len(lines(trial, "BROKEN")) == 1, f"the log does not tell so once: {trial.server.error_lines()}")


def store_fails_for_a_while(kind, end):
    """break: the origin goes on; the snapshot is broken also when the store is back, after a stop, and after a crash."""
    with Bench("a", kind) as bench:
        trial = bench.begin()
        bench.remote.set_failing(True)
        for _ in range(20):
            trial.write(4)
            trial.flush()
        expect(not trial.failures, f"the store is dead, and the origin: {trial.failures[:3]}")
        expect_broken(trial)
        expect(read_much(trial, "a", 500) > 0, "nothing fails")
        trial.expect_all(errors_allowed=True)
        expect_quiet(trial)
        bench.remote.set_failing(False)
        trial.expect_all(errors_allowed=True)
        trial.snapshot("b")
        trial.write(4)
        expect(state_of(trial, "b") == "active", f"a new snapshot is {state_of(trial, 'b')}")
        trial.expect_all(errors_allowed=True)
        if end == "stop":
            expect_clean_stop(trial)
        trial.restart()
        expect(state_of(trial) == "broken", f"after the restart, the snapshot is {state_of(trial)}")
        expect(trial.judge(errors_allowed=True) > 0, "nothing was lost")
        expect(not trial.failures, f"{trial.failures}")


def store_is_back(kind, policy):
    """fail, wait: a store that has failed takes no more, also when it is back; a new snapshot lets writes go on."""
    with Bench("a", kind, options=[f"--on-full={policy}"]) as bench:
        trial = bench.begin()
        bench.remote.set_failing(True)
        client = Client(trial.socket(), timeout=60 * SLOW).begin("origin")
        everything = trial.chance.randbytes(ORIGIN_BYTES)
        trial.history.origin.begun(0, everything)
        cookie = client.ask(WRITE, 0, data=everything)
        if policy == "fail":
            expect(client.simple_head()[1] == EIO, "the write does not fail")
        else:
            wait_for(lambda: lines(trial, "writes wait"), "the log tells that writes wait")
        bench.remote.set_failing(False)
        if policy == "fail":
            expect(client.do(WRITE, 0, data=everything) == EIO, "the store is back, and has failed, and takes more")
        trial.snapshot("b")
        if policy == "fail":
            expect(client.do(WRITE, 0, data=everything) == 0, "with a new snapshot, a write fails")
        else:
            expect(client.simple_head() == (cookie, 0), "with a new snapshot, what waited fails")
        client.close()
        trial.history.origin.done(0, everything)
        expect(state_of(trial) == "sealed" and state_of(trial, "b") == "active", f"{trial.listing()}")
        trial.expect_all()
        expect_clean_stop(trial)
        trial.judge()


def newest_is_gone(kind):
    """Its store is not there at the start: an older one needs it, and nothing is served."""
    with Bench("a", kind) as bench:
        trial = bench.begin()
        trial.snapshot("b")
        trial.write(3)
        expect_clean_stop(trial)
        away = trial.store("b").with_suffix(".away")
        trial.store("b").rename(away)
        expect(not trial.start(), "an older snapshot is served without its successor")
        said = trial.server.error_lines()
        expect(any("b.store" in line for line in said), f"the store is not named: {said}")
        away.rename(trial.store("b"))
        trial.judge()


def store_dies(kind, policy):
    """For good. At the next start it is not there, and is named; and then it is again."""
    with Bench("a", kind, options=[f"--on-full={policy}"]) as bench:
        trial = bench.begin()
        bench.remote.die()
        if policy == "wait":
            wait_with_a_dead_store(trial)
        else:
            for _ in range(20):
                trial.write(4)
        if policy == "break":
            expect(not trial.failures, f"the store is dead, and the origin: {trial.failures[:3]}")
            expect_broken(trial)
        elif policy == "fail":
            expect(trial.failures, "no write fails")
            expect(state_of(trial) == "active", f"the snapshot is {state_of(trial)}")
        expect_quiet(trial)
        trial.expect_all(errors_allowed=True)
        trial.failures.clear()
        try:
            trial.stop()
        except Ended:
            pass
        expect(trial.has_ended() and trial.server.process.returncode in (0, 1), "it does not end")
        bench.remote.stop()
        trial.failures.clear()
        if trial.start():
            expect(lines(trial, "is not there"), f"the store is gone, and it says {trial.server.error_lines()}")
            trial.server.kill()
            trial.client.close()
        bench.remote.start()
        if bench.loop:
            bench.renew_loop()
        if not trial.start(bench.disk):
            raise Wrong(f"not served again: {trial.server.error_lines()[-1:]}")
        expect(state_of(trial) == ("broken" if policy == "break" else "active"), f"the snapshot is {state_of(trial)}")
        trial.expect_all(errors_allowed=policy == "break")
        expect_clean_stop(trial)


def wait_with_a_dead_store(trial):
    """A write waits, reads go on, and the stop ends it."""
    client = Client(trial.socket(), timeout=60 * SLOW).begin("origin")
    for offset in range(0, ORIGIN_BYTES, 16 * BLOCK):
        data = trial.chance.randbytes(BLOCK)
        trial.history.origin.begun(offset, data)
        client.ask(WRITE, offset, len(data), data)
    wait_for(lambda: lines(trial, "writes wait"), "the log tells that writes wait")


def store_is_cut_short(kind):
    """Truncated beneath: what was preserved there cannot be read, and is no wrong byte; the origin goes on."""
    with Bench("a", kind) as bench:
        trial = bench.begin()
        os.truncate(bench.file, FIRST_AREA_OFFSET + 5 * BLOCK)
        errors = trial.expect_all(errors_allowed=True)
        expect(errors > 0, "what was cut off can be read")
        for _ in range(10):
            trial.write(4)
            trial.flush()
        expect(not trial.failures, f"the store is short, and the origin: {trial.failures[:3]}")
        trial.expect_all(errors_allowed=True)
        expect_quiet(trial)
        try:
            trial.stop()
        except Ended:
            pass
        trial.failures.clear()
        if trial.start():
            trial.expect_all(errors_allowed=True)
            expect_clean_stop(trial)
        else:
            expect(str(bench.disk) in trial.server.error_lines()[-1], f"it says {trial.server.error_lines()}")


# ---- sick disks


def disk_is_sick(which, remote, filters, is_right):
    """A whole life on it, and what is left of it when it is well again."""
    with Bench(which, "remote", remote=remote, filters=filters) as bench:
        trial = bench.trial
        trial.errors_allowed = not is_right
        bench.remote.set_failing(True)
        make = trial.format
        trial.format = lambda name: (bench.remote.set_failing(False), make(name), bench.remote.set_failing(True))
        started = trial.start()
        if started:
            try:
                trial.live()
            except Ended:
                expect(trial.has_ended() and trial.server.process.returncode == 1, "it died")
            expect_quiet(trial)
        expect(not is_right or not trial.failures, f"{trial.failures}")
        trial.failures.clear()
        trial.server.process.terminate()
        expect(trial.has_ended(), "it does not end when it is told to")
        bench.remote.stop()
        bench.remote.set_failing(False)
        bench.remote.start()
        errors = trial.judge(errors_allowed=not is_right)
        expect(not is_right or errors == 0, f"{errors} blocks are lost")


def loop_is_detached():
    """`losetup --detach` of a device that is in use takes effect when we close it: nothing fails."""
    with Bench("origin", "loop") as bench:
        trial = bench.begin()
        detach_loop(bench.loop)
        trial.write(4)
        trial.flush()
        trial.expect_all()
        expect_clean_stop(trial)
        bench.renew_loop()
        trial.judge()
        expect(not trial.failures, f"{trial.failures}")


# ---- in user-mode Linux


def in_the_guest():
    if SANITIZED:
        raise Skip("a sanitized program wants more address space than the guest has")
    with Folder() as scratch:
        for name in ("one", "two"):
            with open(scratch.path / name, "wb") as file:
                file.truncate(STORE_BYTES)
        done = subprocess.run([TESTS / "vm/uml-run", "-k", "dm-mod", "-k", "sd_mod", "-d", scratch.path / "one",
                               "-d", scratch.path / "two", "-s", scratch.path, "--", "env", f"ROWSNAP={ROWSNAP}",
                               "ROWSNAP_SLOW=20", sys.executable,
                               __file__, "--guest", scratch.path],
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode == 126:
            raise Skip(done.stdout.strip())
        said = "".join(path.read_text(errors="replace")[-3000:] for path in scratch.path.glob("*.out"))
        expect(done.returncode == 0, f"the guest ended with {done.returncode}: {done.stderr}{said}")


def command(*words):
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    expect(done.returncode == 0, f"{' '.join(map(str, words))}: {done.stderr}")
    return done.stdout


class Mapped:
    """A device-mapper device over another, which can turn into an error and back."""

    def __init__(self, name, base, size):
        self.name, self.sectors = name, size // SECTOR
        self.table = f"0 {self.sectors} linear {base} 0"
        command("dmsetup", "create", name, "--table", self.table)
        command("dmsetup", "mknodes")
        self.path = pathlib.Path(f"/dev/mapper/{name}")

    def set_failing(self, failing):
        command("dmsetup", "suspend", "--noflush", "--nolockfs", self.name)
        command("dmsetup", "load", self.name, "--table", f"0 {self.sectors} error" if failing else self.table)
        command("dmsetup", "resume", self.name)


def guest_mapped(which, base):
    with Folder() as folder:
        disk = Mapped(which, base, ORIGIN_BYTES if which == "origin" else STORE_BYTES)
        with Trial(ORIGIN_BYTES, place=lambda name: disk.path if name == which else folder.path / name) as trial:
            expect(trial.start(), f"not served: {trial.server.error_lines()}")
            trial.write(3)
            trial.snapshot("a")
            trial.write(3)
            disk.set_failing(True)
            for _ in range(10):
                trial.write(4)
            expect(bool(trial.failures) == (which == "origin"), f"{trial.failures[:3]}")
            if which == "a":
                expect_broken(trial)
            disk.set_failing(False)
            trial.failures.clear()
            trial.write(4)
            expect(not trial.failures, f"it is back: {trial.failures}")
            trial.expect_all(errors_allowed=True)
            expect_quiet(trial)
            trial.judge(errors_allowed=True)


def scsi_disk():
    """The first one that there is, whole; None before it is."""
    found = sorted(pathlib.Path("/sys/block").glob("sd*"))
    path = found and pathlib.Path("/dev") / found[-1].name
    return path if path and path.exists() else None


def guest_unplugged(which, module):
    """A SCSI disk that is removed under us, and another one like it that comes."""
    command("insmod", module, "dev_size_mb=8")
    wait_for(scsi_disk, "there is a SCSI disk")
    disk = scsi_disk()
    with Folder() as folder, Trial(8 << 20 if which == "origin" else ORIGIN_BYTES,
                                   place=lambda name: disk if name == which else folder.path / name) as trial:
        expect(trial.start(), f"not served: {trial.server.error_lines()}")
        trial.write(3)
        trial.snapshot("a")
        trial.write(3)
        trial.flush()
        pathlib.Path(f"/sys/block/{disk.name}/device/delete").write_text("1", encoding="ascii")
        for _ in range(10):
            trial.write(4)
        expect(bool(trial.failures) == (which == "origin"), f"{trial.failures[:3]}")
        if which == "a":
            expect_broken(trial)
        trial.expect_all(errors_allowed=True) if which != "origin" else read_much(trial)
        expect_quiet(trial)
        trial.failures.clear()
        try:
            trial.stop()
        except Ended:
            pass
        expect(trial.has_ended() and trial.server.process.returncode in (0, 1), "it does not end")
    command("rmmod", "scsi_debug")


def guest(module):
    guest_mapped("origin", "/dev/ubda")
    guest_mapped("a", "/dev/ubdb")
    for which in ("origin", "a"):
        guest_unplugged(which, module)


# ---- all of it


class Skip(Exception):
    """Cannot be done here."""


def require(*commands, root=False):
    for name in commands:
        if not shutil.which(name):
            raise Skip(f"there is no command {name}")
    if "nbdfuse" in commands and not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise Skip("there is no /dev/fuse to use")
    if root and os.geteuid() != 0:
        raise Skip("needs root")


def remote(check, *arguments, root=False):
    def run():
        require("nbdkit", "nbdfuse", "fusermount3", root=root)
        check(*arguments)
    return run


def loops(check, *arguments):
    def run():
        require("losetup", root=True)
        check(*arguments)
    return run


def static(check):
    def run():
        reason = faults.skip_reason()
        if reason:
            raise Skip(reason)
        check()
    return run


def sick(which, *filter_arguments, filters=("error",), is_right=False):
    return remote(disk_is_sick, which, filter_arguments, filters, is_right)


def checks():
    for kind in ("remote", "remote loop"):
        root, on = kind != "remote", "a file" if kind == "remote" else "a loop device"
        yield f"the origin, {on}, fails for a while", remote(origin_fails_for_a_while, kind, root=root)
        yield f"the origin, {on}, dies, and is back at the next start", remote(origin_dies, kind, root=root)
        yield f"a store, {on}, fails for a while; a stop", remote(store_fails_for_a_while, kind, "stop", root=root)
        yield f"a store, {on}, fails for a while; a crash", remote(store_fails_for_a_while, kind, "kill", root=root)
        for policy in ("fail", "wait"):
            yield f"a store, {on}, is back, --on-full={policy}", remote(store_is_back, kind, policy, root=root)
        for policy in ("break", "fail", "wait"):
            yield f"a store, {on}, dies, --on-full={policy}", remote(store_dies, kind, policy, root=root)
    yield "the newest store is gone, and an older one is there", remote(newest_is_gone, "remote")
    yield "the origin fails a flush", static(origin_fails_a_flush)
    yield "the origin, a file, is truncated", lambda: origin_is_cut_short("file")
    yield "the origin, a loop device, is truncated beneath", loops(origin_is_cut_short, "loop")
    yield "a store, a file, is truncated", lambda: store_is_cut_short("file")
    yield "a store, a loop device, is truncated beneath", loops(store_is_cut_short, "loop")
    yield "a loop device is detached while it is served", loops(loop_is_detached)
    for which, name in (("origin", "the origin"), ("a", "a store")):
        for call in ("pread", "pwrite"):
            yield f"one in seven of a {call}s fails: {name}", sick(which, f"error-{call}=EIO", f"error-{call}-rate=14%")
        yield f"{name} is slow", sick(which, "rdelay=20ms", "wdelay=20ms", filters=("delay",), is_right=True)
        yield f"{name} is full at times", sick(which, "error-pwrite=ENOSPC", "error-pwrite-rate=14%")
    yield "device-mapper's error target, and a SCSI disk that is unplugged", in_the_guest


def main():
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    if sys.argv[1:2] == ["--guest"]:
        guest(sorted(pathlib.Path("/usr/lib/uml/modules").glob("*/kernel/drivers/scsi/scsi_debug.ko"))[-1])
        return
    chosen = [one for one in checks() if "".join(sys.argv[1:2]) in one[0]]
    print(f"1..{len(chosen)}", flush=True)
    failed = 0
    for number, (title, check) in enumerate(chosen, 1):
        began = time.monotonic()
        try:
            check()
            print(f"ok {number} - {title}", flush=True)
        except Skip as reason:
            print(f"ok {number} - {title} # skip {reason}", flush=True)
        except (Wrong, Ended, OSError, RuntimeError, subprocess.SubprocessError) as error:
            failed += 1
            print(f"not ok {number} - {title}", flush=True)
            print(f"# {type(error).__name__} {error}".replace("\n", "\n# "), flush=True)
        if os.environ.get("ROWSNAP_TIMES"):
            print(f"# {time.monotonic() - began:.2f} s", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
