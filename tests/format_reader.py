# SPDX-License-Identifier: GPL-2.0-or-later
"""
A second reader of stores, written from rowsnap-format(5) alone: what it reads otherwise than the product does is a
fault in the product or in the page. Not a test by itself (no #! line).

    chain = Chain(open_stores(paths))                  refuses with Refused, which says why
    store.log                                          its entries by slot, None where one is missing
    chain.image("monday", "disk.img")                  a snapshot, block by block; None where reading is an error

It only reads, and takes whole stores of a few MiB in its stride, no more. The records' encode functions are for those
who make stores, healthy or damaged ones, to see what others make of them.
"""
import dataclasses
import os
import re
import struct
import uuid

from xxh3 import xxh3_64

MAGIC, VERSION, HEADER_BYTES = b"rowsnap\0", 1, 448
SUPERBLOCK_BYTES, SUPERBLOCK_OFFSETS, FIRST_AREA_OFFSET = 4096, (0, 524288), 1 << 20
AREA_MAGIC, METADATA_BYTES, ENTRIES_MAX = b"RSar", 4096, 254
SLOTS_MAX, ORIGIN_BYTES_MAX = 0xfffffff0, 1 << 44
JOINED_BYTES, JOINED, PARTS_MAX, NO_AREA = 832, 1, 15, 0xffffffff
EMPTY, PREPARED, ACTIVE, SEALED, MERGING, STATE_JOINED = range(6)
DATA, ZERO, LOST, VOID, FINGERPRINT = range(1, 6)
ROLE_SNAPSHOT, ROLE_PART = 1, 3
TYPE_NAMES = {DATA: "data", ZERO: "zero", LOST: "lost", VOID: "void", FINGERPRINT: "fingerprint"}
BROKEN_METADATA = 4
NIL = bytes(16)
SECTOR_BYTES = 512
SECTOR_OFFSETS = [512 * i for i in range(8)] + [65536 + 512 * i for i in range(8)]


class Refused(Exception):
    """These stores cannot be used, and why."""


def text(identifier):
    return str(uuid.UUID(bytes=identifier))


def seed_of(identifier):
    return xxh3_64(identifier)


def low(data, seed):
    return xxh3_64(data, seed) & 0xffffffff


# ---- superblock


@dataclasses.dataclass
class PartLink:
    """A store joined to this one."""

    uuid: bytes
    first_area: int
    skipped_slots: int

    LAYOUT = struct.Struct("<16sII")


