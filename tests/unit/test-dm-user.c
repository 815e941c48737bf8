/* SPDX-License-Identifier: GPL-2.0-or-later */
/* dm-user's messages: their bytes, what they ask for, and the thread that reads them. */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "io/dm-user-device.h"
#include "io/event.h"
#include "tests/unit/unit.h"

#define SIZE_BYTES ((uint64_t)1 << 30)

static void test_bytes(void)
{
	/* As a little-endian machine has them; the format is the machine's own. */
	static const uint64_t numbers[5] = { 0x0102030405060708, DM_USER_WRITE, 0x408, UINT64_MAX, 4096 };
	struct dm_user_message message;
	uint8_t bytes[DM_USER_HEADER_BYTES];

	dm_user_decode((const uint8_t *)numbers, &message);
	check("a header's five numbers are its fields in order",
	      message.sequence == numbers[0] && message.type == numbers[1] && message.flags == numbers[2] &&
		      message.sector == numbers[3] && message.length == numbers[4]);
	dm_user_encode(&message, bytes);
	check("a header is 40 bytes, and encoding undoes decoding",
	      sizeof(numbers) == sizeof(bytes) && memcmp(bytes, numbers, sizeof(bytes)) == 0);
	check("a WRITE has a payload", dm_user_payload_bytes(&message) == 4096);
	message.type = DM_USER_READ;
	check("nothing else has one", dm_user_payload_bytes(&message) == 0);
}

struct classified {
	struct dm_user_message message;
	bool read_only, can_discard;
	int error;
	enum request_op op;
	unsigned flags;
	bool preflush;
};

#define MESSAGE(type, flags, sector, length) { 1, type, flags, sector, length }

static const struct classified classified[] = {
	{ MESSAGE(DM_USER_READ, 0x800, 8, 4096), true, false, 0, REQUEST_READ, 0, false },
	{ MESSAGE(DM_USER_READ, 0x600, 8, 512), false, false, 0, REQUEST_READ, 0, false },
	{ MESSAGE(DM_USER_READ, 0, SIZE_BYTES / 512, 512), false, false, -EINVAL, REQUEST_READ, 0, false },
	{ MESSAGE(DM_USER_READ, 0, UINT64_MAX, 512), false, false, -EINVAL, REQUEST_READ, 0, false },
	{ MESSAGE(DM_USER_READ, 0, 0, DM_USER_READ_BYTES_MAX + 512), false, false, -EINVAL, REQUEST_READ, 0, false },
	{ MESSAGE(DM_USER_WRITE, 0x8, 0, 512), false, false, 0, REQUEST_WRITE, 0, false },
	{ MESSAGE(DM_USER_WRITE, 0x208, 0, 512), false, false, 0, REQUEST_WRITE, REQUEST_FUA, false },
	{ MESSAGE(DM_USER_WRITE, 0x608, 0, 512), false, false, 0, REQUEST_WRITE, REQUEST_FUA, true },
	{ MESSAGE(DM_USER_WRITE, 0x408, 0, 512), false, false, 0, REQUEST_WRITE, 0, true },
	{ MESSAGE(DM_USER_WRITE, 0, 0, 512), true, false, -EPERM, REQUEST_WRITE, 0, false },
	{ MESSAGE(DM_USER_WRITE, 0, 1, SIZE_BYTES), false, false, -EINVAL, REQUEST_WRITE, 0, false },
	{ MESSAGE(DM_USER_WRITE, 0x408, 0, 0), false, false, 0, REQUEST_FLUSH, 0, false },
	{ MESSAGE(DM_USER_WRITE, 0x608, UINT64_MAX, 0), true, false, 0, REQUEST_FLUSH, 0, false },
	{ MESSAGE(DM_USER_FLUSH, 0, 77, 0), false, false, 0, REQUEST_FLUSH, 0, false },
	{ MESSAGE(DM_USER_DISCARD, 0, 8, 65536), false, true, 0, REQUEST_DISCARD, 0, false },
	{ MESSAGE(DM_USER_DISCARD, 0, 8, 65536), false, false, -EOPNOTSUPP, REQUEST_DISCARD, 0, false },
	{ MESSAGE(DM_USER_DISCARD, 0, 8, 65536), true, false, -EPERM, REQUEST_DISCARD, 0, false },
	{ MESSAGE(DM_USER_WRITE_ZEROES, 0x8200, 8, 4096), false, false, 0, REQUEST_ZERO, REQUEST_FUA | REQUEST_NO_HOLE, false },
	{ MESSAGE(DM_USER_WRITE_ZEROES, 0x400, 8, 4096), false, false, 0, REQUEST_ZERO, 0, true },
	{ MESSAGE(DM_USER_WRITE_ZEROES, 0, 8, 4096), true, false, -EPERM, REQUEST_ZERO, 0, false },
	{ MESSAGE(DM_USER_SECURE_ERASE, 0, 8, 4096), false, true, -EOPNOTSUPP, REQUEST_READ, 0, false },
	{ MESSAGE(DM_USER_WRITE_SAME, 0, 8, 4096), false, true, -EOPNOTSUPP, REQUEST_READ, 0, false },
	{ MESSAGE(UINT64_MAX, 0, 8, 4096), false, true, -EOPNOTSUPP, REQUEST_READ, 0, false },
};

