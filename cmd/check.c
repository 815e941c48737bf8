/* SPDX-License-Identifier: GPL-2.0-or-later */
/* rowsnap check: looks for damage in stores, and in the chain they are of. Offline; never writes. */
#include <stdio.h>
#include <stdlib.h>

#include "cmd/findings.h"

struct arguments {
	char **stores;
	size_t count;
	bool quick, json;
	enum cmd_progress progress;
};

static int check(const struct arguments *arguments)
{
	struct findings findings = { .command = "check",
				     .json = arguments->json,
				     .quick = arguments->quick,
				     .shown_max = 1000,
				     .progress = cmd_shows_progress(arguments->progress) };
	int code = findings_open(&findings, arguments->stores, arguments->count, DISK_OPEN_READ_ONLY);

	if (code == 0) {
		findings_check(&findings);
		code = findings.exit_code;
		if (arguments->json) {
			struct json_object *report = json_object_new_object();

			findings_report(&findings, report);
			json_object_object_add(report, "clean", json_object_new_boolean(code == 0));
			json_object_object_add(report, "exit", json_object_new_int(code));
			cmd_print_json(report);
		} else {
			findings_print_sums(&findings);
		}
	}
	check_end(&findings.check);
	findings_close(&findings);
	return code;
}

static error_t parse(int key, char *argument, struct argp_state *state)
{
	struct arguments *arguments = state->input;

	switch (key) {
	case LONG_ONLY('q'):
		arguments->quick = true;
		return 0;
	case LONG_ONLY('j'):
		arguments->json = true;
		return 0;
	case LONG_ONLY('p'):
		arguments->progress = cmd_progress_argument(argument, state);
		return 0;
	case ARGP_KEY_ARG:
		if (arguments->count == CHAIN_STORES_MAX)
			argp_error(state, "too many stores: %u is the most", CHAIN_STORES_MAX);
		arguments->stores[arguments->count++] = argument;
		return 0;
	case ARGP_KEY_END:
		if (arguments->count == 0)
			argp_error(state, "no STORE given");
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

int cmd_check(int argc, char **argv)
{
	static const struct argp_option options[] = {
		{ "quick", LONG_ONLY('q'), NULL, 0, "metadata only: do not read the data", 0 },
		{ "json", LONG_ONLY('j'), NULL, 0, "print one JSON object", 0 },
		{ "progress", LONG_ONLY('p'), "WHEN", 0, "show progress: auto (on a terminal), always, never", 0 },
		{ 0 },
	};
	static const struct argp argp = { options, parse, "STORE...",
					  "Looks for damage in stores that are not being served, and in the links between "
					  "them, and says what it means and what repair can do. Never writes.\vExit status, as of "
					  "fsck, the sum of: 0 clean, 4 faults, 8 something could not be read, 16 usage.",
					  NULL, NULL, NULL };
	struct arguments arguments = { .stores = calloc((size_t)argc, sizeof(char *)) };
	int code = EXIT_CHECK_USAGE;

	argp_err_exit_status = EXIT_CHECK_USAGE;
	if (arguments.stores == NULL) {
		(void)cmd_fail("check", "", "out of memory");
		return EXIT_CHECK_UNREADABLE;
	}
	if (argp_parse(&argp, argc, argv, 0, NULL, &arguments) == 0 && arguments.count > 0)
		code = check(&arguments);
	free(arguments.stores);
	return cmd_finish_output("check", 0) == 0 ? code : code | EXIT_CHECK_UNREADABLE;
}
