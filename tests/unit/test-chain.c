/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The order of a chain, and what is said when there is none. */
#include "core/chain.h"

#include <errno.h>

#include "tests/unit/unit.h"

#define STORES 4u

static struct superblock supers[STORES];
static struct chain_entry entries[STORES];
static struct chain_verdict verdict;

static uuid128_t id(uint8_t number)
{
	uuid128_t uuid = { { 0 } };

	uuid.bytes[0] = number;
	return uuid;
}

/* S1 <- S2 <- S3 <- S4, the last active. Given in the order 3 1 4 2. */
static void healthy(void)
{
	static const char *const paths[STORES] = { "/s1", "/s2", "/s3", "/s4" };
	static const unsigned order[STORES] = { 2, 0, 3, 1 };

	memset(supers, 0, sizeof(supers));
	for (unsigned i = 0; i < STORES; i++) {
		supers[i].store_uuid = id((uint8_t)(i + 1));
		supers[i].volume_uuid = id(99);
		supers[i].predecessor_uuid = id((uint8_t)i);
		supers[i].successor_uuid = id(i + 1 < STORES ? (uint8_t)(i + 2) : 0);
		supers[i].sequence = i + 10;
		supers[i].name[0] = (char)('a' + i);
		supers[i].role = ROLE_SNAPSHOT;
		supers[i].state = i + 1 < STORES ? STATE_SEALED : STATE_ACTIVE;
		supers[i].clean = i + 1 < STORES;
		supers[i].origin_bytes = 1 << 20;
		supers[i].geometry = (struct geometry){ 4096, 254, FIRST_AREA_OFFSET };
	}
	for (unsigned i = 0; i < STORES; i++)
		entries[i] = (struct chain_entry){ .superblock = &supers[order[i]], .path = paths[order[i]] };
}

static bool is_order(const char *want)
{
	char got[STORES + 1] = "";

	for (size_t i = 0; i < verdict.count; i++)
		got[i] = (char)('0' + entries[i].superblock->store_uuid.bytes[0]);
	return strcmp(got, want) == 0;
}

static bool leave_out(unsigned number)
{
	unsigned kept = 0;

	for (unsigned i = 0; i < STORES; i++)
		if (entries[i].superblock != &supers[number - 1])
			entries[kept++] = entries[i];
	return kept == STORES - 1;
}

static enum chain_place place_of(unsigned number)
{
	for (unsigned i = 0; i < STORES; i++)
		if (entries[i].superblock == &supers[number - 1])
			return entries[i].place;
	return CHAIN_MEMBER;
}

static void orders(void)
{
	healthy();
	check("stores in any order are put right", chain_order(entries, 4, &verdict) == 0 && is_order("1234"));
	check("nothing is absent, nothing to reopen", uuid_is_nil(&verdict.absent_older) && !verdict.reopen_newest);
	check("no stores is an empty chain", chain_order(entries, 0, &verdict) == 0 && verdict.count == 0);
	healthy();
	check("an older store may be left away, and is named",
	      leave_out(1) && chain_order(entries, 3, &verdict) == 0 && is_order("234") &&
		      verdict.absent_older.bytes[0] == 1);
	healthy();
	check("a missing newest is named",
	      leave_out(4) && chain_order(entries, 3, &verdict) == -ENOENT && verdict.missing.bytes[0] == 4);
	healthy();
	check("a missing one in between is named",
	      leave_out(2) && chain_order(entries, 3, &verdict) == -ENOENT && verdict.missing.bytes[0] == 2 &&
		      strcmp(verdict.what, "/s1") == 0);
}

