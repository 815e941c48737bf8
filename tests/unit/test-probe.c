/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What is on a disk, and who uses it. Signatures are written by mkfs where there is one, else by hand; mounts are made
 * in a mount namespace of our own, and loop devices clear themselves, so that nothing is left behind.
 */
#include "io/probe.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/blkpg.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/loopdev.h"
#include "tests/unit/unit.h"

#define PATH_BYTES 256u
#define DISK_BYTES (4 << 20)

static void skip(const char *text, const char *why)
{
	unit_count++;
	printf("ok %u - %s # SKIP %s\n", unit_count, text, why);
	(void)fflush(stdout);
}

static void make_path(char path[static PATH_BYTES], const char *folder, const char *name)
{
	const int length = snprintf(path, PATH_BYTES, "%s/%s", folder, name);

	if (length < 0 || (size_t)length >= PATH_BYTES)
		abort();
}

static void make_file(const char *path, off_t bytes)
{
	const int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	if (fd < 0 || ftruncate(fd, bytes) < 0)
		abort();
	(void)close(fd);
}

static void write_at(const char *path, const void *bytes, size_t count, off_t offset)
{
	const int fd = open(path, O_RDWR | O_CLOEXEC);

	if (fd < 0 || pwrite(fd, bytes, count, offset) != (ssize_t)count || fsync(fd) < 0)
		abort();
	(void)close(fd);
}

static bool make_ext4(const char *path, const char *label)
{
	char *const arguments[] = { (char *)(uintptr_t) "mkfs.ext4", (char *)(uintptr_t) "-q",
				    (char *)(uintptr_t) "-F",        (char *)(uintptr_t) "-L",
				    (char *)(uintptr_t)label,        (char *)(uintptr_t)path,
				    NULL };
	char *const environment[] = { (char *)(uintptr_t) "PATH=/usr/sbin:/sbin:/usr/bin:/bin", NULL };
	static const char *const programs[] = { "/usr/sbin/mkfs.ext4", "/sbin/mkfs.ext4" };
	int status = 1;
	pid_t child;

	for (unsigned i = 0; i < 2; i++) {
		if (posix_spawn(&child, programs[i], NULL, NULL, arguments, environment) == 0)
			return waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
	}
	return false;
}

/* A swap area, as mkswap makes it for pages of 4 KiB. */
static void make_swap(const char *path)
{
	const uint32_t header[3] = { 1, DISK_BYTES / 4096 - 1, 0 };

	write_at(path, header, sizeof(header), 1024);
	write_at(path, "SWAPSPACE2", 10, 4086);
}

/* A DOS partition table with one Linux partition: 1 MiB from 1 MiB on. */
static void make_table(const char *path)
{
	uint8_t sector[512] = { 0 };
	const uint32_t extent[2] = { 2048, 2048 };

	sector[446 + 4] = 0x83;
	memcpy(sector + 446 + 8, extent, sizeof(extent));
	sector[510] = 0x55;
	sector[511] = 0xaa;
	write_at(path, sector, sizeof(sector), 0);
}

static void test_signatures(const char *folder)
{
	char path[PATH_BYTES], text[PROBE_TEXT_BYTES];
	struct stat status;

	make_path(path, folder, "image");
	make_file(path, 0);
	check("an empty file has no signature", probe_signature(path, text) == 0 && text[0] == '\0');
	check("... nor has one of a byte", truncate(path, 1) == 0 && probe_signature(path, text) == 0);
	check("... nor one of zeroes", truncate(path, DISK_BYTES) == 0 && probe_signature(path, text) == 0);
	make_swap(path);
	check("a swap area is found", probe_signature(path, text) == 1 && strcmp(text, "swap area") == 0);
	make_table(path);
	check("... and a partition table beside it",
	      probe_signature(path, text) == 1 && strstr(text, "swap area") && strstr(text, "dos partition table"));
	check("both are wiped", probe_wipe(path) == 0 && probe_signature(path, text) == 0);
	check("... and the size stays", stat(path, &status) == 0 && status.st_size == DISK_BYTES);
	if (!make_ext4(path, "a\x1b[1mb")) {
		skip("file systems", "mkfs.ext4 is not here");
		return;
	}
	check("a file system is found, its label made harmless",
	      probe_signature(path, text) == 1 && strcmp(text, "ext4 file system labelled 'a?[1mb'") == 0);
	write_at(path, "\xff", 1, 1024 + 1020);
	check("... also when its checksum does not hold", probe_signature(path, text) == 1 && strstr(text, "ext4"));
	check("... and wiped", probe_wipe(path) == 0 && probe_signature(path, text) == 0);
}

