/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The real disks: files on the disk's file system and on tmpfs, loop devices with both sector sizes (as root), what the
 * kernel refuses or cuts short, locks, limits. Each content test keeps a model in memory and compares with it.
 */
#include <errno.h>
#include <fcntl.h>
#include <libaio.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "io/disk.h"
#include "tests/unit/loopdev.h"
#include "tests/unit/unit.h"

#define KIB ((size_t)1024)
#define MIB (KIB * KIB)
#define PATH_BYTES 256u

/* ---- libaio's calls, with a hand in between: what the kernel may answer but seldom does. ---- */

static struct {
	bool no_context;         /* io_setup: none left */
	unsigned again_count;    /* io_submit: this many times EAGAIN */
	bool no_dsync;           /* io_submit: RWF_DSYNC is unknown */
	bool no_fdsync;          /* io_submit: IO_CMD_FDSYNC is unknown */
	size_t short_bytes;      /* io_submit: transfers are cut to this */
	unsigned submits, dsyncs;
	struct iovec cut[64];    /* for short_bytes: one request at a time */
} shim;

int io_setup(int count, io_context_t *context)
{
	if (shim.no_context)
		return -EAGAIN;
	return syscall(SYS_io_setup, count, context) < 0 ? -errno : 0;
}

int io_submit(io_context_t context, long count, struct iocb **batch)
{
	struct iocb *first = batch[0];
	const bool is_sync = first->aio_lio_opcode == IO_CMD_FDSYNC;
	long submitted;

	if (shim.again_count > 0) {
		shim.again_count--;
		return -EAGAIN;
	}
	if ((shim.no_dsync && !is_sync && first->aio_rw_flags != 0) || (shim.no_fdsync && is_sync))
		return -EINVAL;
	if (shim.short_bytes > 0 && !is_sync) {
		shim.cut[0] = *(const struct iovec *)first->u.c.buf;
		if (shim.cut[0].iov_len > shim.short_bytes)
			shim.cut[0].iov_len = shim.short_bytes;
		first->u.c.buf = shim.cut;
		first->u.c.nbytes = 1;
		count = 1;
	}
	submitted = syscall(SYS_io_submit, context, count, batch);
	if (submitted < 0)
		return -errno;
	shim.submits += (unsigned)submitted;
	for (long i = 0; i < submitted; i++)
		shim.dsyncs += batch[i]->aio_lio_opcode != IO_CMD_FDSYNC && batch[i]->aio_rw_flags != 0;
	return (int)submitted;
}

/* ---- Helpers. ---- */

static uint64_t random_state = 88172645463325252u;

static uint64_t random_next(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state;
}

static uint64_t random_below(uint64_t limit)
{
	return random_next() % limit;
}

static void fill_random(uint8_t *bytes, size_t count)
{
	for (size_t i = 0; i < count; i++)
		bytes[i] = (uint8_t)(random_next() >> 24);
}

static void *get_buffer(size_t bytes)
{
	void *buffer = aligned_alloc(4096, (bytes + 4095) & ~(size_t)4095);

	if (!buffer)
		abort();
	return buffer;
}

static bool is_zero(const uint8_t *bytes, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		if (bytes[i] != 0)
			return false;
	}
	return true;
}

static void skip(const char *text, const char *why)
{
	unit_count++;
	printf("ok %u - %s # SKIP %s\n", unit_count, text, why);
	(void)fflush(stdout);
}

/* Checks whose text begins with what they were run on. */
static void check_on(const char *where, const char *text, bool ok)
{
	char line[256];

	(void)snprintf(line, sizeof(line), "%s: %s", where, text);
	check(line, ok);
}

static void make_path(char path[static PATH_BYTES], const char *folder, const char *name)
{
	const int length = snprintf(path, PATH_BYTES, "%s/%s", folder, name);

	if (length < 0 || (size_t)length >= PATH_BYTES)
		abort();
}

static bool make_file(const char *path, off_t bytes)
{
	const int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	const bool ok = fd >= 0 && ftruncate(fd, bytes) == 0;

	if (fd >= 0)
		(void)close(fd);
	return ok;
}

struct waited {
	struct disk_io io;
	unsigned done_count;
	int error;
};

static void waited_done(struct disk_io *io, int error)
{
	struct waited *waited = io->context;

	waited->done_count++;
	waited->error = error;
}

static int run(struct disk_host *host, struct waited *waited)
{
	waited->io.done = waited_done;
	waited->io.context = waited;
	waited->done_count = 0;
	disk_submit(&waited->io);
	if (waited->done_count != 0)
		return -EPROTO;
	while (waited->done_count == 0)
		disk_host_wait(host);
	return waited->done_count == 1 ? waited->error : -EPROTO;
}

static int run_op(struct disk_host *host, struct disk *disk, enum disk_op op, unsigned flags, uint64_t offset,
		  uint64_t length)
{
	struct waited waited = { .io = { .disk = disk, .op = op, .flags = flags, .offset = offset, .length = length } };

	return run(host, &waited);
}

static int run_write(struct disk_host *host, struct disk *disk, unsigned flags, void *buffer, size_t bytes,
		     uint64_t offset)
{
	struct waited waited = { .io = { .disk = disk,
					 .op = DISK_WRITE,
					 .flags = flags,
					 .offset = offset,
					 .length = bytes,
					 .single = { .iov_base = buffer, .iov_len = bytes } } };

	return run(host, &waited);
}

static uint64_t size_of(const struct disk *disk)
{
	struct disk_info info;

	disk_get_info(disk, &info);
	return info.size_bytes;
}

/* ---- Content against a model. ---- */

#define MODEL_BYTES (MIB)
#define MODEL_IO_MAX (96 * KIB)

struct model {
	struct disk_host *host;
	struct disk *disk;
	uint64_t bytes_max; /* the range that is used */
	uint8_t *content, *buffer;
};

/* Sector-aligned, page-aligned or anything, in about equal parts. */
static void random_range(const struct model *model, uint64_t *offset, uint64_t *length)
{
	static const uint64_t units[] = { 1, 512, 4096 };
	const uint64_t unit = units[random_below(3)];

	*length = (1 + random_below(MODEL_IO_MAX / unit)) * unit;
	*offset = random_below((model->bytes_max - *length) / unit + 1) * unit;
}

