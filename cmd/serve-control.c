/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the server answers on its control socket. A request is {"command": ..., ...}; the answer {"result": {...}} or
 * {"error": {"what": ..., "why": ...}}, preceded by any number of {"progress": {...}}.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/server.h"
#include "io/dm-user.h"
#include "io/nbd.h"

/* An operation that was asked for: lives until the operation's end, the client perhaps not so long. */
struct pending {
	struct server *server;
	struct control_client *client; /* NULL: gone, or answered */
	struct operation operation;
	struct loopdev_question question; /* DROP: whether its device is in use */
	bool is_drop, is_extend, background, forget_older;
	bool taken; /* SNAPSHOT: it is there, but for its device */
	char name[NAME_LENGTH_MAX + 1];
	char *store;
	struct json_object *parts; /* DROP: all the stores that it frees */
	struct list link;
};

struct stop_client {
	struct control_client *client;
	struct list link;
};

static void reply_error(struct control_client *client, const char *what, const char *why)
{
	struct json_object *reply = json_object_new_object(), *error = json_object_new_object();

	json_object_object_add(error, "what", json_object_new_string(what));
	json_object_object_add(error, "why", json_object_new_string(why));
	json_object_object_add(reply, "error", error);
	control_reply(client, reply);
}

static void reply_result(struct control_client *client, struct json_object *result)
{
	struct json_object *reply = json_object_new_object();

	json_object_object_add(reply, "result", result);
	control_reply(client, reply);
}

/* ---- list and status ---- */

static struct snapshot_report *report_snapshots(const struct server *server, size_t *count)
{
	struct snapshot_report *reports;

	*count = volume_snapshot_count(server->volume);
	reports = calloc(*count + 1, sizeof(*reports));
	if (reports == NULL)
		return NULL;
	for (size_t i = 0; i < *count; i++)
		volume_report_snapshot(server->volume, i, &reports[i]);
	return reports;
}

static void add_device(const struct server *server, struct json_object *object, const char *name)
{
	const struct export *export = export_find(&server->exports, name);
	bool has = export != NULL && export->device[0] != '\0';

	json_object_object_add(object, "device", has ? json_object_new_string(export->device) : NULL);
}

static void add_devices(const struct server *server, struct json_object *list)
{
	struct json_object *snapshots = cmd_json_get(list, "snapshots");

	add_device(server, cmd_json_get(list, "origin"), "origin");
	for (size_t i = 0; i < json_object_array_length(snapshots); i++) {
		struct json_object *one = json_object_array_get_idx(snapshots, i);

		add_device(server, one, cmd_json_text(one, "name"));
	}
}

static struct json_object *list_json(const struct server *server)
{
	struct volume_report report;
	struct snapshot_report *snapshots;
	struct json_object *list;
	size_t count;

	snapshots = report_snapshots(server, &count);
	if (snapshots == NULL)
		return NULL;
	volume_report(server->volume, &report);
	list = cmd_list_json(&report, snapshots, count);
	free(snapshots);
	add_devices(server, list);
	return list;
}

static void add_number(struct json_object *object, const char *key, uint64_t number)
{
	json_object_object_add(object, key, json_object_new_uint64(number));
}

static struct json_object *latency_json(const struct histogram *histogram)
{
	struct json_object *latency = json_object_new_object();

	add_number(latency, "count", histogram->total);
	add_number(latency, "p50_us", histogram_percentile(histogram, 500) / 1000);
	add_number(latency, "p99_us", histogram_percentile(histogram, 990) / 1000);
	add_number(latency, "p999_us", histogram_percentile(histogram, 999) / 1000);
	return latency;
}

static struct json_object *requests_json(const struct volume_report *report)
{
	struct json_object *requests = json_object_new_object();

