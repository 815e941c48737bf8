/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The log of a store that takes exceptions: appending, and the commit. See log.c for the rules.
 *
 * Who appends hands over items (what is to be recorded) and a ticket (whom to tell). Items gather in the open batch;
 * log_push(), once a turn, makes a commit of it if none is under way. When the commit is durable the exception map is set
 * and the tickets' done(0) is called. Where there is no room for one, the log goes on in the store's next part, if one
 * stands by.
 */
#ifndef CORE_LOG_H
#define CORE_LOG_H

#include "core/histogram.h"
#include "core/store.h"
#include "format/area.h"

struct log_item {
	enum entry_type type;
	block_t block;
	uint32_t count;      /* blocks: ENTRY_ZERO; else 1, or 0 for ENTRY_FINGERPRINT */
	const uint8_t *data; /* one block, page-aligned, the appender's until done(); NULL where there is none */
	uint32_t checksum;   /* private */
	bool is_void;        /* private: its slot cannot be written; it follows again behind the batch */
};

struct log_ticket {
	/* 0: durable and in the map. -ENOSPC, -EIO, -ENOMEM: nothing that was appended with it may be relied upon. */
	void (*done)(struct log_ticket *ticket, int error);
	void *context;
	struct list link; /* private */
};

struct log_counters {
	uint64_t commits, barriers;
	uint64_t slots;         /* used by what was committed */
	uint64_t data_bytes, metadata_bytes;
	uint64_t writes;        /* disk requests */
	uint64_t zeroed_bytes;  /* written ahead of need */
	uint64_t voids;
	struct histogram commit_ns; /* from the commit's start to its barrier's end */
};

/* At most this many items fit an open batch; a copy of more blocks must be split. */
#define LOG_ITEMS_MAX 1016u
/* Slots that cannot be written: a commit gives up after so many. */
#define LOG_VOIDS_MAX 16u

/* At most this many slots are written by one commit. */
uint32_t log_commit_slots_max(const struct geometry *geometry);

struct log_ops {
	/*
	 * The commit cannot go on: -ENOSPC (no room), or another error after which the store takes no exception any more
	 * (log_error() tells it). The batch is kept until log_retry() (-ENOSPC only) or log_abort().
	 */
	void (*stuck)(struct log *log, int error, void *context);
	void *context;
	struct log_counters *counters; /* counted up; shared by all logs of an owner */
};

/* Opens store->log at store->end, from store->open_meta. Returns 0 or -ENOMEM. */
__attribute__((warn_unused_result)) int log_create(struct store *store, const struct log_ops *ops);
/* The other way round: the end and the open area's metadata go back to the store, and store->log is gone. */
void log_close(struct log *log);
void log_destroy(struct log *log); /* nothing under way; NULL is harmless */

slot_t log_end(const struct log *log);       /* slots [0, end) are durable */
int log_error(const struct log *log);        /* 0, or why it takes no more */
bool log_is_idle(const struct log *log);     /* nothing open, nothing being committed or settled */
bool log_can_close(const struct log *log);   /* idle, and no background allocation under way either */
bool log_is_ready(const struct log *log);    /* a push would start a commit */
bool log_is_stuck(const struct log *log);
bool log_is_settled(const struct log *log);  /* idle, and both metadata copies equal */

/* Whether `count` items fit the open batch now. */
bool log_has_room(const struct log *log, unsigned count);
/*
 * How many slots may be used for what nobody has asked for: those already allocated behind what is open and being
 * committed, without the last eighth of a store with a limit.
 */
uint64_t log_spare_slots(const struct log *log);
/* The caller checked log_has_room() and log_error(). Items are copied; their data is not. */
void log_append(struct log *log, const struct log_item *items, unsigned count, struct log_ticket *ticket);
void log_push(struct log *log);

/* After stuck(): try again, or give up the batch under way and the open one (done(error) for each ticket). */
void log_retry(struct log *log);
void log_abort(struct log *log, int error);
/* The store failed elsewhere: as if a commit had. Nothing may be under way. */
void log_fail(struct log *log, int error);

/*
 * Writes the second metadata copy of what has only one, with the present durable mark; then a barrier. When idle only.
 * done() gets 0 or the error, after which the log takes no more; but -ENOSPC leaves everything as it was.
 */
struct log_settle {
	void (*done)(struct log_settle *settle, int error);
	void *context;
};
void log_settle_start(struct log *log, struct log_settle *settle);

/* The metadata block of an area that the log holds in memory (the open one, or one just filled); else NULL. */
const uint8_t *log_find_meta(const struct log *log, uint32_t area);

#endif
