/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Copy-before-write: getting the old content of blocks into the active snapshot's log before the origin is overwritten.
 *
 * Rule 1: a write to a block may be issued only when the block is in the active snapshot's map, and the log puts it there
 * only after the barrier. So copy_preserve() just asks the map; what is missing is read from the origin, one copy for each
 * run of missing blocks, and a block never has two copies under way: a request that needs a block which is being copied
 * waits for that copy. A request waits for one copy at a time and asks again when it has ended.
 *
 *   read the run --(error)--> read it block by block, unreadable ones are "lost"
 *        |
 *   zero? lost? data? -> items -> log_append -> durable -> whoever waits asks again
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "core/engine.h"
#include "io/log.h"

static void copy_read(struct copy *copy);

int copy_pool_create(struct volume *volume)
{
	int error = arena_create(COPY_ARENA_BYTES, &volume->copy_arena);

	if (error != 0)
		return error;
	volume->copy_pool = calloc(COPIES_MAX, sizeof(*volume->copy_pool));
	volume->items = calloc(PIECE_BLOCKS, sizeof(*volume->items));
	if (volume->copy_pool == NULL || volume->items == NULL)
		return -ENOMEM;
	for (unsigned i = 0; i < COPIES_MAX; i++) {
		struct copy *copy = &volume->copy_pool[i];

		copy->volume = volume;
		list_init(&copy->waiters);
		list_init(&copy->log_link);
		list_append(&volume->copies_free, &copy->link);
	}
	return 0;
}

bool copy_holds_commit(struct volume *volume)
{
	const struct log *log = volume_log(volume);
	uint64_t now_ns;

	if (volume->copies_reading == 0 || volume->pauses > 0 || log == NULL || !log_is_ready(log)) {
		volume->commit_waits_ns = 0;
		return false;
	}
	now_ns = disk_host_monotonic_ns(volume->host);
	if (volume->commit_waits_ns == 0)
		volume->commit_waits_ns = now_ns;
	if (now_ns - volume->commit_waits_ns < COMMIT_WAIT_NS)
		return true;
	volume->commit_waits_ns = 0;
	return false;
}

bool copy_is_idle(const struct volume *volume)
{
	return list_is_empty(&volume->copies);
}

uint64_t preserved_run(const struct volume *volume, block_t block, uint64_t limit, bool *preserved)
{
	const struct snapshot *active = volume_active(volume);
	struct map_run run = map_find(active->store->map, block, limit);

	*preserved = run.kind != MAP_ABSENT;
	if (*preserved || !fold_is_newest(volume))
		return run.count;
	/* While the newest is folded into the one below, a block in either map counts as preserved. */
	run = map_find(volume->chain[volume->chain_count - 1]->store->map, block, run.count);
	*preserved = run.kind != MAP_ABSENT;
	return run.count;
}

static void wake(struct list *waiters, int error)
{
	struct list woken, *link;

	list_init(&woken);
	list_splice(&woken, waiters);
	while ((link = list_pop(&woken)) != NULL)
		write_continue(container_of(link, struct request, waiting_link), error);
}

static void copy_leave(struct copy *copy, int error)
{
	struct volume *volume = copy->volume;

	arena_put(volume->copy_arena, copy->buffer, copy->buffer_bytes);
	copy->buffer = NULL;
	list_remove(&copy->log_link);
	list_remove(&copy->link);
	list_append(&volume->copies_free, &copy->link);
	/*
	 * With the chain broken writes go on without preserving, and in a pause they are held: those who wait find that out
	 * when they ask again.
	 */
	wake(&copy->waiters, volume_log(volume) == NULL || volume->pauses > 0 ? 0 : error);
	volume->copy_freed = true;
}

static void copy_end(struct copy *copy, int error)
{
	struct volume *volume = copy->volume;

	if (error == 0) {
		volume->counters.copies++;
		volume->counters.copied_blocks += copy->count;
		volume->counters.ahead_blocks += copy->ahead ? copy->count : 0;
		histogram_add(&volume->counters.copy_ns, disk_host_monotonic_ns(volume->host) - copy->started_ns);
	}
	copy_leave(copy, error);
}

static void copy_durable(struct log_ticket *ticket, int error)
{
	copy_end(ticket->context, error);
}

