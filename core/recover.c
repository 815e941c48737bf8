/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Reading a store's log back.
 *
 * The log is scanned in chunks of areas, with the next chunk already read: its headers tell whether what is missing
 * here lies before the durable mark. Of each area copy 0 of the metadata is read, and copy 1 when copy 0 is not whole,
 * or when its header is needed, for it may tell the mark. An entry counts from the newer copy (larger write count)
 * where it holds there, else from the other.
 *
 *   clean or sealed   the log ends at log_slots exactly
 *   otherwise         before the durable mark (the largest that the superblock or any header tells) nothing is cut: an
 *                     entry that neither copy restores loses metadata, which breaks the snapshot. Past the mark the
 *                     log ends at the first entry that does not hold, or whose data does not; a read error there is an
 *                     error. It ends where the store does in any case; with the mark behind that, metadata is lost.
 *
 * With `writable`, a log that was not clean ends with a barrier (what was read may be in a cache only), and the metadata of
 * every area that may have a single good copy (unsettled_area()) is written anew to the copy not relied upon: nothing
 * that a commit given up has left there lies under the next. The mark in these is the one that was found: until all of
 * them are durable, the next recovery has to begin there too. (For a clean one its owner does the like by
 * log_settle_start().)
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "core/log.h"
#include "core/metadata.h"

#define CHUNK_AREAS 64u
#define DATA_BYTES (1u << 20)

struct scan;

struct meta_read {
	struct scan *scan;
	struct meta_copy *copy;
	struct disk_io io;
};

struct area_scan {
	struct area_copies both;
	struct meta_read reads[2];
	bool has_second;
};

struct chunk {
	uint32_t first, count;
	uint8_t *memory;
	struct area_scan areas[CHUNK_AREAS];
};

struct scan {
	struct store *store;
	struct recovery *recovery;
	struct log_format format;
	bool bounded;      /* the end is known: `end` */
	uint64_t end;      /* slots */
	uint64_t durable;  /* the durable mark, as far as it is known */
	uint32_t area_limit;
	struct chunk chunks[2];
	uint8_t *data;     /* DATA_BYTES or one block, whichever is more */
	uint64_t data_first, data_count; /* the slots that lie in `data` */
	unsigned pending;
};

static void meta_read_done(struct disk_io *io, int error)
{
	struct meta_read *read = container_of(io, struct meta_read, io);

	read->copy->error = error;
	read->scan->pending--;
}

static void meta_read(struct scan *scan, struct chunk *chunk, uint32_t at, unsigned which)
{
	struct area_scan *area = &chunk->areas[at];
	struct meta_read *read = &area->reads[which];
	uint8_t *bytes = chunk->memory + ((size_t)at * 2 + which) * AREA_META_BYTES;
	struct store_place place = store_meta_place(scan->store, area->both.area, which);

	area->both.copies[which].bytes = bytes;
	*read = (struct meta_read){
		.scan = scan,
		.copy = &area->both.copies[which],
		.io = {
			.disk = place.part->disk,
			.op = DISK_READ,
			.offset = place.offset,
			.length = AREA_META_BYTES,
			.single = { .iov_base = bytes, .iov_len = AREA_META_BYTES },
			.done = meta_read_done,
		},
	};
	scan->pending++;
	disk_submit(&read->io);
}

static void scan_wait(struct scan *scan)
{
	while (scan->pending > 0)
		disk_host_wait(scan->store->host);
}

static void meta_decode(struct scan *scan, struct area_scan *area, unsigned which)
{
	const struct meta_copy *copy = &area->both.copies[which];

	area_copy_decode(&scan->format, &area->both, which);
	if (copy->valid && copy->header.durable_slots > scan->durable && !scan->bounded)
		scan->durable = copy->header.durable_slots;
}

