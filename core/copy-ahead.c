/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Copying ahead: who writes the origin in order has the blocks just ahead of him preserved before he comes to them, so
 * that he does not wait for a copy and a barrier at every write.
 *
 * 1. A stream is a row of writes each of which begins where the one before it ended. From its STREAM_WRITES_MIN-th write
 *    on, the blocks behind its end are preserved, a window long: WINDOW_BLOCKS_MIN at first, twice as many every time, at
 *    most WINDOW_BYTES_MAX. So what a stream that stops has preserved for nothing is at most that.
 * 2. Nothing is copied ahead in a pause, while an operation is under way or asked for, when the server stops or when blocks
 *    are not to be preserved at all; nor with the copies' memory half used.
 * 3. The store's room is for what is overwritten: ahead is copied only into space that the log has already, and the last
 *    eighth of a store with a limit is left alone. See log_spare_slots().
 * 4. A block that cannot be read is not recorded as lost: it has not been overwritten. (See copy_read_done().)
 */
#include "core/engine.h"

#define STREAM_WRITES_MIN 3u
#define WINDOW_BLOCKS_MIN 16u
#define WINDOW_BYTES_MAX (UINT64_C(1) << 20)

static bool may_copy_ahead(const struct volume *volume)
{
	const struct log *log = volume_log(volume);

	return log != NULL && log_error(log) == 0 && !log_is_stuck(log) && !volume->active_unready &&
	       volume->pauses == 0 && !volume->stopping && volume->operation == NULL &&
	       list_is_empty(&volume->operations) && list_is_empty(&volume->copies_unlogged) &&
	       arena_bytes_used(volume->copy_arena) < arena_bytes(volume->copy_arena) / 2;
}

/* The stream that the write continues, else the one that was longest without a write, begun anew. */
static struct write_stream *stream_find(struct volume *volume, uint64_t offset)
{
	struct write_stream *found = &volume->streams[0];

	for (unsigned i = 0; i < WRITE_STREAMS; i++) {
		struct write_stream *stream = &volume->streams[i];

		if (stream->end == offset && stream->writes > 0) {
			stream->writes++;
			return stream;
		}
		if (stream->used < found->used)
			found = stream;
	}
	*found = (struct write_stream){ .writes = 1 };
	return found;
}

/* Preserves up to `count` blocks from `first` on, as far as there is room. */
static void extend(struct volume *volume, struct write_stream *stream, block_t first, uint64_t count)
{
	block_t end = volume_block_count(volume);

	if (first >= end)
		return;
	if (count > end - first)
		count = end - first;
	/* What is being read for the log has a claim to its room, too. */
	if (log_spare_slots(volume_log(volume)) < count + arena_bytes_used(volume->copy_arena) / volume->block_bytes)
		return;
	stream->ahead = first + count;
	copy_ahead(volume, first, count);
}

void copy_ahead_of_write(struct volume *volume, uint64_t offset, uint64_t length)
{
	struct write_stream *stream;
	uint64_t window_max;
	block_t next;

	if (volume_log(volume) == NULL || length == 0)
		return;
	stream = stream_find(volume, offset);
	stream->end = offset + length;
	stream->used = ++volume->streams_used;
	if (stream->writes < STREAM_WRITES_MIN || !may_copy_ahead(volume))
		return;
	next = (stream->end + volume->block_bytes - 1) / volume->block_bytes;
	if (stream->ahead < next)
		stream->ahead = next;
	if (stream->ahead - next >= stream->window / 2 && stream->window > 0)
		return;
	window_max = WINDOW_BYTES_MAX / volume->block_bytes;
	stream->window = stream->window == 0 ? WINDOW_BLOCKS_MIN : stream->window * 2;
	if (stream->window > window_max)
		stream->window = window_max;
	extend(volume, stream, stream->ahead, next + stream->window - stream->ahead);
}
