#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The server and writers in memory cgroups far smaller than what the writers make dirty. Prints TAP.

Dirty pages of a file system on our loop device can only go away through the server. When it needs memory itself, and
the kernel has it wait for pages to be written, they wait for each other: here that would be seen. A watchdog ends what
does not end: it kills, and aborts the FUSE connection, without which nobody could.

All is done twice: with the server in a cgroup of its own, as service managers have it, and together with the writers.
In version 1 of cgroups an allocation waits for whatever the same cgroup has under writeback, and so does what the
kernel allocates in our name: there the second needs PR_SET_IO_FLUSHER, and so CAP_SYS_RESOURCE.
"""
import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time

from linux import is_mounted, unmount
from served import Server, Wrong, expect
from transports import SLOW, Loop

MIB = 1 << 20
SERVER_LIMIT = (128 if SLOW == 1 else 640) * MIB  # it takes 96 MiB at start; a sanitized one several times as much
WRITERS_LIMIT = 64 * MIB
DIRTY = 384 * MIB
ORIGIN_BYTES = 576 * MIB
SECONDS = 60 * SLOW
CGROUPS = "/sys/fs/cgroup"

# Writes its second argument's bytes to the file of its first, all of it dirty before any is waited for, and then syncs.
WRITER = """
import os, random, sys
noise = random.Random(1).randbytes(1 << 20)
with open(sys.argv[1], "wb", buffering=0) as file:
    for number in range(int(sys.argv[2]) >> 20):
        file.write(number.to_bytes(8, "little") + noise[8:])
    os.fsync(file.fileno())
"""


class Cgroup:
    """A memory cgroup of our own, of version 1 or 2. OSError where there is none to be had."""

    def __init__(self, name, limit):
        second = is_second_version()
        parent = CGROUPS if second else CGROUPS + "/memory"
        if second:
            write_file(parent + "/cgroup.subtree_control", "+memory")
        elif not os.path.exists(parent + "/memory.limit_in_bytes"):
            raise FileNotFoundError("there is no memory controller")
        self.path = f"{parent}/rowsnap-{name}-{os.getpid()}"
        os.mkdir(self.path)
        try:
            write_file(self.path + ("/memory.max" if second else "/memory.limit_in_bytes"), str(limit))
        except OSError:
            self.remove()
            raise
        self.events = self.path + ("/memory.events" if second else "/memory.oom_control")

    def inside(self):
        """A command that runs another inside."""
        return ["sh", "-c", 'echo $$ >"$0" && exec "$@"', self.path + "/cgroup.procs"]

    def killed(self):
        """How many processes were killed for want of memory."""
        with open(self.events, encoding="ascii") as file:
            return int(dict(line.split() for line in file)["oom_kill"])

    def remove(self):
        deadline = time.monotonic() + 10
        while True:
            try:
                os.rmdir(self.path)
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)


def is_second_version():
    return os.path.exists(CGROUPS + "/cgroup.controllers")


def may_flush_io():
    """Whether the server has PR_SET_IO_FLUSHER."""
    with open("/proc/self/status", encoding="ascii") as file:
        return int(dict(line.split(":\t") for line in file)["CapEff"], 16) >> 24 & 1 == 1


def write_file(path, text):
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


class Bench:
    """ext4 on the origin's loop device, the server in one cgroup, the writers in another or the same."""

    def __init__(self, server_cgroup, writers_cgroup):
        self.cgroup = writers_cgroup
        self.cgroups = {server_cgroup, writers_cgroup}
        self.server = Server(Loop, ORIGIN_BYTES)
        self.server.wrapper = server_cgroup.inside()
        self.top = self.server.folder + "/top"
        os.mkdir(self.top)
        self.processes = []
        self.ended = threading.Event()
        self.watchdog = threading.Thread(target=self.watch, daemon=True)
        self.in_time = True

    def start(self):
        noise = random.Random(2).randbytes(MIB)
        with open(self.server.origin, "r+b") as file:
            for _ in range(ORIGIN_BYTES // MIB):
                file.write(noise)
        self.server.start()
        device = self.server.device().path
        tool("mkfs.ext4", "-q", "-F", device)
        tool("mount", device, self.top)
        self.watchdog.start()

    def watch(self):
        if self.ended.wait(SECONDS):
            return
        self.in_time = False
        self.break_up()

    def break_up(self):
        """Ends everything, also those who wait for each other."""
        for process in (*self.processes, self.server.process):
            if process:
                process.kill()
        # Forced, it aborts the connection: who waits for an answer gets an error.
        subprocess.run(["umount", "-f", self.server.transport.mount_point], stdin=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL, check=False)

    def begin(self, *command):
        self.processes.append(subprocess.Popen([*self.cgroup.inside(), *command], stdin=subprocess.DEVNULL,
                                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE))
        return self.processes[-1]

    def end(self, process):
        errors = process.communicate()[1].decode(errors="replace")
        expect(self.in_time, f"it was not done after {SECONDS} s")
        expect(process.returncode == 0, f"a writer exits with {process.returncode}: {errors}")

    def expect_nobody_killed(self):
        expect(sum(cgroup.killed() for cgroup in self.cgroups) == 0, "a process was killed for want of memory")

    def clear(self):
        self.ended.set()
        for process in self.processes:
            process.kill()
        while is_mounted(self.top) and unmount(self.top, lazy=True):
            pass
        self.server.clear()
        for process in self.processes:
            process.wait()


def tool(*command):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS,
                          check=False)
    expect(done.returncode == 0, f"{' '.join(command)}: {done.stderr}")


