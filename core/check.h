/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Looking at stores, and at the chain they are of, for whatever is wrong with them. Nothing is ever written.
 *
 * What is found is told one by one: what it is (a code that stays the same from version to version), where it is,
 * what it means, and what repair.h can do about it. Damage is a fault. What a crash leaves, and recovery deals with
 * by itself, is a notice; so is what cannot be verified because another store was not given.
 */
#ifndef CORE_CHECK_H
#define CORE_CHECK_H

#include "core/chain.h"
#include "core/store.h"

enum check_severity {
	CHECK_NOTICE,     /* nothing is wrong */
	CHECK_FAULT,      /* damage */
	CHECK_UNREADABLE, /* a read error: not known */
};

/* What repair does about a finding. */
enum check_mend {
	MEND_NOTHING,
	MEND_SUPERBLOCK,  /* both copies are written anew */
	MEND_METADATA,    /* the area's metadata copies are written anew from the two */
	MEND_LOST,        /* the slot's entry says "lost" from now on */
	MEND_VOID,        /* the slot's entry says "void" from now on */
	MEND_BROKEN,      /* the snapshot is marked broken, then the slots' entries say "void" */
	MEND_END,         /* the snapshot is marked broken, and its log ends where what is there ends */
	MEND_TAIL,        /* what lies past the log's end is cleared */
	MEND_PREDECESSOR, /* the link is set to what the other store proves */
};

enum check_code {
	/* the superblock */
	FOUND_SUPERBLOCK_COPY_DAMAGED,
	FOUND_SUPERBLOCK_COPY_UNREADABLE,
	FOUND_SUPERBLOCK_COPY_TORN,
	FOUND_SUPERBLOCK_COPY_BEHIND,
	FOUND_SUPERBLOCK_LOST,
	FOUND_SUPERBLOCK_CONTRADICTION,
	FOUND_FEATURES_UNKNOWN,
	FOUND_STORE_EMPTY,
	FOUND_STORE_NOT_STOPPED,
	FOUND_STORE_TRUNCATED,
	FOUND_SNAPSHOT_BROKEN,
	FOUND_WITNESS,
	/* the log */
	FOUND_METADATA_COPY_DAMAGED,
	FOUND_METADATA_COPY_UNREADABLE,
	FOUND_METADATA_COPY_TORN,
	FOUND_METADATA_COPY_BEHIND,
	FOUND_METADATA_COPIES_DIFFER,
	FOUND_ENTRY_LOST,
	FOUND_ENTRY_OUT_OF_RANGE,
	FOUND_ENTRY_UNREADABLE,
	FOUND_DATA_DAMAGED,
	FOUND_DATA_UNREADABLE,
	FOUND_FINGERPRINT_DAMAGED,
	FOUND_EXCEPTION_DUPLICATE,
	FOUND_EXCEPTION_CONTRADICTED,
	FOUND_BLOCKS_LOST,
	FOUND_SLOTS_VOID,
	FOUND_LEFTOVERS_PAST_END,
	FOUND_TAIL_TORN,
	FOUND_TAIL_UNREADABLE,
	FOUND_MARK_PAST_END,
	/* the chain */
	FOUND_NEWER_ABSENT,
	FOUND_OLDER_ABSENT,
	FOUND_CHAIN_CONTRADICTION,
	FOUND_PREDECESSOR_BEHIND,
	FOUND_STORE_LEFTOVER,
	FOUND_STORE_UNBORN,
	FOUND_NEWEST_UNFINISHED,
	FOUND_FOLD_UNFINISHED,
	FOUND_MERGE_UNFINISHED,
	FOUND_PART_ABSENT,
	FOUND_PART_ALONE,
	FOUND_COUNT,
};

struct check_kind {
	const char *code; /* "superblock-copy-damaged", ... */
	enum check_severity severity;
	enum check_mend mend;
	const char *meaning;
	bool concerns;      /* the snapshots that read from the store */
	const char *repair; /* what repair does; NULL: nothing */
};

const struct check_kind *check_kind(enum check_code code);

#define CHECK_NOWHERE UINT64_MAX
#define CHECK_TEXT_BYTES 1024u

struct check_store;

/* What does not apply is CHECK_NOWHERE. */
struct check_finding {
	enum check_code code;
	struct check_store *store;
	uint64_t copy;   /* of the superblock, or of an area's metadata: 0 or 1 */
	uint64_t area;
	uint64_t slot;   /* in the store's log */
	uint64_t block;  /* on the origin */
	uint64_t offset; /* in bytes, from the start of the store, or of its part number `part` */
	uint32_t part;
	uint64_t count;  /* of slots, blocks or entries, from there on, as the text says; else 1 */
	uint64_t time_ns; /* since the epoch: since when; 0: does not apply */
	char text[CHECK_TEXT_BYTES]; /* what was found; names may have control characters in them */
};

struct check_store {
	/* the caller's */
	struct store *store; /* open and locked, not loaded */
	bool links_only;     /* it is evidence only: its log is not looked at */

	/* what is found out */
	bool loaded;
	int load_error;      /* why there is nothing to check, for store_load_text(); 0 with findings that say so */
	const char *load_why;
	const char *const *concerned; /* the snapshots that read from it, the newest (its own) last */
	size_t concerned_count;
	bool older_absent;   /* older ones, whose stores were not given, do too */
	uuid128_t predecessor; /* with FOUND_PREDECESSOR_BEHIND: what it should be */
	uint64_t end_slots, durable_slots; /* the log's end and its durable mark, as far as both are there */
	uint64_t mark_past_end;            /* with FOUND_MARK_PAST_END: the mark, in slots */
	uint32_t tail_areas;               /* with FOUND_TAIL_TORN: it does not reach into area tail_areas */
	uint64_t areas, entries;
	uint64_t blocks_verified, bytes_verified; /* data blocks whose checksum is right */
};

struct check {
	/* the caller's */
	struct disk_host *host;
	struct check_store *stores;
	size_t count;
	bool quick; /* data is not read */
	void (*found)(const struct check_finding *finding, void *context);
	/* May be NULL. `total` may still grow a little. */
	void (*progress)(const struct check_store *store, uint64_t areas_done, uint64_t areas_total, void *context);
	void *context;

	/* private */
	const char **names; /* of the chain in order, then of each store */
};

/*
 * Loads all the stores and checks them; may be called again. Memory is 32 MiB at most, and a map of the blocks
 * preserved in one store. Returns 0, or -ENOMEM.
 */
__attribute__((warn_unused_result)) int check_run(struct check *check);
/* Frees what check_run() made, before the stores are closed. */
void check_end(struct check *check);

/* The parts of check_run(), in files of their own. */

/* Tells a finding. `at` names its place; the text is formatted into it. */
__attribute__((format(printf, 3, 4))) void check_tell(struct check *check, struct check_finding *at, const char *format,
						      ...);
struct check_finding check_at(struct check_store *store, enum check_code code);
/* check-chain.c: the links between those that were loaded. 0 or -ENOMEM. */
__attribute__((warn_unused_result)) int check_chain(struct check *check);
/* check-log.c: the log of one that was loaded. 0 or -ENOMEM. */
__attribute__((warn_unused_result)) int check_log(struct check *check, struct check_store *one);

#endif
