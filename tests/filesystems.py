#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""File systems on the origin's loop device, at work while snapshots are taken: filesystems.py [NAME]. Prints TAP.

A tree of many small files is complete and synced; then fio and a churn of names work beside it, and snapshots are
taken, with --freeze and without. A frozen one must be clean as it is; one that is not, as clean as after a power cut:
once its journal is replayed. Files that were synced before are in both. (filesystems.py --churn FOLDER SEED is that
churn.)
"""
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time

from linux import is_mounted, unmount
from served import Server, Wrong, expect
from transports import SLOW, Loop

MIB = 1 << 20
FOLDERS, FILES = 200, 100
SYNCED_FOLDERS = 10  # whose content is remembered
SMALL_BYTES_MAX = 1500


class FileSystem:
    """What the tests need to know of one: how it is made, looked at, and mended."""
    name = ""
    mkfs = ()
    read_only = ""  # options to mount a snapshot by, beside its origin
    checks = ()     # changes nothing; 0 when clean
    frozen_is_clean = True

    def mend(self, image, point):
        """Replays the journal of a copy, as a mount after a power cut does."""
        run("mount", "-o", self.replaying, image, point)
        run("umount", point)

    replaying = "loop"


class Ext4(FileSystem):
    name = "ext4"
    mkfs = ("mkfs.ext4", "-q", "-F", "-N", "40000")
    read_only = "ro,noload"
    checks = ("e2fsck", "-f", "-n")

    def mend(self, image, point):
        run("e2fsck", "-p", image, good=(0, 1))


class Xfs(FileSystem):
    name = "xfs"
    mkfs = ("mkfs.xfs", "-q", "-f")
    read_only = "ro,norecovery,nouuid"
    checks = ("xfs_repair", "-n")
    frozen_is_clean = False  # its log is left dirty on purpose, for the sake of files that are removed and still open
    replaying = "loop,nouuid"


class Btrfs(FileSystem):
    name = "btrfs"
    mkfs = ("mkfs.btrfs", "-q", "-f", "-m", "single")
    read_only = "ro,rescue=nologreplay"
    checks = ("btrfs", "check", "--readonly")


def run(*command, good=(0,)):
    """Runs a tool, which must succeed; what it said."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, errors="replace", timeout=120 * SLOW, check=False)
    expect(done.returncode in good, f"{' '.join(command)}: exit status {done.returncode}: {done.stdout[-2000:]}")
    return done.stdout


# ---- what works on it


def make_tree(top):
    chance = random.Random(1)
    for folder in range(FOLDERS):
        os.makedirs(f"{top}/{folder}")
        for file in range(FILES):
            fd = os.open(f"{top}/{folder}/{file}", os.O_CREAT | os.O_WRONLY)
            os.write(fd, chance.randbytes(chance.randrange(SMALL_BYTES_MAX)))
            os.close(fd)


def checksums(top):
    """Of the folders that nobody changes any more."""
    found = {}
    for folder in range(SYNCED_FOLDERS):
        for name in sorted(os.listdir(f"{top}/{folder}")):
            with open(f"{top}/{folder}/{name}", "rb") as file:
                found[f"{folder}/{name}"] = hashlib.sha256(file.read()).hexdigest()
    return found


def churn(top, seed):
    """Creates, renames, links, truncates and removes files, until it is killed."""
    chance = random.Random(seed)
    os.makedirs(f"{top}/churn{seed}")
    names = [f"{top}/churn{seed}/{number}" for number in range(200)]

    def create(name, _):
        with open(name, "ab") as file:
            file.write(chance.randbytes(chance.randrange(30000)))
            if chance.random() < 0.05:
                os.fsync(file.fileno())

    def truncate(name, _):
        os.truncate(name, chance.randrange(20000))

    def unlink(name, _):
        os.unlink(name)

    while True:
        try:
            change = chance.choice((create, create, truncate, os.rename, os.link, unlink))
            change(chance.choice(names), chance.choice(names))
        except (FileNotFoundError, FileExistsError):
            pass


