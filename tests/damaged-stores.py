#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""
Damaged stores, given to everything that reads stores: damaged-stores.py [--mutations=N] [--seed=S] [DEFECT...]. TAP.

For each defect of damage.py: `inspect`, `list` and `drop` must give an answer or one clear error line; `serve` must
refuse with one error line that names the store (or the origin, where that is at fault), or serve every block of every
snapshot either right or as an error, never wrong, also after writes, a SIGKILL, and another start. Then N random
mutations, of which all go through `inspect`, some through the others. A failure prints what its mutation was.
"""
import argparse
import concurrent.futures
import json
import os
import random
import re
import struct
import subprocess
import sys

import writer
from damage import BLOCK_BYTES, DEFECTS, LAST, LOSES, NAMES, REFUSES, WHOLE, Case, make_chain, mutate
from sandbox import ROWSNAP, Folder

ERROR_LINE = r"rowsnap {}: (.+?): .+"
CHUNK_BYTES = 64 * BLOCK_BYTES
MEMORY = "/dev/shm"  # nothing here depends on a disk, and many files are flushed
WORKERS = 4          # starting and ending a server is mostly waiting
BATCH = 30        # mutated stores for one `inspect`
SERVED_EVERY = 6  # of the mutations
count = failed = 0


class Wrong(Exception):
    """What must not be, in a few words."""


PROBLEMS = (Wrong, OSError, ValueError, LookupError, RuntimeError, struct.error, subprocess.TimeoutExpired)


def check(text, problem):
    global count, failed
    count += 1
    failed += problem is not None
    print(f"{'ok' if problem is None else 'not ok'} {count} - {text}", flush=True)
    if problem is not None:
        print(f"# {problem}", flush=True)


# ---- offline tools


def error_lines(command, text):
    """The error lines' subjects. Nothing else may be said but notices and warnings, which begin otherwise."""
    lines = text.decode().splitlines()
    errors = [line for line in lines if line.startswith(f"rowsnap {command}:")]
    if any(not re.fullmatch(ERROR_LINE.format(command), line) for line in errors):
        raise Wrong(f"an error line that is none: {errors}")
    if not text.decode().isprintable() and any(not line.isprintable() for line in lines):
        raise Wrong(f"control characters: {lines}")
    return errors


def run_tool(folder, command, *arguments, errors_max=1):
    """Its answer, or None when it failed as it should."""
    try:
        result = folder.run(ROWSNAP, command, *arguments)
    except subprocess.TimeoutExpired:
        raise Wrong(f"{command} hangs") from None
    errors = error_lines(command, result.stderr)
    if result.returncode == 0 and not errors:
        return result.stdout
    if result.returncode != 1 or not 1 <= len(errors) <= errors_max:
        raise Wrong(f"{command} {arguments}: exit status {result.returncode}, {result.stderr.decode()[:500]}")
    return None


def inspect(folder, paths):
    answer = run_tool(folder, "inspect", "--exceptions", "--json", *paths, errors_max=len(paths))
    if answer is not None and len(json.loads(answer)["stores"]) != len(paths):
        raise Wrong("inspect forgets a store")


def use_tools(folder, case):
    paths = [f"./{name}" for name in case.arguments]
    inspect(folder, paths)
    answer = run_tool(folder, "list", "--json", *paths)
    if answer is not None:
        json.loads(answer)
    for name, image in case.stores.items():
        if image.data != case.healthy.stores[name]:
            (folder.path / "copy.store").write_bytes(image.data)
            run_tool(folder, "drop", "./copy.store")
            run_tool(folder, "drop", "--force", "./copy.store")
            os.unlink(folder.path / "copy.store")


# ---- serving


def read_export(folder, name, size):
    """The blocks, None for each that gives an error; None when there is no such export."""
    try:
        client = writer.Client(folder.socket(), name)
    except ConnectionError:
        return None
    blocks = []
    for chunk in range(0, size, CHUNK_BYTES):
        length = min(CHUNK_BYTES, size - chunk)
        error, data = client.request(writer.READ, chunk, length)
        for at in range(0, length, BLOCK_BYTES):
            one = min(BLOCK_BYTES, length - at)
            if error:
                one_error, block = client.request(writer.READ, chunk + at, one)
                blocks.append(None if one_error else block)
            else:
                blocks.append(data[at:at + one])
    client.sock.close()
    return blocks


def compare(folder, case, missing):
    """How many blocks of all snapshots gave an error."""
    errors = 0
    for name in (*NAMES, "origin"):
        truth = case.truth[name] if name in case.truth else bytes(case.origin)
        blocks = read_export(folder, name, len(truth))
        if blocks is None:
            if name not in missing:
                raise Wrong(f"{name} is not served")
            continue
        wrong = [number for number, block in enumerate(blocks)
                 if block is not None and block != truth[number * BLOCK_BYTES:(number + 1) * BLOCK_BYTES]]
        if wrong:
            raise Wrong(f"WRONG BYTES in {name}, blocks {wrong[:20]}")
        errors += blocks.count(None)
        if name == "origin" and None in blocks:
            raise Wrong("the origin cannot be read")
    return errors


def write_some(folder, case, chance):
    """Over what was preserved and what was not."""
    client = writer.Client(folder.socket(), "origin")
    for _ in range(4):
        at, data = chance.randrange(len(case.origin) - 8192), chance.randbytes(8192)
        error, _ = client.request(writer.WRITE, at, len(data), data)
        if error:
            raise Wrong(f"the origin cannot be written: error {error}")
        case.origin[at:at + len(data)] = data
    client.sock.close()


