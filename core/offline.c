/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A volume for the offline tools. It is made by the steps that start-up takes (opening.c) up to the mending, and goes
 * without that:
 *
 *   links         the verdict on the chain knows which decide; leftovers and unborn stores are left out
 *   logs          are read back, and their ends cut, in memory
 *   a fold        is in the chain as it stands: both stores, of which the one that is folded has no name any more.
 *                 Each block of the older one is in it, or in the other one, or further on, whatever was moved by now
 *
 * There is no log, so nothing can be preserved, and nobody may write to the volume's exports.
 */
#include "core/offline.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/opening.h"

static int open_chain(struct opening *opening, struct offline *offline, const char *origin_path,
		      const char *const *store_paths, size_t store_count)
{
	struct volume *volume = opening->volume;
	int error = opening_read(opening, origin_path, store_paths, store_count);

	if (error == 0 && opening->verdict.count == 0) {
		complaint_set(opening->complaint, origin_path, "has no snapshots in the stores given");
		error = -ENOENT;
	}
	if (error != 0)
		return error;
	offline->untidy = opening_is_untidy(opening);
	offline->merge_begun = opening->verdict.merging;
	offline->merge_target = opening->verdict.merge_target;
	error = opening_take_chain(opening);
	if (error != 0)
		return error;
	if (opening->verdict.fold_pending)
		volume->chain[opening->verdict.fold_into + 1]->dropping = true;
	offline->fingerprint = volume->fingerprint;
	opening_add_exports(volume);
	return 0;
}

int offline_open(struct disk_host *host, const char *origin_path, const char *const *store_paths, size_t store_count,
		 const struct offline_options *options, struct offline **out, struct complaint *complaint)
{
	const struct volume_options volume_options = {
		.name = "offline",
		.accept_origin = options->accept_origin,
		.skip_wiped = options->merging,
		.skip_empty = options->tidied,
		.state_directory = options->state_directory,
	};
	struct opening *opening = calloc(1, sizeof(*opening));
	struct offline *offline = calloc(1, sizeof(*offline));
	int error = -ENOMEM;

	memset(complaint, 0, sizeof(*complaint));
	if (opening != NULL && offline != NULL) {
		list_init(&offline->exports.exports);
		list_init(&offline->exports.watchers);
		error = volume_create(host, &offline->exports, &volume_options, &offline->volume);
	}
	if (error == 0) {
		opening->volume = offline->volume;
		opening->complaint = complaint;
		opening->options = &volume_options;
		opening->read_only = !options->writable;
		opening->offline = true;
		opening->merging = options->merging;
		error = open_chain(opening, offline, origin_path, store_paths, store_count);
	}
	if (error != 0 && complaint->why[0] == '\0')
		complaint_set(complaint, origin_path, "%s", strerror(-error));
	if (opening != NULL)
		opening_end(opening);
	free(opening);
	if (error != 0)
		offline_close(offline);
	else
		*out = offline;
	return error;
}

void offline_close(struct offline *offline)
{
	if (offline == NULL)
		return;
	volume_close(offline->volume);
	free(offline);
}

/* ---- points ---- */

static int refuse_name(const struct offline *offline, const char *name, struct complaint *complaint)
{
	const struct record *record = offline->volume->record;

	complaint_set(complaint, name, "there is no snapshot of this name in the chain");
	for (size_t i = 0; record != NULL && i < record->store_count; i++)
		if (strcmp(record->stores[i].name, name) == 0)
			complaint_set(complaint, name, "its store is not among those given: last seen at %s",
				      record->stores[i].path);
	return -ENOENT;
}

int offline_find(const struct offline *offline, const char *name, size_t *point, struct complaint *complaint)
{
	const struct snapshot *snapshot;

	*point = offline->volume->chain_count;
	if (strcmp(name, offline->volume->origin_export.name) == 0)
		return 0;
	snapshot = volume_find(offline->volume, name, point);
	if (snapshot == NULL)
		return refuse_name(offline, name, complaint);
	if (snapshot->dropping) {
		complaint_set(complaint, name, "is being dropped: serve the volume once to finish that");
		return -EBUSY;
	}
	return 0;
}

static struct export *point_export(const struct offline *offline, size_t point)
{
	struct volume *volume = offline->volume;

	return point == volume->chain_count ? &volume->origin_export : &volume->chain[point]->export;
}

const char *offline_point_name(const struct offline *offline, size_t point)
{
	return point_export(offline, point)->name;
}

/* ---- reading ---- */

void offline_read(struct offline *offline, size_t point, struct request *request)
{
	request->flags = 0;
	request->export = point_export(offline, point);
	export_submit(request);
}

void offline_wait(struct offline *offline)
{
	disk_host_wait(offline->volume->host);
	volume_turn(offline->volume); /* what waited for a free segment */
}

struct waited_read {
	struct request request;
	bool done;
	int error;
};

