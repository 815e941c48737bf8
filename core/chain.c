/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The chain's order. Rules:
 *
 * 1. All stores belong to one volume, have one block size and one origin size, and each is given once.
 * 2. In order of their sequence numbers, each member's successor link names the next member. A successor that is not among
 *    those given is missing, and nothing can be served without it; one with a number that is not larger is refused.
 * 3. Successor links decide. A store whose successor link equals that of an older member was folded into that one and is
 *    left over; so is one that follows a member which says it is the newest, if it is sealed itself.
 * 4. A prepared store belongs to the chain only if its predecessor's successor link names it; without a predecessor its
 *    creation was not committed.
 * 5. The newest must be able to take exceptions: active; or sealed without a successor, which a crash leaves between the
 *    two steps of dropping the newest or of creating a snapshot, and then it is reopened.
 * 6. The stores from a merge's target to the newest are marked as merging, the newest last, and each names the target.
 *    So with the newest marked the merge has begun: all of them must be given, and the origin is no snapshot's. With
 *    others marked only, it has not: they are sealed as before. A merge ends with the target saying that it is the
 *    newest: who names a target in the chain, and cannot be reached from it, is left over.
 */
#include "core/chain.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <uuid/uuid.h>

void uuid_text(const uuid128_t *uuid, char text[static UUID_TEXT_BYTES])
{
	uuid_unparse_lower(uuid->bytes, text);
}

int uuid_parse_text(const char *text, uuid128_t *uuid)
{
	return uuid_parse(text, uuid->bytes) == 0 ? 0 : -EINVAL;
}

__attribute__((format(printf, 4, 5))) static int complain(struct chain_verdict *verdict, int error, const char *what,
							   const char *format, ...)
{
	va_list arguments;

	(void)snprintf(verdict->what, sizeof(verdict->what), "%s", what);
	va_start(arguments, format);
	(void)vsnprintf(verdict->why, sizeof(verdict->why), format, arguments);
	va_end(arguments);
	return error;
}

static int check_alike(const struct chain_entry *entries, size_t count, struct chain_verdict *verdict)
{
	const struct superblock *first = entries[0].superblock;

	for (size_t i = 0; i < count; i++) {
		const struct superblock *one = entries[i].superblock;

		if (one->state == STATE_EMPTY)
			return complain(verdict, -EINVAL, entries[i].path,
					"is an empty store: it belongs to no snapshot yet (give it to 'rowsnap snapshot')");
		if (one->role != ROLE_SNAPSHOT)
			return complain(verdict, -EINVAL, entries[i].path, "is not a snapshot's store");
		for (size_t j = 0; j < i; j++)
			if (uuid_equal(&entries[j].superblock->store_uuid, &one->store_uuid))
				return complain(verdict, -EINVAL, entries[i].path,
						"is the same store as %s: given twice, or one is a copy of the other",
						entries[j].path);
		for (size_t j = 0; j < i; j++)
			if (strcmp(entries[j].superblock->name, one->name) == 0)
				return complain(verdict, -EINVAL, entries[i].path,
						"holds a snapshot of the same name, %s, as %s: drop one of them offline",
						one->name, entries[j].path);
		if (!uuid_equal(&one->volume_uuid, &first->volume_uuid))
			return complain(verdict, -EINVAL, entries[i].path, "belongs to another volume than %s",
					entries[0].path);
		if (one->origin_bytes != first->origin_bytes)
			return complain(verdict, -EINVAL, entries[i].path, "is for an origin of %llu bytes, %s for one of %llu",
					(unsigned long long)one->origin_bytes, entries[0].path,
					(unsigned long long)first->origin_bytes);
		if (one->geometry.block_bytes != first->geometry.block_bytes)
			return complain(verdict, -EINVAL, entries[i].path, "has blocks of %u bytes, %s of %u",
					one->geometry.block_bytes, entries[0].path, first->geometry.block_bytes);
	}
	return 0;
}

static int compare_sequence(const void *a, const void *b)
{
	const struct chain_entry *left = a, *right = b;

	if (left->place != right->place)
		return left->place < right->place ? -1 : 1;
	if (left->superblock->sequence == right->superblock->sequence)
		return 0;
	return left->superblock->sequence < right->superblock->sequence ? -1 : 1;
}

