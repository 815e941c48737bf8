# SPDX-License-Identifier: GPL-2.0-or-later
"""
A kernel with dm-user, for tests on kernels without it: device mapper, channels, and the block devices above them. Not a
test by itself (no #! line).

    kernel = Kernel()
    server = Server(kernel, "origin.img", "--volume=demo", "--dm-user=disk", cwd=folder)
    device = kernel.open("disk")            # a Device: read, write, flush, discard, zero, close
    server.rowsnap("snapshot", "demo", "monday", "monday.store")
    kernel.open("disk-monday").read(0, 4096)
    device.close(); server.stop(); kernel.close(); assert not kernel.violations

The program under test runs unchanged, with $ROWSNAP_BUILD/tests/dm-user-preload.so loaded into it, which sends here
what it asks of the kernel (the protocol is described in tests/fake/dm-user-preload.c). What is answered follows the
driver as Android's kernels have it: messages are dealt out to whoever reads first; a read() gives at most the rest of the
header, or of the payload; replies are taken on the channel that gave the message, and only once its payload was read;
after an error's header nothing of the reply is looked at, what follows is the next header; a wrong sequence number
makes a channel fail for good; a closed channel fails what it had; without channels everything fails; removal ends a
sleeping read() with ENOTBLK.

Everything that the real driver would not forgive, or that would make it wait for ever, is noted in kernel.violations.
"""
import collections
import errno
import os
import pathlib
import random
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time

SLOW = int(os.environ.get("ROWSNAP_SLOW", "1"))
BUILD = os.environ.get("ROWSNAP_BUILD", str(pathlib.Path(__file__).resolve().parent.parent / "build"))
PROGRAM = os.environ.get("ROWSNAP", BUILD + "/rowsnap")
HEADER = struct.Struct("=QQQQQ")
READ, WRITE, FLUSH, DISCARD, SECURE_ERASE, WRITE_SAME, WRITE_ZEROES = range(7)
SUCCESS, ERROR, UNSUPPORTED = range(3)
SYNC, META, FUA, PREFLUSH, RAHEAD, NOUNMAP = 0x8, 0x10, 0x200, 0x400, 0x800, 0x8000
SECTOR = 512

# include/uapi/linux/dm-ioctl.h
CALL = struct.Struct("=6IiIIIQ128s129s7s")
SPEC = struct.Struct("=QQiI16s")
READONLY, SUSPEND, STATUS_TABLE, ACTIVE_PRESENT, INACTIVE_PRESENT = 1, 2, 16, 32, 64
BUFFER_FULL, DEFERRED = 256, 1 << 17
COMMANDS = {0: "version", 2: "list_devices", 3: "create", 4: "remove", 6: "suspend", 7: "status", 9: "load",
            12: "table_status", 13: "list_versions", 17: "target_version"}


class Message:
    def __init__(self, sequence, kind, flags, sector, length, data):
        self.header = HEADER.pack(sequence, kind, flags, sector, length)
        self.sequence, self.kind, self.length = sequence, kind, length
        self.to_user = self.header + (data if kind == WRITE else b"")
        self.sent = 0  # of to_user
        self.answer = bytearray()  # a READ's data
        self.wanted = length if kind == READ else 0
        self.reply = None  # the type of the reply
        self.result = None  # 0 or an error number: it is over


class Target:
    """dm-user's: a queue of messages, and the channels."""

    def __init__(self, kernel, name):
        self.kernel, self.name = kernel, name
        self.appears = time.monotonic() + kernel.node_delay
        self.queue = collections.deque()
        self.channels = {}
        self.sequence = kernel.chance.randrange(1 << 32)
        self.destroyed = self.terminated = False
        self.lock_owner = None

    def add(self, kind, flags, sector, length, data):
        message = Message(self.sequence, kind, flags, sector, length, data)
        self.sequence += 1
        if not self.channels and (self.terminated or self.destroyed):
            message.result = errno.EIO
        else:
            self.queue.append(message)
        self.kernel.lock.notify_all()
        return message

    def fail_queue(self):
        while self.queue:
            self.queue.popleft().result = errno.EIO
        self.kernel.lock.notify_all()

    def destroy(self):
        self.destroyed = True
        if self.kernel.targets.get(self.name) is self:
            del self.kernel.targets[self.name]
        if not self.channels:
            self.fail_queue()
        self.kernel.lock.notify_all()


