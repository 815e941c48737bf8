/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The exception map: two levels. The root has one word for each region of 1,024 blocks:
 *
 *   0                        no exception in the region
 *   ...1  (low bit set)      one extent, in the word itself
 *   pointer                  a sorted array of extents (struct region)
 *   pointer | 2              dense: 1,024 codes of 4 bytes, by block
 *
 * An extent is a run of blocks in consecutive slots, or of blocks without data (zero, lost). A region's array grows by
 * doubling up to the size of the dense form and is then turned into it. So an absent region costs its word, a lone or
 * sequential exception nothing more, a scattered one 8 to 16 bytes, and a dense region 4 bytes a block.
 *
 * A "code" is what one block maps to: 0 absent, slot + 1, or one of the two codes above every slot.
 */
#include "core/map.h"

#include <assert.h>
#include <errno.h>
#include <malloc.h>
#include <stdlib.h>
#include <sys/mman.h>

#define REGION_BLOCKS 1024u
#define CODE_ABSENT 0u
#define CODE_ZERO UINT32_MAX
#define CODE_LOST (UINT32_MAX - 1)

#define WORD_IS_EXTENT 1u
#define WORD_IS_DENSE 2u

struct extent {
	uint16_t first; /* block within the region */
	uint16_t count; /* 1 to REGION_BLOCKS */
	uint32_t code;  /* of the first block */
};

struct region {
	uint32_t used, size;
	struct extent extents[];
};

#define REGION_EXTENTS_MAX (REGION_BLOCKS * sizeof(uint32_t) / sizeof(struct extent))

struct map {
	block_t block_count;
	uint64_t preserved;
	size_t memory_bytes;
	size_t root_count;
	uint64_t *root;
};

int map_create(block_t block_count, struct map **out)
{
	struct map *map = calloc(1, sizeof(*map));
	void *root;

	if (map == NULL)
		return -ENOMEM;
	map->block_count = block_count;
	map->root_count = (size_t)((block_count + REGION_BLOCKS - 1) / REGION_BLOCKS);
	/* mmap, not calloc: the root of a 16 TiB origin is 32 MiB of which only touched pages are to cost memory. */
	root = mmap(NULL, (map->root_count + 1) * sizeof(uint64_t), PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (root == MAP_FAILED) {
		free(map);
		return -ENOMEM;
	}
	map->root = root;
	*out = map;
	return 0;
}

static void *word_pointer(uint64_t word)
{
	return (void *)(uintptr_t)(word & ~UINT64_C(3));
}

static bool word_is_dense(uint64_t word)
{
	return (word & (WORD_IS_EXTENT | WORD_IS_DENSE)) == WORD_IS_DENSE;
}

static uint64_t word_from_extent(struct extent extent)
{
	return WORD_IS_EXTENT | (uint64_t)extent.first << 1 | (uint64_t)extent.count << 12 | (uint64_t)extent.code << 32;
}

static struct extent word_extent(uint64_t word)
{
	return (struct extent){
		.first = (uint16_t)(word >> 1 & 0x3ff),
		.count = (uint16_t)(word >> 12 & 0x7ff),
		.code = (uint32_t)(word >> 32),
	};
}

void map_destroy(struct map *map)
{
	if (map == NULL)
		return;
	for (size_t i = 0; i < map->root_count; i++)
		if (map->root[i] != 0 && (map->root[i] & WORD_IS_EXTENT) == 0)
			free(word_pointer(map->root[i]));
	(void)munmap(map->root, (map->root_count + 1) * sizeof(uint64_t));
	free(map);
}

static uint32_t code_advance(uint32_t code, uint32_t blocks)
{
	return code == CODE_ABSENT || code >= CODE_LOST ? code : code + blocks;
}

static uint32_t code_from(enum map_kind kind, slot_t slot)
{
	switch (kind) {
	case MAP_ZERO:
		return CODE_ZERO;
	case MAP_LOST:
		return CODE_LOST;
	case MAP_SLOT:
		assert(slot.index < SLOT_INDEX_MAX);
		return slot.index + 1;
	case MAP_ABSENT:
		break;
	}
	assert(false && "an exception has a kind");
	return CODE_ABSENT;
}

static struct map_run run_from_code(uint32_t code, uint64_t count)
{
	switch (code) {
	case CODE_ABSENT:
		return (struct map_run){ .kind = MAP_ABSENT, .count = count };
	case CODE_ZERO:
		return (struct map_run){ .kind = MAP_ZERO, .count = count };
	case CODE_LOST:
		return (struct map_run){ .kind = MAP_LOST, .count = count };
	default:
		return (struct map_run){ .kind = MAP_SLOT, .slot = SLOT(code - 1), .count = count };
	}
}

/* The index of the first extent that ends past `place`. */
static uint32_t region_search(const struct region *region, uint32_t place)
{
	uint32_t low = 0, high = region->used;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2;
		const struct extent *extent = &region->extents[middle];

		if ((uint32_t)extent->first + extent->count > place)
			high = middle;
		else
			low = middle + 1;
	}
	return low;
}

