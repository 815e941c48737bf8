/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The log: group commit with one barrier.
 *
 *   log_append --> open batch --log_push--> commit: ALLOCATE? -> WRITE data and metadata together -> FLUSH -> map, done()
 *
 * One commit is under way at a time; what arrives meanwhile forms the next. Rules:
 *
 * 1. Slots are given in order, when the commit starts: item i of the batch gets slot end + i. The log's end moves only
 *    when the barrier succeeded.
 * 2. An area's metadata has two places. A commit never writes the one that is relied upon, that is, the one that holds all
 *    durable entries of the area durably; it writes the other, and after the barrier relies on that. An area with nothing
 *    durable in it has no copy to protect: if it gets full at once both are written, else copy 0.
 * 3. An area that got full with one copy written is "half": its second copy goes along with the next commit, or with
 *    log_settle(). So there is at most one half area.
 * 4. A header's durable mark is the log's end when the commit started: everything below had its barrier.
 * 5. A slot that cannot be written becomes void and its item takes another slot, behind the batch's last, in the same
 *    commit. More than LOG_VOIDS_MAX of them, or metadata that cannot be written, ends the log.
 * 6. A failed barrier ends the log: what was written since the last good one counts as not durable. There is a barrier on
 *    each part of the store that was written to.
 * 7. Without room the log turns to the next part, if one stands by: the superblock says so durably, then the commit goes
 *    on. Areas that there was room for are used first, so the commit may lie in both parts. But where a write found no
 *    room, the rest of its area is skipped, and what waits for a second copy there stays without.
 * 8. A file is allocated some way ahead in the background, and while commits are small it is also written ahead of need,
 *    with zeroes: the first write into allocated space changes the file system's metadata, and a barrier after such a
 *    write costs a journal commit, which is most of a small commit's time. Zeroes are written only past the end of what
 *    is being committed, and a commit whose slots they have come to waits for them.
 */
#include "core/log.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/uio.h>

#include "io/log.h"

#define SLOTS_MAX (LOG_ITEMS_MAX + LOG_VOIDS_MAX)
/* The areas of one commit: LOG_ITEMS_MAX is four whole areas of the usual geometry; see batch_limit(). */
#define AREAS_MAX (6u + LOG_VOIDS_MAX)
#define IOS_MAX (SLOTS_MAX / 2 + 2 * AREAS_MAX + 4)
#define IOVECS_MAX (SLOTS_MAX + 2 * AREAS_MAX + 4)

#define ALLOCATE_AHEAD_MIN (UINT64_C(4) << 20)
#define ALLOCATE_AHEAD_MAX (UINT64_C(64) << 20)
#define ZERO_AHEAD (UINT64_C(2) << 20)         /* written with zeroes at a time; half of it is kept */
#define ZERO_BYTES (UINT32_C(64) << 10)        /* the zeroes there are in memory */
#define ZERO_COMMIT_SLOTS_MAX 4u               /* for larger commits, on the average, it does not pay */

enum log_state {
	LOG_IDLE,
	LOG_ALLOCATING,  /* room for the commit */
	LOG_WRITING,     /* data and metadata */
	LOG_PROBING,     /* a write failed: each slot by itself, to find the bad ones */
	LOG_FLUSHING,
	LOG_STUCK,       /* the owner decides */
	LOG_TURNING,     /* to the next part */
	LOG_SETTLING,    /* the second metadata copies */
	LOG_SETTLING_FLUSH,
};

struct batch {
	unsigned count;
	struct log_item items[SLOTS_MAX];
	struct list tickets;
};

struct area_meta {
	uint32_t area;
	uint64_t write_count;
	int relied;          /* the copy that holds all durable entries durably; -1: the area has no durable entry */
	unsigned writing;    /* bit mask of the copies this commit writes */
	uint8_t *bytes;      /* AREA_META_BYTES, in log->meta_memory */
};

struct log {
	struct store *store;
	const struct log_ops *ops;
	enum log_state state;
	int error;
	uint32_t end;
	unsigned batch_max;

	struct batch batches[2];
	struct batch *open, *flying;

	/* metas[0] is the area the log's end lies in, or begins; the others are the further areas of the commit. */
	struct area_meta metas[AREAS_MAX];
	unsigned meta_count;
	struct area_meta half;  /* .bytes; valid when has_half */
	bool has_half, settled;
	uint8_t *meta_memory;

	uint64_t allocated_bytes; /* the last part's file is allocated up to here; a device: UINT64_MAX */
	uint64_t zeroed_bytes;    /* written up to here, with zeroes from the log's end on; at most allocated_bytes */
	unsigned commit_slots;    /* the running average of a commit's size, times 16 */
	bool allocate_ahead;      /* a background allocation, or writing of zeroes, is under way */
	bool waits_for_ahead;     /* the commit's start waits for it */
	bool zero_failed;         /* there is no more of it */
	struct disk_io allocate_io;
	struct iovec zero_iov[ZERO_AHEAD / ZERO_BYTES];