class Channel:
    def __init__(self, kernel, target, number):
        self.kernel, self.target, self.number = kernel, target, number
        self.given = {}  # by sequence: messages that were read whole and not answered yet
        self.reading = None
        self.cancelled = False
        self.read_error = self.write_error = 0
        self.header = bytearray()  # of a reply
        self.answering = None
        target.channels[number] = self

    def read(self, count):
        """The result, or the bytes. The lock is held."""
        self.kernel.reads += 1
        if self.read_error:
            return -self.read_error
        if self.reading is None:
            while not self.target.queue and not self.target.destroyed:
                if self.cancelled:
                    return -errno.EINTR
                self.kernel.lock.wait()
            if self.target.destroyed:
                self.read_error = errno.ENOTBLK
                return -self.read_error
            self.reading = self.target.queue.popleft()
        message = self.reading
        part = HEADER.size if message.sent < HEADER.size else len(message.to_user)
        size = min(count, part - message.sent)
        if self.kernel.odd and part > HEADER.size and size > 1:
            chance = self.kernel.chance
            size = min(size, chance.choice([size, 1, 511, 512, 4097, 65536, chance.randint(1, size)]))
        piece = message.to_user[message.sent : message.sent + size]
        message.sent += size
        if message.sent == len(message.to_user):
            self.reading = None
            self.given[message.sequence] = message
        return piece

    def violation(self, text):
        self.kernel.violations.append(f"{self.target.name}, channel {self.number}: {text}")
        self.write_error = errno.EINVAL
        return -errno.EINVAL

    def write(self, data):
        """As the driver takes one write(): at most one reply, or a part of it. The lock is held."""
        if self.write_error:
            return -self.write_error
        taken = 0
        if self.answering is None:
            taken = min(len(data), HEADER.size - len(self.header))
            self.header += data[:taken]
            if len(self.header) < HEADER.size:
                return taken if taken else self.violation("an empty write")
            sequence, kind, *_ = HEADER.unpack(self.header)
            message = self.given.pop(sequence, None)
            if message is None:
                return self.violation(f"a reply to what was not asked here: sequence {sequence}, type {kind}")
            if kind not in (SUCCESS, ERROR, UNSUPPORTED):
                return self.violation(f"a reply of type {kind}")
            if message.header[32:] != self.header[32:]:
                self.kernel.violations.append(f"{self.target.name}: a reply of another length")
            message.reply = kind
            self.header.clear()
            self.answering = message
        message = self.answering
        rest = len(data) - taken
        if message.reply == SUCCESS:
            size = min(rest, message.wanted - len(message.answer))
            if self.kernel.odd and size > 1:
                size = self.kernel.chance.choice([size, size, self.kernel.chance.randint(1, size)])
            message.answer += data[taken : taken + size]
            taken += size
            if len(message.answer) < message.wanted:
                return taken
            rest -= size
        if rest > 0:
            return self.violation(f"{rest} bytes after the end of a reply of type {message.reply}")
        message.result = 0 if message.reply == SUCCESS else errno.EIO
        self.answering = None
        self.kernel.lock.notify_all()
        return taken

    def release(self):
        """The last close."""
        target = self.target
        if self.answering or self.header:
            self.kernel.torn += 1
        for message in [self.reading, self.answering, *self.given.values()]:
            if message:
                message.result = errno.EIO
                self.kernel.failed_by_close += 1
        target.channels.pop(self.number, None)
        self.kernel.channels.pop(self.number, None)
        if target.lock_owner == self.number:
            target.lock_owner = None
        if not target.channels:
            target.terminated = True
            target.fail_queue()
        self.kernel.lock.notify_all()


