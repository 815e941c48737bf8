/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Putting the origin back to a snapshot between two lives, with crashes at any moment until it is done. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/merge.h"
#include "tests/sim/run.h"

static void merge_progress(enum merge_stage stage, uint64_t done, uint64_t total, void *context)
{
	(void)context;
	if (done > total)
		sim_fail("a merge has done more than all (stage %d)", (int)stage);
}

static bool merge_is_cancelled(void *context)
{
	struct run *run = context;

	return random_chance(&run->random, 10);
}

/* What the origin holds must be what the target does, and the newer ones are no more. */
static void merge_ended(struct run *run, struct snap *target)
{
	uint8_t sector[SECTOR_BYTES];

	run->totals->merges++;
	for (uint64_t at = 0; at < run->origin_bytes; at += SECTOR_BYTES) {
		sim_file_peek(run->origin, at, sector, sizeof(sector));
		oracle_put_back(run->oracle, target->oracle, at, sector);
	}
	for (struct snap *snap = target + 1; snap < run->snaps + run->snap_count; snap++)
		if (snap->state != SNAP_GONE)
			snap_gone(snap);
}

static int try_merge(struct run *run, const struct snap *target, bool by_record, struct merge_report *report)
{
	const struct merge_options options = {
		.snapshot = target->name,
		.state_directory = run->options.state_directory,
		.dry_run = random_chance(&run->random, 100),
		.progress = merge_progress,
		.is_cancelled = merge_is_cancelled,
		.context = run,
	};
	const char *paths[SNAPSHOTS_MAX];
	struct complaint complaint;
	size_t count = 0;
	int error;

	for (unsigned i = 0; i < run->snap_count && !by_record; i++)
		if (run->snaps[i].state != SNAP_GONE && !run->snaps[i].absent)
			count += snap_paths(run, &run->snaps[i], paths + count);
	shuffle(run, paths, count);
	sim_trace("==== merge to %s%s%s", target->name, by_record ? " by the record" : "", options.dry_run ? ", dry" : "");
	error = merge_run(run->host, "origin", paths, count, &options, report, &complaint);
	run->totals->merges_resumed += report->resumed;
	if (error != 0)
		sim_trace("merge fails: %s: %s (%s)", complaint.what, complaint.why, strerror(-error));
	if (error != 0 && error != -EINTR && !may_fail(run))
		sim_fail("the origin cannot be put back: %s: %s", complaint.what, complaint.why);
	if (sim_in_flight(run->host) > 0)
		sim_fail("requests are in flight after a merge");
	return error == 0 && options.dry_run ? -EAGAIN : error;
}

static bool is_any_exported(const struct run *run, const struct snap *from)
{
	for (const struct snap *snap = from; snap < run->snaps + run->snap_count; snap++)
		if (snap->state == SNAP_EXISTS && export_find(&run->exports, snap->name) != NULL)
			return true;
	return false;
}

static unsigned newer_count(const struct run *run, const struct snap *target)
{
	unsigned count = 0;

	for (const struct snap *snap = target + 1; snap < run->snaps + run->snap_count; snap++)
		count += snap->state != SNAP_GONE;
	return count;
}

/*
 * A start after a merge that was cut short: refused, or there are all of the snapshots, or all but the newer ones. True:
 * the merge is done.
 */
static bool start_between(struct run *run, struct snap *target)
{
	bool by_record = random_chance(&run->random, 300) && !run->record_in_doubt, done = false;
	struct complaint complaint;
	int error = try_open(run, by_record, true, &complaint);

	if (error != 0 && error != -EINPROGRESS && !may_fail(run))
		sim_fail("a merge that was cut short makes a start fail: %s: %s", complaint.what, complaint.why);
	run->stopping = false;
	run->stopped = false;
	if (error == 0 && !sim_is_dead(run->host) && newer_count(run, target) > 0) {
		done = !is_any_exported(run, target + 1);
		if (done)
			merge_ended(run, target);
		verify(run);
	}
	end_life(run);
	return done;
}

