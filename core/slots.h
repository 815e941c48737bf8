/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Reading preserved blocks: no byte of a slot is given out unless its entry and its data's checksum hold (rule 10).
 */
#ifndef CORE_SLOTS_H
#define CORE_SLOTS_H

#include "core/store.h"
#include "format/area.h"

/* Metadata blocks lately used, of all stores of a volume: 2,048 of them, 8 MiB. */
struct slot_cache;

__attribute__((warn_unused_result)) int slot_cache_create(struct slot_cache **cache);
void slot_cache_destroy(struct slot_cache *cache);
/* Forgets a store that is to be closed. */
void slot_cache_forget(struct slot_cache *cache, const struct store *store);

/*
 * Reads `count` consecutive slots, all within one area, which hold the blocks from `block` on. The store is pinned meanwhile.
 * done() gets 0, or a read error, or -EIO when a checksum does not hold (logged; checksum_errors counts).
 */
struct slot_read {
	/* the caller's */
	struct slot_cache *cache;
	struct store *store;
	slot_t slot;
	uint32_t count;
	block_t block;
	uint8_t *buffer; /* count blocks, page-aligned */
	void (*done)(struct slot_read *read, int error);
	void *context;
	uint64_t *checksum_errors;

	/* private */
	uint8_t *meta; /* both copies of an area's metadata: set up once by slot_read_init() */
	unsigned meta_copy;
	struct disk_io io;
};
__attribute__((warn_unused_result)) int slot_read_init(struct slot_read *read);
void slot_read_fini(struct slot_read *read);
void slot_read_start(struct slot_read *read);

#endif
