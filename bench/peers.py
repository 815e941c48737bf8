# SPDX-License-Identifier: GPL-2.0-or-later
"""The servers that are compared: how each is started over one origin image, reached by fio, measured and ended."""
import json
import os
import shutil
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROWSNAP = os.environ.get("ROWSNAP", os.path.join(HERE, "..", "rowsnap"))
BLOCK = 4096


def wait_for(condition, what):
    for _ in range(400):
        if condition():
            return
        time.sleep(0.025)
    sys.exit(f"bench: {what} did not start")


def fio(*jobs, **more):
    """Runs jobs, each a list of arguments; returns fio's account of each."""
    command = ["fio", "--output-format=json", "--direct=1", "--randrepeat=1", "--thread"]
    for number, job in enumerate(jobs):
        command += [f"--name=job{number}"] + job
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **more).stdout
    return json.loads(output[output.index("{"):])["jobs"]


def rate(job):
    """Operations a second."""
    return job["write"]["iops"] + job["read"]["iops"]


class Peer:
    """One server. `with` starts and ends it; fio reaches it by self.target."""

    name = "?"
    snapshots = 0

    def __init__(self, folder, origin):
        self.folder, self.origin = folder, origin
        self.size = os.stat(origin).st_size
        self.socket = os.path.join(folder, "nbd")
        self.process = self.loop = self.target = None

    def path(self, name):
        return os.path.join(self.folder, name)

    def start(self):
        """Starts self.process, if there is one, and sets self.target."""

    def by_nbd(self, export=""):
        return ["--ioengine=nbd", f"--uri=nbd+unix:///{export}?socket={self.socket}"]

    def by_file(self, path):
        return ["--ioengine=libaio", f"--filename={path}"]

    def by_loop(self, path):
        self.loop = subprocess.run(["losetup", "--find", "--show", "--direct-io=on", path], check=True,
                                   stdout=subprocess.PIPE, text=True).stdout.strip()
        return self.by_file(self.loop)

    def __enter__(self):
        for name in os.listdir(self.folder):
            if name != os.path.basename(self.origin):
                if os.path.isdir(self.path(name)):
                    shutil.rmtree(self.path(name))
                else:
                    os.unlink(self.path(name))
        self.start()
        return self

    def __exit__(self, *_):
        if self.loop:
            subprocess.run(["losetup", "--detach", self.loop], check=True)
            self.loop = None
        if self.process:
            self.process.terminate()
            self.process.wait()
            if self.process.stdout:
                self.process.stdout.close()
            self.process = None

    def run(self, arguments):
        return fio(self.target + [f"--size={self.size}"] + arguments)[0]

    # What it costs.

    def cpu_seconds(self):
        if not self.process:
            return None
        spent_ns = 0
        for task in os.listdir(f"/proc/{self.process.pid}/task"):
            with open(f"/proc/{self.process.pid}/task/{task}/schedstat", encoding="utf-8") as file:
                spent_ns += int(file.read().split()[0])
        return spent_ns / 1e9

    def peak_bytes(self):
        if not self.process:
            return None
        with open(f"/proc/{self.process.pid}/status", encoding="utf-8") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        return None

    def device_counts(self):
        """What the kernel has counted on the disk the images lie on, whoever caused it: reads, writes, flushes."""
        number = os.stat(self.folder).st_dev
        try:
            with open(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/stat", encoding="utf-8") as file:
                fields = [int(field) for field in file.read().split()]
        except FileNotFoundError:
            return None  # a file system without a disk of its own
        return fields[0], fields[4], fields[15] if len(fields) > 15 else 0

    def disk_bytes(self):
        """What the kernel has counted of the process's reads from disks, and writes."""
        with open(f"/proc/{self.process.pid}/io", encoding="utf-8") as file:
            fields = dict(line.split(": ") for line in file.read().splitlines())
        return int(fields["read_bytes"]), int(fields["write_bytes"])


class Raw(Peer):
    name = "raw file"

    def start(self):
        self.target = self.by_file(self.origin)


class Rowsnap(Peer):
    """`snapshots` of them are taken at start, the stores beside the origin."""

    name = "rowsnap"
    snapshots = 1
    options = ()
    transport = "nbd"

    def start(self):
        self.environment = dict(os.environ, ROWSNAP_RUNDIR=self.folder, ROWSNAP_STATEDIR=self.path("state"))
        self.serve([])
        for number in range(self.snapshots):
            self.snapshot(number)

    def serve(self, stores):
        how = {"nbd": f"--nbd={self.socket}", "loop": "--loop"}[self.transport]
        self.process = subprocess.Popen([ROWSNAP, "serve", self.origin, *stores, "--volume=bench", how, *self.options],
                                        env=self.environment, stdout=subprocess.PIPE, text=True,
                                        stderr=None if os.environ.get("BENCH_VERBOSE") else subprocess.DEVNULL)
        self.target = self.by_nbd("origin")
        for line in self.process.stdout:
            if line.startswith("origin /dev/"):
                self.target = self.by_file(line.split()[1])
            if line.strip() == "rowsnap: ready":
                return
        sys.exit("bench: rowsnap did not start")

    def command(self, *arguments):
        return subprocess.run([ROWSNAP, *arguments], env=self.environment, check=True, stdout=subprocess.PIPE,
                              text=True).stdout

    def snapshot(self, number):
        self.command("snapshot", "bench", f"s{number}", self.path(f"s{number}.store"))

    def status(self):
        return json.loads(self.command("status", "bench", "--json"))


class RowsnapPlain(Rowsnap):
    name = "rowsnap, no snapshot"
    snapshots = 0


class RowsnapWriteBack(Rowsnap):
    name = "rowsnap, write-back"
    options = ("--write-back=64M",)


class RowsnapLoop(Rowsnap):
    name = "rowsnap, loop"
    transport = "loop"


def rowsnap_with(count):
    return type(f"Rowsnap{count}", (Rowsnap,), {"name": f"rowsnap, {count} snapshots", "snapshots": count})


class Qemu(Peer):
    name = "qemu"
    copies = False
    transport = "nbd"

    def start(self):
        file = "cache.direct=on,aio=native"
        command = ["qemu-storage-daemon", "--blockdev", f"driver=file,node-name=file,filename={self.origin},{file}"]
        node = "file"
        if self.copies:
            with open(self.path("cow"), "wb") as cow:
                cow.truncate(self.size)
            command += ["--blockdev", f"driver=file,node-name=cow,filename={self.path('cow')},{file}",
                        "--blockdev", "driver=copy-before-write,node-name=cbw,file=file,target=cow",
                        "--blockdev", "driver=snapshot-access,node-name=snap,file=cbw"]
            node = "cbw"
        if self.transport == "nbd":
            command += ["--nbd-server", f"addr.type=unix,addr.path={self.socket},max-connections=0",
                        "--export", f"type=nbd,id=e0,node-name={node},name=origin,writable=on"]
            there = lambda: os.path.exists(self.socket)
        else:
            with open(self.path("fuse"), "wb"):
                pass
            command += ["--export", f"type=fuse,id=e0,node-name={node},mountpoint={self.path('fuse')},writable=on"]
            there = lambda: os.stat(self.path("fuse")).st_size == self.size
        self.process = subprocess.Popen(command)
        wait_for(there, "qemu-storage-daemon")
        self.target = self.by_nbd("origin") if self.transport == "nbd" else self.by_loop(self.path("fuse"))


class QemuCbw(Qemu):
    name = "qemu, copy-before-write"
    snapshots = 1
    copies = True


class QemuLoop(QemuCbw):
    name = "qemu, copy-before-write, loop"
    transport = "fuse"


class Nbdkit(Peer):
    name = "nbdkit file"

    def start(self):
        self.process = subprocess.Popen(["nbdkit", "--foreground", "--unix", self.socket, "file", self.origin])
        wait_for(lambda: os.path.exists(self.socket), "nbdkit")
        self.target = self.by_nbd()
