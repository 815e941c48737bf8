/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Exports as files, by FUSE: libfuse's low-level session inside our event loop.
 *
 *	            read: a message a time,                          a write each
 *	   kernel ─────────────────────────> operation ──> engine ──> done ──────────> kernel
 *	                                       │
 *	                                       └─ names, attributes: answered on the spot
 *
 * A turn: messages are read and the engine is entered from the device's source and the timer `work`; what was completed
 * is answered, and memory given back, from the hook at the turn's end. So complete() only takes a note, and the engine
 * is never entered from the hook.
 *
 * The kernel says how long a message is only by delivering it, so each is received into a buffer for the largest: it
 * comes from the arena for the turn's messages, goes along with a long write, and is given back at the turn's end (so
 * nothing lies in the middle of the arena for ever). It is placed so that a write's payload begins on a page boundary:
 *
 *	   page │               page │ page ...
 *	        │         header(80) │ payload, up to 1 MiB
 *	                  ^ read()
 *
 * Messages are left unread while the pool of requests is used up, while requests hold our share of the arena (a
 * quarter, but REQUEST_DATA_BYTES_MAX at least), or while we wait in the arena's queue. The kernel takes every reply at
 * once, so no client can hold up memory here.
 *
 * The end: close() closes the device, which makes the kernel fail what is still being asked, and only then unmounts
 * (lazily), so that unmounting can't wait for us. When somebody else unmounts the folder, the device says so after the
 * last file in it was closed: that is logged, and the transport lies idle from then on.
 */
#include "io/fuse.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "io/fuse-files.h"
#include "io/log.h"

#define MESSAGES_PER_TURN_MAX 64

static struct fusefs *fusefs_of(struct transport *transport)
{
	return container_of(transport, struct fusefs, transport);
}

static const struct fusefs *fusefs_of_const(const struct transport *transport)
{
	return (const struct fusefs *)(const void *)((const char *)transport - offsetof(struct fusefs, transport));
}

void fusefs_work_soon(struct fusefs *fusefs)
{
	if (list_is_empty(&fusefs->work.link))
		loop_timer_set(fusefs->loop, &fusefs->work, 0);
}

/* ---- receiving ---- */

static bool may_receive(const struct fusefs *fusefs)
{
	return !fusefs->unmounted && !fusefs->waiting && fusefs->held_bytes < fusefs->held_bytes_max &&
	       fusefs_has_free_request(fusefs);
}

/* The connection to the kernel is gone. What is under way completes into the void. */
static void ended(struct fusefs *fusefs)
{
	if (fusefs->unmounted)
		return;
	fusefs->unmounted = true;
	loop_remove(fusefs->loop, &fusefs->device);
	arena_cancel(fusefs->arena, &fusefs->waiter);
	fusefs->waiting = false;
	fuse_session_exit(fusefs->session);
	fusefs->counters.files_open = 0;
	fusefs_nodes_settle(fusefs);
	log_warning("fuse: '%s' was unmounted by somebody else; nothing is served there any more", fusefs->directory);
}

static void granted(struct arena_waiter *waiter, void *buffer)
{
	struct fusefs *fusefs = waiter->context;

	assert(fusefs->waiting && !fusefs->receive);
	fusefs->waiting = false;
	fusefs->granted = true;
	fusefs->receive = buffer;
	fusefs_work_soon(fusefs);
}

static bool get_receive_buffer(struct fusefs *fusefs)
{
	if (!fusefs->receive)
		fusefs->receive = arena_get(fusefs->arena, FUSEFS_RECEIVE_BYTES);
	if (fusefs->receive)
		return true;
	fusefs->waiter.bytes = FUSEFS_RECEIVE_BYTES;
	fusefs->waiting = true;
	arena_wait(fusefs->arena, &fusefs->waiter);
	return false;
}

/* One message. False: there is none, or no more is to be read. */
static bool receive_one(struct fusefs *fusefs)
{
	struct fuse_buf buffer = { 0 };
	int got;

	if (!get_receive_buffer(fusefs))
		return false;
	buffer.mem = fusefs->receive + ARENA_PAGE_BYTES - FUSEFS_HEADER_BYTES;
	got = fuse_session_receive_buf(fusefs->session, &buffer);
	if (got == -EAGAIN || got == -EINTR)
		return false;
	if (got > 0)
		fuse_session_process_buf(fusefs->session, &buffer);
	if (got <= 0 || fuse_session_exited(fusefs->session)) {
		ended(fusefs);
		return false;
	}
	return true;
}

static void receive(struct fusefs *fusefs)
{
	fusefs->granted = false;
	for (int i = 0; i < MESSAGES_PER_TURN_MAX && may_receive(fusefs); i++)
		if (!receive_one(fusefs))
			break;
}

