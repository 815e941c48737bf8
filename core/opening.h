/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The steps from paths to a chain that is known and verified, shared by start-up (open.c) and the offline tools
 * (offline.c). See opening.c for the order and the rules. Nothing is written before opening_read() has returned 0,
 * except, unless `offline`, that logs that will take exceptions are made ready for it.
 */
#ifndef CORE_OPENING_H
#define CORE_OPENING_H

#include "core/engine.h"

#define OPENING_STORES_MAX ((size_t)CHAIN_STORES_MAX * 2)

struct opening {
	/* The caller's. */
	struct volume *volume; /* from volume_create() */
	struct complaint *complaint;
	const struct volume_options *options;
	bool read_only; /* origin and stores are opened for reading, next to other readers */
	bool offline;   /* recovery is in memory only; no store given or remembered is an error */
	bool merging;   /* the origin may be half merged: for who goes on with that */

	/* What was found. Of `stores` NULL are those that the chain has taken over. They have their parts. */
	struct store *stores[OPENING_STORES_MAX];
	size_t store_count;
	/* Parts that none of them has. */
	struct loose_part {
		struct store *part;
		bool left_over; /* its store is gone; else it was not joined in the end */
	} loose[OPENING_STORES_MAX];
	size_t loose_count;
	struct chain_entry entries[CHAIN_STORES_MAX]; /* context: the struct store */
	struct chain_verdict verdict;

	/* private */
	bool matched[FINGERPRINT_SECTORS]; /* the origin has there what the stores accept */
	bool from_record;
	bool origin_changed;
	uuid128_t wiped[CHAIN_STORES_MAX]; /* stores of the record that are not there any more, at their path */
	size_t wiped_count;
};

/*
 * Opens the origin and the stores (none: those of the volume's record), puts them in order, reads their logs back,
 * adopts broken marks and compares the fingerprint. Returns 0, or a negative errno; then the complaint is set, but
 * for -ENOMEM.
 */
__attribute__((warn_unused_result)) int opening_read(struct opening *opening, const char *origin_path,
						     const char *const *store_paths, size_t store_count);
/* The index of the entry that takes exceptions from now on. */
size_t opening_active_index(const struct opening *opening);
/* A log that can be read but not go on: the newest store counts as one that failed while serving, by the policy. */
__attribute__((warn_unused_result)) int opening_unappendable(struct opening *opening, struct store *store, bool active,
							     int error);
/* The record of the volume, or (nil) of the origin's path, becomes volume->record. 0 or record_find()'s errors. */
int opening_find_record(struct opening *opening, const uuid128_t *volume_uuid);
/* The members become volume->chain, and what they have in common the volume's. 0 or -ENOMEM. */
__attribute__((warn_unused_result)) int opening_take_chain(struct opening *opening);
/* Whether the next start has anything to mend, or to recover. */
bool opening_is_untidy(const struct opening *opening);
/* Adds the exports of the origin and of every snapshot that is not being dropped. */
void opening_add_exports(struct volume *volume);
/* Closes the stores that the chain has not taken over. */
void opening_end(struct opening *opening);

#endif