static void test_refusals(const char *folder)
{
	char path[PATH_BYTES], text[PROBE_TEXT_BYTES];

	make_path(path, folder, "missing");
	check("a path that is not there gives ENOENT", probe_signature(path, text) == -ENOENT &&
							       probe_wipe(path) == -ENOENT &&
							       probe_busy(path, text) == -ENOENT);
	make_path(path, folder, "pipe");
	check("a FIFO is neither file nor device, and nobody waits for it",
	      mkfifo(path, 0600) == 0 && probe_signature(path, text) == -ENOTBLK && probe_wipe(path) == -ENOTBLK &&
		      probe_busy(path, text) == -ENOTBLK);
	check("nor is a folder", probe_signature(folder, text) == -ENOTBLK && probe_busy(folder, text) == -ENOTBLK);
}

/* A process that holds a lock until its pipe is closed. */
struct locker {
	pid_t pid;
	int pipe_end;
};

static struct locker start_locker(const char *path, int flock_operation)
{
	struct locker locker = { 0 };
	int ready[2], stop[2];
	char byte = 0;

	if (pipe(ready) < 0 || pipe(stop) < 0)
		abort();
	locker.pid = fork();
	if (locker.pid < 0)
		abort();
	if (locker.pid == 0) {
		const int fd = open(path, O_RDWR | O_CLOEXEC);
		struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };

		(void)close(stop[1]);
		if (fd < 0 || (flock_operation ? flock(fd, flock_operation) : fcntl(fd, F_OFD_SETLK, &lock)) < 0)
			_exit(1);
		(void)!write(ready[1], &byte, 1);
		(void)!read(stop[0], &byte, 1);
		_exit(0);
	}
	(void)close(ready[1]);
	(void)close(stop[0]);
	if (read(ready[0], &byte, 1) != 1)
		abort();
	(void)close(ready[0]);
	locker.pipe_end = stop[1];
	return locker;
}

static void stop_locker(const struct locker *locker)
{
	(void)close(locker->pipe_end);
	(void)waitpid(locker->pid, NULL, 0);
}

static void test_locks(const char *folder)
{
	char path[PATH_BYTES], text[PROBE_TEXT_BYTES], wanted[64];
	struct locker locker;
	int fd;

	make_path(path, folder, "locked");
	make_file(path, 4096);
	check("a file nobody uses is not busy", probe_busy(path, text) == 0 && text[0] == '\0');
	locker = start_locker(path, LOCK_EX);
	(void)snprintf(wanted, sizeof(wanted), "locked by process %d (test-", locker.pid);
	check("one that is locked is, and by whom",
	      probe_busy(path, text) == 1 && strncmp(text, wanted, strlen(wanted) - 5) == 0);
	printf("# %s\n", text);
	check("... and may be written to",
	      probe_written(path, text) == 1 && strncmp(text, wanted, strlen(wanted) - 5) == 0);
	stop_locker(&locker);
	check("... until it is unlocked", probe_busy(path, text) == 0 && probe_written(path, text) == 0);
	locker = start_locker(path, LOCK_SH);
	check("a reader's lock counts, too", probe_busy(path, text) == 1);
	check("... but not as one that writes", probe_written(path, text) == 0 && text[0] == '\0');
	stop_locker(&locker);
	locker = start_locker(path, 0);
	check("a lock without an owner is another program's",
	      probe_busy(path, text) == 1 && strcmp(text, "locked by another program") == 0);
	stop_locker(&locker);
	fd = open(path, O_RDWR | O_CLOEXEC);
	check("our own lock is not", fd >= 0 && flock(fd, LOCK_EX) == 0 && probe_busy(path, text) == 0);
	(void)close(fd);
}

