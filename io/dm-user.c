/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Exports as block devices, by the device mapper's target dm-user (of Android's kernels): what is asked of the device
 * comes as messages from /dev/dm-user/NAME, and goes back there answered.
 *
 *	           reader threads, one a channel:                      one writev a reply
 *	   kernel ───────────────────────────────> requests ──> engine ──> done ──────────> kernel
 *	              header, then payload               │       │
 *	              straight to its buffer           arena   arena
 *
 * A turn: messages are taken from the readers, and the engine is entered, from the event descriptor's source and the
 * timer `work`; what was completed is answered, and memory given back, from the hook at the turn's end. So complete()
 * only takes a note, and the engine is never entered from the hook.
 *
 * The origin has several channels (the kernel deals messages out to whoever reads first), so that one that is receiving
 * a long payload doesn't hold up the rest; a snapshot has one, it gets no payloads. Messages are left with the kernel
 * while a channel's requests are used up, while requests hold our share of the arena (a quarter, but
 * REQUEST_DATA_BYTES_MAX at least), or while it waits in the arena's queue.
 *
 * A device's life. A worker makes and removes it: both may take a while, and removing may have to wait for requests
 * that only we can answer. While a device is being removed it is served on, with errors. There is one worker, so a
 * device of the same name as one before is made when that one is gone.
 *
 *	added ──> CREATING ──> SERVING ──> REMOVING ──> REMOVED ──> freed
 *	              └ unwanted meanwhile ───^               └ its channels are closed when all is answered
 *
 * Closing a channel makes the kernel fail what is unanswered on it. So that is also what is done with a channel on
 * which something went wrong; the others go on.
 */
#include "io/dm-user.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "io/dm-user-device.h"
#include "io/event.h"
#include "io/log.h"

#define ORIGIN_CHANNELS DM_USER_CHANNELS_MAX
#define CLOSE_POLL_MS 100

static struct dm_user *dm_user_of(struct transport *transport)
{
	return container_of(transport, struct dm_user, transport);
}

static const struct dm_user *dm_user_of_const(const struct transport *transport)
{
	return (const struct dm_user *)(const void *)((const char *)transport - offsetof(struct dm_user, transport));
}

void dm_user_work_soon(struct dm_user *dm_user)
{
	if (list_is_empty(&dm_user->work.link))
		loop_timer_set(dm_user->loop, &dm_user->work, 0);
}

void dm_user_touch(struct dm_user_channel *channel)
{
	struct dm_user *dm_user = channel->device->dm_user;

	list_remove(&channel->runnable_link);
	list_append(&dm_user->runnable, &channel->runnable_link);
	dm_user_work_soon(dm_user);
}

/* ---- channels ---- */

void dm_user_channel_close(struct dm_user_channel *channel)
{
	if (channel->closing || channel->reader.fd < 0)
		return;
	channel->closing = true;
	channel->device->dm_user->is_closing = true;
	dm_user_reader_stop(&channel->reader);
	dm_user_abandon(channel);
	dm_user_work_soon(channel->device->dm_user);
}

static void channel_ended(struct dm_user_channel *channel, int error)
{
	struct dm_user_device *device = channel->device;

	if (!channel->closing && device->state == DM_USER_SERVING && !device->lost) {
		device->lost = true;
		if (error == -ENOTBLK)
			log_warning("dm-user: '%s' was removed by somebody else; it is not served any more",
				    device->node.name);
		else
			log_warning("dm-user: '%s': %s: a channel is closed, what was asked on it fails",
				    device->node.name,
				    error == -EPROTO ? "the kernel has another protocol" : strerror(-error));
	}
	dm_user_channel_close(channel);
}

static void device_free(struct dm_user_device *device)
{
	list_remove(&device->link);
	export_close(device->export);
	free(device);
}

/* Closes the channels that can be, and frees the devices that need nothing any more. */
static void finish_closing(struct dm_user *dm_user)
{
	if (!dm_user->is_closing)
		return;
	dm_user->is_closing = false;
	list_for_each_safe(link, &dm_user->devices) {
		struct dm_user_device *device = container_of(link, struct dm_user_device, link);
		unsigned open = 0;

		for (unsigned i = 0; i < device->node.channel_count; i++) {
			struct dm_user_channel *channel = &device->channels[i];

			if (channel->closing && channel->busy_count == 0) {
				(void)close(channel->reader.fd);
				channel->reader.fd = -1;
				channel->closing = false;
				list_remove(&channel->runnable_link);
			}
			dm_user->is_closing = dm_user->is_closing || channel->closing;
			open += channel->reader.fd >= 0;
		}
		if (device->state == DM_USER_REMOVED && open == 0)
			device_free(device);
	}
}

/* ---- devices ---- */

