/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * NBD's transmission phase: commands become requests, and completed requests become replies.
 *
 *	header ──> check ──> buffer ──> payload (writes) ──> engine ──> done ──> replies ──> sent
 *	             └───────────── refused ────────────────────────────^
 *
 * A request structure comes from the connection's pool when the header is read and goes back when the reply is sent. A
 * refused write's payload is skipped. Replies: once structured replies are agreed, READ and BLOCK_STATUS are always
 * answered by one chunk (data, or an error) and everything else by a simple reply.
 */
#include <assert.h>
#include <errno.h>

#include "io/nbd-connection.h"
#include "io/nbd-protocol.h"

/* BLOCK_STATUS has one page: the extents from the engine, then the chunk's data. */
#define STATUS_DATA_OFFSET (NBD_EXTENTS_MAX * sizeof(struct disk_extent))
#define STATUS_DATA_BYTES(count) (4u + (count) * 8u)
_Static_assert(STATUS_DATA_OFFSET + STATUS_DATA_BYTES(NBD_EXTENTS_MAX) <= ARENA_PAGE_BYTES, "fits a page");

uint16_t nbd_export_flags(const struct nbd_connection *connection, const struct export *export)
{
	unsigned flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_CAN_MULTI_CONN;

	if (export->read_only)
		flags |= NBD_FLAG_READ_ONLY;
	else
		flags |= NBD_FLAG_SEND_WRITE_ZEROES | (export->can_discard ? NBD_FLAG_SEND_TRIM : 0);
	if (connection->structured)
		flags |= NBD_FLAG_SEND_DF;
	return (uint16_t)flags;
}

static uint32_t error_on_the_wire(int error)
{
	switch (-error) {
	case 0:
		return 0;
	case EPERM:
	case EROFS:
		return NBD_EPERM;
	case ENOMEM:
		return NBD_ENOMEM;
	case EINVAL:
		return NBD_EINVAL;
	case ENOSPC:
	case EDQUOT:
	case EFBIG:
		return NBD_ENOSPC;
	case EOVERFLOW:
		return NBD_EOVERFLOW;
	case EOPNOTSUPP:
		return NBD_ENOTSUP;
	case ESHUTDOWN:
		return NBD_ESHUTDOWN;
	default:
		return NBD_EIO;
	}
}

static struct nbd_request *request_take(struct nbd_connection *connection)
{
	struct list *link = list_pop(&connection->free_requests);
	struct nbd_request *request;

	if (link)
		return container_of(link, struct nbd_request, link);
	if (connection->pool_used == NBD_IN_FLIGHT_MAX)
		return NULL;
	request = &connection->pool[connection->pool_used++];
	request->connection = connection;
	list_init(&request->link);
	return request;
}

static void buffer_put(struct nbd_connection *connection, struct nbd_request *request)
{
	uint8_t *buffer = request->buffer;

	if (!buffer)
		return;
	request->buffer = NULL;
	connection->freed = true;
	connection->held_bytes -= request->buffer_bytes;
	arena_put(connection->nbd->arena, buffer, request->buffer_bytes);
}

void nbd_request_release(struct nbd_connection *connection, struct nbd_request *request)
{
	struct list *first = connection->free_requests.next;

	buffer_put(connection, request);
	connection->freed = true;
	list_append(first, &request->link); /* in front: the one used last is used next */
}

static void request_done(struct nbd_request *request, int error)
{
	request->error = error;
	list_append(&request->connection->done, &request->link);
	nbd_touch(request->connection);
}

static void request_complete(struct request *engine_request, int error)
{
	struct nbd_request *request = container_of(engine_request, struct nbd_request, request);

	assert(request->connection->engine_count > 0);
	request->connection->engine_count--;
	request_done(request, error);
}

/* Where requests leave for the engine, unless there is no engine any more. */
static void request_submit(struct nbd_connection *connection, struct nbd_request *request)
{
	connection->current = NULL;
	connection->stage = NBD_STAGE_COMMAND;
	if (connection->nbd->quiesced || connection->export->gone) {
		request_done(request, -ESHUTDOWN);
		return;
	}
	connection->nbd->counters.requests++;
	connection->engine_count++;
	export_submit(&request->request);
}

