/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The readers of dm-user's channels. A channel can't be polled, and its read() sleeps whatever is said about blocking:
 * so each channel has a thread that does nothing but read.
 *
 *	reader's thread                               loop's thread
 *	header ─────────> messages ──────(bell)─────> take
 *	waits for the order <──────────(wake)──────── order: so many bytes of payload, to there
 *	payload, to there ─────────────(bell)───────> filled
 *
 * Headers are read ahead, up to a few; but after a WRITE comes its payload, which goes straight to where the loop wants
 * it. So a reader needs no memory of its own, and nothing is copied. From an order until it is filled the buffer is
 * the reader's.
 *
 * The mutex is held to hand over, never while reading. The event descriptor is counted up after a reader came into an
 * empty `rung`: whoever reads it first and looks at `rung` afterwards misses nothing.
 *
 * The end. A removed device ends the read() by itself. Else a signal does, whose handler does nothing: it is sent again
 * until the thread is gone, since one that comes just before the thread goes to sleep in read() is lost.
 */
#include "io/dm-user-reader.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include "io/event.h"

#define STACK_BYTES ((size_t)256 << 10)
#define WASTE_BYTES 32768u
#define STOP_AGAIN_NS 5000000
/* Ignored where there is no handler, so a stray one does no harm. */
#define STOP_SIGNAL SIGURG

/* ---- the reader's thread ---- */

/* With the mutex held. The caller counts the event up afterwards, when told so: without the mutex. */
static bool ring(struct dm_user_reader *reader)
{
	bool was_empty = list_is_empty(&reader->bell->rung);

	if (list_is_empty(&reader->link))
		list_append(&reader->bell->rung, &reader->link);
	return was_empty;
}

static bool is_stopping(struct dm_user_reader *reader)
{
	bool stopping;

	pthread_mutex_lock(&reader->bell->mutex);
	stopping = reader->stopping;
	pthread_mutex_unlock(&reader->bell->mutex);
	return stopping;
}

/* How many bytes, or read's errors; -ECANCELED: it is to stop. */
static ssize_t read_some(struct dm_user_reader *reader, uint8_t *to, size_t bytes)
{
	for (;;) {
		ssize_t result;

		if (is_stopping(reader))
			return -ECANCELED;
		result = read(reader->fd, to, bytes);
		if (result > 0)
			return result;
		if (result == 0)
			return -EPROTO;
		if (errno != EINTR)
			return -errno;
	}
}

static int read_header(struct dm_user_reader *reader, struct dm_user_message *message)
{
	uint8_t header[DM_USER_HEADER_BYTES];
	size_t received = 0;

	while (received < sizeof(header)) {
		ssize_t got = read_some(reader, header + received, sizeof(header) - received);

		if (got < 0)
			return (int)got;
		received += (size_t)got;
	}
	dm_user_decode(header, message);
	/* What is no length of a request can't be skipped either: what follows would be taken for a header. */
	return dm_user_payload_bytes(message) > UINT32_MAX ? -EPROTO : 0;
}

static int hand_over(struct dm_user_reader *reader, const struct dm_user_message *message)
{
	struct dm_user_bell *bell = reader->bell;
	bool count = false;
	int error = 0;

	pthread_mutex_lock(&bell->mutex);
	while (reader->count == DM_USER_READ_AHEAD_MAX && !reader->stopping)
		pthread_cond_wait(&reader->wake, &bell->mutex);
	if (reader->stopping) {
		error = -ECANCELED;
	} else {
		reader->messages[(reader->first + reader->count) % DM_USER_READ_AHEAD_MAX] = *message;
		reader->count++;
		count = ring(reader);
	}
	pthread_mutex_unlock(&bell->mutex);
	if (count)
		event_count_up(reader->bell->event_fd);
	return error;
}

static int wait_for_order(struct dm_user_reader *reader, uint8_t **buffer, size_t *bytes)
{
	bool stopping;

	pthread_mutex_lock(&reader->bell->mutex);
	while ((reader->order_bytes == 0 || reader->filled) && !reader->stopping)
		pthread_cond_wait(&reader->wake, &reader->bell->mutex);
	stopping = reader->stopping;
	*buffer = reader->order_buffer;
	*bytes = reader->order_bytes;
	pthread_mutex_unlock(&reader->bell->mutex);
	return stopping ? -ECANCELED : 0;
}

static int carry_out_order(struct dm_user_reader *reader, uint8_t *buffer, size_t bytes)
{
	uint8_t waste[WASTE_BYTES];
	bool count;

	while (bytes > 0) {
		ssize_t got;

		if (buffer)
			got = read_some(reader, buffer, bytes);
		else
			got = read_some(reader, waste, bytes < sizeof(waste) ? bytes : sizeof(waste));
		if (got < 0)
			return (int)got;
		buffer = buffer ? buffer + got : NULL;
		bytes -= (size_t)got;
	}
	pthread_mutex_lock(&reader->bell->mutex);
	reader->filled = true;
	count = ring(reader);
	pthread_mutex_unlock(&reader->bell->mutex);
	if (count)
		event_count_up(reader->bell->event_fd);
	return 0;
}

static int read_payload(struct dm_user_reader *reader, uint64_t left)
{
	int error = 0;

	while (error == 0 && left > 0) {
		uint8_t *buffer;
		size_t bytes;

		error = wait_for_order(reader, &buffer, &bytes);
		if (error != 0)
			break;
		assert(bytes <= left);
		error = carry_out_order(reader, buffer, bytes);
		left -= bytes;
	}
	return error;
}

