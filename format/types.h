/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The numbers that name places. A block is a place on the origin; a slot is a place in a store's log. A slot is a
 * structure, so that one cannot be passed for the other.
 */
#ifndef FORMAT_TYPES_H
#define FORMAT_TYPES_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/* The number of a block on the origin: byte offset / block size. */
typedef uint64_t block_t;

/* The number of a slot in a store's log, counted from the first slot of the first area. */
typedef struct slot {
	uint32_t index;
} slot_t;

#define SLOT(n) ((slot_t){ .index = (uint32_t)(n) })

/* Slot numbers at or above this one are never allocated; the exception map uses them for exceptions without data. */
#define SLOT_INDEX_MAX UINT32_C(0xfffffff0)

typedef struct uuid {
	uint8_t bytes[16];
} uuid128_t;

static inline bool uuid_is_nil(const uuid128_t *uuid)
{
	static const uuid128_t nil;

	return memcmp(uuid, &nil, sizeof(nil)) == 0;
}

static inline bool uuid_equal(const uuid128_t *a, const uuid128_t *b)
{
	return memcmp(a, b, sizeof(*a)) == 0;
}

#define BLOCK_BYTES_MIN UINT32_C(4096)
#define BLOCK_BYTES_MAX UINT32_C(65536)
#define ORIGIN_BYTES_MAX (UINT64_C(16) << 40)

/* The longest snapshot or volume name, without the terminating NUL. */
#define NAME_LENGTH_MAX 63

#endif
