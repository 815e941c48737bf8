/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Mending a store. The order, in which each step leaves a store that is read as before it or as after it:
 *
 *   barrier      what was checked may have been in a cache only
 *   superblock   one change (store.c: one copy durable after the other) with the broken mark, the log's end, the
 *                link. So the mark is durable before anything that it excuses.
 *   areas        each one's metadata is put together from its two copies, with the entries of lost blocks and of void
 *                slots. The copy that has less is written first, then there is a barrier, then the other, then a
 *                barrier. What a copy holds is in what is written over it, so a write that is torn takes nothing
 *                away.
 *   tail         the metadata of the last area likewise, zeroes past the log's end, with the durable mark; then the
 *                areas behind it are cleared.
 *
 * Nothing is written while the stores given contradict each other: what looks like damage may be right, and the
 * superblock wrong.
 * Before a block is marked lost its data is read once more: only what is wrong twice is given up.
 */
#include "core/repair.h"

#include <errno.h>
#include <stdlib.h>

#include "core/metadata.h"

/* ---- the plan ---- */

static struct repair_area *plan_area(struct repair *repair, uint64_t area)
{
	uint32_t per_area = repair->one->store->superblock.geometry.slots_per_area;

	if (repair->area_count > 0 && repair->areas[repair->area_count - 1].area == area)
		return &repair->areas[repair->area_count - 1];
	if (repair->unknown_end && area >= repair->one->end_slots / per_area)
		return NULL;
	if (repair->area_count == REPAIR_AREAS_MAX) {
		repair->too_many = true;
		return NULL;
	}
	if (repair->area_count == repair->area_room) {
		size_t room = repair->area_room == 0 ? 16 : repair->area_room * 2;
		struct repair_area *areas = reallocarray(repair->areas, room, sizeof(*areas));

		if (areas == NULL) {
			repair->no_memory = true;
			return NULL;
		}
		repair->areas = areas;
		repair->area_room = room;
	}
	repair->areas[repair->area_count] = (struct repair_area){ .area = (uint32_t)area };
	return &repair->areas[repair->area_count++];
}

static void plan_slots(struct repair *repair, const struct check_finding *finding, bool lost)
{
	uint32_t per_area = repair->one->store->superblock.geometry.slots_per_area;
	struct repair_area *plan = plan_area(repair, finding->area);

	for (uint64_t i = 0; plan != NULL && i < finding->count; i++) {
		uint32_t index = (uint32_t)((finding->slot + i) % per_area);

		(lost ? plan->lost : plan->voids)[index / 8] |= (uint8_t)(1u << index % 8);
	}
}

/* Slots [first, end), of which nothing is known yet: what holds stays. */
static void plan_range(struct repair *repair, uint64_t first, uint64_t end)
{
	uint32_t per_area = repair->one->store->superblock.geometry.slots_per_area;

	while (first < end) {
		uint64_t next = (first / per_area + 1) * per_area;
		struct repair_area *plan = plan_area(repair, first / per_area);

		if (plan == NULL)
			return;
		for (; first < next && first < end; first++) {
			plan->lost[first % per_area / 8] |= (uint8_t)(1u << first % per_area % 8);
			plan->voids[first % per_area / 8] |= (uint8_t)(1u << first % per_area % 8);
		}
	}
}

void repair_note(struct repair *repair, const struct check_finding *finding)
{
	const struct check_store *one = finding->store;

	if (finding->code == FOUND_CHAIN_CONTRADICTION)
		repair->contradicted = true;
	if (one != repair->one)
		return;
	if (finding->code == FOUND_TAIL_UNREADABLE)
		repair->unknown_end = true;
	switch (check_kind(finding->code)->mend) {
	case MEND_NOTHING:
		return;
	case MEND_SUPERBLOCK:
		repair->superblock = true;
		return;
	case MEND_METADATA:
		(void)plan_area(repair, finding->area);
		return;
	case MEND_LOST:
		plan_slots(repair, finding, true);
		return;
	case MEND_BROKEN:
		repair->superblock = true;
		repair->broken = true;
		plan_slots(repair, finding, false);
		return;
	case MEND_VOID:
		plan_slots(repair, finding, false);
		return;
	case MEND_END:
		if (repair->unknown_end)
			return;
		repair->superblock = true;
		repair->broken = true;
		repair->end_moves = true;
		repair->end = finding->code == FOUND_MARK_PAST_END ? one->mark_past_end : one->end_slots;
		if (repair->end > store_slots_there(one->store))
			repair->end = store_slots_there(one->store);
		if (finding->code == FOUND_MARK_PAST_END)
			plan_range(repair, one->end_slots, repair->end);
		return;
	case MEND_TAIL:
		repair->tail = true;
		return;
	case MEND_PREDECESSOR:
		repair->superblock = true;
		repair->predecessor = true;
		return;
	}
}