static void device_remove(struct dm_user_device *device)
{
	device->unwanted = true;
	for (unsigned i = 0; i < device->node.channel_count; i++)
		dm_user_touch(&device->channels[i]);
	if (device->state != DM_USER_SERVING)
		return; /* it is being made: after that; or it is going already */
	device->state = DM_USER_REMOVING;
	workers_give(device->dm_user->workers, &device->job);
}

/* On the worker's thread; or, at the start, on the loop's. */
static void job_run(struct workers_job *job)
{
	struct dm_user_device *device = container_of(job, struct dm_user_device, job);

	if (device->state == DM_USER_CREATING)
		device->job_error = dm_user_node_create(&device->node);
	else
		device->job_error = dm_user_node_remove(&device->node);
}

/* Returns 0, or an error: then the device is on its way out. */
static int device_created(struct dm_user_device *device)
{
	int error = device->job_error;

	if (error != 0) {
		device_free(device);
		return error;
	}
	device->state = DM_USER_SERVING;
	if (device->export->device[0] == '\0')
		(void)snprintf(device->export->device, sizeof(device->export->device), "/dev/mapper/%s", device->node.name);
	for (unsigned i = 0; i < device->node.channel_count; i++) {
		struct dm_user_channel *channel = &device->channels[i];
		int fd = device->node.channels[i];

		channel->reader.fd = fd;
		if (error == 0)
			error = dm_user_reader_start(&channel->reader, &device->dm_user->bell, fd);
	}
	if (error != 0 || device->unwanted)
		device_remove(device);
	return error;
}

static void device_removed(struct dm_user_device *device)
{
	if (device->job_error == -EBUSY)
		log_warning("dm-user: '%s' is still open: its requests fail, and it goes when it is closed",
			    device->node.name);
	else if (device->job_error != 0)
		log_warning("dm-user: '%s' cannot be removed: %s", device->node.name, strerror(-device->job_error));
	device->state = DM_USER_REMOVED;
	device->dm_user->is_closing = true;
	for (unsigned i = 0; i < device->node.channel_count; i++)
		dm_user_channel_close(&device->channels[i]);
	dm_user_work_soon(device->dm_user);
}

static void job_done(struct dm_user_device *device)
{
	char name[DEVICE_MAPPER_NAME_BYTES];
	int error;

	if (device->state != DM_USER_CREATING) {
		device_removed(device);
		return;
	}
	memcpy(name, device->node.name, sizeof(name));
	error = device_created(device);
	if (error != 0)
		log_warning("dm-user: the device '%s' cannot be made, its snapshot is not served there: %s", name,
			    error == -EBUSY ? "the name is taken" : strerror(-error));
}

static int device_new(struct dm_user *dm_user, struct export *export, struct dm_user_device **device)
{
	unsigned channels = export->read_only ? 1 : ORIGIN_CHANNELS;
	struct dm_user_device *made;

	if (export->size_bytes % DEVICE_MAPPER_SECTOR_BYTES != 0 || export->size_bytes == 0)
		return -EINVAL;
	made = calloc(1, sizeof(*made) + channels * sizeof(made->channels[0]));
	if (!made)
		return -ENOMEM;
	made->dm_user = dm_user;
	made->export = export;
	made->state = DM_USER_CREATING;
	made->job.run = job_run;
	dm_user_node_init(&made->node, dm_user->control, dm_user->name, export->name);
	made->node.sectors = export->size_bytes / DEVICE_MAPPER_SECTOR_BYTES;
	made->node.read_only = export->read_only;
	made->node.channel_count = channels;
	for (unsigned i = 0; i < channels; i++)
		dm_user_channel_init(&made->channels[i], made);
	export_open(export);
	list_append(&dm_user->devices, &made->link);
	*device = made;
	return 0;
}

static void export_added(struct export_watcher *watcher, struct export *export)
{
	struct dm_user *dm_user = watcher->context;
	struct dm_user_device *device;
	int error;

	if (dm_user->quiesced)
		return;
	error = device_new(dm_user, export, &device);
	if (error != 0)
		log_warning("dm-user: '%s' is not served: %s", export->name, strerror(-error));
	else
		workers_give(dm_user->workers, &device->job);
}

static void export_removed(struct export_watcher *watcher, struct export *export)
{
	struct dm_user *dm_user = watcher->context;

	list_for_each(link, &dm_user->devices) {
		struct dm_user_device *device = container_of(link, struct dm_user_device, link);

		if (device->export == export && !device->unwanted)
			device_remove(device);
	}
}

/* ---- the turn ---- */

