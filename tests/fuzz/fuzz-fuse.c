/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * FUSE's messages, as the kernel sends them, by the real transport and the real libfuse, on a socket in the place of
 * /dev/fuse; nothing is mounted.
 *
 * What the kernel vouches for is kept to: a message has the length of its kind, names end, and a file's number is one
 * that the kernel was told and has not forgotten. All else of a message is the input's: after a byte for how the session
 * begins and ends, it is a row of steps (enum step).
 *
 *   1. Every message is answered, once, but for those that have no answer; the answer has its kind's length.
 *   2. What is read is what is there, and as much as was asked for; what is plainly allowed succeeds.
 *   3. The folders' listings are well formed.
 *   4. The session ends, by us or by the kernel, and nothing is left: no memory, no descriptor, no request, no reference.
 */
#include <linux/fuse.h>
#include <sys/socket.h>

#include "io/fuse.h"
#include "io/log.h"
#include "tests/fuzz/memory-exports.h"

#define SIZE_BYTES (UINT64_C(2) << 20)
#define SIZE_BYTES_SMALL (UINT64_C(96) << 10) /* where a socket has no room for more */
#define ARENA_BYTES ((size_t)40 << 20)
#define ROOM_BYTES (8 << 20)
#define DATA_BYTES_MAX ((size_t)1 << 20)
#define MESSAGE_BYTES_MAX (DATA_BYTES_MAX + 4096)
#define TURNS_MAX 20000
#define STEPS_MAX 96
#define SENT_MAX 256u
#define NODES_MAX 16u
#define FOLDERS 2u

enum step {
	STEP_LOOKUP,  /* u8: the folder and the name */
	STEP_MESSAGE, /* u8 of kinds[], u8 node, the kind's numbers, its names */
	STEP_DATA,    /* u8: READ, WRITE, ... and the node, u32 offset, u32 length */
	STEP_FORGET,  /* u8 node, u8 how many times */
	STEP_FINISH_LATE, /* u8: which first, and how many */
	STEP_REMOVE,      /* u8: an export goes */
	STEP_QUIESCE,
	STEP_COUNT,
};

/* A kind of message: its numbers' length, its names, and the length of a good answer (VARIES). */
#define VARIES UINT32_MAX
#define NO_ANSWER (UINT32_MAX - 1)
struct kind {
	uint32_t opcode, bytes, names, answer;
};