bool is_zero(const uint8_t *data, size_t bytes)
{
	return data[0] == 0 && memcmp(data, data + 1, bytes - 1) == 0;
}

static bool is_lost(const struct copy *copy, uint32_t at)
{
	return (copy->lost[at / 8] & 1u << at % 8) != 0;
}

static unsigned copy_items(struct copy *copy, struct log_item *items)
{
	uint32_t block_bytes = copy->volume->block_bytes;
	unsigned count = 0;

	for (uint32_t i = 0; i < copy->count; i++) {
		const uint8_t *data = copy->buffer + (size_t)i * block_bytes;
		struct log_item item = { .type = ENTRY_DATA, .block = copy->first + i, .count = 1, .data = data };

		if (is_lost(copy, i)) {
			item.type = ENTRY_LOST;
			item.data = NULL;
		} else if (is_zero(data, block_bytes)) {
			copy->volume->counters.zero_blocks++;
			if (count > 0 && items[count - 1].type == ENTRY_ZERO) {
				items[count - 1].count++;
				continue;
			}
			item.type = ENTRY_ZERO;
			item.data = NULL;
		}
		items[count++] = item;
	}
	return count;
}

/* Returns false when the open batch has no room for it now. */
static bool copy_append(struct copy *copy)
{
	struct volume *volume = copy->volume;
	struct log *log = copy->store->log;
	unsigned count;

	if (log_is_stuck(log) && log_error(log) != 0)
		return false; /* until the policy has decided */
	if (log_error(log) != 0 || store_is_broken(copy->store)) {
		copy_end(copy, log_error(log) != 0 ? log_error(log) : -EIO);
		return true;
	}
	/* zero_blocks is counted when appended, so look for room with the largest number of items there can be */
	if (!log_has_room(log, copy->count))
		return false;
	count = copy_items(copy, volume->items);
	copy->ticket = (struct log_ticket){ .done = copy_durable, .context = copy };
	log_append(log, volume->items, count, &copy->ticket);
	return true;
}

void copy_turn(struct volume *volume)
{
	/* Without a copy under way, who waits for room in the open batch has nobody else to wake him. */
	if (volume->copy_freed || list_is_empty(&volume->copies)) {
		volume->copy_freed = false;
		wake(&volume->copy_starved, 0);
	}
	list_for_each_safe(link, &volume->copies_unlogged) {
		struct copy *copy = container_of(link, struct copy, log_link);

		struct list *before = copy->log_link.previous;

		list_remove(&copy->log_link);
		if (!copy_append(copy)) {
			list_append(before->next, &copy->log_link); /* back to its place */
			return;
		}
	}
}

static void copy_read_done(struct disk_io *io, int error)
{
	struct copy *copy = io->context;
	struct volume *volume = copy->volume;

	if (error != 0 && copy->ahead) {
		copy_leave(copy, 0); /* who has come to need it meanwhile asks again, and is told what can't be read */
		return;
	}
	if (error != 0 && !copy->by_block && copy->count > 1) {
		copy->by_block = true;
		copy->single = 0;
		copy_read(copy);
		return;
	}
	if (error != 0) {
		uint32_t at = copy->by_block ? copy->single : 0;

		trouble_tell(&volume->lost_trouble, volume->host,
			     "origin %s: block %llu cannot be read (%s): its old content is lost to the snapshot",
			     volume->origin_path, (unsigned long long)copy->first + at, strerror(-error));
		copy->lost[at / 8] = (uint8_t)(copy->lost[at / 8] | 1u << at % 8);
		volume->counters.lost_blocks++;
	}
	if (copy->by_block && ++copy->single < copy->count) {
		copy_read(copy);
		return;
	}
	volume->copies_reading -= copy->ahead ? 0 : 1;
	if (!list_is_empty(&volume->copies_unlogged) || !copy_append(copy))
		list_append(&volume->copies_unlogged, &copy->log_link);
}

