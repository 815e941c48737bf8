# SPDX-License-Identifier: GPL-2.0-or-later
"""
Damaged stores, one defect each, made from a healthy chain. Not a test by itself (no #! line).

    healthy = make_chain()              three snapshots, a, b and c, by the real server
    for defect in DEFECTS:
        case = Case(healthy)            or Case(healthy, killed=True), if the defect says so
        defect.apply(case)              changes case.stores, case.origin, case.arguments
        case.write(folder)

A defect is either a torn or rotten byte, or a statement that cannot be, with right checksums. What stays out are false
statements that no reader can tell from true ones: a log that is said to be shorter than it was, an exception that is
said to be another block's, a store that is said to have taken up the next.

The true contents are known: case.truth[NAME]. In a killed case, c is not clean and its durable mark lies some slots
before the log's end. What the slots past the mark preserve was not overwritten on the origin yet: whether they are
taken to be durable or are cut, every snapshot is whole.
"""
import dataclasses
import functools
import io
import struct
import typing

import format_reader
from format_reader import (ACTIVE, DATA, EMPTY, FINGERPRINT, LOST, MERGING, METADATA_BYTES, NIL, PREPARED, SEALED,
                           SUPERBLOCK_BYTES, SUPERBLOCK_OFFSETS, VOID, ZERO, Area, Entry, Header, Store, Superblock)
from sandbox import KIB, Volume

NAMES = ("a", "b", "c")
BLOCK_BYTES = 4 * KIB
SLOTS_PER_AREA = 12
ORIGIN_BYTES = 200 * BLOCK_BYTES + 512
SLOTS_PAST_MARK = 17  # of a killed case: more than an area's
SECTOR_BYTES = 512
STRANGER = bytes(range(1, 17))  # no store's UUID
LAST = 2**64 - 1

MERGE_TARGET = b"\7" * 16  # of a snapshot that is not there

# What must hold when it is served: all can be read; some blocks give an error; either; or nothing is served.
WHOLE, LOSES, SAFE, REFUSES = "whole", "loses", "safe", "refuses"


# ---- a healthy chain


@dataclasses.dataclass
class Healthy:
    origin: bytes
    stores: dict   # name: bytes
    truth: dict    # name: bytes
    older_c: bytes  # c, cleanly stopped, some time before
    empty: bytes   # a formatted store
    foreign: bytes  # a store of another volume


def load(volume, seed):
    """Writes of whole, half and zeroed blocks, some of them to the fingerprint's sectors."""
    random = volume.chance.randrange
    volume.qemu_io(f"write -P {seed} {random(150) * 4}k {random(40, 80)}k", f"write -z {random(100) * 4}k 60k",
                   f"write -P {seed + 1} {random(8) * 512} 512", f"write -P {seed + 2} {200 * 4}k 512",
                   *(f"write -P {seed + 3} {random(190 * 8) * 512} 5k" for _ in range(6)))


