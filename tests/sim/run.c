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
 * others
 * disks fail or fill up, and then requests may fail, but what is read is right all the same; and in a life without
 * faults
 * only those blocks may be unreadable that could not be read when they were to be preserved, or lie in a chain that is
 * marked broken.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/merge.h"
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
	bool merging; /* a merge was cut short: newer stores may be wiped */
	bool faulty, limited, opened_before, hard_to_reopen, bad_stores, store_lost;
	bool has_bursts; /* large areas, large writes, short lives */
	unsigned small_areas;
	struct volume_options options;
	struct export_table exports;
	struct volume *volume;
	struct operation stop;
	bool stopping, stopped;
	int stop_error;
};

static bool may_fail(const struct run *run)
{
	return run->faulty || run->limited || sim_is_dead(run->host);
}

/* ---- snapshots ---- */

static void snap_gone(struct snap *snap)
{
	struct run *run = snap->run;

	if (snap->oracle != NULL)
		oracle_snapshot_destroy(run->oracle, snap->oracle);
	snap->oracle = NULL;
	snap->state = SNAP_GONE;
	run->store_used[snap->store] = false;
}

/* Whether the volume lists a snapshot of this name, and how. */
static bool snap_listed(const struct run *run, const struct snap *snap, struct snapshot_report *report)
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
	snap->doubtful = snap->doubtful || (error != 0 && run->faulty);
}

static void begun(struct operation *operation)
{
	struct snap *snap = operation->context;

	snap->begun = true;
}

static unsigned snaps_busy(const struct run *run)
{
	unsigned busy = 0;

	for (unsigned i = 0; i < run->snap_count; i++)
		busy += run->snaps[i].busy;
	return busy;
}

static void format_store(struct run *run, unsigned index)
{
	struct geometry geometry = { run->block_bytes, 0, FIRST_AREA_OFFSET };
	uint64_t limit = 0;
	struct disk *disk;

	/* An area of more than 30 slots has its entries in several sectors, which are torn one by one. */
	if (run->has_bursts)
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
}

