#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""
Damaged stores, given to everything that reads stores. TAP.

    damaged-stores.py [--mutations=N] [--seed=S]
    damaged-stores.py [--table] [DEFECT...]     each of them prints its row: name | serve | check | repair | serve again

For each defect of damage.py: `inspect`, `list`, `drop`, `diff` and `replay` must give an answer, and a right one, or
one clear error line; `serve` must refuse with one error line that names the store (or the origin, where that is at
fault), or serve every block of every snapshot either right or as an error, never wrong, also after writes, a SIGKILL,
and another start; and what `replay` cannot read is what is an error there. `check` and `repair` must find what
damage_verdicts.py says. After a repair all is served that was before, and nothing wrong; a second one writes nothing.

Then N random mutations, of which all go through `inspect`, `check` and `repair`, some through all of that, but for the
verdicts. A failure prints what its mutation was.
"""
import argparse
import concurrent.futures
import dataclasses
import functools
import json
import operator
import os
import random
import re
import struct
import subprocess
import sys

import nbd_client
from damage import BLOCK_BYTES, DEFECTS, LAST, LOSES, NAMES, REFUSES, SAFE, WHOLE, Case, make_chain, mutate
from damage_verdicts import faults, verdict_of
from sandbox import ROWSNAP, Folder

ERROR_LINE = r"rowsnap {}: (.+?): .+"
CHUNK_BYTES = 64 * BLOCK_BYTES
MEMORY = "/dev/shm"  # nothing here depends on a disk, and many files are flushed
WORKERS = 4          # starting and ending a server is mostly waiting
BATCH = 30        # mutated stores for one `inspect` and one `check`
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
    if any(not line.isprintable() for line in lines):
        raise Wrong(f"control characters: {lines}")
    return errors


def run_any(folder, command, *arguments):
    """(the process, ended; its error lines)."""
    try:
        result = folder.run(ROWSNAP, command, *arguments)
    except subprocess.TimeoutExpired:
        raise Wrong(f"{command} hangs") from None
    return result, error_lines(command, result.stderr)


def run_tool(folder, command, *arguments, errors_max=1):
    """Its answer, or None when it failed as it should."""
    result, errors = run_any(folder, command, *arguments)
    if result.returncode == 0 and not errors:
        return result.stdout
    if result.returncode != 1 or not 1 <= len(errors) <= errors_max:
        raise Wrong(f"{command} {arguments}: exit status {result.returncode}, {result.stderr.decode()[:500]}")
    return None


def inspect(folder, paths):
    answer = run_tool(folder, "inspect", "--exceptions", "--json", *paths, errors_max=len(paths))
    if answer is not None and len(json.loads(answer)["stores"]) != len(paths):
        raise Wrong("inspect forgets a store")


def stores_of(case):
    return [f"./{name}" for name in case.arguments]


def changed_stores(case):
    return [name for name, image in case.stores.items() if image.data != case.healthy.stores[name]]


def replay(folder, case, name):
    """The snapshot's blocks that cannot be read; None when it is refused."""
    (folder.path / "out.img").unlink(missing_ok=True)
    result, errors = run_any(folder, "replay", f"--snapshot={name}", "--skip-lost", "--output=out.img", "./disk.img",
                             *stores_of(case))
    zeroed = [tuple(map(int, pair)) for pair in re.findall(rf"^{name}: zeroed: .*?\((\d+) bytes at (\d+)\)",
                                                          result.stderr.decode(), re.MULTILINE)]
    if result.returncode != bool(errors) or len(errors) > 1 or (zeroed and not errors):
        raise Wrong(f"replay {name}: exit status {result.returncode}, {result.stderr.decode()[-500:]}")
    if errors and not zeroed:
        if (folder.path / "out.img").exists():
            raise Wrong(f"replay {name} leaves a file behind: {errors}")
        return None
    wanted = bytearray(case.truth[name])
    for length, offset in zeroed:
        wanted[offset:offset + length] = bytes(length)
    found = (folder.path / "out.img").read_bytes()
    if found != wanted and not case.lies:
        raise Wrong(f"WRONG BYTES in {name} replayed, {len(found)} of {len(wanted)} bytes")
    return {block for length, offset in zeroed
            for block in range(offset // BLOCK_BYTES, -(-(offset + length) // BLOCK_BYTES))}


def diff(folder, case):
    """What differs between the oldest snapshot and the origin must be in what it tells."""
    answer = run_tool(folder, "diff", "--json", "./disk.img", *stores_of(case))
    if answer is None:
        return
    report = json.loads(answer)
    old, new = bytearray(case.truth[report["from"]]), bytearray(case.origin)
    for one in report["ranges"]:
        for image in (old, new):
            image[one["offset"]:one["offset"] + one["length"]] = bytes(one["length"])
    if old != new and not case.lies:
        raise Wrong("WRONG BYTES: diff leaves out what differs")


def check_stores(folder, command, *arguments):
    """The exit status of check or repair, the set of STORE:CODE that it tells, and its report (None: it told none)."""
    result, errors = run_any(folder, command, *arguments)
    if not result.stdout:
        if result.returncode != 16 or len(errors) != 1:
            raise Wrong(f"{command}: exit status {result.returncode}, {result.stderr.decode()[:500]}")
        return 16, set(), None
    report = json.loads(result.stdout)
    findings = [finding for store in report["stores"] for finding in store["findings"]]
    failed_stores = [store["path"] for store in report["stores"] if store["error"]]
    severities = {finding["severity"] for finding in findings}
    if command == "check" and result.returncode != 4 * ("fault" in severities) + 8 * (
            "unreadable" in severities or bool(failed_stores)):
        raise Wrong(f"check: exit status {result.returncode} with {severities} and {failed_stores}")
    if result.returncode != report["exit"] or bool(errors) < bool(failed_stores):
        raise Wrong(f"{command}: exit status {result.returncode}, said to be {report['exit']}, and {errors}")
    codes = [(finding["store"], finding["code"]) for finding in findings] + [(path, "error") for path in failed_stores]
    found = {f"{path.removeprefix('./').removesuffix('.store')}:{code}" for path, code in codes}
    return result.returncode, found, report


def repair(folder, case, name):
    """The exit status, and whether it wrote. What it writes, it says; and it writes to nothing else."""
    paths = sorted(stores_of(case), key=lambda path: path != f"./{name}.store")
    before = contents(folder, paths)
    status, _, report = check_stores(folder, "repair", "--yes", "--json", *paths)
    after = contents(folder, paths)
    changed = [path for path in paths if before[path] != after[path]]
    if changed not in ([], [f"./{name}.store"]) or bool(changed) > bool(status & 1) or (
            report is not None and report["mended"] != bool(status & 1)):
        raise Wrong(f"repair of {name}, exit status {status}, changed {changed}")
    return status, bool(changed)


def contents(folder, paths):
    return {path: (folder.path / path).read_bytes() if (folder.path / path).exists() else None for path in paths}


def use_tools(folder, case, names):
    """
    The blocks that replay cannot read, of each of these snapshots that it does not refuse; and what check says. Diff is
    used with the oldest one, which reads from all stores.
    """
    paths = stores_of(case)
    before = contents(folder, paths)
    inspect(folder, paths)
    answer = run_tool(folder, "list", "--json", *paths)
    if answer is not None:
        json.loads(answer)
    for name in changed_stores(case):
        (folder.path / "copy.store").write_bytes(case.stores[name].data)
        run_tool(folder, "drop", "./copy.store")
        run_tool(folder, "drop", "--force", "./copy.store")
        os.unlink(folder.path / "copy.store")
    found = check_stores(folder, "check", "--json", *paths)[:2]
    if NAMES[0] in names:
        diff(folder, case)
    replayed = {name: replay(folder, case, name) for name in names}
    if contents(folder, paths) != before:
        raise Wrong("what only reads has written")
    return {name: lost for name, lost in replayed.items() if lost is not None}, found


def use_repair(folder, case):
    """
    Repairs what was changed (or the first one). Returns the exit status, and what check finds then; None when nothing
    was written. Once more, it must have nothing to do.
    """
    names = [name for name in changed_stores(case) if f"{name}.store" in case.arguments] or \
        [name.removesuffix(".store") for name in case.arguments[:1]]
    results = [repair(folder, case, name) for name in names]
    status = functools.reduce(operator.or_, (status for status, _ in results))
    if not any(changed for _, changed in results):
        return status, None
    found = check_stores(folder, "check", "--json", *stores_of(case))[1]
    if any(repair(folder, case, name)[0] & 1 for name in names):
        raise Wrong("a second repair writes again")
    return status, found


# ---- serving


def read_export(folder, name, size):
    """The blocks, None for each that gives an error; None when there is no such export."""
    try:
        client = nbd_client.Client(folder.socket()).begin(name)
    except ConnectionError:
        return None
    blocks = []
    for chunk in range(0, size, CHUNK_BYTES):
        length = min(CHUNK_BYTES, size - chunk)
        data = client.read(chunk, length)
        for at in range(0, length, BLOCK_BYTES):
            one = min(BLOCK_BYTES, length - at)
            block = data[at:at + one] if isinstance(data, bytes) else client.read(chunk + at, one)
            blocks.append(block if isinstance(block, bytes) else None)
    client.close()
    return blocks


def compare(folder, case, missing):
    """The blocks that gave an error, of each snapshot."""
    errors = {}
    for name in (*NAMES, "origin"):
        truth = case.truth[name] if name in case.truth else bytes(case.origin)
        blocks = read_export(folder, name, len(truth))
        if blocks is None:
            if name not in missing:
                raise Wrong(f"{name} is not served")
            continue
        wrong = [number for number, block in enumerate(blocks)
                 if block is not None and block != truth[number * BLOCK_BYTES:(number + 1) * BLOCK_BYTES]]
        if wrong and not case.lies:
            raise Wrong(f"WRONG BYTES in {name}, blocks {wrong[:20]}")
        errors[name] = {number for number, block in enumerate(blocks) if block is None}
    if errors.pop("origin"):
        raise Wrong("the origin cannot be read")
    return errors


def write_some(folder, case, chance):
    """Over what was preserved and what was not."""
    client = nbd_client.Client(folder.socket()).begin("origin")
    for _ in range(4):
        at, data = chance.randrange(len(case.origin) - 8192), chance.randbytes(8192)
        error = client.do(nbd_client.WRITE, at, data=data)
        if error:
            raise Wrong(f"the origin cannot be written: error {error}")
        case.origin[at:at + len(data)] = data
    client.close()


def serve(folder, case):
    server = folder.serve("disk.img", *case.arguments)
    if not server.is_ready:
        lines = server.error_lines()
        errors = error_lines("serve", "\n".join(lines).encode())
        if server.process.returncode != 1 or len(errors) != 1 or lines[-1] != errors[0]:
            raise Wrong(f"exit status {server.process.returncode}, {lines}")
        return None, errors[0]
    return server, ""


def serve_repaired(folder, case, missing):
    """The blocks that cannot be read, of each snapshot; None when refused."""
    folder.renew()
    server, _ = serve(folder, case)
    if server is None:
        return None
    errors = compare(folder, case, missing)
    server.kill()
    return errors


def use_served(folder, case, missing, number):
    """
    None, and the error line, when refused; else the blocks that cannot be read, of each snapshot. After some writes,
    and after another start, they must be the same.
    """
    server, refusal = serve(folder, case)
    if server is None:
        return None, refusal
    first = compare(folder, case, missing)
    write_some(folder, case, random.Random(number))
    if compare(folder, case, missing) != first:
        raise Wrong("after some writes other blocks cannot be read")
    if number % 2:
        server.stop()
    else:
        server.kill()
    case.arguments = [name for name in case.arguments if f"{name[0]}" not in missing]
    server, refusal = serve(folder, case)
    if server is None:
        raise Wrong(f"served once, and then refused: {refusal}")
    if compare(folder, case, missing) != first and not case.lies:
        raise Wrong("after another start other blocks cannot be read")
    server.kill()
    return first, ""


# ---- all that is done with one case


@dataclasses.dataclass
class Story:
    served: dict      # snapshot: the blocks that cannot be read; None: refused
    refusal: str
    check_status: int
    check_found: set  # STORE:CODE
    repair_status: int
    repair_left: set  # what check finds afterwards
    repaired: dict    # served afterwards; the same, if nothing was written


def tell(folder, case, missing, number, thorough=False):
    """All that must hold whatever is wrong with the case, and what came of it. Thorough: all snapshots are replayed."""
    case.write(folder.path)
    names = NAMES if thorough else NAMES[number % len(NAMES):][:1]
    replayed, (check_status, check_found) = use_tools(folder, case, names)
    repair_status, repair_left = use_repair(folder, case)
    if repair_left is not None:
        repaired = serve_repaired(folder, case, missing)
        folder.renew()
        case.write(folder.path)
    served, refusal = use_served(folder, case, missing, number)
    if served is not None and replayed != {name: served[name] for name in names if name in served}:
        raise Wrong(f"replay cannot read {replayed}, and a server {served}")
    if repair_left is None:
        repaired, repair_left = served, check_found
    # A log that went further than the superblock knows: what could be read may have been wrong.
    expects_less = any(code.endswith(":mark-past-end") for code in check_found)
    if served is not None and not expects_less and (repaired is None or any(repaired[name] - served[name] for name in served)):
        raise Wrong(f"before the repair could not be read: {served}, and after it: {repaired}")
    return Story(served, refusal, check_status, check_found, repair_status, repair_left, repaired)


# ---- the defects


def judge_serve(defect, story):
    if defect.serve == REFUSES:
        if story.served is not None:
            raise Wrong(f"was served, and {story.served} could not be read")
        named = "disk.img" if defect.origin else ".store"
        if named not in story.refusal.split(": ")[1]:
            raise Wrong(f"the store is not named: {story.refusal}")
    elif story.served is None:
        raise Wrong(f"was refused: {story.refusal}")
    elif defect.serve != SAFE and served_text(story.served) != defect.serve:
        raise Wrong(f"{story.served} cannot be read")


def served_text(served):
    return REFUSES if served is None else LOSES if any(served.values()) else WHOLE


def judge(defect, changed, story):
    judge_serve(defect, story)
    verdict = verdict_of(defect.name)
    said = verdict._replace(check=(story.check_status, codes_text(changed, story.check_found)),
                            left=(story.repair_status, codes_text(changed, story.repair_left)),
                            repaired=served_text(story.repaired))
    if said != verdict:
        raise Wrong(f"{said[2:]}, and not {verdict[2:]}: {verdict.why}")


def codes_text(changed, found):
    """The store is not named where it is the only one that was changed."""
    prefix = f"{changed[0]}:" if len(changed) == 1 else "none:"
    return " ".join(sorted(one.removeprefix(prefix) for one in found))


def try_defect(folder, healthy, number, thorough):
    defect = DEFECTS[number]
    case = Case(healthy, defect.killed)
    defect.apply(case)
    story = tell(folder, case, defect.missing, number, thorough)
    if thorough:
        print_row(defect, changed_stores(case), story)
    judge(defect, changed_stores(case), story)


def print_row(defect, changed, story):
    check_text = f"{story.check_status} {codes_text(changed, story.check_found)}"
    left_text = f"{story.repair_status} {codes_text(changed, story.repair_left)}"
    print(f"# {defect.name} | {served_text(story.served)} | {check_text} | {left_text} | {served_text(story.repaired)}",
          flush=True)


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
    case.lies = not only_rot
    try:
        tell(folder, case, NAMES, number)
    finally:
        for server in folder.servers:
            server.kill()
        folder.servers.clear()


def repair_alone(folder, path):
    """Without the others; once more, it must have nothing to do."""
    if check_stores(folder, "repair", "--yes", "--json", path)[0] & 1 and \
            check_stores(folder, "repair", "--yes", "--json", path)[0] & 1:
        raise Wrong("a second repair writes again")


def try_batch(folder, healthy, first, size, seed):
    problems, texts = [], {}

    def attempt(text, function, *arguments):
        try:
            function(*arguments)
            return True
        except PROBLEMS as error:
            problems.append(f"{text}: {error!r}")
            return False

    for number in range(first, first + size):
        chance = random.Random(f"{seed}.{number}")
        case, name, text, only_rot = mutated(healthy, chance)
        path = f"./{number - first}.store"
        texts[path] = f"mutation {number}, {text}"
        (folder.path / path).write_bytes(case.stores[name].data)
        if number % SERVED_EVERY == 0:
            attempt(texts[path], try_mutation, folder, case, only_rot, number // SERVED_EVERY)
    if not attempt("all of them", inspect, folder, list(texts)):
        for path, text in texts.items():
            attempt(text, inspect, folder, [path])
    attempt("all of them", check_stores, folder, "check", "--json", *texts)
    for path, text in texts.items():
        attempt(text, repair_alone, folder, path)
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
    thorough = arguments.table or bool(arguments.defects)
    wanted = [(f"{defect.name}: {defect.serve}", try_defect, number, thorough) for number, defect in enumerate(DEFECTS)
              if not arguments.defects or defect.name in arguments.defects]
    if arguments.defects or arguments.table:
        return wanted
    batches = [(first, min(BATCH, arguments.mutations - first)) for first in range(0, arguments.mutations, BATCH)]
    return [*wanted, ("no snapshot is taken when no sequence number is left", take_one_too_many),
            *((f"mutations {first} to {first + size - 1} of seed {arguments.seed}", try_batch, first, size,
               arguments.seed) for first, size in batches)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--mutations", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="what comes of each defect; and no mutations")
    parser.add_argument("defects", nargs="*")
    arguments = parser.parse_args()
    healthy = make_chain()
    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        results = [(text, pool.submit(in_folder, function, healthy, *more))
                   for text, function, *more in tasks(arguments)]
        for text, result in results:
            check(text, result.result())
    check("each defect has its name and its verdict", "; ".join(faults()) or None)
    print(f"1..{count}")
    sys.exit(1 if failed else 0)


main()