static const struct kind kinds[] = {
	{ FUSE_GETATTR, sizeof(struct fuse_getattr_in), 0, sizeof(struct fuse_attr_out) },
	{ FUSE_SETATTR, sizeof(struct fuse_setattr_in), 0, sizeof(struct fuse_attr_out) },
	{ FUSE_OPEN, sizeof(struct fuse_open_in), 0, sizeof(struct fuse_open_out) },
	{ FUSE_OPENDIR, sizeof(struct fuse_open_in), 0, sizeof(struct fuse_open_out) },
	{ FUSE_READDIR, sizeof(struct fuse_read_in), 0, VARIES },
	{ FUSE_READDIRPLUS, sizeof(struct fuse_read_in), 0, VARIES },
	{ FUSE_STATFS, 0, 0, sizeof(struct fuse_statfs_out) },
	{ FUSE_RELEASE, sizeof(struct fuse_release_in), 0, 0 },
	{ FUSE_RELEASEDIR, sizeof(struct fuse_release_in), 0, 0 },
	{ FUSE_FLUSH, sizeof(struct fuse_flush_in), 0, 0 },
	{ FUSE_FSYNC, sizeof(struct fuse_fsync_in), 0, 0 },
	{ FUSE_FSYNCDIR, sizeof(struct fuse_fsync_in), 0, 0 },
	{ FUSE_FALLOCATE, sizeof(struct fuse_fallocate_in), 0, 0 },
	{ FUSE_LSEEK, sizeof(struct fuse_lseek_in), 0, sizeof(struct fuse_lseek_out) },
	{ FUSE_READ, sizeof(struct fuse_read_in), 0, VARIES },
	{ FUSE_CREATE, sizeof(struct fuse_create_in), 1, VARIES },
	{ FUSE_MKNOD, sizeof(struct fuse_mknod_in), 1, VARIES },
	{ FUSE_MKDIR, sizeof(struct fuse_mkdir_in), 1, VARIES },
	{ FUSE_UNLINK, 0, 1, 0 },
	{ FUSE_RMDIR, 0, 1, 0 },
	{ FUSE_SYMLINK, 0, 2, VARIES },
	{ FUSE_RENAME, sizeof(struct fuse_rename_in), 2, 0 },
	{ FUSE_RENAME2, sizeof(struct fuse_rename2_in), 2, 0 },
	{ FUSE_LINK, sizeof(struct fuse_link_in), 1, VARIES },
	{ FUSE_READLINK, 0, 0, VARIES },
	{ FUSE_ACCESS, sizeof(struct fuse_access_in), 0, 0 },
	{ FUSE_GETXATTR, sizeof(struct fuse_getxattr_in), 1, VARIES },
	{ FUSE_LISTXATTR, sizeof(struct fuse_getxattr_in), 0, VARIES },
	{ FUSE_REMOVEXATTR, 0, 1, 0 },
	{ FUSE_SETXATTR, sizeof(struct fuse_setxattr_in), 2, 0 },
	{ FUSE_GETLK, sizeof(struct fuse_lk_in), 0, VARIES },
	{ FUSE_SETLK, sizeof(struct fuse_lk_in), 0, 0 },
	{ FUSE_BMAP, sizeof(struct fuse_bmap_in), 0, VARIES },
	{ FUSE_IOCTL, sizeof(struct fuse_ioctl_in), 0, VARIES },
	{ FUSE_POLL, sizeof(struct fuse_poll_in), 0, VARIES },
	{ FUSE_COPY_FILE_RANGE, sizeof(struct fuse_copy_file_range_in), 0, VARIES },
	{ FUSE_INTERRUPT, sizeof(struct fuse_interrupt_in), 0, NO_ANSWER },
};
#define KINDS (sizeof(kinds) / sizeof(kinds[0]))

static const struct kind kind_init = { FUSE_INIT, sizeof(struct fuse_init_in), 0, VARIES };
static const struct kind kind_lookup = { FUSE_LOOKUP, 0, 1, sizeof(struct fuse_entry_out) };
static const struct kind kind_read = { FUSE_READ, sizeof(struct fuse_read_in), 0, VARIES };
static const struct kind kind_write = { FUSE_WRITE, sizeof(struct fuse_write_in), 0, sizeof(struct fuse_write_out) };
static const struct kind kind_forget = { FUSE_FORGET, sizeof(struct fuse_forget_in), 0, NO_ANSWER };
static const struct kind kind_batch_forget = { FUSE_BATCH_FORGET, 24, 0, NO_ANSWER };
static const struct kind kind_statfs = { FUSE_STATFS, 0, 0, sizeof(struct fuse_statfs_out) };
static const struct kind kind_destroy = { FUSE_DESTROY, 0, 0, 0 };

/* What the kernel knows of a file: the first two are the folders. */
struct node {
	uint64_t number, lookups; /* its number is an address to the transport: never to be made up */
	unsigned exported; /* memory.exports[]'s index */
	unsigned under_way;
};

struct sent {
	const struct kind *kind;
	unsigned node, exported;
	uint64_t offset, length;
	bool answered, must_work;
};

static struct {
	struct loop *loop;
	struct arena *arena;
	uint64_t size_bytes;
} world;

static struct {
	struct transport *transport;
	int fd, their_fd;
	bool ended, quiesced;
	struct node nodes[NODES_MAX];
	unsigned node_count;
	struct sent sent[SENT_MAX];
	uint64_t sent_count;
} kernel;

static union {
	struct fuse_in_header header;
	uint8_t bytes[MESSAGE_BYTES_MAX];
} out;

static union {
	struct fuse_out_header header;
	uint8_t bytes[MESSAGE_BYTES_MAX];
} in;

/* ---- no mount point ---- */

int fusefs_mount_point_prepare(const char *directory);
int fusefs_mount_point_prepare(const char *directory)
{
	(void)directory;
	return 0;
}

