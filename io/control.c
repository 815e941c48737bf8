/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The control socket.
 *
 *     accept --> reading lines --(request)--> the owner --(control_reply)--> queue --> socket
 *                     |                                          |             |
 *                     +-- end, error, not JSON, too long --> doomed <----------+ too much queued, peer gone
 *                                                              |
 *                                            reap timer: closed(), then freed
 *
 * A client that is to go is only marked (doomed): it is not read any more and replies to it are thrown away, but it
 * stays in memory until the reap timer, which is due at once, runs from the loop. So a client never vanishes from under
 * a function that uses it: neither the owner's request(), which may reply as it likes, nor ours further up.
 *
 * control_stop() may be called from within request() and closed(), too: everything is closed then, and only the memory
 * waits until the callback has returned.
 *
 * A reply is sent at once as far as the socket takes it; the rest waits for EPOLLOUT. With CONTROL_CLIENTS_MAX clients,
 * further ones wait in the socket's backlog.
 */
#include "io/control.h"

#include <assert.h>
#include <errno.h>
#include <json-c/printbuf.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/socket.h"
#include "io/text.h"

#define REQUEST_DEPTH_MAX 16
#define REPLY_DEPTH_MAX 32
#define ACCEPT_PAUSE_NS (UINT64_C(100) * 1000000)
#define JSON_FLAGS (JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE)

struct control {
	struct loop *loop;
	const struct control_ops *ops;
	void *context;
	char *path;
	dev_t path_device; /* of the socket we made there */
	ino_t path_inode;
	struct loop_source listener;
	bool accepting;
	struct loop_timer accept_timer; /* accepts again, after the machine had no descriptor or memory left */
	struct loop_timer reap_timer;
	struct json_tokener *tokener;
	struct list clients; /* struct control_client.link */
	unsigned client_count;
	unsigned in_callback;
	bool stopped;
};

struct control_client {
	struct control *control;
	struct loop_source source;
	struct list link;
	void *data;
	bool doomed;
	bool wants_out;
	struct printbuf *queue; /* bytes from queue_sent on wait for the socket; NULL: none do */
	size_t queue_sent;
	char *line; /* CONTROL_LINE_BYTES_MAX, the first line_used of them received */
	size_t line_used;
};

static void queue_drop(struct control_client *client)
{
	if (client->queue)
		printbuf_free(client->queue);
	client->queue = NULL;
	client->queue_sent = 0;
}

static void client_free(struct control_client *client)
{
	queue_drop(client);
	free(client->line);
	free(client);
}

static void control_free(struct control *control)
{
	struct list *link;

	while ((link = list_pop(&control->clients)))
		client_free(container_of(link, struct control_client, link));
	json_tokener_free(control->tokener);
	free(control->path);
	free(control);
}

static void callback_begin(struct control *control)
{
	control->in_callback++;
}

/* Returns false when the callback stopped it all: nothing of it may be touched then. */
static bool callback_end(struct control *control)
{
	control->in_callback--;
	if (!control->stopped)
		return true;
	if (control->in_callback == 0)
		control_free(control);
	return false;
}

static void client_doom(struct control_client *client)
{
	struct control *control = client->control;

	if (client->doomed)
		return;
	client->doomed = true;
	loop_remove(control->loop, &client->source);
	loop_timer_set(control->loop, &control->reap_timer, loop_now_ns(control->loop));
}

/* Closes what the client has open; its memory stays. */
static void client_release(struct control_client *client)
{
	loop_remove(client->control->loop, &client->source);
	(void)close(client->source.fd);
	queue_drop(client);
	client->doomed = true;
}

/* Sends what the socket takes. */
static void client_send(struct control_client *client)
{
	bool wants_out;

	while (client->queue && client->queue_sent < (size_t)client->queue->bpos) {
		const size_t waiting = (size_t)client->queue->bpos - client->queue_sent;
		const ssize_t sent = send(client->source.fd, client->queue->buf + client->queue_sent, waiting,
					  MSG_NOSIGNAL | MSG_DONTWAIT);

		if (sent < 0 && errno == EINTR)
			continue;
		if (sent < 0 && errno != EAGAIN) {
			client_doom(client);
			return;
		}
		if (sent < 0)
			break;
		client->queue_sent += (size_t)sent;
	}
	wants_out = client->queue && client->queue_sent < (size_t)client->queue->bpos;
	if (!wants_out)
		queue_drop(client);
	if (wants_out == client->wants_out || client->doomed)
		return;
	client->wants_out = wants_out;
	if (loop_modify(client->control->loop, &client->source, wants_out ? EPOLLIN | EPOLLOUT : EPOLLIN) < 0)
		client_doom(client);
}