	/* the commit under way */
	unsigned round_first;     /* items before this one are written already */
	unsigned voids, probe;
	bool probing_found;
	unsigned rounds;
	unsigned failed_before;   /* store_barriers_failed() when its writes began */
	unsigned ios_pending;
	uint32_t parts_written;   /* bit mask: those that need a barrier */
	void (*flushed)(struct log *log, int error);
	struct store_update turn;
	uint32_t turn_part, turn_area, turn_skipped;
	bool turn_in_write;       /* it was a write that found no room: the whole commit goes to the new part */
	int io_error;
	uint64_t started_ns;
	struct log_settle *settle;

	unsigned io_count, iovec_count;
	uint64_t io_end;          /* where the disk request being built ends */
	struct disk_io ios[IOS_MAX];
	struct iovec iovecs[IOVECS_MAX];
};

static const struct geometry *log_geometry(const struct log *log)
{
	return &log->store->superblock.geometry;
}

/* How many items a batch may have, so that a commit of tiny areas does not touch more than it has metadata buffers for. */
static unsigned batch_limit(const struct geometry *geometry)
{
	uint32_t limit = geometry->slots_per_area * 4;

	return limit < LOG_ITEMS_MAX ? limit : LOG_ITEMS_MAX;
}

uint32_t log_commit_slots_max(const struct geometry *geometry)
{
	return batch_limit(geometry) + LOG_VOIDS_MAX;
}

static void meta_reset(struct area_meta *meta, uint32_t area)
{
	meta->area = area;
	meta->write_count = 0;
	meta->relied = -1;
	meta->writing = 0;
	memset(meta->bytes, 0, AREA_META_BYTES);
}

/* Forgets the entries from `index` on: those of a commit that was given up. */
static void meta_cut(struct area_meta *meta, uint32_t index)
{
	size_t from = AREA_HEADER_BYTES + (size_t)index * ENTRY_BYTES;

	memset(meta->bytes + from, 0, AREA_META_BYTES - from);
}

static const struct store *last_part(const struct log *log)
{
	return store_part(log->store, store_last_part(log->store));
}

static uint32_t last_part_first_area(const struct log *log)
{
	return store_part_first_area(log->store, store_last_part(log->store));
}

/* The areas below `areas` have their room; of those in the parts before the last, all. */
static void reset_allocated(struct log *log, uint32_t areas)
{
	uint32_t first = last_part_first_area(log);
	struct disk_info info;

	disk_get_info(last_part(log)->disk, &info);
	log->allocated_bytes =
		info.is_device ? UINT64_MAX : geometry_area_offset(log_geometry(log), areas > first ? areas - first : 0);
	log->zeroed_bytes = log->allocated_bytes;
}

int log_create(struct store *store, const struct log_ops *ops)
{
	struct log *log = calloc(1, sizeof(*log));
	const struct geometry *geometry = &store->superblock.geometry;
	struct area_header header;

	if (log == NULL)
		return -ENOMEM;
	log->meta_memory = aligned_alloc(AREA_META_BYTES, (size_t)AREA_META_BYTES * (AREAS_MAX + 1));
	if (log->meta_memory == NULL) {
		free(log);
		return -ENOMEM;
	}
	log->store = store;
	log->ops = ops;
	log->end = store->end.index;
	log->batch_max = batch_limit(geometry);
	log->open = &log->batches[0];
	log->flying = &log->batches[1];
	list_init(&log->open->tickets);
	list_init(&log->flying->tickets);
	for (unsigned i = 0; i < AREAS_MAX; i++)
		log->metas[i].bytes = log->meta_memory + (size_t)i * AREA_META_BYTES;
	log->half.bytes = log->meta_memory + (size_t)AREAS_MAX * AREA_META_BYTES;
	meta_reset(&log->metas[0], geometry_slot_area(geometry, store->end));
	if (store->open_copy >= 0) {
		memcpy(log->metas[0].bytes, store->open_meta, AREA_META_BYTES);
		log->metas[0].relied = store->open_copy;
		if (area_header_decode(store->open_meta, store->seed, log->metas[0].area, geometry->slots_per_area,
				       &header) == 0)
			log->metas[0].write_count = header.write_count;
	}
	reset_allocated(log, log->metas[0].area + (store->open_copy >= 0 ? 1 : 0));
	store->log = log;
	return 0;
}

