# SPDX-License-Identifier: GPL-2.0-or-later
"""
What a volume may hold after it was hurt, and a volume that lives until it is. Not a test by itself (no #! line).

A History is the oracle: for each sector of the origin and of each snapshot the contents that are right. Mostly that is
one; there are more where a request was under way or failed: a write that was begun may have reached any of its sectors.

A Trial is a folder with an origin, stores and a server that works through a life of writes, snapshots and drops, one step
after the other, and keeps the History. The server may end at any moment, and requests may fail. judge() then serves what
is left once more, undisturbed, and compares all of it.
"""
import json
import os
import random
import subprocess
import time

import nbd_client
from format_reader import SUPERBLOCK_BYTES, SUPERBLOCK_OFFSETS, Superblock
from nbd_client import FUA, FLUSH, TRIM, WRITE, ZEROES, Client
from sandbox import ROWSNAP, SLOW, VOLUME, Folder, Server

SECTOR = 512
BLOCK = 4096
EIO = 5
MEMORY = "/dev/shm"


class Wrong(Exception):
    """What the program did is not what it promises."""


def expect(holds, text):
    if not holds:
        raise Wrong(text)


class Content:
    """Of one export: `certain`, but for the sectors in `values`, each of which may hold any of several contents."""

    def __init__(self, certain):
        self.certain = bytearray(certain)
        self.values = {}

    def copy(self):
        made = Content(self.certain)
        made.values = {sector: set(values) for sector, values in self.values.items()}
        return made

    def variants(self, sector):
        return self.values.get(sector) or {bytes(self.certain[sector * SECTOR:(sector + 1) * SECTOR])}

    def overlay(self, offset, data):
        """The sectors that `data` at `offset` touches, each with what its variants become."""
        for sector in range(offset // SECTOR, (offset + len(data) + SECTOR - 1) // SECTOR):
            start = sector * SECTOR
            first, end = max(start, offset), min(start + SECTOR, offset + len(data))
            piece = data[first - offset:end - offset]
            yield sector, {old[:first - start] + piece + old[end - start:] for old in self.variants(sector)}

    def begun(self, offset, data):
        for sector, values in list(self.overlay(offset, data)):
            self.put(sector, self.variants(sector) | values)

    def done(self, offset, data):
        for sector, values in list(self.overlay(offset, data)):
            self.put(sector, values)

    def put(self, sector, values):
        if len(values) == 1:
            self.certain[sector * SECTOR:(sector + 1) * SECTOR] = next(iter(values))
            self.values.pop(sector, None)
        else:
            self.values[sector] = values

    def expect_same(self, found, what, first=0):
        """`found` is from byte `first` on, a multiple of a sector's."""
        if found == self.certain[first:first + len(found)]:
            return
        expect(first + len(found) <= len(self.certain), f"{what}: {len(found)} bytes and not {len(self.certain)}")
        wrong = []
        for at in range(0, len(found), SECTOR):
            if found[at:at + SECTOR] not in self.variants((first + at) // SECTOR):
                wrong.append((first + at) // SECTOR)
        expect(not wrong, f"{what}: {len(wrong)} sectors are wrong: {wrong[:8]}")


class History:
    """The origin's content, and the snapshots': in `there` those that must be there, in `maybe` those that may be."""

    def __init__(self, image):
        self.origin = Content(image)
        self.there, self.maybe = {}, {}

    def copy(self):
        made = History(b"")
        made.origin = self.origin.copy()
        made.there = {name: content.copy() for name, content in self.there.items()}
        made.maybe = {name: content.copy() for name, content in self.maybe.items()}
        return made

    def snapshot_asked(self, name):
        self.maybe[name] = self.origin.copy()

    def snapshot_made(self, name):
        self.there[name] = self.maybe.pop(name)

    def drop_asked(self, name):
        self.maybe[name] = self.there.pop(name)

    def dropped(self, name):
        del self.maybe[name]

    def expect_names(self, names):
        missing = set(self.there) - set(names)
        expect(not missing, f"snapshots are missing: {missing}")
        unknown = set(names) - set(self.there) - set(self.maybe)
        expect(not unknown, f"there are snapshots that were dropped or never asked for: {unknown}")

    def content(self, name):
        return self.origin if name == "origin" else self.there.get(name) or self.maybe[name]


class Stuck(Exception):
    """A snapshot whose outcome is unknown, and writes that wait for it: only a stop helps."""


class Ended(Exception):
    """The server is gone in the middle of it."""


class Trial(Folder):
    """
    `wrapper`: a command that servers are run by, until it is set to []. `program`: what is served by. `place`: where the
    origin and the stores lie, if not in the folder, as a function of "origin" and of a snapshot's name.
    """

    def __init__(self, origin_bytes=160 * BLOCK + SECTOR, seed=1, program=ROWSNAP, parent=None, options=(), place=None):
        if parent is None and os.access(MEMORY, os.W_OK):
            parent = MEMORY
        super().__init__(parent)
        self.chance = random.Random(seed)
        self.program, self.options = program, list(options)
        self.stores_are_given = place is not None
        self.place = place or (lambda name: self.path / ("origin.img" if name == "origin" else f"{name}.store"))
        self.origin = self.place("origin")
        image = self.chance.randbytes(origin_bytes)
        if not self.origin.exists():
            self.origin.touch()
        with open(self.origin, "r+b") as file:
            file.write(image)
            os.fsync(file.fileno())
        self.history = History(image)
        self.wrapper = []
        self.server = self.client = None
        self.errors_allowed = False  # of reads
        self.stopping = False
        self.patience = 60  # seconds for a command
        self.failures = []  # texts: requests and commands that were answered with an error
        self.marks = []     # a function (text) for each who wants to know what is begun and done

    def mark(self, *what):
        for tell in self.marks:
            tell(*what)

    # The server.
    def start(self, *stores):
        """Whether it serves; else server.error_lines() say why not."""
        self.server = Server(self, [self.origin, *stores, *self.options], [*self.wrapper, self.program])
        self.servers = [self.server]
        if self.server.is_ready:
            try:
                self.client = Client(self.socket(), timeout=60 * SLOW).begin("origin")
            except (OSError, nbd_client.Gone):
                raise Ended() from None
        return self.server.is_ready

    def has_ended(self, seconds=20):
        try:
            self.server.process.wait(seconds * SLOW)
            return True
        except subprocess.TimeoutExpired:
            return False

    def stop(self):
        """A clean one, by command. Whether it was."""
        if self.client:
            self.client.close()
            self.client = None
        self.mark("stop")
        self.stopping = True
        done = self.command("stop", VOLUME)
        if done == 0:
            expect(self.has_ended(), "the server stays after a stop")
            self.mark("stopped")
            return self.server.process.returncode == 0
        return False

    def command(self, *arguments, program=None):
        """The exit status of a command. Ended, when it fails because the server has."""
        try:
            result = self.run(program or self.program, *arguments, seconds=self.patience)
        except subprocess.TimeoutExpired:
            if any("writes stop until its state is known" in line for line in self.server.error_lines()):
                raise Stuck() from None
            raise Wrong(f"rowsnap {' '.join(map(str, arguments))} does not end") from None
        if result.returncode != 0:
            if self.server.process.poll() is not None or b"server" in result.stderr and self.has_ended(1):
                raise Ended()
            lines = result.stderr.decode().splitlines()
            expect(lines and lines[-1].startswith("rowsnap "), f"rowsnap {arguments}: {result.returncode}: {lines}")
            self.failures.append(lines[-1])
        return result.returncode

    # Steps of a life.
    def write(self, count=6, flags=0, kinds=(WRITE, WRITE, WRITE, ZEROES), bytes_max=65536, first=0):
        """Requests at the same time, on parts of the origin that do not overlap."""
        size = len(self.history.origin.certain)
        share = (size - first) // count // SECTOR * SECTOR
        requests = []
        for number in range(count):
            length = min(self.chance.choice([512, 700, 4096, 4096, 8192, 20000, bytes_max]), share)
            offset = first + number * share + self.chance.randrange((share - length) // SECTOR + 1) * SECTOR
            kind = self.chance.choice(kinds)
            requests.append((kind, offset, self.chance.randbytes(length) if kind == WRITE else bytes(length)))
        self.do(requests, flags)

    def do(self, requests, flags=0):
        self.mark("write", requests)
        for _, offset, data in requests:
            self.history.origin.begun(offset, data)
        try:
            asked = {}
            for request in requests:
                kind, offset, data = request
                sent = data if kind == WRITE else b""
                cookie = self.client.ask(kind, offset, len(data), sent, flags * (kind != TRIM))
                asked[cookie] = request
            while asked:
                cookie, error = self.client.simple_head()
                self.answered(asked.pop(cookie), error)
        except TimeoutError:
            raise Wrong("a request is not answered") from None
        except (OSError, nbd_client.Gone):
            raise Ended() from None
        self.mark("written", requests, flags)

    def answered(self, request, error):
        kind, offset, data = request
        if error:
            self.failures.append(f"request {kind} at {offset}, {len(data)} bytes: error {error}")
        elif kind != TRIM:
            self.history.origin.done(offset, data)

    def flush(self):
        try:
            error = self.client.do(FLUSH)
        except TimeoutError:
            raise Wrong("a flush is not answered") from None
        except (OSError, nbd_client.Gone):
            raise Ended() from None
        if error:
            self.failures.append(f"flush: error {error}")
        else:
            self.mark("flushed")

    def store(self, name):
        return self.place(name)

    def format(self, name, limit_bytes=0):
        """Small areas, so that there are several: no option asks for them, or for so little room; but all must know them."""
        path = self.store(name)
        if self.stores_are_given and path.exists():
            self.must(ROWSNAP, "format", "--force", path)
        else:
            path.unlink(missing_ok=True)
            self.must(ROWSNAP, "format", path)
        with open(path, "r+b") as file:
            superblock = Superblock.decode(file.read(SUPERBLOCK_BYTES))
            superblock.slots_per_area = 30
            superblock.limit_bytes = limit_bytes
            for offset in SUPERBLOCK_OFFSETS:
                file.seek(offset)
                file.write(superblock.encode())
            os.fsync(file.fileno())

    def snapshot(self, name):
        self.format(name)
        self.history.snapshot_asked(name)
        self.mark("snapshot", name)
        if self.command("snapshot", VOLUME, name, self.store(name)) == 0:
            self.history.snapshot_made(name)
            self.mark("snapshot made", name)

    def drop(self, name):
        if name not in self.history.there:
            return
        self.history.drop_asked(name)
        self.mark("drop", name)
        if self.command("drop", VOLUME, name) == 0:
            self.history.dropped(name)
            self.mark("dropped", name)

    def live(self):
        """Writes, snapshots, overwrites, a drop of the oldest, of one in the middle and of the newest, and a stop."""
        self.write(3)
        self.snapshot("a")
        self.write(4)
        self.flush()
        self.snapshot("b")
        self.write(4, FUA)
        self.snapshot("c")
        self.write(3, kinds=(WRITE, ZEROES, TRIM))
        self.drop("a")
        self.snapshot("d")
        self.write(5)
        self.drop("c")
        self.write(3)
        self.snapshot("e")
        self.write(2)
        self.drop("e")
        self.write(2)
        self.flush()
        self.expect_all(self.errors_allowed)
        return self.stop()

    # What is there.
    def listing(self):
        result = self.run(self.program, "list", VOLUME, "--json")
        expect(result.returncode == 0, f"list: {result.stderr.decode()}")
        return json.loads(result.stdout)["snapshots"]

    def read_all(self, name, piece=1 << 18):
        """Pieces: (offset, data, or the error of each block that cannot be read)."""
        client = Client(self.socket(), timeout=60 * SLOW)
        try:
            client.begin(name)
            at = 0
            while at < client.size:
                length = min(piece, client.size - at)
                data = client.read(at, length)
                if isinstance(data, bytes):
                    yield at, data
                else:
                    for block in range(at, at + length, BLOCK):
                        yield block, client.read(block, min(BLOCK, at + length - block))
                at += length
        finally:
            client.close()

    def expect_export(self, name, errors_allowed):
        """Right, block by block, or, where they are allowed, an error. How many of these."""
        errors = 0
        for at, data in self.read_all(name):
            if isinstance(data, bytes):
                self.history.content(name).expect_same(data, name, at)
            else:
                expect(errors_allowed, f"{name}: block {at // BLOCK}: error {data}")
                expect(data == EIO, f"{name}: block {at // BLOCK}: error {data}")
                errors += 1
        return errors

    def expect_all(self, errors_allowed=False):
        """What is served now. `errors_allowed`: also where no snapshot is broken."""
        errors = 0
        try:
            names = [snapshot["name"] for snapshot in self.listing()]
            self.history.expect_names(names)
            for name in ("origin", *names):
                try:
                    errors += self.expect_export(name, errors_allowed)
                except nbd_client.Gone:
                    raise
                except ConnectionError:
                    expect(name in self.history.maybe, f"{name} is listed, and not exported")
        except TimeoutError:
            raise Wrong("a read is not answered") from None
        except (OSError, nbd_client.Gone, Wrong):
            if self.has_ended(1):
                raise Ended() from None
            raise
        return errors

    def is_a_store(self, *paths):
        """A whole one: without its parts, a store is none."""
        return self.run(ROWSNAP, "list", *paths, "--json").returncode == 0

    def restart(self):
        """Serves what is left: as the record has it, else with all stores that there are."""
        self.wrapper = []
        if self.server and self.server.process.poll() is None:
            self.server.kill()
        if self.client:
            self.client.close()
            self.client = None
        if self.start():
            return
        first = self.server.error_lines()
        stores = [path for path in sorted(self.path.glob("*.store")) if self.is_a_store(path)]
        expect(self.start(*stores), f"it is not served again: {first[-1:]}, then {self.server.error_lines()[-1:]}")

    def judge(self, errors_allowed=False):
        """What is left, undisturbed. How many blocks of snapshots are errors (lost, or the chain is broken)."""
        self.restart()
        states = {snapshot["state"] for snapshot in self.listing()}
        began = time.monotonic()
        while "folding" in states and time.monotonic() - began < 20 * SLOW:
            time.sleep(0.02)
            states = {snapshot["state"] for snapshot in self.listing()}
        errors = self.expect_all(errors_allowed)
        self.write(2)
        self.expect_all(errors_allowed)
        parts = {one["name"]: [part["store"] for part in one["parts"] or []] for one in self.listing()}
        expect(not self.failures or errors_allowed, f"after the restart: {self.failures}")
        expect(self.stop(), f"no clean stop: {self.server.error_lines()[-3:]}")
        self.history.origin.expect_same(self.origin.read_bytes(), "the origin's image")
        for path in sorted(self.path.glob("*.store")):
            # One that is in no chain may be as its making or its wiping was cut off.
            stores = parts.get(path.stem, [path])
            if path.stem in self.history.there and self.is_a_store(*stores):
                result = self.run(ROWSNAP, "check", *stores)
                expect(result.returncode == 0 or errors_allowed, f"check {path}: {result.returncode}: {result.stdout}")
        return errors
