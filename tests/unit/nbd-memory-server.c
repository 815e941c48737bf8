/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The NBD server over exports in memory, for nbd-protocol.py and for real clients.
 *
 *	nbd-memory-server SOCKET [SIZE_MIB [ARENA_MIB [DEADLINES_MS [CONNECTIONS_MAX]]]]
 *
 * Exports: "origin", "snap" (read-only, the same memory), "late" (completes in a later turn), "slow" (completes after
 * 300 ms), "held" (completes when told), "broken" (every request fails with EIO, or with the error number that is its
 * offset divided by 4096). Every even 64 KiB piece that was never written is a hole.
 *
 * Commands on stdin, a line each, every one answered by a line: "status" (JSON), "remove NAME", "add NAME", "release"
 * (what is held), "dawdle" (from now on every request takes a millisecond of its turn), "quiesce", "quit" (waits until
 * idle, closes). At the end the arena must be empty, and no export may be left referenced; else it aborts.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <unistd.h>

#include "io/nbd-connection.h"

#define PIECE_BYTES ((uint64_t)65536)
#define SLOW_NS UINT64_C(300000000)
#define EXPORT_COUNT 6

struct server {
	struct loop *loop;
	struct arena *arena;
	struct export_table table;
	struct export exports[EXPORT_COUNT];
	struct transport *transport;
	uint8_t *memory;
	uint8_t *written; /* a byte for each piece */
	uint64_t size_bytes;
	struct list late, slow, held; /* struct request.link */
	struct loop_timer late_timer, slow_timer;
	struct loop_source input;
	unsigned released, flushes, fua;
	bool quitting, dawdling; /* dawdling: what a request does takes its time, in the turn */
};

static struct server *the_server; /* exports have no context */

static bool piece_is_hole(const struct server *server, uint64_t piece)
{
	return piece % 2 == 0 && !server->written[piece];
}

static void extents_fill(struct server *server, struct request *request)
{
	uint64_t at = request->offset, end = request->offset + request->length;

	request->extents_count = 0;
	while (at < end) {
		uint64_t piece = at / PIECE_BYTES;
		uint64_t next = (piece + 1) * PIECE_BYTES < end ? (piece + 1) * PIECE_BYTES : end;
		bool hole = piece_is_hole(server, piece);
		unsigned count = request->extents_count;

		if (count > 0 && request->extents[count - 1].hole == hole) {
			request->extents[count - 1].length += next - at;
		} else {
			if (count == request->extents_max)
				return;
			request->extents[count] = (struct disk_extent){ .length = next - at, .hole = hole };
			request->extents_count++;
		}
		at = next;
	}
}

static void mark_written(struct server *server, const struct request *request, uint8_t value)
{
	for (uint64_t at = request->offset / PIECE_BYTES; at * PIECE_BYTES < request->offset + request->length; at++)
		server->written[at] = value;
}

static void carry_out(struct server *server, struct request *request)
{
	assert(request->offset + request->length <= server->size_bytes);
	if (server->dawdling)
		(void)usleep(1000);
	server->fua += (request->flags & REQUEST_FUA) != 0;
	switch (request->op) {
	case REQUEST_READ:
		memcpy(request->buffer, server->memory + request->offset, request->length);
		break;
	case REQUEST_WRITE:
		memcpy(server->memory + request->offset, request->buffer, request->length);
		mark_written(server, request, 1);
		break;
	case REQUEST_FLUSH:
		server->flushes++;
		break;
	case REQUEST_DISCARD:
	case REQUEST_ZERO:
		memset(server->memory + request->offset, 0, request->length);
		if (request->offset % PIECE_BYTES == 0 && request->length % PIECE_BYTES == 0)
			mark_written(server, request, request->flags & REQUEST_NO_HOLE ? 1 : 0);
		break;
	case REQUEST_EXTENTS:
		extents_fill(server, request);
		break;
	}
}

