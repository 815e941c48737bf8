/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The real disks: Linux block devices and regular files, by libaio, with worker threads for what libaio cannot do
 * without blocking. See disk.h for what callers are promised.
 *
 *     disk_submit --+--> queue --push: io_submit--> kernel --completion ring, eventfd--+--> finished --poll--> done()
 *                   |                                  | short, EINVAL, EAGAIN         |
 *                   +------------> worker <------------+                               |
 *                                    +--------------- list, eventfd ------------------+
 *
 * The direct path (libaio on an O_DIRECT descriptor) takes READ and WRITE whose range and buffers are aligned to
 * sector_bytes, and every FLUSH. All else goes to a worker: unaligned ranges and buffers, writes that grow a file (the
 * kernel does those synchronously in io_submit), requests that the direct path cut short or refused, and the operations
 * libaio does not have. A worker continues at `transferred`, so it does not matter how a request came to it.
 *
 * Each disk has two descriptors. What is aligned uses the O_DIRECT one, the rest the buffered one; both are the same
 * inode, and the kernel keeps them coherent: a direct read first writes back dirty cached pages of its range, a direct
 * write throws cached pages away. A sync of either covers both, and each descriptor reports a failed write-back once,
 * so FLUSH always asks the same one (the direct one): an error that a worker's sync met is not lost for the next FLUSH.
 *
 * A request does not wait in the queue for long: with EARLY of them they go to the kernel, so that the disk works while the
 * turn that makes requests goes on. One io_submit for all of a turn's would cost less and has the disk idle meanwhile.
 *
 * Nothing is allocated per request: the kernel's control block, and the worker's job, live in disk_io.scratch. Only one
 * party owns a request at any time: the queue, the kernel, a worker, or the list of finished ones.
 */
#include "io/disk.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <libaio.h>
#include <limits.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include "io/event.h"
#include "io/workers.h"

#define WORKER_COUNT 4u
#define SECTOR_BYTES_MIN 512u
#define SECTOR_BYTES_MAX 4096u
#define EARLY 2u       /* so many are given to the kernel at once, without waiting for the push */
#define BATCH_MAX 64u  /* requests for one io_submit, events for one io_getevents */
#define SLICE_MAX 64u  /* iovecs for one preadv or pwritev */
#define AGAIN_TRIES_MAX 1000u
#define AGAIN_NAP_NS 1000000l
#define LOCK_TRIES_MAX 5u
#define LOCK_NAP_NS 10000000l

static_assert(sizeof(off_t) == 8, "file offsets must have 64 bits");

/* The head of the kernel's completion ring, mapped at the address that is the aio context. */
struct completion_ring {
	unsigned id, slots;
	unsigned head, tail; /* ours, the kernel's */
	unsigned magic, compat_features, incompat_features;
	unsigned header_bytes;
	struct io_event events[];
};

#define RING_MAGIC 0xa10a10a1u

struct disk_host {
	io_context_t aio;     /* NULL when the kernel gives us none: all is done by the workers */
	unsigned aio_max;     /* requests in the kernel at once */
	unsigned aio_now;
	bool ring_usable;
	bool aio_sync_absent; /* the kernel has no IO_CMD_FDSYNC */
	int event_fd;
	struct workers *workers;
	unsigned workers_now;  /* requests with the workers */
	unsigned outstanding;  /* submitted, done() not called yet */
	unsigned disks_open;
	uint64_t turn;         /* counts pushes */
	struct list queue;     /* struct disk_io.link: waiting for io_submit */
	unsigned queued;       /* how many have come since the last one */
	struct list finished;  /* struct disk_io.link: waiting for done() */
};

struct disk {
	struct disk_host *host;
	struct disk_info info; /* size_bytes of a file changes, on the loop's thread only; the rest is constant */
	int direct_fd;         /* -1: there is no direct I/O */
	int buffered_fd;
	dev_t device;          /* a device: its number; a file: its file system's */
	ino_t inode;           /* a device: 0 */
	bool fixed;            /* a file that must not grow */
	uint64_t size_turn;    /* of a fixed one: how many pushes there were, and one, when its size was looked at */
	uint64_t size_now;
	bool dsync_absent;     /* writes with RWF_DSYNC were refused */
	unsigned in_flight;
};

/* What disk_io.scratch holds. */
struct work {
	union {
		struct iocb iocb;        /* in the queue or in the kernel */
		struct workers_job job;  /* with a worker */
	};
	uint64_t grown_bytes; /* set by a worker: the file's size after an operation that grows it, else 0 */
	bool dsync;           /* the kernel was asked for FUA */
} __attribute__((may_alias));

static_assert(sizeof(struct work) <= sizeof(((struct disk_io *)0)->scratch), "scratch is too small");

static struct work *io_work(struct disk_io *io)
{
	return (struct work *)(void *)io->scratch;
}

static struct disk_io *job_io(struct workers_job *job)
{
	return container_of(job, struct disk_io, scratch);
}

static bool is_transfer(const struct disk_io *io)
{
	return io->op == DISK_READ || io->op == DISK_WRITE;
}

static void nap(long nanoseconds)
{
	const struct timespec time = { .tv_nsec = nanoseconds };

	(void)nanosleep(&time, NULL);
}

static bool is_unsupported(int error)
{
	return error == -EOPNOTSUPP || error == -ENOSYS || error == -EINVAL || error == -ENOTTY || error == -ENODEV;
}

