# SPDX-License-Identifier: GPL-2.0-or-later
"""What is not a fio workload: the pause of a snapshot, drop, start-up, replay, check, memory."""
import os
import subprocess
import time

from peers import BLOCK, ROWSNAP, Rowsnap, RowsnapPlain, fio


def timed(function, *arguments):
    began = time.monotonic()
    function(*arguments)
    return time.monotonic() - began


def pause(folder, origin, count, spread=()):
    """Snapshots taken while fio writes 4 KiB blocks 32 deep: the pauses, by our own histogram."""
    with RowsnapPlain(folder, origin) as peer:
        load = subprocess.Popen(["fio", "--name=load", *peer.target, f"--size={peer.size}", "--rw=randwrite", "--bs=4k",
                                 "--iodepth=32", "--time_based", "--runtime=3600", "--norandommap", *spread,
                                 "--output=/dev/null"])
        try:
            time.sleep(1.5)
            for number in range(count):
                peer.snapshot(number)
        finally:
            load.terminate()
            load.wait()
        found = peer.status()["pause"]
        found["memory"] = peer.status()["memory"]
        return found


def sparse_pause(folder, count):
    """
    The same on 1 TiB, sparse but for 1 MiB in every GiB, where the load goes: else it is how the file system allocates
    blocks that is measured. The origin lies in a folder of its own.
    """
    spread = ["--zonemode=strided", f"--zonesize={1 << 20}", f"--zonerange={1 << 30}"]
    inner = os.path.join(folder, "large")
    os.mkdir(inner)
    origin = os.path.join(inner, "origin.img")
    with open(origin, "wb") as file:
        file.truncate(1 << 40)
    fio(["--ioengine=libaio", f"--filename={origin}", "--rw=write", "--bs=1M", "--iodepth=8", f"--size={1 << 40}",
         f"--io_size={1 << 30}", *spread])
    try:
        return pause(inner, origin, count, spread)
    finally:
        os.unlink(origin)


def fill(peer):
    peer.run(["--rw=write", "--bs=1M", "--iodepth=8", f"--io_size={peer.size}"])


def lifecycle(folder, origin):
    """Exceptions of the whole origin, then: start-up, drop; replay, check. Seconds and bytes."""
    found = {}
    with Rowsnap(folder, origin) as peer:
        fill(peer)
        found["exception_bytes"] = peer.status()["copies"]["blocks"] * BLOCK
        stores = [peer.path("s0.store")]
        peer.process.terminate()
        peer.process.wait()
        found["start_seconds"] = timed(peer.serve, stores)
        found["base_bytes"] = peer.peak_bytes() - peer.status()["memory"]["map_bytes"]
        peer.snapshot(1)
        before = peer.disk_bytes()
        found["drop_seconds"] = timed(peer.command, "drop", "bench", "s0")
        after = peer.disk_bytes()
        found["drop_bytes"] = after[0] - before[0] + after[1] - before[1]
    with Rowsnap(folder, origin) as peer:
        fill(peer)
        peer.process.terminate()
        peer.process.wait()
        store, output = peer.path("s0.store"), peer.path("replay.img")
        found["replay_seconds"] = timed(peer.command, "replay", "--snapshot=s0", "-o", output, origin, store)
        os.unlink(output)
        found["replay_limit_seconds"] = copy_limit(store, output, peer.size)
        found["check_seconds"] = timed(peer.command, "check", store)
        found["check_limit_seconds"] = copy_limit(store, None, found["exception_bytes"])
    return found


def copy_limit(source, target, size):
    """fio reading the one and writing the other, whole, in pieces of 1 MiB, 16 deep: seconds."""
    size = min(size, os.stat(source).st_size) >> 20 << 20
    jobs = [["--rw=read", f"--filename={source}"]]
    if target:
        jobs.append(["--rw=write", f"--filename={target}", "--end_fsync=1"])
    jobs = fio(*([*job, "--ioengine=libaio", "--bs=1M", "--iodepth=16", f"--size={size}"] for job in jobs))
    if target:
        os.unlink(target)
    return max(max(job["read"]["runtime"], job["write"]["runtime"]) for job in jobs) / 1000


def map_memory(folder, origin):
    """Map bytes for each preserved block: all of a part of the origin in random order; and one block in 64 of it all."""
    found = {}
    for name, arguments in (("dense", ["--rw=randwrite", f"--size={128 << 20}"]),
                            ("scattered", ["--rw=write:252k", f"--io_size={os.stat(origin).st_size // 64}"])):
        with Rowsnap(folder, origin) as peer:
            peer.run(["--bs=4k", "--iodepth=32", *arguments])
            status = peer.status()
            found[name] = status["memory"]["map_bytes"] / max(status["copies"]["blocks"], 1)
    return found


def version():
    return subprocess.run([ROWSNAP, "--version"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