/* Cuts a buffer into pieces; some of them at odd places. */
static unsigned random_vectors(struct iovec iov[static 8], uint8_t *buffer, uint64_t length)
{
	const uint64_t unit = random_below(4) == 0 ? 1 : 512;
	unsigned count = 0;

	while (length > 0) {
		uint64_t piece = (1 + random_below(16 * KIB / unit)) * unit;

		if (piece > length || count == 7)
			piece = length;
		iov[count].iov_base = buffer;
		iov[count++].iov_len = (size_t)piece;
		buffer += piece;
		length -= piece;
	}
	return count;
}

static bool model_step(struct model *model)
{
	struct waited waited = { .io = { .disk = model->disk } };
	struct disk_io *io = &waited.io;
	uint8_t *start = model->buffer + (random_below(4) == 0 ? 8 : 0);
	struct iovec iov[8];
	int error;

	random_range(model, &io->offset, &io->length);
	io->flags = random_below(8) == 0 ? DISK_FUA : 0;
	io->iov = iov;
	io->iov_count = random_vectors(iov, start, io->length);
	switch (random_below(8)) {
	case 0:
	case 1:
	case 2:
		io->op = DISK_WRITE;
		fill_random(start, (size_t)io->length);
		memcpy(model->content + io->offset, start, (size_t)io->length);
		return run(model->host, &waited) == 0;
	case 3:
		io->op = DISK_ZERO;
		io->flags |= random_below(2) ? DISK_NO_HOLE : 0;
		memset(model->content + io->offset, 0, (size_t)io->length);
		return run(model->host, &waited) == 0;
	case 4:
		io->op = DISK_DISCARD;
		error = run(model->host, &waited);
		if (error != 0 && error != -EOPNOTSUPP)
			return false;
		/* Undefined now: define it. */
		return disk_read_wait(model->host, model->disk, model->content + io->offset, (size_t)io->length,
				      io->offset) == 0;
	default:
		io->op = DISK_READ;
		memset(start, 0x5a, (size_t)io->length);
		return run(model->host, &waited) == 0 &&
		       memcmp(start, model->content + io->offset, (size_t)io->length) == 0;
	}
}

/* Random operations, one after the other, on an all-zero disk; then the whole once more by plain reads. */
static void test_model(struct disk_host *host, struct disk *disk, const char *path, const char *where)
{
	struct model model = { .host = host, .disk = disk, .bytes_max = MODEL_BYTES };
	unsigned misses = 0;
	ssize_t got;
	int fd;

	model.content = calloc(1, MODEL_BYTES);
	model.buffer = get_buffer(MODEL_IO_MAX + 4096);
	for (unsigned i = 0; i < 400; i++)
		misses += !model_step(&model);
	check_on(where, "any range, any buffer, any order: reads give what was written", misses == 0);
	check_on(where, "flush", disk_flush_wait(host, disk) == 0);

	fd = open(path, O_RDONLY | O_CLOEXEC);
	misses = 0;
	for (size_t at = 0; at < MODEL_BYTES; at += MODEL_IO_MAX) {
		const size_t want = MODEL_BYTES - at < MODEL_IO_MAX ? MODEL_BYTES - at : MODEL_IO_MAX;

		memset(model.buffer, 0, want); /* a file may be shorter */
		got = pread(fd, model.buffer, want, (off_t)at);
		misses += got < 0 || memcmp(model.buffer, model.content + at, want) != 0;
	}
	check_on(where, "other programs read the same", fd >= 0 && misses == 0);
	(void)close(fd);
	free(model.content);
	free(model.buffer);
}

/* ---- Files. ---- */

static void test_growth(struct disk_host *host, const char *folder, const char *where)
{
	uint8_t *buffer = get_buffer(64 * KIB);
	struct disk_info info;
	struct disk *disk = NULL;
	char path[PATH_BYTES];
	struct stat status;

	make_path(path, folder, "growth");
	check_on(where, "a file is created", disk_open(host, path, DISK_OPEN_CREATE | DISK_OPEN_LOCK, &disk) == 0);
	check_on(where, "... with mode 0600", stat(path, &status) == 0 && (status.st_mode & 07777) == 0600);
	disk_get_info(disk, &info);
	check_on(where, "... empty, writable, with a sane sector size",
		 info.size_bytes == 0 && !info.read_only && !info.is_device && info.sector_bytes >= 512 &&
			 info.sector_bytes <= 4096);
	printf("# %s: sectors of %u bytes, %s\n", where, info.sector_bytes, info.is_direct ? "direct" : "buffered");

	memset(buffer, 0xaa, 64 * KIB);
	check_on(where, "an empty file reads as zeroes",
		 disk_read_wait(host, disk, buffer, 64 * KIB, 4096) == 0 && is_zero(buffer, 64 * KIB));
	memset(buffer, 0x11, 64 * KIB);
	check_on(where, "a write past the end grows the file",
		 disk_write_wait(host, disk, buffer, 64 * KIB, 64 * KIB) == 0 && size_of(disk) == 128 * KIB);
	check_on(where, "an odd write past the end grows it to the byte",
		 disk_write_wait(host, disk, buffer, 100, 128 * KIB) == 0 && size_of(disk) == 128 * KIB + 100 &&
			 stat(path, &status) == 0 && status.st_size == (off_t)(128 * KIB + 100));
	memset(buffer, 0xaa, 64 * KIB);
	check_on(where, "a read across the end gives data, then zeroes",
		 disk_read_wait(host, disk, buffer, 4096, 128 * KIB) == 0 && buffer[0] == 0x11 && buffer[99] == 0x11 &&
			 is_zero(buffer + 100, 4096 - 100));
	memset(buffer, 0xaa, 64 * KIB);
	check_on(where, "... also with an odd range",
		 disk_read_wait(host, disk, buffer + 1, 999, 128 * KIB + 50) == 0 && buffer[50] == 0x11 &&
			 buffer[0] == 0xaa && buffer[1000] == 0xaa && is_zero(buffer + 51, 949));
	check_on(where, "zeroing never grows a file",
		 run_op(host, disk, DISK_ZERO, 0, 128 * KIB, 64 * KIB) == 0 &&
			 run_op(host, disk, DISK_ZERO, DISK_NO_HOLE, 64 * KIB, 256 * KIB) == 0 &&
			 stat(path, &status) == 0 && status.st_size == (off_t)(128 * KIB + 100));
	check_on(where, "allocation grows it",
		 run_op(host, disk, DISK_ALLOCATE, 0, 0, 256 * KIB) == 0 && size_of(disk) == 256 * KIB &&
			 stat(path, &status) == 0 && status.st_size == (off_t)(256 * KIB) &&
			 status.st_blocks >= 512);
	check_on(where, "nothing takes no time, and works",
		 disk_read_wait(host, disk, buffer, 0, 5) == 0 &&
			 disk_write_wait(host, disk, buffer, 0, 1 << 30) == 0 && size_of(disk) == 256 * KIB);
	check_on(where, "offsets beyond all sense are refused",
		 disk_read_wait(host, disk, buffer, 4096, UINT64_MAX - 4095) == -EINVAL &&
			 disk_write_wait(host, disk, buffer, 4096, INT64_MAX & ~INT64_C(4095)) == -EINVAL);
	disk_close(disk);
	free(buffer);
}

