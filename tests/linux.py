# SPDX-License-Identifier: GPL-2.0-or-later
"""What python's library lacks: fallocate, direct I/O, mounts, loop devices. Not a test by itself (no #! line)."""
import ctypes
import fcntl
import mmap
import os
import struct
import subprocess

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
BLKDISCARD, BLKGETSIZE64, BLKROGET = 0x1277, 0x80081272, 0x125e
os.environ["PATH"] += ":/usr/sbin:/sbin"
libc = ctypes.CDLL(None, use_errno=True)


def fallocate(fd, mode, offset, length):
    if libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def read_direct(fd, offset, length):
    """As os.pread, in memory that suits O_DIRECT; less than asked for only at the end."""
    with mmap.mmap(-1, max(length, 1)) as memory, memoryview(memory) as view:
        done = 0
        while done < length:
            count = os.preadv(fd, [view[done:length]], offset + done)
            if count == 0:
                break
            done += count
        return bytes(view[:done])


def write_direct(fd, offset, data):
    """As os.pwrite of all of it, from memory that suits O_DIRECT."""
    with mmap.mmap(-1, max(len(data), 1)) as memory, memoryview(memory) as view:
        view[:len(data)] = data
        done = 0
        while done < len(data):
            done += os.pwritev(fd, [view[done:len(data)]], offset + done)


def discard_device(fd, offset, length):
    fcntl.ioctl(fd, BLKDISCARD, struct.pack("QQ", offset, length))


def device_size(fd):
    return struct.unpack("Q", fcntl.ioctl(fd, BLKGETSIZE64, bytes(8)))[0]


def device_is_read_only(fd):
    return struct.unpack("i", fcntl.ioctl(fd, BLKROGET, bytes(4)))[0] != 0


def attach_loop(path, *options):
    """A new loop device's path."""
    done = subprocess.run(["losetup", "--find", "--show", "--direct-io=on", *options, path], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"losetup: {done.stderr.strip()}")
    return done.stdout.strip()


def detach_loop(device):
    subprocess.run(["losetup", "--detach", device], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


def is_mounted(directory):
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        return any(line.split()[4] == os.path.realpath(directory) for line in file)


def unmount(directory, lazy=False):
    if os.geteuid() == 0:
        command = ["umount"] + ["-l"] * lazy
    else:
        command = ["fusermount3", "-u"] + ["-z"] * lazy
    return subprocess.run([*command, os.path.realpath(directory)], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                          check=False).returncode == 0