	add_number(requests, "reads", report->reads);
	add_number(requests, "writes", report->writes);
	add_number(requests, "flushes", report->flushes);
	add_number(requests, "discards", report->discards);
	add_number(requests, "zeroes", report->zeroes);
	add_number(requests, "snapshot_reads", report->snapshot_reads);
	add_number(requests, "read_bytes", report->read_bytes);
	add_number(requests, "write_bytes", report->write_bytes);
	add_number(requests, "snapshot_read_bytes", report->snapshot_read_bytes);
	add_number(requests, "rereads", report->rereads);
	add_number(requests, "barriers", report->origin_barriers);
	add_number(requests, "now", report->requests_now);
	add_number(requests, "held", report->requests_held);
	return requests;
}

static struct json_object *copies_json(const struct volume_report *report)
{
	struct json_object *copies = json_object_new_object();

	add_number(copies, "copies", report->copies);
	add_number(copies, "blocks", report->copied_blocks);
	add_number(copies, "zero_blocks", report->zero_blocks);
	add_number(copies, "lost_blocks", report->lost_blocks);
	add_number(copies, "ahead_blocks", report->ahead_blocks);
	add_number(copies, "commits", report->commits);
	add_number(copies, "barriers", report->barriers);
	return copies;
}

static struct json_object *store_io_json(const struct volume_report *report)
{
	struct json_object *store = json_object_new_object();

	add_number(store, "writes", report->store_writes);
	add_number(store, "data_bytes", report->store_data_bytes);
	add_number(store, "metadata_bytes", report->store_metadata_bytes);
	add_number(store, "zeroed_bytes", report->store_zeroed_bytes);
	add_number(store, "checksum_errors", report->checksum_errors);
	return store;
}

static struct json_object *write_back_json(const struct write_back_report *report)
{
	struct json_object *write_back;

	if (report->size_bytes == 0)
		return NULL;
	write_back = json_object_new_object();
	add_number(write_back, "size_bytes", report->size_bytes);
	add_number(write_back, "dirty_bytes", report->dirty_bytes);
	add_number(write_back, "writes", report->writes);
	add_number(write_back, "late_errors", report->late_errors);
	return write_back;
}

static struct json_object *nbd_json(const struct server *server)
{
	struct json_object *nbd = json_object_new_object();
	struct nbd_counters counters = { 0 };

	if (server->nbd != NULL)
		nbd_get_counters(server->nbd, &counters);
	json_object_object_add(nbd, "socket", server->nbd_path == NULL ? NULL : json_object_new_string(server->nbd_path));
	add_number(nbd, "connections", counters.connections_now);
	add_number(nbd, "connections_total", counters.connections_total);
	add_number(nbd, "requests", counters.requests);
	add_number(nbd, "bytes_received", counters.bytes_received);
	add_number(nbd, "bytes_sent", counters.bytes_sent);
	add_number(nbd, "protocol_errors", counters.protocol_errors);
	return nbd;
}

static struct json_object *status_json(const struct server *server)
{
	struct json_object *status = list_json(server), *memory = json_object_new_object();
	struct volume_report report;

	volume_report(server->volume, &report);
	if (status == NULL) {
		json_object_put(memory);
		return NULL;
	}
	json_object_object_add(status, "health",
			       json_object_new_string(report.unprotected ? "BROKEN: writes are not preserved" :
						      report.stuck	 ? "writes wait for room" :
									   "good"));
	json_object_object_add(status, "unprotected", json_object_new_boolean(report.unprotected));
	json_object_object_add(status, "stuck", json_object_new_boolean(report.stuck));
	json_object_object_add(status, "on_full", json_object_new_string(report.on_full));
	json_object_object_add(status, "requests", requests_json(&report));
	json_object_object_add(status, "copies", copies_json(&report));
	json_object_object_add(status, "store_io", store_io_json(&report));
	json_object_object_add(status, "copy_latency", latency_json(&report.copy_ns));
	json_object_object_add(status, "commit_latency", latency_json(&report.commit_ns));
	json_object_object_add(status, "pause", latency_json(&report.pause_ns));
	json_object_object_add(status, "write_back", write_back_json(&report.write_back));
	json_object_object_add(status, "nbd", nbd_json(server));
	add_number(memory, "map_bytes", report.map_bytes);
	add_number(memory, "buffer_bytes", report.buffer_bytes + report.write_back.size_bytes + arena_bytes(server->arena));
	add_number(memory, "buffer_bytes_used", arena_bytes_used(server->arena));
	json_object_object_add(status, "memory", memory);
	return status;
}

