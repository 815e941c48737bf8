/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What differs between two points i < j of a chain (j may be the origin as it is now): a block that was overwritten
 * between them was preserved in one of the stores i to j-1, since one of these was the newest then. So the blocks
 * that may differ are the union of these stores' maps. It is the same in both directions.
 *
 * Those in a fold need no rule of their own: what the older one lacks by now is still in the other.
 *
 * A broken store among them did not get all that was overwritten: then there is no answer. Broken ones elsewhere do
 * no harm.
 *
 * The maps are walked once, side by side. With `exact`, the ranges found are read at both points, some ahead, and
 * compared block by block.
 */
#include "core/diff.h"

#include <errno.h>
#include <stdlib.h>

#include "core/ahead.h"

struct diff {
	struct offline *offline;
	const struct diff_options *options;
	struct complaint *complaint;
	size_t older, newer; /* points */
	block_t block;       /* how far the maps were walked */
	uint64_t offset, end; /* the range found last, not told yet: more may join it */
	uint64_t piece_next, piece_end; /* exact: of the run found last, what is not being read yet */
	struct ahead ahead[2];
};

static size_t older_point(const struct diff_options *options)
{
	return options->from < options->to ? options->from : options->to;
}

static size_t newer_point(const struct diff_options *options)
{
	return options->from < options->to ? options->to : options->from;
}

int diff_check(const struct offline *offline, const struct diff_options *options, struct complaint *complaint)
{
	const struct volume *volume = offline->volume;

	for (size_t i = older_point(options); i < newer_point(options); i++) {
		const struct superblock *superblock = &volume->chain[i]->store->superblock;

		if (!store_is_broken(volume->chain[i]->store))
			continue;
		complaint_set(complaint, superblock->name,
			      "is broken (%s): not all that was overwritten after it is known, so the ranges would be wrong",
			      broken_reason_text(superblock->broken.reason));
		return -ENODATA;
	}
	return 0;
}

/* The next run of blocks, all of which one of the maps or another has, from diff->block on. False: there is none. */
static bool next_run(struct diff *diff, block_t *first, uint64_t *count)
{
	const struct volume *volume = diff->offline->volume;
	block_t block_count = volume_block_count(volume);

	*count = 0;
	while (diff->block < block_count) {
		uint64_t limit = block_count - diff->block;
		bool found = false;

		for (size_t i = diff->older; i < diff->newer && !found; i++) {
			struct map_run run = map_find(volume->chain[i]->store->map, diff->block, limit);

			found = run.kind != MAP_ABSENT;
			limit = run.count;
		}
		if (found && *count == 0)
			*first = diff->block;
		diff->block += limit;
		if (found)
			*count += limit;
		else if (*count > 0)
			break;
	}
	return *count > 0;
}

static void tell(struct diff *diff)
{
	if (diff->end > diff->offset)
		diff->options->range(diff->offset, diff->end - diff->offset, diff->options->context);
}

static void add_range(struct diff *diff, uint64_t offset, uint64_t end)
{
	if (end > diff->offline->volume->origin_bytes)
		end = diff->offline->volume->origin_bytes;
	if (diff->end == offset && diff->end > diff->offset) {
		diff->end = end;
		return;
	}
	tell(diff);
	diff->offset = offset;
	diff->end = end;
}

static void diff_maps(struct diff *diff)
{
	uint64_t block_bytes = diff->offline->volume->block_bytes, count;
	block_t first;

	while (next_run(diff, &first, &count))
		add_range(diff, first * block_bytes, (first + count) * block_bytes);
	tell(diff);
}

/* ---- exact ---- */

