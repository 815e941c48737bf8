/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The engine's insides, shared by the files of core/ and by nobody else.
 *
 *   volume.c       the structure of a volume, its turn and tick, reports
 *   opening.c      from paths to a verified chain: stores, order, recovery, fingerprint
 *   open.c         start-up: opening, mending, the run's begin
 *   offline.c      a chain opened for the offline tools
 *   write-back.c   the buffer above all of it, with --write-back
 *   write.c        writes, zeroes, discards and flushes of the origin
 *   barrier.c      barriers of the origin, shared by those who ask at the same time
 *   copy.c         copy-before-write: preserving blocks in the newest snapshot
 *   copy-ahead.c   preserving blocks before who writes in order comes to them
 *   broken.c       what happens when the newest store can take no more
 *   warn.c         telling that before
 *   read.c         reads of the origin and of snapshots, allocation queries
 *   slots.c        reading slots with their checksums
 *   fingerprint.c  recording the origin's fingerprint before its superblock area is written
 *   operation.c    the queue of operations; pausing
 *   create.c extend.c drop.c fold.c stop.c   the operations
 *   record.c record-file.c   the volume's record
 */
#ifndef CORE_ENGINE_H
#define CORE_ENGINE_H

#include "core/log.h"
#include "core/record.h"
#include "core/slots.h"
#include "core/store.h"
#include "core/volume.h"
#include "io/arena.h"

/* ---- sizes: all memory of the data path is taken at start ---- */

#define PIECE_BLOCKS 256u                     /* a write is preserved and issued in pieces of at most this many blocks */
#define PIECE_READ_BYTES (UINT64_C(1) << 20)
#define COPIES_MAX 1024u
#define COPY_ARENA_BYTES ((size_t)16 << 20)
#define BOUNCE_ARENA_BYTES ((size_t)8 << 20)
#define SEGMENTS_MAX 256u
#define COMMIT_WAIT_NS (UINT64_C(1) * 1000 * 1000)
#define IDLE_SETTLE_NS (UINT64_C(500) * 1000 * 1000)
#define STUCK_RETRY_NS (UINT64_C(1000) * 1000 * 1000)

struct snapshot {
	struct volume *volume;
	struct store *store;
	struct export export;
	unsigned requests; /* reads of its export under way */
	bool dropping;     /* its export is gone */
};

/* One run of blocks on its way into the newest store. */
struct copy {
	struct volume *volume;
	struct store *store;
	block_t first;
	uint32_t count;
	uint32_t single; /* the block being read by itself, after an error */
	bool by_block;
	bool ahead;      /* nobody has asked for it */
	uint8_t *buffer;
	size_t buffer_bytes;
	uint8_t lost[PIECE_BLOCKS / 8];
	uint64_t started_ns;
	struct disk_io io;
	struct log_ticket ticket;
	struct list waiters; /* struct request.waiting_link */
	struct list link;    /* volume->copies, or volume->copies_free */
	struct list log_link; /* volume->copies_unlogged: no room in the open batch */
};

/* Writes of the origin that follow each other. See copy-ahead.c. */
struct write_stream {
	uint64_t end;    /* bytes: of its last write */
	uint64_t used;   /* when that was: volume->streams_used */
	uint64_t writes;
	uint64_t window; /* blocks */
	block_t ahead;   /* preserved, or being copied, up to here */
};

#define WRITE_STREAMS 4u

/* One run of a snapshot read. */
struct segment {
	struct request *request;
	struct volume *volume;
	block_t first;
	uint64_t count;
	struct slot_read slots;
	struct disk_io io;
	struct list link; /* volume->segments_free */
};

struct volume {
	struct disk_host *host;
	struct export_table *exports;
	char name[NAME_LENGTH_MAX + 1];
	uuid128_t uuid;
	enum on_full on_full;
	bool discard_copy;
	struct record *record;