static void device_ready(struct loop_source *source, uint32_t events)
{
	struct fusefs *fusefs = source->context;

	if (may_receive(fusefs))
		receive(fusefs);
	else if (events & (EPOLLERR | EPOLLHUP))
		ended(fusefs);
}

static void work_expired(struct loop_timer *timer)
{
	struct fusefs *fusefs = timer->context;

	fusefs_submit_again(fusefs);
	if (fusefs->granted)
		receive(fusefs);
}

/* ---- the turn's end ---- */

static void watch(struct fusefs *fusefs)
{
	uint32_t events = may_receive(fusefs) ? (uint32_t)EPOLLIN : 0;

	if (fusefs->unmounted || events == fusefs->events)
		return;
	fusefs->events = events;
	if (loop_modify(fusefs->loop, &fusefs->device, events) != 0)
		ended(fusefs);
}

static void put_receive_buffer(struct fusefs *fusefs)
{
	uint8_t *buffer = fusefs->receive;

	if (!buffer)
		return;
	fusefs->receive = NULL;
	fusefs->granted = false;
	arena_put(fusefs->arena, buffer, FUSEFS_RECEIVE_BYTES);
}

static void turn_end(struct loop_hook *hook)
{
	struct fusefs *fusefs = hook->context;

	fusefs_reply_done(fusefs);
	if (!fusefs->granted || fusefs->unmounted)
		put_receive_buffer(fusefs);
	watch(fusefs);
	if (!fusefs->granted && list_is_empty(&fusefs->again))
		loop_timer_cancel(&fusefs->work);
}

/* ---- exports that come and go ---- */

static void export_added(struct export_watcher *watcher, struct export *export)
{
	struct fusefs *fusefs = watcher->context;

	if (!fusefs->unmounted && fusefs_node_add(fusefs, export) != 0)
		log_warning("fuse: out of memory: '%s' will be missing in '%s'", export->name, fusefs->directory);
}

static void export_removed(struct export_watcher *watcher, struct export *export)
{
	fusefs_node_remove(watcher->context, export);
}

/* ---- life ---- */

static void fuse_quiesce(struct transport *transport)
{
	fusefs_of(transport)->quiesced = true;
}

static bool fuse_is_idle(const struct transport *transport)
{
	const struct fusefs *fusefs = fusefs_of_const(transport);

	return fusefs->engine_count == 0 && list_is_empty(&fusefs->done) && list_is_empty(&fusefs->again);
}

/* All but the session, of what was made so far. */
static void fusefs_free(struct fusefs *fusefs)
{
	fusefs->unmounted = true;
	fusefs_nodes_settle(fusefs);
	arena_cancel(fusefs->arena, &fusefs->waiter);
	put_receive_buffer(fusefs);
	loop_timer_cancel(&fusefs->work);
	loop_hook_remove(&fusefs->hook);
	list_remove(&fusefs->watcher.link);
	free(fusefs->directory);
	free(fusefs);
}

static void fuse_close(struct transport *transport)
{
	struct fusefs *fusefs = fusefs_of(transport);
	bool was_unmounted = fusefs->unmounted;

	assert(fusefs->engine_count == 0);
	fusefs->quiesced = true;
	fusefs_submit_again(fusefs); /* they are refused by now */
	fusefs_reply_done(fusefs);
	loop_remove(fusefs->loop, &fusefs->device);
	fuse_session_unmount(fusefs->session);
	fuse_session_destroy(fusefs->session);
	/* Where not the mount but only its connection was ended, a dead mount is left. */
	if (was_unmounted && fusefs_mount_point_prepare(fusefs->directory) == -EBUSY)
		log_warning("fuse: something is still mounted on '%s'", fusefs->directory);
	fusefs_free(fusefs);
}

static const struct transport_ops fuse_transport_ops = {
	.quiesce = fuse_quiesce,
	.is_idle = fuse_is_idle,
	.close = fuse_close,
};

/* libfuse's own complaints; each ends in a newline. */
__attribute__((format(printf, 2, 0))) static void log_for_libfuse(enum fuse_log_level level, const char *format,
								   va_list arguments)
{
	char text[512];

	if (level > FUSE_LOG_WARNING || vsnprintf(text, sizeof(text), format, arguments) < 0)
		return;
	text[strcspn(text, "\n")] = '\0';
	log_warning("%s", text);
}

/* The kernel's first message: what it offers, and what we want of it. */
static void op_init(void *context, struct fuse_conn_info *connection)
{
	(void)context;
	/* No page of what can be written is cached, and what is read-only doesn't change: nothing to look out for. */
	connection->want &= ~(unsigned)(FUSE_CAP_WRITEBACK_CACHE | FUSE_CAP_AUTO_INVAL_DATA | FUSE_CAP_SPLICE_READ);
	/* Without it, an open file's direct I/O comes one request at a time. */
	connection->want |= connection->capable & FUSE_CAP_ASYNC_DIO;
	connection->max_write = (unsigned)FUSEFS_DATA_BYTES_MAX;
	connection->max_background = FUSEFS_BACKGROUND_MAX;
}

