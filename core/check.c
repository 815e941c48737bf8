/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Checking stores: the table of what can be found, the superblocks, and the order of things. See check.h. */
#include "core/check.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static const struct check_kind kinds[] = {
	[FOUND_SUPERBLOCK_COPY_DAMAGED] = {
		"superblock-copy-damaged", CHECK_FAULT, MEND_SUPERBLOCK,
		"nothing is lost: the other copy is good, but it is the last", false,
		"writes it anew from the other copy" },
	[FOUND_SUPERBLOCK_COPY_UNREADABLE] = {
		"superblock-copy-unreadable", CHECK_UNREADABLE, MEND_SUPERBLOCK,
		"nothing is lost: the other copy is good, but it is the last", false,
		"writes it anew from the other copy" },
	[FOUND_SUPERBLOCK_COPY_TORN] = {
		"superblock-copy-torn", CHECK_NOTICE, MEND_SUPERBLOCK,
		"the power failed while it was written; the other copy counts", false,
		"writes it anew from the other copy" },
	[FOUND_SUPERBLOCK_COPY_BEHIND] = {
		"superblock-copy-behind", CHECK_NOTICE, MEND_SUPERBLOCK,
		"a crash cut a change short; the newer copy counts", false, "writes it anew from the newer copy" },
	[FOUND_SUPERBLOCK_LOST] = {
		"superblock-lost", CHECK_FAULT, MEND_NOTHING, "what the store holds cannot be told", true, NULL },
	[FOUND_SUPERBLOCK_CONTRADICTION] = {
		"superblock-contradiction", CHECK_FAULT, MEND_NOTHING,
		"what the store says of itself cannot be relied upon", true, NULL },
	[FOUND_FEATURES_UNKNOWN] = {
		"features-unknown", CHECK_NOTICE, MEND_NOTHING,
		"a newer rowsnap made the store: this one can read it, but not write it", false, NULL },
	[FOUND_STORE_EMPTY] = {
		"store-empty", CHECK_NOTICE, MEND_NOTHING, "it belongs to no snapshot", false, NULL },
	[FOUND_STORE_NOT_STOPPED] = {
		"store-not-stopped", CHECK_NOTICE, MEND_NOTHING,
		"a crash, which is no damage: the next start recovers the log", false, NULL },
	[FOUND_STORE_TRUNCATED] = {
		"store-truncated", CHECK_FAULT, MEND_END,
		"the exceptions in the missing part are lost, and which blocks they were of is not known", true,
		"marks the snapshot broken and lets its log end where the store does "
		"(if the rest can be found, put it back first)" },
	[FOUND_SNAPSHOT_BROKEN] = {
		"snapshot-broken", CHECK_FAULT, MEND_NOTHING,
		"what was preserved can be read; reading anything else is an error", true, NULL },
	[FOUND_WITNESS] = {
		"witness", CHECK_NOTICE, MEND_NOTHING,
		"the snapshot in that store is broken; the store itself could not carry the mark", false, NULL },
	[FOUND_METADATA_COPY_DAMAGED] = {
		"metadata-copy-damaged", CHECK_FAULT, MEND_METADATA,
		"what the other copy has is not lost", false, "writes it anew with all that either copy has" },
	[FOUND_METADATA_COPY_UNREADABLE] = {
		"metadata-copy-unreadable", CHECK_UNREADABLE, MEND_METADATA,
		"what the other copy has is not lost", false, "writes it anew with all that the other copy has" },
	[FOUND_METADATA_COPY_TORN] = {
		"metadata-copy-torn", CHECK_NOTICE, MEND_NOTHING,
		"it was being written when the crash came, or when room ran out; the other copy has what is durable", false,
		NULL },
	[FOUND_METADATA_COPY_BEHIND] = {
		"metadata-copy-behind", CHECK_NOTICE, MEND_NOTHING,
		"it is an older version; the other copy has the rest", false, NULL },
	[FOUND_METADATA_COPIES_DIFFER] = {
		"metadata-copies-differ", CHECK_FAULT, MEND_METADATA,
		"readers take the entry of the newer copy", false, "writes the older copy anew from the newer" },
	[FOUND_ENTRY_LOST] = {
		"entry-lost", CHECK_FAULT, MEND_BROKEN,
		"exceptions are lost, and which blocks they were of is not known", true,
		"marks the snapshot broken: what is left stays readable, reading anything else is an error" },
	[FOUND_ENTRY_OUT_OF_RANGE] = {
		"entry-out-of-range", CHECK_FAULT, MEND_BROKEN,
		"it cannot be used: exceptions are lost, and which blocks they were of is not known", true,
		"marks the snapshot broken: what is left stays readable, reading anything else is an error" },
	[FOUND_ENTRY_UNREADABLE] = {
		"entry-unreadable", CHECK_UNREADABLE, MEND_NOTHING,
		"served like this, the snapshot would be marked broken", true, NULL },
	[FOUND_DATA_DAMAGED] = {
		"data-damaged", CHECK_FAULT, MEND_LOST,
		"reading this block is an error; it is never given out", true,
		"marks the block lost; the rest stays good" },
	[FOUND_DATA_UNREADABLE] = {
		"data-unreadable", CHECK_UNREADABLE, MEND_NOTHING, "reading this block is an error", true, NULL },
	[FOUND_FINGERPRINT_DAMAGED] = {
		"fingerprint-damaged", CHECK_FAULT, MEND_VOID,
		"no block is lost; after a crash the origin may look changed", false, "leaves the slot void" },
	[FOUND_EXCEPTION_DUPLICATE] = {
		"exception-duplicate", CHECK_NOTICE, MEND_NOTHING,
		"the first one counts; after a crash this is usual", false, NULL },
	[FOUND_EXCEPTION_CONTRADICTED] = {
		"exception-contradicted", CHECK_FAULT, MEND_NOTHING,
		"readers get the first one; which of them is right is not known", true, NULL },
	[FOUND_BLOCKS_LOST] = {
		"blocks-lost", CHECK_NOTICE, MEND_NOTHING, "reading these blocks is an error", true, NULL },
	[FOUND_SLOTS_VOID] = {
		"slots-void", CHECK_NOTICE, MEND_NOTHING,
		"they could not be written, or were given up; nothing is in them", false, NULL },
	[FOUND_LEFTOVERS_PAST_END] = {
		"leftovers-past-end", CHECK_NOTICE, MEND_NOTHING,
		"commits that were given up, or cut off after a crash; nobody reads them", false, NULL },
	[FOUND_TAIL_TORN] = {
		"tail-torn", CHECK_NOTICE, MEND_TAIL,
		"commits that were under way at the crash: nobody was told that they are durable", false,
		"clears it, as the next start would cut it off" },
	[FOUND_TAIL_UNREADABLE] = {
		"tail-unreadable", CHECK_UNREADABLE, MEND_NOTHING,
		"where the log ends is not known: the store cannot be served", true, NULL },
	[FOUND_MARK_PAST_END] = {
		"mark-past-end", CHECK_FAULT, MEND_END,
		"the superblock is older than the log: exceptions that are there are not used", true,
		"marks the snapshot broken and lets its log end at the mark" },
	[FOUND_NEWER_ABSENT] = {
		"newer-store-absent", CHECK_NOTICE, MEND_NOTHING,
		"the link to it was not verified, and without it nothing can be served", false, NULL },
	[FOUND_OLDER_ABSENT] = {
		"older-store-absent", CHECK_NOTICE, MEND_NOTHING,
		"the link to it was not verified; the snapshots given do not need it", false, NULL },
	[FOUND_CHAIN_CONTRADICTION] = {
		"chain-contradiction", CHECK_FAULT, MEND_NOTHING,
		"these stores cannot be served together", true, NULL },
	[FOUND_PREDECESSOR_BEHIND] = {
		"predecessor-link-behind", CHECK_NOTICE, MEND_PREDECESSOR,
		"a crash cut a change short; successor links decide, and the next start mends it", false,
		"sets it to the store whose successor link names this one" },
	[FOUND_STORE_LEFTOVER] = {
		"store-leftover", CHECK_NOTICE, MEND_NOTHING,
		"its snapshot was dropped and it was not wiped yet, or it was never finished", false, NULL },
	[FOUND_STORE_UNBORN] = {
		"store-unborn", CHECK_NOTICE, MEND_NOTHING,
		"its snapshot did not come about; the next start with its chain makes it empty again", false, NULL },
	[FOUND_NEWEST_UNFINISHED] = {
		"newest-unfinished", CHECK_NOTICE, MEND_NOTHING,
		"a crash came while a snapshot was taken or dropped; the next start finishes that", false, NULL },
	[FOUND_FOLD_UNFINISHED] = {
		"fold-unfinished", CHECK_NOTICE, MEND_NOTHING,
		"a drop was under way; the next start goes on with it", false, NULL },
	[FOUND_MERGE_UNFINISHED] = {
		"merge-unfinished", CHECK_NOTICE, MEND_NOTHING,
		"the origin is half put back: nothing is served before the merge is finished", true, NULL },
	[FOUND_PART_ABSENT] = {
		"part-absent", CHECK_UNREADABLE, MEND_NOTHING,
		"the log was not looked at, and without this part nothing can be served", true, NULL },
	[FOUND_PART_ALONE] = {
		"part-alone", CHECK_NOTICE, MEND_NOTHING,
		"a part holds nothing by itself: the store it is joined to tells what is in it", false, NULL },
};

