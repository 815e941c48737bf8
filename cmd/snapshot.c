/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * rowsnap snapshot: asks a server for a snapshot now.
 *
 * --freeze: a child process freezes the file system and thaws it when it is told to, when this process is gone (its end of
 * the pipe closes), or after FREEZE_SECONDS_MAX. Nothing can leave the file system frozen.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cmd/cmd.h"
#include "core/store.h"
#include "io/cleanup.h"
#include "io/probe.h"

#define FREEZE_SECONDS_MAX 30

struct arguments {
	const char *volume, *name, *store, *freeze;
	bool json;
};

struct freezer {
	pid_t pid;
	int to_child, from_child;
};

/* The child: freezes, reports 0 or the errno, waits for the word, the end of the pipe or the limit, thaws. */
static void freeze_and_wait(const char *mount_point, int input, int output)
{
	struct pollfd wait = { .fd = input, .events = POLLIN };
	int fd, error = 0;

	(void)signal(SIGINT, SIG_IGN);
	(void)signal(SIGTERM, SIG_IGN);
	(void)signal(SIGHUP, SIG_IGN);
	(void)signal(SIGPIPE, SIG_IGN);
	fd = open(mount_point, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0 || ioctl(fd, FIFREEZE, 0) != 0)
		error = errno;
	if (write(output, &error, sizeof(error)) != (ssize_t)sizeof(error) && error == 0)
		error = EPIPE;
	if (fd >= 0 && (error == 0 || error == EPIPE)) {
		(void)poll(&wait, 1, FREEZE_SECONDS_MAX * 1000);
		if (ioctl(fd, FITHAW, 0) != 0)
			error = errno;
	}
	_exit(error == 0 ? 0 : 1);
}

static int freeze(const struct arguments *arguments, struct freezer *freezer)
{
	int down[2], up[2], error = 0;

	if (pipe2(down, O_CLOEXEC) != 0)
		return cmd_fail("snapshot", arguments->freeze, "%s", strerror(errno));
	if (pipe2(up, O_CLOEXEC) != 0) {
		error = errno;
		(void)close(down[0]);
		(void)close(down[1]);
		return cmd_fail("snapshot", arguments->freeze, "%s", strerror(error));
	}
	freezer->pid = fork();
	if (freezer->pid == 0) {
		(void)close(down[1]);
		(void)close(up[0]);
		freeze_and_wait(arguments->freeze, down[0], up[1]);
	}
	(void)close(down[0]);
	(void)close(up[1]);
	freezer->to_child = down[1];
	freezer->from_child = up[0];
	if (freezer->pid < 0)
		error = EAGAIN;
	else if (read(freezer->from_child, &error, sizeof(error)) != (ssize_t)sizeof(error))
		error = EIO;
	if (error == 0)
		return EXIT_DONE;
	(void)close(freezer->to_child);
	(void)close(freezer->from_child);
	if (freezer->pid > 0)
		(void)waitpid(freezer->pid, NULL, 0);
	return cmd_fail("snapshot", arguments->freeze, "cannot be frozen: %s",
			error == EOPNOTSUPP || error == ENOTTY ? "this file system cannot" : strerror(error));
}

static int thaw(const struct arguments *arguments, const struct freezer *freezer)
{
	int status = 0;

	(void)close(freezer->to_child);
	(void)close(freezer->from_child);
	if (waitpid(freezer->pid, &status, 0) < 0 || !WIFEXITED(status) || WEXITSTATUS(status) != 0)
		return cmd_fail("snapshot", arguments->freeze, "could not be thawed in order (thaw it with fsfreeze -u)");
	return EXIT_DONE;
}

/* Whether freezing this file system would freeze what the server itself must write to. */
static bool lies_on(const char *path, dev_t device)
{
	struct stat status;

	return path[0] != '\0' && stat(path, &status) == 0 && S_ISREG(status.st_mode) && status.st_dev == device;
}