def checksum(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def expected_checksum(size):
    noise, digest = random.Random(1).randbytes(MIB), hashlib.sha256()
    for number in range(size // MIB):
        digest.update(number.to_bytes(8, "little") + noise[8:])
    return digest.hexdigest()


def check_large_file(bench):
    """a file much larger than the cgroup is written while its old blocks are preserved"""
    bench.server.snapshot("s1")
    bench.end(bench.begin(sys.executable, "-c", WRITER, bench.top + "/large", str(DIRTY)))
    bench.expect_nobody_killed()


def check_many_writers(bench):
    """so are many at once over it, while a snapshot is taken and one dropped"""
    bench.server.snapshot("s2")
    writers = [bench.begin(sys.executable, "-c", WRITER, f"{bench.top}/{number}", str(DIRTY // 16))
               for number in range(4)]
    bench.server.snapshot("s3", f"--freeze={bench.top}")
    bench.server.drop("s1")
    for writer in writers:
        bench.end(writer)
    bench.expect_nobody_killed()


def check_content(bench):
    """and all of it is there, also after a stop"""
    tool("umount", bench.top)
    tool("e2fsck", "-f", "-n", bench.server.device().path)
    bench.server.stop()
    bench.server.start()
    tool("mount", bench.server.device().path, bench.top)
    expect(checksum(bench.top + "/large") == expected_checksum(DIRTY), "the large file is not what was written")
    for number in range(4):
        expect(checksum(f"{bench.top}/{number}") == expected_checksum(DIRTY // 16),
               f"file {number} is not what was written")
    tool("umount", bench.top)
    bench.server.stop()


CHECKS = (check_large_file, check_many_writers, check_content)


def run_checks(way, bench, first_number):
    """How many failed."""
    failed, wrong = 0, None
    for number, check in enumerate(CHECKS, first_number):
        title = f"{way}: {check.__doc__}"
        if wrong:
            print(f"ok {number} - {title} # skip what it needs has failed")
            continue
        began = time.monotonic()
        try:
            if number == first_number:
                bench.start()
            check(bench)
            print(f"ok {number} - {title}", flush=True)
        except (Wrong, OSError, subprocess.SubprocessError) as error:
            wrong = f"{error}\n{bench.server.said('err')}"
            failed += 1
            print(f"not ok {number} - {title}")
            print(*(f"# {line}" for line in wrong.splitlines()), sep="\n", flush=True)
        if os.environ.get("ROWSNAP_TIMES"):
            print(f"# {time.monotonic() - began:.2f} s", flush=True)
    return failed


def run_apart(first_number):
    with contextlib.ExitStack() as stack:
        server = Cgroup("server", SERVER_LIMIT)
        stack.callback(server.remove)
        writers = Cgroup("writers", WRITERS_LIMIT)
        stack.callback(writers.remove)
        bench = Bench(server, writers)
        stack.callback(bench.clear)
        return run_checks("apart", bench, first_number)


def run_together(first_number):
    with contextlib.ExitStack() as stack:
        cgroup = Cgroup("both", SERVER_LIMIT + WRITERS_LIMIT)
        stack.callback(cgroup.remove)
        bench = Bench(cgroup, cgroup)
        stack.callback(bench.clear)
        return run_checks("together", bench, first_number)


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    reason = Loop().skip_reason()
    if not reason:
        try:
            Cgroup("probe", SERVER_LIMIT).remove()
        except OSError as error:
            reason = f"no memory cgroup can be made: {error}"
    if reason:
        print(f"1..0 # skip {reason}")
        return
    failed = run_apart(1)
    if is_second_version() or may_flush_io():
        failed += run_together(1 + len(CHECKS))
    else:
        for number, check in enumerate(CHECKS, 1 + len(CHECKS)):
            print(f"ok {number} - together: {check.__doc__} # skip cgroups of version 1, and no CAP_SYS_RESOURCE")
    print(f"1..{2 * len(CHECKS)}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
