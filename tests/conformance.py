#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The same promises, kept on every transport: conformance.py [TRANSPORT [CASE...]]. Prints TAP.

Every case gets a server of its own, and every byte that it then finds in the origin and in the snapshots is compared
with what must be there: while it is served, and in the image that a clean stop leaves. What the transports are is in
transports.py; a new one needs a line there and none here.

Origins end within a block, on an odd sector. Where nothing else is said, "odd" places are those within two units of a
sector's or a block's boundary; a unit is the least that the transport can move.
"""
import errno
import itertools
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time

from served import Volume, Wrong, expect, expect_same, random_image, read_all
from transports import SLOW, TRANSPORTS

SECTOR, BLOCK, MIB = 512, 4096, 1 << 20
SIZE = 4 * MIB + 3 * SECTOR
DEPTH = 64
CASE_SECONDS = 60 * SLOW


class Crew:
    """Threads. What one of them raises is raised again at the end of the `with`, when all have ended."""

    def __init__(self):
        self.threads = []
        self.errors = []
        self.over = threading.Event()

    def __enter__(self):
        return self

    def go(self, function, *arguments):
        thread = threading.Thread(target=self.run, args=(function, *arguments), daemon=True)
        self.threads.append(thread)
        thread.start()
        return thread

    def run(self, function, *arguments):
        try:
            function(*arguments)
        except Exception as error:  # pylint: disable=broad-except
            self.errors.append(error)
            self.over.set()

    def __exit__(self, kind, *_):
        self.over.set()
        for thread in self.threads:
            thread.join()
        if kind is None and self.errors:
            raise self.errors[0]


def wait_until(holds, what):
    deadline = time.monotonic() + 20 * SLOW
    while not holds():
        expect(time.monotonic() < deadline, f"waited in vain for {what}")
        time.sleep(0.005)


def error_of(function, *arguments, **more):
    """The error's number, or 0."""
    try:
        function(*arguments, **more)
    except OSError as error:
        return error.errno
    return 0


# ---- one thread: places


def places(device, boundaries):
    """(offset, length): both ends within two units of a boundary."""
    unit = device.align
    points = sorted({at + d * unit for at in boundaries for d in range(-2, 3) if 0 <= at + d * unit <= device.size})
    return [(first, end - first) for first, end in itertools.combinations(points, 2)]


def odd_places(device):
    """At the start, about the middle, and at the end."""
    middle, end = 2 * MIB, device.size
    last = end - end % BLOCK
    return (places(device, (0, SECTOR, BLOCK, 2 * BLOCK)) +
            places(device, (middle - SECTOR, middle, middle + SECTOR, middle + BLOCK)) +
            places(device, (last - BLOCK, last, last + SECTOR, end - SECTOR, end)))


def write_place(volume, number, offset, length):
    """Writes there and compares what is about it; now and then with FUA, or as zeroes."""
    device = volume.device()
    if device.can_zero and number % 7 == 3:
        device.zero(offset, length, no_hole=number % 2 == 0)
        volume.model[offset:offset + length] = bytes(length)
    else:
        volume.write(offset, random.Random(number).randbytes(length), fua=device.can_fua and number % 11 == 5)
    first = max(0, offset - offset % SECTOR - SECTOR)
    end = min(device.size, offset + length + SECTOR)
    end -= end % device.align
    expect_same(device.read(first, end - first), volume.model[first:end], f"about a write of {length} at {offset}")


def case_attributes(volume):
    """sizes and attributes are exact, and everything reads as the image"""
    volume.snapshot("s1")
    for name in ("origin", "s1"):
        device = volume.device(name)
        expect(device.size == SIZE, f"{name} has {device.size} bytes and not {SIZE}")
        expect(device.read_only == (name != "origin"), f"{name} says read_only {device.read_only}")
        expect(SIZE % device.align == 0, "the size is no multiple of the transport's unit")
    expect(os.stat(volume.origin).st_size == SIZE, "the image has changed its size")