/* What `place` maps to, and for how many blocks this goes on, given the first extent that ends past it (or none). */
static uint32_t extent_find(const struct extent *extent, uint32_t place, uint32_t *count)
{
	if (extent == NULL) {
		*count = REGION_BLOCKS - place;
		return CODE_ABSENT;
	}
	if (extent->first > place) {
		*count = extent->first - place;
		return CODE_ABSENT;
	}
	*count = (uint32_t)extent->first + extent->count - place;
	return code_advance(extent->code, place - extent->first);
}

static uint32_t region_find(uint64_t word, uint32_t place, uint32_t *count)
{
	const uint32_t *codes;

	if (word == 0)
		return extent_find(NULL, place, count);
	if ((word & WORD_IS_EXTENT) != 0) {
		struct extent extent = word_extent(word);
		bool passed = (uint32_t)extent.first + extent.count <= place;

		return extent_find(passed ? NULL : &extent, place, count);
	}
	if (!word_is_dense(word)) {
		const struct region *region = word_pointer(word);
		uint32_t at = region_search(region, place);

		return extent_find(at < region->used ? &region->extents[at] : NULL, place, count);
	}
	codes = word_pointer(word);
	*count = 1;
	while (place + *count < REGION_BLOCKS && codes[place + *count] == code_advance(codes[place], *count))
		(*count)++;
	return codes[place];
}

struct map_run map_find(const struct map *map, block_t block, uint64_t limit)
{
	size_t at = (size_t)(block / REGION_BLOCKS);
	uint32_t count, code;
	uint64_t total;

	assert(block < map->block_count && limit > 0);
	code = region_find(map->root[at], (uint32_t)(block % REGION_BLOCKS), &count);
	total = count;
	if (code == CODE_ABSENT && block % REGION_BLOCKS + count == REGION_BLOCKS) {
		/* absent regions are skipped whole */
		for (at++; at < map->root_count && map->root[at] == 0 && total < limit; at++)
			total += REGION_BLOCKS;
	}
	return run_from_code(code, total < limit ? total : limit);
}

static void *map_allocate(struct map *map, size_t bytes)
{
	void *memory = malloc(bytes);

	if (memory != NULL)
		map->memory_bytes += malloc_usable_size(memory) + sizeof(size_t);
	return memory;
}

static void map_release(struct map *map, void *memory)
{
	map->memory_bytes -= malloc_usable_size(memory) + sizeof(size_t);
	free(memory);
}

static struct region *region_new(struct map *map, uint32_t size)
{
	struct region *region = map_allocate(map, sizeof(*region) + (size_t)size * sizeof(struct extent));

	if (region != NULL) {
		region->used = 0;
		region->size = size;
	}
	return region;
}

static void dense_fill(uint32_t *codes, struct extent extent)
{
	for (uint32_t i = 0; i < extent.count; i++)
		codes[extent.first + i] = code_advance(extent.code, i);
}

static int region_make_dense(struct map *map, uint64_t *word)
{
	struct region *region = word_pointer(*word);
	uint32_t *codes = map_allocate(map, REGION_BLOCKS * sizeof(uint32_t));

	if (codes == NULL)
		return -ENOMEM;
	memset(codes, 0, REGION_BLOCKS * sizeof(uint32_t));
	for (uint32_t i = 0; i < region->used; i++)
		dense_fill(codes, region->extents[i]);
	map_release(map, region);
	*word = (uint64_t)(uintptr_t)codes | WORD_IS_DENSE;
	return 0;
}

static int region_grow(struct map *map, uint64_t *word)
{
	struct region *old = word_pointer(*word), *new;

	if ((size_t)old->size * 2 > REGION_EXTENTS_MAX)
		return region_make_dense(map, word);
	new = region_new(map, old->size * 2);
	if (new == NULL)
		return -ENOMEM;
	memcpy(new->extents, old->extents, old->used * sizeof(struct extent));
	new->used = old->used;
	map_release(map, old);
	*word = (uint64_t)(uintptr_t)new;
	return 0;
}

static bool extents_join(const struct extent *a, const struct extent *b)
{
	return (uint32_t)a->first + a->count == b->first && code_advance(a->code, a->count) == b->code;
}