static void event_ready(struct loop_source *source, uint32_t events)
{
	struct dm_user *dm_user = source->context;
	struct dm_user_reader *reader;
	struct list finished;
	struct list *link;
	int error;

	(void)events;
	event_clear(source->fd);
	while ((reader = dm_user_bell_next(&dm_user->bell)) != NULL) {
		struct dm_user_channel *channel = container_of(reader, struct dm_user_channel, reader);

		dm_user_advance(channel);
		if (dm_user_reader_has_ended(reader, &error))
			channel_ended(channel, error);
	}
	list_init(&finished);
	workers_take(dm_user->workers, &finished);
	while ((link = list_pop(&finished)) != NULL)
		job_done(container_of(container_of(link, struct workers_job, link), struct dm_user_device, job));
}

static void work_expired(struct loop_timer *timer)
{
	struct dm_user *dm_user = timer->context;
	struct list runnable;
	struct list *link;

	list_init(&runnable);
	list_splice(&runnable, &dm_user->runnable);
	while ((link = list_pop(&runnable)) != NULL)
		dm_user_advance(container_of(link, struct dm_user_channel, runnable_link));
}

static void turn_end(struct loop_hook *hook)
{
	struct dm_user *dm_user = hook->context;

	dm_user_settle(dm_user);
	finish_closing(dm_user);
	if (list_is_empty(&dm_user->runnable))
		loop_timer_cancel(&dm_user->work);
}

/* ---- life ---- */

/* A device goes with close(); until then it is only seen to that nobody has it open. */
static void dm_user_detach(struct transport *transport, bool force)
{
	struct dm_user *dm_user = dm_user_of(transport);

	dm_user->forced = dm_user->forced || force;
}

static bool dm_user_is_detached(struct transport *transport, const char **why)
{
	struct dm_user *dm_user = dm_user_of(transport);
	const char *name = dm_user->forced ? NULL : dm_user_open_device(transport);

	if (name == NULL)
		return true;
	(void)snprintf(dm_user->holder, sizeof(dm_user->holder), "/dev/mapper/%s is open or mounted", name);
	*why = dm_user->holder;
	return false;
}

static void dm_user_quiesce(struct transport *transport)
{
	struct dm_user *dm_user = dm_user_of(transport);

	dm_user->quiesced = true;
	list_for_each(link, &dm_user->devices) {
		struct dm_user_device *device = container_of(link, struct dm_user_device, link);

		for (unsigned i = 0; i < device->node.channel_count; i++)
			dm_user_touch(&device->channels[i]);
	}
}

static bool dm_user_is_idle(const struct transport *transport)
{
	const struct dm_user *dm_user = dm_user_of_const(transport);

	return dm_user->engine_count == 0 && list_is_empty(&dm_user->done);
}

/* All of what was made so far. No device is left. */
static void dm_user_free(struct dm_user *dm_user)
{
	assert(list_is_empty(&dm_user->devices) && dm_user->held_bytes == 0);
	if (dm_user->workers)
		workers_destroy(dm_user->workers);
	loop_remove(dm_user->loop, &dm_user->event);
	if (dm_user->event.fd >= 0)
		(void)close(dm_user->event.fd);
	dm_user_bell_destroy(&dm_user->bell);
	loop_timer_cancel(&dm_user->work);
	loop_hook_remove(&dm_user->hook);
	list_remove(&dm_user->watcher.link);
	(void)close(dm_user->control);
	free(dm_user->name);
	free(dm_user);
}

/* While the devices are removed, what is asked of them must still be answered: the turns for that are made here. */
static void dm_user_close(struct transport *transport)
{
	struct dm_user *dm_user = dm_user_of(transport);

	assert(dm_user->engine_count == 0);
	dm_user_quiesce(transport);
	list_for_each(link, &dm_user->devices)
		device_remove(container_of(link, struct dm_user_device, link));
	for (;;) {
		struct pollfd wait = { .fd = dm_user->event.fd, .events = POLLIN };

		work_expired(&dm_user->work);
		turn_end(&dm_user->hook);
		if (list_is_empty(&dm_user->devices))
			break;
		(void)poll(&wait, 1, list_is_empty(&dm_user->runnable) ? CLOSE_POLL_MS : 0);
		event_ready(&dm_user->event, POLLIN);
	}
	dm_user_free(dm_user);
}

static const struct transport_ops dm_user_transport_ops = {
	.detach = dm_user_detach,
	.is_detached = dm_user_is_detached,
	.quiesce = dm_user_quiesce,
	.is_idle = dm_user_is_idle,
	.close = dm_user_close,
};

static void dm_user_init(struct dm_user *dm_user, struct loop *loop, struct export_table *exports,
			 struct arena *arena, int control)
{
	size_t quarter = arena_bytes(arena) / 4;

