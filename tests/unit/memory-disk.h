/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * io/disk.h on memory, for tests of what works on stores: it takes the place of io/disk-aio.c in the program that
 * includes it. Every request is carried out when it is submitted. The power can fail before any write: then this
 * write is torn (the sectors before `memory_torn_sectors` are written) and everything fails from there on. Sectors
 * can be unreadable, or unwritable. A file has no room beyond `memory_size_max`, or at a place within it.
 */
#ifndef TESTS_MEMORY_DISK_H
#define TESTS_MEMORY_DISK_H

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "io/disk.h"

#ifndef MEMORY_FILES
#define MEMORY_FILES 4u
#endif

struct memory_file {
	char name[16];
	uint8_t *bytes;
	uint64_t size, room;
	uint64_t bad_from, bad_to; /* bytes that cannot be read */
	uint64_t unwritable_from, unwritable_to, no_room_from, no_room_to; /* nor written: -EIO, -ENOSPC */
};

struct disk_host {
	struct list finished;
};

struct disk {
	struct memory_file *file;
	bool read_only;
};

static struct memory_file memory_files[MEMORY_FILES];
static uint64_t memory_writes;              /* so far */
static uint64_t memory_power = UINT64_MAX;  /* writes until it fails */
static uint64_t memory_size_max = UINT64_MAX;
static uint8_t memory_random = 0x5a; /* what the next random bytes are */
static unsigned memory_torn_sectors;
static bool memory_dead, memory_wrote_read_only;

int disk_host_create(unsigned in_flight_max, struct disk_host **host)
{
	(void)in_flight_max;
	*host = calloc(1, sizeof(**host));
	if (*host == NULL)
		return -ENOMEM;
	list_init(&(*host)->finished);
	return 0;
}

void disk_host_destroy(struct disk_host *host)
{
	free(host);
}

int disk_host_fd(const struct disk_host *host)
{
	(void)host;
	return -1;
}

void disk_host_push(struct disk_host *host)
{
	(void)host;
}

static struct disk_host *memory_host; /* the only one */

unsigned disk_host_poll(struct disk_host *host)
{
	unsigned count = 0;

	while (!list_is_empty(&host->finished)) {
		struct disk_io *io = container_of(list_pop(&host->finished), struct disk_io, link);

		io->done(io, io->result);
		count++;
	}
	return count;
}

void disk_host_wait(struct disk_host *host)
{
	if (disk_host_poll(host) == 0)
		abort(); /* nothing will ever come */
}

uint64_t disk_host_monotonic_ns(struct disk_host *host)
{
	(void)host;
	return 1;
}

uint64_t disk_host_wall_ns(struct disk_host *host)
{
	(void)host;
	return UINT64_C(1700000000) * 1000000000u;
}

void disk_host_random(struct disk_host *host, void *out, size_t bytes)
{
	(void)host;
	memset(out, memory_random++, bytes);
}

int disk_open(struct disk_host *host, const char *path, unsigned flags, struct disk **disk)
{
	memory_host = host;
	for (unsigned i = 0; i < MEMORY_FILES; i++) {
		if (strcmp(memory_files[i].name, path) != 0)
			continue;
		*disk = calloc(1, sizeof(**disk));
		if (*disk == NULL)
			return -ENOMEM;
		**disk = (struct disk){ &memory_files[i], (flags & DISK_OPEN_READ_ONLY) != 0 };
		return 0;
	}
	return -ENOENT;
}

void disk_close(struct disk *disk)
{
	free(disk);
}

void disk_get_info(const struct disk *disk, struct disk_info *info)
{
	*info = (struct disk_info){ .size_bytes = disk->file->size, .sector_bytes = 512, .read_only = disk->read_only };
}

bool disk_is_same(const struct disk *a, const struct disk *b)
{
	return a->file == b->file;
}

/* The files' own memory never runs short. */
static void *memory_sure(void *old, size_t bytes)
{
#ifdef TESTS_MEMORY_FAILS_H
	uint64_t after = memory_short_after;
	void *piece;

	memory_short_after = MEMORY_ENOUGH;
	piece = realloc(old, bytes);
	memory_short_after = after;
#else
	void *piece = realloc(old, bytes);
#endif

	if (piece == NULL)
		abort();
	return piece;
}

static void memory_resize(struct memory_file *file, uint64_t size)
{
	if (size >= file->room) {
		file->bytes = memory_sure(file->bytes, (size_t)size + 1);
		file->room = size + 1;
	}
	if (size > file->size)
		memset(file->bytes + file->size, 0, (size_t)(size - file->size));
	file->size = size;
}

int disk_set_size(struct disk *disk, uint64_t size_bytes)
{
	if (size_bytes > memory_size_max)
		return -EFBIG;
	memory_resize(disk->file, size_bytes);
	return 0;
}

