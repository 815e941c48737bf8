/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The control protocol, by the real server on its socket with the commands' real handlers: they list, take and drop
 * snapshots of a volume on disks in memory.
 *
 * The input: a byte that says in what pieces the rest is sent (and, by its highest bit, whether a great many blanks come
 * before), and what is sent. There are the stores /a, /b, /c (formatted) and /d (not).
 *
 *   1. Every line that comes back is one JSON object: a result, an error or progress.
 *   2. Every line that was sent gets one result or one error, at the latest when the server ends. What is no JSON object
 *      is refused, and is the last thing that is answered.
 *   3. The volume stops cleanly, whatever was asked for, and its chain is one.
 *   4. Nothing is left: no memory, no descriptor.
 */
#include <sys/socket.h>
#include <sys/un.h>

#include "cmd/server.h"
#include "core/engine.h"
#include "io/log.h"
#define MEMORY_FILES 5u
#include "tests/fuzz/memory-world.h"

#define ORIGIN_BYTES (64u * 4096)
#define STORES 3u
#define SIZE_MAX_BYTES (UINT64_C(4) << 20)
#define TURNS_MAX 20000
#define BLANKS_BYTES 65500u

static struct server server;
static char path[64];
static const char *const store_names[] = { "/a", "/b", "/c", "/d" };

static struct {
	int fd;
	struct control_buffer in;
	size_t lines, finals;
	bool refused, ended;
} client;

/* ---- of the server, what serve.c does ---- */

void server_begin_stop(struct server *stopped, bool force)
{
	stopped->stopping = true;
	stopped->forced = stopped->forced || force;
}

bool server_has_devices(const struct server *asked)
{
	(void)asked;
	return false;
}

bool server_device_is_settled(const struct server *asked, const char *name)
{
	(void)asked;
	(void)name;
	return true;
}

/* There are no loop devices. */
void loopdev_ask(struct transport *transport, struct loopdev_question *question)
{
	(void)transport;
	(void)question;
	abort();
}

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	log_silence();
	if (loop_create(&server.loop) != 0 || arena_create(ARENA_PAGE_BYTES, &server.arena) != 0)
		abort();
	(void)snprintf(path, sizeof(path), "/tmp/rowsnap-fuzz-control.%ld", (long)getpid());
	return 0;
}

static void format_store(unsigned index)
{
	struct disk *disk;
	uuid128_t uuid;

	(void)memory_file_make(index + 1, store_names[index], 0);
	if (disk_open(server.host, store_names[index], 0, &disk) != 0 ||
	    store_format_wait(server.host, disk, 4096, 0, 4, &uuid) != 0)
		abort();
	disk_close(disk);
}

static void server_begin(void)
{
	static const struct volume_options options = { .name = "fuzz", .state_directory = "/nowhere" };
	struct complaint complaint;

	memory_world_begin(SIZE_MAX_BYTES);
	(void)memory_file_make(0, "/origin", ORIGIN_BYTES);
	(void)memory_file_make(STORES + 1, "/d", 4096);
	if (disk_host_create(64, &server.host) != 0)
		abort();
	for (unsigned i = 0; i < STORES; i++)
		format_store(i);
	export_table_init(&server.exports);
	list_init(&server.pending);
	list_init(&server.stop_clients);
	server.stopping = false;
	server.forced = false;
	server.quiescing = false;
	server.stopped = false;
	server.exit_code = EXIT_DONE;
	memset(&server.stop, 0, sizeof(server.stop));
	if (volume_open(server.host, &server.exports, "/origin", NULL, 0, &options, &server.volume, &complaint) != 0 ||
	    control_start(server.loop, path, &server_control_ops, &server, &server.control) != 0)
		abort();
}

/* ---- the client ---- */

static void take_reply(struct json_object *reply)
{
	struct json_object *error = NULL;
	bool is_error = json_object_object_get_ex(reply, "error", &error);
	bool is_result = json_object_object_get_ex(reply, "result", NULL);
	bool is_progress = json_object_object_get_ex(reply, "progress", NULL);

	fuzz_check("nothing comes after a refusal", !client.refused);
	fuzz_check("a reply is one thing", is_error + is_result + is_progress == 1 && json_object_object_length(reply) == 1);
	if (is_error && json_object_is_type(error, json_type_string)) {
		client.refused = true;
		return;
	}
	fuzz_check("an error says what, and why",
		   !is_error || (json_object_object_get_ex(error, "what", NULL) &&
				 json_object_object_get_ex(error, "why", NULL) && json_object_object_length(error) == 2));
	client.finals += is_error || is_result;
}

