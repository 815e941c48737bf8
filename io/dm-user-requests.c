/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * dm-user: messages become requests, and their completions replies.
 *
 *	READ           buffer ─────────────────────────────────────────────> engine ──> header and data
 *	WRITE          (flush) ──> buffer ──> payload ──> engine ─┬────────────────────> header
 *	                             ^                            └─ more? ─┐
 *	                             └── a piece at a time ─────────────────┘
 *	FLUSH, an empty WRITE ─────────────────────────────────────────────> engine ──> header
 *	DISCARD, WRITE_ZEROES ─────────────────────────────────────────────> engine ──> header
 *	what is refused: the payload is thrown away ───────────────────────────────────> header
 *
 * Exactness. The kernel can't be told of an error after a header that says SUCCESS: nothing of a read's reply is
 * written before all of its data is there. A header with an error ends the reply: not a byte more is written. A WRITE
 * may be answered only when its payload was read whole, so that of a refused one is read too.
 *
 * A write in pieces stays the channel's current request until its last payload is received; the pieces are carried out
 * one after the other. A read is received in one buffer: of the arena if it can be, else (the engine takes no longer
 * requests, so it is read in pieces) of memory mapped for it alone; of those a channel has one at a time.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "io/dm-user-device.h"
#include "io/log.h"

/* ---- what a message asks for ---- */

static int check_range(const struct dm_user_message *message, const struct export *export, struct request *request)
{
	if (message->sector > export->size_bytes / DM_USER_SECTOR_BYTES)
		return -EINVAL;
	request->offset = message->sector * DM_USER_SECTOR_BYTES;
	request->length = message->length;
	return message->length > export->size_bytes - request->offset ? -EINVAL : 0;
}

int dm_user_classify(const struct dm_user_message *message, const struct export *export, struct request *request,
		     bool *preflush)
{
	bool is_empty = message->length == 0;

	*preflush = (message->flags & DM_USER_FLAG_PREFLUSH) != 0 && !is_empty;
	request->flags = message->flags & DM_USER_FLAG_FUA ? REQUEST_FUA : 0;
	switch (message->type) {
	case DM_USER_READ:
		*preflush = false;
		request->flags = 0;
		request->op = REQUEST_READ;
		return message->length > DM_USER_READ_BYTES_MAX ? -EINVAL : check_range(message, export, request);
	case DM_USER_WRITE:
		request->op = REQUEST_WRITE;
		if (!is_empty)
			break;
		__attribute__((fallthrough));
	case DM_USER_FLUSH:
		*preflush = false;
		request->op = REQUEST_FLUSH;
		request->flags = 0;
		request->offset = 0;
		request->length = 0;
		return 0;
	case DM_USER_DISCARD:
		request->op = REQUEST_DISCARD;
		if (!export->read_only && !export->can_discard)
			return -EOPNOTSUPP;
		break;
	case DM_USER_WRITE_ZEROES:
		request->op = REQUEST_ZERO;
		request->flags |= message->flags & DM_USER_FLAG_NOUNMAP ? REQUEST_NO_HOLE : 0;
		break;
	default:
		return -EOPNOTSUPP;
	}
	return export->read_only ? -EPERM : check_range(message, export, request);
}

/* ---- life of a request ---- */

void dm_user_channel_init(struct dm_user_channel *channel, struct dm_user_device *device)
{
	channel->device = device;
	channel->reader.fd = -1;
	list_init(&channel->runnable_link);
	list_init(&channel->waiter.link);
	list_init(&channel->free_requests);
}

static bool is_refusing(const struct dm_user_channel *channel)
{
	return channel->device->unwanted || channel->device->dm_user->quiesced;
}

static struct dm_user_request *request_take(struct dm_user_channel *channel)
{
	struct list *link = list_pop(&channel->free_requests);
	struct dm_user_request *request;

	if (!link && channel->pool_used == DM_USER_REQUESTS_MAX)
		return NULL;
	request = link ? container_of(link, struct dm_user_request, link) : &channel->pool[channel->pool_used++];
	memset(request, 0, sizeof(*request));
	request->channel = channel;
	list_init(&request->link);
	channel->busy_count++;
	return request;
}

static void memory_put(struct dm_user *dm_user, struct dm_user_request *request)
{
	uint8_t *memory = request->memory;
	struct list *link;

	if (!memory)
		return;
	request->memory = NULL;
	if (request->mapped) {
		(void)munmap(memory, request->memory_bytes);
		return;
	}
	dm_user->held_bytes -= request->memory_bytes;
	arena_put(dm_user->arena, memory, request->memory_bytes);
	while ((link = list_pop(&dm_user->starved)) != NULL)
		dm_user_touch(container_of(link, struct dm_user_channel, runnable_link));
}

