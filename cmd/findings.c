/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Opening stores for check and repair, and showing what is found. See findings.h. */
#include "cmd/findings.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/text.h"

static const char *severity_text(enum check_severity severity)
{
	switch (severity) {
	case CHECK_NOTICE:
		return "notice";
	case CHECK_FAULT:
		return "fault";
	case CHECK_UNREADABLE:
		return "unreadable";
	}
	return "unknown";
}

/* ---- opening ---- */

__attribute__((format(printf, 3, 4))) static void tell_error(struct findings *findings, struct findings_store *shown,
							     const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	(void)vsnprintf(shown->error, sizeof(shown->error), format, arguments);
	va_end(arguments);
	text_make_harmless(shown->error, strlen(shown->error));
	(void)cmd_fail(findings->command, shown->path, "%s", shown->error);
	findings->exit_code |= EXIT_CHECK_UNREADABLE;
}

/* A part is written to when its store is. */
static bool is_part(struct findings *findings, const char *path)
{
	const char *why = NULL;
	struct store *store;
	bool part;

	if (store_open(findings->host, path, DISK_OPEN_READ_ONLY, &store) != 0)
		return false;
	part = store_load_wait(store, &why) == 0 && store->superblock.role == ROLE_PART;
	store_close(store);
	return part;
}

static void open_one(struct findings *findings, struct findings_store *shown, unsigned flags)
{
	char text[PROBE_TEXT_BYTES];
	struct store *store;
	int error = store_open(findings->host, shown->path, flags | DISK_OPEN_LOCK, &store);

	if (error == -EBUSY && probe_busy(shown->path, text) == 1)
		tell_error(findings, shown, "is in use: %s", text);
	else if (error == -EBUSY)
		tell_error(findings, shown, "is in use by another program");
	else if (error == -ENOTBLK)
		tell_error(findings, shown, "is neither a block device nor a regular file");
	else if (error != 0)
		tell_error(findings, shown, "%s", strerror(-error));
	if (error != 0)
		return;
	if ((flags & DISK_OPEN_READ_ONLY) == 0 && probe_busy(shown->path, text) == 1) {
		tell_error(findings, shown, "is in use: %s", text);
		store_close(store);
		return;
	}
	shown->one = &findings->check.stores[findings->check.count++];
	shown->one->store = store;
}

/* The path among the first `count` that is the same file or device as `path`; NULL: none is. */
static const char *same_as(struct findings *findings, const char *path)
{
	const char *same = NULL;
	struct disk *disk;

	/* It may be locked by ourselves: opened without a lock it can be compared. */
	if (disk_open(findings->host, path, DISK_OPEN_READ_ONLY, &disk) != 0)
		return NULL;
	for (size_t i = 0; i < findings->check.count && same == NULL; i++) {
		const struct store *store = findings->check.stores[i].store;

		if (store != NULL && disk_is_same(disk, store->disk))
			same = store->path;
	}
	disk_close(disk);
	return same;
}

static void found(const struct check_finding *finding, void *context);
static void show_progress(const struct check_store *store, uint64_t done, uint64_t total, void *context);

int findings_open(struct findings *findings, char *const *paths, size_t count, unsigned flags)
{
	int error = disk_host_create(64, &findings->host);

	findings->stores = calloc(count, sizeof(*findings->stores));
	findings->check.stores = calloc(count, sizeof(*findings->check.stores));
	if (error == 0 && (findings->stores == NULL || findings->check.stores == NULL))
		error = -ENOMEM;
	if (error != 0) {
		(void)cmd_fail(findings->command, "", "%s", strerror(-error));
		return EXIT_CHECK_UNREADABLE;
	}
	findings->check.host = findings->host;
	findings->check.found = found;
	findings->check.progress = findings->progress ? show_progress : NULL;
	findings->check.context = findings;
	for (size_t i = 0; i < count; i++) {
		const char *same = same_as(findings, paths[i]);

		if (same != NULL) {
			(void)cmd_fail(findings->command, paths[i], "is the same file as %s: given twice", same);
			return EXIT_CHECK_USAGE;
		}
		findings->stores[findings->count].path = paths[i];
		open_one(findings, &findings->stores[findings->count++],
			 i == 0 || is_part(findings, paths[i]) ? flags : DISK_OPEN_READ_ONLY);
	}
	return 0;
}

void findings_close(struct findings *findings)
{
	for (size_t i = 0; i < findings->count; i++)
		json_object_put(findings->stores[i].array);
	for (size_t i = 0; i < findings->check.count; i++)
		store_close(findings->check.stores[i].store);
	free(findings->check.stores);
	free(findings->stores);
	if (findings->host != NULL)
		disk_host_destroy(findings->host);
}

/* ---- one finding ---- */

static void end_progress(struct findings *findings)
{
	if (findings->progress_shown)
		(void)fputc('\n', stderr);
	findings->progress_shown = false;
}