/* Appends the text of `reply` and a newline to the queue. */
static int queue_append(struct control_client *client, struct json_object *reply)
{
	size_t length = 0, waiting;
	const char *text = json_object_to_json_string_length(reply, JSON_FLAGS, &length);

	if (!client->queue)
		client->queue = printbuf_new();
	if (!text || !client->queue)
		return -ENOMEM;
	waiting = (size_t)client->queue->bpos - client->queue_sent;
	if (length + 1 > CONTROL_BACKLOG_BYTES_MAX - waiting)
		return -ENOBUFS;
	/* What is sent goes when it is the larger part: each byte is moved once at most, on average. */
	if (client->queue_sent > waiting) {
		memmove(client->queue->buf, client->queue->buf + client->queue_sent, waiting);
		client->queue->bpos = (int)waiting;
		client->queue_sent = 0;
	}
	if (printbuf_memappend(client->queue, text, (int)length) < 0 || printbuf_memappend(client->queue, "\n", 1) < 0)
		return -ENOMEM;
	return 0;
}

void control_reply(struct control_client *client, struct json_object *reply)
{
	if (!client->doomed) {
		if (queue_append(client, reply) < 0)
			client_doom(client);
		else if (!client->wants_out)
			client_send(client);
	}
	json_object_put(reply);
}

void control_client_set_data(struct control_client *client, void *data)
{
	client->data = data;
}

void *control_client_data(const struct control_client *client)
{
	return client->data;
}

/* NULL for what is not one JSON object and nothing else. */
static struct json_object *parse_line(struct json_tokener *tokener, const char *line, size_t bytes)
{
	struct json_object *object;

	if (memchr(line, '\0', bytes) || !text_is_utf8(line, bytes))
		return NULL;
	json_tokener_reset(tokener);
	json_tokener_set_flags(tokener, JSON_TOKENER_STRICT);
	object = json_tokener_parse_ex(tokener, line, (int)bytes);
	if (json_tokener_get_error(tokener) != json_tokener_success || json_tokener_get_parse_end(tokener) != bytes ||
	    !json_object_is_type(object, json_type_object)) {
		json_object_put(object);
		return NULL;
	}
	return object;
}

static void client_refuse(struct control_client *client, const char *text)
{
	struct json_object *reply = json_object_new_object();

	if (reply)
		json_object_object_add(reply, "error", json_object_new_string(text));
	control_reply(client, reply);
	client_doom(client);
}

/* Hands the line to the owner. False when that stopped it all. */
static bool client_request(struct control_client *client, const char *line, size_t bytes)
{
	struct control *control = client->control;
	struct json_object *request = parse_line(control->tokener, line, bytes);

	if (!request) {
		client_refuse(client, "not a JSON object");
		return true;
	}
	callback_begin(control);
	control->ops->request(control->context, client, request);
	json_object_put(request);
	return callback_end(control);
}

/* Takes the whole lines out of the line buffer. False when the owner stopped it all. */
static bool client_lines(struct control_client *client)
{
	size_t at = 0;

	while (!client->doomed && at < client->line_used) {
		const char *start = client->line + at;
		const char *end = memchr(start, '\n', client->line_used - at);

		if (!end)
			break;
		at += (size_t)(end - start) + 1;
		if (!client_request(client, start, (size_t)(end - start)))
			return false;
	}
	client->line_used -= at;
	memmove(client->line, client->line + at, client->line_used);
	return true;
}

static void client_ready(struct loop_source *source, uint32_t events)
{
	struct control_client *client = source->context;
	ssize_t got;

	if (events & EPOLLOUT)
		client_send(client);
	if (client->doomed || !(events & (EPOLLIN | EPOLLHUP | EPOLLERR)))
		return;
	got = recv(source->fd, client->line + client->line_used, CONTROL_LINE_BYTES_MAX - client->line_used,
		   MSG_DONTWAIT);
	if (got > 0) {
		client->line_used += (size_t)got;
		if (client_lines(client) && !client->doomed && client->line_used == CONTROL_LINE_BYTES_MAX)
			client_refuse(client, "line too long");
	} else if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
		client_doom(client);
	}
}

