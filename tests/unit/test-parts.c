/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A log that turns to the next part in the middle of a commit: where its slots are then, and what lies there. */
#include "core/engine.h"
#include "core/log.h"
#include "core/map.h"

#include "tests/unit/memory-disk.h"
#include "tests/unit/unit.h"

#define PER_AREA 4u
#define BLOCKS 64u
#define BLOCK_BYTES 4096u
#define ITEMS 2u

static const struct geometry geometry = { BLOCK_BYTES, PER_AREA, FIRST_AREA_OFFSET };
static struct disk_host *host;
static struct log_counters counters;
static _Alignas(BLOCK_BYTES) uint8_t data[PER_AREA][BLOCK_BYTES];
static int committed;
static bool stuck;

static void log_stuck(struct log *log, int error, void *context)
{
	(void)context;
	stuck = true;
	log_abort(log, error);
}

static const struct log_ops ops = { log_stuck, NULL, &counters };

static void ticket_done(struct log_ticket *ticket, int error)
{
	(void)ticket;
	committed = error;
}

static struct store *open_one(const char *path, unsigned number)
{
	struct store *store = NULL;

	if (store_open(host, path, 0, &store) != 0)
		abort();
	store->superblock = (struct superblock){ .role = number == 0 ? ROLE_SNAPSHOT : ROLE_PART,
						 .state = number == 0 ? STATE_ACTIVE : STATE_JOINED,
						 .origin_bytes = BLOCKS * BLOCK_BYTES,
						 .geometry = geometry };
	store->superblock.store_uuid.bytes[0] = (uint8_t)(number + 1);
	store->superblock.name[0] = 's';
	store->seed = checksum_seed(&store->superblock.store_uuid);
	store->open_copy = -1;
	return store;
}

static struct store *open_two(void)
{
	struct store *store = open_one("main", 0);

	store->parts[0] = open_one("part", 1);
	store->superblock.part_count = 1;
	store->superblock.parts[0] = (struct part){ .uuid = store->parts[0]->superblock.store_uuid,
						    .first_area = PART_AREA_NONE };
	if (map_create(BLOCKS, &store->map) != 0 || log_create(store, &ops) != 0)
		abort();
	return store;
}

/* Blocks `first` to `first + count`, in one commit. */
static void commit(struct store *store, unsigned first, unsigned count)
{
	struct log_item items[PER_AREA];
	struct log_ticket ticket = { .done = ticket_done };

	committed = 1;
	for (unsigned i = 0; i < count; i++) {
		memset(data[i], (int)(first + i + 1), BLOCK_BYTES);
		items[i] = (struct log_item){ .type = ENTRY_DATA, .block = first + i, .count = 1, .data = data[i] };
	}
	log_append(store->log, items, count, &ticket);
	log_push(store->log);
	for (unsigned i = 0; i < 1000 && (committed > 0 || !log_can_close(store->log)); i++) {
		disk_host_wait(host);
		log_push(store->log);
	}
}

/* Whether the slot that the map has for the block holds it, where parts.c says that it lies. */
static bool holds(const struct store *store, unsigned block)
{
	struct map_run run = map_find(store->map, block, 1);
	uint8_t found[BLOCK_BYTES];
	struct store_place place;

	if (run.kind != MAP_SLOT)
		return false;
	place = store_slot_place(store, run.slot);
	return disk_read_wait(host, place.part->disk, found, sizeof(found), place.offset) == 0 && found[0] == block + 1 &&
	       memcmp(found, found + 1, sizeof(found) - 1) == 0;
}

/* The commit's first slot cannot be written, and what follows for it finds no room. */
static void test_void_then_no_room(unsigned before)
{
	struct store *store = open_two();
	uint64_t at = geometry_slot_offset(&geometry, SLOT(before)), after = at + ITEMS * BLOCK_BYTES;
	struct memory_file *file = store->disk->file;

	if (before > 0)
		commit(store, 0, before);
	file->unwritable_from = at;
	file->unwritable_to = at + BLOCK_BYTES;
	file->no_room_from = after;
	file->no_room_to = after + BLOCK_BYTES;
	commit(store, before, ITEMS);
	check("a commit that found no room goes on in the next part", committed == 0 && !stuck && store_last_part(store) == 1);
	check("all of it is there", holds(store, before) && holds(store, before + 1));
	check("and what was before it", before == 0 || holds(store, 0));
	check("what is skipped is told", store_area_slots(store, 0) == (before > 0 ? before : PER_AREA) &&
						 !store_slot_is_skipped(store, (uint64_t)store_part_first_area(store, 1) * PER_AREA));
	log_close(store->log);
	store_close(store);
	file->unwritable_to = file->no_room_to = 0;
}

static void test_large_limits(void)
{
	struct store *store = open_two();

	store->parts[1] = open_one("more", 2);
	store->superblock.parts[1] = store->superblock.parts[0];
	store->superblock.part_count = 2;
	for (uint32_t i = 0; i < store_part_count(store); i++)
		store_part(store, i)->superblock.limit_bytes = INT64_MAX;
	check("limits whose sum is too large a number add up to the largest", store_limit_bytes(store) == UINT64_MAX);
	check("it is not full for that", store_percent(store) == 0);
	store->parts[1]->superblock.limit_bytes = 0;
	check("a part without a limit: there is none", store_limit_bytes(store) == 0);
	log_close(store->log);
	store_close(store);
}

int main(void)
{
	if (disk_host_create(8, &host) != 0)
		return 1;
	(void)snprintf(memory_files[0].name, sizeof(memory_files[0].name), "main");
	(void)snprintf(memory_files[1].name, sizeof(memory_files[1].name), "part");
	(void)snprintf(memory_files[2].name, sizeof(memory_files[2].name), "more");
	test_void_then_no_room(0);
	test_void_then_no_room(1);
	test_large_limits();
	disk_host_destroy(host);
	return unit_done();
}
