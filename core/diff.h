/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The byte ranges that may differ between two points of a chain. See diff.c for the rules. */
#ifndef CORE_DIFF_H
#define CORE_DIFF_H

#include "core/offline.h"

struct diff_options {
	size_t from, to; /* points, in any order */
	bool exact;      /* read both, and leave out blocks that are equal */
	/* In order, apart from each other, within the origin's size; bytes. */
	void (*range)(uint64_t offset, uint64_t length, void *context);
	void *context;
};

/* Whether it can be told: -ENODATA, with *complaint, when a snapshot between the points is broken. */
__attribute__((warn_unused_result)) int diff_check(const struct offline *offline, const struct diff_options *options,
						   struct complaint *complaint);

/*
 * Calls range() for each; diff_check() has allowed it. Returns 0, or, with `exact`, -ENOMEM, a read error or -ESTALE
 * (the origin was changed meanwhile), with *complaint: then some ranges have been told.
 */
__attribute__((warn_unused_result)) int diff_run(struct offline *offline, const struct diff_options *options,
						 struct complaint *complaint);

#endif
