/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * FUSE: names, attributes, opening and closing.
 *
 *	/              0700
 *	  origin       0600
 *	  snapshots/   0700
 *	    NAME       0400, or 0600 where the export can be written
 *
 * Names and attributes are given to the kernel with a lifetime of 0: it asks each time, and so sees at once which
 * snapshots there are. (The other way, long lifetimes and notifications of changes, would have us call into the kernel
 * and wait there for inode locks; who holds these may be waiting for us.) Only the attributes of what is read-only
 * never change, and last.
 *
 * Caching. What can be written is opened for direct I/O, since other transports write to it too: a page cache in
 * between would go stale, and pages waiting to be written back would be missing from snapshots. What is read-only
 * never changes, and no number is ever used again for another snapshot: it goes through the page cache, with read-ahead
 * and mmap(), and what is cached stays there when the file is opened again.
 *
 * A file whose export is gone has no name any more. Who still has it open gets ESTALE; the export is given back as soon
 * as no request of it is under way, whoever has the file open.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "io/fuse-files.h"

#define IO_BYTES_PREFERRED 131072
#define READ_ONLY_ATTRIBUTES_LAST_SECONDS 86400.0
#define DIRECTORY_BYTES_MAX 4096
#define SECOND_NS UINT64_C(1000000000)

static struct timespec now(void)
{
	struct timespec time = { 0 };

	(void)clock_gettime(CLOCK_REALTIME, &time);
	return time;
}

static bool is_origin(const struct fusefs_node *node)
{
	return strcmp(node->name, "origin") == 0;
}

struct fusefs_node *fusefs_node(fuse_ino_t number)
{
	return number <= FUSEFS_SNAPSHOTS ? NULL : (struct fusefs_node *)(uintptr_t)number;
}

int fusefs_node_add(struct fusefs *fusefs, struct export *export)
{
	struct fusefs_node *node = calloc(1, sizeof(*node));

	if (!node)
		return -ENOMEM;
	node->fusefs = fusefs;
	node->export = export;
	memcpy(node->name, export->name, sizeof(node->name));
	node->serial = ++fusefs->serial_last;
	node->size_bytes = export->size_bytes;
	node->read_only = export->read_only;
	node->changed.tv_sec = (time_t)(export->created_ns / SECOND_NS);
	node->changed.tv_nsec = (long)(export->created_ns % SECOND_NS);
	list_append(&fusefs->nodes, &node->link);
	export_open(export);
	fusefs->changed = now();
	return 0;
}

void fusefs_node_remove(struct fusefs *fusefs, const struct export *export)
{
	list_for_each_safe(link, &fusefs->nodes) {
		struct fusefs_node *node = container_of(link, struct fusefs_node, link);

		if (node->export != export)
			continue;
		list_remove(&node->link);
		list_append(&fusefs->ghosts, &node->link);
		fusefs->changed = now();
		fusefs_node_settle(node);
		return;
	}
}

void fusefs_node_settle(struct fusefs_node *node)
{
	bool ended = node->fusefs->unmounted;

	if (node->requests > 0)
		return;
	if (node->export && (node->export->gone || ended)) {
		export_close(node->export);
		node->export = NULL;
	}
	if (!node->export && (node->lookups == 0 || ended)) {
		list_remove(&node->link);
		free(node);
	}
}

void fusefs_nodes_settle(struct fusefs *fusefs)
{
	list_for_each_safe(link, &fusefs->nodes)
		fusefs_node_settle(container_of(link, struct fusefs_node, link));
	list_for_each_safe(ghost, &fusefs->ghosts)
		fusefs_node_settle(container_of(ghost, struct fusefs_node, link));
}

/* ---- attributes ---- */