static bool extents_are(const struct waited *waited, const struct disk_extent *wanted, unsigned count)
{
	if (waited->io.extents_count != count)
		return false;
	for (unsigned i = 0; i < count; i++) {
		if (waited->io.extents[i].length != wanted[i].length || waited->io.extents[i].hole != wanted[i].hole)
			return false;
	}
	return true;
}

static void test_extents(struct disk_host *host, const char *folder, const char *where)
{
	static const struct disk_extent whole[] = { { MIB, true }, { 64 * KIB, false }, { MIB - 64 * KIB, true } };
	static const struct disk_extent part[] = { { 512, false }, { 4096, true } };
	struct disk_extent extents[8] = { 0 };
	struct waited waited = { .io = { .op = DISK_EXTENTS, .extents = extents, .extents_max = 8 } };
	uint8_t *buffer = get_buffer(64 * KIB);
	char path[PATH_BYTES];
	struct stat status;

	make_path(path, folder, "extents");
	make_file(path, (off_t)(2 * MIB - 4096));
	if (disk_open(host, path, 0, &waited.io.disk) < 0)
		abort();
	memset(buffer, 1, 64 * KIB);
	check_on(where, "a sparse file", disk_write_wait(host, waited.io.disk, buffer, 64 * KIB, MIB) == 0);
	waited.io.length = 2 * MIB;
	check_on(where, "... tells data and holes, what is past its end too",
		 run(host, &waited) == 0 && extents_are(&waited, whole, 3));
	waited.io.extents_max = 2;
	check_on(where, "... as many as there is room for", run(host, &waited) == 0 && extents_are(&waited, whole, 2));
	waited.io.offset = MIB + 64 * KIB - 512;
	waited.io.length = 512 + 4096;
	check_on(where, "... within the range asked for", run(host, &waited) == 0 && extents_are(&waited, part, 2));
	check_on(where, "... zeroing it keeps its space where that is asked for",
		 run_op(host, waited.io.disk, DISK_ZERO, DISK_NO_HOLE, MIB, 64 * KIB) == 0 &&
			 stat(path, &status) == 0 && status.st_blocks >= 128);
	check_on(where, "... and holes where it was zeroed",
		 run_op(host, waited.io.disk, DISK_ZERO, 0, MIB, 64 * KIB) == 0 &&
			 (waited.io.offset = 0, waited.io.length = 2 * MIB, run(host, &waited)) == 0 &&
			 waited.io.extents_count == 1 && waited.io.extents[0].hole && stat(path, &status) == 0 &&
			 status.st_blocks < 128);
	disk_close(waited.io.disk);
	free(buffer);
}

/* Sizes that are no multiple of a page, or of a sector. */
static void test_odd_sizes(struct disk_host *host, const char *folder, const char *where)
{
	static const size_t sizes[] = { 1536, 10000, 7680, 1 };
	uint8_t *buffer = get_buffer(16 * KIB), *back = get_buffer(16 * KIB);
	unsigned misses = 0;

	for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		const size_t size = sizes[i];
		char path[PATH_BYTES];
		struct disk *disk;
		struct stat status;

		make_path(path, folder, "odd");
		make_file(path, (off_t)size);
		if (disk_open(host, path, 0, &disk) < 0)
			abort();
		fill_random(buffer, 16 * KIB);
		memset(back, 0x77, 16 * KIB);
		misses += disk_write_wait(host, disk, buffer, size, 0) != 0;
		misses += disk_read_wait(host, disk, back, 12 * KIB, 0) != 0;
		misses += memcmp(back, buffer, size) != 0 || !is_zero(back + size, 12 * KIB - size);
		misses += disk_flush_wait(host, disk) != 0;
		misses += stat(path, &status) < 0 || status.st_size != (off_t)size;
		disk_close(disk);
	}
	check_on(where, "files of odd sizes are written and read to the last byte, and keep their size", misses == 0);
	free(buffer);
	free(back);
}

static void test_read_only(struct disk_host *host, const char *folder, const char *where)
{
	uint8_t *buffer = get_buffer(4096);
	struct disk_info info;
	struct disk *disk;
	char path[PATH_BYTES];

	make_path(path, folder, "read-only");
	make_file(path, 8192);
	if (disk_open(host, path, DISK_OPEN_READ_ONLY, &disk) < 0)
		abort();
	disk_get_info(disk, &info);
	memset(buffer, 0, 4096);
	check_on(where, "a file opened read-only says so and can be read",
		 info.read_only && disk_read_wait(host, disk, buffer, 4096, 0) == 0);
	check_on(where, "... and everything that would change it fails with EROFS",
		 disk_write_wait(host, disk, buffer, 4096, 0) == -EROFS &&
			 disk_write_wait(host, disk, buffer, 7, 3) == -EROFS &&
			 run_op(host, disk, DISK_ZERO, 0, 0, 4096) == -EROFS &&
			 run_op(host, disk, DISK_DISCARD, 0, 0, 4096) == -EROFS &&
			 run_op(host, disk, DISK_ALLOCATE, 0, 0, 4096) == -EROFS);
	check_on(where, "... but a flush does not", disk_flush_wait(host, disk) == 0);
	disk_close(disk);
	free(buffer);
}

