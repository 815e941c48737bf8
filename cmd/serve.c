/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * rowsnap serve: the life of a server.
 *
 *   open the volume -> transports -> control socket -> "rowsnap: ready" -> the loop -> stop: transports take no more,
 *   the volume ends what is under way and records the clean stop, everything is closed, who asked for the stop is told
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cmd/server.h"
#include "io/cleanup.h"
#include "io/dm-user.h"
#include "io/fuse.h"
#include "io/log.h"
#include "io/memory.h"
#include "io/nbd.h"

#define REQUEST_ARENA_BYTES ((size_t)64 << 20)
#define DISK_IN_FLIGHT_MAX 1024u
#define TICK_NS (UINT64_C(100) * 1000 * 1000)
#define CLOSE_GRACE_NS (UINT64_C(2000) * 1000 * 1000)

struct arguments {
	const char *origin;
	const char **stores;
	size_t store_count;
	const char *volume, *run, *nbd, *fuse, *dm_user;
	bool use_nbd, loop;
	enum on_full on_full;
	bool discard_copy, accept_origin;
	uint64_t write_back_bytes;
	unsigned warn_at[WARN_AT_MAX], warn_count;
	const char *on_warn;
};

/* ---- the loop's sources ---- */

static void disks_ready(struct loop_source *source, uint32_t events)
{
	struct server *server = source->context;

	(void)events;
	(void)disk_host_poll(server->host);
}

static void turn_end(struct loop_hook *hook)
{
	struct server *server = hook->context;

	if (server->volume != NULL)
		volume_turn(server->volume);
	disk_host_push(server->host);
}

static void stop_done(struct operation *operation, int error)
{
	struct server *server = operation->context;

	if (error != 0)
		server->exit_code = cmd_fail("serve", operation->complaint.what, "%s", operation->complaint.why);
	server->stopped = true;
	server->close_by_ns = loop_now_ns(server->loop) + CLOSE_GRACE_NS;
}

void server_begin_stop(struct server *server, bool force)
{
	server->stopping = true;
	server->forced = server->forced || force;
	/* A stopped job (^Z) is the two of them; who ends it may wake up the server only. */
	if (server->keeper.pid > 0)
		(void)kill(server->keeper.pid, SIGCONT);
	for (size_t i = 0; i < server->transport_count && !server->quiescing; i++)
		if (server->transports[i]->ops->detach != NULL)
			server->transports[i]->ops->detach(server->transports[i], force);
}

/*
 * Who still holds what was given to the system; NULL: nobody. While writes wait for room, what is in the system's cache
 * can't be written, so nobody can let go; with force these fail.
 */
static const char *find_holder(const struct server *server)
{
	struct volume_report report;
	const char *why;

	volume_report(server->volume, &report);
	if (report.stuck && server->forced)
		return NULL;
	for (size_t i = 0; i < server->transport_count; i++)
		if (server->transports[i]->ops->detach != NULL &&
		    !server->transports[i]->ops->is_detached(server->transports[i], &why))
			return report.stuck ? "writes wait for room in a store" : why;
	return NULL;
}

/* Between the turns: a stop goes on when nothing that we serve is held any more. */
static void advance_stop(struct server *server)
{
	const char *why;

	if (!server->stopping || server->quiescing)
		return;
	why = find_holder(server);
	if (why != NULL) {
		if (why[0] != '\0' && strcmp(server->waiting_text, why) != 0) {
			log_notice("waiting to stop: %s (a second signal, or stop --force, does not wait)", why);
			(void)snprintf(server->waiting_text, sizeof(server->waiting_text), "%s", why);
			server_send_waiting(server);
		}
		return;
	}
	server->quiescing = true;
	for (size_t i = 0; i < server->transport_count; i++)
		server->transports[i]->ops->quiesce(server->transports[i]);
	server->stop.done = stop_done;
	server->stop.context = server;
	volume_stop(server->volume, &server->stop);
	loop_timer_set(server->loop, &server->tick, 0);
}