/* ---- operations ---- */

static struct json_object *snapshot_result(const struct server *server, const struct pending *pending)
{
	struct json_object *list = list_json(server), *snapshots = cmd_json_get(list, "snapshots"), *found = NULL;

	for (size_t i = 0; i < json_object_array_length(snapshots); i++) {
		struct json_object *one = json_object_array_get_idx(snapshots, i);

		if (strcmp(cmd_json_text(one, "name"), pending->name) == 0)
			found = json_object_get(one);
	}
	json_object_put(list);
	return found;
}

static struct json_object *drop_result(const struct pending *pending, const char *state)
{
	struct json_object *result = json_object_new_object();

	json_object_object_add(result, "name", json_object_new_string(pending->name));
	json_object_object_add(result, "store", json_object_new_string(pending->store));
	json_object_object_add(result, "state", json_object_new_string(state));
	json_object_object_add(result, "parts", pending->parts == NULL ? NULL : json_object_get(pending->parts));
	return result;
}

static void pending_free(struct pending *pending)
{
	list_remove(&pending->link);
	free(pending->store);
	json_object_put(pending->parts);
	free(pending);
}

static void reply_snapshot(const struct pending *pending)
{
	struct json_object *result = snapshot_result(pending->server, pending);

	if (result != NULL)
		reply_result(pending->client, result);
	else
		reply_error(pending->client, pending->name, "was taken, and somebody has dropped it already");
}

static void pending_done(struct operation *operation, int error)
{
	struct pending *pending = operation->context;

	if (error == 0 && !pending->is_drop && !pending->is_extend && server_has_devices(pending->server)) {
		pending->taken = true; /* server_finish_pending() goes on */
		return;
	}
	if (pending->client != NULL && error != 0)
		reply_error(pending->client, operation->complaint.what, operation->complaint.why);
	else if (pending->client != NULL && pending->is_drop)
		reply_result(pending->client, drop_result(pending, "dropped"));
	else if (pending->client != NULL)
		reply_snapshot(pending);
	pending_free(pending);
}

void server_finish_pending(struct server *server)
{
	list_for_each_safe(link, &server->pending) {
		struct pending *pending = container_of(link, struct pending, link);

		if (!pending->taken || !server_device_is_settled(server, pending->name))
			continue;
		if (pending->client != NULL)
			reply_snapshot(pending);
		pending_free(pending);
	}
}

static void pending_begun(struct operation *operation)
{
	struct pending *pending = operation->context;

	if (!pending->background || pending->client == NULL)
		return;
	reply_result(pending->client, drop_result(pending, "dropping"));
	pending->client = NULL;
}

/* Returns a new pending operation, or answers with an error and returns NULL. */
static struct pending *pending_new(struct server *server, struct control_client *client, const char *name,
				   const char *store)
{
	struct pending *pending = calloc(1, sizeof(*pending));

	if (pending != NULL)
		pending->store = strdup(store);
	if (pending == NULL || pending->store == NULL) {
		free(pending);
		reply_error(client, name, "out of memory");
		return NULL;
	}
	pending->server = server;
	pending->client = client;
	(void)snprintf(pending->name, sizeof(pending->name), "%s", name);
	pending->operation.done = pending_done;
	pending->operation.begun = pending_begun;
	pending->operation.context = pending;
	list_append(&server->pending, &pending->link);
	return pending;
}

