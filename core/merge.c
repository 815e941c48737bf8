/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Putting the origin back to a snapshot: the target, Sk of the chain S1 ... Sk ... Sn. In this order:
 *
 *   tidy      what the next start would mend or recover is mended by one, which is stopped at once: all logs end cleanly then
 *   look      every block that one of Sk ... Sn has must be readable; else the merge does not begin
 *   verify    all of it is read and its checksums verified: a merge that began must be able to end
 *   mark      the record, then Sk, Sk+1, ... Sn, each in both superblock copies, as merging with the target Sk
 *   write     every block that one of Sk ... Sn has goes to the origin, as a read of Sk gives it
 *   flush     the origin
 *   finish    Sk: active, the newest, clean at its log's end, with the origin's new fingerprint     <== commit point
 *   wipe      Sn, ... Sk+1
 *   record    forgets them and the merge
 *
 * Why it is right, block by block. In none of Sk ... Sn: the origin has had Sk's content all along (rule 2), and is not written.
 * In some: the first of them that has it says what Sk holds, and the origin gets that. So the origin equals Sk afterwards,
 * and Sk without the newer ones reads as before: its own exceptions, else the origin. An older snapshot reads what Sk reads
 * wherever none before Sk has the block, so it needs no change; its store may even be absent. Sk keeps its exceptions: they are
 * still true of it, and those blocks count as preserved.
 *
 * A crash. Until Sn is marked nothing of the origin is written: the marks are taken back at the next start (Sk's last), or
 * set again. From there on, every chain that could be served has Sn in it and is refused (chain.c, rule 6). What the
 * writes are made from lies in Sk ... Sn, which are not written meanwhile but for the same marks, so the merge is resumed by
 * doing it again from the start, which also makes up for a flush that failed. The commit point is one superblock change: Sk
 * says that it is the newest, so what follows it is left over, and wiped at the next start if it was not yet.
 * The older stores are not marked: a chain without the newer ones is never served.
 */
#include "core/merge.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "core/offline.h"
#include "io/log.h"

#define PIECES 8u
#define PIECE_BYTES ((size_t)1 << 20)
#define ZERO_PIECE_BYTES (UINT64_C(64) << 20)

enum piece_state { PIECE_IDLE, PIECE_READING, PIECE_READ, PIECE_WRITING };

/* A run of blocks on its way from the stores to the origin. */
struct piece {
	struct merge *merge;
	enum piece_state state;
	bool zero;               /* not read, and zeroed on the origin */
	uint64_t offset, length; /* bytes of the origin */
	uint8_t *buffer;         /* PIECE_BYTES */
	int error;               /* the read's */
	struct request request;
	struct disk_io io;
};

struct merge {
	struct disk_host *host;
	const char *origin_path;
	const char *const *store_paths;
	size_t store_count;
	const struct merge_options *options;
	struct merge_report *report;
	struct complaint *complaint;

	struct offline *offline;
	struct volume *volume; /* the offline's */
	size_t target, newest; /* of volume->chain */
	bool origin_changed;   /* while it was half merged, and that was accepted */

	enum merge_stage stage;
	block_t next;
	uint64_t done_bytes;
	int error;             /* the stage's first */
	uint64_t error_offset; /* where on the origin */
	bool error_is_write;
	struct piece pieces[PIECES];
};

static struct store *store_at(const struct merge *merge, size_t index)
{
	return merge->volume->chain[index]->store;
}

static const char *target_name(const struct merge *merge)
{
	return store_at(merge, merge->target)->superblock.name;
}

/* ---- tidying ---- */

struct brief_service {
	struct operation stop;
	bool stopped;
	int error;
};

static void brief_service_ended(struct operation *operation, int error)
{
	struct brief_service *service = operation->context;

	service->stopped = true;
	service->error = error;
}

/* A start and a clean stop: neither the chain nor the origin is given to anybody. */
static int tidy(const struct merge *merge)
{
	const struct volume_options options = {
		.name = "offline",
		.on_full = ON_FULL_FAIL,
		.skip_wiped = true,
		.state_directory = merge->options->state_directory,
	};
	struct brief_service service = { .stopped = false };
	struct export_table exports;
	struct volume *volume;
	int error;

	export_table_init(&exports);
	error = volume_open(merge->host, &exports, merge->origin_path, merge->store_paths, merge->store_count, &options,
			    &volume, merge->complaint);
	if (error != 0)
		return error;
	service.stop = (struct operation){ .done = brief_service_ended, .context = &service };
	volume_stop(volume, &service.stop);
	volume_turn(volume);
	while (!service.stopped) {
		disk_host_wait(merge->host);
		volume_turn(volume);
	}
	volume_close(volume);
	if (service.error != 0)
		*merge->complaint = service.stop.complaint;
	return service.error;
}

/* ---- looking ---- */

static int open_chain(struct merge *merge)
{
	const struct offline_options options = {
		.state_directory = merge->options->state_directory,
		.accept_origin = merge->options->accept_origin,
		.merging = true,
		.writable = !merge->options->dry_run,
	};
	int error = offline_open(merge->host, merge->origin_path, merge->store_paths, merge->store_count, &options,
				 &merge->offline, merge->complaint);

	if (error == 0) {
		merge->volume = merge->offline->volume;
		merge->newest = merge->volume->chain_count - 1;
	}
	return error;
}

static int open_tidy_chain(struct merge *merge)
{
	int error = open_chain(merge);

	if (error != 0 || !merge->offline->untidy || merge->offline->merge_begun || merge->options->dry_run)
		return error;
	offline_close(merge->offline);
	merge->offline = NULL;
	error = tidy(merge);
	if (error == 0)
		error = open_chain(merge);
	return error;
}

static int find_target(struct merge *merge)
{
	const struct offline *offline = merge->offline;
	const char *name = merge->options->snapshot;
	int error;

	for (size_t i = 0; i < merge->volume->chain_count; i++)
		if (merge->volume->chain[i]->dropping) {
			complaint_set(merge->complaint, merge->volume->chain[i]->store->superblock.name,
				      "is being dropped: serve the volume until that is done");
			return -EBUSY;
		}
	if (!offline->merge_begun) {
		error = offline_find(offline, name, &merge->target, merge->complaint);
		if (error == 0 && merge->target == merge->volume->chain_count) {
			complaint_set(merge->complaint, name, "is not a snapshot");
			error = -EINVAL;
		}
		return error;
	}
	merge->target = offline->merge_target;
	merge->report->resumed = true;
	if (strcmp(target_name(merge), name) == 0)
		return 0;
	complaint_set(merge->complaint, merge->origin_path,
		      "is being put back to snapshot %s, and that is unfinished: finish that one first", target_name(merge));
	return -EINPROGRESS;
}

static uint64_t run_bytes(const struct merge *merge, block_t first, uint64_t blocks)
{
	uint64_t offset = first * merge->volume->block_bytes, bytes = blocks * merge->volume->block_bytes;
	uint64_t rest = merge->volume->origin_bytes - offset;

	return bytes < rest ? bytes : rest;
}

/* Counts what is to be written. A block that is known to be unreadable refuses. */
static int survey(const struct merge *merge)
{
	block_t count = volume_block_count(merge->volume), block = 0;

	while (block < count) {
		struct placement at = chain_find(merge->volume, merge->target, block, count - block);

		switch (at.place) {
		case PLACE_SLOT:
		case PLACE_ZERO:
			merge->report->bytes += run_bytes(merge, block, at.count);
			break;
		case PLACE_ORIGIN:
			break;
		case PLACE_LOST:
			complaint_set(merge->complaint, target_name(merge),
				      "block %" PRIu64 " was unreadable when it was to be preserved, so the origin cannot be put back",
				      block);
			return -EIO;
		case PLACE_BROKEN:
			complaint_set(merge->complaint, target_name(merge),
				      "the chain is broken at it or behind it, and what was not preserved then is not known (block %" PRIu64
				      "), so the origin cannot be put back",
				      block);
			return -EIO;
		}
		block += at.count;
	}
	for (size_t i = merge->target + 1; i <= merge->newest; i++)
		memcpy(merge->report->gone[merge->report->gone_count++], store_at(merge, i)->superblock.name,
		       sizeof(merge->report->gone[0]));
	return 0;
}

static bool is_gone(const struct merge *merge, const uuid128_t *uuid)
{
	for (size_t i = merge->target + 1; i <= merge->newest; i++)
		if (uuid_equal(&store_at(merge, i)->superblock.store_uuid, uuid))
			return true;
	return false;
}

/* What the newer stores testify of others that stay passes to the target, as far as there is room: for one. */
static void inherit_witnesses(const struct merge *merge, struct superblock *target)
{
	if (is_gone(merge, &target->witness_uuid)) {
		memset(&target->witness_uuid, 0, sizeof(target->witness_uuid));
		target->witness = (struct broken_mark){ BROKEN_NOT, 0 };
	}
	for (size_t i = merge->target + 1; i <= merge->newest; i++)
		if (!is_gone(merge, &store_at(merge, i)->superblock.witness_uuid))
			superblock_inherit_witness(target, &store_at(merge, i)->superblock);
}

static int check_witnesses(const struct merge *merge)
{
	struct superblock target = store_at(merge, merge->target)->superblock;

	inherit_witnesses(merge, &target);
	for (size_t i = merge->target + 1; i <= merge->newest; i++) {
		const struct superblock *one = &store_at(merge, i)->superblock;

		if (one->witness.reason == BROKEN_NOT || is_gone(merge, &one->witness_uuid) ||
		    uuid_equal(&one->witness_uuid, &target.store_uuid) || uuid_equal(&one->witness_uuid, &target.witness_uuid))
			continue;
		complaint_set(merge->complaint, store_at(merge, i)->path,
			      "says that an older snapshot is broken, and no other store has room to say so");
		return -EINVAL;
	}
	return 0;
}

/* ---- the origin, while it is half merged ---- */

/* Whether a sector of the fingerprinted area is as the merge left it: as before, or, where it writes, as the target has it. */
static int check_sector(const struct merge *merge, unsigned sector, uint8_t *buffer, bool *good)
{
	uint64_t offset = fingerprint_offset(sector), now = merge->volume->fingerprint.sector[sector];
	struct placement at;
	int error;

	*good = offset >= merge->volume->origin_bytes ||
		now == store_at(merge, merge->newest)->superblock.fingerprint.sector[sector];
	if (*good)
		return 0;
	at = chain_find(merge->volume, merge->target, offset / merge->volume->block_bytes, 1);
	if (at.place == PLACE_ORIGIN)
		return 0;
	error = offline_read_wait(merge->offline, merge->target, buffer, offset, FINGERPRINT_SECTOR_BYTES);
	if (error == 0)
		*good = now == fingerprint_checksum(buffer);
	return error;
}

static int check_half_merged(struct merge *merge)
{
	uint8_t *buffer = merge->pieces[0].buffer;

	for (unsigned i = 0; i < FINGERPRINT_SECTORS; i++) {
		bool good;
		int error = check_sector(merge, i, buffer, &good);

		if (error != 0) {
			complaint_set(merge->complaint, target_name(merge), "cannot be read: %s", strerror(-error));
			return error;
		}
		merge->origin_changed = merge->origin_changed || !good;
	}
	if (!merge->origin_changed || merge->options->accept_origin)
		return 0;
	complaint_set(merge->complaint, merge->origin_path,
		      "was changed while it was half put back (mounted, checked or written directly?): --accept-origin goes on, with the snapshot marked broken");
	return -ESTALE;
}

/* ---- pieces ---- */

static bool is_stopped(const struct merge *merge)
{
	const struct merge_options *options = merge->options;

	return options->progress != NULL &&
	       !options->progress(options->context, merge->stage, merge->done_bytes, merge->report->bytes);
}

static void piece_fail(struct piece *piece, int error, bool is_write)
{
	struct merge *merge = piece->merge;

	if (merge->error == 0) {
		merge->error = error;
		merge->error_offset = piece->offset;
		merge->error_is_write = is_write;
	}
	piece->state = PIECE_IDLE;
}

static void piece_finish(struct piece *piece)
{
	piece->merge->done_bytes += piece->length;
	piece->state = PIECE_IDLE;
}

static void piece_written(struct disk_io *io, int error)
{
	struct piece *piece = io->context;

	if (error != 0)
		piece_fail(piece, error, true);
	else
		piece_finish(piece);
}

static void piece_write(struct piece *piece)
{
	piece->state = PIECE_WRITING;
	piece->io = (struct disk_io){
		.disk = piece->merge->volume->origin,
		.op = piece->zero ? DISK_ZERO : DISK_WRITE,
		.offset = piece->offset,
		.length = piece->length,
		.single = { .iov_base = piece->buffer, .iov_len = piece->zero ? 0 : (size_t)piece->length },
		.done = piece_written,
		.context = piece,
	};
	disk_submit(&piece->io);
}

static void piece_read_done(struct request *request, int error)
{
	struct piece *piece = request->context;

	piece->error = error;
	piece->state = PIECE_READ;
}

static void piece_read(struct piece *piece)
{
	piece->state = PIECE_READING;
	piece->request.op = REQUEST_READ;
	piece->request.offset = piece->offset;
	piece->request.length = piece->length;
	piece->request.buffer = piece->buffer;
	piece->request.complete = piece_read_done;
	piece->request.context = piece;
	offline_read(piece->merge->offline, piece->merge->target, &piece->request);
}

static bool is_in_stores(const struct placement *at)
{
	return at->place == PLACE_SLOT || at->place == PLACE_ZERO;
}

/* The next run of blocks that the stores have: long zeroes by themselves, else what one read and one write can carry. */
static bool piece_take(struct piece *piece)
{
	struct merge *merge = piece->merge;
	const struct volume *volume = merge->volume;
	block_t count = volume_block_count(volume), first = merge->next;
	uint64_t most = PIECE_BYTES / volume->block_bytes, blocks = 0;
	struct placement at = { .place = PLACE_ORIGIN, .count = 0 };

	while (first < count && !is_in_stores(&at)) {
		at = chain_find(volume, merge->target, first, count - first);
		if (!is_in_stores(&at))
			first += at.count;
	}
	merge->next = first;
	if (first == count)
		return false;
	piece->zero = at.place == PLACE_ZERO && at.count >= most;
	if (piece->zero)
		blocks = at.count < ZERO_PIECE_BYTES / volume->block_bytes ? at.count : ZERO_PIECE_BYTES / volume->block_bytes;
	while (!piece->zero && blocks < most && first + blocks < count) {
		at = chain_find(volume, merge->target, first + blocks, most - blocks);
		if (!is_in_stores(&at))
			break;
		blocks += at.count;
	}
	piece->offset = first * volume->block_bytes;
	piece->length = run_bytes(merge, first, blocks);
	merge->next = first + blocks;
	return true;
}

/* Carries a piece on as far as it goes without waiting. */
static void piece_go_on(struct piece *piece)
{
	struct merge *merge = piece->merge;

	if (piece->state == PIECE_READ) {
		if (piece->error != 0)
			piece_fail(piece, piece->error, false);
		else if (merge->stage == MERGE_WRITING && merge->error == 0)
			piece_write(piece);
		else
			piece_finish(piece);
	}
	while (piece->state == PIECE_IDLE && merge->error == 0 && piece_take(piece)) {
		if (!piece->zero)
			piece_read(piece);
		else if (merge->stage == MERGE_WRITING)
			piece_write(piece);
		else
			piece_finish(piece);
	}
}

/* All pieces through one stage. 0, or the first error, once nothing is under way any more. -ECANCELED: told to stop. */
static int run_stage(struct merge *merge, enum merge_stage stage)
{
	unsigned ready, waiting;

	merge->stage = stage;
	merge->next = 0;
	merge->done_bytes = 0;
	merge->error = 0;
	do {
		ready = 0;
		waiting = 0;
		if (merge->error == 0 && is_stopped(merge))
			merge->error = -ECANCELED;
		for (unsigned i = 0; i < PIECES; i++) {
			struct piece *piece = &merge->pieces[i];

			piece_go_on(piece);
			ready += piece->state == PIECE_READ;
			waiting += piece->state == PIECE_READING || piece->state == PIECE_WRITING;
		}
		if (ready == 0 && waiting > 0)
			offline_wait(merge->offline);
	} while (ready > 0 || waiting > 0);
	if (merge->error == 0 && is_stopped(merge))
		merge->error = -ECANCELED;
	return merge->error;
}

static int verify(struct merge *merge)
{
	int error = run_stage(merge, MERGE_VERIFYING);

	if (error == -ECANCELED)
		complaint_set(merge->complaint, merge->origin_path, "stopped: nothing was changed");
	else if (error != 0)
		complaint_set(merge->complaint, target_name(merge),
			      "cannot be read whole, at byte %" PRIu64 " or after (%s): nothing was changed", merge->error_offset,
			      strerror(-error));
	return error;
}

/* ---- marking ---- */

static int remember_stores(const struct volume *volume, struct record *record)
{
	int error = 0;

	for (size_t i = 0; i < volume->chain_count && error == 0; i++) {
		const struct store *store = volume->chain[i]->store;

		error = record_add(record, &store->superblock.store_uuid, store->superblock.name, store->path,
				   store->superblock.created_ns);
	}
	return error;
}

/* The record knows the merge first, and forgets it last: where stores are at hand, they decide. */
static int mark_record(const struct merge *merge)
{
	struct volume *volume = merge->volume;
	int error = 0;

	if (volume->record == NULL)
		error = record_create(merge->options->state_directory, volume->origin_path, &volume->uuid, &volume->record);
	if (error == 0)
		error = record_set_origin(volume->record, volume->origin_path);
	if (error == 0)
		error = remember_stores(volume, volume->record);
	if (error == 0) {
		volume->record->merging_uuid = store_at(merge, merge->target)->superblock.store_uuid;
		error = record_save(volume->record);
	}
	if (error != 0)
		complaint_set(merge->complaint, merge->options->state_directory, "the volume's record cannot be written: %s",
			      strerror(-error));
	return error;
}

static void unmark_record(const struct merge *merge)
{
	struct record *record = merge->volume->record;

	memset(&record->merging_uuid, 0, sizeof(record->merging_uuid));
	record_save_or_warn(merge->volume);
}

static void apply_mark(struct superblock *superblock, void *context)
{
	superblock->state = STATE_MERGING;
	superblock->merge_target_uuid = *(const uuid128_t *)context;
}

static void apply_unmark(struct superblock *superblock, void *context)
{
	superblock->state = *(const enum store_state *)context;
	memset(&superblock->merge_target_uuid, 0, sizeof(superblock->merge_target_uuid));
}

/* Of the stores from the target to `last`, which may be marked or not; the target's goes last. False: it may have begun. */
static bool take_marks_back(const struct merge *merge, size_t last)
{
	for (size_t i = last + 1; i-- > merge->target;) {
		enum store_state before = i == merge->newest ? STATE_ACTIVE : STATE_SEALED;

		if (store_update_wait(store_at(merge, i), apply_unmark, &before) == 0)
			continue;
		if (i == merge->newest)
			return false;
		break; /* the next start takes them back */
	}
	unmark_record(merge);
	return true;
}

/* Both copies must carry the mark: with one only, a fault of that one would let the other say that nothing has begun. */
static int mark(const struct merge *merge)
{
	uuid128_t target = store_at(merge, merge->target)->superblock.store_uuid;
	int error = mark_record(merge);
	bool begun;

	for (size_t i = merge->target; i <= merge->newest && error == 0; i++) {
		struct store *store = store_at(merge, i);

		error = store_update_wait(store, apply_mark, &target);
		if (error == 0 && store->degraded)
			error = -EIO;
		if (error == 0)
			continue;
		begun = merge->offline->merge_begun || !take_marks_back(merge, i);
		complaint_set(merge->complaint, store->path,
			      begun ? "cannot be written: %s (the merge is unfinished: run it again)" :
				      "cannot be written: %s (nothing was changed)",
			      strerror(-error));
	}
	return error;
}

/* ---- writing and finishing ---- */

static int write_origin(struct merge *merge)
{
	int error = run_stage(merge, MERGE_WRITING);

	if (error == -ECANCELED)
		complaint_set(merge->complaint, merge->origin_path,
			      "stopped: it is half put back to snapshot %s, and is not served until the same command has finished that",
			      target_name(merge));
	else if (error != 0)
		complaint_set(merge->complaint, merge->error_is_write ? merge->origin_path : target_name(merge),
			      "cannot be %s at byte %" PRIu64
			      " or after (%s): the origin is half put back, and is not served until the same command has finished that",
			      merge->error_is_write ? "written" : "read", merge->error_offset, strerror(-error));
	return error;
}

static void apply_finish(struct superblock *superblock, void *context)
{
	const struct merge *merge = context;
	const struct store *target = store_at(merge, merge->target);

	superblock->state = STATE_ACTIVE;
	memset(&superblock->successor_uuid, 0, sizeof(superblock->successor_uuid));
	memset(&superblock->merge_target_uuid, 0, sizeof(superblock->merge_target_uuid));
	superblock->sealed_ns = 0;
	superblock->clean = true;
	superblock->log_slots = target->end.index;
	superblock->durable_slots = target->end.index;
	superblock->fingerprint = merge->volume->fingerprint;
	inherit_witnesses(merge, superblock);
	if (merge->origin_changed && superblock->broken.reason == BROKEN_NOT)
		superblock->broken = (struct broken_mark){ BROKEN_ORIGIN_CHANGED, disk_host_wall_ns(merge->host) };
}

static int finish(struct merge *merge)
{
	struct store *target = store_at(merge, merge->target);
	const char *what = merge->origin_path;
	int error = disk_flush_wait(merge->host, merge->volume->origin);

	if (error == 0)
		error = fingerprint_read(merge->volume);
	if (error == 0) {
		what = target->path;
		error = store_update_wait(target, apply_finish, merge);
	}
	if (error != 0)
		complaint_set(merge->complaint, what,
			      what == target->path ? "cannot be written: %s: the merge is unfinished, run the same command again" :
						     "cannot be flushed and read: %s: the merge is unfinished, run the same command again",
			      strerror(-error));
	return error;
}

static int wipe_newer(const struct merge *merge)
{
	struct record *record = merge->volume->record;

	for (size_t i = merge->newest; i > merge->target; i--) {
		struct store *store = store_at(merge, i);
		int error = store_wipe_wait(store);

		if (error != 0) {
			complaint_set(merge->complaint, store->path,
				      "cannot be wiped: %s (the origin is put back; the next start with this store wipes it)",
				      strerror(-error));
			return error;
		}
		record_remove(record, &store->superblock.store_uuid);
	}
	return 0;
}

/* ---- all of it ---- */

static int prepare(struct merge *merge)
{
	int error = open_tidy_chain(merge);

	if (error == 0)
		error = find_target(merge);
	if (error == 0)
		error = survey(merge);
	if (error == 0)
		error = check_witnesses(merge);
	if (error == 0 && merge->offline->merge_begun)
		error = check_half_merged(merge);
	else if (error == 0 && merge->offline->untidy && !merge->options->dry_run) {
		complaint_set(merge->complaint, merge->origin_path, "its stores cannot be put in order: serve it once");
		error = -EUCLEAN;
	}
	return error;
}

static int merge_all(struct merge *merge)
{
	int error = prepare(merge);

	/* One that has begun needs no trial: what cannot be read will be told, and what can need not wait. */
	if (error == 0 && (!merge->offline->merge_begun || merge->options->dry_run))
		error = verify(merge);
	if (error != 0 || merge->options->dry_run)
		return error;
	error = mark(merge);
	if (error == 0)
		error = write_origin(merge);
	if (error == 0)
		error = finish(merge);
	if (error != 0)
		return error;
	error = wipe_newer(merge);
	unmark_record(merge);
	return error;
}

int merge_run(struct disk_host *host, const char *origin_path, const char *const *store_paths, size_t store_count,
	      const struct merge_options *options, struct merge_report *report, struct complaint *complaint)
{
	struct merge *merge = calloc(1, sizeof(*merge));
	uint8_t *memory = aligned_alloc(ARENA_PAGE_BYTES, PIECES * PIECE_BYTES);
	int error = -ENOMEM;

	memset(report, 0, sizeof(*report));
	memset(complaint, 0, sizeof(*complaint));
	if (merge != NULL && memory != NULL) {
		merge->host = host;
		merge->origin_path = origin_path;
		merge->store_paths = store_paths;
		merge->store_count = store_count;
		merge->options = options;
		merge->report = report;
		merge->complaint = complaint;
		for (unsigned i = 0; i < PIECES; i++) {
			merge->pieces[i].merge = merge;
			merge->pieces[i].buffer = memory + i * PIECE_BYTES;
		}
		error = merge_all(merge);
		offline_close(merge->offline);
	}
	if (error != 0 && complaint->why[0] == '\0')
		complaint_set(complaint, origin_path, "%s", strerror(-error));
	free(memory);
	free(merge);
	return error;
}
