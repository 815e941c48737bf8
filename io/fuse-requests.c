/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * FUSE: operations on data. Each becomes a request, and its completion, at the turn's end, a reply.
 *
 *	READ                      -> READ           cut at the end of the file
 *	WRITE                     -> WRITE          cut at the end of the file; beyond it ENOSPC, as on a block device
 *	FSYNC                     -> FLUSH
 *	FALLOCATE punch hole      -> ZERO           where the export lets it be offered, else EOPNOTSUPP
 *	FALLOCATE zero range      -> ZERO, NO_HOLE
 *	LSEEK data, hole          -> EXTENTS        as often as it takes, 128 MiB at a time
 *
 * Memory. A message was received into the arena's buffer fusefs->receive, a write's payload on a page boundary. A long
 * payload takes that buffer along as it is; a short one is copied into one of its own size. A request that finds no
 * memory takes the receive buffer along too: it is large enough for all of them. So a request never waits for memory
 * here, only the next message does.
 *
 * ENOSYS is never answered to these operations: the kernel would remember it, and for FSYNC report success for ever
 * after.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/fuse-files.h"

_Static_assert(FUSEFS_COPY_BYTES_MAX < FUSEFS_DATA_BYTES_MAX, "the receive buffer holds what is not copied");

static size_t to_pages(size_t bytes)
{
	return (bytes + ARENA_PAGE_BYTES - 1) & ~(ARENA_PAGE_BYTES - 1);
}

/* ---- life of a request ---- */

bool fusefs_has_free_request(const struct fusefs *fusefs)
{
	return fusefs->pool_used < FUSEFS_REQUESTS_MAX || !list_is_empty(&fusefs->free_requests);
}

/* What the engine says, in words that suit a file. */
static int error_for_files(const struct fusefs_node *node, int error)
{
	if (error == 0)
		return 0;
	if (error == -ESHUTDOWN)
		return node->export && !node->export->gone ? EIO : ESTALE;
	if (error == -ENOSYS || error > 0 || error <= -512)
		return EIO;
	return -error;
}

static int node_check(const struct fusefs *fusefs, const struct fusefs_node *node)
{
	if (!node)
		return -EISDIR;
	if (!node->export || node->export->gone)
		return -ESTALE;
	return fusefs->quiesced ? -ESHUTDOWN : 0;
}

static void refuse(fuse_req_t handle, const struct fusefs_node *node, int error)
{
	(void)fuse_reply_err(handle, error_for_files(node, error));
}

static void request_complete(struct request *engine_request, int error)
{
	struct fusefs_request *request = container_of(engine_request, struct fusefs_request, request);
	struct fusefs *fusefs = request->node->fusefs;

	assert(fusefs->engine_count > 0);
	fusefs->engine_count--;
	request->error = error;
	list_append(&fusefs->done, &request->link);
	fusefs_work_soon(fusefs);
}

/*
 * A request for the node, which the caller has checked, without memory yet. There is one: no message is received
 * without.
 */
static struct fusefs_request *request_take(fuse_req_t handle, struct fusefs_node *node, enum request_op op,
					   uint64_t offset, uint64_t length)
{
	struct fusefs *fusefs = node->fusefs;
	struct list *link = list_pop(&fusefs->free_requests);
	struct fusefs_request *request;

	assert(link || fusefs->pool_used < FUSEFS_REQUESTS_MAX);
	request = link ? container_of(link, struct fusefs_request, link) : &fusefs->pool[fusefs->pool_used++];
	memset(request, 0, sizeof(*request));
	list_init(&request->link);
	request->node = node;
	request->handle = handle;
	request->request.op = op;
	request->request.offset = offset;
	request->request.length = length;
	request->request.export = node->export;
	request->request.complete = request_complete;
	node->requests++;
	return request;
}

