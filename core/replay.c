/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Replay: the image of a snapshot, read through the chain in order, written as it comes.
 *
 *   plan      what is a hole (never written on the origin, or a zero run) is not read
 *   read      in pieces of up to 1 MiB on a grid of 1 MiB, some ahead (ahead.c)
 *   salvage   a piece that cannot be read at once: block by block, to find what is at fault
 *   write     a file: emptied and given its size first, so that what is zero need not be written; a device: what is a
 *             hole is zeroed there; standard output: everything, in order
 *   flush     then the origin is compared with what it was at the beginning
 *
 * Origin and stores are open for reading only, and the output is compared with them by identity before it is opened.
 */
#include "core/replay.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/ahead.h"

#define PLAN_BYTES (UINT64_C(1) << 30)
#define PLAN_EXTENTS 128u
#define SPARSE_BYTES (UINT64_C(16) << 10) /* zeroes of this much, so aligned, are left out of a file */
#define WRITES_MAX (AHEAD_BYTES / SPARSE_BYTES / 2)

/* Where the next piece begins, and what the origin and the maps say is there. */
struct plan {
	uint64_t next;
	struct disk_extent extents[PLAN_EXTENTS];
	unsigned count, at;
	uint64_t extent_end; /* of extents[at] */
	uint64_t refilled;   /* `next` when they were asked for */
};

enum output_kind { OUTPUT_FILE, OUTPUT_DEVICE, OUTPUT_STREAM };

struct replay;

struct piece_writes {
	struct replay *replay;
	struct ahead_piece *piece;
	unsigned pending;
	struct disk_io io[WRITES_MAX];
};

struct replay {
	struct offline *offline;
	const struct replay_options *options;
	struct complaint *complaint;
	uint64_t total, done; /* bytes */
	int error;
	struct plan plan;
	enum output_kind kind;
	struct disk *output; /* NULL: a stream */
	bool made, touched;
	unsigned writing; /* pieces */
	struct offline_fault fault;
	bool has_fault;
	struct ahead ahead;
	struct piece_writes writes[AHEAD_PIECES];
};

static void fail(struct replay *replay, const char *what, int error)
{
	if (replay->error != 0)
		return;
	replay->error = error;
	complaint_set(replay->complaint, what, "%s", strerror(-error));
}

static const char *output_name(const struct replay *replay)
{
	return replay->options->output == NULL ? "standard output" : replay->options->output;
}

/* ---- the output ---- */

int replay_check_output(const struct offline *offline, const char *output, struct complaint *complaint)
{
	const struct volume *volume = offline->volume;
	struct disk *disk = NULL;
	int error = 0;

	/* What cannot be opened so is neither. */
	if (disk_open(volume->host, output != NULL ? output : "/dev/stdout", DISK_OPEN_READ_ONLY, &disk) != 0)
		return 0;
	if (output == NULL)
		output = "standard output";
	if (disk_is_same(disk, volume->origin)) {
		complaint_set(complaint, output, "is the origin itself: it is not written to");
		error = -EINVAL;
	}
	for (size_t i = 0; i < volume->chain_count && error == 0; i++) {
		const struct store *store = volume->chain[i]->store;

		for (uint32_t part = 0; part < store_part_count(store) && error == 0; part++) {
			if (!disk_is_same(disk, store_part(store, part)->disk))
				continue;
			complaint_set(complaint, output, "is the store of snapshot %s: it is not written to",
				      store->superblock.name);
			error = -EINVAL;
		}
	}
	disk_close(disk);
	return error;
}

static int refuse_output(struct replay *replay, int error)
{
	struct complaint *complaint = replay->complaint;

	if (error == -EBUSY)
		complaint_set(complaint, output_name(replay), "is in use by another program");
	else if (error == -ENOTBLK)
		complaint_set(complaint, output_name(replay), "is neither a block device nor a regular file");
	else
		complaint_set(complaint, output_name(replay), "%s", strerror(-error));
	return error;
}