static void show_progress(const struct check_store *store, uint64_t done, uint64_t total, void *context)
{
	struct findings *findings = context;
	uint64_t percent = done >= total ? 100 : done * 100 / total;
	char path[PATH_MAX];

	if (findings->progress_shown && percent == findings->percent)
		return;
	(void)snprintf(path, sizeof(path), "%s", store->store->path);
	text_make_harmless(path, strlen(path));
	(void)fprintf(stderr, "\r%s: %" PRIu64 " of %" PRIu64 " areas (%" PRIu64 " %%)", path, done, total, percent);
	findings->percent = percent;
	findings->progress_shown = true;
	if (done >= total)
		end_progress(findings);
}

static void finding_text(const struct check_finding *finding, char text[static CHECK_TEXT_BYTES + TIME_TEXT_BYTES + 16])
{
	char time[TIME_TEXT_BYTES];
	int used = snprintf(text, CHECK_TEXT_BYTES, "%s", finding->text);

	if (used >= 0 && used < (int)CHECK_TEXT_BYTES && finding->time_ns != 0) {
		cmd_time_text(finding->time_ns, time);
		(void)snprintf(text + used, TIME_TEXT_BYTES + 16, ", since %s", time);
	}
	text_make_harmless(text, strlen(text));
}

static void print_concerned(const struct check_store *one)
{
	size_t count = one->concerned_count, first = count > 8 ? count - 8 : 0;

	(void)printf("  concerns: snapshot%s", count > 1 ? "s" : "");
	for (size_t i = count; i > first; i--)
		(void)printf("%s %s", i == count ? "" : ",", one->concerned[i - 1]);
	if (first > 0)
		(void)printf(", %zu older ones", first);
	(void)printf("%s\n", one->older_absent ? ", and older ones that are not here" : "");
}

static void print_finding(const struct check_finding *finding)
{
	const struct check_kind *kind = check_kind(finding->code);
	char text[CHECK_TEXT_BYTES + TIME_TEXT_BYTES + 16], path[PATH_MAX];

	(void)snprintf(path, sizeof(path), "%s", finding->store->store->path);
	text_make_harmless(path, strlen(path));
	finding_text(finding, text);
	(void)printf("%s: %s %s: %s", path, severity_text(kind->severity), kind->code, text);
	if (finding->offset != CHECK_NOWHERE && finding->part != 0)
		(void)printf(" (at byte %" PRIu64 " of part %" PRIu32 ")", finding->offset, finding->part);
	else if (finding->offset != CHECK_NOWHERE)
		(void)printf(" (at byte %" PRIu64 ")", finding->offset);
	(void)printf("\n  means: %s\n", kind->meaning);
	if (kind->concerns && finding->store->concerned_count > 0)
		print_concerned(finding->store);
	if (kind->repair != NULL)
		(void)printf("  repair: %s\n", kind->repair);
}

static void add_text(struct json_object *object, const char *key, const char *text)
{
	json_object_object_add(object, key, text == NULL ? NULL : json_object_new_string(text));
}

static void add_place(struct json_object *object, const char *key, uint64_t place)
{
	json_object_object_add(object, key, place == CHECK_NOWHERE ? NULL : json_object_new_uint64(place));
}

static struct json_object *finding_json(const struct check_finding *finding)
{
	const struct check_kind *kind = check_kind(finding->code);
	const struct check_store *one = finding->store;
	struct json_object *json = json_object_new_object(), *concerned = json_object_new_array();
	char text[CHECK_TEXT_BYTES + TIME_TEXT_BYTES + 16];

	finding_text(finding, text);
	add_text(json, "code", kind->code);
	add_text(json, "severity", severity_text(kind->severity));
	add_text(json, "store", one->store->path);
	add_place(json, "copy", finding->copy);
	add_place(json, "area", finding->area);
	add_place(json, "slot", finding->slot);
	add_place(json, "block", finding->block);
	json_object_object_add(json, "part", json_object_new_int((int)finding->part));
	add_place(json, "offset", finding->offset);
	add_place(json, "count", finding->count);
	add_text(json, "text", text);
	add_text(json, "meaning", kind->meaning);
	for (size_t i = 0; kind->concerns && i < one->concerned_count; i++)
		json_object_array_add(concerned, json_object_new_string(one->concerned[i]));
	json_object_object_add(json, "snapshots", concerned);
	json_object_object_add(json, "older_snapshots",
			       json_object_new_boolean(kind->concerns && one->older_absent));
	add_text(json, "repair", kind->repair);
	return json;
}

static struct findings_store *shown_store(struct findings *findings, const struct check_store *one)
{
	size_t i = 0;

	while (findings->stores[i].one != one)
		i++;
	return &findings->stores[i];
}

static void found(const struct check_finding *finding, void *context)
{
	struct findings *findings = context;
	struct findings_store *shown = shown_store(findings, finding->store);
	/* Which of two that contradict each other is at fault is not known. */
	bool counts = !finding->store->links_only || finding->code == FOUND_CHAIN_CONTRADICTION;

	switch (check_kind(finding->code)->severity) {
	case CHECK_NOTICE:
		break;
	case CHECK_FAULT:
		findings->exit_code |= counts ? EXIT_CHECK_FAULTS : 0;
		break;
	case CHECK_UNREADABLE:
		findings->exit_code |= counts ? EXIT_CHECK_UNREADABLE : 0;
		break;
	}
	if (findings->noted != NULL)
		findings->noted(finding, findings->context);
	if (shown->count[finding->code]++ >= findings->shown_max)
		return;
	if (findings->json) {
		json_object_array_add(shown->array, finding_json(finding));
		return;
	}
	end_progress(findings);
	print_finding(finding);
}

