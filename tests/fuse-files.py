#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The files served by FUSE, used as programs use them: fuse-files.py FUSE-MEMORY-SERVER [TEST...]. Prints TAP.

Every test gets a server of its own (tests/unit/fuse-memory-server.c). Whatever a test does, at its end the server must
have every buffer back, unmount, and exit with 0: that is checked after each one. Run by root, all is done once as root
and once more as nobody, whose mounts fusermount3 makes. Mounts and loop devices are undone in any case.
"""
import errno
import json
import mmap
import os
import random
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time

from linux import (KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE, attach_loop, detach_loop, fallocate, is_mounted, libc, unmount)

SLOW = int(os.environ.get("ROWSNAP_SLOW", "1"))
KIB, MIB = 1024, 1024 * 1024
SIZE = 8 * MIB + 1234  # ends within a block, and within a sector
CREATED_NS = 1700000000123456789
NOBODY = 65534


class Skip(Exception):
    """The test can't be run here."""


class Server:
    def __init__(self, *arguments, wrapper=(), directory=None):
        self.folder = None
        if directory is None:
            self.folder = tempfile.mkdtemp(prefix="rowsnap-fuse.")
            directory = self.folder + "/mount"
            os.mkdir(directory)
        self.directory = directory
        self.errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen([*wrapper, BINARY, directory, *map(str, arguments)], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=self.errors, bufsize=0, cwd=self.folder)
        self.first_line = self.line()

    def line(self):
        if not select.select([self.process.stdout], [], [], 30 * SLOW)[0]:
            raise TimeoutError("the server does not answer")
        return self.process.stdout.readline().decode().strip()

    def tell(self, command):
        self.process.stdin.write(command.encode() + b"\n")
        return self.line()

    def status(self):
        return json.loads(self.tell("status"))

    def wait(self, holds, seconds=15 * SLOW):
        """Until holds(status); its last value."""
        end = time.monotonic() + seconds
        while not holds(self.status()):
            if time.monotonic() > end:
                return False
            time.sleep(0.01)
        return True

    def path(self, name):
        folder = "" if name in ("", "origin", "snapshots") else "snapshots/"
        return f"{self.directory}/{folder}{name}"

    def open(self, name, flags=os.O_RDWR):
        return File(self.path(name), flags)

    def said(self):
        self.errors.seek(0)
        return self.errors.read().decode()

    def cpu_seconds(self):
        with open(f"/proc/{self.process.pid}/stat", encoding="ascii") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def finish(self):
        """Whether all was given back, and it ended well."""
        quiet = self.wait(lambda s: s["arena_used"] == 0 and s["in_flight"] == 0 and s["idle"])
        if not quiet:
            print("#", self.status())
        self.tell("quit")
        code = self.process.wait(30 * SLOW)
        clean = not is_mounted(self.directory) and os.listdir(self.directory) == []
        if code != 0 or not clean:
            print("#", code, clean, self.said())
        return quiet and code == 0 and clean

    def clear(self):
        """Leaves nothing behind, whatever state it is in."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        self.errors.close()
        while self.first_line == "ready" and is_mounted(self.directory) and unmount(self.directory, lazy=True):
            pass
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)


class File:
    def __init__(self, path, flags):
        self.fd = os.open(path, flags)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.fd)

    def read(self, length, offset):
        return os.pread(self.fd, length, offset)

    def write(self, data, offset):
        return os.pwrite(self.fd, data, offset)

    def seek(self, offset, whence):
        return error_of(os.lseek, self.fd, offset, whence)

    def fallocate(self, mode, offset, length):
        """0 or the error's name."""
        name = error_of(fallocate, self.fd, mode, offset, length)
        return 0 if name is None else name.replace("ENOTSUP", "EOPNOTSUPP")


def error_of(function, *arguments, **more):
    """The result, or the error's name."""
    try:
        return function(*arguments, **more)
    except OSError as error:
        return errno.errorcode[error.errno]


def run_tool(*command, **more):
    """Exit status and output of a program, which must be there."""
    if not shutil.which(command[0]):
        raise Skip(f"there is no command {command[0]}")
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          timeout=100 * SLOW, check=False, **more)
    if done.returncode != 0:
        print("#", *command, done.stdout.decode(errors="replace").replace("\n", "\n# "))
    return done.returncode, done.stdout.decode(errors="replace")


def in_thread(function, *arguments):
    """Runs it beside us; result() waits for what error_of() it is."""
    results = []
    thread = threading.Thread(target=lambda: results.append(error_of(function, *arguments)), daemon=True)
    thread.start()

    def result(seconds=20 * SLOW):
        thread.join(seconds)
        return results[0] if results else "hangs"

    return result


def require_root():
    if os.geteuid() != 0:
        raise Skip("needs root")


