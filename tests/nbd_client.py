# SPDX-License-Identifier: GPL-2.0-or-later
"""
An NBD client that speaks the protocol message by message, well or badly. Not a test by itself (no #! line).

What the names mean is in NBD's doc/proto.md. Every method waits for what it names; nothing runs in the background.
"""
import random
import socket
import struct

FIXED, NO_ZEROES = 1, 2
EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED, LIST_META, SET_META, EXTENDED = 1, 2, 3, 5, 6, 7, 8, 9, 10, 11
ACK, SERVER, REP_INFO, META = 1, 2, 3, 4
UNSUP, INVALID, UNKNOWN, REP_SHUTDOWN, TOO_BIG = (0x80000000 + n for n in (1, 3, 6, 7, 9))
READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO = 1, 2, 4, 8, 16
CHUNK_NONE, CHUNK_DATA, CHUNK_STATUS, CHUNK_ERROR = 0, 1, 5, 32769
READ_ONLY = 2  # a transmission flag
MIB = 1024 * 1024


class Gone(ConnectionError):
    """The server closed the connection."""


class Client:
    def __init__(self, path, greet=True, timeout=None):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(path)
        self.sock.settimeout(timeout)
        self.structured = False
        self.cookie = random.getrandbits(64)
        if greet:
            assert self.recv(18) == b"NBDMAGICIHAVEOPT\0\3"
            self.send(struct.pack(">I", FIXED | NO_ZEROES))

    def send(self, data):
        try:
            self.sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            raise Gone() from None

    def recv(self, count):
        data = bytearray()
        while len(data) < count:
            try:
                more = self.sock.recv(min(count - len(data), MIB))
            except ConnectionResetError:
                raise Gone() from None
            if not more:
                raise Gone()
            data += more
        return bytes(data)

    def is_dropped(self):
        """Nothing but the end comes from the server."""
        try:
            self.recv(1)
            return False
        except Gone:
            return True

    def close(self):
        self.sock.close()

    # Negotiation.
    def send_option(self, option, data=b"", magic=b"IHAVEOPT", length=None):
        self.send(magic + struct.pack(">II", option, len(data) if length is None else length) + data)

    def recv_reply(self, option):
        magic, got, kind, length = struct.unpack(">QIII", self.recv(20))
        assert magic == 0x3e889045565a9 and got == option, (magic, got)
        return kind, self.recv(length)

    def option(self, option, data=b""):
        """All replies up to the one that ends the option."""
        self.send_option(option, data)
        replies = []
        while not replies or REP_INFO >= replies[-1][0] > ACK or replies[-1][0] == META:
            replies.append(self.recv_reply(option))
        return replies

    def go(self, name="", option=GO, infos=(3,)):
        name = name.encode()
        return self.option(option, struct.pack(">I", len(name)) + name + struct.pack(">H", len(infos)) +
                           b"".join(struct.pack(">H", i) for i in infos))

    def meta(self, option, name, *queries):
        strings = [name.encode()] + [q.encode() for q in queries]
        packed = [struct.pack(">I", len(s)) + s for s in strings]
        return self.option(option, packed[0] + struct.pack(">I", len(queries)) + b"".join(packed[1:]))

    def begin(self, name="", structured=False, meta=False):
        """Goes on to the transmission, and sets size and flags. ConnectionError when there is no such export."""
        if structured:
            assert self.option(STRUCTURED) == [(ACK, b"")]
            self.structured = True
        if meta:
            assert self.meta(SET_META, name, "base:allocation")[0][0] == META
        replies = self.go(name)
        if replies[-1] != (ACK, b""):
            raise ConnectionError(f"export {name}: {replies[-1][1].decode(errors='replace') or hex(replies[-1][0])}")
        for kind, data in replies[:-1]:
            if kind == REP_INFO and data[:2] == b"\0\0":
                self.size, self.flags = struct.unpack(">QH", data[2:12])
        return self

    # Transmission.
    def ask(self, command, offset=0, length=0, data=b"", flags=0, magic=0x25609513):
        self.cookie = (self.cookie + 1) % 2**64
        self.send(struct.pack(">IHHQQI", magic, flags, command, self.cookie, offset, length or len(data)) + data)
        return self.cookie

    def simple_head(self):
        """(cookie, error) of a simple reply; a read's data follow when the error is 0."""
        magic, error, cookie = struct.unpack(">IIQ", self.recv(16))
        assert magic == 0x67446698, hex(magic)
        return cookie, error

    def simple(self, length=0):
        """(cookie, error, data); the data comes only without an error."""
        cookie, error = self.simple_head()
        return cookie, error, self.recv(length) if error == 0 else b""

    def chunk(self):
        magic, flags, kind, cookie, length = struct.unpack(">IHHQI", self.recv(20))
        assert magic == 0x668e33ef and flags == 1, (hex(magic), flags)
        return cookie, kind, self.recv(length)

    def read(self, offset, length, flags=0):
        """The data, or the error."""
        cookie = self.ask(READ, offset, length, flags=flags)
        if not self.structured:
            got, error, data = self.simple(length)
            assert got == cookie
            return error or data
        got, kind, body = self.chunk()
        assert got == cookie
        if kind == CHUNK_ERROR:
            assert len(body) == 6 and body[4:] == b"\0\0"
            return struct.unpack(">I", body[:4])[0]
        if kind == CHUNK_NONE:
            assert body == b"" and length == 0
            return b""
        assert kind == CHUNK_DATA and struct.unpack(">Q", body[:8])[0] == offset
        return body[8:]

    def do(self, command, offset=0, length=0, data=b"", flags=0):
        """The error, of a command without data in its answer."""
        cookie = self.ask(command, offset, length, data, flags)
        got, error, _ = self.simple()
        assert got == cookie
        return error

    def status(self, offset, length, flags=0):
        """[(length, flags)...], or the error."""
        cookie = self.ask(STATUS, offset, length, flags=flags)
        if not self.structured:
            return self.simple()[1]
        got, kind, body = self.chunk()
        assert got == cookie
        if kind == CHUNK_ERROR:
            return struct.unpack(">I", body[:4])[0]
        assert kind == CHUNK_STATUS and body[:4] == b"\0\0\0\1" and (len(body) - 4) % 8 == 0
        return [struct.unpack(">II", body[i:i + 8]) for i in range(4, len(body), 8)]