/* Starts to read at both points what may differ, until no piece is free or all is being read. */
static void read_ahead(struct diff *diff)
{
	const struct volume *volume = diff->offline->volume;

	for (;;) {
		uint64_t end = (diff->piece_next / AHEAD_BYTES + 1) * AHEAD_BYTES, count;
		block_t first;

		if (diff->piece_next == diff->piece_end) {
			if (!next_run(diff, &first, &count))
				return;
			diff->piece_next = first * volume->block_bytes;
			diff->piece_end = (first + count) * volume->block_bytes;
			if (diff->piece_end > volume->origin_bytes)
				diff->piece_end = volume->origin_bytes;
			continue;
		}
		if (end > diff->piece_end)
			end = diff->piece_end;
		if (!ahead_start(&diff->ahead[0], diff->piece_next, end - diff->piece_next, false))
			return;
		/* both have as many pieces, and are taken and released together */
		(void)!ahead_start(&diff->ahead[1], diff->piece_next, end - diff->piece_next, false);
		diff->piece_next = end;
	}
}

struct unreadable {
	struct diff *diff;
	size_t point;
};

static int fault_found(const struct offline_fault *fault, void *context)
{
	const struct unreadable *unreadable = context;
	struct diff *diff = unreadable->diff;
	char text[OFFLINE_FAULT_TEXT_BYTES];

	offline_fault_text(fault, text);
	complaint_set(diff->complaint, offline_point_name(diff->offline, unreadable->point), "%s", text);
	return -EIO;
}

static int check_piece(struct diff *diff, unsigned which, const struct ahead_piece *piece)
{
	struct unreadable unreadable = { diff, diff->ahead[which].point };

	return piece->error == 0 ? 0 : offline_salvage(diff->offline, unreadable.point, piece->buffer, piece->offset,
						       piece->length, fault_found, &unreadable);
}

static void compare(struct diff *diff, const struct ahead_piece *a, const struct ahead_piece *b)
{
	uint64_t block_bytes = diff->offline->volume->block_bytes;

	for (uint64_t at = 0; at < a->length; at += block_bytes) {
		uint64_t bytes = a->length - at < block_bytes ? a->length - at : block_bytes;

		if (memcmp(a->buffer + at, b->buffer + at, (size_t)bytes) != 0)
			add_range(diff, a->offset + at, a->offset + at + bytes);
	}
}

static int diff_contents(struct diff *diff)
{
	int error = 0;

	for (;;) {
		struct ahead_piece *pieces[2];

		read_ahead(diff);
		for (unsigned i = 0; i < 2; i++)
			pieces[i] = ahead_take(&diff->ahead[i]);
		if (pieces[0] == NULL || pieces[1] == NULL)
			break;
		for (unsigned i = 0; i < 2 && error == 0; i++)
			error = check_piece(diff, i, pieces[i]);
		if (error != 0)
			return error;
		compare(diff, pieces[0], pieces[1]);
		for (unsigned i = 0; i < 2; i++)
			ahead_release(&diff->ahead[i], pieces[i]);
	}
	tell(diff);
	error = offline_check_origin(diff->offline);
	if (error != 0)
		complaint_set(diff->complaint, diff->offline->volume->origin_path, "%s",
			      error == -ESTALE ? "was changed while it was read" : strerror(-error));
	return error;
}

static int run(struct diff *diff)
{
	int error;

	if (!diff->options->exact) {
		diff_maps(diff);
		return 0;
	}
	error = ahead_init(&diff->ahead[0], diff->offline, diff->older);
	if (error == 0)
		error = ahead_init(&diff->ahead[1], diff->offline, diff->newer);
	if (error == 0)
		error = diff_contents(diff);
	else
		complaint_set(diff->complaint, "", "out of memory");
	ahead_fini(&diff->ahead[0]);
	ahead_fini(&diff->ahead[1]);
	return error;
}

int diff_run(struct offline *offline, const struct diff_options *options, struct complaint *complaint)
{
	struct diff *diff = calloc(1, sizeof(*diff));
	int error;

	if (diff == NULL) {
		complaint_set(complaint, "", "out of memory");
		return -ENOMEM;
	}
	diff->offline = offline;
	diff->options = options;
	diff->complaint = complaint;
	diff->older = older_point(options);
	diff->newer = newer_point(options);
	error = run(diff);
	free(diff);
	return error;
}