void log_destroy(struct log *log)
{
	if (log == NULL)
		return;
	assert(log->state == LOG_IDLE || log->state == LOG_STUCK);
	assert(log->open->count == 0 && log->flying->count == 0 && !log->allocate_ahead);
	free(log->meta_memory);
	free(log);
}

slot_t log_end(const struct log *log)
{
	return SLOT(log->end);
}

int log_error(const struct log *log)
{
	return log->error;
}

bool log_is_idle(const struct log *log)
{
	return log->state == LOG_IDLE && log->open->count == 0;
}

bool log_can_close(const struct log *log)
{
	return log_is_idle(log) && !log->allocate_ahead;
}

void log_close(struct log *log)
{
	struct store *store = log->store;

	assert(log_can_close(log));
	store->end = SLOT(log->end);
	store->open_copy = log->metas[0].relied;
	memcpy(store->open_meta, log->metas[0].bytes, AREA_META_BYTES);
	store->log = NULL;
	log_destroy(log);
}

bool log_is_ready(const struct log *log)
{
	return log->state == LOG_IDLE && log->open->count > 0 && log->error == 0;
}

bool log_is_stuck(const struct log *log)
{
	return log->state == LOG_STUCK;
}

bool log_is_settled(const struct log *log)
{
	return log_is_idle(log) && (log->settled || log->end == 0);
}

bool log_has_room(const struct log *log, unsigned count)
{
	return count <= log->batch_max - log->open->count;
}

uint64_t log_spare_slots(const struct log *log)
{
	uint64_t taken = (uint64_t)log->end + log->open->count + log->flying->count + LOG_VOIDS_MAX;
	uint64_t limit = store_part_limit_bytes(log->store, store_last_part(log->store));
	uint64_t bytes = limit == 0 ? UINT64_MAX : limit - limit / 8, slots;

	slots = geometry_slots(log_geometry(log), bytes < log->allocated_bytes ? bytes : log->allocated_bytes);
	slots += (uint64_t)last_part_first_area(log) * log_geometry(log)->slots_per_area;
	return slots > taken ? slots - taken : 0;
}

void log_append(struct log *log, const struct log_item *items, unsigned count, struct log_ticket *ticket)
{
	struct batch *batch = log->open;

	assert(log->error == 0 && log_has_room(log, count) && count > 0);
	for (unsigned i = 0; i < count; i++) {
		struct log_item *item = &batch->items[batch->count++];

		*item = items[i];
		if (item->data != NULL)
			item->checksum = data_checksum(log->store->seed, item->data, log_geometry(log)->block_bytes);
	}
	list_append(&batch->tickets, &ticket->link);
}

static void batch_finish(struct batch *batch, int error)
{
	struct list tickets, *link;

	list_init(&tickets);
	list_splice(&tickets, &batch->tickets);
	batch->count = 0;
	while ((link = list_pop(&tickets)) != NULL) {
		struct log_ticket *ticket = container_of(link, struct log_ticket, link);

		ticket->done(ticket, error);
	}
}

static void log_get_stuck(struct log *log, int error)
{
	log->state = LOG_STUCK;
	if (error != -ENOSPC)
		log->error = error;
	log->ops->stuck(log, error, log->ops->context);
}

static bool is_no_room(int error)
{
	return error == -ENOSPC || error == -EDQUOT || error == -EFBIG;
}

/* ---- building the disk requests ---- */

static void write_done(struct disk_io *io, int error);

/* Adds a piece at `place`, to the request being built when it lies right behind it, else to a new one. */
static void io_add(struct log *log, struct store_place place, const void *data, size_t bytes)
{
	struct disk_io *io = log->io_count > 0 ? &log->ios[log->io_count - 1] : NULL;
	struct iovec *last = log->iovec_count > 0 ? &log->iovecs[log->iovec_count - 1] : NULL;
	void *base = (void *)(uintptr_t)data;

	log->parts_written |= 1u << place.index;
	if (io == NULL || io->disk != place.part->disk || log->io_end != place.offset || io->iov_count == DISK_IOV_MAX) {
		assert(log->io_count < IOS_MAX);
		io = &log->ios[log->io_count++];
		*io = (struct disk_io){
			.disk = place.part->disk,
			.op = DISK_WRITE,
			.offset = place.offset,
			.iov = &log->iovecs[log->iovec_count],
			.done = write_done,
			.context = log,
		};
		last = NULL;
	}
	if (last != NULL && (uint8_t *)last->iov_base + last->iov_len == (uint8_t *)base) {
		last->iov_len += bytes;
	} else {
		assert(log->iovec_count < IOVECS_MAX);
		log->iovecs[log->iovec_count++] = (struct iovec){ .iov_base = base, .iov_len = bytes };
		io->iov_count++;
	}
	io->length += bytes;
	log->io_end = place.offset + bytes;
}