static void request_release(struct fusefs *fusefs, struct fusefs_request *request)
{
	struct fusefs_node *node = request->node;

	if (request->memory) {
		fusefs->held_bytes -= request->memory_bytes;
		arena_put(fusefs->arena, request->memory, request->memory_bytes);
		request->memory = NULL;
	}
	list_append(fusefs->free_requests.next, &request->link); /* in front: the one used last is used next */
	node->requests--;
	fusefs_node_settle(node);
}

/* The receive buffer goes with the request. */
static void take_receive_buffer(struct fusefs *fusefs, struct fusefs_request *request)
{
	assert(fusefs->receive && !request->memory);
	request->memory = fusefs->receive;
	request->memory_bytes = FUSEFS_RECEIVE_BYTES;
	request->request.buffer = fusefs->receive + ARENA_PAGE_BYTES;
	fusefs->held_bytes += FUSEFS_RECEIVE_BYTES;
	fusefs->receive = NULL;
}

static void take_memory(struct fusefs *fusefs, struct fusefs_request *request, size_t bytes)
{
	bytes = to_pages(bytes);
	request->memory = arena_get(fusefs->arena, bytes);
	if (!request->memory) {
		take_receive_buffer(fusefs, request);
		return;
	}
	request->memory_bytes = bytes;
	request->request.buffer = request->memory;
	fusefs->held_bytes += bytes;
}

static void submit(struct fusefs *fusefs, struct fusefs_request *request)
{
	fusefs->counters.requests++;
	fusefs->engine_count++;
	export_submit(&request->request);
}

/* ---- operations ---- */

static void op_read(fuse_req_t handle, fuse_ino_t number, size_t size, off_t offset, struct fuse_file_info *info)
{
	struct fusefs *fusefs = fuse_req_userdata(handle);
	struct fusefs_node *node = fusefs_node(number);
	struct fusefs_request *request;
	int error = node_check(fusefs, node);

	(void)info;
	if (error == 0 && (offset < 0 || size > FUSEFS_DATA_BYTES_MAX))
		error = -EINVAL;
	if (error != 0) {
		refuse(handle, node, error);
		return;
	}
	if (size == 0 || (uint64_t)offset >= node->size_bytes) {
		(void)fuse_reply_buf(handle, NULL, 0);
		return;
	}
	if (size > node->size_bytes - (uint64_t)offset)
		size = (size_t)(node->size_bytes - (uint64_t)offset);
	request = request_take(handle, node, REQUEST_READ, (uint64_t)offset, size);
	take_memory(fusefs, request, size);
	submit(fusefs, request);
}

/* `data` lies in the receive buffer. */
static void take_payload(struct fusefs *fusefs, struct fusefs_request *request, const char *data, size_t size)
{
	if (size <= FUSEFS_COPY_BYTES_MAX)
		take_memory(fusefs, request, size);
	else
		take_receive_buffer(fusefs, request);
	if ((const uint8_t *)data != request->request.buffer)
		memmove(request->request.buffer, data, size);
}

static int write_check(const struct fusefs *fusefs, const struct fusefs_node *node, size_t size, off_t offset)
{
	int error = node_check(fusefs, node);

	if (error != 0)
		return error;
	if (node->read_only)
		return -EROFS;
	if (offset < 0 || size > FUSEFS_DATA_BYTES_MAX)
		return -EINVAL;
	return (uint64_t)offset >= node->size_bytes && size > 0 ? -ENOSPC : 0;
}

static void op_write(fuse_req_t handle, fuse_ino_t number, const char *data, size_t size, off_t offset,
		     struct fuse_file_info *info)
{
	struct fusefs *fusefs = fuse_req_userdata(handle);
	struct fusefs_node *node = fusefs_node(number);
	struct fusefs_request *request;
	int error = write_check(fusefs, node, size, offset);

