# SPDX-License-Identifier: GPL-2.0-or-later
"""
What `check` and `repair` must make of each defect of damage.py, and why. Not a test by itself (no #! line).

A verdict's names are patterns, as a shell's. Findings are "CODE ..." of the store that was changed and "STORE:CODE" of
others, in alphabetical order; "error" stands for an error line instead of findings. Each with the exit status.
"""
import collections
import fnmatch

from damage import DEFECTS, LOSES, REFUSES, WHOLE

# check, left: (exit status, findings), of `check`, and of `repair` with what `check` finds after it. repaired: how it
# is served then.
Verdict = collections.namedtuple("Verdict", "why names check left repaired")

VERDICTS = []


def say(why, names, check, left, repaired):
    """A left of None: the same, for nothing is written."""
    VERDICTS.append(Verdict(why, tuple(names), check, check if left is None else left, repaired))


# ---- check finds nothing, or only notices

say("nothing is wrong: the format lets it be so", (
    "unknown compat features", "the stores in another order", "a longer, with garbage", "c cut short by one byte",
    "c: times the last there are", "area 1 of a: write counts equal"), (0, ""), None, WHOLE)
say("nothing is wrong yet: numbers that no writer can come to", (
    "c: generation the last there is", "c: sequence the last there is",
    "area 1 of c: metadata copy ? with the last write count",
    "last area of c: metadata copy ? with the last write count"), (0, ""), None, WHOLE)
say("a false statement with all checksums right; after a clean stop nobody reads it",
    ("a fingerprint of nonsense at the end, clean",), (0, ""), None, WHOLE)
say("nothing is wrong with the stores: only who is given the origin can tell", (
    "c: fingerprint another", "an older copy of the newest instead", "the origin a sector longer",
    "the origin a sector shorter", "the origin changed behind our back"), (0, ""), None, REFUSES)
say("what is there is sound, and says what is missing", ("the middle store missing",), (0, "a:newer-store-absent"),
    None, REFUSES)
say("what is there is sound, and says what is missing", ("the newest store missing",), (0, "b:newer-store-absent"),
    None, REFUSES)
say("what is there is sound, and needs no more", ("the oldest store missing",), (0, "b:older-store-absent"), None,
    WHOLE)
say("what is there is sound, and needs no more", ("a: predecessor from nowhere",), (0, "older-store-absent"), None,
    WHOLE)
say("no reader can tell it from a store that was not given", (
    "b: successor from nowhere", "c: sealed, and its successor from nowhere"), (0, "newer-store-absent"), None,
    REFUSES)
say("an empty store is no damage", ("an empty store too",), (0, "empty:store-empty"), None, REFUSES)
say("a newer rowsnap's store may be read", ("unknown ro_compat features",), (0, "features-unknown"), None, REFUSES)
say("no reader can tell it from a merge that was cut short", ("c: state merging",), (0, "merge-unfinished"), None,
    REFUSES)
say("no reader can tell it from a merge that was not begun", ("b: state merging",), (0, "merge-unfinished"), None,
    WHOLE)
say("no reader can tell it from a drop that was cut short", ("a: b being folded into it, as it says",),
    (0, "fold-unfinished"), None, WHOLE)
say("no reader can tell it from a drop that was cut short", ("c: sealed without a successor",),
    (0, "newest-unfinished"), None, WHOLE)
say("the other store is not there to be broken", ("a: witness of a store from nowhere",), (0, "witness"), None, WHOLE)
say("what a writer may leave", ("a lost block",), (0, "blocks-lost"), None, LOSES)
say("what a writer may leave", ("a void slot at the end",), (0, "slots-void"), None, WHOLE)
say("what a writer may leave", ("a zero run over what is preserved already",), (0, "exception-duplicate"), None, WHOLE)
say("what a writer may leave", ("c: clean, with entries past the log's end",), (0, "leftovers-past-end"), None, WHOLE)
say("successor links decide", ("b: predecessor nil", "b: predecessor from nowhere"), (0, "predecessor-link-behind"),
    (1, ""), WHOLE)

# ---- a crash, and what recovery cuts off

say("a crash: the next start recovers the log", (
    "c: nothing else, killed", "c: durable_slots 0, killed", "c longer, with garbage, killed",
    "c: the fingerprint in the log only, killed", "c cut short by one byte, killed",
    "c cut short at the last area's begin, killed",
    "last area of c: metadata copy ? with the last write count, killed"), (0, "store-not-stopped"), None, WHOLE)