/* An absolute path that is not on what we serve; else that is answered. */
static bool is_good_path(const struct server *server, struct control_client *client, struct json_object *request)
{
	const char *store = cmd_json_text(request, "store");

	if (store[0] != '/') {
		reply_error(client, store, "is not an absolute path");
		return false;
	}
	if ((server->fuse_path != NULL && strncmp(store, server->fuse_path, strlen(server->fuse_path)) == 0 &&
	     store[strlen(server->fuse_path)] == '/') ||
	    (server->dm_user != NULL && dm_user_owns(server->dm_user, cmd_json_number(request, "store_device")))) {
		reply_error(client, store, "lies on this server's own export: it would wait for itself");
		return false;
	}
	return true;
}

static void request_extend(struct server *server, struct control_client *client, struct json_object *request)
{
	const char *name = cmd_json_text(request, "name"), *store = cmd_json_text(request, "store");
	bool join = cmd_json_get(request, "store") != NULL;
	uint64_t size_bytes = cmd_json_number(request, "size");
	struct pending *pending;

	if (!name_is_valid(name)) {
		reply_error(client, name, "no such snapshot");
		return;
	}
	if (join && !is_good_path(server, client, request))
		return;
	if (!join && size_bytes == 0) {
		reply_error(client, name, "neither a store nor a size was given");
		return;
	}
	pending = pending_new(server, client, name, store);
	if (pending == NULL)
		return;
	pending->is_extend = true;
	volume_extend(server->volume, &pending->operation, name, join ? store : NULL, size_bytes);
}

static void request_snapshot(struct server *server, struct control_client *client, struct json_object *request)
{
	const char *name = cmd_json_text(request, "name"), *store = cmd_json_text(request, "store");
	struct pending *pending;

	if (!name_is_valid(name)) {
		reply_error(client, name, "is no snapshot name: 1 to 63 of A-Za-z0-9._-, not starting with - or ., not 'origin'");
		return;
	}
	if (!is_good_path(server, client, request))
		return;
	pending = pending_new(server, client, name, store);
	if (pending != NULL)
		volume_snapshot(server->volume, &pending->operation, name, store);
}

/* A snapshot whose device is mounted stays. */
static void device_asked(struct loopdev_question *question, int error, const char *text)
{
	struct pending *pending = container_of(question, struct pending, question);

	if (error == 0) {
		volume_drop(pending->server->volume, &pending->operation, pending->name, pending->forget_older);
		return;
	}
	if (pending->client != NULL)
		reply_error(pending->client, pending->name, text);
	pending_free(pending);
}

static void request_drop(struct server *server, struct control_client *client, struct json_object *request)
{
	const char *name = cmd_json_text(request, "name"), *store = "";
	struct snapshot_report report;
	struct json_object *parts = NULL;
	struct pending *pending;

	if (!name_is_valid(name)) {
		reply_error(client, name, "no such snapshot");
		return;
	}
	for (size_t i = 0; i < volume_snapshot_count(server->volume); i++) {
		volume_report_snapshot(server->volume, i, &report);
		if (strcmp(report.name, name) != 0 || report.store == NULL)
			continue;
		store = report.store;
		parts = json_object_new_array();
		for (uint32_t part = 0; part < report.part_count; part++)
			json_object_array_add(parts, json_object_new_string(report.parts[part].store));
	}
	pending = pending_new(server, client, name, store);
	if (pending == NULL) {
		json_object_put(parts);
		return;
	}
	pending->parts = parts;
	pending->is_drop = true;
	pending->background = json_object_get_boolean(cmd_json_get(request, "background"));
	pending->forget_older = json_object_get_boolean(cmd_json_get(request, "forget_older"));
	pending->question = (struct loopdev_question){ .answered = device_asked, .name = pending->name };
	if (server->loopdev != NULL)
		loopdev_ask(server->loopdev, &pending->question);
	else
		device_asked(&pending->question, 0, "");
}

static void request_stop(struct server *server, struct control_client *client, struct json_object *request)
{
	struct stop_client *stop = calloc(1, sizeof(*stop));

	if (stop == NULL) {
		reply_error(client, "", "out of memory");
		return;
	}
	stop->client = client;
	list_append(&server->stop_clients, &stop->link);
	server_begin_stop(server, json_object_get_boolean(cmd_json_get(request, "force")));
	if (server->waiting_text[0] != '\0')
		server_send_waiting(server);
}