	if (error != 0) {
		refuse(handle, node, error);
		return;
	}
	if (size == 0) {
		(void)fuse_reply_write(handle, 0);
		return;
	}
	if (size > node->size_bytes - (uint64_t)offset)
		size = (size_t)(node->size_bytes - (uint64_t)offset);
	request = request_take(handle, node, REQUEST_WRITE, (uint64_t)offset, size);
	request->request.flags = info->flags & O_DSYNC ? REQUEST_FUA : 0; /* O_SYNC has that bit too */
	take_payload(fusefs, request, data, size);
	submit(fusefs, request);
}

static void op_fsync(fuse_req_t handle, fuse_ino_t number, int data_only, struct fuse_file_info *info)
{
	struct fusefs *fusefs = fuse_req_userdata(handle);
	struct fusefs_node *node = fusefs_node(number);
	int error = node_check(fusefs, node);

	(void)data_only;
	(void)info;
	if (error != 0)
		refuse(handle, node, error);
	else
		submit(fusefs, request_take(handle, node, REQUEST_FLUSH, 0, 0));
}

/* 0, and the flags for ZERO; or why not. */
static int fallocate_check(const struct fusefs *fusefs, const struct fusefs_node *node, int mode, off_t offset,
			   off_t length, unsigned *flags)
{
	bool inside;
	int error = node_check(fusefs, node);

	if (error != 0)
		return error;
	if (node->read_only)
		return -EROFS;
	if (offset < 0 || length <= 0)
		return -EINVAL;
	inside = (uint64_t)offset <= node->size_bytes && (uint64_t)length <= node->size_bytes - (uint64_t)offset;
	*flags = 0;
	switch (mode) {
	case FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE:
		return node->export->can_punch ? 0 : -EOPNOTSUPP;
	case FALLOC_FL_ZERO_RANGE:
		*flags = REQUEST_NO_HOLE;
		return inside ? 0 : -EFBIG;
	case FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE:
		*flags = REQUEST_NO_HOLE;
		return 0;
	default:
		return -EOPNOTSUPP;
	}
}

static void op_fallocate(fuse_req_t handle, fuse_ino_t number, int mode, off_t offset, off_t length,
			 struct fuse_file_info *info)
{
	struct fusefs *fusefs = fuse_req_userdata(handle);
	struct fusefs_node *node = fusefs_node(number);
	struct fusefs_request *request;
	unsigned flags = 0;
	int error = fallocate_check(fusefs, node, mode, offset, length, &flags);

	(void)info;
	if (error != 0 || (uint64_t)offset >= node->size_bytes) {
		refuse(handle, node, error);
		return;
	}
	if ((uint64_t)length > node->size_bytes - (uint64_t)offset)
		length = (off_t)(node->size_bytes - (uint64_t)offset);
	request = request_take(handle, node, REQUEST_ZERO, (uint64_t)offset, (uint64_t)length);
	request->request.flags = flags;
	submit(fusefs, request);
}

/* ---- searching for data and holes ---- */

static void search_submit(struct fusefs *fusefs, struct fusefs_request *request)
{
	struct request *engine_request = &request->request;
	uint64_t left = request->node->size_bytes - engine_request->offset;

	engine_request->length = left < FUSEFS_EXTENTS_RANGE_BYTES_MAX ? left : FUSEFS_EXTENTS_RANGE_BYTES_MAX;
	engine_request->extents = (struct disk_extent *)(void *)engine_request->buffer;
	engine_request->extents_max = (unsigned)(ARENA_PAGE_BYTES / sizeof(struct disk_extent));
	engine_request->extents_count = 0;
	submit(fusefs, request);
}

