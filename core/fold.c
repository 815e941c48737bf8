/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Folding: the exceptions of a snapshot ("newer") move into the next older store ("older") as far as that one lacks them,
 * so that the snapshot can go. It runs while requests are served.
 *
 *   reserve     room in the older store, or the fold is refused
 *   mark        older: "takes up newer's exceptions", its log's end before; its log is open again
 *   copy        what newer has and older lacks is read, verified, and appended to older's log, with its commits
 *   settle      the log's last metadata copies
 *   commit      older: newer's successor is its successor now, sealed at the new end           <== commit point
 *   link        newer's successor: older is its predecessor
 *   wipe        newer's superblocks
 *
 * Every entry that is appended is true for the older snapshot by itself, so reads are right at every moment, and a crash
 * anywhere leaves a fold that is resumed at the next start. If one fails, older is sealed again at the end it has come to.
 *
 * Dropping the newest: in a pause it is sealed and the older one made active again, durably (mark). From then on a block in
 * either map counts as preserved, new exceptions and folded ones go to the same log, and there is no going back: a fold
 * that fails stays as it is ("stalled") and can be tried again.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "core/engine.h"
#include "io/log.h"

#define FOLD_COPIES 8u
#define FOLD_BYTES (UINT32_C(256) << 10)

struct fold_copy {
	struct volume *volume;
	bool busy;
	bool waits_for_room; /* its items do not fit the open batch yet */
	uint8_t *buffer;     /* FOLD_BYTES */
	block_t first;
	uint32_t count;      /* blocks */
	enum entry_type type;
	struct slot_read slots;
	struct log_ticket ticket;
};

enum fold_step { FOLD_PREPARING, FOLD_COPYING, FOLD_ENDING, FOLD_STALLED };

struct fold {
	struct snapshot *older, *newer;
	struct operation *operation; /* NULL: resumed at start-up, or its asker has had its answer */
	bool newest;
	enum fold_step step;
	int error;
	block_t next;
	uint64_t done, total;
	slot_t base; /* older's log's end before */
	uint64_t reserve_slots, reserving_slots; /* still to be reserved, and of them now */
	uint32_t reserve_part;                   /* where in older */

	struct disk_io io;
	struct store_update update;
	struct log_settle settle;
	bool settled, settling;
	bool wiping;  /* waits until nobody reads newer's slots */
	bool was_newest; /* it is out of the chain, and to be wiped */
	bool resumed; /* at start-up: what was before it is not known any more, so it is not undone */
	struct log_item items[FOLD_BYTES / BLOCK_BYTES_MIN];
	struct fold_copy copies[FOLD_COPIES];
};

bool fold_is_newest(const struct volume *volume)
{
	return volume->fold != NULL && volume->fold->newest && volume->fold->step != FOLD_PREPARING;
}

bool fold_bars_creation(const struct volume *volume)
{
	return (fold_is_newest(volume) && !fold_is_stalled(volume)) ||
	       (volume->fold != NULL && volume->fold->was_newest);
}

bool fold_is_stalled(const struct volume *volume)
{
	return volume->fold != NULL && volume->fold->step == FOLD_STALLED;
}

bool fold_involves(const struct volume *volume, const struct snapshot *snapshot)
{
	return volume->fold != NULL && (volume->fold->older == snapshot || volume->fold->newer == snapshot);
}

struct snapshot *fold_source(const struct volume *volume)
{
	return volume->fold->newer;
}

void fold_report(const struct volume *volume, const struct snapshot *snapshot, struct snapshot_report *report)
{
	const struct fold *fold = volume->fold;

	if (fold == NULL || fold->newer != snapshot)
		return;
	report->folding = true;
	report->fold_done = fold->done;
	report->fold_total = fold->total;
}

static size_t index_of(const struct volume *volume, const struct snapshot *snapshot)
{
	size_t index = 0;

	while (volume->chain[index] != snapshot) {
		index++;
		assert(index < volume->chain_count);
	}
	return index;
}