static void request_list(struct server *server, struct control_client *client)
{
	struct json_object *list = list_json(server);

	if (list == NULL) {
		reply_error(client, "", "out of memory");
		return;
	}
	/* for `snapshot`, which may have to format a store, and must not take one that lies on what we serve */
	add_number(list, "block_bytes", volume_block_bytes(server->volume));
	json_object_object_add(list, "fuse",
			       server->fuse_path == NULL ? NULL : json_object_new_string(server->fuse_path));
	reply_result(client, list);
}

static void control_request(void *context, struct control_client *client, struct json_object *request)
{
	struct server *server = context;
	const char *command = cmd_json_text(request, "command");

	if (strcmp(command, "list") == 0 && !server->quiescing)
		request_list(server, client);
	else if (strcmp(command, "status") == 0 && !server->quiescing)
		reply_result(client, status_json(server));
	else if (server->stopping && strcmp(command, "stop") != 0)
		reply_error(client, "", "the server is stopping");
	else if (strcmp(command, "snapshot") == 0)
		request_snapshot(server, client, request);
	else if (strcmp(command, "extend") == 0)
		request_extend(server, client, request);
	else if (strcmp(command, "drop") == 0)
		request_drop(server, client, request);
	else if (strcmp(command, "stop") == 0)
		request_stop(server, client, request);
	else
		reply_error(client, command, "is not a command of this server");
}

static void control_closed(void *context, struct control_client *client)
{
	struct server *server = context;

	list_for_each(link, &server->pending) {
		struct pending *pending = container_of(link, struct pending, link);

		if (pending->client == client)
			pending->client = NULL;
	}
	list_for_each_safe(link, &server->stop_clients) {
		struct stop_client *stop = container_of(link, struct stop_client, link);

		if (stop->client != client)
			continue;
		list_remove(&stop->link);
		free(stop);
	}
}

const struct control_ops server_control_ops = { control_request, control_closed };

void server_send_progress(struct server *server)
{
	list_for_each(link, &server->pending) {
		struct pending *pending = container_of(link, struct pending, link);
		struct snapshot_report report;

		for (size_t i = 0; pending->is_drop && pending->client != NULL &&
				   i < volume_snapshot_count(server->volume); i++) {
			struct json_object *message, *progress;

			volume_report_snapshot(server->volume, i, &report);
			if (strcmp(report.name, pending->name) != 0 || !report.folding)
				continue;
			message = json_object_new_object();
			progress = json_object_new_object();
			add_number(progress, "done", report.fold_done);
			add_number(progress, "total", report.fold_total);
			json_object_object_add(message, "progress", progress);
			control_reply(pending->client, message);
		}
	}
}

void server_send_waiting(struct server *server)
{
	list_for_each(link, &server->stop_clients) {
		struct stop_client *stop = container_of(link, struct stop_client, link);
		struct json_object *message = json_object_new_object(), *progress = json_object_new_object();

		json_object_object_add(progress, "waiting", json_object_new_string(server->waiting_text));
		json_object_object_add(message, "progress", progress);
		control_reply(stop->client, message);
	}
}

void server_end_pending(struct server *server)
{
	struct list *link;

	while ((link = list_pop(&server->pending)) != NULL) {
		struct pending *pending = container_of(link, struct pending, link);

		if (pending->client != NULL)
			reply_error(pending->client, pending->name, "the server has stopped; the next start goes on with it");
		pending_free(pending);
	}
}

void server_answer_stops(struct server *server)
{
	struct list *link;

	while ((link = list_pop(&server->stop_clients)) != NULL) {
		struct stop_client *stop = container_of(link, struct stop_client, link);

		if (server->exit_code == EXIT_DONE || server->stop.complaint.why[0] == '\0')
			reply_result(stop->client, json_object_new_object());
		else
			reply_error(stop->client, server->stop.complaint.what, server->stop.complaint.why);
		free(stop);
	}
}