static void request_release(struct dm_user_request *request)
{
	struct dm_user_channel *channel = request->channel;

	memory_put(channel->device->dm_user, request);
	list_append(channel->free_requests.next, &request->link); /* in front: the one used last is used next */
	if (channel->busy_count-- == DM_USER_REQUESTS_MAX)
		dm_user_touch(channel);
}

/* To be answered at the turn's end. */
static void request_done(struct dm_user_request *request, int error)
{
	struct dm_user_channel *channel = request->channel;

	if (channel->current == request)
		channel->current = NULL;
	request->error = error;
	list_append(&channel->device->dm_user->done, &request->link);
	dm_user_work_soon(channel->device->dm_user);
}

static void request_complete(struct request *engine_request, int error)
{
	struct dm_user_request *request = container_of(engine_request, struct dm_user_request, request);
	struct dm_user *dm_user = request->channel->device->dm_user;

	assert(dm_user->engine_count > 0);
	dm_user->engine_count--;
	request->error = error;
	list_append(&dm_user->done, &request->link);
	dm_user_work_soon(dm_user);
}

/* Where requests leave for the engine. What they are has been filled in; nobody may have refused them meanwhile. */
static void submit(struct dm_user_request *request, enum request_op op)
{
	struct dm_user *dm_user = request->channel->device->dm_user;

	request->request.op = op;
	request->request.export = request->channel->device->export;
	request->request.complete = request_complete;
	dm_user->engine_count++;
	export_submit(&request->request);
}

/* ---- memory ---- */

static void memory_attach(struct dm_user_request *request, void *memory)
{
	request->memory = memory;
	request->request.buffer = memory;
	request->channel->device->dm_user->held_bytes += request->memory_bytes;
}

static void granted(struct arena_waiter *waiter, void *buffer)
{
	struct dm_user_channel *channel = waiter->context;

	assert(channel->waiting && channel->current && !channel->current->memory);
	channel->waiting = false;
	memory_attach(channel->current, buffer);
	dm_user_touch(channel);
}

