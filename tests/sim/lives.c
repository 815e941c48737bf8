/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A life of the server: its start, its turns, its end. Whatever is left by the life before is recovered at the start.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/sim/run.h"

/* ---- going on ---- */

void faults_pause(struct run *run, bool pause)
{
	sim_pause_faults(run->host, pause);
	(void)sim_memory_pause(pause || run->is_probe);
}

void all_come_back(struct run *run)
{
	run->gone_turns = 0;
	for (unsigned i = 0; i < run->store_count; i++)
		sim_file_set_gone(run->stores[i], false);
}

/* What can go on goes on in the turn that makes it possible: after that one, with nothing in flight, another does nothing. */
static void check_that_nothing_sleeps(struct run *run)
{
	unsigned waiting = run->clients_under_way + snaps_busy(run);

	if (sim_in_flight(run->host) > 0)
		return;
	volume_turn(run->volume);
	if (sim_in_flight(run->host) > 0 || run->clients_under_way + snaps_busy(run) != waiting)
		sim_fail("something could have gone on, and would have waited for the next tick");
}

void pump(struct run *run)
{
	uint64_t batch = run->is_exhaustive ? 1 : random_range(&run->random, 1, 4);

	/* Not for ever: a seal of unknown outcome is tried again until it is known, and writes wait for that. */
	if (run->gone_turns > 0 && --run->gone_turns == 0)
		all_come_back(run);
	if (sim_in_flight(run->host) == 0) {
		volume_turn(run->volume);
		check_that_nothing_sleeps(run);
	}
	if (sim_in_flight(run->host) == 0) {
		sim_host_sleep(run->host, TICK_NS);
		volume_tick(run->volume);
		return;
	}
	while (batch-- > 0 && sim_event(run->host))
		;
	volume_turn(run->volume);
	if (!run->is_exhaustive && random_chance(&run->random, 10)) {
		sim_host_sleep(run->host, TICK_NS);
		volume_tick(run->volume);
	}
}

void report_hang(const struct run *run, const char *what)
{
	printf("# nothing is in flight, and %s\n", what);
	sim_print_in_flight(run->host);
	for (unsigned i = 0; i < CLIENTS_MAX; i++)
		if (run->clients[i].under_way)
			printf("# request %u: op %d %llu+%llu of %s waits\n", run->clients[i].number,
			       (int)run->clients[i].request.op, (unsigned long long)run->clients[i].request.offset,
			       (unsigned long long)run->clients[i].request.length,
			       run->clients[i].snap != NULL ? run->clients[i].snap->name : "origin");
	for (unsigned i = 0; i < run->snap_count; i++)
		if (run->snaps[i].busy)
			printf("# %s of snapshot %s waits\n", run->snaps[i].state == SNAP_CREATING ? "creation" : "drop or extend",
			       run->snaps[i].name);
	if (run->stopping && !run->stopped)
		printf("# the stop waits\n");
	sim_fail("it hangs");
}

/* A drop that goes on by itself (a fold resumed at start-up) has ended when the snapshot is not listed any more. */
bool is_folding(struct run *run)
{
	struct snapshot_report report;
	bool folding = false;

	if (sim_is_dead(run->host))
		return false;
	for (unsigned i = 0; i < run->snap_count; i++) {
		struct snap *snap = &run->snaps[i];

		if (snap->state != SNAP_DROPPING || snap->busy || snap->absent)
			continue;
		if (snap_listed(run, snap, &report) && export_find(&run->exports, snap->name) != NULL)
			snap->state = SNAP_EXISTS;
		else if (sim_file_is_open(run->stores[snap->store])) /* until it is wiped */
			folding = true;
		else
			snap_gone(snap);
	}
	return folding;
}

/* Writes may wait for ever for a store that is full, or has failed, if the policy is to wait. */
bool may_wait(const struct run *run)
{
	return run->options.on_full == ON_FULL_WAIT && (run->faulty || run->limited);
}