/* Whether copy 0 alone has all entries that the area should have, so that copy 1 need not be read. */
static bool first_copy_is_whole(const struct scan *scan, const struct area_copies *both)
{
	uint32_t per_area = scan->format.geometry.slots_per_area, wanted = store_area_slots(scan->store, both->area);

	if (!both->copies[0].valid)
		return false;
	if (scan->bounded && scan->end < (uint64_t)both->area * per_area + wanted)
		wanted = (uint32_t)(scan->end - (uint64_t)both->area * per_area);
	return area_copy_count(&scan->format, both, 0, wanted) == wanted;
}

static void chunk_read(struct scan *scan, struct chunk *chunk, uint32_t first)
{
	uint64_t limit = scan->area_limit;

	if (scan->bounded)
		limit = (scan->end + scan->format.geometry.slots_per_area - 1) / scan->format.geometry.slots_per_area;
	chunk->first = first;
	chunk->count = first >= limit ? 0 : (uint32_t)(limit - first < CHUNK_AREAS ? limit - first : CHUNK_AREAS);
	memset(chunk->areas, 0, sizeof(chunk->areas));
	for (uint32_t at = 0; at < chunk->count; at++) {
		chunk->areas[at].both.area = first + at;
		meta_read(scan, chunk, at, 0);
	}
	scan_wait(scan);
	for (uint32_t at = 0; at < chunk->count; at++) {
		struct area_scan *area = &chunk->areas[at];

		scan->recovery->areas_read++;
		meta_decode(scan, area, 0);
		area->has_second = !scan->bounded || !first_copy_is_whole(scan, &area->both);
		if (area->has_second)
			meta_read(scan, chunk, at, 1);
	}
	scan_wait(scan);
	for (uint32_t at = 0; at < chunk->count; at++) {
		struct area_scan *area = &chunk->areas[at];

		if (!area->has_second)
			continue;
		meta_decode(scan, area, 1);
		area_copies_choose(&area->both);
	}
}

static bool area_entry(const struct scan *scan, const struct chunk *chunk, uint32_t at, uint32_t index,
		       struct entry *entry)
{
	return area_copies_entry(&scan->format, &chunk->areas[at].both, index, entry);
}

/* Reads the data of `slot` (and of those behind it, in the same area, in the same read). */
static int slot_read(struct scan *scan, uint64_t slot, const uint8_t **data)
{
	uint32_t block_bytes = scan->format.geometry.block_bytes, per_area = scan->format.geometry.slots_per_area;
	uint64_t count = per_area - slot % per_area;
	struct store_place place = store_slot_place(scan->store, SLOT(slot));
	int error;

	if (slot < scan->data_first || slot >= scan->data_first + scan->data_count) {
		if (count > DATA_BYTES / block_bytes)
			count = DATA_BYTES / block_bytes;
		scan->data_count = 0;
		error = disk_read_wait(scan->store->host, place.part->disk, scan->data, (size_t)count * block_bytes,
				       place.offset);
		if (error != 0)
			return error;
		scan->data_first = slot;
		scan->data_count = count;
	}
	*data = scan->data + (size_t)(slot - scan->data_first) * block_bytes;
	return 0;
}

/* Whether the data of an entry holds: 1, 0, or a read error. */
static int entry_data_holds(struct scan *scan, uint64_t slot, const struct entry *entry, const uint8_t **data)
{
	int error;

	*data = NULL;
	if (entry->type != ENTRY_DATA && entry->type != ENTRY_FINGERPRINT)
		return 1;
	error = slot_read(scan, slot, data);
	if (error != 0)
		return error;
	return data_checksum(scan->store->seed, *data, scan->format.geometry.block_bytes) == entry->data_checksum;
}