bool repair_is_planned(const struct repair *repair)
{
	return !repair->contradicted &&
	       (repair->superblock || repair->area_count > 0 || repair->tail || repair->no_memory);
}

void repair_end(struct repair *repair)
{
	free(repair->areas);
	repair->areas = NULL;
	repair->area_count = 0;
	repair->area_room = 0;
}

/* ---- the superblock ---- */

static void apply_plan(struct superblock *superblock, void *context)
{
	const struct repair *repair = context;

	if (repair->broken && superblock->broken.reason == BROKEN_NOT)
		superblock->broken =
			(struct broken_mark){ BROKEN_METADATA, disk_host_wall_ns(repair->one->store->host) };
	if (repair->predecessor)
		superblock->predecessor_uuid = repair->one->predecessor;
	if (!repair->end_moves)
		return;
	superblock->clean = true;
	superblock->log_slots = repair->end;
	superblock->durable_slots = repair->end;
	if (superblock->fold_base_slots > repair->end)
		superblock->fold_base_slots = repair->end;
}

static int write_superblock(struct repair *repair)
{
	int error = store_update_wait(repair->one->store, apply_plan, repair);

	if (error == 0)
		repair->writes++;
	return error;
}

/* ---- the areas ---- */

struct mending {
	struct repair *repair;
	struct store *store;
	struct log_format format;
	uint64_t end, durable; /* slots */
	uint8_t *memory;       /* both copies as they are, the one that is to be, and a block */
	uint8_t *bytes, *block;
	struct area_copies both;
};

static int read_copies(struct mending *mending, uint32_t area)
{
	mending->both = (struct area_copies){ .area = area };
	for (unsigned which = 0; which < 2; which++) {
		struct meta_copy *copy = &mending->both.copies[which];
		struct store_place place = store_meta_place(mending->store, area, which);
		uint8_t *bytes = mending->memory + (size_t)which * AREA_META_BYTES;

		copy->bytes = bytes;
		copy->error = disk_read_wait(mending->store->host, place.part->disk, bytes, AREA_META_BYTES, place.offset);
		area_copy_decode(&mending->format, &mending->both, which);
	}
	area_copies_choose(&mending->both);
	mending->repair->offset = store_meta_place(mending->store, area, 0).offset;
	return mending->both.copies[0].error != 0 && mending->both.copies[1].error != 0 ?
		       mending->both.copies[0].error :
		       0;
}

static int write_copy(struct mending *mending, unsigned which, const uint8_t *bytes)
{
	struct store_place place = store_meta_place(mending->store, mending->both.area, which);
	int error = disk_write_wait(mending->store->host, place.part->disk, bytes, AREA_META_BYTES, place.offset);

	mending->repair->offset = place.offset;
	if (error == 0)
		error = disk_flush_wait(mending->store->host, place.part->disk);
	if (error == 0)
		mending->repair->writes++;
	return error;
}

static bool bit_is_set(const uint8_t *bits, uint32_t index)
{
	return (bits[index / 8] & 1u << index % 8) != 0;
}

/*
 * Whether the slot's data, read once more, does not match its entry. An error of reading is none of that: it is
 * returned.
 */
static int data_is_wrong(struct mending *mending, uint32_t index, const struct entry *entry, bool *wrong)
{
	const struct geometry *geometry = &mending->format.geometry;
	slot_t slot = SLOT((uint64_t)mending->both.area * geometry->slots_per_area + index);
	struct store_place place = store_slot_place(mending->store, slot);
	int error = disk_read_wait(mending->store->host, place.part->disk, mending->block, geometry->block_bytes,
				   place.offset);

	*wrong = error == 0 && data_checksum(mending->format.seed, mending->block, geometry->block_bytes) !=
				       entry->data_checksum;
	return error;
}

/* What the plan says of one slot. */
static int mend_entry(struct mending *mending, const struct repair_area *plan, uint32_t index)
{
	bool lost = bit_is_set(plan->lost, index), is_void = bit_is_set(plan->voids, index), wrong;
	struct entry entry, made = { .type = ENTRY_VOID };
	int error;

	if (!lost && !is_void)
		return 0;
	if (area_copies_entry(&mending->format, &mending->both, index, &entry)) {
		if (!(lost && entry.type == ENTRY_DATA) && !(is_void && entry.type == ENTRY_FINGERPRINT))
			return 0;
		error = data_is_wrong(mending, index, &entry, &wrong);
		if (error != 0 || !wrong)
			return error;
		if (entry.type == ENTRY_DATA)
			made = (struct entry){ .type = ENTRY_LOST, .block = entry.block, .count = 1 };
	} else if (!is_void || mending->both.copies[0].error != 0 || mending->both.copies[1].error != 0) {
		return 0;
	}
	entry_encode(mending->bytes, mending->format.seed, mending->both.area, index, &made);
	return 0;
}