	struct disk *origin;
	char *origin_path;
	uint64_t origin_bytes;
	uint32_t sector_bytes;        /* direct I/O's unit */
	uint32_t device_sector_bytes; /* what a device made of it shows */
	uint32_t block_bytes; /* 0: no store yet */
	bool origin_fua;            /* it writes through its cache without a flush, or has none */
	unsigned fua_now;           /* writes under way with DISK_FUA */
	struct list barrier_waiting, barrier_joined; /* struct request.waiting_link */
	struct disk_io barrier_io;
	bool origin_barrier_failed; /* rule 9: a failed barrier is not retried as if it could succeed */
	struct export origin_export;

	/* The chain, oldest first. The newest takes the exceptions; see volume_active(). */
	struct snapshot *chain[CHAIN_STORES_MAX];
	size_t chain_count;
	uint64_t sequence_last;
	uuid128_t absent_older; /* the oldest's predecessor that was not given; nil: none */
	struct log_ops log_ops;
	bool active_unready;   /* the newest's "active" mark is not durable yet: no commit may start */

	/* Requests of all exports. */
	struct list requests;         /* struct request.all_link */
	uint64_t requests_now;

	/* Writes: between admission and their end. */
	struct list writing;          /* struct request.link; pieces under way */
	struct list overlapping;      /* wait until no piece under way conflicts */
	struct list held;             /* wait until the pause ends */
	unsigned rmw_count;
	unsigned issued;              /* origin writes given to the disk */
	unsigned pauses;              /* above 0: no origin write is issued */
	uint64_t pause_started_ns;

	struct arena *copy_arena, *bounce_arena;
	struct list bounce_waiters;   /* requests that wait for bounce memory */
	bool bounce_freed;            /* some came back since they last looked */
	bool piece_left;              /* a piece has ended since the overlapping ones last looked */
	struct copy *copy_pool;
	struct list copies, copies_free, copies_unlogged;
	unsigned copies_reading;      /* without those ahead */
	uint64_t commit_waits_ns;     /* since when a commit waits for them; 0: none does */
	struct list copy_starved;     /* requests that wait for a free copy */
	bool copy_freed;              /* one has ended since they last looked */
	struct log_item *items;       /* PIECE_BLOCKS, for building a copy's items */
	struct write_back *write_back; /* NULL: there is none */
	struct write_stream streams[WRITE_STREAMS];
	uint64_t streams_used;

	struct segment *segment_pool;
	struct list segments_free;
	struct list segment_starved;  /* requests that wait for a free segment */
	bool segment_freed;           /* one has ended since they last looked */
	struct slot_cache *slot_cache;

	/* The fingerprinted areas' content as written last, and who is writing there. */
	uint8_t *fingerprint_image;   /* FINGERPRINT_SECTORS sectors */
	uint8_t *fingerprint_next;    /* the same, with the writer's write applied */
	bool fingerprint_announced;   /* the writer's announcement is durable */
	struct fingerprint fingerprint;
	struct request *fingerprint_writer;
	struct list fingerprint_waiters;
	uint8_t *fingerprint_block;
	struct log_ticket fingerprint_ticket;
	void (*fingerprint_read_done)(struct volume *volume, int error);
	struct disk_io fingerprint_io[2];
	unsigned fingerprint_reads;
	int fingerprint_error;

	/* The newest store can take no more. */
	struct store_update broken_update;
	struct log *broken_log;
	size_t broken_witness;
	int broken_error;
	struct broken_mark broken_mark;
	uint64_t stuck_since_ns, stuck_retry_ns, stuck_logged_ns;

	/* How full the active store is: see warn.c. */
	unsigned warn_at[WARN_AT_MAX], warn_count;
	unsigned warn_passed;         /* how many of them */
	bool full_told;               /* that there is no room behind slot full_told_end */
	uint32_t full_told_end;
	uint64_t warned_seed;         /* of the store that this is about */
	void (*event)(const struct volume_event *event, void *context);
	void *event_context;
	struct store *measured;
	uint64_t measured_store_seed, measured_ns;
	uint32_t measured_part;
	bool measuring;
	struct disk_io measure_io;