static void test_loop(const char *folder)
{
	char path[PATH_BYTES], device[LOOPDEV_PATH_BYTES], text[PROBE_TEXT_BYTES], wanted[64];
	int fd, claim;

	make_path(path, folder, "with (deleted)");
	make_file(path, DISK_BYTES);
	fd = loopdev_attach(path, 512, 0, device);
	if (fd < 0) {
		skip("loop devices", strerror(-fd));
		return;
	}
	(void)snprintf(wanted, sizeof(wanted), "attached to %s", device);
	check("a file behind a loop device is busy, even with an odd name",
	      probe_busy(path, text) == 1 && strcmp(text, wanted) == 0);
	(void)close(fd);

	make_path(path, folder, "backing");
	make_file(path, DISK_BYTES);
	fd = loopdev_attach(path, 512, 0, device);
	if (fd < 0)
		abort();
	(void)snprintf(wanted, sizeof(wanted), "attached to %s", device);
	check("a file behind a loop device is busy", probe_busy(path, text) == 1 && strcmp(text, wanted) == 0);
	check("... and may be written to", probe_written(path, text) == 1 && strcmp(text, wanted) == 0);
	check("... the device itself is not", probe_busy(device, text) == 0 && probe_written(device, text) == 0);
	make_swap(device);
	check("a device's signature is found, and wiped", probe_signature(device, text) == 1 &&
								  probe_wipe(device) == 0 &&
								  probe_signature(device, text) == 0);
	claim = open(device, O_RDONLY | O_EXCL | O_CLOEXEC);
	check("a device that somebody claimed is busy",
	      claim >= 0 && probe_busy(device, text) == 1 && strcmp(text, "in use by another program") == 0);
	check("... and may be written to, for all that is known", probe_written(device, text) == 1);
	check("... unless it was us, with our lock", flock(claim, LOCK_EX) == 0 && probe_busy(device, text) == 0);
	(void)close(claim);
	claim = open(device, O_RDONLY | O_CLOEXEC);
	check("... and it is free again", claim >= 0 && probe_busy(device, text) == 0);
	(void)close(claim);
	(void)close(fd);
	check("... as is the file when the loop is gone", probe_busy(path, text) == 0);
}

static void test_device_locks(const char *folder)
{
	char path[PATH_BYTES], device[LOOPDEV_PATH_BYTES], text[PROBE_TEXT_BYTES];
	struct locker locker;
	int fd;

	make_path(path, folder, "backing");
	make_file(path, DISK_BYTES);
	fd = loopdev_attach(path, 512, 0, device);
	if (fd < 0) {
		skip("locks on devices", strerror(-fd));
		return;
	}
	locker = start_locker(device, LOCK_EX);
	check("a device that is locked is busy", probe_busy(device, text) == 1 && strstr(text, "locked by process"));
	stop_locker(&locker);
	locker = start_locker(device, LOCK_SH);
	check("... but not when udev may be looking at it", probe_busy(device, text) == 0);
	stop_locker(&locker);
	(void)close(fd);
}

static void test_swap(const char *folder)
{
	char path[PATH_BYTES], device[LOOPDEV_PATH_BYTES], text[PROBE_TEXT_BYTES];
	int fd, busy, error;

	make_path(path, folder, "backing");
	make_file(path, DISK_BYTES);
	make_swap(path);
	fd = loopdev_attach(path, 512, 0, device);
	if (fd < 0 || swapon(device, 0) < 0) {
		skip("swap", strerror(fd < 0 ? -fd : errno));
		if (fd >= 0)
			(void)close(fd);
		return;
	}
	busy = probe_busy(device, text);
	error = swapoff(device);
	check("a device that is swapped to is busy", busy == 1 && strcmp(text, "used as swap") == 0);
	check("... and free when it is not", error == 0 && probe_busy(device, text) == 0);
	(void)close(fd);
}

static void test_mount(const char *folder)
{
	char path[PATH_BYTES], mount_point[PATH_BYTES], device[LOOPDEV_PATH_BYTES], text[PROBE_TEXT_BYTES];
	char wanted[PROBE_TEXT_BYTES];
	int fd;

	make_path(path, folder, "backing");
	make_path(mount_point, folder, "a mount");
	make_file(path, DISK_BYTES);
	fd = make_ext4(path, "x") ? loopdev_attach(path, 512, 0, device) : -ENOPKG;
	if (fd < 0 || mkdir(mount_point, 0700) < 0 || mount(device, mount_point, "ext4", 0, NULL) < 0) {
		skip("mounts", strerror(fd < 0 ? -fd : errno));
		if (fd >= 0)
			(void)close(fd);
		return;
	}
	(void)snprintf(wanted, sizeof(wanted), "mounted on %s", mount_point);
	check("a mounted device is busy, and where, with blanks and all",
	      probe_busy(device, text) == 1 && strcmp(text, wanted) == 0);
	printf("# %s\n", text);
	check("... its file, too", probe_busy(path, text) == 1 && strstr(text, "attached to"));
	check("... and it may be written to", probe_written(device, text) == 1 && strcmp(text, wanted) == 0);
	check("mounted read-only it is busy, but not written to",
	      mount(device, mount_point, "ext4", MS_REMOUNT | MS_RDONLY, NULL) == 0 && probe_busy(device, text) == 1 &&
		      probe_written(device, text) == 0);
	(void)umount2(mount_point, 0);
	check("... until it is unmounted", probe_busy(device, text) == 0);
	(void)rmdir(mount_point);
	(void)close(fd);
}

