/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the commands that work on an origin and its stores without a server share: opening them. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/cmd.h"
#include "core/offline.h"
#include "io/cleanup.h"
#include "io/log.h"

#define DISK_IN_FLIGHT_MAX 256u

int cmd_offline_open(const char *command, char *const *paths, size_t count, bool accept_origin,
		     struct cmd_offline *opened)
{
	struct offline_options options = { .accept_origin = accept_origin };
	auto_free char *directory = NULL, *origin = NULL;
	struct complaint complaint;
	int code, error;

	*opened = (struct cmd_offline){ .host = NULL };
	log_silence();
	code = cmd_state_directory(command, false, &directory);
	if (code != EXIT_DONE)
		return code;
	origin = cmd_absolute_path(paths[0]); /* as the record knows it */
	error = origin == NULL ? -ENOMEM : disk_host_create(DISK_IN_FLIGHT_MAX, &opened->host);
	if (error != 0)
		return cmd_fail(command, paths[0], "%s", strerror(-error));
	options.state_directory = directory;
	error = offline_open(opened->host, origin, (const char *const *)(paths + 1), count - 1, &options, &opened->offline,
			     &complaint);
	return error == 0 ? EXIT_DONE : cmd_fail(command, complaint.what, "%s", complaint.why);
}

void cmd_offline_close(struct cmd_offline *opened)
{
	offline_close(opened->offline);
	if (opened->host != NULL)
		disk_host_destroy(opened->host);
}
