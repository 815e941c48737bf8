# SPDX-License-Identifier: GPL-2.0-or-later
"""
A client of an NBD export that knows what it wrote. Not a test by itself (no #! line); the .bats files run it:

    writer.py write SOCKET EXPORT MODEL [COUNT [SEED]]   writes at random until COUNT requests were answered (0: no end),
                                                     SIGTERM, or the server is gone
    writer.py check FILE MODEL                       whether FILE holds what was answered
    writer.py read SOCKET EXPORT                     reads the same block again and again; a line for each change of luck

MODEL begins as a copy of what the export holds, and at the end holds what all answered requests made of it. Requests
that were sent and not answered are listed in MODEL.pending: their ranges may hold either. Each connection has a part of
the export to itself, so no two requests in flight overlap; a first few blocks belong to nobody.
"""
import json
import random
import signal
import sys
import threading
import time

from nbd_client import FLUSH, WRITE, ZEROES, Client

CONNECTIONS = 4
LENGTH_MAX = 96 << 10
UNTOUCHED = 64 << 10  # the fingerprint of the origin lies there; and something must stay as it was


class Writer:
    def __init__(self, path, export, model_path, count, seed):
        self.stop = False
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "stop", True))
        self.path, self.export, self.model_path, self.seed = path, export, model_path, seed
        with open(model_path, "rb") as file:
            self.model = bytearray(file.read())
        self.left = count or sys.maxsize
        self.pending = [None] * CONNECTIONS
        self.failures = []
        self.answered = 0
        self.lock = threading.Lock()

    def one(self, client, chance, number, first, last):
        length = chance.choice([512, 1000, 4096, 4096, 8192, 65536, chance.randrange(1, LENGTH_MAX)])
        length = min(length, last - first)
        offset = chance.randrange(first, last - length + 1)
        if chance.random() < 0.5 and offset // 4096 * 4096 >= first:
            offset = offset // 4096 * 4096
        luck = chance.random()
        if luck < 0.02:
            kind, offset, length, data = FLUSH, 0, 0, b""
        elif luck < 0.08:
            kind, data = ZEROES, b""
        else:
            kind, data = WRITE, chance.randbytes(min(length, 512)) * (length // 512 + 1)
        data = data[:length]
        self.pending[number] = [offset, length]
        error = client.do(kind, offset, length, data)
        if error:
            self.failures.append(f"request {kind} at {offset}, {length} bytes: error {error}")
            self.stop = True
            return
        if kind != FLUSH:
            self.model[offset : offset + length] = data if kind == WRITE else bytes(length)
        self.pending[number] = None

    def run(self, number):
        size = len(self.model)
        share = (size - UNTOUCHED) // CONNECTIONS
        first = UNTOUCHED + number * share
        chance = random.Random(self.seed * 1000 + number)
        try:
            client = Client(self.path).begin(self.export)
            while not self.stop:
                with self.lock:
                    if self.left == 0:
                        return
                    self.left -= 1
                self.one(client, chance, number, first, first + share)
                with self.lock:
                    self.answered += 1
        except OSError:
            pass  # the server is gone: what is pending stays so

    def main(self):
        threads = [threading.Thread(target=self.run, args=(n,)) for n in range(CONNECTIONS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(0.1)
        with open(self.model_path, "wb") as file:
            file.write(self.model)
        with open(self.model_path + ".pending", "w") as file:
            json.dump([one for one in self.pending if one], file)
        print(f"{self.answered} requests answered")
        for failure in self.failures:
            print(failure)
        return 1 if self.failures else 0


def check(path, model_path):
    with open(path, "rb") as file:
        content = bytearray(file.read())
    with open(model_path, "rb") as file:
        model = bytearray(file.read())
    with open(model_path + ".pending") as file:
        for offset, length in json.load(file):
            content[offset : offset + length] = bytes(length)
            model[offset : offset + length] = bytes(length)
    if content == model:
        return 0
    bad = [n for n in range(0, len(model), 512) if content[n : n + 512] != model[n : n + 512]]
    print(f"{path}: {len(bad)} sectors do not hold what was answered; the first is at {bad[0] if bad else 'the end'}")
    return 1


def read(path, export):
    """Lines: "reads", then "error N" when reads fail, then "closed" when the server closes."""
    client, told = Client(path).begin(export), None
    try:
        while True:
            answer = client.read(0, 4096)
            now = f"error {answer}" if isinstance(answer, int) else "reads"
            if now != told:
                print(now, flush=True)
                told = now
            time.sleep(0.01)
    except OSError:
        print("closed", flush=True)
    return 0


def main():
    command, arguments = sys.argv[1], sys.argv[2:]
    if command == "write":
        numbers = [int(number) for number in arguments[3:]] + [0, 1][len(arguments) - 3 :]
        return Writer(*arguments[:3], *numbers).main()
    return {"check": check, "read": read}[command](*arguments)


if __name__ == "__main__":
    sys.exit(main())