void fold_free(struct volume *volume)
{
	struct fold *fold = volume->fold;

	if (fold == NULL)
		return;
	volume->fold = NULL;
	for (unsigned i = 0; i < FOLD_COPIES; i++) {
		free(fold->copies[i].buffer);
		slot_read_fini(&fold->copies[i].slots);
	}
	free(fold);
}

static void fold_slots_read(struct slot_read *read, int error);
static void fold_durable(struct log_ticket *ticket, int error);

static int fold_create(struct volume *volume, size_t index)
{
	struct fold *fold = calloc(1, sizeof(*fold));

	if (fold == NULL)
		return -ENOMEM;
	volume->fold = fold;
	fold->newer = volume->chain[index];
	fold->older = volume->chain[index - 1];
	fold->newer->dropping = true;
	for (unsigned i = 0; i < FOLD_COPIES; i++) {
		struct fold_copy *copy = &fold->copies[i];

		copy->volume = volume;
		copy->buffer = aligned_alloc(ARENA_PAGE_BYTES, FOLD_BYTES);
		copy->slots.cache = volume->slot_cache;
		copy->slots.checksum_errors = &volume->counters.checksum_errors;
		copy->slots.done = fold_slots_read;
		copy->slots.context = copy;
		if (copy->buffer == NULL || slot_read_init(&copy->slots) != 0) {
			fold_free(volume);
			return -ENOMEM;
		}
	}
	return 0;
}

/* ---- what there is to do ---- */

/*
 * The next run at or past `block` that newer has and older lacks, at most `limit` blocks. False: there is none.
 */
static bool next_run(const struct fold *fold, block_t block_count, block_t *block, struct map_run *run, uint64_t limit)
{
	const struct map *newer = fold->newer->store->map, *older = fold->older->store->map;

	/* What a broken store lacks was overwritten: what a newer one has is not what it lacks. */
	if (store_is_broken(fold->older->store))
		return false;
	while (*block < block_count) {
		struct map_run there, have = map_find(newer, *block, block_count - *block);

		if (have.kind == MAP_ABSENT) {
			*block += have.count;
			continue;
		}
		there = map_find(older, *block, have.count);
		if (there.kind != MAP_ABSENT) {
			*block += there.count;
			continue;
		}
		*run = have;
		run->count = there.count < limit ? there.count : limit;
		return true;
	}
	return false;
}

/* How many slots and blocks the fold needs. */
static void measure(const struct volume *volume, uint64_t *slots, uint64_t *blocks)
{
	block_t block = 0, count = volume_block_count(volume);
	struct map_run run;

	*slots = 0;
	*blocks = 0;
	while (next_run(volume->fold, count, &block, &run, UINT64_MAX)) {
		*slots += run.kind == MAP_ZERO ? 1 : run.count;
		*blocks += run.count;
		block += run.count;
	}
}

/* ---- the end ---- */

/* Tells the asker, once; the fold itself may live on. */
static void answer(struct volume *volume, int error, const char *why)
{
	struct fold *fold = volume->fold;
	struct operation *operation = fold->operation;

	fold->operation = NULL;
	if (error != 0)
		log_warning("volume %s: snapshot %s is not dropped: %s (%s)", volume->name,
			    fold->newer->store->superblock.name, why, strerror(-error));
	if (operation == NULL)
		return;
	if (error != 0 && operation->complaint.why[0] == '\0')
		complaint_set(&operation->complaint, operation->name, "%s: %s", why, strerror(-error));
	operation->done(operation, error);
}

void fold_postpone(struct volume *volume)
{
	if (volume->fold != NULL && volume->fold->operation != NULL)
		answer(volume, -ESHUTDOWN, "the server is stopping, the drop goes on at the next start");
}

/* The newer one is a snapshot again, as if nothing had been asked. */
static void fold_undone(struct volume *volume, int error, const char *why)
{
	struct snapshot *newer = volume->fold->newer;

	newer->dropping = false;
	newer->export.gone = false;
	export_add(volume->exports, &newer->export);
	answer(volume, error, why);
	fold_free(volume);
}