static int memory_read(const struct memory_file *file, uint8_t *out, uint64_t offset, uint64_t bytes)
{
	uint64_t there = offset >= file->size ? 0 : file->size - offset;

	if (offset < file->bad_to && offset + bytes > file->bad_from)
		return -EIO;
	if (there > bytes)
		there = bytes;
	memcpy(out, file->bytes + (there > 0 ? offset : 0), (size_t)there);
	memset(out + there, 0, (size_t)(bytes - there));
	return 0;
}

static int memory_write(struct disk *disk, const uint8_t *data, uint64_t offset, uint64_t bytes)
{
	if (disk->read_only)
		memory_wrote_read_only = true;
	if (memory_writes++ == memory_power) {
		memory_dead = true;
		bytes = (uint64_t)memory_torn_sectors * 512 < bytes ? (uint64_t)memory_torn_sectors * 512 : bytes;
	}
	if (offset < disk->file->unwritable_to && offset + bytes > disk->file->unwritable_from)
		return -EIO;
	if (offset < disk->file->no_room_to && offset + bytes > disk->file->no_room_from)
		return -ENOSPC;
	if (bytes > memory_size_max || offset > memory_size_max - bytes)
		return -ENOSPC;
	if (offset + bytes > disk->file->size)
		memory_resize(disk->file, offset + bytes);
	memcpy(disk->file->bytes + offset, data, (size_t)bytes);
	return memory_dead ? -EIO : 0;
}

static int memory_read_vector(const struct disk_io *io)
{
	const struct iovec *iov = io->iov != NULL ? io->iov : &io->single;
	unsigned count = io->iov != NULL ? io->iov_count : 1;
	uint64_t offset = io->offset;
	int error = 0;

	for (unsigned i = 0; i < count && error == 0; offset += iov[i++].iov_len)
		error = memory_read(io->disk->file, iov[i].iov_base, offset, iov[i].iov_len);
	return error;
}

/* Carried out, and torn, as one. */
static int memory_write_vector(const struct disk_io *io)
{
	uint8_t *data, *at;
	int error;

	if (io->iov == NULL)
		return memory_write(io->disk, io->single.iov_base, io->offset, io->length);
	at = data = memory_sure(NULL, (size_t)io->length + 1);
	for (unsigned i = 0; i < io->iov_count; at += io->iov[i++].iov_len)
		memcpy(at, io->iov[i].iov_base, io->iov[i].iov_len);
	error = memory_write(io->disk, data, io->offset, io->length);
	free(data);
	return error;
}

/* Nothing is known of holes: all of it is data. */
static int memory_extents(struct disk_io *io)
{
	io->extents[0] = (struct disk_extent){ .length = io->length, .hole = false };
	io->extents_count = 1;
	return 0;
}

static int memory_zero(struct disk_io *io)
{
	uint8_t *zeroes = memory_sure(NULL, (size_t)io->length + 1);
	int error;

	memset(zeroes, 0, (size_t)io->length);
	error = memory_write(io->disk, zeroes, io->offset, io->length);
	free(zeroes);
	return error;
}

void disk_submit(struct disk_io *io)
{
	io->result = 0;
	if (memory_dead)
		io->result = -EIO;
	else if (io->op == DISK_READ)
		io->result = memory_read_vector(io);
	else if (io->op == DISK_WRITE)
		io->result = memory_write_vector(io);
	else if (io->op == DISK_ZERO)
		io->result = memory_zero(io);
	else if (io->op == DISK_EXTENTS)
		io->result = memory_extents(io);
	list_append(&memory_host->finished, &io->link);
}

struct memory_wait {
	bool done;
	int error;
};

static void memory_waited(struct disk_io *io, int error)
{
	struct memory_wait *wait = io->context;

	wait->done = true;
	wait->error = error;
}

static int memory_run(struct disk_host *host, struct disk_io *io)
{
	struct memory_wait wait = { .done = false };

	io->done = memory_waited;
	io->context = &wait;
	disk_submit(io);
	while (!wait.done)
		disk_host_wait(host);
	return wait.error;
}

int disk_read_wait(struct disk_host *host, struct disk *disk, void *buffer, size_t bytes, uint64_t offset)
{
	struct disk_io io = { .disk = disk, .op = DISK_READ, .offset = offset, .length = bytes };

	io.single = (struct iovec){ buffer, bytes };
	return memory_run(host, &io);
}

int disk_write_wait(struct disk_host *host, struct disk *disk, const void *buffer, size_t bytes, uint64_t offset)
{
	struct disk_io io = { .disk = disk, .op = DISK_WRITE, .offset = offset, .length = bytes };

	io.single = (struct iovec){ (void *)(uintptr_t)buffer, bytes };
	return memory_run(host, &io);
}

int disk_flush_wait(struct disk_host *host, struct disk *disk)
{
	struct disk_io io = { .disk = disk, .op = DISK_FLUSH };

	return memory_run(host, &io);
}

#endif
