/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The table of exports. An export lives until it was taken out of the table and the last reference to it was given
 * back; then, and exactly once, its owner is told by released(). export_remove() itself holds a reference while it
 * tells the watchers, so one rule covers the export that nobody uses too.
 */
#include "io/request.h"

#include <assert.h>
#include <string.h>

struct export *export_find(const struct export_table *table, const char *name)
{
	if (name[0] == '\0')
		name = "origin";
	list_for_each(link, &table->exports) {
		struct export *export = container_of(link, struct export, link);

		if (strcmp(export->name, name) == 0)
			return export;
	}
	return NULL;
}

void export_add(struct export_table *table, struct export *export)
{
	assert(!export_find(table, export->name));
	export->gone = false;
	list_append(&table->exports, &export->link);
	list_for_each_safe(link, &table->watchers) {
		struct export_watcher *watcher = container_of(link, struct export_watcher, link);

		if (watcher->added)
			watcher->added(watcher, export);
	}
}

void export_remove(struct export_table *table, struct export *export)
{
	assert(!export->gone);
	export_open(export);
	export->gone = true;
	list_remove(&export->link);
	list_for_each_safe(link, &table->watchers) {
		struct export_watcher *watcher = container_of(link, struct export_watcher, link);

		if (watcher->removed)
			watcher->removed(watcher, export);
	}
	export_close(export);
}

void export_open(struct export *export)
{
	export->references++;
	assert(export->references > 0);
}

void export_close(struct export *export)
{
	assert(export->references > 0);
	if (--export->references == 0 && export->gone && export->ops->released)
		export->ops->released(export);
}