say("the log ends at the first that does not hold past the mark; what lies behind is cleared", (
    "a gap in the entries past the mark, killed", "an entry of *, past the mark, killed",
    "both metadata copies torn past the mark, killed", "c cut short inside the last area's metadata, killed",
    "data with a bit flipped at the mark, killed", "data zeroed past the mark, killed"),
    (0, "store-not-stopped tail-torn"), (1, "store-not-stopped"), WHOLE)
say("the log ends there, too, and the second metadata copy is gone", (
    "c cut short inside the last area's data, killed",), (0, "metadata-copy-torn store-not-stopped tail-torn"),
    (1, "store-not-stopped"), WHOLE)
say("entries hold without headers; the next start writes the area anew", ("the last area's headers gone, killed",),
    (0, "metadata-copy-torn store-not-stopped"), None, WHOLE)

# ---- superblocks

say("the other copy is good", (
    "superblock copy ? zeroed", "superblock copy ? torn", "superblock copy ? with a bit flipped",
    "superblock copy ? with another magic", "superblock copy ? with a field out of range"),
    (4, "superblock-copy-damaged"), (1, ""), WHOLE)
say("a crash may leave it so", ("superblock copy ? with a wrong checksum",), (0, "superblock-copy-torn"), (1, ""),
    WHOLE)
say("a crash may leave it so", ("superblock copy ? of an older generation",), (0, "superblock-copy-behind"), (1, ""),
    WHOLE)
say("which of them is right is not known", ("superblock copies of one generation that differ*",),
    (4, "superblock-contradiction"), None, WHOLE)
say("which of them is right is not known", ("superblock copy ? of another store",),
    (4, "b:newer-store-absent superblock-contradiction"), None, REFUSES)
say("what is lost in both cannot be had again", ("both superblock copies torn",),
    (4, "a:newer-store-absent superblock-lost"), None, REFUSES)
say("what is lost in both cannot be had again", ("c cut short inside superblock copy 0*",),
    (4, "b:newer-store-absent superblock-lost"), None, REFUSES)
say("so does a wiped store look: it is none", ("both superblock copies zeroed", "c cut short to nothing*"),
    (8, "b:newer-store-absent error"), None, REFUSES)
say("what it says this rowsnap does not know: it is not ours to judge", (
    "superblock copy ? with an unknown incompat feature",), (8, "b:newer-store-absent error"), None, REFUSES)
say("what it says this rowsnap does not know: it is not ours to judge", ("superblock copy ? of another version",),
    (8, "a:newer-store-absent error"), None, REFUSES)
say("what it says this rowsnap does not know: it is not ours to judge", (
    "one superblock copy damaged, the other of another version",), (8, "b:older-store-absent error"), None, REFUSES)
say("both copies say what cannot be; the right value is not known", (
    "b: header_bytes *", "b: block_bytes *", "b: slots_per_area *", "b: first_area_offset *",
    "b: limit_bytes without room for an area", "b: origin_bytes 0", "b: origin_bytes odd", "b: origin_bytes too large",
    "b: state unknown", "b: state empty*", "b: state prepared*", "b: state active*", "b: role unknown", "b: role 0",
    "b: sequence 0", "b: store UUID nil", "b: volume UUID nil", "b: durable_slots *", "b: log_slots too large",
    "b: clean *", "b: broken *", "b: witness *", "b: fold source from nowhere", "b: fold source the *",
    "b: fold_base_slots *", "b: name empty", "b: name not *", "b: name with *", "b: name that *", "b: name origin",
    "b: successor the *", "b: predecessor the store itself"),
    (4, "a:newer-store-absent superblock-contradiction"), None, REFUSES)

# ---- the chain

say("the stores contradict each other: which is wrong is not known", (
    "b: name another snapshot's", "b: origin_bytes huge", "b: role fork", "b: volume UUID another",
    "c: fold source from nowhere", "c: sealed, and its successor the oldest"), (4, "chain-contradiction"), None,
    REFUSES)
say("the stores contradict each other: which is wrong is not known", (
    "b: sequence the next one's", "b: sequence past the next one's", "b: successor nil"), (4, "c:chain-contradiction"),
    None, REFUSES)
say("the stores contradict each other: which is wrong is not known", ("b: fold source of two at once",),
    (4, "b:chain-contradiction"), None, REFUSES)
say("by a wrong geometry all looks damaged, and nothing of it may be touched", (
    "b: block size another, and a right one",),
    (4, "chain-contradiction data-damaged entry-lost metadata-copy-damaged store-truncated"), None, REFUSES)
say("by a wrong geometry some looks damaged, and nothing of it may be touched", ("b: origin_bytes of a smaller one",),
    (4, "chain-contradiction entry-out-of-range metadata-copy-damaged"), None, REFUSES)
