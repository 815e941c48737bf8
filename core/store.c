/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A store's superblock: reading, changing, wiping.
 *
 * The rule of a change: the copy that is not the newest is written first, then a barrier, then the other, then a barrier,
 * and only then is the change acted on. So at every moment one valid copy holds either the state before or the state
 * after. Changes of one store happen one after the other, each starting from the result of the one before.
 *
 * A copy that cannot be written does not stop the change as long as the other can: the good one has the larger
 * generation and wins. When both fail, or the first's barrier does, nobody knows which state the disk is in:
 * outcome_unknown, until a change succeeds.
 */
#include "core/store.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "core/log.h"
#include "io/log.h"

static const uint64_t copy_offset[SUPERBLOCK_COPIES] = { SUPERBLOCK_OFFSET_0, SUPERBLOCK_OFFSET_1 };

block_t superblock_block_count(const struct superblock *superblock)
{
	uint32_t block_bytes = superblock->geometry.block_bytes;

	return (superblock->origin_bytes + block_bytes - 1) / block_bytes;
}

void superblock_inherit_witness(struct superblock *to, const struct superblock *from)
{
	if (from->witness.reason == BROKEN_NOT)
		return;
	if (uuid_equal(&from->witness_uuid, &to->store_uuid)) {
		if (to->broken.reason == BROKEN_NOT)
			to->broken = from->witness;
	} else if (to->witness.reason == BROKEN_NOT) {
		to->witness_uuid = from->witness_uuid;
		to->witness = from->witness;
	}
}

void superblock_make_empty(struct superblock *superblock, void *context)
{
	(void)context;
	*superblock = (struct superblock){
		.compat = superblock->compat,
		.ro_compat = superblock->ro_compat,
		.incompat = superblock->incompat & ~FEATURE_JOINED,
		.generation = superblock->generation,
		.store_uuid = superblock->store_uuid,
		.role = ROLE_SNAPSHOT,
		.state = STATE_EMPTY,
		.geometry = superblock->geometry,
		.limit_bytes = superblock->limit_bytes,
		.clean = true,
	};
}

int store_open(struct disk_host *host, const char *path, unsigned flags, struct store **out)
{
	struct store *store = calloc(1, sizeof(*store));
	int error = -ENOMEM;

	if (store == NULL)
		return -ENOMEM;
	store->host = host;
	store->room_bytes = UINT64_MAX;
	list_init(&store->updates);
	store->path = strdup(path);
	store->buffer = aligned_alloc(SUPERBLOCK_BYTES, (size_t)SUPERBLOCK_BYTES * SUPERBLOCK_COPIES);
	store->open_meta = aligned_alloc(AREA_META_BYTES, AREA_META_BYTES);
	store->open_copy = -1;
	if (store->path != NULL && store->buffer != NULL && store->open_meta != NULL)
		error = disk_open(host, path, flags, &store->disk);
	if (error != 0) {
		store_close(store);
		return error;
	}
	*out = store;
	return 0;
}

void store_close(struct store *store)
{
	if (store == NULL)
		return;
	assert(store->pins == 0 && store->update == NULL && store->load == NULL);
	for (size_t i = 0; i < STORE_PARTS_MAX - 1; i++)
		store_close(store->parts[i]); /* a part has none itself */
	trouble_end(&store->trouble, "store", store->path);
	log_destroy(store->log);
	map_destroy(store->map);
	disk_close(store->disk);
	free(store->open_meta);
	free(store->buffer);
	free(store->path);
	free(store);
}

static void io_submit_single(struct store *store, enum disk_op op, void *buffer, size_t bytes, uint64_t offset,
			     void (*done)(struct disk_io *io, int error))
{
	store->io = (struct disk_io){
		.disk = store->disk,
		.op = op,
		.offset = offset,
		.length = bytes,
		.single = { .iov_base = buffer, .iov_len = bytes },
		.done = done,
		.context = store,
	};
	disk_submit(&store->io);
}

/*
 * Picks the newest valid copy. One bad copy is survived: a change is not acted on before both are written, so the one that
 * is left says what was last acted on.
 */