static void fold_wiped(struct store_update *update, int error)
{
	struct volume *volume = update->context;
	struct fold *fold = volume->fold;
	struct snapshot *newer = fold->newer;

	/* Not before the wipe: by its record the next start finds the store and wipes it, if we are killed in between. */
	record_forget(volume, newer);
	if (error != 0)
		log_warning("store %s: cannot be wiped: %s", newer->store->path, strerror(-error));
	else
		error = newer->store->part_error;
	answer(volume, error, "the snapshot is dropped, but its store could not be wiped");
	snapshot_destroy(newer);
	fold_free(volume);
}

static void fold_wipe(struct volume *volume)
{
	struct fold *fold = volume->fold;

	volume_remove_from_chain(volume, index_of(volume, fold->newer));
	fold->was_newest = fold->newest;
	fold->newest = false;
	fold->step = FOLD_ENDING;
	fold->wiping = true;
}

static void fold_linked(struct store_update *update, int error)
{
	struct volume *volume = update->context;

	if (error != 0)
		log_warning("volume %s: a predecessor link could not be written (%s): the next start mends it", volume->name,
			    strerror(-error));
	fold_wipe(volume);
}

static void apply_link(struct superblock *superblock, void *context)
{
	const struct volume *volume = context;

	superblock->predecessor_uuid = volume->fold->older->store->superblock.store_uuid;
}

static void fold_undo(struct volume *volume, int error, const char *why);

static void fold_committed(struct store_update *update, int error)
{
	struct volume *volume = update->context;
	struct fold *fold = volume->fold;
	size_t index = index_of(volume, fold->newer);

	if (error != 0) {
		/* Nobody knows which of the two holds: both give the same answers, and the next try or start decides. */
		fold_undo(volume, error, "the older store's superblock cannot be written");
		return;
	}
	if (fold->newest) {
		fold_wipe(volume);
		return;
	}
	fold->update = (struct store_update){ .apply = apply_link, .done = fold_linked, .context = volume };
	store_update_start(volume->chain[index + 1]->store, &fold->update);
}

static void apply_commit(struct superblock *superblock, void *context)
{
	const struct volume *volume = context;
	const struct fold *fold = volume->fold;
	const struct superblock *newer = &fold->newer->store->superblock;

	superblock->successor_uuid = newer->successor_uuid;
	memset(&superblock->fold_source_uuid, 0, sizeof(superblock->fold_source_uuid));
	superblock->fold_base_slots = 0;
	superblock_inherit_witness(superblock, newer);
	if (superblock->broken.reason == BROKEN_NOT)
		superblock->broken = newer->broken;
	if (fold->newest)
		return;
	superblock->clean = true;
	superblock->log_slots = store_end(fold->older->store).index;
	superblock->durable_slots = superblock->log_slots;
	superblock->sealed_ns = newer->sealed_ns;
	superblock->fingerprint = newer->fingerprint;
}

static void fold_commit(struct volume *volume)
{
	struct fold *fold = volume->fold;

	fold->step = FOLD_ENDING;
	fold->update = (struct store_update){ .apply = apply_commit, .done = fold_committed, .context = volume };
	store_update_start(fold->older->store, &fold->update);
}

/* ---- failing ---- */

static void undone(struct store_update *update, int error)
{
	struct volume *volume = update->context;
	struct fold *fold = volume->fold;

	if (error != 0) {
		/* Left as it is: what was folded is true, and the next start resumes. */
		fold->step = FOLD_STALLED;
		answer(volume, fold->error, "the fold failed and could not be undone");
		return;
	}
	log_close(fold->older->store->log);
	fold_undone(volume, fold->error, "its exceptions could not be folded into the older store");
}

/* What was appended stays: it is true, and saves the next try some work. */
static void apply_undo(struct superblock *superblock, void *context)
{
	const struct volume *volume = context;

	memset(&superblock->fold_source_uuid, 0, sizeof(superblock->fold_source_uuid));
	superblock->fold_base_slots = 0;
	superblock->clean = true;
	superblock->log_slots = store_end(volume->fold->older->store).index;
	superblock->durable_slots = superblock->log_slots;
}