/* ---- On worker threads: operations that may block. They read only what is constant in struct disk. ---- */

/* The part of the request's buffers from byte `skip` on, in at most SLICE_MAX pieces. Returns how many. */
static unsigned slice_buffers(const struct disk_io *io, uint64_t skip, struct iovec slice[static SLICE_MAX])
{
	const struct iovec *iov = io->iov ? io->iov : &io->single;
	const unsigned count = io->iov ? io->iov_count : 1;
	unsigned used = 0;

	for (unsigned i = 0; i < count && used < SLICE_MAX; i++) {
		if (skip >= iov[i].iov_len) {
			skip -= iov[i].iov_len;
			continue;
		}
		slice[used].iov_base = (char *)iov[i].iov_base + skip;
		slice[used].iov_len = iov[i].iov_len - (size_t)skip;
		used++;
		skip = 0;
	}
	return used;
}

static bool is_slice_aligned(const struct iovec *slice, unsigned count, uint64_t offset, uint32_t sector_bytes)
{
	uint64_t bits = offset;

	for (unsigned i = 0; i < count; i++)
		bits |= (uintptr_t)slice[i].iov_base | slice[i].iov_len;
	return (bits & (sector_bytes - 1)) == 0;
}

/* A read came to the end of the file: rule 3. */
static void zero_the_rest(struct disk_io *io)
{
	struct iovec slice[SLICE_MAX];

	while (io->transferred < io->length) {
		const unsigned count = slice_buffers(io, io->transferred, slice);

		for (unsigned i = 0; i < count; i++) {
			memset(slice[i].iov_base, 0, slice[i].iov_len);
			io->transferred += slice[i].iov_len;
		}
	}
}

/* One preadv or pwritev from `transferred` on. Returns bytes or a negative errno. */
static ssize_t transfer_once(const struct disk_io *io, bool *avoid_direct)
{
	const struct disk *disk = io->disk;
	const off_t offset = (off_t)(io->offset + io->transferred);
	struct iovec slice[SLICE_MAX];
	const unsigned count = slice_buffers(io, io->transferred, slice);
	ssize_t bytes;
	bool direct;

	direct = disk->direct_fd >= 0 && !*avoid_direct &&
		 is_slice_aligned(slice, count, (uint64_t)offset, disk->info.sector_bytes);
	if (io->op == DISK_READ)
		bytes = preadv(direct ? disk->direct_fd : disk->buffered_fd, slice, (int)count, offset);
	else
		bytes = pwritev(direct ? disk->direct_fd : disk->buffered_fd, slice, (int)count, offset);
	if (bytes >= 0)
		return bytes;
	if (errno == EINVAL && direct) {
		*avoid_direct = true; /* stricter about alignment than it told: the page cache is not */
		return -EINTR;
	}
	return -errno;
}

static int work_transfer(struct disk_io *io)
{
	bool avoid_direct = false;
	unsigned tries = 0;

	while (io->transferred < io->length) {
		const ssize_t bytes = transfer_once(io, &avoid_direct);

		if (bytes > 0) {
			io->transferred += (uint64_t)bytes;
			tries = 0;
		} else if (bytes == -EAGAIN && tries < AGAIN_TRIES_MAX) {
			tries++;
			nap(AGAIN_NAP_NS);
		} else if (bytes < 0 && bytes != -EINTR) {
			return bytes == -EAGAIN ? -EIO : (int)bytes;
		} else if (bytes == 0) {
			if (io->op == DISK_WRITE || io->disk->info.is_device || io->disk->fixed)
				return -EIO;
			zero_the_rest(io);
		}
	}
	return 0;
}

static int sync_data(int fd)
{
	while (fdatasync(fd) < 0) {
		if (errno != EINTR)
			return -errno;
	}
	return 0;
}

static int allocate_range(int fd, int mode, uint64_t offset, uint64_t length)
{
	while (fallocate(fd, mode, (off_t)offset, (off_t)length) < 0) {
		if (errno != EINTR)
			return -errno;
	}
	return 0;
}

static int device_ioctl_range(int fd, unsigned long command, uint64_t offset, uint64_t length)
{
	uint64_t range[2] = { offset, length };

	while (ioctl(fd, command, range) < 0) {
		if (errno != EINTR)
			return -errno;
	}
	return 0;
}

/*
 * Only the size is asked for: who has looked at a file's times gets new ones with the next write (file systems with
 * multigrain timestamps), which every barrier would then write out.
 */
static int file_size(int fd, uint64_t *size_bytes)
{
	struct statx status;

	if (statx(fd, "", AT_EMPTY_PATH, STATX_SIZE, &status) < 0)
		return -errno;
	*size_bytes = status.stx_size;
	return 0;
}

static int write_zeroes(int fd, uint64_t offset, uint64_t length)
{
	static const uint8_t page[4096];
	struct iovec iov[SLICE_MAX];

	while (length > 0) {
		uint64_t left = length;
		unsigned count = 0;
		ssize_t bytes;

		for (; count < SLICE_MAX && left > 0; count++) {
			iov[count].iov_base = (void *)(uintptr_t)page;
			iov[count].iov_len = left < sizeof(page) ? (size_t)left : sizeof(page);
			left -= iov[count].iov_len;
		}
		bytes = pwritev(fd, iov, (int)count, (off_t)offset);
		if (bytes < 0 && errno == EINTR)
			continue;
		if (bytes <= 0)
			return bytes < 0 ? -errno : -EIO;
		offset += (uint64_t)bytes;
		length -= (uint64_t)bytes;
	}
	return 0;
}