static int load_decode(struct store *store, const int read_error[SUPERBLOCK_COPIES], const char **why)
{
	struct superblock copies[SUPERBLOCK_COPIES];
	int *error = store->copy_error;
	unsigned newest;

	for (unsigned i = 0; i < SUPERBLOCK_COPIES; i++) {
		store->copy_why[i] = NULL;
		error[i] = read_error[i];
		if (error[i] == 0)
			error[i] = superblock_decode(store->buffer + (size_t)i * SUPERBLOCK_BYTES, &copies[i],
						     &store->copy_why[i]);
		store->copy_generation[i] = error[i] == 0 ? copies[i].generation : 0;
		if (store->copy_why[i] != NULL)
			*why = store->copy_why[i];
		if (error[i] == -EPROTONOSUPPORT)
			return error[i];
	}
	if (error[0] != 0 && error[1] != 0)
		return error[0] == -ENODATA ? error[1] : error[0];
	if (error[0] == 0 && error[1] == 0 && !uuid_equal(&copies[0].store_uuid, &copies[1].store_uuid)) {
		*why = "the two superblock copies belong to different stores";
		return -EINVAL;
	}
	newest = error[0] != 0 || (error[1] == 0 && copies[1].generation > copies[0].generation) ? 1 : 0;
	store->degraded = error[0] != 0 || error[1] != 0;
	store->uneven = !store->degraded && copies[0].generation != copies[1].generation;
	store->newest_copy = newest;
	store->superblock = copies[newest];
	store->generation_tried = copies[newest].generation;
	store->seed = checksum_seed(&store->superblock.store_uuid);
	store->end = SLOT(store->superblock.log_slots);
	/* with parts: stores_join() looks, when they are here */
	if (store->superblock.part_count == 0 && store->superblock.clean &&
	    store->superblock.log_slots > store_slots_there(store)) {
		*why = "is shorter than its log: a part of it is missing";
		return -EFBIG;
	}
	return 0;
}

static void load_done(struct disk_io *io, int error)
{
	struct store *store = io->context;
	struct store_load *load = store->load;
	int read_error[SUPERBLOCK_COPIES];

	if (store->copies_written == 0) {
		store->first_error = error;
		store->copies_written = 1;
		io_submit_single(store, DISK_READ, store->buffer + SUPERBLOCK_BYTES, SUPERBLOCK_BYTES, copy_offset[1],
				 load_done);
		return;
	}
	read_error[0] = store->first_error;
	read_error[1] = error;
	store->load = NULL;
	load->why = NULL;
	load->done(load, load_decode(store, read_error, &load->why));
}

void store_load_start(struct store *store, struct store_load *load)
{
	assert(store->load == NULL && store->update == NULL);
	store->load = load;
	store->copies_written = 0; /* here: copies read */
	memset(store->buffer, 0xff, (size_t)SUPERBLOCK_BYTES * SUPERBLOCK_COPIES); /* what a read error leaves is no wiped copy */
	io_submit_single(store, DISK_READ, store->buffer, SUPERBLOCK_BYTES, copy_offset[0], load_done);
}

const char *store_load_text(int error, const char *why)
{
	switch (error) {
	case -ENODATA:
		return "is not a rowsnap store";
	case -EBADMSG:
		return "is damaged: neither copy of its superblock holds";
	default:
		return why != NULL ? why : strerror(-error);
	}
}

struct waiting_load {
	bool done;
	int error;
};

static void waiting_load_done(struct store_load *load, int error)
{
	struct waiting_load *waiting = load->context;

	waiting->done = true;
	waiting->error = error;
}

int store_load_wait(struct store *store, const char **why)
{
	struct waiting_load waiting = { .done = false };
	struct store_load load = { .done = waiting_load_done, .context = &waiting };

	store_load_start(store, &load);
	while (!waiting.done)
		disk_host_wait(store->host);
	*why = load.why;
	return waiting.error;
}

static void update_step_done(struct disk_io *io, int error);

