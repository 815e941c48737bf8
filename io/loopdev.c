/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Exports as loop devices.
 *
 * What is to be done follows from the devices' states alone, one message to the keeper at a time:
 *
 *	wanted, no number yet      attach
 *	not wanted, a number       detach; somebody holds it: look again in a while
 *	not wanted, no number      forget it
 *
 * An export that goes (a dropped snapshot's), and detach(), make a device unwanted. Every export's device is a
 * structure of its own, so one that comes back under its old name gets another.
 *
 * Without the keeper (when it was killed) a device stays as long as it is open. sysfs tells that, waiting for nobody.
 */
#include "io/loopdev.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "io/fuse.h"
#include "io/log.h"

#define LOOKS_IN_VAIN_MAX 4u
#define LOOK_AGAIN_NS (UINT64_C(100) * 1000 * 1000)
/* Each look goes through all processes: so ever longer is waited, up to 0.8 s in a stop, else 6.4 s. */
#define LOOK_AGAIN_SHIFT_DETACHING 3u
#define LOOK_AGAIN_SHIFT_MAX 6u

struct loopdev {
	struct loopdevs *all;
	struct export *export; /* NULL: it is gone, or is not wanted any more */
	char name[sizeof(((struct export *)NULL)->name)];
	int number; /* -1: none (yet) */
	bool failed;
	bool late; /* it came while we were serving */
	unsigned looks;         /* it was held */
	unsigned looks_in_vain; /* and by nobody to be seen */
	uint64_t look_again_ns; /* 0: was not asked to go yet */
	char holder[TRANSPORT_TEXT_BYTES];
	struct list link;
};

struct loopdevs {
	struct transport transport;
	struct loop *loop;
	struct export_table *exports;
	struct export_watcher watcher;
	const struct transport *fuse;
	struct loop_source source;
	struct loop_timer timer;
	struct loop_hook hook;
	struct list devices;   /* struct loopdev.link */
	struct list questions; /* struct loopdev_question.link, unanswered */
	struct keeper_message message;
	bool in_flight, detaching, forced;
	bool look; /* something has changed: the turn's end looks at the states */
	bool keeper_gone;
	struct loopdev *subject;            /* of the message under way; NULL: a question */
	struct loopdev_question *question;  /* of the message under way */
	char failure[TRANSPORT_TEXT_BYTES]; /* the first */
};

static struct loopdevs *loopdevs_of(struct transport *transport)
{
	return container_of(transport, struct loopdevs, transport);
}

static const struct loopdevs *loopdevs_of_const(const struct transport *transport)
{
	return (const struct loopdevs *)(const void *)((const char *)transport - offsetof(struct loopdevs, transport));
}

static bool is_wanted(const struct loopdev *device)
{
	return device->export != NULL && !device->all->detaching;
}

static void device_free(struct loopdev *device)
{
	list_remove(&device->link);
	free(device);
}

/* ---- what comes back ---- */

__attribute__((format(printf, 2, 3))) static void failed(struct loopdevs *all, const char *format, ...)
{
	char text[TRANSPORT_TEXT_BYTES];
	va_list arguments;

	va_start(arguments, format);
	(void)vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	log_warning("loop devices: %s", text);
	if (all->failure[0] == '\0')
		(void)snprintf(all->failure, sizeof(all->failure), "%s", text);
}

/* The keeper is gone, and with it what nobody else has open. */
static void lose_keeper(struct loopdevs *all)
{
	if (all->keeper_gone)
		return;
	all->keeper_gone = true;
	all->look = true;
	all->in_flight = false;
	all->subject = NULL;
	if (all->question != NULL)
		list_append(&all->questions, &all->question->link);
	all->question = NULL;
	loop_remove(all->loop, &all->source);
	(void)shutdown(all->source.fd, SHUT_RDWR); /* should it still live, as one that we can't speak to */
	loop_timer_set(all->loop, &all->timer, 0);
	failed(all, "the process that holds them has ended: those in use stay until they are closed");
}

/*
 * The number was free, so whatever of ours had it has let go of it by itself, before it was looked at again. To have it
 * detached now would take the number from the new one.
 */
static void number_taken(struct loopdevs *all, const struct loopdev *by)
{
	list_for_each(link, &all->devices) {
		struct loopdev *other = container_of(link, struct loopdev, link);

		if (other != by && other->number == by->number)
			other->number = -1;
	}
}

static void attached(struct loopdevs *all, struct loopdev *device)
{
	const struct keeper_message *message = &all->message;

	if (message->error != 0) {
		device->failed = true;
		/* A snapshot that was dropped at once has no file any more. */
		if (is_wanted(device))
			failed(all, "%s: %.400s", device->name, message->text);
		return;
	}
	device->number = message->number;
	number_taken(all, device);
	if (!is_wanted(device))
		return;
	(void)snprintf(device->export->device, sizeof(device->export->device), "/dev/loop%d", message->number);
	if (device->late)
		log_notice("%s %s", device->name, device->export->device);
}

static void detached(struct loopdevs *all, struct loopdev *device)
{
	if (all->message.error == 0) {
		device_free(device);
		return;
	}
	if (all->message.text[0] != '\0') {
		(void)snprintf(device->holder, sizeof(device->holder), "%.500s", all->message.text);
		device->looks_in_vain = 0;
	} else if (++device->looks_in_vain == LOOKS_IN_VAIN_MAX) {
		(void)snprintf(device->holder, sizeof(device->holder), "/dev/loop%d is open somewhere", device->number);
	}
	if (!all->detaching && device->look_again_ns == 0 && all->message.text[0] != '\0')
		log_notice("%.400s: it is detached when that ends", all->message.text);
	device->look_again_ns = loop_now_ns(all->loop) + (LOOK_AGAIN_NS << device->looks);
	if (device->looks < (all->detaching ? LOOK_AGAIN_SHIFT_DETACHING : LOOK_AGAIN_SHIFT_MAX))
		device->looks++;
}

static void take_answer(struct loopdevs *all)
{
	struct loopdev *device = all->subject;
	struct loopdev_question *question = all->question;

	all->look = true;
	all->in_flight = false;
	all->subject = NULL;
	all->question = NULL;
	all->message.text[sizeof(all->message.text) - 1] = '\0';
	if (question != NULL)
		question->answered(question, all->message.error, all->message.text);
	else if (all->message.op == KEEPER_ATTACH)
		attached(all, device);
	else
		detached(all, device);
}

static void answer_ready(struct loop_source *source, uint32_t events)
{
	struct loopdevs *all = source->context;
	ssize_t got = recv(source->fd, &all->message, sizeof(all->message), 0);

	(void)events;
	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (got != (ssize_t)sizeof(all->message) || !all->in_flight)
		lose_keeper(all);
	else
		take_answer(all);
}

/* ---- what is sent ---- */

static void send_message(struct loopdevs *all, enum keeper_op op, struct loopdev *device)
{
	all->message.op = op;
	all->message.error = 0;
	all->subject = device;
	all->in_flight = true;
	if (send(all->source.fd, &all->message, sizeof(all->message), MSG_NOSIGNAL) != (ssize_t)sizeof(all->message))
		lose_keeper(all);
}

static void send_attach(struct loopdevs *all, struct loopdev *device)
{
	struct keeper_message *message = &all->message;
	const struct export *export = device->export;

	message->number = -1;
	message->read_only = export->read_only;
	message->can_punch = export->can_punch;
	message->sector_bytes = export->sector_bytes;
	if (fuse_file_path(all->fuse, export, message->text, sizeof(message->text)) != 0) {
		device->failed = true;
		failed(all, "%s: its file's path is too long", device->name);
		return;
	}
	send_message(all, KEEPER_ATTACH, device);
}

static const struct loopdev *find_device(const struct loopdevs *all, const char *name)
{
	list_for_each(link, &all->devices) {
		const struct loopdev *device = container_of(link, struct loopdev, link);

		if (device->export != NULL && strcmp(device->name, name) == 0)
			return device;
	}
	return NULL;
}

static void send_question(struct loopdevs *all, struct loopdev_question *question)
{
	const struct loopdev *device = find_device(all, question->name);

	if (device == NULL || device->number < 0) {
		question->answered(question, 0, "");
		loop_timer_set(all->loop, &all->timer, 0); /* who was answered may have work for the next turn */
		return;
	}
	all->question = question;
	all->message.number = device->number;
	send_message(all, KEEPER_ASK, NULL);
}

/* The next message, of those that the states ask for. */
static void send_next(struct loopdevs *all)
{
	uint64_t now = loop_now_ns(all->loop), again = UINT64_MAX;

	list_for_each_safe(link, &all->devices) {
		struct loopdev *device = container_of(link, struct loopdev, link);

		if (is_wanted(device) && device->number < 0 && !device->failed) {
			send_attach(all, device);
		} else if (!is_wanted(device) && device->number < 0) {
			device_free(device);
		} else if (!is_wanted(device) && device->look_again_ns <= now) {
			all->message.number = device->number;
			send_message(all, KEEPER_DETACH, device);
		} else if (!is_wanted(device) && device->look_again_ns < again) {
			again = device->look_again_ns;
		}
		if (all->in_flight || all->keeper_gone)
			return;
	}
	if (again != UINT64_MAX)
		loop_timer_set(all->loop, &all->timer, again);
}

/* ---- without the keeper ---- */

static bool is_still_attached(const struct loopdevs *all, const struct loopdev *device)
{
	return device->number >= 0 && keeper_device_lies_in(device->number, fuse_directory(all->fuse));
}

/* What is not attached any more must not be shown: its number may be somebody else's now. */
static void look_without_keeper(struct loopdevs *all)
{
	bool any = false;

	list_for_each_safe(link, &all->devices) {
		struct loopdev *device = container_of(link, struct loopdev, link);

		if (is_still_attached(all, device)) {
			any = true;
			(void)snprintf(device->holder, sizeof(device->holder), "/dev/loop%d is open somewhere",
				       device->number);
			device->look_again_ns = loop_now_ns(all->loop);
			continue;
		}
		if (device->export != NULL)
			device->export->device[0] = '\0';
		device_free(device);
	}
	if (any)
		loop_timer_set(all->loop, &all->timer, loop_now_ns(all->loop) + LOOK_AGAIN_NS);
}

static void answer_without_keeper(struct loopdevs *all, struct loopdev_question *question)
{
	const struct loopdev *device = find_device(all, question->name);
	char text[TRANSPORT_TEXT_BYTES] = "";

	if (device != NULL)
		(void)snprintf(text, sizeof(text),
			       "its device /dev/loop%d is still open somewhere: unmount or close it first", device->number);
	question->answered(question, device != NULL ? -EBUSY : 0, text);
	loop_timer_set(all->loop, &all->timer, 0); /* who was answered may have work for the next turn */
}

/* ---- the turn's end ---- */

/* Whatever happened in this turn: the states tell what follows from it. */
static void turn_end(struct loop_hook *hook)
{
	struct loopdevs *all = hook->context;
	bool gone = all->keeper_gone;
	struct list *link;

	if (all->in_flight || !all->look)
		return;
	all->look = false;
	if (gone)
		look_without_keeper(all);
	while (!all->in_flight && all->keeper_gone == gone && (link = list_pop(&all->questions)) != NULL) {
		struct loopdev_question *question = container_of(link, struct loopdev_question, link);

		if (gone)
			answer_without_keeper(all, question);
		else
			send_question(all, question);
	}
	if (!all->in_flight && !all->keeper_gone)
		send_next(all);
}

static void timer_expired(struct loop_timer *timer)
{
	struct loopdevs *all = timer->context;

	all->look = true;
}

/* ---- exports that come and go ---- */

/* NULL: no memory. */
static struct loopdev *device_add(struct loopdevs *all, struct export *export, bool late)
{
	struct loopdev *device = calloc(1, sizeof(*device));

	if (device == NULL)
		return NULL;
	all->look = true;
	device->all = all;
	device->export = export;
	device->number = -1;
	device->late = late;
	memcpy(device->name, export->name, sizeof(device->name));
	list_append(&all->devices, &device->link);
	return device;
}

static void export_added(struct export_watcher *watcher, struct export *export)
{
	if (device_add(watcher->context, export, true) == NULL)
		log_warning("loop devices: out of memory: %s gets none", export->name);
}

static void export_removed(struct export_watcher *watcher, struct export *export)
{
	struct loopdevs *all = watcher->context;

	all->look = true;
	list_for_each(link, &all->devices) {
		struct loopdev *device = container_of(link, struct loopdev, link);

		if (device->export == export) {
			device->export = NULL;
			export->device[0] = '\0';
		}
	}
}

/* ---- life ---- */

static void loopdev_detach(struct transport *transport, bool force)
{
	struct loopdevs *all = loopdevs_of(transport);

	list_for_each(link, &all->devices) {
		struct loopdev *device = container_of(link, struct loopdev, link);

		device->looks = 0;
		if (device->look_again_ns != 0)
			device->look_again_ns = loop_now_ns(all->loop);
	}
	all->look = true;
	all->detaching = true;
	all->forced = all->forced || force;
}

/* With force: once each has been asked to go. */
static bool loopdev_is_detached(struct transport *transport, const char **why)
{
	const struct loopdevs *all = loopdevs_of_const(transport);
	bool is = all->detaching && !all->in_flight;

	*why = "";
	list_for_each(link, &all->devices) {
		const struct loopdev *device = container_of(link, struct loopdev, link);

		if (device->number < 0 || (all->forced && device->look_again_ns > 0))
			continue;
		is = false;
		if ((*why)[0] == '\0')
			*why = device->holder;
	}
	return is;
}

static void loopdev_quiesce(struct transport *transport)
{
	(void)transport;
}

static bool loopdev_is_idle(const struct transport *transport)
{
	(void)transport;
	return true;
}

static void loopdev_close(struct transport *transport)
{
	struct loopdevs *all = loopdevs_of(transport);
	struct list *link;

	loop_remove(all->loop, &all->source);
	loop_timer_cancel(&all->timer);
	loop_hook_remove(&all->hook);
	list_remove(&all->watcher.link);
	while ((link = list_pop(&all->devices)) != NULL)
		free(container_of(link, struct loopdev, link));
	free(all);
}

static const struct transport_ops loopdev_transport_ops = {
	.detach = loopdev_detach,
	.is_detached = loopdev_is_detached,
	.quiesce = loopdev_quiesce,
	.is_idle = loopdev_is_idle,
	.close = loopdev_close,
};

static void loopdevs_init(struct loopdevs *all, struct loop *loop, struct export_table *exports,
			  const struct keeper *keeper)
{
	all->transport.ops = &loopdev_transport_ops;
	all->loop = loop;
	all->exports = exports;
	all->source = (struct loop_source){ .fd = keeper->fd, .ready = answer_ready, .context = all };
	all->hook = (struct loop_hook){ .turn_end = turn_end, .context = all };
	all->watcher = (struct export_watcher){ .added = export_added, .removed = export_removed, .context = all };
	list_init(&all->devices);
	list_init(&all->questions);
	loop_timer_init(&all->timer, timer_expired, all);
	loop_hook_add(loop, &all->hook);
	list_append(&exports->watchers, &all->watcher.link);
}

int loopdev_start(struct loop *loop, struct export_table *exports, const struct keeper *keeper,
		  const struct transport *fuse, const char *mark, struct transport **transport)
{
	struct loopdevs *all = calloc(1, sizeof(*all));
	int error;

	if (all == NULL)
		return -ENOMEM;
	loopdevs_init(all, loop, exports, keeper);
	all->fuse = fuse;
	(void)snprintf(all->message.mark, sizeof(all->message.mark), "%s", mark);
	error = loop_add(loop, &all->source, EPOLLIN);
	list_for_each(link, &exports->exports)
		if (error == 0)
			error = device_add(all, container_of(link, struct export, link), false) == NULL ? -ENOMEM : 0;
	if (error != 0) {
		loopdev_close(&all->transport);
		return error;
	}
	*transport = &all->transport;
	return 0;
}

bool loopdev_is_settled(const struct transport *transport, const char *name)
{
	const struct loopdevs *all = loopdevs_of_const(transport);
	const struct loopdev *device = find_device(all, name);

	return device == NULL || device->number >= 0 || device->failed || all->keeper_gone || all->detaching;
}

const char *loopdev_failure(const struct transport *transport)
{
	const struct loopdevs *all = loopdevs_of_const(transport);

	return all->failure[0] == '\0' ? NULL : all->failure;
}

void loopdev_ask(struct transport *transport, struct loopdev_question *question)
{
	struct loopdevs *all = loopdevs_of(transport);

	all->look = true;
	list_append(&all->questions, &question->link);
}
