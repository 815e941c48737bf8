# SPDX-License-Identifier: GPL-2.0-or-later
"""
The transports, each as the tests see it: how a server is told to serve by it, and how its exports are opened. Not a
test by itself (no #! line).

A new transport is a subclass of Transport, another of Device, and one line in TRANSPORTS: conformance.py runs its whole
suite against each of them. A Transport belongs to one run of one server, and is made anew for the next.
"""
import contextlib
import errno
import json
import os
import shutil
import subprocess
import threading
import time

import dm_user_fake
import nbd_client
from linux import (KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE, detach_loop, device_is_read_only, device_size,
                   discard_device, fallocate, is_mounted, read_direct, unmount, write_direct)

SLOW = int(os.environ.get("ROWSNAP_SLOW", "1"))
PROGRAM = os.environ.get("ROWSNAP") or os.path.join(os.path.dirname(__file__), "../build/rowsnap")
SECTOR = 512
DEADLINE_SECONDS = 20 * SLOW


class Device:
    """
    An export, opened. All offsets and lengths are bytes, multiples of `align`. Several threads may use it at once.
    Errors are OSError; a read may be short at the device's end only.
    """
    align = 1
    size = 0
    read_only = False
    can_discard = can_zero = can_fua = True
    discard_zeroes = False  # what was discarded reads as zeroes, exactly

    def read(self, offset, length):
        raise NotImplementedError

    def write(self, offset, data, fua=False):
        raise NotImplementedError

    def flush(self):
        raise NotImplementedError

    def discard(self, offset, length):
        raise NotImplementedError

    def zero(self, offset, length, no_hole=False):
        raise NotImplementedError

    def close(self):
        raise NotImplementedError

    def vanish(self):
        """As close(), but without a goodbye, and whatever is under way."""
        self.close()


def unmount_all(folder):
    """What a killed server has left there."""
    while is_mounted(folder) and unmount(folder, lazy=True):
        pass


class Transport:
    name = ""
    forks = True  # another process may open exports
    keeps_unflushed = True  # what was answered outlives the server's death without a flush

    def __init__(self, discard_copy=False):
        self.discard_copy = discard_copy  # the server runs with --discard=copy

    def skip_reason(self):
        """None, or why this machine can't."""
        return None

    def serve_arguments(self, folder):
        """Options for `rowsnap serve`. `folder` is ours, and there is nothing in it but what earlier runs left."""
        raise NotImplementedError

    def environment(self):
        """What the server is to find in its environment besides."""
        return {}

    def is_there(self, export_name):
        """Whether the export can be opened now."""
        raise NotImplementedError

    def open(self, export_name):
        raise NotImplementedError

    def close(self):
        """Once the server has ended, in whatever way: undoes what it and we left."""

    def wait_for(self, export_name):
        self.wait(export_name, True)

    def wait_gone(self, export_name):
        self.wait(export_name, False)

    def wait(self, export_name, wanted):
        deadline = time.monotonic() + DEADLINE_SECONDS
        while self.is_there(export_name) != wanted:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{export_name} did not {'appear' if wanted else 'go'}")
            time.sleep(0.01)


# ---- NBD


class Answer:
    """What a thread waits for."""

    def __init__(self, length):
        self.length = length
        self.error = None
        self.data = b""
        self.event = threading.Event()


class NbdDevice(Device):
    """One connection. Requests are sent by whoever makes them; a thread takes the replies, in any order."""

    def __init__(self, path, export_name):
        self.client = nbd_client.Client(path).begin(export_name)
        self.size = self.client.size
        self.read_only = self.client.flags & nbd_client.READ_ONLY != 0
        self.lock = threading.Lock()
        self.waiting = {}  # by cookie
        self.gone = False
        self.receiver = threading.Thread(target=self.receive, daemon=True)
        self.receiver.start()

    def receive(self):
        try:
            while True:
                cookie, error = self.client.simple_head()
                answer = self.waiting.pop(cookie)
                if error == 0 and answer.length:
                    answer.data = self.client.recv(answer.length)
                answer.error = error
                answer.event.set()
        except OSError:
            self.gone = True
        for cookie in list(self.waiting):
            if answer := self.waiting.pop(cookie, None):
                answer.event.set()

    def send(self, command, offset=0, length=0, data=b"", flags=0):
        """Sends a request; the answer comes by itself."""
        answer = Answer(length if command == nbd_client.READ else 0)
        with self.lock:
            cookie = (self.client.cookie + 1) % 2**64
            self.waiting[cookie] = answer
            try:
                if self.client.ask(command, offset, length, data, flags) != cookie:
                    raise AssertionError("the client numbers its requests in another way")
            except OSError:
                self.gone = True
        if self.gone:
            answer.event.set()
        return answer

    def request(self, command, offset=0, length=0, data=b"", flags=0):
        answer = self.send(command, offset, length, data, flags)
        answer.event.wait()
        if answer.error is None:
            raise ConnectionError(errno.ECONNRESET, "the server closed the connection")
        if answer.error != 0:
            raise OSError(answer.error, os.strerror(answer.error))
        return answer.data

    def read(self, offset, length):
        return self.request(nbd_client.READ, offset, length)

    def write(self, offset, data, fua=False):
        self.request(nbd_client.WRITE, offset, data=data, flags=nbd_client.FUA if fua else 0)

    def flush(self):
        self.request(nbd_client.FLUSH)

    def discard(self, offset, length):
        self.request(nbd_client.TRIM, offset, length)

    def zero(self, offset, length, no_hole=False):
        self.request(nbd_client.ZEROES, offset, length, flags=nbd_client.NO_HOLE if no_hole else 0)

    def close(self):
        with self.lock:
            try:
                self.client.ask(nbd_client.DISC)
            except OSError:
                pass
        self.receiver.join(DEADLINE_SECONDS)
        self.client.close()

    def vanish(self):
        self.client.sock.shutdown(2)
        self.receiver.join(DEADLINE_SECONDS)
        self.client.close()


