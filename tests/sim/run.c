/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One run: an origin, some stores, and the lives of a server.
 *
 *   open --> verify all --> requests, snapshots, drops, in any order --> stop, or a crash at any moment --> open ...
 *
 * Between two lives the origin may be put back to a snapshot, with crashes at any moment until it is done. What is read
 * afterwards, of the origin and of all snapshots that are left, must be what that snapshot and those always were.
 *
 * In most runs nothing fails but power and the server, and then no request and no operation may fail either. In the
 * others disks fail or fill up, and then requests may fail, but what is read is right all the same; and in a life
 * without faults only those blocks may be unreadable that could not be read when they were to be preserved, or lie in a
 * chain that is marked broken.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/run.h"

/* ---- a life ---- */

static void plan_crash(struct run *run, enum crash_kind kind, uint64_t steps)
{
	struct crash_plan plan = { .kind = kind };
	uint64_t dice = random_below(&run->random, 10);

	if (dice < 5)
		plan.events = 1 + random_below(&run->random, steps * (random_chance(&run->random, 300) ? 12 : 4));
	else if (dice < 8)
		plan.origin_writes = 1 + random_below(&run->random, steps / 2 + 1);
	else if (dice < 9)
		plan.store_writes = 1 + random_below(&run->random, steps + 1);
	else
		plan.flushes = 1 + random_below(&run->random, steps + 1);
	sim_set_crash(run->host, &plan);
}

static void choose_operation(struct run *run)
{
	uint64_t dice = random_below(&run->random, 1000);

	if (dice < 500)
		take_snapshot(run);
	else if (dice < 800)
		drop_snapshot(run);
	else
		extend_snapshot(run);
}

/* One of the first allocations fails, or some all the time. */
static void plan_memory(struct run *run)
{
	struct sim_memory_plan plan = { 0 };

	if (run->short_of_memory && random_chance(&run->random, 500))
		plan.nth = random_range(&run->random, 1, 700);
	else if (run->short_of_memory)
		plan.per_thousand = (unsigned)random_range(&run->random, 1, 100);
	sim_memory_plan(&plan, random_next(&run->random));
}

/* A store's disk goes. Whatever it was for: it is back at the next start. */
static void vanish(struct run *run)
{
	const struct snap *snap = choose_snap(run);

	if (snap == NULL)
		return;
	sim_trace("==== the disk of %s goes", sim_file_name(run->stores[snap->store]));
	run->totals->vanished++;
	run->gone_turns = (unsigned)random_range(&run->random, 50, 2000);
	sim_file_set_gone(run->stores[snap->store], true);
}

static void one_life(struct run *run)
{
	struct sim_random *random = &run->random;
	uint64_t steps = random_range(random, 10, run->has_bursts ? 70 : random_chance(random, 200) ? 600 : 200);
	unsigned operations = (unsigned)random_below(random, 60);
	enum crash_kind kinds[] = { CRASH_NONE, CRASH_NONE, CRASH_POWER, CRASH_POWER, CRASH_POWER, CRASH_KILL, CRASH_KILL };
	enum crash_kind kind = kinds[random_below(random, 7)];

	run->life++;
	run->totals->lives++;
	all_come_back(run);
	if (run->opened_before && random_chance(random, 200))
		merge_back(run);
	if (run->store_lost)
		return;
	if (run->opened_before && random_chance(random, 100))
		tamper(run);
	if (run->opened_before && random_chance(random, run->may_rot ? 600 : 100))
		rot(run);
	plan_memory(run);
	plan_crash(run, kind, steps);
	if (!open_volume(run)) {
		end_life(run);
		return;
	}
	if (run->life > 1 && random_chance(random, 800))
		verify(run);
	for (uint64_t step = 0; step < steps && !sim_is_dead(run->host); step++) {
		uint64_t dice = random_below(random, 1000);

		if (run->faulty && random_chance(random, 2))
			vanish(run);
		if (dice < operations && snaps_busy(run) < 3)
			choose_operation(run);
		else if (dice < 500)
			submit_random(run);
		else
			pump(run);
		if (random_chance(random, 5)) {
			(void)is_folding(run);
			settle(run);
			if (random_chance(random, 300))
				verify(run);
		}
	}
	if (kind == CRASH_NONE || random_chance(random, 300)) {
		if (random_chance(random, 500))
			settle(run);
		if (random_chance(random, 500) && !sim_is_dead(run->host))
			verify(run);
	} else if (!sim_is_dead(run->host)) {
		sim_crash_now(run->host, kind);
	}
	end_life(run);
}

