/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The snapshots of a run: taking and dropping them, and what is known of each. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/sim/run.h"

void snap_gone(struct snap *snap)
{
	struct run *run = snap->run;

	if (snap->oracle != NULL)
		oracle_snapshot_destroy(run->oracle, snap->oracle);
	snap->oracle = NULL;
	snap->state = SNAP_GONE;
	run->store_used[snap->store] = false;
	for (unsigned i = 0; i < run->store_count; i++)
		if ((snap->parts & 1u << i) != 0)
			run->store_used[i] = false;
	snap->parts = 0;
}

/* Whether a store's superblock says, to somebody who looks at the disk, that it is a part; *found: that there is one. */
static bool looks_like_part(const struct run *run, unsigned store, bool *found)
{
	static const uint64_t offsets[] = { SUPERBLOCK_OFFSET_0, SUPERBLOCK_OFFSET_1 };
	uint64_t generation = 0;
	bool part = false;

	*found = false;
	for (unsigned i = 0; i < 2; i++) {
		uint8_t bytes[SUPERBLOCK_BYTES];
		struct superblock superblock;

		sim_file_peek(run->stores[store], offsets[i], bytes, sizeof(bytes));
		if (superblock_decode(bytes, &superblock, NULL) != 0 || superblock.generation < generation)
			continue;
		generation = superblock.generation;
		part = superblock.role == ROLE_PART;
		*found = true;
	}
	return part;
}

size_t snap_paths(const struct run *run, const struct snap *snap, const char **paths)
{
	size_t count = 0;
	bool found;

	paths[count++] = sim_file_name(run->stores[snap->store]);
	for (unsigned i = 0; i < run->store_count; i++)
		if ((snap->parts & 1u << i) != 0 && looks_like_part(run, i, &found))
			paths[count++] = sim_file_name(run->stores[i]);
	return count;
}

bool snap_lost_part(const struct run *run, const struct snap *snap)
{
	bool found;

	for (unsigned i = 0; i < run->store_count; i++)
		if ((snap->parts & 1u << i) != 0 && !looks_like_part(run, i, &found) && !found &&
		    sim_superblock_failed(run->stores[i]))
			return true;
	return false;
}

/* Whether the volume lists a snapshot of this name, and how. */
bool snap_listed(const struct run *run, const struct snap *snap, struct snapshot_report *report)
{
	for (size_t i = 0; i < volume_snapshot_count(run->volume); i++) {
		volume_report_snapshot(run->volume, i, report);
		if (strcmp(report->name, snap->name) == 0 && strcmp(report->state, "absent") != 0)
			return true;
	}
	return false;
}

static void created(struct operation *operation, int error)
{
	struct snap *snap = operation->context;
	struct run *run = snap->run;

	sim_trace("snapshot %s: %s %s", snap->name, strerror(-error), operation->complaint.why);
	snap->busy = false;
	if (sim_is_dead(run->host))
		return;
	oracle_snapshot_end(run->oracle, snap->oracle);
	run->totals->snapshots++;
	if (error == 0)
		snap->state = SNAP_EXISTS;
	else if (run->stopping)
		snap->state = SNAP_UNKNOWN;
	else if (!may_fail(run))
		sim_fail("snapshot %s cannot be taken: %s: %s", snap->name, operation->complaint.what,
			 operation->complaint.why);
	else
		snap_gone(snap);
}

static void dropped(struct operation *operation, int error)
{
	struct snap *snap = operation->context;
	struct run *run = snap->run;
	struct snapshot_report report;

	sim_trace("drop %s: %s %s", snap->name, strerror(-error), operation->complaint.why);
	snap->busy = false;
	if (sim_is_dead(run->host))
		return;
	run->totals->drops++;
	if (error != 0 && !may_fail(run) && !run->stopping && error != -EINVAL)
		sim_fail("snapshot %s cannot be dropped: %s: %s", snap->name, operation->complaint.what,
			 operation->complaint.why);
	if (error == 0 || !snap_listed(run, snap, &report))
		snap_gone(snap);
	else if (export_find(&run->exports, snap->name) != NULL)
		snap->state = SNAP_EXISTS;
	snap->doubtful = snap->doubtful || (error != 0 && may_fail(run));
}

/* A store that could not be joined may say all the same that it is: it is not used for anything else. */
static void extended(struct operation *operation, int error)
{
	struct snap *snap = operation->context;
	struct run *run = snap->run;

	sim_trace("extend %s: %s %s", snap->name, strerror(-error), operation->complaint.why);
	snap->busy = false;
	if (sim_is_dead(run->host))
		return;
	if (error != 0 && error != -EINVAL && error != -ENOENT && !may_fail(run) && !run->stopping)
		sim_fail("snapshot %s cannot be extended: %s: %s", snap->name, operation->complaint.what,
			 operation->complaint.why);
	if (error != -EINVAL && error != -ENOENT)
		return;
	snap->parts &= ~(1u << snap->joining);
	run->store_used[snap->joining] = false;
}

static void begun(struct operation *operation)
{
	struct snap *snap = operation->context;

	snap->begun = true;
}

unsigned snaps_busy(const struct run *run)
{
	unsigned busy = 0;

	for (unsigned i = 0; i < run->snap_count; i++)
		busy += run->snaps[i].busy;
	return busy;
}