static void io_begin(struct log *log)
{
	log->io_count = 0;
	log->iovec_count = 0;
	log->io_error = 0;
}

static void io_submit_all(struct log *log)
{
	log->ios_pending = log->io_count;
	log->ops->counters->writes += log->io_count;
	for (unsigned i = 0; i < log->io_count; i++)
		disk_submit(&log->ios[i]);
}

static void io_add_meta(struct log *log, const struct area_meta *meta, unsigned copy)
{
	if ((meta->writing & 1u << copy) == 0)
		return;
	io_add(log, store_meta_place(log->store, meta->area, copy), meta->bytes, AREA_META_BYTES);
	log->ops->counters->metadata_bytes += AREA_META_BYTES;
}

static void io_add_items(struct log *log, const struct area_meta *meta)
{
	const struct geometry *geometry = log_geometry(log);
	uint64_t area_first = (uint64_t)meta->area * geometry->slots_per_area;
	uint64_t from = area_first > log->end + log->round_first ? area_first : log->end + log->round_first;
	uint64_t to = log->end + (uint64_t)log->flying->count;

	if (to > area_first + geometry->slots_per_area)
		to = area_first + geometry->slots_per_area;
	for (uint64_t slot = from; slot < to; slot++) {
		const struct log_item *item = &log->flying->items[slot - log->end];

		if (item->data == NULL)
			continue;
		io_add(log, store_slot_place(log->store, SLOT(slot)), item->data, geometry->block_bytes);
		log->ops->counters->data_bytes += geometry->block_bytes;
	}
}

/* ---- the commit ---- */

/* Encodes the batch's entries into the metadata of the areas it touches, and says which copies are to be written. */
static void commit_encode(struct log *log)
{
	const struct geometry *geometry = log_geometry(log);
	uint32_t per_area = geometry->slots_per_area;
	uint32_t first_area = log->metas[0].area;

	for (unsigned i = log->round_first; i < log->flying->count; i++) {
		slot_t slot = SLOT(log->end + i);
		uint32_t at = geometry_slot_area(geometry, slot) - first_area;

		assert(at < AREAS_MAX);
		if (at >= log->meta_count) {
			meta_reset(&log->metas[at], first_area + at);
			log->meta_count = at + 1;
		}
	}
	for (unsigned i = 0; i < log->flying->count; i++) {
		const struct log_item *item = &log->flying->items[i];
		slot_t slot = SLOT(log->end + i);
		struct area_meta *meta = &log->metas[geometry_slot_area(geometry, slot) - first_area];
		struct entry entry = { item->type, item->block, item->count, item->checksum };

		if (item->is_void)
			entry = (struct entry){ .type = ENTRY_VOID };
		entry_encode(meta->bytes, log->store->seed, meta->area, geometry_slot_in_area(geometry, slot), &entry);
	}
	for (unsigned at = 0; at < log->meta_count; at++) {
		struct area_meta *meta = &log->metas[at];
		uint64_t used = (uint64_t)log->end + log->flying->count - (uint64_t)meta->area * per_area;
		struct area_header header = {
			.area = meta->area,
			.write_count = ++meta->write_count,
			.durable_slots = log->end,
			.entry_count = (uint16_t)(used < per_area ? used : per_area),
		};

		area_header_encode(meta->bytes, log->store->seed, &header);
		if (meta->relied >= 0)
			meta->writing = 1u << (1 - meta->relied);
		else
			meta->writing = 3u;
	}
}

static void commit_write(struct log *log)
{
	log->state = LOG_WRITING;
	commit_encode(log);
	io_begin(log);
	if (log->has_half) {
		log->half.writing = 1u << (1 - log->half.relied);
		io_add_meta(log, &log->half, 0);
		io_add_meta(log, &log->half, 1);
	}
	for (unsigned at = 0; at < log->meta_count; at++) {
		io_add_meta(log, &log->metas[at], 0);
		io_add_items(log, &log->metas[at]);
		io_add_meta(log, &log->metas[at], 1);
	}
	io_submit_all(log);
}

static int commit_set_map(struct log *log)
{
	const struct batch *batch = log->flying;
	int error = 0;

	for (unsigned i = 0; i < batch->count && error == 0; i++) {
		const struct log_item *item = &batch->items[i];
		slot_t slot = SLOT(log->end + i);

		if (item->is_void)
			continue;
		switch (item->type) {
		case ENTRY_DATA:
			error = map_add(log->store->map, item->block, 1, MAP_SLOT, slot);
			break;
		case ENTRY_ZERO:
			error = map_add(log->store->map, item->block, item->count, MAP_ZERO, slot);
			break;
		case ENTRY_LOST:
			error = map_add(log->store->map, item->block, 1, MAP_LOST, slot);
			break;
		case ENTRY_VOID:
		case ENTRY_FINGERPRINT:
			break;
		}
	}
	return error;
}

