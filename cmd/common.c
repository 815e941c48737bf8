/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the commands share. See cmd.h. */
#include "cmd/cmd.h"

#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "io/cleanup.h"
#include "io/control.h"

int cmd_fail(const char *command, const char *what, const char *format, ...)
{
	char why[1024], line[2048];
	va_list arguments;

	va_start(arguments, format);
	(void)vsnprintf(why, sizeof(why), format, arguments);
	va_end(arguments);
	if (what[0] != '\0')
		(void)snprintf(line, sizeof(line), "rowsnap %s: %s: %s", command, what, why);
	else
		(void)snprintf(line, sizeof(line), "rowsnap %s: %s", command, why);
	for (char *at = line; *at != '\0'; at++)
		if ((unsigned char)*at < 0x20 || *at == 0x7f)
			*at = '?';
	(void)fflush(stdout);
	(void)fprintf(stderr, "%s\n", line);
	return EXIT_FAILED;
}

int cmd_parse_size(const char *text, uint64_t *bytes)
{
	static const char units[] = "KMGT";
	const char *unit;
	char *end;
	unsigned long long number;
	unsigned shift = 0;

	if (text[0] < '0' || text[0] > '9')
		return -EINVAL;
	errno = 0;
	number = strtoull(text, &end, 10);
	if (errno != 0)
		return -EINVAL;
	if (*end != '\0') {
		unit = strchr(units, *end >= 'a' && *end <= 'z' ? *end - 'a' + 'A' : *end);
		if (unit == NULL || end[1] != '\0')
			return -EINVAL;
		shift = 10 * (unsigned)(unit - units + 1);
	}
	if (number > UINT64_MAX >> 1 >> shift)
		return -EINVAL;
	*bytes = (uint64_t)number << shift;
	return 0;
}

uint64_t cmd_size_argument(const char *option, const char *text, struct argp_state *state)
{
	uint64_t bytes = 0;

	if (cmd_parse_size(text, &bytes) != 0)
		argp_error(state, "--%s: '%s' is not a size (a whole number, with K, M, G or T)", option, text);
	return bytes;
}

enum cmd_progress cmd_progress_argument(const char *text, struct argp_state *state)
{
	if (strcmp(text, "auto") == 0)
		return PROGRESS_AUTO;
	if (strcmp(text, "always") == 0)
		return PROGRESS_ALWAYS;
	if (strcmp(text, "never") != 0)
		argp_error(state, "--progress: '%s' is not one of auto, always, never", text);
	return PROGRESS_NEVER;
}

bool cmd_shows_progress(enum cmd_progress progress)
{
	return progress == PROGRESS_ALWAYS || (progress == PROGRESS_AUTO && isatty(STDERR_FILENO));
}

void cmd_size_text(uint64_t bytes, char text[static SIZE_TEXT_BYTES])
{
	static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB" };
	double value = (double)bytes;
	unsigned unit = 0;

	while (value >= 1024 && unit < 4) {
		value /= 1024;
		unit++;
	}
	(void)snprintf(text, SIZE_TEXT_BYTES, unit == 0 || value >= 100 ? "%.0f %s" : "%.1f %s", value, units[unit]);
}

void cmd_time_text(uint64_t time_ns, char text[static TIME_TEXT_BYTES])
{
	time_t seconds = (time_t)(time_ns / 1000000000u);
	struct tm parts;
	char date[32];

	if (gmtime_r(&seconds, &parts) == NULL || strftime(date, sizeof(date), "%Y-%m-%dT%H:%M:%S", &parts) == 0)
		(void)snprintf(date, sizeof(date), "1970-01-01T00:00:00");
	(void)snprintf(text, TIME_TEXT_BYTES, "%s.%03uZ", date, (unsigned)(time_ns / 1000000u % 1000u));
}

/* ---- paths ---- */

/* Makes a folder and those above it. 0700; the ones that are there stay as they are. */
static int make_folders(const char *path)
{
	size_t length = strlen(path);
	char part[PATH_MAX];

	if (length >= sizeof(part))
		return -ENAMETOOLONG;
	for (size_t at = 1; at <= length; at++) {
		if (path[at] != '/' && path[at] != '\0')
			continue;
		memcpy(part, path, at);
		part[at] = '\0';
		if (mkdir(part, 0700) != 0 && errno != EEXIST)
			return -errno;
	}
	return 0;
}

