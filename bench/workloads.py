# SPDX-License-Identifier: GPL-2.0-or-later
"""What is measured by fio: each block of a first overwrite is written once, over a fresh store."""
from peers import (BLOCK, Nbdkit, Qemu, QemuCbw, QemuLoop, Raw, Rowsnap, RowsnapLoop, RowsnapPlain, RowsnapWriteBack,
                   fio, rate, rowsnap_with)

ALL = (Raw, Rowsnap, RowsnapPlain, Qemu, QemuCbw, Nbdkit)
LOOPS = (RowsnapLoop, QemuLoop)
CHAINS = tuple(rowsnap_with(count) for count in (2, 8, 64))


class Workload:
    """`bytes` of an origin of 1 GiB; less of a smaller one."""

    def __init__(self, name, title, size, rw, block, depth, peers, *more, **how):
        self.name, self.title, self.peers = name, title, peers
        self.rw, self.block, self.depth, self.more, self.bytes = rw, block, depth, list(more), size << 20
        self.first = how.get("first", False)        # a first overwrite
        self.preserve = how.get("preserve", False)  # the same is written before
        self.snapshot = how.get("snapshot", False)  # of the oldest snapshot, after the same was written to the origin

    def arguments(self, scale, rw=None):
        size = max(int(self.bytes * scale) // self.block, 1) * self.block
        return [f"--rw={rw or self.rw}", f"--bs={self.block}", f"--iodepth={self.depth}", f"--io_size={size}"]

    def run(self, peer, scale):
        """One run: operations a second, and what it cost, as a dict."""
        if self.preserve:
            peer.run(self.arguments(scale, "randwrite"))
        if self.snapshot:
            overwrite(peer, scale)
            peer.target = peer.by_nbd("s0")
        before = costs(peer)
        job = peer.run(self.arguments(scale) + self.more)
        return account(peer, job, before, costs(peer))


def overwrite(peer, scale):
    """So that the newest snapshot has what every older one is looked up through to."""
    total = int((96 << 20) * scale)
    peer.run(["--rw=randwrite", "--bs=4096", "--iodepth=32", f"--io_size={total // BLOCK * BLOCK}"])


def costs(peer):
    found = {"cpu": peer.cpu_seconds(), "device": peer.device_counts()}
    if isinstance(peer, Rowsnap):
        found["status"], found["disk"] = peer.status(), peer.disk_bytes()
    return found


def account(peer, job, before, after):
    requests = job["read"]["total_ios"] + job["write"]["total_ios"]
    result = {"rate": rate(job), "requests": requests,
              "bytes": job["read"]["io_bytes"] + job["write"]["io_bytes"],
              "seconds": max(job["read"]["runtime"], job["write"]["runtime"]) / 1000,
              "peak_bytes": peer.peak_bytes()}
    if after["cpu"] is not None:
        result["cpu_us"] = (after["cpu"] - before["cpu"]) / max(requests, 1) * 1e6
    if after["device"] is not None:
        result["device"] = [(new - old) / max(requests, 1) for old, new in zip(before["device"], after["device"])]
    if "status" in after:
        result["counters"] = counted(before, after)
    return result


def counted(before, after):
    """Our own counters of the run, and the kernel's, to be held against them."""
    def grown(*path):
        old, new = before["status"], after["status"]
        for key in path:
            old, new = old[key], new[key]
        return new - old

    found = {key: grown("copies", key) for key in ("copies", "blocks", "ahead_blocks", "commits", "barriers")}
    found["store_writes"] = grown("store_io", "writes")
    found["store_bytes"] = grown("store_io", "data_bytes") + grown("store_io", "metadata_bytes")
    found["zeroed_bytes"] = grown("store_io", "zeroed_bytes")
    found["written_bytes"] = grown("requests", "write_bytes")
    found["writes"] = grown("requests", "writes")
    found["kernel_read_bytes"] = after["disk"][0] - before["disk"][0]
    found["kernel_write_bytes"] = after["disk"][1] - before["disk"][1]
    found["commit_latency"] = after["status"]["commit_latency"]
    return found


def disk_limit(workload, origin, folder, scale, result):
    """
    fio doing what this run did, on the same files: a read and a write for each block (in the workload's order and size),
    what went to the store as sequential writes of a commit's size, each with its barrier. Operations a second.
    """
    counters = result["counters"]
    if not counters["commits"]:
        return None
    piece = max(counters["store_bytes"] // counters["commits"] // BLOCK, 1) * BLOCK
    piece = min(piece, 4 << 20)
    total = counters["store_bytes"] // piece * piece
    blocks = ["--filename=" + origin, "--ioengine=libaio", "--rw=" + ("randrw" if "rand" in workload.rw else "rw"),
              "--rwmixread=50", f"--bs={workload.block}", f"--iodepth={workload.depth}", "--size=100%",
              f"--io_size={2 * result['bytes']}"]
    store = [f"--filename={folder}/limit.store", "--ioengine=libaio", "--rw=write", f"--bs={piece}", "--iodepth=1",
             f"--size={total}", "--fdatasync=1", "--fallocate=posix"]
    jobs = fio(blocks, store)
    seconds = max(max(job["read"]["runtime"], job["write"]["runtime"]) for job in jobs) / 1000
    return result["requests"] / seconds


WORKLOADS = [
    Workload("first-d1", "first overwrite, 4 KiB random, depth 1", 8, "randwrite", 4096, 1,
             ALL + (RowsnapWriteBack,) + LOOPS + CHAINS, first=True),
    Workload("first-d32", "first overwrite, 4 KiB random, depth 32", 96, "randwrite", 4096, 32,
             ALL + LOOPS + CHAINS, first=True),
    Workload("first-d128", "first overwrite, 4 KiB random, depth 128", 96, "randwrite", 4096, 128, ALL, first=True),
    Workload("first-seq-d1", "first overwrite, 4 KiB sequential, depth 1", 16, "write", 4096, 1, ALL, first=True),
    Workload("first-seq-1m", "first overwrite, 1 MiB sequential, depth 8", 256, "write", 1 << 20, 8, ALL, first=True),
    Workload("again-d32", "overwrite of preserved blocks, 4 KiB random, depth 32", 96, "randwrite", 4096, 32,
             (Rowsnap, RowsnapPlain, QemuCbw, CHAINS[-1]), preserve=True),
    Workload("mixed-d32", "reads and first overwrites, 70/30, 4 KiB random, depth 32", 96, "randrw", 4096, 32, ALL,
             "--rwmixread=70"),
    Workload("sync-1", "4 KiB random, depth 1, flushed after every write", 4, "randwrite", 4096, 1, ALL,
             "--fsync=1"),
    Workload("sync-32", "4 KiB random, depth 1, flushed after every 32", 8, "randwrite", 4096, 1,
             ALL + (RowsnapWriteBack,), "--fsync=32"),
    Workload("read-d32", "read of the origin, 4 KiB random, depth 32", 96, "randread", 4096, 32,
             ALL + CHAINS),
    Workload("snapshot-read", "read of the oldest snapshot, 4 KiB random, depth 32", 96, "randread", 4096, 32,
             (Rowsnap,) + CHAINS, snapshot=True),
]
