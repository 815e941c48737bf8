/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the FUSE transport's files share with each other (and with nobody else): fuse.c has the transport's life,
 * receiving and replying, fuse-tree.c names and attributes, fuse-requests.c the operations on data, fuse-mount.c the
 * state of the mount point. The prefix is fusefs_, since fuse_ is libfuse's.
 */
#ifndef IO_FUSE_FILES_H
#define IO_FUSE_FILES_H

#define FUSE_USE_VERSION 34

#include <fuse3/fuse_lowlevel.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include "io/fuse.h"

#define FUSEFS_REQUESTS_MAX 256u   /* with the engine, or being answered */
#define FUSEFS_BACKGROUND_MAX 128u /* of those, what the kernel may send without a process waiting for each */
#define FUSEFS_DATA_BYTES_MAX ((size_t)1 << 20)
#define FUSEFS_HEADER_BYTES 80u /* of a WRITE message, before its payload */
/* A page whose end is the header, the payload, and a page because libfuse reads its own idea of a header more. */
#define FUSEFS_RECEIVE_BYTES (FUSEFS_DATA_BYTES_MAX + 2 * ARENA_PAGE_BYTES)
#define FUSEFS_COPY_BYTES_MAX 65536u /* a longer payload takes the whole receive buffer along, rather than be copied */
#define FUSEFS_EXTENTS_RANGE_BYTES_MAX ((uint64_t)128 << 20)

/* The two folders' numbers for the kernel; a file's is its node's address. */
#define FUSEFS_ROOT FUSE_ROOT_ID
#define FUSEFS_SNAPSHOTS 2u
#define FUSEFS_FIRST_SERIAL 4u /* of a file. (As a place in a folder, the number before it is that of "snapshots".) */

/*
 * A file: an export and what outlives it. It lives as long as the export is there, the kernel remembers its address
 * (lookups > 0), or requests of it are under way.
 */
struct fusefs_node {
	struct fusefs *fusefs;
	struct list link;      /* in fusefs.nodes while its name is there, then in fusefs.ghosts */
	struct export *export; /* a reference; NULL once it is gone and its last request was answered */
	char name[sizeof(((struct export *)NULL)->name)];
	uint64_t serial; /* inode number, never used twice */
	uint64_t size_bytes;
	bool read_only;
	struct timespec changed;
	uint64_t lookups;
	unsigned requests;
};

struct fusefs_request {
	struct request request;
	struct fusefs_node *node;
	fuse_req_t handle; /* libfuse's; gone once replied to */
	struct list link;  /* in one of fusefs's lists, or none: with the engine */
	int error;         /* 0 or negative errno, once done */
	int whence;        /* EXTENTS: SEEK_DATA or SEEK_HOLE */
	void *memory;      /* the arena's; the buffer lies in it */
	size_t memory_bytes;
};

struct fusefs {
	struct transport transport;
	struct loop *loop;
	struct export_table *exports;
	struct arena *arena;
	struct fuse_session *session;
	char *directory; /* absolute */

	struct loop_source device;
	uint32_t events; /* being watched for (an error always is) */
	struct loop_timer work; /* due at once: makes the next turn come without waiting */
	struct loop_hook hook;
	struct export_watcher watcher;

	/* The buffer for messages; NULL between turns. `granted`: just come from the arena's queue, not used yet. */
	uint8_t *receive;
	bool waiting, granted;
	struct arena_waiter waiter;
	size_t held_bytes, held_bytes_max; /* of arena memory, by requests */

	struct list nodes; /* in the order of their serials */
	struct list ghosts;
	uint64_t serial_last;
	struct timespec started, changed; /* the folders' times */

	bool quiesced, unmounted;
	unsigned engine_count; /* requests that are with the engine */
	struct list done;      /* to be answered at the turn's end */
	struct list again;     /* to be submitted once more in the next turn: searches that go on */
	struct list free_requests;
	unsigned pool_used; /* of pool[], the requests beyond were never touched */
	struct fuse_counters counters;
	struct fusefs_request pool[FUSEFS_REQUESTS_MAX];
};

/* fuse.c: have the next turn come without waiting */
void fusefs_work_soon(struct fusefs *fusefs);

/* fuse-tree.c */
__attribute__((warn_unused_result)) int fusefs_node_add(struct fusefs *fusefs, struct export *export);
void fusefs_node_remove(struct fusefs *fusefs, const struct export *export);
/* Gives back the export, and frees the node, as far as nothing needs them any more. */
void fusefs_node_settle(struct fusefs_node *node);
void fusefs_nodes_settle(struct fusefs *fusefs);
/* The file of that number. NULL: it is a folder. */
struct fusefs_node *fusefs_node(fuse_ino_t number);
void fusefs_tree_operations(struct fuse_lowlevel_ops *operations);

/* fuse-requests.c */
bool fusefs_has_free_request(const struct fusefs *fusefs);
void fusefs_data_operations(struct fuse_lowlevel_ops *operations);
void fusefs_submit_again(struct fusefs *fusefs); /* what is in `again`: enters the engine */
void fusefs_reply_done(struct fusefs *fusefs);   /* what is in `done` */

/* fuse-mount.c */
/* 0: may be mounted on. Dead mounts of ours there are unmounted, live ones never touched. Errors as fuse_start's. */
__attribute__((warn_unused_result)) int fusefs_mount_point_prepare(const char *directory);
/* Why mounting failed, as far as it can be told: negative errno, as fuse_start's. */
int fusefs_mount_failure(const char *directory);

#endif