static void tick(struct loop_timer *timer)
{
	struct server *server = timer->context;

	volume_tick(server->volume);
	server_send_progress(server);
	loop_timer_set(server->loop, &server->tick, loop_now_ns(server->loop) + TICK_NS);
}

static void child_ended(struct server *server)
{
	int status;

	if (server->child <= 0 || waitpid(server->child, &status, WNOHANG) != server->child)
		return;
	server->child = 0;
	if (server->exit_code == EXIT_DONE)
		server->exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
	server_begin_stop(server, false);
}

static void signals_ready(struct loop_source *source, uint32_t events)
{
	struct server *server = source->context;
	struct signalfd_siginfo info;

	(void)events;
	if (read(source->fd, &info, sizeof(info)) != (ssize_t)sizeof(info))
		return;
	if (info.ssi_signo == SIGCHLD) {
		server_warn_ended(server);
		child_ended(server);
		return;
	}
	if (server->child > 0)
		(void)kill(server->child, SIGTERM);
	server_begin_stop(server, server->stopping);
}

static int watch_signals(struct server *server)
{
	sigset_t set;
	int error;

	(void)sigemptyset(&set);
	(void)sigaddset(&set, SIGTERM);
	(void)sigaddset(&set, SIGINT);
	(void)sigaddset(&set, SIGCHLD);
	if (sigprocmask(SIG_BLOCK, &set, NULL) != 0)
		return -errno;
	(void)signal(SIGPIPE, SIG_IGN);
	server->signal_source.fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (server->signal_source.fd < 0)
		return -errno;
	server->signal_source.ready = signals_ready;
	server->signal_source.context = server;
	error = loop_add(server->loop, &server->signal_source, EPOLLIN);
	return error;
}

/* ---- --run and systemd ---- */

/* Tells a service manager (sd_notify's protocol: one datagram to the socket it named). */
static void notify_ready(void)
{
	const char *path = getenv("NOTIFY_SOCKET");
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	auto_close int fd = -1;
	size_t length;

	if (path == NULL || (path[0] != '/' && path[0] != '@') || strlen(path) >= sizeof(address.sun_path))
		return;
	length = strlen(path);
	memcpy(address.sun_path, path, length);
	if (path[0] == '@')
		address.sun_path[0] = '\0';
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd >= 0)
		(void)sendto(fd, "READY=1", 7, MSG_NOSIGNAL, (const struct sockaddr *)&address,
			     (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length));
}

static int run_command(struct server *server, const struct arguments *arguments, const char *volume)
{
	const char *folder = server->fuse_path != NULL && server->private_path == NULL ? server->fuse_path : "";
	pid_t parent = getpid();
	sigset_t none;

	server->child = fork();
	if (server->child < 0)
		return cmd_fail("serve", "--run", "%s", strerror(errno));
	if (server->child > 0)
		return EXIT_DONE;
	(void)sigemptyset(&none);
	(void)sigprocmask(SIG_SETMASK, &none, NULL);
	(void)signal(SIGPIPE, SIG_DFL);
	(void)signal(SIGXFSZ, SIG_DFL);
	memory_serve_no_io();
	(void)prctl(PR_SET_PDEATHSIG, SIGTERM);
	if (arguments->run == NULL || getppid() != parent || server->control_path == NULL ||
	    setenv("ROWSNAP_VOLUME", volume, 1) != 0 || setenv("ROWSNAP_CONTROL", server->control_path, 1) != 0 ||
	    setenv("ROWSNAP_NBD", server->nbd_path != NULL ? server->nbd_path : "", 1) != 0 ||
	    setenv("ROWSNAP_FUSE", folder, 1) != 0 ||
	    setenv("ROWSNAP_DEVICE", export_find(&server->exports, "origin")->device, 1) != 0)
		_exit(127);
	(void)execl("/bin/sh", "sh", "-c", arguments->run, (char *)NULL);
	_exit(127);
}

/* ---- start and end ---- */