/* ---- all of it ---- */

static uint64_t left_out(const struct findings *findings, const struct findings_store *shown)
{
	uint64_t count = 0;

	for (size_t i = 0; i < FOUND_COUNT; i++)
		if (shown->count[i] > findings->shown_max)
			count += shown->count[i] - findings->shown_max;
	return count;
}

void findings_check(struct findings *findings)
{
	int error;

	findings->exit_code = 0;
	findings->check.quick = findings->quick;
	for (size_t i = 0; i < findings->count; i++) {
		struct findings_store *shown = &findings->stores[i];

		if (shown->one == NULL)
			findings->exit_code |= EXIT_CHECK_UNREADABLE;
		json_object_put(shown->array);
		shown->array = findings->json ? json_object_new_array() : NULL;
		memset(shown->count, 0, sizeof(shown->count));
	}
	error = check_run(&findings->check);
	end_progress(findings);
	if (error != 0) {
		(void)cmd_fail(findings->command, "", "%s", strerror(-error));
		findings->exit_code |= EXIT_CHECK_UNREADABLE;
	}
	for (size_t i = 0; i < findings->count; i++) {
		struct findings_store *shown = &findings->stores[i];

		if (shown->one != NULL && shown->one->load_error != 0)
			tell_error(findings, shown, "%s",
				   store_load_text(shown->one->load_error, shown->one->load_why));
	}
}

void findings_print_sums(const struct findings *findings)
{
	for (size_t i = 0; i < findings->count; i++) {
		const struct findings_store *shown = &findings->stores[i];
		uint64_t severities[CHECK_UNREADABLE + 1] = { 0 };
		char size[SIZE_TEXT_BYTES], path[PATH_MAX];
		const char *name = "";
		bool is_part_of;

		if (shown->one == NULL || shown->one->load_error != 0 || shown->one->links_only)
			continue;
		if (shown->one->loaded)
			name = shown->one->store->superblock.name;
		is_part_of = shown->one->loaded && shown->one->store->superblock.role == ROLE_PART;
		(void)snprintf(path, sizeof(path), "%s", shown->path);
		text_make_harmless(path, strlen(path));
		for (size_t code = 0; code < FOUND_COUNT; code++)
			severities[check_kind((enum check_code)code)->severity] += shown->count[code];
		cmd_size_text(shown->one->bytes_verified, size);
		if (left_out(findings, shown) > 0)
			(void)printf("%s: %" PRIu64 " findings more than are shown\n", path, left_out(findings, shown));
		(void)printf("%s: %s%s: %" PRIu64 " areas, %" PRIu64 " entries, %" PRIu64
			     " data blocks verified (%s); ",
			     path, is_part_of ? "part of snapshot " : name[0] != '\0' ? "snapshot " : "no snapshot", name, shown->one->areas, shown->one->entries, shown->one->blocks_verified, size);
		if (severities[CHECK_FAULT] + severities[CHECK_UNREADABLE] == 0)
			(void)printf("clean\n");
		else
			(void)printf("faults: %" PRIu64 ", unreadable: %" PRIu64 "\n", severities[CHECK_FAULT],
				     severities[CHECK_UNREADABLE]);
	}
}

static struct json_object *store_json(const struct findings *findings, const struct findings_store *shown)
{
	struct json_object *json = json_object_new_object();
	static const struct check_store nothing;
	const struct check_store *one = shown->one != NULL ? shown->one : &nothing;
	bool loaded = one->loaded;
	char uuid[UUID_TEXT_BYTES];

	add_text(json, "path", shown->path);
	if (loaded)
		uuid_text(&one->store->superblock.store_uuid, uuid);
	add_text(json, "name", loaded ? one->store->superblock.name : NULL);
	add_text(json, "uuid", loaded ? uuid : NULL);
	add_text(json, "state", loaded ? store_state_text(one->store->superblock.state) : NULL);
	add_text(json, "error", shown->error[0] == '\0' ? NULL : shown->error);
	json_object_object_add(json, "findings",
			       shown->array != NULL ? json_object_get(shown->array) : json_object_new_array());
	json_object_object_add(json, "findings_left_out", json_object_new_uint64(left_out(findings, shown)));
	json_object_object_add(json, "areas", json_object_new_uint64(one->areas));
	json_object_object_add(json, "entries", json_object_new_uint64(one->entries));
	json_object_object_add(json, "blocks_verified", json_object_new_uint64(one->blocks_verified));
	json_object_object_add(json, "bytes_verified", json_object_new_uint64(one->bytes_verified));
	return json;
}

void findings_report(const struct findings *findings, struct json_object *report)
{
	struct json_object *array = json_object_new_array();

	for (size_t i = 0; i < findings->count; i++)
		json_object_array_add(array, store_json(findings, &findings->stores[i]));
	json_object_object_add(report, "stores", array);
}
