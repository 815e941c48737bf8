/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * An origin and its chain for the offline tools (replay, diff, merge): opened as strictly as to be served, with what
 * a crash left unfinished understood in memory. Nothing is written. Reads are those of a served volume: rule 2,
 * checksums verified.
 *
 * The chain is volume->chain[], oldest first. A "point" is an index into it, or volume->chain_count: the origin as it
 * is now. chain_find() (engine.h) takes points, too, and finds all blocks of the latter on the origin.
 */
#ifndef CORE_OFFLINE_H
#define CORE_OFFLINE_H

#include "core/engine.h"

struct offline_options {
	const char *state_directory;
	bool accept_origin;
	bool tidied;   /* a start has just mended what there was to mend: stores that are empty by now are left out */
	bool merging;  /* a merge may have begun, and wiped stores are left out: for core/merge.c */
	bool writable; /* the disks are opened for writing, ours alone; else beside other readers, but no writer */
};

struct offline {
	struct volume *volume;
	struct fingerprint fingerprint; /* the origin's when it was opened */
	bool untidy;         /* there is something to mend or to recover, which a start would */
	bool merge_begun;    /* the origin is none's, but is being put back to the snapshot at point `merge_target` */
	size_t merge_target;
	struct export_table exports;    /* private */
};

/*
 * Opens them (stores in any order; none: those of the volume's record). Returns 0, or a negative errno with *complaint
 * filled in and everything closed. Blocks, as all of these do but offline_read().
 */
__attribute__((warn_unused_result)) int offline_open(struct disk_host *host, const char *origin_path,
						     const char *const *store_paths, size_t store_count,
						     const struct offline_options *options, struct offline **offline,
						     struct complaint *complaint);
void offline_close(struct offline *offline); /* nothing under way; NULL is harmless */

/* The point of a snapshot's name, or of "origin". -ENOENT, or -EBUSY for one that is being dropped, with *complaint. */
__attribute__((warn_unused_result)) int offline_find(const struct offline *offline, const char *name, size_t *point,
						     struct complaint *complaint);
const char *offline_point_name(const struct offline *offline, size_t point);

/*
 * Starts a REQUEST_READ or REQUEST_EXTENTS of a point; many may be under way. Fill in op, offset, length, the buffer or
 * extents, complete() and context as request.h says. complete() may be called before this returns, and starts nothing.
 */
void offline_read(struct offline *offline, size_t point, struct request *request);
/* Sleeps until something under way (of it, or on its disk host) has gone on. Call it until all is complete. */
void offline_wait(struct offline *offline);
/* Reads and waits: 0 or the error. The buffer: page-aligned, with room for `length` rounded up to pages. */
__attribute__((warn_unused_result)) int offline_read_wait(struct offline *offline, size_t point, uint8_t *buffer,
							  uint64_t offset, uint64_t length);

/* Why a block cannot be read. */
enum offline_fault_kind {
	FAULT_LOST,     /* it could not be read when it was to be preserved */
	FAULT_BROKEN,   /* it was not preserved: the chain is broken there */
	FAULT_CHECKSUM, /* what is in its slot, or its entry, is not what was written */
	FAULT_READ,     /* a read error */
};

struct offline_fault {
	enum offline_fault_kind kind;
	block_t block;
	uint64_t count;            /* blocks: more than one only after offline_fault_join() */
	uint64_t offset, length;   /* bytes */
	const struct store *store; /* NULL: the origin */
	slot_t slot;               /* with FAULT_CHECKSUM, and FAULT_READ in a store */
	int error;                 /* with FAULT_READ */
};

/*
 * Reads again, block by block, what could not be read at once. What of it can't be read is zeroed in the buffer and
 * told to found(), in order; what that returns, if not 0, ends it and is returned. `offset` is a multiple of the
 * block size.
 */
__attribute__((warn_unused_result)) int
offline_salvage(struct offline *offline, size_t point, uint8_t *buffer, uint64_t offset, uint64_t length,
		int (*found)(const struct offline_fault *fault, void *context), void *context);
/* Whether `next` goes on where `fault` ends, for the same reason: then it has become a part of it. */
__attribute__((warn_unused_result)) bool offline_fault_join(struct offline_fault *fault,
							     const struct offline_fault *next);
/* "block 5 (4096 bytes at 20480): store a.store, slot 7: the data does not match its checksum" */
#define OFFLINE_FAULT_TEXT_BYTES 640u
void offline_fault_text(const struct offline_fault *fault, char text[static OFFLINE_FAULT_TEXT_BYTES]);

/*
 * Whether the origin is still the one that was opened, as far as its fingerprint tells: -ESTALE when not, or a read
 * error. What was opened beside a read-only mount may have been mounted to be written since.
 */
__attribute__((warn_unused_result)) int offline_check_origin(struct offline *offline);

#endif