static void take_snapshot(struct run *run)
{
	struct snap *snap = &run->snaps[run->snap_count];
	unsigned store = (unsigned)random_below(&run->random, run->store_count);

	if (run->snap_count == SNAPSHOTS_MAX || run->store_used[store] || sim_file_is_open(run->stores[store]))
		return;
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

static void drop_snapshot(struct run *run)
{
	struct snap *snap = &run->snaps[random_below(&run->random, run->snap_count + 1)];

	for (unsigned tries = 0; tries < 8 && snap->state != SNAP_EXISTS; tries++)
		snap = &run->snaps[random_below(&run->random, run->snap_count + 1)];
	if (snap >= run->snaps + run->snap_count || snap->busy || snap->absent ||
	    (snap->state != SNAP_EXISTS && snap->state != SNAP_DROPPING))
		return;
	if (snap->state == SNAP_DROPPING && !may_fail(run))
		return;
	snap->state = SNAP_DROPPING;
	snap->busy = true;
	snap->begun = false;
	snap->operation = (struct operation){ .done = dropped, .begun = begun, .context = snap };
	sim_trace("drop %s", snap->name);
	volume_drop(run->volume, &snap->operation, snap->name, false);
}

/* ---- requests ---- */

static bool is_excused(const struct client *client, int error)
{
	const struct run *run = client->run;
	const struct request *request = &client->request;
	struct snapshot_report report;
	uint64_t first = request->offset / run->block_bytes * run->block_bytes;
	uint64_t end = (request->offset + request->length + run->block_bytes - 1) / run->block_bytes * run->block_bytes;
	bool found = false;

	if (run->stopping && error != -EIO && client->snap == NULL)
		return true;
	if (client->snap != NULL && client->snap->state != SNAP_EXISTS && error == -ESHUTDOWN)
		return true;
	if (!run->faulty && !run->limited)
		return false;
	if (client->snap == NULL && !client->verifying)
		return error == -EIO || error == -ENOSPC || error == -ESHUTDOWN;
	if (error != -EIO)
		return false;
	if (sim_host_counters(run->host)->faults > client->faults_before)
		return true;
	if (end > first && sim_origin_read_failed(run->host, first, end - first))
		return true;
	if (client->snap == NULL)
		return false;
	/* A snapshot whose chain is broken at it or behind it. */
	for (size_t i = 0; i < volume_snapshot_count(run->volume); i++) {
		volume_report_snapshot(run->volume, i, &report);
		found = found || strcmp(report.name, client->snap->name) == 0;
		if (found && report.broken)
			return true;
	}
	return false;
}

static void check_extents(struct client *client)
{
	struct request *request = &client->request;
	uint64_t offset = request->offset, end = request->offset + request->length;

	if (request->extents_count == 0)
		sim_fail("an answer about allocation is empty");
	for (unsigned i = 0; i < request->extents_count; i++) {
		const struct disk_extent *extent = &client->extents[i];
		uint64_t length = extent->length;

		if (length == 0 || (i > 0 && extent[-1].hole == extent->hole))
			sim_fail("an answer about allocation has empty or equal parts");
		if (offset >= end)
			sim_fail("an answer about allocation goes too far");
		if (length > end - offset)
			length = end - offset;
		if (extent->hole && client->snap == NULL)
			oracle_check_origin(client->run->oracle, client->begun, offset, length, NULL);
		else if (extent->hole)
			oracle_check_snapshot(client->run->oracle, client->snap->oracle, offset, length, NULL);
		offset += length;
	}
}

static void check_result(struct client *client, int error)
{
	struct run *run = client->run;
	struct request *request = &client->request;
	bool ok = error == 0;

	if (!ok && !is_excused(client, error))
		sim_fail("request %u (%d, %llu+%llu, %s) fails: %s", client->number, (int)request->op,
			 (unsigned long long)request->offset, (unsigned long long)request->length,
			 client->snap != NULL ? client->snap->name : "origin", strerror(-error));
	switch (request->op) {
	case REQUEST_READ:
		if (ok && client->snap == NULL)
			oracle_check_origin(run->oracle, client->begun, request->offset, request->length,
					    request->buffer);
		else if (ok)
			oracle_check_snapshot(run->oracle, client->snap->oracle, request->offset, request->length,
					      request->buffer);
		run->totals->reads_checked += ok;
		return;
	case REQUEST_EXTENTS:
		if (ok)
			check_extents(client);
		return;
	case REQUEST_WRITE:
	case REQUEST_ZERO:
	case REQUEST_DISCARD:
		oracle_write_end(run->oracle, &client->write, ok);
		return;
	case REQUEST_FLUSH:
		if (ok)
			oracle_flush_end(run->oracle, client->begun);
		return;
	}
}

static void completed(struct request *request, int error)
{
	struct client *client = request->context;
	struct run *run = client->run;

	sim_trace("request %u: %s", client->number, error == 0 ? "done" : strerror(-error));
	if (!client->under_way)
		sim_fail("request %u is completed twice", client->number);
	client->under_way = false;
	run->clients_under_way--;
	if (!sim_is_dead(run->host))
		check_result(client, error);
}

static struct client *client_find(struct run *run)
{
	for (unsigned i = 0; i < CLIENTS_MAX; i++)
		if (!run->clients[i].under_way)
			return &run->clients[i];
	return NULL;
}

static void tell_oldest_read(struct run *run)
{
	uint64_t oldest = oracle_time(run->oracle);

	for (unsigned i = 0; i < CLIENTS_MAX; i++)
		if (run->clients[i].under_way && run->clients[i].begun < oldest)
			oldest = run->clients[i].begun;
	oracle_prune(run->oracle, oldest);
}

static void submit(struct run *run, struct client *client, struct snap *snap, enum request_op op, unsigned flags,
		   uint64_t offset, uint64_t length, bool verifying)
{
	struct export *export = export_find(&run->exports, snap != NULL ? snap->name : "origin");
	static const char *const texts[] = { "READ", "WRITE", "FLUSH", "DISCARD", "ZERO", "EXTENTS" };
	struct request *request = &client->request;

	if (export == NULL)
		return;
	client->run = run;
	client->snap = snap;
	client->verifying = verifying;
	client->under_way = true;
	client->number = ++run->client_number;
	client->faults_before = sim_host_counters(run->host)->faults;
	memset(request, 0xa5, sizeof(*request)); /* nothing need be initialised but these */
	request->op = op;
	request->flags = flags;
	request->offset = offset;
	request->length = length;
	request->buffer = client->buffer;
	request->extents = client->extents;
	request->extents_max = EXTENTS_MAX;
	request->export = export;
	request->complete = completed;
	request->context = client;
	run->clients_under_way++;
	run->totals->requests++;
	sim_trace("request %u: %s %s %llu+%llu flags %u", client->number, export->name, texts[op],
		  (unsigned long long)offset, (unsigned long long)length, flags);
	if (op == REQUEST_READ)
		memset(client->buffer, 0x5a, (size_t)length);
	client->begun = oracle_time(run->oracle);
	tell_oldest_read(run);
	if (op == REQUEST_WRITE || op == REQUEST_ZERO || op == REQUEST_DISCARD) {
		client->write = (struct oracle_write){ .offset = offset,
						       .length = length,
						       .data = op == REQUEST_WRITE ? client->buffer : NULL,
						       .discard = op == REQUEST_DISCARD,
						       .fua = (flags & REQUEST_FUA) != 0 };
		oracle_write_begin(run->oracle, &client->write);
	}
	export_submit(request);
}

static void choose_range(struct run *run, uint64_t *offset, uint64_t *length)
{
	static const uint64_t units[] = { 1, 512, 512, 4096, 8192, 4096, 4096 };
	struct sim_random *random = &run->random;
	uint64_t unit = units[random_below(random, 7)];
	uint64_t most = random_chance(random, run->has_bursts ? 300 : 60) ? 40 : random_chance(random, 300) ? 10 : 3;

	if (unit == 1)
		*length = random_range(random, 1, random_chance(random, 500) ? 700 : 20000);
	else
		*length = random_range(random, 1, most) * unit;
	if (random_chance(random, 20))
		*length = run->origin_bytes;
	if (*length > run->origin_bytes)
		*length = run->origin_bytes;
	if (*length > BUFFER_BYTES)
		*length = BUFFER_BYTES;
	*offset = random_below(random, (run->origin_bytes - *length) / unit + 1) * unit;
	if (random_chance(random, 300))
		*offset = *offset / 16 / unit * unit; /* a hot place */
	if (random_chance(random, 50))
		*offset = run->origin_bytes - *length; /* the end */
}

static void fill_buffer(struct run *run, struct client *client, uint64_t offset, uint64_t length)
{
	uint64_t tag = random_chance(&run->random, 100) ? random_below(&run->random, 3) : random_next(&run->random);

	if (random_chance(&run->random, 120)) {
		memset(client->buffer, 0, (size_t)length);
		return;
	}
	for (uint64_t at = 0; at < length;) {
		uint64_t sector = (offset + at) / SECTOR_BYTES;
		uint64_t here = (sector + 1) * SECTOR_BYTES - (offset + at);

		here = here < length - at ? here : length - at;
		random_fill(tag + sector * 0x10001, client->buffer + at, (size_t)here);
		at += here;
	}
}

static struct snap *choose_snap(struct run *run)
{
	struct snap *snap = &run->snaps[random_below(&run->random, run->snap_count + 1)];

	for (unsigned tries = 0; tries < 4; tries++) {
		if (snap < run->snaps + run->snap_count && snap->state == SNAP_EXISTS && !snap->absent)
			return snap;
		snap = &run->snaps[random_below(&run->random, run->snap_count + 1)];
	}
	return NULL;
}

static void submit_random(struct run *run)
{
	struct client *client = client_find(run);
	struct sim_random *random = &run->random;
	uint64_t offset, length, dice = random_below(random, 100);
	unsigned flags = random_chance(random, 80) ? REQUEST_FUA : 0;
	struct snap *snap;

	if (client == NULL)
		return;
	choose_range(run, &offset, &length);
	if (dice < 45) {
		fill_buffer(run, client, offset, length);
		if (oracle_has_room(run->oracle, offset, length))
			submit(run, client, NULL, REQUEST_WRITE, flags, offset, length, false);
	} else if (dice < 50) {
		if (random_chance(random, 300))
			flags |= REQUEST_NO_HOLE;
		if (oracle_has_room(run->oracle, offset, length))
			submit(run, client, NULL, REQUEST_ZERO, flags, offset, length, false);
	} else if (dice < 54) {
		if (oracle_has_room(run->oracle, offset, length))
			submit(run, client, NULL, REQUEST_DISCARD, flags, offset, length, false);
	} else if (dice < 60) {
		submit(run, client, NULL, REQUEST_FLUSH, 0, 0, 0, false);
	} else if (dice < 68) {
		submit(run, client, NULL, REQUEST_READ, 0, offset, length, false);
	} else if (dice < 70) {
		submit(run, client, NULL, REQUEST_EXTENTS, 0, offset, length, false);
	} else {
		snap = choose_snap(run);
		if (snap != NULL)
			submit(run, client, snap, dice < 97 ? REQUEST_READ : REQUEST_EXTENTS, 0, offset, length, false);
	}
}

/* ---- going on ---- */

static void pump(struct run *run)
{
	uint64_t batch = random_range(&run->random, 1, 4);

	if (sim_in_flight(run->host) == 0) {
		sim_host_sleep(run->host, TICK_NS);
		volume_tick(run->volume);
		return;
	}
	while (batch-- > 0 && sim_event(run->host))
		;
	volume_turn(run->volume);
	if (random_chance(&run->random, 10)) {
		sim_host_sleep(run->host, TICK_NS);
		volume_tick(run->volume);
	}
}

static void report_hang(const struct run *run, const char *what)
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
			printf("# %s of snapshot %s waits\n", run->snaps[i].state == SNAP_CREATING ? "creation" : "drop",
			       run->snaps[i].name);
	if (run->stopping && !run->stopped)
		printf("# the stop waits\n");
	sim_fail("it hangs");
}

