/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The parts of a store: where its log lies when other stores are joined to it to give it more room. Nobody else knows.
 *
 *   the store     part 1        part 2
 *   +----------+  +----------+  +----------+
 *   | 0 1 2 3  |  | 4 5 6    |  | (none)   |      areas, numbered through
 *   +----------+  +----------+  +----------+
 *                  first_area 4  stands by
 *
 * 1. The log is one: its slots and areas are numbered through, its seed is the store's, it has one mark and one end. Area a
 *    lies in the last part whose first area is not behind it, at first_area_offset + (a - the part's first) * area_bytes.
 * 2. A part that was joined stands by until there is no more room in those before it. Then the log goes on in it: the
 *    superblock says from which area on, durably, before anything is written there. That is never changed.
 * 3. When it is a write that finds no room, the slots from the log's end up to the new part's first are skipped: whatever
 *    the write left there counts for nothing.
 * 4. What an earlier use left in a part is never taken for the log's: an entry's checksum covers the store's UUID and the
 *    area's number, and no area ever lay in two places.
 * 5. Parts go with the store: it is wiped first, then they are. One whose store is gone, or does not name it, is nothing.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>

#include "core/chain.h"
#include "core/store.h"

uint32_t store_part_count(const struct store *store)
{
	return store->superblock.part_count + 1;
}

struct store *store_part(const struct store *store, uint32_t index)
{
	return index == 0 ? (struct store *)(uintptr_t)store : store->parts[index - 1];
}

static bool is_here(const struct store *store, uint32_t index)
{
	return index == 0 || store->parts[index - 1] != NULL;
}

uint32_t store_missing_part(const struct store *store)
{
	for (uint32_t i = 1; i < store_part_count(store); i++)
		if (!is_here(store, i))
			return i;
	return 0;
}

uint32_t store_part_first_area(const struct store *store, uint32_t index)
{
	return index == 0 ? 0 : store->superblock.parts[index - 1].first_area;
}

uint32_t store_last_part(const struct store *store)
{
	uint32_t last = store->superblock.part_count;

	while (last > 0 && store_part_first_area(store, last) == PART_AREA_NONE)
		last--;
	return last;
}

uint32_t store_area_part(const struct store *store, uint32_t area)
{
	uint32_t part = store_last_part(store);

	while (store_part_first_area(store, part) > area)
		part--;
	return part;
}

struct store_place store_area_place(const struct store *store, uint32_t area)
{
	uint32_t part = store_area_part(store, area);

	return (struct store_place){ store_part(store, part), part,
			       geometry_area_offset(&store->superblock.geometry,
						    area - store_part_first_area(store, part)) };
}

struct store_place store_meta_place(const struct store *store, uint32_t area, unsigned copy)
{
	struct store_place place = store_area_place(store, area);

	place.offset += geometry_meta_offset(&store->superblock.geometry, 0, copy) -
			geometry_area_offset(&store->superblock.geometry, 0);
	return place;
}

struct store_place store_slot_place(const struct store *store, slot_t slot)
{
	const struct geometry *geometry = &store->superblock.geometry;
	struct store_place place = store_area_place(store, geometry_slot_area(geometry, slot));

	place.offset += AREA_META_BYTES + (uint64_t)geometry_slot_in_area(geometry, slot) * geometry->block_bytes;
	return place;
}

uint32_t store_area_slots(const struct store *store, uint32_t area)
{
	const struct superblock *superblock = &store->superblock;
	uint64_t per_area = superblock->geometry.slots_per_area, first = area * per_area, end = first + per_area;

	for (uint32_t i = 0; i < superblock->part_count; i++) {
		uint64_t to = superblock->parts[i].first_area * per_area, from = to - superblock->parts[i].skipped_slots;

		if (from < end && to > first && from < to)
			end = from > first ? from : first;
	}
	return (uint32_t)(end - first);
}

bool store_slot_is_skipped(const struct store *store, uint64_t slot)
{
	uint32_t per_area = store->superblock.geometry.slots_per_area;

	return slot % per_area >= store_area_slots(store, (uint32_t)(slot / per_area));
}

int store_flush_wait(struct store *store)
{
	int error = 0;

	for (uint32_t i = 0; i < store_part_count(store) && error == 0; i++)
		if (is_here(store, i))
			error = disk_flush_wait(store->host, store_part(store, i)->disk);
	return error;
}

unsigned store_barriers_failed(const struct store *store)
{
	unsigned failed = 0;

	for (uint32_t i = 0; i < store_part_count(store); i++)
		if (is_here(store, i))
			failed += store_part(store, i)->barriers_failed;
	return failed;
}

/* ---- sizes ---- */

/* What its own superblock and disk say, whatever part it is. */
static uint64_t own_limit_bytes(const struct store *part)
{
	struct disk_info info;

	disk_get_info(part->disk, &info);
	if (!info.is_device)
		return part->superblock.limit_bytes;
	if (part->superblock.limit_bytes != 0 && part->superblock.limit_bytes < info.size_bytes)
		return part->superblock.limit_bytes;
	return info.size_bytes;
}

static uint64_t area_limit(const struct store *store)
{
	return SLOT_INDEX_MAX / store->superblock.geometry.slots_per_area;
}

/* How many areas it has room for by itself. */
static uint64_t own_areas(const struct store *store, const struct store *part)
{
	const struct geometry *geometry = &store->superblock.geometry;
	uint64_t limit = own_limit_bytes(part);

	return geometry_slots(geometry, limit == 0 ? UINT64_MAX : limit) / geometry->slots_per_area;
}

static uint64_t own_areas_there(const struct store *store, const struct store *part)
{
	const struct geometry *geometry = &store->superblock.geometry;
	uint64_t areas = own_areas(store, part), there;
	struct disk_info info;

	disk_get_info(part->disk, &info);
	if (info.is_device)
		return areas;
	/* a file may end within its last area */
	there = geometry_slots(geometry, info.size_bytes + geometry_area_bytes(geometry) - 1) / geometry->slots_per_area;
	return there < areas ? there : areas;
}

/* The areas of a part that is closed, behind which the log went on in the next one. */
static uint64_t closed_areas(const struct store *store, uint32_t index)
{
	return store_part_first_area(store, index + 1) - store_part_first_area(store, index);
}

uint64_t store_part_limit_bytes(const struct store *store, uint32_t index)
{
	const struct geometry *geometry = &store->superblock.geometry;

	if (index < store_last_part(store))
		return geometry->first_area_offset + closed_areas(store, index) * geometry_area_bytes(geometry);
	return is_here(store, index) ? own_limit_bytes(store_part(store, index)) : 0;
}

uint64_t store_limit_bytes(const struct store *store)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < store_part_count(store); i++) {
		uint64_t limit = store_part_limit_bytes(store, i);

		if (limit == 0)
			return 0;
		sum = limit < UINT64_MAX - sum ? sum + limit : UINT64_MAX;
	}
	return sum;
}

