/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Writes, zeroes, discards and flushes of the origin.
 *
 * A request is worked off in pieces, one after the other; a piece is [cursor, piece_end):
 *
 *   admit --> preserve --> (edge: read the sector) --> (fingerprint) --> issue --> next piece, or complete
 *     ^  |        |                                                       |
 *     |  '- overlapping: waits for a conflicting piece                    |
 *     '---------------- held: a pause has begun; the piece starts again <-'
 *
 * 1. Issue is the only place where the origin is written, and it looks at the map again: rule 1 holds there whatever
 *    happened before.
 * 2. What is written lies in memory aligned to sectors: where a client's offset is odd, in a bounce buffer.
 * 3. An edge is a piece smaller than the origin's sector: read, merged, written. Edges exclude every overlapping piece;
 *    whole-sector pieces exclude only edges (two clients' whole writes to one place have no order anyway).
 * 4. While a pause lasts nothing is issued: a piece that has come so far is held and starts again at "admit", against the
 *    snapshot that is the newest then.
 * 5. A discard is carried out on whole blocks only, and never in the fingerprinted area. By default only blocks that are
 *    preserved already are discarded.
 * 6. Write-zeroes are writes: preserved first, then zeroed in place.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "core/engine.h"
#include "io/log.h"

/* Zeroes and discards that need no copying go in pieces of this size at most. */
#define PIECE_UNCOPIED_BYTES (UINT64_C(1) << 30)

enum write_step {
	WRITE_ADMIT,
	WRITE_PRESERVE,
	WRITE_READ_EDGE,
	WRITE_FINGERPRINT,
	WRITE_ISSUE,
};

static void piece_begin(struct volume *volume, struct request *request);
static void piece_run(struct volume *volume, struct request *request);

static struct volume *volume_of(const struct request *request)
{
	return container_of(request->export, struct volume, origin_export);
}

static bool is_edge(const struct volume *volume, const struct request *request)
{
	uint64_t end = request->piece_end;

	if (request->op == REQUEST_DISCARD)
		return false;
	return request->cursor % volume->sector_bytes != 0 ||
	       (end % volume->sector_bytes != 0 && end != volume->origin_bytes);
}

/*
 * Whether the client's buffer can be given to the disk as it is. In memory that is not aligned to sectors the write would
 * go through the page cache, whose pages hold neighbouring sectors that may be being written directly.
 */
static bool is_in_place(const struct volume *volume, const struct request *request)
{
	return request->op != REQUEST_WRITE || (request->cursor - request->offset) % volume->sector_bytes == 0;
}

/* The bytes a piece touches on the disk: whole sectors. */
static void piece_span(const struct volume *volume, const struct request *request, uint64_t *first, uint64_t *end)
{
	*first = request->cursor - request->cursor % volume->sector_bytes;
	*end = (request->piece_end + volume->sector_bytes - 1) / volume->sector_bytes * volume->sector_bytes;
	if (*end > volume->origin_bytes)
		*end = volume->origin_bytes;
}

/* ---- the piece's extent ---- */

/* Preserved blocks need no memory for copies, so a run of them may go in one large piece. */
static uint64_t uncopied_end(const struct volume *volume, uint64_t cursor, uint64_t end)
{
	uint64_t limit = end - cursor > PIECE_UNCOPIED_BYTES ? cursor + PIECE_UNCOPIED_BYTES : end;
	block_t block = cursor / volume->block_bytes, last;
	bool preserved = true;

	last = (limit + volume->block_bytes - 1) / volume->block_bytes;
	while (block < last) {
		uint64_t run = preserved_run(volume, block, last - block, &preserved);

		if (!preserved)
			break;
		block += run;
	}
	return block * volume->block_bytes < limit ? block * volume->block_bytes : limit;
}

/* Where the piece that begins at the cursor ends. */
static uint64_t choose_piece_end(const struct volume *volume, const struct request *request)
{
	uint64_t end = request->offset + request->length, cursor = request->cursor;
	uint32_t sector = volume->sector_bytes;
	uint64_t piece_end = end, sector_end = (cursor / sector + 1) * sector;

	if (!is_in_place(volume, request) && piece_end - cursor > PIECE_READ_BYTES)
		piece_end = cursor + PIECE_READ_BYTES; /* it needs bounce memory */
	if (cursor % sector != 0 || (end < sector_end && end != volume->origin_bytes))
		return end < sector_end ? end : sector_end;
	if (request->op != REQUEST_WRITE && volume_log(volume) == NULL) {
		if (piece_end - cursor > PIECE_UNCOPIED_BYTES)
			piece_end = cursor + PIECE_UNCOPIED_BYTES;
	} else if (volume->block_bytes != 0) {
		uint64_t window = (cursor / volume->block_bytes + PIECE_BLOCKS) * volume->block_bytes;

		if (request->op != REQUEST_WRITE) {
			uint64_t uncopied = uncopied_end(volume, cursor, end);

			window = uncopied > window ? uncopied : window;
		}
		piece_end = piece_end < window ? piece_end : window;
	} else if (piece_end - cursor > PIECE_READ_BYTES) {
		piece_end = cursor + PIECE_READ_BYTES;
	}
	if (piece_end != volume->origin_bytes)
		piece_end -= piece_end % sector;
	return piece_end;
}

/* Moves the cursor over what is not to be discarded, and sets the piece to what is. False: nothing is left. */
static bool choose_discard(const struct volume *volume, struct request *request)
{
	uint64_t end = request->offset + request->length;
	uint32_t block_bytes = volume->block_bytes != 0 ? volume->block_bytes : BLOCK_BYTES_MIN;
	block_t block = (request->cursor + block_bytes - 1) / block_bytes;
	block_t last = end == volume->origin_bytes ? (end + block_bytes - 1) / block_bytes : end / block_bytes;

	if (block * block_bytes < FINGERPRINT_END)
		block = (FINGERPRINT_END + block_bytes - 1) / block_bytes; /* rule 5 */
	while (block < last) {
		uint64_t run = last - block;
		bool carry_out = true;

		if (volume_log(volume) != NULL) {
			run = preserved_run(volume, block, run, &carry_out);
			if (!carry_out && volume->discard_copy) {
				carry_out = true;
				run = run < PIECE_BLOCKS ? run : PIECE_BLOCKS;
			}
		}
		if (run > PIECE_UNCOPIED_BYTES / block_bytes)
			run = PIECE_UNCOPIED_BYTES / block_bytes;
		if (carry_out) {
			request->cursor = block * block_bytes;
			request->piece_end = (block + run) * block_bytes;
			if (request->piece_end > volume->origin_bytes)
				request->piece_end = volume->origin_bytes;
			return true;
		}
		block += run;
	}
	return false;
}

/* ---- exclusion ---- */

static bool conflicts(const struct volume *volume, const struct request *request)
{
	bool edge = is_edge(volume, request);
	uint64_t first, end;

	if (!edge && volume->rmw_count == 0)
		return false;
	piece_span(volume, request, &first, &end);
	list_for_each(link, &volume->writing) {
		const struct request *other = container_of(link, struct request, link);
		uint64_t other_first, other_end;

		piece_span(volume, other, &other_first, &other_end);
		if ((edge || is_edge(volume, other)) && other_first < end && first < other_end)
			return true;
	}
	return false;
}

static void piece_leave(struct volume *volume, struct request *request)
{
	list_remove(&request->link);
	if (is_edge(volume, request)) {
		assert(volume->rmw_count > 0);
		volume->rmw_count--;
	}
	bounce_put(volume, request);
	fingerprint_written(volume, request);
	volume->piece_left = true;
}

static void hold(struct volume *volume, struct request *request)
{
	list_remove(&request->link);
	list_append(&volume->held, &request->link);
}

static void hold_piece(struct volume *volume, struct request *request)
{
	piece_leave(volume, request);
	hold(volume, request);
}

void write_resume_held(struct volume *volume)
{
	struct list held, *link;

	list_init(&held);
	list_splice(&held, &volume->held);
	while ((link = list_pop(&held)) != NULL)
		piece_begin(volume, container_of(link, struct request, link));
}

/* ---- the steps ---- */

static void write_end(struct volume *volume, struct request *request, int error)
{
	if (request->step > WRITE_ADMIT)
		piece_leave(volume, request);
	request_end(volume, request, error);
}

void flush_submit_request(struct volume *volume, struct request *request)
{
	volume->counters.flushes++;
	barrier_join(volume, request);
}

static void issued_done(struct disk_io *io, int error)
{
	struct request *request = io->context;
	struct volume *volume = volume_of(request);

	volume->issued--;
	if ((io->flags & DISK_FUA) != 0)
		volume->fua_now--;
	origin_answered(volume, io, error);
	if (error == -EOPNOTSUPP && request->op == REQUEST_DISCARD)
		error = 0; /* a discard is advice */
	if (error != 0 && (io->flags & DISK_FUA) != 0)
		(void)origin_barrier_result(volume, error); /* the disk tells of a failed barrier once, and has told it now */
	if (error != 0) {
		write_end(volume, request, error);
		return;
	}
	piece_leave(volume, request);
	request->step = WRITE_ADMIT;
	request->cursor = request->piece_end;
	piece_begin(volume, request);
}

static void issue(struct volume *volume, struct request *request)
{
	bool edge = is_edge(volume, request);
	uint64_t first = request->cursor, end = request->piece_end;
	uint8_t *data = NULL;

	/* Rule 1: preserved, or there is nothing (or no way) to preserve it in. */
	assert(volume_active(volume) == NULL || volume_log(volume) != NULL || volume_is_broken(volume));
	request->step = WRITE_ISSUE;
	if (edge)
		piece_span(volume, request, &first, &end);
	if (request->bounce != NULL)
		data = request->bounce;
	else if (request->op == REQUEST_WRITE)
		data = request->buffer + (request->cursor - request->offset);
	request->io = (struct disk_io){
		.disk = volume->origin,
		.op = data != NULL ? DISK_WRITE : request->op == REQUEST_ZERO ? DISK_ZERO : DISK_DISCARD,
		.offset = first,
		.length = end - first,
		.single = { .iov_base = data, .iov_len = (size_t)(end - first) },
		.done = issued_done,
		.context = request,
	};
	if ((request->flags & REQUEST_FUA) != 0) {
		if (request->io.op == DISK_WRITE && barrier_prefers_fua(volume)) {
			request->io.flags |= DISK_FUA;
			volume->fua_now++;
			volume->counters.origin_barriers++;
		} else {
			request->needs_barrier = true;
		}
	}
	if ((request->flags & REQUEST_NO_HOLE) != 0)
		request->io.flags |= DISK_NO_HOLE;
	fingerprint_issued(volume, request);
	volume->issued++;
	disk_submit(&request->io);
}

static void edge_read_done(struct disk_io *io, int error)
{
	struct request *request = io->context;
	struct volume *volume = volume_of(request);
	uint64_t length = request->piece_end - request->cursor;
	uint8_t *at = (uint8_t *)request->bounce + request->cursor % volume->sector_bytes;

	volume->issued--;
	origin_answered(volume, io, error);
	if (error != 0) {
		write_end(volume, request, error);
		return;
	}
	if (request->op == REQUEST_WRITE)
		memcpy(at, request->buffer + (request->cursor - request->offset), (size_t)length);
	else
		memset(at, 0, (size_t)length);
	request->step = WRITE_FINGERPRINT;
	piece_run(volume, request);
}

/*
 * The edge's sector is read when the block is preserved and nothing else may write there. It counts as issued, so that a
 * pause waits for it; the write itself may then still be held, and starts again with a new read.
 */
static void read_edge(struct volume *volume, struct request *request)
{
	uint64_t first, end;

	if (!bounce_get(volume, request, volume->sector_bytes))
		return;
	piece_span(volume, request, &first, &end);
	request->io = (struct disk_io){
		.disk = volume->origin,
		.op = DISK_READ,
		.offset = first,
		.length = end - first,
		.single = { .iov_base = request->bounce, .iov_len = (size_t)(end - first) },
		.done = edge_read_done,
		.context = request,
	};
	volume->issued++;
	disk_submit(&request->io);
}

/* Memory first come, first served; false: the request waits for some, and is continued when it is there. */
bool bounce_get(struct volume *volume, struct request *request, uint64_t bytes)
{
	assert(request->bounce == NULL);
	request->bounce = arena_get(volume->bounce_arena, (size_t)bytes);
	request->bounce_bytes = bytes;
	if (request->bounce == NULL)
		list_append(&volume->bounce_waiters, &request->waiting_link);
	return request->bounce != NULL;
}

void bounce_put(struct volume *volume, struct request *request)
{
	if (request->bounce == NULL)
		return;
	arena_put(volume->bounce_arena, request->bounce, (size_t)request->bounce_bytes);
	request->bounce = NULL;
	volume->bounce_freed = true;
}

/* Those who waited for memory go on: who cannot queues again. */
static void bounce_turn(struct volume *volume)
{
	struct list waiting, *link;

	volume->bounce_freed = false;
	list_init(&waiting);
	list_splice(&waiting, &volume->bounce_waiters);
	while ((link = list_pop(&waiting)) != NULL) {
		struct request *request = container_of(link, struct request, waiting_link);

		if (request->op == REQUEST_READ)
			read_continue(request);
		else
			write_continue(request, 0);
	}
}

static void overlapping_turn(struct volume *volume)
{
	struct list waiting, *link;

	volume->piece_left = false;
	list_init(&waiting);
	list_splice(&waiting, &volume->overlapping);
	while ((link = list_pop(&waiting)) != NULL)
		piece_begin(volume, container_of(link, struct request, link));
}

void write_turn(struct volume *volume)
{
	/* Each of these may set the others' flags; every pass ends at least one wait, so this ends. */
	while (volume->bounce_freed || volume->piece_left) {
		if (volume->bounce_freed)
			bounce_turn(volume);
		if (volume->piece_left)
			overlapping_turn(volume);
		fingerprint_turn(volume);
	}
}

/* 1: all of the piece is preserved; 0: it waits; or an error. */
static int preserve(struct volume *volume, struct request *request)
{
	block_t first, last;

	if (volume_log(volume) == NULL)
		return 1;
	first = request->cursor / volume->block_bytes;
	last = (request->piece_end - 1) / volume->block_bytes;
	return copy_preserve(volume, request, first, last - first + 1);
}

static int announce(struct volume *volume, struct request *request)
{
	uint64_t first = request->cursor, end = request->piece_end;
	const uint8_t *data = NULL;

	if (volume_log(volume) == NULL || request->op == REQUEST_DISCARD)
		return 1;
	if (is_edge(volume, request)) {
		piece_span(volume, request, &first, &end);
		data = request->bounce;
	} else if (request->op == REQUEST_WRITE) {
		data = request->buffer + (request->cursor - request->offset);
	}
	return fingerprint_announce(volume, request, first, end - first, data);
}

/* Goes on with the piece as far as it can without waiting. */
static void piece_run(struct volume *volume, struct request *request)
{
	int result;

	if (volume->pauses > 0) {
		hold_piece(volume, request);
		return;
	}
	/* Whatever it waited for, the chain may have changed: rule 1 is decided here and now. */
	result = volume->unusable ? -EIO : preserve(volume, request);
	if (result == 1 && request->step < WRITE_FINGERPRINT && is_edge(volume, request)) {
		request->step = WRITE_READ_EDGE;
		read_edge(volume, request);
		return;
	}
	if (result == 1 && request->bounce == NULL && !is_in_place(volume, request)) {
		if (!bounce_get(volume, request, request->piece_end - request->cursor))
			return;
		memcpy(request->bounce, request->buffer + (request->cursor - request->offset),
		       (size_t)(request->piece_end - request->cursor));
	}
	if (result == 1) {
		request->step = WRITE_FINGERPRINT;
		result = announce(volume, request);
	}
	if (result == 1)
		issue(volume, request);
	else if (result < 0)
		write_end(volume, request, result);
}

void write_continue(struct request *request, int error)
{
	struct volume *volume = volume_of(request);

	if (error != 0)
		write_end(volume, request, error);
	else
		piece_run(volume, request);
}

static void request_finish(struct volume *volume, struct request *request)
{
	/* A discard of which nothing was carried out has nothing to make durable, but asks all the same. */
	if (request->needs_barrier || ((request->flags & REQUEST_FUA) != 0 && request->op == REQUEST_DISCARD))
		barrier_join(volume, request);
	else
		request_end(volume, request, 0);
}

/* "admit": the next piece of a request that has none under way. */
static void piece_begin(struct volume *volume, struct request *request)
{
	request->step = WRITE_ADMIT;
	if (request->cursor == request->offset + request->length) {
		request_finish(volume, request);
		return;
	}
	if (volume->pauses > 0) {
		hold(volume, request);
		return;
	}
	if (request->op == REQUEST_DISCARD) {
		if (!choose_discard(volume, request)) {
			request->cursor = request->offset + request->length;
			request_finish(volume, request);
			return;
		}
	} else {
		request->piece_end = choose_piece_end(volume, request);
	}
	if (conflicts(volume, request)) {
		list_append(&volume->overlapping, &request->link);
		return;
	}
	list_append(&volume->writing, &request->link);
	if (is_edge(volume, request))
		volume->rmw_count++;
	request->step = WRITE_PRESERVE;
	piece_run(volume, request);
}

void write_submit(struct volume *volume, struct request *request)
{
	uint64_t offset, length;

	switch (request->op) {
	case REQUEST_WRITE:
		volume->counters.writes++;
		volume->counters.write_bytes += request->length;
		break;
	case REQUEST_ZERO:
		volume->counters.zeroes++;
		break;
	case REQUEST_DISCARD:
		volume->counters.discards++;
		break;
	case REQUEST_READ:
	case REQUEST_FLUSH:
	case REQUEST_EXTENTS:
		break;
	}
	if ((request->flags & REQUEST_FUA) != 0 && volume->origin_barrier_failed) {
		request_end(volume, request, -EIO);
		return;
	}
	offset = request->offset;
	length = request->op == REQUEST_WRITE ? request->length : 0;
	piece_begin(volume, request);
	copy_ahead_of_write(volume, offset, length); /* the request may have ended */
}
