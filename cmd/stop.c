/* SPDX-License-Identifier: GPL-2.0-or-later */
/* rowsnap stop: ends a server cleanly and waits for its end. */
#include "cmd/cmd.h"

static error_t parse(int key, char *argument, struct argp_state *state)
{
	const char **volume = state->input;

	switch (key) {
	case ARGP_KEY_ARG:
		if (*volume != NULL)
			argp_error(state, "too many arguments: '%s'", argument);
		*volume = argument;
		return 0;
	case ARGP_KEY_END:
		if (*volume == NULL)
			argp_error(state, "no VOLUME given");
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

int cmd_stop(int argc, char **argv)
{
	static const struct argp argp = { NULL, parse, "VOLUME",
					  "Ends the server of VOLUME as SIGTERM does: what is under way is finished, a clean stop is "
					  "recorded. Returns when the origin and the stores are free.",
					  NULL, NULL, NULL };
	const char *volume = NULL;
	struct json_object *result = NULL;
	int code;

	if (argp_parse(&argp, argc, argv, 0, NULL, &volume) != 0 || volume == NULL)
		return EXIT_USAGE;
	code = cmd_call("stop", volume, cmd_request("stop"), NULL, NULL, NULL, &result);
	json_object_put(result);
	return code;
}