static int open_output_disk(struct replay *replay)
{
	const char *path = replay->options->output;
	struct disk_info info;
	struct stat status;
	int error;

	replay->made = stat(path, &status) != 0 && errno == ENOENT;
	error = disk_open(replay->offline->volume->host, path, DISK_OPEN_LOCK | (replay->made ? DISK_OPEN_CREATE : 0),
			  &replay->output);
	if (error != 0) {
		replay->made = false;
		return refuse_output(replay, error);
	}
	disk_get_info(replay->output, &info);
	replay->kind = info.is_device ? OUTPUT_DEVICE : OUTPUT_FILE;
	if (info.read_only)
		return refuse_output(replay, -EROFS);
	if (info.is_device && info.size_bytes < replay->total) {
		complaint_set(replay->complaint, path, "the device has %llu bytes, the image %llu",
			      (unsigned long long)info.size_bytes, (unsigned long long)replay->total);
		return -ENOSPC;
	}
	if (!info.is_device && info.size_bytes > 0 && !replay->options->force) {
		complaint_set(replay->complaint, path, "is there already (--force overwrites it)");
		return -EEXIST;
	}
	replay->touched = true;
	if (info.is_device)
		return 0;
	error = disk_set_size(replay->output, 0);
	if (error == 0)
		error = disk_set_size(replay->output, replay->total);
	return error == 0 ? 0 : refuse_output(replay, error);
}

static int open_output(struct replay *replay)
{
	int error = replay_check_output(replay->offline, replay->options->output, replay->complaint);

	if (error != 0)
		return error;
	if (replay->options->output != NULL)
		return open_output_disk(replay);
	replay->kind = OUTPUT_STREAM;
	replay->touched = true;
	return 0;
}

static int write_stream(const uint8_t *bytes, uint64_t length)
{
	while (length > 0) {
		ssize_t count = write(STDOUT_FILENO, bytes, (size_t)length);

		if (count >= 0) {
			bytes += count;
			length -= (uint64_t)count;
		} else if (errno == EAGAIN) {
			struct pollfd wait = { .fd = STDOUT_FILENO, .events = POLLOUT };

			(void)poll(&wait, 1, -1);
		} else if (errno != EINTR) {
			return -errno;
		}
	}
	return 0;
}

static int flush_output(struct replay *replay)
{
	struct stat status;

	if (replay->kind != OUTPUT_STREAM)
		return disk_flush_wait(replay->offline->volume->host, replay->output);
	if (fstat(STDOUT_FILENO, &status) != 0 || (!S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode)))
		return 0;
	return fsync(STDOUT_FILENO) == 0 ? 0 : -errno;
}

/* ---- the plan ---- */

struct plan_wait {
	bool done;
	int error;
};

static void extents_known(struct request *request, int error)
{
	struct plan_wait *wait = request->context;

	wait->done = true;
	wait->error = error;
}

/* Asks what is allocated from plan->next on. Where that cannot be told, all is data. */
static void plan_refill(struct replay *replay)
{
	struct plan *plan = &replay->plan;
	uint64_t left = replay->total - plan->next;
	struct plan_wait wait = { .done = false };
	struct request request = {
		.op = REQUEST_EXTENTS,
		.offset = plan->next,
		.length = left < PLAN_BYTES ? left : PLAN_BYTES,
		.extents = plan->extents,
		.extents_max = PLAN_EXTENTS,
		.complete = extents_known,
		.context = &wait,
	};

	offline_read(replay->offline, replay->options->point, &request);
	while (!wait.done)
		offline_wait(replay->offline);
	plan->refilled = plan->next;
	plan->count = request.extents_count;
	if (wait.error != 0 || plan->count == 0) {
		plan->extents[0] = (struct disk_extent){ .length = request.length };
		plan->count = 1;
	}
	plan->at = 0;
	plan->extent_end = plan->next + plan->extents[0].length;
}