static int start_loop(struct server *server)
{
	int error = loop_create(&server->loop);

	if (error == 0)
		error = disk_host_create(DISK_IN_FLIGHT_MAX, &server->host);
	if (error == 0)
		error = arena_create(REQUEST_ARENA_BYTES, &server->arena);
	if (error != 0)
		return error;
	server->disk_source.fd = disk_host_fd(server->host);
	server->disk_source.ready = disks_ready;
	server->disk_source.context = server;
	return loop_add(server->loop, &server->disk_source, EPOLLIN | EPOLLET);
}

static const char *socket_reason(int error)
{
	switch (error) {
	case -EADDRINUSE:
		return "a server answers there already";
	case -ENAMETOOLONG:
		return "is too long for a socket's path (107 bytes is the most): set ROWSNAP_RUNDIR or --nbd to a shorter one";
	case -EEXIST:
		return "is there already and is no socket";
	default:
		return strerror(-error);
	}
}

static const char *fuse_reason(int error)
{
	switch (error) {
	case -ENOENT:
		return "no such folder: make it first";
	case -ENOTDIR:
		return "is not a folder";
	case -ENOTEMPTY:
		return "is not empty: give an empty folder";
	case -EBUSY:
		return "something is mounted there already: unmount it, or give another folder";
	case -ENODEV:
		return "/dev/fuse is missing or may not be opened: load the kernel's fuse module (modprobe fuse), or run as root";
	case -ENOTSUP:
		return "mounting without root needs fusermount3: install the package fuse3";
	case -EACCES:
		return "not permitted: the folder must be yours, readable and writable";
	case -EPERM:
		return "mounting was refused";
	default:
		return strerror(-error);
	}
}

static void add_transport(struct server *server, struct transport *transport)
{
	assert(server->transport_count < SERVER_TRANSPORTS_MAX);
	server->transports[server->transport_count++] = transport;
}

/* Loop devices over files that a dead server had in the folder: they would keep its dead mount from going. */
static void clean_up_after_dead(struct server *server, const char *directory)
{
	struct keeper_message *message = malloc(sizeof(*message));
	char *line, *rest = NULL;

	if (message != NULL && keeper_clean(&server->keeper, directory, message) == 0)
		for (line = strtok_r(message->text, "\n", &rest); line != NULL; line = strtok_r(NULL, "\n", &rest))
			log_notice("%s", line);
	free(message);
}

/* Without a folder named: a private one beside the sockets, for the loop devices. */
static int start_fuse(struct server *server, const char *directory, const char *run_directory, const char *volume)
{
	int error;

	if (directory == NULL) {
		if (asprintf(&server->private_path, "%s/%s.fuse", run_directory, volume) < 0) {
			server->private_path = NULL;
			return cmd_fail("serve", volume, "out of memory");
		}
		directory = server->private_path;
		(void)mkdir(directory, 0700); /* a dead mount of an earlier server may be there, which fuse_start() removes */
	}
	if (server->keeper.pid > 0)
		clean_up_after_dead(server, directory);
	error = fuse_start(server->loop, &server->exports, server->arena, directory, &server->fuse);
	if (error != 0)
		return cmd_fail("serve", directory, "%s", fuse_reason(error));
	add_transport(server, server->fuse);
	server->fuse_path = strdup(fuse_directory(server->fuse));
	return server->fuse_path != NULL ? EXIT_DONE : cmd_fail("serve", directory, "out of memory");
}

static int start_loop_devices(struct server *server)
{
	char mark[KEEPER_MARK_BYTES] = "rowsnap/";
	struct volume_report report;
	int error;

	volume_report(server->volume, &report);
	uuid_text(&report.uuid, mark + strlen(mark));
	error = loopdev_start(server->loop, &server->exports, &server->keeper, server->fuse, mark, &server->loopdev);
	if (error != 0)
		return cmd_fail("serve", "--loop", "%s", strerror(-error));
	add_transport(server, server->loopdev);
	return EXIT_DONE;
}