/* What the command is to the engine, or the error it is refused with. `flags` are the command's. */
static int command_check(const struct nbd_connection *connection, uint16_t command, unsigned flags,
			 struct request *request)
{
	const struct export *export = connection->export;
	unsigned flags_allowed = NBD_CMD_FLAG_FUA; /* on reads it means nothing, and does no harm */
	bool writes = true;
	int beyond_end = -EINVAL;

	switch (command) {
	case NBD_CMD_READ:
		request->op = REQUEST_READ;
		writes = false;
		flags_allowed |= connection->structured ? NBD_CMD_FLAG_DF : 0;
		if (request->length > REQUEST_DATA_BYTES_MAX)
			return -EINVAL;
		break;
	case NBD_CMD_WRITE:
		request->op = REQUEST_WRITE;
		beyond_end = -ENOSPC;
		break;
	case NBD_CMD_FLUSH:
		request->op = REQUEST_FLUSH;
		writes = false;
		if (request->offset != 0 || request->length != 0)
			return -EINVAL;
		break;
	case NBD_CMD_TRIM:
		request->op = REQUEST_DISCARD;
		if (!export->can_discard && !export->read_only)
			return -EINVAL;
		break;
	case NBD_CMD_WRITE_ZEROES:
		request->op = REQUEST_ZERO;
		flags_allowed |= NBD_CMD_FLAG_NO_HOLE;
		beyond_end = -ENOSPC;
		break;
	case NBD_CMD_BLOCK_STATUS:
		request->op = REQUEST_EXTENTS;
		writes = false;
		flags_allowed |= NBD_CMD_FLAG_REQ_ONE;
		if (!connection->allocation || request->length == 0)
			return -EINVAL;
		break;
	default:
		return -EINVAL;
	}
	if (flags & ~flags_allowed)
		return -EINVAL;
	if (writes && export->read_only)
		return -EPERM;
	if (request->offset > export->size_bytes || request->length > export->size_bytes - request->offset)
		return beyond_end;
	request->flags = (writes && (flags & NBD_CMD_FLAG_FUA) ? REQUEST_FUA : 0) |
			 (flags & NBD_CMD_FLAG_NO_HOLE ? REQUEST_NO_HOLE : 0);
	request->extents_max = flags & NBD_CMD_FLAG_REQ_ONE ? 1 : NBD_EXTENTS_MAX;
	return 0;
}

/* Sends a checked command on its way: to wait for a buffer, to the engine, or (nothing to do) straight back. */
static void command_begin(struct nbd_connection *connection, struct nbd_request *request)
{
	struct request *engine_request = &request->request;

	switch (engine_request->op) {
	case REQUEST_READ:
	case REQUEST_WRITE:
		request->buffer_bytes = engine_request->length;
		break;
	case REQUEST_EXTENTS:
		request->buffer_bytes = ARENA_PAGE_BYTES;
		if (engine_request->length > NBD_EXTENTS_RANGE_BYTES_MAX)
			engine_request->length = NBD_EXTENTS_RANGE_BYTES_MAX;
		break;
	case REQUEST_FLUSH:
		request_submit(connection, request);
		return;
	case REQUEST_DISCARD:
	case REQUEST_ZERO:
		break;
	}
	if (engine_request->length == 0) {
		connection->current = NULL;
		request_done(request, 0);
	} else if (request->buffer_bytes == 0) {
		request_submit(connection, request);
	} else {
		request->buffer_bytes = (request->buffer_bytes + ARENA_PAGE_BYTES - 1) & ~(ARENA_PAGE_BYTES - 1);
		connection->stage = NBD_STAGE_MEMORY;
	}
}

static void command_refuse(struct nbd_connection *connection, struct nbd_request *request, int error)
{
	connection->current = NULL;
	if (request->command == NBD_CMD_WRITE && request->request.length > 0) {
		connection->skip_bytes = (uint32_t)request->request.length;
		connection->stage = NBD_STAGE_SKIP;
	}
	request_done(request, error);
}

