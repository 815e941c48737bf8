/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A snapshot's whole image, written to a file, a device or standard output. See replay.c for the rules. */
#ifndef CORE_REPLAY_H
#define CORE_REPLAY_H

#include "core/offline.h"

enum replay_left {
	REPLAY_UNTOUCHED,  /* nothing was written, or nothing is left of it */
	REPLAY_INCOMPLETE, /* the output is there and not whole */
	REPLAY_WHOLE,
};

struct replay_options {
	size_t point;
	const char *output; /* a path; NULL: standard output */
	bool force;         /* a file that is not empty may be overwritten */
	bool skip_lost;     /* what cannot be read is zeroed, and told to skipped() */
	void (*skipped)(const struct offline_fault *fault, void *context); /* in order, joined */
	void (*progress)(uint64_t done, uint64_t total, void *context);    /* bytes */
	bool (*is_cancelled)(void *context);
	void *context;
};

/* Whether the output is the origin or one of the stores, whatever its path: -EINVAL, with *complaint. */
__attribute__((warn_unused_result)) int replay_check_output(const struct offline *offline, const char *output,
							     struct complaint *complaint);

/*
 * Returns 0 when the output is whole and durable, but for what skipped() was told; or a negative errno with *complaint,
 * where *left tells what is left in the output. A file that it made and did not finish is removed. What a device holds,
 * and whether it is in use, must have been looked at before.
 */
__attribute__((warn_unused_result)) int replay_run(struct offline *offline, const struct replay_options *options,
						   enum replay_left *left, struct complaint *complaint);

#endif
