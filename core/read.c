/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Reads of the origin and of snapshots, and questions about what is allocated.
 *
 * A snapshot read is worked off in pieces of whole blocks. A piece is cut into segments, each of one kind (rule 2):
 *
 *   slots of a store --> slot read, verified
 *   zero run         --> memset
 *   origin           --> origin read; when it is done the chain is asked again (rule 3), and if a block of it has got an
 *                        exception meanwhile, the whole piece is read again. Each time at least one block more is
 *                        preserved, so this ends.
 *   lost, or broken  --> error
 *
 * What is not aligned goes through a bounce buffer: whole blocks of a snapshot, whole sectors of the origin.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "core/engine.h"
#include "io/log.h"

enum read_step { READ_BOUNCE, READ_SEGMENTS };

/* ---- the origin ---- */

static struct volume *origin_volume(const struct request *request)
{
	return container_of(request->export, struct volume, origin_export);
}

static struct snapshot *snapshot_of(const struct request *request)
{
	return container_of(request->export, struct snapshot, export);
}

static bool is_origin(const struct request *request)
{
	return !request->export->read_only;
}

static void origin_piece(struct volume *volume, struct request *request);

static void origin_read_done(struct disk_io *io, int error)
{
	struct request *request = io->context;
	struct volume *volume = origin_volume(request);
	uint64_t skip = request->cursor % volume->sector_bytes;

	origin_answered(volume, io, error);
	if (error == 0 && request->bounce != NULL)
		memcpy(request->buffer + (request->cursor - request->offset), (uint8_t *)request->bounce + skip,
		       (size_t)(request->piece_end - request->cursor));
	bounce_put(volume, request);
	request->cursor = request->piece_end;
	if (error != 0 || request->cursor == request->offset + request->length)
		request_end(volume, request, error);
	else
		origin_piece(volume, request);
}

static bool is_aligned(const struct request *request, uint64_t unit, uint64_t end_of_all)
{
	uint64_t end = request->offset + request->length;

	return request->offset % unit == 0 && (end % unit == 0 || end == end_of_all);
}

static void origin_piece(struct volume *volume, struct request *request)
{
	uint64_t end = request->offset + request->length, first = request->cursor, last;
	uint8_t *buffer = request->buffer;

	if (is_aligned(request, volume->sector_bytes, volume->origin_bytes)) {
		request->piece_end = end;
		last = end;
	} else {
		request->piece_end = end - first > PIECE_READ_BYTES ? first + PIECE_READ_BYTES : end;
		first -= first % volume->sector_bytes;
		last = (request->piece_end + volume->sector_bytes - 1) / volume->sector_bytes * volume->sector_bytes;
		if (last > volume->origin_bytes)
			last = volume->origin_bytes;
		if (!bounce_get(volume, request, last - first))
			return;
		buffer = request->bounce;
	}
	request->io = (struct disk_io){
		.disk = volume->origin,
		.op = DISK_READ,
		.offset = first,
		.length = last - first,
		.single = { .iov_base = buffer, .iov_len = (size_t)(last - first) },
		.done = origin_read_done,
		.context = request,
	};
	disk_submit(&request->io);
}

static void origin_extents_done(struct disk_io *io, int error)
{
	struct request *request = io->context;

	request->extents_count = io->extents_count;
	request_end(origin_volume(request), request, error);
}

static void submit_extents(struct volume *volume, struct request *request, uint64_t offset, uint64_t length,
			   void (*done)(struct disk_io *io, int error))
{
	request->io = (struct disk_io){
		.disk = volume->origin,
		.op = DISK_EXTENTS,
		.offset = offset,
		.length = length,
		.extents = request->extents,
		.extents_max = request->extents_max,
		.done = done,
		.context = request,
	};
	disk_submit(&request->io);
}

void origin_read_submit(struct volume *volume, struct request *request)
{
	if (request->length == 0) {
		request->extents_count = 0;
		request_end(volume, request, request->op == REQUEST_EXTENTS ? -EINVAL : 0);
	} else if (request->op == REQUEST_EXTENTS) {
		submit_extents(volume, request, request->offset, request->length, origin_extents_done);
	} else {
		volume->counters.reads++;
		volume->counters.read_bytes += request->length;
		origin_piece(volume, request);
	}
}

