/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A volume: an origin and its chain of snapshots, as served. This is all that the command layer sees of the engine.
 *
 * The owner calls volume_turn() at the end of every turn of its event loop and volume_tick() about ten times a second.
 * Operations (snapshot, drop, stop) run while requests are served and tell their end by done(); their structures are the
 * caller's until then. Texts in `what` and `why` are fit for "rowsnap COMMAND: what: why".
 */
#ifndef CORE_VOLUME_H
#define CORE_VOLUME_H

#include "core/chain.h"
#include "core/histogram.h"
#include "format/types.h"
#include "io/request.h"

struct volume;

enum on_full { ON_FULL_BREAK, ON_FULL_FAIL, ON_FULL_WAIT };

#define WRITE_BACK_BYTES_MIN (UINT64_C(1) << 20)
#define WRITE_BACK_BYTES_MAX (UINT64_C(64) << 30)
/* What happened to the store that takes the exceptions. */
enum volume_event_kind {
	VOLUME_EVENT_THRESHOLD, /* it is that full */
	VOLUME_EVENT_FULL,      /* writes wait for room, or fail */
	VOLUME_EVENT_BROKEN,    /* writes go on unprotected, from now on */
};

struct volume_event {
	enum volume_event_kind kind;
	const char *snapshot, *store; /* its name; its store's path */
	uint64_t used_bytes, size_bytes; /* size 0: no limit but the file system's */
	unsigned percent, threshold;
	const char *reason; /* BROKEN: why */
};

#define WARN_AT_MAX 16u

struct volume_options {
	const char *name; /* the volume's, valid */
	enum on_full on_full;
	bool discard_copy;  /* --discard=copy */
	bool accept_origin; /* --accept-origin */
	uint64_t write_back_bytes; /* --write-back: 0, or WRITE_BACK_BYTES_MIN to WRITE_BACK_BYTES_MAX */
	bool skip_empty;    /* a store that is named, but empty, is left out: it was made so by a start just now */
	bool skip_wiped;    /* a store that is named, but wiped, is left out: a merge's end may have been cut short */
	const char *state_directory; /* where the volume's record is kept */
	unsigned warn_at[WARN_AT_MAX], warn_count; /* percent, each larger than the one before */
	void (*event)(const struct volume_event *event, void *context); /* may be NULL; must not call the volume */
	void *event_context;
};

struct complaint {
	char what[CHAIN_TEXT_BYTES];
	char why[CHAIN_TEXT_BYTES];
};

/*
 * Opens the origin and its stores (in any order; none: those of the volume's record), recovers, and adds the exports to
 * `exports`. Notices (what was found and done) go to the log. Returns 0, or a negative errno with *complaint filled in and
 * everything closed again. Blocks: start-up only.
 */
__attribute__((warn_unused_result)) int volume_open(struct disk_host *host, struct export_table *exports,
						    const char *origin_path, const char *const *store_paths,
						    size_t store_count, const struct volume_options *options,
						    struct volume **volume, struct complaint *complaint);
/* Makes the engine's buffers ready for use without waiting for memory. After volume_open(), before the first request. */
void volume_touch_buffers(struct volume *volume);
void volume_turn(struct volume *volume);
void volume_tick(struct volume *volume);

/* An operation on the volume. Fill in done and context; the rest is private or an answer. */
enum operation_kind { OPERATION_CREATE, OPERATION_EXTEND, OPERATION_DROP, OPERATION_STOP };

struct operation {
	/* error 0, or negative with the complaint filled in. Called once; may start another operation. */
	void (*done)(struct operation *operation, int error);
	/* DROP, may be NULL: the drop is certain to be carried out and goes on in the background from here. */
	void (*begun)(struct operation *operation);
	void *context;
	struct complaint complaint;

	/* private */
	enum operation_kind kind;
	struct list link;
	char name[NAME_LENGTH_MAX + 1];
	char *store_path;
	uint64_t size_bytes;
	bool forget_older;
	bool (*is_ready)(const struct volume *volume, const struct operation *operation); /* what it waits for; or NULL */
	void (*next)(struct volume *volume, struct operation *operation);                /* what to do then */
	struct store *store;       /* CREATE, EXTEND: the new one */
	struct snapshot *snapshot; /* CREATE: the new one; EXTEND, DROP: the one named */
	uint64_t created_ns, retry_ns;
	int error;
};