static void refusals(void)
{
	healthy();
	supers[2].volume_uuid = id(98);
	check("a store of another volume is refused",
	      chain_order(entries, 4, &verdict) == -EINVAL && strstr(verdict.why, "another volume") != NULL);
	healthy();
	supers[1].store_uuid = id(1);
	check("a copy of a store is refused",
	      chain_order(entries, 4, &verdict) == -EINVAL && strstr(verdict.why, "given twice") != NULL);
	healthy();
	supers[1].geometry.block_bytes = 8192;
	check("another block size is refused",
	      chain_order(entries, 4, &verdict) == -EINVAL && strstr(verdict.why, "blocks of") != NULL);
	healthy();
	supers[1].origin_bytes = 4096;
	check("another origin size is refused",
	      chain_order(entries, 4, &verdict) == -EINVAL && strstr(verdict.why, "origin of") != NULL);
	healthy();
	supers[2].name[0] = 'a';
	check("two snapshots of one name are refused",
	      chain_order(entries, 4, &verdict) == -EINVAL && strstr(verdict.why, "same name") != NULL);
	healthy();
	supers[2].sequence = supers[1].sequence;
	check("two of one sequence number are refused", chain_order(entries, 4, &verdict) == -EINVAL);
	healthy();
	supers[0].state = STATE_EMPTY;
	check("an empty store is refused",
	      chain_order(entries, 4, &verdict) == -EINVAL && strstr(verdict.why, "empty store") != NULL);
	healthy();
	supers[0].state = STATE_MERGING;
	check("a half merged origin is refused",
	      chain_order(entries, 4, &verdict) == -EINVAL && strstr(verdict.why, "merge") != NULL);
	healthy();
	supers[2].successor_uuid = id(0);
	supers[2].state = STATE_ACTIVE;
	check("two that both say they are the newest are refused", chain_order(entries, 4, &verdict) == -EINVAL);
}

static void creation_crashes(void)
{
	healthy();
	supers[2].successor_uuid = id(0);
	supers[2].state = STATE_ACTIVE;
	supers[3].state = STATE_PREPARED;
	check("a prepared store that its predecessor does not name was never born",
	      chain_order(entries, 4, &verdict) == 0 && is_order("123") && place_of(4) == CHAIN_UNBORN);
	healthy();
	supers[3].state = STATE_PREPARED;
	check("a prepared store that its predecessor names is the newest, to be made active",
	      chain_order(entries, 4, &verdict) == 0 && is_order("1234") && verdict.reopen_newest);
	healthy();
	supers[0].state = STATE_PREPARED;
	entries[0] = (struct chain_entry){ .superblock = &supers[0], .path = "/s1" };
	check("a lone prepared store without a predecessor was never born",
	      chain_order(entries, 1, &verdict) == 0 && verdict.count == 0 && entries[0].place == CHAIN_UNBORN);
	healthy();
	supers[3].state = STATE_PREPARED;
	entries[0] = (struct chain_entry){ .superblock = &supers[3], .path = "/s4" };
	check("without its predecessor a prepared store is not guessed about",
	      chain_order(entries, 1, &verdict) == -EINVAL && strstr(verdict.why, "needed to tell") != NULL);
}

static void drop_crashes(void)
{
	healthy();
	supers[1].successor_uuid = id(4);
	check("a store that was folded into the older one is left over",
	      chain_order(entries, 4, &verdict) == 0 && is_order("124") && place_of(3) == CHAIN_LEFTOVER);
	healthy();
	supers[1].predecessor_uuid = id(0);
	check("a successor that was told it is the oldest, but the drop did not finish: the link decides",
	      chain_order(entries, 4, &verdict) == 0 && is_order("1234"));
	healthy();
	supers[3].state = STATE_SEALED;
	check("a sealed newest, from dropping the newest, is reopened",
	      chain_order(entries, 4, &verdict) == 0 && is_order("1234") && verdict.reopen_newest);
	supers[2].state = STATE_ACTIVE;
	supers[2].fold_source_uuid = id(4);
	check("the newest being folded: the one before it is active",
	      chain_order(entries, 4, &verdict) == 0 && is_order("1234") && !verdict.reopen_newest &&
		      verdict.fold_pending && verdict.fold_into == 2);
	supers[2].successor_uuid = id(0);
	supers[2].fold_source_uuid = id(0);
	check("the newest was folded: its store is left over",
	      chain_order(entries, 4, &verdict) == 0 && is_order("123") && place_of(4) == CHAIN_LEFTOVER);
	healthy();
	supers[0].fold_source_uuid = id(2);
	supers[0].clean = false;
	check("a fold between is pending", chain_order(entries, 4, &verdict) == 0 && is_order("1234") &&
						  verdict.fold_pending && verdict.fold_into == 0);
	supers[1].state = STATE_ACTIVE;
	check("a fold between from one that is not sealed is refused", chain_order(entries, 4, &verdict) == -EINVAL);
	supers[1].state = STATE_SEALED;
	supers[0].state = STATE_ACTIVE;
	check("a fold between into one that is active is refused", chain_order(entries, 4, &verdict) == -EINVAL);
	supers[0].state = STATE_SEALED;
	supers[0].fold_source_uuid = id(3);
	check("a fold from a store that does not follow is refused", chain_order(entries, 4, &verdict) == -EINVAL);
}

int main(void)
{
	orders();
	refusals();
	creation_crashes();
	drop_crashes();
	return unit_done();
}