/* After the barrier: rely on what was written, keep the area of the new end as metas[0], and a half one as log->half. */
static void commit_keep_metas(struct log *log)
{
	uint32_t per_area = log_geometry(log)->slots_per_area;
	struct area_meta *last = &log->metas[log->meta_count - 1];
	struct area_meta *first = &log->metas[0];
	uint32_t open_area = log->end / per_area;
	uint8_t *bytes;

	log->has_half = false;
	for (unsigned at = 0; at < log->meta_count; at++)
		log->metas[at].relied = log->metas[at].writing == 2u ? 1 : 0;
	if (first->area != open_area && first->writing != 3u) {
		bytes = log->half.bytes;
		log->half = *first;
		first->bytes = bytes;
		log->has_half = true;
	}
	if (last->area == open_area && last != first) {
		bytes = first->bytes;
		*first = *last;
		last->bytes = bytes;
	} else if (last->area != open_area) {
		meta_reset(first, open_area);
	}
	log->meta_count = 1;
}

static void prepare_ahead(struct log *log);

static void commit_flushed(struct log *log, int error)
{
	struct batch *batch = log->flying;

	if (error != 0) {
		log_get_stuck(log, error == -ENOSPC ? -EIO : error);
		return;
	}
	error = commit_set_map(log);
	log->ops->counters->commits++;
	log->ops->counters->slots += batch->count;
	log->end += batch->count;
	log->commit_slots += batch->count - log->commit_slots / 16;
	histogram_add(&log->ops->counters->commit_ns, disk_host_monotonic_ns(log->store->host) - log->started_ns);
	commit_keep_metas(log);
	log->settled = false;
	log->state = LOG_IDLE;
	prepare_ahead(log);
	batch_finish(batch, error);
}

static void flush_done(struct disk_io *io, int error)
{
	struct log *log = io->context;
	struct store *part = store_part(log->store, (uint32_t)(io - log->ios));

	log->ops->counters->barriers++;
	error = store_barrier_result(part, part->barriers_failed, error);
	if (error != 0)
		log->io_error = error;
	if (--log->ios_pending > 0)
		return;
	error = log->io_error;
	if (error == 0 && store_barriers_failed(log->store) != log->failed_before)
		error = -EIO;
	log->parts_written = 0;
	log->flushed(log, error);
}

/* A barrier on every part that was written to, and on the last one in any case. ios[i] is part i's. */
static void flush_submit(struct log *log, enum log_state state, void (*flushed)(struct log *log, int error))
{
	uint32_t count = store_part_count(log->store), parts = log->parts_written | 1u << store_last_part(log->store);

	log->state = state;
	log->flushed = flushed;
	log->io_error = 0;
	log->ios_pending = (unsigned)__builtin_popcount(parts);
	for (uint32_t i = 0; i < count; i++) {
		if ((parts & 1u << i) == 0)
			continue;
		log->ios[i] = (struct disk_io){
			.disk = store_part(log->store, i)->disk, .op = DISK_FLUSH, .done = flush_done, .context = log
		};
		disk_submit(&log->ios[i]);
	}
}

static void probe_next(struct log *log);
static void log_no_room(struct log *log, bool in_write);

static void write_done(struct disk_io *io, int error)
{
	struct log *log = io->context;

	if (error != 0 && (log->io_error == 0 || is_no_room(error)))
		log->io_error = error;
	if (--log->ios_pending > 0)
		return;
	if (log->io_error == 0) {
		flush_submit(log, LOG_FLUSHING, commit_flushed);
	} else if (is_no_room(log->io_error)) {
		log_no_room(log, true);
	} else {
		log->state = LOG_PROBING;
		log->probe = log->round_first;
		log->probing_found = false;
		probe_next(log);
	}
}

/* Rule 5: the failed slots are known; their items follow behind the batch, and everything not yet written is written. */
static void probe_finish(struct log *log)
{
	struct batch *batch = log->flying;
	unsigned before = batch->count;

	if (!log->probing_found && log->rounds > 0) {
		log_get_stuck(log, log->io_error);
		return;
	}
	for (unsigned i = log->round_first; i < before; i++) {
		struct log_item *item = &batch->items[i];

		if (!item->is_void || item->data == NULL)
			continue;
		log->ops->counters->voids++;
		if (++log->voids > LOG_VOIDS_MAX) {
			log_get_stuck(log, log->io_error);
			return;
		}
		batch->items[batch->count] = *item;
		batch->items[batch->count++].is_void = false;
		item->data = NULL;
	}
	log->rounds++;
	log->round_first = before;
	if ((uint64_t)log->end + batch->count > store_capacity_slots(log->store))
		log_no_room(log, false);
	else
		commit_write(log);
}

