#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""
Stores, read by a second reader that was written from rowsnap-format(5) alone: independent-reader.py [TEST...]. TAP.

Each test makes stores with the real server and real NBD clients, keeps what nbdcopy read of each snapshot while it was
served, and then compares: the reader's exceptions with those of `rowsnap inspect`, its images with nbdcopy's, and with
those of `rowsnap replay` where there is such a command.
"""
import ctypes
import json
import os
import random
import struct
import sys
import threading
import time

import format_reader
from format_reader import Chain, Entry, Header, Refused, Store, open_stores
from sandbox import KIB, MIB, ROWSNAP, SLOW, Folder, Volume
from xxh3 import xxh3_64

count = failed = 0


def check(text, ok, directive=""):
    global count, failed
    count += 1
    failed += not ok
    print(f"{'ok' if ok else 'not ok'} {count} - {text}{directive}", flush=True)


# ---- comparing


def open_chain(volume):
    paths = [volume.path / path for path in (*volume.stores.values(), *volume.parts)]
    volume.chance.shuffle(paths)
    return Chain(open_stores(paths))


def shown(store, path):
    """What `inspect` should show, by the reader's lights; members that only it can know are left to it."""
    superblock = store.superblock
    return {
        "store": path, "uuid": format_reader.text(superblock.uuid),
        "volume_uuid": format_reader.text(superblock.volume),
        "name": superblock.name, "sequence": superblock.sequence, "generation": superblock.generation,
        "state": ["empty", "prepared", "active", "sealed", "merging"][superblock.state],
        "superblock_copies_good": store.good_copies, "origin_bytes": superblock.origin_bytes,
        "block_bytes": superblock.block_bytes, "slots_per_area": superblock.slots_per_area,
        "area_bytes": superblock.area_bytes, "clean": superblock.clean == 1, "log_slots": len(store.log),
        "blocks": len(store.by_block), "data_entries": sum(entry.type == format_reader.DATA for entry in store.log if entry),
        "exceptions": store.exceptions(),
    }


def compare(volume, what):
    """Everything the reader finds in the stopped volume's stores."""
    chain = open_chain(volume)
    order = [store.superblock.name for store in chain.stores]
    check(f"{what}: the stores' order", order == list(volume.stores))
    for store in chain.stores:
        name = store.superblock.name
        path = volume.stores[name]
        told = json.loads(volume.rowsnap("inspect", "--exceptions", "--json", path, *volume.parts))["stores"][0]
        mine = shown(store, path)
        differences = [key for key in mine if mine[key] != told.get(key)]
        check(f"{what}: {name}: inspect shows the same {len(store.log)} entries, and all else", differences == [])
        for key in differences[:3]:
            print(f"# {key}: {str(told.get(key))[:300]}\n# not {str(mine[key])[:300]}")
        check(f"{what}: {name}: all its data has the right checksum",
              all(store.slot_is_right(slot) for slot, entry in enumerate(store.log)
                  if entry and entry.type in (format_reader.DATA, format_reader.FINGERPRINT)))
    for name in volume.stores:
        blocks = chain.image(name, volume.origin)
        good = None not in blocks and b"".join(blocks) == volume.expected[name]
        check(f"{what}: {name}: the image is what nbdcopy read", good)
        if not good:
            size = volume.block_bytes
            wrong = [i for i, block in enumerate(blocks) if block != volume.expected[name][i * size:(i + 1) * size]]
            print(f"# blocks {wrong[:10]} of {len(wrong)}; errors: {blocks.count(None)}")
    compare_replay(volume, what)
    return chain


def has_replay(folder):
    return b"\n  replay " in folder.run(ROWSNAP, "--help").stdout


def compare_replay(volume, what):
    if not has_replay(volume):
        return
    same = True
    for name in volume.stores:
        volume.rowsnap("replay", f"--snapshot={name}", "-o", "replayed.img", "disk.img", *volume.stores.values(),
                       *volume.parts)
        same = same and (volume.path / "replayed.img").read_bytes() == volume.expected[name]
        os.unlink(volume.path / "replayed.img")
    check(f"{what}: replay writes the same", same)


# ---- tests


def test_hash():
    library = ctypes.CDLL("libxxhash.so.0")
    library.XXH3_64bits_withSeed.restype = ctypes.c_uint64
    library.XXH3_64bits_withSeed.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint64]
    chance = random.Random(1)
    lengths = [*range(300), 511, 512, 1023, 1024, 1025, 1088, 2048, 2049, 4088, 4096, 16384, 65536]
    wrong = []
    for length in lengths:
        for seed in (0, 1, chance.getrandbits(64)):
            data = chance.randbytes(length)
            if xxh3_64(data, seed) != library.XXH3_64bits_withSeed(data, length, seed):
                wrong.append((length, seed))
    check("XXH3 is what libxxhash computes, of all kinds of lengths and seeds", wrong == [])