/* How far it goes on from plan->next as a hole, or as data, in whole blocks; a block that is partly a hole is data. */
static uint64_t plan_span(struct replay *replay, bool *hole)
{
	struct plan *plan = &replay->plan;
	uint64_t block_bytes = replay->offline->volume->block_bytes, end;

	for (;;) {
		if (plan->at == plan->count && plan->refilled == plan->next && plan->count > 0) {
			*hole = false; /* none of the answer fills a block */
			end = plan->next + block_bytes;
			return end < replay->total ? end : replay->total;
		}
		if (plan->at == plan->count)
			plan_refill(replay);
		*hole = plan->extents[plan->at].hole;
		end = plan->extent_end;
		if (end >= replay->total)
			end = replay->total;
		else if (*hole)
			end -= end % block_bytes;
		else if (end % block_bytes != 0)
			end += block_bytes - end % block_bytes;
		if (end > replay->total)
			end = replay->total;
		if (end > plan->next)
			return end;
		if (++plan->at < plan->count)
			plan->extent_end += plan->extents[plan->at].length;
	}
}

/* Starts reads until no piece is free, or all is planned. */
static void plan_ahead(struct replay *replay)
{
	struct plan *plan = &replay->plan;

	while (plan->next < replay->total) {
		bool hole;
		uint64_t end = plan_span(replay, &hole), grid = (plan->next / AHEAD_BYTES + 1) * AHEAD_BYTES;

		if (hole && replay->kind == OUTPUT_FILE) {
			replay->done += end - plan->next;
			plan->next = end;
			continue;
		}
		if (end > grid)
			end = grid;
		if (!ahead_start(&replay->ahead, plan->next, end - plan->next, hole))
			return;
		plan->next = end;
	}
}

/* ---- what cannot be read ---- */

static void report_fault(struct replay *replay)
{
	if (replay->has_fault)
		replay->options->skipped(&replay->fault, replay->options->context);
	replay->has_fault = false;
}

static int fault_found(const struct offline_fault *fault, void *context)
{
	struct replay *replay = context;
	char text[OFFLINE_FAULT_TEXT_BYTES];

	if (!replay->options->skip_lost) {
		offline_fault_text(fault, text);
		complaint_set(replay->complaint, offline_point_name(replay->offline, replay->options->point), "%s", text);
		return -EIO;
	}
	if (replay->has_fault && offline_fault_join(&replay->fault, fault))
		return 0;
	report_fault(replay);
	replay->fault = *fault;
	replay->has_fault = true;
	return 0;
}

/* ---- writing ---- */

static void piece_end(struct replay *replay, struct ahead_piece *piece)
{
	replay->done += piece->length;
	ahead_release(&replay->ahead, piece);
}

static void piece_written(struct disk_io *io, int error)
{
	struct piece_writes *writes = io->context;
	struct replay *replay = writes->replay;

	if (error != 0)
		fail(replay, output_name(replay), error);
	if (--writes->pending > 0)
		return;
	replay->writing--;
	piece_end(replay, writes->piece);
}

static void submit_write(struct replay *replay, struct piece_writes *writes, enum disk_op op, uint64_t from,
			 uint64_t to)
{
	struct ahead_piece *piece = writes->piece;
	struct disk_io *io = &writes->io[writes->pending++];

	assert(writes->pending <= WRITES_MAX);
	*io = (struct disk_io){
		.disk = replay->output,
		.op = op,
		.offset = piece->offset + from,
		.length = to - from,
		.single = { .iov_base = piece->buffer + from, .iov_len = (size_t)(to - from) },
		.done = piece_written,
		.context = writes,
	};
	disk_submit(io);
}

/* All of it but what is zero. */
static void write_sparse(struct replay *replay, struct piece_writes *writes)
{
	const struct ahead_piece *piece = writes->piece;
	uint64_t from = 0, at = 0;

	while (at < piece->length) {
		/* aligned in the file, not in the piece */
		uint64_t end = ((piece->offset + at) / SPARSE_BYTES + 1) * SPARSE_BYTES - piece->offset;

		if (end > piece->length)
			end = piece->length;
		if (is_zero(piece->buffer + at, (size_t)(end - at))) {
			if (at > from)
				submit_write(replay, writes, DISK_WRITE, from, at);
			from = end;
		}
		at = end;
	}
	if (at > from)
		submit_write(replay, writes, DISK_WRITE, from, at);
}