static int entry_apply(struct scan *scan, uint64_t slot, const struct entry *entry)
{
	const struct recovery *recovery = scan->recovery;
	struct map *map = scan->store->map;
	struct fingerprint fingerprint;
	const uint8_t *data;
	int holds;

	switch (entry->type) {
	case ENTRY_DATA:
		return map_add(map, entry->block, 1, MAP_SLOT, SLOT(slot));
	case ENTRY_ZERO:
		return map_add(map, entry->block, entry->count, MAP_ZERO, SLOT(slot));
	case ENTRY_LOST:
		return map_add(map, entry->block, entry->count, MAP_LOST, SLOT(slot));
	case ENTRY_VOID:
		return 0;
	case ENTRY_FINGERPRINT:
		if (recovery->fingerprint == NULL || slot < scan->store->superblock.durable_slots)
			return 0;
		holds = entry_data_holds(scan, slot, entry, &data);
		if (holds < 0)
			return holds;
		if (holds > 0) {
			fingerprint_decode(data, &fingerprint);
			recovery->fingerprint(&fingerprint, recovery->context);
		}
		return 0;
	}
	return 0;
}

/* The entries of one chunk. Returns 1 to go on, 0 at the log's end (scan->end), or an error. */
static int chunk_apply(struct scan *scan, const struct chunk *chunk)
{
	uint32_t per_area = scan->format.geometry.slots_per_area;

	for (uint64_t i = 0; i < (uint64_t)chunk->count * per_area; i++) {
		uint64_t slot = (uint64_t)chunk->first * per_area + i;
		const struct area_scan *area = &chunk->areas[i / per_area];
		const uint8_t *data;
		struct entry entry;
		int result = 1;

		if (scan->bounded && slot == scan->end)
			return 0;
		if (store_slot_is_skipped(scan->store, slot))
			continue;
		if (!area_entry(scan, chunk, (uint32_t)(i / per_area), (uint32_t)(i % per_area), &entry)) {
			if (slot < scan->durable) {
				scan->recovery->lost_metadata = true;
				continue;
			}
			scan->end = slot;
			if (area->both.copies[0].error != 0)
				return area->both.copies[0].error;
			return area->both.copies[1].error;
		}
		if (slot >= scan->durable)
			result = entry_data_holds(scan, slot, &entry, &data);
		if (result <= 0) {
			scan->end = slot;
			return result;
		}
		result = entry_apply(scan, slot, &entry);
		if (result != 0)
			return result;
	}
	if (chunk->count == CHUNK_AREAS)
		return 1;
	if (!scan->bounded)
		scan->end = ((uint64_t)chunk->first + chunk->count) * per_area;
	return 0;
}

/* Counts what holds past the end and is cut off, as far as the chunks at hand show it. */
static void count_cut(struct scan *scan)
{
	uint32_t per_area = scan->format.geometry.slots_per_area;
	struct entry entry;

	for (unsigned c = 0; c < 2; c++)
		for (uint32_t i = 0; i < scan->chunks[c].count * per_area; i++)
			if ((uint64_t)scan->chunks[c].first * per_area + i >= scan->end &&
			    !store_slot_is_skipped(scan->store, (uint64_t)scan->chunks[c].first * per_area + i) &&
			    area_entry(scan, &scan->chunks[c], i / per_area, i % per_area, &entry))
				scan->recovery->slots_cut++;
}

static struct chunk *chunk_of(struct scan *scan, uint32_t area)
{
	for (unsigned c = 0; c < 2; c++)
		if (area >= scan->chunks[c].first && area - scan->chunks[c].first < scan->chunks[c].count)
			return &scan->chunks[c];
	return NULL;
}

/*
 * The union of both copies for the area's first `count` entries. *relied is the copy that has more of those before the
 * durable mark, or else more of all: the other one may be written anew.
 */
