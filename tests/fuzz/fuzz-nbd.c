/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * NBD: negotiation and requests, as a client sends them, by the real server on its socket.
 *
 * The input's first byte says whether the client is an orderly one. An orderly client sends whole options, and waits
 * for the answer to each; whole commands with cookies of their own; and what it writes is what belongs there. Then the
 * input is a row of steps (enum step), and
 *
 *   1. every option has its answer, well formed, of its own number; the last of them is an acknowledgment or an error
 *   2. every command is answered, once, by the kind of reply that was agreed, and a reply's data is that of the place
 *   3. what is plainly allowed succeeds
 *
 * Another client sends the input's bytes as they are, in pieces, or mixes such bytes in with its steps. Then what comes
 * back is at least a greeting and answers to options, for as long as it negotiates. In either case
 *
 *   4. the connection comes to its end, and nothing is left: no memory, no descriptor, no request, no reference
 */
#include <sys/socket.h>
#include <sys/un.h>

#include "io/log.h"
#include "io/nbd-connection.h"
#include "io/nbd-protocol.h"
#include "tests/fuzz/memory-exports.h"

#define SIZE_BYTES (UINT64_C(1) << 20)
#define ARENA_BYTES ((size_t)40 << 20)
#define LENGTH_MAX 200000u
#define TURNS_MAX 20000
#define STEPS_MAX 96
#define COMMANDS_MAX 512u
#define IN_BYTES ((size_t)1 << 20)

enum step {
	STEP_OPTION,      /* u8 option, u8 length, data */
	STEP_GO,          /* u8 of the option (INFO, GO, EXPORT_NAME) and the export, u8 how many infos */
	STEP_STRUCTURED,  /* agree on structured replies, and on base:allocation for an export (u8) */
	STEP_COMMAND,     /* u8 command, u8 flags, u32 offset, u32 length */
	STEP_FLUSH,       /* what is to be sent goes out, and the server has a turn */
	STEP_FINISH_LATE, /* u8: which first, and how many */
	STEP_REMOVE,      /* u8: an export goes */
	STEP_QUIESCE,
	STEP_RAW,         /* u8 length, bytes: not orderly any more */
	STEP_COUNT,
};

struct command {
	uint64_t offset;
	uint32_t length;
	uint16_t command, flags;
	bool answered, must_work;
};

static struct {
	struct loop *loop;
	struct arena *arena;
	char path[64];
	struct transport *transport; /* of this input */
} world;

static struct {
	int fd;
	bool orderly, ended, transmission, structured, no_zeroes, quiesced;
	int exported; /* in transmission: memory.exports[]'s index */
	struct command commands[COMMANDS_MAX];
	uint32_t command_count;
	uint8_t *out;
	size_t out_bytes, out_room;
	uint8_t in[IN_BYTES];
	size_t in_bytes;
} client;

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	log_silence();
	if (loop_create(&world.loop) != 0 || arena_create(ARENA_BYTES, &world.arena) != 0)
		abort();
	(void)snprintf(world.path, sizeof(world.path), "/tmp/rowsnap-fuzz-nbd.%ld", (long)getpid());
	return 0;
}

/* ---- sending and receiving ---- */

static void say(const void *bytes, size_t count)
{
	if (client.out_bytes + count > client.out_room) {
		client.out_room = (client.out_bytes + count) * 2;
		client.out = realloc(client.out, client.out_room);
		if (client.out == NULL)
			abort();
	}
	if (count > 0)
		memcpy(client.out + client.out_bytes, bytes, count);
	client.out_bytes += count;
}

static void consume(size_t bytes)
{
	client.in_bytes -= bytes;
	memmove(client.in, client.in + bytes, client.in_bytes);
}

static void take_replies(void);

static void receive(void)
{
	while (!client.ended) {
		ssize_t got = recv(client.fd, client.in + client.in_bytes, IN_BYTES - client.in_bytes, MSG_DONTWAIT);

		if (got < 0 && errno == EAGAIN)
			return;
		if (got <= 0) {
			client.ended = true;
			return;
		}
		client.in_bytes += (size_t)got;
		take_replies();
	}
}

static void turn(void)
{
	if (loop_turn(world.loop, 0) != 0)
		abort();
	receive();
}

