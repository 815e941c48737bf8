/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Exports in memory as files, by FUSE, for fuse-files.py.
 *
 *	fuse-memory-server DIRECTORY [SIZE_BYTES [ARENA_MIB [NBD_SOCKET]]]
 *
 * Exports: "origin", "snap" (read-only, memory of its own with a pattern in it), "late" (completes in a later turn),
 * "slow" (completes after 100 ms), "held" (completes when told), "broken" (every request fails with EIO, or with the
 * error number that is its offset divided by 4096). All but "snap" are the same memory. Every even 64 KiB piece of it
 * that was never written is a hole; in "snap" nothing is. With NBD_SOCKET the same exports are served by NBD as well.
 *
 * Commands on stdin, a line each, every one answered by a line: "status" (JSON), "remove NAME", "add NAME", "release"
 * (what is held), "punch" (from now on holes may be punched), "hog" and "unhog" (the arena is used up), "quiesce",
 * "quit" (waits until idle, closes). At the end the arena must be empty, and no export may be left referenced; else it
 * aborts.
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

#include "io/fuse.h"
#include "io/nbd.h"

#define PIECE_BYTES ((uint64_t)65536)
#define SLOW_NS UINT64_C(100000000)
#define EXPORT_COUNT 6
#define HOGS_MAX 16384

struct server {
	struct loop *loop;
	struct arena *arena;
	struct export_table table;
	struct export exports[EXPORT_COUNT];
	struct transport *fuse, *nbd;
	uint8_t *memory, *frozen;
	uint8_t *written; /* a byte for each piece */
	uint64_t size_bytes;
	struct list late, slow, held; /* struct request.link */
	struct loop_timer late_timer, slow_timer;
	struct loop_source input;
	unsigned released, flushes, fua, zeroes, no_hole;
	unsigned in_flight, in_flight_max;
	void *hogs[HOGS_MAX];
	unsigned hog_count;
	bool quitting;
};

static struct server *the_server; /* exports have no context */

static uint8_t *memory_of(const struct server *server, const struct export *export)
{
	return strcmp(export->name, "snap") == 0 ? server->frozen : server->memory;
}

static bool piece_is_hole(const struct server *server, const struct export *export, uint64_t piece)
{
	return piece % 2 == 0 && !server->written[piece] && memory_of(server, export) == server->memory;
}