void settle(struct run *run)
{
	unsigned idle = 0;
	uint64_t turns = 0;

	while (!sim_is_dead(run->host) &&
	       (run->clients_under_way > 0 || snaps_busy(run) > 0 || (is_folding(run) && !may_fail(run)))) {
		idle = sim_in_flight(run->host) == 0 ? idle + 1 : 0;
		if (run->thin && idle == IDLE_TICKS_MAX / 2) {
			run->totals->rooms++;
			sim_set_room(run->host, random_below(&run->random, 60));
		}
		if (idle > IDLE_TICKS_MAX || ++turns > 2000000) {
			if (may_wait(run))
				return;
			report_hang(run, turns > 2000000 ? "it goes on and on" : "requests or operations are not done");
		}
		pump(run);
	}
}

/* ---- starting ---- */

/* UNFINISHED: sealed, but without a successor. */
enum found { FOUND_NONE, FOUND_EMPTY, FOUND_PREPARED, FOUND_UNFINISHED, FOUND_OTHER };

/* What the superblock of a store says, to somebody who looks at the disk. */
static enum found look_at_store(const struct run *run, unsigned store)
{
	static const uint64_t offsets[] = { SUPERBLOCK_OFFSET_0, SUPERBLOCK_OFFSET_1 };
	enum found found = FOUND_NONE;
	uint64_t generation = 0;

	for (unsigned i = 0; i < 2; i++) {
		uint8_t bytes[SUPERBLOCK_BYTES];
		struct superblock superblock;
		const char *why;

		sim_file_peek(run->stores[store], offsets[i], bytes, sizeof(bytes));
		if (superblock_decode(bytes, &superblock, &why) != 0 || superblock.generation < generation)
			continue;
		generation = superblock.generation;
		found = superblock.state == STATE_EMPTY	   ? FOUND_EMPTY :
			superblock.state == STATE_PREPARED ? FOUND_PREPARED :
			superblock.state == STATE_SEALED && uuid_is_nil(&superblock.successor_uuid) ?
							     FOUND_UNFINISHED :
							     FOUND_OTHER;
	}
	return found;
}

void shuffle(struct run *run, const char **paths, size_t count)
{
	for (size_t i = count; i > 1; i--) {
		size_t j = (size_t)random_below(&run->random, i);
		const char *path = paths[j];

		paths[j] = paths[i - 1];
		paths[i - 1] = path;
	}
}

/* The oldest ones may stay away, when nothing was under way. */
void choose_absent(struct run *run)
{
	bool away = !run->hard_to_reopen && !run->is_exhaustive && random_chance(&run->random, 150);
	unsigned present = 0;

	for (unsigned i = 0; i < run->snap_count; i++) {
		struct snap *snap = &run->snaps[i];

		snap->absent = false;
		if (snap->state == SNAP_DROPPING || snap->state == SNAP_CREATING || snap->state == SNAP_UNKNOWN)
			away = false;
		/* A snapshot whose store could not be made active exists all the same; the one before it is needed. */
		if (snap->state == SNAP_EXISTS && may_fail(run) && look_at_store(run, snap->store) < FOUND_OTHER)
			away = false;
		present += snap->state == SNAP_EXISTS;
	}
	for (unsigned i = 0; i < run->snap_count && away && present > 1; i++) {
		if (run->snaps[i].state != SNAP_EXISTS)
			continue;
		run->snaps[i].absent = true;
		present--;
		away = random_chance(&run->random, 500);
	}
	for (unsigned i = 0; i < run->store_count; i++)
		sim_file_set_absent(run->stores[i], false);
	for (unsigned i = 0; i < run->snap_count; i++)
		if (run->snaps[i].state != SNAP_GONE)
			sim_file_set_absent(run->stores[run->snaps[i].store], run->snaps[i].absent);
}