static void fold_undo(struct volume *volume, int error, const char *why)
{
	struct fold *fold = volume->fold;

	fold->error = error;
	if (fold->newest || fold->resumed || fold->older->store->outcome_unknown ||
	    !log_can_close(fold->older->store->log)) {
		fold->step = FOLD_STALLED;
		answer(volume, error, why);
		return;
	}
	fold->step = FOLD_ENDING;
	fold->update = (struct store_update){ .apply = apply_undo, .done = undone, .context = volume };
	store_update_start(fold->older->store, &fold->update);
}

void fold_log_stuck(struct volume *volume, struct log *log, int error)
{
	if (volume->fold != NULL && volume->fold->error == 0)
		volume->fold->error = error;
	log_abort(log, error);
}

/* ---- copying ---- */

static void copy_finish(struct fold_copy *copy, int error)
{
	struct fold *fold = copy->volume->fold;

	copy->busy = false;
	copy->waits_for_room = false;
	if (error == 0)
		fold->done += copy->count;
	else if (fold->error == 0)
		fold->error = error;
}

static void fold_durable(struct log_ticket *ticket, int error)
{
	copy_finish(ticket->context, error);
}

static void copy_to_log(struct fold_copy *copy)
{
	struct volume *volume = copy->volume;
	struct fold *fold = volume->fold;
	struct log *log = fold->older->store->log;
	unsigned count = copy->type == ENTRY_ZERO ? 1 : copy->count;

	copy->waits_for_room = true;
	if (log_error(log) != 0) {
		copy_finish(copy, log_error(log));
		return;
	}
	if (log_is_stuck(log) || !log_has_room(log, count))
		return;
	for (unsigned i = 0; i < count; i++) {
		fold->items[i] = (struct log_item){ .type = copy->type, .block = copy->first + i, .count = 1 };
		if (copy->type == ENTRY_DATA)
			fold->items[i].data = copy->buffer + (size_t)i * volume->block_bytes;
		else if (copy->type == ENTRY_ZERO)
			fold->items[i].count = copy->count;
	}
	copy->waits_for_room = false;
	copy->ticket = (struct log_ticket){ .done = fold_durable, .context = copy };
	log_append(log, fold->items, count, &copy->ticket);
}

static void fold_slots_read(struct slot_read *read, int error)
{
	struct fold_copy *copy = read->context;

	if (error != 0)
		copy_finish(copy, error);
	else
		copy_to_log(copy);
}

static void copy_begin(struct volume *volume, struct fold_copy *copy, struct map_run run)
{
	const struct store *newer = volume->fold->newer->store;
	const struct geometry *geometry = &newer->superblock.geometry;

	copy->busy = true;
	copy->first = volume->fold->next;
	copy->count = (uint32_t)run.count;
	switch (run.kind) {
	case MAP_ZERO:
		copy->type = ENTRY_ZERO;
		copy_to_log(copy);
		return;
	case MAP_LOST:
		copy->type = ENTRY_LOST;
		copy_to_log(copy);
		return;
	case MAP_SLOT:
		copy->type = ENTRY_DATA;
		if (copy->count > geometry->slots_per_area - geometry_slot_in_area(geometry, run.slot))
			copy->count = geometry->slots_per_area - geometry_slot_in_area(geometry, run.slot);
		copy->slots.store = volume->fold->newer->store;
		copy->slots.slot = run.slot;
		copy->slots.count = copy->count;
		copy->slots.block = copy->first;
		copy->slots.buffer = copy->buffer;
		slot_read_start(&copy->slots);
		return;
	case MAP_ABSENT:
		break;
	}
	assert(false && "a run to fold has a kind");
}

