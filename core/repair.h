/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Mending one store by what check found. First the findings are noted and make a plan; then the plan is carried out.
 * No data is invented, and no block number is guessed: what cannot be had again is marked, so that reading it is an
 * error. See repair.c for the order of the writes.
 */
#ifndef CORE_REPAIR_H
#define CORE_REPAIR_H

#include "core/check.h"

/* The metadata of one area: which of its slots' entries change. All else is taken from the two copies. */
struct repair_area {
	uint32_t area;
	uint8_t lost[(AREA_SLOTS_MAX + 7) / 8];  /* if the data is wrong */
	uint8_t voids[(AREA_SLOTS_MAX + 7) / 8]; /* if there is none, or the fingerprint is wrong */
};

/* Areas that one repair takes up; the rest is for the next one. */
#define REPAIR_AREAS_MAX 65536u

struct repair {
	struct check_store *one; /* the caller's; its store is open for writing */

	/* the plan */
	bool superblock;  /* to be written */
	bool broken;      /* the mark */
	bool end_moves;   /* the log is to end at `end`, cleanly */
	bool predecessor; /* the link */
	bool tail;
	uint64_t end;     /* slots */
	struct repair_area *areas;
	size_t area_count, area_room;
	bool too_many, no_memory;
	bool contradicted; /* by another store given: which is wrong is not known, and nothing is planned */
	bool unknown_end; /* the log goes on behind what can be read: nothing is written there */

	/* the outcome */
	uint64_t writes;  /* that succeeded; a superblock's two count as one */
	uint64_t offset;  /* with an error: where in the store */
};

/* Takes a finding into the plan, if it is of this store and can be mended. */
void repair_note(struct repair *repair, const struct check_finding *finding);
/* Whether there is something to carry out: also when memory was short for the plan, which carrying it out then says. */
bool repair_is_planned(const struct repair *repair);
/*
 * Carries the plan out. Returns 0 or a negative errno, and then what was done so far holds, and the rest can be done by
 * another repair. -ENOMEM: also when the plan is not complete.
 */
__attribute__((warn_unused_result)) int repair_carry_out(struct repair *repair);
void repair_end(struct repair *repair); /* frees the plan */

#endif