/* ---- snapshots: segments ---- */

static void snapshot_piece(struct volume *volume, struct request *request);
static void segment_slots_done(struct slot_read *read, int error);

int segment_pool_create(struct volume *volume)
{
	volume->segment_pool = calloc(SEGMENTS_MAX, sizeof(*volume->segment_pool));
	if (volume->segment_pool == NULL)
		return -ENOMEM;
	for (unsigned i = 0; i < SEGMENTS_MAX; i++) {
		struct segment *segment = &volume->segment_pool[i];
		int error = slot_read_init(&segment->slots);

		if (error != 0)
			return error;
		segment->volume = volume;
		segment->slots.cache = volume->slot_cache;
		segment->slots.checksum_errors = &volume->counters.checksum_errors;
		segment->slots.done = segment_slots_done;
		segment->slots.context = segment;
		list_append(&volume->segments_free, &segment->link);
	}
	return 0;
}

/* The chain's index of the snapshot a request reads. It stays in the chain while requests are under way. */
static size_t chain_index(const struct volume *volume, const struct request *request)
{
	size_t index = 0;

	while (volume->chain[index] != snapshot_of(request)) {
		index++;
		assert(index < volume->chain_count);
	}
	return index;
}

static void snapshot_end(struct volume *volume, struct request *request, int error)
{
	struct snapshot *snapshot = snapshot_of(request);

	bounce_put(volume, request);
	snapshot->requests--;
	request_end(volume, request, error);
}

/* The blocks of the piece: the cursor and piece_end are bytes asked for, the piece is whole blocks around them. */
static block_t piece_first(const struct volume *volume, const struct request *request)
{
	return request->cursor / volume->block_bytes;
}

static block_t piece_last(const struct volume *volume, const struct request *request)
{
	return (request->piece_end + volume->block_bytes - 1) / volume->block_bytes;
}

static uint8_t *piece_buffer(const struct volume *volume, const struct request *request, block_t block)
{
	if (request->bounce != NULL)
		return (uint8_t *)request->bounce +
		       (size_t)((block - piece_first(volume, request)) * volume->block_bytes);
	return request->buffer + (size_t)(block * volume->block_bytes - request->offset);
}

static void piece_end(struct volume *volume, struct request *request)
{
	if (request->error == 0 && request->bounce != NULL)
		memcpy(request->buffer + (request->cursor - request->offset),
		       (uint8_t *)request->bounce + request->cursor % volume->block_bytes,
		       (size_t)(request->piece_end - request->cursor));
	bounce_put(volume, request);
	request->cursor = request->piece_end;
	if (request->error != 0 || request->cursor == request->offset + request->length) {
		snapshot_end(volume, request, request->error);
		return;
	}
	request->step = READ_BOUNCE;
	snapshot_piece(volume, request);
}

/* `pending` is one for each segment, and one while the piece is still being cut up. */
static void piece_put(struct volume *volume, struct request *request)
{
	assert(request->pending > 0);
	if (--request->pending > 0)
		return;
	if (request->error == -EAGAIN) {
		/* rule 3: a block was preserved while the origin was being read */
		volume->counters.rereads++;
		request->error = 0;
		snapshot_piece(volume, request);
		return;
	}
	piece_end(volume, request);
}

static void segment_end(struct segment *segment, int error)
{
	struct request *request = segment->request;
	struct volume *volume = segment->volume;

	if (error != 0 && (request->error == 0 || request->error == -EAGAIN))
		request->error = error;
	segment->request = NULL;
	list_append(&volume->segments_free, &segment->link);
	volume->segment_freed = true;
	piece_put(volume, request);
}

static void segment_slots_done(struct slot_read *read, int error)
{
	segment_end(read->context, error == -EAGAIN ? -EIO : error);
}

static void segment_origin_done(struct disk_io *io, int error)
{
	struct segment *segment = io->context;
	struct volume *volume = segment->volume;
	size_t index = chain_index(volume, segment->request);
	uint64_t seen = 0;

	origin_answered(volume, io, error);
	while (seen < segment->count && error != -EAGAIN) {
		struct placement at = chain_find(volume, index, segment->first + seen, segment->count - seen);

		if (at.place != PLACE_ORIGIN)
			error = -EAGAIN;
		seen += at.count;
	}
	segment_end(segment, error);
}

