# SPDX-License-Identifier: GPL-2.0-or-later
"""What the design asks for, each a ratio within one run, and what was measured."""
import statistics


def of_pairs(one, other):
    """The median of the ratios of what was measured in the same round, one soon after the other."""
    return statistics.median(ours / theirs for ours, theirs in zip(one["rates"], other["rates"]))


def ratio(results, workload, one, other):
    """None where either was not measured."""
    peers = results.get(workload, {})
    if one not in peers or other not in peers:
        return None
    return of_pairs(peers[one], peers[other])


def counters(results, workload):
    peer = results.get(workload, {}).get("rowsnap")
    return peer and peer.get("counters")


def limit(results, workload):
    """How near the disk's limit we came."""
    peer = results.get(workload, {}).get("rowsnap")
    return peer and peer.get("limits") and statistics.median(
        ours / disk for ours, disk in zip(peer["rates"], peer["limits"]))


def per_thousand(results):
    found = counters(results, "first-d32")
    return found and found["barriers"] / found["blocks"] * 1000


def store_bytes(results, workload):
    found = counters(results, workload)
    return found and (found["store_bytes"] + found["zeroed_bytes"]) / (found["blocks"] * 4096)


def of(measures, name, *path):
    found = measures.get(name)
    for key in path:
        found = found and found.get(key)
    return found


def targets(results, measures):
    """[(what, at least or at most, target, measured or None)...]"""
    def rates(what, least, *arguments):
        return (what, ">=", least, ratio(results, *arguments))

    cbw, plain = "qemu, copy-before-write", "rowsnap, no snapshot"
    life = measures.get("lifecycle")
    return [
        rates("no snapshot, 4 KiB random read, depth 32: to qemu's plain export", 1.2, "read-d32", plain, "qemu"),
        rates("no snapshot, 4 KiB random write, depth 32: to qemu's plain export", 1.2, "first-d32", plain, "qemu"),
        rates("first overwrite, random, depth 32: to qemu's copy-before-write", 3.0, "first-d32", "rowsnap", cbw),
        ("first overwrite, random, depth 32: to the disk's limit", ">=", 0.8, limit(results, "first-d32")),
        rates("first overwrite, random, depth 1: to qemu's copy-before-write", 1.0, "first-d1", "rowsnap", cbw),
        rates("first overwrite, sequential 1 MiB, depth 8: to the same", 1.2, "first-seq-1m", "rowsnap", cbw),
        rates("first overwrite, sequential 4 KiB, depth 1: to the same", 1.2, "first-seq-d1", "rowsnap", cbw),
        rates("with --write-back, first overwrite, depth 1: to writes without a snapshot", 1.0, "first-d1",
              "rowsnap, write-back", plain),
        rates("overwrite of preserved blocks: to no snapshot", 0.97, "again-d32", "rowsnap", plain),
        rates("64 snapshots to one, first overwrites", 0.97, "first-d32", "rowsnap, 64 snapshots", "rowsnap"),
        rates("64 snapshots to one, origin reads", 0.97, "read-d32", "rowsnap, 64 snapshots", "rowsnap"),
        rates("reading the oldest of 64 to reading the only one", 0.8, "snapshot-read", "rowsnap, 64 snapshots",
              "rowsnap"),
        ("barriers for 1,000 first overwrites, depth 32", "<=", 60, per_thousand(results)),
        ("bytes to the store for each preserved, sequential 1 MiB", "<=", 1.02, store_bytes(results, "first-seq-1m")),
        ("bytes to the store for each preserved, random, depth 32", "<=", 1.25, store_bytes(results, "first-d32")),
        ("pause of a snapshot under load, 99th percentile, ms", "<=", 5, pause_ms(measures, "pause")),
        ("the same on 1 TiB, ms", "<=", 5, pause_ms(measures, "pause_1t")),
        ("drop of the oldest, ms", "<=", 10, life and life["drop_seconds"] * 1000),
        ("data read and written by it, bytes", "<=", 65536, life and life["drop_bytes"]),
        ("start-up with 1 GiB of exceptions, s", "<=", 0.5, life and life["start_seconds"]),
        ("memory without maps, MiB", "<=", 96, life and life["base_bytes"] / (1 << 20)),
        ("map bytes for each preserved block, dense", "<=", 4.2, of(measures, "map_memory", "dense")),
        ("map bytes for each preserved block, scattered", "<=", 32, of(measures, "map_memory", "scattered")),
        ("replay: to what the disk does", ">=", 0.8, life and life["replay_limit_seconds"] / life["replay_seconds"]),
        ("check: to what the disk does", ">=", 0.8, life and life["check_limit_seconds"] / life["check_seconds"]),
    ]


def pause_ms(measures, name):
    found = of(measures, name, "p99_us")
    return None if found is None else found / 1000


def verdict(target):
    _, kind, wanted, measured = target
    if measured is None:
        return "not measured"
    return "met" if (measured >= wanted if kind == ">=" else measured <= wanted) else "NOT MET"