static bool is_given(const struct chain_entry *entries, size_t count, const uuid128_t *uuid)
{
	for (size_t i = 0; i < count; i++)
		if (uuid_equal(&entries[i].superblock->store_uuid, uuid))
			return true;
	return false;
}

/* The store whose successor link names `uuid`; NULL: none does. */
static const struct chain_entry *find_older(const struct chain_entry *entries, size_t count, const uuid128_t *uuid)
{
	for (size_t i = 0; i < count; i++)
		if (uuid_equal(&entries[i].superblock->successor_uuid, uuid))
			return &entries[i];
	return NULL;
}

static int missing(struct chain_verdict *verdict, const struct chain_entry *entry)
{
	char uuid[UUID_TEXT_BYTES];

	verdict->missing = entry->superblock->successor_uuid;
	uuid_text(&verdict->missing, uuid);
	return complain(verdict, -ENOENT, entry->path,
			"needs the next newer snapshot's store, %s, which was not given", uuid);
}

/* Whether it is to go with a merge whose target is here, among the older ones. */
static bool was_merged_past(const struct chain_entry *entry, const struct chain_entry *entries, size_t count)
{
	const struct superblock *one = entry->superblock;

	for (size_t i = 0; one->state == STATE_MERGING && i < count; i++)
		if (uuid_equal(&entries[i].superblock->store_uuid, &one->merge_target_uuid) &&
		    entries[i].superblock->sequence < one->sequence && entries[i].place == CHAIN_MEMBER)
			return true;
	return false;
}

/*
 * The place of the store after `last`, the newest member found so far: *is_next when it is the next member, else it has
 * become a leftover or unborn.
 */
static int place_after(struct chain_entry *last, struct chain_entry *entry, const struct chain_entry *entries, size_t count,
		       bool *is_next, struct chain_verdict *verdict)
{
	const struct superblock *older = last->superblock, *one = entry->superblock;
	const struct chain_entry *names_it;

	*is_next = uuid_equal(&older->successor_uuid, &one->store_uuid);
	if (*is_next && one->sequence == older->sequence)
		return complain(verdict, -EINVAL, entry->path, "has the same sequence number as %s, which is older",
				last->path);
	if (*is_next)
		return 0;
	if (was_merged_past(entry, entries, count) &&
	    (uuid_is_nil(&older->successor_uuid) || is_given(entries, count, &older->successor_uuid))) {
		entry->place = CHAIN_LEFTOVER;
		return 0;
	}
	if (uuid_is_nil(&older->successor_uuid)) {
		if (one->state == STATE_PREPARED && uuid_equal(&one->predecessor_uuid, &older->store_uuid)) {
			entry->place = CHAIN_UNBORN;
			return 0;
		}
		if (one->state == STATE_SEALED && uuid_is_nil(&one->successor_uuid)) {
			entry->place = CHAIN_LEFTOVER;
			return 0;
		}
		return complain(verdict, -EINVAL, entry->path, "is newer than %s, which says that it is the newest itself",
				last->path);
	}
	if (uuid_equal(&older->successor_uuid, &one->successor_uuid)) {
		entry->place = CHAIN_LEFTOVER;
		return 0;
	}
	if (is_given(entries, count, &older->successor_uuid)) {
		names_it = find_older(entries, count, &one->store_uuid);
		if (names_it != NULL)
			return complain(verdict, -EINVAL, entry->path,
					"is named as the next newer one by %s, whose sequence number is not smaller",
					names_it->path);
		verdict->stray = one->store_uuid;
		return complain(verdict, -EINVAL, entry->path, "is not in the chain any more (dropped, or never finished): leave it out");
	}
	return missing(verdict, last);
}

static int check_newest(const struct chain_entry *entries, size_t count, struct chain_verdict *verdict)
{
	const struct chain_entry *newest = &entries[verdict->count - 1];
	const struct superblock *one = newest->superblock;
	bool older_absent = verdict->count == 1 && !uuid_is_nil(&one->predecessor_uuid);

	if (is_given(entries, count, &one->successor_uuid))
		return complain(verdict, -EINVAL, newest->path,
				"names a store as the next newer one whose sequence number is not larger");
	if (!uuid_is_nil(&one->successor_uuid))
		return missing(verdict, newest);
	if (one->state == STATE_ACTIVE || one->state == STATE_MERGING)
		return 0;
	if (older_absent)
		return complain(verdict, -EINVAL, newest->path,
				"was left by a crash in an unfinished state; the store before it is needed to tell which");
	verdict->reopen_newest = true;
	return 0;
}