/* Starts copies as far as there are free ones. Returns whether any is under way. */
static bool pump(struct volume *volume)
{
	struct fold *fold = volume->fold;
	uint32_t limit = FOLD_BYTES / volume->block_bytes;
	uint32_t batch = fold->older->store->superblock.geometry.slots_per_area * 4;
	bool busy = false;

	if (limit > batch)
		limit = batch;
	for (unsigned i = 0; i < FOLD_COPIES; i++) {
		struct fold_copy *copy = &fold->copies[i];
		struct map_run run;

		if (copy->busy && copy->waits_for_room)
			copy_to_log(copy);
		if (!copy->busy && fold->error == 0 && !volume->stopping &&
		    next_run(fold, volume_block_count(volume), &fold->next, &run,
			     limit)) {
			copy_begin(volume, copy, run);
			fold->next += copy->count;
		}
		busy = busy || copy->busy;
	}
	return busy;
}

static void fold_settled(struct log_settle *settle, int error)
{
	struct volume *volume = settle->context;
	struct fold *fold = volume->fold;

	fold->settling = false;
	fold->settled = true;
	if (error != 0)
		fold->error = error;
}

static void copying_turn(struct volume *volume)
{
	struct fold *fold = volume->fold;
	struct log *log = fold->older->store->log;

	if (pump(volume) || fold->settling || volume->stopping)
		return;
	if (fold->error != 0) {
		if (fold->newest || log_can_close(log))
			fold_undo(volume, fold->error, "its exceptions could not be folded into the older store");
		return;
	}
	if (fold->newest) {
		fold_commit(volume);
		return;
	}
	if (!log_is_idle(log))
		return;
	if (log_error(log) != 0) {
		fold->error = log_error(log);
		return;
	}
	if (!fold->settled) {
		fold->settling = true;
		fold->settle = (struct log_settle){ .done = fold_settled, .context = volume };
		log_settle_start(log, &fold->settle);
	} else if (log_can_close(log)) {
		fold_commit(volume);
	}
}

void fold_turn(struct volume *volume)
{
	struct fold *fold = volume->fold;

	if (fold == NULL)
		return;
	if (fold->step == FOLD_COPYING) {
		copying_turn(volume);
	} else if (fold->wiping && fold->newer->store->pins == 0) {
		fold->wiping = false;
		fold->update = (struct store_update){ .apply = NULL, .done = fold_wiped, .context = volume };
		store_update_start(fold->newer->store, &fold->update);
	}
}

bool fold_is_quiet(const struct volume *volume)
{
	const struct fold *fold = volume->fold;

	if (fold == NULL || fold->step == FOLD_STALLED)
		return true;
	if (fold->step != FOLD_COPYING || fold->settling)
		return false;
	for (unsigned i = 0; i < FOLD_COPIES; i++)
		if (fold->copies[i].busy)
			return false;
	return true;
}

/* ---- the start ---- */

static void fold_copy_start(struct volume *volume)
{
	struct fold *fold = volume->fold;
	uint64_t slots;

	fold->step = FOLD_COPYING;
	fold->next = 0;
	fold->done = 0;
	fold->error = 0;
	fold->settled = false;
	measure(volume, &slots, &fold->total);
}

/* The operation has become a fold: others may start. */
static void fold_detach(struct volume *volume)
{
	struct fold *fold = volume->fold;

	fold->operation = volume->operation;
	volume->operation = NULL;
	free(fold->operation->store_path);
	fold->operation->store_path = NULL;
	fold_copy_start(volume);
	if (fold->operation->begun != NULL)
		fold->operation->begun(fold->operation);
}

static void fold_refuse(struct volume *volume, int error, const char *why)
{
	struct snapshot *newer = volume->fold->newer;
	struct operation *operation = volume->operation;

	newer->dropping = false;
	newer->export.gone = false;
	export_add(volume->exports, &newer->export);
	fold_free(volume);
	if (operation->complaint.why[0] == '\0')
		complaint_set(&operation->complaint, operation->name, "%s: %s", why, strerror(-error));
	operation_end(volume, error);
}

static void unmarked(struct store_update *update, int error)
{
	struct volume *volume = update->context;
	struct store *older = volume->fold->older->store;

	if (error != 0)
		log_warning("store %s: cannot be written (%s): the next start may carry the drop out", older->path,
			    strerror(-error));
	fold_refuse(volume, volume->fold->error, "the older store cannot be written");
}

