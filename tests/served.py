# SPDX-License-Identifier: GPL-2.0-or-later
"""
Running rowsnap from a test in Python. Not a test by itself (no #! line).

ROWSNAP names the binary under test; ROWSNAP_SLOW is the factor for time limits (tests/run sets both). A Folder is a
private one with its own run and state folders, gone at the end with all that was started in it.
"""
import os
import pathlib
import select
import shutil
import subprocess
import tempfile
import time

ROWSNAP = os.environ.get("ROWSNAP", str(pathlib.Path(__file__).resolve().parent.parent / "build/rowsnap"))
SLOW = int(os.environ.get("ROWSNAP_SLOW", "1"))
VOLUME = "v"


class Folder:
    """As a context manager. Paths are relative to it, and short: a socket's path has room for 107 bytes."""

    def __init__(self):
        self.path = pathlib.Path(tempfile.mkdtemp(prefix="rowsnap."))
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

    def __init__(self, folder, arguments):
        self.folder = folder
        self.errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen([ROWSNAP, "serve", f"--volume={VOLUME}", *map(str, arguments)],
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
