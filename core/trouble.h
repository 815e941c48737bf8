/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What goes wrong with a disk, told once and not a thousand times: of what fails alike, request by request, the first
 * TROUBLE_LINES in TROUBLE_NS are told, and of the rest their number.
 */
#ifndef CORE_TROUBLE_H
#define CORE_TROUBLE_H

#include <stdint.h>

struct disk_host;

#define TROUBLE_LINES 8u
#define TROUBLE_NS (UINT64_C(60) * 1000 * 1000 * 1000)

/* Of one disk, and of one kind of line. All zero: none yet. */
struct trouble {
	uint64_t since_ns; /* when the first of `lines` was told */
	unsigned lines;
	uint64_t left_out; /* since then */
};

/* log_warning(), or only counted. */
__attribute__((format(printf, 3, 4))) void trouble_tell(struct trouble *trouble, struct disk_host *host,
							const char *format, ...);
/* Now and then: tells how many were left out, once their time is over; trouble_end() at once. `what` and `path` name the disk. */
void trouble_tick(struct trouble *trouble, struct disk_host *host, const char *what, const char *path);
void trouble_end(struct trouble *trouble, const char *what, const char *path);

#endif
