/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the NBD server's files share with each other (and with nobody else): nbd.c has the server and its connections'
 * life, nbd-handshake.c the negotiation, nbd-commands.c the commands and their replies.
 */
#ifndef IO_NBD_CONNECTION_H
#define IO_NBD_CONNECTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/un.h>

#include "io/nbd.h"

#define NBD_IN_FLIGHT_MAX 128u  /* requests of one connection, from the header's arrival until the reply is sent */
#define NBD_INBOX_BYTES 65536u
#define NBD_OPTION_DATA_BYTES_MAX 16384u /* longer: refused; fits the inbox */
#define NBD_OPTION_DROP_BYTES 65536u     /* longer: dropped */
#define NBD_OPTIONS_MAX 32u
#define NBD_OUTBOX_BYTES_HIGH 65536u /* no further option is read while more than this waits to be sent */
#define NBD_ALLOCATION_ID 1u /* the context base:allocation, as we number it */
#define NBD_EXTENTS_MAX 128u
#define NBD_EXTENTS_RANGE_BYTES_MAX (UINT32_C(1) << 30)

/* The usual ones are in nbd.c; tests bring their own. */
struct nbd_limits {
	uint64_t handshake_ns; /* from the connection's beginning to the end of negotiation */
	uint64_t drain_ns;     /* for a client to take its last replies, once the connection is to end */
	uint64_t stall_ns;     /* for a client to let go of the memory it holds up, when others want it */
	unsigned connections_max;
};

struct nbd {
	struct transport transport;
	struct loop *loop;
	struct export_table *exports;
	struct arena *arena;
	struct nbd_limits limits;
	char path[sizeof(((struct sockaddr_un *)NULL)->sun_path)];
	struct loop_source listener; /* fd is -1 once quiesced */
	struct loop_timer accept_again;
	struct loop_timer work;        /* due at once: makes the next turn come without waiting */
	struct loop_timer stall_check; /* runs while there are connections */
	struct loop_hook hook;
	struct export_watcher watcher;
	struct list connections; /* nbd_connection.link: all of them */
	struct list runnable;    /* nbd_connection.runnable_link: to be parsed on in the next turn */
	struct list touched;     /* nbd_connection.touched_link: to be settled at this turn's end */
	size_t connection_bytes_max; /* of arena memory */
	bool quiesced;
	bool full_noted;
	struct nbd_counters counters;
};

/* What the next bytes from the client are, or why there are none. */
enum nbd_stage {
	NBD_STAGE_CLIENT_FLAGS,
	NBD_STAGE_OPTION,
	NBD_STAGE_COMMAND,
	NBD_STAGE_MEMORY,  /* `current` needs a buffer */
	NBD_STAGE_PAYLOAD, /* of `current`, a write */
	NBD_STAGE_SKIP,    /* `skip_bytes` of something refused */
	NBD_STAGE_ENDING,  /* no more input; closed when all is answered */
	NBD_STAGE_DEAD,    /* closed; freed when the engine has given back the last request */
};

/* Why input is left unread. */
enum nbd_blocked {
	NBD_BLOCKED_NOT,
	NBD_BLOCKED_OWN,   /* until some of the connection's own replies are sent */
	NBD_BLOCKED_ARENA, /* until the arena grants a buffer */
};

struct nbd_connection;

struct nbd_request {
	struct request request;
	struct nbd_connection *connection;
	struct list link; /* in one of the connection's lists, or none: being received, or with the engine */
	uint64_t cookie;
	uint16_t command;
	int error; /* 0 or negative errno, once done */
	uint8_t *buffer;
	size_t buffer_bytes; /* whole pages */
	/* The reply: header, then data, which lies in the buffer. */
	uint32_t header_bytes, data_bytes;
	const uint8_t *data;
	uint8_t header[32];
};

struct nbd_connection {
	struct nbd *nbd;
	struct list link, runnable_link, touched_link;
	struct loop_source source;
	uint32_t events; /* being watched for (a hang-up always is) */
	struct loop_timer deadline;

