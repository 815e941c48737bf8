/* SPDX-License-Identifier: GPL-2.0-or-later */
/* rowsnap repair: mends what can be mended in a store without inventing data. Offline. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cmd/findings.h"
#include "core/repair.h"

struct arguments {
	char **stores; /* the one to repair, then those that are evidence only */
	size_t count;
	bool dry_run, yes, json;
	enum cmd_progress progress;
};

static void note(const struct check_finding *finding, void *context)
{
	repair_note(context, finding);
}

static bool is_agreed(const char *path)
{
	char answer[16];

	(void)fflush(stdout);
	(void)fprintf(stderr, "Repair %s as said above? [y/N] ", path);
	(void)fflush(stderr);
	return fgets(answer, sizeof(answer), stdin) != NULL && (answer[0] == 'y' || answer[0] == 'Y');
}

/* Its exit code is what the check after it finds, and that something was mended. */
static void carry_out(struct findings *findings, struct repair *repair, bool *mended)
{
	int error = repair_carry_out(repair);
	const char *path = findings->stores[0].path;
	bool too_many = repair->too_many;

	*mended = repair->writes > 0;
	if (error != 0)
		(void)cmd_fail("repair", path, "cannot be mended at byte %" PRIu64 ": %s", repair->offset,
			       strerror(-error));
	repair_end(repair);
	findings->noted = NULL;
	if (!findings->json)
		(void)printf("%s: %s; this is left:\n", path, *mended ? "mended" : "not mended");
	findings_check(findings);
	findings->exit_code |= (*mended ? EXIT_CHECK_MENDED : 0) | (error != 0 ? EXIT_CHECK_UNREADABLE : 0);
	if (too_many && !findings->json)
		(void)printf("%s: more is damaged than one repair takes up: run it again\n", path);
}

static void print_plan(const struct findings *findings, const struct repair *repair)
{
	const char *path = findings->stores[0].path;

	if (repair->contradicted)
		(void)printf("%s: nothing is mended as long as these stores contradict each other\n", path);
	else if (!repair_is_planned(repair))
		(void)printf("%s: there is nothing that can be mended\n", path);
	else
		(void)printf("%s: to be written: %s%s%s%zu areas' metadata%s\n", path,
			     repair->superblock ? "the superblock, " : "",
			     repair->broken ? "with the mark that the snapshot is broken, " : "",
			     repair->end_moves ? "with another end of the log, " : "", repair->area_count,
			     repair->tail ? ", and the log's torn tail is cleared" : "");
}

static int refuse_newer(const struct findings *findings)
{
	(void)cmd_fail("repair", findings->stores[0].path,
		       "was made by a newer rowsnap and can be read, but not written");
	return findings->exit_code | EXIT_CHECK_UNREADABLE;
}

/* The store is open, and checked: what is to be done about it. */
static int repair_checked(const struct arguments *arguments, struct findings *findings, struct repair *repair,
			  bool *mended)
{
	const struct check_store *one = repair->one;

	if (!arguments->json)
		print_plan(findings, repair);
	if (!repair_is_planned(repair))
		return findings->exit_code;
	if ((one->store->superblock.ro_compat & ~FEATURES_RO_COMPAT) != 0)
		return refuse_newer(findings);
	if (arguments->dry_run)
		return findings->exit_code;
	if (!arguments->yes && !is_agreed(findings->stores[0].path)) {
		if (!arguments->json)
			(void)printf("%s: nothing was written\n", findings->stores[0].path);
		return findings->exit_code;
	}
	carry_out(findings, repair, mended);
	return findings->exit_code;
}

static void print_report(const struct arguments *arguments, struct json_object *report, const struct repair *repair,
			 bool mended, int code)
{
	json_object_object_add(report, "dry_run", json_object_new_boolean(arguments->dry_run));
	json_object_object_add(report, "mended", json_object_new_boolean(mended));
	json_object_object_add(report, "run_again", json_object_new_boolean(repair->too_many));
	json_object_object_add(report, "clean", json_object_new_boolean((code & ~EXIT_CHECK_MENDED) == 0));
	json_object_object_add(report, "exit", json_object_new_int(code));
	cmd_print_json(report);
}