static void area_union(const struct scan *scan, const struct chunk *chunk, uint32_t area, uint32_t count,
		       uint8_t *bytes, unsigned *relied)
{
	const struct area_copies *both = &chunk->areas[area - chunk->first].both;
	uint64_t first = (uint64_t)area * scan->format.geometry.slots_per_area;
	unsigned choice = both->first_choice;
	uint32_t durable = count, has[2], has_all[2];

	/* One that is full keeps its write count: unsettled_area() looks at that, also after a crash meanwhile. */
	area_copies_unite(&scan->format, both, count, scan->durable,
			  count < scan->format.geometry.slots_per_area, bytes);
	if (scan->durable < first + count)
		durable = scan->durable > first ? (uint32_t)(scan->durable - first) : 0;
	for (unsigned c = 0; c < 2; c++) {
		has[c] = area_copy_count(&scan->format, both, c, durable);
		has_all[c] = area_copy_count(&scan->format, both, c, count);
	}
	if (has[choice] == has[1 - choice])
		*relied = has_all[choice] >= has_all[1 - choice] ? choice : 1 - choice;
	else
		*relied = has[choice] > has[1 - choice] ? choice : 1 - choice;
}

/* Where neither copy can be read there is nothing to write. */
static int area_rewrite(struct scan *scan, uint32_t area, uint32_t count, uint8_t *bytes, unsigned *copy)
{
	struct chunk *chunk = chunk_of(scan, area);
	const struct meta_copy *copies;
	struct store_place place;

	if (chunk == NULL)
		return 0;
	copies = chunk->areas[area - chunk->first].both.copies;
	area_union(scan, chunk, area, count, bytes, copy);
	if (copies[0].error != 0 && copies[1].error != 0)
		return 0;
	*copy = 1 - *copy;
	place = store_meta_place(scan->store, area, *copy);
	return disk_write_wait(scan->store->host, place.part->disk, bytes, AREA_META_BYTES, place.offset);
}

/* The chunk that the log ends in is at hand, the one before it is not any more: an area in that is read again. */
static void chunk_have(struct scan *scan, uint32_t area)
{
	struct chunk *last = chunk_of(scan, (uint32_t)(scan->end / scan->format.geometry.slots_per_area));

	if (chunk_of(scan, area) == NULL)
		chunk_read(scan, last == &scan->chunks[0] ? &scan->chunks[1] : &scan->chunks[0], area);
}

static bool was_written_at_once(struct scan *scan, uint32_t area)
{
	const struct meta_copy *copies;
	const struct chunk *chunk;

	chunk_have(scan, area);
	chunk = chunk_of(scan, area);
	if (chunk == NULL)
		return false;
	copies = chunk->areas[area - chunk->first].both.copies;
	return (copies[0].valid || copies[1].valid) && (!copies[0].valid || copies[0].header.write_count == 1) &&
	       (!copies[1].valid || copies[1].header.write_count == 1);
}

/*
 * The first area that may have a single good copy. The mark is where the commit before the last one ended. What that one
 * left half is the first area it wrote; those behind it were new, and got full in this one commit.
 */
static uint32_t unsettled_area(struct scan *scan)
{
	const struct geometry *geometry = &scan->format.geometry;
	uint64_t commit_max = log_commit_slots_max(geometry);
	uint32_t area = (uint32_t)(scan->durable / geometry->slots_per_area);

	area = area > 0 ? area - 1 : 0;
	while (area > 0 && scan->end >= scan->durable && scan->durable - (uint64_t)area * geometry->slots_per_area < commit_max &&
	       was_written_at_once(scan, area))
		area--;
	return area;
}

/* Every area that may have a single good copy, up to the log's end. */
static int make_appendable(struct scan *scan, uint8_t *bytes)
{
	struct store *store = scan->store;
	uint32_t per_area = scan->format.geometry.slots_per_area;
	uint32_t last = (uint32_t)(scan->end / per_area), used = (uint32_t)(scan->end % per_area);
	unsigned copy = 0;
	int error = store_flush_wait(store);

	/* One with skipped slots was left because it could not be written, and no commit comes there any more. */
	for (uint32_t area = scan->recovery->unsettled_area; error == 0 && area < last; area++) {
		if (store_area_slots(store, area) < per_area)
			continue;
		chunk_have(scan, area);
		error = area_rewrite(scan, area, per_area, bytes, &copy);
	}
	if (error == 0 && used > 0) {
		error = area_rewrite(scan, last, used, bytes, &copy);
		memcpy(store->open_meta, bytes, AREA_META_BYTES);
		store->open_copy = (int)copy;
	}
	if (error == 0)
		error = store_flush_wait(store);
	return error;
}

