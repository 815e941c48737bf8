/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Putting the stores of a volume in order by their superblocks' links, and saying exactly what is wrong when that cannot
 * be done. Pure: superblocks in, a verdict out. See chain.c for the rules.
 */
#ifndef CORE_CHAIN_H
#define CORE_CHAIN_H

#include <stddef.h>

#include "format/superblock.h"

#define CHAIN_STORES_MAX 256u
#define CHAIN_TEXT_BYTES 768u

enum chain_place {
	CHAIN_MEMBER,   /* in the chain */
	CHAIN_LEFTOVER, /* a drop of it, or a merge past it, was carried out but for the wiping: wipe it */
	CHAIN_UNBORN,   /* prepared for a snapshot whose creation was never committed: make it empty again */
};

struct chain_entry {
	const struct superblock *superblock;
	const char *path; /* for the texts */
	void *context;    /* the caller's */
	enum chain_place place;
};

struct chain_verdict {
	size_t count;              /* members, the first `count` of the entries, oldest to newest */
	uuid128_t absent_older;    /* the oldest member's predecessor, which was not given; nil: none */
	bool reopen_newest;        /* the newest is sealed, or prepared: it must be made active */
	bool fold_pending;         /* entry fold_into takes up the exceptions of entry fold_into + 1 */
	size_t fold_into;
	bool merging;              /* the origin is half put back to the snapshot of entry merge_target */
	size_t merge_target;
	uuid128_t missing;         /* with -ENOENT: the store that must be found */
	uuid128_t stray;           /* with -EINVAL: nothing is wrong but that this store is given; nil: something is */
	char what[CHAIN_TEXT_BYTES]; /* on error: the store at fault ... */
	char why[CHAIN_TEXT_BYTES];  /* ... and what is wrong with it */
};

/*
 * Sorts `entries` (members first, in order) and fills in their places. Returns 0; -ENOENT when a newer store is missing;
 * -EINVAL for any other contradiction: then what and why are set.
 */
__attribute__((warn_unused_result)) int chain_order(struct chain_entry *entries, size_t count,
						    struct chain_verdict *verdict);

/* A UUID as text: 36 characters and a NUL. */
#define UUID_TEXT_BYTES 37u
void uuid_text(const uuid128_t *uuid, char text[static UUID_TEXT_BYTES]);
/* Returns 0 or -EINVAL. */
__attribute__((warn_unused_result)) int uuid_parse_text(const char *text, uuid128_t *uuid);

#endif