static void test_folder(struct disk_host *host, const char *folder, const char *where)
{
	struct disk *disk = NULL;
	char path[PATH_BYTES];

	test_growth(host, folder, where);
	test_extents(host, folder, where);
	test_odd_sizes(host, folder, where);
	test_read_only(host, folder, where);
	make_path(path, folder, "model");
	check_on(where, "an image", make_file(path, MODEL_BYTES / 2) && disk_open(host, path, 0, &disk) == 0);
	test_model(host, disk, path, where);
	disk_close(disk);
}

/* ---- Opening. ---- */

static void test_open(struct disk_host *host, const char *folder)
{
	struct disk *disk = NULL, *other = NULL;
	char path[PATH_BYTES], link_path[PATH_BYTES];

	make_path(path, folder, "pipe");
	check("a FIFO is refused, at once", mkfifo(path, 0600) == 0 && disk_open(host, path, 0, &disk) == -ENOTBLK);
	check("so is a folder", disk_open(host, folder, DISK_OPEN_READ_ONLY, &disk) == -ENOTBLK);
	check("so is a character device", disk_open(host, "/dev/zero", 0, &disk) == -ENOTBLK);
	make_path(path, folder, "missing");
	check("a missing file gives ENOENT", disk_open(host, path, 0, &disk) == -ENOENT);
	check("read-only creation makes no sense",
	      disk_open(host, path, DISK_OPEN_READ_ONLY | DISK_OPEN_CREATE, &disk) == -EINVAL);
	check("creation works once", disk_open(host, path, DISK_OPEN_CREATE, &disk) == 0 &&
					     disk_open(host, path, DISK_OPEN_CREATE, &other) == -EEXIST);
	make_path(link_path, folder, "link");
	check("a file is the same by another name", link(path, link_path) == 0 &&
							    disk_open(host, link_path, 0, &other) == 0 &&
							    disk_is_same(disk, other));
	disk_close(other);
	make_path(path, folder, "different");
	check("... and another file is not", disk_open(host, path, DISK_OPEN_CREATE, &other) == 0 &&
						     !disk_is_same(disk, other));
	disk_close(other);
	disk_close(disk);
	disk_close(NULL);
}

/* What a process of its own gets when it opens `path`. */
static int open_elsewhere(const char *path, unsigned flags)
{
	const pid_t child = fork();
	int status = 0;

	if (child == 0) {
		struct disk_host *host;
		struct disk *disk;
		int error = disk_host_create(4, &host);

		if (error == 0)
			error = disk_open(host, path, flags, &disk);
		_exit(-error);
	}
	if (child < 0 || waitpid(child, &status, 0) < 0 || !WIFEXITED(status))
		return -ECHILD;
	return -WEXITSTATUS(status);
}

static void test_locks(struct disk_host *host, const char *path, const char *where, bool is_device)
{
	struct disk *disk = NULL, *other = NULL;

	check_on(where, "a lock is taken", disk_open(host, path, DISK_OPEN_LOCK, &disk) == 0);
	check_on(where, "... the same process cannot take it again",
		 disk_open(host, path, DISK_OPEN_LOCK, &other) == -EBUSY);
	check_on(where, "... another process can't either", open_elsewhere(path, DISK_OPEN_LOCK) == -EBUSY);
	check_on(where, "... not even to read", open_elsewhere(path, DISK_OPEN_LOCK | DISK_OPEN_READ_ONLY) == -EBUSY);
	check_on(where, "... who asks for no lock may open it", open_elsewhere(path, DISK_OPEN_READ_ONLY) == 0);
	disk_close(disk);
	check_on(where, "... and with the disk it goes", open_elsewhere(path, DISK_OPEN_LOCK) == 0);
	if (is_device)
		return;
	disk = NULL;
	check_on(where, "readers share a lock",
		 disk_open(host, path, DISK_OPEN_LOCK | DISK_OPEN_READ_ONLY, &disk) == 0 &&
			 open_elsewhere(path, DISK_OPEN_LOCK | DISK_OPEN_READ_ONLY) == 0 &&
			 open_elsewhere(path, DISK_OPEN_LOCK) == -EBUSY);
	disk_close(disk);
}

/* ---- Many at once. ---- */

#define MANY 600u
#define PIECE_BYTES (16 * KIB)

struct crowd {
	struct waited waited[MANY];
	uint8_t *buffers, *expected;
};

/* False when a request was done before it was waited for. */
static bool crowd_submit(struct crowd *crowd, struct disk *disk, enum disk_op op)
{
	unsigned early = 0;

	for (unsigned i = 0; i < MANY; i++) {
		struct waited *waited = &crowd->waited[i];
		/* Each in a range of its own; every fourth is not aligned, every 16th durable. */
		const uint64_t odd = i % 4 == 3 ? 1 + i % 300 : 0;

		*waited = (struct waited){ .io = { .disk = disk,
						   .op = op,
						   .flags = op == DISK_WRITE && i % 16 == 0 ? DISK_FUA : 0,
						   .offset = i * PIECE_BYTES + odd,
						   .length = PIECE_BYTES - 2 * odd,
						   .done = waited_done } };
		waited->io.context = waited;
		waited->io.single.iov_base = crowd->buffers + i * PIECE_BYTES + odd;
		waited->io.single.iov_len = (size_t)waited->io.length;
		disk_submit(&waited->io);
	}
	for (unsigned i = 0; i < MANY; i++)
		early += crowd->waited[i].done_count;
	return early == 0;
}

static bool crowd_wait(struct crowd *crowd, struct disk_host *host)
{
	unsigned wrong = 0, at = 0;

	while (at < MANY) {
		if (crowd->waited[at].done_count == 0)
			disk_host_wait(host);
		else
			at++;
	}
	for (unsigned i = 0; i < MANY; i++)
		wrong += crowd->waited[i].done_count != 1 || crowd->waited[i].error != 0;
	return wrong == 0;
}