const struct check_kind *check_kind(enum check_code code)
{
	assert((size_t)code < sizeof(kinds) / sizeof(kinds[0]) && kinds[code].code != NULL);
	return &kinds[code];
}

struct check_finding check_at(struct check_store *store, enum check_code code)
{
	return (struct check_finding){
		.code = code,
		.store = store,
		.copy = CHECK_NOWHERE,
		.area = CHECK_NOWHERE,
		.slot = CHECK_NOWHERE,
		.block = CHECK_NOWHERE,
		.offset = CHECK_NOWHERE,
		.count = 1,
	};
}

void check_tell(struct check *check, struct check_finding *at, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	(void)vsnprintf(at->text, sizeof(at->text), format, arguments);
	va_end(arguments);
	check->found(at, check->context);
}

/* ---- the superblock ---- */

static const char *copy_fault_text(int error, const char *why)
{
	switch (error) {
	case -ENODATA:
		return "there is none";
	case -EBADMSG:
		return "its checksum does not hold";
	default:
		return why != NULL ? why : strerror(-error);
	}
}

static bool is_decoded(int error)
{
	return error == -ENODATA || error == -EBADMSG || error == -EINVAL;
}

static enum check_code copy_code(const struct store *store, unsigned copy)
{
	if (!is_decoded(store->copy_error[copy]))
		return FOUND_SUPERBLOCK_COPY_UNREADABLE;
	if (store->copy_error[copy] == -EBADMSG &&
	    superblock_looks_torn(store->buffer + (size_t)copy * SUPERBLOCK_BYTES,
				  store->buffer + (size_t)(1 - copy) * SUPERBLOCK_BYTES))
		return FOUND_SUPERBLOCK_COPY_TORN;
	return FOUND_SUPERBLOCK_COPY_DAMAGED;
}