static void set_accepting(struct control *control, bool accepting)
{
	if (accepting == control->accepting)
		return;
	control->accepting = accepting;
	if (loop_modify(control->loop, &control->listener, accepting ? EPOLLIN : 0) < 0 && accepting) {
		control->accepting = false;
		loop_timer_set(control->loop, &control->accept_timer, loop_now_ns(control->loop) + ACCEPT_PAUSE_NS);
	}
}

static int client_create(struct control *control, int fd)
{
	struct control_client *client = calloc(1, sizeof(*client));
	int error;

	if (!client)
		return -ENOMEM;
	client->control = control;
	client->source = (struct loop_source){ .fd = fd, .ready = client_ready, .context = client };
	client->line = malloc(CONTROL_LINE_BYTES_MAX);
	if (!client->line) {
		free(client);
		return -ENOMEM;
	}
	error = loop_add(control->loop, &client->source, EPOLLIN);
	if (error < 0) {
		client_free(client);
		return error;
	}
	list_append(&control->clients, &client->link);
	control->client_count++;
	return 0;
}

static void listener_ready(struct loop_source *source, uint32_t events)
{
	struct control *control = source->context;

	(void)events;
	/* One in each call is enough: what else waits is told again in the next turn. */
	if (control->client_count < CONTROL_CLIENTS_MAX) {
		int fd = socket_accept(source->fd);
		int error = fd;

		if (fd >= 0) {
			error = client_create(control, fd);
			if (error < 0)
				(void)close(fd);
		}
		if (error == -EMFILE || error == -ENFILE || error == -ENOMEM || error == -ENOBUFS || error == -ENOSPC) {
			set_accepting(control, false);
			loop_timer_set(control->loop, &control->accept_timer,
				       loop_now_ns(control->loop) + ACCEPT_PAUSE_NS);
		}
	}
	if (control->client_count >= CONTROL_CLIENTS_MAX)
		set_accepting(control, false);
}

static void accept_again(struct loop_timer *timer)
{
	struct control *control = timer->context;

	if (control->client_count < CONTROL_CLIENTS_MAX)
		set_accepting(control, true);
}

static void reap(struct loop_timer *timer)
{
	struct control *control = timer->context;

	/* closed() may doom others, but only this loop frees any. */
	list_for_each_safe(link, &control->clients) {
		struct control_client *client = container_of(link, struct control_client, link);

		if (!client->doomed)
			continue;
		callback_begin(control);
		list_remove(&client->link);
		control->client_count--;
		control->ops->closed(control->context, client);
		client_release(client);
		client_free(client);
		if (!callback_end(control))
			return;
	}
	if (list_is_empty(&control->accept_timer.link))
		set_accepting(control, true);
}

static int control_set_up(struct control *control, const char *path)
{
	struct stat status = { 0 };
	int error;

	control->path = strdup(path);
	control->tokener = json_tokener_new_ex(REQUEST_DEPTH_MAX);
	if (!control->path || !control->tokener)
		return -ENOMEM;
	control->listener.fd = socket_listen(path);
	if (control->listener.fd < 0)
		return control->listener.fd;
	error = loop_add(control->loop, &control->listener, EPOLLIN);
	if (error == 0 && lstat(path, &status) < 0)
		error = -errno;
	if (error < 0) {
		loop_remove(control->loop, &control->listener);
		(void)close(control->listener.fd);
		(void)unlink(path);
		return error;
	}
	control->path_device = status.st_dev;
	control->path_inode = status.st_ino;
	control->accepting = true;
	return 0;
}

int control_start(struct loop *loop, const char *path, const struct control_ops *ops, void *context,
		  struct control **control)
{
	struct control *made = calloc(1, sizeof(*made));
	int error;