int fusefs_mount_failure(const char *directory);
int fusefs_mount_failure(const char *directory)
{
	(void)directory;
	abort();
}

/* The linker puts it in the place of realpath(): the socket is no file. */
char *__wrap_realpath(const char *path, char *resolved);
char *__wrap_realpath(const char *path, char *resolved)
{
	(void)resolved;
	return strdup(path);
}

static void make_room(int fd, int *bytes)
{
	const int wanted = ROOM_BYTES;
	socklen_t length = sizeof(*bytes);

	if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &wanted, sizeof(wanted)) != 0)
		(void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &wanted, sizeof(wanted));
	if (getsockopt(fd, SOL_SOCKET, SO_SNDBUF, bytes, &length) != 0)
		abort();
}

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	int fds[2], bytes = 0;

	(void)argc;
	(void)argv;
	log_silence();
	if (loop_create(&world.loop) != 0 || arena_create(ARENA_BYTES, &world.arena) != 0 ||
	    socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) != 0)
		abort();
	make_room(fds[0], &bytes);
	(void)close(fds[0]);
	(void)close(fds[1]);
	world.size_bytes = bytes >= ROOM_BYTES ? SIZE_BYTES : SIZE_BYTES_SMALL;
	return 0;
}

/* ---- answers ---- */

static void check_listing(const uint8_t *bytes, size_t length)
{
	size_t at = 0;

	while (at < length) {
		struct fuse_dirent entry;

		fuzz_check("an entry of a folder is whole", length - at >= FUSE_NAME_OFFSET);
		memcpy(&entry, bytes + at, FUSE_NAME_OFFSET);
		fuzz_check("an entry of a folder has a name, in its bounds",
			   entry.namelen > 0 && entry.namelen < 64 && FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET + entry.namelen) <= length - at);
		fuzz_check("an entry of a folder is a folder or a file", entry.type == 4 || entry.type == 8);
		at += FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET + entry.namelen);
	}
}

static void learn_node(const struct sent *sent, const struct fuse_entry_out *entry)
{
	fuzz_check("a file that is found has a number", entry->nodeid > 1);
	if (entry->nodeid == 2)
		return;
	for (unsigned i = FOLDERS; i < kernel.node_count; i++) {
		if (kernel.nodes[i].number != entry->nodeid)
			continue;
		kernel.nodes[i].lookups++;
		return;
	}
	fuzz_check("there are no more files than exports", kernel.node_count < NODES_MAX);
	kernel.nodes[kernel.node_count++] =
		(struct node){ .number = entry->nodeid, .lookups = 1, .exported = sent->exported };
}

static void check_data(const struct sent *sent, const uint8_t *bytes, size_t length)
{
	uint64_t there = sent->offset < world.size_bytes ? world.size_bytes - sent->offset : 0;

	fuzz_check("as much is read as was asked for, and is there",
		   length == (sent->length < there ? sent->length : there));
	fuzz_check("what is read is what is there", memory_is_right(bytes, sent->offset, length));
}

static void check_answer(struct sent *sent, const uint8_t *bytes, size_t length)
{
	const struct kind *kind = sent->kind;
	struct fuse_entry_out entry;

	fuzz_check("an answer has its kind's length", kind->answer == VARIES || length == kind->answer);
	switch (kind->opcode) {
	case FUSE_LOOKUP:
		memcpy(&entry, bytes, sizeof(entry));
		learn_node(sent, &entry);
		break;
	case FUSE_READ:
		check_data(sent, bytes, length);
		break;
	case FUSE_READDIR:
		fuzz_check("a listing is no longer than was asked for", length <= sent->length);
		check_listing(bytes, length);
		break;
	case FUSE_INIT:
		fuzz_check("the session begins", length == sizeof(struct fuse_init_out));
		break;
	default:
		break;
	}
}

