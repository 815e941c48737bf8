/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * dm-user's messages, by the real transport with its reader threads, on sockets in the channels' place; there is no
 * kernel. (What is answered does not depend on how the threads take turns; only how long it takes does.)
 *
 * The input's first byte says which export there is, and whether the kernel is an orderly one. To the orderly one the
 * rest is a row of steps (enum step), and
 *
 *   1. every message is answered, once, on its channel, with what it said of itself; a read that went well with the
 *      data of its place, all else without any
 *   2. what is plainly allowed goes well
 *
 * until the device is removed. Else the rest is what comes on the first channel, as it is. In either case
 *
 *   3. the transport comes to its end, and nothing is left: no memory, no descriptor, no request, no reference
 */
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>

#include "io/dm-user-device.h"
#include "io/log.h"
#include "tests/fuzz/memory-exports.h"

#define SIZE_BYTES (UINT64_C(3) << 20)
#define ARENA_BYTES ((size_t)40 << 20)
#define ROOM_BYTES (4 << 20) /* asked of a socket for the replies that nobody has read yet */
#define WRITE_BYTES_MAX (UINT32_C(5) << 19)
#define TURNS_MAX 12000
#define TURN_MS 5
#define STEPS_MAX 64
#define MESSAGES_MAX 256u
#define IN_BYTES ((size_t)8 << 20)

enum step {
	STEP_MESSAGE,     /* u8 type and channel, u16 flags, u16 sector, u32 length */
	STEP_MESSAGE_TOO, /* (most of them are) */
	STEP_TURN,
	STEP_FINISH_LATE, /* u8: which first, and how many */
	STEP_QUIESCE,
	STEP_REMOVE, /* u8: whether somebody has the device open */
	STEP_COUNT,
};

struct sent_message {
	struct dm_user_message message;
	unsigned channel;
	bool answered, must_work;
};

struct peer {
	int fd;
	bool ended;
	uint8_t *in; /* IN_BYTES */
	size_t in_bytes;
	size_t due_bytes; /* of replies, at most */
};

static struct {
	struct loop *loop;
	struct arena *arena;
	size_t room_bytes; /* of replies that fit a socket unread */
} world;

static struct {
	struct transport *transport;
	struct peer peers[DM_USER_CHANNELS_MAX];
	unsigned peer_count;
	const struct export *export;
	bool orderly, removed, quiesced, busy;
	struct sent_message messages[MESSAGES_MAX];
	uint64_t message_count;
} kernel;

/* ---- what the device mapper does ---- */

int device_mapper_open(void)
{
	return fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 0);
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
	for (unsigned i = 0; i < DM_USER_CHANNELS_MAX; i++)
		node->channels[i] = -1;
}

static void make_room(int fd)
{
	int bytes = ROOM_BYTES;
	socklen_t length = sizeof(bytes);

	if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof(bytes)) != 0)
		(void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
	if (getsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, &length) != 0)
		abort();
	world.room_bytes = (size_t)bytes / 4;
}

int dm_user_node_create(struct dm_user_node *node)
{
	for (unsigned i = 0; i < node->channel_count; i++) {
		int fds[2];

		if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0)
			abort();
		make_room(fds[0]);
		node->channels[i] = fds[0];
		kernel.peers[i].fd = fds[1];
	}
	kernel.peer_count = node->channel_count;
	node->device = 1;
	return 0;
}

int dm_user_node_remove(struct dm_user_node *node)
{
	(void)node;
	return kernel.busy ? -EBUSY : 0;
}

bool dm_user_node_is_open(const struct dm_user_node *node)
{
	(void)node;
	return kernel.busy;
}

int dm_user_nodes_clear(int control, const char *name, char failed[static DEVICE_MAPPER_NAME_BYTES])
{
	(void)control;
	(void)name;
	failed[0] = '\0';
	return 0;
}

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	int fds[2];

	(void)argc;
	(void)argv;
	log_silence();
	(void)signal(SIGPIPE, SIG_IGN);
	if (loop_create(&world.loop) != 0 || arena_create(ARENA_BYTES, &world.arena) != 0 ||
	    socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0)
		abort();
	make_room(fds[0]);
	(void)close(fds[0]);
	(void)close(fds[1]);
	for (unsigned i = 0; i < DM_USER_CHANNELS_MAX; i++) {
		kernel.peers[i].in = malloc(IN_BYTES);
		if (kernel.peers[i].in == NULL)
			abort();
	}
	return 0;
}

/* ---- replies ---- */

static size_t reply_bytes(const struct dm_user_message *message)
{
	return DM_USER_HEADER_BYTES + (message->type == DM_USER_READ ? (size_t)message->length : 0);
}

