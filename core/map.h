/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The exception map of one store: block -> slot. See map.c for its shape.
 *
 * A block once in the map keeps its exception: map_add() fills only blocks that are absent, so of several exceptions of
 * one block the first in log order counts.
 */
#ifndef CORE_MAP_H
#define CORE_MAP_H

#include <stddef.h>

#include "format/types.h"

struct map;

enum map_kind {
	MAP_ABSENT, /* no exception */
	MAP_SLOT,   /* the content is in a slot */
	MAP_ZERO,   /* the content was zeroes */
	MAP_LOST,   /* the content could not be read when it was to be preserved */
};

/* `count` blocks of one kind; for MAP_SLOT in consecutive slots from `slot` on. */
struct map_run {
	enum map_kind kind;
	slot_t slot;
	uint64_t count;
};

/* For blocks [0, block_count). Costs 8 bytes of address space for each 1,024 blocks, used when touched. 0 or -ENOMEM. */
__attribute__((warn_unused_result)) int map_create(block_t block_count, struct map **map);
void map_destroy(struct map *map); /* NULL is harmless */

/* The run that begins at `block`, at most `limit` (above 0) blocks of it. It may be cut short at a region's end. */
struct map_run map_find(const struct map *map, block_t block, uint64_t limit);

/* Gives the absent ones of `count` blocks an exception of `kind` (not MAP_ABSENT). 0, or -ENOMEM with a part done. */
__attribute__((warn_unused_result)) int map_add(struct map *map, block_t block, uint64_t count, enum map_kind kind,
						slot_t slot);

/* Makes every block whose exception lies in a slot at or past `end` absent again. 0, or -ENOMEM with a part done. */
__attribute__((warn_unused_result)) int map_forget_from(struct map *map, slot_t end);

uint64_t map_block_count(const struct map *map);   /* blocks that have an exception */
size_t map_memory_bytes(const struct map *map);    /* beyond the root's untouched pages */

#endif