def test_examples_of_the_page():
    seed = format_reader.seed_of(bytes(range(0x10, 0x20)))
    check("the seed", seed == 0x84c960cee8ec65d9)
    check("zeroes", format_reader.low(bytes(4096), seed) == 0x91831ed7)
    header = Header(b"RSar", 0x01020304, 0x1112131415161718, 0x21222324, 253).encode(seed)
    check("a header", header.hex() == "5253617204030201181716151413121124232221fd000000000000009c2fa4dd")
    entry = Entry(1, 0x0a0b0c0d0e0f10, 0x31323334).encode(seed, 0x01020304, 0)
    check("an entry of data", entry.hex() == "100f0e0d0c0b0a01343332316d15b2c8")
    entry = Entry(2, 0x41424344, 0x51525354).encode(seed, 0x01020304, 1)
    check("an entry of zeroes", entry.hex() == "444342410000000254535251291211aa")
    check("a sector of zeroes", xxh3_64(bytes(512)) == 0xb2987a9d949e807c)


def test_chain_of_three():
    """4 KiB blocks, the usual areas, a partial last block; stopped, killed, and served again."""
    with Volume(3 * MIB + 512) as volume:
        volume.origin.write_bytes(volume.origin.read_bytes()[:MIB] + bytes(MIB // 2) + volume.chance.randbytes(MIB) +
                                  bytes(MIB // 2) + b"\1" * 512)
        volume.start()
        volume.snapshot("first")
        volume.fio("--rw=randwrite", "--bsrange=4k-64k", "--size=3M", "--iodepth=8")
        volume.snapshot("second")
        volume.qemu_io("write -P 7 1M 300k", "write -z 100k 1000k", f"write -P 3 {3 * MIB} 512", "write -P 1 512 1k")
        volume.snapshot("third")
        volume.write(100)
        volume.remember()
        volume.stop()
        chain = compare(volume, "three, stopped")
        kinds = {entry.type for store in chain.stores for entry in store.log}
        check("three, stopped: there are data, zero runs and a coming fingerprint among them", kinds == {1, 2, 5})
        check("three, stopped: and several areas", len(chain.stores[0].log) > 254)
        volume.start()
        volume.kill_while_writing()
        chain = compare(volume, "three, killed")
        check("three, killed: one is not clean", [s.superblock.clean for s in chain.stores] == [1, 1, 0])
        volume.start()
        volume.write(50)
        volume.snapshot("fourth")
        volume.write(50)
        volume.remember()
        volume.stop()
        compare(volume, "four, after the crash")


def test_medium_blocks():
    with Volume(4 * MIB - 3 * KIB, 16 * KIB, slots_per_area=7, seed=2) as volume:
        volume.start()
        volume.snapshot("one")
        volume.qemu_io("write -z 1M 200k")
        volume.fio("--rw=randwrite", "--bs=16k", "--io_size=1M", "--iodepth=4")
        volume.snapshot("two")
        volume.write(60)
        volume.remember()
        volume.kill_while_writing()
        chain = compare(volume, "16 KiB, killed")
        check("16 KiB, killed: many areas", len(chain.stores[-1].log) > 5 * 7)


def test_large_blocks_and_folds():
    with Volume(8 * MIB - 512, 64 * KIB, slots_per_area=5, seed=3) as volume:
        volume.start()
        for name in ("a", "b", "c", "d"):
            volume.snapshot(name)
            volume.write(20)
        volume.remember()
        volume.drop("b")
        volume.stop()
        compare(volume, "64 KiB, b folded into a")
        volume.start()
        volume.drop("d")
        volume.write(30)
        volume.remember()
        volume.kill_while_writing()
        compare(volume, "64 KiB, the newest folded too, killed")
        volume.start()
        volume.drop("a")
        volume.stop()
        chain = compare(volume, "64 KiB, the oldest dropped")
        check("64 KiB, the oldest dropped: it is told so", chain.stores[0].superblock.predecessor == format_reader.NIL)


def kill_while_folding(volume, name, seconds):
    """Whether it was folded by then, or not yet, the others must be what they were."""
    volume.rowsnap("drop", "v", name, "--background")
    threading.Event().wait(seconds)
    volume.server.kill()
    others = [store for other, store in volume.stores.items() if other != name]
    try:
        stores = [Store(volume.path / store) for store in [*others, volume.stores[name]]]
    except Refused:
        stores = [Store(volume.path / store) for store in others]
    chain = Chain(stores)
    same = all(b"".join(chain.image(other, volume.origin)) == volume.expected[other]
               for other in volume.stores if other != name)
    check(f"killed {seconds * 1000:.1f} ms after {name}'s drop began, all others are what they were", same)
    print(f"# {len(chain.stores)} in the chain, {len(chain.left_out)} left out")
    path = volume.stores[name]
    if len(stores) == len(others):
        volume.forget(name)
    volume.start()
    deadline = time.monotonic() + 20 * SLOW
    while name in volume.names() and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    if path in volume.stores.values():
        volume.forget(name)


def test_killed_while_folding():
    with Volume(4 * MIB, 16 * KIB, slots_per_area=31, seed=6) as volume:
        volume.start()
        for name in "abcdef":
            volume.snapshot(name)
            volume.write(40)
        volume.remember()
        for name, seconds in (("b", 0), ("f", 0), ("d", 0.002), ("e", 0.005)):
            kill_while_folding(volume, name, seconds)
        volume.stop()
        compare(volume, "after all these folds")


def test_store_in_parts():
    """A store that was full twice, stopped and killed; a part's disk had been a store before."""
    with Volume(4 * MIB, slots_per_area=16, seed=6) as volume:
        volume.start()
        volume.snapshot("old")
        volume.write(100)
        volume.remember()
        part = volume.stores["old"]
        volume.drop("old")
        # format asks for the usual areas at least; limits are of two of these, which is many of ours
        volume.snapshot("small", size=2 * MIB)
        volume.extend("small", part, size=3 * MIB)
        volume.extend("small", "other.store")
        while firsts_of(volume)[1] is None:
            volume.write(20)
        volume.write(20)
        volume.remember()
        volume.stop()
        chain = compare(volume, "in three stores, stopped")
        firsts = [part.first_area for part in chain.stores[0].superblock.parts]
        check("in three stores: each has areas", 0 < firsts[0] < firsts[1] < format_reader.NO_AREA)
        volume.start()
        volume.kill_while_writing()
        compare(volume, "in three stores, killed")
        try:
            open_stores([volume.path / path for path in (*volume.stores.values(), *volume.parts[1:])])
            check("in three stores: one that is missing is refused", False)
        except Refused:
            check("in three stores: one that is missing is refused", True)


def firsts_of(volume):
    """Where the parts begin, None for those that stand by, by how much they hold."""
    parts = json.loads(volume.rowsnap("list", "v", "--json"))["snapshots"][0]["parts"]
    return [part["store"] if part["used_bytes"] > MIB else None for part in parts[1:]]


def test_store_used_again():
    """Entries and data of an earlier life lie behind and among those of this one."""
    with Volume(2 * MIB, slots_per_area=50, seed=4) as volume:
        volume.start()
        volume.snapshot("old", "reused.store")
        volume.fio("--rw=write", "--bs=64k", "--size=2M")
        volume.snapshot("next")
        volume.remember()
        volume.drop("old")
        with open(volume.path / "reused.store", "rb") as file:
            wiped = [os.pread(file.fileno(), 4096, at) == bytes(4096) for at in format_reader.SUPERBLOCK_OFFSETS]
            left = os.pread(file.fileno(), 4, format_reader.FIRST_AREA_OFFSET)
        check("used again: a drop wipes the superblocks", wiped == [True, True])
        check("used again: and leaves the areas", left == format_reader.AREA_MAGIC)
        try:
            Store(volume.path / "reused.store")
            check("used again: it is no store", False)
        except Refused:
            check("used again: it is no store", True)
        volume.snapshot("new", "reused.store")
        volume.write(40)
        volume.remember()
        volume.stop()
        compare(volume, "used again, stopped")
        volume.start()
        volume.kill_while_writing()
        compare(volume, "used again, killed")


def test_replay_was_compared():
    with Folder() as folder:
        check("replay was compared too", True, "" if has_replay(folder) else " # SKIP there is no command replay")


def test_reader_sees_damage():
    """A reader that says yes to everything would have passed all of the above."""
    with Volume(MIB, slots_per_area=20, seed=5) as volume:
        volume.start()
        volume.snapshot("one")
        volume.qemu_io("write -P 9 128k 256k")
        volume.remember()
        volume.stop()
        path = volume.path / "one.store"
        healthy = path.read_bytes()
        store = Store(path)
        slot = store.by_block[40]

        def image_with(*changes):
            damaged = bytearray(healthy)
            for offset in changes:
                damaged[offset] ^= 1
            path.write_bytes(damaged)
            return Chain([Store(path)]).image("one", volume.origin)

        area, index = divmod(slot, 20)
        places = [offset + 32 + 16 * index for offset in format_reader.Area(store, area).offsets]
        bad = [number for number, block in enumerate(image_with(store.slot_offset(slot))) if block is None]
        check("a flipped bit of data costs its block", bad == [40])
        check("a flipped bit in an entry costs nothing", None not in image_with(places[0]))
        blocks = image_with(*places)
        check("in both copies, all that is not preserved", blocks[40] is None and blocks[0] is None and
              blocks[39] is not None)
        superblocks = [offset + 9 for offset in format_reader.SUPERBLOCK_OFFSETS]
        check("a superblock copy may be damaged", None not in image_with(superblocks[0]))
        try:
            image_with(*superblocks)
            check("but not both", False)
        except Refused:
            check("but not both", True)
        path.write_bytes(healthy)
        with open(volume.origin, "r+b") as file:
            file.seek(66000)
            file.write(b"changed")
        blocks = Chain([store]).image("one", volume.origin)
        check("a changed origin is not trusted", blocks[0] is None and blocks[40] is not None)


def main():
    wanted = sys.argv[1:]
    for name, test in list(globals().items()):
        if name.startswith("test_") and (not wanted or name in wanted):
            try:
                test()
            except (Refused, RuntimeError, OSError, struct.error, ValueError, LookupError) as error:
                check(f"{name}: {error!r} at line {error.__traceback__.tb_next.tb_lineno}", False)
    print(f"1..{count}")
    sys.exit(1 if failed else 0)


main()
