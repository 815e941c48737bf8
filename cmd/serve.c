/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * rowsnap serve: the life of a server.
 *
 *   open the volume -> transports -> control socket -> "rowsnap: ready" -> the loop -> stop: transports take no more,
 *   the volume ends what is under way and records the clean stop, everything is closed, who asked for the stop is told
 */
#include <errno.h>
#include <fcntl.h>
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
#include "io/fuse.h"
#include "io/nbd.h"

#define REQUEST_ARENA_BYTES ((size_t)64 << 20)
#define DISK_IN_FLIGHT_MAX 1024u
#define TICK_NS (UINT64_C(100) * 1000 * 1000)
#define CLOSE_GRACE_NS (UINT64_C(2000) * 1000 * 1000)

struct arguments {
	const char *origin;
	const char **stores;
	size_t store_count;
	const char *volume, *run, *nbd, *fuse;
	bool use_nbd;
	enum on_full on_full;
	bool discard_copy, accept_origin;
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

void server_begin_stop(struct server *server)
{
	if (server->stopping)
		return;
	server->stopping = true;
	if (server->nbd != NULL)
		server->nbd->ops->quiesce(server->nbd);
	if (server->fuse != NULL)
		server->fuse->ops->quiesce(server->fuse);
	server->stop.done = stop_done;
	server->stop.context = server;
	volume_stop(server->volume, &server->stop);
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
	server_begin_stop(server);
}

static void signals_ready(struct loop_source *source, uint32_t events)
{
	struct server *server = source->context;
	struct signalfd_siginfo info;

	(void)events;
	if (read(source->fd, &info, sizeof(info)) != (ssize_t)sizeof(info))
		return;
	if (info.ssi_signo == SIGCHLD) {
		child_ended(server);
		return;
	}
	if (server->child > 0)
		(void)kill(server->child, SIGTERM);
	server_begin_stop(server);
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
	(void)prctl(PR_SET_PDEATHSIG, SIGTERM);
	if (arguments->run == NULL || getppid() != parent || server->control_path == NULL ||
	    setenv("ROWSNAP_VOLUME", volume, 1) != 0 || setenv("ROWSNAP_CONTROL", server->control_path, 1) != 0 ||
	    setenv("ROWSNAP_NBD", server->nbd_path != NULL ? server->nbd_path : "", 1) != 0 ||
	    setenv("ROWSNAP_FUSE", server->fuse_path != NULL ? server->fuse_path : "", 1) != 0)
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
	return loop_add(server->loop, &server->disk_source, EPOLLIN);
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

static int start_fuse(struct server *server, const char *directory)
{
	int error = fuse_start(server->loop, &server->exports, server->arena, directory, &server->fuse);

	if (error != 0)
		return cmd_fail("serve", directory, "%s", fuse_reason(error));
	server->fuse_path = strdup(fuse_directory(server->fuse));
	return server->fuse_path != NULL ? EXIT_DONE : cmd_fail("serve", directory, "out of memory");
}

static int start_sockets(struct server *server, const struct arguments *arguments, const char *volume)
{
	auto_free char *directory = NULL;
	bool use_nbd = arguments->use_nbd || arguments->fuse == NULL;
	int error;

	if (cmd_run_directory("serve", true, &directory) != EXIT_DONE)
		return EXIT_FAILED;
	if (arguments->nbd != NULL)
		server->nbd_path = cmd_absolute_path(arguments->nbd);
	else if (use_nbd && asprintf(&server->nbd_path, "%s/%s.nbd", directory, volume) < 0)
		server->nbd_path = NULL;
	if (asprintf(&server->control_path, "%s/%s.sock", directory, volume) < 0)
		server->control_path = NULL;
	if ((use_nbd && server->nbd_path == NULL) || server->control_path == NULL)
		return cmd_fail("serve", volume, "out of memory");
	error = control_start(server->loop, server->control_path, &server_control_ops, server, &server->control);
	if (error == -EADDRINUSE)
		return cmd_fail("serve", volume, "a volume of this name is being served already (%s)", server->control_path);
	if (error != 0)
		return cmd_fail("serve", server->control_path, "%s", socket_reason(error));
	error = server->nbd_path == NULL ? 0 : nbd_start(server->loop, &server->exports, server->arena, server->nbd_path,
							  &server->nbd);
	if (error != 0)
		return cmd_fail("serve", server->nbd_path, "%s", socket_reason(error));
	return arguments->fuse == NULL ? EXIT_DONE : start_fuse(server, arguments->fuse);
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
	};
	struct complaint complaint;
	bool memory = origin != NULL && stores != NULL;
	int code = EXIT_DONE;

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

		if (server->nbd != NULL)
			(void)printf("%s nbd+unix:///%s?socket=%s\n", export->name, export->name, server->nbd_path);
		if (server->fuse != NULL)
			(void)printf("%s %s/%s%s\n", export->name, server->fuse_path, export->read_only ? "snapshots/" : "",
				     export->name);
	}
	(void)printf("rowsnap: ready\n");
	(void)fflush(stdout);
}