size_t choose_paths(struct run *run, const char **paths, bool all)
{
	size_t count = 0;

	for (unsigned i = 0; i < run->snap_count; i++) {
		struct snap *snap = &run->snaps[i];
		enum found found;

		if (snap->state == SNAP_GONE || snap->absent)
			continue;
		found = look_at_store(run, snap->store);
		/* An update whose first copy fails goes on with the second: both may be lost when that one fails too. */
		run->store_lost = run->store_lost || (found == FOUND_NONE && sim_superblock_failed(run->stores[snap->store]));
		if (found < FOUND_PREPARED && snap->state == SNAP_EXISTS && !run->store_lost && !run->merging)
			sim_fail("the store of snapshot %s, which must exist, is not its store any more", snap->name);
		if (found < FOUND_PREPARED ||
		    (found == FOUND_PREPARED && snap->state != SNAP_EXISTS && !all && random_chance(&run->random, 500)))
			continue;
		run->store_lost = run->store_lost || snap_lost_part(run, snap);
		count += snap_paths(run, snap, paths + count);
	}
	shuffle(run, paths, count);
	return count;
}

int try_open(struct run *run, bool by_record, bool all, struct complaint *complaint)
{
	const char *paths[SNAPSHOTS_MAX];
	size_t count = by_record ? 0 : choose_paths(run, paths, all);
	int error;

	if (count == 0 && !by_record)
		sim_record_reset(run->host); /* it may name stores that are wiped */
	export_table_init(&run->exports);
	run->volume = NULL;
	if (sim_is_tracing()) {
		sim_trace("==== open%s", by_record ? " by the record" : "");
		for (size_t i = 0; i < count; i++)
			sim_trace("store %s", paths[i]);
	}
	error = volume_open(run->host, &run->exports, "origin", paths, count, &run->options, &run->volume, complaint);
	if (error != 0)
		sim_trace("open fails: %s: %s (%s)", complaint->what, complaint->why, strerror(-error));
	if (error != 0 && !list_is_empty(&run->exports.exports))
		sim_fail("exports are left of a volume that could not be opened");
	return error;
}

/* After an open: what was under way at the crash is known now. */
static void resolve_snaps(struct run *run)
{
	struct snapshot_report report;

	for (unsigned i = 0; i < run->snap_count; i++) {
		struct snap *snap = &run->snaps[i];
		bool exported = export_find(&run->exports, snap->name) != NULL;

		if (snap->state == SNAP_GONE && exported)
			sim_fail("snapshot %s, which was dropped, is there again", snap->name);
		if (snap->state == SNAP_GONE || snap->absent)
			continue;
		if (exported)
			snap->state = SNAP_EXISTS;
		else if (snap->state == SNAP_EXISTS && !snap->doubtful)
			sim_fail("snapshot %s, which must exist, is not there", snap->name);
		else if (!snap_listed(run, snap, &report))
			snap_gone(snap);
		else
			snap->state = SNAP_DROPPING;
	}
}

void after_crash(struct run *run)
{
	enum crash_kind how = sim_crashed_how(run->host);

	if (!sim_is_dead(run->host))
		return;
	run->hard_to_reopen = run->hard_to_reopen || sim_origin_flush_failed(run->host);
	if (how == CRASH_POWER)
		oracle_power_cut(run->oracle);
	else
		oracle_kill(run->oracle, sim_origin_flush_failed(run->host) || run->options.write_back_bytes > 0);
	for (unsigned i = 0; i < run->snap_count; i++) {
		struct snap *snap = &run->snaps[i];

		if (snap->state == SNAP_CREATING) {
			snap->state = SNAP_UNKNOWN;
			oracle_snapshot_end(run->oracle, snap->oracle);
		}
	}
	sim_revive(run->host);
}