static const char *dm_user_reason(int error)
{
	switch (error) {
	case -ENOENT:
		return "this kernel has no device mapper (/dev/mapper/control): serve with --nbd or --fuse";
	case -EPROTONOSUPPORT:
		return "this kernel's device mapper speaks another version of its protocol";
	case -ENODEV:
		return "this kernel has no dm-user target (only Android's have it): serve with --nbd or --fuse";
	case -EACCES:
	case -EPERM:
		return "not permitted: making devices needs root";
	case -EBUSY:
		return "a device of this name is there already and in use, or somebody else's: close or remove it, or give another "
		       "name";
	case -EALREADY:
		return "another server serves this device: stop it, or give another name";
	case -EINVAL:
		return "the origin's size is no multiple of 512 bytes: a block device cannot have it";
	case -ETIMEDOUT:
		return "its file in /dev/dm-user did not appear: is udev running?";
	default:
		return strerror(-error);
	}
}

static int start_dm_user(struct server *server, const char *name)
{
	char failed[DEVICE_MAPPER_NAME_BYTES];
	int error = dm_user_start(server->loop, &server->exports, server->arena, name, failed, &server->dm_user);

	if (error != 0)
		return cmd_fail("serve", failed[0] != '\0' ? failed : "--dm-user", "%s", dm_user_reason(error));
	add_transport(server, server->dm_user);
	return EXIT_DONE;
}

static int start_nbd(struct server *server, const struct arguments *arguments, const char *run_directory,
		     const char *volume)
{
	int error;

	if (arguments->nbd != NULL)
		server->nbd_path = cmd_absolute_path(arguments->nbd);
	else if (asprintf(&server->nbd_path, "%s/%s.nbd", run_directory, volume) < 0)
		server->nbd_path = NULL;
	if (server->nbd_path == NULL)
		return cmd_fail("serve", volume, "out of memory");
	error = nbd_start(server->loop, &server->exports, server->arena, server->nbd_path, &server->nbd);
	if (error != 0)
		return cmd_fail("serve", server->nbd_path, "%s", socket_reason(error));
	add_transport(server, server->nbd);
	return EXIT_DONE;
}

static int start_control(struct server *server, const char *run_directory, const char *volume)
{
	int error;

	if (asprintf(&server->control_path, "%s/%s.sock", run_directory, volume) < 0) {
		server->control_path = NULL;
		return cmd_fail("serve", volume, "out of memory");
	}
	error = control_start(server->loop, server->control_path, &server_control_ops, server, &server->control);
	if (error == -EADDRINUSE)
		return cmd_fail("serve", volume, "a volume of this name is being served already (%s)", server->control_path);
	if (error != 0)
		return cmd_fail("serve", server->control_path, "%s", socket_reason(error));
	return EXIT_DONE;
}

static bool kernel_waits_for(const struct arguments *arguments)
{
	return arguments->fuse != NULL || arguments->loop || arguments->dm_user != NULL;
}

/* The control socket first: it tells a volume's second server from the first. */
static int start_transports(struct server *server, const struct arguments *arguments, const char *volume)
{
	auto_free char *directory = NULL;
	int code = cmd_run_directory("serve", true, &directory);

	if (code == EXIT_DONE)
		code = start_control(server, directory, volume);
	if (code == EXIT_DONE && (arguments->use_nbd || !kernel_waits_for(arguments)))
		code = start_nbd(server, arguments, directory, volume);
	if (code == EXIT_DONE && kernel_waits_for(arguments)) {
		/* The kernel may write through us to get memory free. */
		arena_touch(server->arena);
		volume_touch_buffers(server->volume);
		memory_lock();
	}
	if (code == EXIT_DONE && (arguments->fuse != NULL || arguments->loop))
		code = start_fuse(server, arguments->fuse, directory, volume);
	if (code == EXIT_DONE && arguments->loop)
		code = start_loop_devices(server);
	if (code == EXIT_DONE && arguments->dm_user != NULL)
		code = start_dm_user(server, arguments->dm_user);
	return code;
}