static bool has_line(void)
{
	return client.in.used > 0 && memchr(client.in.bytes, '\n', client.in.used) != NULL;
}

static bool receive_bytes(void)
{
	uint8_t byte;
	ssize_t got = recv(client.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);

	if (got == 0 || (got < 0 && errno != EAGAIN))
		client.ended = true;
	return got > 0;
}

/* control_receive() waits for a whole line, and a reply is sent at once: it does not wait here. */
static void receive(void)
{
	while (!client.ended && (has_line() || receive_bytes())) {
		struct json_object *reply = NULL;
		int error = control_receive(client.fd, &client.in, &reply);

		fuzz_check("a line from the server is a JSON object", error == 0 || error == -EPIPE);
		if (error == 0)
			take_reply(reply);
		else
			client.ended = true;
		json_object_put(reply);
	}
}

static void turn(void)
{
	if (loop_turn(server.loop, 0) != 0)
		abort();
	(void)disk_host_poll(server.host);
	volume_turn(server.volume);
	(void)disk_host_poll(server.host);
	server_send_progress(&server);
	server_finish_pending(&server);
	server.quiescing = server.quiescing || server.stopping;
	receive();
}

static void say(const void *bytes, size_t count)
{
	const char *at = bytes;

	for (size_t i = 0; i < count; i++)
		client.lines += at[i] == '\n';
	for (int turns = 0; count > 0 && !client.ended; turns++) {
		ssize_t sent = send(client.fd, at, count, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (sent > 0) {
			at += sent;
			count -= (size_t)sent;
		} else if (errno != EAGAIN) {
			client.ended = true;
		}
		fuzz_check("the server goes on reading", turns < TURNS_MAX);
		turn();
	}
}

static void say_blanks(void)
{
	char *blanks = malloc(BLANKS_BYTES);

	if (blanks == NULL)
		abort();
	memset(blanks, ' ', BLANKS_BYTES);
	say(blanks, BLANKS_BYTES);
	free(blanks);
}

static void client_begin(void)
{
	memset(&client, 0, sizeof(client));
	client.fd = control_connect(path);
	if (client.fd < 0)
		abort();
}

static void client_run(struct fuzz_input *input)
{
	uint8_t pieces = fuzz_u8(input);
	size_t piece = pieces & 0x7f;

	if (pieces & 0x80)
		say_blanks();
	while (input->left > 0 && !client.ended) {
		size_t here = piece == 0 || piece > input->left ? input->left : piece;

		say(input->at, here);
		input->at += here;
		input->left -= here;
	}
}

/* ---- the end ---- */

static void stop_done(struct operation *operation, int error)
{
	(void)operation;
	server.stopped = true;
	fuzz_check("the volume stops cleanly", error == 0);
}

static bool is_busy(void)
{
	return server.volume->operation != NULL || server.volume->fold != NULL ||
	       !list_is_empty(&server.volume->operations);
}

static void check_chain(void)
{
	const struct volume *volume = server.volume;

	for (size_t i = 0; i < volume->chain_count; i++) {
		const struct superblock *superblock = &volume->chain[i]->store->superblock;
		size_t index = CHAIN_STORES_MAX;

		fuzz_check("a snapshot has a name, and no other has it",
			   name_is_valid(superblock->name) &&
				   volume_find(volume, superblock->name, &index) != NULL && index == i);
		fuzz_check("the newest is active, the others are sealed",
			   superblock->state == (i + 1 == volume->chain_count ? STATE_ACTIVE : STATE_SEALED));
	}
}

static void server_end(void)
{
	for (int turns = 0; is_busy(); turns++) {
		fuzz_check("what was asked for comes to its end", turns < TURNS_MAX);
		turn();
	}
	check_chain();
	server.stop = (struct operation){ .done = stop_done };
	server.stopping = true;
	server.quiescing = true;
	volume_stop(server.volume, &server.stop);
	for (int turns = 0; !server.stopped; turns++) {
		fuzz_check("the volume comes to its end", turns < TURNS_MAX);
		turn();
	}
	volume_close(server.volume);
	server_end_pending(&server);
	server_answer_stops(&server);
	control_stop(server.control);
	receive();
	(void)close(client.fd);
	control_buffer_free(&client.in);
	disk_host_destroy(server.host);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_input input = { data, size };
	int descriptor = fuzz_free_descriptor();

	server_begin();
	client_begin();
	client_run(&input);
	turn();
	server_end();
	if (client.refused)
		fuzz_check("what is answered was sent", client.finals < client.lines + 1);
	else
		fuzz_check("every line is answered once", client.finals == client.lines);
	fuzz_check("no descriptor is left", fuzz_free_descriptor() == descriptor);
	return 0;
}