bool nbd_take_command(struct nbd_connection *connection)
{
	const uint8_t *header = nbd_inbox(connection);
	struct nbd_request *request;
	uint16_t command;
	uint32_t length;
	int error;

	if (nbd_inbox_bytes(connection) < NBD_REQUEST_BYTES)
		return false;
	command = nbd_get16(header + 6);
	length = nbd_get32(header + 24);
	if (nbd_get32(header) != NBD_MAGIC_REQUEST ||
	    (command == NBD_CMD_WRITE && length > REQUEST_DATA_BYTES_MAX)) {
		nbd_violation(connection);
		return false;
	}
	if (command == NBD_CMD_DISC) {
		nbd_end(connection);
		return false;
	}
	request = request_take(connection);
	if (!request) {
		connection->blocked = NBD_BLOCKED_OWN;
		return false;
	}
	connection->current = request;
	connection->inbox_start += NBD_REQUEST_BYTES;
	request->command = command;
	request->cookie = nbd_get64(header + 8);
	request->buffer_bytes = 0;
	request->request.offset = nbd_get64(header + 16);
	request->request.length = length;
	request->request.buffer = NULL;
	request->request.export = connection->export;
	request->request.complete = request_complete;
	error = command_check(connection, command, nbd_get16(header + 4), &request->request);
	if (connection->nbd->quiesced || connection->export->gone)
		error = -ESHUTDOWN;
	else if (connection->mute && (command == NBD_CMD_READ || command == NBD_CMD_BLOCK_STATUS))
		error = -EIO; /* spares the effort: the answer would be discarded */
	if (error == 0)
		command_begin(connection, request);
	else
		command_refuse(connection, request, error);
	return true;
}

static void buffer_attach(struct nbd_connection *connection, void *buffer)
{
	struct nbd_request *request = connection->current;
	struct request *engine_request = &request->request;

	request->buffer = buffer;
	engine_request->buffer = buffer;
	engine_request->extents = engine_request->op == REQUEST_EXTENTS ? buffer : NULL;
	engine_request->extents_count = 0;
	connection->held_bytes += request->buffer_bytes;
}

bool nbd_take_memory(struct nbd_connection *connection)
{
	struct nbd *nbd = connection->nbd;
	struct nbd_request *request = connection->current;

	if (!request->buffer) {
		void *buffer;

		if (connection->held_bytes + request->buffer_bytes > nbd->connection_bytes_max) {
			connection->blocked = NBD_BLOCKED_OWN;
			return false;
		}
		buffer = arena_get(nbd->arena, request->buffer_bytes);
		if (!buffer) {
			connection->waiter.bytes = request->buffer_bytes;
			connection->blocked = NBD_BLOCKED_ARENA;
			arena_wait(nbd->arena, &connection->waiter);
			return false;
		}
		buffer_attach(connection, buffer);
	}
	if (request->request.op == REQUEST_WRITE) {
		connection->payload_received = 0;
		connection->stage = NBD_STAGE_PAYLOAD;
	} else {
		request_submit(connection, request);
	}
	return true;
}

void nbd_memory_granted(struct arena_waiter *waiter, void *buffer)
{
	struct nbd_connection *connection = waiter->context;

	assert(connection->stage == NBD_STAGE_MEMORY && connection->blocked == NBD_BLOCKED_ARENA);
	buffer_attach(connection, buffer);
	nbd_unblock(connection);
}

void nbd_forgo_read(struct nbd_connection *connection)
{
	struct nbd_request *request = connection->current;

	assert(connection->stage == NBD_STAGE_MEMORY && connection->mute && !request->buffer);
	arena_cancel(connection->nbd->arena, &connection->waiter);
	connection->current = NULL;
	connection->stage = NBD_STAGE_COMMAND;
	request_done(request, -EIO);
	nbd_unblock(connection);
}

bool nbd_take_payload(struct nbd_connection *connection)
{
	struct nbd_request *request = connection->current;
	size_t missing = request->request.length - connection->payload_received;
	size_t here = nbd_inbox_bytes(connection) < missing ? nbd_inbox_bytes(connection) : missing;

	memcpy(request->buffer + connection->payload_received, nbd_inbox(connection), here);
	connection->inbox_start += here;
	connection->payload_received += (uint32_t)here;
	if (here < missing)
		return false;
	request_submit(connection, request);
	return true;
}

