/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The disk seam: all that the core knows of the outside world. Disks, time and randomness come through here and nowhere
 * else, so a program linked with another implementation (tests/sim-disk.c) is deterministic. disk-aio.c is the real one.
 *
 * Rules an implementation keeps:
 * 1. disk_submit() never calls done() before it returns; every submitted request gets exactly one done().
 * 2. Short transfers, EINTR and EAGAIN are dealt with inside: done() is told 0 for the whole length, or an error.
 * 3. A READ past a regular file's end gives zeroes there. A WRITE past it grows the file. (But see DISK_OPEN_FIXED.)
 * 4. Any byte range is accepted, and any buffer alignment. Ranges and buffers aligned to disk_info.sector_bytes take the
 *    direct path; the rest goes through the page cache on a worker thread, coherent with the direct path when the
 *    caller does not overlap them in time.
 * 5. What can block (allocation, discards, buffered I/O, syncs the kernel cannot do asynchronously) is done on worker
 *    threads; done() is always called on the loop's thread.
 * 6. FLUSH covers every request whose done() came before the FLUSH was submitted.
 */
#ifndef IO_DISK_H
#define IO_DISK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "io/list.h"

struct disk_host; /* the machine: its disks, clocks and random numbers */
struct disk;      /* an open block device or regular file */

enum disk_op {
	DISK_READ,
	DISK_WRITE,
	DISK_FLUSH,    /* offset and length are 0 */
	DISK_DISCARD,  /* punch a hole, or BLKDISCARD; content is undefined afterwards. -EOPNOTSUPP where it can't */
	DISK_ZERO,     /* reads as zeroes afterwards, whatever that takes */
	DISK_ALLOCATE, /* reserve space: fallocate on files (growing them), nothing on devices. -ENOSPC when full */
	DISK_EXTENTS,  /* tell what is allocated: fills extents[] */
	DISK_MEASURE,  /* look again: a device that has grown has its new size; of a file, room_bytes is filled in */
};

#define DISK_FUA 1u     /* WRITE, ZERO: durable when done() says 0 */
#define DISK_NO_HOLE 2u /* ZERO: keep the space allocated */

struct disk_extent {
	uint64_t length; /* bytes, above 0 */
	bool hole;       /* no space allocated; reads as zeroes */
};

struct disk_io {
	/* The caller's; unchanged until done(). The buffers stay the caller's too. */
	struct disk *disk;
	enum disk_op op;
	unsigned flags;
	uint64_t offset, length; /* bytes; for READ and WRITE length is the sum of the iovecs' */
	const struct iovec *iov; /* READ, WRITE; NULL: use `single` */
	unsigned iov_count;      /* at most DISK_IOV_MAX */
	struct iovec single;     /* the usual case of one buffer */

	/* EXTENTS: where the answer goes. Adjacent extents differ in `hole`; they cover a prefix of the range. */
	struct disk_extent *extents;
	unsigned extents_max, extents_count;
	uint64_t room_bytes; /* MEASURE: how much more a file's file system can take; UINT64_MAX where that is not known */

	void (*done)(struct disk_io *io, int error); /* 0 or negative errno */
	void *context;

	/* The implementation's. */
	struct list link;
	uint64_t transferred;
	int result;
	unsigned char scratch[96] __attribute__((aligned(8)));
};

#define DISK_IOV_MAX 512u

struct disk_info {
	uint64_t size_bytes;
	uint32_t sector_bytes; /* direct I/O's unit: 512 to 4096 */
	bool is_device;        /* block device; else a regular file */
	bool is_direct;        /* false: the file system has no O_DIRECT, everything is buffered */
	bool read_only;
	bool has_fua;          /* a write with FUA costs no flush: the disk can do that, or has no volatile cache */
};

#define DISK_OPEN_READ_ONLY 1u
#define DISK_OPEN_CREATE 2u /* a new file, mode 0600; -EEXIST if it is there */
#define DISK_OPEN_LOCK 4u   /* exclusive for rowsnap: -EBUSY when another process has it, or the device is in use */
#define DISK_OPEN_FIXED 16u /* a file's size is not ours to change: past the end it has now, all but EXTENTS give -EIO */
#define DISK_OPEN_SHARED 8u /* with LOCK and READ_ONLY: a device that is mounted is opened all the same */

/* At most `in_flight_max` requests are given to the kernel at once; more are queued inside. */
__attribute__((warn_unused_result)) int disk_host_create(unsigned in_flight_max, struct disk_host **host);
void disk_host_destroy(struct disk_host *host); /* nothing in flight, every disk closed */

/*
 * Readable when completions wait, and until a poll found none: to be watched edge-triggered, so that no system call is
 * needed to make it quiet again. -1 when the implementation has no such thing.
 */
int disk_host_fd(const struct disk_host *host);
/* Gives what was submitted to the kernel. Call at the end of each turn. */
void disk_host_push(struct disk_host *host);
/* Calls done() for what is complete. Returns how many. */
unsigned disk_host_poll(struct disk_host *host);
/* Pushes, then sleeps until at least one done() was called. For start-up, shutdown and the offline tools. */
void disk_host_wait(struct disk_host *host);

uint64_t disk_host_monotonic_ns(struct disk_host *host);
uint64_t disk_host_wall_ns(struct disk_host *host); /* since the epoch */
void disk_host_random(struct disk_host *host, void *out, size_t bytes);

/*
 * Opens a block device or regular file. -ENOTBLK when it is neither; else open's errors, or -EBUSY as said above.
 * Blocks no longer than open(2).
 */
__attribute__((warn_unused_result)) int disk_open(struct disk_host *host, const char *path, unsigned flags,
						  struct disk **disk);
void disk_close(struct disk *disk); /* nothing in flight on it; NULL is harmless */
void disk_get_info(const struct disk *disk, struct disk_info *info);
/*
 * Sets a regular file's size, to which a hole is added where it grows. Blocks; nothing may be in flight on it. 0 or
 * ftruncate()'s errors.
 */
__attribute__((warn_unused_result)) int disk_set_size(struct disk *disk, uint64_t size_bytes);
/* True when both are the same file or device, whatever their paths. */
bool disk_is_same(const struct disk *a, const struct disk *b);

void disk_submit(struct disk_io *io);

/* For start-up and the offline tools: submit, wait for it, return its error. */
__attribute__((warn_unused_result)) int disk_read_wait(struct disk_host *host, struct disk *disk, void *buffer,
						       size_t bytes, uint64_t offset);
__attribute__((warn_unused_result)) int disk_write_wait(struct disk_host *host, struct disk *disk, const void *buffer,
							size_t bytes, uint64_t offset);
__attribute__((warn_unused_result)) int disk_flush_wait(struct disk_host *host, struct disk *disk);

#endif