def serve(folder, case):
    server = folder.serve("disk.img", *case.arguments)
    if not server.is_ready:
        lines = server.error_lines()
        errors = error_lines("serve", "\n".join(lines).encode())
        if server.process.returncode != 1 or len(errors) != 1 or lines[-1] != errors[0]:
            raise Wrong(f"exit status {server.process.returncode}, {lines}")
        return None, errors[0]
    return server, ""


def use_served(folder, case, missing, number):
    """None, and the error line, when refused; else how many blocks could not be read at most."""
    server, refusal = serve(folder, case)
    if server is None:
        return None, refusal
    errors = compare(folder, case, missing)
    write_some(folder, case, random.Random(number))
    errors = max(errors, compare(folder, case, missing))
    if number % 2:
        server.stop()
    else:
        server.kill()
    case.arguments = [name for name in case.arguments if f"{name[0]}" not in missing]
    server, refusal = serve(folder, case)
    if server is None:
        raise Wrong(f"served once, and then refused: {refusal}")
    errors = max(errors, compare(folder, case, missing))
    server.kill()
    return errors, ""


# ---- the defects


def judge(defect, errors, refusal):
    if defect.serve == REFUSES:
        if errors is not None:
            raise Wrong(f"was served, with {errors} errors")
        named = "disk.img" if defect.origin else ".store"
        if named not in refusal.split(": ")[1]:
            raise Wrong(f"the store is not named: {refusal}")
    elif errors is None:
        raise Wrong(f"was refused: {refusal}")
    elif defect.serve == WHOLE and errors > 0:
        raise Wrong(f"{errors} blocks cannot be read")
    elif defect.serve == LOSES and errors == 0:
        raise Wrong("the defect makes no difference")


def try_defect(folder, healthy, number):
    defect = DEFECTS[number]
    case = Case(healthy, defect.killed)
    defect.apply(case)
    case.write(folder.path)
    use_tools(folder, case)
    judge(defect, *use_served(folder, case, defect.missing, number))


def take_one_too_many(folder, healthy):
    """The next number would be 0, which no store with a snapshot can have."""
    case = Case(healthy)
    case.c.set(sequence=LAST)
    case.write(folder.path)
    serve(folder, case)
    if run_tool(folder, "snapshot", "v", "d", "d.store") is not None:
        raise Wrong("one was taken")
    compare(folder, case, ())


# ---- mutations


def mutated(healthy, chance):
    """A case with one store changed, the name of that, and what was done; only rot keeps the truth."""
    case = Case(healthy, killed=chance.random() < 0.5)
    name = chance.choice(NAMES)
    changes = [mutate(case.stores[name], chance) for _ in range(chance.choice([1, 1, 2, 5]))]
    only_rot = all(rot for _, rot in changes)
    return case, name, f"{'killed, ' if case.mark else ''}{name}: {'; '.join(text for text, _ in changes)}", only_rot


def try_mutation(folder, case, only_rot, number):
    """Where a false statement has a right checksum, wrong bytes are no fault."""
    folder.renew()
    case.write(folder.path)
    try:
        use_tools(folder, case)
        use_served(folder, case, NAMES, number)
    except Wrong as error:
        if only_rot or "WRONG BYTES" not in str(error):
            raise
    finally:
        for server in folder.servers:
            server.kill()
        folder.servers.clear()


def try_batch(folder, healthy, first, size, seed):
    problems, paths, texts = [], [], []
    for number in range(first, first + size):
        chance = random.Random(f"{seed}.{number}")
        case, name, text, only_rot = mutated(healthy, chance)
        texts.append(f"mutation {number}, {text}")
        paths.append(f"./{number - first}.store")
        (folder.path / paths[-1]).write_bytes(case.stores[name].data)
        if number % SERVED_EVERY == 0:
            try:
                try_mutation(folder, case, only_rot, number // SERVED_EVERY)
            except PROBLEMS as error:
                problems.append(f"{texts[-1]}: {error!r}")
    try:
        inspect(folder, paths)
    except PROBLEMS:
        for path, text in zip(paths, texts):
            try:
                inspect(folder, [path])
            except PROBLEMS as error:
                problems.append(f"{text}: {error!r}")
    if problems:
        raise Wrong("\n# ".join(problems))


# ---- all of it


def in_folder(function, healthy, *more):
    """The problem, if there is one."""
    with Folder(MEMORY if os.access(MEMORY, os.W_OK) else None) as folder:
        try:
            function(folder, healthy, *more)
        except PROBLEMS as error:
            return str(error) if isinstance(error, Wrong) else repr(error)
    return None


def tasks(arguments):
    """(text, function, what it takes beside the folder and the healthy chain)."""
    wanted = [(f"{defect.name}: {defect.serve}", try_defect, number) for number, defect in enumerate(DEFECTS)
              if not arguments.defects or defect.name in arguments.defects]
    if arguments.defects:
        return wanted
    batches = [(first, min(BATCH, arguments.mutations - first)) for first in range(0, arguments.mutations, BATCH)]
    return [*wanted, ("no snapshot is taken when no sequence number is left", take_one_too_many),
            *((f"mutations {first} to {first + size - 1} of seed {arguments.seed}", try_batch, first, size,
               arguments.seed) for first, size in batches)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--mutations", type=int, default=150)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("defects", nargs="*")
    arguments = parser.parse_args()
    healthy = make_chain()
    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        results = [(text, pool.submit(in_folder, function, healthy, *more))
                   for text, function, *more in tasks(arguments)]
        for text, result in results:
            check(text, result.result())
    names = [defect.name for defect in DEFECTS]
    check("no two defects have the same name", None if len(names) == len(set(names)) else "two have")
    print(f"1..{count}")
    sys.exit(1 if failed else 0)


main()