static void probe_done(struct disk_io *io, int error)
{
	struct log *log = io->context;
	struct log_item *item = &log->flying->items[log->probe];

	if (error != 0) {
		trouble_tell(&log->store->trouble, log->store->host,
			     "store %s: slot %u cannot be written (%s): left void", log->store->path,
			     log->end + log->probe, strerror(-error));
		item->is_void = true;
		log->probing_found = true;
	}
	log->probe++;
	probe_next(log);
}

static void probe_next(struct log *log)
{
	struct batch *batch = log->flying;
	struct store_place place;

	while (log->probe < batch->count && batch->items[log->probe].data == NULL)
		log->probe++;
	if (log->probe == batch->count) {
		probe_finish(log);
		return;
	}
	place = store_slot_place(log->store, SLOT(log->end + log->probe));
	log->ios[0] = (struct disk_io){
		.disk = place.part->disk,
		.op = DISK_WRITE,
		.offset = place.offset,
		.length = log_geometry(log)->block_bytes,
		.single = { (void *)(uintptr_t)batch->items[log->probe].data, log_geometry(log)->block_bytes },
		.done = probe_done,
		.context = log,
	};
	disk_submit(&log->ios[0]);
}

/* ---- room ---- */

/* The end, in the last part, of the area that the log's slot `last` lies in. */
static uint64_t bytes_through(const struct log *log, uint64_t last)
{
	const struct geometry *geometry = log_geometry(log);
	uint32_t area = (uint32_t)(last / geometry->slots_per_area), first = last_part_first_area(log);

	return geometry_area_offset(geometry, area < first ? 0 : area - first + 1);
}

static void allocate_submit(struct log *log, uint64_t end, void (*done)(struct disk_io *io, int error))
{
	log->allocate_io = (struct disk_io){
		.disk = last_part(log)->disk,
		.op = DISK_ALLOCATE,
		.offset = log->allocated_bytes,
		.length = end - log->allocated_bytes,
		.done = done,
		.context = log,
	};
	disk_submit(&log->allocate_io);
}

static void allocated(struct disk_io *io, int error)
{
	struct log *log = io->context;

	if (is_no_room(error)) {
		log_no_room(log, false);
	} else if (error != 0) {
		log_get_stuck(log, error);
	} else {
		log->allocated_bytes = io->offset + io->length;
		commit_write(log);
	}
}

static void allocated_ahead(struct disk_io *io, int error)
{
	struct log *log = io->context;

	log->allocate_ahead = false;
	if (error == 0 && io->disk == last_part(log)->disk)
		log->allocated_bytes = io->offset + io->length;
}

/*
 * Keeps the file allocated some way ahead, in the background, so that commits seldom wait for it. A failure here is
 * nothing: the commit that needs the room finds out. False: it is far enough ahead.
 */
static bool allocate_ahead(struct log *log)
{
	uint64_t used = bytes_through(log, log->end);
	uint64_t limit = store_part_limit_bytes(log->store, store_last_part(log->store));
	uint64_t ahead = used / 2, end;

	if (ahead < ALLOCATE_AHEAD_MIN)
		ahead = ALLOCATE_AHEAD_MIN;
	if (ahead > ALLOCATE_AHEAD_MAX)
		ahead = ALLOCATE_AHEAD_MAX;
	end = used + ahead;
	if (limit != 0 && end > limit)
		end = limit;
	if (log->allocated_bytes >= used + ahead / 2 || log->allocated_bytes >= end)
		return false;
	log->allocate_ahead = true;
	allocate_submit(log, end, allocated_ahead);
	return true;
}

static void zeroed_ahead(struct disk_io *io, int error)
{
	struct log *log = io->context;

	log->allocate_ahead = false;
	if (error == 0 && io->disk == last_part(log)->disk)
		log->zeroed_bytes = io->offset + io->length;
	else if (error != 0)
		log->zero_failed = true;
}