static void chunk_encode(struct nbd_request *request, unsigned type, uint32_t length)
{
	uint8_t *header = request->header;

	nbd_put32(header, NBD_MAGIC_CHUNK);
	nbd_put16(header + 4, NBD_CHUNK_FLAG_DONE);
	nbd_put16(header + 6, (uint16_t)type);
	nbd_put64(header + 8, request->cookie);
	nbd_put32(header + 16, length);
	request->header_bytes = NBD_CHUNK_BYTES;
}

static void error_chunk_encode(struct nbd_request *request)
{
	chunk_encode(request, NBD_CHUNK_ERROR, 6);
	nbd_put32(request->header + NBD_CHUNK_BYTES, error_on_the_wire(request->error));
	nbd_put16(request->header + NBD_CHUNK_BYTES + 4, 0); /* no message */
	request->header_bytes += 6;
}

static void read_chunk_encode(struct nbd_request *request)
{
	uint32_t length = (uint32_t)request->request.length;

	if (length == 0) {
		chunk_encode(request, NBD_CHUNK_NONE, 0);
		return;
	}
	chunk_encode(request, NBD_CHUNK_OFFSET_DATA, 8 + length);
	nbd_put64(request->header + NBD_CHUNK_BYTES, request->request.offset);
	request->header_bytes += 8;
	request->data = request->buffer;
	request->data_bytes = length;
}

static void status_chunk_encode(struct nbd_request *request)
{
	const struct request *engine_request = &request->request;
	uint8_t *data = request->buffer + STATUS_DATA_OFFSET;
	uint8_t *at = data + 4;
	unsigned count = engine_request->extents_count;
	uint64_t left = engine_request->length;

	assert(count > 0 && count <= engine_request->extents_max);
	nbd_put32(data, NBD_ALLOCATION_ID);
	for (unsigned i = 0; i < count; i++, at += 8) {
		const struct disk_extent *extent = &engine_request->extents[i];

		assert(extent->length > 0 && extent->length <= left);
		left -= extent->length;
		nbd_put32(at, (uint32_t)extent->length);
		nbd_put32(at + 4, extent->hole ? NBD_STATE_HOLE | NBD_STATE_ZERO : 0);
	}
	chunk_encode(request, NBD_CHUNK_BLOCK_STATUS, STATUS_DATA_BYTES(count));
	request->data = data;
	request->data_bytes = STATUS_DATA_BYTES(count);
}

static void simple_reply_encode(struct nbd_request *request)
{
	nbd_put32(request->header, NBD_MAGIC_SIMPLE_REPLY);
	nbd_put32(request->header + 4, error_on_the_wire(request->error));
	nbd_put64(request->header + 8, request->cookie);
	request->header_bytes = NBD_SIMPLE_REPLY_BYTES;
	if (request->command == NBD_CMD_READ && request->buffer) {
		request->data = request->buffer;
		request->data_bytes = (uint32_t)request->request.length;
	}
}

static void reply_encode(struct nbd_connection *connection, struct nbd_request *request)
{
	bool by_chunk = request->command == NBD_CMD_READ || request->command == NBD_CMD_BLOCK_STATUS;

	request->data = NULL;
	request->data_bytes = 0;
	if (request->error != 0 || !by_chunk)
		buffer_put(connection, request);
	if (!connection->structured || !by_chunk)
		simple_reply_encode(request);
	else if (request->error != 0)
		error_chunk_encode(request);
	else if (request->command == NBD_CMD_READ)
		read_chunk_encode(request);
	else
		status_chunk_encode(request);
	connection->unsent_bytes += request->header_bytes + request->data_bytes;
}

void nbd_encode_replies(struct nbd_connection *connection)
{
	list_for_each(link, &connection->done)
		reply_encode(connection, container_of(link, struct nbd_request, link));
	list_splice(&connection->replies, &connection->done);
}
