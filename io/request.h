/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Requests and exports: the boundary between the transports, which know clients, and the engine, which knows snapshots.
 *
 * A transport finds an export by name, opens it (a reference), and submits requests to it. Everything that has to be
 * right once for all transports (bounds, read-only, alignment, splitting) lies behind submit.
 */
#ifndef IO_REQUEST_H
#define IO_REQUEST_H

#include <stdbool.h>
#include <stdint.h>

#include "io/disk.h"
#include "io/list.h"

enum request_op {
	REQUEST_READ,
	REQUEST_WRITE,
	REQUEST_FLUSH,
	REQUEST_DISCARD,
	REQUEST_ZERO,
	REQUEST_EXTENTS, /* what is allocated: fills extents[]; hole means "reads as zeroes" */
};

#define REQUEST_FUA 1u     /* WRITE, ZERO, DISCARD: durable before complete() says 0 */
#define REQUEST_NO_HOLE 2u /* ZERO: keep the space allocated */

#define REQUEST_DATA_BYTES_MAX ((uint64_t)32 << 20) /* READ, WRITE */

struct export;

struct request {
	/* The transport's; unchanged until complete(). */
	enum request_op op;
	unsigned flags;
	uint64_t offset, length; /* bytes, any alignment; FLUSH: 0 */
	uint8_t *buffer;         /* READ, WRITE: page-aligned, with room for `length` rounded up to pages */
	struct disk_extent *extents; /* EXTENTS: as in struct disk_io */
	unsigned extents_max, extents_count;
	struct export *export;
	/*
	 * Called exactly once, possibly from within export_submit(). 0 or negative errno: -EINVAL out of bounds, -EPERM
	 * read-only, -ESHUTDOWN export gone, -EIO, -ENOSPC, -ENOMEM. Must not submit or re-enter the engine: note the result
	 * and go on at the turn's end.
	 */
	void (*complete)(struct request *request, int error);
	void *context;

	/* The engine's, from submit to complete. Nothing here need be initialised. */
	struct list link, all_link, waiting_link;
	uint64_t cursor, piece_end; /* bytes: the piece under way is [cursor, piece_end) */
	uint64_t next_block;        /* how far the piece is dealt with */
	unsigned pending;           /* what the piece waits for */
	unsigned step;
	bool needs_barrier;         /* FUA, but a part was written without it */
	int error;
	uint64_t started_ns;
	void *bounce;
	uint64_t bounce_bytes;
	struct disk_io io;
};

struct export_ops {
	void (*submit)(struct request *request);
	/* No reference to an export that is gone is left: its owner may free it. Once, maybe within export_remove(). */
	void (*released)(struct export *export);
};

#define EXPORT_DEVICE_BYTES 160u

struct export {
	const struct export_ops *ops;
	char name[64];
	uint64_t size_bytes;
	uint32_t block_bytes; /* preferred request size */
	uint32_t sector_bytes; /* what a block device made of it has for sectors; any range is accepted all the same */
	bool read_only;
	bool can_discard;
	bool can_punch;      /* punching a hole, which promises zeroes, may be offered: it is carried out as ZERO */
	uint64_t created_ns; /* wall clock */
	char device[EXPORT_DEVICE_BYTES]; /* the block device it can be reached by, of a transport's making; empty: none */
	bool gone;           /* taken out of the table: requests get -ESHUTDOWN */
	unsigned references;
	struct list link;
};

/* A transport's ear for exports that come and go. */
struct export_watcher {
	void (*added)(struct export_watcher *watcher, struct export *export);
	/* `export->gone` is set. Close what uses it once its requests are complete, and give the references back. */
	void (*removed)(struct export_watcher *watcher, struct export *export);
	void *context;
	struct list link;
};

struct export_table {
	struct list exports;  /* struct export.link, "origin" first, then in order of creation */
	struct list watchers; /* struct export_watcher.link */
};

static inline void export_table_init(struct export_table *table)
{
	list_init(&table->exports);
	list_init(&table->watchers);
}

/* NULL when there is none. The empty name means "origin". Takes no reference. */
struct export *export_find(const struct export_table *table, const char *name);
void export_add(struct export_table *table, struct export *export);
void export_remove(struct export_table *table, struct export *export); /* sets gone, tells the watchers */

void export_open(struct export *export);  /* takes a reference */
void export_close(struct export *export); /* gives it back; may call ops->released */

static inline void export_submit(struct request *request)
{
	request->export->ops->submit(request);
}

#endif
