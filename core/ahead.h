/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Reading a point of a chain in order, with several pieces under way at once.
 *
 *   ahead_start() --> under way, in order --> ahead_take(): read, the caller's --> ahead_release()
 */
#ifndef CORE_AHEAD_H
#define CORE_AHEAD_H

#include "core/offline.h"

#define AHEAD_PIECES 16u
#define AHEAD_BYTES (UINT64_C(1) << 20)

struct ahead_piece {
	uint64_t offset, length;
	bool hole;       /* reads as zeroes; the buffer holds anything */
	uint8_t *buffer; /* AHEAD_BYTES, page-aligned */
	unsigned index;  /* below AHEAD_PIECES, its own */
	int error;       /* of the read: what is in the buffer is of no use */

	/* private */
	bool under_way;
	struct request request;
	struct list link;
};

struct ahead {
	struct offline *offline;
	size_t point;
	struct list free, reading; /* struct ahead_piece.link */
	uint8_t *memory;
	struct ahead_piece pieces[AHEAD_PIECES];
};

/* The pieces' memory: 0 or -ENOMEM. */
__attribute__((warn_unused_result)) int ahead_init(struct ahead *ahead, struct offline *offline, size_t point);
/* Waits until nothing is under way. Harmless on what is all zeroes. */
void ahead_fini(struct ahead *ahead);

/* Starts to read at most AHEAD_BYTES; a hole may be longer. False: no piece is free, take or release one first. */
__attribute__((warn_unused_result)) bool ahead_start(struct ahead *ahead, uint64_t offset, uint64_t length, bool hole);
/* Waits for the first of those under way and hands it over; NULL when there is none. */
struct ahead_piece *ahead_take(struct ahead *ahead);
void ahead_release(struct ahead *ahead, struct ahead_piece *piece);

#endif
