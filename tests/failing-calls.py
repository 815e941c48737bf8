#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""
System calls of the server that fail or fall short, once or from some moment on: it neither dies nor hangs, says what went
wrong, gives no wrong byte, and loses no write that it answered. A snapshot may break, and then says so; the origin comes
first. (Arguments: see faults.py.)
"""
import errno

import faults
from faults import PASSED_OVER, Fault, Sweep
from history import Ended, Stuck, Trial, expect
from sandbox import SANITIZED

TROUBLE = ("BROKEN", " lost", "cannot be", "failed", "void", "writes fail")


def expect_said(trial, errors):
    """What is an error now was told of in the log."""
    said = "\n".join(trial.server.error_lines())
    expect(not errors or any(word in said for word in TROUBLE),
           f"{errors} blocks cannot be read, and the log: {said[-1000:]}")


def hurt(at, *arguments, options=()):
    with Trial(program=faults.PROGRAM, seed=at, options=options) as trial:
        fault = Fault([*arguments], at, trial.path / "report")
        trial.wrapper = fault.wrapper()
        trial.errors_allowed = True
        trial.patience = 5 if "--onwards" in arguments else 60
        try:
            if trial.start():
                try:
                    stopped = trial.live()
                except Stuck:
                    stopped = False
                if not stopped:
                    trial.server.process.terminate()
                    expect(trial.has_ended(), "it does not end when it is told to")
                expect(trial.server.process.returncode in (0, 1), f"it ends with {trial.server.process.returncode}")
            else:
                lines = trial.server.error_lines()
                expect(trial.server.process.returncode == 1 and lines and lines[-1].startswith("rowsnap serve: "),
                       f"it does not start: {trial.server.process.returncode}: {lines[-3:]}")
        except Ended:
            expect(trial.has_ended() and trial.stopping and trial.server.process.returncode == 1 and
                   trial.server.error_lines()[-1].startswith("rowsnap serve: "),
                   f"it died: {trial.server.process.returncode}: {trial.server.error_lines()[-3:]}")
        counted, fired, name = fault.read()
        said = trial.server
        expect(fired or not trial.failures, f"nothing went wrong, and yet: {trial.failures}")
        errors = trial.judge(errors_allowed=fired > 0)
        if errors:
            trial.server = said
            expect_said(trial, errors)
        return counted if at == 0 else name if fired else PASSED_OVER if counted >= at else None


def sweep(name, sample, *arguments, options=()):
    return Sweep(name, lambda at: hurt(at, *arguments, options=options), sample)


def sweeps():
    """
    io_submit is what the data goes by; without it, reads, writes and syncs go by calls of their own. A sanitized program
    is slow, and is to show how errors are dealt with, not each way to retry.
    """
    retried = () if SANITIZED else (errno.ENOSPC, errno.EAGAIN, errno.EINTR)
    for error in (errno.EIO, errno.EINVAL, *retried):
        yield sweep(f"io_submit: {errno.errorcode[error]}", 5, f"--error={error}", "--calls=io_submit")
    yield sweep("io_submit: half a transfer", 6, "--short", "--calls=io_submit")
    yield sweep("io_submit: a completion with an error", 6, "--complete", "--calls=io_submit")
    for error in (errno.EIO, *retried):
        code = errno.errorcode[error]
        yield sweep(f"pwritev, pwrite64: {code}", 4, f"--error={error}", "--calls=pwritev,pwrite64", "--without-aio")
        yield sweep(f"preadv, pread64: {code}", 3, f"--error={error}", "--calls=preadv,pread64", "--without-aio")
        yield sweep(f"fdatasync: {code}", 4, f"--error={error}", "--calls=fdatasync", "--without-aio")
        yield sweep(f"fallocate: {code}", 2, f"--error={error}", "--calls=fallocate")
        yield sweep(f"openat: {code}", 2, f"--error={error}", "--calls=openat")
        yield sweep(f"ftruncate, fsync, rename: {code}", 2, f"--error={error}", "--calls=ftruncate,fsync,rename")
    yield sweep("pwritev, pwrite64, preadv, pread64: half a transfer", 4, "--short",
                "--calls=pwritev,pwrite64,preadv,pread64", "--without-aio")
    yield sweep("fallocate: EOPNOTSUPP", 1, f"--error={errno.EOPNOTSUPP}", "--calls=fallocate", "--onwards")
    yield sweep("accept4: EMFILE", 1, f"--error={errno.EMFILE}", "--calls=accept4")
    yield sweep("epoll_pwait2, poll: EINTR", 1, f"--error={errno.EINTR}", "--calls=epoll_pwait2,poll")
    if not SANITIZED:  # its own memory does not come by malloc's mmap
        yield sweep("mmap: ENOMEM", 1, f"--error={errno.ENOMEM}", "--calls=mmap")
    for policy in ("break", "fail"):
        for path, disk in ((".store", "the stores"), ("origin.img", "the origin")):
            yield sweep(f"{disk} gone for good, --on-full={policy}", 4, f"--error={errno.EIO}", "--onwards",
                        "--without-aio", "--calls=preadv,pread64,pwritev,pwrite64,fdatasync,fallocate",
                        f"--path={path}", options=[f"--on-full={policy}"])


if __name__ == "__main__":
    faults.run(__doc__, list(sweeps()))
