/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * An area's metadata as it is on disk: two copies, either of which may be older, torn, damaged or unreadable. What
 * one says of an entry is said here only. Pure: the bytes are read by others, who keep them while they are looked at.
 *
 * The header protects none of the entries: one that holds counts even under a header that does not. An entry is taken
 * from the first choice (the copy with a valid header and the larger write count) where it holds there, else from the
 * other.
 */
#ifndef CORE_METADATA_H
#define CORE_METADATA_H

#include "core/store.h"
#include "format/area.h"

/* What is needed to understand a store's entries. */
struct log_format {
	uint64_t seed;
	struct geometry geometry;
	block_t block_count; /* the origin's */
};

struct meta_copy {
	const uint8_t *bytes;      /* AREA_META_BYTES; NULL: not read */
	int error;                 /* the read's */
	bool valid;                /* the header holds */
	struct area_header header; /* when valid */
};

struct area_copies {
	uint32_t area;
	struct meta_copy copies[2];
	unsigned first_choice;
};

struct log_format log_format_of(const struct store *store);

/* Looks at the header of copy `which`, whose bytes and error are set. */
void area_copy_decode(const struct log_format *format, struct area_copies *both, unsigned which);
/* Both that are to be decoded are: says which is the first choice. */
void area_copies_choose(struct area_copies *both);

/* Whether entry `index` holds in copy `which`, or in either. */
bool area_copy_entry(const struct log_format *format, const struct area_copies *both, unsigned which, uint32_t index,
		     struct entry *entry);
bool area_copies_entry(const struct log_format *format, const struct area_copies *both, uint32_t index,
		       struct entry *entry);
/* How many of the area's first `wanted` entries hold in copy `which` by itself. */
uint32_t area_copy_count(const struct log_format *format, const struct area_copies *both, unsigned which,
			 uint32_t wanted);

/*
 * Encodes into `bytes` the first `count` entries as far as either copy has them, zeroes behind them, and a header
 * with the next write count, or, without `is_next`, with that of the newer copy.
 */
void area_copies_unite(const struct log_format *format, const struct area_copies *both, uint32_t count,
		       uint64_t durable_slots, bool is_next, uint8_t bytes[static AREA_META_BYTES]);

#endif
