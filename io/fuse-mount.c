/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The mount point before (and, when somebody aborted the connection, after) it is ours.
 *
 * Nothing here may wait for the server of a mount that is found there, since that may be one that hangs: statx() with
 * AT_STATX_DONT_SYNC answers for a mount's root from the kernel's memory, and tells which mount it is. Only of a mount
 * that /proc/self/mountinfo calls fuse.rowsnap it is asked whether it is dead: then the kernel itself says ENOTCONN.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "io/cleanup.h"
#include "io/fuse-files.h"
#include "io/log.h"

#define FUSERMOUNT "fusermount3"
#define FUSERMOUNT_PATH "/usr/bin/" FUSERMOUNT /* where libfuse looks first */
#define DEAD_MOUNTS_MAX 16                     /* one on top of the other */

extern char **environ;

/* Whether the mount of this id is a FUSE mount of rowsnap's. */
static bool is_own_mount(uint64_t mount_id)
{
	FILE *file = fopen("/proc/self/mountinfo", "re");
	auto_free char *line = NULL;
	size_t room = 0;
	bool own = false;

	if (!file)
		return false;
	/* "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue" */
	while (!own && getline(&line, &room, file) > 0) {
		const char *type = strstr(line, " - ");

		own = strtoull(line, NULL, 10) == mount_id && type && strncmp(type + 3, "fuse.rowsnap ", 13) == 0;
	}
	(void)fclose(file);
	return own;
}

static bool is_dead(const char *directory)
{
	auto_close int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	return fd < 0 && errno == ENOTCONN;
}

/* Without root that needs fusermount3's help. */
static int unmount_lazily(const char *directory)
{
	char program[] = FUSERMOUNT, unmount[] = "-u", lazily[] = "-z", quietly[] = "-q", end[] = "--";
	char target[PATH_MAX];
	char *words[] = { program, unmount, lazily, quietly, end, target, NULL };
	pid_t child = 0;
	int error, status = -1;

	if (umount2(directory, MNT_DETACH) == 0)
		return 0;
	if (errno != EPERM)
		return -errno;
	if (strlen(directory) >= sizeof(target))
		return -ENAMETOOLONG;
	memcpy(target, directory, strlen(directory) + 1);
	error = -posix_spawn(&child, FUSERMOUNT_PATH, NULL, NULL, words, environ);
	if (error != 0)
		error = -posix_spawnp(&child, FUSERMOUNT, NULL, NULL, words, environ);
	if (error != 0)
		return error;
	while (waitpid(child, &status, 0) < 0)
		if (errno != EINTR)
			return -errno;
	return status == 0 ? 0 : -EPERM;
}

static bool is_dot(const char *name)
{
	return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

static int check_empty(const char *directory)
{
	auto_close int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	union {
		struct dirent64 entry;
		char bytes[4096];
	} buffer;
	ssize_t got;

	if (fd < 0)
		return -errno;
	while ((got = getdents64(fd, &buffer, sizeof(buffer))) > 0) {
		const struct dirent64 *entry;

		for (ssize_t at = 0; at < got; at += entry->d_reclen) {
			entry = (const struct dirent64 *)(const void *)(buffer.bytes + at);
			if (!is_dot(entry->d_name))
				return -ENOTEMPTY;
		}
	}
	return got == 0 ? 0 : -errno;
}

int fusefs_mount_point_prepare(const char *directory)
{
	const int flags = AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT;
	struct statx about;
	int error;

	for (int i = 0; i < DEAD_MOUNTS_MAX; i++) {
		memset(&about, 0, sizeof(about));
		if (statx(AT_FDCWD, directory, flags, STATX_TYPE | STATX_MNT_ID, &about) != 0)
			return -errno;
		if (!S_ISDIR(about.stx_mode))
			return -ENOTDIR;
		if (!(about.stx_attributes & STATX_ATTR_MOUNT_ROOT))
			return check_empty(directory);
		if (!(about.stx_mask & STATX_MNT_ID) || !is_own_mount(about.stx_mnt_id) || !is_dead(directory))
			return -EBUSY;
		error = unmount_lazily(directory);
		if (error != 0)
			return -EBUSY;
		log_notice("fuse: unmounted '%s', which a server that is dead now had left mounted", directory);
	}
	return -EBUSY;
}

static bool has_fusermount(void)
{
	const char *folder = getenv("PATH");
	char path[PATH_MAX];

	if (access(FUSERMOUNT_PATH, X_OK) == 0)
		return true;
	while (folder) {
		size_t length = strcspn(folder, ":");

		if (length < sizeof(path) - sizeof("/" FUSERMOUNT)) {
			memcpy(path, folder, length);
			memcpy(path + length, "/" FUSERMOUNT, sizeof("/" FUSERMOUNT));
			if (access(path, X_OK) == 0)
				return true;
		}
		folder = folder[length] == ':' ? folder + length + 1 : NULL;
	}
	return false;
}

int fusefs_mount_failure(const char *directory)
{
	auto_close int fd = -1;

	if (geteuid() != 0 && !has_fusermount())
		return -ENOTSUP;
	fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return -ENODEV;
	return access(directory, W_OK) == 0 ? -EPERM : -EACCES;
}
