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
	bool found = false;

	for (unsigned i = 0; i < STORES; i++) {
		found = found || entries[i].superblock == &supers[number - 1];
		if (entries[i].superblock != &supers[number - 1])
			entries[kept++] = entries[i];
	}
	return found;
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

static void mark_merging(unsigned number, unsigned target)
{
	supers[number - 1].state = STATE_MERGING;
	supers[number - 1].clean = true;
	supers[number - 1].merge_target_uuid = id((uint8_t)target);
}

/* S2 is the target. */
static void half_merged(void)
{
	healthy();
	for (unsigned number = 2; number <= STORES; number++)
		mark_merging(number, 2);
}

/* The target has been told that it is the newest; the newer ones are still there. */
static void merged(void)
{
	half_merged();
	supers[1].state = STATE_ACTIVE;
	supers[1].successor_uuid = id(0);
	supers[1].merge_target_uuid = id(0);
}

static void merge_crashes(void)
{
	half_merged();
	check("with the newest marked the merge has begun",
	      chain_order(entries, 4, &verdict) == 0 && is_order("1234") && verdict.merging && verdict.merge_target == 1);
	half_merged();
	check("also without the stores older than the target",
	      leave_out(1) && chain_order(entries, 3, &verdict) == 0 && verdict.merging && verdict.merge_target == 0);
	half_merged();
	check("without the target it is refused",
	      leave_out(2) && leave_out(1) && chain_order(entries, 2, &verdict) == -EINVAL &&
		      strstr(verdict.why, "was not given") != NULL);
	half_merged();
	check("without a newer one it is refused", leave_out(3) && chain_order(entries, 3, &verdict) == -ENOENT);
	healthy();
	mark_merging(4, 4);
	check("the newest may be the target",
	      chain_order(entries, 4, &verdict) == 0 && verdict.merging && verdict.merge_target == 3);
	healthy();
	mark_merging(2, 2);
	mark_merging(3, 2);
	check("with the newest not marked it has not begun",
	      chain_order(entries, 4, &verdict) == 0 && is_order("1234") && !verdict.merging && !verdict.reopen_newest);
	half_merged();
	supers[2].state = STATE_SEALED;
	check("marks with a gap are refused",
	      chain_order(entries, 4, &verdict) == -EINVAL && strstr(verdict.why, "is not marked") != NULL);
	half_merged();
	supers[2].merge_target_uuid = id(3);
	check("marks with two targets are refused", chain_order(entries, 4, &verdict) == -EINVAL);
	merged();
	check("the merge is done once the target is the newest: the others are left over",
	      chain_order(entries, 4, &verdict) == 0 && is_order("12") && !verdict.merging &&
		      place_of(3) == CHAIN_LEFTOVER && place_of(4) == CHAIN_LEFTOVER);
	merged();
	check("so is each of them by itself",
	      leave_out(3) && chain_order(entries, 3, &verdict) == 0 && is_order("12") && place_of(4) == CHAIN_LEFTOVER);
	merged();
	check("without the target they are refused",
	      leave_out(2) && leave_out(1) && chain_order(entries, 2, &verdict) == -EINVAL);
	merged();
	supers[1].state = STATE_SEALED;
	supers[1].successor_uuid = id(4);
	supers[3].state = STATE_ACTIVE;
	supers[3].predecessor_uuid = id(2);
	supers[3].sequence = supers[2].sequence;
	check("one is left over also when a snapshot was taken since, with its sequence",
	      chain_order(entries, 4, &verdict) == 0 && is_order("124") && place_of(3) == CHAIN_LEFTOVER);
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

/* Links and sequence numbers that no crash leaves. */
static void contradictions(void)
{
	struct chain_entry second;

	healthy();
	supers[0].role = ROLE_FORK;
	check("a fork is no part of a chain", chain_order(entries, 4, &verdict) == -EINVAL &&
						      strstr(verdict.why, "not a snapshot's store") != NULL);
	healthy();
	second = entries[3]; /* given before the one that follows it */
	entries[3] = entries[0];
	entries[0] = second;
	supers[2].sequence = supers[1].sequence;
	check("a next one of the same sequence number is refused, and both are named",
	      chain_order(entries, 4, &verdict) == -EINVAL && strcmp(verdict.what, "/s3") == 0 &&
		      strstr(verdict.why, "same sequence number as /s2") != NULL);
	healthy();
	supers[1].sequence = 12;
	supers[2].sequence = 11;
	check("a link against the sequence numbers is refused, and both are named",
	      chain_order(entries, 4, &verdict) == -EINVAL && strcmp(verdict.what, "/s3") == 0 &&
		      strstr(verdict.why, "next newer one by /s2") != NULL);
	healthy();
	supers[0].successor_uuid = id(3);
	supers[1].successor_uuid = id(50);
	check("a store that nothing names is refused, and it is said which",
	      chain_order(entries, 4, &verdict) == -EINVAL && uuid_equal(&verdict.stray, &supers[1].store_uuid));
	healthy();
	supers[3].state = STATE_SEALED;
	supers[3].successor_uuid = id(1);
	check("a circle is refused", chain_order(entries, 4, &verdict) == -EINVAL && strcmp(verdict.what, "/s4") == 0);
	healthy();
	supers[0].state = STATE_PREPARED;
	check("an oldest that was never made active is refused where there are newer ones",
	      chain_order(entries, 4, &verdict) == -EINVAL && strstr(verdict.why, "never made active") != NULL);
}

int main(void)
{
	orders();
	refusals();
	contradictions();
	creation_crashes();
	drop_crashes();
	merge_crashes();
	return unit_done();
}
