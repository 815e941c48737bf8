/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The simulator: the real engine on disks in memory, which lose, tear and reorder what was not flushed, and an oracle
 * that knows what may be read. Everything follows from one seed.
 *
 *   sim.c        the command line
 *   run.h        runs: the lives of a server, what clients ask of it, and what they may be answered
 *   oracle.c     what each sector of the origin and of each snapshot may hold
 *   check.c      check finds no fault in what a crash leaves
 *   sim-disk.c   io/disk.h on memory; crashes and faults
 *   sim-host.c   the volume's record in memory, messages, random numbers
 *   sim-memory.c memory that runs short
 */
#ifndef TESTS_SIM_H
#define TESTS_SIM_H

#include "core/record.h"
#include "core/store.h"
#include "core/volume.h"
#include "io/disk.h"

#define SECTOR_BYTES 512u

/* ---- sim-host.c ---- */

struct sim_random {
	uint64_t state;
};

uint64_t random_next(struct sim_random *random);
uint64_t random_below(struct sim_random *random, uint64_t limit);
uint64_t random_range(struct sim_random *random, uint64_t low, uint64_t high); /* both included */
bool random_chance(struct sim_random *random, unsigned per_thousand);
void random_fill(uint64_t seed, uint8_t *out, size_t bytes);

void sim_begin(bool trace);
bool sim_is_tracing(void);
__attribute__((format(printf, 1, 2))) void sim_trace(const char *format, ...);
/* Prints what is wrong; ends the process. */
__attribute__((format(printf, 1, 2), noreturn)) void sim_fail(const char *format, ...);

void sim_record_reset(struct disk_host *host); /* forgets the saved record */
/* Another world, with a copy of the record; and back. */
struct sim_world {
	struct disk_host *host;
	struct record *saved;
};
void sim_world_enter(struct disk_host *host, struct sim_world *before);
void sim_world_leave(const struct sim_world *before);

/* ---- sim-memory.c ---- */

void sim_memory_start(void);
/* Which of the engine's requests for memory fail: one (counted from 1; 0: none), and so many of a thousand. */
struct sim_memory_plan {
	uint64_t nth;
	unsigned per_thousand;
};
void sim_memory_plan(const struct sim_memory_plan *plan, uint64_t seed);
bool sim_memory_pause(bool pause); /* returns what it was before */
uint64_t sim_memory_failed(void);  /* how many have failed */
int64_t sim_memory_in_use(void);   /* pieces that the engine has not given back */

/* The simulator's own never fail. */
void *sim_take(size_t bytes); /* zeroed */
void *sim_take_pages(size_t bytes);
void *sim_resize(void *memory, size_t count, size_t bytes);
void sim_give(void *memory);

/* ---- sim-disk.c ---- */

#define FILES_MAX 24u

/* Per thousand requests. */
struct faults {
	unsigned read, write, flush, no_room;
};

enum crash_kind { CRASH_NONE, CRASH_POWER, CRASH_KILL };

/* When the machine, or only the server, dies: whichever comes first. 0: never. */
struct crash_plan {
	enum crash_kind kind;
	uint64_t events;        /* after so many disk events */
	uint64_t origin_writes; /* when so many writes of the origin were submitted, at once */
	uint64_t store_writes;  /* the same for the stores */
	uint64_t flushes;       /* when so many flushes were completed */
};

struct sim_file;

struct sim_counters {
	uint64_t events, power_cuts, kills, faults;
};

struct disk_host *sim_host_create(uint64_t seed);
struct sim_random *sim_host_random(struct disk_host *host);
struct sim_counters *sim_host_counters(struct disk_host *host);
uint64_t sim_host_time(struct disk_host *host);
void sim_host_sleep(struct disk_host *host, uint64_t ns);

struct sim_file *sim_file_create(struct disk_host *host, const char *name, bool is_origin, bool is_device,
				 uint64_t bytes, uint32_t sector_bytes);
void sim_file_set_absent(struct sim_file *file, bool absent);
/* Whether a sector of the range is not as a power cut would leave it. */
bool sim_file_is_dirty(const struct sim_file *file, uint64_t offset, uint64_t bytes);
bool sim_file_is_open(const struct sim_file *file);
void sim_file_set_gone(struct sim_file *file, bool gone); /* its disk: until it is back everything fails */
void sim_file_set_bad_pages(struct sim_file *file, unsigned per_thousand);
/* What a reader would see now. */
void sim_file_peek(const struct sim_file *file, uint64_t offset, uint8_t *out, size_t bytes);
void sim_file_poke(struct sim_file *file, uint64_t offset, const uint8_t *data, size_t bytes); /* durably */
const char *sim_file_name(const struct sim_file *file);