/* Many more than may be in flight; reads, syncs and writes of other places at the same time. */
static void test_crowd(struct disk_host *host, const char *folder, const char *where)
{
	struct crowd *crowd = calloc(1, sizeof(*crowd)), *readers = calloc(1, sizeof(*readers));
	const size_t bytes = MANY * PIECE_BYTES;
	struct disk *disk, *other;
	char path[PATH_BYTES], other_path[PATH_BYTES];
	bool ok;

	if (!crowd || !readers)
		abort();
	make_path(path, folder, "crowd");
	make_path(other_path, folder, "crowd-2");
	make_file(path, (off_t)(bytes / 2));
	make_file(other_path, (off_t)bytes);
	if (disk_open(host, path, 0, &disk) < 0 || disk_open(host, other_path, 0, &other) < 0)
		abort();
	crowd->buffers = get_buffer(bytes);
	crowd->expected = get_buffer(bytes);
	readers->buffers = get_buffer(bytes);
	fill_random(crowd->buffers, bytes);
	memcpy(crowd->expected, crowd->buffers, bytes);
	memset(readers->buffers, 0xff, bytes);
	ok = crowd_submit(crowd, disk, DISK_WRITE);
	ok = crowd_submit(readers, other, DISK_READ) && ok;
	ok = crowd_wait(crowd, host) && ok;
	ok = crowd_wait(readers, host) && ok;
	check_on(where, "hundreds of reads and writes at once: each done once, none early, none failed", ok);
	ok = true;
	for (unsigned i = 0; i < MANY; i++)
		ok = ok && is_zero(readers->waited[i].io.single.iov_base, readers->waited[i].io.single.iov_len);
	check_on(where, "... the reads read their own disk", ok);
	memset(crowd->buffers, 0, bytes);
	ok = crowd_submit(crowd, disk, DISK_READ);
	ok = crowd_wait(crowd, host) && ok;
	for (unsigned i = 0; i < MANY; i++) {
		const struct disk_io *io = &crowd->waited[i].io;

		ok = ok && memcmp(io->single.iov_base, crowd->expected + io->offset, (size_t)io->length) == 0;
	}
	check_on(where, "... and what was written is read back", ok);
	disk_close(disk);
	disk_close(other);
	free(crowd->buffers);
	free(crowd->expected);
	free(readers->buffers);
	free(crowd);
	free(readers);
	(void)unlink(path);
	(void)unlink(other_path);
}

/* A request in more pieces than one system call of a worker takes. */
static void test_many_vectors(struct disk_host *host, const char *folder)
{
	struct waited waited = { .io = { .op = DISK_WRITE, .iov_count = DISK_IOV_MAX } };
	uint8_t *buffer = get_buffer(DISK_IOV_MAX * KIB), *back = get_buffer(DISK_IOV_MAX * KIB);
	struct iovec iov[DISK_IOV_MAX];
	char path[PATH_BYTES];
	uint64_t bytes = 0;
	bool ok = true;

	make_path(path, folder, "vectors");
	make_file(path, (off_t)(DISK_IOV_MAX * KIB));
	if (disk_open(host, path, 0, &waited.io.disk) < 0)
		abort();
	fill_random(buffer, DISK_IOV_MAX * KIB);
	for (unsigned odd = 0; odd < 2; odd++) {
		bytes = 0;
		for (unsigned i = 0; i < DISK_IOV_MAX; i++) {
			iov[i].iov_base = buffer + bytes;
			iov[i].iov_len = odd ? 1 + i : KIB;
			bytes += iov[i].iov_len;
		}
		waited.io.iov = iov;
		waited.io.length = bytes;
		ok = ok && run(host, &waited) == 0 &&
		     disk_read_wait(host, waited.io.disk, back, (size_t)bytes, 0) == 0 &&
		     memcmp(back, buffer, (size_t)bytes) == 0;
	}
	check("a request may have DISK_IOV_MAX buffers, aligned or not", ok);
	disk_close(waited.io.disk);
	free(buffer);
	free(back);
}

static void test_readiness(struct disk_host *host, const char *folder)
{
	struct pollfd ready = { .fd = disk_host_fd(host), .events = POLLIN };
	struct waited waited[3] = { 0 };
	uint8_t *buffer = get_buffer(4096);
	char path[PATH_BYTES];
	struct disk *disk;

	make_path(path, folder, "ready");
	make_file(path, 4096);
	if (disk_open(host, path, 0, &disk) < 0)
		abort();
	check("an idle host's descriptor is not readable, once it was polled", disk_host_poll(host) == 0 &&
									       poll(&ready, 1, 0) == 0);
	waited[0].io = (struct disk_io){ .disk = disk, .op = DISK_READ, .length = 4096 };
	waited[0].io.single = (struct iovec){ .iov_base = buffer, .iov_len = 4096 };
	waited[1].io = (struct disk_io){ .disk = disk, .op = DISK_FLUSH };
	waited[2].io = (struct disk_io){ .disk = disk, .op = DISK_ALLOCATE, .length = 4096 };
	for (unsigned i = 0; i < 3; i++) {
		waited[i].io.done = waited_done;
		waited[i].io.context = &waited[i];
		disk_submit(&waited[i].io);
		disk_host_push(host);
		check("it is when a request is complete, however it was done", poll(&ready, 1, 10000) == 1);
		check("... polling tells of it, once", disk_host_poll(host) == 1 && waited[i].done_count == 1 &&
							       waited[i].error == 0 && disk_host_poll(host) == 0);
	}
	(void)poll(&ready, 1, 0); /* a signal may come a moment after what it stands for */
	(void)disk_host_poll(host);
	disk_close(disk);
	free(buffer);
}

/* ---- What the kernel may answer. ---- */

