#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""
An origin that was mounted or checked behind our back, after a clean stop and after SIGKILL: origin-changed.py [NAME].
Prints TAP. For ext4, XFS and btrfs, unmounted when they were served last, and in the middle of their work.

Whatever was done: when it changed the image in any byte, it is noticed at the next start, which refuses; and goes on with
--accept-origin, with the chain marked broken. When it changed nothing, it is served as if nothing had been.
"""
import os
import pathlib
import shutil
import subprocess
import sys

from history import Content, Wrong, expect
from linux import is_mounted, unmount
from nbd_client import FLUSH, WRITE, Client
from sandbox import SLOW, VOLUME, Folder

MIB = 1 << 20
PIECE = 64 << 10
KINDS = {  # name: size, how it is made, and how it is checked (and mended)
    "ext4": (48 * MIB, ["mkfs.ext4", "-q", "-F"], ["e2fsck", "-f", "-y"]),
    "xfs": (320 * MIB, ["mkfs.xfs", "-q", "-f"], ["xfs_repair", "-L"]),
    "btrfs": (128 * MIB, ["mkfs.btrfs", "-q", "-f"], ["sh", "-c", 'btrfs check --repair --force "$0"; btrfs rescue zero-log "$0"']),
}


class Image(Folder):
    """The file system's images, before and after some work, and a volume with one snapshot taken in between."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.size, self.mkfs, self.fsck = KINDS[kind]
        self.point = self.path / "point"
        self.point.mkdir()
        self.origin, self.store = self.path / "origin.img", self.path / "a.store"

    def __exit__(self, *_):
        while is_mounted(self.point) and unmount(self.point, lazy=True):
            pass
        super().__exit__()

    def copy(self, source, target):
        self.must("cp", "--sparse=always", self.path / source, self.path / target)

    def mount(self, image):
        self.must("mount", "-o", "loop", image, self.point)

    def unmount(self):
        self.must("umount", self.point)

    def make_images(self):
        """before.img, unmounted.img, and busy.img: with a journal to be replayed."""
        with open(self.path / "before.img", "wb") as file:
            file.truncate(self.size)
        self.must(*self.mkfs, "before.img")
        self.mount("before.img")
        (self.point / "old").write_bytes(b"old" * 10000)
        self.unmount()
        self.copy("before.img", "unmounted.img")
        self.mount("unmounted.img")
        for number in range(20):
            (self.point / f"new{number}").write_bytes(bytes([number]) * 30000)
        self.must("sync", "-f", self.point)
        with open(self.point / "last", "wb") as file:
            file.write(b"last" * 1000)
            os.fsync(file.fileno())
        self.copy("unmounted.img", "busy.img")
        self.unmount()

    def write_through(self, target):
        """What the work made of the image, through the server."""
        client = Client(self.socket(), timeout=60 * SLOW).begin("origin")
        with open(self.path / "before.img", "rb") as old, open(self.path / target, "rb") as new:
            for offset in range(0, self.size, PIECE):
                before, after = old.read(PIECE), new.read(PIECE)
                if before != after:
                    expect(client.do(WRITE, offset, data=after) == 0, "a write fails")
        expect(client.do(FLUSH) == 0, "a flush fails")
        client.close()

    def serve_and_end(self, target, end):
        """Leaves the folder as it is after that, in saved files."""
        self.renew()
        self.copy("before.img", "origin.img")
        self.store.unlink(missing_ok=True)
        server = self.serve(self.origin)
        expect(server.is_ready, f"not served: {server.error_lines()}")
        self.rowsnap("snapshot", VOLUME, "a", self.store)
        self.write_through(target)
        if end == "stop":
            server.stop()
        else:
            server.kill()
        self.must("cmp", self.origin, target)
        self.copy("origin.img", "saved.img")
        self.copy("a.store", "saved.store")

    def restore(self):
        self.renew()
        self.copy("saved.img", "origin.img")
        self.copy("saved.store", "a.store")

    # What is done behind our back.
    def nothing(self):
        pass

    def mounted(self):
        self.mount(self.origin)
        self.unmount()

    def mounted_and_used(self):
        self.mount(self.origin)
        (self.point / "behind our back").write_bytes(b"!")
        self.unmount()

    def checked(self):
        done = self.run(*self.fsck, self.origin, seconds=60)
        expect(done.returncode in (0, 1), f"{self.fsck[0]}: {done.returncode}: {done.stderr.decode()}")

    # What comes of it.
    def is_changed(self):
        return self.run("cmp", self.origin, "saved.img").returncode != 0

    def expect_noticed(self):
        server = self.serve(self.origin, self.store)
        expect(not server.is_ready, "it is served")
        said = server.error_lines()[-1]
        expect(server.process.returncode == 1 and "changed" in said and "--accept-origin" in said, f"it says: {said}")
        server = self.serve(self.origin, self.store, "--accept-origin")
        expect(server.is_ready, f"not accepted: {server.error_lines()}")
        expect(b'"broken"' in self.rowsnap("list", VOLUME, "--json"), "the chain is not marked broken")
        self.expect_snapshot(errors_allowed=True)
        server.stop()
        server = self.serve(self.origin, self.store)
        expect(server.is_ready, f"once accepted, it is not served: {server.error_lines()}")
        expect(b'"broken"' in self.rowsnap("list", VOLUME, "--json"), "the chain is not broken any more")
        server.stop()

    def expect_unnoticed(self):
        server = self.serve(self.origin, self.store)
        expect(server.is_ready, f"not served: {server.error_lines()}")
        expect(b'"broken"' not in self.rowsnap("list", VOLUME, "--json"), "the chain is broken")
        self.expect_snapshot(errors_allowed=False)
        server.stop()

    def expect_snapshot(self, errors_allowed):
        """It holds what it held, or gives an error where that is not known."""
        client = Client(self.socket(), timeout=60 * SLOW).begin("a")
        good = 0
        with open(self.path / "before.img", "rb") as file:
            for offset in range(0, self.size, MIB):
                wanted, found = file.read(MIB), client.read(offset, MIB)
                if isinstance(found, bytes):
                    Content(wanted).expect_same(found, f"the snapshot at {offset}")
                    good += 1
                else:
                    expect(errors_allowed and found == 5, f"the snapshot at {offset}: error {found}")
        client.close()
        expect(good or errors_allowed, "nothing can be read")