/* A drop that goes on by itself (a fold resumed at start-up) has ended when the snapshot is not listed any more. */
static bool is_folding(struct run *run)
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
static bool may_wait(const struct run *run)
{
	return run->options.on_full == ON_FULL_WAIT && (run->faulty || run->limited);
}

static void settle(struct run *run)
{
	unsigned idle = 0;
	uint64_t turns = 0;

	while (!sim_is_dead(run->host) &&
	       (run->clients_under_way > 0 || snaps_busy(run) > 0 || (is_folding(run) && !may_fail(run)))) {
		idle = sim_in_flight(run->host) == 0 ? idle + 1 : 0;
		if (idle > IDLE_TICKS_MAX || ++turns > 2000000) {
			if (may_wait(run))
				return;
			report_hang(run, turns > 2000000 ? "it goes on and on" : "requests or operations are not done");
		}
		pump(run);
	}
}

/* ---- verification ---- */

static void verify_one(struct run *run, struct snap *snap)
{
	uint64_t offset = 0;

	while (offset < run->origin_bytes && !sim_is_dead(run->host)) {
		struct client *client = client_find(run);
		uint64_t length = random_range(&run->random, 1, 5) * run->block_bytes;

		if (random_chance(&run->random, 100))
			length = BUFFER_BYTES;
		if (run->faulty || run->limited)
			length = run->block_bytes;
		if (length > run->origin_bytes - offset)
			length = run->origin_bytes - offset;
		if (client == NULL || (run->clients_under_way > 8 && random_chance(&run->random, 700))) {
			pump(run);
			if (client == NULL && sim_in_flight(run->host) == 0 && may_wait(run))
				return;
			continue;
		}
		if (snap != NULL && snap->state != SNAP_EXISTS)
			return;
		submit(run, client, snap, REQUEST_READ, 0, offset, length, true);
		offset += length;
	}
}