/* Rule 3 makes zeroes of all that is past the end, so a file never grows by this. */
static int zero_file(const struct disk_io *io)
{
	const int fd = io->disk->buffered_fd;
	uint64_t end = io->offset + io->length, size_bytes = 0;
	int error = -EOPNOTSUPP;

	if (!(io->flags & DISK_NO_HOLE))
		error = allocate_range(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, io->offset, io->length);
	if (is_unsupported(error))
		error = allocate_range(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, io->offset, io->length);
	if (!is_unsupported(error))
		return error;
	error = file_size(fd, &size_bytes);
	if (error < 0)
		return error;
	if (end > size_bytes)
		end = size_bytes;
	return end > io->offset ? write_zeroes(fd, io->offset, end - io->offset) : 0;
}

static int zero_device_sectors(const struct disk_io *io, uint64_t start, uint64_t length)
{
	const int fd = io->disk->buffered_fd;
	int error = -EOPNOTSUPP;

	if (!(io->flags & DISK_NO_HOLE))
		error = allocate_range(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, start, length);
	if (is_unsupported(error))
		error = allocate_range(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, start, length);
	if (is_unsupported(error))
		error = device_ioctl_range(fd, BLKZEROOUT, start, length);
	if (is_unsupported(error))
		error = write_zeroes(fd, start, length);
	return error;
}

/* The sectors that lie within the request's range. False when there is none. */
static bool whole_sectors(const struct disk_io *io, uint64_t *start, uint64_t *end)
{
	const uint64_t mask = io->disk->info.sector_bytes - 1;

	*start = (io->offset + mask) & ~mask;
	*end = (io->offset + io->length) & ~mask;
	return *start < *end;
}

/* The sectors first: that throws away cached pages, which the edges are then written into. */
static int zero_device(const struct disk_io *io)
{
	const int fd = io->disk->buffered_fd;
	const uint64_t io_end = io->offset + io->length;
	uint64_t start, end;
	int error;

	if (!whole_sectors(io, &start, &end))
		return write_zeroes(fd, io->offset, io->length);
	error = zero_device_sectors(io, start, end - start);
	if (error == 0 && start > io->offset)
		error = write_zeroes(fd, io->offset, start - io->offset);
	if (error == 0 && io_end > end)
		error = write_zeroes(fd, end, io_end - end);
	return error;
}

static int work_discard(const struct disk_io *io)
{
	const int fd = io->disk->buffered_fd;
	uint64_t start, end;
	int error;

	if (!io->disk->info.is_device) {
		error = allocate_range(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, io->offset, io->length);
		return error == -ENOSYS || error == -ENODEV ? -EOPNOTSUPP : error;
	}
	if (!whole_sectors(io, &start, &end))
		return 0;
	error = device_ioctl_range(fd, BLKDISCARD, start, end - start);
	return error == -ENOTTY || error == -ENOSYS ? -EOPNOTSUPP : error;
}

static int work_allocate(const struct disk_io *io)
{
	const struct disk *disk = io->disk;
	int error;

	if (disk->info.is_device)
		return io->offset + io->length > disk->info.size_bytes ? -ENOSPC : 0;
	error = allocate_range(disk->buffered_fd, 0, io->offset, io->length);
	return error == -EOPNOTSUPP || error == -ENOSYS ? 0 : error;
}

/* Adds to the answer; joins what is alike. False when the answer is full. */
static bool add_extent(struct disk_io *io, uint64_t length, bool hole)
{
	struct disk_extent *last = io->extents_count > 0 ? &io->extents[io->extents_count - 1] : NULL;

	if (last && last->hole == hole) {
		last->length += length;
		return true;
	}
	if (io->extents_count == io->extents_max)
		return false;
	io->extents[io->extents_count++] = (struct disk_extent){ .length = length, .hole = hole };
	return true;
}

static int work_extents(struct disk_io *io)
{
	const int fd = io->disk->buffered_fd;
	const uint64_t end = io->offset + io->length;
	uint64_t at = io->offset;
	bool full = false;

	assert(io->extents && io->extents_max > 0);
	if (io->disk->info.is_device) {
		(void)add_extent(io, io->length, false);
		return 0;
	}
	while (at < end && !full) {
		off_t data, next;
		bool hole = true;

		data = lseek(fd, (off_t)at, SEEK_DATA);
		if (data < 0 && errno == ENXIO) {
			next = (off_t)end; /* no data from here on */
		} else if (data >= 0 && (uint64_t)data > at) {
			next = data;
		} else {
			next = data < 0 ? -1 : lseek(fd, (off_t)at, SEEK_HOLE);
			hole = false;
		}
		/* What it cannot tell counts as data; the same goes for a file that changes as we look. */
		if (next < 0 || (uint64_t)next <= at || (uint64_t)next > end)
			next = (off_t)end;
		full = !add_extent(io, (uint64_t)next - at, hole);
		at = (uint64_t)next;
	}
	return 0;
}

