/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One store: its disk, its superblock, its exception map and, while it takes exceptions, its log (core/log.h).
 * See store.c for the rules of a superblock's change, recover.c for how a log is read back, and parts.c for where its
 * slots lie, when other stores are joined to it.
 */
#ifndef CORE_STORE_H
#define CORE_STORE_H

#include "core/map.h"
#include "core/trouble.h"
#include "format/superblock.h"
#include "io/disk.h"

struct log;
struct store;

/*
 * A change of the superblock, queued behind those before it. The owner keeps the structure until done().
 * done() gets 0 when at least one copy is durable and newest (a second that failed is logged and counts as degraded),
 * else the error, and then it is unknown which state the store is in: store->outcome_unknown until a later change succeeds.
 */
struct store_update {
	/* Makes the change; called when its turn comes. NULL: wipe both copies. */
	void (*apply)(struct superblock *superblock, void *context);
	void (*done)(struct store_update *update, int error);
	void *context;
	struct list link; /* private */
};

enum store_update_step {
	UPDATE_IDLE,
	UPDATE_WRITE_FIRST,
	UPDATE_FLUSH_FIRST,
	UPDATE_WRITE_SECOND,
	UPDATE_FLUSH_SECOND,
};

struct store_load {
	void (*done)(struct store_load *load, int error);
	void *context;
	const char *why; /* the field at fault, after -EINVAL and -EPROTONOSUPPORT; else NULL */
};

struct store {
	struct disk_host *host;
	struct disk *disk;
	char *path;
	struct superblock superblock; /* as last made durable */
	bool degraded;                /* only one of the two copies is good */
	bool uneven;                  /* both are good, but one is older: a change was cut short */
	bool outcome_unknown;         /* a change failed: either state may be on disk */
	unsigned newest_copy;
	/* What the load found of each copy: 0, a read error, or superblock_decode()'s, and then its `why` (may be NULL). */
	int copy_error[SUPERBLOCK_COPIES];
	const char *copy_why[SUPERBLOCK_COPIES];
	uint64_t copy_generation[SUPERBLOCK_COPIES]; /* of the good ones */
	uint64_t seed;
	struct map *map;   /* NULL until recovered */
	struct log *log;   /* NULL unless it takes exceptions */
	slot_t end;        /* the log's end, while there is no log */
	/*
	 * While there is no log: the metadata of the area that `end` lies in, and which copy on disk (0 or 1) holds it;
	 * -1 when `end` begins an area.
	 */
	uint8_t *open_meta;
	int open_copy;
	struct trouble trouble; /* with its slots */
	unsigned pins;     /* reads of slots under way: see store_pin() */
	void (*unpinned)(struct store *store, void *context); /* called once when pins reaches 0, then cleared */
	void *unpinned_context;

	/*
	 * How many flushes of it failed, whoever asked. A failure is told to one of those who flush at the same time, so the
	 * others must not count on theirs: store_barrier_result().
	 */
	unsigned barriers_failed;

	/* The change of the superblock, and the load, under way. */
	struct list updates;
	struct store_update *update;
	struct store_load *load;
	enum store_update_step step;
	struct superblock next;
	uint64_t generation_tried;
	unsigned copies_written;
	unsigned failed_before; /* barriers_failed when the copy's write began */
	bool first_written;
	int first_error;
	uint8_t *buffer; /* two superblocks; after a load, both copies as they were read */
	struct store_update waiting; /* store_update_wait()'s */
	struct disk_io io;

	/* The stores joined to it, as superblock.parts[] names them: its own. NULL: not here. */
	struct store *parts[STORE_PARTS_MAX - 1];
	struct store_update part_update; /* wiping them, one after the other */
	uint32_t part_at;
	int part_error; /* after a wipe of it that succeeded: why one of its parts could not be wiped, or 0 */
	uint64_t room_bytes; /* a file: what its file system had left when last looked at; UINT64_MAX: not known */
};

/* Opens the file or device (DISK_OPEN_* flags), reads nothing yet. Errors of disk_open(), -ENOMEM. */
__attribute__((warn_unused_result)) int store_open(struct disk_host *host, const char *path, unsigned flags,
						   struct store **store);
/* Nothing under way on it. Leaves the disk as it is. NULL is harmless. */
void store_close(struct store *store);

/*
 * Reads both superblock copies and takes the newest valid one. done() gets 0; -ENODATA (no rowsnap store); -EBADMSG, -EINVAL,
 * -EPROTONOSUPPORT as superblock_decode(); -EFBIG (a device smaller than the log it should hold); or a read error.
 */
void store_load_start(struct store *store, struct store_load *load);
__attribute__((warn_unused_result)) int store_load_wait(struct store *store, const char **why);

/* What a load's error means, for a message; `why` as the load left it. */
const char *store_load_text(int error, const char *why);

void store_update_start(struct store *store, struct store_update *update);
__attribute__((warn_unused_result)) int store_update_wait(struct store *store,
							  void (*apply)(struct superblock *superblock, void *context),
							  void *context);
__attribute__((warn_unused_result)) int store_wipe_wait(struct store *store);

/*
 * In memory, the mark being durable elsewhere: what the store's superblock says from here on, also when a change of it is
 * under way; the next one takes it along.
 */
void store_mark_broken(struct store *store, struct broken_mark mark);

/*
 * A flush has ended with `error`: whether what was written since barriers_failed was `failed_before` is durable. 0 or a
 * negative errno.
 */
