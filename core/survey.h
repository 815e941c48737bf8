/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What lies in a store that was recovered, entry by entry, from its metadata as it is on disk. Reads only. */
#ifndef CORE_SURVEY_H
#define CORE_SURVEY_H

#include "core/store.h"
#include "format/area.h"

struct survey_counts {
	uint64_t data, zero_runs, zero_blocks, lost, voids, fingerprints;
	uint64_t missing; /* entries that neither metadata copy has */
};

struct survey_area {
	uint32_t area;
	struct survey_counts counts;
	bool header_valid[2];
	struct area_header headers[2]; /* of the metadata copies, where valid */
};

struct survey {
	/* The caller's; both may be NULL. In the log's order; an area comes after its entries. */
	void (*entry)(slot_t slot, const struct entry *entry, void *context);
	void (*area)(const struct survey_area *area, void *context);
	void *context;

	uint64_t areas; /* out */
	struct survey_counts total; /* out */
	uint32_t failed_area; /* out, on an error */
};

/* Up to the log's end as recovery found it. 0, or -ENOMEM, or the error of reading `failed_area`. */
__attribute__((warn_unused_result)) int survey_store(struct store *store, struct survey *survey);

/* Extents: neighbouring blocks in neighbouring slots, or neighbouring blocks that are all zero, or all lost. */
#define SURVEY_LENGTHS 45u
struct survey_extents {
	uint64_t extents, blocks, longest;
	uint64_t of_length[SURVEY_LENGTHS]; /* [n]: how many have 2^n to 2^(n+1)-1 blocks */
};

/* From the exception map (NULL: none). */
void survey_extents(const struct store *store, struct survey_extents *extents);

#endif
