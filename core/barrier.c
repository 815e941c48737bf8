/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Barriers of the origin that requests ask for: FLUSH, and FUA where the disk has no such thing.
 *
 *   barrier_join() --> waiting --(the turn's end, none under way)--> joined --DISK_FLUSH--> request_end()
 *
 * One barrier is under way at a time, and all that has asked for one meanwhile shares the next: it begins after they
 * asked, so it covers what they stand for. After one that failed none counts as good (rule 9 of the design).
 *
 * A write with FUA is given to the disk as such where the disk has FUA, or has no volatile cache; and where it would be
 * alone. Else the kernel would make a flush of its own for each: it is written without, and joins.
 */
#include <assert.h>
#include <errno.h>

#include "core/engine.h"
#include "io/log.h"

int origin_barrier_result(struct volume *volume, int error)
{
	if (volume->origin_barrier_failed)
		return error != 0 ? error : -EIO;
	if (error == 0)
		return 0;
	volume->origin_barrier_failed = true;
	log_warning("origin %s: a flush failed (%s): what was written since the last good one may be lost; flushes fail from now on",
		    volume->origin_path, strerror(-error));
	return error;
}

void barrier_join(struct volume *volume, struct request *request)
{
	if (volume->origin_barrier_failed)
		request_end(volume, request, -EIO);
	else
		list_append(&volume->barrier_waiting, &request->waiting_link);
}

static void barrier_done(struct disk_io *io, int error)
{
	struct volume *volume = io->context;
	struct list joined, *link;

	error = origin_barrier_result(volume, error);
	list_init(&joined);
	list_splice(&joined, &volume->barrier_joined);
	while ((link = list_pop(&joined)) != NULL)
		request_end(volume, container_of(link, struct request, waiting_link), error);
}

void barrier_turn(struct volume *volume)
{
	if (list_is_empty(&volume->barrier_waiting) || !list_is_empty(&volume->barrier_joined))
		return;
	list_splice(&volume->barrier_joined, &volume->barrier_waiting);
	volume->counters.origin_barriers++;
	volume->barrier_io = (struct disk_io){
		.disk = volume->origin, .op = DISK_FLUSH, .done = barrier_done, .context = volume
	};
	disk_submit(&volume->barrier_io);
}

bool barrier_prefers_fua(const struct volume *volume)
{
	return volume->origin_fua || (volume->fua_now == 0 && list_is_empty(&volume->barrier_waiting) &&
				      list_is_empty(&volume->barrier_joined));
}