static int repair_opened(const struct arguments *arguments, struct findings *findings, struct repair *repair)
{
	struct json_object *report = arguments->json ? json_object_new_object() : NULL;
	struct json_object *before = arguments->json ? json_object_new_object() : NULL;
	bool mended = false;
	int code;

	repair->one = findings->stores[0].one;
	for (size_t i = 0; i < findings->check.count; i++)
		findings->check.stores[i].links_only = &findings->check.stores[i] != repair->one;
	findings_check(findings);
	code = findings->exit_code;
	if (arguments->json) {
		findings_report(findings, before);
		json_object_object_add(report, "before", before);
	}
	if (repair->one != NULL && repair->one->loaded)
		code = repair_checked(arguments, findings, repair, &mended);
	if (arguments->json) {
		findings_report(findings, report);
		print_report(arguments, report, repair, mended, code);
	} else {
		findings_print_sums(findings);
	}
	repair_end(repair);
	return code;
}

static int repair(const struct arguments *arguments)
{
	struct repair plan = { .one = NULL };
	struct findings findings = { .command = "repair",
				     .noted = note,
				     .context = &plan,
				     .json = arguments->json,
				     .shown_max = REPAIR_AREAS_MAX,
				     .progress = cmd_shows_progress(arguments->progress) };
	int code;

	if (!arguments->dry_run && !arguments->yes && !isatty(STDIN_FILENO)) {
		(void)cmd_fail("repair", arguments->stores[0],
			       "there is no terminal to ask on: agree with --yes, or look with --dry-run");
		return EXIT_CHECK_USAGE;
	}
	code = findings_open(&findings, arguments->stores, arguments->count,
			     arguments->dry_run ? DISK_OPEN_READ_ONLY : 0);
	if (code == 0)
		code = repair_opened(arguments, &findings, &plan);
	check_end(&findings.check);
	findings_close(&findings);
	return code;
}

static error_t parse(int key, char *argument, struct argp_state *state)
{
	struct arguments *arguments = state->input;

	switch (key) {
	case LONG_ONLY('d'):
		arguments->dry_run = true;
		return 0;
	case LONG_ONLY('y'):
		arguments->yes = true;
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

int cmd_repair(int argc, char **argv)
{
	static const struct argp_option options[] = {
		{ "dry-run", LONG_ONLY('d'), NULL, 0, "only say what would be done", 0 },
		{ "yes", LONG_ONLY('y'), NULL, 0, "do not ask", 0 },
		{ "json", LONG_ONLY('j'), NULL, 0, "print one JSON object", 0 },
		{ "progress", LONG_ONLY('p'), "WHEN", 0, "show progress: auto (on a terminal), always, never", 0 },
		{ 0 },
	};
	static const struct argp argp = {
		options, parse, "STORE [OTHER...]",
		"Mends what can be mended in STORE without inventing data, and says what is lost. The OTHER stores of its "
		"chain are evidence for its links; they are only read.\vExit status, as of fsck, the sum of: 0 clean, "
		"1 mended, 4 faults left, 8 something could not be read or written, 16 usage.",
		NULL, NULL, NULL
	};
	struct arguments arguments = { .stores = calloc((size_t)argc, sizeof(char *)) };
	int code = EXIT_CHECK_USAGE;

	argp_err_exit_status = EXIT_CHECK_USAGE;
	if (arguments.stores == NULL) {
		(void)cmd_fail("repair", "", "out of memory");
		return EXIT_CHECK_UNREADABLE;
	}
	if (argp_parse(&argp, argc, argv, 0, NULL, &arguments) == 0 && arguments.count > 0)
		code = repair(&arguments);
	free(arguments.stores);
	return cmd_finish_output("repair", 0) == 0 ? code : code | EXIT_CHECK_UNREADABLE;
}