@dataclasses.dataclass
class Superblock:
    """The fields in the order of their bytes; LAYOUT is theirs."""

    magic: bytes
    version: int
    header_bytes: int
    compat: int
    ro_compat: int
    incompat: int
    generation: int
    sequence: int
    uuid: bytes
    volume: bytes
    predecessor: bytes
    successor: bytes
    fold_source: bytes
    witness: bytes
    role: int
    state: int
    block_bytes: int
    slots_per_area: int
    first_area_offset: int
    limit_bytes: int
    origin_bytes: int
    created_ns: int
    sealed_ns: int
    durable_slots: int
    log_slots: int
    fold_base_slots: int
    clean: int
    broken_reason: int
    broken_ns: int
    witness_reason: int
    witness_ns: int
    name_bytes: bytes
    fingerprint: list
    part_index: int = 0
    main: bytes = NIL
    parts: list = dataclasses.field(default_factory=list)

    LAYOUT = struct.Struct("<8s5I4x2Q16s16s16s16s16s16s4I8Q2IQI4xQ64s")
    SECTORS = struct.Struct("<16Q")
    PARTS = struct.Struct("<II16s")

    @classmethod
    def decode(cls, data):
        superblock = cls(*cls.LAYOUT.unpack_from(data), list(cls.SECTORS.unpack_from(data, cls.LAYOUT.size)))
        if superblock.incompat & JOINED:
            count, superblock.part_index, superblock.main = cls.PARTS.unpack_from(data, HEADER_BYTES)
            at = HEADER_BYTES + cls.PARTS.size
            # one too many is kept as a fault
            superblock.parts = [PartLink(*PartLink.LAYOUT.unpack_from(data, at + i * PartLink.LAYOUT.size))
                                for i in range(min(count, PARTS_MAX + 1))]
        return superblock

    def encode(self):
        fields = [getattr(self, field.name) for field in dataclasses.fields(self)]
        data = self.LAYOUT.pack(*fields[:-4]) + self.SECTORS.pack(*self.fingerprint)
        if self.incompat & JOINED:
            data += self.PARTS.pack(len(self.parts), self.part_index, self.main)
            data += b"".join(PartLink.LAYOUT.pack(*dataclasses.astuple(part)) for part in self.parts)
        return seal_superblock(data.ljust(SUPERBLOCK_BYTES, b"\0"))

    @property
    def name(self):
        return self.name_bytes.rstrip(b"\0").decode("ascii")

    @property
    def seed(self):
        return seed_of(self.uuid)

    @property
    def area_bytes(self):
        return 2 * METADATA_BYTES + self.slots_per_area * self.block_bytes

    @property
    def origin_blocks(self):
        return -(-self.origin_bytes // self.block_bytes)

    def fault(self):
        """What is out of its range, or does not go together; None when all is well."""
        return self.range_fault() or self.name_fault() or self.state_fault() or self.parts_fault()

    def range_fault(self):
        return first_false({
            "header_bytes": HEADER_BYTES <= self.header_bytes <= SUPERBLOCK_BYTES - 8,
            "joined header_bytes": not self.incompat & JOINED or self.header_bytes >= JOINED_BYTES,
            "role": self.role in (1, 2, 3),
            "state": self.state <= STATE_JOINED,
            "block_bytes": self.block_bytes in (4096, 8192, 16384, 32768, 65536),
            "slots_per_area": 1 <= self.slots_per_area <= ENTRIES_MAX,
            "first_area_offset": self.first_area_offset == FIRST_AREA_OFFSET,
            "limit_bytes": self.limit_bytes == 0 or self.limit_bytes >= FIRST_AREA_OFFSET + self.area_bytes,
            "origin_bytes": self.origin_bytes % 512 == 0 and self.origin_bytes <= ORIGIN_BYTES_MAX,
            "durable_slots": self.durable_slots <= SLOTS_MAX,
            "log_slots": self.log_slots <= SLOTS_MAX,
            "fold_base_slots": self.fold_base_slots <= SLOTS_MAX,
            "clean": self.clean <= 1,
            "broken_reason": self.broken_reason <= 5,
            "broken_ns": self.broken_reason != 0 or self.broken_ns == 0,
            "witness_reason": self.witness_reason <= 5 and (self.witness_reason == 0) == (self.witness == NIL),
            "witness_ns": self.witness != NIL or self.witness_ns == 0,
            "uuid": self.uuid != NIL,
        })

    def name_fault(self):
        name = self.name_bytes.rstrip(b"\0")
        if self.state == EMPTY:
            return None if name == b"" else "name"
        good = re.fullmatch(rb"[A-Za-z0-9_][A-Za-z0-9._-]{0,62}", name) and name != b"origin"
        return None if good else "name"

    def parts_fault(self):
        is_part, slots = self.role == ROLE_PART, [part.first_area * self.slots_per_area for part in self.parts]
        firsts = [part.first_area for part in self.parts]
        return first_false({
            "joined": (self.incompat & JOINED != 0) == (is_part or self.parts != []),
            "state of a part": is_part == (self.state == STATE_JOINED),
            "part_index": is_part == (self.part_index != 0) and self.part_index <= PARTS_MAX,
            "main": is_part == (self.main != NIL) and self.main != self.uuid,
            "part": not is_part or (not self.parts and self.clean == 1 and self.broken_reason == 0 and
                                    (self.predecessor, self.successor, self.fold_source, self.witness) == (NIL,) * 4 and
                                    self.durable_slots == self.log_slots == 0),
            "part_count": len(self.parts) <= PARTS_MAX and (not self.parts or self.state not in (EMPTY, PREPARED)),
            "part UUIDs": len({part.uuid for part in self.parts} | {self.uuid, NIL}) == len(self.parts) + 2,
            "first_area": firsts == sorted(firsts) and
                          all(slot <= SLOTS_MAX or first == NO_AREA for slot, first in zip(slots, firsts)),
            "skipped_slots": all(part.skipped_slots <= (0 if part.first_area == NO_AREA else slot)
                                 for part, slot in zip(self.parts, slots)),
        })

    def state_fault(self):
        empty, merging = self.state == EMPTY, self.state == MERGING
        # a merging store has the merge target there, which may be itself
        fold = not merging and self.fold_source != NIL
        links = (self.predecessor, self.successor, NIL if merging else self.fold_source, self.witness)
        nothing_logged = self.durable_slots == self.log_slots == 0
        return first_false({
            "sequence": (self.sequence == 0) == empty,
            "volume": (self.volume == NIL) == empty,
            "origin_bytes": (self.origin_bytes == 0) == empty,
            "log_slots": not self.clean or self.durable_slots <= self.log_slots,
            "fold_base_slots": not self.clean or not fold or self.fold_base_slots <= self.log_slots,
            "a link to itself": self.uuid not in links,
            "predecessor and successor": self.predecessor == NIL or self.predecessor != self.successor,
            "fold source": not fold or self.fold_source != self.predecessor,
            "empty": not empty or (links == (NIL,) * 4 and self.broken_reason == 0 and nothing_logged),
            "prepared": self.state != PREPARED or (self.successor == NIL and not fold and nothing_logged),
            "active": self.state != ACTIVE or self.successor in (NIL, self.fold_source),
            "merging": not merging or (self.fold_source != NIL and self.clean == 1),
            "sealed": self.state != SEALED or (self.fold_source == self.successor if fold else self.clean == 1),
            "fingerprint": all(number == 0 for number, offset in zip(self.fingerprint, SECTOR_OFFSETS)
                               if offset >= self.origin_bytes),
        })


def first_false(facts):
    return next((what for what, holds in facts.items() if not holds), None)


def seal_superblock(data):
    """The same bytes with the right checksum."""
    return data[:-8] + struct.pack("<Q", xxh3_64(data[:-8]))


def judge_copy(data):
    """A good copy's superblock, else None; Refused when it says that nothing here is for us."""
    if data[:8] != MAGIC or seal_superblock(data) != data:
        return None
    superblock = Superblock.decode(data)
    if superblock.version != VERSION:
        raise Refused(f"version {superblock.version}")
    if superblock.incompat & ~JOINED != 0:
        raise Refused(f"incompat features {superblock.incompat:#x}")
    return None if superblock.fault() else superblock


def newest_copy(copies):
    """(the superblock, how many copies are good)."""
    good = [superblock for superblock in map(judge_copy, copies) if superblock]
    if not good:
        raise Refused("no store, or a destroyed one")
    if len({superblock.uuid for superblock in good}) > 1:
        raise Refused("the superblock copies are of two stores")
    return max(good, key=lambda superblock: superblock.generation), len(good)


# ---- areas


@dataclasses.dataclass
class Header:
    magic: bytes
    area: int
    write_count: int
    durable_slots: int
    entry_count: int

    LAYOUT = struct.Struct("<4sIQIH6x")

    @classmethod
    def decode(cls, data):
        return cls(*cls.LAYOUT.unpack_from(data))

    def encode(self, seed):
        data = self.LAYOUT.pack(self.magic, self.area, self.write_count, self.durable_slots, self.entry_count)
        return data + struct.pack("<I", low(data, seed))

    def is_valid(self, data, store, area):
        return (self.magic == AREA_MAGIC and self.area == area and self.durable_slots <= SLOTS_MAX and
                self.entry_count <= store.superblock.slots_per_area and
                struct.unpack_from("<I", data, 28)[0] == low(data[:28], store.seed))


@dataclasses.dataclass(frozen=True)
class Entry:
    type: int
    block: int
    value: int

    LAYOUT = struct.Struct("<QI")

    @classmethod
    def decode(cls, data):
        number, value = cls.LAYOUT.unpack_from(data)
        return cls(number >> 56, number & (1 << 56) - 1, value)

    def encode(self, seed, area, index):
        data = self.LAYOUT.pack(self.block | self.type << 56, self.value)
        return data + struct.pack("<I", low(struct.pack("<II", area, index) + data, seed))

    def holds(self, origin_blocks):
        """What it says can be; its checksum is another matter."""
        if self.type in (VOID, FINGERPRINT):
            return self.block == 0 and (self.type == FINGERPRINT or self.value == 0)
        if self.type == ZERO:
            return self.value >= 1 and self.block + self.value <= origin_blocks
        return self.type in (DATA, LOST) and self.block < origin_blocks and (self.type == DATA or self.value == 0)

    def names(self):
        """The blocks it is about."""
        count = {DATA: 1, LOST: 1, ZERO: self.value}.get(self.type, 0)
        return range(self.block, self.block + count)


class Area:
    """Both metadata copies of one area, and what counts of them."""

    def __init__(self, store, number):
        offset = store.area_offset(number)
        self.store, self.number = store, number
        self.offsets = (offset, offset + store.superblock.area_bytes - METADATA_BYTES)
        self.copies = [store.read(where, METADATA_BYTES) for where in self.offsets]
        self.headers = [self.header(copy) for copy in self.copies]
        counts = [header.write_count if header else -1 for header in self.headers]
        self.first_choice = int(counts[1] > counts[0])

    def header(self, copy):
        header = Header.decode(copy)
        return header if header.is_valid(copy, self.store, self.number) else None

    def entry_in(self, copy, index):
        data = self.copies[copy][32 + 16 * index:48 + 16 * index]
        entry = Entry.decode(data)
        if not entry.holds(self.store.superblock.origin_blocks):
            return None
        return entry if data == entry.encode(self.store.seed, self.number, index) else None

    def entry(self, index):
        return self.entry_in(self.first_choice, index) or self.entry_in(1 - self.first_choice, index)


# ---- store


class Store:
    """One store, read when it is made: superblock, log, broken (the reason's number)."""

    def __init__(self, path, data=None, parts=()):
        """With data, what the file would hold. The stores joined to it are among parts."""
        self.path, self.data = path, data
        if data is None:
            with open(path, "rb") as file:
                self.data = file.read()
        self.superblock, self.good_copies = newest_copy([self.read(at, SUPERBLOCK_BYTES) for at in SUPERBLOCK_OFFSETS])
        self.seed = self.superblock.seed
        self.skipped = set()
        self.present = own_areas_present(self.superblock, self.superblock, self.data)
        self.join([self.find_part(number, parts) for number in range(1, len(self.superblock.parts) + 1)])
        self.known_checksums = {}
        self.mark = self.superblock.log_slots if self.superblock.clean else self.find_mark()
        self.log = self.read_log()
        is_short = len(self.log) < self.mark
        if is_short and self.superblock.clean:
            raise Refused(f"{path} is shorter than its log")
        self.broken = self.superblock.broken_reason or (BROKEN_METADATA if is_short or self.has_holes() else 0)
        self.by_block = {}
        for slot, entry in enumerate(self.log):
            for block in entry.names() if entry else ():
                self.by_block.setdefault(block, slot)

    def has_holes(self):
        return any(entry is None and slot not in self.skipped for slot, entry in enumerate(self.log))

    def find_part(self, number, parts):
        link, mine = self.superblock.parts[number - 1], self.superblock
        found = [part for part in parts if part.superblock.uuid == link.uuid and part.superblock.main == mine.uuid]
        if len(found) != 1:
            raise Refused(f"{self.path} needs part {number}, {text(link.uuid)}")
        other = found[0].superblock
        same = [(s.volume, s.block_bytes, s.slots_per_area, s.origin_bytes) for s in (mine, other)]
        if other.part_index != number or same[0] != same[1]:
            raise Refused(f"{found[0].path} is not the part that it should be")
        return found[0]

    def join(self, parts):
        """Makes of all parts' areas one row, as if they lay in one store."""
        superblock = self.superblock
        row, first, there, is_whole = self.data, 0, self.present, True
        for link, part in zip(superblock.parts, parts):
            if link.first_area == NO_AREA:
                break
            end = link.first_area * superblock.slots_per_area
            self.skipped |= set(range(end - link.skipped_slots, end))
            needed = [area for area in range(first, link.first_area)
                      if not set(range(area * superblock.slots_per_area,
                                       (area + 1) * superblock.slots_per_area)) <= self.skipped]
            is_whole = is_whole and (not needed or needed[-1] < first + there)
            row = self.cut(row, superblock.first_area_offset + link.first_area * superblock.area_bytes)
            row += part.data[superblock.first_area_offset:]
            first, there = link.first_area, own_areas_present(superblock, part.superblock, part.data)
            if is_whole:
                self.present = min(first + there, SLOTS_MAX // superblock.slots_per_area)
        self.data = row

    @staticmethod
    def cut(data, length):
        return data[:length].ljust(length, b"\0")

    def read(self, offset, length):
        """Past the end there are zeroes."""
        return self.data[offset:offset + length].ljust(length, b"\0")

    def area_offset(self, area):
        return self.superblock.first_area_offset + area * self.superblock.area_bytes

    def slot_offset(self, slot):
        area, index = divmod(slot, self.superblock.slots_per_area)
        return self.area_offset(area) + METADATA_BYTES + index * self.superblock.block_bytes

    def slot(self, slot):
        return self.read(self.slot_offset(slot), self.superblock.block_bytes)

    def slot_has(self, slot, checksum):
        if slot not in self.known_checksums:
            self.known_checksums[slot] = low(self.slot(slot), self.seed)
        return self.known_checksums[slot] == checksum

    def slot_is_right(self, slot):
        return self.slot_has(slot, self.log[slot].value)

    def areas_present(self):
        return self.present

    def is_left_out(self, area):
        per_area = self.superblock.slots_per_area
        return all(slot in self.skipped for slot in range(area * per_area, (area + 1) * per_area))

    def find_mark(self):
        mark = self.superblock.durable_slots
        for number in range(self.areas_present()):
            headers = [header for header in Area(self, number).headers if header]
            if self.is_left_out(number):
                continue
            if not headers and number * self.superblock.slots_per_area >= mark:
                break
            mark = max([mark] + [header.durable_slots for header in headers])
        return mark

    def read_log(self):
        """Ends at the mark when clean, and where the areas end in any case."""
        per_area, log = self.superblock.slots_per_area, []
        for number in range(self.areas_present()):
            area = Area(self, number)
            for index in range(per_area):
                slot, entry = number * per_area + index, area.entry(index)
                if slot in self.skipped:
                    entry = None
                    if not self.superblock.clean or slot < self.mark:
                        log.append(None)
                        continue
                if slot >= self.mark and (self.superblock.clean or not self.goes_on(entry, slot)):
                    return log
                log.append(entry)
        return log

    def goes_on(self, entry, slot):
        if entry is None:
            return False
        return entry.type not in (DATA, FINGERPRINT) or self.slot_has(slot, entry.value)

    def exceptions(self):
        """As `rowsnap inspect --exceptions --json` lists them."""
        return [{"slot": slot, "type": TYPE_NAMES[entry.type], "block": entry.block, "count": len(entry.names()),
                 "checksum": entry.value if entry.type in (DATA, FINGERPRINT) else 0}
                for slot, entry in enumerate(self.log) if entry]

    def accepts(self, origin):
        """Whether the origin, an open file, is as this store left it."""
        size = origin.seek(0, os.SEEK_END)
        superblock = self.superblock
        if size != superblock.origin_bytes:
            return False
        known = [{number} for number in superblock.fingerprint]
        for slot in range(superblock.durable_slots, len(self.log)) if not superblock.clean else ():
            if self.log[slot] and self.log[slot].type == FINGERPRINT and self.slot_is_right(slot):
                for numbers, number in zip(known, Superblock.SECTORS.unpack_from(self.slot(slot))):
                    numbers.add(number)
        return all(number in numbers for number, numbers in zip(fingerprint(origin, size), known))


def own_areas_present(main, superblock, data):
    """How many areas there are in one part: a file may end within the last."""
    most = SLOTS_MAX // main.slots_per_area
    if superblock.limit_bytes:
        most = min(most, (superblock.limit_bytes - main.first_area_offset) // main.area_bytes)
    present = len(data) - main.first_area_offset
    return min(most, max(0, -(-present // main.area_bytes)))


class Part:
    """What is joined to another store, and nothing by itself."""

    def __init__(self, path, data):
        self.path, self.data = path, data
        copies = [data[at:at + SUPERBLOCK_BYTES].ljust(SUPERBLOCK_BYTES, b"\0") for at in SUPERBLOCK_OFFSETS]
        self.superblock, self.good_copies = newest_copy(copies)


def open_stores(paths):
    """Those that are stores by themselves, with their parts; a part that none has is left out."""
    given = []
    for path in paths:
        with open(path, "rb") as file:
            given.append(Part(path, file.read()))
    parts = [one for one in given if one.superblock.role == ROLE_PART]
    return [Store(one.path, one.data, parts) for one in given if one.superblock.role != ROLE_PART]


def fingerprint(origin, size):
    numbers = []
    for offset in SECTOR_OFFSETS:
        origin.seek(offset)
        numbers.append(0 if offset >= size else xxh3_64(origin.read(SECTOR_BYTES)) or 1)
    return numbers


# ---- chain


class Chain:
    """Stores in order, oldest first."""

    def __init__(self, stores):
        self.left_out = []
        self.stores = self.in_order(self.without_leftovers([s for s in stores if s.superblock.state != EMPTY]))
        self.check_states()

    def without_leftovers(self, given):
        by_uuid = {store.superblock.uuid: store for store in given}
        if len(by_uuid) != len(given):
            raise Refused("a store was given twice")
        if len({store.superblock.name for store in given}) != len(given):
            raise Refused("two stores have a snapshot of the same name")
        same = {(s.superblock.volume, s.superblock.origin_bytes, s.superblock.block_bytes) for s in given}
        if len(same) > 1 or any(store.superblock.role != ROLE_SNAPSHOT for store in given):
            raise Refused("stores of several volumes, or volumes of several kinds")
        left = list(given)
        while True:
            successors = {store.superblock.successor for store in left}
            kept = [s for s in left if s.superblock.predecessor not in by_uuid or s.superblock.uuid in successors]
            if len(kept) == len(left):
                break
            left = kept
        left = [s for s in left if s.superblock.state != PREPARED or s.superblock.predecessor != NIL]
        for store in left:
            if store.superblock.state == PREPARED and store.superblock.predecessor not in by_uuid:
                raise Refused(f"{store.path} is prepared, and its predecessor was not given")
        self.left_out = [store for store in given if store not in left]
        return left

    @staticmethod
    def in_order(left):
        by_uuid = {store.superblock.uuid: store for store in left}
        older = {}
        for store in left:
            successor = store.superblock.successor
            if successor != NIL and successor not in by_uuid:
                raise Refused(f"store {text(successor)} is missing")
            if successor in older:
                raise Refused("two stores have the same successor, or none")
            older[successor] = store
        ordered = []
        store = older.get(NIL)
        while store and len(ordered) < len(left):
            ordered.insert(0, store)
            store = older.get(store.superblock.uuid)
        sequences = [s.superblock.sequence for s in ordered]
        if len(ordered) != len(left) or sequences != sorted(set(sequences)):
            raise Refused("the links lead nowhere")
        return ordered

    def check_states(self):
        superblocks = [store.superblock for store in self.stores]
        states = [superblock.state for superblock in superblocks]
        if not states or MERGING in states:
            return
        folds = [i for i, superblock in enumerate(superblocks) if superblock.fold_source != NIL]
        newer = [superblock.uuid for superblock in superblocks[1:]] + [None]
        if len(folds) > 1 or any(superblocks[i].fold_source != newer[i] for i in folds):
            raise Refused("a fold from elsewhere")
        newest_is_dropped = states[-2:] == [ACTIVE, SEALED] and folds == [len(states) - 2]
        others = states[:-2] if newest_is_dropped else states[:-1]
        if set(others) - {SEALED}:
            raise Refused("the states do not make a chain")
        if states[-1] != ACTIVE and len(states) == 1 and superblocks[0].predecessor != NIL:
            raise Refused("the newest is unfinished, and its predecessor was not given")

    def find(self, name):
        return next(i for i, store in enumerate(self.stores) if store.superblock.name == name)

    def is_broken(self, store):
        return store.broken != 0 or any(other.superblock.witness == store.superblock.uuid for other in self.stores)

    def receiver(self):
        """The store that receives exceptions; before a prepared one does, it is its predecessor that received them."""
        if self.stores[-1].superblock.state == PREPARED:
            return self.stores[-2]
        return next((s for s in self.stores if s.superblock.state == ACTIVE), self.stores[-1])

    def origin_is_good(self, origin):
        if any(store.superblock.state == MERGING for store in self.stores):
            return False
        return self.receiver().accepts(origin)

    def block(self, first, number, origin):
        """The block's bytes in the snapshot of stores[first]; None when the answer is an error. Without origin, its
        blocks are errors."""
        for store in self.stores[first:]:
            slot = store.by_block.get(number)
            if slot is not None:
                return self.exception(store, slot)
            if self.is_broken(store):
                return None
        if origin is None:
            return None
        size = self.stores[first].superblock.block_bytes
        origin.seek(number * size)
        return origin.read(size)

    @staticmethod
    def exception(store, slot):
        kind, superblock = store.log[slot].type, store.superblock
        if kind == ZERO:
            return bytes(superblock.block_bytes)
        return store.slot(slot) if kind == DATA and store.slot_is_right(slot) else None

    def image(self, name, origin_path):
        """All blocks of a snapshot, the last one cut to size; None for each that cannot be read."""
        first = self.find(name)
        superblock = self.stores[first].superblock
        sources = {store.superblock.fold_source for store in self.stores if store.superblock.state == ACTIVE}
        if superblock.uuid in sources:
            return [None] * superblock.origin_blocks
        with open(origin_path, "rb") as origin:
            good = origin if self.origin_is_good(origin) else None
            blocks = [self.block(first, number, good) for number in range(superblock.origin_blocks)]
        cut = superblock.origin_bytes - (superblock.origin_blocks - 1) * superblock.block_bytes
        if blocks[-1] is not None:
            blocks[-1] = blocks[-1][:cut]
        return blocks