	if (!made)
		return -ENOMEM;
	made->loop = loop;
	made->ops = ops;
	made->context = context;
	made->listener = (struct loop_source){ .fd = -1, .ready = listener_ready, .context = made };
	list_init(&made->clients);
	loop_timer_init(&made->accept_timer, accept_again, made);
	loop_timer_init(&made->reap_timer, reap, made);
	error = control_set_up(made, path);
	if (error < 0) {
		control_free(made);
		return error;
	}
	*control = made;
	return 0;
}

/* Only if it is still ours: the path may have been given to another server by now. */
static void remove_socket(const struct control *control)
{
	struct stat status;

	if (lstat(control->path, &status) == 0 && status.st_dev == control->path_device &&
	    status.st_ino == control->path_inode)
		(void)unlink(control->path);
}

void control_stop(struct control *control)
{
	if (!control || control->stopped)
		return;
	control->stopped = true;
	remove_socket(control);
	loop_remove(control->loop, &control->listener);
	(void)close(control->listener.fd);
	control->in_callback++;
	list_for_each(link, &control->clients) {
		struct control_client *client = container_of(link, struct control_client, link);

		if (!client->doomed)
			client_send(client);
		/* What the owner replies from closed() finds a client that is gone. */
		client->doomed = true;
		control->ops->closed(control->context, client);
		client_release(client);
	}
	loop_timer_cancel(&control->accept_timer);
	loop_timer_cancel(&control->reap_timer);
	(void)callback_end(control);
}

/* ---- The client's half. ---- */

int control_connect(const char *path)
{
	return socket_connect(path);
}

int control_send(int fd, struct json_object *request)
{
	size_t length = 0, sent = 0;
	const char *text = json_object_to_json_string_length(request, JSON_FLAGS, &length);
	char *line = NULL;
	int error = 0;

	if (!text)
		error = -ENOMEM;
	else if (length + 1 > CONTROL_LINE_BYTES_MAX)
		error = -EMSGSIZE;
	else
		line = malloc(length + 1);
	if (error == 0 && !line)
		error = -ENOMEM;
	if (error == 0) {
		memcpy(line, text, length);
		line[length++] = '\n';
	}
	while (error == 0 && sent < length) {
		const ssize_t bytes = send(fd, line + sent, length - sent, MSG_NOSIGNAL);

		if (bytes >= 0)
			sent += (size_t)bytes;
		else if (errno != EINTR)
			error = -errno;
	}
	free(line);
	json_object_put(request);
	return error;
}

/* Receives some more. */
static int buffer_fill(int fd, struct control_buffer *buffer)
{
	ssize_t got;

	if (buffer->used == buffer->size) {
		const size_t size = buffer->size > 0 ? buffer->size * 2 : CONTROL_LINE_BYTES_MAX;
		char *grown;

		if (size > CONTROL_BACKLOG_BYTES_MAX)
			return -EBADMSG; /* longer than the server can have meant it */
		grown = realloc(buffer->bytes, size);
		if (!grown)
			return -ENOMEM;
		buffer->bytes = grown;
		buffer->size = size;
	}
	do {
		got = recv(fd, buffer->bytes + buffer->used, buffer->size - buffer->used, 0);
	} while (got < 0 && errno == EINTR);
	if (got < 0)
		return errno == ECONNRESET ? -EPIPE : -errno;
	if (got == 0)
		return -EPIPE;
	buffer->used += (size_t)got;
	return 0;
}

int control_receive(int fd, struct control_buffer *buffer, struct json_object **reply)
{
	struct json_tokener *tokener;
	const char *end = NULL;
	size_t searched = 0, length;

	for (;;) {
		int error;

		if (buffer->used > searched)
			end = memchr(buffer->bytes + searched, '\n', buffer->used - searched);
		if (end)
			break;
		searched = buffer->used;
		error = buffer_fill(fd, buffer);
		if (error < 0)
			return error;
	}
	tokener = json_tokener_new_ex(REPLY_DEPTH_MAX);
	if (!tokener)
		return -ENOMEM;
	length = (size_t)(end - buffer->bytes);
	*reply = parse_line(tokener, buffer->bytes, length);
	json_tokener_free(tokener);
	buffer->used -= length + 1;
	memmove(buffer->bytes, buffer->bytes + length + 1, buffer->used);
	return *reply ? 0 : -EBADMSG;
}

void control_buffer_free(struct control_buffer *buffer)
{
	free(buffer->bytes);
	*buffer = (struct control_buffer){ 0 };
}