static void test_refusals(struct disk_host *host, const char *folder)
{
	uint8_t *buffer = get_buffer(64 * KIB), *back = get_buffer(64 * KIB);
	struct disk_info info;
	char path[PATH_BYTES];
	struct disk *disk;

	make_path(path, folder, "refusals");
	make_file(path, 64 * KIB);
	if (disk_open(host, path, 0, &disk) < 0)
		abort();
	disk_get_info(disk, &info);
	if (!info.is_direct) {
		skip("what io_submit may answer", "no direct I/O here");
		goto out;
	}
	fill_random(buffer, 64 * KIB);
	shim.submits = 0;
	shim.dsyncs = 0;
	check("an aligned durable write takes the direct path, with FUA",
	      run_write(host, disk, DISK_FUA, buffer, 64 * KIB, 0) == 0 && shim.submits == 1 && shim.dsyncs == 1);
	shim.short_bytes = 4096;
	memset(back, 0, 64 * KIB);
	check("a short read is continued", disk_read_wait(host, disk, back, 64 * KIB, 0) == 0 &&
						    memcmp(back, buffer, 64 * KIB) == 0);
	fill_random(buffer, 64 * KIB);
	check("a short write is continued", run_write(host, disk, DISK_FUA, buffer, 64 * KIB, 0) == 0);
	shim.short_bytes = 0;
	check("... to its end", disk_read_wait(host, disk, back, 64 * KIB, 0) == 0 &&
					 memcmp(back, buffer, 64 * KIB) == 0);
	shim.again_count = 1;
	check("EAGAIN with nothing in flight does not hang", disk_read_wait(host, disk, back, 4096, 4096) == 0 &&
								      memcmp(back, buffer + 4096, 4096) == 0);
	shim.again_count = 1;
	check("... nor does it fail a flush", disk_flush_wait(host, disk) == 0);
	shim.no_dsync = true;
	for (unsigned i = 0; i < 2; i++) {
		fill_random(buffer, 64 * KIB);
		check("without RWF_DSYNC a durable write is a write and a sync",
		      run_write(host, disk, DISK_FUA, buffer, 64 * KIB, 0) == 0 &&
			      disk_read_wait(host, disk, back, 64 * KIB, 0) == 0 &&
			      memcmp(back, buffer, 64 * KIB) == 0);
	}
	shim.no_dsync = false;
	shim.no_fdsync = true;
	check("without IO_CMD_FDSYNC a worker flushes",
	      disk_flush_wait(host, disk) == 0 && disk_flush_wait(host, disk) == 0);
	shim.no_fdsync = false;
out:
	disk_close(disk);
	free(buffer);
	free(back);
}

static void test_again_in_a_crowd(const char *folder)
{
	struct disk_host *host;

	if (disk_host_create(8, &host) < 0)
		abort();
	shim.again_count = 100;
	test_crowd(host, folder, "8 in flight, EAGAIN now and then");
	shim.again_count = 0;
	disk_host_destroy(host);
}

static void test_without_aio(const char *folder)
{
	struct disk_host *host = NULL;

	shim.no_context = true;
	check("a host starts where the kernel has no aio context left", disk_host_create(32, &host) == 0);
	shim.no_context = false;
	test_crowd(host, folder, "without aio");
	test_folder(host, folder, "without aio");
	disk_host_destroy(host);
}

/* ---- Limits. ---- */

static void test_file_size_limit(struct disk_host *host, const char *folder)
{
	struct rlimit before, limit;
	uint8_t *buffer = get_buffer(64 * KIB);
	char path[PATH_BYTES];
	struct disk *disk;

	make_path(path, folder, "limit");
	make_file(path, 256 * KIB);
	memset(buffer, 3, 64 * KIB);
	if (disk_open(host, path, 0, &disk) < 0 || getrlimit(RLIMIT_FSIZE, &before) < 0)
		abort();
	limit = before;
	limit.rlim_cur = 128 * KIB;
	if (setrlimit(RLIMIT_FSIZE, &limit) < 0)
		abort();
	check("past the limit of a file's size, a write gives EFBIG and does not kill us",
	      disk_write_wait(host, disk, buffer, 64 * KIB, 512 * KIB) == -EFBIG &&
		      disk_write_wait(host, disk, buffer, 33, 512 * KIB) == -EFBIG &&
		      disk_write_wait(host, disk, buffer, 64 * KIB, 192 * KIB) == -EFBIG);
	check("... so does allocation", run_op(host, disk, DISK_ALLOCATE, 0, 0, 512 * KIB) == -EFBIG);
	check("... and below it all is well", disk_write_wait(host, disk, buffer, 64 * KIB, 0) == 0);
	(void)setrlimit(RLIMIT_FSIZE, &before);
	disk_close(disk);
	free(buffer);
}

static void test_full_file_system(struct disk_host *host, const char *folder)
{
	uint8_t *buffer = get_buffer(64 * KIB);
	char path[PATH_BYTES];
	struct disk *disk;
	int error = 0;

	make_path(path, folder, "full");
	if (disk_open(host, path, DISK_OPEN_CREATE, &disk) < 0)
		abort();
	memset(buffer, 3, 64 * KIB);
	check("a full file system: allocation gives ENOSPC",
	      run_op(host, disk, DISK_ALLOCATE, 0, 0, 16 * MIB) == -ENOSPC);
	for (unsigned i = 0; i < 64 && error == 0; i++)
		error = disk_write_wait(host, disk, buffer, 64 * KIB, (uint64_t)i * 64 * KIB);
	check("... so does a write", error == -ENOSPC);
	check("... and what was written before is there",
	      disk_read_wait(host, disk, buffer, 64 * KIB, 0) == 0 && buffer[0] == 3 && buffer[64 * KIB - 1] == 3);
	disk_close(disk);
	(void)unlink(path);
	free(buffer);
}

/* ---- Devices. ---- */