static void verify(struct run *run)
{
	if (sim_is_dead(run->host))
		return;
	sim_trace("==== verify");
	sim_pause_faults(run->host, true);
	for (unsigned i = 0; i < run->snap_count && !sim_is_dead(run->host); i++) {
		struct snap *snap = &run->snaps[i];

		if (snap->state != SNAP_EXISTS || snap->absent)
			continue;
		if (export_find(&run->exports, snap->name) == NULL)
			sim_fail("snapshot %s is not exported", snap->name);
		verify_one(run, snap);
	}
	verify_one(run, NULL);
	settle(run);
	sim_pause_faults(run->host, false);
}

/* ---- starting ---- */

enum found { FOUND_NONE, FOUND_EMPTY, FOUND_PREPARED, FOUND_OTHER };

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
							     FOUND_OTHER;
	}
	return found;
}

static void shuffle(struct run *run, const char **paths, size_t count)
{
	for (size_t i = count; i > 1; i--) {
		size_t j = (size_t)random_below(&run->random, i);
		const char *path = paths[j];

		paths[j] = paths[i - 1];
		paths[i - 1] = path;
	}
}

/* The oldest ones may stay away, when nothing was under way. */
static void choose_absent(struct run *run)
{
	bool away = !run->hard_to_reopen && random_chance(&run->random, 150);
	unsigned present = 0;

	for (unsigned i = 0; i < run->snap_count; i++) {
		struct snap *snap = &run->snaps[i];

		snap->absent = false;
		if (snap->state == SNAP_DROPPING || snap->state == SNAP_CREATING || snap->state == SNAP_UNKNOWN)
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

static size_t choose_paths(struct run *run, const char **paths, bool all)
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
		paths[count++] = sim_file_name(run->stores[snap->store]);
	}
	shuffle(run, paths, count);
	return count;
}