static void take_answer(size_t bytes)
{
	struct sent *sent;

	fuzz_check("an answer says its length", bytes >= sizeof(in.header) && in.header.len == bytes);
	fuzz_check("an answer is to a message", in.header.unique >= 1 && in.header.unique <= kernel.sent_count);
	sent = &kernel.sent[in.header.unique - 1];
	fuzz_check("a message is answered once", !sent->answered);
	sent->answered = true;
	if (sent->node < kernel.node_count && kernel.nodes[sent->node].under_way > 0)
		kernel.nodes[sent->node].under_way--;
	/* libfuse asks for an interruption again when it comes before what it interrupts. */
	fuzz_check("what has no answer gets none", sent->kind->answer != NO_ANSWER || in.header.error == -EAGAIN);
	fuzz_check("an error is one", in.header.error <= 0 && in.header.error > -512);
	fuzz_check("an error comes alone", in.header.error == 0 || bytes == sizeof(in.header));
	fuzz_check("what is plainly allowed succeeds", in.header.error == 0 || !sent->must_work);
	if (in.header.error == 0)
		check_answer(sent, in.bytes + sizeof(in.header), bytes - sizeof(in.header));
}

static void receive(void)
{
	while (!kernel.ended) {
		ssize_t got = recv(kernel.fd, in.bytes, sizeof(in.bytes), MSG_DONTWAIT);

		if (got < 0 && errno == EAGAIN)
			return;
		kernel.ended = got <= 0;
		if (got > 0)
			take_answer((size_t)got);
	}
}

static void turn(void)
{
	if (loop_turn(world.loop, 0) != 0)
		abort();
	receive();
}

/* ---- messages ---- */

/* Sends what is in `out`, `bytes` of it after the header. */
static struct sent *send_message(const struct kind *kind, unsigned node, size_t bytes)
{
	struct sent *sent = &kernel.sent[kernel.sent_count];

