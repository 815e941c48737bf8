/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Crashes tried on the side: at any moment of a run all of its world is cloned (what is on the disks, unflushed and in
 * flight; what is known of it), the clone crashes, a new server recovers what is left, and everything is verified.
 * The run goes on as if nothing had been.
 */
#include <stdlib.h>

#include "tests/sim/run.h"

/* Lives after the first crash: killed, started, and then the power is cut, before the one that must come through. */
#define LIVES_MAX 3u

static uint8_t *probe_buffer(unsigned client)
{
	static uint8_t *buffers[CLIENTS_MAX];

	if (buffers[client] == NULL)
		buffers[client] = sim_take_pages(BUFFER_BYTES);
	return buffers[client];
}

static struct run *run_clone(const struct run *from, uint64_t seed, struct sim_totals *totals,
			     void (*crash_it)(struct disk_host *host, void *context), void *context)
{
	struct run *run = sim_take(sizeof(*run));

	*run = *from;
	run->random.state = seed;
	run->is_probe = true;
	run->totals = totals;
	run->host = sim_host_clone(from->host, seed + 1, crash_it, context);
	run->oracle = oracle_clone(from->oracle);
	run->origin = sim_file_in(run->host, from->origin);
	for (unsigned i = 0; i < run->store_count; i++)
		run->stores[i] = sim_file_in(run->host, from->stores[i]);
	for (unsigned i = 0; i < run->snap_count; i++) {
		struct snap *snap = &run->snaps[i];

		snap->run = run;
		snap->busy = false;
		snap->oracle = snap->oracle != NULL ? oracle_snapshot_find(run->oracle, snap->name) : NULL;
	}
	for (unsigned i = 0; i < CLIENTS_MAX; i++) {
		run->clients[i].under_way = false;
		run->clients[i].buffer = probe_buffer(i);
	}
	run->clients_under_way = 0;
	all_come_back(run);
	run->volume = NULL;
	run->stopping = false;
	run->stopped = false;
	return run;
}

/* A life in which nothing is asked for; the last one must come through. */
static void recover(struct run *run, bool last)
{
	struct crash_plan plan = { .kind = random_chance(&run->random, 700) ? CRASH_POWER : CRASH_KILL };

	plan.events = 1 + random_below(&run->random, 60);
	if (last)
		plan.kind = CRASH_NONE;
	sim_set_crash(run->host, &plan);
	if (open_volume(run))
		verify(run);
	end_life(run);
}

static void probe_with(struct run *from, void (*crash_it)(struct disk_host *host, void *context), void *context,
		       void (*recover_it)(struct run *run))
{
	struct sim_totals totals = { 0 };
	struct sim_world before;
	uint64_t seed = random_next(&from->random);
	struct run *run = run_clone(from, seed, &totals, crash_it, context);

	bool paused = sim_memory_pause(true);

	sim_trace("---- a crash on the side");
	sim_world_enter(run->host, &before);
	after_crash(run);
	recover_it(run);
	from->totals->probes++;
	from->totals->power_cuts += sim_host_counters(run->host)->power_cuts - sim_host_counters(from->host)->power_cuts;
	from->totals->kills += sim_host_counters(run->host)->kills - sim_host_counters(from->host)->kills;
	from->totals->reads_checked += totals.reads_checked;
	from->totals->rooms += totals.rooms;
	from->totals->repairs += totals.repairs;
	sim_world_leave(&before);
	oracle_destroy(run->oracle);
	disk_host_destroy(run->host);
	sim_give(run);
	(void)sim_memory_pause(paused);
	sim_trace("---- and back");
}

/* ---- one at random ---- */

static void crash_at_random(struct disk_host *host, void *context)
{
	sim_crash_now(host, *(enum crash_kind *)context);
}

static void recover_at_random(struct run *run)
{
	unsigned lives = random_chance(&run->random, 300) ? (unsigned)random_range(&run->random, 2, LIVES_MAX) : 1;

	if (random_chance(&run->random, run->rotten ? 500 : 60))
		repair_one(run);
	if (random_chance(&run->random, 60))
		look_offline(run);
	while (lives-- > 0 && !run->store_lost)
		recover(run, lives == 0);
}