static bool is_as_expected(const struct classified *expected)
{
	const struct dm_user_message *message = &expected->message;
	struct export export = { .size_bytes = SIZE_BYTES,
				 .read_only = expected->read_only,
				 .can_discard = expected->can_discard };
	struct request request = { 0 };
	bool preflush;
	int error = dm_user_classify(message, &export, &request, &preflush);
	bool is_flush = expected->op == REQUEST_FLUSH;

	if (error != expected->error)
		return false;
	return error != 0 || (request.op == expected->op && request.flags == expected->flags &&
			      preflush == expected->preflush &&
			      request.offset == (is_flush ? 0 : message->sector * 512) &&
			      request.length == (is_flush ? 0 : message->length));
}

static void test_classify(void)
{
	size_t misses = 0;

	for (size_t i = 0; i < sizeof(classified) / sizeof(classified[0]); i++) {
		if (is_as_expected(&classified[i]))
			continue;
		misses++;
		printf("# case %zu\n", i);
	}
	check("messages ask for what they should, or are refused", misses == 0);
}

/* ---- the reader, on a socket in the channel's place ---- */

struct bench {
	struct dm_user_bell bell;
	struct dm_user_reader reader;
	int fds[2];
};

static void bench_begin(struct bench *bench)
{
	dm_user_bell_init(&bench->bell, eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
	if (bench->bell.event_fd < 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, bench->fds) != 0 ||
	    dm_user_reader_start(&bench->reader, &bench->bell, bench->fds[0]) != 0)
		abort();
}

/* Whether the reader was stopped, and has told so. (If it can't be, this never returns.) */
static bool bench_end(struct bench *bench)
{
	int error;
	bool stopped;

	dm_user_reader_stop(&bench->reader);
	stopped = !bench->reader.running && dm_user_reader_has_ended(&bench->reader, &error) && error != 0;
	dm_user_bell_destroy(&bench->bell);
	(void)close(bench->bell.event_fd);
	(void)close(bench->fds[0]);
	(void)close(bench->fds[1]);
	return stopped;
}

static void say(const struct bench *bench, const void *bytes, size_t count)
{
	if (write(bench->fds[1], bytes, count) != (ssize_t)count)
		abort();
}

/* Waits for the bell; false when it does not ring. */
static bool is_rung(struct bench *bench)
{
	struct pollfd wait = { .fd = bench->bell.event_fd, .events = POLLIN };

	if (poll(&wait, 1, 30000) != 1)
		return false;
	event_clear(bench->bell.event_fd);
	return dm_user_bell_next(&bench->bell) == &bench->reader;
}

static bool take_rung(struct bench *bench, struct dm_user_message *message)
{
	while (!dm_user_reader_take(&bench->reader, message))
		if (!is_rung(bench))
			return false;
	return true;
}

static bool fill_rung(struct bench *bench)
{
	while (!dm_user_reader_is_filled(&bench->reader))
		if (!is_rung(bench))
			return false;
	return true;
}

static bool end_rung(struct bench *bench, int expected)
{
	int error;

	while (!dm_user_reader_has_ended(&bench->reader, &error))
		if (!is_rung(bench))
			return false;
	return error == expected;
}

static void test_reader_payload(void)
{
	static const uint64_t write_header[5] = { 5, DM_USER_WRITE, 0, 8, 100000 };
	static const uint64_t read_header[5] = { 6, DM_USER_READ, 0, 8, 100000 };
	uint8_t *sent = malloc(100000), *buffer = calloc(1, 70000);
	struct dm_user_message message = { 0 };
	struct bench bench;

	if (!sent || !buffer)
		abort();
	for (size_t i = 0; i < 100000; i++)
		sent[i] = (uint8_t)(i * 7 + i / 256);
	bench_begin(&bench);
	say(&bench, write_header, 13);
	say(&bench, (const uint8_t *)write_header + 13, 27);
	check("a header in pieces is taken whole", take_rung(&bench, &message) && message.sequence == 5 &&
							      message.length == 100000);
	dm_user_reader_order(&bench.reader, buffer, 70000);
	say(&bench, sent, 1);
	say(&bench, sent + 1, 49999);
	say(&bench, sent + 50000, 50000);
	check("so much of the payload as was ordered goes where it was ordered",
	      fill_rung(&bench) && memcmp(buffer, sent, 70000) == 0);
	dm_user_reader_order(&bench.reader, NULL, 30000);
	say(&bench, read_header, sizeof(read_header));
	check("what is not wanted is thrown away", fill_rung(&bench));
	check("what follows the payload is the next header", take_rung(&bench, &message) && message.sequence == 6);
	(void)shutdown(bench.fds[1], SHUT_RDWR);
	check("an end of the file is told", end_rung(&bench, -EPROTO));
	check("(the end)", bench_end(&bench));
	free(sent);
	free(buffer);
}