/* A whole reply, taken from its channel's bytes: how many it has. 0: it is not whole yet. */
static size_t take_reply(struct peer *peer, const uint8_t *at, size_t bytes)
{
	unsigned channel = (unsigned)(peer - kernel.peers);
	struct dm_user_message reply;
	struct sent_message *sent;
	size_t length = DM_USER_HEADER_BYTES;

	if (bytes < length)
		return 0;
	dm_user_decode(at, &reply);
	fuzz_check("a reply is to a message", reply.sequence < kernel.message_count);
	sent = &kernel.messages[reply.sequence];
	fuzz_check("a message is answered once, on its channel", !sent->answered && sent->channel == channel);
	fuzz_check("a reply says how it went", reply.type <= DM_USER_UNSUPPORTED && reply.flags == 0);
	fuzz_check("a reply is about what was asked",
		   reply.sector == sent->message.sector && reply.length == sent->message.length);
	if (reply.type == DM_USER_SUCCESS)
		length = reply_bytes(&sent->message);
	if (bytes < length)
		return 0;
	fuzz_check("what is read is what is there", memory_is_right(at + DM_USER_HEADER_BYTES,
								      sent->message.sector * DM_USER_SECTOR_BYTES,
								      length - DM_USER_HEADER_BYTES));
	fuzz_check("what is plainly allowed goes well", reply.type == DM_USER_SUCCESS || !sent->must_work);
	sent->answered = true;
	peer->due_bytes -= reply_bytes(&sent->message);
	return length;
}

static void take_replies(struct peer *peer)
{
	size_t at = 0, taken = 1;

	if (!kernel.orderly)
		at = peer->in_bytes;
	while (kernel.orderly && taken > 0) {
		taken = take_reply(peer, peer->in + at, peer->in_bytes - at);
		at += taken;
	}
	peer->in_bytes -= at;
	memmove(peer->in, peer->in + at, peer->in_bytes);
}

static void receive(struct peer *peer)
{
	while (!peer->ended) {
		ssize_t got = recv(peer->fd, peer->in + peer->in_bytes, IN_BYTES - peer->in_bytes, MSG_DONTWAIT);

		if (got < 0 && errno == EAGAIN)
			return;
		peer->ended = got <= 0;
		peer->in_bytes += got > 0 ? (size_t)got : 0;
		take_replies(peer);
	}
}

static void turn(int timeout_ms)
{
	if (loop_turn(world.loop, timeout_ms) != 0)
		abort();
	for (unsigned i = 0; i < kernel.peer_count; i++)
		receive(&kernel.peers[i]);
}

/* ---- messages ---- */

static void say(struct peer *peer, const void *bytes, size_t count)
{
	const uint8_t *at = bytes;

	for (int turns = 0; count > 0 && !peer->ended; turns++) {
		ssize_t sent = send(peer->fd, at, count, MSG_DONTWAIT | MSG_NOSIGNAL);

		fuzz_check("the transport goes on reading", turns < TURNS_MAX);
		if (sent > 0) {
			at += sent;
			count -= (size_t)sent;
			turn(0);
		} else if (errno == EAGAIN) {
			(void)memory_finish_late(false);
			turn(TURN_MS);
		} else {
			peer->ended = true;
		}
	}
}

static bool must_work(const struct dm_user_message *message)
{
	uint64_t size = kernel.export->size_bytes, offset = message->sector * DM_USER_SECTOR_BYTES;
	bool writes = message->type == DM_USER_WRITE || message->type == DM_USER_WRITE_ZEROES ||
		      message->type == DM_USER_DISCARD;

	if (kernel.removed || kernel.quiesced || strcmp(kernel.export->name, "broken") == 0)
		return false;
	if (message->type == DM_USER_FLUSH || (message->type == DM_USER_WRITE && message->length == 0))
		return true;
	return (message->type == DM_USER_READ || (writes && !kernel.export->read_only)) && offset <= size &&
	       message->length <= size - offset;
}

/* A reply that nobody reads would stop the transport, as it would not with a kernel: so there is room for all. */
static void wait_for_room(struct peer *peer, size_t bytes)
{
	for (int turns = 0; peer->due_bytes > 0 && peer->due_bytes + bytes > world.room_bytes && !peer->ended; turns++) {
		fuzz_check("messages are answered", turns < TURNS_MAX);
		(void)memory_finish_late(false);
		turn(TURN_MS);
	}
}

static void send_payload(struct peer *peer, const struct dm_user_message *message)
{
	uint8_t *payload = malloc((size_t)message->length + 1);

	if (payload == NULL)
		abort();
	memory_fill(payload, message->sector * DM_USER_SECTOR_BYTES, message->length);
	say(peer, payload, (size_t)message->length);
	free(payload);
}

static void step_message(struct fuzz_input *input)
{
	static const uint64_t types[8] = { 0, 1, 2, 3, 6, 1, 0, 77 };
	struct sent_message *sent = &kernel.messages[kernel.message_count];
	uint8_t kind = fuzz_u8(input), header[DM_USER_HEADER_BYTES];
	struct dm_user_message message = { .type = types[kind % 8], .flags = fuzz_u16(input) };
	uint32_t sector = fuzz_u16(input), length = fuzz_u32(input);
	struct peer *peer;

	if (kernel.message_count == MESSAGES_MAX)
		return;
	message.sequence = kernel.message_count++;
	message.sector = kind & 64 ? sector : sector % (SIZE_BYTES / DM_USER_SECTOR_BYTES);
	message.length = length % (message.type == DM_USER_READ ? world.room_bytes / 2 : WRITE_BYTES_MAX);
	if (!(kind & 128))
		message.length = message.length % 65536 & ~UINT64_C(511);
	*sent = (struct sent_message){ .message = message, .channel = kind / 8 % kernel.peer_count };
	sent->must_work = must_work(&message);
	peer = &kernel.peers[sent->channel];
	wait_for_room(peer, reply_bytes(&message));
	peer->due_bytes += reply_bytes(&message);
	dm_user_encode(&message, header);
	say(peer, header, sizeof(header));
	if (message.type == DM_USER_WRITE)
		send_payload(peer, &message);
}