static int check_freeze(const struct arguments *arguments, const char *store, struct json_object *list)
{
	struct json_object *snapshots = cmd_json_get(list, "snapshots");
	const char *origin = cmd_json_text(cmd_json_get(list, "origin"), "path");
	auto_free char *state = NULL;
	struct stat status, folder;
	struct statx mount;

	if (stat(arguments->freeze, &status) != 0 || statx(AT_FDCWD, arguments->freeze, 0, STATX_TYPE, &mount) != 0)
		return cmd_fail("snapshot", arguments->freeze, "%s", strerror(errno));
	if (!S_ISDIR(status.st_mode))
		return cmd_fail("snapshot", arguments->freeze, "is not a folder");
	if ((mount.stx_attributes_mask & ~mount.stx_attributes & STATX_ATTR_MOUNT_ROOT) != 0)
		return cmd_fail("snapshot", arguments->freeze, "is not a mount point");
	if (lies_on(store, status.st_dev))
		return cmd_fail("snapshot", arguments->freeze, "the store %s lies on this file system: it cannot be frozen",
				store);
	if (cmd_state_directory("snapshot", true, &state) == EXIT_DONE && stat(state, &folder) == 0 &&
	    folder.st_dev == status.st_dev)
		return cmd_fail("snapshot", arguments->freeze,
				"the volume's record in %s lies on this file system: it cannot be frozen", state);
	if (lies_on(origin, status.st_dev))
		return cmd_fail("snapshot", arguments->freeze,
				"the origin %s lies on this file system: it cannot be frozen", origin);
	for (size_t i = 0; i < json_object_array_length(snapshots); i++) {
		struct json_object *one = json_object_array_get_idx(snapshots, i), *parts = cmd_json_get(one, "parts");
		const char *path = cmd_json_text(one, "store");

		if (lies_on(path, status.st_dev))
			return cmd_fail("snapshot", arguments->freeze,
					"the store %s lies on this file system: it cannot be frozen", path);
		for (size_t part = 1; part < json_object_array_length(parts); part++) {
			path = cmd_json_text(json_object_array_get_idx(parts, part), "store");
			if (lies_on(path, status.st_dev))
				return cmd_fail("snapshot", arguments->freeze,
						"the store %s lies on this file system: it cannot be frozen", path);
		}
	}
	return EXIT_DONE;
}

static int ask(const struct arguments *arguments, const char *store, bool *lost, struct json_object **result)
{
	struct json_object *request = cmd_request("snapshot");
	struct stat status;

	json_object_object_add(request, "name", json_object_new_string(arguments->name));
	json_object_object_add(request, "store", json_object_new_string(store));
	/* For the server, which must not look itself: on its own export it would wait for itself. */
	if (stat(store, &status) == 0)
		json_object_object_add(request, "store_device",
				       json_object_new_uint64(S_ISBLK(status.st_mode) ? status.st_rdev : status.st_dev));
	return cmd_call("snapshot", arguments->volume, request, NULL, NULL, lost, result);
}

static int take(const struct arguments *arguments, const char *store, bool *lost, struct json_object **result)
{
	struct freezer freezer = { .pid = -1, .to_child = -1, .from_child = -1 };
	int code;

	if (arguments->freeze == NULL)
		return ask(arguments, store, lost, result);
	code = freeze(arguments, &freezer);
	if (code != EXIT_DONE)
		return code;
	code = ask(arguments, store, lost, result);
	if (thaw(arguments, &freezer) != EXIT_DONE)
		code = EXIT_FAILED;
	return code;
}

/*
 * A missing file is made a store first, and removed again when no snapshot comes of it. When that is not known (the server
 * ended before it answered) it stays: the chain may need it. Only one that says it is empty is removed.
 */
static int make_and_take(const struct arguments *arguments, const char *store, struct json_object *list,
			 struct json_object **result)
{
	uint64_t block_bytes = cmd_json_number(list, "block_bytes");
	struct format_options options = { .block_bytes = block_bytes == 0 ? BLOCK_BYTES_MIN : (uint32_t)block_bytes };
	bool created = false, lost = false;
	char text[PROBE_TEXT_BYTES];
	int code = cmd_check_own_export("snapshot", store, list);