/* ---- a run ---- */

static void choose_faults(struct run *run)
{
	struct sim_random *random = &run->random;
	static const unsigned rates[] = { 0, 0, 0, 2, 10, 50 };
	struct faults origin = { 0 }, stores = { 0 };

	run->short_of_memory = random_chance(random, 120);
	run->record_in_doubt = run->short_of_memory;
	run->may_rot = random_chance(random, 200);
	run->limited = random_chance(random, 250);
	run->faulty = random_chance(random, run->has_bursts ? 100 : 300);
	run->thin = run->limited && random_chance(random, 300);
	if (run->thin)
		sim_set_room(run->host, random_range(random, 30, 300));
	run->options.on_full = run->limited || run->faulty ? (enum on_full)random_below(random, 3) : ON_FULL_BREAK;
	if (!run->faulty)
		return;
	origin.read = rates[random_below(random, 6)];
	origin.write = rates[random_below(random, 6)];
	origin.flush = rates[random_below(random, 5)];
	stores.read = rates[random_below(random, 6)];
	stores.write = rates[random_below(random, 6)];
	stores.flush = rates[random_below(random, 6)];
	stores.no_room = rates[random_below(random, 6)];
	sim_set_faults(run->host, &origin, &stores);
	if (random_chance(random, 300)) {
		run->record_in_doubt = true;
		sim_set_record_faults(run->host, (unsigned)random_range(random, 50, 1000));
	}
	if (random_chance(random, 200))
		sim_file_set_bad_pages(run->origin, 20);
	for (unsigned i = 0; i < run->store_count; i++)
		if (random_chance(random, 100)) {
			sim_file_set_bad_pages(run->stores[i], 20);
			run->bad_stores = true;
		}
}

static void make_disks(struct run *run)
{
	struct sim_random *random = &run->random;
	unsigned stores;
	uint64_t blocks;

	run->has_bursts = random_chance(random, 120);
	blocks = random_range(random, run->has_bursts ? 100 : 8, run->has_bursts || random_chance(random, 300) ? 200 : 30);
	run->block_bytes = run->has_bursts || random_chance(random, 850) ? 4096 : random_chance(random, 700) ? 8192 : 16384;
	run->origin_bytes = blocks * run->block_bytes;
	if (random_chance(random, 400))
		run->origin_bytes -= random_below(random, run->block_bytes / SECTOR_BYTES) * SECTOR_BYTES;
	run->small_areas = run->has_bursts ? 120 : random_chance(random, 800) ? (unsigned)random_range(random, 1, 6) : 0;
	run_make_origin(run, random_chance(random, 500),
			random_chance(random, 700) || run->origin_bytes % 4096 != 0 ? 512 : 4096);
	stores = (unsigned)random_range(random, 2, STORES_MAX);
	while (run->store_count < stores)
		run_make_store(run, random_chance(random, 300));
}

static void on_event(void *context)
{
	struct run *run = context;

	if (!run->no_probes && random_chance(&run->random, run->probes_per_thousand))
		probe(run);
}

/* What is told of a store must be true, and of a snapshot there is. */
static void told(const struct volume_event *event, void *context)
{
	const struct run *run = context;
	const struct snap *of = NULL;

	sim_trace("told: snapshot %s is %u %% full (%u)", event->snapshot, event->percent, event->threshold);
	for (unsigned i = 0; i < run->snap_count; i++)
		if (strcmp(run->snaps[i].name, event->snapshot) == 0)
			of = &run->snaps[i];
	if (of == NULL || of->state == SNAP_GONE)
		sim_fail("told of snapshot %s, which is not there", event->snapshot);
	switch (event->kind) {
	case VOLUME_EVENT_THRESHOLD:
		if (event->percent < event->threshold || event->percent > 100 || event->threshold == 0)
			sim_fail("told that %u %% is %u %%", event->percent, event->threshold);
		break;
	case VOLUME_EVENT_BROKEN:
	case VOLUME_EVENT_FULL:
		if (!run->limited && !run->faulty && !run->short_of_memory && !run->may_rot)
			sim_fail("told that the store of snapshot %s, which has room, is full", event->snapshot);
		break;
	}
}