static void folder_attributes(const struct fusefs *fusefs, fuse_ino_t number, struct stat *attributes)
{
	*attributes = (struct stat){
		.st_ino = number,
		.st_mode = S_IFDIR | 0700,
		.st_nlink = number == FUSEFS_ROOT ? 3 : 2,
		.st_uid = geteuid(),
		.st_gid = getegid(),
		.st_mtim = number == FUSEFS_ROOT ? fusefs->started : fusefs->changed,
	};
	attributes->st_ctim = attributes->st_mtim;
	attributes->st_atim = attributes->st_mtim;
}

static void file_attributes(const struct fusefs_node *node, struct stat *attributes)
{
	*attributes = (struct stat){
		.st_ino = node->serial,
		.st_mode = S_IFREG | (node->read_only ? 0400 : 0600),
		.st_nlink = node->export && !node->export->gone ? 1 : 0,
		.st_uid = geteuid(),
		.st_gid = getegid(),
		.st_size = (off_t)node->size_bytes,
		.st_blksize = IO_BYTES_PREFERRED,
		/* To know this, all would have to be looked at. One too few has cp and tar look for holes; 0 would
		 * have tar take it all for one. */
		.st_blocks = (blkcnt_t)(node->size_bytes / 512 > 1 ? node->size_bytes / 512 - 1 : 1),
		.st_mtim = node->changed,
		.st_ctim = node->changed,
		.st_atim = node->changed,
	};
}

static double attributes_last_seconds(const struct fusefs_node *node)
{
	return node && node->read_only ? READ_ONLY_ATTRIBUTES_LAST_SECONDS : 0;
}

static void attributes_of(const struct fusefs *fusefs, fuse_ino_t number, struct stat *attributes)
{
	const struct fusefs_node *node = fusefs_node(number);

	if (node)
		file_attributes(node, attributes);
	else
		folder_attributes(fusefs, number, attributes);
}

static void op_getattr(fuse_req_t request, fuse_ino_t number, struct fuse_file_info *info)
{
	struct stat attributes;

	(void)info;
	attributes_of(fuse_req_userdata(request), number, &attributes);
	(void)fuse_reply_attr(request, &attributes, attributes_last_seconds(fusefs_node(number)));
}

/* Nothing can be changed. To set the size that it has is no change; many programs do so. */
static void op_setattr(fuse_req_t request, fuse_ino_t number, struct stat *wanted, int what,
		       struct fuse_file_info *info)
{
	const struct fusefs_node *node = fusefs_node(number);
	int times = FUSE_SET_ATTR_ATIME | FUSE_SET_ATTR_MTIME | FUSE_SET_ATTR_ATIME_NOW | FUSE_SET_ATTR_MTIME_NOW |
		    FUSE_SET_ATTR_CTIME;

	if (node && node->read_only)
		(void)fuse_reply_err(request, EROFS);
	else if (!node || !(what & FUSE_SET_ATTR_SIZE) || (what & ~(FUSE_SET_ATTR_SIZE | times)) ||
		 wanted->st_size != (off_t)node->size_bytes)
		(void)fuse_reply_err(request, EPERM);
	else
		op_getattr(request, number, info);
}

static void op_statfs(fuse_req_t request, fuse_ino_t number)
{
	const struct fusefs *fusefs = fuse_req_userdata(request);
	const struct export *origin = export_find(fusefs->exports, "origin");
	struct statvfs about = {
		/* The loop driver makes this the granularity of its discards. */
		.f_bsize = origin ? origin->block_bytes : 4096,
		.f_namemax = sizeof(((struct export *)NULL)->name) - 1,
	};

	(void)number;
	about.f_frsize = about.f_bsize;
	list_for_each(link, &fusefs->nodes) {
		about.f_blocks += container_of(link, struct fusefs_node, link)->size_bytes / about.f_frsize;
		about.f_files++;
	}
	(void)fuse_reply_statfs(request, &about);
}

/* ---- names ---- */

