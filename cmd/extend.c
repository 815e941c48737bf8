/* SPDX-License-Identifier: GPL-2.0-or-later */
/* rowsnap extend: asks a server to give the newest snapshot's store more room. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cmd/cmd.h"
#include "io/cleanup.h"
#include "io/probe.h"

struct arguments {
	const char *volume, *name, *store;
	uint64_t size_bytes; /* 0: a store is given */
	bool json;
};

static int ask(const struct arguments *arguments, const char *store, bool *lost, struct json_object **result)
{
	struct json_object *request = cmd_request("extend");
	struct stat status;

	json_object_object_add(request, "name", json_object_new_string(arguments->name));
	if (store == NULL) {
		json_object_object_add(request, "size", json_object_new_uint64(arguments->size_bytes));
	} else {
		json_object_object_add(request, "store", json_object_new_string(store));
		/* For the server, which must not look itself: on its own export it would wait for itself. */
		if (stat(store, &status) == 0)
			json_object_object_add(request, "store_device",
					       json_object_new_uint64(S_ISBLK(status.st_mode) ? status.st_rdev :
												status.st_dev));
	}
	return cmd_call("extend", arguments->volume, request, NULL, NULL, lost, result);
}

/* A missing file is made a store first, and removed again when it is not joined; not when that is not known. */
static int make_and_ask(const struct arguments *arguments, const char *store, struct json_object *list,
			struct json_object **result)
{
	uint64_t block_bytes = cmd_json_number(list, "block_bytes");
	struct format_options options = { .block_bytes = block_bytes == 0 ? BLOCK_BYTES_MIN : (uint32_t)block_bytes };
	bool created = false, lost = false;
	char text[PROBE_TEXT_BYTES];
	int code = cmd_check_own_export("extend", store, list);

	if (code != EXIT_DONE)
		return code;
	if (access(store, F_OK) != 0 && errno == ENOENT)
		code = cmd_format_store("extend", store, &options, &created);
	else if (probe_busy(store, text) == 1)
		return cmd_fail("extend", store, "is in use: %s", text);
	if (code == EXIT_DONE)
		code = ask(arguments, store, &lost, result);
	if (code != EXIT_DONE && created && !lost && *result == NULL && cmd_is_empty_store(store))
		(void)unlink(store);
	return code;
}

static int join(const struct arguments *arguments, struct json_object **result)
{
	auto_free char *store = cmd_absolute_path(arguments->store);
	struct json_object *list = NULL;
	int code;

	if (store == NULL)
		return cmd_fail("extend", arguments->store, "%s", strerror(errno));
	code = cmd_call("extend", arguments->volume, cmd_request("list"), NULL, NULL, NULL, &list);
	if (code == EXIT_DONE)
		code = make_and_ask(arguments, store, list, result);
	json_object_put(list);
	return code;
}

static void print_extended(const struct arguments *arguments, struct json_object *result)
{
	char used[SIZE_TEXT_BYTES], size[SIZE_TEXT_BYTES];
	size_t parts = json_object_array_length(cmd_json_get(result, "parts"));

	cmd_size_text(cmd_json_number(result, "used_bytes"), used);
	cmd_size_text(cmd_json_number(result, "size_bytes"), size);
	(void)printf("%s: extended, %s used", arguments->name, used);
	if (cmd_json_get(result, "size_bytes") != NULL)
		(void)printf(" of %s", size);
	if (parts > 1)
		(void)printf(", in %zu stores", parts);
	(void)putchar('\n');
}

static error_t parse(int key, char *argument, struct argp_state *state)
{
	struct arguments *arguments = state->input;

	switch (key) {
	case LONG_ONLY('s'):
		arguments->size_bytes = cmd_size_argument("size", argument, state);
		if (arguments->size_bytes == 0)
			argp_error(state, "--size: must be above 0");
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
		if (arguments->name == NULL)
			argp_error(state, "VOLUME and NAME are needed");
		else if ((arguments->store == NULL) == (arguments->size_bytes == 0))
			argp_error(state, "either STORE or --size is needed");
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

int cmd_extend(int argc, char **argv)
{
	static const struct argp_option options[] = {
		{ "size", LONG_ONLY('s'), "SIZE", 0, "let the store, or the one joined to it last, grow to SIZE (K, M, G, T)", 0 },
		{ "json", LONG_ONLY('j'), NULL, 0, "print the snapshot as a JSON object", 0 },
		{ 0 },
	};
	static const struct argp argp = { options, parse, "VOLUME NAME STORE\nVOLUME NAME --size=SIZE",
					  "Gives the newest snapshot of a served volume more room for what is overwritten. "
					  "STORE, a formatted device or file, or the path of a file to be made, is joined to the "
					  "snapshot's store, and belongs to it from then on. With --size, the limit of a file is "
					  "raised, or a device that has grown is measured again. Writes that wait for room go on.",
					  NULL, NULL, NULL };
	struct arguments arguments = { 0 };
	struct json_object *result = NULL;
	bool lost;
	int code;

	if (argp_parse(&argp, argc, argv, 0, NULL, &arguments) != 0)
		return EXIT_USAGE;
	code = arguments.store != NULL ? join(&arguments, &result) : ask(&arguments, NULL, &lost, &result);
	if (code == EXIT_DONE && arguments.json)
		cmd_print_json(json_object_get(result));
	else if (code == EXIT_DONE)
		print_extended(&arguments, result);
	json_object_put(result);
	return cmd_finish_output("extend", code);
}