static void warn_of_fullness(struct run *run)
{
	static const unsigned thresholds[] = { 1, 50, 80, 95 };

	memcpy(run->options.warn_at, thresholds, sizeof(thresholds));
	run->options.warn_count = sizeof(thresholds) / sizeof(thresholds[0]);
	run->options.event = told;
	run->options.event_context = run;
}

void sim_run(uint64_t seed, struct sim_totals *totals)
{
	struct run *run = run_create(seed, totals);
	uint64_t lives;

	run->options.discard_copy = random_chance(&run->random, 300);
	make_disks(run);
	choose_faults(run);
	/* By the seed, so that what a seed does otherwise stays the same. A late error is no part of the oracle. */
	if (seed % 4 == 3 && !run->faulty && !run->limited && !run->short_of_memory && !run->may_rot)
		run->options.write_back_bytes = (8 + seed / 4 % 56) * 4096;
	run->in_order = seed % 4 == 1;
	/* Where writes may wait for room, settling waits for idle moments, which looking at the room would never leave. */
	if (seed % 16 == 6 && run->options.on_full != ON_FULL_WAIT)
		warn_of_fullness(run);
	run->probes_per_thousand = 26;
	sim_set_hook(run->host, on_event, run);
	lives = random_range(&run->random, run->has_bursts ? 8 : 1, run->has_bursts ? 20 : 6);
	while (lives-- > 0 && !run->store_lost)
		one_life(run);
	run_end(run);
}

/* ---- what all runs have ---- */

struct run *run_create(uint64_t seed, struct sim_totals *totals)
{
	struct run *run = sim_take(sizeof(*run));

	run->random.state = seed * 2654435761u;
	run->totals = totals;
	run->host = sim_host_create(seed ^ UINT64_C(0x123456789));
	run->options = (struct volume_options){ .name = "v", .state_directory = "state" };
	sim_record_reset(run->host);
	for (unsigned i = 0; i < CLIENTS_MAX; i++)
		run->clients[i].buffer = sim_take_pages(BUFFER_BYTES);
	return run;
}

void run_make_origin(struct run *run, bool is_device, uint32_t sector_bytes)
{
	uint8_t sector[SECTOR_BYTES];

	run->origin = sim_file_create(run->host, "origin", true, is_device, run->origin_bytes, sector_bytes);
	run->oracle = oracle_create(run->origin_bytes);
	for (uint64_t at = 0; at < run->origin_bytes; at += SECTOR_BYTES) {
		if (at / 4096 % 4 == 1)
			continue;
		random_fill(at + 7, sector, sizeof(sector));
		sim_file_poke(run->origin, at, sector, sizeof(sector));
		oracle_set(run->oracle, at, sector, sizeof(sector));
	}
}

void run_make_store(struct run *run, bool is_device)
{
	char name[16];

	(void)snprintf(name, sizeof(name), "store%u", run->store_count);
	run->stores[run->store_count++] = sim_file_create(run->host, name, false, is_device, is_device ? 64u << 20 : 0,
							  random_chance(&run->random, 500) ? 512 : 4096);
}

void run_end(struct run *run)
{
	static const struct sim_memory_plan plenty;
	const struct sim_counters *counters = sim_host_counters(run->host);

	run->totals->runs++;
	run->totals->events += counters->events;
	run->totals->power_cuts += counters->power_cuts;
	run->totals->kills += counters->kills;
	run->totals->faults += counters->faults;
	sim_record_reset(NULL);
	for (unsigned i = 0; i < CLIENTS_MAX; i++)
		sim_give(run->clients[i].buffer);
	oracle_destroy(run->oracle);
	disk_host_destroy(run->host);
	sim_memory_plan(&plenty, 0);
	run->totals->memory_failures = sim_memory_failed();
	if (sim_memory_in_use() != 0)
		sim_fail("%lld pieces of memory are leaked", (long long)sim_memory_in_use());
	sim_give(run);
}