uint64_t store_part_used_bytes(const struct store *store, uint32_t index)
{
	const struct geometry *geometry = &store->superblock.geometry;
	uint64_t first = store_part_first_area(store, index);
	uint64_t areas = ((uint64_t)store_end(store).index + geometry->slots_per_area - 1) / geometry->slots_per_area;
	uint64_t used = areas > first ? areas - first : 0;

	if (index < store_last_part(store) && used > closed_areas(store, index))
		used = closed_areas(store, index);
	return geometry->first_area_offset + used * geometry_area_bytes(geometry);
}

uint64_t store_used_bytes(const struct store *store)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < store_part_count(store); i++)
		sum += store_part_used_bytes(store, i);
	return sum;
}

static uint64_t part_room_bytes(const struct store *store, uint32_t index)
{
	const struct store *part = store_part(store, index);
	uint64_t used = store_part_used_bytes(store, index), limit = store_part_limit_bytes(store, index);
	uint64_t room = limit == 0 ? UINT64_MAX : limit > used ? limit - used : 0, left = part->room_bytes;
	struct disk_info info;

	disk_get_info(part->disk, &info);
	if (left == UINT64_MAX || index < store_last_part(store))
		return room;
	if (info.size_bytes > used)
		left += info.size_bytes - used; /* it is allocated already */
	return left < room ? left : room;
}

uint64_t store_room_bytes(const struct store *store)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < store_part_count(store); i++) {
		uint64_t room = part_room_bytes(store, i);

		if (room > UINT64_MAX - sum)
			return UINT64_MAX;
		sum += room;
	}
	return sum;
}