/* A device's size comes back as grown_bytes. What the file system keeps for root counts for root only. */
static int work_measure(struct disk_io *io)
{
	const struct disk *disk = io->disk;
	struct statvfs status;
	uint64_t blocks;

	io->room_bytes = UINT64_MAX;
	if (disk->info.is_device)
		return ioctl(disk->buffered_fd, BLKGETSIZE64, &io_work(io)->grown_bytes) < 0 ? -errno : 0;
	if (fstatvfs(disk->buffered_fd, &status) < 0)
		return -errno;
	blocks = geteuid() == 0 ? status.f_bfree : status.f_bavail;
	if (status.f_frsize != 0 && status.f_blocks != 0 && blocks < UINT64_MAX / status.f_frsize)
		io->room_bytes = blocks * status.f_frsize;
	return 0;
}

static bool changes_disk(const struct disk_io *io)
{
	return io->op != DISK_READ && io->op != DISK_FLUSH && io->op != DISK_EXTENTS && io->op != DISK_MEASURE;
}

/* DISK_OPEN_FIXED, as far as can be told before: who makes the file shorter does not wait for us. */
static int check_fixed_size(const struct disk_io *io)
{
	uint64_t size_bytes = 0;
	int error;

	if (!io->disk->fixed || io->op == DISK_FLUSH || io->op == DISK_EXTENTS)
		return 0;
	error = file_size(io->disk->buffered_fd, &size_bytes);
	if (error < 0)
		return error;
	return io->offset + io->length > size_bytes ? -EIO : 0;
}

static int work_check(const struct disk_io *io)
{
	const struct disk_info *info = &io->disk->info;

	if (changes_disk(io) && info->read_only)
		return -EROFS;
	if (io->offset > INT64_MAX || io->length > INT64_MAX - io->offset)
		return -EINVAL;
	if (info->is_device && (io->op == DISK_DISCARD || io->op == DISK_ZERO) &&
	    io->offset + io->length > info->size_bytes)
		return -EINVAL;
	return check_fixed_size(io);
}

static int work_do(struct disk_io *io)
{
	switch (io->op) {
	case DISK_READ:
	case DISK_WRITE:
		return work_transfer(io);
	case DISK_FLUSH:
		return sync_data(io->disk->direct_fd >= 0 ? io->disk->direct_fd : io->disk->buffered_fd);
	case DISK_DISCARD:
		return work_discard(io);
	case DISK_ZERO:
		return io->disk->info.is_device ? zero_device(io) : zero_file(io);
	case DISK_ALLOCATE:
		return work_allocate(io);
	case DISK_EXTENTS:
		return work_extents(io);
	case DISK_MEASURE:
		return work_measure(io);
	}
	return -EINVAL;
}

static void work_run(struct workers_job *job)
{
	struct disk_io *io = job_io(job);
	const struct disk *disk = io->disk;
	struct work *work = io_work(io);
	int error;

	error = work_check(io);
	if (error == 0 && (io->length > 0 || io->op == DISK_FLUSH || io->op == DISK_MEASURE))
		error = work_do(io);
	if (error == 0 && (io->flags & DISK_FUA) && (io->op == DISK_WRITE || io->op == DISK_ZERO))
		error = sync_data(disk->buffered_fd);
	/* Also when it failed: part of it may have been done. */
	if (!disk->info.is_device && (io->op == DISK_WRITE || io->op == DISK_ALLOCATE) &&
	    file_size(disk->buffered_fd, &work->grown_bytes) < 0)
		work->grown_bytes = 0;
	io->result = error;
}

/* ---- On the loop's thread. ---- */

static void give_to_worker(struct disk_io *io)
{
	struct disk_host *host = io->disk->host;
	struct work *work = io_work(io);

	work->grown_bytes = 0;
	work->job.run = work_run;
	host->workers_now++;
	workers_give(host->workers, &work->job);
}

static void finish(struct disk_io *io, int result)
{
	io->result = result;
	list_append(&io->disk->host->finished, &io->link);
}

static void take_from_workers(struct disk_host *host)
{
	struct list jobs, *link;

	if (host->workers_now == 0)
		return;
	list_init(&jobs);
	workers_take(host->workers, &jobs);
	while ((link = list_pop(&jobs))) {
		struct disk_io *io = job_io(container_of(link, struct workers_job, link));
		const uint64_t grown_bytes = io_work(io)->grown_bytes;

		host->workers_now--;
		if (grown_bytes > io->disk->info.size_bytes)
			io->disk->info.size_bytes = grown_bytes;
		finish(io, io->result);
	}
}

/*
 * The kernel's answer, from the ring or from io_submit: bytes or a negative errno. Only refusals to try at all are
 * tried again on a worker; for a FLUSH, any other error is final.
 */
static void settle(struct disk_io *io, long long result)
{
	const bool never_tried = result == -EAGAIN || result == -EINTR;
	const bool unsupported = result == -EINVAL || result == -EOPNOTSUPP || result == -ENOSYS;

	if (result < 0 && !never_tried && !unsupported) {
		finish(io, (int)result);
		return;
	}
	if (io->op == DISK_FLUSH) {
		if (unsupported)
			io->disk->host->aio_sync_absent = true;
		if (result < 0)
			give_to_worker(io);
		else
			finish(io, 0);
		return;
	}
	if (result >= 0)
		io->transferred += (uint64_t)result;
	else if (io_work(io)->dsync && unsupported)
		io->disk->dsync_absent = true;
	if (io->transferred == io->length && (!(io->flags & DISK_FUA) || io_work(io)->dsync || io->op == DISK_READ))
		finish(io, 0);
	else
		give_to_worker(io);
}