/* Rule 8. What the open batch will take is left out: it would only have to wait. */
static void zero_ahead(struct log *log)
{
	static uint8_t zeroes[ZERO_BYTES] __attribute__((aligned(4096)));
	uint64_t used = bytes_through(log, (uint64_t)log->end + log->open->count + LOG_VOIDS_MAX);
	uint64_t from = log->zeroed_bytes > used ? log->zeroed_bytes : used, length;
	unsigned count = 0;

	if (log->zero_failed || log->commit_slots / 16 > ZERO_COMMIT_SLOTS_MAX || from >= used + ZERO_AHEAD / 2 ||
	    from >= log->allocated_bytes)
		return;
	length = log->allocated_bytes - from < ZERO_AHEAD ? log->allocated_bytes - from : ZERO_AHEAD;
	length -= length % AREA_META_BYTES; /* a store's limit may be any number */
	if (length == 0)
		return;
	for (uint64_t at = 0; at < length; at += ZERO_BYTES) {
		size_t bytes = (size_t)(length - at < ZERO_BYTES ? length - at : ZERO_BYTES);

		log->zero_iov[count++] = (struct iovec){ .iov_base = zeroes, .iov_len = bytes };
	}
	log->allocate_io = (struct disk_io){
		.disk = last_part(log)->disk,
		.op = DISK_WRITE,
		.offset = from,
		.length = length,
		.iov = log->zero_iov,
		.iov_count = count,
		.done = zeroed_ahead,
		.context = log,
	};
	log->allocate_ahead = true;
	log->ops->counters->zeroed_bytes += length;
	disk_submit(&log->allocate_io);
}

static void prepare_ahead(struct log *log)
{
	if (log->allocate_ahead || log->allocated_bytes == UINT64_MAX)
		return;
	if (!allocate_ahead(log))
		zero_ahead(log);
}

/*
 * Whether what is under way ahead of need has come to where a commit up to slot `last` may write. After a turn to the next
 * part it may still go on in the one before, where this commit may write too.
 */
static bool ahead_is_in_the_way(const struct log *log, uint64_t last)
{
	return log->allocate_ahead && (log->allocate_io.disk != last_part(log)->disk ||
				       bytes_through(log, last + LOG_VOIDS_MAX) > log->allocate_io.offset);
}

static void commit_start(struct log *log)
{
	uint64_t last = (uint64_t)log->end + log->flying->count - 1, end;

	if (last >= store_capacity_slots(log->store)) {
		log_no_room(log, false);
		return;
	}
	end = bytes_through(log, last);
	if (ahead_is_in_the_way(log, last)) {
		log->state = LOG_ALLOCATING;
		log->waits_for_ahead = true; /* log_push() comes back here */
	} else if (end <= log->allocated_bytes) {
		commit_write(log);
	} else {
		log->state = LOG_ALLOCATING;
		allocate_submit(log, end, allocated);
	}
}

static void apply_turn(struct superblock *superblock, void *context)
{
	const struct log *log = context;

	superblock->parts[log->turn_part - 1].first_area = log->turn_area;
	superblock->parts[log->turn_part - 1].skipped_slots = log->turn_skipped;
}

/* Nothing may follow in the old part any more when it is not known what the superblock says. */
static void turned(struct store_update *update, int error)
{
	struct log *log = update->context;

	if (error != 0) {
		log_get_stuck(log, is_no_room(error) ? -EIO : error);
		return;
	}
	log_notice("store %s: goes on in %s", log->store->path, last_part(log)->path);
	reset_allocated(log, 0);
	if (log->turn_in_write) {
		log->end = log->turn_area * log_geometry(log)->slots_per_area;
		meta_reset(&log->metas[0], log->turn_area);
		log->meta_count = 1;
		log->round_first = 0;
		log->has_half = false;
		log->parts_written = 0;
	}
	commit_start(log);
}

/*
 * The area that the next part begins with: behind the last one that there is room for. After a write that found none,
 * that is the one in which the log ends, as far as it goes. If the log has turned already, but nothing is durable in the
 * new part yet, that one begins where it did, and more is skipped before it.
 */
static void choose_turn(struct log *log, bool in_write)
{
	const struct geometry *geometry = log_geometry(log);
	uint32_t last = store_last_part(log->store), first = last_part_first_area(log);
	uint64_t capacity = store_capacity_slots(log->store) / geometry->slots_per_area;
	uint32_t used = log->end % geometry->slots_per_area, open = log->end / geometry->slots_per_area;
	uint64_t areas = first;

	if (in_write) {
		log->turn_part = open < first ? last : last + 1;
		log->turn_area = open < first ? first : open + (used > 0 ? 1 : 0);
		log->turn_skipped = log->turn_area * geometry->slots_per_area - log->end;
		return;
	}
	if (log->allocated_bytes != UINT64_MAX)
		areas += (log->allocated_bytes - geometry_area_offset(geometry, 0)) / geometry_area_bytes(geometry);
	if (log->allocated_bytes == UINT64_MAX || areas > capacity)
		areas = capacity;
	if (areas < open)
		areas = open;
	log->turn_part = last + 1;
	log->turn_area = (uint32_t)areas;
	log->turn_skipped = 0;
}

