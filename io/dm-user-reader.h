/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A thread that reads what the kernel asks for, and hands it over to the loop's thread. See dm-user-reader.c.
 *
 * All functions are for the loop's thread.
 */
#ifndef IO_DM_USER_READER_H
#define IO_DM_USER_READER_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>

#include "io/dm-user-protocol.h"
#include "io/list.h"

#define DM_USER_READ_AHEAD_MAX 16u /* messages that were read and not taken */

/* Readers ring when they have something for the loop: they stand in `rung` then. */
struct dm_user_bell {
	pthread_mutex_t mutex; /* guards `rung`, and of every reader what is said there */
	struct list rung;      /* struct dm_user_reader.link */
	int event_fd;          /* the owner's; counted up when `rung` was empty */
};

struct dm_user_reader {
	struct dm_user_bell *bell;
	int fd; /* of the channel; the owner's */
	pthread_t thread;
	bool running; /* the thread is to be stopped; the loop's own */

	/* Guarded by the bell's mutex. */
	struct list link;
	pthread_cond_t wake; /* the reader: there is room, an order, or it is to stop */
	pthread_cond_t gone; /* the loop: the reader has ended */
	struct dm_user_message messages[DM_USER_READ_AHEAD_MAX];
	unsigned first, count;
	uint8_t *order_buffer;
	size_t order_bytes; /* 0: there is no order */
	bool filled, stopping, ended;
	int error;
};

void dm_user_bell_init(struct dm_user_bell *bell, int event_fd);
void dm_user_bell_destroy(struct dm_user_bell *bell); /* every reader has been stopped */
/* The next reader that has rung and was not looked at since; NULL: none. */
struct dm_user_reader *dm_user_bell_next(struct dm_user_bell *bell);

/* Starts reading `fd`. Returns 0 or pthread_create's errors, and has to be stopped if it was 0. */
__attribute__((warn_unused_result)) int dm_user_reader_start(struct dm_user_reader *reader, struct dm_user_bell *bell,
							     int fd);
/*
 * Ends the thread, whatever it waits for. It touches neither a buffer nor the descriptor afterwards, and rings no more.
 * Messages that were not taken are lost.
 */
void dm_user_reader_stop(struct dm_user_reader *reader);

/* The next message, if there is one. The payload of a WRITE is to be ordered before another comes. */
bool dm_user_reader_take(struct dm_user_reader *reader, struct dm_user_message *message);
/* Have the next `bytes` (above 0) of the payload put to `buffer`; NULL: thrown away. One order at a time. */
void dm_user_reader_order(struct dm_user_reader *reader, uint8_t *buffer, size_t bytes);
/* True, once, when the order was carried out. */
bool dm_user_reader_is_filled(struct dm_user_reader *reader);
/*
 * True when there will be no more: *error is -ENOTBLK where the device was removed, -EPROTO where the kernel did not
 * speak dm-user's protocol, or read's error.
 */
bool dm_user_reader_has_ended(struct dm_user_reader *reader, int *error);

#endif