static int session_begin(struct fusefs *fusefs)
{
	char name[] = "rowsnap", option[] = "-o", options[] = "fsname=rowsnap,subtype=rowsnap,default_permissions";
	char *words[] = { name, option, options, NULL };
	struct fuse_args arguments = FUSE_ARGS_INIT(3, words);
	struct fuse_lowlevel_ops operations = { .init = op_init };
	int fd, flags;

	fusefs_tree_operations(&operations);
	fusefs_data_operations(&operations);
	fuse_set_log_func(log_for_libfuse);
	fusefs->session = fuse_session_new(&arguments, &operations, sizeof(operations), fusefs);
	fuse_opt_free_args(&arguments);
	if (!fusefs->session)
		return -ENOMEM;
	if (fuse_session_mount(fusefs->session, fusefs->directory) != 0)
		return fusefs_mount_failure(fusefs->directory);
	fd = fuse_session_fd(fusefs->session);
	flags = fcntl(fd, F_GETFL);
	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) != 0)
		return -errno;
	fusefs->device = (struct loop_source){ .fd = fd, .ready = device_ready, .context = fusefs };
	fusefs->events = EPOLLIN;
	return loop_add(fusefs->loop, &fusefs->device, EPOLLIN);
}

static void fusefs_init(struct fusefs *fusefs, struct loop *loop, struct export_table *exports, struct arena *arena)
{
	size_t quarter = arena_bytes(arena) / 4;

	fusefs->transport.ops = &fuse_transport_ops;
	fusefs->loop = loop;
	fusefs->exports = exports;
	fusefs->arena = arena;
	fusefs->held_bytes_max = quarter > REQUEST_DATA_BYTES_MAX ? quarter : REQUEST_DATA_BYTES_MAX;
	fusefs->serial_last = FUSEFS_FIRST_SERIAL - 1;
	fusefs->waiter = (struct arena_waiter){ .granted = granted, .context = fusefs };
	list_init(&fusefs->waiter.link);
	list_init(&fusefs->nodes);
	list_init(&fusefs->ghosts);
	list_init(&fusefs->done);
	list_init(&fusefs->again);
	list_init(&fusefs->free_requests);
	loop_timer_init(&fusefs->work, work_expired, fusefs);
	fusefs->hook = (struct loop_hook){ .turn_end = turn_end, .context = fusefs };
	fusefs->watcher.added = export_added;
	fusefs->watcher.removed = export_removed;
	fusefs->watcher.context = fusefs;
	(void)clock_gettime(CLOCK_REALTIME, &fusefs->started);
	fusefs->changed = fusefs->started;
	loop_hook_add(loop, &fusefs->hook);
	list_append(&exports->watchers, &fusefs->watcher.link);
}

static int nodes_begin(struct fusefs *fusefs)
{
	int error = 0;

	list_for_each(link, &fusefs->exports->exports)
		if (error == 0)
			error = fusefs_node_add(fusefs, container_of(link, struct export, link));
	return error;
}

int fuse_start(struct loop *loop, struct export_table *exports, struct arena *arena, const char *directory,
	       struct transport **transport)
{
	struct fusefs *fusefs;
	int error;

	assert(arena_bytes(arena) > REQUEST_DATA_BYTES_MAX);
	error = fusefs_mount_point_prepare(directory);
	if (error != 0)
		return error;
	fusefs = calloc(1, sizeof(*fusefs));
	if (!fusefs)
		return -ENOMEM;
	fusefs_init(fusefs, loop, exports, arena);
	fusefs->directory = realpath(directory, NULL);
	error = fusefs->directory ? nodes_begin(fusefs) : -errno;
	if (error == 0)
		error = session_begin(fusefs);
	if (error != 0) {
		loop_remove(loop, &fusefs->device);
		if (fusefs->session) {
			fuse_session_unmount(fusefs->session);
			fuse_session_destroy(fusefs->session);
		}
		fusefs_free(fusefs);
		return error;
	}
	fusefs->counters.mounted = true;
	*transport = &fusefs->transport;
	return 0;
}

void fuse_get_counters(const struct transport *transport, struct fuse_counters *counters)
{
	*counters = fusefs_of_const(transport)->counters;
	counters->mounted = !fusefs_of_const(transport)->unmounted;
}

const char *fuse_directory(const struct transport *transport)
{
	return fusefs_of_const(transport)->directory;
}

int fuse_file_path(const struct transport *transport, const struct export *export, char *path, size_t bytes)
{
	int length = snprintf(path, bytes, "%s/%s%s", fuse_directory(transport), export->read_only ? "snapshots/" : "",
			      export->name);

	return length >= 0 && (size_t)length < bytes ? 0 : -ENAMETOOLONG;
}