ACTIONS = (Image.nothing, Image.mounted, Image.mounted_and_used, Image.checked)


def check(image, target, end, noticed):
    """Every action, after one end."""
    image.serve_and_end(target, end)
    for action in ACTIONS:
        name = action.__name__.replace("_", " ")
        try:
            image.restore()
            action(image)
            changed = image.is_changed()
            expect(changed or action not in (Image.mounted_and_used, Image.checked), "it changed nothing")
            (image.expect_noticed if changed else image.expect_unnoticed)()
            noticed.append(name) if changed else None
        except (Wrong, RuntimeError) as error:
            raise Wrong(f"{name}: {error}") from error


def skip_reason(kind):
    if os.geteuid() != 0:
        return "needs root, to mount"
    for tool in (KINDS[kind][1][0], *KINDS[kind][2][:1], "losetup"):
        if not shutil.which(tool):
            return f"there is no command {tool}"
    if kind not in pathlib.Path("/proc/filesystems").read_text(encoding="ascii").split():
        return f"this kernel has no {kind}"
    return None


def main():
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    kinds = [kind for kind in KINDS if sys.argv[1:] in ([], [kind])]
    print(f"1..{len(kinds) * 4}", flush=True)
    number = failed = 0
    for kind in kinds:
        reason = skip_reason(kind)
        with Image(kind) as image:
            if not reason:
                image.make_images()
            for end in ("stop", "kill"):
                for target in ("unmounted.img", "busy.img"):
                    number += 1
                    title = (f"{number} - {kind}, {target.removesuffix('.img')} at the "
                             f"{'clean stop' if end == 'stop' else 'SIGKILL'}")
                    if reason:
                        print(f"ok {title} # skip {reason}", flush=True)
                        continue
                    noticed = []
                    try:
                        check(image, target, end, noticed)
                        print(f"ok {title}\n#   noticed: {', '.join(noticed)}", flush=True)
                    except (Wrong, OSError, RuntimeError, subprocess.SubprocessError) as error:
                        failed += 1
                        print(f"not ok {title}\n# " + str(error).replace("\n", "\n# "), flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