class Busy:
    """The churn, and fio, while a `with` lasts."""

    def __init__(self, top):
        self.top = top
        self.processes = []

    def __enter__(self):
        for seed in (1, 2):
            self.processes.append(subprocess.Popen([sys.executable, __file__, "--churn", self.top, str(seed)]))
        os.makedirs(self.top + "/fio", exist_ok=True)
        self.processes.append(subprocess.Popen(
            ["fio", "--name=x", f"--directory={self.top}/fio", "--rw=randwrite", "--bs=4k", "--size=16m", "--fsync=64",
             "--time_based", "--runtime=1000", "--rate_iops=4000", "--thread"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        self.wait_for_work()
        return self

    def wait_for_work(self):
        deadline = time.monotonic() + 20 * SLOW
        while len(os.listdir(self.top + "/fio")) == 0 or not os.path.exists(self.top + "/churn2"):
            expect(time.monotonic() < deadline, "nobody gets to work")
            time.sleep(0.02)
        time.sleep(0.3)

    def __exit__(self, *_):
        for process in self.processes:
            process.send_signal(signal.SIGKILL)
        for process in self.processes:
            process.wait()


# ---- one file system after the other


class Bench:
    """A server, the file system on its origin's loop device, and a place to mount snapshots at."""

    def __init__(self, kind, size):
        self.kind = kind
        self.server = Server(Loop, size)
        self.top = self.server.folder + "/top"
        self.point = self.server.folder + "/point"
        os.mkdir(self.top)
        os.mkdir(self.point)
        self.expected = {}

    def start(self, *options):
        self.server.options = options
        self.server.start()
        return self.server.device().path

    def mount(self):
        run("mount", self.server.device().path, self.top)

    def stop(self):
        run("umount", self.top)
        self.server.stop()

    def allocated(self):
        return os.stat(self.server.origin).st_blocks * 512

    def copied(self):
        return self.server.status()["copies"]["blocks"]

    def clear(self):
        for folder in (self.point, self.top):
            while is_mounted(folder) and unmount(folder, lazy=True):
                pass
        self.server.clear()

    def expect_files(self, what):
        found = checksums(self.point)
        bad = [name for name, wanted in self.expected.items() if found.get(name) != wanted]
        expect(not bad, f"{what}: {len(bad)} of {len(self.expected)} files differ, {bad[:3]}")

    def look_at(self, device, options, what):
        """Mounts it read-only beside the origin, and compares the files."""
        run("mount", "-t", self.kind.name, "-o", options, device, self.point)
        try:
            self.expect_files(what)
        finally:
            run("umount", self.point)

    def mend_copy(self, device, what):
        """Has a copy replay its journal; then it must be clean, and have the files."""
        copy = self.server.folder + "/copy.img"
        run("cp", "--sparse=always", device, copy)
        self.kind.mend(copy, self.point)
        run(*self.kind.checks, copy)
        self.look_at(copy, "loop," + self.kind.read_only, f"{what}, mended,")
        os.unlink(copy)


def check_prepare(bench):
    """is made and filled on the origin's loop device"""
    device = bench.start()
    run(*bench.kind.mkfs, device)
    bench.mount()
    make_tree(bench.top)
    run("sync", "-f", bench.top)
    bench.expected = checksums(bench.top)


def check_snapshots(bench):
    """is snapshot while it is busy, frozen and not, and goes on"""
    with Busy(bench.top):
        bench.server.snapshot("frozen", f"--freeze={bench.top}")
        bench.server.snapshot("running")
        time.sleep(0.3)
        bench.server.snapshot("frozen2", f"--freeze={bench.top}")
        time.sleep(0.3)
    expect(checksums(bench.top) == bench.expected, "the origin's own files have changed")


def check_frozen(bench):
    """reads from a frozen snapshot as it was, mounted read-only, and is clean there"""
    for name in ("frozen", "frozen2"):
        bench.look_at(bench.server.device(name).path, bench.kind.read_only, name)
    device = bench.server.device("frozen2").path
    if bench.kind.frozen_is_clean:
        run(*bench.kind.checks, device)
    else:
        bench.mend_copy(device, "frozen2")


def check_running(bench):
    """is as after a power cut in a snapshot that was not frozen: with its journal replayed, clean and complete"""
    device = bench.server.device("running").path
    bench.look_at(device, bench.kind.read_only, "running, as it is,")
    bench.mend_copy(device, "running")


def check_trim_skipped(bench):
    """is trimmed in vain by default, and nothing is copied for it"""
    with open(bench.top + "/large", "wb") as file:
        file.write(random.Random(3).randbytes(MIB) * 60)
    run("sync", "-f", bench.top)
    bench.server.snapshot("large", f"--freeze={bench.top}")
    os.unlink(bench.top + "/large")
    run("sync", "-f", bench.top)
    before, allocated = bench.copied(), bench.allocated()
    for _ in range(2):
        run("fstrim", bench.top, good=(0, 1, 32))
    expect(bench.copied() - before < 2000, f"{bench.copied() - before} blocks were copied for a trim")
    expect(bench.allocated() > allocated - 8 * MIB, "preserved or not, something was discarded")


def check_trim_copied(bench):
    """is trimmed with --discard=copy: the origin gets its space back, and snapshots keep what was there"""
    bench.stop()
    bench.start("--discard=copy")
    bench.mount()
    allocated = bench.allocated()
    run("fstrim", bench.top)
    expect(bench.allocated() < allocated - 40 * MIB, f"of {allocated} bytes {bench.allocated()} are still allocated")
    device = bench.server.device("large").path
    run("mount", "-t", bench.kind.name, "-o", bench.kind.read_only, device, bench.point)
    try:
        with open(bench.point + "/large", "rb") as file:
            expect(file.read() == random.Random(3).randbytes(MIB) * 60, "the removed file is not what it was")
        bench.expect_files("large")
    finally:
        run("umount", bench.point)
    expect(checksums(bench.top) == bench.expected, "the origin's own files have changed")


def check_blkdiscard(bench):
    """is discarded whole, and its snapshots have it still"""
    run("umount", bench.top)
    run("blkdiscard", "-f", bench.server.device().path)
    expect(bench.allocated() < 8 * MIB, f"{bench.allocated()} bytes are still allocated")
    for name in ("frozen", "running", "frozen2", "large"):
        bench.look_at(bench.server.device(name).path, bench.kind.read_only, name)
    bench.server.stop()


CHECKS = (check_prepare, check_snapshots, check_frozen, check_running, check_trim_skipped, check_trim_copied,
          check_blkdiscard)
KINDS = ((Ext4, 256 * MIB), (Xfs, 320 * MIB), (Btrfs, 320 * MIB))


def skip_reason(kind):
    for tool in (kind.mkfs[0], kind.checks[0], "fio"):
        if not shutil.which(tool):
            return f"there is no command {tool}"
    with open("/proc/filesystems", encoding="ascii") as file:
        if kind.name not in file.read().split():
            return f"this kernel has no {kind.name}"
    if kind is Btrfs and not os.path.exists("/sys/fs/btrfs/features/temp_fsid"):
        return "this kernel mounts no copy of a btrfs that is mounted"
    return Loop().skip_reason()


def run_checks(kind, size, first_number):
    """Each needs the one before it. How many failed."""
    reason, failed = skip_reason(kind), 0
    bench = None if reason else Bench(kind(), size)
    try:
        for number, check in enumerate(CHECKS, first_number):
            title = f"{kind.name}: {check.__doc__}"
            began = time.monotonic()
            if reason:
                print(f"ok {number} - {title} # skip {reason}", flush=True)
                continue
            try:
                check(bench)
                print(f"ok {number} - {title}", flush=True)
            except (Wrong, OSError, subprocess.SubprocessError) as error:
                failed += 1
                print(f"not ok {number} - {title}", flush=True)
                print(*(f"# {line}" for line in f"{error}\n{bench.server.said('err')}".splitlines()), sep="\n")
                reason = "what it needs has failed"
            if os.environ.get("ROWSNAP_TIMES"):
                print(f"# {time.monotonic() - began:.2f} s", flush=True)
    finally:
        if bench:
            bench.clear()
    return failed


def main():
    if sys.argv[1:2] == ["--churn"]:
        churn(sys.argv[2], int(sys.argv[3]))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    failed = count = 0
    for kind, size in KINDS:
        if sys.argv[1:] in ([], [kind.name]):
            failed += run_checks(kind, size, count + 1)
            count += len(CHECKS)
    print(f"1..{count}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
