/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Checking the links between the stores that were given. The rules are chain.c's; here is told what they lead to. A
 * store that is not there is no fault, nor is what a start puts right by itself.
 */
#include <errno.h>
#include <stdlib.h>

#include "core/check.h"

static struct check_store *store_of(const struct chain_entry *entry)
{
	return entry->context;
}

static struct check_store *find_path(struct check *check, const char *path)
{
	for (size_t i = 0; i < check->count; i++)
		if (check->stores[i].loaded && strncmp(check->stores[i].store->path, path, CHAIN_TEXT_BYTES - 1) == 0)
			return &check->stores[i];
	return NULL;
}

static struct check_store *find_uuid(struct check *check, const uuid128_t *uuid)
{
	for (size_t i = 0; i < check->count; i++)
		if (check->stores[i].loaded && uuid_equal(&check->stores[i].store->superblock.store_uuid, uuid))
			return &check->stores[i];
	return NULL;
}

/* Without the store before it nobody can tell what a crash left here. */
static bool needs_its_predecessor(struct check *check, const struct check_store *one)
{
	const struct superblock *superblock = &one->store->superblock;
	bool unfinished = superblock->state == STATE_PREPARED ||
			  (superblock->state == STATE_SEALED && uuid_is_nil(&superblock->successor_uuid));

	return unfinished && !uuid_is_nil(&superblock->predecessor_uuid) &&
	       find_uuid(check, &superblock->predecessor_uuid) == NULL;
}

static void tell_refusal(struct check *check, int error, const struct chain_verdict *verdict)
{
	struct check_store *one = find_path(check, verdict->what);
	enum check_code code = FOUND_CHAIN_CONTRADICTION;
	struct check_finding at;

	if (one == NULL)
		return;
	if (error == -ENOENT)
		code = FOUND_NEWER_ABSENT;
	else if (needs_its_predecessor(check, one))
		code = FOUND_NEWEST_UNFINISHED;
	at = check_at(one, code);
	check_tell(check, &at, "%s", verdict->why);
}

static void tell_outsider(struct check *check, const struct chain_entry *entry)
{
	struct check_finding at;

	switch (entry->place) {
	case CHAIN_LEFTOVER:
		at = check_at(store_of(entry), FOUND_STORE_LEFTOVER);
		check_tell(check, &at, "is not in the chain any more: snapshot %s was dropped",
			   entry->superblock->name);
		return;
	case CHAIN_UNBORN:
		at = check_at(store_of(entry), FOUND_STORE_UNBORN);
		check_tell(check, &at, "is not in the chain: snapshot %s was never finished", entry->superblock->name);
		return;
	case CHAIN_MEMBER:
		return;
	}
}

static void tell_predecessor(struct check *check, const struct chain_entry *older, const struct chain_entry *entry)
{
	struct check_store *one = store_of(entry);
	struct check_finding at = check_at(one, FOUND_PREDECESSOR_BEHIND);
	char uuid[UUID_TEXT_BYTES];

	if (uuid_equal(&entry->superblock->predecessor_uuid, &older->superblock->store_uuid))
		return;
	one->predecessor = older->superblock->store_uuid;
	uuid_text(&entry->superblock->predecessor_uuid, uuid);
	check_tell(check, &at, "its predecessor link is %s, but it follows %s",
		   uuid_is_nil(&entry->superblock->predecessor_uuid) ? "nil" : uuid, older->path);
}

static void tell_order(struct check *check, const struct chain_entry *entries, size_t count,
		       const struct chain_verdict *verdict)
{
	char uuid[UUID_TEXT_BYTES];
	struct check_finding at;

	for (size_t i = verdict->count; i < count; i++)
		tell_outsider(check, &entries[i]);
	for (size_t i = 0; i < verdict->count; i++) {
		struct check_store *one = store_of(&entries[i]);

		check->names[i] = entries[i].superblock->name;
		one->concerned = check->names;
		one->concerned_count = i + 1;
		one->older_absent = !uuid_is_nil(&verdict->absent_older);
		if (i > 0)
			tell_predecessor(check, &entries[i - 1], &entries[i]);
	}
	if (verdict->count > 0 && !uuid_is_nil(&verdict->absent_older)) {
		at = check_at(store_of(&entries[0]), FOUND_OLDER_ABSENT);
		uuid_text(&verdict->absent_older, uuid);
		check_tell(check, &at, "the next older snapshot's store, %s, was not given", uuid);
	}
	if (verdict->reopen_newest) {
		at = check_at(store_of(&entries[verdict->count - 1]), FOUND_NEWEST_UNFINISHED);
		check_tell(check, &at, "is the newest, and is %s",
			   store_state_text(entries[verdict->count - 1].superblock->state));
	}
	if (verdict->fold_pending) {
		at = check_at(store_of(&entries[verdict->fold_into]), FOUND_FOLD_UNFINISHED);
		check_tell(check, &at, "takes up the exceptions of %s", entries[verdict->fold_into + 1].path);
	}
}

