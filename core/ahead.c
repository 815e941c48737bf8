/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Reading ahead. See ahead.h. */
#include "core/ahead.h"

#include <errno.h>
#include <stdlib.h>

int ahead_init(struct ahead *ahead, struct offline *offline, size_t point)
{
	ahead->offline = offline;
	ahead->point = point;
	list_init(&ahead->free);
	list_init(&ahead->reading);
	ahead->memory = aligned_alloc(ARENA_PAGE_BYTES, AHEAD_PIECES * AHEAD_BYTES);
	if (ahead->memory == NULL)
		return -ENOMEM;
	for (unsigned i = 0; i < AHEAD_PIECES; i++) {
		ahead->pieces[i].index = i;
		ahead->pieces[i].buffer = ahead->memory + i * AHEAD_BYTES;
		list_append(&ahead->free, &ahead->pieces[i].link);
	}
	return 0;
}

void ahead_fini(struct ahead *ahead)
{
	if (ahead->memory == NULL)
		return;
	while (ahead_take(ahead) != NULL)
		;
	free(ahead->memory);
	ahead->memory = NULL;
}

static void piece_read(struct request *request, int error)
{
	struct ahead_piece *piece = request->context;

	piece->error = error;
	piece->under_way = false;
}

bool ahead_start(struct ahead *ahead, uint64_t offset, uint64_t length, bool hole)
{
	struct list *link = list_pop(&ahead->free);
	struct ahead_piece *piece;

	if (link == NULL)
		return false;
	piece = container_of(link, struct ahead_piece, link);
	piece->offset = offset;
	piece->length = length;
	piece->hole = hole;
	piece->error = 0;
	piece->under_way = !hole;
	list_append(&ahead->reading, &piece->link);
	if (hole)
		return true;
	piece->request = (struct request){
		.op = REQUEST_READ,
		.offset = offset,
		.length = length,
		.buffer = piece->buffer,
		.complete = piece_read,
		.context = piece,
	};
	offline_read(ahead->offline, ahead->point, &piece->request);
	return true;
}

struct ahead_piece *ahead_take(struct ahead *ahead)
{
	struct list *link = list_pop(&ahead->reading);
	struct ahead_piece *piece;

	if (link == NULL)
		return NULL;
	piece = container_of(link, struct ahead_piece, link);
	while (piece->under_way)
		offline_wait(ahead->offline);
	return piece;
}

void ahead_release(struct ahead *ahead, struct ahead_piece *piece)
{
	list_append(&ahead->free, &piece->link);
}