/* False: a crash, or nothing more can be done with this volume. */
bool open_volume(struct run *run)
{
	bool by_record = !run->opened_before ||
			 (random_chance(&run->random, 400) && !run->hard_to_reopen && !run->record_in_doubt);
	bool quiet = random_chance(&run->random, 500);
	struct complaint complaint;
	int error = -EAGAIN;

	choose_absent(run);
	run->stopping = false;
	run->stopped = false;
	for (unsigned tries = 0; error != 0; tries++) {
		faults_pause(run, quiet || tries > 0);
		error = try_open(run, by_record, tries > 1, &complaint);
		faults_pause(run, false);
		if (error != 0 && sim_is_dead(run->host))
			return false;
		if (error != 0 && sim_flush_failed(run->host)) {
			sim_crash_now(run->host, CRASH_KILL);
			after_crash(run);
		}
		if (error != 0 && run->thin)
			sim_set_room(run->host, 60);
		if (error != 0 && tries == 3) {
			/* What was overwritten in the fingerprinted area may be back if the origin lost what it flushed. */
			if (error == -ESTALE && run->hard_to_reopen)
				return false;
			if (run->bad_stores || run->store_lost) /* metadata that cannot be written is not survived at a start */
				return false;
			sim_fail("it cannot be opened: %s: %s", complaint.what, complaint.why);
		}
		if (error != 0 && !may_fail(run) && !by_record && !has_doubts(run))
			sim_fail("it cannot be opened by name: %s: %s", complaint.what, complaint.why);
		if (error != 0 && !may_fail(run) && by_record && !has_doubts(run))
			sim_fail("it cannot be opened by its record: %s: %s", complaint.what, complaint.why);
		by_record = error != 0 ? false : by_record;
	}
	run->opened_before = true;
	if (run->store_lost)
		return false;
	if (!sim_is_dead(run->host))
		resolve_snaps(run);
	return true;
}

/* ---- ending ---- */

static void stop_done(struct operation *operation, int error)
{
	struct run *run = operation->context;

	sim_trace("stop: %s %s", strerror(-error), operation->complaint.why);
	run->stopped = true;
	run->stop_error = error;
	if (error != 0 && !may_fail(run))
		sim_fail("the stop fails: %s", operation->complaint.why);
}

void request_stop(struct run *run)
{
	if (run->stopping)
		return;
	sim_trace("==== stop");
	run->stopping = true;
	run->stop = (struct operation){ .done = stop_done, .context = run };
	volume_stop(run->volume, &run->stop);
}

/* Ends the life: stops the volume, dead or alive, and closes it. Nothing may be left. */
void end_life(struct run *run)
{
	uint64_t begun_at = oracle_time(run->oracle), turns = 0;
	unsigned idle = 0;
	bool crashed;

	while (run->volume != NULL && !run->stopped) {
		request_stop(run);
		idle = sim_in_flight(run->host) == 0 ? idle + 1 : 0;
		if (idle > IDLE_TICKS_MAX || ++turns > 2000000)
			report_hang(run, turns > 2000000 ? "it goes on and on" : "the stop is not done");
		pump(run);
	}
	/* What the stop leaves in the background, such as an allocation, must have ended too. */
	if (sim_in_flight(run->host) > 0) {
		sim_print_in_flight(run->host);
		sim_fail("requests are in flight after the stop");
	}
	if (run->clients_under_way > 0)
		report_hang(run, "requests are left after the stop");
	crashed = sim_is_dead(run->host);
	if (run->volume != NULL && !crashed && run->stop_error == 0)
		oracle_flush_end(run->oracle, begun_at);
	volume_close(run->volume);
	run->volume = NULL;
	for (unsigned i = 0; i < run->snap_count; i++) {
		struct snap *snap = &run->snaps[i];

		if (snap->busy && snap->state == SNAP_CREATING)
			sim_fail("the creation of %s was not answered by the stop", snap->name);
		snap->busy = false;
	}
	if (!crashed && !run->is_exhaustive && random_chance(&run->random, 300)) {
		run->hard_to_reopen = run->hard_to_reopen || sim_origin_flush_failed(run->host);
		sim_crash_now(run->host, random_chance(&run->random, 700) ? CRASH_POWER : CRASH_KILL);
	} else if (!crashed && sim_flush_failed(run->host)) {
		/* What a failed flush left in the cache has its fate before the next life: see sim-disk.c, rule 4. */
		sim_crash_now(run->host, CRASH_KILL);
	}
	after_crash(run);
	if (!may_fail(run) && !run->is_ragged)
		sim_check_stores(run->host, run->stores, run->store_count);
}
