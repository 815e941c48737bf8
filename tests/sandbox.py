# SPDX-License-Identifier: GPL-2.0-or-later
"""
Running rowsnap from a test in Python. Not a test by itself (no #! line).

ROWSNAP names the binary under test; ROWSNAP_SLOW is the factor for time limits (tests/run sets both). A Folder is a
private one with its own run and state folders, gone at the end with all that was started in it. A Volume is a folder
with an origin, its snapshots' stores, and its server.
"""
import json
import os
import pathlib
import random
import select
import shutil
import subprocess
import tempfile
import threading
import time

import format_reader
import nbd_client
from format_reader import Superblock

ROWSNAP = os.environ.get("ROWSNAP", str(pathlib.Path(__file__).resolve().parent.parent / "build/rowsnap"))
SLOW = int(os.environ.get("ROWSNAP_SLOW", "1"))
SANITIZED = b"__asan_" in pathlib.Path(ROWSNAP).read_bytes()
VOLUME = "v"
KIB, MIB = 1024, 1024 * 1024
RUNNING_SECONDS = 0.3  # at most, before a SIGKILL


class Folder:
    """As a context manager. Paths are relative to it, and short: a socket's path has room for 107 bytes."""

    def __init__(self, parent=None):
        """In the usual place for such, or in the folder `parent`."""
        self.path = pathlib.Path(tempfile.mkdtemp(prefix="rowsnap.", dir=parent))
        self.environment = dict(os.environ)
        self.servers = []
        self.renew()

    def renew(self):
        """Fresh run and state folders: nothing is known of what was served before."""
        for name, variable in (("run", "ROWSNAP_RUNDIR"), ("state", "ROWSNAP_STATEDIR")):
            shutil.rmtree(self.path / name, ignore_errors=True)
            (self.path / name).mkdir(mode=0o700)
            self.environment[variable] = str(self.path / name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for server in self.servers:
            server.kill()
        shutil.rmtree(self.path, ignore_errors=True)

    def run(self, *command, seconds=30):
        """The process, ended: returncode, stdout, stderr. TimeoutExpired when it does not end."""
        return subprocess.run(list(map(str, command)), cwd=self.path, env=self.environment, stdin=subprocess.DEVNULL,
                              capture_output=True, timeout=seconds * SLOW, check=False)

    def must(self, *command):
        """Its output; fails unless it succeeds."""
        result = self.run(*command)
        if result.returncode != 0:
            raise RuntimeError(f"{' '.join(map(str, command))}: {result.returncode}: {result.stderr.decode()[-1000:]}")
        return result.stdout

    def rowsnap(self, *arguments):
        return self.must(ROWSNAP, *arguments)

    def serve(self, *arguments):
        server = Server(self, arguments)
        self.servers.append(server)
        return server

    def uri(self, export):
        return f"nbd+unix:///{export}?socket={self.path}/run/{VOLUME}.nbd"

    def socket(self):
        return f"{self.path}/run/{VOLUME}.nbd"


class Server:
    """`rowsnap serve`: is_ready, or ended by itself."""

    def __init__(self, folder, arguments, program=(ROWSNAP,)):
        self.folder = folder
        self.errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen([*map(str, program), "serve", f"--volume={VOLUME}", *map(str, arguments)],
                                        cwd=folder.path, env=folder.environment, stdin=subprocess.DEVNULL,
                                        stdout=subprocess.PIPE, stderr=self.errors, bufsize=0)
        self.output = b""
        self.is_ready = self.wait_ready(time.monotonic() + 20 * SLOW)

    def wait_ready(self, deadline):
        while not self.output.endswith(b"rowsnap: ready\n"):
            if not select.select([self.process.stdout], [], [], max(0, deadline - time.monotonic()))[0]:
                self.kill()
                raise TimeoutError("serve neither gets ready nor ends")
            more = self.process.stdout.read(4096)
            if not more:
                self.process.wait(20 * SLOW)
                return False
            self.output += more
        return True

    def error_lines(self):
        self.errors.seek(0)
        return self.errors.read().decode(errors="replace").splitlines()

    def stop(self):
        """A clean one."""
        self.process.terminate()
        if self.process.wait(20 * SLOW) != 0:
            raise RuntimeError(f"the server ended with {self.process.returncode}: {self.error_lines()}")
        self.process.stdout.close()

    def kill(self):
        """The power cut, as far as a process can have one."""
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


class Volume(Folder):
    """An origin, disk.img, its server, and what each snapshot held: expected[NAME]. Parts are paths."""

    def __init__(self, origin_bytes, block_bytes=4 * KIB, slots_per_area=254, seed=1):
        super().__init__()
        self.chance = random.Random(seed)
        self.origin_bytes, self.block_bytes, self.slots_per_area = origin_bytes, block_bytes, slots_per_area
        self.expected, self.stores, self.parts, self.server = {}, {}, [], None
        self.origin = self.path / "disk.img"
        self.origin.write_bytes(self.chance.randbytes(origin_bytes))

    def start(self):
        self.server = self.serve("disk.img", *self.parts, *self.stores.values())
        if not self.server.is_ready:
            raise RuntimeError(f"not served: {self.server.error_lines()}")

    def stop(self):
        self.server.stop()

    def format(self, path, *options):
        """Small areas make small stores of many: no option asks for them, but every reader must know them."""
        self.rowsnap("format", f"--block-size={self.block_bytes}", *options, path)
        with open(self.path / path, "r+b") as file:
            superblock = Superblock.decode(file.read(format_reader.SUPERBLOCK_BYTES))
            superblock.slots_per_area = self.slots_per_area
            for offset in format_reader.SUPERBLOCK_OFFSETS:
                file.seek(offset)
                file.write(superblock.encode())

    def snapshot(self, name, path=None, size=None):
        path = path or f"{name}.store"
        self.format(path, *([f"--size={size}"] if size else []))
        self.rowsnap("snapshot", "v", name, path)
        self.stores[name] = path

    def extend(self, name, path, size=None):
        self.rowsnap("format", f"--block-size={self.block_bytes}", *([f"--size={size}"] if size else []), path)
        self.rowsnap("extend", "v", name, path)
        self.parts.append(path)

    def drop(self, name):
        self.rowsnap("drop", "v", name)
        self.forget(name)

    def forget(self, name):
        self.expected.pop(name)
        return self.stores.pop(name)

    def qemu_io(self, *commands):
        self.must("qemu-io", "-f", "raw", *(word for command in commands for word in ("-c", command)),
                  self.uri("origin"))

    def fio(self, *options):
        self.must("fio", "--name=load", "--ioengine=nbd", f"--uri={self.uri('origin')}", "--randrepeat=1", *options)

    def write(self, requests, offset_max=None):
        """Random requests of all sizes."""
        client = nbd_client.Client(self.socket()).begin("origin")
        for _ in range(requests):
            offset = self.chance.randrange(offset_max or self.origin_bytes)
            length = min(self.chance.choice([512, 1000, 4096, 65536]), self.origin_bytes - offset)
            kind = self.chance.choice([nbd_client.WRITE] * 3 + [nbd_client.ZEROES])
            error = client.do(kind, offset, length, self.chance.randbytes(length) * (kind == nbd_client.WRITE))
            if error:
                raise RuntimeError(f"error {error} for a write")
        client.close()

    def remember(self):
        """What each snapshot holds, from the running server."""
        for name in self.stores:
            self.must("nbdcopy", self.uri(name), f"{name}.expected")
            self.expected[name] = (self.path / f"{name}.expected").read_bytes()

    def kill_while_writing(self):
        """SIGKILL under load; writes go on until the server is gone."""
        began, ended = threading.Event(), []

        def load():
            try:
                client = nbd_client.Client(self.socket()).begin("origin")
                while True:
                    offset = self.chance.randrange(0, self.origin_bytes - 8 * KIB, 512)
                    client.do(nbd_client.WRITE, offset, data=self.chance.randbytes(8 * KIB))
                    began.set()
            except OSError as error:
                ended.append(error)

        thread = threading.Thread(target=load)
        thread.start()
        ready = began.wait(20 * SLOW)
        threading.Event().wait(RUNNING_SECONDS * self.chance.random())
        self.server.kill()
        thread.join()
        if not ready or not ended:
            raise RuntimeError("there was no load")

    def names(self):
        return [snapshot["name"] for snapshot in json.loads(self.rowsnap("list", "v", "--json"))["snapshots"]]