static void test_reader_ahead(void)
{
	struct dm_user_message message = { 0 };
	struct bench bench;
	uint64_t misses = 0;

	bench_begin(&bench);
	for (uint64_t i = 0; i < 4 * DM_USER_READ_AHEAD_MAX; i++) {
		const uint64_t header[5] = { i, DM_USER_READ, 0, 0, 512 };

		say(&bench, header, sizeof(header));
	}
	for (uint64_t i = 0; i < 4 * DM_USER_READ_AHEAD_MAX; i++)
		misses += !take_rung(&bench, &message) || message.sequence != i;
	check("more messages than are read ahead come all, in order", misses == 0);
	check("(the end)", bench_end(&bench));
}

static void test_reader_stop(void)
{
	static const uint64_t write_header[5] = { 5, DM_USER_WRITE, 0, 8, 4096 };
	static const uint64_t long_header[5] = { 5, DM_USER_WRITE, 0, 8, UINT64_MAX };
	const struct timespec moment = { .tv_nsec = 1000000 };
	struct dm_user_message message = { 0 };
	uint8_t buffer[4096];
	struct bench bench;
	int stopped = 0;

	for (int i = 0; i < 200; i++) {
		bench_begin(&bench);
		if (i % 2)
			(void)nanosleep(&moment, NULL);
		stopped += bench_end(&bench);
	}
	check("a reader that sleeps in read(), or is about to, is stopped", stopped == 200);
	bench_begin(&bench);
	say(&bench, write_header, sizeof(write_header));
	check("(a write)", take_rung(&bench, &message));
	check("a reader that waits for an order is stopped", bench_end(&bench));
	bench_begin(&bench);
	say(&bench, write_header, sizeof(write_header));
	check("(a write)", take_rung(&bench, &message));
	dm_user_reader_order(&bench.reader, buffer, sizeof(buffer));
	say(&bench, write_header, 7);
	check("a reader that waits for a payload is stopped", bench_end(&bench));
	bench_begin(&bench);
	for (uint64_t i = 0; i < 2 * DM_USER_READ_AHEAD_MAX; i++) {
		const uint64_t header[5] = { i, DM_USER_READ, 0, 0, 512 };

		say(&bench, header, sizeof(header));
	}
	(void)nanosleep(&moment, NULL);
	check("a reader that has read ahead all it may is stopped", bench_end(&bench));
	bench_begin(&bench);
	say(&bench, long_header, sizeof(long_header));
	check("a payload of no possible length is an error of the protocol", end_rung(&bench, -EPROTO));
	check("(the end)", bench_end(&bench));
}

static void test_names(void)
{
	char longest[DM_USER_NAME_LENGTH_MAX + 1], snapshot[64];
	struct dm_user_node node;

	dm_user_node_init(&node, -1, "disk", "origin");
	check("the origin's device has the name given", strcmp(node.name, "disk") == 0 &&
								strcmp(node.uuid, "ROWSNAP-disk:origin") == 0);
	dm_user_node_init(&node, -1, "disk", "monday");
	check("a snapshot's has its name after it", strcmp(node.name, "disk-monday") == 0 &&
							    strcmp(node.uuid, "ROWSNAP-disk:monday") == 0);
	memset(longest, 'x', sizeof(longest) - 1);
	longest[sizeof(longest) - 1] = '\0';
	memset(snapshot, 'y', sizeof(snapshot) - 1);
	snapshot[sizeof(snapshot) - 1] = '\0';
	dm_user_node_init(&node, -1, longest, snapshot);
	check("the longest names fit", strlen(node.name) == DM_USER_NAME_LENGTH_MAX + 64 &&
					       strcmp(node.name + strlen(node.name) - 63, snapshot) == 0);
}

int main(void)
{
	test_bytes();
	test_classify();
	test_reader_payload();
	test_reader_ahead();
	test_reader_stop();
	test_names();
	return unit_done();
}
