/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the dm-user transport's files share with each other (and with nobody else): dm-user.c has the transport's and the
 * devices' life, dm-user-requests.c messages and replies, dm-user-reader.c the threads that read, dm-user-node.c the
 * making and removing of devices.
 */
#ifndef IO_DM_USER_DEVICE_H
#define IO_DM_USER_DEVICE_H

#include "io/dm-user-node.h"
#include "io/dm-user-reader.h"
#include "io/dm-user.h"
#include "io/workers.h"

#define DM_USER_REQUESTS_MAX 32u /* of a channel, from the message's arrival until the reply is written */
#define DM_USER_PIECE_BYTES ((uint64_t)1 << 20)     /* a longer write is received and carried out in pieces */
#define DM_USER_READ_BYTES_MAX ((uint64_t)256 << 20) /* a longer read is refused */

/* What a request waits for. */
enum dm_user_step {
	DM_USER_STEP_PREFLUSH, /* the flush before a write */
	DM_USER_STEP_MEMORY,   /* a buffer */
	DM_USER_STEP_PAYLOAD,  /* the payload of the next piece */
	DM_USER_STEP_ENGINE,
	DM_USER_STEP_REFUSE, /* its payload is to be thrown away, ... */
	DM_USER_STEP_SKIP,   /* ... and is being */
};

struct dm_user_channel;

struct dm_user_request {
	struct request request;
	struct dm_user_channel *channel;
	struct list link; /* in dm_user.done, or the channel's free_requests, or none */
	struct dm_user_message message;
	enum dm_user_step step;
	uint64_t at; /* bytes that are done with */
	int error;   /* 0 or negative errno, once done */
	uint8_t *memory;
	size_t memory_bytes;
	bool mapped; /* the memory is no arena's: a read too long for that */
};

/*
 * One open of /dev/dm-user/NAME. Requests are answered on the channel they came from. `current` is the request that
 * the next message has to wait for: its payload was not received whole yet, or it has no buffer.
 */
struct dm_user_channel {
	struct dm_user_device *device;
	struct dm_user_reader reader;
	struct list runnable_link;
	struct dm_user_request *current;
	struct arena_waiter waiter;
	bool waiting; /* in the arena's queue */
	bool broken;  /* it takes no replies any more */
	bool closing; /* no more messages; closed when its last request is answered */
	unsigned busy_count; /* requests that are not free */
	struct list free_requests;
	unsigned pool_used; /* of pool[], the requests beyond were never touched */
	struct dm_user_request pool[DM_USER_REQUESTS_MAX];
};

enum dm_user_state {
	DM_USER_CREATING, /* by a worker */
	DM_USER_SERVING,
	DM_USER_REMOVING, /* by a worker; served meanwhile, with errors */
	DM_USER_REMOVED,  /* freed when the engine holds none of its requests */
};

struct dm_user_device {
	struct dm_user *dm_user;
	struct list link;
	struct export *export; /* a reference */
	enum dm_user_state state;
	bool unwanted; /* the export is gone: nothing more is submitted */
	struct dm_user_node node;
	struct workers_job job; /* on the node, which is the worker's meanwhile */
	int job_error;
	bool lost; /* somebody else has removed it, and this was told */
	struct dm_user_channel channels[]; /* node.channel_count */
};

struct dm_user {
	struct transport transport;
	struct loop *loop;
	struct export_table *exports;
	struct arena *arena;
	struct workers *workers; /* one: what is asked of the kernel is done in the order it was asked */
	int control;
	char *name;

	struct loop_source event; /* of the bell, and of the workers */
	struct dm_user_bell bell;
	struct loop_timer work; /* due at once: makes the next turn come without waiting */
	struct loop_hook hook;
	struct export_watcher watcher;

	struct list devices;  /* dm_user_device.link */
	struct list runnable; /* dm_user_channel.runnable_link: to go on in the next turn */
	struct list done;     /* dm_user_request.link: come back from the engine, or refused */
	struct list starved;  /* dm_user_channel.runnable_link: wait until our share of the arena has room */
	size_t held_bytes, held_bytes_max; /* of arena memory */
	unsigned engine_count;
	bool quiesced, forced;
	char holder[TRANSPORT_TEXT_BYTES]; /* for is_detached() */
	bool is_closing; /* channels are to be closed, or devices to be freed */
	bool long_read_noted;
};

/* dm-user.c */
void dm_user_work_soon(struct dm_user *dm_user);             /* have the next turn come without waiting */
void dm_user_touch(struct dm_user_channel *channel);         /* have the channel go on in the next turn */
void dm_user_channel_close(struct dm_user_channel *channel); /* stops its reader; closed when all is answered */

/* dm-user-requests.c */
void dm_user_channel_init(struct dm_user_channel *channel, struct dm_user_device *device);
/* Takes messages and goes on with the current request, as far as that is possible now. Enters the engine. */
void dm_user_advance(struct dm_user_channel *channel);
/* Goes on with what is done, or answers it: everything in dm_user->done. Doesn't enter the engine. */
void dm_user_settle(struct dm_user *dm_user);
/* The request that is being received will never be whole, or must not wait any longer. The reader is stopped. */
void dm_user_abandon(struct dm_user_channel *channel);

/*
 * What the message is to the engine: fills in op, flags, offset and length. *preflush: a flush goes before it. Pure.
 * 0; -EOPNOTSUPP for what is never done; -EPERM, -EINVAL (out of bounds, too long to read).
 */
__attribute__((warn_unused_result)) int dm_user_classify(const struct dm_user_message *message,
							 const struct export *export, struct request *request,
							 bool *preflush);

#endif