static void submit(struct request *request)
{
	struct server *server = the_server;
	const char *name = request->export->name;

	list_init(&request->link);
	if (strcmp(name, "broken") == 0) {
		unsigned number = (unsigned)(request->offset / 4096);

		request->complete(request, number == 0 ? -EIO : -(int)number);
	} else if (strcmp(name, "held") == 0) {
		list_append(&server->held, &request->link);
	} else if (strcmp(name, "slow") == 0) {
		request->started_ns = loop_now_ns(server->loop) + SLOW_NS;
		list_append(&server->slow, &request->link);
		if (list_is_empty(&server->slow_timer.link))
			loop_timer_set(server->loop, &server->slow_timer, request->started_ns);
	} else if (strcmp(name, "late") == 0) {
		list_append(&server->late, &request->link);
		loop_timer_set(server->loop, &server->late_timer, 0);
	} else {
		carry_out(server, request);
		request->complete(request, 0);
	}
}

static void complete_all(struct server *server, struct list *list)
{
	struct list *link;

	while ((link = list_pop(list)) != NULL) {
		struct request *request = container_of(link, struct request, link);

		carry_out(server, request);
		request->complete(request, 0);
	}
}

static void late_expired(struct loop_timer *timer)
{
	struct server *server = timer->context;

	complete_all(server, &server->late);
}

static void slow_expired(struct loop_timer *timer)
{
	struct server *server = timer->context;

	while (!list_is_empty(&server->slow)) {
		struct request *request = container_of(server->slow.next, struct request, link);

		if (request->started_ns > loop_now_ns(server->loop)) {
			loop_timer_set(server->loop, timer, request->started_ns);
			return;
		}
		list_remove(&request->link);
		carry_out(server, request);
		request->complete(request, 0);
	}
}

static void released(struct export *export)
{
	assert(export->gone && export->references == 0);
	the_server->released++;
}

static const struct export_ops ops = { .submit = submit, .released = released };

static struct export *any_export(struct server *server, const char *name)
{
	for (unsigned i = 0; i < EXPORT_COUNT; i++)
		if (strcmp(server->exports[i].name, name) == 0)
			return &server->exports[i];
	return NULL;
}

static void print_status(const struct server *server)
{
	struct nbd_counters counters;

	nbd_get_counters(server->transport, &counters);
	printf("{\"connections\":%llu,\"connections_total\":%llu,\"requests\":%llu,\"received\":%llu,\"sent\":%llu,"
	       "\"protocol_errors\":%llu,\"pace_heard\":%llu,\"pace_silent\":%llu,"
	       "\"arena_used\":%zu,\"released\":%u,\"flushes\":%u,\"fua\":%u,\"idle\":%s}\n",
	       (unsigned long long)counters.connections_now, (unsigned long long)counters.connections_total,
	       (unsigned long long)counters.requests, (unsigned long long)counters.bytes_received,
	       (unsigned long long)counters.bytes_sent, (unsigned long long)counters.protocol_errors,
	       (unsigned long long)counters.pace_heard, (unsigned long long)counters.pace_silent,
	       arena_bytes_used(server->arena), server->released, server->flushes, server->fua,
	       server->transport->ops->is_idle(server->transport) ? "true" : "false");
}

static void command(struct server *server, char *line)
{
	char *name = strchr(line, ' ');

	if (name)
		*name++ = '\0';
	if (strcmp(line, "status") == 0) {
		print_status(server);
		return;
	}
	if (strcmp(line, "remove") == 0 && name)
		export_remove(&server->table, any_export(server, name));
	else if (strcmp(line, "add") == 0 && name)
		export_add(&server->table, any_export(server, name));
	else if (strcmp(line, "release") == 0)
		complete_all(server, &server->held);
	else if (strcmp(line, "quiesce") == 0)
		server->transport->ops->quiesce(server->transport);
	else if (strcmp(line, "dawdle") == 0)
		server->dawdling = true;
	else if (strcmp(line, "quit") == 0)
		server->quitting = true;
	printf("done\n");
}