/* Up to BATCH_MAX events from the kernel's ring, without a system call where it can be. */
static unsigned get_events(struct disk_host *host, struct io_event events[static BATCH_MAX])
{
	struct timespec no_time = { 0 };
	struct completion_ring *ring;
	unsigned head, tail, count = 0;

	if (host->aio_now == 0)
		return 0;
	if (!host->ring_usable) {
		const int got = io_getevents(host->aio, 0, BATCH_MAX, events, &no_time);

		return got > 0 ? (unsigned)got : 0;
	}
	ring = (struct completion_ring *)(void *)host->aio;
	head = ring->head;
	tail = __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE);
	while (head != tail && count < BATCH_MAX) {
		events[count++] = ring->events[head];
		head = head + 1 < ring->slots ? head + 1 : 0;
	}
	__atomic_store_n(&ring->head, head, __ATOMIC_RELEASE);
	return count;
}

static void take_from_kernel(struct disk_host *host)
{
	struct io_event events[BATCH_MAX];
	unsigned count;

	do {
		count = get_events(host, events);
		assert(count <= host->aio_now);
		host->aio_now -= count;
		for (unsigned i = 0; i < count; i++)
			settle(events[i].data, (long long)events[i].res);
	} while (count == BATCH_MAX);
}

/* One io_submit. Returns whether to go on. */
static bool push_batch(struct disk_host *host)
{
	struct iocb *batch[BATCH_MAX];
	const unsigned room = host->aio_max - host->aio_now;
	struct list *first;
	unsigned count = 0;
	int submitted;

	list_for_each(link, &host->queue) {
		if (count == BATCH_MAX || count == room)
			break;
		batch[count++] = &io_work(container_of(link, struct disk_io, link))->iocb;
	}
	if (count == 0)
		return false;
	submitted = io_submit(host->aio, (long)count, batch);
	if (submitted > 0) {
		for (int i = 0; i < submitted; i++)
			list_pop(&host->queue);
		host->aio_now += (unsigned)submitted;
		return true;
	}
	/* With something in flight, its completion will come with a next push; else there is none to wait for. */
	if ((submitted == 0 || submitted == -EAGAIN) && host->aio_now > 0)
		return false;
	first = list_pop(&host->queue);
	settle(container_of(first, struct disk_io, link), submitted == 0 ? -EAGAIN : submitted);
	return true;
}

static void push_all(struct disk_host *host)
{
	host->queued = 0;
	while (push_batch(host))
		;
}

void disk_host_push(struct disk_host *host)
{
	host->turn++;
	push_all(host);
	/* What io_submit refused is told by poll, like the rest: make sure that it is called. */
	if (!list_is_empty(&host->finished))
		event_count_up(host->event_fd);
}

static unsigned finish_all(struct disk_host *host)
{
	unsigned count = 0;
	struct list *link;

	take_from_kernel(host);
	take_from_workers(host);
	while ((link = list_pop(&host->finished))) {
		struct disk_io *io = container_of(link, struct disk_io, link);

		assert(host->outstanding > 0 && io->disk->in_flight > 0);
		host->outstanding--;
		io->disk->in_flight--;
		count++;
		io->done(io, io->result);
	}
	return count;
}

unsigned disk_host_poll(struct disk_host *host)
{
	unsigned count = finish_all(host);

	if (count > 0)
		return count;
	/* First the signal, then once more what it stands for: what comes in between signals again. */
	event_clear(host->event_fd);
	return finish_all(host);
}

void disk_host_wait(struct disk_host *host)
{
	struct pollfd wait = { .fd = host->event_fd, .events = POLLIN };

	assert(host->outstanding > 0);
	for (;;) {
		disk_host_push(host);
		if (disk_host_poll(host) > 0)
			return;
		(void)poll(&wait, 1, -1);
	}
}

int disk_host_fd(const struct disk_host *host)
{
	return host->event_fd;
}

/* The most the machine allows, up to `wanted`: its total of aio requests is limited (fs.aio-max-nr). */
static void host_set_up_aio(struct disk_host *host, unsigned wanted)
{
	const struct completion_ring *ring;
	unsigned count = wanted < INT_MAX ? wanted : INT_MAX;

	for (; count > 0; count /= 2) {
		const int error = io_setup((int)count, &host->aio);

		if (error == 0)
			break;
		host->aio = NULL;
		if (error != -EAGAIN && error != -ENOMEM && error != -EINVAL)
			return;
	}
	if (!host->aio)
		return;
	host->aio_max = count;
	ring = (const struct completion_ring *)(const void *)host->aio;
	host->ring_usable = ring->magic == RING_MAGIC && ring->incompat_features == 0 &&
			    ring->header_bytes == sizeof(*ring) && ring->head < ring->slots;
}

/* A write past RLIMIT_FSIZE shall give EFBIG, like any other error, and not kill us. */
static void ignore_size_signal(void)
{
	struct sigaction action;

	if (sigaction(SIGXFSZ, NULL, &action) == 0 && action.sa_handler == SIG_DFL)
		(void)signal(SIGXFSZ, SIG_IGN);
}

