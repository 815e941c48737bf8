# SPDX-License-Identifier: GPL-2.0-or-later
"""
A volume served by the program under test, and what it must hold: the oracle. Not a test by itself (no #! line).

Volume.model is what the origin holds, Volume.snapshots what each snapshot does; whoever writes through a transport
changes the model alike. verify() compares all of it, finish() also the image that is left after a clean stop.
"""
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time

from transports import DEADLINE_SECONDS, PROGRAM, SLOW

PIECE = 1 << 20


class Wrong(Exception):
    """What the program did is not what it promises."""


def expect(holds, text):
    if not holds:
        raise Wrong(text)


def expect_same(found, wanted, what):
    if found == wanted:
        return
    expect(len(found) == len(wanted), f"{what}: {len(found)} bytes and not {len(wanted)}")
    bad = [at for at in range(0, len(wanted), 512) if found[at:at + 512] != wanted[at:at + 512]]
    at = next(n for n in range(bad[0], len(wanted)) if found[n] != wanted[n])
    raise Wrong(f"{what}: {len(bad)} sectors differ, the first at byte {at}: "
                f"{found[at:at + 8].hex()} and not {wanted[at:at + 8].hex()}")


def random_image(size, seed=1):
    """Random, with runs of zeroes here and there. What is large repeats itself, not on any boundary."""
    chance = random.Random(seed)
    noise = chance.randbytes(min(size, (6 << 20) + 12345))
    image = bytearray((noise * (size // len(noise) + 1))[:size])
    for block in range(0, size - 65536, 65536):
        if chance.random() < 0.25:
            start = block + chance.randrange(8) * 4096
            image[start:start + 20480] = bytes(20480)
    return image


def read_all(device):
    return b"".join(device.read(at, min(PIECE, device.size - at)) for at in range(0, device.size, PIECE))


class Server:
    """`rowsnap serve` of an image in a folder of its own, which begins as a hole of `size` bytes."""

    def __init__(self, transport_class, size, *options):
        self.folder = tempfile.mkdtemp(prefix="rowsnap.")
        self.transport_class = transport_class
        self.transport = None
        self.options = options
        self.wrapper = []  # a command that the server is to be run by
        self.snapshots = {}
        self.devices = {}
        self.lock = threading.Lock()  # of these
        self.process = None
        self.environment = {}
        for name in ("run", "state"):
            os.mkdir(f"{self.folder}/{name}", 0o700)
        with open(self.origin, "wb") as file:
            file.truncate(size)

    @property
    def origin(self):
        return self.folder + "/origin.img"

    def store(self, name):
        return f"{self.folder}/{name}.store"

    # The server.
    def start(self):
        self.transport = self.transport_class(discard_copy="--discard=copy" in self.options)
        arguments = self.transport.serve_arguments(self.folder)
        self.environment = os.environ | self.transport.environment() | {
            "ROWSNAP_RUNDIR": self.folder + "/run", "ROWSNAP_STATEDIR": self.folder + "/state"}
        with open(self.folder + "/server.out", "wb") as output, open(self.folder + "/server.err", "ab") as errors:
            self.process = subprocess.Popen(
                [*self.wrapper, PROGRAM, "serve", self.origin, "--volume=demo", *arguments, *self.options],
                stdin=subprocess.DEVNULL, stdout=output, stderr=errors, env=self.environment, cwd=self.folder)
        deadline = time.monotonic() + DEADLINE_SECONDS
        while "rowsnap: ready\n" not in self.said("out"):
            expect(self.process.poll() is None, f"the server ends instead of starting: {self.said('err')}")
            expect(time.monotonic() < deadline, "the server does not get ready")
            time.sleep(0.005)
        for name in ("origin", *self.snapshots):
            self.transport.wait_for(name)

    def said(self, kind):
        """The end of it."""
        with open(f"{self.folder}/server.{kind}", encoding="utf-8", errors="replace") as file:
            return file.read()[-5000:]

    def kill(self):
        """SIGKILL."""
        self.process.kill()
        self.process.wait()
        self.leave()

    def stop(self):
        """A clean stop, by those who are through with it."""
        self.close_devices()
        self.run("stop", "demo")
        expect(self.process.wait(DEADLINE_SECONDS) == 0, f"the server exits with {self.process.returncode}")
        self.leave()

    def leave(self):
        """After the server's end."""
        self.close_devices(vanish=True)
        self.transport.close()
        self.transport = None

    def close_devices(self, vanish=False):
        while self.devices:
            device = self.devices.popitem()[1]
            (device.vanish if vanish else device.close)()

    # Commands.
    def run(self, *arguments):
        """Runs rowsnap, which must succeed; its standard output."""
        done = subprocess.run([PROGRAM, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=60 * SLOW, env=self.environment, cwd=self.folder, check=False)
        expect(done.returncode == 0, f"rowsnap {' '.join(arguments)}: exit status {done.returncode}: {done.stderr[-1000:]}")
        return done.stdout

    def snapshot(self, name, *options):
        self.run("snapshot", "demo", name, self.store(name), *options)
        self.snapshots[name] = None
        self.transport.wait_for(name)

    def drop(self, name):
        if name in self.devices:
            self.devices.pop(name).close()
        self.run("drop", "demo", name)
        self.forget(name)

    def forget(self, name):
        """It was dropped."""
        del self.snapshots[name]
        self.transport.wait_gone(name)
        os.unlink(self.store(name))

    def status(self):
        return json.loads(self.run("status", "demo", "--json"))

    def device(self, name="origin"):
        with self.lock:
            if name not in self.devices:
                self.devices[name] = self.transport.open(name)
            return self.devices[name]

    def clear(self):
        """Leaves nothing behind, whatever state it is in."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        if self.transport:
            self.leave()
        shutil.rmtree(self.folder, ignore_errors=True)


class Volume(Server):
    """With what is in it."""

    def __init__(self, transport_class, model, *options):
        super().__init__(transport_class, len(model), *options)
        self.model = model
        with open(self.origin, "r+b") as file:
            file.write(model)

    def snapshot(self, name, *options):
        """What it must hold is a copy of the model as it is now."""
        content = bytes(self.model)
        super().snapshot(name, *options)
        self.snapshots[name] = content

    def write(self, offset, data, fua=False):
        self.device().write(offset, data, fua)
        self.model[offset:offset + len(data)] = data

    def expect_content(self, name="origin"):
        wanted = self.model if name == "origin" else self.snapshots[name]
        expect_same(read_all(self.device(name)), wanted, name)

    def verify(self):
        for name in ("origin", *self.snapshots):
            self.expect_content(name)

    def adopt(self, first, end):
        """What is there in [first, end) was found good: from now on it must stay so."""
        self.model[first:end] = self.device().read(first, end - first)

    def expect_image(self):
        with open(self.origin, "rb") as file:
            expect_same(file.read(), self.model, "the origin after the stop")

    def finish(self):
        self.verify()
        self.stop()
        self.expect_image()
        noise = [line for line in self.said("err").splitlines() if line.startswith("rowsnap serve: ")]
        expect(not noise, f"the server said {noise}")