say("it does not belong with them", ("a copy of a store",), (4, "copy:chain-contradiction"), None, REFUSES)
say("it does not belong with them", ("an older copy of the newest too",), (4, "older:chain-contradiction"), None,
    REFUSES)
say("it does not belong with them", ("a store of another volume too",), (4, "foreign:chain-contradiction"), None,
    REFUSES)
say("it is no store", ("a wiped store too",), (8, "wiped:error"), None, REFUSES)
say("it is no store", ("a file that is no store too",), (8, "no:error"), None, REFUSES)
say("it is no store", ("a file that is not there",), (8, "not:error"), None, REFUSES)
say("the command line makes no sense", ("a store twice",), (16, ""), None, REFUSES)
say("a mark is not taken back", ("c: broken",), (4, "snapshot-broken"), None, LOSES)
say("a mark is not taken back; the store that was repaired has no fault", ("a: witness of c",),
    (4, "c:snapshot-broken witness"), (0, "c:snapshot-broken witness"), LOSES)

# ---- metadata: one copy

say("the other copy has what this one lacks", (
    "area ? of [ab]: metadata copy *", "area 0 of a: both headers *",
    "area 0 of a: both metadata copies torn, at different entries", "an entry *, in copy ?"),
    (4, "metadata-copy-damaged"), (1, ""), WHOLE)
say("the other copy has what this one lacks", (
    "area 0 of c: metadata copy ? torn, killed",
    "area 0 of c: metadata copy ? with durable_slots out of range, killed"),
    (4, "metadata-copy-damaged store-not-stopped"), (1, "store-not-stopped"), WHOLE)

# ---- metadata: both copies; what is lost is not known, so the snapshot is broken

say("neither copy has it", (
    "an entry with a bit flipped, in both copies", "an entry under another store's seed",
    "an entry that is another slot's", "area 0 of a: both metadata copies zeroed",
    "area 0 of a: metadata copies swapped with area 1's"), (4, "entry-lost metadata-copy-damaged"),
    (5, "slots-void snapshot-broken"), LOSES)
say("neither copy has it", ("a gap in the entries before the mark, killed",),
    (4, "entry-lost metadata-copy-damaged store-not-stopped"), (5, "slots-void snapshot-broken store-not-stopped"),
    LOSES)
say("neither copy has it, in the area that was being written", ("both metadata copies torn before the mark, killed",),
    (4, "entry-lost metadata-copy-torn store-not-stopped"), (5, "slots-void snapshot-broken store-not-stopped"), LOSES)
say("its checksum is right, and what it says cannot be", tuple(f"an entry {what}" for what in (
    "of data, beyond the origin", "of data, far beyond the origin", "of zeroes, over the origin's end",
    "of zeroes, a huge run", "of zeroes, an empty run", "of zeroes, far beyond the origin", "lost, *", "void, *",
    "a fingerprint, with a block", "of type 0", "of type 6", "of type 255")),
    (4, "entry-out-of-range metadata-copy-damaged"), (5, "slots-void snapshot-broken"), LOSES)
say("its checksum is right, and what it says cannot be", ("an entry of *, before the mark, killed",),
    (4, "entry-out-of-range metadata-copy-damaged store-not-stopped"),
    (5, "slots-void snapshot-broken store-not-stopped"), LOSES)
say("more is said to be durable than is there", ("c: durable_slots somewhat beyond the log, killed",),
    (4, "entry-lost store-not-stopped"), (5, "slots-void snapshot-broken store-not-stopped"), LOSES)
say("more is said to be durable than there is room for; the log ends where the store does", (
    "c: durable_slots far beyond the log, killed", "area 0 of c: * with durable_slots far beyond the log, killed",
    "c: the fingerprint in the log only, and a mark far beyond it, killed"),
    (4, "entry-lost metadata-copy-behind store-not-stopped store-truncated"), (5, "slots-void snapshot-broken"), LOSES)
say("the log is said to be longer than it is", ("c: log_slots past the last entry",),
    (4, "entry-lost metadata-copy-behind"), (5, "slots-void snapshot-broken"), LOSES)
say("the log is said to be longer than there is room for", ("b: log_slots* beyond the file",),
    (4, "entry-lost metadata-copy-behind store-truncated"), (5, "slots-void snapshot-broken"), LOSES)
say("the superblock must be the older one of the two: what is served may be wrong", (
    "a: durable_slots of a header past the log's end",), (4, "mark-past-end"), (5, "slots-void snapshot-broken"), LOSES)