static const char *environment(const char *name)
{
	const char *value = getenv(name);

	return value != NULL && value[0] != '\0' ? value : NULL;
}

static int make_directory(const char *command, bool make, char *path, char **directory)
{
	struct stat status;
	int error;

	if (path == NULL)
		return cmd_fail(command, "", "out of memory");
	error = make ? make_folders(path) : 0;
	if (error == 0 && make && (stat(path, &status) != 0 || !S_ISDIR(status.st_mode)))
		error = -ENOTDIR;
	if (error != 0) {
		(void)cmd_fail(command, path, "cannot be made: %s", strerror(-error));
		free(path);
		return EXIT_FAILED;
	}
	*directory = path;
	return EXIT_DONE;
}

static char *join(const char *folder, const char *name)
{
	char *path = NULL;

	return asprintf(&path, "%s/%s", folder, name) < 0 ? NULL : path;
}

int cmd_run_directory(const char *command, bool make, char **directory)
{
	const char *given = environment("ROWSNAP_RUNDIR"), *runtime = environment("XDG_RUNTIME_DIR");

	if (given != NULL)
		return make_directory(command, make, cmd_absolute_path(given), directory);
	if (geteuid() == 0)
		return make_directory(command, make, strdup("/run/rowsnap"), directory);
	if (runtime != NULL)
		return make_directory(command, make, join(runtime, "rowsnap"), directory);
	return cmd_fail(command, "no folder for the control socket",
			"set XDG_RUNTIME_DIR (a login session has it) or ROWSNAP_RUNDIR");
}

int cmd_state_directory(const char *command, bool make, char **directory)
{
	const char *given = environment("ROWSNAP_STATEDIR"), *state = environment("XDG_STATE_HOME");
	const char *home = environment("HOME");

	if (given != NULL)
		return make_directory(command, make, cmd_absolute_path(given), directory);
	if (geteuid() == 0)
		return make_directory(command, make, strdup("/var/lib/rowsnap"), directory);
	if (state != NULL)
		return make_directory(command, make, join(state, "rowsnap"), directory);
	if (home != NULL)
		return make_directory(command, make, join(home, ".local/state/rowsnap"), directory);
	return cmd_fail(command, "no folder for the volume's record", "set HOME, XDG_STATE_HOME or ROWSNAP_STATEDIR");
}

int cmd_socket_path(const char *command, const char *volume, char **path)
{
	char *directory = NULL;
	int result;

	if (strchr(volume, '/') != NULL) {
		*path = strdup(volume);
		return *path != NULL ? EXIT_DONE : cmd_fail(command, volume, "out of memory");
	}
	if (!name_is_valid(volume))
		return cmd_fail(command, volume, "is no volume name: 1 to 63 of A-Za-z0-9._-, not starting with - or .");
	result = cmd_run_directory(command, false, &directory);
	if (result != EXIT_DONE)
		return result;
	if (asprintf(path, "%s/%s.sock", directory, volume) < 0)
		*path = NULL;
	free(directory);
	return *path != NULL ? EXIT_DONE : cmd_fail(command, volume, "out of memory");
}

char *cmd_absolute_path(const char *path)
{
	char *absolute = realpath(path, NULL);
	auto_free char *current = NULL;

	if (absolute != NULL || errno == ENOMEM)
		return absolute;
	if (path[0] == '/')
		return strdup(path);
	while (path[0] == '.' && path[1] == '/')
		path += 2;
	current = getcwd(NULL, 0);
	return current == NULL ? NULL : join(current, path);
}

bool cmd_is_store_path(const char *argument)
{
	struct stat status;

	return strchr(argument, '/') != NULL && !(stat(argument, &status) == 0 && S_ISSOCK(status.st_mode));
}

/* ---- JSON ---- */

struct json_object *cmd_json_get(struct json_object *object, const char *key)
{
	struct json_object *value = NULL;

	if (!json_object_is_type(object, json_type_object) || !json_object_object_get_ex(object, key, &value))
		return NULL;
	return value;
}

const char *cmd_json_text(struct json_object *object, const char *key)
{
	struct json_object *value = cmd_json_get(object, key);

	return json_object_is_type(value, json_type_string) ? json_object_get_string(value) : "";
}

uint64_t cmd_json_number(struct json_object *object, const char *key)
{
	struct json_object *value = cmd_json_get(object, key);

	return json_object_is_type(value, json_type_int) ? json_object_get_uint64(value) : 0;
}

