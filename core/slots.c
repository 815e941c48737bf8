/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A slot read: data first, then its verification against the area's metadata block, which is, in this order, in the log's
 * memory (the open area), in the cache, or on disk (copy 0, then copy 1 if the entries wanted do not hold in the first; of
 * a torn write some may hold in the one and some in the other only).
 */
#include "core/slots.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "core/log.h"
#include "io/log.h"

#define CACHE_SETS 512u
#define CACHE_WAYS 4u

struct cache_way {
	const struct store *store; /* NULL: unused */
	uint32_t area;
	uint64_t used;
};

struct slot_cache {
	uint64_t clock;
	struct cache_way ways[CACHE_SETS][CACHE_WAYS];
	uint8_t *memory;
};

int slot_cache_create(struct slot_cache **out)
{
	struct slot_cache *cache = calloc(1, sizeof(*cache));

	if (cache == NULL)
		return -ENOMEM;
	cache->memory = aligned_alloc(AREA_META_BYTES, (size_t)CACHE_SETS * CACHE_WAYS * AREA_META_BYTES);
	if (cache->memory == NULL) {
		free(cache);
		return -ENOMEM;
	}
	*out = cache;
	return 0;
}

void slot_cache_destroy(struct slot_cache *cache)
{
	if (cache == NULL)
		return;
	free(cache->memory);
	free(cache);
}

void slot_cache_forget(struct slot_cache *cache, const struct store *store)
{
	for (unsigned set = 0; set < CACHE_SETS; set++)
		for (unsigned way = 0; way < CACHE_WAYS; way++)
			if (cache->ways[set][way].store == store)
				cache->ways[set][way].store = NULL;
}

static unsigned cache_set(const struct store *store, uint32_t area)
{
	return (unsigned)((store->seed >> 16) + area) % CACHE_SETS;
}

static uint8_t *cache_bytes(struct slot_cache *cache, unsigned set, unsigned way)
{
	return cache->memory + ((size_t)set * CACHE_WAYS + way) * AREA_META_BYTES;
}

static const uint8_t *cache_find(struct slot_cache *cache, const struct store *store, uint32_t area)
{
	unsigned set = cache_set(store, area);

	for (unsigned way = 0; way < CACHE_WAYS; way++) {
		struct cache_way *at = &cache->ways[set][way];

		if (at->store == store && at->area == area) {
			at->used = ++cache->clock;
			return cache_bytes(cache, set, way);
		}
	}
	return NULL;
}

static void cache_insert(struct slot_cache *cache, const struct store *store, uint32_t area, const uint8_t *bytes)
{
	unsigned set = cache_set(store, area), oldest = 0;

	for (unsigned way = 0; way < CACHE_WAYS; way++) {
		const struct cache_way *at = &cache->ways[set][way];

		if (at->store == NULL || (at->store == store && at->area == area)) {
			oldest = way;
			break;
		}
		if (at->used < cache->ways[set][oldest].used)
			oldest = way;
	}
	cache->ways[set][oldest] = (struct cache_way){ store, area, ++cache->clock };
	memcpy(cache_bytes(cache, set, oldest), bytes, AREA_META_BYTES);
}

int slot_read_init(struct slot_read *read)
{
	read->meta = aligned_alloc(AREA_META_BYTES, (size_t)2 * AREA_META_BYTES);
	return read->meta == NULL ? -ENOMEM : 0;
}

void slot_read_fini(struct slot_read *read)
{
	free(read->meta);
}

static void read_end(struct slot_read *read, int error)
{
	store_unpin(read->store);
	read->done(read, error);
}

/* Whether the entry of the slot at `at` of those read holds in `meta`, and names the block expected. */
static bool find_entry(const struct slot_read *read, const uint8_t *meta, uint32_t at, struct entry *entry)
{
	const struct superblock *superblock = &read->store->superblock;
	uint32_t area = geometry_slot_area(&superblock->geometry, read->slot);
	uint32_t index = geometry_slot_in_area(&superblock->geometry, read->slot) + at;

	return entry_decode(meta, read->store->seed, area, index, superblock_block_count(superblock), entry) == 0 &&
	       entry->type == ENTRY_DATA && entry->block == read->block + at;
}

/*
 * Whether every slot's entry is in `meta`, or in `other` (may be NULL); then *bad is the first with wrong data, or count.
 */