static uint64_t copy_generation(const struct store *store, unsigned copy)
{
	struct superblock superblock;

	if (superblock_decode(store->buffer + (size_t)copy * SUPERBLOCK_BYTES, &superblock, NULL) != 0)
		return 0;
	return superblock.generation;
}

static void tell_copies(struct check *check, struct check_store *one)
{
	static const uint64_t offsets[SUPERBLOCK_COPIES] = { SUPERBLOCK_OFFSET_0, SUPERBLOCK_OFFSET_1 };
	const struct store *store = one->store;
	struct check_finding at;

	for (unsigned i = 0; i < SUPERBLOCK_COPIES; i++) {
		int error = store->copy_error[i];

		if (error == 0)
			continue;
		at = check_at(one, copy_code(store, i));
		at.copy = i;
		at.offset = offsets[i];
		check_tell(check, &at, "copy %u of the superblock %s (%s)", i,
			   is_decoded(error) ? "is damaged" : "cannot be read",
			   copy_fault_text(error, store->copy_why[i]));
	}
	if (store->uneven) {
		at = check_at(one, FOUND_SUPERBLOCK_COPY_BEHIND);
		at.copy = 1 - store->newest_copy;
		at.offset = offsets[at.copy];
		check_tell(check, &at, "copy %u of the superblock has generation %llu, the other has %llu",
			   1 - store->newest_copy, (unsigned long long)copy_generation(store, 1 - store->newest_copy),
			   (unsigned long long)store->superblock.generation);
	} else if (!store->degraded &&
		   memcmp(store->buffer, store->buffer + SUPERBLOCK_BYTES, SUPERBLOCK_BYTES) != 0) {
		at = check_at(one, FOUND_SUPERBLOCK_CONTRADICTION);
		check_tell(check, &at, "the two superblock copies have the same generation, %llu, and differ",
			   (unsigned long long)store->superblock.generation);
	}
}

static void tell_marks(struct check *check, struct check_store *one)
{
	const struct superblock *superblock = &one->store->superblock;
	struct check_finding at;

	if ((superblock->ro_compat & ~FEATURES_RO_COMPAT) != 0) {
		at = check_at(one, FOUND_FEATURES_UNKNOWN);
		check_tell(check, &at, "has features that this rowsnap does not know (ro_compat %#x)",
			   superblock->ro_compat);
	}
	if (superblock->state == STATE_EMPTY) {
		at = check_at(one, FOUND_STORE_EMPTY);
		check_tell(check, &at, "is an empty store");
	}
	if (superblock->broken.reason != BROKEN_NOT) {
		at = check_at(one, FOUND_SNAPSHOT_BROKEN);
		at.time_ns = superblock->broken.time_ns;
		check_tell(check, &at, "snapshot %s is broken (%s)", superblock->name,
			   broken_reason_text(superblock->broken.reason));
	}
}