int disk_host_create(unsigned in_flight_max, struct disk_host **host)
{
	struct disk_host *made;
	int error;

	assert(in_flight_max > 0);
	made = calloc(1, sizeof(*made));
	if (!made)
		return -ENOMEM;
	list_init(&made->queue);
	list_init(&made->finished);
	made->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (made->event_fd < 0) {
		error = -errno;
		free(made);
		return error;
	}
	error = workers_create(WORKER_COUNT, made->event_fd, &made->workers);
	if (error < 0) {
		(void)close(made->event_fd);
		free(made);
		return error;
	}
	host_set_up_aio(made, in_flight_max);
	ignore_size_signal();
	*host = made;
	return 0;
}

void disk_host_destroy(struct disk_host *host)
{
	if (!host)
		return;
	assert(host->outstanding == 0 && host->disks_open == 0);
	workers_destroy(host->workers);
	if (host->aio)
		(void)io_destroy(host->aio);
	(void)close(host->event_fd);
	free(host);
}

static uint64_t clock_ns(clockid_t clock)
{
	struct timespec now = { 0 };

	(void)clock_gettime(clock, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t disk_host_monotonic_ns(struct disk_host *host)
{
	(void)host;
	return clock_ns(CLOCK_MONOTONIC);
}

uint64_t disk_host_wall_ns(struct disk_host *host)
{
	(void)host;
	return clock_ns(CLOCK_REALTIME);
}

void disk_host_random(struct disk_host *host, void *out, size_t bytes)
{
	char *at = out;

	(void)host;
	while (bytes > 0) {
		const ssize_t got = getrandom(at, bytes, 0);

		if (got < 0 && errno != EINTR)
			abort(); /* no kernel we run on is without it, and UUIDs must not be made up otherwise */
		if (got > 0) {
			at += got;
			bytes -= (size_t)got;
		}
	}
}

/* ---- Opening. ---- */

/*
 * Takes the lock that makes the disk ours. On a device, the kernel's exclusive claim (O_EXCL) is the real one; the
 * flock keeps udev from looking into it meanwhile. udev itself holds it for moments, after a device was closed, say: so
 * a few tries.
 */
static int lock_disk(int fd, bool is_device, bool read_only)
{
	const int operation = (read_only ? LOCK_SH : LOCK_EX) | LOCK_NB;
	unsigned tries = is_device ? LOCK_TRIES_MAX : 1;

	while (flock(fd, operation) < 0) {
		if (errno == EINTR)
			continue;
		if (errno != EWOULDBLOCK)
			return -errno;
		if (--tries == 0)
			return -EBUSY;
		nap(LOCK_NAP_NS);
	}
	return 0;
}

static bool is_openable(mode_t mode)
{
	return S_ISBLK(mode) || S_ISREG(mode);
}

static bool is_same_inode(const struct stat *a, const struct stat *b)
{
	return a->st_dev == b->st_dev && a->st_ino == b->st_ino && ((a->st_mode ^ b->st_mode) & S_IFMT) == 0 &&
	       a->st_rdev == b->st_rdev;
}

/*
 * The buffered descriptor. Only what stat() says is a block device or file is opened at all (opening a tape or a
 * watchdog does things), and O_NONBLOCK is there for a path that changes in between.
 */
static int open_buffered(const char *path, unsigned flags, struct stat *status)
{
	const int access = flags & DISK_OPEN_READ_ONLY ? O_RDONLY : O_RDWR;
	int more = 0;
	struct stat opened;
	int fd, error = 0;

	if (flags & DISK_OPEN_CREATE) {
		more = O_CREAT | O_EXCL;
	} else {
		if (stat(path, status) < 0)
			return -errno;
		if (!is_openable(status->st_mode))
			return -ENOTBLK;
		if (S_ISBLK(status->st_mode) && (flags & DISK_OPEN_LOCK) && !(flags & DISK_OPEN_SHARED))
			more = O_EXCL; /* without O_CREAT: the claim that mounting takes, too */
	}
	fd = open(path, access | more | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0600);
	if (fd < 0)
		return -errno;
	if (fstat(fd, &opened) < 0 || fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK) < 0)
		error = -errno;
	else if (!(flags & DISK_OPEN_CREATE) && !is_same_inode(status, &opened))
		error = -ESTALE;
	if (error < 0) {
		(void)close(fd);
		return error;
	}
	*status = opened;
	return fd;
}

/* What a direct read of the file's start says about `bytes` as the unit: 1 it will do, 0 it won't, -1 can't tell. */
static int try_direct_read(int fd, size_t bytes)
{
	char room[2 * SECTOR_BYTES_MAX] __attribute__((aligned(2 * SECTOR_BYTES_MAX)));
	ssize_t got;

	/* At a place that is aligned to `bytes` and to no more than that. */
	got = pread(fd, room + bytes, bytes, 0);
	if (got < 0)
		return errno == EINVAL ? 0 : -1;
	return got == (ssize_t)bytes ? 1 : -1;
}

/* The unit of direct I/O in bytes; 0 when there is none that we can use. */
static uint32_t direct_unit(int fd, bool is_device)
{
	struct statx status;
	uint32_t unit = SECTOR_BYTES_MIN;
	int sector_bytes;

#ifdef STATX_DIOALIGN
	if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &status) == 0 && (status.stx_mask & STATX_DIOALIGN)) {
		if (status.stx_dio_offset_align == 0)
			return 0;
		if (status.stx_dio_offset_align > unit)
			unit = status.stx_dio_offset_align;
		if (status.stx_dio_mem_align > unit)
			unit = status.stx_dio_mem_align;
		return unit <= SECTOR_BYTES_MAX && (unit & (unit - 1)) == 0 ? unit : 0;
	}