	*sent = (struct sent){ .kind = kind, .node = node, .exported = kernel.nodes[node].exported };
	out.header = (struct fuse_in_header){
		.len = (uint32_t)(sizeof(out.header) + bytes),
		.opcode = kind->opcode,
		.unique = ++kernel.sent_count,
		.nodeid = kernel.nodes[node].number,
	};
	if (kind->answer != NO_ANSWER)
		kernel.nodes[node].under_way++;
	for (int turns = 0; !kernel.ended; turns++) {
		ssize_t result = send(kernel.fd, out.bytes, out.header.len, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (result >= 0)
			break;
		kernel.ended = errno != EAGAIN;
		fuzz_check("messages are read", turns < TURNS_MAX);
		(void)memory_finish_late(false);
		turn();
	}
	return sent;
}

static bool is_full(void)
{
	return kernel.sent_count + 3 > SENT_MAX;
}

static uint8_t *body(void)
{
	return out.bytes + sizeof(out.header);
}

static bool is_served(unsigned node)
{
	return node >= FOLDERS && !memory.exports[kernel.nodes[node].exported].gone && !kernel.quiesced &&
	       strcmp(memory_names[kernel.nodes[node].exported], "broken") != 0 &&
	       strcmp(memory_names[kernel.nodes[node].exported], "late") != 0;
}

static void step_lookup(struct fuzz_input *input)
{
	static const char *const others[4] = { "snapshots", "nothing", ".", "" };
	uint8_t which = fuzz_u8(input);
	unsigned exported = which / 2 % 8;
	const char *name = exported < MEMORY_EXPORTS ? memory_names[exported] : others[exported - MEMORY_EXPORTS];
	struct sent *sent;

	memcpy(body(), name, strlen(name) + 1);
	sent = send_message(&kind_lookup, which % FOLDERS, strlen(name) + 1);
	sent->exported = exported % MEMORY_EXPORTS;
	turn();
}

/* The numbers as the input has them; but lengths are kept in bounds, which the kernel does too. */
static void step_message(struct fuzz_input *input)
{
	const struct kind *kind = &kinds[fuzz_u8(input) % KINDS];
	unsigned node = fuzz_u8(input) % kernel.node_count;
	uint8_t *at = body() + kind->bytes;
	struct fuse_read_in read;
	uint64_t unique;
	struct sent *sent;

	fuzz_take(input, body(), kind->bytes);
	for (uint32_t i = 0; i < kind->names; i++) {
		uint8_t length = fuzz_u8(input) % 80;

		fuzz_take(input, at, length);
		for (uint8_t *end = at + length; at < end; at++)
			*at = *at == 0 ? '/' : *at;
		*at++ = '\0';
	}
	memcpy(&read, body(), sizeof(read));
	if (kind->opcode == FUSE_READ || kind->opcode == FUSE_READDIR || kind->opcode == FUSE_READDIRPLUS) {
		read.size %= kind->opcode == FUSE_READ ? world.size_bytes : 65536;
		memcpy(body(), &read, sizeof(read));
	}
	if (kind->opcode == FUSE_INTERRUPT) {
		memcpy(&unique, body(), sizeof(unique));
		unique = unique % (kernel.sent_count + 2) + 1;
		memcpy(body(), &unique, sizeof(unique));
	}
	sent = send_message(kind, node, (size_t)(at - body()));
	sent->offset = read.offset;
	sent->length = read.size;
	turn();
	/* libfuse keeps one that interrupts nothing until the next message, and when there is none for ever. */
	if (kind->opcode == FUSE_INTERRUPT)
		(void)send_message(&kind_statfs, 0, 0);
	turn();
}

static void step_read(unsigned node, uint64_t offset, uint32_t length)
{
	struct fuse_read_in read = { .offset = offset, .size = length };
	struct sent *sent;

	memcpy(body(), &read, sizeof(read));
	sent = send_message(&kind_read, node, sizeof(read));
	sent->offset = offset;
	sent->length = length;
	sent->must_work = is_served(node) && length <= DATA_BYTES_MAX;
}

static void step_write(unsigned node, uint64_t offset, uint32_t length, uint32_t flags)
{
	struct fuse_write_in write = { .offset = offset, .size = length, .flags = flags };
	struct sent *sent;

	memcpy(body(), &write, sizeof(write));
	memory_fill(body() + sizeof(write), offset, length);
	sent = send_message(&kind_write, node, sizeof(write) + length);
	sent->must_work = is_served(node) && !memory.exports[kernel.nodes[node].exported].read_only &&
			  (offset < world.size_bytes || length == 0);
}

static void step_data(struct fuzz_input *input)
{
	uint8_t which = fuzz_u8(input);
	unsigned node = which / 8 % kernel.node_count;
	uint32_t offset = fuzz_u32(input), length = fuzz_u32(input) % (DATA_BYTES_MAX + 1);

	if (world.size_bytes == SIZE_BYTES_SMALL || which & 4)
		length %= 65537;
	if (which & 2)
		offset %= (uint32_t)world.size_bytes;
	if (which & 1)
		step_write(node, offset, length, offset & 1 ? O_DSYNC : 0);
	else
		step_read(node, offset, length);
	turn();
}

static void forget_node(unsigned node)
{
	if (kernel.nodes[node].lookups == 0)
		kernel.nodes[node] = kernel.nodes[--kernel.node_count];
	/* Messages name nodes by their places. */
	for (uint64_t i = 0; i < kernel.sent_count; i++)
		if (kernel.sent[i].node == kernel.node_count)
			kernel.sent[i].node = node;
}

/* The kernel forgets what it uses no more, and no more often than it was told. */
static void step_forget(struct fuzz_input *input)
{
	unsigned node = fuzz_u8(input) % kernel.node_count;
	uint64_t times = fuzz_u8(input), number = kernel.nodes[node].number;
	struct fuse_batch_forget_in batch = { .count = 1 };
	struct fuse_forget_one one;
	bool in_batch = times & 1;

	if (node < FOLDERS || kernel.nodes[node].under_way > 0)
		return;
	times = times / 2 % kernel.nodes[node].lookups + 1;
	one = (struct fuse_forget_one){ .nodeid = number, .nlookup = times };
	if (in_batch) {
		memcpy(body(), &batch, sizeof(batch));
		memcpy(body() + sizeof(batch), &one, sizeof(one));
		(void)send_message(&kind_batch_forget, 0, sizeof(batch) + sizeof(one));
	} else {
		memcpy(body(), &times, sizeof(times));
		(void)send_message(&kind_forget, node, sizeof(times));
	}
	turn();
	kernel.nodes[node].lookups -= times;
	if (kernel.nodes[node].lookups == 0)
		forget_node(node);
}

static void expect_refusals(void)
{
	turn();
	for (uint64_t i = 0; i < kernel.sent_count; i++)
		kernel.sent[i].must_work = false;
}

static void take_step(struct fuzz_input *input)
{
	enum step step = fuzz_u8(input) % STEP_COUNT;
	struct export *export;
	uint8_t how;

	switch (step) {
	case STEP_LOOKUP:
		step_lookup(input);
		break;
	case STEP_MESSAGE:
		step_message(input);
		break;
	case STEP_DATA:
		step_data(input);
		break;
	case STEP_FORGET:
		step_forget(input);
		break;
	case STEP_FINISH_LATE:
		how = fuzz_u8(input);
		for (unsigned i = 0; i <= how / 16u; i++) {
			(void)memory_finish_late(how & 1);
			turn();
		}
		break;
	case STEP_REMOVE:
		export = &memory.exports[fuzz_u8(input) % MEMORY_EXPORTS];
		expect_refusals();
		if (!export->gone)
			export_remove(&memory.table, export);
		break;
	case STEP_QUIESCE:
	case STEP_COUNT:
		expect_refusals();
		kernel.quiesced = true;
		kernel.transport->ops->quiesce(kernel.transport);
		break;
	}
}

/* ---- one input ---- */

static void session_begin(uint8_t first)
{
	struct fuse_init_in init = { .major = 7, .minor = 26u + first % 12, .max_readahead = 131072 };
	int fds[2], bytes;
	char directory[32];

	memset(&kernel, 0, sizeof(kernel));
	kernel.nodes[0].number = FUSE_ROOT_ID;
	kernel.nodes[1].number = 2;
	kernel.node_count = FOLDERS;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) != 0)
		abort();
	make_room(fds[0], &bytes);
	make_room(fds[1], &bytes);
	kernel.fd = fds[1];
	(void)snprintf(directory, sizeof(directory), "/dev/fd/%d", fds[0]);
	if (fuse_start(world.loop, &memory.table, world.arena, directory, &kernel.transport) != 0)
		abort();
	init.flags = first & 16 ? UINT32_MAX & ~(uint32_t)FUSE_INIT_EXT : FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_MAX_PAGES;
	memcpy(body(), &init, sizeof(init));
	(void)send_message(&kind_init, 0, sizeof(init));
	turn();
	fuzz_check("the first message is answered", kernel.sent[0].answered);
}