static void read_waited(struct request *request, int error)
{
	struct waited_read *read = request->context;

	read->done = true;
	read->error = error;
}

int offline_read_wait(struct offline *offline, size_t point, uint8_t *buffer, uint64_t offset, uint64_t length)
{
	struct waited_read read = {
		.request = {
			.op = REQUEST_READ,
			.offset = offset,
			.length = length,
			.buffer = buffer,
			.complete = read_waited,
		},
	};

	read.request.context = &read;
	offline_read(offline, point, &read.request);
	while (!read.done)
		offline_wait(offline);
	return read.error;
}

/* ---- what cannot be read ---- */

static struct offline_fault describe_fault(const struct offline *offline, size_t point, uint64_t offset,
					   uint64_t length, bool checksum, int error)
{
	const struct volume *volume = offline->volume;
	block_t block = offset / volume->block_bytes;
	struct placement at = chain_find(volume, point, block, 1);

	return (struct offline_fault){
		.kind = at.place == PLACE_LOST	 ? FAULT_LOST :
			at.place == PLACE_BROKEN ? FAULT_BROKEN :
			checksum		 ? FAULT_CHECKSUM :
						   FAULT_READ,
		.block = block,
		.count = 1,
		.offset = offset,
		.length = length,
		.store = at.store,
		.slot = at.slot,
		.error = error,
	};
}

int offline_salvage(struct offline *offline, size_t point, uint8_t *buffer, uint64_t offset, uint64_t length,
		    int (*found)(const struct offline_fault *fault, void *context), void *context)
{
	struct volume *volume = offline->volume;
	int result = 0;

	for (uint64_t done = 0; done < length && result == 0; done += volume->block_bytes) {
		uint64_t bytes = length - done < volume->block_bytes ? length - done : volume->block_bytes;
		uint64_t checksum_errors = volume->counters.checksum_errors;
		struct offline_fault fault;
		int error = offline_read_wait(offline, point, buffer + done, offset + done, bytes);

		if (error == 0)
			continue;
		memset(buffer + done, 0, (size_t)bytes);
		fault = describe_fault(offline, point, offset + done, bytes,
				       volume->counters.checksum_errors != checksum_errors, error);
		result = found(&fault, context);
	}
	return result;
}

bool offline_fault_join(struct offline_fault *fault, const struct offline_fault *next)
{
	if (fault->kind != next->kind || fault->store != next->store || fault->error != next->error ||
	    fault->block + fault->count != next->block)
		return false;
	if ((fault->kind == FAULT_CHECKSUM || (fault->kind == FAULT_READ && fault->store != NULL)) &&
	    fault->slot.index + fault->count != next->slot.index)
		return false;
	fault->count += next->count;
	fault->length += next->length;
	return true;
}

void offline_fault_text(const struct offline_fault *fault, char text[static OFFLINE_FAULT_TEXT_BYTES])
{
	const struct store *store = fault->store;
	const char *path = store == NULL ? "" : store->path;
	const char *reason = store == NULL ? "" : broken_reason_text(store->superblock.broken.reason);
	unsigned long long last = fault->block + fault->count - 1, bytes = fault->length, offset = fault->offset;
	char blocks[64], why[OFFLINE_FAULT_TEXT_BYTES - 160] = "";

	if (fault->count == 1)
		(void)snprintf(blocks, sizeof(blocks), "block %llu", last);
	else
		(void)snprintf(blocks, sizeof(blocks), "blocks %llu to %llu", (unsigned long long)fault->block, last);
	switch (fault->kind) {
	case FAULT_LOST:
		(void)snprintf(why, sizeof(why), "store %s: lost: unreadable on the origin when it was to be preserved", path);
		break;
	case FAULT_BROKEN:
		(void)snprintf(why, sizeof(why), "store %s: not preserved, the chain is broken there (%s)", path, reason);
		break;
	case FAULT_CHECKSUM:
		(void)snprintf(why, sizeof(why), "store %s: slot %u: does not match its checksum", path, fault->slot.index);
		break;
	case FAULT_READ:
		if (store == NULL)
			(void)snprintf(why, sizeof(why), "the origin cannot be read: %s", strerror(-fault->error));
		else
			(void)snprintf(why, sizeof(why), "store %s: slot %u: cannot be read: %s", path, fault->slot.index,
				       strerror(-fault->error));
		break;
	}
	(void)snprintf(text, OFFLINE_FAULT_TEXT_BYTES, "%s (%llu bytes at %llu): %s", blocks, bytes, offset, why);
}

int offline_check_origin(struct offline *offline)
{
	int error = fingerprint_read(offline->volume);

	if (error != 0)
		return error;
	return memcmp(&offline->volume->fingerprint, &offline->fingerprint, sizeof(offline->fingerprint)) == 0 ? 0 : -ESTALE;
}
