/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Small cases, all of them: an origin of 4 blocks, and every schedule of up to 3 operations upon it, from every start.
 * At every disk event every crash is tried on the side (probe.c): each subset of the unflushed writes is lost, or, where
 * they are many, each prefix, suffix and single one; each is torn; and the server is killed, starts again, and then the
 * power is cut.
 *
 *   ORDERLY     an operation begins when the one before has been answered and time has passed; crashes are tried from
 *               the last one's begin, since those before are those of a shorter schedule
 *   AT_ONCE     all are asked for at once, and the disks end their requests in order
 *   REVERSED    the same, and they end the latest first
 *
 * The blocks are of 32 KiB, so that there is one behind the fingerprinted area, for the discards. Block 0 is in it.
 */
#include <stdio.h>
#include <stdlib.h>

#include "tests/sim/run.h"

#define BLOCK_BYTES 32768u
#define BLOCKS 4u
#define STARTS 4u /* with so many snapshots */
#define OPERATIONS_MAX 3u
#define IDLE_TICKS 8u /* until the log is settled */

enum op { OP_WRITE, OP_WRITE_SAME, OP_DISCARD, OP_FLUSH, OP_SNAPSHOT, OP_DROP_OLDEST, OP_FOLD, OP_STOP, OPS };
enum mode { ORDERLY, AT_ONCE, REVERSED };

struct schedule {
	enum mode mode;
	unsigned start, count;
	enum op ops[OPERATIONS_MAX];
};

/* Of up to 3 operations. */
#define TUPLES (OPS + OPS * OPS + OPS * OPS * OPS)

_Static_assert(SCHEDULES_SHORT == STARTS * (OPS + OPS * OPS), "those of up to 2 operations");

/* Of each mode the shortest first. */
static struct schedule decode(uint64_t number)
{
	struct schedule schedule = { .mode = (enum mode)(number / (TUPLES * STARTS)) };
	uint64_t tuple = number % (TUPLES * STARTS) / STARTS, size = OPS;

	schedule.start = (unsigned)(number % STARTS);
	schedule.count = 1;
	while (tuple >= size) {
		tuple -= size;
		size *= OPS;
		schedule.count++;
	}
	for (unsigned i = schedule.count; i-- > 0; tuple /= OPS)
		schedule.ops[i] = (enum op)(tuple % OPS);
	return schedule;
}

uint64_t sim_schedule_count(void)
{
	return SCHEDULE_MODES * TUPLES * STARTS;
}

uint64_t sim_schedule_short(unsigned mode)
{
	return mode * TUPLES * STARTS;
}

static void describe(uint64_t number, const struct schedule *schedule)
{
	static const char *const modes[] = { "orderly", "at once", "reversed" };
	static const char *const ops[] = { "write",    "write same",  "discard", "flush",
					   "snapshot", "drop oldest", "fold",	 "stop" };

	sim_trace("schedule %llu, %s, with %u snapshots:", (unsigned long long)number, modes[schedule->mode],
		  schedule->start);
	for (unsigned i = 0; i < schedule->count; i++)
		sim_trace("  %s", ops[schedule->ops[i]]);
}

/* ---- operations ---- */

static void write_block(struct run *run, unsigned block)
{
	struct client *client = client_find(run);

	run->block_written = block;
	random_fill(random_next(&run->random), client->buffer, BLOCK_BYTES);
	submit(run, client, NULL, REQUEST_WRITE, 0, (uint64_t)block * BLOCK_BYTES, BLOCK_BYTES, false);
}

static struct snap *snap_existing(struct run *run, unsigned index)
{
	for (unsigned i = 0; i < run->snap_count; i++)
		if (run->snaps[i].state == SNAP_EXISTS && !run->snaps[i].busy && index-- == 0)
			return &run->snaps[i];
	return NULL;
}

/* The second of three, else the newest of two: the oldest is dropped otherwise. */
static void ask_fold(struct run *run)
{
	struct snap *snap = snap_existing(run, 1);

	if (snap != NULL)
		snapshot_drop(run, snap);
}