/* Reads the run, or the single block whose turn it is; what lies past the origin's end is zeroes. */
static void copy_read(struct copy *copy)
{
	struct volume *volume = copy->volume;
	uint32_t at = copy->by_block ? copy->single : 0, count = copy->by_block ? 1 : copy->count;
	uint64_t offset = (copy->first + at) * volume->block_bytes;
	uint64_t length = (uint64_t)count * volume->block_bytes;
	uint8_t *buffer = copy->buffer + (size_t)at * volume->block_bytes;

	if (length > volume->origin_bytes - offset) {
		uint64_t rest = volume->origin_bytes - offset;

		memset(buffer + rest, 0, (size_t)(length - rest));
		length = rest;
	}
	copy->io = (struct disk_io){
		.disk = volume->origin,
		.op = DISK_READ,
		.offset = offset,
		.length = length,
		.single = { .iov_base = buffer, .iov_len = (size_t)length },
		.done = copy_read_done,
		.context = copy,
	};
	disk_submit(&copy->io);
}

/* Starts a copy of up to `count` blocks. NULL when there is no memory for even one now. */
static struct copy *copy_start(struct volume *volume, block_t first, uint64_t count, bool ahead)
{
	struct copy *copy;
	uint8_t *buffer = NULL;
	struct store *store = volume_active(volume)->store;
	uint64_t batch = (uint64_t)store->superblock.geometry.slots_per_area * 4;
	struct list *link;

	if (count > PIECE_BLOCKS)
		count = PIECE_BLOCKS;
	if (count > batch)
		count = batch; /* it must fit one batch */
	while (count > 0 && !list_is_empty(&volume->copies_free)) {
		buffer = arena_get(volume->copy_arena, (size_t)count * volume->block_bytes);
		if (buffer != NULL)
			break;
		count /= 2;
	}
	link = buffer == NULL ? NULL : list_pop(&volume->copies_free);
	if (link == NULL)
		return NULL;
	copy = container_of(link, struct copy, link);
	copy->store = store;
	copy->first = first;
	copy->count = (uint32_t)count;
	copy->by_block = false;
	copy->ahead = ahead;
	copy->single = 0;
	copy->buffer = buffer;
	copy->buffer_bytes = (size_t)count * volume->block_bytes;
	copy->started_ns = disk_host_monotonic_ns(volume->host);
	memset(copy->lost, 0, sizeof(copy->lost));
	list_append(&volume->copies, &copy->link);
	volume->copies_reading += ahead ? 0 : 1;
	copy_read(copy);
	return copy;
}

/* The copy under way that has the lowest block of [first, first + count); NULL: none. */
static struct copy *copy_find(const struct volume *volume, block_t first, uint64_t count)
{
	struct copy *found = NULL;

	list_for_each(link, &volume->copies) {
		struct copy *copy = container_of(link, struct copy, link);

		if (copy->first < first + count && copy->first + copy->count > first &&
		    (found == NULL || copy->first < found->first))
			found = copy;
	}
	return found;
}

/*
 * Sees to it that every block of the range is preserved or being copied: *wait_for is one of the copies under way, NULL when
 * all is preserved. False: there was no memory for all of them.
 */
static bool copy_cover(struct volume *volume, block_t first, uint64_t count, bool ahead, struct copy **wait_for)
{
	*wait_for = NULL;
	while (count > 0) {
		struct copy *copy;
		bool preserved;
		uint64_t run = preserved_run(volume, first, count, &preserved);

		if (!preserved) {
			uint64_t covered;

			copy = copy_find(volume, first, run);
			if (copy == NULL || copy->first > first)
				copy = copy_start(volume, first, copy == NULL ? run : copy->first - first, ahead);
			if (copy == NULL)
				return false;
			covered = copy->first + copy->count - first;
			run = covered < run ? covered : run;
			*wait_for = *wait_for == NULL ? copy : *wait_for;
		}
		first += run;
		count -= run;
	}
	return true;
}

int copy_preserve(struct volume *volume, struct request *request, block_t first, uint64_t count)
{
	struct copy *wait_for;
	bool started;

	if (volume_log(volume) == NULL)
		return 1;
	started = copy_cover(volume, first, count, false, &wait_for);
	if (wait_for != NULL)
		list_append(&wait_for->waiters, &request->waiting_link);
	else if (!started)
		list_append(&volume->copy_starved, &request->waiting_link);
	else
		return 1;
	return 0;
}

void copy_ahead(struct volume *volume, block_t first, uint64_t count)
{
	struct copy *wait_for;

	(void)copy_cover(volume, first, count, true, &wait_for);
}