/* Takes a snapshot into the empty store at `store_path` (rule 5 of the design: atomic, whatever happens). */
void volume_snapshot(struct volume *volume, struct operation *operation, const char *name, const char *store_path);

/*
 * Gives the newest snapshot, `name`, more room: joins the empty store at `store_path` to its store, or, if that is NULL, lets
 * the store grow to `size_bytes`.
 */
void volume_extend(struct volume *volume, struct operation *operation, const char *name, const char *store_path,
		   uint64_t size_bytes);

/* Drops the snapshot `name`; done() when its store is wiped and closed. */
void volume_drop(struct volume *volume, struct operation *operation, const char *name, bool forget_older);

/*
 * Ends the service cleanly: waits for what is under way, settles the log, flushes the origin and records the clean stop. The
 * transports must be quiet. Operations that wait are refused, a fold is left to be resumed. After done() only
 * volume_close() may be called. When it fails the volume is closed as after a crash, which is safe.
 */
void volume_stop(struct volume *volume, struct operation *operation);
void volume_close(struct volume *volume);

/* ---- what list and status show ---- */

struct snapshot_report {
	char name[NAME_LENGTH_MAX + 1];
	uuid128_t uuid;
	uint64_t created_ns;
	const char *state; /* active sealed folding merging broken absent */
	const char *store; /* path; NULL when unknown */
	uint64_t blocks, used_bytes, size_bytes; /* in all parts; size 0: no limit */
	unsigned full_percent;  /* 0: not known */
	unsigned warned_percent; /* the largest threshold passed; 0: none */
	uint32_t part_count;    /* the stores it lies in: 1, or more; 0 when it is absent */
	struct {
		const char *store;
		uint64_t used_bytes, size_bytes;
	} parts[STORE_PARTS_MAX];
	bool broken;
	const char *broken_reason; /* static text */
	uint64_t broken_ns;
	bool folding;               /* it is being dropped by a fold: */
	uint64_t fold_done, fold_total; /* blocks */
};

struct write_back_report {
	uint64_t size_bytes, dirty_bytes; /* 0: there is no buffer */
	uint64_t writes;      /* answered from it */
	uint64_t late_errors; /* writes that failed afterwards */
};

struct volume_report {
	const char *name;
	uuid128_t uuid;
	const char *origin_path;
	uint64_t origin_bytes;
	uint32_t block_bytes;
	const char *on_full; /* the policy's word */
	bool unprotected;    /* writes go on without being preserved */
	bool stuck;          /* writes wait for room */

	uint64_t reads, writes, flushes, discards, zeroes; /* of the origin */
	uint64_t snapshot_reads;
	uint64_t read_bytes, write_bytes, snapshot_read_bytes;
	uint64_t copies, copied_blocks, zero_blocks, lost_blocks;
	uint64_t ahead_blocks; /* of the copied ones: before anybody asked for them */
	uint64_t commits, barriers, store_writes, store_data_bytes, store_metadata_bytes, store_zeroed_bytes;
	uint64_t origin_barriers;    /* that requests asked for, FUA writes included */
	uint64_t rereads;            /* snapshot reads done again after a race with a copy */
	uint64_t checksum_errors;
	uint64_t requests_now, requests_held;
	struct histogram copy_ns, commit_ns, pause_ns;
	uint64_t map_bytes, buffer_bytes;
	struct write_back_report write_back;
};

size_t volume_snapshot_count(const struct volume *volume); /* absent ones included, oldest first */
void volume_report_snapshot(const struct volume *volume, size_t index, struct snapshot_report *report);
void volume_report(const struct volume *volume, struct volume_report *report);
/* What a report says of its store's sizes; the texts are the store's. */
struct store;
void snapshot_report_sizes(struct snapshot_report *report, const struct store *store);

/* The block size of the volume's stores; 0 while it has none. */
uint32_t volume_block_bytes(const struct volume *volume);

#endif