/* A read that is too long for the arena. It can only fail, never wait: the memory is the machine's. */
static bool memory_map(struct dm_user_request *request)
{
	void *memory = mmap(NULL, request->memory_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		return false;
	request->mapped = true;
	request->memory = memory;
	request->request.buffer = memory;
	return true;
}

/* False: it waits, or has failed. */
static bool memory_get(struct dm_user_channel *channel, struct dm_user_request *request, uint64_t bytes)
{
	struct dm_user *dm_user = channel->device->dm_user;
	void *memory;

	if (request->memory)
		return true;
	if (channel->waiting)
		return false;
	request->memory_bytes = (size_t)(bytes + ARENA_PAGE_BYTES - 1) & ~(ARENA_PAGE_BYTES - 1);
	if (bytes > REQUEST_DATA_BYTES_MAX) {
		if (memory_map(request))
			return true;
		request_done(request, -ENOMEM);
		dm_user_touch(channel);
		return false;
	}
	if (dm_user->held_bytes > 0 && dm_user->held_bytes + request->memory_bytes > dm_user->held_bytes_max) {
		list_remove(&channel->runnable_link);
		list_append(&dm_user->starved, &channel->runnable_link);
		return false;
	}
	memory = arena_get(dm_user->arena, request->memory_bytes);
	if (memory) {
		memory_attach(request, memory);
		return true;
	}
	channel->waiter.bytes = request->memory_bytes;
	channel->waiter.granted = granted;
	channel->waiter.context = channel;
	channel->waiting = true;
	arena_wait(dm_user->arena, &channel->waiter);
	return false;
}

/* ---- steps ---- */

/* Bytes of the write, or the read, that are still to be dealt with. */
static uint64_t bytes_left(const struct dm_user_request *request)
{
	return request->message.length - request->at;
}

static uint64_t piece_bytes(const struct dm_user_request *request)
{
	uint64_t most = request->message.type == DM_USER_WRITE ? DM_USER_PIECE_BYTES : REQUEST_DATA_BYTES_MAX;

	return bytes_left(request) < most ? bytes_left(request) : most;
}

static void piece_submit(struct dm_user_channel *channel, struct dm_user_request *request)
{
	bool is_write = request->message.type == DM_USER_WRITE;
	uint64_t bytes = piece_bytes(request);

	request->step = DM_USER_STEP_ENGINE;
	request->request.flags = is_write && (request->message.flags & DM_USER_FLAG_FUA) ? REQUEST_FUA : 0;
	request->request.offset = request->message.sector * DM_USER_SECTOR_BYTES + request->at;
	request->request.length = bytes;
	request->request.buffer = request->memory + (is_write ? 0 : request->at);
	if (bytes == bytes_left(request))
		channel->current = NULL; /* the next message may come */
	submit(request, is_write ? REQUEST_WRITE : REQUEST_READ);
}

/* What was begun is ended with this error, once the payload has been read. */
static void refuse(struct dm_user_channel *channel, struct dm_user_request *request, int error)
{
	request->error = error;
	if (request->message.type != DM_USER_WRITE || bytes_left(request) == 0) {
		request_done(request, error);
		return;
	}
	channel->current = request;
	request->step = DM_USER_STEP_SKIP;
	dm_user_reader_order(&channel->reader, NULL, (size_t)bytes_left(request));
}

static void note_long_read(struct dm_user_channel *channel)
{
	if (channel->device->dm_user->long_read_noted)
		return;
	channel->device->dm_user->long_read_noted = true;
	log_warning("dm-user: '%s': a read of more than %llu MiB at once fails", channel->device->node.name,
		    (unsigned long long)(DM_USER_READ_BYTES_MAX >> 20));
}

/* Checks it, and sends it on its way. */
static void begin(struct dm_user_channel *channel, struct dm_user_request *request)
{
	const struct dm_user_message *message = &request->message;
	bool preflush = false;
	int error = dm_user_classify(message, channel->device->export, &request->request, &preflush);

	if (message->type == DM_USER_READ && message->length > DM_USER_READ_BYTES_MAX)
		note_long_read(channel);
	if (is_refusing(channel))
		error = -ESHUTDOWN;
	if (error != 0) {
		refuse(channel, request, error);
	} else if (preflush) {
		channel->current = request;
		request->step = DM_USER_STEP_PREFLUSH;
		request->request.flags = 0;
		request->request.offset = 0;
		request->request.length = 0;
		submit(request, REQUEST_FLUSH);
	} else {
		channel->current = request;
		request->step = DM_USER_STEP_MEMORY;
	}
}

static bool take_message(struct dm_user_channel *channel)
{
	struct dm_user_request *request;

	if (!channel->reader.running)
		return false;
	request = request_take(channel);
	if (!request)
		return false;
	if (!dm_user_reader_take(&channel->reader, &request->message)) {
		list_append(channel->free_requests.next, &request->link);
		channel->busy_count--;
		return false;
	}
	begin(channel, request);
	return true;
}

/* What has no data. It was checked before, maybe a flush ago. */
static void plain_submit(struct dm_user_channel *channel, struct dm_user_request *request)
{
	bool preflush;
	int error = dm_user_classify(&request->message, channel->device->export, &request->request, &preflush);

	channel->current = NULL;
	request->step = DM_USER_STEP_ENGINE;
	if (error != 0 || (request->request.op != REQUEST_FLUSH && request->message.length == 0))
		request_done(request, error);
	else
		submit(request, request->request.op);
}

static bool has_data(const struct dm_user_message *message)
{
	return (message->type == DM_USER_READ || message->type == DM_USER_WRITE) && message->length > 0;
}

static bool take_memory(struct dm_user_channel *channel, struct dm_user_request *request)
{
	bool is_write = request->message.type == DM_USER_WRITE;

	if (is_refusing(channel)) {
		arena_cancel(channel->device->dm_user->arena, &channel->waiter);
		channel->waiting = false;
		refuse(channel, request, -ESHUTDOWN);
		return true;
	}
	if (!has_data(&request->message)) {
		plain_submit(channel, request);
		return true;
	}
	if (!memory_get(channel, request, is_write ? piece_bytes(request) : request->message.length))
		return false;
	if (is_write) {
		request->step = DM_USER_STEP_PAYLOAD;
		dm_user_reader_order(&channel->reader, request->memory, (size_t)piece_bytes(request));
	} else {
		piece_submit(channel, request);
	}
	return true;
}

static bool take_payload(struct dm_user_channel *channel, struct dm_user_request *request)
{
	if (!dm_user_reader_is_filled(&channel->reader))
		return false;
	if (is_refusing(channel)) {
		request->at += piece_bytes(request);
		refuse(channel, request, -ESHUTDOWN);
	} else {
		piece_submit(channel, request);
	}
	return true;
}

/* True: there may be more to do. */
static bool step(struct dm_user_channel *channel)
{
	struct dm_user_request *request = channel->current;

	if (!request)
		return take_message(channel);
	switch (request->step) {
	case DM_USER_STEP_PREFLUSH:
	case DM_USER_STEP_ENGINE:
		return false;
	case DM_USER_STEP_MEMORY:
		return take_memory(channel, request);
	case DM_USER_STEP_PAYLOAD:
		return take_payload(channel, request);
	case DM_USER_STEP_REFUSE:
		refuse(channel, request, request->error);
		return true;
	case DM_USER_STEP_SKIP:
		if (!dm_user_reader_is_filled(&channel->reader))
			return false;
		request_done(request, request->error);
		return true;
	}
	return false;
}

/* Each step that says true has used a message, or what an order or the arena gave: this ends. */
void dm_user_advance(struct dm_user_channel *channel)
{
	list_remove(&channel->runnable_link);
	while (step(channel))
		;
}

void dm_user_abandon(struct dm_user_channel *channel)
{
	struct dm_user_request *request = channel->current;

	assert(!channel->reader.running);
	if (!request || request->step == DM_USER_STEP_PREFLUSH || request->step == DM_USER_STEP_ENGINE)
		return;
	arena_cancel(channel->device->dm_user->arena, &channel->waiter);
	channel->waiting = false;
	list_remove(&channel->runnable_link);
	channel->current = NULL;
	request_release(request);
}

/* ---- replies ---- */

/* All of it, or an error. The kernel takes a reply in one go, or the rest of it with the next call. */
static int write_whole(int fd, struct iovec *iov, int count)
{
	while (count > 0) {
		ssize_t result = writev(fd, iov, count);

		if (result < 0 && errno == EINTR)
			continue;
		if (result <= 0)
			return result < 0 ? -errno : -EIO;
		while (count > 0 && (size_t)result >= iov->iov_len) {
			result -= (ssize_t)iov->iov_len;
			iov++;
			count--;
		}
		if (count > 0) {
			iov->iov_base = (uint8_t *)iov->iov_base + result;
			iov->iov_len -= (size_t)result;
		}
	}
	return 0;
}

static void reply(struct dm_user_channel *channel, struct dm_user_request *request)
{
	struct dm_user_message answer = request->message;
	uint8_t header[DM_USER_HEADER_BYTES];
	struct iovec iov[2] = { { header, sizeof(header) }, { request->memory, 0 } };
	int count = 1, error;

	if (channel->broken)
		return; /* closing it makes the kernel fail what is not answered */
	answer.type = request->error == 0	     ? DM_USER_SUCCESS :
		      request->error == -EOPNOTSUPP ? DM_USER_UNSUPPORTED :
						      DM_USER_ERROR;
	answer.flags = 0;
	if (request->error == 0 && request->message.type == DM_USER_READ && request->message.length > 0) {
		iov[1].iov_len = (size_t)request->message.length;
		count = 2;
	}
	dm_user_encode(&answer, header);
	error = write_whole(channel->reader.fd, iov, count);
	if (error == 0)
		return;
	channel->broken = true;
	dm_user_channel_close(channel);
	log_warning("dm-user: '%s': the kernel does not take a reply (%s): one of %u channels is closed",
		    channel->device->node.name, strerror(-error), channel->device->node.channel_count);
}

/* True: through with it, and answered. */
static bool settle(struct dm_user_channel *channel, struct dm_user_request *request)
{
	/* What is to come of it will not be read: unanswered, it is failed by the kernel when the channel is closed. */
	if (channel->current == request && !channel->reader.running) {
		channel->current = NULL;
		return true;
	}
	if (request->step == DM_USER_STEP_PREFLUSH && channel->current == request) {
		request->step = request->error == 0 ? DM_USER_STEP_MEMORY : DM_USER_STEP_REFUSE;
		return false;
	}
	if (request->step == DM_USER_STEP_ENGINE && channel->current == request) {
		/* A piece, and not the last one. */
		request->at += request->request.length;
		if (request->error == 0 && is_refusing(channel))
			request->error = -ESHUTDOWN;
		request->step = request->error == 0 ? DM_USER_STEP_MEMORY : DM_USER_STEP_REFUSE;
		return false;
	}
	reply(channel, request);
	return true;
}

void dm_user_settle(struct dm_user *dm_user)
{
	struct list *link;

	while ((link = list_pop(&dm_user->done)) != NULL) {
		struct dm_user_request *request = container_of(link, struct dm_user_request, link);
		struct dm_user_channel *channel = request->channel;

		if (settle(channel, request))
			request_release(request);
		else
			dm_user_touch(channel);
	}
}
