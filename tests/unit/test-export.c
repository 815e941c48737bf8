/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The table of exports: names, watchers, and the moment an owner may free one. And sockets at paths. */
#include "io/request.h"
#include "io/socket.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/unit.h"

struct owned {
	struct export export;
	unsigned submitted, released;
};

static void submit(struct request *request)
{
	container_of(request->export, struct owned, export)->submitted++;
	request->complete(request, 0);
}

static void released(struct export *export)
{
	container_of(export, struct owned, export)->released++;
}

static const struct export_ops ops = { .submit = submit, .released = released };

static void owned_init(struct owned *owned, const char *name)
{
	*owned = (struct owned){ .export = { .ops = &ops } };
	(void)snprintf(owned->export.name, sizeof(owned->export.name), "%s", name);
}

struct ear {
	struct export_watcher watcher;
	unsigned added, removed;
	struct export *closes; /* when it is removed */
	bool leaves;
};

static void ear_added(struct export_watcher *watcher, struct export *export)
{
	struct ear *ear = watcher->context;

	(void)export;
	ear->added++;
}

static void ear_removed(struct export_watcher *watcher, struct export *export)
{
	struct ear *ear = watcher->context;

	ear->removed += export->gone;
	if (ear->closes == export)
		export_close(export);
	if (ear->leaves)
		list_remove(&watcher->link);
}

static void ear_init(struct ear *ear, struct export_table *table)
{
	*ear = (struct ear){ .watcher = { .added = ear_added, .removed = ear_removed } };
	ear->watcher.context = ear;
	list_append(&table->watchers, &ear->watcher.link);
}

static void test_find(void)
{
	struct export_table table;
	struct owned origin, snap;

	export_table_init(&table);
	owned_init(&origin, "origin");
	owned_init(&snap, "snap");
	check("an empty table has nothing", !export_find(&table, "") && !export_find(&table, "origin"));
	export_add(&table, &origin.export);
	export_add(&table, &snap.export);
	check("an export is found by its name", export_find(&table, "snap") == &snap.export);
	check("the empty name is the origin", export_find(&table, "") == &origin.export);
	check("other names are not there", !export_find(&table, "sna") && !export_find(&table, "snap2"));
	check("they are in the order they were added",
	      table.exports.next == &origin.export.link && table.exports.previous == &snap.export.link);
	export_remove(&table, &snap.export);
	check("a removed export is not found", !export_find(&table, "snap") && export_find(&table, ""));
	export_remove(&table, &origin.export);
}

static void test_references(void)
{
	struct export_table table;
	struct owned unused, used;
	struct ear ear;

	export_table_init(&table);
	owned_init(&unused, "unused");
	owned_init(&used, "used");
	export_add(&table, &unused.export);
	export_add(&table, &used.export);
	export_open(&used.export);
	export_open(&used.export);
	export_close(&used.export);
	export_close(&used.export);
	check("without references, an export in the table is not released", used.released == 0);
	export_open(&used.export);
	export_remove(&table, &unused.export);
	check("one that nobody uses is released when it is removed", unused.released == 1);
	export_remove(&table, &used.export);
	check("one that is used is not", used.released == 0 && used.export.gone);
	export_close(&used.export);
	check("but when the last reference is given back, once", used.released == 1);

	owned_init(&used, "used");
	ear_init(&ear, &table);
	export_add(&table, &used.export);
	export_open(&used.export);
	ear.closes = &used.export;
	export_remove(&table, &used.export);
	check("also when a watcher gives it back while it is told", used.released == 1);
}

static void test_watchers(void)
{
	struct export_table table;
	struct owned owned;
	struct ear first, second;
	struct export_watcher deaf = { 0 };

	export_table_init(&table);
	owned_init(&owned, "owned");
	ear_init(&first, &table);
	list_append(&table.watchers, &deaf.link);
	ear_init(&second, &table);
	first.leaves = true;
	export_add(&table, &owned.export);
	check("watchers hear of what is added", first.added == 1 && second.added == 1);
	export_remove(&table, &owned.export);
	check("and of what is removed, when it is gone already", first.removed == 1 && second.removed == 1);
	export_add(&table, &owned.export);
	export_remove(&table, &owned.export);
	check("a watcher may leave while it is told", first.removed == 1 && second.removed == 2);
}