static bool is_idle(const struct transport *transport)
{
	return transport == NULL || transport->ops->is_idle(transport);
}

/* Whether the loop may end: stopped, and no reply is left to send, or its time is over. */
static bool is_over(const struct server *server)
{
	return server->stopped && ((is_idle(server->nbd) && is_idle(server->fuse)) ||
				   loop_now_ns(server->loop) >= server->close_by_ns);
}

static int serve(struct server *server, const struct arguments *arguments, const char *volume)
{
	int error, code;

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
		code = start_sockets(server, arguments, volume);
	if (code == EXIT_DONE && arguments->run != NULL)
		code = run_command(server, arguments, volume);
	if (code != EXIT_DONE)
		return code;
	loop_timer_init(&server->tick, tick, server);
	loop_timer_set(server->loop, &server->tick, loop_now_ns(server->loop) + TICK_NS);
	print_exports(server);
	notify_ready();
	while (!is_over(server)) {
		error = loop_turn(server->loop, -1);
		if (error != 0)
			return cmd_fail("serve", "", "%s", strerror(-error));
	}
	return server->exit_code;
}

static void close_server(struct server *server)
{
	if (server->nbd != NULL)
		server->nbd->ops->close(server->nbd);
	if (server->fuse != NULL)
		server->fuse->ops->close(server->fuse);
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
	free(server->control_path);
}

/* ---- the command ---- */

enum {
	OPTION_VOLUME = 256,
	OPTION_NBD,
	OPTION_FUSE,
	OPTION_ON_FULL,
	OPTION_DISCARD,
	OPTION_ACCEPT_ORIGIN,
	OPTION_RUN,
};

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
	case OPTION_DISCARD:
		if (strcmp(argument, "skip") != 0 && strcmp(argument, "copy") != 0)
			argp_error(state, "--discard: '%s' is not one of skip, copy", argument);
		arguments->discard_copy = strcmp(argument, "copy") == 0;
		return 0;
	case OPTION_ACCEPT_ORIGIN:
		arguments->accept_origin = true;
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
		{ "on-full", OPTION_ON_FULL, "POLICY", 0,
		  "when a store is full: break (writes go on, the snapshots are broken; the default), fail, or wait", 0 },
		{ "discard", OPTION_DISCARD, "POLICY", 0,
		  "discards: skip (only blocks preserved already; the default), or copy (preserve them first)", 0 },
		{ "accept-origin", OPTION_ACCEPT_ORIGIN, NULL, 0,
		  "go on although the origin was changed without its snapshots: these are marked broken", 0 },
		{ "run", OPTION_RUN, "COMMAND", 0,
		  "serve while this shell command runs, and exit with its status", 0 },
		{ 0 },
	};
	static const struct argp argp = { options, parse, "ORIGIN [STORE...]",
					  "Serves ORIGIN, a block device or image file, read-write, and its snapshots read-only. The "
					  "STOREs may be named in any order; without any, those of the last time are used.",
					  NULL, NULL, NULL };
	struct arguments arguments = { .stores = calloc((size_t)argc + 1, sizeof(char *)) };
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
	code = arguments.volume != NULL ? EXIT_DONE : default_volume(arguments.origin, name);
	if (code == EXIT_DONE)
		code = serve(&server, &arguments, arguments.volume != NULL ? arguments.volume : name);
	close_server(&server);
	free(arguments.stores);
	return code;
}