void cmd_print_json(struct json_object *object)
{
	(void)puts(json_object_to_json_string_ext(object, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE));
	(void)fflush(stdout);
	json_object_put(object);
}

int cmd_finish_output(const char *command, int exit_code)
{
	if (fflush(stdout) != 0 || ferror(stdout) != 0)
		return cmd_fail(command, "standard output", "cannot be written: %s", strerror(errno));
	return exit_code;
}

struct json_object *cmd_request(const char *name)
{
	struct json_object *request = json_object_new_object();

	json_object_object_add(request, "command", json_object_new_string(name));
	return request;
}

/* ---- a running server ---- */

static int receive_answer(const char *command, const char *volume, int fd,
			  void (*progress)(struct json_object *progress, void *context), void *context, bool *lost,
			  struct json_object **result)
{
	struct control_buffer buffer = { 0 };
	struct json_object *reply = NULL, *part;
	int error, code = EXIT_FAILED;
	bool more = true;

	while (more) {
		error = control_receive(fd, &buffer, &reply);
		if (error != 0) {
			if (lost != NULL)
				*lost = true;
			(void)cmd_fail(command, volume, "%s",
				       error == -EPIPE ? "the server ended before it answered" : strerror(-error));
			break;
		}
		more = false;
		if ((part = cmd_json_get(reply, "progress")) != NULL) {
			if (progress != NULL)
				progress(part, context);
			more = true;
		} else if ((part = cmd_json_get(reply, "error")) != NULL) {
			const char *what = cmd_json_text(part, "what");

			(void)cmd_fail(command, what[0] != '\0' ? what : volume, "%s", cmd_json_text(part, "why"));
		} else {
			*result = json_object_get(cmd_json_get(reply, "result"));
			code = EXIT_DONE;
		}
		json_object_put(reply);
	}
	control_buffer_free(&buffer);
	return code;
}

int cmd_call(const char *command, const char *volume, struct json_object *request,
	     void (*progress)(struct json_object *progress, void *context), void *context, bool *lost,
	     struct json_object **result)
{
	auto_close int fd = -1;
	char *path = NULL;
	int error, code;

	*result = NULL;
	if (lost != NULL)
		*lost = false;
	if (cmd_socket_path(command, volume, &path) != EXIT_DONE) {
		json_object_put(request);
		return EXIT_FAILED;
	}
	fd = control_connect(path);
	if (fd < 0) {
		json_object_put(request);
		if (fd == -ENOENT || fd == -ECONNREFUSED)
			code = cmd_fail(command, volume, "no server of this volume is running (no answer at %s)", path);
		else
			code = cmd_fail(command, volume, "%s: %s", path, strerror(-fd));
		free(path);
		return code;
	}
	free(path);
	error = control_send(fd, request);
	if (error != 0)
		return cmd_fail(command, volume, "%s", strerror(-error));
	return receive_answer(command, volume, fd, progress, context, lost, result);
}

/* ---- the list ---- */

static void add_time(struct json_object *object, const char *key, uint64_t time_ns)
{
	char text[TIME_TEXT_BYTES];

	cmd_time_text(time_ns, text);
	json_object_object_add(object, key, json_object_new_string(text));
}

static struct json_object *parts_json(const struct snapshot_report *report)
{
	struct json_object *array = json_object_new_array();

	for (uint32_t i = 0; i < report->part_count; i++) {
		struct json_object *one = json_object_new_object();
		uint64_t size_bytes = report->parts[i].size_bytes;

		json_object_object_add(one, "store", json_object_new_string(report->parts[i].store));
		json_object_object_add(one, "used_bytes", json_object_new_uint64(report->parts[i].used_bytes));
		json_object_object_add(one, "size_bytes", size_bytes == 0 ? NULL : json_object_new_uint64(size_bytes));
		json_object_array_add(array, one);
	}
	return array;
}

static struct json_object *snapshot_json(const struct snapshot_report *report)
{
	struct json_object *one = json_object_new_object();
	char uuid[UUID_TEXT_BYTES];