static void test_device_edges(struct disk_host *host, const char *path, const char *where)
{
	struct disk_extent extents[4] = { 0 };
	struct waited waited = { .io = { .op = DISK_EXTENTS, .extents = extents, .extents_max = 4, .length = MIB } };
	uint8_t *buffer = get_buffer(64 * KIB);
	struct disk *disk;
	uint64_t size;

	if (disk_open(host, path, 0, &disk) < 0)
		abort();
	size = size_of(disk);
	waited.io.disk = disk;
	check_on(where, "a device is all data", run(host, &waited) == 0 && waited.io.extents_count == 1 &&
							 !extents[0].hole && extents[0].length == MIB);
	check_on(where, "... has the space it has",
		 run_op(host, disk, DISK_ALLOCATE, 0, 0, size) == 0 &&
			 run_op(host, disk, DISK_ALLOCATE, 0, size - 4096, 8192) == -ENOSPC);
	check_on(where, "... and an end: no zeroes after it",
		 disk_read_wait(host, disk, buffer, 8192, size - 4096) < 0 &&
			 disk_read_wait(host, disk, buffer, 4096, size) < 0 &&
			 disk_write_wait(host, disk, buffer, 8192, size - 4096) < 0 &&
			 run_op(host, disk, DISK_ZERO, 0, size - 4096, 8192) < 0);
	memset(buffer, 0xee, 64 * KIB);
	check_on(where, "zeroing odd ranges",
		 disk_write_wait(host, disk, buffer, 64 * KIB, 0) == 0 &&
			 run_op(host, disk, DISK_ZERO, DISK_NO_HOLE | DISK_FUA, 100, 20000) == 0 &&
			 run_op(host, disk, DISK_ZERO, 0, 30001, 5) == 0 &&
			 disk_read_wait(host, disk, buffer, 64 * KIB, 0) == 0);
	check_on(where, "... zeroes them and nothing else",
		 buffer[99] == 0xee && is_zero(buffer + 100, 20000) && buffer[20100] == 0xee &&
			 buffer[30000] == 0xee && is_zero(buffer + 30001, 5) && buffer[30006] == 0xee);
	memset(buffer, 0xdd, 64 * KIB);
	check_on(where, "discarding less than a sector changes nothing",
		 disk_write_wait(host, disk, buffer, 4096, 0) == 0 &&
			 run_op(host, disk, DISK_DISCARD, 0, 10, 100) == 0 &&
			 disk_read_wait(host, disk, buffer, 4096, 0) == 0 && buffer[10] == 0xdd);
	disk_close(disk);
	free(buffer);
}

static void test_device(struct disk_host *host, const char *folder, unsigned sector_bytes)
{
	char backing[PATH_BYTES], path[LOOPDEV_PATH_BYTES], where[64];
	struct disk_info info;
	struct disk *disk = NULL, *other = NULL;
	int fd;

	(void)snprintf(where, sizeof(where), "loop device, sectors of %u", sector_bytes);
	make_path(backing, folder, "device");
	make_file(backing, 4 * (off_t)MIB);
	fd = loopdev_attach(backing, sector_bytes, 0, path);
	if (fd < 0) {
		skip(where, strerror(-fd));
		return;
	}
	if (disk_open(host, path, 0, &disk) < 0)
		abort();
	disk_get_info(disk, &info);
	check_on(where, "opened for what it is",
		 info.is_device && !info.read_only && info.size_bytes == 4 * MIB && info.is_direct &&
			 info.sector_bytes >= sector_bytes && info.sector_bytes <= 4096);
	check_on(where, "the device and its backing file differ",
		 disk_open(host, backing, DISK_OPEN_READ_ONLY, &other) == 0 && !disk_is_same(disk, other));
	disk_close(other);
	test_model(host, disk, path, where);
	disk_close(disk);
	test_device_edges(host, path, where);
	test_locks(host, path, where, true);
	(void)close(fd);

	fd = loopdev_attach(backing, sector_bytes, LO_FLAGS_READ_ONLY, path);
	if (fd >= 0 && disk_open(host, path, DISK_OPEN_READ_ONLY, &disk) == 0) {
		disk_get_info(disk, &info);
		check_on(where, "a read-only device says so", info.read_only);
		disk_close(disk);
	}
	if (fd >= 0)
		(void)close(fd);
	(void)unlink(backing);
}

/* A device whose writes fail, because the file system below it is full. */
static void test_failing_device(struct disk_host *host, const char *small_folder)
{
	char backing[PATH_BYTES], path[LOOPDEV_PATH_BYTES];
	uint8_t *buffer = get_buffer(MIB);
	int fd, error = 0;
	struct disk *disk;

	make_path(backing, small_folder, "failing");
	make_file(backing, 8 * (off_t)MIB);
	fd = loopdev_attach(backing, 512, 0, path);
	if (fd < 0) {
		skip("a device that fails", strerror(-fd));
		free(buffer);
		return;
	}
	if (disk_open(host, path, 0, &disk) < 0)
		abort();
	memset(buffer, 9, MIB);
	for (unsigned i = 0; i < 8 && error == 0; i++)
		error = disk_write_wait(host, disk, buffer, MIB, i * MIB);
	printf("# the error is %s\n", strerror(-error));
	check("a device that fails: a direct write tells its error", error < 0);
	error = run_write(host, disk, DISK_FUA, buffer, MIB / 2 - 1, 7 * MIB + 1);
	check("... a durable write through the cache too", error < 0);
	check("... and the flush after it, though a sync has told it already", disk_flush_wait(host, disk) < 0);
	check("... what could be written is there",
	      disk_read_wait(host, disk, buffer, 4096, 0) == 0 && buffer[0] == 9);
	disk_close(disk);
	(void)close(fd);
	(void)unlink(backing);
	free(buffer);
}

static void test_odds(struct disk_host *host)
{
	uint8_t one[600] = { 0 }, two[600] = { 0 };
	const uint64_t before = disk_host_monotonic_ns(host);

	disk_host_random(host, one, sizeof(one));
	disk_host_random(host, two, sizeof(two));
	check("random bytes are", memcmp(one, two, sizeof(one)) != 0 && !is_zero(one + 570, 30));
	check("the clocks go", disk_host_monotonic_ns(host) > before && disk_host_wall_ns(host) > 1600000000000000000u);
}