/* The mark may be on disk: it is taken back before the drop is refused. */
static void unmark(struct volume *volume, int error)
{
	struct fold *fold = volume->fold;

	fold->error = error;
	fold->update = (struct store_update){ .apply = apply_undo, .done = unmarked, .context = volume };
	store_update_start(fold->older->store, &fold->update);
}

/*
 * Older's log was closed for some time: its metadata copies have been written anew, so nothing that a commit given up has
 * left there can lie under the next.
 */
static void cleared(struct log_settle *settle, int error)
{
	struct volume *volume = settle->context;

	if (error != 0)
		unmark(volume, error);
	else
		fold_detach(volume);
}

static void fold_marked(struct store_update *update, int error)
{
	struct volume *volume = update->context;

	if (error == 0)
		error = log_create(volume->fold->older->store, &volume->log_ops);
	if (error != 0) {
		unmark(volume, error);
		return;
	}
	volume->fold->settle = (struct log_settle){ .done = cleared, .context = volume };
	log_settle_start(volume->fold->older->store->log, &volume->fold->settle);
}

static void apply_mark(struct superblock *superblock, void *context)
{
	const struct volume *volume = context;
	const struct fold *fold = volume->fold;

	superblock->fold_source_uuid = fold->newer->store->superblock.store_uuid;
	superblock->fold_base_slots = fold->base.index;
	superblock->durable_slots = fold->base.index;
	superblock->clean = false;
	superblock->log_slots = 0;
}

/* ---- the newest: in a pause ---- */

static void newest_pause_end(struct volume *volume, int error, const char *why)
{
	pause_end(volume);
	if (error != 0)
		fold_refuse(volume, error, why);
	else
		fold_detach(volume);
}

static void apply_unseal(struct superblock *superblock, void *context)
{
	(void)context;
	superblock->state = STATE_ACTIVE;
	superblock->sealed_ns = 0;
	superblock->clean = false;
	superblock->log_slots = 0;
}

static void newest_unsealed(struct store_update *update, int error)
{
	struct volume *volume = update->context;
	struct store *newer = volume->fold->newer->store;

	if (error == 0 && newer->log == NULL)
		error = log_create(newer, &volume->log_ops);
	if (error != 0) {
		/* On disk it may be sealed at an end that must not move: nothing more can be preserved, so nothing written. */
		volume->unusable = true;
		log_warning("store %s: its state is unknown (%s): all writes fail until the next start", newer->path,
			    strerror(-error));
	}
	newest_pause_end(volume, volume->fold->error, "the older store cannot be made active again");
}

static void apply_reseal(struct superblock *superblock, void *context)
{
	const struct volume *volume = context;

	apply_undo(superblock, context);
	superblock->state = STATE_SEALED;
	if (superblock->sealed_ns == 0)
		superblock->sealed_ns = disk_host_wall_ns(volume->host);
}

static void older_resealed(struct store_update *update, int error)
{
	struct volume *volume = update->context;
	struct fold *fold = volume->fold;

	if (error != 0) {
		volume->unusable = true;
		log_warning("store %s: its state is unknown (%s): all writes fail until the next start",
			    fold->older->store->path, strerror(-error));
		newest_pause_end(volume, fold->error, "the older store cannot be made active again");
		return;
	}
	fold->update = (struct store_update){ .apply = apply_unseal, .done = newest_unsealed, .context = volume };
	store_update_start(fold->newer->store, &fold->update);
}

/*
 * Older may say "active" on disk. Newer must not receive exceptions again before it is known that it does not: a start
 * would look for them, and for the fingerprint, in older.
 */
static void older_failed(struct volume *volume, int error)
{
	struct fold *fold = volume->fold;

	fold->error = error;
	fold->update = (struct store_update){ .apply = apply_reseal, .done = older_resealed, .context = volume };
	store_update_start(fold->older->store, &fold->update);
}

static void older_cleared(struct log_settle *settle, int error)
{
	struct volume *volume = settle->context;

	if (error != 0) {
		log_close(volume->fold->older->store->log);
		older_failed(volume, error);
		return;
	}
	volume->fold->step = FOLD_COPYING;
	newest_pause_end(volume, 0, NULL);
}

