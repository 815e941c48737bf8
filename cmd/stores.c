/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What snapshot and extend ask of the store that they are given, before the server gets it and after. */
#include <stdlib.h>
#include <string.h>

#include "cmd/cmd.h"
#include "core/store.h"
#include "io/probe.h"
#include "io/text.h"

/* A store on a file system that lives on our own export: the server would wait for itself. And its path must be text. */
int cmd_check_own_export(const char *command, const char *store, struct json_object *list)
{
	struct json_object *snapshots = cmd_json_get(list, "snapshots");
	size_t count = json_object_array_length(snapshots), used = 0;
	const char **names = calloc(count + 2, sizeof(char *)), *found = NULL;
	int code = EXIT_DONE;

	if (names == NULL)
		return cmd_fail(command, store, "out of memory");
	if (!text_is_utf8(store, strlen(store))) {
		free(names);
		return cmd_fail(command, store, "is a path that is not UTF-8, and the server takes no other");
	}
	names[used++] = cmd_json_text(cmd_json_get(list, "origin"), "device");
	names[used++] = cmd_json_text(list, "fuse");
	for (size_t i = 0; i < count; i++)
		names[used++] = cmd_json_text(json_object_array_get_idx(snapshots, i), "device");
	for (size_t i = 0; i < used;)
		if (names[i][0] == '\0')
			names[i] = names[--used];
		else
			i++;
	if (probe_lies_on(store, names, used, &found) == 1)
		code = cmd_fail(command, store, "lies on this server's own export, %s: it would wait for itself", found);
	free(names);
	return code;
}

bool cmd_is_empty_store(const char *path)
{
	struct disk_host *host;
	struct store *store;
	const char *why = NULL;
	bool empty = false;

	if (disk_host_create(8, &host) != 0)
		return false;
	if (store_open(host, path, DISK_OPEN_READ_ONLY, &store) == 0) {
		empty = store_load_wait(store, &why) == 0 && store->superblock.state == STATE_EMPTY;
		store_close(store);
	}
	disk_host_destroy(host);
	return empty;
}