static void log_no_room(struct log *log, bool in_write)
{
	choose_turn(log, in_write);
	log->turn_in_write = in_write;
	if (log->turn_part == store_part_count(log->store) ||
	    (uint64_t)log->turn_area * log_geometry(log)->slots_per_area >= SLOT_INDEX_MAX) {
		log_get_stuck(log, -ENOSPC);
		return;
	}
	log->state = LOG_TURNING;
	log->turn = (struct store_update){ .apply = apply_turn, .done = turned, .context = log };
	store_update_start(log->store, &log->turn);
}

void log_push(struct log *log)
{
	struct batch *batch = log->open;

	if (log->waits_for_ahead && !log->allocate_ahead) {
		log->waits_for_ahead = false;
		commit_start(log);
		return;
	}
	if (log->state != LOG_IDLE || batch->count == 0 || log->error != 0)
		return;
	log->open = log->flying;
	log->flying = batch;
	log->started_ns = disk_host_monotonic_ns(log->store->host);
	log->failed_before = store_barriers_failed(log->store);
	log->round_first = 0;
	log->rounds = 0;
	log->voids = 0;
	log->meta_count = 1;
	commit_start(log);
}

void log_retry(struct log *log)
{
	assert(log->state == LOG_STUCK && log->error == 0);
	if (log->allocate_ahead)
		return;
	if (log->flying->count == 0) {
		log->state = LOG_IDLE;
		return;
	}
	commit_start(log);
}

void log_abort(struct log *log, int error)
{
	assert(log->state == LOG_STUCK);
	log->state = LOG_IDLE;
	log->meta_count = 1;
	meta_cut(&log->metas[0], log->end - log->metas[0].area * log_geometry(log)->slots_per_area);
	log->settled = false; /* the copy not relied upon may hold entries of what is given up */
	batch_finish(log->flying, error);
	batch_finish(log->open, error);
}

void log_fail(struct log *log, int error)
{
	assert(log->state == LOG_IDLE && error != 0 && error != -ENOSPC);
	log_get_stuck(log, error);
}

/* ---- settling ---- */

static void settle_finish(struct log *log, int error)
{
	struct log_settle *settle = log->settle;

	log->settle = NULL;
	log->state = LOG_IDLE;
	settle->done(settle, error);
}

static void settle_flushed(struct log *log, int error)
{
	if (error != 0) {
		error = is_no_room(error) ? -EIO : error;
		log->error = error;
	} else {
		log->has_half = false;
		log->settled = true;
		if (log->metas[0].relied >= 0)
			log->metas[0].relied = 1 - log->metas[0].relied;
	}
	settle_finish(log, error);
}

static void settle_written(struct disk_io *io, int error)
{
	struct log *log = io->context;

	if (error != 0 && log->io_error == 0)
		log->io_error = error;
	if (--log->ios_pending > 0)
		return;
	if (is_no_room(log->io_error)) {
		settle_finish(log, -ENOSPC); /* what is relied upon is as it was */
	} else if (log->io_error != 0) {
		log->error = log->io_error;
		settle_finish(log, log->error);
	} else {
		flush_submit(log, LOG_SETTLING_FLUSH, settle_flushed);
	}
}

/* The copy not relied upon, with the present durable mark. */
static void settle_area(struct log *log, struct area_meta *meta, uint32_t count)
{
	struct area_header header = {
		.area = meta->area,
		.write_count = ++meta->write_count,
		.durable_slots = log->end,
		.entry_count = (uint16_t)count,
	};

	area_header_encode(meta->bytes, log->store->seed, &header);
	meta->writing = 1u << (1 - meta->relied);
	io_add_meta(log, meta, 0);
	io_add_meta(log, meta, 1);
}

void log_settle_start(struct log *log, struct log_settle *settle)
{
	const struct geometry *geometry = log_geometry(log);

	assert(log->state == LOG_IDLE && log->open->count == 0 && log->error == 0 && log->settle == NULL);
	log->settle = settle;
	log->state = LOG_SETTLING;
	log->failed_before = store_barriers_failed(log->store);
	io_begin(log);
	if (log->has_half)
		settle_area(log, &log->half, geometry->slots_per_area);
	if (log->metas[0].relied >= 0)
		settle_area(log, &log->metas[0], log->end - log->metas[0].area * geometry->slots_per_area);
	for (unsigned i = 0; i < log->io_count; i++)
		log->ios[i].done = settle_written;
	if (log->io_count == 0)
		flush_submit(log, LOG_SETTLING_FLUSH, settle_flushed);
	else
		io_submit_all(log);
}

const uint8_t *log_find_meta(const struct log *log, uint32_t area)
{
	if (log->metas[0].area == area && log->metas[0].relied >= 0)
		return log->metas[0].bytes;
	if (log->has_half && log->half.area == area)
		return log->half.bytes;
	return NULL;
}