/* A superblock that cannot be had: a fault where there is a store, else the caller's error. */
static void tell_no_superblock(struct check *check, struct check_store *one, int error, const char *why)
{
	struct check_finding at;

	if (error == -EBADMSG) {
		at = check_at(one, FOUND_SUPERBLOCK_LOST);
		check_tell(check, &at, "both copies of the superblock are damaged (%s; %s)",
			   copy_fault_text(one->store->copy_error[0], one->store->copy_why[0]),
			   copy_fault_text(one->store->copy_error[1], one->store->copy_why[1]));
	} else if (error == -EINVAL) {
		at = check_at(one, FOUND_SUPERBLOCK_CONTRADICTION);
		check_tell(check, &at, "the superblock contradicts itself: %s", why != NULL ? why : "");
	} else {
		one->load_error = error;
		one->load_why = why;
	}
}

static void check_superblock(struct check *check, struct check_store *one)
{
	const char *why = NULL;
	int error = store_load_wait(one->store, &why);

	/* -EFBIG: the log is longer than the store, which check_log() tells. */
	if (error != 0 && error != -EFBIG) {
		tell_no_superblock(check, one, error, why);
		return;
	}
	one->loaded = true;
	tell_copies(check, one);
}

/* ---- all of it ---- */

static bool has_log(const struct check_store *one)
{
	return one->loaded && !one->links_only && one->store->superblock.state != STATE_EMPTY &&
	       one->store->superblock.role != ROLE_PART && store_missing_part(one->store) == 0;
}

static void tell_missing_part(struct check *check, struct check_store *one, int error)
{
	uint32_t part = store_missing_part(one->store);
	struct check_finding at = check_at(one, error == -ENOENT ? FOUND_PART_ABSENT : FOUND_CHAIN_CONTRADICTION);
	char text[STORE_TEXT_BYTES];

	stores_join_text(error, one->store, part, text);
	check_tell(check, &at, "%s", text);
}

/* Each store gets its parts, for as long as the check lasts: check_end() gives them back. Else *error says why *main has not. */
static int join_parts(struct check *check, int *error, struct store **main)
{
	struct store **stores = calloc(check->count, sizeof(struct store *));
	uint32_t part;

	if (stores == NULL)
		return -ENOMEM;
	for (size_t i = 0; i < check->count; i++)
		stores[i] = check->stores[i].loaded ? check->stores[i].store : NULL;
	*error = stores_join(stores, check->count, main, &part);
	free(stores);
	return 0;
}

static bool is_joined(const struct check *check, const struct store *part)
{
	for (size_t i = 0; i < check->count; i++)
		for (uint32_t at = 1; at < STORE_PARTS_MAX; at++)
			if (check->stores[i].store->parts[at - 1] == part)
				return true;
	return false;
}

static void tell_parts(struct check *check, int error, const struct store *main)
{
	for (size_t i = 0; i < check->count; i++) {
		struct check_store *one = &check->stores[i];
		const struct superblock *superblock = &one->store->superblock;
		struct check_finding at = check_at(one, FOUND_PART_ALONE);

		if (one->loaded && store_missing_part(one->store) != 0)
			tell_missing_part(check, one, error == -EINVAL && main == one->store ? error : -ENOENT);
		if (one->loaded && superblock->role == ROLE_PART && !is_joined(check, one->store))
			check_tell(check, &at, "is part %u of the store of snapshot %s, which was not given, or does not name it",
				   superblock->part_index, superblock->name);
	}
}

int check_run(struct check *check)
{
	struct store *main = NULL;
	int error, part_error = 0;

	check_end(check);
	for (size_t i = 0; i < check->count; i++)
		check->stores[i] = (struct check_store){ .store = check->stores[i].store,
							 .links_only = check->stores[i].links_only };
	if (check->count == 0)
		return 0;
	check->names = calloc(2 * check->count, sizeof(*check->names));
	if (check->names == NULL)
		return -ENOMEM;
	for (size_t i = 0; i < check->count; i++)
		check_superblock(check, &check->stores[i]);
	error = join_parts(check, &part_error, &main);
	if (error == 0)
		error = check_chain(check);
	tell_parts(check, part_error, main);
	for (size_t i = 0; i < check->count; i++)
		if (check->stores[i].loaded)
			tell_marks(check, &check->stores[i]);
	for (size_t i = 0; i < check->count && error == 0; i++)
		if (has_log(&check->stores[i]))
			error = check_log(check, &check->stores[i]);
	return error;
}

void check_end(struct check *check)
{
	for (size_t i = 0; i < check->count; i++)
		memset(check->stores[i].store->parts, 0, sizeof(check->stores[i].store->parts));
	free(check->names);
	check->names = NULL;
}