static void segment_origin(struct segment *segment, uint8_t *buffer)
{
	struct volume *volume = segment->volume;
	uint64_t offset = segment->first * volume->block_bytes;
	uint64_t bytes = segment->count * volume->block_bytes, length = bytes;

	if (length > volume->origin_bytes - offset) {
		length = volume->origin_bytes - offset;
		if (segment->request->bounce != NULL)
			memset(buffer + length, 0, (size_t)(bytes - length));
	}
	segment->io = (struct disk_io){
		.disk = volume->origin,
		.op = DISK_READ,
		.offset = offset,
		.length = length,
		.single = { .iov_base = buffer, .iov_len = (size_t)length },
		.done = segment_origin_done,
		.context = segment,
	};
	disk_submit(&segment->io);
}

static void segment_slots(struct segment *segment, const struct placement *at, uint8_t *buffer)
{
	const struct geometry *geometry = &at->store->superblock.geometry;
	uint32_t in_area = geometry->slots_per_area - geometry_slot_in_area(geometry, at->slot);

	if (segment->count > in_area)
		segment->count = in_area;
	segment->slots.store = at->store;
	segment->slots.slot = at->slot;
	segment->slots.count = (uint32_t)segment->count;
	segment->slots.block = segment->first;
	segment->slots.buffer = buffer;
	slot_read_start(&segment->slots);
}

static void report_unreadable(struct volume *volume, const struct request *request, block_t block,
			      const struct placement *at)
{
	trouble_tell(&volume->read_trouble, volume->host, "volume %s: snapshot %s: block %llu %s", volume->name,
		     request->export->name, (unsigned long long)block,
		     at->place == PLACE_LOST ? "was unreadable when it was to be preserved: it is lost" :
					       "is not preserved, and the chain is broken: its old content is gone");
}

/*
 * Cuts the piece up from request->next_block on. Returns when all is cut, or when no segment is free: then it goes on from
 * read_continue().
 */
static void piece_cut(struct volume *volume, struct request *request)
{
	size_t index = chain_index(volume, request);
	block_t last = piece_last(volume, request);

	while (request->next_block < last && request->error == 0) {
		block_t block = request->next_block;
		struct placement at = chain_find(volume, index, block, last - block);
		uint8_t *buffer = piece_buffer(volume, request, block);
		struct segment *segment;
		struct list *link;

		if (at.place == PLACE_LOST || at.place == PLACE_BROKEN) {
			report_unreadable(volume, request, block, &at);
			request->error = -EIO;
			break;
		}
		if (at.place == PLACE_ZERO) {
			uint64_t bytes = at.count * volume->block_bytes, rest = request->piece_end - block * volume->block_bytes;

			if (request->bounce == NULL && bytes > rest)
				bytes = rest;
			memset(buffer, 0, (size_t)bytes);
			request->next_block += at.count;
			continue;
		}
		link = list_pop(&volume->segments_free);
		if (link == NULL) {
			list_append(&volume->segment_starved, &request->waiting_link);
			return;
		}
		segment = container_of(link, struct segment, link);
		segment->request = request;
		segment->first = block;
		segment->count = at.count;
		request->pending++;
		if (at.place == PLACE_SLOT)
			segment_slots(segment, &at, buffer);
		else
			segment_origin(segment, buffer);
		request->next_block += segment->count;
	}
	piece_put(volume, request);
}

static void snapshot_piece(struct volume *volume, struct request *request)
{
	uint64_t end = request->offset + request->length;
	uint64_t window = PIECE_READ_BYTES > volume->block_bytes ? PIECE_READ_BYTES : volume->block_bytes;
	uint64_t bytes;

	if (request->step == READ_BOUNCE) {
		request->piece_end = (request->cursor / window + 1) * window;
		if (request->piece_end > end)
			request->piece_end = end;
		bytes = (piece_last(volume, request) - piece_first(volume, request)) * volume->block_bytes;
		/*
		 * A partial block cannot be verified without the rest of it. At the origin's end a slot is a whole block too,
		 * and the client's buffer need not have room for it.
		 */
		if ((request->offset % volume->block_bytes != 0 || request->piece_end % volume->block_bytes != 0) &&
		    request->bounce == NULL && !bounce_get(volume, request, bytes))
			return;
	}
	request->step = READ_SEGMENTS;
	request->next_block = piece_first(volume, request);
	request->pending = 1;
	piece_cut(volume, request);
}