/* What has no answer by now may be refused. */
static void expect_refusals(void)
{
	for (uint64_t i = 0; i < kernel.message_count; i++)
		kernel.messages[i].must_work = false;
}

static void step_remove(struct fuzz_input *input)
{
	struct export *export = &memory.exports[kernel.export - memory.exports];

	kernel.busy = fuzz_u8(input) & 1;
	if (export->gone)
		return;
	expect_refusals();
	kernel.removed = true;
	export_remove(&memory.table, export);
}

static void take_step(struct fuzz_input *input)
{
	enum step step = fuzz_u8(input) % STEP_COUNT;
	uint8_t how;

	switch (step) {
	case STEP_MESSAGE:
	case STEP_MESSAGE_TOO:
		step_message(input);
		break;
	case STEP_FINISH_LATE:
		how = fuzz_u8(input);
		for (unsigned i = 0; i <= how / 16u; i++)
			(void)memory_finish_late(how & 1);
		break;
	case STEP_QUIESCE:
		expect_refusals();
		kernel.quiesced = true;
		kernel.transport->ops->quiesce(kernel.transport);
		break;
	case STEP_REMOVE:
		step_remove(input);
		break;
	case STEP_TURN:
	case STEP_COUNT:
		turn(0);
		break;
	}
}

/* ---- one input ---- */

static void kernel_begin(uint8_t first)
{
	char failed[DEVICE_MAPPER_NAME_BYTES];
	unsigned which = first / 2 % MEMORY_EXPORTS;

	kernel.orderly = first & 1;
	kernel.removed = false;
	kernel.quiesced = false;
	kernel.busy = false;
	kernel.message_count = 0;
	kernel.export = &memory.exports[which];
	for (unsigned i = 0; i < DM_USER_CHANNELS_MAX; i++) {
		kernel.peers[i].ended = false;
		kernel.peers[i].in_bytes = 0;
		kernel.peers[i].due_bytes = 0;
	}
	/* Whatever is read by the reads that a channel takes at once fits its socket. */
	memory_begin(kernel.orderly ? SIZE_BYTES : world.room_bytes / DM_USER_REQUESTS_MAX / 4096 * 4096 + 512, 1u << which);
	memory.writes_foreign = !kernel.orderly;
	if (dm_user_start(world.loop, &memory.table, world.arena, "fuzz", failed, &kernel.transport) != 0)
		abort();
}

static bool is_all_answered(void)
{
	for (uint64_t i = 0; i < kernel.message_count; i++)
		if (!kernel.messages[i].answered && !kernel.peers[kernel.messages[i].channel].ended)
			return false;
	return true;
}

static void kernel_end(void)
{
	for (int turns = 0; kernel.orderly && !is_all_answered(); turns++) {
		fuzz_check("messages are answered", turns < TURNS_MAX);
		(void)memory_finish_late(false);
		turn(TURN_MS);
	}
	for (uint64_t i = 0; i < kernel.message_count; i++)
		fuzz_check("a message is answered, unless its device has gone", kernel.messages[i].answered || kernel.removed);
	for (unsigned i = 0; i < kernel.peer_count; i++)
		(void)shutdown(kernel.peers[i].fd, SHUT_WR);
	turn(0);
	for (int turns = 0; memory.in_engine > 0 || !kernel.transport->ops->is_idle(kernel.transport); turns++) {
		fuzz_check("the transport becomes idle", turns < TURNS_MAX);
		(void)memory_finish_late(false);
		turn(0);
	}
	kernel.transport->ops->quiesce(kernel.transport);
	kernel.transport->ops->close(kernel.transport);
	for (unsigned i = 0; i < kernel.peer_count; i++) {
		receive(&kernel.peers[i]);
		fuzz_check("a channel is closed", kernel.peers[i].ended);
		fuzz_check("nothing is left of a reply", kernel.peers[i].in_bytes == 0 || kernel.removed);
		(void)close(kernel.peers[i].fd);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_input input = { data, size };
	uint8_t first = fuzz_u8(&input);
	int descriptor = fuzz_free_descriptor();

	kernel_begin(first);
	if (!kernel.orderly)
		say(&kernel.peers[0], input.at, input.left);
	for (int steps = 0; kernel.orderly && input.left > 0 && steps < STEPS_MAX; steps++)
		take_step(&input);
	kernel_end();
	fuzz_check("all memory is back", arena_bytes_used(world.arena) == 0 && !arena_is_wanted(world.arena));
	fuzz_check("no descriptor is left", fuzz_free_descriptor() == descriptor);
	memory_end();
	return 0;
}
