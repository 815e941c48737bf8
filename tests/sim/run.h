/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A run: an origin, some stores, the server's lives one after the other, what is asked of it and what is known.
 *
 *   run.c        a run as random as it can be
 *   exhaustive.c all short schedules, with a crash at every moment
 *   lives.c      a life: start, turns, end
 *   clients.c    requests and their answers
 *   snapshots.c  taking and dropping snapshots
 *   merging.c    putting the origin back
 *   probe.c      crashes on the side
 *   offline.c    the offline tools upon what a crash left
 *   damage.c     what happens to disks while no server runs
 */
#ifndef TESTS_SIM_RUN_H
#define TESTS_SIM_RUN_H

#include "tests/sim/sim.h"

#define STORES_MAX 10u
#define SNAPSHOTS_MAX 48u
#define CLIENTS_MAX 14u
#define EXTENTS_MAX 24u
#define BUFFER_BYTES ((size_t)160 << 10)
#define IDLE_TICKS_MAX 400u
#define TICK_NS UINT64_C(100000000)

enum snap_state {
	SNAP_CREATING, /* asked for */
	SNAP_UNKNOWN,  /* a crash came before the answer */
	SNAP_EXISTS,
	SNAP_DROPPING, /* to be dropped, or being folded */
	SNAP_GONE,
};

struct run;

struct snap {
	struct run *run;
	char name[32];
	enum snap_state state;
	unsigned store;
	unsigned parts; /* bit mask of the stores that were joined to it, or were to be */
	unsigned joining; /* the one that is under way */
	bool busy, absent, begun;
	bool doubtful; /* its drop failed with its store's disk: it may be carried out at the next start */
	struct oracle_snapshot *oracle;
	struct operation operation;
};

struct client {
	struct run *run;
	struct request request;
	struct oracle_write write;
	struct snap *snap; /* NULL: the origin */
	bool verifying, under_way;
	uint64_t begun, faults_before;
	unsigned number;
	uint8_t *buffer;
	struct disk_extent extents[EXTENTS_MAX];
};

struct run {
	uint64_t seed;
	struct sim_random random;
	struct disk_host *host;
	struct oracle *oracle;
	struct sim_totals *totals;
	struct sim_file *origin;
	uint64_t origin_bytes;
	uint32_t block_bytes;
	struct sim_file *stores[STORES_MAX];
	bool store_used[STORES_MAX];
	unsigned store_count;
	struct snap snaps[SNAPSHOTS_MAX + 1];
	unsigned snap_count;
	struct client clients[CLIENTS_MAX];
	unsigned clients_under_way, client_number, life;
	bool is_probe; /* a clone: see probe.c */
	bool no_probes; /* what is on the disks now need not be accepted */
	bool merging; /* a merge was cut short: newer stores may be wiped */
	bool faulty, limited, opened_before, hard_to_reopen, bad_stores, store_lost;
	bool thin;             /* the stores' file system has little room, which is told late */
	bool record_in_doubt;  /* it may not be up to date: its writes fail, or memory did */
	bool short_of_memory; /* some of the engine's allocations fail */
	bool may_rot, rotten; /* stores: their logs, and not only what there are two copies of */
	bool is_ragged;       /* check may find something, but nothing else may */
	bool has_bursts; /* large areas, large writes, short lives */
	unsigned small_areas;
	unsigned probes_per_thousand; /* disk events at which a crash is tried on the side */
	bool is_exhaustive;           /* see exhaustive.c: nothing is left to chance */
	bool in_order;                /* most writes begin where the one before ended */
	uint64_t write_end;           /* of the last one */
	uint32_t slots_per_area;      /* of the stores; 0: at random */
	unsigned block_written;       /* last, by exhaustive.c */
	struct volume_options options;
	struct export_table exports;
	struct volume *volume;
	struct operation stop;
	unsigned gone_turns; /* so many turns until the disks that have gone are back; 0: none has */
	bool stopping, stopped;
	int stop_error;
	uint8_t twins[STORES_MAX][SUPERBLOCK_BYTES]; /* superblock copies of former times */
};

/* Whether requests and operations may fail. */
static inline bool may_fail(const struct run *run)
{
	return run->faulty || run->limited || run->short_of_memory || run->rotten || sim_is_dead(run->host);
}

/* ---- lives.c ---- */

/* Nothing fails meanwhile but what is bad for good. */
void faults_pause(struct run *run, bool pause);
void pump(struct run *run);   /* a few disk events, then the engine's turn; or time passes */
void all_come_back(struct run *run); /* the disks that have gone */
void settle(struct run *run); /* until all that was asked is answered */
void report_hang(const struct run *run, const char *what) __attribute__((noreturn));
bool is_folding(struct run *run);
bool may_wait(const struct run *run);
void choose_absent(struct run *run);
void shuffle(struct run *run, const char **paths, size_t count);
size_t choose_paths(struct run *run, const char **paths, bool all); /* of the stores that are to be named */
int try_open(struct run *run, bool by_record, bool all, struct complaint *complaint);
bool open_volume(struct run *run); /* false: a crash, or nothing more can be done with this volume */
void request_stop(struct run *run);
void end_life(struct run *run);
void after_crash(struct run *run);

/* ---- clients.c ---- */

struct client *client_find(struct run *run);
void submit(struct run *run, struct client *client, struct snap *snap, enum request_op op, unsigned flags,
	    uint64_t offset, uint64_t length, bool verifying);
void submit_random(struct run *run);
void verify(struct run *run); /* reads all of the origin and of every snapshot */

/* ---- snapshots.c ---- */

void snap_gone(struct snap *snap);
bool snap_listed(const struct run *run, const struct snap *snap, struct snapshot_report *report);
unsigned snaps_busy(const struct run *run);
struct snap *choose_snap(struct run *run);
bool has_doubts(const struct run *run); /* whether it is unknown of some whether they exist */
void snapshot_take(struct run *run, unsigned store); /* into a store not in use */
void snapshot_drop(struct run *run, struct snap *snap);
void take_snapshot(struct run *run); /* these: at random */
void drop_snapshot(struct run *run);
void extend_snapshot(struct run *run);
/* Adds the paths of a snapshot's store and of its parts, as far as these say that they are. */
size_t snap_paths(const struct run *run, const struct snap *snap, const char **paths);
bool snap_lost_part(const struct run *run, const struct snap *snap); /* to a disk that fails */

/* ---- run.c ---- */

struct run *run_create(uint64_t seed, struct sim_totals *totals);
void run_make_origin(struct run *run, bool is_device, uint32_t sector_bytes); /* of run->origin_bytes */
void run_make_store(struct run *run, bool is_device);
void run_end(struct run *run);

/* ---- probe.c ---- */

/* Tries a crash at this moment, on the side; the other: all there are. */
void probe(struct run *run);
void probe_all(struct run *run);

/* ---- damage.c: all of these between two lives ---- */

void rot(struct run *run);
void tamper(struct run *run);

/* ---- offline.c ---- */

void look_offline(struct run *run);
void repair_one(struct run *run);

/* ---- merging.c ---- */

void merge_back(struct run *run);

#endif