	struct log_settle settle;
	bool settling;
	uint64_t busy_ns;             /* when the log was last seen busy */

	struct list operations;       /* waiting */
	struct operation *operation;  /* the one that changes the chain now */
	struct fold *fold;
	void (*drained)(struct volume *volume);
	struct disk_io operation_io;
	struct store_update operation_update;
	struct store_load operation_load;
	bool stopping;
	bool unusable; /* what the newest store says on disk is unknown: every write fails until the next start */

	/* What the log was told of. */
	struct trouble origin_trouble, back_trouble, lost_trouble, read_trouble;
	uint64_t origin_failures; /* since it answered last */

	struct volume_report counters;
	struct log_counters log_counters;
};

/* ---- volume.c ---- */

/* A volume without origin and chain yet. -ENOMEM leaves in *volume what volume_close() must free, or NULL. */
__attribute__((warn_unused_result)) int volume_create(struct disk_host *host, struct export_table *exports,
						      const struct volume_options *options, struct volume **volume);
/* The snapshot that takes exceptions: the newest, or the one below it while the newest is folded into it. NULL: none. */
struct snapshot *volume_active(const struct volume *volume);
/* Its log, if blocks are to be preserved at all: NULL without snapshots, or when it is broken. */
struct log *volume_log(const struct volume *volume);
bool volume_is_broken(const struct volume *volume); /* writes go on unprotected */
/* A request of the origin has ended: tells the log what failed, and when it answers again. */
void origin_answered(struct volume *volume, const struct disk_io *io, int error);
void troubles_end(struct volume *volume); /* tells what was only counted */
struct snapshot *volume_find(const struct volume *volume, const char *name, size_t *index);
bool volume_name_is_absent(const struct volume *volume, const char *name);
void volume_remove_from_chain(struct volume *volume, size_t index);
int snapshot_create(struct volume *volume, struct store *store, struct snapshot **snapshot);
void snapshot_destroy(struct snapshot *snapshot);
void request_begin(struct volume *volume, struct request *request);
void request_end(struct volume *volume, struct request *request, int error);
/* Checks a request against its export: 0, or the error it is to be answered with. */
int request_check(const struct request *request);
void complaint_set(struct complaint *complaint, const char *what, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
block_t volume_block_count(const struct volume *volume);

/* Where block `block` of snapshot `index` is, and for how many blocks (at most limit) this goes on: rule 2. */
enum place { PLACE_SLOT, PLACE_ZERO, PLACE_LOST, PLACE_ORIGIN, PLACE_BROKEN };
struct placement {
	enum place place;
	struct store *store;
	slot_t slot;
	uint64_t count;
};
struct placement chain_find(const struct volume *volume, size_t index, block_t block, uint64_t limit);
extern const struct export_ops origin_export_ops;
/* A checked request of the origin, below the write-back buffer. */
void origin_submit_now(struct volume *volume, struct request *request);

/* ---- write-back.c: write_back_submit() wants a buffer, the others do nothing where there is none ---- */
/* 0 or -ENOMEM; what there is is volume->write_back, to be destroyed by the caller in any case. */
__attribute__((warn_unused_result)) int write_back_create(struct volume *volume, uint64_t bytes);
void write_back_destroy(struct write_back *wb); /* NULL is harmless */
void write_back_touch(struct volume *volume);   /* before the first request: no later use waits for memory */
void write_back_submit(struct volume *volume, struct request *request); /* a checked request of the origin */
void write_back_turn(struct volume *volume);
void write_back_tick(struct volume *volume);
/*
 * The moment of a snapshot: true when all that was answered before it (that is, before the first of these calls since the
 * last write_back_lift()) is on the origin; what comes after it stays in the buffer until write_back_lift().
 */
bool write_back_barrier(struct volume *volume);
bool write_back_is_barred(const struct volume *volume);
void write_back_lift(struct volume *volume);
bool write_back_is_empty(const struct volume *volume); /* and no request waits in it */
int write_back_late_error(const struct volume *volume); /* of a write answered before; not told yet */
void write_back_get_report(const struct volume *volume, struct write_back_report *report);

/* ---- write.c ---- */
void write_submit(struct volume *volume, struct request *request);
void write_continue(struct request *request, int error); /* what it waited for has ended */
void write_resume_held(struct volume *volume);
void write_turn(struct volume *volume);
bool bounce_get(struct volume *volume, struct request *request, uint64_t bytes);
void bounce_put(struct volume *volume, struct request *request);
void flush_submit_request(struct volume *volume, struct request *request);

/* ---- barrier.c ---- */
/* A flush of the origin has ended: what its asker is to be told. After one that failed none counts as good (rule 9). */
int origin_barrier_result(struct volume *volume, int error);
/* The request ends when a barrier that begins after now has. */
void barrier_join(struct volume *volume, struct request *request);
void barrier_turn(struct volume *volume);
/* Whether a write with FUA is better given to the disk as such. */
bool barrier_prefers_fua(const struct volume *volume);

/* ---- copy.c ---- */
int copy_pool_create(struct volume *volume);
/*
 * Whether all of `count` blocks are preserved: 1 yes; 0 not yet, and the request waits: write_continue() will be called; or
 * a negative errno.
 */
int copy_preserve(struct volume *volume, struct request *request, block_t first, uint64_t count);
/* Begins to preserve as many of them as it can now; nobody waits. */
void copy_ahead(struct volume *volume, block_t first, uint64_t count);
void copy_turn(struct volume *volume);
bool is_zero(const uint8_t *data, size_t bytes); /* above 0 bytes */
bool copy_is_idle(const struct volume *volume);
/*
 * Whether a commit had better wait a moment for copies that are still being read: they will share its barrier, instead of
 * waiting for it and then for one of their own. Not longer than COMMIT_WAIT_NS.
 */
bool copy_holds_commit(struct volume *volume);
/* How many blocks from `block` on (at most limit) are preserved, and if none, how many are not. */
uint64_t preserved_run(const struct volume *volume, block_t block, uint64_t limit, bool *preserved);

/* ---- copy-ahead.c ---- */
/* A write has been admitted: what may come next is preserved ahead of it. */
void copy_ahead_of_write(struct volume *volume, uint64_t offset, uint64_t length);

/* ---- operation.c, for the record: a store and its parts, in memory ---- */
__attribute__((warn_unused_result)) int record_add_store(struct record *record, const struct store *store);

/* ---- broken.c ---- */
void broken_log_stuck(struct log *log, int error, void *context);
void broken_pause(struct volume *volume);
void broken_tick(struct volume *volume);
void broken_retry(struct volume *volume); /* there may be room for what waits */
/* Marks `store` broken in memory as read from another store's witness or the record. */
bool store_is_broken(const struct store *store);

/* ---- warn.c ---- */
void warn_tick(struct volume *volume);
void warn_tell(struct volume *volume, enum volume_event_kind kind, unsigned threshold);
/* Room was added: thresholds that are not passed any more may be so again. */
void warn_look_again(struct volume *volume);
bool warn_is_quiet(const struct volume *volume);
unsigned store_percent(const struct store *store); /* how full it is; 0 where that is not known */
unsigned warn_level(const struct volume *volume, const struct store *store); /* the largest threshold passed, or 0 */

/* ---- read.c ---- */
int segment_pool_create(struct volume *volume);
void origin_read_submit(struct volume *volume, struct request *request);
void snapshot_submit(struct request *request);
void read_continue(struct request *request);
void read_turn(struct volume *volume);

/* ---- fingerprint.c ---- */
#define FINGERPRINT_END UINT64_C(69632)
bool fingerprint_overlaps(uint64_t offset, uint64_t length);
/* Reads the origin's fingerprinted areas. Start-up only. */
int fingerprint_read(struct volume *volume);
/* The same while serving; nothing may be written meanwhile (a pause). */
void fingerprint_read_start(struct volume *volume, void (*done)(struct volume *volume, int error));
/* 1: go on; 0: waits, write_continue() will be called; negative: error. `data` NULL: zeroes. */
int fingerprint_announce(struct volume *volume, struct request *request, uint64_t offset, uint64_t length,
			 const uint8_t *data);
void fingerprint_issued(struct volume *volume, const struct request *request);
void fingerprint_written(struct volume *volume, struct request *request);
void fingerprint_turn(struct volume *volume);

/* ---- operation.c ---- */
/* Starts what may start, and carries the one under way on when what it waits for has come. In every turn. */
bool operation_turn(struct volume *volume); /* whether one has begun or gone a step on */
void operation_end(struct volume *volume, int error);
/* The operation under way goes on with next() when is_ready() says so, at the earliest in this turn's end. */
void operation_wait(struct volume *volume, bool (*is_ready)(const struct volume *volume, const struct operation *operation),
		    void (*next)(struct volume *volume, struct operation *operation));
void operation_flush_origin(struct volume *volume, void (*done)(struct disk_io *io, int error));
void operation_update_store(struct volume *volume, struct store *store,
			    void (*apply)(struct superblock *superblock, void *context),
			    void (*done)(struct store_update *update, int error));
void record_save_or_warn(struct volume *volume);
/* A snapshot enters the record, and leaves it before its store is wiped: what the record names is there. */
void record_remember(struct volume *volume, const struct snapshot *snapshot);
void record_forget(struct volume *volume, const struct snapshot *snapshot);
/* No origin write is issued from here until pause_end(); drained() is called once nothing issued or copied is left. */
void pause_begin(struct volume *volume, void (*drained)(struct volume *volume));
void pause_end(struct volume *volume);
void pause_check(struct volume *volume);

/* Why the operation's store cannot be opened. */
void operation_complain_open(struct volume *volume, int error);
void create_start(struct volume *volume, struct operation *operation);
void extend_start(struct volume *volume, struct operation *operation);
void drop_start(struct volume *volume, struct operation *operation);
void stop_start(struct volume *volume, struct operation *operation);
bool drop_can_start(const struct volume *volume, const struct operation *operation);
bool snapshot_is_unread(const struct volume *volume, const struct operation *operation);

/* ---- fold.c ---- */
/*
 * Moves the exceptions of chain[index] that chain[index - 1] lacks into that one, and then takes it out of the chain, wipes
 * and closes it. `operation` may be NULL: a fold resumed at start-up. Takes volume->fold, and ends volume->operation.
 */
void fold_start(struct volume *volume, size_t index, struct operation *operation);
/* At start-up: the marks are on disk, chain[index - 1] has its log open. 0 or -ENOMEM. */
__attribute__((warn_unused_result)) int fold_resume(struct volume *volume, size_t index, bool newest);
/* A fold of the newest that failed is tried again. */
void fold_restart(struct volume *volume, struct operation *operation);
void fold_turn(struct volume *volume);
bool fold_is_quiet(const struct volume *volume); /* with volume->stopping: nothing of it is under way any more */
bool fold_is_stalled(const struct volume *volume);
/* The server stops while the fold is under way: its asker is told, it goes on at the next start. */
void fold_postpone(struct volume *volume);
void fold_free(struct volume *volume);
void fold_log_stuck(struct volume *volume, struct log *log, int error);
void fold_report(const struct volume *volume, const struct snapshot *snapshot, struct snapshot_report *report);
bool fold_involves(const struct volume *volume, const struct snapshot *snapshot);
bool fold_is_newest(const struct volume *volume);
/*
 * Whether the newest is being folded, or wiped after that. A snapshot taken now would have to follow a store that is going
 * away; or, were there a crash before the wipe, that store would be in nobody's place.
 */
bool fold_bars_creation(const struct volume *volume);
struct snapshot *fold_source(const struct volume *volume);

#endif