static void flush(void)
{
	size_t sent = 0;

	for (int turns = 0; sent < client.out_bytes && !client.ended; turns++) {
		ssize_t result = send(client.fd, client.out + sent, client.out_bytes - sent, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (result > 0)
			sent += (size_t)result;
		else if (errno != EAGAIN)
			client.ended = true;
		turn();
		/* A client whose late requests have used up the pool waits for them. */
		if (result < 0 && turns > 16)
			(void)memory_finish_late(false);
		fuzz_check("the server goes on reading", turns < TURNS_MAX);
	}
	client.out_bytes = 0;
	turn();
}

/* ---- replies ---- */

static void check_data(const struct command *command, const uint8_t *data)
{
	fuzz_check("what is read is what is there", memory_is_right(data, command->offset, command->length));
}

static struct command *command_of(uint64_t cookie)
{
	fuzz_check("a reply is to a command", cookie < client.command_count);
	fuzz_check("a command is answered once", !client.commands[cookie].answered);
	return &client.commands[cookie];
}

static void command_answered(struct command *command, uint32_t error)
{
	command->answered = true;
	fuzz_check("what is plainly allowed succeeds", error == 0 || !command->must_work);
	fuzz_check("what succeeds lies within the export",
		   error != 0 || command->command == NBD_CMD_FLUSH ||
			   (command->offset <= SIZE_BYTES && command->length <= SIZE_BYTES - command->offset));
}

static bool is_by_chunk(const struct command *command)
{
	return client.structured && (command->command == NBD_CMD_READ || command->command == NBD_CMD_BLOCK_STATUS);
}

/* The take_ functions return false while the reply is not whole. */
static bool take_simple(void)
{
	uint32_t error = nbd_get32(client.in + 4);
	struct command *command = command_of(nbd_get64(client.in + 8));
	size_t bytes = NBD_SIMPLE_REPLY_BYTES;

	if (error == 0 && command->command == NBD_CMD_READ)
		bytes += command->length;
	if (client.in_bytes < bytes)
		return false;
	fuzz_check("a simple reply is what was agreed", !is_by_chunk(command));
	if (bytes > NBD_SIMPLE_REPLY_BYTES)
		check_data(command, client.in + NBD_SIMPLE_REPLY_BYTES);
	command_answered(command, error);
	consume(bytes);
	return true;
}

static void check_extents(const struct command *command, const uint8_t *data, uint32_t length)
{
	uint64_t at = command->offset;

	fuzz_check("extents are of base:allocation, and whole",
		   length >= 12 && length % 8 == 4 && nbd_get32(data) == NBD_ALLOCATION_ID);
	fuzz_check("one extent where one was asked for", !(command->flags & NBD_CMD_FLAG_REQ_ONE) || length == 12);
	for (uint32_t i = 4; i < length; i += 8) {
		uint32_t flags = nbd_get32(data + i + 4);

		fuzz_check("an extent has a length and known flags", nbd_get32(data + i) > 0 && (flags & ~3u) == 0);
		fuzz_check("an extent says what is there", (flags == 3) == memory_is_hole(at));
		at += nbd_get32(data + i);
	}
	fuzz_check("extents end where the range does", at <= command->offset + command->length);
}

static void check_chunk(struct command *command, unsigned type, const uint8_t *data, uint32_t length)
{
	uint32_t error = 0;

	switch (type) {
	case NBD_CHUNK_NONE:
		fuzz_check("an empty chunk is of an empty read",
			   length == 0 && command->command == NBD_CMD_READ && command->length == 0);
		break;
	case NBD_CHUNK_OFFSET_DATA:
		fuzz_check("a chunk of data is all that was asked for",
			   command->command == NBD_CMD_READ && length == 8 + command->length &&
				   nbd_get64(data) == command->offset);
		check_data(command, data + 8);
		break;
	case NBD_CHUNK_BLOCK_STATUS:
		fuzz_check("extents are for who asks for them", command->command == NBD_CMD_BLOCK_STATUS);
		check_extents(command, data, length);
		break;
	default:
		error = length >= 6 ? nbd_get32(data) : 0;
		fuzz_check("an error chunk has an error",
			   type == NBD_CHUNK_ERROR && error != 0 && length == 6u + nbd_get16(data + 4));
		break;
	}
	command_answered(command, error);
}

static bool take_chunk(void)
{
	const uint8_t *in = client.in;
	struct command *command;
	uint32_t length;

	if (client.in_bytes < NBD_CHUNK_BYTES)
		return false;
	length = nbd_get32(in + 16);
	fuzz_check("a chunk is no longer than it can be", length <= LENGTH_MAX + 16);
	if (client.in_bytes < NBD_CHUNK_BYTES + length)
		return false;
	command = command_of(nbd_get64(in + 8));
	fuzz_check("a chunk is what was agreed, and the only one",
		   is_by_chunk(command) && nbd_get16(in + 4) == NBD_CHUNK_FLAG_DONE);
	check_chunk(command, nbd_get16(in + 6), in + NBD_CHUNK_BYTES, length);
	consume(NBD_CHUNK_BYTES + length);
	return true;
}

static bool take_reply(void)
{
	uint32_t magic;

	if (client.in_bytes < NBD_SIMPLE_REPLY_BYTES)
		return false;
	magic = nbd_get32(client.in);
	fuzz_check("a reply has a reply's magic", magic == NBD_MAGIC_SIMPLE_REPLY || magic == NBD_MAGIC_CHUNK);
	return magic == NBD_MAGIC_CHUNK ? take_chunk() : take_simple();
}

/* While it is orderly, negotiation's answers are left to who waits for them. */
static void take_replies(void)
{
	if (!client.orderly)
		client.in_bytes = 0;
	while (client.orderly && client.transmission && take_reply())
		;
}

/* ---- an orderly negotiation ---- */

static bool wait_for(size_t bytes)
{
	for (int turns = 0; client.in_bytes < bytes && !client.ended; turns++) {
		fuzz_check("an option is answered", turns < TURNS_MAX);
		turn();
	}
	return client.in_bytes >= bytes;
}

/* Sends it and takes the answers. Returns the last one's type, or 0: the connection has ended. */
static uint32_t option(uint32_t number, const void *data, uint32_t bytes)
{
	uint8_t header[NBD_OPTION_BYTES];

	nbd_put64(header, NBD_MAGIC_OPTION);
	nbd_put32(header + 8, number);
	nbd_put32(header + 12, bytes);
	say(header, sizeof(header));
	say(data, bytes);
	flush();
	while (client.orderly && number != NBD_OPT_EXPORT_NAME && wait_for(NBD_OPTION_REPLY_BYTES)) {
		uint32_t type = nbd_get32(client.in + 12), length = nbd_get32(client.in + 16);

		fuzz_check("an answer is to its option, and bounded", nbd_get64(client.in) == NBD_MAGIC_OPTION_REPLY &&
									      nbd_get32(client.in + 8) == number &&
									      length <= 4096);
		fuzz_check("an answer is whole", wait_for(NBD_OPTION_REPLY_BYTES + length));
		consume(NBD_OPTION_REPLY_BYTES + length);
		if (type == NBD_REP_ACK || type >= NBD_REP_ERR_UNSUP)
			return type;
		fuzz_check("an answer has a known type", type >= NBD_REP_SERVER && type <= NBD_REP_META_CONTEXT);
	}
	return 0;
}

static void begin_transmission(uint8_t which)
{
	client.exported = which;
	client.transmission = true;
	take_replies();
}

static void step_go(struct fuzz_input *input)
{
	static const uint32_t options[3] = { NBD_OPT_INFO, NBD_OPT_GO, NBD_OPT_EXPORT_NAME };
	uint8_t which = fuzz_u8(input), infos = fuzz_u8(input) % 8, data[128];
	uint32_t number = options[which / 16 % 3], bytes = 0;
	const char *name;
	size_t length;

	which %= MEMORY_EXPORTS;
	name = memory_names[which];
	length = strlen(name);
	if (number == NBD_OPT_EXPORT_NAME) {
		(void)option(number, name, (uint32_t)length);
		if (!client.orderly || !wait_for(10))
			return;
		fuzz_check("the export's size is told", nbd_get64(client.in) == SIZE_BYTES);
		fuzz_check("zeroes follow, if wanted", wait_for(client.no_zeroes ? 10 : 10 + NBD_EXPORT_NAME_ZEROES));
		consume(client.no_zeroes ? 10 : 10 + NBD_EXPORT_NAME_ZEROES);
		begin_transmission(which);
		return;
	}
	nbd_put32(data, (uint32_t)length);
	memcpy(data + 4, name, length);
	nbd_put16(data + 4 + length, infos);
	bytes = (uint32_t)(6 + length);
	for (unsigned i = 0; i < infos; i++, bytes += 2)
		nbd_put16(data + bytes, fuzz_u8(input) % 6);
	if (option(number, data, bytes) == NBD_REP_ACK && number == NBD_OPT_GO)
		begin_transmission(which);
}

static void step_structured(struct fuzz_input *input)
{
	const char *name = memory_names[fuzz_u8(input) % MEMORY_EXPORTS], context[] = "base:allocation";
	uint8_t data[128];
	size_t length = strlen(name), bytes = strlen(context);

	if (option(NBD_OPT_STRUCTURED_REPLY, NULL, 0) != NBD_REP_ACK)
		return;
	client.structured = true;
	nbd_put32(data, (uint32_t)length);
	memcpy(data + 4, name, length);
	nbd_put32(data + 4 + length, 1);
	nbd_put32(data + 8 + length, (uint32_t)bytes);
	memcpy(data + 12 + length, context, bytes);
	(void)option(NBD_OPT_SET_META_CONTEXT, data, (uint32_t)(12 + length + bytes));
}

static void step_option(struct fuzz_input *input)
{
	uint8_t number = fuzz_u8(input), length = fuzz_u8(input), data[256];
	uint32_t type;

	fuzz_take(input, data, length);
	/* An export's name taken from the input may be the name of one: that is step_go()'s. */
	if (number == NBD_OPT_EXPORT_NAME)
		number = 0;
	type = option(number, data, length);
	if (type != NBD_REP_ACK)
		return;
	if (number == NBD_OPT_STRUCTURED_REPLY)
		client.structured = true;
	if (number == NBD_OPT_GO)
		client.orderly = false; /* which export it was is not known here */
}

/* ---- commands ---- */

static void step_command(struct fuzz_input *input)
{
	static const uint16_t commands[8] = { 0, 1, 3, 4, 6, 7, 1, 9 };
	uint8_t kind = fuzz_u8(input), flags = fuzz_u8(input), header[NBD_REQUEST_BYTES];
	uint32_t cookie = client.command_count, offset = fuzz_u32(input), length = fuzz_u32(input) % LENGTH_MAX;
	struct command *command = &client.commands[cookie];
	const struct export *export;

	if ((client.orderly && !client.transmission) || client.command_count == COMMANDS_MAX)
		return;
	export = &memory.exports[client.exported];
	client.command_count++;
	*command = (struct command){ .command = commands[kind % 8], .flags = flags & 15, .length = length };
	command->offset = kind & 64 ? offset : offset % SIZE_BYTES;
	if (command->command == NBD_CMD_FLUSH && !(kind & 32)) {
		command->offset = 0;
		command->length = 0;
	}
	if (kind & 128)
		command->length %= 8192;
	command->must_work = !export->gone && !client.quiesced && client.exported != 3 && (flags & 14) == 0 &&
			     command->offset <= SIZE_BYTES && command->length <= SIZE_BYTES - command->offset &&
			     (command->command == NBD_CMD_READ || (command->command == NBD_CMD_WRITE && !export->read_only));
	/* What goes while it is under way is answered with an error. */
	if (client.exported == 2)
		command->must_work = false;
	nbd_put32(header, NBD_MAGIC_REQUEST);
	nbd_put16(header + 4, command->flags);
	nbd_put16(header + 6, command->command);
	nbd_put64(header + 8, cookie);
	nbd_put64(header + 16, command->offset);
	nbd_put32(header + 24, command->length);
	say(header, sizeof(header));
	if (command->command == NBD_CMD_WRITE) {
		uint8_t *payload = malloc(command->length + 1);

		if (payload == NULL)
			abort();
		memory_fill(payload, command->offset, command->length);
		say(payload, command->length);
		free(payload);
	}
}

/* Something is about to go: what has no answer by now may be refused. */
static void expect_refusals(void)
{
	flush();
	for (uint32_t i = 0; i < client.command_count; i++)
		client.commands[i].must_work = false;
}

static void step_remove(struct fuzz_input *input)
{
	struct export *export = &memory.exports[fuzz_u8(input) % MEMORY_EXPORTS];

	expect_refusals();
	if (!export->gone)
		export_remove(&memory.table, export);
}

static void step_raw(struct fuzz_input *input)
{
	uint8_t length = fuzz_u8(input), bytes[256];

	client.orderly = false;
	memory.writes_foreign = true;
	fuzz_take(input, bytes, length);
	say(bytes, length);
}

static void step_finish_late(struct fuzz_input *input)
{
	uint8_t how = fuzz_u8(input);

	flush();
	for (unsigned i = 0; i <= how / 16u; i++)
		(void)memory_finish_late(how & 1);
}

static void take_step(struct fuzz_input *input)
{
	enum step step = fuzz_u8(input) % STEP_COUNT;

	switch (step) {
	case STEP_OPTION:
		if (!client.transmission)
			step_option(input);
		break;
	case STEP_GO:
		if (!client.transmission)
			step_go(input);
		break;
	case STEP_STRUCTURED:
		if (!client.transmission)
			step_structured(input);
		break;
	case STEP_COMMAND:
		step_command(input);
		break;
	case STEP_FLUSH:
		flush();
		break;
	case STEP_FINISH_LATE:
		step_finish_late(input);
		break;
	case STEP_REMOVE:
		step_remove(input);
		break;
	case STEP_QUIESCE:
		expect_refusals();
		world.transport->ops->quiesce(world.transport);
		client.quiesced = true;
		break;
	case STEP_RAW:
	case STEP_COUNT:
		step_raw(input);
		break;
	}
}

/* The bytes as they are, in pieces whose lengths they say themselves. */
static void send_raw(struct fuzz_input *input)
{
	uint8_t pieces = fuzz_u8(input);

	memory.writes_foreign = true;
	while (input->left > 0 && !client.ended) {
		size_t piece = pieces == 0 || pieces > input->left ? input->left : pieces;

		say(input->at, piece);
		input->at += piece;
		input->left -= piece;
		flush();
		(void)memory_finish_late(pieces & 1);
	}
}

/* ---- one input ---- */

static void client_begin(uint8_t first)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	uint8_t flags[4] = { 0, 0, 0, (uint8_t)(1 + (first & 2)) };
	uint8_t *out = client.out;
	size_t room = client.out_room;

	memset(&client, 0, offsetof(__typeof__(client), in));
	client.in_bytes = 0;
	client.out = out;
	client.out_room = room;
	memcpy(address.sun_path, world.path, strlen(world.path) + 1);
	client.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (client.fd < 0 || connect(client.fd, (const struct sockaddr *)&address, sizeof(address)) != 0)
		abort();
	client.orderly = true;
	fuzz_check("there is a greeting", wait_for(NBD_GREETING_BYTES));
	fuzz_check("the greeting is one", nbd_get64(client.in) == NBD_MAGIC_GREETING &&
						  nbd_get64(client.in + 8) == NBD_MAGIC_OPTION);
	consume(NBD_GREETING_BYTES);
	client.no_zeroes = flags[3] & NBD_FLAG_NO_ZEROES;
	client.orderly = first & 1;
	if (client.orderly)
		say(flags, sizeof(flags));
}