static void keep_open_meta(struct scan *scan)
{
	uint32_t per_area = scan->format.geometry.slots_per_area;
	uint32_t area = (uint32_t)(scan->end / per_area), used = (uint32_t)(scan->end % per_area);
	const struct chunk *chunk = chunk_of(scan, area);
	unsigned relied;

	scan->store->open_copy = -1;
	if (used == 0 || chunk == NULL)
		return;
	area_union(scan, chunk, area, used, scan->store->open_meta, &relied);
	scan->store->open_copy = (int)relied;
}

static int scan_run(struct scan *scan)
{
	struct chunk *now = &scan->chunks[0], *next = &scan->chunks[1], *swap;
	int result;

	chunk_read(scan, now, 0);
	do {
		chunk_read(scan, next, now->first + CHUNK_AREAS);
		result = chunk_apply(scan, now);
		if (result != 1)
			return result;
		swap = now;
		now = next;
		next = swap;
	} while (now->count > 0);
	if (!scan->bounded)
		scan->end = (uint64_t)now->first * scan->format.geometry.slots_per_area;
	return 0;
}

static int scan_store(struct scan *scan, uint8_t *bytes)
{
	struct store *store = scan->store;
	int error = scan_run(scan);

	if (error != 0) {
		scan->recovery->unsettled_area = unsettled_area(scan);
		return error;
	}
	/* What was durable is not there: the file or device has become shorter. What is left ends here. */
	if (scan->end < scan->durable)
		scan->recovery->lost_metadata = true;
	store->end = SLOT(scan->end);
	if (!scan->bounded)
		count_cut(scan);
	keep_open_meta(scan);
	scan->recovery->unsettled_area = unsettled_area(scan);
	if (scan->recovery->writable && !store->superblock.clean)
		scan->recovery->append_error = make_appendable(scan, bytes);
	return 0;
}

int store_recover(struct store *store, struct recovery *recovery)
{
	const struct superblock *superblock = &store->superblock;
	size_t chunk_bytes = (size_t)CHUNK_AREAS * 2 * AREA_META_BYTES;
	struct scan *scan = calloc(1, sizeof(*scan));
	uint8_t *memory = aligned_alloc(AREA_META_BYTES, 2 * chunk_bytes + DATA_BYTES + AREA_META_BYTES);
	int error = -ENOMEM;

	assert(store->map == NULL && store->log == NULL);
	recovery->lost_metadata = false;
	recovery->append_error = 0;
	recovery->slots_cut = 0;
	recovery->areas_read = 0;
	recovery->durable_slots = 0;
	recovery->end_slots = 0;
	recovery->unsettled_area = 0;
	if (scan == NULL || memory == NULL)
		goto out;
	error = map_create(superblock_block_count(superblock), &store->map);
	if (error != 0)
		goto out;
	scan->store = store;
	scan->recovery = recovery;
	scan->format = log_format_of(store);
	scan->bounded = superblock->clean;
	scan->durable = superblock->clean ? superblock->log_slots : superblock->durable_slots;
	scan->end = superblock->clean ? superblock->log_slots : 0;
	scan->area_limit = (uint32_t)(store_slots_there(store) / superblock->geometry.slots_per_area);
	scan->chunks[0].memory = memory;
	scan->chunks[1].memory = memory + chunk_bytes;
	scan->data = memory + 2 * chunk_bytes;
	error = scan_store(scan, memory + 2 * chunk_bytes + DATA_BYTES);
	recovery->durable_slots = scan->durable;
	recovery->end_slots = scan->end;
	if (error != 0) {
		map_destroy(store->map);
		store->map = NULL;
	}
out:
	free(scan);
	free(memory);
	return error;
}
