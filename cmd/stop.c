/* SPDX-License-Identifier: GPL-2.0-or-later */
/* rowsnap stop: ends a server cleanly and waits for its end. */
#include <stdio.h>

#include "cmd/cmd.h"

struct arguments {
	const char *volume;
	bool force;
};

static error_t parse(int key, char *argument, struct argp_state *state)
{
	struct arguments *arguments = state->input;

	switch (key) {
	case LONG_ONLY('f'):
		arguments->force = true;
		return 0;
	case ARGP_KEY_ARG:
		if (arguments->volume != NULL)
			argp_error(state, "too many arguments: '%s'", argument);
		arguments->volume = argument;
		return 0;
	case ARGP_KEY_END:
		if (arguments->volume == NULL)
			argp_error(state, "no VOLUME given");
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

static void show_waiting(struct json_object *progress, void *context)
{
	const struct arguments *arguments = context;

	(void)fprintf(stderr, "rowsnap stop: %s: %s: waiting for that to end (--force does not wait)\n", arguments->volume,
		      cmd_json_text(progress, "waiting"));
}

int cmd_stop(int argc, char **argv)
{
	static const struct argp_option options[] = {
		{ "force", LONG_ONLY('f'), NULL, 0,
		  "do not wait until its devices are unmounted: what is mounted gets I/O errors", 0 },
		{ 0 },
	};
	static const struct argp argp = { options, parse, "VOLUME",
					  "Ends the server of VOLUME as SIGTERM does: what is under way is finished, a clean stop is "
					  "recorded. Returns when the origin and the stores are free.",
					  NULL, NULL, NULL };
	struct arguments arguments = { 0 };
	struct json_object *request, *result = NULL;
	int code;

	if (argp_parse(&argp, argc, argv, 0, NULL, &arguments) != 0 || arguments.volume == NULL)
		return EXIT_USAGE;
	request = cmd_request("stop");
	json_object_object_add(request, "force", json_object_new_boolean(arguments.force));
	code = cmd_call("stop", arguments.volume, request, show_waiting, &arguments, NULL, &result);
	json_object_put(result);
	return code;
}