static int open_volume(struct server *server, const struct arguments *arguments, const char *name)
{
	auto_free char *state = NULL;
	auto_free char *origin = cmd_absolute_path(arguments->origin);
	char **stores = calloc(arguments->store_count + 1, sizeof(char *));
	struct volume_options options = {
		.name = name,
		.on_full = arguments->on_full,
		.discard_copy = arguments->discard_copy,
		.accept_origin = arguments->accept_origin,
		.write_back_bytes = arguments->write_back_bytes,
		.warn_count = arguments->warn_count,
		.event = server_warn,
		.event_context = server,
	};
	struct complaint complaint;
	bool memory = origin != NULL && stores != NULL;
	int code = EXIT_DONE;

	memcpy(options.warn_at, arguments->warn_at, sizeof(options.warn_at));
	for (size_t i = 0; memory && i < arguments->store_count; i++) {
		stores[i] = cmd_absolute_path(arguments->stores[i]);
		memory = stores[i] != NULL;
	}
	if (!memory)
		code = cmd_fail("serve", arguments->origin, "out of memory");
	if (code == EXIT_DONE)
		code = cmd_state_directory("serve", true, &state);
	options.state_directory = state;
	if (code == EXIT_DONE &&
	    volume_open(server->host, &server->exports, origin, (const char *const *)stores, arguments->store_count,
			&options, &server->volume, &complaint) != 0)
		code = cmd_fail("serve", complaint.what, "%s", complaint.why);
	for (size_t i = 0; stores != NULL && i < arguments->store_count; i++)
		free(stores[i]);
	free(stores);
	return code;
}

static void print_exports(const struct server *server)
{
	list_for_each(link, &server->exports.exports) {
		const struct export *export = container_of(link, struct export, link);
		char path[PATH_MAX];

		if (server->nbd != NULL)
			(void)printf("%s nbd+unix:///%s?socket=%s\n", export->name, export->name, server->nbd_path);
		if (server->fuse != NULL && server->private_path == NULL &&
		    fuse_file_path(server->fuse, export, path, sizeof(path)) == 0)
			(void)printf("%s %s\n", export->name, path);
		if (export->device[0] != '\0')
			(void)printf("%s %s\n", export->name, export->device);
		if (server->dm_user != NULL && server->loopdev != NULL)
			(void)printf("%s /dev/mapper/%s\n", export->name, dm_user_device(server->dm_user, export));
	}
	(void)printf("rowsnap: ready\n");
	(void)fflush(stdout);
}

/* Whether the loop may end: stopped, and no reply is left to send, or its time is over. */
static bool is_over(const struct server *server)
{
	bool idle = true;

	for (size_t i = 0; i < server->transport_count; i++)
		idle = idle && server->transports[i]->ops->is_idle(server->transports[i]);
	return server->stopped && (idle || loop_now_ns(server->loop) >= server->close_by_ns);
}

bool server_has_devices(const struct server *server)
{
	return server->loopdev != NULL || server->dm_user != NULL;
}

bool server_device_is_settled(const struct server *server, const char *name)
{
	return (server->loopdev == NULL || loopdev_is_settled(server->loopdev, name)) &&
	       (server->dm_user == NULL || dm_user_is_settled(server->dm_user));
}

static bool devices_are_there(const struct server *server)
{
	if (server->loopdev != NULL && loopdev_failure(server->loopdev) != NULL)
		return true;
	list_for_each(link, &server->exports.exports)
		if (!server_device_is_settled(server, container_of(link, struct export, link)->name))
			return false;
	return true;
}

/* Serves until it is over; with `until_ready` only until every export has its device, if it is to have one. */
static int run(struct server *server, bool until_ready)
{
	while (!is_over(server) && !(until_ready && devices_are_there(server))) {
		int error = loop_turn(server->loop, -1);

		if (error != 0)
			return cmd_fail("serve", "", "%s", strerror(-error));
		server_finish_pending(server);
		server_run_warnings(server);
		advance_stop(server);
	}
	return EXIT_DONE;
}

