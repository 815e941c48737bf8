/* SPDX-License-Identifier: GPL-2.0-or-later */
/* rowsnap diff: the byte ranges that may differ between two snapshots, or a snapshot and the origin. Offline. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "cmd/cmd.h"
#include "core/diff.h"

struct arguments {
	char **paths; /* the origin, then the stores */
	size_t count;
	const char *from, *to; /* NULL: the oldest snapshot, the origin */
	bool accept_origin, exact, json, null;
};

struct output {
	const struct arguments *arguments;
	uint64_t ranges, bytes;
};

/* A line for each, as it is found: there may be any number of them. */
static void print_range(uint64_t offset, uint64_t length, void *context)
{
	struct output *output = context;

	if (output->arguments->json)
		(void)printf("%s{\"offset\":%" PRIu64 ",\"length\":%" PRIu64 "}", output->ranges == 0 ? "" : ",", offset,
			     length);
	else
		(void)printf("%" PRIu64 " %" PRIu64 "%c", offset, length, output->arguments->null ? '\0' : '\n');
	output->ranges++;
	output->bytes += length;
}

/* Their names have no characters that JSON would have to escape. */
static int print_diff(const struct arguments *arguments, struct offline *offline, size_t from, size_t to)
{
	struct output output = { .arguments = arguments };
	const struct diff_options options = {
		.from = from,
		.to = to,
		.exact = arguments->exact,
		.range = print_range,
		.context = &output,
	};
	struct complaint complaint;

	if (diff_check(offline, &options, &complaint) != 0)
		return cmd_fail("diff", complaint.what, "%s", complaint.why);
	if (arguments->json)
		(void)printf("{\"from\":\"%s\",\"to\":\"%s\",\"ranges\":[", offline_point_name(offline, from),
			     offline_point_name(offline, to));
	if (diff_run(offline, &options, &complaint) != 0)
		return cmd_fail("diff", complaint.what, "%s", complaint.why);
	if (arguments->json)
		(void)printf("],\"bytes\":%" PRIu64 "}\n", output.bytes);
	return EXIT_DONE;
}

static int find_points(const struct arguments *arguments, const struct offline *offline, size_t *from, size_t *to)
{
	struct complaint complaint;
	int error = 0;

	*from = 0;
	if (arguments->from != NULL)
		error = offline_find(offline, arguments->from, from, &complaint);
	if (error == 0)
		error = offline_find(offline, arguments->to != NULL ? arguments->to : "origin", to, &complaint);
	return error == 0 ? EXIT_DONE : cmd_fail("diff", complaint.what, "%s", complaint.why);
}

static int diff(const struct arguments *arguments)
{
	struct cmd_offline opened;
	size_t from = 0, to = 0;
	int code = cmd_offline_open("diff", arguments->paths, arguments->count, arguments->accept_origin, &opened);

	if (code == EXIT_DONE)
		code = find_points(arguments, opened.offline, &from, &to);
	if (code == EXIT_DONE)
		code = print_diff(arguments, opened.offline, from, to);
	cmd_offline_close(&opened);
	return code;
}

static error_t parse(int key, char *argument, struct argp_state *state)
{
	struct arguments *arguments = state->input;

	switch (key) {
	case LONG_ONLY('f'):
		arguments->from = argument;
		return 0;
	case LONG_ONLY('t'):
		arguments->to = argument;
		return 0;
	case LONG_ONLY('e'):
		arguments->exact = true;
		return 0;
	case LONG_ONLY('a'):
		arguments->accept_origin = true;
		return 0;
	case LONG_ONLY('j'):
		arguments->json = true;
		return 0;
	case LONG_ONLY('0'):
		arguments->null = true;
		return 0;
	case ARGP_KEY_ARG:
		arguments->paths[arguments->count++] = argument;
		return 0;
	case ARGP_KEY_END:
		if (arguments->count == 0)
			argp_error(state, "no ORIGIN given");
		else if (arguments->json && arguments->null)
			argp_error(state, "--json and --null do not go together");
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

int cmd_diff(int argc, char **argv)
{
	static const struct argp_option options[] = {
		{ "from", LONG_ONLY('f'), "NAME", 0, "a snapshot (default: the oldest), or origin", 0 },
		{ "to", LONG_ONLY('t'), "NAME", 0, "a snapshot, or origin (default): the origin as it is now", 0 },
		{ "exact", LONG_ONLY('e'), NULL, 0, "read both, and leave out the blocks that are equal", 0 },
		{ "null", LONG_ONLY('0'), NULL, 0, "end each range with a NUL character, not a newline", 0 },
		{ "accept-origin", LONG_ONLY('a'), NULL, 0, "go on with an origin that was changed without its snapshots", 0 },
		{ "json", LONG_ONLY('j'), NULL, 0, "print one JSON object", 0 },
		{ 0 },
	};
	static const struct argp argp = { options, parse, "ORIGIN [STORE...]",
					  "Lists the byte ranges that may differ between two snapshots of a volume that is not "
					  "being served, a line each: OFFSET LENGTH. Without STOREs: those that were used last.",
					  NULL, NULL, NULL };
	struct arguments arguments = { .paths = calloc((size_t)argc, sizeof(char *)) };
	int code;

	if (arguments.paths == NULL)
		return cmd_fail("diff", "", "out of memory");
	if (argp_parse(&argp, argc, argv, 0, NULL, &arguments) != 0 || arguments.count == 0)
		code = EXIT_USAGE;
	else
		code = diff(&arguments);
	free(arguments.paths);
	return cmd_finish_output("diff", code);
}