def frozen(size=SIZE):
    """What "snap" holds."""
    data = bytearray()
    for block in range(0, size, 4096):
        first = (block * 7 + block // 4096) % 251
        seven = bytes((first + 7 * i) % 251 for i in range(251))
        data += (seven * 17)[:4096]
    return bytes(data[:size])


BINARY = ""
count = failed = 0
say_to = None  # where results go when somebody else numbers them


def check(text, ok):
    say("ok" if ok else "not ok", text)


def say(result, text):
    global count, failed
    if say_to:
        say_to.write(f"{result}\t{text}\n")
        say_to.flush()
        return
    count += 1
    failed += result != "ok"
    print(f"{result} {count} - {text}", flush=True)


def edges(size=SIZE):
    """Offsets and lengths around the places where something changes."""
    around = sorted({at + d for at in (4096, 8192, 65536, MIB) for d in (-513, -1, 0, 1, 511)} | {0, 1, 511, 513})
    lengths = (1, 2, 511, 512, 513, 4095, 4096, 4097, 65535, 65536, 65537, MIB - 1, MIB, MIB + 1)
    return [(offset, length) for offset in around for length in lengths] + \
        [(size - back, length) for back in (1, 2, 511, 1234, 1235, 4096, 5331, 70000)
         for length in (1, 1234, 4097, 80000)]


# ---- names and attributes


def test_tree(server):
    check("the folder has origin and snapshots", sorted(os.listdir(server.directory)) == ["origin", "snapshots"])
    names = os.listdir(server.path("snapshots"))
    check("snapshots are listed in the order of their creation", names == ["snap", "late", "slow", "held", "broken"])
    origin, snap = os.stat(server.path("origin")), os.stat(server.path("snap"))
    check("origin is a file of mode 0600", origin.st_mode == stat.S_IFREG | 0o600)
    check("a snapshot one of 0400", snap.st_mode == stat.S_IFREG | 0o400)
    check("sizes are exact", origin.st_size == SIZE and snap.st_size == SIZE)
    check("a snapshot's times are those of its creation", snap.st_mtime_ns == snap.st_ctime_ns == CREATED_NS)
    check("they are ours", (snap.st_uid, snap.st_gid) == (os.geteuid(), os.getegid()))
    check("each has a number of its own",
          len({os.stat(server.path(n)).st_ino for n in ["", "origin", "snapshots", *names]}) == 8)
    check("which the listing gives too",
          {e.name: e.inode() for e in os.scandir(server.path("snapshots"))}["snap"] == snap.st_ino)
    check("what is not there is not found", error_of(os.stat, server.path("none")) == "ENOENT")
    check("nor is a snapshot beside the origin, or the origin among the snapshots",
          error_of(os.stat, server.directory + "/snap") == error_of(os.stat, server.directory + "/snapshots/origin") ==
          "ENOENT")
    about = os.statvfs(server.directory)
    check("df has something to say", about.f_blocks * about.f_frsize > SIZE and about.f_bavail == 0)
    before = os.stat(server.path("origin")).st_mtime_ns
    with server.open("origin") as file:
        file.write(b"x", 0)
    check("a write changes origin's times", os.stat(server.path("origin")).st_mtime_ns > before)
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        mine = [line for line in file if server.directory in line]
    check("it is mounted as rowsnap's, once", len(mine) == 1 and " - fuse.rowsnap rowsnap " in mine[0])


def test_nothing_else_can_be_changed(server):
    path = server.path("origin")
    check("chmod is refused", error_of(os.chmod, path, 0o644) == "EPERM")
    check("so is chown", error_of(os.chown, path, 1, 1) == "EPERM")
    check("utime", error_of(os.utime, path) == "EPERM")
    check("unlink", error_of(os.unlink, path) == "EPERM")
    check("rename", error_of(os.rename, path, path + "x") == "EPERM")
    check("mkdir", error_of(os.mkdir, server.directory + "/x") == "EPERM")
    check("rmdir", error_of(os.rmdir, server.path("snapshots")) == "EPERM")
    check("symlink", error_of(os.symlink, "x", server.directory + "/x") == "EPERM")
    check("link", error_of(os.link, path, server.directory + "/x") == "EPERM")
    check("a new file", error_of(os.open, server.directory + "/x", os.O_CREAT | os.O_WRONLY) == "EPERM")
    with server.open("origin") as file:
        file.write(b"stays", 0)
        check("opening origin with O_TRUNC", error_of(os.open, path, os.O_WRONLY | os.O_TRUNC) == "EPERM")
        check("truncating it", error_of(os.truncate, path, 0) == error_of(os.ftruncate, file.fd, SIZE - 1) == "EPERM")
        check("growing it", error_of(os.truncate, path, SIZE + 1) == "EPERM")
        check("but the size that it has can be set",
              error_of(os.truncate, path, SIZE) is None and error_of(os.ftruncate, file.fd, SIZE) is None)
        check("and after all that it is as before", file.read(5, 0) == b"stays" and os.fstat(file.fd).st_size == SIZE)
    refused = "EROFS" if os.geteuid() == 0 else "EACCES"
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
        check(f"a snapshot can't be opened with flags {flags:o}",
              error_of(os.open, server.path("snap"), flags) in (refused, "EPERM"))
    check("or truncated", error_of(os.truncate, server.path("snap"), SIZE) == refused)


# ---- data


def read_edges(server, name, model, flags):
    with server.open(name, flags) as file:
        return [place for place in edges() if file.read(place[1], place[0]) != model[place[0]:place[0] + place[1]]]


def test_reads_at_any_offset(server):
    model = frozen()
    check("a snapshot reads right at all offsets and lengths", not read_edges(server, "snap", model, os.O_RDONLY))
    with server.open("snap", os.O_RDONLY) as file:
        check("at its end nothing is read", file.read(10, SIZE) == file.read(10, SIZE + 5000) == b"")
        with mmap.mmap(file.fd, SIZE, prot=mmap.PROT_READ) as view:
            check("it can be mapped", view[:] == model)
    with server.open("snap", os.O_RDONLY | os.O_DIRECT) as file:
        with mmap.mmap(-1, 2 * MIB) as memory:
            got = [os.preadv(file.fd, [memory], offset) for offset in (0, 4096, SIZE - SIZE % 4096)]
            check("with O_DIRECT too, short at the end", got == [2 * MIB, 2 * MIB, SIZE % 4096])
            check("and right", memory[:got[2]] == model[SIZE - got[2]:])
    with server.open("origin") as file:
        for offset in range(0, SIZE, MIB):
            file.write(model[offset:offset + MIB], offset)
    check("origin reads right, too", not read_edges(server, "origin", model, os.O_RDONLY))
    check("and what is completed later", not read_edges(server, "late", model, os.O_RDONLY))


def test_writes_at_any_offset(server):
    model = bytearray(SIZE)
    wrong = []
    for name in ("origin", "late"):
        with server.open(name) as file:
            for number, (offset, length) in enumerate(edges()):
                data = random.Random(number).randbytes(length)
                fits = min(length, SIZE - offset)
                model[offset:offset + fits] = data[:fits]
                if file.write(data, offset) != fits:
                    wrong.append((offset, length))
            whole = b"".join(file.read(MIB, offset) for offset in range(0, SIZE, MIB))
            check(f"{name}: writes of any offset and length land where they should", whole == bytes(model))
    check("those that reach beyond the end are cut there", not wrong)
    with server.open("origin") as file, server.open("origin", os.O_RDWR | os.O_APPEND) as appending:
        check("at the end there is no space", error_of(file.write, b"x", SIZE) == "ENOSPC")
        check("nor beyond it", error_of(file.write, b"x" * 5000, SIZE + 100000) == "ENOSPC")
        check("nor for appending", error_of(os.write, appending.fd, b"x") == "ENOSPC")
        check("nothing grew", os.fstat(file.fd).st_size == SIZE == os.stat(server.path("origin")).st_size)
    with server.open("origin", os.O_RDWR | os.O_DIRECT) as file, mmap.mmap(-1, 3 * MIB) as memory:
        memory[:] = random.Random(5).randbytes(3 * MIB)
        check("O_DIRECT takes three times the largest message", os.pwritev(file.fd, [memory], MIB + 4096) == 3 * MIB)
        check("and it is there", b"".join(file_read(server, "origin", 3 * MIB, MIB + 4096)) == memory[:])


def file_read(server, name, length, offset):
    with server.open(name, os.O_RDONLY) as file:
        at = offset
        while at < offset + length:
            data = file.read(min(700001, offset + length - at), at)
            yield data
            at += len(data)


def test_durability(server):
    with server.open("origin") as file:
        file.write(b"x", 0)
        before = server.status()
        os.fsync(file.fd)
        os.fdatasync(file.fd)
        now = server.status()
        check("fsync and fdatasync flush", now["flushes"] == before["flushes"] + 2 and now["fua"] == 0)
    with server.open("origin", os.O_RDWR | os.O_DSYNC) as file:
        file.write(b"x" * 5000, 100)
        check("a write with O_DSYNC has FUA", server.status()["fua"] == 1)
    with server.open("origin", os.O_RDWR | os.O_SYNC) as file:
        file.write(b"x" * 5000, 100)
        check("one with O_SYNC too", server.status()["fua"] == 2)
    with server.open("snap", os.O_RDONLY) as file:
        check("fsync of a snapshot succeeds", error_of(os.fsync, file.fd) is None)
    with server.open("broken") as file:
        check("a flush that fails is said to fail, each time",
              [error_of(os.fsync, file.fd) for _ in range(3)] == ["EIO"] * 3)
    check("a folder can be synced", error_of(sync_folder, server.path("snapshots")) is None)


def sync_folder(path):
    with File(path, os.O_RDONLY | os.O_DIRECTORY) as folder:
        os.fsync(folder.fd)


def test_errors(server):
    with server.open("broken") as file:
        numbers = (5, 12, 28, 30, 108, 38, 4000)
        names = ["EIO", "ENOMEM", "ENOSPC", "EROFS", "EIO", "EIO", "EIO"]
        got = []
        for number, name in zip(numbers, names):
            if number * 4096 < SIZE:
                got.append((error_of(file.read, 1, number * 4096), error_of(file.write, b"x", number * 4096)) ==
                           (name, name))
        check("the engine's errors are the reader's and the writer's", len(got) == 6 and all(got))
        check("none of which is remembered", error_of(file.read, 1, 38 * 4096) == "EIO" ==
              error_of(os.fsync, file.fd) and error_of(os.lseek, file.fd, 38 * 4096, os.SEEK_HOLE) == "EIO")
        check("nor by fallocate", file.fallocate(ZERO_RANGE | KEEP_SIZE, 38 * 4096, 4096) == "EIO")
    with server.open("origin") as file:
        check("others are none the worse", file.fallocate(ZERO_RANGE | KEEP_SIZE, 0, 4096) == 0 and
              file.seek(0, os.SEEK_HOLE) == 0 and error_of(os.fsync, file.fd) is None)


def test_fallocate(server):
    with server.open("origin") as file:
        for offset in range(0, 4 * MIB, MIB):
            file.write(b"\xaa" * MIB, offset)
        punch = PUNCH_HOLE | KEEP_SIZE
        check("holes can't be punched where discards are skipped", file.fallocate(punch, 0, 65536) == "EOPNOTSUPP")
        check("nothing was changed", file.read(65536, 0) == b"\xaa" * 65536)
        server.tell("punch")
        check("they can where the export allows it, without asking again",
              file.fallocate(punch, 0, 65536) == 0 and file.seek(0, os.SEEK_DATA) == 65536)
        check("and read as zeroes", file.read(65537, 0) == bytes(65536) + b"\xaa")
        check("zeroing a range keeps the space", file.fallocate(ZERO_RANGE | KEEP_SIZE, 131072, 65536) == 0 and
              file.seek(131072, os.SEEK_DATA) == 131072 and server.status()["no_hole"] == 1)
        check("odd ranges are exact", file.fallocate(ZERO_RANGE, 300001, 4097) == 0 and
              file.read(4099, 300000) == b"\xaa" + bytes(4097) + b"\xaa")
        before = server.status()["zeroes"]
        check("beyond the end there is nothing to do", file.fallocate(punch, SIZE, 4096) == 0 and
              file.fallocate(ZERO_RANGE | KEEP_SIZE, SIZE + 4096, 1) == 0 and server.status()["zeroes"] == before)
        check("what reaches beyond it is cut", file.fallocate(punch, SIZE - 10, 4096) == 0)
        check("growing is refused", file.fallocate(ZERO_RANGE, SIZE - 10, 4096) == "EFBIG")
        check("allocating is not supported", file.fallocate(0, 0, 4096) == "EOPNOTSUPP")
        check("the size is the same", os.fstat(file.fd).st_size == SIZE)


def test_holes(server):
    with server.open("origin") as file:
        file.write(b"x", 131072 + 5)
        size = SIZE
        written = [i % 2 == 1 or i == 2 for i in range(0, (size + 65535) // 65536)]

        def model(offset, data):
            at = offset
            while at < size and written[at // 65536] != data:
                at = (at // 65536 + 1) * 65536
            if at >= size:
                return "ENXIO" if data else size
            return at

        places = [at + d for at in range(0, 10 * 65536, 65536) for d in (0, 1, 65535)] + [size - 1, size - 1300]
        wrong = [(at, data) for at in places for data in (True, False)
                 if file.seek(at, os.SEEK_DATA if data else os.SEEK_HOLE) != model(at, data)]
        check("data and holes are found", not wrong)
        check("at the end and beyond there are none", {file.seek(size + d, w) for d in (0, 1, MIB)
                                                       for w in (os.SEEK_DATA, os.SEEK_HOLE)} == {"ENXIO"})
    with server.open("snap", os.O_RDONLY) as file:
        check("a file without holes has one at its end", file.seek(0, os.SEEK_HOLE) == SIZE)


def test_long_searches(server):
    with server.open("origin") as file:
        size = os.fstat(file.fd).st_size
        for offset in range(0, size, 16 * MIB):
            file.fallocate(ZERO_RANGE | KEEP_SIZE, offset, 16 * MIB)
        check("a search goes on over more than one request takes", file.seek(1, os.SEEK_HOLE) == size)
    with server.open("late") as file:
        check("also when each is answered late", file.seek(1, os.SEEK_HOLE) == size)


test_long_searches.arguments = (400 * MIB,)


# ---- many at a time


def release_all(server):
    """What is held, and what comes of its being answered (the kernel reads ahead)."""
    while server.wait(lambda s: s["in_flight"] > 0, 1):
        server.tell("release")


def test_many_at_a_time(server):
    with server.open("held") as file:
        results = [in_thread(file.read, 1, MIB * i) for i in range(7)]
        check("many readers wait at the same time", server.wait(lambda s: s["in_flight"] >= 7))
        release_all(server)
        check("and all are answered", all(result() == bytes(1) for result in results))
    with server.open("origin") as file:
        def writer(number):
            for i in range(50):
                offset = (i * 16 + number) * 4096
                file.write(bytes([number + 1]) * 4096, offset)
                if file.read(4096, offset) != bytes([number + 1]) * 4096:
                    return "wrong"
            return "right"

        results = [in_thread(writer, number) for number in range(16)]
        check("concurrent writers don't disturb each other", all(result() == "right" for result in results))


def fio(server, name, *options):
    return run_tool("fio", "--name=x", f"--filename={server.path(name)}", "--allow_file_create=0", "--minimal",
                    f"--size={SIZE // 4096 * 4096}", *options)[0]


def test_async_direct_io(server):
    result = in_thread(fio, server, "held", "--ioengine=libaio", "--direct=1", "--rw=randread", "--bs=4k", "--iodepth=32",
                       "--number_ios=32")
    check("asynchronous direct I/O comes as deep as it was asked for", server.wait(lambda s: s["in_flight"] >= 32))
    release_all(server)
    check("and ends when all is answered", result() == 0)
    for size in ("4k", "64k", "68k", "1m", "3m"):
        code = fio(server, "late", "--ioengine=libaio", "--direct=1", "--rw=randrw", f"--bs={size}", "--iodepth=32",
                   "--verify=crc32c", "--do_verify=1", "--loops=2")
        check(f"written by {size} at depth 32, all verifies", code == 0)
    code = fio(server, "origin", "--ioengine=psync", "--rw=randrw", "--bs=2500", "--blockalign=2500",
               "--numjobs=4", "--offset_increment=2m", "--size=1m", "--verify=crc32c", "--do_verify=1")
    check("four processes with an odd block size verify", code == 0)


def test_without_memory(server):
    with server.open("origin") as file, server.open("snap", os.O_RDONLY | os.O_DIRECT) as snap:
        server.tell("hog")
        results = [in_thread(file.write, b"w" * 200000, 0), in_thread(os.stat, server.path("origin"))]
        check("without memory we wait in its queue", server.wait(lambda s: s["arena_waiters"]))
        before = server.cpu_seconds()
        time.sleep(0.5)
        check("and don't spin there", server.cpu_seconds() - before < 0.2)
        server.tell("unhog")
        check("and go on when there is some", results[0]() == 200000 and results[1]().st_size == SIZE)
        check("with the right data", file.read(200001, 0) == b"w" * 200000 + b"\0")
        assert snap
    with server.open("held") as file:
        results = [in_thread(file.write, b"h" * MIB, 0) for _ in range(60)]
        check("requests under way are bounded", server.wait(lambda s: s["in_flight"] > 0))
        time.sleep(0.3)
        used = server.status()["arena_used"]
        check("by our share of the memory", used <= 34 * MIB)
        done = 0
        while done < 60 and server.wait(lambda s: s["in_flight"] > 0, 5):
            server.tell("release")
            time.sleep(0.01)
            done = sum(result(0) == MIB for result in results)
        check("and all are carried out in the end", done == 60)


# ---- exports that come and go


def test_removal(server):
    with server.open("snap", os.O_RDONLY | os.O_DIRECT) as file, mmap.mmap(-1, 4096) as memory:
        old = os.fstat(file.fd).st_ino
        check("(it reads)", os.preadv(file.fd, [memory], 0) == 4096)
        server.tell("remove snap")
        check("a dropped snapshot's name is gone at once", "snap" not in os.listdir(server.path("snapshots")) and
              error_of(os.stat, server.path("snap")) == "ENOENT")
        check("it is given back though a reader has it open", server.status()["released"] == 1)
        check("who gets ESTALE", error_of(os.preadv, file.fd, [memory], 4096) == "ESTALE")
        check("also for fsync", error_of(os.fsync, file.fd) == "ESTALE")
        server.tell("add snap")
        check("a new one of that name appears, with another number", os.stat(server.path("snap")).st_ino != old)
        with server.open("snap", os.O_RDONLY) as new:
            check("and reads", new.read(4096, 0) == frozen()[:4096])
        check("the old file stays stale", error_of(os.preadv, file.fd, [memory], 4096) == "ESTALE")
        check("it is last in the list now", os.listdir(server.path("snapshots"))[-1] == "snap")
    server.tell("remove origin")
    check("even the origin may go", os.listdir(server.directory) == ["snapshots"])
    for _ in range(200):
        server.tell("remove snap")
        server.tell("add snap")
    check("many come and go", os.stat(server.path("snap")).st_size == SIZE)


def test_removal_with_a_request_under_way(server):
    with server.open("held") as file:
        result = in_thread(file.read, 4096, 0)
        server.wait(lambda s: s["in_flight"] == 1)
        server.tell("remove held")
        check("an export is kept until its last request is complete", server.status()["released"] == 0)
        check("new ones are refused", error_of(file.read, 10, 0) == "ESTALE")
        server.tell("release")
        check("whose reader is told that it is gone", result() == "ESTALE")
        check("then it is given back", server.status()["released"] == 1)


def test_listing_while_names_change(server):
    with os.scandir(server.path("snapshots")) as entries:
        first = next(entries).name
        server.tell("remove late")
        server.tell("remove snap")
        rest = [entry.name for entry in entries]
    check("a listing under way is not disturbed", first == "snap" and rest in
          (["slow", "held", "broken"], ["late", "slow", "held", "broken"]))


# ---- the end


def test_quiesce(server):
    with server.open("origin") as file, server.open("held") as held:
        result = in_thread(held.write, b"last", 0)
        server.wait(lambda s: s["in_flight"] == 1)
        server.tell("quiesce")
        check("once quiesced, it is not idle while something is under way", not server.status()["idle"])
        check("data is refused", error_of(file.read, 1, 0) == error_of(file.write, b"x", 0) == "EIO")
        check("so are flushes", error_of(os.fsync, file.fd) == "EIO")
        check("names are still answered", os.stat(server.path("origin")).st_size == SIZE)
        server.tell("release")
        check("what was under way is answered", result() == 4 and server.wait(lambda s: s["idle"]))


def test_end_with_open_files(server):
    with server.open("origin") as file:
        file.write(b"x", 0)
        server.tell("quit")
        check("it ends though a file is open", server.process.wait(20 * SLOW) == 0)
        check("which is cut off", error_of(file.read, 1, 0) in ("ENOTCONN", "ECONNABORTED"))
        check("and nothing is mounted any more", not is_mounted(server.directory))
        check("nor logged", server.said() == "")


test_end_with_open_files.finishes = True


def test_unmounted_by_hand(server):
    os.stat(server.path("snap"))
    check("somebody unmounts it", unmount(server.directory))
    check("which is noticed", server.wait(lambda s: not s["mounted"]))
    check("and logged, once", server.said().count("\n") == 1 and "warning: fuse: " in server.said() and
          "unmounted" in server.said())
    before = server.cpu_seconds()
    time.sleep(0.5)
    check("the server goes on, idle, without spinning", server.cpu_seconds() - before < 0.2 and server.status()["idle"])
    server.tell("remove snap")
    check("exports are not held any more", server.status()["released"] == 1)
    server.tell("add snap")


def test_unmounted_lazily(server):
    with server.open("origin") as file:
        if os.geteuid() == 0:
            check("with a file open, unmounting is refused", not unmount(server.directory))
        check("but not lazily", unmount(server.directory, lazy=True))
        check("then who has a file open is still served", file.write(b"still", 0) == 5 and file.read(5, 0) == b"still")
        check("though the folder is empty", os.listdir(server.directory) == [] and server.status()["mounted"])
    check("until it is closed", server.wait(lambda s: not s["mounted"]))


def test_aborted_connection(server):
    require_root()
    controls = server.folder + "/controls"
    os.mkdir(controls)
    if run_tool("mount", "-t", "fusectl", "none", controls)[0] != 0:
        raise Skip("there is no fusectl")
    number = os.minor(os.stat(server.directory).st_dev)
    try:
        abort_under_way(server, f"{controls}/{number}/abort")
    finally:
        run_tool("umount", controls)


def abort_under_way(server, control):
    with server.open("held") as file:
        result = in_thread(file.read, 4096, 0)
        server.wait(lambda s: s["in_flight"] == 1)
        with open(control, "w", encoding="ascii") as abort:
            abort.write("1")
        check("an aborted connection fails what was under way", result() in ("ECONNABORTED", "ENOTCONN", "EIO"))
        check("and is noticed", server.wait(lambda s: not s["mounted"]) and not server.status()["idle"])
        server.tell("release")
        check("what the engine had is given back", server.wait(lambda s: s["idle"] and s["arena_used"] == 0))


def test_killed(server):
    with server.open("held") as file:
        result = in_thread(file.read, 4096, 0)
        server.wait(lambda s: s["in_flight"] == 1)
        server.process.kill()
        server.process.wait()
        check("when the server is killed, a reader gets an error at once",
              result() in ("ENOTCONN", "ECONNABORTED", "EIO"))
        check("a dead mount is left", error_of(os.stat, server.directory) == "ENOTCONN")
        again = Server(directory=server.directory)
        try:
            check("which a new server unmounts, saying so", again.first_line == "ready" and "unmounted" in again.said())
            check("and serves there", again.wait(lambda s: s["mounted"]) and
                  os.stat(again.path("origin")).st_size == 64 * MIB)
            check("and ends well", again.finish())
        finally:
            again.clear()


test_killed.finishes = True


# ---- where it can't be mounted


def start_error(directory, wrapper=()):
    """What a server says that is to serve there, and its exit status; nothing if it could, and ended well."""
    other = Server(wrapper=wrapper, directory=directory)
    try:
        if other.first_line != "ready":
            return other.first_line, other.process.wait(20 * SLOW)
        return None if other.finish() else "ended badly"
    finally:
        other.clear()


def test_bad_mount_points(server):
    folder = server.folder
    with open(folder + "/file", "w", encoding="ascii"):
        pass
    os.makedirs(folder + "/full/sub")
    check("a folder that is missing", start_error(folder + "/missing") == ("ENOENT", 1))
    check("a file", start_error(folder + "/file") == ("ENOTDIR", 1))
    check("something below a file", start_error(folder + "/file/x") == ("ENOTDIR", 1))
    check("a folder that is not empty", start_error(folder + "/full") == ("ENOTEMPTY", 1))
    check("a name that is too long", start_error(folder + "/" + "x" * 300) == ("ENAMETOOLONG", 1))
    check("one where somebody serves already", start_error(server.directory) == ("EBUSY", 1))
    check("who goes on serving", os.stat(server.path("origin")).st_size == SIZE and server.status()["mounted"])
    check("another mount", start_error("/proc") == ("EBUSY", 1))
    os.mkdir(folder + "/other")
    os.symlink("other", folder + "/link")
    check("a link to a folder is as good as the folder", start_error(folder + "/link") is None)
    if os.geteuid() != 0:
        os.chmod(folder + "/other", 0o500)
        check("a folder that we may not write to", start_error(folder + "/other") == ("EACCES", 1))
        os.chmod(folder + "/other", 0o000)
        check("one that we may not read", start_error(folder + "/other") == ("EACCES", 1))
        os.chmod(folder + "/other", 0o700)


def test_missing_fuse(server):
    require_root()
    os.chmod(server.folder, 0o755)
    folder = server.folder + "/other"
    os.mkdir(folder)
    os.chown(folder, NOBODY, NOBODY)
    hidden = ["unshare", "--mount", "sh", "-c"]
    if subprocess.run([*hidden, "true"], check=False).returncode != 0:
        raise Skip("no mount namespaces here")
    no_device = 'mount -t tmpfs none /dev && exec "$0" "$@"'
    check("without /dev/fuse it says so", start_error(folder, [*hidden, no_device]) == ("ENODEV", 1))
    no_helper = 'mount --bind /dev/null /usr/bin/fusermount3 && exec "$0" "$@"'
    user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    check("without root and fusermount3, too", start_error(folder, [*hidden, no_helper, *user]) == ("EOPNOTSUPP", 1))
    no_mount = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
    check("root that may not mount is refused", start_error(folder, no_mount) == ("EPERM", 1))


# ---- programs


def test_programs(server):
    copy = server.folder + "/copy"
    origin, snap = server.path("origin"), server.path("snap")
    model = frozen()
    code = run_tool("cp", snap, copy)[0]
    with open(copy, "rb") as file:
        check("cp copies a snapshot", code == 0 and file.read() == model)
    check("cmp finds them equal", run_tool("cmp", snap, copy)[0] == 0)
    check("dd writes to origin", run_tool("dd", f"if={copy}", f"of={origin}", "bs=10000", "conv=notrunc,fsync",
                                          "status=none")[0] == 0)
    check("and all is there", run_tool("cmp", origin, copy)[0] == 0)
    os.unlink(copy)
    check("dd with O_DIRECT reads it", run_tool("dd", f"if={origin}", f"of={copy}", "bs=1M", "iflag=direct",
                                                "status=none")[0] == 0 and run_tool("cmp", snap, copy)[0] == 0)
    code, output = run_tool("sh", "-c", f"dd if=/dev/zero of={origin} bs=64k conv=notrunc 2>&1; wc -c <{origin}")
    check("dd fills it to its end, and not beyond", code == 0 and "No space left" in output and
          output.rstrip().endswith(str(SIZE)) and f"{SIZE} bytes" in output)
    os.unlink(copy)
    code = run_tool("tar", "-C", server.directory, "-cSf", copy, "origin", "snapshots/snap")[0]
    check("tar packs them", code == 0)
    check("and finds no difference", run_tool("tar", "-C", server.directory, "-df", copy)[0] == 0)


def test_sparse_copies(server):
    with server.open("origin") as file:
        file.write(b"in the middle", 4 * MIB)
    copy = server.folder + "/copy"
    before = server.status()["bytes_read"]
    code = run_tool("cp", server.path("origin"), copy)[0]
    check("cp skips holes", code == 0 and server.status()["bytes_read"] - before < SIZE * 3 // 4)
    check("and copies all else", run_tool("cmp", server.path("origin"), copy)[0] == 0)


def test_qemu_img(server):
    copy = server.folder + "/copy.qcow2"
    with server.open("origin") as file:
        file.write(random.Random(1).randbytes(300000), 100000)
    for name in ("origin", "snap"):
        code = run_tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", server.path(name), copy)[0]
        check(f"qemu-img converts {name}", code == 0)
        code, output = run_tool("qemu-img", "compare", "-f", "raw", "-F", "qcow2", server.path(name), copy)
        check(f"and finds {name} identical", code == 0 and "identical" in output)
    for cache in ("none", "writeback"):
        code = run_tool("qemu-io", "-f", "raw", "-t", cache, "-c", "write -P 0x5a 1m 70000", "-c", "flush",
                        "-c", "read -P 0x5a 1m 70000", "-c", "write -z 1m 64k", "-c", "read -P 0 1m 64k",
                        server.path("origin"))[0]
        check(f"qemu-io writes, flushes and zeroes with cache {cache}", code == 0)


test_qemu_img.arguments = (8 * MIB,)


def test_written_by_others(server):
    if not shutil.which("qemu-io"):
        raise Skip("there is no command qemu-io")
    socket = server.folder + "/nbd"
    with server.open("origin") as file:
        for number in (1, 2, 3):
            check("(it is read)", len(file.read(65536, 0)) == 65536)
            code = run_tool("qemu-io", "-f", "raw", "-c", f"write -P {number} 0 64k",
                            f"nbd+unix:///origin?socket={socket}")[0]
            check("what is written by NBD meanwhile is seen at once",
                  code == 0 and file.read(65536, 0) == bytes([number]) * 65536)
        file.write(b"by file", 0)
        with mmap.mmap(file.fd, 4096, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as view:
            check("a private mapping shows it", view[:7] == b"by file")


test_written_by_others.arguments = (8 * MIB, 64, "nbd")


def loop_device(path, *options):
    try:
        return attach_loop(path, *options)
    except OSError as error:
        raise Skip("no loop device can be set up") from error


def test_loop_mounts(server):
    require_root()
    if run_tool("losetup", "--find")[0] != 0:
        raise Skip("there are no loop devices")
    point = server.folder + "/point"
    os.mkdir(point)
    check("mkfs makes a file system in origin", run_tool("mkfs.ext4", "-q", "-F", server.path("origin"))[0] == 0)
    device = loop_device(server.path("origin"))
    try:
        check("it is mounted through a loop device with direct I/O", run_tool("mount", device, point)[0] == 0)
        data = random.Random(9).randbytes(5 * MIB)
        for number in range(20):
            with open(f"{point}/{number}", "wb") as file:
                file.write(data[number:])
                file.flush()
                os.fsync(file.fileno())
        code, output = run_tool("sh", "-c", f"fstrim {point} 2>&1; true")
        check("fstrim does no harm", code == 0 and output is not None)
        run_tool("umount", point)
    finally:
        unmount(point)
        detach_loop(device)
    check("the file system is clean", run_tool("e2fsck", "-f", "-n", server.path("origin"))[0] == 0)
    try:
        check("mount -o loop,ro works", run_tool("mount", "-o", "loop,ro", server.path("origin"), point)[0] == 0)
        same = True
        for number in range(20):
            with open(f"{point}/{number}", "rb") as file:
                same = same and file.read() == data[number:]
        check("and all files are as they were written", same)
    finally:
        run_tool("umount", point)
    device = loop_device(server.path("snap"), "--read-only")
    try:
        with open(device, "rb") as file:
            check("a snapshot's loop device reads right", file.read(MIB) == frozen(MIB))
    finally:
        detach_loop(device)


test_loop_mounts.arguments = (160 * MIB,)


# ---- running them


def run(name, test):
    # Room for what a test leaves in a folder of its own; the NBD socket's path is relative to it.
    server = Server(*getattr(test, "arguments", (SIZE,)))
    try:
        if server.first_line != "ready":
            check(f"{name}: the server starts: {server.first_line} {server.said()}", False)
            return
        test(server)
        if not hasattr(test, "finishes"):
            check(f"{name}: all is given back at the end", server.finish())
    except Skip as reason:
        say("ok", f"{name} # skip {reason}")
    except (AssertionError, OSError, ValueError, subprocess.SubprocessError) as error:
        check(f"{name}: {error!r} at line {error.__traceback__.tb_next.tb_lineno}", False)
    finally:
        server.clear()


def run_all(wanted):
    for name, test in list(globals().items()):
        if name.startswith("test_") and (not wanted or name in wanted):
            run(name, test)


def open_device_to_all():
    """In a mount namespace of our own, where /dev/fuse is not (as it is where there is udev): true when done."""
    if os.stat("/dev/fuse").st_mode & 0o006 == 0o006:
        return True
    with tempfile.TemporaryDirectory() as folder:
        node = folder + "/fuse"
        if libc.unshare(0x20000) != 0 or libc.mount(b"none", b"/", None, (1 << 18) | (1 << 14), None) != 0:
            return False
        if error_of(os.mknod, node, 0o600 | stat.S_IFCHR, os.stat("/dev/fuse").st_rdev) is not None:
            return False
        os.chmod(node, 0o666)
        return libc.mount(node.encode(), b"/dev/fuse", None, 1 << 12, None) == 0


def run_as_nobody(wanted):
    """In a child process, which hands its results over by a pipe."""
    global say_to
    sys.stdout.flush()
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(receive)
        with os.fdopen(send, "w") as say_to:
            if open_device_to_all():
                os.setgroups([])
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(NOBODY, NOBODY, NOBODY)
                run_all(wanted)
            else:
                say("ok", "all of it # skip /dev/fuse is root's alone")
        os._exit(0)
    os.close(send)
    with os.fdopen(receive) as results:
        for line in results:
            result, _, text = line.rstrip("\n").partition("\t")
            say(result, "unprivileged: " + text)
    check("unprivileged: the tests came to their end", os.waitpid(pid, 0)[1] == 0)


def main():
    global BINARY
    if len(sys.argv) < 2:
        sys.exit("usage: fuse-files.py FUSE-MEMORY-SERVER [TEST...]")
    if not os.path.exists("/dev/fuse"):
        print("1..0 # skip there is no /dev/fuse")
        return
    if os.geteuid() != 0 and not shutil.which("fusermount3"):
        print("1..0 # skip not root, and there is no fusermount3")
        return
    wanted = sys.argv[2:]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="rowsnap-fuse.") as folder:
        # A copy, which nobody may execute too, wherever we are built.
        os.chmod(folder, 0o755)
        BINARY = shutil.copy(sys.argv[1], folder + "/fuse-memory-server")
        run_all(wanted)
        if os.geteuid() == 0:
            if shutil.which("fusermount3"):
                run_as_nobody(wanted)
            else:
                say("ok", "unprivileged # skip there is no fusermount3")
    print(f"1..{count}")
    sys.exit(1 if failed else 0)


main()