static void ask_snapshot(struct run *run)
{
	for (unsigned i = 0; i < run->store_count; i++)
		if (!run->store_used[i] && !sim_file_is_open(run->stores[i])) {
			snapshot_take(run, i);
			return;
		}
}

static void life_begin(struct run *run)
{
	static const struct crash_plan none;

	sim_set_crash(run->host, &none);
	run->totals->lives++;
	if (!open_volume(run))
		sim_fail("it cannot be opened");
}

static void ask(struct run *run, enum op op, unsigned at)
{
	static const unsigned blocks[OPERATIONS_MAX] = { 1, 0, 2 };

	switch (op) {
	case OP_WRITE:
		write_block(run, blocks[at]);
		return;
	case OP_WRITE_SAME:
		write_block(run, run->block_written);
		return;
	case OP_DISCARD:
		submit(run, client_find(run), NULL, REQUEST_DISCARD, 0, 0, run->origin_bytes, false);
		return;
	case OP_FLUSH:
		submit(run, client_find(run), NULL, REQUEST_FLUSH, 0, 0, 0, false);
		return;
	case OP_SNAPSHOT:
		ask_snapshot(run);
		return;
	case OP_DROP_OLDEST:
		if (snap_existing(run, 0) != NULL)
			snapshot_drop(run, snap_existing(run, 0));
		return;
	case OP_FOLD:
		ask_fold(run);
		return;
	case OP_STOP:
		end_life(run);
		life_begin(run);
		return;
	case OPS:
		break;
	}
}

/* ---- a schedule ---- */

static void let_time_pass(struct run *run)
{
	settle(run);
	for (unsigned tick = 0; tick < IDLE_TICKS; tick++) {
		sim_host_sleep(run->host, TICK_NS);
		volume_tick(run->volume);
		while (sim_in_flight(run->host) > 0)
			pump(run);
	}
}

/* So many snapshots, each with a block or two of its own. */
static void start(struct run *run, unsigned snapshots)
{
	life_begin(run);
	for (unsigned i = 0; i < snapshots; i++) {
		ask_snapshot(run);
		settle(run);
		write_block(run, 3);
		if (i > 0)
			write_block(run, i + 1 < BLOCKS ? i + 1 : 0);
		settle(run);
	}
	let_time_pass(run);
	run->block_written = 3;
}

static void on_event(void *context)
{
	struct run *run = context;

	if (run->probes_per_thousand > 0)
		probe_all(run);
}

static void play(struct run *run, const struct schedule *schedule)
{
	run->probes_per_thousand = schedule->mode != ORDERLY ? 1000 : 0;
	for (unsigned i = 0; i < schedule->count; i++) {
		if (i + 1 == schedule->count)
			run->probes_per_thousand = 1000;
		ask(run, schedule->ops[i], i);
		if (schedule->mode == ORDERLY)
			let_time_pass(run);
	}
	let_time_pass(run);
	probe_all(run);
	run->probes_per_thousand = 0;
	verify(run);
	end_life(run);
}

void sim_schedule(uint64_t number, struct sim_totals *totals)
{
	struct schedule schedule = decode(number);
	struct run *run = run_create(number, totals);

	run->is_exhaustive = true;
	run->origin_bytes = BLOCKS * BLOCK_BYTES;
	run->block_bytes = BLOCK_BYTES;
	run->slots_per_area = 2;
	run_make_origin(run, false, 512);
	for (unsigned i = 0; i < STARTS + OPERATIONS_MAX; i++)
		run_make_store(run, false);
	sim_set_order(run->host, schedule.mode == REVERSED ? SIM_LAST_FIRST : SIM_FIRST_FIRST);
	sim_set_hook(run->host, on_event, run);
	start(run, schedule.start);
	describe(number, &schedule);
	play(run, &schedule);
	run_end(run);
}
