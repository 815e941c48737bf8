/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * dm-user's channels, on sockets in their place, with an engine that answers when it is told to: a device that goes while
 * a write is under way takes nothing with it, and keeps nothing.
 */
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "io/dm-user-device.h"
#include "tests/unit/unit.h"

#define SIZE_BYTES ((uint64_t)4 << 20)
#define ARENA_BYTES ((size_t)40 << 20)
#define TURNS_MAX 3000
#define TURN_MS 10

static struct loop *loop;
static struct arena *arena;
static struct export_table exports;
static int peers[DM_USER_CHANNELS_MAX];
static struct request *held; /* by the engine */

/* ---- the device mapper ---- */

int device_mapper_open(void)
{
	return dup(STDERR_FILENO);
}

int device_mapper_has_target(int control, const char *target)
{
	(void)control;
	(void)target;
	return 1;
}

void dm_user_node_init(struct dm_user_node *node, int control, const char *name, const char *export_name)
{
	*node = (struct dm_user_node){ .control = control };
	(void)snprintf(node->name, sizeof(node->name), "%s-%s", name, export_name);
}

int dm_user_node_create(struct dm_user_node *node)
{
	for (unsigned i = 0; i < node->channel_count; i++) {
		int fds[2];

		if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds) != 0)
			abort();
		node->channels[i] = fds[0];
		peers[i] = fds[1];
	}
	return 0;
}

int dm_user_node_remove(struct dm_user_node *node)
{
	(void)node;
	return 0;
}

bool dm_user_node_is_open(const struct dm_user_node *node)
{
	(void)node;
	return false;
}

int dm_user_nodes_clear(int control, const char *name, char failed[static DEVICE_MAPPER_NAME_BYTES])
{
	(void)control;
	(void)name;
	failed[0] = '\0';
	return 0;
}

/* ---- the engine ---- */

static void submit(struct request *request)
{
	held = request;
}

static void released(struct export *export)
{
	(void)export;
}

static const struct export_ops ops = { .submit = submit, .released = released };

/* ---- the test ---- */

static void turn(void)
{
	if (loop_turn(loop, TURN_MS) != 0)
		abort();
}

static bool engine_is_asked(void)
{
	for (int turns = 0; held == NULL && turns < TURNS_MAX; turns++)
		turn();
	return held != NULL;
}

static bool channel_is_closed(unsigned channel)
{
	struct pollfd wait = { .fd = peers[channel], .events = POLLIN };
	uint8_t byte;

	for (int turns = 0; turns < TURNS_MAX; turns++) {
		if (poll(&wait, 1, 0) == 1)
			return recv(peers[channel], &byte, 1, MSG_DONTWAIT) <= 0;
		turn();
	}
	return false;
}

static void send_write(uint64_t flags, size_t payload_bytes)
{
	const struct dm_user_message message = { 7, DM_USER_WRITE, flags, 0, SIZE_BYTES };
	uint8_t header[DM_USER_HEADER_BYTES], *payload = calloc(1, payload_bytes + 1);

	dm_user_encode(&message, header);
	if (payload == NULL || write(peers[0], header, sizeof(header)) != sizeof(header))
		abort();
	for (size_t sent = 0; sent < payload_bytes;) {
		ssize_t bytes = send(peers[0], payload + sent, payload_bytes - sent, MSG_DONTWAIT);

		sent += bytes > 0 ? (size_t)bytes : 0;
		turn();
	}
	free(payload);
}

/* A write of several pieces, of which the engine has the first (or the flush before it) when its device goes. */
static void test_removed_under_write(const char *what, uint64_t flags, size_t payload_bytes)
{
	struct export export = { .ops = &ops, .name = "origin", .size_bytes = SIZE_BYTES };
	char failed[DEVICE_MAPPER_NAME_BYTES];
	struct transport *transport;
	bool closed;

	held = NULL;
	export_table_init(&exports);
	list_init(&export.link);
	export_add(&exports, &export);
	if (dm_user_start(loop, &exports, arena, "test", failed, &transport) != 0)
		abort();
	send_write(flags, payload_bytes);
	check("(the engine is asked)", engine_is_asked());
	export_remove(&exports, &export);
	check("a removed device's idle channels are closed", channel_is_closed(DM_USER_CHANNELS_MAX - 1));
	held->complete(held, 0);
	closed = channel_is_closed(0);
	check(what, closed);
	check("no memory is held for it", arena_bytes_used(arena) == 0 && export.references == 0);
	if (closed)
		transport->ops->close(transport);
	for (unsigned i = 0; i < DM_USER_CHANNELS_MAX; i++)
		(void)close(peers[i]);
}

int main(void)
{
	if (loop_create(&loop) != 0 || arena_create(ARENA_BYTES, &arena) != 0)
		abort();
	test_removed_under_write("a channel whose write's piece comes back after that is closed", 0,
				 (size_t)DM_USER_PIECE_BYTES);
	test_removed_under_write("and so is one whose flush before a write does", DM_USER_FLAG_PREFLUSH, 0);
	arena_destroy(arena);
	loop_destroy(loop);
	return unit_done();
}
