/* SPDX-License-Identifier: GPL-2.0-or-later */
/* rowsnap merge: the origin back to a snapshot, in place. Offline. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/cmd.h"
#include "core/merge.h"

struct arguments {
	char **paths; /* the origin, then the stores */
	size_t count;
	const char *snapshot;
	bool dry_run, accept_origin, json;
	enum cmd_progress progress;
};

struct show {
	const char *snapshot;
	struct cmd_progress_line line;
	enum merge_stage stage;
};

static void show_progress(enum merge_stage stage, uint64_t done, uint64_t total, void *context)
{
	struct show *show = context;
	char what[NAME_LENGTH_MAX + 32];

	if (stage != show->stage)
		cmd_progress_end(&show->line);
	show->stage = stage;
	(void)snprintf(what, sizeof(what), "%s: %s", show->snapshot, stage == MERGE_VERIFYING ? "verified" : "written");
	cmd_progress_show(&show->line, what, done, total);
}

static void print_json(const struct arguments *arguments, const struct merge_report *report)
{
	struct json_object *json = json_object_new_object(), *gone = json_object_new_array();

	json_object_object_add(json, "snapshot", json_object_new_string(arguments->snapshot));
	json_object_object_add(json, "dry_run", json_object_new_boolean(arguments->dry_run));
	json_object_object_add(json, "resumed", json_object_new_boolean(report->resumed));
	json_object_object_add(json, "bytes", json_object_new_uint64(report->bytes));
	for (size_t i = 0; i < report->gone_count; i++)
		json_object_array_add(gone, json_object_new_string(report->gone[i]));
	json_object_object_add(json, "gone", gone);
	cmd_print_json(json);
}

static void print_report(const struct arguments *arguments, const struct merge_report *report)
{
	char size[SIZE_TEXT_BYTES];

	cmd_size_text(report->bytes, size);
	if (arguments->dry_run)
		(void)printf("%s: %llu bytes (%s) would be written to the origin\n", arguments->snapshot,
			     (unsigned long long)report->bytes, size);
	else
		(void)printf("%s: the origin is put back to it, %llu bytes (%s) were written\n", arguments->snapshot,
			     (unsigned long long)report->bytes, size);
	for (size_t i = 0; i < report->gone_count; i++)
		(void)printf(arguments->dry_run ? "%s: would go\n" : "%s: gone, its store is free\n", report->gone[i]);
}

static int merge_opened(const struct arguments *arguments, const struct cmd_offline *opened, struct merge_report *report)
{
	struct show show = { .snapshot = arguments->snapshot,
			     .line = { .progress = arguments->progress, .host = opened->host } };
	const struct merge_options options = {
		.snapshot = arguments->snapshot,
		.state_directory = opened->state_directory,
		.dry_run = arguments->dry_run,
		.accept_origin = arguments->accept_origin,
		.progress = show_progress,
		.is_cancelled = cmd_is_cancelled,
		.context = &show,
	};
	struct complaint complaint;
	int error;

	cmd_watch_signals();
	error = merge_run(opened->host, opened->origin, (const char *const *)(arguments->paths + 1),
			  arguments->count - 1, &options, report, &complaint);
	cmd_progress_end(&show.line);
	if (error != 0)
		return cmd_fail("merge", complaint.what, "%s", complaint.why);
	if (arguments->json)
		print_json(arguments, report);
	else
		print_report(arguments, report);
	return EXIT_DONE;
}

static int merge(const struct arguments *arguments)
{
	struct merge_report *report = calloc(1, sizeof(*report));
	struct cmd_offline opened;
	int code;

	if (report == NULL)
		return cmd_fail("merge", arguments->paths[0], "out of memory");
	code = cmd_offline_begin("merge", arguments->paths[0], !arguments->dry_run, &opened);
	if (code == EXIT_DONE)
		code = merge_opened(arguments, &opened, report);
	cmd_offline_close(&opened);
	free(report);
	return code;
}

static error_t parse(int key, char *argument, struct argp_state *state)
{
	struct arguments *arguments = state->input;

	switch (key) {
	case LONG_ONLY('s'):
		arguments->snapshot = argument;
		return 0;
	case LONG_ONLY('d'):
		arguments->dry_run = true;
		return 0;
	case LONG_ONLY('a'):
		arguments->accept_origin = true;
		return 0;
	case LONG_ONLY('j'):
		arguments->json = true;
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
		else if (arguments->count == 0)
			argp_error(state, "no ORIGIN given");
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

int cmd_merge(int argc, char **argv)
{
	static const struct argp_option options[] = {
		{ "snapshot", LONG_ONLY('s'), "NAME", 0, "the snapshot to put the origin back to", 0 },
		{ "dry-run", LONG_ONLY('d'), NULL, 0, "write nothing: check that it can be done, and say how much it would write", 0 },
		{ "accept-origin", LONG_ONLY('a'), NULL, 0, "finish although the half-done origin was changed meanwhile", 0 },
		{ "json", LONG_ONLY('j'), NULL, 0, "print the outcome as a JSON object", 0 },
		{ "progress", LONG_ONLY('p'), "WHEN", 0, "show progress: auto (on a terminal), always, never", 0 },
		{ 0 },
	};
	static const struct argp argp = { options, parse, "ORIGIN [STORE...]",
					  "Puts the origin of a volume that is not being served back to what a snapshot holds, "
					  "in place. That snapshot is the newest then; the newer ones go. What was written since "
					  "is lost. One that was cut short is finished by running it again. Without STOREs: those "
					  "that were used last.",
					  NULL, NULL, NULL };
	struct arguments arguments = { .paths = calloc((size_t)argc, sizeof(char *)) };
	int code;

	if (arguments.paths == NULL)
		return cmd_fail("merge", "", "out of memory");
	if (argp_parse(&argp, argc, argv, 0, NULL, &arguments) != 0 || arguments.count == 0)
		code = EXIT_USAGE;
	else
		code = cmd_finish_output("merge", merge(&arguments));
	free(arguments.paths);
	return code;
}