class Mapped:
    """A device of the device mapper."""

    def __init__(self, name, uuid, minor):
        self.name, self.uuid, self.minor = name, uuid, minor
        self.active = self.inactive = None  # (kind, sectors, Target or None, read only, parameters)
        self.suspended = True
        self.blocked = False  # being suspended
        self.opened = self.in_flight = 0
        self.deferred = self.gone = False


class Kernel:
    """Settings, to be made before or while a server runs: odd, what is read and written comes in odd pieces;
    control_error, what opening the control file gives; node_delay, until /dev/dm-user/NAME appears, in seconds;
    foreign_target, whether the target is missing; remove_busy, how many removals find the device open by udev."""

    def __init__(self, seed=1, odd=True, udev=False):
        self.folder = tempfile.mkdtemp(prefix="rowsnap-dm.")
        self.chance = random.Random(seed)
        self.odd, self.udev = odd, udev
        self.control_error = self.node_delay = self.remove_busy = 0
        self.foreign_target = False
        self.failing = {}  # commands that fail, by name: the error number
        self.version = (4, 48, 0)
        self.violations = []
        self.reads = self.failed_by_close = self.torn = 0
        self.calls = collections.Counter()
        self.lock = threading.Condition()
        self.devices, self.targets, self.channels = {}, {}, {}
        self.minor = self.number = 0
        for path in ("dev/mapper", "sys/dev/block", "run/udev"):
            os.makedirs(f"{self.folder}/{path}")
        if udev:
            pathlib.Path(f"{self.folder}/run/udev/control").touch()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(f"{self.folder}/socket")
        self.listener.listen(512)
        threading.Thread(target=self.accept, daemon=True).start()

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def environment(self):
        """What a program needs in its environment to run on this kernel."""
        libraries = [f"{BUILD}/tests/dm-user-preload.so"]
        for line in subprocess.run(["ldd", PROGRAM], capture_output=True, text=True, check=True).stdout.splitlines():
            if "libasan" in line or "libtsan" in line:
                libraries.insert(0, line.split("=>")[1].split()[0])  # it insists on being first
        return {"ROWSNAP_DM_USER_FAKE": self.folder, "LD_PRELOAD": " ".join(libraries)}

    def open(self, name, seconds=20, wait=True):
        """The block device /dev/mapper/NAME, once it is there."""
        with self.lock:
            if wait and not self.lock.wait_for(lambda: self.is_ready(name), seconds * SLOW):
                raise TimeoutError(f"/dev/mapper/{name} does not appear")
            if not self.is_ready(name):
                raise OSError(errno.ENXIO, os.strerror(errno.ENXIO), name)
            return Device(self, self.devices[name])

    def is_ready(self, name):
        return name in self.devices and self.devices[name].active is not None and not self.devices[name].suspended

    def add_foreign(self, name):
        """A device that is not the server's."""
        with self.lock:
            self.add_device(name, "")

    def remove_behind_its_back(self, name):
        with self.lock:
            self.destroy(self.devices[name])

    def wait_gone(self, name, seconds=20):
        with self.lock:
            return self.lock.wait_for(lambda: name not in self.devices, seconds * SLOW)

    def sysfs(self, name, limit):
        return pathlib.Path(f"{self.folder}/sys/dev/block/253:{self.devices[name].minor}/queue/{limit}").read_text()

    # ---- what programs ask ----

    def accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        try:
            letter = receive(connection, 1)
            if letter == b"K":
                connection.sendall(struct.pack("=i", -self.control_error))
            elif letter == b"I":
                command, size = struct.unpack("=II", receive(connection, 8))
                result, answer = self.ioctl(command, receive(connection, size))
                connection.sendall(struct.pack("=iI", result, len(answer)) + answer)
            elif letter == b"O":
                self.serve_reads(connection)
            elif letter == b"W":
                self.serve_writes(connection)
            elif letter == b"F":
                number, operation = struct.unpack("=II", receive(connection, 8))
                connection.sendall(struct.pack("=i", self.flock(number, operation)))
        except (ConnectionError, OSError):
            pass
        finally:
            connection.close()

    def flock(self, number, operation):
        with self.lock:
            target = self.channels[number].target
            if operation & ~4 != 2:
                return -errno.EINVAL
            if target.lock_owner not in (None, number):
                return -errno.EWOULDBLOCK
            target.lock_owner = number
            return 0

    def serve_reads(self, connection):
        name = receive(connection, struct.unpack("=I", receive(connection, 4))[0]).decode()
        with self.lock:
            target = self.targets.get(name)
            if target is None or time.monotonic() < target.appears:
                channel = None
            else:
                self.number += 1
                channel = self.channels[self.number] = Channel(self, target, self.number)
        connection.sendall(struct.pack("=i", channel.number if channel else -errno.ENOENT))
        if channel is None:
            return
        # Two threads: one hears of signals, and of the end, while the other sleeps in read().
        wanted = collections.deque()
        state = {"ended": False}
        threading.Thread(target=self.read_for, args=(connection, channel, wanted, state), daemon=True).start()
        try:
            while True:
                letter = receive(connection, 1)
                count = struct.unpack("=I", receive(connection, 4))[0] if letter == b"R" else None
                with self.lock:
                    if letter == b"R":
                        channel.cancelled = False
                        wanted.append(count)
                    else:
                        channel.cancelled = True
                    self.lock.notify_all()
        except (ConnectionError, OSError):
            pass
        with self.lock:
            state["ended"] = True
            channel.cancelled = True
            self.lock.notify_all()
            self.lock.wait_for(lambda: state.get("done"))
            channel.release()

    def read_for(self, connection, channel, wanted, state):
        while True:
            with self.lock:
                self.lock.wait_for(lambda: wanted or state["ended"])
                if state["ended"]:
                    state["done"] = True
                    self.lock.notify_all()
                    return
                result = channel.read(wanted.popleft())
            piece = b"" if isinstance(result, int) else result
            try:
                connection.sendall(struct.pack("=i", result if isinstance(result, int) else len(result)) + piece)
            except OSError:
                pass  # its end is seen by the other thread

    def serve_writes(self, connection):
        (number,) = struct.unpack("=I", receive(connection, 4))
        while True:
            if receive(connection, 1) != b"w":
                return
            data = receive(connection, struct.unpack("=I", receive(connection, 4))[0])
            with self.lock:
                channel = self.channels.get(number)
                result = channel.write(data) if channel else -errno.EBADF
            connection.sendall(struct.pack("=i", result))

    # ---- device mapper ----

    def ioctl(self, command, memory):
        """The result, and what the caller's memory begins with afterwards."""
        if command >> 8 & 0xFF != 0xFD or command >> 16 & 0x3FFF != CALL.size or len(memory) < CALL.size:
            return -errno.ENOTTY, b""
        name = COMMANDS.get(command & 0xFF)
        call = Call(memory)
        with self.lock:
            self.calls[name] += 1
            if name is None:
                return -errno.ENOTTY, b""
            if call.version[0] != 4 or call.version[1] > self.version[1]:
                return -errno.EINVAL, b""
            if name in self.failing:
                return -self.failing[name], b""
            call.version = self.version
            try:
                getattr(self, "call_" + name)(call)
            except OSError as error:
                return -error.errno, b""
        return 0, call.packed()

    def find(self, call):
        if bool(call.name) == bool(call.uuid):
            raise OSError(errno.EINVAL, "a name or a UUID")
        for device in self.devices.values():
            if device.name == call.name or (call.uuid and device.uuid == call.uuid):
                return device
        raise OSError(errno.ENXIO, "no such device")

    def describe(self, call, device):
        call.name, call.uuid, call.open_count = device.name, device.uuid, device.opened
        call.device = 253 << 8 | (device.minor & 0xFF) | (device.minor & ~0xFF) << 12
        call.flags = (SUSPEND if device.suspended else 0) | (DEFERRED if device.deferred else 0)
        call.flags |= (ACTIVE_PRESENT if device.active else 0) | (INACTIVE_PRESENT if device.inactive else 0)
        call.flags |= READONLY if device.active and device.active[3] else 0
        call.target_count = 1 if device.active else 0

    def call_version(self, call):
        pass

    def call_list_versions(self, call):
        names = ["error", "linear", "striped"] + ([] if self.foreign_target else ["user"])
        self.put_list(call, [struct.pack("=3I", 1, 0, 0) + name.encode() + b"\0" for name in names])

    def call_list_devices(self, call):
        records = [struct.pack("=Q", 253 << 8 | d.minor) + d.name.encode() + b"\0" for d in self.devices.values()]
        self.put_list(call, records or [struct.pack("=Q", 0) + b"\0"], 8)

    def put_list(self, call, records, next_at=0):
        """Records have their first `next_at` bytes, the offset of the next record, and the rest."""
        data = b""
        for index, record in enumerate(records):
            size = -(-(len(record) + 4) // 8) * 8
            following = size if index + 1 < len(records) else 0
            data += (record[:next_at] + struct.pack("=I", following) + record[next_at:]).ljust(size, b"\0")
        call.put(data)

    def call_target_version(self, call):
        if self.foreign_target or call.name != "user":
            raise OSError(errno.EINVAL, "no such target")

    def call_create(self, call):
        if not call.name or call.name == "control" or "/" in call.name:
            raise OSError(errno.EINVAL, "no name")
        if call.name in self.devices or (call.uuid and any(d.uuid == call.uuid for d in self.devices.values())):
            raise OSError(errno.EBUSY, "the name or the UUID is taken")
        device = self.add_device(call.name, call.uuid)
        self.describe(call, device)

    def add_device(self, name, uuid):
        device = self.devices[name] = Mapped(name, uuid, self.minor)
        self.minor += 1
        folder = pathlib.Path(f"{self.folder}/sys/dev/block/253:{device.minor}/queue")
        folder.mkdir(parents=True, exist_ok=True)
        for limit in ("max_sectors_kb", "discard_max_bytes"):
            (folder / limit).write_text("")  # the kernel's choice
        self.lock.notify_all()
        return device

    def call_load(self, call):
        device = self.find(call)
        start, sectors, _, _, kind = SPEC.unpack(call.data[: SPEC.size])
        parameters = call.data[SPEC.size :].split(b"\0")[0].decode()
        kind = kind.rstrip(b"\0").decode()
        target = None
        if call.target_count != 1 or start != 0 or sectors == 0:
            raise OSError(errno.EINVAL, "not one target from the start")
        if kind == "user":
            words = parameters.split()
            if self.foreign_target or len(words) != 3:
                raise OSError(errno.EINVAL, "dm-user wants three arguments")
            if words[:2] != ["0", str(sectors)]:
                self.violations.append(f"{device.name}: the target's arguments are {parameters}")
            if words[2] in self.targets:
                raise OSError(errno.ENOMEM, "there is a misc device of this name")
            target = self.targets[words[2]] = Target(self, words[2])
        elif kind != "error":
            raise OSError(errno.EINVAL, "no such target")
        if device.inactive and device.inactive[2]:
            device.inactive[2].destroy()
        device.inactive = (kind, sectors, target, bool(call.flags & READONLY), parameters)
        self.lock.notify_all()

    def call_suspend(self, call):
        device = self.find(call)
        if call.flags & SUSPEND:
            device.blocked = True
            self.lock.wait_for(lambda: device.in_flight == 0)
            device.suspended = True
        else:
            if device.inactive:
                old, device.active, device.inactive = device.active, device.inactive, None
                if old and old[2]:
                    old[2].destroy()
            device.suspended = device.blocked = False
            if self.udev:
                threading.Timer(0.05, self.make_link, [device]).start()
        self.lock.notify_all()
        self.describe(call, device)

    def make_link(self, device):
        path = pathlib.Path(f"{self.folder}/dev/mapper/{device.name}")
        if not device.gone and not path.is_symlink():
            path.symlink_to(f"../dm-{device.minor}")

    def call_remove(self, call):
        device = self.find(call)
        if self.remove_busy > 0 and not call.flags & DEFERRED:
            self.remove_busy -= 1
            raise OSError(errno.EBUSY, "udev is looking at it")
        if device.opened and not call.flags & DEFERRED:
            raise OSError(errno.EBUSY, "it is open")
        if device.opened:
            device.deferred = True
            call.flags |= DEFERRED
        else:
            self.destroy(device)

    def destroy(self, device):
        device.gone = True
        del self.devices[device.name]
        for table in (device.active, device.inactive):
            if table and table[2]:
                table[2].destroy()
        if self.udev:
            pathlib.Path(f"{self.folder}/dev/mapper/{device.name}").unlink(missing_ok=True)
        self.lock.notify_all()

    def call_status(self, call):
        self.describe(call, self.find(call))

    def call_table_status(self, call):
        device = self.find(call)
        self.describe(call, device)
        if device.active:
            kind, sectors, *_ = device.active
            call.put(SPEC.pack(0, sectors, 0, SPEC.size + 8, kind.encode()) + bytes(8))


class Call:
    """struct dm_ioctl and its data."""

    def __init__(self, memory):
        fields = CALL.unpack(memory[: CALL.size])
        self.version = fields[:3]
        self.size, self.start, self.target_count, self.open_count, self.flags, self.event, _, self.device = fields[3:11]
        self.name, self.uuid = (field.split(b"\0")[0].decode() for field in fields[11:13])
        self.room = len(memory)
        self.data = memory[self.start : self.size]
        self.answer = b""

    def put(self, data):
        if len(data) > self.room - CALL.size:
            self.flags |= BUFFER_FULL
        else:
            self.answer = data

    def packed(self):
        size = CALL.size + len(self.answer)
        return CALL.pack(*self.version, size, CALL.size, self.target_count, self.open_count, self.flags, self.event, 0,
                         self.device, self.name.encode(), self.uuid.encode(), b"") + self.answer


def receive(connection, count):
    data = bytearray()
    while len(data) < count:
        piece = connection.recv(min(count - len(data), 1 << 20))
        if not piece:
            raise ConnectionError("closed")
        data += piece
    return bytes(data)


class Device:
    """An open block device. May be used by several threads. Requests are cut at `longest` bytes, as the block layer
    does with most programs' I/O; None: not at all."""

    align = SECTOR

    def __init__(self, kernel, mapped, longest=1 << 20):
        self.kernel, self.mapped, self.longest = kernel, mapped, longest
        self.size = mapped.active[1] * SECTOR
        self.read_only = mapped.active[3]
        self.path = f"/dev/mapper/{mapped.name}"
        mapped.opened += 1
        self.is_open = True

    def close(self):
        with self.kernel.lock:
            if not self.is_open:
                return
            self.is_open = False
            self.mapped.opened -= 1
            if self.mapped.opened == 0 and self.mapped.deferred and not self.mapped.gone:
                self.kernel.destroy(self.mapped)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def begin(self, kind, flags, sector, length, data=b""):
        """A request as it is: to be waited for with end()."""
        mapped = self.mapped
        with self.kernel.lock:
            self.kernel.lock.wait_for(lambda: not (mapped.suspended or mapped.blocked) or mapped.gone)
            if mapped.gone or mapped.active[0] != "user":
                message = Message(0, kind, flags, sector, length, data)
                message.result = errno.EIO
            else:
                message = mapped.active[2].add(kind, flags, sector, length, data)
            mapped.in_flight += 1
        return message

    def end(self, message, seconds=60):
        """What was read. Raises OSError."""
        with self.kernel.lock:
            over = self.kernel.lock.wait_for(lambda: message.result is not None, seconds * SLOW)
            self.mapped.in_flight -= 1
            self.kernel.lock.notify_all()
        if not over:
            raise TimeoutError(f"request {message.sequence} of type {message.kind} was not answered")
        if message.result:
            raise OSError(message.result, os.strerror(message.result))
        return bytes(message.answer)

    def check(self, offset, length, writes):
        if offset % SECTOR or length % SECTOR:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if writes and self.read_only:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        if offset < 0 or offset + length > self.size:
            raise OSError(errno.ENOSPC if writes else errno.EINVAL, "beyond the device's end")

    def pieces(self, offset, length):
        longest = self.longest or length
        return [(at, min(longest, offset + length - at)) for at in range(offset, offset + length, longest or 1)]

    def all_of(self, messages):
        """Waits for all of them, then raises what the first failure was."""
        results, failure = [], None
        for message in messages:
            try:
                results.append(self.end(message))
            except OSError as error:
                failure = failure or error
        if failure:
            raise failure
        return results

    def read(self, offset, length):
        self.check(offset, length, False)
        begun = [self.begin(READ, 0, at // SECTOR, size) for at, size in self.pieces(offset, length)]
        return b"".join(self.all_of(begun))

    def write(self, offset, data, fua=False):
        self.check(offset, len(data), True)
        flags = SYNC | (FUA if fua else 0)
        self.all_of([self.begin(WRITE, flags, at // SECTOR, size, data[at - offset : at - offset + size])
                     for at, size in self.pieces(offset, len(data))])

    def flush(self):
        self.end(self.begin(WRITE, SYNC | PREFLUSH, 0, 0))

    def discard(self, offset, length):
        self.check(offset, length, True)
        if self.kernel.sysfs(self.mapped.name, "discard_max_bytes") == "0":
            raise OSError(errno.EOPNOTSUPP, "the device's limits say no")
        self.end(self.begin(DISCARD, 0, offset // SECTOR, length))

    def zero(self, offset, length):
        """The target says that it can't: then the kernel writes zeroes."""
        self.write(offset, bytes(length))


class Server:
    """`rowsnap serve ARGUMENT...` on a kernel, ready. Its sockets and its record are in a folder of their own."""

    def __init__(self, kernel, *arguments, cwd=None, ready=True, folder=None):
        self.folder = folder or tempfile.mkdtemp(prefix="rowsnap-dmu.")
        self.keep = folder is not None
        self.cwd = cwd
        folders = {"ROWSNAP_RUNDIR": self.folder + "/run", "ROWSNAP_STATEDIR": self.folder + "/state"}
        self.variables = os.environ | folders
        for name in ("run", "state"):
            os.makedirs(f"{self.folder}/{name}", mode=0o700, exist_ok=True)
        self.output = open(self.folder + "/output", "wb")
        self.errors = open(self.folder + "/errors", "wb")
        self.process = subprocess.Popen([PROGRAM, "serve", *arguments], cwd=cwd, env=self.variables | kernel.environment(),
                                        stdin=subprocess.DEVNULL, stdout=self.output, stderr=self.errors)
        if ready:
            self.wait_ready()

    def wait_ready(self):
        end = time.monotonic() + 30 * SLOW
        while "rowsnap: ready" not in self.said("output"):
            if self.process.poll() is not None or time.monotonic() > end:
                self.process.kill()
                raise AssertionError("the server is not ready: " + self.said())
            time.sleep(0.02)

    def said(self, where="errors"):
        return pathlib.Path(f"{self.folder}/{where}").read_text(errors="replace")

    def wait_said(self, text, seconds=20):
        end = time.monotonic() + seconds * SLOW
        while text not in self.said():
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True

    def rowsnap(self, *arguments, check=True):
        """Runs a command of rowsnap's, for this server."""
        return subprocess.run([PROGRAM, *arguments], cwd=self.cwd, env=self.variables, check=check,
                              capture_output=True, text=True, timeout=60 * SLOW)

    def signal(self, number=signal.SIGTERM):
        self.process.send_signal(number)

    def wait(self):
        return self.process.wait(60 * SLOW)

    def stop(self):
        """Its exit status."""
        self.signal()
        return self.wait()

    def kill(self):
        self.process.kill()
        self.process.wait()

    def clear(self):
        if self.process.poll() is None:
            self.kill()
        self.output.close()
        self.errors.close()
        if not self.keep:
            shutil.rmtree(self.folder, ignore_errors=True)
