/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Areas, entries and checksums: a store's log. See area.c for the bytes and the rules, and rowsnap-format(5).
 *
 * Pure functions: no I/O, no allocation, no globals. Errors are negative errno values.
 */
#ifndef FORMAT_AREA_H
#define FORMAT_AREA_H

#include <stddef.h>

#include "format/types.h"

#define AREA_META_BYTES 4096u
#define AREA_HEADER_BYTES 32u
#define ENTRY_BYTES 16u
#define AREA_SLOTS_MAX 254u /* (AREA_META_BYTES - AREA_HEADER_BYTES) / ENTRY_BYTES */

/* Where things are. All offsets are bytes from the start of the store. */
struct geometry {
	uint32_t block_bytes;       /* power of two, BLOCK_BYTES_MIN to BLOCK_BYTES_MAX */
	uint32_t slots_per_area;    /* 1 to AREA_SLOTS_MAX */
	uint64_t first_area_offset; /* FIRST_AREA_OFFSET in version 1 */
};

bool geometry_is_valid(const struct geometry *geometry);

/* 2 * AREA_META_BYTES + slots_per_area * block_bytes. */
uint64_t geometry_area_bytes(const struct geometry *geometry);
uint64_t geometry_area_offset(const struct geometry *geometry, uint32_t area);

/* Of the metadata block: copy 0 opens the area, copy 1 closes it. */
uint64_t geometry_meta_offset(const struct geometry *geometry, uint32_t area, unsigned copy);
uint64_t geometry_slot_offset(const struct geometry *geometry, slot_t slot);

uint32_t geometry_slot_area(const struct geometry *geometry, slot_t slot);
uint32_t geometry_slot_in_area(const struct geometry *geometry, slot_t slot);

/* How many slots a store of `store_bytes` has: whole areas only, and at most SLOT_INDEX_MAX. */
uint64_t geometry_slots(const struct geometry *geometry, uint64_t store_bytes);

/* The seed of every checksum in a store: it makes what an earlier use left behind invalid. */
uint64_t checksum_seed(const uuid128_t *store_uuid);

/* The checksum of a slot's data: the low 32 bits of XXH3-64. */
uint32_t data_checksum(uint64_t seed, const void *data, size_t bytes);

struct area_header {
	uint32_t area;          /* this area's number */
	uint64_t write_count;   /* grows with every write of the area's metadata: the newer copy has the larger */
	uint64_t durable_slots; /* the log's slots [0, n) were known durable when this was written */
	uint16_t entry_count;   /* entries [0, n) are used */
};

/* Writes the header into meta[0..31]; entries are left alone. */
void area_header_encode(uint8_t meta[static AREA_META_BYTES], uint64_t seed, const struct area_header *header);

/*
 * Returns 0; -ENODATA when there is no header here (other magic); -EBADMSG when its checksum does not hold, or it is
 * not area `area`'s, or entry_count exceeds slots_per_area or durable_slots SLOT_INDEX_MAX.
 */
__attribute__((warn_unused_result)) int area_header_decode(const uint8_t meta[static AREA_META_BYTES], uint64_t seed,
							   uint32_t area, uint32_t slots_per_area,
							   struct area_header *header);

enum entry_type {
	ENTRY_DATA = 1,        /* the slot holds the block's old content */
	ENTRY_ZERO = 2,        /* `count` blocks from `block` on were zero; the slot is left empty */
	ENTRY_LOST = 3,        /* the block's old content could not be read */
	ENTRY_VOID = 4,        /* the slot could not be written and holds nothing; block is 0 */
	ENTRY_FINGERPRINT = 5, /* the slot holds the origin's coming fingerprint; block is 0 */
};

struct entry {
	enum entry_type type;
	block_t block;
	uint32_t count;         /* blocks: ENTRY_ZERO 1 or more; ENTRY_DATA and ENTRY_LOST 1; else 0 */
	uint32_t data_checksum; /* ENTRY_DATA and ENTRY_FINGERPRINT; else 0 */
};

/* Writes entry `index` (below AREA_SLOTS_MAX) of area `area` into its place in meta. */
void entry_encode(uint8_t meta[static AREA_META_BYTES], uint64_t seed, uint32_t area, uint32_t index,
		  const struct entry *entry);

/*
 * Reads entry `index` of area `area`. Returns 0; -ENODATA when its 16 bytes are all zero; -EBADMSG when its checksum
 * does not hold; -EINVAL when the checksum holds but the type is unknown, a field that must be 0 is not, or the blocks
 * named do not lie within [0, block_count).
 */
__attribute__((warn_unused_result)) int entry_decode(const uint8_t meta[static AREA_META_BYTES], uint64_t seed,
						     uint32_t area, uint32_t index, block_t block_count,
						     struct entry *entry);

const char *entry_type_text(enum entry_type type);

#endif