#else
	(void)status;
#endif
	if (is_device) {
		if (ioctl(fd, BLKSSZGET, &sector_bytes) < 0 || sector_bytes <= 0)
			return SECTOR_BYTES_MAX;
		if ((uint32_t)sector_bytes > unit)
			unit = (uint32_t)sector_bytes;
		return unit <= SECTOR_BYTES_MAX ? unit : 0;
	}
	if (try_direct_read(fd, SECTOR_BYTES_MIN) == 1)
		return SECTOR_BYTES_MIN;
	/* An empty file tells nothing: 4096 is right wherever direct I/O is (a refusal goes through the cache). */
	return try_direct_read(fd, SECTOR_BYTES_MAX) != 0 ? SECTOR_BYTES_MAX : 0;
}

/* The direct descriptor, when there is such a thing here; else direct_fd stays -1. */
static int open_direct(struct disk *disk, const char *path, const struct stat *status, unsigned flags)
{
	const int access = flags & DISK_OPEN_READ_ONLY ? O_RDONLY : O_RDWR;
	struct stat opened;
	uint32_t unit;
	int fd;

	fd = open(path, access | O_DIRECT | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0)
		return errno == EINVAL || errno == EOPNOTSUPP ? 0 : -errno;
	if (fstat(fd, &opened) < 0 || !is_same_inode(status, &opened)) {
		(void)close(fd);
		return -ESTALE; /* the path was given to another file meanwhile */
	}
	unit = direct_unit(fd, disk->info.is_device);
	if (unit == 0 || fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK) < 0) {
		(void)close(fd);
		return 0;
	}
	disk->direct_fd = fd;
	disk->info.is_direct = true;
	disk->info.sector_bytes = unit;
	return 0;
}

/* The first line of a file of the disk's queue, or of the disk's that it is a partition of. False: there is none. */
static bool queue_line(dev_t device, const char *name, char line[static 32])
{
	static const char *const up[] = { "", "../" };
	char path[96];

	for (size_t i = 0; i < sizeof(up) / sizeof(up[0]); i++) {
		ssize_t bytes = -1;
		int fd;

		(void)snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/%squeue/%s", major(device), minor(device), up[i],
			       name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			continue;
		bytes = read(fd, line, 31);
		(void)close(fd);
		if (bytes > 0) {
			line[bytes] = '\0';
			return true;
		}
	}
	return false;
}

/* What cannot be found out counts as a disk without. */
static bool has_fua(dev_t device)
{
	char line[32];

	if (queue_line(device, "fua", line) && line[0] == '1')
		return true;
	return queue_line(device, "write_cache", line) && strncmp(line, "write through", strlen("write through")) == 0;
}

static int describe(struct disk *disk, const struct stat *status, unsigned flags)
{
	int read_only = 0;

	disk->info.is_device = S_ISBLK(status->st_mode);
	disk->info.has_fua = has_fua(disk->info.is_device ? status->st_rdev : status->st_dev);
	disk->info.read_only = flags & DISK_OPEN_READ_ONLY;
	disk->fixed = (flags & DISK_OPEN_FIXED) && S_ISREG(status->st_mode);
	disk->info.sector_bytes = SECTOR_BYTES_MIN;
	if (!disk->info.is_device) {
		disk->info.size_bytes = (uint64_t)status->st_size;
		disk->device = status->st_dev;
		disk->inode = status->st_ino;
		return 0;
	}
	disk->device = status->st_rdev;
	if (ioctl(disk->buffered_fd, BLKGETSIZE64, &disk->info.size_bytes) < 0 ||
	    ioctl(disk->buffered_fd, BLKROGET, &read_only) < 0)
		return -errno;
	if (read_only)
		disk->info.read_only = true;
	return 0;
}

int disk_open(struct disk_host *host, const char *path, unsigned flags, struct disk **disk)
{
	struct disk *made;
	struct stat status = { 0 };
	int error;

	if ((flags & DISK_OPEN_READ_ONLY) && (flags & DISK_OPEN_CREATE))
		return -EINVAL;
	made = calloc(1, sizeof(*made));
	if (!made)
		return -ENOMEM;
	made->host = host;
	made->direct_fd = -1;
	made->buffered_fd = open_buffered(path, flags, &status);
	if (made->buffered_fd < 0) {
		error = made->buffered_fd;
		free(made);
		return error;
	}
	error = describe(made, &status, flags);
	if (error == 0 && (flags & DISK_OPEN_LOCK))
		error = lock_disk(made->buffered_fd, made->info.is_device, flags & DISK_OPEN_READ_ONLY);
	if (error == 0)
		error = open_direct(made, path, &status, flags);
	if (error < 0) {
		if (flags & DISK_OPEN_CREATE)
			(void)unlink(path);
		(void)close(made->buffered_fd);
		free(made);
		return error;
	}
	host->disks_open++;
	*disk = made;
	return 0;
}

void disk_close(struct disk *disk)
{
	if (!disk)
		return;
	assert(disk->in_flight == 0);
	if (disk->direct_fd >= 0)
		(void)close(disk->direct_fd);
	(void)close(disk->buffered_fd);
	disk->host->disks_open--;
	free(disk);
}