static struct fusefs_node *find_file(const struct fusefs *fusefs, fuse_ino_t folder, const char *name)
{
	list_for_each(link, &fusefs->nodes) {
		struct fusefs_node *node = container_of(link, struct fusefs_node, link);

		if (is_origin(node) == (folder == FUSEFS_ROOT) && strcmp(node->name, name) == 0)
			return node;
	}
	return NULL;
}

static void op_lookup(fuse_req_t request, fuse_ino_t folder, const char *name)
{
	struct fusefs *fusefs = fuse_req_userdata(request);
	struct fuse_entry_param entry = { .generation = 1 };
	struct fusefs_node *node = find_file(fusefs, folder, name);

	if (node)
		entry.ino = (fuse_ino_t)(uintptr_t)node;
	else if (folder == FUSEFS_ROOT && strcmp(name, "snapshots") == 0)
		entry.ino = FUSEFS_SNAPSHOTS;
	if (entry.ino == 0) {
		(void)fuse_reply_err(request, ENOENT);
		return;
	}
	attributes_of(fusefs, entry.ino, &entry.attr);
	entry.attr_timeout = attributes_last_seconds(node);
	/* Who was interrupted has not got it. */
	if (fuse_reply_entry(request, &entry) == 0 && node)
		node->lookups++;
}

static void op_forget(fuse_req_t request, fuse_ino_t number, uint64_t lookups)
{
	struct fusefs_node *node = fusefs_node(number);

	if (node) {
		node->lookups -= lookups < node->lookups ? lookups : node->lookups;
		fusefs_node_settle(node);
	}
	fuse_reply_none(request);
}

struct listing {
	fuse_req_t request;
	size_t used, room;
	char data[DIRECTORY_BYTES_MAX];
};

/* `next`: where the entry after this one is looked for. False: no room is left. */
static bool list_entry(struct listing *listing, const char *name, uint64_t serial, mode_t type, uint64_t next)
{
	const struct stat about = { .st_ino = serial, .st_mode = type };
	size_t size = fuse_add_direntry(listing->request, listing->data + listing->used, listing->room - listing->used,
					name, &about, (off_t)next);

	if (size > listing->room - listing->used)
		return false;
	listing->used += size;
	return true;
}

/*
 * A place in a folder says what comes next: 0 to 2 what always comes first, from then on the files whose serials are
 * above it. So it stays right whatever comes and goes.
 */
static void list_folder(const struct fusefs *fusefs, struct listing *listing, fuse_ino_t folder, uint64_t place)
{
	bool room = true;

	if (place == 0)
		room = list_entry(listing, ".", folder, S_IFDIR, 1);
	if (room && place <= 1)
		room = list_entry(listing, "..", FUSEFS_ROOT, S_IFDIR, 2);
	if (folder == FUSEFS_ROOT && room && place <= 2)
		room = list_entry(listing, "snapshots", FUSEFS_SNAPSHOTS, S_IFDIR, FUSEFS_FIRST_SERIAL - 1);
	list_for_each(link, &fusefs->nodes) {
		const struct fusefs_node *node = container_of(link, struct fusefs_node, link);

		if (room && node->serial > place && is_origin(node) == (folder == FUSEFS_ROOT))
			room = list_entry(listing, node->name, node->serial, S_IFREG, node->serial);
	}
}

static void op_readdir(fuse_req_t request, fuse_ino_t number, size_t size, off_t place, struct fuse_file_info *info)
{
	struct listing listing = { .request = request };

	(void)info;
	listing.room = size < sizeof(listing.data) ? size : sizeof(listing.data);
	if (fusefs_node(number)) {
		(void)fuse_reply_err(request, ENOTDIR);
		return;
	}
	list_folder(fuse_req_userdata(request), &listing, number, (uint64_t)place);
	(void)fuse_reply_buf(request, listing.data, listing.used);
}

/* ---- open files ---- */

