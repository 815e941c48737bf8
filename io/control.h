/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The control socket: one JSON object a line, in each direction. The server's half lives in the event loop, the client's
 * half is blocking. What the objects mean is the command layer's affair.
 *
 * Bounds: a line is at most CONTROL_LINE_BYTES_MAX; at most CONTROL_CLIENTS_MAX clients at once; a client that sends
 * what is not a JSON object gets {"error": ...} and is dropped; one that does not read its replies is dropped when
 * CONTROL_BACKLOG_BYTES_MAX wait for it. Only the owner's processes, and root's, may connect (mode 0600 and SO_PEERCRED).
 */
#ifndef IO_CONTROL_H
#define IO_CONTROL_H

#include <json-c/json.h>

#include "io/loop.h"

#define CONTROL_LINE_BYTES_MAX 65536u
#define CONTROL_CLIENTS_MAX 64u
#define CONTROL_BACKLOG_BYTES_MAX (16u << 20)

struct control;
struct control_client;

struct control_ops {
	/*
	 * One request; the object is borrowed for the call. Answer with control_reply() now or later, any number of times,
	 * until closed() was called for this client. Further requests of a client are delivered as they come.
	 */
	void (*request)(void *context, struct control_client *client, struct json_object *request);
	/* The client is gone (or is being dropped): forget it. Called exactly once for each client. */
	void (*closed)(void *context, struct control_client *client);
};

/* As socket_listen(). `context` is handed to the ops. */
__attribute__((warn_unused_result)) int control_start(struct loop *loop, const char *path, const struct control_ops *ops,
						      void *context, struct control **control);
void control_stop(struct control *control); /* sends what is queued as far as it goes, drops all, removes the socket */

/* Queues one line. Takes over the reference to `reply`. */
void control_reply(struct control_client *client, struct json_object *reply);
/* For the owner's own use; NULL at first. */
void control_client_set_data(struct control_client *client, void *data);
void *control_client_data(const struct control_client *client);

/* The client's half. Returns a descriptor or a negative errno (as socket_connect()). */
__attribute__((warn_unused_result)) int control_connect(const char *path);
/* Sends one line. Takes over the reference. 0 or a negative errno. */
__attribute__((warn_unused_result)) int control_send(int fd, struct json_object *request);
/*
 * Receives one line into *reply (the caller's reference). 0, -EPIPE when the server closed, -EBADMSG for what is not a JSON
 * object, or read's errors. Keeps what came after the line in `buffer`, which starts zeroed and lasts for the connection.
 */
struct control_buffer {
	char *bytes;
	size_t used, size;
};
__attribute__((warn_unused_result)) int control_receive(int fd, struct control_buffer *buffer, struct json_object **reply);
void control_buffer_free(struct control_buffer *buffer);

#endif