static void older_reopened(struct store_update *update, int error)
{
	struct volume *volume = update->context;
	struct fold *fold = volume->fold;

	if (error == 0)
		error = log_create(fold->older->store, &volume->log_ops);
	if (error == 0) {
		fold->settle = (struct log_settle){ .done = older_cleared, .context = volume };
		log_settle_start(fold->older->store->log, &fold->settle);
		return;
	}
	older_failed(volume, error);
}

static void apply_reopen(struct superblock *superblock, void *context)
{
	const struct volume *volume = context;

	apply_mark(superblock, context);
	superblock->state = STATE_ACTIVE;
	superblock->sealed_ns = 0;
	superblock->fingerprint = volume->fingerprint;
}

static bool newest_log_is_closed(const struct volume *volume, const struct operation *operation)
{
	(void)operation;
	return volume->fold->newer->store->log == NULL || log_can_close(volume->fold->newer->store->log);
}

static void reopen_older(struct volume *volume, struct operation *operation)
{
	struct fold *fold = volume->fold;

	(void)operation;
	if (fold->newer->store->log != NULL)
		log_close(fold->newer->store->log);
	fold->update = (struct store_update){ .apply = apply_reopen, .done = older_reopened, .context = volume };
	store_update_start(fold->older->store, &fold->update);
}

static void newest_sealed(struct store_update *update, int error)
{
	struct volume *volume = update->context;

	if (error != 0) {
		volume->fold->error = error;
		volume->fold->update = (struct store_update){
			.apply = apply_unseal, .done = newest_unsealed, .context = volume
		};
		store_update_start(volume->fold->newer->store, &volume->fold->update);
		return;
	}
	operation_wait(volume, newest_log_is_closed, reopen_older);
}

static void apply_seal_newest(struct superblock *superblock, void *context)
{
	const struct volume *volume = context;

	superblock->state = STATE_SEALED;
	superblock->sealed_ns = disk_host_wall_ns(volume->host);
	superblock->clean = true;
	superblock->log_slots = store_end(volume->fold->newer->store).index;
	superblock->durable_slots = superblock->log_slots;
	superblock->fingerprint = volume->fingerprint;
}

static void newest_settled(struct log_settle *settle, int error)
{
	struct volume *volume = settle->context;
	struct fold *fold = volume->fold;

	if (error != 0) {
		newest_pause_end(volume, error, "its store cannot be sealed");
		return;
	}
	fold->update = (struct store_update){ .apply = apply_seal_newest, .done = newest_sealed, .context = volume };
	store_update_start(fold->newer->store, &fold->update);
}

static void newest_fingerprinted(struct volume *volume, int error)
{
	struct log *log = volume->fold->newer->store->log;

	if (error != 0) {
		newest_pause_end(volume, error, "the origin cannot be read");
		return;
	}
	volume->fold->settle = (struct log_settle){ .done = newest_settled, .context = volume };
	if (log == NULL || log_error(log) != 0)
		newest_settled(&volume->fold->settle, 0);
	else
		log_settle_start(log, &volume->fold->settle);
}

static void newest_flushed(struct disk_io *io, int error)
{
	struct volume *volume = io->context;

	error = origin_barrier_result(volume, error);
	if (error != 0)
		newest_pause_end(volume, error, "the origin cannot be flushed");
	else
		fingerprint_read_start(volume, newest_fingerprinted);
}

static void newest_paused(struct volume *volume)
{
	operation_flush_origin(volume, newest_flushed);
}

static void reserved(struct volume *volume)
{
	struct fold *fold = volume->fold;

	if (fold->newest) {
		pause_begin(volume, newest_paused);
		return;
	}
	fold->update = (struct store_update){ .apply = apply_mark, .done = fold_marked, .context = volume };
	store_update_start(fold->older->store, &fold->update);
}

static void reserve_next(struct volume *volume);

static void allocated(struct disk_io *io, int error)
{
	struct volume *volume = io->context;
	struct fold *fold = volume->fold;

	/* What finds no room in one part goes to the next. */
	if (error == 0)
		fold->reserve_slots -= fold->reserving_slots;
	else
		fold->error = error;
	fold->reserve_part++;
	reserve_next(volume);
}