static void update_end(struct store *store, bool ok)
{
	struct store_update *update = store->update;
	int error = ok ? 0 : store->first_error; /* the next change begins with one of its own */

	store->step = UPDATE_IDLE;
	store->update = NULL;
	store->outcome_unknown = !ok;
	store->degraded = store->copies_written < SUPERBLOCK_COPIES;
	store->uneven = false;
	if (ok && update->apply != NULL)
		store->superblock = store->next;
	if (store->first_written && store->degraded)
		store->newest_copy = 1 - store->newest_copy;
	if (ok && store->degraded)
		log_warning("store %s: one copy of its superblock could not be written (%s)", store->path,
			    strerror(-store->first_error));
	if (!list_is_empty(&store->updates)) {
		struct store_update *next = container_of(list_pop(&store->updates), struct store_update, link);

		store_update_start(store, next);
	}
	update->done(update, error);
}

void store_mark_broken(struct store *store, struct broken_mark mark)
{
	store->superblock.broken = mark;
	store->next.broken = mark;
}

static void wipe_next_part(struct store *store);

static void part_wiped(struct store_update *update, int error)
{
	struct store *store = update->context;

	if (error != 0) {
		log_warning("store %s: a part of store %s, cannot be wiped: %s",
			    store->parts[store->part_at]->path, store->path, strerror(-error));
		store->part_error = error;
	}
	store->part_at++;
	wipe_next_part(store);
}

/*
 * What a wiped store's parts say is nobody's any more, so they go after it. The other way round a crash would leave a store
 * without its parts.
 */
static void wipe_next_part(struct store *store)
{
	while (store->part_at < store->superblock.part_count && store->parts[store->part_at] == NULL)
		store->part_at++;
	if (store->part_at >= store->superblock.part_count) {
		update_end(store, true);
		return;
	}
	store->part_update = (struct store_update){ .apply = NULL, .done = part_wiped, .context = store };
	store_update_start(store->parts[store->part_at], &store->part_update);
}

static void update_finish(struct store *store)
{
	bool wipe = store->update->apply == NULL;
	/* One good copy says what a change made of it; but one that is left of a wiped store says that it is not wiped. */
	bool ok = store->copies_written >= (wipe ? SUPERBLOCK_COPIES : 1);

	if (!wipe || !ok) {
		update_end(store, ok);
		return;
	}
	store->part_at = 0;
	store->part_error = 0;
	wipe_next_part(store);
}

static void update_write(struct store *store, enum store_update_step step)
{
	unsigned copy = step == UPDATE_WRITE_FIRST ? 1 - store->newest_copy : store->newest_copy;

	store->step = step;
	store->failed_before = store->barriers_failed;
	io_submit_single(store, DISK_WRITE, store->buffer, SUPERBLOCK_BYTES, copy_offset[copy], update_step_done);
}

static void update_flush(struct store *store, enum store_update_step step)
{
	store->step = step;
	io_submit_single(store, DISK_FLUSH, NULL, 0, 0, update_step_done);
}

int store_barrier_result(struct store *store, unsigned failed_before, int error)
{
	if (error != 0)
		store->barriers_failed++;
	else if (store->barriers_failed != failed_before)
		error = -EIO;
	return error;
}

static void update_step_done(struct disk_io *io, int error)
{
	struct store *store = io->context;

	if (store->step == UPDATE_FLUSH_FIRST || store->step == UPDATE_FLUSH_SECOND)
		error = store_barrier_result(store, store->failed_before, error);
	if (error != 0 && store->first_error == 0)
		store->first_error = error;
	switch (store->step) {
	case UPDATE_WRITE_FIRST:
		if (error == 0)
			update_flush(store, UPDATE_FLUSH_FIRST);
		else
			update_write(store, UPDATE_WRITE_SECOND);
		return;
	case UPDATE_FLUSH_FIRST:
		if (error == 0)
			store->copies_written++;
		store->first_written = error == 0;
		/* A disk that cannot flush may have lost the first: the other, the last that is known good, is left alone. */
		if (error == 0 || store->update->apply == NULL)
			update_write(store, UPDATE_WRITE_SECOND);
		else
			update_finish(store);
		return;
	case UPDATE_WRITE_SECOND:
		if (error == 0)
			update_flush(store, UPDATE_FLUSH_SECOND);
		else
			update_finish(store);
		return;
	case UPDATE_FLUSH_SECOND:
		if (error == 0)
			store->copies_written++;
		update_finish(store);
		return;
	case UPDATE_IDLE:
		break;
	}
	assert(false && "a superblock change has a step");
}