/*
 * A store that is in the chain no more is told and left out, so that the others can be put in order. Returns how many
 * are left.
 */
static size_t leave_out_stray(struct check *check, struct chain_entry *entries, size_t count,
			      const struct chain_verdict *verdict)
{
	size_t left = 0;

	for (size_t i = 0; i < count; i++) {
		struct check_finding at = check_at(store_of(&entries[i]), FOUND_STORE_LEFTOVER);

		if (uuid_equal(&entries[i].superblock->store_uuid, &verdict->stray))
			check_tell(check, &at, "%s", verdict->why);
		else
			entries[left++] = entries[i];
	}
	return left;
}

/* Broken marks that another store carries. */
static void tell_witnesses(struct check *check)
{
	for (size_t i = 0; i < check->count; i++) {
		struct check_store *one = &check->stores[i], *broken;
		const struct superblock *superblock = &one->store->superblock;
		char uuid[UUID_TEXT_BYTES];
		struct check_finding at;

		if (!one->loaded || superblock->witness.reason == BROKEN_NOT)
			continue;
		broken = find_uuid(check, &superblock->witness_uuid);
		uuid_text(&superblock->witness_uuid, uuid);
		at = check_at(one, FOUND_WITNESS);
		check_tell(check, &at, "testifies that the snapshot in store %s is broken (%s)", uuid,
			   broken_reason_text(superblock->witness.reason));
		if (broken == NULL || broken->store->superblock.broken.reason != BROKEN_NOT)
			continue;
		at = check_at(broken, FOUND_SNAPSHOT_BROKEN);
		at.time_ns = superblock->witness.time_ns;
		check_tell(check, &at, "snapshot %s is broken (%s), as %s testifies", broken->store->superblock.name,
			   broken_reason_text(superblock->witness.reason), one->store->path);
	}
}

/* Those that have a place in a chain. A half-merged origin is told, and then there is no order to look at. */
static size_t collect(struct check *check, struct chain_entry *entries)
{
	size_t count = 0;
	bool merging = false;

	for (size_t i = 0; i < check->count; i++) {
		struct check_store *one = &check->stores[i];
		const struct superblock *superblock = &one->store->superblock;
		struct check_finding at;

		if (!one->loaded || superblock->state == STATE_EMPTY || superblock->role == ROLE_PART)
			continue;
		check->names[check->count + i] = superblock->name;
		one->concerned = &check->names[check->count + i];
		one->concerned_count = 1;
		one->older_absent = !uuid_is_nil(&superblock->predecessor_uuid);
		entries[count++] =
			(struct chain_entry){ .superblock = superblock, .path = one->store->path, .context = one };
		if (superblock->state != STATE_MERGING)
			continue;
		merging = true;
		at = check_at(one, FOUND_MERGE_UNFINISHED);
		check_tell(check, &at, "the origin is being put back to a snapshot of this chain");
	}
	return merging ? 0 : count;
}

int check_chain(struct check *check)
{
	struct chain_entry *entries = calloc(check->count, sizeof(*entries));
	struct chain_verdict verdict;
	size_t count;
	int error;

	if (entries == NULL)
		return -ENOMEM;
	count = collect(check, entries);
	error = chain_order(entries, count, &verdict);
	while (error == -EINVAL && !uuid_is_nil(&verdict.stray)) {
		count = leave_out_stray(check, entries, count, &verdict);
		error = chain_order(entries, count, &verdict);
	}
	if (error != 0)
		tell_refusal(check, error, &verdict);
	else
		tell_order(check, entries, count, &verdict);
	tell_witnesses(check);
	free(entries);
	return 0;
}