static int try_open(struct run *run, bool by_record, bool all, struct complaint *complaint)
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

static bool has_doubts(const struct run *run)
{
	for (unsigned i = 0; i < run->snap_count; i++)
		if (run->snaps[i].state != SNAP_GONE && run->snaps[i].state != SNAP_EXISTS)
			return true;
	return false;
}

static void after_crash(struct run *run)
{
	enum crash_kind how = sim_crashed_how(run->host);

	if (!sim_is_dead(run->host))
		return;
	run->hard_to_reopen = run->hard_to_reopen || sim_origin_flush_failed(run->host);
	if (how == CRASH_POWER)
		oracle_power_cut(run->oracle);
	else
		oracle_kill(run->oracle, sim_origin_flush_failed(run->host));
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
static bool open_volume(struct run *run)
{
	bool by_record = !run->opened_before || (random_chance(&run->random, 400) && !run->hard_to_reopen);
	bool quiet = random_chance(&run->random, 500);
	struct complaint complaint;
	int error = -EAGAIN;

	choose_absent(run);
	run->stopping = false;
	run->stopped = false;
	for (unsigned tries = 0; error != 0; tries++) {
		sim_pause_faults(run->host, quiet || tries > 0);
		error = try_open(run, by_record, tries > 1, &complaint);
		sim_pause_faults(run->host, false);
		if (error != 0 && sim_is_dead(run->host))
			return false;
		if (error != 0 && sim_flush_failed(run->host)) {
			sim_crash_now(run->host, CRASH_KILL);
			after_crash(run);
		}
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

static void request_stop(struct run *run)
{
	if (run->stopping)
		return;
	sim_trace("==== stop");
	run->stopping = true;
	run->stop = (struct operation){ .done = stop_done, .context = run };
	volume_stop(run->volume, &run->stop);
}

/* Ends the life: stops the volume, dead or alive, and closes it. Nothing may be left. */
static void end_life(struct run *run)
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
	if (!crashed && random_chance(&run->random, 300)) {
		run->hard_to_reopen = run->hard_to_reopen || sim_origin_flush_failed(run->host);
		sim_crash_now(run->host, random_chance(&run->random, 700) ? CRASH_POWER : CRASH_KILL);
	} else if (!crashed && sim_flush_failed(run->host)) {
		/* What a failed flush left in the cache has its fate before the next life: see sim-disk.c, rule 4. */
		sim_crash_now(run->host, CRASH_KILL);
	}
	after_crash(run);
	if (!may_fail(run))
		sim_check_stores(run->host, run->stores, run->store_count);
}

/* ---- merging ---- */

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
			paths[count++] = sim_file_name(run->stores[run->snaps[i].store]);
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
	bool by_record = random_chance(&run->random, 300), done = false;
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
		sim_pause_faults(run->host, random_chance(&run->random, 300) || tries > 1);
		error = try_merge(run, target, random_chance(&run->random, 300), report);
		sim_pause_faults(run->host, false);
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

static void merge_back(struct run *run)
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
	report = calloc(1, sizeof(*report));
	if (report == NULL)
		sim_fail("out of memory");
	merge_until_done(run, target, report);
	free(report);
	run->merging = false;
	if (run->store_lost)
		return;
	for (unsigned i = 0; i < run->store_count; i++)
		sim_file_set_absent(run->stores[i], false);
}

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

static void one_life(struct run *run)
{
	struct sim_random *random = &run->random;
	uint64_t steps = random_range(random, 10, run->has_bursts ? 70 : random_chance(random, 200) ? 600 : 200);
	unsigned operations = (unsigned)random_below(random, 60);
	enum crash_kind kinds[] = { CRASH_NONE, CRASH_NONE, CRASH_POWER, CRASH_POWER, CRASH_POWER, CRASH_KILL, CRASH_KILL };
	enum crash_kind kind = kinds[random_below(random, 7)];

	run->life++;
	run->totals->lives++;
	if (run->opened_before && random_chance(random, 200))
		merge_back(run);
	if (run->store_lost)
		return;
	plan_crash(run, kind, steps);
	if (!open_volume(run)) {
		end_life(run);
		return;
	}
	if (run->life > 1 && random_chance(random, 800))
		verify(run);
	for (uint64_t step = 0; step < steps && !sim_is_dead(run->host); step++) {
		uint64_t dice = random_below(random, 1000);

		if (dice < operations && snaps_busy(run) < 3)
			random_chance(random, 600) ? take_snapshot(run) : drop_snapshot(run);
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

	run->limited = random_chance(random, 250);
	run->faulty = random_chance(random, run->has_bursts ? 100 : 300);
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
	uint64_t blocks;
	uint8_t sector[SECTOR_BYTES];

	run->has_bursts = random_chance(random, 120);
	blocks = random_range(random, run->has_bursts ? 100 : 8, run->has_bursts || random_chance(random, 300) ? 200 : 30);
	run->block_bytes = run->has_bursts || random_chance(random, 850) ? 4096 : random_chance(random, 700) ? 8192 : 16384;
	run->origin_bytes = blocks * run->block_bytes;
	if (random_chance(random, 400))
		run->origin_bytes -= random_below(random, run->block_bytes / SECTOR_BYTES) * SECTOR_BYTES;
	run->small_areas = run->has_bursts ? 120 : random_chance(random, 800) ? (unsigned)random_range(random, 1, 6) : 0;
	run->origin = sim_file_create(run->host, "origin", true, random_chance(random, 500), run->origin_bytes,
				      random_chance(random, 700) || run->origin_bytes % 4096 != 0 ? 512 : 4096);
	run->oracle = oracle_create(run->origin_bytes);
	for (uint64_t at = 0; at < run->origin_bytes; at += SECTOR_BYTES) {
		if (at / 4096 % 4 == 1)
			continue;
		random_fill(at + 7, sector, sizeof(sector));
		sim_file_poke(run->origin, at, sector, sizeof(sector));
		oracle_set(run->oracle, at, sector, sizeof(sector));
	}
	run->store_count = (unsigned)random_range(random, 2, STORES_MAX);
	for (unsigned i = 0; i < run->store_count; i++) {
		char name[16];
		bool is_device = random_chance(random, 300);

		(void)snprintf(name, sizeof(name), "store%u", i);
		run->stores[i] = sim_file_create(run->host, name, false, is_device, is_device ? 64u << 20 : 0,
						 random_chance(random, 500) ? 512 : 4096);
	}
}

void sim_run(uint64_t seed, struct sim_totals *totals)
{
	struct run *run = calloc(1, sizeof(*run));
	uint64_t lives;

	if (run == NULL)
		sim_fail("out of memory");
	run->seed = seed;
	run->random.state = seed * 2654435761u;
	run->totals = totals;
	run->host = sim_host_create(seed ^ UINT64_C(0x123456789));
	run->options = (struct volume_options){ .name = "v", .state_directory = "state" };
	run->options.discard_copy = random_chance(&run->random, 300);
	sim_record_reset(run->host);
	make_disks(run);
	choose_faults(run);
	for (unsigned i = 0; i < CLIENTS_MAX; i++) {
		run->clients[i].buffer = aligned_alloc(4096, BUFFER_BYTES);
		if (run->clients[i].buffer == NULL)
			sim_fail("out of memory");
	}
	lives = random_range(&run->random, run->has_bursts ? 8 : 1, run->has_bursts ? 20 : 6);
	while (lives-- > 0 && !run->store_lost)
		one_life(run);
	totals->runs++;
	totals->events += sim_host_counters(run->host)->events;
	totals->power_cuts += sim_host_counters(run->host)->power_cuts;
	totals->kills += sim_host_counters(run->host)->kills;
	totals->faults += sim_host_counters(run->host)->faults;
	sim_record_reset(NULL);
	for (unsigned i = 0; i < CLIENTS_MAX; i++)
		free(run->clients[i].buffer);
	oracle_destroy(run->oracle);
	disk_host_destroy(run->host);
	free(run);
}
