/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Putting the origin back to a snapshot, in place and offline. See merge.c for the order of work, and why a crash
 * anywhere loses nothing.
 */
#ifndef CORE_MERGE_H
#define CORE_MERGE_H

#include "core/volume.h"

enum merge_stage {
	MERGE_VERIFYING, /* what will be written is read and checked; nothing is changed yet */
	MERGE_WRITING,   /* the origin is being written */
};

struct merge_options {
	const char *snapshot; /* the target's name */
	const char *state_directory;
	bool dry_run;       /* goes as far as verifying, and writes nothing */
	bool accept_origin; /* a half-merged origin that was written to is finished, with the target marked broken */
	void (*progress)(enum merge_stage stage, uint64_t done, uint64_t total, void *context); /* bytes */
	bool (*is_cancelled)(void *context);
	void *context;
};

struct merge_report {
	/* Written or, by a dry run, to be written: all that the stores have, whether or not the origin has the same. */
	uint64_t bytes;
	bool resumed;   /* the merge had begun before */
	size_t gone_count; /* the snapshots newer than the target: gone, or, by a dry run, to go; oldest first */
	char gone[CHAIN_STORES_MAX][NAME_LENGTH_MAX + 1];
};

/*
 * Puts the origin back (stores in any order; none: those of the volume's record). Blocks. Returns 0, or a negative
 * errno with *complaint saying what is wrong, whether anything was changed, and how to go on. Notices go to the log.
 */
__attribute__((warn_unused_result)) int merge_run(struct disk_host *host, const char *origin_path,
						  const char *const *store_paths, size_t store_count,
						  const struct merge_options *options, struct merge_report *report,
						  struct complaint *complaint);

#endif