void read_continue(struct request *request)
{
	struct volume *volume;

	if (is_origin(request)) {
		volume = origin_volume(request);
		origin_piece(volume, request);
		return;
	}
	volume = snapshot_of(request)->volume;
	if (request->step == READ_BOUNCE)
		snapshot_piece(volume, request);
	else
		piece_cut(volume, request);
}

void read_turn(struct volume *volume)
{
	struct list waiting, *link;

	if (!volume->segment_freed)
		return;
	volume->segment_freed = false;
	list_init(&waiting);
	list_splice(&waiting, &volume->segment_starved);
	while ((link = list_pop(&waiting)) != NULL)
		read_continue(container_of(link, struct request, waiting_link));
}

/* ---- snapshots: what is allocated ---- */

/* Appends to the answer, joining equal neighbours. False when it is full. */
static bool extent_append(struct request *request, struct disk_extent *out, unsigned *count, uint64_t length, bool hole)
{
	if (*count > 0 && out[*count - 1].hole == hole) {
		out[*count - 1].length += length;
		return true;
	}
	if (*count == request->extents_max)
		return false;
	out[(*count)++] = (struct disk_extent){ .length = length, .hole = hole };
	return true;
}

/* The origin's answer at `offset`: how far it goes on (0: it does not reach there). */
static uint64_t origin_extent_at(const struct request *request, uint64_t offset, bool *hole)
{
	uint64_t at = request->offset;

	for (unsigned i = 0; i < request->extents_count; i++) {
		uint64_t end = at + request->extents[i].length;

		if (offset < end) {
			*hole = request->extents[i].hole;
			return end - offset;
		}
		at = end;
	}
	return 0;
}

#define EXTENTS_MAX 128u

/* The origin has answered; the chain is asked now, so what was overwritten meanwhile is found in it (rule 3). */
static void snapshot_extents_done(struct disk_io *io, int error)
{
	struct request *request = io->context;
	struct volume *volume = snapshot_of(request)->volume;
	uint64_t offset = request->offset, end = request->offset + request->length;
	struct disk_extent out[EXTENTS_MAX];
	unsigned count = 0;
	size_t index = chain_index(volume, request);

	request->extents_count = io->extents_count;
	while (error == 0 && offset < end) {
		block_t block = offset / volume->block_bytes;
		struct placement at = chain_find(volume, index, block, volume_block_count(volume) - block);
		uint64_t length = (block + at.count) * volume->block_bytes - offset;
		bool hole = at.place == PLACE_ZERO;

		if (at.place == PLACE_ORIGIN) {
			uint64_t known = origin_extent_at(request, offset, &hole);

			length = known < length ? known : length;
		}
		length = length < end - offset ? length : end - offset;
		if (length == 0 || !extent_append(request, out, &count, length, hole))
			break;
		offset += length;
	}
	if (error == 0) {
		memcpy(request->extents, out, count * sizeof(*out));
		request->extents_count = count;
	}
	snapshot_end(volume, request, error);
}

void snapshot_submit(struct request *request)
{
	struct snapshot *snapshot = snapshot_of(request);
	struct volume *volume = snapshot->volume;
	int error = request_check(request);

	request_begin(volume, request);
	if (error != 0 || request->length == 0) {
		request_end(volume, request, error);
		return;
	}
	snapshot->requests++;
	if (request->op == REQUEST_EXTENTS) {
		if (request->extents_max > EXTENTS_MAX)
			request->extents_max = EXTENTS_MAX;
		submit_extents(volume, request, request->offset, request->length, snapshot_extents_done);
		return;
	}
	volume->counters.snapshot_reads++;
	volume->counters.snapshot_read_bytes += request->length;
	request->step = READ_BOUNCE;
	snapshot_piece(volume, request);
}