	uuid_text(&report->uuid, uuid);
	json_object_object_add(one, "name", json_object_new_string(report->name));
	json_object_object_add(one, "uuid", json_object_new_string(uuid));
	add_time(one, "created", report->created_ns);
	json_object_object_add(one, "state", json_object_new_string(report->state));
	json_object_object_add(one, "store", report->store == NULL ? NULL : json_object_new_string(report->store));
	json_object_object_add(one, "blocks", json_object_new_uint64(report->blocks));
	json_object_object_add(one, "used_bytes", json_object_new_uint64(report->used_bytes));
	json_object_object_add(one, "size_bytes",
			       report->size_bytes == 0 ? NULL : json_object_new_uint64(report->size_bytes));
	json_object_object_add(one, "full_percent",
			       report->full_percent == 0 ? NULL : json_object_new_int((int)report->full_percent));
	json_object_object_add(one, "warned_percent",
			       report->warned_percent == 0 ? NULL : json_object_new_int((int)report->warned_percent));
	json_object_object_add(one, "parts", parts_json(report));
	if (report->broken) {
		json_object_object_add(one, "broken_reason", json_object_new_string(report->broken_reason));
		add_time(one, "broken_since", report->broken_ns);
	}
	if (report->folding) {
		json_object_object_add(one, "fold_done_blocks", json_object_new_uint64(report->fold_done));
		json_object_object_add(one, "fold_total_blocks", json_object_new_uint64(report->fold_total));
	}
	return one;
}

struct json_object *cmd_list_json(const struct volume_report *volume, const struct snapshot_report *snapshots,
				  size_t count)
{
	struct json_object *list = json_object_new_object(), *origin = json_object_new_object();
	struct json_object *array = json_object_new_array();
	char uuid[UUID_TEXT_BYTES];

	uuid_text(&volume->uuid, uuid);
	json_object_object_add(list, "volume", volume->name == NULL ? NULL : json_object_new_string(volume->name));
	json_object_object_add(list, "uuid", json_object_new_string(uuid));
	json_object_object_add(origin, "path",
			       volume->origin_path == NULL ? NULL : json_object_new_string(volume->origin_path));
	json_object_object_add(origin, "size", json_object_new_uint64(volume->origin_bytes));
	json_object_object_add(list, "origin", origin);
	for (size_t i = 0; i < count; i++)
		json_object_array_add(array, snapshot_json(&snapshots[i]));
	json_object_object_add(list, "snapshots", array);
	return list;
}

void cmd_print_list(struct json_object *list)
{
	struct json_object *snapshots = cmd_json_get(list, "snapshots");

	(void)printf("%-20s %-24s %-8s %10s %10s %10s  %s\n", "NAME", "CREATED", "STATE", "BLOCKS", "USED", "SIZE",
		     "STORE");
	for (size_t i = 0; i < json_object_array_length(snapshots); i++) {
		struct json_object *one = json_object_array_get_idx(snapshots, i), *parts = cmd_json_get(one, "parts");
		char used[SIZE_TEXT_BYTES], size[SIZE_TEXT_BYTES] = "-";

		cmd_size_text(cmd_json_number(one, "used_bytes"), used);
		if (cmd_json_get(one, "size_bytes") != NULL)
			cmd_size_text(cmd_json_number(one, "size_bytes"), size);
		(void)printf("%-20s %-24s %-8s %10llu %10s %10s  %s", cmd_json_text(one, "name"),
			     cmd_json_text(one, "created"), cmd_json_text(one, "state"),
			     (unsigned long long)cmd_json_number(one, "blocks"), used, size, cmd_json_text(one, "store"));
		if (cmd_json_get(one, "device") != NULL)
			(void)printf("  (%s)", cmd_json_text(one, "device"));
		for (size_t part = 1; part < json_object_array_length(parts); part++)
			(void)printf(" + %s", cmd_json_text(json_object_array_get_idx(parts, part), "store"));
		if (cmd_json_get(one, "broken_reason") != NULL)
			(void)printf("  (%s, since %s: only the blocks preserved by then can be read)",
				     cmd_json_text(one, "broken_reason"), cmd_json_text(one, "broken_since"));
		if (cmd_json_get(one, "warned_percent") != NULL)
			(void)printf("  (%llu %% full)", (unsigned long long)cmd_json_number(one, "full_percent"));
		if (cmd_json_get(one, "fold_total_blocks") != NULL)
			(void)printf("  (%llu of %llu blocks folded)",
				     (unsigned long long)cmd_json_number(one, "fold_done_blocks"),
				     (unsigned long long)cmd_json_number(one, "fold_total_blocks"));
		(void)putchar('\n');
	}
}