void store_update_start(struct store *store, struct store_update *update)
{
	if (store->update != NULL) {
		list_append(&store->updates, &update->link);
		return;
	}
	list_init(&update->link);
	store->update = update;
	store->copies_written = 0;
	store->first_written = false;
	store->first_error = 0;
	memset(store->buffer, 0, SUPERBLOCK_BYTES);
	if (update->apply != NULL) {
		store->next = store->superblock;
		update->apply(&store->next, update->context);
		/* Past every one tried: a change whose outcome is unknown must lose against this one. */
		store->next.generation = ++store->generation_tried;
		superblock_encode(store->buffer, &store->next);
	}
	update_write(store, UPDATE_WRITE_FIRST);
}

struct waiting_update {
	bool done;
	int error;
	void (*apply)(struct superblock *superblock, void *context);
	void *context;
};

static void waiting_update_done(struct store_update *update, int error)
{
	struct waiting_update *wait = update->context;

	wait->done = true;
	wait->error = error;
}

static void waiting_update_apply(struct superblock *superblock, void *context)
{
	const struct waiting_update *wait = context;

	wait->apply(superblock, wait->context);
}

int store_update_wait(struct store *store, void (*apply)(struct superblock *superblock, void *context), void *context)
{
	struct waiting_update wait = { .apply = apply, .context = context };

	store->waiting = (struct store_update){
		.apply = apply == NULL ? NULL : waiting_update_apply,
		.done = waiting_update_done,
		.context = &wait,
	};
	store_update_start(store, &store->waiting);
	while (!wait.done)
		disk_host_wait(store->host);
	return wait.error;
}

int store_wipe_wait(struct store *store)
{
	return store_update_wait(store, NULL, NULL);
}

void store_pin(struct store *store)
{
	store->pins++;
}

void store_unpin(struct store *store)
{
	void (*unpinned)(struct store *store, void *context) = store->unpinned;

	assert(store->pins > 0);
	if (--store->pins > 0 || unpinned == NULL)
		return;
	store->unpinned = NULL;
	unpinned(store, store->unpinned_context);
}

slot_t store_end(const struct store *store)
{
	return store->log != NULL ? log_end(store->log) : store->end;
}

int store_format_wait(struct disk_host *host, struct disk *disk, uint32_t block_bytes, uint64_t limit_bytes,
		      uint32_t slots_per_area, uuid128_t *uuid)
{
	struct superblock superblock = {
		.generation = 1,
		.role = ROLE_SNAPSHOT,
		.state = STATE_EMPTY,
		.geometry = { block_bytes, slots_per_area, FIRST_AREA_OFFSET },
		.limit_bytes = limit_bytes,
		.clean = true,
	};
	uint8_t *buffer = aligned_alloc(SUPERBLOCK_BYTES, SUPERBLOCK_BYTES);
	int error = 0;

	if (buffer == NULL)
		return -ENOMEM;
	disk_host_random(host, &superblock.store_uuid, sizeof(superblock.store_uuid));
	superblock.store_uuid.bytes[6] = (uint8_t)((superblock.store_uuid.bytes[6] & 0x0f) | 0x40);
	superblock.store_uuid.bytes[8] = (uint8_t)((superblock.store_uuid.bytes[8] & 0x3f) | 0x80);
	superblock_encode(buffer, &superblock);
	for (unsigned i = 0; i < SUPERBLOCK_COPIES && error == 0; i++) {
		error = disk_write_wait(host, disk, buffer, SUPERBLOCK_BYTES, copy_offset[i]);
		if (error == 0)
			error = disk_flush_wait(host, disk);
	}
	free(buffer);
	if (error == 0 && uuid != NULL)
		*uuid = superblock.store_uuid;
	return error;
}