/* It sends no more. What was sent is answered, then the server closes. */
static void client_end(void)
{
	flush();
	while (memory_finish_late(false))
		;
	flush();
	(void)shutdown(client.fd, SHUT_WR);
	for (int turns = 0; !client.ended; turns++) {
		fuzz_check("the connection comes to its end", turns < TURNS_MAX);
		turn();
		(void)memory_finish_late(false);
	}
	(void)close(client.fd);
	/* Where the server has ended it, requests may still be with the engine. */
	while (memory_finish_late(false))
		;
	turn();
	for (uint32_t i = 0; client.orderly && i < client.command_count; i++)
		fuzz_check("a command is answered, unless its export has gone",
			   client.commands[i].answered || memory.exports[client.exported].gone);
	fuzz_check("nothing is left of a reply", !client.orderly || client.in_bytes == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_input input = { data, size };
	uint8_t first = fuzz_u8(&input);
	int descriptor = fuzz_free_descriptor();

	memory_begin(SIZE_BYTES, MEMORY_ALL);
	if (nbd_start(world.loop, &memory.table, world.arena, world.path, &world.transport) != 0)
		abort();
	client_begin(first);
	if (!client.orderly)
		send_raw(&input);
	for (int steps = 0; input.left > 0 && steps < STEPS_MAX && !client.ended; steps++)
		take_step(&input);
	client_end();
	fuzz_check("the server is idle", world.transport->ops->is_idle(world.transport));
	world.transport->ops->close(world.transport);
	fuzz_check("all memory is back", arena_bytes_used(world.arena) == 0 && !arena_is_wanted(world.arena));
	fuzz_check("no descriptor is left", fuzz_free_descriptor() == descriptor);
	memory_end();
	return 0;
}