static void op_lseek(fuse_req_t handle, fuse_ino_t number, off_t offset, int whence, struct fuse_file_info *info)
{
	struct fusefs *fusefs = fuse_req_userdata(handle);
	struct fusefs_node *node = fusefs_node(number);
	struct fusefs_request *request;
	int error = node_check(fusefs, node);

	(void)info;
	if (error == 0 && whence != SEEK_DATA && whence != SEEK_HOLE)
		error = -EINVAL;
	if (error == 0 && (offset < 0 || (uint64_t)offset >= node->size_bytes))
		error = -ENXIO;
	if (error != 0) {
		refuse(handle, node, error);
		return;
	}
	request = request_take(handle, node, REQUEST_EXTENTS, (uint64_t)offset, 0);
	request->whence = whence;
	take_memory(fusefs, request, ARENA_PAGE_BYTES);
	search_submit(fusefs, request);
}

void fusefs_submit_again(struct fusefs *fusefs)
{
	struct list searches;
	struct list *link;

	list_init(&searches);
	list_splice(&searches, &fusefs->again);
	while ((link = list_pop(&searches)) != NULL) {
		struct fusefs_request *request = container_of(link, struct fusefs_request, link);

		request->error = fusefs->unmounted ? -ESHUTDOWN : node_check(fusefs, request->node);
		if (request->error != 0)
			list_append(&fusefs->done, &request->link);
		else
			search_submit(fusefs, request);
	}
}

/* Answers, or goes on in the next turn: then false, and the request is still needed. */
static bool search_reply(struct fusefs *fusefs, struct fusefs_request *request)
{
	struct request *engine_request = &request->request;
	uint64_t at = engine_request->offset;
	bool wanted = request->whence == SEEK_HOLE;

	for (unsigned i = 0; i < engine_request->extents_count; i++) {
		if (engine_request->extents[i].hole == wanted) {
			(void)fuse_reply_lseek(request->handle, (off_t)at);
			return true;
		}
		at += engine_request->extents[i].length;
	}
	if (at >= request->node->size_bytes) {
		/* A file's end counts as a hole. */
		if (wanted)
			(void)fuse_reply_lseek(request->handle, (off_t)request->node->size_bytes);
		else
			(void)fuse_reply_err(request->handle, ENXIO);
		return true;
	}
	if (at == engine_request->offset) {
		(void)fuse_reply_err(request->handle, EIO);
		return true;
	}
	engine_request->offset = at;
	list_append(&fusefs->again, &request->link);
	fusefs_work_soon(fusefs);
	return false;
}

/* ---- replies ---- */

static void note_change(struct fusefs_node *node)
{
	(void)clock_gettime(CLOCK_REALTIME, &node->changed);
}

/* True: through with it. */
static bool reply(struct fusefs *fusefs, struct fusefs_request *request)
{
	const struct request *engine_request = &request->request;

	if (request->error != 0) {
		refuse(request->handle, request->node, request->error);
		return true;
	}
	switch (engine_request->op) {
	case REQUEST_READ:
		fusefs->counters.bytes_read += engine_request->length;
		(void)fuse_reply_buf(request->handle, (const char *)engine_request->buffer, engine_request->length);
		return true;
	case REQUEST_WRITE:
		note_change(request->node);
		fusefs->counters.bytes_written += engine_request->length;
		(void)fuse_reply_write(request->handle, engine_request->length);
		return true;
	case REQUEST_EXTENTS:
		return search_reply(fusefs, request);
	case REQUEST_ZERO:
		note_change(request->node);
		break;
	case REQUEST_FLUSH:
	case REQUEST_DISCARD:
		break;
	}
	(void)fuse_reply_err(request->handle, 0);
	return true;
}

void fusefs_reply_done(struct fusefs *fusefs)
{
	struct list *link;

	while ((link = list_pop(&fusefs->done)) != NULL) {
		struct fusefs_request *request = container_of(link, struct fusefs_request, link);

		if (reply(fusefs, request))
			request_release(fusefs, request);
	}
}

void fusefs_data_operations(struct fuse_lowlevel_ops *operations)
{
	operations->read = op_read;
	operations->write = op_write;
	operations->fsync = op_fsync;
	operations->fallocate = op_fallocate;
	operations->lseek = op_lseek;
}