def case_odd_writes(volume):
    """writes at odd places land there and touch nothing else, without a snapshot"""
    for number, (offset, length) in enumerate(odd_places(volume.device())):
        write_place(volume, number, offset, length)


def case_odd_writes_preserved(volume):
    """writes at odd places over preserved blocks, and over such that are not yet"""
    for number, (offset, length) in enumerate(odd_places(volume.device())):
        if number % 60 == 0:
            volume.snapshot(f"s{number}")
        write_place(volume, number, offset, length)


def case_odd_first_writes(volume):
    """every odd write as the first one to its blocks"""
    device = volume.device()
    base, window = 32 * BLOCK, 4 * BLOCK
    pairs = places(device, (BLOCK - SECTOR, BLOCK, BLOCK + SECTOR, 2 * BLOCK))
    volume.snapshot("s1")
    for number, (offset, length) in enumerate(pairs):
        at = base + number * window
        expect(at + window <= SIZE, "the origin is too small for this case")
        write_place(volume, number, at + offset, length)


def case_odd_reads(volume):
    """reads at odd places, where preserved blocks and others alternate"""
    volume.snapshot("s1")
    for block in range(0, SIZE // BLOCK, 2):
        if block % 64 < 12 or 500 < block < 524 or block > 1014:
            volume.write(block * BLOCK, random.Random(block).randbytes(min(BLOCK, SIZE - block * BLOCK)))
    volume.snapshot("s2")
    volume.write(2 * MIB - BLOCK, random.Random(7).randbytes(3 * BLOCK))
    for name, wanted in (("origin", volume.model), *volume.snapshots.items()):
        device = volume.device(name)
        for offset, length in odd_places(device):
            expect_same(device.read(offset, length), wanted[offset:offset + length], f"{name}: {length} at {offset}")


def case_beyond_the_end(volume):
    """beyond the end nothing is read, written or zeroed, and nothing grows"""
    volume.snapshot("s1")
    device = volume.device()
    unit = device.align
    for name in ("origin", "s1"):
        for offset, length in ((SIZE - unit, 2 * unit), (SIZE, unit), (SIZE + MIB, 4 * unit), (0, SIZE + MIB)):
            try:
                data = volume.device(name).read(offset, length)
            except OSError as error:
                expect(error.errno in (errno.EINVAL, errno.EIO), f"reading beyond the end gives {error}")
                continue
            wanted = volume.model if name == "origin" else volume.snapshots[name]
            expect_same(data, wanted[offset:offset + length], name)
    for offset, length in ((SIZE, unit), (SIZE + BLOCK, BLOCK), (SIZE - unit, 2 * unit), (SIZE - BLOCK, 3 * BLOCK)):
        number = error_of(device.write, offset - offset % unit, bytes(length))
        expect(number in (errno.ENOSPC, errno.EINVAL, errno.EIO), f"a write of {length} at {offset} gives {number}")
        if offset < SIZE:
            tail = device.read(offset, SIZE - offset)
            expect(tail in (volume.model[offset:], bytes(SIZE - offset)), "a write across the end left something else")
            volume.adopt(offset, SIZE)
    for function in (device.zero, device.discard):
        error_of(function, SIZE, BLOCK)
    expect(os.stat(volume.origin).st_size == SIZE == device.size, "the origin has changed its size")


def case_read_only(volume):
    """a snapshot refuses every change, and takes a flush"""
    volume.snapshot("s1")
    device = volume.device("s1")
    changes = [(device.write, 0, bytes(BLOCK)), (device.write, SIZE - SECTOR, bytes(SECTOR))]
    if device.can_zero:
        changes.append((device.zero, BLOCK, BLOCK))
    if device.can_discard:
        changes.append((device.discard, BLOCK, BLOCK))
    for function, *arguments in changes:
        number = error_of(function, *arguments)
        expect(number in (errno.EPERM, errno.EROFS, errno.EACCES, errno.EBADF), f"{function.__name__} gives {number}")
    device.flush()


def case_nothing(volume):
    """requests of no length do nothing"""
    volume.snapshot("s1")
    for name in ("origin", "s1"):
        device = volume.device(name)
        for offset in (0, SECTOR, SIZE):
            expect(device.read(offset, 0) == b"", "a read of nothing gives something")
    device = volume.device()
    for offset in (0, SECTOR, SIZE):
        device.write(offset, b"")
        device.write(offset, b"", fua=device.can_fua)
        if device.can_zero:
            device.zero(offset, 0)
        if device.can_discard:
            device.discard(offset, 0)
    device.flush()
    expect(volume.status()["copies"]["blocks"] == 0, "something was copied for nothing")


# ---- durability


def case_killed(volume):
    """what was answered, flushed or not, is there after SIGKILL, and so are the snapshots"""
    chance = random.Random(3)
    for turn in range(3):
        volume.snapshot(f"s{turn}")
        for number in range(60):
            length = chance.choice((SECTOR, BLOCK, 3 * BLOCK, 65536))
            offset = chance.randrange((SIZE - length) // SECTOR) * SECTOR
            volume.write(offset, chance.randbytes(length), fua=volume.device().can_fua and number % 10 == 0)
            if number % 17 == turn:
                volume.device().flush()
        if volume.device().can_zero:
            volume.device().zero(turn * MIB, 70000 // SECTOR * SECTOR)
            volume.model[turn * MIB:turn * MIB + 70000 // SECTOR * SECTOR] = bytes(70000 // SECTOR * SECTOR)
        if not volume.transport.keeps_unflushed:
            volume.device().flush()
        volume.kill()
        volume.expect_image()
        volume.start()
        volume.verify()


def case_restart(volume):
    """a clean stop and a start change nothing, several times"""
    for turn in range(3):
        volume.snapshot(f"s{turn}")
        for number in range(10):
            volume.write((turn * 40 + number * 3) * BLOCK + SECTOR, random.Random(number).randbytes(5 * SECTOR))
        volume.stop()
        volume.start()
        volume.verify()


# ---- discards and zeroes


def expect_either(found, old, offset):
    """Every byte of `found` is the old one, or zero."""
    for at in range(0, len(found), SECTOR):
        part, before = found[at:at + SECTOR], old[at:at + SECTOR]
        if part != before and any(part):
            expect(all(now in (0, then) for now, then in zip(part, before)),
                   f"after a discard sector {(offset + at) // SECTOR} holds neither old nor zeroes")


def discard_some(volume):
    """Discards here and there. What was discarded may read as zeroes; for some transports it must."""
    device = volume.device()
    unit = device.align
    for offset, length in ((MIB, MIB), (20 * BLOCK + unit, 5 * BLOCK), (3 * MIB - unit, 2 * BLOCK + 2 * unit),
                           (SIZE - 10 * BLOCK - unit, 10 * BLOCK), (0, 18 * BLOCK), (2 * MIB, unit)):
        length = min(length, SIZE - offset)
        device.discard(offset, length)
        found = device.read(offset, length)
        expect_either(found, volume.model[offset:offset + length], offset)
        if device.discard_zeroes and unit == 1:
            expect(found == bytes(length), f"a discard that promises zeroes left something at {offset}")
        volume.model[offset:offset + length] = found


def case_discard_skipped(volume):
    """by default a discard copies nothing, and snapshots see nothing of it"""
    volume.snapshot("s1")
    volume.write(MIB + BLOCK, random.Random(1).randbytes(4 * BLOCK))
    volume.device().flush()
    before = volume.status()["copies"]["blocks"]
    device = volume.device()
    if device.can_discard:
        discard_some(volume)
    else:
        error_of(device.discard, MIB, MIB)  # some kernels don't tell that nothing was done
    expect(volume.status()["copies"]["blocks"] == before, "a discard had something copied")
    volume.verify()


def case_discard_copied(volume):
    """with --discard=copy the old data stay visible in the snapshots"""
    device = volume.device()
    if not device.can_discard:
        return
    volume.snapshot("s1")
    discard_some(volume)
    expect(volume.status()["copies"]["blocks"] > 0, "nothing was copied")
    volume.snapshot("s2")
    volume.write(MIB + SECTOR, random.Random(2).randbytes(3 * BLOCK))
    discard_some(volume)
    volume.verify()
    volume.kill()
    volume.expect_image()
    volume.start()


case_discard_copied.options = ["--discard=copy"]


def zero_some(volume):
    device = volume.device()
    unit = device.align
    for no_hole in (False, True):
        base = MIB + no_hole * MIB
        volume.snapshot(f"hole{no_hole}")
        for offset, length in ((base, 300 * BLOCK), (base - 5 * unit, unit), (base + 400 * BLOCK + unit, 3 * BLOCK),
                               (SIZE - (2 - no_hole) * 3 * SECTOR, 3 * SECTOR), (base // 8 + unit, SECTOR)):
            length = min(length, SIZE - offset)
            device.zero(offset, length, no_hole)
            volume.model[offset:offset + length] = bytes(length)
            first, end = max(0, offset - BLOCK), min(SIZE, offset + length + BLOCK - length % unit)
            first, end = first - first % unit, end - end % unit
            expect_same(device.read(first, end - first), volume.model[first:end], f"about zeroes at {offset}")
    volume.verify()


def case_zeroes(volume):
    """zeroes are exact, with and without holes, and snapshots keep what was there"""
    if volume.device().can_zero:
        zero_some(volume)


def case_zeroes_with_holes(volume):
    """the same where holes are offered"""
    if volume.device().can_zero:
        zero_some(volume)


case_zeroes_with_holes.options = ["--discard=copy"]


# ---- many threads: what overlaps


class Overlaps:
    """Writes of many threads to one area, each of a byte value of its own, and when they were under way."""

    def __init__(self, first, length):
        self.first, self.length = first, length
        self.lock = threading.Lock()
        self.writes = {}  # value: [begin, end, offset, end offset]

    def begin(self, offset, length):
        with self.lock:
            value = len(self.writes) + 1
            self.writes[value] = [time.monotonic_ns(), None, offset, offset + length]
        return value

    def end(self, value):
        self.writes[value][1] = time.monotonic_ns()

    def writes_over(self, position, before):
        return [w for w in list(self.writes.values()) if w[2] <= position < w[3] and w[1] is not None and w[1] < before]

    def is_legal(self, position, value, begin, end):
        """Whether a read under way from begin to end may have found the value there; 0 is what was there at first."""
        complete = self.writes_over(position, begin)
        if value == 0:
            return not complete
        write = self.writes.get(value)
        if write is None or not write[2] <= position < write[3] or write[0] > end:
            return False
        return not any(write[1] is not None and other[0] > write[1] for other in complete)

    def check(self, data, begin, end, step, what):
        for position in range(0, self.length, step):
            expect(self.is_legal(self.first + position, data[position], begin, end),
                   f"{what}: {data[position]} at byte {self.first + position} was overwritten before, or never there")


def case_overlapping(volume):
    """overlapping reads and writes: every byte is one of its writers', and never an older one"""
    device = volume.device()
    unit = device.align
    first, length = 100 * BLOCK + 3 * SECTOR, 6 * BLOCK
    volume.write(first, bytes(length))
    volume.snapshot("s1")
    overlaps = Overlaps(first, length)

    def writer(number):
        chance = random.Random(number)
        for turn in range(40):
            count = chance.choice((1, 2, 3, SECTOR // unit, chance.randrange(1, 3 * BLOCK // unit), BLOCK // unit))
            offset = first + chance.randrange(length // unit - count + 1) * unit
            value = overlaps.begin(offset, count * unit)
            device.write(offset, bytes([value]) * (count * unit), fua=device.can_fua and turn % 13 == 0)
            overlaps.end(value)

    def reader(crew):
        while not crew.over.is_set():
            begin = time.monotonic_ns()
            data = device.read(first, length)
            overlaps.check(data, begin, time.monotonic_ns(), 97, "a read under way")

    with Crew() as crew:
        writers = [crew.go(writer, number) for number in range(6)]
        crew.go(reader, crew)
        for thread in writers:
            thread.join()
    now = time.monotonic_ns()
    overlaps.check(device.read(first, length), now, time.monotonic_ns(), 1, "at the end")
    volume.adopt(first, first + length)


def case_disjoint(volume):
    """many threads write parts of the same blocks and sectors: none undoes another's"""
    device = volume.device()
    first, threads = 200 * BLOCK, 12
    slice_bytes = 37 if device.align == 1 else device.align
    blocks = 4
    volume.snapshot("s1")
    slices = [[] for _ in range(threads)]
    for number, offset in enumerate(range(first, first + blocks * BLOCK - slice_bytes + 1, slice_bytes)):
        slices[number % threads].append(offset)
    go = threading.Barrier(threads)

    def writer(number):
        for turn in range(4):
            go.wait(20 * SLOW)
            for offset in slices[number]:
                data = bytes([number * 16 + turn]) * slice_bytes
                device.write(offset, data)
                volume.model[offset:offset + slice_bytes] = data

    with Crew() as crew:
        threads_running = [crew.go(writer, number) for number in range(threads)]
        for turn in range(2):
            volume.run("snapshot", "demo", f"under-load{turn}", volume.store(f"under-load{turn}"))
        for thread in threads_running:
            thread.join()
    volume.expect_content()


def case_deep(volume):
    """a client 64 requests of 1 MiB deep, beside one that asks for single blocks"""
    device = volume.device()
    volume.snapshot("s1")
    noise = random.Random(9).randbytes(MIB + DEPTH)
    pieces = {number * MIB + 3 * SECTOR: noise[number:number + MIB] for number in range(DEPTH)}
    small = volume.transport.open("origin")

    def one(offset):
        device.write(offset, pieces[offset])
        expect(device.read(offset, MIB) == pieces[offset], f"what was written at {offset} does not read back")

    def beside(crew):
        while not crew.over.is_set():
            expect(small.read(0, SECTOR) == volume.model[:SECTOR], "the single block is not what it was")

    try:
        with Crew() as crew:
            crew.go(beside, crew)
            for thread in [crew.go(one, offset) for offset in pieces]:
                thread.join()
    finally:
        small.close()
    for offset, data in pieces.items():
        volume.model[offset:offset + MIB] = data


case_deep.size = DEPTH * MIB + 7 * SECTOR


# ---- under load: snapshots, ends


class Writer:
    """
    One request after the other, to sectors that belong to nobody else: runs of five, every block shared with others.
    Each sector written says whose it is, where, and the number of the write; so what is found tells how far the writer
    was.
    """
    MAGIC = b"rowsnap!"
    RUN = 5

    def __init__(self, number, writers, first, runs):
        self.number = number
        self.starts = [first + (turn * writers + number) * self.RUN for turn in range(runs)]
        self.log = []  # (sector, count) of each write begun, in order
        self.answered = 0
        self.chance = random.Random(number)

    def payload(self, sector, count, sequence):
        return b"".join(self.MAGIC + struct.pack("<QQQ", self.number, sequence, sector + n) * 21 for n in range(count))

    def write(self, device):
        count = self.chance.randrange(1, self.RUN + 1)
        sector = self.chance.choice(self.starts) + self.chance.randrange(self.RUN - count + 1)
        self.log.append((sector, count))
        device.write(sector * SECTOR, self.payload(sector, count, len(self.log)))
        self.answered = len(self.log)

    def work(self, device, crew):
        """Until the crew is called off."""
        while not crew.over.is_set():
            self.write(device)

    def work_until_error(self, device):
        """Until the device fails."""
        try:
            while True:
                self.write(device)
        except OSError:
            pass

    def found(self, image):
        """The number of the last write that can be seen in the image."""
        last = 0
        for start in self.starts:
            for sector in range(start, start + self.RUN):
                data = image[sector * SECTOR:sector * SECTOR + 32]
                if data.startswith(self.MAGIC):
                    last = max(last, struct.unpack("<Q", data[16:24])[0])
        return last

    def apply(self, image, count, after=0):
        """To an image, the writes up to that number."""
        for number, (sector, length) in enumerate(self.log[after:count], after + 1):
            image[sector * SECTOR:(sector + length) * SECTOR] = self.payload(sector, length, number)


def make_writers(count=5, first=BLOCK * 20 // SECTOR + 3, runs=100):
    return [Writer(number, count, first, runs) for number in range(count)]


def snapshot_under_load(volume, name, writers, original):
    """Takes one. It must hold, of each writer, all up to a write between the bounds; this is its content."""
    answered = [writer.answered for writer in writers]
    volume.run("snapshot", "demo", name, volume.store(name))
    begun = [len(writer.log) for writer in writers]
    volume.transport.wait_for(name)
    found = read_all(volume.device(name))
    content = bytearray(original)
    for writer, least, most in zip(writers, answered, begun):
        last = writer.found(found)
        expect(least <= last <= most, f"{name} holds a client's writes up to {last}, and not {least} to {most}")
        writer.apply(content, last)
    expect_same(found, content, f"{name}, taken under load,")
    volume.snapshots[name] = bytes(content)


def case_snapshots_under_load(volume):
    """snapshots taken and dropped under load hold exactly one moment each, and keep it"""
    original = bytes(volume.model)
    writers = make_writers()
    with Crew() as crew:
        for writer in writers:
            crew.go(writer.work, volume.device(), crew)
        for number in range(6):
            snapshot_under_load(volume, f"s{number}", writers, original)
        for name in ("s0", "s3", "s5"):
            volume.drop(name)
            for other in volume.snapshots:
                volume.expect_content(other)
        snapshot_under_load(volume, "s0", writers, original)
    for writer in writers:
        writer.apply(volume.model, writer.answered)


def case_read_while_overwritten(volume):
    """a snapshot's blocks read right while they are overwritten for the first time"""
    written = [0]

    def writer(blocks, data):
        device = volume.device()
        for block in blocks:
            part = data[block * BLOCK:(block + 1) * BLOCK]
            device.write(block * BLOCK, part)
            volume.model[block * BLOCK:block * BLOCK + len(part)] = part
            written[0] += 1

    def reader(device, content, blocks, crew):
        """Reads what is next to be written."""
        while not crew.over.is_set():
            first = max(0, blocks[min(written[0] + 2, len(blocks) - 1)] - 15) * BLOCK
            expect_same(device.read(first, 16 * BLOCK), content[first:first + 16 * BLOCK], f"a snapshot at {first}")

    for turn in range(2):
        volume.snapshot(f"s{turn}")
        blocks = list(range(turn, SIZE // BLOCK, 2))
        random.Random(turn).shuffle(blocks)
        written[0] = 0
        with Crew() as crew:
            for _ in range(2):
                crew.go(reader, volume.device(f"s{turn}"), volume.snapshots[f"s{turn}"], blocks, crew)
            for thread in [crew.go(writer, blocks[n::2], random.Random(turn).randbytes(SIZE)) for n in range(2)]:
                thread.join()
    volume.verify()


def settle(volume, writers):
    """After an end: what was answered is there, and what was under way is there, or not, sector by sector."""
    with open(volume.origin, "rb") as file:
        image = file.read()
    for writer in writers:
        writer.apply(volume.model, writer.answered)
        for number, (sector, count) in enumerate(writer.log[writer.answered:], writer.answered + 1):
            for n in range(sector, sector + count):
                data = image[n * SECTOR:(n + 1) * SECTOR]
                expect(data in (volume.model[n * SECTOR:(n + 1) * SECTOR], writer.payload(n, 1, number)),
                       f"sector {n}, being written at the end, holds neither old nor new")
                volume.model[n * SECTOR:(n + 1) * SECTOR] = data
        writer.log, writer.answered = [], 0
    expect_same(image, volume.model, "the origin after the end")


def case_killed_under_load(volume):
    """SIGKILL with requests in flight: what was answered is there, snapshots are as they were"""
    for turn in range(3):
        volume.snapshot(f"s{turn}")
        # Their sequences begin anew, in sectors of their own: what an earlier turn left must not be taken for theirs.
        writers = make_writers(first=160 + turn * 2200, runs=80)
        device = volume.device()
        with Crew() as crew:
            for writer in writers:
                crew.go(writer.work_until_error, device)
            least = 5 + turn * 20
            wait_until(lambda w=writers, least=least: min(writer.answered for writer in w) > least, "some writes")
            volume.process.kill()
            volume.process.wait()
        volume.leave()
        settle(volume, writers)
        volume.start()
        volume.verify()


def case_stopped_under_load(volume):
    """a stop with requests in flight ends well: what was answered is there, what was not is whole or not there"""
    volume.snapshot("s1")
    writers = make_writers()
    device = volume.device()
    with Crew() as crew:
        for writer in writers:
            crew.go(writer.work_until_error, device)
        wait_until(lambda: min(writer.answered for writer in writers) > 20, "some writes")
        volume.run("stop", "--force", "demo")  # also where somebody has a device open
        expect(volume.process.wait(20 * SLOW) == 0, f"the server exits with {volume.process.returncode}")
        volume.leave()
    settle(volume, writers)
    volume.start()


# ---- peers that go


def hammer(volume, writer, ready):
    """A client in a process of its own, five requests deep, until it is killed."""
    device = volume.transport.open("origin")

    def read_on():
        while True:
            device.read(0, MIB // 4)

    with Crew() as crew:
        for _ in range(4):
            crew.go(read_on)
        while True:
            writer.write(device)
            if writer.answered == 20:
                os.write(ready, b"x")


def case_client_killed(volume):
    """a client killed with requests in flight harms nobody"""
    volume.snapshot("s1")
    ours, theirs = make_writers(count=2)
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            hammer(volume, theirs, send)
        finally:
            os._exit(1)
    os.close(send)
    try:
        device = volume.device()
        with Crew() as crew:
            crew.go(ours.work, device, crew)
            expect(os.read(receive, 1) == b"x", "the client did not get to work")
            wait_until(lambda: ours.answered > 20, "writes of our own")
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            pid, before = 0, ours.answered
            wait_until(lambda: ours.answered > before + 20, "writes after it was killed")
    finally:
        os.close(receive)
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    ours.apply(volume.model, ours.answered)
    settle_killed(volume, theirs)


def settle_killed(volume, writer):
    """Each sector of a writer whose log is lost is as it was, or one of its own writes: it may stay so."""
    volume.device().flush()
    for start in writer.starts:
        for sector in range(start, start + writer.RUN):
            data = volume.device().read(sector * SECTOR, SECTOR)
            sequence = struct.unpack("<Q", data[16:24])[0]
            expect(data in (volume.model[sector * SECTOR:(sector + 1) * SECTOR], writer.payload(sector, 1, sequence)),
                   f"sector {sector} holds what nobody wrote there")
            volume.adopt(sector * SECTOR, (sector + 1) * SECTOR)


def case_connection_lost(volume):
    """a connection that is cut, or a device detached, with requests in flight harms nobody"""
    volume.snapshot("s1")
    ours, theirs = make_writers(count=2)
    for _ in range(4):
        device = volume.transport.open("origin")
        with Crew() as crew:
            crew.go(ours.work, volume.device(), crew)
            crew.go(theirs.work_until_error, device)
            crew.go(error_of, device.read, 0, 2 * MIB)
            goal = theirs.answered + 10
            wait_until(lambda goal=goal: theirs.answered > goal, "writes of the one that will go")
            device.vanish()
            before = ours.answered
            wait_until(lambda before=before: ours.answered > before + 10, "writes after it was gone")
    ours.apply(volume.model, ours.answered)
    settle_killed(volume, theirs)


def case_dropped_while_read(volume):
    """who reads a dropped snapshot gets errors, and others go on"""
    for name in ("s1", "s2", "s3"):
        volume.snapshot(name)
        volume.write(300 * BLOCK + SECTOR, random.Random(name).randbytes(50 * BLOCK))
    readers = {name: volume.transport.open(name) for name in ("s1", "s2", "s3")}
    rounds = dict.fromkeys(readers, 0)
    lost = {}

    def reader(name, content, crew):
        try:
            while not crew.over.is_set():
                expect_same(readers[name].read(299 * BLOCK, 64 * BLOCK), content[299 * BLOCK:363 * BLOCK], name)
                rounds[name] += 1
        except OSError as error:
            lost[name] = error

    writer, = make_writers(count=1, first=1000, runs=200)
    with Crew() as crew:
        for name, content in volume.snapshots.items():
            crew.go(reader, name, content, crew)
        crew.go(writer.work, volume.device(), crew)
        for name, others in (("s1", ("s2", "s3")), ("s3", ("s2",))):
            wait_until(lambda: min(rounds.values()) > 3, "some reads")
            volume.run("drop", "demo", name)
            wait_until(lambda name=name: name in lost, f"an error for who reads {name}")
            readers.pop(name).close()
            rounds.pop(name)
            volume.forget(name)
            before = dict(rounds)
            wait_until(lambda names=others, old=before: all(rounds[n] > old[n] + 3 for n in names), "the others")
    readers["s2"].close()
    expect(sorted(lost) == ["s1", "s3"], f"errors were had by who reads {sorted(lost)}")
    writer.apply(volume.model, writer.answered)
    volume.snapshot("s1")
    volume.write(299 * BLOCK, random.Random(5).randbytes(9 * BLOCK))
    volume.verify()


# ---- running them


def cases():
    return {name[5:]: case for name, case in globals().items() if name.startswith("case_")}


def out_of_time(*_):
    raise TimeoutError("out of time")


def run_case(transport, case):
    """None, or what went wrong."""
    volume = Volume(transport, random_image(getattr(case, "size", SIZE)), *getattr(case, "options", ()))
    signal.setitimer(signal.ITIMER_REAL, CASE_SECONDS)
    try:
        volume.start()
        case(volume)
        volume.finish()
        return None
    except (Wrong, OSError, AssertionError, ValueError, KeyError, threading.BrokenBarrierError,
            subprocess.SubprocessError) as error:
        frame = error.__traceback__
        while frame.tb_next and frame.tb_next.tb_frame.f_code.co_filename == __file__:
            frame = frame.tb_next
        return f"{type(error).__name__}: {error} (line {frame.tb_lineno})\n{volume.said('err')}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        volume.clear()


def main():
    wanted_transport = sys.argv[1] if len(sys.argv) > 1 else None
    wanted_cases = sys.argv[2:]
    signal.signal(signal.SIGALRM, out_of_time)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    count = failed = 0
    for transport in TRANSPORTS:
        if wanted_transport not in (None, transport.name):
            continue
        reason = transport().skip_reason()
        for name, case in cases().items():
            if wanted_cases and name not in wanted_cases:
                continue
            count += 1
            title = f"{transport.name}: {case.__doc__}"
            why = reason
            if case is case_client_killed and not transport.forks:
                why = why or "there is no other process"
            if case is case_killed_under_load and not transport.keeps_unflushed:
                why = why or "what was not flushed may be lost"
            if why:
                print(f"ok {count} - {title} # skip {why}", flush=True)
                continue
            began = time.monotonic()
            wrong = run_case(transport, case)
            failed += wrong is not None
            print(f"{'not ok' if wrong else 'ok'} {count} - {title}", flush=True)
            if wrong:
                print(*(f"# {line}" for line in wrong.splitlines()), sep="\n", flush=True)
            if os.environ.get("ROWSNAP_TIMES"):
                print(f"# {time.monotonic() - began:.2f} s", flush=True)
    print(f"1..{count}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