class Nbd(Transport):
    name = "NBD"

    def __init__(self, discard_copy=False):
        super().__init__(discard_copy)
        self.path = ""

    def serve_arguments(self, folder):
        self.path = folder + "/nbd"
        return ["--nbd=" + self.path]

    def is_there(self, export_name):
        try:
            client = nbd_client.Client(self.path)
        except OSError:
            return False
        there = client.go(export_name)[-1] == (nbd_client.ACK, b"")
        client.close()
        return there

    def open(self, export_name):
        return NbdDevice(self.path, export_name)


class NbdWriteBack(Nbd):
    """With a buffer so small that writes come to wait for it."""

    name = "NBD-write-back"
    keeps_unflushed = False

    def serve_arguments(self, folder):
        return super().serve_arguments(folder) + ["--write-back=1M"]


# ---- files, and devices over them


class FileDevice(Device):
    """A file or a block device. Direct I/O wherever a request is aligned to sectors."""

    def __init__(self, path, can_discard):
        self.path = path
        self.can_discard = can_discard
        self.discard_zeroes = can_discard
        self.lock = threading.Lock()
        self.unused = threading.Condition(self.lock)
        self.users = 0
        self.closed = False
        self.descriptors = {}  # by flags
        with self.descriptor(os.O_RDONLY | os.O_DIRECT) as fd:
            self.size, self.read_only = self.attributes(fd)

    def attributes(self, fd):
        raise NotImplementedError

    @contextlib.contextmanager
    def descriptor(self, flags):
        """A file descriptor for a `with`, in which it stays open."""
        with self.lock:
            if self.closed:
                raise OSError(errno.EBADF, "the device was closed")
            if flags not in self.descriptors:
                self.descriptors[flags] = os.open(self.path, flags)
            fd = self.descriptors[flags]
            self.users += 1
        try:
            yield fd
        finally:
            with self.lock:
                self.users -= 1
                self.unused.notify_all()

    def read(self, offset, length):
        if offset % SECTOR == 0 and length % SECTOR == 0:
            with self.descriptor(os.O_RDONLY | os.O_DIRECT) as fd:
                return read_direct(fd, offset, length)
        with self.descriptor(os.O_RDONLY) as fd:
            return os.pread(fd, length, offset)

    def write(self, offset, data, fua=False):
        flags = os.O_RDWR | (os.O_DSYNC if fua else 0)
        if offset % SECTOR == 0 and len(data) % SECTOR == 0:
            with self.descriptor(flags | os.O_DIRECT) as fd:
                write_direct(fd, offset, data)
            return
        with self.descriptor(flags) as fd:
            done = 0
            while done < len(data):
                done += os.pwrite(fd, data[done:], offset + done)

    def flush(self):
        with self.descriptor(os.O_RDONLY if self.read_only else os.O_RDWR | os.O_DIRECT) as fd:
            os.fsync(fd)

    def zero(self, offset, length, no_hole=False):
        mode = ZERO_RANGE if no_hole or not self.can_discard else PUNCH_HOLE
        self.change(fallocate, mode | KEEP_SIZE, offset, length)

    def change(self, function, *arguments):
        """function(descriptor, ..., length), which does not take a length of 0."""
        with self.descriptor(os.O_RDWR | os.O_DIRECT) as fd:
            if arguments[-1] > 0:
                function(fd, *arguments)

    def close(self):
        """When what is under way has ended: a number closed too early may be another file's already."""
        with self.lock:
            self.closed = True
            self.unused.wait_for(lambda: self.users == 0)
            while self.descriptors:
                os.close(self.descriptors.popitem()[1])