	enum nbd_stage stage;
	enum nbd_blocked blocked;
	bool no_zeroes, structured, mute; /* mute: the client has closed, or takes no more replies */

	/* Negotiation. */
	unsigned option_count;
	bool allocation;          /* base:allocation was chosen, ... */
	char allocation_name[64]; /* ... for the export of this name */
	uint8_t *outbox;
	size_t outbox_bytes, outbox_sent, outbox_room;

	/* Transmission. */
	struct export *export; /* a reference; NULL before */
	struct nbd_request *current;
	uint32_t payload_received;
	uint32_t skip_bytes;
	struct arena_waiter waiter;
	size_t held_bytes; /* of arena memory */
	bool freed;        /* something that NBD_BLOCKED_OWN waits for has come back since it was last looked at */

	unsigned engine_count; /* requests that are with the engine */
	struct list done;      /* to be encoded */
	struct list replies;   /* to be sent; the first one from byte `first_sent` on */
	size_t first_sent;
	uint64_t unsent_bytes; /* of replies */
	struct loop_timer pace;        /* runs while further replies wait for the client's next request */
	unsigned pace_off, pace_waits; /* so many long rows go out in one piece; the last such number */

	/* To be reached by stall_due_ns; 0: not being watched. */
	uint64_t stall_due_ns, stall_sent, stall_received;
	uint64_t sent_bytes, received_bytes;

	struct list free_requests;
	unsigned pool_used; /* of pool[], the requests beyond were never touched */
	struct nbd_request pool[NBD_IN_FLIGHT_MAX];

	size_t inbox_start, inbox_end;
	uint8_t inbox[NBD_INBOX_BYTES];
};

static inline const uint8_t *nbd_inbox(const struct nbd_connection *connection)
{
	return connection->inbox + connection->inbox_start;
}

static inline size_t nbd_inbox_bytes(const struct nbd_connection *connection)
{
	return connection->inbox_end - connection->inbox_start;
}

/* nbd.c */
__attribute__((warn_unused_result)) int nbd_start_limited(struct loop *loop, struct export_table *exports,
							  struct arena *arena, const char *path,
							  const struct nbd_limits *limits,
							  struct transport **transport);
void nbd_touch(struct nbd_connection *connection);   /* have it settled at the turn's end */
void nbd_unblock(struct nbd_connection *connection); /* have it parsed on in the next turn */
void nbd_end(struct nbd_connection *connection);     /* no more input; what is under way is answered, then closed */
void nbd_drop(struct nbd_connection *connection);    /* closed now; requests in flight complete into the void */
void nbd_violation(struct nbd_connection *connection); /* counts, and drops */

/*
 * The parser's steps: each takes one thing from the inbox. False: more input is needed, or the connection is blocked,
 * or it came to its end.
 */
bool nbd_take_client_flags(struct nbd_connection *connection);
bool nbd_take_option(struct nbd_connection *connection);
bool nbd_take_command(struct nbd_connection *connection);
bool nbd_take_memory(struct nbd_connection *connection);
bool nbd_take_payload(struct nbd_connection *connection);

/* nbd-handshake.c */
void nbd_greet(struct nbd_connection *connection);

/* nbd-commands.c */
void nbd_memory_granted(struct arena_waiter *waiter, void *buffer);
/* Nobody is left to take the answer of the read that waits for memory: it fails, and parsing goes on. */
void nbd_forgo_read(struct nbd_connection *connection);
/* The transmission flags of an export. */
uint16_t nbd_export_flags(const struct nbd_connection *connection, const struct export *export);
/* Makes replies of what is done; a write's buffer goes back at once. */
void nbd_encode_replies(struct nbd_connection *connection);
/* Gives back the request and its buffer. */
void nbd_request_release(struct nbd_connection *connection, struct nbd_request *request);

#endif