static void input_ready(struct loop_source *source, uint32_t events)
{
	struct server *server = source->context;
	char text[1024];
	char *save = NULL;
	ssize_t got = read(source->fd, text, sizeof(text) - 1);

	(void)events;
	if (got <= 0) {
		loop_remove(server->loop, source);
		server->quitting = true;
		return;
	}
	text[got] = '\0';
	for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
		command(server, line);
	(void)fflush(stdout);
}

static void exports_make(struct server *server)
{
	static const char *const names[EXPORT_COUNT] = { "origin", "snap", "late", "slow", "held", "broken" };

	export_table_init(&server->table);
	for (unsigned i = 0; i < EXPORT_COUNT; i++) {
		struct export *export = &server->exports[i];

		export->ops = &ops;
		(void)snprintf(export->name, sizeof(export->name), "%s", names[i]);
		export->size_bytes = server->size_bytes;
		export->block_bytes = 4096;
		export->read_only = strcmp(names[i], "snap") == 0;
		export->can_discard = true;
		export->created_ns = UINT64_C(1700000000000000000);
		export_add(&server->table, export);
	}
}

static void server_make(struct server *server, uint64_t size_bytes, size_t arena_size)
{
	int error = loop_create(&server->loop);

	assert(error == 0);
	error = arena_create(arena_size, &server->arena);
	assert(error == 0);
	server->size_bytes = size_bytes;
	server->memory = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert(server->memory != MAP_FAILED);
	server->written = calloc(1, size_bytes / PIECE_BYTES + 1);
	assert(server->written);
	list_init(&server->late);
	list_init(&server->slow);
	list_init(&server->held);
	loop_timer_init(&server->late_timer, late_expired, server);
	loop_timer_init(&server->slow_timer, slow_expired, server);
	exports_make(server);
	server->input = (struct loop_source){ .fd = STDIN_FILENO, .ready = input_ready, .context = server };
	if (loop_add(server->loop, &server->input, EPOLLIN) != 0)
		(void)fprintf(stderr, "stdin can't be watched\n");
	(void)error;
}

static void server_free(struct server *server)
{
	server->transport->ops->close(server->transport);
	loop_timer_cancel(&server->late_timer);
	loop_timer_cancel(&server->slow_timer);
	loop_remove(server->loop, &server->input);
	for (unsigned i = 0; i < EXPORT_COUNT; i++)
		assert(server->exports[i].references == 0);
	arena_destroy(server->arena);
	loop_destroy(server->loop);
	(void)munmap(server->memory, server->size_bytes);
	free(server->written);
}

static uint64_t argument(int argc, char **argv, int index, uint64_t usual)
{
	return argc > index ? strtoull(argv[index], NULL, 10) : usual;
}

int main(int argc, char **argv)
{
	static struct server server;
	uint64_t deadline_ns = argument(argc, argv, 4, 10000) * 1000000;
	struct nbd_limits limits = {
		.handshake_ns = deadline_ns,
		.drain_ns = deadline_ns,
		.stall_ns = deadline_ns,
		.connections_max = (unsigned)argument(argc, argv, 5, 256),
	};
	int error;

	if (argc < 2)
		return 64;
	the_server = &server;
	server_make(&server, argument(argc, argv, 2, 64) << 20, argument(argc, argv, 3, 64) << 20);
	error = nbd_start_limited(server.loop, &server.table, server.arena, argv[1], &limits, &server.transport);
	if (error != 0) {
		(void)fprintf(stderr, "%s: %s\n", argv[1], strerror(-error));
		return 1;
	}
	printf("ready\n");
	(void)fflush(stdout);
	while (error == 0 && !(server.quitting && server.transport->ops->is_idle(server.transport)))
		error = loop_turn(server.loop, server.quitting ? 10 : -1);
	server_free(&server);
	return error == 0 ? 0 : 1;
}
