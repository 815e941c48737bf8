/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The offline tools upon what a crash left, on the side, before a server recovers it: what they read is what the server
 * will serve; what diff tells is so; and a repair, cut short or not, makes nothing wrong.
 */
#include <errno.h>
#include <stdlib.h>

#include "core/diff.h"
#include "core/offline.h"
#include "core/repair.h"
#include "tests/sim/run.h"

#define BLOCKS_MAX 512u

/* ---- reading ---- */

static void read_piece(struct run *run, struct offline *offline, const struct snap *snap, size_t point, uint64_t offset)
{
	uint8_t *buffer = run->clients[0].buffer;
	uint64_t begun = oracle_time(run->oracle), length = run->block_bytes;
	int error;

	if (length > run->origin_bytes - offset)
		length = run->origin_bytes - offset;
	error = offline_read_wait(offline, point, buffer, offset, length);
	if (error != 0 && (!may_fail(run) || error != -EIO))
		sim_fail("byte %llu of %s cannot be read offline: %s", (unsigned long long)offset,
			 snap != NULL ? snap->name : "the origin", strerror(-error));
	if (error != 0)
		return;
	run->totals->reads_checked++;
	if (snap != NULL)
		oracle_check_snapshot(run->oracle, snap->oracle, offset, length, buffer);
	else
		oracle_check_origin(run->oracle, begun, offset, length, buffer);
}

static void read_point(struct run *run, struct offline *offline, const struct snap *snap, size_t point)
{
	for (uint64_t offset = 0; offset < run->origin_bytes; offset += run->block_bytes)
		read_piece(run, offline, snap, point, offset);
}

/* ---- diff ---- */

struct marks {
	const struct run *run;
	bool differs[BLOCKS_MAX];
};

static void mark(uint64_t offset, uint64_t length, void *context)
{
	struct marks *marks = context;

	for (uint64_t at = offset / marks->run->block_bytes;
	     at * marks->run->block_bytes < offset + length && at < BLOCKS_MAX; at++)
		marks->differs[at] = true;
}

static void check_diff(struct run *run, struct offline *offline, size_t from, size_t to, bool exact)
{
	struct marks marks = { .run = run };
	struct diff_options options = { from, to, exact, mark, &marks };
	uint8_t *one = run->clients[0].buffer, *other = run->clients[1].buffer;
	struct complaint complaint = { .why = "" };
	int error = diff_check(offline, &options, &complaint);

	if (error == 0)
		error = diff_run(offline, &options, &complaint);
	if (error != 0 && !may_fail(run))
		sim_fail("diff fails: %s: %s", complaint.what, complaint.why);
	for (uint64_t offset = 0; offset < run->origin_bytes && error == 0; offset += run->block_bytes) {
		uint64_t rest = run->origin_bytes - offset, length = rest < run->block_bytes ? rest : run->block_bytes;
		bool told = marks.differs[offset / run->block_bytes], equal;

		if (offline_read_wait(offline, from, one, offset, length) != 0 ||
		    offline_read_wait(offline, to, other, offset, length) != 0)
			continue;
		equal = memcmp(one, other, (size_t)length) == 0;
		if (!equal && !told)
			sim_fail("diff does not tell that byte %llu differs", (unsigned long long)offset);
		if (exact && equal && told)
			sim_fail("diff --exact tells of byte %llu, which does not differ", (unsigned long long)offset);
	}
}

/* ---- all of it ---- */

static void look(struct run *run, struct offline *offline)
{
	size_t points[SNAPSHOTS_MAX + 1], count = 0, point;
	struct complaint complaint;

	for (unsigned i = 0; i < run->snap_count; i++) {
		const struct snap *snap = &run->snaps[i];

		if (snap->state != SNAP_EXISTS || snap->absent || snap->doubtful)
			continue;
		if (offline_find(offline, snap->name, &point, &complaint) != 0)
			sim_fail("snapshot %s, which must exist, is not found offline", snap->name);
		points[count++] = point;
		read_point(run, offline, snap, point);
	}
	if (offline_find(offline, "origin", &point, &complaint) != 0)
		sim_fail("the origin is not found offline");
	read_point(run, offline, NULL, point);
	points[count++] = point;
	check_diff(run, offline, points[random_below(&run->random, count)], points[random_below(&run->random, count)],
		   random_chance(&run->random, 500));
}

void look_offline(struct run *run)
{
	struct offline_options options = { .state_directory = "state" };
	struct offline *offline = NULL;
	const char *paths[SNAPSHOTS_MAX];
	struct complaint complaint;
	size_t count;
	int error;

	choose_absent(run);
	count = choose_paths(run, paths, true);
	if (count == 0 || run->store_lost)
		return;
	sim_trace("==== offline");
	faults_pause(run, random_chance(&run->random, 700));
	error = offline_open(run->host, "origin", paths, count, &options, &offline, &complaint);
	if (error != 0)
		sim_trace("it cannot be opened offline: %s: %s", complaint.what, complaint.why);
	if (error != 0 && !may_fail(run) && !has_doubts(run) && !run->merging)
		sim_fail("it cannot be opened offline: %s: %s", complaint.what, complaint.why);
	if (error == 0)
		look(run, offline);
	offline_close(offline);
	faults_pause(run, false);
}

/* ---- repair ---- */

static void note(const struct check_finding *finding, void *context)
{
	sim_trace("check: %s: %s", check_kind(finding->code)->code, finding->text);
	repair_note(context, finding);
}

static void repair_opened(struct run *run, struct check_store *one)
{
	struct repair repair = { .one = one };
	struct check check = { .host = run->host, .stores = one, .count = 1, .found = note, .context = &repair };
	struct crash_plan plan = { .kind = random_chance(&run->random, 500) ? CRASH_POWER : CRASH_NONE };
	int error = check_run(&check);

	plan.store_writes = 1 + random_below(&run->random, 12);
	sim_set_crash(run->host, &plan);
	if (error == 0 && one->loaded && repair_is_planned(&repair)) {
		error = repair_carry_out(&repair);
		run->totals->repairs++;
		sim_trace("repair: %s, %llu writes", strerror(-error), (unsigned long long)repair.writes);
		if (error != 0 && !may_fail(run))
			sim_fail("a repair fails: %s", strerror(-error));
	}
	repair_end(&repair);
	check_end(&check);
}

void repair_one(struct run *run)
{
	const struct snap *snap = choose_snap(run);
	static const struct crash_plan none;
	struct check_store one = { .links_only = false };

	if (snap == NULL || run->store_lost || run->merging)
		return;
	sim_trace("==== repair %s", sim_file_name(run->stores[snap->store]));
	if (store_open(run->host, sim_file_name(run->stores[snap->store]), DISK_OPEN_LOCK, &one.store) != 0)
		sim_fail("a store cannot be opened");
	repair_opened(run, &one);
	store_close(one.store);
	sim_set_crash(run->host, &none);
	if (!sim_is_dead(run->host) && sim_flush_failed(run->host))
		sim_crash_now(run->host, CRASH_KILL);
	after_crash(run);
}
