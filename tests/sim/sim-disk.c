/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * io/disk.h on memory.
 *
 * A file is made of sectors of 512 bytes. Each has what a reader sees ("cached"), what a power cut leaves for certain
 * ("durable"), and the versions in between, oldest first: each may be what is found after a power cut.
 *
 *   submit --> in flight --event--> a part is carried out --event--> the rest, and done()
 *                        '------------------event-----------------^
 *
 * 1. An event takes a request in flight at random. So completions come in any order, reads see any mixture of what was
 *    written while they were under way, and writes to one place end in any order.
 * 2. A flush makes durable what was completed before it was submitted. One that fails makes some of that durable, keeps
 *    some for the next flush, and some is doomed: readers see it, but no flush will save it (as Linux' page cache
 *    does).
 * 3. A power cut: each sector is one of its versions, or as it was durable; what is in flight may be carried out too,
 *    each sector by itself. Of a store's sectors some are sheared: there is a part of what was being written, or
 *    rubbish. Or somebody chooses what is left: sim_cut().
 * 4. A kill: what is in flight is carried out in part, each sector by itself; then the cache is as it is. What was
 *    doomed is flushed by somebody else, or dropped from the cache.
 * 5. After a crash the world is dead: all requests fail and change nothing, so that the engine can be closed like any
 *    other; until sim_revive().
 * 6. A write that fails was carried out sector by sector in part, or ended short: up to some sector. (That short counts
 *    never reach the engine is the seam's rule 2.)
 * 7. A host can be cloned at any moment, with all that is unflushed and in flight, to try a crash on the clone. Pages are
 *    shared until one of them writes.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/sim/sim.h"

#define PAGE_BYTES 4096u
#define PAGE_SECTORS (PAGE_BYTES / SECTOR_BYTES)

struct version {
	struct version *next;
	uint64_t request;      /* whose it is */
	uint32_t index, total; /* which of the request's sectors */
	uint64_t completed;    /* when; 0: in flight */
	bool doomed;
	uint8_t data[SECTOR_BYTES];
};

struct page {
	struct page *next;   /* when free */
	unsigned references; /* files that share it */
	uint8_t cached[PAGE_BYTES], durable[PAGE_BYTES];
	struct version *versions[PAGE_SECTORS];
	bool bad; /* cannot be written; of the origin: cannot be read until it is written */
	bool takes_room;
	bool read_failed;
};

struct sim_file {
	struct disk_host *host;
	char name[32];
	bool is_origin, is_device, absent;
	bool gone; /* its disk: everything fails */
	bool superblock_failed; /* a write of it, or a flush, failed */
	uint64_t bytes;
	uint32_t sector_bytes;
	unsigned opened;
	bool locked;
	unsigned bad_per_thousand;
	struct page **pages;
	size_t page_count;
	uint64_t *dirty; /* sectors with versions */
	size_t dirty_count, dirty_size;
};

struct disk {
	struct sim_file *file;
	bool has_lock;
};

struct disk_host {
	struct sim_random random;
	struct sim_file files[FILES_MAX];
	size_t file_count;
	struct list in_flight; /* struct disk_io.link */
	size_t in_flight_count;
	struct list immediate;
	bool is_immediate, faults_paused, dead, crash_due;
	uint64_t time_ns, clock, requests;
	uint64_t origin_writes, store_writes, flushes, life_events;
	enum sim_order order;
	void (*hook)(void *context); /* before each event */
	void *hook_context;
	struct crash_plan plan;
	enum crash_kind crashed;
	bool origin_flush_failed, flush_failed;
	struct faults origin_faults, store_faults;
	int64_t room; /* pages that stores which are files may still take; below 0: none */
	bool has_room_limit;
	unsigned record_faults; /* per thousand */
	struct sim_counters counters;
};

/* What is used again, by all hosts. */
static struct version *free_versions;
static struct page *free_pages;

/* In disk_io.scratch. */
struct flight {
	uint64_t request, submitted;
	uint64_t from, to; /* sectors of the request still to be carried out */
	uint8_t fill;      /* DISCARD: what it leaves */
	bool started;
};

static struct flight *flight_of(struct disk_io *io)
{
	return (struct flight *)(void *)io->scratch;
}

/* ---- sectors ---- */

static struct version *version_take(void)
{
	struct version *version = free_versions;

	if (version == NULL)
		return sim_take(sizeof(*version));
	free_versions = version->next;
	return version;
}

static void version_put(struct version *version)
{
	version->next = free_versions;
	free_versions = version;
}

/* Forgets the versions before `end`. */
static void versions_drop(struct page *page, unsigned at, const struct version *end)
{
	while (page->versions[at] != end) {
		struct version *version = page->versions[at];

		page->versions[at] = version->next;
		version_put(version);
	}
}

static struct page *page_take(void)
{
	struct page *page = free_pages;

	if (page == NULL)
		return sim_take(sizeof(*page));
	free_pages = page->next;
	return page;
}

static void page_put(struct page *page)
{
	if (page == NULL || --page->references > 0)
		return;
	for (unsigned at = 0; at < PAGE_SECTORS; at++)
		versions_drop(page, at, NULL);
	page->next = free_pages;
	free_pages = page;
}

static struct page *page_unshare(struct page *shared)
{
	struct page *page = page_take();

	*page = *shared;
	page->references = 1;
	shared->references--;
	for (unsigned at = 0; at < PAGE_SECTORS; at++) {
		struct version **link = &page->versions[at];

		for (const struct version *version = shared->versions[at]; version != NULL; version = version->next) {
			*link = version_take();
			**link = *version;
			link = &(*link)->next;
		}
		*link = NULL;
	}
	return page;
}

static void pages_grow(struct sim_file *file, size_t count)
{
	file->pages = sim_resize(file->pages, count, sizeof(*file->pages));
	memset(file->pages + file->page_count, 0, (count - file->page_count) * sizeof(file->pages[0]));
	file->page_count = count;
}

/* To write there. */
static struct page *page_get(struct sim_file *file, uint64_t index)
{
	struct page *page;

	if (index >= file->page_count)
		pages_grow(file, (size_t)index + 64);
	page = file->pages[index];
	if (page != NULL && page->references == 1)
		return page;
	if (page != NULL) {
		page = page_unshare(page);
	} else {
		page = page_take();
		memset(page, 0, sizeof(*page));
		page->references = 1;
		/* The superblocks, and what the fingerprint is made of, stay good. */
		if (index != 0 && index != (file->is_origin ? 16 : 128))
			page->bad = random_chance(&file->host->random, file->bad_per_thousand);
	}
	file->pages[index] = page;
	return page;
}

static const struct page *page_find(const struct sim_file *file, uint64_t index)
{
	return index < file->page_count ? file->pages[index] : NULL;
}

/* `whose` says which request's, and which of its sectors. */
static void sector_write(struct sim_file *file, uint64_t sector, const uint8_t *data, const struct version *whose)
{
	struct page *page = page_get(file, sector / PAGE_SECTORS);
	unsigned at = (unsigned)(sector % PAGE_SECTORS);
	struct version *version = version_take(), **last = &page->versions[at];

	if (!page->takes_room && !file->is_origin && !file->is_device)
		file->host->room--;
	page->takes_room = true;
	if (*last == NULL) {
		if (file->dirty_count == file->dirty_size) {
			file->dirty_size = file->dirty_size == 0 ? 256 : file->dirty_size * 2;
			file->dirty = sim_resize(file->dirty, file->dirty_size, sizeof(*file->dirty));
		}
		file->dirty[file->dirty_count++] = sector;
	}
	while (*last != NULL)
		last = &(*last)->next;
	version->next = NULL;
	version->request = whose->request;
	version->index = whose->index;
	version->total = whose->total;
	version->completed = 0;
	version->doomed = false;
	memcpy(version->data, data, SECTOR_BYTES);
	memcpy(page->cached + (size_t)at * SECTOR_BYTES, data, SECTOR_BYTES);
	*last = version;
}

static void sector_read(const struct sim_file *file, uint64_t sector, uint8_t *out)
{
	const struct page *page = page_find(file, sector / PAGE_SECTORS);

	if (page == NULL)
		memset(out, 0, SECTOR_BYTES);
	else
		memcpy(out, page->cached + sector % PAGE_SECTORS * SECTOR_BYTES, SECTOR_BYTES);
}

static void sector_make_durable(struct page *page, unsigned at, const struct version *version)
{
	memcpy(page->durable + (size_t)at * SECTOR_BYTES, version->data, SECTOR_BYTES);
	versions_drop(page, at, version->next);
}

/* Keeps in the list of dirty sectors those that are. */
static void dirty_prune(struct sim_file *file)
{
	size_t kept = 0;

	for (size_t i = 0; i < file->dirty_count; i++)
		if (file->pages[file->dirty[i] / PAGE_SECTORS]->versions[file->dirty[i] % PAGE_SECTORS] != NULL)
			file->dirty[kept++] = file->dirty[i];
	file->dirty_count = kept;
}

/* ---- carrying out ---- */

static bool is_write(const struct disk_io *io)
{
	return io->op == DISK_WRITE || io->op == DISK_ZERO || io->op == DISK_DISCARD;
}

/* What is carried out sector by sector. */
static bool is_partly_op(enum disk_op op)
{
	return op == DISK_READ || op == DISK_WRITE || op == DISK_ZERO || op == DISK_DISCARD;
}

static uint8_t *iov_at(const struct disk_io *io, uint64_t offset)
{
	const struct iovec *iov = io->iov != NULL ? io->iov : &io->single;

	while (offset >= iov->iov_len) {
		offset -= iov->iov_len;
		iov++;
	}
	return (uint8_t *)iov->iov_base + offset;
}

static void carry_out_sector(struct disk_io *io, uint64_t index)
{
	struct sim_file *file = io->disk->file;
	struct flight *flight = flight_of(io);
	uint64_t sector = io->offset / SECTOR_BYTES + index;
	struct version whose;
	uint8_t data[SECTOR_BYTES];

	whose.request = flight->request;
	whose.index = (uint32_t)index;
	whose.total = (uint32_t)(io->length / SECTOR_BYTES);
	switch (io->op) {
	case DISK_WRITE:
		sector_write(file, sector, iov_at(io, index * SECTOR_BYTES), &whose);
		break;
	case DISK_ZERO:
		memset(data, 0, sizeof(data));
		sector_write(file, sector, data, &whose);
		break;
	case DISK_DISCARD:
		if (flight->fill == 0)
			return;
		memset(data, flight->fill == 1 ? 0 : flight->fill, sizeof(data));
		sector_write(file, sector, data, &whose);
		break;
	case DISK_READ:
	case DISK_FLUSH:
	case DISK_ALLOCATE:
	case DISK_EXTENTS:
	case DISK_MEASURE:
		return;
	}
	if (file->is_origin)
		page_get(file, sector / PAGE_SECTORS)->bad = false;
	if (!file->is_device && (sector + 1) * SECTOR_BYTES > file->bytes) {
		if (file->is_origin)
			sim_fail("the origin has grown");
		file->bytes = (sector + 1) * SECTOR_BYTES;
	}
}

/* Up to the page's end and the buffer's, as far as that is whole sectors, at once. */
static uint64_t read_some(struct disk_io *io, uint64_t from, uint64_t to)
{
	const struct iovec *iov = io->iov != NULL ? io->iov : &io->single;
	uint64_t offset = from * SECTOR_BYTES, sector = io->offset / SECTOR_BYTES + from;
	uint64_t count = PAGE_SECTORS - sector % PAGE_SECTORS;
	const struct page *page = page_find(io->disk->file, sector / PAGE_SECTORS);

	while (offset >= iov->iov_len) {
		offset -= iov->iov_len;
		iov++;
	}
	count = count < to - from ? count : to - from;
	if (count > (iov->iov_len - offset) / SECTOR_BYTES)
		count = (iov->iov_len - offset) / SECTOR_BYTES;
	if (page == NULL)
		memset((uint8_t *)iov->iov_base + offset, 0, (size_t)count * SECTOR_BYTES);
	else
		memcpy((uint8_t *)iov->iov_base + offset, page->cached + sector % PAGE_SECTORS * SECTOR_BYTES,
		       (size_t)count * SECTOR_BYTES);
	return count;
}

static void carry_out(struct disk_io *io, uint64_t from, uint64_t to)
{
	while (io->op == DISK_READ && from < to)
		from += read_some(io, from, to);
	for (uint64_t index = from; index < to; index++)
		carry_out_sector(io, index);
}

static struct version *version_find(struct page *page, unsigned at, uint64_t request)
{
	for (struct version *version = page->versions[at]; version != NULL; version = version->next)
		if (version->request == request)
			return version;
	return NULL;
}

/* The request's versions are completed; with FUA they are durable. */
static void writes_completed(struct disk_io *io, bool durable)
{
	struct sim_file *file = io->disk->file;
	struct flight *flight = flight_of(io);

	for (uint64_t index = 0; index < io->length / SECTOR_BYTES; index++) {
		uint64_t sector = io->offset / SECTOR_BYTES + index;
		struct page *page = page_get(file, sector / PAGE_SECTORS);
		unsigned at = (unsigned)(sector % PAGE_SECTORS);
		struct version *version = version_find(page, at, flight->request);

		if (version == NULL)
			continue;
		version->completed = file->host->clock;
		if (durable)
			sector_make_durable(page, at, version);
	}
	if (durable)
		dirty_prune(file);
}

static void flush_sector(struct sim_file *file, uint64_t sector, uint64_t submitted, bool fails)
{
	struct page *page = page_get(file, sector / PAGE_SECTORS);
	unsigned at = (unsigned)(sector % PAGE_SECTORS);
	struct version *last = NULL;

	for (struct version *version = page->versions[at]; version != NULL; version = version->next) {
		if (version->completed == 0 || version->completed >= submitted || version->doomed)
			continue;
		if (fails && random_chance(&file->host->random, 333))
			version->doomed = true;
		else if (!fails || random_chance(&file->host->random, 500))
			last = version;
	}
	if (last != NULL)
		sector_make_durable(page, at, last);
}

static void flush(struct disk_io *io, bool fails)
{
	struct sim_file *file = io->disk->file;

	for (size_t i = 0; i < file->dirty_count; i++)
		flush_sector(file, file->dirty[i], flight_of(io)->submitted, fails);
	dirty_prune(file);
	file->host->flush_failed = file->host->flush_failed || fails;
	if (fails && file->is_origin)
		file->host->origin_flush_failed = true;
}

static bool page_is_zero(const struct sim_file *file, uint64_t index)
{
	const struct page *page = page_find(file, index);

	return page == NULL || (page->cached[0] == 0 && memcmp(page->cached, page->cached + 1, PAGE_BYTES - 1) == 0);
}

/* A page of zeroes counts as a hole, mostly. */
static void extents(struct disk_io *io)
{
	uint64_t offset = io->offset, end = io->offset + io->length;

	io->extents_count = 0;
	while (offset < end) {
		bool hole = page_is_zero(io->disk->file, offset / PAGE_BYTES) &&
			    random_chance(&io->disk->file->host->random, 900);
		uint64_t next = (offset / PAGE_BYTES + 1) * PAGE_BYTES;
		struct disk_extent *last = io->extents_count > 0 ? &io->extents[io->extents_count - 1] : NULL;

		next = next < end ? next : end;
		if (last != NULL && last->hole == hole) {
			last->length += next - offset;
		} else {
			if (io->extents_count == io->extents_max)
				return;
			io->extents[io->extents_count++] =
				(struct disk_extent){ .length = next - offset, .hole = hole };
		}
		offset = next;
	}
}

/* ---- faults ---- */

static bool has_bad_page(struct disk_io *io)
{
	struct sim_file *file = io->disk->file;

	if (file->bad_per_thousand == 0 || io->length == 0 || io->op == (file->is_origin ? DISK_WRITE : DISK_READ))
		return false;
	for (uint64_t page = io->offset / PAGE_BYTES; page <= (io->offset + io->length - 1) / PAGE_BYTES; page++)
		if (page_get(file, page)->bad)
			return true;
	return false;
}

/* What its file system has left for a file. */
static uint64_t room_bytes(const struct sim_file *file)
{
	if (!file->host->has_room_limit || file->is_origin || file->is_device)
		return UINT64_MAX;
	return file->host->room <= 0 ? 0 : (uint64_t)file->host->room * PAGE_SECTORS * SECTOR_BYTES;
}

/* What a sparse file, or one that shares its blocks, is told late: its file system has no room for a page more. */
static bool has_no_room(const struct disk_io *io)
{
	const struct sim_file *file = io->disk->file;
	int64_t needed = 0;

	if (!file->host->has_room_limit || file->is_origin || file->is_device)
		return false;
	for (uint64_t at = io->offset / PAGE_BYTES; at <= (io->offset + io->length - 1) / PAGE_BYTES; at++)
		needed += page_find(file, at) == NULL || !page_find(file, at)->takes_room;
	return needed > 0 && needed > file->host->room;
}

static int choose_fault(struct disk_io *io)
{
	struct disk_host *host = io->disk->file->host;
	const struct faults *faults = io->disk->file->is_origin ? &host->origin_faults : &host->store_faults;
	struct sim_random *random = &host->random;

	if (io->disk->file->gone && !host->is_immediate)
		return -EIO;
	switch (io->op) {
	case DISK_READ:
		if (has_bad_page(io))
			return -EIO;
		return !host->faults_paused && random_chance(random, faults->read) ? -EIO : 0;
	case DISK_WRITE:
		if (has_bad_page(io))
			return -EIO;
		if (has_no_room(io) && !host->is_immediate)
			return -ENOSPC;
		if (!host->faults_paused && random_chance(random, faults->no_room))
			return -ENOSPC;
		return !host->faults_paused && random_chance(random, faults->write) ? -EIO : 0;
	case DISK_ZERO:
	case DISK_DISCARD:
		return !host->faults_paused && random_chance(random, faults->write) ? -EIO : 0;
	case DISK_FLUSH:
		return !host->faults_paused && random_chance(random, faults->flush) ? -EIO : 0;
	case DISK_ALLOCATE:
		return !host->faults_paused && random_chance(random, faults->no_room) ? -ENOSPC : 0;
	case DISK_EXTENTS:
	case DISK_MEASURE:
		return 0;
	}
	return 0;
}

static void note_fault(struct disk_io *io)
{
	struct sim_file *file = io->disk->file;

	file->host->counters.faults++;
	if (io->op == DISK_FLUSH || (io->op == DISK_WRITE && io->offset < FIRST_AREA_OFFSET))
		file->superblock_failed = true;
	if (!file->is_origin || io->op != DISK_READ)
		return;
	for (uint64_t page = io->offset / PAGE_BYTES; page <= (io->offset + io->length - 1) / PAGE_BYTES; page++)
		page_get(file, page)->read_failed = true;
}

bool sim_origin_read_failed(const struct disk_host *host, uint64_t offset, uint64_t bytes)
{
	for (size_t i = 0; i < host->file_count; i++) {
		const struct sim_file *file = &host->files[i];

		for (uint64_t page = offset / PAGE_BYTES; file->is_origin && page <= (offset + bytes - 1) / PAGE_BYTES;
		     page++)
			if (page_find(file, page) != NULL && page_find(file, page)->read_failed)
				return true;
	}
	return false;
}

bool sim_superblock_failed(const struct sim_file *file)
{
	return file->superblock_failed;
}

bool sim_flush_failed(const struct disk_host *host)
{
	return host->flush_failed;
}

bool sim_origin_flush_failed(const struct disk_host *host)
{
	return host->origin_flush_failed;
}

/* ---- crashes ---- */

static void crash_in_flight(struct disk_host *host)
{
	list_for_each(link, &host->in_flight) {
		struct disk_io *io = container_of(link, struct disk_io, link);
		struct flight *flight = flight_of(io);
		static const unsigned chances[] = { 0, 100, 500, 900, 1000 };
		unsigned chance = chances[random_below(&host->random, 5)];

		if (!is_write(io))
			continue;
		for (uint64_t index = flight->from; index < flight->to; index++)
			if (random_chance(&host->random, chance))
				carry_out_sector(io, index);
	}
}

/* The cut came in the middle of the sector: of the chosen version only a part is there, or nothing that makes sense. */
static void shear(struct disk_host *host, struct version *chosen, const uint8_t *durable)
{
	size_t kept = 1 + (size_t)random_below(&host->random, SECTOR_BYTES - 1);

	if (random_chance(&host->random, 500)) {
		random_fill(random_next(&host->random), chosen->data, SECTOR_BYTES);
		return;
	}
	memcpy(chosen->data + kept, durable + kept, SECTOR_BYTES - kept);
}

static void power_cut_file(struct disk_host *host, struct sim_file *file)
{
	unsigned sheared = !file->is_origin && random_chance(&host->random, 250) ? 200 : 0;
	static const unsigned chances[] = { 0, 100, 500, 900, 1000 };
	unsigned chance = chances[random_below(&host->random, 5)];

	for (size_t i = 0; i < file->dirty_count; i++) {
		struct page *page = page_get(file, file->dirty[i] / PAGE_SECTORS);
		unsigned at = (unsigned)(file->dirty[i] % PAGE_SECTORS);
		struct version *chosen = NULL;

		for (struct version *version = page->versions[at]; version != NULL; version = version->next)
			if (!version->doomed && random_chance(&host->random, chance))
				chosen = version;
		if (chosen != NULL && random_chance(&host->random, sheared))
			shear(host, chosen, page->durable + (size_t)at * SECTOR_BYTES);
		if (chosen != NULL)
			sector_make_durable(page, at, chosen);
		versions_drop(page, at, NULL);
		memcpy(page->cached + (size_t)at * SECTOR_BYTES, page->durable + (size_t)at * SECTOR_BYTES,
		       SECTOR_BYTES);
	}
	file->dirty_count = 0;
}

static void cut_file(struct sim_file *file, const struct sim_cut *cut)
{
	for (size_t i = 0; i < file->dirty_count; i++) {
		struct page *page = page_get(file, file->dirty[i] / PAGE_SECTORS);
		unsigned at = (unsigned)(file->dirty[i] % PAGE_SECTORS);
		const struct version *chosen = NULL;

		for (const struct version *version = page->versions[at]; version != NULL; version = version->next)
			if (cut->keeps(cut, version->request, version->index, version->total))
				chosen = version;
		if (chosen != NULL)
			sector_make_durable(page, at, chosen);
		versions_drop(page, at, NULL);
		memcpy(page->cached + (size_t)at * SECTOR_BYTES, page->durable + (size_t)at * SECTOR_BYTES,
		       SECTOR_BYTES);
	}
	file->dirty_count = 0;
}

static void kill_file(struct disk_host *host, struct sim_file *file)
{
	for (size_t i = 0; i < file->dirty_count; i++) {
		struct page *page = page_get(file, file->dirty[i] / PAGE_SECTORS);
		unsigned at = (unsigned)(file->dirty[i] % PAGE_SECTORS);
		const uint8_t *now = page->durable + (size_t)at * SECTOR_BYTES;
		bool redirty = random_chance(&host->random, 500);

		for (struct version **link = &page->versions[at]; *link != NULL;) {
			struct version *version = *link;

			if (version->doomed && !redirty) {
				*link = version->next;
				version_put(version);
				continue;
			}
			version->doomed = false;
			version->completed = host->clock;
			now = version->data;
			link = &version->next;
		}
		memcpy(page->cached + (size_t)at * SECTOR_BYTES, now, SECTOR_BYTES);
	}
	dirty_prune(file);
}

static void carry_out_all(struct disk_host *host)
{
	list_for_each(link, &host->in_flight) {
		struct disk_io *io = container_of(link, struct disk_io, link);

		if (is_write(io))
			carry_out(io, flight_of(io)->from, flight_of(io)->to);
	}
}

static void crashed(struct disk_host *host, enum crash_kind kind)
{
	if (kind == CRASH_POWER)
		host->counters.power_cuts++;
	else
		host->counters.kills++;
	host->crashed = kind;
	host->dead = true;
	host->plan.kind = CRASH_NONE;
	host->crash_due = false;
}

void sim_cut(struct disk_host *host, const struct sim_cut *cut)
{
	sim_trace("==== power cut, chosen");
	carry_out_all(host);
	for (size_t i = 0; i < host->file_count; i++)
		cut_file(&host->files[i], cut);
	crashed(host, CRASH_POWER);
}

static void crash(struct disk_host *host)
{
	sim_trace("%s", host->plan.kind == CRASH_POWER ? "==== power cut" : "==== kill");
	crash_in_flight(host);
	host->clock++;
	for (size_t i = 0; i < host->file_count; i++) {
		if (host->plan.kind == CRASH_POWER)
			power_cut_file(host, &host->files[i]);
		else
			kill_file(host, &host->files[i]);
	}
	crashed(host, host->plan.kind);
}

void sim_crash_now(struct disk_host *host, enum crash_kind kind)
{
	host->plan.kind = kind;
	crash(host);
}

static bool crash_if_due(struct disk_host *host)
{
	const struct crash_plan *plan = &host->plan;

	if (plan->kind == CRASH_NONE || host->dead)
		return false;
	if (!host->crash_due && (plan->events == 0 || host->life_events < plan->events) &&
	    (plan->flushes == 0 || host->flushes < plan->flushes))
		return false;
	crash(host);
	return true;
}

void sim_set_crash(struct disk_host *host, const struct crash_plan *plan)
{
	host->plan = *plan;
	host->crash_due = false;
	host->life_events = 0;
	host->origin_writes = 0;
	host->store_writes = 0;
	host->flushes = 0;
}

bool sim_is_dead(const struct disk_host *host)
{
	return host->dead;
}

enum crash_kind sim_crashed_how(const struct disk_host *host)
{
	return host->crashed;
}

void sim_revive(struct disk_host *host)
{
	host->dead = false;
	host->crashed = CRASH_NONE;
	host->origin_flush_failed = false;
	host->flush_failed = false;
}

/* ---- events ---- */

static const char *op_text(enum disk_op op)
{
	static const char *const texts[] = { "READ", "WRITE", "FLUSH", "DISCARD", "ZERO", "ALLOCATE", "EXTENTS",
					     "MEASURE" };

	return texts[op];
}

static void trace_io(const char *what, const struct disk_io *io, int error)
{
	if (sim_is_tracing())
		sim_trace("%s %s %s %llu+%llu%s%s", what, io->disk->file->name, op_text(io->op),
			  (unsigned long long)io->offset, (unsigned long long)io->length,
			  (io->flags & DISK_FUA) != 0 ? " FUA" : "", error != 0 ? strerror(-error) : "");
}

/* Rule 6. */
static void carry_out_failed(struct disk_io *io)
{
	struct sim_random *random = &io->disk->file->host->random;
	const struct flight *flight = flight_of(io);

	if (random_chance(random, 300)) {
		carry_out(io, flight->from, flight->from + random_below(random, flight->to - flight->from + 1));
		return;
	}
	for (uint64_t index = flight->from; index < flight->to; index++)
		if (random_chance(random, 500))
			carry_out_sector(io, index);
}

static int finish(struct disk_io *io)
{
	struct disk_host *host = io->disk->file->host;
	struct flight *flight = flight_of(io);
	int error = choose_fault(io);

	host->clock++;
	if (error != 0)
		note_fault(io);
	switch (io->op) {
	case DISK_READ:
	case DISK_WRITE:
	case DISK_ZERO:
	case DISK_DISCARD:
		if (error == 0)
			carry_out(io, flight->from, flight->to);
		else if (is_write(io))
			carry_out_failed(io);
		if (is_write(io))
			writes_completed(io, error == 0 && (io->flags & DISK_FUA) != 0);
		break;
	case DISK_FLUSH:
		flush(io, error != 0);
		host->flushes++;
		break;
	case DISK_ALLOCATE:
		if (error == 0 && io->offset + io->length > io->disk->file->bytes && !io->disk->file->is_device)
			io->disk->file->bytes = io->offset + io->length;
		break;
	case DISK_EXTENTS:
		extents(io);
		break;
	case DISK_MEASURE:
		io->room_bytes = room_bytes(io->disk->file);
		break;
	}
	return error;
}

static void complete(struct disk_io *io, int error)
{
	trace_io("done", io, error);
	list_remove(&io->link);
	io->done(io, error);
}

static bool run_event(struct disk_host *host)
{
	struct list *link = host->in_flight.next;
	struct disk_io *io;
	struct flight *flight;

	if (host->in_flight_count == 0)
		return false;
	if (host->order == SIM_LAST_FIRST)
		link = host->in_flight.previous;
	for (uint64_t skip = host->order == SIM_AT_RANDOM ? random_below(&host->random, host->in_flight_count) : 0;
	     skip > 0; skip--)
		link = link->next;
	io = container_of(link, struct disk_io, link);
	flight = flight_of(io);
	host->time_ns += random_below(&host->random, 200000);
	if (!host->dead && host->order == SIM_AT_RANDOM && !flight->started && is_partly_op(io->op) &&
	    random_chance(&host->random, 300)) {
		uint64_t middle = flight->from + random_below(&host->random, flight->to - flight->from + 1);

		flight->started = true;
		if (random_chance(&host->random, 500)) {
			carry_out(io, flight->from, middle);
			flight->from = middle;
		} else {
			carry_out(io, middle, flight->to);
			flight->to = middle;
		}
		return true;
	}
	host->in_flight_count--;
	complete(io, host->dead ? -EIO : finish(io));
	return true;
}

bool sim_event(struct disk_host *host)
{
	if (crash_if_due(host))
		return true;
	if (host->hook != NULL && !host->dead && host->in_flight_count > 0)
		host->hook(host->hook_context);
	if (!run_event(host))
		return false;
	host->counters.events++;
	host->life_events++;
	(void)crash_if_due(host);
	return true;
}

size_t sim_in_flight(const struct disk_host *host)
{
	return host->in_flight_count;
}

void sim_print_in_flight(const struct disk_host *host)
{
	list_for_each(link, &host->in_flight) {
		const struct disk_io *io = container_of(link, struct disk_io, link);

		printf("# in flight: %s %s %llu+%llu\n", io->disk->file->name, op_text(io->op),
		       (unsigned long long)io->offset, (unsigned long long)io->length);
	}
}

/* ---- io/disk.h ---- */

static void check_request(const struct disk_io *io)
{
	const struct sim_file *file = io->disk->file;
	uint64_t bytes = 0;

	if (io->op == DISK_FLUSH || io->op == DISK_MEASURE) {
		if (io->offset != 0 || io->length != 0)
			sim_fail("%s with an offset or a length", op_text(io->op));
		return;
	}
	if (io->length == 0)
		sim_fail("%s of nothing on %s", op_text(io->op), file->name);
	if (is_partly_op(io->op) && (io->offset % SECTOR_BYTES != 0 || io->length % SECTOR_BYTES != 0))
		sim_fail("%s %llu+%llu on %s is not made of sectors", op_text(io->op), (unsigned long long)io->offset,
			 (unsigned long long)io->length, file->name);
	if ((file->is_origin || file->is_device) && io->op != DISK_ALLOCATE && io->offset + io->length > file->bytes)
		sim_fail("%s %llu+%llu is past the end of %s", op_text(io->op), (unsigned long long)io->offset,
			 (unsigned long long)io->length, file->name);
	if (io->op != DISK_READ && io->op != DISK_WRITE)
		return;
	for (unsigned i = 0; i < (io->iov != NULL ? io->iov_count : 1); i++)
		bytes += io->iov != NULL ? io->iov[i].iov_len : io->single.iov_len;
	if (bytes != io->length || (io->iov != NULL && io->iov_count > DISK_IOV_MAX))
		sim_fail("%s on %s: the buffers have %llu bytes, not %llu", op_text(io->op), file->name,
			 (unsigned long long)bytes, (unsigned long long)io->length);
}

void disk_submit(struct disk_io *io)
{
	struct sim_file *file = io->disk->file;
	struct disk_host *host = file->host;
	struct flight *flight = flight_of(io);

	_Static_assert(sizeof(struct flight) <= sizeof(io->scratch), "it must fit");
	check_request(io);
	*flight = (struct flight){ .request = ++host->requests, .submitted = ++host->clock };
	flight->to = is_partly_op(io->op) ? io->length / SECTOR_BYTES : 0;
	if (io->op == DISK_DISCARD)
		flight->fill = (uint8_t)random_below(&host->random, 4);
	trace_io("submit", io, 0);
	if (host->is_immediate) {
		list_append(&host->immediate, &io->link);
		return;
	}
	list_append(&host->in_flight, &io->link);
	host->in_flight_count++;
	if (!is_write(io) || host->dead)
		return;
	if (file->is_origin && ++host->origin_writes == host->plan.origin_writes)
		host->crash_due = true;
	if (!file->is_origin && ++host->store_writes == host->plan.store_writes)
		host->crash_due = true;
}

void disk_host_wait(struct disk_host *host)
{
	uint64_t before = host->in_flight_count;

	if (!list_is_empty(&host->immediate)) {
		struct disk_io *io = container_of(host->immediate.next, struct disk_io, link);
		bool paused = host->faults_paused;

		host->faults_paused = true;
		complete(io, finish(io));
		host->faults_paused = paused;
		return;
	}
	if (before == 0)
		sim_fail("the engine waits for a disk, and nothing is in flight");
	while (host->in_flight_count >= before)
		if (!sim_event(host))
			sim_fail("no event although something is in flight");
}

int disk_host_create(unsigned in_flight_max, struct disk_host **host)
{
	(void)in_flight_max;
	(void)host;
	return -ENOTSUP;
}

void disk_host_destroy(struct disk_host *host)
{
	if (host->in_flight_count > 0) {
		sim_print_in_flight(host);
		sim_fail("requests are in flight at the end");
	}
	for (size_t i = 0; i < host->file_count; i++) {
		struct sim_file *file = &host->files[i];

		if (file->opened > 0)
			sim_fail("%s is still open at the end", file->name);
		for (size_t p = 0; p < file->page_count; p++)
			page_put(file->pages[p]);
		sim_give(file->pages);
		sim_give(file->dirty);
	}
	sim_give(host);
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

unsigned disk_host_poll(struct disk_host *host)
{
	(void)host;
	return 0;
}

uint64_t disk_host_monotonic_ns(struct disk_host *host)
{
	return host->time_ns;
}

uint64_t disk_host_wall_ns(struct disk_host *host)
{
	return UINT64_C(1600000000000000000) + host->time_ns;
}

void disk_host_random(struct disk_host *host, void *out, size_t bytes)
{
	random_fill(random_next(&host->random), out, bytes);
}

int disk_open(struct disk_host *host, const char *path, unsigned flags, struct disk **out)
{
	struct sim_file *file = NULL;
	struct disk *disk;

	for (size_t i = 0; i < host->file_count; i++)
		if (strcmp(host->files[i].name, path) == 0)
			file = &host->files[i];
	if (file == NULL || file->absent)
		return -ENOENT;
	if ((flags & DISK_OPEN_LOCK) != 0 && file->locked)
		return -EBUSY;
	disk = sim_take(sizeof(*disk));
	disk->file = file;
	disk->has_lock = (flags & DISK_OPEN_LOCK) != 0;
	file->locked = file->locked || disk->has_lock;
	file->opened++;
	*out = disk;
	return 0;
}

void disk_close(struct disk *disk)
{
	if (disk == NULL)
		return;
	list_for_each(link, &disk->file->host->in_flight)
		if (container_of(link, struct disk_io, link)->disk == disk)
			sim_fail("%s is closed while a request is in flight", disk->file->name);
	if (disk->has_lock)
		disk->file->locked = false;
	disk->file->opened--;
	sim_give(disk);
}

void disk_get_info(const struct disk *disk, struct disk_info *info)
{
	*info = (struct disk_info){
		.size_bytes = disk->file->bytes,
		.sector_bytes = disk->file->sector_bytes,
		.is_device = disk->file->is_device,
		.is_direct = true,
	};
}

bool disk_is_same(const struct disk *a, const struct disk *b)
{
	return a->file == b->file;
}

struct waiting {
	bool done;
	int error;
};

static void waited(struct disk_io *io, int error)
{
	struct waiting *waiting = io->context;

	waiting->done = true;
	waiting->error = error;
}

static int submit_wait(struct disk_host *host, const struct disk_io *request)
{
	struct waiting waiting = { .done = false };
	struct disk_io io = *request;

	io.done = waited;
	io.context = &waiting;
	disk_submit(&io);
	while (!waiting.done)
		disk_host_wait(host);
	return waiting.error;
}

int disk_read_wait(struct disk_host *host, struct disk *disk, void *buffer, size_t bytes, uint64_t offset)
{
	struct disk_io io = {
		.disk = disk, .op = DISK_READ, .offset = offset, .length = bytes, .single = { buffer, bytes }
	};

	return submit_wait(host, &io);
}

int disk_write_wait(struct disk_host *host, struct disk *disk, const void *buffer, size_t bytes, uint64_t offset)
{
	struct disk_io io = { .disk = disk,
			      .op = DISK_WRITE,
			      .offset = offset,
			      .length = bytes,
			      .single = { (void *)(uintptr_t)buffer, bytes } };

	return submit_wait(host, &io);
}

int disk_flush_wait(struct disk_host *host, struct disk *disk)
{
	struct disk_io io = { .disk = disk, .op = DISK_FLUSH };

	return submit_wait(host, &io);
}

/* ---- for the driver ---- */

struct disk_host *sim_host_create(uint64_t seed)
{
	struct disk_host *host = sim_take(sizeof(*host));

	host->random.state = seed;
	host->time_ns = UINT64_C(1000000000);
	list_init(&host->in_flight);
	list_init(&host->immediate);
	return host;
}

/* In order, each once; those that there is no room for are left out. */
static void request_note(uint64_t *requests, size_t *count, size_t max, uint64_t request)
{
	size_t at = 0;

	while (at < *count && requests[at] < request)
		at++;
	if ((at < *count && requests[at] == request) || *count == max)
		return;
	memmove(requests + at + 1, requests + at, (*count - at) * sizeof(*requests));
	requests[at] = request;
	(*count)++;
}

static void file_clone(struct disk_host *host, struct sim_file *file, const struct sim_file *from)
{
	*file = *from;
	file->host = host;
	file->opened = 0;
	file->locked = false;
	file->pages = NULL;
	file->page_count = 0;
	if (from->page_count > 0)
		pages_grow(file, from->page_count);
	for (size_t i = 0; i < from->page_count; i++) {
		file->pages[i] = from->pages[i];
		if (file->pages[i] != NULL)
			file->pages[i]->references++;
	}
	file->dirty = NULL;
	file->dirty_size = from->dirty_count;
	if (from->dirty_count > 0) {
		file->dirty = sim_resize(NULL, from->dirty_count, sizeof(*file->dirty));
		memcpy(file->dirty, from->dirty, from->dirty_count * sizeof(*file->dirty));
	}
}

struct disk_host *sim_host_clone(const struct disk_host *from, uint64_t seed,
				 void (*crash_it)(struct disk_host *host, void *context), void *context)
{
	struct disk_host *host = sim_take(sizeof(*host));
	struct disk disks[FILES_MAX];
	struct disk_io *ios = sim_resize(NULL, from->in_flight_count + 1, sizeof(*ios)), *io = ios;

	*host = *from;
	host->random.state = seed;
	host->order = SIM_AT_RANDOM;
	host->hook = NULL;
	list_init(&host->in_flight);
	list_init(&host->immediate);
	for (size_t i = 0; i < from->file_count; i++) {
		file_clone(host, &host->files[i], &from->files[i]);
		disks[i] = (struct disk){ .file = &host->files[i] };
	}
	list_for_each(link, &from->in_flight) {
		*io = *container_of(link, struct disk_io, link);
		io->disk = &disks[io->disk->file - from->files];
		list_append(&host->in_flight, &io->link);
		io++;
	}
	crash_it(host, context);
	/* Who submitted them is not there. */
	list_init(&host->in_flight);
	host->in_flight_count = 0;
	sim_give(ios);
	return host;
}

struct sim_file *sim_file_in(struct disk_host *host, const struct sim_file *file)
{
	return &host->files[file - file->host->files];
}

size_t sim_unflushed(const struct disk_host *host, uint64_t *requests, size_t max)
{
	size_t count = 0;

	for (size_t i = 0; i < host->file_count; i++) {
		const struct sim_file *file = &host->files[i];

		for (size_t j = 0; j < file->dirty_count; j++) {
			const struct page *page = file->pages[file->dirty[j] / PAGE_SECTORS];
			const struct version *version = page->versions[file->dirty[j] % PAGE_SECTORS];

			for (; version != NULL; version = version->next)
				request_note(requests, &count, max, version->request);
		}
	}
	list_for_each(link, &host->in_flight) {
		struct disk_io *io = container_of(link, struct disk_io, link);

		if (is_write(io))
			request_note(requests, &count, max, flight_of(io)->request);
	}
	return count;
}

struct sim_random *sim_host_random(struct disk_host *host)
{
	return &host->random;
}

struct sim_counters *sim_host_counters(struct disk_host *host)
{
	return &host->counters;
}

uint64_t sim_host_time(struct disk_host *host)
{
	return host->time_ns;
}

void sim_host_sleep(struct disk_host *host, uint64_t ns)
{
	host->time_ns += ns;
}

struct sim_file *sim_file_create(struct disk_host *host, const char *name, bool is_origin, bool is_device, uint64_t bytes,
				 uint32_t sector_bytes)
{
	struct sim_file *file = &host->files[host->file_count++];

	if (host->file_count > FILES_MAX)
		sim_fail("too many files");
	file->host = host;
	(void)snprintf(file->name, sizeof(file->name), "%s", name);
	file->is_origin = is_origin;
	file->is_device = is_device;
	file->bytes = bytes;
	file->sector_bytes = sector_bytes;
	return file;
}

void sim_file_set_absent(struct sim_file *file, bool absent)
{
	file->absent = absent;
}

bool sim_file_is_dirty(const struct sim_file *file, uint64_t offset, uint64_t bytes)
{
	for (size_t i = 0; i < file->dirty_count; i++)
		if (file->dirty[i] * SECTOR_BYTES >= offset && file->dirty[i] * SECTOR_BYTES - offset < bytes)
			return true;
	return false;
}

bool sim_file_is_open(const struct sim_file *file)
{
	return file->opened > 0;
}

void sim_file_set_gone(struct sim_file *file, bool gone)
{
	file->gone = gone;
}

void sim_set_room(struct disk_host *host, uint64_t pages)
{
	host->has_room_limit = true;
	host->room = (int64_t)pages;
}

void sim_set_record_faults(struct disk_host *host, unsigned per_thousand)
{
	host->record_faults = per_thousand;
}

bool sim_record_fails(struct disk_host *host)
{
	return host->dead || (!host->faults_paused && random_chance(&host->random, host->record_faults));
}

void sim_file_set_bad_pages(struct sim_file *file, unsigned per_thousand)
{
	file->bad_per_thousand = per_thousand;
}

void sim_file_peek(const struct sim_file *file, uint64_t offset, uint8_t *out, size_t bytes)
{
	for (size_t at = 0; at < bytes; at += SECTOR_BYTES)
		sector_read(file, (offset + at) / SECTOR_BYTES, out + at);
}

void sim_file_poke(struct sim_file *file, uint64_t offset, const uint8_t *data, size_t bytes)
{
	for (size_t at = 0; at < bytes; at += SECTOR_BYTES) {
		uint64_t sector = (offset + at) / SECTOR_BYTES;
		struct page *page = page_get(file, sector / PAGE_SECTORS);

		memcpy(page->cached + sector % PAGE_SECTORS * SECTOR_BYTES, data + at, SECTOR_BYTES);
		memcpy(page->durable + sector % PAGE_SECTORS * SECTOR_BYTES, data + at, SECTOR_BYTES);
	}
}

const char *sim_file_name(const struct sim_file *file)
{
	return file->name;
}

void sim_set_faults(struct disk_host *host, const struct faults *origin, const struct faults *stores)
{
	host->origin_faults = *origin;
	host->store_faults = *stores;
}

void sim_pause_faults(struct disk_host *host, bool pause)
{
	host->faults_paused = pause;
}

void sim_set_order(struct disk_host *host, enum sim_order order)
{
	host->order = order;
}

void sim_set_hook(struct disk_host *host, void (*hook)(void *context), void *context)
{
	host->hook = hook;
	host->hook_context = context;
}

void sim_set_immediate(struct disk_host *host, bool on)
{
	host->is_immediate = on;
}