static void test_set_size(struct disk_host *host, const char *folder)
{
	char path[PATH_BYTES];
	uint8_t page[4096];
	struct disk *disk;
	struct disk_info info;
	struct stat status;

	make_path(path, folder, "sized");
	make_file(path, 4096);
	if (disk_open(host, path, 0, &disk) != 0)
		abort();
	memset(page, 0xaa, sizeof(page));
	check("a file is cut and made longer",
	      disk_write_wait(host, disk, page, sizeof(page), 0) == 0 && disk_set_size(disk, 100) == 0 &&
		      disk_set_size(disk, 1 << 20) == 0 && stat(path, &status) == 0 && status.st_size == 1 << 20);
	disk_get_info(disk, &info);
	check("... and knows it", info.size_bytes == 1 << 20);
	check("... what was cut off is zeroes", disk_read_wait(host, disk, page, sizeof(page), 0) == 0 && page[99] == 0xaa &&
							is_zero(page + 100, sizeof(page) - 100));
	disk_close(disk);
}

/* A file that was truncated beneath us: direct and buffered, what lies behind its end now fails, and it does not grow. */
static void test_fixed_size(struct disk_host *host, const char *folder)
{
	static const uint64_t ends[] = { MIB, 300 * KIB, 300 * KIB + 100 };
	uint8_t *buffer = get_buffer(64 * KIB);
	char path[PATH_BYTES];
	struct disk *disk;

	make_path(path, folder, "fixed");
	if (!make_file(path, MIB) || disk_open(host, path, DISK_OPEN_FIXED, &disk) != 0)
		abort();
	fill_random(buffer, 64 * KIB);
	for (unsigned i = 0; i < 3; i++) {
		const uint64_t end = ends[i], inside = end / 4096 * 4096 - 4096;
		struct stat status;
		bool is_good;

		if (truncate(path, (off_t)end) != 0)
			abort();
		is_good = run_write(host, disk, 0, buffer, 4096, inside) == 0 &&
			  disk_read_wait(host, disk, buffer, 4096, inside) == 0 &&
			  run_write(host, disk, DISK_FUA, buffer, 100, inside + 7) == 0 &&
			  run_op(host, disk, DISK_ZERO, 0, inside, 4096) == 0 && run_op(host, disk, DISK_FLUSH, 0, 0, 0) == 0;
		check("fixed size: before the file's end all is as ever", is_good);
		is_good = run_write(host, disk, 0, buffer, 64 * KIB, inside) == -EIO &&
			  run_write(host, disk, 0, buffer, 4096, MIB) == -EIO &&
			  run_write(host, disk, 0, buffer, 5, end - 1) == -EIO &&
			  disk_read_wait(host, disk, buffer, 64 * KIB, inside) == -EIO &&
			  disk_read_wait(host, disk, buffer, 4096, MIB) == -EIO &&
			  disk_read_wait(host, disk, buffer, 2, end - 1) == -EIO &&
			  run_op(host, disk, DISK_ZERO, 0, inside, 64 * KIB) == -EIO;
		check("fixed size: behind it all fails", is_good);
		check("fixed size: and the file is as long as before",
		      stat(path, &status) == 0 && (uint64_t)status.st_size == end);
	}
	if (truncate(path, MIB) != 0)
		abort();
	check("fixed size: when it has its length again, it reads as zeroes there",
	      disk_read_wait(host, disk, buffer, 4096, MIB - 4096) == 0 && is_zero(buffer, 4096) &&
		      run_write(host, disk, 0, buffer, 4096, MIB - 4096) == 0);
	disk_close(disk);
	free(buffer);
}

static void test_small(const char *folder)
{
	char small[PATH_BYTES];
	struct disk_host *host;

	make_path(small, folder, "small");
	/* A mount namespace of our own: whatever happens to us, nothing stays mounted. */
	if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
	    mkdir(small, 0700) < 0 || mount("none", small, "tmpfs", 0, "size=2m") < 0) {
		skip("a full file system", strerror(errno));
		skip("a device that fails", strerror(errno));
		return;
	}
	/* A host of its own: the others have learned from the shim not to flush by aio. */
	if (disk_host_create(64, &host) < 0)
		abort();
	test_full_file_system(host, small);
	test_failing_device(host, small);
	disk_host_destroy(host);
	(void)umount2(small, MNT_DETACH);
	(void)rmdir(small);
}

static void remove_folder(const char *folder)
{
	static const char *const names[] = {
		"growth", "extents", "odd",   "read-only", "model",   "pipe", "missing", "link",  "vectors",   "ready",
		"limit",  "lock",    "crowd", "device",    "crowd-2", "full", "failing", "refusals", "different",
	};
	char path[PATH_BYTES];

	for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		make_path(path, folder, names[i]);
		(void)unlink(path);
	}
	(void)rmdir(folder);
}

static bool make_folder(char folder[static PATH_BYTES], const char *parent)
{
	(void)snprintf(folder, PATH_BYTES, "%s/rowsnap-test-disk.XXXXXX", parent);
	return mkdtemp(folder) != NULL;
}

int main(void)
{
	const char *parent = getenv("TMPDIR");
	char folder[PATH_BYTES], memory_folder[PATH_BYTES], path[PATH_BYTES];
	struct disk_host *host;

	if (!make_folder(folder, parent ? parent : "/tmp") || disk_host_create(64, &host) < 0)
		abort();
	test_open(host, folder);
	test_folder(host, folder, "disk");
	make_path(path, folder, "lock");
	make_file(path, 4096);
	test_locks(host, path, "file", false);
	test_crowd(host, folder, "64 in flight");
	test_many_vectors(host, folder);
	test_readiness(host, folder);
	test_file_size_limit(host, folder);
	test_odds(host);
	test_set_size(host, folder);
	test_fixed_size(host, folder);
	test_refusals(host, folder);
	test_again_in_a_crowd(folder);
	if (make_folder(memory_folder, "/dev/shm")) {
		test_folder(host, memory_folder, "tmpfs");
		remove_folder(memory_folder);
	} else {
		skip("files on tmpfs", strerror(errno));
	}
	test_device(host, folder, 512);
	test_device(host, folder, 4096);
	test_small(folder);
	disk_host_destroy(host);
	remove_folder(folder);
	if (!make_folder(folder, parent ? parent : "/tmp"))
		abort();
	test_without_aio(folder);
	remove_folder(folder);
	return unit_done();
}
