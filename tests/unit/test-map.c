/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The exception map against a plain array of codes. */
#include "core/map.h"

#include <stdlib.h>

#include "tests/unit/memory-fails.h"
#include "tests/unit/unit.h"

#define BLOCKS 5000u

static uint64_t seed = 1;

static uint32_t any(uint32_t below)
{
	seed = seed * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)(seed >> 33) % below;
}

/* 0 absent, 1 zero, 2 lost, 3 + slot */
static uint64_t model[BLOCKS];

static uint64_t model_code(enum map_kind kind, uint32_t slot, uint32_t at)
{
	switch (kind) {
	case MAP_ABSENT:
		return 0;
	case MAP_ZERO:
		return 1;
	case MAP_LOST:
		return 2;
	case MAP_SLOT:
		return 3 + (uint64_t)slot + at;
	}
	return 0;
}

static bool is_equal(const struct map *map)
{
	uint64_t preserved = 0;

	for (uint32_t block = 0; block < BLOCKS;) {
		struct map_run run = map_find(map, block, 1 + any(BLOCKS - block));

		if (run.count == 0 || run.count > BLOCKS - block)
			return false;
		for (uint32_t i = 0; i < run.count; i++) {
			if (model[block + i] != model_code(run.kind, run.slot.index, i))
				return false;
			preserved += model[block + i] != 0;
		}
		block += (uint32_t)run.count;
	}
	return preserved == map_block_count(map);
}

static void model_add(uint32_t block, uint32_t count, enum map_kind kind, uint32_t slot)
{
	for (uint32_t i = 0; i < count; i++)
		if (model[block + i] == 0)
			model[block + i] = model_code(kind, slot, i);
}

static void random_maps(void)
{
	unsigned wrong = 0;

	for (unsigned round = 0; round < 60; round++) {
		struct map *map;
		uint32_t longest = round % 3 == 0 ? 1 : round % 3 == 1 ? 20 : 1500;

		memset(model, 0, sizeof(model));
		if (map_create(BLOCKS, &map) != 0) {
			wrong++;
			continue;
		}
		for (unsigned i = 0; i < (longest == 1 ? 6000u : 400u); i++) {
			uint32_t block = any(BLOCKS), count = 1 + any(longest), slot = any(100000);
			enum map_kind kind = any(4) == 0 ? (any(2) == 0 ? MAP_ZERO : MAP_LOST) : MAP_SLOT;

			if (count > BLOCKS - block)
				count = BLOCKS - block;
			if (map_add(map, block, count, kind, SLOT(slot)) != 0)
				wrong++;
			model_add(block, count, kind, slot);
			if (i % 50 == 0 && !is_equal(map))
				wrong++;
		}
		if (!is_equal(map))
			wrong++;
		if (map_forget_from(map, SLOT(50000)) != 0)
			wrong++;
		for (uint32_t block = 0; block < BLOCKS; block++)
			if (model[block] >= 3 + 50000)
				model[block] = 0;
		if (!is_equal(map))
			wrong++;
		map_destroy(map);
	}
	check("random maps agree with a plain array, also after forgetting slots", wrong == 0);
}

/* Adds runs, one of which (any one) fails for want of memory, and once more then; and forgets, likewise. */
static unsigned one_short_map(uint64_t after, bool *was_short)
{
	unsigned wrong = 0;
	struct map *map;
	int error;

	seed = 1;
	memset(model, 0, sizeof(model));
	memory_short(after);
	error = map_create(BLOCKS, &map);
	if (error != 0) {
		*was_short = memory_was_short;
		return error != -ENOMEM || !memory_was_short;
	}
	for (unsigned i = 0; i < 700; i++) {
		uint32_t block = any(BLOCKS), count = 1 + any(i % 100 == 0 ? 2500 : 3), slot = any(100000);

		if (count > BLOCKS - block)
			count = BLOCKS - block;
		error = map_add(map, block, count, MAP_SLOT, SLOT(slot));
		wrong += error != 0 && (error != -ENOMEM || !memory_was_short);
		if (error != 0)
			wrong += map_add(map, block, count, MAP_SLOT, SLOT(slot)) != 0;
		model_add(block, count, MAP_SLOT, slot);
		wrong += error != 0 && !is_equal(map);
	}
	wrong += !is_equal(map);
	error = map_forget_from(map, SLOT(80000));
	wrong += error != 0 && (error != -ENOMEM || !memory_was_short);
	if (error != 0)
		wrong += map_forget_from(map, SLOT(80000)) != 0;
	for (uint32_t block = 0; block < BLOCKS; block++)
		if (model[block] >= 3 + 80000)
			model[block] = 0;
	wrong += !is_equal(map);
	map_destroy(map);
	*was_short = memory_was_short;
	return wrong;
}