void probe(struct run *run)
{
	enum crash_kind kind = random_chance(&run->random, 750) ? CRASH_POWER : CRASH_KILL;

	if (!sim_is_dead(run->host))
		probe_with(run, crash_at_random, &kind, recover_at_random);
}

/* ---- all of them ---- */

#define UNFLUSHED_MAX 64u
#define SUBSETS_MAX 4u /* of so many writes: every subset */

/* Which of the unflushed writes a power cut leaves. */
struct choice {
	struct sim_cut cut;
	uint64_t requests[UNFLUSHED_MAX];
	size_t count;
	uint64_t kept;           /* a bit for each */
	size_t torn;             /* this one's first or second half only; UNFLUSHED_MAX: none */
	bool second_half;
};

static bool keeps(const struct sim_cut *cut, uint64_t request, uint32_t index, uint32_t total)
{
	const struct choice *choice = (const struct choice *)(const void *)cut; /* its first member */
	size_t at = 0;

	while (at < choice->count && choice->requests[at] != request)
		at++;
	if (at == choice->count)
		return false;
	if (at == choice->torn)
		return index < total / 2 ? !choice->second_half : choice->second_half;
	return (choice->kept & UINT64_C(1) << at) != 0;
}

static void crash_as_chosen(struct disk_host *host, void *context)
{
	sim_cut(host, &((struct choice *)context)->cut);
}

static void recover_once(struct run *run)
{
	recover(run, true);
}

static void try_choice(struct run *run, struct choice *choice, uint64_t kept)
{
	choice->kept = kept;
	probe_with(run, crash_as_chosen, choice, recover_once);
}

static void try_subsets(struct run *run, struct choice *choice)
{
	uint64_t all = choice->count == 64 ? UINT64_MAX : (UINT64_C(1) << choice->count) - 1;

	choice->torn = UNFLUSHED_MAX;
	if (choice->count <= SUBSETS_MAX) {
		for (uint64_t kept = 0; kept <= all; kept++)
			try_choice(run, choice, kept);
		return;
	}
	try_choice(run, choice, 0);
	for (size_t i = 0; i < choice->count; i++) {
		uint64_t bit = UINT64_C(1) << i;

		try_choice(run, choice, all & (bit | (bit - 1))); /* the first ones */
		try_choice(run, choice, all & ~(bit - 1));        /* the last ones */
		try_choice(run, choice, bit);
		try_choice(run, choice, all & ~bit);
	}
}

static void try_torn(struct run *run, struct choice *choice)
{
	uint64_t all = choice->count == 64 ? UINT64_MAX : (UINT64_C(1) << choice->count) - 1;

	for (size_t i = 0; i < choice->count; i++)
		for (unsigned half = 0; half < 2; half++) {
			choice->torn = i;
			choice->second_half = half == 1;
			try_choice(run, choice, all);
			if (choice->count > 1)
				try_choice(run, choice, 0);
		}
}

static bool keeps_nothing(const struct sim_cut *cut, uint64_t request, uint32_t index, uint32_t total)
{
	(void)cut;
	(void)request;
	(void)index;
	(void)total;
	return false;
}

/* The server is killed, a new one recovers, and then the power is cut: what only the cache had is gone. */
static void recover_and_cut(struct run *run)
{
	static const struct sim_cut nothing = { keeps_nothing };
	bool opened = open_volume(run);

	if (opened)
		verify(run);
	sim_cut(run->host, &nothing);
	end_life(run);
	recover(run, true);
}

static void kill(struct disk_host *host, void *context)
{
	(void)context;
	sim_crash_now(host, CRASH_KILL);
}

void probe_all(struct run *run)
{
	struct choice choice = { .cut = { keeps } };

	choice.count = sim_unflushed(run->host, choice.requests, UNFLUSHED_MAX);
	try_subsets(run, &choice);
	try_torn(run, &choice);
	probe_with(run, kill, NULL, recover_and_cut);
}