	if (code != EXIT_DONE)
		return code;
	if (access(store, F_OK) != 0 && errno == ENOENT)
		code = cmd_format_store("snapshot", store, &options, &created);
	else if (probe_busy(store, text) == 1)
		return cmd_fail("snapshot", store, "is in use: %s", text);
	if (code == EXIT_DONE && arguments->freeze != NULL)
		code = check_freeze(arguments, store, list);
	if (code == EXIT_DONE)
		code = take(arguments, store, &lost, result);
	if (code != EXIT_DONE && created && !lost && *result == NULL && cmd_is_empty_store(store))
		(void)unlink(store);
	return code;
}

static void print_taken(const struct arguments *arguments, const char *store, struct json_object *result)
{
	(void)printf("%s: taken at %s, store %s", arguments->name, cmd_json_text(result, "created"), store);
	if (cmd_json_get(result, "device") != NULL)
		(void)printf(", device %s", cmd_json_text(result, "device"));
	(void)putchar('\n');
}

static error_t parse(int key, char *argument, struct argp_state *state)
{
	struct arguments *arguments = state->input;

	switch (key) {
	case LONG_ONLY('f'):
		arguments->freeze = argument;
		return 0;
	case LONG_ONLY('j'):
		arguments->json = true;
		return 0;
	case ARGP_KEY_ARG:
		if (arguments->volume == NULL)
			arguments->volume = argument;
		else if (arguments->name == NULL)
			arguments->name = argument;
		else if (arguments->store == NULL)
			arguments->store = argument;
		else
			argp_error(state, "too many arguments: '%s'", argument);
		return 0;
	case ARGP_KEY_END:
		if (arguments->store == NULL)
			argp_error(state, "VOLUME, NAME and STORE are needed");
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

int cmd_snapshot(int argc, char **argv)
{
	static const struct argp_option options[] = {
		{ "freeze", LONG_ONLY('f'), "MOUNTPOINT", 0, "freeze the file system mounted there while the snapshot is taken", 0 },
		{ "json", LONG_ONLY('j'), NULL, 0, "print the snapshot as a JSON object", 0 },
		{ 0 },
	};
	static const struct argp argp = { options, parse, "VOLUME NAME STORE",
					  "Takes a snapshot of a served volume now. STORE takes up what is overwritten from "
					  "then on: a formatted device or file, or the path of a file to be made.",
					  NULL, NULL, NULL };
	struct arguments arguments = { 0 };
	struct json_object *list = NULL, *result = NULL;
	auto_free char *store = NULL;
	int code;

	if (argp_parse(&argp, argc, argv, 0, NULL, &arguments) != 0)
		return EXIT_USAGE;
	if (!name_is_valid(arguments.name))
		return cmd_fail("snapshot", arguments.name,
				"is no snapshot name: 1 to 63 of A-Za-z0-9._-, not starting with - or ., not 'origin'");
	store = cmd_absolute_path(arguments.store);
	if (store == NULL)
		return cmd_fail("snapshot", arguments.store, "%s", strerror(errno));
	code = cmd_call("snapshot", arguments.volume, cmd_request("list"), NULL, NULL, NULL, &list);
	if (code == EXIT_DONE)
		code = make_and_take(&arguments, store, list, &result);
	if (code == EXIT_DONE && arguments.json)
		cmd_print_json(json_object_get(result));
	else if (code == EXIT_DONE)
		print_taken(&arguments, store, result);
	if (code == EXIT_DONE && cmd_json_get(result, "device") == NULL &&
	    cmd_json_get(cmd_json_get(list, "origin"), "device") != NULL)
		(void)cmd_fail("snapshot", arguments.name, "is taken, but got no device: the server's log says why");
	json_object_put(list);
	json_object_put(result);
	return cmd_finish_output("snapshot", code);
}