static void finish_late(void)
{
	while (memory_finish_late(false))
		turn();
	for (int turns = 0; !kernel.transport->ops->is_idle(kernel.transport); turns++) {
		fuzz_check("the transport becomes idle", turns < TURNS_MAX);
		(void)memory_finish_late(false);
		turn();
	}
	turn();
}

static void session_end(uint8_t first)
{
	if (first & 32) {
		/* Somebody unmounts, whatever is under way. */
		(void)close(kernel.fd);
		kernel.ended = true;
		turn();
		finish_late();
	} else {
		finish_late();
		for (uint64_t i = 0; i < kernel.sent_count; i++)
			fuzz_check("a message is answered",
				   kernel.sent[i].answered || kernel.sent[i].kind->answer == NO_ANSWER);
		if (first & 64) {
			(void)send_message(&kind_destroy, 0, 0);
			turn();
		}
	}
	kernel.transport->ops->quiesce(kernel.transport);
	kernel.transport->ops->close(kernel.transport);
	if (!(first & 32))
		(void)close(kernel.fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_input input = { data, size };
	uint8_t first = fuzz_u8(&input);
	int descriptor = fuzz_free_descriptor();

	memory_begin(world.size_bytes, MEMORY_ALL);
	memory.exports[0].can_punch = (first & 128) != 0;
	session_begin(first);
	for (int steps = 0; input.left > 0 && steps < STEPS_MAX && !is_full() && !kernel.ended; steps++)
		take_step(&input);
	session_end(first);
	fuzz_check("all memory is back", arena_bytes_used(world.arena) == 0 && !arena_is_wanted(world.arena));
	fuzz_check("no descriptor is left", fuzz_free_descriptor() == descriptor);
	memory_end();
	return 0;
}
