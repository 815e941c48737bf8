#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The NBD server, spoken to byte by byte: nbd-protocol.py NBD-MEMORY-SERVER. Prints TAP.

Every test gets a server of its own (tests/unit/nbd-memory-server.c). Whatever a test does, at its end the server must
answer, have no connection left, have every buffer back, and exit with 0: that is checked after each one.
"""
import json
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

import nbd_client
from nbd_client import (ABORT, ACK, CACHE, CHUNK_DATA, DF, DISC, EXPORT_NAME, EXTENDED, FAST_ZERO, FLUSH, FUA, GO,
                        INFO, INVALID, LIST, LIST_META, META, NO_HOLE, READ, REP_SHUTDOWN, REQ_ONE, SERVER, SET_META,
                        STARTTLS, STATUS, STRUCTURED, TOO_BIG, TRIM, UNKNOWN, UNSUP, WRITE, ZEROES, Gone)

EPERM, EIO, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN = 1, 5, 22, 28, 75, 95, 108
SLOW = int(os.environ.get("ROWSNAP_SLOW", "1"))
KIB, MIB = 1024, 1024 * 1024
MAX = 32 * MIB
SIZE = 64 * MIB


class Client(nbd_client.Client):
    def __init__(self, server, greet=True, timeout=20 * SLOW):
        super().__init__(server.path, greet, timeout)


class Server:
    def __init__(self, *arguments, wrapper=()):
        self.folder = tempfile.TemporaryDirectory()
        self.path = self.folder.name + "/nbd"
        self.process = subprocess.Popen([*wrapper, BINARY, self.path, *map(str, arguments)], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, bufsize=0)
        assert self.line() == "ready"

    def line(self):
        if not select.select([self.process.stdout], [], [], 20 * SLOW)[0]:
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

    def cpu_seconds(self):
        with open(f"/proc/{self.process.pid}/stat", encoding="ascii") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def finish(self):
        """Whether all was given back, and it ended well."""
        quiet = self.wait(lambda s: s["connections"] == 0 and s["arena_used"] == 0)
        if not quiet:
            print("#", self.status())
        self.tell("quit")
        code = self.process.wait(20 * SLOW)
        self.process.stdin.close()
        self.process.stdout.close()
        gone = not os.path.exists(self.path)
        self.folder.cleanup()
        return quiet and code == 0 and gone


BINARY = sys.argv[1] if len(sys.argv) > 1 else ""
count = failed = 0


def check(text, ok):
    global count, failed
    count += 1
    failed += not ok
    print(f"{'ok' if ok else 'not ok'} {count} - {text}", flush=True)


def send_beside(client, data):
    """A child process that sends while we receive, or gives up when nobody takes it."""
    pid = os.fork()
    if pid == 0:
        try:
            client.sock.sendall(data)
        finally:
            os._exit(0)
    return pid


def take_all(wanted):
    """Takes that many bytes from each client, from whoever has some: True when all came."""
    while wanted:
        ready = select.select(wanted, [], [], 20 * SLOW)[0]
        for sock in ready:
            got = len(sock.recv(min(wanted[sock], MIB)))
            if got == 0:
                return False
            wanted[sock] -= got
            if wanted[sock] == 0:
                del wanted[sock]
        if not ready:
            return False
    return True


def pattern(length, seed=1):
    return random.Random(seed).randbytes(length)


# ---- negotiation


def test_greeting(server):
    client = Client(server, greet=False)
    check("the greeting says fixed newstyle, no zeroes", client.recv(18) == b"NBDMAGICIHAVEOPT\0\3")
    client.send(struct.pack(">I", 4))
    check("unknown client flags drop the connection", client.is_dropped())
    check("which counts as a protocol error", server.status()["protocol_errors"] == 1)


def test_list(server):
    client = Client(server)
    replies = client.option(LIST)
    names = [body[4:].decode() for kind, body in replies if kind == SERVER]
    check("LIST gives all names", names == ["origin", "snap", "late", "slow", "held", "broken"])
    check("and ends with ACK", replies[-1] == (ACK, b""))
    check("LIST with data is invalid", client.option(LIST, b"x") == [(INVALID, b"")])
    check("and negotiation goes on", client.option(ABORT) == [(ACK, b"")])
    check("ABORT ends it", client.is_dropped())


def test_info(server):
    client = Client(server)
    infos = {struct.unpack(">H", body[:2])[0]: body[2:] for _, body in client.go("snap", INFO, (1, 2, 3))[:-1]}
    flags = struct.unpack(">QH", infos[0])
    check("INFO tells size and flags: read-only, flush, FUA, multi-conn", flags == (SIZE, 1 | 2 | 4 | 8 | 256))
    check("the name", infos[1] == b"snap")
    check("a description with the time", infos[2] == b"read-only, as of 2023-11-14T22:13:20Z")
    check("the block sizes", struct.unpack(">III", infos[3]) == (1, 4096, MAX))
    infos = {struct.unpack(">H", body[:2])[0]: body[2:] for _, body in client.go("", INFO, (1, 77))[:-1]}
    check("the empty name is the origin, unknown infos are ignored", infos[1] == b"origin" and sorted(infos) == [0, 1])
    flags = struct.unpack(">QH", infos[0])[1]
    check("its flags: trim and write zeroes, not read-only", flags == 1 | 4 | 8 | 32 | 64 | 256)
    client.structured = client.option(STRUCTURED) == [(ACK, b"")]
    infos = {struct.unpack(">H", body[:2])[0]: body[2:] for _, body in client.go("", INFO, ())[:-1]}
    check("with structured replies DF is offered", struct.unpack(">QH", infos[0])[1] & 128 != 0)
    for name in ("nothing", "x" * 64, "x" * 4000, "snap\0"):
        check(f"INFO of an unknown export ({len(name)} bytes) says so", client.go(name, INFO) == [(UNKNOWN, b"")])
    check("GO too", client.go("nothing") == [(UNKNOWN, b"")])
    for data in (b"", b"\0\0\0\5origin\0\0", b"\0\0\0\6origin\0\1", b"\0\0\0\6origin", b"\xff\xff\xff\xff",
                 b"\0\0\0\6origin\0\0x"):
        check(f"malformed INFO data {data!r} is invalid", client.option(INFO, data) == [(INVALID, b"")])
    check("and GO still works", client.go("origin")[-1] == (ACK, b""))
    check("so does the transmission", client.read(0, 512) == bytes(512))
    client.close()


def test_export_name(server):
    client = Client(server)
    client.send_option(EXPORT_NAME, b"snap")
    size, flags = struct.unpack(">QH", client.recv(10))
    check("EXPORT_NAME answers with size and flags, no zeroes", size == SIZE and flags & 3 == 3)
    check("and transmission begins", client.read(0, 4096) == bytes(4096))
    client.close()
    client = Client(server, greet=False)
    client.recv(18)
    client.send(struct.pack(">I", 0))
    client.send_option(EXPORT_NAME, b"")
    check("an old client gets its 124 zeroes", client.recv(134)[10:] == bytes(124))
    check("and is served", client.do(WRITE, 0, data=b"old") == 0 and client.read(0, 3) == b"old")
    client.close()
    client = Client(server)
    client.send_option(EXPORT_NAME, b"nothing")
    check("EXPORT_NAME of an unknown export closes", client.is_dropped())


def test_unsupported_options(server):
    client = Client(server)
    for option in (STARTTLS, EXTENDED, 4, 12, 0, 0xffffffff):
        check(f"option {option} is not supported", client.option(option, b"data") == [(UNSUP, b"")])
    check("and negotiation goes on", client.go()[-1] == (ACK, b""))
    client.close()


def test_option_bounds(server):
    client = Client(server)
    check("long option data is too big", client.option(LIST, bytes(20000)) == [(TOO_BIG, b"")])
    check("at 64 KiB too", client.option(77, bytes(65536)) == [(TOO_BIG, b"")])
    check("and negotiation goes on", client.option(STRUCTURED) == [(ACK, b"")])
    client.send_option(LIST, length=65537)
    check("beyond that the connection is dropped", client.is_dropped())
    client = Client(server)
    client.send_option(EXPORT_NAME, length=5000)
    check("a very long EXPORT_NAME is dropped", client.is_dropped())
    client = Client(server)
    check("32 options are served", all(client.option(STARTTLS) == [(UNSUP, b"")] for _ in range(32)))
    client.send_option(STARTTLS)
    check("not one more", client.is_dropped())
    client = Client(server)
    client.send_option(LIST, magic=b"IHAVENOT")
    check("a bad option magic is dropped", client.is_dropped())


def test_pipelined_negotiation(server):
    client = Client(server, greet=False)
    name = struct.pack(">I", 4) + b"snap"
    meta = name + struct.pack(">II", 1, 15) + b"base:allocation"
    stream = struct.pack(">I", 3)
    for option, data in ((LIST, b""), (STRUCTURED, b""), (SET_META, meta), (GO, name + b"\0\0")):
        stream += b"IHAVEOPT" + struct.pack(">II", option, len(data)) + data
    stream += struct.pack(">IHHQQI", 0x25609513, 0, READ, 7, 0, 4)
    stream += struct.pack(">IHHQQI", 0x25609513, 0, DISC, 8, 0, 0)
    for byte in range(len(stream)):
        client.send(stream[byte:byte + 1])
    client.recv(18)
    for option, replies in ((LIST, 7), (STRUCTURED, 1), (SET_META, 2), (GO, 2)):
        for _ in range(replies):
            last = client.recv_reply(option)
        check(f"option {option} is answered though all was sent at once, byte by byte", last == (ACK, b""))
    check("and the read behind them", client.chunk() == (7, CHUNK_DATA, bytes(12)))
    check("DISC ends it", client.is_dropped())


def test_meta_contexts(server):
    client = Client(server)
    check("contexts need structured replies", client.meta(SET_META, "snap", "base:allocation") == [(INVALID, b"")])
    check("STRUCTURED_REPLY with data is invalid", client.option(STRUCTURED, b"x") == [(INVALID, b"")])
    check("STRUCTURED_REPLY is agreed", client.option(STRUCTURED) == [(ACK, b"")])
    found = [(META, b"\0\0\0\0base:allocation"), (ACK, b"")]
    chosen = [(META, b"\0\0\0\1base:allocation"), (ACK, b"")]
    none = [(ACK, b"")]
    check("LIST without queries gives the one there is", client.meta(LIST_META, "snap") == found)
    check("base: too", client.meta(LIST_META, "snap", "base:") == found)
    check("so does its name, among others", client.meta(LIST_META, "", "qemu:x", "base:allocation", "base:x") == found)
    check("an unknown one gives nothing", client.meta(LIST_META, "snap", "qemu:") == none)
    check("SET chooses by name, once",
          client.meta(SET_META, "snap", "x", "base:allocation", "base:allocation") == chosen)
    check("SET of a wildcard chooses nothing", client.meta(SET_META, "snap", "base:") == none)
    check("SET without queries too", client.meta(SET_META, "snap") == none)
    check("for an unknown export it fails", client.meta(SET_META, "nothing", "base:allocation") == [(UNKNOWN, b"")])
    for data in (b"", b"\0\0\0\0", b"\0\0\0\0\0\0\0\1", b"\0\0\0\0\0\0\0\1\0\0\0\5base", b"\0\0\0\0\xff\xff\xff\xff",
                 b"\0\0\0\0\0\0\0\0x"):
        check(f"malformed queries {data!r} are invalid", client.option(SET_META, data) == [(INVALID, b"")])
    client.begin("snap")
    client.structured = True
    check("a context that was unset again is not served", client.status(0, 4096) == EINVAL)
    client.close()
    client = Client(server)
    client.option(STRUCTURED)
    client.structured = True
    client.meta(SET_META, "snap", "base:allocation")
    client.begin("origin")
    check("nor one that was chosen for another export", client.status(0, 4096) == EINVAL)
    client.close()


def test_handshake_deadline(server):
    silent = Client(server)
    half = Client(server, greet=False)
    half.send(b"\0\0")
    served = Client(server).begin()
    began = time.monotonic()
    check("who does not negotiate in time is dropped", silent.is_dropped() and half.recv(18) and half.is_dropped())
    check("not at once", time.monotonic() - began > 0.3)
    time.sleep(0.3)
    check("who did may stay", served.read(0, 1) == b"\0")
    served.close()


test_handshake_deadline.arguments = (64, 64, 600)


# ---- transmission


def test_read_and_write(server):
    client = Client(server).begin()
    data = pattern(4096)
    check("what was written", client.do(WRITE, 8192, data=data) == 0)
    check("can be read", client.read(8192, 4096) == data)
    for offset, length in ((1, 1), (511, 2), (4095, 4098), (12345, 65537), (SIZE - 7, 7)):
        data = pattern(length, offset)
        ok = client.do(WRITE, offset, data=data) == 0 and client.read(offset, length) == data
        check(f"at the odd place {offset}, {length} bytes too", ok)
    check("other connections see it", Client(server).begin("snap").read(SIZE - 7, 7) == pattern(7, SIZE - 7))
    check("a FLUSH is passed on", client.do(FLUSH) == 0 and server.status()["flushes"] == 1)
    check("so is FUA", client.do(WRITE, 0, data=b"x", flags=FUA) == 0 and server.status()["fua"] == 1)
    check("on a read it is ignored", client.read(0, 1, flags=FUA) == b"x" and server.status()["fua"] == 1)
    check("on a zeroing it counts", client.do(ZEROES, 0, 4096, flags=FUA) == 0 and server.status()["fua"] == 2)
    check("which zeroes", client.read(0, 4096) == bytes(4096))
    check("with NO_HOLE too", client.do(ZEROES, 8192, 4096, flags=NO_HOLE) == 0 and client.read(8192, 9) == bytes(9))
    check("TRIM is carried out", client.do(TRIM, 0, SIZE) == 0)
    check("zero lengths do nothing, well", client.read(0, 0) == b"" and client.do(ZEROES) == 0 and client.do(TRIM) == 0
          and client.do(WRITE) == 0 and client.read(SIZE, 0) == b"")
    check("nothing more was said", not select.select([client.sock], [], [], 0.05)[0])
    client.ask(DISC)
    check("DISC closes", client.is_dropped())


def test_largest_requests(server):
    data = pattern(MAX)
    for structured in (False, True):
        client = Client(server).begin("late", structured)
        check("32 MiB can be written", client.do(WRITE, 12345, data=data) == 0)
        check("and read", client.read(12345, MAX) == data)
        check("a longer read is refused", client.read(0, MAX + 1) == EINVAL and client.read(0, 2**32 - 1) == EINVAL)
        check("and the connection goes on", client.read(12345, 16) == data[:16])
        data = data[::-1]
        client.ask(WRITE, 0, MAX + 1)
        check("a longer write drops the connection", client.is_dropped())


def test_structured_reads(server):
    client = Client(server).begin(structured=True)
    data = pattern(100000)
    check("writes are answered as before", client.do(WRITE, 77, data=data) == 0)
    check("a read comes as a chunk", client.read(77, 100000) == data)
    check("with DF too", client.read(77, 100000, flags=DF) == data)
    check("a read of nothing is an empty chunk", client.read(77, 0) == b"")
    check("an error is a chunk", client.read(SIZE, 1) == EINVAL)
    client.close()
    client = Client(server).begin("broken", structured=True)
    check("also one from below", client.read(0, 1) == EIO)
    check("BLOCK_STATUS without the context is refused", client.status(0, 4096) == EINVAL)
    client.close()


def test_refusals(server):
    client = Client(server).begin()
    data = pattern(70000)
    check("reads beyond the end are invalid",
          client.read(SIZE - 1, 2) == EINVAL and client.read(2**64 - 1, 1) == EINVAL)
    check("writes there find no space", client.do(WRITE, SIZE - 1, data=data) == ENOSPC
          and client.do(WRITE, 2**64 - 5, data=data) == ENOSPC and client.do(ZEROES, SIZE, 1) == ENOSPC)
    check("a TRIM there is invalid", client.do(TRIM, SIZE, 1) == EINVAL)
    check("unknown flags are invalid", client.read(0, 1, flags=32) == EINVAL
          and client.do(WRITE, data=data, flags=NO_HOLE) == EINVAL
          and client.do(ZEROES, 0, 9, flags=FAST_ZERO) == EINVAL)
    check("DF needs structured replies", client.read(0, 1, flags=DF) == EINVAL)
    check("CACHE and unknown commands are invalid", client.do(CACHE, 0, 9) == EINVAL and client.do(99, 0, 9) == EINVAL)
    check("so is a FLUSH of a range", client.do(FLUSH, 0, 1) == EINVAL and client.do(FLUSH, 1, 0) == EINVAL)
    check("BLOCK_STATUS unasked for too", client.status(0, 4096) == EINVAL)
    check("all payloads were taken for what they are", client.read(0, 5) == bytes(5))
    snap = Client(server).begin("snap")
    check("a snapshot refuses every change", snap.do(WRITE, 0, data=data) == EPERM and snap.do(ZEROES, 0, 1) == EPERM
          and snap.do(TRIM, 0, 1) == EPERM)
    check("and takes a FLUSH", snap.do(FLUSH) == 0)
    snap.close()
    client.ask(READ, magic=0x25609514)
    check("a bad magic drops the connection", client.is_dropped())


def test_error_numbers(server):
    client = Client(server).begin("broken")
    wire = {1: 1, 5: 5, 12: 12, 13: 5, 22: 22, 27: 28, 28: 28, 30: 1, 75: 75, 95: 95, 108: 108, 110: 5, 122: 28}
    check("errors are NBD's own numbers, others are EIO",
          {number: client.read(number * 4096, 1) for number in wire} == wire)
    check("for writes too", client.do(WRITE, 28 * 4096, data=b"x") == ENOSPC)
    client.close()


def test_block_status(server):
    client = Client(server).begin("origin", structured=True, meta=True)
    piece = 65536
    check("holes and data alternate", client.status(0, 4 * piece) == [(piece, 3), (piece, 0)] * 2)
    check("ranges may be odd", client.status(100, piece) == [(piece - 100, 3), (100, 0)])
    check("REQ_ONE gives one extent", client.status(0, SIZE, flags=REQ_ONE) == [(piece, 3)])
    extents = client.status(0, SIZE)
    check("many extents are a prefix", len(extents) == 128 and set(extents) == {(piece, 3), (piece, 0)})
    client.do(WRITE, 0, data=b"x")
    check("what was written is data", client.status(0, 3 * piece)[0] == (2 * piece, 0))
    check("beyond the end is invalid", client.status(SIZE - 1, 2) == EINVAL)
    check("nothing is invalid", client.status(0, 0) == EINVAL)
    client.ask(READ, 0, 1)
    check("reads are chunks beside it", client.chunk()[1] == CHUNK_DATA)
    client.close()


def test_pipelining(server):
    for name in ("origin", "late"):
        client = Client(server).begin(name)
        blocks = [pattern(4096, n) for n in range(1000)]
        stream = bytearray()
        for n, block in enumerate(blocks):
            stream += struct.pack(">IHHQQI", 0x25609513, 0, WRITE, n, n * 4096, 4096) + block
        pid = send_beside(client, stream)
        cookies = [client.simple() for _ in blocks]
        os.waitpid(pid, 0)
        check(f"a thousand writes in one go are all answered ({name})",
              sorted(c for c, _, _ in cookies) == list(range(1000)) and all(e == 0 for _, e, _ in cookies))
        stream = b"".join(struct.pack(">IHHQQI", 0x25609513, 0, READ, n, n * 4096, 4096) for n in range(1000))
        pid = send_beside(client, stream)
        got = {}
        for _ in blocks:
            cookie, _, data = client.simple(4096)
            got[cookie] = data
        os.waitpid(pid, 0)
        check("and a thousand reads, each with its own data", all(got[n] == block for n, block in enumerate(blocks)))
        client.close()


def reads(first, count):
    return b"".join(struct.pack(">IHHQQI", 0x25609513, 0, READ, n, n * 4096, 4096) for n in range(first, first + count))


def test_rows_of_replies(server):
    """Long rows go out in parts, between which the server waits a moment for the client: none may be kept back."""
    blocks = [pattern(4096, n) for n in range(256)]
    client = Client(server).begin()
    for n, block in enumerate(blocks):
        client.ask(WRITE, n * 4096, data=block)
        client.simple()

    def take(client, wanted):
        got = [client.simple(4096) for _ in wanted]
        return sorted(c for c, _, _ in got) == list(wanted) and all(blocks[c] == data for c, _, data in got)

    for length in (8, 9, 16, 17, 32, 100, 128):
        good = True
        for _ in range(40):
            client.send(reads(0, length))
            good = take(client, range(length)) and good
        check(f"who asks for {length} reads in one go, and for no more, gets all", good)
    good = True
    client.send(reads(0, 32))
    for n in range(32, 256):
        cookie, _, data = client.simple(4096)
        good = good and data == blocks[cookie]
        client.send(reads(n, 1))
    good = all(client.simple(4096)[1] == 0 for _ in range(32)) and good
    check("so does who asks for another with every reply", good)
    client.send(reads(0, 32) + reads(32, 1)[:10])
    good = take(client, range(32))
    client.send(reads(32, 1)[10:])
    check("and who stops in the middle of a request", good and take(client, range(32, 33)))
    client.send(reads(0, 64))
    client.sock.shutdown(socket.SHUT_WR)
    check("and who ends sending right behind it", take(client, range(64)) and client.is_dropped())
    for taken in (0, 1, 8, 9, 30):
        client = Client(server).begin()
        client.send(reads(0, 64))
        for _ in range(taken):
            client.simple(4096)
        client.close()
    check("and a client may go in the middle of a row", server.wait(lambda s: s["connections"] == 0 and s["arena_used"] == 0))


def test_pace_after_a_long_turn(server):
    """Who has sent something is heard, however long the turn took: nothing is for the clock to decide here."""
    client = Client(server).begin()
    client.send(reads(0, 9))
    for _ in range(9):
        client.simple(4096)
    status = server.status()
    if status["pace_silent"] == 0:
        check("who sends nothing is waited for once # SKIP the waits of this kernel are too coarse", True)
        return
    check("who sends nothing is waited for once", status["pace_silent"] == 1 and status["pace_heard"] == 0)
    client.close()
    server.tell("dawdle")
    client = Client(server).begin()
    stream = reads(0, 9)
    payload = bytes(65536 - len(stream) - 28 - 10)  # what is read at once ends within the request that follows
    stream += struct.pack(">IHHQQI", 0x25609513, 0, WRITE, 9, MIB, len(payload)) + payload + reads(10, 1)
    server.process.send_signal(signal.SIGSTOP)
    try:
        client.send(stream)
    finally:
        server.process.send_signal(signal.SIGCONT)
    good = all(client.simple(4096)[0] == n for n in range(9))
    good = client.simple()[0] == 9 and client.simple(4096)[0] == 10 and good
    status = server.status()
    check("who has sent something counts as heard", good and status["pace_silent"] == 1 and status["pace_heard"] == 1)
    client.close()


def test_disc_finishes(server):
    client = Client(server).begin("slow")
    client.ask(WRITE, 0, data=b"kept")
    client.ask(READ, 0, 4)
    client.ask(DISC)
    check("what was asked before DISC is answered", client.simple()[1] == 0 and client.simple(4)[2] == b"kept")
    check("then it closes", client.is_dropped())
    client = Client(server).begin("slow")
    client.ask(WRITE, 0, data=b"gone")
    client.ask(DISC)
    client.close()
    server.wait(lambda s: s["connections"] == 0)
    check("also for one that closed without waiting", Client(server).begin().read(0, 4) == b"gone")
    client = Client(server).begin("slow")
    client.ask(READ, 0, 4)
    client.sock.shutdown(socket.SHUT_WR)
    check("one that only stops sending gets its answers", client.simple(4)[2] == b"gone" and client.is_dropped())


def test_vanishing_with_requests_unread(server):
    """More is in the socket than the server reads at once when the client goes, and it never read a reply."""
    client = Client(server).begin("late")
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MIB)
    for n in range(24):
        client.ask(WRITE, n * 8192, data=bytes([n + 1]) * 8192)
    client.ask(DISC)
    client.close()
    check("it goes away", server.wait(lambda s: s["connections"] == 0))
    reader = Client(server).begin()
    check("every write it sent was carried out", all(reader.read(n * 8192, 2) == bytes([n + 1]) * 2 for n in range(24)))
    reader.close()


# ---- clients that go away, or behave badly


def test_vanishing_everywhere(server):
    name = struct.pack(">I", 4) + b"slow"
    meta = name + struct.pack(">II", 1, 15) + b"base:allocation"
    stream = struct.pack(">I", 3)
    for option, data in ((STRUCTURED, b""), (LIST, b""), (SET_META, meta), (GO, name + b"\0\1\0\3")):
        stream += b"IHAVEOPT" + struct.pack(">II", option, len(data)) + data
    for command, length, data in ((READ, 5000, b""), (WRITE, 40, b"x" * 40), (STATUS, 4096, b""), (FLUSH, 0, b"")):
        stream += struct.pack(">IHHQQI", 0x25609513, 0, command, 7, 0, length) + data
    for cut in range(len(stream) + 1):
        client = Client(server, greet=False)
        client.send(stream[:cut])
        client.close()
    check(f"a client may vanish at any of {len(stream)} bytes", server.wait(lambda s: s["connections"] == 0))
    for cut in (0, 27, 28, 29, 1000, 65536, 70000, MIB - 1):
        client = Client(server).begin("late")
        client.send((struct.pack(">IHHQQI", 0x25609513, 0, WRITE, 7, 0, MIB) + bytes(MIB))[:cut + 28])
        client.close()
    check("or within a large payload", server.wait(lambda s: s["connections"] == 0 and s["arena_used"] == 0))


def test_vanishing_mid_request(server):
    clients = [Client(server).begin("held") for _ in range(10)]
    for client in clients:
        for _ in range(20):
            client.ask(READ, 0, 65536)
            client.ask(WRITE, 0, data=bytes(4096))
    server.wait(lambda s: s["requests"] == 400)
    for client in clients:
        client.close()
    time.sleep(0.1)
    status = server.status()
    check("requests of clients that vanished stay with the engine", status["arena_used"] == 200 * (65536 + 4096)
          and not status["idle"])
    server.tell("release")
    check("and complete into the void",
          server.wait(lambda s: s["connections"] == 0 and s["arena_used"] == 0 and s["idle"]))


def test_garbage(server):
    rng = random.Random(42)
    good = struct.pack(">I", 3)
    go = b"IHAVEOPT" + struct.pack(">II", GO, 6) + struct.pack(">IH", 0, 0)
    ask = struct.pack(">IHHQQI", 0x25609513, 0, READ, 7, 0, 64)
    for n in range(1500):
        stream = bytearray((good + go + ask * 3)[:rng.randrange(4, 140)] if n % 3 else good + go + ask * 3)
        for _ in range(rng.randrange(1, 5)):
            stream[rng.randrange(len(stream))] = rng.randrange(256)
        if n % 2:
            stream += rng.randbytes(rng.randrange(2000))
        client = Client(server, greet=False)
        try:
            client.send(bytes(stream))
            client.sock.shutdown(socket.SHUT_WR)
            while client.sock.recv(65536):
                pass
        except (Gone, OSError):
            pass
        client.close()
    check("1,500 garbled clients leave the server well", Client(server).begin().read(0, 1) is not None)


def test_chaos(server):
    """Sixty clients at a time, in a small arena, that ask for anything, read some of it, and vanish at any moment."""
    rng = random.Random(7)
    clients = []
    for _ in range(6000):
        if len(clients) < 60:
            client = Client(server).begin(rng.choice(("origin", "late", "slow", "snap", "broken")),
                                          structured=rng.random() < 0.5)
            client.sock.setblocking(False)
            clients.append(client)
        client = rng.choice(clients)
        length = rng.choice((1, 4096, 65536, 300000, 5 * MIB, 20 * MIB))
        command = rng.choice((READ, READ, WRITE, FLUSH, TRIM, ZEROES, STATUS, 42))
        data = bytes(length) if command == WRITE else b""
        header = struct.pack(">IHHQQI", 0x25609513, 0, command, 1, rng.randrange(SIZE), length)
        try:
            client.sock.send((header + data)[:rng.choice((9, 28, 30000, 100 * MIB))])
            if rng.random() < 0.7:
                client.sock.recv(rng.choice((16, 5000, 20 * MIB)))
        except BlockingIOError:
            pass
        except OSError:
            client.close()
            clients.remove(client)
            continue
        if rng.random() < 0.15:
            client.close()
            clients.remove(client)
    for client in clients:
        client.close()
    check("six thousand requests of clients that come and go leave the server well",
          Client(server).begin().do(FLUSH) == 0)


test_chaos.arguments = (64, 40)


def test_silent_reader(server):
    """Asks for much and never reads it, while others work."""
    silent = Client(server).begin()
    for _ in range(100):
        silent.ask(READ, 0, MIB)
    time.sleep(0.2)
    used = server.status()["arena_used"]
    check("it holds its share of the arena at most", 0 < used <= MAX)
    other = Client(server).begin()
    check("others are served meanwhile", other.read(0, MIB) == bytes(MIB) and other.do(WRITE, 0, data=bytes(MIB)) == 0)
    before = server.cpu_seconds()
    time.sleep(0.5)
    check("and nobody spins", server.cpu_seconds() - before < 0.2)
    check("nobody wants its memory: it may stay", server.status()["connections"] == 2)
    for _ in range(100):
        silent.simple(MIB)
    check("and get all its replies, late as it is", silent.read(0, 1) == b"\0")
    silent.close()
    other.close()


test_silent_reader.arguments = (64, 64, 500)


def test_silent_readers_are_dropped(server):
    silent = [Client(server).begin() for _ in range(5)]
    for client in silent:
        for _ in range(40):
            client.ask(READ, 0, MIB)
    time.sleep(0.1)
    other = Client(server).begin("late")
    began = time.monotonic()
    check("who needs memory that silent readers hold gets it in the end", other.read(0, MIB) == bytes(MIB))
    check("in bounded time", time.monotonic() - began < 6 * SLOW)
    other.close()
    for client in silent:
        client.close()


test_silent_readers_are_dropped.arguments = (64, 64, 700)


def test_vanishing_while_waiting_for_memory(server):
    holders = [Client(server).begin() for _ in range(2)]
    for client in holders:
        client.send(struct.pack(">IHHQQI", 0x25609513, 0, WRITE, 7, 0, MAX) + b"some")
    server.wait(lambda s: s["arena_used"] == 64 * MIB)
    clients = [Client(server).begin() for _ in range(4)]
    clients[0].ask(READ, 0, 4096)
    clients[1].ask(WRITE, 0, data=b"complete")
    clients[2].ask(WRITE, 0, length=100000)
    clients[3].ask(READ, 0, 4096)
    clients[3].ask(WRITE, 4096, data=b"behind")
    time.sleep(0.1)
    for client in clients:
        client.close()
    check("reads, and writes that will never be complete, leave the queue with their client",
          server.wait(lambda s: s["connections"] == 4))
    before = server.cpu_seconds()
    time.sleep(0.5)
    check("nobody spins", server.cpu_seconds() - before < 0.2)
    for client in holders:
        client.close()
    check("a write that is complete is carried out",
          server.wait(lambda s: s["connections"] == 0) and Client(server).begin().read(0, 8) == b"complete")
    check("also behind a read that was not", Client(server).begin().read(4096, 6) == b"behind")


def test_silent_writers_are_dropped(server):
    silent = [Client(server).begin() for _ in range(2)]
    for client in silent:
        client.send(struct.pack(">IHHQQI", 0x25609513, 0, WRITE, 7, 0, MAX) + b"some")
    time.sleep(0.1)
    check("two half-sent writes of 32 MiB take the arena", server.status()["arena_used"] == 64 * MIB)
    other = Client(server).begin("late")
    check("who needs memory gets it", other.do(WRITE, 0, data=bytes(MIB)) == 0)
    check("from those who went silent", all(client.is_dropped() for client in silent))
    other.close()


test_silent_writers_are_dropped.arguments = (64, 64, 700)


def test_crowd(server):
    """Forty clients with 32 requests of 256 KiB each want 320 MiB of a 40 MiB arena."""
    clients = [Client(server).begin("late") for _ in range(40)]
    for client in clients:
        for n in range(32):
            client.ask(READ, n * 256 * KIB, 256 * KIB)
    check("with far more asked for than there is memory, all make progress",
          take_all({client.sock: 32 * (256 * KIB + 16) for client in clients}))
    for client in clients:
        client.ask(WRITE, 0, data=bytes(MIB // 2))
    check("writers too", all(client.simple()[1] == 0 for client in clients))
    big = [Client(server).begin() for _ in range(4)]
    for client in big:
        client.ask(READ, 0, MAX)
    for client in clients:
        client.ask(READ, 0, 4096)
    check("and the largest requests among small ones",
          take_all({client.sock: MAX + 16 for client in big} | {client.sock: 4096 + 16 for client in clients}))
    for client in clients + big:
        client.close()


test_crowd.arguments = (64, 40)


def test_pool_limit(server):
    client = Client(server).begin("held")
    client.send(b"".join(struct.pack(">IHHQQI", 0x25609513, 0, READ, n, 0, 16) for n in range(500)))
    check("at most 128 requests of a client are in flight", server.wait(lambda s: s["requests"] == 128))
    time.sleep(0.1)
    check("the rest waits in its socket", server.status()["requests"] == 128)
    done = 0
    for _ in range(100):
        server.tell("release")
        while select.select([client.sock], [], [], 0.05)[0] and done < 500:
            client.simple(16)
            done += 1
    check("and is served as they complete", done == 500 and server.status()["requests"] == 500)
    client.close()


def test_connection_limit(server):
    clients = [Client(server).begin() for _ in range(8)]
    check("one connection too many is closed", Client(server, greet=False).is_dropped())
    check("the others are served", all(client.read(0, 1) == b"\0" for client in clients))
    clients[0].close()
    check("one that goes makes room",
          server.wait(lambda s: s["connections"] == 7) and Client(server).begin().read(0, 1) == b"\0")
    for client in clients:
        client.close()


test_connection_limit.arguments = (64, 64, 10000, 8)


def test_no_descriptors(server):
    clients = []
    try:
        for _ in range(40):
            clients.append(Client(server, timeout=SLOW).begin())
    except TimeoutError:
        pass
    check("without descriptors a client waits", 5 < len(clients) < 40)
    before = server.cpu_seconds()
    time.sleep(1)
    check("the server does not spin then", server.cpu_seconds() - before < 0.3)
    check("and serves those it has", all(client.read(0, 1) == b"\0" for client in clients))
    clients.pop().close()
    check("and one more when there is room", Client(server).begin().read(0, 1) == b"\0")
    for client in clients:
        client.close()


test_no_descriptors.wrapper = ("sh", "-c", 'ulimit -n 24; exec "$@"', "sh")


# ---- exports that go, and the end


def test_export_removal(server):
    idle, busy, other = Client(server).begin("held"), Client(server).begin("held"), Client(server).begin("snap")
    busy.ask(READ, 0, 4096)
    server.wait(lambda s: s["requests"] == 1)
    server.tell("remove held")
    check("a connection without requests is closed when its export goes", idle.is_dropped())
    late = busy.ask(WRITE, 0, data=bytes(1000))
    check("a new command is told of the shutdown", busy.simple() == (late, ESHUTDOWN, b""))
    late = busy.ask(READ, SIZE, 1)
    check("whatever it is", busy.simple() == (late, ESHUTDOWN, b""))
    check("the export is not released while a request is under way", server.status()["released"] == 0)
    server.tell("release")
    check("which is answered", busy.simple(4096)[1] == 0)
    check("then the connection closes", busy.is_dropped())
    check("and the export is released, once", server.wait(lambda s: s["released"] == 1))
    check("new clients don't find it", Client(server).go("held") == [(UNKNOWN, b"")])
    check("other exports live on", other.read(0, 1) == b"\0")
    server.tell("add held")
    check("it can come back", Client(server).begin("held") is not None)
    other.close()


def test_export_removal_in_all_states(server):
    half = Client(server).begin("slow")
    half.send(struct.pack(">IHHQQI", 0x25609513, 0, WRITE, 7, 0, MIB) + b"some")
    unread = Client(server).begin("slow")
    for _ in range(40):
        unread.ask(READ, 0, MIB)
    waiting = [Client(server).begin("slow") for _ in range(3)]
    for client in waiting:
        client.ask(READ, 0, MAX)
    time.sleep(0.1)
    server.tell("remove slow")
    check("the export is released though clients are silent, half-way, or wait for memory",
          server.wait(lambda s: s["released"] == 1 and s["connections"] == 0))
    for client in (half, unread, *waiting):
        client.close()


test_export_removal_in_all_states.arguments = (64, 64, 700)


def test_quiesce(server):
    client, idle = Client(server).begin("held"), Client(server).begin("origin")
    negotiating = Client(server)
    half = Client(server).begin("origin")
    half.send(struct.pack(">IHHQQI", 0x25609513, 0, WRITE, 7, 0, 8) + b"some")
    client.ask(WRITE, 0, data=b"last")
    server.wait(lambda s: s["requests"] == 1)
    server.tell("quiesce")
    try:
        Client(server)
        refused = False
    except (FileNotFoundError, ConnectionRefusedError):
        refused = True
    check("when it is quiesced no new client can connect", refused)
    check("one that negotiates is told of the shutdown", negotiating.go() == [(REP_SHUTDOWN, b"")])
    negotiating.send_option(EXPORT_NAME, b"")
    check("EXPORT_NAME closes", negotiating.is_dropped())
    late = client.ask(READ, 0, 4)
    check("a new command too", client.simple() == (late, ESHUTDOWN, b"") and idle.do(FLUSH) == ESHUTDOWN)
    half.send(b"more")
    check("and one whose payload came too late", half.simple() == (7, ESHUTDOWN, b""))
    check("it is not idle while a request is under way", not server.status()["idle"])
    server.tell("release")
    check("which is answered", client.simple()[1] == 0)
    check("then it is", server.status()["idle"])
    for one in (client, idle, half):
        one.close()


def test_quiesce_with_silent_reader(server):
    silent = Client(server).begin()
    for _ in range(40):
        silent.ask(READ, 0, MIB)
    time.sleep(0.1)
    server.tell("quiesce")
    check("replies that nobody takes don't keep it from becoming idle", server.wait(lambda s: s["idle"]))
    silent.close()


test_quiesce_with_silent_reader.arguments = (64, 64, 500)


def test_close_with_clients(server):
    clients = [Client(server).begin() for _ in range(3)] + [Client(server)]
    clients[0].send(struct.pack(">IHHQQI", 0x25609513, 0, WRITE, 7, 0, MIB) + b"some")
    time.sleep(0.05)
    server.tell("quit")
    check("closing drops the clients that are left", all(client.is_dropped() for client in clients))
    code = server.process.wait(20 * SLOW)
    check("and leaves nothing behind", code == 0 and not os.path.exists(server.path))
    server.process.stdin.close()
    server.process.stdout.close()
    server.folder.cleanup()


test_close_with_clients.finishes = True


def run(test):
    arguments = list(getattr(test, "arguments", ()))
    arguments[2:3] = [deadline * SLOW for deadline in arguments[2:3]]
    server = Server(*arguments, wrapper=getattr(test, "wrapper", ()))
    try:
        test(server)
        if not hasattr(test, "finishes"):
            check(f"{test.__name__}: all is given back at the end", server.finish())
    except (Gone, AssertionError, OSError, struct.error, ValueError) as error:
        check(f"{test.__name__}: {error!r} at line {error.__traceback__.tb_next.tb_lineno}", False)
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.process.wait()


def main():
    wanted = sys.argv[2:]
    if not BINARY:
        sys.exit("usage: nbd-protocol.py NBD-MEMORY-SERVER [TEST...]")
    for name, test in list(globals().items()):
        if name.startswith("test_") and (not wanted or name in wanted):
            run(test)
    print(f"1..{count}")
    sys.exit(1 if failed else 0)


main()