static void short_memory(void)
{
	int64_t in_use = memory_in_use;
	bool was_short = true;
	unsigned wrong = 0, runs = 0;

	for (; was_short; runs++)
		wrong += one_short_map(runs, &was_short);
	memory_short(MEMORY_ENOUGH);
	check("what fails for want of memory can be done again, whichever allocation it was", wrong == 0 && runs > 50);
	check("nothing is left of it", memory_in_use == in_use);
}

static void first_counts(void)
{
	struct map *map;

	if (map_create(10, &map) != 0)
		return;
	check("a block gets its first exception", map_add(map, 3, 1, MAP_SLOT, SLOT(7)) == 0);
	check("a second one for the same block is passed over",
	      map_add(map, 0, 10, MAP_ZERO, SLOT(0)) == 0 && map_find(map, 3, 5).kind == MAP_SLOT &&
		      map_find(map, 3, 5).slot.index == 7 && map_find(map, 3, 5).count == 1 &&
		      map_find(map, 0, 10).count == 3 && map_block_count(map) == 10);
	map_destroy(map);
}

static void large_origin(void)
{
	const block_t blocks = UINT64_C(1) << 32; /* 16 TiB of 4 KiB blocks */
	struct map *map;
	struct map_run run;
	int error = map_create(blocks, &map);

	check("a map for 16 TiB can be made", error == 0);
	if (error != 0)
		return;
	run = map_find(map, 0, blocks);
	check("an empty map is one absent run", run.kind == MAP_ABSENT && run.count == blocks);
	check("a zero run of 1 TiB costs next to nothing",
	      map_add(map, 12345, UINT64_C(1) << 28, MAP_ZERO, SLOT(0)) == 0 && map_memory_bytes(map) < 4096 &&
		      map_block_count(map) == UINT64_C(1) << 28);
	check("its neighbours are absent", map_find(map, 12344, 100).count == 1 &&
						   map_find(map, 12344, 1).kind == MAP_ABSENT &&
						   map_find(map, 12345 + (UINT64_C(1) << 28), 1).kind == MAP_ABSENT);
	map_destroy(map);
}

static void memory_bounds(void)
{
	const block_t blocks = UINT64_C(1) << 22;
	struct map *map;
	bool ok = true;

	if (map_create(blocks, &map) != 0)
		return;
	for (uint32_t i = 0; i < 1024 * 256; i++)
		ok = map_add(map, (i * UINT32_C(1021)) % (1024 * 256), 1, MAP_SLOT, SLOT(i)) == 0 && ok;
	check("dense: at most 4.2 bytes a block", ok && map_block_count(map) == 1024 * 256 &&
							  (double)map_memory_bytes(map) <= 4.2 * 1024 * 256);
	map_destroy(map);
	if (map_create(blocks, &map) != 0)
		return;
	for (uint32_t i = 0; i < 4096 * 16; i++)
		ok = map_add(map, (block_t)i * 64 + i % 7, 1, MAP_SLOT, SLOT(blocks - i * 3)) == 0 && ok;
	check("scattered: at most 32 bytes a block", ok && (double)map_memory_bytes(map) <= 32.0 * 4096 * 16);
	map_destroy(map);
}

int main(void)
{
	first_counts();
	random_maps();
	short_memory();
	large_origin();
	memory_bounds();
	return unit_done();
}