def without_room(data):
    """The server allocates ahead; what lies behind the last area in use is of no interest."""
    image = Image(data)
    return bytes(data[:image.store.area_offset(-(-image.slots // SLOTS_PER_AREA))])


def make_chain():
    with Volume(ORIGIN_BYTES, BLOCK_BYTES, SLOTS_PER_AREA, seed=7) as volume:
        with open(volume.origin, "r+b") as origin:
            origin.seek(100 * BLOCK_BYTES)
            origin.write(bytes(30 * BLOCK_BYTES))
        volume.start()
        truth = {}
        for number, name in enumerate(NAMES):
            volume.snapshot(name)
            truth[name] = volume.origin.read_bytes()
            load(volume, 16 * number + 1)
        volume.stop()
        older_c = (volume.path / "c.store").read_bytes()
        volume.start()
        load(volume, 99)
        volume.stop()
        volume.rowsnap("format", "empty.store")
        stores = {name: without_room((volume.path / f"{name}.store").read_bytes()) for name in NAMES}
        healthy = Healthy(volume.origin.read_bytes(), stores, truth, older_c,
                          (volume.path / "empty.store").read_bytes(), b"")
    with Volume(ORIGIN_BYTES, BLOCK_BYTES, SLOTS_PER_AREA, seed=8) as volume:
        volume.start()
        volume.snapshot("foreign")
        volume.stop()
        return dataclasses.replace(healthy, foreign=(volume.path / "foreign.store").read_bytes())


# ---- the bytes of a store, to be changed


@functools.cache
def parsed(data):
    """As it was before any damage."""
    return Store("an image", data)


class Image:
    """Offsets are in bytes, copies are 0 and 1; what is set gets the right checksum unless it is poked or flipped."""

    def __init__(self, data):
        self.data = bytearray(data)
        self.store = parsed(bytes(data))
        self.superblock = self.store.superblock
        self.slots = len(self.store.log)

    def poke(self, offset, data):
        self.data.extend(bytes(max(0, offset - len(self.data))))
        self.data[offset:offset + len(data)] = data

    def flip(self, offset, bit=0):
        self.data[offset] ^= 1 << bit

    def truncate(self, length):
        del self.data[length:]

    # superblocks
    def copy(self, copy):
        data = self.data[SUPERBLOCK_OFFSETS[copy]:SUPERBLOCK_OFFSETS[copy] + SUPERBLOCK_BYTES]
        return bytes(data.ljust(SUPERBLOCK_BYTES, b"\0"))

    def set(self, copies=(0, 1), **fields):
        for copy in copies:
            superblock = dataclasses.replace(Superblock.decode(self.copy(copy)), **fields)
            self.poke(SUPERBLOCK_OFFSETS[copy], superblock.encode())

    # areas
    def metadata_at(self, area, copy):
        return self.store.area_offset(area) + copy * (self.superblock.area_bytes - METADATA_BYTES)

    def header(self, area, copy):
        return Header.decode(self.data[self.metadata_at(area, copy):][:32].ljust(32, b"\0"))

    def set_header(self, number, /, copies=(0, 1), **fields):
        """Of area `number`."""
        for copy in copies:
            header = dataclasses.replace(self.header(number, copy), **fields)
            self.poke(self.metadata_at(number, copy), header.encode(self.store.seed))

    def entry_at(self, slot, copy):
        area, index = divmod(slot, SLOTS_PER_AREA)
        return self.metadata_at(area, copy) + 32 + 16 * index

    def set_entry(self, slot, entry, copies=(0, 1), seed=None):
        data = entry.encode(self.store.seed if seed is None else seed, *divmod(slot, SLOTS_PER_AREA))
        for copy in copies:
            self.poke(self.entry_at(slot, copy), data)

    def slot_at(self, slot):
        return self.store.slot_offset(slot)

    def first_slot(self, kind=DATA, after=0):
        """The first slot from there on with an entry of that type."""
        return next(slot for slot in range(after, self.slots) if self.store.log[slot].type == kind)

    def append(self, kind, block, content=b"", value=0):
        """One more entry, behind the log's end, in a clean store; with content, a whole block of it."""
        area = self.slots // SLOTS_PER_AREA
        if content:
            self.poke(self.slot_at(self.slots), content)
            value = format_reader.low(content, self.store.seed)
        for copy in (0, 1):
            self.poke(self.metadata_at(area, copy), Header(b"RSar", area, 77, self.slots, 0).encode(self.store.seed))
        self.set_entry(self.slots, Entry(kind, block, value))
        self.set_header(area, entry_count=self.slots % SLOTS_PER_AREA + 1)
        self.slots += 1
        self.set(log_slots=self.slots, durable_slots=self.slots)


class Case:
    """What one defect is applied to."""

    def __init__(self, healthy, killed=False):
        self.healthy = healthy
        self.origin = bytearray(healthy.origin)
        self.stores = {name: Image(data) for name, data in healthy.stores.items()}
        self.others = {}  # file name: bytes
        self.arguments = [f"{name}.store" for name in NAMES]
        self.truth = healthy.truth
        self.mark = None
        self.lies = False  # a false statement was made that a reader may believe
        if killed:
            self.kill()

    def __getattr__(self, name):
        try:
            return self.stores[name]
        except KeyError:
            raise AttributeError(name) from None

    def kill(self):
        """Clears c's clean mark, moves its durable mark back, and undoes what was written to the origin since."""
        c = self.c
        self.mark = c.slots - SLOTS_PAST_MARK
        for slot in range(self.mark, c.slots):
            for block in c.store.log[slot].names():
                if c.store.by_block[block] >= self.mark:
                    old = self.truth["c"][block * BLOCK_BYTES:(block + 1) * BLOCK_BYTES]
                    self.origin[block * BLOCK_BYTES:block * BLOCK_BYTES + len(old)] = old
        numbers = format_reader.fingerprint(io.BytesIO(self.origin), len(self.origin))
        c.set(clean=0, log_slots=0, durable_slots=self.mark, fingerprint=numbers)
        for area in range(-(-c.slots // SLOTS_PER_AREA)):
            for copy in (0, 1):
                if c.header(area, copy).durable_slots > self.mark:
                    c.set_header(area, (copy,), durable_slots=self.mark)

    def add(self, name, data):
        self.others[name] = bytes(data)
        self.arguments.append(name)

    def write(self, folder):
        """All files, into that folder, as they are to be served from there."""
        (folder / "disk.img").write_bytes(self.origin)
        for name, image in self.stores.items():
            (folder / f"{name}.store").write_bytes(image.data)
        for name, data in self.others.items():
            (folder / name).write_bytes(data)


# ---- the defects


@dataclasses.dataclass
class Defect:
    name: str
    apply: typing.Callable
    serve: str                  # WHOLE, LOSES, SAFE or REFUSES
    killed: bool = False
    missing: tuple = ()         # snapshots that need not be there
    origin: bool = False        # a refusal names the origin


DEFECTS = []


def defect(name, serve, **more):
    def remember(function):
        DEFECTS.append(Defect(name, function, serve, **more))
        return function
    return remember


def add(name, serve, function, **more):
    DEFECTS.append(Defect(name, function, serve, **more))


def torn(image, offset):
    """Sectors from the second on are another write's."""
    image.poke(offset + SECTOR_BYTES, b"\xa5" * (METADATA_BYTES - SECTOR_BYTES))


# superblock copies

for which in (0, 1):
    at = SUPERBLOCK_OFFSETS[which]
    add(f"superblock copy {which} zeroed", WHOLE, lambda case, at=at: case.c.poke(at, bytes(4096)))
    add(f"superblock copy {which} torn", WHOLE, lambda case, at=at: torn(case.b, at))
    add(f"superblock copy {which} with a bit flipped", WHOLE, lambda case, at=at: case.c.flip(at + 210, 3))
    add(f"superblock copy {which} with another magic", WHOLE, lambda case, at=at: case.a.poke(at, b"ROWSNAP"))
    add(f"superblock copy {which} with a wrong checksum", WHOLE, lambda case, at=at: case.c.flip(at + 4095, 7))
    add(f"superblock copy {which} of an older generation", WHOLE,
        lambda case, which=which: case.c.set((which,), generation=case.c.superblock.generation - 1, durable_slots=0))
    add(f"superblock copy {which} with a field out of range", WHOLE,
        lambda case, which=which: case.c.set((which,), block_bytes=4097))
    add(f"superblock copy {which} of another version", REFUSES,
        lambda case, which=which: case.b.set((which,), version=2))
    add(f"superblock copy {which} with an unknown incompat feature", REFUSES,
        lambda case, which=which: case.c.set((which,), incompat=2))
    add(f"superblock copy {which} of another store", REFUSES,
        lambda case, which=which: case.c.poke(SUPERBLOCK_OFFSETS[which], case.b.copy(which)))


@defect("superblock copies of one generation that differ, harmlessly", WHOLE)
def differ_harmlessly(case):
    case.c.set((1,), created_ns=1)


@defect("superblock copies of one generation that differ in the broken mark", SAFE)
def differ_in_mark(case):
    case.c.set((1,), broken_reason=1, broken_ns=5)


@defect("both superblock copies torn", REFUSES)
def both_torn(case):
    torn(case.b, 0)
    torn(case.b, SUPERBLOCK_OFFSETS[1])


@defect("both superblock copies zeroed", REFUSES)
def both_zeroed(case):
    case.c.poke(0, bytes(4096))
    case.c.poke(SUPERBLOCK_OFFSETS[1], bytes(4096))


@defect("one superblock copy damaged, the other of another version", REFUSES)
def damaged_and_newer(case):
    case.a.flip(300)
    case.a.set((1,), version=3)


@defect("unknown compat features", WHOLE)
def compat(case):
    case.c.set(compat=0x80000001)


@defect("unknown ro_compat features", REFUSES)
def ro_compat(case):
    case.a.set(ro_compat=1)


# superblock fields, with right checksums in both copies

for what, fields in {
    "header_bytes too small": {"header_bytes": 447},
    "header_bytes too large": {"header_bytes": 4089},
    "block_bytes 0": {"block_bytes": 0},
    "block_bytes too small": {"block_bytes": 2048},
    "block_bytes no power of two": {"block_bytes": 12288},
    "block_bytes too large": {"block_bytes": 131072},
    "slots_per_area 0": {"slots_per_area": 0},
    "slots_per_area too large": {"slots_per_area": 255},
    "slots_per_area huge": {"slots_per_area": 2**32 - 1},
    "first_area_offset 0": {"first_area_offset": 0},
    "first_area_offset elsewhere": {"first_area_offset": 2 << 20},
    "limit_bytes without room for an area": {"limit_bytes": (1 << 20) + 4096},
    "limit_bytes less than the log takes": {"limit_bytes": (1 << 20) + 60 * KIB},
    "origin_bytes 0": {"origin_bytes": 0},
    "origin_bytes odd": {"origin_bytes": ORIGIN_BYTES + 1},
    "origin_bytes too large": {"origin_bytes": (1 << 44) + 512},
    "origin_bytes huge": {"origin_bytes": 1 << 44},
    "origin_bytes of a smaller one": {"origin_bytes": ORIGIN_BYTES - 512},
    "state unknown": {"state": 5},
    "state empty, with all else of a snapshot": {"state": EMPTY},
    "state prepared, with a log": {"state": PREPARED},
    "state active, with a successor": {"state": ACTIVE},
    "role unknown": {"role": 3},
    "role 0": {"role": 0},
    "role fork": {"role": 2},
    "sequence 0": {"sequence": 0},
    "sequence past the next one's": {"sequence": 1000},
    "sequence the next one's": {"sequence": 3},
    "store UUID nil": {"uuid": NIL},
    "volume UUID nil": {"volume": NIL},
    "volume UUID another": {"volume": STRANGER},
    "durable_slots too large": {"durable_slots": 2**32 - 1},
    "durable_slots past the log's end": {"durable_slots": 10**6},
    "log_slots too large": {"log_slots": 2**32},
    "log_slots beyond the file": {"log_slots": 10**6},
    "log_slots and durable_slots beyond the file": {"log_slots": 0xfffffff0, "durable_slots": 0xfffffff0},
    "clean neither 0 nor 1": {"clean": 2},
    "clean 0 in a sealed store": {"clean": 0},
    "broken reason unknown": {"broken_reason": 6},
    "broken time without a reason": {"broken_ns": 1},
    "witness without a reason": {"witness": STRANGER},
    "witness reason without a witness": {"witness_reason": 1},
    "witness reason unknown": {"witness": STRANGER, "witness_reason": 9},
    "witness time without a witness": {"witness_ns": 1},
    "fold source from nowhere": {"fold_source": STRANGER},
    "fold_base_slots too large": {"fold_base_slots": 2**32},
    "successor nil": {"successor": NIL},
    "successor from nowhere": {"successor": STRANGER},
    "name with a control character": {"name_bytes": b"b\x1b[2J"},
    "name empty": {"name_bytes": b""},
    "name not terminated": {"name_bytes": b"b" * 64},
    "name with something behind it": {"name_bytes": b"b\0b"},
    "name with a slash": {"name_bytes": b"../b"},
    "name that begins with a dot": {"name_bytes": b".b"},
    "name origin": {"name_bytes": b"origin"},
    "name another snapshot's": {"name_bytes": b"a"},
    "name with bytes above ASCII": {"name_bytes": "bücher".encode()},
}.items():
    add(f"b: {what}", REFUSES, lambda case, fields=fields: case.b.set(**fields))

for what, other in {"the store itself": "b", "the predecessor": "a"}.items():
    add(f"b: successor {what}", REFUSES,
        lambda case, other=other: case.b.set(successor=case.stores[other].superblock.uuid))
    add(f"b: fold source {what}", REFUSES,
        lambda case, other=other: case.b.set(fold_source=case.stores[other].superblock.uuid))
add("b: predecessor the store itself", REFUSES, lambda case: case.b.set(predecessor=case.b.superblock.uuid))
add("b: witness the store itself", REFUSES,
    lambda case: case.b.set(witness=case.b.superblock.uuid, witness_reason=1))
add("b: fold_base_slots past the log's end", REFUSES,
    lambda case: case.b.set(fold_source=case.c.superblock.uuid, fold_base_slots=10**6))
add("b: fold source of two at once", REFUSES,
    lambda case: (case.a.set(fold_source=case.b.superblock.uuid), case.b.set(fold_source=case.c.superblock.uuid)))
add("b: block size another, and a right one", REFUSES, lambda case: case.b.set(block_bytes=8192))
add("b: state merging", WHOLE,  # without the newest's mark nothing was written: it is taken back
    lambda case: case.b.set(state=MERGING, fold_source=MERGE_TARGET, clean=1))
add("c: state merging", REFUSES, lambda case: case.c.set(state=MERGING, fold_source=MERGE_TARGET, clean=1))
add("c: fold source from nowhere", REFUSES, lambda case: case.c.set(fold_source=STRANGER))
add("c: sealed, and its successor the oldest", REFUSES,
    lambda case: case.c.set(state=SEALED, successor=case.a.superblock.uuid))
add("c: sealed, and its successor from nowhere", REFUSES,
    lambda case: case.c.set(state=SEALED, successor=STRANGER))
add("c: fingerprint another", REFUSES, lambda case: case.c.set(fingerprint=[5] * 16), origin=True)

# fields that say something else, which is no fault, or costs no more than it must

add("b: predecessor nil", WHOLE, lambda case: case.b.set(predecessor=NIL))
add("b: predecessor from nowhere", WHOLE, lambda case: case.b.set(predecessor=STRANGER))
add("a: predecessor from nowhere", WHOLE, lambda case: case.a.set(predecessor=STRANGER))
add("c: sealed without a successor", WHOLE, lambda case: case.c.set(state=SEALED))
add("c: sequence the last there is", WHOLE, lambda case: case.c.set(sequence=LAST))
add("c: generation the last there is", WHOLE, lambda case: case.c.set(generation=LAST))
add("c: times the last there are", WHOLE,
    lambda case: case.c.set(created_ns=LAST, sealed_ns=LAST))
add("c: broken", LOSES, lambda case: case.c.set(broken_reason=1, broken_ns=LAST))
add("a: witness of c", LOSES,
    lambda case: case.a.set(witness=case.c.superblock.uuid, witness_reason=2, witness_ns=1))
add("a: witness of a store from nowhere", WHOLE, lambda case: case.a.set(witness=STRANGER, witness_reason=2))
add("a: b being folded into it, as it says", WHOLE,
    lambda case: case.a.set(fold_source=case.b.superblock.uuid, fold_base_slots=case.a.slots), missing=("b",))
add("c: another, possible slots_per_area", LOSES, lambda case: case.c.set(slots_per_area=13))
add("c: log_slots past the last entry", LOSES, lambda case: case.c.set(log_slots=case.c.slots + 1))
add("c: durable_slots far beyond the log, killed", LOSES, lambda case: case.c.set(durable_slots=0xfffffff0),
    killed=True)
add("c: durable_slots somewhat beyond the log, killed", LOSES,
    lambda case: case.c.set(durable_slots=case.c.slots + 2), killed=True)
add("c: durable_slots 0, killed", WHOLE, lambda case: case.c.set(durable_slots=0), killed=True)
add("c: nothing else, killed", WHOLE, lambda case: None, killed=True)


def fingerprint_in_log(case):
    """The superblock is as it was written when the snapshot was taken; what came later only the log tells."""
    numbers = format_reader.fingerprint(io.BytesIO(case.truth["c"]), len(case.truth["c"]))
    case.c.set(durable_slots=0, fingerprint=numbers)


add("c: the fingerprint in the log only, killed", WHOLE, fingerprint_in_log, killed=True)
add("c: the fingerprint in the log only, and a mark far beyond it, killed", LOSES,
    lambda case: (fingerprint_in_log(case), case.c.set_header(0, durable_slots=0xfffffff0)), killed=True)


@defect("c: clean, with entries past the log's end", WHOLE)
def entries_past_end(case):
    slots = case.c.slots
    free = next(block for block in range(199) if block not in case.c.store.by_block)
    case.c.append(DATA, free, b"\x77" * BLOCK_BYTES)
    case.c.set(log_slots=slots, durable_slots=slots)


# area metadata

for which in (0, 1):
    add(f"area 0 of a: metadata copy {which} zeroed", WHOLE,
        lambda case, which=which: case.a.poke(case.a.metadata_at(0, which), bytes(METADATA_BYTES)))
    add(f"area 1 of a: metadata copy {which} random", WHOLE,
        lambda case, which=which: case.a.poke(case.a.metadata_at(1, which), b"\x5a" * METADATA_BYTES))
    add(f"area 0 of c: metadata copy {which} torn, killed", WHOLE,
        lambda case, which=which: case.c.poke(case.c.metadata_at(0, which), bytes(100)), killed=True)
    add(f"area 1 of b: metadata copy {which} with the header of another area", WHOLE,
        lambda case, which=which: case.b.set_header(1, (which,), area=0))
    add(f"area 1 of c: metadata copy {which} with the last write count", WHOLE,
        lambda case, which=which: case.c.set_header(1, (which,), write_count=LAST))
    add(f"last area of c: metadata copy {which} with the last write count, killed", WHOLE,
        lambda case, which=which: case.c.set_header((case.c.slots - 1) // SLOTS_PER_AREA, (which,),
                                                    write_count=LAST), killed=True)
    add(f"last area of c: metadata copy {which} with the last write count", WHOLE,
        lambda case, which=which: case.c.set_header((case.c.slots - 1) // SLOTS_PER_AREA, (which,),
                                                    write_count=LAST))
    add(f"area 0 of a: metadata copy {which} with entry_count too large", WHOLE,
        lambda case, which=which: case.a.set_header(0, (which,), entry_count=SLOTS_PER_AREA + 1))
    add(f"area 0 of c: metadata copy {which} with durable_slots far beyond the log, killed", LOSES,
        lambda case, which=which: case.c.set_header(0, (which,), durable_slots=0xfffffff0), killed=True)
    add(f"area 0 of c: metadata copy {which} with durable_slots out of range, killed", WHOLE,
        lambda case, which=which: case.c.set_header(0, (which,), durable_slots=0xffffffff), killed=True)


add("a: durable_slots of a header past the log's end", WHOLE,
    lambda case: case.a.set_header(0, (1,), durable_slots=case.a.slots + 5))


@defect("area 0 of a: both metadata copies zeroed", LOSES)
def metadata_zeroed(case):
    for which in (0, 1):
        case.a.poke(case.a.metadata_at(0, which), bytes(METADATA_BYTES))


@defect("area 0 of a: both metadata copies torn, at different entries", WHOLE)
def metadata_torn_differently(case):
    case.a.poke(case.a.entry_at(0, 0), bytes(5 * 16))
    case.a.poke(case.a.entry_at(5, 1), bytes(7 * 16))


@defect("both metadata copies torn before the mark, killed", LOSES, killed=True)
def torn_before_mark(case):
    for which in (0, 1):
        case.c.poke(case.c.entry_at(case.mark - 1, which), bytes(16))


@defect("both metadata copies torn past the mark, killed", WHOLE, killed=True)
def torn_past_mark(case):
    for which in (0, 1):
        case.c.poke(case.c.entry_at(case.mark + 2, which), bytes(16))


@defect("area 0 of a: both headers another area's", WHOLE)
def headers_of_another(case):
    case.a.set_header(0, area=3)


@defect("area 0 of a: both headers without magic", WHOLE)
def headers_without_magic(case):
    case.a.set_header(0, magic=b"none")


@defect("area 1 of a: write counts equal", WHOLE)
def write_counts_equal(case):
    case.a.set_header(1, write_count=7)


@defect("area 0 of a: metadata copies swapped with area 1's", LOSES)
def metadata_swapped(case):
    for which in (0, 1):
        places = [case.a.metadata_at(area, which) for area in (0, 1)]
        parts = [bytes(case.a.data[place:place + METADATA_BYTES]) for place in places]
        case.a.poke(places[0], parts[1])
        case.a.poke(places[1], parts[0])


@defect("the last area's headers gone, killed", WHOLE, killed=True)
def last_headers_gone(case):
    for which in (0, 1):
        case.c.poke(case.c.metadata_at((case.c.slots - 1) // SLOTS_PER_AREA, which), bytes(32))


# entries: a bit flipped, or a statement that cannot be

add("an entry with a bit flipped, in copy 0", WHOLE, lambda case: case.a.flip(case.a.entry_at(3, 0)))
add("an entry with a bit flipped, in copy 1", WHOLE, lambda case: case.a.flip(case.a.entry_at(3, 1) + 14))
add("an entry with a bit flipped, in both copies", LOSES,
    lambda case: (case.a.flip(case.a.entry_at(3, 0)), case.a.flip(case.a.entry_at(3, 1), 5)))

for what, bad in {
    "of data, beyond the origin": Entry(DATA, 201, 5),
    "of data, far beyond the origin": Entry(DATA, 2**56 - 1, 5),
    "of zeroes, over the origin's end": Entry(ZERO, 200, 2),
    "of zeroes, a huge run": Entry(ZERO, 0, 2**32 - 1),
    "of zeroes, an empty run": Entry(ZERO, 5, 0),
    "of zeroes, far beyond the origin": Entry(ZERO, 2**56 - 1, 2**32 - 1),
    "lost, with a value": Entry(LOST, 5, 1),
    "lost, beyond the origin": Entry(LOST, 201, 0),
    "void, with a block": Entry(VOID, 5, 0),
    "void, with a value": Entry(VOID, 0, 5),
    "a fingerprint, with a block": Entry(FINGERPRINT, 5, 1),
    "of type 0": Entry(0, 5, 1),
    "of type 6": Entry(6, 5, 1),
    "of type 255": Entry(255, 2**56 - 1, 2**32 - 1),
}.items():
    add(f"an entry {what}", LOSES, lambda case, bad=bad: case.a.set_entry(4, bad))

for what, bad in {
    "of data, beyond the origin": Entry(DATA, 201, 5),
    "of zeroes, over the origin's end": Entry(ZERO, 200, 2),
    "of type 6": Entry(6, 5, 1),
}.items():
    add(f"an entry {what}, in copy 0", WHOLE, lambda case, bad=bad: case.a.set_entry(4, bad, copies=(0,)))
    add(f"an entry {what}, before the mark, killed", LOSES, lambda case, bad=bad: case.c.set_entry(4, bad), killed=True)
    add(f"an entry {what}, past the mark, killed", WHOLE,
        lambda case, bad=bad: case.c.set_entry(case.mark + 3, bad), killed=True)


@defect("an entry under another store's seed", LOSES)
def foreign_seed(case):
    case.a.set_entry(4, case.a.store.log[4], seed=case.b.store.seed)


@defect("an entry that is another slot's", LOSES)
def entry_moved(case):
    for which in (0, 1):
        at = case.a.entry_at(4, which)
        case.a.poke(at, case.a.data[at + 16:at + 32])


@defect("a lost block", LOSES)
def lost_block(case):
    slot = case.a.first_slot()
    case.a.set_entry(slot, Entry(LOST, case.a.store.log[slot].block, 0))


add("a void slot at the end", WHOLE, lambda case: case.c.append(VOID, 0))
add("a fingerprint of nonsense at the end, clean", WHOLE,
    lambda case: case.c.append(FINGERPRINT, 0, b"\x99" * BLOCK_BYTES))
add("a fingerprint whose slot is zeroed, killed", SAFE,
    lambda case: case.c.poke(case.c.slot_at(case.c.first_slot(FINGERPRINT)), bytes(BLOCK_BYTES)), killed=True)
add("a block in two slots, the second with other data", WHOLE,
    lambda case: case.c.append(DATA, case.c.store.log[case.c.first_slot()].block, b"\x66" * BLOCK_BYTES))
add("a zero run over what is preserved already", WHOLE,
    lambda case: case.c.append(ZERO, case.c.store.log[case.c.first_slot()].block, value=1))
add("a gap in the entries before the mark, killed", LOSES,
    lambda case: [case.c.poke(case.c.entry_at(7, which), bytes(16)) for which in (0, 1)], killed=True)
add("a gap in the entries past the mark, killed", WHOLE,
    lambda case: [case.c.poke(case.c.entry_at(case.mark + 5, which), bytes(16)) for which in (0, 1)], killed=True)

# data

add("data with a bit flipped", LOSES, lambda case: case.a.flip(case.a.slot_at(case.a.first_slot()) + 1000, 4))
add("data zeroed", LOSES, lambda case: case.b.poke(case.b.slot_at(case.b.first_slot()), bytes(BLOCK_BYTES)))
add("data with a bit flipped before the mark, killed", LOSES,
    lambda case: case.c.flip(case.c.slot_at(case.c.first_slot())), killed=True)
add("data zeroed past the mark, killed", WHOLE,
    lambda case: case.c.poke(case.c.slot_at(case.c.first_slot(after=case.mark + 1)), bytes(BLOCK_BYTES)), killed=True)
add("data with a bit flipped at the mark, killed", WHOLE,
    lambda case: case.c.flip(case.c.slot_at(case.c.first_slot(after=case.mark))), killed=True)


@defect("data of two slots swapped", LOSES)
def data_swapped(case):
    slots = [case.a.first_slot(after=first) for first in (0, 9)]
    contents = [case.a.store.slot(slot) for slot in slots]
    case.a.poke(case.a.slot_at(slots[0]), contents[1])
    case.a.poke(case.a.slot_at(slots[1]), contents[0])


@defect("the padding of the last, partial block not zero", LOSES)
def padding(case):
    holder = next(image for image in case.stores.values() if 200 in image.store.by_block)
    holder.flip(holder.slot_at(holder.store.by_block[200]) + 600)


@defect("data with a bit flipped before a mark that only copy 1 tells, killed", LOSES)
def mark_in_copy_1(case):
    """No writer went on behind it: the superblock and copy 0 are from before, as an idle moment leaves them."""
    last = case.c.slots - case.c.slots % SLOTS_PER_AREA
    case.c.set(clean=0, log_slots=0, durable_slots=0)
    for area in range(-(-case.c.slots // SLOTS_PER_AREA)):
        case.c.set_header(area, (0, 1), durable_slots=0)
    case.c.set_header(last // SLOTS_PER_AREA - 1, (1,), durable_slots=last, write_count=1000)
    for area in range(last // SLOTS_PER_AREA, -(-case.c.slots // SLOTS_PER_AREA)):
        for which in (0, 1):
            case.c.poke(case.c.metadata_at(area, which), bytes(METADATA_BYTES))
    # what the area after the mark preserved was not overwritten yet
    for slot in range(last, case.c.slots):
        for block in case.c.store.log[slot].names():
            if case.c.store.by_block[block] >= last:
                old = case.truth["c"][block * BLOCK_BYTES:(block + 1) * BLOCK_BYTES]
                case.origin[block * BLOCK_BYTES:block * BLOCK_BYTES + len(old)] = old
    case.c.set(fingerprint=format_reader.fingerprint(io.BytesIO(case.origin), len(case.origin)))
    case.c.flip(case.c.slot_at(case.c.first_slot(after=last - SLOTS_PER_AREA)))


# the file's size


def last_data_at(image):
    return image.slot_at(max(slot for slot, entry in enumerate(image.store.log) if entry.type == DATA))


for what, length, clean, killed in (
    ("to nothing", lambda image: 0, REFUSES, REFUSES),
    ("inside superblock copy 0", lambda image: 100, REFUSES, REFUSES),
    ("between the superblocks", lambda image: 100 * KIB, REFUSES, LOSES),
    ("inside superblock copy 1", lambda image: SUPERBLOCK_OFFSETS[1] + 512, REFUSES, LOSES),
    ("before the first area", lambda image: 1 << 20, REFUSES, LOSES),
    ("inside the first area's metadata", lambda image: (1 << 20) + 100, REFUSES, LOSES),
    ("at the second area's begin", lambda image: image.metadata_at(1, 0), REFUSES, LOSES),
    ("inside the second area's data", lambda image: image.slot_at(SLOTS_PER_AREA + 5) + 100, REFUSES, LOSES),
    ("at the last area's begin", lambda image: image.metadata_at((image.slots - 1) // SLOTS_PER_AREA, 0), REFUSES,
     WHOLE),
    ("inside the last area's metadata", lambda image: image.metadata_at((image.slots - 1) // SLOTS_PER_AREA, 0) + 50,
     LOSES, WHOLE),
    ("inside the last area's data", lambda image: last_data_at(image) + 100, LOSES, WHOLE),
    ("by one byte", lambda image: len(image.data) - 1, WHOLE, WHOLE),
):
    add(f"c cut short {what}", clean, lambda case, length=length: case.c.truncate(length(case.c)))
    add(f"c cut short {what}, killed", killed, lambda case, length=length: case.c.truncate(length(case.c)),
        killed=True)
add("c cut short before the second area's last metadata, killed", LOSES,
    lambda case: case.c.truncate(case.c.metadata_at(1, 1)), killed=True)
add("a longer, with garbage", WHOLE, lambda case: case.a.data.extend(b"\xee" * 100001))
add("c longer, with garbage, killed", WHOLE, lambda case: case.c.data.extend(b"\xee" * 100001), killed=True)

# which stores, and what origin

add("a store of another volume too", REFUSES, lambda case: case.add("foreign.store", case.healthy.foreign))
add("an empty store too", REFUSES, lambda case: case.add("empty.store", case.healthy.empty))
add("a wiped store too", REFUSES, lambda case: case.add("wiped.store", bytes(SUPERBLOCK_OFFSETS[1] + 4096) +
                                                        case.healthy.stores["a"][SUPERBLOCK_OFFSETS[1] + 4096:]))
add("a file that is no store too", REFUSES, lambda case: case.add("no.store", b"hello\n" * 1000))
add("a file that is not there", REFUSES, lambda case: case.arguments.append("not.store"))
add("a store twice", REFUSES, lambda case: case.arguments.append("b.store"))
add("a copy of a store", REFUSES, lambda case: case.add("copy.store", case.healthy.stores["b"]))
add("an older copy of the newest too", REFUSES, lambda case: case.add("older.store", case.healthy.older_c))
add("an older copy of the newest instead", REFUSES,
    lambda case: (case.arguments.remove("c.store"), case.add("older.store", case.healthy.older_c)), origin=True)
add("the stores in another order", WHOLE, lambda case: case.arguments.reverse())
add("the middle store missing", REFUSES, lambda case: case.arguments.remove("b.store"))
add("the newest store missing", REFUSES, lambda case: case.arguments.remove("c.store"))
add("the oldest store missing", WHOLE, lambda case: case.arguments.remove("a.store"), missing=("a",))
add("the origin a sector longer", REFUSES, lambda case: case.origin.extend(bytes(512)), origin=True)
add("the origin a sector shorter", REFUSES, lambda case: case.origin.__delitem__(slice(-512, None)), origin=True)
add("the origin changed behind our back", REFUSES, lambda case: case.origin.__setitem__(66000, case.origin[66000] ^ 1),
    origin=True)


# ---- random damage


FIELDS = [field.name for field in dataclasses.fields(Superblock)][1:]
FIELDS = FIELDS[:FIELDS.index("name_bytes")]
NUMBERS = [0, 1, 2, 3, 4, 5, 12, 13, 254, 255, 4096, 65536, 1 << 20, 2**31, 2**32 - 1, 0xfffffff0, 2**44, 2**56,
           2**63, 2**64 - 1]


def mutate(image, chance):
    """One random change. Returns its text, and whether it is only rot: bytes changed with no checksum made right."""
    kind = chance.choice([rot_byte, rot_byte, rot_sector, cut, field, field, header_field, entry_field, entry_field])
    return kind(image, chance)


def somewhere(image, chance):
    """Bytes that mean something, more likely than not."""
    areas = max(1, -(-image.slots // SLOTS_PER_AREA))
    where = chance.choice([0, SUPERBLOCK_OFFSETS[1], image.metadata_at(chance.randrange(areas), 0),
                           image.metadata_at(chance.randrange(areas), 1), image.slot_at(chance.randrange(image.slots))])
    return min(where + chance.choice([chance.randrange(64), chance.randrange(448), chance.randrange(4096)]),
               len(image.data) - 1)


def rot_byte(image, chance):
    at, value = somewhere(image, chance), chance.randrange(1, 256)
    image.data[at] ^= value
    return f"byte {at} xor {value}", True


def rot_sector(image, chance):
    to, source = (somewhere(image, chance) // SECTOR_BYTES * SECTOR_BYTES for _ in range(2))
    image.poke(to, image.data[source:source + SECTOR_BYTES])
    return f"sector at {to} is that at {source}", True


def cut(image, chance):
    length = chance.randrange(len(image.data))
    image.truncate(length)
    return f"cut to {length} bytes", True


def field(image, chance):
    """Of a superblock, in one copy or both."""
    name = chance.choice(FIELDS)
    copies = chance.choice([(0,), (1,), (0, 1), (0, 1)])
    size = {"I": 4, "Q": 8, "s": 16}[field_kind(name)]
    value = chance.randbytes(16) if size == 16 else chance.choice(NUMBERS) % 2**(8 * size)
    image.set(copies, **{name: value})
    return f"superblock copies {copies}: {name} {value}", False


def field_kind(name):
    return "s" if dataclasses.fields(Superblock)[FIELDS.index(name) + 1].type is bytes else \
        "Q" if name in ("generation", "sequence", "first_area_offset", "limit_bytes", "origin_bytes", "durable_slots",
                        "log_slots", "fold_base_slots") or name.endswith("_ns") else "I"


def header_field(image, chance):
    area, which = chance.randrange(max(1, image.slots // SLOTS_PER_AREA)), chance.randrange(2)
    name, size = chance.choice([("area", 4), ("write_count", 8), ("durable_slots", 4), ("entry_count", 2)])
    value = chance.choice(NUMBERS) % 2**(8 * size)
    image.set_header(area, (which,), **{name: value})
    return f"area {area}, header {which}: {name} {value}", False


def entry_field(image, chance):
    slot = chance.randrange(image.slots)
    entry = Entry(chance.choice([0, 1, 2, 3, 4, 5, 6, 255]), chance.choice(NUMBERS) % 2**56,
                  chance.choice(NUMBERS) % 2**32)
    copies = chance.choice([(0,), (1,), (0, 1)])
    image.set_entry(slot, entry, copies)
    return f"slot {slot}, copies {copies}: {entry}", False