/* The newest is folded into one that is active already; any other into a sealed one, and has a successor itself. */
static bool fold_is_sound(const struct superblock *into, const struct superblock *from, bool from_newest)
{
	if (from_newest)
		return into->state == STATE_ACTIVE && uuid_is_nil(&from->successor_uuid);
	return into->state == STATE_SEALED && from->state == STATE_SEALED && !uuid_is_nil(&from->successor_uuid);
}

static int find_fold(const struct chain_entry *entries, struct chain_verdict *verdict)
{
	for (size_t i = 0; i < verdict->count; i++) {
		const struct superblock *one = entries[i].superblock;

		if (uuid_is_nil(&one->fold_source_uuid))
			continue;
		if (i + 1 == verdict->count ||
		    !uuid_equal(&one->fold_source_uuid, &entries[i + 1].superblock->store_uuid) || verdict->fold_pending)
			return complain(verdict, -EINVAL, entries[i].path,
					"takes up a store that does not follow it in the chain");
		if (!fold_is_sound(one, entries[i + 1].superblock, i + 2 == verdict->count))
			return complain(verdict, -EINVAL, entries[i].path,
					"takes up a store whose state does not allow that");
		verdict->fold_pending = true;
		verdict->fold_into = i;
		/* The newest is being dropped: the one before it is active already. */
		if (one->state == STATE_ACTIVE)
			verdict->reopen_newest = false;
	}
	return 0;
}

static int find_merge(const struct chain_entry *entries, struct chain_verdict *verdict)
{
	const struct chain_entry *newest = &entries[verdict->count - 1];
	const uuid128_t *target = &newest->superblock->merge_target_uuid;
	char uuid[UUID_TEXT_BYTES];
	size_t at = 0;

	if (newest->superblock->state != STATE_MERGING)
		return 0;
	while (at < verdict->count && !uuid_equal(&entries[at].superblock->store_uuid, target))
		at++;
	uuid_text(target, uuid);
	if (at == verdict->count)
		return complain(verdict, -EINVAL, newest->path,
				"goes with a merge to an older snapshot, which may be half done; that one's store, %s, was not given",
				uuid);
	for (size_t i = at; i < verdict->count; i++)
		if (entries[i].superblock->state != STATE_MERGING ||
		    !uuid_equal(&entries[i].superblock->merge_target_uuid, target))
			return complain(verdict, -EINVAL, entries[i].path,
					"is not marked for the merge to %s, but the newest store is", uuid);
	verdict->merging = true;
	verdict->merge_target = at;
	return 0;
}

int chain_order(struct chain_entry *entries, size_t count, struct chain_verdict *verdict)
{
	size_t last = 0;
	int error;

	memset(verdict, 0, sizeof(*verdict));
	if (count == 0)
		return 0;
	for (size_t i = 0; i < count; i++)
		entries[i].place = CHAIN_MEMBER;
	error = check_alike(entries, count, verdict);
	if (error != 0)
		return error;
	qsort(entries, count, sizeof(*entries), compare_sequence);
	if (entries[0].superblock->state == STATE_PREPARED && uuid_is_nil(&entries[0].superblock->predecessor_uuid)) {
		if (count > 1)
			return complain(verdict, -EINVAL, entries[0].path, "was never made active, but newer stores exist");
		entries[0].place = CHAIN_UNBORN;
		return 0;
	}
	for (size_t i = 1; i < count; i++) {
		bool is_next;

		error = place_after(&entries[last], &entries[i], entries, count, &is_next, verdict);
		if (error != 0)
			return error;
		if (is_next)
			last = i;
	}
	qsort(entries, count, sizeof(*entries), compare_sequence);
	while (verdict->count < count && entries[verdict->count].place == CHAIN_MEMBER)
		verdict->count++;
	verdict->absent_older = entries[0].superblock->predecessor_uuid;
	error = check_newest(entries, count, verdict);
	if (error == 0)
		error = find_merge(entries, verdict);
	return error != 0 ? error : find_fold(entries, verdict);
}