	dm_user->transport.ops = &dm_user_transport_ops;
	dm_user->loop = loop;
	dm_user->exports = exports;
	dm_user->arena = arena;
	dm_user->control = control;
	dm_user->held_bytes_max = quarter > REQUEST_DATA_BYTES_MAX ? quarter : REQUEST_DATA_BYTES_MAX;
	list_init(&dm_user->devices);
	list_init(&dm_user->runnable);
	list_init(&dm_user->done);
	list_init(&dm_user->starved);
	loop_timer_init(&dm_user->work, work_expired, dm_user);
	dm_user->event.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	dm_user->event.ready = event_ready;
	dm_user->event.context = dm_user;
	dm_user_bell_init(&dm_user->bell, dm_user->event.fd);
	dm_user->hook = (struct loop_hook){ .turn_end = turn_end, .context = dm_user };
	dm_user->watcher.added = export_added;
	dm_user->watcher.removed = export_removed;
	dm_user->watcher.context = dm_user;
	loop_hook_add(loop, &dm_user->hook);
	list_append(&exports->watchers, &dm_user->watcher.link);
}

/* The devices of the exports that are there. No request can come to them before the loop runs. */
static int devices_begin(struct dm_user *dm_user, char failed[static DEVICE_MAPPER_NAME_BYTES])
{
	int error = dm_user_nodes_clear(dm_user->control, dm_user->name, failed);

	list_for_each(link, &dm_user->exports->exports) {
		struct export *export = container_of(link, struct export, link);
		struct dm_user_device *device = NULL;
		struct dm_user_node named;

		if (error != 0)
			break;
		dm_user_node_init(&named, dm_user->control, dm_user->name, export->name);
		memcpy(failed, named.name, DEVICE_MAPPER_NAME_BYTES);
		error = device_new(dm_user, export, &device);
		if (error != 0)
			break;
		job_run(&device->job);
		error = device_created(device);
	}
	if (error == 0)
		failed[0] = '\0';
	return error;
}

static int control_open(void)
{
	int control = device_mapper_open(), has_target;

	if (control < 0)
		return control;
	has_target = device_mapper_has_target(control, "user");
	if (has_target == 1)
		return control;
	(void)close(control);
	return has_target == 0 ? -ENODEV : has_target;
}

int dm_user_start(struct loop *loop, struct export_table *exports, struct arena *arena, const char *name,
		  char failed[static DEVICE_MAPPER_NAME_BYTES], struct transport **transport)
{
	struct dm_user *dm_user;
	int control, error;

	assert(arena_bytes(arena) > REQUEST_DATA_BYTES_MAX && strlen(name) <= DM_USER_NAME_LENGTH_MAX);
	failed[0] = '\0';
	control = control_open();
	if (control < 0)
		return control;
	dm_user = calloc(1, sizeof(*dm_user));
	if (!dm_user) {
		(void)close(control);
		return -ENOMEM;
	}
	dm_user_init(dm_user, loop, exports, arena, control);
	dm_user->name = strdup(name);
	error = dm_user->name ? 0 : -ENOMEM;
	if (error == 0 && dm_user->event.fd < 0)
		error = -EMFILE;
	if (error == 0)
		error = loop_add(loop, &dm_user->event, EPOLLIN);
	if (error == 0)
		error = workers_create(1, dm_user->event.fd, &dm_user->workers);
	if (error != 0) {
		dm_user_free(dm_user);
		return error;
	}
	error = devices_begin(dm_user, failed);
	if (error != 0) {
		dm_user_close(&dm_user->transport);
		return error;
	}
	*transport = &dm_user->transport;
	return 0;
}

/* ---- what others ask ---- */

const char *dm_user_device(const struct transport *transport, const struct export *export)
{
	list_for_each(link, &dm_user_of_const(transport)->devices) {
		const struct dm_user_device *device = container_of(link, struct dm_user_device, link);

		if (device->export == export && device->state == DM_USER_SERVING && !device->unwanted)
			return device->node.name;
	}
	return NULL;
}

const char *dm_user_open_device(const struct transport *transport)
{
	list_for_each(link, &dm_user_of_const(transport)->devices) {
		const struct dm_user_device *device = container_of(link, struct dm_user_device, link);

		if (device->state == DM_USER_SERVING && dm_user_node_is_open(&device->node))
			return device->node.name;
	}
	return NULL;
}

bool dm_user_is_settled(const struct transport *transport)
{
	list_for_each(link, &dm_user_of_const(transport)->devices)
		if (container_of(link, struct dm_user_device, link)->state == DM_USER_CREATING)
			return false;
	return true;
}

bool dm_user_owns(const struct transport *transport, dev_t number)
{
	list_for_each(link, &dm_user_of_const(transport)->devices) {
		const struct dm_user_device *device = container_of(link, struct dm_user_device, link);

		if (device->state != DM_USER_CREATING && device->node.device == number)
			return true;
	}
	return false;
}