class FuseDevice(FileDevice):
    def attributes(self, fd):
        status = os.fstat(fd)
        return status.st_size, status.st_mode & 0o222 == 0

    def discard(self, offset, length):
        self.change(fallocate, PUNCH_HOLE | KEEP_SIZE, offset, length)


class Fuse(Transport):
    name = "FUSE"

    def __init__(self, discard_copy=False):
        super().__init__(discard_copy)
        self.folder = ""

    def skip_reason(self):
        if not os.access("/dev/fuse", os.W_OK):
            return "there is no /dev/fuse that may be opened"
        if os.geteuid() != 0 and not shutil.which("fusermount3"):
            return "neither root nor fusermount3"
        return None

    def serve_arguments(self, folder):
        self.folder = folder + "/files"
        os.makedirs(self.folder, exist_ok=True)
        return ["--fuse=" + self.folder]

    def path(self, export_name):
        return f"{self.folder}/{'' if export_name == 'origin' else 'snapshots/'}{export_name}"

    def is_there(self, export_name):
        return os.path.exists(self.path(export_name))

    def open(self, export_name):
        return FuseDevice(self.path(export_name), self.discard_copy)

    def close(self):
        unmount_all(self.folder)


class LoopDevice(FileDevice):
    align = SECTOR

    def attributes(self, fd):
        return device_size(fd), device_is_read_only(fd)

    def discard(self, offset, length):
        self.change(discard_device, offset, length)

    def vanish(self):
        detach_loop(self.path)
        self.close()


class Loop(Transport):
    """The server attaches and detaches the devices; what is still open then goes with its last user."""
    name = "loop"

    def __init__(self, discard_copy=False):
        super().__init__(discard_copy)
        self.folder = ""

    def skip_reason(self):
        if os.geteuid() != 0:
            return "needs root"
        if not os.path.exists("/dev/loop-control"):
            return "there are no loop devices here"
        return Fuse().skip_reason()

    def serve_arguments(self, folder):
        self.folder = folder
        return ["--loop"]

    @property
    def mount_point(self):
        """Where the files are that the devices lie over."""
        return self.folder + "/run/demo.fuse"

    def path(self, export_name):
        """The device's, or None."""
        done = subprocess.run([PROGRAM, "list", self.folder + "/run/demo.sock", "--json"], stdin=subprocess.DEVNULL,
                              capture_output=True, check=False)
        if done.returncode != 0:
            return None
        chain = json.loads(done.stdout)
        exports = {"origin": chain["origin"]} | {snapshot["name"]: snapshot for snapshot in chain["snapshots"]}
        return exports.get(export_name, {}).get("device")

    def is_there(self, export_name):
        return self.path(export_name) is not None

    def open(self, export_name):
        return LoopDevice(self.path(export_name), self.discard_copy)

    def close(self):
        unmount_all(self.mount_point)


class DmUserDevice(Device):
    """On the fake of the kernel's side, which cuts and orders requests as the block layer and the driver may."""
    align = SECTOR
    can_discard = False

    def __init__(self, device):
        self.device = device
        self.size, self.read_only = device.size, device.read_only

    def opened(self):
        if not self.device.is_open:
            raise OSError(errno.EBADF, "the device was closed")
        return self.device

    def read(self, offset, length):
        return self.opened().read(offset, length)

    def write(self, offset, data, fua=False):
        self.opened().write(offset, data, fua)

    def flush(self):
        self.opened().flush()

    def discard(self, offset, length):
        self.opened().discard(offset, length)

    def zero(self, offset, length, no_hole=False):
        self.opened().zero(offset, length)

    def close(self):
        self.device.close()


class DmUser(Transport):
    name = "dm-user"
    forks = False  # the fake lives in this process

    def __init__(self, discard_copy=False):
        super().__init__(discard_copy)
        self.kernel = None

    def serve_arguments(self, folder):
        self.kernel = dm_user_fake.Kernel()
        return ["--dm-user=disk"]

    def environment(self):
        return self.kernel.environment()

    @staticmethod
    def device_name(export_name):
        return "disk" if export_name == "origin" else "disk-" + export_name

    def is_there(self, export_name):
        with self.kernel.lock:
            return self.kernel.is_ready(self.device_name(export_name))

    def open(self, export_name):
        return DmUserDevice(self.kernel.open(self.device_name(export_name)))

    def close(self):
        self.kernel.close()
        if self.kernel.violations:
            raise OSError(errno.EPROTO, f"against the protocol: {self.kernel.violations}")


TRANSPORTS = [
    Nbd,
    NbdWriteBack,
    Fuse,
    Loop,
    DmUser,
]
