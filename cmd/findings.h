/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What check and repair share: opening stores, and showing what was found in them. */
#ifndef CMD_FINDINGS_H
#define CMD_FINDINGS_H

#include "cmd/cmd.h"
#include "core/check.h"
#include "io/probe.h"

struct findings_store {
	const char *path;
	struct check_store *one;   /* NULL: it could not be opened */
	struct json_object *array; /* with `json` */
	char error[PROBE_TEXT_BYTES + 64]; /* why there was nothing to check; empty: there was */
	uint64_t count[FOUND_COUNT];
};

struct findings {
	/* the caller's */
	const char *command;
	bool json, quick;
	bool progress;      /* is to be shown */
	uint64_t shown_max; /* of each kind for a store; the rest are counted */
	/* May be NULL: is told every finding before it is shown. */
	void (*noted)(const struct check_finding *finding, void *context);
	void *context;

	/* what is found out */
	int exit_code; /* EXIT_CHECK_... */
	struct disk_host *host;
	struct check check;
	struct findings_store *stores;
	size_t count;

	/* private */
	bool progress_shown;
	uint64_t percent;
};

/*
 * Opens `count` stores, the first with the DISK_OPEN_* `flags`, the others read-only, all of them locked. What cannot
 * be opened is told, and counts as unreadable. Returns 0, or the exit code when there is nothing to go on with.
 * findings_close() in any case.
 */
__attribute__((warn_unused_result)) int findings_open(struct findings *findings, char *const *paths, size_t count,
						      unsigned flags);
/* Checks them and shows what is found, unless `json`. Sets exit_code. May be called again. */
void findings_check(struct findings *findings);
/* A line for each store on stdout. */
void findings_print_sums(const struct findings *findings);
/* Adds "stores" to `report`. */
void findings_report(const struct findings *findings, struct json_object *report);
void findings_close(struct findings *findings);

#endif