/* Puts an extent whose blocks are all absent into a region that has room for it. */
static void region_insert(struct region *region, struct extent extent)
{
	uint32_t at = region_search(region, extent.first);
	struct extent *extents = region->extents;

	if (at > 0 && extents_join(&extents[at - 1], &extent)) {
		at--;
		extents[at].count = (uint16_t)(extents[at].count + extent.count);
	} else if (at < region->used && extents_join(&extent, &extents[at])) {
		extents[at].first = extent.first;
		extents[at].code = extent.code;
		extents[at].count = (uint16_t)(extents[at].count + extent.count);
	} else {
		memmove(&extents[at + 1], &extents[at], (region->used - at) * sizeof(*extents));
		extents[at] = extent;
		region->used++;
	}
	if (at + 1 < region->used && extents_join(&extents[at], &extents[at + 1])) {
		extents[at].count = (uint16_t)(extents[at].count + extents[at + 1].count);
		region->used--;
		memmove(&extents[at + 1], &extents[at + 2], (region->used - at - 1) * sizeof(*extents));
	}
}

/* Adds an extent whose blocks are all absent, changing the region's form where it must. */
static int region_add(struct map *map, uint64_t *word, struct extent extent)
{
	struct region *region;
	struct extent old;
	int error;

	if (*word == 0) {
		*word = word_from_extent(extent);
		return 0;
	}
	if ((*word & WORD_IS_EXTENT) != 0) {
		old = word_extent(*word);
		if (extents_join(&old, &extent)) {
			old.count = (uint16_t)(old.count + extent.count);
			*word = word_from_extent(old);
			return 0;
		}
		region = region_new(map, 2);
		if (region == NULL)
			return -ENOMEM;
		region_insert(region, old);
		*word = (uint64_t)(uintptr_t)region;
	}
	if (!word_is_dense(*word)) {
		region = word_pointer(*word);
		if (region->used == region->size) {
			error = region_grow(map, word);
			if (error != 0)
				return error;
		}
	}
	if (word_is_dense(*word))
		dense_fill(word_pointer(*word), extent);
	else
		region_insert(word_pointer(*word), extent);
	return 0;
}

int map_add(struct map *map, block_t block, uint64_t count, enum map_kind kind, slot_t slot)
{
	uint32_t code = code_from(kind, slot);

	assert(count <= map->block_count && block <= map->block_count - count);
	while (count > 0) {
		uint64_t *word = &map->root[block / REGION_BLOCKS];
		uint32_t place = (uint32_t)(block % REGION_BLOCKS);
		uint32_t blocks = REGION_BLOCKS - place;
		/* no further than this region: else each one would look at all the absent ones behind it */
		struct map_run run = map_find(map, block, count < blocks ? count : blocks);

		blocks = (uint32_t)run.count;
		if (run.kind == MAP_ABSENT) {
			struct extent extent = { (uint16_t)place, (uint16_t)blocks, code };
			int error = region_add(map, word, extent);

			if (error != 0)
				return error;
			map->preserved += blocks;
		}
		block += blocks;
		count -= blocks;
		code = code_advance(code, blocks);
	}
	return 0;
}

static int region_forget_from(struct map *map, uint64_t *word, slot_t end)
{
	uint64_t old = *word, new = 0;
	uint64_t preserved = map->preserved;
	uint32_t place = 0, count;

	while (place < REGION_BLOCKS) {
		uint32_t code = region_find(old, place, &count);
		uint32_t kept = count;
		int error;

		if (code != CODE_ABSENT)
			preserved -= count;
		if (code != CODE_ABSENT && code < CODE_LOST && code - 1 + count > end.index)
			kept = code - 1 < end.index ? end.index - (code - 1) : 0;
		if (code != CODE_ABSENT && kept > 0) {
			error = region_add(map, &new, (struct extent){ (uint16_t)place, (uint16_t)kept, code });
			if (error != 0) {
				if (new != 0 && (new & WORD_IS_EXTENT) == 0)
					map_release(map, word_pointer(new));
				return error;
			}
			preserved += kept;
		}
		place += count;
	}
	if (old != 0 && (old & WORD_IS_EXTENT) == 0)
		map_release(map, word_pointer(old));
	map->preserved = preserved;
	*word = new;
	return 0;
}

int map_forget_from(struct map *map, slot_t end)
{
	for (size_t i = 0; i < map->root_count; i++) {
		int error = map->root[i] == 0 ? 0 : region_forget_from(map, &map->root[i], end);

		if (error != 0)
			return error;
	}
	return 0;
}

uint64_t map_block_count(const struct map *map)
{
	return map->preserved;
}

size_t map_memory_bytes(const struct map *map)
{
	return map->memory_bytes + sizeof(*map);
}
