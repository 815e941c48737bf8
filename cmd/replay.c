/* SPDX-License-Identifier: GPL-2.0-or-later */
/* rowsnap replay: a snapshot's whole image, to a file, a device or standard output. Offline. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cmd/cmd.h"
#include "core/replay.h"

struct arguments {
	char **paths; /* the origin, then the stores */
	size_t count;
	const char *snapshot, *output;
	bool accept_origin, force, skip_lost;
	enum cmd_progress progress;
};

struct show {
	const struct arguments *arguments;
	struct cmd_progress_line line;
	uint64_t faults, fault_bytes;
};

/* ---- while it runs ---- */

static void show_progress(uint64_t done, uint64_t total, void *context)
{
	struct show *show = context;

	cmd_progress_show(&show->line, show->arguments->snapshot, done, total);
}

static void skipped(const struct offline_fault *fault, void *context)
{
	struct show *show = context;
	char text[OFFLINE_FAULT_TEXT_BYTES];

	cmd_progress_end(&show->line);
	offline_fault_text(fault, text);
	show->faults += fault->count;
	show->fault_bytes += fault->length;
	(void)fprintf(stderr, "%s: zeroed: %s\n", show->arguments->snapshot, text);
}

/* ---- the command ---- */

static int check_output(const struct arguments *arguments, const struct cmd_offline *opened)
{
	struct complaint complaint;
	struct stat status;

	if (replay_check_output(opened->offline, arguments->output, &complaint) != 0)
		return cmd_fail("replay", complaint.what, "%s", complaint.why);
	if (arguments->output == NULL || stat(arguments->output, &status) != 0)
		return EXIT_DONE;
	return cmd_check_content("replay", opened->host, arguments->output, arguments->force);
}

static int write_image(const struct arguments *arguments, const struct cmd_offline *opened, size_t point)
{
	struct show show = { .arguments = arguments,
			     .line = { .progress = arguments->progress, .host = opened->host } };
	const struct replay_options options = {
		.point = point,
		.output = arguments->output,
		.force = arguments->force,
		.skip_lost = arguments->skip_lost,
		.skipped = skipped,
		.progress = show_progress,
		.is_cancelled = cmd_is_cancelled,
		.context = &show,
	};
	struct complaint complaint;
	enum replay_left left;
	int error;

	/* Not with standard output: there is nothing to tidy up, and writing there may wait for ever. */
	if (arguments->output != NULL)
		cmd_watch_signals();
	error = replay_run(opened->offline, &options, &left, &complaint);
	cmd_progress_end(&show.line);
	if (error != 0)
		return cmd_fail("replay", complaint.what, left == REPLAY_INCOMPLETE ? "%s; %s is incomplete" : "%s",
				complaint.why, arguments->output != NULL ? arguments->output : "the output");
	if (show.faults > 0)
		return cmd_fail("replay", arguments->snapshot, "%llu blocks (%llu bytes) could not be read and are zeroed",
				(unsigned long long)show.faults, (unsigned long long)show.fault_bytes);
	return EXIT_DONE;
}

static int replay(const struct arguments *arguments)
{
	struct cmd_offline opened;
	struct complaint complaint;
	size_t point = 0;
	int code = cmd_offline_open("replay", arguments->paths, arguments->count, arguments->accept_origin, &opened);

	if (code == EXIT_DONE && offline_find(opened.offline, arguments->snapshot, &point, &complaint) != 0)
		code = cmd_fail("replay", complaint.what, "%s", complaint.why);
	if (code == EXIT_DONE)
		code = check_output(arguments, &opened);
	if (code == EXIT_DONE)
		code = write_image(arguments, &opened, point);
	cmd_offline_close(&opened);
	return code;
}

static error_t parse(int key, char *argument, struct argp_state *state)
{
	struct arguments *arguments = state->input;

	switch (key) {
	case LONG_ONLY('s'):
		arguments->snapshot = argument;
		return 0;
	case 'o':
		arguments->output = argument;
		return 0;
	case LONG_ONLY('a'):
		arguments->accept_origin = true;
		return 0;
	case LONG_ONLY('f'):
		arguments->force = true;
		return 0;
	case LONG_ONLY('l'):
		arguments->skip_lost = true;
		return 0;
	case LONG_ONLY('p'):
		arguments->progress = cmd_progress_argument(argument, state);
		return 0;
	case ARGP_KEY_ARG:
		arguments->paths[arguments->count++] = argument;
		return 0;
	case ARGP_KEY_END:
		if (arguments->snapshot == NULL)
			argp_error(state, "no --snapshot=NAME given");
		else if (arguments->output == NULL)
			argp_error(state, "no --output=OUTPUT given (- is standard output)");
		else if (arguments->count == 0)
			argp_error(state, "no ORIGIN given");
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

int cmd_replay(int argc, char **argv)
{
	static const struct argp_option options[] = {
		{ "snapshot", LONG_ONLY('s'), "NAME", 0, "the snapshot to write", 0 },
		{ "output", 'o', "OUTPUT", 0, "a file, a block device, or - for standard output", 0 },
		{ "force", LONG_ONLY('f'), NULL, 0, "overwrite what the file or device holds (never what is in use)", 0 },
		{ "skip-lost", LONG_ONLY('l'), NULL, 0, "write zeroes for what cannot be read, list it, and fail at the end", 0 },
		{ "accept-origin", LONG_ONLY('a'), NULL, 0, "go on with an origin that was changed without its snapshots", 0 },
		{ "progress", LONG_ONLY('p'), "WHEN", 0, "show progress: auto (on a terminal), always, never", 0 },
		{ 0 },
	};
	static const struct argp argp = { options, parse, "ORIGIN [STORE...]",
					  "Writes the whole image of a snapshot of a volume that is not being served to a file "
					  "(sparse where it can be), a block device or standard output. Without STOREs: those "
					  "that were used last.",
					  NULL, NULL, NULL };
	struct arguments arguments = { .paths = calloc((size_t)argc, sizeof(char *)) };
	int code;

	if (arguments.paths == NULL)
		return cmd_fail("replay", "", "out of memory");
	if (argp_parse(&argp, argc, argv, 0, NULL, &arguments) != 0 || arguments.count == 0) {
		code = EXIT_USAGE;
	} else {
		if (strcmp(arguments.output, "-") == 0)
			arguments.output = NULL;
		code = replay(&arguments);
	}
	free(arguments.paths);
	return code;
}