say("no reader can tell it from damage", ("c: another, possible slots_per_area",),
    (4, "entry-lost metadata-copy-behind metadata-copy-damaged"), (5, "slots-void snapshot-broken"), LOSES)

# ---- data

say("only the block is lost", (
    "data zeroed", "data with a bit flipped", "data of two slots swapped",
    "the padding of the last, partial block not zero"), (4, "data-damaged"), (1, "blocks-lost"), LOSES)
say("only the block is lost", ("data with a bit flipped before *, killed",), (4, "data-damaged store-not-stopped"),
    (1, "blocks-lost store-not-stopped"), LOSES)
say("no block is lost", ("a fingerprint whose slot is zeroed, killed",), (4, "fingerprint-damaged store-not-stopped"),
    (1, "slots-void store-not-stopped"), WHOLE)
say("the first counts; which of them is right is not known", ("a block in two slots, the second with other data",),
    (4, "exception-contradicted exception-duplicate"), None, WHOLE)

# ---- cut short; c is last in the file, so the mark goes past its end, or the log does

say("the missing part is broken off, and the log ends before it", (
    "c cut short before the first area", "c cut short at the second area's begin",
    "c cut short at the last area's begin", "b: limit_bytes less than the log takes"), (4, "store-truncated"),
    (5, "snapshot-broken"), LOSES)
say("the missing part is broken off, and the log ends before it", (
    "c cut short before the first area, killed", "c cut short at the second area's begin, killed"),
    (4, "store-not-stopped store-truncated"), (5, "snapshot-broken"), LOSES)
say("the same, with one superblock", ("c cut short between the superblocks",),
    (4, "store-truncated superblock-copy-damaged"), (5, "snapshot-broken"), LOSES)
say("the same, with one superblock", ("c cut short between the superblocks, killed",),
    (4, "store-not-stopped store-truncated superblock-copy-damaged"), (5, "snapshot-broken"), LOSES)
say("the same, with the other superblock but for its last sectors", ("c cut short inside superblock copy 1",),
    (4, "store-truncated superblock-copy-torn"), (5, "snapshot-broken"), LOSES)
say("the same, with the other superblock but for its last sectors", ("c cut short inside superblock copy 1, killed",),
    (4, "store-not-stopped store-truncated superblock-copy-torn"), (5, "snapshot-broken"), LOSES)
say("and of the area that is there in part, all but the first entries", (
    "c cut short inside the first area's metadata",),
    (4, "data-damaged entry-lost metadata-copy-damaged store-truncated"), (5, "blocks-lost slots-void snapshot-broken"),
    LOSES)
say("and of the area that is there in part, all but the first entries", (
    "c cut short inside the first area's metadata, killed",),
    (4, "data-damaged entry-lost metadata-copy-damaged store-not-stopped store-truncated"),
    (5, "blocks-lost slots-void snapshot-broken"), LOSES)
say("and of the area that is there in part, data and a metadata copy", ("c cut short inside the second area's data",),
    (4, "data-damaged metadata-copy-damaged store-truncated"), (5, "blocks-lost snapshot-broken"), LOSES)
say("and of the area that is there in part, data and a metadata copy", (
    "c cut short inside the second area's data, killed",),
    (4, "data-damaged metadata-copy-damaged store-not-stopped store-truncated"), (5, "blocks-lost snapshot-broken"), LOSES)
say("and of the area that is there in part, a metadata copy", (
    "c cut short before the second area's last metadata, killed",),
    (4, "metadata-copy-damaged store-not-stopped store-truncated"), (5, "snapshot-broken"), LOSES)
say("no area is missing as a whole: the blocks are known", ("c cut short inside the last area's data",),
    (4, "data-damaged fingerprint-damaged metadata-copy-damaged"), (1, "blocks-lost slots-void"), LOSES)
say("no area is missing as a whole, but entries are", ("c cut short inside the last area's metadata",),
    (4, "data-damaged entry-lost metadata-copy-damaged"), (5, "blocks-lost slots-void snapshot-broken"), LOSES)


# ---- which is whose


def matches(verdict, name):
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in verdict.names)


def verdict_of(name):
    return next(verdict for verdict in VERDICTS if matches(verdict, name))


def faults():
    """What is wrong with this table itself."""
    names = [defect.name for defect in DEFECTS]
    return [f"two defects: {name}" for name in names if names.count(name) > 1] + \
        [f"not one verdict: {name}" for name in names if [matches(one, name) for one in VERDICTS].count(True) != 1] + \
        [f"matches nothing: {pattern}" for verdict in VERDICTS for pattern in verdict.names
         if not fnmatch.filter(names, pattern)]