void disk_get_info(const struct disk *disk, struct disk_info *info)
{
	*info = disk->info;
}

int disk_set_size(struct disk *disk, uint64_t size_bytes)
{
	assert(disk->in_flight == 0 && !disk->info.is_device);
	while (ftruncate(disk->buffered_fd, (off_t)size_bytes) < 0)
		if (errno != EINTR)
			return -errno;
	disk->info.size_bytes = size_bytes;
	return 0;
}

bool disk_is_same(const struct disk *a, const struct disk *b)
{
	return a->info.is_device == b->info.is_device && a->device == b->device && a->inode == b->inode;
}

/* ---- Submitting. ---- */

/* Whether a write that ends at `end` makes the file longer than it is: one look at its size a turn. */
static bool grows(struct disk *disk, uint64_t end)
{
	if (disk->info.is_device)
		return false;
	if (!disk->fixed)
		return end > disk->info.size_bytes;
	if (disk->size_turn != disk->host->turn + 1 && file_size(disk->buffered_fd, &disk->size_now) == 0)
		disk->size_turn = disk->host->turn + 1;
	return disk->size_turn != disk->host->turn + 1 || end > disk->size_now;
}

/* Whether the direct path can take it. A write that grows a file would be done synchronously by io_submit. */
static bool fits_direct(const struct disk_io *io, const struct iovec *iov, unsigned count)
{
	const struct disk *disk = io->disk;

	if (disk->direct_fd < 0 || io->length == 0 || io->offset > INT64_MAX || io->length > INT64_MAX - io->offset)
		return false;
	if (io->op == DISK_WRITE) {
		if (disk->info.read_only)
			return false;
		if (grows(io->disk, io->offset + io->length))
			return false;
	}
	return is_slice_aligned(iov, count, io->offset, disk->info.sector_bytes);
}

/* Makes the kernel's control block for it. False when it is a worker's. */
static bool prepare_direct(struct disk_io *io)
{
	struct disk *disk = io->disk;
	struct work *work = io_work(io);
	const struct iovec *iov = io->iov ? io->iov : &io->single;
	const unsigned count = io->iov ? io->iov_count : 1;

	if (io->op == DISK_FLUSH) {
		if (disk->host->aio_sync_absent)
			return false;
		io_prep_fdsync(&work->iocb, disk->direct_fd >= 0 ? disk->direct_fd : disk->buffered_fd);
		return true;
	}
	if (!is_transfer(io))
		return false;
	assert(count <= DISK_IOV_MAX);
	if (!fits_direct(io, iov, count))
		return false;
	if (io->op == DISK_READ)
		io_prep_preadv(&work->iocb, disk->direct_fd, iov, (int)count, (long long)io->offset);
	else
		io_prep_pwritev(&work->iocb, disk->direct_fd, iov, (int)count, (long long)io->offset);
	if (io->op == DISK_WRITE && (io->flags & DISK_FUA) && !disk->dsync_absent) {
		work->iocb.aio_rw_flags = RWF_DSYNC;
		work->dsync = true;
	}
	return true;
}

void disk_submit(struct disk_io *io)
{
	struct disk_host *host = io->disk->host;
	struct work *work = io_work(io);

	list_init(&io->link);
	io->transferred = 0;
	io->result = 0;
	io->extents_count = 0;
	work->dsync = false;
	host->outstanding++;
	io->disk->in_flight++;
	if (!host->aio || !prepare_direct(io)) {
		give_to_worker(io);
		return;
	}
	work->iocb.data = io;
	io_set_eventfd(&work->iocb, host->event_fd);
	list_append(&host->queue, &io->link);
	if (++host->queued >= EARLY)
		push_all(host);
}

/* ---- Waiting for one request. ---- */

struct waited_io {
	struct disk_io io;
	bool is_done;
	int error;
};

static void note_done(struct disk_io *io, int error)
{
	struct waited_io *waited = container_of(io, struct waited_io, io);

	waited->error = error;
	waited->is_done = true;
}

static int submit_and_wait(struct disk_host *host, struct waited_io *waited)
{
	waited->io.done = note_done;
	disk_submit(&waited->io);
	while (!waited->is_done)
		disk_host_wait(host);
	return waited->error;
}

int disk_read_wait(struct disk_host *host, struct disk *disk, void *buffer, size_t bytes, uint64_t offset)
{
	struct waited_io waited = { .io = { .disk = disk, .op = DISK_READ, .offset = offset, .length = bytes } };

	waited.io.single = (struct iovec){ .iov_base = buffer, .iov_len = bytes };
	return submit_and_wait(host, &waited);
}

int disk_write_wait(struct disk_host *host, struct disk *disk, const void *buffer, size_t bytes, uint64_t offset)
{
	struct waited_io waited = { .io = { .disk = disk, .op = DISK_WRITE, .offset = offset, .length = bytes } };

	waited.io.single = (struct iovec){ .iov_base = (void *)(uintptr_t)buffer, .iov_len = bytes };
	return submit_and_wait(host, &waited);
}

int disk_flush_wait(struct disk_host *host, struct disk *disk)
{
	struct waited_io waited = { .io = { .disk = disk, .op = DISK_FLUSH } };

	return submit_and_wait(host, &waited);
}