static int open_check(const struct fusefs_node *node, int flags)
{
	if (!node)
		return EISDIR;
	if (!node->export || node->export->gone)
		return ESTALE;
	if (node->read_only && (flags & O_ACCMODE) != O_RDONLY)
		return EROFS;
	if ((flags & O_TRUNC) && node->size_bytes > 0)
		return EPERM;
	return 0;
}

static void op_open(fuse_req_t request, fuse_ino_t number, struct fuse_file_info *info)
{
	struct fusefs *fusefs = fuse_req_userdata(request);
	const struct fusefs_node *node = fusefs_node(number);
	int error = open_check(node, info->flags);

	if (error != 0) {
		(void)fuse_reply_err(request, error);
		return;
	}
	info->direct_io = !node->read_only;
	info->keep_cache = node->read_only;
	info->noflush = 1; /* there is nothing to be written back at close */
	if (fuse_reply_open(request, info) == 0)
		fusefs->counters.files_open++;
}

static void op_release(fuse_req_t request, fuse_ino_t number, struct fuse_file_info *info)
{
	struct fusefs *fusefs = fuse_req_userdata(request);

	(void)number;
	(void)info;
	if (fusefs->counters.files_open > 0)
		fusefs->counters.files_open--;
	(void)fuse_reply_err(request, 0);
}

static void op_flush(fuse_req_t request, fuse_ino_t number, struct fuse_file_info *info)
{
	(void)number;
	(void)info;
	(void)fuse_reply_err(request, 0);
}

static void op_fsyncdir(fuse_req_t request, fuse_ino_t number, int data_only, struct fuse_file_info *info)
{
	(void)number;
	(void)data_only;
	(void)info;
	(void)fuse_reply_err(request, 0);
}

/* ---- what nobody may do here: without these, the answer would be that they do not exist ---- */

static void op_create(fuse_req_t request, fuse_ino_t folder, const char *name, mode_t mode, struct fuse_file_info *info)
{
	(void)folder;
	(void)name;
	(void)mode;
	(void)info;
	(void)fuse_reply_err(request, EPERM);
}

static void op_mknod(fuse_req_t request, fuse_ino_t folder, const char *name, mode_t mode, dev_t device)
{
	(void)device;
	op_create(request, folder, name, mode, NULL);
}

static void op_mkdir(fuse_req_t request, fuse_ino_t folder, const char *name, mode_t mode)
{
	op_create(request, folder, name, mode, NULL);
}

static void op_unlink(fuse_req_t request, fuse_ino_t folder, const char *name)
{
	op_create(request, folder, name, 0, NULL);
}

static void op_symlink(fuse_req_t request, const char *target, fuse_ino_t folder, const char *name)
{
	(void)target;
	op_create(request, folder, name, 0, NULL);
}

static void op_rename(fuse_req_t request, fuse_ino_t folder, const char *name, fuse_ino_t new_folder,
		      const char *new_name, unsigned flags)
{
	(void)new_folder;
	(void)new_name;
	(void)flags;
	op_create(request, folder, name, 0, NULL);
}

static void op_link(fuse_req_t request, fuse_ino_t number, fuse_ino_t folder, const char *name)
{
	(void)number;
	op_create(request, folder, name, 0, NULL);
}

void fusefs_tree_operations(struct fuse_lowlevel_ops *operations)
{
	operations->lookup = op_lookup;
	operations->forget = op_forget;
	operations->getattr = op_getattr;
	operations->setattr = op_setattr;
	operations->statfs = op_statfs;
	operations->readdir = op_readdir;
	operations->open = op_open;
	operations->release = op_release;
	operations->flush = op_flush;
	operations->fsyncdir = op_fsyncdir;
	operations->create = op_create;
	operations->mknod = op_mknod;
	operations->mkdir = op_mkdir;
	operations->unlink = op_unlink;
	operations->rmdir = op_unlink;
	operations->symlink = op_symlink;
	operations->rename = op_rename;
	operations->link = op_link;
}
