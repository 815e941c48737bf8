#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""serve --dm-user, on a kernel that is played by dm_user_fake.py: dm-user.py [TEST...]. Prints TAP.

Every test gets a kernel and an origin of its own. Whatever a test does, at its end no process may have broken dm-user's
protocol, and (unless it says so) the server must end with 0 and leave no device: that is checked after each one.
"""
import concurrent.futures
import errno
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import struct
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import dm_user_fake as fake  # noqa: E402
from dm_user_fake import FUA, PREFLUSH, READ, SECTOR, SUCCESS, SYNC, WRITE, Kernel, Server  # noqa: E402

KIB, MIB = 1024, 1024 * 1024
count = failed = 0
tests = []


def check(text, ok):
    global count, failed
    count += 1
    failed += not ok
    print(f"{'ok' if ok else 'not ok'} {count} - {text}", flush=True)


def error_of(action, *arguments, **options):
    try:
        action(*arguments, **options)
    except OSError as error:
        return error.errno
    return None


class Place:
    """A folder with an origin in it, a kernel, and servers; all gone at the end."""

    def __init__(self, size=4 * MIB, **settings):
        self.folder = tempfile.mkdtemp(prefix="rowsnap-dmt.")
        self.origin = self.folder + "/origin.img"
        with open(self.origin, "wb") as file:
            if size <= 16 * MIB:
                file.write(random.Random(1).randbytes(size))
            file.truncate(size)
        self.kernel = Kernel(**settings)
        self.servers = []
        self.devices = []

    def serve(self, *arguments, name="disk", **options):
        if self.servers and "folder" not in options:
            options["folder"] = self.servers[0].folder
        server = Server(self.kernel, "origin.img", "--volume=demo", f"--dm-user={name}", *arguments, cwd=self.folder,
                        **options)
        self.servers.append(server)
        return server

    def open(self, name, **options):
        device = self.kernel.open(name, **options)
        self.devices.append(device)
        return device

    def snapshot(self, name, store=None):
        self.servers[-1].rowsnap("snapshot", "demo", name, f"./{store or name}.store")

    def image(self):
        return pathlib.Path(self.origin).read_bytes()

    def close_devices(self):
        for device in self.devices:
            device.close()

    def clear(self):
        for server in reversed(self.servers):
            server.clear()
        self.kernel.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def test(text, ends=True, **settings):
    """ends: after the test the server is running, and a clean stop leaves nothing."""

    def register(function):
        tests.append((text, function, ends, settings))
        return function

    return register


def run(text, function, ends, settings):
    place = Place(**settings)
    try:
        good = function(place)
        if ends:
            place.close_devices()
            status = place.servers[-1].stop()
            with place.kernel.lock:
                left = list(place.kernel.devices)
            links = os.listdir(f"{place.kernel.folder}/dev/mapper")
            if status != 0 or left or links:
                print(f"# status {status}, left {left} {links}")
                good = False
        if place.kernel.violations:
            print("#", place.kernel.violations[:5])
            good = False
    except Exception as error:  # a test's failure, whatever it is
        print(f"# {type(error).__name__}: {error}")
        good = False
    if not good and place.servers:
        print("#", place.servers[-1].said().replace("\n", "\n# "))
    place.clear()
    check(text, bool(good))


# ---- data ----


@test("what is written is read, and is in the image; the snapshot reads as before")
def _(place):
    server = place.serve()
    before = place.image()
    device = place.open("disk")
    place.snapshot("monday")
    snapshot = place.open("disk-monday", wait=False)  # it is there when the command returns
    model = bytearray(before)
    chance = random.Random(5)
    for length in (512, 1024, 4096, 7 * 512, 64 * KIB, MIB + 512, 512):
        at = chance.randrange((len(model) - length) // 512) * 512
        data = chance.randbytes(length)
        device.write(at, data, fua=length == 4096)
        model[at : at + length] = data
    device.zero(8192, 12288)
    model[8192 : 8192 + 12288] = bytes(12288)
    device.flush()
    good = device.read(0, device.size) == model == place.image() and snapshot.read(0, snapshot.size) == before
    lines = server.said("output").splitlines()
    return good and lines == ["origin /dev/mapper/disk", "rowsnap: ready"] and snapshot.read_only


@test("many threads on all channels, while snapshots come and go: every byte is right", size=3 * MIB)
def _(place):
    place.serve()
    device = place.open("disk")
    model = bytearray(place.image())
    share = len(model) // 6 // 512 * 512
    stop = threading.Event()

    def worker(number):
        chance = random.Random(number)
        first, done = number * share, 0
        while not stop.is_set() or done < 60:
            length = chance.choice([512, 4096, 4096, 65536, chance.randrange(1, 300) * 512])
            at = first + chance.randrange((share - length) // 512) * 512
            luck = chance.random()
            if luck < 0.05:
                device.flush()
            elif luck < 0.4:
                if device.read(at, length) != model[at : at + length]:
                    return False
            else:
                data = chance.randbytes(length)
                device.write(at, data, fua=luck > 0.95)
                model[at : at + length] = data
            done += 1
        return True

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        workers = [pool.submit(worker, number) for number in range(6)]
        expected = {}
        try:
            for name in ("a", "b", "c"):
                place.snapshot(name)
                with place.kernel.open("disk-" + name) as snapshot:
                    expected[name] = snapshot.read(0, snapshot.size)
            place.servers[-1].rowsnap("drop", "demo", "b")
        finally:
            stop.set()
        good = all(future.result() for future in workers)
    for name in ("a", "c"):
        with place.kernel.open("disk-" + name) as snapshot:
            good = good and snapshot.read(0, snapshot.size) == expected[name]
    return good and device.read(0, device.size) == model == place.image()


@test("requests of any length: of 40 MiB in one, of 300 MiB refused", size=320 * MIB, odd=False)
def _(place):
    server = place.serve()
    device = place.open("disk")
    data = random.Random(2).randbytes(MIB) * 40 + b"end." * 128
    device.longest = None
    device.write(5 * 512, data)
    good = device.read(5 * 512, len(data)) == data
    good = good and error_of(device.read, 0, 300 * MIB) == errno.EIO and server.wait_said("at once fails")
    # The channel that refused, and all others, go on.
    return good and all(device.read(512 * at, 4096) is not None for at in range(20))


def reply_type(device, *request):
    message = device.begin(*request)
    error = error_of(device.end, message)
    return message.reply, error


@test("types and flags: flushes of both kinds, zeroes, discards, what is unknown, a flush with data")
def _(place):
    place.serve()
    device = place.open("disk")
    place.snapshot("monday")

    def counters():
        return json.loads(place.servers[-1].rowsnap("status", "demo", "--json").stdout)["requests"]

    before = counters()
    page = b"p" * 4096
    results = [
        reply_type(device, WRITE, SYNC | PREFLUSH, 0, 0),
        reply_type(device, fake.FLUSH, SYNC, 0, 0),
        reply_type(device, WRITE, 0, 0, 0),
        reply_type(device, WRITE, SYNC | PREFLUSH | FUA, 64, 4096, page),
        reply_type(device, fake.WRITE_ZEROES, fake.NOUNMAP | PREFLUSH, 80, 4096),
        reply_type(device, fake.DISCARD, 0, 512, 65536),
        reply_type(device, fake.DISCARD, 0, 512, 0),
        reply_type(device, READ, fake.RAHEAD, 0, 0),
    ]
    good = all(result == (SUCCESS, None) for result in results)
    after = counters()
    good = good and after["flushes"] - before["flushes"] == 5 and after["zeroes"] - before["zeroes"] == 1
    for kind in (fake.SECURE_ERASE, fake.WRITE_SAME, 7, 1 << 40):
        good = good and reply_type(device, kind, 0, 0, 4096) == (fake.UNSUPPORTED, errno.EIO)
    return good and device.read(64 * 512, 4096) == page and device.read(80 * 512, 4096) == bytes(4096)


@test("errors are 40 bytes, and the channel goes on: out of bounds, read-only, in pieces")
def _(place):
    place.serve()
    place.snapshot("monday")
    device, snapshot = place.open("disk"), place.open("disk-monday")
    end = device.size // SECTOR
    refused = [
        (device, READ, 0, end, 512), (device, READ, 0, end - 1, 1024), (device, READ, 0, 1 << 60, 512),
        (device, WRITE, 0, end, 512, b"x" * 512), (device, WRITE, FUA, end - 1, 3 * MIB, b"x" * 3 * MIB),
        (device, WRITE, PREFLUSH, (1 << 64) - 1, 70000, b"x" * 70000),
        (device, fake.WRITE_ZEROES, 0, end - 1, 1024), (device, fake.DISCARD, 0, 0, 1 << 40),
        (snapshot, WRITE, 0, 0, 4096, b"x" * 4096), (snapshot, WRITE, PREFLUSH, 0, 2 * MIB, b"x" * 2 * MIB),
        (snapshot, fake.WRITE_ZEROES, 0, 0, 4096), (snapshot, fake.DISCARD, 0, 0, 4096),
    ]
    good = True
    for target, *request in refused * 3:
        good = good and reply_type(target, *request) == (fake.ERROR, errno.EIO)
    good = good and reply_type(snapshot, WRITE, SYNC | PREFLUSH, 0, 0) == (SUCCESS, None)
    good = good and device.read(0, device.size) == snapshot.read(0, snapshot.size) == place.image()
    return good and len(place.kernel.channels) == 5


@test("replies come on the channel that asked, also where many wait for the arena", size=64 * MIB, odd=False)
def _(place):
    place.serve()
    device = place.open("disk")
    device.longest = None
    data = random.Random(3).randbytes(MIB) * 2
    for at in range(0, 64 * MIB, len(data)):
        device.write(at, data)
    begun = [device.begin(READ, 0, 0, 30 * MIB) for _ in range(6)]
    begun += [device.begin(WRITE, 0, 40 * MIB // 512, len(data), data) for _ in range(4)]
    begun += [device.begin(READ, 0, 8 * at, 4096) for at in range(100)]
    results = [device.end(message) for message in begun]
    return all(result == data * 15 for result in results[:6]) and all(
        results[10 + at] == data[4096 * at : 4096 * at + 4096] for at in range(100))


# ---- devices that come and go ----


@test("a device's limits are set, udev's or our own link leads to it, and its file may be late to appear")
def _(place):
    kernel = place.kernel
    place.serve()
    device = place.open("disk")
    good = kernel.sysfs("disk", "max_sectors_kb") == "1024" and kernel.sysfs("disk", "discard_max_bytes") == "0"
    good = good and error_of(device.discard, 0, 4096) == errno.EOPNOTSUPP
    good = good and os.readlink(f"{kernel.folder}/dev/mapper/disk") == "../dm-0"
    kernel.node_delay = 0.5
    place.snapshot("late")
    return good and place.open("disk-late", wait=False).read(0, 512) == place.image()[:512]


@test("with udev, which looks at new devices and has them open for a moment", udev=True)
def _(place):
    place.serve()
    place.snapshot("monday")
    place.kernel.remove_busy = 5
    place.servers[-1].rowsnap("drop", "demo", "monday")
    good = place.kernel.wait_gone("disk-monday")
    place.kernel.remove_busy = 3
    return good and os.listdir(f"{place.kernel.folder}/dev/mapper") == ["disk"]


@test("dropping a snapshot whose device is open, under load: drop returns, its reads fail, its name can be used again")
def _(place):
    server = place.serve()
    device = place.open("disk")
    place.snapshot("monday")
    snapshot = place.open("disk-monday")
    stop, results = threading.Event(), []

    def load():
        while not stop.is_set():
            results.append(error_of(snapshot.read, 0, 256 * KIB))

    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        for _ in range(4):
            pool.submit(load)
        try:
            while len(results) < 8:
                time.sleep(0.01)
            dropped = server.rowsnap("drop", "demo", "monday", check=False).returncode == 0
            told = server.wait_said("'disk-monday' is still open")
        finally:
            stop.set()
    # Nobody would remove the link later.
    good = dropped and told and os.listdir(f"{place.kernel.folder}/dev/mapper") == ["disk"]
    good = good and error_of(snapshot.read, 0, 512) == errno.EIO
    good = good and set(results) <= {None, errno.EIO} and None in results
    # As long as it is open its name is taken: the new snapshot is taken all the same, and that is told.
    place.snapshot("monday", "second")
    good = good and server.wait_said("the name is taken") and "disk-monday" in place.kernel.devices
    snapshot.close()
    good = good and place.kernel.wait_gone("disk-monday")
    server.rowsnap("drop", "demo", "monday")
    place.snapshot("monday", "third")
    good = good and place.open("disk-monday").read(0, 4096) == place.image()[:4096]
    device.write(0, b"n" * 512)
    return good


@test("many snapshots at once: each has its device, and a clean stop removes them all")
def _(place):
    place.serve()
    device = place.open("disk")
    for number in range(12):
        device.write(number * 512, bytes([number]) * 512)
        place.snapshot(f"s{number}")
    good = all(place.open(f"disk-s{number}").read(number * 512, 512) == bytes([number]) * 512 for number in range(12))
    for number in (0, 5, 11):
        place.devices[number + 1].close()
        place.servers[-1].rowsnap("drop", "demo", f"s{number}")
        good = good and place.kernel.wait_gone(f"disk-s{number}")
    return good and len(place.kernel.devices) == 10


@test("a device that somebody else removes is told, and the server goes on")
def _(place):
    server = place.serve("--nbd")
    place.snapshot("monday")
    for name in ("disk", "disk-monday"):
        place.kernel.remove_behind_its_back(name)
        os.unlink(f"{place.kernel.folder}/dev/mapper/{name}")
    good = server.wait_said("'disk' was removed by somebody else") and server.wait_said("'disk-monday' was removed")
    server.rowsnap("drop", "demo", "monday")
    return good and "health" in server.rowsnap("status", "demo", "--json").stdout


# ---- the end ----


@test("while a device is open a signal waits, and so does stop, which says who has it", ends=False)
def _(place):
    server = place.serve()
    device = place.open("disk")
    server.signal()
    good = server.wait_said("waiting to stop: /dev/mapper/disk is open or mounted")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        stop = pool.submit(server.rowsnap, "stop", "demo", check=False)
        time.sleep(0.3)
        good = good and not stop.done() and write_back(device)
        stopped = stop.result()
    good = good and stopped.returncode == 0 and stopped.stderr.startswith(
        "rowsnap stop: demo: /dev/mapper/disk is open or mounted")
    return good and server.wait() == 0 and place.image()[:4096] == b"w" * 4096 and not place.kernel.devices


def write_back(device):
    """What a file system does while it is unmounted."""
    device.write(0, b"w" * 4096)
    device.flush()
    device.close()
    return True


@test("a second signal stops at once, under load: what is asked then fails, and nothing hangs", ends=False)
def _(place):
    server = place.serve()
    device = place.open("disk")
    acknowledged, stop = {}, threading.Event()

    def load(number):
        chance, done = random.Random(number), 0
        while not stop.is_set():
            at = number * MIB + chance.randrange(200) * 4096
            data = chance.randbytes(4096)
            if error_of(device.write, at, data) is None:
                acknowledged[at] = data
            else:
                acknowledged.pop(at, None)
            done += 1
        return done

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        workers = [pool.submit(load, number) for number in range(4)]
        try:
            server.signal()
            good = server.wait_said("waiting to stop")
            server.signal()
            status = server.wait()
        finally:
            stop.set()
        good = good and all(future.result() > 0 for future in workers)
    image = place.image()
    good = good and status == 0 and all(image[at : at + 4096] == data for at, data in acknowledged.items())
    good = good and server.wait_said("'disk' is still open") and error_of(device.read, 0, 512) == errno.EIO
    device.close()
    return good and not place.kernel.devices and not place.kernel.torn


@test("devices that can't be removed, and readers that only a signal ends, don't keep the server", ends=False)
def _(place):
    server = place.serve()
    place.snapshot("monday")
    place.kernel.failing["remove"] = errno.EIO
    status = server.stop()
    good = status == 0 and server.wait_said("'disk' cannot be removed") and not place.kernel.channels
    place.kernel.failing.clear()
    return good and error_of(place.open("disk").read, 0, 512) == errno.EIO


@test("SIGKILL: what was written is there, and the next start removes what is left")
def _(place):
    server = place.serve()
    place.snapshot("monday")
    before = place.image()
    device = place.open("disk")
    device.write(0, b"k" * 8192)
    server.kill()
    good = error_of(device.read, 0, 512) == errno.EIO
    device.close()
    refused = place.open("disk-monday")  # somebody still has it
    place.serve(ready=False)
    good = good and place.servers[-1].wait() == 1
    last = place.servers[-1].said().splitlines()[-1]
    good = good and last.startswith("rowsnap serve: disk-monday: a device of this name")
    refused.close()
    place.kernel.add_foreign("disk-other")  # not ours, for all its name
    place.serve()
    device = place.open("disk")
    good = good and device.read(0, 8192) == b"k" * 8192 and place.open("disk-monday").read(0, 8192) == before[:8192]
    place.kernel.remove_behind_its_back("disk-other")
    return good


@test("a name that is taken, and a server that runs, are left alone")
def _(place):
    place.kernel.add_foreign("disk")
    server = place.serve(ready=False)
    good = server.wait() == 1 and "rowsnap serve: disk: a device of this name is there already" in server.said()
    good = good and list(place.kernel.devices) == ["disk"]
    place.kernel.remove_behind_its_back("disk")
    place.serve()
    shutil.copy(place.origin, place.folder + "/other.img")
    other = Server(place.kernel, "other.img", "--volume=other", "--dm-user=disk", cwd=place.folder, ready=False)
    good = good and other.wait() == 1 and "rowsnap serve: disk: another server serves this device" in other.said()
    other.clear()
    return good and place.open("disk").read(0, 4096) == place.image()[:4096]


def refusal(place, why):
    server = place.serve(ready=False)
    lines = server.wait() == 1 and server.said().splitlines()
    if not lines or len(lines) != 1 or not lines[0].startswith("rowsnap serve: ") or why not in lines[0]:
        print("#", lines)
        return False
    return not place.kernel.devices and not place.kernel.channels


@test("a kernel that can't: one error line, and nothing is left", ends=False)
def _(place):
    kernel = place.kernel
    good = True
    for error, why in ((errno.ENOENT, "has no device mapper"), (errno.EACCES, "needs root"),
                       (errno.EPERM, "needs root")):
        kernel.control_error = error
        good = good and refusal(place, why)
    kernel.control_error = 0
    kernel.foreign_target = True
    good = good and refusal(place, "no dm-user target")
    kernel.foreign_target = False
    for command, error, why in (("version", errno.EINVAL, "another version"), ("create", errno.ENOMEM, "disk: "),
                                ("load", errno.ENOMEM, "disk: "), ("suspend", errno.ENXIO, "disk: "),
                                ("list_devices", errno.EACCES, "needs root")):
        kernel.failing = {command: error}
        good = good and refusal(place, why)
    kernel.failing = {}
    kernel.node_delay = 1000
    return good and refusal(place, "/dev/dm-user did not appear")


@test("more devices than one answer holds are listed")
def _(place):
    for number in range(600):
        place.kernel.add_foreign(f"other-device-of-a-long-name-{number}")
    place.serve()
    good = place.open("disk").read(0, 512) == place.image()[:512] and place.kernel.calls["list_devices"] == 2
    for number in range(600):
        place.kernel.remove_behind_its_back(f"other-device-of-a-long-name-{number}")
    return good


# ---- abuse ----


@test("messages at random: every one is answered, nothing crashes or hangs")
def _(place):
    place.serve()
    place.snapshot("monday")
    devices = [place.open("disk"), place.open("disk-monday")]
    chance = random.Random(int(os.environ.get("SEED", "7")))

    def number(*likely):
        return chance.choice([*likely, chance.randrange(1 << chance.choice([4, 13, 20, 33, 64]))])

    begun = []
    for _ in range(600):
        device = chance.choice(devices)
        kind = chance.choice([READ, WRITE, WRITE, *range(9), number()])
        length = chance.choice([0, 512, 4096, 123, chance.randrange(200000), number()])
        data = b""
        if kind == WRITE:
            length = min(length, 3 * MIB)
            data = b"r" * length
        begun.append((device, device.begin(kind, number(0, FUA, PREFLUSH), number(0, 8, 8191), length, data)))
        if len(begun) > 40:
            waited, message = begun.pop(chance.randrange(len(begun)))
            error_of(waited.end, message)
    for waited, message in begun:
        error_of(waited.end, message)
    return devices[1].read(0, 4096) is not None and len(place.kernel.channels) == 5


@test("a header that makes no sense closes its channel, the others go on; with none left the server goes on")
def _(place):
    server = place.serve("--nbd")
    device = place.open("disk")
    good = True
    for left in (3, 2, 1, 0):
        message = fake.Message(1 << 40, WRITE, 0, 0, 0, b"")
        message.to_user = fake.HEADER.pack(1 << 40, WRITE, 0, 0, 1 << 50) + b"x" * 100
        with place.kernel.lock:
            place.kernel.targets["disk"].queue.append(message)
            place.kernel.lock.notify_all()
            good = good and place.kernel.lock.wait_for(lambda n=left: len(place.kernel.channels) == n, 20 * fake.SLOW)
        if left:
            good = good and device.read(0, 4096) == place.image()[:4096]
    good = good and server.wait_said("the kernel has another protocol") and error_of(device.read, 0, 512) == errno.EIO
    server.rowsnap("status", "demo")
    return good


@test("a channel that takes no more replies is closed, and what it had fails; the others go on")
def _(place):
    server = place.serve()
    device = place.open("disk")
    with place.kernel.lock:
        first = next(iter(place.kernel.channels.values()))
        first.write_error = errno.EINVAL
    for _ in range(40):
        error_of(device.read, 0, 512)
    good = server.wait_said("one of 4 channels is closed")
    with place.kernel.lock:
        good = good and place.kernel.lock.wait_for(lambda: len(place.kernel.channels) == 3, 20 * fake.SLOW)
    return good and all(device.read(0, 4096) == place.image()[:4096] for _ in range(20))


@test("a store on the server's own device is refused")
def _(place):
    server = place.serve()
    pathlib.Path(place.folder + "/own.store").touch()
    request = {"command": "snapshot", "name": "own", "store": place.folder + "/own.store",
               "store_device": os.makedev(253, place.kernel.devices["disk"].minor)}
    with socket.socket(socket.AF_UNIX) as control:
        control.connect(server.folder + "/run/demo.sock")
        control.sendall(json.dumps(request).encode() + b"\n")
        answer = json.loads(control.makefile().readline())
    return "own export" in answer["error"]["why"]


def main():
    wanted = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    for text, *rest in tests:
        if not wanted or any(word in text for word in wanted):
            started = time.monotonic()
            run(text, *rest)
            if "TIMES" in os.environ:
                print(f"# {time.monotonic() - started:.1f} s")
    print(f"1..{count}")
    sys.exit(1 if failed else 0)


main()
