/* SPDX-License-Identifier: GPL-2.0-or-later */
/* rowsnap: snapshots of any block device or image file by copy-before-write. This is the table of commands. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cmd/cmd.h"

#ifndef ROWSNAP_VERSION
#define ROWSNAP_VERSION "0.1"
#endif

struct command {
	const char *name;
	int (*run)(int argc, char **argv);
	const char *summary;
};

static const struct command commands[] = {
	{ "format", cmd_format, "make a file or device an empty store" },
	{ "serve", cmd_serve, "serve an origin and its snapshots" },
	{ "snapshot", cmd_snapshot, "take a snapshot of a volume now" },
	{ "extend", cmd_extend, "give the newest snapshot's store more room" },
	{ "drop", cmd_drop, "drop a snapshot" },
	{ "list", cmd_list, "show the snapshots of a volume, or what stores hold" },
	{ "status", cmd_status, "show what a server does: counters, latencies" },
	{ "stop", cmd_stop, "end a server cleanly" },
	{ "inspect", cmd_inspect, "show a store's superblocks, areas and exceptions" },
	{ "merge", cmd_merge, "put the origin back to a snapshot" },
	{ "replay", cmd_replay, "write a snapshot's whole image to a file or device, offline" },
	{ "diff", cmd_diff, "list the byte ranges that differ between two snapshots, offline" },
	{ "check", cmd_check, "look for damage in stores; never writes" },
	{ "repair", cmd_repair, "mend a store as far as that invents nothing" },
};

const char *argp_program_version = "rowsnap " ROWSNAP_VERSION;
const char *argp_program_bug_address;

static error_t parse(int key, char *argument, struct argp_state *state)
{
	const struct command **chosen = state->input;

	switch (key) {
	case ARGP_KEY_ARG:
		for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
			if (strcmp(argument, commands[i].name) == 0)
				*chosen = &commands[i];
		if (*chosen == NULL)
			argp_error(state, "'%s' is not a command", argument);
		/* The rest is the command's own. */
		state->next = state->argc;
		return 0;
	case ARGP_KEY_NO_ARGS:
		argp_error(state, "no command given");
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

static char *help_filter(int key, const char *text, void *input)
{
	char *list = NULL;
	size_t size = 0;
	FILE *stream;

	(void)input;
	if (key != ARGP_KEY_HELP_POST_DOC)
		return (char *)(uintptr_t)text;
	stream = open_memstream(&list, &size);
	if (stream == NULL)
		return (char *)(uintptr_t)text;
	(void)fputs("Commands:\n", stream);
	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
		(void)fprintf(stream, "  %-10s %s\n", commands[i].name, commands[i].summary);
	(void)fputs("\n'rowsnap COMMAND --help' tells more; the manual is rowsnap(8).", stream);
	(void)fclose(stream);
	return list;
}

/* Else the first files opened take these numbers, and what is printed lands there. Using them fails, as before. */
static void keep_standard_descriptors(void)
{
	for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
		/* the lowest number that is free */
		int opened = fcntl(fd, F_GETFD) < 0 ? open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY) : fd;

		if (opened != fd && opened >= 0)
			(void)close(opened);
	}
}

int main(int argc, char **argv)
{
	static const struct argp argp = {
		.parser = parse,
		.args_doc = "COMMAND [ARGUMENT...]",
		.doc = "Snapshots of any block device or image file, by copy-before-write.\v",
		.help_filter = help_filter,
	};
	const struct command *chosen = NULL;
	char name[64];
	int at = 0;

	keep_standard_descriptors();
	argp_err_exit_status = EXIT_USAGE;
	argv[0] = (char *)(uintptr_t)"rowsnap";
	/* Only what stands before the command is parsed here. */
	while (at + 1 < argc && argv[at + 1][0] == '-')
		at++;
	if (argp_parse(&argp, at + 1 < argc ? at + 2 : argc, argv, ARGP_IN_ORDER, NULL, &chosen) != 0 || chosen == NULL)
		return EXIT_USAGE;
	(void)snprintf(name, sizeof(name), "rowsnap %s", chosen->name);
	argv[at + 1] = name;
	return chosen->run(argc - at - 1, argv + at + 1);
}