/* So many pages more for the stores that are files, though allocating room succeeds. */
void sim_set_room(struct disk_host *host, uint64_t pages);
void sim_set_record_faults(struct disk_host *host, unsigned per_thousand); /* of its writes */
bool sim_record_fails(struct disk_host *host);
void sim_set_faults(struct disk_host *host, const struct faults *origin, const struct faults *stores);
void sim_pause_faults(struct disk_host *host, bool pause);
void sim_set_crash(struct disk_host *host, const struct crash_plan *plan);
void sim_crash_now(struct disk_host *host, enum crash_kind kind);
/* From a crash until sim_revive() every request fails and changes nothing. */
bool sim_is_dead(const struct disk_host *host);
enum crash_kind sim_crashed_how(const struct disk_host *host);
void sim_revive(struct disk_host *host);
/* While on, requests are carried out in order, without faults, and do not count as events. For formatting. */
void sim_set_immediate(struct disk_host *host, bool on);
enum sim_order { SIM_AT_RANDOM, SIM_FIRST_FIRST, SIM_LAST_FIRST }; /* the latter two: each request as a whole */
void sim_set_order(struct disk_host *host, enum sim_order order);
void sim_set_hook(struct disk_host *host, void (*hook)(void *context), void *context); /* before each event */
/* Runs one disk event; false: there is none. */
bool sim_event(struct disk_host *host);
size_t sim_in_flight(const struct disk_host *host);
void sim_print_in_flight(const struct disk_host *host);
/* Whether reading this origin page ever failed, so that its old content may be lost; a failed flush of the origin. */
bool sim_origin_read_failed(const struct disk_host *host, uint64_t offset, uint64_t bytes);
bool sim_superblock_failed(const struct sim_file *file);
bool sim_flush_failed(const struct disk_host *host); /* any, since the last crash */
bool sim_origin_flush_failed(const struct disk_host *host);

/* A copy as it is now, and as crash_it() leaves it: that must be a crash. */
struct disk_host *sim_host_clone(const struct disk_host *from, uint64_t seed,
				 void (*crash_it)(struct disk_host *host, void *context), void *context);
struct sim_file *sim_file_in(struct disk_host *host, const struct sim_file *file); /* the clone's */
/* The writes, by their numbers in order, that a power cut may undo: unflushed or in flight. At most `max`. */
size_t sim_unflushed(const struct disk_host *host, uint64_t *requests, size_t max);
/* A power cut that leaves what keeps() says of those writes: sector `index` of `total`. */
struct sim_cut {
	bool (*keeps)(const struct sim_cut *cut, uint64_t request, uint32_t index, uint32_t total);
};
void sim_cut(struct disk_host *host, const struct sim_cut *cut);

/* ---- oracle.c ---- */

#define WRITES_PER_CELL 4u

struct oracle;
struct oracle_snapshot;

/* A write of a client: WRITE (data), ZERO (data NULL) or DISCARD. */
struct oracle_write {
	uint64_t offset, length;
	const uint8_t *data;
	bool discard;
	bool fua;
};

struct oracle *oracle_create(uint64_t origin_bytes);
/* A copy, with its snapshots, which shares what it can: to be destroyed before the original. */
struct oracle *oracle_clone(struct oracle *oracle);
struct oracle_snapshot *oracle_snapshot_find(const struct oracle *oracle, const char *name); /* NULL: none */
void oracle_destroy(struct oracle *oracle);
void oracle_set(struct oracle *oracle, uint64_t offset, const uint8_t *data, uint64_t bytes); /* durable */
/* Whether the write may begin without making the oracle's sets too large. */
bool oracle_has_room(const struct oracle *oracle, uint64_t offset, uint64_t length);
void oracle_write_begin(struct oracle *oracle, struct oracle_write *write);
void oracle_write_end(struct oracle *oracle, struct oracle_write *write, bool ok);
uint64_t oracle_time(struct oracle *oracle); /* a stamp, for read_begin and flush_begin */
void oracle_flush_end(struct oracle *oracle, uint64_t begun);
/* Checks what was read of the origin since `begun`; NULL data: a hole. */
void oracle_check_origin(struct oracle *oracle, uint64_t begun, uint64_t offset, uint64_t length, const uint8_t *data);
/* No read that began before `oldest` is under way. */
void oracle_prune(struct oracle *oracle, uint64_t oldest);
void oracle_power_cut(struct oracle *oracle);
void oracle_kill(struct oracle *oracle, bool cache_lost);

struct oracle_snapshot *oracle_snapshot_begin(struct oracle *oracle, const char *name);
void oracle_snapshot_end(struct oracle *oracle, struct oracle_snapshot *snapshot);
void oracle_snapshot_destroy(struct oracle *oracle, struct oracle_snapshot *snapshot);
/* Somebody else wrote a sector, durably, while nobody read. */
void oracle_overwrite(struct oracle *oracle, uint64_t offset, const uint8_t *data);
/* The origin was put back to the snapshot, durably: `data` is what it holds at the cell at `offset` now. */
void oracle_put_back(struct oracle *oracle, struct oracle_snapshot *snapshot, uint64_t offset, const uint8_t *data);
void oracle_check_snapshot(struct oracle *oracle, struct oracle_snapshot *snapshot, uint64_t offset, uint64_t length,
			   const uint8_t *data);

/* ---- check.c ---- */

/* None of these is open. Leaves the run as it is. */
void sim_check_stores(struct disk_host *host, struct sim_file *const *files, size_t count);

/* ---- run.c ---- */

struct sim_totals {
	uint64_t runs, lives, power_cuts, kills, events, requests, snapshots, drops, faults, reads_checked;
	uint64_t merges, merges_resumed, probes;
	uint64_t memory_failures, repairs, damages, refusals, vanished, rooms;
};

void sim_run(uint64_t seed, struct sim_totals *totals);

/* ---- exhaustive.c ---- */

uint64_t sim_schedule_count(void);
/* Those of up to 2 operations are, in each of so many modes (exhaustive.c), the first ones, from sim_schedule_short(). */
#define SCHEDULE_MODES 3u
#define SCHEDULES_SHORT 288u
uint64_t sim_schedule_short(unsigned mode);
void sim_schedule(uint64_t number, struct sim_totals *totals);

#endif