static int start(struct server *server, const struct arguments *arguments, const char *volume)
{
	int code = start_transports(server, arguments, volume);
	const char *why;

	if (code != EXIT_DONE)
		return code;
	loop_timer_set(server->loop, &server->tick, loop_now_ns(server->loop) + TICK_NS);
	code = run(server, true);
	why = server->loopdev == NULL ? NULL : loopdev_failure(server->loopdev);
	if (code == EXIT_DONE && !server->stopping && why != NULL) {
		server->exit_code = cmd_fail("serve", "--loop", "%s", why);
		/* Somebody may use already what is there: that ends as any stop. */
		server_begin_stop(server, true);
	}
	if (code == EXIT_DONE && arguments->run != NULL && !server->stopping)
		code = run_command(server, arguments, volume);
	else if (code == EXIT_DONE && arguments->run != NULL && server->exit_code == EXIT_DONE)
		server->exit_code = cmd_fail("serve", "--run", "stopped before the command was started");
	return code;
}

static int serve(struct server *server, const struct arguments *arguments, const char *volume)
{
	int error, code;

	if (arguments->loop && geteuid() != 0)
		return cmd_fail("serve", "--loop", "only root may make loop devices (--nbd and --fuse=DIR need no root)");
	error = arguments->loop ? keeper_start(&server->keeper) : 0;
	if (kernel_waits_for(arguments))
		memory_serve_io();
	if (error == 0)
		error = start_loop(server);
	if (error == 0)
		error = watch_signals(server);
	if (error != 0)
		return cmd_fail("serve", "", "%s", strerror(-error));
	code = open_volume(server, arguments, volume);
	/* Before the transports' hooks: what the engine completes at a turn's end is answered in the same turn. */
	server->hook.turn_end = turn_end;
	server->hook.context = server;
	loop_hook_add(server->loop, &server->hook);
	if (code == EXIT_DONE)
		code = start(server, arguments, volume);
	if (code != EXIT_DONE)
		return code;
	if (!server->stopping) {
		print_exports(server);
		notify_ready();
	}
	code = run(server, false);
	return code != EXIT_DONE ? code : server->exit_code;
}

/* Last started, first closed: loop devices end before the files they lie on, and who held them open after both. */
static void close_transports(struct server *server)
{
	while (server->transport_count > 0) {
		struct transport *transport = server->transports[--server->transport_count];

		transport->ops->close(transport);
	}
	if (server->private_path != NULL)
		(void)rmdir(server->private_path);
	if (server->keeper.pid > 0)
		keeper_end(&server->keeper);
}

static void close_server(struct server *server)
{
	server_end_warnings(server);
	close_transports(server);
	loop_timer_cancel(&server->tick);
	if (server->hook.turn_end != NULL)
		loop_hook_remove(&server->hook);
	volume_close(server->volume);
	if (server->host != NULL && server->loop != NULL)
		loop_remove(server->loop, &server->disk_source);
	if (server->host != NULL)
		disk_host_destroy(server->host);
	server_end_pending(server);
	/* Only now are origin and stores free: this is what those wait for who asked for the stop. */
	server_answer_stops(server);
	if (server->control != NULL)
		control_stop(server->control);
	if (server->loop != NULL && server->signal_source.fd > 0) {
		loop_remove(server->loop, &server->signal_source);
		(void)close(server->signal_source.fd);
	}
	if (server->arena != NULL)
		arena_destroy(server->arena);
	if (server->loop != NULL)
		loop_destroy(server->loop);
	free(server->nbd_path);
	free(server->fuse_path);
	free(server->private_path);
	free(server->control_path);
}

/* ---- the command ---- */

enum {
	OPTION_VOLUME = 256,
	OPTION_NBD,
	OPTION_FUSE,
	OPTION_LOOP,
	OPTION_DM_USER,
	OPTION_ON_FULL,
	OPTION_WARN_AT,
	OPTION_ON_WARN,
	OPTION_DISCARD,
	OPTION_ACCEPT_ORIGIN,
	OPTION_WRITE_BACK,
	OPTION_RUN,
};

