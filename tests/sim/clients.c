/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The clients of a run: requests of every kind, and whether their answers may be so. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/sim/run.h"

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
	if (!may_fail(run))
		return false;
	if (error == -ENOMEM && run->short_of_memory && !client->verifying)
		return true;
	if (client->snap == NULL && !client->verifying)
		return error == -EIO || error == -ENOSPC || error == -ESHUTDOWN;
	if (error != -EIO)
		return false;
	if (run->rotten && client->snap != NULL)
		return true;
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

struct client *client_find(struct run *run)
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

void submit(struct run *run, struct client *client, struct snap *snap, enum request_op op, unsigned flags,
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

void submit_random(struct run *run)
{
	struct client *client = client_find(run);
	struct sim_random *random = &run->random;
	uint64_t offset, length, dice = random_below(random, 100);
	unsigned flags = random_chance(random, 80) ? REQUEST_FUA : 0;
	struct snap *snap;

	if (client == NULL)
		return;
	choose_range(run, &offset, &length);
	if (dice < 45 && run->in_order && run->client_number % 16 != 0) {
		offset = run->write_end < run->origin_bytes ? run->write_end : 0;
		length = length < run->origin_bytes - offset ? length : run->origin_bytes - offset;
		run->write_end = offset + length;
	}
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

void verify(struct run *run)
{
	if (sim_is_dead(run->host))
		return;
	sim_trace("==== verify");
	faults_pause(run, true);
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
	faults_pause(run, false);
}