__attribute__((warn_unused_result)) int store_barrier_result(struct store *store, unsigned failed_before, int error);

/* While a slot of the store is being read, the store must not be wiped or closed. */
void store_pin(struct store *store);
void store_unpin(struct store *store);

/* ---- parts.c: where the log lies. Part 0 is the store itself. Nothing here counts in other parts than it says. ---- */

/* How many parts there are to be, 1 or more; each of them, NULL when it is not here; and the first that is not, or 0. */
uint32_t store_part_count(const struct store *store);
struct store *store_part(const struct store *store, uint32_t index);
uint32_t store_missing_part(const struct store *store);
/* The one that the log goes on in; the ones behind it stand by. And the one that an area lies in. */
uint32_t store_last_part(const struct store *store);
uint32_t store_area_part(const struct store *store, uint32_t area);
uint32_t store_part_first_area(const struct store *store, uint32_t index);

/* Where an area, one of its metadata copies, or a slot is; the parts must be here. */
struct store_place {
	struct store *part;
	uint32_t index;
	uint64_t offset; /* bytes, in that part */
};
struct store_place store_area_place(const struct store *store, uint32_t area);
struct store_place store_meta_place(const struct store *store, uint32_t area, unsigned copy);
struct store_place store_slot_place(const struct store *store, slot_t slot);

/* How many of the area's slots are used, the first ones: all, but where the log was left for the next part. */
uint32_t store_area_slots(const struct store *store, uint32_t area);
/* Whether a slot is one of those skipped there: it counts as void, whatever lies in its place. */
bool store_slot_is_skipped(const struct store *store, uint64_t slot);

/* A barrier on each part. And how many flushes of any failed: as barriers_failed. */
__attribute__((warn_unused_result)) int store_flush_wait(struct store *store);
unsigned store_barriers_failed(const struct store *store);

/*
 * Gives each of the loaded stores the parts it names, out of the same array, in which what was given is NULL then. What is
 * left with ROLE_PART belongs to none of them. -ENOENT: *main lacks a part, the first is its number `part`; -EINVAL: *main
 * is given twice, or its part `part` contradicts it; -EFBIG: *main is shorter than its log. All that fits is joined all
 * the same.
 */
__attribute__((warn_unused_result)) int stores_join(struct store **stores, size_t count, struct store **main,
						    uint32_t *part);
/* What its error means, for a message about (*main)->path. */
#define STORE_TEXT_BYTES 256u
void stores_join_text(int error, const struct store *main, uint32_t part, char text[static STORE_TEXT_BYTES]);

/* What is left for it by its limits, devices and file systems, in all parts. UINT64_MAX: not known. */
uint64_t store_room_bytes(const struct store *store);

/* How many slots the store may ever hold, in the parts up to that the log goes on in: by their limits or devices' sizes. */
uint64_t store_capacity_slots(const struct store *store);
/* The same with those that stand by. */
uint64_t store_capacity_slots_later(const struct store *store);
/* How many there can be by their present sizes: a file may grow. */
uint64_t store_slots_there(const struct store *store);
/* Bytes its log takes up to `end`, superblocks included, in all parts or one; and the size they may grow to (0: no limit). */
uint64_t store_used_bytes(const struct store *store);
uint64_t store_part_used_bytes(const struct store *store, uint32_t index);
uint64_t store_limit_bytes(const struct store *store);
uint64_t store_part_limit_bytes(const struct store *store, uint32_t index);
/* The end of the log, whether it is open or not. */
slot_t store_end(const struct store *store);

/* A change: what was to be a snapshot's store, or a part, is an empty store again. The context is not looked at. */
void superblock_make_empty(struct superblock *superblock, void *context);

/* What `from` testifies of another store's break passes to `to` before `from` goes. */
void superblock_inherit_witness(struct superblock *to, const struct superblock *from);

block_t superblock_block_count(const struct superblock *superblock);

/*
 * Reads the log back into a new exception map (recover.c). With `writable`, an unclean log is made ready for appending: a
 * barrier, and the open area's metadata written anew. Sets store->end, and *lost_metadata when entries before the durable
 * mark could not be restored. `fingerprint` (may be NULL) is called for each fingerprint entry of the last run.
 * Errors: read errors, -ENOMEM, -EUCLEAN for a log that contradicts itself.
 */
struct recovery {
	bool writable;
	void (*fingerprint)(const struct fingerprint *fingerprint, void *context);
	void *context;
	bool lost_metadata;   /* out */
	int append_error;     /* out, with `writable`: why it cannot be made ready for appending; it can be read all the same */
	uint64_t slots_cut;   /* out: written but not durable, past the log's end */
	uint64_t areas_read;  /* out */
	uint64_t durable_slots; /* out: the durable mark that was found; also after a read error */
	uint64_t end_slots;     /* out: the log's end; after a read error, the slot it happened at */
	uint32_t unsettled_area; /* out: areas before it were not being written when a crash came */
};
__attribute__((warn_unused_result)) int store_recover(struct store *store, struct recovery *recovery);

/* A new empty store on an open disk (format.c). `limit_bytes` 0: none. Overwrites what is there. */
__attribute__((warn_unused_result)) int store_format_wait(struct disk_host *host, struct disk *disk, uint32_t block_bytes,
							  uint64_t limit_bytes, uint32_t slots_per_area,
							  uuid128_t *uuid);

#endif