static void extents_fill(const struct server *server, struct request *request)
{
	uint64_t at = request->offset, end = request->offset + request->length;

	request->extents_count = 0;
	while (at < end) {
		uint64_t piece = at / PIECE_BYTES;
		uint64_t next = (piece + 1) * PIECE_BYTES < end ? (piece + 1) * PIECE_BYTES : end;
		bool hole = piece_is_hole(server, request->export, piece);
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
	uint8_t *memory = memory_of(server, request->export);

	assert(request->length <= server->size_bytes && request->offset <= server->size_bytes - request->length);
	server->fua += (request->flags & REQUEST_FUA) != 0;
	server->in_flight--;
	switch (request->op) {
	case REQUEST_READ:
		memcpy(request->buffer, memory + request->offset, request->length);
		break;
	case REQUEST_WRITE:
		assert(!request->export->read_only);
		memcpy(memory + request->offset, request->buffer, request->length);
		mark_written(server, request, 1);
		break;
	case REQUEST_FLUSH:
		server->flushes++;
		break;
	case REQUEST_DISCARD:
	case REQUEST_ZERO:
		assert(!request->export->read_only);
		server->zeroes++;
		server->no_hole += (request->flags & REQUEST_NO_HOLE) != 0;
		memset(memory + request->offset, 0, request->length);
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

	assert(!request->export->gone && request->export->references > 0);
	if (request->op == REQUEST_READ || request->op == REQUEST_WRITE)
		assert((uintptr_t)request->buffer % ARENA_PAGE_BYTES == 0 && request->length > 0);
	server->in_flight++;
	if (server->in_flight > server->in_flight_max)
		server->in_flight_max = server->in_flight;
	list_init(&request->link);
	if (strcmp(name, "broken") == 0) {
		unsigned number = (unsigned)(request->offset / 4096);

		server->in_flight--;
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

static void finish(struct server *server, struct request *request)
{
	carry_out(server, request);
	request->complete(request, request->export->gone ? -ESHUTDOWN : 0);
}

static void complete_all(struct server *server, struct list *list)
{
	struct list *link;

	while ((link = list_pop(list)) != NULL)
		finish(server, container_of(link, struct request, link));
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
		finish(server, request);
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
	struct fuse_counters counters;

	fuse_get_counters(server->fuse, &counters);
	printf("{\"mounted\":%s,\"files_open\":%llu,\"requests\":%llu,\"bytes_read\":%llu,\"bytes_written\":%llu,"
	       "\"in_flight\":%u,\"in_flight_max\":%u,\"arena_used\":%zu,\"arena_waiters\":%s,\"released\":%u,"
	       "\"flushes\":%u,\"fua\":%u,\"zeroes\":%u,\"no_hole\":%u,\"idle\":%s}\n",
	       counters.mounted ? "true" : "false", (unsigned long long)counters.files_open,
	       (unsigned long long)counters.requests, (unsigned long long)counters.bytes_read,
	       (unsigned long long)counters.bytes_written, server->in_flight, server->in_flight_max,
	       arena_bytes_used(server->arena), arena_is_wanted(server->arena) ? "true" : "false", server->released,
	       server->flushes, server->fua, server->zeroes, server->no_hole,
	       server->fuse->ops->is_idle(server->fuse) ? "true" : "false");
}

/* Leaves not a page of the arena. */
static void hog(struct server *server)
{
	void *page;

	while (server->hog_count < HOGS_MAX && (page = arena_get(server->arena, ARENA_PAGE_BYTES)) != NULL)
		server->hogs[server->hog_count++] = page;
}

static void unhog(struct server *server)
{
	while (server->hog_count > 0)
		arena_put(server->arena, server->hogs[--server->hog_count], ARENA_PAGE_BYTES);
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
	else if (strcmp(line, "punch") == 0)
		server->exports[0].can_punch = true;
	else if (strcmp(line, "hog") == 0)
		hog(server);
	else if (strcmp(line, "unhog") == 0)
		unhog(server);
	else if (strcmp(line, "quiesce") == 0)
		server->fuse->ops->quiesce(server->fuse);
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
		export->created_ns = UINT64_C(1700000000123456789);
		export_add(&server->table, export);
	}
}

static uint8_t *memory_make(uint64_t size_bytes)
{
	uint8_t *memory = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert(memory != MAP_FAILED);
	return memory;
}

static void server_make(struct server *server, uint64_t size_bytes, size_t arena_size)
{
	int error = loop_create(&server->loop);

	assert(error == 0);
	error = arena_create(arena_size, &server->arena);
	assert(error == 0);
	server->size_bytes = size_bytes;
	server->memory = memory_make(size_bytes);
	server->frozen = memory_make(size_bytes);
	for (uint64_t i = 0; i < size_bytes; i++)
		server->frozen[i] = (uint8_t)((i * 7 + i / 4096) % 251);
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
	unhog(server);
	if (server->nbd)
		server->nbd->ops->close(server->nbd);
	if (server->fuse)
		server->fuse->ops->close(server->fuse);
	loop_timer_cancel(&server->late_timer);
	loop_timer_cancel(&server->slow_timer);
	loop_remove(server->loop, &server->input);
	for (unsigned i = 0; i < EXPORT_COUNT; i++)
		assert(server->exports[i].references == 0);
	arena_destroy(server->arena);
	loop_destroy(server->loop);
	(void)munmap(server->memory, server->size_bytes);
	(void)munmap(server->frozen, server->size_bytes);
	free(server->written);
}

static uint64_t argument(int argc, char **argv, int index, uint64_t usual)
{
	return argc > index ? strtoull(argv[index], NULL, 10) : usual;
}

int main(int argc, char **argv)
{
	static struct server server;
	int error;

	if (argc < 2)
		return 64;
	the_server = &server;
	server_make(&server, argument(argc, argv, 2, (uint64_t)64 << 20), argument(argc, argv, 3, 64) << 20);
	error = fuse_start(server.loop, &server.table, server.arena, argv[1], &server.fuse);
	if (error == 0 && argc > 4)
		error = nbd_start(server.loop, &server.table, server.arena, argv[4], &server.nbd);
	if (error != 0) {
		printf("%s\n", strerrorname_np(-error));
		server_free(&server);
		return 1;
	}
	printf("ready\n");
	(void)fflush(stdout);
	while (error == 0 && !(server.quitting && server.fuse->ops->is_idle(server.fuse)))
		error = loop_turn(server.loop, server.quitting ? 10 : -1);
	server_free(&server);
	return error == 0 ? 0 : 1;
}