static void write_piece(struct replay *replay, struct ahead_piece *piece)
{
	struct piece_writes *writes = &replay->writes[piece->index];
	int error;

	writes->replay = replay;
	writes->piece = piece;
	writes->pending = 0;
	switch (replay->kind) {
	case OUTPUT_FILE:
		write_sparse(replay, writes);
		break;
	case OUTPUT_DEVICE:
		submit_write(replay, writes, piece->hole ? DISK_ZERO : DISK_WRITE, 0, piece->length);
		break;
	case OUTPUT_STREAM:
		if (piece->hole)
			memset(piece->buffer, 0, (size_t)piece->length);
		error = write_stream(piece->buffer, piece->length);
		if (error != 0)
			fail(replay, output_name(replay), error);
		break;
	}
	if (writes->pending > 0)
		replay->writing++;
	else
		piece_end(replay, piece);
}

static void deliver(struct replay *replay, struct ahead_piece *piece)
{
	int error = 0;

	if (piece->error != 0)
		error = offline_salvage(replay->offline, replay->options->point, piece->buffer, piece->offset,
					piece->length, fault_found, replay);
	if (replay->error == 0) /* a write may have failed meanwhile */
		replay->error = error;
	if (replay->error == 0)
		write_piece(replay, piece);
	else
		ahead_release(&replay->ahead, piece);
}

/* ---- all of it ---- */

static void copy_all(struct replay *replay)
{
	const struct replay_options *options = replay->options;
	struct ahead_piece *piece;

	while (replay->error == 0) {
		if (options->is_cancelled(options->context)) {
			replay->error = -EINTR;
			complaint_set(replay->complaint, output_name(replay), "interrupted");
			break;
		}
		plan_ahead(replay);
		piece = ahead_take(&replay->ahead);
		if (piece != NULL)
			deliver(replay, piece);
		else if (replay->writing > 0)
			offline_wait(replay->offline);
		else if (replay->plan.next == replay->total)
			break;
		options->progress(replay->done, replay->total, options->context);
	}
	while (replay->writing > 0)
		offline_wait(replay->offline);
	report_fault(replay);
}

static void finish(struct replay *replay)
{
	int error = flush_output(replay);

	if (error != 0) {
		fail(replay, output_name(replay), error);
		return;
	}
	error = offline_check_origin(replay->offline);
	if (error == -ESTALE) {
		replay->error = error;
		complaint_set(replay->complaint, replay->offline->volume->origin_path, "was changed while it was read");
	} else if (error != 0) {
		fail(replay, replay->offline->volume->origin_path, error);
	}
}

static enum replay_left close_output(struct replay *replay)
{
	disk_close(replay->output);
	if (replay->error == 0)
		return REPLAY_WHOLE;
	if (!replay->touched || (replay->made && unlink(replay->options->output) == 0))
		return REPLAY_UNTOUCHED;
	return REPLAY_INCOMPLETE;
}

int replay_run(struct offline *offline, const struct replay_options *options, enum replay_left *left,
	       struct complaint *complaint)
{
	struct replay *replay = calloc(1, sizeof(*replay));
	int error;

	*left = REPLAY_UNTOUCHED;
	if (replay == NULL) {
		complaint_set(complaint, "", "out of memory");
		return -ENOMEM;
	}
	replay->offline = offline;
	replay->options = options;
	replay->complaint = complaint;
	replay->total = offline->volume->origin_bytes;
	error = ahead_init(&replay->ahead, offline, options->point);
	if (error != 0)
		fail(replay, output_name(replay), error);
	else
		replay->error = open_output(replay);
	if (replay->error == 0)
		copy_all(replay);
	if (replay->error == 0)
		finish(replay);
	ahead_fini(&replay->ahead);
	*left = close_output(replay);
	error = replay->error;
	free(replay);
	return error;
}