/* Whether a copy says what is to be said, so that it need not be written. */
static bool copy_is_right(const struct mending *mending, unsigned which)
{
	const struct meta_copy *copy = &mending->both.copies[which];

	return copy->valid && memcmp(copy->bytes + AREA_HEADER_BYTES, mending->bytes + AREA_HEADER_BYTES,
				     AREA_META_BYTES - AREA_HEADER_BYTES) == 0;
}

/* `always`: also a copy that is right, for the mark in its header. */
static int mend_area(struct mending *mending, const struct repair_area *plan, bool always)
{
	uint32_t per_area = mending->format.geometry.slots_per_area, has[2], wanted;
	uint64_t first = (uint64_t)plan->area * per_area;
	unsigned fuller;
	int error = read_copies(mending, plan->area);

	if (error != 0 || first >= mending->end)
		return error;
	wanted = store_area_slots(mending->store, plan->area);
	if (mending->end - first < wanted)
		wanted = (uint32_t)(mending->end - first);
	area_copies_unite(&mending->format, &mending->both, wanted, mending->durable, true, mending->bytes);
	for (uint32_t i = 0; i < wanted && error == 0; i++)
		error = mend_entry(mending, plan, i);
	if (error != 0)
		return error;
	for (unsigned which = 0; which < 2; which++)
		has[which] = area_copy_count(&mending->format, &mending->both, which, wanted);
	fuller = mending->both.first_choice;
	if (has[fuller] < has[1 - fuller])
		fuller = 1 - fuller;
	if (always || !copy_is_right(mending, 1 - fuller))
		error = write_copy(mending, 1 - fuller, mending->bytes);
	if (error == 0 && (always || !copy_is_right(mending, fuller)))
		error = write_copy(mending, fuller, mending->bytes);
	return error;
}

static int clear_area(struct mending *mending, uint32_t area)
{
	int error = read_copies(mending, area);

	memset(mending->bytes, 0, AREA_META_BYTES);
	for (unsigned which = 0; which < 2 && error == 0; which++)
		if (mending->both.copies[which].valid ||
		    area_copy_count(&mending->format, &mending->both, which,
				    mending->format.geometry.slots_per_area) > 0)
			error = write_copy(mending, which, mending->bytes);
	return error;
}

static int clear_tail(struct mending *mending)
{
	uint32_t per_area = mending->format.geometry.slots_per_area;
	uint32_t areas = (uint32_t)((mending->end + per_area - 1) / per_area);
	int error = 0;

	if (areas > 0) {
		struct repair_area last = { .area = areas - 1 };

		error = mend_area(mending, &last, true);
	}
	for (uint32_t area = areas; area < mending->repair->one->tail_areas && error == 0; area++)
		error = clear_area(mending, area);
	return error;
}

/* Whether an entry that was missing is so once more; a snapshot is not marked broken for less. */
static int confirm_broken(struct mending *mending, bool *confirmed)
{
	const struct repair *repair = mending->repair;
	struct entry entry;
	int error = 0;

	*confirmed = repair->end_moves;
	for (size_t i = 0; i < repair->area_count && error == 0 && !*confirmed; i++) {
		error = read_copies(mending, repair->areas[i].area);
		for (uint32_t at = 0; at < mending->format.geometry.slots_per_area && error == 0; at++)
			if (bit_is_set(repair->areas[i].voids, at) &&
			    !area_copies_entry(&mending->format, &mending->both, at, &entry))
				*confirmed = true;
	}
	return error;
}

static int carry_out(struct mending *mending)
{
	struct repair *repair = mending->repair;
	int error = repair->broken ? confirm_broken(mending, &repair->broken) : 0;

	repair->offset = 0;
	if (error == 0 && repair->superblock)
		error = write_superblock(repair);
	for (size_t i = 0; i < repair->area_count && error == 0; i++)
		error = mend_area(mending, &repair->areas[i], false);
	if (error == 0 && repair->tail)
		error = clear_tail(mending);
	return error;
}

int repair_carry_out(struct repair *repair)
{
	struct store *store = repair->one->store;
	struct mending mending = {
		.repair = repair,
		.store = store,
		.format = log_format_of(store),
		.end = repair->end_moves ? repair->end : repair->one->end_slots,
		.durable = repair->end_moves ? repair->end : repair->one->durable_slots,
		.memory = aligned_alloc(AREA_META_BYTES, (size_t)3 * AREA_META_BYTES + BLOCK_BYTES_MAX),
	};
	int error;

	if (mending.memory == NULL)
		return -ENOMEM;
	mending.bytes = mending.memory + (size_t)2 * AREA_META_BYTES;
	mending.block = mending.bytes + AREA_META_BYTES;
	repair->offset = 0;
	repair->writes = 0;
	error = store_flush_wait(store);
	if (error == 0)
		error = carry_out(&mending);
	free(mending.memory);
	if (error == 0 && repair->superblock && store->degraded) {
		repair->offset = 0;
		error = store->first_error; /* of the copy that could not be written; the other is as it should be */
	}
	return error == 0 && repair->no_memory ? -ENOMEM : error;
}