static bool verify(const struct slot_read *read, const uint8_t *meta, const uint8_t *other, uint32_t *bad)
{
	uint32_t block_bytes = read->store->superblock.geometry.block_bytes;
	struct entry entry;

	*bad = read->count;
	for (uint32_t i = 0; i < read->count; i++) {
		if (!find_entry(read, meta, i, &entry) && (other == NULL || !find_entry(read, other, i, &entry)))
			return false;
		if (*bad == read->count && data_checksum(read->store->seed, read->buffer + (size_t)i * block_bytes,
							 block_bytes) != entry.data_checksum)
			*bad = i;
	}
	return true;
}

static void report_bad(const struct slot_read *read, uint32_t at, const char *what)
{
	if (read->checksum_errors != NULL)
		(*read->checksum_errors)++;
	trouble_tell(&read->store->trouble, read->store->host, "store %s: slot %u (block %llu): %s", read->store->path,
		     read->slot.index + at, (unsigned long long)read->block + at, what);
}

static void finish_verified(struct slot_read *read, uint32_t bad)
{
	if (bad == read->count) {
		read_end(read, 0);
		return;
	}
	report_bad(read, bad, "the data does not match its checksum");
	read_end(read, -EIO);
}

static void meta_read_done(struct disk_io *io, int error);

static void meta_read(struct slot_read *read)
{
	const struct geometry *geometry = &read->store->superblock.geometry;
	struct store_place place =
		store_meta_place(read->store, geometry_slot_area(geometry, read->slot), read->meta_copy);

	read->io = (struct disk_io){
		.disk = place.part->disk,
		.op = DISK_READ,
		.offset = place.offset,
		.length = AREA_META_BYTES,
		.single = { .iov_base = read->meta + (size_t)read->meta_copy * AREA_META_BYTES,
			    .iov_len = AREA_META_BYTES },
		.done = meta_read_done,
		.context = read,
	};
	disk_submit(&read->io);
}

static void meta_read_done(struct disk_io *io, int error)
{
	struct slot_read *read = io->context;
	uint32_t area = geometry_slot_area(&read->store->superblock.geometry, read->slot);
	const uint8_t *meta = read->meta + (size_t)read->meta_copy * AREA_META_BYTES;
	uint32_t bad;

	if (error == 0 && verify(read, meta, NULL, &bad)) {
		cache_insert(read->cache, read->store, area, meta);
		finish_verified(read, bad);
		return;
	}
	if (read->meta_copy == 0) {
		if (error != 0)
			memset(read->meta, 0, AREA_META_BYTES); /* a copy that cannot be read has no entries */
		read->meta_copy = 1;
		meta_read(read);
		return;
	}
	if (error == 0 && verify(read, meta, read->meta, &bad)) {
		finish_verified(read, bad);
		return;
	}
	report_bad(read, 0, "its entry cannot be read in either place");
	read_end(read, error != 0 ? error : -EIO);
}

static void data_read_done(struct disk_io *io, int error)
{
	struct slot_read *read = io->context;
	uint32_t area = geometry_slot_area(&read->store->superblock.geometry, read->slot);
	const uint8_t *meta = NULL;
	uint32_t bad;

	if (error != 0) {
		trouble_tell(&read->store->trouble, read->store->host,
			     "store %s: slot %u (block %llu) cannot be read: %s", read->store->path, read->slot.index,
			     (unsigned long long)read->block, strerror(-error));
		read_end(read, error);
		return;
	}
	if (read->store->log != NULL)
		meta = log_find_meta(read->store->log, area);
	if (meta == NULL)
		meta = cache_find(read->cache, read->store, area);
	if (meta != NULL && verify(read, meta, NULL, &bad)) {
		finish_verified(read, bad);
		return;
	}
	read->meta_copy = 0;
	meta_read(read);
}

void slot_read_start(struct slot_read *read)
{
	const struct geometry *geometry = &read->store->superblock.geometry;
	size_t bytes = (size_t)read->count * geometry->block_bytes;
	struct store_place place = store_slot_place(read->store, read->slot);

	assert(geometry_slot_in_area(geometry, read->slot) + read->count <= geometry->slots_per_area);
	store_pin(read->store);
	read->io = (struct disk_io){
		.disk = place.part->disk,
		.op = DISK_READ,
		.offset = place.offset,
		.length = bytes,
		.single = { .iov_base = read->buffer, .iov_len = bytes },
		.done = data_read_done,
		.context = read,
	};
	disk_submit(&read->io);
}