uint64_t store_capacity_slots(const struct store *store)
{
	uint32_t last = store_last_part(store);
	uint64_t areas = store_part_first_area(store, last);

	if (is_here(store, last))
		areas += own_areas(store, store_part(store, last));
	if (areas > area_limit(store))
		areas = area_limit(store);
	return areas * store->superblock.geometry.slots_per_area;
}

uint64_t store_capacity_slots_later(const struct store *store)
{
	uint64_t areas = store_capacity_slots(store) / store->superblock.geometry.slots_per_area;

	for (uint32_t i = store_last_part(store) + 1; i < store_part_count(store); i++)
		if (is_here(store, i))
			areas += own_areas(store, store_part(store, i));
	if (areas > area_limit(store))
		areas = area_limit(store);
	return areas * store->superblock.geometry.slots_per_area;
}

/* Without those that are skipped all through: they need not be there. */
static uint64_t needed_areas(const struct store *store, uint32_t index)
{
	uint64_t areas = closed_areas(store, index);

	while (areas > 0 && store_area_slots(store, (uint32_t)(store_part_first_area(store, index) + areas - 1)) == 0)
		areas--;
	return areas;
}

uint64_t store_slots_there(const struct store *store)
{
	uint32_t last = store_last_part(store), per_area = store->superblock.geometry.slots_per_area;
	uint64_t areas = 0;

	for (uint32_t i = 0; i <= last; i++) {
		uint64_t there = is_here(store, i) ? own_areas_there(store, store_part(store, i)) : 0;

		areas = store_part_first_area(store, i) + there;
		if (i < last && there < needed_areas(store, i))
			break; /* what follows is of no use without */
	}
	if (areas > area_limit(store))
		areas = area_limit(store);
	return areas * per_area;
}

/* ---- putting them together ---- */

static bool is_part_of(const struct store *part, const struct store *store, uint32_t index)
{
	const struct superblock *one = &part->superblock, *superblock = &store->superblock;

	return one->part_index == index && uuid_equal(&one->volume_uuid, &superblock->volume_uuid) &&
	       one->geometry.block_bytes == superblock->geometry.block_bytes &&
	       one->geometry.slots_per_area == superblock->geometry.slots_per_area &&
	       one->origin_bytes == superblock->origin_bytes;
}

static int join_part(struct store **stores, size_t count, struct store *store, uint32_t index)
{
	const uuid128_t *wanted = &store->superblock.parts[index - 1].uuid;

	for (size_t i = 0; i < count; i++) {
		const struct superblock *one = stores[i] == NULL ? NULL : &stores[i]->superblock;

		if (one == NULL || one->role != ROLE_PART || !uuid_equal(&one->store_uuid, wanted) ||
		    !uuid_equal(&one->main_uuid, &store->superblock.store_uuid))
			continue;
		if (store->parts[index - 1] != NULL || !is_part_of(stores[i], store, index))
			return -EINVAL;
		store->parts[index - 1] = stores[i];
		stores[i] = NULL;
	}
	return store->parts[index - 1] != NULL ? 0 : -ENOENT;
}

int stores_join(struct store **stores, size_t count, struct store **main, uint32_t *part)
{
	int error = 0;

	for (size_t i = 0; i < count; i++) {
		struct store *store = stores[i];

		for (uint32_t index = 1; store != NULL && index < store_part_count(store); index++) {
			int failed = join_part(stores, count, store, index);

			if (failed == 0 || error != 0)
				continue;
			error = failed;
			*main = store;
			*part = index;
		}
		if (store == NULL || error != 0 || store->superblock.part_count == 0 || !store->superblock.clean ||
		    store->superblock.log_slots <= store_slots_there(store))
			continue;
		error = -EFBIG;
		*main = store;
		*part = 0;
	}
	return error;
}

void stores_join_text(int error, const struct store *main, uint32_t part, char text[static STORE_TEXT_BYTES])
{
	static const char *const reasons[] = { "which was not given", "which is given twice, or is another store's by what it says" };
	char uuid[UUID_TEXT_BYTES];

	if (error == -EFBIG) {
		(void)snprintf(text, STORE_TEXT_BYTES, "is shorter than its log: a part of it is missing");
		return;
	}
	uuid_text(&main->superblock.parts[part - 1].uuid, uuid);
	(void)snprintf(text, STORE_TEXT_BYTES, "lies in %u stores and needs part %u, %s, %s", store_part_count(main), part,
		       uuid, reasons[error == -ENOENT ? 0 : 1]);
}