static bool is_marked(const struct run *run, unsigned store)
{
	static const uint64_t offsets[] = { SUPERBLOCK_OFFSET_0, SUPERBLOCK_OFFSET_1 };
	bool marked = false;

	for (unsigned i = 0; i < 2; i++) {
		uint8_t bytes[SUPERBLOCK_BYTES];
		struct superblock superblock;

		sim_file_peek(run->stores[store], offsets[i], bytes, sizeof(bytes));
		marked = marked ||
			 (superblock_decode(bytes, &superblock, NULL) == 0 && superblock.state == STATE_MERGING);
	}
	return marked;
}

/* What cannot be put back, for faults, goes on as it is if it has not begun. */
static void merge_given_up(struct run *run)
{
	for (unsigned i = 0; i < run->snap_count; i++)
		if (run->snaps[i].state != SNAP_GONE && !run->snaps[i].absent && is_marked(run, run->snaps[i].store))
			run->store_lost = true;
}

/* `count` stores are to be marked. */
static void merge_crash_plan(struct run *run, unsigned count)
{
	enum crash_kind kinds[] = { CRASH_NONE, CRASH_POWER, CRASH_POWER, CRASH_KILL };
	struct crash_plan plan = { .kind = kinds[random_below(&run->random, 4)] };
	uint64_t dice = random_below(&run->random, 10);

	/* Of each store two superblocks are written for the mark, and two for the wipe or the end. */
	if (dice < 2)
		plan.events = 1 + random_below(&run->random, 400);
	else if (dice < 4)
		plan.origin_writes = 1 + random_below(&run->random, 8);
	else if (dice < 8)
		plan.store_writes = 1 + random_below(&run->random, 4 * count + 2);
	else
		plan.flushes = 1 + random_below(&run->random, 6 * count + 4);
	sim_set_crash(run->host, &plan);
}

static void merge_until_done(struct run *run, struct snap *target, struct merge_report *report)
{
	bool done = false;

	for (unsigned tries = 0; !done && !run->store_lost; tries++) {
		struct crash_plan none = { .kind = CRASH_NONE };
		int error;

		if (tries < 4)
			merge_crash_plan(run, 1 + newer_count(run, target));
		else
			sim_set_crash(run->host, &none);
		faults_pause(run, random_chance(&run->random, 300) || tries > 1);
		error = try_merge(run, target, random_chance(&run->random, 300) && !run->record_in_doubt, report);
		faults_pause(run, false);
		if (!sim_is_dead(run->host) && sim_flush_failed(run->host))
			sim_crash_now(run->host, CRASH_KILL); /* as at the end of a life */
		else if (error == 0 && !sim_is_dead(run->host) && random_chance(&run->random, 400))
			sim_crash_now(run->host, CRASH_POWER);
		done = error == 0;
		after_crash(run);
		if (done)
			merge_ended(run, target);
		run->merging = true;
		if (!done && random_chance(&run->random, 300))
			done = start_between(run, target);
		if (!done && may_fail(run) && tries > 12) {
			merge_given_up(run);
			return;
		}
	}
}

void merge_back(struct run *run)
{
	struct merge_report *report;
	struct snap *target;

	choose_absent(run);
	target = choose_snap(run);
	if (target == NULL || has_doubts(run) || run->hard_to_reopen)
		return;
	for (unsigned i = 0; i < run->snap_count; i++)
		if (run->snaps[i].doubtful && run->snaps[i].state != SNAP_GONE)
			return;
	report = sim_take(sizeof(*report));
	run->no_probes = true;
	merge_until_done(run, target, report);
	run->no_probes = false;
	sim_give(report);
	run->merging = false;
	if (run->store_lost)
		return;
	for (unsigned i = 0; i < run->store_count; i++)
		sim_file_set_absent(run->stores[i], false);
}