/* "80,90,95", or "none". */
static void parse_warn_at(struct arguments *arguments, const char *text, struct argp_state *state)
{
	const char *at = text;
	char *end = NULL;

	arguments->warn_count = 0;
	if (strcmp(text, "none") == 0)
		return;
	while (at != NULL) {
		unsigned long percent = *at >= '0' && *at <= '9' ? strtoul(at, &end, 10) : 0;
		bool larger = arguments->warn_count == 0 || percent > arguments->warn_at[arguments->warn_count - 1];

		if (percent < 1 || percent > 100 || (*end != ',' && *end != '\0') || !larger ||
		    arguments->warn_count == WARN_AT_MAX) {
			argp_error(state, "--warn-at: '%s' is neither 'none' nor up to %u percentages, 1 to 100, in order", text,
				   WARN_AT_MAX);
			return;
		}
		arguments->warn_at[arguments->warn_count++] = (unsigned)percent;
		at = *end == ',' ? end + 1 : NULL;
	}
}

static error_t parse(int key, char *argument, struct argp_state *state)
{
	struct arguments *arguments = state->input;

	switch (key) {
	case OPTION_VOLUME:
		if (!name_is_valid(argument))
			argp_error(state, "--volume: '%s' is no volume name: 1 to 63 of A-Za-z0-9._-, not starting with - or .",
				   argument);
		arguments->volume = argument;
		return 0;
	case OPTION_NBD:
		arguments->nbd = argument;
		arguments->use_nbd = true;
		return 0;
	case OPTION_FUSE:
		arguments->fuse = argument;
		return 0;
	case OPTION_LOOP:
		arguments->loop = true;
		return 0;
	case OPTION_DM_USER:
		if (!name_is_valid(argument) || strlen(argument) > DM_USER_NAME_LENGTH_MAX || strcmp(argument, "control") == 0)
			argp_error(state, "--dm-user: '%s' cannot name the devices: 1 to %u of A-Za-z0-9._-, not starting with "
					  "- or ., not 'control'", argument, DM_USER_NAME_LENGTH_MAX);
		arguments->dm_user = argument;
		return 0;
	case OPTION_ON_FULL:
		if (strcmp(argument, "break") == 0)
			arguments->on_full = ON_FULL_BREAK;
		else if (strcmp(argument, "fail") == 0)
			arguments->on_full = ON_FULL_FAIL;
		else if (strcmp(argument, "wait") == 0)
			arguments->on_full = ON_FULL_WAIT;
		else
			argp_error(state, "--on-full: '%s' is not one of break, fail, wait", argument);
		return 0;
	case OPTION_WARN_AT:
		parse_warn_at(arguments, argument, state);
		return 0;
	case OPTION_ON_WARN:
		arguments->on_warn = argument;
		return 0;
	case OPTION_DISCARD:
		if (strcmp(argument, "skip") != 0 && strcmp(argument, "copy") != 0)
			argp_error(state, "--discard: '%s' is not one of skip, copy", argument);
		arguments->discard_copy = strcmp(argument, "copy") == 0;
		return 0;
	case OPTION_ACCEPT_ORIGIN:
		arguments->accept_origin = true;
		return 0;
	case OPTION_WRITE_BACK:
		arguments->write_back_bytes = cmd_size_argument("write-back", argument, state);
		if (arguments->write_back_bytes < WRITE_BACK_BYTES_MIN || arguments->write_back_bytes > WRITE_BACK_BYTES_MAX)
			argp_error(state, "--write-back: '%s' is not a size between 1M and 64G", argument);
		return 0;
	case OPTION_RUN:
		arguments->run = argument;
		return 0;
	case ARGP_KEY_ARG:
		if (arguments->origin == NULL)
			arguments->origin = argument;
		else
			arguments->stores[arguments->store_count++] = argument;
		return 0;
	case ARGP_KEY_END:
		if (arguments->origin == NULL)
			argp_error(state, "no ORIGIN given");
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

/* The origin's base name without its extension, if that can be a name. */
static int default_volume(const char *origin, char name[static NAME_LENGTH_MAX + 1])
{
	const char *slash = strrchr(origin, '/'), *base = slash == NULL ? origin : slash + 1;
	const char *dot = strrchr(base, '.');
	size_t length = dot != NULL && dot != base ? (size_t)(dot - base) : strlen(base);

	if (length <= NAME_LENGTH_MAX) {
		memcpy(name, base, length);
		name[length] = '\0';
		if (name_is_valid(name))
			return EXIT_DONE;
	}
	return cmd_fail("serve", origin, "its name cannot be the volume's: give one with --volume=NAME");
}

int cmd_serve(int argc, char **argv)
{
	static const struct argp_option options[] = {
		{ "volume", OPTION_VOLUME, "NAME", 0, "the volume's name (default: ORIGIN's base name without extension)", 0 },
		{ "nbd", OPTION_NBD, "SOCKET", OPTION_ARG_OPTIONAL,
		  "serve by NBD on this unix socket (default: NAME.nbd beside the control socket)", 0 },
		{ "fuse", OPTION_FUSE, "DIR", 0,
		  "mount DIR, an empty folder, and serve there as files: origin, and snapshots/NAME", 0 },
		{ "loop", OPTION_LOOP, NULL, 0, "serve as loop devices, /dev/loopN (as root)", 0 },
		{ "dm-user", OPTION_DM_USER, "NAME", 0,
		  "serve as block devices, on a kernel with dm-user: /dev/mapper/NAME, and /dev/mapper/NAME-SNAPSHOT", 0 },
		{ "on-full", OPTION_ON_FULL, "POLICY", 0,
		  "when a store is full: break (writes go on, the snapshots are broken; the default), fail, or wait", 0 },
		{ "warn-at", OPTION_WARN_AT, "PERCENT,...", 0,
		  "warn when the newest snapshot's store is that full (default: 80,90,95), or none", 0 },
		{ "on-warn", OPTION_ON_WARN, "COMMAND", 0,
		  "run this shell command at each of these warnings, and when there is no room", 0 },
		{ "discard", OPTION_DISCARD, "POLICY", 0,
		  "discards: skip (only blocks preserved already; the default), or copy (preserve them first)", 0 },
		{ "accept-origin", OPTION_ACCEPT_ORIGIN, NULL, 0,
		  "go on although the origin was changed without its snapshots: these are marked broken", 0 },
		{ "write-back", OPTION_WRITE_BACK, "SIZE", 0,
		  "answer writes from a buffer of this size; a killed server loses what was not flushed (default: no buffer)",
		  0 },
		{ "run", OPTION_RUN, "COMMAND", 0,
		  "serve while this shell command runs, and exit with its status", 0 },
		{ 0 },
	};
	static const struct argp argp = { options, parse, "ORIGIN [STORE...]",
					  "Serves ORIGIN, a block device or image file, read-write, and its snapshots read-only. The "
					  "STOREs may be named in any order; without any, those of the last time are used.",
					  NULL, NULL, NULL };
	struct arguments arguments = { .stores = calloc((size_t)argc + 1, sizeof(char *)),
				       .warn_at = { 80, 90, 95 },
				       .warn_count = 3 };
	struct server server = { .exit_code = EXIT_DONE };
	char name[NAME_LENGTH_MAX + 1];
	int code;

	if (arguments.stores == NULL)
		return cmd_fail("serve", "", "out of memory");
	if (argp_parse(&argp, argc, argv, 0, NULL, &arguments) != 0 || arguments.origin == NULL) {
		free(arguments.stores);
		return EXIT_USAGE;
	}
	export_table_init(&server.exports);
	list_init(&server.pending);
	list_init(&server.stop_clients);
	loop_timer_init(&server.tick, tick, &server);
	server.warn_command = arguments.on_warn;
	code = arguments.volume != NULL ? EXIT_DONE : default_volume(arguments.origin, name);
	if (code == EXIT_DONE)
		code = serve(&server, &arguments, arguments.volume != NULL ? arguments.volume : name);
	close_server(&server);
	free(arguments.stores);
	return code;
}