static void count_complete(struct request *request, int error)
{
	*(int *)request->context = error == 0 ? 1 : -1;
}

static void test_submit(void)
{
	struct owned owned;
	int completed = 0;
	struct request request = { .export = &owned.export, .complete = count_complete, .context = &completed };

	owned_init(&owned, "owned");
	export_submit(&request);
	check("a request goes to its export's owner", owned.submitted == 1 && completed == 1);
}

static void test_listen(const char *path)
{
	mode_t mask = umask(0);
	int listener = socket_listen(path), connected, accepted;
	struct stat info;

	(void)umask(mask);
	check("a socket is made, mode 0600 whatever the umask",
	      listener >= 0 && stat(path, &info) == 0 && (info.st_mode & 07777) == 0600);
	check("nobody has connected yet", socket_accept(listener) == -EAGAIN);
	connected = socket_connect(path);
	accepted = socket_accept(listener);
	check("we may connect", connected >= 0 && accepted >= 0);
	check("a path where a server answers is in use", socket_listen(path) == -EADDRINUSE);
	check("and still answers then", connected >= 0 && write(connected, "x", 1) == 1);
	(void)close(connected);
	(void)close(accepted);
	(void)close(listener);
	check("a socket left behind does not answer", socket_connect(path) == -ECONNREFUSED);
	listener = socket_listen(path);
	check("and is replaced", listener >= 0);
	(void)close(listener);
	(void)unlink(path);
}

static void test_listen_errors(const char *path)
{
	char long_path[200];
	FILE *file = fopen(path, "w");

	if (file)
		(void)fclose(file);
	check("a file at the path is left alone", socket_listen(path) == -EEXIST && access(path, F_OK) == 0);
	(void)unlink(path);
	check("a path without a folder is an error", socket_listen("/nonexistent/socket") == -ENOENT);
	memset(long_path, 'x', sizeof(long_path) - 1);
	long_path[sizeof(long_path) - 1] = '\0';
	check("a path that is too long is refused",
	      socket_listen(long_path) == -ENAMETOOLONG && socket_connect(long_path) == -ENAMETOOLONG);
	check("nothing at the path: nobody to connect to", socket_connect(path) == -ENOENT);
}

/* A child that is another user connects (the socket is opened up for it); only root can become one. */
static void test_other_user(const char *folder, const char *path)
{
	int listener, accepted = -EAGAIN, status = 1;
	pid_t child;

	if (geteuid() != 0)
		return;
	listener = socket_listen(path);
	if (chmod(folder, 0711) != 0 || chmod(path, 0666) != 0)
		return;
	child = fork();
	if (child == 0) {
		int fd = setuid(65534) == 0 ? socket_connect(path) : -1;
		char byte;

		_exit(fd >= 0 && read(fd, &byte, 1) == 0 ? 0 : 1);
	}
	for (unsigned i = 0; i < 500 && accepted == -EAGAIN; i++) {
		accepted = socket_accept(listener);
		(void)usleep(10000);
	}
	check("another user's process is turned away",
	      accepted == -EPERM && waitpid(child, &status, 0) == child && status == 0);
	(void)close(listener);
	(void)unlink(path);
}

int main(void)
{
	char folder[] = "/tmp/test-export.XXXXXX";
	char path[64];

	test_find();
	test_references();
	test_watchers();
	test_submit();
	if (!mkdtemp(folder))
		return 1;
	(void)snprintf(path, sizeof(path), "%s/socket", folder);
	test_listen(path);
	test_listen_errors(path);
	test_other_user(folder, path);
	(void)rmdir(folder);
	return unit_done();
}