static void *reader_main(void *context)
{
	struct dm_user_reader *reader = context;
	struct dm_user_message message;
	bool count;
	int error;

	do {
		error = read_header(reader, &message);
		if (error == 0)
			error = hand_over(reader, &message);
		if (error == 0)
			error = read_payload(reader, dm_user_payload_bytes(&message));
	} while (error == 0);
	pthread_mutex_lock(&reader->bell->mutex);
	reader->ended = true;
	reader->error = error;
	pthread_cond_signal(&reader->gone);
	count = ring(reader);
	pthread_mutex_unlock(&reader->bell->mutex);
	if (count)
		event_count_up(reader->bell->event_fd);
	return NULL;
}

/* ---- the loop's thread ---- */

void dm_user_bell_init(struct dm_user_bell *bell, int event_fd)
{
	pthread_mutex_init(&bell->mutex, NULL);
	list_init(&bell->rung);
	bell->event_fd = event_fd;
}

void dm_user_bell_destroy(struct dm_user_bell *bell)
{
	assert(list_is_empty(&bell->rung));
	pthread_mutex_destroy(&bell->mutex);
}

struct dm_user_reader *dm_user_bell_next(struct dm_user_bell *bell)
{
	struct list *link;

	pthread_mutex_lock(&bell->mutex);
	link = list_pop(&bell->rung);
	pthread_mutex_unlock(&bell->mutex);
	return link ? container_of(link, struct dm_user_reader, link) : NULL;
}

static void signal_handler(int number)
{
	(void)number;
}

/* Starts the thread with all signals blocked but the one that stops it. */
static int thread_start(struct dm_user_reader *reader)
{
	struct sigaction action = { .sa_handler = signal_handler }; /* no SA_RESTART: read() is to end */
	sigset_t blocked, before;
	pthread_attr_t attributes;
	int error;

	(void)sigemptyset(&action.sa_mask);
	if (sigaction(STOP_SIGNAL, &action, NULL) != 0)
		return -errno;
	error = pthread_attr_init(&attributes);
	if (error != 0)
		return -error;
	error = pthread_attr_setstacksize(&attributes, STACK_BYTES);
	(void)sigfillset(&blocked);
	(void)sigdelset(&blocked, STOP_SIGNAL);
	pthread_sigmask(SIG_SETMASK, &blocked, &before);
	if (error == 0)
		error = pthread_create(&reader->thread, &attributes, reader_main, reader);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attributes);
	return -error;
}

int dm_user_reader_start(struct dm_user_reader *reader, struct dm_user_bell *bell, int fd)
{
	pthread_condattr_t monotonic;
	int error;

	*reader = (struct dm_user_reader){ .bell = bell, .fd = fd };
	list_init(&reader->link);
	pthread_cond_init(&reader->wake, NULL);
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&reader->gone, &monotonic);
	pthread_condattr_destroy(&monotonic);
	error = thread_start(reader);
	reader->running = error == 0;
	if (error != 0) {
		pthread_cond_destroy(&reader->gone);
		pthread_cond_destroy(&reader->wake);
	}
	return error;
}

void dm_user_reader_stop(struct dm_user_reader *reader)
{
	struct dm_user_bell *bell = reader->bell;
	struct timespec until;

	if (!reader->running)
		return;
	pthread_mutex_lock(&bell->mutex);
	reader->stopping = true;
	pthread_cond_signal(&reader->wake);
	while (!reader->ended) {
		(void)pthread_kill(reader->thread, STOP_SIGNAL);
		(void)clock_gettime(CLOCK_MONOTONIC, &until);
		until.tv_nsec += STOP_AGAIN_NS;
		until.tv_sec += until.tv_nsec / 1000000000;
		until.tv_nsec %= 1000000000;
		(void)pthread_cond_timedwait(&reader->gone, &bell->mutex, &until);
	}
	pthread_mutex_unlock(&bell->mutex);
	(void)pthread_join(reader->thread, NULL);
	reader->running = false;
	pthread_mutex_lock(&bell->mutex);
	list_remove(&reader->link);
	pthread_mutex_unlock(&bell->mutex);
	pthread_cond_destroy(&reader->gone);
	pthread_cond_destroy(&reader->wake);
}

bool dm_user_reader_take(struct dm_user_reader *reader, struct dm_user_message *message)
{
	bool taken;

	pthread_mutex_lock(&reader->bell->mutex);
	taken = reader->count > 0;
	if (taken) {
		*message = reader->messages[reader->first];
		reader->first = (reader->first + 1) % DM_USER_READ_AHEAD_MAX;
		if (reader->count-- == DM_USER_READ_AHEAD_MAX)
			pthread_cond_signal(&reader->wake);
	}
	pthread_mutex_unlock(&reader->bell->mutex);
	return taken;
}

void dm_user_reader_order(struct dm_user_reader *reader, uint8_t *buffer, size_t bytes)
{
	pthread_mutex_lock(&reader->bell->mutex);
	assert(bytes > 0 && reader->order_bytes == 0 && !reader->filled);
	reader->order_buffer = buffer;
	reader->order_bytes = bytes;
	pthread_cond_signal(&reader->wake);
	pthread_mutex_unlock(&reader->bell->mutex);
}

bool dm_user_reader_is_filled(struct dm_user_reader *reader)
{
	bool filled;

	pthread_mutex_lock(&reader->bell->mutex);
	filled = reader->filled;
	if (filled) {
		reader->filled = false;
		reader->order_bytes = 0;
		reader->order_buffer = NULL;
	}
	pthread_mutex_unlock(&reader->bell->mutex);
	return filled;
}

bool dm_user_reader_has_ended(struct dm_user_reader *reader, int *error)
{
	bool ended;

	pthread_mutex_lock(&reader->bell->mutex);
	ended = reader->ended;
	*error = reader->error;
	pthread_mutex_unlock(&reader->bell->mutex);
	return ended;
}