static void format_store(struct run *run, unsigned index)
{
	struct geometry geometry = { run->block_bytes, 0, FIRST_AREA_OFFSET };
	bool paused = sim_memory_pause(true);
	uint64_t limit = 0;
	struct disk *disk;

	/* An area of more than 30 slots has its entries in several sectors, which are torn one by one. */
	if (run->slots_per_area != 0)
		geometry.slots_per_area = run->slots_per_area;
	else if (run->has_bursts)
		geometry.slots_per_area = (uint32_t)random_range(&run->random, 50, run->small_areas);
	else if (run->small_areas == 0 || random_chance(&run->random, 100))
		geometry.slots_per_area = AREA_SLOTS_MAX;
	else
		geometry.slots_per_area = (uint32_t)random_range(&run->random, 1, run->small_areas);
	if (run->limited && random_chance(&run->random, 700))
		limit = FIRST_AREA_OFFSET + geometry_area_bytes(&geometry) * random_range(&run->random, 1, 8) +
			random_below(&run->random, 5000);
	sim_trace("format %s: %u slots an area, limit %llu", sim_file_name(run->stores[index]), geometry.slots_per_area,
		  (unsigned long long)limit);
	sim_set_immediate(run->host, true);
	if (disk_open(run->host, sim_file_name(run->stores[index]), 0, &disk) != 0 ||
	    store_format_wait(run->host, disk, run->block_bytes, limit, geometry.slots_per_area, NULL) != 0)
		sim_fail("a store cannot be formatted");
	disk_close(disk);
	sim_set_immediate(run->host, false);
	(void)sim_memory_pause(paused);
}

void snapshot_take(struct run *run, unsigned store)
{
	struct snap *snap = &run->snaps[run->snap_count];

	format_store(run, store);
	run->snap_count++;
	run->store_used[store] = true;
	*snap = (struct snap){ .run = run, .store = store, .state = SNAP_CREATING, .busy = true };
	(void)snprintf(snap->name, sizeof(snap->name), "s%u", run->snap_count);
	snap->oracle = oracle_snapshot_begin(run->oracle, snap->name);
	snap->operation = (struct operation){ .done = created, .context = snap };
	sim_trace("snapshot %s into %s", snap->name, sim_file_name(run->stores[store]));
	volume_snapshot(run->volume, &snap->operation, snap->name, sim_file_name(run->stores[store]));
}

void take_snapshot(struct run *run)
{
	unsigned store = (unsigned)random_below(&run->random, run->store_count);

	if (run->snap_count < SNAPSHOTS_MAX && !run->store_used[store] && !sim_file_is_open(run->stores[store]))
		snapshot_take(run, store);
}

void snapshot_drop(struct run *run, struct snap *snap)
{
	snap->state = SNAP_DROPPING;
	snap->busy = true;
	snap->begun = false;
	snap->operation = (struct operation){ .done = dropped, .begun = begun, .context = snap };
	sim_trace("drop %s", snap->name);
	volume_drop(run->volume, &snap->operation, snap->name, false);
}

void drop_snapshot(struct run *run)
{
	struct snap *snap = &run->snaps[random_below(&run->random, run->snap_count + 1)];

	for (unsigned tries = 0; tries < 8 && snap->state != SNAP_EXISTS; tries++)
		snap = &run->snaps[random_below(&run->random, run->snap_count + 1)];
	if (snap >= run->snaps + run->snap_count || snap->busy || snap->absent ||
	    (snap->state != SNAP_EXISTS && snap->state != SNAP_DROPPING))
		return;
	if (snap->state == SNAP_EXISTS || may_fail(run))
		snapshot_drop(run, snap);
}

/* The newest, usually: of another it is refused. */
void extend_snapshot(struct run *run)
{
	unsigned store = (unsigned)random_below(&run->random, run->store_count);
	struct snap *snap = NULL;

	for (unsigned i = 0; i < run->snap_count; i++)
		if (run->snaps[i].state == SNAP_EXISTS && !run->snaps[i].absent && !run->snaps[i].busy)
			snap = &run->snaps[i];
	if (random_chance(&run->random, 50))
		snap = choose_snap(run);
	if (snap == NULL || snap->busy || run->store_used[store] || sim_file_is_open(run->stores[store]))
		return;
	format_store(run, store);
	run->store_used[store] = true;
	snap->parts |= 1u << store;
	snap->joining = store;
	snap->busy = true;
	snap->operation = (struct operation){ .done = extended, .context = snap };
	sim_trace("extend %s by %s", snap->name, sim_file_name(run->stores[store]));
	volume_extend(run->volume, &snap->operation, snap->name, sim_file_name(run->stores[store]), 0);
}

struct snap *choose_snap(struct run *run)
{
	struct snap *snap = &run->snaps[random_below(&run->random, run->snap_count + 1)];

	for (unsigned tries = 0; tries < 4; tries++) {
		if (snap < run->snaps + run->snap_count && snap->state == SNAP_EXISTS && !snap->absent)
			return snap;
		snap = &run->snaps[random_below(&run->random, run->snap_count + 1)];
	}
	return NULL;
}

bool has_doubts(const struct run *run)
{
	for (unsigned i = 0; i < run->snap_count; i++)
		if (run->snaps[i].state != SNAP_GONE && run->snaps[i].state != SNAP_EXISTS)
			return true;
	return false;
}
