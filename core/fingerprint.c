/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The origin's fingerprint: what its file-system superblock area holds, so that a change behind our back is noticed at the
 * next start.
 *
 * A write to the area is announced first: the coming checksums are made durable in the log, then the write is issued. After
 * a crash each sector must be as it was when the run began or as some entry since announced. One write at a time: the next
 * one's announcement builds on this one's content.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "core/engine.h"

#define IMAGE_BYTES ((size_t)FINGERPRINT_SECTORS * FINGERPRINT_SECTOR_BYTES)

bool fingerprint_overlaps(uint64_t offset, uint64_t length)
{
	for (unsigned i = 0; offset < FINGERPRINT_END && i < FINGERPRINT_SECTORS; i++)
		if (offset < fingerprint_offset(i) + FINGERPRINT_SECTOR_BYTES && offset + length > fingerprint_offset(i))
			return true;
	return false;
}

static void image_checksums(const struct volume *volume, const uint8_t *image, struct fingerprint *fingerprint)
{
	for (unsigned i = 0; i < FINGERPRINT_SECTORS; i++)
		fingerprint->sector[i] = fingerprint_offset(i) < volume->origin_bytes ?
						 fingerprint_checksum(image + (size_t)i * FINGERPRINT_SECTOR_BYTES) :
						 0;
}

/* Puts the part of a write that lies in the area into an image of it. */
static void image_apply(uint8_t *image, uint64_t offset, uint64_t length, const uint8_t *data)
{
	for (unsigned i = 0; i < FINGERPRINT_SECTORS; i++) {
		uint64_t sector = fingerprint_offset(i), first, end;
		uint8_t *at;

		first = offset > sector ? offset : sector;
		end = offset + length < sector + FINGERPRINT_SECTOR_BYTES ? offset + length :
									    sector + FINGERPRINT_SECTOR_BYTES;
		if (first >= end)
			continue;
		at = image + (size_t)i * FINGERPRINT_SECTOR_BYTES + (first - sector);
		if (data != NULL)
			memcpy(at, data + (first - offset), (size_t)(end - first));
		else
			memset(at, 0, (size_t)(end - first));
	}
}

static void read_done(struct disk_io *io, int error)
{
	struct volume *volume = io->context;

	if (error != 0)
		volume->fingerprint_error = error;
	if (--volume->fingerprint_reads > 0)
		return;
	if (volume->fingerprint_error == 0)
		image_checksums(volume, volume->fingerprint_image, &volume->fingerprint);
	volume->fingerprint_read_done(volume, volume->fingerprint_error);
}

void fingerprint_read_start(struct volume *volume, void (*done)(struct volume *volume, int error))
{
	static const uint64_t offsets[2] = { 0, 65536 };
	size_t half = IMAGE_BYTES / 2;

	volume->fingerprint_read_done = done;
	volume->fingerprint_error = 0;
	volume->fingerprint_reads = volume->origin_bytes > offsets[1] ? 2 : 1;
	memset(volume->fingerprint_image, 0, IMAGE_BYTES);
	for (unsigned i = 0; i < volume->fingerprint_reads; i++) {
		uint64_t rest = volume->origin_bytes - offsets[i];
		uint64_t length = rest < half ? rest : half;

		volume->fingerprint_io[i] = (struct disk_io){
			.disk = volume->origin,
			.op = DISK_READ,
			.offset = offsets[i],
			.length = length,
			.single = { .iov_base = volume->fingerprint_image + i * half, .iov_len = (size_t)length },
			.done = read_done,
			.context = volume,
		};
	}
	for (unsigned i = 0; i < 2 && offsets[i] < volume->origin_bytes; i++)
		disk_submit(&volume->fingerprint_io[i]);
}

static void read_waited(struct volume *volume, int error)
{
	volume->fingerprint_error = error;
	volume->fingerprint_read_done = NULL;
}

int fingerprint_read(struct volume *volume)
{
	fingerprint_read_start(volume, read_waited);
	while (volume->fingerprint_read_done != NULL)
		disk_host_wait(volume->host);
	return volume->fingerprint_error;
}

static void announced(struct log_ticket *ticket, int error)
{
	struct volume *volume = ticket->context;
	struct request *request = volume->fingerprint_writer;

	assert(request != NULL);
	if (error == 0)
		volume->fingerprint_announced = true;
	/* As for copies: with the chain broken the write goes on, in a pause it is held. */
	write_continue(request, volume_log(volume) == NULL || volume->pauses > 0 ? 0 : error);
}

int fingerprint_announce(struct volume *volume, struct request *request, uint64_t offset, uint64_t length,
			 const uint8_t *data)
{
	struct log *log = volume_log(volume);
	struct log_item item = { .type = ENTRY_FINGERPRINT, .data = volume->fingerprint_block };
	struct fingerprint coming;

	if (!fingerprint_overlaps(offset, length))
		return 1;
	if (volume->fingerprint_writer != NULL && volume->fingerprint_writer != request) {
		list_append(&volume->fingerprint_waiters, &request->waiting_link);
		return 0;
	}
	volume->fingerprint_writer = request;
	memcpy(volume->fingerprint_next, volume->fingerprint_image, IMAGE_BYTES);
	image_apply(volume->fingerprint_next, offset, length, data);
	image_checksums(volume, volume->fingerprint_next, &coming);
	if (memcmp(&coming, &volume->fingerprint, sizeof(coming)) == 0)
		return 1;
	if (volume->fingerprint_announced)
		return 1;
	if (log_error(log) != 0 && !log_is_stuck(log))
		return log_error(log);
	if (log_error(log) != 0 || !log_has_room(log, 1)) {
		/* the open batch is full, or the policy has not decided yet: ask again when a copy has ended */
		volume->fingerprint_writer = NULL;
		list_append(&volume->copy_starved, &request->waiting_link);
		return 0;
	}
	memset(volume->fingerprint_block, 0, volume->block_bytes);
	fingerprint_encode(volume->fingerprint_block, &coming);
	volume->fingerprint_ticket = (struct log_ticket){ .done = announced, .context = volume };
	log_append(log, &item, 1, &volume->fingerprint_ticket);
	return 0;
}

/* The piece has ended. If its write was issued the image is what it announced; what failed or was held announces again. */
void fingerprint_written(struct volume *volume, struct request *request)
{
	if (volume->fingerprint_writer != request)
		return;
	volume->fingerprint_writer = NULL;
	volume->fingerprint_announced = false;
}

void fingerprint_turn(struct volume *volume)
{
	while (volume->fingerprint_writer == NULL) {
		struct list *link = list_pop(&volume->fingerprint_waiters);

		if (link == NULL)
			return;
		write_continue(container_of(link, struct request, waiting_link), 0);
	}
}

/* The write that was announced is being issued. */
void fingerprint_issued(struct volume *volume, const struct request *request)
{
	if (volume->fingerprint_writer != request)
		return;
	memcpy(volume->fingerprint_image, volume->fingerprint_next, IMAGE_BYTES);
	image_checksums(volume, volume->fingerprint_image, &volume->fingerprint);
}