/* In the part that the log goes on in, behind its end, and then in those that stand by. */
static void reserve_next(struct volume *volume)
{
	struct fold *fold = volume->fold;
	const struct store *older = fold->older->store;
	const struct geometry *geometry = &older->superblock.geometry;
	uint32_t last = store_last_part(older), first = store_part_first_area(older, last), at = 0;
	uint64_t limit, room, end = older->end.index, from = (uint64_t)first * geometry->slots_per_area;

	if (fold->reserve_slots == 0 || fold->reserve_part == store_part_count(older)) {
		int error = fold->error;

		fold->error = 0;
		if (fold->reserve_slots == 0)
			reserved(volume);
		else
			fold_refuse(volume, error != 0 ? error : -ENOSPC,
				    "the older store has no room for what would be folded into it");
		return;
	}
	limit = store_part_limit_bytes(older, fold->reserve_part);
	room = geometry_slots(geometry, limit == 0 ? UINT64_MAX : limit);
	if (fold->reserve_part == last && end > from) {
		at = (uint32_t)((end - from) / geometry->slots_per_area);
		room = room > end - from ? room - (end - from) : 0;
	} else if (fold->reserve_part == last) {
		room += from - end; /* the parts before have that */
	}
	fold->reserving_slots = fold->reserve_slots < room ? fold->reserve_slots : room;
	fold->io = (struct disk_io){
		.disk = store_part(older, fold->reserve_part)->disk,
		.op = DISK_ALLOCATE,
		.offset = geometry_area_offset(geometry, at),
		.length = (fold->reserving_slots / geometry->slots_per_area + 2) * geometry_area_bytes(geometry),
		.done = allocated,
		.context = volume,
	};
	if (limit != 0 && fold->io.length > limit - fold->io.offset)
		fold->io.length = limit - fold->io.offset;
	if (fold->reserving_slots == 0 || fold->io.length == 0)
		allocated(&fold->io, 0);
	else
		disk_submit(&fold->io);
}

static void reserve(struct volume *volume)
{
	struct fold *fold = volume->fold;
	const struct store *older = fold->older->store;
	uint64_t slots, blocks, room = store_capacity_slots_later(older) - older->end.index;

	measure(volume, &slots, &blocks);
	if (slots > room) {
		complaint_set(&volume->operation->complaint, volume->operation->name,
			      "%llu blocks would be folded into store %s, which has room for %llu",
			      (unsigned long long)blocks, older->path, (unsigned long long)room);
		fold_refuse(volume, -ENOSPC, "");
		return;
	}
	fold->reserve_slots = slots;
	fold->reserve_part = store_last_part(older);
	reserve_next(volume);
}

void fold_start(struct volume *volume, size_t index, struct operation *operation)
{
	struct store *older = volume->chain[index - 1]->store;
	int error = fold_create(volume, index);
	struct fold *fold = volume->fold;

	if (error != 0) {
		struct snapshot *newer = volume->chain[index];

		newer->dropping = false;
		newer->export.gone = false;
		export_add(volume->exports, &newer->export);
		complaint_set(&operation->complaint, operation->name, "out of memory");
		operation_end(volume, error);
		return;
	}
	fold->newest = index + 1 == volume->chain_count;
	fold->step = FOLD_PREPARING;
	assert(older->log == NULL);
	fold->base = older->end;
	reserve(volume);
}

int fold_resume(struct volume *volume, size_t index, bool newest)
{
	const struct superblock *superblock = &volume->chain[index - 1]->store->superblock;
	int error = fold_create(volume, index);

	if (error != 0)
		return error;
	volume->fold->newest = newest;
	volume->fold->base = SLOT(superblock->fold_base_slots);
	volume->fold->resumed = true;
	fold_copy_start(volume);
	return 0;
}

void fold_restart(struct volume *volume, struct operation *operation)
{
	operation->snapshot = volume->fold->newer;
	fold_detach(volume);
}