/* Makes the device's node when nobody does that here. */
static bool wait_for_node(const char *path, const char *name)
{
	char number_path[PATH_BYTES], text[32] = "";
	unsigned long major_number, minor_number;
	FILE *file;
	char *end;

	for (unsigned tries = 0; tries < 100; tries++) {
		if (access(path, F_OK) == 0)
			return true;
		(void)usleep(10000);
	}
	(void)snprintf(number_path, sizeof(number_path), "/sys/class/block/%s/dev", name);
	file = fopen(number_path, "re");
	if (!file)
		return false;
	(void)!fgets(text, (int)sizeof(text), file);
	(void)fclose(file);
	major_number = strtoul(text, &end, 10);
	minor_number = strtoul(*end == ':' ? end + 1 : end, NULL, 10);
	return mknod(path, S_IFBLK | 0600, makedev((unsigned)major_number, (unsigned)minor_number)) == 0;
}

static void test_partition(const char *folder)
{
	char path[PATH_BYTES], mount_point[PATH_BYTES], device[LOOPDEV_PATH_BYTES], text[PROBE_TEXT_BYTES];
	char part[LOOPDEV_PATH_BYTES + 8], wanted[PROBE_TEXT_BYTES];
	struct blkpg_partition partition = { .start = 1 << 20, .length = 2 << 20, .pno = 1 };
	struct blkpg_ioctl_arg request = { .op = BLKPG_ADD_PARTITION,
					   .datalen = sizeof(partition),
					   .data = &partition };
	int fd;

	make_path(path, folder, "backing");
	make_path(mount_point, folder, "a mount");
	make_file(path, DISK_BYTES);
	fd = loopdev_attach(path, 512, LO_FLAGS_PARTSCAN, device);
	/* By hand, not from a table: the kernel may know none. */
	if (fd < 0 || ioctl(fd, BLKPG, &request) < 0) {
		skip("partitions", strerror(fd < 0 ? -fd : errno));
		if (fd >= 0)
			(void)close(fd);
		return;
	}
	(void)snprintf(part, sizeof(part), "%sp1", device);
	if (!wait_for_node(part, part + strlen("/dev/")) || !make_ext4(part, "p") || mkdir(mount_point, 0700) < 0 ||
	    mount(part, mount_point, "ext4", 0, NULL) < 0) {
		skip("partitions", "no file system on one");
		(void)close(fd);
		return;
	}
	(void)snprintf(wanted, sizeof(wanted), "its partition %s is mounted on %s", part, mount_point);
	check("a device with a mounted partition is busy", probe_busy(device, text) == 1 && strcmp(text, wanted) == 0);
	(void)umount2(mount_point, 0);
	check("... and is free when that is unmounted", probe_busy(device, text) == 0);
	(void)rmdir(mount_point);
	(void)close(fd);
}

static void remove_folder(const char *folder)
{
	static const char *const names[] = { "image", "missing", "pipe", "locked", "backing", "with (deleted)" };
	char path[PATH_BYTES];

	for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		make_path(path, folder, names[i]);
		(void)unlink(path);
	}
	make_path(path, folder, "a mount");
	(void)rmdir(path);
	(void)rmdir(folder);
}

int main(void)
{
	char folder[] = "/tmp/rowsnap-test-probe.XXXXXX";

	if (!mkdtemp(folder))
		abort();
	test_signatures(folder);
	test_refusals(folder);
	test_locks(folder);
	test_loop(folder);
	test_device_locks(folder);
	test_swap(folder);
	if (unshare(CLONE_NEWNS) == 0 && mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0) {
		test_mount(folder);
		test_partition(folder);
	} else {
		skip("mounts", strerror(errno));
	}
	remove_folder(folder);
	return unit_done();
}
